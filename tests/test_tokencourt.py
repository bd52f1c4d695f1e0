"""TokenCourt: pairs of answers, the oracle's labels, and the same answers before annotators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import counters
import pytest
import tiny
import torch
import toy

from judgelib import tokencourt
from judgelib.annotation import Decision, Item, load_items, save_items, spans
from judgelib.decoding import autoregress
from judgelib.labels import load_labels, save_labels
from judgelib.models import LanguageModel, load_model
from judgelib.tasks.base import Question, Task, load_task, prompt_ids
from judgelib.tokencourt import Answer, court, items, labels_of, oracle_labels

SANDBOX = Path(__file__).resolve().parents[1] / "data" / "sandbox"
NEW = 24
BAD = 20  # the number that makes an answer wrong


@pytest.fixture(scope="module")
def author() -> LanguageModel:
    """A random model that ends some of its answers."""
    return toy.with_template(tiny.language_model(seed=3))


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    return toy.questions(tiny.prompts(12, seed=1))


def held(author: LanguageModel, asked: list[Question], **options: Any) -> list[Answer]:
    return court(
        author, toy.Careful(BAD), asked, **{"max_new_tokens": NEW, "samples": 4, **options}
    )


@pytest.fixture(scope="module")
def answers(author: LanguageModel, asked: list[Question]) -> list[Answer]:
    return held(author, asked)


def words(author: LanguageModel, answer: Answer) -> str:
    return author.tokenizer.decode(answer.ids, skip_special_tokens=True)


# --- the pairs ---------------------------------------------------------------------------------


def test_each_question_has_at_most_one_right_and_one_wrong_answer(
    author: LanguageModel, asked: list[Question], answers: list[Answer]
) -> None:
    """In the order of the questions, the right one first, as the task scores them."""
    keys = [(answer.question.id, answer.right) for answer in answers]
    every = [(question.id, right) for question in asked for right in (True, False)]
    assert keys == [key for key in every if key in keys] and len(set(keys)) == len(keys)
    pairs = [
        question for question in asked if {(question.id, True), (question.id, False)} <= {*keys}
    ]
    assert len(pairs) > 1 and {right for _, right in keys} == {True, False}
    for answer in answers:
        assert answer.right == (BAD not in toy.numbers(words(author, answer)))


def test_there_may_be_several_wrong_answers_all_different(
    author: LanguageModel, asked: list[Question]
) -> None:
    made = held(author, asked, wrong=2, samples=8)
    texts = [(answer.question.id, answer.ids) for answer in made]
    assert len(set(texts)) == len(texts)
    counts = []
    for question in asked:
        kinds = [answer.right for answer in made if answer.question == question]
        assert kinds == sorted(kinds, reverse=True)  # the right one first
        assert kinds.count(True) <= 1
        counts.append(kinds.count(False))
    assert max(counts) == 2 and {1, 0} & set(counts)


def test_answers_end_with_their_end_token_and_cut_off_ones_are_left_out(
    author: LanguageModel, asked: list[Question], answers: list[Answer]
) -> None:
    assert all(answer.ids.index(tiny.EOS) == len(answer.ids) - 1 for answer in answers)
    short = held(author, asked, max_new_tokens=3)
    assert 0 < len(short) < len(answers)
    assert max(len(answer.ids) for answer in short) <= 3 < max(len(a.ids) for a in answers)


def test_the_greedy_answer_is_taken_first(
    author: LanguageModel, asked: list[Question], answers: list[Answer]
) -> None:
    greedy = [
        autoregress(author, prompt_ids(author.tokenizer, q), max_new_tokens=NEW) for q in asked
    ]
    ended = [
        (q, text) for q, text in zip(asked, greedy, strict=True) if text.finish_reason == "eos"
    ]
    assert len(ended) > 3
    for question, text in ended:
        assert (question, tuple(text.ids)) in [(a.question, a.ids) for a in answers]
    assert held(author, asked, samples=0) == [
        Answer(question, tuple(text.ids), BAD not in text.ids) for question, text in ended
    ]


def test_pairs_depend_on_the_seed_alone(
    author: LanguageModel, asked: list[Question], answers: list[Answer]
) -> None:
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    assert held(author, asked) == answers
    assert torch.equal(torch.random.get_rng_state(), before)
    assert held(author, asked, seed=1) != answers


def test_only_what_is_lacking_is_asked_again(
    author: LanguageModel, asked: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedily once, then warm; a question with both answers is left in peace."""
    rounds: list[tuple[float, int]] = []
    real = tokencourt.generate

    def watched(model: Any, heads: Any, limit: int, *, temperature: float) -> Any:
        rounds.append((temperature, len(heads)))
        return real(model, heads, limit, temperature=temperature)

    monkeypatch.setattr(tokencourt, "generate", watched)
    seen: list[int] = []
    held(
        author, asked, temperature=0.7, progress=lambda turns: (seen.append(t) or t for t in turns)
    )
    assert [temperature for temperature, _ in rounds] == [0.0] + [0.7] * 4
    counts = [count for _, count in rounds]
    assert counts[:2] == [12, 12] and counts[-1] < 12
    assert counts == sorted(counts, reverse=True)
    assert seen == [0, 1, 2, 3, 4]
    rounds.clear()
    held(author, asked, samples=0, rows=5)
    assert rounds == [(0.0, 5), (0.0, 5), (0.0, 2)]


