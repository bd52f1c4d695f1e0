"""Figures of the ablations: what is drawn is what the tables say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from judgelib.ablation_figures import probe_figure, run_figure
from judgelib.figures import DOMAINS

VARIANTS = ["mined on math", "strict, 16", "2"]


def probes() -> pd.DataFrame:
    rows = [
        (variant, domain, prompts, 0.7 + i / 10 + j / 50, 0.65 + i / 10, 0.8 + i / 10)
        for i, variant in enumerate(VARIANTS)
        for j, (domain, prompts) in enumerate([("facts", 180), ("math", 1200)])
    ]
    return pd.DataFrame(rows, columns=["variant", "domain", "prompts", "auc", "low", "high"])


def runs() -> pd.DataFrame:
    rows = [
        (variant, domain, prompts, 5.0 + i + j, 4.0 + i, 9.0 + i, 0.8 - i / 10, 0.5, 0.85)
        for i, variant in enumerate(VARIANTS)
        for j, (domain, prompts) in enumerate([("all", 600), ("math", 300), ("code", 300)])
    ]
    kept = ["accepted_per_cycle", "accepted_per_cycle_low", "accepted_per_cycle_high"]
    names = ["variant", "domain", "prompts", *kept, "right", "right_low", "right_high"]
    return pd.DataFrame(rows, columns=names)


@pytest.fixture(scope="module")
def probed() -> Figure:
    fig = probe_figure(probes(), "A question?", "hidden state")
    fig.draw_without_rendering()  # a layout that does not fit warns
    return fig


@pytest.fixture(scope="module")
def ran() -> Figure:
    fig = run_figure(runs(), "Another question?", "judge of")
    fig.draw_without_rendering()
    return fig


Drawn = dict[str, list[tuple[float, float, float]]]


def drawn(axes: Axes) -> Drawn:
    """(value, low, high) of every variant, by the colour of its domain."""
    found: Drawn = {}
    for container in axes.containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, (segments,) = container
        assert line is not None
        ends = [np.asarray(segment)[:, 1] for segment in segments.get_segments()]
        values = np.asarray(line.get_ydata(), float)
        found[str(line.get_color())] = [
            (float(y), float(low), float(high)) for y, (low, high) in zip(values, ends, strict=True)
        ]
    return found


def expected(frame: pd.DataFrame, columns: list[str]) -> Drawn:
    return {
        DOMAINS[str(domain)].color: [
            pytest.approx(row) for row in own[columns].itertuples(index=False, name=None)
        ]
        for domain, own in frame.groupby("domain")
    }


def words(fig: Figure) -> list[str]:
    return [text.get_text() for text in fig.legends[0].get_texts()]


def test_probes_are_drawn_as_given(probed: Figure) -> None:
    (axes,) = probed.axes
    assert drawn(axes) == expected(probes(), ["auc", "low", "high"])
    assert sorted(text.get_text() for text in axes.texts) == [
        *("0.700", "0.720", "0.800", "0.820", "0.900", "0.920")
    ]


def test_probes_say_what_they_are(probed: Figure) -> None:
    (axes,) = probed.axes
    assert axes.get_title(loc="left") == "A question?"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("hidden state", "AUC on test questions")
    assert probed.get_supxlabel().startswith("180–1,200 questions a domain; bars: 95% bootstrap")
    assert words(probed) == ["math", "facts"]


def test_runs_have_a_panel_of_speed_and_one_of_quality(ran: Figure) -> None:
    left, right = ran.axes
    kept = ["accepted_per_cycle", "accepted_per_cycle_low", "accepted_per_cycle_high"]
    assert drawn(left) == expected(runs(), kept)
    assert drawn(right) == expected(runs(), ["right", "right_low", "right_high"])
    assert left.get_ylim()[0] == 0
    assert {"5.0", "9.0"} <= {text.get_text() for text in left.texts}
    assert {"80%", "60%"} <= {text.get_text() for text in right.texts}


def test_runs_say_what_they_are(ran: Figure) -> None:
    left, right = ran.axes
    assert left.get_title(loc="left") == "Another question?"
    assert left.get_xlabel() == right.get_xlabel() == "judge of"
    assert left.get_ylabel() == "accepted tokens per target call"
    assert right.get_ylabel() == "right answers"
    assert ran.get_supxlabel().startswith("300 test prompts a domain; bars: 95% bootstrap")
    assert words(ran) == ["math", "code", "all"]


@pytest.mark.parametrize("figure", ["probed", "ran"])
def test_variants_keep_their_order_and_break_their_names(
    figure: str, request: pytest.FixtureRequest
) -> None:
    for axes in request.getfixturevalue(figure).axes:
        names = [text.get_text() for text in axes.get_xticklabels()]
        assert names == ["mined\non math", "strict\n16", "2"]


def test_a_missing_combination_leaves_a_gap() -> None:
    fig = probe_figure(probes().iloc[1:], "", "")
    assert sum(len(rows) for rows in drawn(fig.axes[0]).values()) == 5


def test_more_variants_get_more_room() -> None:
    many = pd.concat([probes().assign(variant=f"{n}") for n in range(12)]).drop_duplicates(
        ["variant", "domain"]
    )
    for draw, frame in ((probe_figure, probes()), (probe_figure, many)):
        width = draw(frame, "", "").get_size_inches()[0]
        assert width == pytest.approx(max(6.4, 1.2 + 0.42 * len(frame)))


COLUMNS = [(probe_figure, probes(), str(name)) for name in probes().columns]
COLUMNS += [(run_figure, runs(), str(name)) for name in runs().columns]


@pytest.mark.parametrize(("draw", "frame", "column"), COLUMNS)
def test_columns_are_asked_for(draw: Any, frame: pd.DataFrame, column: str) -> None:
    with pytest.raises(ValueError, match=f"missing: {column}"):
        draw(frame.drop(columns=column), "", "")


@pytest.mark.parametrize(("draw", "frame"), [(probe_figure, probes()), (run_figure, runs())])
def test_strange_domains_are_refused(draw: Any, frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="no colour for 'law'"):
        draw(frame.replace("math", "law"), "", "")


@pytest.mark.parametrize(("draw", "frame"), [(probe_figure, probes()), (run_figure, runs())])
def test_a_comparison_that_a_profile_cannot_make_says_so(draw: Any, frame: pd.DataFrame) -> None:
    (axes,) = draw(frame.iloc[:0], "Without a twin", "").axes
    assert axes.get_title(loc="left") == "Without a twin"
    assert axes.texts[0].get_text().startswith("Not measured: this profile has no such model")
