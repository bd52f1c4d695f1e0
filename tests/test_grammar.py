"""The grammar: what it writes it accepts, and it finds the first character that is wrong."""

from __future__ import annotations

import random
from itertools import product

import pytest

from judgelib.sandbox.grammar import (
    Choice,
    Lazy,
    Node,
    Seq,
    choices,
    count,
    departure,
    pick,
    seq,
    write,
)


class First:
    """A chooser that always takes the first option of a slot, or the n-th where it is told to."""

    def __init__(self, **taken: int) -> None:
        self.taken = taken

    def weights(self, slot: str, options: int) -> list[float]:
        return [float(number == self.taken.get(slot, 0)) for number in range(options)]


class Even:
    """A chooser without a preference."""

    def weights(self, slot: str, options: int) -> list[float]:
        return [1.0] * options


def derivations(node: Node) -> list[str]:
    """Every text of a grammar, once for each way to derive it."""
    if isinstance(node, str):
        return [node]
    if isinstance(node, Seq):
        return ["".join(parts) for parts in product(*map(derivations, node.parts))]
    return [text for option in node.options for text in derivations(option)]


def departure_by_search(node: Node, text: str) -> int | None:
    """The definition itself: the longest beginning of `text` that begins some right text."""
    right = set(derivations(node))
    if text in right:
        return None
    return max(n for n in range(len(text) + 1) if any(r.startswith(text[:n]) for r in right))


def random_grammar(rng: random.Random, depth: int) -> Node:
    """Few letters and short words, so that alternatives often begin alike; empty words too."""
    kind = rng.random()
    if depth == 0 or kind < 0.3:
        return "".join(rng.choice("ab") for _ in range(rng.randrange(4)))
    parts = [random_grammar(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    return seq(*parts) if kind < 0.6 else pick("slot", *parts)


GREETING = seq(pick("hello", "good day", "good evening", "go"), ", ", pick("whom", "Ada", "Adam"))


def test_lazy_options_are_the_same_and_only_the_taken_one_is_made() -> None:
    made: list[tuple[str, int]] = []

    def make(word: str, times: int) -> Node:
        made.append((word, times))
        return pick("end", word * times, word * times + "!")

    arguments = [("ab", 1), ("ab", 2), ("b", 3)]
    lazy = Choice("slot", Lazy(make, arguments))
    plain = pick("slot", *(make(*each) for each in arguments))
    made.clear()
    chooser = First(slot=1, end=1)
    assert write(lazy, chooser, random.Random(0)) == "abab!" and made == [("ab", 2)]
    assert derivations(lazy) == derivations(plain)
    assert (count(lazy), choices(lazy)) == (count(plain), choices(plain)) == (6, 2)
    for text in ("abab!", "aba", "bbbb", ""):
        assert departure([lazy], text) == departure([plain], text)


def test_the_chooser_decides_what_is_written() -> None:
    rng = random.Random(0)
    assert write(GREETING, First(), rng) == "good day, Ada"
    assert write(GREETING, First(hello=2, whom=1), rng) == "go, Adam"


def test_options_are_written_as_often_as_their_weights_say() -> None:
    rng = random.Random(0)
    written = [write(GREETING, Even(), rng) for _ in range(6000)]
    shares = [written.count(text) / len(written) for text in derivations(GREETING)]
    assert len(set(written)) == 6
    # Four standard deviations of a share of 1/6 among 6000: a false alarm in 1 of 2600 seeds.
    assert all(abs(share - 1 / 6) < 4 * (5 / 36 / 6000) ** 0.5 for share in shares)


def test_whatever_is_written_is_right() -> None:
    rng = random.Random(1)
    for _ in range(300):
        grammar = random_grammar(rng, 3)
        assert departure([grammar], write(grammar, Even(), rng)) is None


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("good day, Ada", None),
        ("go, Adam", None),
        ("bad day, Ada", 0),
        (" good day, Ada", 0),
        ("good night, Ada", 5),
        ("good dax, Ada", 7),
        ("good day. Ada", 8),
        ("good day, Eve", 10),
        ("go, Adem", 6),
        ("go, Adamo", 8),
        ("go, Adax", 7),
        ("", 0),
        ("goo", 3),
        ("good day, ", 10),
        ("go, Ad", 6),
    ],
)
def test_a_mistake_is_found_where_it_begins(text: str, place: int | None) -> None:
    """At the start, in the middle, at the end, too long, too short."""
    assert departure([GREETING], text) == place


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("ac", None),
        ("abc", None),
        ("abcc", 3),
        ("abd", 2),
        ("ad", 1),
        ("ab", 2),
        ("abbc", None),
        ("abbbc", None),
        ("abbbbc", 4),
    ],
)
def test_alternatives_that_begin_alike_are_all_followed(text: str, place: int | None) -> None:
    """A reader that settled on the first option that fits ("a") would call "abc" wrong."""
    grammar = seq(pick("head", "a", "ab"), pick("middle", "", "b", "bb"), "c")
    assert departure([grammar], text) == place


def test_departure_agrees_with_its_definition_on_random_grammars() -> None:
    rng = random.Random(2)
    right = 0
    for _ in range(1500):
        grammar = random_grammar(rng, 3)
        text = "".join(rng.choice("ab") for _ in range(rng.randrange(8)))
        expected = departure_by_search(grammar, text)
        assert departure([grammar], text) == expected, (grammar, text)
        right += expected is None
    assert right > 50  # both outcomes are met


def test_the_parts_of_a_solution_are_read_one_after_the_other() -> None:
    parts = (pick("one", "a", "ab"), "c", pick("two", "d", "e"))
    assert departure(parts, "abce") is None
    assert departure(parts, "abcf") == 3
    assert departure((), "x") == 0


def test_count_is_the_number_of_derivations() -> None:
    rng = random.Random(3)
    for _ in range(200):
        grammar = random_grammar(rng, 3)
        assert count(grammar) == len(derivations(grammar))
    assert count(GREETING) == 6


def test_choices_are_those_of_the_longest_way() -> None:
    short, long = pick("a", "x", "y"), seq(pick("b", "x", "y"), pick("c", "x", "y"))
    assert choices("word") == 0
    assert choices(GREETING) == 2
    assert choices(seq(short, long)) == 3
    assert choices(pick("way", short, long)) == 3


def test_a_choice_of_one_option_is_none() -> None:
    forced = Choice("forced", ("only",))
    assert choices(forced) == 0
    assert choices(seq(forced, GREETING)) == 2
    assert departure([forced], write(forced, Even(), random.Random(0))) is None