def test_no_questions_have_no_answers(author: LanguageModel) -> None:
    assert held(author, []) == []


# --- the oracle's labels -----------------------------------------------------------------------


def test_the_mistaken_token_is_the_task_s_first_error(
    author: LanguageModel, answers: list[Answer]
) -> None:
    rows = oracle_labels(toy.Careful(BAD), answers, author)
    for row, answer in zip(rows, answers, strict=True):
        assert (row.question_id, row.domain) == (answer.question.id, "toy")
        assert (row.source, row.author) == ("annotated", "tiny")
        assert row.prompt_ids == toy.numbers(answer.question.reference)
        assert tuple(row.response_ids) == tuple(row.judged_ids) == answer.ids
        if answer.right:
            assert row.labels == [1] * len(answer.ids)
        else:
            place = answer.ids.index(BAD)
            assert row.labels == [1] * place + [0] + [-1] * (len(answer.ids) - place - 1)
            assert (row.error_start, row.error_stop) == (place, place + 1)


def test_a_task_that_cannot_tell_sends_one_to_people(
    author: LanguageModel, answers: list[Answer]
) -> None:
    with pytest.raises(ValueError, match="toy does not know where .* judgelib.annotation"):
        oracle_labels(toy.Has(BAD), answers, author)


@pytest.fixture(scope="module")
def facts() -> tuple[Task, LanguageModel, list[Answer]]:
    """Pairs by the shipped draft."""
    task, draft = load_task("sandbox-facts"), load_model(SANDBOX / "draft", dtype="float32")
    asked = task.questions("train", 16)
    return task, draft, court(draft, task, asked, temperature=1.5, max_new_tokens=96)


def test_labels_of_the_sandbox_agree_with_its_oracle(
    facts: tuple[Task, LanguageModel, list[Answer]],
) -> None:
    task, draft, answers = facts
    assert {answer.right for answer in answers} == {True, False}
    texts = [words(draft, answer) for answer in answers]
    assert task.score([a.question for a in answers], texts) == [a.right for a in answers]
    for row, answer in zip(oracle_labels(task, answers, draft), answers, strict=True):
        first = task.first_error(answer.question, answer.ids, draft.tokenizer)  # type: ignore[attr-defined]
        assert (row.labels.index(0) if 0 in row.labels else None) == first
        assert answer.right or first is not None
        assert row.author == "draft"


# --- before annotators -------------------------------------------------------------------------


