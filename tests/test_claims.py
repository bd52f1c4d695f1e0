"""The claims: what is declared, each verdict, and every measure on tables written by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from judgelib import claims, labels, quality, results
from judgelib.claims import ABSENT, METRICS, NOT_MEASURED, Declaration, Measured, declarations
from judgelib.estimates import Estimate
from judgelib.labelling import labels_path

DOMAINS = ("math", "code", "facts")
PROFILE = "made-up"

# --- what is declared ----------------------------------------------------------------------------


def test_every_claim_is_declared() -> None:
    found = declarations()
    assert {entry.id for entry in found} == {f"C{number}" for number in range(1, 13)}
    assert {entry.metric for entry in found} <= METRICS.keys()
    texts = [entry.claim for entry in found]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("entry", declarations(), ids=lambda entry: f"{entry.id}-{entry.of}")
def test_a_declaration_can_be_decided(entry: Declaration) -> None:
    """Whoever names a bound names the sample that may decide; the evidence is a table."""
    assert entry.source and entry.evidence in results.SCHEMAS
    bounds = [bound for bound in (entry.at_least, entry.at_most) if bound is not None]
    assert all(isinstance(bound, int | float) for bound in bounds)
    assert bool(bounds) == (entry.prompts > 0)


GOOD = "{id: C1, claim: a, source: b, evidence: c, metric: gain, of: d}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"- {GOOD}\n- {GOOD.replace('of: d', 'by: d')}", "an entry is not a claim: .*'by'"),
        (f"- {GOOD.replace(', of: d', '')}", "an entry is not a claim: .*'of'"),
        ("- [C1, a claim]", "an entry is not a claim"),
        ("C1: a claim", "an entry is not a claim"),
        ("just words", "an entry is not a claim"),
        ("", "an entry is not a claim"),
        (f"- {GOOD.replace('gain', 'fame')}", "unknown metrics fame; known are .*gain"),
    ],
)
def test_an_entry_that_is_no_claim_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"some.yaml: {message}"):
        declarations(path)


def test_an_entry_is_read(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(f"- {GOOD}", encoding="utf-8")
    assert declarations(path) == [Declaration("C1", "a", "b", "c", "gain", "d")]


# --- verdicts ------------------------------------------------------------------------------------

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided: the interval holds the bound"


@pytest.mark.parametrize(
    ("bounds", "low", "high", "verdict"),
    [
        ({"at_least": 2}, 2.0, 3.0, HOLDS),
        ({"at_least": 2}, 1.9, 3.0, UNDECIDED),
        ({"at_least": 2}, 1.0, 2.0, UNDECIDED),
        ({"at_least": 2}, 1.0, 1.9, FAILS),
        ({"at_most": 0}, -2.0, 0.0, HOLDS),
        ({"at_most": 0}, -2.0, 0.1, UNDECIDED),
        ({"at_most": 0}, 0.0, 0.1, UNDECIDED),
        ({"at_most": 0}, 0.1, 0.2, FAILS),
        ({"at_least": 0, "at_most": 1}, 0.0, 1.0, HOLDS),
        ({"at_least": 0, "at_most": 1}, -0.1, 0.5, UNDECIDED),
        ({"at_least": 0, "at_most": 1}, 0.5, 1.1, UNDECIDED),
        ({"at_least": 0, "at_most": 1}, -0.5, -0.1, FAILS),
        ({"at_least": 0, "at_most": 1}, 1.1, 1.2, FAILS),
        ({}, 5.0, 6.0, "exploratory"),
    ],
)
def test_the_whole_interval_decides(
    bounds: dict[str, float], low: float, high: float, verdict: str
) -> None:
    entry = Declaration("C1", "", "", "", "gain", "topk, matched", prompts=100, **bounds)
    found = Estimate((low + high) / 2, low, high)
    assert entry.verdict(Measured(found, 100)) == verdict
    assert entry.verdict(None) == claims.NO_SETTING
    small = "undecided: 99 of 100 prompts" if bounds else "exploratory"
    assert entry.verdict(Measured(found, 99)) == small


def test_what_was_not_measured_is_not_judged() -> None:
    def verdict(metric: str, of: str) -> str:
        return Declaration("C1", "", "", "", metric, of, at_least=2, prompts=100).verdict(None)

    assert verdict("speedup", "vllm strict / vllm plain") == NOT_MEASURED
    for of in ("topk, matched", "judge_mined, matched / deferred, fixed"):
        assert verdict("gain", of).startswith("nothing to compare: no setting of a rule lost")
    for of in ("judge_annotated, fixed", "judge_mined, certified", "judge_mined, recall 90%"):
        assert verdict("gain", of) == "nothing to compare: no such operating point was tried"


# --- everything that is measured, by hand --------------------------------------------------------

# Operating points: accepted, cycles and tokens of every answer, and the wrong answers' numbers.
POINTS: dict[tuple[str, str, float], tuple[int, int, int, set[int]]] = {
    ("strict", "strict", 0.0): (8, 4, 12, {11}),
    ("judge_annotated", "fixed", 0.5): (10, 1, 11, {2, 5, 11}),
    ("judge_annotated", "matched", 0.9): (16, 2, 18, {2, 11}),
    ("floored_annotated", "matched", 0.7): (12, 2, 14, {11}),
    ("judge_mined", "recall 90%", 0.123): (18, 3, 21, {2, 11}),
    ("judge_mined", "certified", 0.99): (9, 3, 12, {0, 11}),
    ("judge_mined", "matched", 0.95): (10, 2, 12, {11}),
    ("topk", "matched", 3.0): (6, 2, 8, {11}),
    ("ratio", "matched", 0.2): (5, 1, 6, {11}),
    ("js", "matched", 0.1): (8, 2, 10, {11}),
    ("kl", "fixed", 0.3): (5, 1, 6, {11}),
    ("deferred", "fixed", 6.0): (10, 4, 14, {11}),
}
DRAFT_WRONG = set(range(4, 12))  # right on math only


def answered(rule: str, setting: float, numbers: tuple[int, int, int, set[int]]) -> pd.DataFrame:
    """Four questions of each domain, numbered through; ids are the same in every domain."""
    accepted, cycles, tokens, wrong = numbers
    rows = [
        [rule, setting, DOMAINS[n // 4], f"q{n % 4}", int(n not in wrong), tokens, cycles, accepted]
        for n in range(12)
    ]
    columns = "rule setting domain question correct tokens cycles accepted"
    return pd.DataFrame(rows, columns=columns.split())


def tried() -> pd.DataFrame:
    """The answers to test questions, in no order."""
    frames = [answered(rule, setting, of) for (rule, _, setting), of in POINTS.items()]
    frames.append(answered("draft", 0.0, (0, 9, 9, DRAFT_WRONG)))
    return pd.concat(frames).sample(frac=1, random_state=0)


def left_out_answers() -> pd.DataFrame:
    """Without its own labels math loses one question of four, code none, and facts wins one."""
    seen, unseen = {8}, {1}
    variants = {"strict": set[int](), "all labels": seen, "left out": unseen}
    frames = [
        answered("judge_some", 0.5, (4, 1, 5, wrong)).assign(variant=name)
        for name, wrong in variants.items()
    ]
    return pd.concat(frames).sample(frac=1, random_state=0)


# study, variant, domain, prompts, auc, and how far the interval reaches to either side.
PROBES: list[tuple[str, str, str, int, float, float]] = [
    ("layer", "post_norm", "math", 60, 0.90, 0.03),
    ("layer", "post_norm", "code", 50, 0.80, 0.04),
    ("layer", "layer_2", "math", 60, 0.70, 0.0),
    ("layer", "layer_2", "code", 50, 0.70, 0.0),
    ("layer", "pre_norm", "code", 50, 0.1, 0.0),
    ("transfer", "mined on math", "math", 25, 0.97, 0.01),
    ("transfer", "mined on math", "code", 25, 0.60, 0.03),
    ("transfer", "mined on math", "facts", 25, 0.69, 0.003),
    ("transfer", "mined on code", "code", 25, 0.90, 0.04),
    ("transfer", "mined on facts", "facts", 25, 0.70, 0.004),
    ("self-corrections in training", "target", "math", 120, 0.90, 0.03),
    ("self-corrections in training", "twin", "math", 120, 0.96, 0.04),
]
HEAD_CLAIMS = [
    ("C2 linear AUC of the first wrong token", "math", 0.99, 0.98, 0.995),
    ("C2 linear AUC of the first wrong token", "code", 0.90, 0.88, 0.92),
    ("C2 linear AUC of the first wrong token", "facts", 0.97, 0.95, 0.98),
    ("C7 AUC of an MLP minus linear", "math", 0.001, -0.001, 0.003),
    ("C7 AUC of an MLP minus linear", "code", 0.04, 0.03, 0.05),
    ("C7 AUC of an MLP minus linear", "facts", 0.005, 0.0, 0.01),
    ("C8 AUC of the mined head", "math", 0.93, 0.9, 0.95),
    ("C8 AUC of the mined head", "code", 0.85, 0.7, 0.9),
    ("C8 AUC of the mined head", "facts", 0.7, 0.6, 0.75),
]
MISMATCHES = {"math": (1000, 600), "code": (100, 20), "facts": (1000, 100)}  # and important ones
TEXTS = {"expert": (3, 1), "human": (2, 1), "draft": (8, 2)}  # accepted; every which is right


def tables() -> dict[str, pd.DataFrame]:
    probes = [
        (study, variant, domain, prompts, 9, auc, auc - reach, auc + reach)
        for study, variant, domain, prompts, auc, reach in PROBES
    ]
    texts = [
        (author, DOMAINS[n % 3], f"q{n // 3}", 20, accepted, 1, int(n % every == 0), 1, 1)
        for author, (accepted, every) in TEXTS.items()
        for n in range(40)
    ]
    summary = [("annotated", domain, 9, 9, 8, 1, 0, 0, 0) for domain in DOMAINS]
    summary += [
        ("mined", domain, 50, 2000, of - bad, bad, 2000 - of, of, bad)
        for domain, (of, bad) in MISMATCHES.items()
    ]
    rows: dict[str, list[Any]] = {
        "acceptance_texts": texts,
        "labels_summary": summary,
        "head_claims": [(*row, True) for row in HEAD_CLAIMS],
        "operating_points": [(rule, setting, choice) for rule, choice, setting in POINTS],
        "probes": probes,
    }
    rows |= speed_rows()
    return {
        name: pd.DataFrame(found, columns=list(results.SCHEMAS[name]))
        for name, found in rows.items()
    }


def speed_rows() -> dict[str, list[Any]]:
    """Rounds of some engines, the second at half the speed; without vLLM."""
    rates = {
        ("transformers-assisted", "strict", 8): 100, ("judgelib", "strict", 8): 150,
        ("judgelib", "strict", 4): 160, ("judgelib-compiled", "strict", 8): 300,
        ("judgelib-compiled", "plain", 0): 200, ("judgelib-compiled", "floored_annotated", 16): 600,
    }  # fmt: skip
    timed = [
        (*names, 0.0, window, 1, number, "a machine", 16, 600, 100, seconds, 0.9 * seconds)
        for (*names, window), rate in rates.items()
        for number, seconds in ((1, 600 / rate), (2, 1200 / rate))
    ]
    swept = [row for row in timed if row[0] == "judgelib-compiled" and row[3]]
    found = {"strict": 0.5, "floored_annotated": 0.03, "ratio": 0.01}
    shares = [("judgelib-compiled", rule, 8, "judge", share) for rule, share in found.items()]
    return {"speed": timed, "speed_windows": swept, "speed_phases": shares}


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """All that the claims are measured from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUDGELIB_ROOT", str(tmp_path_factory.mktemp("root")))
        for name, table in tables().items():
            results.save_table(table, name, profile=PROFILE, parameters={}, seeds=[0], started=0.0)
        quality.save_answers(tried(), PROFILE, "test")
        quality.save_answers(left_out_answers(), PROFILE, "ablation_domain_left_out")
        asked = [("q0", "math"), ("q0", "math"), ("q1", "math"), ("q0", "code"), ("q0", "facts")]
        rows = [labels.annotated(name, of, "draft", [5], [6, 7], (1, 2)) for name, of in asked]
        labels.save_labels(rows, labels_path(PROFILE, "annotated", "test"))
        labels.save_labels(rows[2:], labels_path(PROFILE, "mined", "test"))
        yield PROFILE


