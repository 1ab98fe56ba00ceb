"""Ladders: which small runs a recipe gives, that each is the whole run in small, and a real one that predicts a run."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

import grammar_data as text  # noqa: E402
from click.testing import CliRunner  # noqa: E402

from gristmill.core.errors import Stopped, UsageError  # noqa: E402
from gristmill.core.tokshards import PackedDataset  # noqa: E402
from gristmill.pipelines.cli.main import cli  # noqa: E402
from gristmill.trainer import ladder, ladder_report  # noqa: E402
from gristmill.trainer.ladder_schema import Ladder, Size  # noqa: E402
from gristmill.trainer.order import DataOrder  # noqa: E402
from gristmill.trainer.schedule import LearningRate  # noqa: E402
from gristmill.trainer.schema import TrainRun  # noqa: E402

SMALL = {"layers": 2, "hidden": 48, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 120}


def settings(section, **changes):
    data = {
        "gristmill_train": 1,
        "mixture": "toy",
        "model": SMALL,
        "optimizer": {"lr": 6e-3},
        "micro_batch_rows": 16,
        "device": "cpu",
        "log_every": 1000,
        "ladder": section,
    }
    return TrainRun.model_validate(data | changes)


def phases(steps, rows=8):
    warm = {"phase": "stable", "warmup_steps": steps // 10}
    return [
        ("main", 48, rows, steps * 4 // 5, warm),
        ("anneal", 48, rows, steps // 5, {"phase": "decay", "shape": "1-sqrt", "to": 0.0}),
    ]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder") / "dataset"
    return text.write_dataset(folder, phases(100), text.grammar_documents(2), spare=8)


def rates(manifest, run):
    """The learning rate of every step as a share of its peak."""
    rate = LearningRate(run.optimizer.lr, run.schedule, DataOrder(manifest, run.data.batch_ramp))
    return [rate.lr(step) / run.optimizer.lr for step in range(1, rate.clock.steps + 1)]


def at_fifths(values):
    return [values[len(values) * i // 5 - 1] for i in range(1, 6)]


@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"kind": "cosine", "warmup_steps": 10, "final_ratio": 0.1},
        {"kind": "multi-step", "warmup_tokens": 4000, "milestones": [{"tokens": 20_000, "ratio": 0.3}]},
    ],
)
def test_a_rung_is_the_whole_run_in_small(dataset, schedule):
    run = settings({"shares": [0.25, 0.5], "sizes": [{"width": 0.5}, {}], "heldout_rows": 8}, schedule=schedule)
    rungs = ladder.rungs_of(run, dataset.manifest)
    assert [r.tokens for r in rungs] == [25 * 384, 50 * 384] * 2
    whole = rates(ladder.split(dataset.manifest, 8)[0], run)
    for rung in rungs:
        order = DataOrder(rung.manifest)
        share = rung.tokens / (100 * 384)
        assert [p.rows for p in rung.manifest.phases] == [round(640 * share), round(160 * share)]
        own = rates(rung.manifest, rung.run)
        assert at_fifths(own) == pytest.approx(at_fifths(whole), abs=0.12)
        assert own[0] < 1, "it warms up"
        assert own[-1] < 0.4 < whole[len(own) - 1], "the whole run stopped there has not decayed"
        full = DataOrder(dataset.manifest)
        for mine, its in zip(order.phases, full.phases, strict=True):
            assert order.rows_of_step(mine.first_step) == full.rows_of_step(its.first_step)


def test_a_decay_in_tokens_keeps_to_its_stage(tmp_path):
    stable = [("main", 48, 8, 60, {}), ("tail", 32, 8, 40, {})]
    made = text.write_dataset(tmp_path / "d", stable, text.grammar_documents(5))
    decay = {"decay_tokens": 40 * 8 * 32, "warmup_steps": 10, "rewarm": []}
    run = settings({"shares": [0.25, 0.6], "sizes": [{}], "heldout_rows": 16}, schedule=decay)
    for rung in ladder.rungs_of(run, made.manifest):
        rate = LearningRate(1.0, rung.run.schedule, rung.manifest)
        edge = DataOrder(rung.manifest).phases[1].first_step
        assert rate.lr(edge - 1) == 1.0
        assert rate.lr(edge + 2) < 1.0


def test_everything_in_steps_or_tokens_is_cut(dataset):
    run = settings(
        {"shares": [0.25], "sizes": [{}], "heldout_rows": 8},
        optimizer={"name": "ademamix", "lr": 1e-3, "ademamix": {"warmup_steps": 40}},
        data={"batch_ramp": [{"rows": 4, "until_tokens": 8000}]},
        stages={"main": {"lr": {"phase": "stable", "warmup_steps": 20}}},
        max_steps=7,
        average={"kind": "ema"},
        gallery={"prompts": ["a"]},
        parallel={"tp": 2, "nproc": 2},
    )
    small = ladder.rungs_of(run, dataset.manifest)[0].run
    assert small.optimizer.ademamix.warmup_steps == 10
    assert small.data.batch_ramp[0].until_tokens == 2000
    assert small.stages["main"].lr == {"phase": "stable", "warmup_steps": 5}
    assert small.max_steps is None
    assert small.average.kind != "ema"
    assert small.gallery.prompts == []
    assert (small.parallel.tp, small.parallel.nproc) == (1, 2)
    assert small.ladder is None


def test_sizes_and_their_learning_rates(dataset):
    base = settings(None).model
    half = ladder.sized(base, Size(width=0.5, depth=2))
    assert (half.hidden, half.ffn, half.heads, half.kv_heads, half.head_dim, half.layers) == (24, 64, 2, 1, 16, 4)
    assert ladder.sized(base, Size(width=0.3, model={"heads": 3})).heads == 3
    with pytest.raises(UsageError, match="makes no model"):
        ladder.sized(base, Size(model={"kv_heads": 3}))
    for width in (0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.7, 3.0):
        ladder.sized(base, Size(width=width))
    counts = ladder.count(base, text.VOCAB)
    assert counts["total"] - counts["non_embedding"] == 128 * 48
    untied = base.model_copy(update={"tie_embeddings": False})
    assert ladder.count(untied, text.VOCAB)["non_embedding"] == counts["non_embedding"]

    sizes = [{"width": 0.5}, {}, {"width": 2.0, "lr": 1e-3}]
    rungs = ladder.rungs_of(settings({"sizes": sizes, "shares": [0.5]}), dataset.manifest)
    small, same, given = (r.run.optimizer.lr for r in rungs)
    assert small == pytest.approx(6e-3 * (rungs[1].parameters["total"] / rungs[0].parameters["total"]) ** 0.25)
    assert same == pytest.approx(6e-3)
    assert given == 1e-3


def test_token_counts_in_three_ways_and_what_is_refused(dataset):
    one = {"sizes": [{}], "heldout_rows": 8}
    count = ladder.count(settings(None).model, text.VOCAB)["total"]
    for section in ({"tokens": [9600]}, {"tokens_per_parameter": [9600 / count]}, {"shares": [0.25]}):
        assert [r.tokens for r in ladder.rungs_of(settings(one | section), dataset.manifest)] == [9600]
    assert len(ladder.rungs_of(settings(None), dataset.manifest)) == 12
    for section, word in (
        (one | {"tokens": [10**6]}, "the dataset has"),
        (one | {"tokens": [9600, 9601]}, "rounded to whole steps"),
        (one | {"heldout_rows": 799, "shares": [0.5]}, "leave no batch"),
    ):
        with pytest.raises(UsageError, match=word):
            ladder.rungs_of(settings(section), dataset.manifest)
    for section in ({"tokens": [1], "shares": [0.5]}, {"shares": [1.5]}, {"tokens": [5, 5]}, {"flops": [0]}):
        with pytest.raises(ValueError, match=r"hint|differ"):
            Ladder.model_validate(section)


def test_rows_held_out_are_trained_by_no_rung(dataset):
    rest, rows = ladder.split(dataset.manifest, 40)
    assert len(rows) == len(set(rows)) == 40
    assert {name for name, _ in rows} == {"main", "anneal"}
    trained = {DataOrder(rest).row_of_sample(i) for i in range(DataOrder(rest).samples)}
    assert not trained & set(rows)
    rungs = ladder.rungs_of(settings({"shares": [1.0], "heldout_rows": 40}), dataset.manifest)
    assert max(r.tokens for r in rungs) == DataOrder(rest).tokens


def test_the_command_fits_a_file_of_runs(tmp_path):
    rows = ["parameters,tokens,loss"]
    rows += [f"{n},{d},{1.7 + 400 / n**0.34 + 410 / d**0.28}" for n in (1e7, 1e8, 1e9) for d in (1e9, 1e10, 1e11)]
    (tmp_path / "runs.csv").write_text("\n".join(rows))
    line = ["train", "ladder", "--points", str(tmp_path / "runs.csv"), "--predict", "7e10:1.4e12"]
    got = CliRunner().invoke(cli, [*line, "--flops", "1e23", "--json"])
    assert got.exit_code == 0, got.output
    found = json.loads(got.stdout)
    assert found["law"]["alpha"]["value"] == pytest.approx(0.34, abs=1e-3)
    assert found["predictions"][0]["loss"]["value"] == pytest.approx(1.7 + 400 / 7e10**0.34 + 410 / 1.4e12**0.28)
    assert [row["flops"] for row in found["isoflop"]] == [1e23]
    text_out = CliRunner().invoke(cli, line)
    assert "70B parameters on 1.4T tokens" in text_out.stdout
    for bad, word in ((["--predict", "7e10"], "PARAMETERS:TOKENS"), (["demo"], "needs no run")):
        got = CliRunner().invoke(cli, [*line, *bad])
        assert isinstance(got.exception, UsageError)
        assert word in str(got.exception)


@pytest.mark.slow
def test_a_stopped_ladder_goes_on_and_trains_no_rung_twice(dataset, tmp_path, monkeypatch):
    run = settings({"shares": [0.1, 0.2], "sizes": [{"width": 0.2}], "heldout_rows": 8})
    tokenizer = dataset.folder / "tokenizer.json"
    launched = []
    real = ladder.launch_training

    def stops_at_second(*args):
        launched.append(args[3].name)
        if len(launched) == 2:
            raise Stopped("a signal")
        real(*args)

    monkeypatch.setattr(ladder, "launch_training", stops_at_second)
    with pytest.raises(Stopped):
        ladder.run_rungs(run, dataset, tokenizer, tmp_path, lambda text: None)
    results = ladder.run_rungs(run, dataset, tokenizer, tmp_path, lambda text: None)
    again = ladder.run_rungs(run, dataset, tokenizer, tmp_path, lambda text: None)
    assert launched == [results[0]["name"], results[1]["name"], results[1]["name"]]
    assert results == again
    assert results[0]["loss"] > results[1]["loss"]
    assert results[0]["training_loss"] == pytest.approx(results[0]["loss"], abs=0.5)
    slower = run.model_copy(update={"optimizer": run.optimizer.model_copy(update={"lr": 1e-3})})
    with pytest.raises(UsageError, match="other settings"):
        ladder.run_rungs(slower, dataset, tokenizer, tmp_path, lambda text: None)
    # what a rung trained on is the dataset's own rows
    small = PackedDataset(tmp_path / results[0]["name"] / "dataset")
    assert not small.verify()
    assert (small.row("anneal", 3)[0] == dataset.row("anneal", 3)[0]).all()


@pytest.mark.slow
def test_a_real_ladder_predicts_a_run_that_it_has_not_seen(tmp_path):
    """Nine runs of 3k to 28k parameters on 77k to 307k tokens, then one of 59k on 467k: seen 0.3 % off, asked for 2 %."""
    dataset = text.write_dataset(tmp_path / "dataset", phases(1200), text.chain_documents(3), spare=64)
    tokenizer = dataset.folder / "tokenizer.json"
    sizes = [{"width": 1 / 6}, {"width": 1 / 3}, {"width": 2 / 3}]
    said = []
    run = settings({"sizes": sizes, "shares": [1 / 6, 1 / 3, 2 / 3], "heldout_rows": 128})
    found = ladder.climb(run, dataset, tokenizer, tmp_path / "out", said.append)
    points = ladder.points_of(found["rungs"], "total")
    loss = [[p["loss"] for p in points[i : i + 3]] for i in (0, 3, 6)]
    for longer in (*loss, *zip(*loss, strict=True)):  # more tokens help every size, more parameters every token count
        assert longer[0] > longer[1] > longer[2]
    assert max(map(abs, found["residuals"])) < 0.03

    big = settings({"sizes": [{}], "shares": [1.0], "heldout_rows": 128})
    truth = ladder.run_rungs(big, dataset, tokenizer, tmp_path / "big", said.append)[0]["loss"]
    predicted = found["predictions"][0]
    assert predicted["parameters"] == ladder.count(run.model, text.VOCAB)["total"]
    print(ladder_report.render(found, points), f"\ntrained: {truth:.4f}, entropy {text.chain_entropy():.4f}")
    assert predicted["loss"]["low"] < truth < predicted["loss"]["high"]
    assert predicted["loss"]["value"] == pytest.approx(truth, rel=0.02)
    assert truth < min(map(min, loss)) - 0.03, "it is an extrapolation"
    # the ends of documents and their first letters cost more than the chain
    assert found["law"]["E"]["low"] < text.chain_entropy() < found["law"]["E"]["high"] + 0.05

    written = json.loads((tmp_path / "out" / "ladder.json").read_text())
    assert written["law"] == found["law"]
    assert ladder_report.read_points(tmp_path / "out" / "ladder.json") == [
        {name: float(value) for name, value in p.items()} for p in points
    ]
