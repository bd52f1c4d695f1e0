"""Figures of the quality study: the frontier, and what is left at matched quality."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from judgelib.figures import DOMAINS, GREY, RULES, STYLE, look, ordered, require, span
from judgelib.rulebook import FLOORED, JUDGE

NOTE = "#555555"
COLUMNS = "rule setting domain prompts tokens_per_cycle right target_right change_low change_high"


def frontier_figure(points: pd.DataFrame, *, operating: pd.DataFrame | None = None) -> Figure:
    """Quality relative to the target against tokens per cycle: a curve a rule, a panel a domain.

    Args:
        points: of `frontier.points` on validation prompts, the draft's row among them.
        operating: columns rule and setting; these points get a ring.
    """
    require(points, COLUMNS)
    domains = ["all", *[name for name in ordered(points["domain"], DOMAINS) if name != "all"]]
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(12.5, 7.6), layout="constrained")
        grid = fig.add_gridspec(3, 2, width_ratios=[2.1, 1])
        panels = [fig.add_subplot(grid[:, 0])]
        panels += [fig.add_subplot(grid[row, 1]) for row in range(len(domains) - 1)]
        for axes, domain in zip(panels, domains, strict=True):
            _panel(axes, points[points["domain"] == domain], operating)
            name = "all domains together" if domain == "all" else domain
            axes.set_title(name, loc="left", fontsize=11)
        panels[0].set_ylabel("right answers, relative to the target")
        panels[0].set_xlabel("tokens per target call")
        panels[-1].set_xlabel("tokens per target call")
        _key(fig, [rule for rule in ordered_rules(points) if rule != "strict"], operating)
        together = points[points["domain"] == "all"]["prompts"]
        fig.supxlabel(
            f"{span(together)} validation prompts in all; bands: 95% intervals of the paired "
            "difference to the target, prompts resampled",
            fontsize=9, color=NOTE,
        )  # fmt: skip
    return fig


def ordered_rules(points: pd.DataFrame) -> list[str]:
    """The rules that are there, in the palette's order; the draft alone is no rule."""
    rules = points["rule"]
    return ordered(rules[rules != "draft"], RULES)


def is_judge(rule: str) -> bool:
    """Whether a trained head takes part."""
    return rule.startswith((JUDGE, FLOORED))


