"""The file that only grows: whole lines stay, a torn one is set aside, a second writer waits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from judgelib.journal import JsonLines, Record

A, B = {"n": 1, "text": "It is 4."}, {"n": 2, "text": "é 🙂 \u2028 \n end"}
WRITER = """
import sys
from judgelib.journal import JsonLines
with JsonLines(sys.argv[1]) as journal:
    for n in range(10**9):
        journal.write({"n": n}, sync=False)
        print(n, flush=True)
"""


class Numbers(JsonLines):
    """Remembers its lines, each of which needs a number n."""

    expected = "a line with a number n"
    cure = "count again"

    def __init__(self, path: Path) -> None:
        self.entries: list[int] = []
        super().__init__(path)

    def parse(self, record: Record) -> int:
        if not isinstance(record["n"], int):
            raise TypeError("expected a number")
        return record["n"]

    def take(self, entry: int) -> None:
        self.entries.append(entry)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "lines.jsonl"


def write(path: Path, *records: Record, **options: Any) -> None:
    with JsonLines(path) as journal:
        for record in records:
            journal.write(record, **options)


def read(path: Path) -> list[int]:
    with Numbers(path) as journal:
        return journal.entries


def test_what_is_written_is_taken_now_and_when_opened_again(path: Path) -> None:
    with Numbers(path) as journal:
        for record in (A, B):
            journal.write(record)
        assert journal.entries == [1, 2]
    assert read(path) == [1, 2]
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [A, B]
    assert lines[-1] == "" and "é 🙂" in lines[1]


def test_lines_survive_a_killed_process_and_its_lock_does_not(path: Path) -> None:
    """Whatever the writer had acknowledged is there, unbroken, also without a sync."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(20):
            acknowledged = int(writer.stdout.readline())
        with pytest.raises(ValueError, match="in use by another process: wait for it"):
            JsonLines(path)
        writer.send_signal(signal.SIGKILL)
    found = read(path)
    assert found == list(range(len(found))) and len(found) > acknowledged == 19


def test_every_torn_last_line_is_set_aside(path: Path) -> None:
    """Cut at each byte; the tear may fall within a character."""
    line = json.dumps(B, ensure_ascii=False).encode()
    torn = Path(f"{path}.torn")
    for kept in range(1, len(line)):
        path.unlink(missing_ok=True), torn.unlink(missing_ok=True)
        write(path, A)
        whole = path.read_bytes()
        path.write_bytes(whole + line[:kept])
        assert read(path) == [1]
        assert path.read_bytes() == whole
        assert torn.read_bytes() == line[:kept] + b"\n"
    write(path, B)
    assert read(path) == [1, 2]  # the file can be appended to again


def test_torn_lines_add_up(path: Path) -> None:
    for piece in (b'{"n": 1', b"{"):
        write(path, A)
        with open(path, "ab") as file:
            file.write(piece)
    assert read(path) == [1, 1]
    assert Path(f"{path}.torn").read_bytes() == b'{"n": 1\n{\n'


def test_a_line_that_lost_only_its_newline_is_kept(path: Path) -> None:
    write(path, A, B)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert read(path) == [1, 2]
    assert path.read_bytes() == whole
    assert not Path(f"{path}.torn").exists()


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b'{"m": 1}', b'{"n": "1"}', b"[1]", b"null", b"7", b'{"n": "\xff"}'],
    ids=repr,
)
def test_a_damaged_line_is_named_and_nothing_is_changed(path: Path, damage: bytes) -> None:
    write(path, A)
    path.write_bytes(path.read_bytes() + damage + b'\n{"n": 3}\n')
    before = path.read_bytes()
    with pytest.raises(ValueError) as error:
        Numbers(path)
    assert f"{path}, line 2 is not a line with a number n: count again." in str(error.value)
    assert path.read_bytes() == before
    path.write_bytes(before.replace(damage + b"\n", b"", 1) if damage else b'{"n": 3}\n')
    assert read(path)[-1] == 3  # the failed attempt left no lock


def test_only_objects_are_lines(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"[1, 2]\n")
    with pytest.raises(ValueError, match="line 1 is not an object: mend or delete that line"):
        JsonLines(path)


def test_a_record_that_would_damage_the_file_is_not_written(path: Path) -> None:
    with Numbers(path) as journal:
        journal.write(A)
        for wrong in ({"m": 1}, {"n": "1"}, {"n": 1, "text": object()}, {"n": 1, "text": "\ud800"}):
            with pytest.raises((ValueError, TypeError, KeyError)):
                journal.write(wrong)
        journal.write({"n": 5})
        assert journal.entries == [1, 5]
    assert read(path) == [1, 5]


def test_a_file_has_one_writer(path: Path) -> None:
    with JsonLines(path) as journal:
        with pytest.raises(ValueError) as error:
            JsonLines(path)
        assert f"{path} is in use by another process" in str(error.value)
        journal.write(A)
    write(path, B)
    assert read(path) == [1, 2]


def test_lines_are_synced_unless_told_otherwise(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is in the file before it is synced, and also if it is not."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(path.stat().st_size))
    write(path, A, sync=False)
    assert synced == [] and read(path) == [1]
    write(path, B)
    assert synced == [path.stat().st_size]


@pytest.mark.parametrize("sync", [True, False])
def test_a_full_disk_leaves_whole_lines(
    path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    with Numbers(path) as journal:
        journal.write(A)
        real = journal._file

        class Full:
            """Takes five bytes, then no more."""

            def write(self, line: bytes) -> int:
                if len(path.read_bytes()) > size:
                    raise OSError(28, "No space left on device")
                return real.write(line[:5])

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        size = path.stat().st_size
        monkeypatch.setattr(journal, "_file", Full())
        with pytest.raises(
            OSError, match="No space left on device.*earlier ones are safe"
        ) as error:
            journal.write(B, sync=sync)
        assert (error.value.errno, error.value.filename) == (28, str(path))
        assert path.stat().st_size == size and journal.entries == [1]
        monkeypatch.undo()
        journal.write(B, sync=sync)
    assert read(path) == [1, 2]
