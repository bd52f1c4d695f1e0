"""A file that only grows: one JSON object a line, appended and never rewritten.

Work that must survive being killed is kept in such files: texts that were paid for, an annotator's
decisions, verdicts that took a model minutes. A line is either whole or set aside.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, Self

Record = dict[str, Any]


class JsonLines:
    """The file, open for appending and locked against a second writer.

    Opening it hands every line that is there to `take`, and sets a torn last line (a killed
    process) aside in `<name>.torn`. Subclasses define `parse` and `take`.

    Raises:
        ValueError: another process has it open, or a line (which is named) is otherwise damaged.
    """

    expected = "an object"
    """What a line holds, for the message about a damaged one."""
    cure = "mend or delete that line"
    user = "process"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._mutex = threading.Lock()
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def parse(self, record: Record) -> Any:
        """What a line stands for; ValueError, KeyError or TypeError if it is not that."""
        return record

    def take(self, entry: Any) -> None:
        """Remember an entry that is on the disk."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, which unlocks it."""
        self._file.close()

    def write(self, record: Record, *, sync: bool = True) -> None:
        """Append one line; on return it survives a killed process and, with `sync`, a power cut.

        Safe to call from several threads. Raises what `parse` raises of a wrong record, and OSError
        when the disk takes no more; the file then ends after the last whole line.
        """
        entry = self.parse(record)  # before it is written: a wrong line would bar the whole file
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        with self._mutex:
            size = self.path.stat().st_size
            try:
                self._write(line, sync)
            except OSError as error:
                self._file.truncate(size)
                what = f"{error.strerror} while an answer was saved; earlier ones are safe"
                raise OSError(error.errno, what, str(self.path)) from error
            self.take(entry)

    def _write(self, line: bytes, sync: bool = True) -> None:
        while line:  # a nearly full disk takes a part first and raises at the next call
            line = line[self._file.write(line) :]
        if sync:
            os.fsync(self._file.fileno())

    def _lock(self) -> None:
        try:
            import fcntl  # Windows has none

            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.path} is in use by another {self.user}: wait for it, or choose another "
                "path."
            ) from error
        except (ImportError, OSError):  # nor do some network file systems lock:
            return  # one writer a file is a duty then

    def _read(self) -> None:
        *lines, tail = self.path.read_bytes().split(b"\n")
        for number, line in enumerate([*lines, *self._mend(tail)], start=1):
            entry = self._parse(line)
            if entry is None:
                raise ValueError(f"{self.path}, line {number} is not {self.expected}: {self.cure}.")
            self.take(entry)

    def _mend(self, tail: bytes) -> list[bytes]:
        """Deal with what stands behind the last newline; returns it if it is a whole line."""
        if not tail:
            return []
        if self._parse(tail) is not None:  # only the newline was lost: the entry is whole
            self._write(b"\n")
            return [tail]
        with open(f"{self.path}.torn", "ab") as torn:
            torn.write(tail + b"\n")
        self._file.truncate(self.path.stat().st_size - len(tail))
        return []

    def _parse(self, line: bytes) -> Any | None:
        try:
            record = json.loads(line)
            return self.parse(record) if isinstance(record, dict) else None
        except (ValueError, TypeError, KeyError):
            return None
