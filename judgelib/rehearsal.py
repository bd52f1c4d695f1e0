"""A rehearsal: ``make rehearse PROFILE=llama-8b-70b`` runs all notebooks under a profile in minutes
on two cores, without the hub.

    python -m judgelib.rehearsal --profile llama-8b-70b

Everything goes the profile's own way (`python -m judgelib.reproduce --profile ...`), in a project
of its own under `build/rehearsal/<profile>/`, so that no result is replaced. Only these are not
the profile's: the checkpoints, which are tiny ones of the same kind (`tiny_checkpoints`); the
datasets, made-up rows in the original schemas (`rehearsal_data`); the sample sizes (`SIZES`); the
devices, one CPU; and texts of a paid endpoint, which are taken as collected. At the end every table
of `results.SCHEMAS` must be there with its columns. No number of a rehearsal says anything about
the models.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from judgelib import rehearsal_data, reproduce, tiny_checkpoints
from judgelib.profiles import Profile, load_profile
from judgelib.provenance import checkout
from judgelib.results import SCHEMAS, load_table
from judgelib.tiny_checkpoints import Lesson

SIZES: dict[str, Any] = {
    "prompts_per_domain": 3, "annotated": [8, 5, 6], "mined": [8, 5, 6], "probe_questions": 8,
    "bootstrap": 20, "resamples": 20, "label_counts": [4, 8], "frontier_prompts": 2,
    "operating_prompts": 3, "window": 8, "certify_prompts": 2, "window_prompts": 2,
    "window_prompts_vllm": None, "windows_strict": [4], "windows_judge": [4, 8], "prompts": 2,
    "batch": 2, "common": 4, "repeats": 2,
}  # fmt: skip
"""Parameters of the notebooks that a rehearsal makes smaller. vLLM takes half a minute to start for
each window, and its own tests cover it, so it is left out; notebook 05 says so."""

ANSWERS = {"max_new_tokens": 40, "side_by_side": 24}
STEPS = {"target": 240, "draft": 120}
"""Steps of training: the draft makes more mistakes."""
TAUGHT = {"train": 16, "validation": 6, "test": 6}
"""Questions of each split whose answers the models are taught."""


@dataclass(frozen=True)
class Stage:
    """Where one profile is rehearsed."""

    profile: Profile
    root: Path

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def environment(self) -> dict[str, str]:
        """What sends every part of the package here, and none to the network."""
        return {
            "JUDGELIB_ROOT": str(self.root), "JUDGELIB_DATASETS": str(self.datasets),
            "HF_DATASETS_CACHE": str(self.root / "cache"), "HF_HUB_OFFLINE": "1",
            "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",  # nothing listens there
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",  # tiny models only wait for each other on several
            # Cells take a tenth of a second here, a process for them ten times as long.
            "JUDGELIB_WORKERS": "1",
        }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0 if every notebook finished and every table has its columns."""
    options = argparse.ArgumentParser(prog="judgelib.rehearsal", description="Rehearse a profile.")
    options.add_argument("--profile", default="llama-8b-70b")
    options.add_argument("--notebook", action="append", help="only this one (may be repeated)")
    options.add_argument("--keep", action="store_true", help="go on with what an earlier one left")
    chosen = options.parse_args(arguments)
    try:
        profile = load_profile(chosen.profile)
        if not profile.hub_models:
            raise ValueError(f"{profile.name} needs no rehearsal: run it with `make reproduce`")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return reproduce.EXIT_REFUSED
    stage = Stage(profile, checkout() / "build" / "rehearsal" / profile.name)
    return rehearse(stage, keep=chosen.keep, only=chosen.notebook)


def rehearse(stage: Stage, *, keep: bool = False, only: Sequence[str] | None = None) -> int:
    """Prepare the stage, run the notebooks, check the tables."""
    started = time.time()
    if not keep:
        shutil.rmtree(stage.root, ignore_errors=True)
    before = dict(os.environ)
    os.environ.update(stage.environment)
    try:
        if not (stage.root / "notebooks").is_dir():
            prepare(stage)
        print(f"prepared in {time.time() - started:.0f} s", flush=True)
        wanted = [part for name in only or () for part in ("--notebook", name)]
        code = reproduce.main(["--profile", stage.profile.name, *wanted])
        problems = [] if code or only else missing_tables(stage.profile.name)
    finally:
        os.environ.clear()
        os.environ.update(before)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    if not code and not problems:
        spent = reproduce.duration(time.time() - started)
        print(f"\nRehearsed {stage.profile.name} in {spent}: all tables have their columns.")
    return code or (reproduce.EXIT_FAILED if problems else 0)


