"""Evaluation in the loop: held-out bits per byte per source and cloze tasks, one row of evaluations.jsonl each time.

bits per byte = nats of the text's tokens / ln 2 / UTF-8 bytes of the text, which compares across tokenizers. It is the
length of a real code: each token given those before it in its document, cut into windows of `seq_len`; a document's
first token, which training never predicts, costs ln(vocabulary); the closing eos is no text and costs nothing.
Rows are functions of the weights: no time, no machine. Random state, data position and gradients stay what they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from gristmill.core.errors import UsageError
from gristmill.core.tokshards import PackedDataset
from gristmill.trainer import cloze
from gristmill.trainer.heldout import HeldOut, load_heldout
from gristmill.trainer.journal import Journal
from gristmill.trainer.parallel.mesh import World
from gristmill.trainer.scoring import Scored, score
from gristmill.trainer.watch_schema import Evaluate

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EVALUATIONS = "evaluations.jsonl"

Record = dict[str, Any]


class Evaluator:
    """What a run is measured on, loaded once, and the journal of the results. Every process of the world has one."""

    def __init__(
        self,
        settings: Evaluate,
        dataset: PackedDataset,
        tokenizer: Path,
        out: Path,
        world: World,
        *,
        step: int,
        rows: int,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`step`: where the run stands; later rows of the journal are cut off. `rows`: rows of one forward pass.

        Raises UsageError on files that are missing or hold nothing, and where `seq_len` exceeds the longest rows.
        """
        self.settings, self.world, self.rows = settings, world, rows
        self.vocab_size = dataset.manifest.vocab_size
        lengths = [phase.seq_len for phase in dataset.manifest.phases]
        self.seq_len = settings.seq_len or min(lengths, default=0)
        if self.seq_len > max(lengths, default=0):
            raise UsageError(
                f"evaluate.seq_len {self.seq_len} is longer than the dataset's rows", hint=f"at most {max(lengths)}"
            )
        codec = open_tokenizer(tokenizer)
        self.heldout = load_heldout(dataset, settings, codec, say)
        self.tasks = [cloze.load(task, codec, self.seq_len, say) for task in settings.tasks]
        self._path = out / EVALUATIONS
        self._journal: Journal | None = None
        self.rewind(step)

    @property
    def wanted(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self.heldout or self.tasks)

    def due(self, step: int, *, edge: bool) -> bool:
        """Whether to measure after `step`; `edge`: it ends a stage or the run."""
        every = self.settings.every_steps
        return self.wanted and (edge or (every is not None and step % every == 0))

    def __call__(self, model: nn.Module, step: int, phase: str) -> Record:
        """Measure and write one row: {"step", "phase", "heldout": {source: …}, "tasks": {name: …}}. Collective."""
        heldout = {h.name: self._bits(model, h) for h in self.heldout}
        tasks = {t.name: cloze.measure(model, t, self.rows, self.seq_len, self.world) for t in self.tasks}
        record = {"step": step, "phase": phase, "heldout": heldout, "tasks": tasks}
        if self._journal is not None:
            self._journal.write(record)
        return record

    def _bits(self, model: nn.Module, source: HeldOut) -> Record:
        nats = score(model, windows(source, self.seq_len), self.rows, self.seq_len, self.world).nats
        tokens = sum(len(ids) for ids in source.documents)
        total = math.fsum(nats.tolist()) + len(source.documents) * math.log(self.vocab_size)
        return {
            "bits_per_byte": total / math.log(2) / source.bytes,
            "nats_per_token": total / tokens,
            "documents": len(source.documents),
            "tokens": tokens,
            "bytes": source.bytes,
        }

    def rewind(self, step: int) -> None:
        """Cut off the rows after `step`: the run goes back to it, or has just been resumed there."""
        if self._journal is not None:
            self._journal.close()
        self._journal = Journal(self._path, step, complete=False) if self.world.leads and self.wanted else None

    def sync(self) -> None:
        """On disk before a checkpoint that relies on it."""
        if self._journal is not None:
            self._journal.sync()

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()


def windows(source: HeldOut, seq_len: int) -> list[Scored]:
    """The documents in stretches of `seq_len` predictions, each token but a document's first predicted once."""
    return [Scored(ids[at : at + seq_len + 1]) for ids in source.documents for at in range(0, len(ids) - 1, seq_len)]


def open_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json that takes the names of special tokens in a text for text. Raises UsageError."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UsageError(f"{path} is no tokenizer.json: {error}") from error
    tokenizer.encode_special_tokens = True
    return tokenizer
