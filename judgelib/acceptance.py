"""The acceptance study: how much of a good text strict verification would keep.

Judge Decoding (section 3) lets several authors answer the same prompts, feeds each answer to the
target and counts the tokens that the target itself would have written. The text is never changed:
after a token that the target rejects, the next cycle begins behind it (teacher forcing). A cycle
ends at a rejected token or with the text, so *accepted tokens per cycle* is the mean length of
the runs between rejections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from judgelib.authors import author_texts, collected_texts
from judgelib.estimates import Estimate, difference, estimate, ratio
from judgelib.models import LanguageModel, load_model
from judgelib.profiles import Profile
from judgelib.tasks import Annotated, Question, Task, load_task
from judgelib.tasks.base import prompt_ids
from judgelib.texts import Text

COUNTS = ("drafted", "accepted", "cycles", "correct")


@dataclass(frozen=True)
class Verified:
    """One text under strict verification.

    ids: its n tokens; accepted: which of them the target would have written; choices: what it
    would have written in their place.
    """

    ids: tuple[int, ...]
    accepted: tuple[bool, ...]
    choices: tuple[int, ...]

    @property
    def cycles(self) -> int:
        """Runs between rejections; a run may be empty, but nothing follows a rejected last token.

        >>> Verified((5, 6, 7), (True, False, True), (5, 9, 7)).cycles
        2
        """
        return self.accepted.count(False) + bool(self.accepted and self.accepted[-1])


@torch.inference_mode()
def verify(target: LanguageModel, prompt: Sequence[int], text: Sequence[int]) -> Verified:
    """Read `text` behind `prompt` in one pass and compare each token with the target's argmax.

    Raises:
        ValueError: an empty prompt or text, or more tokens than the target's context.
    """
    if not prompt or not text:
        raise ValueError(
            f"expected a prompt and a text of at least one token, got {len(prompt)} and {len(text)}"
        )
    if len(prompt) + len(text) > target.context:
        raise ValueError(
            f"prompt and text have {len(prompt) + len(text)} tokens, but {target.name} reads at "
            f"most {target.context}; leave this text out or shorten it"
        )
    ids = torch.tensor([[*prompt, *text[:-1]]], device=target.device)
    read = target.read(ids, target.new_cache(1, ids.shape[1]), rows=len(text))
    choices = read.logits[0].argmax(-1).tolist()
    accepted = tuple(a == b for a, b in zip(text, choices, strict=True))
    return Verified(tuple(text), accepted, tuple(choices))


def text_ids(target: LanguageModel, text: str) -> list[int]:
    """A finished answer in the target's tokens, its end token included if it has one."""
    ids: list[int] = target.tokenizer(text, add_special_tokens=False).input_ids
    return ids if target.end_id is None else [*ids, target.end_id]


def run_study(
    profile: Profile,
    tasks: Sequence[str],
    *,
    prompts: int,
    seed: int = 0,
    collected: Mapping[str, Sequence[Text]] | None = None,
) -> pd.DataFrame:
    """Every author answers the same test prompts of every task; the target reads the answers.

    Returns what `study` returns, for all tasks together. `collected` texts stand in for models; by
    default those that the profile wants from an endpoint, which are asked for if they are not kept.
    """
    if collected is None:
        collected = collected_texts(profile, tasks, prompts=prompts, seed=seed)
    target = load_model(profile.model("target"), **profile.loading("target"))
    frames = []
    for name in tasks:
        task = load_task(name)
        questions = task.questions("test", prompts, seed=seed)
        texts = author_texts(profile, questions, collected)
        frames.append(study(target, task, questions, texts))
    return pd.concat(frames, ignore_index=True)


def study(
    target: LanguageModel,
    task: Task,
    questions: Sequence[Question],
    texts: Mapping[str, Sequence[str]],
) -> pd.DataFrame:
    """Counts of every text of every author: one row a text, authors on the same questions.

    texts: author → one answer per question, in the order of the questions. ValueError if an author
    has more or fewer.
    """
    rows: list[dict[str, Any]] = []
    for author, answers in texts.items():
        _one_each(questions, answers, author)
        right = task.score(questions, answers)
        for question, answer, correct in zip(questions, answers, right, strict=True):
            prompt = prompt_ids(target.tokenizer, question)
            verified = verify(target, prompt, text_ids(target, answer))
            wasted = rejected_but_right(verified, right_tokens(task, question, verified, target))
            rows.append(
                {
                    "author": author,
                    "domain": question.domain,
                    "question": question.id,
                    "drafted": len(verified.ids),
                    "accepted": sum(verified.accepted),
                    "cycles": verified.cycles,
                    "correct": int(correct),
                    "rejected": verified.accepted.count(False),
                    "rejected_but_right": wasted,
                }
            )
    return pd.DataFrame(rows)


def _one_each(questions: Sequence[Question], answers: Sequence[str], author: str) -> None:
    if len(answers) != len(questions):
        raise ValueError(
            f"expected one answer of {author} to each of the {len(questions)} questions, got "
            f"{len(answers)}; give them in the order of the questions"
        )


