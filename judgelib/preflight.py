"""Before anything is loaded: what a profile needs, and what of it is missing here.

    make plan PROFILE=llama-8b-70b
    python -m judgelib.preflight --profile llama-8b-70b

prints one page: models with their size, precision and place; tasks and samples; memory, download,
hours and GPU-hours; and a line for everything that is missing. `reproduce` prints the same page and
begins only if nothing is. Sizes follow from the models' shapes; times are estimates (`workload`).
The hub is asked only where the profile may download.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import pandas as pd

from judgelib import workload
from judgelib.architectures import Architecture, architecture, cache_bytes, weight_bytes
from judgelib.hardware import accelerator
from judgelib.profiles import Profile, load_profile
from judgelib.tasks.base import local_copy
from judgelib.workload import ASSUMED

GB = 1e9
HEADROOM = 0.9
"""Of a GPU's memory; the rest is the context's and the allocator's."""
PACKAGES = {"fp8": ("accelerate", "kernels"), "int8": ("accelerate", "bitsandbytes")}
LONG_PROMPT = 1600
"""Tokens of the longest prompt that memory is kept for: GSM8K's eight examples and a question."""


# --- what is needed ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    """One model of a profile.

    Attributes:
        shape: None for a model that `architectures` does not know: its size is not known here.
        held: how its weights are held in memory (see `architectures.WEIGHT_BYTES`).
    """

    role: str
    source: str
    revision: str
    shape: Architecture | None
    held: str
    gated: bool

    @property
    def memory(self) -> float:
        """Bytes of the weights as they are held."""
        return weight_bytes(self.shape, self.held) if self.shape else 0.0

    @property
    def download(self) -> float:
        """Bytes of the published weights, which are in bfloat16."""
        return weight_bytes(self.shape, "bfloat16") if self.shape else 0.0


def needs(profile: Profile) -> list[Need]:
    """The models that a profile takes from the hub."""
    found = []
    for role, source in profile.hub_models.items():
        about = profile.details.get(role, {})
        quantization = about.get("quantization", "none")
        held = profile.dtype if quantization == "none" else quantization
        found.append(
            Need(role, source, about.get("revision", "main"), known(source), held,
                 about.get("gated", False))
        )  # fmt: skip
    return found


def known(model: str) -> Architecture | None:
    """The shape of a model, None if it is not known."""
    try:
        return architecture(model)
    except ValueError:
        return None


def working_memory(profile: Profile, models: Sequence[Need]) -> float:
    """Bytes besides weights: keys and values of all texts side by side, and logits of a window."""
    batch = profile.answers.get("side_by_side", 64)
    tokens = LONG_PROMPT + profile.answers.get("max_new_tokens", 256)
    caches = sum(
        batch * cache_bytes(model.shape, model.held, tokens) for model in models if model.shape
    )
    widest = max((model.shape.vocabulary for model in models if model.shape), default=0)
    window = max(entry.get("window", 0) for entry in profile.notebooks.values() or [{}])
    return caches + 3 * 4.0 * batch * (window + 1) * widest  # float32: logits of both, a softmax


def memory_per_gpu(profile: Profile, models: Sequence[Need]) -> float:
    """Bytes on each GPU, layers dealt out evenly."""
    whole = sum(model.memory for model in models) + working_memory(profile, models)
    return whole / max(1, profile.devices.count)


def hours(profile: Profile, models: Sequence[Need]) -> dict[str, float]:
    """Notebook -> hours, estimated; empty for a profile without GPUs."""
    pair = {model.role: model for model in models if model.shape}
    if not profile.devices.count or not {"target", "draft"} <= pair.keys():
        return {}
    chip = accelerator(profile.devices.accelerator)
    costs = [
        workload.Pass(model.shape, model.held, chip)
        for model in (pair["target"], pair["draft"]) if model.shape
    ]  # fmt: skip
    about: dict[str, Any] = {
        "batch": profile.answers.get("side_by_side", 64),
        "longest": profile.answers.get("max_new_tokens", 256),
    }
    return {
        name: workload.seconds(
            work, *costs, window=profile.notebooks[name].get("window", 16), **about
        )
        / 3600
        for name, work in workload.of_notebooks(profile.notebooks).items()
    }


# --- the page ----------------------------------------------------------------------------------


def page(profile: Profile) -> str:
    """What the profile will load, ask, take and cost."""
    models = needs(profile)
    parts = [f"Profile {profile.name}", "", _models_table(profile, models), ""]
    parts += [_place(profile, models), *_samples(profile), ""]
    parts += _times(profile, models)
    return "\n".join(parts)


def _models_table(profile: Profile, models: Sequence[Need]) -> str:
    rows = [
        {
            "role": model.role, "model": model.source, "revision": model.revision[:12],
            "parameters": f"{model.shape.parameters / 1e9:.2f} bn" if model.shape else "unknown",
            "held in": model.held, "memory": size(model, model.memory),
            "download": size(model, model.download), "gated": "yes" if model.gated else "no",
        }
        for model in models
    ]  # fmt: skip
    return pd.DataFrame(rows).to_string(index=False) if rows else "no model from the hub"


def size(model: Need, number: float) -> str:
    """Bytes in words."""
    return f"{number / GB:.1f} GB" if model.shape else "size unknown"


def _place(profile: Profile, models: Sequence[Need]) -> str:
    where = profile.devices
    texts, longest = profile.answers.get("side_by_side", 64), LONG_PROMPT
    longest += profile.answers.get("max_new_tokens", 256)
    name = f"{where.count} x {where.accelerator}" if where.count else "the CPU"
    spread = ", whole layers dealt out to them" if where.parallel == "layers" else ""
    total = sum(model.download for model in models)
    return (
        f"on        {name}{spread}\n"
        f"memory    {memory_per_gpu(profile, models) / GB:.0f} GB on each: weights, and "
        f"{texts} texts of up to {longest:,} tokens side by side\n"
        f"disk      {total / GB:.0f} GB of weights in the hub's cache; datasets under 1 GB\n"
        f"download  {'what is not here yet' if profile.download else 'nothing (download: false)'}"
    )


def _samples(profile: Profile) -> Iterator[str]:
    yield ""
    for name, entry in profile.notebooks.items():
        tasks = ", ".join(entry.get("tasks", []))
        yield f"{name:20} {tasks}"
        sizes = {key: value for key, value in entry.items() if key in SAMPLE_SIZES}
        yield " " * 21 + ", ".join(f"{key} {value}" for key, value in sizes.items())


SAMPLE_SIZES = (
    "prompts_per_domain", "annotated", "mined", "probe_questions", "frontier_prompts",
    "operating_prompts", "certify_prompts", "window_prompts", "prompts", "repeats",
)  # fmt: skip


def _times(profile: Profile, models: Sequence[Need]) -> Iterator[str]:
    found = hours(profile, models)
    if not found:
        return
    for name, value in found.items():
        yield f"{name:20} {value:8.1f} h"
    total = sum(found.values())
    yield f"{'in all':20} {total:8.1f} h, {total * profile.devices.count:.0f} GPU-hours"
    yield (
        f"Estimates: answers of {ASSUMED.answer} tokens, {ASSUMED.cycles} target calls each, "
        "passes at the memory's bandwidth plus what eager PyTorch spends; scoring not counted. "
        "They may well be off by two either way."
    )
    if profile.collected:
        asked = _asked(profile)
        longest = profile.answers.get("max_new_tokens", 512)
        yield (
            f"{', '.join(profile.collected.values())} is asked {asked} questions over the API, at "
            f"most {asked * longest:,} tokens of answers."
        )


def _asked(profile: Profile) -> int:
    entry = profile.notebooks.get("01_acceptance_study", {})
    return len(entry.get("tasks", [])) * int(entry.get("prompts_per_domain", 0))


# --- what is there -----------------------------------------------------------------------------


class Hub(Protocol):
    """What a preflight asks of the hub and its cache."""

    def token(self) -> str | None:
        """The user's token."""
        ...

    def cached(self, model: str, revision: str) -> bool:
        """Whether the weights of that revision are on this machine, all of them."""
        ...

    def cached_dataset(self, name: str, revision: str) -> bool:
        """Whether that revision of a dataset is."""
        ...

    def refusal(self, kind: str, name: str, revision: str) -> str | None:
        """Why the hub would not give out a "model" or "dataset": "licence", "revision", "missing"
        or "unreachable"; None if it would. Goes over the network."""
        ...


