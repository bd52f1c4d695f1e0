"""Engines: all do the same work, and say the same of it."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checks
import pytest
import tiny
import torch

from judgelib import engines
from judgelib.compiled import CompiledModel
from judgelib.decoding import autoregress
from judgelib.engines import (
    ASSISTED,
    COMPILED,
    EAGER,
    ENSEMBLE,
    GENERATE,
    PLAIN,
    VLLM,
    Kit,
    Loop,
    Made,
    Spec,
    Transformers,
    batches,
    judge_config,
    vllm_options,
)
from judgelib.evaluation import Pair
from judgelib.head import JudgeHead
from judgelib.head_config import HeadConfig, ModelRecord
from judgelib.integrations.vllm.config import JudgeConfig

TOKENS = 26
PROMPTS = checks.PROMPTS


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """A pair on disk, and a head that keeps everything."""
    folder = tmp_path_factory.mktemp("engines")
    target = tiny.language_model()
    for model, name in ((target, "target"), (tiny.disturbed(target), "draft")):
        model.model.save_pretrained(folder / name)
        model.tokenizer.save_pretrained(folder / name)
    pair = Pair(f"{folder}/target", f"{folder}/draft")
    made = Kit(pair, {"all": folder / "head"}, tokens=TOKENS)
    config = HeadConfig(target=ModelRecord.of(made.models[0]))
    weight = torch.zeros(target.hidden_size)
    JudgeHead.from_linear(config, weight=weight, bias=50.0).save_pretrained(folder / "head")
    return made


STRICT = [
    Spec(GENERATE, PLAIN),
    Spec(GENERATE, PLAIN, batch=3),
    Spec(ASSISTED, draft_length=4),
    Spec(EAGER, PLAIN),
    Spec(EAGER, PLAIN, batch=3),
    Spec(EAGER, draft_length=4),
    Spec(EAGER, draft_length=4, batch=3),
]


def truth(kit: Kit) -> list[list[int]]:
    target = kit.models[0]
    return [autoregress(target, prompt, max_new_tokens=TOKENS).ids for prompt in PROMPTS]


@pytest.mark.parametrize("spec", STRICT, ids=str)
def test_lossless_engines_make_as_many_tokens(kit: Kit, spec: Spec) -> None:
    """Some texts end early, alone and in batches; speeds are comparable for the same work only."""
    lengths = list(map(len, truth(kit)))
    assert len(set(lengths)) > 1
    made = kit.build(spec).answer(PROMPTS)
    assert made.tokens == sum(lengths) and made.seconds > 0
    if spec.rule == PLAIN:
        assert made.cycles == made.tokens
    elif spec.engine == EAGER:
        assert len(PROMPTS) < made.cycles < made.tokens
    else:
        assert made.cycles == 0  # transformers does not say


def test_transformers_say_the_same_texts(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token for token, behind left padding too."""
    texts: list[list[int]] = []

    def noted(self: Transformers, text: list[int]) -> int:
        texts.append(text)
        return own(self, text)

    own = Transformers._length
    monkeypatch.setattr(Transformers, "_length", noted)
    for spec in STRICT[:3]:
        texts.clear()
        kit.build(spec).answer(PROMPTS)
        for text, right in zip(texts, truth(kit), strict=True):
            assert text[: len(right)] == right
            assert set(text[len(right) :]) <= {0}  # padding behind the end of a text


def test_loop_keeps_its_texts(kit: Kit) -> None:
    loop = kit.build(Spec(EAGER, draft_length=4, batch=2))
    assert isinstance(loop, Loop)
    made = loop.answer(PROMPTS)
    assert [text.ids for text in loop.texts] == truth(kit)
    assert made.cycles == sum(len(text.cycles) for text in loop.texts)


@pytest.mark.parametrize("rule", ["judge_all", "topk"])
def test_lossy_rules_take_fewer_cycles(kit: Kit, rule: str) -> None:
    strict, lossy = (
        kit.build(Spec(EAGER, name, setting, 4)).answer(PROMPTS[:2])
        for name, setting in (("strict", 0.0), (rule, 0.5 if rule == "judge_all" else 3))
    )
    assert lossy.tokens / lossy.cycles > strict.tokens / strict.cycles


