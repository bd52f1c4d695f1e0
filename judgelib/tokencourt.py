"""TokenCourt: for each question a right answer and a wrong one, and where the wrong one goes wrong.

Judge Decoding (arXiv 2501.19309, section 4) had 500 such pairs annotated by hand and released none.
`court` makes the pairs for any task and any model. In the sandbox the oracle annotates them
(`oracle_labels`); elsewhere people do, with `judgelib.annotation` (`items`, `labels_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


def labels_of(spans: Sequence[tuple[Item, int, int | None]]) -> list[Labelled]:
    """Labels from annotators' decisions (`judgelib.annotation.spans`): the mistaken tokens are
    [start, stop), stop None where all is correct."""
    return [
        annotated(
            item.question_id, item.domain, item.author, item.prompt_ids, item.token_ids,
            None if stop is None else (start, stop),
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
