"""The oracle: right texts of every author, slips, code that really runs, the first wrong token."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from judgelib.execution import Job, run_many
from judgelib.sandbox import code, math
from judgelib.sandbox.code import (
    APOLOGIES,
    FILTERS,
    MAPS,
    WORD_FILTERS,
    WORD_MAPS,
    WORDS,
    Use,
    final_program,
)
from judgelib.sandbox.corpus import answer
from judgelib.sandbox.grammar import departure, pick, seq, write
from judgelib.sandbox.oracle import (
    Judgement,
    final_answer,
    first_wrong_token,
    judge,
    judge_many,
    marked,
    score,
    with_a_digit_changed,
)
from judgelib.sandbox.problem import DOMAINS, Domain, Problem
from judgelib.sandbox.voices import DRAFT, EXPERT, HUMAN, TARGET, WEB
from judgelib.sandbox.world import problems

TOKENIZER = Path(__file__).parents[1] / "data" / "sandbox" / "tokenizer"
VOICES = (WEB, TARGET, DRAFT, EXPERT, HUMAN)
SAMPLE = {"math": 200, "code": 100, "facts": 200}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TOKENIZER)


def slipped(problem: Problem, rng: random.Random) -> Iterator[str]:
    """Right answers in which one part is written wrong and left so, for each part."""
    for index, slip in enumerate(problem.slips):
        parts = [write(part, WEB, rng) for part in problem.solution]
        parts[index] = write(slip(rng), WEB, rng)
        yield "".join(parts)


# --- right answers ---------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_answer_in_any_voice_is_right(domain: Domain) -> None:
    """Nowhere wrong by the grammar, and right by its number, its letter or its tests."""
    chosen = [(p, v) for p in problems(domain, "test", SAMPLE[domain]) for v in VOICES]
    texts = [answer(problem, voice, random.Random(problem.id)) for problem, voice in chosen]
    judged = judge_many([problem for problem, _ in chosen], texts)
    fine = Judgement(True, None)
    wrong = [text for text, said in zip(texts, judged, strict=True) if said != fine]
    assert not wrong, f"{len(wrong)} of {len(texts)}, such as {wrong[0]}"


def test_a_math_answer_is_the_result_of_its_last_step() -> None:
    for problem in problems("math", "test", 100):
        text = answer(problem, HUMAN, random.Random(0))
        assert final_answer(text) == problem.answer
        assert re.findall(r"\d+", text)[-2] == problem.answer


# --- code really runs ------------------------------------------------------------------------


def idioms() -> Iterator[tuple[str, Job]]:
    """Every way to write every skill with every parameter, as a function with its tests."""
    for skill in (*FILTERS, *MAPS, *WORD_FILTERS, *WORD_MAPS):
        values = WORDS if skill in (*WORD_FILTERS, *WORD_MAPS) else range(-12, 21)
        wrap = "bool({})" if skill in (*FILTERS, *WORD_FILTERS) else "{}"
        for k in skill.parameters or (None,):
            cases = [((value,), Use(skill, k).run(value)) for value in values]
            for idiom in skill.code("x", k):
                body = wrap.format(idiom)
                yield idiom, Job(f"def solve(x):\n    return {body}", "solve", cases)


def test_every_idiom_of_every_skill_means_the_same_in_the_guarded_runner() -> None:
    texts, jobs = zip(*idioms(), strict=True)
    verdicts = run_many(jobs, guard="subset")
    failed = {t: v.reason for t, v in zip(texts, verdicts, strict=True) if not v.passed}
    assert len(jobs) > 300 and not failed


def test_wrong_code_fails_its_tests() -> None:
    """One skill exchanged for another. What still passes means the same, or nearly: how many
    different values, say, of the numbers times six or times eight."""
    chosen = problems("code", "train", 100)
    pairs = [(p, text) for p in chosen for text in slipped(p, random.Random(p.id))]
    right = score([problem for problem, _ in pairs], [text for _, text in pairs])
    assert sum(right) <= 0.05 * len(right)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Answer: 5",
        "def other(xs):\n    return xs",
        "def solve(xs):\n    return None",
        "def solve(xs):\n    return open('x')",
        "import os\ndef solve(xs):\n    return xs",
        "def solve(xs):\n    while True:\n        pass",
        "def solve(xs:\n    return",
    ],
)
def test_code_that_does_not_solve_is_wrong_and_stops_nobody_else(text: str) -> None:
    problem = problems("code", "test", 1)[0]
    right = answer(problem, TARGET, random.Random(0))
    assert score([problem, problem], [text, right]) == [False, True]


def test_tests_of_a_code_problem_are_not_all_alike() -> None:
    """Else a constant would pass. (A few are constant by what they say: how many different digits
    there are among the remainders by two of the even numbers.)"""
    chosen = problems("code", "train", 150)
    constant = [p for p in chosen if len({repr(expected) for _, expected in p.cases}) < 2]
    assert len(constant) <= 0.01 * len(chosen)


# --- slips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["code", "facts"])
def test_every_slip_of_code_and_facts_is_wrong(domain: Domain) -> None:
    for problem in problems(domain, "train", SAMPLE[domain]):
        for text in slipped(problem, random.Random(problem.id)):
            assert departure(problem.solution, text) is not None, text


def test_nearly_every_slip_of_math_is_wrong() -> None:
    """At least 93%: a changed operation may be the old one, and a changed result may come out
    right again (both are rare, and measured here at 5%)."""
    texts = [
        (problem, text)
        for problem in problems("math", "train", 300)
        for _ in range(3)
        for text in slipped(problem, random.Random(f"{problem.id}{_}"))
    ]
    harmless = [text for problem, text in texts if departure(problem.solution, text) is None]
    assert len(harmless) <= 0.07 * len(texts)


def test_a_step_that_states_another_result_is_never_right() -> None:
    """Every wrong number, one to twenty away: the text departs inside the sentence that states it,
    at the first digit in which the two differ or, where one begins the other, behind it."""
    rng = random.Random(0)
    for name, template in math.TEMPLATES.items():
        for step in template(random.Random(name)).steps:
            right = math.sentence(step, step.result, first=True)
            for wrong in range(max(0, step.result - 20), step.result + 21):
                text = write(math.sentence(step, wrong, first=True), WEB, rng)
                assert (departure([right], text) is None) == (wrong == step.result), text


@pytest.mark.parametrize("domain", ["math", "facts"])
def test_a_wrong_last_line_is_wrong_by_answer_and_by_place(domain: Domain) -> None:
    for problem in problems(domain, "test", 50):
        text = answer(problem, DRAFT, random.Random(problem.id))
        said = judge(problem, f"{text[: -len(problem.answer)]}#")
        assert said == Judgement(False, len(text) - len(problem.answer))
        assert judge(problem, f"{text}7") == Judgement(False, len(text))


def test_a_slip_that_is_taken_back_has_a_place_but_leaves_the_answer_right() -> None:
    for domain in DOMAINS:
        chosen = problems(domain, "train", 40)
        texts = [answer(p, TARGET, random.Random(p.id), corrections=1.0) for p in chosen]
        judged = judge_many(chosen, texts)
        assert all(said.correct for said in judged), domain
        assert all(said.departure is not None for said in judged), domain


# --- answers read off a text -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("So it is. Answer: 12", "12"),
        ("Answer: 12\n", "12"),
        ("Answer: 1. No. Answer: 2", "2"),
        ("Answer: 12 apples", None),
        ("Answer:", None),
        ("answer: 12", None),
        ("12", None),
        ("", None),
    ],
)
def test_only_the_closing_answer_counts(text: str, found: str | None) -> None:
    assert final_answer(text) == found


def test_a_text_cut_off_is_not_right_though_nowhere_wrong() -> None:
    problem = problems("math", "test", 1)[0]
    text = answer(problem, TARGET, random.Random(0))
    assert judge(problem, text[:30]) == Judgement(False, 30)


def test_as_many_texts_as_problems_are_needed() -> None:
    chosen = problems("math", "test", 2)
    with pytest.raises(ValueError):
        score(chosen, ["Answer: 1"])


def test_a_program_begins_behind_the_last_thing_taken_back() -> None:
    right = "def solve(x):\n    return x"
    for line in APOLOGIES:
        assert final_program(f"def solve(x):\n    return -\n{line}\n{right}") == right
    assert final_program(right) == right
    assert final_program(f"a\n{APOLOGIES[0]}\nb\n{APOLOGIES[1]}\n{right}") == right
    rubbish = "a\n" + f"{APOLOGIES[0]}\n" * 3 + right
    assert final_program(rubbish) == rubbish


# --- the first wrong token -------------------------------------------------------------------


def first_by_definition(
    right: Sequence[str], ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> int | None:
    """The first token behind which the text, as far as it goes, begins no right text; an end token
    is wrong where the text before it is not a right one."""
    for index, token in enumerate(ids):
        before = tokenizer.decode(ids[:index])
        if token == tokenizer.eos_token_id:
            return None if before in right else index
        text = tokenizer.decode(ids[: index + 1])
        if not any(r.startswith(text) for r in right):
            return index
    return None


SMALL = Problem(
    domain="math",
    key="small",
    prompt="?",
    solution=(
        seq(pick("so", "So ", "Then ", "This "), pick("who", "Mia", "she", "the girl")),
        seq(" has ", pick("sum", "12 + 3", "3 + 12", "12 plus 3"), " = 15 apples. "),
        "Answer: 15",
    ),
    slips=(),
    apologies="",
    answer="15",
)
SMALL_TEXTS = [
    f"{so}{who} has {sum_} = 15 apples. Answer: 15"
    for so in ("So ", "Then ", "This ")
    for who in ("Mia", "she", "the girl")
    for sum_ in ("12 + 3", "3 + 12", "12 plus 3")
]


def spoilt(ids: list[int], rng: random.Random, size: int) -> list[int]:
    """The ids with one token replaced, inserted, doubled or lost, or with the end cut off."""
    place, new = rng.randrange(len(ids)), rng.randrange(size)
    before, token, behind = ids[:place], ids[place], ids[place + 1 :]
    middle = rng.choice(([new], [new, token], [token, token], [], None))
    return before if middle is None else [*before, *middle, *behind]


def test_the_first_wrong_token_is_the_one_of_the_definition(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """1,000 spoilt answers of a problem whose right answers can all be listed."""
    rng = random.Random(0)
    seen = set()
    for _ in range(1000):
        text = rng.choice(SMALL_TEXTS)
        ids = [*tokenizer(text).input_ids, tokenizer.eos_token_id]
        ids = spoilt(ids, rng, len(tokenizer)) if rng.random() < 0.9 else ids
        ids = [i for i in ids[:-1] if i != tokenizer.eos_token_id] + ids[-1:]
        expected = first_by_definition(SMALL_TEXTS, ids, tokenizer)
        assert first_wrong_token(SMALL, ids, tokenizer) == expected, tokenizer.decode(ids)
        seen.add(expected)
    assert None in seen and 0 in seen and len(seen) > 15


@pytest.mark.parametrize("domain", DOMAINS)
def test_right_answers_have_no_wrong_token_and_ended_early_have_one(
    domain: Domain, tokenizer: PreTrainedTokenizerBase
) -> None:
    rng = random.Random(0)
    for problem in problems(domain, "test", 40):
        ids = tokenizer(answer(problem, HUMAN, rng)).input_ids
        cut = rng.randrange(len(ids))
        end = tokenizer.eos_token_id
        assert first_wrong_token(problem, [*ids, end], tokenizer) is None
        assert first_wrong_token(problem, ids, tokenizer) is None
        assert first_wrong_token(problem, ids[:cut], tokenizer) is None
        if departure(problem.solution, tokenizer.decode(ids[:cut])) is not None:
            assert first_wrong_token(problem, [*ids[:cut], end], tokenizer) == cut


@pytest.mark.parametrize("domain", DOMAINS)
def test_all_before_the_first_wrong_token_is_right_and_with_it_is_not(
    domain: Domain, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Polarity and position: what stands before it begins a right answer, what it ends does not."""
    for problem in problems(domain, "train", 40):
        for text in slipped(problem, random.Random(problem.id)):
            ids = tokenizer(text).input_ids
            place = first_wrong_token(problem, ids, tokenizer)
            if place is None:
                continue
            before, with_it = (tokenizer.decode(ids[:n]) for n in (place, place + 1))
            assert departure(problem.solution, before) == len(before)
            assert departure(problem.solution, with_it) not in (None, len(with_it))


