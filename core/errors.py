"""Every exception that gristmill raises on purpose, each with a hint and the exit code it maps to.

GristmillError            1   something failed; the run can be resumed
├── InputError            1   an input file is missing, forbidden or unreadable
├── TaskFailed            1   a task failed after its retries
├── Stopped             130   a long task was asked to stop; its state is kept
├── LeaseHeld             1   another live run owns the root
├── FormatError           1   a file of ours is damaged: wrong size, digest or layout
└── UsageError            2   a bad option or argument; nothing was run
    └── ConfigError       2   a YAML file with one or more problems; nothing was run
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_WORK_FOUND = 3
EXIT_INTERRUPTED = 130


class GristmillError(Exception):
    """Base of all errors meant for a user: a message that says what failed and a hint that says what to do."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(cls: type[GristmillError], message: str, hint: str | None) -> GristmillError:
    error = cls.__new__(cls)
    GristmillError.__init__(error, message, hint=hint)
    return error


class InputError(GristmillError):
    """An input file is missing, forbidden or fails to read."""


class TaskFailed(GristmillError):
    """A task raised after its last retry."""


class Stopped(GristmillError):
    """A long task was asked to stop and saved its state: the same command goes on from it."""

    exit_code = EXIT_INTERRUPTED


class LeaseHeld(GristmillError):
    """Another live run holds this root."""


class FormatError(GristmillError):
    """A file written by gristmill is damaged: wrong size, digest, version or layout."""


class UsageError(GristmillError):
    """A bad option or argument. Nothing was run."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Problem:
    """One fault in a YAML file. `line` and `column` count from 1; 0 means the whole file."""

    file: str
    line: int
    column: int
    path: str
    message: str
    hint: str | None = None
    source: str | None = None

    def render(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        where = f"{place}: error: "
        text = where + (f"{self.path}: {self.message}" if self.path else self.message)
        if self.source is not None:
            gutter = f"{self.line:5d} | "
            text += f"\n{gutter}{self.source}\n{' ' * (len(gutter) - 2)}| {' ' * (self.column - 1)}^"
        if self.hint:
            text += f"\n  hint: {self.hint}"
        return text


class ConfigError(UsageError):
    """All faults of one or more YAML files, reported together. Nothing was run."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = sorted(problems, key=lambda p: (p.file, p.line, p.column, p.path))
        files = ", ".join(dict.fromkeys(p.file for p in self.problems))
        n = len(self.problems)
        lines = [p.render() for p in self.problems]
        lines.append(f"{n} error{'s' if n != 1 else ''} in {files}; nothing was run")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        return (ConfigError, (self.problems,))
