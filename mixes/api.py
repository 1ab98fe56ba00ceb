"""What the command line calls: load a mixture by name, plan it over token stores or a table, verify a packed dataset."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gristmill.core.errors import ConfigError, UsageError
from gristmill.core.hashing import sha256_file
from gristmill.core.places import find_yaml
from gristmill.core.settings import Document, Loc, load
from gristmill.mixes.branching import resolved
from gristmill.mixes.schema import Mixture

if TYPE_CHECKING:
    from gristmill.mixes.plan import Plan


def load_mixture(path_or_name: str, overrides: Sequence[str] = ()) -> tuple[Mixture, Document]:
    """A packaged mixture's name or a YAML path, with `a.b=c` overrides; its `branch` followed, its tokenizer a digest.

    Raises ConfigError with every problem at once; UsageError when there is no such file.
    """
    path, label = find_yaml(path_or_name, "gristmill.mixes")
    try:
        mixture, document = load(path, Mixture, overrides=overrides, name=label)
    except ConfigError as error:
        coded = [
            replace(p, message=f"E107 {p.message}")
            if p.message in ("duplicate key", "a key must be a single word")
            else p
            for p in error.problems
        ]
        raise ConfigError(coded) from None
    return settled(mixture, path.parent, document), document


def settled(mixture: Mixture, beside: Path, document: Document) -> Mixture:
    """A loaded mixture with its `branch` followed and its tokenizer named by digest, where the file is there.

    The document's places, and the paths it names, are those of the ablation then.
    """
    if mixture.branch is not None:
        own = next(i for i, a in enumerate(mixture.ablations) if a.name == mixture.branch)
        candidate = mixture.ablations[own].candidate
        mixture = resolved(mixture)
        at = len(mixture.stages) - 1
        document.aliases["stages", at] = ("ablations", own)
        document.aliases["stages", at, "mix"] = ("ablations", own, "candidate")
        for marks in (document.marks, document.key_marks):
            for loc in [loc for loc in marks if loc[:1] == ("stages",) and len(loc) > 1 and loc[1] == at]:
                del marks[loc]
            for loc, mark in list(marks.items()):
                if loc[:2] == ("ablations", own):
                    rest = tuple("mix" if part == "candidate" else part for part in loc[2:])
                    marks["stages", at, *rest] = mark
        base: Loc = ("ablations", own, "base")
        for name in mixture.stages[at].mix.keys() - candidate.keys():
            document.aliases["stages", at, "mix", name] = base
            document.marks["stages", at, "mix", name] = document.mark(base)
    if mixture.tokenizer is None or re.fullmatch(r"[0-9a-f]{64}", mixture.tokenizer):
        return mixture
    for folder in (beside, Path()):
        for path in (folder / mixture.tokenizer / "tokenizer.json", folder / mixture.tokenizer):
            if path.is_file():
                return mixture.model_copy(update={"tokenizer": sha256_file(path)})
    return mixture


def check_tokenizer(mixture: Mixture, sha256: str, document: Document | None = None) -> None:
    """Raises E106 unless the token stores' tokenizer is the mixture's."""
    if mixture.tokenizer in (None, sha256):
        return
    assert mixture.tokenizer is not None
    text, hint = "", ""
    if re.fullmatch(r"[0-9a-f]{64}", mixture.tokenizer):
        text = f"E106 the documents are encoded with tokenizer {sha256[:12]}, not {mixture.tokenizer[:12]}"
        hint = "encode them anew, or leave `tokenizer` out to take what they have"
    else:
        text = f"E106 no tokenizer at {mixture.tokenizer}: it cannot be compared with that of the documents"
        hint = "give tokenizer.json, its folder or its sha256"
    if document is not None:
        raise ConfigError([document.problem(("tokenizer",), text, hint)])
    raise UsageError(text, hint=hint)


def plan_from_stores(
    mixture: Mixture, docs_paths: Sequence[Path], tokenizer_json_path: Path, document: Document | None = None
) -> Plan:
    """The plan of a mixture over the docs.parquet of token stores. Reads lengths and filter columns only.

    Raises UsageError with E102, E103, E104, E106, E108 or E109, and their numbers; with `document`, the YAML, at their places.
    """
    from gristmill.mixes.membership import check_columns, store_schema
    from gristmill.mixes.plan import make_plan
    from gristmill.mixes.sources import scan
    from gristmill.mixes.stages import packing_facts

    facts = packing_facts(tokenizer_json_path)
    check_tokenizer(mixture, facts.sha256, document)
    check_columns(mixture, store_schema(docs_paths), document)
    found = scan(docs_paths, mixture, document=document)
    return make_plan(mixture, found.stock, facts.vocab_size, document, found.shared)


def plan_from_table(
    mixture: Mixture, available: str, vocab_size: int | None = None, document: Document | None = None
) -> Plan:
    """The plan of a mixture over a JSON table of available tokens (`mixes.available`). Raises what both raise."""
    from gristmill.mixes.available import read_available
    from gristmill.mixes.plan import plan_supplies

    supplies, totals, partial = read_available(available, mixture)
    plan = plan_supplies(mixture, supplies, totals, vocab_size, document)
    return replace(plan, notes=[*plan.notes, *partial])


def verify_dataset(folder: str | Path) -> list[str]:
    """Every problem of a packed dataset folder: hashes, rows, boundaries, provenance, shares, held-out documents."""
    from gristmill.mixes.verify import problems

    return problems(folder)
