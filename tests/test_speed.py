"""The speed study's arithmetic, on tables whose answers are known."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from judgelib import speed, timing_figures
from judgelib.engines import (
    ASSISTED,
    COMPILED,
    EAGER,
    ENSEMBLE,
    GENERATE,
    PLAIN,
    UNPLUGGED,
    VLLM,
    Spec,
)
from judgelib.results import SCHEMAS

TIMES = {PLAIN: 1.0, "strict": 2.0, speed.JUDGE: 3.0, "ratio": 3.1, "ensemble": 1.5}
NOISE = (1.0, 0.5, 2.0)  # a round slows every engine down alike


FACTOR = {
    EAGER: 100, COMPILED: 200, VLLM: 400, UNPLUGGED: 400, GENERATE: 90, ASSISTED: 50, ENSEMBLE: 50,
}  # fmt: skip


def rows_for(spec: Spec, rate: float) -> list[dict[str, Any]]:
    return [
        {
            **{name: getattr(spec, name) for name in speed.ROUND},
            "round": number, "hardware": "a machine", "prompts": 16, "tokens": 600,
            "cycles": 0 if spec.engine.startswith("transformers") else 100,
            "seconds": noise * 600 / rate, "bound_seconds": noise * 540 / rate,
        }
        for number, noise in enumerate(NOISE, 1)
    ]  # fmt: skip


def table_of(specs: list[Spec]) -> pd.DataFrame:
    return pd.DataFrame(
        row
        for spec in specs
        for row in rows_for(spec, FACTOR[spec.engine] * TIMES[spec.rule])
    )  # fmt: skip


@pytest.fixture
def windows() -> pd.DataFrame:
    """A sweep in which strict is fastest at 8 and the judge at 16."""
    rates = {("strict", 4): 150, ("strict", 8): 200, (speed.JUDGE, 8): 250, (speed.JUDGE, 16): 300}
    specs = itertools.product((EAGER, COMPILED), rates.items())
    return pd.DataFrame(
        row
        for engine, ((rule, window), rate) in specs
        for row in rows_for(Spec(engine, rule, 0.3 * (rule != "strict"), window), rate)
    )


@pytest.fixture
def lineup(windows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> list[Spec]:
    monkeypatch.setattr(speed, "has_vllm", lambda: True)
    best = speed.best_windows(windows)
    return speed.lineup(best, 0.3, common=5, batch=16)


def test_best_windows_are_those_with_the_most_tokens_per_second(windows: pd.DataFrame) -> None:
    expected = {(engine, rule): 8 if rule == "strict" else 16
                for engine in (EAGER, COMPILED) for rule in ("strict", speed.JUDGE)}  # fmt: skip
    assert speed.best_windows(windows) == expected


def test_lineup_holds_every_engine_once(lineup: list[Spec]) -> None:
    assert len(set(lineup)) == len(lineup)
    assert {spec.engine for spec in lineup} == set(FACTOR)
    judged = {spec.draft_length for spec in lineup if spec.rule == speed.JUDGE}
    assert judged == {16}  # vLLM, which chose no windows, takes the compiled loop's
    assert {spec.batch for spec in lineup if spec.engine == VLLM} == {1, 16}
    assert all(spec.batch == 1 for spec in lineup if spec.engine in (ASSISTED, ENSEMBLE))


def test_without_vllm_its_rows_are_missing(
    windows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "has_vllm", lambda: False)
    specs = speed.lineup(speed.best_windows(windows), 0.3, common=5, batch=16)
    assert not {VLLM, UNPLUGGED} & {spec.engine for spec in specs}
    found = speed.verdicts(table_of(specs), windows).set_index("comparison")
    assert list(found.index[found["times"].isna()]) == [
        "the judge over strict verification, vLLM", "the judge over plain decoding, vLLM",
        "vLLM with the plugin over vLLM without it, strict",
    ]  # fmt: skip
    assert "not installed here" in speed.vllm_note(True)


def test_a_profile_may_leave_vllm_out(
    windows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "has_vllm", lambda: True)
    best = speed.best_windows(windows)
    options: dict[str, Any] = {"common": 5, "batch": 16}
    assert VLLM in {spec.engine for spec in speed.lineup(best, 0.3, **options)}
    assert VLLM not in {spec.engine for spec in speed.lineup(best, 0.3, **options, vllm=False)}
    assert speed.vllm_note(True) == "" and "leaves vLLM out" in speed.vllm_note(False)


def test_speeds_are_medians_over_rounds(lineup: list[Spec]) -> None:
    found = speed.speeds(table_of(lineup)).set_index(["engine", "rule", "batch"])
    plain = found.loc[(COMPILED, PLAIN, 1)]
    assert plain["tokens_per_second"] == pytest.approx(200)
    assert (plain["low"], plain["high"]) == pytest.approx((100, 400))
    assert plain["of_bound"] == pytest.approx(0.9)
    assert plain["tokens_per_cycle"] == 6
    assert np.isnan(found.loc[(GENERATE, PLAIN, 1), "tokens_per_cycle"])


def test_ratios_are_taken_within_rounds(lineup: list[Spec], windows: pd.DataFrame) -> None:
    """Noise that a round's engines share is no uncertainty of a ratio."""
    found = speed.verdicts(table_of(lineup), windows).set_index("comparison")
    assert list(found.index) == list(speed.COMPARISONS)
    judged = found.loc["the judge over strict verification, compiled"]
    assert tuple(judged) == pytest.approx((1.5, 1.5, 1.5))
    assert found.loc["the judge over plain decoding, vLLM", "times"] == pytest.approx(3)
    assert found.loc["the loop over assisted generation, strict", "times"] == pytest.approx(2)


