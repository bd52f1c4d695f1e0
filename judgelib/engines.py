"""Engines: whatever answers prompts, side by side and on equal terms.

An engine gets prompts as token ids and says how many tokens it made in how many target calls. The
engines of transformers have models of their own, loaded as transformers would, so nothing that this
package changes about a model speeds up or slows down what it is compared with. vLLM's run in
processes of their own, since vLLM takes over threads and settings of its process.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from judgelib import answering, rulebook
from judgelib.decoding import Generation, speculate_batch
from judgelib.drafting import Drafter, ModelDrafter, NoDrafter
from judgelib.evaluation import Pair
from judgelib.head import JudgeHead
from judgelib.integrations.vllm.plain import VLLM_SETTINGS
from judgelib.models import LanguageModel, check_pair, load_model

Prompts = Sequence[Sequence[int]]

GENERATE, ASSISTED, ENSEMBLE = (
    "transformers-generate", "transformers-assisted", "transformers-ensemble",
)  # fmt: skip
EAGER, COMPILED, VLLM = "judgelib", "judgelib-compiled", "vllm"
UNPLUGGED = "vllm-unplugged"
"""vLLM that does not load judgelib's plugin."""
PLAIN = "plain"
"""The rule of an engine without a draft: one target call a token."""


@dataclass(frozen=True)
class Spec:
    """What one engine is.

    Attributes:
        engine: one of the names above.
        rule, setting: as in `rulebook.build`, or `PLAIN`.
        draft_length: tokens drafted a cycle; 0 for `PLAIN`.
        batch: texts side by side.
    """

    engine: str
    rule: str = rulebook.STRICT
    setting: float = 0.0
    draft_length: int = 0
    batch: int = 1


class Made(NamedTuple):
    """What an engine made of some prompts.

    Attributes:
        tokens: new ones, in all.
        cycles: target calls for a text, in all; 0 where the engine does not say.
        seconds: of wall-clock time.
    """

    tokens: int
    cycles: int
    seconds: float


class Engine(Protocol):
    """Answers prompts greedily."""

    spec: Spec

    def answer(self, prompts: Prompts) -> Made:
        """Answer all prompts, `spec.batch` of them side by side."""


class Kit:
    """What engines are built of; models are loaded when first wanted, once for all engines.

    Args:
        pair: target and draft.
        heads: the judges' heads by name.
        tokens: the most new tokens of a text.
    """

    def __init__(self, pair: Pair, heads: Mapping[str, str | Path], *, tokens: int = 256) -> None:
        self.pair, self.tokens = pair, tokens
        self.head_paths = {name: str(path) for name, path in heads.items()}
        self.servers: dict[Spec, Server] = {}

    def build(self, spec: Spec) -> Engine:
        """The engine; ValueError for an unknown one, or a window that does not fit its rule."""
        makers: dict[str, Callable[[Kit, Spec], Engine]] = {
            GENERATE: Transformers, ASSISTED: Transformers, ENSEMBLE: Transformers,
            EAGER: Loop, COMPILED: Loop, VLLM: Remote, UNPLUGGED: Remote,
        }  # fmt: skip
        if spec.engine not in makers:
            raise ValueError(f"expected an engine of {', '.join(makers)}, got {spec.engine!r}")
        if (spec.draft_length < 1) != (spec.rule == PLAIN):
            raise ValueError(
                f"expected a draft length of 1 or more, or 0 for rule {PLAIN!r}, got "
                f"{spec.draft_length} for {spec.rule!r}"
            )
        return makers[spec.engine](self, spec)

    def wait(self) -> None:
        """Until all processes that were started for engines can answer; they start side by side.

        Raises:
            ValueError: one could not; building its engine again tries again.
        """
        for spec, server in list(self.servers.items()):
            try:
                server.wait()
            except ValueError:
                del self.servers[spec]
                raise

    def close(self) -> None:
        """End the processes that were started for engines."""
        while self.servers:
            self.servers.popitem()[1].close()

    @cached_property
    def models(self) -> tuple[LanguageModel, LanguageModel]:
        pair = self._load("target"), self._load("draft")
        check_pair(*pair)
        return pair

    @cached_property
    def compiled(self) -> tuple[LanguageModel, LanguageModel]:
        from judgelib.compiled import CompiledModel

        target, draft = self.models
        return CompiledModel(target), CompiledModel(draft)

    @cached_property
    def transformers(self) -> tuple[Any, Any]:
        """transformers' own models, with its own attention. On a GPU they share our weights: two
        copies of a large model would not fit."""
        if self.pair.device == "cpu":
            target, draft = (self._load(role).model for role in ("target", "draft"))
        else:
            target, draft = (twin(model.model) for model in self.models)
        for model in (target, draft):
            model.set_attn_implementation("sdpa")
        # Assisted generation wants outputs of one width; Qwen2.5's differ by padding.
        width = max(model.config.vocab_size for model in (target, draft))
        for model in (target, draft):
            widen(model, width)
        return target, draft

    @cached_property
    def heads(self) -> dict[str, JudgeHead]:
        return {name: JudgeHead.from_pretrained(path) for name, path in self.head_paths.items()}

    def _load(self, role: str) -> LanguageModel:
        path, options = getattr(self.pair, role), getattr(self.pair, f"{role}_options")
        return load_model(path, dtype=self.pair.dtype, device=self.pair.device, **options)


