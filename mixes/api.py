"""What the command line calls: load a mixture by name, plan it over token stores, verify a packed dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gristmill.core.places import find_yaml
from gristmill.core.settings import Document, load
from gristmill.mixes.schema import Mixture

if TYPE_CHECKING:
    from gristmill.mixes.plan import Plan


def load_mixture(path_or_name: str, overrides: Sequence[str] = ()) -> tuple[Mixture, Document]:
    """A packaged mixture's name or a YAML path, with `a.b=c` overrides.

    Raises ConfigError with every problem at once; UsageError when there is no such file.
    """
    path, label = find_yaml(path_or_name, "gristmill.mixes")
    return load(path, Mixture, overrides=overrides, name=label)


def plan_from_stores(mixture: Mixture, docs_paths: Sequence[Path], tokenizer_json_path: Path) -> Plan:
    """The plan of a mixture over the docs.parquet of token stores. Reads lengths and filter columns only.

    Raises UsageError with E103, E104, E106 or E109, and their numbers.
    """
    from gristmill.mixes.plan import make_plan
    from gristmill.mixes.sources import read_documents, stocks
    from gristmill.mixes.stages import packing_facts

    facts = packing_facts(tokenizer_json_path)
    return make_plan(mixture, stocks(mixture, read_documents(docs_paths, mixture)), facts.vocab_size)


def verify_dataset(folder: str | Path) -> list[str]:
    """Every problem of a packed dataset folder: hashes, rows, boundaries, provenance, shares, held-out documents."""
    from gristmill.mixes.verify import problems

    return problems(folder)
