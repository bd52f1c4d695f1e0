"""The oracle: is the final answer right, and where does the text first go wrong?

This is what TokenCourt's annotators did by hand (Judge Decoding, section 4), exact and free. A
text is *right* by its final answer alone: the number, the letter, or the tests that its code
passes. It *departs* at the first character where it stops being the beginning of any right
solution, so a slip that is taken back later still has a place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from judgelib.execution import Job, run_many
from judgelib.sandbox.code import final_program
from judgelib.sandbox.grammar import departure
from judgelib.sandbox.problem import Problem

_ANSWER = re.compile(r"Answer: (\S+)\s*$")


@dataclass(frozen=True)
class Judgement:
    """`departure` is a character index, `len(text)` for a text that stops too early, or None."""

    correct: bool
    departure: int | None


def final_answer(text: str) -> str | None:
    """What stands after the closing "Answer:", or None."""
    found = _ANSWER.search(text)
    return found.group(1) if found else None


def judge(problem: Problem, text: str) -> Judgement:
    """The judgement of one text."""
    return judge_many([problem], [text])[0]


def judge_many(problems: Sequence[Problem], texts: Sequence[str]) -> list[Judgement]:
    """The judgements of many texts; the code among them runs in the guarded runner together."""
    right = score(problems, texts)
    return [
        Judgement(correct, departure(problem.solution, text))
        for problem, text, correct in zip(problems, texts, right, strict=True)
    ]


def score(problems: Sequence[Problem], texts: Sequence[str]) -> list[bool]:
    """Whether each text's final answer is right; ValueError unless there is a text a problem."""
    if len(texts) != len(problems):
        raise ValueError(
            f"expected one text for each of the {len(problems)} problems, got {len(texts)}; "
            "give them in the order of the problems"
        )
    pairs = list(zip(problems, texts, strict=True))
    jobs = [Job(final_program(text), "solve", p.cases) for p, text in pairs if p.cases]
    verdicts = iter(run_many(jobs, guard="subset"))
    return [
        next(verdicts).passed if problem.cases else final_answer(text) == problem.answer
        for problem, text in pairs
    ]


def first_wrong_token(
    problem: Problem, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> int | None:
    """Index of the first token that begins no right solution; None if there is none.

    ids: the answer's tokens, its end token included if it has one. An end token that comes too
    early is itself the wrong token; an answer that was merely cut off has none.
    """
    ended = bool(ids) and ids[-1] == tokenizer.eos_token_id
    body = list(ids[:-1] if ended else ids)
    pieces = [tokenizer.decode([token]) for token in body]
    place = departure(problem.solution, "".join(pieces))
    if place is None:
        return None
    for index, end in enumerate(accumulate(len(piece) for piece in pieces)):
        if place < end:
            return index
    return len(body) if ended else None


def marked(problem: Problem, text: str) -> str:
    """The text with `⟦` before the first character that no right solution has there."""
    place = departure(problem.solution, text)
    return text if place is None else f"{text[:place]}⟦{text[place:]}"


def with_a_digit_changed(text: str) -> str:
    """A mistake to look at: the last digit of the text's middle number made another one.

    Raises:
        ValueError: a text without digits.
    """
    digits = [match.start() for match in re.finditer(r"\d(?!\d)", text)]
    if not digits:
        raise ValueError(f"expected a text with a digit to change, got {text[:80]!r}; take another")
    place = digits[len(digits) // 2]
    return text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
