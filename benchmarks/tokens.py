"""Every figure of tokens, mixtures and shards in one object, from the four benchmarks that measure them.

Usage: python benchmarks/tokens.py [--json] [--only encode,end,shuffle,pack,copy,memory] [--rounds N] [--text DIR] [--details]

Prints {"encode", "end_to_end", "shuffle_of_floor", "pack_docs_per_s", "loader_bytes_per_s", "loader_rss_bytes"}; a figure
that was left out or failed is null, and the exit code is then 1 if it failed. `details` has all that the benchmarks
said. Each runs in a process of its own, one after another. DIR holds *.jsonl.zst with `text` (default: $GRISTMILL_TEST_DATA/text, or
../shared/data/text beside the repository).

encode             × datatrove's DocumentTokenizer, CPU seconds, one thread      tokens_encode.py
end_to_end         × datatrove's tokenizer + merger, same documents, one core    tokens_end.py
shuffle_of_floor   two passes of plain copying / the shuffle                     tokens_shards.py
pack_docs_per_s    documents a second and core at L = 4,096                      tokens_shards.py
loader_bytes_per_s stored bytes a CPU second into a reused buffer                tokens_loader.py
loader_rss_bytes   growth of anonymous memory after 10^6 samples of 10^8         tokens_loader.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FIGURES = {
    "encode": ("encode", "tokens_encode.py", "encode"),
    "end": ("end_to_end", "tokens_end.py", "end_to_end"),
    "shuffle": ("shuffle_of_floor", "tokens_shards.py", "shuffle_of_floor"),
    "pack": ("pack_docs_per_s", "tokens_shards.py", "pack_docs_per_s"),
    "copy": ("loader_bytes_per_s", "tokens_loader.py", "loader_bytes_per_s"),
    "memory": ("loader_rss_bytes", "tokens_loader.py", "loader_rss_bytes"),
}
"""Part -> (figure, benchmark, its key there)."""
WITH = {"tokens_loader.py": {"copy": "copy,batch", "memory": "memory,peers"}}
"""Parts of a benchmark that are measured with a figure, for `details`."""


def texts(named: str | None) -> str | None:
    """The folder of texts, None where there is none on this machine."""
    if named is not None:
        return named
    root = Path(os.environ.get("GRISTMILL_TEST_DATA") or HERE.parents[1] / "shared" / "data")
    return str(root / "text") if (root / "text").is_dir() else None


def arguments(part: str, script: str, args: argparse.Namespace) -> list[str]:
    out = ["--json", "--rounds", str(args.rounds)]
    if script in ("tokens_encode.py", "tokens_end.py"):
        out += ["--text", str(args.text)]
    else:
        out += ["--only", WITH.get(script, {}).get(part, part)]
    return out if script == "tokens_encode.py" else [*out, "--scratch", str(args.scratch)]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The figures, null where one was left out or failed, and `details`: what each part said, or why it failed."""
    out: dict[str, Any] = {figure: None for figure, _, _ in FIGURES.values()}
    details: dict[str, Any] = {}
    for part in args.only.split(","):
        figure, script, key = FIGURES[part]
        if script in ("tokens_encode.py", "tokens_end.py") and args.text is None:
            details[part] = {"failed": "no texts: --text DIR"}
            continue
        print(f"{part}: {script}", file=sys.stderr, flush=True)
        command = [sys.executable, str(HERE / script), *arguments(part, script, args)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        try:
            details[part] = json.loads(done.stdout)
            out[figure] = details[part][key]
        except (ValueError, KeyError, TypeError) as error:
            details[part] = {"failed": f"exit code {done.returncode}: {type(error).__name__}: {error}"}
    return {**out, "details": details}


def main() -> None:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--json", action="store_true", help="one JSON object on stdout")
    found.add_argument("--only", default=",".join(FIGURES), help=f"parts, by comma: {', '.join(FIGURES)}")
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--text", metavar="DIR", help="folder of *.jsonl.zst")
    found.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where temporary files go")
    found.add_argument("--details", action="store_true", help="with --json: also all that each part said")
    args = found.parse_args()
    if unknown := [part for part in args.only.split(",") if part not in FIGURES]:
        found.error(f"no part {unknown[0]!r}; parts: {', '.join(FIGURES)}")
    args.text = texts(args.text)
    result = measure(args)
    failed = [part for part, said in result["details"].items() if "failed" in said]
    if not args.details:
        result = {name: value for name, value in result.items() if name != "details"}
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:<20} {value if isinstance(value, dict) or value is None else f'{value:,.4g}'}")
    for part in failed:
        print(f"{part} failed", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
