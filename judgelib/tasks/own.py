"""Tasks of one's own: any object that is a task, or a file of questions with their answers.

* ``my_tasks:CAPITALS``: an attribute of a module that can be imported, a `Task` or something that
  makes one when called without arguments.
* ``capitals.jsonl``: one JSON object a line with `question` (what the model is asked, word for
  word) and `answer` (the final answer alone, such as "42" or "Paris"); optional `id`, `reference`
  (a right answer written out) and `split`. Ask in the question for an answer that can be found:
  'End with the sentence "The final answer is [answer]".'
"""

from __future__ import annotations

import importlib
import inspect
import json
import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judgelib.results import sha256
from judgelib.tasks.base import Question, Task
from judgelib.tasks.hub import SPLITS
from judgelib.tasks.numbers import final_number, stated_answer, whole_number

FIELDS = ("question", "answer", "id", "reference", "split")
_MEMBERS = ("name", "domain", "questions", "answers", "score")
_SHARES = ("train", "train", "train", "validation", "test")


def is_own(name: str) -> bool:
    """Whether a task is named by its place and not by its name."""
    return name.endswith(".jsonl") or ":" in name


def own_task(name: str) -> Task:
    """The task at "module:attribute" or in a .jsonl file.

    Raises:
        ValueError: no such module, attribute or file, or something there that is no task.
    """
    return QuestionFile(name) if name.endswith(".jsonl") else _attribute(name)


def _attribute(name: str) -> Task:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"expected a task at {name!r}, but it cannot be imported ({error}); name an attribute "
            "of a module that Python finds from here, such as my_tasks:CAPITALS"
        ) from error
    made: Any = found() if inspect.isroutine(found) or inspect.isclass(found) else found
    missing = [member for member in _MEMBERS if not hasattr(made, member)]
    if missing:
        raise ValueError(
            f"{name} must be a task (see judgelib.tasks.Task), but {type(made).__name__} has no "
            f"{', '.join(missing)}"
        )
    task: Task = made
    return task


@dataclass(frozen=True)
class QuestionFile:
    """The questions of a .jsonl file.

    Where every answer is a number, the number stated last in a text is its answer, as an exact
    fraction (`tasks.numbers`). Otherwise it is what follows the last "answer is" or "####", else
    the last line, without regard to case, spaces and closing marks.

    Where rows have no `split`, a hash of the question sends three in five to train, one to
    validation and one to test, on every machine the same.

    Raises:
        ValueError: no such file, or a line that is damaged, which is named.
    """

    path: str

    def __post_init__(self) -> None:
        self._rows()

    @property
    def name(self) -> str:
        return Path(self.path).stem

    @property
    def domain(self) -> str:
        return self.name

    def questions(self, split: str, count: int, *, seed: int = 0) -> list[Question]:
        """`count` different questions of a split, in an order drawn by `seed`.

        Raises:
            ValueError: an unknown split, or fewer questions than that.
        """
        if split not in SPLITS:
            raise ValueError(f"expected a split of {', '.join(SPLITS)}, got {split!r}")
        rows = [row for row in self._rows() if row["split"] == split]
        random.Random(f"{self.name}:{split}:{seed}").shuffle(rows)
        if len(rows) < count:
            raise ValueError(
                f"{self.path} has {len(rows)} {split} questions, asked for {count}; add questions, "
                "or ask for fewer"
            )
        return [self._question(row) for row in rows[:count]]

    def answers(self, questions: Sequence[Question], texts: Sequence[str]) -> list[Hashable]:
        """The final answer of each text; None is no answer."""
        return [_answer(*pair) for pair in zip(questions, texts, strict=True)]

    def score(self, questions: Sequence[Question], texts: Sequence[str]) -> list[bool]:
        found = self.answers(questions, texts)
        pairs = zip(questions, found, strict=True)
        return [answer is not None and answer == question.record for question, answer in pairs]

    def _question(self, row: Mapping[str, Any]) -> Question:
        messages = ({"role": "user", "content": row["question"]},)
        return Question(row["id"], self.domain, messages, row["reference"], row["gold"])

    def _rows(self) -> list[dict[str, Any]]:
        rows = _read(Path(self.path))
        golds = [whole_number(row["answer"]) for row in rows]
        numeric = all(gold is not None for gold in golds)
        for row, gold in zip(rows, golds, strict=True):
            row["gold"] = gold if numeric else _bare(row["answer"])
        return rows


def _answer(question: Question, text: str) -> Hashable:
    if not isinstance(question.record, str):
        return final_number(text)
    lines = [line for line in text.splitlines() if line.strip()]
    said = stated_answer(text) or (lines[-1] if lines else "")
    return _bare(said) or None


def _bare(text: str) -> str:
    return " ".join(text.split()).strip(" .*_\"'`$()[]").casefold()


def _read(path: Path) -> list[dict[str, Any]]:
    """Every row, whole: all fields there."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"expected a .jsonl file of questions at {path}: {error}") from error
    rows: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = _row(line, f"{path}, line {number}")
            for key in (row["question"], row["id"]):
                if seen.setdefault(key, number) != number:
                    raise ValueError(
                        f"{path}, line {number} asks or names the question of line {seen[key]} "
                        "again: keep one of them, or a question may be in two splits"
                    )
            rows.append(row)
    if len({row.get("split") is None for row in rows}) != 1:
        raise ValueError(f"{path}: expected questions, and either all of them or none with a split")
    return [{**row, "split": row["split"] or _share(row["question"])} for row in rows]


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
    if not isinstance(row, dict) or not set(row) <= set(FIELDS):
        raise ValueError(f"{where}: expected an object with the fields {', '.join(FIELDS)}")
    for field in ("question", "answer"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise ValueError(f"{where}: expected text in {field}, got {row.get(field)!r:.60}")
    if row.get("split") not in (None, *SPLITS):
        raise ValueError(f"{where}: expected a split of {', '.join(SPLITS)}, got {row['split']!r}")
    named = str(row.get("id") or sha256(row["question"].encode())[:12])
    reference = str(row.get("reference") or row["answer"])
    return {**row, "id": named, "reference": reference, "split": row.get("split")}


def _share(question: str) -> str:
    return _SHARES[int(sha256(question.encode())[:8], 16) % len(_SHARES)]
