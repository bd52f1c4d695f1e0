"""The claims table: what was claimed, what was measured, and whether it holds.

`claims.yaml` says what each claim needs; it was committed before the runs that decide it. The
functions below measure, from saved tables and answers alone, so anybody can build the table again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from judgelib import acceptance, speed
from judgelib.estimates import Estimate, estimate, paired, quotient
from judgelib.evaluation import DRAFT
from judgelib.labelling import load_split, mostly_unimportant
from judgelib.quality import answers_path, load_answers
from judgelib.results import load_table, save_table, sha256
from judgelib.rulebook import STRICT

DECLARATIONS = Path(__file__).with_name("claims.yaml")
BOOT = {"resamples": 2000, "seed": 0}
NOT_MEASURED = "not measured: this engine was not installed"
ABSENT = "not measured: this profile has no such model, domain or comparison"
EXPLORATORY = "exploratory"
NO_SETTING = "nothing to compare: no setting of a rule lost at most one point in validation"
NO_POINT = "nothing to compare: no such operating point was tried"


@dataclass(frozen=True)
class Declaration:
    """One line of `claims.yaml`."""

    id: str
    claim: str
    source: str
    evidence: str
    metric: str
    of: str
    at_least: float | None = None
    at_most: float | None = None
    prompts: int = 0

    def verdict(self, found: Measured | None) -> str:
        """ "holds", "fails", or why neither can be said."""
        if found is None:
            return self._nothing
        if self.at_least is None and self.at_most is None:
            return EXPLORATORY
        if found.prompts < self.prompts:
            return f"undecided: {found.prompts} of {self.prompts} prompts"
        low, high = found.estimate.low, found.estimate.high
        sides = [low >= bound for bound in [self.at_least] if bound is not None]
        sides += [high <= bound for bound in [self.at_most] if bound is not None]
        if all(sides):
            return "holds"
        beyond = [high < bound for bound in [self.at_least] if bound is not None]
        beyond += [low > bound for bound in [self.at_most] if bound is not None]
        return "fails" if any(beyond) else "undecided: the interval holds the bound"

    @property
    def _nothing(self) -> str:
        """Why there is nothing to judge. Only the choice "matched" is made by quality in validation
        and may find no setting; a fixed or certified one can only have been left out."""
        if self.metric in ("speedup", "bound_share"):
            return NOT_MEASURED
        if self.metric not in ("gain", "against", "change", "above_draft"):
            return ABSENT
        return NO_SETTING if ", matched" in self.of else NO_POINT


@dataclass(frozen=True)
class Measured:
    """An estimate and how many questions stand behind it."""

    estimate: Estimate
    prompts: int


def declarations(path: Path = DECLARATIONS) -> list[Declaration]:
    """The declared claims; ValueError for an entry that is none."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        found = [Declaration(**entry) for entry in entries]
    except TypeError as error:
        raise ValueError(f"{path.name}: an entry is not a claim: {error}") from error
    unknown = sorted({entry.metric for entry in found} - METRICS.keys())
    if unknown:
        raise ValueError(
            f"{path.name}: unknown metrics {', '.join(unknown)}; known are {', '.join(METRICS)}"
        )
    return found


def build(profile: str) -> pd.DataFrame:
    """The table `claims` from what the notebooks have saved under a profile."""
    return pd.DataFrame([_row(entry, profile) for entry in declarations()])


def save(profile: str, *, started: float) -> pd.DataFrame:
    """Build the table and keep it under the profile."""
    table = build(profile)
    declared = sha256(DECLARATIONS.read_bytes())
    save_table(
        table, "claims", profile=profile, parameters={"declarations_sha256": declared, **BOOT},
        seeds=[BOOT["seed"]], started=started,
    )  # fmt: skip
    return table


def _row(entry: Declaration, profile: str) -> dict[str, Any]:
    found = METRICS[entry.metric](profile, entry.of)
    value = found.estimate if found else Estimate(np.nan, np.nan, np.nan)
    return {
        "id": entry.id, "claim": entry.claim, "source": entry.source, "evidence": entry.evidence,
        "measured": value.value, "ci_low": value.low, "ci_high": value.high,
        "holds": entry.verdict(found),
    }  # fmt: skip


