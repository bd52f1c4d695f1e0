"""The threshold of a judge: fixed, by recall, or certified by risk control.

A judge gives every draft token the probability p that it is acceptable; the token is accepted if
p > threshold. A higher threshold is stricter, and threshold 1 is strict decoding. Thresholds are
chosen on the validation split, never on the one that is reported.

* `FIXED`: the 0.5 of Judge Decoding (2501.19309).
* `at_recall`: the loosest threshold that rejects 90% of the unacceptable tokens (AutoJudge,
  2504.20039).
* `certify`: the loosest threshold at which, with the stated confidence, few enough prompts lose a
  right answer. It is Learn-then-Test with fixed-sequence testing and exact binomial p-values
  (Angelopoulos et al., 2110.01052); `simulate_guarantee` checks that its promise is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import beta, binom, nbinom

FIXED = 0.5
STRICT = 1.0
MOST_LOSSES = 100_000  # where `prompts_needed` gives up


# --- by recall -------------------------------------------------------------------------------


class Rates(NamedTuple):
    """What a threshold does to labelled tokens; a share of no tokens at all is NaN.

    recall_unacceptable: share of the unacceptable tokens that are rejected; accept_rate: share of
    the acceptable ones that are accepted.
    """

    recall_unacceptable: float
    accept_rate: float


def at_recall(probabilities: ArrayLike, labels: ArrayLike, recall: float = 0.9) -> float:
    """The loosest threshold that rejects at least the share `recall` of the unacceptable tokens.

    probabilities, labels: (n,), labels 1 = acceptable and 0 = not. The result is the probability
    of one of the tokens, so that tokens tied with it are rejected too.

    Raises:
        ValueError: no unacceptable token, a label other than 0 and 1, no probability, or a recall
            outside (0, 1].
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall is a share above 0 and at most 1, got {recall}")
    p, acceptable = _scored(probabilities, labels)
    unacceptable = np.sort(p[~acceptable])
    count = len(unacceptable)
    if not count:
        raise ValueError(
            f"none of the {len(p)} tokens is unacceptable (label 0), so that recall is undefined: "
            "add wrong answers to the validation split, or use thresholds.FIXED"
        )
    reached = np.arange(1, count + 1) / count  # by rejecting the 1, 2, ... least probable
    return float(unacceptable[np.searchsorted(reached, recall)])


def rates(probabilities: ArrayLike, labels: ArrayLike, threshold: float) -> Rates:
    """Both shares at `threshold`; arguments and errors as in `at_recall`."""
    p, acceptable = _scored(probabilities, labels)
    accepted = p > _threshold(threshold)
    return Rates(_share(~accepted[~acceptable]), _share(accepted[acceptable]))


def _share(hits: np.ndarray) -> float:
    return float(hits.mean()) if len(hits) else math.nan


