"""Damage done to a latency table's two files at random: each time one line refuses it, or it is the very table.

    python benchmarks/latency_fuzz.py --mutations 2000 --out results/latency_fuzz.json

Bits flipped, bytes put in or left out, files cut short, emptied, removed, exchanged with another table's, made folders or unreadable,
lines swapped or repeated, digits changed, JSON values replaced and removed, byte order marks and other line ends. A failure is
another exception than InputError, a message of several lines or over 300 characters, or a table that loads and differs in any
figure or prediction. Mutation I draws from the seeds (SEED, I); `--only I` makes it alone. Exits with 1 if there are failures.
"""

import argparse
import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from latency_tables import SHIPPED
from nas.files import write_json
from nas.latency import LatencyTable
from nas.table_file import read, write
from search_spaces.arch import Arch
from search_spaces.errors import InputError

LONGEST = 300  # characters of a message
PREDICTED = 5  # networks whose predictions are compared
SUFFIXES = (".csv", ".json")
OTHER_VALUES: tuple[Any, ...] = (None, True, False, "", "1", -1, 0, 3, 1.5, math.nan, math.inf, 10**400, [], [1], {})

Rng = np.random.Generator
Paths = tuple[Path, Path, Path]  # the file to damage, its pair, and the same file of another table


def some(rng: Rng, size: int) -> int:
    """A place in a file of `size` bytes."""
    return int(rng.integers(size))


