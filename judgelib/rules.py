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
from functools import cached_property, reduce
from operator import and_
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from judgelib.sampling import Sampling, acceptable, draw, residual

if TYPE_CHECKING:
    from judgelib.head import JudgeHead
    from judgelib.models import LanguageModel


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
        committed: () how many tokens of the answer stand before the window, or None if no rule
            asks.
    """

    draft_ids: Tensor
    target_logits: Tensor
    draft_logits: Tensor | None = None
    hidden: Tensor | None = None
    valid: Tensor | None = None
    sampling: Sampling = Sampling()
    uniforms: Tensor | None = None
    pick_uniforms: Tensor | None = None
    committed: Tensor | None = None

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
    def allowed(self) -> Tensor:
        """(k,) False where the request forbids the token (a logit of -inf): no lossy rule may let
        it through."""
        return _of_drafted(self.predictions, self) > float("-inf")

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

    @cached_property
    def belief(self) -> Tensor:
        """(k, V) how likely the target finds each token, for rules that weigh likelihoods: at the
        request's temperature, at 1 if it is greedy (where `p` would be certain)."""
        return self.tempered.softmax(-1)

    @property
    def tempered(self) -> Tensor:
        """(k, V) the logits of `belief`, float32."""
        return _tempered(self.predictions, self.sampling)

    @cached_property
    def draft_belief(self) -> Tensor:
        """(k, V) the same of the draft.

        Raises:
            ValueError: the drafter gave no logits.
        """
        if self.draft_ids.shape[-1] == 0:  # the last token of a text is never drafted
            return self.belief
        if self.draft_logits is None:
            raise ValueError(
                "this rule weighs the draft's likelihoods, but the drafter has none; use a "
                "ModelDrafter"
            )
        return _tempered(self.draft_logits, self.sampling).softmax(-1)


def _tempered(logits: Tensor, sampling: Sampling) -> Tensor:
    logits = logits.float()
    return logits if sampling.greedy else logits / sampling.temperature


class Needs(NamedTuple):
    """What a rule reads beyond draft tokens and target logits; see `Rule`."""

    draft_logits: bool
    hidden: str | None
    draws: int
    committed: bool = False


class Rule:
    """Says which draft tokens may stay. Subclasses define `accept`; `|` accepts what either side
    accepts, `&` what both accept.

    Attributes:
        needs_draft_logits: the drafter must return its logits.
        needs_hidden: None, or the hidden rows that the target must return: "post_norm", "pre_norm"
            or "layer_<n>".
        needs_committed: the rule asks how much of the answer is there already.
        draws: uniform random numbers wanted for each draft token.
        strict: what the rule keeps leaves the output as the target's own.
    """

    needs_draft_logits: bool = False
    needs_hidden: str | None = None
    needs_committed: bool = False
    draws: int = 0
    strict: bool = False

    @property
    def name(self) -> str:
        """What cycles and tables call the rule."""
        return type(self).__name__

    @property
    def parts(self) -> tuple[Rule, ...]:
        """The rules that this one is composed of."""
        return (self,)

    @property
    def inner(self) -> tuple[Rule, ...]:
        """The rules that this one asks, one step down; a simple rule asks none."""
        return ()

    def needs(self, sampling: Sampling) -> Needs:
        """What has to be computed for this rule under `sampling`."""
        return Needs(self.needs_draft_logits, self.needs_hidden, self.draws, self.needs_committed)

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
        _refuse_strict_prefix(self, other)
        return Either(*self.parts, *other.parts)

    def __and__(self, other: Rule) -> Rule:
        _refuse_strict_prefix(self, other)
        return Both(self, other)

    def __repr__(self) -> str:
        return self.name


def _refuse_strict_prefix(*rules: Rule) -> None:
    if any(isinstance(rule, StrictPrefix) for rule in rules):
        raise ValueError(
            "a strict prefix holds for a whole rule: write StrictPrefix(length, first | second)"
        )


