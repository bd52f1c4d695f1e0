"""How far two annotators agree: on where texts go wrong, or token by token.

Krippendorff's alpha is 1 - observed / expected disagreement, where the expected one is what
random pairs of all given values would show: 1 is full agreement, 0 is chance (Krippendorff,
"Computing Krippendorff's Alpha-Reliability", 2011; here nominal, with two annotators). The PyPI
package `krippendorff` gives the same numbers, as the tests check, but needs memory for
items x values²: about 1 GB for 1,000 texts with 200 different error positions.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

UNSURE: Final = "unsure"
Decision = int | Literal["unsure"] | None  # index of the first wrong token, or all correct (None)


class Disagreement(NamedTuple):
    """An item on which both decided, but not the same."""

    item: str
    a: int | None
    b: int | None


@dataclass(frozen=True)
class Agreement:
    """Two annotators compared.

    shared: items that both saw; items: those on which both decided, that is, neither was unsure;
    everything else is about these. same_position counts equal decisions, "no error" being one;
    same_verdict counts items on which both found an error or neither did. alpha is nominal over
    the decisions, and NaN if all of them are equal, since chance would then agree as well.
    """

    shared: int
    items: int
    same_position: int
    same_verdict: int
    alpha: float
    disagreements: tuple[Disagreement, ...]

    @property
    def position_share(self) -> float:
        """Share of items with the same error position (or with no error for both)."""
        return self.same_position / self.items

    @property
    def verdict_share(self) -> float:
        """Share of items on which both say that there is an error, or both that there is none."""
        return self.same_verdict / self.items

    def __str__(self) -> str:
        alpha = "undefined (all decisions equal)" if math.isnan(self.alpha) else f"{self.alpha:.3f}"
        return (
            f"{self.items} of {self.shared} shared items decided by both: Krippendorff's alpha "
            f"{alpha}, same error position {self.position_share:.1%}, "
            f"same verdict {self.verdict_share:.1%}"
        )


def agreement(a: Mapping[str, Decision], b: Mapping[str, Decision]) -> Agreement:
    """Compare two annotators' decisions: item id → index of the first wrong token, None or UNSURE.

    Disagreements come in the order of `a`.

    Raises:
        ValueError: a decision of another kind, or no item on which both decided.
    """
    _check("first", a)
    _check("second", b)
    shared = [item for item in a if item in b]
    pairs = [
        Disagreement(item, a[item], b[item])  # type: ignore[arg-type]  # unsure ones are left out
        for item in shared
        if UNSURE not in (a[item], b[item])
    ]
    if not pairs:
        raise ValueError(
            f"no item was decided by both annotators: they have {len(a)} and {len(b)} decisions, "
            f"{len(shared)} on the same items; let both annotate the same items"
        )
    different = tuple(pair for pair in pairs if pair.a != pair.b)
    split = sum((pair.a is None) != (pair.b is None) for pair in pairs)
    alpha = _alpha((pair.a, pair.b) for pair in pairs)
    same = len(pairs) - len(different)
    return Agreement(len(shared), len(pairs), same, len(pairs) - split, alpha, different)


def token_alpha(labels_a: ArrayLike, labels_b: ArrayLike) -> float:
    """Krippendorff's alpha over tokens: labels (n,), 1 acceptable, 0 not, -1 missing.

    A token that either annotator left out does not count; NaN if all others have one label.

    Raises:
        ValueError: other shapes, other labels, or no token that both labelled 0 or 1.
    """
    a, b = np.asarray(labels_a), np.asarray(labels_b)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(
            f"expected two labels a token, both of shape (n,); got {a.shape}, {b.shape}"
        )
    both = np.concatenate([a, b])
    if not np.isin(both, (-1, 0, 1)).all():
        other = both[~np.isin(both, (-1, 0, 1))][0]
        raise ValueError(f"labels are 1 (acceptable), 0 (not) or -1 (missing), got {other}")
    known = (a >= 0) & (b >= 0)
    if not known.any():
        raise ValueError(f"none of the {len(a)} tokens was labelled 0 or 1 by both annotators")
    return _alpha(zip(a[known].tolist(), b[known].tolist(), strict=True))


def _check(annotator: str, decisions: Mapping[str, Decision]) -> None:
    for item, decision in decisions.items():
        if decision is None or decision == UNSURE:
            continue
        if isinstance(decision, bool) or not isinstance(decision, int) or decision < 0:
            raise ValueError(
                f"{annotator} annotator, item {item!r}: a decision is the index of the first wrong "
                f"token, None (all correct) or {UNSURE!r}; got {decision!r}"
            )


def _alpha(pairs: Iterable[tuple[Hashable, Hashable]]) -> float:
    """Nominal alpha of complete pairs; NaN if only one value occurs."""
    units = list(pairs)
    counts: dict[Hashable, int] = {}
    for value in (value for unit in units for value in unit):
        counts[value] = counts.get(value, 0) + 1
    values = 2 * len(units)
    if len(counts) == 1:
        return math.nan
    observed = sum(x != y for x, y in units) / len(units)
    expected = 1 - sum(n * (n - 1) for n in counts.values()) / (values * (values - 1))
    return 1 - observed / expected
