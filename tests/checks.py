"""What must hold of the decoding loop, one function a property.

The tests call these functions on the real code, where they pass; `test_mutations.py` plants bugs
and demands that they fail. A violated property raises AssertionError.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import tiny
import torch
from scipy.stats import chi2
from torch import Tensor

from judgelib.decoding import Generation, autoregress, speculate, speculate_batch
from judgelib.drafting import Drafter, ModelDrafter, PromptLookupDrafter, TextDrafter
from judgelib.models import LanguageModel
from judgelib.rules import Match, Rule, SpeculativeSampling, TopK, Window

Pair = tuple[LanguageModel, LanguageModel]
PROMPTS = tiny.prompts(5, seed=3)
TOKENS = 26
FALSE_ALARM = 1e-4  # how often a chi-squared check fails for no reason, were its seed drawn anew
KINDS = ("model", "itself", "lookup", "text")


class AcceptAll(Rule):
    """Keeps whatever was drafted."""

    def accept(self, window: Window) -> Tensor:
        return torch.ones_like(window.draft_ids, dtype=torch.bool)


class Recorder(Match):
    """Match that remembers the windows it saw."""

    def __init__(self) -> None:
        self.seen: list[Window] = []

    def accept(self, window: Window) -> Tensor:
        self.seen.append(window)
        return super().accept(window)


class Planted(Rule):
    """Accepts a token if the hidden row said to be its own says so: for `tiny.counting`."""

    def __init__(self, feature: str) -> None:
        self.needs_hidden = feature

    def accept(self, window: Window) -> Tensor:
        return window.reactions.argmax(-1) == window.draft_ids


@lru_cache
def oracles(target: LanguageModel) -> list[Generation]:
    """What plain greedy decoding makes of PROMPTS."""
    return [autoregress(target, prompt, max_new_tokens=TOKENS) for prompt in PROMPTS]


def drafter(kind: str, pair: Pair, texts: Sequence[Sequence[int]]) -> Drafter:
    """A drafter for rows whose right continuations are `texts`."""
    if kind == "text":  # right but for every fifth token
        wrong = [[3 if i % 5 == 4 else token for i, token in enumerate(text)] for text in texts]
        return TextDrafter(wrong)
    models = {"model": pair[1], "itself": pair[0]}
    return ModelDrafter(models[kind]) if kind in models else PromptLookupDrafter()


def single_is_greedy(pair: Pair, kind: str = "model", window: int = 4) -> None:
    """Strict decoding of one text gives the tokens of plain greedy decoding."""
    for prompt, truth in zip(PROMPTS, oracles(pair[0]), strict=True):
        drafts = drafter(kind, pair, [truth.ids])
        made = speculate(pair[0], drafts, Match(), prompt, window=window, max_new_tokens=TOKENS)
        assert (made.ids, made.finish_reason) == (truth.ids, truth.finish_reason)


def batch_is_greedy(pair: Pair, kind: str = "model", window: int = 4) -> None:
    """So does strict decoding of many, whose rows end at different times."""
    truths = oracles(pair[0])
    drafts = drafter(kind, pair, [truth.ids for truth in truths])
    made = speculate_batch(pair[0], drafts, Match(), PROMPTS, window=window, max_new_tokens=TOKENS)
    assert [one.ids for one in made] == [truth.ids for truth in truths]
    assert [one.finish_reason for one in made] == [truth.finish_reason for truth in truths]


def rows_do_not_mix(pair: Pair, window: int = 4) -> None:
    """A batch of many rows that leave early: every row's cycles are those of the row alone."""
    drafts, stops = ModelDrafter(pair[1]), tuple(range(3, 9))
    prompts = tiny.prompts(12, seed=11)
    options: dict[str, Any] = {"window": window, "max_new_tokens": TOKENS, "stop_ids": stops}
    together = speculate_batch(pair[0], drafts, Match(), prompts, **options)
    alone = [speculate(pair[0], drafts, Match(), prompt, **options) for prompt in prompts]
    assert together == alone
    assert len({len(one.ids) for one in alone}) > 3  # else nothing was tested


