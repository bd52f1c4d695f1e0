"""What an annotator may say of an item, as lines of a file and as spans for token labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from judgelib.agreement import UNSURE
from judgelib.agreement import Decision as Position
from judgelib.annotation.items import Item

VERDICTS = ("error", "correct", "unsure")


@dataclass(frozen=True)
class Decision:
    """One line of an annotator's file.

    `verdict` is "error" (tokens `start` to `stop`, exclusive, are the first mistake), "correct"
    (all tokens are), "unsure", or "undo", which takes the last standing decision back. `sha` is
    the judged item's, `at` the time in UTC.
    """

    annotator: str
    item: str
    sha: str
    verdict: str
    start: int | None = None
    stop: int | None = None
    at: str = ""


class Span(NamedTuple):
    """A judged item with its mistake, tokens `start` to `stop` (exclusive); None: all correct."""

    item: Item
    start: int | None
    stop: int | None


def parse(record: Mapping[str, Any]) -> Decision:
    """The decision in a line of a file; TypeError or ValueError if it holds none."""
    decision = Decision(**record)
    words = (decision.annotator, decision.item, decision.sha, decision.verdict, decision.at)
    if not all(isinstance(word, str) for word in words) or not _has_right_span(decision):
        raise TypeError("annotator, item, sha, verdict, at: strings; start, stop of an error: int")
    if decision.verdict not in (*VERDICTS, "undo"):
        raise ValueError(f"unknown verdict {decision.verdict!r}")
    return decision


def _has_right_span(decision: Decision) -> bool:
    """Whether an error has a place, and everything else none."""
    start, stop = decision.start, decision.stop
    if decision.verdict != "error":
        return start is None and stop is None
    return type(start) is int and type(stop) is int and 0 <= start < stop


def check(decision: Decision, item: Item) -> None:
    """Raise ValueError for a decision that does not fit the item."""
    if decision.verdict not in (*VERDICTS, "undo"):
        raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}, not {decision.verdict!r}.")
    if decision.sha != item.sha:
        raise ValueError(
            f"the decision on {item.id!r} was made on other text: give the items that "
            f"{decision.annotator} judged, or judge these in a new file."
        )
    if not _has_right_span(decision) or (decision.stop or 0) > len(item.tokens):
        raise ValueError(
            f"{decision.verdict} with tokens {decision.start} to {decision.stop}: only an error "
            f"has tokens, and {item.id!r} has them from 0 to {len(item.tokens)}."
        )


def standing(lines: Iterable[Decision]) -> list[Decision]:
    """The decisions that no later line takes back, oldest first."""
    stack: list[Decision] = []
    for line in lines:
        if line.verdict != "undo":
            stack.append(line)
        elif not stack or stack.pop().item != line.item:
            raise ValueError(
                f"{line.annotator} takes back a decision on {line.item!r} that is not the last "
                "one: a line of the file is missing; restore it from a copy."
            )
    return stack


def latest(stack: Iterable[Decision]) -> dict[str, Decision]:
    """Item id → the decision that counts."""
    return {decision.item: decision for decision in stack}


def positions(decisions: Mapping[str, Decision]) -> dict[str, Position]:
    """What `judgelib.agreement` compares: item id → first wrong token, None, or UNSURE."""
    return {
        name: UNSURE if decision.verdict == "unsure" else decision.start
        for name, decision in decisions.items()
    }


def spans(items: Iterable[Item], decisions: Mapping[str, Decision]) -> list[Span]:
    """The items with a verdict, in the order given; unsure and undecided ones are left out.

    Raises:
        ValueError: a decision was made on other text, or marks tokens that are not there.
    """
    found = [(item, decisions[item.id]) for item in items if item.id in decisions]
    for item, decision in found:
        check(decision, item)
    return [
        Span(item, decision.start, decision.stop)
        for item, decision in found
        if decision.verdict != "unsure"
    ]
