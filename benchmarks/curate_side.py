"""Our half of `benchmarks/curate.py`: the reader, the rules and the line from archives to decided documents, each in a process of its own.

Usage: .venv/bin/python benchmarks/curate_side.py read|rules|end|floor|compile INPUTS RESULT [--set KEY=VALUE ...]

INPUTS is a text file: a path a line (archives), or JSON lines with a `text` each (rules). RESULT is written as JSON;
`end` also leaves its English texts beside it, as RESULT.texts.jsonl. `--set` changes the recipe `web`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from peer_curate import Clock, about, read_texts, text_mark

BATCH = 256
FAMILIES = ("lines", "words", "ngrams", "layout", "c4", "dclm", "refinedweb")
"""All that `curate.measure` knows; a recipe with FineWeb's rules needs the first five."""


def paths_of(inputs: Path) -> list[str]:
    return inputs.read_text().splitlines()


def pages_of(paths: Sequence[str]) -> Iterator[Any]:
    """Every HTML page of the archives, its payload decoded (chunks, content encodings), characters not yet."""
    from gristmill.curate.warc import Damage, Limits, Page, open_warc, page_of, read_records

    limits = Limits()
    for path in paths:
        with open_warc(path) as stream:
            for record in read_records(stream, path, limits):
                if not isinstance(record, Damage) and isinstance(page := page_of(record, limits), Page):
                    yield page


def read(inputs: Path, _: Sequence[str]) -> dict[str, Any]:
    """Archives to payload bytes; and, timed apart, the same with characters decoded, as the peer's reader gives them.

    A first pass, which loads libraries and fills the disk's cache, is not timed: neither is the peer's.
    """
    from gristmill.curate.charset import decode_html

    out: dict[str, Any] = {}
    for name, decode in (("first", True), ("seconds", False), ("seconds_with_charset", True)):
        clock, documents, size = Clock(), 0, 0
        for page in pages_of(paths_of(inputs)):
            if decode:
                decode_html(page.html, page.content_type)
            documents, size = documents + 1, size + len(page.html)
        out |= {name: clock.seconds(), "documents": documents, "bytes": size}
    return out


def floor(inputs: Path, _: Sequence[str]) -> dict[str, Any]:
    """What no reader or extractor can go below, over the same pages: inflating, decoding characters, parsing."""
    from gristmill.curate.charset import decode_html
    from gristmill.curate.warc_codecs import Gzip

    def timed(name: str, work: Callable[[], Any]) -> Any:
        clock = Clock()
        found = work()
        out[name] = clock.seconds()
        return found

    def inflate(make: Callable[[bytes], Any]) -> int:
        made = 0
        for path in paths_of(inputs):
            data = memoryview(Path(path).read_bytes())
            while data[:3] == Gzip.magic:
                codec, at = make(bytes(data[:8])), 0
                while not codec.eof and (codec.tail or at < len(data)):
                    step = b"" if codec.tail else data[at : at + 65536]
                    made += len(codec.decompress(step))
                    at += len(step)
                data = data[at - len(codec.unused) :]
        return made

    out: dict[str, Any] = {}
    timed("inflate", lambda: inflate(Gzip.quick))
    timed("inflate_zlib", lambda: inflate(lambda _: Gzip(zlib)))
    raw = [(page.html, page.content_type) for page in pages_of(paths_of(inputs))]
    texts = timed("charset", lambda: [decode_html(*page)[0] for page in raw])
    parsers: dict[str, Callable[[str], Any]] = {}
    try:
        from lxml import html

        parsers["parse_lxml"] = lambda text: html.fromstring(text.encode("utf-8", "replace"))
        from resiliparse.parse.html import HTMLTree

        parsers["parse_lexbor"] = HTMLTree.parse
    except ImportError:
        pass
    for name, parse in parsers.items():

        def all_of(parse: Callable[[str], Any] = parse) -> int:
            failed = 0
            for text in texts:
                try:
                    parse(text)
                except Exception:  # a page without an element
                    failed += 1
            return failed

        timed(name, all_of)
    return {**out, "documents": len(texts)}


