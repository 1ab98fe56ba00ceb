"""Premium: what the same text costs in each language, from a file of aligned sentences.

premium(l) = tokens of l / tokens of the reference language over the lines that both have (Petrov et al. 2023 saw up
to 15). The file is JSONL (maybe gzipped) of {"lang", "index", "text"}: rows of one index say the same thing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gristmill.core.errors import InputError, UsageError
from gristmill.tokenize.baselines import Encoder
from gristmill.tokenize.files import json_of, read_bounded
from gristmill.tokenize.metrics import gini

Aligned = dict[str, dict[str, str]]
"""language -> index -> text"""


def read_aligned(path: Path) -> Aligned:
    """Raises InputError with the line where a row is not of the form, or a language has an index twice."""
    found: Aligned = {}
    for number, line in enumerate(read_bounded(path).split(b"\n"), 1):
        if not line.strip():
            continue
        row = json_of(line, f"{path}:{number}")
        language, index, text = (row.get(k) for k in ("lang", "index", "text")) if isinstance(row, dict) else [None] * 3
        if not isinstance(language, str) or not isinstance(index, str | int) or not isinstance(text, str):
            raise InputError(f"{path}:{number}: no row of aligned text", hint='{"lang": "de", "index": 7, "text": "…"}')
        lines = found.setdefault(language, {})
        if str(index) in lines:
            raise InputError(
                f"{path}:{number}: {language} has index {index} twice",
                hint="name versions of one language apart, de-1901 and de-1996, say",
            )
        lines[str(index)] = text
    return found


def premiums(encoder: Encoder, aligned: Mapping[str, Mapping[str, str]], reference: str) -> dict[str, Any]:
    """{"reference", "languages": {l: {lines, tokens, reference_tokens, premium}}, "worst", "mean", "gini"}.

    Worst, mean and Gini are over all languages of the file, the reference (1 by definition) left out of the worst and
    the mean. Languages without a line in common are left out and named in `unaligned`. Raises UsageError when the file
    lacks the reference.
    """
    if reference not in aligned:
        raise UsageError(
            f"the aligned text has no {reference!r}", hint=f"--reference one of {', '.join(sorted(aligned)[:20])}"
        )
    lengths = {}
    for language in sorted(aligned):
        lines = aligned[language]
        lengths[language] = dict(zip(lines, map(len, encoder.encode_batch(list(lines.values()))), strict=True))
    base = lengths[reference]
    rows: dict[str, Any] = {}
    unaligned = []
    for language, own in lengths.items():
        shared = [i for i in own if i in base]
        tokens, against = sum(own[i] for i in shared), sum(base[i] for i in shared)
        if not against:
            unaligned.append(language)
            continue
        rows[language] = {
            "lines": len(shared),
            "tokens": tokens,
            "reference_tokens": against,
            "premium": round(tokens / against, 6),
        }
    others = {name: row["premium"] for name, row in rows.items() if name != reference}
    worst = max(others, key=lambda name: (others[name], name)) if others else None
    return {
        "reference": reference,
        "languages": rows,
        "worst": {"language": worst, "premium": others[worst]} if worst else None,
        "mean": round(math.fsum(others.values()) / len(others), 6) if others else None,
        "gini": gini([row["premium"] for row in rows.values()]),
        "unaligned": unaligned,
    }
