"""The speed model: hand-made patterns with known answers, the formula, ceilings, the figure."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from judgelib import speed_model
from judgelib.architectures import ARCHITECTURES, bytes_per_pass
from judgelib.decoding import Cycle, Generation
from judgelib.hardware import accelerator, measured_bandwidth, recognised
from judgelib.replay import Pattern, load_pattern, main, pattern_of, save_pattern
from judgelib.speed_figures import speed_model_figure
from judgelib.speed_model import Chance, Machine, Setup, best_window, chance_of, predict

# Two texts at window 8: 8 kept, 3 kept, and 0 kept; then 5 kept and the text's end inside.
MADE = Pattern(8, drafted=(8, 8, 8, 8), accepted=(8, 3, 0, 5), added=(1, 1, 1, 0), texts=(3, 1))
RECORDED = ("sandbox-strict", "sandbox-floored_annotated")


# --- patterns ----------------------------------------------------------------------------------


def test_a_run_goes_on_behind_a_window_that_was_kept_whole() -> None:
    assert MADE.runs() == [8 + 1 + 3 + 1, 1, 5]
    assert (MADE.cycles, MADE.tokens, MADE.accepted_per_cycle) == (4, 19, 4.0)
    assert MADE.acceptance_rate == 16 / 18  # two of the tested tokens were rejected


def test_at_the_recorded_window_the_pieces_are_the_record() -> None:
    assert MADE.pieces(8) == [9, 4, 1, 5]
    assert MADE.tokens_per_cycle(8) == MADE.tokens / MADE.cycles


def test_a_shorter_window_cuts_runs_into_full_cycles_and_a_rest() -> None:
    assert MADE.pieces(3) == [4, 4, 4, 1, 1, 4, 1]
    assert MADE.pieces(1) == [2, 2, 2, 2, 2, 2, 1, 1, 2, 2, 1]
    assert MADE.tokens_per_cycle(3) == 19 / 7


def test_nothing_is_said_of_longer_windows() -> None:
    with pytest.raises(ValueError, match="window of 8 and says nothing of 9; choose 1 to 8"):
        MADE.pieces(9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": (3,)}, "as the texts have cycles, got 4, 4, 4 and 3"),
        ({"accepted": (9, 3, 0, 5)}, "cycle 0: expected 0 <= accepted <= drafted <= 8.*got 9 of 8"),
        ({"accepted": (8, 3, 0, 0)}, "cycle 3.*at least one token, got 0 of 8 accepted, 0 added"),
        ({"window": 7}, "cycle 0"),
    ],
)
def test_patterns_that_cannot_be_are_refused(change: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {name: getattr(MADE, name) for name in MADE.__dataclass_fields__}
    with pytest.raises(ValueError, match=message):
        Pattern(**{**fields, **change})  # type: ignore[arg-type]


def test_a_pattern_survives_the_disk(tmp_path: Path) -> None:
    path = save_pattern(MADE, "made", root=tmp_path)
    assert load_pattern("made", root=tmp_path) == MADE == load_pattern(str(path))
    assert len(path.read_text().splitlines()) == 8  # a list a line
    with pytest.raises(ValueError, match="no pattern 'mad'; expected one of made, sandbox"):
        load_pattern("mad", root=tmp_path)
    path.write_text('{"window": 8}')
    with pytest.raises(ValueError, match="made.json: expected window and the lists drafted"):
        load_pattern("made", root=tmp_path)


def test_a_pattern_of_generations() -> None:
    ended = [Cycle(4, 4, ("Match",) * 4, 9), Cycle(4, 1, ("Match",), None)]
    found = pattern_of([Generation([3] * 6, "eos", ended)], 4, {"rule": "strict"})
    assert (found.drafted, found.accepted, found.added) == ((4, 4), (4, 1), (1, 0))
    assert found.texts == (2,) and found.tokens == 6


@pytest.mark.parametrize("name", RECORDED)
def test_the_committed_patterns_are_whole(name: str) -> None:
    pattern = load_pattern(name)
    assert pattern.window == 25 and len(pattern.texts) == pattern.source["prompts"] == 60
    assert pattern.source["rule"] == name.removeprefix("sandbox-")
    assert pattern.tokens_per_cycle(25) == pattern.tokens / pattern.cycles
    per_window = [pattern.tokens_per_cycle(window) for window in range(1, 26)]
    assert all(np.diff(per_window) > -0.1) and 1 < per_window[0] <= 2


def test_the_judge_keeps_more_than_strict_at_every_window() -> None:
    strict, judge = map(load_pattern, RECORDED)
    assert all(judge.tokens_per_cycle(w) > strict.tokens_per_cycle(w) for w in range(1, 26))


def test_recording_decodes_and_predicts_a_shorter_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command on a few prompts; strict, the prediction is what that window really
    does."""
    monkeypatch.setenv("JUDGELIB_ROOT", str(tmp_path))
    command = ["record", "--rule", "strict", "--prompts", "3"]
    assert main([*command, "--window", "25", "--name", "long"]) == 0
    assert main([*command, "--window", "6", "--name", "short"]) == 0
    long, short = load_pattern("long"), load_pattern("short")
    assert long.tokens == short.tokens
    assert long.tokens_per_cycle(6) == pytest.approx(short.tokens_per_cycle(6), rel=0.02)
    assert f"long.json: {long.cycles} cycles" in capsys.readouterr().out


