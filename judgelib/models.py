"""Target and draft models: loading them, checking that they fit, reading tokens in one pass.

`LanguageModel.read` is the only forward pass in the package. It reads new tokens behind what a
`RowCache` holds and returns logits, and if asked hidden states, for the last few of them only.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from judgelib.attention import GROUPED, register
from judgelib.cache import RowCache

FEATURES = ("post_norm", "pre_norm")
QUANTIZATIONS = ("none", "fp8", "int8")
SPREADS = ("none", "layers", "tensor")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


class Read(NamedTuple):
    """What one pass returns: logits (B, rows, V), and hidden states (B, rows, D) if asked for."""

    logits: Tensor
    hidden: Tensor | None


class LanguageModel:
    """A transformers causal language model with its tokenizer.

    Args:
        model: any causal LM whose layers all attend to the whole text.
        tokenizer: its tokenizer.
        name: how messages, heads and tables call it.

    Attributes:
        vocab_size: width of the logits, which may exceed the tokenizer's vocabulary.
        context: the longest text in tokens.
        hidden_size, layers, dtype, device, config: as the model has them.

    Raises:
        ValueError: sliding-window or recurrent layers (they cannot be rolled back), or a kind of
            attention that takes no mask.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        # Read once: transformers looks device and configuration up anew on every access, which a
        # pass would notice.
        self.config: Any = model.config.get_text_config(decoder=True)
        self.vocab_size: int = self.config.vocab_size
        self.context: int = self.config.max_position_embeddings
        self.hidden_size: int = self.config.hidden_size
        self.layers: int = self.config.num_hidden_layers
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self._backbone = model.base_model
        self._head = model.get_output_embeddings()
        _check_readable(self)
        self._head_is_plain = _head_is_plain(self)
        self._triangle = torch.empty(1, 1, 0, 0)
        self._positions = torch.arange(0, device=self.device)[None]

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a text, as transformers' `generate` takes them."""
        found = self.model.generation_config.eos_token_id
        found = self.tokenizer.eos_token_id if found is None else found
        if isinstance(found, (list, tuple)):
            return tuple(found)
        return () if found is None else (int(found),)

    @property
    def end_id(self) -> int | None:
        """The one of `eos_ids` that ends an answer in a chat: the tokenizer's own (of Llama 3 it is
        the last of three), else the first."""
        own = self.tokenizer.eos_token_id
        return own if own in self.eos_ids else next(iter(self.eos_ids), None)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of a sample of every weight: the same for the same weights, wherever they
        lie and in whatever precision they were loaded."""
        digest = hashlib.sha256()
        for name, weight in self.model.named_parameters():
            flat = weight.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 64)].to("cpu", torch.bfloat16)
            digest.update(name.encode() + sample.view(torch.int16).numpy().tobytes())
        return digest.hexdigest()[:16]

    def new_cache(self, rows: int, capacity: int) -> RowCache:
        """An empty cache for `rows` texts of up to `capacity` tokens."""
        return RowCache(rows, capacity)

    @torch.inference_mode()
    def read(
        self,
        ids: Tensor,
        cache: RowCache,
        *,
        rows: int,
        hidden: str | None = None,
        pads: list[int] | None = None,
    ) -> Read:
        """Read new tokens in one forward pass.

        Args:
            ids: (B, q) the tokens behind those in the cache, which counts them as read from then
                on (see `rollback`).
            cache: from `new_cache`.
            rows: logits are computed for the last `rows` tokens only.
            hidden: "post_norm" (what the output head sees), "pre_norm" (before the final norm),
                "layer_<n>" (the output of decoder layer n, counted from 1), or None.
            pads: pads[b] meaningless tokens come first in row b (see `pad_left`). None: no row has
                any.

        Returns:
            Row j of the result belongs to token q - rows + j: the hidden state of the model that
            has just processed this token, and the logits of the token after it.
        """
        one = len(cache.lengths) == 1
        inputs = self._place_one(cache, ids) if one else self._place_many(cache, ids, pads)
        if hidden is None or hidden == "post_norm":
            logits, states = self._forward(inputs, rows)
            return self._here(logits, states if hidden else None)
        with self._listening([hidden]) as heard:
            logits, _ = self._forward(inputs, rows)
        return self._here(logits, heard[hidden][:, -rows:])

    def _here(self, logits: Tensor, hidden: Tensor | None) -> Read:
        """On the model's first device, where layers are spread over several."""
        return Read(logits.to(self.device), hidden if hidden is None else hidden.to(self.device))

    @torch.inference_mode()
    def states(
        self,
        ids: Tensor,
        spots: Sequence[str],
        *,
        positions: Tensor | None = None,
        sees: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Hidden states of whole texts at several spots in one pass, without a cache.

        Args:
            ids: (B, n) tokens.
            spots: as `hidden` in `read`.
            positions: (B, n) place of each token in its text; None: 0 to n - 1.
            sees: (B, n, n) True where token i may look at token j; None: causal.

        Returns:
            spot -> (B, n, D).
        """
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if positions is not None:
            inputs["position_ids"] = positions
        if sees is not None:
            inputs["attention_mask"] = self._additive(~sees)[:, None]
        with self._listening([spot for spot in spots if spot != "post_norm"]) as heard:
            if self._head_is_plain:
                heard["post_norm"] = self._backbone(**inputs).last_hidden_state
            else:
                hook = self._head.register_forward_pre_hook(
                    lambda _, args: heard.update(post_norm=args[0])
                )
                try:
                    self.model(**inputs)
                finally:
                    hook.remove()
        return {spot: heard[spot] for spot in spots}

    def output_logits(self, states: Tensor) -> Tensor:
        """Logits (..., V) of post-norm states (..., D), before any cap or scale of the model's."""
        logits: Tensor = self._head(states)
        return logits.to(self.device)

    @contextmanager
    def _listening(self, spots: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Collect hidden states inside the model while it reads."""
        heard: dict[str, Tensor] = {}
        found = [(spot, *_spot(self, spot)) for spot in spots]  # before there is a hook to remove
        hooks = [
            module.register_forward_hook(_listener(heard, spot, incoming))
            for spot, module, incoming in found
        ]
        try:
            yield heard
        finally:
            for hook in hooks:
                hook.remove()

    def _forward(self, inputs: dict[str, Any], rows: int) -> tuple[Tensor, Tensor]:
        if self._head_is_plain:
            states = self._backbone(**inputs, use_cache=True).last_hidden_state[:, -rows:]
            return self._head(states), states
        seen: list[Tensor] = []
        hook = self._head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            logits = self.model(**inputs, use_cache=True, logits_to_keep=rows).logits
        finally:
            hook.remove()
        return logits, seen[0]

    def _place_one(self, cache: RowCache, ids: Tensor) -> dict[str, Any]:
        """Inputs for one row: mask and positions are slices of stored tensors."""
        start, width = cache.lengths[0], ids.shape[1]
        stop = start + width
        cache.place(start, stop)
        cache.lengths[0] = stop
        if self._positions.shape[1] < stop:
            self._positions = torch.arange(max(stop, self.context), device=self.device)[None]
        return {
            "input_ids": ids,
            # Behind an empty cache the model's own causal attention is right, and fast.
            "attention_mask": self._causal_mask(start, width) if start else None,
            "position_ids": self._positions[:, start:stop],
            "past_key_values": cache,
        }

    def _place_many(self, cache: RowCache, ids: Tensor, pads: list[int] | None) -> dict[str, Any]:
        """Inputs for rows of different lengths: explicit slots, positions and mask."""
        width = ids.shape[1]
        pads = pads or [0] * len(cache.lengths)
        stops = [length + width - pad for length, pad in zip(cache.lengths, pads, strict=True)]
        lengths = torch.tensor(cache.lengths, device=self.device)[:, None]
        backwards = torch.arange(-width, 0, device=self.device)
        places = torch.tensor(stops, device=self.device)[:, None] + backwards  # (B, q)
        slots = torch.where(places >= lengths, places, cache.capacity)  # pads: never looked at
        cache.place(0, max(stops), slots)
        cache.lengths = stops
        return {
            "input_ids": ids,
            "attention_mask": self._row_masks(places, max(stops)),
            "position_ids": places.clamp(0, self.context - 1),
            "past_key_values": cache,
        }

    def _causal_mask(self, start: int, width: int) -> Tensor:
        """(1, 1, width, start + width), 0 where token i may look: a slice of one big triangle."""
        past = self._triangle.shape[3] - self._triangle.shape[2]
        if self._triangle.shape[2] < width or past < start:
            self._triangle = self._new_triangle(width, start)
            past = self._triangle.shape[3] - self._triangle.shape[2]
        return self._triangle[:, :, :width, past - start : past + width]

    def _new_triangle(self, width: int, start: int) -> Tensor:
        width, past = max(width, 32), max(2 * start, 1024)
        hidden = torch.ones(width, past + width, dtype=torch.bool, device=self.device)
        return self._additive(hidden.triu(past + 1))[None, None]

    def _row_masks(self, places: Tensor, reach: int) -> Tensor:
        """(B, 1, q, reach), 0 where a token may look: at the slots up to its own."""
        slots = torch.arange(reach, device=self.device)
        return self._additive(slots > places.clamp(min=0)[:, None, :, None])

    def _additive(self, hidden: Tensor) -> Tensor:
        """A mask that every kind of attention can add to its scores."""
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(hidden, torch.finfo(self.dtype).min)

    def __repr__(self) -> str:
        size = f"{self.layers} layers x {self.hidden_size}"
        return f"LanguageModel({self.name}: {size}, {self.dtype}, {self.device})"


def pad_left(rows: list[list[int]], device: torch.device) -> tuple[Tensor, list[int] | None]:
    """Stack rows of different lengths so that their last tokens line up: ids (B, q) and how many
    pads each row got.

    >>> pad_left([[1, 2], [3]], torch.device("cpu"))
    (tensor([[1, 2],
            [0, 3]]), [0, 1])
    """
    width = max(map(len, rows))
    pads = [width - len(row) for row in rows]
    ids = torch.tensor(
        [[0] * pad + row for pad, row in zip(pads, rows, strict=True)], device=device
    )
    return ids, pads if any(pads) else None


def load_model(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    quantization: str = "none",
    spread: str = "none",
    template: Mapping[str, Any] | None = None,
    shared: bool = False,
) -> LanguageModel:
    """Load a causal LM and its tokenizer from a folder or from the hub (safetensors only).

    Args:
        revision: of the hub: a commit or a branch.
        quantization: of the layers' matrices while loading: "fp8" (transformers' fine-grained FP8;
            GPUs from Ada and Hopper on, package `kernels`) or "int8" (package `bitsandbytes`).
        spread: over several devices: "layers" deals whole layers out to this process's GPUs,
            "tensor" divides every layer among the processes that `torchrun` started.
        template: options of the tokenizer's chat template, such as {"enable_thinking": False}.
        shared: a model that this process has already loaded in the same way, and still holds, is
            used again.

    Raises:
        ValueError: no weights there (says the command that makes them), not a causal LM, or an
            unknown quantization or spread.
    """
    name = str(path_or_id)
    _check_weights(name)
    _check_placement(quantization, spread, device)
    key = json.dumps([name, revision, str(dtype), str(device), quantization, spread, template])
    if shared and key in _held:
        return _held[key]
    _check_causal(name, revision)
    made = _loaded(name, revision, dtype, device, quantization, spread)
    made.tokenizer.template_options = dict(template or {})
    if shared:
        _held[key] = made
    return made


_held: weakref.WeakValueDictionary[str, LanguageModel] = weakref.WeakValueDictionary()


def _loaded(
    name: str, revision: str | None, dtype: Any, device: Any, quantization: str, spread: str
) -> LanguageModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    placed = _placement(quantization, spread, device)
    # Bars for downloads only: reading a folder takes no time, and a notebook keeps what is printed.
    with quiet() if Path(name).is_dir() else nullcontext():
        model = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation=register(),
            **placed,
        )
    return LanguageModel(model if placed else model.to(device), tokenizer, name)


def _check_placement(quantization: str, spread: str, device: Any) -> None:
    if quantization not in QUANTIZATIONS:
        raise ValueError(
            f"expected a quantization of {', '.join(QUANTIZATIONS)}, got {quantization!r}"
        )
    if spread not in SPREADS:
        raise ValueError(f"expected a spread of {', '.join(SPREADS)}, got {spread!r}")
    if quantization != "none" and torch.device(device).type == "cpu":
        raise ValueError(f"{quantization} weights need a GPU; on a CPU load without quantization")


def _placement(quantization: str, spread: str, device: Any) -> dict[str, Any]:
    """Arguments of `from_pretrained` for weights that cannot simply be moved once they are read."""
    options: dict[str, Any] = {}
    if quantization != "none":
        options |= {"quantization_config": _quantizer(quantization), "device_map": {"": device}}
    if spread == "layers":
        options["device_map"] = "balanced"
    if spread == "tensor":
        from transformers.distributed import DistributedConfig

        options.pop("device_map", None)
        options["distributed_config"] = DistributedConfig(tp_plan="auto")
    return options


def _quantizer(quantization: str) -> Any:
    from transformers import BitsAndBytesConfig, FineGrainedFP8Config

    return (
        FineGrainedFP8Config() if quantization == "fp8" else BitsAndBytesConfig(load_in_8bit=True)
    )


def load_pair(
    target: str | Path,
    draft: str | Path,
    *,
    target_revision: str | None = None,
    draft_revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    target_options: Mapping[str, Any] | None = None,
    draft_options: Mapping[str, Any] | None = None,
) -> tuple[LanguageModel, LanguageModel]:
    """Load a target and a draft and check that they fit together (see `load_model`, whose other
    arguments go into `target_options` and `draft_options`, and `check_pair`)."""
    ours = {"revision": target_revision, "dtype": dtype, "device": device, **(target_options or {})}
    theirs = {"revision": draft_revision, "dtype": dtype, "device": device, **(draft_options or {})}
    pair = load_model(target, **ours), load_model(draft, **theirs)
    check_pair(*pair)
    return pair


def check_source(name: str, revision: str | None = None) -> None:
    """ValueError unless a causal LM lies at a path or hub id; reads its configuration only."""
    _check_weights(name)
    _check_causal(name, revision)


class Tokenized(Protocol):
    """What `check_pair` looks at: a loaded model, or only its name and tokenizer."""

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> Any: ...


def check_pair(target: Tokenized, draft: Tokenized) -> None:
    """Check that both models mean the same by every token id.

    Raises:
        ValueError: naming the first token or special token that differs.
    """
    ours, theirs = target.tokenizer.get_vocab(), draft.tokenizer.get_vocab()
    if ours != theirs:
        raise ValueError(_vocabulary_difference(target.name, ours, draft.name, theirs))
    ours, theirs = target.tokenizer.special_tokens_map, draft.tokenizer.special_tokens_map
    for role in sorted({*ours, *theirs} - {"pad_token"}):  # padding is never read
        if ours.get(role) != theirs.get(role):
            raise ValueError(
                f"target and draft must share their special tokens, but {role} is "
                f"{ours.get(role)!r} in {target.name} and {theirs.get(role)!r} in {draft.name}; "
                "choose a draft made for this target"
            )


def _vocabulary_difference(
    target: str, ours: dict[str, int], draft: str, theirs: dict[str, int]
) -> str:
    everything = {**theirs, **ours}
    different = [token for token in everything if ours.get(token) != theirs.get(token)]
    token = min(different, key=lambda token: (everything[token], token not in ours))
    return (
        f"target and draft must share one vocabulary, but token {token!r} has id {ours.get(token)} "
        f"in {target} ({len(ours)} tokens) and id {theirs.get(token)} in {draft} "
        f"({len(theirs)} tokens); choose a draft with the target's tokenizer"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_weights(name: str) -> None:
    """Say what is missing at a path, and how to get it, before transformers asks the hub about
    it."""
    folder = Path(name)
    sandbox = "data/sandbox" in folder.as_posix()
    if (
        not folder.is_dir()
        and not sandbox
        and not folder.is_absolute()
        and not name.startswith(".")
    ):
        return  # a hub name
    if (folder / "config.json").is_file() and any(
        any(folder.glob(pattern)) for pattern in _WEIGHTS
    ):
        return
    cure = (
        "run `make sandbox-models` to train them"
        if sandbox
        else "check the path, or convert them to safetensors"
    )
    raise ValueError(
        f"expected config.json and *.safetensors in {name}, but they are missing; {cure}"
    )


def _check_causal(name: str, revision: str | None) -> None:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
    except OSError as error:
        raise ValueError(
            f"expected a folder or a hub name, got {name!r}, which cannot be read ({error})"
        ) from error
    made_as = getattr(config, "architectures", None) or ["an unnamed architecture"]
    if made_as[0] not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise ValueError(
            f"{name} must be a causal language model, but it is {made_as[0]}; "
            "choose a decoder-only model"
        )


def _check_readable(model: LanguageModel) -> None:
    from transformers.cache_utils import DynamicCache, DynamicLayer

    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers} - {DynamicLayer}
    if kinds:
        raise ValueError(
            f"every layer of {model.name} must attend to the whole text, but some use "
            f"{kinds.pop().__name__}, from which rejected tokens cannot be removed; "
            "choose a model without sliding windows and recurrent layers"
        )
    if model.config._attn_implementation not in ("sdpa", "eager", GROUPED):
        raise ValueError(
            f"{model.name} must be loaded with attn_implementation 'sdpa' or 'eager', not "
            f"{model.config._attn_implementation!r}, which takes no mask of ours"
        )
    if "position_ids" not in inspect.signature(model._backbone.forward).parameters:
        raise ValueError(
            f"{model.name} takes no position_ids, so rows of different lengths cannot share a pass"
        )


def _head_is_plain(model: LanguageModel) -> bool:
    """Whether logits are the output head's product and nothing more (some models cap or scale
    them).

    The hidden states are blown up first, because a cap shows on large logits only, and moved away
    from zero, where nothing shows: token 0 may be padding, whose embedding is zero.
    """

    def blow_up(_: nn.Module, __: Any, output: Any) -> Any:
        output.last_hidden_state = (output.last_hidden_state + 1) * 1000
        seen.append(output.last_hidden_state)
        return output

    seen: list[Tensor] = []
    hook = model._backbone.register_forward_hook(blow_up)
    try:
        with torch.inference_mode():
            logits = model.model(torch.zeros(1, 1, dtype=torch.long, device=model.device)).logits
            return torch.equal(logits, model._head(seen[0]).to(logits.device))
    finally:
        hook.remove()


def _spot(model: LanguageModel, spot: str) -> tuple[nn.Module, bool]:
    """The module to listen to, and whether to its input (else its output)."""
    if spot == "pre_norm":
        return _final_norm(model), True
    number = spot.removeprefix("layer_")
    if not spot.startswith("layer_") or not number.isdigit() or not int(number):
        raise ValueError(
            f"expected a hidden state of post_norm, pre_norm or layer_<n>, got {spot!r}"
        )
    layers = next(
        (
            module
            for module in model._backbone.modules()
            if isinstance(module, nn.ModuleList) and len(module) == model.layers
        ),
        None,
    )
    if layers is None or int(number) > model.layers:
        raise ValueError(
            f"{model.name} has {model.layers if layers is not None else 'no'} layers that can be "
            f"read, got {spot!r}; use post_norm or pre_norm"
        )
    return layers[int(number) - 1], False


def _listener(heard: dict[str, Tensor], spot: str, incoming: bool) -> Callable[..., None]:
    def listen(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        value = inputs[0] if incoming else output
        heard[spot] = value[0] if isinstance(value, tuple) else value

    return listen


def _final_norm(model: LanguageModel) -> nn.Module:
    for name, child in reversed(list(model._backbone.named_children())):
        if "norm" in name or name == "ln_f":
            return child
    raise ValueError(
        f"{model.name} has no final norm that could be found; use the feature 'post_norm'"
    )
