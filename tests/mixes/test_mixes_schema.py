"""The mixture YAML: every code at its place in the file, all faults at once, and a dump that loads again."""

from __future__ import annotations

from pathlib import Path

import pytest

from gristmill.core.errors import ConfigError, Problem, UsageError
from gristmill.core.hashing import sha256_file
from gristmill.core.places import recipes_in
from gristmill.mixes.api import check_tokenizer, load_mixture
from gristmill.mixes.branching import branch
from gristmill.mixes.schema import Mixture, parse_tokens

HEAD = """gristmill_mix: 1
sources:
  en: {filter: "language == 'en'"}
  de: {filter: "language == 'de'"}
stages:
"""


def problems(tmp_path: Path, text: str) -> list[Problem]:
    path = tmp_path / "mix.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_mixture(str(path))
    return caught.value.problems


def stage(**fields: str) -> str:
    base = {"name": "a", "tokens": "20M", "seq_len": "128", "global_batch": "4096", "mix": "{en: 0.5, de: 0.5}"}
    kept = {k: v for k, v in {**base, **fields}.items() if v}
    return "  - {" + ", ".join(f"{k}: {v}" for k, v in kept.items()) + "}\n"


@pytest.mark.parametrize(
    ("fields", "code", "where", "hint"),
    [
        ({"mix": "{en: 0.5, de: 0.4}"}, "E101", "stages[0].mix", "0.1 too little"),
        ({"mix": "{en: 0.5, de: 0.6}"}, "E101", "stages[0].mix", "0.1 too much"),
        ({"mix": "{en: 1, de: rest}"}, "E101", "stages[0].mix", None),
        ({"mix": "{en: 0.5, fr: 0.5}"}, "E102", "stages[0].mix.fr", "en, de"),
        ({"mix": "{en: rest, de: rest}"}, "E105", "stages[0].mix", "at most one"),
        ({"mix": "{en: 0.5, de: {tokens: 2M}}"}, "E105", "stages[0].mix", "rest"),
        ({"mix": "{en: {epochs: 1}}"}, "E105", "stages[0].mix", "leave it out"),
        ({"mix": "{en: rest}", "normalize": "true"}, "E105", "stages[0].mix", "shares only"),
        ({"mix": "{en: {epoch: 1}}", "tokens": ""}, "E107", "stages[0].mix.en", "{epochs: 1.5}"),
        ({"mix": "{en: yes}"}, "E107", "stages[0].mix.en", "a share"),
        ({"mix": "{en: true}"}, "E107", "stages[0].mix.en", "a share"),
        ({"mix": "{en: {tokens: 2m}, de: rest}"}, "E107", "stages[0].mix.en.tokens", "write 2M"),
        ({"tokens": "20G"}, "E107", "stages[0].tokens", "write 20B"),
        ({"tokens": "20 parsecs"}, "E107", "stages[0].tokens", "K, M, B, T"),
        ({"tokens": "0.5"}, "E107", "stages[0].tokens", "20M"),
        ({"tokens": "1.0000005K"}, "E107", "stages[0].tokens", None),
        ({"tokens": "true"}, "E107", "stages[0].tokens", "20M"),
        ({"tokens": "-5"}, "E109", "stages[0].tokens", None),
        ({"tokens": "9999999T"}, "E109", "stages[0].tokens", None),
        ({"global_batch": "4100"}, "E107", "stages[0].global_batch", "4096 is 32 rows"),
        ({"global_batch": "100"}, "E107", "stages[0].global_batch", "128 is 1 rows"),
        ({"tokens": "4K"}, "E109", "stages[0].tokens", "lower global_batch"),
        ({"tokens": ""}, "E109", "stages[0].mix", "tokens: 20M"),
        ({"mix": "{en: {tokens: 20M}, de: rest}"}, "E109", "stages[0].mix", None),
        ({"mix": "{en: 0.5, en.old: 0.5}"}, "E102", "stages[0].mix.en.old", "sources.en a split_by"),
        ({"until": "2K"}, "E109", "stages[0].until", "lower global_batch"),
        ({"until": "30M"}, "E109", "stages[0].until", None),
    ],
)
def test_codes(tmp_path: Path, fields: dict[str, str], code: str, where: str, hint: str | None) -> None:
    found = problems(tmp_path, HEAD + stage(**fields))
    assert [(p.message.split()[0], p.path, p.line) for p in found] == [(code, where, 6)]
    assert (hint or "") in (found[0].hint or "")


