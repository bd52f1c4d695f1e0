"""Many texts at once: rows of different lengths, which accept and end differently."""

from __future__ import annotations

import checks
import pytest
import tiny
import torch

from judgelib.cache import RowCache, rollback
from judgelib.decoding import autoregress, speculate_batch
from judgelib.drafting import ModelDrafter, PromptLookupDrafter
from judgelib.models import LanguageModel
from judgelib.rules import Match


@pytest.mark.parametrize("window", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kind", checks.KINDS)
def test_strict_decoding_is_greedy_decoding(pair: checks.Pair, kind: str, window: int) -> None:
    checks.batch_is_greedy(pair, kind, window)


@pytest.mark.parametrize("window", [1, 4])
def test_rows_do_not_mix(pair: checks.Pair, window: int) -> None:
    checks.rows_do_not_mix(pair, window)


def test_order_of_prompts_does_not_matter(pair: checks.Pair) -> None:
    prompts = tiny.prompts(7, seed=4)
    options = {"window": 4, "max_new_tokens": 20}
    there = speculate_batch(pair[0], ModelDrafter(pair[1]), Match(), prompts, **options)
    back = speculate_batch(pair[0], ModelDrafter(pair[1]), Match(), prompts[::-1], **options)
    assert there == back[::-1]


def test_no_prompts_give_no_texts(pair: checks.Pair) -> None:
    assert speculate_batch(pair[0], PromptLookupDrafter(), Match(), []) == []


def test_one_of_many_prompts_is_bad(pair: checks.Pair) -> None:
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        speculate_batch(pair[0], PromptLookupDrafter(), Match(), [[5], []])


def test_tokens_stream_with_their_row(pair: checks.Pair) -> None:
    pieces: dict[int, list[int]] = {0: [], 1: [], 2: []}
    made = speculate_batch(
        *(pair[0], ModelDrafter(pair[1]), Match(), checks.PROMPTS[:3]),
        max_new_tokens=15,
        on_tokens=lambda row, tokens: pieces[row].extend(tokens),
    )
    assert [pieces[row] for row in range(3)] == [one.ids for one in made]


def test_row_at_the_end_of_the_context_beside_one_far_from_it() -> None:
    """Learned positions end with the context; the other row's window must not overrun them."""
    target = gpt2(context=32)
    prompts = [list(range(3, 32)), [5, 6]]
    made = speculate_batch(
        target, ModelDrafter(target), Match(), prompts, max_new_tokens=40, eos_ids=()
    )
    for prompt, one in zip(prompts, made, strict=True):
        assert one.ids == autoregress(target, prompt, max_new_tokens=40, eos_ids=()).ids
        assert len(prompt) + len(one.ids) == 32


def gpt2(context: int) -> LanguageModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=tiny.VOCABULARY, n_positions=context, n_embd=32, n_layer=2, n_head=4
    )
    network = GPT2LMHeadModel(config).float()
    tiny.scatter(network, 0.2, seed=0)
    return LanguageModel(network, tiny.tokenizer(), "gpt2")


def test_rows_of_a_cache_move_down() -> None:
    cache = RowCache(rows=4, capacity=6)
    cache.place(0, 3, torch.tensor([[0, 1, 2]] * 4))
    keys = torch.arange(4.0)[:, None, None, None].expand(4, 2, 3, 5)
    cache.update(keys, -keys, 0)
    cache.lengths = [3, 2, 3, 1]
    cache.keep([0, 3, 2])
    assert cache.lengths == [3, 1, 3]
    cache.place(0, 1, torch.tensor([[3], [1], [3]]))
    stored, values = cache.update(torch.zeros(3, 2, 1, 5), torch.zeros(3, 2, 1, 5), 0)
    assert stored[:, 0, 0, 0].tolist() == [0.0, 3.0, 2.0]
    assert values[:, 0, 0, 0].tolist() == [0.0, -3.0, -2.0]


def test_cache_refuses_what_it_cannot_do() -> None:
    cache = RowCache(rows=2, capacity=4)
    cache.lengths = [3, 1]
    with pytest.raises(ValueError, match="room for 4 tokens a row, but 5 are needed"):
        cache.place(3, 5)
    with pytest.raises(ValueError, match="rollback only shortens"):
        rollback(cache, [3, 2])
    rollback(cache, [0, 1])
    assert cache.lengths == [0, 1]
