"""The hash chain over a mixture's stages: what makes the rows of stage k, and of every stage before it.

    link k = H(link k-1, version of the packing, tokenizer, content of the sources in use, the fields that make its rows)

Learning rates, loss weights, groups, limits and ablations are not among the fields: they change no row. So a run that has
trained stages 1..k goes on as long as link k stays, whatever becomes of the stages behind it (E120 otherwise).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gristmill.core.hashing import digest
from gristmill.mixes.schema import Mixture, Phase

START = "gristmill-mix-chain-1"
SOURCE_FIELDS = ("filter", "path", "split_by", "rehydrate")
PHASE_FIELDS = ("name", "tokens", "seq_len", "global_batch", "normalize", "mix")


@dataclass(frozen=True)
class Link:
    """One stage: its link's hash, and what went into it besides the link before (plain data, for naming differences)."""

    phase: str
    sha256: str
    spec: dict[str, Any]


def spec_of(mixture: Mixture, phase: Phase) -> dict[str, Any]:
    """The fields of the YAML that decide the rows of a stage and their order, as plain data by their paths."""
    sources = dict.fromkeys(mixture.parent(name) for name in phase.mix)
    dumped = phase.model_dump(mode="json")
    spec: dict[str, Any] = {
        "seed": mixture.seed,
        "heldout": mixture.heldout.model_dump(mode="json") if mixture.heldout is not None else None,
        "pack": mixture.packing(phase),
        "max_docs_per_row": mixture.defaults.max_docs_per_row,
        "stage": {key: dumped[key] for key in PHASE_FIELDS},
        "sources": {name: _drawn(mixture, name) for name in sources},
    }
    if mixture.defaults.on_short == "rescale":  # then limits decide rows
        spec["on_short"] = {name: mixture.limit(name) for name in sources}
    return spec


def _drawn(mixture: Mixture, source: str) -> dict[str, Any]:
    """The settings of a source that decide which documents it has."""
    return {k: v for k, v in mixture.sources[source].model_dump(mode="json").items() if k in SOURCE_FIELDS}


def links(mixture: Mixture, tokenizer_sha256: str, contents: Mapping[str, str], version: int) -> list[Link]:
    """The chain of all stages.

    contents: drawable source -> digest of the documents it has (`content_of`); those in use by a stage go into its link.
    Where held-out clusters must fit a budget of every source (`max_tokens`), what is held out, and so every stage, depends
    on all sources: then all go into each link.
    version: of the code that packs; another one may make other rows of the same fields.
    """
    out: list[Link] = []
    before = START
    for phase in mixture.stages:
        spec = spec_of(mixture, phase)
        parents = set(spec["sources"])
        used = {name: contents[name] for name in sorted(contents) if mixture.parent(name) in parents}
        if mixture.heldout is not None and mixture.heldout.per_source.max_tokens is not None:
            spec["heldout_of"] = {
                "contents": dict(sorted(contents.items())),
                "sources": {name: _drawn(mixture, name) for name in sorted(mixture.sources)},
            }
        spec |= {"tokenizer": tokenizer_sha256, "contents": used, "version": version}
        before = digest([before, spec])
        out.append(Link(phase.name, before, spec))
    return out


def content_of(stores: Sequence[tuple[str, str]]) -> str:
    """A source's digest: (sha256 of docs.parquet, of tokens.bin) of all stores in which it has documents."""
    return digest(sorted(map(list, stores)))
