"""The labelling study: both papers' labels for the same questions, kept by split.

Labels of the training split train heads, those of the validation split choose thresholds, those of
the test split are reported; no question is in two of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from judgelib import labels, mining, tokencourt
from judgelib.annotation import load_items, merge, save_items, spans
from judgelib.figures import with_wilson
from judgelib.labels import Labelled, load_labels, save_labels
from judgelib.models import LanguageModel, load_model
from judgelib.profiles import Profile
from judgelib.quality import pair_of
from judgelib.results import results_dir, sha256
from judgelib.steps import code_fingerprint
from judgelib.tasks import Annotated, Task, load_task

SPLITS = ("train", "validation", "test")


def labels_path(profile: str, source: str, split: str) -> Path:
    """Where the labels of one source and split lie."""
    if split not in SPLITS or source not in labels.SOURCES:
        raise ValueError(
            f"expected a source of {', '.join(labels.SOURCES)} and a split of {', '.join(SPLITS)}, "
            f"got {source!r}, {split!r}"
        )
    return results_dir(profile) / "labels" / f"{source}_{split}.parquet"


def load_split(profile: str, source: str, split: str) -> list[Labelled]:
    """The labels of one source and split."""
    return load_labels(labels_path(profile, source, split))


def annotate(
    profile: Profile, tasks: Sequence[str], questions: Mapping[str, int], *, seed: int = 0
) -> pd.DataFrame:
    """A right and up to two wrong answers of the draft to each question, annotated.

    The annotator is the task's oracle; where a task has none, people whose decisions lie in
    `annotations_path`; without those the target itself (`tokencourt.recovery_labels`).

    Args:
        questions: split -> questions of each task.

    Returns:
        The table `labels_summary` of all splits; the labels are saved under `labels_path`.
    """
    author = load_model(profile.model("draft"), **profile.loading("draft"))
    found: dict[str, list[Labelled]] = {}
    for split, count in questions.items():
        for name in tasks:
            task = load_task(name)
            answers = tokencourt.court(
                author, task, task.questions(split, count, seed=seed), wrong=2, seed=seed,
                **profile.limits("rows"),
            )  # fmt: skip
            rows = _annotated(profile, task, split, answers, author)
            found.setdefault(split, []).extend(rows)
    return _saved(profile, "annotated", found)


def annotations_path(profile: str, task: str, split: str) -> Path:
    """The folder in which annotators' decisions are looked for, beside the `items.jsonl` that they
    were given (`judgelib.annotation`)."""
    return results_dir(profile) / "annotation" / f"{task}_{split}"


def annotators(profile: Profile, tasks: Sequence[str]) -> pd.DataFrame:
    """Who annotates the answers to each task's questions: columns task, annotator."""
    rows = []
    for name in tasks:
        by_people = any(_decided(profile, name, split) for split in SPLITS)
        who = (
            "the oracle: the first character at which no right solution begins"
            if isinstance(load_task(name), Annotated)
            else "people" if by_people
            else "the target: the first token from which it no longer gets to a right answer"
        )  # fmt: skip
        rows.append({"task": name, "annotator": who})
    return pd.DataFrame(rows)


def _annotated(
    profile: Profile,
    task: Task,
    split: str,
    answers: Sequence[tokencourt.Answer],
    author: LanguageModel,
) -> list[Labelled]:
    if isinstance(task, Annotated):
        return tokencourt.oracle_labels(task, answers, author)
    folder = annotations_path(profile.name, task.name, split)
    if decided := _decided(profile, task.name, split):
        items = load_items(folder / "items.jsonl")
        merged = merge(decided)
        marked = [span for who in merged.values() for span in spans(items, who)]
        return tokencourt.labels_of(marked)
    save_items(tokencourt.items(task, answers, author), folder / "items.jsonl")
    target = load_model(profile.model("target"), **profile.loading("target"))
    return tokencourt.recovery_labels(task, answers, author, target, **profile.limits("rows"))


