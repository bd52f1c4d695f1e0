"""A file of decisions: one JSON line each, on disk before it counts."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from judgelib.annotation.decisions import Decision, parse
from judgelib.journal import JsonLines

_EXPECTED = "a decision (a JSON object with annotator, item, sha, verdict, start, stop, at)"
_CURE = "mend that line, or restore the file from a copy"


class Log(JsonLines):
    """One annotator's file, open and locked; `lines` holds all that is in it, undone or not."""

    expected = _EXPECTED
    cure = _CURE
    user = "kernel"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.lines: list[Decision] = []
        super().__init__(path)

    def parse(self, record: dict[str, Any]) -> Decision:
        """The decision in a line."""
        return parse(record)

    def take(self, entry: Decision) -> None:
        """Remember a decision that is on the disk."""
        self.lines.append(entry)

    def append(self, decision: Decision) -> None:
        """Write one line; on return it is on the disk.

        Raises:
            ValueError: the log is closed.
            OSError: the disk takes no more, or somebody removed the file.
        """
        if self._file.closed:
            raise ValueError(f"{self.path} was closed here: go on in the cell that opened it last.")
        self.write(asdict(decision))


def read(path: str | os.PathLike[str]) -> list[Decision]:
    """All decisions of a file, undone or not; changes nothing, and skips a torn last line.

    Raises:
        ValueError: a line (which is named) is not a decision.
    """
    *lines, tail = Path(path).read_bytes().split(b"\n")
    found = [_parse(line) for line in lines]
    if None in found:
        number = found.index(None) + 1
        raise ValueError(f"{path}, line {number} is not {_EXPECTED}: {_CURE}.")
    return [decision for decision in [*found, _parse(tail)] if decision]


def _parse(line: bytes) -> Decision | None:
    try:
        return parse(json.loads(line))
    except (ValueError, TypeError):
        return None
