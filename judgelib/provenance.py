"""What a reader needs in order to make a result again: commit, versions, machine, time taken."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("judgelib", "torch", "transformers", "datasets", "tokenizers", "numpy", "pandas")


def provenance(started: float) -> dict[str, Any]:
    """The block that every manifest carries; `started` is `time.time()` at the start."""
    return {
        "git_sha": git_sha(),
        "versions": versions(),
        "hardware": hardware(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(time.time() - started, 3),
    }


def git_sha() -> str | None:
    """The commit this package runs from, `-dirty` if its files differ; None outside a clone."""
    # An installed package may lie inside somebody else's repository: its commit says nothing here.
    if git("ls-files", "--error-unmatch", "judgelib/results.py") is None:
        return None
    sha = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--", "judgelib", "notebooks")
    return sha and sha + ("-dirty" if changed else "")


def git(*arguments: str) -> str | None:
    """Output of a git command in the checkout; None if git is absent or refuses."""
    command = ["git", "-C", str(checkout()), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB and accelerators; no host name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": cores,
        "memory_gib": memory_gib(),
        "gpus": gpus,
    }


def cpu_name() -> str:
    """The processor's name as Linux tells it, elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def memory_gib() -> float | None:
    """Physical memory in GiB, None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def checkout() -> Path:
    """The folder this package lies in: the repository's root when judgelib runs from a clone."""
    return Path(__file__).resolve().parents[1]
