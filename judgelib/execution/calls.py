"""Calls into a candidate: the arguments go in, plain data comes out, the parent compares.

What this guarantees: the expected outputs are never in the candidate's process, so nothing that
the code does there (equal-to-everything objects, patched builtins, walked frames, forged replies)
can pass without the right outputs. What it cannot: tell *how* an output was found; code that has
learnt a public benchmark's answers by heart gives them.
"""

import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from judgelib.execution.bubblewrap import OVERHEAD_PROCESSES
from judgelib.execution.child import Child, Stopped, stopped_by
from judgelib.execution.records import Case, Guard, Job, Limits, Reason, Verdict
from judgelib.execution.subset import BUILTINS
from judgelib.execution.worker import NotPlain, decode, encode

OVERHEAD = {"subset": 0, "bubblewrap": OVERHEAD_PROCESSES, "none": 0}
REPORTED = ("exception", "memory", "missing_function", "syntax_error", "wrong_type")
"""The failures that a worker may report of itself; the others are found by the parent."""
SHOWN = 120
"""Characters of a value that a verdict's detail shows."""


@dataclass(frozen=True)
class Reply:
    """One answer: a value, or a named failure with its detail."""

    value: Any = None
    error: Reason | None = None
    detail: str = ""


def message(
    source: str, function: str, guard: Guard, limits: Limits, **more: Any
) -> dict[str, Any]:
    """The job as the worker reads it, with a fresh nonce. Expected outputs have no place here."""
    return {
        "nonce": secrets.token_hex(16),
        "source": source,
        "function": function,
        "module": "candidate",
        "builtins": sorted(BUILTINS) if guard == "subset" else None,
        "limits": dict(limits.resources(overhead=OVERHEAD[guard])),
        "calls": [],
        **more,
    }


def encoded_arguments(cases: Iterable[Case]) -> list[list[Any]]:
    """The cases' arguments for the request; ValueError if they or the outputs are not plain."""
    encoded = []
    for number, (arguments, expected) in enumerate(cases):
        if not isinstance(arguments, list | tuple):
            kind = type(arguments).__name__
            raise ValueError(
                f"case {number}: expected a tuple of arguments, got a {kind}: write (x,)"
            )
        try:
            encoded.append([encode(argument) for argument in arguments])
            encode(expected)
        except NotPlain as error:
            raise ValueError(
                f"case {number}: {error}; use None, bool, int, float, str, list, tuple, set, dict"
            ) from error
    return encoded


def parse_line(line: bytes, nonce: str) -> dict[str, Any]:
    """One reply line as an object that carries the job's nonce, else `Stopped` as forged."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Stopped("forged", f"a reply that is not JSON: {error}") from error
    if not isinstance(fields, dict) or fields.pop("nonce", None) != nonce:
        raise Stopped("forged", "a reply without the job's nonce")
    return fields


def parse_reply(fields: Mapping[str, Any]) -> Reply:
    """A reply's fields, type-checked; `Stopped` as forged if they are not what the worker sends."""
    if set(fields) == {"value"}:
        try:
            return Reply(value=decode(fields["value"]))
        except (ValueError, TypeError, RecursionError) as error:
            raise Stopped("forged", f"a value in the wrong form: {error}") from error
    name, detail = fields.get("error"), fields.get("detail")
    known = name in REPORTED and isinstance(detail, str)
    if set(fields) != {"error", "detail"} or not known:
        raise Stopped("forged", f"a reply with the fields {sorted(fields)}"[:300])
    return Reply(error=name, detail=str(detail))


def run_in_pool(pool: Child, job: Job, calls: list[list[Any]]) -> list[Reply]:
    """The replies of subset code, forked from the pool; `Stopped` if it ends without a reply."""
    request = message(job.source, job.function, "subset", pool.limits, calls=calls)
    pool.restart_budget()
    pool.send(request)
    replies: list[Reply] = []
    while True:
        fields = parse_line(pool.receive(), request["nonce"])
        if "done" in fields:
            break
        replies.append(parse_reply(fields))
    complete = len(replies) == len(calls) or bool(replies and replies[-1].error)
    if not complete:
        raise stopped_by(os.waitstatus_to_exitcode(fields["done"]), pool.printed()[1])
    return replies


def run_alone(job: Job, calls: list[list[Any]], guard: Guard, limits: Limits) -> list[Reply]:
    """The replies of any code, in a process of its own that dies with the last reply."""
    request = message(job.source, job.function, guard, limits, calls=calls)
    replies: list[Reply] = []
    with Child("calls", guard, limits) as child:
        child.send(request)
        while len(replies) < len(calls) and not (replies and replies[-1].error):
            replies.append(parse_reply(parse_line(child.receive(), request["nonce"])))
    return replies


def compare(cases: Sequence[Case], replies: Sequence[Reply], guard: Guard) -> Verdict:
    """The verdict on complete replies: every case must give exactly the expected data."""
    for number, ((_, expected), reply) in enumerate(zip(cases, replies, strict=False)):
        if reply.error:
            return Verdict(False, reply.error, f"case {number}: {reply.detail}", guard)
        if not same(expected, reply.value):
            detail = f"case {number}: expected {_short(expected)}, got {_short(reply.value)}"
            return Verdict(False, "wrong_answer", detail, guard)
    if len(replies) != len(cases):
        return Verdict(False, "no_result", f"{len(replies)} of {len(cases)} replies", guard)
    return Verdict(True, "passed", f"{len(cases)} cases", guard)


def same(expected: Any, got: Any) -> bool:
    """Equality of plain data with exact types: True is not 1, 1 is not 1.0, a tuple is no list.

    Not-a-number equals itself here, since a case may expect it.
    """
    if type(expected) is not type(got):
        return False
    if isinstance(expected, list | tuple):
        return len(expected) == len(got) and all(map(same, expected, got))
    if isinstance(expected, dict):
        typed = {(type(key), key): item for key, item in got.items()}
        keys = [(type(key), key) for key in expected]
        return len(keys) == len(typed) and all(
            key in typed and same(expected[key[1]], typed[key]) for key in keys
        )
    if isinstance(expected, set):
        return {(type(x), x) for x in expected} == {(type(x), x) for x in got}
    return bool(expected == got or (expected != expected and got != got))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
