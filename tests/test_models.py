"""Models: reading in pieces is reading at once; pairs and weights that do not fit are named."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checks
import pytest
import tiny
import torch
import transformers

from judgelib import models
from judgelib.cache import rollback
from judgelib.decoding import autoregress, speculate, speculate_batch
from judgelib.drafting import ModelDrafter
from judgelib.models import LanguageModel, check_pair, load_model, load_pair, pad_left
from judgelib.rules import Match, SpeculativeSampling

TEXT = [5, 9, 33, 17, 20, 41, 8, 8, 30, 12]


@torch.inference_mode()
def at_once(model: LanguageModel, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and post-norm hidden states of a whole text, by transformers alone."""
    output = model.model(torch.tensor([ids]), output_hidden_states=True)
    return output.logits[0], output.hidden_states[-1][0]


def test_reading_in_pieces_is_reading_at_once(pair: checks.Pair) -> None:
    model, cache = pair[0], pair[0].new_cache(1, len(TEXT))
    logits, hidden = at_once(model, TEXT)
    start = 0
    for width in (4, 1, 3, 2):
        ids = torch.tensor([TEXT[start : start + width]])
        read = model.read(ids, cache, rows=width, hidden="post_norm")
        start += width
        assert cache.lengths == [start]
        assert torch.allclose(read.logits[0], logits[start - width : start], atol=1e-4)
        assert read.hidden is not None
        assert torch.allclose(read.hidden[0], hidden[start - width : start], atol=1e-4)


def test_logits_are_computed_for_the_last_rows_only(pair: checks.Pair) -> None:
    read = pair[0].read(torch.tensor([TEXT]), pair[0].new_cache(1, len(TEXT)), rows=3)
    assert read.logits.shape == (1, 3, tiny.VOCABULARY)
    assert read.hidden is None
    assert torch.allclose(read.logits[0], at_once(pair[0], TEXT)[0][-3:], atol=1e-4)


def test_rejected_tokens_leave_no_trace(pair: checks.Pair) -> None:
    model, cache = pair[0], pair[0].new_cache(1, len(TEXT) + 4)
    model.read(torch.tensor([TEXT[:6] + [40, 40, 40]]), cache, rows=1)
    rollback(cache, [6])
    read = model.read(torch.tensor([TEXT[6:]]), cache, rows=4)
    assert torch.allclose(read.logits[0], at_once(model, TEXT)[0][-4:], atol=1e-4)


@pytest.mark.parametrize("feature", ["post_norm", "pre_norm"])
def test_rows_of_different_lengths_share_a_pass(pair: checks.Pair, feature: str) -> None:
    model, rows = pair[0], [TEXT, TEXT[3:5], TEXT[2:9]]
    cache = model.new_cache(3, 20)
    for texts in (rows, [row[:4] for row in rows]):  # the second time behind the first
        ids, pads = pad_left(texts, model.device)
        read = model.read(ids, cache, rows=1, pads=pads, hidden=feature)
    assert cache.lengths == [14, 4, 11]
    for number, row in enumerate(rows):
        alone = model.new_cache(1, 20)
        truth = model.read(torch.tensor([row + row[:4]]), alone, rows=1, hidden=feature)
        assert read.hidden is not None and truth.hidden is not None
        assert torch.allclose(read.logits[number], truth.logits[0], atol=1e-4)
        assert torch.allclose(read.hidden[number], truth.hidden[0], atol=1e-4)


def test_norm_separates_the_two_features(pair: checks.Pair) -> None:
    checks.pre_norm_comes_before_the_norm(pair)


def network(name: str) -> Any:
    """A tiny random model of another architecture."""
    common: dict[str, Any] = {
        "vocab_size": tiny.VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "pad_token_id": 0,
    }
    gpt2 = {"vocab_size": tiny.VOCABULARY, "n_positions": 64, "n_embd": 32, "n_layer": 2}
    configs = {
        "gpt2": lambda: transformers.GPT2Config(**gpt2, n_head=4, eos_token_id=1, bos_token_id=2),
        "qwen2": lambda: transformers.Qwen2Config(**common),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**common),
        "gemma": lambda: transformers.GemmaConfig(**common, head_dim=8),
        "granite": lambda: transformers.GraniteConfig(**common, logits_scaling=4.0),
        "cohere": lambda: transformers.CohereConfig(**common, logit_scale=0.25),
        "mistral": lambda: transformers.MistralConfig(**common, sliding_window=8),
        "gemma2": lambda: transformers.Gemma2Config(**common, head_dim=8),
    }
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configs[name]())
    tiny.scatter(model, 0.2, seed=1)
    return model


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "gpt_neox", "gemma", "granite", "cohere"])
def test_other_architectures_decode_exactly(name: str) -> None:
    target = LanguageModel(network(name), tiny.tokenizer(), name)
    draft = LanguageModel(network(name), tiny.tokenizer(), name)
    tiny.scatter(draft.model, 0.03, seed=2)
    prompts = tiny.prompts(3, seed=8)
    truths = [autoregress(target, prompt, max_new_tokens=14) for prompt in prompts]
    made = speculate_batch(
        target, ModelDrafter(draft), Match(), prompts, window=4, max_new_tokens=14
    )
    assert [one.ids for one in made] == [truth.ids for truth in truths]
    alone = speculate(target, ModelDrafter(draft), Match(), prompts[0], window=4, max_new_tokens=14)
    assert alone == made[0]


