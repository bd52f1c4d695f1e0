"""Execute the notebooks in order: `python -m judgelib.reproduce --profile sandbox`.

What lands where, under `data/results/<profile>/notebooks/`:

- `NN_name.ipynb`, the notebook as executed with the profile's parameters. The sources in
  `notebooks/` stay as they are: a run must not change files under version control, and another
  profile's outputs must not stand under the committed defaults. `--write-back` puts outputs there
  on request, and only if the profile's parameters are those defaults.
- `NN_name.failed.ipynb`, a notebook that failed, with its traceback.
- `NN_name.manifest.json`, written last: the notebook is complete and is not run again until
  something that it depends on changes (see `steps`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import papermill

from judgelib import mapping, notebooks, preflight
from judgelib.profiles import Profile, load_profile
from judgelib.results import figures_dir, project_root, results_dir, write_files
from judgelib.steps import (
    Step,
    changes,
    dependencies,
    read_manifest,
    save_manifest,
    snapshot,
)

EXIT_FAILED, EXIT_REFUSED, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0 if all is complete, 1 for a failed notebook, 2 for bad input."""
    options = parser().parse_args(arguments)
    try:
        profile = load_profile(options.profile, download=options.download)
        if options.clean:
            return clean(profile)
        mapping.engine()  # refuses an engine that is not there
        steps = plan(profile)
        chosen = select(steps, options.notebook)
        preflight.clear(profile)
        if options.write_back:
            refuse_other_defaults(chosen)
        offline = {"HF_HUB_OFFLINE": "1"} if profile.hub_models and not profile.download else {}
        with environment(**offline):
            code = run(profile, steps, chosen, force=options.force)
        if code == 0 and options.write_back:
            write_back(chosen)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED
    return code


def parser() -> argparse.ArgumentParser:
    """The options, as `--help` shows them."""
    options = argparse.ArgumentParser(prog="judgelib.reproduce", description=summary())
    options.add_argument("--profile", default="sandbox", help="which models, tasks and sizes")
    options.add_argument("--notebook", action="append", help="only this one (may be repeated)")
    options.add_argument(
        "--download", action="store_true", help="let weights and datasets be fetched from the hub"
    )
    options.add_argument("--force", action="store_true", help="run even what is complete")
    options.add_argument(
        "--write-back", action="store_true", help="put the outputs into notebooks/, to be committed"
    )
    options.add_argument(
        "--clean", action="store_true", help="delete the profile's results and figures; run nothing"
    )
    return options


def summary() -> str:
    """First line of the module's documentation."""
    return (__doc__ or "").splitlines()[0]


