"""Figures of the quality study: what is drawn is what the tables say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from judgelib.figures import RULES
from judgelib.quality_figures import frontier_figure, is_judge, matched_figure, ordered_rules

TARGET = 0.8
DOMAINS = {"all": 600, "math": 300, "facts": 300}
# rule, setting, tokens per cycle, change in points.
POINTS = [
    ("topk", 3.0, 8.0, -8.0),
    ("strict", 0.0, 3.0, 0.0),
    ("topk", 2.0, 5.0, -4.0),
    ("judge_annotated", 0.5, 12.0, -2.0),
    ("judge_annotated", 0.9, 9.0, 0.0),
    ("random", 0.1, 4.0, -12.0),
    ("draft", 0.0, 1.0, -40.0),
]
OPERATING = pd.DataFrame(
    [("topk", 2.0, "matched"), ("topk", 2.0, "fixed"), ("judge_annotated", 0.5, "fixed")],
    columns=["rule", "setting", "choice"],
)


def points(*extra: tuple[str, float, float, float]) -> pd.DataFrame:
    rows = [
        {
            "rule": rule, "setting": setting, "domain": domain, "prompts": prompts,
            "tokens_per_cycle": tokens, "right": TARGET + change / 100, "target_right": TARGET,
            "change": change, "change_low": change - 2, "change_high": change + 1,
        }
        for domain, prompts in DOMAINS.items()
        for rule, setting, tokens, change in [*POINTS, *extra]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def matched_table() -> pd.DataFrame:
    """As `quality.matched` gives it, the fastest first; everything else tells rows apart."""
    rows = [
        ("judge_annotated", 0.5, "fixed", 600, 6.0, 5.0, 7.5, -2.0, -3.5, -0.5),
        ("topk", 2.0, "matched", 600, 2.0, 1.8, 2.1, -0.5, -1.0, 0.0),
        ("strict", 0.0, "strict", 600, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0),
    ]
    names = "rule setting choice prompts gain gain_low gain_high change change_low change_high"
    return pd.DataFrame(rows, columns=names.split())


def marked(axes: Axes, rule: str) -> Line2D:
    """The one curve that looks like this rule."""
    (line,) = [
        line
        for line in axes.lines
        if line.get_marker() == RULES[rule].marker and line.get_color() == RULES[rule].color
    ]
    return line


def words(fig: Figure) -> set[str]:
    assert fig.legends
    return {text.get_text() for text in fig.legends[0].get_texts()}


@pytest.fixture(scope="module")
def frontier() -> Figure:
    fig = frontier_figure(points(), operating=OPERATING)
    fig.draw_without_rendering()  # a layout that does not fit warns
    return fig


@pytest.fixture(scope="module")
def matched() -> Figure:
    fig = matched_figure(matched_table())
    fig.draw_without_rendering()
    return fig


# --- the frontier --------------------------------------------------------------------------------


def test_a_panel_a_domain_and_all_of_them_first(frontier: Figure) -> None:
    titles = [axes.get_title(loc="left") for axes in frontier.axes]
    assert titles == ["all domains together", "math", "facts"]


def test_a_curve_and_a_band_a_rule(frontier: Figure) -> None:
    for axes in frontier.axes:
        shapes = [line for line in axes.lines if line.get_markersize() == 5.5]
        assert len(shapes) == len(axes.collections) == 4  # the draft is a line across, no curve
        assert {line.get_color() for line in shapes} == {
            RULES[rule].color for rule in ("strict", "topk", "judge_annotated", "random")
        }


def test_a_curve_begins_at_strict_and_goes_by_speed(frontier: Figure) -> None:
    for axes in frontier.axes:
        line = marked(axes, "topk")
        assert np.asarray(line.get_xdata()).tolist() == [3.0, 5.0, 8.0]
        assert np.asarray(line.get_ydata()) == pytest.approx([1.0, 0.76 / 0.8, 0.72 / 0.8])


def test_bands_are_the_intervals_of_the_difference(frontier: Figure) -> None:
    """topk at 3 loses 8 points of 80, and from 10 to 7 in the interval."""
    axes = frontier.axes[0]
    color = RULES["topk"].color
    (band,) = [c for c in axes.collections if to_hex(c.get_facecolor()[0]) == color.lower()]
    corners = band.get_paths()[0].vertices
    ends = sorted({round(y, 6) for x, y in np.asarray(corners) if x == 8.0})
    assert (ends[0], ends[-1]) == pytest.approx((1 - 10 / 80, 1 - 7 / 80))


def test_judges_are_drawn_through_and_the_control_is_dotted(frontier: Figure) -> None:
    styles = {
        rule: marked(frontier.axes[0], rule).get_linestyle()
        for rule in ("judge_annotated", "topk", "random")
    }
    assert styles == {"judge_annotated": "-", "topk": "--", "random": ":"}


def test_chosen_settings_get_one_ring_each(frontier: Figure) -> None:
    for axes in frontier.axes:
        (rings,) = [line for line in axes.lines if line.get_fillstyle() == "none"]
        assert sorted(np.asarray(rings.get_xdata()).tolist()) == [5.0, 12.0]
    assert "chosen settings" in words(frontier)
    assert "chosen settings" not in words(frontier_figure(points()))


def test_target_and_draft_are_lines_across(frontier: Figure) -> None:
    for axes in frontier.axes:
        across = [line for line in axes.lines if line.get_linestyle() == "-."]
        heights = [float(np.asarray(line.get_ydata())[0]) for line in across]
        assert heights == pytest.approx([1.0, 0.4 / 0.8])
        assert [text.get_text() for text in axes.texts] == ["target", "draft alone"]


def test_the_draft_may_be_absent() -> None:
    some = points()
    fig = frontier_figure(some[some["rule"] != "draft"])
    assert [text.get_text() for text in fig.axes[0].texts] == ["target"]


def test_the_frontier_says_its_units_and_its_size(frontier: Figure) -> None:
    first = frontier.axes[0]
    assert first.get_xlabel() == "tokens per target call"
    assert first.get_ylabel() == "right answers, relative to the target"
    assert frontier.get_supxlabel().startswith("600 validation prompts in all; bands: 95%")
    assert words(frontier) == {
        *(RULES[rule].label for rule in ("topk", "judge_annotated", "random")),
        "chosen settings",
    }


# --- matched quality -----------------------------------------------------------------------------


def bars(axes: Axes) -> list[tuple[str, float, tuple[float, float, float]]]:
    """(colour, place, (value, low, high)) of every row, as drawn."""
    found = []
    for container in axes.containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, (segments,) = container
        assert line is not None
        (ends,) = segments.get_segments()
        spot = float(np.asarray(line.get_xdata())[0]), float(np.asarray(line.get_ydata())[0])
        low, high = np.asarray(ends)[:, 0]
        found.append((str(line.get_color()), spot[1], (spot[0], float(low), float(high))))
    return found


def test_a_row_a_rule_the_fastest_on_top(matched: Figure) -> None:
    left, right = matched.axes
    names = [text.get_text() for text in left.get_yticklabels()]
    assert names == ["top-K, 2 (matched)", "judge (annotated), 0.5 (fixed)"]
    assert [place for _, place, _ in bars(left)] == [0.0, 1.0]
    gains, changes = ([span for *_, span in bars(axes)] for axes in (left, right))
    assert gains == [pytest.approx((2.0, 1.8, 2.1)), pytest.approx((6.0, 5.0, 7.5))]
    assert changes == [pytest.approx((-0.5, -1.0, 0.0)), pytest.approx((-2.0, -3.5, -0.5))]


def test_matched_quality_says_its_units_and_its_size(matched: Figure) -> None:
    left, right = matched.axes
    assert left.get_xlabel() == "accepted tokens per target call, times strict's"
    assert right.get_xlabel().startswith("change in right answers, points")
    assert matched.get_supxlabel().startswith("600 test prompts, all domains together")


def test_a_rule_has_one_colour_in_both_figures(frontier: Figure, matched: Figure) -> None:
    for axes in matched.axes:
        colors = [color for color, *_ in bars(axes)]
        assert colors == [RULES[rule].color for rule in ("topk", "judge_annotated")]
        assert colors == [
            marked(frontier.axes[0], rule).get_color() for rule in ("topk", "judge_annotated")
        ]


def test_an_interval_that_rounding_shifted_is_drawn() -> None:
    some = matched_table().assign(gain_low=6.0 + 1e-12)
    assert len(bars(matched_figure(some).axes[0])) == 2


# --- what is refused -----------------------------------------------------------------------------


def test_rules_in_the_palettes_order() -> None:
    assert ordered_rules(points()) == ["strict", "judge_annotated", "topk", "random"]
    judges = [rule for rule in RULES if is_judge(rule)]
    assert {"judge_annotated", "floored_mined"} <= set(judges)
    assert not set(judges) & {"strict", "topk", "random"}


def test_unknown_rules_are_refused() -> None:
    with pytest.raises(ValueError, match="no colour for 'gpt'"):
        frontier_figure(points(("gpt", 1.0, 4.0, 0.0)))
    with pytest.raises(ValueError, match="no colour for 'gpt'"):
        matched_figure(matched_table().replace("topk", "gpt"))


@pytest.mark.parametrize("column", ["rule", "domain", "right", "change_low", "change_high"])
def test_the_frontier_asks_for_its_columns(column: str) -> None:
    with pytest.raises(ValueError, match=f"missing: {column}"):
        frontier_figure(points().drop(columns=column))


@pytest.mark.parametrize("column", [str(name) for name in matched_table().columns])
def test_matched_quality_asks_for_its_columns(column: str) -> None:
    with pytest.raises(ValueError, match=f"missing: {column}"):
        matched_figure(matched_table().drop(columns=column))


@pytest.mark.parametrize(
    ("draw", "frame"), [(frontier_figure, points()), (matched_figure, matched_table())]
)
def test_no_rows_are_refused(draw: Any, frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="got no row"):
        draw(frame.iloc[:0])
