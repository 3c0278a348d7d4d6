"""SReT-T, LT and S (arXiv 2111.05297, tables 1 and 8; "TL" in the paper is "LT" in the release)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, BlockSpec, ClassToken, Embed, Head, Position, Stem
from search_spaces.zoo.released import Entry, Family, Naming, places

__all__ = ["FAMILY", "UNSLICED", "regrouped", "sret"]

UNIQUE = (2, 5, 3)  # blocks of each stage, each applied twice in a row
LOOPS = 2  # of each block
GROUPS = ((8, 2), (4, 1), (1, 1))  # into which each stage's loops cut the tokens
UNSLICED = ((1, 1),) * len(GROUPS)
EPS = 1e-6


def sret(
    width: int,
    heads: int,
    ratio: float,
    nll: float,
    *,
    tokens: int = 0,
    residual: str = "coefficients",
    recursion: str = "internal",
    groups: Sequence[Sequence[int]] = GROUPS,
) -> Arch:
    """Three stages that double the width; tokens move only where a later loop has several groups.

    Args:
        width: channels of the first stage.
        heads: of its blocks.
        ratio: hidden width of an MLP over the width.
        nll: hidden width of a projection over the width; 0 for none.
        tokens: 0, and places are averaged; 1, a class token is pooled; 2, a distillation token too, with a classifier of its own (DeiT,
            arXiv 2012.12877). They join before the last stage, whose tokens are neither cut into groups nor downsampled.
        residual: how branches join, see `MB3D`.
        recursion: internal or external loops, see `MB3D`.
        groups: see `regrouped`.

    Raises:
        ValueError: another number of tokens, heads that do not divide the width, or what `MB3D` refuses.
    """
    if width % heads:
        raise ValueError(f"a width of {width} cannot be divided among {heads} heads; choose another")
    if tokens not in (0, 1, 2):
        raise ValueError(f"there is no token, a class token, or a distillation token too; got tokens={tokens}")
    blocks: list[BlockSpec] = [Stem(width, convs=3), Position()]
    dim = width // heads
    for stage, unique in enumerate(UNIQUE):
        if stage:
            blocks.append(Embed(width << stage, "depthwise", norm=False))
        if tokens and stage == len(UNIQUE) - 1:
            blocks.append(ClassToken(tokens))
        block = MB3D(
            heads << stage,
            dim,
            dim,
            ratio,
            residual=residual,
            bias=False,
            loops=LOOPS,
            nll=nll,
            recursion=recursion,
            eps=EPS,
        )
        blocks += [block] * unique
    pooled = {"distilled": tokens == 2, "pool": "token"} if tokens else {"mean_first": True}
    return regrouped(Arch(224, 3, (*blocks, Head(1000, eps=EPS, **pooled))), groups)


def regrouped(arch: Arch, groups: Sequence[Sequence[int]]) -> Arch:
    """A SReT whose stages cut their tokens into other groups, which its weights do not depend on.

    Under one name there are released weights of several: `UNSLICED` ones, and of SReT-LT some of (16, 1), (14, 1), (1, 1).

    Args:
        arch: of `sret`.
        groups: of each stage, into how many groups each of its blocks' two loops cuts the tokens; later loops permute them first.

    Raises:
        ValueError: not two groups for each of three stages, or some that do not divide a stage's tokens.
    """
    if [len(stage) for stage in groups] != [LOOPS] * len(UNIQUE):
        raise ValueError(f"groups are {LOOPS} numbers for each of {len(UNIQUE)} stages, such as {GROUPS}, got {groups}")
    if min(map(min, groups)) < 1:
        raise ValueError(f"groups must be at least 1, got {groups}")
    blocks, stage = list[BlockSpec](), 0
    for spec in arch.blocks:
        stage += isinstance(spec, Embed)
        if isinstance(spec, MB3D):
            cut = tuple(groups[stage]) if max(groups[stage]) > 1 else ()
            orders = tuple("permuted" if loop and count > 1 else "contiguous" for loop, count in enumerate(cut))
            spec = replace(spec, groups=cut, orders=orders)
        blocks.append(spec)
    return replace(arch, blocks=tuple(blocks))


BLOCK = {"ls1.skip": "coefficient1.bias", "ls1.branch": "coefficient2.bias", "ls2.skip": "coefficient3.bias"}
BLOCK |= {"ls2.branch": "coefficient4.bias", "token_mixer.": "attn."}
PROJECTION = {"norm.": "norm1.", "join.skip": "coefficient1.bias", "join.branch": "coefficient2.bias"}


def _namings(arch: Arch) -> Iterator[Naming]:
    """The authors': every application of a block is an entry of its own, its projection the next; their weights are tied."""
    found: dict[str, Entry] = {}
    stage, block = 0, -1  # of the block at hand, its number in the stage
    last = -1
    for place in places(arch):
        position, name = int(place.split(".")[1]), place.split(".", 2)[2]
        spec = arch.blocks[position]
        if isinstance(spec, Embed) and position != last:
            stage, block = stage + 1, -1
        block += isinstance(spec, MB3D) and position != last
        last = position
        if isinstance(spec, Stem):
            found[f"patch_embed.{name.replace('norm', 'bn')}"] = Entry(place)
        elif isinstance(spec, Position):
            found["pos_embed"] = Entry(place, lead=1)
        elif isinstance(spec, Embed):
            found[f"pools.{stage - 1}.{name}"] = Entry(place)
        elif isinstance(spec, MB3D):
            found |= _block(place, name, spec, f"transformers.{stage}.blocks", block * spec.loops)
        else:
            found[name] = Entry(place)
    yield found


def _block(place: str, name: str, spec: MB3D, prefix: str, first: int) -> Naming:
    """The entries of one weight of a block whose first application has the number `first` in its stage."""
    if name.startswith("nll."):
        loop, name = int(name.split(".")[1]), name.split(".", 2)[2]
        return {f"{prefix}.{2 * (first + loop) + 1}.{_renamed(name, PROJECTION)}": Entry(place)}
    entry = Entry(place, heads=spec.heads if ".qkv." in place else 0)
    return {f"{prefix}.{2 * (first + loop)}.{_renamed(name, BLOCK)}": entry for loop in range(spec.loops)}


def _renamed(name: str, names: dict[str, str]) -> str:
    ours = next((ours for ours in names if name.startswith(ours)), "")
    return names.get(ours, "") + name.removeprefix(ours)


FAMILY = Family(
    {"sret_t": sret(64, 2, 3.6, 1), "sret_lt": sret(64, 2, 4, 1), "sret_s": sret(126, 3, 3, 2)},
    _namings,
)
