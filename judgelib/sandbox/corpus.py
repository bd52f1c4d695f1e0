"""Training text: problems answered in a voice, now and then with a mistake taken back."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from judgelib.sandbox import code, facts
from judgelib.sandbox.grammar import write
from judgelib.sandbox.problem import Domain, Problem
from judgelib.sandbox.voices import Voice
from judgelib.sandbox.world import draw


def answer(problem: Problem, voice: Voice, rng: random.Random, *, corrections: float = 0.0) -> str:
    """A right answer; each part is, with the given chance, first written wrong and taken back."""
    parts = []
    for index, part in enumerate(problem.solution):
        if index < len(problem.slips) and rng.random() < corrections:
            parts.append(write(problem.slips[index](rng), voice, rng))
            parts.append(write(problem.apologies, voice, rng))
        parts.append(write(part, voice, rng))
    return "".join(parts)


@dataclass(frozen=True)
class Text:
    """Who writes, with which share of slips, and about what part of the world.

    Questions on the towns and skills that this author never read about are left out of the
    corpus, so that a small model also knows less.
    """

    voice: Voice
    corrections: float = 0.0
    unread_towns: float = 0.0
    unread_skills: float = 0.0

    def example(self, domain: Domain, rng: random.Random) -> tuple[str, str]:
        """(prompt, answer) of one random training problem."""
        problem = draw(domain, "train", rng)
        while self._unread(problem):
            problem = draw(domain, "train", rng)
        return problem.prompt, answer(problem, self.voice, rng, corrections=self.corrections)

    def _unread(self, problem: Problem) -> bool:
        if problem.domain == "facts":
            towns = facts.TOWNS[:: round(1 / self.unread_towns)] if self.unread_towns else ()
            return any(f"{town}|" in problem.key for town in towns)
        if problem.domain == "code":
            skills = code.NAMES[:: round(1 / self.unread_skills)] if self.unread_skills else ()
            return any(name in _WORDS.findall(problem.key) for name in skills)
        return False


_WORDS = re.compile(r"[a-z]+")


def batch(
    tokenizer: object, text: Text, domain: Domain, size: int, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """(ids, is_answer), each (size, T), padded on the right to a multiple of 16.

    Only the answer and its end token are learned; the prompt is read.
    """
    pairs = [text.example(domain, rng) for _ in range(size)]
    return pad([encode(tokenizer, prompt, reply) for prompt, reply in pairs])


def encode(tokenizer: object, prompt: str, reply: str) -> tuple[list[int], int]:
    """(ids of prompt and answer with its end token, length of the prompt part)."""
    head = tokenizer.apply_chat_template(  # type: ignore[attr-defined]
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )
    tail = tokenizer(reply, add_special_tokens=False).input_ids  # type: ignore[operator]
    return [*head, *tail, tokenizer.eos_token_id], len(head)  # type: ignore[attr-defined]


def pad(rows: Sequence[tuple[list[int], int]], multiple: int = 16) -> tuple[Tensor, Tensor]:
    longest = max(len(ids) for ids, _ in rows)
    width = -(-longest // multiple) * multiple
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    is_answer = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (tokens, prompt) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        is_answer[row, prompt : len(tokens)] = True
    return ids, is_answer
