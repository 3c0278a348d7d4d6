import errno
import os
from pathlib import Path

import pytest

from nas.samples import Samples, finish_section
from nas.visits import Visit
from search_spaces.errors import InputError

HEADER = {"space": "s", "seed": 0, "networks": ["a", "b"]}


def visit(order: int) -> Visit:
    return Visit(0, order // 2, order, "ab"[order % 2], 1700000000.125, (0.1234, 1.5))


def write(path: Path, count: int, finish: bool = False) -> None:
    with Samples(path, HEADER, resume=False) as samples:
        for order in range(count):
            samples.append(visit(order))
        if finish:
            samples.finish()


def test_visits_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "x.samples.jsonl"
    write(path, 5)
    with Samples(path, HEADER, resume=True) as samples:
        assert samples.done == [visit(order) for order in range(5)]
        samples.append(visit(5))
    with Samples(path, HEADER, resume=True) as samples:
        assert samples.done == [visit(order) for order in range(6)]


def test_a_visit_is_on_disk_before_the_next_one_is_made(tmp_path: Path) -> None:
    path = tmp_path / "x.samples.jsonl"
    with Samples(path, HEADER, resume=False) as samples:
        samples.append(visit(0))
        assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("torn", [b"{", b'{"s":0,"r":2,"o":5,"n":"a","t":1.0,"ms":[0.1,0.2'])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "x.samples.jsonl"
    write(path, 5)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with Samples(path, HEADER, resume=True) as samples:
        assert len(samples.done) == 5
        samples.append(visit(5))
    assert path.read_bytes().startswith(whole) and path.read_bytes().count(b"\n") == 7


def test_a_file_torn_in_its_header_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "x.samples.jsonl"
    path.write_bytes(b'{"header":{"spa')
    write(path, 2)
    with Samples(path, HEADER, resume=True) as samples:
        assert len(samples.done) == 2


def test_damage_inside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.samples.jsonl"
    write(path, 3)
    lines = path.read_bytes().split(b"\n")
    for wrong in (b"garbage", b"[1]", b'{"s":0}'):
        path.write_bytes(b"\n".join([*lines[:2], wrong, *lines[3:]]))
        with pytest.raises(InputError, match="damaged at line 3"):
            Samples(path, HEADER, resume=True)


def test_an_unfinished_file_is_neither_overwritten_nor_taken_up_unasked(tmp_path: Path) -> None:
    path = tmp_path / "x.samples.jsonl"
    write(path, 3)
    before = path.read_bytes()
    with pytest.raises(InputError, match="--resume"):
        Samples(path, HEADER, resume=False)
    assert path.read_bytes() == before


def test_another_measurement_is_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "x.samples.jsonl"
    write(path, 3)
    with pytest.raises(InputError, match=r"networks, seed differ"):
        Samples(path, HEADER | {"seed": 1, "networks": ["a"]}, resume=True)


def test_a_finished_file_is_kept_and_the_next_measurement_follows_it(tmp_path: Path) -> None:
    path = tmp_path / "x.samples.jsonl"
    write(path, 3, finish=True)
    before = path.read_bytes()
    for resume in (False, True):
        with Samples(path, HEADER | {"seed": 2}, resume=resume) as samples:
            assert samples.done == []
            samples.append(visit(0))
            samples.finish()
    assert path.read_bytes().startswith(before)


def test_a_fresh_measurement_drops_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.samples.jsonl"
    write(path, 3)
    with Samples(path, HEADER, resume=False, fresh=True) as samples:
        assert samples.done == []
    assert path.read_bytes().count(b"\n") == 1


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write .*--out"):
        Samples(tmp_path / "file" / "x.samples.jsonl", HEADER, resume=False)


def test_a_full_disk_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.samples.jsonl"

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Samples(path, HEADER, resume=False) as samples:
        samples.append(visit(0))
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"No space left on device; .*--resume"):
            samples.finish()
    monkeypatch.undo()
    path.write_bytes(path.read_bytes().replace(b'{"end":true}\n', b""))
    with Samples(path, HEADER, resume=True) as samples:
        assert samples.done == [visit(0)]


def test_a_section_whose_table_was_written_is_closed(tmp_path: Path) -> None:
    """A kill may fall between the table and the end line."""
    path = tmp_path / "x.samples.jsonl"
    write(path, 5)
    called = list[str]()
    finish_section(path, {"space": "another"}, lambda: called.append("another"))
    with pytest.raises(InputError, match="unfinished"):
        Samples(path, HEADER, resume=False)
    finish_section(path, {"space": "s"}, lambda: called.append(path.read_text()))
    assert len(called) == 1 and '"end"' not in called[0]
    with Samples(path, {**HEADER, "seed": 1}, resume=False) as samples:
        assert samples.done == []


def test_one_process_measures_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.samples.jsonl"
    with Samples(path, HEADER, resume=False) as samples:
        samples.append(visit(0))
        with pytest.raises(InputError, match="another process is at work"):
            Samples(path, HEADER, resume=True)
    with Samples(path, HEADER, resume=True) as samples:
        assert samples.done == [visit(0)]