def test_nothing_and_an_end_at_once(tokenizer: PreTrainedTokenizerBase) -> None:
    assert first_wrong_token(SMALL, [], tokenizer) is None
    assert first_wrong_token(SMALL, [tokenizer.eos_token_id], tokenizer) == 0


def test_a_wrong_digit_inside_a_number_is_the_wrong_token(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Digits are tokens of their own, so "15" read as "16" goes wrong at the 6."""
    text = "So she has 12 + 3 = 16 apples. Answer: 16"
    ids = tokenizer(text).input_ids
    place = first_wrong_token(SMALL, ids, tokenizer)
    assert place is not None
    assert tokenizer.decode(ids[:place]) == "So she has 12 + 3 = 1"
    assert tokenizer.decode([ids[place]]) == "6"


def test_what_comes_behind_a_whole_answer_is_wrong(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer(SMALL_TEXTS[0]).input_ids
    more = [*ids, *tokenizer(" So").input_ids, tokenizer.eos_token_id]
    assert first_wrong_token(SMALL, more, tokenizer) == len(ids)


# --- for the reader --------------------------------------------------------------------------


def test_marked_shows_where_a_text_goes_wrong() -> None:
    assert marked(SMALL, SMALL_TEXTS[0]) == SMALL_TEXTS[0]
    assert marked(SMALL, "So Mia had") == "So Mia ha⟦d"
    assert marked(replace(SMALL, solution=("a",)), "") == "⟦"


def test_a_changed_digit_is_a_mistake() -> None:
    """From the changed digit on, never before it."""
    for problem in problems("math", "test", 60):
        text = answer(problem, TARGET, random.Random(problem.id))
        changed = with_a_digit_changed(text)
        places = [i for i, (a, b) in enumerate(zip(text, changed, strict=True)) if a != b]
        place = departure(problem.solution, changed)
        assert len(places) == 1 and changed[places[0]].isdigit()
        assert place is not None and place >= places[0]


def test_a_text_without_digits_has_none_to_change() -> None:
    with pytest.raises(ValueError, match="a text with a digit to change, got 'none here'"):
        with_a_digit_changed("none here")


@pytest.mark.parametrize("ask", [score, judge_many])
def test_problems_and_texts_must_belong_together(ask: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="one text for each of the 1 problems, got 2"):
        ask([SMALL], ["a", "b"])


def test_every_skill_is_known_by_its_name() -> None:
    """The names are what a corpus leaves out: skills, reductions and the condition."""
    assert {s.name for s in (*FILTERS, *MAPS, *WORD_FILTERS, *WORD_MAPS)} < set(code.NAMES)
    assert {r.name for r in (*code.NUMBER_REDUCES, *code.WORD_REDUCES)} < set(code.NAMES)
