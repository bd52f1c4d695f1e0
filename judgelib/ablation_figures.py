"""Figures of the ablations: one kind for probes, one for runs."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from judgelib.figures import (
    BLACK,
    DOMAINS,
    STYLE,
    Look,
    Palette,
    dodged,
    key,
    nothing,
    ordered,
    require,
    span,
)

NOTE = "#555555"


MISSING = "Not measured: this profile has no such model, or too few labels for it."


def probe_figure(frame: pd.DataFrame, title: str, along: str) -> Figure:
    """AUC of each variant by domain.

    Args:
        frame: columns variant, domain, prompts, auc, low, high, as `Ablations` gives its probes.
        along: what the variants are, for the axis.
    """
    if frame.empty:
        return nothing(title, MISSING)
    require(frame, "variant domain prompts auc low high")
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(_width(frame), 4.2), layout="constrained")
        axes = fig.subplots()
        _dodged(axes, frame, ("auc", "low", "high"), "{:.3f}")
        axes.set_title(title, loc="left")
        axes.set_ylabel("AUC on test questions")
        axes.set_xlabel(along)
        key(fig, ordered(frame["domain"], DOMAINS), DOMAINS)
        fig.supxlabel(
            f"{span(frame['prompts'])} questions a domain; bars: 95% bootstrap intervals, whole "
            "questions resampled",
            fontsize=9, color=NOTE,
        )  # fmt: skip
    return fig


def run_figure(frame: pd.DataFrame, title: str, along: str) -> Figure:
    """Accepted tokens per cycle beside the share of right answers, of each variant by domain.

    Args:
        frame: columns variant, domain, prompts, accepted_per_cycle and right with _low and _high,
            as `Ablations` gives its runs.
    """
    spans = "accepted_per_cycle accepted_per_cycle_low accepted_per_cycle_high"
    if frame.empty:
        return nothing(title, MISSING)
    require(frame, f"variant domain prompts {spans} right right_low right_high")
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(max(9.0, 1.6 * _width(frame)), 4.4), layout="constrained")
        left, right = fig.subplots(1, 2)
        for axes, name, form in (
            (left, "accepted_per_cycle", "{:.1f}"),
            (right, "right", "{:.0%}"),
        ):
            _dodged(axes, frame, (name, f"{name}_low", f"{name}_high"), form)
            axes.set_xlabel(along)
        left.set_title(title, loc="left")
        left.set_ylabel("accepted tokens per target call")
        left.set_ylim(bottom=0)
        right.set_ylabel("right answers")
        right.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
        key(fig, ordered(frame["domain"], DOMAINS), DOMAINS)
        domains = frame[frame["domain"] != "all"]["prompts"]
        fig.supxlabel(
            f"{span(domains)} test prompts a domain; bars: 95% bootstrap intervals, prompts "
            "resampled",
            fontsize=9, color=NOTE,
        )  # fmt: skip
    return fig


def _dodged(axes: Axes, frame: pd.DataFrame, columns: tuple[str, str, str], form: str) -> None:
    variants: Palette = {
        name: Look(BLACK, "o", name.replace(", ", "\n").replace(" on ", "\non "))
        for name in dict.fromkeys(frame["variant"])
    }
    dodged(axes, frame, columns, ("variant", variants), ("domain", DOMAINS), form)
    axes.margins(y=0.12)  # for the numbers below the lowest points


def _width(frame: pd.DataFrame) -> float:
    """Inches: room for every variant's points and numbers side by side."""
    places, series = frame["variant"].nunique(), frame["domain"].nunique()
    return max(6.4, 1.2 + 0.42 * places * series)
