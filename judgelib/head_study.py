"""The head study: both papers' heads from the saved labels, their thresholds, what they can tell.

Training questions train, validation questions choose (C, thresholds), test questions are reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from judgelib import curves, training
from judgelib.drafting import ModelDrafter
from judgelib.evaluation import Panel
from judgelib.features import Examples, extract, joined
from judgelib.head import JudgeHead
from judgelib.labelling import load_split
from judgelib.labels import UNACCEPTABLE, Labelled
from judgelib.models import LanguageModel
from judgelib.profiles import Profile
from judgelib.quality import pair_of
from judgelib.results import results_dir
from judgelib.rules import Judge, Match
from judgelib.tasks import having
from judgelib.thresholds import FIXED, Certificate, at_recall, certify

CANDIDATES = (0.999, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
"""Thresholds that are tried, from strict to loose."""


@dataclass
class Study:
    """The models of a profile and the hidden states at its labels (read when first asked for)."""

    profile: Profile
    target: LanguageModel
    draft: LanguageModel
    _labels: dict[tuple[str, str], list[Labelled]] = field(default_factory=dict)
    _examples: dict[tuple[str, str], Examples] = field(default_factory=dict)

    @classmethod
    def of(cls, profile: Profile) -> Study:
        return cls(profile, *pair_of(profile).load())

    def labels(self, source: str, split: str) -> list[Labelled]:
        """The labels of one source and split."""
        key = (source, split)
        if key not in self._labels:
            self._labels[key] = load_split(self.profile.name, source, split)
        return self._labels[key]

    def examples(self, source: str, split: str) -> Examples:
        """Their tokens with the target's last hidden state, behind the final norm."""
        key = (source, split)
        if key not in self._examples:
            self._examples[key] = extract(self.labels(*key), self.target)
        return self._examples[key]

    def save(self, head: JudgeHead, name: str) -> Path:
        """Keep a head under the profile's results."""
        folder = results_dir(self.profile.name) / "heads" / name
        head.save_pretrained(folder)
        return folder


def annotated_head(study: Study, *, widths: Sequence[int] = (), seed: int = 0) -> JudgeHead:
    """Judge Decoding's head, its threshold fixed at 0.5; `widths` makes it an MLP."""
    config = training.config_for(
        study.target, study.draft, "annotated", hidden_widths=tuple(widths), threshold=FIXED,
        threshold_choice="fixed, as in Judge Decoding",
    )  # fmt: skip
    return training.fit_annotated(study.examples("annotated", "train"), config, seed=seed)


def mined_head(study: Study, *, recall: float = 0.9, seed: int = 0) -> training.Fit:
    """AutoJudge's head; its threshold finds `recall` of the important tokens of validation, and is
    0.5 where validation has none."""
    config = training.config_for(study.target, study.draft, "mined")
    fit = training.fit_mined(study.examples("mined", "train"), config, seed=seed)
    held_out = study.examples("mined", "validation")
    if UNACCEPTABLE not in held_out.labels:
        words = f"fixed: none of {_questions(held_out)} validation questions has an important token"
        return fit._replace(head=fit.head.with_threshold(FIXED, words))
    threshold = at_recall(training.probabilities(fit.head, held_out), held_out.labels, recall)
    words = (
        f"finds {recall:.0%} of the important tokens of {_questions(held_out)} validation questions"
    )
    return fit._replace(head=fit.head.with_threshold(threshold, words))


def both_head(study: Study, *, seed: int = 0) -> JudgeHead:
    """One linear head from annotated and mined labels together, fitted as the annotated one."""
    parts = [study.examples(source, "train") for source in ("annotated", "mined")]
    config = training.config_for(study.target, study.draft, "annotated and mined")
    return training.fit_annotated(joined(*parts), config, seed=seed)


def _questions(examples: Examples) -> int:
    return len(set(examples.questions))


def table(study: Study, heads: Sequence[JudgeHead]) -> pd.DataFrame:
    """The table `head_training`: each head on the test tokens of its own kind of label."""
    frames = [
        training.measure(
            head, study.examples(head.config.source, "test"), n_train=head.config.training["tokens"]
        )
        for head in heads
    ]
    return pd.concat(frames, ignore_index=True)


def across(study: Study, heads: Sequence[JudgeHead], *, resamples: int, seed: int) -> pd.DataFrame:
    """Every head's AUC on both kinds of label, test questions, with intervals.

    Columns: head, labels, domain, tokens, unacceptable, auc, low, high.
    """
    frames = []
    for head in heads:
        for source in ("annotated", "mined"):
            examples = study.examples(source, "test")
            scores = training.probabilities(head, examples)
            aucs = curves.auc_with_interval(examples, scores, resamples=resamples, seed=seed)
            frames.append(aucs.assign(head=head.config.source, labels=source))
    columns = ["head", "labels", "domain", "tokens", "unacceptable", "auc", "low", "high"]
    return pd.concat(frames, ignore_index=True)[columns]


# --- layers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probes:
    """A linear probe at each depth: rows for `head_training`, and AUCs with intervals."""

    rows: pd.DataFrame
    aucs: pd.DataFrame


def probe_layers(study: Study, *, questions: int, resamples: int = 200, seed: int = 0) -> Probes:
    """Fit the annotated head's kind of probe on some layers, from a part of the questions."""
    spots = [f"layer_{n}" for n in depths(study.target.layers)] + ["post_norm"]
    some = first_questions(study.labels("annotated", "train"), questions)
    train = extract(some, study.target, spots=spots)
    test = extract(
        first_questions(study.labels("annotated", "test"), questions), study.target, spots=spots
    )
    rows, aucs = [], []
    for spot in spots:
        config = training.config_for(study.target, study.draft, "annotated", feature=spot)
        head = training.fit_annotated(train, config, seed=seed)
        rows.append(training.measure(head, test, n_train=len(train)))
        scores = training.probabilities(head, test)
        found = curves.auc_with_interval(test, scores, resamples=resamples, seed=seed)
        aucs.append(found.assign(spot=spot))
    return Probes(pd.concat(rows, ignore_index=True), pd.concat(aucs, ignore_index=True))


def depths(layers: int, most: int = 8) -> list[int]:
    """At most so many layers, evenly spread: the states of all would not fit into memory.

    >>> depths(8), depths(80)
    ([1, 2, 3, 4, 5, 6, 7, 8], [10, 20, 30, 40, 50, 60, 70, 80])
    """
    count = min(most, layers)
    return [round(layers * (number + 1) / count) for number in range(count)]


def first_questions(rows: Sequence[Labelled], count: int) -> list[Labelled]:
    """The answers to the first `count` questions of every domain."""
    seen: dict[str, dict[str, None]] = {}
    for row in rows:
        names = seen.setdefault(row.domain, {})
        if len(names) < count:
            names[row.question_id] = None
    return [row for row in rows if row.question_id in seen[row.domain]]


# --- thresholds ------------------------------------------------------------------------------


def validation_panel(
    study: Study, tasks: Sequence[str], *, prompts: int, window: int, seed: int = 0
) -> Panel:
    """Validation questions of all tasks, answered by the target alone."""
    drafter = ModelDrafter(study.draft)
    return Panel.draw(
        study.target, drafter, having(tasks, "validation"), "validation", prompts,
        seed=seed, window=window, **study.profile.limits("slots"),
    )  # fmt: skip


def certified(
    panel: Panel, head: JudgeHead, *, alpha: float, confidence: float = 0.95
) -> Certificate:
    """The loosest threshold that is certified to lose at most a share `alpha` of the prompts."""

    def losses(threshold: float) -> np.ndarray:
        return panel.losses(Match() | Judge(head, threshold))

    return certify(losses, CANDIDATES, alpha=alpha, confidence=confidence)


def with_certificate(head: JudgeHead, certificate: Certificate) -> JudgeHead:
    """The head at the certified threshold, which says how it was chosen."""
    words = (
        f"certified: at most {certificate.alpha:.1%} of prompts lost with "
        f"{certificate.confidence:.0%} confidence, on {certificate.prompts} validation prompts"
    )
    if not certificate.certified:
        words = f"strict: no threshold could be certified to lose at most {certificate.alpha:.1%}"
    return head.with_threshold(certificate.threshold, words)


def certificate_steps(certificates: dict[str, Certificate]) -> pd.DataFrame:
    """The tested thresholds of several heads, as `head_figures.thresholds_figure` wants them."""
    rows = [
        {
            "head": name, "threshold": step.threshold, "prompts": step.prompts,
            "losses": step.losses, "loss": step.losses / step.prompts, "low": low, "high": high,
            "p_value": step.p_value, "certified": step.certified,
        }
        for name, certificate in certificates.items()
        for step in certificate.steps
        for low, high in [_interval(step.losses, step.prompts)]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _interval(hits: int, trials: int) -> tuple[float, float]:
    interval = binomtest(hits, trials).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)


# --- what it shows ---------------------------------------------------------------------------


def mistakes(study: Study, head: JudgeHead, *, count: int, context: int = 12) -> pd.DataFrame:
    """Where the head errs most: test tokens on the wrong side of its threshold, worst first.

    Columns: domain, kind ("missed": wrong but accepted; "false alarm": right but rejected),
    probability, text (the token in ⟦⟧ with what stands before it).
    """
    examples = study.examples(head.config.source, "test")
    scores = training.probabilities(head, examples)
    accepted = scores > head.threshold
    wrong = np.where(accepted != (examples.labels == 1))[0]
    worst = wrong[np.argsort(-np.abs(scores[wrong] - head.threshold), kind="stable")]
    frame = pd.DataFrame(
        {
            "domain": examples.domains[i],
            "kind": "missed" if accepted[i] else "false alarm",
            "probability": round(float(scores[i]), 3),
            "text": _around(study, head.config.source, examples, i, context),
        }
        for i in worst
    )
    return frame.groupby(["domain", "kind"], sort=True).head(count).reset_index(drop=True)


def _around(study: Study, source: str, examples: Examples, index: int, context: int) -> str:
    row = study.labels(source, "test")[examples.rows[index]]
    place = int(examples.places[index])
    decode = study.target.tokenizer.decode
    before = decode(row.response_ids[max(0, place - context) : place])
    return f"{before}⟦{decode([row.judged_ids[place]])}⟧"


def verdicts(
    study: Study, heads: Mapping[str, JudgeHead], *, resamples: int, seed: int
) -> pd.DataFrame:
    """What the heads say of the claims C2, C7 and C8, one row a claim and domain.

    heads: "annotated", "mlp" and "mined". Columns: claim, domain, measured, low, high, holds.
    """
    boot = {"resamples": resamples, "seed": seed}
    test = study.examples("annotated", "test")
    linear = training.probabilities(heads["annotated"], test)
    deep = training.probabilities(heads["mlp"], test)
    rows: list[dict[str, Any]] = []
    for row in curves.auc_with_interval(test, linear, **boot).to_dict("records"):
        rows.append(_verdict("C2 linear AUC of the first wrong token", row, row["auc"] >= 0.97))
    for row in curves.auc_gain(test, deep, linear, **boot).to_dict("records"):
        rows.append(_verdict("C7 AUC of an MLP minus linear", row, row["low"] <= 0.005))
    mined = study.examples("mined", "test")
    scores = training.probabilities(heads["mined"], mined)
    for row in curves.auc_with_interval(mined, scores, **boot).to_dict("records"):
        rows.append(_verdict("C8 AUC of the mined head", row, row["auc"] >= 0.8))
    return pd.DataFrame(rows)


def _verdict(claim: str, row: Mapping[Any, Any], holds: bool) -> dict[str, Any]:
    measured = next(row[name] for name in ("auc", "gain", "share") if name in row)
    spans = {"measured": measured, "low": row["low"], "high": row["high"]}
    return {"claim": claim, "domain": row["domain"], **spans, "holds": bool(holds)}
