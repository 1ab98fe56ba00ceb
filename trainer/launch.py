"""One training run as a process: `python -m gristmill.trainer.launch --run RUN.json --dataset DIR --tokenizer FILE --out DIR`.

RUN.json holds the resolved settings of a training run. Started again on the same DIR, it goes on from the last
checkpoint. DIR gets model.safetensors, config.json, metrics.jsonl, timings.jsonl, generated.txt and summary.json.
Exit codes: 0 done, 1 failed but resumable, 2 bad usage, 130 stopped by SIGTERM or SIGINT after a checkpoint.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import orjson
from pydantic import ValidationError

from gristmill.core.errors import EXIT_INTERRUPTED, EXIT_OK, FormatError, GristmillError, LeaseHeld, UsageError
from gristmill.core.hashing import sha256_file
from gristmill.core.tokshards import PackedDataset
from gristmill.trainer.journal import read_journal
from gristmill.trainer.schema import TrainRun

FINAL_STEPS = 10  # the final loss is the mean of this many last steps: single batches scatter by tenths of a nat
LOCK_SECONDS = 30.0  # a killed parent's child needs up to a second to notice and go


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    if options.parent:
        _die_with(options.parent)
    try:
        run = read_run(options.run)
        _environment(run)
        with _lock(options.out):
            return _launch(run, options)
    except GristmillError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def read_run(path: Path) -> TrainRun:
    """The resolved settings in a RUN.json. Raises UsageError when they are none."""
    try:
        return TrainRun.model_validate(orjson.loads(path.read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise UsageError(f"{path} holds no training run: {error}") from error


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gristmill.trainer.launch", description="Train one run.")
    parser.add_argument("--run", type=Path, required=True, help="resolved settings of the run (JSON)")
    parser.add_argument("--dataset", type=Path, required=True, help="packed dataset folder")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json the dataset was made with")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and results")
    parser.add_argument("--parent", type=int, help="end when this process is gone or standard input closes")
    return parser.parse_args(argv)


def _environment(run: TrainRun) -> None:
    """Thread settings that torch reads once, on import."""
    threads = str(run.threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    # Spinning OpenMP threads beside another busy process fell from 1,500 to 300 tok/s
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on CUDA


def _launch(run: TrainRun, options: argparse.Namespace) -> int:
    dataset = PackedDataset(options.dataset)
    check_tokenizer(dataset, options.tokenizer)
    if run.verify_shards and (bad := dataset.verify()):
        raise FormatError(
            f"{len(bad)} shard files differ from the manifest, first {bad[0]}",
            hint=f"delete {options.dataset} and run the recipe again: its shards are written anew",
        )

    import torch
    from tokenizers import Tokenizer

    from gristmill.trainer import export, generate, loop

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time, and only hides reads of unset memory
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: _stop(stop, signum, frame))
    progress = Progress(run.log_every)
    outcome = loop.train(run, dataset, options.out, report=progress, say=_say, stop=stop.is_set)
    if not outcome.finished:
        _say(f"stopped after step {outcome.step} of {outcome.steps}; the same command goes on from there")
        return EXIT_INTERRUPTED
    special_ids = dataset.manifest.special_ids
    export.export(outcome.model, special_ids, options.out)
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    text = generate.write_text(outcome.model, tokenizer, run.generate, special_ids)
    (options.out / "generated.txt").write_text(text + "\n", encoding="utf-8", errors="replace")
    summary = summarise(read_journal(options.out / "metrics.jsonl"), outcome.model.params())
    (options.out / "summary.json").write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2))
    return EXIT_OK


def check_tokenizer(dataset: PackedDataset, path: Path) -> None:
    """Raises UsageError when a tokenizer.json is not the one the dataset was encoded with."""
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    want = dataset.manifest.tokenizer_sha256
    have = sha256_file(path)
    if have != want:
        raise UsageError(
            f"{path} is not the tokenizer of this dataset: sha256 {have[:12]}, the manifest says {want[:12]}",
            hint="give the tokenizer.json that the token stores were encoded with",
        )


def summarise(records: list[dict[str, Any]], params: int) -> dict[str, Any]:
    """Totals of a run from its metrics: losses in nats per token, whole and per phase. No times."""
    phases: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        phases.setdefault(record["phase"], []).append(record)
    return {
        "steps": len(records),
        "samples": records[-1]["samples"],
        "tokens": records[-1]["tokens"],
        "valid_tokens": sum(r["valid_tokens"] for r in records),
        "params": params,
        **_losses(records),
        "phases": [{"name": name, "steps": len(part), **_losses(part)} for name, part in phases.items()],
    }


def _losses(records: list[dict[str, Any]]) -> dict[str, float]:
    tail = [r["loss"] for r in records[-FINAL_STEPS:]]
    return {"first_loss": records[0]["loss"], "final_loss": sum(tail) / len(tail)}


class Progress:
    """Prints a line every `every` steps, on the first and on the last: the speed is the mean since the last line."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.tokens, self.seconds = 0.0, 0.0

    def __call__(self, record: dict[str, Any]) -> None:
        self.tokens += record["tokens_per_second"] * record["seconds"]
        self.seconds += record["seconds"]
        step, steps = record["step"], record["steps"]
        if step % self.every and step not in (1, steps):
            return
        _say(
            f"step {step:>{len(str(steps))}}/{steps} | {record['phase']} | loss {record['loss']:.3f} | grad {record['grad_norm']:.2f}"
            f" | lr {record['lr']:.1e} | {thousands(self.tokens / max(self.seconds, 1e-9))} tok/s"
        )
        self.tokens, self.seconds = 0.0, 0.0


def thousands(value: float) -> str:
    """950, 9.5k, 31k, 1.2M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            scaled = value / size
            return f"{scaled:.1f}{unit}" if scaled < 10 else f"{scaled:.0f}{unit}"
    return f"{value:.0f}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _stop(stop: threading.Event, signum: int, frame: FrameType | None) -> None:
    if stop.is_set():  # the second signal does not wait for the step
        os._exit(EXIT_INTERRUPTED)
    _say("stopping after this step")
    stop.set()


def _die_with(parent: int) -> None:
    """End this process at once when `parent` is gone: killed outright it cannot tell us.

    Two signs, as either can fail: standard input (a pipe from the parent) closes, unless a fork of the parent holds
    it open; the parent's id changes, seen within half a second.
    """

    def watch() -> None:
        while os.getppid() == parent:
            if select.select([0], [], [], 0.5)[0] and not os.read(0, 4096):
                break
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="die-with-parent").start()


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Hold `out` alone. Raises LeaseHeld when another process still trains there after 30 seconds."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "a+") as handle:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise LeaseHeld(f"another process is training in {out}", hint="wait for it, or stop it") from error
                time.sleep(0.2)
        yield


if __name__ == "__main__":
    sys.exit(main())