def _decided(profile: Profile, task: str, split: str) -> list[Path]:
    """Annotators' files of one task and split."""
    folder = annotations_path(profile.name, task, split)
    return [path for path in sorted(folder.glob("*.jsonl")) if path.name != "items.jsonl"]


def mine(
    profile: Profile, tasks: Sequence[str], questions: Mapping[str, int], *, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The semi-greedy search on the first questions of each split.

    Its journals lie in the profile's results: a run that was killed goes on where it was, and one
    with other models or other code begins anew.

    Returns:
        The table `labels_summary` of all splits, and the cost of each question (`Mined.costs`).
    """
    target, draft = pair_of(profile).load()
    limits = {"max_new_tokens": mining.MAX_NEW_TOKENS, **profile.limits("slots")}
    found: dict[str, list[Labelled]] = {}
    costs = []
    for split, count in questions.items():
        for name in tasks:
            task = load_task(name)
            drawn = task.questions(split, count, seed=seed)
            settings = mining.Settings.of(target, draft, task, limits["max_new_tokens"])
            journal = _journal(profile, settings, split)
            mined = mining.mine(target, draft, task, drawn, journal, **limits)
            found.setdefault(split, []).extend(mined.rows)
            costs.append(mined.costs().assign(split=split))
    return _saved(profile, "mined", found), pd.concat(costs, ignore_index=True)


def _journal(profile: Profile, settings: mining.Settings, split: str) -> Path:
    """A file of its own for these models and this code, which decides what an answer is."""
    digest = sha256(f"{settings} {code_fingerprint()}".encode())[:8]
    return results_dir(profile.name) / "mining" / f"{settings.task}_{split}_{digest}.jsonl"


def typical(rows: Sequence[Labelled]) -> list[Labelled]:
    """The answer of median length of every domain, to look at."""
    domains = dict.fromkeys(row.domain for row in rows)
    ranked = [
        sorted((row for row in rows if row.domain == domain), key=lambda row: len(row.labels))
        for domain in domains
    ]
    return [found[len(found) // 2] for found in ranked]


def together(*summaries: pd.DataFrame) -> pd.DataFrame:
    """The table `labels_summary`."""
    return pd.concat(summaries, ignore_index=True)


def mostly_unimportant(mined: pd.DataFrame) -> pd.DataFrame:
    """Share of mismatches that are unimportant by domain, and whether it is most of them.

    mined: rows of `labels_summary`. Columns: domain, mismatches, unimportant, share, low, high (95%
    Wilson), holds (the interval lies above one half).
    """
    spared = mined.assign(unimportant=mined["mismatches"] - mined["important"])
    shares = with_wilson(spared, "unimportant", "mismatches")
    columns = ["domain", "mismatches", "unimportant", "share", "low", "high"]
    return shares[columns].assign(holds=shares["low"] > 0.5)


def cost_table(
    annotated: pd.DataFrame, mined: pd.DataFrame, costs: pd.DataFrame, seconds: Mapping[str, float]
) -> pd.DataFrame:
    """Questions, labels, seconds and target passes of both ways to label."""
    counts = {"annotated": annotated, "mined": mined}
    rows = [
        {
            "source": source,
            "questions": table["questions"].sum(),
            "labels": int((table["acceptable"] + table["unacceptable"]).sum()),
            "seconds": round(seconds[source]),
            "seconds_a_question": round(seconds[source] / table["questions"].sum(), 2),
        }
        for source, table in counts.items()
    ]
    found = pd.DataFrame(rows).set_index("source")
    found.loc["mined", "trials_a_question"] = round(costs["trials"].mean(), 1)
    found.loc["mined", "target_passes_a_question"] = round(costs["passes"].mean(), 1)
    return found


def _saved(profile: Profile, source: str, found: Mapping[str, list[Labelled]]) -> pd.DataFrame:
    for split, rows in found.items():
        save_labels(rows, labels_path(profile.name, source, split))
    return labels.summary([row for rows in found.values() for row in rows])
