"""How many tokens only the judge has kept: the engine's own statistics cannot tell.

The count is kept on the device and read when somebody asks, so that no step waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

NAME = "vllm:spec_decode_num_judged_tokens"
PLACEHOLDER = -1  # what vLLM fills the sampled tokens up with
_EVERY = 1.0  # seconds between two reads of an accelerator's count


def kept_rows(sampled: Tensor, ends: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """For each draft token of a step its request, and whether it was kept: (N,), (N,) bool.

    Args:
        sampled: (B, K + 1) a request's kept draft tokens and the target's own one, then
            placeholders.
        ends: (B,) cumulated numbers of draft tokens.
        rows: N, the last of them.

    >>> sampled = torch.tensor([[4, 5, 6], [7, -1, -1]])  # 2 kept and one more; 0 kept
    >>> kept_rows(sampled, torch.tensor([2, 4]), 4)[1]
    tensor([ True,  True, False, False])
    """
    owners = owners_of(ends, rows)
    starts = torch.nn.functional.pad(ends[:-1], (1, 0))
    places = torch.arange(rows, device=ends.device) - starts[owners]
    kept = (sampled != PLACEHOLDER).sum(1) - 1
    return owners, places < kept[owners]


def owners_of(ends: Tensor, rows: int) -> Tensor:
    """(N,) the request of each draft token.

    >>> owners_of(torch.tensor([2, 2, 3]), 3)
    tensor([0, 0, 2])
    """
    numbers = torch.arange(rows, device=ends.device, dtype=ends.dtype)
    return torch.searchsorted(ends, numbers, right=True)


class JudgedTokens:
    """A running total, shown as the Prometheus counter `vllm:spec_decode_num_judged_tokens`.

    Args:
        labels: as vLLM's own counters have: model_name and engine.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)
        self._pending: Tensor | None = None
        self._total = 0
        self._read = 0.0
        _shown().follow(self)

    def add(self, count: Tensor) -> None:
        """Add () of this step."""
        self._pending = count if self._pending is None else self._pending + count
        if count.device.type == "cpu" or time.monotonic() - self._read > _EVERY:
            self.total()

    def total(self) -> int:
        """All so far; waits for the device."""
        if self._pending is not None:
            new, self._pending = int(self._pending), None
            self._total += new
            _shown().counter.labels(**self._labels).inc(new)
        self._read = time.monotonic()
        return self._total


class _Shown:
    """One counter for all engines of a process.

    vLLM unregisters everything called "vllm:" whenever it builds an engine's statistics, so what
    is registered is this object, which has no name. The counter itself takes part in Prometheus'
    multiprocess mode.
    """

    def __init__(self) -> None:
        import prometheus_client

        text = "Draft tokens that only the judge has kept: approved, and not the target's likeliest"
        names = ("model_name", "engine")
        self.counter: Any = prometheus_client.Counter(NAME, text, names, registry=None)
        self._followed: WeakSet[JudgedTokens] = WeakSet()
        prometheus_client.REGISTRY.register(self)  # type: ignore[arg-type]

    def follow(self, tokens: JudgedTokens) -> None:
        self._followed.add(tokens)

    def describe(self) -> Iterator[Any]:
        return iter(self.counter.describe())

    def collect(self) -> Iterator[Any]:
        for tokens in list(self._followed):
            tokens.total()
        return iter(self.counter.collect())


@cache
def _shown() -> _Shown:
    return _Shown()
