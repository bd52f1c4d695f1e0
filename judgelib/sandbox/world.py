"""Drawing problems from the sandbox: any number, any split, never the same one twice."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from judgelib.sandbox import code, facts, math
from judgelib.sandbox.problem import DOMAINS, SPLITS, Domain, Problem, Split

_DRAW: dict[Domain, Callable[[random.Random], Problem]] = {
    "math": math.problem,
    "code": code.problem,
    "facts": facts.problem,
}


def draw(domain: Domain, split: Split, rng: random.Random) -> Problem:
    """One random problem of a split."""
    if domain not in DOMAINS or split not in SPLITS:
        raise ValueError(
            f"expected a domain of {DOMAINS} and a split of {SPLITS}, got {domain!r}, {split!r}"
        )
    while True:
        problem = _DRAW[domain](rng)
        if problem.split == split:
            return problem


def problems(domain: Domain, split: Split, count: int, *, seed: int = 0) -> list[Problem]:
    """`count` different problems; a larger count begins with the same problems."""
    if count < 1:
        raise ValueError(f"expected a number of problems of at least 1, got {count}")
    rng = random.Random(f"{domain}|{split}|{seed}")
    return [problem for problem, _ in zip(_distinct(domain, split, rng), range(count))]  # noqa: B905


def _distinct(domain: Domain, split: Split, rng: random.Random) -> Iterator[Problem]:
    seen: set[str] = set()
    while True:
        problem = draw(domain, split, rng)
        if problem.key not in seen:
            seen.add(problem.key)
            yield problem
