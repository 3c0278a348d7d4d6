"""Which networks a measurement times."""

import numpy as np

from nas.cost import macs
from nas.plan import CALIBRATION, make_plan
from search_spaces import SPACES


def test_the_reference_is_the_middle_calibration_network_of_those_of_every_cost() -> None:
    plan = make_plan(SPACES["hybrid_digits"](), None, seed=0)
    assert sorted(map(macs, plan.apart[:CALIBRATION]))[CALIBRATION // 2] == macs(plan.reference)


def test_networks_to_calibrate_on_are_not_what_the_rows_are_solved_from() -> None:
    plan = make_plan(SPACES["hybrid_digits"](), None, seed=0)
    assert len(plan.apart) == 2 * CALIBRATION and not set(plan.apart) & set(plan.archs)
    assert {row for arch in plan.apart for row in arch.rows} <= {row for arch in plan.archs for row in arch.rows}


def test_a_reference_is_not_far_dearer_than_what_is_timed_beside_it() -> None:
    """As the middle network of a space whose probes are a third of its networks would be."""
    plan = make_plan(SPACES["vit"](), None, seed=0)
    dear = 2.5 * float(np.mean([macs(arch) for arch in plan.probes]))
    spread = plan.apart[:CALIBRATION]
    assert plan.reference in spread and macs(plan.reference) <= dear < sorted(map(macs, spread))[CALIBRATION // 2]
    assert all(macs(arch) <= macs(plan.reference) or macs(arch) > dear for arch in spread)
