"""Shapes of known models: the exact number of parameters, and what a pass has to move."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from judgelib.architectures import (
    ARCHITECTURES,
    architecture,
    bytes_per_pass,
    cache_bytes,
    flops_per_pass,
    weight_bytes,
)

KNOWN = {
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Llama-3.1-405B": 405_853_388_800,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-8B": 8_190_735_360,
}


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_are_the_published_ones_in_arithmetic_and_in_transformers(name: str) -> None:
    shape = ARCHITECTURES[name]
    assert shape.parameters == KNOWN[name]
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(shape.config(), dtype=torch.bfloat16)
    assert built.num_parameters() == KNOWN[name]
    assert built.config.eos_token_id is None


def test_a_hub_id_is_understood_and_an_unknown_one_refused() -> None:
    assert architecture("meta-llama/Llama-3.1-405B-Instruct") is ARCHITECTURES["Llama-3.1-405B"]
    assert architecture("Qwen/Qwen2.5-0.5B-Instruct") is ARCHITECTURES["Qwen2.5-0.5B"]
    with pytest.raises(ValueError, match="expected a model of Llama-3.2-1B.*got 'me/mine'"):
        architecture("me/mine")


def test_an_untied_model_reads_all_but_its_embeddings() -> None:
    shape = ARCHITECTURES["Llama-3.1-8B"]
    read = bytes_per_pass(shape, "bfloat16", context=0, rows=1)
    unread = (shape.vocabulary - 1) * shape.hidden * 2
    own_cache = 2 * 2 * 32 * 8 * 128 * 2  # one token's keys and values, written and read
    assert read == weight_bytes(shape, "bfloat16") - unread + own_cache
    assert weight_bytes(shape, "bfloat16") == 2 * KNOWN["Llama-3.1-8B"]


def test_a_tied_model_reads_its_embeddings_as_the_output_head() -> None:
    shape = ARCHITECTURES["Llama-3.2-1B"]
    rest = cache_bytes(shape, "bfloat16", 2) + 2 * shape.hidden
    assert bytes_per_pass(shape, "bfloat16", 0) == 2 * KNOWN["Llama-3.2-1B"] + rest


def test_the_cache_of_llama_70b_takes_320_kib_a_token() -> None:
    shape = ARCHITECTURES["Llama-3.1-70B"]
    assert cache_bytes(shape, "fp8", 1) == 320 * 1024
    longer = bytes_per_pass(shape, "fp8", 1001) - bytes_per_pass(shape, "fp8", 1)
    assert longer == 1000 * 320 * 1024


def test_fewer_bits_shrink_the_matrices_only() -> None:
    shape = ARCHITECTURES["Llama-3.1-70B"]
    sizes = {dtype: weight_bytes(shape, dtype) for dtype in ("bfloat16", "fp8", "int8", "int4")}
    assert sizes["bfloat16"] - sizes["fp8"] == shape.layer_matrices
    assert sizes["fp8"] == sizes["int8"]
    assert sizes["int8"] - sizes["int4"] == pytest.approx(shape.layer_matrices * (0.5 - 2 / 128))
    with pytest.raises(ValueError, match="expected weights in float32.*got 'int3'"):
        weight_bytes(shape, "int3")
    with pytest.raises(ValueError, match="at least 1 row"):
        bytes_per_pass(shape, "fp8", 10, rows=0)


def test_operations_are_two_a_weight_and_row() -> None:
    shape = ARCHITECTURES["Llama-3.1-8B"]
    weights = KNOWN["Llama-3.1-8B"] - shape.embedding - shape.vectors
    assert flops_per_pass(shape, 0, 1) == pytest.approx(2 * weights, rel=1e-4)
    assert flops_per_pass(shape, 0, 26) == pytest.approx(26 * 2 * weights, rel=1e-3)


def test_shards_add_up_to_the_whole() -> None:
    shape = ARCHITECTURES["Llama-3.1-405B"]
    assert 8 * shape.shard(8).layer_matrices == shape.layer_matrices
    with pytest.raises(ValueError, match="cannot be divided among 3 processes: heads 128"):
        shape.shard(3)
    assert ARCHITECTURES["Llama-3.1-8B"].tiny().layers == 2
