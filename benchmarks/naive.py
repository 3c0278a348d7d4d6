"""The table that most build first, to compare with: each block alone, one after the other, and the median of a few runs.

ONNX Runtime in float alone: other runtimes have no session of a piece of a network.
"""

import time
from collections.abc import Sequence

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from nas.interleave import quiet
from nas.runtimes.onnxruntime import export_onnx
from nas.target import Target
from search_spaces.arch import Arch, Step
from search_spaces.blocks import BlockSpec, TokenPrune
from search_spaces.errors import InputError
from search_spaces.states import Map, State, Tokens
from search_spaces.tokens import Kept

RUNS = 8

Piece = tuple[BlockSpec, State, Step]


class _Alone(nn.Module):
    """One step of a network, on tensors as it gets them behind the steps before."""

    def __init__(self, spec: BlockSpec, state: State, step: Step) -> None:
        super().__init__()
        self.block, self.spec, self.state, self.step = spec.build(state), spec, state, step

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        given: Tensor | Kept = x
        if isinstance(self.spec, TokenPrune):
            assert isinstance(self.state, Tokens)
            given = Kept(x, score=x[..., self.state.prefix :, 0])
        elif isinstance(self.state, Tokens) and self.state.pruned:
            given = Kept(x, places=torch.arange(self.state.patches)[None])
        loop, scored = self.step.loop, self.step.scored
        out = self.block(given) if loop is None and not scored else self.block(given, loop, scored)
        if isinstance(out, Kept):
            return (out.x,) if out.score is None else (out.x, out.score)
        return (out,)


def _example(state: State, batch: int) -> Tensor:
    if isinstance(state, Map):
        return torch.randn(batch, state.channels, state.height, state.width)
    assert isinstance(state, Tokens)
    return torch.randn(batch, state.count, state.channels)


def _ms(piece: Piece, target: Target) -> float:
    """Median of a few runs, after one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = target.threads or 1, 1
    example = _example(piece[1], target.batch)
    session = onnxruntime.InferenceSession(
        export_onnx(_Alone(*piece), example), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: example.numpy()}
    marks = []
    for _ in range(1 + RUNS):
        start = time.perf_counter()
        session.run(None, feed)
        marks.append(1e3 * (time.perf_counter() - start))
    return float(np.median(marks[1:]))


def naive_ms(archs: Sequence[Arch], target: Target) -> list[float]:
    """Milliseconds of each network, the sum of its blocks'; every different block is timed once.

    Raises:
        InputError: the target is not ONNX Runtime in float.
    """
    if (target.runtime, target.dtype) != ("ort", "fp32"):
        raise InputError(f"blocks are timed alone in ONNX Runtime in fp32, not on {target.name}; leave --naive out")
    known: dict[Piece, float] = {}
    sums = []
    with quiet(target.threads):
        for arch in archs:
            pieces = [
                (arch.blocks[step.position], arch.states[step.position], step._replace(position=0))
                for step in arch.schedule()
            ]
            for piece in pieces:
                if piece not in known:
                    known[piece] = _ms(piece, target)
            sums.append(sum(known[piece] for piece in pieces))
    return sums
