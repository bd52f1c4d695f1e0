"""Attention over shared heads: transformers' own numbers, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers.integrations import sdpa_attention

from judgelib.attention import GROUPED, attend, register

MODULE = torch.nn.Module()
MODULE.num_key_value_groups = 4  # type: ignore[assignment]
SCALING = 8**-0.5


def inputs(rows: int, queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries of 8 heads, keys and values of 2, and a mask that hides a third of the keys."""
    generator = torch.Generator().manual_seed(queries)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    hidden = torch.rand(rows, 1, queries, keys, generator=generator) < 0.3
    mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
    shared = [drawn(rows, 2, keys, 8) for _ in range(2)]
    return drawn(rows, 8, queries, 8), *shared, mask


@pytest.mark.parametrize("shape", [(1, 1, 40), (1, 9, 300), (3, 5, 17)], ids=str)
def test_grouped_is_transformers_own_to_the_bit(shape: tuple[int, int, int]) -> None:
    given = inputs(*shape)
    own, weights = attend(MODULE, *given, scaling=SCALING, dropout=0.0)
    theirs, _ = sdpa_attention.sdpa_attention_forward(MODULE, *given, scaling=SCALING)
    assert own.shape == (shape[0], shape[1], 8, 8) and weights is None
    assert torch.equal(own, theirs)
    halved, _ = attend(MODULE, *given, scaling=SCALING / 2)
    assert not torch.allclose(halved, theirs)  # the scale is heard


def test_whole_passes_agree_to_the_bit() -> None:
    """Behind a cache, and for rows of different lengths: whatever has a mask."""
    models = [tiny.language_model(), tiny.language_model()]
    models[0].model.set_attn_implementation(register())
    assert [m.config._attn_implementation for m in models] == [GROUPED, "sdpa"]

    def logits(model: Any, rows: int, pads: list[int] | None) -> list[Tensor]:
        cache, ids = model.new_cache(rows, 16), torch.arange(3, 3 + rows * 6).view(rows, 6)
        return [
            model.read(part, cache, rows=1, pads=own).logits
            for part, own in ((ids, pads), (ids[:, :1], None), (ids[:, :4], None))
        ]

    for rows, pads in ((1, None), (2, [2, 0])):
        for own, theirs in zip(*(logits(m, rows, pads) for m in models), strict=True):
            assert torch.equal(own, theirs)


@pytest.mark.parametrize("case", ["no mask", "position bias"])
def test_the_rest_is_left_to_transformers(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def theirs(*args: Any, **options: Any) -> str:
        calls.append((args, options))
        return "theirs"

    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", theirs)
    *states, mask = inputs(1, 3, 3)
    options: dict[str, Any] = {"scaling": SCALING, "is_causal": True}
    given: tuple[Any, ...] = (*states, None)
    if case == "position bias":
        given, options["position_bias"] = (*states, mask), torch.ones(1)
    answer: Any = attend(MODULE, *given, **options)
    assert answer == "theirs"
    assert all(a is b for a, b in zip(calls[0][0], (MODULE, *given), strict=True))
    assert calls[0][1] == options
