"""Token labels: which tokens of an answer a judge should accept.

One schema for both papers, kept as Parquet. A label is 1 (acceptable), 0 (not) or -1 (ignored) and
is about `judged_ids` at its place:

* annotated (Judge Decoding 2501.19309, TokenCourt): the response's own tokens. Those before the
  error are 1, the mistaken ones 0, those after it -1.
* mined (AutoJudge 2504.20039): the draft's tokens where they differ from the target's. An
  unimportant one (1) was adopted, so it stands in the response; for an important one (0) the
  response keeps the target's token. All other places are -1.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

ACCEPTABLE, UNACCEPTABLE, IGNORED = 1, 0, -1
SOURCES = ("annotated", "mined")
_LISTS = ("prompt_ids", "response_ids", "judged_ids", "labels")


@dataclass(frozen=True)
class Labelled:
    """One answer with its labels.

    prompt_ids, response_ids: tokens; judged_ids, labels: one for each response token; error_start
    and error_stop: the mistaken tokens [start, stop) of an annotated answer, -1 and -1 if there
    are none.
    """

    question_id: str
    domain: str
    source: str
    author: str
    prompt_ids: list[int]
    response_ids: list[int]
    judged_ids: list[int]
    labels: list[int]
    error_start: int = -1
    error_stop: int = -1

    def __post_init__(self) -> None:
        problem = next(_problems(self), None)
        if problem:
            raise ValueError(f"answer to {self.question_id}: {problem}")

    @property
    def places(self) -> list[int]:
        """The response's places with a label that counts."""
        return [place for place, label in enumerate(self.labels) if label != IGNORED]


def annotated(
    question_id: str,
    domain: str,
    author: str,
    prompt_ids: Sequence[int],
    response_ids: Sequence[int],
    error: tuple[int, int] | None,
) -> Labelled:
    """Token labels of an answer whose mistaken tokens are [start, stop), None if none is.

    >>> annotated("q", "math", "draft", [7], [1, 2, 3, 4], (1, 2)).labels
    [1, 0, -1, -1]
    """
    length = len(response_ids)
    start, stop = error or (length, length)
    if not 0 <= start <= stop <= length or (error and start == stop):
        raise ValueError(
            f"answer to {question_id}: expected mistaken tokens within its {length} tokens, got "
            f"[{start}, {stop})"
        )
    labels = [ACCEPTABLE] * start + [UNACCEPTABLE] * (stop - start) + [IGNORED] * (length - stop)
    return Labelled(
        question_id, domain, "annotated", author, list(prompt_ids), list(response_ids),
        list(response_ids), labels, *(error or (-1, -1)),
    )  # fmt: skip


def _problems(row: Labelled) -> Iterator[str]:
    """What is wrong with a row, naming the column."""
    yield from _kind_problems(row)
    length = len(row.response_ids)
    for column in ("judged_ids", "labels"):
        if len(getattr(row, column)) != length:
            yield (
                f"column {column}: expected {length} values, one for each response token, got "
                f"{len(getattr(row, column))}"
            )
    if row.source not in SOURCES:
        yield f"column source: expected {' or '.join(SOURCES)}, got {row.source!r}"
    if not row.prompt_ids or not row.response_ids:
        yield "columns prompt_ids and response_ids: expected at least one token in each"
    unknown = sorted(set(row.labels) - {ACCEPTABLE, UNACCEPTABLE, IGNORED})
    if unknown:
        yield f"column labels: expected 1 (acceptable), 0 (not) or -1 (ignored), got {unknown[0]}"
    if min([*row.prompt_ids, *row.response_ids, *row.judged_ids], default=0) < 0:
        yield "columns prompt_ids, response_ids, judged_ids: expected token ids of at least 0"
    yield from _annotated_problems(row) if row.source == "annotated" else _mined_problems(row)


def _kind_problems(row: Labelled) -> Iterator[str]:
    for column in ("question_id", "domain", "author"):
        if not isinstance(getattr(row, column), str):
            yield f"column {column}: expected text, got {getattr(row, column)!r}"
    for column in _LISTS:
        values = getattr(row, column)
        if not isinstance(values, list) or not all(isinstance(value, int) for value in values):
            yield f"column {column}: expected a list of whole numbers, got {values!r:.60}"


