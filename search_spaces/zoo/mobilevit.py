"""MobileViT XXS, XS and S (arXiv 2110.02178, table 4 of the appendix)."""

from collections.abc import Iterator

from search_spaces.arch import Arch
from search_spaces.blocks import BlockSpec, Conv, Head, InvertedResidual, MobileViT
from search_spaces.zoo.released import Entry, Family, Naming, places

__all__ = ["FAMILY"]

DEPTHS = (2, 4, 3)  # layers of the three transformers


def _arch(widths: tuple[int, ...], dims: tuple[int, ...], expand: float) -> Arch:
    """A stem, a stage at its sides, and four that halve them, of which the last three end in a MobileViT block."""
    blocks: list[BlockSpec] = [Conv(16, stride=2), InvertedResidual(widths[0], 1, expand)]
    blocks += [InvertedResidual(widths[1], 2, expand), *[InvertedResidual(widths[1], 1, expand)] * 2]
    for width, dim, depth in zip(widths[2:], dims, DEPTHS, strict=True):
        blocks += [InvertedResidual(width, 2, expand), MobileViT(dim, depth)]
    return Arch(256, 3, (*blocks, Conv(4 * widths[-1], 1), Head(1000, norm="none")))


TIMM = {"expand": "conv1_1x1", "depthwise": "conv2_kxk", "reduce": "conv3_1x1"}
TIMM |= {"local": "conv_kxk", "widen": "conv_1x1", "narrow": "conv_proj", "fusion": "conv_fusion"}
AUTHORS = {"expand": "block.exp_1x1", "depthwise": "block.conv_3x3", "reduce": "block.red_1x1"}
AUTHORS |= {"local": "local_rep.conv_3x3", "widen": "local_rep.conv_1x1.block.conv", "narrow": "conv_proj"}
AUTHORS_LAYER = {"norm1": "pre_norm_mha.0", "token_mixer.qkv": "pre_norm_mha.1.qkv_proj", "norm2": "pre_norm_ffn.0"}
AUTHORS_LAYER |= {
    "token_mixer.proj": "pre_norm_mha.1.out_proj",
    "mlp.fc1": "pre_norm_ffn.1",
    "mlp.fc2": "pre_norm_ffn.4",
}


def _namings(arch: Arch) -> Iterator[Naming]:
    """timm's, then the authors' own, whose stages count from 1."""
    timm: dict[str, Entry] = {}
    authors: dict[str, Entry] = {}
    stages = _numbered(arch)
    for place in places(arch):
        position, name = int(place.split(".")[1]), place.split(".", 2)[2]
        spec, (stage, number) = arch.blocks[position], stages[position]
        if isinstance(spec, Conv):
            where, own = ("final_conv", "conv_1x1_exp") if position else ("stem", "conv_1")
            theirs, own = f"{where}.{_bn(name)}", f"{own}.block.{name}"
        elif isinstance(spec, Head):
            theirs, own = name.replace("head.", "head.fc."), name.replace("head.", "classifier.fc.")
        else:
            theirs = f"stages.{stage}.{number}.{_timm(name)}"
            own = f"layer_{stage + 1}.{number}.{_authors(name, spec)}"
        heads = spec.heads if isinstance(spec, MobileViT) and ".qkv." in place else 0
        timm[theirs] = authors[own] = Entry(place, heads=heads)
    yield from (timm, authors)


def _numbered(arch: Arch) -> list[tuple[int, int]]:
    """The stage of each block, and its number there in the releases."""
    found: list[tuple[int, int]] = []
    stage, number = 0, 0
    for spec in arch.blocks:
        if isinstance(spec, InvertedResidual) and spec.stride == 2:
            stage, number = stage + 1, 0
        found.append((stage, number))
        number += isinstance(spec, InvertedResidual | MobileViT)
    return found


def _bn(name: str) -> str:
    """A weight of a convolution or of its BN, in timm."""
    return f"bn.{name.removeprefix('norm.')}" if name.startswith("norm.") else name


def _timm(name: str) -> str:
    """A weight's name in timm, without its block's."""
    part, _, rest = name.partition(".")
    if part == "layers":
        number, _, own = rest.partition(".")
        return f"transformer.{number}.{own.replace('token_mixer.', 'attn.')}"
    return name if part == "norm" else f"{TIMM[part]}.{_bn(rest)}"


def _authors(name: str, spec: BlockSpec) -> str:
    """A weight's name in the authors' release, without its block's."""
    part, _, rest = name.partition(".")
    if part == "layers":
        number, _, own = rest.partition(".")
        layer, leaf = own.rsplit(".", 1)
        return f"global_rep.{number}.{AUTHORS_LAYER[layer]}.{leaf}"
    if isinstance(spec, MobileViT) and part == "norm":
        return f"global_rep.{spec.depth}.{rest}"
    return f"{AUTHORS.get(part, part)}.{rest if part == 'widen' else f'block.{rest}'}"


FAMILY = Family(
    {
        "mobilevit_xxs": _arch((16, 24, 48, 64, 80), (64, 80, 96), 2),
        "mobilevit_xs": _arch((32, 48, 64, 80, 96), (96, 120, 144), 4),
        "mobilevit_s": _arch((32, 64, 96, 128, 160), (144, 192, 240), 4),
    },
    _namings,
    normalisation=((0.0,) * 3, (1.0,) * 3),
)
