"""Writing the sample: pages rendered, encoded and put into WARC files, with the truth file and the labelled texts."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import orjson

from gristmill.core.errors import UsageError
from gristmill.core.hashing import sha256_file
from gristmill.pipelines.sample import bodies, junk
from gristmill.pipelines.sample.articles import words
from gristmill.pipelines.sample.chrome import TEASERS, WORDS
from gristmill.pipelines.sample.draw import Draw
from gristmill.pipelines.sample.plan import quotas
from gristmill.pipelines.sample.plant import Planter, Spec
from gristmill.pipelines.sample.records import Exchange, WarcWriter, Written, fetch_date
from gristmill.pipelines.sample.sources import versions
from gristmill.pipelines.sample.templates import View, render
from gristmill.pipelines.sample.truth import (
    LABELS_NAME,
    TRUTH_NAME,
    PlantedPage,
    SampleFile,
    Truth,
    expected_of,
    parameters_of,
)

_PHRASES = {200: "OK", 301: "Moved Permanently", 302: "Found", 404: "Not Found", 500: "Internal Server Error"}
_CUT = 0.6
"""The last member ends after this share of its bytes."""


def write_sample(out: Path | str, *, seed: int = 0, pages: int | None = None, files: int = 4) -> Truth:
    """Write `sample-00000.warc.gz` …, `quality-labels.jsonl` and, last, `truth.json` into the folder `out`.

    `pages` is about the number of pages (None: 2,000; at least some 70 are written, so that every kind is there). The
    bytes depend on the arguments, the Python version and the installed packages whose docstrings are used, and on
    nothing else. Raises UsageError on a bad argument and InputError when datatrove's lists are missing.
    """
    if files < 1 or files > 1000:
        raise UsageError(f"--files {files}: not between 1 and 1000")
    if pages is not None and not 1 <= pages <= 100_000:
        raise UsageError(f"--pages {pages}: not between 1 and 100000")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for old in [out / TRUTH_NAME, *sorted(out.glob("sample-*.warc.gz"))]:
        old.unlink(missing_ok=True)  # the truth first: without it the folder is incomplete
    planter = Planter(seed, quotas(pages))
    specs = planter.specs()
    planted, records = _write_warcs(out, specs, seed, files)
    labels = _write_labels(out / LABELS_NAME, planter, seed)
    names = [*records, LABELS_NAME]
    truth = Truth(
        parameters=parameters_of(seed, pages, files),
        sources=versions(),
        files=tuple(SampleFile(n, (out / n).stat().st_size, sha256_file(out / n)) for n in names),
        records=records,
        pages=planted,
        expected=expected_of(planted, records, labels),
    )
    part = out / f"{TRUTH_NAME}.part"
    part.write_bytes(truth.to_json())
    os.replace(part, out / TRUTH_NAME)
    return truth


def _write_warcs(
    out: Path, specs: list[Spec], seed: int, files: int
) -> tuple[tuple[PlantedPage, ...], dict[str, dict[str, int]]]:
    """The files in equal runs of pages; the very last response is cut."""
    planted: list[PlantedPage] = []
    records: dict[str, dict[str, int]] = {}
    earlier: dict[str, tuple[str, str, str]] = {}
    links = [(s.url, s.title) for s in specs if s.kind == "prose"]
    for f in range(files):
        name = f"sample-{f:05d}.warc.gz"
        start, end = len(specs) * f // files, len(specs) * (f + 1) // files
        with open(out / name, "wb") as file:
            writer = WarcWriter(file, name, seed, earlier)
            writer.warcinfo(fetch_date(seed, start))
            for i in range(start, end):
                spec = specs[i]
                cut = _CUT if spec.kind == "truncated" else None
                related = tuple(links[(i * 7 + k) % len(links)] for k in range(3)) if spec.language == "en" else ()
                written = writer.exchange(_exchange(spec, seed, related), fetch_date(seed, i), cut)
                planted.append(_planted(spec, name, written))
            records[name] = dict(sorted(writer.records.items()))
    return tuple(planted), records


def _exchange(spec: Spec, seed: int, links: tuple[tuple[str, str], ...]) -> Exchange:
    draw = Draw(seed, "exchange", spec.url, spec.kind)
    body = _body(spec, draw, links)
    content_type = spec.content_type
    if spec.charset and spec.declared in ("header", "both"):
        content_type += f"; charset={spec.charset}"
    headers = [
        ("Date", fetch_date(seed, 0).strftime("%a, %d %b %Y %H:%M:%S GMT")),
        ("Server", spec.site.server),
        ("Content-Type", content_type),
    ]
    if spec.how and spec.kind == "redirect":
        headers.append(("Location", spec.how))
    if spec.encoding:
        body, extra = bodies.encode(body, spec.encoding, draw)
        headers += extra
    if not spec.encoding or "chunked" not in spec.encoding:
        headers.append(("Content-Length", str(len(body))))
    headers.append(("Connection", "close"))
    head = f"HTTP/1.1 {spec.status} {_PHRASES[spec.status]}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers) + "\r\n"
    revisit = spec.how if spec.kind == "revisit" else None
    return Exchange(spec.url, head.encode("ascii"), body, spec.content_type, spec.charset, revisit)


def _body(spec: Spec, draw: Draw, links: tuple[tuple[str, str], ...]) -> bytes:
    if spec.kind in ("empty", "revisit") or (spec.kind == "redirect" and spec.status == 302):
        return b""
    if spec.kind == "binary_as_html":
        return bodies.binary(draw)
    if spec.kind == "not_html":
        return bodies.not_html(spec.content_type, spec.title, " ".join(draw.sample(TEASERS, 9)), draw)
    if spec.status != 200:
        return f"<html><head><title>{spec.title}</title></head><body><h1>{spec.title}</h1></body></html>\n".encode()
    charset = spec.charset or "utf-8"
    view = View(
        spec.site,
        spec.url.split(spec.url.split("/")[2], 1)[1],
        spec.title,
        spec.blocks,
        draw,
        spec.language if spec.language in WORDS else "en",
        charset if spec.declared in ("meta", "both") else None,
        links,
    )
    html = render(view)
    if spec.kind == "broken" and spec.how:
        return bodies.broken(html, spec.how)
    return html.encode(charset, "xmlcharrefreplace")


def _planted(spec: Spec, file: str, written: Written) -> PlantedPage:
    text = spec.text()
    return PlantedPage(
        url=spec.url,
        file=file,
        offset=written.offset,
        length=written.length,
        kind=spec.kind,
        expect=spec.expect,
        reason=spec.reason,
        status=spec.status,
        template=spec.site.template if spec.blocks or spec.kind == "boilerplate" else None,
        language=spec.language,
        charset=spec.charset,
        declared=spec.declared,
        encoding=spec.encoding,
        group=spec.group,
        jaccard=None if spec.jaccard is None else round(spec.jaccard, 6),
        emails=spec.emails,
        words=len(words(text)),
        chars=len(text),
    )


_PIECE_WORDS = 50
_LOW_CHARS = 1_200


def _write_labels(path: Path, planter: Planter, seed: int) -> dict[str, int]:
    """`{"text", "label"}` lines in drawn order: pieces of held-out articles are `hq`, as much generated junk is `lq`.

    Pieces of at least 50 words: some hundred longer texts are too few for fastText's default number of epochs.
    """
    rows = [(piece, "hq") for a in planter.held_out for piece in _pieces(a.text())]
    low: dict[str, None] = {}
    i = 0
    while len(low) < len(rows):
        low[_low_quality(i, Draw(seed, "label", i))] = None
        i += 1
    rows = Draw(seed, "label order").shuffled([*rows, *((text, "lq") for text in low)])
    path.write_bytes(b"".join(orjson.dumps({"text": t, "label": x}) + b"\n" for t, x in rows))
    return dict(sorted(Counter(label for _, label in rows).items()))


def _pieces(text: str) -> list[str]:
    """Runs of whole lines of at least 50 words; a shorter rest is left out."""
    out: list[str] = []
    held: list[str] = []
    for line in text.split("\n"):
        held.append(line)
        if sum(len(x.split()) for x in held) >= _PIECE_WORDS:
            out.append("\n".join(held))
            held = []
    return out


def _low_quality(i: int, draw: Draw) -> str:
    if i % 5 == 4:
        menu = WORDS["en"]
        return junk.menu_text(menu.menu, draw.sample(TEASERS, draw.between(4, 9)), menu.cookies)
    # repeated pages are few: there are only some ways to repeat five sentences
    make = junk.repeated if i % 40 == 3 else (junk.promo, junk.spam, junk.promo, junk.promo)[i % 5]
    title, blocks = make(draw)
    return "\n".join([title, *(line for b in blocks for line in b.lines)])[:_LOW_CHARS]
