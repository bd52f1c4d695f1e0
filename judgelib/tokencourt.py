"""TokenCourt: for each question a right answer and a wrong one, and where the wrong one goes wrong.

Judge Decoding (arXiv 2501.19309, section 4) had 500 such pairs annotated by hand and released none.
`court` makes the pairs for any task and any model. In the sandbox the oracle annotates them
(`oracle_labels`); elsewhere people do, with `judgelib.annotation` (`items`, `labels_of`), or where
there are none, the target itself by its own continuations (`recovery_labels`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from judgelib.annotation.items import Item, pieces
from judgelib.answering import by_length, generate
from judgelib.head_config import public_name
from judgelib.labels import Labelled, annotated
from judgelib.models import LanguageModel
from judgelib.tasks.base import Annotated, Question, Task, prompt_ids


@dataclass(frozen=True)
class Answer:
    """One answer in the author's tokens, its end token included, and whether it is right."""

    question: Question
    ids: tuple[int, ...]
    right: bool


def court(
    author: LanguageModel,
    task: Task,
    questions: Sequence[Question],
    *,
    wrong: int = 1,
    samples: int = 3,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    rows: int = 128,
    progress: Callable[[Any], Any] = iter,
) -> list[Answer]:
    """A right answer to each question and up to `wrong` different wrong ones, where there are any.

    The author answers greedily, then `samples` times by sampling; the first answers of each kind
    are taken. Those that were cut off at `max_new_tokens` are left out.

    Args:
        progress: wraps the iteration over rounds (`tqdm.tqdm`).
    """
    limits = {True: 1, False: wrong}
    taken: dict[tuple[str, bool], list[Answer]] = {
        (question.id, right): [] for question in questions for right in limits
    }
    for turn in progress(range(samples + 1)):
        lacking = [q for q in questions if any(len(taken[q.id, r]) < limits[r] for r in limits)]
        heat = temperature if turn else 0.0
        for answer in _answers(author, task, lacking, heat, max_new_tokens, seed + turn, rows):
            kept = taken[answer.question.id, answer.right]
            if len(kept) < limits[answer.right] and answer not in kept:
                kept.append(answer)
    return [answer for kept in taken.values() for answer in kept]


def _answers(
    author: LanguageModel,
    task: Task,
    questions: Sequence[Question],
    temperature: float,
    max_new_tokens: int,
    seed: int,
    rows: int,
) -> list[Answer]:
    heads = [prompt_ids(author.tokenizer, question) for question in questions]
    found: list[tuple[Question, list[int]]] = []
    for number, chosen in enumerate(by_length(heads, rows)):
        prompts = [heads[i] for i in chosen]
        with torch.random.fork_rng():
            torch.manual_seed(seed * 10_007 + number)
            texts = generate(author, prompts, max_new_tokens, temperature=temperature)
        found += [(questions[i], ids) for i, ids in zip(chosen, texts, strict=True)]
    ended = [(question, _to_end(ids, author)) for question, ids in found]
    whole = [(question, ids) for question, ids in ended if ids]
    written = [author.tokenizer.decode(ids, skip_special_tokens=True) for _, ids in whole]
    right = task.score([question for question, _ in whole], written)
    return [Answer(q, tuple(ids), said) for (q, ids), said in zip(whole, right, strict=True)]


def _to_end(ids: Sequence[int], author: LanguageModel) -> list[int]:
    """The answer with the first token that ends it; nothing if there is none."""
    end = next((place for place, token in enumerate(ids) if token in author.eos_ids), None)
    return [] if end is None else list(ids[: end + 1])


def oracle_labels(task: Task, answers: Sequence[Answer], model: LanguageModel) -> list[Labelled]:
    """Labels by a task that knows where an answer goes wrong. The mistaken token is the first one.

    Raises:
        ValueError: the task cannot tell (then people must).
    """
    if not isinstance(task, Annotated):
        raise ValueError(
            f"{task.name} does not know where an answer goes wrong; let people annotate the answers"
            " with judgelib.annotation"
        )
    rows = []
    for answer in answers:
        first = task.first_error(answer.question, answer.ids, model.tokenizer)
        span = None if first is None else (first, first + 1)
        rows.append(_labelled(answer, model, span))
    return rows


