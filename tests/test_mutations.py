"""Planted bugs: each breaks one small part of the loop, and the check beside it must notice.

A check that stays silent under the bug it is there for would be worthless, however green it is.
That the same checks pass on the real code is what the other test files show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import checks
import pytest
from torch import Tensor

from judgelib import decoding, drafting, models, rules
from judgelib.cache import RowCache
from judgelib.models import LanguageModel
from judgelib.rules import RandomAccept, SpeculativeSampling, Window

Patch = pytest.MonkeyPatch
Check = Callable[[checks.Pair], None]


def no_op(*_: Any, **__: Any) -> None:
    """Does nothing where something should be done."""


def target_cache_not_rolled_back(patch: Patch) -> None:
    patch.setattr(decoding, "rollback", no_op)


def keep_one_too_many(cache: RowCache, lengths: list[int]) -> None:
    pairs = zip(cache.lengths, lengths, strict=True)
    cache.lengths = [min(old, new + 1) for old, new in pairs]


def target_cache_keeps_a_token_too_many(patch: Patch) -> None:
    patch.setattr(decoding, "rollback", keep_one_too_many)


def draft_cache_keeps_a_token_too_many(patch: Patch) -> None:
    patch.setattr(drafting, "rollback", keep_one_too_many)


def draft_cache_not_rolled_back(patch: Patch) -> None:
    patch.setattr(drafting, "rollback", no_op)


def draft_forgets_the_token_it_never_read(patch: Patch) -> None:
    real = drafting.ModelDrafter.commit

    def commit(self: Any, tokens: list[list[int]], accepted: list[int]) -> None:
        real(self, tokens, accepted)
        self.unread = [new[-1:] for new in tokens]

    patch.setattr(drafting.ModelDrafter, "commit", commit)


def hidden_row_of_the_token_before(patch: Patch) -> None:
    patch.setattr(Window, "reactions", property(lambda self: self.hidden[..., :-1, :]))


def hidden_row_after_the_norm_instead_of_before(patch: Patch) -> None:
    real = LanguageModel.read

    def read(self: LanguageModel, *args: Any, **options: Any) -> models.Read:
        if options.get("hidden"):
            options["hidden"] = "post_norm"
        return real(self, *args, **options)

    patch.setattr(LanguageModel, "read", read)


def logits_of_the_row_after(patch: Patch) -> None:
    real = LanguageModel.read

    def read(self: LanguageModel, *args: Any, **options: Any) -> models.Read:
        found = real(self, *args, **options)
        return found._replace(logits=found.logits.roll(-1, dims=1))

    patch.setattr(LanguageModel, "read", read)


def predictions_of_the_row_after(patch: Patch) -> None:
    patch.setattr(Window, "predictions", property(lambda self: self.target_logits[..., 1:, :]))


def bonus_token_lost(patch: Patch) -> None:
    real = decoding.gained

    def gained(ids: list[int], accepted: int, added: int) -> list[int]:
        return list(ids) if accepted == len(ids) > 0 else real(ids, accepted, added)

    patch.setattr(decoding, "gained", gained)


def replacement_from_the_first_row(patch: Patch) -> None:
    def replacement(self: rules.Rule, window: Window, accepted: Tensor) -> Tensor:
        return window.picks[..., 0]

    patch.setattr(rules.Rule, "replacement", replacement)


def end_ignored_inside_a_window(patch: Patch) -> None:
    patch.setattr(decoding, "cut_at_end", lambda tokens, ends: tokens)


def stop_taken_for_eos(patch: Patch) -> None:
    def reason(self: Any, token: int) -> str | None:
        return "eos" if token in self.eos | self.stop else None

    patch.setattr(decoding._Ends, "reason", reason)


def length_limit_ignored_in_a_window(patch: Patch) -> None:
    patch.setattr(decoding, "draft_room", lambda window, left: window)


def any_accepted_token_stays(patch: Patch) -> None:
    patch.setattr(decoding, "longest_prefix", lambda accepted: accepted.long().sum(-1))


def first_rejected_token_stays_too(patch: Patch) -> None:
    real = decoding.longest_prefix

    def longest(accepted: Tensor) -> Tensor:
        return (real(accepted) + 1).clamp(max=accepted.shape[-1])

    patch.setattr(decoding, "longest_prefix", longest)


def residual_not_subtracted(patch: Patch) -> None:
    patch.setattr(rules, "residual", lambda p, q: p)


def bonus_drawn_from_the_residual_of_a_drafted_row(patch: Patch) -> None:
    real = rules._q_or_nothing

    def q_everywhere(window: Window) -> Tensor:
        q = real(window).clone()
        if q.shape[-2] > 1:
            q[..., -1, :] = q[..., -2, :]
        return q

    patch.setattr(rules, "_q_or_nothing", q_everywhere)


def acceptance_ratio_inverted(patch: Patch) -> None:
    patch.setattr(rules, "acceptable", lambda p_x, q_x, uniforms: uniforms * p_x < q_x)


def draft_takes_the_likeliest_when_sampling(patch: Patch) -> None:
    patch.setattr(
        drafting.ModelDrafter,
        "_choose",
        lambda self, logits, uniforms, step: logits.argmax(-1),
    )


def one_number_for_draft_and_verdict(patch: Patch) -> None:
    real = decoding._Loop._draw_noise

    def shared(self: Any) -> Any:
        noise = real(self)
        return noise._replace(rule=noise.drafter)

    patch.setattr(decoding._Loop, "_draw_noise", shared)


def rows_share_random_numbers(patch: Patch) -> None:
    real = decoding._Loop._draw_noise

    def shared(self: Any) -> Any:
        noise = real(self)
        return type(noise)(*(part if part is None else part[:1].expand_as(part) for part in noise))

    patch.setattr(decoding._Loop, "_draw_noise", shared)


def rows_share_positions(patch: Patch) -> None:
    real = LanguageModel._place_many

    def shared(self: LanguageModel, *args: Any) -> dict[str, Any]:
        inputs = real(self, *args)
        longest = inputs["position_ids"].max(dim=0, keepdim=True).values
        return {**inputs, "position_ids": longest.expand_as(inputs["position_ids"])}

    patch.setattr(LanguageModel, "_place_many", shared)


def rows_see_what_others_left(patch: Patch) -> None:
    """Every row may look as far as the longest one."""
    real = LanguageModel._row_masks

    def lenient(self: LanguageModel, places: Tensor, reach: int) -> Tensor:
        return real(self, places.max(dim=0, keepdim=True).values.expand_as(places), reach)

    patch.setattr(LanguageModel, "_row_masks", lenient)


def padding_overwrites_text(patch: Patch) -> None:
    """Padding is written to a row's first slot instead of the one nobody looks at."""
    real = RowCache.place

    def place(self: RowCache, start: int, stop: int, slots: Tensor | None = None) -> None:
        if slots is not None:
            slots = slots.masked_fill(slots == self.capacity, 0)
        real(self, start, stop, slots)

    patch.setattr(RowCache, "place", place)


