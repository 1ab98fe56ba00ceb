"""The peer's half of `benchmarks/curate.py`: datatrove's reader, filters and FineWeb configuration, run on its own interpreter.

Usage: .venv-parity/bin/python benchmarks/peer_curate.py read|rules|end INPUTS RESULT

INPUTS is a text file: a path a line (archives), or JSON lines with a `text` each (rules). RESULT is written as JSON.
One process, rank 0 of 1; the steps are chained by hand and nothing is written, which costs less than an executor. Its
wall-clock limit of 1 s a page is lifted to PATIENCE: on a busy machine it drops good pages and starts a process for each.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import multiprocessing
import resource
import sys
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds of wall time that its extractor may take over a page."""
PARITY = Path(__file__).resolve().parents[1] / "tests"


class Clock:
    """CPU seconds, user and system, of this process and its ended children since it was made."""

    def __init__(self) -> None:
        self.start = self.now()

    @staticmethod
    def now() -> tuple[float, float]:
        """(this process, its children that were waited for)."""
        multiprocessing.active_children()  # waits for those that have ended
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime

    def seconds(self) -> float:
        return sum(self.now()) - sum(self.start)


def peaks() -> dict[str, int]:
    """Largest resident sets so far, in KiB: of this process and of the largest child."""
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"own_peak_kb": own, "child_peak_kb": children}


def about() -> dict[str, Any]:
    """What every result says of its process."""
    return {**peaks(), "isal": importlib.util.find_spec("isal") is not None}


def text_mark(text: str) -> str:
    """A digest of a text, for comparing what two sides keep."""
    return hashlib.sha1(text.encode("utf-8", "replace")).hexdigest()


def read_texts(inputs: Path) -> list[str]:
    with inputs.open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def reader(inputs: Path) -> Any:
    from datatrove.pipeline.readers import WarcReader

    relative = inputs.with_suffix(".relative")
    relative.write_text("".join(f"{line.lstrip('/')}\n" for line in inputs.read_text().splitlines()))
    return WarcReader("/", paths_file=str(relative))


def read(inputs: Path) -> dict[str, Any]:
    """Archives to decoded HTML: its reader gives text, so its time holds the decoding of characters."""
    out: dict[str, Any] = {}
    for name in ("first", "seconds"):
        warc = reader(inputs)
        clock, documents, size = Clock(), 0, 0
        for document in warc.run():
            documents, size = documents + 1, size + len(document.text)
        out |= {name: clock.seconds(), "documents": documents, "characters": size}
    return out


def rules(inputs: Path) -> dict[str, Any]:
    """The four filters chained, twice over all texts; a document of one word goes first, so that libraries are loaded."""
    from datatrove.data import Document
    from datatrove.pipeline import filters

    texts = read_texts(inputs)
    chain: list[tuple[str, Any]] = [
        ("gopher", filters.GopherRepetitionFilter()),
        ("gopher", filters.GopherQualityFilter()),
        ("c4", filters.C4QualityFilter(filter_no_terminal_punct=False)),
        ("fineweb", filters.FineWebQualityFilter()),
    ]

    def decide(text: str) -> list[Any]:
        document = Document(text=text, id="")
        for name, step in chain:
            verdict: Any = step.filter(document)
            if verdict is not True:
                return [name, verdict[1] if isinstance(verdict, tuple) else "", None]
        return [None, None, text_mark(document.text)]

    load = Clock()
    decide("Word")
    for _, step in chain:
        step.filter(Document(text="Word", id=""))
    out: dict[str, Any] = {"load": load.seconds()}
    verdicts: list[Any] = []
    for name in ("cold", "warm"):
        clock = Clock()
        verdicts = [decide(text) for text in texts]
        out[name] = clock.seconds()
    return {**out, "documents": len(texts), "kept": sum(v[0] is None for v in verdicts), "verdicts": verdicts}


def end(inputs: Path) -> dict[str, Any]:
    """Archives to decided documents: URL lists, trafilatura, language (en), the four filters."""
    from parity.peer_setup import fineweb

    clock = Clock()
    source, steps = reader(inputs), fineweb()
    for step in steps:
        if hasattr(step, "timeout"):
            step.timeout = PATIENCE
    documents: Any = source.run()
    for step in steps:
        documents = step.run(documents)
    kept = sum(1 for _ in documents)
    seconds = clock.seconds()
    stats = {step.name: step.stats for step in (source, *steps)}
    where = {name: float(s.time_stats.total) for name, s in stats.items()}
    counts = {name: {k: float(v.total) for k, v in s.stats.items()} for name, s in stats.items()}
    timeouts = sum(int(c.get("timeout", 0) + c.get("broken_process", 0)) for c in counts.values())
    return {"seconds": seconds, "kept": kept, "timeouts": timeouts, "where": where}


def main(mode: str, inputs: str, result: str) -> None:
    sys.path.append(str(PARITY))
    from parity.peer_setup import quiet

    quiet()
    found = {"read": read, "rules": rules, "end": end}[mode](Path(inputs))
    Path(result).write_text(json.dumps({**found, **about()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
