"""A judge that accepts everything, against everything a request can forbid.

vLLM's own rejection sampler is driven directly, step after step, with random windows, masks and
sampling parameters. What is forbidden is known from an untouched sampler on the same inputs.
"""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import settings
from torch import Tensor

from judgelib.head import JudgeHead
from judgelib.head_config import HeadConfig, ModelRecord
from judgelib.integrations.vllm.approval import LIFTED, Approver
from judgelib.integrations.vllm.config import JudgeConfig
from judgelib.integrations.vllm.expansion import mend
from judgelib.integrations.vllm.v1_runner import V1Judge

WIDTH, VOCABULARY, REQUESTS, LONGEST = 4, 64, 24, 12
DECISIONS = 100_000
NEVER = float("-inf")


def accept_all() -> Approver:
    record = ModelRecord("target", "LlamaForCausalLM", WIDTH, 2)
    head = JudgeHead.from_linear(
        HeadConfig(target=record, threshold=0.0), weight=torch.zeros(WIDTH), bias=50.0
    )
    return Approver(JudgeConfig(head="accept-all"), head)


def _registered() -> bool:
    """Whether an engine has started in this process; vLLM's search for its kernels, done again,
    trips over what else has been imported meanwhile."""
    return "vllm.v1.worker.cpu_worker" in sys.modules


class Harness:
    """A judged and an untouched rejection sampler, and steps for both."""

    def __init__(self, seed: int) -> None:
        settings()
        from vllm.platforms import current_platform
        from vllm.v1.sample import rejection_sampler
        from vllm.v1.sample.rejection_sampler import RejectionSampler
        from vllm.v1.sample.sampler import Sampler

        if not _registered():
            current_platform.register_triton_kernel_overrides()  # as a worker does
        mend(rejection_sampler)
        self.chance = random.Random(seed)
        self.noise = torch.Generator().manual_seed(seed)
        self.forced: int | None = None
        self.untouched = RejectionSampler(Sampler())
        self.runner = SimpleNamespace(
            rejection_sampler=RejectionSampler(Sampler()),
            sample_tokens=self.sample_tokens,
            input_batch=SimpleNamespace(req_ids=[str(n) for n in range(REQUESTS)]),
            requests={
                str(n): SimpleNamespace(sampling_params=SimpleNamespace(extra_args=None))
                for n in range(REQUESTS)
            },
            execute_model_state=None,
        )
        self._force()
        V1Judge(self.runner, accept_all(), None).attach()
        self._listen()

    def _force(self) -> None:
        """As a thinking budget does, behind all masks."""
        sampler = self.runner.rejection_sampler
        process = sampler.apply_logits_processors

        def forcing(*given: Any) -> Tensor:
            logits: Tensor = process(*given)
            if self.forced is not None:
                logits[:, self.forced] = 1e9
            return logits

        sampler.apply_logits_processors = forcing

    def _listen(self) -> None:
        """Keep the logits as the acceptance will see them."""
        sampler = self.runner.rejection_sampler
        judged = sampler.apply_logits_processors

        def heard(*given: Any) -> Tensor:
            self.seen: Tensor = judged(*given)
            return self.seen.clone()

        sampler.apply_logits_processors = heard

    def sample_tokens(self, step: Any) -> Tensor:
        """The runner's part of a step."""
        output = self.runner.rejection_sampler(
            step.drafts, None, step.logits.clone(), step.sampling
        )
        return output.sampled_token_ids

    def judge(self, step: Any) -> Tensor:
        rows = len(step.logits)
        hidden = torch.randn(rows, WIDTH, generator=self.noise)
        self.runner.execute_model_state = SimpleNamespace(sample_hidden_states=hidden)
        return self.runner.sample_tokens(step)

    def forbidden(self, step: Any) -> Tensor:
        """(N, V) what the request rules out, by vLLM's own account."""
        from vllm.v1.sample.rejection_sampler import apply_sampling_constraints

        logits = step.logits[step.drafts.target_logits_indices].clone()
        logits = self.untouched.apply_logits_processors(logits, step.sampling, step.drafts)
        ends = step.drafts.cu_num_draft_tokens
        return apply_sampling_constraints(logits.clone(), ends, step.sampling) == NEVER

    def step(self) -> Any:
        """Random windows of 0 to LONGEST tokens with random bans on them."""
        counts = [self.chance.randint(0, LONGEST) for _ in range(REQUESTS)]
        counts[0] = max(counts[0], 1)
        windows = [[self.chance.randrange(VOCABULARY) for _ in range(n)] for n in counts]
        drafts = self._drafts(windows)
        rows = sum(counts) + REQUESTS
        logits = 3 * torch.randn(rows, VOCABULARY, generator=self.noise)
        grammar = torch.rand(rows, VOCABULARY, generator=self.noise) < 0.3
        grammar[:, 0] = False  # a row must allow something
        sampling = self._sampling(windows)
        return SimpleNamespace(
            drafts=drafts, logits=logits.masked_fill(grammar, NEVER), sampling=sampling
        )

    def _drafts(self, windows: list[list[int]]) -> Any:
        from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

        drafts = SpecDecodeMetadata.make_dummy(windows, torch.device("cpu"))
        starts = [sum(len(w) + 1 for w in windows[:n]) for n in range(len(windows))]
        drafts.target_logits_indices = torch.tensor(
            [start + at for start, w in zip(starts, windows, strict=True) for at in range(len(w))],
            dtype=torch.int32,
        )
        ends = [start + len(w) for start, w in zip(starts, windows, strict=True)]
        drafts.bonus_logits_indices = torch.tensor(ends, dtype=torch.int32)
        return drafts

    def _sampling(self, windows: list[list[int]]) -> Any:
        from vllm.v1.sample.metadata import SamplingMetadata

        mixed = self.chance.random() < 0.5
        temperature = torch.tensor([self.chance.choice([0.0, 0.7, 1.5]) for _ in windows])
        allowed = torch.rand(REQUESTS, VOCABULARY, generator=self.noise) < 0.2
        allowed[:, 0] = False
        ones, zeros = torch.ones(REQUESTS), torch.zeros(REQUESTS)
        return SamplingMetadata(
            temperature=temperature if mixed else None,
            all_greedy=not mixed,
            all_random=False,
            top_p=torch.full((REQUESTS,), 0.8) if mixed else None,
            top_k=torch.full((REQUESTS,), 9, dtype=torch.int32) if mixed else None,
            generators={},
            max_num_logprobs=None,
            no_penalties=False,
            prompt_token_ids=torch.full((REQUESTS, 3), VOCABULARY),
            frequency_penalties=0.3 * ones,
            presence_penalties=zeros,
            repetition_penalties=1.1 * ones,
            output_token_ids=[[1, 2] for _ in windows],
            allowed_token_ids_mask=allowed,
            bad_words_token_ids={n: self._bad_words(w) for n, w in enumerate(windows) if n % 2},
            logitsprocs=self._minimum(),
            spec_token_ids=windows,
        )

    def _bad_words(self, window: list[int]) -> list[list[int]]:
        """One-token words, and a longer one that the window itself spells."""
        spelled = [window[:2]] if len(window) > 1 else []
        return [[self.chance.randrange(1, VOCABULARY)] for _ in range(4)] + spelled

    def _minimum(self) -> Any:
        from vllm.v1.sample.logits_processor import LogitsProcessors
        from vllm.v1.sample.logits_processor.builtin import MinTokensLogitsProcessor

        made = MinTokensLogitsProcessor(None, torch.device("cpu"), False)
        made.min_toks = {
            n: (self.chance.randint(1, 14), [1, 2], {3, 4}, False) for n in range(0, REQUESTS, 3)
        }
        return LogitsProcessors([made])


