"""Human references: from a dataset, a file or the hub; rows that are no references are named."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from judgelib.references import human_references

ROWS = {"q": ["2+2?", "3+3?"], "a": ["It is 4.", "It is 6."], "key": ["x", "y"]}
COLUMNS: dict[str, Any] = {"question_column": "q", "answer_column": "a"}


def test_human_references_from_a_dataset() -> None:
    texts = human_references(datasets.Dataset.from_dict(ROWS), **COLUMNS)
    assert [text.question_id for text in texts] == ["0", "1"]
    assert [text.text for text in texts] == ["It is 4.", "It is 6."]
    assert {(text.author, text.finish_reason) for text in texts} == {("human", "reference")}
    assert texts[0].prompt_sha == hashlib.sha256(b"2+2?").hexdigest()


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_human_references_from_a_file(tmp_path: Path, suffix: str) -> None:
    table = datasets.Dataset.from_dict(ROWS)
    file = tmp_path / f"human{suffix}"
    table.to_parquet(file) if suffix == ".parquet" else table.to_json(file)
    texts = human_references(file, **COLUMNS, id_column="key")
    assert texts == human_references(table, **COLUMNS, id_column="key")
    assert [text.question_id for text in texts] == ["x", "y"]


def test_human_references_from_the_hub_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def load(*args: Any, **kwargs: Any) -> datasets.Dataset:
        calls.append((args, kwargs))
        return datasets.Dataset.from_dict(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    texts = human_references("org/set", **COLUMNS, config="main", split="train", revision="abc")
    assert calls == [(("org/set", "main"), {"split": "train", "revision": "abc"})]
    assert len(texts) == 2
    with pytest.raises(ValueError, match="pin it with revision="):
        human_references("org/set", **COLUMNS)


def test_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> datasets.Dataset:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ValueError, match="no route to host.*or give a local file"):
        human_references("org/set", **COLUMNS, revision="abc")


def test_clean_turns_a_cell_into_text() -> None:
    table = datasets.Dataset.from_dict({"q": ["?"], "a": [["first", "second"]]})
    (text,) = human_references(table, **COLUMNS, clean=lambda answers: answers[0])
    assert text.text == "first"


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (ROWS, {"question_column": "q", "answer_column": "z"}, "No column z: .* q, a, key"),
        (ROWS, {**COLUMNS, "id_column": "id"}, "No column id"),
        ({"q": ["1", "2"], "a": ["ok", " "]}, COLUMNS, "Row 1 has no text"),
        ({"q": ["1", "2"], "a": ["ok", None]}, COLUMNS, "Row 1 has no text"),
        ({"q": ["1"], "a": [["ok"]]}, COLUMNS, "Row 0 has no text"),
        (ROWS | {"key": ["x", "x"]}, {**COLUMNS, "id_column": "key"}, "rows 0 and 1"),
    ],
)
def test_bad_references(rows: dict[str, Any], columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        human_references(datasets.Dataset.from_dict(rows), **columns)


def test_bad_reference_sources(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent.jsonl.*Check the file"):
        human_references(tmp_path / "absent.jsonl", **COLUMNS)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"q": "1", "a": "2"}\n{"q": "1", \n')
    with pytest.raises(ValueError, match="broken.jsonl is damaged"):
        human_references(broken, **COLUMNS)
    splits = datasets.DatasetDict(test=datasets.Dataset.from_dict(ROWS))
    with pytest.raises(ValueError, match="choose one of test"):
        human_references(splits, **COLUMNS)


def test_importing_leaves_the_datasets_library_alone() -> None:
    code = "import sys, judgelib.references; sys.exit('datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], timeout=120)
    assert done.returncode == 0
