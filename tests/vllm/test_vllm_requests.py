"""Everything a request can ask for, together with the judge."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch
from conftest import HEAD, WINDOW, accepted, engine_arguments, generate, greedy, ids_of, sampling

from judgelib.models import LanguageModel

Family = tuple[LanguageModel, LanguageModel]
EOS = 3
ALL = 0.0  # a threshold at which the judge accepts everything


def test_requests_of_one_batch_do_not_influence_each_other(
    judging: Any, prompts: list[list[int]]
) -> None:
    wishes = [None, False, 0.9, ALL, {"threshold": 0.3}, True, 1.0, 0]
    some = prompts[::9][:16]
    params = [greedy(80, judge=wishes[number % len(wishes)]) for number in range(len(some))]
    together = ids_of(generate(judging, some, params))
    alone = [
        ids_of(generate(judging, [prompt], one))[0]
        for prompt, one in zip(some, params, strict=True)
    ]
    assert sum(a != b for a, b in zip(together, alone, strict=True)) <= 1  # near-ties


def test_prompts_that_join_a_running_batch(judging: Any, prompts: list[list[int]]) -> None:
    """More requests than fit: prefills and verifications share steps, windows of 0 among them."""
    some = prompts[:48]
    params = [greedy(30 + number % 40, judge=[None, False][number % 2]) for number in range(48)]
    together = ids_of(generate(judging, some, params))
    for number in (0, 1, 33, 47):
        assert together[number] == ids_of(generate(judging, [some[number]], params[number]))[0]


@pytest.mark.parametrize("wish", ["loose", 1.5, -0.1, [0.5], {"setting": 0.5}, {}, float("nan")])
def test_a_wrong_wish_is_refused_and_harms_nobody(
    wish: object, judging: Any, prompts: list[list[int]]
) -> None:
    with pytest.raises(ValueError, match="judge|threshold"):
        generate(judging, prompts[:1], greedy(5, judge=wish))
    assert len(ids_of(generate(judging, prompts[:1], greedy(5)))[0]) == 5


# --- what a request forbids


def test_bad_words_are_never_accepted(judging: Any, prompts: list[list[int]]) -> None:
    tokenizer = judging.get_tokenizer()
    free = generate(judging, prompts[:12], greedy(100, judge=ALL))
    common = {token for one in free for token in one.token_ids} - {EOS}
    words = sorted({tokenizer.decode([token]).strip() for token in common} - {""})[:40]
    words = [word for word in words if word.isalpha()]
    assert any(word in one.text for word in words for one in free)
    params = greedy(100, judge=ALL, bad_words=words)
    params.update_from_tokenizer(tokenizer)
    banned = [ids for ids in params.bad_words_token_ids]
    for ids in ids_of(generate(judging, prompts[:12], greedy(100, judge=ALL, bad_words=words))):
        for word in banned:
            runs = [ids[at : at + len(word)] for at in range(len(ids))]
            assert word not in runs


def test_only_allowed_ids_are_accepted(judging: Any, prompts: list[list[int]]) -> None:
    allowed = list(range(3, 1024, 2))
    done = generate(judging, prompts[:12], greedy(60, judge=ALL, allowed_token_ids=allowed))
    found = {token for ids in ids_of(done) for token in ids}
    assert found <= set(allowed)
    assert sum(sum(accepted(one)) for one in done) > 0


def test_min_tokens_hold_against_an_eager_end(judging: Any, prompts: list[list[int]]) -> None:
    for least in (90, 97, 120):
        done = generate(judging, prompts[:12], greedy(160, judge=ALL, min_tokens=least))
        assert all(len(one.token_ids) >= least for one in done)


@pytest.mark.parametrize("kind", ["choice", "regex", "json"])
def test_structured_outputs_stay_structured(
    kind: str, judging: Any, prompts: list[list[int]]
) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    schema = {
        "type": "object",
        "properties": {"answer": {"type": "integer"}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    grammar = {
        "choice": StructuredOutputsParams(choice=["Answer: 7", "Answer: 12"]),
        "regex": StructuredOutputsParams(regex=r"The [a-z]{3,12} has [0-9]{1,3} apples\."),
        "json": StructuredOutputsParams(json=json.dumps(schema)),
    }[kind]
    params = greedy(80, judge=ALL, structured_outputs=grammar)
    for one in generate(judging, prompts[:6], params):
        if one.finish_reason != "stop":
            continue  # cut off by the length, as without a judge
        if kind == "json":
            assert set(json.loads(one.text)) == {"answer"}
        elif kind == "regex":
            assert re.fullmatch(r"The [a-z]{3,12} has [0-9]{1,3} apples\.", one.text)
        else:
            assert one.text in ("Answer: 7", "Answer: 12")


# --- where a text ends


def test_max_tokens_at_every_offset_of_a_window(judging: Any, prompts: list[list[int]]) -> None:
    whole = ids_of(generate(judging, prompts[:1], greedy(60)))[0]
    counts = list(range(1, 2 * WINDOW + 3))
    done = generate(judging, [prompts[0]] * len(counts), [greedy(count) for count in counts])
    assert [list(one.token_ids) for one in done] == [whole[:count] for count in counts]
    assert {one.finish_reason for one in done} == {"length"}


@pytest.mark.parametrize("wish", [None, ALL])
def test_stop_ids_at_every_offset_of_a_window(
    wish: float | None, judging: Any, prompts: list[list[int]]
) -> None:
    whole = ids_of(generate(judging, prompts[:1], greedy(60, judge=wish)))[0]
    firsts = [at for at, token in enumerate(whole) if token not in (EOS, *whole[:at])][:30]
    params = [greedy(60, judge=wish, stop_token_ids=[whole[at]]) for at in firsts]
    done = generate(judging, [prompts[0]] * len(firsts), params)
    assert len({at % (WINDOW + 1) for at in firsts}) > 10
    for at, one in zip(firsts, done, strict=True):
        assert list(one.token_ids) == whole[: at + 1]
        assert (one.finish_reason, one.stop_reason) == ("stop", whole[at])


def test_eos_at_every_offset_of_a_window(judging: Any, prompts: list[list[int]]) -> None:
    """Texts of all lengths, each ended by the target's own end token and nothing behind it."""
    done = generate(judging, prompts[:60], greedy(200, logprobs=0))
    ended = [one for one in done if one.finish_reason == "stop"]
    assert len(ended) > 50
    offsets = set()
    for one in ended:
        ids = list(one.token_ids)
        assert ids.index(EOS) == len(ids) - 1 == len(one.logprobs) - 1
        offsets.add((sum(accepted(one)[:-1]) + len(accepted(one)) - len(ids)) % (WINDOW + 1))
    assert len(offsets) >= 10


