"""The stream of texts: each comes out as alone, and what a slot has read is not read again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import checks
import pytest
import tiny
import torch
from torch import Tensor

from judgelib.cache import RowCache, catch_up, common_prefix
from judgelib.decoding import Generation, Job, autoregress, speculate, speculate_stream
from judgelib.drafting import (
    Drafter,
    ModelDrafter,
    PromptLookupDrafter,
    RevisionDrafter,
    TextDrafter,
)
from judgelib.models import LanguageModel, Read
from judgelib.rules import Match, RandomAccept, Rule, SpeculativeSampling, TopK

LONGEST = 64
COUNTING = tiny.counting()


class Counted(LanguageModel):
    """A model that counts the tokens it reads; it shares everything else with `model`."""

    def __init__(self, model: LanguageModel) -> None:
        self.__dict__ = dict(model.__dict__)
        self.tokens = 0

    def read(self, ids: Tensor, cache: RowCache, **options: Any) -> Read:
        self.tokens += ids.numel() - sum(options.get("pads") or [])
        return super().read(ids, cache, **options)


def stream(
    target: LanguageModel,
    drafter: Drafter,
    rule: Rule,
    queues: Mapping[int, Sequence[Job]],
    **options: Any,
) -> dict[int, list[Generation]]:
    """Each slot's texts, of its own queue of jobs."""
    left = {slot: list(jobs) for slot, jobs in queues.items()}
    made: dict[int, list[Generation]] = {slot: [] for slot in queues}

    def feed(ended: Mapping[int, Generation]) -> dict[int, Job]:
        for slot, text in ended.items():
            made[slot].append(text)
        return {slot: left[slot].pop(0) for slot in ended or queues if left[slot]}

    speculate_stream(target, drafter, rule, feed, **{"longest": LONGEST, "window": 4} | options)
    assert not any(left.values())
    return made


def alone(
    target: LanguageModel, drafter: Drafter, rule: Rule, job: Job, **options: Any
) -> Generation:
    """What `speculate` makes of a job without hints."""
    limits = {"max_new_tokens": job.max_new_tokens, "generator": job.generator}
    return speculate(target, drafter, rule, job.prompt, **{"window": 4} | limits | options)


def queues(lengths: Sequence[int], seed: int = 0, **entries: Any) -> dict[int, list[Job]]:
    """Slots with so many jobs each, whose texts end at different times."""
    prompts = iter(tiny.prompts(sum(lengths), seed=seed))
    limits = iter([17, 3, 26, 1, 9, 14, 5, 22, 2, 11, 7, 19, 13, 4, 8])
    return {
        slot: [Job(next(prompts), next(limits), **entries) for _ in range(length)]
        for slot, length in enumerate(lengths)
    }


DRAFTERS: dict[str, Callable[[checks.Pair], Drafter]] = {
    "model": lambda pair: ModelDrafter(pair[1]),
    "lookup": lambda _: PromptLookupDrafter(),
    "revision": lambda _: RevisionDrafter(),
}


# --- every text as alone ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", DRAFTERS)
def test_texts_are_those_of_each_job_alone(pair: checks.Pair, kind: str) -> None:
    """Slots with one to five jobs, so that they close at different times."""
    jobs = queues([4, 1, 5, 3])
    made = stream(pair[0], DRAFTERS[kind](pair), Match(), jobs)
    truth = {
        slot: [alone(pair[0], DRAFTERS[kind](pair), Match(), job) for job in queue]
        for slot, queue in jobs.items()
    }
    assert made == truth  # ids, reasons and cycles
    assert len({len(text.ids) for texts in truth.values() for text in texts}) > 5


def seeded(jobs: Mapping[int, Sequence[Job]]) -> dict[int, list[Job]]:
    """The jobs with new generators, the same at every call."""
    seeds = iter(range(100))
    return {
        slot: [job._replace(generator=torch.Generator().manual_seed(next(seeds))) for job in queue]
        for slot, queue in jobs.items()
    }


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize(
    ("rule", "temperature"),
    [(SpeculativeSampling(), 0.8), (Match() | TopK(2) | RandomAccept(0.3), 0.0)],
    ids=["sampling", "lossy"],
)
def test_texts_with_random_numbers_are_those_alone(
    pair: checks.Pair, kind: str, rule: Rule, temperature: float
) -> None:
    """A lossy text depends on every window, so a drafter that restarts wrongly shows."""
    jobs, drafter = queues([3, 1, 2], seed=4), DRAFTERS[kind](pair)
    made = stream(pair[0], drafter, rule, seeded(jobs), temperature=temperature)
    for slot, queue in seeded(jobs).items():
        truth = [alone(pair[0], drafter, rule, job, temperature=temperature) for job in queue]
        assert made[slot] == truth


