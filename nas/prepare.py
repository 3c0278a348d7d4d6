"""Getting many networks ready to run, on all cores: building and exporting one takes a second of which a core computes all."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nas.runtimes import RUNTIMES, Session
from nas.scratch import scratch_dir
from nas.target import Target
from search_spaces.arch import Arch
from search_spaces.errors import InputError

__all__ = ["opened"]

SHARE = 16  # networks for each process at least: starting one takes as long as preparing several
IDLE = 5  # seconds without work after which a process ends, should this one be killed


@contextmanager
def opened(archs: Sequence[Arch], target: Target) -> Iterator[Iterator[Session]]:
    """A session of each network with fixed random weights, in their order; at the end no process is left.

    Raises:
        InputError: the target cannot run one of them, or the machine has too little memory for the processes.
    """
    from joblib import Parallel, cpu_count, delayed
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    runtime = RUNTIMES[target.runtime]
    workers = min(cpu_count(), len(archs) // SHARE) if target.device in runtime.processes else 1
    if workers < 2:
        yield (runtime.from_arch(arch, target) for arch in archs)
        return
    with tempfile.TemporaryDirectory(prefix="prepare-", dir=scratch_dir()) as folder:
        files = [Path(folder) / str(i) for i in range(len(archs))]
        processes = Parallel(
            workers, backend="loky", return_as="generator", pre_dispatch=workers, idle_worker_timeout=IDLE
        )
        done = processes(delayed(runtime.prepare)(arch, target, file) for arch, file in zip(archs, files, strict=True))
        made = zip(archs, files, done, strict=True)
        try:
            yield (runtime.from_prepared(file, target, arch) for arch, file, _ in made)
        except TerminatedWorkerError as error:
            raise InputError(
                f"one of {workers} processes that prepare networks was killed, for want of memory it seems; free some, or "
                "run on fewer cores (taskset -c 0)"
            ) from error
        finally:
            done.close()
            get_reusable_executor().shutdown(wait=True)  # timing needs the machine for itself
