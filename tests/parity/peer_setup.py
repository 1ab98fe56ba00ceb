"""Readies the peer's environment: its language model and URL lists in its asset cache, then one page through its FineWeb.

Runs on the peer's own interpreter: `.venv-parity/bin/python tests/parity/peer_setup.py lid.176.ftz` prints one JSON line,
which `make parity` keeps as the stamp `.venv-parity/.gristmill`. Other scripts for that interpreter import this module
first: it points datatrove's cache into the environment and keeps every step off the network.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ASSETS = Path(sys.prefix) / "share" / "assets"
os.environ["HF_ASSETS_CACHE"] = str(ASSETS)  # read by huggingface_hub when it is imported
os.environ["HF_HUB_OFFLINE"] = "1"

PACKAGES = (
    *("datatrove", "trafilatura", "lxml", "justext", "spacy", "fasttext-numpy2-wheel", "numpy", "warcio", "isal"),
    *("tldextract", "nltk", "regex", "xxhash", "orjson", "faust-cchardet", "python-magic"),
)
MODEL_FOLDER = ("lid", "ft176")
SENTENCES = (
    "The miller opened the gate before dawn and let the river turn the wheel for the first time that year.",
    "Nobody in the valley had seen so much grain, and the carts stood in a line down to the old bridge.",
    "A clerk weighed each sack, wrote the figure in a ledger, and called the owner to sign beside it.",
    "By noon the stones were warm, the flour was fine, and dust hung in every beam of light.",
    "Children ran between the wagons with apples that they had taken from an orchard near the church.",
    "When rain came, the farmers covered their loads with canvas and waited under the eaves to talk.",
)


def quiet() -> None:
    """datatrove logs each start and stop; keep what goes wrong."""
    import datatrove  # noqa: F401  its import sets up the log
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING")


def place_model(model: Path) -> Path:
    """Put a fastText model where datatrove's LanguageFilter looks for its download of lid.176.bin."""
    from datatrove.utils.lid import FT176LID
    from huggingface_hub import cached_assets_path

    folder = Path(cached_assets_path("datatrove", namespace=MODEL_FOLDER[0], subfolder=MODEL_FOLDER[1]))
    place = folder / FT176LID.MODEL_URL.replace("/", "_")
    shutil.copyfile(model, place)
    place.with_name(place.name + ".completed").touch()
    return place


def offline(url_filter: Any) -> Any:
    """A URLFilter whose public suffix list is tldextract's packaged one: by default it asks the network."""
    from tldextract import TLDExtract

    url_filter.tldextractor = TLDExtract(cache_dir=None, suffix_list_urls=())
    return url_filter


def fineweb() -> list[Any]:
    """The steps of the published FineWeb configuration between the reader and the writer, for English alone.

    `languages=["en"]` is what the configuration meant: its LanguageFilter() has kept every language since June 2024.
    """
    from datatrove.pipeline import filters
    from datatrove.pipeline.extractors import Trafilatura

    return [
        offline(filters.URLFilter()),
        Trafilatura(favour_precision=True),
        filters.LanguageFilter(languages=["en"]),
        filters.GopherRepetitionFilter(),
        filters.GopherQualityFilter(),
        filters.C4QualityFilter(filter_no_terminal_punct=False),
        filters.FineWebQualityFilter(),
    ]


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Versions of what decides the peer's output and speed; null for what is absent."""
    return {"python": sys.version.split()[0], **{name: installed(name) for name in PACKAGES}}


def try_out() -> list[str]:
    """Ids of the pages that pass the FineWeb configuration: one of two, the other too short."""
    from datatrove.data import Document

    bodies = {"long": "".join(f"<p>{s}</p>" for s in SENTENCES), "short": f"<p>{SENTENCES[0]}</p>"}
    documents: Any = (
        Document(
            text=f"<html><body><article>{body}</article></body></html>",
            id=name,
            metadata={"url": "https://mill.example/page"},
        )
        for name, body in bodies.items()
    )
    for step in fineweb():
        documents = step.run(documents)
    return [document.id for document in documents]


def main(model: str) -> None:
    quiet()
    place = place_model(Path(model))
    passed = try_out()
    if passed != ["long"]:
        raise SystemExit(f"the peer's FineWeb configuration kept {passed} of a good page and a short one")
    print(json.dumps({"assets": str(ASSETS), "model": str(place), **versions()}))


if __name__ == "__main__":
    main(sys.argv[1])
