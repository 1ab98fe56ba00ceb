"""Documents of a recipe's `imports` read again from their files, so that a traced token can be proved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.core.errors import FormatError
from gristmill.core.manifest import Manifest

if TYPE_CHECKING:
    from gristmill.tokenize.codec import Codec


class Imported:
    """The imported files of a root by name (NAME/file, a document's `warc_name`) and how each was read."""

    def __init__(self, known: Mapping[str, Manifest], codec: Codec) -> None:
        self.codec = codec
        self.files: dict[str, dict[str, Any]] = {}
        for stage in ("imports.text", "tokens"):
            for receipt in known[stage].receipts if stage in known else []:
                if "import" in receipt.config:
                    self.files[receipt.inputs["imports"][-1][0]] = receipt.config

    def document(self, row: Mapping[str, Any]) -> tuple[str, list[int]]:
        """(text, ids with the closing eos) of a traced row's document. Raises FormatError when its file is another now."""
        config, path, number = self.files[row["warc_name"]], str(row["warc_file"]), int(row["warc_offset"])
        if config["format"] in ("jsonl", "parquet"):
            from gristmill.curate.imports_text import text_of_row

            text = text_of_row(config, path, str(row["warc_name"]), number)
            return text, [*self.codec.encode_batch([text])[0].tolist(), self.codec.eos]
        from gristmill.tokenize.imports_tokens import read_datatrove, read_megatron

        if config["format"] == "megatron":
            found = read_megatron(Path(path).with_suffix(".idx"), Path(path))
        else:
            found = read_datatrove(Path(f"{path}.index"), Path(path))
        if number >= len(found.length):
            raise FormatError(f"{path} has no document {number}", hint="the file changed since the run")
        first = int(found.first[number])
        ids = found.data[first : first + int(found.length[number])].tolist()
        if not ids or ids[-1] != self.codec.eos:
            ids.append(self.codec.eos)
        return self.codec.decode(ids[:-1]), ids
