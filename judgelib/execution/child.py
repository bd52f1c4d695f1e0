"""A child process with a request pipe, a reply pipe and a budget, seen from the parent.

Everything the child prints or answers is counted; the deadline is ours; whatever happens, `close`
kills the child with all its process group (under bubblewrap: with all its process namespace).

Code is sent only after the child has said that it is ready. By then every bubblewrap above it dies
with its parent; a grader that is killed earlier has sent nothing that could run on without it.
"""

import contextlib
import functools
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from judgelib.execution import worker
from judgelib.execution.bubblewrap import HASH_SEED, bubblewrap_prefix, interpreter
from judgelib.execution.records import Guard, Limits, Reason

CHUNK = 2**16
SETTLE_SECONDS = 1.0
START_SECONDS = 30.0
# -I without -E, because the hash seed must be read; the rest of the environment is empty anyway.
FLAGS = ("-s", "-P", "-S", "-B", "-X", "utf8", "-c")


class Stopped(Exception):
    """The child gave no (further) answer, for a named reason."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


@functools.cache
def _worker_text() -> str:
    return Path(worker.__file__).read_text(encoding="utf-8") + "\nmain()\n"


def _scratch_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="judgelib-candidate-")


class Child:
    """One guarded interpreter that runs `worker` in the given mode; a context manager."""

    def __init__(self, mode: str, guard: Guard, limits: Limits, stdin: IO[bytes] | None = None):
        self.limits = limits
        self._folder = _scratch_folder() if guard != "bubblewrap" else None
        request_read, self._request = os.pipe()
        self._reply, reply_write = os.pipe()
        theirs = (request_read, reply_write)
        try:
            self._process = self._start(mode, guard, theirs, stdin)
        except BaseException:
            self._drop_pipes()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self._open_streams()

    def _start(
        self, mode: str, guard: Guard, pipes: tuple[int, int], stdin: IO[bytes] | None
    ) -> subprocess.Popen[bytes]:
        prefix = bubblewrap_prefix(self.limits) if guard == "bubblewrap" else []
        command = [*prefix, interpreter(), *FLAGS, _worker_text(), mode, *map(str, pipes)]
        return subprocess.Popen(
            command,
            stdin=stdin or subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=pipes,
            env={"PYTHONHASHSEED": HASH_SEED},
            cwd=self._folder.name if self._folder else "/",
            start_new_session=True,
        )

    def _open_streams(self) -> None:
        streams = (self._process.stdout, self._process.stderr)
        descriptors = [self._reply, *(stream.fileno() for stream in streams if stream)]
        self._buffers = {descriptor: bytearray() for descriptor in descriptors}
        self._selector = selectors.DefaultSelector()
        for descriptor in descriptors:
            self._selector.register(descriptor, selectors.EVENT_READ)
        os.set_blocking(self._request, False)
        self._ready = False
        self.restart_budget()

    def restart_budget(self) -> None:
        """A new job: full wall time and an empty account of output."""
        self._deadline = time.monotonic() + self.limits.wall_seconds
        self._output = 0

    def send(self, message: Mapping[str, Any] | list[Any]) -> None:
        """Write one line to the request pipe, reading meanwhile so that neither side waits."""
        self._await_ready()
        rest = json.dumps(message).encode() + b"\n"
        while rest:
            try:
                rest = rest[os.write(self._request, rest) :]
            except BlockingIOError:
                self._pump(at_most=0.01)
            except BrokenPipeError:
                raise self._ended() from None

    def _await_ready(self) -> None:
        """Starting has a budget of its own: a busy machine's delay is not the candidate's."""
        if self._ready:
            return
        self._deadline = time.monotonic() + START_SECONDS
        if (line := self.receive()) != worker.READY.encode():
            raise Stopped("no_result", f"expected the worker to be ready, got {line[:80]!r}")
        self._ready = True
        self.restart_budget()

    def receive(self) -> bytes:
        """The next line of the reply pipe; `Stopped` if none comes within the limits."""
        buffer = self._buffers[self._reply]
        while b"\n" not in buffer:
            if self._reply not in self._selector.get_map():
                raise self._ended()
            self._pump()
        line, _, rest = bytes(buffer).partition(b"\n")
        buffer[:] = rest
        return line

    def drain(self) -> None:
        """Read until the child has closed all its pipes."""
        while self._selector.get_map():
            self._pump()

    def printed(self) -> tuple[str, str]:
        """Standard output and error so far."""
        streams = [bytes(self._buffers[d]) for d in self._buffers if d != self._reply]
        out, err = (stream.decode("utf-8", "replace") for stream in streams)
        return out, err

    def _pump(self, at_most: float = float("inf")) -> None:
        """Wait for bytes once, within the limits, and file them."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            limit = f"{self.limits.wall_seconds} s of wall time"
            raise Stopped("timeout", f"no end after {limit}" if self._ready else "no start")
        for key, _ in self._selector.select(min(left, at_most)):
            chunk = os.read(key.fd, CHUNK)
            if not chunk:
                self._selector.unregister(key.fd)
            self._buffers[key.fd] += chunk
            self._output += len(chunk)
        if self._output > self.limits.output_bytes:
            raise Stopped("output_limit", f"more than {self.limits.output_bytes} bytes of output")

    def _ended(self) -> Stopped:
        """Why the child hung up. Only failures are named here, so its exit status may say which."""
        self._deadline = time.monotonic() + SETTLE_SECONDS
        with contextlib.suppress(Stopped):
            self.drain()
        return stopped_by(self._exit_status(), self.printed()[1])

    def _exit_status(self) -> int | None:
        """As `Popen.poll`, but the process stays a zombie: its group's number stays reserved."""
        until = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < until:
            how = os.WEXITED | os.WNOHANG | os.WNOWAIT
            ending = os.waitid(os.P_PID, self._process.pid, how)
            if ending is not None:
                killed = ending.si_code != os.CLD_EXITED
                return -ending.si_status if killed else ending.si_status
            time.sleep(0.005)
        return None

    def close(self) -> None:
        """Kill the child and what it started, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._await_silence()
        self._selector.close()
        self._drop_pipes()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()

    def _await_silence(self) -> None:
        """The pipes close when the last process inside has died; what still comes is dropped."""
        until = time.monotonic() + SETTLE_SECONDS
        while self._selector.get_map() and time.monotonic() < until:
            for key, _ in self._selector.select(SETTLE_SECONDS):
                if not os.read(key.fd, CHUNK):
                    self._selector.unregister(key.fd)

    def _drop_pipes(self) -> None:
        os.close(self._request)
        os.close(self._reply)
        if self._folder:
            self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def stopped_by(status: int | None, complaint: str) -> Stopped:
    """Name the failure behind an exit status, as `Popen` or bubblewrap (128 + signal) give it."""
    if status is None:
        return Stopped("no_result", "the process closed its reply pipe without an answer")
    ending = -status if status < 0 else status - 128
    if ending == signal.SIGXCPU:
        return Stopped("timeout", "the processor time is used up")
    manner = signal.Signals(ending).name if ending in set(signal.Signals) else f"exit code {status}"
    return Stopped(
        "no_result", f"ended by {manner} without an answer; {complaint[-300:]}".strip("; ")
    )
