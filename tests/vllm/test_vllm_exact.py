"""What the judge leaves alone is untouched, and what it decides is what judgelib decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from conftest import HEAD, NGRAM, WINDOW, accepted, generate, greedy, ids_of, judged_tokens
from near_ties import is_near_tie, parted

from judgelib.decoding import Generation, speculate_batch
from judgelib.drafting import ModelDrafter
from judgelib.head import JudgeHead
from judgelib.models import LanguageModel
from judgelib.rules import Judge, Match, Ratio, Rule

Family = tuple[LanguageModel, LanguageModel]
TOKENS = 160


def unexplained(
    family: Family,
    prompts: Sequence[Sequence[int]],
    one: Sequence[Sequence[int]],
    other: Sequence[Sequence[int]],
    head: JudgeHead | None = None,
    threshold: float = 0.0,
) -> list[int]:
    """Prompts whose two texts part where nothing was near a tie; prints how many part at all."""
    places = [parted(a, b) for a, b in zip(one, other, strict=True)]
    different = [number for number, place in enumerate(places) if place is not None]
    print(f"{len(different)} of {len(places)} texts part")
    return [
        number
        for number in different
        if not is_near_tie(
            *family, head, threshold, prompts[number], (one[number], other[number]),
            places[number] or 0,
        )
    ]  # fmt: skip


def test_strict_speculation_equals_plain_decoding(
    plain: Any, strict: Any, judging: Any, family: Family, prompts: list[list[int]]
) -> None:
    expected = ids_of(generate(plain, prompts, greedy(TOKENS)))
    for llm, wish, count in ((strict, None, 200), (judging, False, 40), (judging, 1.0, 40)):
        some = prompts[:: 200 // count]
        found = ids_of(generate(llm, some, greedy(TOKENS, judge=wish)))
        same = expected[:: 200 // count]
        assert unexplained(family, some, same, found) == []
        assert sum(a != b for a, b in zip(same, found, strict=True)) <= 2


def test_a_judge_that_is_off_counts_nothing(judging: Any, prompts: list[list[int]]) -> None:
    before = judged_tokens(judging)
    generate(judging, prompts[:20], greedy(60, judge=False))
    assert judged_tokens(judging) == before
    generate(judging, prompts[:20], greedy(60))
    assert judged_tokens(judging) > before


def continued(
    family: Family, rule: Rule, prompts: list[list[int]], first: Sequence[int]
) -> list[Generation]:
    """judgelib's own loop behind the first token, which vLLM takes from the target alone."""
    heads = [[*prompt, token] for prompt, token in zip(prompts, first, strict=True)]
    done: list[Generation] = []
    for start in range(0, len(heads), 40):
        some = heads[start : start + 40]
        done += speculate_batch(
            family[0], ModelDrafter(family[1]), rule, some, window=WINDOW,
            max_new_tokens=TOKENS - 1,
        )  # fmt: skip
    return done


@pytest.mark.parametrize(("judge", "count"), [("head", 200), ("floored", 50), ("ratio", 50)])
def test_the_judge_accepts_what_judgelib_accepts(
    judge: str, count: int, engine: Any, judging: Any, family: Family, prompts: list[list[int]]
) -> None:
    prompts = prompts[:: 200 // count]
    head, threshold, rule, llm = None, 0.0, Match() | Ratio(0.05), judging
    if judge == "ratio":
        llm = engine(judge={"rule": "ratio", "setting": 0.05})
    else:
        head = JudgeHead.from_pretrained(HEAD)
        threshold = 0.3 if judge == "floored" else head.threshold
        lossy = Judge(head, threshold)
        rule = Match() | (lossy & Ratio(0.02)) if judge == "floored" else Match() | lossy
    if judge == "floored":
        llm = engine(judge={"head": str(HEAD), "threshold": 0.3, "floor": 0.02})
    before = judged_tokens(llm)
    done = generate(llm, prompts, greedy(TOKENS))
    counted = judged_tokens(llm) - before
    expected = continued(family, rule, prompts, [one.token_ids[0] for one in done])
    texts, own = [ids[1:] for ids in ids_of(done)], [one.ids for one in expected]
    heads = [[*p, one.token_ids[0]] for p, one in zip(prompts, done, strict=True)]
    assert unexplained(family, heads, own, texts, head, threshold) == []
    same = [number for number, ids in enumerate(own) if ids == texts[number]]
    assert len(same) >= 0.98 * count
    for number in same:  # the last verification may have kept tokens behind the end
        cycles = [cycle.accepted for cycle in expected[number].cycles]
        assert accepted(done[number])[:-1] == cycles[:-1]
    mismatches = sum(one.mismatches for one in expected)
    print(f"judged: {counted} in vLLM, {mismatches} in judgelib")
    assert mismatches > 2 * count
    # vLLM counts, as in its own statistics, what the last window kept behind the end of the text.
    assert 0.97 * mismatches <= counted <= mismatches + WINDOW * count


def test_always_accepting_reproduces_the_draft(
    judging: Any, family: Family, prompts: list[list[int]]
) -> None:
    """At threshold 0 every window is kept whole."""
    done = generate(judging, prompts[:30], greedy(120, judge=0.0))
    assert {kept for one in done for kept in accepted(one)} == {WINDOW}


def test_never_accepting_is_strict(strict: Any, judging: Any, prompts: list[list[int]]) -> None:
    """At threshold 1 nothing that strict verification rejects is kept: the same verifications."""
    some = prompts[:20]
    one = generate(strict, some, greedy(100))
    other = generate(judging, some, greedy(100, judge=1.0))
    same = [a.token_ids == b.token_ids for a, b in zip(one, other, strict=True)]
    assert sum(same) >= 19
    for alike, a, b in zip(same, one, other, strict=True):
        assert not alike or accepted(a) == accepted(b)


def test_thresholds_are_ordered(judging: Any, prompts: list[list[int]]) -> None:
    """The looser the judge, the fewer verifications."""
    steps = []
    for wish in (1.0, 0.95, 0.5, 0.1, 0.0):
        done = generate(judging, prompts[::8], greedy(100, judge={"threshold": wish}))
        steps.append(sum(len(accepted(one)) for one in done))
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] < 0.75 * steps[0]


def test_ngram_drafts_are_judged(engine: Any, plain: Any, prompts: list[list[int]]) -> None:
    llm = engine(judge={"head": str(HEAD)}, proposer=NGRAM, window=8)
    some = prompts[::8]
    expected = ids_of(generate(plain, some, greedy(100)))
    off = ids_of(generate(llm, some, greedy(100, judge=False)))
    assert sum(a != b for a, b in zip(expected, off, strict=True)) <= 1
    before = judged_tokens(llm)
    loose = generate(llm, some, greedy(100, judge=0.0))
    assert judged_tokens(llm) > before
    kept = sum(sum(accepted(one)) for one in loose)
    drafted = sum(sum(one.spec_decode_metrics.per_step_drafted) for one in loose)
    assert kept == drafted > 0


def test_the_counter_stands_beside_vllms_own(judging: Any, prompts: list[list[int]]) -> None:
    generate(judging, prompts[:5], greedy(60))
    found = {metric.name: metric for metric in judging.get_metrics()}
    assert "vllm:spec_decode_num_accepted_tokens" in found
    assert found["vllm:spec_decode_num_judged_tokens"].value >= judged_tokens(judging) > 0
