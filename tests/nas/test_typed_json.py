"""JSON values as the types that dataclasses declare."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from nas.typed_json import typed
from search_spaces.errors import InputError


@dataclass(frozen=True)
class Inner:
    good: bool


@dataclass(frozen=True)
class Outer:
    share: float
    sizes: tuple[int, ...]
    named: Mapping[str, str | int]
    free: Any
    inner: Inner | None = None
    least: float | None = None

    def __post_init__(self) -> None:
        if self.share > 1:
            raise ValueError("share is above 1")


WHOLE = {"share": 1, "sizes": [1, 2], "named": {"a": "x", "b": 3}, "free": [{}]}


def test_values_become_what_is_declared() -> None:
    assert typed(Outer, WHOLE) == Outer(1, (1, 2), {"a": "x", "b": 3}, [{}])
    more = WHOLE | {"inner": {"good": True}, "least": 0.5}
    assert typed(Outer, more) == Outer(1, (1, 2), {"a": "x", "b": 3}, [{}], Inner(True), 0.5)
    assert typed(Outer, WHOLE | {"inner": None, "least": None}) == typed(Outer, WHOLE)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"share": True}, "share is True, not a number"),
        ({"share": float("nan")}, "share is nan, which is no finite number"),
        ({"share": 2.0}, "share is above 1"),
        ({"sizes": [1, 2.0]}, "sizes[1] is 2.0, not a whole number"),
        ({"sizes": {"1": 1}}, "sizes is an object, not a list"),
        ({"named": {"a": None}}, "named['a'] is null, not text or a whole number"),
        ({"inner": {"good": None}}, "inner.good is null, not true or false"),
        ({"inner": {}}, "inner lacks good"),
        ({"inner": 3}, "inner is 3, not an object"),
        ({"inner": {"good": True, "x" * 500: 1}}, "inner holds 'xxxxxxxxxxxx...xxxxxxxxxxxxx', which this version"),
        ({"least": "0.5"}, "least is '0.5', not a number"),
    ],
)
def test_others_are_refused_by_name(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        typed(Outer, WHOLE | changes)
    assert says in str(caught.value) and str(caught.value).isprintable()


def test_what_is_no_object_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="it is a list, not an object"):
        typed(Outer, [WHOLE])
    with pytest.raises(InputError, match="it lacks share"):
        typed(Outer, {})
