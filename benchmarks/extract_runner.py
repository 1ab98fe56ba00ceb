"""Serves one of gristmill's engines to benchmarks/extract.py, by the protocol of peer_extract.py.

Arguments: a file of pages, one JSON `{"html": …}` a line, and the settings of `curate.extract` as JSON.
"""

from __future__ import annotations

import json
import sys
import time

from gristmill.curate.engines import RefusedPage, engine_uses
from gristmill.curate.extract import extract_text
from gristmill.curate.schema import Extract


def main(path: str, settings: str) -> None:
    extract = Extract.model_validate_json(settings)
    with open(path, encoding="utf-8") as file:
        pages = [json.loads(line)["html"] for line in file]
    extract_text("<html><body><article><p>" + "A first page. " * 30 + "</p></article></body></html>", extract)
    print(json.dumps({"versions": engine_uses(extract.engine)}), flush=True)
    for line in sys.stdin:
        start, stop = map(int, line.split())
        texts = []
        began = time.process_time()
        for html in pages[start:stop]:
            try:
                texts.append(extract_text(html, extract) or "")
            except RefusedPage:
                texts.append("")
        print(json.dumps({"cpu": time.process_time() - began, "texts": texts}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
