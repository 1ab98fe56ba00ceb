"""The pages before they are rendered: which text goes on which site, and what is planted in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gristmill.pipelines.sample import bodies, junk, languages
from gristmill.pipelines.sample.articles import Article, alphabetic, articles
from gristmill.pipelines.sample.blocks import Block
from gristmill.pipelines.sample.chrome import AUTHORS, FOREIGN_SITES, SITES, Site
from gristmill.pipelines.sample.copies import can_be_copied, near_copy
from gristmill.pipelines.sample.draw import Draw
from gristmill.pipelines.sample.plan import LEVELS, Quotas
from gristmill.pipelines.sample.truth import Expect
from gristmill.pipelines.sample.urls import Urls, blocked_domains

_CLEAN = ("blog", "news", "wiki", "help")
"""Templates whose extracted text is the same for the same main text (the title stays outside of it)."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A page to be: its address, text, and how it is sent."""

    url: str
    site: Site
    kind: str
    expect: Expect
    title: str
    blocks: tuple[Block, ...] = ()
    reason: str | None = None
    language: str | None = "en"
    charset: str | None = "utf-8"
    declared: str | None = "both"
    encoding: str | None = None
    status: int = 200
    content_type: str = "text/html"
    how: str | None = None
    """Variant: a kind of break, the target of a redirect, the URL that a revisit repeats."""
    group: str | None = None
    jaccard: float | None = None
    emails: int = 0

    def text(self) -> str:
        """Main text without title and code: what similarities and lengths are taken of."""
        return "\n".join(line for b in self.blocks for line in b.texts())


class _Supply:
    """Hands out articles in their drawn order; asks for fitting ones first come, first served."""

    def __init__(self, found: list[Article]) -> None:
        self.left = list(reversed(found))

    def take(self, n: int, fits: Callable[[Article], bool] = lambda _: True) -> list[Article]:
        taken: list[Article] = []
        passed: list[Article] = []
        while self.left and len(taken) < n:
            article = self.left.pop()
            (taken if fits(article) else passed).append(article)
        self.left.extend(reversed(passed))
        return taken


