"""Where tasks run: `local:N` processes here, `tcp://…` an existing scheduler, `slurm:PROFILE` through dask-jobqueue.

Dask schedules file-to-file tasks and nothing else: its memory limits, spilling and failure counts are switched off
or raised, so that none of them can decide what is kept. Lost workers are replaced, a lost local cluster is started
again, and no wait is unbounded but that for a scheduler elsewhere, which may get workers back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from gristmill.core.errors import GristmillError, UsageError

START_TRIES = 6
PAUSE_SECONDS = 0.5
"""Pause after a failed start, doubled each time up to 8 s: 15 s in all, for a machine short of memory to recover."""
LOST_SECONDS = 20.0
"""A local cluster without a worker for so long is started anew; a worker process starts in 1 to 3 s."""
RESTARTS = 3
"""Restarts in a row without a task that ended."""
POLL_SECONDS = 1.0

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


class Pool:
    """The workers of a run: connected at the first use, started anew when they are lost."""

    def __init__(self, spec: str, say: Callable[[str], None], stopped: Callable[[], bool]) -> None:
        self.spec, self.say, self.stopped = spec, say, stopped
        self.local = parse(spec)[0] == "local"
        self.restarts = 0
        self._said = False
        self._stack = contextlib.ExitStack()
        self._client: Any = None

    @property
    def client(self) -> Any:
        """The Dask client. Raises GristmillError when a local cluster does not start, UsageError as `connect`."""
        for tries in range(1, START_TRIES + 1):
            if self._client is not None:
                break
            try:
                self._client = self._stack.enter_context(connect(self.spec))
            except GristmillError:
                raise
            except Exception as error:  # a worker that died while it started, a scheduler that hung up: of any type
                if tries == START_TRIES or self.stopped():
                    raise GristmillError(
                        f"the cluster {self.spec} did not start in {tries} tries: {error}",
                        hint="is the machine out of memory, or does something kill processes? "
                        "The same command resumes the run",
                    ) from error
                time.sleep(min(8.0, PAUSE_SECONDS * 2 ** (tries - 1)))
        return self._client

    def workers(self) -> int:
        """How many workers the scheduler has now; 0 while it does not answer."""
        try:
            return len(self.client.scheduler_info(n_workers=-1)["workers"])
        except (OSError, TimeoutError):
            return 0

    def next_ended(self, completed: Any) -> Any:
        """The next future of an `as_completed` to end; None when none will: see `stopped`, else use `restart`."""
        since: float | None = None
        while True:
            until = time.monotonic() + POLL_SECONDS
            while not completed.has_ready() and time.monotonic() < until:
                with completed.thread_condition:
                    completed.thread_condition.wait(timeout=0.05)
            if completed.has_ready():
                self.restarts = 0
                return next(completed)
            found = self.workers()
            if self.local and found < len(self.client.cluster.worker_spec):
                _replace_lost(self.client.cluster)
            if found:
                since = None
                continue
            since = since or time.monotonic()
            if self.stopped():
                return None
            if self.local and time.monotonic() - since > LOST_SECONDS:
                return None
            if not self.local and not self._said:
                self._said = True
                self.say(f"{self.spec} has no workers: waiting for some")

    def restart(self) -> None:
        """Start a lost local cluster anew. Raises GristmillError at RESTARTS in a row, or when it does not start."""
        self.close()
        self.restarts += 1
        if self.restarts > RESTARTS:
            raise GristmillError(
                f"all workers were lost {self.restarts} times in a row", hint="the same command resumes the run"
            )
        assert self.client is not None

    def close(self) -> None:
        self._client = None
        self._stack.close()


def _replace_lost(cluster: Any) -> None:
    """Open new workers for those whose keeper gave up (a nanny does when its process dies while it starts)."""
    from distributed.core import Status

    async def replace() -> None:
        with contextlib.suppress(Exception):  # one that dies again is found by the next poll
            for name, nanny in list(cluster.workers.items()):
                if nanny.status in (Status.closed, Status.failed):
                    del cluster.workers[name]
            await cluster._correct_state()

    cluster.loop.add_callback(replace)


@contextlib.contextmanager
def connect(spec: str) -> Iterator[Any]:
    """A Dask client for a cluster spec, closed at the end. Raises UsageError when it cannot be had.

    What Dask raises when a process dies during the start comes through, with the rest taken down.
    """
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
            # no dashboard, and a free port for the scheduler's HTTP routes: with None it tries 8787, and warns
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            silence_logs=50,
        )
    elif kind == "slurm":
        try:
            from dask_jobqueue import SLURMCluster
        except ImportError as error:
            raise UsageError("slurm clusters need dask-jobqueue", hint="pip install 'gristmill[slurm]'") from error
        cluster = SLURMCluster(config_name=rest)
        cluster.scale(jobs=int(dask.config.get(f"jobqueue.{rest}.gristmill-jobs", 1)))
    client: Any = None
    try:
        try:
            client = Client(rest if cluster is None else cluster, timeout="30s")
        except (OSError, TimeoutError) as error:
            if cluster is not None:
                raise
            raise UsageError(f"no Dask scheduler answers at {rest}: {error}") from error
        client.register_worker_callbacks(_ignore_interrupt)
        yield client
    finally:
        if client is not None:
            with contextlib.suppress(Exception):
                client.close(timeout=5)
        if cluster is not None:
            with contextlib.suppress(Exception):
                cluster.close(timeout=10)
