"""The loop on one text: exact, well recorded, and ended where it must end."""

from __future__ import annotations

from typing import Any

import checks
import pytest
import tiny
import torch

from judgelib.decoding import Generation, autoregress, speculate, speculate_batch
from judgelib.drafting import ModelDrafter, PromptLookupDrafter, TextDrafter
from judgelib.models import LanguageModel
from judgelib.rules import Match, RandomAccept, SpeculativeSampling, TopK


@pytest.mark.parametrize("window", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kind", checks.KINDS)
def test_strict_decoding_is_greedy_decoding(pair: checks.Pair, kind: str, window: int) -> None:
    checks.single_is_greedy(pair, kind, window)


def test_oracle_is_transformers_greedy_decoding(pair: checks.Pair) -> None:
    for prompt, truth in zip(checks.PROMPTS, checks.oracles(pair[0]), strict=True):
        ids = torch.tensor([prompt])
        made = pair[0].model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=checks.TOKENS, do_sample=False
        )
        assert made[0, len(prompt) :].tolist() == truth.ids


def test_cycles_add_up(pair: checks.Pair) -> None:
    checks.cycles_add_up(pair)


@pytest.mark.parametrize("window", [1, 4])
def test_full_window_earns_bonus(pair: checks.Pair, window: int) -> None:
    checks.full_window_earns_bonus(pair, window)


@pytest.mark.parametrize("window", [1, 4])
def test_caches_follow_text(pair: checks.Pair, window: int) -> None:
    checks.caches_follow_text(pair, window)


def test_drafts_continue_text(pair: checks.Pair) -> None:
    checks.drafts_continue_text(pair)


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("reason", ["eos", "stop"])
def test_text_ends_at_every_offset(reason: str, window: int) -> None:
    checks.ends_at_every_offset(reason, window)


@pytest.mark.parametrize("window", [1, 4])
def test_length_limit_at_every_offset(window: int) -> None:
    checks.stops_at_every_limit(window)


def test_prefix_before_a_mismatch_stays() -> None:
    checks.keeps_prefix_before_mismatch()


def test_accepting_all_gives_the_draft(pair: checks.Pair) -> None:
    checks.accepting_all_gives_draft(pair)


@pytest.mark.parametrize("feature", ["post_norm", "pre_norm"])
def test_hidden_rows_belong_to_their_tokens(feature: str) -> None:
    checks.reactions_belong_to_tokens(feature)


def test_cycles_say_which_rule_accepted() -> None:
    """A counting target; the draft is right, wrong, right: TopK(48) takes what Match does not."""
    made = speculate(
        tiny.counting(),
        TextDrafter([[11, 30, 31]]),
        Match() | TopK(48),
        [10],
        window=3,
        max_new_tokens=4,
    )
    assert made.ids == [11, 30, 31, 32]
    assert made.cycles[0].accepted_by == ("Match", "TopK(48)", "Match")
    assert (made.accepted_per_cycle, made.tokens_per_cycle) == (3.0, 4.0)


def test_end_inside_window_leaves_no_added_token() -> None:
    made = speculate(
        tiny.counting(),
        TextDrafter([[11, 12, 13, 14]]),
        Match(),
        [10],
        window=4,
        max_new_tokens=20,
        eos_ids=(12,),
    )
    cycle = made.cycles[0]
    assert made.ids == [11, 12]
    assert (cycle.drafted, cycle.accepted, cycle.added, cycle.bonus) == (4, 2, None, False)
    assert cycle.accepted_by == ("Match", "Match")


def test_the_models_own_eos_is_the_default(pair: checks.Pair) -> None:
    """One of the prompts ends by itself; with no end-of-sequence id it goes on behind it."""
    target = pair[0]
    ended = [prompt for prompt, one in _texts(target) if one.finish_reason == "eos"]
    assert ended  # else nothing is tested
    made = speculate(
        target, PromptLookupDrafter(), Match(), ended[0], max_new_tokens=40, eos_ids=()
    )
    assert len(made.ids) == 40
    assert tiny.EOS in made.ids[:-1]


def _texts(target: LanguageModel) -> list[tuple[list[int], Generation]]:
    prompts = tiny.prompts(7)
    return [(prompt, autoregress(target, prompt, max_new_tokens=40)) for prompt in prompts]


def test_tokens_stream_as_they_are_committed(pair: checks.Pair) -> None:
    pieces: list[list[int]] = []
    made = speculate(
        *(pair[0], ModelDrafter(pair[1]), Match(), checks.PROMPTS[1]),
        window=4,
        max_new_tokens=checks.TOKENS,
        on_tokens=pieces.append,
    )
    assert [len(piece) for piece in pieces] == [cycle.tokens for cycle in made.cycles]
    assert sum(pieces, []) == made.ids