def cycles_add_up(pair: Pair, window: int = 4) -> None:
    """The record of cycles accounts for every token and names the rules that accepted."""
    named = set()
    options: dict[str, Any] = {"window": window, "max_new_tokens": TOKENS}
    for prompt in PROMPTS:
        made = speculate(pair[0], ModelDrafter(pair[1]), Match() | TopK(2), prompt, **options)
        assert sum(cycle.tokens for cycle in made.cycles) == len(made.ids)
        assert all(len(cycle.accepted_by) == cycle.accepted for cycle in made.cycles)
        assert all(cycle.accepted <= cycle.drafted <= window for cycle in made.cycles)
        named |= {name for cycle in made.cycles for name in cycle.accepted_by}
    assert named == {"Match", "TopK(2)"}


def full_window_earns_bonus(pair: Pair, window: int = 4) -> None:
    """A drafter that is always right gains window + 1 tokens a cycle."""
    made = speculate(
        pair[0],
        ModelDrafter(pair[0]),
        Match(),
        PROMPTS[0],
        window=window,
        max_new_tokens=3 * (window + 1),
        eos_ids=(),
    )
    assert [(c.accepted, c.tokens, c.bonus) for c in made.cycles] == 3 * [
        (window, window + 1, True)
    ]


def caches_follow_text(pair: Pair, window: int = 4) -> None:
    """After every cycle the target has read all committed tokens but the last, and the draft knows
    them all: read, or noted as unread."""
    target, drafts, caches = pair[0], ModelDrafter(pair[1]), []

    class Spy(LanguageModel):
        def __init__(self) -> None:
            self.__dict__ = dict(target.__dict__)

        def new_cache(self, rows: int, capacity: int) -> Any:
            caches.append(super().new_cache(rows, capacity))
            return caches[-1]

    length = len(PROMPTS[1])

    def look(tokens: list[int]) -> None:
        nonlocal length
        length += len(tokens)
        assert caches[0].lengths == [length - 1]
        assert drafts.cache.lengths[0] + len(drafts.unread[0]) == length

    made = speculate(
        Spy(), drafts, Match(), PROMPTS[1], window=window, max_new_tokens=TOKENS, on_tokens=look
    )
    assert any(cycle.accepted < cycle.drafted for cycle in made.cycles)  # something was rejected


def drafts_continue_text(pair: Pair, window: int = 4) -> None:
    """Every window is what the draft itself would say after the committed text."""
    target, draft = pair
    rule, text = Recorder(), list(PROMPTS[1])

    def look(tokens: list[int]) -> None:
        drafted = rule.seen[-1].draft_ids[0].tolist()
        if drafted:
            truth = autoregress(draft, text, max_new_tokens=len(drafted), eos_ids=())
            assert drafted == truth.ids
        text.extend(tokens)

    options: dict[str, Any] = {"window": window, "max_new_tokens": TOKENS, "eos_ids": ()}
    speculate(target, ModelDrafter(draft), rule, PROMPTS[1], on_tokens=look, **options)
    assert len(rule.seen) > 3


def ends_at_every_offset(reason: str, window: int = 4) -> None:
    """The end of a text is honoured wherever it falls in a window, alone and in a batch."""
    target = tiny.counting()
    last, offsets = 40, range(2 * (window + 1) + 2)
    prompts = [[last - 1 - offset] for offset in offsets]  # the text ends after offset + 1 tokens
    ends: dict[str, Any] = {"eos_ids": (last,)} if reason == "eos" else {"stop_ids": (last,)}
    drafts = ModelDrafter(target)
    options: dict[str, Any] = {"window": window, "max_new_tokens": 100, **ends}
    batch = speculate_batch(target, drafts, Match(), prompts, **options)
    for prompt, together in zip(prompts, batch, strict=True):
        made = speculate(target, drafts, Match(), prompt, **options)
        assert made.ids == list(range(prompt[0] + 1, last + 1))
        assert made.finish_reason == reason
        assert together == made
        assert sum(cycle.tokens for cycle in made.cycles) == len(made.ids)