def test_phases_are_checked_against_each_other(tmp_path: Path) -> None:
    text = HEAD + stage(lr="{phase: decay}") + stage(mix="{en: 0.5, it: 0.5}")
    found = problems(tmp_path, text)
    assert [(p.message.split()[0], p.path, p.line) for p in found] == [
        ("E110", "stages[1].lr", 7),
        ("E107", "stages[1].name", 7),
        ("E102", "stages[1].mix.it", 7),
    ]


def test_all_faults_at_once(tmp_path: Path) -> None:
    text = (HEAD + stage(tokens="20g") + stage(name="b", mix="{en: 2}") + "seeds: 4\n").replace(
        "language == 'de'", "language == 5"
    )
    found = problems(tmp_path, text)
    assert [(p.line, p.message.split()[0]) for p in found] == [(4, "E102"), (6, "E107"), (7, "E101"), (8, "unknown")]
    assert "column 13 of the expression" in found[0].message


def test_names_stay_inside_their_folder(tmp_path: Path) -> None:
    assert problems(tmp_path, HEAD + stage(name="../up"))[0].path == "stages[0].name"
    assert problems(tmp_path, HEAD + stage(name="a/b"))[0].path == "stages[0].name"


def test_units() -> None:
    assert [parse_tokens(v) for v in ("8T", "2.5M", "20_000", 7, 1e6, "1.25K")] == [
        8 * 10**12,
        2_500_000,
        20_000,
        7,
        10**6,
        1250,
    ]


