"""Batched greedy answers: those of the naive loop, in the order of the questions."""

from __future__ import annotations

from typing import Any

import pytest
import tiny

from judgelib.answering import generate, greedy_texts
from judgelib.decoding import autoregress
from judgelib.models import LanguageModel
from judgelib.tasks import Question
from judgelib.tasks.base import prompt_ids

TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"
LENGTHS = (1, 7, 3, 12, 3, 1, 9)
NEW = 24


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """A random model that ends some of its texts."""
    model = tiny.language_model(seed=3)
    model.tokenizer.chat_template = TEMPLATE
    return model


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """Prompts of different lengths, in no order."""
    prompts = [tiny.prompts(1, seed=n, longest=length)[0] for n, length in enumerate(LENGTHS)]
    words = [" ".join(f"w{token}" for token in prompt) for prompt in prompts]
    return [
        Question(str(n), "toy", ({"role": "user", "content": text},), "", None)
        for n, text in enumerate(words)
    ]


def by_the_naive_loop(model: LanguageModel, questions: list[Question]) -> list[str]:
    texts = []
    for question in questions:
        said = autoregress(model, prompt_ids(model.tokenizer, question), max_new_tokens=NEW)
        texts.append(model.tokenizer.decode(said.ids, skip_special_tokens=True))
    return texts


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_answers_are_those_of_the_naive_loop_in_order(
    model: LanguageModel, questions: list[Question], rows: int
) -> None:
    expected = by_the_naive_loop(model, questions)
    assert len(set(expected)) > 3
    assert greedy_texts(model, questions, max_new_tokens=NEW, rows=rows) == expected


def test_padding_on_the_left_changes_no_token(model: LanguageModel) -> None:
    """Short prompts beside a long one come out as alone; what has ended is filled up."""
    prompts = tiny.prompts(8, seed=5, longest=20)
    ended = 0
    for prompt, ids in zip(prompts, generate(model, prompts, NEW), strict=True):
        alone = autoregress(model, prompt, max_new_tokens=NEW)
        assert list(ids)[: len(alone.ids)] == alone.ids
        assert set(list(ids)[len(alone.ids) :]) <= {tiny.EOS}
        ended += alone.finish_reason == "eos"
    assert ended  # some text ends before the others


def test_special_tokens_are_no_part_of_a_text(
    model: LanguageModel, questions: list[Question]
) -> None:
    for text in greedy_texts(model, questions, max_new_tokens=NEW):
        assert not set(tiny.SPECIAL) & set(text.split())


@pytest.mark.parametrize("tokenizer_knows", [True, False])
def test_the_end_token_is_the_tokenizer_s_or_none(
    questions: list[Question], tokenizer_knows: bool
) -> None:
    """A model that names no end token: the tokenizer's ends its texts, or nothing does."""
    model = tiny.language_model(seed=3)
    model.tokenizer.chat_template = TEMPLATE
    model.model.generation_config.eos_token_id = None
    if not tokenizer_knows:
        model.tokenizer.eos_token = None
    assert model.eos_ids == ((tiny.EOS,) if tokenizer_knows else ())
    expected = by_the_naive_loop(model, questions)
    assert greedy_texts(model, questions, max_new_tokens=NEW) == expected
    ended = [tiny.EOS in ids for ids in generate(model, tiny.prompts(8, seed=5, longest=20), 99)]
    assert not tokenizer_knows or any(ended)


def test_progress_sees_every_batch(model: LanguageModel, questions: list[Question]) -> None:
    seen: list[Any] = []

    def watch(batches: Any) -> Any:
        for chosen in batches:
            seen.append(chosen)
            yield chosen

    greedy_texts(model, questions, max_new_tokens=2, rows=3, progress=watch)
    assert [len(batch.numbers) for batch in seen] == [3, 3, 1]


def test_no_questions_have_no_answers(model: LanguageModel) -> None:
    assert greedy_texts(model, []) == []
