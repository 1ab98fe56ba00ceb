"""Where tasks run: `local:N` processes here, `tcp://…` an existing scheduler, `slurm:PROFILE` through dask-jobqueue.

Dask schedules file-to-file tasks and nothing else: its memory limits, spilling and failure counts are switched off
or raised, so that none of them can decide what is kept.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

from gristmill.core.errors import UsageError

DASK_CONFIG = {
    # a worker is never paused, spilled or killed for its memory: extraction has its own bounded processes
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.daemon": False,  # workers start processes of their own
    # the number of workers a task may outlive before Dask gives up on it (default 3: three dead nodes would fail it)
    "distributed.scheduler.allowed-failures": 20,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.comm.timeouts.connect": "60s",
    "distributed.comm.timeouts.tcp": "120s",
    "distributed.admin.tick.limit": "60s",
}

# One compute thread per worker process: N workers on N cores, and thread counts never change a float.
SINGLE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
}
SINGLE_THREAD["TOKENIZERS_PARALLELISM"] = "false"


def parse(spec: str) -> tuple[str, str]:
    """`local:4` -> ("local", "4"). Raises UsageError on anything else."""
    kind, _, rest = spec.partition(":")
    if spec.startswith(("tcp://", "tls://", "ucx://")):
        return "address", spec
    if kind == "inline" and not rest:
        return "inline", ""
    if kind == "local" and ((rest.isdigit() and int(rest) > 0) or not rest):
        return "local", rest or str(os.cpu_count() or 1)
    if kind == "slurm" and rest:
        return "slurm", rest
    raise UsageError(f"no such cluster: {spec!r}", hint="use local:N, tcp://HOST:PORT, slurm:PROFILE or inline")


def _ignore_interrupt() -> None:
    """Ctrl-C goes to the whole process group; only the driver may act on it, by draining."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def connect(spec: str) -> Iterator[Any]:
    """A Dask client for a cluster spec, closed at the end. Raises UsageError when it cannot be had."""
    kind, rest = parse(spec)
    import dask

    dask.config.set(DASK_CONFIG)
    from distributed import Client, LocalCluster

    cluster: Any = None
    if kind == "local":
        dask.config.set({"distributed.nanny.pre-spawn-environ": {**SINGLE_THREAD, "MALLOC_TRIM_THRESHOLD_": "65536"}})
        cluster = LocalCluster(
            n_workers=int(rest),
            threads_per_worker=1,
            processes=True,
            memory_limit=0,
            dashboard_address=None,
            silence_logs=50,
        )
        client = Client(cluster)
    elif kind == "slurm":
        try:
            from dask_jobqueue import SLURMCluster
        except ImportError as error:
            raise UsageError("slurm clusters need dask-jobqueue", hint="pip install 'gristmill[slurm]'") from error
        cluster = SLURMCluster(config_name=rest)
        cluster.scale(jobs=int(dask.config.get(f"jobqueue.{rest}.gristmill-jobs", 1)))
        client = Client(cluster)
    else:
        try:
            client = Client(rest, timeout="30s")
        except (OSError, TimeoutError) as error:
            raise UsageError(f"no Dask scheduler answers at {rest}: {error}") from error
    try:
        client.register_worker_callbacks(_ignore_interrupt)
        yield client
    finally:
        with contextlib.suppress(Exception):
            client.close(timeout=5)
        if cluster is not None:
            with contextlib.suppress(Exception):
                cluster.close(timeout=10)
