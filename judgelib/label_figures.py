"""Figures of the labelling study: a page of labelled tokens, and how many mismatches matter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from judgelib.figures import DOMAINS, STYLE, look, nothing, ordered, points, require, with_wilson
from judgelib.labels import ACCEPTABLE, IGNORED, UNACCEPTABLE, Labelled

COLUMNS = 100


class Ink(NamedTuple):
    """How a label is drawn: never by colour alone."""

    fill: str
    color: str
    mark: str
    meaning: str


INKS = {
    ACCEPTABLE: Ink("#CDEBE0", "#000000", "", "acceptable (1)"),
    UNACCEPTABLE: Ink("#D55E00", "#FFFFFF", "×", "not acceptable (0)"),
    IGNORED: Ink("#FFFFFF", "#6B6B6B", "", "ignored (−1)"),
}


class Piece(NamedTuple):
    """Text of one token, its label, and where it stands on the page."""

    text: str
    label: int
    line: int
    column: int


def page_figure(rows: Sequence[Labelled], titles: Sequence[str], tokenizer: Any) -> Figure:
    """Answers as text, every token on the colour of its label.

    A mined mismatch shows the draft's token: the one that was adopted, or, marked ×, the one that
    changed the answer, with the target's own behind it.
    """
    if not rows:
        return nothing("Labelled answers", "There is no answer of the kind that is shown here.")
    pages = [list(_pieces(row, tokenizer)) for row in rows]
    heights = [max(piece.line for piece in page) + 1 for page in pages]
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        fig = Figure(figsize=(8.0, 0.2 * sum(heights) + 0.45 * len(rows) + 0.5))
        grid = fig.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, page, title, height in zip(grid, pages, titles, heights, strict=True):
            _draw_page(axes, page, height)
            axes.set_title(title, loc="left", fontsize=10)
        handles = [
            Rectangle((0, 0), 1, 1, facecolor=ink.fill, edgecolor="#999999",
                      label=f"{ink.meaning} {ink.mark}")
            for ink in INKS.values()
        ]  # fmt: skip
        fig.legend(handles=handles, loc="upper right", ncols=3, fontsize=9)
        fig.tight_layout(rect=(0, 0, 1, 0.97))
    return fig


def _pieces(row: Labelled, tokenizer: Any) -> Iterator[Piece]:
    line = column = 0
    columns = zip(row.response_ids, row.judged_ids, row.labels, strict=True)
    for kept, judged, label in columns:
        shown = [(judged, label), (kept, IGNORED)] if judged != kept else [(kept, label)]
        for token, said in shown:
            text = tokenizer.decode([token]) + INKS[said].mark
            for number, part in enumerate(text.split("\n")):
                if number or column + len(part) > COLUMNS:
                    line, column = line + 1, 0
                yield Piece(part, said, line, column)
                column += len(part)


def _draw_page(axes: Axes, page: Sequence[Piece], height: int) -> None:
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(height, 0)
    axes.axis("off")
    for piece in page:
        ink = INKS[piece.label]
        if piece.text and piece.label != IGNORED:
            box = Rectangle((piece.column, piece.line + 0.05), len(piece.text), 0.9,
                            facecolor=ink.fill, edgecolor="white", linewidth=0.6)  # fmt: skip
            axes.add_patch(box)
        for place, letter in enumerate(piece.text):  # on a grid, whatever the font's widths
            axes.text(
                piece.column + place + 0.5, piece.line + 0.72, letter.replace("$", r"\$"),
                family="DejaVu Sans Mono", fontsize=8.8, color=ink.color, ha="center",
            )  # fmt: skip


def importance_figure(summary: pd.DataFrame, reported: float) -> Figure:
    """Share of mismatches that are important, by domain, with 95% Wilson intervals.

    summary: rows of `labels_summary` of source "mined"; `reported` is AutoJudge's own share.
    """
    require(summary, "domain mismatches important questions")
    shares = with_wilson(summary, "important", "mismatches").set_index("domain")
    names = ordered(summary["domain"], DOMAINS)
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = fig.subplots()
        for place, name in enumerate(names):
            row = shares.loc[[name], ["share", "low", "high"]].to_numpy(float)
            points(axes, pd.Series([place]).to_numpy(float), row, look(DOMAINS, name), "{:.1%}")
        axes.axhline(reported, color="#555555", linestyle="--", linewidth=1)
        axes.annotate(
            f"AutoJudge on GSM8K: {reported:.1%}", (len(names) - 0.55, reported),
            xytext=(0, 4), textcoords="offset points", ha="right", fontsize=8.5, color="#333333",
        )  # fmt: skip
        totals = dict(zip(summary["domain"], summary["mismatches"], strict=True))
        counts = [f"{DOMAINS[name].label}\n{totals[name]:,} mismatches" for name in names]
        axes.set_xticks(range(len(names)), counts)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylabel("mismatches that change the answer")
        axes.set_title("How many differences change the answer?", loc="left")
        fig.supxlabel("bars: 95% Wilson intervals, mismatches taken as independent", fontsize=9,
                      color="#555555")  # fmt: skip
    return fig
