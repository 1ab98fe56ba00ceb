"""The `train` commands: plan a run, and run it on a root's packed shards."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gristmill.core.errors import UsageError
from gristmill.pipelines.cli.options import json_option, print_json, root_option, say, set_option

if TYPE_CHECKING:
    from gristmill.core.settings import Document
    from gristmill.trainer.schema import TrainRun


@click.group()
def train() -> None:
    """Plan and run training on a root's packed shards."""


@train.command("plan")
@click.argument("run")
@root_option(required=False)
@set_option
@click.option("--vocab-size", type=click.IntRange(1), help="Where there is no tokenizer yet; default: the preset's.")
@click.option("--gpus", type=click.IntRange(1), help="Plan the memory of so many GPUs: all layouts, and the best one.")
@click.option("--gpu-memory", default="80GB", show_default=True, metavar="SIZE", help="Of one GPU: 80GB, 40GiB, ….")
@click.option("--gpu", default="h100", show_default=True, metavar="NAME", help="Whose peak FLOP/s to reckon with.")
@click.option("--peak", type=click.FloatRange(min=0, min_open=True), metavar="TFLOPS", help="In place of --gpu's peak.")
@click.option("--mfu", default="40%", show_default=True, help="Model FLOPs utilisation to expect: 40% or 0.4.")
@json_option
def train_plan(
    run: str,
    root: Path | None,
    overrides: tuple[str, ...],
    vocab_size: int | None,
    gpus: int | None,
    gpu_memory: str,
    gpu: str,
    peak: float | None,
    mfu: str,
    as_json: bool,
) -> None:
    """Stages, steps, tokens, learning rates, memory and days of a training run. Needs no torch and no data.

    RUN is a packaged name or a path. The stages come from the root's packed shards, else its lock or its encoded
    documents, else from the mixture that RUN names; epochs are unknown until the documents are encoded.

    With --gpus every layout is counted: tensor parallel 1 to 8, ZeRO stage 0 to 3, checkpointing none, selective or
    full. The chosen one has the smallest tp that is valid and fits, then the least checkpointing, then the least traffic.

    \b
    Examples:
      gristmill train plan demo --root runs/demo
      gristmill train plan smollm3-3b --gpus 384 --gpu-memory 80GB
      gristmill train plan llama-3-8b --gpus 32 --json
      gristmill train plan llama-3-8b --gpus 64 --set mixture.stages.0.tokens=1T --set micro_batch_rows=1
      gristmill train plan smollm3-3b-long --gpus 48 --gpu h200 --gpu-memory 141GB --mfu 30%
    """
    from gristmill.core.places import find_yaml
    from gristmill.pipelines.trainplan import find_stages
    from gristmill.trainer.hardware import GPUS, device_key
    from gristmill.trainer.plan import add_gpus, plan_run
    from gristmill.trainer.plan_text import render

    of_mixture = [text.removeprefix("mixture.") for text in overrides if text.startswith("mixture.")]
    settings, document = _load_run(run, tuple(text for text in overrides if not text.startswith("mixture.")))
    if gpus is not None and peak is None and device_key(gpu) is None:
        raise UsageError(f"no peak is known of GPU {gpu!r}", hint=f"one of {', '.join(GPUS)}; or give --peak TFLOPS")
    beside = find_yaml(run, "gristmill.trainer")[0].parent
    found = find_stages(root, settings.mixture, beside, of_mixture, vocab_size or _preset_vocab(document))
    plan = plan_run(settings, found.manifest, found.lock)
    plan["from"] = found.origin
    if gpus is not None:
        plan = add_gpus(
            plan,
            settings,
            found.manifest,
            gpus=gpus,
            gpu_memory=_bytes(gpu_memory),
            gpu=gpu,
            mfu=_share(mfu),
            peak=peak * 1e12 if peak is not None else None,
        )
    if as_json:
        print_json(plan)
    else:
        say(f"stages from {found.origin}")
        click.echo(render(plan))


