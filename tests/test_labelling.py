"""The labelling study: where its labels lie, and a run with one question a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from judgelib import labelling, labels
from judgelib.labelling import annotate, labels_path, load_split, mine
from judgelib.models import LanguageModel
from judgelib.profiles import load_profile
from judgelib.results import SCHEMAS

SPLITS = ("train", "validation", "test")
FACTS = ["sandbox-facts"]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Labels of these tests lie in a folder of their own; the models are the shipped ones."""
    monkeypatch.setenv("JUDGELIB_ROOT", str(tmp_path))
    return tmp_path


def test_labels_lie_by_source_and_split(root: Path) -> None:
    folder = root / "data" / "results" / "sandbox" / "labels"
    paths = {labels_path("sandbox", source, split) for source in labels.SOURCES for split in SPLITS}
    assert paths == {
        folder / f"{source}_{split}.parquet" for source in labels.SOURCES for split in SPLITS
    }


def test_the_annotator_is_the_oracle_else_people_else_the_target() -> None:
    profile = load_profile("sandbox")

    def who(task: str) -> str:
        return str(labelling.annotators(profile, [task])["annotator"].item()).split(":")[0]

    assert (who("sandbox-facts"), who("gsm8k")) == ("the oracle", "the target")
    folder = labelling.annotations_path("sandbox", "gsm8k", "train")
    folder.mkdir(parents=True)
    (folder / "items.jsonl").touch()
    assert who("gsm8k") == "the target"
    (folder / "ada.jsonl").touch()
    assert who("gsm8k") == "people"


@pytest.mark.parametrize(("source", "split"), [("mined", "dev"), ("oracle", "train"), ("", "")])
def test_unknown_sources_and_splits_are_refused(source: str, split: str) -> None:
    with pytest.raises(ValueError, match="source of annotated, mined and a split of train, valid"):
        labels_path("sandbox", source, split)


def test_labels_that_are_not_there_say_how_to_make_them() -> None:
    with pytest.raises(ValueError, match=r"no labels at .*mined_test.parquet; make them with"):
        load_split("sandbox", "mined", "test")


def test_the_oracle_annotates_every_split(root: Path) -> None:
    summary = annotate(load_profile("sandbox"), FACTS, {"train": 4, "test": 2})
    rows = {split: load_split("sandbox", "annotated", split) for split in ("train", "test")}
    assert not labels_path("sandbox", "annotated", "validation").exists()
    asked = {split: {row.question_id for row in found} for split, found in rows.items()}
    assert 0 < len(asked["train"]) <= 4 and 0 < len(asked["test"]) <= 2
    assert not asked["train"] & asked["test"]
    assert {row.source for found in rows.values() for row in found} == {"annotated"}
    assert_counts(summary, [*rows["train"], *rows["test"]])


def test_mined_labels_are_kept_and_not_searched_twice(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, counts = load_profile("sandbox"), {"train": 1, "validation": 1}
    summary, costs = mine(profile, FACTS, counts)
    rows = {split: load_split("sandbox", "mined", split) for split in counts}
    assert [len(found) for found in rows.values()] == [1, 1]
    assert tuple(costs.columns) == SCHEMAS["mining_costs"]
    assert costs["split"].tolist() == ["train", "validation"]
    assert costs["question"].tolist() == [found[0].question_id for found in rows.values()]
    assert_counts(summary, [row for found in rows.values() for row in found])

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was asked again")

    monkeypatch.setattr(LanguageModel, "read", refuse)
    again, costs_again = mine(profile, FACTS, counts)
    pd.testing.assert_frame_equal(again, summary)
    pd.testing.assert_frame_equal(costs_again, costs)
    journals = (root / "data" / "results" / "sandbox" / "mining").iterdir()
    names = sorted(path.name.rsplit("_", 1)[0] for path in journals)
    assert names == ["sandbox-facts_train", "sandbox-facts_validation"]


def assert_counts(summary: pd.DataFrame, rows: list[labels.Labelled]) -> None:
    """The summary is about these rows."""
    assert tuple(summary.columns) == SCHEMAS["labels_summary"]
    (line,) = summary.to_dict("records")
    said = [label for row in rows for label in row.labels]
    assert line["questions"] == len({row.question_id for row in rows})
    assert (line["tokens"], line["domain"]) == (len(said), "facts")
    assert line["acceptable"] == said.count(1) and line["unacceptable"] == said.count(0)
    mined = line["source"] == "mined"
    assert line["mismatches"] == (said.count(0) + said.count(1) if mined else 0)
    assert line["important"] == (said.count(0) if mined else 0)


# --- tables by hand ----------------------------------------------------------------------------


def test_the_share_of_unimportant_mismatches_by_hand() -> None:
    """19 of 20 lies above one half beyond doubt; 11 of 20 does not."""
    mined = pd.DataFrame({"domain": ["math", "code"], "mismatches": 20, "important": [1, 9]})
    shares = labelling.mostly_unimportant(mined)
    assert shares["unimportant"].tolist() == [19, 11]
    assert shares["share"].tolist() == pytest.approx([0.95, 0.55])
    assert shares["holds"].tolist() == [True, False]


def test_costs_of_both_ways_by_hand() -> None:
    counts = {"acceptable": [10, 20], "unacceptable": [1, 2]}
    annotated = pd.DataFrame({"questions": [40, 60], **counts})
    mined = pd.DataFrame({"questions": [4, 6], **counts})
    costs = pd.DataFrame({"trials": [3, 4], "passes": [30, 50]})
    table = labelling.cost_table(annotated, mined, costs, {"annotated": 50.2, "mined": 20.0})
    assert table["questions"].tolist() == [100, 10] and table["labels"].tolist() == [33, 33]
    assert table["seconds_a_question"].tolist() == [0.5, 2.0]
    assert table.loc["mined", "trials_a_question"] == 3.5
    assert table.loc["mined", "target_passes_a_question"] == 40.0


def test_the_answer_of_median_length_of_each_domain() -> None:
    lengths = {"math": [9, 1, 5], "code": [4, 4], "facts": [7]}
    rows = [
        labels.annotated(f"{domain}-{n}", domain, "draft", [5], [6] * n, None)
        for domain, found in lengths.items()
        for n in found
    ]
    chosen = labelling.typical(rows[::-1])
    assert [row.question_id for row in chosen] == ["facts-7", "code-4", "math-5"]
