"""What an element's class, id and role say of its purpose: words of its attributes matched to a few groups."""

from __future__ import annotations

GROUPS: tuple[tuple[str, str], ...] = (
    ("article", "article story post entry blogpost news hentry artikel articulo beitrag reportage"),
    ("body", "body content text copy main richtext prose maincontent contenido inhalt texte corpo corps"),
    ("paragraph", "paragraph para paragraphs lead intro standfirst abstract dek excerpt summary teasertext chapeau"),
    ("header", "header head masthead topbar banner hero top"),
    ("title", "title headline heading subtitle subheadline titulo titel kicker deck subhead hed"),
    ("footer", "footer foot bottom colophon endnote"),
    (
        "nav",
        "nav navigation menu navbar breadcrumb breadcrumbs submenu topnav dropdown hamburger menubar navi menus skip skiplink pagination pager paging",
    ),
    ("sidebar", "sidebar aside rail side complementary secondary sidebars"),
    (
        "related",
        "related recommended recommendations more similar recirc trending popular mostread latest also readmore taboola outbrain promoted recommend suggestions suggested upnext next previous prev ranking",
    ),
    (
        "teaser",
        "teaser teasers card cards tile feed river stream carousel slider slide swiper grid listing archive collection thumb thumbs",
    ),
    (
        "comment",
        "comment comments disqus discussion reply replies respond commentlist reader responses livefyre commentary",
    ),
    (
        "social",
        "social share sharing sharebar addthis follow facebook twitter whatsapp pinterest linkedin tweet shares addtoany sharedaddy instagram youtube",
    ),
    (
        "ad",
        "ad ads advert advertisement sponsor sponsored adsense dfp banner adslot promo promotion commercial werbung anzeige publicidad leaderboard advertising",
    ),
    (
        "newsletter",
        "newsletter subscribe subscription signup paywall cta login signin register optin mailchimp membership account donate",
    ),
    ("modal", "modal popup overlay lightbox dialog alert tooltip notification offcanvas"),
    (
        "consent",
        "cookie cookies consent gdpr ccpa cmp onetrust ot optanon didomi truste cookiebot iubenda qc privacy cookiebanner cc cky",
    ),
    ("byline", "byline author authors authorname bio writer vcard contributor autor auteur credit creator"),
    ("date", "date time timestamp published dateline posted updated datum fecha pubdate"),
    ("meta", "meta info details metadata infos stats data attributes"),
    ("tags", "tag tags category categories keywords topics topic label labels taxonomy tagcloud cat"),
    ("caption", "caption captions figcaption legend imagecaption wp"),
    (
        "media",
        "image img photo picture video gallery media figure player audio embed images foto photos videos slideshow",
    ),
    ("widget", "widget widgets module box panel block plugin portlet sidebox infobox factbox"),
    ("copyright", "copyright legal disclaimer terms license imprint impressum"),
    ("search", "search searchbox searchform query filter filters"),
    ("form", "form field input contact button btn btns buttons submit"),
    ("hidden", "hidden hide invisible none sr visuallyhidden offscreen screenreader collapsed noprint print"),
    ("quote", "quote blockquote pullquote quotes cite zitat"),
    ("table", "table row cell rows cells col column columns"),
    ("list", "list items item ul links link"),
    ("wrapper", "wrapper wrap container inner outer layout page wrapper section region area holder"),
    ("product", "product price shop cart buy store shopping offer rating review reviews"),
    ("event", "ticker breaking live weather stock stocks market quotes scores score forecast"),
    ("tool", "tools tool toolbar actions action controls control utility options bar bookmark"),
    ("correction", "correction note notes footnote footnotes references reference sources"),
    ("articlebody", "articlebody storybody entrycontent postcontent articletext articlecontent storycontent"),
    ("language", "language lang languages locale translate flags country"),
)
"""A group's name and the words that put an element into it: at most 62, one bit each."""

BIT = {name: 1 << i for i, (name, _) in enumerate(GROUPS)}
WORD_BITS: dict[str, int] = {}
"""The bits of each word."""
for _name, _words in GROUPS:
    for _word in _words.split():
        WORD_BITS[_word] = WORD_BITS.get(_word, 0) | BIT[_name]
