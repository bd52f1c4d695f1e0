"""Tables on disk: `data/results/<profile>/<name>.csv` and `<name>.manifest.json`.

The contract: a table exists only as a pair. The manifest is written last, atomically, and holds
the SHA-256 of the csv, so a table whose manifest is present and matches is complete; whatever a
crash, a full disk or an edit by hand leaves behind reads as incomplete. Columns are fixed by
`SCHEMAS`; counts are stored and ratios are computed by whoever reads them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from judgelib.provenance import checkout, provenance

SCHEMAS: dict[str, tuple[str, ...]] = {
    name: tuple(columns.split())
    for name, columns in {
        "family": "model domain prompts correct parameters tokens_trained seconds_trained",
        "acceptance_study": "author domain texts drafted accepted cycles correct",
        "acceptance_texts": "author domain question drafted accepted cycles correct "
        "rejected rejected_but_right",
        "labels_summary": "source domain questions tokens acceptable unacceptable "
        "ignored mismatches important",
        "mining_costs": "question domain tokens trials passes split",
        "head_training": "source feature layer model domain_train domain_eval n_train n_eval "
        "auc recall_unacceptable accept_rate threshold",
        "head_claims": "claim domain measured low high holds",
        "quality": "rule setting domain prompts correct target_correct draft_correct tokens "
        "cycles drafted accepted mismatches_accepted",
        "speed": "engine rule setting draft_length batch round hardware prompts tokens "
        "cycles seconds bound_seconds",
        "speed_windows": "engine rule setting draft_length batch round hardware prompts "
        "tokens cycles seconds bound_seconds",
        "speed_phases": "engine rule draft_length phase share",
        "operating_points": "rule setting choice",
        "probes": "study variant domain prompts tokens auc low high",
        "ablations": "study variant domain prompts correct tokens cycles accepted auc",
        "claims": "id claim source evidence measured ci_low ci_high holds",
    }.items()
}


def project_root(root: str | Path | None = None) -> Path:
    """The folder that holds `data/` and `figures/`, absolute.

    In this order: the argument; the environment variable JUDGELIB_ROOT; the checkout around the
    working directory; the checkout that this package is imported from; the working directory.
    """
    named = root or os.environ.get("JUDGELIB_ROOT")
    if named:
        return Path(named).expanduser().resolve()
    here = Path.cwd().resolve()
    candidates = [here, *here.parents, checkout()]
    return next((folder for folder in candidates if is_checkout(folder)), here)


def is_checkout(folder: Path) -> bool:
    """Whether `folder` is a clone of this repository."""
    return (folder / "judgelib" / "results.py").is_file() and (folder / "pyproject.toml").is_file()


def results_dir(profile: str, *, root: str | Path | None = None) -> Path:
    """`data/results/<profile>`; ValueError if `profile` is not one plain folder name."""
    return project_root(root) / "data" / "results" / plain_name(profile, "profile")


def figures_dir(profile: str, *, root: str | Path | None = None) -> Path:
    """`figures/<profile>`; ValueError if `profile` is not one plain folder name."""
    return project_root(root) / "figures" / plain_name(profile, "profile")


def plain_name(name: str, kind: str) -> str:
    """`name` itself, or a ValueError if it could leave its folder or hide in it."""
    if not name or name.startswith(".") or not set(name).isdisjoint("/\\\0"):
        raise ValueError(f"expected a {kind} that is one plain file name, got {name!r}")
    return name


def save_table(
    frame: pd.DataFrame,
    name: str,
    *,
    profile: str,
    parameters: Mapping[str, Any],
    seeds: Mapping[str, int] | Iterable[int],
    started: float,
    root: str | Path | None = None,
) -> Path:
    """Write one of the tables of `SCHEMAS` with its manifest; returns the csv's path.

    `parameters` are what the numbers depend on (JSON values), `seeds` the seeds that made them,
    `started` is `time.time()` at the start of the computation, from which the wall time follows.

    Raises ValueError for an unknown table, columns other than the schema's or no rows, and OSError
    if the disk is full; in each case a table of that name from before is still whole.
    """
    check_columns(frame, name)
    csv = results_dir(profile, root=root) / f"{name}.csv"
    table = to_csv(frame[list(SCHEMAS[name])])
    manifest = {
        "table": name,
        "profile": profile,
        "rows": len(frame),
        "csv_sha256": sha256(table),
        "parameters": dict(parameters),
        "seeds": dict(seeds) if isinstance(seeds, Mapping) else list(seeds),
        **provenance(started),
    }
    write_files({csv: table, manifest_path(csv): to_json(manifest)})
    return csv


def load_table(name: str, profile: str, *, root: str | Path | None = None) -> pd.DataFrame:
    """Read a complete table; ValueError if it is absent, incomplete or has other columns."""
    csv = results_dir(profile, root=root) / f"{name}.csv"
    if not is_complete(name, profile, root=root):
        state = "incomplete or altered" if csv.exists() else "absent"
        raise ValueError(
            f"expected a complete table {name!r} of profile {profile!r}, but it is {state}: "
            f"make it with `make reproduce PROFILE={profile}`"
        )
    frame = read_csv(csv)
    check_columns(frame, name)
    return frame


def load_manifest(name: str, profile: str, *, root: str | Path | None = None) -> dict[str, Any]:
    """The manifest of a table; ValueError if there is none."""
    path = manifest_path(results_dir(profile, root=root) / f"{name}.csv")
    if not path.is_file():
        raise ValueError(f"expected a manifest for table {name!r} of {profile!r}, there is none")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return manifest


def provenance_line(name: str, profile: str, *, root: str | Path | None = None) -> str:
    """One line that says where a table's numbers come from, for the end of a notebook."""
    made = load_manifest(name, profile, root=root)
    machine = made["hardware"]
    return (
        f"{name} of profile {profile}: {made['rows']} rows, {made['wall_seconds']:.0f} s on "
        f"{machine['cores']} cores of {machine['cpu']}"
        + "".join(f", {gpu}" for gpu in machine["gpus"])
        + f"; torch {made['versions']['torch']}, commit {(made['git_sha'] or 'none')[:12]}"
        + f"; {made['finished'][:10]}"
    )