class HuggingFace:
    """The hub itself."""

    def token(self) -> str | None:
        from huggingface_hub import get_token

        return get_token()

    def cached(self, model: str, revision: str) -> bool:
        from huggingface_hub import try_to_load_from_cache

        def path(file: str) -> Path | None:
            found = try_to_load_from_cache(model, file, revision=revision)
            return Path(found) if isinstance(found, str) else None

        index = path("model.safetensors.index.json")
        if index is None:
            return bool(path("config.json") and path("model.safetensors"))
        import json

        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return all(path(file) for file in files) and path("config.json") is not None

    def cached_dataset(self, name: str, revision: str) -> bool:
        import datasets
        from huggingface_hub import constants

        owner, bare = name.split("/")
        prepared = Path(datasets.config.HF_DATASETS_CACHE).glob(f"{owner}___{bare}/*/*/{revision}")
        raw = Path(constants.HF_HUB_CACHE) / f"datasets--{owner}--{bare}" / "snapshots" / revision
        return any(prepared) or raw.is_dir()

    def refusal(self, kind: str, name: str, revision: str) -> str | None:
        from huggingface_hub import HfApi, errors

        try:
            info = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
            info(name, revision=revision)
            HfApi().auth_check(name, repo_type=kind)
        except errors.GatedRepoError:
            return "licence"
        except errors.RevisionNotFoundError:
            return "revision"
        except errors.RepositoryNotFoundError:
            return "missing"
        except Exception:  # whatever a network can do
            return "unreachable"
        return None


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine: bytes of memory, and whether it multiplies FP8."""

    memory: float
    fp8: bool


def gpus() -> list[Gpu]:
    """The GPUs that torch sees."""
    import torch

    found = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(number)
        found.append(Gpu(float(about.total_memory), (about.major, about.minor) >= (8, 9)))
    return found


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


@dataclass(frozen=True)
class Machine:
    """What is here; tests put other things here."""

    hub: Hub
    gpus: Callable[[], list[Gpu]] = gpus
    installed: Callable[[str], bool] = installed
    free_disk: Callable[[Path], float] = lambda path: float(shutil.disk_usage(path).free)
    runs_code: Callable[[], str] = lambda: _runs_code()

    @classmethod
    def here(cls) -> Machine:
        return cls(HuggingFace())


def _runs_code() -> str:
    """Why code that models write cannot be run here; empty if it can."""
    from judgelib.execution.probe import require_bubblewrap

    try:
        require_bubblewrap()
    except Exception as error:  # whatever it lacks, it says
        return str(error).splitlines()[0]
    return ""


# --- what is missing ---------------------------------------------------------------------------


def missing(profile: Profile, machine: Machine | None = None) -> list[str]:
    """One line for everything that a run would stumble over later; none if it can begin."""
    here = machine or Machine.here()
    models = needs(profile)
    checks: list[Iterator[str]] = [
        _missing_packages(profile, here), _missing_gpus(profile, models, here),
        _missing_weights(profile, models, here), _missing_datasets(profile, here),
        _missing_key(profile), _missing_runner(profile, here),
    ]  # fmt: skip
    return [line for check in checks for line in check]


def _missing_packages(profile: Profile, here: Machine) -> Iterator[str]:
    wanted = ["accelerate"] if profile.devices.count > 1 else []
    for about in profile.details.values():
        wanted += PACKAGES.get(about.get("quantization", "none"), ())
    wanted += ["openai"] if profile.collected else []
    for package in dict.fromkeys(wanted):
        if not here.installed(package):
            yield f"package {package}: install it with `.venv/bin/pip install {package}`"


def _missing_gpus(profile: Profile, models: Sequence[Need], here: Machine) -> Iterator[str]:
    wanted = profile.devices.count
    if not wanted:
        return
    found = here.gpus()
    if len(found) < wanted:
        yield f"GPUs: the profile needs {wanted} ({profile.devices.accelerator}), torch sees " + (
            str(len(found)) if found else "none"
        )
        return
    least = min(gpu.memory for gpu in found[:wanted])
    needed = memory_per_gpu(profile, models)
    if needed > HEADROOM * least:
        yield (
            f"GPU memory: about {needed / GB:.0f} GB are needed on each of {wanted}, the smallest "
            f"has {least / GB:.0f}; take larger ones, more of them (devices), fewer texts "
            "(answers: side_by_side) or quantization: fp8"
        )
    if any(model.held == "fp8" for model in models) and not all(g.fp8 for g in found[:wanted]):
        yield "FP8: these GPUs do not multiply it (Ada or Hopper on); take quantization: int8"


def _missing_weights(profile: Profile, models: Sequence[Need], here: Machine) -> Iterator[str]:
    wanted = {(model.source, model.revision): model for model in models}
    lacking = [model for key, model in wanted.items() if not here.hub.cached(*key)]
    token = here.hub.token()
    for model in lacking:
        much = size(model, model.download)
        if not profile.download:
            yield (
                f"weights of {model.source} at {model.revision[:12]} ({much}) are not on this "
                "machine: let them be fetched with DOWNLOAD=1, or with download: true in the "
                "profile"
            )
        if model.gated and not token:
            yield (
                f"token for {model.source}: accept its licence at "
                f"https://huggingface.co/{model.source}, then run `hf auth login` or set HF_TOKEN"
            )
        elif profile.download:
            yield from _refused("model", model.source, model.revision, here)
    if profile.download and lacking:
        yield from _missing_disk(lacking, here)


def _refused(kind: str, name: str, revision: str, here: Machine) -> Iterator[str]:
    words = {
        "licence": f"licence of {name}: your token may not read it; accept the licence at "
        f"https://huggingface.co/{name} with the token's account",
        "revision": f"revision {revision} of {kind} {name} does not exist; correct it",
        "missing": f"{kind} {name} does not exist on the hub, or your token may not see it",
        "unreachable": f"the hub cannot be reached to fetch {kind} {name}; check the network and "
        "HF_HUB_OFFLINE, or bring the files here another way",
    }
    refusal = here.hub.refusal(kind, name, revision)
    if refusal:
        yield words[refusal]


def _missing_disk(lacking: Sequence[Need], here: Machine) -> Iterator[str]:
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    while not place.is_dir():
        place = place.parent
    needed, free = sum(model.download for model in lacking), here.free_disk(place)
    if needed > free:
        yield (
            f"disk: {needed / GB:.0f} GB are to be fetched, {free / GB:.0f} GB are free at {place};"
            " make room, or set HF_HOME to a larger disk"
        )


def _tasks(profile: Profile) -> list[str]:
    names = [name for entry in profile.notebooks.values() for name in entry.get("tasks", [])]
    return list(dict.fromkeys(names))


def _missing_datasets(profile: Profile, here: Machine) -> Iterator[str]:
    from judgelib.tasks.benchmarks import BENCHMARKS

    for name in _tasks(profile):
        if name not in BENCHMARKS:
            continue
        home = BENCHMARKS[name].pinned
        local = local_copy(name)
        if local is not None:
            if not Path(local).is_dir():
                yield f"dataset {name}: expected its files in {local} (JUDGELIB_DATASETS)"
        elif here.hub.cached_dataset(home.path, home.revision):
            continue
        elif profile.download:
            yield from _refused("dataset", home.path, home.revision, here)
        else:
            yield (
                f"dataset {home.path} at {home.revision[:12]} is not on this machine: let it be "
                "fetched with DOWNLOAD=1, or name a folder of copies in JUDGELIB_DATASETS"
            )


def _missing_key(profile: Profile) -> Iterator[str]:
    from judgelib.authors import texts_path

    url = os.environ.get("OPENAI_BASE_URL", "")
    local = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
    if os.environ.get("OPENAI_API_KEY") or local:
        return
    for author, model in profile.collected.items():
        path = texts_path(profile, author)
        kept = len(path.read_bytes().splitlines()) if path.is_file() else 0
        if kept < _asked(profile):
            yield (
                f"key for {model} (author {author!r}): set OPENAI_API_KEY, or delete `collected` "
                f"from the profile; {kept} of {_asked(profile)} answers are kept"
            )


def _missing_runner(profile: Profile, here: Machine) -> Iterator[str]:
    if any(name in ("humaneval", "livecodebench") for name in _tasks(profile)):
        reason = here.runs_code()
        if reason:
            yield f"running code that models write: {reason}"


# --- before a run ------------------------------------------------------------------------------


def concerns(profile: Profile) -> bool:
    """Whether there is anything to check: a profile of local models on the CPU needs nothing."""
    return bool(profile.hub_models or profile.devices.count or profile.collected)


def clear(
    profile: Profile, machine: Machine | None = None, say: Callable[[str], Any] = print
) -> None:
    """Show the page and what is missing.

    Raises:
        ValueError: anything is missing.
    """
    if not concerns(profile):
        return
    if profile.hub_models:
        say(page(profile))
    lines = missing(profile, machine)
    if lines:
        listed = "\n".join(f"  - {line}" for line in lines)
        raise ValueError(f"profile {profile.name} cannot begin; missing here:\n{listed}")
    say("Nothing is missing.\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0 if a run could begin, 2 if not."""
    options = argparse.ArgumentParser(
        prog="judgelib.preflight", description="Show what a profile needs, and what is missing."
    )
    options.add_argument("--profile", default="sandbox")
    options.add_argument("--download", action="store_true", help="as if it said download: true")
    chosen = options.parse_args(arguments)
    try:
        profile = load_profile(chosen.profile, download=chosen.download)
        if not concerns(profile):
            print(f"Profile {profile.name}: its models are here; it needs nothing else.")
        clear(profile)
    except ValueError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
