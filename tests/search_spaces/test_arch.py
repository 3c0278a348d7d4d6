"""The Arch: shapes that meet, JSON that round-trips, and identity."""

import json
from typing import Any

import pytest
import torch

from search_spaces import Arch, InputError, zoo
from search_spaces.blocks import MB3D, MB4D, AttentionEmbed, Embed, Head, MapAttention, Stem
from search_spaces.states import Logits, Map, Scorer, Tokens

SMALL = Arch(32, 3, (Stem(8), MB4D(2), Embed(16), MB4D(1), MB3D(2, 4, 8, 2), Head(5)))


def test_states_follow_the_blocks() -> None:
    assert SMALL.states[1] == Map(8, 8, 8)
    assert SMALL.states[4] == Map(16, 4, 4)
    assert SMALL.states[5] == Tokens(16, 16, (4, 4), scored_by=Scorer(heads=2, value=8, key=4))
    assert SMALL.states[-1] == Logits(5)
    assert SMALL.classes == 5


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((Stem(8), MB3D(), MB4D(), Head(2)), "block 2 .mb4d.: MB4D takes a map"),
        ((Stem(8), MB3D(), Embed(8), MB4D(), Head(2)), "block 3 .mb4d.: MB4D takes a map"),
        ((Stem(8), MB3D(2, 4, 8, groups=(3,), orders=("strided",)), Head(2)), "64 tokens cannot be cut into 3"),
        ((Stem(8), MB3D(2, 4, 8), Embed(12, "depthwise"), Head(2)), "multiple of them, got 12"),
        ((Stem(8), MB4D()), "must give class scores"),
        ((Stem(8), Head(2), Head(2)), "block 2 .head."),
        ((Stem(8), MB4D(ratio=0.1), Head(2)), "must be from 1 to"),
        ((Stem(8), MapAttention(ratio=0.1), Head(2)), "must be from 1 to"),
        ((Stem(8), MB3D(ratio=1e308), Head(2)), "must be from 1 to"),
        ((Stem(8), MB3D(ratio=10**400), Head(2)), "must be from 1 to"),
        ((Stem(8), MB3D(ratio=float("nan")), Head(2)), "must be from 1 to"),
        ((Stem(8), MB3D(), MapAttention(), Head(2)), "block 2 .map_attention.: attention on a map takes a map"),
        (
            (Stem(8), MB3D(), AttentionEmbed(8), Head(2)),
            "block 2 .attention_embed.: an embed with attention takes a map",
        ),
        ((Stem(8), MB3D(), Head(2, norm="batch")), "a head with BN takes a map, .*; norm must be layer"),
    ],
)
def test_shapes_that_do_not_meet_are_refused(blocks: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arch(32, 3, blocks)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"residual": "dense"}, "residual must be one of layer_scale"),
        ({"loops": 2, "groups": (2,), "orders": ("strided",)}, "2 loops need as many groups and orders"),
        ({"groups": (2,), "orders": ("spiral",)}, "orders among contiguous"),
        ({"groups": (1,), "orders": ("contiguous",)}, "all 1 are written as none"),
        ({"loops": 2, "groups": (2, 1), "orders": ("strided", "strided")}, "one group has no order"),
        ({"groups": (2,), "orders": ("contiguous",), "inverse": False}, "inverse and seed say nothing"),
        ({"groups": (2,), "orders": ("strided",), "seed": 3}, "inverse and seed say nothing"),
        ({"loops": 0}, "loops must be at least 1"),
    ],
)
def test_specs_that_say_nothing_or_say_it_twice_are_refused(fields: dict[str, Any], message: str) -> None:
    """Equal networks have equal specs, or a search would look at them twice."""
    with pytest.raises(ValueError, match=message):
        MB3D(2, 4, 8, **fields)


def test_json_round_trip_keeps_identity() -> None:
    again = Arch.from_json(SMALL.to_json())
    assert again == SMALL
    assert hash(again) == hash(SMALL)
    assert again.id == SMALL.id
    assert again.id != SMALL.with_classes(6).id


