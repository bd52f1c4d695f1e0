"""Plain greedy answers by vLLM, without a draft: ENGINE=vllm for `judgelib.answering`.

vLLM runs in a process of its own, since it takes over threads and settings of its process. That one
stays for the next call, until another model is wanted.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import Any

from judgelib.mapping import Source

VLLM_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}  # fmt: skip
"""Of the environment, before vLLM is imported."""

_processes: dict[Source, ProcessPoolExecutor] = {}  # one at most


def greedy(
    source: Source, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[list[int]]:
    """Token ids of one continuation a prompt, each up to its end token.

    Raises:
        ValueError: vLLM has ended.
    """
    asked = [list(prompt) for prompt in prompts]
    try:
        return _process(source).submit(_answer, source, asked, max_new_tokens).result()
    except BrokenProcessPool as error:
        close()
        raise ValueError(f"vLLM ended without an answer ({source.name}); see its log") from error


def close() -> None:
    """End the process."""
    while _processes:
        _processes.popitem()[1].shutdown()


def _process(source: Source) -> ProcessPoolExecutor:
    if source not in _processes:
        close()  # before there is another: both may not fit
        _processes[source] = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    return _processes[source]


def _answer(source: Source, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """In vLLM's process."""
    engine = _engine(source)
    from vllm import SamplingParams

    how = SamplingParams(temperature=0.0, max_tokens=max_new_tokens, detokenize=False)
    asked: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [list(done.outputs[0].token_ids) for done in engine.generate(asked, how, use_tqdm=False)]


@cache
def _engine(source: Source) -> Any:
    os.environ.update({**VLLM_SETTINGS, **os.environ})
    from vllm import LLM

    return LLM(
        model=source.name, revision=source.revision, dtype=source.dtype,
        enforce_eager=source.device == "cpu",
    )  # fmt: skip