def right_tokens(
    task: Task, question: Question, verified: Verified, target: LanguageModel
) -> int | None:
    """How many of the text's tokens are right, from its start; None where the task cannot tell.

    That is the index of the first wrong token or, where none is wrong, the text's length.
    """
    if not isinstance(task, Annotated):
        return None
    place = task.first_error(question, verified.ids, target.tokenizer)
    return len(verified.ids) if place is None else place


def rejected_but_right(verified: Verified, right: int | None) -> float:
    """Rejected among the first `right` tokens: good text, thrown away; NaN if that is unknown."""
    return float("nan") if right is None else float(verified.accepted[:right].count(False))


def totals(per_text: pd.DataFrame) -> pd.DataFrame:
    """The table `acceptance_study`: counts summed by author and domain."""
    groups = per_text.groupby(["author", "domain"], sort=False)
    table = groups[list(COUNTS)].sum()
    table.insert(0, "texts", groups.size())
    return table.reset_index()


# --- what the counts say ---------------------------------------------------------------------


def summary(per_text: pd.DataFrame, *, resamples: int, seed: int) -> pd.DataFrame:
    """Accepted tokens per cycle and share of right answers with intervals, by author and domain.

    The domain "all" takes all questions together. Columns as `figures.acceptance_figure` wants.
    """
    everything = pd.concat([per_text, per_text.assign(domain="all")])
    rows = []
    for (author, domain), texts in everything.groupby(["author", "domain"], sort=False):
        count = np.ones(len(texts))
        columns = {name: texts[name].to_numpy(float) for name in COUNTS}
        kept = estimate(
            ratio, (columns["accepted"], columns["cycles"]), resamples=resamples, seed=seed
        )
        right = estimate(ratio, (columns["correct"], count), resamples=resamples, seed=seed)
        rows.append(
            {
                "author": author, "domain": domain, "texts": len(texts),
                "accepted_per_cycle": kept.value, "ci_low": kept.low, "ci_high": kept.high,
                "accuracy": right.value, "acc_low": right.low, "acc_high": right.high,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def against(
    per_text: pd.DataFrame, author: str, reference: str, *, resamples: int, seed: int
) -> dict[str, Estimate]:
    """Paired differences author − reference on the same questions, all domains together.

    Returns:
        "accepted_per_cycle" in tokens and "accuracy" as a share.
    """
    ours, theirs = (
        per_text[per_text["author"] == name].set_index(["domain", "question"]).sort_index()
        for name in (author, reference)
    )
    if not ours.index.equals(theirs.index) or ours.empty:
        raise ValueError(
            f"expected {author} and {reference} on the same questions, got {len(ours)} and "
            f"{len(theirs)} texts that do not match; let both answer the same prompts"
        )
    one = np.ones(len(ours))

    def column(frame: pd.DataFrame, name: str) -> np.ndarray:
        return frame[name].to_numpy(float)

    kept = [column(frame, name) for frame in (ours, theirs) for name in ("accepted", "cycles")]
    right = [column(ours, "correct"), one, column(theirs, "correct"), one]
    return {
        "accepted_per_cycle": estimate(difference, kept, resamples=resamples, seed=seed),
        "accuracy": estimate(difference, right, resamples=resamples, seed=seed),
    }


def rejects_good_text(per_text: pd.DataFrame, *, resamples: int, seed: int) -> pd.DataFrame:
    """Claim C1 in a table: each strong author against the draft, with intervals and a verdict.

    It holds for an author if its interval of accepted tokens per cycle lies below the draft's
    (whole interval of the paired difference under 0) while its answers are at least as often
    right (whole interval at or above 0).
    """
    rows = []
    for author in ("expert", "human"):
        if author not in set(per_text["author"]):
            continue  # the profile has no expert
        differences = against(per_text, author, "draft", resamples=resamples, seed=seed)
        kept, right = differences["accepted_per_cycle"], differences["accuracy"]
        rows.append(
            {
                "author": author,
                "accepted_per_cycle_minus_draft": str(kept),
                "accuracy_minus_draft": str(right),
                "holds": kept.high < 0 <= right.low,
            }
        )
    return pd.DataFrame(rows)


def wasted(per_text: pd.DataFrame) -> pd.DataFrame:
    """Share of the rejected tokens that were right, by author (NaN where no oracle knows)."""
    groups = per_text.groupby("author", sort=False)[["rejected", "rejected_but_right"]]
    sums = groups.sum(skipna=False)
    share = (100 * sums["rejected_but_right"] / sums["rejected"]).round(1)
    return sums.assign(percent_right=share).reset_index()


def read_by(target: LanguageModel, question: Question, text: str) -> str:
    """The text with every rejected token in brackets, followed by what the target would write."""
    prompt = prompt_ids(target.tokenizer, question)
    verified = verify(target, prompt, text_ids(target, text))
    decode = target.tokenizer.decode
    columns = zip(verified.ids, verified.accepted, verified.choices, strict=True)
    return "".join(
        decode([token]) if accepted else f"[{decode([token])}→{decode([choice])}]"
        for token, accepted, choice in columns
    )
