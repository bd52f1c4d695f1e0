"""What runs in the candidate's process: limits first, then the code, then answers as plain data.

The text of this file is handed to `python -c` inside the guard, so it imports nothing but the
standard library. It is *not* trusted once the candidate's code has run: that code can walk to every
object here, replace any function, read the nonce and answer in our place. It still cannot pass,
because the expected outputs never enter this process; see `judgelib.execution.calls`.

Each answer is one line of JSON with the job's nonce: `value` (encoded), or `error` and `detail`.
"""

import builtins
import gc
import itertools
import json
import os
import resource
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

PLAIN = (type(None), bool, int, float, str)
READY = "ready"
"""The first line of every worker, written before it is given any code."""
Message = dict[str, Any]
Send = Callable[..., None]
"""Takes messages as positional arguments."""


class NotPlain(TypeError):
    """A value that is not plain data."""


class CandidateFailed(Exception):
    """Raised inside a benchmark's own check when the candidate did not answer a call."""


def encode(value: Any) -> Any:
    """Plain data → JSON that `decode` turns back into exactly the same types.

    None, bool, int, float, str and list stand for themselves; tuple, set and dict become an object
    with one tag. Subclasses are refused: they could carry an `__eq__` of their own.
    """
    kind = type(value)
    if any(kind is plain for plain in PLAIN):
        return value
    if kind is list:
        return [encode(item) for item in value]
    if kind is tuple or kind is set:
        return {kind.__name__: [encode(item) for item in value]}
    if kind is dict:
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    raise NotPlain(f"{kind.__name__} is not plain data")


def decode(value: Any) -> Any:
    """The inverse of `encode`; ValueError for anything that `encode` cannot have written."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("an encoded object has exactly one tag")
    ((tag, items),) = value.items()
    if not isinstance(items, list):
        raise ValueError(f"{tag!r} holds a {type(items).__name__}, expected a list")
    return _decode_tagged(tag, [decode(item) for item in items])


def _decode_tagged(tag: str, items: list[Any]) -> Any:
    if tag == "tuple":
        return tuple(items)
    if tag == "set":
        return set(items)
    if tag == "dict" and all(isinstance(item, list) and len(item) == 2 for item in items):
        return {key: item for key, item in items}
    raise ValueError(f"unknown tag {tag!r}")


def failure(error: BaseException) -> Message:
    """The error's name for the parent, and a short text."""
    kind = "memory" if type(error) is MemoryError else "exception"
    kind = "wrong_type" if type(error) is NotPlain else kind
    return {"error": kind, "detail": f"{type(error).__name__}: {error}"[:300]}


def attempt(action: Callable[..., Any], *arguments: Any) -> Message:
    """The encoded result of `action`, or how it failed; SystemExit is a failure as well."""
    try:
        return {"value": encode(action(*arguments))}
    except BaseException as error:  # noqa: B036 - nothing that the candidate raises may pass
        return failure(error)


def confine(limits: dict[str, int]) -> None:
    """Set the resource limits for good; a second of grace turns SIGKILL for CPU into SIGXCPU."""
    for name, value in limits.items():
        grace = 1 if name == "RLIMIT_CPU" else 0
        resource.setrlimit(getattr(resource, name), (value, value + grace))


def define(job: Message) -> dict[str, Any]:
    """Run the source in a module of its own and return the module's names."""
    module = type(sys)(job["module"])
    if job["builtins"] is not None:
        allowed = {name: getattr(builtins, name) for name in job["builtins"]}
        module.__dict__["__builtins__"] = allowed
    else:
        sys.modules[job["module"]] = module
        module.__dict__.update(exit=sys.exit, quit=sys.exit)  # `site` would have given these
    exec(compile(job["source"], "<candidate>", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def serve_calls(job: Message, batches: Iterable[list[Any]], send: Send) -> None:
    """Define the function and answer call after call, up to the first failure."""
    try:
        names = define(job)
    except SyntaxError as error:
        return send({"error": "syntax_error", "detail": str(error)[:300]})
    except BaseException as error:  # noqa: B036
        return send(failure(error))
    function = names.get(job["function"])
    if not callable(function):
        return send({"error": "missing_function", "detail": f"no function {job['function']}"})
    for batch in batches:
        answers = answer_batch(function, batch)
        send(*answers)
        if any("error" in answer for answer in answers):
            return None
    return None


def answer_batch(function: Callable[..., Any], batch: list[Any]) -> list[Message]:
    """The answers to a batch of argument lists, which end with the first failure."""
    answers: list[Message] = []
    for arguments in batch:
        answers.append(attempt(function, *decode(arguments)))
        if "error" in answers[-1]:
            break
    return answers


def serve_program(job: Message, send: Send) -> None:
    """Run the source as a script; what it prints goes straight to the parent's pipe."""
    answer: Message = {"value": None}
    try:
        define(job)
    except SyntaxError as error:
        answer = {"error": "syntax_error", "detail": str(error)[:300]}
    except BaseException as error:  # noqa: B036
        if not (isinstance(error, SystemExit) and error.code in (None, 0)):
            answer = failure(error)
    sys.stdout.flush()
    send(answer)


def serve_check(job: Message, requests: TextIO, send: Send) -> None:
    """Run a benchmark's own check on a stand-in whose every call the parent has answered."""

    def candidate(*arguments: Any) -> Any:
        send({"call": encode(list(arguments))})
        reply = json.loads(requests.readline())
        if "error" in reply:
            raise CandidateFailed(reply["error"])
        return decode(reply["value"])

    def check() -> None:
        define(job)[job["function"]](candidate)

    send(attempt(check))


def serve_pool(requests: TextIO, replies: TextIO) -> None:
    """Fork for each job, so that a job costs a millisecond and not an interpreter's start.

    Only for code inside the subset, which cannot reach this process. The line with `done` (the
    child's wait status) tells the parent that nothing more will come for this job.
    """
    compile("", "<candidate>", "exec")  # the first compilation builds the parser's types: once here
    gc.freeze()
    for line in requests:
        job = json.loads(line)
        send = sender(replies, job["nonce"])
        pid = os.fork()
        if pid == 0:
            confine(job["limits"])
            serve_calls(job, [job["calls"]], send)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        send({"done": status})


def sender(replies: TextIO, nonce: str) -> Send:
    """A function that writes answers, each as one line, all in one go."""

    def send(*messages: Message) -> None:
        try:
            text = "".join(json.dumps({"nonce": nonce, **message}) + "\n" for message in messages)
        except MemoryError as error:
            text = json.dumps({"nonce": nonce, **failure(error)}) + "\n"
        replies.write(text)
        replies.flush()

    return send


def serve(mode: str, job: Message, requests: TextIO, send: Send) -> None:
    """Confine this process, then do the one job; "calls" takes more calls until the parent ends."""
    confine(job["limits"])
    if mode == "calls":
        serve_calls(job, itertools.chain([job["calls"]], map(json.loads, requests)), send)
    elif mode == "program":
        serve_program(job, send)
    else:
        serve_check(job, requests, send)


def main() -> None:
    """Entry point of the text given to `python -c`: mode, request descriptor, reply descriptor."""
    mode, request_fd, reply_fd = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.argv[1:] = []
    os.environ.clear()
    requests = os.fdopen(request_fd, encoding="utf-8")
    replies = os.fdopen(reply_fd, "w", encoding="utf-8")
    print(READY, file=replies, flush=True)
    if mode == "pool":
        serve_pool(requests, replies)
    elif line := requests.readline():  # none comes if the parent died meanwhile
        job = json.loads(line)
        serve(mode, job, requests, sender(replies, job["nonce"]))