def prepare(stage: Stage) -> None:
    """Datasets, checkpoints, collected texts, the profile and the notebooks."""
    rehearsal_data.write(stage.datasets)
    make_checkpoints(stage, progress=lambda line: print(f"  {line}", flush=True))
    write_profile(stage)
    collect(stage)
    source, goal = checkout() / "notebooks", stage.root / "notebooks"
    goal.mkdir(parents=True)
    for path in source.glob("*.ipynb"):
        shutil.copyfile(path, goal / path.name)


def make_checkpoints(stage: Stage, progress: Callable[[str], None]) -> None:
    """A tiny checkpoint for every model of the profile, all with one tokenizer."""
    from judgelib.tasks import Question
    from judgelib.tasks.base import prompt_ids

    asked: list[Question] = questions()
    texts = [message["content"] for question in asked for message in question.messages]
    target = stage.profile.hub_models["target"]
    torch.set_num_threads(1)
    made = tiny_checkpoints.tokenizer(target, [*texts, *(q.reference for q in asked)])
    made.template_options = stage.profile.template
    lessons: list[Lesson] = [
        (
            prompt_ids(made, question),
            [*made(question.reference, add_special_tokens=False).input_ids, made.eos_token_id],
        )
        for question in asked
    ]
    for seed, (role, model) in enumerate(stage.profile.hub_models.items()):
        larger = role == "target"
        tiny_checkpoints.checkpoint(
            stage.models / role, model, made, lessons, larger=larger,
            steps=STEPS["target" if larger else "draft"], seed=seed, progress=progress,
        )  # fmt: skip


def questions() -> list[Any]:
    """What the models are taught, of every benchmark that a rehearsal has."""
    from judgelib.tasks import having, load_task

    return [
        question
        for split, count in TAUGHT.items()
        for name in having(list(rehearsal_data.FILES), split)
        for question in load_task(name).questions(split, count)
    ]


def write_profile(stage: Stage) -> None:
    """The profile as it is, but for what a rehearsal changes; found before the built-in one."""
    profile = stage.profile
    content = {
        "name": profile.name,
        "models": {role: str(stage.models / role) for role in profile.models},
        "dtype": "float32",
        "answers": ANSWERS,
        "template": profile.template,
        "collected": profile.collected,
        "notebooks": {
            name: {"parameters": smaller(parameters)}
            for name, parameters in profile.notebooks.items()
        },
    }
    path = stage.root / "profiles" / f"{profile.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def smaller(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a notebook at a rehearsal's sizes; the others stay as they are."""
    return {name: SIZES.get(name, value) for name, value in parameters.items()}


def collect(stage: Stage) -> None:
    """Texts by authors at an endpoint, as if they had been collected: the references."""
    from judgelib import authors
    from judgelib.collecting import request_sha
    from judgelib.tasks import load_task
    from judgelib.texts import Journal, Text

    profile = load_profile(stage.profile.name)
    about = profile.notebooks["01_acceptance_study"]
    asked = [
        question
        for name in about["tasks"]
        for question in load_task(name).questions(
            "test", about["prompts_per_domain"], seed=about["seed"]
        )
    ]
    for author, model in profile.collected.items():
        settings = authors.settings_of(profile, author)
        with Journal(authors.texts_path(profile, author)) as journal:
            for question in asked:
                sha = request_sha(question.messages, settings)
                journal.append(Text(question.id, model, question.reference, sha, "stop"))


def missing_tables(profile: str) -> list[str]:
    """What is wrong with the tables, in words; nothing if all are there with their columns."""
    found = []
    for name in SCHEMAS:
        try:
            load_table(name, profile)
        except ValueError as error:
            found.append(str(error))
    return found


if __name__ == "__main__":
    sys.exit(main())