def stops_at_every_limit(window: int = 4) -> None:
    """So is the length limit, alone and in a batch."""
    target = tiny.counting()
    for limit in range(1, 2 * (window + 1) + 2):
        options: dict[str, Any] = {"window": window, "max_new_tokens": limit}
        made = speculate(target, ModelDrafter(target), Match(), [3], **options)
        assert made.ids == list(range(4, 4 + limit))
        assert made.finish_reason == "length"
        batch = speculate_batch(target, ModelDrafter(target), Match(), [[3], [5]], **options)
        assert [one.ids for one in batch] == [made.ids, list(range(6, 6 + limit))]


def keeps_prefix_before_mismatch(window: int = 4) -> None:
    """One wrong token at place i: i tokens stay, the target corrects it, the rest goes."""
    target = tiny.counting()
    right = list(range(11, 11 + window))
    for place in range(window):
        text = [30 if i == place else token for i, token in enumerate(right)]
        options: dict[str, Any] = {"window": window, "max_new_tokens": window + 1}
        made = speculate(target, TextDrafter([text]), Match(), [10], **options)
        assert made.ids == list(range(11, 12 + window))
        first = made.cycles[0]
        assert (first.accepted, first.added, first.bonus) == (place, right[place], False)


def accepting_all_gives_draft(pair: Pair) -> None:
    """With a rule that accepts all, the text is the draft's, but for the token a cycle adds."""
    target, draft = pair
    for prompt in PROMPTS[:3]:
        truth = autoregress(draft, prompt, max_new_tokens=8, eos_ids=())
        made = speculate(
            target, ModelDrafter(draft), AcceptAll(), prompt, window=8, max_new_tokens=9, eos_ids=()
        )
        assert made.ids[:8] == truth.ids
        assert [cycle.accepted for cycle in made.cycles] == [8]


def reactions_belong_to_tokens(feature: str) -> None:
    """The hidden row that a rule reads for a draft token is that of *processing* this token."""
    target = tiny.counting()
    texts = [[7, 30, 12, 45, 9, 22, 17, 5], [40, 8, 8, 31, 3, 19, 44, 10]]
    options: dict[str, Any] = {"window": 4, "max_new_tokens": 8}
    rule = Planted(feature)
    together = speculate_batch(target, TextDrafter(texts), rule, [[20], [21, 22, 23]], **options)
    alone = speculate(target, TextDrafter(texts[:1]), rule, [20], **options)
    for made in (alone, *together):
        assert [cycle.accepted for cycle in made.cycles] == [4, 2]


def pre_norm_comes_before_the_norm(pair: Pair) -> None:
    """Of the two features one is the other's norm."""
    model, ids = pair[0], torch.tensor([PROMPTS[1]])

    def rows(feature: str) -> Tensor:
        cache = model.new_cache(1, len(PROMPTS[1]))
        hidden = model.read(ids, cache, rows=2, hidden=feature).hidden
        assert hidden is not None
        return hidden

    assert torch.allclose(model.model.model.norm(rows("pre_norm")), rows("post_norm"))
    assert not torch.allclose(rows("pre_norm"), rows("post_norm"))


def top_1_is_match() -> None:
    """Two ways to say the same: among the one likeliest, equal to the likeliest."""
    window = random_window()
    assert torch.equal(TopK(1).accept(window), Match().accept(window))
    assert Match().accept(window).any() and not Match().accept(window).all()


def random_window() -> Window:
    """A window of 48 tokens, half of which are the target's own choice."""
    logits = torch.randn(49, tiny.VOCABULARY, generator=torch.Generator().manual_seed(0))
    ids = logits[:-1].argmax(-1)
    ids[::2] = 5
    return Window(ids, logits)


def forbidden_tokens_stay_out(rule: Rule) -> None:
    """A token that the request masks with -inf is accepted by no rule, however lenient."""
    logits = torch.zeros(4, 6)
    logits[:3, 2] = float("-inf")
    window = Window(torch.full((3,), 2), logits, uniforms=torch.zeros(3, 1, dtype=torch.float64))
    assert not rule.accept(window).any()


