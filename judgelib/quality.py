"""The quality study: every rule on one frontier, and the settings one would use on fresh questions.

The frontier is measured on validation questions and chooses the settings; test questions are
answered with the chosen ones only, so nothing that is reported chose anything.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from judgelib import frontier, rulebook
from judgelib.evaluation import DRAFT, Cell, Pair, evaluate
from judgelib.head import JudgeHead
from judgelib.profiles import Profile
from judgelib.results import results_dir, write_files
from judgelib.rulebook import FLOORED, JUDGE, STRICT
from judgelib.tasks import Question, having, load_task

USUAL_QUIET = 6.0
"""FLy's own setting, which is tried whatever validation says."""

POINTS_LOST = 1.0
"""What counts as matched quality: at most so many points fewer right answers than the target."""


def heads(profile: Profile) -> dict[str, Path]:
    """The heads that the head study saved, by name."""
    folder = results_dir(profile.name) / "heads"
    found = {path.parent.name: path.parent for path in sorted(folder.glob("*/config.json"))}
    if not found:
        raise ValueError(
            f"expected trained heads in {folder}, there are none; run notebook 03 with profile "
            f"{profile.name!r} first"
        )
    return found


def judges(names: Iterable[str]) -> list[str]:
    """The rules of these heads; a certified copy differs in its threshold only. The papers' own two
    are also tried with a floor."""
    bare = [name for name in names if not name.endswith("-certified")]
    floored = [f"{FLOORED}{name}" for name in ("annotated", "mined") if name in bare]
    return [*(f"{JUDGE}{name}" for name in bare), *floored]


def grid(rules: Sequence[str]) -> list[tuple[str, float]]:
    """Every rule at every setting at which it is compared."""
    return [(rule, setting) for rule in rules for setting in rulebook.settings(rule)]


def answers(
    profile: Profile,
    points: Iterable[tuple[str, float]],
    tasks: Sequence[str],
    split: str,
    prompts: int,
    *,
    window: int,
    seed: int,
    workers: int | None = None,
) -> pd.DataFrame:
    """`evaluate` on `prompts` questions of each task that has such a split: the points, strict and
    the draft alone."""
    known = heads(profile)
    cells = [
        Cell(rule, setting, task, split, prompts, seed, window, **longest(profile))
        for rule, setting in dict.fromkeys([(STRICT, 0.0), (DRAFT, 0.0), *points])
        for task in having(tasks, split)
    ]
    folder = results_dir(profile.name) / "evaluation"
    return evaluate(pair_of(profile), cells, known, folder=folder, workers=workers)


def telling_question(
    answers: pd.DataFrame,
    rule: str,
    setting: float,
    tasks: Sequence[str],
    prompts: int,
    *,
    seed: int,
) -> Question:
    """The first test question that strict verification answered rightly and the rule wrongly; if
    there is none, the first of all.

    Args:
        answers: of `answers`, to the test questions of the same tasks, prompts and seed.
    """
    named = answers.assign(key=answers["domain"] + "/" + answers["question"])
    wrong = named[(named["rule"] == rule) & (named["setting"] == setting) & (named["correct"] == 0)]
    right = named[(named["rule"] == STRICT) & (named["correct"] == 1)]
    lost = set(wrong["key"]) & set(right["key"])
    asked = [one for name in tasks for one in load_task(name).questions("test", prompts, seed=seed)]
    return next((one for one in asked if f"{one.domain}/{one.id}" in lost), asked[0])


def save_answers(answers: pd.DataFrame, profile: str, name: str) -> Path:
    """Keep single answers, from which claims are computed, beside the tables."""
    path = answers_path(profile, name)
    payload = io.BytesIO()
    answers.to_parquet(payload, index=False)
    write_files({path: payload.getvalue()})
    return path


def answers_path(profile: str, name: str) -> Path:
    """Where `save_answers` keeps them."""
    return results_dir(profile) / "answers" / f"{name}.parquet"


def load_answers(profile: str, name: str) -> pd.DataFrame:
    """Inverse of `save_answers`; ValueError if there are none."""
    path = answers_path(profile, name)
    if not path.is_file():
        raise ValueError(
            f"expected answers in {path}: `make reproduce PROFILE={profile}` saves them"
        )
    return pd.read_parquet(path)


def pair_of(profile: Profile) -> Pair:
    """The target and the draft of a profile, as it loads them."""
    target, draft = (dict(profile.loading(role)) for role in ("target", "draft"))
    places = [about.pop("device", "cpu") for about in (target, draft)]
    dtypes = [about.pop("dtype") for about in (target, draft)]
    return Pair(
        profile.model("target"), profile.model("draft"), dtypes[0], places[0], target, draft,
        profile.answers.get("side_by_side", 64),
    )  # fmt: skip


def longest(profile: Profile) -> dict[str, Any]:
    """The profile's longest answer, as an argument; nothing where it leaves that to the package."""
    limits = profile.limits("slots").items()
    return {name: value for name, value in limits if name == "max_new_tokens"}


def operating_points(profile: Profile, validation: pd.DataFrame) -> pd.DataFrame:
    """The settings that are tried on test questions, and why each was chosen.

    Args:
        validation: of `frontier.points`, on validation questions.

    Returns:
        Columns rule, setting, choice. The choices: "fixed" (a source's own setting), "recall 90%"
        and "certified" (the head's own), "matched" (the most tokens per cycle among the settings
        that lost at most one point of the validation questions).
    """
    known = heads(profile)
    rows = [(STRICT, 0.0, "strict"), *_own_thresholds(known), ("deferred", USUAL_QUIET, "fixed")]
    rows += [
        (rule, setting, "matched")
        for rule in [*judges(known), "topk", "ratio", _better_divergence(validation), "random"]
        if (setting := _best(validation, rule)) is not None
    ]
    return pd.DataFrame(rows, columns=["rule", "setting", "choice"])


def _best(validation: pd.DataFrame, rule: str) -> float | None:
    return frontier.best(validation, rule, points_lost=POINTS_LOST)


def _better_divergence(validation: pd.DataFrame) -> str:
    """JS or KL, whichever keeps more tokens per cycle at matched quality."""
    together = validation[validation["domain"] == "all"].set_index(["rule", "setting"])

    def kept(kind: str) -> float:
        setting = _best(validation, kind)
        return 0.0 if setting is None else float(together["tokens_per_cycle"][kind, setting])

    return max(("js", "kl"), key=kept)


def _own_thresholds(known: dict[str, Path]) -> list[tuple[str, float, str]]:
    """The papers' two heads at the thresholds that they were saved with."""
    rows = []
    for name, path in known.items():
        bare = name.removesuffix("-certified")
        if bare in ("annotated", "mined"):
            choice = "certified" if bare != name else "recall 90%" if bare == "mined" else "fixed"
            rows.append((f"{JUDGE}{bare}", JudgeHead.from_pretrained(path).threshold, choice))
    return rows


def matched(operating: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """The operating points with what test questions say of them, all domains together.

    Args:
        operating: of `operating_points`.
        points: of `frontier.points`, on test questions.
    """
    together = points[points["domain"] == "all"]
    found = operating.merge(together, on=["rule", "setting"], how="left", validate="many_to_one")
    return found.sort_values("tokens_per_cycle", ascending=False, kind="stable", ignore_index=True)
