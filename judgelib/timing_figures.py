"""Figures of measured speed: windows, engines side by side, and where a cycle's time goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from judgelib.engines import COMPILED, EAGER, ENSEMBLE, GENERATE, PLAIN, UNPLUGGED, VLLM
from judgelib.figures import BLUE, GREY, RULES, SKY, STYLE, VERMILION, Look, look, require, span
from judgelib.timing import PHASES

NOTE = "#555555"
TITLES = {EAGER: "judgelib", COMPILED: "judgelib, compiled"}
PLAIN_LOOK = Look("#777777", "x", "one token a call")
PHASE_COLORS = dict(zip(PHASES, (SKY, BLUE, VERMILION, GREY), strict=True))
HATCHES = dict(zip(PHASES, ("", "//", "", ".."), strict=True))


def windows_figure(found: pd.DataFrame) -> Figure:
    """Tokens per second against the window, measured and as the speed model predicts: a panel an
    engine.

    Args:
        found: of `speed.predicted`.
    """
    require(found, "engine rule draft_length predicted measured low high")
    engines = list(dict.fromkeys(found["engine"]))
    with mpl.rc_context({**STYLE, "axes.grid.axis": "both"}):
        fig = Figure(figsize=(5.6 * len(engines), 4.4), layout="constrained")
        panels = fig.subplots(1, len(engines), squeeze=False, sharey=True)[0]
        for axes, engine in zip(panels, engines, strict=True):
            for rule, rows in found[found["engine"] == engine].groupby("rule", sort=False):
                _curve(axes, rows.sort_values("draft_length"), look(RULES, str(rule)))
            axes.set_title(TITLES.get(engine, engine), loc="left")
            axes.set_xlabel("drafted tokens a cycle (window)")
        panels[0].set_ylabel("tokens per second, one text")
        panels[0].set_ylim(bottom=0)
        rules = [look(RULES, rule) for rule in dict.fromkeys(found["rule"])]
        keys = [Line2D([], [], color=r.color, marker=r.marker, label=r.label) for r in rules]
        keys.append(Line2D([], [], color=NOTE, linestyle=":", label="speed model"))
        fig.legend(handles=keys, loc="outside upper center", ncols=len(keys))
        fig.supxlabel(
            "validation prompts; bars: slowest and fastest round; ring: chosen window",
            fontsize=9, color=NOTE,
        )  # fmt: skip
    return fig


def _curve(axes: Axes, rows: pd.DataFrame, style: Look) -> None:
    x, y = rows["draft_length"].to_numpy(float), rows["measured"].to_numpy(float)
    bars = [y - rows["low"].to_numpy(float), rows["high"].to_numpy(float) - y]
    axes.errorbar(x, y, yerr=bars, color=style.color, marker=style.marker, capsize=3)
    axes.plot(x, rows["predicted"], ":", color=style.color, linewidth=1.8)
    best = int(y.argmax())
    axes.plot(x[best], y[best], "o", markersize=13, fillstyle="none", color="#222222", zorder=5)


def engines_figure(found: pd.DataFrame, *, prompts: Sequence[int]) -> Figure:
    """Tokens per second of every engine: a panel a batch size, a row an engine.

    Args:
        found: of `speed.speeds`.
        prompts: how many prompts stand behind the rows.
    """
    require(found, "engine rule draft_length batch tokens_per_second low high of_bound")
    sizes = sorted(found["batch"].unique())
    with mpl.rc_context({**STYLE, "axes.grid.axis": "x"}):
        heights = [(found["batch"] == size).sum() for size in sizes]
        fig = Figure(figsize=(9.6, 1.6 + 0.3 * sum(heights)), layout="constrained")
        panels = fig.subplots(len(sizes), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, size in zip(panels, sizes, strict=True):
            _rows(axes, found[found["batch"] == size])
            name = "one text at a time" if size == 1 else f"{size} texts side by side"
            axes.set_title(name, loc="left", fontsize=11)
        panels[-1].set_xlabel("tokens per second")
        fig.supxlabel(
            f"{span(pd.Series(list(prompts)))} test prompts; bars: slowest and fastest round; "
            "grey tick: the loop's bound",
            fontsize=9, color=NOTE,
        )  # fmt: skip
    return fig


def _rows(axes: Axes, rows: pd.DataFrame) -> None:
    listed: list[Any] = list(rows.itertuples())
    for place, row in enumerate(reversed(listed)):
        style = rule_look(row.rule)
        middle = row.tokens_per_second
        axes.barh(place, middle, height=0.72, color=style.color, alpha=0.28)
        axes.errorbar(middle, place, xerr=[[middle - row.low], [row.high - middle]],
                      fmt=style.marker, color=style.color, capsize=3)  # fmt: skip
        if row.of_bound == row.of_bound:  # not NaN
            axes.plot(middle / row.of_bound, place, "|", color="#444444", markersize=15)
        axes.text(0.004, place, f" {middle:,.0f}", transform=axes.get_yaxis_transform(),
                  va="center", fontsize=8.5)  # fmt: skip
    axes.set_yticks(range(len(listed)), [row_name(row) for row in reversed(listed)], fontsize=9)
    axes.set_xlim(left=0)
    axes.margins(y=0.02)


def row_name(row: Any) -> str:
    """An engine in words: which, by which rule, with which window."""
    engine = {
        GENERATE: "transformers",
        ENSEMBLE: "transformers",
        VLLM: "vLLM",
        UNPLUGGED: "vLLM without the plugin",
    }.get(row.engine, TITLES.get(row.engine, row.engine.replace("-", " ")))
    if row.rule == PLAIN:
        return f"{engine}, {PLAIN_LOOK.label}"
    return f"{engine}, {look(RULES, row.rule).label}, window {row.draft_length}"


def rule_look(rule: str) -> Look:
    """A rule's colour and mark, as everywhere; plain decoding has its own."""
    return PLAIN_LOOK if rule == PLAIN else look(RULES, rule)


