"""Compiled passes: the same model, the same tokens, without Python between the kernels.

A small model's pass over a few tokens spends most of its time between its kernels.
`CompiledModel(model)` is the model with its passes compiled by `torch.compile`; what else a
`LanguageModel` does it does as before. Keys and values lie in the buffers of a `RowCache`, new ones
are written by index, and so forgetting rejected tokens is again a matter of lowering a length.

Four graphs at most are made of a model, for one text or several and for one new token or several;
lengths are symbolic, so no length is compiled twice. On a GPU a pass sees the whole buffer, and the
mask hides the rest, so that its shapes are few and its kernels are replayed as CUDA graphs.
"""

from __future__ import annotations

import itertools
import shutil
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache

from judgelib.cache import RowCache
from judgelib.models import LanguageModel

Buffers = list[tuple[Tensor, Tensor]]
Pass = Callable[..., tuple[Tensor, Tensor]]
"""(ids, places, slots, mask, buffers) -> logits and hidden states of all new tokens."""

WIDEST = 256
"""The most new tokens of a compiled pass: a long prompt is read better without an explicit mask."""
STEP = 256
"""On a GPU a buffer's capacity is a multiple of this, so that texts share graphs."""

_numbers = itertools.count()


class CompiledModel(LanguageModel):
    """A model with its passes compiled, at their first use. It shares the weights.

    Compiling takes half a minute for the sandbox's target on two cores; torch keeps the results on
    disk. Logits differ from the model's own in their last bits, as those of any other kernel would.

    Raises:
        ValueError: no C++ compiler is found, or the model scales or caps its logits.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model.model, model.tokenizer, model.name)
        if not self._head_is_plain:
            raise ValueError(
                f"{model.name} scales or caps its logits, which a compiled pass would leave out; "
                "use the model as it is"
            )
        if self.device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            raise ValueError(
                "compiling for a CPU needs a C++ compiler (g++ or clang++), and none was found; "
                "install one, or use the model as it is"
            )
        self._listened = False
        self._passes: dict[tuple[bool, bool], Pass] = {}
        self._replays: dict[tuple[int, ...], _Replay] = {}
        self._shapes: list[tuple[int, int]] = []  # a layer: key-value heads, and their width
        self._spare: list[tuple[weakref.ref[RowCache], Buffers]] = []

    def new_cache(self, rows: int, capacity: int) -> RowCache:
        """As `LanguageModel.new_cache`, with its buffers made, so that prompts are compiled too."""
        if self._cuda:
            capacity = -(-capacity // STEP) * STEP
        cache = super().new_cache(rows, capacity)
        cache._buffers = self._buffers(rows, capacity)
        if self._cuda:
            self._spare.append((weakref.ref(cache), cache._buffers))
        return cache

    @property
    def _cuda(self) -> bool:
        return self.device.type == "cuda"

    def _buffers(self, rows: int, capacity: int) -> Buffers:
        """Fresh ones; on a GPU those of a cache that is gone: graphs know where they lie."""
        self._shapes = self._shapes or self._measured_shapes()
        for number, (cache, buffers) in enumerate(self._spare):
            if cache() is None and buffers[0][0].shape[::2] == (rows, capacity + 1):
                del self._spare[number]
                return buffers
        sizes = [(rows, heads, capacity + 1, width) for heads, width in self._shapes]

        def zeros(size: tuple[int, ...]) -> Tensor:
            return torch.zeros(size, dtype=self.dtype, device=self.device)

        return [(zeros(size), zeros(size)) for size in sizes]

    def _measured_shapes(self) -> list[tuple[int, int]]:
        """What the model hands to a cache, seen in one pass."""
        cache = RowCache(1, 1)
        LanguageModel._forward(self, LanguageModel._place_one(self, cache, self._one_token()), 1)
        return [(keys.shape[1], keys.shape[3]) for keys, _ in cache._buffers]

    def _one_token(self) -> Tensor:
        return torch.zeros(1, 1, dtype=torch.long, device=self.device)

    def _place_one(self, cache: RowCache, ids: Tensor) -> dict[str, Any]:
        inputs = super()._place_one(cache, ids)
        if inputs["attention_mask"] is None and ids.shape[1] <= WIDEST:
            inputs["attention_mask"] = self._causal_mask(0, ids.shape[1])
        return inputs

    @contextmanager
    def _listening(self, spots: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """States inside the model are heard in plain passes: a graph knows nothing of hooks."""
        self._listened = True
        try:
            with super()._listening(spots) as heard:
                yield heard
        finally:
            self._listened = False

    def _forward(self, inputs: dict[str, Any], rows: int) -> tuple[Tensor, Tensor]:
        ids, mask, cache = (
            inputs[name] for name in ("input_ids", "attention_mask", "past_key_values")
        )
        # A token that sees only itself: torch keeps no length of 1 open.
        alone = mask is not None and mask.shape[3] == 1
        if self._listened or mask is None or alone or ids.shape[1] > WIDEST:
            return super()._forward(inputs, rows)
        places = inputs["position_ids"]
        slots = places if cache._slots is None else cache._slots[1]
        logits, states = self._run(ids, places, slots, mask, cache._buffers)
        return logits[:, -rows:], states[:, -rows:]

    def _run(
        self, ids: Tensor, places: Tensor, slots: Tensor, mask: Tensor, buffers: Buffers
    ) -> tuple[Tensor, Tensor]:
        if self._cuda:
            hidden = buffers[0][0].shape[2] - mask.shape[3]
            mask = pad(mask, (0, hidden), value=torch.finfo(self.dtype).min)
        inputs = (ids, places, slots, mask)
        kind = (len(ids) == 1, ids.shape[1] == 1)
        if kind not in self._passes:
            _mark_lengths(kind, inputs, buffers)
            self._passes[kind] = _compiled(self._backbone, self._head)
        if not self._cuda:
            return self._passes[kind](*inputs, buffers)
        key = (*ids.shape, mask.shape[3], buffers[0][0].data_ptr())
        if key not in self._replays:
            self._replays[key] = _Replay(kind, self._passes[kind], inputs, buffers)
        return self._replays[key](inputs)


class _IndexedCache(Cache):
    """What the model sees of a `RowCache` within a graph: buffers, and where new tokens go."""

    def __init__(self, buffers: Buffers, slots: Tensor, reach: int) -> None:
        super().__init__(layers=[])
        self.buffers, self.slots, self.reach = buffers, slots, reach
        self.rows = torch.arange(slots.shape[0], device=slots.device)[:, None]

    def update(  # type: ignore[override]
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.buffers[layer_idx]
        keys[self.rows, :, self.slots] = key_states.transpose(1, 2)
        values[self.rows, :, self.slots] = value_states.transpose(1, 2)
        return keys[:, :, : self.reach], values[:, :, : self.reach]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.reach, 0


class _Replay:
    """A pass recorded as a CUDA graph, for one set of shapes and one place in memory.

    Not run so far: there was no GPU where this was written.
    """

    def __init__(
        self, kind: tuple[bool, bool], run: Pass, inputs: tuple[Tensor, ...], buffers: Buffers
    ) -> None:
        self.inputs = tuple(tensor.clone() for tensor in inputs)
        _mark_lengths(kind, self.inputs, buffers)  # a clone is not marked as its original is
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(
            side
        ):  # compile and warm up; reading the same tokens twice is harmless
            run(*self.inputs, buffers)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = run(*self.inputs, buffers)

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        for own, new in zip(self.inputs, inputs, strict=True):
            own.copy_(new)
        self.graph.replay()
        logits, states = self.outputs  # the next replay overwrites them
        return logits.clone(), states.clone()


def _mark_lengths(kind: tuple[bool, bool], inputs: tuple[Tensor, ...], buffers: Buffers) -> None:
    """Tell torch which sizes will vary: texts, new tokens, what they see, the buffers' capacity.

    A size that torch cannot keep open is then an error, never a graph for this size alone.
    """
    one_text, one_token = kind
    *per_token, mask = inputs
    stored = [buffer for pair in buffers for buffer in pair]
    axes = [(mask, 3), *((buffer, 2) for buffer in stored)]
    axes += [] if one_token else [*((tensor, 1) for tensor in per_token), (mask, 2)]
    axes += [] if one_text else [(tensor, 0) for tensor in (*inputs, *stored)]
    for tensor, axis in axes:
        torch._dynamo.mark_dynamic(tensor, axis)


def _compiled(backbone: torch.nn.Module, head: torch.nn.Module) -> Pass:
    def read(
        ids: Tensor, places: Tensor, slots: Tensor, mask: Tensor, buffers: Buffers
    ) -> tuple[Tensor, Tensor]:
        states = backbone(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=_IndexedCache(buffers, slots, mask.shape[3]),
            use_cache=True,
        ).last_hidden_state
        return head(states), states

    # torch keeps graphs by code object, and asks many guards which of them fits. Here each pass has
    # a code object of its own and one graph. `CompiledModel` knows which fits; nothing is asked.
    name = f"read_{next(_numbers)}"
    own = types.FunctionType(
        read.__code__.replace(co_name=name), read.__globals__, name, closure=read.__closure__
    )
    options: dict[str, Any] = {
        "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
        "cpp_wrapper": True,
    }
    return torch.compile(own, fullgraph=True, options=options)
