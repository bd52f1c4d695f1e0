"""Plain greedy answers of one model to many questions, batched by transformers' `generate`.

With ENGINE=ray the same batches go to a cluster; with ENGINE=vllm all of them go to vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from judgelib.mapping import VLLM, Emit, Models, Source, each
from judgelib.mapping import engine as chosen_engine
from judgelib.models import LanguageModel
from judgelib.tasks.base import Question, prompt_ids

PLAIN: dict[str, Any] = {
    "do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0,
}  # fmt: skip
"""Arguments of `generate` for the likeliest token and nothing else. Checkpoints come with settings
of their own for chats (Llama 3 samples, Qwen2.5 punishes repetition), and `generate` obeys them."""


def greedy_texts(
    model: LanguageModel,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 200,
    rows: int = 128,
    progress: Callable[[Any], Any] = iter,
    engine: str | None = None,
) -> list[str]:
    """One greedy answer per question, in the order of the questions.

    An answer of more than `max_new_tokens` is cut off there without a sign. Its final answer is
    then missing, so that a task scores it as wrong. The default is ample for the sandbox, whose
    right answers have up to some 130 tokens; raise it for models that reason at length.

    Args:
        rows: questions answered at once; each batch holds prompts of like length.
        progress: wraps the iteration over batches (`tqdm.tqdm`).
        engine: see `mapping.engine`.
    """
    heads = [prompt_ids(model.tokenizer, question) for question in questions]
    if chosen_engine(engine) == VLLM:
        from judgelib.integrations.vllm.plain import greedy

        return _texts(model, greedy(Source.of(model), heads, max_new_tokens))
    answers: list[list[int]] = [[] for _ in heads]

    def take(batch: _Batch, found: list[list[int]]) -> None:
        for number, ids in zip(batch.numbers, found, strict=True):
            answers[number] = ids

    batches = [
        _Batch(numbers, [heads[number] for number in numbers], max_new_tokens)
        for numbers in by_length(heads, rows)
    ]
    each(Models(model), _answer, progress(batches), take, name=engine)
    return _texts(model, answers)


class _Batch(NamedTuple):
    """Prompts of like length, with their numbers."""

    numbers: list[int]
    prompts: list[list[int]]
    max_new_tokens: int


def _answer(models: tuple[LanguageModel], batch: _Batch, emit: Emit) -> None:
    emit(generate(models[0], batch.prompts, batch.max_new_tokens))


def _texts(model: LanguageModel, answers: Sequence[list[int]]) -> list[str]:
    return [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]


def by_length(heads: Sequence[Sequence[int]], rows: int) -> list[list[int]]:
    """Numbers of prompts, those of like length together, up to `rows` in a batch.

    >>> by_length([[1, 2], [1], [1, 2, 3]], 2)
    [[1, 0], [2]]
    """
    order = sorted(range(len(heads)), key=lambda i: len(heads[i]))
    return [order[start : start + rows] for start in range(0, len(order), rows)]


@torch.inference_mode()
def generate(
    model: LanguageModel,
    heads: Sequence[list[int]],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
) -> list[list[int]]:
    """Continuations of prompts of any lengths, padded on the left; greedy at temperature 0.

    Each ends with the model's end token, filled up behind it, or after `max_new_tokens`. Sampling
    draws from torch's global generator, as transformers does: seed it around the call.
    """
    width = max(map(len, heads))
    pad = model.eos_ids[0] if model.eos_ids else 0  # any id will do: what is padded is masked
    ids = torch.tensor([[pad] * (width - len(h)) + h for h in heads], device=model.device)
    seen = torch.tensor([[0] * (width - len(h)) + [1] * len(h) for h in heads], device=model.device)
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    output: Tensor = model.model.generate(
        ids,
        attention_mask=seen,
        **{**PLAIN, **how},
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=list(model.eos_ids) or None,  # the tokenizer's, where the model names none
    )
    texts: list[list[int]] = output[:, width:].tolist()
    return texts