# --- predictions -------------------------------------------------------------------------------


def test_a_prediction_is_tokens_over_the_cycles_passes() -> None:
    found = predict(MADE, 3, draft_seconds=0.1, target_seconds=0.5, overhead=0.2)
    assert found.cycle_seconds == pytest.approx(3 * 0.1 + 0.5 + 0.2)
    assert found.tokens_per_second == pytest.approx(19 / 7)
    by_rows = predict(MADE, 3, 0.1, lambda rows: 0.1 * rows)
    assert by_rows.cycle_seconds == pytest.approx(3 * 0.1 + 4 * 0.1)
    with pytest.raises(ValueError, match="passes that take time"):
        predict(MADE, 3, 0.0, 0.5)


def test_the_best_window_is_the_fastest_of_all() -> None:
    free = best_window(MADE, 1e-9, 1.0)
    assert free.tokens_per_cycle == max(MADE.tokens_per_cycle(w) for w in range(1, 9))
    assert best_window(MADE, 1.0, 1e-9).window == 1
    assert best_window(MADE, 0.1, 1.0, windows=(2, 3)).window in (2, 3)
    with pytest.raises(ValueError, match="at least one window"):
        best_window(MADE, 0.1, 1.0, windows=())


def test_independent_acceptance_follows_the_textbooks_formula() -> None:
    chance = Chance(0.8, 25)
    assert chance.tokens_per_cycle(7) == pytest.approx((1 - 0.8**8) / (1 - 0.8))
    assert Chance(1.0, 25).tokens_per_cycle(7) == 8
    assert chance_of(19.7, 25).tokens_per_cycle(25) == pytest.approx(20.7)
    with pytest.raises(ValueError, match="0 to 25 accepted tokens a cycle, got 26"):
        chance_of(26, 25)


def test_a_drawn_pattern_gives_the_formula_back() -> None:
    """Runs drawn with a constant chance: the pieces of a shorter window have its mean. With 20,000
    cycles the standard error is below 0.02 tokens; 0.1 is five of them."""
    rng = np.random.default_rng(0)
    kept = np.minimum(rng.geometric(0.25, 20_000) - 1, 12).tolist()
    ones = (1,) * len(kept)
    drawn = Pattern(12, (12,) * len(kept), tuple(kept), ones, (len(kept),))
    assert drawn.acceptance_rate == pytest.approx(0.75, abs=0.01)
    # Tokens added behind whole windows count as kept, 0.75^12 = 3% of the cycles.
    for window in (2, 5, 12):
        assert drawn.tokens_per_cycle(window) == pytest.approx(
            Chance(0.75, 12).tokens_per_cycle(window), abs=0.1
        )


# --- hardware ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB SXM"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("NVIDIA L40S", "L40S"),
    ],
)
def test_cuda_names_are_recognised(reported: str, name: str) -> None:
    found = recognised(reported)
    assert found is not None and found is accelerator(name)


