"""JSON values as the types that dataclasses declare: no field missing or unknown, each of its type, all numbers finite."""

import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from reprlib import repr as short  # what a file holds, in a message: one line, and not endless
from typing import Any, get_args, get_origin, get_type_hints

from search_spaces.errors import InputError

__all__ = ["short", "typed"]

NAMES = {
    dict: "an object",
    list: "a list",
    float: "a number",
    int: "a whole number",
    str: "text",
    bool: "true or false",
}
SHOWN = (bool, int, float, str)  # values that a message can hold; of others it tells the type


def typed(kind: Any, value: Any, where: str = "") -> Any:
    """`value` as a `kind`: a dataclass, `tuple[T, ...]`, `Mapping[str, T]`, a plain type or several (`str | int`), or `Any`.

    A whole number may stand where any number may, a bool nowhere else. Fields with a default may be missing. What a dataclass
    refuses in `__post_init__` is refused here.

    Args:
        kind: the annotation.
        value: what `json` read.
        where: what messages call it, such as `verdict.good`.

    Raises:
        InputError: it is something else; in one line, without the file's name.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _record(kind, _plain(dict, value, where), where)
    if origin is tuple:
        return tuple(typed(parts[0], item, f"{where}[{i}]") for i, item in enumerate(_plain(list, value, where)))
    if origin is Mapping:
        items = _plain(dict, value, where).items()
        return {name: typed(parts[1], item, f"{where}[{short(name)}]") for name, item in items}
    return value if kind is Any else _plain(kind, value, where)


def _plain(kind: Any, value: Any, where: str) -> Any:
    """A value of a plain type, or of one of several."""
    wanted = get_args(kind) or (kind,)
    if type(value) not in wanted and not (type(value) is int and float in wanted):
        found = short(value) if isinstance(value, SHOWN) else NAMES.get(type(value), "null")
        raise InputError(f"{where or 'it'} is {found}, not {' or '.join(NAMES[one] for one in wanted)}")
    if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
        raise InputError(f"{where} is {short(value)}, which is no finite number")
    return value


def _record(kind: Any, value: dict[str, Any], where: str) -> Any:
    known = {field.name: field for field in fields(kind)}
    unknown = [name for name in value if name not in known]
    if unknown:
        raise InputError(f"{where or 'it'} holds {short(unknown[0])}, which this version does not know")
    for name, field in known.items():
        if name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{where or 'it'} lacks {name}")
    types, begin = get_type_hints(kind), f"{where}." if where else ""
    given = {name: typed(types[name], item, begin + name) for name, item in value.items()}
    try:
        return kind(**given)
    except ValueError as error:
        raise InputError(f"{begin}{error}") from error