def test_items_are_the_answers_word_for_word(
    facts: tuple[Task, LanguageModel, list[Answer]],
) -> None:
    task, draft, answers = facts
    made = items(task, answers, draft)
    assert len({item.id for item in made}) == len(made) == len(answers)
    for item, answer in zip(made, answers, strict=True):
        assert item.answer == "".join(item.tokens) == words(draft, answer)
        assert item.token_ids == answer.ids and len(item.tokens) == len(answer.ids)
        assert list(item.prompt_ids) == prompt_ids(draft.tokenizer, answer.question)
        assert item.question == answer.question.messages[0]["content"]
        assert (item.question_id, item.domain) == (answer.question.id, "facts")
        assert item.author == "draft"


def test_the_right_answer_beside_it_is_another_one(
    facts: tuple[Task, LanguageModel, list[Answer]],
) -> None:
    """The author's own where there is one; the reference beside that one itself."""
    task, draft, answers = facts
    right = {answer.question.id: words(draft, answer) for answer in answers if answer.right}
    assert any(not a.right and a.question.id in right for a in answers)
    for item, answer in zip(items(task, answers, draft), answers, strict=True):
        own = None if answer.right else right.get(answer.question.id)
        assert item.right == (own or answer.question.reference)
        assert task.score([answer.question], [item.right]) == [True]


def test_annotators_who_agree_with_the_oracle_make_its_labels(
    author: LanguageModel, answers: list[Answer], tmp_path: Path
) -> None:
    """Answers to items, through a file, to decisions, to labels, through a file."""
    task = toy.Careful(BAD)
    save_items(items(task, answers, author), tmp_path / "items.jsonl")
    made = load_items(tmp_path / "items.jsonl")
    decided = {item.id: decision(item) for item in made}
    rows = labels_of(spans(made, decided))
    assert rows == oracle_labels(task, answers, author)
    save_labels(rows, tmp_path / "labels.parquet")
    assert load_labels(tmp_path / "labels.parquet") == rows


def decision(item: Item) -> Decision:
    """What somebody says who sees the wrong number."""
    if BAD not in item.token_ids:
        return Decision("anna", item.id, item.sha, "correct")
    place = item.token_ids.index(BAD)
    return Decision("anna", item.id, item.sha, "error", place, place + 1)


def test_a_mistake_may_be_several_tokens_and_the_unsure_make_no_labels(
    author: LanguageModel, answers: list[Answer]
) -> None:
    chosen = [answer for answer in answers if len(answer.ids) > 4][:2]
    first, second = items(toy.Careful(BAD), chosen, author)
    decided = {
        first.id: Decision("anna", first.id, first.sha, "error", 1, 3),
        second.id: Decision("anna", second.id, second.sha, "unsure"),
    }
    rows = labels_of(spans([first, second], decided))
    assert [row.labels[:4] for row in rows] == [[1, 0, 0, -1]]
    assert (rows[0].error_start, rows[0].error_stop) == (1, 3)


def test_the_target_finds_the_mistake_where_nobody_annotates() -> None:
    """30 spoils an answer: the target gets to a right one from every beginning before it, and from
    none behind it. Where the target itself says 30, nothing can be learned."""
    target, draft = counters.models()
    asked = toy.questions([[10], [20], [29]])
    task = toy.HasNot(30, *asked)
    end = tiny.EOS
    wrong = tokencourt.Answer(asked[0], (11, 12, 13, 14, 30, 31, end), right=False)
    first = tokencourt.Answer(asked[1], (30, 31, end), right=False)
    last = tokencourt.Answer(asked[1], (21, 22, 23, 30), right=False)
    right = tokencourt.Answer(asked[1], (21, 22, 23, 24, end), right=True)
    hopeless = tokencourt.Answer(asked[2], (30, end), right=False)
    answers = [wrong, first, last, right, hopeless]
    rows = tokencourt.recovery_labels(task, answers, draft, target, max_new_tokens=30)
    assert [row.error_start for row in rows] == [4, 0, 3, -1]
    assert rows[0].labels == [1, 1, 1, 1, 0, -1, -1]
    assert {row.author for row in rows} == {draft.name} and rows[3].labels == [1] * 5
