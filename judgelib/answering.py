"""Plain greedy answers of one model to many questions, batched by transformers' `generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from judgelib.models import LanguageModel
from judgelib.tasks.base import Question, prompt_ids


def greedy_texts(
    model: LanguageModel,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 200,
    rows: int = 128,
    progress: Callable[[Any], Any] = iter,
) -> list[str]:
    """One greedy answer per question, in the order of the questions.

    Args:
        rows: questions answered at once; each batch holds prompts of like length.
        progress: wraps the iteration over batches (`tqdm.tqdm`).
    """
    heads = [prompt_ids(model.tokenizer, question) for question in questions]
    order = sorted(range(len(heads)), key=lambda i: len(heads[i]))
    batches = [order[start : start + rows] for start in range(0, len(order), rows)]
    texts = [""] * len(heads)
    for chosen in progress(batches):
        answers = generate(model, [heads[i] for i in chosen], max_new_tokens)
        for index, ids in zip(chosen, answers, strict=True):
            texts[index] = model.tokenizer.decode(ids, skip_special_tokens=True)
    return texts


@torch.inference_mode()
def generate(
    model: LanguageModel, heads: Sequence[list[int]], max_new_tokens: int
) -> Iterable[list[int]]:
    """Greedy continuations of prompts of any lengths, padded on the left."""
    width = max(map(len, heads))
    pad = model.eos_ids[0]  # any id will do: what is padded is masked
    ids = torch.tensor([[pad] * (width - len(h)) + h for h in heads], device=model.device)
    seen = torch.tensor([[0] * (width - len(h)) + [1] * len(h) for h in heads], device=model.device)
    output: Tensor = model.model.generate(
        ids, attention_mask=seen, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=pad
    )
    return output[:, width:].tolist()
