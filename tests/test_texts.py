"""The journal of texts: what is written stays, what is torn or damaged is seen."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from judgelib.texts import Journal, Text

A = Text("a", "gpt", "It is 4.", "sha-a", "stop", 7, 3)
B = Text("b", "gpt", "é 🙂", "sha-b", "length")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers" / "gpt.jsonl"


def write(path: Path, *texts: Text) -> None:
    with Journal(path) as journal:
        for text in texts:
            journal.append(text)


def read(path: Path) -> list[Text]:
    with Journal(path) as journal:
        return list(journal.texts.values())


def test_file_holds_one_json_object_a_line(path: Path) -> None:
    write(path, A, B)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [asdict(A), asdict(B)]
    assert lines[-1] == ""


def test_texts_are_found_by_question_and_prompt(path: Path) -> None:
    other = replace(A, prompt_sha="sha-other", text="It is 5.")
    write(path, A)
    with Journal(path) as journal:
        journal.append(other)
        assert journal.texts == {("a", "sha-a"): A, ("a", "sha-other"): other}
    assert read(path) == [A, other]


def test_of_two_lines_with_one_key_the_first_counts(path: Path) -> None:
    write(path, A, replace(A, text="again"))
    assert read(path) == [A]


def test_text_survives_the_file_exactly(path: Path) -> None:
    strange = replace(A, text='line\nline\r\n\u2028 "quoted" \\ \t é 🙂 \x00 שלום  ')
    write(path, strange)
    assert read(path) == [strange]


def test_every_line_is_synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(file: int) -> None:
        real(file)
        synced.append(len(path.read_bytes().splitlines()))

    monkeypatch.setattr(os, "fsync", fsync)
    write(path, A, B)
    assert synced == [1, 2]


def test_threads_do_not_mix_their_lines(path: Path) -> None:
    texts = [replace(A, question_id=str(number), text="x" * 5000) for number in range(40)]
    with Journal(path) as journal:
        threads = [
            threading.Thread(target=lambda part: [*map(journal.append, part)], args=(texts[n::4],))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(read(path), key=lambda text: int(text.question_id)) == texts


@pytest.mark.parametrize("kept", [1, 20, -2])
def test_torn_last_line_is_set_aside(path: Path, kept: int) -> None:
    write(path, A, B)
    whole = path.read_bytes()
    first, second = whole.splitlines(keepends=True)
    path.write_bytes(first + second[:kept])
    assert read(path) == [A]
    assert path.read_bytes() == first
    assert Path(f"{path}.torn").read_bytes() == second[:kept] + b"\n"
    write(path, B)
    assert path.read_bytes() == whole


def test_line_that_lost_only_its_newline_is_kept(path: Path) -> None:
    write(path, A, B)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert read(path) == [A, B]
    assert path.read_bytes() == whole
    assert not Path(f"{path}.torn").exists()


@pytest.mark.parametrize(
    "damage",
    [
        b"rubbish",
        b"",
        b"[]",
        b'{"question_id": "a"}',
        b"\x00\x00",
        b"\xff",
        json.dumps(asdict(A) | {"text": None}).encode(),
        json.dumps(asdict(A) | {"more": 1}).encode(),
    ],
)
def test_other_damage_names_the_line(path: Path, damage: bytes) -> None:
    write(path, A, B)
    first, second = path.read_bytes().splitlines()
    path.write_bytes(first + b"\n" + damage + b"\n" + second + b"\n")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"gpt\.jsonl, line 2 is not a stored answer"):
        Journal(path)
    assert path.read_bytes() == before


def test_a_file_is_locked_while_it_is_open(path: Path) -> None:
    with Journal(path), pytest.raises(ValueError, match="in use by another collector"):
        Journal(path)
    write(path, A)
    assert read(path) == [A]


def test_a_partial_write_is_finished_and_a_failed_one_undone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, A)
    with Journal(path) as journal:
        real = journal._file

        class Nearly:
            """Takes half of what it is given, once; then the disk is full."""

            parts = 0

            def write(self, line: bytes) -> int:
                self.parts += 1
                if self.parts > 1:
                    raise OSError(28, "No space left on device")
                return real.write(line[: len(line) // 2])

            def __getattr__(self, name: str) -> object:
                return getattr(real, name)

        with monkeypatch.context() as patch:
            patch.setattr(journal, "_file", Nearly())
            with pytest.raises(OSError, match="No space left.*earlier ones are safe"):
                journal.append(B)
        assert B not in journal.texts.values()
        journal.append(B)
    assert read(path) == [A, B]
