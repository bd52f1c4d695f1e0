"""Rules: which tokens of a drafted window may stay.

A rule maps a `Window` to a boolean mask over its k draft tokens; the loop keeps the longest
accepted prefix and lets the target add one token. Rules know nothing of models and draw no random
numbers themselves (the loop hands them uniform ones), so they are pure, and a row is judged alike
alone and in a batch. All of them work along the last dimensions, for one window (k,) and for a
batch (B, k).

In the papers' notation p is the target's distribution and q the draft's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from judgelib.head import JudgeHead
    from judgelib.models import LanguageModel


@dataclass(frozen=True)
class Sampling:
    """How a distribution is made of logits.

    Attributes:
        temperature: 0 is greedy.
        top_p: only the smallest set of likeliest tokens with that much probability is kept.
    """

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be 0 (greedy) or a positive number, got {self.temperature}"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}; 1 keeps every token")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def distribution(self, logits: Tensor) -> Tensor:
        """Probabilities (..., V), float32, from logits (..., V)."""
        if self.greedy:
            return torch.zeros_like(logits, dtype=torch.float32).scatter_(
                -1, logits.argmax(-1, keepdim=True), 1.0
            )
        probabilities = (logits.float() / self.temperature).softmax(-1)
        return probabilities if self.top_p == 1 else nucleus(probabilities, self.top_p)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens until their sum reaches `top_p`, renormalised. (..., V)

    >>> nucleus(torch.tensor([0.5, 0.3, 0.2]), 0.6)
    tensor([0.6250, 0.3750, 0.0000])
    """
    ordered, order = probabilities.sort(dim=-1, descending=True)
    needless = ordered.cumsum(-1) - ordered >= top_p  # the tokens before it already suffice
    kept = probabilities.masked_fill(needless.scatter(-1, order, needless), 0.0)
    return kept / kept.sum(-1, keepdim=True)


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The first token whose cumulated probability exceeds u: (..., V), (...) -> (...).

    Tokens of probability 0 are never drawn, not even for u on a boundary.

    >>> draw(torch.tensor([0.25, 0.0, 0.75]), torch.tensor(0.25, dtype=torch.float64))
    tensor(2)
    """
    cumulated = probabilities.double().cumsum(-1)
    total = cumulated[..., -1:]
    point = torch.minimum(
        uniforms.double()[..., None] * total, torch.nextafter(total, torch.zeros_like(total))
    )
    return torch.searchsorted(cumulated, point, right=True).squeeze(-1)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """What p has more of than q, max(p - q, 0), renormalised. (..., V)

    From Leviathan et al. 2211.17192, algorithm 1. Where q is 0 everywhere (nothing was drafted)
    this is p itself.

    >>> residual(torch.tensor([0.5, 0.25, 0.25]), torch.tensor([1.0, 0.0, 0.0]))
    tensor([0.0000, 0.5000, 0.5000])
    """
    left = (p - q).clamp(min=0)
    total = left.sum(-1, keepdim=True)
    return torch.where(total > 0, left / total, p)


@dataclass
class Window:
    """One drafted window that the target has read. A leading batch dimension is welcome.

    Attributes:
        draft_ids: (k,) the proposed tokens.
        target_logits: (k + 1, V). Row i predicts draft token i; the last row predicts the token
            after the window.
        draft_logits: (k, V), or None if no rule reads them or the drafter has none.
        hidden: (k + 1, D), or None if no rule reads them. Row 0 belongs to the last committed
            token, so draft token i is *processed* at row i + 1.
        valid: (k,) False where a row of a batch was given fewer tokens than the others. None: all
            are real.
        sampling: greedy, or temperature and top-p.
        uniforms: (k, rule.draws) uniform numbers in [0, 1) for the rule.
        pick_uniforms: (k + 1,) uniform numbers with which the target's own tokens are drawn; None
            when greedy.
    """

    draft_ids: Tensor
    target_logits: Tensor
    draft_logits: Tensor | None = None
    hidden: Tensor | None = None
    valid: Tensor | None = None
    sampling: Sampling = Sampling()
    uniforms: Tensor | None = None
    pick_uniforms: Tensor | None = None

    @property
    def predictions(self) -> Tensor:
        """(k, V) the target's logits for each draft token."""
        return self.target_logits[..., :-1, :]

    @property
    def reactions(self) -> Tensor:
        """(k, D) the hidden state in which the target has just processed each draft token."""
        if self.hidden is None:
            raise ValueError(
                "this window has no hidden rows; set needs_hidden on the rule that reads them"
            )
        return self.hidden[..., 1:, :]

    @cached_property
    def picks(self) -> Tensor:
        """(k + 1,) the token that the target itself takes at each row: the likeliest, or one drawn
        from p."""
        if self.sampling.greedy or self.pick_uniforms is None:
            return self.target_logits.argmax(-1)
        return draw(self.p, self.pick_uniforms)

    @cached_property
    def p(self) -> Tensor:
        """(k + 1, V) the target's distribution."""
        return self.sampling.distribution(self.target_logits)

    @cached_property
    def q(self) -> Tensor:
        """(k, V) the distribution the draft tokens were drawn from. A drafter without logits is
        certain of its own."""
        if self.draft_logits is not None:
            return self.sampling.distribution(self.draft_logits)
        return torch.zeros_like(self.predictions, dtype=torch.float32).scatter_(
            -1, self.draft_ids[..., None], 1.0
        )


