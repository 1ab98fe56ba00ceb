"""The registered domain and the full name of a URL's host, by the public suffix list that tldextract brings along.

Results are those of `tldextract.TLDExtract(suffix_list_urls=())`, `top_domain_under_public_suffix` and `fqdn`, private
suffixes left out; tldextract itself imports an HTTP client and builds three trees (0.3 s of CPU a process, here 0.01).
The algorithm is that of https://publicsuffix.org/list/ with wildcards and exceptions.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

_RULE = re.compile(r"^[.*!]*\w\S*", re.MULTILINE)
_PRIVATE = "===BEGIN PRIVATE DOMAINS==="
_SCHEME = re.compile(r"(?:[A-Za-z0-9+.-]+:)?//")
_END = re.compile(r"[/?#]")
_DOTS = str.maketrans("\u3002\uff0e\uff61", "...")
"""The full stops of IDNA: ideographic, full-width and half-width."""


def host_of(url: str) -> str:
    """The host as written, without user, port and dots at its end; with its brackets where it is an IPv6 address."""
    scheme = _SCHEME.match(url)
    begin = scheme.end() if scheme else 0
    end = _END.search(url, begin)
    host = url[begin : end.start() if end else len(url)].rpartition("@")[2]
    if host.startswith("[") and "]" in host:
        return host[: host.index("]") + 1]
    return host.partition(":")[0].strip().translate(_DOTS).rstrip(".")


def split_host(host: str) -> tuple[str, str]:
    """(registered domain, full name), in the host's own spelling; two empty strings where no public suffix ends it or
    the host is one itself. `a.b.co.uk` -> `b.co.uk`, `a.b.co.uk`."""
    labels = host.split(".")
    at = _suffix_at(labels)
    if not at or not labels[at - 1]:
        return "", ""
    registered = ".".join(labels[at - 1 :])
    below = ".".join(labels[: at - 1])
    return registered, f"{below}.{registered}" if below else registered


def _suffix_at(labels: list[str]) -> int | None:
    """Index of the first label of the public suffix; None without one."""
    rules, tails = _rules()
    found, tail = None, ""
    for at in range(len(labels) - 1, -1, -1):
        label = _decoded(labels[at])
        longer = f"{label}.{tail}" if tail else label
        if longer in tails:
            tail = longer
            if longer in rules:
                found = at
        elif f"*.{tail}" in tails:
            return at + 1 if f"!{longer}" in tails else at
        else:
            break
    return found


@lru_cache(maxsize=1)
def _rules() -> tuple[frozenset[str], frozenset[str]]:
    """The list's rules as written, and all ends of them at a dot."""
    spec = find_spec("tldextract")
    assert spec is not None, "tldextract is a dependency"
    assert spec.submodule_search_locations, "tldextract is a package"
    text = (Path(next(iter(spec.submodule_search_locations))) / ".tld_set_snapshot").read_text(encoding="utf-8")
    rules = frozenset(_RULE.findall(text.partition(_PRIVATE)[0]))
    tails = set(rules)
    for rule in rules:
        while (dot := rule.find(".")) >= 0 and (rule := rule[dot + 1 :]) not in tails:
            tails.add(rule)
    return rules, frozenset(tails)


def _decoded(label: str) -> str:
    """A label as the list writes it: lower case, Unicode."""
    low = label.lower()
    if low.startswith("xn--"):
        import idna

        try:
            return idna.decode(low)
        except (UnicodeError, IndexError):
            pass
    return low
