"""Thresholds: hand-computed choices, MAPIE's risk control, and the guarantee by simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from judgelib.thresholds import (
    FIXED,
    STRICT,
    Certificate,
    Rates,
    Simulation,
    Step,
    at_recall,
    certify,
    population,
    prompts_needed,
    rates,
    simulate_guarantee,
    smallest_alpha,
)

nan = math.nan

# --- by recall -------------------------------------------------------------------------------


def test_loosest_threshold_by_hand() -> None:
    """Ten unacceptable tokens at 0, .1, ... .9: nine of them lie at or below .8."""
    p = [*np.arange(10) / 10, 0.85, 0.7, 0.95]
    labels = [0] * 10 + [1] * 3
    assert at_recall(p, labels) == 0.8
    assert rates(p, labels, 0.8) == Rates(recall_unacceptable=0.9, accept_rate=2 / 3)
    assert at_recall(p, labels, 0.91) == at_recall(p, labels, 1.0) == 0.9
    assert at_recall(p, labels, 0.1) == 0.0
    assert rates(p, labels, FIXED) == Rates(0.6, 1.0)
    assert rates(p, labels, STRICT) == Rates(1.0, 0.0)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("recall", [0.07, 0.29, 0.9, 1.0])
def test_loosest_threshold_with_ties(seed: int, recall: float) -> None:
    """Against all candidates tried one by one, on a coarse grid of probabilities."""
    generator = np.random.default_rng(seed)
    p = generator.integers(0, 6, 100) / 5
    labels = np.arange(100) < generator.integers(1, 100)
    reaching = [t for t in np.arange(6) / 5 if rates(p, labels, t).recall_unacceptable >= recall]
    assert at_recall(p, labels, recall) == min(reaching)
    shuffled = generator.permutation(100)
    assert at_recall(p[shuffled], labels[shuffled], recall) == min(reaching)


def test_a_share_of_a_hundred_is_exact() -> None:
    """0.07 * 100 is above 7 in floating point; seven tokens are enough all the same."""
    assert at_recall(np.arange(100) / 100, np.zeros(100), 0.07) == 0.06


def test_a_share_of_nothing_is_nan() -> None:
    assert math.isnan(rates([0.3], [0], 0.5).accept_rate)
    assert math.isnan(rates([0.3], [1], 0.5).recall_unacceptable)


@pytest.mark.parametrize(
    ("p", "labels", "recall", "message"),
    [
        ([0.1, 0.2], [0, -1], 0.9, r"got -1: leave out ignored tokens"),
        ([0.1, 0.2], [1, 1], 0.9, "none of the 2 tokens is unacceptable"),
        ([], [], 0.9, "none of the 0 tokens"),
        ([0.1, nan], [0, 1], 0.9, "got nan"),
        ([0.1, 1.2], [0, 1], 0.9, "got 1.2"),
        ([0.1], [0, 1], 0.9, r"got \(1,\), \(2,\)"),
        ([0.1], [0.5], 0.9, "got 0.5"),
        ([0.1], [0], 0.0, "got 0.0"),
        ([0.1], [0], 1.1, "got 1.1"),
        ([0.1], [0], nan, "got nan"),
    ],
)
def test_labelled_tokens_are_checked(p: Any, labels: Any, recall: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        at_recall(p, labels, recall)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, nan])
def test_a_threshold_is_a_probability(threshold: float) -> None:
    with pytest.raises(ValueError, match="a threshold is a probability"):
        rates([0.1], [0], threshold)


# --- by risk control -------------------------------------------------------------------------


def decoder(
    lost: dict[float, int], prompts: int, calls: list[float]
) -> Callable[[float], np.ndarray]:
    """So many of the prompts lose at each threshold; notes the thresholds it is called with."""

    def losses_at(threshold: float) -> np.ndarray:
        calls.append(threshold)
        return np.arange(prompts) < lost[threshold]

    return losses_at


def certified(lost: dict[float, int], prompts: int = 100, **options: Any) -> Certificate:
    return certify(decoder(lost, prompts, []), list(lost), **{"alpha": 0.05, **options})


def test_the_loosest_certified_threshold_by_hand() -> None:
    """100 prompts, alpha 5%: 0 losses have p = .95^100 = .006, 1 loss .037, 2 losses .118."""
    calls: list[float] = []
    lost = {0.9: 0, 0.7: 1, 0.5: 2, 0.3: 0}
    result = certify(decoder(lost, 100, calls), list(lost), alpha=0.05)
    assert calls == [0.9, 0.7, 0.5]  # what lies behind a failure is never decoded
    assert (result.threshold, result.certified, result.strict) == (0.7, True, False)
    assert (result.prompts, result.alpha, result.confidence) == (100, 0.05, 0.95)
    p = [0.95**100, 0.95**100 + 100 * 0.05 * 0.95**99]
    p.append(p[1] + 4950 * 0.05**2 * 0.95**98)
    table = result.table()
    assert table.p_value.tolist() == pytest.approx(p)
    assert table.drop(columns="p_value").values.tolist() == [
        [0.9, 100, 0, True],
        [0.7, 100, 1, True],
        [0.5, 100, 2, False],
    ]
    assert result.prompts_needed(0.02) == prompts_needed(0.02, 0.95, 0.01)
    assert str(result) == (
        "Threshold 0.7 ensures with 95% confidence that at most 5% of prompts lose a right answer "
        "(1 of 100 did at 0.7, p = 0.037).\n"
        "If the share of losses stays 1%, 364 prompts would certify 2.5%."
    )


def test_strict_if_none_is_certified() -> None:
    result = certified({0.9: 3, 0.5: 0})
    assert (result.threshold, result.certified, result.strict) == (STRICT, False, True)
    assert result.steps == (Step(0.9, 100, 3, result.steps[0].p_value, False),)
    assert result.steps[0].p_value == pytest.approx(0.2578, abs=1e-4)
    assert str(result) == (
        "Strict decoding: no threshold ensures with 95% confidence that at most 5% of prompts lose "
        "a right answer (3 of 100 did at 0.9, p = 0.26).\n"
        "If the share of losses stays 3%, 361 prompts would certify 5%."
    )
    assert "no number of prompts would certify 5%." in str(certified({0.9: 7}))


def test_all_certified_and_strict_by_certificate() -> None:
    assert certified({0.9: 0, 0.5: 1}).threshold == 0.5
    only_strict = certified({1.0: 0, 0.9: 9})
    assert only_strict.certified and only_strict.strict


def test_confidence_decides() -> None:
    """At p = .037 one loss in 100 is certified with 95% confidence, and not with 97%."""
    assert certified({0.5: 1}, confidence=0.95).certified
    assert not certified({0.5: 1}, confidence=0.97).certified


def test_too_few_prompts_certify_nothing() -> None:
    assert not certified({0.5: 0}, prompts=58).certified
    assert certified({0.5: 0}, prompts=59).certified


@pytest.mark.parametrize("alpha", [0.02, 0.05, 0.2])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_mapie_certifies_the_same(alpha: float, confidence: float) -> None:
    """Its public controllers classify; the p-values and the fixed sequence underneath are the same.

    With 256 prompts, since it rounds losses up from their share, which a power of 2 makes exact.
    """
    from mapie.risk_control import control_fwer
    from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value

    generator = np.random.default_rng(0)
    lengths = set()
    for _ in range(30):
        lost = np.cumsum(generator.poisson(alpha * 50, size=8)).clip(max=256)
        values = compute_hoeffding_bentkus_p_value(lost / 256, 256, alpha, binary=True)[:, 0]
        accepted = control_fwer(values, 1 - confidence, "fixed_sequence")
        thresholds = np.linspace(0.9, 0.2, 8).tolist()
        result = certified(
            dict(zip(thresholds, lost.tolist(), strict=True)), 256, alpha=alpha,
            confidence=confidence,
        )  # fmt: skip
        steps = result.steps
        assert [step.certified for step in steps].count(True) == len(accepted)
        assert [step.p_value for step in steps] == pytest.approx(values[: len(steps)])
        lengths.add(len(accepted))
    assert len(lengths) >= 3


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("alpha", [0.05, 0.3])
@pytest.mark.parametrize("rate", [0, 0.01, 0.03])
def test_prompts_needed_one_by_one(alpha: float, rate: float, confidence: float) -> None:
    for prompts in itertools.count(1):
        losses = math.ceil(round(rate * prompts, 9))
        if binom.cdf(losses, prompts, alpha) <= 1 - confidence:
            break
    assert prompts_needed(alpha, confidence, rate) == prompts


def test_prompts_needed_has_limits() -> None:
    assert prompts_needed(0.05, 0.95, 0.05) is None
    assert prompts_needed(0.05, 0.95, 0.9) is None
    assert prompts_needed(0.05, 0.95, 0.0499999) is None  # trillions
    assert prompts_needed(0.05, 0.95, 0.049) == pytest.approx(
        128_000, rel=0.05
    )  # by the normal law


@pytest.mark.parametrize(("losses", "prompts"), [(0, 59), (1, 100), (9, 50), (49, 50)])
def test_smallest_alpha_is_the_border(losses: int, prompts: int) -> None:
    border = smallest_alpha(losses, prompts)
    assert certified({0.5: losses}, prompts, alpha=border * 1.0001).certified
    assert not certified({0.5: losses}, prompts, alpha=border * 0.9999).certified


def test_smallest_alpha_of_nothing_but_losses() -> None:
    assert smallest_alpha(7, 7) == 1.0
    assert smallest_alpha(0, 59, 0.9) == pytest.approx(1 - 0.1 ** (1 / 59))


@pytest.mark.parametrize("thresholds", [[], [0.5, 0.9], [0.9, 0.9], [1.2, 0.5], [0.9, nan]])
def test_thresholds_go_from_strict_to_loose(thresholds: list[float]) -> None:
    calls: list[float] = []
    with pytest.raises(ValueError, match="threshold"):
        certify(decoder({}, 10, calls), thresholds, alpha=0.05)
    assert calls == []  # refused before anything expensive


@pytest.mark.parametrize("name", ["alpha", "confidence"])
@pytest.mark.parametrize("value", [0.0, 1.0, 5, -0.1, nan])
def test_alpha_and_confidence_lie_between(name: str, value: float) -> None:
    options: dict[str, Any] = {"alpha": 0.05, name: value}
    with pytest.raises(ValueError, match=f"{name} lies between 0 and 1"):
        certified({0.9: 0}, **options)
    with pytest.raises(ValueError, match=f"{name} lies between 0 and 1"):
        prompts_needed(**options)
    with pytest.raises(ValueError, match=f"{name} lies between 0 and 1"):
        simulate_guarantee([[0]], prompts=1, **options)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([0, 2], "got 2"),
        ([0, nan], "got nan"),
        ([0, 0.5], "got 0.5"),
        ([], r"not empty, got \(0,\)"),
        ([[0, 1]], r"got \(1, 2\)"),
    ],
)
def test_losses_are_checked(losses: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"losses at threshold 0.9 .*{message}"):
        certify(lambda threshold: losses, [0.9], alpha=0.05)


def test_every_threshold_has_the_same_prompts() -> None:
    answers = iter([np.zeros(100), np.zeros(99)])
    with pytest.raises(ValueError, match="99 losses at threshold 0.5, but 100 at 0.9"):
        certify(lambda threshold: next(answers), [0.9, 0.5], alpha=0.05)


@pytest.mark.parametrize(("losses", "prompts"), [(-1, 5), (6, 5), (0, 0)])
def test_counts_that_cannot_be(losses: int, prompts: int) -> None:
    with pytest.raises(ValueError, match=f"{losses} of {prompts}"):
        smallest_alpha(losses, prompts)


@pytest.mark.parametrize("rate", [-0.1, 1.1, nan])
def test_a_loss_rate_is_a_share(rate: float) -> None:
    with pytest.raises(ValueError, match="loss_rate is a share"):
        prompts_needed(0.05, loss_rate=rate)


# --- whether the promise is kept -------------------------------------------------------------

# The true risk passes alpha = 5% by as little as it can between two thresholds: the hardest case.
RISKS = [0.004, 0.01, 0.02, 0.03, 0.0505, 0.07, 0.1, 0.2]
SETS = 1000
# P(more violations than this | the guarantee holds) < 1e-6: the false-alarm rate of these tests.
MOST = int(binom.isf(1e-6, SETS, 0.05))


def simulate(risks: list[float] = RISKS, prompts: int = 300, seed: int = 1) -> Simulation:
    losses = population(risks, 2000)
    return simulate_guarantee(losses, alpha=0.05, prompts=prompts, repeats=SETS, seed=seed)


def violations(simulation: Simulation, procedure: str) -> int:
    return int(simulation.table().set_index("procedure").violations[procedure])


def test_the_guarantee_holds() -> None:
    simulation = simulate()
    assert MOST == 86
    assert 10 <= violations(simulation, "certified") <= MOST  # it is nearly used up: the test bites
    assert (simulation.risks[simulation.certified] > 0.02).mean() > 0.1  # nor is it strict always


@pytest.mark.parametrize("risks", [[0.06], [0.0505] * 8, [0.1, 0.0, 0.2, 0.0], [0.2] * 30])
def test_the_guarantee_needs_no_order(risks: list[float]) -> None:
    """Equal risks, risks that rise and fall, many thresholds: still at most 5%."""
    assert violations(simulate(risks), "certified") <= MOST


def test_the_empirical_risk_breaks_it() -> None:
    """The same check notices the obvious procedure, many times over."""
    assert violations(simulate(), "empirical") > 4 * MOST


def test_testing_each_threshold_alone_would_break_it() -> None:
    """The loosest one with p <= 5% is wrong far too often among many: the sequence is needed."""
    generator = np.random.default_rng(0)
    lost = generator.binomial(300, 0.0505, size=(SETS, 30))  # independent, none of them acceptable
    assert (binom.cdf(lost, 300, 0.05) <= 0.05).any(axis=1).sum() > 4 * MOST


def test_simulated_choices_are_those_of_certify() -> None:
    """Both procedures again, one validation set at a time."""
    losses = np.random.default_rng(5).random((40, 6)) < np.linspace(0.0, 0.3, 6)
    options: dict[str, Any] = {"alpha": 0.2, "confidence": 0.8}
    simulation = simulate_guarantee(losses, prompts=30, repeats=50, seed=3, **options)
    drawn = np.random.default_rng(3).multinomial(30, np.full(40, 1 / 40), size=50)
    thresholds = np.linspace(0.9, 0.1, 6).tolist()
    for counts, certain, likely in zip(
        drawn, simulation.certified, simulation.empirical, strict=True
    ):
        rows = np.repeat(losses, counts, axis=0)
        columns = dict(zip(thresholds, rows.T, strict=True))
        result = certify(columns.__getitem__, thresholds, **options)
        assert ([STRICT, *thresholds][certain]) == result.threshold
        fine = [number for number, column in enumerate(rows.T, 1) if column.mean() <= 0.2]
        assert likely == max(fine, default=0)
    assert len(set(simulation.certified)) >= 3
    assert simulation.risks.tolist() == [0.0, *losses.mean(axis=0)]


def test_the_table_counts() -> None:
    simulation = Simulation(
        0.05, 0.9, np.array([0, 0.03, 0.05, 0.1]), np.array([0, 1, 2, 0]), np.array([3, 3, 2, 1])
    )
    assert simulation.table().to_dict("records") == [
        {"procedure": "certified", "sets": 4, "violations": 0, "allowed": pytest.approx(0.4),
         "strict": 2, "mean_risk": pytest.approx(0.02)},
        {"procedure": "empirical", "sets": 4, "violations": 2, "allowed": pytest.approx(0.4),
         "strict": 0, "mean_risk": pytest.approx(0.07)},
    ]  # fmt: skip


def test_a_simulation_is_repeatable() -> None:
    assert np.array_equal(simulate().certified, simulate().certified)
    assert not np.array_equal(simulate().certified, simulate(seed=2).certified)


def test_a_population_has_its_risks() -> None:
    losses = population([0.0, 0.25, 1.0], 8)
    assert losses.mean(axis=0).tolist() == [0.0, 0.25, 1.0]
    with pytest.raises(ValueError, match="risks are shares"):
        population([0.1, 1.1], 8)


@pytest.mark.parametrize(
    ("losses", "change", "message"),
    [
        ([0, 1], {}, r"shape \(prompts, thresholds\) .* got \(2,\)"),
        ([[0, 3]], {}, "got 3"),
        ([[0]], {"prompts": 0}, "got 0 and 1000"),
        ([[0]], {"repeats": 0}, "got 5 and 0"),
    ],
)
def test_a_simulation_is_checked(losses: Any, change: dict[str, int], message: str) -> None:
    options: dict[str, Any] = {"alpha": 0.05, "prompts": 5, **change}
    with pytest.raises(ValueError, match=message):
        simulate_guarantee(losses, **options)