def test_dump_loads_again(tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(
        HEAD
        + stage(mix="{en: 3, de: 5}", normalize="true")
        + stage(name="b", mix="{en: rest, de: {tokens: 2.5M}}")
        + stage(name="c", tokens="", mix="{en: {epochs: 1.5}}", lr="{phase: decay, to: 0}")
    )
    mixture, _ = load_mixture(str(path), ["stages.1.tokens=30M", "seed=9"])
    assert (mixture.stages[1].tokens, mixture.seed) == (30_000_000, 9)
    assert Mixture.model_validate(mixture.model_dump(mode="json", by_alias=True)) == mixture


@pytest.mark.parametrize("name", sorted(recipes_in("gristmill.mixes")))
def test_packaged_mixtures_load(name: str) -> None:
    mixture, document = load_mixture(name)
    assert mixture.stages
    assert document.name.endswith(f"{name}.yaml")


FULL = """gristmill_mix: 1
defaults: {on_short: rescale, pack: bfd-truncate}
sources:
  en: {filter: "score >= 3 and raw.words < 9", group: web, loss_weight: 0.5, rehydrate: {1: 1, 2: 2, 5: 3}}
  fw: {split_by: language, max_epochs: 2, group: web}
stages:
  - {name: a, tokens: 20M, seq_len: 128, global_batch: 4096, lr: {phase: stable}, mix: {en: 0.5, fw.de: 0.5}}
  - {name: b, tokens: 20M, seq_len: 64, global_batch: 4096, pack: concat, lr: {phase: decay}, mix: {fw: 1}}
ablations:
  - {name: c, from: {stage: a, at: 10M}, tokens: 1M, base: 0.4, candidate: {fw.fr: 0.6}}
"""


def loaded(tmp_path: Path, text: str, *overrides: str) -> Mixture:
    path = tmp_path / "mix.yaml"
    path.write_text(text)
    return load_mixture(str(path), overrides)[0]


def test_every_key(tmp_path: Path) -> None:
    mixture = loaded(tmp_path, FULL)
    assert mixture.sources["en"].rehydrate == {1: 1, 2: 2, 5: 3}
    assert [mixture.packing(phase) for phase in mixture.stages] == ["bfd-truncate", "concat"]
    assert (mixture.limit("fw.de"), mixture.limit("en"), mixture.parent("fw.zh-Hant")) == (2, 4, "fw")
    assert Mixture.model_validate(mixture.model_dump(mode="json", by_alias=True)) == mixture


@pytest.mark.parametrize(
    ("old", "new", "code", "path", "line"),
    [
        ("score >= 3", "language >= 3", "E102", "sources.en.filter", 4),
        ("score >= 3", "score(3)", "E102", "sources.en.filter", 4),
        ("{1: 1, 2: 2", "{0: 1, 2: 2", "E107", "sources.en.rehydrate", 4),
        ("5: 3}", "5: 5000}", "E107", "sources.en.rehydrate", 4),
        ("5: 3}", "5: 1.5}", "Input", "sources.en.rehydrate.5", 4),
        ("group: web}\nstages", "group: en}\nstages", "E107", "sources.fw.group", 5),
        ("fw.de: 0.5", "fw.: 0.5", "E102", "stages[0].mix.fw.", 7),
        ("base: 0.4", "base: 0.5", "E101", "ablations[0].candidate", 10),
        ("{fw.fr: 0.6}", "{fx: 0.6}", "E102", "ablations[0].candidate.fx", 10),
        ("stage: a", "stage: z", "E102", "ablations[0].from.stage", 10),
        ("at: 10M", "at: 30M", "E109", "ablations[0].from.at", 10),
        ("at: 10M", "at: 1K", "E109", "ablations[0].from.at", 10),
        ("tokens: 1M", "tokens: 1K", "E109", "ablations[0].tokens", 10),
        ("name: c", "name: b", "E107", "ablations[0].name", 10),
        ("en: 0.5, fw.de: 0.5}", "en: {tokens: 1M}, fw.de: rest}", "E105", "ablations[0].base", 10),
        ("tokens: 1M,", "tokens: 1M, tokens: 2M,", "E107", "ablations[0].tokens", 10),
        ("on_short: rescale", "doc_mask: false", "E107", "defaults.doc_mask", 2),
        ("{phase: stable}", "{phase: stable, peak: 2.0e-4}", "E110", "stages[0].lr", 7),
        ("{phase: decay}", "{phase: rewarm_decay}", "E110", "stages[1].lr", 8),
    ],
)
def test_codes_of_the_other_keys(tmp_path: Path, old: str, new: str, code: str, path: str, line: int) -> None:
    assert old in FULL
    found = problems(tmp_path, FULL.replace(old, new, 1))
    assert [(p.message.split()[0], p.path, p.line) for p in found] == [(code, path, line)]
    assert all(p.column > 1 for p in found)


def test_a_branch_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(FULL)
    with pytest.raises(ConfigError, match=r"--set:1.*\n?.*E102 no ablation named `d`") as caught:
        load_mixture(str(path), ["branch=d"])
    assert "ablations: c" in str(caught.value)


@pytest.mark.parametrize(
    ("rates", "faulty"),
    [
        ("stable decay", []),
        ("stable decay decay", []),
        ("stable decay stable", [2]),
        ("decay stable+", []),  # mid-training after a cooldown, warmed up anew (warmup-stable-decay twice)
        ("decay stable+ stable decay", []),
        ("full decay", [1]),
        ("full decay+", []),  # K2: a second stage decays from the peak again
        ("full full", []),
        ("full stable", [1]),
        ("decay:cosine decay:linear", [1]),
        ("decay:cosine decay:cosine", []),
        ("decay:cosine decay", []),
    ],
)
def test_learning_rates_between_stages(tmp_path: Path, rates: str, faulty: list[int]) -> None:
    """The same that the trainer's schedule accepts: a stage that does not rise may not jump back to the peak."""
    from gristmill.core.tokshards import PackedManifest, PackedPhase
    from gristmill.trainer.optim_schema import Schedule
    from gristmill.trainer.schedule import LearningRate

    blocks = []
    for text in rates.split():
        kind, _, shape = text.rstrip("+").partition(":")
        rise = {"warmup_steps": 2} if text.endswith("+") else {}
        blocks.append({"phase": kind, **({"shape": shape} if shape else {}), **rise})
    text = HEAD + "".join(
        stage(name=f"s{i}", lr=str(b).replace("'", "").replace('"', "")) for i, b in enumerate(blocks)
    )
    if faulty:
        found = problems(tmp_path, text)
        assert [(p.message.split()[0], p.path) for p in found] == [("E110", f"stages[{i}].lr") for i in faulty]
        assert [p.line for p in found] == [6 + i for i in faulty]
    else:
        loaded(tmp_path, text)
    phases = [PackedPhase(f"s{i}", 4, 80, 8, 80, b, {}) for i, b in enumerate(blocks)]
    manifest = PackedManifest("<u2", 300, {}, "", 0, "", phases, [])
    if faulty and rates != "full decay":  # there the trainer goes on from the decayed rate's peak without a word
        with pytest.raises(UsageError):
            LearningRate(1e-3, Schedule(), manifest)
    elif not faulty:
        LearningRate(1e-3, Schedule(), manifest)


def test_a_tokenizer_is_named_by_digest(tmp_path: Path) -> None:
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_bytes(b"{}")
    digest = sha256_file(tmp_path / "tok" / "tokenizer.json")
    mixture = loaded(tmp_path, FULL + "tokenizer: tok\n")
    assert mixture.tokenizer == digest
    check_tokenizer(mixture, digest)
    check_tokenizer(loaded(tmp_path, FULL), digest)
    with pytest.raises(UsageError, match=r"E106 .* encoded with tokenizer 000"):
        check_tokenizer(mixture, "0" * 64)
    path = tmp_path / "mix.yaml"
    path.write_text(FULL + "tokenizer: nowhere/at-all\n")
    absent, document = load_mixture(str(path))
    with pytest.raises(ConfigError, match=r"mix\.yaml:11:12: error: tokenizer: E106 no tokenizer at nowhere/at-all"):
        check_tokenizer(absent, digest, document)


def test_a_branch_is_a_mixture(tmp_path: Path) -> None:
    whole = loaded(tmp_path, FULL)
    branched = loaded(tmp_path, FULL, "branch=c")
    assert branched == branch(whole, "c")
    assert [(p.name, p.tokens, p.until) for p in branched.stages] == [
        ("a", 20_000_000, 10_000_000 // 4096 * 4096),
        ("c", 1_000_000, None),
    ]
    assert branched.stages[1].mix == {"en": 0.2, "fw.de": 0.2, "fw.fr": 0.6}
    assert (branched.stages[1].lr.phase, branched.ablations) == ("decay", [])
    at_end = branch(loaded(tmp_path, FULL.replace("at: 10M", "at: 20M")), "c")
    assert at_end.stages[0] == whole.stages[0]


def test_places_of_a_branch_are_those_of_its_ablation(tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(FULL)
    _, document = load_mixture(str(path), ["branch=c"])
    assert document.mark(("stages", 1, "mix", "fw.fr")).line == 10
    assert document.mark(("stages", 1, "tokens")).line == 10
    assert document.mark(("stages", 0, "tokens")).line == 7


def test_the_guides_mixture_loads(tmp_path: Path) -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "mixtures.md").read_text()
    text = guide.split("```yaml\n")[1].split("```")[0]
    mixture = loaded(tmp_path, text)
    assert branch(mixture, "more-math").stages[1].mix["math"] == pytest.approx(0.4 * 0.05 + 0.6)
    for phase in mixture.stages:
        assert phase.name in guide


def test_json_schema_can_be_printed() -> None:
    assert "stages" in Mixture.model_json_schema()["properties"]


def test_a_stage_with_a_rest_has_a_base(tmp_path: Path) -> None:
    rest = FULL.replace("{en: 0.5, fw.de: 0.5}", "{fw.de: rest, en: 0.75}")
    branched = loaded(tmp_path, rest, "branch=c")
    assert branched.stages[1].mix == pytest.approx({"fw.de": 0.1, "en": 0.3, "fw.fr": 0.6})
    assert branched.stages[0].mix == {"fw.de": "rest", "en": 0.75}


def test_examples_of_hints_could_be_used(tmp_path: Path) -> None:
    found = problems(tmp_path, HEAD + stage(global_batch="", seq_len=""))
    hints = {p.path.rpartition(".")[2]: p.hint or "" for p in found}
    assert hints["seq_len"].startswith("add `seq_len: 4096`")
    assert hints["global_batch"].startswith("add `global_batch: 524288`")
