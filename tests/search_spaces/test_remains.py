"""What may be left of a ViT: every network that is drawn has its rows among the probes'."""

from typing import Any

import numpy as np
import pytest
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from compress import from_module
from search_spaces import zoo
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, ClassToken, Head, Patch, Position
from search_spaces.spaces.remains import Remains, neurons, widths
from tests.compress.test_from_module import FORMS, SMALL
from tests.nas.toy import toy_space


def dense(pool: str = "token", **form: Any) -> Arch:
    block = MB3D(3, 16, 16, 48 / 24, residual="plain", bias=False, **form)
    return Arch(32, 3, (Patch(24, 8), ClassToken(), Position(), block, block, block, Head(5, pool=pool)))


def test_sizes_are_multiples_that_kernels_like() -> None:
    assert widths(64) == [64, 48, 32, 16] and widths(48) == [48, 32, 16] and widths(16) == [16, 8] and widths(8) == [8]
    assert neurons(1536) == [*range(1536, 0, -96)] and neurons(36) == [36, 32, 24, 16, 8] and neurons(6) == [6]


@pytest.mark.parametrize("form", [{}, {"qk_norm": True}, {"mlp": "swiglu"}, {"pool": "mean"}])
def test_rows_of_what_is_drawn_are_measured(form: dict[str, Any]) -> None:
    space, rng = Remains(dense(**form)), np.random.default_rng(0)
    rows = set(space.rows)
    assert set(dense(**form).rows) <= rows and {frame.rest for frame in space.frames} == {"dropped", "fused", "merged"}
    drawn = [draw(rng) for draw in (space.sample, space.spread) for _ in range(60)]
    between = {(row.op, row.dims) for row in rows if ("kept", 1) in row.dims}  # behind a pruning location
    assert all(row in rows or (row.op, row.dims) in between for arch in drawn for row in arch.rows)
    assert any(arch.locations for arch in drawn) and len({arch.image_size for arch in drawn}) > 1
    counts = {sum(isinstance(spec, MB3D) for spec in arch.blocks) for arch in drawn}
    assert counts >= {2, 3} and min(counts) >= 1
    sizes = {(s.heads, s.key_dim, s.value_dim) for arch in drawn for s in arch.blocks if isinstance(s, MB3D)}
    assert len(sizes) >= (6 if form.get("qk_norm") else 10)
    if form.get("qk_norm"):
        assert {key for _, key, _ in sizes} == {16}


@pytest.mark.parametrize("form", [*FORMS, "distilled"])
def test_every_form_of_timms_vit_is_priced_whatever_is_left_of_it(form: str) -> None:
    kind: Any = VisionTransformerDistilled if form == "distilled" else VisionTransformer
    arch, _ = from_module(kind(**SMALL | FORMS.get(form, {})))
    space, rng = Remains(arch), np.random.default_rng(0)
    rows = set(space.rows)
    between = {(row.op, row.dims) for row in rows if ("kept", 1) in row.dims}
    drawn = [arch, *(draw(rng) for draw in (space.sample, space.spread) for _ in range(20))]
    assert all(row in rows or (row.op, row.dims) in between for one in drawn for row in one.rows)
    assert len({one.id for one in drawn}) > 20


def test_deit_takes_a_hundred_probes_in_its_own_frame_and_not_one_for_each_block() -> None:
    space = Remains(zoo.arch("deit_small_patch16_224"), {"heads", "queries", "values", "neurons", "blocks"})
    assert (
        len(space.probes()) < 120
        and len(Remains(space.arch).probes()) < 1500
        and space.name == f"remains-{space.arch.id}"
        and space.classes == 1000
    )
    assert space.spread(np.random.default_rng(0)).image_size == 224


def test_what_is_no_plain_vit_is_refused() -> None:
    for arch in (toy_space().smallest, *map(zoo.arch, ("asvit_deit_tiny", "efficientformer_l1", "sret_t"))):
        with pytest.raises(ValueError, match="it takes a plain ViT"):
            Remains(arch)
