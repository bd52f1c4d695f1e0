"""Tasks of one's own: a module's attribute, or a file of questions."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from judgelib.tasks import Task, load_task
from judgelib.tasks.own import QuestionFile

MODULE = """
from judgelib.tasks.sandbox import SandboxTask
MADE = SandboxTask("facts")
def make():
    return SandboxTask("code")
class Kind(SandboxTask):
    def __init__(self):
        super().__init__("math")
NUMBER = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "tasks_of_my_own.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "tasks_of_my_own"


def test_a_task_is_found_in_a_module_and_made_if_need_be(module: str) -> None:
    found = {name: load_task(f"{module}:{name}").domain for name in ("MADE", "make", "Kind")}
    assert found == {"MADE": "facts", "make": "code", "Kind": "math"}


def test_what_is_no_task_is_refused(module: str) -> None:
    with pytest.raises(ValueError, match="NUMBER must be a task .* int has no name, domain"):
        load_task(f"{module}:NUMBER")
    for name in (f"{module}:NOTHING", "no_such_module:TASK", ":TASK"):
        with pytest.raises(ValueError, match="cannot be imported"):
            load_task(name)
    with pytest.raises(ValueError, match="takes no source"):
        load_task(f"{module}:MADE", source="here")


# --- files ---------------------------------------------------------------------------------------


def written(folder: Path, rows: list[Any]) -> str:
    path = folder / "capitals.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def asked(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"question": f"What is {n} + 1?", "answer": str(n + 1), **more} for n in range(count)]


def test_a_file_s_questions_go_to_three_splits_by_their_text(tmp_path: Path) -> None:
    task: Task = load_task(written(tmp_path, asked(200)))
    sizes = {split: size(task, split) for split in ("train", "validation", "test")}
    texts = {
        question.messages[0]["content"]
        for split, count in sizes.items()
        for question in task.questions(split, count)
    }
    assert sum(sizes.values()) == 200
    assert len(texts) == 200 and sizes["train"] > sizes["validation"] + 20 > sizes["test"]
    shuffled = load_task(written(tmp_path, asked(200)[::-1]))
    assert {q.id for q in shuffled.questions("test", sizes["test"])} == {
        q.id for q in task.questions("test", sizes["test"])
    }


def size(task: Task, split: str) -> int:
    """As the refusal of too many says it."""
    with pytest.raises(ValueError, match=r"has \d+ .* questions, asked for 300") as caught:
        task.questions(split, 300)
    return int(str(caught.value).split(" has ")[1].split()[0])


def test_questions_are_stable_and_a_larger_count_begins_alike(tmp_path: Path) -> None:
    task = load_task(written(tmp_path, asked(60, split="train")))
    few, many = task.questions("train", 5), task.questions("train", 40)
    assert many[:5] == few and task.questions("train", 5, seed=1) != few
    assert (task.name, task.domain, few[0].domain) == ("capitals", "capitals", "capitals")
    with pytest.raises(ValueError, match="has 0 test questions, asked for 1"):
        task.questions("test", 1)
    with pytest.raises(ValueError, match="expected a split of train, validation, test"):
        task.questions("dev", 1)


def test_numbers_are_compared_as_numbers(tmp_path: Path) -> None:
    rows = [{"question": "How much?", "answer": "1,200", "split": "test", "id": "q"}]
    task = QuestionFile(written(tmp_path, rows))
    (question,) = task.questions("test", 1)
    assert (question.id, question.record, question.reference) == ("q", Fraction(1200), "1,200")
    texts = ["It is 1200.0, so\nThe final answer is 1200.", "The final answer is 12", "no idea"]
    assert task.score([question] * 3, texts) == [True, False, False]
    assert task.answers([question] * 3, texts) == [1200, 12, None]


def test_words_are_compared_without_case_and_marks(tmp_path: Path) -> None:
    rows = [
        {"question": "Where?", "answer": "New York", "split": "test"},
        {"question": "When?", "answer": "12", "split": "train"},
    ]
    task = QuestionFile(written(tmp_path, rows))
    (question,) = task.questions("test", 1)
    texts = ["The answer is **new  york**.", "I think of\nNew York", "It is York", ""]
    assert task.score([question] * 4, texts) == [True, True, False, False]
    assert task.answers([question] * 4, texts)[3] is None
    (number,) = task.questions("train", 1)
    assert task.score([number], ["The answer is 12."]) == [True]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "expected questions"),
        (["{"], "line 1 is no JSON"),
        (["[]"], "line 1: expected an object with the fields question, answer, id"),
        ([{"question": "a", "answer": "b", "gold": "b"}], "line 1: expected an object with"),
        ([{"question": "a"}], "line 1: expected text in answer, got None"),
        ([{"question": " ", "answer": "b"}], "line 1: expected text in question"),
        ([{"question": "a", "answer": 3}], "expected text in answer, got 3"),
        ([{"question": "a", "answer": "b", "split": "dev"}], "expected a split of train"),
        ([*asked(2), asked(1)[0]], "line 3 asks or names the question of line 1 again"),
        ([*asked(1, id="q"), {**asked(2)[1], "id": "q"}], "line 2 asks or names"),
        ([*asked(1), {**asked(2)[1], "split": "test"}], "either all of them or none with a split"),
    ],
)
def test_a_damaged_file_is_refused_at_once(tmp_path: Path, rows: list[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_task(written(tmp_path, rows))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a .jsonl file of questions at .*gone.jsonl"):
        load_task(str(tmp_path / "gone.jsonl"))
