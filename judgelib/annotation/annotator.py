"""One annotator at work: items in a blind order, decisions that are on disk before they count."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from datetime import UTC, datetime

from judgelib.annotation.decisions import Decision, check, latest, standing
from judgelib.annotation.items import Item
from judgelib.annotation.log import Log


class Annotator:
    """A file of decisions by one person, and the place in the work.

    `items` are in this person's own random order, which depends on the name and the items' ids
    alone: it is the same after a restart, and items that are added later do not disturb it.
    `position` indexes them. Reopening the file brings back all decisions, what can be undone, and
    the position: the item after the last decision, or the one whose decision was taken back.

    Raises:
        ValueError: no items or two with one id, an empty name, a file that is damaged, in use, by
            another person, or about other items.
    """

    def __init__(self, items: Iterable[Item], path: str | os.PathLike[str], annotator: str) -> None:
        if not annotator.strip():
            raise ValueError("annotator is empty: give the name or initials of who decides.")
        self.annotator = annotator
        self.items = _blind_order(items, annotator)
        self._index = {item.id: index for index, item in enumerate(self.items)}
        self._log = Log(path)
        self.path = self._log.path
        try:
            self._restore()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Annotator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file free for others; everything is saved already."""
        self._log.close()

    @property
    def item(self) -> Item:
        """The item at `position`."""
        return self.items[self.position]

    @property
    def decisions(self) -> dict[str, Decision]:
        """Item id → the decision that counts; undecided items are missing."""
        return latest(self._standing)

    @property
    def turn(self) -> str:
        """Changes with every decision and every move, so that late messages are recognised."""
        return f"{len(self._log.lines)}:{self.position}"

    def decide(self, verdict: str, start: int | None = None, stop: int | None = None) -> Decision:
        """Judge the current item, save that, and go to the next undecided one.

        An item may be judged again; its last decision counts. An error without `stop` is one
        token long.

        Raises:
            ValueError: an unknown verdict, or tokens that the item does not have.
            OSError: the decision could not be saved; it does not count.
        """
        if verdict == "error" and isinstance(start, int) and stop is None:
            stop = start + 1
        if verdict == "undo":
            raise ValueError("a decision is taken back by undo().")
        decision = self._line(self.item, verdict, start, stop)
        check(decision, self.item)
        self._log.append(decision)
        self._standing.append(decision)
        self.move(1)
        return decision

    def undo(self) -> Decision | None:
        """Take the last standing decision back and go to its item; None if there is none.

        Can be repeated back to the first decision, across restarts.
        """
        if not self._standing:
            return None
        last = self._standing[-1]
        self._log.append(self._line(self.items[self._index[last.item]], "undo"))
        self._standing.pop()
        self.position = self._index[last.item]
        return last

    def move(self, by: int, *, undecided: bool = True) -> None:
        """Go to the next (`by` = 1) or previous (-1) undecided item, or item, round the end."""
        decided = self.decisions if undecided else {}
        for step in range(1, len(self.items)):
            position = (self.position + by * step) % len(self.items)
            if self.items[position].id not in decided:
                self.position = position
                return

    def _line(
        self, item: Item, verdict: str, start: int | None = None, stop: int | None = None
    ) -> Decision:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Decision(self.annotator, item.id, item.sha, verdict, start, stop, now)

    def _restore(self) -> None:
        lines = self._log.lines
        for line in lines:
            self._check(line)
        self._standing = standing(lines)
        self.position = self._index[lines[-1].item] if lines else 0
        if lines and lines[-1].verdict != "undo":
            self.move(1)

    def _check(self, line: Decision) -> None:
        """Raise ValueError for a line that is not this person's, or not about these items."""
        if line.annotator != self.annotator:
            raise ValueError(
                f"{self.path} holds decisions by {line.annotator!r}: each annotator needs a file; "
                f"choose another path for {self.annotator!r}."
            )
        if line.item not in self._index:
            raise ValueError(
                f"{self.path} decides item {line.item!r}, which is not among the "
                f"{len(self.items)} given: give the items that it was made with."
            )
        check(line, self.items[self._index[line.item]])


def _blind_order(items: Iterable[Item], annotator: str) -> tuple[Item, ...]:
    def place(item: Item) -> bytes:
        return hashlib.sha256(f"{annotator}\0{item.id}".encode()).digest()

    ordered = tuple(sorted(items, key=place))
    names = {item.id for item in ordered}
    if not ordered or len(names) != len(ordered):
        raise ValueError(
            f"{len(ordered)} items with {len(names)} ids: give at least one, each with its own id."
        )
    return ordered
