"""A problem of the sandbox: what is asked, every right answer, and which split it belongs to."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from judgelib.sandbox.grammar import Node

Domain = Literal["math", "code", "facts"]
Split = Literal["train", "validation", "test"]
Instance: TypeAlias = "tuple[str, Callable[[], Problem]]"
"""A drawn instance: its key, which decides the split, and the problem, made only if wanted."""
DOMAINS: tuple[Domain, ...] = ("math", "code", "facts")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Problem:
    """One problem instance.

    `solution` holds the parts of a right answer in order; `slips[i](rng)` is part i with a
    mistake in it, `apologies` how an author takes a slip back before writing the part again.
    `answer` is the final answer (math: a number, facts: the option, code: nothing, since code is
    scored by running `cases`, pairs of arguments and the expected value).
    """

    domain: Domain
    key: str
    prompt: str
    solution: tuple[Node, ...]
    slips: tuple[Callable[[random.Random], Node], ...]
    apologies: Node
    answer: str = ""
    cases: tuple[tuple[tuple[object, ...], object], ...] = field(default=(), repr=False)

    @property
    def id(self) -> str:
        return f"{self.domain}-{_digest(self.key):016x}"

    @property
    def split(self) -> Split:
        return split_of(self.key)


def split_of(key: str) -> Split:
    """10% test, 10% validation, by a hash of the instance: no instance is ever in two splits."""
    bucket = _digest("split|" + key) % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def seeded(key: str) -> random.Random:
    """The generator for everything about an instance that is not its identity (its wording)."""
    return random.Random(_digest("wording|" + key))