def test_the_window_of_assisted_generation_is_fixed(kit: Kit) -> None:
    """Two engines share the draft; each sets its own window when it answers."""
    first, second = (kit.build(Spec(ASSISTED, draft_length=n)) for n in (3, 7))
    config = kit.transformers[1].generation_config
    for engine, window in ((first, 3), (second, 7), (first, 3)):
        engine.answer(PROMPTS[:1])
        assert config.num_assistant_tokens == window
        assert config.num_assistant_tokens_schedule == "constant"
        assert config.assistant_confidence_threshold == 0.0


def test_ensemble_runs(kit: Kit) -> None:
    made = kit.build(Spec(ENSEMBLE, "ensemble", 0.5, 4)).answer(PROMPTS[:2])
    assert 0 < made.tokens <= 2 * TOKENS


def test_models_are_loaded_once(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    own = engines.load_model

    def load(path: str, **options: Any) -> Any:
        loaded.append(Path(path).name)
        return own(path, **options)

    monkeypatch.setattr(engines, "load_model", load)
    fresh = Kit(kit.pair, {}, tokens=4)
    assert loaded == []
    loops: list[Any] = [fresh.build(Spec(EAGER, draft_length=n)) for n in (2, 5)]
    fast: Any = fresh.build(Spec(COMPILED, draft_length=5))  # compiled at its first pass only
    assert loaded == ["target", "draft"]
    assert loops[0].target is loops[1].target
    assert isinstance(fast.target, CompiledModel) and fast.target.model is loops[0].target.model
    theirs: list[Any] = [fresh.build(Spec(GENERATE, PLAIN, batch=n)) for n in (1, 4)]
    assert loaded == 2 * ["target", "draft"]
    assert theirs[0].model is theirs[1].model is not loops[0].target.model
    assert theirs[0].model.config._attn_implementation == "sdpa"
    assert loops[0].target.config._attn_implementation != "sdpa"


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (Spec("slow", draft_length=4), "expected an engine of transformers-generate, .*'slow'"),
        (Spec(EAGER), "expected a draft length of 1 or more, .* got 0 for 'strict'"),
        (Spec(EAGER, PLAIN, draft_length=4), "0 for rule 'plain', got 4 for 'plain'"),
        (Spec(ASSISTED, draft_length=4, batch=2), "transformers-assisted decodes one text at a"),
        (Spec(EAGER, "best", draft_length=4), "expected a rule of strict, .*'best'"),
        (Spec(EAGER, "judge_best", 0.5, 4), "expected a judge of the heads all, got 'best'"),
    ],
    ids=lambda value: value.engine if isinstance(value, Spec) else "",
)
def test_specs_that_make_no_sense_are_refused(kit: Kit, spec: Spec, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        kit.build(spec)


def test_batches_are_all_prompts_in_order() -> None:
    assert batches([[1], [2], [3], [4], [5]], 2) == [[[1], [2]], [[3], [4]], [[5]]]


# --- vLLM --------------------------------------------------------------------------------------

JUDGED = Spec(VLLM, "judge_all", 0.4, 6)
HEADS = {"all": "heads/all"}


def test_the_judge_is_configured_as_the_plugin_reads_it() -> None:
    assert judge_config(replace(JUDGED, rule="strict"), HEADS) == {}
    for spec, expected in (
        (JUDGED, JudgeConfig(head="heads/all", threshold=0.4)),
        (
            replace(JUDGED, rule="floored_all"),
            JudgeConfig(head="heads/all", threshold=0.4, floor=0.02),
        ),
        (Spec(VLLM, "ratio", 0.1, 6), JudgeConfig(rule="ratio", setting=0.1)),
    ):
        assert JudgeConfig.of({"judge": judge_config(spec, HEADS)}) == expected


def test_vllm_gets_draft_and_judge() -> None:
    pair = Pair("big", "small")
    drafting = {"method": "draft_model", "model": "small", "num_speculative_tokens": 6}
    assert vllm_options(Spec(VLLM, PLAIN), pair, HEADS) == {}
    strict = vllm_options(Spec(VLLM, draft_length=6), pair, HEADS)
    assert strict == {"speculative_config": drafting}  # the plugin is to notice nothing
    judged = vllm_options(JUDGED, pair, HEADS)
    assert judged["speculative_config"] == drafting
    assert judged["additional_config"] == {"judge": judge_config(JUDGED, HEADS)}


@pytest.mark.skipif(engines.has_vllm(), reason="vLLM is installed")
def test_missing_vllm_is_named_and_its_process_ends(kit: Kit) -> None:
    before = set(multiprocessing.active_children())
    # The folder `tests/vllm` passes for an empty package of that name.
    reason = "(No module named|cannot import name 'LLM' from) 'vllm'"
    kit.build(JUDGED)
    with pytest.raises(ValueError, match=f"vLLM could not run Spec.*{reason}"):
        kit.wait()
    assert kit.servers == {}  # the next one tries again
    for child in set(multiprocessing.active_children()) - before:
        child.join(timeout=120)
        assert child.exitcode == 0


def test_an_empty_folder_is_no_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = engines.has_vllm()
    (tmp_path / "vllm").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert engines.has_vllm() == installed


class FakeVllm:
    """Makes two tokens a prompt, and stumbles over an empty one."""

    def __init__(self, *configuration: Any) -> None:
        pass

    def answer(self, batch: int, prompts: Sequence[Sequence[int]]) -> Made:
        if not all(prompts):
            raise RuntimeError("an empty prompt")
        return Made(2 * len(prompts), batch, 0.5)


class Thread(threading.Thread):
    """In the place of a process. It gets a copy of its end of the pipe, as a process would."""

    def __init__(self, target: Any, args: tuple[Connection, Any], daemon: bool) -> None:
        theirs = Connection(os.dup(args[0].fileno()))
        super().__init__(target=target, args=(theirs, *args[1:]), daemon=daemon)

    def terminate(self) -> None:
        assert not self.is_alive()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kit]:
    """A kit whose vLLM is fake, and runs in threads."""
    context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=Thread)
    monkeypatch.setattr(engines, "_Vllm", FakeVllm)
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: context)
    kit = Kit(Pair("big", "small"), {})
    yield kit
    kit.close()
    assert kit.servers == {}


