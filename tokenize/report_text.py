"""A tokenizer report as text for a terminal: one table of languages, then what the vocabulary holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gristmill.tokenize.gates import plain
from gristmill.tokenize.metrics import OTHER

Report = Mapping[str, Any]

COLUMNS: Sequence[tuple[str, str, str]] = (
    ("docs", "docs", ",d"),
    ("bytes", "bytes", ",d"),
    ("tokens", "tokens", ",d"),
    ("fertility", "fertility", ".3f"),
    ("pcw", "PCW", ".1%"),
    ("fertility_iso", "fert.iso", ".3f"),
    ("pcw_iso", "PCW.iso", ".1%"),
    ("bytes_per_token", "bytes/tok", ".2f"),
    ("chars_per_token", "chars/tok", ".2f"),
    ("premium", "premium", ".2f"),
    ("strr", "STRR", ".1%"),
    ("lossless", "lossless", ".2%"),
)


def cell(value: Any, form: str) -> str:
    """A number, or n/a where a measure has no meaning."""
    return "n/a" if value is None else format(value, form)


def grid(lines: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of cells in columns, the first `left` of them flush left."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]


def by_size(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names, most bytes first; the rest of a cut table last."""
    return sorted(rows, key=lambda name: (name == OTHER, -rows[name]["bytes"], name))


def render(report: Report) -> str:
    """The first tokenizer's tables, its length against each baseline, and one line a finding."""
    own = report["tokenizers"][0]
    out = [_title(own), "", *_languages(own)]
    for group, heading in (("sources", "source"), ("domains", "domain")):
        if len(own[group]) > 1 or (group == "domains" and own[group]):
            out += ["", *_groups(own, group, heading)]
    out += ["", *_findings(report, own)]
    return "\n".join(out)


def _title(own: Report) -> str:
    return f"{own['name']}: {own['vocab_size']:,} ids, {own['kind']}, sha256 {own['sha256'][:12]}"


def _languages(own: Report) -> list[str]:
    shown = [c for c in COLUMNS if c[0] not in ("docs", "pcw_iso") and (c[0] != "premium" or own["aligned"])]
    head = ["language", "words by", *(title for _, title, _ in shown), *(f"NSL {b}" for b in own["nsl"])]
    lines = [head]
    every = {**own["all"], "premium": None, "strr": None}
    for name in [*by_size(own["languages"]), ""]:
        row = own["languages"][name] if name else every
        against = [cell(found["languages"].get(name) if name else found["all"], ".3f") for found in own["nsl"].values()]
        lines.append(
            [
                plain(name) or "all",
                row["segmenter"] or "n/a",
                *(cell(row[key], form) for key, _, form in shown),
                *against,
            ]
        )
    return grid(lines, 2)


def _groups(own: Report, group: str, heading: str) -> list[str]:
    keep = ("docs", "bytes", "tokens", "fertility", "pcw", "bytes_per_token", "lossless")
    shown = [c for c in COLUMNS if c[0] in keep]
    lines = [[heading, *(title for _, title, _ in shown), *(f"NSL {b}" for b in own["nsl"])]]
    rows = own[group]
    for name in by_size(rows):
        against = [cell(found[group].get(name), ".3f") for found in own["nsl"].values()]
        lines.append([plain(name), *(cell(rows[name][key], form) for key, _, form in shown), *against])
    return grid(lines)