def rows_move_without_their_cache(patch: Patch) -> None:
    patch.setattr(RowCache, "_move", no_op)


def drafter_not_told_who_left(patch: Patch) -> None:
    """The first rows' drafts are taken for those of the rows that go on."""

    def keep(self: Any, rows: list[int]) -> None:
        self._texts = [self._texts[row] for row in rows]  # else it would only crash
        self.cache.keep(range(len(rows)))
        self.unread = self.unread[: len(rows)]

    patch.setattr(drafting.ModelDrafter, "keep", keep)


def forbidden_tokens_let_through(patch: Patch) -> None:
    patch.setattr(rules.Window, "allowed", property(lambda self: self.draft_ids == self.draft_ids))


def wrong_rule_named(patch: Patch) -> None:
    patch.setattr(rules.Either, "parts", property(lambda self: self._rules[:1] * 2))


MUTATIONS: list[tuple[Callable[[Patch], None], Check]] = [
    (target_cache_not_rolled_back, checks.caches_follow_text),
    (target_cache_keeps_a_token_too_many, checks.single_is_greedy),
    (draft_cache_not_rolled_back, checks.caches_follow_text),
    (draft_cache_keeps_a_token_too_many, checks.drafts_continue_text),
    (draft_forgets_the_token_it_never_read, lambda pair: checks.caches_follow_text((pair[0],) * 2)),
    (hidden_row_of_the_token_before, lambda _: checks.reactions_belong_to_tokens("post_norm")),
    (hidden_row_after_the_norm_instead_of_before, checks.pre_norm_comes_before_the_norm),
    (logits_of_the_row_after, checks.single_is_greedy),
    (predictions_of_the_row_after, lambda _: checks.top_1_is_match()),
    (bonus_token_lost, checks.full_window_earns_bonus),
    (replacement_from_the_first_row, checks.single_is_greedy),
    (end_ignored_inside_a_window, lambda _: checks.ends_at_every_offset("eos")),
    (stop_taken_for_eos, lambda _: checks.ends_at_every_offset("stop")),
    (length_limit_ignored_in_a_window, lambda _: checks.stops_at_every_limit()),
    (any_accepted_token_stays, lambda _: checks.keeps_prefix_before_mismatch()),
    (first_rejected_token_stays_too, lambda _: checks.keeps_prefix_before_mismatch()),
    (residual_not_subtracted, lambda _: checks.sampling_is_exact()),
    (bonus_drawn_from_the_residual_of_a_drafted_row, lambda _: checks.sampling_is_exact()),
    (acceptance_ratio_inverted, lambda _: checks.sampling_is_exact()),
    (draft_takes_the_likeliest_when_sampling, lambda _: checks.sampling_is_exact()),
    (one_number_for_draft_and_verdict, lambda _: checks.sampling_is_exact()),
    (rows_share_random_numbers, lambda p: checks.seeds_decide(p, SpeculativeSampling())),
    (rows_share_positions, checks.batch_is_greedy),
    (rows_see_what_others_left, checks.batch_is_greedy),
    (padding_overwrites_text, checks.rows_do_not_mix),
    (rows_move_without_their_cache, checks.rows_do_not_mix),
    (drafter_not_told_who_left, checks.rows_do_not_mix),
    (
        forbidden_tokens_let_through,
        lambda _: checks.forbidden_tokens_stay_out(RandomAccept(1.0)),
    ),
    (wrong_rule_named, checks.cycles_add_up),
]


@pytest.mark.parametrize(
    ("plant", "check"), MUTATIONS, ids=[plant.__name__ for plant, _ in MUTATIONS]
)
def test_planted_bug_is_caught(
    plant: Callable[[Patch], None], check: Check, pair: checks.Pair, monkeypatch: Patch
) -> None:
    checks.oracles(pair[0])  # the truth is worked out before the bug is planted
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(pair)
