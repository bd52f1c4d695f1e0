"""Rehearsals: tiny checkpoints in the shape of real ones, and what a rehearsal changes. A whole one
is `make rehearse`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from judgelib import rehearsal, rehearsal_data, tiny_checkpoints
from judgelib.answering import generate
from judgelib.models import LanguageModel, load_model, load_pair
from judgelib.profiles import load_profile
from judgelib.rehearsal import SIZES, Stage, smaller, write_profile
from judgelib.results import SCHEMAS
from judgelib.tasks import load_task
from judgelib.tasks.base import prompt_ids

CHAT = [
    {"role": "user", "content": "Say 12."}, {"role": "assistant", "content": "12"},
    {"role": "user", "content": "And 18?"},
]  # fmt: skip
TEXTS = ["Say 12.", "And 18?", "In all there are 12 pens. The final answer is 12."] * 3
PAIRS = {
    "llama-8b-70b": ("meta-llama/Llama-3.1-70B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
    "llama-1b-8b": ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"),
    "qwen-0.5b-7b": ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"),
    "qwen3-0.6b-8b": ("Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B"),
}
Models = tuple[LanguageModel, LanguageModel]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Models]:
    """A pair of each family, hardly trained, loaded as any other."""
    found = {}
    for name, models in PAIRS.items():
        folder = tmp_path_factory.mktemp(name)
        made = tiny_checkpoints.tokenizer(models[0], TEXTS)
        made.template_options = load_profile(name).template
        ids = made.apply_chat_template(CHAT[:1], add_generation_prompt=True, return_dict=False)
        lessons = [(ids, [*made("12", add_special_tokens=False).input_ids, made.eos_token_id])]
        for number, model in enumerate(models):
            tiny_checkpoints.checkpoint(
                folder / f"{number}", model, made, lessons, larger=not number, steps=2, seed=number
            )
        found[name] = load_pair(folder / "0", folder / "1", dtype="float32")
    return found


@pytest.mark.parametrize(
    ("name", "kind", "tied"),
    [
        ("llama-8b-70b", "LlamaForCausalLM", (False, False)),
        ("llama-1b-8b", "LlamaForCausalLM", (False, True)),
        ("qwen-0.5b-7b", "Qwen2ForCausalLM", (False, True)),
        ("qwen3-0.6b-8b", "Qwen3ForCausalLM", (False, True)),
    ],
)
def test_tiny_checkpoints_have_the_real_architecture(
    pairs: dict[str, Models], name: str, kind: str, tied: tuple[bool, bool]
) -> None:
    for model, is_tied in zip(pairs[name], tied, strict=True):
        assert type(model.model).__name__ == kind
        assert model.config.tie_word_embeddings is is_tied
        assert model.config.num_key_value_heads < model.config.num_attention_heads
        assert model.model.num_parameters() < 1_000_000
    rope = pairs[name][0].config.rope_parameters
    assert rope["rope_type"] == ("llama3" if name.startswith("llama") else "default")
    attention = pairs[name][0].model.model.layers[0].self_attn
    assert (attention.q_proj.bias is not None) == (name == "qwen-0.5b-7b")
    assert hasattr(attention, "q_norm") == (name == "qwen3-0.6b-8b")


def test_the_vocabulary_is_padded_as_in_the_real_pair(pairs: dict[str, Models]) -> None:
    for name, apart in (("llama-8b-70b", False), ("qwen-0.5b-7b", True), ("qwen3-0.6b-8b", False)):
        target, draft = pairs[name]
        assert (target.vocab_size != draft.vocab_size) == apart
        assert (target.vocab_size > len(target.tokenizer)) == name.startswith("qwen")


def test_several_tokens_end_a_text_and_one_of_them_an_answer(pairs: dict[str, Models]) -> None:
    llama, qwen = pairs["llama-8b-70b"][0], pairs["qwen-0.5b-7b"][0]

    def ends(model: LanguageModel) -> list[str]:
        return model.tokenizer.convert_ids_to_tokens(list(model.eos_ids))

    assert ends(llama) == ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
    assert ends(qwen) == ["<|im_end|>", "<|endoftext|>"]
    assert llama.end_id == llama.eos_ids[-1] == llama.tokenizer.eos_token_id
    assert qwen.end_id == qwen.eos_ids[0]


def chat(model: LanguageModel, **options: Any) -> str:
    ids = model.tokenizer.apply_chat_template(
        CHAT, add_generation_prompt=True, return_dict=False, **options
    )
    return str(model.tokenizer.decode(ids))


def test_llama_3_s_chat_format(pairs: dict[str, Models]) -> None:
    assert chat(pairs["llama-8b-70b"][0]) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nSay 12.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n12<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd 18?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_qwen_s_chat_formats(pairs: dict[str, Models]) -> None:
    said = (
        "<|im_start|>user\nSay 12.<|im_end|>\n<|im_start|>assistant\n12<|im_end|>\n"
        "<|im_start|>user\nAnd 18?<|im_end|>\n<|im_start|>assistant\n"
    )
    system = (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n"
    )
    assert chat(pairs["qwen-0.5b-7b"][0]) == system + said
    assert chat(pairs["qwen3-0.6b-8b"][0]) == said
    quiet = chat(pairs["qwen3-0.6b-8b"][0], enable_thinking=False)
    assert quiet == f"{said}<think>\n\n</think>\n\n"


def test_a_model_keeps_its_template_options(
    pairs: dict[str, Models], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pairs["qwen3-0.6b-8b"][0].name
    rehearsal_data.write(tmp_path)
    monkeypatch.setenv("JUDGELIB_DATASETS", str(tmp_path))
    question = load_task("arc-challenge").questions("test", 1)[0]
    for options, end in (({"enable_thinking": False}, "</think>\n\n"), (None, "assistant\n")):
        model = load_model(folder, dtype="float32", template=options)
        assert model.tokenizer.decode(prompt_ids(model.tokenizer, question)).endswith(end)


def test_a_checkpoint_s_settings_for_chats_do_not_change_plain_answers(
    pairs: dict[str, Models],
) -> None:
    """Qwen2.5 comes with a punishment of repetition, which the decoding loop does not know."""
    target = pairs["qwen-0.5b-7b"][0]
    assert target.model.generation_config.repetition_penalty > 1
    prompt = [5, 6, 7, 5, 6, 7]
    (ids,) = generate(target, [prompt], 6)
    text = list(prompt)
    for said in ids:
        logits = target.model(torch.tensor([text])).logits[0, -1]
        assert said == int(logits.argmax())
        text.append(said)


def test_every_rehearsal_benchmark_loads_and_its_references_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsal_data.write(tmp_path)
    monkeypatch.setenv("JUDGELIB_DATASETS", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name, splits in (("gsm8k", 3), ("arc-challenge", 3), ("mmlu", 3)):
        task = load_task(name)
        asked = [q for split in ("train", "validation", "test") for q in task.questions(split, 6)]
        assert len({question.id for question in asked}) == 6 * splits
        assert all(task.score(asked, [question.reference for question in asked]))


def test_a_rehearsal_changes_sizes_and_nothing_else_of_a_notebook() -> None:
    for name in PAIRS:
        for notebook, parameters in load_profile(name).notebooks.items():
            now = smaller(parameters)
            assert now.keys() == parameters.keys(), notebook
            kept = {key for key in now if key not in SIZES}
            assert all(now[key] == parameters[key] for key in kept)
            assert now["tasks"] == parameters["tasks"]


def test_the_rehearsed_profile_is_found_before_the_built_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(load_profile("llama-8b-70b"), tmp_path)
    for name, value in stage.environment.items():
        monkeypatch.setenv(name, value)
    write_profile(stage)
    for role in ("target", "draft"):
        (stage.models / role).mkdir(parents=True)
        (stage.models / role / "config.json").write_text("{}")
    found = load_profile("llama-8b-70b")
    assert found.model("target") == str(stage.models / "target")
    assert not found.hub_models and not found.devices.count and found.collected
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    content = yaml.safe_load((tmp_path / "profiles/llama-8b-70b.yaml").read_text())
    assert json.dumps(content)  # plain values only


def test_missing_tables_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGELIB_ROOT", str(tmp_path))
    found = rehearsal.missing_tables("llama-8b-70b")
    assert len(found) == len(SCHEMAS) and all("but it is absent" in line for line in found)


def test_the_sandbox_needs_no_rehearsal(capsys: pytest.CaptureFixture[str]) -> None:
    assert rehearsal.main(["--profile", "sandbox"]) == 2
    assert "needs no rehearsal" in capsys.readouterr().err
    assert rehearsal.main(["--profile", "lama"]) == 2
    assert "no profile 'lama'" in capsys.readouterr().err


def test_a_model_of_no_known_family_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a model of Llama-3, Qwen2.5, Qwen3, got 'a/b'"):
        tiny_checkpoints.family("a/b")
