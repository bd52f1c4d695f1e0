"""Toy tasks about the numbers of `tiny`'s words, for whatever needs questions and answers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import tiny

from judgelib.models import LanguageModel
from judgelib.tasks.base import Question

TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"


def questions(prompts: Sequence[Sequence[int]], domain: str = "toy") -> list[Question]:
    """Questions that become exactly these prompts."""
    words = [" ".join(f"w{token}" for token in prompt) for prompt in prompts]
    return [
        Question(f"{domain}-{number}", domain, ({"role": "user", "content": text},), text, None)
        for number, text in enumerate(words)
    ]


def pair(seed: int = 3, spread: float = 0.05, **shape: int) -> tuple[LanguageModel, LanguageModel]:
    """A random target that ends some of its texts, and a draft that often disagrees."""
    target = with_template(tiny.language_model(seed=seed, **shape))
    return target, tiny.disturbed(target, spread)


def with_template(model: LanguageModel) -> LanguageModel:
    model.tokenizer.chat_template = TEMPLATE
    return model


def counting(said_after: Mapping[int, int]) -> LanguageModel:
    """The model that counts, but for what it says after some tokens."""
    model = with_template(tiny.counting())
    for token, said in said_after.items():
        model.model.lm_head.weight.data[:, token] = 0.0
        model.model.lm_head.weight.data[said, token] = 1.0
    return model


def numbers(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


class Toy:
    """The answer is the text itself; without one it is wrong."""

    name, domain = "toy", "toy"

    def __init__(self, *asked: Question) -> None:
        self.asked = list(asked)
        self.calls: list[tuple[str, int, int]] = []

    def questions(self, split: str, count: int, *, seed: int = 0) -> list[Question]:
        self.calls.append((split, count, seed))
        return self.asked[:count]

    def answer(self, text: str) -> Hashable:
        return text

    def answers(self, questions: Sequence[Question], texts: Sequence[str]) -> list[Hashable]:
        return [self.answer(text) for text in texts]

    def score(self, questions: Sequence[Question], texts: Sequence[str]) -> list[bool]:
        return [bool(self.answer(text)) for text in texts]


class Remainder(Toy):
    """The sum of all numbers modulo 3, so that every change matters two times in three."""

    def answer(self, text: str) -> Hashable:
        return sum(numbers(text)) % 3


class Has(Toy):
    """Whether a number is in the text."""

    def __init__(self, number: int, *asked: Question) -> None:
        super().__init__(*asked)
        self.number = number

    def answer(self, text: str) -> Hashable:
        return self.number in numbers(text)


class HasNot(Has):
    """Whether a number is not in the text."""

    def answer(self, text: str) -> Hashable:
        return self.number not in numbers(text)


class First(Toy):
    """The first multiple of 7, modulo 4; None if there is none."""

    def answer(self, text: str) -> Hashable:
        return next((number % 4 for number in numbers(text) if number % 7 == 0), None)


class Settled(First):
    """The same, and it says when that one has been written."""

    def settled(self, question: Question, text: str) -> bool:
        return self.answer(text) is not None


class Careful(Has):
    """A task that knows where an answer goes wrong: at the number that must not be there."""

    def answer(self, text: str) -> Hashable:
        return self.number not in numbers(text)

    def first_error(self, question: Question, ids: Sequence[int], tokenizer: Any) -> int | None:
        return list(ids).index(self.number) if self.number in ids else None
