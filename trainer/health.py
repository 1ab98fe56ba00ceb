"""How the ranks of a run keep pace: times gathered every few steps, slow and stalled ranks and throughput drops in health.jsonl.

Ranks that train together take equally long for a step, as all wait for the slowest; so what is compared is what a rank does
alone: its wait for batches, and a small matrix product of fixed size (the probe). health.jsonl holds times and is never
an output: two launches of a run give two files of it.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import torch
import torch.distributed as dist
from torch import Tensor

from gristmill.trainer.guard_schema import Guards
from gristmill.trainer.heartbeat import Heartbeat, Stalled, Watchdog, remove_heartbeats, slow_ranks, throughput_dropped
from gristmill.trainer.parallel.mesh import World

FILE = "health.jsonl"
HOST_BYTES = 64
PROBE_SIZE = {"cpu": 256, "cuda": 2048}  # 2 n^3: 34 MFLOP, 2 ms on a slow core; 17 GFLOP, under 1 ms on a GPU
PROBE_REPEATS = 5  # the fastest counts: a core that is shared for a moment is not slow
DATA_SHARE = 0.05  # of a step's time: a wait for batches that is shorter delays nobody
KEPT_RATES = 50  # intervals that the median throughput is over


class Health:
    """One rank's share in the comparison, and its heartbeat. Close it at the end of the run."""

    def __init__(self, settings: Guards, world: World, out: Path, say: Callable[[str], None]) -> None:
        self.settings, self.world, self.out, self.say = settings, world, out, say
        if world.leads:
            remove_heartbeats(out, world.size)
        self.heart = Heartbeat(out, world.rank, settings.heartbeat_seconds)
        self.hosts = self._gather_hosts()  # from here on every rank has a heartbeat
        self._watchdog: Watchdog | None = None
        if world.size > 1 and (world.leads or world.rank == world.size - 1):  # the last one watches the first
            self._watchdog = Watchdog(out, self.heart, settings.stalled_seconds, self._stalled)
        size = PROBE_SIZE[world.device.type]
        self._probe_NN = torch.ones(size, size, device=world.device)
        self._rates: deque[float] = deque(maxlen=KEPT_RATES)
        self._seconds, self._waits, self._tokens, self._steps = 0.0, 0.0, 0, 0

    def step(self, step: int, seconds: float, tokens: int, waited: float) -> list[dict[str, Any]]:
        """After every step, on every rank: its duration, its global tokens, and the seconds this rank waited for its batch.

        Every `health_every` steps the ranks compare (a collective). Returns what was found, the same on every rank; the
        leading rank writes it to health.jsonl.
        """
        self._seconds, self._waits = self._seconds + seconds, self._waits + waited
        self._tokens, self._steps = self._tokens + tokens, self._steps + 1
        if self._steps < self.settings.health_every:
            return []
        probe = self._probe() if self.world.size > 1 else 0.0  # one process has none to compare with
        here = [self._seconds / self._steps, self._waits / self._steps, probe, self._tokens / self._seconds]
        of_ranks = self._gather(torch.tensor(here, dtype=torch.float64, device=self.world.device)).tolist()
        self._seconds, self._waits, self._tokens, self._steps = 0.0, 0.0, 0, 0
        found = self._compare(step, of_ranks)
        for event in found if self.world.leads else ():
            self._write(event)
        return found

    def close(self) -> None:
        if self._watchdog is not None:
            self._watchdog.close()
        self.heart.close()

    def _write(self, event: dict[str, Any]) -> None:
        with open(self.out / FILE, "ab") as file:
            file.write(orjson.dumps(event) + b"\n")
        self.say(f"step {event['step']}: {event['reason']}")

    def _stalled(self, rank: Stalled) -> None:
        if not self.world.leads and rank.rank != 0:
            return  # the leading rank tells of all others
        reason = f"waiting for {rank}"
        more = {"rank": rank.rank, "host": rank.host, "place": rank.place, "silent": rank.silent}
        self._write({"kind": "stalled", "step": rank.step, "time": time.time(), **more, "reason": reason})

    def _compare(self, step: int, of_ranks: list[list[float]]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        lasted, waits, probes, rates = zip(*of_ranks, strict=True)
        for measure, what, times, least in (
            ("batch_wait", "waits for its batches", waits, DATA_SHARE * max(lasted)),
            ("probe", "computes a product of fixed size for", probes, 0.0),
        ):
            for rank in slow_ranks(times, self.settings.slow_rank_factor, least):
                usual = 1e3 * statistics.median_low(times)
                reason = f"rank {rank} on {self.hosts[rank]} is slow: it {what} {1e3 * times[rank]:.3g} ms, the median rank {usual:.3g} ms"
                more = {"rank": rank, "host": self.hosts[rank], "measure": measure, "seconds": list(times)}
                found.append({"kind": "slow_rank", "step": step, "time": time.time(), **more, "reason": reason})
        median = throughput_dropped(rates[0], self._rates, self.settings.throughput_drop)
        self._rates.append(rates[0])
        if median is not None:
            reason = f"throughput fell to {rates[0]:.0f} tokens/s, the median so far is {median:.0f}"
            more = {"tokens_per_second": rates[0], "median": median}
            found.append({"kind": "throughput_drop", "step": step, "time": time.time(), **more, "reason": reason})
        return found

    @torch.no_grad()
    def _probe(self) -> float:
        """Seconds of the fastest of a few matrix products of fixed size on this rank's device."""
        best = float("inf")
        for _ in range(PROBE_REPEATS):
            if self.world.device.type == "cuda":
                torch.cuda.synchronize(self.world.device)
            began = time.perf_counter()
            self._probe_NN @ self._probe_NN
            if self.world.device.type == "cuda":
                torch.cuda.synchronize(self.world.device)
            best = min(best, time.perf_counter() - began)
        return best

    def _gather(self, values: Tensor) -> Tensor:
        """(ranks, n) of each rank's (n,) values."""
        if self.world.size == 1:
            return values[None]
        out = values.new_empty(self.world.size * len(values))
        dist.all_gather_into_tensor(out, values)
        return out.reshape(self.world.size, len(values))

    def _gather_hosts(self) -> list[str]:
        name = socket.gethostname().encode()[:HOST_BYTES]
        mine = torch.zeros(HOST_BYTES, dtype=torch.uint8, device=self.world.device)
        mine[: len(name)] = torch.tensor(list(name), dtype=torch.uint8)
        return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in self._gather(mine).tolist()]