def flip(rng: Rng, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        changed[some(rng, len(data))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def insert(rng: Rng, data: bytes) -> bytes:
    at = some(rng, len(data))
    return data[:at] + rng.bytes(int(rng.integers(1, 9))) + data[at:]


def insert_text(rng: Rng, data: bytes) -> bytes:
    at = some(rng, len(data))
    return data[:at] + bytes(rng.choice(list(b' \n\r\t\0",;:.0123456789-+eE[]{}@=nulatrfsNI'), 3).tolist()) + data[at:]


def delete(rng: Rng, data: bytes) -> bytes:
    at = some(rng, len(data))
    return data[:at] + data[at + int(rng.integers(1, 9)) :]


def cut(rng: Rng, data: bytes) -> bytes:
    return data[: some(rng, len(data))]


def empty(rng: Rng, data: bytes) -> bytes:
    return b""


def swap_lines(rng: Rng, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    first, second = rng.choice(len(lines), 2, replace=False)
    lines[first], lines[second] = lines[second], lines[first]
    return b"".join(lines)


def repeat_line(rng: Rng, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join([*lines[: (at := some(rng, len(lines)))], lines[at], *lines[at:]])


def change_digit(rng: Rng, data: bytes) -> bytes:
    changed = bytearray(data)
    at = rng.choice([i for i, byte in enumerate(data) if byte in b"0123456789"])
    changed[at] = ord("0") + (changed[at] - ord("0") + int(rng.integers(1, 10))) % 10
    return bytes(changed)


def mark(rng: Rng, data: bytes) -> bytes:
    return b"\xef\xbb\xbf" + data


def line_ends(rng: Rng, data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n" if rng.random() < 0.5 else b"\r")


def lay_out(rng: Rng, data: bytes) -> bytes:
    """Other white space and order of fields, where it is JSON: the same table."""
    try:
        value = json.loads(data)
    except ValueError:
        return data + b"\n"
    return json.dumps(value, indent=int(rng.integers(5)), sort_keys=bool(rng.integers(2))).encode()


BYTES: tuple[Callable[[Rng, bytes], bytes], ...] = (
    *(flip, insert, insert_text, delete, cut, empty, swap_lines, repeat_line, change_digit, mark, line_ends, lay_out),
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each object or list in a JSON value with each of its keys."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def replace_value(rng: Rng, about: dict[str, Any]) -> None:
    holder, key = places(about)[some(rng, len(places(about)))]
    scaled = [holder[key] * 1.01] if isinstance(holder[key], float) else []
    values = [*OTHER_VALUES, *scaled]
    holder[key] = values[some(rng, len(values))]


def remove_key(rng: Rng, about: dict[str, Any]) -> None:
    holder, key = places(about)[some(rng, len(places(about)))]
    del holder[key]


def rename_key(rng: Rng, about: dict[str, Any]) -> None:
    holders = [(holder, key) for holder, key in places(about) if isinstance(holder, dict)]
    holder, key = holders[some(rng, len(holders))]
    holder["re\n" * int(rng.integers(1, 200)) + key] = holder.pop(key)


def add_key(rng: Rng, about: dict[str, Any]) -> None:
    holders = [holder for holder, _ in places(about) if isinstance(holder, dict)]
    holders[some(rng, len(holders))]["memory_mb"] = OTHER_VALUES[some(rng, len(OTHER_VALUES))]


VALUES: tuple[Callable[[Rng, dict[str, Any]], None], ...] = (replace_value, remove_key, rename_key, add_key)


def exchange(rng: Rng, paths: Paths) -> None:
    shutil.copyfile(paths[2], paths[0])


def swap_names(rng: Rng, paths: Paths) -> None:
    shutil.copyfile(paths[1], paths[0])


def remove(rng: Rng, paths: Paths) -> None:
    paths[0].unlink()


def make_folder(rng: Rng, paths: Paths) -> None:
    paths[0].unlink()
    paths[0].mkdir()


def make_loop(rng: Rng, paths: Paths) -> None:
    paths[0].unlink()
    paths[0].symlink_to(paths[0])


def forbid(rng: Rng, paths: Paths) -> None:
    paths[0].chmod(0)


def leave_next(rng: Rng, paths: Paths) -> None:
    """What a killed process left that wrote another table."""
    shutil.copyfile(paths[2].with_suffix(".csv"), paths[0].with_suffix(".csv.next"))


FILES: tuple[Callable[[Rng, Paths], None], ...] = (
    *(exchange, swap_names, remove, make_folder, make_loop, forbid, leave_next),
)
EVERY = (*BYTES, *VALUES, *FILES)


def mutate(rng: Rng, stem: Path, other: Path) -> str:
    """Damage one of the files of `stem`, at times with those of the table `other`; what was done, in words."""
    change: Any = EVERY[some(rng, len(EVERY))]
    suffix = ".json" if change in VALUES else SUFFIXES[some(rng, 2)]
    (pair,) = {*SUFFIXES} - {suffix}
    paths = (Path(f"{stem}{suffix}"), Path(f"{stem}{pair}"), Path(f"{other}{suffix}"))
    if change in FILES:
        change(rng, paths)
    elif change in BYTES:
        paths[0].write_bytes(change(rng, paths[0].read_bytes()))
    else:
        about = json.loads(paths[0].read_text())
        change(rng, about)
        paths[0].write_text(json.dumps(about, indent=2))
    return f"{change.__name__} {suffix}"


def judge(stem: Path, whole: LatencyTable, archs: list[Arch]) -> tuple[str, str]:
    """What loading the damaged files comes to, "refused", "same" or "failure", and the message or what is wrong."""
    try:
        found = LatencyTable.load(stem)
    except InputError as error:
        message = str(error)
        good = 0 < len(message) <= LONGEST and message.isprintable()
        return ("refused", message) if good else ("failure", f"a message of {len(message)} characters: {message!r}")
    except Exception as error:
        return "failure", f"{type(error).__name__}: {error}"
    if found.content != whole.content:
        return "failure", "it loads, and its figures differ"
    same = all(found.predict(arch) == whole.predict(arch) for arch in archs)
    return ("same", "") if same else ("failure", "it loads, and its predictions differ")


def fuzz(source: Path, numbers: range, seed: int, folder: Path) -> dict[str, Any]:
    """Damage copies of the table `source` in `folder`, once for each number; counts, failures, the longest message.

    Raises:
        InputError: `source` is no table.
    """
    whole = LatencyTable.load(source)
    space, rng = whole.open_space(), np.random.default_rng(seed)
    archs = [space.sample(rng) for _ in range(PREDICTED)]
    other = folder / "other" / "table"
    write(other, replace(read(source), rows={key: replace(row, ms=2 * row.ms) for key, row in whole.rows.items()}))
    outcomes, failures, longest = dict[str, Counter[str]](), list[dict[str, Any]](), ""
    for number in numbers:
        stem = folder / str(number) / "table"
        stem.parent.mkdir()
        for suffix in SUFFIXES:
            shutil.copyfile(f"{whole.path}{suffix}", f"{stem}{suffix}")
        what = mutate(np.random.default_rng([seed, number]), stem, other)
        outcome, message = judge(stem, whole, archs)
        outcomes.setdefault(what, Counter())[outcome] += 1
        longest = max(longest, message, key=len) if outcome == "refused" else longest
        if outcome == "failure":
            failures.append({"seed": seed, "number": number, "what": what, "message": message[:LONGEST]})
        shutil.rmtree(stem.parent)
    counts = sum(outcomes.values(), Counter[str]())
    return {
        "mutations": len(numbers),
        **{name: counts[name] for name in ("refused", "same", "failure")},
        "failures": failures,
        "longest_message": len(longest),
        "by_mutation": {what: dict(found) for what, found in sorted(outcomes.items())},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=next(SHIPPED.glob("*.json")))
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    numbers = range(given.mutations) if given.only is None else range(given.only, given.only + 1)
    with TemporaryDirectory() as folder:
        found = fuzz(given.table, numbers, given.seed, Path(folder))
    for failure in found["failures"]:
        print(f"seed {failure['seed']} --only {failure['number']}: {failure['what']}: {failure['message']}")
    print({name: found[name] for name in ("mutations", "refused", "same", "failure", "longest_message")})
    if given.out is not None:
        command = f"python benchmarks/latency_fuzz.py --mutations {given.mutations} --seed {given.seed}"
        write_json(given.out, {"command": command, "table": given.table.stem, **found})
    sys.exit(bool(found["failures"]))


if __name__ == "__main__":
    main()
