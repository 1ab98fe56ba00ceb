"""What a run watches beside its loss: held-out text, cloze tasks, samples at checkpoints, trackers. No torch here.

None of it decides a weight, so a launch goes on in its folder with all of it changed. A run of a root does so with another
`gallery` or `track`; another `evaluate` changes an output, evaluations.jsonl, and makes another run.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from gristmill.core.settings import Settings

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Format = Literal["cloze", "arc", "hellaswag", "mmlu", "openbookqa", "piqa", "winogrande", "lambada", "answer"]
Tracker = Literal["tensorboard", "wandb"]


class HeldoutText(Settings):
    """A text of one's own that is never trained on."""

    name: Name
    path: str
    """A .jsonl, .jsonl.gz, .jsonl.zst or .parquet file of texts, or a token store's folder; relative to where the run
    was started."""
    field: str = "text"
    """Column or key of the text."""


class ClozeTask(Settings):
    """A task file whose answers are compared by their log-likelihood."""

    name: Name
    path: str
    """A .jsonl, .jsonl.gz or .jsonl.zst file, relative to where the run was started."""
    format: Format = "cloze"
    """How a line becomes a prompt. cloze: {context, choices, gold}, the choices as they stand. arc, mmlu, piqa:
    "Question: …\\nAnswer:" and each choice. hellaswag, openbookqa: each choice as the question's continuation.
    winogrande: each choice in the blank, what follows it scored. lambada: the last word, right when it is the likeliest
    at every token. answer: {question, answer}, likelihood only."""
    limit: int | None = Field(None, ge=1)
    """Lines used at most, chosen by hash; null: all."""


class Evaluate(Settings):
    """Measurements at the end of each stage and of the run, and every `every_steps` steps: evaluations.jsonl."""

    every_steps: int | None = Field(None, ge=1)
    """null: at the ends only."""
    mixture: bool = True
    """Measure the documents that the mixture holds out, per source (where it holds out any and their tokens are found)."""
    stores: str | None = None
    """Root whose token stores hold them; null: the one that the dataset lies in."""
    heldout: list[HeldoutText] = []
    """Further texts to measure."""
    max_documents: int = Field(256, ge=1)
    """Documents per source, chosen by hash."""
    max_tokens: int = Field(200_000, ge=1)
    """Tokens per source; a document that would exceed it is left out whole."""
    tasks: list[ClozeTask] = []
    seq_len: int | None = Field(None, ge=2)
    """Tokens a prediction sees at most; null: the rows of the shortest stage, so that stages compare."""

    @model_validator(mode="after")
    def _names_differ(self) -> Evaluate:
        for what, names in (("heldout", [h.name for h in self.heldout]), ("tasks", [t.name for t in self.tasks])):
            twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
            if twice:
                raise ValueError(f"{what}: two are named {twice!r} hint: give each a name of its own")
        return self


class Gallery(Settings):
    """Texts continued at every checkpoint, to be read side by side: samples/STEP.json."""

    prompts: list[str] = ["The"]
    """An empty prompt starts a document; no prompts, no samples."""
    tokens: int = Field(48, ge=0)
    """Tokens sampled at most; sampling also stops at the end-of-document token."""
    temperature: float = Field(0.8, ge=0)
    """0 takes the likeliest token each time."""
    seed: int = Field(0, ge=0)
