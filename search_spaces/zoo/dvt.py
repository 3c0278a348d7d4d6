"""DVT: cascades of T2T-ViT-12, T2T-ViT-14 and DeiT-S over 7 x 7, 10 x 10 and 14 x 14 tokens (arXiv 2105.15075)."""

from collections.abc import Iterator, Sequence

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, BlockSpec, ClassToken, Head, Patch, Position, Reuse, TokensToToken
from search_spaces.cascade import Cascade, linked
from search_spaces.zoo.released import Entry, Family, Naming, places

__all__ = ["FAMILY"]

STAGES = ("less_less_token", "less_token", "normal_token")
HEAD_DIM = 64
GATHERED = ((14, 8, 3), (11, 6, 5), (7, 4, 2))  # kernel, stride and padding of the first gathering
CUT = ((32, 0), (23, 3), (16, 0))  # size and padding of patches


def _cascade(starts: Sequence[BlockSpec], position: Position, block: MB3D, depth: int) -> Cascade:
    head = Head(1000, pool="token", eps=block.eps)
    return linked([Arch(224, 3, (start, ClassToken(), position, *[block] * depth, head)) for start in starts])


def _block(heads: int, ratio: float, eps: float, qkv_bias: bool) -> MB3D:
    return MB3D(heads, HEAD_DIM, HEAD_DIM, ratio, residual="plain", bias=False, eps=eps, qkv_bias=qkv_bias)


def _t2t(depth: int, heads: int, ratio: float) -> Cascade:
    starts = [TokensToToken(heads * HEAD_DIM, *sizes) for sizes in GATHERED]
    return _cascade(starts, Position("sines"), _block(heads, ratio, 1e-5, False), depth)


def _deit(depth: int, heads: int) -> Cascade:
    starts = [Patch(heads * HEAD_DIM, size, padding=padding) for size, padding in CUT]
    return _cascade(starts, Position(), _block(heads, 4, 1e-6, True), depth)


STEM = {"directions": "w", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2"}
BLOCK = {"token_mixer": "attn", "features.norm": "feature_resuse_mlp.0", "features.mlp": "feature_resuse_mlp.1"}
SHARED = {"relations.fc1": "relation_reuse_conv.0", "relations.fc2": "relation_reuse_conv.2"}
"""Parts of our names, and the authors'."""


def _namings(arch: Arch) -> Iterator[Naming]:
    """The authors'."""
    assert isinstance(arch, Cascade)
    where = [
        (stage, sum(isinstance(before, MB3D) for before in own.blocks[:number]))
        for stage, own in zip(STAGES, arch.stages, strict=True)
        for number in range(len(own.blocks))
    ]  # of every block, its stage, and how many transformer blocks there are before it
    found: dict[str, Entry] = {}
    for place in places(arch):
        position, name = int(place.split(".")[1]), place.split(".", 2)[2]
        (stage, number), spec = where[position], arch.blocks[position]
        theirs, entry = _theirs(spec, number, name), Entry(place)
        if isinstance(spec, ClassToken | Position):
            entry = Entry(place, lead=1)
        elif isinstance(spec, MB3D) and ".qkv." in place:
            entry = Entry(place, heads=spec.heads)
        found[f"{stage}.{theirs}"] = entry
    yield found


def _theirs(spec: BlockSpec, number: int, name: str) -> str:
    """The name of a weight in its stage."""
    if isinstance(spec, ClassToken):
        return "cls_token"
    if isinstance(spec, Position):
        return "pos_embed"
    if isinstance(spec, Patch):
        return f"patch_embed.{name}"
    if isinstance(spec, TokensToToken):
        return f"tokens_to_token.{_renamed(name, STEM)}"
    if isinstance(spec, MB3D):
        return f"blocks.{number}.{_renamed(name, BLOCK)}"
    return _renamed(name, SHARED) if isinstance(spec, Reuse) else name


def _renamed(name: str, parts: dict[str, str]) -> str:
    ours = next((ours for ours in parts if ours in name), "")
    return name.replace(ours, parts[ours]) if ours else name


FAMILY = Family(
    {"dvt_deit_small": _deit(12, 6), "dvt_t2t_vit_12": _t2t(12, 4, 2), "dvt_t2t_vit_14": _t2t(14, 6, 3)},
    _namings,
)