def _preset_vocab(document: Document) -> int | None:
    """Vocabulary of the published model whose preset a run names."""
    from gristmill.trainer.architecture import read_preset

    model = document.data.get("model") if isinstance(document.data, dict) else None
    name = model.get("preset") if isinstance(model, dict) else None
    return read_preset(name).vocab_size if isinstance(name, str) else None


def _bytes(text: str) -> float:
    """80GB, 40 GiB, 80G -> bytes; powers of 1000, with an i of 1024."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([MGT])(i?)B?", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise UsageError(f"{text!r} is no amount of memory", hint="write --gpu-memory 80GB")
    power = "MGT".index(match[2].upper()) + 2
    return float(match[1]) * (1024.0 if match[3] else 1000.0) ** power


def _share(text: str) -> float:
    """40% or 0.4 -> 0.4."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise UsageError(f"{text!r} is no utilisation", hint="write --mfu 40% or --mfu 0.4")
    return value


@train.command("run")
@click.argument("run")
@root_option()
@click.option("--nproc", type=click.IntRange(1), help="Processes on this machine. Default: the run's parallel.nproc.")
@click.option(
    "--slurm",
    "profile",
    metavar="PROFILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Submit a job as this YAML file describes (gristmill schema slurm), instead of training here.",
)
@click.option("--dry-run", is_flag=True, help="With --slurm: print the batch script and submit nothing.")
@set_option
def train_run(
    run: str, root: Path, nproc: int | None, profile: Path | None, dry_run: bool, overrides: tuple[str, ...]
) -> None:
    """Train from a training-run YAML; the same command resumes, with any number of processes.

    RUN is a packaged name (demo, web) or a path. Data-parallel processes are those left over by parallel.tp.

    To save and stop: Ctrl-C, SIGTERM, SIGUSR1, or create the file STOP in the task's work folder (exit code 130).

    \b
    Examples:
      gristmill train run demo --root runs/demo --set optimizer.lr=1e-3
      gristmill train run demo --root runs/demo --nproc 2
      gristmill train run big.yaml --root /scratch/mill --slurm h100.yaml --dry-run
      gristmill train run demo --root runs/demo --set from.run=3fa1 --set from.step=200 --set from.keep_position=true
    """
    from gristmill.core.manifest import read_manifest
    from gristmill.pipelines import runner
    from gristmill.pipelines.graph import Node, Origin, load_class

    if nproc is not None and profile is not None:
        raise UsageError("both --nproc and --slurm are given", hint="the profile says how many processes a node runs")
    if dry_run and profile is None:
        raise UsageError("--dry-run needs --slurm", hint="`gristmill train plan` shows what a run would do")
    given_by_user = overrides
    if nproc is not None:
        overrides = (*overrides, f"parallel.nproc={nproc}")
    settings, document = _load_run(run, overrides)
    shards = read_manifest(root, "shards")
    if shards is None or not shards.complete:
        raise UsageError(f"{root} has no packed shards", hint="gristmill run RECIPE --root DIR --to shards")
    stage = load_class("train")({"run": settings.model_dump(mode="json", by_alias=True)})
    if profile is not None:
        from gristmill.pipelines.slurmjob import slurm_job
        from gristmill.trainer.train import Train

        assert isinstance(stage, Train)
        script = slurm_job(stage, shards.receipts, root, profile, run, given_by_user, dry_run=dry_run, say=say)
        if script is not None:
            click.echo(script, nl=False)
        return
    node = Node("train", stage, {"run": Origin(document, ())})
    given = {"shards": shards.receipts}
    outcome = runner.run([node], root, [], cluster="inline", retries=0, say=say, given=given)
    sys.exit(outcome.exit_code)


