"""Sampling: the target's distribution, and texts that depend on their seed alone."""

from __future__ import annotations

import checks
import pytest
import torch

from judgelib.rules import Match, RandomAccept, Rule, SpeculativeSampling, TopK


@pytest.mark.parametrize("top_p", [1.0, 0.8])
@pytest.mark.parametrize("kind", ["model", "text"])
def test_speculative_sampling_has_the_targets_distribution(kind: str, top_p: float) -> None:
    checks.sampling_is_exact(kind=kind, top_p=top_p)


def test_match_has_the_targets_distribution() -> None:
    checks.sampling_is_exact(Match())


def test_a_lossy_rule_has_not() -> None:
    """The check has teeth: accepting ever so little more is noticed."""
    with pytest.raises(AssertionError):
        checks.sampling_is_exact(SpeculativeSampling() | RandomAccept(0.5))


@pytest.mark.parametrize(
    "rule",
    [SpeculativeSampling(), Match(), SpeculativeSampling() | TopK(2) | RandomAccept(0.3)],
    ids=str,
)
def test_seeds_decide(pair: checks.Pair, rule: Rule) -> None:
    checks.seeds_decide(pair, rule)


def test_chi_squared_has_its_false_alarm_rate() -> None:
    """Counts drawn from the expected distribution itself: 5% of p-values lie below 0.05."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(40, generator=generator).double() + 0.1
    cells /= cells.sum()
    low = 0
    for _ in range(1000):
        draws = torch.multinomial(cells, 2000, replacement=True, generator=generator)
        seen = torch.bincount(draws, minlength=40).double()
        low += checks.chi_squared_p_value(seen, 2000 * cells) < 0.05
    assert 25 <= low <= 80  # 50 expected; either bound is more than three standard errors away


def test_chi_squared_refuses_what_cannot_happen() -> None:
    seen, expected = torch.tensor([99.0, 1.0]), torch.tensor([100.0, 0.0])
    assert checks.chi_squared_p_value(seen, expected) == 0.0
