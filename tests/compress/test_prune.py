"""Pruning a ViT by a few images: budgets hold, little is lost, and bad input is named."""

import math
from collections import UserDict
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from compress import from_module
from compress.dense import examined
from compress.prune import PARTS, BudgetTooSmall, Macs, prepare, prune
from compress.sensitivity import block_losses
from compress.slicing import BlockSize
from nas.latency import LatencyTable
from nas.pruning import Milliseconds
from nas.table_file import RowTime
from search_spaces.arch import Arch, Network
from search_spaces.blocks import MB3D, BlockSpec, ClassToken, Head, Patch, Position
from search_spaces.errors import InputError
from search_spaces.resize import resized
from search_spaces.spaces.frames import whole_frame
from search_spaces.spaces.remains import Remains
from search_spaces.states import State, Tokens
from tests.compress.test_from_module import FORMS, SMALL, shuffled
from tests.compress.test_slicing import HEADS, HIDDEN, arch, images, network
from tests.nas.test_latency import content
from tests.nas.toy import toy_space

DATA = [images(0), images(1)]
DENSE = Macs().total(network().arch)


def pruned(share: float, model: nn.Module | None = None, **how: Any) -> Any:
    model = network() if model is None else model
    assert isinstance(model, Network)
    return prune(model, Macs(), share * Macs().total(model.arch), DATA, **how)


def scores(arch: Arch, weights: dict[str, Tensor], given: Tensor) -> Tensor:
    made = arch.build().eval()
    made.load_state_dict(weights)
    with torch.no_grad():
        return made(given)


@pytest.mark.parametrize(
    "form", [{}, {"mlp": "swiglu"}, {"qk_norm": True}, {"residual": "layer_scale", "layer_scale": 0.5}]
)
def test_budgets_hold_and_more_is_lost_for_less(form: dict[str, Any]) -> None:
    model = network(**form)
    found = [pruned(share, model) for share in (0.85, 0.7, 0.5)]
    dense = Macs().total(model.arch)
    for share, one in zip((0.85, 0.7, 0.5), found, strict=True):
        assert 0.5 * share * dense < one.cost == Macs().total(one.arch) <= share * dense == share * one.dense_cost
        assert scores(one.arch, one.weights, images(5)).shape == (32, 5)
    assert 0 < found[0].divergence < found[1].divergence < found[2].divergence


def test_a_budget_above_the_dense_network_gives_it_back() -> None:
    model = network()
    found = pruned(1.0, model)
    assert found.arch == model.arch and found.divergence == 0 and found.cost == found.dense_cost
    assert torch.equal(scores(found.arch, found.weights, images(5)), model(images(5)).detach())


def test_what_says_nothing_goes_first() -> None:
    """The neurons of one block are copies of a third of them: nothing else need be touched."""
    model = network()
    with torch.no_grad():
        first = model.blocks[3].mlp.fc1
        for weight in (first.weight, first.bias):
            weight[12:24], weight[24:] = weight[:12], weight[:12]
    state = model.arch.states[3]
    block = model.arch.blocks[3]
    assert isinstance(block, MB3D)
    saved = block.macs(state) - replace(block, ratio=12 / 24).macs(state)
    found = prune(model, Macs(), Macs().total(model.arch) - 0.8 * saved, DATA)
    assert found.divergence < 1e-3 and found.sizes[3].hidden <= HIDDEN // 2 and found.sizes[4].hidden == HIDDEN


def test_less_is_lost_than_by_cutting_all_blocks_alike() -> None:
    model = network()
    size = BlockSize(2, 8, 8, 24)
    dense = examined(model.arch, model.state_dict(), DATA, 64, PARTS)
    alike = dense.shrunk({3: size, 4: size}, dense.framed(whole_frame(model.arch)))
    found = prune(model, Macs(), Macs().total(alike[0]), DATA)
    assert found.cost <= Macs().total(alike[0]) and found.divergence < dense.divergence(*alike)


