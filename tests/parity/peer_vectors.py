"""datatrove's answers to the conformance suite: its own filters, each with one rule on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

REPETITION = {
    "dup_lines": ("dup_line_frac", "dup_line_frac"),
    "dup_line_chars": ("dup_line_char_frac", "dup_line_char_frac"),
    "dup_paragraphs": ("dup_para_frac", "dup_para_frac"),
    "dup_paragraph_chars": ("dup_para_char_frac", "dup_para_char_frac"),
}
QUALITY = {
    "too_few_words": ("min_doc_words", "gopher_short_doc"),
    "too_many_words": ("max_doc_words", "gopher_long_doc"),
    "short_words": ("min_avg_word_length", "gopher_below_avg_threshold"),
    "long_words": ("max_avg_word_length", "gopher_above_avg_threshold"),
    "hashes": ("max_symbol_word_ratio", "gopher_too_many_hashes"),
    "ellipses": ("max_symbol_word_ratio", "gopher_too_many_ellipsis"),
    "bullet_lines": ("max_bullet_lines_ratio", "gopher_too_many_bullets"),
    "ellipsis_lines": ("max_ellipsis_lines_ratio", "gopher_too_many_end_ellipsis"),
    "too_few_alpha_words": ("max_non_alpha_words_ratio", "gopher_below_alpha_threshold"),
    "too_few_stop_words": ("min_stop_words", "gopher_enough_stop_words"),
}
"""Our rule -> (datatrove's argument, its reason)."""
NO_REPETITION = {argument: None for argument, _ in REPETITION.values()} | {"top_n_grams": (), "dup_n_grams": ()}
NO_QUALITY = {argument: None for argument, _ in QUALITY.values()}
C4_RULES = {
    "lorem_ipsum": ("filter_lorem_ipsum", "lorem_ipsum"),
    "curly_bracket": ("filter_curly_bracket", "curly_bracket"),
}
NO_C4 = {"filter_lorem_ipsum": False, "filter_curly_bracket": False, "min_num_sentences": -1}
FINEWEB = {
    "few_punctuated_lines": ("line_punct_thr", "line_punct_ratio"),
    "short_lines": ("short_line_thr", "short_line_ratio"),
    "dup_line_chars": ("char_duplicates_ratio", "char_dup_ratio"),
    "newlines": ("new_line_ratio", "list_ratio"),
}
NO_FINEWEB = {
    "line_punct_thr": -1.0,
    "short_line_thr": 2.0,
    "char_duplicates_ratio": 2.0,
    "new_line_ratio": float("inf"),
}
"""Thresholds that nothing passes: FineWeb's rules have no other switch."""

Step = tuple[str, Any, str | None]
"""Name of the filter, the filter, and its reason if one rule is asked for."""


def steps(question: dict[str, Any], blocks: Any) -> list[Step] | None:
    """The filters that answer a question; None when datatrove has no such rule."""
    name, rule, threshold = question["semantics"], question["rule"], question["threshold"]
    if name == "gopher@datatrove":
        return _gopher(rule, threshold, blocks)
    if name == "c4@datatrove":
        terminal = {"filter_no_terminal_punct": question["settings"].get("terminal_punctuation", False)}
        if rule is None:
            return [("c4", blocks.C4QualityFilter(**terminal), None)]
        if rule == "too_few_sentences":
            on: dict[str, Any] = {"min_num_sentences": -1 if threshold is None else int(threshold)}
            reason: str | None = "too_few_sentences"
        else:
            argument, reason = C4_RULES.get(rule, (None, None))
            on = {argument: True} if argument else {}
        return [("c4", blocks.C4QualityFilter(**{**NO_C4, **terminal, **on}), reason)]
    if name == "fineweb@datatrove":
        if rule is None:
            return [("fineweb", blocks.FineWebQualityFilter(), None)]
        argument, reason = FINEWEB.get(rule, (None, "empty"))
        on = {argument: threshold} if argument else {}
        return [("fineweb", blocks.FineWebQualityFilter(**{**NO_FINEWEB, **on}), reason)]
    return None


def _gopher(rule: str | None, threshold: float | None, blocks: Any) -> list[Step]:
    if rule is None:
        return [
            ("repetition", blocks.GopherRepetitionFilter(), None),
            ("quality", blocks.GopherQualityFilter(), None),
        ]
    if rule in QUALITY:
        argument, reason = QUALITY[rule]
        return [("quality", blocks.GopherQualityFilter(**{**NO_QUALITY, argument: threshold}), reason)]
    on: dict[str, Any] = {}
    reason = "empty"
    if rule in REPETITION:
        argument, reason = REPETITION[rule]
        on = {argument: threshold}
    elif rule != "empty":
        kind, n = rule.split("_")[:2]
        reason = f"top_{n}_gram" if kind == "top" else f"duplicated_{n}_n_grams"
        on = {f"{kind}_n_grams": () if threshold is None else ((int(n), threshold),)}
    return [("repetition", blocks.GopherRepetitionFilter(**{**NO_REPETITION, **on}), reason)]


def answer(
    question: dict[str, Any], blocks: Any, document: Any, verdict_of: Callable[[Any, Any], str | None]
) -> dict[str, Any]:
    """Verdict, filter and reason, and the text after C4. Where one rule is asked for, another reason is an error."""
    found = steps(question, blocks)
    if found is None:
        return {"id": question["id"], "unsupported": question["semantics"]}
    doc = document(text=question["text"], id="")
    for name, step, wanted in found:
        reason = verdict_of(step, doc)
        if reason is not None:
            if wanted is not None and reason != wanted:
                raise ValueError(f"{question['id']} was dropped for {reason}")
            return {"id": question["id"], "verdict": "drop", "filter": name, "reason": reason}
    out = {"id": question["id"], "verdict": "keep"}
    return {**out, "text_after": doc.text} if question["semantics"] == "c4@datatrove" else out
