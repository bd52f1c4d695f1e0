"""The head on disk and off: what it computes, what it remembers, what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file, save_file

import judgelib
from judgelib.head import CARD, CONFIG, WEIGHTS, JudgeHead
from judgelib.head_config import HeadConfig, ModelRecord, public_name
from judgelib.models import LanguageModel
from judgelib.results import sha256

TARGET = ModelRecord("owner/big", "LlamaForCausalLM", 32, 2, "0123456789abcdef")
DRAFT = ModelRecord("owner/small", "LlamaForCausalLM", 16, 1)


def config(**changes: Any) -> HeadConfig:
    """A config in which nothing is the default."""
    values: dict[str, Any] = {
        "target": TARGET,
        "draft": DRAFT,
        "feature": "layer_2",
        "source": "annotated",
        "training": {"questions": 120, "seed": 7, "versions": {"torch": "2"}, "widths": (1, 2)},
        "threshold": 0.75,
        "threshold_choice": "90% recall on 30 validation questions",
    }
    return HeadConfig(**{**values, **changes})


def head(**changes: Any) -> JudgeHead:
    """A head with a scaler and random weights."""
    made, generator = config(**changes), torch.Generator().manual_seed(5)
    mean = torch.randn(made.width, generator=generator) * 3
    scale = torch.rand(made.width, generator=generator) + 0.2
    if made.hidden_widths:
        return JudgeHead(made, mean=mean, scale=scale, generator=generator)
    weight = torch.randn(made.width, generator=generator)
    return JudgeHead.from_linear(made, weight=weight, bias=0.3, mean=mean, scale=scale)


def rows(width: int = 32, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 5, width, generator=torch.Generator().manual_seed(1)).to(dtype) * 2


# What it computes.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_probability_is_that_of_a_standardised_logistic_regression(dtype: torch.dtype) -> None:
    judge, hidden = head(), rows(dtype=dtype)
    weight = judge.state_dict()["layers.0.weight"][0].double()
    scaled = (hidden.double() - judge.mean.double()) / judge.scale.double()
    found = judge.probability(hidden)
    assert (found.shape, found.dtype) == ((2, 5), torch.float32)
    torch.testing.assert_close(found, torch.sigmoid(scaled @ weight + 0.3).float())
    torch.testing.assert_close(judge(hidden).sigmoid(), found)


@pytest.mark.parametrize("widths", [(), (8,), (8, 4)])
def test_folded_head_says_the_same_without_a_scaler(widths: tuple[int, ...]) -> None:
    judge = head(hidden_widths=widths)
    before = judge(rows())
    folded = judge.folded()
    torch.testing.assert_close(folded(rows()), before)
    torch.testing.assert_close(judge(rows()), before)  # the original is as it was
    folded.mean += 1.0
    torch.testing.assert_close(folded(rows()), before)  # it is not even read
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert all(parameter.requires_grad for parameter in judge.parameters())


def test_layers_of_an_mlp_are_drawn_from_the_generator_only() -> None:
    before = torch.get_rng_state()
    again = [head(hidden_widths=(8,))(rows()) for _ in range(2)]
    assert torch.equal(*again) and again[0].std() > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_new_linear_head_is_undecided_and_can_learn() -> None:
    judge = JudgeHead(config())
    assert (judge.probability(rows()) == 0.5).all()
    judge(rows()).sum().backward()
    assert judge.layers[0].weight.grad is not None
    assert judge.parameter_count == 33


def test_hidden_states_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="width 32, got 31.*owner/big"):
        head()(rows(31))


@pytest.mark.parametrize(
    ("of", "token", "width"),
    [("target", "draft", 32), ("draft", "target", 16), ("both", "draft", 48), ("both", "both", 96)],
)
def test_width_follows_from_what_is_read(of: str, token: str, width: int) -> None:
    judge = head(of=of, token=token, feature="post_norm")
    assert judge.config.width == width
    assert judge.probability(rows(width)).shape == (2, 5)
    assert judge.config.decodes == ((of, token) == ("target", "draft"))


# What it remembers.


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_widths": (8, 4)},
        {"draft": None, "feature": "pre_norm", "threshold": 1.0},
        {"of": "both", "token": "both", "feature": "layer_1", "source": "mined"},
    ],
    ids=str,
)
def test_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    judge = head(**changes)
    folder = judge.save_pretrained(tmp_path / "new" / "head")
    loaded = JudgeHead.from_pretrained(folder)
    assert loaded.config == judge.config
    for name, tensor in judge.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    hidden = rows(judge.config.width)
    assert torch.equal(loaded.probability(hidden), judge.probability(hidden))
    assert not loaded.training and loaded.threshold == judge.threshold
    assert sorted(path.name for path in folder.iterdir()) == sorted([WEIGHTS, CONFIG, CARD])


def test_a_folded_head_is_saved_as_what_it_computes(tmp_path: Path) -> None:
    judge = head()
    loaded = JudgeHead.from_pretrained(judge.folded().save_pretrained(tmp_path))
    torch.testing.assert_close(loaded(rows()), judge(rows()))


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in (WEIGHTS, CONFIG, CARD):
        paths = [head().save_pretrained(tmp_path / which / "head") / name for which in "ab"]
        assert paths[0].read_bytes() == paths[1].read_bytes(), name


def test_config_on_disk_is_plain_and_carries_the_hash(tmp_path: Path) -> None:
    head().save_pretrained(tmp_path)
    found = json.loads((tmp_path / CONFIG).read_text())
    assert found["weights_sha256"] == sha256((tmp_path / WEIGHTS).read_bytes())
    assert found["format_version"] == 1
    assert found["target"]["revision"] == "0123456789abcdef"
    assert found["training"]["widths"] == [1, 2]


def test_a_failed_save_leaves_the_old_head_whole(tmp_path: Path) -> None:
    judge = head()
    judge.save_pretrained(tmp_path)
    broken = head()
    broken.layers[0].weight.data[0, 3] = float("nan")
    with pytest.raises(ValueError, match=r"layers\.0\.weight.*NaN"):
        broken.save_pretrained(tmp_path)
    assert torch.equal(JudgeHead.from_pretrained(tmp_path)(rows()), judge(rows()))


def test_another_threshold_is_a_copy() -> None:
    judge = head()
    other = judge.with_threshold(0.9, "by hand")
    assert (judge.threshold, other.threshold, other.config.threshold_choice) == (
        0.75,
        0.9,
        "by hand",
    )
    assert torch.equal(other(rows()), judge(rows()))
    with pytest.raises(ValueError, match="threshold must be a number between 0 and 1; got 1.1"):
        judge.with_threshold(1.1, "by hand")


def test_summary_shows_everything_at_a_glance() -> None:
    assert str(head()).splitlines() == [
        "JudgeHead: linear, 33 parameters",
        "  reads      layer_2 hidden state of the target, after the draft's token (width 32)",
        "  target     owner/big @ 0123456789ab (LlamaForCausalLM, 2 layers x 32)",
        "  draft      owner/small (LlamaForCausalLM, 1 layers x 16)",
        "  trained    on annotated labels: questions 120, seed 7",
        "  threshold  accepts p(acceptable) > 0.75: 90% recall on 30 validation questions",
    ]
    assert repr(head(hidden_widths=(8, 4), draft=None)).startswith(
        "JudgeHead: MLP 8 x 4, 305 param"
    )


def test_model_card(tmp_path: Path) -> None:
    card = (head().save_pretrained(tmp_path / "my-head") / CARD).read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "judgelib",
        "tags": ["judgelib", "judge-decoding", "speculative-decoding"],
        "base_model": "owner/big",
    }
    for said in ("layer_2", "0.75: 90% recall", '"questions": 120', "owner/small", "not lossless"):
        assert said in text
    assert 'JudgeHead.from_pretrained("path/to/my-head")' in text
    assert 'load_pair("owner/big", "owner/small")' in text
    assert str(tmp_path) not in card


def test_example_of_the_card_names_what_exists(tmp_path: Path) -> None:
    card = (head().save_pretrained(tmp_path) / CARD).read_text()
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    names = re.search(r"from judgelib import (.*)", code)
    assert names is not None
    assert all(hasattr(judgelib, name) for name in names[1].split(", "))


def test_card_of_a_local_model_names_no_base_model(tmp_path: Path) -> None:
    local = replace(TARGET, name="target", revision=None)
    assert "base_model" not in (head(target=local).save_pretrained(tmp_path) / CARD).read_text()


def test_card_of_a_head_that_cannot_decode_says_so(tmp_path: Path) -> None:
    card = (head(token="both").save_pretrained(tmp_path) / CARD).read_text()
    assert "a decoding loop does not have" in card and "speculate(" not in card


def test_record_of_a_model() -> None:
    model = tiny.language_model()
    assert ModelRecord.of(model) == ModelRecord("tiny", "LlamaForCausalLM", 32, 2)
    model.model.config._commit_hash = "abc"
    assert ModelRecord.of(model).revision == "abc"


def test_names_leak_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "target").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name(str(tmp_path / "owner" / "target")) == "target"
    assert public_name("owner/target") == "target"  # a folder here
    assert public_name("owner/elsewhere") == "owner/elsewhere"
    assert public_name("data/gone/target") == "target"
    assert public_name("./target") == "target" and public_name("/gone/target/") == "target"
    assert public_name(".") == tmp_path.name


# What it refuses.

DRAFT_MODEL_SHAPE = {"hidden": 16, "layers": 1}


def made_for(target: LanguageModel, **changes: Any) -> JudgeHead:
    record = ModelRecord.of(target)
    return JudgeHead(HeadConfig(**{"target": record, "feature": "post_norm", **changes}))


def test_models_it_was_made_for_pass() -> None:
    target, draft = tiny.language_model(), tiny.language_model(**DRAFT_MODEL_SHAPE)
    judge = made_for(target, draft=ModelRecord.of(draft))
    judge.check(target)
    judge.check(target, draft)
    made_for(target).check(target, tiny.language_model(layers=1))  # names no draft: any will do


def test_a_local_copy_of_a_hub_model_passes() -> None:
    target = tiny.language_model()
    judge = made_for(target)
    for made, came, same in [
        ("owner/big", "big", True),
        ("big", "owner/big", True),
        ("owner/big", "other/big", False),
        ("big", "bigger", False),
    ]:
        judge.config = replace(judge.config, target=replace(judge.config.target, name=made))
        target.name = came
        if same:
            judge.check(target)
        else:
            with pytest.raises(ValueError, match="another name"):
                judge.check(target)


OTHERS: dict[str, Callable[[], ModelRecord]] = {
    "another name": lambda: ModelRecord("elsewhere", "LlamaForCausalLM", 32, 2),
    "another architecture": lambda: ModelRecord("tiny", "QwenForCausalLM", 32, 2),
    "another layer count": lambda: ModelRecord("tiny", "LlamaForCausalLM", 32, 3),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("role", ["target", "draft"])
def test_another_model_is_refused_unless_allowed(role: str, what: str) -> None:
    model = tiny.language_model()
    records = {"target": ModelRecord.of(model), "draft": ModelRecord.of(model)}
    judge = JudgeHead(HeadConfig(**{**records, role: OTHERS[what]()}))
    pattern = rf"made for the {role} .*got tiny \(LlamaForCausalLM, 2 layers x 32\): {what};"
    with pytest.raises(ValueError, match=pattern):
        judge.check(model, model)
    judge.check(model, model, any_model=True)
    if role == "draft":
        judge.check(model)


def test_another_hidden_size_is_refused_always() -> None:
    judge = made_for(tiny.language_model())
    other = tiny.language_model(hidden=16)
    for any_model in (False, True):
        with pytest.raises(ValueError, match=r"2 layers x 32\), got .*x 16\): another hidden size"):
            judge.check(other, any_model=any_model)


def test_a_model_without_the_layer_is_refused_always() -> None:
    judge = made_for(tiny.language_model(layers=3), feature="layer_3")
    with pytest.raises(ValueError, match="has no layer 3"):
        judge.check(tiny.language_model(), any_model=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature": "last"}, "feature must be post_norm, pre_norm or layer_<n>; got 'last'"),
        ({"feature": "layer_0"}, "feature must be"),
        ({"feature": "layer_3"}, "one of the 2 layers of owner/big, got 'layer_3'"),
        ({"of": "judge"}, "of must be target, draft or both; got 'judge'"),
        ({"of": "draft", "draft": None}, "reads the draft needs a record of the draft"),
        ({"token": "next"}, "token must be draft, target or both; got 'next'"),
        ({"hidden_widths": [8, 0]}, "hidden_widths must be a list of positive integers"),
        ({"hidden_widths": 8}, "hidden_widths must be"),
        ({"threshold": float("nan")}, "threshold must be a number between 0 and 1; got nan"),
        ({"threshold": "0.5"}, "threshold must be a number"),
        ({"threshold": True}, "threshold must be a number"),
        ({"threshold_choice": ""}, "threshold_choice must be some text"),
        ({"source": None}, "source must be some text"),
        ({"training": [1]}, "training must be a dictionary"),
        ({"training": {"auc": float("nan")}}, "plain, finite JSON values only"),
        ({"training": {"seed": torch.tensor(1)}}, "plain, finite JSON values only"),
        ({"target": "owner/big"}, "target must be a ModelRecord"),
        ({"format_version": 2}, "format_version must be 1; upgrade judgelib; got 2"),
    ],
    ids=str,
)
def test_wrong_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": torch.zeros(31)}, r"mean of shape \(32,\), got \(31,\)"),
        ({"scale": torch.zeros(32)}, "scale must be above 0"),
        ({"weight": torch.zeros(1, 32)}, r"weight of shape \(32,\), got \(1, 32\)"),
        ({"weight": torch.full((32,), float("inf"))}, "NaN or infinite"),
        ({"config": config(hidden_widths=(4,))}, "a linear head's config, got MLP 4"),
    ],
    ids=str,
)
def test_wrong_weights(options: dict[str, Any], message: str) -> None:
    values = {"config": config(), "weight": torch.zeros(32), "bias": 0.0, **options}
    with pytest.raises(ValueError, match=message):
        JudgeHead.from_linear(values.pop("config"), **values)


def edit_config(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**values, **changes}))


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Other tensors with the hash that belongs to them, as another program might write them."""
    tensors = {**load_file(folder / WEIGHTS), **changes}
    save_file({k: t for k, t in tensors.items() if t is not None}, folder / WEIGHTS)
    edit_config(folder, weights_sha256=sha256((folder / WEIGHTS).read_bytes()))


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def flip(path: Path, place: int) -> None:
    payload = bytearray(path.read_bytes())
    payload[place] ^= 1
    path.write_bytes(payload)


