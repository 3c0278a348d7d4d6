"""The hybrid space: its size, its partition rule, and which weights its networks share."""

from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from search_spaces import SPACES, Arch, Supernet, zoo
from search_spaces.blocks import MB3D, MB4D, Embed, Stem, TokenPrune
from search_spaces.blocks.residual import FORMS
from search_spaces.grouping import ORDERS
from search_spaces.regrid import grid_of, offsets
from search_spaces.resize import resized
from search_spaces.spaces.hybrid import Hybrid, Part, Stage
from search_spaces.spaces.hybrid_parts import parts_of
from search_spaces.spaces.hybrid_sizes import hybrid
from search_spaces.states import Tokens


@pytest.fixture
def tiny() -> Hybrid:
    stages = (Stage((4, 8), (1, 2)), Stage((8, 12), (1, 2), block=MB3D(2, 4, 8)))
    return Hybrid("tiny", 16, stages, (0, 1, 2), (1, 2), 1e-5, classes=3)


@pytest.fixture
def rich() -> Hybrid:
    """Three stages of which two may be 3D, with everything that a block may be."""
    forms = ("plain", "coefficients", "layer_scale")
    dims = {"mixers": ("pool", "depthwise"), "block": MB3D(2, 4, 8), "residuals": forms, "loops": (1, 2), "nll": (0, 1)}
    stages = (
        Stage((4,), (1,)),
        Stage((6,), (1,), groups=(1, 2), orders=("contiguous", "strided", "permuted"), **dims),
        Stage((8,), (1, 2), **dims),
    )
    return Hybrid("rich", 32, stages, (0, 1, 2, 3), (1,), 1e-5, classes=3)


@pytest.fixture
def late() -> Hybrid:
    """Two resolutions, patches dropped, external loops, moved tokens that stay moved, and a last stage that may be left out."""
    stages = (
        Stage((4,), (1,)),
        Stage(
            (6,),
            (3,),
            block=MB3D(2, 4, 8),
            groups=(1, 2),
            orders=("contiguous", "strided"),
            loops=(1, 2),
            recursions=("internal", "external"),
            inverses=(1, 0),
            locations=(0, 1),
            keeps=(1, 0.5, 0.25),
        ),
        Stage((8,), (1, 0), block=MB3D(2, 4, 8)),
    )
    return Hybrid("late", (32, 48), stages, (0, 2, 3, 4), (1,), 0.5, classes=3)


@pytest.fixture
def valued() -> Hybrid:
    """A choice of the width of v in two stages, of which the last drops patches, and distilled heads."""
    stages = (
        Stage((4,), (1,)),
        Stage((6, 8), (1,), block=MB3D(2, 4, 8), groups=(1, 2), orders=("contiguous", "strided"), values=(8, 4)),
        Stage((8,), (3, 0), block=MB3D(2, 4, 8), locations=(0, 1), keeps=(1, 0.75, 0.5), values=(4, 16, 8)),
    )
    return Hybrid("valued", 64, stages, (0, 1, 2, 3, 4), (1,), 0.5, classes=3, distilled=True)


@pytest.mark.parametrize("name", ["tiny", "rich", "late", "valued"])
def test_size_counts_different_networks(name: str, request: pytest.FixtureRequest) -> None:
    space: Hybrid = request.getfixturevalue(name)
    every = product(*(range(len(choice.values)) for choice in space.choices))
    codes = {tuple(int(value) for value in space.repair(np.array(code))) for code in every}
    assert space.size == len(codes) == len({space.decode(np.array(code)) for code in codes})


def test_the_partition_point_may_lie_in_any_stage_with_3d_blocks(rich: Hybrid) -> None:
    code = rich.encode(rich.largest)
    seen = []
    for count in range(4):
        code[[c.name for c in rich.choices].index("mb3d")] = count
        seen.append([len(part.mb3d) for part in rich.parts(rich.decode(code))])
    assert seen == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 2]]
    states = rich.largest.states
    assert [state.grid for state in states if isinstance(state, Tokens)] == [(4, 4)] + 3 * [(2, 2)]


def features(arch: Arch) -> set[object]:
    """What of the dimensions a network uses."""
    seen: set[object] = {arch.image_size, sum(isinstance(spec, Stem | Embed) for spec in arch.blocks)}
    for spec in arch.blocks:
        if isinstance(spec, MB3D):
            seen |= {spec.residual, spec.recursion, ("inverse", spec.inverse), ("loops", spec.loops), ("nll", spec.nll)}
            seen |= {("groups", groups) for groups in spec.groups} | set(spec.orders) | {("v", spec.value_dim)}
        elif isinstance(spec, MB4D):
            seen |= {spec.mixer}
    seen |= {("locations", len(arch.locations))}
    return seen


