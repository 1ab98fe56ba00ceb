r"""Pre-tokenizer regexes by name, and the digit rule that gristmill lays over them.

The strings are those that the named tokenizers publish in their tokenizer.json or source (o200k: tiktoken's
`o200k_base`). `\p{L}+` without `\p{M}` cuts a word at every vowel sign: a 7-word Hindi sentence is 18 pre-tokens under
cl100k and 7 under qwen3.5, and no vocabulary can undo that.
"""

from __future__ import annotations

from gristmill.tokenize.schema import Tokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

PRESETS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES,
    "qwen2": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES,
    "qwen3.5": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES,
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    + _CONTRACTIONS
    + r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    + _CONTRACTIONS
    + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    + _SPACES,
}
"""Name -> regex, for Oniguruma (`tokenizers`) and for the `regex` package alike."""

_DIGITS = {"gpt2": r" ?\p{N}+", "cl100k": r"\p{N}{1,3}", "o200k": r"\p{N}{1,3}", "qwen2": r"\p{N}", "qwen3.5": r"\p{N}"}
"""The alternative for digits as it stands between two bars in each preset."""

SMALL_VOCAB = 65_536
"""Up to this many ids, pairs of digits beat triples: nanochat d12 at 32k ids has .965 bits per byte with {1,2},
.972 with {1,3} and .969 with single digits."""


def pattern(settings: Tokenizer) -> str:
    """The regex that a tokenizer of these settings splits text with before merging."""
    preset = PRESETS[settings.split]
    digits = settings.digits
    if digits == "auto" and settings.split == "qwen3.5":
        digits = 2 if settings.size <= SMALL_VOCAB else 3
    if not isinstance(digits, int):
        return preset
    old, new = f"|{_DIGITS[settings.split]}|", rf"|\p{{N}}{{1,{digits}}}|"
    assert preset.count(old) == 1, f"{settings.split} has no single alternative for digits"
    return preset.replace(old, new)
