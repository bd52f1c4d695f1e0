"""Drawing problems from the sandbox: any number, any split, never the same one twice."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import combinations, islice
from statistics import median

import pandas as pd

from judgelib.sandbox import code, facts, math
from judgelib.sandbox.grammar import Seq, choices, count
from judgelib.sandbox.problem import DOMAINS, SPLITS, Domain, Instance, Problem, Split, split_of

_ENOUGH_REPEATS = 10_000
"""So many known problems in a row mean that a split is used up."""

_DRAW: dict[Domain, Callable[[random.Random], Instance]] = {
    "math": math.instance,
    "code": code.instance,
    "facts": facts.instance,
}


def draw(domain: Domain, split: Split, rng: random.Random) -> Problem:
    """One random problem of a split.

    Held-out questions of math name everybody (see `math.is_named`), so that no prompt of theirs
    is also one of the training split.
    """
    if domain not in DOMAINS or split not in SPLITS:
        raise ValueError(
            f"expected a domain of {DOMAINS} and a split of {SPLITS}, got {domain!r}, {split!r}"
        )
    while True:
        key, make = _DRAW[domain](rng)
        if split_of(key) != split:
            continue
        problem = make()
        if split == "train" or domain != "math" or math.is_named(problem):
            return problem


def problems(domain: Domain, split: Split, count: int, *, seed: int = 0) -> list[Problem]:
    """`count` different problems; a larger count begins with the same problems."""
    if count < 1:
        raise ValueError(f"expected a number of problems of at least 1, got {count}")
    rng = random.Random(f"{domain}|{split}|{seed}")
    return list(islice(_distinct(domain, split, rng), count))


def _distinct(domain: Domain, split: Split, rng: random.Random) -> Iterator[Problem]:
    seen: set[str] = set()
    repeats = 0
    while repeats < _ENOUGH_REPEATS:
        problem = draw(domain, split, rng)
        repeats = repeats + 1 if problem.key in seen else 0
        if not repeats:
            seen.add(problem.key)
            yield problem
    raise ValueError(
        f"{domain} has hardly more than the {len(seen)} {split} problems already drawn; "
        "ask for fewer"
    )


def census(*, sample: int = 200, seed: int = 0) -> pd.DataFrame:
    """How rich the world is, from `sample` problems: one row a domain.

    Columns: domain, made_of (what its problems are made of), choices_per_answer (free choices of
    wording on the longest way through an answer, median), wordings_per_answer (right answers to
    one question, counted once per way to choose them, median).
    """
    made_of = {
        "math": f"{len(math.TEMPLATES)} templates of two to five steps",
        "code": f"{len(code.NAMES)} composable skills",
        "facts": f"{len(facts.knowledge())} facts in {len(facts.RELATIONS)} relations",
    }
    rows = []
    for domain in DOMAINS:
        drawn = problems(domain, "train", sample, seed=seed)
        grammars = [Seq(problem.solution) for problem in drawn]
        rows.append(
            {
                "domain": domain,
                "made_of": made_of[domain],
                "choices_per_answer": median(choices(grammar) for grammar in grammars),
                "wordings_per_answer": median(count(grammar) for grammar in grammars),
            }
        )
    return pd.DataFrame(rows)


def shared_prompts(*, sample: int, seed: int = 0) -> dict[str, int]:
    """Prompts that two splits have in common, among `sample` of each domain and split."""
    prompts = {
        split: {p.prompt for d in DOMAINS for p in problems(d, split, sample, seed=seed)}
        for split in SPLITS
    }
    pairs = combinations(SPLITS, 2)
    return {f"{a} and {b}": len(prompts[a] & prompts[b]) for a, b in pairs}
