"""The judge as a rule of the loop, on a model whose hidden state is known in advance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import checks
import pytest
import tiny
import torch

from judgelib.decoding import Generation, autoregress, speculate, speculate_batch
from judgelib.drafting import TextDrafter
from judgelib.head import JudgeHead
from judgelib.head_config import HeadConfig, ModelRecord
from judgelib.models import LanguageModel
from judgelib.rules import Judge, Match, TopK, Window

LIKED = 30  # the token that the planted head accepts
PROMPTS = [[10], [20, 21]]
# After 10 the target counts 11, 12, ...; only LIKED may differ from that and stay.
DRAFTS = [[11, 30, 31, 40, 5, 5], [22, 23, 30, 30, 31, 7]]
ACCEPTED = [3, 5]


def head_for(model: LanguageModel, weight: torch.Tensor, bias: float, **changes: Any) -> JudgeHead:
    config = HeadConfig(**{"target": ModelRecord.of(model), **changes})
    return JudgeHead.from_linear(config, weight=weight, bias=bias)


def constant(model: LanguageModel, bias: float, **changes: Any) -> JudgeHead:
    """Says the same of every token."""
    return head_for(model, torch.zeros(model.hidden_size), bias, **changes)


def planted(model: LanguageModel, token: int = LIKED, **changes: Any) -> JudgeHead:
    """Accepts exactly `token`: entry `token` of the counting model's hidden row is large after it
    and 0 after any other."""
    weight = torch.zeros(model.hidden_size)
    weight[token] = 100.0
    return head_for(model, weight, bias=-10.0, **changes)


def decode(rule: Match, temperature: float, together: bool) -> list[Generation]:
    """One cycle over each of DRAFTS (and one token behind it)."""
    target, drafter = tiny.counting(), TextDrafter(DRAFTS)
    options: dict[str, Any] = {"window": 6, "max_new_tokens": 7, "temperature": temperature}
    # At this temperature the counting target is as good as certain, so both give the same.
    seeds = tiny.generators(2) if temperature else [None, None]
    if together:
        generators = seeds if temperature else None
        return speculate_batch(target, drafter, rule, PROMPTS, generators=generators, **options)
    return [
        speculate(target, TextDrafter([draft]), rule, prompt, generator=seed, **options)
        for draft, prompt, seed in zip(DRAFTS, PROMPTS, seeds, strict=True)
    ]


def accepts_exactly_the_liked(temperature: float, together: bool) -> None:
    for feature in ("post_norm", "pre_norm"):
        rule = Match() | Judge(planted(tiny.counting(), feature=feature))
        made = decode(rule, temperature, together)
        assert [one.cycles[0].accepted for one in made] == ACCEPTED
        assert made[0].cycles[0].accepted_by == ("Match", "Judge(0.5)", "Match")
        assert [one.ids[: n + 1] for one, n in zip(made, ACCEPTED, strict=True)] == [
            [11, 30, 31, 32],
            [22, 23, 30, 30, 31, 32],
        ]


@pytest.mark.parametrize("together", [False, True], ids=["alone", "batch"])
@pytest.mark.parametrize("temperature", [0.0, 0.05], ids=["greedy", "sampling"])
def test_the_planted_head_accepts_exactly_its_token(temperature: float, together: bool) -> None:
    accepts_exactly_the_liked(temperature, together)


@pytest.mark.parametrize("together", [False, True], ids=["alone", "batch"])
@pytest.mark.parametrize("temperature", [0.0, 0.05], ids=["greedy", "sampling"])
@pytest.mark.parametrize("shift", ["one row early", "one row late"])
def test_that_test_notices_a_rule_that_is_off_by_one(
    monkeypatch: pytest.MonkeyPatch, shift: str, temperature: float, together: bool
) -> None:
    def early(window: Window) -> torch.Tensor:
        assert window.hidden is not None
        return window.hidden[..., :-1, :]

    def late(window: Window) -> torch.Tensor:
        assert window.hidden is not None
        return window.hidden.roll(-2, -2)[..., :-1, :]

    shifted: Callable[[Window], torch.Tensor] = early if shift == "one row early" else late
    monkeypatch.setattr(Window, "reactions", property(shifted))
    with pytest.raises(AssertionError, match="assert .* == "):
        accepts_exactly_the_liked(temperature, together)


@pytest.mark.parametrize("temperature", [0.0, 0.05])
def test_a_judge_without_match_accepts_its_token_only(temperature: float) -> None:
    for token in (11, 30):
        rule = Judge(planted(tiny.counting(), token))
        made = decode(rule, temperature, together=True)
        firsts = [[token] if draft[0] == token else [] for draft in DRAFTS]
        assert [one.ids[: one.cycles[0].accepted] for one in made] == firsts


def test_a_judge_that_accepts_all_reproduces_the_draft(pair: checks.Pair) -> None:
    rule = Judge(constant(pair[0], 1e4))
    text = tiny.prompts(1, seed=9, longest=40)[0]
    longest = len(text) + 1  # one window, and the token that the target adds behind it
    options: dict[str, Any] = {"window": longest, "max_new_tokens": longest, "eos_ids": ()}
    made = speculate(pair[0], TextDrafter([text]), rule, [5], **options)
    assert made.ids[:-1] == text and len(text) > 8
    assert made.accepted == len(text)
    assert text[0] != autoregress(pair[0], [5], max_new_tokens=1).ids[0]  # else Match would do


def test_a_judge_that_rejects_all_is_plain_decoding(pair: checks.Pair) -> None:
    drafter = checks.drafter("model", pair, [])
    rule = Match() | Judge(constant(pair[0], -1e4))
    for prompt, truth in zip(checks.PROMPTS, checks.oracles(pair[0]), strict=True):
        made = speculate(pair[0], drafter, rule, prompt, max_new_tokens=checks.TOKENS)
        assert made.ids == truth.ids
        assert {name for cycle in made.cycles for name in cycle.accepted_by} <= {"Match"}
    alone = Judge(constant(pair[0], -1e4))
    made = speculate(pair[0], drafter, alone, checks.PROMPTS[0], max_new_tokens=8)
    assert made.accepted == 0
    assert made.ids == autoregress(pair[0], checks.PROMPTS[0], max_new_tokens=8).ids


def test_a_batch_is_judged_as_its_rows_alone(pair: checks.Pair) -> None:
    weight = torch.randn(32, generator=torch.Generator().manual_seed(2))
    rule = Match() | Judge(head_for(pair[0], weight, 0.0))
    drafter = checks.drafter("model", pair, [])
    options: dict[str, Any] = {"window": 4, "max_new_tokens": 20}
    together = speculate_batch(pair[0], drafter, rule, checks.PROMPTS, **options)
    alone = [speculate(pair[0], drafter, rule, prompt, **options) for prompt in checks.PROMPTS]
    assert together == alone
    by = [name for made in alone for cycle in made.cycles for name in cycle.accepted_by]
    assert {"Match", "Judge(0.5)"} == set(by)  # else nothing is tested


def test_the_request_has_the_last_word() -> None:
    """A token masked with -inf stays out, whatever the head says of it."""
    logits = torch.zeros(4, 6)
    logits[1, 2] = float("-inf")
    window = Window(torch.full((3,), 2), logits, hidden=torch.zeros(4, 32))
    rule = Judge(constant(tiny.language_model(), 1e4))
    assert rule.accept(window).tolist() == [True, False, True]
    assert (Match() | rule).votes(window).tolist() == [2, 0, 2]


def test_threshold_is_strictly_exceeded() -> None:
    """Probabilities of about 0.27, exactly 0.5, and about 0.73."""
    target = tiny.language_model()
    hidden = torch.zeros(4, 32)
    hidden[1:, 0] = torch.tensor([-1.0, 0.0, 1.0])
    window = Window(torch.zeros(3, dtype=torch.long), torch.zeros(4, 6), hidden=hidden)
    head = head_for(target, torch.eye(32)[0], 0.0, threshold=0.6)
    found = {t: Judge(head, t).accept(window).tolist() for t in (0.0, 0.25, 0.5, 1.0, None)}
    assert found == {
        0.0: [True, True, True],
        0.25: [True, True, True],
        0.5: [False, False, True],
        1.0: [False, False, False],
        None: [False, False, True],
    }
    certain = Judge(constant(target, 1e4), 1.0)
    assert not certain.accept(window).any()
    assert (Judge(head).name, Judge(head, 0.25).name) == ("Judge(0.6)", "Judge(0.25)")


def test_a_hidden_state_that_cannot_be_judged_is_rejected() -> None:
    rule = Judge(constant(tiny.language_model(), 1e4), 0.0)
    hidden = torch.zeros(3, 32)
    hidden[1] = float("nan")
    window = Window(torch.zeros(2, dtype=torch.long), torch.zeros(3, 6), hidden=hidden)
    assert rule.accept(window).tolist() == [False, True]


def test_the_scaler_takes_part() -> None:
    target = tiny.language_model()
    config = HeadConfig(target=ModelRecord.of(target))
    mean, scale = torch.full((32,), 2.0), torch.full((32,), 0.5)
    head = JudgeHead.from_linear(config, weight=torch.eye(32)[0], bias=-1.0, mean=mean, scale=scale)
    hidden = torch.tensor([0.0, 2.4, 2.6])[:, None].expand(3, 32)
    window = Window(torch.zeros(2, dtype=torch.long), torch.zeros(3, 6), hidden=hidden)
    assert Judge(head).accept(window).tolist() == [False, True]


def test_the_head_follows_the_hidden_rows_to_their_device() -> None:
    rule = Judge(constant(tiny.language_model(), 1e4))
    ids = torch.zeros(2, dtype=torch.long)
    window = Window(ids, torch.zeros(3, 6), hidden=torch.zeros(3, 32))
    elsewhere = replace(
        window,
        draft_ids=ids.to("meta"),
        target_logits=window.target_logits.to("meta"),
        hidden=torch.zeros(3, 32, device="meta"),
    )
    with torch.inference_mode():
        assert rule.accept(elsewhere).device.type == "meta"
    assert rule.head.mean.device.type == "cpu"


def test_training_the_head_further_changes_no_rule() -> None:
    head = constant(tiny.language_model(), 1e4)
    rule = Judge(head)
    head.layers[0].bias.data.fill_(-1e4)
    window = Window(torch.zeros(1, dtype=torch.long), torch.zeros(2, 6), hidden=torch.zeros(2, 32))
    assert rule.accept(window).all() and not Judge(head).accept(window).any()


def test_it_asks_for_the_hidden_rows_of_its_head() -> None:
    target = tiny.language_model()
    assert Judge(constant(target, 0.0, feature="pre_norm")).needs_hidden == "pre_norm"
    assert Judge(constant(target, 0.0, feature="layer_1")).needs_hidden == "layer_1"
    with pytest.raises(ValueError, match="one kind of hidden state"):
        Judge(constant(target, 0.0)) | Judge(constant(target, 0.0, feature="pre_norm"))


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_impossible_thresholds(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold between 0 and 1, got"):
        Judge(constant(tiny.language_model(), 0.0), threshold)


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        ({"of": "draft"}, "hidden state of the draft, after the draft's token"),
        ({"of": "both"}, "hidden state of the target and draft, after the draft's token"),
        ({"token": "target"}, "hidden state of the target, after the target's token"),
        ({"token": "both"}, "after both models' tokens"),
    ],
    ids=str,
)
def test_features_that_no_loop_has(changes: dict[str, Any], reads: str) -> None:
    record = ModelRecord.of(tiny.language_model())
    head = JudgeHead(HeadConfig(target=record, draft=record, **changes))
    with pytest.raises(ValueError, match=f"this head reads the .*{reads}.*use a head with"):
        Judge(head)


def test_a_rule_refuses_a_target_that_its_head_was_not_made_for() -> None:
    target, other = tiny.language_model(), tiny.language_model(layers=1)
    head = constant(target, 0.0)
    rules = [Judge(head), Match() | Judge(head), Judge(head) | TopK(2)]
    for rule in rules:
        rule.check(target)
        with pytest.raises(ValueError, match="another layer count"):
            rule.check(other)
    (Match() | Judge(head, any_model=True)).check(other)
    (Match() | TopK(2)).check(other)
    with pytest.raises(ValueError, match="another hidden size"):
        Judge(head, any_model=True).check(tiny.language_model(hidden=16))
