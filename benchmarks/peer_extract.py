"""Serves the peer's extraction to benchmarks/extract.py: trafilatura as datatrove calls it, on the peer's own interpreter.

Run by .venv-parity/bin/python with a file of pages, one JSON `{"html": …}` a line; imports nothing of gristmill. Every
line `START STOP` on stdin is answered by one JSON line: CPU seconds for those pages, and their texts.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from importlib.metadata import version
from inspect import signature

PACKAGES = ("datatrove", "trafilatura", "lxml", "jusText")


def main(path: str) -> None:
    from datatrove.pipeline.extractors import Trafilatura

    logging.disable(logging.CRITICAL)
    with open(path, encoding="utf-8") as file:
        pages = [json.loads(line)["html"] for line in file]
    extractor = Trafilatura(favour_precision=True)  # as in datatrove's published FineWeb configuration
    extractor.extract("<html><body><article><p>" + "A first page. " * 30 + "</p></article></body></html>")
    settings = {
        name: str(p.default) for name, p in signature(Trafilatura.__init__).parameters.items() if name != "self"
    }
    print(json.dumps({"versions": {name: version(name) for name in PACKAGES}, "settings": settings}), flush=True)
    for line in sys.stdin:
        start, stop = map(int, line.split())
        texts = []
        began = time.process_time()
        for html in pages[start:stop]:
            try:
                texts.append(extractor.extract(html) or "")
            except Exception:  # datatrove drops such a page and goes on
                texts.append("")
        print(json.dumps({"cpu": time.process_time() - began, "texts": texts}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
