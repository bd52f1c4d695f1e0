"""Decoding one prompt while keeping what the explorer shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from judgelib.annotation.items import pieces
from judgelib.decoding import Cycle, speculate
from judgelib.drafting import Drafter
from judgelib.explorer.observed import Observed, Ranked, Seen
from judgelib.explorer.spelling import spelling
from judgelib.explorer.tokens import DECIDED, Choice, Record, Rejected, Token
from judgelib.models import LanguageModel
from judgelib.rules import Judge, Match, Rule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXT = 8
"""Tokens before a rejected draft that tell how it is written out."""


def record(
    target: LanguageModel,
    drafter: Drafter,
    rule: Rule,
    prompt_ids: Sequence[int],
    *,
    title: str = "",
    prompt: str = "",
    looking_on: Judge | None = None,
    top: int = 5,
    **decoding: Any,
) -> Record:
    """Decode a prompt and keep, token by token, how the text came about.

    The text is the one that `speculate` gives without being watched.

    Args:
        title: what the page calls it; the rule's name if it is empty.
        prompt: the question as a reader is to see it; the decoded prompt if it is empty.
        looking_on: a judge that is asked what it would have said, where `rule` has none: then the
            page can try thresholds on strict verification too.
        top: alternatives of each model at each place.
        decoding: further arguments of `speculate` (window, max_new_tokens, temperature, ...).

    Raises:
        ValueError: as `speculate` and `Observed` do.
    """
    watched = Observed(rule, looking_on=looking_on, top=top)
    found = speculate(target, drafter, watched, prompt_ids, **decoding)
    history = _History(target.tokenizer, watched, found.ids)
    return Record(
        title=title or rule.name,
        rule=rule.name,
        prompt=prompt or target.tokenizer.decode(list(prompt_ids)),
        tokens=tuple(history.tokens(found.cycles)),
        threshold=history.threshold,
        temperature=decoding.get("temperature", 0.0) or 1.0,
        finish=found.finish_reason,
        drafted=found.drafted,
        accepted=found.accepted,
    )


@dataclass(frozen=True)
class _Place:
    """A place of one window: the cycle's number and what it was, the place's number in it."""

    number: int
    cycle: Cycle
    seen: Seen
    index: int

    @property
    def origin(self) -> str:
        if self.index < self.cycle.accepted:
            return "matched" if self.seen.strict[self.index] else "judged"
        return "replaced" if self.index < self.cycle.drafted else "bonus"

    @property
    def probability(self) -> float | None:
        """The judge's of the drafted token; None for one that cannot be judged."""
        if self.seen.probability is None:
            return None
        found = self.seen.probability[self.index]
        return None if math.isnan(found) else found


class _History:
    """Turns what was seen into tokens with their reasons."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, watched: Observed, ids: Sequence[int]
    ) -> None:
        self.tokenizer, self.watched, self.ids = tokenizer, watched, list(ids)
        self._spellings: dict[int, str] = {}
        self.asked = watched.asked
        self.threshold = None
        if watched.judge:  # one that only looks on has accepted nothing
            self.threshold = watched.judge.threshold if watched.asked else 1.0

    def tokens(self, cycles: Sequence[Cycle]) -> Iterator[Token]:
        texts = iter(pieces(self.tokenizer, self.ids))
        start = 0
        for number, (cycle, seen) in enumerate(zip(cycles, self.watched.seen, strict=True), 1):
            for index in range(cycle.tokens):
                place = _Place(number, cycle, seen, index)
                yield self._token(place, start + index, next(texts))
            start += cycle.tokens

    def _token(self, place: _Place, position: int, text: str) -> Token:
        index, seen = place.index, place.seen
        token, origin = self.ids[position], place.origin
        drafted, kept = origin in DECIDED, origin in ("matched", "judged")
        return Token(
            text=text,
            id=token,
            name=self._spelled(token),
            origin=origin,
            reason=getattr(self, f"_why_{origin}")(place),
            cycle=place.number,
            by=place.cycle.accepted_by[index] if kept else None,
            probability=place.probability if drafted else None,
            least=drafted and seen.least[index],
            most=drafted and seen.most[index],
            rejected=self._rejected(place, position) if origin == "replaced" else None,
            target=self._choices(seen.target[index]),
            draft=self._choices(seen.draft[index]) if index < len(seen.draft) else (),
        )

    def _choices(self, ranked: Ranked) -> tuple[Choice, ...]:
        return tuple(Choice(self._spelled(token), token, round(p, 6)) for token, p in ranked)

    def _spelled(self, token: int) -> str:
        if token not in self._spellings:
            self._spellings[token] = spelling(self.tokenizer, token)
        return self._spellings[token]

    def _rejected(self, place: _Place, position: int) -> Rejected:
        before = self.ids[max(0, position - CONTEXT) : position]
        drafted = place.seen.draft_ids[place.index : place.cycle.drafted]
        written = pieces(self.tokenizer, [*before, *drafted])[len(before) :]
        special = set(self.tokenizer.all_special_ids)  # they add no text, but a reader wants them
        behind = [
            self._spelled(token) if token in special else text
            for token, text in zip(drafted[1:], written[1:], strict=True)
        ]
        return Rejected(written[0] or self._spelled(drafted[0]), drafted[0], "".join(behind))

    # Reasons, in sentences

    def _why_matched(self, place: _Place) -> str:
        by = place.cycle.accepted_by[place.index]
        if by == Match().name:
            return "The draft's token is the target's own choice, so strict verification keeps it."
        return f"Strict verification would keep the draft's token; kept by {by}."

    def _why_judged(self, place: _Place) -> str:
        by, p = place.cycle.accepted_by[place.index], place.probability
        said = "Strict verification would reject the draft's token, "
        if self.asked and p is not None and not place.seen.least[place.index]:
            return said + f"but {self._finds(p)}, above the threshold {self.threshold:g} ({by})."
        return said + f"but {by} keeps it."

    def _why_replaced(self, place: _Place) -> str:
        p, most = place.probability, place.seen.most[place.index]
        if place.seen.strict[place.index]:  # by a rule without a strict part
            return f"{self.watched.name} rejects the draft's token, which strict would keep."
        said = "Strict verification rejects the draft's token"
        if self.watched.judge is None or p is None:
            return f"{said}, and so does {self.watched.name}: the target's token replaces it."
        if not self.asked:
            return f"{said}: the target's token replaces it. Asked all the same, {self._finds(p)}."
        if not most:
            return f"{said}. {self._finds(p, 'T')}, but no threshold would let it through the rule."
        return f"{said}, and {self._finds(p)}, which is not above the threshold {self.threshold:g}."

    def _why_bonus(self, place: _Place) -> str:
        if not place.cycle.drafted:
            return "Nothing was drafted here, so the target wrote this token."
        return (
            f"The whole window stayed ({place.cycle.drafted} drafted tokens), and reading it told "
            "the target's next token too."
        )

    @staticmethod
    def _finds(p: float, first: str = "t") -> str:
        return f"{first}he judge finds it acceptable with probability {p:.4f}"
