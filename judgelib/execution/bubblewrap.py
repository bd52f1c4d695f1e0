"""The command line that puts a process into bubblewrap: what it may see, and nothing else.

Inside there is no network, the system and the interpreter are read-only, the only writable place is
a small scratch folder, the environment is empty, and there are no capabilities. The process
namespace ends, with everything in it, when its first process is killed.

Root needs a step in between. Linux never applies a limit on the number of processes to the real
root, whatever a user namespace calls him; so for root a first bubblewrap shows the interpreter to
`nobody` (it may lie in a home that only root can enter), steps down to him, and the second one runs
as it does for any other user. Measured on Linux 6.18: a limit of processes + 1 leaves the candidate
exactly `processes`, since bubblewrap's own first process counts.

The first bubblewrap has a process namespace too, or the candidate would outlive a killed grader:
the monitor outside keeps root's number but no capability, so its death cannot signal a process of
`nobody`. It can signal the namespace's first process, which is still root's and takes all along.
"""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from judgelib.execution.records import GuardError, Limits

NOBODY = "65534"
OVERHEAD_PROCESSES = 1
HASH_SEED = "0"  # sets of strings are ordered alike in every run
NOT_INSTALLED = (
    "bubblewrap is not installed, so code beyond the subset is not run; "
    "install it: apt-get install bubblewrap"
)


def bubblewrap_path() -> str:
    """Where `bwrap` lies; GuardError with the fix if it does not."""
    path = shutil.which("bwrap") if sys.platform == "linux" else None
    if path is None:
        raise GuardError(NOT_INSTALLED)
    return path


def bubblewrap_prefix(limits: Limits) -> list[str]:
    """The words to put before a command line in order to confine it."""
    path = bubblewrap_path()
    step_down = _as_nobody(path) if os.geteuid() == 0 else []
    return [*step_down, path, *_isolation(path), *_system_view(), *_scratch(limits), "--"]


def interpreter() -> str:
    """The real path of this interpreter, outside any virtual environment."""
    return os.path.realpath(sys.executable)


def _isolation(path: str) -> list[str]:
    words = ["--unshare-all", "--unshare-user", "--uid", NOBODY, "--gid", NOBODY]
    words += ["--cap-drop", "ALL", "--die-with-parent", "--new-session", "--hostname", "candidate"]
    words += ["--clearenv", "--setenv", "PYTHONHASHSEED", HASH_SEED]
    return [*words, "--disable-userns"] if _can_disable_userns(path) else words


@functools.cache
def _can_disable_userns(path: str) -> bool:
    """Whether this bubblewrap (0.8 or newer) can also forbid further user namespaces."""
    text = subprocess.run([path, "--help"], capture_output=True, text=True, check=False).stdout
    return "--disable-userns" in text


def _system_view() -> list[str]:
    """/usr and the interpreter's own folder, read-only; no other part of the disk."""
    words = ["--ro-bind", "/usr", "/usr"]
    for name in ("/lib", "/lib32", "/lib64"):
        if os.path.islink(name):
            words += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            words += ["--ro-bind", name, name]
    prefix = Path(os.path.realpath(sys.base_prefix))
    if not prefix.is_relative_to("/usr"):
        for parent in list(reversed(prefix.parents))[1:]:
            words += ["--perms", "0755", "--dir", str(parent)]
        words += ["--ro-bind", str(prefix), str(prefix)]
    return words


def _scratch(limits: Limits) -> list[str]:
    words = ["--proc", "/proc", "--dev", "/dev"]
    words += ["--size", str(limits.file_bytes), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    return [*words, "--remount-ro", "/dev", "--remount-ro", "/"]


def _as_nobody(path: str) -> list[str]:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise GuardError("setpriv is not installed; install it: apt-get install util-linux")
    view = [*_system_view(), "--dir", "/tmp", "--bind", "/proc", "/proc"]
    view += ["--dev-bind", "/dev", "/dev"]
    words = [path, "--unshare-pid", "--die-with-parent", *view, "--", setpriv]
    words += ["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
    return [*words, "--inh-caps=-all", "--bounding-set=-all"]
