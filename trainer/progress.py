"""Speed, memory and the console line of a training run.

TFLOP/s are those of the model (6 per parameter and causal attention, `sizes.flops_per_token`), recomputation not counted;
MFU is their share of the device's dense peak at the dtype of the matrix products (PaLM, arXiv 2204.02311, appendix B).
Where no peak is known, as on a CPU, there is no MFU.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MOST_SOURCES = 6  # per-source losses on the line; all are in metrics.jsonl

Record = dict[str, Any]


@dataclass(frozen=True)
class Peak:
    """The most that the run's devices can do: FLOP/s of one, and the dtype it holds for."""

    flops: float | None
    dtype: str

    @property
    def words(self) -> str:
        return f"{self.flops / 1e12:.4g} {self.dtype}" if self.flops else self.dtype


def find_peak(device_type: str, precision: str, declared_tflops: float | None) -> Peak:
    """The declared peak, else the table's for the GPU at hand (`trainer.hardware`). Imports torch only for a GPU."""
    dtype, flops = ("bf16" if precision == "bf16" else "fp32"), None
    if device_type == "cuda":
        import torch

        from gristmill.trainer.hardware import peak_flops

        if dtype == "fp32" and torch.get_float32_matmul_precision() != "highest":
            dtype = "tf32"
        flops = peak_flops(torch.cuda.get_device_name(), dtype)
    return Peak(declared_tflops * 1e12 if declared_tflops else flops, dtype)


def memory_bytes(device_type: str) -> int:
    """The most memory held so far: allocated on the GPU by torch, or resident of this process on a CPU."""
    if device_type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


@dataclass(frozen=True)
class Meter:
    """Makes the timing record of a step. `flops_per_token`: of a row length; `devices`: processes of the run."""

    flops_per_token: Callable[[int], int]
    peak: Peak
    devices: int = 1
    device_type: str = "cpu"

    def timing(self, *, tokens: int, seq_len: int, seconds: float, wait: float = 0.0) -> Record:
        """{"seconds", "tokens_per_second" (all devices), "tflops" (each), "mfu"?, "memory_bytes", "data_wait"}.

        `tokens` trained in `seconds`, of which the loop waited `wait` for its batch; `data_wait` is that share.
        """
        flops = self.flops_per_token(seq_len) * tokens / max(seconds, 1e-9) / self.devices
        mfu = {"mfu": round(flops / self.peak.flops, 6)} if self.peak.flops else {}
        return {
            "seconds": round(seconds, 6),
            "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
            "tflops": float(f"{flops / 1e12:.5g}"),
            **mfu,
            "memory_bytes": memory_bytes(self.device_type),
            "data_wait": round(wait / max(seconds, 1e-9), 6),
        }


class Progress:
    """Prints a line every `every` steps, on the first and on the last: speeds are means since the last line.

    A record holds a step's metrics, its timing and `steps`, and may hold `phase_step` and `phase_steps`, its place in its
    stage; what it lacks the line leaves out.
    """

    def __init__(self, every: int, say: Callable[[str], None], peak: Peak | None = None) -> None:
        self.every, self.say, self.peak = every, say, peak
        self._clear()

    def _clear(self) -> None:
        self.seconds, self.sums = 0.0, dict.fromkeys(("tokens_per_second", "tflops", "mfu", "data_wait"), 0.0)

    def __call__(self, record: Record) -> None:
        self.seconds += record["seconds"]
        for name in self.sums:
            self.sums[name] += record.get(name, 0.0) * record["seconds"]
        step, steps = record["step"], record["steps"]
        if step % self.every and step not in (1, steps):
            return
        self.say(self.line(record))
        self._clear()

    def line(self, record: Record) -> str:
        """The line of a step, with the means of the steps since the last one."""
        step, steps = record["step"], record["steps"]
        mean = {name: total / max(self.seconds, 1e-9) for name, total in self.sums.items()}
        place = f" {record['phase_step']}/{record['phase_steps']}" if "phase_step" in record else ""
        parts = [
            f"step {step:>{len(str(steps))}}/{steps}",
            f"{record['phase']}{place} row {record['samples']:,}",
            f"loss {record['loss']:.3f}{_by_source(record.get('source_loss') or {})}",
            f"grad {record['grad_norm']:.2f}",
            f"lr {record['lr']:.1e}",
            f"{thousands(mean['tokens_per_second'])} tok/s",
        ]
        if "tflops" in record:
            parts.append(f"{mean['tflops']:.3g} TFLOP/s")
        if "mfu" in record:
            parts.append(f"MFU {mean['mfu']:.1%}" + (f" of {self.peak.words}" if self.peak else ""))
        if "memory_bytes" in record:
            parts.append(f"{record['memory_bytes'] / 2**30:.1f} GiB")
        if "data_wait" in record:
            parts.append(f"wait {mean['data_wait']:.1%}")
        return " | ".join(parts)


def _by_source(losses: Mapping[str, float]) -> str:
    """ " (web 3.10, code 2.40)": the sources in name order; nothing for a single one, which is the loss itself."""
    if len(losses) < 2:
        return ""
    shown = [f"{name} {loss:.2f}" for name, loss in sorted(losses.items())]
    more = f", {len(shown) - MOST_SOURCES} more" if len(shown) > MOST_SOURCES else ""
    return f" ({', '.join(shown[:MOST_SOURCES])}{more})"


def evaluation_line(record: Record) -> str:
    """One line of an evaluation: held-out bits per byte, then each task's accuracy per character (or what it has)."""
    parts = []
    if record["heldout"]:
        bits = ", ".join(f"{name} {found['bits_per_byte']:.4f}" for name, found in record["heldout"].items())
        parts.append(f"held-out bits/byte {bits}")
    for name, found in record["tasks"].items():
        key = next((k for k in ("accuracy_per_char", "accuracy") if k in found), None)
        if key is None:
            parts.append(f"{name} {found['gold_logprob_per_char']:.3f} nats/char")
        else:
            chance = f", chance {found['random']:.1%}" if "random" in found else ""
            parts.append(f"{name} {found[key]:.1%} ± {found[f'{key}_stderr']:.1%}{chance}")
    return f"evaluation after step {record['step']} | " + " | ".join(parts)


def thousands(value: float) -> str:
    """950, 9.5k, 31k, 1.2M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            scaled = value / size
            return f"{scaled:.1f}{unit}" if scaled < 10 else f"{scaled:.0f}{unit}"
    return f"{value:.0f}"
