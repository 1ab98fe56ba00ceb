"""What `curate.decide` drops before any rule looks: documents taken down, and pages whose owners opted out of use.

Both are judged from the columns `id`, `url` and `optout` of `curate.pages`, so that another list or another weighing
extracts no page again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gristmill.core.errors import FormatError, GristmillError, UsageError
from gristmill.curate.optout import refused
from gristmill.curate.robots import MAX_CHARS, Robots
from gristmill.curate.rules.engine import Outcome
from gristmill.curate.schema import Optout
from gristmill.curate.takedown import Takedown
from gristmill.curate.url_lists import file_digest
from gristmill.curate.url_parts import url_parts

COLUMNS = ("id", "url", "optout")
REASONS = ("optout.robots", "optout.x_robots_tag", "optout.meta", "optout.tdm")
_BATCH = 256  # texts may have 500 KiB each
_PARQUET = b"PAR1"


class Policy:
    """Takedowns and opt-outs of a recipe. Config: `takedown` (a path or None), `optout` (schema.Optout or None)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.takedown: str | None = config.get("takedown")
        block = config.get("optout")
        self.optout = Optout.model_validate(block) if block is not None else None

    def __bool__(self) -> bool:
        return self.takedown is not None or self.optout is not None

    @property
    def settings(self) -> dict[str, Any]:
        """The part that belongs to a task's config: no paths; empty when nothing is on."""
        out: dict[str, Any] = {"takedown": True} if self.takedown is not None else {}
        if self.optout is not None:
            block = self.optout.model_dump(mode="json")
            out["optout"] = {**block, "robots": self.optout.robots is not None}
        return out

    def uses(self) -> dict[str, str]:
        """Digests of the two files. Raises UsageError where one is missing."""
        named = {"takedown": self.takedown, "optout_robots": self.optout.robots if self.optout else None}
        out = {}
        for name, path in named.items():
            if path is not None:
                if not Path(path).is_file():
                    raise UsageError(f"no such file: {path}", hint=f"the recipe names it as `{name.replace('_', '.')}`")
                out[name] = file_digest(Path(path))
        return out

    def apply(self, pages: pa.Table, outcome: Outcome, planned: Mapping[str, str]) -> None:
        """Drop documents of `pages` (COLUMNS, in the outcome's order). `planned` are the digests of the task.

        Raises GristmillError where a file is not the planned one, FormatError where it can't be read.
        """
        for name, found in self.uses().items():
            if planned.get(name, found) != found:
                raise GristmillError(f"{name} changed since this task was planned", hint="run the same command again")
        urls = [url or "" for url in pages["url"].to_pylist()]
        found_reasons: list[str | None] = [None] * len(urls)
        if self.takedown is not None:
            held = Takedown.read(self.takedown)
            matches = (held.match(i, url) for i, url in zip(pages["id"].to_pylist(), urls, strict=True))
            found_reasons = [match[0] if match else None for match in matches]
        if self.optout is not None:
            for i, reason in enumerate(self._opted_out(urls, pages["optout"].to_pylist())):
                found_reasons[i] = found_reasons[i] or reason
        reasons = np.array(found_reasons, object)
        for reason in sorted({r for r in found_reasons if r}):
            outcome.drop(reasons == reason, reason)

    def _opted_out(self, urls: list[str], stated: list[str | None]) -> Iterator[str | None]:
        settings = self.optout
        assert settings is not None
        robots: dict[str, Robots] = {}
        parts = [url_parts(url) for url in urls]
        if settings.robots is not None:
            wanted = {part.authority for part in parts if part.host}
            robots = {host: Robots.parse(text) for host, text in robots_of(Path(settings.robots), wanted)}
        for part, signals in zip(parts, stated, strict=True):
            site = robots.get(part.authority)
            if site is not None and not all(site.allows(agent, part.target) for agent in settings.agents):
                yield REASONS[0]
            else:
                kinds = settings.x_robots_tag, settings.meta, settings.tdm
                yield refused(signals, *kinds, agents=settings.agents) if signals else None


def robots_of(path: Path, hosts: set[str]) -> Iterator[tuple[str, str]]:
    """(host, robots.txt) of the wanted hosts, from a table of any size in bounded memory; of a repeated host the first.

    Raises FormatError when the table is neither Parquet nor JSONL with the columns `host` and `text`.
    """
    wanted = pa.array(sorted(hosts), pa.string())
    seen: set[str] = set()
    for batch in _batches(path):
        host = pc.utf8_lower(batch["host"])
        for name, text in zip(
            *(c.filter(pc.is_in(host, wanted)).to_pylist() for c in (host, batch["text"])), strict=True
        ):
            if name not in seen and text is not None:
                seen.add(name)
                yield name, text[:MAX_CHARS]


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with open(path, "rb") as file:
        parquet = file.read(4) == _PARQUET
    if not parquet:
        yield from _json_batches(path)
        return
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            if not {"host", "text"} <= set(table.schema_arrow.names):
                raise KeyError(f"it has {', '.join(table.schema_arrow.names[:10])}")
            yield from table.iter_batches(batch_size=_BATCH, columns=["host", "text"])
    except (pa.ArrowException, KeyError) as error:
        raise FormatError(
            f"{path} is no table of robots.txt files: {error.args[0]}", hint="columns `host` and `text`"
        ) from error


def _json_batches(path: Path) -> Iterator[pa.RecordBatch]:
    from gristmill.curate.jsonl import read_objects

    held: list[dict[str, Any]] = []
    for number, row in read_objects(path):
        if not isinstance(row.get("host"), str) or not isinstance(row.get("text"), str | None):
            raise FormatError(f"{path}:{number}: no `host` and `text`", hint='{"host": "example.org", "text": "…"}')
        held.append({"host": row["host"], "text": row.get("text")})
        if len(held) == _BATCH:
            yield pa.RecordBatch.from_pylist(held, _ROBOTS)
            held = []
    yield pa.RecordBatch.from_pylist(held, _ROBOTS)


_ROBOTS = pa.schema([("host", pa.string()), ("text", pa.string())])
