"""The tokenizer part of the HTML report: heat maps against baselines, curves, scripts, and the tokens to look at.

Language names, domains and token texts come from data and are escaped; nothing of the page runs or is fetched.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from gristmill.pipelines.report.charts import line_chart
from gristmill.pipelines.report.page import page as shell
from gristmill.tokenize.report_text import by_size, cell

Report = Mapping[str, Any]

SWEEP_LANGUAGES = 7  # beside "all": as many as there are colours
WORST = 20  # languages in the table of premiums
STYLE = """<style>
body{max-width:96rem} p{max-width:56rem} svg{max-width:52rem;display:block} .scroll{overflow-x:auto} .heat{width:auto;font-size:.82rem} .heat td,.heat th{padding:.12rem .45rem;white-space:nowrap}
.heat td.n,.heat th.n{text-align:right;font-variant-numeric:tabular-nums} .heat th.top{text-align:center;border-left:2px solid #888}
.heat td.first,.heat th.first{border-left:2px solid #888} .heat .na{opacity:.45} .heat b{text-decoration:underline}
.small{font-size:.85rem;opacity:.8} .two{display:grid;grid-template-columns:repeat(auto-fit,minmax(24rem,1fr));gap:0 2rem}
.tokens{max-width:48rem} .tokens td{padding:.1rem .5rem;font-size:.82rem} .heat .by{white-space:normal;min-width:7rem} p.tokens{line-height:1.9} p.tokens code{border:1px solid #8886;padding:.05rem .3rem} .tokens code{overflow-wrap:anywhere;white-space:pre-wrap}
.bad{color:#d55e00;font-weight:bold} .good{color:#009e73} .bar{display:block;height:.7rem;background:#0072b2}
</style>"""

HEAT: Sequence[tuple[str, str, str, bool]] = (
    ("fertility", "fertility", ".2f", False),
    ("pcw", "PCW", ".0%", False),
    ("bytes_per_token", "bytes per token", ".2f", True),
    ("premium", "premium", ".2f", False),
)
"""key, heading, format, whether more is better"""


def page(report: Report, title: str = "Tokenizer report") -> str:
    """One self-contained HTML document of a report of `tokenize.report.build`."""
    return shell(title, STYLE, section(report, title))


def section(report: Report, title: str) -> str:
    """The part as HTML, without a page around it."""
    own = report["tokenizers"][0]
    docs = report["documents"]
    measured = (
        f"<p>{escape(own['name'])}: {own['vocab_size']:,} ids, on {docs['docs']:,} of {docs['available']:,} documents "
        f"({docs['bytes'] / 1e6:,.1f} MB; at most {docs['docs_per_language']} of a language and "
        f"{docs['doc_cap_chars']:,} characters of each, seed {docs['seed']}).</p>"
    )
    parts = [
        f"<h1>{escape(title)}</h1>{measured}",
        _gates(report["gates"]),
        _facts(report),
        _heat(report),
        _isolated(report),
        _premiums(own),
        _sweep(report["sweep"], by_size(own["languages"])),
        _groups(report, "sources", "source"),
        _groups(report, "domains", "domain"),
        _frequencies(report),
        _curve(report),
        _scripts(report),
        _usage(own),
        _tokens(own),
    ]
    return "".join(parts)


def _gates(results: Sequence[Report]) -> str:
    if not results:
        return ""
    rows = []
    for result in results:
        least = result["gate"].startswith("min_")
        broken = ", ".join(f"{escape(item['where'])} {item['value']:.4g}" for item in result["broken"][:WORST])
        if len(result["broken"]) > WORST:
            broken += f" and {len(result['broken']) - WORST} more"
        mark = "<span class=good>passed</span>" if result["passed"] else "<span class=bad>broken</span>"
        rows.append(
            f"<tr><td>{escape(result['gate'])}<td class=n>{'≥' if least else '≤'} {result['threshold']:g}<td>{mark}"
            f"<td class=n>{result['checked']}<td>{broken}</tr>"
        )
    return f"<h2>Gates</h2><table class=tokens><tr><th>gate<th class=n>limit<th><th class=n>checked<th>broken by</tr>{''.join(rows)}</table>"


def _facts(report: Report) -> str:
    """Each tokenizer's own figures, side by side."""
    found = report["tokenizers"]
    own = found[0]
    lines: list[tuple[str, list[str]]] = [
        ("kind", [t["kind"] + (", normalises" if t["normalizes"] else "") for t in found]),
        ("ids", [f"{t['vocab_size']:,}" for t in found]),
        ("tokens on these documents", [f"{t['all']['tokens']:,}" for t in found]),
        (f"NSL: tokens / those of {own['name']}", [f"{t['all']['tokens'] / own['all']['tokens']:.3f}" for t in found]),
        ("bytes per token", [cell(t["all"]["bytes_per_token"], ".3f") for t in found]),
        ("documents that come back whole", [cell(t["all"]["lossless"], ".2%") for t in found]),
        ("probes lost", [", ".join(n for n, ok in t["probes"].items() if not ok) or "none" for t in found]),
        ("worst premium", [_worst(t) for t in found]),
        ("mean premium", [cell((t["aligned"] or {}).get("mean"), ".2f") for t in found]),
        ("Gini of premiums", [cell((t["aligned"] or {}).get("gini"), ".3f") for t in found]),
        ("unused on these documents", [cell(t["usage"]["unused_share"], ".1%") for t in found]),
        ("not UTF-8 alone", [f"{t['vocabulary']['not_utf8']:,}" for t in found]),
        ("unreachable", [f"{t['vocabulary']['unreachable']:,}" for t in found]),
        ("suspicious", [f"{sum(t['vocabulary']['suspicious'].values()):,}" for t in found]),
        ("Rényi efficiency (information only)", [cell(t["renyi"]["efficiency"], ".3f") for t in found]),
    ]
    head = "".join(f"<th class=n>{escape(t['name'])}" for t in found)
    body = "".join(
        f"<tr><td>{escape(name)}{''.join(f'<td class=n>{escape(v)}' for v in values)}</tr>" for name, values in lines
    )
    return f"<h2>Tokenizers</h2><div class=scroll><table class=heat><tr><th>{head}</tr>{body}</table></div>"


def _worst(tokenizer: Report) -> str:
    worst = (tokenizer["aligned"] or {}).get("worst")
    return f"{worst['premium']:.2f} ({worst['language']})" if worst else "n/a"


def shade(values: Sequence[float | None], more_is_better: bool) -> Callable[[float], str]:
    """A style for a cell: clear at the best of `values`, orange at the worst or beyond the 95th percentile."""
    told = sorted(v for v in values if v is not None)
    if not told:
        return lambda value: ""
    low, high = told[len(told) // 20], told[len(told) - 1 - len(told) // 20]
    room = (high - low) or 1.0

    def style(value: float) -> str:
        bad = (high - value) / room if more_is_better else (value - low) / room
        return f' style="background:rgba(213,94,0,{0.6 * min(1.0, max(0.0, bad)):.2f})"'

    return style


def _heat(report: Report) -> str:
    """Language by metric by tokenizer, shaded; the best of each row underlined."""
    found = report["tokenizers"]
    names = by_size(found[0]["languages"])
    used = [h for h in HEAT if any(t["languages"][n][h[0]] is not None for t in found for n in names)]
    top = "".join(f"<th class=top colspan={len(found)}>{escape(title)}" for _, title, _, _ in used)
    second = "".join(
        f"<th class='n{' first' if not i else ''}'>{escape(t['name'])}" for _ in used for i, t in enumerate(found)
    )
    styles = {key: shade([t["languages"][n][key] for t in found for n in names], better) for key, _, _, better in used}
    rows = []
    for name in names:
        segmenter = found[0]["languages"][name]["segmenter"]
        cells = [f"<td>{escape(name)}<td class='small by'>{escape(segmenter or 'n/a')}"]
        for key, _, form, _ in used:
            best = report["best"][name].get(key)
            for i, t in enumerate(found):
                value = t["languages"][name][key]
                first = " first" if not i else ""
                if value is None:
                    cells.append(f"<td class='n na{first}'>n/a")
                else:
                    text = format(value, form)
                    shown = f"<b>{text}</b>" if t["name"] == best and len(found) > 1 else text
                    cells.append(f"<td class='n{first}'{styles[key](value)}>{shown}")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    note = (
        "<p class=small>Fertility and PCW: tokens per word and share of words cut, in context. Orange is worse, shaded "
        "within a metric; underlined is the best of the row. Words are those of the segmenter named beside the language; "
        "rows of different segmenters are not comparable, and n/a stands where no segmenter tells the words.</p>"
    )
    return (
        f"<h2>By language</h2>{note}<div class=scroll><table class=heat><tr><th><th>{top}</tr>"
        f"<tr><th>language<th>words by{second}</tr>{''.join(rows)}</table></div>"
    )


def _isolated(report: Report) -> str:
    """The figures of the first tokenizer that the heat map leaves out."""
    own = report["tokenizers"][0]
    columns = (
        ("docs", "documents", ",d"),
        ("bytes", "bytes", ",d"),
        ("tokens", "tokens", ",d"),
        ("fertility_iso", "fertility, word alone", ".3f"),
        ("pcw_iso", "PCW, word alone", ".1%"),
        ("chars_per_token", "characters per token", ".2f"),
        ("strr", "STRR", ".1%"),
        ("lossless", "lossless", ".2%"),
    )
    head = "".join(f"<th class=n>{title}" for _, title, _ in columns)
    against = "".join(f"<th class=n>NSL {escape(name)}" for name in own["nsl"])
    rows = []
    for name in by_size(own["languages"]):
        row = own["languages"][name]
        cells = "".join(f"<td class=n>{cell(row[key], form)}" for key, _, form in columns)
        ratios = "".join(f"<td class=n>{cell(found['languages'].get(name), '.3f')}" for found in own["nsl"].values())
        rows.append(f"<tr><td>{escape(name)}{cells}{ratios}</tr>")
    return (
        f"<h3>More of {escape(own['name'])}</h3><p class=small>Word alone: each word encoded by itself without a leading "
        "space, as the Hugging Face tokenizer playbook has it. STRR: share of the most frequent word types (or of a list) that are one "
        "token.</p><div class=scroll><table class=heat>"
        f"<tr><th>language{head}{against}</tr>{''.join(rows)}</table></div>"
    )


def _bars(rows: Sequence[tuple[str, float | None, str]], heading: str, unit: str) -> str:
    """A table of bars: name, value, and a remark."""
    most = max((value for _, value, _ in rows if value is not None), default=1.0) or 1.0
    body = "".join(
        f"<tr><td>{escape(name)}<td class=n>{cell(value, '.2f')}"
        f'<td style="width:40%"><span class=bar style="width:{100 * (value or 0) / most:.1f}%"></span><td class="n small">{escape(remark)}</tr>'
        for name, value, remark in rows
    )
    return f"<table class=tokens><tr><th>{escape(heading)}<th>{escape(unit)}<th><th></tr>{body}</table>"


def _premiums(own: Report) -> str:
    found = own["aligned"]
    if not found:
        return ""
    rows = sorted(found["languages"].items(), key=lambda item: (-item[1]["premium"], item[0]))
    shown = [(name, row["premium"], f"{row['lines']} lines") for name, row in rows[:WORST]]
    inside = sum(row["premium"] <= 2 for _, row in rows)
    return (
        f"<h2>Premium</h2><p>Tokens of a language over those of {escape(found['reference'])} for the same text, "
        f"{len(rows)} languages: mean {cell(found['mean'], '.2f')}, Gini {cell(found['gini'], '.3f')}, "
        f"{inside} of them at most 2. The {len(shown)} worst:</p>{_bars(shown, 'language', 'premium')}"
    )


def _sweep(sweep: Sequence[Report] | None, order: Sequence[str]) -> str:
    """The metrics by vocabulary size, for all documents and for the first languages of `order`."""
    if not sweep:
        return ""
    names = sorted({name for row in sweep for name in row["metrics"]})
    known = {name for row in sweep for name in row["languages"]}
    charts = []
    for name in names:
        series = {"all": [(float(row["vocab_size"]), row["metrics"][name]) for row in sweep if name in row["metrics"]]}
        for language in [n for n in order if n in known][:SWEEP_LANGUAGES]:
            rows = [(row["vocab_size"], row["languages"].get(language, {}).get(name)) for row in sweep]
            series[language] = [(float(size), value) for size, value in rows if value is not None]
        charts.append(f"<div><h3>{escape(name)}</h3>{line_chart(series, 'vocabulary size', name)}</div>")
    return f"<h2>Vocabulary sizes</h2><div class=two>{''.join(charts)}</div>"


def _groups(report: Report, group: str, heading: str) -> str:
    """Bytes per token by source or domain, shaded over all tokenizers."""
    found = report["tokenizers"]
    rows = found[0][group]
    if not rows:
        return ""
    style = shade([t[group][n]["bytes_per_token"] for t in found for n in rows], True)
    head = "".join(f"<th class=n>{escape(t['name'])}" for t in found)
    body = []
    for name in by_size(rows):
        cells = []
        for t in found:
            value = t[group][name]["bytes_per_token"]
            cells.append("<td class='n na'>n/a" if value is None else f"<td class=n{style(value)}>{value:.2f}")
        body.append(
            f"<tr><td>{escape(name)}<td class=n>{rows[name]['docs']:,}<td class=n>{rows[name]['bytes']:,}{''.join(cells)}</tr>"
        )
    return (
        f"<h2>Bytes per token by {heading}</h2><div class=scroll><table class=heat>"
        f"<tr><th>{heading}<th class=n>documents<th class=n>bytes{head}</tr>{''.join(body)}</table></div>"
    )


def _power(value: float) -> str:
    return f"{10**value:,.0f}" if value >= 0 else "0"


def _frequencies(report: Report) -> str:
    series: dict[str, list[tuple[float, float]]] = {}
    for t in report["tokenizers"]:
        series[t["name"]] = [(math.log10(rank), math.log10(count)) for rank, count in t["rank_frequency"]]
    own = report["tokenizers"][0]
    use = own["usage"]
    seen = use["of"] - use["unused"]
    if use["unused"] and seen:
        series[f"{own['name']} unused"] = [(math.log10(seen + 1), -0.5), (math.log10(use["of"] + 1), -0.5)]
    drawing = line_chart(series, "rank of the id", "occurrences", tick=_power)
    if not drawing:
        return ""
    return (
        f"<h2>Rank and frequency</h2>{drawing}<p class=small>Occurrences of the id of each rank, both axes logarithmic. {seen:,} of {use['of']:,} ids of "
        f"{escape(own['name'])} occur in these documents; the line under 1 is the tail of the {use['unused']:,} others.</p>"
    )


def _curve(report: Report) -> str:
    series = {}
    for t in report["tokenizers"]:
        key = "fertility" if t["all"]["fertility"] is not None else "bytes_per_token"
        series[t["name"]] = [(row["share"], row[key]) for row in t["sample_curve"] if row[key] is not None]
    drawing = line_chart(series, "share of the documents", "fertility")
    if not drawing:
        return ""
    return f"<h2>Is the sample enough?</h2>{drawing}<p class=small>Fertility over a growing share of the documents. Flat at the right end, more documents would not change the figure.</p>"


def _scripts(report: Report) -> str:
    found = report["tokenizers"]
    shares = [{k: n / t["vocabulary"]["ids"] for k, n in t["vocabulary"]["scripts"].items()} for t in found]
    names = sorted({k for s in shares for k in s}, key=lambda k: (-shares[0].get(k, 0.0), k))
    head = "".join(f"<th class=n>{escape(t['name'])}" for t in found)
    body = []
    for name in names:
        cells = "".join(
            f'<td class=n style="background:rgba(0,114,178,{min(0.6, 2 * s.get(name, 0.0) ** 0.7):.2f})">{f"{s[name]:.1%}" if name in s else "–"}'
            for s in shares
        )
        body.append(f"<tr><td>{escape(name)}{cells}</tr>")
    return f"<h2>The vocabulary by script</h2><div class=scroll><table class=heat><tr><th>script{head}</tr>{''.join(body)}</table></div>"


def _usage(own: Report) -> str:
    out = []
    for title, use in (("On the model mix", own["model_mix"]), ("On these documents", own["usage"])):
        if use:
            out.append(
                f"<h3>{title}</h3><p>{use['tokens']:,} tokens: {use['unused']:,} of {use['of']:,} ids never occur "
                f"({cell(use['unused_share'], '.1%')}), {use['under_trained']:,} fewer than {use['threshold']} times "
                f"({cell(use['under_trained_share'], '.1%')}). The lowest unused ids, early merges that these texts do not have:</p>"
                f"<p class=tokens>{' '.join(_code(t) for t in use['examples'])}</p>"
            )
    return f"<h2>Unused and under-trained ids</h2>{''.join(out)}"


def short(text: str, most: int = 72) -> str:
    """A token's text for a table: spaces visible, long repeats counted, the rest cut."""
    runs = re.sub(r"(.)\1{11,}", lambda m: f"{m[1] * 3}…×{len(m[0])}", text, flags=re.S).replace(" ", "␣")
    return runs if len(runs) <= most else f"{runs[:most]}…"


def _code(token: Report) -> str:
    return f'<code title="id {token["id"]}">{escape(short(token["text"]))}</code>'


def _tokens(own: Report) -> str:
    words = own["vocabulary"]

    def listing(title: str, tokens: Sequence[Report], note: str) -> str:
        if not tokens:
            return f"<div><h3>{title}</h3><p>None.</p></div>"
        rows = "".join(
            f"<tr><td class=n>{t['id']}<td class=n>{t['bytes']}<td>{escape(t.get('kind', ''))}<td><code>{escape(short(t['text']))}</code></tr>"
            for t in tokens
        )
        return (
            f"<div><h3>{title}</h3><p class=small>{note}</p>"
            f"<table class=tokens><tr><th>id<th>bytes<th><th>token</tr>{rows}</table></div>"
        )

    kinds = ", ".join(f"{n:,} {escape(kind)}" for kind, n in words["suspicious"].items()) or "none"
    return (
        "<h2>Tokens to look at</h2><div class=two>"
        + listing("Longest", words["longest"], "By bytes; runs of blanks are left out.")
        + listing("Suspicious", words["suspicious_tokens"], f"{kinds}; the longest of each kind.")
        + listing(
            "Unreachable",
            words["unreachable_tokens"],
            f"{words['unreachable']:,} ids whose own text encodes to other ids.",
        )
        + "</div>"
    )