def test_what_the_sum_of_losses_promised_is_told() -> None:
    """That of the chosen frame's optimum, which no choice of a bound falls below."""
    prunable = prepare(network(), Macs(), DATA)
    found = prunable.within(0.6 * DENSE)
    told, chosen = found.surrogate, next(one for one in prunable.offers if one.frame == found.frame)
    sizes, losses = chosen.solved(0.6 * DENSE), block_losses(prunable.dense, PARTS, lambda what: None)
    assert told is not None and sizes is not None
    lost = [
        losses[place].without if size is None else losses[place].attention(size) + losses[place].hidden(size.hidden)
        for place, size in sizes.items()
    ]
    assert told.promised == pytest.approx(chosen.loss + sum(lost)) and 0.25 <= told.scale <= 4 and 1 <= told.runs <= 8
    assert chosen.loss + chosen.bound(0.6 * DENSE) <= told.promised * (1 + 1e-9)
    assert prunable.within(DENSE).surrogate is None


def test_a_table_of_milliseconds_is_a_cost() -> None:
    """Of invented times, interpolated between the numbers of patches that it has; the budget holds by its prediction."""
    model, remains = network(), Remains(network().arch, PARTS)
    times = {row.key: 0.01 + 1e-6 * row.positions * sum(size for _, size in row.dims) ** 1.5 for row in remains.rows}
    rows = {key: RowTime(ms, ms, ms, ms, 0.0, 20) for key, ms in times.items()}
    table = LatencyTable(content(rows=rows, space=remains.name, classes=(5,)), Path("invented"))
    dense = table.predict(model.arch).ms
    for share in (0.8, 0.65):
        found = prune(model, cost=Milliseconds(table), budget=share * dense, data=DATA, images=32)
        assert 0.5 * share * dense < found.cost == table.predict(found.arch).ms <= share * dense
        assert scores(found.arch, found.weights, resized(images(5), found.arch.image_size)).shape == (32, 5)


def test_several_costs_are_kept_each_within_its_budget() -> None:
    """Heads are cut for the one, and other parts for the other, which alone would leave more heads."""
    model, heads = network(), Flat()
    dense, most = heads.total(model.arch), heads.total(model.arch) / 3
    found = prune(model, cost=[Macs(), heads], budget=[0.7 * DENSE, most], data=DATA)
    assert found.cost == Macs().total(found.arch) <= 0.7 * DENSE and heads.total(found.arch) <= most
    assert heads.total(pruned(0.7, model).arch) > most
    alone = prune(model, [Macs(), heads], [0.7 * DENSE, dense], DATA)
    assert alone.arch == pruned(0.7, model).arch, "what does not bind changes nothing"
    whole = prune(model, [Macs(), heads], [DENSE, dense], DATA)
    assert whole.arch == model.arch and whole.divergence == 0


def test_of_several_budgets_that_is_named_which_nothing_holds() -> None:
    prunable = prepare(network(), [Macs(), Flat()], DATA, parts=("heads", "neurons"))
    with pytest.raises(
        BudgetTooSmall, match=r"costs \d+ and 2, above the budget of \d+ and 0\.5 by number 2; raise it"
    ) as small:
        prunable.within([0.8 * DENSE, 0.5])
    assert small.value.costs == prunable.cheapest([0.8 * DENSE, 0.5]) and small.value.cheapest == small.value.costs[0]
    assert prunable.within([0.8 * DENSE, 2.0]).divergence > 0
    for budget, message in (
        (0.8 * DENSE, "each cost has its budget: got 1 for 2 costs"),
        ([1.0, math.nan], "a number"),
    ):
        with pytest.raises(InputError, match=message):
            prunable.within(budget)
    with pytest.raises(InputError, match="there is no cost"):
        prune(network(), [], [], DATA)


