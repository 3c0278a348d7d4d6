"""A hybrid network spelled out stage by stage, and back: what the space, its probes and its baselines build from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, MB4D, BlockSpec, Embed, Head, Stem, TokenPrune

__all__ = ["Part", "Stage", "network_of", "parts_of", "share_of", "uncut"]


@dataclass(frozen=True)
class Stage:
    """What one stage may be; choices are only ever appended."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]  # 0, for the last stage alone: the network ends with the stage before
    mixers: tuple[str, ...] = ("pool",)  # of its 4D blocks
    block: MB3D | None = None  # heads of its 3D blocks; None where it has none
    residuals: tuple[str, ...] = ("layer_scale",)  # of its 3D blocks, as what follows
    loops: tuple[int, ...] = (1,)
    nll: tuple[float, ...] = (0,)
    groups: tuple[int, ...] = (1,)  # of each loop
    orders: tuple[str, ...] = ("contiguous",)
    recursions: tuple[str, ...] = ("internal",)
    inverses: tuple[int, ...] = (1,)  # whether moved tokens are put back
    locations: tuple[int, ...] = ()  # 3D blocks before which patches may be dropped, counted from the stage's end
    keeps: tuple[float, ...] = (1,)  # shares of the stage's patches that may stay there; 1 drops nothing
    values: tuple[int, ...] = ()  # widths of a head's v in its 3D blocks; empty for that of `block`


@dataclass(frozen=True)
class Part:
    """One stage of a network, spelled out: the FFN ratios of its 4D blocks and then of its 3D blocks, and what they are like."""

    width: int
    mb4d: tuple[float, ...]
    mb3d: tuple[float, ...] = ()
    mixer: str = "pool"
    block: MB3D | None = None  # of the 3D blocks, whatever its ratio; the stage's plain one unless told
    keeps: tuple[int, ...] = ()  # for each 3D block, how many patches are kept before it, 0 for all; empty for all


def network_of(
    parts: Sequence[Part], plain: Sequence[MB3D | None], image_size: int, layer_scale: float, head: Head
) -> Arch:
    """The network of parts, one a stage; `plain` are the stages' 3D blocks where a part names none."""
    blocks: list[BlockSpec] = []
    for s, part in enumerate(parts):
        tokens = s > 0 and isinstance(blocks[-1], MB3D)
        blocks.append((Embed(part.width, "separable" if tokens else "full")) if s else Stem(part.width))
        blocks += [MB4D(ratio, layer_scale, part.mixer) for ratio in part.mb4d]
        block = part.block or plain[s]
        for ratio, keep in zip(part.mb3d, part.keeps or (0,) * len(part.mb3d), strict=True):
            assert block is not None, "a stage without 3D blocks"
            if keep:
                blocks.append(TokenPrune(keep))
                block = uncut(block)
            blocks.append(replace(block, ratio=ratio))
    return Arch(image_size, 3, (*blocks, head))


def uncut(block: MB3D) -> MB3D:
    """The block behind a pruning location: what is left has no even groups."""
    return replace(block, groups=(), orders=(), inverse=True, seed=0)


def share_of(tokens: int, share: float) -> int:
    """How many of a stage's patches a share of them is; at least one."""
    return max(1, round(share * tokens))


def parts_of(arch: Arch) -> list[Part]:
    """The parts that `arch` was made of."""
    parts: list[Part] = []
    keep = 0
    for spec in arch.blocks:
        if isinstance(spec, Stem | Embed):
            parts.append(Part(spec.width, ()))
        elif isinstance(spec, MB4D) and parts:
            parts[-1] = replace(parts[-1], mb4d=(*parts[-1].mb4d, spec.ratio), mixer=spec.mixer)
        elif isinstance(spec, TokenPrune):
            keep = spec.keep
        elif isinstance(spec, MB3D) and parts:
            last = parts[-1]
            block = last.block or spec  # those behind a pruning location have no groups
            parts[-1] = replace(last, mb3d=(*last.mb3d, spec.ratio), block=block, keeps=(*last.keeps, keep))
            keep = 0
    return [part if any(part.keeps) else replace(part, keeps=()) for part in parts]
