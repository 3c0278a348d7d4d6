"""`nas measure`, killed with SIGKILL at random moments and resumed each time, until there is a table.

    python benchmarks/latency_kill.py --kills 20 --seed 0 --out results/latency_kill.json

The space is tiny, the command the real one. A kill comes after a random time, when a random number of further visits is recorded,
or while the table's files are written. A measurement that is done before its kill is checked, and the next one begun. After each kill,
and at the end: no recorded visit is lost or doubled, a table is whole or absent, and its rows are those of a measurement left alone;
at the end no temporary file of a killed process is left. Exits with 1 if anything of that does not hold.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from nas.files import write_json
from nas.latency import LatencyTable
from nas.visits import REFERENCE
from search_spaces.blocks import MB3D
from search_spaces.errors import InputError
from search_spaces.spaces.hybrid import Hybrid, Stage

MOMENTS = ("time", "visits", "writing")
CHANCES = (0.4, 0.4, 0.2)
POLL = 0.0005  # seconds
PATIENCE = 300  # seconds for a measurement; it takes ten
COMMAND = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from latency_kill import tiny
from search_spaces.spaces import SPACES
SPACES["tiny"] = tiny
from nas.cli import main
main()
"""

Visits = list[tuple[bool, int, str]]  # whether made to calibrate, round, network


def tiny(classes: int = 10) -> Hybrid:
    """Some networks of 16 pixels, enough that several processes prepare them."""
    stages = (Stage((8, 16), (1, 2)), Stage((8, 16), (1, 2), block=MB3D(2, 4, 8)))
    return Hybrid("tiny", 16, stages, (0, 1, 2), (1, 2), 1e-5, classes)


class Measuring:
    """`nas measure` of the tiny space into a folder."""

    def __init__(self, out: Path, scratch: Path, rounds: int) -> None:
        self.out, self.scratch, self.rounds = out, scratch, rounds
        self.visits: Visits = []  # that were recorded when the last process ended
        for folder in (out, scratch):
            folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> subprocess.Popen[bytes]:
        words = ["measure", "--space", "tiny", "--rounds", self.rounds, "--out", self.out, "--resume", "--json"]
        environment = {**os.environ, "TMPDIR": str(self.scratch), "NAS_CACHE": str(self.scratch.parent / "cache")}
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(Path(__file__).parent), *map(str, words)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=(self.out.parent / f"{self.out.name}.err").open("ab"),
        )

    def names(self) -> set[str]:
        """Files of the table that are there or being written."""
        return {path.name for path in self.out.iterdir() if not path.name.endswith(".samples.jsonl")}

    def samples(self) -> bytes:
        return b"".join(path.read_bytes() for path in self.out.glob("*.samples.jsonl"))

    def check(self) -> list[str]:
        """What is wrong with the files once a process has ended."""
        faults, before = [], self.visits
        values = [json.loads(line) for line in self.samples().split(b"\n")[:-1]]
        found = [(value.get("apart", False), value["r"], value["n"]) for value in values if "n" in value]
        self.visits = [visit for visit in found if visit[2] != REFERENCE]
        if self.visits[: len(before)] != before:
            faults.append("recorded visits were lost")
        if len({*self.visits}) < len(self.visits):
            faults.append("a visit was made twice")
        for about in self.out.glob("tiny*.json"):
            try:
                LatencyTable.load(about)
            except InputError as error:
                faults.append(f"a table is there and does not load: {error}")
        return faults

    def check_done(self, keys: set[str] | None) -> list[str]:
        """What is wrong once the table is there, whose rows must be `keys`."""
        faults, made = self.check(), {*self.visits}
        header = json.loads(self.samples().partition(b"\n")[0])["header"]
        sessions = ((True, header["apart"]), (False, header["networks"]))
        wanted = {(apart, number, name) for apart, names in sessions for number in range(self.rounds) for name in names}
        lost = len(wanted - made)
        if lost:
            faults.append(f"{lost} visits are missing")
        rows = self.rows()
        if keys is not None and rows != keys:
            faults.append(f"{len(rows ^ keys)} rows differ from those of a measurement left alone")
        if len(files := {path.name for path in self.out.iterdir()}) != 3:
            faults.append(f"other files than the table's and its samples are left: {sorted(files)}")
        if left := [
            path.name for path in self.scratch.rglob("*") if path.is_dir() and not path.name.startswith("nas-")
        ]:
            faults.append(f"temporary folders are left: {left}")
        return faults

    def rows(self) -> set[str]:
        """The keys of the table's rows."""
        return {key for about in self.out.glob("tiny*.json") for key in LatencyTable.load(about).rows}


