"""Several vocabulary sizes from one training: where the split regex is the same, a smaller vocabulary is the larger cut.

`BpeTrainer` takes the most frequent pair, gives it the next id, and stops when the ids are used up; nothing before that
point depends on the size. So the merges of a smaller vocabulary are the first of the larger one's. The digit rule
depends on the size (`tokenize.split`), and sizes with different regexes are trained apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from gristmill.tokenize.schema import Tokenizer
from gristmill.tokenize.split import pattern
from gristmill.tokenize.train import filled, train_bpe

if TYPE_CHECKING:
    import tokenizers

FORMAT = "gristmill-sweep-1"


def train_sizes(texts: Callable[[str], Iterable[str]], settings: Tokenizer) -> dict[int, tokenizers.Tokenizer]:
    """Size (before padding) -> its tokenizer, ascending. `texts(regex)` gives the sample, cut for that regex.

    Raises InputError as `train_bpe` does.
    """
    by_pattern: dict[str, list[int]] = {}
    for size in settings.sizes:
        by_pattern.setdefault(pattern(settings.of_size(size)), []).append(size)
    found: dict[int, tokenizers.Tokenizer] = {}
    for regex, sizes in by_pattern.items():
        largest = settings.of_size(sizes[-1])
        found[sizes[-1]] = train_bpe(texts(regex), largest)
        raw = found[sizes[-1]].to_str().encode()
        for size in sizes[:-1]:
            found[size] = cut_to(raw, settings.of_size(size))
    return dict(sorted(found.items()))


def cut_to(raw: bytes, settings: Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer of a smaller size, from the tokenizer.json of a larger one trained with the same other settings."""
    from tokenizers import Tokenizer as Built

    data: Any = orjson.loads(raw)
    model, size = data["model"], settings.size
    merges: list[list[str]] = model["merges"]
    # A merge may give a token that is there already; all that come before the first id beyond the size are taken.
    end = next((i for i, (a, b) in enumerate(merges) if model["vocab"][a + b] >= size), len(merges))
    model["merges"] = merges[:end]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i < size}
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in model["vocab"]]
    return filled(Built.from_str(orjson.dumps(data).decode()), settings)


def table(reports: Mapping[int, Mapping[str, Any]], used: int) -> dict[str, Any]:
    """sweep.json: per size bytes per token and fertility, of all documents (`metrics`) and of each language, from the
    sizes' fertility tables."""
    keys = ("bytes_per_token", "fertility")
    rows = [
        {
            "size": size,
            "vocab_size": report["vocab_size"],  # padded
            "tokenizer_sha256": report["tokenizer_sha256"],
            "unused": report["unused"],
            "metrics": {key: report["all"][key] for key in keys},
            "languages": {name: {key: row[key] for key in keys} for name, row in report["languages"].items()},
        }
        for size, report in reports.items()
    ]
    return {"format": FORMAT, "use": used, "sweep": rows}


def render(found: Mapping[str, Any]) -> str:
    """sweep.json as plain text: bytes per token by language, sizes as columns, the one in use marked."""
    rows = found["sweep"]
    names = sorted({name for row in rows for name in row["languages"]})
    lines = [["bytes/token", *(f"{row['size']:,}{'*' if row['size'] == found['use'] else ''}" for row in rows)]]
    for name in [*names, "all"]:
        cells = [row["metrics"] if name == "all" else row["languages"].get(name, {}) for row in rows]
        known = [cell.get("bytes_per_token") for cell in cells]
        lines.append([name, *("n/a" if value is None else f"{value:.3f}" for value in known)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )
