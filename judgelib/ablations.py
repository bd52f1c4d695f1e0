"""The ablations: what a judge owes to its labels, its depth, its layer, its window and its models.

Two kinds of rows. *Probes* say how well a head tells wrong tokens of test questions (AUC); *runs*
decode test questions and count. Heads that exist for one comparison only are kept apart from those
that are shipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from judgelib import curves, frontier, training
from judgelib.blocks import fit_blocks
from judgelib.evaluation import Cell, Pair, evaluate
from judgelib.features import Examples, extract
from judgelib.head import JudgeHead
from judgelib.head_study import Study, first_questions
from judgelib.labels import Labelled
from judgelib.models import load_model
from judgelib.quality import longest, pair_of, save_answers
from judgelib.results import SCHEMAS, results_dir
from judgelib.rulebook import FLOORED, JUDGE, STRICT, settings

DELTA = 0.5
"""The threshold of every judge here unless thresholds are compared: the paper's."""

COMPARED = ((STRICT, 0.0), (f"{FLOORED}annotated", DELTA))
"""Rule and setting of strict verification and of the judge beside it."""


PROBED = list(SCHEMAS["probes"])
RAN = ["study", "variant", "domain", "prompts", "correct", "tokens", "cycles", "accepted"]
"""Columns of probes and, with the intervals of `frontier.spans`, of runs."""


@dataclass(frozen=True)
class Ablations:
    """What all comparisons share: models and labels, the tasks and how much of them, the seed."""

    study: Study
    tasks: tuple[str, ...]
    prompts: int
    window: int
    resamples: int
    seed: int
    workers: int | None = None

    # --- probes ------------------------------------------------------------------------------

    def depth(self, *, questions: int) -> pd.DataFrame:
        """A linear head, an MLP, and two transformer blocks over the answer so far, from the first
        `questions` of every domain."""
        train = self._some(self.study.examples("annotated", "train"), questions)
        test = self.study.examples("annotated", "test")
        linear, deep = (self._head(train, widths=widths) for widths in ((), (64,)))
        scores = {
            "linear": training.probabilities(linear, test),
            "MLP": training.probabilities(deep, test),
            "two blocks": fit_blocks(train, test, seed=self.seed),
        }
        return self._probes("depth", {name: (test, found) for name, found in scores.items()})

    def layers(self, spots: Sequence[str], *, questions: int) -> pd.DataFrame:
        """The same linear head at several depths, before and behind the final norm."""
        train, test = (
            extract(self._first("annotated", split, questions), self.study.target, spots=spots)
            for split in ("train", "test")
        )
        found = {}
        for spot in spots:
            head = self._head(train, feature=spot)
            found[spot] = (test, training.probabilities(head, test))
        return self._probes("layer", found)

    def spots(self) -> list[str]:
        """Where `layers` reads: layer 2, a quarter, half and three quarters of the depth, and both
        sides of the final norm."""
        depth = self.study.target.layers
        layers = {min(2, depth), *(max(1, depth * part // 4) for part in (1, 2, 3))}
        return [*(f"layer_{n}" for n in sorted(layers)), "pre_norm", "post_norm"]

    def label_count(self, counts: Sequence[int]) -> pd.DataFrame:
        """Heads from the first so many annotated questions of every domain."""
        train, test = (self.study.examples("annotated", split) for split in ("train", "test"))
        found = {}
        for count in counts:
            some = self._some(train, count)
            found[str(count)] = (test, training.probabilities(self._head(some), test))
        return self._probes("annotated questions a domain", found)

    def sources(self, heads: Mapping[str, JudgeHead]) -> pd.DataFrame:
        """Heads from annotated, mined or both labels, on test labels of both kinds."""
        found = {}
        for labels in ("annotated", "mined"):
            test = self.study.examples(labels, "test")
            for name, head in heads.items():
                found[f"{name} on {labels}"] = (test, training.probabilities(head, test))
        return self._probes("labels", found)

    def transfer(self) -> pd.DataFrame:
        """Mined heads of one domain on the mined labels of the others; a domain with too few labels
        to train on is left out."""
        train, test = (self.study.examples("mined", split) for split in ("train", "test"))
        found = {}
        for domain in sorted(set(train.domains)):
            own = train.where(train.domains == domain)
            if not training.trainable(own):
                continue
            config = training.config_for(self.study.target, self.study.draft, "mined")
            head = training.fit_mined(own, config, held_out=0.3, seed=self.seed).head
            found[f"mined on {domain}"] = (test, training.probabilities(head, test))
        return self._probes("transfer", found)

    def corrections(self) -> pd.DataFrame:
        """The same labels read by the target's twin, whose training text took nothing back; no row
        where the profile has no twin."""
        profile = self.study.profile
        role = "target_no_corrections"
        if role not in profile.models:
            return self._probes("self-corrections in training", {})
        twin = load_model(profile.model(role), **profile.loading(role))
        labels = {split: self.study.labels("annotated", split) for split in ("train", "test")}
        found = {}
        for name, model in {"target": self.study.target, "twin": twin}.items():
            train, test = (
                self.study.examples("annotated", split) if model is self.study.target
                else extract(rows, model)
                for split, rows in labels.items()
            )  # fmt: skip
            config = training.config_for(model, self.study.draft, "annotated")
            head = training.fit_annotated(train, config, seed=self.seed)
            found[name] = (test, training.probabilities(head, test))
        return self._probes("self-corrections in training", found)

    # --- runs --------------------------------------------------------------------------------

    def windows(self, heads: Mapping[str, Path], lengths: Sequence[int]) -> pd.DataFrame:
        """Strict and judge at several window lengths."""
        return self._varied("window", lengths, heads)

    def thresholds(self, heads: Mapping[str, Path], name: str) -> pd.DataFrame:
        """A judge at every threshold at which it is compared."""
        rule = f"{JUDGE}{name}"
        cells = {f"{delta:g}": self._cells(rule, delta) for delta in settings(rule)}
        return self._runs("threshold", {STRICT: self._cells(STRICT, 0.0), **cells}, heads)

    def prefixes(self, heads: Mapping[str, Path], lengths: Sequence[int]) -> pd.DataFrame:
        """The judge behind a strict prefix of several lengths."""
        judge = self._cells(f"{JUDGE}annotated", DELTA)
        cells = {
            str(length): [replace(cell, prefix=length) for cell in judge] for length in lengths
        }
        return self._runs("strict prefix", cells, heads)

    def temperatures(
        self, heads: Mapping[str, Path], temperatures: Sequence[float]
    ) -> pd.DataFrame:
        """Strict and judge, greedy and sampled."""
        return self._varied("temperature", temperatures, heads)

    def drafts(self, heads: Mapping[str, Path], models: Mapping[str, str]) -> pd.DataFrame:
        """Strict and judge behind drafts of several qualities; `models`: name -> path."""
        frames = []
        for name, path in models.items():
            options = self.study.profile.loading(name)
            own = {k: v for k, v in options.items() if k not in ("dtype", "device")}
            pair = replace(self._pair, draft=path, draft_options=own)
            cells = {f"{rule}, {name}": self._cells(rule, setting) for rule, setting in COMPARED}
            frames.append(self._runs(f"draft {name}", cells, heads, pair).assign(study="draft"))
        return pd.concat(frames, ignore_index=True)

    def left_out(self) -> pd.DataFrame:
        """On each domain: the judge of all labels, and one that never saw that domain's. A domain
        without labels has none to leave out; without a second labelled domain nothing is left, and
        there is no row."""
        train = self.study.examples("annotated", "train")
        parts = {name: train.where(train.domains != name) for name in set(train.domains)}
        parts = {name: rest for name, rest in parts.items() if len(set(rest.labels)) == 2}
        tasks = [task for task in self.tasks if self._domain(task) in parts]
        if not tasks:
            return self._runs("domain left out", {}, {})
        heads = {"all": self._keep(self._head(train), "all")}
        cells: dict[str, list[Cell]] = {}
        for task in tasks:
            domain = self._domain(task)
            head = self._head(parts[domain])
            heads[f"no_{domain}"] = self._keep(head, f"no_{domain}")
            for name, own in {"all labels": "all", "left out": f"no_{domain}"}.items():
                cell = self._cell(f"{JUDGE}{own}", DELTA, task)
                cells.setdefault(name, []).append(cell)
            cells.setdefault(STRICT, []).append(self._cell(STRICT, 0.0, task))
        return self._runs("domain left out", cells, heads)

    # --- how -----------------------------------------------------------------------------------

    @property
    def _pair(self) -> Pair:
        return pair_of(self.study.profile)

    def _cell(self, rule: str, setting: float, task: str) -> Cell:
        return Cell(
            rule, setting, task, "test", self.prompts, self.seed, self.window,
            **longest(self.study.profile),
        )  # fmt: skip

    def _cells(self, rule: str, setting: float) -> list[Cell]:
        return [self._cell(rule, setting, task) for task in self.tasks]

    def _varied(self, name: str, values: Sequence[Any], heads: Mapping[str, Path]) -> pd.DataFrame:
        """Strict and judge at several values of one entry of a cell."""
        cells = {
            f"{rule}, {value:g}": [
                replace(cell, **{name: value}) for cell in self._cells(rule, setting)
            ]
            for rule, setting in COMPARED
            for value in values
        }
        return self._runs(name, cells, heads)

    def _domain(self, task: str) -> str:
        from judgelib.tasks import load_task

        return load_task(task).domain

    def _head(
        self, train: Examples, *, widths: Sequence[int] = (), feature: str = "post_norm"
    ) -> JudgeHead:
        config = training.config_for(
            self.study.target, self.study.draft, "annotated", feature=feature,
            hidden_widths=tuple(widths),
        )  # fmt: skip
        return training.fit_annotated(train, config, seed=self.seed)

    def _keep(self, head: JudgeHead, name: str) -> Path:
        folder = results_dir(self.study.profile.name) / "evaluation" / "heads" / name
        head.save_pretrained(folder)
        return folder

    def _first(self, source: str, split: str, count: int) -> list[Labelled]:
        return first_questions(self.study.labels(source, split), count)

    def _some(self, train: Examples, questions: int) -> Examples:
        """The annotated training tokens of the first so many questions of every domain."""
        kept = {row.question_id for row in self._first("annotated", "train", questions)}
        return train.where(np.isin(train.questions, list(kept)))

    def _probes(self, study: str, found: Mapping[str, tuple[Examples, np.ndarray]]) -> pd.DataFrame:
        frames = []
        for variant, (examples, scores) in found.items():
            aucs = curves.auc_with_interval(
                examples, scores, resamples=self.resamples, seed=self.seed
            )
            prompts = [len(set(examples.questions[examples.domains == d])) for d in aucs["domain"]]
            frames.append(aucs.assign(study=study, variant=variant, prompts=prompts))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=PROBED)

    def _runs(
        self, study: str, cells: Mapping[str, Iterable[Cell]], heads: Mapping[str, Path],
        pair: Pair | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """Every variant's cells decoded; intervals by bootstrap over prompts."""
        named = {variant: list(own) for variant, own in cells.items()}
        folder = results_dir(self.study.profile.name) / "evaluation"
        if not named:
            return pd.DataFrame(columns=RAN)
        rows: list[dict[str, Any]] = []
        everything = [cell for own in named.values() for cell in own]
        answers = evaluate(
            pair or self._pair, everything, heads, folder=folder, workers=self.workers
        )
        lengths = np.cumsum([cell.count for cell in dict.fromkeys(everything)])
        starts = dict(zip(dict.fromkeys(everything), [0, *lengths[:-1]], strict=True))
        parts = []
        for variant, own in named.items():
            found = [answers.iloc[starts[cell] : starts[cell] + cell.count] for cell in own]
            parts.append(pd.concat(found).assign(variant=variant))
            rows += self._counted(study, variant, parts[-1])
        name = f"ablation_{study.replace(' ', '_')}"
        save_answers(pd.concat(parts), self.study.profile.name, name)
        return pd.DataFrame(rows)

    def _counted(self, study: str, variant: str, answers: pd.DataFrame) -> list[dict[str, Any]]:
        counts = ["correct", "tokens", "cycles", "accepted"]
        rows = []
        for domain, own in [("all", answers), *answers.groupby("domain", sort=False)]:
            spans = frontier.spans(own, resamples=self.resamples, seed=self.seed)
            sums = {name: int(own[name].sum()) for name in counts}
            rows.append({"study": study, "variant": variant, "domain": domain,
                         "prompts": len(own), **sums, **spans})  # fmt: skip
        return rows


def probes(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The table `probes`: the AUCs of several comparisons with their intervals."""
    return pd.concat([frame[PROBED] for frame in frames if len(frame)], ignore_index=True)


def table(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The table `ablations` of several comparisons; what a comparison does not measure is empty."""
    there = [frame.reindex(columns=list(SCHEMAS["ablations"])) for frame in frames if len(frame)]
    return pd.concat(there, ignore_index=True)