@pytest.mark.parametrize(
    ("name", "plain"), [("qwen2", True), ("granite", False), ("cohere", False)]
)
def test_scaled_logits_are_noticed(name: str, plain: bool) -> None:
    model = LanguageModel(network(name), tiny.tokenizer(), name)
    assert model._head_is_plain is plain
    for feature in ("post_norm", "pre_norm"):
        cache = model.new_cache(1, len(TEXT))
        read = model.read(torch.tensor([TEXT]), cache, rows=2, hidden=feature)
        assert torch.allclose(read.logits[0], at_once(model, TEXT)[0][-2:], atol=1e-4)
        assert read.hidden is not None and read.hidden.shape == (1, 2, 32)


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_sliding_windows_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must attend to the whole text"):
        LanguageModel(network(name), tiny.tokenizer(), name)


def test_attention_without_masks_is_refused(pair: checks.Pair) -> None:
    model = network("qwen2")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'sdpa' or 'eager', not 'flash_attention_2'"):
        LanguageModel(model, tiny.tokenizer(), "flash")


def test_eager_attention_decodes_exactly(pair: checks.Pair) -> None:
    model = tiny.language_model()
    model.model.set_attn_implementation("eager")
    eager = LanguageModel(model.model, model.tokenizer, "eager")
    made = speculate_batch(
        *(eager, ModelDrafter(pair[1]), Match(), checks.PROMPTS),
        window=4,
        max_new_tokens=checks.TOKENS,
    )
    assert [one.ids for one in made] == [one.ids for one in checks.oracles(pair[0])]


def test_bfloat16_departs_at_near_ties_only() -> None:
    """Kernels differ between 1 and k + 1 rows, so near-ties may flip; nothing else may."""
    target = tiny.language_model(seed=4)
    target = LanguageModel(target.model.to(torch.bfloat16), target.tokenizer, "bf16")
    draft = tiny.disturbed(target)
    for prompt in tiny.prompts(3, seed=9):
        truth = autoregress(target, prompt, max_new_tokens=20, eos_ids=()).ids
        made = speculate(
            target, ModelDrafter(draft), Match(), prompt, max_new_tokens=20, eos_ids=()
        ).ids
        place = next((i for i in range(20) if truth[i] != made[i]), None)
        if place is not None:
            logits = at_once(target, prompt + truth[:place])[0][-1].float()
            gap = (logits[truth[place]] - logits[made[place]]).abs()
            assert gap <= 8 * torch.finfo(torch.bfloat16).eps * logits.abs().max()


