"""The speed study: does acceptance become wall-clock speed, and in which engine how much?

A threshold is certified on validation questions, windows are chosen on validation questions, and
then all engines answer the same test questions in turn. Every ratio is taken within a round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from judgelib import rulebook
from judgelib.drafting import ModelDrafter
from judgelib.engines import (
    ASSISTED,
    COMPILED,
    EAGER,
    ENSEMBLE,
    GENERATE,
    PLAIN,
    UNPLUGGED,
    VLLM,
    Kit,
    Loop,
    Prompts,
    Spec,
    has_vllm,
)
from judgelib.estimates import Estimate, estimate
from judgelib.evaluation import Panel
from judgelib.profiles import Profile
from judgelib.quality import heads, longest, pair_of
from judgelib.replay import Pattern, pattern_of
from judgelib.rulebook import JUDGE_SETTINGS, STRICT
from judgelib.speed_model import predict
from judgelib.tasks import having
from judgelib.thresholds import Certificate, certify
from judgelib.timing import ROUND, Passes, passes, phases, rounds, speeds

JUDGE = f"{rulebook.FLOORED}annotated"
"""The rule that is timed: what notebook 04 found to lose the least at twice strict's acceptance."""
RATIO = ("ratio", 0.05)
"""The training-free rule beside it, at the setting that notebook 04 chose on validation."""
MIXTURE = 0.5
"""transformers' own lossy variant: the target's weight in the mixture."""


def kit(profile: Profile, *, tokens: int = 256) -> Kit:
    """A profile's models, and the heads that it saved."""
    longest_text = longest(profile).get("max_new_tokens", tokens)
    return Kit(pair_of(profile), heads(profile), tokens=longest_text)


def certified(
    made: Kit, tasks: Sequence[str], *, prompts: int, alpha: float, confidence: float, window: int,
    seed: int = 0,
) -> Certificate:  # fmt: skip
    """The loosest threshold at which `JUDGE`, floor and all, is certified to lose at most a share
    `alpha` of validation questions, by real decoding (see `thresholds.certify`)."""
    target, draft = made.models
    panel = Panel.draw(
        target, ModelDrafter(draft), having(tasks, "validation"), "validation", prompts,
        seed=seed, window=window, max_new_tokens=made.tokens, slots=made.pair.slots,
    )  # fmt: skip

    def losses(threshold: float) -> np.ndarray:
        return panel.losses(rulebook.build(JUDGE, threshold, made.heads))

    return certify(losses, JUDGE_SETTINGS, alpha=alpha, confidence=confidence)


# --- windows -----------------------------------------------------------------------------------