def rules(inputs: Path, _: Sequence[str]) -> dict[str, Any]:
    """FineWeb's rule sets as `curate.measure` and `curate.decide` apply them, twice over all texts, then every metric.

    The kernels are compiled and libraries loaded before, by a document of one word; the memo of words is empty.
    """
    import pyarrow as pa

    from gristmill.curate.decide import decide_table
    from gristmill.curate.kernels import kernels
    from gristmill.curate.measure import Plan, measure_batch
    from gristmill.curate.rules import RULES
    from gristmill.curate.schema import C4, C4Rewrite, FineWeb, Gopher, Language, Rules
    from gristmill.curate.words import LEXICONS

    sets = Rules.model_validate({"gopher@datatrove": Gopher(), "c4@datatrove": C4(), "fineweb@datatrove": FineWeb()})

    def decide(texts: Sequence[str], plan: Plan) -> list[list[Any]]:
        found: list[list[Any]] = []
        for at in range(0, len(texts), BATCH):
            part = texts[at : at + BATCH]
            n = len(part)
            measures = measure_batch(part, ["en"] * n, plan.c4, plan.short_line_chars, plan)
            head = {"id": pa.array(map(str, range(n))), "language": pa.array(["en"] * n)}
            for name, column in {**head, "language_score": pa.array([1.0] * n)}.items():
                measures = measures.append_column(name, column)
            verdicts, _ = decide_table(measures, Language(), sets)
            rewritten = measures.column("c4.text").to_pylist()
            found += [
                [reason, None if reason else text_mark(text)]
                for reason, text in zip(verdicts.column("reason").to_pylist(), rewritten, strict=True)
            ]
        return found

    texts = read_texts(inputs)
    plan, every = Plan(c4=C4Rewrite()), Plan(frozenset(FAMILIES), c4=C4Rewrite())  # type: ignore[arg-type]
    load = Clock()
    decide(["Word"], every)
    out: dict[str, Any] = {"load": load.seconds()}
    verdicts: list[list[Any]] = []
    for name, which, forget in (("cold", plan, False), ("warm", plan, False), ("every_metric_warm", every, False),
                                ("every_metric_cold", every, True)):  # fmt: skip
        if forget and (lexicon := LEXICONS.get("en")):
            lexicon.clear()
        clock = Clock()
        verdicts = decide(texts, which)
        out[name] = clock.seconds()
    out["names"] = {f"{r.name.split('.')[0]}:{r.datatrove}": r.name for r in RULES if r.set.endswith("@datatrove")}
    kept = sum(v[0] is None for v in verdicts)
    return {**out, "documents": len(texts), "kept": kept, "verdicts": verdicts, "compiled": kernels().compiled}


def end(inputs: Path, changes: Sequence[str], texts_to: Path | None = None) -> dict[str, Any]:
    """The stages of the recipe `web` up to `curate.decide`, as a run executes them: files in, Parquet and receipts out."""
    from gristmill.core.manifest import run_task
    from gristmill.curate import sandbox_idle
    from gristmill.pipelines.graph import ancestors, build
    from gristmill.pipelines.inputs import list_inputs
    from gristmill.pipelines.schema import load_recipe

    paths = paths_of(inputs)
    chosen = [f"input.paths={json.dumps(paths)}", "curate.language.keep=[en]", *changes]
    nodes = ancestors(build(load_recipe("web", chosen)), "curate.decide")
    with tempfile.TemporaryDirectory(prefix="gristmill-benchmark-") as folder:
        root = Path(folder)
        clock = Clock()
        done: dict[str, list[Any]] = {"input": list_inputs(paths, root)[0]}
        where: dict[str, float] = {}
        for node in nodes:
            own, children = Clock.now()
            upstream = {name: done[name] for name in node.upstream}
            done[node.name] = [run_task(node.stage, task, root) for task in node.stage.tasks(upstream)]
            sandbox_idle.release()  # a child's time counts when it has ended
            after_own, after_children = Clock.now()
            where[node.name] = after_own - own
            if after_children > children:
                where[f"{node.name} (extraction process)"] = after_children - children
        seconds = clock.seconds()
        drops: Counter[str] = Counter()
        for receipts in done.values():
            for receipt in receipts:
                drops.update(receipt.drops or {})
        if texts_to is not None:
            save_english(done["curate.pages"], texts_to)
        kept = sum(receipt.rows_out for receipt in done["curate.decide"])
    rows = sum(receipt.rows_in for receipt in done["curate.pages"])
    no_page = sum(n for reason, n in drops.items() if reason.startswith(("record.", "http.")))
    return {"seconds": seconds, "kept": kept, "documents": rows - no_page, "where": where, "drops": dict(drops)}


def save_english(receipts: Sequence[Any], place: Path) -> None:
    """The English texts of `curate.pages`, as JSON lines."""
    import pyarrow.parquet as pq

    with place.open("w", encoding="utf-8") as file:
        for receipt in receipts:
            table = pq.read_table(receipt.output("pages.parquet").path, columns=["text", "language", "language_score"])
            for row in table.to_pylist():
                if row["language"] == "en" and row["language_score"] > 0.65:
                    file.write(json.dumps({"text": row["text"]}) + "\n")


def compile_kernels(_: Path, __: Sequence[str]) -> dict[str, Any]:
    """The time to compile the kernels, and to hash datatrove's domains: with $NUMBA_CACHE_DIR and $XDG_CACHE_HOME empty."""
    from gristmill.curate.chunks import chunk_table
    from gristmill.curate.engines import load_engine
    from gristmill.curate.kernels import kernels
    from gristmill.curate.urls import load_lists

    clock = Clock()
    compiled = kernels().compiled
    chunk_table()
    load_engine("blocks")("<p>A first page.</p>", tables=True, comments=False, favor="balanced")
    out = {"compiled": compiled, "seconds": clock.seconds()}
    clock = Clock()
    load_lists()
    return {**out, "lists_seconds": clock.seconds()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes: dict[str, Callable[[Path, Sequence[str]], dict[str, Any]]]
    modes = {"read": read, "rules": rules, "floor": floor, "compile": compile_kernels}
    parser.add_argument("mode", choices=[*modes, "end"])
    parser.add_argument("inputs", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    if args.mode == "end":
        found = end(args.inputs, args.changes, args.result.with_suffix(".texts.jsonl"))
    else:
        found = modes[args.mode](args.inputs, args.changes)
    args.result.write_text(json.dumps({**found, **about()}))


if __name__ == "__main__":
    main()
