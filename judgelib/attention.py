"""Attention that reads shared key-value heads where they lie.

Models with grouped queries have several query heads to each key-value head. transformers copies the
keys and values once for each of them before it attends under a mask; on a CPU that copy takes an
eighth of a pass, and the kernel can do without it, to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

GROUPED = "judgelib_grouped"
"""The name under which transformers finds it (`attn_implementation`)."""


def register() -> str:
    """Make `GROUPED` known to transformers (as often as one likes); returns its name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(GROUPED, attend)
    AttentionMaskInterface.register(GROUPED, sdpa_mask)
    return GROUPED


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention as transformers calls it: queries (B, H, q, D), keys and values
    (B, H / groups, s, D), mask (B, 1, q, s) -> (B, q, H, D).

    Off the CPU, under a mask, the kernels that take shared heads are the slow ones; there
    transformers' own choice stands.
    """
    if query.device.type != "cpu" or attention_mask is None or options.get("position_bias"):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    seen = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=options.get("dropout", 0.0),
        scale=options.get("scaling"),
        enable_gqa=True,
    )
    return seen.transpose(1, 2).contiguous(), None