def test_defaults_are_not_written_and_may_be_spelled_out() -> None:
    """So that a spec can get another field and its networks keep their ids."""
    value = json.loads(SMALL.to_json())
    assert value["blocks"][-1] == {"kind": "head", "classes": 5}
    value["blocks"][-1]["distilled"] = False
    assert Arch.from_json(json.dumps(value)).id == SMALL.id


def test_a_layer_scale_that_json_writes_as_a_whole_number_builds() -> None:
    arch = Arch(32, 3, (Stem(8), MB4D(2, layer_scale=1.0), Head(5)))
    scale = Arch.from_json(arch.to_json()).build().state_dict()["blocks.1.ls1.gamma"]
    torch.testing.assert_close(scale, torch.ones(8))


def test_id_is_the_same_on_every_machine() -> None:
    """Records and tables name networks by it; a change of the JSON form needs a new schema."""
    assert SMALL.id == "714be84407f8"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2 is not 1"),
        ({"kind": "net"}, "kind"),
        ({"kind": "cascade"}, "stages must be a list"),
        ({"image_size": "big"}, "whole numbers"),
        ({"blocks": [{"kind": "mb5d"}]}, "kind 'mb5d'"),
        ({"blocks": [{"kind": []}]}, r"kind \[\]"),
        ({"blocks": [{"kind": "stem", "width": 8}, {"kind": "mb4d", "ratio": float("inf")}]}, "cannot be inf"),
        ({"blocks": [{"kind": "stem", "width": 8, "depth": 1}]}, "no field 'depth'"),
        ({"blocks": [{"kind": "stem", "width": "8"}]}, "width cannot be '8'"),
        ({"blocks": [{"kind": "stem", "width": True}]}, "width cannot be True"),
        ({"blocks": [{"kind": "stem"}]}, "width"),
        ({"blocks": [{"kind": "stem", "width": 7}]}, "even"),
        ({"blocks": [{"kind": "stem", "width": 8, "act": "tanh"}]}, "act must be one of relu, gelu, relu6, got 'tanh'"),
        (
            {"blocks": [{"kind": "head", "classes": 8, "norm": "group"}]},
            "norm must be one of layer, batch, none, got 'group'",
        ),
        ({"blocks": [{"kind": "head", "classes": 8, "norm": "batch", "mean_first": True}]}, "leave out mean_first"),
        ({"blocks": [{"kind": "head", "classes": 8, "norm": "batch", "pool": "token"}]}, "pool the mean"),
        ({"blocks": []}, "must give class scores"),
        ({"blocks": 3}, "list"),
        ({"blocks": [{"kind": "mb3d", "groups": 2}]}, "groups cannot be 2"),
        ({"blocks": [{"kind": "mb3d", "groups": ["2"]}]}, "groups cannot be"),
        ({"blocks": [{"kind": "mb3d", "orders": [1]}]}, "orders cannot be"),
        ({"blocks": [{"kind": "mb4d", "mixer": 3}]}, "mixer cannot be 3"),
        ({"blocks": [{"kind": "mb4d", "mixer": "max"}]}, "mixer must be one of pool, depthwise"),
    ],
)
def test_bad_json_is_named_in_one_line(change: dict[str, Any], message: str) -> None:
    value = json.loads(SMALL.to_json()) | change
    with pytest.raises(InputError, match=message) as caught:
        Arch.from_json(json.dumps(value))
    assert "\n" not in str(caught.value)


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(InputError, match="invalid JSON"):
        Arch.from_json('{"schema": 1')


def test_build_gives_logits_and_finite_gradients_everywhere() -> None:
    network = SMALL.build()
    logits = network(SMALL.example(batch=2))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_unknown_zoo_name_lists_what_exists() -> None:
    with pytest.raises(InputError, match="efficientformer_l1"):
        zoo.arch("efficientformer_l9")
