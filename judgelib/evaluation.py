"""Evaluation: what a rule's answers are worth, on the prompts that the target answers alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from judgelib.decoding import Generation, Job, speculate_stream
from judgelib.drafting import Drafter
from judgelib.models import LanguageModel
from judgelib.rules import Match, Rule
from judgelib.tasks.base import Question, Task, load_task, prompt_ids


def decode(
    target: LanguageModel,
    drafter: Drafter,
    rule: Rule,
    questions: Sequence[Question],
    *,
    window: int = 16,
    max_new_tokens: int = 256,
    slots: int = 64,
) -> list[Generation]:
    """Greedy answers to questions, `slots` of them at once, in the order of the questions."""
    if slots < 1:
        raise ValueError(f"slots must be at least 1 question at a time, got {slots}")
    prompts = [prompt_ids(target.tokenizer, question) for question in questions]
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    queue = deque(order)
    at_work: dict[int, int] = {}
    found: dict[int, Generation] = {}

    def feed(ended: Mapping[int, Generation]) -> dict[int, Job]:
        found.update({at_work[slot]: text for slot, text in ended.items()})
        jobs = {}
        for slot in list(ended) or range(slots):
            if queue:
                at_work[slot] = queue.popleft()
                jobs[slot] = Job(prompts[at_work[slot]], max_new_tokens)
        return jobs

    longest = max(map(len, prompts), default=0) + max_new_tokens
    speculate_stream(target, drafter, rule, feed, longest=longest, window=window)
    return [found[number] for number in range(len(prompts))]


@dataclass(frozen=True)
class Panel:
    """Questions of several tasks, and whether the target alone answers each rightly."""

    target: LanguageModel
    drafter: Drafter
    tasks: tuple[tuple[Task, tuple[Question, ...]], ...]
    target_right: np.ndarray
    window: int

    @classmethod
    def draw(
        cls,
        target: LanguageModel,
        drafter: Drafter,
        tasks: Sequence[str],
        split: str,
        count: int,
        *,
        seed: int = 0,
        window: int = 16,
    ) -> Panel:
        """`count` questions of a split for each task, first answered strictly."""
        loaded = [load_task(name) for name in tasks]
        asked = tuple((task, tuple(task.questions(split, count, seed=seed))) for task in loaded)
        blank = cls(target, drafter, asked, np.array([]), window)
        right = blank.right(Match())
        return cls(target, drafter, asked, right, window)

    def generations(self, rule: Rule) -> list[Generation]:
        """Every question decoded with a rule, in order."""
        return [
            text
            for _, questions in self.tasks
            for text in decode(self.target, self.drafter, rule, questions, window=self.window)
        ]

    def right(self, rule: Rule) -> np.ndarray:
        """(prompts,) bool: which answers a rule gets right."""
        return self.score(self.generations(rule))

    def score(self, texts: Sequence[Generation]) -> np.ndarray:
        """(prompts,) bool: which of these answers are right."""
        words = iter(
            self.target.tokenizer.decode(text.ids, skip_special_tokens=True) for text in texts
        )
        said = [
            task.score(questions, [next(words) for _ in questions])
            for task, questions in self.tasks
        ]
        return np.concatenate([np.array(right, dtype=bool) for right in said])

    def losses(self, rule: Rule) -> np.ndarray:
        """(prompts,) 0/1: the target alone is right and the rule's answer is wrong."""
        return (self.target_right & ~self.right(rule)).astype(int)