def sweep(
    made: Kit,
    prompts: Prompts,
    windows: dict[str, Sequence[int]],
    threshold: float,
    *,
    vllm_prompts: int = 0,
    repeats: int = 2,
    progress: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Speed of strict verification and of the judge at several windows, for `best_windows`.

    Args:
        windows: of "strict" and of "judge".
        threshold: of the judge.
        vllm_prompts: how many of the prompts vLLM answers too, where it is installed; 0: none.
    """
    found = _swept(made, (EAGER, COMPILED), prompts, windows, threshold, repeats, progress)
    if not (vllm_prompts and has_vllm()):
        return found
    few = prompts[:vllm_prompts]
    served = _swept(made, (VLLM,), few, windows, threshold, repeats, progress)
    made.close()  # a process for each window
    return pd.concat([found, served], ignore_index=True)


def _swept(
    made: Kit,
    engines: Sequence[str],
    prompts: Prompts,
    windows: dict[str, Sequence[int]],
    threshold: float,
    repeats: int,
    progress: Callable[[str], None],
) -> pd.DataFrame:
    specs = [
        Spec(engine, rule, setting, window)
        for engine in engines
        for rule, setting, tried in (
            (STRICT, 0.0, windows["strict"]),
            (JUDGE, threshold, windows["judge"]),
        )
        for window in tried
    ]
    return _measured(made, specs, prompts, repeats=repeats, progress=progress)


def best_windows(table: pd.DataFrame) -> dict[tuple[str, str], int]:
    """(engine, rule) -> the window with the most tokens per second."""
    found = speeds(table)
    best = found.loc[found.groupby(["engine", "rule"])["tokens_per_second"].idxmax()]
    keys = zip(best["engine"], best["rule"], strict=True)
    return dict(zip(keys, map(int, best["draft_length"]), strict=True))


# --- engines side by side ----------------------------------------------------------------------


def lineup(
    best: dict[tuple[str, str], int],
    threshold: float,
    *,
    common: int,
    batch: int,
    vllm: bool = True,
) -> list[Spec]:
    """All engines of one comparison.

    Args:
        best: of `best_windows`; vLLM, where it was not tried, takes the compiled loop's.
        threshold: of the judge.
        common: the window at which strict verification is compared with transformers'.
        batch: texts side by side in the second half.
        vllm: whether vLLM takes part, where it is installed.
    """

    def window(engine: str, rule: str) -> int:
        return best.get((engine, rule), best[COMPILED, rule])

    def rules(engine: str, size: int = 1) -> list[Spec]:
        judged = window(engine, JUDGE)
        return [
            Spec(engine, PLAIN, batch=size),
            Spec(engine, STRICT, 0.0, window(engine, STRICT), batch=size),
            Spec(engine, JUDGE, threshold, judged, batch=size),
            Spec(engine, *RATIO, judged, batch=size),
        ]

    unplugged = Spec(UNPLUGGED, STRICT, 0.0, window(VLLM, STRICT))
    served = [*rules(VLLM), unplugged, *rules(VLLM, batch)] if vllm and has_vllm() else []
    every = [
        Spec(GENERATE, PLAIN),
        Spec(ASSISTED, STRICT, 0.0, common),
        Spec(ENSEMBLE, "ensemble", MIXTURE, common),
        *(Spec(engine, STRICT, 0.0, common) for engine in (EAGER, COMPILED)),
        *rules(EAGER),
        *rules(COMPILED),
        Spec(GENERATE, PLAIN, batch=batch),
        *rules(EAGER, batch)[1:3],
        *rules(COMPILED, batch)[1:3],
        *served,
    ]
    return list(dict.fromkeys(every))


def vllm_note(vllm: bool) -> str:
    """Why vLLM's rows are missing; empty if they are not."""
    if not vllm:
        return (
            "This profile leaves vLLM out (window_prompts_vllm is None): its rows are missing, and "
            "what is said of it below is not measured."
        )
    if not has_vllm():
        return (
            "vLLM is not installed here, so its rows are missing: `make vllm`, then run this again."
        )
    return ""


def side_by_side(
    made: Kit,
    specs: Sequence[Spec],
    prompts: Prompts,
    *,
    repeats: int,
    progress: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """The table `speed`: all engines on the same prompts, in turn, in every round."""
    return _measured(made, specs, prompts, repeats=repeats, progress=progress)


def _measured(made: Kit, specs: Sequence[Spec], prompts: Prompts, **options: Any) -> pd.DataFrame:
    engines = [made.build(spec) for spec in specs]
    made.wait()  # nothing is timed while another engine starts
    return rounds(engines, prompts, **options)


def ratio(table: pd.DataFrame, ours: Spec, theirs: Spec) -> Estimate:
    """How many times as many tokens per second: the median over the rounds of the ratio within a
    round, and its 95% bootstrap interval over rounds.

    Raises:
        ValueError: an engine that is not in the table.
    """
    first, second = (_rates(table, spec) for spec in (ours, theirs))
    return middle((first / second).to_numpy(float))


def of_bound(table: pd.DataFrame, spec: Spec) -> Estimate:
    """The share of its bound that an engine reaches, likewise."""
    rows = rows_of(table, spec)
    return middle((rows["bound_seconds"] / rows["seconds"]).to_numpy(float))


def middle(values: np.ndarray) -> Estimate:
    """The median over rounds with its bootstrap interval."""
    return estimate(_median, [values], resamples=2000, seed=0)


def _median(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.asarray(np.median(values, axis=axis))


def _rates(table: pd.DataFrame, spec: Spec) -> pd.Series:
    rows = rows_of(table, spec).set_index("round")
    return rows["tokens"] / rows["seconds"]


def rows_of(table: pd.DataFrame, spec: Spec) -> pd.DataFrame:
    """The rounds of one engine; ValueError if there are none."""
    mine = np.logical_and.reduce([table[name] == getattr(spec, name) for name in ROUND])
    if not mine.any():
        raise ValueError(f"expected rounds of {spec} in the table, there are none")
    return table[mine]


def named(table: pd.DataFrame, windows: pd.DataFrame, name: str) -> Spec | None:
    """The engine that "judgelib strict" means, one text at a time; None if it is not in the table.

    Args:
        table: of `side_by_side`.
        windows: of `sweep`, whose best window is meant where a rule was timed with several.
        name: engine and rule; "judgelib strict common" has the window of transformers' assisted
            generation.
    """
    engine, rule, *which = name.split()
    own = table[(table["batch"] == 1) & (table["engine"] == engine) & (table["rule"] == rule)]
    if own.empty:
        return None
    window = int(own["draft_length"].iloc[-1])
    if which == ["common"]:
        window = int(table[table["engine"] == ASSISTED]["draft_length"].iloc[0])
    elif not which:
        window = best_windows(windows).get((engine, rule), window)
    row = own.iloc[0]
    return Spec(engine, rule, float(row["setting"]), window)


# --- verdicts ----------------------------------------------------------------------------------

COMPARISONS = {
    "the judge over strict verification, compiled": (f"{COMPILED} {JUDGE}", f"{COMPILED} strict"),
    "the judge over plain decoding, compiled": (f"{COMPILED} {JUDGE}", f"{COMPILED} plain"),
    "the judge over strict verification, vLLM": (f"{VLLM} {JUDGE}", f"{VLLM} strict"),
    "the judge over plain decoding, vLLM": (f"{VLLM} {JUDGE}", f"{VLLM} plain"),
    "the loop over assisted generation, strict": (f"{EAGER} strict common", f"{ASSISTED} strict"),
    "compiled over eager, strict": (f"{COMPILED} strict common", f"{EAGER} strict common"),
    "vLLM with the plugin over vLLM without it, strict": (f"{VLLM} strict", f"{UNPLUGGED} strict"),
}  # fmt: skip
"""What is compared in words, and as `named` has it."""


def verdicts(table: pd.DataFrame, windows: pd.DataFrame) -> pd.DataFrame:
    """Columns comparison, times, low, high: `COMPARISONS`, empty where an engine was not there."""
    rows = []
    for words, names in COMPARISONS.items():
        ours, theirs = (named(table, windows, name) for name in names)
        nothing = Estimate(float("nan"), float("nan"), float("nan"))
        found = ratio(table, ours, theirs) if ours and theirs else nothing
        rows.append({"comparison": words, "times": found.value, "low": found.low,
                     "high": found.high})  # fmt: skip
    return pd.DataFrame(rows)


def order(table: pd.DataFrame, windows: pd.DataFrame) -> list[str]:
    """What any machine must show, whatever its speed: who needs fewer target calls for a token."""
    names = {JUDGE: "the judge", STRICT: "strict verification", PLAIN: "plain decoding"}
    calls = {rule: _calls(table, windows, rule) for rule in names}
    return [
        f"{names[ours]} needs {'fewer' if calls[ours] < calls[theirs] else 'no fewer'} target "
        f"calls than {names[theirs]}"
        for ours, theirs in ((JUDGE, STRICT), (STRICT, PLAIN))
    ]


def _calls(table: pd.DataFrame, windows: pd.DataFrame, rule: str) -> float:
    """Target calls for each token of the compiled loop."""
    spec = named(table, windows, f"{COMPILED} {rule}")
    assert spec is not None
    rows = rows_of(table, spec)
    return float(rows["cycles"].sum() / rows["tokens"].sum())


# --- where the time goes -----------------------------------------------------------------------


def phase_table(made: Kit, specs: Sequence[Spec], prompts: Prompts) -> pd.DataFrame:
    """Shares of each phase for judgelib's loops, columns engine, rule, draft_length, phase, share;
    every loop runs once before it is measured."""
    rows = []
    for spec in specs:
        loop = made.build(spec)
        assert isinstance(loop, Loop)
        loop.answer(prompts)
        rows += [
            {"engine": spec.engine, "rule": spec.rule, "draft_length": spec.draft_length,
             "phase": phase, "share": share}
            for phase, share in phases(loop, prompts).items()
        ]  # fmt: skip
    return pd.DataFrame(rows)


# --- the speed model's check -------------------------------------------------------------------


def predicted(made: Kit, table: pd.DataFrame, prompts: Prompts) -> pd.DataFrame:
    """What the speed model says of a sweep's windows, beside what was measured.

    For each engine and rule the acceptance is recorded at the longest window, and passes are timed
    bare; nothing of the measured speeds goes in.

    Returns:
        engine, rule, draft_length, and tokens per second: predicted, measured, low, high.
    """
    loops = table[table["engine"].isin([EAGER, COMPILED])]
    found: list[Any] = list(speeds(loops).itertuples())
    longest = {(row.engine, row.rule): row for row in sorted(found, key=lambda r: r.draft_length)}
    patterns = {key: _recorded(made, _spec(row), prompts) for key, row in longest.items()}
    return pd.DataFrame(
        {
            "engine": row.engine, "rule": row.rule, "draft_length": row.draft_length,
            "predicted": _prediction(made, _spec(row), patterns[row.engine, row.rule], prompts),
            "measured": row.tokens_per_second, "low": row.low, "high": row.high,
        }
        for row in found
    )  # fmt: skip


def _spec(row: Any) -> Spec:
    return Spec(row.engine, row.rule, row.setting, row.draft_length)


def _recorded(made: Kit, spec: Spec, prompts: Prompts) -> Pattern:
    loop = made.build(spec)
    assert isinstance(loop, Loop)
    loop.answer(prompts)
    return pattern_of(loop.texts, spec.draft_length, {"rule": spec.rule})


def _prediction(made: Kit, spec: Spec, pattern: Pattern, prompts: Prompts) -> float:
    """Tokens per second, the reading of the prompts included."""
    loop = made.build(spec)
    assert isinstance(loop, Loop)
    prompt = round(float(np.mean([len(one) for one in prompts])))
    cost = passes(loop, prompt, prompt + round(pattern.tokens / len(pattern.texts) / 2))
    cycles = predict(pattern, spec.draft_length, cost.draft, cost.target)
    return 1 / (1 / cycles.tokens_per_second + _prompt_seconds(cost, pattern))


def _prompt_seconds(cost: Passes, pattern: Pattern) -> float:
    """For each new token: what the first passes take longer than the others."""
    more = cost.draft_prompt - cost.draft + cost.target_prompt - cost.target
    return more * len(pattern.texts) / pattern.tokens