# --- what is measured --------------------------------------------------------------------------


def accepted_minus_draft(profile: str, author: str) -> Measured | None:
    """Accepted tokens per cycle of an author's texts minus the draft's."""
    return _against_draft(profile, author, "accepted_per_cycle")


def right_minus_draft(profile: str, author: str) -> Measured | None:
    """Share of right answers of an author minus the draft's."""
    return _against_draft(profile, author, "accuracy")


def _against_draft(profile: str, author: str, name: str) -> Measured | None:
    texts = load_table("acceptance_texts", profile)
    if author not in set(texts["author"]):
        return None
    found = acceptance.against(texts, author, DRAFT, **BOOT)[name]
    return Measured(found, int((texts["author"] == author).sum()))


def head_claim(profile: str, of: str) -> Measured | None:
    """ "C2, math": what the head study found on test labels."""
    claim, domain = of.split(", ")
    table = load_table("head_claims", profile)
    own = table[table["claim"].str.startswith(claim) & (table["domain"] == domain)]
    if own.empty:
        return None
    labelled = load_split(profile, "mined" if claim == "C8" else "annotated", "test")
    questions = {row.question_id for row in labelled if row.domain == domain}
    return Measured(_estimate(own, "measured"), len(questions))


def unimportant(profile: str, domain: str) -> Measured | None:
    """Share of mined mismatches that are unimportant; counted are mismatches."""
    table = load_table("labels_summary", profile)
    shares = mostly_unimportant(table[table["source"] == "mined"])
    own = shares[shares["domain"] == domain]
    if own.empty:
        return None
    return Measured(_estimate(own, "share"), int(own["mismatches"].sum()))


def _estimate(rows: pd.DataFrame, name: str) -> Estimate:
    """The one row's value with its interval."""
    value, low, high = (float(rows[column].item()) for column in (name, "low", "high"))
    return Estimate(value, low, high)


def gain(profile: str, of: str) -> Measured | None:
    """Accepted tokens per cycle of a rule, times strict's."""
    return _compared(profile, of, f"{STRICT}, {STRICT}", "accepted")


def against(profile: str, of: str) -> Measured | None:
    """Tokens per cycle of one rule over another's: "judge_mined, matched / topk, matched"."""
    ours, theirs = of.split(" / ")
    return _compared(profile, ours, theirs, "tokens")


def _compared(profile: str, ours: str, theirs: str, count: str) -> Measured | None:
    tried = [_answers(profile, name) for name in (ours, theirs)]
    pair = [found for found in tried if found is not None]
    if len(pair) < 2:
        return None  # see `Declaration._nothing`
    columns = [found[name].to_numpy(float) for found in pair for name in (count, "cycles")]
    return Measured(estimate(quotient, columns, **BOOT), len(pair[0]))


def change(profile: str, of: str) -> Measured | None:
    """Right answers of a rule minus the target's, in points of 100."""
    return _minus(_answers(profile, f"{STRICT}, {STRICT}"), _answers(profile, of))


def above_draft(profile: str, of: str) -> Measured | None:
    """Right answers of a rule minus those of the draft alone, in points of 100."""
    return _minus(_answers(profile, DRAFT), _answers(profile, of))


def left_out(profile: str, domain: str) -> Measured | None:
    """Right answers on a domain of a judge that never saw its labels minus those of one that did,
    in points of 100: below 0 where leaving them out costs quality."""
    name = "ablation_domain_left_out"
    if not answers_path(profile, name).is_file():
        return None
    answers = load_answers(profile, name)
    own = answers[answers["domain"] == domain]
    if own.empty:
        return None
    return _minus(*(_in_order(own[own["variant"] == n]) for n in ("all labels", "left out")))


def probe_gap(profile: str, of: str) -> Measured | None:
    """ "study: variant - variant": the difference of two AUCs, pooled over domains."""
    study, pair = of.split(": ")
    table = load_table("probes", profile)
    own = table[table["study"] == study]
    return _gap(*(own[own["variant"] == name] for name in pair.split(" - ")))