class _Joined(Rule):
    """Several rules that look at one window, each with random numbers of its own."""

    def __init__(self, *rules: Rule) -> None:
        features = {rule.needs_hidden for rule in rules} - {None}
        if len(features) > 1:
            raise ValueError(
                "rules that are joined must read one kind of hidden state, got "
                f"{sorted(map(str, features))}"
            )
        self._rules = rules
        self.needs_hidden = next(iter(features), None)

    @property
    def inner(self) -> tuple[Rule, ...]:
        return self._rules

    def needs(self, sampling: Sampling) -> Needs:
        needs = [rule.needs(sampling) for rule in self._rules]
        return Needs(
            any(need.draft_logits for need in needs),
            self.needs_hidden,
            sum(need.draws for need in needs),
            any(need.committed for need in needs),
        )

    def check(self, target: LanguageModel) -> None:
        for rule in self._rules:
            rule.check(target)

    def _shares(self, window: Window) -> list[tuple[Rule, Window]]:
        """Give each rule random numbers of its own: with shared ones their chances would not add
        up."""
        sizes = [rule.needs(window.sampling).draws for rule in self._rules]
        if window.uniforms is None or not any(sizes):
            return [(rule, window) for rule in self._rules]
        shares = window.uniforms.split(sizes, dim=-1)
        return [
            (rule, replace(window, uniforms=share) if size else window)
            for rule, share, size in zip(self._rules, shares, sizes, strict=True)
        ]


class Either(_Joined):
    """Accepts what any of its parts accepts; written `first | second`.

    The token the target adds after a rejection is the first part's affair: in
    `SpeculativeSampling() | TopK(3)` a token is first given its chance by speculative sampling,
    then kept anyway if it is among the target's three likeliest, and if both reject it the
    replacement is drawn from the residual distribution. The result is lossy: its distribution is no
    longer the target's.
    """

    @property
    def name(self) -> str:
        return " | ".join(part.name for part in self._rules)

    @property
    def parts(self) -> tuple[Rule, ...]:
        return self._rules

    def accept(self, window: Window) -> Tensor:
        return self.votes(window) > 0

    def votes(self, window: Window) -> Tensor:
        (first, own), *others = self._shares(window)
        votes = first.accept(own).long()
        for number, (part, own) in enumerate(others, start=2):
            if votes.device.type == "cpu" and votes.all():
                break  # nobody is left to ask; on a GPU, asking everybody is cheaper than to look
            votes = torch.where(votes > 0, votes, number * part.accept(own))
        return votes

    def replacement(self, window: Window, accepted: Tensor) -> Tensor:
        return self._rules[0].replacement(window, accepted)


class Both(_Joined):
    """Accepts what all of its rules accept; written `first & second`.

    `Match() | (Judge(head) & Ratio(0.01))` is a judge with a floor: what the target finds all but
    impossible stays out, however acceptable it looks once it stands there.
    """

    @property
    def name(self) -> str:
        names = [(rule.name, isinstance(rule, Either)) for rule in self._rules]
        return " & ".join(f"({name})" if either else name for name, either in names)

    def accept(self, window: Window) -> Tensor:
        return reduce(and_, (rule.accept(own) for rule, own in self._shares(window)))


class StrictPrefix(Rule):
    """The first `length` tokens of every answer strictly, what follows by a lossy rule.

    From SecureSD (arXiv 2610.08678): lossy rules lose the first tokens' safety first, and a strict
    prefix of one token restores most of it. Strict is the rule's first part; one that does not
    begin strictly is given `Match`.
    """

    def __init__(self, length: int, rule: Rule) -> None:
        if length < 0:
            raise ValueError(f"StrictPrefix needs a length of at least 0 tokens, got {length}")
        self.length = length
        self.rule = rule if rule.parts[0].strict else Match() | rule

    @property
    def name(self) -> str:
        return f"StrictPrefix({self.length}, {self.rule.name})"

    @property
    def parts(self) -> tuple[Rule, ...]:
        return self.rule.parts

    @property
    def inner(self) -> tuple[Rule, ...]:
        return (self.rule,)

    def needs(self, sampling: Sampling) -> Needs:
        return self.rule.needs(sampling)._replace(committed=True)

    def check(self, target: LanguageModel) -> None:
        self.rule.check(target)

    def accept(self, window: Window) -> Tensor:
        return self.votes(window) > 0

    def votes(self, window: Window) -> Tensor:
        if window.committed is None:
            raise ValueError(f"{self.name} needs to know how many tokens are committed")
        votes = self.rule.votes(window)
        places = torch.arange(votes.shape[-1], device=votes.device) + window.committed[..., None]
        return votes * ((votes == 1) | (places >= self.length))

    def replacement(self, window: Window, accepted: Tensor) -> Tensor:
        return self.rule.replacement(window, accepted)