def _scored(probabilities: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if p.ndim != 1 or p.shape != y.shape:
        raise ValueError(f"expected a probability and a label a token, got {p.shape}, {y.shape}")
    if not np.all((p >= 0) & (p <= 1)):  # NaN is neither
        raise ValueError(f"probabilities lie in [0, 1], got {p[~((p >= 0) & (p <= 1))][0]}")
    if not np.isin(y, (0, 1)).all():
        other = y[~np.isin(y, (0, 1))][0]
        raise ValueError(
            f"labels are 1 (acceptable) or 0 (not), got {other}: leave out ignored tokens (-1)"
        )
    return p, y == 1


def _threshold(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"a threshold is a probability in [0, 1], got {value}")
    return float(value)


# --- by risk control -------------------------------------------------------------------------


class Step(NamedTuple):
    """One tested threshold: `losses` of `prompts` lost a right answer."""

    threshold: float
    prompts: int
    losses: int
    p_value: float
    certified: bool


@dataclass(frozen=True)
class Certificate:
    """The outcome of `certify`: the loosest certified threshold, or 1 (strict) if there is none.

    alpha: the tolerated share of prompts that lose a right answer; steps: the tested thresholds
    from strict to loose, of which at most the last one is not certified.
    """

    alpha: float
    confidence: float
    steps: tuple[Step, ...]

    @property
    def prompts(self) -> int:
        """How many validation prompts every threshold was tested on."""
        return self.steps[0].prompts

    @property
    def certified(self) -> bool:
        """Whether any threshold was certified."""
        return self.steps[0].certified

    @property
    def decisive(self) -> Step:
        """The loosest certified step; the first one, which failed, if there is none."""
        certified = [step for step in self.steps if step.certified]
        return certified[-1] if certified else self.steps[0]

    @property
    def threshold(self) -> float:
        """What to decode with."""
        return self.decisive.threshold if self.certified else STRICT

    @property
    def strict(self) -> bool:
        """Whether decoding with it is strict decoding."""
        return self.threshold >= STRICT

    def prompts_needed(self, alpha: float) -> int | None:
        """For another alpha, at the decisive step's share of losses; see `prompts_needed`."""
        return prompts_needed(alpha, self.confidence, self.decisive.losses / self.prompts)

    def table(self) -> pd.DataFrame:
        """One row a tested threshold, from strict to loose."""
        return pd.DataFrame(self.steps, columns=Step._fields)

    def __str__(self) -> str:
        step = self.decisive
        seen = f"{step.losses} of {step.prompts} did at {step.threshold:g}, p = {step.p_value:.2g}"
        promise = f"at most {_percent(self.alpha)} of prompts lose a right answer ({seen})"
        that = f"ensures with {_percent(self.confidence)} confidence that {promise}"
        if self.certified:
            return f"Threshold {self.threshold:g} {that}.\n{self._outlook(self.alpha / 2)}"
        return f"Strict decoding: no threshold {that}.\n{self._outlook(self.alpha)}"

    def _outlook(self, alpha: float) -> str:
        needed, share = self.prompts_needed(alpha), _percent(self.decisive.losses / self.prompts)
        number = "no number of prompts" if needed is None else f"{needed} prompts"
        return f"If the share of losses stays {share}, {number} would certify {_percent(alpha)}."


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def certify(
    losses_at: Callable[[float], ArrayLike],
    thresholds: Sequence[float],
    *,
    alpha: float,
    confidence: float = 0.95,
) -> Certificate:
    """Test thresholds from strict to loose; stop at the first that cannot be certified.

    losses_at: decodes the validation prompts at a threshold and returns (prompts,), 1 where the
    target alone is right and the judged answer is wrong, else 0. It is called only as far as the
    sequence gets. The hypothesis to be rejected at each threshold is E[loss] >= alpha; as they are
    tested in an order fixed beforehand, the chance that any threshold is certified wrongly is at
    most 1 - confidence, whether or not the losses grow with looseness (2110.01052).
    Choose alpha, confidence and thresholds before looking at the losses.

    Raises:
        ValueError: thresholds that do not strictly decrease within [0, 1], alpha or confidence
            outside (0, 1), or losses that are not 0/1 of the same prompts at every threshold.
    """
    level = 1 - _inside("confidence", confidence)
    _inside("alpha", alpha)
    steps: list[Step] = []
    for threshold in _strict_to_loose(thresholds):
        losses = _losses(losses_at(threshold), 1, f"losses at threshold {threshold:g}")
        if steps and len(losses) != steps[0].prompts:
            raise ValueError(
                f"{len(losses)} losses at threshold {threshold:g}, but {steps[0].prompts} at "
                f"{steps[0].threshold:g}: every threshold is tested on the same prompts"
            )
        p = float(p_value(losses.sum(), len(losses), alpha))
        steps.append(Step(threshold, len(losses), int(losses.sum()), p, p <= level))
        if not steps[-1].certified:
            break
    return Certificate(alpha, confidence, tuple(steps))


def p_value(losses: ArrayLike, prompts: int, alpha: float) -> np.ndarray:
    """P(Binomial(prompts, alpha) <= losses): exact for 0/1 losses, elementwise in `losses`."""
    return np.asarray(binom.cdf(losses, prompts, alpha))


def prompts_needed(alpha: float, confidence: float = 0.95, loss_rate: float = 0.0) -> int | None:
    """The fewest prompts that certify `alpha` if the share `loss_rate` of them lose.

    Losses are whole, so their number is rounded up. None if no number of prompts will do
    (loss_rate >= alpha), or none with fewer than `MOST_LOSSES` losses.

    >>> prompts_needed(0.05), prompts_needed(0.05, loss_rate=0.01), prompts_needed(0.05, 0.95, 0.05)
    (59, 93, None)
    """
    _inside("alpha", alpha), _inside("confidence", confidence)
    if not 0 <= loss_rate <= 1:
        raise ValueError(f"loss_rate is a share in [0, 1], got {loss_rate}")
    if loss_rate >= alpha:
        return None
    for most in (1000, MOST_LOSSES):  # the first is nearly always enough, and a hundredth the work
        losses = np.arange(most)
        # With n prompts at most k losses are as likely as loss k + 1 coming after prompt n, so the
        # fewest prompts for k losses are a quantile of its place (nbinom counts those without).
        prompts = losses + 1 + nbinom.ppf(confidence, losses + 1, alpha).astype(int)
        enough = np.flatnonzero(losses / prompts >= loss_rate)
        if len(enough):
            return int(prompts[enough[0]])
    return None


def smallest_alpha(losses: int, prompts: int, confidence: float = 0.95) -> float:
    """The smallest alpha that `losses` of `prompts` certify: Clopper and Pearson's upper bound.

    It is a bound for one threshold chosen beforehand; use it to plan, not to choose alpha by.

    >>> round(smallest_alpha(0, 59), 4)
    0.0495
    """
    _inside("confidence", confidence)
    if not 0 <= losses <= prompts or not prompts:
        raise ValueError(f"expected 0 <= losses <= prompts and prompts > 0: {losses} of {prompts}")
    return 1.0 if losses == prompts else float(beta.ppf(confidence, losses + 1, prompts - losses))


def _inside(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{name} lies between 0 and 1, both excluded; got {value}")
    return value


def _strict_to_loose(thresholds: Sequence[float]) -> list[float]:
    values = [_threshold(value) for value in thresholds]
    if not values or any(b >= a for a, b in zip(values, values[1:], strict=False)):
        raise ValueError(
            f"thresholds go strictly down from strict to loose, such as [0.9, 0.5]; got {values}"
        )
    return values


def _losses(values: ArrayLike, dimensions: int, name: str) -> np.ndarray:
    losses = np.asarray(values)
    if losses.ndim != dimensions or not losses.size:
        shape = "(prompts,)" if dimensions == 1 else "(prompts, thresholds)"
        raise ValueError(f"{name} have the shape {shape} and are not empty, got {losses.shape}")
    if not np.isin(losses, (0, 1)).all():  # NaN is neither
        other = losses[~np.isin(losses, (0, 1))][0]
        raise ValueError(
            f"{name} are 1 where the target alone is right and the judged answer wrong, else 0; "
            f"got {other}"
        )
    return losses.astype(int)


# --- whether the promise is kept -------------------------------------------------------------


@dataclass(frozen=True)
class Simulation:
    """Thresholds that two procedures choose on many validation sets of a known population.

    risks: (thresholds + 1,), the true risk of strict decoding (0) and of every threshold;
    certified: (sets,), what `certify` chooses, as an index into risks; empirical: the same for the
    loosest threshold whose risk *on the validation set* is at most alpha.
    """

    alpha: float
    confidence: float
    risks: np.ndarray
    certified: np.ndarray
    empirical: np.ndarray

    def table(self) -> pd.DataFrame:
        """One row a procedure: in how many sets the true risk exceeds alpha; the allowed number."""
        return pd.DataFrame([self._row("certified"), self._row("empirical")])

    def _row(self, procedure: str) -> dict[str, Any]:
        chosen: np.ndarray = getattr(self, procedure)
        return {
            "procedure": procedure,
            "sets": len(chosen),
            "violations": int((self.risks[chosen] > self.alpha).sum()),
            "allowed": len(chosen) * (1 - self.confidence),
            "strict": int((chosen == 0).sum()),
            "mean_risk": float(self.risks[chosen].mean()),
        }


def simulate_guarantee(
    losses: ArrayLike,
    *,
    alpha: float,
    prompts: int,
    confidence: float = 0.95,
    repeats: int = 1000,
    seed: int = 0,
) -> Simulation:
    """Choose a threshold on each of `repeats` validation sets drawn from a known population.

    losses: (population, thresholds), 0/1, from strict to loose; a validation set is `prompts` of
    its rows, drawn with replacement, so that the true risk of a threshold is its column's mean.

    Raises:
        ValueError: losses that are not a 0/1 matrix, or options as in `certify`.
    """
    level = 1 - _inside("confidence", confidence)
    population = _losses(losses, 2, "losses")
    if prompts < 1 or repeats < 1:
        raise ValueError(f"expected at least one prompt and one set, got {prompts} and {repeats}")
    evenly = np.full(len(population), 1 / len(population))
    drawn = np.random.default_rng(seed).multinomial(prompts, evenly, size=repeats)
    lost = drawn @ population  # (repeats, thresholds)
    passed = p_value(lost, prompts, _inside("alpha", alpha)) <= level
    below = lost <= alpha * prompts
    return Simulation(
        alpha,
        confidence,
        risks=np.concatenate([[0.0], population.mean(axis=0)]),
        certified=np.logical_and.accumulate(passed, axis=1).sum(axis=1),
        empirical=(below * np.arange(1, below.shape[1] + 1)).max(axis=1),
    )


def population(risks: ArrayLike, prompts: int) -> np.ndarray:
    """Losses (prompts, thresholds) whose true risks are `risks`, rounded to whole prompts.

    A prompt that is lost at one threshold is also lost at every riskier one.
    """
    curve = np.asarray(risks, dtype=np.float64)
    if curve.ndim != 1 or not np.all((curve >= 0) & (curve <= 1)):
        raise ValueError(f"risks are shares in [0, 1], one a threshold; got {curve}")
    return (np.arange(prompts)[:, None] < np.rint(curve * prompts)).astype(int)
