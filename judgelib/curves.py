"""ROC and precision-recall of a head, with confidence bands; whole questions are resampled.

Tokens of one question are not independent, so a bootstrap that resampled tokens would promise
more than it knows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from judgelib.features import Examples
from judgelib.labels import UNACCEPTABLE

GRID = np.linspace(0, 1, 101)


def roc_and_pr(
    examples: Examples, scores: np.ndarray, *, resamples: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Both curves for *finding unacceptable tokens*, by domain.

    Args:
        scores: (N,) p(acceptable).

    Returns:
        Columns domain, curve ("roc": x false alarms, y found; "pr": x found, y precision), x, y,
        low, high (95% band at each x).
    """
    frames = []
    for domain, labels, scored, questions in _by_domain(examples, scores):
        bad = labels == UNACCEPTABLE
        draws = list(_resamples(questions, resamples, seed))
        for name, curve in (("roc", _roc), ("pr", _pr)):
            y = curve(bad, -scored)
            band = np.array([curve(bad[i], -scored[i]) for i in draws if bad[i].any()])
            band = band if len(band) else np.full((1, len(GRID)), np.nan)
            low, high = np.quantile(band, [0.025, 0.975], axis=0)
            columns = {"x": GRID, "y": y, "low": low, "high": high}
            frames.append(pd.DataFrame({"domain": domain, "curve": name, **columns}))
    return pd.concat(frames, ignore_index=True)


def auc_with_interval(
    examples: Examples, scores: np.ndarray, *, resamples: int = 200, seed: int = 0
) -> pd.DataFrame:
    """AUC and its 95% interval by domain: columns domain, tokens, unacceptable, auc, low, high."""
    rows = []
    for domain, labels, scored, questions in _by_domain(examples, scores):
        draws = [i for i in _resamples(questions, resamples, seed) if len(set(labels[i])) == 2]
        low, high = _interval([roc_auc_score(labels[i], scored[i]) for i in draws])
        value = roc_auc_score(labels, scored)
        counts = {"tokens": len(labels), "unacceptable": int((labels == UNACCEPTABLE).sum())}
        rows.append({"domain": domain, **counts, "auc": value, "low": low, "high": high})
    return pd.DataFrame(rows, columns=["domain", "tokens", "unacceptable", "auc", "low", "high"])


def _interval(values: list[float]) -> tuple[float, float]:
    """The middle 95%; NaN where no resample held both labels, as with a handful of questions."""
    if not values:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def auc_gain(
    examples: Examples, scores: np.ndarray, than: np.ndarray, *, resamples: int, seed: int
) -> pd.DataFrame:
    """AUC of `scores` minus that of `than` on the same tokens, with its 95% interval, by domain.

    Columns domain, gain, low, high.
    """
    ours = {row[0]: row for row in _by_domain(examples, scores)}
    rows = []
    for domain, labels, theirs, questions in _by_domain(examples, than):
        mine = ours[domain][2]
        draws = [i for i in _resamples(questions, resamples, seed) if len(set(labels[i])) == 2]
        gains = [
            roc_auc_score(labels[i], mine[i]) - roc_auc_score(labels[i], theirs[i]) for i in draws
        ]
        low, high = _interval(gains)
        gain = roc_auc_score(labels, mine) - roc_auc_score(labels, theirs)
        rows.append({"domain": domain, "gain": gain, "low": low, "high": high})
    return pd.DataFrame(rows, columns=["domain", "gain", "low", "high"])


def _by_domain(
    examples: Examples, scores: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Domains in which both labels occur: name, labels, scores, questions."""
    for domain in sorted(set(examples.domains)):
        chosen = examples.domains == domain
        if len(set(examples.labels[chosen])) == 2:
            yield domain, examples.labels[chosen], scores[chosen], examples.questions[chosen]


def _resamples(questions: np.ndarray, count: int, seed: int) -> Iterator[np.ndarray]:
    """Token numbers of `count` samples of as many questions, drawn with replacement."""
    names, codes = np.unique(questions, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    tokens = np.split(order, np.cumsum(np.bincount(codes))[:-1])
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield np.concatenate([tokens[q] for q in rng.integers(len(names), size=len(names))])


def _roc(bad: np.ndarray, suspicion: np.ndarray) -> np.ndarray:
    """Share found at each false-alarm rate of `GRID`."""
    alarms, found, _ = roc_curve(bad, suspicion)
    return np.interp(GRID, alarms, found)


def _pr(bad: np.ndarray, suspicion: np.ndarray) -> np.ndarray:
    """Precision at each share found of `GRID`."""
    precision, found, _ = precision_recall_curve(bad, suspicion)
    return np.interp(GRID, found[::-1], precision[::-1])
