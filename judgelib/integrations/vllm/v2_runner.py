"""The judge in vLLM's V2 model runner, the default on GPUs. **Untested against the real runner**:
it needs Triton and a GPU, which the tests have not had; they drive this class with a stand-in of
the same interface. So an engine has to allow it by name (`allow_untested`).

As in the V1 runner, the judge acts between the request's masks and the acceptance. Here the logits
have one row more for each request (the one behind the window), come processed with temperature,
top-k and top-p, and may be verified in chunks of whole requests.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from judgelib.integrations.vllm.approval import Approver, Rows, contested, lift, real_tokens
from judgelib.integrations.vllm.config import KEY
from judgelib.integrations.vllm.counting import JudgedTokens, owners_of


class _Chunk(NamedTuple):
    """The requests that are verified together. R rows, B requests."""

    first: int  # where its rows begin in the step's
    ends: Tensor  # (B,) cumulated numbers of rows
    slots: list[int]  # B, where the runner keeps each request
    places: Tensor  # (R,) of a row in its request's window
    tokens: Tensor  # (R,) read at each row


class V2Judge:
    """A judge at work in one model runner; made once the model is loaded. Arguments as `V1Judge`.

    Raises:
        ValueError: ways of sampling in which rows and hidden states part.
    """

    def __init__(
        self, runner: Any, approver: Approver, tokens: JudgedTokens | None, group: Any | None = None
    ) -> None:
        _check_runner(runner)
        self.runner, self.approver, self.tokens, self.group = runner, approver, tokens, group
        self._dials: dict[int, float | None] = {}
        self._hidden: Tensor | None = None
        self._next = 0
        self._chunk: _Chunk | None = None
        self._judged: Tensor | None = None

    def attach(self) -> None:
        """Take part in the runner's steps, from now on."""
        runner, rejection = self.runner, self.runner.rejection_sampler
        sampler = rejection.sampler
        self._add, runner.add_requests = runner.add_requests, self._add_requests
        self._sample, runner.sample = runner.sample, self._sample_step
        self._verify, rejection._verify = rejection._verify, self._verify_chunk
        self._process, sampler.apply_sampling_params = sampler.apply_sampling_params, self._rows

    def _add_requests(self, scheduler_output: Any) -> None:
        """As the runner does, and note where the dial stands for each."""
        self._add(scheduler_output)
        for request in scheduler_output.scheduled_new_reqs:
            params = request.sampling_params
            wish = params.extra_args.get(KEY) if params and params.extra_args else None
            slot = self.runner.req_states.req_id_to_index[request.req_id]
            self._dials[slot] = self.approver.dial_of(wish)

    def _sample_step(self, hidden: Tensor, batch: Any, grammar_output: Any) -> Any:
        """As the runner does, with its hidden rows (rows, D) at hand meanwhile."""
        self._hidden, self._next = hidden[batch.logits_indices], 0
        try:
            return self._sample(hidden, batch, grammar_output)
        finally:
            self._hidden = None

    def _verify_chunk(self, *given: Any) -> Any:
        """As the rejection sampler does; `given` as in its `_verify`."""
        logits, ends, slots, places, tokens = (given[at] for at in (0, 4, 6, 8, 10))
        self._chunk = _Chunk(self._next, ends[1:], slots.tolist(), places, tokens)
        self._next += len(logits)
        try:
            processed, sampled, numbers = self._verify(*given)
            self._count(numbers)
        finally:
            self._chunk = self._judged = None
        return processed, sampled, numbers

    def _rows(self, logits: Tensor, *given: Any, **named: Any) -> Tensor:
        """vLLM's processed logits (R, V), with the approved tokens lifted above all others."""
        processed: Tensor = self._process(logits, *given, **named)
        chunk, hidden = self._chunk, self._hidden
        if chunk is None or hidden is None:
            return processed
        dials = [self._dials.get(slot) for slot in chunk.slots]
        if all(dial is None for dial in dials):
            return processed
        # Without anything to process vLLM hands back its raw logits, which logprobs still need.
        made = processed.float() if processed is not logits else logits.to(torch.float32, copy=True)
        ids, real = real_tokens(_drafted(chunk), made.shape[1])
        rows = Rows(ids, made, hidden=_behind(hidden, chunk))
        free, mismatch = contested(made, ids)
        approved = self.approver.approve(rows, owners_of(chunk.ends, len(made)), dials)
        approved = self._agreed(approved & real & free)
        self._judged = approved & mismatch
        return lift(made, ids, approved)

    def _agreed(self, approved: Tensor) -> Tensor:
        """The first tensor-parallel rank's verdict."""
        if self.group is None:
            return approved
        agreed: Tensor = self.group.broadcast(approved.to(torch.uint8), src=0)
        return agreed.bool()

    def _count(self, numbers: Tensor) -> None:
        """Add what was kept; `numbers` (B,) of tokens gained, the target's own among them."""
        if self._judged is None or self.tokens is None or self._chunk is None:
            return
        kept = (numbers - 1)[owners_of(self._chunk.ends, len(self._judged))]
        self.tokens.add((self._judged & (self._chunk.places < kept)).sum())


def _drafted(chunk: _Chunk) -> Tensor:
    """(R,) the draft token that each row predicts; -1 behind a window."""
    following = torch.where(chunk.places > 0, chunk.tokens, -1)
    return torch.nn.functional.pad(following[1:], (0, 1), value=-1)


def _behind(hidden: Tensor, chunk: _Chunk) -> Tensor:
    """(R, D) the hidden row at which the token that a row predicts was processed."""
    rows = chunk.first + torch.arange(len(chunk.places), device=hidden.device) + 1
    return hidden[rows.clamp(max=len(hidden) - 1)]  # the last row predicts no draft token


def _check_runner(runner: Any) -> None:
    if getattr(runner, "batch_sharder", None) is not None:
        raise ValueError(
            f"{KEY} does not work where sampling is split between tensor-parallel ranks: their "
            "rows are in another order than the hidden states; VLLM_USE_V2_MODEL_RUNNER=0 avoids it"
        )
    if runner.speculative_config.enable_adaptive_verification:
        raise ValueError(f"{KEY} does not work with adaptive verification; switch it off")
