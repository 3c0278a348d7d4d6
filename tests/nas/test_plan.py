"""Which networks a measurement times."""

import numpy as np

from nas.cost import macs
from nas.plan import CALIBRATION, make_plan
from search_spaces import SPACES


def test_the_reference_is_the_middle_calibration_network() -> None:
    plan = make_plan(SPACES["hybrid_digits"](), None, seed=0)
    assert sorted(map(macs, plan.nets))[CALIBRATION // 2] == macs(plan.reference)


def test_a_reference_is_not_far_dearer_than_what_is_timed_beside_it() -> None:
    """As the middle network of a space whose probes are a third of its networks would be."""
    plan = make_plan(SPACES["vit"](), None, seed=0)
    dear = 2.5 * float(np.mean([macs(arch) for arch in plan.probes]))
    assert plan.reference in plan.nets and macs(plan.reference) <= dear < sorted(map(macs, plan.nets))[CALIBRATION // 2]
    assert all(macs(arch) <= macs(plan.reference) or macs(arch) > dear for arch in plan.nets)
