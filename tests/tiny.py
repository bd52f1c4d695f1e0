"""Tiny random models with a tiny tokenizer, built in memory.

Their weights are drawn wide enough that the likeliest token is clear (no near-ties in float32), and
a draft is a disturbed copy of its target, so that it is sometimes right.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from judgelib.models import LanguageModel

VOCABULARY = 48
EOS = 1
SPECIAL = ["<pad>", "<eos>", "<bos>"]


def tokenizer(words: list[str] | None = None) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: three special tokens, then w3, w4, ..."""
    words = words or [f"w{number}" for number in range(len(SPECIAL), VOCABULARY)]
    inner = Tokenizer(
        WordLevel({word: i for i, word in enumerate(SPECIAL + words)}, unk_token="<pad>")
    )
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


def network(seed: int = 0, spread: float = 0.3, **shape: int) -> LlamaForCausalLM:
    """A random Llama whose weights have standard deviation `spread`."""
    model = LlamaForCausalLM(config(**shape)).float().eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, spread, generator=generator)
    return model


def language_model(seed: int = 0, name: str = "tiny", **shape: int) -> LanguageModel:
    return LanguageModel(network(seed, **shape), tokenizer(), name)


def disturbed(model: LanguageModel, noise: float = 0.05, seed: int = 1) -> LanguageModel:
    """A copy with noise on every matrix: a draft that agrees with its target now and then."""
    copy = LlamaForCausalLM(model.model.config).float().eval()
    copy.load_state_dict(model.model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for parameter in copy.parameters():
        if parameter.dim() > 1:
            parameter.data.add_(torch.empty_like(parameter).normal_(0, noise, generator=generator))
    return LanguageModel(copy, tokenizer(), "tiny-draft")


def prompts(count: int, seed: int = 0, longest: int = 12) -> list[list[int]]:
    """Random prompts of 1 to `longest` ordinary tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
