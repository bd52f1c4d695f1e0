"""The trained family: how often each member is right, and the card that ships with it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from judgelib.answering import greedy_texts
from judgelib.models import LanguageModel, load_model
from judgelib.sandbox.corpus import answer
from judgelib.sandbox.problem import DOMAINS, Problem
from judgelib.sandbox.voices import DRAFT, EXPERT, HUMAN, TARGET
from judgelib.tasks import load_task


def right_answers(member: LanguageModel, split: str, prompts: int, seed: int) -> dict[str, int]:
    """How many greedy answers are right, by domain."""
    counts: dict[str, int] = {}
    for domain in DOMAINS:
        task = load_task(f"sandbox-{domain}")
        questions = task.questions(split, prompts, seed=seed)
        counts[domain] = sum(task.score(questions, greedy_texts(member, questions)))
    return counts


def family_table(
    folders: Mapping[str, str], *, prompts: int, seed: int = 0, dtype: str = "float32"
) -> pd.DataFrame:
    """Right greedy answers on test questions by model and domain: the table `family`.

    folders: model name → its folder, which holds its `training.json` too.
    """
    rows: list[dict[str, Any]] = []
    for name, folder in folders.items():
        record = json.loads((Path(folder) / "training.json").read_text())
        made = {key: record[key] for key in ("parameters", "tokens_trained", "seconds_trained")}
        counts = right_answers(load_model(folder, dtype=dtype), "test", prompts, seed)
        for domain, correct in counts.items():
            row = {"model": name, "domain": domain, "prompts": prompts, "correct": correct}
            rows.append({**row, **made})
    return pd.DataFrame(rows)


REQUIRED = {
    "target": (0.90, 1.0),
    "target_no_corrections": (0.90, 1.0),
    "draft": (0.40, 0.80),
    "expert": (0.95, 1.0),
}
"""The band in which each member's share of right answers should lie, in every domain."""


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """The table `family` with the share of right answers and whether it lies in its band."""
    share = table["correct"] / table["prompts"]
    bands = [REQUIRED[model] for model in table["model"]]
    inside = [low <= s <= high for s, (low, high) in zip(share, bands, strict=True)]
    wanted = [f"{low:.0%}–{high:.0%}" for low, high in bands]
    columns: dict[str, Any] = {
        "right": share.map("{:.1%}".format),
        "wanted": wanted,
        "in_band": inside,
    }
    return table[["model", "domain"]].assign(**columns)


def voices_of(problem: Problem, *, seed: int = 0) -> pd.DataFrame:
    """One right answer to a problem in each voice of the sandbox: columns voice, answer."""
    voices = (TARGET, DRAFT, EXPERT, HUMAN)
    texts = [answer(problem, voice, random.Random(seed)) for voice in voices]
    return pd.DataFrame({"voice": [voice.name for voice in voices], "answer": texts})


def model_card(name: str, record: dict[str, Any]) -> str:
    """The README of a model of the family, from its training record."""
    shape, text = record["shape"], record["text"]
    start = f"trained on from `{record['start']}`" if record["start"] else "trained from scratch"
    accuracy = "\n".join(f"| {d} | {a:.1%} |" for d, a in record["validation_accuracy"].items())
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# judgelib sandbox: {name}

A Llama of {shape["layers"]} layers x {shape["width"]} ({record["parameters"]:,} parameters),
{start} on generated problems (arithmetic in words, small Python functions, facts of a made-up
world). It knows nothing else. Made by `python -m judgelib.sandbox.training {name}`.

| what | value |
|---|---|
| voice | {text["voice"]["name"]} |
| share of solution parts with a mistake taken back | {text["corrections"]} |
| share of towns and of skills never read about | {text["unread_towns"]}, {text["unread_skills"]} |
| steps | {record["steps"]} |
| rows a step | {", ".join(f"{count} {domain}" for domain, count in record["rows"])} |
| tokens read, with those of its base | {record["tokens_trained"]:,} |
| seconds trained, with those of its base | {record["seconds_trained"]:,} |
| device | {record["device"]}, {record["threads"]} thread(s), torch {record["torch"]} |
| seed | {record["seed"]} |

Share of right greedy answers on {record["validation_prompts"]} validation questions a domain,
measured when the training ended (the table `family` measures on test questions):

| domain | right |
|---|---|
{accuracy}

The configuration is in `config.json`, the whole training record in `training.json`.
"""
