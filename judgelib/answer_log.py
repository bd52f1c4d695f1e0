"""Answers of rules to questions, each kept as soon as it is decoded and never decoded again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from judgelib import answering, rulebook
from judgelib.drafting import ModelDrafter
from judgelib.evaluation import COLUMNS, DRAFT, decode
from judgelib.head import JudgeHead
from judgelib.journal import JsonLines, Record
from judgelib.models import LanguageModel
from judgelib.results import sha256
from judgelib.rulebook import STRICT
from judgelib.tasks.base import Question, Task, prompt_ids

PORTION = 4
"""So many times the slots are decoded before answers are written: slots stay full, and little is
lost by a kill."""

Key = tuple[str, float, str]


class _Lines(JsonLines):
    """One answer a line."""

    expected = "an answer (rule, setting, key, counts)"

    def __init__(self, path: Path) -> None:
        self.rows: dict[Key, Record] = {}
        super().__init__(path)

    def parse(self, record: Record) -> tuple[Key, Record]:
        key = (str(record["rule"]), float(record["setting"]), str(record["key"]))
        return key, {name: record[name] for name in ("domain", *COLUMNS)}

    def take(self, entry: tuple[Key, Record]) -> None:
        self.rows[entry[0]] = entry[1]


class AnswerLog:
    """What rules answer to a task's questions, greedily.

    Args:
        path: the file of answers; it must belong to these models, heads and options.
        heads: the judges' heads by name, as `rulebook.build` takes them.
        window: tokens drafted a cycle; slots: questions decoded side by side.
    """

    def __init__(
        self,
        path: Path,
        target: LanguageModel,
        draft: LanguageModel,
        task: Task,
        heads: Mapping[str, JudgeHead],
        *,
        window: int,
        max_new_tokens: int,
        slots: int,
        progress: bool = True,
    ) -> None:
        self.path, self.target, self.draft, self.task = path, target, draft, task
        self.heads, self.window, self.slots = heads, window, slots
        self.max_new_tokens, self.progress = max_new_tokens, progress

    def answers(
        self, rule: str, setting: float, questions: Sequence[Question], *, name: str = ""
    ) -> pd.DataFrame:
        """One row a question, in their order: rule, setting, domain and `evaluation.COLUMNS`.

        rule, setting: as in `rulebook.build`, or "draft": the draft answers alone.
        """
        keys = [(rule, float(setting), _digest(question)) for question in questions]
        with _Lines(self.path) as kept:
            missing = [q for q, key in zip(questions, keys, strict=True) if key not in kept.rows]
            bar = tqdm(
                total=len(questions), initial=len(questions) - len(missing), unit="question",
                desc=name or f"{rule} {setting:g}", disable=None if self.progress else True,
            )  # fmt: skip
            with bar:
                for portion in _portions(missing, PORTION * self.slots):
                    for row in self._decoded(rule, setting, portion):
                        kept.write(row, sync=False)
                    bar.update(len(portion))
            rows = [kept.rows[key] for key in keys]
        return pd.DataFrame(rows).assign(rule=rule, setting=float(setting))

    def losses(self, rule: str, setting: float, questions: Sequence[Question]) -> np.ndarray:
        """(questions,) 0/1: strict verification is right and the rule is wrong."""
        strict = self.answers(STRICT, 0.0, questions)["correct"].to_numpy(bool)
        right = self.answers(rule, setting, questions)["correct"].to_numpy(bool)
        return (strict & ~right).astype(int)

    def _decoded(self, rule: str, setting: float, questions: Sequence[Question]) -> list[Record]:
        counts = self._alone(questions) if rule == DRAFT else self._judged(rule, setting, questions)
        right = self.task.score(questions, counts.pop("text"))
        return [
            {"rule": rule, "setting": float(setting), "key": _digest(question),
             "domain": question.domain, "question": question.id, "correct": int(right[number]),
             **{name: values[number] for name, values in counts.items()}}
            for number, question in enumerate(questions)
        ]  # fmt: skip

    def _judged(
        self, rule: str, setting: float, questions: Sequence[Question]
    ) -> dict[str, list[Any]]:
        texts = decode(
            self.target, ModelDrafter(self.draft), rulebook.build(rule, setting, self.heads),
            questions, window=self.window, max_new_tokens=self.max_new_tokens, slots=self.slots,
        )  # fmt: skip
        return {
            "text": [self._text(text.ids) for text in texts],
            "tokens": [len(text.ids) for text in texts],
            "cycles": [len(text.cycles) for text in texts],
            "drafted": [text.drafted for text in texts],
            "accepted": [text.accepted for text in texts],
            "mismatches_accepted": [text.mismatches for text in texts],
        }

    def _alone(self, questions: Sequence[Question]) -> dict[str, list[Any]]:
        """The draft's own answers, to the target's prompts; it drafts for nobody."""
        prompts = [prompt_ids(self.target.tokenizer, question) for question in questions]
        rows = answering.generate(self.draft, prompts, self.max_new_tokens)
        ids = [_until(row, self.draft.eos_ids) for row in rows]
        lengths, none = [len(row) for row in ids], [0] * len(ids)
        return {
            "text": [self._text(row) for row in ids], "tokens": lengths, "cycles": lengths,
            "drafted": none, "accepted": none, "mismatches_accepted": none,
        }  # fmt: skip

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.target.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Up to the first end token, which counts."""
    stop = next((place for place, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: stop + 1]


def _digest(question: Question) -> str:
    """The same for the same question only, whatever its id."""
    return sha256(repr((question.id, question.messages, question.reference)).encode())[:16]


def _portions(questions: Sequence[Question], size: int) -> list[Sequence[Question]]:
    return [questions[start : start + size] for start in range(0, len(questions), size)]