class Needs(NamedTuple):
    """What a rule reads beyond draft tokens and target logits; see `Rule`."""

    draft_logits: bool
    hidden: str | None
    draws: int


class Rule:
    """Says which draft tokens may stay. Subclasses define `accept`; `|` accepts what either side
    accepts.

    Attributes:
        needs_draft_logits: the drafter must return its logits.
        needs_hidden: None, or the hidden rows that the target must return: "post_norm", "pre_norm"
            or "layer_<n>".
        draws: uniform random numbers wanted for each draft token.
    """

    needs_draft_logits: bool = False
    needs_hidden: str | None = None
    draws: int = 0

    @property
    def name(self) -> str:
        """What cycles and tables call the rule."""
        return type(self).__name__

    @property
    def parts(self) -> tuple[Rule, ...]:
        """The rules that this one is composed of."""
        return (self,)

    def needs(self, sampling: Sampling) -> Needs:
        """What has to be computed for this rule under `sampling`."""
        return Needs(self.needs_draft_logits, self.needs_hidden, self.draws)

    def check(self, target: LanguageModel) -> None:
        """Refuse, with a ValueError, a target that this rule was not made for; by default none."""

    def accept(self, window: Window) -> Tensor:
        """(k,) bool: True where the draft token may stay. Entries where `window.valid` is False do
        not matter."""
        raise NotImplementedError

    def votes(self, window: Window) -> Tensor:
        """(k,) int: 0 where the token is rejected, else i if `parts[i - 1]` is the first part that
        accepts it."""
        return self.accept(window).long()

    def replacement(self, window: Window, accepted: Tensor) -> Tensor:
        """() the token that the target adds behind `accepted` () draft tokens: its own pick at that
        row."""
        return window.picks.gather(-1, accepted[..., None]).squeeze(-1)

    def __or__(self, other: Rule) -> Rule:
        return Either(*self.parts, *other.parts)

    def __repr__(self) -> str:
        return self.name


