"""Which draft tokens the judge lets through, in vLLM's layout: the rows of all requests' windows
one under the other, one for each draft token.

The decision is `judgelib.rules`' own, so both engines judge alike. Strict verification stays
vLLM's: a token that it keeps anyway is none of the judge's business, so the rules here are those of
`rulebook` without their strict part. Knows torch, not vLLM.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from judgelib.head import JudgeHead
from judgelib.integrations.vllm.config import JudgeConfig
from judgelib.rulebook import KINDS
from judgelib.rules import Judge, Ratio, Rule, Window

LIFTED = 1e30
"""An approved token's logit: above all others, and finite in float32 at vLLM's lowest temperature
(1e-2), so that the softmax is certain of it and not NaN."""

FORCED = 1e6
"""No model's logit is that large. vLLM forces a token (the end of an exhausted thinking budget) by
a logit of 1e9, which stands against any judge."""


@dataclass
class Rows(Window):
    """Draft tokens of many windows: (N,) tokens, (N, V) logits, (N, D) hidden states.

    Row n of `target_logits` predicts token n; row n of `hidden` has processed it.

    Attributes:
        temperatures: (N,) of each row's request, 1 if it is greedy; None: all are greedy.
    """

    temperatures: Tensor | None = None

    @property
    def predictions(self) -> Tensor:
        return self.target_logits

    @property
    def reactions(self) -> Tensor:
        if self.hidden is None:
            raise ValueError("a head needs the hidden states of its rows, got none")
        return self.hidden

    @property
    def tempered(self) -> Tensor:
        logits = self.target_logits.float()
        return logits if self.temperatures is None else logits / self.temperatures[:, None]


class Approver:
    """The configured judge.

    Args:
        config: of the engine.
        head: the one that it names, if it names one.

    Attributes:
        dial: where it stands for requests that do not say otherwise.

    Raises:
        ValueError: a head whose feature no decoding loop can supply.
    """

    def __init__(self, config: JudgeConfig, head: JudgeHead | None = None) -> None:
        self.config = config
        self._judge = None if head is None else Judge(head, config.threshold)
        dial = config.setting if self._judge is None else self._judge.threshold
        assert dial is not None  # a rule without a setting is refused
        self.dial = float(dial)

    @property
    def reads_hidden(self) -> bool:
        return self._judge is not None

    def dial_of(self, wish: object) -> float | None:
        """Where the dial stands for a request; see `JudgeConfig.dial_of`."""
        return self.config.dial_of(wish, self.dial)

    def rule(self, dial: float) -> Rule:
        """The lossy part of the rule at `dial`."""
        if self._judge is None:
            assert self.config.rule is not None
            return KINDS[self.config.rule].make(dial)
        judge = copy.copy(self._judge)  # shares the head's weights
        judge.threshold = dial
        return judge if self.config.floor is None else judge & Ratio(self.config.floor)

    def approve(self, rows: Rows, owners: Tensor, dials: Sequence[float | None]) -> Tensor:
        """(N,) bool: the draft tokens that may stay whatever strict verification says.

        Args:
            rows: of all requests.
            owners: (N,) which request a row belongs to.
            dials: one a request; None: no judge.
        """
        different = set(dials)
        approved = torch.zeros_like(rows.draft_ids, dtype=torch.bool)
        for dial in different - {None}:
            assert dial is not None
            accepted = self.rule(dial).accept(rows)
            if len(different) > 1:
                mine = torch.tensor([own == dial for own in dials], device=owners.device)
                accepted = accepted & mine[owners]
            approved = approved | accepted
        return approved


def real_tokens(draft_ids: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """(N,) ids that can be looked up, and (N,) False where there was none: vLLM fills short drafts
    up with -1.

    >>> real_tokens(torch.tensor([5, -1]), 10)
    (tensor([5, 0]), tensor([ True, False]))
    """
    ids = draft_ids.long().clamp(0, vocabulary - 1)
    return ids, ids == draft_ids


def contested(logits: Tensor, draft_ids: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) False where vLLM forces a token, and (N,) True where the draft's is not the target's
    likeliest.

    >>> contested(torch.tensor([[1.0, 2.0], [1.0, 1e9]]), torch.tensor([0, 0]))
    (tensor([ True, False]), tensor([True, True]))
    """
    best = logits.max(1).values
    return best < FORCED, logits.gather(1, draft_ids[:, None]).squeeze(1) < best


def lift(logits: Tensor, draft_ids: Tensor, approved: Tensor) -> Tensor:
    """Make the approved tokens certain, in place: (N, V), (N,), (N,) -> (N, V).

    Greedy or sampling, strict verification then keeps them, and draws the random numbers that it
    would have drawn anyway.
    """
    places = draft_ids[:, None]
    values = logits.gather(1, places)
    return logits.scatter_(1, places, values.masked_fill(approved[:, None], LIFTED))
