"""The hash chain: what changes a link, and that a stage's shards, tasks and cursors outlive edits of the stages behind it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner
from mix_line import MIXTURE, FakeTokens, folder_of, line

from gristmill.core.errors import UsageError
from gristmill.core.manifest import write_manifest
from gristmill.core.stage import Counters, Outbox, Receipt, Task
from gristmill.core.tokshards import PackedDataset
from gristmill.mixes.chain import links
from gristmill.mixes.schema import Mixture
from gristmill.pipelines.cli.main import cli
from gristmill.trainer.branch import check_position
from gristmill.trainer.consumed import consumed
from gristmill.trainer.order import DataOrder
from gristmill.trainer.resume import check_resume
from gristmill.trainer.schema import TrainRun
from gristmill.trainer.stage_settings import staged_manifest

Edit = Callable[[dict[str, Any]], Any]
CONTENTS = {"english": "e", "other": "o", "idle": "i"}


def edited(*edits: Edit) -> dict[str, Any]:
    changed = copy.deepcopy(MIXTURE)
    for edit in edits:
        edit(changed)
    return changed


def chain(
    data: dict[str, Any], contents: dict[str, str] = CONTENTS, tokenizer: str = "t", version: int = 1
) -> list[str]:
    mixture = Mixture.model_validate(data)
    known = {name: content for name, content in contents.items() if name in mixture.sources}
    return [link.sha256 for link in links(mixture, tokenizer, known, version)]


@pytest.mark.parametrize(
    ("edit", "same"),
    [
        (lambda m: m["stages"][0].update(lr={"phase": "stable", "warmup_steps": 9}), 2),
        (lambda m: m["stages"][1].update(lr={"phase": "full", "shape": "cosine"}), 2),
        (lambda m: m["sources"]["english"].update(loss_weight=0.5, group="web"), 2),
        (lambda m: m["sources"].update(idle={"path": "x/*"}), 2),
        (lambda m: m["sources"]["english"].update(max_epochs=9), 2),
        (lambda m: m["stages"][0].update(until=64), 2),
        (lambda m: m["stages"].append({**m["stages"][1], "name": "more"}), 2),
        (lambda m: m["stages"][1]["mix"].update(other={"epochs": 0.3}), 1),
        (lambda m: m["stages"][1].update(seq_len=12), 1),
        (lambda m: m["stages"][1].update(pack="concat"), 1),
        (lambda m: m["stages"][1].update(name="cool"), 1),
        (lambda m: m["stages"].pop(), 1),
        (lambda m: m["stages"][0]["mix"].update(other={"epochs": 0.5}), 0),
        (lambda m: m["sources"]["other"].update(filter="language == 'de'"), 0),
        (lambda m: m["sources"]["other"].update(rehydrate={2: 2}), 0),
        (lambda m: m["heldout"]["per_source"].update(docs=0.2), 0),
        (lambda m: m.update(seed=12), 0),
        (lambda m: m.update(defaults={"max_docs_per_row": 7}), 0),
    ],
)
def test_which_fields_make_rows(edit: Edit, same: int) -> None:
    base, other = chain(edited()), chain(edited(edit))
    assert [a == b for a, b in zip(base, other, strict=False)] == [i < same for i in range(min(len(base), len(other)))]


def test_content_tokenizer_and_version_count() -> None:
    base = chain(edited())
    assert not set(base) & set(chain(edited(), CONTENTS | {"other": "changed"}))
    idle = edited(lambda m: m["sources"].update(idle={}))
    assert chain(idle, CONTENTS | {"idle": "changed"}) == base  # no stage uses it
    assert not set(base) & set(chain(edited(), tokenizer="u"))
    assert not set(base) & set(chain(edited(), version=2))
    late = edited(lambda m: m["stages"][0].update(mix={"english": {"epochs": 1.4}}))
    assert chain(late, CONTENTS | {"other": "changed"})[0] == chain(late)[0]
    assert chain(late, CONTENTS | {"other": "changed"})[1] != chain(late)[1]
    rescaled = edited(lambda m: m.update(defaults={"on_short": "rescale"}))
    limited = edited(lambda m: m.update(defaults={"on_short": "rescale", "max_epochs": 3}))
    assert chain(rescaled)[0] != chain(limited)[0]  # there limits decide rows


LATER: Edit = lambda m: m["stages"][1].update(seq_len=12, mix={"english": {"epochs": 0.2}, "other": {"epochs": 0.7}})  # noqa: E731
EARLIER: Edit = lambda m: m["stages"][0]["mix"].update(other={"epochs": 0.5})  # noqa: E731


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, list[Receipt]], PackedDataset]]:
    out = {}
    for name, edits in (("base", []), ("later", [LATER]), ("earlier", [EARLIER]), ("same", [])):
        root = tmp_path_factory.mktemp(name)
        done = line(root, edited(*edits), shard_bytes=1500 if name == "same" else 700)
        out[name] = (root, done, PackedDataset(folder_of(done)))
    return out


def test_a_later_edit_leaves_shards_tasks_and_cursors(world: Any) -> None:
    (_, base, one), (_, later, two) = world["base"], world["later"]
    assert [p.chain == q.chain for p, q in zip(one.manifest.phases, two.manifest.phases, strict=True)] == [True, False]
    assert one.manifest.phases[0] == two.manifest.phases[0]  # the shards' digests too
    tasks = [{r.key: r.task for r in done["shards.write"] if r.key.startswith("warm/")} for done in (base, later)]
    assert tasks[0] == tasks[1]
    locks = [orjson.loads((d.folder / "mix.lock.json").read_bytes()) for d in (one, two)]
    cursors = [{n: s["cursor"] for n, s in lock["phases"][0]["sources"].items()} for lock in locks]
    assert cursors[0] == cursors[1]
    assert locks[0]["phases"][0]["chain"] == one.manifest.phases[0].chain
    assert world["earlier"][2].manifest.phases[0].chain != one.manifest.phases[0].chain


def test_a_budget_of_what_is_held_out_ties_every_stage_to_every_source() -> None:
    """With `max_tokens` a cluster is held out only where it fits all its sources' budgets, also those of later stages."""
    budget: Edit = lambda m: m["heldout"]["per_source"].update(max_tokens=500)  # noqa: E731
    another: Edit = lambda m: m["sources"].update(idle={"path": "x/*"})  # noqa: E731
    base = chain(edited(budget, another))
    assert not set(base) & set(chain(edited(budget, another), CONTENTS | {"idle": "changed"}))
    assert not set(base) & set(chain(edited(budget, lambda m: m["sources"].update(idle={"path": "y/*"}))))
    assert chain(edited(another)) == chain(edited(another), CONTENTS | {"idle": "changed"})


