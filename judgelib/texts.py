"""Texts by other authors, kept in a JSONL file: one `Text` a line, appended, never rewritten."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

Key = tuple[str, str]
"""A text's question id and prompt_sha."""


@dataclass(frozen=True)
class Text:
    """One text by one author.

    `prompt_sha` covers all that was asked, so that a changed prompt is asked again.
    `finish_reason` is the server's ("stop"; "length": cut off; "content_filter": may be empty), or
    "reference" for a human's. Token counts are the server's, None where it gave none.
    """

    question_id: str
    author: str
    text: str
    prompt_sha: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Journal:
    """The file, open and locked against a second writer; `texts` holds what is in it.

    Opening it sets a torn last line (a killed process) aside in `<name>.torn`.

    Raises:
        ValueError: another process has it open, or a line (which is named) is otherwise damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.texts: dict[Key, Text] = {}
        self._mutex = threading.Lock()
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, text: Text) -> None:
        """Write one line; on return it is on the disk. Safe to call from several threads.

        Raises OSError when the disk takes no more; the file then ends after the last whole line.
        """
        line = json.dumps(asdict(text), ensure_ascii=False).encode() + b"\n"
        with self._mutex:
            size = self.path.stat().st_size
            try:
                self._write(line)
            except OSError as error:
                self._file.truncate(size)
                what = f"{error.strerror} while an answer was saved; earlier ones are safe"
                raise OSError(error.errno, what, str(self.path)) from error
            self.texts[text.question_id, text.prompt_sha] = text

    def _write(self, line: bytes) -> None:
        while line:  # a nearly full disk takes a part first and raises at the next call
            line = line[self._file.write(line) :]
        os.fsync(self._file.fileno())

    def _lock(self) -> None:
        try:
            import fcntl  # Windows has none

            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.path} is in use by another collector: wait for it, or choose another path."
            ) from error
        except (ImportError, OSError):  # nor do some network file systems lock:
            return  # one writer a file is a duty then

    def _read(self) -> None:
        *lines, tail = self.path.read_bytes().split(b"\n")
        for number, line in enumerate([*lines, *self._mend(tail)], start=1):
            text = _parse(line)
            if text is None:
                raise ValueError(
                    f"{self.path}, line {number} is not a stored answer (a JSON object whose "
                    "question_id, author, text, prompt_sha and finish_reason must be strings): "
                    "mend or delete that line; a deleted answer is asked again."
                )
            self.texts.setdefault((text.question_id, text.prompt_sha), text)

    def _mend(self, tail: bytes) -> list[bytes]:
        """Deal with what stands behind the last newline; returns it if it is a whole line."""
        if not tail:
            return []
        if _parse(tail):  # only the newline was lost: the answer is whole, and paid for
            self._write(b"\n")
            return [tail]
        with open(f"{self.path}.torn", "ab") as torn:
            torn.write(tail + b"\n")
        self._file.truncate(self.path.stat().st_size - len(tail))
        return []


def _parse(line: bytes) -> Text | None:
    try:
        text = Text(**json.loads(line))
    except (ValueError, TypeError):
        return None
    required = (text.question_id, text.author, text.text, text.prompt_sha, text.finish_reason)
    return text if all(isinstance(value, str) for value in required) else None
