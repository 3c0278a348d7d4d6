"""SReT-T, LT and S (arXiv 2111.05297, tables 1 and 8; "TL" in the paper is "LT" in the release)."""

from collections.abc import Iterator

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, BlockSpec, Embed, Head, Position, Stem
from search_spaces.zoo.released import Entry, Family, Naming, places

__all__ = ["FAMILY"]

UNIQUE = (2, 5, 3)  # blocks of each stage, each applied twice in a row
GROUPS = ((8, 2), (4, 1), (1, 1))  # of the two loops


def _arch(width: int, heads: int, ratio: float, nll: float) -> Arch:
    """Three stages that double the width; tokens move only where a later loop has several groups."""
    blocks: list[BlockSpec] = [Stem(width, convs=3), Position()]
    dim = width // heads
    for stage, (unique, groups) in enumerate(zip(UNIQUE, GROUPS, strict=True)):
        if stage:
            blocks.append(Embed(width << stage, "depthwise", norm=False))
        cut = groups if max(groups) > 1 else ()
        orders = tuple("permuted" if loop and count > 1 else "contiguous" for loop, count in enumerate(cut))
        block = MB3D(
            heads << stage,
            dim,
            dim,
            ratio,
            residual="coefficients",
            bias=False,
            loops=2,
            nll=nll,
            groups=cut,
            orders=orders,
        )
        blocks += [block] * unique
    return Arch(224, 3, (*blocks, Head(1000, mean_first=True)))


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
    {"sret_t": _arch(64, 2, 3.6, 1), "sret_lt": _arch(64, 2, 4, 1), "sret_s": _arch(126, 3, 3, 2)},
    _namings,
)