def wait(process: subprocess.Popen[bytes], come: Callable[[], bool]) -> bool:
    """Whether the moment came before the process ended."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None:
        if come():
            return True
        if time.monotonic() > deadline:
            process.kill()
            raise TimeoutError(f"nas measure ran for {PATIENCE} s")
        time.sleep(POLL)
    return False


def moment(rng: np.random.Generator, kind: str, run: Measuring, seconds: float) -> Callable[[], bool]:
    """Tells when the moment of a kill has come; a measurement left alone takes `seconds`."""
    started, before = time.monotonic(), run.names()
    delay, visits = float(rng.uniform(0, seconds)), run.samples().count(b"\n") + int(rng.integers(1, 400))
    if kind == "time":
        return lambda: time.monotonic() - started > delay
    if kind == "visits":
        return lambda: run.samples().count(b"\n") >= visits
    left = int(rng.integers(1, 4))  # of the changes that writing makes to the folder, the kill comes at this one
    seen = [before]

    def writing() -> bool:
        if (now := run.names()) != seen[-1]:
            seen.append(now)
        return len(seen) > left

    return writing


def kill_and_resume(kills: int, seed: int, rounds: int, folder: Path) -> dict[str, Any]:
    """The counts, what is wrong, and each kill's moment.

    Raises:
        TimeoutError: a measurement does not end.
    """
    scratch, rng = folder / "scratch", np.random.default_rng(seed)
    alone = Measuring(folder / "alone", scratch, rounds)
    started = time.monotonic()
    faults = [] if alone.start().wait() == 0 else ["the measurement left alone failed"]
    seconds, keys = time.monotonic() - started, alone.rows()
    faults += alone.check_done(None)
    done, killed, left, moments = 0, False, 0, list[dict[str, Any]]()
    run = Measuring(folder / "0", scratch, rounds)
    while len(moments) < kills or killed:
        kind = str(rng.choice(MOMENTS, p=CHANCES))
        come = moment(rng, kind, run, seconds) if len(moments) < kills else lambda: False
        process = run.start()
        killed = wait(process, come)
        if killed:
            process.kill()
            process.wait()
            faults += [f"kill {len(moments)} ({kind}): {fault}" for fault in run.check()]
            moments.append({"moment": kind, "visits": len(run.visits), "files": sorted(map(plain, run.names()))})
            left += any(path.is_dir() for path in scratch.glob("nas-*/*"))
            continue
        if process.returncode != 0:
            faults.append(f"measurement {done} ended with exit code {process.returncode}")
            break
        faults += [f"measurement {done}: {fault}" for fault in run.check_done(keys)]
        done += 1
        run = Measuring(folder / str(done), scratch, rounds)
    counts = {"kills": len(moments), "measurements": done, "rows": len(keys), "seconds_alone": round(seconds, 1)}
    return {**counts, "kills_that_left_temporary_files": left, "faults": faults, "moments": moments}


def plain(name: str) -> str:
    """A file's name without the table's and what is random: `.csv.next`, or `.tmp-.json`."""
    begin = ".tmp-" if name.startswith(".tmp-") else ""
    return begin + (".csv.next" if name.endswith(".next") else Path(name).suffix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = kill_and_resume(given.kills, given.seed, given.rounds, Path(folder))
    for kill in found["moments"]:
        print(kill)
    print({name: value for name, value in found.items() if name != "moments"})
    if given.out is not None:
        command = f"python benchmarks/latency_kill.py --kills {given.kills} --seed {given.seed} --rounds {given.rounds}"
        write_json(given.out, {"command": command, **found})
    sys.exit(bool(found["faults"]))


if __name__ == "__main__":
    main()