def test_batch_sizes_share_a_process(served: Kit) -> None:
    one, many = (served.build(Spec(VLLM, draft_length=4, batch=n)) for n in (1, 16))
    assert one.answer([[3], (4, 5)]) == Made(4, 1, 0.5)
    assert many.answer([[3]]) == Made(2, 16, 0.5)
    assert len(served.servers) == 1
    served.build(Spec(VLLM, draft_length=5))
    assert len(served.servers) == 2
    served.wait()
    threads = [server._process for server in served.servers.values()]
    served.close()
    assert not any(thread.is_alive() for thread in threads)


def test_what_went_wrong_in_the_process_is_said(served: Kit) -> None:
    engine = served.build(Spec(VLLM, draft_length=4))
    with pytest.raises(ValueError, match="vLLM could not run Spec.*RuntimeError: an empty prompt"):
        engine.answer([[]])


def test_a_vocabulary_is_padded_without_new_choices() -> None:
    """Qwen2.5's pair has outputs of two widths, which assisted generation refuses."""
    model = tiny.language_model().model
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        before = model(ids).logits
        engines.widen(model, 64)
        after = model(ids).logits
    assert after.shape[-1] == model.config.vocab_size == 64
    assert torch.equal(after[..., : tiny.VOCABULARY], before)
    padding = after[..., tiny.VOCABULARY :]
    assert torch.allclose(padding, before[..., -1:].expand_as(padding))


def test_a_twin_shares_every_weight_and_nothing_else() -> None:
    model = tiny.language_model().model
    other = engines.twin(model)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(ours is theirs for ours, theirs in pairs)
    assert other is not model and other.config is not model.config
    other.set_attn_implementation("eager")
    assert model.config._attn_implementation == "sdpa"


def test_vllm_loads_the_target_as_the_profile_says(kit: Kit) -> None:
    assert engines.vllm_target(kit.pair) == {"model": kit.pair.target, "max_model_len": 256}
    loaded = replace(kit.pair, target_options={"revision": "abc", "quantization": "fp8"})
    assert engines.vllm_target(loaded) == {
        "model": kit.pair.target, "max_model_len": 256, "revision": "abc", "quantization": "fp8",
    }  # fmt: skip
