"""Training text: problems answered in a voice, now and then with a mistake taken back.

A mistake is noticed late, when the sentence is written, or *at once*: the author stops behind the
first wrong token, says so and begins the part again.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from judgelib.sandbox import code, facts
from judgelib.sandbox.grammar import Node, departure, write
from judgelib.sandbox.problem import Domain, Problem
from judgelib.sandbox.voices import Voice
from judgelib.sandbox.world import draw


def answer(problem: Problem, voice: Voice, rng: random.Random, *, corrections: float = 0.0) -> str:
    """A right answer; each part is, with the given chance, first written wrong and taken back."""
    return "".join(_parts(problem, voice, rng, corrections))


def _parts(problem: Problem, voice: Voice, rng: random.Random, corrections: float) -> Iterator[str]:
    for index, part in enumerate(problem.solution):
        if index < len(problem.slips) and rng.random() < corrections:
            yield _slip(problem, index, voice, rng)
            yield write(problem.apologies, voice, rng)
        yield write(part, voice, rng)


def _slip(problem: Problem, index: int, voice: Voice, rng: random.Random) -> str:
    """Part `index` with a mistake in it; some slips are right by luck, and drawn again."""
    while True:
        wrong = write(problem.slips[index](rng), voice, rng)
        if departure([problem.solution[index]], wrong) is not None:
            return wrong


@dataclass(frozen=True)
class Text:
    """Who writes, with which share of slips, and about what part of the world.

    Questions on the towns and skills that this author never read about are left out of the
    corpus, so that a small model also knows less. `corrections` is the share of parts that are
    first written wrong and taken back when they are complete, `interruptions` how often in an
    answer its author stops behind a wrong token.
    """

    voice: Voice
    corrections: float = 0.0
    interruptions: float = 0.0
    unread_towns: float = 0.0
    unread_skills: float = 0.0

    def example(self, domain: Domain, rng: random.Random) -> tuple[str, str]:
        """(prompt, answer) of one random training problem, without interruptions."""
        problem = self.problem(domain, rng)
        return problem.prompt, answer(problem, self.voice, rng, corrections=self.corrections)

    def problem(self, domain: Domain, rng: random.Random) -> Problem:
        """A random training problem that this author has read about."""
        problem = draw(domain, "train", rng)
        while self._unread(problem):
            problem = draw(domain, "train", rng)
        return problem

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
    tokenizer: Any, text: Text, domain: Domain, size: int, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """(ids, is_learned), each (size, T), padded on the right to a multiple of 16.

    Only the answer and its end token are learned; the prompt is read.
    """
    problems = (text.problem(domain, rng) for _ in range(size))
    return pad([training_row(tokenizer, text, problem, rng) for problem in problems])


class Reply(NamedTuple):
    """The tokens of one answer, its end token not among them, and the places of wrong ones.

    Wrong tokens that are taken back at once are read but not learned: the author learns to notice
    mistakes, not to make them.
    """

    ids: list[int]
    wrong: list[int]


def reply_ids(tokenizer: Any, text: Text, problem: Problem, rng: random.Random) -> Reply:
    """One answer. What its author interrupts ends with a token, not with a word, so the text is
    tokenized in pieces: `done` holds the tokens up to the last interruption, `open_text` what came
    after it."""
    done: list[int] = []
    wrong_places: list[int] = []
    open_text = ""
    for index, part in enumerate(problem.solution):
        if text.interruptions and rng.random() < text.interruptions / len(problem.solution):
            wrong = _mistake(tokenizer, text, problem, index, rng)
            cut = _until_wrong(tokenizer, open_text, wrong, part)
            if cut:
                done += cut
                wrong_places.append(len(done) - 1)
                open_text = _apology(problem, text.voice, rng)
        rest = replace(problem, solution=(part,), slips=problem.slips[index : index + 1])
        open_text += answer(rest, text.voice, rng, corrections=text.corrections)
    return Reply(done + _tokens(tokenizer, open_text), wrong_places)


def _mistake(tokenizer: Any, text: Text, problem: Problem, index: int, rng: random.Random) -> str:
    """What an author might write in place of part `index`: a slip of the problem's own, a part of
    another problem, or a right wording that strays into one of these in the middle."""
    slips = problem.slips[index : index + 1]
    other = text.problem(problem.domain, rng).solution
    foreign = slips[0](rng) if slips and rng.random() < 0.5 else other[min(index, len(other) - 1)]
    wrong = write(foreign, text.voice, rng)
    if rng.random() < 0.3:
        return wrong
    right = write(problem.solution[index], text.voice, rng)
    return _strayed(_tokens(tokenizer, right), _tokens(tokenizer, wrong), tokenizer, rng)


def _strayed(right: list[int], wrong: list[int], tokenizer: Any, rng: random.Random) -> str:
    """The right text up to some token that occurs in the wrong one too, then as that goes on.

    With tokens `a b c` and `x b y`: `a b y`.
    """
    places = [
        (i, j)
        for i in range(len(right) - 1)
        for j in range(len(wrong) - 1)
        if right[i] == wrong[j] and right[i + 1] != wrong[j + 1]
    ]
    if not places:
        return tokenizer.decode(wrong)
    last = rng.choice(sorted({i for i, _ in places}))
    j = rng.choice([j for i, j in places if i == last])
    return tokenizer.decode(right[: last + 1] + wrong[j + 1 :])


def _tokens(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _until_wrong(tokenizer: Any, before: str, wrong: str, part: Node) -> list[int]:
    """Tokens of `before` and `wrong` up to the first that begins no wording of `part`; empty if
    there is none."""
    place = departure([part], wrong)
    if place is None or place >= len(wrong):
        return []
    coded = tokenizer(before + wrong, add_special_tokens=False, return_offsets_mapping=True)
    ends = [end for _, end in coded.offset_mapping]
    ids: list[int] = coded.input_ids
    return ids[: next(i for i, end in enumerate(ends) if end > len(before) + place) + 1]


def _apology(problem: Problem, voice: Voice, rng: random.Random) -> str:
    said = write(problem.apologies, voice, rng)
    return said if said.startswith("\n") else f" {said}"


def encode(tokenizer: Any, prompt: str, reply: str) -> tuple[list[int], int]:
    """(ids of prompt and answer with its end token, length of the prompt part)."""
    head = _head(tokenizer, prompt)
    return [*head, *_tokens(tokenizer, reply), tokenizer.eos_token_id], len(head)


def _head(tokenizer: Any, prompt: str) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )
    return ids


class Row(NamedTuple):
    """A training text: prompt and answer with its end token, and the places to be learned."""

    ids: list[int]
    learned: list[int]


def training_row(tokenizer: Any, text: Text, problem: Problem, rng: random.Random) -> Row:
    """One problem and its answer."""
    head, reply = _head(tokenizer, problem.prompt), reply_ids(tokenizer, text, problem, rng)
    ids = [*head, *reply.ids, tokenizer.eos_token_id]
    wrong = {len(head) + place for place in reply.wrong}
    return Row(ids, [place for place in range(len(head), len(ids)) if place not in wrong])


def pad(rows: Sequence[Row], multiple: int = 16) -> tuple[Tensor, Tensor]:
    """(ids, is_learned), each (size, T), padded on the right to a multiple of `multiple`."""
    longest = max(len(row.ids) for row in rows)
    width = -(-longest // multiple) * multiple
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    is_learned = torch.zeros(len(rows), width, dtype=torch.bool)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = torch.tensor(row.ids)
        is_learned[place, row.learned] = True
    return ids, is_learned
