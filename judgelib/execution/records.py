"""The nouns of guarded execution: limits, cases, jobs, verdicts, outcomes and guards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

Guard = Literal["subset", "bubblewrap", "none"]
GuardChoice = Literal["auto", "subset", "bubblewrap", "none"]

Reason = Literal[
    "passed",
    "wrong_answer",  # plain data, but not the expected data
    "wrong_type",  # something that is not plain data
    "exception",  # the code raised
    "syntax_error",  # the code does not parse
    "missing_function",  # the code defines no such function
    "timeout",  # processor or wall time
    "memory",
    "output_limit",  # bytes printed and returned, together
    "no_result",  # the process ended, or hung up, without an answer
    "forged",  # an answer in the wrong form, or without the nonce
    "forbidden_syntax",  # outside the subset, and the guard is "subset"
]

Case = tuple[Sequence[Any], Any]
"""Positional arguments and the expected output, both plain data."""


class GuardError(RuntimeError):
    """The guard that was asked for is missing or does not confine; the message holds the fix."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one candidate may use, over all its cases together.

    `processes` counts the candidate's own process and its threads; outside bubblewrap Linux counts
    all processes of the user, so that a candidate starts none. `memory_bytes` is address space, a
    process. `output_bytes` counts what is printed and what is returned. `file_bytes` bounds each
    file and, under bubblewrap, the scratch folder as a whole.
    """

    cpu_seconds: int = 2
    wall_seconds: float = 5.0
    memory_bytes: int = 512 * 2**20
    processes: int = 1
    output_bytes: int = 2**20
    file_bytes: int = 2**20

    def __post_init__(self) -> None:
        """Refuse limits that do not limit."""
        for field in fields(self):
            value = getattr(self, field.name)
            kinds = (int, float) if field.name == "wall_seconds" else (int,)
            if type(value) not in kinds or not 0 < value < float("inf"):
                raise ValueError(
                    f"{field.name} must be a positive, finite {kinds[-1].__name__}, got {value!r}"
                )

    def resources(self, *, overhead: int = 0) -> Mapping[str, int]:
        """Names and values for `resource.setrlimit`; `overhead` processes belong to the guard."""
        return {
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_NPROC": self.processes + overhead,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
        }


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Job:
    """One candidate: its source, the function to call, and the cases it must get right."""

    source: str
    function: str
    cases: Sequence[Case]


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate passed, why (not), a short detail, and the guard it ran under."""

    passed: bool
    reason: Reason
    detail: str
    guard: Guard


@dataclass(frozen=True)
class Outcome:
    """What a whole program printed, and how it ended.

    `finished` is False unless the program ended by itself, without an exception; `reason` is then
    the named failure, else "finished".
    """

    stdout: str
    stderr: str
    finished: bool
    reason: str
    detail: str
    guard: Guard