def test_a_job_of_one_token_leaves_nothing_for_the_next(pair: checks.Pair) -> None:
    """Its drafter is asked for nothing, so the draft model (here the target itself, which is always
    right) has not read a token yet."""
    for slots in (1, 2):
        short, then = Job([5, 6, 7, 8], 1), Job([5, 6, 9, 10, 11], 12)
        jobs = {slot: [short, then] for slot in range(slots)}
        made = stream(pair[0], ModelDrafter(pair[0]), Match(), jobs, eos_ids=())
        for texts in made.values():
            assert texts[1] == alone(pair[0], ModelDrafter(pair[0]), Match(), then, eos_ids=())
            assert texts[1].accepted == texts[1].drafted


def test_prompts_beyond_the_drafts_context_are_decoded_without_drafts(pair: checks.Pair) -> None:
    draft = tiny.language_model(seed=3, context=16)
    long = tiny.prompts(40, seed=2)
    jobs = {
        0: [Job([5, 6], 6), Job(sum(long, [])[:20], 5), Job([5, 7], 12)],
        1: [Job([8], 30), Job([8, 9], 8)],
    }
    made = stream(pair[0], ModelDrafter(draft), Match(), jobs)
    truth = {
        s: [alone(pair[0], ModelDrafter(draft), Match(), j) for j in q] for s, q in jobs.items()
    }
    assert made == truth
    assert (made[0][1].drafted, made[0][2].drafted > 0) == (0, True)


def test_slots_may_have_any_numbers_and_a_stream_may_be_empty(pair: checks.Pair) -> None:
    made = stream(pair[0], PromptLookupDrafter(), Match(), {7: [Job([5], 4)], 2: [Job([6], 9)]})
    assert {slot: texts[0].ids for slot, texts in made.items()} == {
        7: autoregress(pair[0], [5], max_new_tokens=4).ids,
        2: autoregress(pair[0], [6], max_new_tokens=9).ids,
    }
    assert stream(pair[0], PromptLookupDrafter(), Match(), {}) == {}


def test_feed_gets_the_texts_that_ended_together() -> None:
    """Three texts of the counting model, of which two end in the same cycle."""
    seen: list[dict[int, list[int]]] = []

    def feed(ended: Mapping[int, Generation]) -> dict[int, Job]:
        seen.append({slot: text.ids for slot, text in ended.items()})
        return {} if ended else {slot: Job([10 * slot + 10], limit) for slot, limit in limits}

    limits = ((0, 5), (1, 10), (2, 5))
    speculate_stream(COUNTING, ModelDrafter(COUNTING), Match(), feed, longest=20, window=4)
    assert seen[0] == {}
    assert seen[1] == {0: [11, 12, 13, 14, 15], 2: [31, 32, 33, 34, 35]}
    assert seen[2:] == [{1: list(range(21, 31))}]


# --- what is shared --------------------------------------------------------------------------


def prompt_grows_out_of_text(target: LanguageModel) -> tuple[Job, Job, int]:
    """A job, one whose prompt is its text up to the fifth new token and three others, and how many
    tokens the prompt is longer than what they share."""
    first = Job([5, 9, 33, 17], 12)
    text = autoregress(target, first.prompt, max_new_tokens=12, eos_ids=()).ids
    other = [3 if text[5] != 3 else 4, 20, 21]
    return first, Job([*first.prompt, *text[:5], *other], 8), len(other)


@pytest.mark.parametrize("slots", [1, 3])
def test_the_target_reads_only_what_is_new(pair: checks.Pair, slots: int) -> None:
    """Without proposals every pass reads one token: a text of 8 costs 8 passes, the first of which
    reads the prompt's last token, and the shared part costs nothing."""
    first, second, new = prompt_grows_out_of_text(pair[0])
    spy = Counted(pair[0])
    jobs = {slot: [first, second] for slot in range(slots)}
    made = stream(spy, RevisionDrafter(), Match(), jobs, eos_ids=())
    assert spy.tokens == slots * (len(first.prompt) - 1 + 12 + new - 1 + 8)
    truth = autoregress(pair[0], second.prompt, max_new_tokens=8, eos_ids=())
    assert [texts[1].ids for texts in made.values()] == slots * [truth.ids]


