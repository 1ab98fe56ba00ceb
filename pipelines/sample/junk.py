"""Text that a curation run should drop: keyword spam, repeated lines, lorem ipsum, braces, stubs, and fluent advertising."""

from __future__ import annotations

from gristmill.pipelines.sample.blocks import Block
from gristmill.pipelines.sample.draw import Draw

_GOODS = (
    "flights", "car insurance", "hotel rooms", "running shoes", "garden chairs", "mobile phones", "kitchen knives",
    "wedding rings", "ink cartridges", "laptop bags", "office desks", "bed linen", "winter tyres", "contact lenses",
    "power tools", "baby strollers", "fishing rods", "wall clocks", "dog food", "travel adapters",
)  # fmt: skip
_LURES = (
    "cheap", "best", "discount", "buy", "top rated", "free shipping", "low price", "online", "wholesale", "2024",
    "coupon", "sale", "compare", "reviews", "near me", "clearance",
)  # fmt: skip
_PRAISE = ("affordable", "premium", "stylish", "brand new", "award-winning", "everyday", "genuine")
_LATIN = """
dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore magna aliqua enim
ad minim veniam quis nostrud exercitation ullamco laboris nisi aliquip ex ea commodo consequat duis aute irure in
reprehenderit voluptate velit esse cillum fugiat nulla pariatur excepteur sint occaecat cupidatat non proident
sunt culpa qui officia deserunt mollit anim id est laborum
"""
_NAGS = (
    "Click the button below to see the full list of offers in your area today.",
    "Your session has expired, please sign in again to go on reading this page.",
    "This gallery needs a newer browser before any of the pictures can be shown.",
    "Sign up for our weekly letter and never miss another great deal from us.",
    "Please wait while we check your connection before you are sent to the site.",
)
_OPENERS = (
    "Are you looking for a new set of {g} that will truly change your life?",
    "Nothing feels quite as good as finding the perfect {g} at an unbeatable price.",
    "Our {g} are loved by thousands of happy customers all over the world.",
    "Every season brings new reasons to treat yourself to better {g}.",
    "You deserve {g} that keep up with your busy and exciting lifestyle.",
    "Say goodbye to disappointing {g} and hello to a brand new you!",
    "Smart shoppers already know where the very best {g} come from.",
    "Imagine opening your door to {g} that make all your neighbours jealous.",
)
_MIDDLES = (
    "We have worked day and night to bring you {g} of a quality that others only dream of.",
    "With our easy plan you pay less today and even less tomorrow for {g}.",
    "Simply choose your favourite colour and leave the rest of the work to our amazing team.",
    "Experts agree that {g} like these have never been offered before at this price.",
    "Hurry, because this offer on {g} ends at midnight and it will not come back!",
    "Tell your friends about us and both of you will receive a wonderful surprise gift.",
    "Each order of {g} comes with a promise that you will be delighted or get your money back.",
    "There is no risk at all, so why would you wait another minute to order {g}?",
    "Our secret is simple: we cut out the middleman and pass the savings on to you.",
    "From the very first moment you will notice the difference that premium {g} can make.",
    "Add them to your basket now and enjoy delivery at no extra cost this weekend.",
    "Thousands of five star ratings prove that our {g} are simply the best.",
    "Whether you are young or young at heart, these {g} are made with you in mind.",
    "Join the club today and be the first to hear about new {g} and secret deals.",
    "Our friendly advisers are waiting to help you find exactly the {g} that you need.",
    "You will wonder how you ever lived without {g} as incredible as these.",
)
_CLOSERS = (
    "Do not miss out, order your {g} today and thank us later!",
    "Call now and let the savings on {g} begin.",
    "Your new {g} are only one click away, so what are you waiting for?",
    "Visit our shop this week and see the whole range of {g} for yourself.",
)


def spam(draw: Draw) -> tuple[str, tuple[Block, ...]]:
    """A title and long lists of key phrases without a sentence."""
    goods = draw.sample(_GOODS, 4)
    blocks = []
    for _ in range(draw.between(3, 6)):
        phrases = [f"{draw.pick(_LURES)} {draw.pick(goods)} {draw.pick(_LURES)}" for _ in range(draw.between(60, 140))]
        blocks.append(Block("p", (", ".join(phrases),)))
    return f"{goods[0]} {goods[1]} best price", tuple(blocks)


def repeated(draw: Draw) -> tuple[str, tuple[Block, ...]]:
    """One or two sentences over and over, each a paragraph of its own."""
    lines = draw.sample(_NAGS, draw.between(1, 2))
    return "Please continue", tuple(Block("p", (lines[i % len(lines)],)) for i in range(draw.between(24, 60)))


def lorem(draw: Draw) -> tuple[str, tuple[Block, ...]]:
    """Filler Latin, composed here, with the phrase that C4 looks for in its first paragraph."""
    latin = _LATIN.split()
    blocks = []
    for n in range(draw.between(4, 7)):
        sentences = []
        for _ in range(draw.between(4, 7)):
            words = [draw.pick(latin) for _ in range(draw.between(8, 18))]
            sentences.append(" ".join(words).capitalize() + ".")
        start = "Lorem ipsum dolor sit amet, consectetur adipiscing elit. " if n == 0 else ""
        blocks.append(Block("p", (start + " ".join(sentences),)))
    return "Sample page", tuple(blocks)


def promo(draw: Draw) -> tuple[str, tuple[Block, ...]]:
    """Fluent advertising that the heuristic rules keep: what a quality model is for."""
    goods = draw.sample(_GOODS, 4)
    middles = iter(draw.shuffled(_MIDDLES) + draw.shuffled(_MIDDLES))
    blocks = []
    for good in goods:
        sentences = [draw.pick(_OPENERS), *(next(middles) for _ in range(draw.between(3, 5))), draw.pick(_CLOSERS)]
        blocks.append(Block("p", (" ".join(sentences).replace("{g}", f"{draw.pick(_PRAISE)} {good}"),)))
    return f"Why everyone wants {goods[0]}", tuple(blocks)


def code_with_braces(draw: Draw) -> Block:
    """A listing with curly brackets, composed here; one such line makes C4 drop the page."""
    name, field = draw.pick(("total", "update", "render", "collect", "measure")), draw.pick(("width", "count", "label"))
    limit = draw.between(3, 90)
    return Block(
        "pre",
        (
            f"int {name}(struct item *it, int n) {{",
            "    int sum = 0;",
            f"    for (int i = 0; i < n && i < {limit}; i++) {{ sum += it[i].{field}; }}",
            "    return sum;",
            "}",
        ),
    )


def menu_text(menu: tuple[str, ...], teasers: list[str], notice: str) -> str:
    """What a page without an article says, as a training text for the quality model."""
    return "\n".join([*menu, notice, *(f"Read more: {t}" for t in teasers), "Share this page", "Back to top"])
