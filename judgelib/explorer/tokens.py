"""What the explorer shows: one text, token by token, with what was decided at each place.

Plain data, made by `recording.record` from a decoding and by `views.labelled` from token labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from judgelib.figures import BLACK, BLUE, GREEN, GREY, ORANGE, SKY, VERMILION


class Origin(NamedTuple):
    """One way in which a token got into a text: never told by colour alone."""

    color: str
    mark: str
    label: str
    meaning: str


ORIGINS: dict[str, Origin] = {
    "matched": Origin(
        GREY, "", "draft matched", "the draft's token, which strict verification keeps too"
    ),
    "judged": Origin(
        ORANGE,
        "✓",
        "accepted anyway",
        "the draft's token, which strict verification would reject and a lossy rule keeps; the "
        "number is the judge's probability that it is acceptable",
    ),
    "replaced": Origin(
        BLUE,
        "✗",
        "rejected and replaced",
        "the target's token in the place of the draft's, which is struck through before it; what "
        "the draft had written behind it was thrown away",
    ),
    "bonus": Origin(
        SKY, "+", "bonus", "the target's own token behind a window that was kept as a whole"
    ),
    "acceptable": Origin(
        GREEN, "", "acceptable (1)", "a token that a judge should accept: label 1"
    ),
    "unacceptable": Origin(
        VERMILION,
        "✗",
        "not acceptable (0)",
        "label 0; if a struck-through token stands before it, that is the one that was labelled, "
        "and the target's replaced it",
    ),
    "ignored": Origin(
        BLACK, "", "ignored (−1)", "a token without a label that counts: nothing is learnt from it"
    ),
}
DECIDED = ("matched", "judged", "replaced")
"""Origins at whose place a rule decided about a draft token."""


class Choice(NamedTuple):
    """A token that a model might have written, with its probability."""

    text: str
    id: int
    probability: float


class Rejected(NamedTuple):
    """A draft token that did not stay, and what the draft had written behind it."""

    text: str
    id: int
    behind: str = ""


@dataclass(frozen=True)
class Token:
    """One token of the text.

    Attributes:
        text: what it adds to the text; empty for a special token and for all but the last of the
            tokens that share a character.
        name: the token by itself: its text, `⟨E2 82⟩` for bytes that are no whole character, or a
            special token's name.
        origin: a key of `ORIGINS`.
        cycle: the target call that added it, from 1; 0 where there was none.
        reason: why it stands there, in a sentence.
        by: the rule that kept it, or None.
        probability: the judge's p(acceptable) of the draft's token at this place, kept or rejected;
            None if no judge was asked.
        least, most: whether the draft's token would stay if the judge accepted nothing, or
            everything that it is asked about.
        rejected: the draft's token that it replaced.
        target, draft: what the models found likeliest here, and the tokens in question; the
            likeliest first.
    """

    text: str
    id: int
    name: str
    origin: str
    reason: str
    cycle: int = 0
    by: str | None = None
    probability: float | None = None
    least: bool = False
    most: bool = False
    rejected: Rejected | None = None
    target: tuple[Choice, ...] = ()
    draft: tuple[Choice, ...] = ()

    def kept_at(self, threshold: float) -> bool:
        """Whether the draft's token at this place would stay at another threshold of the judge."""
        # Compared in float32, as the rule compares.
        above = self.probability is not None and np.float32(self.probability) > np.float32(
            threshold
        )
        return self.least or (self.most and bool(above))

    def flips_at(self, threshold: float) -> bool:
        """Whether that decision would be another one."""
        decided = self.origin in DECIDED
        return decided and self.kept_at(threshold) != (self.origin != "replaced")


@dataclass(frozen=True)
class Record:
    """One text with its history.

    Attributes:
        title: what the page calls it.
        rule: the rule's name, or what kind of labels these are.
        prompt: the question as a reader sees it.
        tokens: one for each token of the text.
        threshold: the judge's; 1 for strict verification with a judge looking on; None if there was
            no judge, and so nothing to try.
        temperature: at which the probabilities of the alternatives hold.
        finish: why the text ended ("eos", "stop", "length"), or "".
        drafted, accepted: draft tokens proposed, and kept.
    """

    title: str
    rule: str
    prompt: str
    tokens: tuple[Token, ...]
    threshold: float | None = None
    temperature: float = 1.0
    finish: str = ""
    drafted: int = 0
    accepted: int = 0

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def cycles(self) -> int:
        """Target calls."""
        return max((token.cycle for token in self.tokens), default=0)

    @property
    def counts(self) -> Counter[str]:
        """Tokens of each origin."""
        return Counter(token.origin for token in self.tokens)

    def flips(self, threshold: float) -> list[int]:
        """Places whose recorded decision would be another one at this threshold of the judge.

        Behind the first of them the text itself would be another one: later entries say only what
        would become of the recorded text.
        """
        return [place for place, token in enumerate(self.tokens) if token.flips_at(threshold)]

    def to_json(self) -> Mapping[str, Any]:
        """Plain values for the page; a value that says nothing is left out."""
        tokens = [
            {"name": "", **{k: v for k, v in asdict(token).items() if not _says_nothing(v)}}
            for token in self.tokens
        ]
        return {**asdict(self), "tokens": tokens, "cycles": self.cycles, "counts": self.counts}


def _says_nothing(value: Any) -> bool:
    return value is None or value is False or value == ""