def recovery_labels(
    task: Task,
    answers: Sequence[Answer],
    author: LanguageModel,
    target: LanguageModel,
    *,
    max_new_tokens: int = 256,
    rows: int = 128,
) -> list[Labelled]:
    """Labels without people: the mistaken token is the first one from which the target, going on
    greedily, no longer gets to a right answer, where one token earlier it still did.

    It is found by halving, as in OmegaPRM (arXiv 2406.06592), with one continuation in place of
    several. Right answers need no search. A wrong answer to a question that the target cannot
    answer either says nothing of where the mistake lies, and is left out.

    Args:
        author: whose answers, and whose name stands in the labels.
        max_new_tokens: the longest answer, continuation included.
        rows: continuations written at once.
    """
    wrong = [answer for answer in answers if not answer.right]
    reach = partial(_reaches, task, target, max_new_tokens, rows)
    solvable = reach([(answer, 0) for answer in wrong])
    spans = {
        id(answer): [0, len(answer.ids)]
        for answer, can in zip(wrong, solvable, strict=True)
        if can
    }  # fmt: skip
    searched = [answer for answer in wrong if id(answer) in spans]
    while open_ := [answer for answer in searched if _width(spans[id(answer)]) > 1]:
        middles = [sum(spans[id(answer)]) // 2 for answer in open_]
        found = reach(list(zip(open_, middles, strict=True)))
        for answer, middle, can in zip(open_, middles, found, strict=True):
            spans[id(answer)][0 if can else 1] = middle
    return [
        _labelled(answer, author, None if answer.right else _span(spans[id(answer)]))
        for answer in answers
        if answer.right or id(answer) in spans
    ]


def _width(span: Sequence[int]) -> int:
    return span[1] - span[0]


def _span(found: Sequence[int]) -> tuple[int, int]:
    return found[0], found[1]


def _reaches(
    task: Task,
    target: LanguageModel,
    max_new_tokens: int,
    rows: int,
    begun: Sequence[tuple[Answer, int]],
) -> list[bool]:
    """Whether the target gets to a right answer from the first so many tokens of each answer."""
    heads = [
        [*prompt_ids(target.tokenizer, answer.question), *answer.ids[:kept]]
        for answer, kept in begun
    ]
    texts = [""] * len(begun)
    for chosen in by_length(heads, rows):
        written = generate(target, [heads[i] for i in chosen], max_new_tokens)
        for i, ids in zip(chosen, written, strict=True):
            answer, kept = begun[i]
            whole = [*answer.ids[:kept], *ids][:max_new_tokens]
            texts[i] = target.tokenizer.decode(whole, skip_special_tokens=True)
    return task.score([answer.question for answer, _ in begun], texts)


def items(task: Task, answers: Sequence[Answer], model: LanguageModel) -> list[Item]:
    """The same answers for annotators: each with its question and a right answer beside it."""
    right = {answer.question.id: answer for answer in reversed(answers) if answer.right}
    made = []
    for number, answer in enumerate(answers):
        question = answer.question
        other = right.get(question.id)
        shown = question.reference if other in (None, answer) else _text(other, model)
        made.append(
            Item(
                id=f"{question.id}-{number}",
                question_id=question.id,
                domain=question.domain,
                question="\n\n".join(message["content"] for message in question.messages),
                right=shown,
                tokens=pieces(model.tokenizer, answer.ids),
                token_ids=answer.ids,
                prompt_ids=tuple(prompt_ids(model.tokenizer, question)),
                author=public_name(model.name),
            )
        )
    return made


def labels_of(spans: Sequence[tuple[Item, int | None, int | None]]) -> list[Labelled]:
    """Labels from annotators' decisions (`judgelib.annotation.spans`): the mistaken tokens are
    [start, stop), stop None where all is correct."""
    return [
        annotated(
            item.question_id, item.domain, item.author, item.prompt_ids, item.token_ids,
            None if start is None or stop is None else (start, stop),
        )
        for item, start, stop in spans
    ]  # fmt: skip


def _text(answer: Answer | None, model: LanguageModel) -> str:
    ids = answer.ids if answer else ()
    text: str = model.tokenizer.decode(ids, skip_special_tokens=True)
    return text


def _labelled(answer: Answer, model: LanguageModel, span: tuple[int, int] | None) -> Labelled:
    question = answer.question
    head = prompt_ids(model.tokenizer, question)
    author = public_name(model.name)
    return annotated(question.id, question.domain, author, head, answer.ids, span)