@train.command("compare")
@click.argument("runs", nargs=-1)
@root_option(required=False)
@json_option
def train_compare(runs: tuple[str, ...], root: Path | None, as_json: bool) -> None:
    """Ablations in one table: the settings that differ, then losses per phase and evaluations.

    RUNS are folders of launches, or task ids of the root (or their beginnings); none: all that the root has trained.
    A loss is the mean of the last 10 steps, in nats per token. * marks the best.

    \b
    Examples:
      gristmill train compare --root runs/demo
      gristmill train compare 3fa1 9c02 --root runs/demo --json
    """
    from gristmill.trainer import compare

    table = compare.compare(compare.find_runs(runs, root))
    if as_json:
        print_json(table)
    else:
        click.echo(compare.render(table))


@train.command("ladder")
@click.argument("run", required=False)
@root_option(required=False)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the rungs and ladder.json.")
@click.option("--points", type=click.Path(path_type=Path), help="Fit the runs in this CSV or JSON file; train nothing.")
@click.option(
    "--predict", "targets", multiple=True, metavar="N:D", help="Predict N parameters on D tokens, e.g. 3e9:1e12."
)
@click.option("--flops", multiple=True, type=click.FloatRange(min=0, min_open=True), help="Rows of the IsoFLOP table.")
@set_option
@json_option
def train_ladder(
    run: str | None,
    root: Path | None,
    out: Path | None,
    points: Path | None,
    targets: tuple[str, ...],
    flops: tuple[float, ...],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train small models on shares of a run's data and fit the scaling law L = E + A/N^alpha + B/D^beta.

    The sizes and token counts are the `ladder:` section of RUN. A finished rung is not trained again; the same command
    goes on after a stop. Predicts the run itself, with an interval, and the best size for each number of FLOPs.

    With --points the law is fitted to runs of your own: CSV with the columns parameters, tokens, loss, or JSON.

    \b
    Examples:
      gristmill train ladder demo --root runs/demo --out runs/ladder
      gristmill train ladder --points runs.csv --predict 7e9:1.4e12 --flops 1e23
    """
    from gristmill.trainer import ladder_report
    from gristmill.trainer.ladder_schema import Ladder

    wanted = [_target(text) for text in targets]
    if points is not None:
        if run is not None:
            raise UsageError("both a run and --points are given", hint="--points fits a file and needs no run")
        runs = ladder_report.read_points(points)
        found = ladder_report.report(runs, Ladder(), wanted, flops)
    else:
        if run is None or root is None or out is None:
            raise UsageError("a ladder needs RUN, --root and --out", hint="or --points FILE to fit runs of your own")
        from gristmill.core.tokshards import PackedDataset
        from gristmill.pipelines.tracing import dataset_folder
        from gristmill.trainer import ladder

        settings, _ = _load_run(run, overrides)
        folder = dataset_folder(root)
        found = ladder.climb(
            settings, PackedDataset(folder), folder / "tokenizer.json", out, say, targets=wanted, flops=flops
        )
        runs = ladder.points_of(found["rungs"], found["count"])
    if as_json:
        print_json(found)
    else:
        click.echo(ladder_report.render(found, runs))


def _target(text: str) -> tuple[float, float]:
    """3e9:1e12 -> (3e9, 1e12)."""
    try:
        n, d = (float(part) for part in text.split(":"))
    except ValueError:
        n = d = 0.0
    if not (0 < n < float("inf") and 0 < d < float("inf")):
        raise UsageError(f"{text!r} is not PARAMETERS:TOKENS", hint="write --predict 3e9:1e12")
    return n, d


def _quoted_id(override: str) -> str:
    """from.run=3e84 -> from.run="3e84": the beginning of a task's id may look like a number, and 0012 is not 12."""
    return re.sub(r"\A(\s*from\.run\s*=)\s*([0-9][0-9a-fA-F]*)\s*\Z", r'\1"\2"', override)


def _load_run(run: str, overrides: tuple[str, ...]) -> tuple[TrainRun, Document]:
    from gristmill.core.places import find_yaml
    from gristmill.core.settings import load
    from gristmill.trainer.schema import TrainRun

    path, name = find_yaml(run, "gristmill.trainer")
    return load(path, TrainRun, overrides=[_quoted_id(text) for text in overrides], name=name)