def test_a_prompt_that_ends_inside_the_last_text_costs_one_token(pair: checks.Pair) -> None:
    first, second, _ = prompt_grows_out_of_text(pair[0])
    inside = Job(second.prompt[:7], 1)
    spy = Counted(pair[0])
    stream(spy, RevisionDrafter(), Match(), {0: [first, inside]}, eos_ids=())
    assert spy.tokens == len(first.prompt) - 1 + 12 + 1


def test_an_unrelated_prompt_is_read_whole(pair: checks.Pair) -> None:
    spy = Counted(pair[0])
    jobs = {0: [Job([5, 9, 33, 17], 6), Job([6, 9, 33, 17], 6)]}
    stream(spy, RevisionDrafter(), Match(), jobs, eos_ids=())
    assert spy.tokens == 2 * (3 + 6)


def test_the_draft_reads_only_what_is_new(pair: checks.Pair) -> None:
    """Counted against the same job in a slot whose last text shares nothing."""
    first, second, _ = prompt_grows_out_of_text(pair[0])
    stranger = first._replace(prompt=[40, 9, 33, 17])
    read = []
    for before in (first, stranger):
        spy, alone_before = Counted(pair[1]), Counted(pair[1])
        stream(pair[0], ModelDrafter(spy), Match(), {0: [before, second]}, eos_ids=())
        stream(pair[0], ModelDrafter(alone_before), Match(), {0: [before]}, eos_ids=())
        read.append(spy.tokens - alone_before.tokens)
    assert read[1] - read[0] == len(first.prompt) + 5


def always_right(pair: checks.Pair, jobs: Sequence[Job]) -> list[Generation]:
    """One slot's texts, drafted by the target itself: a token misread by either is rejected."""
    made = stream(pair[0], ModelDrafter(pair[0]), Match(), {0: jobs}, eos_ids=())[0]
    for text, job in zip(made, jobs, strict=True):
        truth = autoregress(pair[0], job.prompt, max_new_tokens=job.max_new_tokens, eos_ids=())
        assert text.ids == truth.ids
        assert text.accepted == text.drafted
    return made


@pytest.mark.parametrize("length", [1, 5, 6, 7])
def test_a_prompt_may_go_on_behind_the_whole_last_text(pair: checks.Pair, length: int) -> None:
    """As a conversation does. The last token of a text has not been read when it ends."""
    ids = autoregress(pair[0], [5, 9, 33], max_new_tokens=length, eos_ids=()).ids
    always_right(pair, [Job([5, 9, 33], length), Job([5, 9, 33, *ids, 20, 21], 11)])


def test_a_slot_remembers_its_last_text_only(pair: checks.Pair) -> None:
    """The third prompt shares much with the first, whose place the second has taken."""
    first, second, _ = prompt_grows_out_of_text(pair[0])
    always_right(pair, [first, Job([5, 40, 41, 42, 43, 44], 12), second])


# --- texts that settle -----------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 4])
def test_a_text_ends_where_it_is_settled(window: int) -> None:
    """At every offset, asked after each token; then the slot goes on."""
    for offset in range(1, 12):
        asked: list[list[int]] = []

        def settled(ids: list[int], asked: list[list[int]] = asked, last: int = offset) -> bool:
            asked.append(ids)
            return len(ids) == last

        jobs = {0: [Job([10], 30, settled=settled), Job([20], 3)], 1: [Job([5], 25)]}
        made = stream(COUNTING, ModelDrafter(COUNTING), Match(), jobs, window=window)
        text, then = made[0]
        assert (text.ids, text.finish_reason) == (list(range(11, 11 + offset)), "stop")
        assert asked == [text.ids[:count] for count in range(1, offset + 1)]
        assert sum(cycle.tokens for cycle in text.cycles) == offset
        assert then == alone(COUNTING, ModelDrafter(COUNTING), Match(), jobs[0][1], window=window)
        assert made[1][0].ids == list(range(6, 31))