class Either(Rule):
    """Accepts what any of its parts accepts; written `first | second`.

    The token the target adds after a rejection is the first part's affair: in
    `SpeculativeSampling() | TopK(3)` a token is first given its chance by speculative sampling,
    then kept anyway if it is among the target's three likeliest, and if both reject it the
    replacement is drawn from the residual distribution. The result is lossy: its distribution is no
    longer the target's.
    """

    def __init__(self, *parts: Rule) -> None:
        features = {part.needs_hidden for part in parts} - {None}
        if len(features) > 1:
            raise ValueError(
                "rules joined by | must read one kind of hidden state, got "
                f"{sorted(map(str, features))}"
            )
        self._parts = parts

    @property
    def name(self) -> str:
        return " | ".join(part.name for part in self._parts)

    @property
    def parts(self) -> tuple[Rule, ...]:
        return self._parts

    def needs(self, sampling: Sampling) -> Needs:
        needs = [part.needs(sampling) for part in self._parts]
        hidden = next((need.hidden for need in needs if need.hidden), None)
        return Needs(any(n.draft_logits for n in needs), hidden, sum(n.draws for n in needs))

    def check(self, target: LanguageModel) -> None:
        for part in self._parts:
            part.check(target)

    def accept(self, window: Window) -> Tensor:
        return self.votes(window) > 0

    def votes(self, window: Window) -> Tensor:
        votes = torch.zeros_like(window.draft_ids)
        for number, (part, own) in enumerate(self._shares(window), start=1):
            votes = torch.where((votes == 0) & part.accept(own), number, votes)
        return votes

    def replacement(self, window: Window, accepted: Tensor) -> Tensor:
        return self._parts[0].replacement(window, accepted)

    def _shares(self, window: Window) -> list[tuple[Rule, Window]]:
        """Give each part random numbers of its own: with shared ones their chances would not add
        up."""
        sizes = [part.needs(window.sampling).draws for part in self._parts]
        if window.uniforms is None or not any(sizes):
            return [(part, window) for part in self._parts]
        shares = window.uniforms.split(sizes, dim=-1)
        return [
            (part, replace(window, uniforms=share) if size else window)
            for part, share, size in zip(self._parts, shares, sizes, strict=True)
        ]


class Match(Rule):
    """Strict: a draft token stays if it is the token the target itself takes there.

    Greedy, this is the target's argmax, and the output is that of plain greedy decoding. Under
    sampling the target's token is drawn from p, so the output has exactly the target's
    distribution, for any drafter; `SpeculativeSampling` accepts more.
    """

    def accept(self, window: Window) -> Tensor:
        return window.picks[..., :-1] == window.draft_ids


class SpeculativeSampling(Rule):
    """Strict: keep draft token x with probability min(1, p(x) / q(x)), else replace it by a draw
    from the residual.

    The output has exactly the target's distribution (Leviathan et al. 2211.17192, algorithm 1; Chen
    et al. 2302.01318). Greedy, it is `Match`. A drafter without logits is taken to be certain of
    its tokens (q(x) = 1).
    """

    needs_draft_logits = True
    draws = 1

    def needs(self, sampling: Sampling) -> Needs:
        return Needs(False, None, 0) if sampling.greedy else super().needs(sampling)

    def accept(self, window: Window) -> Tensor:
        if window.sampling.greedy:
            return window.picks[..., :-1] == window.draft_ids
        x = window.draft_ids[..., None]
        p_x, q_x = window.p[..., :-1, :].gather(-1, x), window.q.gather(-1, x)
        return acceptable(p_x, q_x, _uniforms(self, window)).squeeze(-1)

    def replacement(self, window: Window, accepted: Tensor) -> Tensor:
        if window.sampling.greedy or window.pick_uniforms is None:
            return super().replacement(window, accepted)
        row = accepted[..., None]
        p, q = _row(window.p, row), _row(_q_or_nothing(window), row)
        return draw(residual(p, q), window.pick_uniforms.gather(-1, row).squeeze(-1))


class TopK(Rule):
    """Lossy: a draft token stays if it is among the target's k likeliest (a baseline in both judge
    papers)."""

    def __init__(self, k: int) -> None:
        if k < 1:
            raise ValueError(f"TopK needs k of at least 1, got {k}")
        self.k = k

    @property
    def name(self) -> str:
        return f"TopK({self.k})"

    def accept(self, window: Window) -> Tensor:
        own = window.predictions.gather(-1, window.draft_ids[..., None])
        better = (window.predictions > own).sum(-1)
        return (better < self.k) & _allowed(window)


