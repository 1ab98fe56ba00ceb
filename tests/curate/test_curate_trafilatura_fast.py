"""trafilatura by its shorter ways: the texts of the library as it ships, for any page and in every mode."""

from __future__ import annotations

import copy
import importlib
import json
import random
import subprocess
import sys
from itertools import product

import pytest
from data_helper import shared_data
from lxml import html
from page_engines import PAGES

from gristmill.curate.charset import decode_html
from gristmill.curate.engines import Favor, Mode, load_engine, trafilatura_fast
from gristmill.curate.engines.trafilatura_fast import install
from gristmill.curate.engines.trafilatura_paths import Walk

UNTOUCHED = """
import json, logging, sys, trafilatura
sys.setrecursionlimit(10_000)
logging.disable(logging.CRITICAL)
pages, settings = json.load(sys.stdin)
def text(page, mode, favor, comments, tables):
    try:
        return trafilatura.extract(
            page, fast=mode == "fast", favor_precision=favor == "precision", favor_recall=favor == "recall",
            include_comments=comments, include_tables=tables, include_formatting=False, include_links=False,
            include_images=False, deduplicate=False, with_metadata=False, output_format="txt")
    except Exception as error:
        return [repr(error)]
json.dump([[text(page, *one) for page in pages] for one in settings], sys.stdout)
"""
"""Another process: once rewritten, the library can't be had as it ships."""
Setting = tuple[Mode, Favor, bool, bool]
FAVORS: list[Favor] = ["balanced", "precision", "recall"]
FAST: list[Setting] = [("fast", *rest) for rest in product(FAVORS, [False, True], [True, False])]
FULL: list[Setting] = [("full", favor, comments, True) for favor, comments in product(FAVORS, [False, True])]

WORDS = "the of mill grain water stone wheel flour bread street river early Facebook 12 | - { café ﬁn \u200b \x85"
CLASSES = "comments comment-list post entry cookie-banner sidebar teaser share- hidden nav caption main article-body "
CLASSES += "infinite-scroll elementor-share-buttons footer single-post content x "
TAGS = "div div div p p p a a a span li ul ol dl dd table tr td th section article main aside form pre code blockquote q b "
TAGS += "i h1 h2 br hr figure img strong sub details summary script nav button time math noscript wbr font label"
ODD = ["&#1;", "\x00", "\x0b", "&nbsp;", "&amp;", "&#xD800;", "\ufffe", "😀", "\u2028", "&#13;", "<!-- c -->", "<?pi?>"]
JSON_LD = '<script type="application/ld+json">{"@type": "DiscussionForumPosting", "articleBody": "%s"}</script>'


def wild(rng: random.Random) -> str:
    """A page of nested and broken markup with the names that trafilatura looks for."""
    some, classes, tags = WORDS.split(" "), CLASSES.split(" "), TAGS.split()

    def words(most: int) -> str:
        found = [rng.choice(some) for _ in range(rng.randint(0, most))]
        return rng.choice([" ", " ", "\n", " \t"]).join([*found, *rng.sample(ODD, rng.random() < 0.1)])

    def attributes() -> str:
        values = {
            "class": rng.choice(classes),
            "id": rng.choice(classes),
            "style": rng.choice(["display:none", "color"]),
        }
        values |= {
            "role": rng.choice(["main", "presentation", "nav"]),
            "href": "/a",
            "src": "a.jpg",
            "aria-hidden": "true",
        }
        return "".join(f' {name}="{values[name]}"' for name in rng.sample(sorted(values), rng.choice([0, 0, 1, 1, 2])))

    parts, open_tags = [], []
    for _ in range(rng.randint(5, 150)):
        tag = rng.choice(tags)
        parts.append(f"<{tag}{attributes()}>{words(rng.choice([2, 8, 60]))}")
        open_tags.append(tag)
        while open_tags and rng.random() < (0.5 if len(open_tags) < 8 else 0.9):
            parts.append(f"</{open_tags.pop()}>{words(rng.choice([0, 3, 20]))}")
    body = "".join(parts)
    head = rng.choice(["<!DOCTYPE html><html><body>", "<html/><body>", "", "<?xml version='1.0' encoding='x'?><html>"])
    return head + rng.choice(["", JSON_LD % words(90)]) + body + rng.choice(["", "</body></html>", "<", "</p><"])


def untouched(pages: list[str], settings: list[Setting]) -> list[list[object]]:
    command = [sys.executable, "-c", UNTOUCHED]
    done = subprocess.run(command, input=json.dumps([pages, settings]), capture_output=True, text=True, check=True)
    found: list[list[object]] = json.loads(done.stdout)
    return found


