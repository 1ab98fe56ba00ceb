"""gristmill: a web crawl in, a pretrained language model out, and an answer for every token on the way."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("gristmill")
except PackageNotFoundError:  # a source tree on sys.path that was never installed
    __version__ = "0.0.0+source"