def widen(network: Any, width: int) -> None:
    """Pad a model's vocabulary to `width` rows, each a copy of the last, padding itself."""
    old = network.config.vocab_size
    if old == width:
        return
    last = network.get_output_embeddings().weight[old - 1].detach().clone()
    network.resize_token_embeddings(width, mean_resizing=False)
    with torch.no_grad():
        network.get_output_embeddings().weight[old:] = last


def twin(network: torch.nn.Module) -> Any:
    """A second model over the same weights: its own modules and configuration, no second copy of
    any tensor."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


class Loop(Engine):
    """judgelib's own loop, with the models as they are or compiled.

    Attributes:
        texts: what it made of the last prompts, with their cycles.
    """

    texts: list[Generation]

    def __init__(self, kit: Kit, spec: Spec) -> None:
        self.spec, self._tokens = spec, kit.tokens
        self.target, self.draft = kit.compiled if spec.engine == COMPILED else kit.models
        plain = spec.rule == PLAIN
        judged = spec.rule.startswith((rulebook.JUDGE, rulebook.FLOORED))
        name = rulebook.STRICT if plain else spec.rule
        self.rule = rulebook.build(name, spec.setting, kit.heads if judged else {})
        self.drafter: Drafter = NoDrafter() if plain else ModelDrafter(self.draft)

    def answer(self, prompts: Prompts) -> Made:
        start = time.perf_counter()
        self.texts = self._decode(prompts)
        seconds = time.perf_counter() - start
        tokens = sum(len(text.ids) for text in self.texts)
        return Made(tokens, sum(len(text.cycles) for text in self.texts), seconds)

    def _decode(self, prompts: Prompts) -> list[Generation]:
        return [
            text
            for group in batches(prompts, self.spec.batch)
            for text in speculate_batch(
                self.target, self.drafter, self.rule, group,
                window=max(1, self.spec.draft_length), max_new_tokens=self._tokens,
            )
        ]  # fmt: skip


class Transformers(Engine):
    """transformers' `generate`: plain, with an assistant, or with the two models' mixture."""

    def __init__(self, kit: Kit, spec: Spec) -> None:
        if spec.batch > 1 and spec.engine != GENERATE:
            raise ValueError(f"{spec.engine} decodes one text at a time, not {spec.batch}")
        self.spec = spec
        self.model, draft = kit.transformers
        self._options: dict[str, Any] = {"max_new_tokens": kit.tokens, **answering.PLAIN}
        # Padding by hand: `generate` would otherwise take the end of a text for padding.
        self._options["pad_token_id"] = 0
        self._ends = set(kit.models[0].eos_ids)
        if spec.engine != GENERATE:
            fix_window(draft.generation_config, spec.draft_length)
            self._draft, self._options["assistant_model"] = draft, draft
        if spec.engine == ENSEMBLE:
            self._options["assistant_ensemble_weight"] = spec.setting

    def answer(self, prompts: Prompts) -> Made:
        start = time.perf_counter()
        tokens = sum(self._answer(group) for group in batches(prompts, self.spec.batch))
        cycles = tokens if self.spec.engine == GENERATE else 0
        return Made(tokens, cycles, time.perf_counter() - start)

    def _answer(self, prompts: Prompts) -> int:
        if self.spec.engine != GENERATE:
            fix_window(self._draft.generation_config, self.spec.draft_length)
        width, device = max(map(len, prompts)), self.model.device
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
        real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        output = self.model.generate(ids, attention_mask=real, **self._options)
        return sum(self._length(text) for text in output[:, width:].tolist())

    def _length(self, text: list[int]) -> int:
        """Up to the end of the text, which is counted."""
        return next((n for n, token in enumerate(text, 1) if token in self._ends), len(text))


def fix_window(config: Any, window: int) -> None:
    """Windows of one length: by default transformers ends a draft when its confidence falls below
    0.4, and adapts its length."""
    config.num_assistant_tokens = window
    config.num_assistant_tokens_schedule = "constant"
    config.assistant_confidence_threshold = 0.0


def batches(prompts: Prompts, size: int) -> list[Prompts]:
    """Groups of `size` prompts, the last maybe smaller."""
    return [prompts[first : first + size] for first in range(0, len(prompts), size)]


# --- vLLM --------------------------------------------------------------------------------------


class Remote(Engine):
    """vLLM, in a process that it shares with the same rule at other batch sizes."""

    def __init__(self, kit: Kit, spec: Spec) -> None:
        self.spec = spec
        alike = replace(spec, batch=1)
        if alike not in kit.servers:
            kit.servers[alike] = Server(kit, alike)
        self._server = kit.servers[alike]

    def answer(self, prompts: Prompts) -> Made:
        return Made(*self._server.ask((self.spec.batch, [list(prompt) for prompt in prompts])))


class Server:
    """A process in which vLLM runs, or will: it starts while others do.

    Raises:
        ValueError: when it is waited for or asked; vLLM could not start or answer, with its reason.
    """

    def __init__(self, kit: Kit, spec: Spec) -> None:
        self.spec = spec
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        call = (theirs, spec, kit.pair, kit.head_paths, kit.tokens)
        self._process = context.Process(target=_serve, args=call, daemon=True)
        self._process.start()
        theirs.close()
        self._ready = False

    def wait(self) -> None:
        """Until it can answer."""
        if not self._ready:
            self._receive()  # ready, or the reason why not
            self._ready = True

    def ask(self, question: tuple[int, list[list[int]]]) -> Any:
        """Send a batch size and prompts; returns what came back."""
        self.wait()
        try:
            self._pipe.send(question)
        except OSError as error:
            raise ValueError(f"vLLM has ended ({self.spec}); see its log") from error
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=10)
        self._process.terminate()

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError as error:
            raise ValueError(f"vLLM ended without an answer ({self.spec}); see its log") from error
        if isinstance(answer, str):
            raise ValueError(f"vLLM could not run {self.spec}: {answer}")
        return answer


def _serve(pipe: Connection, spec: Spec, pair: Pair, heads: dict[str, str], tokens: int) -> None:
    """The process: an engine that answers what comes through the pipe until it is closed."""
    try:
        engine = _Vllm(spec, pair, heads, tokens)
        pipe.send(())
        while True:
            pipe.send(tuple(engine.answer(*pipe.recv())))
    except EOFError:
        return
    except Exception as error:  # whatever it was, the other side says so
        pipe.send(f"{type(error).__name__}: {error}")


class _Vllm:
    def __init__(self, spec: Spec, pair: Pair, heads: dict[str, str], tokens: int) -> None:
        os.environ.update(VLLM_SETTINGS)
        if spec.engine == UNPLUGGED:
            os.environ["VLLM_PLUGINS"] = ""
        from vllm import LLM, SamplingParams

        self.params = SamplingParams(temperature=0.0, max_tokens=tokens, detokenize=False)
        self.llm = LLM(
            dtype=pair.dtype, enforce_eager=pair.device == "cpu", max_num_seqs=LARGEST_BATCH,
            disable_log_stats=False, enable_prefix_caching=False,
            **vllm_target(pair), **vllm_options(spec, pair, heads),
        )  # fmt: skip

    def answer(self, batch: int, prompts: Prompts) -> Made:
        before, start = self._drafts(), time.perf_counter()
        tokens = sum(self._answer(group) for group in batches(prompts, batch))
        seconds = time.perf_counter() - start
        return Made(tokens, self._drafts() - before, seconds)

    def _answer(self, prompts: Prompts) -> int:
        asked: Any = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self.llm.generate(asked, self.params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    def _drafts(self) -> int:
        """Windows that were verified; nearly all target calls, in an engine with a draft."""
        name = "vllm:spec_decode_num_drafts"
        return sum(int(m.value) for m in self.llm.get_metrics() if m.name == name)


LARGEST_BATCH = 64
LONGEST_TEXT = 4096


def vllm_target(pair: Pair) -> dict[str, Any]:
    """`LLM`'s arguments for the target: where it is, how it is loaded, how long texts may be."""
    from transformers import AutoConfig

    about = pair.target_options
    revision = about.get("revision")
    context: int = AutoConfig.from_pretrained(
        pair.target, revision=revision
    ).max_position_embeddings
    options: dict[str, Any] = {
        "model": pair.target,
        "max_model_len": min(context, LONGEST_TEXT),
    }
    options |= {"revision": revision} if revision else {}
    if about.get("quantization") == "fp8":
        options["quantization"] = "fp8"
    if about.get("spread") == "layers":  # here every layer is divided
        options["tensor_parallel_size"] = torch.cuda.device_count()
    return options


