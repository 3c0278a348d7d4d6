"""What is lost by each way of making a dense ViT smaller: its blocks, and the frame that they are in."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from compress.dense import Dense
from compress.slicing import BlockSize, Plan, size_of
from search_spaces.blocks import MB3D
from search_spaces.spaces.frames import Frame, at_side, attention_blocks, frames, whole_frame
from search_spaces.spaces.remains import Sizes, sizes_in
from search_spaces.states import Tokens

__all__ = ["BlockLoss", "block_losses", "frame_losses"]

TELLING = 0.05  # share of an output that is lost where divergences are well above rounding and far from their limit
NOTHING = 1e-9  # a share that is none


@dataclass(frozen=True)
class BlockLoss:
    """What one block loses: the divergence for each unit of error of its parts, and that without it."""

    whole: BlockSize
    plan: Plan
    heads: float
    queries: float
    values: float
    neurons: float
    without: float

    def attention(self, size: BlockSize) -> float:
        """Of heads and widths of that size."""
        plan, gone = self.plan, self.whole.heads - size.heads
        lost = self.heads * float(plan.heads.errors[gone]) + self.values * float(plan.values.mean(0)[size.value_dim])
        return lost + self.queries * float(plan.queries.mean(0)[size.key_dim])

    def hidden(self, count: int) -> float:
        """Of so many neurons."""
        return self.neurons * float(self.plan.neurons.errors[self.whole.hidden - count])


def block_losses(dense: Dense, parts: Collection[str], progress: Callable[[str], None]) -> dict[int, BlockLoss]:
    """Of each block, by its position: one smaller form is run for each kind of part."""
    found = {}
    for number, position in enumerate(attention_blocks(dense.arch)):
        progress(f"sensitivities of block {position}")
        spec, state = dense.arch.blocks[position], dense.arch.states[position]
        assert isinstance(spec, MB3D) and isinstance(state, Tokens)
        sizes = sizes_in(dense.arch, number, whole_frame(dense.arch), parts)
        without = dense.divergence_of(position, None) if "blocks" in parts else math.inf
        whole = size_of(spec, state.channels)
        found[position] = _block_loss(dense, position, whole, sizes, without)
    return found


def _block_loss(dense: Dense, position: int, whole: BlockSize, sizes: Sizes, without: float) -> BlockLoss:
    plan = dense.plans[position]
    queries, values = plan.queries.mean(0), plan.values.mean(0)

    def each(forms: Sequence[tuple[BlockSize, float]]) -> float:
        """Divergence for each unit of error: of the form, among these with their errors, whose error is the most telling."""
        telling = [(size, error) for size, error in forms if error > NOTHING]
        if not telling:
            return 0.0
        size, error = min(telling, key=lambda form: abs(math.log(form[1] / TELLING)))
        return dense.divergence_of(position, size) / error

    return BlockLoss(
        whole,
        plan,
        each([(replace(whole, heads=n), float(plan.heads.errors[whole.heads - n])) for n in sizes.heads[1:]]),
        each([(replace(whole, key_dim=n), float(queries[n])) for n in sizes.key_dims[1:]]),
        each([(replace(whole, value_dim=n), float(values[n])) for n in sizes.value_dims[1:]]),
        each([(replace(whole, hidden=n), float(plan.neurons.errors[whole.hidden - n])) for n in sizes.hidden[1:]]),
        without,
    )


def frame_losses(dense: Dense, parts: Collection[str], progress: Callable[[str], None]) -> dict[Frame, float]:
    """Of each frame with whole blocks: what its image size, its width and its dropping of patches lose, each run alone, together.

    A plan is run on images of the dense network's size, or in the frame's own where those cannot have it.
    """
    whole = whole_frame(dense.arch)
    found = {whole: 0.0}

    def alone(frame: Frame) -> float:
        if frame not in found:
            progress(f"sensitivities of {frame.label}")
            framed = dense.framed(frame)
            found[frame] = dense.divergence(framed.arch, framed.weights, first=dense.few)
        return found[frame]

    def together(frame: Frame) -> float:
        width = alone(Frame(whole.side, frame.width))
        wide = replace(frame, width=whole.width)
        large = at_side(dense.arch, wide, whole.side)
        if large is None:  # the plan merges what it can on smaller images alone: its loss there is with their size's
            return alone(wide) + width
        return alone(Frame(frame.side, whole.width)) + width + alone(large)

    return {frame: together(frame) for frame in frames(dense.arch, parts)}