ALL = {
    "rich": {"pool", "depthwise", *FORMS, *ORDERS, ("loops", 1), ("loops", 2), ("nll", 0), ("nll", 1), ("groups", 2)},
    "late": {32, 48, 2, 3, "internal", "external", ("inverse", False), *(("locations", count) for count in range(3))},
}
ALL["valued"] = {2, 3, ("groups", 2), "strided", ("locations", 2), *(("v", width) for width in (4, 8, 16))}
ALL["hybrid_digits"] = ALL["rich"] - {"plain"} | {64, 48, 2, "external", ("inverse", False), ("locations", 1)}
ALL["hybrid"] = ALL["hybrid_digits"] - {48, 2} | {96, 3, 4, ("groups", 8), ("locations", 3), ("v", 32), ("v", 128)}


@pytest.mark.parametrize("name", ["rich", "late", "valued"])
def test_rules_of_the_space_are_promises_of_every_space(name: str, request: pytest.FixtureRequest) -> None:
    """The contract's checks on spaces with all dimensions, which those that ship may lack or be too large for."""
    space: Hybrid = request.getfixturevalue(name)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    supernet = Supernet(space)
    images, labels = torch.randn(4, 3, 64, 64), torch.zeros(4, dtype=torch.long)
    seen: set[object] = set()
    for arch in (space.smallest, space.largest, *(space.sample(rng) for _ in range(100))):
        assert space.decode(space.encode(arch)) == arch and space.contains(space.mutate(arch, rng))
        assert set(arch.rows) <= set(space.rows)
        assert Arch.from_json(arch.to_json()) == arch
        own = resized(images, arch.image_size)
        stats = supernet.recalibrate(arch, [(images, labels)])
        with torch.no_grad():
            expected = supernet.extract(arch, stats)(own)
            torch.testing.assert_close(supernet(images, arch, stats), expected, rtol=0, atol=1e-5)
        supernet(images, arch).square().sum().backward()
        seen |= features(arch)
    for key, parameter in supernet.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
    assert ALL[name] <= seen


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["hybrid_digits", "hybrid"])
def test_supernet_equals_200_extracted_networks_of_the_spaces_that_ship(name: str) -> None:
    """Every dimension is among them; `hybrid` at a third of its resolutions, which leaves all that a block may be."""
    space = SPACES[name]() if name == "hybrid_digits" else hybrid(10, (64, 96))
    rng, seen = np.random.default_rng(8), set[object]()
    torch.manual_seed(0)
    supernet = Supernet(space)
    images = torch.randn(2, 3, max(space.sizes), max(space.sizes))
    for _ in range(200):
        arch = space.sample(rng)
        stats = supernet.recalibrate(arch, [(images, torch.zeros(2, dtype=torch.long))])
        with torch.no_grad():
            expected = supernet.extract(arch, stats)(resized(images, arch.image_size))
            found = supernet(images, arch, stats)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        seen |= features(arch)
    assert ALL[name] <= seen


@pytest.mark.parametrize("name", ["rich", "late", "valued"])
def test_probes_of_all_dimensions_tell_the_time_of_every_network(name: str, request: pytest.FixtureRequest) -> None:
    space: Hybrid = request.getfixturevalue(name)
    rng, place = np.random.default_rng(2), {row: column for column, row in enumerate(space.rows)}

    def counts(arch: Arch) -> np.ndarray:
        return np.bincount([place[row] for row in arch.rows], minlength=len(place)).astype(float)

    probes = np.stack([counts(arch) for arch in space.probes()])
    networks = np.stack([counts(space.sample(rng)) for _ in range(200)])
    solution, *_ = np.linalg.lstsq(probes.T, networks.T, rcond=None)
    np.testing.assert_allclose(probes.T @ solution, networks.T, atol=1e-8)


def test_locations_keep_ever_fewer_patches_and_none_lies_in_an_external_loop(late: Hybrid) -> None:
    at = {choice.name: i for i, choice in enumerate(late.choices)}
    code = late.encode(late.largest)
    code[[at["depth2"], at["mb3d"], at["loops1"], at["recursion1"]]] = 1, 2, 0, 0  # two stages, all of the second 3D
    code[[at["keep1.1"], at["keep1.0"]]] = 2, 1  # a quarter, then a half: the second keeps all
    arch = late.decode(code)
    assert [spec.keep for spec in arch.blocks if isinstance(spec, TokenPrune)] == [4 if arch.image_size == 32 else 9]
    code[[at["keep1.1"], at["keep1.0"]]] = 1, 2
    assert len(late.decode(code).locations) == 2
    code[[at["loops1"], at["recursion1"]]] = 1, 1
    assert not late.decode(code).locations
    code[at["depth2"]] = 0
    assert not late.decode(code).locations, "the last stage needs all patches"


