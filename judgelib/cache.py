"""The keys and values that a model has computed for several rows of text.

Slot s of a row holds the token at position s. Every layer owns one buffer that is allocated once,
so a pass copies only its own tokens (a cache that concatenates copies all earlier ones, and so
slows down with length), and forgetting rejected tokens means lowering a length: what lies beyond it
is overwritten before it can be attended to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache


class Reader(Protocol):
    """A model that reads tokens into a cache (see `LanguageModel.read`)."""

    device: torch.device

    def read(self, ids: Tensor, cache: RowCache, *, rows: int) -> Any: ...


class RowCache(Cache):
    """A transformers cache with one length a row, and rollback without copying.

    Args:
        rows: how many texts are read side by side (B).
        capacity: the longest text that a row can hold, in tokens. One slot more is allocated:
            padding is written there.

    `lengths[b]` says how many tokens of row b have been read and not been rolled back.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__(layers=[])
        self.lengths = [0] * rows
        self.capacity = capacity
        self._buffers: list[
            tuple[Tensor, Tensor]
        ] = []  # a layer: keys, values (B, heads, capacity + 1, head_dim)
        self._slots: tuple[Tensor, Tensor] | None = (
            None  # row (B, 1) and slot (B, q) of each new token
        )
        self._start = 0
        self._stop = 0

    def place(self, start: int, stop: int, slots: Tensor | None = None) -> None:
        """Say where the next pass goes.

        The tokens of a single row take slots start to stop. Those of several rows take `slots`
        (B, q), and the longest row ends at `stop`.
        """
        if stop > self.capacity:
            raise ValueError(
                f"the cache has room for {self.capacity} tokens a row, but {stop} are needed"
            )
        self._start, self._stop = start, stop
        self._slots = None
        if slots is not None:
            self._slots = torch.arange(len(slots), device=slots.device)[:, None], slots

    def update(  # type: ignore[override]
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values (B, heads, q, head_dim); return all that may be
        attended to."""
        if layer_idx == len(self._buffers):
            self._buffers.append((self._allocate(key_states), self._allocate(value_states)))
        keys, values = self._buffers[layer_idx]
        return self._write(keys, key_states), self._write(values, value_states)

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Go on with `rows` only, in this order. A row may move to a lower place, never to a higher
        one."""
        for place, row in enumerate(rows):
            if place != row:
                self._move(row, place)
        self.lengths = [self.lengths[row] for row in rows]
        self._buffers = [(keys[: len(rows)], values[: len(rows)]) for keys, values in self._buffers]

    def row(self, row: int) -> RowCache:
        """A cache of one row that shares this one's memory; its length must be handed back."""
        alone = RowCache(1, self.capacity)
        alone.lengths = [self.lengths[row]]
        alone._buffers = [(k[row : row + 1], v[row : row + 1]) for k, v in self._buffers]
        return alone

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before the pass under way (transformers asks when it builds a mask of its own)."""
        return self._start

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Keys that the pass under way sees, and the position of the first."""
        return self._stop, 0

    def _allocate(self, states: Tensor) -> Tensor:
        # Zeros, not empty: padding attends to slots nobody wrote, and 0 x NaN would spread.
        return states.new_zeros(
            len(self.lengths), states.shape[1], self.capacity + 1, states.shape[3]
        )

    def _write(self, buffer: Tensor, states: Tensor) -> Tensor:
        if self._slots is None:
            buffer.narrow(2, self._start, states.shape[2]).copy_(states)
        else:
            rows, slots = self._slots
            if slots.device != buffer.device:  # this layer lies on another device
                rows, slots = rows.to(buffer.device), slots.to(buffer.device)
            buffer[rows, :, slots] = states.transpose(1, 2)
        return buffer.narrow(2, 0, self._stop)

    def _move(self, source: int, goal: int) -> None:
        length = self.lengths[source]
        for pair in self._buffers:
            for buffer in pair:
                buffer[goal, :, :length] = buffer[source, :, :length]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens two texts share.

    >>> common_prefix([1, 2, 3], [1, 2, 4, 5])
    2
    """
    pairs = enumerate(zip(a, b, strict=False))
    return next((place for place, (x, y) in pairs if x != y), min(len(a), len(b)))


def catch_up(model: Reader, cache: RowCache, row: int, tokens: Sequence[int], known: int) -> None:
    """Make a row hold all but the last of `tokens`, of which it holds the first `known` already."""
    known = min(known, len(tokens) - 1)
    alone = cache.row(row)
    alone.lengths = [known]
    new = list(tokens[known:-1])
    if new:
        model.read(torch.tensor([new], device=model.device), alone, rows=1)
    cache.lengths[row] = alone.lengths[0]


def rollback(cache: RowCache, lengths: Sequence[int]) -> None:
    """Forget every token after the first `lengths[b]` of row b.

    >>> cache = RowCache(rows=1, capacity=8); cache.lengths = [5]
    >>> rollback(cache, [3]); cache.lengths
    [3]
    """
    if any(new > old for new, old in zip(lengths, cache.lengths, strict=True)):
        raise ValueError(
            f"rollback only shortens: rows hold {cache.lengths} tokens, not {list(lengths)}"
        )
    cache.lengths = list(lengths)