def test_named_engines(lineup: list[Spec], windows: pd.DataFrame) -> None:
    table = table_of(lineup)
    assert speed.named(table, windows, "judgelib strict") == Spec(EAGER, "strict", 0.0, 8)
    assert speed.named(table, windows, "judgelib strict common") == Spec(EAGER, "strict", 0.0, 5)
    assert speed.named(table, windows, "vllm nothing") is None
    with pytest.raises(ValueError, match="expected rounds of"):
        speed.ratio(table, Spec(EAGER, "strict", 0.0, 99), Spec(EAGER, "strict", 0.0, 8))


def test_order_says_who_needs_fewer_target_calls(lineup: list[Spec], windows: pd.DataFrame) -> None:
    table = table_of(lineup)
    table.loc[table["rule"] == speed.JUDGE, "cycles"] = 50
    table.loc[table["rule"] == PLAIN, "cycles"] = 600
    assert speed.order(table, windows) == [
        "the judge needs fewer target calls than strict verification",
        "strict verification needs fewer target calls than plain decoding",
    ]
    table.loc[table["rule"] == speed.JUDGE, "cycles"] = 100
    assert speed.order(table, windows)[0].startswith("the judge needs no fewer target calls")


def test_tables_have_the_declared_columns(lineup: list[Spec]) -> None:
    assert sorted(table_of(lineup).columns) == sorted(SCHEMAS["speed"])


def test_figures_show_every_engine(lineup: list[Spec], windows: pd.DataFrame) -> None:
    found = speed.speeds(table_of(lineup))
    panels = timing_figures.engines_figure(found, prompts=[16]).axes
    labels = [text.get_text() for axes in panels for text in axes.get_yticklabels()]
    assert len(labels) == len(lineup)
    assert "transformers assisted, strict, window 5" in labels
    assert "vLLM without the plugin, strict, window 8" in labels
    checked = speed.speeds(windows).assign(
        measured=lambda t: t["tokens_per_second"], predicted=lambda t: t["tokens_per_second"] * 1.1
    )
    figure = timing_figures.windows_figure(checked)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "judgelib",
        "judgelib, compiled",
    ]
    shares = pd.DataFrame(
        {"engine": EAGER, "rule": "strict", "draft_length": 8, "phase": phase, "share": 0.25}
        for phase in timing_figures.PHASES
    )
    (axes,) = timing_figures.phases_figure(shares).axes
    assert sum(patch.get_width() for patch in axes.patches) == pytest.approx(1)
