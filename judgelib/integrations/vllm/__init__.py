"""A judge inside vLLM, as a plugin: no fork, no patch of its files.

With judgelib installed beside vLLM,

    vllm serve TARGET \\
      --speculative-config \\
      '{"method": "draft_model", "model": "DRAFT", "num_speculative_tokens": 16}' \\
      --additional-config '{"judge": {"head": "PATH", "threshold": 0.5}}'

decodes with the judge, and so does ``LLM(TARGET, speculative_config=..., additional_config=...)``.
Without a judge in `additional_config` nothing is changed. What works with what is in docs/vllm.md.

vLLM calls `register` in each of its processes. It wraps two methods: the one that prepares requests
(to refuse a wrong configuration or request before any work is done), and the one that prepares a
worker (to let the judge take part in its steps). Both ask for a judge and do nothing else if there
is none.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from judgelib.integrations.vllm.config import KEY, JudgeConfig

logger = logging.getLogger(__name__)

_MARK = "_judgelib"


def register() -> None:
    """The plugin's entry point; once is enough, more do no harm."""
    try:
        from vllm.v1.engine.input_processor import InputProcessor
        from vllm.v1.worker.worker_base import WorkerWrapperBase
    except ImportError as error:
        logger.warning("judgelib cannot take part in this version of vLLM: %s", error)
        return
    _wrap(InputProcessor, "__init__", _checks_requests)
    _wrap(WorkerWrapperBase, "init_device", _judges)


def _wrap(owner: type, name: str, after: Callable[[Any], None]) -> None:
    """Let `after` see the object behind each call of its method `name`."""
    original = getattr(owner, name)
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        after(self)

    setattr(wrapped, _MARK, True)
    setattr(owner, name, wrapped)


def _checks_requests(processor: Any) -> None:
    """Behind `InputProcessor.__init__`: refuse a wrong judge at once, and each wrong request."""
    approver = _approver(processor.vllm_config)
    if approver is None:
        return
    check = processor.validate_logits_processors_params

    from vllm.exceptions import VLLMValidationError

    class WrongWish(VLLMValidationError, ValueError):
        """For vLLM's server a bad request, and a ValueError as everywhere in judgelib."""

    def check_request(params: Any) -> None:
        check(params)
        try:
            approver.dial_of((params.extra_args or {}).get(KEY))
        except ValueError as error:
            raise WrongWish(str(error)) from error

    processor.validate_logits_processors_params = check_request


def _judges(wrapper: Any) -> None:
    """Behind `WorkerWrapperBase.init_device`: join the runner as soon as it has its model."""
    approver = _approver(wrapper.vllm_config)
    if approver is None:
        return
    worker = wrapper.worker
    runner = worker.model_runner
    load_model = runner.load_model

    @functools.wraps(load_model)
    def load_and_join(*args: Any, **kwargs: Any) -> None:
        load_model(*args, **kwargs)
        _join(worker, approver)

    runner.load_model = load_and_join


def _approver(vllm_config: Any) -> Any | None:
    """The configured judge, checked; None if there is none."""
    config = JudgeConfig.of(vllm_config.additional_config)
    if config is None:
        return None
    import vllm

    from judgelib.head import JudgeHead
    from judgelib.integrations.vllm.approval import Approver
    from judgelib.integrations.vllm.compatibility import check

    head = None if config.head is None else JudgeHead.from_pretrained(config.head)
    check(config, head, vllm_config, vllm.__version__)
    return Approver(config, head)


def _join(worker: Any, approver: Any) -> None:
    from vllm.distributed.parallel_state import get_tp_group
    from vllm.v1.sample import rejection_sampler

    from judgelib.integrations.vllm.counting import JudgedTokens
    from judgelib.integrations.vllm.expansion import mend
    from judgelib.integrations.vllm.v1_runner import V1Judge
    from judgelib.integrations.vllm.v2_runner import V2Judge

    runner, group = worker.model_runner, get_tp_group()
    if getattr(runner, "rejection_sampler", None) is None:
        return  # a pipeline stage before the last samples nothing
    if runner.device.type == "cpu":
        mend(rejection_sampler)
    tokens = JudgedTokens(_labels(worker.vllm_config)) if group.is_first_rank else None
    kind = V2Judge if worker.vllm_config.use_v2_model_runner else V1Judge
    kind(runner, approver, tokens, group if group.world_size > 1 else None).attach()
    worker.judged_tokens = lambda: 0 if tokens is None else tokens.total()


def _labels(vllm_config: Any) -> dict[str, str]:
    """Those of vLLM's own counters."""
    model = vllm_config.model_config.served_model_name
    rank = vllm_config.parallel_config.data_parallel_rank
    return {"model_name": str(model), "engine": str(rank)}