def test_unknown_accelerators_are_not_guessed() -> None:
    assert recognised("NVIDIA GeForce RTX 3060") is None
    assert recognised("NVIDIA H200 NVL") is None
    with pytest.raises(ValueError, match="expected an accelerator of H100 SXM.*'H900'"):
        accelerator("H900")


def test_bandwidth_is_measured() -> None:
    assert 1e8 < measured_bandwidth(size=2**22, repeats=2) < 1e13
    with pytest.raises(ValueError, match="at least 65536 bytes"):
        measured_bandwidth(size=10)


# --- ceilings ----------------------------------------------------------------------------------

LLAMA_70B, LLAMA_8B = ARCHITECTURES["Llama-3.1-70B"], ARCHITECTURES["Llama-3.1-8B"]
TWO_H100 = Machine(accelerator("H100 SXM"), 2)


def test_a_narrow_pass_is_bound_by_bandwidth_and_a_wide_one_by_arithmetic() -> None:
    moved = bytes_per_pass(LLAMA_70B, "fp8", 512, 26) / (2 * 3.35e12)
    assert speed_model.pass_floor(LLAMA_70B, "fp8", TWO_H100, 512, 26) == moved
    wide = speed_model.pass_floor(LLAMA_70B, "bfloat16", TWO_H100, 0, 4096)
    assert wide > 2 * bytes_per_pass(LLAMA_70B, "bfloat16", 0, 4096) / (2 * 3.35e12)
    slow = Machine(TWO_H100.accelerator, 2, all_reduce=1e-5)
    assert speed_model.pass_floor(LLAMA_70B, "fp8", slow, 512, 26) == pytest.approx(
        moved + 160 * 1e-5
    )


def test_what_fits_and_what_a_draft_on_one_card_costs() -> None:
    setup = Setup(LLAMA_70B, LLAMA_8B, TWO_H100, target_dtype="fp8")
    assert setup.fits and not Setup(LLAMA_70B, LLAMA_8B, TWO_H100).fits
    alone = Setup(LLAMA_70B, LLAMA_8B, TWO_H100, target_dtype="fp8", draft_spread=False)
    assert alone.draft_floor() == pytest.approx(2 * setup.draft_floor())
    plain = speed_model.ceiling(setup)
    assert plain.window == 0 and plain.tokens_per_second == pytest.approx(95, abs=1)


def test_reported_speeds_stay_below_their_ceilings() -> None:
    found = speed_model.distances()
    assert set(zip(found["machine"], found["reported"], strict=True)) == {
        ("2 x H100 SXM", 141.0),
        ("8 x H100 SXM", 129.0),
    }
    assert (found["reached"] == found["reported"] / found["ceiling"]).all()
    assert found["reached"].between(0.1, 1.0).all()
    # 405B in bfloat16 does not fit into eight cards, so it cannot have been run so.
    assert set(found[found["target"] == "Llama-3.1-405B"]["weights"]) == {"fp8"}


def test_curves_hold_every_window_and_one_best_each() -> None:
    acceptances = {"strict": load_pattern(RECORDED[0]), "reported": chance_of(19.7, 25)}
    found = speed_model.llama_curves(acceptances)
    assert len(found) == 2 * 2 * 26
    for _, curve in found.groupby(["target", "acceptance"]):
        best = curve[curve["best"]]
        assert len(best) == 1
        assert best["tokens_per_second"].item() == curve["tokens_per_second"].max()


def test_the_figure_draws_curves_and_reported_speeds() -> None:
    curves = speed_model.llama_curves({"made": MADE, "reported": chance_of(19.7, 25)})
    fig = speed_model_figure(curves, speed_model.distances())
    texts = [text.get_text() for axes in fig.axes for text in axes.texts]
    assert any("reported 141\n46%" in text for text in texts)
    assert any("reported 129\n18%" in text for text in texts)
    fig.savefig(io.BytesIO(), format="png")
    with pytest.raises(ValueError, match="missing: acceptance"):
        speed_model_figure(curves.drop(columns=["acceptance"]))
