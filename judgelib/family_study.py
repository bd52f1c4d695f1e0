"""How often each model of a profile is right alone: the table `family` of any profile.

The sandbox's models answer the questions of their world and carry records of their training; models
from the hub answer the profile's own tasks, and what they were trained on is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from judgelib.answering import greedy_texts
from judgelib.models import LanguageModel, load_model
from judgelib.profiles import Profile
from judgelib.sandbox import family
from judgelib.sandbox.problem import DOMAINS
from judgelib.tasks import load_task

SANDBOX_TASKS = tuple(f"sandbox-{domain}" for domain in DOMAINS)


def in_sandbox(tasks: Sequence[str]) -> bool:
    """Whether a profile asks the questions of the sandbox's world."""
    return set(tasks) <= set(SANDBOX_TASKS)


def table(profile: Profile, tasks: Sequence[str], *, prompts: int, seed: int = 0) -> pd.DataFrame:
    """The table `family`: right greedy answers to test questions by model and domain, tasks of one
    domain together."""
    if in_sandbox(tasks):
        return family.family_table(folders(profile, tasks), prompts=prompts, seed=seed)
    frames = []
    for role in profile.models:
        model = load_model(profile.model(role), **profile.loading(role))
        parameters = sum(weight.numel() for weight in model.model.parameters())
        counts = _right(profile, model, tasks, prompts, seed)
        frames.append(counts.assign(model=role, parameters=parameters))
        del model  # of large models one at a time
    unknown = {"tokens_trained": float("nan"), "seconds_trained": float("nan")}
    return pd.concat(frames, ignore_index=True).assign(**unknown)


def _right(
    profile: Profile, model: LanguageModel, tasks: Sequence[str], prompts: int, seed: int
) -> pd.DataFrame:
    """Columns domain, prompts, correct."""
    rows = []
    for name in tasks:
        task = load_task(name)
        asked = task.questions("test", prompts, seed=seed)
        texts = greedy_texts(model, asked, **profile.limits("rows"))
        right = sum(task.score(asked, texts))
        rows.append({"domain": task.domain, "prompts": prompts, "correct": right})
    return pd.DataFrame(rows).groupby("domain", sort=False).sum().reset_index()


def folders(profile: Profile, tasks: Sequence[str]) -> dict[str, str]:
    """Role -> where the weights are: of the roles that notebook 00 compares."""
    roles = family.REQUIRED if in_sandbox(tasks) else profile.models
    return {role: profile.model(role) for role in roles}


def required(tasks: Sequence[str]) -> Mapping[str, tuple[float, float]]:
    """The bands of the sandbox's roles; of other models nothing is required."""
    return family.REQUIRED if in_sandbox(tasks) else {}


def verdicts(found: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """The shares of right answers, in the sandbox with their bands."""
    if in_sandbox(tasks):
        return family.verdicts(found)
    share = found["correct"] / found["prompts"]
    columns: dict[str, Any] = {"prompts": found["prompts"], "right": share.map("{:.1%}".format)}
    return found[["model", "domain", "parameters"]].assign(**columns)


def introduction(profile: Profile, tasks: Sequence[str]) -> str:
    """Whose answers follow, in a sentence."""
    if in_sandbox(tasks):
        return f"Profile {profile.name}: the models of this world, on its held-out questions."
    models = ", ".join(f"{role} {name}" for role, name in profile.models.items())
    return (
        f"Profile {profile.name}: its models ({models}) know nothing of the world above, which "
        f"stays the sandbox's. They answer the profile's own tasks: {', '.join(tasks)}."
    )