def test_settled_comes_before_the_limit_and_after_the_end() -> None:
    """At the last token allowed the reason is "stop"; at the end of the text it is "eos"."""
    options: dict[str, Any] = {"eos_ids": (14,)}
    for start, reason in ((5, "stop"), (10, "eos")):
        job = Job([start], 4, settled=lambda ids: len(ids) == 4)
        text = stream(COUNTING, ModelDrafter(COUNTING), Match(), {0: [job]}, **options)[0][0]
        assert (len(text.ids), text.finish_reason) == (4, reason)


# --- revisions -------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2, 4])
def test_an_equal_old_text_is_proposed_to_its_end(pair: checks.Pair, window: int) -> None:
    """Everything is accepted, for the jobs that open the slots and for those that follow. Random
    models repeat themselves, so the latest tokens stand in the hint at several places."""
    jobs, shares = {}, []
    for slot, prompt in enumerate(tiny.prompts(8, seed=6)):
        text = autoregress(pair[0], prompt, max_new_tokens=30, eos_ids=()).ids
        shares.append(len(set(text)) / 30)
        later = Job([*prompt, *text[:7]], 23, hint=text[7:])
        jobs[slot] = [Job(prompt, 30, hint=text), later]
    made = stream(pair[0], RevisionDrafter(), Match(), jobs, window=window, eos_ids=())
    for text in sum(made.values(), []):
        assert text.accepted == text.drafted == len(text.ids) - len(text.cycles)
        assert len(text.cycles) == -(-len(text.ids) // (window + 1))
    assert min(shares) < 0.7  # some do repeat themselves


def test_a_revision_goes_on_behind_an_insertion_and_a_deletion() -> None:
    """The counting model says 11, 12, ...; the old text lacks 15 and 16 and has 30 and 31 too
    many."""
    text = list(range(11, 47))
    for old in (text[:4] + text[6:], text[:4] + [30, 30, 31] + text[4:]):
        job = Job([10], 36, hint=old)
        made = stream(COUNTING, RevisionDrafter(), Match(), {0: [job]})[0][0]
        assert made.ids == text
        assert sum(cycle.accepted < cycle.drafted for cycle in made.cycles) <= 3
        assert made.accepted > 20


def test_a_substitution_keeps_the_revision_aligned() -> None:
    """One wrong token costs one window: the loop goes on behind it."""
    old = list(range(11, 31))
    old[6] = 40
    made = stream(COUNTING, RevisionDrafter(), Match(), {0: [Job([10], 20, hint=old)]})[0][0]
    assert [cycle.accepted for cycle in made.cycles] == [4, 1, 4, 4, 2]
    assert made.ids == list(range(11, 31))


def test_hints_may_hold_ids_that_the_target_lacks(pair: checks.Pair) -> None:
    truth = autoregress(pair[0], [5, 6], max_new_tokens=6).ids
    for drafter in (RevisionDrafter(), PromptLookupDrafter()):
        job = Job([5, 6], 6, hint=[999, 5, 6, 999, *truth])
        assert stream(pair[0], drafter, Match(), {0: [job, job]})[0][1].ids == truth


def test_prompt_lookup_looks_up_the_hint_too() -> None:
    job = Job([3, 10], 12, hint=list(range(10, 23)))
    made = stream(COUNTING, PromptLookupDrafter(), Match(), {0: [job, job]})[0]
    assert [(text.accepted, text.drafted) for text in made] == 2 * [(9, 9)]


# --- refusals --------------------------------------------------------------------------------


def refused(target: LanguageModel, drafter: Drafter, *jobs: Job, **options: Any) -> str:
    with pytest.raises(ValueError) as error:
        stream(target, drafter, Match(), {3: jobs}, **options)
    return str(error.value)


def test_a_job_longer_than_longest_is_refused() -> None:
    fits, longer = Job([5, 6], 8), Job([5, 6, 7], 8)
    for jobs in ((longer,), (fits, longer)):
        message = refused(COUNTING, PromptLookupDrafter(), *jobs, longest=10)
        assert "the job of slot 3 may grow to 11 tokens, but longest is 10" in message
        assert "raise it, or lower max_new_tokens" in message


def test_the_context_limits_a_job_before_longest_does() -> None:
    target = tiny.language_model(context=16)
    made = stream(
        target, PromptLookupDrafter(), Match(), {0: [Job([5], 99)]}, longest=16, eos_ids=()
    )
    assert (len(made[0][0].ids), made[0][0].finish_reason) == (15, "length")


def test_bad_jobs_are_named(pair: checks.Pair) -> None:
    lookup = PromptLookupDrafter()
    assert "is empty" in refused(pair[0], lookup, Job([], 4))
    assert "max_new_tokens must be at least 1" in refused(pair[0], lookup, Job([5], 0))
    assert "holds id 48" in refused(pair[0], lookup, Job([5, 48], 4))
    assert "seeded random numbers" in refused(pair[0], lookup, Job([5], 4), temperature=1.0)


def test_text_drafter_refuses_to_go_on_with_other_texts() -> None:
    jobs = (Job([10], 4), Job([20], 4))
    assert stream(COUNTING, TextDrafter([[11, 12]]), Match(), {3: jobs[:1]})[3][0].accepted == 2
    message = refused(COUNTING, TextDrafter([[11, 12]]), *jobs)
    assert "TextDrafter works on one batch of texts" in message
    assert "use another drafter, or speculate_batch" in message


def test_revision_drafter_needs_a_token_to_look_up() -> None:
    with pytest.raises(ValueError, match="at least 1 token, got 0"):
        RevisionDrafter(longest=0)


@pytest.mark.parametrize("slot", [0, 5])
def test_a_job_for_a_slot_that_has_not_ended_is_refused(slot: int) -> None:
    """Neither may it replace a running text nor be lost."""

    def feed(ended: Mapping[int, Generation]) -> dict[int, Job]:
        return {slot: Job([5], 3)} if ended else {0: Job([5], 30), 1: Job([6], 3)}

    with pytest.raises(ValueError, match=rf"slots \[1\] have ended, but .* job for slot {slot}"):
        speculate_stream(COUNTING, PromptLookupDrafter(), Match(), feed, longest=40, window=4)


# --- the cache beneath -----------------------------------------------------------------------


def test_a_row_shares_its_memory(pair: checks.Pair) -> None:
    """Reading into one row of three leaves the others as they were."""
    model, cache = pair[0], pair[0].new_cache(3, 8)
    model.read(torch.tensor([[5, 6], [7, 8], [9, 10]]), cache, rows=1)
    before = [buffer.clone() for buffers in cache._buffers for buffer in buffers]
    row = cache.row(1)
    assert (row.lengths, row.capacity) == ([2], 8)
    model.read(torch.tensor([[11, 12]]), row, rows=1)
    assert (row.lengths, cache.lengths) == ([4], [2, 2, 2])
    after = [buffer for buffers in cache._buffers for buffer in buffers]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[[0, 2]], new[[0, 2]])
        assert torch.equal(old[1, :, :2], new[1, :, :2])
        assert not torch.equal(old[1, :, 2:4], new[1, :, 2:4])


