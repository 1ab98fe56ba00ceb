"""gristmill: a web crawl in, a pretrained language model out, and an answer for every token on the way."""


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version  # 20 ms that an extraction process need not spend

    try:
        return version("gristmill")
    except PackageNotFoundError:  # a source tree on sys.path that was never installed
        return "0.0.0+source"