@pytest.fixture(scope="module")
def table(profile: str) -> pd.DataFrame:
    return claims.build(profile)


# (metric, of): the value, and how many questions (mismatches) stand behind it. Strict keeps 2
# tokens a cycle and adds one to them.
MEASURED: dict[tuple[str, str], tuple[float, int]] = {
    ("accepted_minus_draft", "expert"): (3 - 8, 40),
    ("accepted_minus_draft", "human"): (2 - 8, 40),
    ("right_minus_draft", "expert"): (0.5, 40),
    ("right_minus_draft", "human"): (0.5, 40),
    ("head_claim", "C2, math"): (0.99, 2),
    ("head_claim", "C2, code"): (0.90, 1),
    ("head_claim", "C7, facts"): (0.005, 1),
    ("head_claim", "C8, math"): (0.93, 1),
    ("unimportant", "math"): (0.4, 1000),
    ("unimportant", "code"): (0.8, 100),
    ("unimportant", "facts"): (0.9, 1000),
    ("gain", "judge_annotated, fixed"): (10 / 2, 12),
    ("gain", "floored_annotated, matched"): (6 / 2, 12),
    ("gain", "judge_mined, recall 90%"): (6 / 2, 12),
    ("against", "judge_mined, matched / judge_annotated, matched"): (6 / 9, 12),
    ("against", "judge_mined, matched / topk, matched"): (6 / 4, 12),
    ("against", "judge_annotated, matched / ratio, matched"): (9 / 6, 12),
    ("against", "judge_annotated, matched / divergence, matched"): (9 / 5, 12),
    ("against", "judge_annotated, matched / divergence, fixed"): (9 / 6, 12),
    ("against", "judge_annotated, matched / deferred, fixed"): (9 / 3.5, 12),
    ("against", "floored_annotated, matched / ratio, matched"): (7 / 6, 12),
    ("change", "judge_annotated, fixed"): (-200 / 12, 12),
    ("change", "floored_annotated, matched"): (0.0, 12),
    ("change", "judge_mined, certified"): (-100 / 12, 12),
    ("above_draft", "judge_annotated, fixed"): (500 / 12, 12),
    ("left_out", "math"): (-25.0, 4),
    ("left_out", "code"): (0.0, 4),
    ("left_out", "facts"): (25.0, 4),
    ("probe_gap", "layer: post_norm - layer_2"): (0.15, 110),
    ("probe_gap", "self-corrections in training: target - twin"): (-0.06, 120),
    ("transfer_gap", "math -> code"): (0.3, 25),
    ("transfer_gap", "math -> facts"): (0.01, 25),
    ("speedup", "judgelib-compiled floored_annotated / judgelib-compiled strict"): (2.0, 16),
    ("speedup", "judgelib-compiled floored_annotated / judgelib-compiled plain"): (3.0, 16),
    ("speedup", "judgelib strict common / transformers-assisted strict"): (1.5, 16),
    ("bound_share", "judgelib strict common"): (0.9, 16),
    ("judge_share", "judgelib-compiled"): (0.03, 16),
}


