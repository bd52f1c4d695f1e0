"""Figures of the head study: curves, layers, the sweep of C, thresholds."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from judgelib.figures import BLUE, DOMAINS, GREY, STYLE, VERMILION, key, look, ordered, require

NOTE = "#555555"


def curves_figure(curves: pd.DataFrame, aucs: pd.DataFrame) -> Figure:
    """ROC and precision-recall of finding wrong tokens, by domain, with 95% bands.

    curves: from `curves.roc_and_pr`; aucs: from `curves.auc_with_interval`.
    """
    require(curves, "domain curve x y low high")
    with mpl.rc_context({**STYLE, "axes.grid.axis": "both"}):
        fig = Figure(figsize=(10.5, 4.6), layout="constrained")
        left, right = fig.subplots(1, 2)
        for axes, name in ((left, "roc"), (right, "pr")):
            _bands(axes, curves[curves["curve"] == name])
        left.set_title("ROC: wrong tokens found against false alarms", loc="left")
        left.set_xlabel("right tokens rejected")
        left.set_ylabel("wrong tokens rejected")
        right.set_title("Precision and recall", loc="left")
        right.set_xlabel("wrong tokens rejected (recall)")
        right.set_ylabel("rejected tokens that are wrong (precision)")
        words = [
            f"{DOMAINS[domain].label} AUC {value:.3f} [{low:.3f}, {high:.3f}]"
            for domain, value, low, high in aucs[["domain", "auc", "low", "high"]].to_numpy()
        ]
        left.legend(handles=_lines(list(aucs["domain"]), words), loc="lower right", fontsize=9)
        fig.supxlabel("bands: 95% bootstrap over questions; test questions", fontsize=9, color=NOTE)
    return fig


def _bands(axes: Axes, curves: pd.DataFrame) -> None:
    for domain in ordered(curves["domain"], DOMAINS):
        rows, style = curves[curves["domain"] == domain], look(DOMAINS, domain)
        axes.plot(rows["x"], rows["y"], color=style.color, linewidth=1.6)
        axes.fill_between(rows["x"], rows["low"], rows["high"], color=style.color, alpha=0.18)
        marks = rows.iloc[10::20]
        axes.plot(marks["x"], marks["y"], style.marker, color=style.color, markersize=5)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _lines(domains: list[str], words: list[str]) -> list[Line2D]:
    return [
        Line2D(
            [], [], color=look(DOMAINS, name).color, marker=look(DOMAINS, name).marker, label=text
        )
        for name, text in zip(domains, words, strict=True)
    ]


def layers_figure(frame: pd.DataFrame) -> Figure:
    """AUC of a linear probe at every depth, by domain, with 95% intervals.

    Columns: spot (in order of depth), domain, auc, low, high.
    """
    require(frame, "spot domain auc low high")
    spots = list(dict.fromkeys(frame["spot"]))
    names = ordered(frame["domain"], DOMAINS)
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(8.5, 4.2), layout="constrained")
        axes = fig.subplots()
        for shift, domain in zip((-0.12, 0.0, 0.12), names, strict=False):
            rows, style = (
                frame[frame["domain"] == domain].set_index("spot").loc[spots],
                DOMAINS[domain],
            )
            x = [place + shift for place in range(len(spots))]
            reach = [rows["auc"] - rows["low"], rows["high"] - rows["auc"]]
            axes.errorbar(x, rows["auc"], yerr=reach, fmt=f"{style.marker}-", color=style.color,
                          capsize=3, markersize=5.5, linewidth=1.2)  # fmt: skip
        axes.set_xticks(range(len(spots)), [spot.replace("_", "\n") for spot in spots])
        axes.set_ylabel("AUC for the first wrong token")
        axes.set_xlabel("where the hidden state is read")
        axes.set_title("What the target knows, layer by layer", loc="left")
        key(fig, names, DOMAINS)
        fig.supxlabel("bars: 95% bootstrap over questions", fontsize=9, color=NOTE)
    return fig


def sweep_figure(sweep: pd.DataFrame) -> Figure:
    """AUC against the strength C of the logistic regression.

    Columns: C, auc_train, auc_validation, chosen.
    """
    require(sweep, "C auc_train auc_validation chosen")
    with mpl.rc_context({**STYLE, "axes.grid.axis": "both"}):
        fig = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = fig.subplots()
        axes.semilogx(sweep["C"], sweep["auc_train"], "s--", color=GREY, label="training questions")
        axes.semilogx(sweep["C"], sweep["auc_validation"], "o-", color=BLUE,
                      label="held-out questions")  # fmt: skip
        best = sweep[sweep["chosen"]].iloc[0]
        axes.plot(best["C"], best["auc_validation"], "D", color=VERMILION, markersize=9,
                  label=f"chosen: C = {best['C']:g}")  # fmt: skip
        axes.set_xlabel("C (inverse strength of the penalty)")
        axes.set_ylabel("AUC on mismatches")
        axes.set_title("Choosing C for the mined head", loc="left")
        axes.legend(fontsize=9)
    return fig


def thresholds_figure(steps: pd.DataFrame, alpha: float) -> Figure:
    """Share of prompts lost at each threshold that was tested, from strict to loose.

    Columns: head (annotated or mined), threshold, loss, low, high (shares), certified.
    """
    require(steps, "head threshold loss low high certified")
    looks = {"annotated": (VERMILION, "D"), "mined": ("#E69F00", "s")}
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(7.6, 4.0), layout="constrained")
        axes = fig.subplots()
        grid = sorted(set(steps["threshold"]), reverse=True)
        for shift, (name, rows) in zip((-0.1, 0.1), steps.groupby("head"), strict=False):
            color, marker = looks[str(name)]
            x = [grid.index(threshold) + shift for threshold in rows["threshold"]]
            reach = [rows["loss"] - rows["low"], rows["high"] - rows["loss"]]
            axes.errorbar(x, rows["loss"], yerr=reach, fmt=marker, color=color, capsize=3,
                          label=f"{name} head")  # fmt: skip
            passed = [place for place, ok in zip(x, rows["certified"], strict=True) if ok]
            axes.plot(passed, rows["loss"][rows["certified"]], marker, color=color, markersize=12,
                      fillstyle="none")  # fmt: skip
        axes.axhline(alpha, color="#333333", linestyle="--", linewidth=1)
        axes.annotate(f"tolerated: {alpha:.0%}", (len(grid) - 0.6, alpha), xytext=(0, 4),
                      textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
        axes.set_xticks(range(len(grid)), [f"{threshold:g}" for threshold in grid])
        axes.set_xlim(-0.5, len(grid) - 0.5)
        axes.set_ylim(bottom=-0.04 * float(steps["high"].max()))  # rings around 0 stay whole
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        axes.set_xlabel("threshold δ, strict to loose")
        axes.set_ylabel("prompts lost (target right, judged answer wrong)")
        axes.set_title("Risk-controlled choice of the threshold", loc="left")
        axes.legend(fontsize=9, title="ringed: certified", title_fontsize=9)
        fig.supxlabel(
            "bars: 95% Clopper-Pearson intervals; validation prompts", fontsize=9, color=NOTE
        )
    return fig