def plan(profile: Profile) -> list[Step]:
    """All notebooks in order with their parameters; ValueError if profile and notebooks disagree.

    Checked here: papermill itself only warns about a parameter that a notebook does not have.
    """
    paths = sorted((project_root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    names = [path.stem for path in paths]
    absent = [name for name in profile.notebooks if name not in names]
    unlisted = [name for name in names if name not in profile.notebooks]
    if absent or unlisted or not paths:
        raise ValueError(
            f"profile {profile.name!r} must list exactly those in notebooks/ of {project_root()}; "
            f"listed but not there: {absent or 'none'}; there but not listed: {unlisted or 'none'}"
        )
    for role in profile.models:
        profile.model(role)
    folder = results_dir(profile.name) / "notebooks"
    return [Step(path, check_parameters(path, profile), folder) for path in paths]


def check_parameters(path: Path, profile: Profile) -> dict[str, Any]:
    """The parameters to set in a notebook, `profile` among them; ValueError for one it lacks."""
    wanted = {"profile": profile.name, **profile.notebooks[path.stem]}
    known = notebooks.parameters(notebooks.read(path), path.name)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(
            f"{path.name} has no parameter {', '.join(map(repr, unknown))}; "
            f"its cell tagged 'parameters' has {', '.join(known) or 'none'}"
        )
    return wanted


def select(steps: list[Step], names: Iterable[str] | None) -> list[Step]:
    """The steps named, with or without folder and ending (none: all); ValueError for a stranger."""
    if not names:
        return steps
    wanted = [Path(name).name.removesuffix(".ipynb") for name in names]
    known = [step.name for step in steps]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"no notebook {', '.join(unknown)}; there are {', '.join(known)}")
    return [step for step in steps if step.name in wanted]


def refuse_other_defaults(steps: list[Step]) -> None:
    """ValueError if outputs would be committed under a parameters cell that did not make them."""
    for step in steps:
        defaults = notebooks.parameters(notebooks.read(step.path), step.path.name)
        other = [f"{k}={v!r}" for k, v in step.parameters.items() if defaults[k] != v]
        if other:
            raise ValueError(
                f"--write-back: {step.path.name} has other defaults than this profile's "
                f"{', '.join(other)}; its outputs would not be those of the cells above them"
            )


def run(profile: Profile, steps: list[Step], chosen: list[Step], *, force: bool = False) -> int:
    """Run the chosen steps that are not complete, in order; stop at the first that fails."""
    for number, step in enumerate(chosen, start=1):
        title = f"[{number}/{len(chosen)}] {step.name}"
        earlier = steps[: steps.index(step)]
        reasons = changes(step, earlier, profile) or (["--force"] if force else [])
        if not reasons:
            finished = read_manifest(step)["finished"]
            print(f"{title}: complete since {finished} (`make clean-results` starts over)")
            continue
        print(f"{title}: running ({', '.join(reasons)})", flush=True)
        code = run_one(step, earlier, profile, title)
        if code != 0:
            left = [later.name for later in chosen[number:]]
            print(f"  not run: {', '.join(left) or 'nothing else was left'}")
            return code
    report(profile, chosen)
    return 0


def run_one(step: Step, earlier: list[Step], profile: Profile, title: str) -> int:
    """Execute one notebook, keep it where the user finds it, and record that it is complete."""
    started = time.time()
    depended, before = dependencies(step, earlier, profile), snapshot(profile)
    step.folder.mkdir(parents=True, exist_ok=True)
    step.manifest.unlink(missing_ok=True)
    try:
        execute(step)
    except KeyboardInterrupt:
        print(f"{title}: interrupted after {duration(time.time() - started)}; it will start again")
        step.running.unlink(missing_ok=True)
        return EXIT_INTERRUPTED
    except Exception as error:  # whatever it was, the user gets the notebook and the reason
        report_failure(step, error, f"{title}: FAILED after {duration(time.time() - started)}")
        return EXIT_FAILED
    keep(step)
    save_manifest(step, profile, depended=depended, before=before, started=started)
    print(f"{title}: done in {duration(time.time() - started)}", flush=True)
    return 0


def execute(step: Step) -> None:
    """Run a notebook into its temporary file; papermill's error if a cell fails.

    In the folder of the source, as JupyterLab would, with a kernel of this very Python.
    """
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    with environment(TQDM_DISABLE="1", **quiet):
        papermill.execute_notebook(
            step.path,
            step.running,
            parameters=step.parameters,
            kernel_name="python3",
            language="python",
            cwd=step.path.parent,
            progress_bar=sys.stderr.isatty(),
            # A kernel logs advice on transports and its own shutdown; neither is for the reader.
            extra_arguments=["--IPKernelApp.log_level=50"],
        )


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables, which a kernel inherits, unless the user has set them."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def keep(step: Step) -> None:
    """Move the executed notebook, tidied, to where the user finds it."""
    tidy = notebooks.tidied(notebooks.read(step.running), project_root())
    write_files({step.executed: notebooks.to_bytes(tidy)})
    step.running.unlink(missing_ok=True)
    step.failed.unlink(missing_ok=True)


def report_failure(step: Step, error: Exception, headline: str) -> None:
    """Leave the failed notebook where the user can open it, and say where and why."""
    print(f"{headline}: {last_line(error)}")
    if step.running.is_file():
        os.replace(step.running, step.failed)
        kind = "with its traceback" if hasattr(error, "ename") else "as far as it got"
        print(f"  the notebook {kind}: {step.failed}")
    else:
        print(f"  it did not start; the reason in full: {error}")


def last_line(error: Exception) -> str:
    """What went wrong, in one line: papermill keeps the cell's own error in `ename`, `evalue`."""
    cell = getattr(error, "exec_count", None)
    if hasattr(error, "ename"):
        return f"cell {cell}: {error.ename}: {getattr(error, 'evalue', '')}".strip()
    return f"{type(error).__name__}: {error}".splitlines()[0]


def write_back(steps: list[Step]) -> None:
    """Put the outputs of complete notebooks into their sources under `notebooks/`."""
    for step in steps:
        source, executed = notebooks.read(step.path), notebooks.read(step.executed)
        result, notes = notebooks.with_outputs(source, executed)
        write_files({step.path: notebooks.to_bytes(result)})
        print(f"wrote outputs into {step.path}")
        for note in notes:
            print(f"  left out, {note}")


def report(profile: Profile, steps: list[Step]) -> None:
    """Say where tables, figures and executed notebooks lie."""
    print(f"\nProfile {profile.name}, in {project_root()}:")
    for step in steps:
        print(f"  {step.name}")
        print(f"    notebook  {step.executed.relative_to(project_root())}")
        for name in read_manifest(step).get("outputs", []):
            kind = "figure" if name.startswith("figures/") else "result"
            print(f"    {kind}    {name}")


def clean(profile: Profile) -> int:
    """Delete a profile's results and figures, so that the next run starts over."""
    for folder in (results_dir(profile.name), figures_dir(profile.name)):
        if folder.is_dir():
            shutil.rmtree(folder)
            print(f"deleted {folder}")
        else:
            print(f"nothing at {folder}")
    return 0


def duration(seconds: float) -> str:
    """`7 s` or `2 min 5 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


if __name__ == "__main__":
    sys.exit(main())