def not_safetensors(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"none")
    edit_config(folder, weights_sha256=sha256(b"none"))


def without_entry(folder: Path) -> None:
    values = json.loads((folder / CONFIG).read_text())
    del values["feature"]
    (folder / CONFIG).write_text(json.dumps(values))


Damage = Callable[[Path], object]
NAN = torch.tensor([float("nan")])
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), rf"{WEIGHTS} is missing; a head needs"),
    "no config": (lambda f: (f / CONFIG).unlink(), rf"{CONFIG} is missing; a head needs"),
    "truncated weights": (lambda f: cut(f / WEIGHTS, 200), f"{WEIGHTS} is truncated or altered"),
    "empty weights": (lambda f: cut(f / WEIGHTS, 0), f"{WEIGHTS} is truncated or altered"),
    "altered weights": (lambda f: flip(f / WEIGHTS, -1), f"{WEIGHTS} is truncated or altered"),
    "not safetensors": (not_safetensors, f"{WEIGHTS} is no safetensors file"),
    "truncated config": (lambda f: cut(f / CONFIG, 100), f"{CONFIG} is no config of a judge head"),
    "not JSON": (lambda f: (f / CONFIG).write_bytes(b"\xff"), f"{CONFIG} is no config"),
    "a list": (lambda f: (f / CONFIG).write_text("[]"), "entries of a HeadConfig, got"),
    "no hash": (lambda f: edit_config(f, weights_sha256=None), "weights_sha256 must be the hash"),
    "NaN weights": (lambda f: edit_weights(f, **{"layers.0.bias": NAN}), "NaN or infinite"),
    "infinite mean": (
        lambda f: edit_weights(f, mean=torch.full((32,), torch.inf)),
        "mean of .*NaN",
    ),
    "zero scale": (lambda f: edit_weights(f, scale=torch.zeros(32)), "scale that is not above 0"),
    "other shape": (lambda f: edit_weights(f, mean=torch.zeros(31)), r"does not fit.*\(31,\)"),
    "other dtype": (
        lambda f: edit_weights(f, mean=torch.zeros(32).half()),
        "does not fit.*float16",
    ),
    "no mean": (lambda f: edit_weights(f, mean=None), "does not fit"),
    "one more": (lambda f: edit_weights(f, extra=NAN), "does not fit.*extra"),
    "other widths": (lambda f: edit_config(f, hidden_widths=[8]), "does not fit"),
    "new format": (
        lambda f: edit_config(f, format_version=2, new=1),
        "be 1; upgrade judgelib; got 2",
    ),
    "no format": (lambda f: edit_config(f, format_version=None), "format_version must be 1"),
    "unknown entry": (lambda f: edit_config(f, colour=1), r"unknown: \['colour'\]"),
    "missing entry": (without_entry, r"missing here: \['feature'\]"),
    "unknown value": (lambda f: edit_config(f, feature="middle"), "feature must be"),
    "NaN threshold": (lambda f: edit_config(f, threshold=torch.nan), "NaN is no JSON number"),
    "bad record": (lambda f: edit_config(f, target={"name": "x"}), "a ModelRecord has the entries"),
    "no record": (lambda f: edit_config(f, target="x"), "entries of a ModelRecord, got 'x'"),
    "bad size": (
        lambda f: edit_config(f, draft={**vars(DRAFT), "layers": "1"}),
        "layers must be a positive integer; got '1'",
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One head on disk: saving waits for the disk, copying does not."""
    return head().save_pretrained(tmp_path_factory.mktemp("saved"))


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_heads_are_refused(saved: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(saved, tmp_path / "copy")
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        JudgeHead.from_pretrained(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "./heads", "data/results/heads/mined"])
def test_missing_folders_are_not_looked_up_on_the_hub(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected a folder with .* got '{name}'"):
        JudgeHead.from_pretrained(name)


# The hub.


def test_loading_from_the_hub(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo: str, file: str, *, revision: str | None, library_name: str) -> str:
        asked.append((repo, file, revision))
        return str(saved / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    loaded = JudgeHead.from_pretrained("owner/judge", revision="v1")
    assert torch.equal(loaded(rows()), head()(rows()))
    assert asked == [("owner/judge", CONFIG, "v1"), ("owner/judge", WEIGHTS, "v1")]


def test_what_the_hub_cannot_give_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for problem in (EntryNotFoundError("gone"), LocalEntryNotFoundError("offline")):

        def download(*_: Any, problem: Exception = problem, **__: Any) -> str:
            raise problem

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        with pytest.raises(ValueError, match=r"got 'owner/judge', from which config.json cannot"):
            JudgeHead.from_pretrained("owner/judge")


def test_impossible_hub_names_are_explained() -> None:
    with pytest.raises(ValueError, match="folder or hub id, got 'not a name!'"):
        JudgeHead.from_pretrained("not a name!")


def test_pushing_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    class FakeApi:
        def __init__(self, token: str | None = None) -> None:
            said.append(token)

        def create_repo(self, repo_id: str, **options: Any) -> str:
            said.append((repo_id, options))
            return f"https://hub/{repo_id}"

        def upload_folder(self, *, repo_id: str, folder_path: str, **options: Any) -> None:
            said.append((repo_id, options))
            said.append(JudgeHead.from_pretrained(folder_path).config)
            said.append((Path(folder_path) / CARD).read_text())

    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    address = head().push_to_hub("owner/judge", token="secret", private=True, create_pr=True)
    assert address == "https://hub/owner/judge"
    upload = {"commit_message": "Upload judge head", "create_pr": True}
    assert said[0] == "secret"
    assert said[1] == ("owner/judge", {"private": True, "exist_ok": True})
    assert said[2] == ("owner/judge", upload)
    assert said[3] == head().config
    assert 'from_pretrained("owner/judge")' in said[4]
