"""Figures: one palette for all of them, and each saved with the table that it shows.

`save_figure` writes `figures/<profile>/<name>.png` and `<name>.csv` from the same frame. Figures
are made without a display and without pyplot's global state: making one changes nothing elsewhere.

Colours are Okabe and Ito's (2008; their yellow darkened to show on white), safe for the common
kinds of colour blindness. Every author and every rule also has a marker of its own, so that nothing
is told by colour alone.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from scipy.stats import binomtest

from judgelib.results import figures_dir, plain_name, to_csv, write_files

DPI = 150


class Look(NamedTuple):
    """How one author, rule or domain looks in every figure; `label` is its name for a reader."""

    color: str
    marker: str
    label: str


Palette = dict[str, Look]

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE, GREY = "#B8A800", "#0072B2", "#D55E00", "#CC79A7", "#777777"
BROWN, WINE = "#7F4F24", "#882255"

AUTHORS: Palette = {
    "target": Look(BLUE, "o", "target"),
    "draft": Look(ORANGE, "s", "draft"),
    "expert": Look(GREEN, "^", "expert"),
    "human": Look(PURPLE, "D", "human"),
    "target_no_corrections": Look(SKY, "v", "target without\nself-corrections"),
}

RULES: Palette = {
    "strict": Look(BLACK, "o", "strict"),
    "judge_annotated": Look(VERMILION, "D", "judge (annotated)"),
    "judge_mined": Look(ORANGE, "s", "judge (mined)"),
    "judge_both": Look(BROWN, "p", "judge (both labels)"),
    "judge_mlp": Look(WINE, "d", "judge (MLP)"),
    "floored_annotated": Look(VERMILION, "h", "judge (annotated), floor"),
    "floored_mined": Look(ORANGE, "H", "judge (mined), floor"),
    "topk": Look(BLUE, "^", "top-K"),
    "ratio": Look(GREEN, "v", "ratio"),
    "typical": Look(SKY, "<", "typical"),
    "js": Look(PURPLE, ">", "divergence (JS)"),
    "kl": Look(PURPLE, "8", "divergence (KL)"),
    "deferred": Look(YELLOW, "P", "deferred"),
    "ensemble": Look(BLUE, "X", "ensemble"),
    "random": Look(GREY, "*", "random"),
}

DOMAINS: Palette = {
    "math": Look(BLUE, "o", "math"),
    "code": Look(VERMILION, "s", "code"),
    "facts": Look(GREEN, "^", "facts"),
    "all": Look(BLACK, "D", "all"),
}

STUDY_COLUMNS = "author domain accepted_per_cycle ci_low ci_high accuracy acc_low acc_high texts"

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "xtick.bottom": False,
    "ytick.left": False,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class SavedFigure:
    """A figure on disk. As the last value of a notebook cell it shows the file that was written."""

    png: Path
    csv: Path

    def _repr_png_(self) -> bytes:
        return self.png.read_bytes()

    def __repr__(self) -> str:
        # Relative to the project, so that a committed notebook names no folder of one machine.
        return "/".join(self.png.parts[-3:])


def look(table: Palette, name: str) -> Look:
    """How `name` looks; ValueError if the palette does not know it."""
    if name not in table:
        raise ValueError(f"no colour for {name!r}; the palette knows {', '.join(table)}")
    return table[name]


def save_figure(
    fig: Figure,
    frame: pd.DataFrame,
    name: str,
    profile: str,
    *,
    root: str | Path | None = None,
) -> SavedFigure:
    """Write `name.png` and, from the frame behind it, `name.csv`; both or, if one fails, neither.

    The same figure gives the same bytes: no date or version goes into the file.
    """
    folder = figures_dir(profile, root=root)
    saved = SavedFigure(*(folder / f"{plain_name(name, 'figure')}.{end}" for end in ("png", "csv")))
    picture = io.BytesIO()
    fig.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
    write_files({saved.csv: to_csv(frame), saved.png: picture.getvalue()})
    return saved


def acceptance_figure(frame: pd.DataFrame) -> Figure:
    """Accepted tokens per cycle beside the share of right answers, by author and domain.

    Columns: author, domain, accepted_per_cycle, ci_low, ci_high (tokens), accuracy, acc_low,
    acc_high (shares of 1), texts; a row for each author and domain. Intervals are drawn as given.
    """
    require(frame, STUDY_COLUMNS)
    with mpl.rc_context(STYLE):
        authors = ordered(frame["author"], AUTHORS)
        width = max(11.5, 3.3 * len(authors))  # inches: room for labels side by side
        fig = Figure(figsize=(width, 4.4), layout="constrained")
        left, right = fig.subplots(1, 2)
        axis, series = ("domain", DOMAINS), ("author", AUTHORS)
        dodged(left, frame, ("accepted_per_cycle", "ci_low", "ci_high"), axis, series, "{:.1f}")
        dodged(right, frame, ("accuracy", "acc_low", "acc_high"), axis, series, "{:.0%}")
        left.set_title("What strict verification keeps", loc="left")
        left.set_ylabel("accepted tokens per target call")
        right.set_title("How often the answer is right", loc="left")
        right.set_ylabel("right answers")
        as_share(right)
        left.set_ylim(bottom=0)
        key(fig, authors, AUTHORS)
        fig.supxlabel(texts_note(frame["texts"]), fontsize=9, color="#555555")
    return fig


def family_figure(frame: pd.DataFrame, required: Mapping[str, tuple[float, float]]) -> Figure:
    """Share of right answers by model and domain, with 95% Wilson intervals and what is required.

    Columns: those of table `family`, of which model, domain, prompts and correct are used. Grey
    bands mark `required`, the lowest and highest share wanted of each model.
    """
    require(frame, "model domain prompts correct")
    shares = with_wilson(frame, "correct", "prompts")
    models = ordered(frame["model"], AUTHORS)
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(8.5, 4.2), layout="constrained")
        axes = fig.subplots()
        bands(axes, models, required)
        columns, axis, series = ("share", "low", "high"), ("model", AUTHORS), ("domain", DOMAINS)
        dodged(axes, shares, columns, axis, series, "{:.0%}")
        axes.set_title("Right answers on held-out prompts, by model and domain", loc="left")
        axes.set_ylabel("right answers")
        as_share(axes)
        band = Rectangle((0, 0), 1, 1, color="#DDDDDD", label="required")
        key(fig, ordered(frame["domain"], DOMAINS), DOMAINS, extra=[band])
        fig.supxlabel(
            f"{span(frame['prompts'])} prompts a domain; bars: 95% Wilson intervals",
            fontsize=9,
            color="#555555",
        )
    return fig


def with_wilson(frame: pd.DataFrame, hits: str, trials: str) -> pd.DataFrame:
    """The frame with columns share, low, high: hits/trials and its 95% Wilson score interval."""
    rows = [wilson(int(k), int(n)) for k, n in zip(frame[hits], frame[trials], strict=True)]
    low, high = np.array(rows).T
    return frame.assign(share=frame[hits] / frame[trials], low=low, high=high)


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """95% Wilson score interval of a proportion; ValueError unless 0 ≤ hits ≤ trials ≥ 1."""
    if not 0 <= hits <= trials or trials < 1:
        raise ValueError(f"expected 0 <= hits <= trials and trials >= 1, got {hits} of {trials}")
    interval = binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def dodged(
    axes: Axes,
    frame: pd.DataFrame,
    columns: tuple[str, str, str],
    axis: tuple[str, Palette],
    series: tuple[str, Palette],
    number: str,
) -> None:
    """Points with error bars: a place on the x axis for each `axis` name, series side by side.

    `columns` name value, lower and upper end; `number` formats the value written at each point,
    because a reader compares numbers more surely than heights.
    """
    (along, places), (by, table) = axis, series
    positions = ordered(frame[along], places)
    names = ordered(frame[by], table)
    for name, shift in zip(names, offsets(len(names)), strict=True):
        rows = frame[frame[by] == name].set_index(along).reindex(positions)[list(columns)]
        x = np.arange(len(positions)) + shift
        points(axes, x, rows.to_numpy(float), look(table, name), number)
    axes.set_xticks(range(len(positions)), [places[place].label for place in positions])
    axes.set_xlim(-0.5, len(positions) - 0.5)
    for place in range(len(positions) - 1):
        axes.axvline(place + 0.5, color=STYLE["grid.color"], linewidth=0.8, zorder=0)


def points(axes: Axes, x: np.ndarray, rows: np.ndarray, style: Look, number: str) -> None:
    """Points at `x` (n,) with `rows` (n, 3) = value, lower, upper; rows with NaN are left out."""
    present = ~np.isnan(rows).any(axis=1)
    x, (middle, low, high) = x[present], rows[present].T
    # An interval that excludes its own estimate by rounding must not become a negative length.
    reach = np.clip([middle - low, high - middle], 0, None)
    axes.errorbar(
        x,
        middle,
        yerr=reach,
        fmt=style.marker,
        color=style.color,
        markersize=6.5,
        capsize=3,
        elinewidth=1.4,
        markeredgecolor="white",
        markeredgewidth=0.6,
        zorder=3,
    )
    for place, value, bottom in zip(x, middle, low, strict=True):
        axes.annotate(
            number.format(value),
            (place, bottom),
            xytext=(0, -6),  # below the marker where the interval is short
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=7.5,
            color="#333333",
        )


def offsets(count: int) -> np.ndarray:
    """`count` shifts around 0, at most 0.28 apart, with a wider gap to the next position."""
    step = min(0.28, 0.9 / count)
    return (np.arange(count) - (count - 1) / 2) * step


def bands(axes: Axes, models: Sequence[str], required: Mapping[str, tuple[float, float]]) -> None:
    """A grey box over each model's place that spans the shares it is required to reach."""
    for place, model in enumerate(models):
        if model in required:
            low, high = required[model]
            box = Rectangle((place - 0.42, low), 0.84, high - low, color="#DDDDDD", zorder=1)
            axes.add_patch(box)