def test_stop_strings_end_text_and_ids_together(judging: Any, prompts: list[list[int]]) -> None:
    free = generate(judging, prompts[:6], greedy(100, judge=ALL))
    cases = [
        (prompt, whole, whole.text[start : start + 3])
        for prompt, whole in zip(prompts[:6], free, strict=True)
        for start in range(5, min(60, len(whole.text) - 4), 11)
    ]
    params = [greedy(100, judge=ALL, stop=[stop]) for _, _, stop in cases]
    done = generate(judging, [prompt for prompt, _, _ in cases], params)
    assert len(cases) > 20
    for (_, whole, stop), one in zip(cases, done, strict=True):
        assert one.text == whole.text[: whole.text.index(stop)]
        assert one.finish_reason == "stop"
        assert list(one.token_ids) == list(whole.token_ids)[: len(one.token_ids)]


def test_ignore_eos_and_the_end_of_the_context(judging: Any, prompts: list[list[int]]) -> None:
    prompt = (prompts[0] * 20)[:490]
    one = generate(judging, [prompt], greedy(100, ignore_eos=True))[0]
    assert len(one.token_ids) == 512 - 490
    assert one.finish_reason == "length"


# --- logprobs, penalties, seeds


def test_logprobs_are_the_targets_own(
    judging: Any, family: Family, prompts: list[list[int]]
) -> None:
    target, low = family[0], 0
    for prompt, one in zip(
        prompts[:8], generate(judging, prompts[:8], greedy(60, logprobs=3)), strict=True
    ):
        ids = list(one.token_ids)
        assert len(one.logprobs) == len(ids)
        read = torch.tensor([[*prompt, *ids[:-1]]])
        logits = target.read(read, target.new_cache(1, read.shape[1]), rows=len(ids)).logits[0]
        expected = logits.float().log_softmax(-1)
        for row, token, shown in zip(expected, ids, one.logprobs, strict=True):
            assert shown[token].logprob == pytest.approx(float(row[token]), abs=2e-3)
            best = max(shown.values(), key=lambda entry: entry.logprob)
            assert best.logprob == pytest.approx(float(row.max()), abs=2e-3)
            low += shown[token].rank > 1
    assert low > 5  # judged tokens, shown as unlikely as the target found them


