"""What stands beside an exported model: copies, generation settings and provenance that hold no time and no place."""

from __future__ import annotations

import dataclasses
import shutil
from importlib import metadata
from pathlib import Path

import orjson
import pytest

from gristmill.core.errors import FormatError
from gristmill.core.hashing import sha256_file
from gristmill.core.tokshards import PackedDataset, write_manifest
from gristmill.trainer import export_folder
from gristmill.trainer.edits import Edits, Skip, write_edits
from gristmill.trainer.schema import Generate, TrainRun
from gristmill.trainer.train import OUTPUTS, found_outputs

SPECIAL = {"bos": 0, "eos": 1, "pad": 2}


def written(out: Path, run: TrainRun, dataset: PackedDataset, step: int = 40) -> dict[str, bytes]:
    out.mkdir(exist_ok=True)
    export_folder.write_companions(out, run, dataset, dataset.folder / "tokenizer.json", step)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def locked(toy: PackedDataset, folder: Path) -> PackedDataset:
    """The toy dataset with a lock, elsewhere; its rows are not needed."""
    folder.mkdir()
    shutil.copyfile(toy.folder / "tokenizer.json", folder / "tokenizer.json")
    (folder / "mix.lock.json").write_text('{"lock": 1}')
    write_manifest(folder, dataclasses.replace(toy.manifest, lock_sha256=sha256_file(folder / "mix.lock.json")))
    return PackedDataset(folder)


def test_provenance_names_what_decided_the_weights(toy, run_maker, tmp_path):
    files = written(tmp_path / "out", run_maker(), toy)
    assert sorted(files) == ["generation_config.json", "provenance.json", "tokenizer.json"]  # the toy has no lock
    assert set(files) < set(OUTPUTS)
    assert files["tokenizer.json"] == (toy.folder / "tokenizer.json").read_bytes()
    found = orjson.loads(files["provenance.json"])
    settings = found.pop("run")
    assert found == {
        "format": "gristmill-provenance-1",
        "gristmill": metadata.version("gristmill"),
        "torch": metadata.version("torch"),
        "dataset_digest": toy.manifest.digest,
        "manifest_sha256": sha256_file(toy.folder / "manifest.json"),
        "lock_sha256": toy.manifest.lock_sha256,
        "tokenizer_sha256": sha256_file(toy.folder / "tokenizer.json"),
        "step": 40,
    }
    assert (settings["seed"], settings["model"]["hidden"], settings["optimizer"]["lr"]) == (3, 32, 0.01)


def test_the_lock_comes_along_and_a_changed_one_is_refused(toy, run_maker, tmp_path):
    dataset = locked(toy, tmp_path / "dataset")
    export_folder.check_lock(dataset)
    files = written(tmp_path / "out", run_maker(), dataset)
    assert files["mix.lock.json"] == b'{"lock": 1}'
    assert found_outputs(tmp_path / "out") == ["mix.lock.json"]
    want = orjson.loads(files["provenance.json"])["lock_sha256"]
    assert want == sha256_file(tmp_path / "out" / "mix.lock.json")
    assert "mix.lock.json" not in written(tmp_path / "out", run_maker(), toy)  # none of another dataset stays
    (dataset.folder / "mix.lock.json").write_text("{}")
    with pytest.raises(FormatError, match=r"mix\.lock\.json was changed"):
        export_folder.check_lock(dataset)


def test_the_digest_of_edits_is_that_of_the_folder(toy, run_maker, tmp_path):
    edits = Edits((Skip("main", 8, 8, 2, "garbage"),))
    assert "edits_digest" not in orjson.loads(written(tmp_path, run_maker(), toy)["provenance.json"])
    write_edits(tmp_path / "edits.json", edits)
    found = orjson.loads(written(tmp_path, run_maker(), toy)["provenance.json"])
    assert found["edits_digest"] == edits.digest


def test_the_same_run_at_another_place_gives_the_same_bytes(toy, run_maker, tmp_path):
    def at(place: str, **operational) -> dict[str, bytes]:
        return written(
            tmp_path / place.strip("/"),
            run_maker(
                data={"blocklist": f"{place}/blocked.txt", "edits": f"{place}/edits.json"},
                evaluate={
                    "stores": f"{place}/mill",
                    "heldout": [{"name": "own", "path": f"{place}/own.jsonl"}],
                    "tasks": [{"name": "qa", "path": f"{place}/qa.jsonl"}],
                },
                **{"from": {"run": f"{place}/work", "step": 5, "sha256": "a" * 64}},
                **operational,
            ),
            toy,
        )

    one = at("/place1", mixture="/place1/mix.yaml")
    other = at("/place2", log_every=3, parallel={"nproc": 2}, guards={"health_every": 5}, checkpoint={"every_steps": 9})
    assert one == other
    assert not any(b"place" in data for data in one.values())
    run = orjson.loads(one["provenance.json"])["run"]
    assert run["data"]["blocklist"] == "blocked.txt"
    assert run["from"] == {"sha256": "a" * 64, "optimizer": "keep", "keep_position": False}


def test_a_tokenizer_in_the_folder_itself_stays_whole(toy, run_maker, tmp_path):
    shutil.copyfile(toy.folder / "tokenizer.json", tmp_path / "tokenizer.json")
    export_folder.write_companions(tmp_path, run_maker(), toy, tmp_path / "tokenizer.json", 1)
    assert (tmp_path / "tokenizer.json").read_bytes() == (toy.folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("settings", "special", "want"),
    [
        (
            {"temperature": 0.7, "tokens": 9},
            SPECIAL,
            {
                "bos_token_id": 0,
                "eos_token_id": 1,
                "pad_token_id": 2,
                "do_sample": True,
                "temperature": 0.7,
                "top_k": 0,
                "top_p": 1.0,
                "max_new_tokens": 9,
            },
        ),
        ({"temperature": 0, "tokens": 0}, {"eos": 1}, {"eos_token_id": 1, "do_sample": False}),
    ],
)
def test_generation_settings_under_the_names_of_transformers(settings, special, want):
    assert export_folder.generation_config(Generate(**settings), special) == want


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_transformers_loads_the_whole_folder(temperature, toy, run_maker, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from gristmill.trainer import export
    from gristmill.trainer.model import Decoder

    run = run_maker(generate={"temperature": temperature, "tokens": 4})
    model = Decoder(run.model, toy.manifest.vocab_size, 64)
    model.init_weights(1)
    export.export(model, toy.manifest.special_ids, tmp_path)
    written(tmp_path, run, toy)
    assert transformers.AutoConfig.from_pretrained(tmp_path).model_type == "llama"
    config = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 2)
    assert (config.max_new_tokens, config.do_sample) == (4, temperature > 0)
    config.validate(strict=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert theirs.generation_config.max_new_tokens == 4
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = tokenizer("w5 w9", return_tensors="pt", return_token_type_ids=False)
    assert ids["input_ids"].tolist() == [[5, 9]]
    assert 2 < theirs.generate(**ids).shape[1] <= 2 + 4
