"""Drafters by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import checks
import pytest
import torch

from judgelib.decoding import (
    Generation,
    Job,
    autoregress,
    speculate,
    speculate_batch,
    speculate_stream,
)
from judgelib.drafting import (
    Drafter,
    ModelDrafter,
    NoDrafter,
    PromptLookupDrafter,
    Request,
    TextDrafter,
)
from judgelib.rules import Match
from judgelib.sampling import Sampling


def request(window: int = 4, wants_logits: bool = False, width: int = 48) -> Request:
    return Request(window, 64, width, torch.device("cpu"), Sampling(), wants_logits)


def proposals(drafter: Drafter, *counts: int) -> list[list[int]]:
    draft = drafter.propose(counts, None)
    rows = zip(draft.ids.tolist(), draft.counts, strict=True)
    return [ids[:count] for ids, count in rows]


def test_model_drafter_continues_greedily(pair: checks.Pair) -> None:
    draft, prompt = pair[1], checks.PROMPTS[1]
    drafter = ModelDrafter(draft)
    drafter.start([prompt], request())
    truth = autoregress(draft, prompt, max_new_tokens=4, eos_ids=()).ids
    assert proposals(drafter, 4) == [truth]
    assert drafter.cache.lengths == [len(prompt) + 3]  # the last proposal was not read


@pytest.mark.parametrize("accepted", [0, 1, 2, 3, 4])
def test_model_drafter_forgets_what_was_rejected(pair: checks.Pair, accepted: int) -> None:
    draft, prompt = pair[1], checks.PROMPTS[1]
    drafter = ModelDrafter(draft)
    drafter.start([prompt], request())
    committed = proposals(drafter, 4)[0][:accepted] + [17]
    drafter.commit([committed], [accepted])
    assert drafter.cache.lengths == [len(prompt) + min(accepted, 3)]
    assert drafter.unread == [committed[min(accepted, 3) :]]
    truth = autoregress(draft, prompt + committed, max_new_tokens=3, eos_ids=()).ids
    assert proposals(drafter, 3) == [truth]


def test_model_drafter_catches_up_after_silence(pair: checks.Pair) -> None:
    drafter = ModelDrafter(pair[1])
    drafter.start([[5, 6]], request())
    assert proposals(drafter, 0) == [[]]
    drafter.commit([[7]], [0])
    assert drafter.unread == [[5, 6, 7]]
    truth = autoregress(pair[1], [5, 6, 7], max_new_tokens=2, eos_ids=()).ids
    assert proposals(drafter, 2) == [truth]


def test_model_drafter_returns_logits_if_asked(pair: checks.Pair) -> None:
    drafter = ModelDrafter(pair[1])
    drafter.start([[5, 6], [7]], request(wants_logits=True, width=50))
    draft = drafter.propose([3, 3], None)
    assert draft.logits is not None and draft.logits.shape == (2, 3, 50)
    assert torch.equal(draft.logits.argmax(-1), draft.ids)
    assert (draft.logits[..., 48:] == float("-inf")).all()  # ids the draft does not know


def test_model_drafter_can_start_again(pair: checks.Pair) -> None:
    drafter = ModelDrafter(pair[1])
    first = speculate(pair[0], drafter, Match(), checks.PROMPTS[1], max_new_tokens=9)
    speculate(pair[0], drafter, Match(), checks.PROMPTS[2], max_new_tokens=7)
    assert speculate(pair[0], drafter, Match(), checks.PROMPTS[1], max_new_tokens=9) == first


def test_prompt_lookup_continues_the_latest_occurrence() -> None:
    drafter = PromptLookupDrafter()
    drafter.start([[4, 5, 6, 7, 9, 4, 5, 6, 8, 3, 4, 5, 6], [7, 7, 7], [3, 4, 5]], request())
    assert proposals(drafter, 3, 3, 3) == [[8, 3, 4], [7], []]
    drafter.commit([[7], [6], [3]], [0, 0, 0])
    assert proposals(drafter, 2, 2, 2) == [[9, 4], [], [4, 5]]


def test_prompt_lookup_prefers_the_longer_match() -> None:
    # The single token 6 was last followed by 9; the pair 5, 6 by 8.
    text = [5, 6, 8, 6, 9, 5, 6]
    for longest, following in ((1, [9]), (2, [8]), (3, [8])):
        drafter = PromptLookupDrafter(longest)
        drafter.start([text], request())
        assert proposals(drafter, 1) == [following]


def test_prompt_lookup_agrees_with_a_plain_search() -> None:
    text = torch.randint(3, 7, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    drafter = PromptLookupDrafter(longest=3, shortest=2)
    drafter.start([text[:1]], request())
    for length in range(1, 200):
        assert proposals(drafter, 4) == [plain_search(text[:length], (3, 2))]
        drafter.commit([[text[length]]], [0])


def plain_search(text: list[int], sizes: tuple[int, ...]) -> list[int]:
    for size in sizes:
        for start in range(len(text) - size - 1, -1, -1):
            if text[start : start + size] == text[-size:]:
                return text[start + size : start + size + 4]
    return []


def test_text_drafter_replays_by_position() -> None:
    drafter = TextDrafter([[11, 12, 13, 14, 15]])
    drafter.start([[3]], request())
    assert proposals(drafter, 2) == [[11, 12]]
    drafter.commit([[11, 40]], [1])  # 12 was replaced: the replay goes on behind it
    assert proposals(drafter, 2) == [[13, 14]]
    drafter.commit([[13, 14, 15]], [2])
    assert proposals(drafter, 2) == [[]]  # the text has ended


@pytest.mark.parametrize("kind", ["lookup", "text"])
def test_rows_that_go_on_keep_their_state(kind: str) -> None:
    texts = [[11, 12, 13], [21, 22, 23], [31, 32, 33]]
    drafter: Drafter = TextDrafter(texts)
    prompts = [[3], [3], [3]]
    if kind == "lookup":
        drafter, prompts = PromptLookupDrafter(), [[3, *text, 3] for text in texts]
    drafter.start(prompts, request())
    drafter.keep([2, 1])
    assert proposals(drafter, 3, 3) == [[31, 32, 33], [21, 22, 23]]


def test_model_rows_that_go_on_keep_their_state(pair: checks.Pair) -> None:
    drafter = ModelDrafter(pair[1])
    drafter.start(checks.PROMPTS[:3], request())
    proposals(drafter, 3, 3, 3)
    drafter.commit([[9], [10], [11]], [0, 0, 0])
    drafter.keep([2, 1])
    truth = [
        autoregress(pair[1], [*checks.PROMPTS[row], 9 + row], max_new_tokens=3, eos_ids=()).ids
        for row in (2, 1)
    ]
    assert proposals(drafter, 3, 3) == truth


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="1 <= shortest <= longest, got 2 and 1"):
        PromptLookupDrafter(longest=1, shortest=2)
    with pytest.raises(ValueError, match="got 1 texts for 2 prompts"):
        TextDrafter([[5]]).start([[3], [4]], request())
    with pytest.raises(ValueError, match="text 0 holds an id outside the target's 48 ids"):
        TextDrafter([[48]]).start([[3]], request())


# --- no drafts, and drafts that end where the draft is unsure --------------------------------


def test_without_drafts_every_cycle_is_one_token(pair: checks.Pair) -> None:
    """The loop is then plain greedy decoding, alone and in a batch whose rows end by turns."""
    truths = checks.oracles(pair[0])
    options: dict[str, Any] = {"window": 1, "max_new_tokens": checks.TOKENS}
    together = speculate_batch(pair[0], NoDrafter(), Match(), checks.PROMPTS, **options)
    for prompt, made, truth in zip(checks.PROMPTS, together, truths, strict=True):
        assert (made.ids, made.finish_reason) == (truth.ids, truth.finish_reason)
        assert [(c.drafted, c.accepted, c.added) for c in made.cycles] == [
            (0, 0, token) for token in truth.ids
        ]
        assert speculate(pair[0], NoDrafter(), Match(), prompt, **options) == made
    assert len({len(truth.ids) for truth in truths}) > 1  # else no row ended early


def test_no_drafter_serves_a_stream(pair: checks.Pair) -> None:
    prompts, made = list(checks.PROMPTS[:3]), []

    def feed(ended: Mapping[int, Generation]) -> dict[int, Job]:
        made.extend(ended.values())
        return {0: Job(prompts.pop(0), 7)} if prompts else {}

    speculate_stream(pair[0], NoDrafter(), Match(), feed, longest=40)
    assert [text.ids for text in made] == [one.ids[:7] for one in checks.oracles(pair[0])[:3]]
