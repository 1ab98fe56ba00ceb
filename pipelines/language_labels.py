"""Checks the labels that a recipe keeps against the label list of the language model that it names."""

from __future__ import annotations

import os
from pathlib import Path

from gristmill.core.errors import ConfigError
from gristmill.curate.schema_language import LID_VARIABLE
from gristmill.pipelines.schema import LoadedRecipe


def check_labels(loaded: LoadedRecipe, model: str | None) -> None:
    """Raise ConfigError for every label that the model does not have, and UsageError when the model cannot be read.

    `model` is the recipe's own model file, if any. lid.176's labels were checked when the recipe was validated; another
    model's are read from its file, which is not loaded.
    """
    if model is None and not os.environ.get(LID_VARIABLE):
        return
    from gristmill.curate.fasttext_file import model_labels
    from gristmill.curate.labels import label_hint
    from gristmill.curate.language import find_model

    path = find_model(model)
    known = frozenset(model_labels(Path(path)))
    problems = []
    for place, label in loaded.recipe.curate.language.labels():
        if label not in known:
            hint = label_hint(label, known) or f"its {len(known)} labels begin {', '.join(sorted(known)[:6])}"
            message = f"`{label[:40]}` is no label of the language model {path.name}"
            problems.append(loaded.document.problem(("curate", "language", *place), message, hint))
    if problems:
        raise ConfigError(problems)