class Match(Rule):
    """Strict: a draft token stays if it is the token the target itself takes there.

    Greedy, this is the target's argmax, and the output is that of plain greedy decoding. Under
    sampling the target's token is drawn from p, so the output has exactly the target's
    distribution, for any drafter; `SpeculativeSampling` accepts more.
    """

    strict = True

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
    strict = True

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
        return (better < self.k) & window.allowed


class Typical(Rule):
    """Lossy: a draft token stays if the target finds it likely enough, and the less is asked the
    less certain the target is: p(x) > min(epsilon, alpha * exp(-H(p))).

    Typical acceptance of Medusa (arXiv 2401.10774), whose defaults are epsilon = 0.09 and alpha =
    0.3.
    """

    def __init__(self, epsilon: float = 0.09, alpha: float = 0.3) -> None:
        if not (0 <= epsilon <= 1 and 0 <= alpha <= 1):
            raise ValueError(
                f"Typical needs epsilon and alpha between 0 and 1, got {epsilon} and {alpha}"
            )
        self.epsilon, self.alpha = epsilon, alpha

    @property
    def name(self) -> str:
        return f"Typical({self.epsilon:g}, {self.alpha:g})"

    def accept(self, window: Window) -> Tensor:
        entropy = torch.special.entr(window.belief).sum(-1)  # in nats
        enough = (self.alpha * torch.exp(-entropy)).clamp(max=self.epsilon)
        return (_of_drafted(window.belief, window) > enough) & window.allowed


class Ratio(Rule):
    """Lossy: a draft token stays if it is at least `tau` times as likely as the likeliest token.

    The relaxed acceptance of TensorRT-LLM; MARS (arXiv 2601.15498) and AdaptiveSpec (arXiv
    2609.02897) rest on the same margin. tau = 1 keeps ties with the likeliest only.
    """

    def __init__(self, tau: float) -> None:
        if not 0 <= tau <= 1:
            raise ValueError(f"Ratio needs tau between 0 and 1, got {tau}")
        self.tau = tau

    @property
    def name(self) -> str:
        return f"Ratio({self.tau:g})"

    def accept(self, window: Window) -> Tensor:
        logits = window.tempered
        # Two logits say how likely one token is beside another; no softmax over all is needed.
        own = (_of_drafted(logits, window) - logits.amax(-1)).exp()
        return (own >= self.tau) & window.allowed


class Divergence(Rule):
    """Lossy: a draft token stays where the two models' distributions differ by less than `limit`.

    Fuzzy speculative decoding (arXiv 2502.20704); JuDi (arXiv 2601.04766) argues that a linear
    judge comes close to a threshold on the KL divergence. The token itself is not looked at.

    Args:
        limit: in nats; 0 keeps nothing.
        kind: "js" (Jensen-Shannon, at most ln 2) or "kl" (of the draft from the target, KL(p || q),
            without bound).
    """

    needs_draft_logits = True

    def __init__(self, limit: float, kind: str = "js") -> None:
        if kind not in ("js", "kl"):
            raise ValueError(f"Divergence knows the kinds 'js' and 'kl', got {kind!r}")
        if not limit >= 0:
            raise ValueError(f"Divergence needs a limit of at least 0 nats, got {limit}")
        self.limit, self.kind = limit, kind

    @property
    def name(self) -> str:
        return f"{self.kind.upper()}({self.limit:g})"

    def accept(self, window: Window) -> Tensor:
        p, q = window.belief, window.draft_belief
        if self.kind == "kl":
            apart = relative_entropy(p, q)
        else:
            middle = (p + q) / 2
            apart = (relative_entropy(p, middle) + relative_entropy(q, middle)) / 2
        return (apart < self.limit) & window.allowed


