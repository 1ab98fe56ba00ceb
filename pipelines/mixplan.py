"""A mixture planned over what a root holds: its token stores, and the stages that its training runs have consumed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gristmill.core.errors import UsageError
from gristmill.core.settings import Document

if TYPE_CHECKING:
    from gristmill.mixes.plan import Plan
    from gristmill.mixes.schema import Mixture


def stores_in(root: Path) -> tuple[list[Path], Path] | None:
    """The docs.parquet of a root's token stores, encoded and imported, in order, and its tokenizer.json; None without."""
    from gristmill.core.manifest import read_manifest
    from gristmill.mixes.stages import DOCS, stores_of

    found = {name: read_manifest(root, name) for name in ("tokens", "imports", "tokenizer")}
    receipts = {name: manifest.receipts for name, manifest in found.items() if manifest is not None}
    if not receipts.get("tokenizer"):
        return None
    docs = [Path(shard.path) for shards in stores_of(receipts, DOCS) for shard in shards]
    return (docs, Path(receipts["tokenizer"][0].output("tokenizer.json").path)) if docs else None


def plan_in_root(root: Path, mixture: Mixture, document: Document | None = None, new_run: bool = False) -> Plan:
    """Raises UsageError when nothing is encoded, when the mixture edits a stage that a run has consumed (E120, unless the
    plan is for a new run), and what planning raises."""
    from gristmill.mixes.api import plan_from_stores
    from gristmill.pipelines.consumed import check_consumed

    stores = stores_in(root)
    if stores is None:
        raise UsageError(f"{root} has no encoded documents", hint="gristmill run RECIPE --root DIR --to tokens")
    if not new_run:
        check_consumed(root, mixture, document)
    return plan_from_stores(mixture, *stores, document)
