"""A tokenizer in the forms that other libraries load: a `transformers` folder, tiktoken's ranks, the JSON alone.

Every form gives the same ids for text. What differs is special-token text inside a document: gristmill and tiktoken's
`encode_ordinary` keep it as text, `transformers` makes it the special id unless `split_special_tokens=True` is passed.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from gristmill.core.errors import FormatError
from gristmill.core.vocabulary import SPECIALS
from gristmill.tokenize.adversarial import adversarial
from gristmill.tokenize.bytelevel import take_apart
from gristmill.tokenize.codec import Codec
from gristmill.tokenize.train import transformers_config

Format = Literal["transformers", "tiktoken", "json"]
RANKS, META = "tokenizer.tiktoken", "tokenizer.meta.json"


def files(raw: bytes, form: Format) -> dict[str, bytes]:
    """The files of one form by name, from a tokenizer.json. Raises FormatError when the form cannot hold it."""
    Codec(raw)
    makers: dict[str, Callable[[bytes], dict[str, bytes]]] = {
        "transformers": _transformers,
        "tiktoken": _tiktoken,
        "json": lambda raw: {"tokenizer.json": raw},
    }
    return makers[form](raw)


def export(source: str | Path, form: Format, out_folder: str | Path) -> list[str]:
    """Write one form into a folder; returns the names of what a library that is installed confirmed.

    tiktoken's form is compared with `tokenizers` on the adversarial texts where tiktoken is installed. Raises FormatError
    when the form cannot hold the tokenizer or gives other ids; then nothing is written.
    """
    raw = Path(source).read_bytes()
    made = files(raw, form)
    checked = []
    if form == "tiktoken" and (name := check_tiktoken(raw, made)) is not None:
        checked.append(name)
    folder = Path(out_folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in made.items():
        (folder / name).write_bytes(data)
    return checked


def _transformers(raw: bytes) -> dict[str, bytes]:
    """`AutoTokenizer.from_pretrained(folder)` reads tokenizer.json and tokenizer_config.json; the special tokens' map is
    for versions before 5."""
    codec = Codec(raw)
    config = transformers_config()
    known = {f"{role}_token": text for role, text in SPECIALS.items() if role in codec.special_ids}
    for role in ("bos", "eos", "pad"):
        if role not in codec.special_ids:
            del config[f"{role}_token"]
    special = {key: text for key, text in known.items() if key in ("bos_token", "eos_token", "pad_token")}
    added: dict[int, Any] = codec.tokenizer.get_added_tokens_decoder()
    config["added_tokens_decoder"] = {
        str(i): {
            "content": token.content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for i, token in sorted(added.items())
    }
    return {"tokenizer.json": raw, "tokenizer_config.json": _json(config), "special_tokens_map.json": _json(special)}


def _tiktoken(raw: bytes) -> dict[str, bytes]:
    parts = take_apart(raw)
    lines = [b"%s %d" % (base64.b64encode(token), i) for token, i in zip(parts.ranked, parts.ids.tolist(), strict=True)]
    if (np.diff(parts.ids[256:]) <= 0).any():
        raise FormatError(
            "its ids do not rise with its merges, and tiktoken merges in the order of ids",
            hint="export --format transformers",
        )
    meta = {"pat_str": parts.pattern, "special_tokens": dict(sorted(parts.added.items(), key=lambda item: item[1]))}
    return {RANKS: b"\n".join(lines) + b"\n", META: _json({"gristmill": meta})}


def load_tiktoken(ranks: bytes, meta: bytes) -> Any:
    """A `tiktoken.Encoding` of an export, as a reader would build it."""
    import tiktoken

    [(name, facts)] = orjson.loads(meta).items()
    table = {base64.b64decode(t): int(rank) for t, rank in (line.split() for line in ranks.splitlines() if line)}
    return tiktoken.Encoding(
        name, pat_str=facts["pat_str"], mergeable_ranks=table, special_tokens=facts["special_tokens"]
    )


def check_tiktoken(raw: bytes, made: dict[str, bytes]) -> str | None:
    """tiktoken and its version, once it gave equal ids on the adversarial texts; None where it is not installed.

    Raises FormatError with a text on which it differs, unless that text holds a code point that the two libraries'
    versions of Unicode class differently.
    """
    from gristmill.tokenize.backends import installed
    from gristmill.tokenize.encoder import Encoder, pack

    have = installed("tiktoken")
    if have is None:
        return None
    codec, parts = Codec(raw), take_apart(raw)
    texts = adversarial(sorted(parts.added), parts.spelt())
    encoder = Encoder(codec, ["tiktoken"])
    tiers = list(encoder.tiers())
    if not tiers:
        raise FormatError(f"tiktoken {have} gives other ids than tokenizers", hint="export --format transformers")
    encoding = load_tiktoken(made[RANKS], made[META])
    for text, held, want in zip(texts, tiers[0].held(*pack(texts)), codec.encode_batch(texts), strict=True):
        if not held and encoding.encode_ordinary(text) != want.tolist():
            raise FormatError(f"tiktoken {have} gives other ids for {text[:60]!r}", hint="export --format transformers")
    return f"tiktoken {have}"


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n"
