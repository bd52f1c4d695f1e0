"""One notebook under one profile: where its files lie, what it depends on, whether it is complete.

A notebook is complete when its manifest is there, written last, and says what is still true: the
same parameters, cells, package code, models and inputs, and every output in its place. The code is
compared by content and not by commit, so that uncommitted work counts and a commit of something
else does not.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judgelib import notebooks
from judgelib.profiles import Profile, is_path
from judgelib.provenance import provenance
from judgelib.results import (
    SCHEMAS,
    figures_dir,
    is_complete,
    project_root,
    results_dir,
    sha256,
    to_json,
    write_files,
)

Stamps = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Step:
    """One notebook under one profile, checked and ready to run."""

    path: Path
    parameters: dict[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def executed(self) -> Path:
        return self.folder / f"{self.name}.ipynb"

    @property
    def failed(self) -> Path:
        return self.folder / f"{self.name}.failed.ipynb"

    @property
    def running(self) -> Path:
        return self.folder / f".{self.name}.running.ipynb"

    @property
    def manifest(self) -> Path:
        return self.folder / f"{self.name}.manifest.json"


def dependencies(step: Step, earlier: list[Step], profile: Profile) -> dict[str, Any]:
    """Everything that decides what a notebook computes, as comparable JSON values."""
    written = [name for other in earlier for name in read_manifest(other).get("outputs", [])]
    return {
        "parameters": step.parameters,
        "notebook": notebooks.fingerprint(notebooks.read(step.path)),
        "code": code_fingerprint(),
        "models": {role: model_fingerprint(profile, role) for role in profile.models},
        "settings": {**profile.answers, **profile.template, **profile.collected},
        "inputs": {name: file_hash(name) for name in written},
    }


def changes(step: Step, earlier: list[Step], profile: Profile) -> list[str]:
    """Why a notebook has to run, in words; empty if it is complete."""
    manifest = read_manifest(step)
    if not manifest:
        return ["not yet run"]
    missing = [name for name in manifest["outputs"] if not is_whole(name, profile)]
    now = without(dependencies(step, earlier, profile), manifest["outputs"])
    changed = [f"changed {key}" for key in now if now[key] != manifest["dependencies"].get(key)]
    return changed + [f"missing {name}" for name in missing]


def without(dependencies: dict[str, Any], outputs: list[str]) -> dict[str, Any]:
    """The same dependencies, but a file that the notebook rewrote itself is not its input."""
    inputs = {k: v for k, v in dependencies["inputs"].items() if k not in outputs}
    return {**dependencies, "inputs": inputs}


def read_manifest(step: Step) -> dict[str, Any]:
    """The manifest of an executed notebook, empty if there is none or it is unusable."""
    try:
        manifest = json.loads(step.manifest.read_bytes())
        usable = {"outputs", "dependencies"} <= manifest.keys() and step.executed.is_file()
    except (OSError, ValueError, AttributeError):
        return {}
    return manifest if usable else {}


def code_fingerprint() -> str:
    """SHA-256 over the names and contents of this package's modules."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def model_fingerprint(profile: Profile, role: str) -> list[str]:
    """Names, sizes and times of a local model's files, as make would compare them; or its hub id
    and how it is loaded.

    Contents are not read: for a model of 140 GB that would take longer than the notebook.
    """
    source = profile.model(role)
    if not is_path(source):
        return [source, *(f"{key} {value}" for key, value in profile.loading(role).items())]
    files = [*Path(source).glob("*.json"), *Path(source).glob("*.safetensors")]
    stats = [(path.name, path.stat()) for path in sorted(files)]
    return [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]


def is_whole(name: str, profile: Profile) -> bool:
    """Whether an output is still there and, if it is a table, belongs to its manifest."""
    path = project_root() / name
    table = path.stem in SCHEMAS and path.parent == results_dir(profile.name)
    return is_complete(path.stem, profile.name) if table else path.is_file()


def file_hash(name: str) -> str | None:
    """SHA-256 of a file named relative to the project, None if it is not there."""
    path = project_root() / name
    return file_digest(path) if path.is_file() else None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    return sha256(path.read_bytes())


def snapshot(profile: Profile) -> Stamps:
    """Every file of the profile's results and figures, with what a rewrite changes in it."""
    root, results = project_root(), results_dir(profile.name)
    # The runner's own, and journals.
    work = {results / name for name in ("notebooks", "mining", "evaluation")}
    folders = (results_dir(profile.name), figures_dir(profile.name))
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        path.relative_to(root).as_posix(): (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in files
        if work.isdisjoint(path.parents) and not path.name.startswith(".")
    }


def save_manifest(
    step: Step, profile: Profile, *, depended: dict[str, Any], before: Stamps, started: float
) -> None:
    """Record that a notebook is complete; to be called when everything else of it is on disk.

    `depended` are its dependencies and `before` the files as they were when it `started`.
    """
    after = snapshot(profile)
    written = [name for name in after if after[name] != before.get(name)]
    outputs = [name for name in written if not name.endswith(".manifest.json")]
    manifest = {
        "notebook": step.name,
        "profile": profile.name,
        "outputs": outputs,
        "dependencies": without(depended, outputs),
        **provenance(started),
    }
    write_files({step.manifest: to_json(manifest)})
