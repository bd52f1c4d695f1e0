"""Looking over a rule's shoulder: what it saw in each window, at no cost to other decodings.

`Observed` is itself a rule. The loop does not know that it is watched; the rule inside decides as
it would alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from judgelib.rules import Judge, Match, Needs, Rule, Window
from judgelib.sampling import Sampling

if TYPE_CHECKING:
    from judgelib.models import LanguageModel

Ranked = list[tuple[int, float]]
"""Token ids with their probabilities, the likeliest first."""


@dataclass(frozen=True)
class Seen:
    """One window of k drafted tokens as the rule saw it.

    Attributes:
        draft_ids: k of them.
        votes: see `Rule.votes`.
        strict: whether strict verification keeps each.
        probability: the judge's of each; None without a judge.
        least, most: whether each would stay if the judge accepted nothing, or everything.
        target: k + 1 rows, what the target found likeliest at each place.
        draft: k rows of the draft's; none if the drafter has no probabilities.
    """

    draft_ids: list[int]
    votes: list[int]
    strict: list[bool]
    probability: list[float] | None
    least: list[bool]
    most: list[bool]
    target: list[Ranked]
    draft: list[Ranked]


class Observed(Rule):
    """Decides as `rule` does and keeps what was seen, window by window, in `seen`. For one text.

    Args:
        rule: decides.
        looking_on: a judge that is asked what it would say though the rule does not ask it.
        top: likeliest tokens kept for each place.

    Raises:
        ValueError: a judge looks on at a rule that has one, or reads another hidden state than the
            rule does.
    """

    def __init__(self, rule: Rule, *, looking_on: Judge | None = None, top: int = 5) -> None:
        found = list(judges(rule))
        if looking_on is not None and found:
            raise ValueError(f"{rule.name} has a judge of its own; give no other to look on")
        # With several judges there is no one threshold to try.
        self.judge = found[0] if len(found) == 1 else looking_on
        self.rule, self.top = rule, top
        self.seen: list[Seen] = []
        self.asked = bool(found)  # else the judge only looks on
        self._shut, self._open = _with_threshold(rule, 1.0), _with_threshold(rule, -1.0)
        self._votes: Tensor = torch.empty(0)

    @property
    def name(self) -> str:
        return self.rule.name

    @property
    def parts(self) -> tuple[Rule, ...]:
        return self.rule.parts

    @property
    def inner(self) -> tuple[Rule, ...]:
        return (self.rule,)

    def needs(self, sampling: Sampling) -> Needs:
        need = self.rule.needs(sampling)
        wanted = self.judge.needs_hidden if self.judge else None
        if wanted and need.hidden and wanted != need.hidden:
            raise ValueError(
                f"the judge that looks on reads {wanted}, but {self.rule.name} reads "
                f"{need.hidden}; use a head of the same feature"
            )
        return need._replace(draft_logits=True, hidden=need.hidden or wanted)

    def check(self, target: LanguageModel) -> None:
        self.rule.check(target)
        if self.judge:
            self.judge.check(target)

    def accept(self, window: Window) -> Tensor:
        return self.votes(window) > 0

    def votes(self, window: Window) -> Tensor:
        self._votes = self.rule.votes(window)
        return self._votes

    def replacement(self, window: Window, accepted: Tensor) -> Tensor:
        added = self.rule.replacement(window, accepted)
        self.seen.append(self._look(window, int(accepted), int(added)))
        return added

    def _look(self, window: Window, accepted: int, added: int) -> Seen:
        votes = self._votes
        strict = votes == 1 if self.rule.parts[0].strict else Match().accept(window)
        least, most = self._reach(window)
        own = [[token] for token in window.draft_ids[0].tolist()]
        beside = [*own, []]
        beside[accepted] = [*beside[accepted], added]
        draft = window.draft_logits
        return Seen(
            draft_ids=window.draft_ids[0].tolist(),
            votes=votes[0].tolist(),
            strict=strict[0].tolist(),
            probability=self.judge.probability(window)[0].tolist() if self.judge else None,
            least=least[0].tolist(),
            most=most[0].tolist(),
            target=self._ranked(window.target_logits[0], window.sampling, beside),
            draft=[] if draft is None else self._ranked(draft[0], window.sampling, beside[:-1]),
        )

    def _reach(self, window: Window) -> tuple[Tensor, Tensor]:
        """(1, k) what would stay if the judge accepted nothing, and if everything."""
        if self.asked or self.judge is None:
            return self._shut.votes(window) > 0, self._open.votes(window) > 0
        kept = self._votes > 0
        return kept, kept | _with_threshold(self.judge, -1.0).accept(window)

    def _ranked(
        self, logits: Tensor, sampling: Sampling, beside: Sequence[Sequence[int]]
    ) -> list[Ranked]:
        """The likeliest of each row of (rows, V), and the tokens that are asked for."""
        belief = (logits.float() / (sampling.temperature or 1.0)).softmax(-1)
        likeliest = belief.topk(min(self.top, belief.shape[-1]), -1).indices.tolist()
        rows = []
        for place, ids in enumerate(likeliest):
            wanted = list(dict.fromkeys([*ids, *beside[place]]))
            shares = belief[place, wanted].tolist()
            rows.append(sorted(zip(wanted, shares, strict=True), key=lambda pair: -pair[1]))
        return rows


def judges(rule: Rule) -> Iterator[Judge]:
    """The judges within a rule."""
    if isinstance(rule, Judge):
        yield rule
    for part in rule.inner:
        yield from judges(part)


def _with_threshold(rule: Rule, threshold: float) -> Rule:
    """A copy whose judges accept above this; below 0 they accept whatever they can judge."""
    made = deepcopy(rule)
    for judge in judges(made):
        judge.threshold = threshold
    return made
