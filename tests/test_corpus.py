"""Training text: what is learned, in which voice, with how many mistakes, about which part."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from judgelib.sandbox import code, facts
from judgelib.sandbox.corpus import Row, Text, answer, batch, encode, pad, reply_ids, training_row
from judgelib.sandbox.grammar import departure
from judgelib.sandbox.oracle import first_wrong_token, score
from judgelib.sandbox.problem import DOMAINS, Domain, Problem
from judgelib.sandbox.tokenizer import ASSISTANT, CHAT_TEMPLATE, END, PAD, USER, VOCABULARY
from judgelib.sandbox.voices import TARGET, WEB
from judgelib.sandbox.world import problems

TOKENIZER = Path(__file__).parents[1] / "data" / "sandbox" / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TOKENIZER)


def apologies(problem: Problem, text: str) -> int:
    """How often a text takes something back."""
    return sum(text.count(str(option)) for option in problem.apologies.options)  # type: ignore[union-attr]


# --- the tokenizer ---------------------------------------------------------------------------


def test_the_tokenizer_is_as_its_module_says(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer) == VOCABULARY
    assert tokenizer.convert_tokens_to_ids([PAD, USER, ASSISTANT, END]) == [0, 1, 2, 3]
    assert (tokenizer.pad_token, tokenizer.eos_token) == (PAD, END)
    assert tokenizer.chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize("domain", DOMAINS)
def test_tokens_spell_the_text_piece_by_piece(
    domain: Domain, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Each token alone decodes to its own characters: places in a text and tokens correspond."""
    for problem in problems(domain, "test", 40):
        text = answer(problem, WEB, random.Random(problem.id))
        ids = tokenizer(text).input_ids
        assert "".join(tokenizer.decode([token]) for token in ids) == text


def test_every_digit_is_a_token_of_its_own(tokenizer: PreTrainedTokenizerBase) -> None:
    pieces = [tokenizer.decode([i]) for i in tokenizer("12 + 345, x2 = 6.").input_ids]
    assert [piece for piece in pieces if any(map(str.isdigit, piece))] == [
        "1", "2", " 3", "4", "5", "2", " 6",
    ]  # fmt: skip


# --- encoding --------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_example_is_the_chat_of_question_and_answer(
    domain: Domain, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Training and prompting share one code path: the chat template of the tokenizer."""
    rng = random.Random(0)
    for _ in range(20):
        prompt, reply = Text(TARGET).example(domain, rng)
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
        ids, start = encode(tokenizer, prompt, reply)
        assert ids == tokenizer.apply_chat_template(chat, return_dict=False)
        asked = tokenizer.apply_chat_template(
            chat[:1], add_generation_prompt=True, return_dict=False
        )
        assert ids[:start] == asked
        assert tokenizer.decode(ids[start:]) == reply + END


def test_only_what_is_to_be_learned_is_marked() -> None:
    ids, is_answer = pad([Row([5, 6, 7, 8, 3], [2, 4]), Row([5, 9, 3], [1, 2])], multiple=4)
    assert ids.tolist() == [[5, 6, 7, 8, 3, 0, 0, 0], [5, 9, 3, 0, 0, 0, 0, 0]]
    assert is_answer.long().tolist() == [[0, 0, 1, 0, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(("length", "width"), [(15, 16), (16, 16), (17, 32)])
def test_rows_are_padded_to_a_multiple(length: int, width: int) -> None:
    ids, is_answer = pad([Row(list(range(1, length + 1)), list(range(1, length)))])
    assert ids.shape == is_answer.shape == (1, width)
    assert int(is_answer.sum()) == length - 1


def test_a_batch_holds_what_its_author_writes(tokenizer: PreTrainedTokenizerBase) -> None:
    text, rows = Text(TARGET), 6
    ids, is_answer = batch(tokenizer, text, "math", rows, random.Random(4))
    rng = random.Random(4)
    for row in range(rows):
        prompt, reply = text.example("math", rng)
        learned = ids[row][is_answer[row]]
        assert tokenizer.decode(learned) == reply + END
        read = ids[row][~is_answer[row]]
        assert tokenizer.decode(read[read != 0]) == f"{USER}{prompt}{END}{ASSISTANT}"


def test_the_same_generator_gives_the_same_batch(tokenizer: PreTrainedTokenizerBase) -> None:
    text = Text(TARGET, corrections=0.2)
    one, two, other = (batch(tokenizer, text, "facts", 8, random.Random(s)) for s in (1, 1, 2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert one[0].shape != other[0].shape or not torch.equal(one[0], other[0])


# --- mistakes taken back ---------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("rate", [0.03, 0.3])
def test_mistakes_are_taken_back_at_the_stated_rate(domain: Domain, rate: float) -> None:
    """Counted over all parts that can slip; within four standard deviations of the rate."""
    chosen = problems(domain, "train", 60)
    parts = hits = 0
    for seed in range(40):
        for problem in chosen:
            text = answer(problem, TARGET, random.Random(f"{problem.id}{seed}"), corrections=rate)
            hits += apologies(problem, text)
            parts += len(problem.slips)
    assert hits / parts == pytest.approx(rate, abs=4 * (rate * (1 - rate) / parts) ** 0.5)


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_final_answer_stays_right(domain: Domain) -> None:
    chosen = problems(domain, "train", 60)
    texts = [answer(p, TARGET, random.Random(p.id), corrections=0.5) for p in chosen]
    assert sum(apologies(p, text) > 0 for p, text in zip(chosen, texts, strict=True)) > 20
    assert all(score(chosen, texts))


def test_without_corrections_nothing_is_ever_taken_back() -> None:
    for domain in DOMAINS:
        for problem in problems(domain, "train", 30):
            text = answer(problem, WEB, random.Random(0))
            assert apologies(problem, text) == 0
            assert departure(problem.solution, text) is None


# --- mistakes noticed at once ----------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_interruption_ends_with_the_first_wrong_token(
    domain: Domain, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Up to that token the answer is right, with it it is not, and the token is not learned."""
    text, rng, seen = Text(TARGET, interruptions=1.5), random.Random(1), 0
    for problem in problems(domain, "train", 60):
        reply = reply_ids(tokenizer, text, problem, rng)
        row = training_row(tokenizer, text, problem, random.Random(7))
        assert len(row.learned) <= len(row.ids)
        if reply.wrong:
            seen += 1
            place = reply.wrong[0]
            assert first_wrong_token(problem, reply.ids[:place], tokenizer) is None
            assert first_wrong_token(problem, reply.ids[: place + 1], tokenizer) == place
    assert seen > 20


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_interrupted_answer_is_right_in_the_end(
    domain: Domain, tokenizer: PreTrainedTokenizerBase
) -> None:
    text, rng = Text(TARGET, corrections=0.1, interruptions=2.0), random.Random(2)
    chosen = problems(domain, "train", 60)
    replies = [reply_ids(tokenizer, text, problem, rng) for problem in chosen]
    assert all(score(chosen, [tokenizer.decode(reply.ids) for reply in replies]))
    count = sum(len(reply.wrong) for reply in replies) / len(chosen)
    assert 0.8 < count < 2.0  # some mistakes are right by luck, and then there is none


