"""Edits of the data order: what each does, that the past stays, that replay repeats, and files that are refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.core.blocklist import append_blocklist, read_blocklist
from gristmill.core.errors import FormatError, GristmillError, UsageError
from gristmill.core.tokshards import PackedManifest, PackedPhase
from gristmill.trainer.data_schema import Data
from gristmill.trainer.edits import Block, Defer, Edits, Ramp, Skip, edits_at_launch, read_edits, write_edits
from gristmill.trainer.order import DataOrder

DOC = ["0" * 31 + digit for digit in "0123456789abcdef"]


def manifest(*phases: tuple[int, int], lr: str = "stable") -> PackedManifest:
    made = [
        PackedPhase(n, 4, rows, batch, 9, {"phase": lr}, {}) for n, (rows, batch) in zip("abcd", phases, strict=False)
    ]
    return PackedManifest("<u2", 97, {}, "", 0, "", made, [])


def stairs(*steps: tuple[int, int]):
    return Data.model_validate({"batch_ramp": [{"rows": r, "until_samples": u} for r, u in steps]}).batch_ramp


def rows(order: DataOrder) -> list[list[int]]:
    return [[row for _, row in order.rows_of_step(step)] for step in range(1, order.steps + 1)]


def stream(order: DataOrder) -> list[int]:
    return [row for step in rows(order) for row in step]


def test_a_deferred_batch_goes_to_the_end_and_the_others_move_up():
    order = DataOrder(manifest((14, 4), (8, 4)))  # three steps of a (rows 12, 13 are left over), two of b
    edited = order.edited(*order.defer(1, "garbage"))
    assert rows(edited) == [[4, 5, 6, 7], [8, 9, 10, 11], [0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert edited.step_of_row("a", 1) == 3
    assert edited.row_of_sample(9) == ("a", 1)
    assert edited.steps == order.steps
    twice = edited.edited(*edited.defer(1))
    assert rows(twice)[:3] == [[8, 9, 10, 11], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert twice.cannot_defer(2) == "cannot defer rows 0..3 of phase 'a': some were deferred before"


def test_a_skipped_step_is_jumped_over_and_counts():
    order = DataOrder(manifest((12, 4)))
    edited = order.edited(*order.skip(2))
    assert rows(edited) == [[0, 1, 2, 3], [], [8, 9, 10, 11]]
    assert edited.skipped(2) == [("a", row) for row in (4, 5, 6, 7)]
    assert [edited.next_step(after) for after in range(4)] == [1, 3, 3, None]
    assert edited.step_of_row("a", 5) is None
    assert (edited.samples_after(3), edited.tokens_after(2)) == (12, 32)
    part = order.edited(Skip("a", 5, 2, 1))
    assert rows(part)[1] == [4, 7]
    assert part.samples_of_step(2) == [(4, 4), (7, 7)]
    assert part.next_step(1) == 2


def test_a_ramp_from_a_step_on():
    order = DataOrder(manifest((30, 8)), stairs((2, 6)))
    edited = order.edited(Ramp(stairs((4, 20)), 3))
    assert [len(r) for r in rows(order)] == [2, 2, 2, 8, 8, 8]
    assert [len(r) for r in rows(edited)] == [2, 2, 4, 4, 4, 4, 8]
    assert stream(edited) == list(range(28))
    assert [len(r) for r in rows(edited.edited(Ramp((), 4)))] == [2, 2, 4, 8, 8]
    with pytest.raises(UsageError, match="the run has 6 steps"):
        order.edited(Ramp((), 8))


def test_blocks_hold_from_their_first_sample_on():
    order = DataOrder(manifest((12, 4)), edits=Edits((Block((DOC[1], DOC[2]), 7), Block((DOC[1], DOC[3]), 3))))
    assert order.blocked == {DOC[1]: 3, DOC[2]: 7, DOC[3]: 3}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Defer("a", 8, 4, 1), "they are its last batch already"),
        (Defer("a", 0, 4, 2), "some were trained before step 2"),
        (Skip("a", 2, 4, 2), "some were trained before step 2"),
        (Skip("a", 12, 1, 1), "beyond its last whole batch"),
        (Defer("a", 10, 4, 1), "beyond its last whole batch"),
        (Skip("a", 12, 3, 1), "it has rows 0..13"),
        (Skip("c", 0, 1, 1), "no phase of that name"),
        (Defer("c", 0, 1, 1), "no phase of that name"),
    ],
)
def test_edits_that_cannot_be_made_are_refused(edit, message):
    order = DataOrder(manifest((14, 4), (8, 4)))
    assert message in (order.refusal(edit) or "")
    with pytest.raises(UsageError, match=message):
        DataOrder(order.manifest, edits=Edits((edit,)))
    made = order.edited(Skip("a", 4, 4, 1))
    assert "skipped already" in (made.refusal(Defer("a", 6, 4, 1)) or "")
    assert made.cannot_defer(2) == "step 2 has no rows"


@pytest.mark.parametrize("lr", ["decay", "full"])
def test_nothing_is_deferred_in_a_phase_that_decays(lr):
    order = DataOrder(manifest((12, 4), lr=lr))
    assert f"its learning rate is `{lr}`" in (order.cannot_defer(1) or "")
    assert DataOrder(manifest((12, 4))).cannot_defer(1) is None


class Naive:
    """The order as plain lists: phase -> rows at its slots, and what is skipped."""

    def __init__(self, m: PackedManifest) -> None:
        self.slots = {phase.name: list(range(phase.rows)) for phase in m.phases}
        self.gone: set[tuple[str, int]] = set()

    def make(self, edit, order: DataOrder) -> None:
        if isinstance(edit, Ramp):
            return
        moved = list(range(edit.first_row, edit.first_row + edit.rows))
        if isinstance(edit, Skip):
            self.gone |= {(edit.phase, row) for row in moved}
            return
        trained = next(p.samples for p in order.phases if p.phase.name == edit.phase)
        rest = [row for row in self.slots[edit.phase] if row not in moved]
        self.slots[edit.phase] = rest[: trained - len(moved)] + moved + rest[trained - len(moved) :]

    def rows_of_step(self, order: DataOrder, step: int) -> list[tuple[str, int]]:
        span = order.span(step)
        first = span.first_slot + (step - span.first_step) * span.rows
        pairs = [(span.phase.name, row) for row in self.slots[span.phase.name][first : first + span.rows]]
        return [pair for pair in pairs if pair not in self.gone]


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["skip", "defer", "ramp", "rows"]), st.integers(0, 10**6), st.integers(0, 10**6)),
    max_size=12,
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 70), st.integers(6, 9)), min_size=1, max_size=3), ACTIONS)
def test_edits_leave_the_past_and_do_what_plain_lists_do(phases, actions):
    m = manifest(*phases)
    order, naive = DataOrder(m, stairs((2, 5))), Naive(m)
    made = 0
    for kind, a, b in actions:
        if not order.steps:
            break
        step = 1 + a % order.steps
        at = 1 + b % step
        if kind == "ramp":
            edits = (Ramp(stairs((1 + b % 5, 1 + a % 90)), at),)
        elif kind == "rows":
            name, first = order.row_of_sample(a % order.samples)
            edits = ((Skip, Defer)[b % 2](name, first, 1 + b % 5, at),)
        else:
            edits = order.skip(step, "", at) if kind == "skip" else order.defer(step, "", at)
        for edit in edits:
            if order.refusal(edit):
                break
            before, order = order, order.edited(edit)
            naive.make(edit, before)
            made += 1
            for past in range(1, at):  # and so the samples and tokens of all steps before
                assert order.samples_of_step(past) == before.samples_of_step(past)
                assert order.rows_of_step(past) == before.rows_of_step(past)
                assert order.tokens_after(past) == before.tokens_after(past)
            if not isinstance(edit, Ramp):
                assert order.spans == before.spans
    for step in range(1, order.steps + 1):
        assert order.rows_of_step(step) == naive.rows_of_step(order, step)
        assert {order.step_of_row(*pair) for pair in order.rows_of_step(step)} <= {step}
        assert len(order.rows_of_step(step)) + len(order.skipped(step)) == order.span(step).rows
    trained = [pair for step in range(1, order.steps + 1) for pair in order.rows_of_step(step)]
    assert len(set(trained)) == len(trained)
    ran, step = [], 0
    while (step := order.next_step(step)) is not None:
        ran.append(step)
    assert ran == [step for step in range(1, order.steps + 1) if order.rows_of_step(step)]
    again = DataOrder(m, stairs((2, 5)), Edits.from_json(json.loads(json.dumps(order.edits.to_json()))))
    assert len(again.edits) == made
    assert again.edits.digest == order.edits.digest
    assert rows(again) == rows(order)


def test_edits_survive_their_file(tmp_path):
    edits = Edits(
        (Skip("a", 0, 4, 1, "spike"), Defer("a", 4, 4, 2), Block((DOC[3], DOC[1]), 9, "bad"), Ramp(stairs((2, 8)), 3))
    )
    write_edits(tmp_path / "edits.json", edits)
    assert read_edits(tmp_path / "edits.json") == edits
    assert (
        len({edits.digest, Edits().digest, edits.plus(Block((DOC[5],), 0)).digest, Edits(edits.items[::-1]).digest})
        == 4
    )


GOOD = {"kind": "skip", "phase": "a", "first_row": 0, "rows": 4, "at_step": 1, "reason": ""}
BLOCK = {"kind": "block", "documents": [DOC[0]], "from_sample": 0, "reason": ""}


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "skip"},
        {**GOOD, "kind": "drop"},
        {**GOOD, "kind": ["skip"]},
        {**GOOD, "more": 1},
        {**GOOD, "rows": 0},
        {**GOOD, "rows": True},
        {**GOOD, "rows": 1.0},
        {**GOOD, "at_step": 0},
        {**GOOD, "first_row": 1 << 70},
        {**GOOD, "first_row": -1},
        {**GOOD, "phase": 3},
        {**GOOD, "reason": "x" * 1001},
        {**BLOCK, "documents": []},
        {**BLOCK, "documents": [DOC[0], DOC[0]]},
        {**BLOCK, "documents": [DOC[0].upper().replace("0", "A")]},
        {**BLOCK, "documents": DOC[0]},
        {"kind": "ramp", "steps": [{"rows": 2}], "at_step": 1, "reason": ""},
        {"kind": "ramp", "steps": 5, "at_step": 1, "reason": ""},
        "skip",
        None,
    ],
)
def test_bad_edits_are_refused_with_their_number(bad, tmp_path):
    assert Edits.from_json([GOOD, BLOCK])
    with pytest.raises(FormatError, match="edit 1: "):
        Edits.from_json([GOOD, bad])
    path = tmp_path / "edits.json"
    path.write_text(json.dumps({"format": "gristmill-edits-1", "edits": [bad]}))
    with pytest.raises(FormatError, match=r"edits\.json: edit 0"):
        read_edits(path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": "other", "edits": []}', '{"format": "gristmill-edits-1"}'])
def test_files_that_hold_no_edits_are_refused(text, tmp_path):
    (tmp_path / "edits.json").write_text(text)
    with pytest.raises(FormatError):
        read_edits(tmp_path / "edits.json")
    with pytest.raises(UsageError, match="cannot read"):
        read_edits(tmp_path / "none.json")


def test_a_blocklist_is_read_and_grows(tmp_path):
    path = tmp_path / "block.txt"
    path.write_text(f'# made by hand\n\n{DOC[1]}\n  {DOC[2]}  # garbage\n{{"id": "{DOC[3]}", "loss": 9.5}}\n{DOC[1]}')
    assert read_blocklist(path) == (DOC[1], DOC[2], DOC[3])
    assert append_blocklist(path, [(DOC[3], "again"), (DOC[4], "loss 7.1\nbeside 2.0"), (DOC[4], "")]) == 1
    assert read_blocklist(path) == (DOC[1], DOC[2], DOC[3], DOC[4])
    assert append_blocklist(tmp_path / "new.txt", [(DOC[0], "")]) == 1
    assert read_blocklist(tmp_path / "new.txt") == (DOC[0],)


@pytest.mark.parametrize(
    "line", ["0123", DOC[0] + "0", DOC[0][:-1] + "G", "{", '{"url": "x"}', "[1]", "x" * 70_000, '{"id": 5}', "\udcff"]
)
def test_a_bad_line_of_a_blocklist_is_named(line, tmp_path):
    path = tmp_path / "block.txt"
    path.write_bytes(f"{DOC[0]}\n# x\n{line}\n".encode("utf-8", "surrogateescape"))
    with pytest.raises(FormatError, match=r"block\.txt:3"):
        read_blocklist(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_blocklist(tmp_path / "none.txt")


def test_a_launch_begins_with_the_files_and_goes_on_with_the_checkpoint(tmp_path):
    known = Edits((Skip("a", 0, 4, 1), Block((DOC[1],), 4)))
    write_edits(tmp_path / "edits.json", known)
    (tmp_path / "block.txt").write_text(f"{DOC[1]}\n{DOC[2]}\n")
    data = Data(blocklist=str(tmp_path / "block.txt"), edits=str(tmp_path / "edits.json"))
    begun = edits_at_launch(data, None)
    assert begun == known.plus(Block((DOC[2],), 0, "data.blocklist"))
    assert edits_at_launch(data, begun, step=3, sample=12, ramp=()) == begun  # the same command
    append_blocklist(tmp_path / "block.txt", [(DOC[3], "")])
    assert edits_at_launch(data, begun, step=3, sample=12).items[-1] == Block((DOC[3],), 12, "data.blocklist")
    with pytest.raises(GristmillError):
        edits_at_launch(Data(blocklist=str(tmp_path / "none")), None)


def test_a_ramp_changed_on_resume_keeps_the_steps_done(tmp_path):
    m = manifest((60, 8))
    old, new = stairs((2, 20)), stairs((4, 30))
    begun = DataOrder(m, old)
    edits = edits_at_launch(Data(batch_ramp=new), Edits(), step=4, sample=8, ramp=old)
    resumed = DataOrder(m, new, edits)
    assert rows(resumed)[:4] == rows(begun)[:4]
    assert len(rows(resumed)[4]) == 4
    assert stream(resumed)[:50] == stream(begun)[:50]
    again = edits_at_launch(Data(batch_ramp=()), edits, step=6, sample=16, ramp=new)
    assert rows(DataOrder(m, (), again))[:6] == rows(resumed)[:6]
    assert len(rows(DataOrder(m, (), again))[6]) == 8
