"""Pages for the usual questions: strict beside judge, and labelled answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from judgelib.annotation.items import pieces
from judgelib.drafting import ModelDrafter
from judgelib.explorer.page import Page
from judgelib.explorer.recording import record
from judgelib.explorer.spelling import spelling
from judgelib.explorer.tokens import Record, Rejected, Token
from judgelib.head import JudgeHead
from judgelib.labels import ACCEPTABLE, IGNORED, UNACCEPTABLE, Labelled
from judgelib.models import LanguageModel
from judgelib.rules import Judge, Match
from judgelib.tasks.base import Question, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LABELS = {ACCEPTABLE: "acceptable", UNACCEPTABLE: "unacceptable", IGNORED: "ignored"}


def compare(
    target: LanguageModel,
    draft: LanguageModel,
    head: JudgeHead,
    question: Question | str,
    *,
    threshold: float | None = None,
    window: int = 16,
    max_new_tokens: int = 256,
    top: int = 5,
) -> Page:
    """The greedy answer to a question by strict verification and, beside it, with a judge.

    Args:
        question: of a task, or any text that goes to the model as the user's.
        threshold: the judge's; None: the head's own.
        window: drafted tokens a cycle.
        top: alternatives of each model at each place.

    Raises:
        ValueError: as `speculate` does, and a head made for other models.
    """
    head.check(target, draft)
    judge = Judge(head, threshold)
    question = asked(question) if isinstance(question, str) else question
    prompt = "\n\n".join(message["content"] for message in question.messages)
    ids = prompt_ids(target.tokenizer, question)
    ways = {
        "Strict": (Match(), judge),
        f"Judge ({head.config.source}), threshold {judge.threshold:g}": (Match() | judge, None),
    }
    found = [
        record(
            target, ModelDrafter(draft), rule, ids, title=title, prompt=prompt,
            looking_on=looking_on, top=top, window=window, max_new_tokens=max_new_tokens,
        )
        for title, (rule, looking_on) in ways.items()
    ]  # fmt: skip
    return Page(found, title="How this answer got there: strict verification and a judge")


def asked(text: str) -> Question:
    """A question of a user's own; ValueError if there is nothing in it."""
    if not text.strip():
        raise ValueError("expected a question, got an empty text; write what the model is asked")
    return Question("asked", "asked", ({"role": "user", "content": text},), "", None)


def labelled(
    rows: Sequence[Labelled], tokenizer: PreTrainedTokenizerBase, *, titles: Sequence[str] = ()
) -> Page:
    """Labelled answers, every token on the colour of its label."""
    names = titles or [f"{row.domain}: {row.source} labels" for row in rows]
    found = [_of_labels(row, tokenizer, name) for row, name in zip(rows, names, strict=True)]
    return Page(found, title="Answers with their labels")


def _of_labels(row: Labelled, tokenizer: PreTrainedTokenizerBase, title: str) -> Record:
    prompt = tokenizer.decode(row.prompt_ids, skip_special_tokens=True)
    assert isinstance(prompt, str)  # a flat list of ids is one text
    return Record(title, f"{row.source} labels", prompt, tuple(_label_tokens(row, tokenizer)))


def _label_tokens(row: Labelled, tokenizer: PreTrainedTokenizerBase) -> Iterator[Token]:
    texts = pieces(tokenizer, row.response_ids)
    columns = zip(texts, row.response_ids, row.judged_ids, row.labels, strict=True)
    for text, kept, judged, label in columns:
        other = Rejected(spelling(tokenizer, judged), judged) if judged != kept else None
        yield Token(
            text=text,
            id=kept,
            name=spelling(tokenizer, kept),
            origin=LABELS[label],
            reason=_why(row.source, label),
            rejected=other,
        )


def _why(source: str, label: int) -> str:
    if label == IGNORED:
        behind = "it stands behind the mistake" if source == "annotated" else "both models agree"
        return f"No label that counts: {behind}."
    if source == "annotated":
        return "Label 1: before any mistake." if label else "Label 0: here the answer goes wrong."
    if label:
        return "Label 1: the draft's token, with which the target still reaches its own answer."
    return (
        "Label 0: with the draft's token the target reaches another answer, so its own came back."
    )