@pytest.fixture(scope="module")
def tally() -> dict[str, int]:
    """Decisions about masked tokens, and how many of them let one through."""
    harness, found = (
        Harness(seed=7),
        {"masked": 0, "lifted": 0, "kept": 0, "accepted": 0, "rows": 0},
    )
    while found["masked"] < DECISIONS:
        step = harness.step()
        ids = step.drafts.draft_token_ids.long()
        masked = harness.forbidden(step).gather(1, ids[:, None]).squeeze(1)
        sampled = harness.judge(step)
        lifted = harness.seen.gather(1, ids[:, None]).squeeze(1) == LIFTED
        found["rows"] += len(ids)
        found["masked"] += int(masked.sum())
        found["lifted"] += int((lifted & masked).sum())
        found["accepted"] += int((lifted & ~masked).sum())
        found["kept"] += masked_tokens_kept(step, sampled, masked)
    print(found)
    return found


def masked_tokens_kept(step: Any, sampled: Tensor, masked: Tensor) -> int:
    """Of the draft tokens that came out, those that were masked."""
    count, start = 0, 0
    for number, length in enumerate(step.drafts.num_draft_tokens):
        kept = int((sampled[number] != -1).sum()) - 1
        count += int(masked[start : start + kept].sum())
        start += length
    return count


def test_no_masked_token_is_accepted_in_100_000_decisions(tally: dict[str, int]) -> None:
    assert tally["masked"] >= DECISIONS
    assert tally["lifted"] == 0
    assert tally["kept"] == 0


def test_every_other_token_is_accepted(tally: dict[str, int]) -> None:
    """Else the test above would show nothing."""
    assert tally["accepted"] == tally["rows"] - tally["masked"] > 10_000


def test_the_first_masked_token_ends_a_window() -> None:
    harness = Harness(seed=11)
    for _ in range(40):
        step = harness.step()
        ids = step.drafts.draft_token_ids.long()
        masked = harness.forbidden(step).gather(1, ids[:, None]).squeeze(1)
        sampled, start = harness.judge(step), 0
        for number, length in enumerate(step.drafts.num_draft_tokens):
            own = masked[start : start + length].tolist()
            clear = own.index(True) if True in own else length
            assert int((sampled[number] != -1).sum()) - 1 == clear
            assert sampled[number, :clear].tolist() == ids[start : start + clear].tolist()
            start += length


def test_a_forced_token_stands_against_the_judge() -> None:
    """vLLM ends an exhausted thinking budget by a logit of 1e9 and masks nothing else."""
    harness = Harness(seed=5)
    step = harness.step()
    step.sampling.all_greedy, step.sampling.temperature = True, None
    step.sampling.top_k = step.sampling.top_p = None
    harness.forced = 7
    sampled = harness.judge(step)
    drafts, start = step.drafts.draft_token_ids.tolist(), 0
    for number, length in enumerate(step.drafts.num_draft_tokens):
        if length:
            assert sampled[number, 0] == 7
            assert (sampled[number, 1] == -1) == (drafts[start] != 7)
        start += length