def test_nothing_is_computed_that_no_rule_reads(pair: checks.Pair) -> None:
    greedy, sampled = checks.Recorder(), checks.Recorder()
    options: dict[str, Any] = {"window": 4, "max_new_tokens": 6}
    speculate(pair[0], ModelDrafter(pair[1]), greedy, [5], **options)
    generator = torch.Generator().manual_seed(0)
    speculate(
        *(pair[0], ModelDrafter(pair[1]), sampled, [5]),
        temperature=1.0,
        generator=generator,
        **options,
    )
    for window in greedy.seen + sampled.seen:
        assert window.draft_logits is None and window.hidden is None
    assert all(window.pick_uniforms is None for window in greedy.seen)


def test_rules_get_the_drafts_logits_when_they_read_them(pair: checks.Pair) -> None:
    class Reader(checks.Recorder):
        needs_draft_logits = True

    rule = Reader()
    speculate(pair[0], ModelDrafter(pair[1]), rule, [5, 6], window=4, max_new_tokens=12)
    for window in rule.seen:
        assert window.draft_logits is not None
        assert torch.equal(window.draft_logits.argmax(-1), window.draft_ids)


@pytest.mark.parametrize("feature", ["post_norm", "pre_norm"])
def test_hidden_rows_are_those_of_a_plain_pass(pair: checks.Pair, feature: str) -> None:
    """The rows that a rule sees, against the hidden states of one pass over the whole text."""

    class Reader(checks.Recorder):
        needs_hidden = feature

    rule, target, prompt = Reader(), pair[0], checks.PROMPTS[1]
    made = speculate(target, ModelDrafter(pair[1]), rule, prompt, window=4, max_new_tokens=20)
    truth = _plain_hidden(target, prompt + made.ids, feature)
    last = len(prompt) - 1
    for cycle, window in zip(made.cycles, rule.seen, strict=True):
        assert window.hidden is not None
        rows = window.hidden[0, : cycle.accepted + 1]
        assert torch.allclose(rows, truth[last : last + len(rows)], atol=1e-4)
        last += cycle.tokens


@torch.inference_mode()
def _plain_hidden(target: LanguageModel, ids: list[int], feature: str) -> torch.Tensor:
    """(len(ids), D) by a hook around the final norm of an ordinary pass."""
    seen: list[torch.Tensor] = []
    norm = target.model.model.norm

    def look(_: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.append(args[0] if feature == "pre_norm" else output)

    handle = norm.register_forward_hook(look)
    target.model(torch.tensor([ids]))
    handle.remove()
    return seen[0][0]


def test_text_may_fill_the_context() -> None:
    target = tiny.language_model(context=32)
    draft = tiny.disturbed(target)
    prompt = tiny.prompts(1, seed=2)[0]
    truth = autoregress(target, prompt, max_new_tokens=1000, eos_ids=())
    made = speculate(target, ModelDrafter(draft), Match(), prompt, max_new_tokens=1000, eos_ids=())
    assert made.ids == truth.ids
    assert len(prompt) + len(made.ids) == 32
    assert made.finish_reason == "length"


def test_draft_with_a_shorter_context_falls_silent() -> None:
    target = tiny.language_model(context=64)
    draft = tiny.language_model(context=24)
    truth = autoregress(target, [5, 6], max_new_tokens=50, eos_ids=())
    for prompts in ([[5, 6]], [[5, 6], [7]]):
        made = speculate_batch(
            target, ModelDrafter(draft), Match(), prompts, max_new_tokens=50, eos_ids=()
        )
        assert made[0].ids == truth.ids
        assert made[0].cycles[0].drafted == 8 and made[0].cycles[-1].drafted == 0


@pytest.mark.parametrize("decode", ["speculate", "autoregress"])
@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "prompt 0 is empty"),
        ([3] * 256, {}, "prompt 0 has 256 tokens, but tiny has a context of 256"),
        ([48], {}, "holds id 48, but tiny knows ids 0 to 47"),
        ([-1], {}, "holds id -1"),
        ([5], {"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ([5], {"temperature": -0.1}, "temperature must be 0"),
        ([5], {"temperature": 1.0}, "needs seeded random numbers"),
    ],
)
def test_bad_requests_are_named(
    pair: checks.Pair, decode: str, prompt: list[int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        if decode == "autoregress":
            autoregress(pair[0], prompt, **options)
        else:
            speculate(pair[0], ModelDrafter(pair[1]), Match(), prompt, **options)


def test_bad_windows_and_generators_are_named(pair: checks.Pair) -> None:
    target, drafts = pair[0], ModelDrafter(pair[1])
    with pytest.raises(ValueError, match="window must be at least 1 token, got 0"):
        speculate(target, drafts, Match(), [5], window=0)
    with pytest.raises(ValueError, match="needs seeded random numbers"):
        speculate(target, drafts, Match() | RandomAccept(0.5), [5])
    one = torch.Generator()
    with pytest.raises(ValueError, match="expected 2 different ones, got 1"):
        speculate_batch(
            *(target, drafts, SpeculativeSampling(), [[5], [6]]),
            temperature=1.0,
            generators=[one, one],
        )