def relative_entropy(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats: (..., V), (..., V) -> (...). Infinite where q rules out what p allows.

    >>> relative_entropy(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.75, 0.0]))
    tensor(0.1438)
    """
    # Equal distributions may come out a rounding error below 0.
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1).clamp(min=0)


class Deferred(Rule):
    """Lossy: a mismatch stays if the target was not sure there and the two agree again behind it.

    FLy (arXiv 2511.22972): the entropy of the target's three likeliest tokens is at least
    `entropy`, and none of the next `quiet` draft tokens is a mismatch. What a window is too short
    to show is not granted.

    Args:
        quiet: draft tokens that must match behind the mismatch.
        entropy: in nats, of the three likeliest renormalised (at most ln 3).
    """

    def __init__(self, quiet: int = 6, entropy: float = 0.3) -> None:
        if quiet < 1:
            raise ValueError(f"Deferred needs at least 1 quiet token, got {quiet}")
        if not entropy >= 0:
            raise ValueError(f"Deferred needs an entropy of at least 0 nats, got {entropy}")
        self.quiet, self.entropy = quiet, entropy

    @property
    def name(self) -> str:
        return f"Deferred({self.quiet}, {self.entropy:g})"

    def accept(self, window: Window) -> Tensor:
        likeliest = window.belief.topk(min(3, window.belief.shape[-1]), -1).values
        unsure = torch.special.entr(likeliest / likeliest.sum(-1, keepdim=True)).sum(-1)
        mismatch = window.picks[..., :-1] != window.draft_ids
        if window.valid is not None:
            mismatch = mismatch | ~window.valid
        so_far = torch.nn.functional.pad(mismatch.long(), (0, self.quiet), value=1).cumsum(-1)
        calm = so_far[..., self.quiet :] == so_far[..., : -self.quiet]
        return (unsure >= self.entropy) & calm & window.allowed


class Ensemble(Rule):
    """Lossy: verify against w * p + (1 - w) * q instead of p.

    The static ensemble of DIVERSED (arXiv 2604.07622), which transformers has as
    `assistant_ensemble_weight`. Greedy: a token stays if it is the mixture's likeliest, and the
    mixture's likeliest replaces it if not. Sampling: as `SpeculativeSampling`, with the mixture.

    Args:
        weight: w, the target's share; 1 is strict, 0 keeps whatever is drafted.
    """

    needs_draft_logits = True
    draws = 1

    def __init__(self, weight: float) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"Ensemble needs a weight between 0 and 1, got {weight}")
        self.weight = weight

    @property
    def name(self) -> str:
        return f"Ensemble({self.weight:g})"

    def needs(self, sampling: Sampling) -> Needs:
        return super().needs(sampling)._replace(draws=0 if sampling.greedy else 1)

    def accept(self, window: Window) -> Tensor:
        if window.sampling.greedy:
            mixture = self._mix(window.belief, window.draft_belief)
            return (mixture.argmax(-1) == window.draft_ids) & window.allowed
        x = window.draft_ids[..., None]
        p_x, q_x = window.p[..., :-1, :].gather(-1, x), window.q.gather(-1, x)
        kept = acceptable(self._mix(p_x, q_x), q_x, _uniforms(self, window))
        return kept.squeeze(-1) & window.allowed

    def replacement(self, window: Window, accepted: Tensor) -> Tensor:
        row = accepted[..., None]
        if not window.sampling.greedy and window.pick_uniforms is not None:
            # What the mixture has more of than q is what p has more of than q, by the factor w.
            p, q = _row(window.p, row), _row(_q_or_nothing(window), row)
            return draw(residual(p, q), window.pick_uniforms.gather(-1, row).squeeze(-1))
        mixture = self._mix(window.belief, window.draft_belief)
        allowed = window.predictions > float("-inf")
        picks = mixture.masked_fill(~allowed, -1.0).argmax(-1)
        if window.valid is not None:  # behind a shorter draft the target speaks alone
            picks = torch.where(window.valid, picks, window.picks[..., :-1])
        return torch.cat([picks, window.picks[..., -1:]], -1).gather(-1, row).squeeze(-1)

    def _mix(self, p: Tensor, q: Tensor) -> Tensor:
        return self.weight * p + (1 - self.weight) * q


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
        return (_uniforms(self, window).squeeze(-1) < self.rate) & window.allowed


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

    def probability(self, window: Window) -> Tensor:
        """(k,) p(acceptable) of each draft token, float32."""
        reactions = window.reactions
        if self._folded.mean.device != reactions.device:
            with torch.inference_mode(False):  # else the weights could not leave this loop
                self._folded.to(reactions.device)
        return self._folded.probability(reactions)

    def accept(self, window: Window) -> Tensor:
        # A NaN is not above anything: a token that cannot be judged is rejected.
        return (self.probability(window) > self.threshold) & window.allowed


def _of_drafted(values: Tensor, window: Window) -> Tensor:
    """(k,) the entries of (k, V) that belong to the draft's tokens."""
    return values.gather(-1, window.draft_ids[..., None]).squeeze(-1)


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
