"""The embedded default input: a small seeded web of real prose, written as WARC files with a truth file beside them."""

from typing import TYPE_CHECKING

from gristmill.pipelines.sample.truth import PlantedPage, Truth, is_complete, read_truth

__all__ = ["PlantedPage", "Truth", "is_complete", "read_truth", "write_sample"]

if TYPE_CHECKING:
    from gristmill.pipelines.sample.write import write_sample


def __getattr__(name: str) -> object:
    """`write_sample` on first use: the reader of a truth file needs none of what writing imports."""
    if name == "write_sample":
        from gristmill.pipelines.sample.write import write_sample

        return write_sample
    raise AttributeError(name)
