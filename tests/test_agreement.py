"""Agreement of two annotators: published worked examples, the package, degenerate cases."""

from __future__ import annotations

import math
from typing import Any

import krippendorff
import numpy as np
import pytest

from judgelib.agreement import UNSURE, Decision, Disagreement, agreement, token_alpha


def by_item(decisions: list[Decision]) -> dict[str, Decision]:
    return {f"q{number}": decision for number, decision in enumerate(decisions)}


def reference(a: list[float], b: list[float]) -> float:
    return float(krippendorff.alpha(np.array([a, b]), level_of_measurement="nominal"))


def test_krippendorffs_example_with_nominal_data() -> None:
    """Computing Krippendorff's Alpha-Reliability (2011), B: twelve units, 0.692; here 0 = a etc."""
    meg = [0, 0, 1, 1, 3, 2, 2, 2, 4, 3, 3, 0]
    owen = [0, 1, 1, 1, 1, 2, 2, 2, 4, 3, 3, 3]
    result = agreement(by_item([*meg]), by_item([*owen]))
    assert result.alpha == pytest.approx(0.692, abs=5e-4)
    assert (result.items, result.same_position, result.same_verdict) == (12, 9, 12)
    assert [unit.item for unit in result.disagreements] == ["q1", "q4", "q11"]


def test_krippendorffs_example_with_binary_data() -> None:
    """The same, A: ten units, 0.095; tokens that one annotator left out change nothing."""
    meg = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    owen = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert token_alpha(meg, owen) == pytest.approx(0.095, abs=5e-4)
    assert token_alpha([*meg, 1, -1, -1], [*owen, -1, 0, -1]) == token_alpha(meg, owen)


@pytest.mark.parametrize("seed", range(5))
def test_alpha_is_that_of_the_package(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a = generator.integers(-1, 7, 40)
    b = np.where(generator.random(40) < 0.6, a, generator.integers(-1, 7, 40))
    unsure = generator.random((2, 40)) < 0.2
    decided = np.where(unsure, np.nan, [a, b])

    def decisions(row: int) -> dict[str, Decision]:
        values: list[Decision] = [
            UNSURE if math.isnan(x) else None if x < 0 else int(x) for x in decided[row]
        ]
        return by_item(values)

    expected = reference(*decided.tolist())
    assert agreement(decisions(0), decisions(1)).alpha == pytest.approx(expected, abs=1e-12)
    labels = np.where(decided >= 0, decided % 2, -1)
    expected = reference(*np.where(labels < 0, np.nan, labels).tolist())
    assert token_alpha(*labels) == pytest.approx(expected, abs=1e-12)


def test_what_is_counted() -> None:
    a: dict[str, Decision] = {"w": 3, "x": None, "y": 5, "z": UNSURE, "u": None, "only a": 1}
    b: dict[str, Decision] = {"u": None, "y": 6, "x": 4, "w": 3, "z": 2, "only b": None}
    result = agreement(a, b)
    assert (result.shared, result.items) == (5, 4)
    assert result.disagreements == (Disagreement("x", None, 4), Disagreement("y", 5, 6))
    assert (result.position_share, result.verdict_share) == (0.5, 0.75)
    # Observed 2/4; expected 1 - (3, 3: 2 + three None: 6) / (8 * 7).
    assert result.alpha == pytest.approx(1 - 0.5 / (1 - 8 / 56))
    assert str(result) == (
        "4 of 5 shared items decided by both: Krippendorff's alpha 0.417, "
        "same error position 50.0%, same verdict 75.0%"
    )


def test_no_error_is_not_an_error_at_token_zero() -> None:
    result = agreement(by_item([0, None]), by_item([None, None]))
    assert (result.position_share, result.verdict_share) == (0.5, 0.5)


def test_full_agreement_is_one() -> None:
    result = agreement(by_item([3, None, 7]), by_item([3, None, 7]))
    assert (result.alpha, result.position_share, result.disagreements) == (1.0, 1.0, ())
    assert token_alpha([1, 0, -1], [1, 0, 1]) == 1.0


def test_opposed_annotators_are_below_chance() -> None:
    assert token_alpha([0, 1, 0, 1], [1, 0, 1, 0]) < 0


def test_without_variation_alpha_is_undefined() -> None:
    """The package refuses, an average would be silent; nan and a word about it are neither."""
    result = agreement(by_item([None, None, UNSURE]), by_item([None, None, 4]))
    assert math.isnan(result.alpha) and result.position_share == 1.0
    assert "alpha undefined (all decisions equal)" in str(result)
    assert math.isnan(token_alpha([1, 1], [1, 1]))


def test_nothing_in_common() -> None:
    with pytest.raises(ValueError, match="they have 1 and 1 decisions, 0 on the same items"):
        agreement({"x": 1}, {"y": 1})
    with pytest.raises(ValueError, match="1 on the same items"):
        agreement({"x": 1}, {"x": UNSURE})
    with pytest.raises(ValueError, match="none of the 2 tokens was labelled"):
        token_alpha([1, -1], [-1, 0])


@pytest.mark.parametrize("decision", [-1, True, 2.0, "3", math.nan])
def test_a_decision_of_another_kind_is_named(decision: Any) -> None:
    with pytest.raises(ValueError, match="second annotator, item 'x': a decision is the index"):
        agreement({"x": 1}, {"x": decision})


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 0], [1], r"got \(2,\), \(1,\)"),
        ([[1]], [[1]], r"got \(1, 1\)"),
        ([1, 2], [1, 1], "got 2"),
        ([1.0, math.nan], [1, 1], "got nan"),
    ],
)
def test_labels_of_another_kind_are_refused(a: Any, b: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_alpha(a, b)