@pytest.mark.parametrize(("metric", "of"), MEASURED)
def test_a_measure_by_hand(profile: str, metric: str, of: str) -> None:
    found = METRICS[metric](profile, of)
    assert found is not None
    value, prompts = MEASURED[metric, of]
    assert found.estimate.value == pytest.approx(value)
    assert found.prompts == prompts
    assert found.estimate.low <= found.estimate.value <= found.estimate.high


def test_every_metric_was_worked_out_by_hand() -> None:
    assert {metric for metric, _ in MEASURED} == METRICS.keys()


def interval(profile: str, metric: str, of: str) -> tuple[float, float]:
    found = METRICS[metric](profile, of)
    assert found is not None
    return found.estimate.low, found.estimate.high


def test_answers_are_paired_by_question(profile: str) -> None:
    """What lost two questions and won none cannot have gained in any resample, though the rows
    were saved in no order; where all questions cycle alike, the gain has no spread."""
    low, high = interval(profile, "change", "judge_annotated, fixed")
    assert low < -200 / 12 and -100 / 12 <= high <= 0
    assert interval(profile, "left_out", "math")[1] == 0
    assert interval(profile, "gain", "judge_annotated, fixed") == (5.0, 5.0)


def test_intervals_of_probes_add_up_as_if_independent(profile: str) -> None:
    """The mean of 0.03 and 0.04 reaches 0.05 / 2; a difference of 0.03 and 0.04 reaches 0.05."""
    assert interval(profile, "probe_gap", "layer: post_norm - layer_2") == pytest.approx(
        (0.125, 0.175)
    )
    assert interval(profile, "transfer_gap", "math -> code") == pytest.approx((0.25, 0.35))


