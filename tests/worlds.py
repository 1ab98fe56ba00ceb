"""Small worlds for tests: tiny WARC files, a line of fake stages, and the CLI as a real process."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]


def gristmill(
    *args: str, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run the CLI in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "gristmill.pipelines", *args],
        cwd=cwd or REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start(*args: str, env: dict[str, str] | None = None, log: Path | None = None) -> subprocess.Popen[bytes]:
    """Start the CLI in a process group of its own, so that a test can kill the whole tree."""
    out = open(log, "ab") if log else subprocess.DEVNULL  # noqa: SIM115
    return subprocess.Popen(
        [sys.executable, "-m", "gristmill.pipelines", *args],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=out,
        stderr=out,
        start_new_session=True,
    )


def shown(root: Path) -> dict[str, dict[str, Any]]:
    """`gristmill show --json` by stage."""
    done = gristmill("show", "--root", str(root), "--json")
    assert done.returncode == 0, done.stderr
    return {s["stage"]: s for s in json.loads(done.stdout)["stages"]}


def warc_record(kind: str, block: bytes, url: str | None = None, **headers: str) -> bytes:
    """One WARC/1.0 record, uncompressed."""
    lines = ["WARC/1.0", f"WARC-Type: {kind}", "WARC-Date: 2024-05-01T00:00:00Z"]
    lines += [f"WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-{len(block):012d}>"]
    if url:
        lines.append(f"WARC-Target-URI: {url}")
    lines += [f"{k.replace('_', '-')}: {v}" for k, v in headers.items()]
    head = "\r\n".join([*lines, f"Content-Length: {len(block)}"]).encode()
    return head + b"\r\n\r\n" + block + b"\r\n\r\n"


def response(url: str, body: bytes, content_type: str = "text/html; charset=utf-8", status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return warc_record("response", head + body, url)


def page(title: str, paragraphs: Sequence[str]) -> bytes:
    text = "".join(f"<p>{p}</p>" for p in paragraphs)
    return f"<html><head><title>{title}</title></head><body><article><h1>{title}</h1>{text}</article></body></html>".encode()


def write_warc(path: Path, records: Sequence[bytes]) -> Path:
    """A .warc.gz with one gzip member per record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(gzip.compress(r, mtime=0) for r in records))
    return path
