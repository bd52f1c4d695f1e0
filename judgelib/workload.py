"""How long a profile's notebooks will take, before any of it is run: an estimate.

Counted are the passes of both models, from the sample sizes and a few assumptions about answers
(`ASSUMED`); a pass costs what the speed model says the hardware needs at the least, and what eager
PyTorch spends between its kernels besides. Scoring, labels and figures are left out. `make
bench-gpu` measures what a pass really takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from judgelib import rulebook
from judgelib.architectures import Architecture, bytes_per_pass, cache_bytes, flops_per_pass
from judgelib.hardware import Accelerator

LAUNCH = 0.4e-3
"""Seconds that eager PyTorch spends on a layer of a pass, however small: some dozen kernels."""


class Assumed(NamedTuple):
    """What is not known before the models have answered.

    prompt, answer: tokens on average (GSM8K's eight examples make some 1,400); cycles: target calls
    for an answer under a rule; trials: mismatches that mining tries in an answer (AutoJudge reports
    19.5 on GSM8K), and trial_cycles the target calls of one; halvings: continuations that find the
    mistake in a wrong answer.
    """

    prompt: int = 600
    answer: int = 200
    cycles: int = 30
    trials: float = 19.5
    trial_cycles: int = 10
    halvings: int = 9


ASSUMED = Assumed()


@dataclass(frozen=True)
class Pass:
    """What a pass of one model costs.

    Attributes:
        shape, dtype: of its weights (see `architectures.WEIGHT_BYTES`).
        chip: that it runs on. Layers that are dealt out to several work in turn, as on one.
    """

    shape: Architecture
    dtype: str
    chip: Accelerator

    def seconds(self, texts: int, rows: int) -> float:
        """Over `rows` tokens of each of so many texts."""
        context = ASSUMED.prompt + ASSUMED.answer // 2
        moving = bytes_per_pass(self.shape, self.dtype, 0, rows)
        moving += texts * cache_bytes(self.shape, self.dtype, context)
        counting = texts * flops_per_pass(self.shape, context, rows)
        fast = self.dtype == "fp8" and self.chip.fp8
        speed = self.chip.flops_8bit if fast else self.chip.flops
        floor = max(moving / self.chip.bandwidth, counting / speed)
        return floor + self.shape.layers * LAUNCH


@dataclass(frozen=True)
class Work:
    """Passes of one notebook, in answers.

    Attributes:
        ruled: answers that the draft drafts and the target verifies.
        target, draft: plain answers of one model.
        trials: of mining.
        single: answers of one text at a time, each by a loop or plainly.
    """

    ruled: float = 0
    target: float = 0
    draft: float = 0
    trials: float = 0
    single: float = 0


def seconds(
    work: Work, target: Pass, draft: Pass, *, batch: int, window: int, longest: int
) -> float:
    """Of one notebook.

    Args:
        batch: texts side by side.
        window: drafted tokens a cycle.
        longest: tokens of the longest answer, for which the others of a batch wait.
    """

    def ruled(texts: int) -> float:
        cycle = window * draft.seconds(texts, 1) + target.seconds(texts, window + 1)
        return ASSUMED.cycles * cycle / texts

    trial = ASSUMED.trial_cycles * (target.seconds(batch, 13) + 12 * draft.seconds(batch, 1))
    return (
        work.ruled * ruled(batch)
        + work.single * ruled(1)
        + work.trials * trial / batch
        + work.target * longest * target.seconds(batch, 1) / batch
        + work.draft * longest * draft.seconds(batch, 1) / batch
    )


def of_notebooks(notebooks: Mapping[str, Mapping[str, Any]]) -> dict[str, Work]:
    """Notebook -> its work, from its parameters; a notebook that is not known here is left out."""
    found = {name: COUNTS[name](entry) for name, entry in notebooks.items() if name in COUNTS}
    return found


def _tasks(entry: Mapping[str, Any]) -> int:
    return len(entry["tasks"])


def _family(entry: Mapping[str, Any]) -> Work:
    each = _tasks(entry) * entry["prompts_per_domain"]
    return Work(target=each, draft=each)


def _labelling(entry: Mapping[str, Any]) -> Work:
    asked = _tasks(entry) * sum(entry["annotated"])
    mined = _tasks(entry) * sum(entry["mined"])
    # Four rounds of answers by the draft; about one wrong answer a question is searched.
    return Work(
        draft=4 * asked, target=ASSUMED.halvings * asked + mined, trials=ASSUMED.trials * mined
    )


def _heads(entry: Mapping[str, Any]) -> Work:
    from judgelib.head_study import CANDIDATES

    each = _tasks(entry) * entry["prompts_per_domain"]
    return Work(ruled=each * (1 + 2 * len(CANDIDATES)))


def _quality(entry: Mapping[str, Any]) -> Work:
    settings = 6 * len(rulebook.JUDGE_SETTINGS)  # four heads, two of them with a floor besides
    settings += sum(len(kind.settings) for kind in rulebook.KINDS.values())
    tried = settings * entry["frontier_prompts"] + 20 * entry["operating_prompts"]
    return Work(ruled=_tasks(entry) * tried, draft=_tasks(entry) * entry["operating_prompts"])


def _speed(entry: Mapping[str, Any]) -> Work:
    certified = len(rulebook.JUDGE_SETTINGS) * entry["certify_prompts"] * _tasks(entry)
    windows = 2 * (len(entry["windows_strict"]) + len(entry["windows_judge"]))
    rounds = 1 + entry["repeats"]
    single = rounds * (windows * entry["window_prompts"] + 20 * entry["prompts"])
    return Work(ruled=certified, single=single)


def _ablations(entry: Mapping[str, Any]) -> Work:
    runs = 36  # windows, thresholds, temperatures, prefixes, drafts, a domain left out
    return Work(ruled=runs * _tasks(entry) * entry["prompts_per_domain"])


COUNTS = {
    "00_sandbox_family": _family,
    "01_acceptance_study": _family,
    "02_labelling": _labelling,
    "03_head_training": _heads,
    "04_quality": _quality,
    "05_speed": _speed,
    "06_ablations": _ablations,
}
"""Notebook -> how its work is counted."""
