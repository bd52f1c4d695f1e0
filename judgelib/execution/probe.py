"""The proof, before anything is trusted to it, that bubblewrap confines on this machine.

A program of ours is run exactly as a candidate would be; it tries what a candidate must not be able
to do and reports. One wrong fact and nothing runs: the guard fails closed.
"""

import functools
import os
import socket
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from judgelib.execution.bubblewrap import bubblewrap_path
from judgelib.execution.calls import run_alone
from judgelib.execution.child import Stopped
from judgelib.execution.records import GuardError, Job, Limits

NAMESPACES = ("ipc", "mnt", "net", "pid", "user", "uts")
PROBE_LIMITS = Limits(memory_bytes=256 * 2**20)

ATTEMPTS = """
import errno, os, resource, socket

def raises(action, *arguments, number=None):
    try:
        action(*arguments)
    except (OSError, MemoryError) as error:
        return number is None or error.errno == number
    return False

def write(path, size=1):
    with open(path, "wb") as stream:
        stream.write(bytes(size))

def connect(port):
    with socket.socket() as one:
        one.settimeout(1)
        one.connect(("127.0.0.1", port))

def status(*names):
    with open("/proc/self/status") as stream:
        lines = [line.split() for line in stream]
    return [int(line[1], 16) for line in lines if line[0].rstrip(":") in names]

def environment():
    with open("/proc/self/environ") as stream:
        return {entry.split("=")[0] for entry in stream.read().split(chr(0)) if entry}

def attempts(canary, home, allowed, port, namespaces, folders, memory, size):
    inside = {name: os.readlink("/proc/self/ns/" + name) for name in namespaces}
    entries = os.listdir(home) if os.path.isdir(home) else []
    return {
        "own namespaces": all(inside[name] != link for name, link in namespaces.items()),
        "no root": os.getuid() != 0 and os.geteuid() != 0,
        "no capabilities": not any(status("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")),
        "no new privileges": status("NoNewPrivs") == [1],
        "empty environment": not os.environ and environment() <= {"PWD", "PYTHONHASHSEED"},
        "files outside hidden": raises(open, canary),
        "home hidden": set(entries) <= set(allowed),
        "system read-only": all(raises(write, f"{folder}/judgelib-probe") for folder in folders),
        "no network": raises(connect, port),
        "no open descriptors": len(os.listdir("/proc/self/fd")) <= 6,
        "other processes hidden": sum(name.isdigit() for name in os.listdir("/proc")) <= 4,
        "processes limited": raises(os.fork),
        "memory limited": raises(bytearray, memory),
        "file size limited": raises(write, "/tmp/large", size + 1, number=errno.EFBIG),
        "folder size limited": raises(write, "/tmp/more", size, number=errno.ENOSPC),
        "processor time limited": resource.getrlimit(resource.RLIMIT_CPU)[1] > 0,
        "empty folder": set(os.listdir("/tmp")) == {"large", "more"},
    }
"""


def probe() -> dict[str, bool]:
    """What was proved, each True; GuardError, with the fix in one line, if anything was not."""
    bubblewrap_path()
    facts = _report()
    unproved = [name for name, holds in facts.items() if holds is not True]
    if unproved or not facts:
        raise GuardError(f"bubblewrap runs but does not confine ({', '.join(unproved)}); {_hint()}")
    return facts


def require_bubblewrap() -> None:
    """`probe`, once per process and per `bwrap`."""
    _proved(bubblewrap_path())


@functools.cache
def _proved(path: str) -> bool:
    probe()
    return True


def _report() -> dict[str, bool]:
    with (
        tempfile.NamedTemporaryFile() as canary,
        closing(socket.create_server(("127.0.0.1", 0))) as server,
    ):
        os.chmod(canary.name, 0o644)
        arguments = _arguments(canary.name, server.getsockname()[1])
        try:
            (reply,) = run_alone(
                Job(ATTEMPTS, "attempts", []), [arguments], "bubblewrap", PROBE_LIMITS
            )
        except (Stopped, OSError) as error:
            raise GuardError(f"bubblewrap does not start: {error}; {_hint()}") from error
    if not isinstance(reply.value, dict):
        raise GuardError(f"the probe of bubblewrap failed: {reply.detail}; {_hint()}")
    return reply.value


def _arguments(canary: str, port: int) -> list[Any]:
    """What the probe is told, encoded: where the forbidden things lie outside."""
    prefix = os.path.realpath(sys.base_prefix)
    home = os.path.expanduser("~").rstrip("/")  # "" for a user whose home is the root folder
    folders = ["", "/usr", "/dev", "/dev/shm", prefix, home, tempfile.gettempdir()]
    links = [[name, os.readlink(f"/proc/self/ns/{name}")] for name in NAMESPACES]
    return [
        canary,
        home,
        _visible_in(home, prefix),
        port,
        {"dict": links},
        [folder for folder in folders if folder != "/tmp"],
        PROBE_LIMITS.memory_bytes,
        PROBE_LIMITS.file_bytes,
    ]


def _visible_in(home: str, prefix: str) -> list[str]:
    """The one entry of the home folder that may show inside: the way to the interpreter."""
    inside = bool(home) and Path(prefix).is_relative_to(home) and prefix != home
    return [Path(prefix).relative_to(home).parts[0]] if inside else []


def _hint() -> str:
    """The likeliest one-line fix on this machine."""
    if _kernel_setting("apparmor_restrict_unprivileged_userns") == "1":
        return "allow it: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    if _kernel_setting("unprivileged_userns_clone") == "0":
        return "allow it: sudo sysctl -w kernel.unprivileged_userns_clone=1"
    return (
        "in a container, allow user namespaces: docker run --security-opt seccomp=unconfined "
        "--security-opt apparmor=unconfined --security-opt systempaths=unconfined"
    )


def _kernel_setting(name: str) -> str:
    path = Path("/proc/sys/kernel", name)
    return path.read_text().strip() if path.exists() else ""
