"""Guards of a run: judge each step on the device before it is applied, then say what to do and keep a record of it.

The judgement is a 0-dim bool tensor that the optimizer selects by, so no host waits for it: of two finite numbers that are
the same on every rank (the global loss and gradient norm) every rank concludes the same. Only applied steps enter the
window. Whatever is not applied becomes an edit of the data order, so a run that begins with the final edits repeats the
run bit for bit, without a guard that acts.

Tokens of a step that is left out count for the schedule: its step number passes, and with it tokens and learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gristmill.core.errors import GristmillError
from gristmill.core.tokshards import PackedDataset
from gristmill.trainer import pieces
from gristmill.trainer.edits import FILE as EDITS_FILE
from gristmill.trainer.edits import Block, Defer, Edit, Edits, Skip, edit_to_json
from gristmill.trainer.events import FILE, Event, EventLog, row_ranges
from gristmill.trainer.guard_schema import Guards
from gristmill.trainer.losses_ring import LossRing
from gristmill.trainer.order import DataOrder

NAMES = ("loss", "grad_norm")
VALUES = 4 * len(NAMES) + 1  # numbers of a judgement: value, threshold, mean and std of each, and steps in the window


class Ranks(Protocol):
    """What a guard needs of trainer.parallel.mesh.World."""

    @property
    def leads(self) -> bool: ...
    @property
    def dp_rank(self) -> int: ...
    @property
    def tp_rank(self) -> int: ...


class Judge:
    """The window on the device: losses and norms of the last applied steps, and what they say of the next one."""

    def __init__(self, settings: Guards, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.acts = settings.on_spike != "warn"
        self.window_MW = torch.zeros(len(NAMES), settings.window, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)  # steps accepted so far
        self._slots_W = torch.arange(settings.window, device=device)
        self._watched_M = torch.tensor([name in settings.watch for name in NAMES], device=device)

    @torch.no_grad()
    def __call__(self, loss: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        """(ok, numbers): 0-dim bool, whether the update may be applied; and float64 of shape (VALUES,).

        A spike lies above mean + sigma x std, the sample's standard deviation over the window, which then holds at least
        `min_steps` steps. The window takes the step in when it is ok.
        """
        now_M = torch.stack([loss.detach().double(), norm.detach().double()])
        filled_W = self._slots_W < self.count
        n = filled_W.sum()
        mean_M = (self.window_MW * filled_W).sum(1) / n.clamp(min=1)
        away_MW = (self.window_MW - mean_M[:, None]) * filled_W
        std_M = (away_MW.square().sum(1) / (n - 1).clamp(min=1)).sqrt()
        judged_M = self._watched_M & (n >= self.settings.min_steps)
        limit_M = torch.where(judged_M, mean_M + self.settings.sigma * std_M, torch.inf)
        ok = now_M.isfinite().all()
        if self.acts:
            ok = ok & (now_M <= limit_M).all()
        here_W = (self._slots_W == self.count % self.settings.window) & ok
        self.window_MW = torch.where(here_W, now_M[:, None], self.window_MW)
        self.count = self.count + ok
        return ok, torch.cat([now_M, limit_M, mean_M, std_M, n.double()[None]])

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers. Values stay in their slots: a sum in another order would be another sum."""
        count = int(self.count)
        filled = min(count, self.settings.window)
        return {"count": count, **{k: v[:filled] for k, v in zip(NAMES, self.window_MW.tolist(), strict=True)}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave. For a window of another size the latest values are kept."""
        count, columns = int(state["count"]), [list(state[name]) for name in NAMES]
        size, old = self.settings.window, len(columns[0])
        if old != min(count, size):
            turn = count % old if old and count > old else 0
            columns = [(c[turn:] + c[:turn])[-size:] for c in columns]
            count = len(columns[0])
        window_MW = torch.zeros(len(NAMES), size, dtype=torch.float64)
        window_MW[:, : len(columns[0])] = torch.tensor(columns, dtype=torch.float64)
        self.window_MW, self.count = window_MW.to(self.device), torch.tensor(count, device=self.device)


@dataclass(frozen=True)
class Verdict:
    """What a guard says of a step. `edits` are to be made to the data order before the run goes on.

    action: warn (the step counts), skip_update (it is left out), defer (the same step runs again with other rows),
    rewind (restore the checkpoint after `to_step`, 0: the seed, then edit), stop.
    """

    step: int
    action: str
    cause: str
    reason: str
    value: float
    threshold: float
    mean: float
    std: float
    steps_judged: int
    applied: bool
    edits: tuple[Edit, ...] = ()
    to_step: int | None = None


@dataclass
class _Counts:
    """What outlives a rewind: events so far, reports among them, and the steps at which a guard changed the run."""

    events: int = 0
    reports: int = 0
    acted: list[int] = field(default_factory=list)


class Guard:
    """The guards of one rank. Every rank has one, and all decide the same.

    out: the run's folder. newest: the step of the newest complete checkpoint before a step, 0 if there is none; ranks must
    agree on it. state: what `state_dict` gave when the checkpoint that the run resumes from was made.
    """

    def __init__(
        self,
        settings: Guards,
        dataset: PackedDataset,
        out: Path,
        ranks: Ranks,
        device: torch.device,
        newest: Callable[[int], int],
        say: Callable[[str], None] = lambda text: None,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.settings, self.dataset, self.out, self.ranks = settings, dataset, out, ranks
        self.newest, self.say = newest, say
        self.judge = Judge(settings, device)
        self.ring = LossRing(settings.ring_steps if ranks.tp_rank == 0 else 0)
        self.pieces = pieces.Pieces(dataset)
        self._counts = _Counts()
        if state is not None:
            self.judge.load_state_dict(state["window"])
            self._counts = _Counts(int(state["events"]), int(state["reports"]), [int(n) for n in state["acted"]])
        self._log: EventLog | None = None
        if ranks.leads:
            self._log = EventLog(out / FILE, self._counts.events)
            pieces.remove_reports(out, self._counts.events)

    def state_dict(self) -> dict[str, Any]:
        """JSON data for the checkpoint, the same on every rank."""
        counts = self._counts
        return {
            "window": self.judge.state_dict(),
            "events": counts.events,
            "reports": counts.reports,
            "acted": list(counts.acted),
        }

    def rewound(self, state: dict[str, Any] | None) -> None:
        """The run went back to a checkpoint with this state (None: to its beginning). Counts and events stay."""
        if state is None:
            self.judge = Judge(self.settings, self.judge.device)
        else:
            self.judge.load_state_dict(state["window"])
        self.ring.clear()

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    def after(self, step: int, numbers: Sequence[float], order: DataOrder) -> Verdict | None:
        """Once the step is done: what to do about it, None when all is well. `numbers` are the judge's, on the host.

        Writes the event and, for each rank, the report of its losses. Raises GristmillError when the run must end: at a
        value that is not finite (unless it may be skipped), or when a limit of actions is reached. Its last checkpoint
        stays good.
        """
        finding = self._find(step, numbers)
        self.ring.close(step, finding is None or finding.applied)
        if finding is None:
            return None
        verdict, why_stop = self._decide(finding, order)
        self._counts.events += 1
        if verdict.edits:
            self._counts.acted.append(step)
        name = self._report(verdict)
        if self._log is not None:
            self._log.write(self._event(verdict, order, name))
        told = f"step {step}: {verdict.reason}; {_DONE[verdict.action].format(v=verdict)}"
        if why_stop is not None:
            raise GristmillError(f"{told}{why_stop}", hint=self._hint(name, order, bool(why_stop)))
        self.say(told)
        return verdict

    def _find(self, step: int, numbers: Sequence[float]) -> Verdict | None:
        values, limits, means, stds = (numbers[i * len(NAMES) : (i + 1) * len(NAMES)] for i in range(4))
        n = int(numbers[VALUES - 1])
        bad = next((i for i, v in enumerate(values) if not abs(v) < float("inf")), None)
        i = bad if bad is not None else next((i for i, v in enumerate(values) if v > limits[i]), None)
        if i is None:
            return None
        what = NAMES[i].replace("grad_norm", "gradient norm")
        if bad is not None:
            cause, reason = "nonfinite", f"{what} is {values[i]}"
            action = "stop" if self.settings.on_nonfinite == "stop" else "skip_update"
        else:
            cause, action = NAMES[i], self.settings.on_spike
            reason = (
                f"{what} {values[i]:.6g} is above {limits[i]:.6g}, the mean {means[i]:.6g} of {n} steps and "
                f"{self.settings.sigma:g} times their deviation {stds[i]:.6g}"
            )
        applied = action == "warn"
        return Verdict(step, action, cause, reason, values[i], limits[i], means[i], stds[i], n, applied)

    def _decide(self, found: Verdict, order: DataOrder) -> tuple[Verdict, str | None]:
        """The verdict with its edits, and why the run must end, if it must."""
        if found.action == "warn":
            return found, None
        if found.action == "stop":
            return found, ""
        settings, step = self.settings, found.step
        recent = sum(n > step - settings.window for n in self._counts.acted)
        for limit, count, where in (
            ("max_actions", len(self._counts.acted), "in this run"),
            ("max_actions_in_window", recent, f"within {settings.window} steps"),
        ):
            if count >= getattr(settings, limit):
                stopped = _with(found, action="stop")
                return stopped, f": the guards changed {count} steps {where}, guards.{limit} allows no more"
        first, defers = step, found.action == "defer"
        if found.action == "rewind":
            first, defers = max(step - settings.rewind_steps + 1, 1), settings.rewind_edit == "defer"
            found = _with(found, to_step=self.newest(first))
        edits: tuple[Edit, ...] = ()
        refusals: list[str] = []
        for n in range(first, step + 1):
            if not order.samples_of_step(n):
                continue
            why = f"step {step}: {found.reason}"
            moved = order.defer(n, why, first) if defers else ()
            refusal = self._refusal(order, edits, moved, n) if defers else ""
            if refusal:
                refusals.append(refusal)
            edits += order.skip(n, why, first) if refusal is not None else moved
        action = found.action
        if refusals:
            found = _with(found, reason=f"{found.reason} (skipped in place of deferred: {refusals[0]})")
            action = "skip_update" if action == "defer" else action
        return _with(found, action=action, edits=edits), None

    def _refusal(self, order: DataOrder, before: tuple[Edit, ...], moved: tuple[Edit, ...], step: int) -> str | None:
        """Why a step's batch is not deferred, None when it can be."""
        problem = order.refusal(*before, *moved)
        if problem is not None:
            return problem
        # `before` adds nothing: the action that it belongs to counts a document once, however many batches hold it
        times: dict[str, int] = {}
        for rows in deferred_rows(order.edits):
            for document in self.pieces.documents(rows):
                times[document] = times.get(document, 0) + 1
        here = self.pieces.documents(order.rows_of_step(step)) if times else []
        often = max(here, key=lambda d: (times.get(d, 0), d), default="")
        most = self.settings.max_defers_per_document
        if times.get(often, 0) >= most:
            return f"document {often} was deferred {times[often]} of at most {most} times"
        return None

    def _report(self, verdict: Verdict) -> str | None:
        """Write this rank's losses per piece; what the files' names begin with, None when there are none."""
        if not self.settings.ring_steps or self._counts.reports >= self.settings.max_reports:
            return None
        self._counts.reports += 1
        name = pieces.report_name(self._counts.events, verdict.step)
        if self.ranks.tp_rank == 0:
            table = pieces.piece_losses(self.pieces, self.ring.read(verdict.step))
            try:
                pieces.write_report(self.out, name, self.ranks.dp_rank, table, self.dataset)
            except OSError as error:  # a full disk must not end a run over a report
                self.say(f"the report of step {verdict.step} was not written: {error}")
        return name

    def _event(self, verdict: Verdict, order: DataOrder, report: str | None) -> Event:
        rows = order.rows_of_step(verdict.step)
        documents = self.pieces.documents(rows)
        return {
            "event": self._counts.events,
            "step": verdict.step,
            "phase": order.span(verdict.step).phase.name,
            "action": verdict.action,
            "cause": verdict.cause,
            "reason": verdict.reason,
            "value": _number(verdict.value),
            "threshold": _number(verdict.threshold),
            "mean": verdict.mean,
            "std": verdict.std,
            "steps_judged": verdict.steps_judged,
            "applied": verdict.applied,
            "rows": row_ranges(rows),
            "documents": len(documents),
            **({"document_ids": documents} if report else {}),
            "edits": [edit_to_json(edit) for edit in verdict.edits],
            "to_step": verdict.to_step,
            "report": report,
        }

    def _hint(self, report: str | None, order: DataOrder, limit: bool) -> str:
        look = "`gristmill trace --run R --spike` names the documents; " if report else ""
        higher = "a higher limit goes on from the last checkpoint; " if limit else ""
        made = sum(isinstance(edit, Skip | Defer) for edit in order.edits)
        again = f"; data.edits={self.out / EDITS_FILE} begins a run with the {made} edits made so far" if made else ""
        return f"{look}{higher}lower optimizer.lr, lengthen the warm-up, or block documents (data.blocklist){again}"


_DONE = {
    "warn": "the update was applied",
    "skip_update": "the step is left out",
    "defer": "its batch moves to the end of the phase",
    "rewind": "going back to step {v.to_step} with the batches edited",
    "stop": "nothing was applied",
}


def deferred_rows(edits: Edits) -> list[list[tuple[str, int]]]:
    """(phase, row) that each action of a guard deferred. The edits of one action follow each other, and share the step that
    they hold from and their reason, which names the step that fired and its value."""
    placed = [edit for edit in edits if not isinstance(edit, Block)]
    return [
        [
            (edit.phase, row)
            for edit in action
            if isinstance(edit, Defer)
            for row in range(edit.first_row, edit.first_row + edit.rows)
        ]
        for _, action in groupby(placed, key=lambda edit: (edit.at_step, edit.reason))
    ]


def _number(value: float) -> float | str:
    """JSON has no word for what is not finite."""
    return value if abs(value) < float("inf") else str(value)


def _with(verdict: Verdict, **changes: Any) -> Verdict:
    return Verdict(**{**vars(verdict), **changes})
