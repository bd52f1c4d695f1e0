"""Fixtures of the tests that need vLLM: engines, made once and kept for the whole session.

Run by `make test-vllm`. Without vLLM every test here is skipped with that reason.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from judgelib.integrations.vllm.expansion import mend
from judgelib.models import LanguageModel, load_pair
from judgelib.provenance import checkout
from judgelib.tasks import load_task
from judgelib.tasks.base import prompt_ids

# Before vLLM is imported: it reads them then.
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
DATA = checkout() / "data"
TARGET, DRAFT = DATA / "sandbox" / "target", DATA / "sandbox" / "draft"
HEAD = DATA / "results" / "sandbox-full" / "heads" / "annotated"
WINDOW = 16
DRAFT_MODEL = {"method": "draft_model", "model": str(DRAFT)}
NGRAM = {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 2}
HERE = Path(__file__).parent


def installed() -> bool:
    # Not find_spec("vllm"): this folder's own name would do as a namespace package.
    try:
        return importlib.util.find_spec("vllm.version") is not None
    except ModuleNotFoundError:
        return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip where vLLM is missing; what it and its libraries warn of is their affair."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            if not installed():
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed: docs/vllm.md"))


def settings() -> None:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def engine_arguments(
    judge: dict[str, Any] | None = None,
    proposer: dict[str, Any] | None = DRAFT_MODEL,
    window: int = WINDOW,
) -> dict[str, Any]:
    """What an engine of these tests is made of; `proposer` None: no speculation."""
    speculation = proposer and {**proposer, "num_speculative_tokens": window}
    return {
        "model": str(TARGET),
        "speculative_config": speculation,
        "additional_config": {} if judge is None else {"judge": judge},
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_seqs": 32,
        "seed": 0,
        "disable_log_stats": False,
        "per_request_spec_decode_metrics": "none" if speculation is None else "detailed",
    }


Engine = Callable[..., Any]


@pytest.fixture(scope="session")
def engine() -> Engine:
    """Makes the engine of `engine_arguments`, or gives it again."""
    settings()
    from vllm import LLM
    from vllm.platforms import current_platform
    from vllm.v1.sample import rejection_sampler

    current_platform.register_triton_kernel_overrides()  # as a worker does, which comes later
    mend(rejection_sampler)  # also where no judge is configured: what is compared must be sane

    made: dict[str, Any] = {}

    def give(**given: Any) -> Any:
        key = repr(sorted(given.items()))
        if key not in made:
            made[key] = LLM(**engine_arguments(**given))
        return made[key]

    return give


@pytest.fixture(scope="session")
def judging(engine: Engine) -> Any:
    """The engine with the head of annotated labels at its own threshold."""
    return engine(judge={"head": str(HEAD)})


@pytest.fixture(scope="session")
def strict(engine: Engine) -> Any:
    """The engine without a judge, with speculative decoding."""
    return engine()


@pytest.fixture(scope="session")
def plain(engine: Engine) -> Any:
    """The engine without speculative decoding."""
    return engine(proposer=None)


@pytest.fixture(scope="session")
def family() -> tuple[LanguageModel, LanguageModel]:
    """Target and draft in judgelib."""
    return load_pair(str(TARGET), str(DRAFT), dtype=torch.float32)


@pytest.fixture(scope="session")
def prompts(family: tuple[LanguageModel, LanguageModel]) -> list[list[int]]:
    """200 questions of the test split, over three domains."""
    tokenizer = family[0].tokenizer
    questions = [
        question
        for name, count in (("sandbox-math", 80), ("sandbox-code", 60), ("sandbox-facts", 60))
        for question in load_task(name).questions("test", count)
    ]
    return [prompt_ids(tokenizer, question) for question in questions]


def greedy(tokens: int = 160, **given: Any) -> Any:
    """Greedy sampling parameters; `judge` is the request's wish."""
    return sampling(temperature=0.0, max_tokens=tokens, **given)


def sampling(**given: Any) -> Any:
    from vllm import SamplingParams

    judge = given.pop("judge", None)
    extra = None if judge is None else {"judge": judge}
    return SamplingParams(extra_args=extra, **given)


def generate(llm: Any, prompts: Sequence[Sequence[int]], params: Any) -> list[Any]:
    """One completion a prompt; `params` for all, or one each."""
    requests = [{"prompt_token_ids": list(ids)} for ids in prompts]
    return [done.outputs[0] for done in llm.generate(requests, params, use_tqdm=False)]


def ids_of(completions: Sequence[Any]) -> list[list[int]]:
    return [list(done.token_ids) for done in completions]


def accepted(completion: Any) -> list[int]:
    """Draft tokens kept in each verification."""
    metrics = completion.spec_decode_metrics
    return [] if metrics is None else list(metrics.per_step_accepted)


def judged_tokens(llm: Any) -> int:
    return sum(llm.collective_rpc("judged_tokens"))
