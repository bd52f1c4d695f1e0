"""Figures of the speed model: what a pair could reach on a machine, by window."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from judgelib.figures import BLACK, GREEN, GREY, ORANGE, PURPLE, SKY, STYLE, VERMILION, require

NOTE = "#555555"
COLORS = (BLACK, VERMILION, GREEN, ORANGE, PURPLE, SKY)
MARKERS = "oDs^vP"
CURVES = "target draft machine weights acceptance window tokens_per_second best"
REPORTS = "target draft machine weights draft_spread window reported ceiling reached"


def speed_model_figure(curves: pd.DataFrame, reported: pd.DataFrame | None = None) -> Figure:
    """Tokens per second at the hardware's limit against the window: a panel a pair, a curve an
    acceptance.

    Args:
        curves: of `speed_model.llama_curves`. Window 0 is plain decoding, drawn as a line; rings
            mark the best windows.
        reported: of `speed_model.distances`; a star each, with the share of the ceiling that it
            reaches in the panel's own setup (the draft spread over all accelerators).
    """
    require(curves, CURVES)
    names = list(dict.fromkeys(curves["acceptance"]))
    if len(names) > len(COLORS):
        raise ValueError(f"expected at most {len(COLORS)} acceptances, got {', '.join(names)}")
    setups = list(curves.groupby(["target", "draft", "machine", "weights"], sort=False))
    with mpl.rc_context({**STYLE, "axes.grid.axis": "both"}):
        fig = Figure(figsize=(5.9 * len(setups), 4.9), layout="constrained")
        panels = fig.subplots(1, len(setups), squeeze=False)[0]
        for axes, (setup, rows) in zip(panels, setups, strict=True):
            _panel(axes, rows, names)
            target, draft, machine, weights = map(str, setup)
            axes.set_title(f"{target} ({weights}), draft {draft}\n{machine}", loc="left")
            if reported is not None:
                _stars(axes, _belonging(reported, target, machine, weights))
        panels[0].set_ylabel("tokens per second, one text")
        _key(fig, names, with_star=reported is not None)
        fig.supxlabel(
            "predicted: every pass at the memory's bandwidth by the data sheet, nothing else takes "
            "time; nothing here was measured on a GPU",
            fontsize=9, color=NOTE,
        )  # fmt: skip
    return fig


def _panel(axes: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    plain = float(rows[rows["window"] == 0]["tokens_per_second"].iloc[0])
    axes.axhline(plain, color=GREY, linewidth=1.2, linestyle="-.")
    axes.text(1, plain, " plain decoding", va="bottom", fontsize=8.5, color=NOTE)
    for place, name in enumerate(names):
        curve = rows[(rows["acceptance"] == name) & (rows["window"] > 0)]
        axes.plot(curve["window"], curve["tokens_per_second"], "-", color=COLORS[place],
                  marker=MARKERS[place], markersize=4, linewidth=1.6)  # fmt: skip
        best = curve[curve["best"]]
        axes.plot(best["window"], best["tokens_per_second"], "o", markersize=11,
                  fillstyle="none", color=COLORS[place])  # fmt: skip
        for window, speed in zip(best["window"], best["tokens_per_second"], strict=True):
            axes.annotate(f"{speed:,.0f}", (window, speed), xytext=(0, 9), ha="center",
                          textcoords="offset points", fontsize=8.5)  # fmt: skip
    axes.set_xlabel("window: tokens drafted a cycle")
    axes.set_ylim(0, 1.12 * float(rows["tokens_per_second"].max()))


def _belonging(
    reported: pd.DataFrame, target: str, machine: str, weights: str
) -> list[dict[str, Any]]:
    require(reported, REPORTS)
    own = reported[
        (reported["target"] == target)
        & (reported["machine"] == machine)
        & (reported["weights"] == weights)
        & reported["draft_spread"]
    ]
    return [{str(key): value for key, value in row.items()} for row in own.to_dict("records")]


def _stars(axes: Axes, entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        place = entry["window"], entry["reported"]
        axes.plot(*place, "*", markersize=14, color=PURPLE, zorder=5)
        axes.annotate(
            f"reported {entry['reported']:g}\n{entry['reached']:.0%} of the ceiling", place,
            xytext=(6, 9), textcoords="offset points", ha="right", va="bottom", fontsize=8.5,
        )  # fmt: skip


def _key(fig: Figure, names: list[str], *, with_star: bool) -> None:
    handles = [
        Line2D([], [], color=COLORS[place], marker=MARKERS[place], markersize=5, label=name)
        for place, name in enumerate(names)
    ]
    handles.append(Line2D([], [], color="#222222", marker="o", markersize=10, linestyle="",
                          fillstyle="none", label="best window"))  # fmt: skip
    if with_star:
        handles.append(Line2D([], [], color=PURPLE, marker="*", markersize=12, linestyle="",
                              label="reported by the paper"))  # fmt: skip
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=9)