class Planter:
    """Builds the specs of one sample. `held_out` are articles that stand in no page: the good labelled texts."""

    def __init__(self, seed: int, quotas: Quotas) -> None:
        self.seed, self.q = seed, quotas
        self.urls = Urls()
        singles = ("exact_base", "near_base", "broken", "encoded", "email", "url_blocked", "braces", "short")
        self.supply = _Supply(
            articles(seed=seed, count=quotas.prose + sum(quotas[k] for k in singles) + quotas.labels + 8)
        )

    def specs(self) -> list[Spec]:
        """All pages in crawl order: drawn at random, but revisits after what they repeat and the cut record last."""
        last = self.supply.take(1)[0]
        pages = [*self._exact(), *self._near(), *self._variants(), *self._junk(), *self._foreign(), *self._failures()]
        self.held_out = self.supply.take(self.q.labels)
        prose = [self._article("prose", a, "keep") for a in self.supply.take(self.q.prose)]
        pages = Draw(self.seed, "order").shuffled([*pages, *prose])
        repeated = Draw(self.seed, "revisit").sample(prose, self.q["revisit"])
        pages += [
            dataclasses.replace(p, kind="revisit", expect="skip", reason="record.revisit", how=p.url, blocks=())
            for p in repeated
        ]
        return [*pages, self._article("truncated", last, "quarantine", reason="warc.truncated_member")]

    def _draw(self, *names: object) -> Draw:
        return Draw(self.seed, *names)

    def _article(
        self, kind: str, article: Article, expect: Expect, templates: tuple[str, ...] = (), **fields: object
    ) -> Spec:
        """A page of this article on a drawn site; `fields` replace those of the spec."""
        draw = self._draw("page", kind, article.key, fields.get("group"), fields.get("jaccard"), fields.pop("copy", 0))
        sites = [s for s in SITES if not templates or s.template in templates]
        site = draw.pick(sites)
        url = fields.pop("url", None) or self.urls.new(site, article.title, draw)
        spec = Spec(str(url), site, kind, expect, article.title, article.blocks)
        return dataclasses.replace(spec, **fields)  # type: ignore[arg-type]

    def _exact(self) -> Iterator[Spec]:
        bases = self.supply.take(self.q["exact_base"], can_be_copied)
        for i in range(self.q["exact_copy"] if bases else 0):
            base = bases[i % len(bases)]
            group = f"exact-{i % len(bases):03d}"
            if i < len(bases):
                yield self._article("exact_base", base, "one_of_group", _CLEAN, group=group)
            yield self._article("exact_copy", base, "one_of_group", _CLEAN, group=group, jaccard=1.0, copy=i)

    def _near(self) -> Iterator[Spec]:
        bases = self.supply.take(self.q["near_base"], can_be_copied)
        for i, base in enumerate(bases):
            level = LEVELS[i % len(LEVELS)]
            group = f"near-{level[0]}-{i // len(LEVELS):02d}"
            copy, similarity = near_copy(base, *level[1:], self._draw("near", base.key))
            expect: Expect = {LEVELS[0][0]: "one_of_group", LEVELS[-1][0]: "keep"}.get(level[0], "either")  # type: ignore[assignment]
            page = self._article("near_base", base, expect, _CLEAN, group=group)
            yield page
            url = self.urls.new(page.site, copy.title, self._draw("near url", base.key))
            yield dataclasses.replace(page, kind="near_copy", url=url, blocks=copy.blocks, jaccard=similarity)

    def _variants(self) -> Iterator[Spec]:
        """Good articles with something special about their page."""
        for i, article in enumerate(self.supply.take(self.q["broken"])):
            yield self._article("broken", article, "keep", how=bodies.BREAKS[i % len(bodies.BREAKS)])
        for i, article in enumerate(self.supply.take(self.q["encoded"])):
            yield self._article("encoded", article, "keep", encoding=bodies.ENCODINGS[i % len(bodies.ENCODINGS)])
        for article in self.supply.take(self.q["email"], lambda a: sum(b.kind == "p" for b in a.blocks) >= 3):
            blocks, n = self._with_addresses(article)
            yield self._article("email", article, "keep", blocks=blocks, emails=n)
        domains = blocked_domains(self.seed, self.q["url_blocked"])
        for i, article in enumerate(self.supply.take(len(domains))):
            url = self.urls.on_domain(domains[i], i)
            yield self._article("url_blocked", article, "drop", url=url, reason="url")
        for article in self.supply.take(self.q["braces"], lambda a: alphabetic(a) >= 0.83 and len(a.text()) > 2000):
            draw = self._draw("braces", article.key)
            at = draw.between(1, len(article.blocks))
            blocks = (*article.blocks[:at], junk.code_with_braces(draw), *article.blocks[at:])
            yield self._article("braces", article, "drop", blocks=blocks, reason="c4.curly_bracket")
        for article in self.supply.take(self.q["short"]):
            words = article.text().split("\n")[0].split()[:24]
            blocks = (Block("p", (" ".join(words).rstrip(".,:;") + ".",)),)
            # on these templates extraction finds the stub itself and not the menus around it
            yield self._article("short", article, "drop", ("blog", "news"), blocks=blocks, reason="short")

    def _with_addresses(self, article: Article) -> tuple[tuple[Block, ...], int]:
        draw = self._draw("email", article.key)
        paragraphs = [i for i, b in enumerate(article.blocks) if b.kind == "p"]
        chosen = draw.sample(paragraphs, draw.between(1, 3))
        blocks = list(article.blocks)
        for i in chosen:
            first, last = draw.pick(AUTHORS).lower().split()
            address = f"{first}.{last}@{draw.pick(('docs', 'mail', 'team'))}.example.org"
            line = blocks[i].lines[0]
            note = draw.pick(
                ("Questions about this part go to {}.", "Please write to {} when you find a mistake here.")
            )
            blocks[i] = Block("p", (f"{line} {note.format(address)}", *blocks[i].lines[1:]))
        return tuple(blocks), len(chosen)

    def _junk(self) -> Iterator[Spec]:
        makers = {"spam": junk.spam, "repeated": junk.repeated, "lorem": junk.lorem, "promo": junk.promo}
        reasons = {"spam": "rules", "repeated": "repetition", "lorem": "lorem_ipsum", "promo": None}
        for kind, make in makers.items():
            for i in range(self.q[kind]):
                draw = self._draw(kind, i)
                title, blocks = make(draw)
                site = draw.pick(SITES)
                yield Spec(
                    self.urls.new(site, title, draw), site, kind, "either" if kind == "promo" else "drop", title,
                    blocks, reason=reasons[kind], language=None if kind == "lorem" else "en",
                )  # fmt: skip
        for i in range(self.q["boilerplate"]):
            draw = self._draw("boilerplate", i)
            site, title = draw.pick(SITES), draw.pick(("Archive", "Sign in", "Search results", "All categories"))
            yield Spec(self.urls.new(site, title, draw), site, "boilerplate", "drop", title, reason="no_text")

    def _foreign(self) -> Iterator[Spec]:
        used: dict[str, int] = {}

        def page(kind: str, language: str, charset: str, declared: str) -> Spec:
            i = used[language] = used.get(language, -1) + 1
            draw = self._draw(kind, language, i)
            title, blocks = languages.page(language, i, draw)
            site = FOREIGN_SITES[language]
            return Spec(
                self.urls.new(site, title, draw), site, kind, "keep", title, blocks, language=language, charset=charset,
                declared=declared,
            )  # fmt: skip

        for i in range(self.q["language"]):
            yield page("language", languages.UTF8[i % len(languages.UTF8)], "utf-8", "both")
        for i in range(self.q["charset"]):
            charset, language = languages.CHARSETS[i % len(languages.CHARSETS)]
            yield page("charset", language, charset, "header" if (i + i // 7) % 2 else "meta")

    def _failures(self) -> Iterator[Spec]:
        """Answers that hold no HTML page."""

        def failure(kind: str, i: int, title: str, reason: str, **fields: object) -> Spec:
            draw = self._draw(kind, i)
            site = draw.pick(SITES)
            spec = Spec(
                self.urls.new(site, title, draw), site, kind, "skip", title, reason=reason, language=None,
                charset=None, declared=None,
            )  # fmt: skip
            return dataclasses.replace(spec, **fields)  # type: ignore[arg-type]

        for i in range(self.q["redirect"]):
            target = f"https://{SITES[i % len(SITES)].host}/moved/{i}/"
            yield failure("redirect", i, "Moved", "http.status_3xx", status=(301, 302)[i % 2], how=target)
        for i in range(self.q["not_found"]):
            yield failure("not_found", i, "Page not found", "http.status_4xx", status=404)
        for i in range(self.q["server_error"]):
            yield failure("server_error", i, "Server error", "http.status_5xx", status=500)
        for i in range(self.q["not_html"]):
            content_type = bodies.NOT_HTML[i % len(bodies.NOT_HTML)]
            yield failure("not_html", i, "Attachment", "http.not_html", content_type=content_type)
        for i in range(self.q["empty"]):
            yield failure("empty", i, "Nothing", "http.empty_body")
        for i in range(self.q["binary_as_html"]):
            yield failure("binary_as_html", i, "Picture", "http.not_html")
