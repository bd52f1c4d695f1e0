"""Tiny checkpoints in the shape of real ones, made without the hub: for rehearsals.

A checkpoint has the real one's architecture class with its peculiarities (grouped queries, rope
scaling, biases, norms of queries and keys, tied or untied embeddings, a vocabulary padded beyond
the tokenizer's), its tokenizer class, special tokens in their order, chat format, and generation
settings with several end tokens. Its weights are random, but for a few seconds of training on the
texts that it is given, so that some of its answers end and are right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from judgelib.architectures import Architecture, architecture

MERGED = 900
"""Tokens of the tokenizer before its special ones."""
CONTEXT = 16384  # Llama 3's rope scaling wants more than the 8192 that it stretches
PROMPT_TAIL = 128
"""Tokens of a prompt that training reads; the rest of it is far away."""

# Facts of the format: a header names who speaks, an end token closes every turn, and a system turn
# with two dates always comes first.
LLAMA3_TEMPLATE = """\
{%- set said = messages -%}
{%- set system = '' -%}
{%- if said and said[0]['role'] == 'system' -%}
  {%- set system = said[0]['content'] | trim -%}
  {%- set said = said[1:] -%}
{%- endif -%}
{{- bos_token + '<|start_header_id|>system<|end_header_id|>\n\n' -}}
{{- 'Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' -}}
{{- system + '<|eot_id|>' -}}
{%- for turn in said -%}
  {{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\n\n' -}}
  {{- turn['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
{%- endif -%}
"""

# Each turn stands between two marks. Qwen2.5 introduces itself where no system turn does.
CHATML_TEMPLATE = """\
{%- if DEFAULT and (not messages or messages[0]['role'] != 'system') -%}
  {{- '<|im_start|>system\n' + DEFAULT + '<|im_end|>\n' -}}
{%- endif -%}
{%- for turn in messages -%}
  {{- '<|im_start|>' + turn['role'] + '\n' + turn['content'] + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
  {%- if THINKS and enable_thinking is defined and not enable_thinking -%}
    {{- '<think>\n\n</think>\n\n' -}}
  {%- endif -%}
{%- endif -%}
"""

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPECIAL = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
)  # fmt: skip
CHATML_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Family:
    """What a family's checkpoints have in common.

    Attributes:
        special: special tokens in the order of their ids, which follow all others; `added` are
            tokens that are no merges either, but are part of a text.
        ends: tokens that end a text, in the generation config's order; the tokenizer's own is
            `end`.
        begin, pad: those tokens, or None.
        template: of the chat.
        settings: of the generation config.
        extra: rows of the smaller and of the larger model's output beyond the tokenizer's tokens.
    """

    special: tuple[str, ...]
    ends: tuple[str, ...]
    end: str
    begin: str | None
    pad: str | None
    template: str
    settings: dict[str, Any]
    added: tuple[str, ...] = ()
    extra: tuple[int, int] = (0, 0)


def _chatml(default: str, thinks: bool) -> str:
    template = CHATML_TEMPLATE.replace("DEFAULT", json.dumps(default))
    return template.replace("THINKS", "true" if thinks else "false")


_SAMPLED = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
FAMILIES = {
    "Llama-3": Family(
        LLAMA3_SPECIAL, ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"), "<|eot_id|>",
        "<|begin_of_text|>", None, LLAMA3_TEMPLATE,
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
    ),
    "Qwen2.5": Family(
        CHATML_SPECIAL, ("<|im_end|>", "<|endoftext|>"), "<|im_end|>", None, "<|endoftext|>",
        _chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", False),
        {**_SAMPLED, "repetition_penalty": 1.1}, extra=(64, 192),
    ),
    "Qwen3": Family(
        CHATML_SPECIAL, ("<|im_end|>", "<|endoftext|>"), "<|im_end|>", None, "<|endoftext|>",
        _chatml("", True), {**_SAMPLED, "temperature": 0.6, "top_p": 0.95},
        added=("<think>", "</think>"), extra=(64, 64),
    ),
}  # fmt: skip


def family(model: str) -> Family:
    """The family of a model by its hub id; ValueError for one that is not known here."""
    bare = model.rsplit("/", 1)[-1]
    found = next((made for name, made in FAMILIES.items() if bare.startswith(name)), None)
    if found is None:
        raise ValueError(f"expected a model of {', '.join(FAMILIES)}, got {model!r}")
    return found


# --- tokenizer ---------------------------------------------------------------------------------


def tokenizer(model: str, texts: Sequence[str]) -> Any:
    """A tokenizer of the family's class, its merges learned from `texts`."""
    kind = family(model)
    inner = _bytes_tokenizer(kind, texts)
    special = {"bos_token": kind.begin, "eos_token": kind.end, "pad_token": kind.pad}
    named = {name: token for name, token in special.items() if token}
    if kind.begin:  # of Llama 3, whose class is the general one
        from transformers import PreTrainedTokenizerFast

        made: Any = PreTrainedTokenizerFast(tokenizer_object=inner, **named)
    else:
        from transformers import Qwen2Tokenizer

        model_ = json.loads(inner.to_str())["model"]
        merges = [tuple(pair) for pair in model_["merges"]]
        made = Qwen2Tokenizer(vocab=model_["vocab"], merges=merges, **named)
        made.add_special_tokens({"additional_special_tokens": list(kind.special)})
        made.add_tokens(list(kind.added))
    made.chat_template = kind.template
    made.model_max_length = CONTEXT
    return made


def _bytes_tokenizer(kind: Family, texts: Sequence[str]) -> Any:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )

    made = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=MERGED, initial_alphabet=alphabet, show_progress=False),
    )
    if kind.begin:
        made.add_special_tokens([AddedToken(token, special=True) for token in kind.special])
        first = (kind.begin, made.token_to_id(kind.begin))
        made.post_processor = processors.TemplateProcessing(
            single=f"{kind.begin} $A", special_tokens=[first]
        )
    return made


# --- weights -----------------------------------------------------------------------------------


def outline(model: str, tokens: int, *, larger: bool) -> Architecture:
    """The tiny shape of a model, for a tokenizer of so many tokens: at least two layers if it is
    the larger of its pair, which also has more rows beyond the tokenizer's, as Qwen2.5's has."""
    real = architecture(model)
    tiny = real.tiny()
    layers = max(tiny.layers, 2 if larger else 1)
    width = tokens + family(model).extra[larger]
    apart = real.heads * real.head_dim != real.hidden  # Qwen3's heads are wider than the model
    return replace(
        tiny, layers=layers, vocabulary=width, context=CONTEXT, head_dim=32 if apart else 16
    )


Lesson = tuple[list[int], list[int]]
"""A prompt and an answer, in tokens."""


def checkpoint(
    folder: Path,
    model: str,
    made: Any,
    lessons: Sequence[Lesson],
    *,
    larger: bool,
    steps: int,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write a tiny checkpoint of `model` with the tokenizer `made`; returns its folder.

    Args:
        lessons: what it is trained on.
        larger: of its pair; see `outline`.
        steps: of training; with fewer it makes more mistakes.
        seed: of the weights and of the order of the lessons.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    from judgelib.models import quiet

    kind = family(model)
    config = outline(model, len(made), larger=larger).config()
    ids = {name: made.convert_tokens_to_ids(token) for name, token in _named(kind).items()}
    ends = [made.convert_tokens_to_ids(token) for token in kind.ends]
    config.bos_token_id, config.eos_token_id = ids.get("bos"), ends
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = AutoModelForCausalLM.from_config(config).float()
    loss = teach(network, lessons, steps, seed)
    progress(f"{model}: {config.num_hidden_layers} layers, loss {loss:.2f} after {steps} steps")
    network.generation_config = GenerationConfig(
        bos_token_id=ids.get("bos"), pad_token_id=ids.get("pad"), eos_token_id=ends,
        **kind.settings,
    )  # fmt: skip
    with quiet():
        network.bfloat16().save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def _named(kind: Family) -> dict[str, str]:
    return {name: token for name, token in (("bos", kind.begin), ("pad", kind.pad)) if token}


def teach(network: Any, lessons: Sequence[Lesson], steps: int, seed: int) -> float:
    """Train on answers behind the ends of their prompts; returns the last loss."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps + 1)
    loss = torch.zeros(())
    for _ in range(steps):
        chosen = torch.randint(len(lessons), (8,), generator=generator).tolist()
        ids, wanted = _batch([lessons[number] for number in chosen])
        logits = network(ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), wanted[:, 1:].flatten(), ignore_index=-100
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
    return loss.item()


def _batch(lessons: Sequence[Lesson]) -> tuple[Tensor, Tensor]:
    """Tokens (B, n), padded behind, and what is to be learned, -100 where nothing is."""
    rows = [(prompt[-PROMPT_TAIL:], answer) for prompt, answer in lessons]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, wanted = torch.zeros(len(rows), width).long(), torch.full((len(rows), width), -100)
    for row, (prompt, answer) in enumerate(rows):
        stop = len(prompt) + len(answer)
        ids[row, :stop] = torch.tensor([*prompt, *answer])
        wanted[row, len(prompt) : stop] = torch.tensor(answer)
    return ids, wanted