def test_groups_are_cut_to_what_divides_the_tokens() -> None:
    stage = Stage((8,), (1,), block=MB3D(1, 4, 4), groups=(1, 4, 7), orders=("contiguous", "permuted"))
    space = Hybrid("odd", 28, (Stage((4,), (1,)), stage), (0, 1), (1,), 1e-5, classes=2)  # 7 x 7 places, then 4 x 4
    code = space.encode(space.largest)
    code[[c.name for c in space.choices].index("groups1.0")] = 2
    block = space.parts(space.decode(code))[-1].block
    assert block is not None and block.groups == (4,)


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformer_l3", "efficientformer_l7"])
def test_efficientformers_are_networks_of_the_space(name: str) -> None:
    space, arch = SPACES["hybrid"](), zoo.arch(name)
    assert space.contains(arch) and space.decode(space.encode(arch)) == arch
    assert set(arch.rows) <= set(space.rows)
    narrow = [replace(part, block=part.block and replace(part.block, value_dim=32)) for part in parts_of(arch)]
    assert space.contains(space.arch(narrow)) and not space.contains(arch.with_classes(10))


def test_positions_of_widths_of_v_come_last_and_only_where_there_is_a_choice(valued: Hybrid) -> None:
    """So that codes of a space from before they were chosen are the beginning of today's."""
    assert [choice.name for choice in valued.choices[-2:]] == ["value1", "value2"]
    assert [choice.name for choice in hybrid().choices if choice.name.startswith("value")] == ["value3"]
    assert hybrid().choices[-1].name == "value3"
    assert not any(choice.name.startswith("value") for choice in SPACES["hybrid_digits"]().choices)


def test_published_networks_are_points_of_the_space_at_224_pixels() -> None:
    stages = hybrid().stages
    for width, unique, groups, stage in zip((64, 128, 256), (2, 5, 3), (8, 4, 1), stages[1:], strict=True):
        assert width in stage.widths and unique in stage.depths and groups in stage.groups
        assert 2 in stage.loops and 1 in stage.nll and stage.block.key_dim == stage.block.value_dim == 32
        assert stage.block.heads == width // 32
    space = hybrid()
    for ratio in (3.6, 4):  # SReT-T and TL behind our stem, with a cheap first stage
        parts = [Part(64, (2,))]
        for s, (width, unique, groups) in enumerate(((64, 2, (8, 2)), (128, 5, (4, 1)), (256, 3, ())), 1):
            orders = tuple("permuted" if loop and count > 1 else "contiguous" for loop, count in enumerate(groups))
            block = replace(
                space.plain(s),
                residual="coefficients",
                loops=2,
                nll=1,
                groups=groups,
                orders=orders,
                recursion="internal",
            )
            parts.append(Part(width, (), (ratio,) * unique, block=block))
        assert space.contains(space.arch(parts))


def test_partition_is_cut_to_the_depth(tiny: Hybrid) -> None:
    code = tiny.encode(tiny.largest)
    code[[c.name for c in tiny.choices].index("depth1")] = 0
    arch = tiny.decode(code)
    assert sum(isinstance(spec, MB3D) for spec in arch.blocks) == 1


def test_digits_space_is_the_one_described() -> None:
    space = SPACES["hybrid_digits"](classes=7)
    largest = space.largest
    assert largest.classes == 7
    grids = {(state.height, state.width) for state in largest.states[1:] if hasattr(state, "height")}
    assert grids == {(16, 16), (8, 8)}
    block = next(spec for spec in largest.blocks if isinstance(spec, MB3D))
    assert (block.heads, block.key_dim, block.value_dim) == (4, 16, 32)


def test_trailing_blocks_share_weights_from_the_end(tiny: Hybrid) -> None:
    one = tiny.arch([Part(8, (1,)), Part(12, (1,), (2,))])
    two = tiny.arch([Part(8, (1,)), Part(12, (), (1, 2))])
    assert tiny.slots(one)[-2] == tiny.slots(two)[-2] == "stage1.mb3d.0"
    assert tiny.slots(two)[-3] == "stage1.mb3d.1"


def test_narrow_networks_take_leading_channels(tiny: Hybrid) -> None:
    supernet = Supernet(tiny)
    wide = supernet.weights(tiny.largest)["blocks.0.conv2.weight"]
    narrow = supernet.weights(tiny.smallest)["blocks.0.conv2.weight"]
    assert narrow.shape == (4, 2, 3, 3)
    assert torch.equal(narrow, wide[:4, :2])
    assert narrow.data_ptr() == wide.data_ptr()