@pytest.mark.parametrize("known", [0, 2, 5, 9])
def test_catching_up_is_reading_all_but_the_last_token(pair: checks.Pair, known: int) -> None:
    """The row held another text that shares the first `known` tokens; then both rows go on."""
    text = [5, 9, 33, 17, 20, 41]
    old = [*text[:known], 3, 3, 3, 3][:6] if known < 6 else [*text, 3, 3, 3]
    model, cache = Counted(pair[0]), pair[0].new_cache(2, 16)
    model.read(torch.tensor([[7] * len(old), old]), cache, rows=1)
    model.tokens = 0
    catch_up(model, cache, 1, text, known)
    assert cache.lengths == [len(old), 5]
    assert model.tokens == max(0, 5 - known)
    read = model.read(torch.tensor([[8], text[-1:]]), cache, rows=1).logits[1]
    truth = pair[0].read(torch.tensor([text]), pair[0].new_cache(1, 6), rows=1).logits[0]
    torch.testing.assert_close(read, truth, atol=1e-4, rtol=1e-4)


def test_common_prefix_by_hand() -> None:
    cases = [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2], [1, 2, 3], 2)]
    cases += [([1, 2, 3], [1, 2], 2), ([2, 1], [1, 1], 0), ([1, 2, 3, 4], [1, 9, 3, 4], 1)]
    for a, b, count in cases:
        assert common_prefix(a, b) == common_prefix(b, a) == count