def as_share(axes: Axes) -> None:
    """A y axis from 0 to 100%, with room for a point at its top."""
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def key(
    fig: Figure,
    names: Sequence[str],
    table: Palette,
    extra: Sequence[Rectangle] = (),
) -> None:
    """One legend for the whole figure, below it, in the palette's order."""
    points = [
        Line2D([], [], color=color, marker=marker, linestyle="", markersize=7, label=label)
        for color, marker, label in (look(table, name) for name in names)
    ]
    handles = [*points, *extra]
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles))


def ordered(names: pd.Series, table: Palette) -> list[str]:
    """The distinct names in the palette's order; ValueError for one that it does not know."""
    present = set(names)
    for name in present:
        look(table, name)
    return [name for name in table if name in present]


def require(frame: pd.DataFrame, columns: str) -> None:
    """ValueError if a column is missing or no row is there."""
    missing = [column for column in columns.split() if column not in frame.columns]
    if missing or frame.empty:
        raise ValueError(
            f"expected rows with the columns {columns}; "
            + (f"missing: {', '.join(missing)}" if missing else "got no row")
        )


def texts_note(texts: pd.Series) -> str:
    """How many texts stand behind each point."""
    return f"{span(texts)} texts for each author and domain; bars: 95% intervals"


def span(counts: pd.Series) -> str:
    """`200`, or `180-200` if the counts differ."""
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def nothing(title: str, why: str) -> Figure:
    """In place of a figure for which there are no data."""
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(6.4, 1.2), layout="constrained")
        axes = fig.subplots()
        axes.axis("off")
        axes.set_title(title, loc="left")
        axes.text(0, 0.5, why, color="#555555")
    return fig