def test_networks_between_the_choices_run_too(tiny: Hybrid) -> None:
    """Baselines scale widths freely."""
    arch = tiny.arch([Part(6, (1.5,)), Part(10, (1,), (1,))])
    assert not tiny.contains(arch)
    assert Supernet(tiny)(arch.example(2), arch).shape == (2, 3)


def test_networks_run_at_sizes_that_were_never_trained(tiny: Hybrid) -> None:
    """Their position biases are interpolated from the nearest grid of the bank; all else is shared as it is."""
    torch.manual_seed(0)
    supernet = Supernet(tiny)
    arch, larger = tiny.largest, tiny.largest.at(48)
    (key,) = (key for key in supernet.bank if "attention_biases" in key and "stage1/mb3d/0" in key)
    torch.nn.init.normal_(supernet.bank[key])
    name = next(name for name in reversed(supernet.weights(arch)) if "attention_biases" in name)
    own, carried = supernet.weights(arch), supernet.weights(larger)
    assert torch.equal(carried[name], offsets(supernet.bank[key], (2, 2), (6, 6)))
    assert {entry for entry in own if own[entry].shape != carried[entry].shape} == {
        entry for entry in own if "attention_biases" in entry
    }
    images = larger.example(2)
    stats = supernet.recalibrate(larger, [(images, torch.zeros(2))])
    with torch.no_grad():
        expected = supernet.extract(larger, stats)(images)
        torch.testing.assert_close(supernet(images, larger, stats), expected, rtol=0, atol=1e-5)
    supernet(images, larger).square().sum().backward()
    assert supernet.bank[key].grad is not None and supernet.bank[key].grad.abs().sum() > 0


def test_a_supernet_gives_the_logits_of_the_network_that_it_absorbed(late: Hybrid) -> None:
    supernet, arch = Supernet(late).eval(), late.largest
    network = arch.build().train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    before = {key: value.detach().clone() for key, value in supernet.bank.items()}
    supernet.absorb(arch, network.state_dict())
    images = arch.example(4)
    with torch.no_grad():
        torch.testing.assert_close(supernet.train()(images, arch), network(images), rtol=1e-5, atol=1e-5)
    assert any(torch.equal(value, before[key]) for key, value in supernet.bank.items()), "it does not have all there is"
    smaller, compared = arch.at(32), 0
    for place, ((spec, state), (_, large)) in enumerate(zip(smaller.steps(), arch.steps(), strict=True)):
        for name in spec.grid_params(state):
            grid = grid_of(spec.grid_params(large)[name])
            wanted = spec.regrid(name, network.state_dict()[f"blocks.{place}.{name}"], state, grid)
            torch.testing.assert_close(supernet.weights(smaller)[f"blocks.{place}.{name}"].detach(), wanted)
            compared += 1
    assert compared > 1


def test_the_nearest_grid_is_taken_and_of_two_the_larger() -> None:
    """A bank with the grids of two sizes, as a space with a choice of resolution has."""

    class Sizes(Hybrid):
        @cached_property
        def bank(self) -> Any:
            archs = [self.largest.at(size) for size in (32, 128)]
            found: dict[str, dict[Any, None]] = {}
            for arch in archs:
                for slot, step in zip(self.slots(arch), arch.steps(), strict=True):
                    found.setdefault(slot, {})[step] = None
            return {slot: tuple(steps) for slot, steps in found.items()}

    stages = (Stage((4,), (1,)), Stage((8,), (1,), block=MB3D(2, 4, 8)))
    space = Sizes("sizes", 32, stages, (1,), (1,), 1e-5, classes=2)
    supernet = Supernet(space)
    keys = {key.partition("@")[2]: key for key in supernet.bank if "@" in key}
    assert keys.keys() == {"4x4", "16x16"}
    for value, key in enumerate(keys.values(), 1):
        torch.nn.init.constant_(supernet.bank[key], value)
    for size, value in ((16, 1), (32, 1), (48, 1), (64, 2), (96, 2), (128, 2), (192, 2)):  # 64: 8x8, as far from both
        (table,) = (own for name, own in supernet.weights(space.largest.at(size)).items() if "biases" in name)
        torch.testing.assert_close(table, torch.full_like(table, value))


def test_a_network_larger_than_the_bank_is_refused(tiny: Hybrid) -> None:
    supernet = Supernet(tiny)
    wide: Arch = tiny.arch([Part(16, (1,)), Part(12, (), (1,))])
    with pytest.raises(ValueError, match="larger than the bank"):
        supernet.weights(wide)
    deep = tiny.arch([Part(8, (1,) * 3), Part(12, (), (1,))])
    with pytest.raises(ValueError, match="needs the weight"):
        supernet.weights(deep)
    with pytest.raises(ValueError, match="at least one batch"):
        supernet.recalibrate(tiny.smallest, [])
