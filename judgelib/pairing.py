"""A target and a draft before their weights are loaded: do they fit together, and into memory?

Loading 140 GB in order to learn that the draft has another vocabulary is an afternoon lost, so
this looks at configurations and tokenizers only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from judgelib.hardware import GIB
from judgelib.models import check_pair, check_source


@dataclass(frozen=True)
class Outline:
    """What a model's files say of it.

    Attributes:
        name: hub id or path.
        architecture: the class name.
        layers, hidden_size, context: as in its configuration.
        parameters: all weights; a tied matrix counts once.
        weight_bytes: as they will be loaded; None: quantised and not on this disk.
    """

    name: str
    tokenizer: Any
    architecture: str
    layers: int
    hidden_size: int
    context: int
    parameters: int
    weight_bytes: float | None

    def __str__(self) -> str:
        size = "" if self.weight_bytes is None else f", {self.weight_bytes / GIB:.2f} GiB"
        shape = f"{self.layers} layers x {self.hidden_size}"
        return f"{self.name} ({self.architecture}, {shape}, {self.parameters:,} weights{size})"


@dataclass(frozen=True)
class Fit:
    """A pair that fits together; notes: what does not forbid it, but should be known."""

    target: Outline
    draft: Outline
    free_bytes: float | None
    notes: tuple[str, ...]


def check(target: str, draft: str, *, dtype: str | None = None, device: str = "cpu") -> Fit:
    """Look at both models without loading them.

    Args:
        dtype: in which they will be loaded; None or "auto": as stored.
        device: where.

    Raises:
        ValueError: no model there, another vocabulary or other special tokens, a target without a
            chat template, a device that is not there, or more weights than free memory.
    """
    free = _free(device)
    big, small = (_outline(name, dtype) for name in (target, draft))
    check_pair(big, small)
    if big.tokenizer.chat_template is None:
        raise ValueError(
            f"{target} has no chat template, so that questions cannot be put to it; choose its "
            "instruction-tuned version, or set chat_template in its tokenizer_config.json"
        )
    _check_room([big, small], free, device)
    return Fit(big, small, free, tuple(_notes(big, small)))


def _outline(name: str, dtype: str | None) -> Outline:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    check_source(name)
    config = AutoConfig.from_pretrained(name)
    text = config.get_text_config(decoder=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parameters = sum(weight.numel() for weight in model.parameters())
    return Outline(
        name=name,
        tokenizer=AutoTokenizer.from_pretrained(name),
        architecture=type(model).__name__,
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        context=text.max_position_embeddings,
        parameters=parameters,
        weight_bytes=_weight_bytes(name, config, parameters, dtype),
    )


def _weight_bytes(name: str, config: Any, parameters: int, dtype: str | None) -> float | None:
    if getattr(config, "quantization_config", None) is not None:
        files = [path.stat().st_size for path in Path(name).glob("*.safetensors")]
        return sum(files) if files else None
    kind = (
        getattr(config, "dtype", None) if dtype in (None, "auto") else getattr(torch, dtype, None)
    )
    if isinstance(kind, str):
        kind = getattr(torch, kind, None)
    if dtype not in (None, "auto") and not isinstance(kind, torch.dtype):
        raise ValueError(f"expected a dtype such as float32 or bfloat16, got {dtype!r}")
    return parameters * (kind or torch.float32).itemsize


def _free(device: str) -> float | None:
    """Free bytes on a device; None where the system does not say."""
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"expected a device such as cpu or cuda:0, got {device!r}") from error
    if place.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {device} was asked for, but there is no GPU; use cpu")
        return float(torch.cuda.mem_get_info(place)[0])
    return _free_memory() if place.type == "cpu" else None


def _free_memory() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable:"))
        return float(found.split()[1]) * 1024
    except (OSError, StopIteration):
        pass
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return None


def _check_room(both: list[Outline], free: float | None, device: str) -> None:
    needed = sum(outline.weight_bytes or 0 for outline in both)
    if free is not None and needed > free:
        raise ValueError(
            f"the weights of target and draft take {needed / GIB:.1f} GiB, but {device} has "
            f"{free / GIB:.1f} GiB free: take a smaller dtype, another device or a smaller model"
        )


def _notes(target: Outline, draft: Outline) -> list[str]:
    notes = []
    if draft.tokenizer.chat_template != target.tokenizer.chat_template:
        notes.append("the draft has another chat template; it reads the target's")
    if draft.parameters * 4 > target.parameters:
        times = target.parameters / draft.parameters
        notes.append(
            f"the target is only {times:.1f} times as large as the draft, so that drafting itself "
            "takes a good share of the time"
        )
    if None in (target.weight_bytes, draft.weight_bytes):
        notes.append("quantised weights: whether they fit into memory is not known beforehand")
    return notes