def test_images_may_be_smaller_where_positions_are_fixed() -> None:
    """A table of sines belongs to no grid: the network of a smaller one makes its own."""
    dense = arch()
    torch.manual_seed(0)
    model = replace(dense, blocks=(*dense.blocks[:2], Position("sines"), *dense.blocks[3:])).build().eval()
    found = pruned(0.8, model, parts=("resolution",))
    assert found.arch == model.arch.at(24)
    assert torch.equal(found.weights["blocks.2.table"], found.arch.build().blocks[2].table)
    assert scores(found.arch, found.weights, resized(images(5), 24)).shape == (32, 5)


def test_encoders_are_compared_by_their_features() -> None:
    block = MB3D(3, 8, 8, 1.5, residual="plain", bias=False)
    torch.manual_seed(0)
    model = Arch(32, 3, (Patch(24, 8), ClassToken(), Position(), block, block, Head(0, pool="token"))).build().eval()
    found = pruned(0.7, model)
    assert 0 < found.divergence < 1 and scores(found.arch, found.weights, images(5)).shape == (32, 24)


def test_what_cannot_be_pruned_is_named() -> None:
    with pytest.raises(BudgetTooSmall, match="the cheapest network") as small:
        pruned(0.01)
    assert 0 < small.value.cheapest < DENSE
    assert pruned(small.value.cheapest / DENSE * 1.001).cost <= small.value.cheapest * 1.001
    with pytest.raises(InputError, match="got none"):
        prune(network(), Macs(), 0.5 * DENSE, [])
    with pytest.raises(InputError, match=r"\(B, 3, 32, 32\), got \(2, 3, 16, 16\)"):
        prune(network(), Macs(), 0.5 * DENSE, [torch.zeros(2, 3, 16, 16)])
    with pytest.raises(InputError, match="cannot be pruned: it takes a plain ViT"):
        prune(toy_space().smallest.build(), Macs(), 1.0, DATA)
    one = Arch(32, 3, (*network().arch.blocks[:-1], Head(1, pool="token"))).build()
    with pytest.raises(InputError, match="of one class cannot be pruned"):
        prune(one, Macs(), 0.5 * DENSE, DATA)
    broken = network()
    with torch.no_grad():
        broken.blocks[0].proj.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite; restore"):
        prune(broken, Macs(), 0.5 * DENSE, DATA)


def check_pruned(model: nn.Module) -> None:
    """What is left holds its budget, and its scores are finite."""
    whole, _ = from_module(model)
    dense = Macs().total(whole)
    found = prune(model, Macs(), 0.7 * dense, [whole.example(32, seed=1)])
    assert 0.35 * dense < found.cost == Macs().total(found.arch) <= 0.7 * dense == 0.7 * found.dense_cost
    assert torch.isfinite(scores(found.arch, found.weights, found.arch.example(4, seed=2))).all()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_timms_vit_is_pruned(form: str) -> None:
    check_pruned(shuffled(VisionTransformer(**SMALL | FORMS[form])))


def test_a_distilled_one_is_pruned_too() -> None:
    check_pruned(shuffled(VisionTransformerDistilled(**SMALL)))


def test_batches_may_be_dicts_of_hugging_face() -> None:
    dicts = [UserDict({"labels": torch.zeros(32), "pixel_values": one}) for one in DATA]  # as its processors give them
    how: dict[str, Any] = {"cost": Macs(), "budget": 0.7 * DENSE, "parts": ("heads", "neurons")}
    found, wanted = (prune(network(), data=data, **how) for data in (dicts, DATA))
    assert found.arch == wanted.arch and found.divergence == wanted.divergence


