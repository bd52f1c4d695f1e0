"""Profiles: the two shipped ones, and refusal of what they must not contain."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from judgelib import profiles

GOOD: dict[str, Any] = {
    "name": "mine",
    "models": {"target": "org/big", "draft": "org/small"},
    "dtype": "bfloat16",
    "notebooks": {"01_acceptance_study": {"parameters": {"seed": 3, "domains": ["math"]}}},
}


def test_the_shipped_profiles_load_and_know_the_family() -> None:
    assert {"sandbox", "sandbox-full"} <= set(profiles.available())
    for name in profiles.available():
        profile = profiles.load_profile(name)
        assert profile.name == name
    assert set(profiles.load_profile("sandbox").models) == set(profiles.ROLES)


SIZES = {
    "prompts_per_domain", "annotated", "mined", "probe_questions", "resamples", "label_counts",
    "frontier_prompts", "operating_prompts", "certify_prompts", "window_prompts",
    "window_prompts_vllm",
    "prompts", "batch", "repeats",
}  # fmt: skip


def test_the_two_sandbox_profiles_differ_in_sample_sizes_only() -> None:
    small, full = (profiles.load_profile(name) for name in ("sandbox", "sandbox-full"))
    assert (small.models, small.dtype) == (full.models, full.dtype)
    assert small.notebooks.keys() == full.notebooks.keys()
    for name, parameters in small.notebooks.items():
        differing = {key for key in parameters if parameters[key] != full.notebooks[name][key]}
        assert parameters.keys() == full.notebooks[name].keys()
        assert differing <= SIZES


REAL = ("llama-1b-8b", "llama-8b-70b", "llama-8b-405b", "qwen-0.5b-7b", "qwen3-0.6b-8b")


@pytest.mark.parametrize("name", REAL)
def test_real_profiles_pin_their_models_and_fetch_nothing_unasked(name: str) -> None:
    profile = profiles.load_profile(name)
    assert set(profile.hub_models) == {"target", "draft"} and not profile.download
    for role, source in profile.hub_models.items():
        about = profile.details[role]
        assert len(about["revision"]) == 40 and int(about["revision"], 16)
        assert about.get("gated", False) == source.startswith("meta-llama/")
    assert profiles.load_profile(name, download=True).download
    plain = profiles.load_profile("sandbox")
    for notebook, parameters in profile.notebooks.items():
        assert parameters.keys() == plain.notebooks[notebook].keys()
    assert "humaneval" not in profile.notebooks["02_labelling"]["tasks"]  # it cannot train


def test_how_a_role_is_loaded() -> None:
    profile = profiles.load_profile("llama-8b-70b")
    assert profile.loading("target") == {
        "dtype": "bfloat16", "revision": "1605565b47bb9346c5515c34102e054115b4f98b",
        "quantization": "fp8", "device": "cuda", "spread": "layers", "shared": True,
    }  # fmt: skip
    assert "quantization" not in profile.loading("draft")
    assert profiles.load_profile("qwen3-0.6b-8b").loading("draft")["template"] == {
        "enable_thinking": False
    }
    assert profiles.load_profile("sandbox").loading("target") == {"dtype": "float32"}
    assert profile.limits("rows") == {"max_new_tokens": 512, "rows": 16}
    assert profiles.load_profile("sandbox").limits("rows") == {}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a profile `mine` in an otherwise empty project."""
    monkeypatch.setenv("JUDGELIB_ROOT", str(tmp_path))
    (tmp_path / "profiles").mkdir()
    path = tmp_path / "profiles/mine.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    return path


def test_a_profile_of_ones_own_lies_in_the_project(own: Path) -> None:
    assert {"mine", "sandbox"} <= set(profiles.available())
    profile = profiles.load_profile("mine")
    assert profile.notebooks["01_acceptance_study"] == {"seed": 3, "domains": ["math"]}
    assert profile.model("target") == "org/big"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modles": {}}, "unknown key 'modles'; allowed are name, models, dtype, notebooks, dev"),
        ({"models": {"target": {"revision": "main"}, "draft": "a/b"}}, "hub id .* for target"),
        ({"models": {"target": {"source": "a/b", "sha": "1"}, "draft": "a/c"}}, "key 'sha'; allow"),
        ({"models": {"target": {"source": "a/b", "revision": 3}, "draft": "a/c"}}, "a commit or a"),
        (
            {"models": {"target": {"source": "a/b", "quantization": "int3"}, "draft": "a/c"}},
            "quantization is one of none, fp8, int8, got 'int3'",
        ),
        ({"devices": {"count": -1}}, "count is how many GPUs"),
        ({"devices": {"count": 1, "accelerator": "abacus"}}, "accelerator is one of H100 SXM"),
        ({"devices": {"count": 2, "accelerator": "H200 SXM"}}, "need parallel: layers"),
        (
            {"devices": {"count": 2, "accelerator": "L40S", "parallel": "tensor"}},
            "parallel is one of none, layers, got tensor",
        ),
        ({"answers": {"max_new_tokens": 0}}, "at least 1 for max_new_tokens"),
        ({"collected": {"human": "me"}}, "unknown key 'human'; allowed are expert"),
        ({"download": "please"}, "download: expected true or false, got 'please'"),
        ({"models": {"target": "a/b", "draft": "a/c", "judge": "a/d"}}, "'judge'; allowed are tar"),
        ({"models": {"target": "a/b"}}, "models: missing draft"),
        ({"models": {"target": "a/b", "draft": 3}}, "hub id or a path for draft"),
        ({"dtype": "float64"}, "dtype is one of float32.*'float64'"),
        ({"name": "../up"}, "one plain file name"),
        ({"notebooks": {"01": {"params": {}}}}, "notebooks, 01: unknown key 'params'"),
        ({"notebooks": {"01": None}}, "notebooks, 01: expected names with values, got None"),
        ({"notebooks": {"01": {"parameters": {"when": {"a": 1}}}}}, "lists of these for when"),
        ({"notebooks": ["01"]}, "expected names with values"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        profiles.parse({**GOOD, **change}, "mine.yaml")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ValueError, match="mine.yaml: missing dtype"):
        profiles.parse({key: GOOD[key] for key in GOOD if key != "dtype"}, "mine.yaml")


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no profile 'sandbx'; expected one of llama-1b-8b"):
        profiles.load_profile("sandbx")
    with pytest.raises(ValueError, match="no profile"):
        profiles.load_profile("../profiles/sandbox")


def test_broken_yaml_is_a_clear_error(own: Path) -> None:
    own.write_text("name: [")
    with pytest.raises(ValueError, match="mine.yaml is not valid YAML"):
        profiles.load_profile("mine")


def test_a_profile_named_unlike_its_file_is_refused(own: Path) -> None:
    own.rename(own.with_name("yours.yaml"))
    with pytest.raises(ValueError, match="yours.yaml: its name must be 'yours'"):
        profiles.load_profile("yours")


def test_missing_weights_name_the_command_that_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGELIB_ROOT", str(tmp_path))
    profile = profiles.parse(
        {**GOOD, "models": {"target": "./no/such", "draft": "./data/small"}}, "mine.yaml"
    )
    with pytest.raises(ValueError, match="no weights for 'target'.*make sandbox-models"):
        profile.model("target")
    with pytest.raises(ValueError, match="has no model 'expert'; it has target, draft"):
        profile.model("expert")
    (tmp_path / "data/small").mkdir(parents=True)
    (tmp_path / "data/small/config.json").write_text("{}")
    assert profile.model("draft") == str((tmp_path / "data/small").resolve())