def seeds_decide(pair: Pair, rule: Rule, top_p: float = 0.9) -> None:
    """A seeded row gives the same text again, and the same in any batch."""
    prompts = tiny.prompts(6, seed=5)
    options: dict[str, Any] = {
        "window": 4,
        "max_new_tokens": 20,
        "temperature": 0.8,
        "top_p": top_p,
    }
    drafts = ModelDrafter(pair[1])

    def together() -> list[Generation]:
        return speculate_batch(
            pair[0], drafts, rule, prompts, generators=tiny.generators(6), **options
        )

    first = together()
    assert together() == first
    for prompt, made, generator in zip(prompts, first, tiny.generators(6), strict=True):
        assert speculate(pair[0], drafts, rule, prompt, generator=generator, **options) == made
    others = speculate_batch(
        pair[0], drafts, rule, prompts, generators=tiny.generators(6, seed=99), **options
    )
    assert others != first


def sampling_is_exact(rule: Rule | None = None, kind: str = "model", top_p: float = 1.0) -> None:
    """3,000 sampled texts of three tokens against the target's exact distribution: chi-squared.

    Texts expected fewer than five times are counted together. Were the seeds drawn anew, a right
    sampler would fail with probability FALSE_ALARM.
    """
    target = tiny.language_model(seed=2, spread=0.12, vocabulary=6)
    draft = tiny.disturbed(target, spread=0.12)
    prompt, rows, temperature = [3, 4], 3000, 0.7
    # The last of three tokens is never drafted, so a window of 2 meets every case.
    drafts = ModelDrafter(draft) if kind == "model" else TextDrafter([[3, 5, 4]] * rows)
    made = speculate_batch(
        target,
        drafts,
        rule or SpeculativeSampling(),
        [prompt] * rows,
        window=2,
        max_new_tokens=3,
        temperature=temperature,
        top_p=top_p,
        generators=tiny.generators(rows),
        eos_ids=(),
    )
    places = torch.tensor([one.ids for one in made]) @ torch.tensor([36, 6, 1])
    seen = torch.bincount(places, minlength=216).double()
    expected = rows * _text_probabilities(target, prompt, temperature, top_p)
    assert chi_squared_p_value(seen, expected) > FALSE_ALARM


def chi_squared_p_value(seen: Tensor, expected: Tensor) -> float:
    """Pearson's test of counts against expected counts; the cells below 5 are pooled."""
    rare = expected < 5
    seen = torch.cat([seen[~rare], seen[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    if expected[-1] == 0:  # what cannot happen must not
        if seen[-1] > 0:
            return 0.0
        seen, expected = seen[:-1], expected[:-1]
    statistic = ((seen - expected) ** 2 / expected).sum()
    return float(chi2.sf(statistic.item(), len(seen) - 1))


@torch.inference_mode()
def _text_probabilities(
    target: LanguageModel, prompt: list[int], temperature: float, top_p: float
) -> Tensor:
    """(216,) probability of each text of three tokens, by transformers' forward pass and a
    nucleus written out token by token."""
    pairs = torch.cartesian_prod(torch.arange(6), torch.arange(6))
    ids = torch.cat([torch.tensor(prompt).expand(36, -1), pairs], 1)
    logits = target.model(ids).logits[:, -3:].double() / temperature
    steps = _slow_nucleus(logits.softmax(-1), top_p)  # (36, 3, 6)
    first, second = pairs.T
    both = steps[:, 0].gather(1, first[:, None]) * steps[:, 1].gather(1, second[:, None])
    return (both * steps[:, 2]).flatten()


def _slow_nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    kept = torch.zeros_like(probabilities)
    for row, out in zip(probabilities.view(-1, 6), kept.view(-1, 6), strict=True):
        total = 0.0
        for token in sorted(range(6), key=lambda token: -row[token]):
            if total < top_p:
                out[token] = row[token]
            total += float(row[token])
    return kept / kept.sum(-1, keepdim=True)