def vllm_options(spec: Spec, pair: Pair, heads: Mapping[str, str]) -> dict[str, Any]:
    """`LLM`'s arguments for the draft and the rule."""
    if spec.rule == PLAIN:
        return {}
    drafting = {
        "method": "draft_model", "model": pair.draft, "num_speculative_tokens": spec.draft_length,
    }  # fmt: skip
    judge = judge_config(spec, heads)
    return {
        "speculative_config": drafting,
        **({"additional_config": {"judge": judge}} if judge else {}),
    }


def judge_config(spec: Spec, heads: Mapping[str, str]) -> dict[str, Any]:
    """The plugin's configuration for a rule of the rulebook; empty for strict."""
    if spec.rule == rulebook.STRICT:
        return {}
    for prefix, more in ((rulebook.FLOORED, {"floor": rulebook.FLOOR}), (rulebook.JUDGE, {})):
        if spec.rule.startswith(prefix):
            head = heads[spec.rule.removeprefix(prefix)]
            return {"head": head, "threshold": spec.setting, **more}
    return {"rule": spec.rule, "setting": spec.setting}


def has_vllm() -> bool:
    """Whether vLLM is installed."""
    from importlib.util import find_spec

    found = find_spec("vllm")
    return found is not None and found.origin is not None  # a mere folder of that name has none