def phases_figure(shares: pd.DataFrame) -> Figure:
    """Share of the time by phase: a bar a loop.

    Args:
        shares: of `speed.phase_table`.
    """
    require(shares, "engine rule draft_length phase share")
    loops = shares.drop_duplicates(["engine", "rule", "draft_length"])
    listed: list[Any] = list(loops.itertuples())
    with mpl.rc_context({**STYLE, "axes.grid.axis": "x"}):
        fig = Figure(figsize=(9.2, 1.5 + 0.42 * len(listed)), layout="constrained")
        axes = fig.subplots()
        for place, loop in enumerate(reversed(listed)):
            own = shares[
                (shares["engine"] == loop.engine)
                & (shares["rule"] == loop.rule)
                & (shares["draft_length"] == loop.draft_length)
            ].set_index("phase")["share"]
            _stack(axes, place, own)
        axes.set_yticks(range(len(listed)), [row_name(row) for row in reversed(listed)], fontsize=9)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("share of the time")
        axes.set_xlim(0, 1)
        keys = [
            Patch(facecolor=PHASE_COLORS[p], hatch=HATCHES[p], edgecolor="white", label=p)
            for p in PHASES
        ]
        fig.legend(handles=keys, loc="outside upper center", ncols=len(keys))
    return fig


def _stack(axes: Axes, place: int, own: pd.Series) -> None:
    left = 0.0
    for phase in PHASES:
        share = float(own[phase])
        axes.barh(place, share, left=left, color=PHASE_COLORS[phase], hatch=HATCHES[phase],
                  edgecolor="white", height=0.7)  # fmt: skip
        if share > 0.04:
            axes.text(left + share / 2, place, f"{share:.0%}", ha="center", va="center",
                      fontsize=8.5, bbox={"facecolor": "white", "alpha": 0.75, "pad": 1,
                                          "linewidth": 0})  # fmt: skip
        left += share