def _findings(report: Report, own: Report) -> list[str]:
    out = []
    if own["aligned"]:
        found, worst = own["aligned"], own["aligned"]["worst"]
        top = f"worst {worst['premium']:.2f} ({plain(worst['language'])}), " if worst else ""
        out.append(
            f"premium against {found['reference']} on {len(found['languages'])} aligned languages: {top}"
            f"mean {cell(found['mean'], '.2f')}, Gini {cell(found['gini'], '.3f')}"
        )
        if found["unaligned"]:
            out.append(f"  no line in common: {', '.join(map(plain, found['unaligned'][:20]))}")
    for name, use in (("these documents", own["usage"]), ("the model mix", own["model_mix"])):
        if use:
            out.append(
                f"on {name}, {use['tokens']:,} tokens: {use['unused']:,} of {use['of']:,} ids unused "
                f"({cell(use['unused_share'], '.1%')}), {use['under_trained']:,} seen fewer than {use['threshold']} times "
                f"({cell(use['under_trained_share'], '.1%')})"
            )
    words = own["vocabulary"]
    out.append(
        f"ids: {words['special']:,} special, {words['unassigned']:,} unassigned, {words['not_utf8']:,} not UTF-8 alone, "
        f"{words['unreachable']:,} unreachable"
    )
    total = words["ids"]
    out.append("scripts: " + ", ".join(f"{k} {n / total:.1%}" for k, n in list(words["scripts"].items())[:10]))
    out.append("longest: " + "  ".join(f"{t['text'][:24]!r} {t['bytes']}" for t in words["longest"][:6]))
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in words["suspicious"].items())
    out.append(f"suspicious: {kinds or 'none'}")
    lost = [name for name, kept in own["probes"].items() if not kept]
    out.append(
        f"round trip: {own['all']['lossless']:.2%} of documents; probes lost: {', '.join(lost) or 'none'}"
        + (" (it normalises)" if own["normalizes"] else "")
    )
    out.append(
        f"Rényi efficiency (a = {own['renyi']['alpha']}): {cell(own['renyi']['efficiency'], '.3f')}, for information"
    )
    curve = own["sample_curve"]
    last, before = (curve[i]["fertility"] or curve[i]["bytes_per_token"] for i in (-1, len(curve) // 2 - 1))
    if last and before:
        out.append(f"half of the sample gives {before / last - 1:+.2%} of the whole sample's figure")
    docs = report["documents"]
    out.append(
        f"{docs['docs']:,} of {docs['available']:,} documents, at most {docs['docs_per_language']} of a language and "
        f"{docs['doc_cap_chars']:,} characters of each, seed {docs['seed']}"
    )
    out.append(
        "fertility and PCW: tokens per word in context; .iso: each word encoded alone. Words of different segmenters "
        "are not comparable; `all` tells those of runs-1"
    )
    return out


def render_compare(report: Report) -> str:
    """All tokenizers side by side: by language bytes per token and fertility, * the best, then the totals."""
    found = report["tokenizers"]
    names = [t["name"] for t in found]
    own = found[0]
    out = []
    for key, title, form in (
        ("bytes_per_token", "bytes per token", ".3f"),
        ("fertility", "fertility, tokens per word in context", ".3f"),
        ("premium", "premium on aligned text", ".2f"),
    ):
        if all(t["languages"][n][key] is None for t in found for n in own["languages"]):
            continue
        lines = [["language", "words by", *(f"{n} " for n in names)]]
        for language in by_size(own["languages"]):
            row = [plain(language), own["languages"][language]["segmenter"] or "n/a"]
            winner = report["best"][language].get(key)
            for tokenizer in found:
                text = cell(tokenizer["languages"][language][key], form)
                row.append(text + ("*" if tokenizer["name"] == winner else " "))
            lines.append(row)
        lines.append(["all", "", *(cell(t["all"].get(key), form) + " " for t in found)])
        out += [title, *grid(lines, 2), ""]
    lines = [["", *names]]
    for title, values in (
        ("ids", [f"{t['vocab_size']:,}" for t in found]),
        ("tokens", [f"{t['all']['tokens']:,}" for t in found]),
        (f"NSL against {names[0]}", [cell(t["all"]["tokens"] / own["all"]["tokens"], ".3f") for t in found]),
        ("lossless", [cell(t["all"]["lossless"], ".2%") for t in found]),
        ("worst premium", [_worst(t) for t in found]),
        ("mean premium", [cell((t["aligned"] or {}).get("mean"), ".2f") for t in found]),
        ("Gini of premiums", [cell((t["aligned"] or {}).get("gini"), ".3f") for t in found]),
        ("unused here", [cell(t["usage"]["unused_share"], ".1%") for t in found]),
        ("unreachable ids", [f"{t['vocabulary']['unreachable']:,}" for t in found]),
        ("suspicious tokens", [f"{sum(t['vocabulary']['suspicious'].values()):,}" for t in found]),
        ("Rényi efficiency", [cell(t["renyi"]["efficiency"], ".3f") for t in found]),
        (
            "best bytes/token in",
            [str(sum(b.get("bytes_per_token") == n for b in report["best"].values())) for n in names],
        ),
    ):
        lines.append([title, *values])
    return "\n".join([*out, *grid(lines), "* best of the row; words of different segmenters are not comparable"])


def _worst(tokenizer: Report) -> str:
    worst = (tokenizer["aligned"] or {}).get("worst")
    return f"{worst['premium']:.2f} {plain(worst['language'])}" if worst else "n/a"
