"""What stands beside an exported model: its tokenizer, how to sample, the mixture's lock, and where it all came from.

tokenizer.json          the dataset's, byte for byte
generation_config.json  special ids and the run's `generate:` under the names of `transformers`
mix.lock.json           the dataset's, where it has one
provenance.json         versions and digests of all that decided the weights: PROVENANCE_FORMAT

All of it is a function of the dataset, the settings and the installed versions: no times and no folders, so that the
same run gives the same bytes at another place. No torch here.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import orjson

from gristmill import __version__
from gristmill.core.errors import FormatError
from gristmill.core.hashing import sha256_file
from gristmill.core.tokshards import PackedDataset, PackedManifest
from gristmill.trainer.branch import in_task_id
from gristmill.trainer.edits import read_edits
from gristmill.trainer.schema import Generate, TrainRun
from gristmill.trainer.train import OPERATIONAL, ROUNDING, WATCHING

PROVENANCE_FORMAT = "gristmill-provenance-1"
TOKENIZER, GENERATION, LOCK, PROVENANCE = "tokenizer.json", "generation_config.json", "mix.lock.json", "provenance.json"


def write_companions(out: Path, run: TrainRun, dataset: PackedDataset, tokenizer: Path, step: int) -> None:
    """Write the files beside model.safetensors and config.json into `out`. `step` is the last one trained.

    `tokenizer` is the tokenizer.json of the dataset, checked before. edits.json in `out`, if any, is the run's own.
    """
    _copy(tokenizer, out / TOKENIZER)
    _write(out / GENERATION, generation_config(run.generate, dataset.manifest.special_ids))
    lock = dataset.folder / LOCK
    if lock.exists():
        _copy(lock, out / LOCK)
    else:
        (out / LOCK).unlink(missing_ok=True)
    edits = out / "edits.json"
    digest = read_edits(edits).digest if edits.exists() else None
    _write(
        out / PROVENANCE, provenance(run, dataset.manifest, sha256_file(dataset.folder / "manifest.json"), step, digest)
    )


def check_lock(dataset: PackedDataset) -> None:
    """For the start of a run. Raises FormatError when the dataset has another mix.lock.json than its manifest names."""
    lock = dataset.folder / LOCK
    if lock.exists() and sha256_file(lock) != dataset.manifest.lock_sha256:
        raise FormatError(f"{lock} was changed since its dataset was packed", hint="gristmill mix verify names more")


def generation_config(settings: Generate, special_ids: dict[str, int]) -> dict[str, Any]:
    """`generate:` in transformers' names, for its GenerationConfig.

    top_k 0 and top_p 1 say that nothing is cut off, as here; transformers would else sample among the likeliest 50. It
    takes no temperature and no length of 0: the first is greedy decoding, the second is left out.
    """
    config: dict[str, Any] = {
        f"{key}_token_id": special_ids[key] for key in ("bos", "eos", "pad") if key in special_ids
    }
    config["do_sample"] = settings.temperature > 0
    if settings.temperature > 0:
        config |= {"temperature": settings.temperature, "top_k": 0, "top_p": 1.0}
    if settings.tokens:
        config["max_new_tokens"] = settings.tokens
    return config


def provenance(
    run: TrainRun, manifest: PackedManifest, manifest_sha256: str, step: int, edits_digest: str | None = None
) -> dict[str, Any]:
    """Versions, digests and settings behind the weights. `edits_digest`: only where the data order was edited."""
    return {
        "format": PROVENANCE_FORMAT,
        "gristmill": __version__,
        "torch": metadata.version("torch"),
        "dataset_digest": manifest.digest,
        "manifest_sha256": manifest_sha256,
        "lock_sha256": manifest.lock_sha256,
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "run": settings_of(run),
        **({"edits_digest": edits_digest} if edits_digest is not None else {}),
        "step": step,
    }


def settings_of(run: TrainRun) -> dict[str, Any]:
    """The resolved settings that name a run's task, as plain data; of files the last name, of a source its digest.

    Left out are settings that change no output, and those of parallelism: another launch of the same run may
    change them.
    """
    data = run.model_dump(mode="json", by_alias=True, exclude=set(OPERATIONAL | ROUNDING))
    data["guards"] = {key: value for key, value in data["guards"].items() if key not in WATCHING}
    if data["from"] is not None:
        data["from"] = in_task_id(data["from"])
    places = [(data["data"], "blocklist"), (data["data"], "edits"), (data["evaluate"], "stores")]
    places += [(entry, "path") for key in ("heldout", "tasks") for entry in data["evaluate"][key]]
    for section, key in places:
        if section[key] is not None:
            section[key] = Path(section[key]).name
    return data


def _copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())  # not copyfile, which refuses a file given as its own copy


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
