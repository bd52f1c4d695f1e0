"""The judge in vLLM's V1 model runner.

vLLM reads all windows in one pass, computes logits for their rows, and gives these to its rejection
sampler, which applies the request's penalties and masks, accepts, and replaces. The judge acts
between the two: after the masks, so that it cannot lift what the request forbids, and before the
acceptance, which it lets see an approved token as certain. Everything else stays vLLM's: random
numbers, replacements, logprobs (computed from the rows as they were before).
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor

from judgelib.integrations.vllm.approval import Approver, Rows, contested, lift, real_tokens
from judgelib.integrations.vllm.config import KEY
from judgelib.integrations.vllm.counting import JudgedTokens, kept_rows, owners_of

logger = logging.getLogger(__name__)


class _Step(NamedTuple):
    """What the judge remembers between its verdict and the sampler's result."""

    judged: Tensor  # (N,) approved, and not the target's likeliest
    ends: Tensor  # (B,) cumulated numbers of draft tokens


class V1Judge:
    """A judge at work in one model runner; made once the model is loaded.

    Args:
        runner: vLLM's `GPUModelRunner`, or its CPU subclass.
        approver: decides.
        tokens: counts what it has kept; None in ranks whose tokens another rank counts.
        group: vLLM's tensor-parallel group if it has several ranks, whose first one decides for
            all; None otherwise.
    """

    def __init__(
        self, runner: Any, approver: Approver, tokens: JudgedTokens | None, group: Any | None = None
    ) -> None:
        self.runner, self.approver, self.tokens, self.group = runner, approver, tokens, group
        self._hidden: Tensor | None = None
        self._step: _Step | None = None

    def attach(self) -> None:
        """Take part in the runner's steps, from now on."""
        sampler = self.runner.rejection_sampler
        self._process, sampler.apply_logits_processors = sampler.apply_logits_processors, self._rows
        sampler.register_forward_hook(self._count)
        self._sample, self.runner.sample_tokens = self.runner.sample_tokens, self._sample_tokens

    def _sample_tokens(self, grammar_output: Any) -> Any:
        """As the runner does, with its hidden rows (rows, D) at hand meanwhile."""
        state = self.runner.execute_model_state
        self._hidden = None if state is None else state.sample_hidden_states
        try:
            return self._sample(grammar_output)
        finally:
            self._hidden = self._step = None

    def _rows(self, logits: Tensor, sampling: Any, drafts: Any) -> Tensor:
        """vLLM's processed logits (N, V), with the approved tokens lifted above all others.

        Args:
            sampling: the `SamplingMetadata` of the batch.
            drafts: its `SpecDecodeMetadata`.
        """
        logits = self._process(logits, sampling, drafts)
        if self._hidden is None:  # a profiling run: there are no requests
            return logits
        dials = self._dials(len(drafts.num_draft_tokens))
        if all(dial is None for dial in dials):
            return logits
        ends = drafts.cu_num_draft_tokens
        owners = owners_of(ends, len(logits))
        ids, real = real_tokens(drafts.draft_token_ids, logits.shape[1])
        rows = self._judged_rows(ids, logits, sampling, drafts, owners)
        free, mismatch = contested(logits, ids)
        approved = self.approver.approve(rows, owners, dials) & real & free
        approved = self._agreed(approved & _within(logits, ids, sampling, ends))
        self._step = _Step(approved & mismatch, ends)
        return lift(logits, ids, approved)

    def _dials(self, requests: int) -> list[float | None]:
        """Where the dial stands for each request of the batch."""
        return [self._dial(name) for name in self.runner.input_batch.req_ids[:requests]]

    def _dial(self, name: str) -> float | None:
        params = self.runner.requests[name].sampling_params
        wish = params.extra_args.get(KEY) if params and params.extra_args else None
        try:
            return self.approver.dial_of(wish)
        except ValueError as error:  # refused on arrival, unless it came by an unknown door
            logger.warning("request %s is decoded strictly: %s", name, error)
            return None

    def _judged_rows(
        self, ids: Tensor, logits: Tensor, sampling: Any, drafts: Any, owners: Tensor
    ) -> Rows:
        assert self._hidden is not None
        # Draft token i is predicted by its row and processed at the next one.
        read = drafts.target_logits_indices + 1
        return Rows(
            ids,
            logits,
            hidden=self._hidden[read] if self.approver.reads_hidden else None,
            temperatures=None if sampling.all_greedy else _temperatures(sampling)[owners],
        )

    def _agreed(self, approved: Tensor) -> Tensor:
        """The verdict of the first tensor-parallel rank, whose hidden states may differ from the
        others' in the last bit."""
        if self.group is None:
            return approved
        agreed: Tensor = self.group.broadcast(approved.to(torch.uint8), src=0)
        return agreed.bool()

    def _count(self, module: Any, arguments: Any, output: Any) -> None:
        if self._step is None or self.tokens is None:
            return
        judged, ends = self._step
        _, kept = kept_rows(output.sampled_token_ids, ends, len(judged))
        self.tokens.add((judged & kept).sum())


def _temperatures(sampling: Any) -> Tensor:
    """(B,) 1 where a request is greedy."""
    temperature: Tensor = sampling.temperature
    return torch.where(temperature == 0, 1.0, temperature)


def _within(logits: Tensor, ids: Tensor, sampling: Any, ends: Tensor) -> Tensor | bool:
    """(N,) False where the request's top-k or top-p rules the token out: what it may not draw, the
    judge may not keep."""
    if sampling.all_greedy or (sampling.top_k is None and sampling.top_p is None):
        return True
    from vllm.v1.sample.rejection_sampler import apply_sampling_constraints

    cut = apply_sampling_constraints(logits.clone(), ends, sampling)
    return cut.gather(1, ids[:, None]).squeeze(1) > float("-inf")