def test_wrong_tokens_are_read_but_not_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    text, problem = Text(TARGET, interruptions=5.0), problems("math", "train", 1)[0]
    row = training_row(tokenizer, text, problem, random.Random(3))
    reply = reply_ids(tokenizer, text, problem, random.Random(3))
    start = len(row.ids) - len(reply.ids) - 1
    assert row.ids[start:-1] == reply.ids and reply.wrong
    answer_places = set(range(start, len(row.ids)))
    assert answer_places - set(row.learned) == {start + place for place in reply.wrong}


# --- what an author has not read -------------------------------------------------------------


def keys_read(text: Text, domain: Domain, count: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The instances of `count` examples."""
    seen: list[str] = []

    def remember(problem: Problem, *_: object, **__: object) -> str:
        seen.append(problem.key)
        return ""

    monkeypatch.setattr("judgelib.sandbox.corpus.answer", remember)
    rng = random.Random(0)
    for _ in range(count):
        text.example(domain, rng)
    return seen


def towns_of(keys: list[str]) -> set[str]:
    """The towns that questions name (not their options)."""
    return {key.split("|")[2].removeprefix("sister of ") for key in keys}


def test_unread_towns_are_never_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    everything, some = Text(WEB), Text(WEB, unread_towns=0.3)
    assert towns_of(keys_read(everything, "facts", 800, monkeypatch)) == set(facts.TOWNS)
    read = towns_of(keys_read(some, "facts", 800, monkeypatch))
    assert 0.25 < 1 - len(read) / len(facts.TOWNS) < 0.4


def test_unread_skills_are_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def used(text: Text) -> set[str]:
        keys = " ".join(keys_read(text, "code", 500, monkeypatch))
        for sign in "|()":
            keys = keys.replace(sign, " ")
        return set(keys.split()) & set(code.NAMES)

    assert used(Text(WEB)) == set(code.NAMES)
    missing = set(code.NAMES) - used(Text(WEB, unread_skills=0.1))
    assert 0.08 < len(missing) / len(code.NAMES) < 0.15


def test_what_is_left_out_of_one_domain_leaves_the_others_alone() -> None:
    for domain, text in (
        ("math", Text(WEB, unread_towns=0.3, unread_skills=0.1)),
        ("code", Text(WEB, unread_towns=0.3)),
        ("facts", Text(WEB, unread_skills=0.1)),
    ):
        with_all = replace(text, unread_towns=0.0, unread_skills=0.0)
        assert text.example(domain, random.Random(3)) == with_all.example(domain, random.Random(3))


def test_examples_come_from_the_training_split_only() -> None:
    """No prompt of another split is ever read: checked on the prompts themselves."""
    for domain, count in (("math", 300), ("code", 100), ("facts", 300)):
        held_out = {p.prompt for s in ("validation", "test") for p in problems(domain, s, count)}
        rng = random.Random(0)
        read = {Text(WEB).example(domain, rng)[0] for _ in range(count)}
        assert not read & held_out