def test_intervals_that_were_saved_are_kept(profile: str) -> None:
    assert interval(profile, "head_claim", "C2, facts") == (0.95, 0.98)
    # 95% Wilson: (0.4 + z²/2n ± z sqrt(0.24 / n + z² / 4n²)) / (1 + z²/n) at n = 1000.
    assert interval(profile, "unimportant", "math") == pytest.approx((0.3701, 0.4307), abs=1e-4)


@pytest.mark.parametrize(
    ("metric", "of"),
    [
        ("gain", "divergence, certified"),
        ("change", "kl, matched"),
        ("above_draft", "kl, matched"),
        ("against", "judge_mined, matched / kl, matched"),
        ("against", "kl, matched / judge_mined, matched"),
        ("speedup", "vllm floored_annotated / vllm strict"),
        ("bound_share", "vllm strict"),
    ],
)
def test_a_choice_that_found_no_setting_measures_nothing(
    profile: str, metric: str, of: str
) -> None:
    assert METRICS[metric](profile, of) is None


@pytest.mark.parametrize(
    ("metric", "of"),
    [
        ("probe_gap", "layer: post_norm - layer_9"),
        ("probe_gap", "depth: MLP - linear"),
        ("transfer_gap", "law -> code"),
        ("head_claim", "C2, law"),
        ("unimportant", "law"),
        ("left_out", "law"),
        ("accepted_minus_draft", "nobody"),
    ],
)
def test_what_a_profile_does_not_have_is_not_measured(profile: str, metric: str, of: str) -> None:
    """No expert, no twin, no such domain or layer: the claim says so instead of failing the run."""
    assert METRICS[metric](profile, of) is None
    declared = Declaration("C0", "", "", "", metric, of, at_least=0)
    assert declared.verdict(None) == ABSENT


