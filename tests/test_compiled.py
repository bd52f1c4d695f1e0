"""Compiled passes: the tokens of the plain ones, whatever the texts, and a handful of graphs.

All tests share two compiled models, so every graph is compiled once.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import checks
import pytest
import tiny
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import GraniteConfig, GraniteForCausalLM, LlamaForCausalLM

from judgelib import compiled
from judgelib.attention import register
from judgelib.compiled import CompiledModel
from judgelib.decoding import Generation, Job, speculate_batch, speculate_stream
from judgelib.drafting import ModelDrafter
from judgelib.head import JudgeHead
from judgelib.head_config import HeadConfig, ModelRecord
from judgelib.models import LanguageModel, pad_left
from judgelib.rules import Judge, Match, Rule

# torch's own, when it first loads its compiler.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")

PROMPTS = tiny.prompts(6, seed=18)
ENDS = tuple(range(3, 9))  # so that rows end at different times
TEXT = [5, 9, 33, 17, 20, 41, 8, 8, 30, 12]


class Models(NamedTuple):
    """A pair as it is, and compiled."""

    plain: checks.Pair
    fast: checks.Pair


@pytest.fixture(scope="module")
def models() -> Models:
    target = tiny.language_model()
    plain = target, shallow(target)
    for model in plain:
        model.model.set_attn_implementation(register())  # as `load_model` does
    return Models(plain, (CompiledModel(plain[0]), CompiledModel(plain[1])))


def shallow(target: LanguageModel) -> LanguageModel:
    """The first layer of two, with noise: a draft whose graphs are compiled faster."""
    network = LlamaForCausalLM(tiny.config(layers=1)).float()
    network.load_state_dict(target.model.state_dict(), strict=False)
    tiny.scatter(network, 0.02, seed=1)
    return LanguageModel(network, target.tokenizer, "shallow")


def judge(target: LanguageModel, feature: str = "post_norm") -> Rule:
    """Keeps about half of all mismatches, by the hidden state."""
    weight = torch.randn(target.hidden_size, generator=torch.Generator().manual_seed(4))
    config = HeadConfig(target=ModelRecord.of(target), feature=feature)
    return Match() | Judge(JudgeHead.from_linear(config, weight=weight, bias=0.5))


def decode(
    pair: checks.Pair, rule: Rule, prompts: list[list[int]], **options: Any
) -> list[Generation]:
    usual: dict[str, Any] = {"window": 4, "max_new_tokens": 24, "stop_ids": ENDS}
    return speculate_batch(pair[0], ModelDrafter(pair[1]), rule, prompts, **usual | options)


@pytest.mark.parametrize("name", ["strict", "judge"])
def test_texts_are_those_of_the_plain_passes(models: Models, name: str) -> None:
    """One text, and several that leave the batch one by one until a single one is left."""
    rule = Match() if name == "strict" else judge(models.plain[0])
    together = decode(models.fast, rule, PROMPTS)
    assert together == decode(models.plain, rule, PROMPTS)  # ids, reasons and cycles
    alone = [decode(models.fast, rule, [prompt])[0] for prompt in PROMPTS[:3]]
    assert alone == together[:3]
    cycles = sorted(len(text.cycles) for text in together)
    assert len(set(cycles)) > 2 and cycles[-1] > cycles[-2]  # else nothing was tested
    assert sum(text.accepted for text in together) > 10
    assert any(text.mismatches for text in together) == (name == "judge")


def test_all_lengths_share_the_graphs(models: Models) -> None:
    """Other windows, texts, batches and capacities: no new graph, and still the same tokens."""
    decode(models.fast, Match(), PROMPTS)  # so that all are made
    before = counters["stats"]["unique_graphs"]
    wide = tiny.prompts(9, seed=2, longest=60)
    for prompts, window, tokens in ((wide, 7, 30), (PROMPTS[:2], 2, 9), (wide[:1], 11, 60)):
        options: dict[str, Any] = {"window": window, "max_new_tokens": tokens, "eos_ids": ()}
        assert decode(models.fast, Match(), prompts, **options) == decode(
            models.plain, Match(), prompts, **options
        )
    assert before > 0 and counters["stats"]["unique_graphs"] == before


def test_two_models_do_not_mix_up_their_graphs(models: Models) -> None:
    """Both take the same tokens, in passes of the same widths."""
    logits = [read(model).logits for pair in models for model in pair]
    target, draft, fast_target, fast_draft = logits
    assert torch.allclose(fast_target, target, atol=1e-4)
    assert torch.allclose(fast_draft, draft, atol=1e-4)
    assert (target - draft).abs().max() > 0.1


def read(model: LanguageModel, hidden: str | None = None) -> Any:
    """The last 3 of 6 tokens behind 4 others."""
    cache = model.new_cache(1, len(TEXT))
    model.read(torch.tensor([TEXT[:4]]), cache, rows=1)
    return model.read(torch.tensor([TEXT[4:]]), cache, rows=3, hidden=hidden)


@pytest.mark.parametrize("spot", ["post_norm", "pre_norm", "layer_1"])
def test_hidden_states_are_those_of_the_plain_passes(models: Models, spot: str) -> None:
    """Whatever a graph cannot show is heard in a plain pass; the next one is compiled again."""
    own, fast = (read(pair[0], spot) for pair in models)
    assert own.hidden.shape == (1, 3, 32)
    assert torch.allclose(fast.hidden, own.hidden, atol=1e-5)
    assert torch.allclose(fast.logits, own.logits, atol=1e-4)
    assert passes_of(models.fast[0], lambda: read(models.fast[0])) == [(1, 4), (1, 6)]


def test_judge_of_inner_states_works(models: Models) -> None:
    rule = judge(models.plain[0], "pre_norm")
    made = decode(models.fast, rule, PROMPTS[:3])
    assert made == decode(models.plain, rule, PROMPTS[:3])
    assert any(text.mismatches for text in made)


def passes_of(model: LanguageModel, call: Any) -> list[tuple[int, ...]]:
    """Texts and new tokens of each compiled pass that a call makes."""
    assert isinstance(model, CompiledModel)
    seen: list[tuple[int, ...]] = []
    own = model._run

    def spy(ids: Tensor, *rest: Any) -> Any:
        seen.append(tuple(ids.shape))
        return own(ids, *rest)

    model._run = spy  # type: ignore[method-assign]
    try:
        call()
    finally:
        del model._run
    return seen


def test_wide_passes_are_plain(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts longer than WIDEST, alone and together; the windows behind them are compiled."""
    monkeypatch.setattr(compiled, "WIDEST", 6)
    prompts = [TEXT, TEXT[:8], TEXT[3:]]
    for rows in (prompts[:1], prompts):
        truth = decode(models.plain, Match(), rows)

        def both(rows: list[list[int]] = rows, truth: list[Generation] = truth) -> None:
            assert decode(models.fast, Match(), rows) == truth

        seen = passes_of(models.fast[0], both)
        assert seen and max(width for _, width in seen) == 5  # a window of 4 and a token


