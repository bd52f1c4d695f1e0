"""The sandbox's three domains as tasks: math, code and facts."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from judgelib.sandbox import oracle
from judgelib.sandbox.corpus import answer
from judgelib.sandbox.problem import DOMAINS, SPLITS, Domain, Problem, Split
from judgelib.sandbox.voices import HUMAN
from judgelib.sandbox.world import problems
from judgelib.tasks.base import Question, Task


@dataclass(frozen=True)
class SandboxTask:
    """Problems of one domain; the reference is written by the human voice."""

    domain: Domain

    @property
    def name(self) -> str:
        return f"sandbox-{self.domain}"

    def questions(self, split: str, count: int, *, seed: int = 0) -> list[Question]:
        chosen = _split(split)
        return [as_question(p) for p in problems(self.domain, chosen, count, seed=seed)]

    def answers(self, questions: Sequence[Question], texts: Sequence[str]) -> list[Hashable]:
        """The closing answer; for code the outcome of the tests, so that all that fail agree."""
        if self.domain != "code":
            return [oracle.final_answer(text) for text in texts]
        return list(self.score(questions, texts))

    def score(self, questions: Sequence[Question], texts: Sequence[str]) -> list[bool]:
        return oracle.score([q.record for q in questions], texts)

    def first_error(self, question: Question, ids: Sequence[int], tokenizer: Any) -> int | None:
        return oracle.first_wrong_token(question.record, ids, tokenizer)


def as_question(problem: Problem) -> Question:
    """A sandbox problem as every task's question."""
    return Question(
        id=problem.id,
        domain=problem.domain,
        messages=({"role": "user", "content": problem.prompt},),
        reference=answer(problem, HUMAN, random.Random(problem.id)),
        record=problem,
    )


def _split(name: str) -> Split:
    for split in SPLITS:
        if split == name:
            return split
    raise ValueError(f"expected a split of {', '.join(SPLITS)}, got {name!r}")


SANDBOX_TASKS: dict[str, Task] = {
    task.name: task for task in (SandboxTask(domain) for domain in DOMAINS)
}
