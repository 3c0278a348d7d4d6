"""What every space promises, for every space in SPACES."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas.train.loop import Recipe
from nas.train.supernet import new_supernet, sandwich
from search_spaces import SPACES, Arch, InputError, Space, Supernet
from search_spaces.blocks import MB4D, Head, Stem, TokenPrune
from search_spaces.resize import resized
from search_spaces.spaces.hybrid_sizes import hybrid
from search_spaces.spaces.mobile_former import MobileFormers, Stage
from search_spaces.spaces.mobilevit import MobileViTs
from search_spaces.spaces.vit import Vit
from search_spaces.spaces.vit_sizes import vit

NAMES = sorted(SPACES)
REDUCED: dict[str, Callable[[], Space]] = {  # run in a test
    "hybrid": lambda: hybrid(classes=10, image_size=(64, 96)),
    "vit": lambda: narrow_vit(),
    "mobile_former": lambda: narrow_mobile_former(),
    "mobilevit": lambda: narrow_mobilevit(),
}
PRUNING = [name for name in NAMES if any(choice.name.startswith("keep") for choice in SPACES[name]().choices)]
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def narrow_vit() -> Vit:
    """`vit` with a sixteenth of the widths, at less than half of the resolutions."""
    choices = vit()
    return Vit(
        "vit",
        image_size=(96, 64),
        patch=16,
        widths=tuple(width // 16 for width in choices.widths),
        depths=choices.depths,
        shares=choices.shares,
        key_dims=(4, 2),
        value_dim=4,
        ratios=choices.ratios,
        locations=choices.locations,
        keeps=(24, 12, 8),
        classes=10,
    )


def narrow_mobile_former() -> MobileFormers:
    """The form of `mobile_former` with widths of a few channels, at less than half of the resolutions."""
    return MobileFormers(
        "mobile_former",
        image_size=(64, 48),
        tokens=(1, 2, 3),
        token_width=8,
        stems=(4, 6),
        stages=(Stage((6, 8), (0, 1)), Stage((8, 10), (0, 1)), Stage((10, 12), (1, 2), down=False)),
        ratios=(2, 3),
        features=(8, 12),
        classes=10,
    )


def narrow_mobilevit() -> MobileViTs:
    """`mobilevit` with about a quarter of the widths, at small resolutions, of which one has a map of odd sides."""
    return MobileViTs(
        "mobilevit",
        image_size=(96, 64),
        widths=((4, 8), (6, 12, 16), (12, 16, 24), (16, 20, 32), (20, 24, 40)),
        expands=(2, 4),
        dims=((16, 24, 36), (20, 32, 48), (24, 36, 60)),
        depths=((1, 2), (1, 2, 3, 4), (1, 2, 3)),
        classes=10,
    )


def codes(space: Space) -> st.SearchStrategy[list[int]]:
    return st.tuples(*(st.integers(0, len(choice.values) - 1) for choice in space.choices)).map(list)


@pytest.mark.parametrize("name", NAMES)
def test_every_code_decodes_and_its_canonical_form_is_stable(name: str) -> None:
    space = SPACES[name]()

    @QUICK
    @given(codes(space))
    def check(raw: list[int]) -> None:
        arch = space.decode(np.array(raw))
        code = space.encode(arch)
        assert space.decode(code) == arch
        np.testing.assert_array_equal(space.repair(np.array(raw)), code)
        np.testing.assert_array_equal(space.repair(code), code)
        assert space.contains(arch)
        assert Arch.from_json(arch.to_json()) == arch
        assert set(arch.rows) <= set(space.rows)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_repair_takes_values_out_of_range(name: str) -> None:
    space = SPACES[name]()
    far = np.full(len(space.choices), 10**6)
    assert space.contains(space.decode(space.repair(far)))
    assert space.contains(space.decode(space.repair(-far)))


@pytest.mark.parametrize("name", NAMES)
def test_mutation_changes_and_crossover_inherits(name: str) -> None:
    space, rng = SPACES[name](), np.random.default_rng(0)
    for _ in range(50):
        one, two = space.sample(rng), space.sample(rng)
        mutant, child = space.mutate(one, rng), space.crossover(one, two, rng)
        assert mutant != one
        assert space.contains(mutant)
        assert space.contains(child)
    assert space.crossover(one, one, rng) == one


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_networks(name: str) -> None:
    space = SPACES[name]()
    first = [space.sample(np.random.default_rng(3)) for _ in range(2)]
    assert first[0] == first[1]


@pytest.mark.parametrize("name", NAMES)
def test_extremes_bound_the_space(name: str) -> None:
    space, rng = SPACES[name](), np.random.default_rng(1)

    def params(arch: Arch) -> int:
        return sum(spec.params(state) for spec, state in arch.steps())

    drawn = [params(space.sample(rng)) for _ in range(200)]
    assert params(space.smallest) <= min(drawn)
    assert params(space.largest) >= max(drawn)
    assert space.contains(space.smallest)
    assert space.contains(space.largest)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_in_the_space_is_refused(name: str) -> None:
    space = SPACES[name]()
    stranger = Arch(32, 3, (Stem(8), MB4D(), Head(2)))
    assert not space.contains(stranger)
    with pytest.raises(InputError, match="not in the space"):
        space.encode(stranger)
    with pytest.raises(InputError, match="shape"):
        space.decode(np.zeros(1, dtype=np.int64))
    wrong = np.zeros(len(space.choices), dtype=np.int64)
    wrong[1] = -1
    with pytest.raises(InputError, match="position 1"):
        space.decode(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_probes_tell_the_time_of_every_network(name: str) -> None:
    """Row counts of the probes must span those of the space, or a latency table could not predict it."""
    space, rng = SPACES[name](), np.random.default_rng(2)
    place = {row: column for column, row in enumerate(space.rows)}

    def counts(arch: Arch) -> np.ndarray:
        vector = np.zeros(len(place))
        for row in arch.rows:
            vector[place[row]] += 1
        return vector

    probes = np.stack([counts(arch) for arch in space.probes()])
    networks = np.stack([counts(space.sample(rng)) for _ in range(300)])
    solution, *_ = np.linalg.lstsq(probes.T, networks.T, rcond=None)
    np.testing.assert_allclose(probes.T @ solution, networks.T, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_supernet_equals_extracted_network(name: str) -> None:
    space, rng = REDUCED.get(name, SPACES[name])(), np.random.default_rng(4)
    torch.manual_seed(0)
    supernet = Supernet(space)
    images = torch.randn(4, 3, space.largest.image_size, space.largest.image_size)
    labels = torch.zeros(4, dtype=torch.long)
    for arch in (space.smallest, space.largest, *(space.sample(rng) for _ in range(10))):
        stats = supernet.recalibrate(arch, [(images, labels), (images * 0.5, labels)])
        network = supernet.extract(arch, stats)
        with torch.no_grad():
            own = network(resized(images, arch.image_size))
            torch.testing.assert_close(supernet(images, arch, stats), own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_supernet_keeps_no_state(name: str) -> None:
    space, rng = REDUCED.get(name, SPACES[name])(), np.random.default_rng(5)
    torch.manual_seed(0)
    supernet = Supernet(space)
    images = torch.randn(4, 3, space.largest.image_size, space.largest.image_size)
    labels = torch.zeros(4, dtype=torch.long)
    arch, other = space.sample(rng), space.sample(rng)
    before = {key: tensor.clone() for key, tensor in supernet.state_dict().items()}
    with torch.no_grad():
        first = supernet(images, arch)
        stats = supernet.recalibrate(arch, [(images, labels)])
        with_stats = supernet(images, arch, stats)
        supernet(images, other)
        supernet.recalibrate(other, [(images, labels)])
        torch.testing.assert_close(supernet(images, arch), first, rtol=0, atol=0)
        torch.testing.assert_close(supernet(images, arch, stats), with_stats, rtol=0, atol=0)
    assert before.keys() == supernet.state_dict().keys()
    for key, tensor in supernet.state_dict().items():
        assert torch.equal(tensor, before[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hybrid_digits", "vit_digits"])
def test_the_sandwich_reaches_every_shared_parameter_of_the_digits_spaces(name: str) -> None:
    space = SPACES[name]()
    supernet, recipe = new_supernet(space, 0).train(), Recipe(epochs=1, batch_size=4)
    losses, left = sandwich(space, recipe, 100), {name for name, _ in supernet.named_parameters()}
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    for step in range(100):
        for loss in losses(supernet, images, labels, step):
            loss.backward()
        left -= {name for name, weight in supernet.named_parameters() if weight.grad is not None and weight.grad.any()}
        if not left:
            break
    assert not left


def of_all_forms(space: Space) -> list[Arch]:
    """The largest network at its first and last partition point, if it has one, with all mixers and residual forms, at every resolution and end."""
    at = {choice.name: i for i, choice in enumerate(space.choices)}
    forms = [i for name, i in at.items() if name.startswith(("mixer", "residual"))]
    depth = max(i for name, i in at.items() if name.startswith("depth"))
    values = {
        at["resolution"]: range(len(space.choices[at["resolution"]].values)),
        depth: {space.choices[depth].top, space.choices[depth].least},
        **({at["mb3d"]: (0, len(space.choices[at["mb3d"]].values) - 1)} if "mb3d" in at else {}),
    }
    archs = {}
    for chosen in product(*values.values()):
        for form in range(max((len(space.choices[i].values) for i in forms), default=1)):
            code = space.encode(space.largest)
            code[list(values)], code[forms] = chosen, form
            archs[space.decode(space.repair(code))] = None
    return list(archs)


@pytest.mark.parametrize("name", PRUNING)
def test_a_network_with_thresholds_is_the_one_that_keeps_the_means(name: str) -> None:
    space, rng = SPACES[name](), np.random.default_rng(8)
    arch = next(arch for arch in (space.sample(rng) for _ in range(1000)) if arch.locations)
    adaptive = arch.keeping(adaptive=True)
    assert adaptive != arch and space.contains(adaptive)
    assert space.decode(space.encode(adaptive)) == arch
    assert set(adaptive.rows) <= set(space.rows)
    assert space.mutate(adaptive, rng) != arch
    keep = arch.blocks[arch.locations[0]]
    assert isinstance(keep, TokenPrune)
    assert not space.contains(adaptive.keeping([keep.keep - 1, *[1] * (len(arch.locations) - 1)]))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_shared_parameter(name: str) -> None:
    space, rng = REDUCED.get(name, SPACES[name])(), np.random.default_rng(6)
    torch.manual_seed(0)
    supernet = Supernet(space)
    images = torch.randn(2, 3, space.largest.image_size, space.largest.image_size)
    for arch in (*of_all_forms(space), *(space.sample(rng) for _ in range(6))):
        supernet(images, arch).square().sum().backward()
    for key, parameter in supernet.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().sum() > 0, key
