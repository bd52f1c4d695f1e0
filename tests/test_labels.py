"""Token labels: what is refused and how it is named, the file, and the counts."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from judgelib.labels import Labelled, annotated, load_labels, save_labels, summary
from judgelib.results import SCHEMAS

PROMPT = [7, 8]
RESPONSE = [11, 12, 13, 14, 15]
WRONG = annotated("q1", "math", "draft", PROMPT, RESPONSE, (2, 4))
RIGHT = annotated("q2", "code", "expert", PROMPT, RESPONSE[:3], None)
# The draft would have said 30 at place 1 (important: the response keeps 12); its 14 was adopted.
MINED = Labelled(
    "q3", "math", "mined", "small", PROMPT, RESPONSE, [11, 30, 13, 14, 15], [-1, 0, -1, 1, -1]
)


def refused(row: Labelled, **changes: Any) -> str:
    """What the error says of the row with these changes."""
    with pytest.raises(ValueError) as error:
        replace(row, **changes)
    return str(error.value)


# --- labels of annotated answers -------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "labels"),
    [
        ((0, 1), [0, -1, -1, -1, -1]),
        ((2, 4), [1, 1, 0, 0, -1]),
        ((4, 5), [1, 1, 1, 1, 0]),
        ((0, 5), [0, 0, 0, 0, 0]),
        (None, [1, 1, 1, 1, 1]),
    ],
)
def test_labels_follow_from_the_mistaken_tokens(
    error: tuple[int, int] | None, labels: list[int]
) -> None:
    row = annotated("q", "math", "draft", PROMPT, RESPONSE, error)
    assert row.labels == labels
    assert (row.error_start, row.error_stop) == (error or (-1, -1))
    assert row.judged_ids == row.response_ids == RESPONSE
    assert row.places == [place for place, label in enumerate(labels) if label >= 0]


@pytest.mark.parametrize("error", [(2, 2), (3, 2), (-1, 2), (2, 6), (5, 6)])
def test_mistaken_tokens_lie_within_the_answer(error: tuple[int, int]) -> None:
    with pytest.raises(ValueError) as caught:
        annotated("q7", "math", "draft", PROMPT, RESPONSE, error)
    expected = f"answer to q7: expected mistaken tokens within its 5 tokens, got [{error[0]}, "
    assert expected in str(caught.value)


# --- what is refused -------------------------------------------------------------------------


def test_good_rows_are_not_refused() -> None:
    assert replace(WRONG, labels=[1, -1, 0, 0, -1]).places == [0, 2, 3]  # some left out before it
    assert MINED.places == [1, 3]


@pytest.mark.parametrize(
    ("row", "changes", "column", "words"),
    [
        (WRONG, {"labels": [1, 1, 0, 0]}, "labels", "expected 5 values, one for each response"),
        (WRONG, {"judged_ids": RESPONSE[:4]}, "judged_ids", "expected 5 values"),
        (WRONG, {"response_ids": RESPONSE[:4]}, "judged_ids", "expected 4 values"),
        (WRONG, {"source": "guessed"}, "source", "expected annotated or mined, got 'guessed'"),
        (WRONG, {"prompt_ids": []}, "prompt_ids", "at least one token"),
        (WRONG, {"labels": [1, 2, 0, 0, -1]}, "labels", "1 (acceptable), 0 (not) or -1"),
        (WRONG, {"prompt_ids": [7, -8]}, "prompt_ids", "token ids of at least 0"),
        (WRONG, {"judged_ids": [11, 12, 13, 30, 15]}, "judged_ids", "own tokens are judged"),
        (WRONG, {"error_start": -1, "error_stop": -1}, "error_start", "(2, 4), got (-1, -1)"),
        (WRONG, {"error_stop": 5}, "error_stop", "expected the span of the labels 0, (2, 4)"),
        (RIGHT, {"error_start": 0, "error_stop": 1}, "error_start", "(-1, -1), got (0, 1)"),
        (WRONG, {"labels": [1, 0, 1, 0, -1], "error_start": 1}, "labels", "got them at [1, 3]"),
        (WRONG, {"labels": [1, 1, 0, 0, 1]}, "labels", "behind it -1"),
        (MINED, {"labels": [-1, 1, -1, 1, -1]}, "judged_ids", "at token 1 the label is 1, but"),
        (MINED, {"labels": [-1, -1, -1, 1, -1]}, "judged_ids", "30 was not kept"),
        (MINED, {"labels": [-1, 0, -1, 0, -1]}, "judged_ids", "14 was kept"),
        (MINED, {"domain": None}, "domain", "expected text, got None"),
        (MINED, {"question_id": 3}, "question_id", "expected text, got 3"),
        (MINED, {"author": float("nan")}, "author", "expected text, got nan"),
        (MINED, {"response_ids": None}, "response_ids", "a list of whole numbers, got None"),
        (MINED, {"labels": [-1, 0, -1, 0.9, -1]}, "labels", "a list of whole numbers"),
    ],
)
def test_a_wrong_row_is_refused_naming_its_column(
    row: Labelled, changes: dict[str, Any], column: str, words: str
) -> None:
    message = refused(row, **changes)
    assert message.startswith(f"answer to {changes.get('question_id', row.question_id)}: column")
    assert column in message.split(":")[1] and words in message


def test_labels_of_the_other_polarity_are_refused() -> None:
    """1 and 0 swapped, with and without the span that would belong to them."""
    flipped = [{1: 0, 0: 1}.get(label, label) for label in WRONG.labels]
    assert flipped == [0, 0, 1, 1, -1]
    assert "error_start" in refused(WRONG, labels=flipped)
    assert "1 means acceptable" in refused(WRONG, labels=flipped, error_start=0, error_stop=2)
    assert "error_start" in refused(RIGHT, labels=[0, 0, 0])
    mined = [{1: 0, 0: 1}.get(label, label) for label in MINED.labels]
    assert "1 (unimportant) means kept" in refused(MINED, labels=mined)


# --- the file --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "new" / "labels.parquet"
    save_labels([WRONG, RIGHT, MINED], path)
    return path


def test_rows_come_back_as_they_were(saved: Path) -> None:
    rows = load_labels(saved)
    assert rows == [WRONG, RIGHT, MINED]
    assert all(type(token) is int for row in rows for token in [*row.labels, *row.judged_ids])
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]  # nothing half-done


def test_datasets_reads_the_same_file(saved: Path, tmp_path: Path) -> None:
    """As anybody would who does not know this package; with the narrow types kept."""
    from datasets import load_dataset

    read = load_dataset(
        "parquet", data_files=str(saved), cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert read.to_list() == [asdict(row) for row in (WRONG, RIGHT, MINED)]
    kinds = {name: getattr(kind, "feature", kind).dtype for name, kind in read.features.items()}
    assert list(kinds) == [field.name for field in fields(Labelled)]
    assert (kinds["labels"], kinds["judged_ids"], kinds["error_stop"]) == ("int8", "int32", "int32")


def test_a_failed_write_leaves_the_file_as_it_was(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow import parquet

    def half(_: object, path: Path) -> None:
        Path(path).write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(parquet, "write_table", half)
    with pytest.raises(OSError, match="No space left on device"):
        save_labels([RIGHT], saved)
    assert saved.read_bytes() == before
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]


def frame() -> pd.DataFrame:
    return pd.DataFrame([asdict(row) for row in (WRONG, RIGHT, MINED)])


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("labels", [0, 0, 0]),
        ("labels", [1, 1, 2]),
        ("judged_ids", [11, 12]),
        ("judged_ids", None),
        ("prompt_ids", []),
        ("source", "guessed"),
        ("source", None),
        ("domain", None),
        ("question_id", None),
        ("author", None),
        ("error_start", 1),
    ],
)
def test_a_damaged_file_names_row_and_column(tmp_path: Path, column: str, value: Any) -> None:
    table, path = frame().astype(object), tmp_path / "labels.parquet"
    table.at[1, column] = value
    table.to_parquet(path)
    with pytest.raises(ValueError) as error:
        load_labels(path)
    assert str(error.value).startswith(f"{path}, row 1: answer to ")
    assert column in str(error.value)


def test_fractions_are_no_labels(tmp_path: Path) -> None:
    """They are not rounded: half acceptable would become 0."""
    table, path = frame(), tmp_path / "labels.parquet"
    table["labels"] = [[label / 2 for label in labels] for labels in table["labels"]]
    table.to_parquet(path)
    with pytest.raises(ValueError, match="row 0: .*column labels: .*whole numbers, got .0.5"):
        load_labels(path)


def test_missing_and_unknown_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    for table in (frame().drop(columns="labels"), frame().assign(comment="!")):
        table.to_parquet(path)
        with pytest.raises(ValueError, match="expected the columns question_id, domain, .* got"):
            load_labels(path)


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no labels at .*absent.parquet; make them with notebook"):
        load_labels(tmp_path / "absent.parquet")
    path = tmp_path / "labels.parquet"
    path.write_text("question_id,labels\n")
    with pytest.raises(ValueError, match="labels.parquet is not a Parquet file"):
        load_labels(path)


# --- counts ----------------------------------------------------------------------------------


def test_summary_counts_by_hand() -> None:
    again = replace(WRONG, author="expert")  # one question, answered by two
    found = summary([WRONG, RIGHT, MINED, again, replace(MINED, question_id="q4")])
    assert tuple(found.columns) == SCHEMAS["labels_summary"]
    assert found.to_numpy().tolist() == [
        ["annotated", "math", 1, 10, 4, 4, 2, 0, 0],
        ["annotated", "code", 1, 3, 3, 0, 0, 0, 0],
        ["mined", "math", 2, 10, 2, 2, 6, 4, 2],
    ]


def test_no_rows_are_summed_up_and_drawn() -> None:
    """A profile may have no answer of the kind that a notebook shows."""
    from judgelib.label_figures import page_figure

    assert summary([]).empty and "important" in summary([]).columns
    assert "no answer" in page_figure([], [], None).axes[0].texts[0].get_text()
