"""A training run as processes: `python -m gristmill.trainer.launch --settings RUN.json --dataset DIR --tokenizer FILE --out DIR`.

RUN.json holds the resolved settings of a training run. Started again on the same DIR, it goes on from the last
checkpoint. DIR gets model.safetensors, config.json and what stands beside them (export_folder.py), metrics.jsonl,
timings.jsonl, generated.txt and summary.json.
`--nproc N` (or parallel.nproc) starts N processes on this machine through torchrun; torchrun itself may start this module too,
on several machines that share DIR. SIGTERM, SIGINT, SIGUSR1 or a file DIR/STOP: save, then exit with 130.
Exit codes: 0 done, 1 failed but resumable, 2 bad usage, 130 stopped after a checkpoint.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from gristmill.core.errors import EXIT_INTERRUPTED, EXIT_OK, GristmillError, LeaseHeld, UsageError
from gristmill.core.hashing import sha256_file
from gristmill.core.tokshards import PackedDataset
from gristmill.trainer import branch, export_folder, outcome, ranks
from gristmill.trainer.journal import read_journal
from gristmill.trainer.progress import Progress
from gristmill.trainer.schema import TrainRun
from gristmill.trainer.stopping import Stop, signals
from gristmill.trainer.summary import summarise
from gristmill.trainer.train import FINISHED, OUTPUTS

LOCK_SECONDS = 30.0  # a killed parent's child needs up to a second to notice and go


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    if options.parent:
        _die_with(options.parent)
    several, rank = ranks.launched(), ranks.rank()
    if several:
        ranks.quiet(rank)
    try:
        run = branch.pinned(read_run(options.settings), options.out)
        _environment(run)
        nproc = options.nproc or run.parallel.nproc
        if not ranks.started():
            ranks.check_groups(nproc, run.parallel.tp)  # before any is started: they would each say it
        if nproc > 1 and not ranks.started():
            ended = ranks.launch(_arguments(options), options.out, nproc)
        else:
            ended = outcome.Exit(_train(run, options))
    except Exception as error:
        ended = outcome.of_error(error)
        if not isinstance(error, (GristmillError, OSError)) and not ended.peer:
            traceback.print_exc()
    under_ours = several and options.parent is not None  # the process that started the ranks says it once for all
    if ended.message and not under_ours:
        print(ended.render(), file=sys.stderr, flush=True)
    if ranks.started():
        outcome.write(options.out, rank, ended)
    if several:
        from gristmill.trainer.parallel.mesh import leave

        leave(ended.code)  # after a failure, too: the way out of torch.distributed waits for the others
    return ended.code


def read_run(path: Path) -> TrainRun:
    """The resolved settings in a RUN.json. Raises UsageError when they are none."""
    try:
        return TrainRun.model_validate(orjson.loads(path.read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise UsageError(f"{path} holds no training run: {error}") from error


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gristmill.trainer.launch", description="Train one run.")
    # not --run: torchrun takes that for its own --run-path, even behind the module's name
    parser.add_argument("--settings", type=Path, required=True, help="resolved settings of the run (JSON)")
    parser.add_argument("--dataset", type=Path, required=True, help="packed dataset folder")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json the dataset was made with")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and results")
    parser.add_argument("--nproc", type=int, help="processes on this machine (default: the run's parallel.nproc)")
    parser.add_argument("--parent", type=int, help="end when this process is gone or standard input closes")
    return parser.parse_args(argv)


def _arguments(options: argparse.Namespace) -> list[str]:
    """What each rank is started with."""
    names = ("settings", "dataset", "tokenizer", "out")
    return [text for name in names for text in (f"--{name}", str(getattr(options, name)))]


def _environment(run: TrainRun) -> None:
    """Settings that torch reads once, on import; the ranks inherit them."""
    threads = str(run.threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    # Spinning OpenMP threads beside another busy process fell from 1,500 to 300 tok/s
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on CUDA
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # warnings of c10d, once per rank


def _train(run: TrainRun, options: argparse.Namespace) -> int:
    """One process' part of the run: all of it, or one rank's."""
    out: Path = options.out
    leads = not ranks.launched() or ranks.rank() == 0
    say = _say if leads else _nothing
    stop = Stop(out, say)
    with signals(stop.ask), _lock(out) if leads else nullcontext():
        if leads:
            (out / FINISHED).unlink(missing_ok=True)
        if not ranks.launched():
            outcome.clear(out)
            stop.honoured()  # a trigger file of an earlier run, which had ended
        dataset = PackedDataset(options.dataset)
        check_tokenizer(dataset, options.tokenizer)
        export_folder.check_lock(dataset)
        code = _in_torch(run, dataset, options, stop, say, leads)
        if code == EXIT_INTERRUPTED and leads:
            stop.honoured()
        return code


def _in_torch(
    run: TrainRun, dataset: PackedDataset, options: argparse.Namespace, stop: Stop, say: Any, leads: bool
) -> int:
    import torch
    from tokenizers import Tokenizer

    from gristmill.trainer import export, generate, loop
    from gristmill.trainer.exchange import Exchange
    from gristmill.trainer.parallel import mesh

    ranks.quiet_torch()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time, and only hides reads of unset memory
    out: Path = options.out
    world = mesh.start(loop.pick_device(run.device), run.parallel.tp, run.parallel.zero)
    exchange = Exchange(world)
    progress = Progress(run.log_every, say) if leads else _nothing
    done = loop.train(
        run,
        dataset,
        out,
        report=progress,
        say=say,
        stop=lambda: stop.agreed(exchange),
        world=world,
        tokenizer=options.tokenizer,
    )
    if not done.finished:
        say(f"stopped after step {done.step} of {done.steps}; the same command goes on from there")
        world.barrier()
        return EXIT_INTERRUPTED
    special_ids = dataset.manifest.special_ids
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    with done.averaged():
        export.export(done.model, special_ids, out, write=leads)
        text = generate.write_text(done.model, tokenizer, run.generate, special_ids, world)
    if leads:
        export_folder.write_companions(out, run, dataset, options.tokenizer, done.step)
        (out / "generated.txt").write_text(text + "\n", encoding="utf-8", errors="replace")
        summary = summarise(read_journal(out / "metrics.jsonl"), done.model.params())
        (out / "summary.json").write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2))
        (out / FINISHED).write_bytes(orjson.dumps({name: sha256_file(out / name) for name in OUTPUTS}))
    world.barrier()
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


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _nothing(value: object) -> None:
    """What a rank that does not lead says."""


def _die_with(parent: int) -> None:
    """End this process at once when `parent` is gone: killed outright it cannot tell us.

    Two signs, as either can fail: standard input (a pipe from the parent) closes, unless a fork of the parent holds
    it open; the parent's id changes, seen within half a second.
    """
    pipe = os.dup(0)  # the process that starts ranks gives them another standard input

    def watch() -> None:
        while os.getppid() == parent:
            if select.select([pipe], [], [], 0.5)[0] and not os.read(pipe, 4096):
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
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise LeaseHeld(f"another process is training in {out}", hint="wait for it, or stop it") from error
                time.sleep(0.2)
        yield


if __name__ == "__main__":
    sys.exit(main())