def saved(model: LanguageModel, folder: Path) -> Path:
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def test_a_saved_pair_loads_silently(
    pair: checks.Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folders = saved(pair[0], tmp_path / "target"), saved(pair[1], tmp_path / "draft")
    capfd.readouterr()
    target, draft = load_pair(*folders)
    assert capfd.readouterr() == ("", "")
    assert (target.dtype, target.context, target.hidden_size, target.layers) == (
        torch.float32,
        256,
        32,
        2,
    )
    made = speculate(target, ModelDrafter(draft), Match(), checks.PROMPTS[1], max_new_tokens=20)
    assert made.ids == checks.oracles(pair[0])[1].ids[:20]
    assert load_model(folders[0], dtype="bfloat16").dtype == torch.bfloat16


def test_end_ids_follow_the_generation_config(pair: checks.Pair) -> None:
    model = tiny.language_model()
    assert model.eos_ids == (tiny.EOS,)
    model.model.generation_config.eos_token_id = [4, 7]
    assert model.eos_ids == (4, 7)
    model.model.generation_config.eos_token_id = None
    assert model.eos_ids == (tiny.EOS,)  # the tokenizer's


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("data/sandbox/nobody", "run `make sandbox-models`"),
        ("./nobody", "check the path"),
        ("/nobody/nowhere", "check the path"),
    ],
)
def test_missing_weights_are_named(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(path)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    tiny.config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected config.json and \*.safetensors"):
        load_model(tmp_path)


def test_a_model_that_is_no_causal_lm_is_named(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=48,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must be a causal language model, but it is BertFor"):
        load_model(tmp_path)


def test_an_unknown_hub_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no such repository")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(ValueError, match="got 'nobody/nothing', which cannot be read"):
        load_model("nobody/nothing")


def renamed(change: Callable[[list[str]], list[str]]) -> LanguageModel:
    words = [f"w{number}" for number in range(3, tiny.VOCABULARY)]
    model = tiny.language_model()
    return LanguageModel(model.model, tiny.tokenizer(change(words)), "other")


def test_a_fitting_pair_passes(pair: checks.Pair) -> None:
    check_pair(*pair)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda words: words[:-1], r"token 'w47' has id 47 in tiny .* and id None in other"),
        (lambda words: ["new", *words[1:]], r"token 'w3' has id 3 in tiny .* and id None in other"),
        (
            lambda words: [words[1], words[0], *words[2:]],
            r"token 'w3' has id 3 in tiny .* and id 4 in other",
        ),
    ],
)
def test_other_vocabularies_are_refused(
    pair: checks.Pair, change: Callable[[list[str]], list[str]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_pair(pair[0], renamed(change))


def test_other_special_tokens_are_refused(pair: checks.Pair) -> None:
    other = renamed(lambda words: words)
    other.tokenizer.eos_token = "w5"
    with pytest.raises(ValueError, match="eos_token is '<eos>' in tiny and 'w5' in other"):
        check_pair(pair[0], other)


@pytest.mark.parametrize("width", [48, 64])
def test_logits_wider_than_the_vocabulary_fit(width: int) -> None:
    """Some families pad the logits of their models differently (Qwen: 151,936 and 152,064)."""
    target = tiny.language_model(vocabulary=56)
    draft = tiny.language_model(seed=1, vocabulary=width)
    check_pair(target, draft)
    prompt = [5, 6, 7]
    truth = autoregress(target, prompt, max_new_tokens=12, eos_ids=())
    made = speculate(target, ModelDrafter(draft), Match(), prompt, max_new_tokens=12, eos_ids=())
    assert made.ids == truth.ids
    sampled = speculate(
        *(target, ModelDrafter(draft), SpeculativeSampling(), prompt),
        max_new_tokens=12,
        temperature=1.0,
        generator=torch.Generator().manual_seed(0),
        eos_ids=(),
    )
    assert len(sampled.ids) == 12


# --- placement ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "int3"}, "expected a quantization of none, fp8, int8, got 'int3'"),
        ({"quantization": "fp8"}, "fp8 weights need a GPU; on a CPU load without quantization"),
        ({"spread": "wide"}, "expected a spread of none, layers, tensor, got 'wide'"),
    ],
)
def test_wrong_placements_are_refused_before_anything_is_read(
    tmp_path: Path, options: Any, message: str
) -> None:
    folder = saved(tiny.language_model(), tmp_path)
    with pytest.raises(ValueError, match=message):
        load_model(folder, **options)


def test_placements_become_arguments_of_transformers() -> None:
    assert models._placement("none", "none", "cpu") == {}
    assert models._placement("none", "layers", "cuda") == {"device_map": "balanced"}
    eight = models._placement("int8", "none", "cuda")
    assert eight["quantization_config"].load_in_8bit and eight["device_map"] == {"": "cuda"}
    both = models._placement("fp8", "layers", "cuda")
    assert type(both["quantization_config"]).__name__ == "FineGrainedFP8Config"
    assert both["device_map"] == "balanced"
    assert models._placement("none", "tensor", "cpu")["distributed_config"].tp_plan == "auto"


def test_a_shared_model_is_loaded_once_while_it_is_held(tmp_path: Path) -> None:
    folder = saved(tiny.language_model(), tmp_path)
    first = load_model(folder, dtype="float32", shared=True)
    assert load_model(folder, dtype="float32", shared=True) is first
    assert load_model(folder, dtype="float32") is not first
    assert load_model(folder, dtype="bfloat16", shared=True) is not first
    before = len(models._held)
    del first
    gc.collect()
    assert len(models._held) < before
