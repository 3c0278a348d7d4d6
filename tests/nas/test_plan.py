"""Which networks a measurement times."""

import numpy as np

from nas.cost import macs
from nas.plan import CALIBRATION_STREAM, MIDDLE, SPREAD, UNIFORM, draw, make_plan
from search_spaces import SPACES


def test_the_reference_is_the_middle_one_of_networks_of_every_cost() -> None:
    plan = make_plan(SPACES["hybrid_digits"](), None, seed=0)
    spread = draw(SPACES["hybrid_digits"](), MIDDLE, 0, CALIBRATION_STREAM)
    assert sorted(map(macs, spread))[MIDDLE // 2] == macs(plan.reference) and plan.apart[:SPREAD] == spread[:SPREAD]


def test_networks_to_calibrate_on_are_not_what_the_rows_are_solved_from() -> None:
    plan = make_plan(SPACES["hybrid_digits"](), None, seed=0)
    assert len(plan.apart) == SPREAD + UNIFORM and not set(plan.apart) & set(plan.archs)
    assert {row for arch in plan.apart for row in arch.rows} <= {row for arch in plan.archs for row in arch.rows}


def test_a_reference_is_not_far_dearer_than_what_is_timed_beside_it() -> None:
    """As the middle network of a space whose probes are a third of its networks would be."""
    plan = make_plan(SPACES["vit"](), None, seed=0)
    dear = 2.5 * float(np.mean([macs(arch) for arch in plan.probes]))
    spread = draw(SPACES["vit"](), MIDDLE, 0, CALIBRATION_STREAM)
    assert plan.reference in spread and macs(plan.reference) <= dear < sorted(map(macs, spread))[MIDDLE // 2]
    assert all(macs(arch) <= macs(plan.reference) or macs(arch) > dear for arch in spread)