@pytest.mark.parametrize(
    "penalty",
    [{"repetition_penalty": 1.3}, {"presence_penalty": 1.0}, {"frequency_penalty": 0.7}],
)
def test_penalties_are_vllms_where_the_judge_is_strict(
    penalty: dict[str, float], strict: Any, judging: Any, prompts: list[list[int]]
) -> None:
    expected = ids_of(generate(strict, prompts[:12], greedy(60, **penalty)))
    for wish in (False, 1.0):
        found = ids_of(generate(judging, prompts[:12], greedy(60, judge=wish, **penalty)))
        assert sum(a != b for a, b in zip(expected, found, strict=True)) <= 1
    lossy = ids_of(generate(judging, prompts[:12], greedy(60, **penalty)))
    assert lossy != expected


def test_a_seed_gives_the_same_text_alone_and_in_a_batch(
    strict: Any, judging: Any, prompts: list[list[int]]
) -> None:
    def seeded(number: int, wish: object) -> Any:
        return sampling(temperature=0.8, top_p=0.95, seed=number, max_tokens=60, judge=wish)

    some = prompts[:16]
    for wish in (None, False):
        params = [seeded(number, wish) for number in range(len(some))]
        together = ids_of(generate(judging, some, params))
        assert together == ids_of(generate(judging, some, params))
        alone = [ids_of(generate(judging, [p], s))[0] for p, s in zip(some, params, strict=True)]
        assert sum(a != b for a, b in zip(together, alone, strict=True)) <= 1
    expected = ids_of(generate(strict, some, params))
    assert together == expected  # off: vLLM's own sampling, number for number


def test_a_judge_that_never_accepts_samples_as_vllm_does(
    strict: Any, judging: Any, prompts: list[list[int]]
) -> None:
    """Approvals leave the random numbers where they were: the same seed, the same text."""
    for extra in ({}, {"top_k": 20}, {"top_p": 0.9}):

        def params(wish: object, extra: dict[str, float] = extra) -> list[Any]:
            return [
                sampling(temperature=1.0, seed=number, max_tokens=50, judge=wish, **extra)
                for number in range(12)
            ]

        expected = ids_of(generate(strict, prompts[:12], params(None)))
        assert ids_of(generate(judging, prompts[:12], params(1.0))) == expected
        assert ids_of(generate(judging, prompts[:12], params(0.5))) != expected


def test_sampled_windows_are_kept_whole_at_threshold_0(
    judging: Any, prompts: list[list[int]]
) -> None:
    params = sampling(temperature=0.7, seed=1, max_tokens=80, judge=ALL)
    done = generate(judging, prompts[:10], params)
    assert {kept for one in done for kept in accepted(one)} == {WINDOW}


def test_top_k_keeps_its_promise(judging: Any, family: Family, prompts: list[list[int]]) -> None:
    """A request that draws from the 2 likeliest tokens gets no third, however sure the judge is."""
    params = sampling(temperature=1.0, top_k=2, seed=5, max_tokens=50, judge=ALL, logprobs=0)
    for one in generate(judging, prompts[:12], params):
        for shown, token in zip(one.logprobs, one.token_ids, strict=True):
            assert shown[token].rank <= 2
            assert math.isfinite(shown[token].logprob)


# --- refusals at the start of a real engine


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"additional_config": {"judge": {"head": str(HEAD), "delta": 0.5}}}, "got delta"),
        (
            {"speculative_config": None, "per_request_spec_decode_metrics": "none"},
            "no speculative decoding",
        ),
        ({"model": str(HEAD.parents[3] / "sandbox" / "draft")}, "made for the target"),
        ({"logprobs_mode": "processed_logprobs"}, "processed_logprobs"),
    ],
)
def test_a_wrong_engine_is_refused_before_it_loads(change: dict[str, Any], message: str) -> None:
    from conftest import settings

    settings()
    from vllm import LLM

    given = {**engine_arguments(judge={"head": str(HEAD)}), **change}
    if "model" in change:
        given["speculative_config"] = {"method": "ngram", "num_speculative_tokens": 4}
    with pytest.raises(ValueError, match=message):
        LLM(**given)
