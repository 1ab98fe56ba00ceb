"""Six site templates: documentation, blog, news, wiki, forum and help centre, each with its own furniture around a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from gristmill.pipelines.sample.blocks import Block
from gristmill.pipelines.sample.chrome import AUTHORS, MONTHS, TEASERS, WORDS, Site, Words
from gristmill.pipelines.sample.draw import Draw


@dataclass(frozen=True, slots=True)
class View:
    """All that a template shows. `draw` decides the furniture; equal names give equal furniture."""

    site: Site
    path: str
    title: str
    blocks: tuple[Block, ...]
    draw: Draw
    language: str = "en"
    meta_charset: str | None = "utf-8"
    links: tuple[tuple[str, str], ...] = ()

    @property
    def words(self) -> Words:
        return WORDS[self.language]

    @property
    def name(self) -> str:
        return escape(self.site.name)


def render(view: View) -> str:
    """The page as HTML text (not yet encoded)."""
    return TEMPLATES[view.site.template](view)


def body(blocks: tuple[Block, ...], heading: str = "h2") -> str:
    """Main text as HTML: headings, paragraphs, lists, tables and code."""
    out: list[str] = []
    for block in blocks:
        lines = [escape(x, quote=False) for x in block.lines]
        if block.kind == "h":
            out += [f"<{heading}>{x}</{heading}>" for x in lines]
        elif block.kind == "p":
            out += [f"<p>{x}</p>" for x in lines]
        elif block.kind == "pre":
            out.append("<pre><code>" + "\n".join(lines) + "\n</code></pre>")
        elif block.kind == "table":
            rows = ["<tr>" + "".join(f"<td>{c}</td>" for c in x.split("\t")) + "</tr>" for x in lines]
            out.append("<table>\n" + "\n".join(rows) + "\n</table>")
        else:
            out.append("<ul>\n" + "\n".join(f"<li>{_item(x)}</li>" for x in lines) + "\n</ul>")
    return "\n".join(out)


def _item(line: str) -> str:
    term, tab, text = line.partition("\t")
    return f"<strong>{term}</strong> {text}" if tab else line


def _head(view: View, extra: str = "") -> str:
    meta = f'<meta charset="{view.meta_charset}">\n' if view.meta_charset else ""
    return (
        f'<!DOCTYPE html>\n<html lang="{view.language}">\n<head>\n{meta}<title>{escape(view.title)} | {view.name}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="stylesheet" href="/static/site.css">\n<link rel="canonical" href="https://{view.site.host}{view.path}">\n'
        "<style>.cookie-banner{position:fixed;bottom:0} pre{background:#f4f4f4}</style>\n"
        '<script>window.settings = {"theme": "light", "menu": true}; (function(){ if (window.track) { track(); } })();</script>\n'
        f"{extra}</head>\n"
    )


def _menu(view: View, css: str) -> str:
    items = "".join(f'<li><a href="/{i}/">{escape(x)}</a></li>' for i, x in enumerate(view.words.menu))
    return f'<nav class="{css}"><ul>{items}</ul></nav>'


def _cookies(view: View) -> str:
    return (
        f'<div id="cookie-banner" class="cookie-banner cookie-consent" role="dialog"><p>{view.words.cookies}</p>'
        f"<button>{view.words.accept}</button></div>"
    )


def _footer(view: View) -> str:
    return (
        f'<footer class="footer site-footer"><p>&copy; {view.draw.between(2008, 2023)} {view.name}. {view.words.footer}</p>'
        f"{_menu(view, 'footer-nav')}</footer>"
    )


def _related(view: View, css: str = "related") -> str:
    items = [f'<li><a href="{escape(href)}">{escape(text)}</a></li>' for href, text in view.links]
    if view.language == "en":
        items += [f'<li><a href="/t/{view.draw.below(9000)}">{x}</a></li>' for x in view.draw.sample(TEASERS, 3)]
    return f'<div class="{css}"><h3>{view.words.related}</h3><ul>{"".join(items)}</ul></div>'


def _date(view: View) -> str:
    return f"{view.draw.between(1, 28)} {view.draw.pick(MONTHS)} {view.draw.between(2011, 2023)}"


def _docs(view: View) -> str:
    crumbs = " &raquo; ".join(f'<a href="/{x}/">{x}</a>' for x in view.path.strip("/").split("/")[:-1])
    toc = "".join(
        f'<li><a href="#s{i}">{escape(b.lines[0])}</a></li>' for i, b in enumerate(view.blocks) if b.kind == "h"
    )
    return (
        f'{_head(view)}<body class="docs">\n<header class="header"><a class="logo" href="/">{view.name}</a>{_menu(view, "navbar")}'
        f'<form class="search"><input name="q" placeholder="{view.words.search}"></form></header>\n'
        f'<div class="breadcrumb breadcrumbs">{crumbs}</div>\n<div class="layout">\n'
        f'<aside class="sidebar"><ul class="toc">{toc}</ul>{_menu(view, "side-nav")}</aside>\n'
        f'<main role="main"><article class="section" itemprop="articleBody">\n<h1>{escape(view.title)}</h1>\n{body(view.blocks)}\n'
        f"</article></main>\n</div>\n{_related(view, 'related prev-next')}\n{_cookies(view)}\n{_footer(view)}\n</body>\n</html>\n"
    )


def _blog(view: View) -> str:
    tags = "".join(f'<a rel="tag" href="/tag/{i}">{escape(x)}</a> ' for i, x in enumerate(view.title.split()[:3]))
    author = view.draw.pick(AUTHORS)
    return (
        f'{_head(view)}<body class="single-post">\n<div id="page">\n<header class="site-header"><p class="site-title">{view.name}</p>'
        f'{_menu(view, "main-navigation")}</header>\n<article class="post hentry">\n<h1 class="entry-title">{escape(view.title)}</h1>\n'
        f'<div class="entry-meta byline"><span class="author">{author}</span> <time>{_date(view)}</time></div>\n'
        f'<div class="entry-content" itemprop="articleBody">\n{body(view.blocks)}\n</div>\n'
        f'<div class="sharedaddy share-buttons"><a href="/share/1">Share</a> <a href="/share/2">Print</a></div>\n'
        f'<footer class="entry-footer tags">{tags}</footer>\n</article>\n'
        f'<div id="comments" class="comments-area"><h3>{view.draw.between(0, 9)} comments</h3><form><textarea></textarea></form></div>\n'
        f'<div id="secondary" class="widget-area sidebar">{_related(view, "widget widget_recent_entries")}</div>\n'
        f"{_footer(view)}\n{_cookies(view)}\n</div>\n</body>\n</html>\n"
    )


def _news(view: View) -> str:
    ticker = "".join(f"<a href='/n/{view.draw.below(999)}'>{x}</a> " for x in view.draw.sample(TEASERS, 4))
    paragraphs = body(view.blocks)
    return (
        f'{_head(view)}<body>\n{_cookies(view)}\n<div class="topbar ticker">{ticker if view.language == "en" else ""}</div>\n'
        f'<header><div class="masthead">{view.name}</div>{_menu(view, "primary-nav")}</header>\n<main>\n'
        f'<article itemscope itemtype="https://schema.org/NewsArticle">\n<h1 itemprop="headline">{escape(view.title)}</h1>\n'
        f'<div class="byline metadata"><span>{view.draw.pick(AUTHORS)}</span> <time>{_date(view)}</time></div>\n'
        f'<div class="article-body" itemprop="articleBody">\n{paragraphs}\n</div>\n'
        f'<div class="newsletter-signup promo"><p>{view.name}: newsletter</p><input type="email"></div>\n</article>\n</main>\n'
        f'<aside class="most-read">{_related(view, "most-popular related")}</aside>\n{_footer(view)}\n</body>\n</html>\n'
    )


def _wiki(view: View) -> str:
    boxes = "".join(f"<li><a href='/wiki/Special:{i}'>{escape(x)}</a></li>" for i, x in enumerate(view.words.menu))
    return (
        f'{_head(view)}<body class="mediawiki">\n<div id="mw-navigation"><div id="mw-panel"><ul>{boxes}</ul></div>'
        f'<div id="p-search">{view.words.search}</div></div>\n<div id="content" class="mw-body" role="main">\n'
        f'<h1 id="firstHeading" class="firstHeading">{escape(view.title)}</h1>\n<div id="siteSub" class="noprint">{view.name}</div>\n'
        f'<div id="mw-content-text"><div class="mw-parser-output" itemprop="articleBody">\n{body(view.blocks)}\n</div></div>\n'
        f'<div id="catlinks" class="catlinks navbox">{_related(view, "navbox")}</div>\n</div>\n'
        f'<div id="footer" role="contentinfo" class="footer"><p>{view.words.footer}</p><p>{_date(view)}</p></div>\n{_cookies(view)}\n'
        "</body>\n</html>\n"
    )


def _forum(view: View) -> str:
    """A question and its answers: the text is cut in two or three posts, at block boundaries."""
    n = len(view.blocks)
    cuts = sorted({0, *(c for c in (n // 3, 2 * n // 3) if view.blocks[c : c + 1] and c), n})
    posts = []
    for a, b in pairwise(cuts):
        posts.append(
            f'<div class="qa-item"><div class="user-info"><a href="/u/{view.draw.below(5000)}">{view.draw.pick(AUTHORS)}</a></div>\n'
            f'<div class="qa-body" itemprop="text">\n{body(view.blocks[a:b], "h3")}\n</div>\n'
            f'<div class="qa-menu nav-menu"><a href="#">share</a> <a href="#">follow</a> <span class="votes">{view.draw.below(80)}</span></div></div>'
        )
    return (
        f'{_head(view)}<body>\n<header class="top-bar">{view.name} {_menu(view, "tabs")}</header>\n<div id="mainbar" role="main">\n'
        f'<div id="question-header"><h1>{escape(view.title)}</h1></div>\n<div class="thread">\n'
        + "\n".join(posts)
        + "\n</div>\n</div>\n"
        f'<div id="sidebar" class="sidebar">{_related(view, "linked module")}</div>\n{_cookies(view)}\n{_footer(view)}\n</body>\n</html>\n'
    )


def _help(view: View) -> str:
    """An older site: presentational mark-up, a table for the menu, rules between the parts."""
    menu = "".join(
        f'<td><a href="/{i}.html"><font size="2">{escape(x)}</font></a></td>' for i, x in enumerate(view.words.menu)
    )
    return (
        f'{_head(view)}<body bgcolor="#ffffff">\n<div id="nav" class="navigation"><table width="100%"><tr>{menu}</tr></table></div>\n<hr>\n'
        f'<div id="content"><center><h1>{escape(view.title)}</h1></center>\n<div class="article" itemprop="articleBody">\n'
        f"{body(view.blocks, 'h3')}\n</div></div>\n<hr>\n{_related(view, 'see-also related-links')}\n"
        f'<div id="footer" class="footer"><small>{view.name}. {view.words.footer}</small></div>\n{_cookies(view)}\n</body>\n</html>\n'
    )


TEMPLATES: dict[str, Callable[[View], str]] = {
    "docs": _docs,
    "blog": _blog,
    "news": _news,
    "wiki": _wiki,
    "forum": _forum,
    "help": _help,
}