def _annotated_problems(row: Labelled) -> Iterator[str]:
    if row.judged_ids != row.response_ids:
        yield "column judged_ids: an annotated answer's own tokens are judged"
    found = [place for place, label in enumerate(row.labels) if label == UNACCEPTABLE]
    span = (found[0], found[-1] + 1) if found else (-1, -1)
    if len(found) != span[1] - span[0]:
        yield f"column labels: expected the labels 0 side by side, got them at {found}"
    if (row.error_start, row.error_stop) != span:
        yield (
            f"columns error_start, error_stop: expected the span of the labels 0, {span}, got "
            f"{(row.error_start, row.error_stop)}"
        )
    before, after = row.labels[: max(span[0], 0)], row.labels[span[1] :] if found else []
    if UNACCEPTABLE in before or ACCEPTABLE in after:
        yield (
            "column labels: before the error a label is 1 (or -1), behind it -1; got another "
            "order (1 means acceptable)"
        )


def _mined_problems(row: Labelled) -> Iterator[str]:
    triples = zip(row.labels, row.judged_ids, row.response_ids, strict=True)
    for place, (label, judged, kept) in enumerate(triples):
        if (label == UNACCEPTABLE) == (judged == kept):
            yield (
                f"columns labels, judged_ids: at token {place} the label is {label}, but the "
                f"judged token {judged} {'was' if judged == kept else 'was not'} kept in the "
                "response; 1 (unimportant) means kept, 0 (important) replaced by the target's"
            )
            return


# --- on disk ---------------------------------------------------------------------------------


def save_labels(rows: Iterable[Labelled], path: str | Path) -> None:
    """Write a Parquet file, whole or not at all."""
    from pyarrow import parquet

    dataset = _dataset([asdict(row) for row in rows])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / path.name
        parquet.write_table(dataset.data.table, partial)  # without datasets' progress bar
        os.replace(partial, path)


def load_labels(path: str | Path) -> list[Labelled]:
    """Read and check a Parquet file of labels.

    Raises:
        ValueError: naming the row and the column that are wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no labels at {path}; make them with notebook 02, or check the path")
    names = [field.name for field in fields(Labelled)]
    records = _read(path)
    found = list(records.columns)
    if sorted(found) != sorted(names):
        raise ValueError(f"{path}: expected the columns {', '.join(names)}, got {', '.join(found)}")
    rows = []
    for number, record in enumerate(records.to_dict("records")):
        try:
            rows.append(Labelled(**{str(key): _plain(value) for key, value in record.items()}))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
    return rows


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except Exception as error:  # pyarrow's own errors say nothing of the cure
        raise ValueError(f"{path} is not a Parquet file ({error}); make it again") from error


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") and value.ndim else value


def _dataset(records: list[dict[str, Any]]) -> Any:
    from datasets import Dataset, Features, List, Value

    kinds: dict[str, Any] = {field.name: Value("string") for field in fields(Labelled)}
    kinds |= {name: List(Value("int32")) for name in _LISTS}
    kinds |= {"labels": List(Value("int8"))}
    kinds |= {name: Value("int32") for name in ("error_start", "error_stop")}
    return Dataset.from_list(records, features=Features(kinds))


# --- what they hold --------------------------------------------------------------------------


def summary(rows: Sequence[Labelled]) -> pd.DataFrame:
    """The table `labels_summary`: counts by source and domain.

    mismatches and important count the judged tokens of mined answers that are not the target's,
    and those among them that change the answer.
    """
    counted = [
        {
            "source": row.source,
            "domain": row.domain,
            "questions": row.question_id,
            "tokens": len(row.labels),
            "acceptable": row.labels.count(ACCEPTABLE),
            "unacceptable": row.labels.count(UNACCEPTABLE),
            "ignored": row.labels.count(IGNORED),
            "mismatches": len(row.places) if row.source == "mined" else 0,
            "important": row.labels.count(UNACCEPTABLE) if row.source == "mined" else 0,
        }
        for row in rows
    ]
    counts = ["tokens", "acceptable", "unacceptable", "ignored", "mismatches", "important"]
    frame = pd.DataFrame(counted, columns=["source", "domain", "questions", *counts])
    groups = frame.groupby(["source", "domain"], sort=False)
    return groups.agg({"questions": "nunique", **dict.fromkeys(counts, "sum")}).reset_index()
