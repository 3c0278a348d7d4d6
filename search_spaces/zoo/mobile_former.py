"""Mobile-Former 26M to 508M, named by their multiply-accumulates (arXiv 2108.05895)."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from search_spaces.arch import Arch
from search_spaces.blocks import (
    BlockSpec,
    Head,
    LiteBottleneck,
    MobileFormer,
    MobileFormerEmbed,
    MobileFormerPool,
    SideTokens,
    Stem,
)
from search_spaces.zoo.released import Entry, Family, Naming, places

__all__ = ["FAMILY"]


class Stage(NamedTuple):
    """What downsamples to its maps, and the blocks behind, each by its width and ratio."""

    embed: int | None  # width; None where the lite bottleneck has downsampled
    blocks: tuple[tuple[int, int], ...] = ()


def _arch(
    stem: int,
    lite: tuple[int, int, int],
    tokens: tuple[int, int],
    stages: tuple[Stage, ...],
    features: int,
    groups: int = 1,
) -> Arch:
    """`lite`: width, ratio and stride of the bottleneck; `tokens`: their number and width; `groups`: of every 1x1 convolution."""
    width, ratio, stride = lite
    blocks: list[BlockSpec] = [Stem(stem, convs=1, act="relu6", bias=False)]
    blocks += [LiteBottleneck(width, ratio, stride, groups), SideTokens(*tokens)]
    for stage in stages:
        blocks += [MobileFormerEmbed(stage.embed, groups=groups)] if stage.embed else []
        blocks += [MobileFormer(width, ratio, groups) for width, ratio in stage.blocks]
    return Arch(224, 3, (*blocks, MobileFormerPool(features, groups=groups), Head(1000, norm="none")))


def _large(stem: int, widths: tuple[int, ...], ratios: tuple[int, int, int], features: int) -> Arch:
    """151M and up: 6 tokens of 192; stages of one, one, three and two blocks, those behind the first width of the third in six."""
    first, second, third, wider, last = widths
    stages = (
        Stage(first, ((first, ratios[0]),)),
        Stage(second, ((second, ratios[1]),)),
        Stage(third, ((third, ratios[2]), (wider, 6), (wider, 6))),
        Stage(last, ((last, 6), (last, 6))),
    )
    return _arch(stem, (stem, 2, 1), (6, 192), stages, features)


SMALLEST = (
    Stage(None, ((12, 3),)),
    Stage(24, ((24, 3),)),
    Stage(48, ((48, 4), (64, 6))),
    Stage(96, ((96, 6),)),
)
SMALL = (
    Stage(16),
    Stage(32, ((32, 3),)),
    Stage(64, ((64, 4), (88, 6))),
    Stage(128, ((128, 6),)),
)

FORMER = {
    "to_former.gate": "local_global.alpha.0",
    "to_former.q": "local_global.q",
    "to_former.proj": "local_global.proj",
    "to_former.norm": "local_global.layer_norm",
    "former.q": "global_block.q",
    "former.proj": "global_block.channel_mlp",
    "former.norm1": "global_block.layer_norm",
    "former.mlp.fc1": "global_block.ffn.0",
    "former.mlp.fc2": "global_block.ffn.2",
    "former.norm2": "global_block.ffn_norm",
    "to_mobile.k": "global_local.k",
    "to_mobile.v": "global_local.proj",
}
BLOCK = FORMER | {
    "expand": "conv1.0",
    "norm1": "conv1.1",
    "act1.fc1": "hyper1.hyper.0",
    "act1.fc2": "hyper1.hyper.2",
    "depthwise": "conv2.0",
    "norm2": "conv2.1",
    "act2.fc1": "hyper2.hyper.0",
    "act2.fc2": "hyper2.hyper.2",
    "project": "conv3.0",
    "norm3": "conv3.1",
}
EMBED = FORMER | {
    "depthwise1": "conv1.0",
    "norm1": "conv1.1",
    "act1.fc1": "hyper1.hyper.0",
    "act1.fc2": "hyper1.hyper.2",
    "pointwise1": "conv2.0",
    "norm2": "conv2.1",
    "depthwise2": "conv3.0",
    "norm3": "conv3.1",
    "act2.fc1": "hyper3.hyper.0",
    "act2.fc2": "hyper3.hyper.2",
    "pointwise2": "conv4.0",
    "norm4": "conv4.1",
}
LITE = {"depthwise": "conv.0", "norm1": "conv.1", "pointwise": "conv.4", "norm2": "conv.5"}
STEM = {"conv1": "stem.0", "norm1": "stem.1"}
POOL = FORMER | {
    "expand": "classifier.conv.1",
    "norm1": "classifier.conv.2",
    "fc": "classifier.fc.0",
    "norm2": "classifier.fc.1",
}
PARTS: dict[type[BlockSpec], Mapping[str, str]] = {
    Stem: STEM,
    LiteBottleneck: LITE,
    SideTokens: {"tokens": "tokens.weight"},
    MobileFormer: BLOCK,
    MobileFormerEmbed: EMBED,
    MobileFormerPool: POOL,
    Head: {"head": "classifier.classifier.1"},
}
"""The authors' names of each kind's parts."""
NUMBERED = (LiteBottleneck, MobileFormer, MobileFormerEmbed)
"""Whose parts' names begin with `features` and their number."""


def _namings(arch: Arch) -> Iterator[Naming]:
    """The authors'."""
    numbers = [
        sum(isinstance(spec, NUMBERED) for spec in arch.blocks[:position]) for position in range(len(arch.blocks))
    ]
    found: dict[str, Entry] = {}
    for place in places(arch):
        position, name = int(place.split(".")[1]), place.split(".", 2)[2]
        spec = arch.blocks[position]
        part = name.rpartition(".")[0] or name
        theirs = PARTS[type(spec)][part] + name.removeprefix(part)
        found[f"features.{numbers[position]}.{theirs}" if isinstance(spec, NUMBERED) else theirs] = Entry(place)
    yield found


FAMILY = Family(
    {
        "mobile_former_26m": _arch(8, (12, 3, 2), (3, 128), SMALLEST, 1024, groups=4),
        "mobile_former_52m": _arch(8, (12, 3, 2), (3, 128), SMALLEST, 1024),
        "mobile_former_96m": _arch(12, (12, 2, 1), (4, 128), SMALL, 1280),
        "mobile_former_151m": _large(12, (16, 32, 64, 88, 128), (3, 3, 4), 1280),
        "mobile_former_214m": _large(12, (20, 40, 80, 112, 160), (3, 4, 4), 1600),
        "mobile_former_294m": _large(16, (24, 48, 96, 128, 192), (4, 4, 4), 1920),
        "mobile_former_508m": _large(24, (40, 72, 128, 176, 240), (3, 3, 4), 1920),
    },
    _namings,
)
