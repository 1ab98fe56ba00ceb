"""The curation benchmark: its arithmetic on results written here, and one run over a tiny archive against the peer."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from data_helper import REPO

FOLDER = REPO / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("curate", monkeypatch)


def side(**numbers: Any) -> dict[str, Any]:
    return {"own_peak_kb": 10, "child_peak_kb": 5, "isal": True, **numbers}


def test_ratios_are_medians_and_above_one_when_ours_is_faster(bench: ModuleType) -> None:
    runs = {
        "gristmill": {
            "read": [side(seconds=s, seconds_with_charset=2 * s) for s in (1.0, 9.0, 2.0)],
            "rules": [side(cold=4.0, warm=1.0, every_metric_cold=5.0, every_metric_warm=2.0, load=1.0)] * 3,
            "end default": [side(seconds=10.0, documents=100, kept=7, where={"curate.pages": 9.0})] * 3,
            "end fast": [side(seconds=5.0, documents=100, kept=6, where={})] * 3,
            "floor": [side(inflate=0.5, documents=100)],
            "compile": [side(seconds=0.9, compiled=True)],
        },
        "datatrove": {
            "read": [side(seconds=s, own_peak_kb=20) for s in (4.0, 6.0, 5.0)],
            "rules": [side(cold=40.0, warm=30.0, load=3.0)] * 3,
            "end": [side(seconds=40.0, kept=8, timeouts=0, where={}, isal=False)] * 3,
        },
    }
    found = bench.summary(runs, {"default": "slow", "fast": "quick"})
    assert (found["reading"], found["reading_with_charset"]) == (2.5, 1.25)
    assert (found["rules_cold"], found["rules_warm"]) == (10.0, 30.0)
    assert (found["rules_every_metric_cold"], found["rules_every_metric_warm"]) == (8.0, 15.0)
    assert (found["end_to_end_default"], found["end_to_end_fast"]) == (4.0, 8.0)
    assert found["end_to_end"] == {"slow": 4.0, "quick": 8.0}
    assert (found["docs_per_s_core"], found["peer_docs_per_s_core"]) == (10.0, 2.5)
    assert (found["kept"], found["kept_by_engine"], found["peer_kept"]) == (7, {"slow": 7, "quick": 6}, 8)
    assert found["seconds"]["gristmill"]["reading"] == 2.0
    assert found["seconds"]["datatrove"]["end_to_end"] == 40.0
    assert (found["floor_seconds"], found["compile_seconds"]) == ({"inflate": 0.5}, 0.9)
    assert found["peak_kb"]["datatrove"]["read"] == {"own_peak_kb": 20, "child_peak_kb": 5}


def test_what_was_not_timed_is_null(bench: ModuleType) -> None:
    found = bench.summary({"gristmill": {"read": [side(seconds=1.0)]}, "datatrove": {"read": [side(seconds=3.0)]}}, {})
    assert found["reading"] == 3.0
    assert found["rules_warm"] is found["end_to_end_default"] is found["kept"] is found["docs_per_s_core"] is None
    assert "rules_cold" not in found["seconds"]["gristmill"]


def test_differences_name_document_and_both_reasons(bench: ModuleType) -> None:
    names = {"gopher:gopher_short_doc": "gopher.too_few_words", "c4:curly_bracket": "c4.curly_bracket"}
    mine = [["gopher.too_few_words", None], [None, "aa"], [None, "bb"], ["c4.curly_bracket", None]]
    theirs = [["gopher", "gopher_short_doc", None], [None, None, "aa"], [None, None, "cc"], ["fineweb", "new", None]]
    found = bench.different({"names": names, "verdicts": mine}, {"verdicts": theirs})
    assert found == [[2, "kept", "kept, another text"], [3, "c4.curly_bracket", "fineweb:new"]]


def test_memory_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = load("extract_memory", monkeypatch)

    def points(*mib: float | None) -> list[dict[str, Any]]:
        return [{"extraction_mib": m} for m in mib]

    assert memory.bound(points(100, 200, None, 110, 210))["bounded"] is True
    assert memory.bound(points(100, 200, 300, 400))["bounded"] is False
    assert memory.bound(points(100))["bounded"] is None


def archive(path: Path) -> None:
    """Two English pages of some length and a German one."""
    sentence = "The miller number {} opened the gate of the old mill and let the water of the river turn its wheel. "
    bodies = ["".join(f"<p>{sentence.format(10 * n + i) * 3}</p>" for i in range(6)) for n in range(2)]
    bodies.append(
        "<p>Der Müller öffnete das Tor der alten Mühle und ließ das Wasser des Flusses das Rad drehen.</p>" * 6
    )
    with path.open("wb") as file:
        for n, body in enumerate(bodies):
            html = f"<html><body><article>{body}</article></body></html>".encode()
            http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + html
            head = (
                f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{n:032d}>\r\n"
                f"WARC-Date: 2026-03-01T12:00:00Z\r\nWARC-Target-URI: http://mill{n}.example.org/\r\n"
                "WARC-Identified-Payload-Type: text/html\r\nContent-Type: application/http; msgtype=response\r\n"
                f"Content-Length: {len(http)}\r\n\r\n"
            )
            file.write(gzip.compress(head.encode() + http + b"\r\n\r\n"))


@pytest.mark.slow
def test_a_tiny_run(tmp_path: Path) -> None:
    if not (REPO / ".venv-parity" / ".gristmill").exists():
        pytest.skip("no peer here: run `make parity`")
    archive(tmp_path / "tiny.warc.gz")
    command = [sys.executable, str(FOLDER / "curate.py"), "--warc", str(tmp_path / "*.warc.gz"), "--json"]
    done = subprocess.run(
        [*command, "--rounds", "1", "--no-f1", "--engines", "resiliparse"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    for name in ("rules_warm", "rules_cold", "end_to_end_default", "end_to_end_fast", "reading"):
        assert found[name] > 0, name
    assert found["docs_per_s_core"] > 0
    assert found["peer_docs_per_s_core"] > 0
    assert (found["pages"], found["rules_documents"]["of_archives"], found["rules_different"]) == (3, 2, 0)
    assert set(found["seconds"]) == {"gristmill", "datatrove"}
    assert {"kept", "peer_kept", "isal", "peak_kb"} <= set(found)
