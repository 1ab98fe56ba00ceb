"""`gristmill report --html`: one page of a root, the parts whose stages have finished."""

from __future__ import annotations

from pathlib import Path

from gristmill.core.errors import UsageError
from gristmill.pipelines.fates import PAGES
from gristmill.pipelines.report import curation, training
from gristmill.pipelines.report.page import page as shell
from gristmill.pipelines.views import manifests


def page(root: Path) -> str:
    """Curation, then training. Raises UsageError where neither has finished."""
    known = manifests(root)
    parts = []
    if PAGES in known:
        parts.append(curation.section(curation.collect(root)))
    receipts = known["train"].receipts if "train" in known else []
    if receipts:
        folder = Path(receipts[0].output("metrics.jsonl").path).parent
        parts.append(training.section(training.collect(folder)))
    if not parts:
        raise UsageError(f"{root} has neither curated pages nor a training run", hint="gristmill run RECIPE --root DIR")
    return shell(root.name, *parts)
