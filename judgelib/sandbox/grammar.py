"""Every right way to write a solution, as a small grammar.

One object serves both ends of the sandbox: *writing* (a voice picks an option at each choice)
and *judging* (the first character at which a text stops being the beginning of any right
solution). A grammar is finite and without recursion, so both are exact.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any, Protocol, TypeAlias

Node: TypeAlias = "str | Seq | Choice"


class Chooser(Protocol):
    """Anything with a preference among the options of a slot (see `voices.Voice`)."""

    def weights(self, slot: str, options: int) -> list[float]: ...


@dataclass(frozen=True)
class Seq:
    """The parts, one after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """Exactly one of the options, all equally right; `slot` names the decision."""

    slot: str
    options: tuple[Node, ...] | Lazy


@dataclass(frozen=True)
class Lazy:
    """Options that are made whenever they are read: number i is `make(*arguments[i])`.

    A writer takes one of them, so a problem with many costs no more than a problem with few.
    """

    make: Callable[..., Node]
    arguments: Sequence[tuple[Any, ...]]

    def __len__(self) -> int:
        return len(self.arguments)

    def __getitem__(self, index: int) -> Node:
        return self.make(*self.arguments[index])

    def __iter__(self) -> Iterator[Node]:
        return starmap(self.make, self.arguments)


def seq(*parts: Node) -> Seq:
    return Seq(parts)


def pick(slot: str, *options: Node) -> Choice:
    return Choice(slot, options)


def write(node: Node, voice: Chooser, rng: random.Random) -> str:
    """One text of the grammar, its choices drawn from the voice."""
    if isinstance(node, str):
        return node
    if isinstance(node, Seq):
        return "".join(write(part, voice, rng) for part in node.parts)
    weights = voice.weights(node.slot, len(node.options))
    return write(rng.choices(node.options, weights)[0], voice, rng)


def count(node: Node) -> int:
    """How many derivations the grammar has (texts, counted once per way to choose them)."""
    if isinstance(node, str):
        return 1
    if isinstance(node, Seq):
        product = 1
        for part in node.parts:
            product *= count(part)
        return product
    return sum(count(option) for option in node.options)


def choices(node: Node) -> int:
    """How many decisions between two or more options the longest way through the grammar takes."""
    if isinstance(node, str):
        return 0
    if isinstance(node, Seq):
        return sum(choices(part) for part in node.parts)
    free = len(node.options) > 1
    return free + max(choices(option) for option in node.options)


def _advance(node: Node, text: str, starts: set[int]) -> tuple[set[int], int]:
    """(ends, reach): where the node can end when begun at `starts`, and how far text agrees."""
    if isinstance(node, str):
        ends, reach = set(), 0
        for start in starts:
            agreed = _common_prefix(node, text, start)
            reach = max(reach, start + agreed)
            if agreed == len(node):
                ends.add(start + agreed)
        return ends, reach
    if isinstance(node, Seq):
        reach = max(starts, default=0)
        for part in node.parts:
            starts, seen = _advance(part, text, starts)
            reach = max(reach, seen)
            if not starts:
                break
        return starts, reach
    results = [_advance(option, text, starts) for option in node.options]
    return set().union(*(ends for ends, _ in results)), max(reach for _, reach in results)


def _common_prefix(literal: str, text: str, start: int) -> int:
    if text.startswith(literal, start):
        return len(literal)
    length = 0
    for a, b in zip(literal, text[start : start + len(literal)], strict=False):
        if a != b:
            break
        length += 1
    return length


def departure(nodes: Iterable[Node], text: str) -> int | None:
    """The character index at which `text` leaves every right solution; None if it is one.

    An index of `len(text)` means that all of the text is right but that it stops too early.
    """
    ends, reach = _advance(Seq(tuple(nodes)), text, {0})
    return None if len(text) in ends else reach