def test_what_was_never_saved_is_asked_for(profile: str) -> None:
    with pytest.raises(ValueError, match="make reproduce PROFILE=another"):
        claims.build("another")


# --- the table -----------------------------------------------------------------------------------


def test_every_declared_claim_has_a_row(table: pd.DataFrame) -> None:
    results.check_columns(table, "claims")
    assert table["claim"].tolist() == [entry.claim for entry in declarations()]
    assert table["id"].tolist() == [entry.id for entry in declarations()]
    blank = table["measured"].isna()
    assert (table["holds"] == NOT_MEASURED).equals(blank)
    assert table.loc[blank, "id"].tolist() == 3 * ["C5"]  # inside vLLM


def test_the_table_says_what_was_measured_and_whether_it_holds(table: pd.DataFrame) -> None:
    verdicts = {
        ("unimportant", "facts"): "holds",
        ("unimportant", "math"): "fails",
        ("unimportant", "code"): "undecided: 100 of 500 prompts",
        ("probe_gap", "layer: post_norm - layer_2"): "holds",
        ("probe_gap", "self-corrections in training: target - twin"): "fails",
        ("transfer_gap", "math -> code"): "holds",
        ("transfer_gap", "math -> facts"): "fails",
        ("gain", "judge_annotated, fixed"): "undecided: 12 of 3000 prompts",
        ("speedup", "judgelib-compiled floored_annotated / judgelib-compiled strict"): "holds",
        ("judge_share", "judgelib-compiled"): "fails",
    }
    found = {
        (entry.metric, entry.of): row
        for entry, row in zip(declarations(), table.to_dict("records"), strict=True)
    }
    assert {name: found[name]["holds"] for name in verdicts} == verdicts
    gap = found["probe_gap", "layer: post_norm - layer_2"]
    spans = [gap[name] for name in ("measured", "ci_low", "ci_high")]
    assert spans == pytest.approx([0.15, 0.125, 0.175])


def test_the_table_is_saved_with_the_declarations_it_answers(
    profile: str, table: pd.DataFrame
) -> None:
    saved = claims.save(profile, started=time.time())
    pd.testing.assert_frame_equal(saved, table)  # the same seeds, the same numbers
    pd.testing.assert_frame_equal(results.load_table("claims", profile), table)
    manifest = results.load_manifest("claims", profile)
    declared = results.sha256(claims.DECLARATIONS.read_bytes())
    assert manifest["parameters"]["declarations_sha256"] == declared
    assert manifest["seeds"] == [claims.BOOT["seed"]]
