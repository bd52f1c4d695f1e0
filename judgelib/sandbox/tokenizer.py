"""The sandbox's tokenizer: byte-level BPE with single digits and a chat template."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from judgelib.sandbox.corpus import Text
from judgelib.sandbox.problem import DOMAINS
from judgelib.sandbox.voices import WEB

VOCABULARY = 1024
PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# A word, one digit or a run of signs, each with the space before it; or white space.
_PIECES = Regex(r" ?[A-Za-z]+| ?[^\sA-Za-z0-9]+| ?[0-9]|\n *|\s")


def train_tokenizer(*, texts: int = 30_000, seed: int = 0) -> PreTrainedTokenizerFast:
    """Learn the merges from training text in mixed voices."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(texts, seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def _texts(count: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    text = Text(WEB)
    for index in range(count):
        yield from text.example(DOMAINS[index % len(DOMAINS)], rng)
