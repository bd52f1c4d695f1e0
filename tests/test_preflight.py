"""Preflight: the page, and one clear line for everything that is missing; never the network."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants, errors

from judgelib import preflight, reproduce, workload
from judgelib.architectures import architecture, weight_bytes
from judgelib.hardware import accelerator
from judgelib.preflight import Gpu, Machine, clear, missing, needs, page
from judgelib.profiles import Profile, load_profile
from judgelib.provenance import checkout

GPU = Gpu(80e9, fp8=True)
BIG = "meta-llama/Llama-3.1-70B-Instruct"


@dataclass
class FakeHub:
    """A hub with everything on this machine, unless a test says otherwise."""

    known_token: str | None = "hf_x"
    models: bool = True
    datasets: bool = True
    refusals: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def token(self) -> str | None:
        return self.known_token

    def cached(self, model: str, revision: str) -> bool:
        return self.models

    def cached_dataset(self, name: str, revision: str) -> bool:
        return self.datasets

    def refusal(self, kind: str, name: str, revision: str) -> str | None:
        self.asked.append(name)
        return self.refusals.get(name)


def machine(hub: FakeHub | None = None, **here: Any) -> Machine:
    """One with all that the profile of 70B needs."""
    whole: dict[str, Any] = {
        "gpus": lambda: [GPU, GPU], "installed": lambda package: True,
        "free_disk": lambda path: 1e12, "runs_code": lambda: "", **here,
    }  # fmt: skip
    return Machine(hub or FakeHub(), **whole)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGELIB_ROOT", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    for name in ("OPENAI_BASE_URL", "JUDGELIB_DATASETS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def llama() -> Profile:
    return load_profile("llama-8b-70b")


@pytest.fixture
def fetching() -> Profile:
    return load_profile("llama-8b-70b", download=True)


def test_nothing_is_missing_where_all_is_there(llama: Profile) -> None:
    hub = FakeHub()
    said: list[str] = []
    clear(llama, machine(hub), said.append)
    assert said[0].startswith("Profile llama-8b-70b") and said[-1] == "Nothing is missing.\n"
    assert hub.asked == []  # what is here is not asked for


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"gpus": lambda: []}, "GPUs: the profile needs 2 (H100 SXM), torch sees none"),
        ({"gpus": lambda: [GPU]}, "GPUs: the profile needs 2 (H100 SXM), torch sees 1"),
        ({"gpus": lambda: [GPU, Gpu(40e9, True)]}, "GPU memory: about 52 GB are needed on each of "
         "2, the smallest has 40"),
        ({"gpus": lambda: 2 * [Gpu(80e9, False)]}, "FP8: these GPUs do not multiply it"),
        ({"installed": lambda package: package != "kernels"}, "package kernels: install it with"),
        ({"installed": lambda package: package != "openai"}, "package openai: install it with"),
        ({"runs_code": lambda: "no bubblewrap"}, "running code that models write: no bubblewrap"),
    ],
)  # fmt: skip
def test_each_lack_of_the_machine_is_one_line(
    llama: Profile, change: dict[str, Callable[..., Any]], line: str
) -> None:
    (found,) = missing(llama, machine(**change))
    assert found.startswith(line)


def test_weights_that_are_not_here_are_named_with_their_size(llama: Profile) -> None:
    hub = FakeHub(models=False)
    found = missing(llama, machine(hub))
    assert len(found) == 2 and hub.asked == []  # the hub is not asked unless downloads are allowed
    assert f"weights of {BIG} at 1605565b47bb (141.1 GB) are not on this machine" in found[0]
    assert "DOWNLOAD=1" in found[0]


def test_a_gated_model_needs_a_token(fetching: Profile) -> None:
    hub = FakeHub(known_token=None, models=False)
    found = missing(fetching, machine(hub))
    assert [line.split(":")[0] for line in found] == [
        f"token for {BIG}", "token for meta-llama/Llama-3.1-8B-Instruct",
    ]  # fmt: skip
    assert f"https://huggingface.co/{BIG}" in found[0] and hub.asked == []


def test_no_token_is_needed_for_an_open_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    profile = load_profile("qwen-0.5b-7b", download=True)
    assert missing(profile, machine(FakeHub(known_token=None, models=False))) == []


@pytest.mark.parametrize(
    ("refusal", "line"),
    [
        ("licence", f"licence of {BIG}: your token may not read it; accept the licence at"),
        ("revision", "revision 1605565b47bb9346c5515c34102e054115b4f98b of model "),
        ("missing", f"model {BIG} does not exist on the hub"),
        ("unreachable", f"the hub cannot be reached to fetch model {BIG}"),
    ],
)
def test_each_refusal_of_the_hub_is_one_line(fetching: Profile, refusal: str, line: str) -> None:
    (found,) = missing(fetching, machine(FakeHub(models=False, refusals={BIG: refusal})))
    assert found.startswith(line)


def test_a_wrong_dataset_revision_is_one_line(fetching: Profile) -> None:
    hub = FakeHub(datasets=False, refusals={"openai/gsm8k": "revision"})
    (found,) = missing(fetching, machine(hub))
    assert found.startswith("revision 740312add88f781978c0658806c59bc2815b9866 of dataset openai/")
    assert {"cais/mmlu", "allenai/ai2_arc", "openai/openai_humaneval"} < set(hub.asked)


def test_datasets_that_are_not_here_are_named(llama: Profile) -> None:
    found = missing(llama, machine(FakeHub(datasets=False)))
    assert len(found) == 4 and all("is not on this machine" in line for line in found)


def test_local_copies_of_datasets_will_do(
    llama: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGELIB_DATASETS", str(tmp_path))
    for name in ("gsm8k", "humaneval", "mmlu"):
        (tmp_path / name).mkdir()
    (found,) = missing(llama, machine(FakeHub(datasets=False)))
    assert found.startswith("dataset arc-challenge: expected its files in")


def test_the_disk_must_hold_what_is_fetched(fetching: Profile) -> None:
    here = machine(FakeHub(models=False), free_disk=lambda path: 100e9)
    (found,) = missing(fetching, here)
    assert found.startswith("disk: 157 GB are to be fetched, 100 GB are free")


def test_the_key_is_needed_only_while_texts_are_missing(
    llama: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    (found,) = missing(llama, machine())
    assert found.startswith("key for gpt-4o (author 'expert'): set OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
    assert missing(llama, machine()) == []
    monkeypatch.delenv("OPENAI_BASE_URL")
    kept = tmp_path / "data/results/llama-8b-70b/texts/expert.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}\n" * 200)
    assert missing(llama, machine()) == []


def test_everything_missing_is_listed_before_anything_begins(llama: Profile) -> None:
    said: list[str] = []
    with pytest.raises(ValueError, match="cannot begin; missing here") as caught:
        clear(llama, machine(FakeHub(models=False), gpus=lambda: []), said.append)
    assert len(said) == 1  # the page stands above
    assert str(caught.value).count("\n  - ") == 3


# --- the page ----------------------------------------------------------------------------------


def test_the_page_says_models_place_samples_and_times(llama: Profile) -> None:
    text = page(llama)
    for words in (
        BIG, "1605565b47bb", "fp8", "72.7 GB", "141.1 GB", "2 x H100 SXM", "download: false",
        "gsm8k, humaneval, arc-challenge, mmlu", "annotated [170, 60, 60]", "GPU-hours",
        "Estimates", "gpt-4o is asked 200 questions",
    ):  # fmt: skip
        assert words in text, words


def test_sizes_follow_from_the_shapes(llama: Profile) -> None:
    target, draft = needs(llama)
    assert target.memory == weight_bytes(architecture(BIG), "fp8") < target.download / 1.9
    assert draft.memory == draft.download == 2 * architecture(draft.source).parameters
    fewer = replace(llama, answers={**llama.answers, "side_by_side": 1})
    smaller = preflight.memory_per_gpu(fewer, needs(fewer))
    weights = (target.memory + draft.memory) / 2
    assert weights < smaller < preflight.memory_per_gpu(llama, needs(llama)) < 0.9 * 80e9


def test_every_shipped_profile_fits_the_gpus_that_it_names() -> None:
    for name in ("llama-1b-8b", "llama-8b-70b", "llama-8b-405b", "qwen-0.5b-7b", "qwen3-0.6b-8b"):
        profile = load_profile(name)
        room = 0.9 * accelerator(profile.devices.accelerator).memory
        assert preflight.memory_per_gpu(profile, needs(profile)) < room, name
        assert set(preflight.hours(profile, needs(profile))) == set(profile.notebooks), name


def test_hours_grow_with_the_samples(llama: Profile) -> None:
    before = preflight.hours(llama, needs(llama))
    entry = {**llama.notebooks["02_labelling"], "mined": [300, 80, 80]}
    more = replace(llama, notebooks={**llama.notebooks, "02_labelling": entry})
    after = preflight.hours(more, needs(more))
    assert after["02_labelling"] > 1.1 * before["02_labelling"]
    assert after["03_head_training"] == before["03_head_training"] > 0


def test_a_pass_over_many_texts_costs_less_than_many_passes() -> None:
    one = workload.Pass(architecture(BIG), "fp8", accelerator("H100 SXM"))
    assert one.seconds(1, 1) < one.seconds(16, 1) < 3 * one.seconds(1, 1)
    # At the least its weights are read once: 70 GB at 3.35 TB/s.
    assert one.seconds(1, 1) > 0.02


# --- who asks ----------------------------------------------------------------------------------


def test_the_sandbox_is_not_asked_about(capsys: pytest.CaptureFixture[str]) -> None:
    clear(load_profile("sandbox"))
    assert capsys.readouterr().out == ""
    assert preflight.main(["--profile", "sandbox"]) == 0
    assert "needs nothing else" in capsys.readouterr().out


def test_plan_and_reproduce_refuse_with_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = machine(FakeHub(models=False), gpus=lambda: [])
    monkeypatch.setattr(Machine, "here", lambda: here)
    monkeypatch.setenv("JUDGELIB_ROOT", str(checkout()))  # whose notebooks the profile lists
    assert preflight.main(["--profile", "llama-1b-8b"]) == 2
    assert reproduce.main(["--profile", "llama-1b-8b"]) == 2
    said = capsys.readouterr()
    assert said.err.count("GPUs: the profile needs 1 (H100 SXM), torch sees none") == 2
    assert said.out.count("Profile llama-1b-8b") == 2


def test_models_of_unknown_shape_can_be_used_and_say_so() -> None:
    profile = Profile("mine", {"target": "a/b", "draft": "a/c"}, "bfloat16", {})
    assert page(profile).count("size unknown") == 4
    assert missing(profile, machine()) == []
    (first, _) = missing(profile, machine(FakeHub(models=False)))
    assert first.startswith("weights of a/b at main (size unknown) are not on this machine")


# --- the hub itself, without the network -------------------------------------------------------


def snapshot(cache: Path, kind: str, revision: str, *files: str) -> Path:
    folder = cache / f"{kind}--org--big" / "snapshots" / revision
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("{}")
    return folder


def test_cached_weights_are_found_only_if_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hub = preflight.HuggingFace()
    assert not hub.cached("org/big", "a" * 40)
    folder = snapshot(tmp_path, "models", "a" * 40, "config.json")
    assert not hub.cached("org/big", "a" * 40)
    (folder / "model.safetensors").touch()
    assert hub.cached("org/big", "a" * 40) and not hub.cached("org/big", "b" * 40)
    parts = {"x": "model-1.safetensors", "y": "model-2.safetensors"}
    folder = snapshot(tmp_path, "models", "b" * 40, "config.json", "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert not hub.cached("org/big", "b" * 40)
    (folder / "model-2.safetensors").touch()
    assert hub.cached("org/big", "b" * 40)


def test_cached_datasets_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    hub = preflight.HuggingFace()
    assert not hub.cached_dataset("org/big", "abc")
    (tmp_path / "datasets/org___big/main/0.0.0/abc").mkdir(parents=True)
    assert hub.cached_dataset("org/big", "abc") and not hub.cached_dataset("org/big", "abd")
    snapshot(tmp_path / "hub", "datasets", "abd")
    assert hub.cached_dataset("org/big", "abd")


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (errors.GatedRepoError, "licence"), (errors.RevisionNotFoundError, "revision"),
        (errors.RepositoryNotFoundError, "missing"), (ConnectionError, "unreachable"),
        (None, None),
    ],
)  # fmt: skip
def test_what_the_hub_answers_is_put_in_a_word(
    monkeypatch: pytest.MonkeyPatch, error: Any, word: str | None
) -> None:
    def answer(*_: Any, **__: Any) -> None:
        if error:
            raise error.__new__(error)

    for name in ("model_info", "dataset_info", "auth_check"):
        monkeypatch.setattr(HfApi, name, answer)
    assert preflight.HuggingFace().refusal("model", "org/big", "main") == word
    assert preflight.HuggingFace().refusal("dataset", "org/big", "main") == word