class RandomAccept(Rule):
    """Lossy: a draft token stays with probability `rate`, whatever it is. The control that any rule
    must beat."""

    draws = 1

    def __init__(self, rate: float) -> None:
        if not 0 <= rate <= 1:
            raise ValueError(f"RandomAccept needs a rate between 0 and 1, got {rate}")
        self.rate = rate

    @property
    def name(self) -> str:
        return f"RandomAccept({self.rate:g})"

    def accept(self, window: Window) -> Tensor:
        return (_uniforms(self, window).squeeze(-1) < self.rate) & _allowed(window)


class Judge(Rule):
    """Lossy: a draft token stays if a trained head finds the target's hidden state at that token
    acceptable.

    `Match() | Judge(head)` is the rule of Judge Decoding (arXiv 2501.19309): what strict
    verification keeps stays anyway. AutoJudge's "p(important) < t" (arXiv 2504.20039) is
    `Judge(head, 1 - t)`. The head is copied, so training it further changes no rule.

    Args:
        head: reads the target's hidden state after the draft's token.
        threshold: a token is accepted above this probability; 1 accepts none. None: the head's own.
        any_model: let the head judge models that it was not made for; see `JudgeHead.check`.

    Raises:
        ValueError: a threshold outside [0, 1], or a head whose feature no loop can supply.
    """

    def __init__(
        self, head: JudgeHead, threshold: float | None = None, *, any_model: bool = False
    ) -> None:
        threshold = head.config.threshold if threshold is None else threshold
        if not 0 <= threshold <= 1:
            raise ValueError(f"Judge needs a threshold between 0 and 1, got {threshold}")
        if not head.config.decodes:
            raise ValueError(
                f"this head reads the {head.config.reads}, but a decoding loop has the target's "
                "hidden state after the draft's token only; use a head with of='target' and "
                "token='draft' (the others are for studies on stored features)"
            )
        self.head, self.threshold, self.any_model = head, threshold, any_model
        self.needs_hidden = head.config.feature
        self._folded = head.folded()

    @property
    def name(self) -> str:
        return f"Judge({self.threshold:g})"

    def check(self, target: LanguageModel) -> None:
        self.head.check(target, any_model=self.any_model)

    def accept(self, window: Window) -> Tensor:
        reactions = window.reactions
        if self._folded.mean.device != reactions.device:
            with torch.inference_mode(False):  # else the weights could not leave this loop
                self._folded.to(reactions.device)
        # A NaN is not above anything: a token that cannot be judged is rejected.
        return (self._folded.probability(reactions) > self.threshold) & _allowed(window)


def acceptable(p_x: Tensor, q_x: Tensor, uniforms: Tensor) -> Tensor:
    """True with probability min(1, p(x) / q(x)). Strictly less, so that p(x) = 0 is never accepted.

    >>> acceptable(torch.tensor([0.2, 0.2]), torch.tensor([0.4, 0.4]), torch.tensor([0.4, 0.6]))
    tensor([ True, False])
    """
    return uniforms * q_x < p_x


def _allowed(window: Window) -> Tensor:
    """(k,) False where the request forbids the token (a logit of -inf): no lossy rule may let it
    through."""
    return window.predictions.gather(-1, window.draft_ids[..., None]).squeeze(-1) > float("-inf")


def _uniforms(rule: Rule, window: Window) -> Tensor:
    if window.uniforms is None:
        raise ValueError(
            f"{rule.name} needs random numbers: give the window uniforms (..., k, {rule.draws})"
        )
    return window.uniforms


def _row(tensor: Tensor, row: Tensor) -> Tensor:
    """Pick one row of (..., rows, V): (..., 1) -> (..., V)."""
    index = row[..., None].expand(*row.shape[:-1], 1, tensor.shape[-1])
    return tensor.gather(-2, index).squeeze(-2)


def _q_or_nothing(window: Window) -> Tensor:
    """(k + 1, V): q where a token was drafted, zeros where none was, which makes the residual p
    itself."""
    q = window.q if window.valid is None else window.q * window.valid[..., None]
    return torch.nn.functional.pad(q, (0, 0, 0, 1))
