"""What the workers of `test_ray` do, in a module that they import quickly."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Emit = Callable[[Any], object]


@dataclass(frozen=True)
class Nothing:
    """Work that needs no models; the number tells one from another."""

    number: int = 0
    devices: tuple[str, ...] = ("cpu",)

    def __call__(self) -> int:
        return os.getpid()

    def here(self) -> int:
        return self()

    def elsewhere(self) -> Nothing:
        return self


@dataclass(frozen=True)
class Piece:
    """Numbers to be squared; the worker dies at the fatal one if the file is not there yet."""

    numbers: tuple[int, ...]
    fatal: int = -1
    died: str = ""


def squares(held: int, piece: Piece, emit: Emit) -> None:
    for number in piece.numbers:
        if number == piece.fatal:
            die_once(Path(piece.died))
        emit((number, number**2, held))


def die_once(marker: Path) -> None:
    """Kill this process without a chance to tidy up, unless somebody did before; what it has said
    has arrived."""
    if not marker.exists():
        marker.touch()
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGKILL)


def refuse(held: int, piece: Piece, emit: Emit) -> None:
    raise ValueError(f"expected no numbers, got {piece.numbers}")


@dataclass(frozen=True)
class Deadly:
    """A task whose worker is killed at the answers to the trials of one question."""

    inner: Any
    question: str
    died: str

    @property
    def name(self) -> str:
        return str(self.inner.name)

    def answers(self, questions: Sequence[Any], texts: Sequence[str]) -> list[Hashable]:
        if self.died and self.question in [q.id for q in questions] and "again" in self.tried():
            die_once(Path(self.died))
        return list(self.inner.answers(questions, texts))

    def tried(self) -> str:
        """How often answers to the question were asked for: the target's own comes first."""
        counter = Path(self.died + ".asked")
        before = counter.read_text() if counter.exists() else ""
        counter.write_text("once" if not before else "again")
        return before
