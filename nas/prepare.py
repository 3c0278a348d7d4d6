"""Getting many networks ready to run, on all cores: building and exporting one takes a second of which a core computes all."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from nas.runtimes import RUNTIMES, Session
from nas.target import Target
from search_spaces.arch import Arch

__all__ = ["opened"]

FEW = 32  # networks below which starting processes takes longer than they save
IDLE = 5  # seconds without work after which a process ends, should this one be killed


def opened(archs: Sequence[Arch], target: Target) -> Iterator[Session]:
    """A session of each network with fixed random weights, in their order.

    Raises:
        InputError: the target cannot run one of them.
    """
    from joblib import Parallel, cpu_count, delayed
    from joblib.externals.loky import get_reusable_executor

    runtime = RUNTIMES[target.runtime]
    if len(archs) < FEW or cpu_count() == 1:
        yield from (runtime.from_arch(arch, target) for arch in archs)
        return
    with tempfile.TemporaryDirectory(prefix="nas-prepare-") as folder:
        files = [Path(folder) / str(i) for i in range(len(archs))]
        processes = Parallel(cpu_count(), backend="loky", return_as="generator", idle_worker_timeout=IDLE)
        done = processes(delayed(runtime.prepare)(arch, target, file) for arch, file in zip(archs, files, strict=True))
        try:
            for arch, file, _ in zip(archs, files, done, strict=True):
                yield runtime.from_prepared(file, target, arch.id)
        finally:
            get_reusable_executor().shutdown(wait=True)  # timing needs the machine for itself
