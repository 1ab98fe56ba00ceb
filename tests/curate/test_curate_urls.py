"""URL rules: the same verdicts as datatrove's own URLFilter, on real URLs and on URLs made from its lists."""

from __future__ import annotations

import gzip
import json
import random
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from data_helper import shared_data

from gristmill.curate import kept_arrays
from gristmill.curate.schema import Urls
from gristmill.curate.urls import UrlRules, asset, load_lists, uses

NAMES = {
    "domain": "url.domain",
    "subdomain": "url.subdomain",
    "url": "url.url",
    "hard_blacklisted": "url.hard_word",
    "soft_blacklisted": "url.soft_words",
    "blacklisted_subword": "url.subword",
}


@pytest.fixture(scope="module")
def rules() -> UrlRules:
    return UrlRules(Urls())


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """datatrove's filter, with its lists in a temporary cache and tldextract off the network."""
    import warnings

    from tldextract import TLDExtract

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datatrove.data import Document
        from datatrove.pipeline.filters import URLFilter, url_filter

    cache = tmp_path_factory.mktemp("lists")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(url_filter, "cached_assets_path", lambda **_: str(cache))
        built = URLFilter()
        built.tldextractor = TLDExtract(cache_dir=None, suffix_list_urls=())
        built.download_data()

        def verdict(url: str) -> str | None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # registered_domain warns at every call
                found = built.filter(Document(text="", id="", metadata={"url": url}))
            return None if found is True else NAMES[found[1]]

        yield verdict


def listed(member: str, every: int) -> list[str]:
    """Every n-th line of one of datatrove's two long lists."""
    found = []
    with tarfile.open(asset("url_filterblacklistsv0_3_0.tar.gz"), "r|gz") as archive:
        for item in archive:
            file = archive.extractfile(item)
            if file is not None and item.name.endswith(member):
                found = [line.decode().strip() for i, line in enumerate(file) if i % every == 0]
    return found


def words(name: str) -> list[str]:
    lines = Path(asset(name)).read_text(encoding="utf-8").split("\n")
    return [line for line in lines if line and not line.startswith("#")]


def constructed() -> list[str]:
    """URLs that meet, and narrowly miss, every rule, drawn from the lists."""
    rng = random.Random(7)
    hard, soft, sub = words("banned_words.txt"), words("soft_banned_words.txt"), words("banned_subwords.txt")
    urls = []
    for domain in listed("domains", 30_011):
        urls += [f"http://{domain}/", f"https://www.{domain}:8443/a?b=c", f"http://x{domain}/", domain.upper()]
        urls.append(f"http://user:pw@{domain}/#f")
    for line in listed("urls", 311):
        urls += [f"http://{line}", line, "".join(c for c in line if c.isalnum()).lower()]
    for word in rng.sample(hard, 40):
        urls += [f"http://example.org/a-{word}-b", f"http://example.org/a{word}b", f"http://example.org/{word.upper()}"]
    for _ in range(60):
        a, b = rng.sample(soft, 2)
        urls += [f"http://example.org/{a}/{b}", f"http://example.org/{a}/{a}", f"http://example.org/{a}{b}"]
        urls.append(f"http://{a}.example.org/{b.title()}")
    for word in rng.sample(sub, min(40, len(sub))):
        spaced = "-".join(word)
        urls += [f"http://example.org/{word}", f"http://example.org/{spaced}", f"http://example.org/{word.upper()}s"]
    urls += ["http://127.0.0.1/", "http://[::1]/x", "http://localhost/", "urn:uuid:1", "/", "http://", "http:///a", "."]
    urls += [
        "http://пример.рф/секс",
        "http://xn--e1afmkfd.xn--p1ai/",
        "http://例え.jp。/a",
        "dns:example.org",
        "\0",
        "é",
    ]
    return urls


def test_same_verdicts_as_datatrove_on_constructed_urls(rules: UrlRules, oracle: Any) -> None:
    urls = constructed()
    assert len(urls) > 1_000
    ours = [rules.check(url) for url in urls]
    assert ours == [oracle(url) for url in urls]
    met = Counter(ours)
    assert all(met[name] >= 10 for name in NAMES.values()), met
    assert met[None] >= 100


def test_same_verdicts_as_datatrove_on_real_urls(rules: UrlRules, oracle: Any) -> None:
    with gzip.open(shared_data("warc/pages-manifest.jsonl.gz")) as f:
        rows = [json.loads(line) for line in f]
    urls = [row["url"] for row in rows]
    assert len(urls) > 2_000
    assert [rules.check(url) for url in urls] == [oracle(url) for url in urls]


def test_soft_word_threshold() -> None:
    a, b, c = words("soft_banned_words.txt")[:3]
    url = f"http://example.org/{a}/{b}/{c}"
    assert [UrlRules(Urls(soft_words=n)).check(url) for n in (1, 2, 3)] == ["url.soft_words"] * 3
    assert UrlRules(Urls(soft_words=4)).check(url) is None


def test_off_keeps_everything_and_uses_nothing() -> None:
    off = Urls(lists="off")
    assert UrlRules(off).check(f"http://{listed('domains', 1_000_000)[0]}/") is None
    assert uses(off) == {}


def test_an_empty_url_is_kept(rules: UrlRules) -> None:
    assert rules.check("") is None


def test_uses_names_versions_and_lists() -> None:
    found = uses(Urls())
    assert set(found) == {"url_lists", "tldextract"}
    assert found == uses(Urls(soft_words=5))
    assert found["url_lists"].startswith("datatrove ")


def test_odd_urls_never_raise(rules: UrlRules) -> None:
    rng = random.Random(3)
    letters = "htp:/.@[]?#%-_\u3002\uff0eé日\ud800\x00 xn--a1"
    for i in range(5_000):
        text = "".join(rng.choice(letters) for _ in range(rng.randrange(1, 30)))
        rules.check("http://" + text if i % 2 else text)


def test_lists_are_small_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = load_lists()
    assert len(lists.domains) > 4_000_000
    assert lists.domains.nbytes < 40 << 20
    assert lists is load_lists(), "read once per process"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = load_lists.__wrapped__()
    assert [path.name[:12] for path in kept_arrays.folder().iterdir()] == ["url-domains-"]
    monkeypatch.setattr("gristmill.curate.urls._hashed_domains", None)  # not called again
    kept = load_lists.__wrapped__()
    assert made.domains.tobytes() == kept.domains.tobytes() == lists.domains.tobytes()
    assert (made.urls, made.subwords) == (kept.urls, kept.subwords)
