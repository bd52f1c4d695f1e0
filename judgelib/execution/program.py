"""Whole programs: standard input in, standard output out, to be compared by the caller.

The caller holds the expected output, so a program passes only by printing it. Nothing but the
standard library can be imported.
"""

import tempfile

from judgelib.execution.calls import message, parse_line, parse_reply
from judgelib.execution.child import Child, Stopped
from judgelib.execution.guards import guard_for_any_code
from judgelib.execution.records import DEFAULT_LIMITS, Guard, GuardChoice, Limits, Outcome


def run_program(
    source: str,
    stdin: str = "",
    *,
    limits: Limits = DEFAULT_LIMITS,
    guard: GuardChoice = "auto",
) -> Outcome:
    """Run `source` as a script on `stdin`, under bubblewrap ("auto" never means less here).

    A program that ends early (`sys.exit(0)`, `os._exit(0)`) and printed the right thing is taken at
    its word; `finished` tells only that no failure was seen. Raises GuardError without a guard.
    """
    chosen = guard_for_any_code(guard)
    with tempfile.TemporaryFile() as stream:
        stream.write(stdin.encode())
        stream.seek(0)
        with Child("program", chosen, limits, stdin=stream) as child:
            return _run(child, source, chosen, limits)


def _run(child: Child, source: str, guard: Guard, limits: Limits) -> Outcome:
    reason, detail = "finished", ""
    request = message(source, "", guard, limits, module="__main__")
    try:
        child.send(request)
        child.drain()
        reply = parse_reply(parse_line(child.receive(), request["nonce"]))
        if reply.error:
            reason, detail = reply.error, reply.detail
    except Stopped as stopped:
        reason, detail = stopped.reason, stopped.detail
    stdout, stderr = child.printed()
    return Outcome(stdout, stderr, reason == "finished", reason, detail, guard)
