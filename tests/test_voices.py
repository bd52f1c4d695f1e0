"""Voices: stable authors, kinship, and how soon two authors part company."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import mean

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from judgelib.sandbox.grammar import Node, Seq
from judgelib.sandbox.problem import DOMAINS, Domain
from judgelib.sandbox.voices import DRAFT, EXPERT, HUMAN, TARGET, WEB, Voice
from judgelib.sandbox.world import problems

TOKENIZER = Path(__file__).parents[1] / "data" / "sandbox" / "tokenizer"
AUTHORS = (TARGET, DRAFT, EXPERT, HUMAN)
SLOTS = [f"slot {number}" for number in range(1000)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TOKENIZER)


def favourite(voice: Voice, slot: str, options: int) -> int:
    weights = voice.weights(slot, options)
    return weights.index(max(weights))


def alike(one: Voice, two: Voice) -> float:
    """Share of slots of four options that both rank in the same order."""
    return mean(one.weights(slot, 4) == two.weights(slot, 4) for slot in SLOTS)


@pytest.mark.parametrize("voice", [*AUTHORS, WEB], ids=lambda voice: voice.name)
def test_weights_fall_geometrically_with_the_rank(voice: Voice) -> None:
    weights = sorted(voice.weights("math.opener", 5), reverse=True)
    assert weights == pytest.approx([voice.spread**rank for rank in range(5)])


def test_a_voice_is_the_same_author_whenever_it_is_asked() -> None:
    again = Voice(TARGET.name, TARGET.spread)
    assert all(again.weights(slot, 4) == TARGET.weights(slot, 4) for slot in SLOTS)


def test_strangers_agree_by_chance_only() -> None:
    """4! = 24 rankings: 1/24 of 1000 slots, four standard deviations are 2.5 points."""
    for one, two in combinations((TARGET, EXPERT, HUMAN), 2):
        leveled = replace(two, spread=one.spread)
        assert alike(one, leveled) == pytest.approx(1 / 24, abs=0.026)


def test_kin_share_the_stated_part_of_their_slots() -> None:
    """60% and, of the rest, 1/24 by chance; four standard deviations are 6 points."""
    assert DRAFT.kin == TARGET.name and DRAFT.spread == TARGET.spread
    shared = DRAFT.shared
    assert alike(DRAFT, TARGET) == pytest.approx(shared + (1 - shared) / 24, abs=0.062)


# --- parting company -------------------------------------------------------------------------


def read_along(node: Node, writer: Voice, reader: Voice, rng: random.Random) -> tuple[str, int]:
    """A text by `writer`, and at how many of its choices `reader` would have gone another way."""
    if isinstance(node, str):
        return node, 0
    if isinstance(node, Seq):
        parts = [read_along(part, writer, reader, rng) for part in node.parts]
        return "".join(text for text, _ in parts), sum(n for _, n in parts)
    size = len(node.options)
    taken = rng.choices(range(size), writer.weights(node.slot, size))[0]
    wanted = node.options[favourite(reader, node.slot, size)]
    text, below = read_along(node.options[taken], writer, reader, rng)
    return text, below + (node.options[taken] != wanted)


def tokens_per_parting(
    domain: Domain, writer: Voice, reader: Voice, tokenizer: PreTrainedTokenizerBase
) -> float:
    rng = random.Random(0)
    written = [
        read_along(Seq(problem.solution), writer, reader, rng)
        for problem in problems(domain, "test", 60)
    ]
    tokens = sum(len(tokenizer(text).input_ids) for text, _ in written)
    return tokens / sum(partings for _, partings in written)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("writer", [EXPERT, HUMAN], ids=lambda voice: voice.name)
def test_strangers_part_company_every_few_tokens(
    domain: Domain, writer: Voice, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert 2 < tokens_per_parting(domain, writer, TARGET, tokenizer) < 9


@pytest.mark.parametrize("domain", DOMAINS)
def test_kin_part_company_later_than_strangers(
    domain: Domain, tokenizer: PreTrainedTokenizerBase
) -> None:
    kin = tokens_per_parting(domain, DRAFT, TARGET, tokenizer)
    assert kin > 1.2 * tokens_per_parting(domain, HUMAN, TARGET, tokenizer)