@pytest.mark.parametrize(
    ("data", "how", "message"),
    [
        ([images(0), images(1)[:0]], {}, r"\(B, 3, 32, 32\), but batch 1 has 0 images; leave it out"),
        ([{"images": images(0)}], {}, r"\(B, 3, 32, 32\), got a dict without pixel_values; give them under that name"),
        (DATA, {"images": 0}, "images must be at least 1, got 0"),
        ([images(0), images(1) / 0], {"images": 32}, "32 of the 32 images of batch 1 hold NaN or infinity; leave them"),
        ([torch.zeros(2, 3, 32, 32, dtype=torch.uint8)], {}, r"in floating point, got torch\.uint8; normalise them"),
        (DATA, {"budget": math.nan}, "a budget must be a number, in the unit of the cost, got nan"),
    ],
)
def test_bad_images_and_budgets_are_one_line(data: list[Any], how: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as found:
        prune(network(), Macs(), **{"budget": 0.5 * DENSE, "data": data, "parts": ("heads",), **how})
    assert type(found.value) is InputError and "\n" not in str(found.value)


def test_a_prunable_network_takes_no_budget_that_is_none() -> None:
    with pytest.raises(InputError, match="a budget must be a number"):
        prepare(network(), Macs(), DATA, parts=("heads",)).within(math.nan)


def test_no_more_batches_are_taken_than_are_wanted() -> None:
    asked: list[int] = []

    def endless() -> Iterator[Tensor]:
        for seed in count():
            asked.append(seed)
            yield images(seed, 8).double()

    for wanted, compared, batches in ((33, 16, 5), (8, 20, 3)):
        asked.clear()
        dense = prepare(network(), Macs(), endless(), images=compared, moments=wanted, parts=("heads",)).dense
        assert len(asked) == batches and len(dense.images) == compared
        assert dense.moments[3].neurons[-1, -1] == 8 * batches * 17  # a constant 1 of each token of all that were taken


def test_what_is_left_undone_is_said() -> None:
    said: list[str] = []
    pruned(1.0, parts=("heads", "tokens"), progress=said.append)
    assert f"the network costs {DENSE:.6g}, within the budget of {DENSE:.6g}: it stays as it is" in said
    flat = Flat()
    prune(network(), flat, 0.8 * flat.total(network().arch), DATA, parts=("heads", "resolution"), progress=said.append)
    assert "frames left out, as with whole blocks they cost no less than the dense network: 2" in said


@pytest.mark.parametrize(
    ("form", "stays"), [("vit", False), ("clip", True), ("siglip", True), ("siglip encoder", True)]
)
def test_what_keeps_its_width_is_said(form: str, stays: bool) -> None:
    model, said = shuffled(VisionTransformer(**SMALL | FORMS[form])), list[str]()
    whole, _ = from_module(model)
    for parts in (("heads", "width"), ("heads",)):
        prepare(model, Macs(), [whole.example(4, seed=1)], parts=parts, progress=said.append)
    assert sum("the embedding stays as wide as it is" in line for line in said) == stays


class Steps(Macs):
    """A cost of so many neurons as a kernel computes at once, and of heads, whose time goes up in steps too."""

    neurons, heads = 16, 2

    def total(self, arch: Arch) -> float:
        return sum(self.block(spec, state) for spec, state in arch.steps())

    def block(self, spec: BlockSpec, state: State) -> float:
        if not isinstance(spec, MB3D) or not isinstance(state, Tokens):
            return 0.0
        tiles = math.ceil(round(spec.ratio * state.channels) / self.neurons)
        return float(tiles + math.ceil(spec.heads / self.heads))


def test_sizes_are_those_that_are_faster_by_the_table() -> None:
    """Of all numbers of neurons or heads that take the same time the largest is offered alone, also where nothing is lost by fewer."""
    model = network()
    silent = network()
    with torch.no_grad():
        for block in silent.blocks:
            if hasattr(block, "mlp"):
                block.mlp.fc2.weight.zero_()
    for one in (model, silent):
        prunable = prepare(one, Steps(), DATA, parts=("heads", "neurons"))
        for forms, counts in prunable.offers[0].sizes.values():
            assert sorted(counts) == ([16, 32, HIDDEN] if one is model else [16])
            assert {size.heads for size in forms} == {2, HEADS}


class Flat(Macs):
    """A cost that image sizes make no difference to."""

    def total(self, arch: Arch) -> float:
        return sum(self.block(spec, state) for spec, state in arch.steps())

    def block(self, spec: BlockSpec, state: State) -> float:
        return float(spec.heads) if isinstance(spec, MB3D) else 0.0
