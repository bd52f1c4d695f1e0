"""Tasks: stable questions, answers that compare as the task says, scores, refusals."""

from __future__ import annotations

import random
from pathlib import Path

import benchmark_fixtures
import pytest
from transformers import AutoTokenizer

from judgelib.sandbox.corpus import answer, encode
from judgelib.sandbox.oracle import first_wrong_token
from judgelib.sandbox.problem import DOMAINS
from judgelib.sandbox.voices import DRAFT, TARGET
from judgelib.sandbox.world import problems
from judgelib.tasks import Annotated, Task, having, load_task
from judgelib.tasks.base import prompt_ids

TOKENIZER = Path(__file__).parents[1] / "data" / "sandbox" / "tokenizer"
NAMES = [f"sandbox-{domain}" for domain in DOMAINS]


@pytest.fixture(params=NAMES)
def task(request: pytest.FixtureRequest) -> Task:
    return load_task(request.param)


def test_a_task_knows_its_name_and_domain() -> None:
    for name, domain in zip(NAMES, DOMAINS, strict=True):
        assert (load_task(name).name, load_task(name).domain) == (name, domain)
        assert load_task(name) == load_task(name)


@pytest.mark.parametrize("name", ["math", "sandbox", "sandbox-Math", "", "gsm9k"])
def test_an_unknown_task_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match="sandbox-code, sandbox-facts, sandbox-math") as caught:
        load_task(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("split", ["dev", "", "Test"])
def test_an_unknown_split_is_refused(task: Task, split: str) -> None:
    with pytest.raises(ValueError, match="expected a split of train, validation, test"):
        task.questions(split, 1)


def test_questions_are_the_problems_of_the_world(task: Task) -> None:
    questions = task.questions("test", 5)
    for question, problem in zip(questions, problems(task.domain, "test", 5), strict=True):  # type: ignore[arg-type]
        assert (question.id, question.domain) == (problem.id, problem.domain)
        assert question.messages == ({"role": "user", "content": problem.prompt},)


def test_questions_are_stable_and_a_larger_count_begins_alike(task: Task) -> None:
    few, many = task.questions("validation", 5), task.questions("validation", 12)
    assert few == task.questions("validation", 5) == many[:5]
    assert few != task.questions("validation", 5, seed=1)
    assert len({question.id for question in many}) == 12


def test_references_are_right_and_not_the_words_of_a_model(task: Task) -> None:
    questions = task.questions("test", 20)
    references = [question.reference for question in questions]
    assert all(task.score(questions, references))
    by_target = [answer(q.record, TARGET, random.Random(q.record.id)) for q in questions]
    assert references != by_target


def test_equal_answers_are_equivalent(task: Task) -> None:
    """Two right answers in other words agree; a right one and a wrong one do not."""
    questions = task.questions("test", 10)
    right = [question.reference for question in questions]
    reworded = [answer(q.record, DRAFT, random.Random(1)) for q in questions]
    wrong = ["def solve(xs):\n    return 'no'\nAnswer: none"] * 10
    assert right != reworded
    assert task.answers(questions, right) == task.answers(questions, reworded)
    pairs = zip(task.answers(questions, right), task.answers(questions, wrong), strict=True)
    assert all(one != other for one, other in pairs)
    assert {hash(found) for found in task.answers(questions, right)}


def test_code_that_fails_in_different_ways_is_equivalent() -> None:
    """Its answer is whether it passes: mining asks only if a change of wording breaks it."""
    task = load_task("sandbox-code")
    question = task.questions("test", 1)[0]
    failing = ["", "def solve(xs):\n    return None", "def solve(:", "Answer: 5"]
    assert task.answers([question] * 4, failing) == [False] * 4
    assert task.answers([question], [question.reference]) == [True]


@pytest.mark.parametrize("domain", ["math", "facts"])
def test_texts_without_an_answer_are_equivalent_to_each_other_only(domain: str) -> None:
    task = load_task(f"sandbox-{domain}")
    question = task.questions("test", 1)[0]
    found = task.answers([question] * 3, ["", "So it goes on and", question.reference])
    assert found == [None, None, question.record.answer]
    assert task.score([question] * 3, ["", "So", question.reference]) == [False, False, True]


def test_answers_and_scores_keep_the_order(task: Task) -> None:
    questions = task.questions("test", 6)
    texts = [q.reference if i % 2 else "" for i, q in enumerate(questions)]
    assert task.score(questions, texts) == [False, True] * 3
    assert [a is not None and a is not False for a in task.answers(questions, texts)] == [
        False,
        True,
    ] * 3


def test_the_sandbox_knows_where_an_answer_goes_wrong(task: Task) -> None:
    """And says so in the tokens of the answer, as the oracle does."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    assert isinstance(task, Annotated)
    question = task.questions("test", 1)[0]
    ids = tokenizer(question.reference).input_ids
    wrong = [*ids[:4], *tokenizer(" 7 zebra").input_ids, *ids[4:]]
    assert task.first_error(question, ids, tokenizer) is None
    place = task.first_error(question, wrong, tokenizer)
    assert place == first_wrong_token(question.record, wrong, tokenizer)
    assert place is not None and 4 <= place <= 6


def test_a_prompt_ends_where_the_answer_begins(task: Task) -> None:
    """The same ids as in training, so that trained models meet what they know."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    question = task.questions("test", 1)[0]
    ids, start = encode(tokenizer, question.messages[0]["content"], question.reference)
    assert prompt_ids(tokenizer, question) == ids[:start]


def test_only_tasks_that_have_a_split_are_asked_for_it() -> None:
    names = ["gsm8k", "humaneval", "sandbox-math"]
    assert having(names, "test") == names
    assert having(names, "validation") == ["gsm8k", "sandbox-math"]
    with pytest.raises(ValueError, match="none of humaneval has train questions"):
        having(["humaneval"], "train")


def test_a_folder_of_datasets_stands_in_for_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGELIB_DATASETS", str(benchmark_fixtures.FOLDER))
    assert load_task("mmlu").questions("test", 2)[0].id.startswith("mmlu/test/")
    monkeypatch.setenv("JUDGELIB_DATASETS", "/nowhere")
    with pytest.raises(ValueError, match="expected a folder with"):
        load_task("mmlu").questions("test", 1)
