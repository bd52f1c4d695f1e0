"""Tiny random models with a tiny tokenizer, built in memory.

Weights are drawn so wide that the likeliest token is clear (no near-ties in float32). A draft is a
disturbed copy of its target, so that it is right now and then.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from judgelib.models import LanguageModel

VOCABULARY = 48
EOS = 1
SPECIAL = ("<pad>", "<eos>", "<bos>")


def tokenizer(words: Sequence[str] | None = None) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: three special tokens, then w3, w4, ... or the given words."""
    words = words or [f"w{number}" for number in range(len(SPECIAL), VOCABULARY)]
    table = {word: number for number, word in enumerate([*SPECIAL, *words])}
    inner = Tokenizer(WordLevel(table, unk_token="<pad>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<pad>",
    )


def config(
    hidden: int = 32, layers: int = 2, vocabulary: int = VOCABULARY, context: int = 256
) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        pad_token_id=0,
        eos_token_id=EOS,
        bos_token_id=2,
        attn_implementation="sdpa",
    )


def scatter(network: torch.nn.Module, spread: float, seed: int) -> None:
    """Add noise of standard deviation `spread` to every matrix."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=spread)


def language_model(seed: int = 0, spread: float = 0.3, **shape: int) -> LanguageModel:
    """A random Llama."""
    network = LlamaForCausalLM(config(**shape)).float()
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.data.zero_()
    scatter(network, spread, seed)
    return LanguageModel(network, tokenizer(), "tiny")


def disturbed(model: LanguageModel, spread: float = 0.05, seed: int = 1) -> LanguageModel:
    """A copy with noise: a draft that agrees with its target now and then."""
    network = LlamaForCausalLM(model.model.config).float()
    network.load_state_dict(model.model.state_dict())
    scatter(network, spread, seed)
    return LanguageModel(network, model.tokenizer, "tiny-draft")


def counting() -> LanguageModel:
    """A model that counts: after token n it says n + 1, from 3 to 47 and round again.

    Its layers add nothing, so its hidden state *is* the token it has just processed: entry n of the
    normed row is large after token n and 0 after any other. That is the planted signal which shows
    whether a hidden row belongs to the token it is taken to belong to.
    """
    network = LlamaForCausalLM(config(hidden=VOCABULARY, layers=1)).float()
    for layer in network.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    network.model.embed_tokens.weight.data.copy_(torch.eye(VOCABULARY))
    followers = [max(len(SPECIAL), (token + 1) % VOCABULARY) for token in range(VOCABULARY)]
    network.lm_head.weight.data.zero_()
    network.lm_head.weight.data[followers, range(VOCABULARY)] = 1.0
    return LanguageModel(network, tokenizer(), "counting")


def prompts(count: int, seed: int = 0, longest: int = 12) -> list[list[int]]:
    """Random prompts of 1 to `longest` ordinary tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    first = len(SPECIAL)
    return [torch.randint(first, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + number) for number in range(count)]