def test_texts_of_one_token(models: Models) -> None:
    """A pass of one token that sees only itself is plain: no graph keeps a length of 1 open."""
    for prompts in ([[5]], [[5], [6]]):
        assert decode(models.fast, Match(), prompts) == decode(models.plain, Match(), prompts)
    fresh = CompiledModel(models.plain[1])
    cache = fresh.new_cache(1, 4)
    assert passes_of(fresh, lambda: fresh.read(torch.tensor([[5]]), cache, rows=1)) == []


def test_rows_with_padding_read_as_alone(models: Models) -> None:
    rows = [TEXT, TEXT[3:5], TEXT[2:9]]
    found = []
    for model in (models.plain[0], models.fast[0]):
        cache = model.new_cache(3, 20)
        ids, pads = pad_left(rows, model.device)
        found.append(model.read(ids, cache, rows=2, pads=pads, hidden="post_norm"))
        assert cache.lengths == [10, 2, 7]
    own, fast = found
    assert torch.allclose(fast.logits, own.logits, atol=1e-4)
    assert torch.allclose(fast.hidden, own.hidden, atol=1e-5)


def test_stream_of_texts(models: Models) -> None:
    """Slots are filled again, rows are read alone in memory that they share."""
    texts = [streamed(pair) for pair in models]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 6 and len({len(text.ids) for text in texts[0]}) > 2


def streamed(pair: checks.Pair) -> list[Generation]:
    # No pass of the target is over one token here, which would be one graph more to compile.
    prompts = [prompt for prompt in tiny.prompts(20, seed=8) if len(prompt) > 2][:6]
    left, made = [Job(prompt, 5 + 3 * n) for n, prompt in enumerate(prompts)], []

    def feed(ended: Mapping[int, Generation]) -> dict[int, Job]:
        made.extend(ended.values())
        return {slot: left.pop(0) for slot in ended or range(2) if left}

    speculate_stream(pair[0], ModelDrafter(pair[1]), Match(), feed, longest=64, window=4)
    return made


def test_weights_are_shared_and_vocabulary_too(models: Models) -> None:
    assert models.fast[0].model is models.plain[0].model
    assert models.fast[0].fingerprint == models.plain[0].fingerprint
    assert models.fast[0].eos_ids == models.plain[0].eos_ids


# --- refusals ----------------------------------------------------------------------------------


def test_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler .* none was found; install one"):
        CompiledModel(tiny.counting())


def test_scaled_logits_are_refused() -> None:
    """Its padding, token 0, is embedded as zeros, which hide any scale."""
    config = GraniteConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, logits_scaling=4.0,
        pad_token_id=0, bos_token_id=2, eos_token_id=1,
    )  # fmt: skip
    granite = LanguageModel(GraniteForCausalLM(config), tiny.tokenizer(), "granite")
    with pytest.raises(ValueError, match="granite scales or caps its logits"):
        CompiledModel(granite)