def is_complete(name: str, profile: str, *, root: str | Path | None = None) -> bool:
    """Whether the table is there with a manifest that belongs to exactly these bytes."""
    csv = results_dir(profile, root=root) / f"{name}.csv"
    try:
        manifest = json.loads(manifest_path(csv).read_bytes())
        return bool(manifest["csv_sha256"] == sha256(csv.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def manifest_path(csv: Path) -> Path:
    """`family.csv` → `family.manifest.json`, in the same folder."""
    return csv.with_name(f"{csv.stem}.manifest.json")


def check_columns(frame: pd.DataFrame, name: str) -> None:
    """ValueError unless `frame` has rows and exactly the columns of table `name`, in any order."""
    if name not in SCHEMAS:
        raise ValueError(f"unknown table {name!r}; expected one of {', '.join(SCHEMAS)}")
    missing = [column for column in SCHEMAS[name] if column not in frame.columns]
    unknown = [str(column) for column in frame.columns if column not in SCHEMAS[name]]
    if missing or unknown or not frame.columns.is_unique:
        raise ValueError(
            f"table {name!r} has the columns {', '.join(SCHEMAS[name])}; "
            f"missing here: {missing or 'none'}; unknown: {unknown or 'none'}"
            + ("" if frame.columns.is_unique else "; a column occurs twice")
        )
    if frame.empty:
        raise ValueError(f"table {name!r} must have at least one row, got none")


def to_csv(frame: pd.DataFrame) -> bytes:
    """The same frame gives the same bytes on every system: UTF-8, `\\n`, shortest exact floats."""
    return frame.to_csv(index=False, lineterminator="\n").encode("utf-8")


def read_csv(path: Path) -> pd.DataFrame:
    """Inverse of `to_csv`: floats exact, words such as "None" or "NA" stay words, empty is NaN."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""], encoding="utf-8")


def to_json(value: Mapping[str, Any]) -> bytes:
    """Readable JSON; ValueError for values that JSON does not know (arrays, tensors, paths)."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"a manifest holds plain JSON values only: {error}") from error
    return (text + "\n").encode("utf-8")


def sha256(payload: bytes) -> str:
    """Hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(payload).hexdigest()


def write_files(files: Mapping[Path, bytes]) -> None:
    """Replace several files as nearly at once as a file system allows, in the order given.

    All contents reach the disk under temporary names in the same folder first; only then are they
    renamed. A full disk is therefore noticed while every old file is still in place.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, payload in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            staged[path] = reserve(path)
            write_durably(staged[path], payload)
        for path, part in staged.items():
            os.replace(part, path)
    except OSError as error:
        raise explained(error, list(files)) from error
    finally:
        for part in staged.values():
            part.unlink(missing_ok=True)


def reserve(path: Path) -> Path:
    """An empty file of a name that no other process uses, hidden beside `path`."""
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    # mkstemp makes files that only their owner can read; results are for everyone the umask allows.
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(part, 0o666 & ~umask)
    return Path(part)


def write_durably(path: Path, payload: bytes) -> None:
    """Write and wait for the disk, so that a rename never outruns its content."""
    with path.open("wb") as handle:
        handle.write(payload)
        handle.flush()
        os.fsync(handle.fileno())


def explained(error: OSError, paths: list[Path]) -> OSError:
    """The same error, saying for a full disk what was not written and what to do."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    names = ", ".join(path.name for path in paths)
    return OSError(
        error.errno,
        f"the disk is full: {names} in {paths[0].parent} could not be written; earlier results "
        "there are untouched. Free some space and run the same command again",
    )
