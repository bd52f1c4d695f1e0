"""Benchmarks whose tests are code, as HumanEval's `check(candidate)`.

Check and candidate run in two processes, each confined. In the check's process `candidate` is a
stand-in: every call of it goes through this parent to the candidate's process and comes back as
plain data. The candidate therefore shares no memory with the asserts, and the values that they see
are of exact plain types: an equal-to-everything object, patched builtins or a printed "passed"
change nothing there. Calls take positional plain data; a check that inspects how its own argument
was changed in place is beyond this.
"""

import warnings
from typing import Any

from judgelib.execution.calls import Reply, message, parse_line, parse_reply
from judgelib.execution.child import Child, Stopped
from judgelib.execution.guards import guard_for_any_code
from judgelib.execution.records import DEFAULT_LIMITS, Guard, GuardChoice, Limits, Verdict
from judgelib.execution.worker import encode


def run_check(
    source: str,
    function: str,
    check: str,
    *,
    limits: Limits = DEFAULT_LIMITS,
    guard: GuardChoice = "auto",
) -> Verdict:
    """The verdict of the benchmark's own `check(candidate)` on `function` from `source`.

    `check` is trusted text that defines the function `check`, with any helper it uses. A check that
    calls the candidate never, or that swallows exceptions, is the benchmark's affair, except that
    a check without a single call does not pass. Raises ValueError if the check does not parse.
    """
    chosen = guard_for_any_code(guard)
    _check_parses(check)
    with Child("calls", chosen, limits) as candidate, Child("check", chosen, limits) as checker:
        return _Exchange(candidate, checker, chosen).run(source, function, check)


def _check_parses(check: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(check, "<check>", "exec", dont_inherit=True)
        except SyntaxError as error:
            message = f"the check does not parse: {error}; give the benchmark's own code"
            raise ValueError(message) from error


class _Exchange:
    """The parent between the two processes."""

    def __init__(self, candidate: Child, checker: Child, guard: Guard) -> None:
        self.candidate, self.checker, self.guard = candidate, checker, guard
        self.calls = 0
        self.last = Reply()

    def run(self, source: str, function: str, check: str) -> Verdict:
        limits = self.candidate.limits
        request = message(source, function, self.guard, limits)
        asking = message(check, "check", self.guard, limits)
        try:
            self.candidate.send(request)
            self.checker.send(asking)
            return self._verdict(self._answer_calls(request["nonce"], asking["nonce"]))
        except Stopped as stopped:
            return Verdict(False, stopped.reason, stopped.detail, self.guard)

    def _answer_calls(self, candidate_nonce: str, checker_nonce: str) -> Reply:
        """Carry calls to the candidate until the check says how it ended."""
        while True:
            fields = parse_line(self.checker.receive(), checker_nonce)
            if set(fields) != {"call"}:
                return parse_reply(fields)
            self.candidate.send([fields["call"]])
            self.last = parse_reply(parse_line(self.candidate.receive(), candidate_nonce))
            self.calls += 1
            self.checker.send(_carried(self.last))

    def _verdict(self, ending: Reply) -> Verdict:
        if self.last.error:
            return Verdict(
                False, self.last.error, f"call {self.calls}: {self.last.detail}", self.guard
            )
        if ending.error:
            detail = f"after {self.calls} calls: {ending.detail}"
            return Verdict(False, "wrong_answer", detail, self.guard)
        if not self.calls:
            return Verdict(False, "no_result", "the check never called the candidate", self.guard)
        return Verdict(True, "passed", f"{self.calls} calls", self.guard)


def _carried(reply: Reply) -> dict[str, Any]:
    """A reply for the check's process, encoded anew from the plain data it was decoded to."""
    return {"error": reply.detail} if reply.error else {"value": encode(reply.value)}
