"""Sampling and the gallery: the same text each time, padding unseen, no random state used, cut back on resume."""

from __future__ import annotations

import orjson
import pytest

torch = pytest.importorskip("torch")

from tokenizers import Tokenizer  # noqa: E402

from gristmill.trainer import generate  # noqa: E402
from gristmill.trainer.parallel.mesh import World  # noqa: E402
from gristmill.trainer.schema import Generate  # noqa: E402
from gristmill.trainer.startup import build_model  # noqa: E402
from gristmill.trainer.watch_schema import Gallery  # noqa: E402


@pytest.fixture(scope="module")
def model(toy, run_maker):
    return build_model(run_maker(), toy.manifest, World(torch.device("cpu")))


@pytest.fixture(scope="module")
def tokenizer(toy):
    return Tokenizer.from_file(str(toy.folder / "tokenizer.json"))


def test_padding_is_not_seen(model):
    """The likeliest token of 5 ids padded to 32 = that of the 5 ids alone, step by step, beyond the context's end too."""
    ids = [5, 9, 33, 60, 7]
    found = generate.generate(model, ids, 60, 0.0, 0, None)
    out = list(ids)
    with torch.no_grad():
        for _ in range(60):
            out.append(int(model(torch.tensor([out[-model.max_seq_len :]]))[0, -1].argmax()))
    assert found == out[5:]


def test_sampling_is_seeded_and_uses_no_global_random_state(model):
    before = torch.get_rng_state()
    first, again, other = (generate.generate(model, [5], 12, 1.0, seed, None) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(before, torch.get_rng_state())


def test_text_ends_at_eos_and_starts_at_bos(model, tokenizer):
    likeliest = generate.generate(model, [0], 1, 0.0, 0, None)[0]
    settings = Generate(prompt="", tokens=5, temperature=0)
    assert generate.write_text(model, tokenizer, settings, {"bos": 0, "eos": likeliest}) == ""
    assert generate.write_text(model, tokenizer, settings, {"bos": 0}).split()[0] == f"w{likeliest}"


def test_samples_are_the_same_bytes_again_and_later_ones_go(model, tokenizer, tmp_path):
    gallery = Gallery(prompts=["w5 w9", "w7"], tokens=6, seed=4)
    for step in (5, 10, 15):
        record = generate.write_samples(model, tokenizer, gallery, {"eos": 1}, tmp_path, step=step, phase="main")
    assert [s["prompt"] for s in record["samples"]] == ["w5 w9", "w7"]
    assert all(s["text"].startswith(s["prompt"]) and len(s["text"]) > 8 for s in record["samples"])
    paths = sorted((tmp_path / "samples").iterdir())
    assert [p.name for p in paths] == ["00000005.json", "00000010.json", "00000015.json"]
    bodies = [orjson.loads(p.read_bytes())["samples"] for p in paths]
    assert bodies[0] == bodies[1] == record["samples"]
    generate.drop_samples(tmp_path, 10)
    assert sorted((tmp_path / "samples").iterdir()) == paths[:2]
    nothing = Gallery(prompts=[])
    assert generate.write_samples(model, tokenizer, nothing, {}, tmp_path, step=20, phase="main") is None
    assert sorted((tmp_path / "samples").iterdir()) == paths[:2]