def test_other_tokens_behind_the_same_documents_make_another_chain(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FakeTokens.run

    def edited_text(self: FakeTokens, task: Task, out: Outbox) -> Counters:
        counters = plain(self, task, out)
        path = out.path("tokens.bin")
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        path.write_bytes(data)
        return counters

    monkeypatch.setattr(FakeTokens, "run", edited_text)
    found = PackedDataset(folder_of(line(tmp_path, edited(), shard_bytes=700))).manifest
    base = world["base"][2].manifest
    assert [s["sha256"] for s in found.stores] == [s["sha256"] for s in base.stores]
    assert [p.chain == q.chain for p, q in zip(found.phases, base.phases, strict=True)] == [False, False]


def state_of(dataset: PackedDataset, step: int, run: TrainRun) -> dict[str, Any]:
    order = DataOrder(staged_manifest(dataset.manifest, run.stages))
    samples = order.samples_after(step)
    return {
        "step": step,
        "samples": samples,
        "dataset_digest": dataset.manifest.digest,
        "vocab_size": dataset.manifest.vocab_size,
        "consumed": consumed(order, samples),
        "run": run.model_dump(mode="json"),
    }


RUN = TrainRun.model_validate(
    {"gristmill_train": 1, "mixture": "x", "model": {"preset": "tiny"}, "optimizer": {"lr": 1e-3}}
)


def resume(state: dict[str, Any], dataset: PackedDataset) -> list[str]:
    said: list[str] = []
    check_resume(RUN, dataset.manifest, DataOrder(dataset.manifest), state, said.append)
    return said


def test_a_run_goes_on_over_a_later_edit(world: Any) -> None:
    base, later = world["base"][2], world["later"][2]
    steps = DataOrder(base.manifest).phases[0].last_step
    for step in (1, steps):
        state = state_of(base, step, RUN)
        assert [c[0] for c in state["consumed"]] == ["warm"]
        assert "stages trained so far are the same" in resume(state, later)[0]
        check_position(state, later.manifest, DataOrder(later.manifest))
        assert resume(state, base) == []
        assert len(resume(state, world["same"][2])) == 1  # other shard sizes: other digest, the same rows
    state = state_of(base, steps + 1, RUN)
    with pytest.raises(UsageError) as caught:
        resume(state, later)
    assert "E120 stage `anneal` is edited, and it is trained on" in caught.value.message
    assert "stage.seq_len 24 -> 12" in caught.value.message
    assert "stage.mix.other.epochs 0.5 -> 0.7" in caught.value.message


def test_an_edit_of_a_trained_stage_is_refused(world: Any) -> None:
    state = state_of(world["base"][2], 1, RUN)
    earlier = world["earlier"][2]
    with pytest.raises(UsageError, match=r"E120 stage `warm` is edited.*stage\.mix\.other\.epochs 0\.6 -> 0\.5"):
        resume(state, earlier)
    with pytest.raises(UsageError, match=r"from\.keep_position: .*E120 stage `warm`|step 1 of this run"):
        check_position(state, earlier.manifest, DataOrder(earlier.manifest))
    old = {k: v for k, v in state.items() if k != "consumed"}  # a checkpoint from before there were chains
    with pytest.raises(UsageError, match="trained on dataset"):
        resume(old, world["later"][2])


def test_the_plan_names_the_line_of_an_edit(world: Any, tmp_path: Path) -> None:
    root, done, base = world["base"]
    for stage in ("tokens", "tokenizer"):
        write_manifest(root, stage, done[stage], True)
    marker = root / "stages" / "train" / "abc" / "work" / "checkpoints" / "00000002" / "state.json"
    marker.parent.mkdir(parents=True)
    marker.write_bytes(orjson.dumps(state_of(base, 2, RUN)))
    file = tmp_path / "mix.yaml"

    def plan(data: dict[str, Any], *more: str) -> Any:
        file.write_text("\n".join(f"{k}: {json.dumps(v)}" for k, v in data.items()))  # a key a line
        return CliRunner().invoke(cli, ["mix", "plan", str(file), "--root", str(root), *more])

    assert plan(edited()).exit_code == 0
    assert plan(edited(LATER)).exit_code == 0
    refused = plan(edited(EARLIER))
    (problem,) = refused.exception.problems
    assert (problem.line, problem.path) == (5, "stages[0].mix.other.epochs")
    assert problem.message == "E120 stage `warm` is trained on: stage.mix.other.epochs 0.6 -> 0.5 (run abc, step 2)"
    assert plan(edited(EARLIER), "--new-run").exit_code == 0
    renamed = plan(edited(lambda m: m["stages"][0].update(name="hot")))
    assert "is trained on as `warm`, and is `hot` now" in str(renamed.exception)
    seed = plan(edited(lambda m: m.update(seed=3)))
    assert [(p.line, p.path) for p in seed.exception.problems] == [(2, "seed")]
    assert plan(edited(lambda m: m["sources"]["other"].update(loss_weight=2))).exit_code == 0


def test_a_branch_trains_its_parents_shards_up_to_its_place(world: Any, tmp_path: Path) -> None:
    base = world["base"][2]
    branch = edited(
        lambda m: m.update(stages=[{**m["stages"][0], "until": 192}, {**m["stages"][0], "name": "try", "mix": {"other": {"epochs": 0.3}}}])
    )  # fmt: skip
    done = line(tmp_path, branch)
    dataset = PackedDataset(folder_of(done))
    parent, own = dataset.manifest.phases
    assert parent.until_rows == 12
    assert parent.chain == base.manifest.phases[0].chain
    assert parent.shards == base.manifest.phases[0].shards
    state = state_of(base, 3, RUN)
    staged = staged_manifest(dataset.manifest, {})
    order = DataOrder(staged)
    assert [(s.phase.name, s.steps) for s in order.phases] == [("warm", 3), ("try", own.rows // 4)]
    check_position(state, dataset.manifest, order)  # the parent's checkpoint at its place is where the branch begins
    with pytest.raises(UsageError, match="E120 stage `warm` is trained on up to sample 16, and ends at 12 now"):
        check_position(state_of(base, 4, RUN), dataset.manifest, order)
