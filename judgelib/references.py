"""Texts by humans: the references in a column of a dataset."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from judgelib.texts import Text

if TYPE_CHECKING:
    import datasets

FILE_KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def human_references(
    dataset: datasets.Dataset | str | os.PathLike[str],
    *,
    question_column: str,
    answer_column: str,
    id_column: str | None = None,
    config: str | None = None,
    split: str = "test",
    revision: str | None = None,
    clean: Callable[[Any], str] = lambda answer: answer,
) -> list[Text]:
    """One Text a row, in the dataset's order.

    `dataset` is a `datasets.Dataset`, a local .jsonl, .json or .parquet file, or a name on the hub
    (then with `split`, `config` and a pinned `revision`). Without `id_column` ids are the row
    numbers "0", "1", ...; `prompt_sha` is the SHA-256 of the question. `clean` turns a cell of
    `answer_column` into text (drop annotations, take the first of several answers).

    Raises:
        ValueError: a missing column, an answer that is no text, an id that occurs twice (naming
            the rows), or a dataset that cannot be loaded.
    """
    table = _load(dataset, config, split, revision)
    columns = {question_column, answer_column, id_column or answer_column}
    if absent := columns.difference(table.column_names):
        present = ", ".join(table.column_names)
        raise ValueError(f"No column {', '.join(sorted(absent))}: the dataset has {present}.")
    ids = [str(cell) for cell in (table[id_column] if id_column else range(len(table)))]
    _check_unique(ids)
    questions = [str(cell) for cell in table[question_column]]
    answers = [_text(clean(cell), row) for row, cell in enumerate(table[answer_column])]
    return [
        Text(name, "human", answer, hashlib.sha256(question.encode()).hexdigest(), "reference")
        for name, question, answer in zip(ids, questions, answers, strict=True)
    ]


def _load(
    source: datasets.Dataset | str | os.PathLike[str],
    config: str | None,
    split: str,
    revision: str | None,
) -> datasets.Dataset:
    import datasets  # it takes a second, which most importers of this module need not pay

    if isinstance(source, Mapping):
        raise ValueError(f"This is a dict of splits, choose one of {', '.join(map(str, source))}.")
    if not isinstance(source, str | os.PathLike):
        return source
    name, kind = str(source), FILE_KINDS.get(Path(source).suffix)
    if not kind and revision is None:
        raise ValueError(
            f"{name!r} is a name on the hub: pin it with revision= (a commit hash or tag), so that "
            "the references stay the same; or give a local .jsonl, .json or .parquet file."
        )
    try:
        if kind:
            return datasets.load_dataset(kind, data_files=name, split="train")
        return datasets.load_dataset(name, config, split=split, revision=revision)
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"{name} is damaged: {error.__cause__}") from error
    except OSError as error:  # no such file, network, dataset or revision; no permission
        raise ValueError(
            f"{name!r} could not be loaded ({error}). Check the file; or name, revision, network "
            "and, for a gated dataset, HF_TOKEN; or give a local file."
        ) from error


def _check_unique(ids: Sequence[str]) -> None:
    rows: dict[str, int] = {}
    for row, name in enumerate(ids):
        if rows.setdefault(name, row) != row:
            raise ValueError(
                f"Id {name!r} occurs in rows {rows[name]} and {row}: choose an id_column with "
                "unique values, or leave it out to number the rows."
            )


def _text(answer: object, row: int) -> str:
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(
            f"Row {row} has no text as its answer, got {answer!r}: filter such rows out, or turn "
            "them into text with clean=."
        )
    return answer
