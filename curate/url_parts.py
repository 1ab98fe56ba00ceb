"""The parts of a URL that lists, robots.txt and takedowns are keyed by; never raises, whatever a crawl recorded."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

_END_OF_AUTHORITY = re.compile(r"[/?#\\]")
_DEFAULT_PORT = {"http": "80", "https": "443"}
MAX_LABELS = 32
"""Labels of a host that are looked up, from the right. DNS allows 127; real names have a handful."""


class UrlParts(NamedTuple):
    """`host` is lower-case ASCII (IDNA) without a trailing dot; `port` is empty where it is the scheme's own.

    `target` is path and query as recorded, without the fragment; it begins with `/`.
    """

    scheme: str
    host: str
    port: str
    target: str

    @property
    def authority(self) -> str:
        return f"{self.host}:{self.port}" if self.port else self.host

    @property
    def place(self) -> str:
        """Host and target: what two addresses share that differ in scheme, case of the host or fragment."""
        return self.authority + self.target


def url_parts(url: str) -> UrlParts:
    """Split a URL. One without `scheme://` is taken for an address that begins with its host."""
    scheme, mark, rest = url.strip().partition("://")
    if not mark:
        scheme, rest = "", scheme
    found = _END_OF_AUTHORITY.search(rest)
    authority, target = (rest[: found.start()], rest[found.start() :]) if found else (rest, "")
    target = target.partition("#")[0]
    if not target.startswith("/"):
        target = "/" + target.removeprefix("\\")
    host, port = authority.rpartition("@")[2], ""
    if host.startswith("["):  # an IPv6 address keeps its colons
        host, _, port = host.partition("]")
        host, port = host + "]", port.removeprefix(":")
    else:
        host, _, port = host.partition(":")
    scheme = scheme.lower()
    return UrlParts(scheme, ascii_host(host), "" if port == _DEFAULT_PORT.get(scheme, "80") else port, target)


@lru_cache(maxsize=4096)
def ascii_host(host: str) -> str:
    """A host name as DNS compares it: lower case, IDNA (2003, the standard library's), no trailing dot."""
    host = host.strip().rstrip(".").lower()
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:  # an empty or over-long label: no name of the DNS, compared as it is
            return host
    return host


def domains_of(host: str) -> list[str]:
    """The host and the domains above it, longest first: `a.b.org` -> `a.b.org`, `b.org`, `org`."""
    labels = host.split(".")[-MAX_LABELS:]
    return [".".join(labels[i:]) for i in range(len(labels))]
