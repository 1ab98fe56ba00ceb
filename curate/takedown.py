"""A takedown list: URLs, domains and document ids that must go, one a line, each matched in its own way.

A line is a document id (32 hex digits), a URL (with `scheme://`) or a domain, which holds all names below it. URLs
compare without scheme, fragment and the case of their host. Empty lines and what follows ` #` are remarks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gristmill.core.blocklist import ID
from gristmill.core.errors import FormatError
from gristmill.curate.url_lists import entries
from gristmill.curate.url_parts import ascii_host, domains_of, url_parts

_DOMAIN = re.compile(r"[^\s/:@?#\\]+\.[^\s/:@?#\\]+|localhost")
MAX_ENTRIES = 10_000_000


@dataclass(frozen=True)
class Takedown:
    """What a list holds: each key with the entry as it was written."""

    ids: dict[str, str]
    urls: dict[str, str]  # by host and target
    domains: dict[str, str]

    @classmethod
    def read(cls, path: str | Path) -> Takedown:
        """Raises FormatError with the line's number on a line that is none of the three, UsageError without the file."""
        from gristmill.core.errors import UsageError

        path = Path(path)
        found = cls({}, {}, {})
        if not path.is_file():
            raise UsageError(f"no such takedown list: {path}")
        for number, line in entries(path):
            entry = re.split(r"\s+#", line, maxsplit=1)[0]
            if ID.fullmatch(entry):
                found.ids.setdefault(entry, entry)
            elif "://" in entry:
                found.urls.setdefault(url_parts(entry).place, entry)
            elif _DOMAIN.fullmatch(entry):
                found.domains.setdefault(ascii_host(entry.removeprefix("*.")), entry)
            else:
                raise FormatError(
                    f"{path}:{number}: {entry[:60]!r} is no URL, domain or document id",
                    hint="write https://host/path, a domain such as example.org, or an id of 32 hex digits",
                )
            if len(found) > MAX_ENTRIES:
                raise FormatError(f"{path}:{number}: more than {MAX_ENTRIES:,} entries", hint="a URL list holds more")
        return found

    def __len__(self) -> int:
        return len(self.ids) + len(self.urls) + len(self.domains)

    def match(self, document: str, url: str) -> tuple[str, str] | None:
        """(reason, entry) of a document that must go: `takedown.id`, `takedown.url` or `takedown.domain`; else None."""
        if document in self.ids:
            return "takedown.id", self.ids[document]
        if not url or not (self.urls or self.domains):
            return None
        parts = url_parts(url)
        if parts.place in self.urls:
            return "takedown.url", self.urls[parts.place]
        for name in domains_of(parts.host) if self.domains else ():
            if name in self.domains:
                return "takedown.domain", self.domains[name]
        return None

    def unmatched(self, matched: Iterable[str]) -> list[str]:
        """Entries that are not among `matched`, in the order of the list by kind."""
        known = set(matched)
        return [
            entry for table in (self.ids, self.urls, self.domains) for entry in table.values() if entry not in known
        ]
