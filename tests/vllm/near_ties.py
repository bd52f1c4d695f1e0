"""Explaining where two engines part: in float32 they may only do so where some choice was as good
as even, so that the last bits of a sum decided it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from judgelib.head import JudgeHead
from judgelib.models import LanguageModel

TINY = 1e-3


def parted(first: Sequence[int], second: Sequence[int]) -> int | None:
    """Where two texts first differ, one being the other's beginning included; None: nowhere."""
    for place, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return place
    return None if len(first) == len(second) else min(len(first), len(second))


def margins(
    models: Sequence[LanguageModel], prompt: Sequence[int], text: Sequence[int], place: int
) -> list[float]:
    """How clearly each model prefers its likeliest token behind `text[:place]`, in logits."""
    found = []
    for model in models:
        ids = torch.tensor([[*prompt, *text[:place]]])
        logits = model.read(ids, model.new_cache(1, ids.shape[1]), rows=1).logits[0, -1]
        best = logits.topk(2).values
        found.append(float(best[0] - best[1]))
    return found


def doubt(
    target: LanguageModel, head: JudgeHead, threshold: float, prompt: Sequence[int],
    text: Sequence[int], place: int,
) -> float:  # fmt: skip
    """How far from the threshold the judge finds `text[place]`, as a probability."""
    ids = torch.tensor([[*prompt, *text[: place + 1]]])
    cache = target.new_cache(1, ids.shape[1])
    hidden = target.read(ids, cache, rows=1, hidden="post_norm").hidden
    assert hidden is not None
    return abs(float(head.probability(hidden[0, -1])) - threshold)


def is_near_tie(
    target: LanguageModel, draft: LanguageModel, head: JudgeHead | None, threshold: float,
    prompt: Sequence[int], texts: Sequence[Sequence[int]], place: int,
) -> bool:  # fmt: skip
    """Whether target, draft or judge was as good as undecided where the texts part."""
    found = margins([target, draft], prompt, texts[0], place)
    if head is not None:
        found += [
            doubt(target, head, threshold, prompt, text, place)
            for text in texts
            if place < len(text)
        ]
    return min(found) < TINY
