"""The space of plain ViTs: patch grid, width, depth, and heads, q/k width, MLP ratio and kept patches block by block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import comb

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, BlockSpec, ClassToken, Head, Patch, Position, TokenPrune
from search_spaces.factors import Factor
from search_spaces.space import Choice, Code, Space, by_size
from search_spaces.states import State

__all__ = ["ALL", "Layer", "Vit"]

ALL = 0  # patches kept where nothing is dropped
EPS = 1e-6  # of the norms, as in DeiT


@dataclass(frozen=True)
class Layer:
    """One block, spelled out, and how many patches are kept before it."""

    heads: int
    key_dim: int
    ratio: float
    keep: int = ALL


class Vit(Space):
    """Patches, a class token, positions and equal-width blocks (ViT, arXiv 2010.11929; DeiT, 2012.12877; AS-ViT, 2209.13802).

    Resolution, width and depth are chosen for the network; for each block its heads, the width of its q and k, and its
    MLP ratio; at pruning locations how many patches stay. Heads are a share of those that fill the width; a head's v is
    always `value_dim` wide.

    Weights: blocks share by their place from the start. Widths, MLP ratios and heads take leading channels, q and k the
    leading ones of every head. Positions are shared on equal grids, all else by all networks.
    """

    def __init__(
        self,
        name: str,
        image_size: tuple[int, ...],
        patch: int,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        shares: tuple[float, ...],
        key_dims: tuple[int, ...],
        value_dim: int,
        ratios: tuple[float, ...],
        locations: tuple[int, ...],
        keeps: tuple[int, ...],
        classes: int,
    ) -> None:
        """Set the choices.

        Args:
            name: of the space.
            image_size: the resolutions, in pixels.
            patch: pixels of a patch's side.
            widths: channels of the tokens.
            depths: numbers of blocks.
            shares: heads of a block over those that fill the width.
            key_dims: widths of a head's q and k.
            value_dim: width of a head's v.
            ratios: hidden width of an MLP over the width.
            locations: blocks, from 0, before which patches may be dropped.
            keeps: numbers of patches that may stay there, beside all; the same at every resolution, so that few rows need times.
            classes: what the networks tell apart.

        Raises:
            ValueError: two shares are equally many heads of a width, or a location has no block before it that scores.
        """
        self.name, self.classes, self.sizes, self.patch = name, classes, image_size, patch
        self.head = Head(classes, pool="token", eps=EPS)
        self.widths, self.depths, self.shares, self.key_dims = widths, depths, shares, key_dims
        self.value_dim, self.ratios, self.locations, self.keeps = value_dim, ratios, locations, keeps
        if any(len({self.heads(width, share) for share in shares}) < len(shares) for width in widths):
            raise ValueError(f"two of the shares {shares} are equally many heads of one of the widths {widths}")
        if min(locations, default=1) < 1 or ALL in keeps:
            raise ValueError(f"patches are dropped behind the first block, and some stay; got {locations} and {keeps}")
        choices = [by_size("resolution", image_size), by_size("width", widths), by_size("depth", depths)]
        for i in range(max(depths)):
            choices += [by_size(f"heads{i}", shares), by_size(f"qk{i}", key_dims), by_size(f"ratio{i}", ratios)]
        counts = (ALL, *keeps)
        choices += [Choice(f"keep{i}", counts, counts.index(min(keeps)) if keeps else 0, 0) for i in locations]
        self.choices = tuple(choices)

    def heads(self, width: int, share: float) -> int:
        """How many heads a share of those that fill a width is; at least one."""
        return max(1, round(share * width / self.value_dim))

    def patches(self, image_size: int) -> int:
        """Patches of an image."""
        return int((image_size // self.patch) ** 2)

    def repair(self, code: Code) -> Code:
        """Set the positions of absent blocks to 0; a location that would keep no fewer patches than reach it keeps all."""
        given = self._clipped(code)
        depth, left = self._count(given, "depth"), self.patches(self._count(given, "resolution"))
        for i in range(depth, max(self.depths)):
            given[[self._at[f"{name}{i}"] for name in ("heads", "qk", "ratio")]] = 0
        for i in sorted(self.locations):
            keep = self._count(given, f"keep{i}")
            if i < depth and ALL < keep < left:
                left = keep
            else:
                given[self._at[f"keep{i}"]] = 0
        return given

    def _build(self, code: Code) -> Arch:
        width = self._count(code, "width")
        layers = [
            Layer(
                self.heads(width, self._number(code, f"heads{i}")),
                self._count(code, f"qk{i}"),
                self._number(code, f"ratio{i}"),
                self._count(code, f"keep{i}") if i in self.locations else ALL,
            )
            for i in range(self._count(code, "depth"))
        ]
        return self.arch(width, layers, self._count(code, "resolution"))

    def arch(self, width: int, layers: Sequence[Layer], image_size: int | None = None) -> Arch:
        """The network of these blocks, whose figures need not be among the choices; of the largest image size unless told."""
        blocks: list[BlockSpec] = [Patch(width, self.patch), ClassToken(), Position()]
        for layer in layers:
            blocks += [TokenPrune(layer.keep)] if layer.keep else []
            blocks.append(self.block(layer.heads, layer.key_dim, layer.ratio))
        return Arch(image_size or max(self.sizes), 3, (*blocks, self.head))

    def block(self, heads: int, key_dim: int, ratio: float) -> MB3D:
        """One block."""
        return MB3D(heads, key_dim, self.value_dim, ratio, residual="plain", bias=False, eps=EPS)

    def _read(self, arch: Arch) -> Code | None:
        values: dict[str, float] = {"resolution": arch.image_size, "depth": 0}
        keep, shares = ALL, dict[int, float]()
        for spec in arch.blocks:
            depth = int(values["depth"])
            if isinstance(spec, Patch):
                values["width"], shares = spec.width, {self.heads(spec.width, share): share for share in self.shares}
            elif isinstance(spec, TokenPrune):
                keep = spec.keep
            elif isinstance(spec, MB3D):
                values |= {f"heads{depth}": shares.get(spec.heads, 0), f"qk{depth}": spec.key_dim}
                values |= {f"ratio{depth}": spec.ratio, "depth": depth + 1} | ({f"keep{depth}": keep} if keep else {})
                keep = ALL
        return self._coded(values)

    @cached_property
    def size(self) -> int:
        """Number of different networks."""
        block = len(self.shares) * len(self.key_dims) * len(self.ratios)
        return sum(
            len(self.widths) * block**depth * self._prunings(size, depth)
            for size, depth in product(self.sizes, self.depths)
        )

    def _prunings(self, image_size: int, depth: int) -> int:
        """In how many ways ever fewer patches can be kept at some of the locations."""
        places = sum(i < depth for i in self.locations)
        counts = sum(keep < self.patches(image_size) for keep in self.keeps)
        return sum(comb(places, used) * comb(counts, used) for used in range(places + 1))

    def slots(self, arch: Arch) -> tuple[str, ...]:
        """A slot for each block from the start, such as `block0`, and one for each of the others."""
        names: list[str] = []
        depth = 0
        for spec in arch.blocks:
            if isinstance(spec, MB3D):
                names.append(f"block{depth}")
                depth += 1
            elif isinstance(spec, TokenPrune):
                names.append(f"token_prune{depth}")  # nothing is shared: it has no weights
            elif isinstance(spec, Patch | ClassToken | Position | Head):
                names.append(spec.kind)
            else:
                raise ValueError(f"{self.name} has no slot for a block of kind {spec.kind}")
        return tuple(names)

    @cached_property
    def bank(self) -> Mapping[str, tuple[tuple[BlockSpec, State], ...]]:
        """The largest network's blocks, and its positions at every resolution."""
        largest = self.largest
        place = largest.blocks.index(Position())
        return self._by_slot(largest) | {"position": tuple(largest.at(size).steps()[place] for size in self.sizes)}

    @cached_property
    def terms(self) -> tuple[Factor, ...]:
        """The embedding, every block and location, and the head."""
        from search_spaces.spaces.vit_factors import terms

        return tuple(terms(self))

    def probes(self) -> tuple[Arch, ...]:
        """Chains of equal blocks for all that a block may be, with all patches and behind a pruning location, and short networks."""
        from search_spaces.spaces.vit_probes import probes

        return probes(self)