def ours(page: str, setting: Setting) -> object:
    mode, favor, comments, tables = setting
    try:
        return load_engine("trafilatura", mode)(page, tables=tables, comments=comments, favor=favor)
    except Exception as error:
        return [repr(error)]


def differing(pages: list[str], settings: list[Setting]) -> tuple[list[object], int]:
    """What differs from the library as it ships, and how many pages have a text."""
    wrong: list[object] = []
    texts = 0
    for setting, wants in zip(settings, untouched(pages, settings), strict=True):
        for page, want in zip(pages, wants, strict=True):
            texts += isinstance(want, str)
            if (got := ours(page, setting)) != want:
                wrong.append((setting, page[:80], want, got))
    return wrong, texts


def test_wild_pages_have_the_text_of_the_untouched_library() -> None:
    rng = random.Random(5)
    pages = PAGES + [wild(rng) for _ in range(60)]
    wrong, texts = differing(pages, FAST[:4])
    assert not wrong
    assert texts > 150


@pytest.mark.slow
def test_wild_pages_in_every_mode() -> None:
    rng = random.Random(6)
    wrong, texts = differing([wild(rng) for _ in range(100)], FAST + FULL)
    assert not wrong
    assert texts > 800


def real_pages(step: int) -> list[str]:
    from gristmill.curate.warc import Damage, Limits, Page, open_warc, page_of, read_records

    found = []
    for path in sorted(shared_data("warc/pages").glob("*.warc.gz")):
        with open_warc(str(path)) as stream:
            for record in read_records(stream, str(path), Limits()):
                if not isinstance(record, Damage) and isinstance(page := page_of(record, Limits()), Page):
                    found.append(page)
    return [decode_html(page.html, page.content_type)[0] for page in found[::step]]


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "step"), [(FAST[1:2], 3), ([FAST[0], FAST[6], FAST[10], *FULL[::2]], 20)])
def test_real_pages_have_the_text_of_the_untouched_library(settings: list[Setting], step: int) -> None:
    wrong, texts = differing(real_pages(step), settings)
    assert not wrong
    assert texts > 500


def test_removing_control_characters() -> None:
    install()
    utils = importlib.import_module("trafilatura.utils")
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    for text in ["", *every]:
        if utils.remove_control_characters(text) != "".join(c for c in text if c.isprintable() or c.isspace()):
            pytest.fail(repr(text))
    rng = random.Random(1)
    for _ in range(2_000):
        text = "".join(rng.choice(every[:200] + every[8_190:8_300]) for _ in range(rng.randint(1, 9)))
        assert utils.remove_control_characters(text) == "".join(c for c in text if c.isprintable() or c.isspace())


def test_link_density_deletes_the_same_elements() -> None:
    install()
    names = ("htmlprocessing", "main_extractor", "utils")
    processing, main, utils = (importlib.import_module(f"trafilatura.{name}") for name in names)
    assert main.delete_by_link_density is not processing.delete_by_link_density
    rng = random.Random(2)
    deleted = 0
    for _ in range(150):
        page = wild(rng).replace("&#1;", "").replace("<a ", "<ref ").replace("<ul", "<list")
        scrubbed = utils.INVALID_XML_CHARS.sub("", page)
        root = html.fromstring(f"<html><body><div>{scrubbed}</div></body></html>")
        for tag, backtracking, precision in product(["div", "list", "p", "head"], [False, True], [False, True]):
            want, got = copy.copy(root), copy.copy(root)
            more = {"backtracking": backtracking, "favor_precision": precision}
            processing.delete_by_link_density(want, tag, **more)
            assert main.delete_by_link_density(got, tag, **more) is got
            assert html.tostring(got) == html.tostring(want)
            deleted += html.tostring(got) != html.tostring(root)
    assert deleted > 50


def test_installing_rewrites_what_is_in_use() -> None:
    from trafilatura import xpaths

    install()
    before = [*xpaths.OVERALL_DISCARD_XPATH, sys.modules["trafilatura.baseline"].BASIC_CLEAN_XPATH]
    install()
    again = [*xpaths.OVERALL_DISCARD_XPATH, sys.modules["trafilatura.baseline"].BASIC_CLEAN_XPATH]
    assert list(map(id, again)) == list(map(id, before)), "once is enough"
    assert all(isinstance(one, Walk) for one in again)


def test_functions_of_another_version_stay() -> None:
    script = f"""
import trafilatura
from trafilatura import utils
trafilatura.__version__ = "{trafilatura_fast.VERSION}.1"
before = utils.remove_control_characters
from gristmill.curate.engines.trafilatura_fast import install
install()
assert utils.remove_control_characters is before
"""
    subprocess.run([sys.executable, "-c", script], check=True)
