"""What surrounds the main text: sites and their menus, banners, footers and teasers, in the page's language."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Site:
    """One host: its name, the template its pages are rendered with and its server header."""

    host: str
    name: str
    template: str
    server: str


@dataclass(frozen=True, slots=True)
class Words:
    """A language's chrome: menu labels, cookie banner, accept button, footer line, heading of related links."""

    menu: tuple[str, ...]
    cookies: str
    accept: str
    footer: str
    related: str
    search: str


SITES: tuple[Site, ...] = (
    Site("docs.northfield.example", "Northfield Docs", "docs", "nginx"),
    Site("reference.calder.example", "Calder Reference", "docs", "nginx/1.24.0"),
    Site("notes.harrow.example", "Harrow Notes", "blog", "Apache/2.4.57 (Debian)"),
    Site("journal.millrace.example", "Millrace Journal", "blog", "cloudfront"),
    Site("www.tarnside.example", "The Tarnside Courier", "news", "Apache"),
    Site("www.oakmoor.example", "Oakmoor Dispatch", "news", "ATS/9.2"),
    Site("wiki.lanternhall.example", "Lantern Hall Wiki", "wiki", "nginx"),
    Site("wiki.stonebeck.example", "Stonebeck Commons", "wiki", "Apache/2.4.41 (Ubuntu)"),
    Site("ask.ferrybridge.example", "Ferrybridge Answers", "forum", "openresty"),
    Site("talk.quarryhill.example", "Quarry Hill Talk", "forum", "nginx"),
    Site("help.brightwell.example", "Brightwell Help Centre", "help", "Microsoft-IIS/10.0"),
    Site("support.wrenford.example", "Wrenford Support", "help", "nginx"),
)
FOREIGN_SITES: dict[str, Site] = {
    "de": Site("www.waldufer.example", "Waldufer Zeitung", "news", "nginx"),
    "fr": Site("blog.rivedouce.example", "Rive Douce", "blog", "Apache"),
    "es": Site("www.campoclaro.example", "Campo Claro", "news", "nginx"),
    "it": Site("blog.montechiaro.example", "Monte Chiaro", "blog", "Apache/2.4.57"),
    "nl": Site("www.waterkant.example", "De Waterkant", "help", "nginx"),
    "pt": Site("wiki.ribeira.example", "Ribeira", "wiki", "nginx"),
    "pl": Site("www.nadrzeka.example", "Nad Rzeką", "docs", "Apache"),
    "ru": Site("www.zarechye.example", "Заречье", "blog", "nginx"),
    "ja": Site("www.kawabe.example", "川辺だより", "blog", "Apache"),
    "zh": Site("www.hebian.example", "河边杂志", "blog", "nginx"),
}
WORDS: dict[str, Words] = {
    "en": Words(
        ("Home", "Guides", "Reference", "Community", "Downloads", "About", "Contact"),
        "We use cookies to improve your experience on this site. By continuing you accept our cookie policy.",
        "Accept all",
        "All rights reserved. Terms of use and privacy policy apply.",
        "Related pages",
        "Search this site",
    ),
    "de": Words(
        ("Startseite", "Themen", "Archiv", "Über uns", "Kontakt"), "Diese Seite verwendet Cookies.", "Zustimmen",
        "Alle Rechte vorbehalten.", "Mehr zum Thema", "Suche",
    ),
    "fr": Words(
        ("Accueil", "Rubriques", "Archives", "À propos", "Contact"), "Ce site utilise des cookies.", "Accepter",
        "Tous droits réservés.", "À lire aussi", "Rechercher",
    ),
    "es": Words(
        ("Inicio", "Temas", "Archivo", "Quiénes somos", "Contacto"), "Este sitio utiliza cookies.", "Aceptar",
        "Todos los derechos reservados.", "Lea también", "Buscar",
    ),
    "it": Words(
        ("Home", "Argomenti", "Archivio", "Chi siamo", "Contatti"), "Questo sito usa i cookie.", "Accetta",
        "Tutti i diritti riservati.", "Leggi anche", "Cerca",
    ),
    "nl": Words(
        ("Voorpagina", "Rubrieken", "Archief", "Over ons", "Contact"), "Deze website gebruikt cookies.", "Akkoord",
        "Alle rechten voorbehouden.", "Lees ook", "Zoeken",
    ),
    "pt": Words(
        ("Início", "Temas", "Arquivo", "Sobre nós", "Contacto"), "Este site utiliza cookies.", "Aceitar",
        "Todos os direitos reservados.", "Leia também", "Pesquisar",
    ),
    "pl": Words(
        ("Strona główna", "Tematy", "Archiwum", "O nas", "Kontakt"), "Ta strona używa plików cookie.", "Zgoda",
        "Wszelkie prawa zastrzeżone.", "Czytaj także", "Szukaj",
    ),
    "ru": Words(
        ("Главная", "Темы", "Архив", "О нас", "Контакты"), "Этот сайт использует файлы cookie.", "Принять",
        "Все права защищены.", "Читайте также", "Поиск",
    ),
    "ja": Words(
        ("ホーム", "特集", "過去の記事", "概要", "連絡先"), "このサイトではクッキーを使用しています。", "同意する",
        "無断転載を禁じます。", "関連記事", "検索",
    ),
    "zh": Words(
        ("首页", "专题", "往期", "关于我们", "联系"), "本网站使用缓存文件。", "同意", "版权所有。", "相关文章", "搜索",
    ),
}  # fmt: skip
AUTHORS = (
    "Ada Fenwick", "Tomas Reyes", "Ingrid Moller", "Samuel Okoro", "Priya Raman", "Jonas Keller", "Mei Tanaka",
    "Clara Duval", "Oskar Lind", "Noor Haddad", "Ewan Gray", "Lucia Ferrante",
)  # fmt: skip
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
TEASERS = (
    "Ten small habits of careful readers", "The bridge that took a century", "How to keep a workshop tidy",
    "A short history of the index card", "Letters to the editor", "This week in pictures", "Recipes for cold evenings",
    "Where the old railway ran", "Five questions for a cartographer", "What the tide tables tell us",
    "A guide to winter birds", "The quiet return of the typewriter", "Notes from the reading room",
    "Walking the northern ridge", "Mending instead of buying", "Sunday crossword", "Maps of the lower valley",
    "Before the harbour was built", "Choosing a good lamp", "Opening hours and holidays",
)  # fmt: skip
