"""Lists of one's own and UT1-style folders: what each entry holds, which list names the drop, and what enters a task's id."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gristmill.core.errors import FormatError, GristmillError, UsageError
from gristmill.core.stage import Receipt, Shard
from gristmill.curate import url_lists
from gristmill.curate.schema import Urls
from gristmill.curate.url_parts import url_parts
from gristmill.curate.urls import UrlRules


def write(path: Path, text: str, packed: bool = False) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return str(path)


def lists(folder: Path, **more: Any) -> Urls:
    own = [
        {
            "name": "mine",
            "domains": write(folder / "d.txt", "# remark\n\nBad.Example\n*.worse.example\nköln.example\r\n"),
            "urls": write(folder / "u.txt", "https://WWW.mixed.example/Forum/\nhost.example/a?x=1\n", packed=True),
        },
        {"name": "words", "words": write(folder / "w.txt", "Casino\n")},
    ]
    return Urls.model_validate({"lists": "off", "own": own, **more})


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://bad.example/x", "url.list.mine"),
        ("https://user@deep.sub.BAD.example:8080/", "url.list.mine"),
        ("http://notbad.example/", None),
        ("http://example/", None),
        ("http://a.worse.example", "url.list.mine"),
        ("http://xn--kln-sna.example/", "url.list.mine"),
        ("http://KÖLN.example/", "url.list.mine"),
        ("http://mixed.example/Forum", "url.list.mine"),
        ("http://mixed.example/Forum/topic/1#top", "url.list.mine"),
        ("http://mixed.example/Forums", None),
        ("http://mixed.example/forum", None),  # paths have case
        ("http://mixed.example/", None),
        ("http://host.example/a?x=1", "url.list.mine"),
        ("http://host.example/a?x=1&y=2", "url.list.mine"),
        ("http://host.example/a?x=12", None),
        ("http://fine.example/my-CASINO_page", "url.list.words"),
        ("http://fine.example/casinos", None),
        ("http://bad.example/casino", "url.list.mine"),  # the first list of the recipe names it
        ("http://[::1]:80/", None),
        ("", None),
        ("\ud800://\ud800", None),
    ],
)
def test_what_entries_hold(tmp_path: Path, url: str, reason: str | None) -> None:
    assert UrlRules(lists(tmp_path)).check(url) == reason


def test_a_ut1_folder(tmp_path: Path) -> None:
    write(tmp_path / "ut1/adult/domains", "one.example\n")
    write(
        tmp_path / "ut1/adult/domains.gz", "stale.example\n", packed=True
    )  # the plain file is what a user unpacked last
    write(tmp_path / "ut1/gambling/domains.gz", "one.example\ntwo.example\n", packed=True)
    write(tmp_path / "ut1/gambling/urls", "three.example/bets\n")
    settings = Urls.model_validate(
        {"lists": "off", "ut1": {"folder": str(tmp_path / "ut1"), "categories": ["gambling", "adult"]}}
    )
    rules = UrlRules(settings)
    assert rules.check("http://one.example/") == "url.list.gambling"
    assert rules.check("http://www.three.example/bets/today") == "url.list.gambling"
    assert rules.check("http://stale.example/") is None
    with pytest.raises(UsageError, match="no category 'drugs'") as caught:
        UrlRules(Urls.model_validate({"ut1": {"folder": str(tmp_path / "ut1"), "categories": ["drugs"]}}))
    assert "adult, gambling" in str(caught.value.hint)


def test_datatrove_lists_come_first(tmp_path: Path) -> None:
    own = {"name": "mine", "domains": write(tmp_path / "d", "example.org\n")}
    rules = UrlRules(Urls.model_validate({"own": [own]}))
    assert rules.check("http://example.org/porno-porn-xxx-hardcore/") == "url.hard_word"
    assert rules.check("http://example.org/fine") == "url.list.mine"


@pytest.mark.parametrize(
    "block",
    [
        {"own": [{"name": "a"}]},
        {"own": [{"name": "a/b", "words": "w"}]},
        {"own": [{"name": "a", "words": "w"}, {"name": "a", "urls": "u"}]},
        {"own": [{"name": "a", "words": "w"}], "ut1": {"folder": "f", "categories": ["a"]}},
        {"ut1": {"folder": "f", "categories": []}},
        {"ut1": {"folder": "f", "categories": ["../etc"]}},
    ],
)
def test_faulty_blocks(block: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Urls.model_validate(block)


def test_faulty_files_say_where(tmp_path: Path) -> None:
    def check(text: bytes, kind: str, message: str) -> None:
        path = tmp_path / "list"
        path.write_bytes(text)
        with pytest.raises(FormatError, match=message):
            UrlRules(Urls.model_validate({"lists": "off", "own": [{"name": "a", kind: str(path)}]}))

    check(b"good\nbad word\n", "words", "list:2: 'bad word' is no word")
    check(b"a\n" + b"x" * 70_000, "domains", "list:2: a line of more than")
    check(gzip.compress(b"a.example\n" * 999)[:-9], "domains", "damaged")
    with pytest.raises(UsageError, match="no file"):
        url_lists.list_files(Urls.model_validate({"own": [{"name": "a", "urls": str(tmp_path / "none")}]}))


def test_a_task_knows_lists_by_content_not_by_path(tmp_path: Path) -> None:
    from gristmill.curate.language import find_model
    from gristmill.curate.pages import Pages

    try:
        find_model()
    except UsageError as error:
        pytest.skip(f"no language model here: {error.hint}")
    shard = Shard("x.warc", "x.warc", "0" * 64, 1)
    receipt = Receipt("input", 1, "", shard.name, {}, {}, {}, [shard], 0, 0, None, 0, {}, 0.0, "", "")

    def task(folder: Path) -> Any:
        stage = Pages({"extract": {}, "urls": lists(folder).model_dump(mode="json")})
        return stage, stage.tasks({"input": [receipt]})[0]

    (_, one), (stage, two) = task(tmp_path / "a"), task(tmp_path / "b")
    assert one.id == two.id
    assert str(tmp_path) not in str(two.config)
    write(tmp_path / "b/d.txt", "other.example\n")
    assert stage.tasks({"input": [receipt]})[0].id != one.id
    with pytest.raises(GristmillError, match="not the list this task was planned with"):
        url_lists.same_files(stage.urls, two.uses)
    url_lists.same_files(stage.urls, replace(two, uses=url_lists.uses(stage.urls)).uses)


def test_parts_of_odd_urls() -> None:
    assert url_parts("HTTP://User:pw@Host.Example.:80\\a#b").place == "host.example/a"
    assert url_parts("https://h.example:8443?q#f") == ("https", "h.example", "8443", "/?q")
    assert url_parts("h.example/a").place == "h.example/a"
    assert url_parts("http://[2001:DB8::1]:81/").authority == "[2001:db8::1]:81"
