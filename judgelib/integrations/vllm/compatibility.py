"""What the plugin refuses at the start of an engine, and why.

Everything here reads vLLM's configuration by attribute and imports nothing of vLLM.
"""

from __future__ import annotations

from typing import Any

from judgelib.head import JudgeHead
from judgelib.head_config import ModelRecord, public_name
from judgelib.integrations.vllm.config import KEY, JudgeConfig

TESTED = ("0.32.0",)
"""The versions of vLLM that the tests in tests/vllm have run with."""

ALLOW = f'set "allow_untested": true in the {KEY} configuration to try it all the same'


def check(config: JudgeConfig, head: JudgeHead | None, vllm_config: Any, version: str) -> None:
    """Refuse an engine that the judge cannot work in, or was never seen to.

    Raises:
        ValueError: naming what is in the way and what to do.
    """
    _check_impossible(vllm_config)
    if head is not None:
        _check_head(config, head, vllm_config.model_config)
    untested = _untested(vllm_config, version)
    if untested and not config.allow_untested:
        raise ValueError(f"{KEY} was not tested with {'; nor with '.join(untested)}: {ALLOW}")


def _check_impossible(vllm_config: Any) -> None:
    speculative = vllm_config.speculative_config
    if speculative is None:
        raise ValueError(
            f"{KEY} needs drafts to judge, but no speculative decoding is configured; give "
            'speculative_config, such as {"method": "draft_model", "model": DRAFT, '
            '"num_speculative_tokens": 16}'
        )
    method = speculative.rejection_sample_method
    if method != "standard":
        raise ValueError(
            f"{KEY} works with rejection_sample_method 'standard', got {method!r}: another method "
            "accepts tokens by a rule of its own"
        )
    mode = str(getattr(vllm_config.model_config, "logprobs_mode", "raw_logprobs"))
    if mode.startswith("processed"):
        raise ValueError(
            f"{KEY} works with raw logprobs, got logprobs_mode={mode!r}: processed ones would show "
            "the judge's approval instead of the target's belief"
        )
    if getattr(vllm_config, "lora_config", None) is not None:
        raise ValueError(
            f"{KEY} does not work with LoRA: an adapter changes the hidden states that the head "
            "was trained on; merge the adapter into the target and train a head for it"
        )


def _check_head(config: JudgeConfig, head: JudgeHead, model_config: Any) -> None:
    made_for = head.config
    if made_for.feature != "post_norm":
        raise ValueError(
            f"{KEY}: this head reads the {made_for.reads}, but vLLM hands out the hidden state "
            "after the last norm only; train a head with feature='post_norm'"
        )
    if not made_for.decodes:
        raise ValueError(
            f"{KEY}: this head reads the {made_for.reads}, but vLLM hands out the target's hidden "
            "state at the draft's token only; train a head with of='target' and token='draft'"
        )
    target, came = made_for.target, record_of(model_config)
    if target.hidden_size != came.hidden_size:
        raise ValueError(
            f"{KEY}: this head was made for the target {target}, got {came}: another hidden size, "
            "which cannot work; train a head for it"
        )
    different = target.differences(came)
    if different and not config.any_model:
        raise ValueError(
            f"{KEY}: this head was made for the target {target}, got {came}: another "
            f"{' and '.join(different)}; serve the model it was made for, train a head for this "
            'one, or set "any_model": true to try it all the same'
        )


def record_of(model_config: Any) -> ModelRecord:
    """What a head remembers of a model, from vLLM's configuration of one."""
    text = model_config.hf_text_config
    architectures = getattr(model_config.hf_config, "architectures", None) or ["unknown"]
    return ModelRecord(
        name=public_name(str(model_config.model)),
        architecture=str(architectures[0]),
        hidden_size=int(model_config.get_hidden_size()),
        layers=int(text.num_hidden_layers),
    )


def _untested(vllm_config: Any, version: str) -> list[str]:
    """What of an engine no test has run."""
    found = []
    if version.split("+")[0] not in TESTED:
        found.append(f"vLLM {version}, only with {', '.join(TESTED)}")
    if vllm_config.use_v2_model_runner:
        found.append("the V2 model runner (VLLM_USE_V2_MODEL_RUNNER=0 selects V1)")
    parallel = vllm_config.parallel_config
    if parallel.tensor_parallel_size > 1:
        found.append("tensor parallelism")
    if parallel.pipeline_parallel_size > 1:
        found.append("pipeline parallelism")
    return found