def _panel(axes: Axes, points: pd.DataFrame, operating: pd.DataFrame | None) -> None:
    strict = points[points["rule"] == "strict"].iloc[0]
    for rule in ordered_rules(points):
        # A rule's curve begins where it keeps nothing more than strict does.
        curve = pd.concat([strict.to_frame().T, points[points["rule"] == rule]])
        _curve(axes, curve.infer_objects(), rule, control=rule == "random")
    if operating is not None:
        chosen = operating[["rule", "setting"]].drop_duplicates()
        marked = points.merge(chosen, on=["rule", "setting"])
        axes.plot(marked["tokens_per_cycle"], marked["right"] / marked["target_right"], "o",
                  markersize=13, fillstyle="none", color="#222222", zorder=5)  # fmt: skip
    _references(axes, points)
    axes.margins(y=0.1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(True, axis="both")


def _curve(axes: Axes, curve: pd.DataFrame, rule: str, *, control: bool) -> None:
    style = look(RULES, rule)
    curve = curve.sort_values("tokens_per_cycle")
    x, base = curve["tokens_per_cycle"].to_numpy(float), curve["target_right"].to_numpy(float)
    y = curve["right"].to_numpy(float) / base
    judge = is_judge(rule)
    line = ":" if control else "-" if judge else "--"
    axes.plot(x, y, line, marker=style.marker, color=style.color, markersize=5.5,
              linewidth=2.2 if judge else 1.2, zorder=4 if judge else 3)  # fmt: skip
    low = 1 + curve["change_low"].to_numpy(float) / 100 / base
    high = 1 + curve["change_high"].to_numpy(float) / 100 / base
    axes.fill_between(x, low, high, color=style.color, alpha=0.18 if judge else 0.07, linewidth=0)


def _references(axes: Axes, points: pd.DataFrame) -> None:
    """The target's and the draft's own share of right answers, as lines."""
    axes.axhline(1, color="#222222", linewidth=1, linestyle="-.")
    draft = points[points["rule"] == "draft"]
    right = float((draft["right"] / draft["target_right"]).iloc[0]) if len(draft) else np.nan
    edge = axes.get_yaxis_transform()
    axes.text(1.0, 1.004, "target", transform=edge, ha="right", va="bottom", fontsize=8.5)
    if np.isfinite(right):
        axes.axhline(right, color=GREY, linewidth=1, linestyle="-.")
        axes.text(1.0, right + 0.004, "draft alone", transform=edge, ha="right", va="bottom",
                  fontsize=8.5, color=NOTE)  # fmt: skip


def _key(fig: Figure, rules: Sequence[str], operating: pd.DataFrame | None) -> None:
    handles = [
        Line2D([], [], color=look(RULES, rule).color, marker=look(RULES, rule).marker,
               linestyle="-" if is_judge(rule) else "--", label=look(RULES, rule).label)
        for rule in rules
    ]  # fmt: skip
    if operating is not None:
        handles.append(Line2D([], [], color="#222222", marker="o", markersize=11, linestyle="",
                              fillstyle="none", label="chosen settings"))  # fmt: skip
    fig.legend(handles=handles, loc="outside upper center", ncols=6, fontsize=9)


def matched_figure(table: pd.DataFrame) -> Figure:
    """Gain in accepted tokens over strict beside the change in right answers, a row a rule.

    Columns: rule, setting, choice, prompts, gain, gain_low, gain_high, change, change_low,
    change_high, as `quality.matched` gives them.
    """
    columns = "rule setting choice prompts gain gain_low gain_high change change_low change_high"
    require(table, columns)
    rows = table[table["rule"] != "strict"].iloc[::-1].reset_index(drop=True)
    names = [
        f"{look(RULES, rule).label}, {setting:.3g} ({choice})"
        for rule, setting, choice in zip(rows["rule"], rows["setting"], rows["choice"], strict=True)
    ]
    with mpl.rc_context({**STYLE, "axes.grid.axis": "x"}):
        fig = Figure(figsize=(11.5, 1.6 + 0.36 * len(rows)), layout="constrained")
        left, right = fig.subplots(1, 2, sharey=True)
        _bars(left, rows, "gain")
        _bars(right, rows, "change")
        left.set_yticks(range(len(rows)), names)
        left.axvline(1, color="#222222", linewidth=1)
        left.set_xlabel("accepted tokens per target call, times strict's")
        left.set_title("What the rule gains", loc="left")
        right.axvline(0, color="#222222", linewidth=1)
        right.axvline(-1, color="#222222", linewidth=1, linestyle=":")
        right.set_xlabel("change in right answers, points (dotted: −1)")
        right.set_title("and what it costs", loc="left")
        fig.supxlabel(
            f"{span(rows['prompts'])} test prompts, all domains together; bars: 95% bootstrap "
            "intervals, prompts resampled",
            fontsize=9, color=NOTE,
        )  # fmt: skip
    return fig


def _bars(axes: Axes, rows: pd.DataFrame, name: str) -> None:
    columns = [rows[f"{name}{end}"].to_numpy(float) for end in ("", "_low", "_high")]
    for place, (rule, middle, low, high) in enumerate(zip(rows["rule"], *columns, strict=True)):
        style = look(RULES, str(rule))
        axes.errorbar(middle, place, xerr=[[max(0, middle - low)], [max(0, high - middle)]],
                      fmt=style.marker, color=style.color, capsize=3, markersize=6.5)  # fmt: skip