def transfer_gap(profile: str, of: str) -> Measured | None:
    """AUC on a domain of the head mined there minus that of a stranger: "math -> code"."""
    source, goal = of.split(" -> ")
    table = load_table("probes", profile)
    own = table[(table["study"] == "transfer") & (table["domain"] == goal)]
    return _gap(*(own[own["variant"] == f"mined on {name}"] for name in (goal, source)))


def speedup(profile: str, of: str) -> Measured | None:
    """Tokens per second of one engine over another's: "judgelib strict common / vllm plain"."""
    table, windows = _speed(profile)
    ours, theirs = (speed.named(table, windows, name) for name in of.split(" / "))
    if ours is None or theirs is None:
        return None
    return Measured(speed.ratio(table, ours, theirs), _asked(table, ours))


def bound_share(profile: str, of: str) -> Measured | None:
    """The share of its bound that an engine reaches."""
    table, windows = _speed(profile)
    spec = speed.named(table, windows, of)
    return None if spec is None else Measured(speed.of_bound(table, spec), _asked(table, spec))


def judge_share(profile: str, of: str) -> Measured:
    """The largest share of a loop's time that its rule takes: "judgelib-compiled"."""
    shares = load_table("speed_phases", profile)
    own = shares[(shares["engine"] == of) & (shares["phase"] == "judge")]
    judged = float(own[own["rule"] != STRICT]["share"].max())
    return Measured(Estimate(judged, judged, judged), _asked(_speed(profile)[0]))


def _speed(profile: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    return load_table("speed", profile), load_table("speed_windows", profile)


def _asked(table: pd.DataFrame, spec: speed.Spec | None = None) -> int:
    """How many prompts every round answered."""
    return int((table if spec is None else speed.rows_of(table, spec))["prompts"].max())


def _gap(ours: pd.DataFrame, theirs: pd.DataFrame) -> Measured | None:
    """The mean difference over domains. The two intervals are combined as if independent, which
    for AUCs of the same questions is wider than need be. None where a profile has no such variant:
    no twin of the target, say, or too few labels of a domain."""
    if ours.empty or theirs.empty:
        return None
    value = float(ours["auc"].mean() - theirs["auc"].mean())
    errors = [(rows["high"] - rows["low"]).to_numpy(float) / (2 * 1.96) for rows in (ours, theirs)]
    reach = 1.96 * float(np.sqrt(sum((each**2).sum() / len(each) ** 2 for each in errors)))
    return Measured(Estimate(value, value - reach, value + reach), int(ours["prompts"].sum()))


def _minus(first: pd.DataFrame | None, second: pd.DataFrame | None) -> Measured | None:
    if first is None or second is None:
        return None
    found = paired(first["correct"].to_numpy(bool), second["correct"].to_numpy(bool), **BOOT)
    points = found.change
    spread = (100 * value for value in (points.value, points.low, points.high))
    return Measured(Estimate(*spread), found.prompts)


def _answers(profile: str, of: str) -> pd.DataFrame | None:
    """The test answers of "rule, choice"; None if that choice found no setting."""
    answers = load_answers(profile, "test")
    if of == DRAFT:
        return _in_order(answers[answers["rule"] == DRAFT])
    rule, choice = of.split(", ")
    table = load_table("operating_points", profile)
    named = ("js", "kl") if rule == "divergence" else (rule,)
    row = table[table["rule"].isin(named) & (table["choice"] == choice)]
    if row.empty:
        return None
    rule, setting = row["rule"].iloc[0], row["setting"].iloc[0]
    chosen = (answers["rule"] == rule) & (answers["setting"] == setting)
    return _in_order(answers[chosen])


def _in_order(answers: pd.DataFrame) -> pd.DataFrame:
    return answers.sort_values(["domain", "question"], ignore_index=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the table of claims from saved results.")
    parser.add_argument("--profile", default="sandbox-full")
    options = parser.parse_args(arguments)
    table = save(options.profile, started=time.time())
    print(table["holds"].str.split(":").str[0].value_counts().to_string())
    return 0


METRICS: dict[str, Callable[[str, str], Measured | None]] = {
    function.__name__: function
    for function in (
        accepted_minus_draft, right_minus_draft, head_claim, unimportant, gain, against, change,
        above_draft, left_out, probe_gap, transfer_gap, speedup, bound_share, judge_share,
    )
}  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
