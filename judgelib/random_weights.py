"""Models of known shapes with random weights, made on the device: for speed, which does not ask
what the weights say.

Nothing is downloaded and nothing passes through the host's memory. Weights may be in 8 bits, and
several processes may share a model, each with its part of every layer (tensor parallel). No GPU was
at hand: what is special to CUDA here is untested. On a CPU the tests run the same code with tiny
shapes, two processes included.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from judgelib.architectures import Architecture
from judgelib.models import LanguageModel

SPREAD = 0.02  # standard deviation of the weights, as transformers initialises them
FP8_MAX = 448.0  # the largest float8_e4m3fn
STORED = ("bfloat16", "float32", "fp8", "int8")
ROW_PARALLEL = ("o_proj", "down_proj")  # their outputs are sums over the processes


class Team(NamedTuple):
    """The processes that share every model."""

    rank: int = 0
    size: int = 1


ALONE = Team()


def random_model(
    shape: Architecture,
    device: str | torch.device,
    *,
    weights: str = "bfloat16",
    team: Team = ALONE,
    seed: int = 0,
) -> LanguageModel:
    """A model of this shape with random weights on `device`.

    It has no tokenizer and ends no text. In a team every process gets its part of it; all must make
    the same passes, and all read the same logits.

    Args:
        weights: "bfloat16", "float32", or of the layers' matrices "fp8" (multiplied in FP8: GPUs
            from Ada and Hopper on, and CPUs) or "int8" (only stored so).
        seed: the same seed gives the same weights on the same kind of device.

    Raises:
        ValueError: unknown weights, or a shape that cannot be divided among the team.
    """
    if weights not in STORED:
        raise ValueError(f"expected weights in {', '.join(STORED)}, got {weights!r}")
    network = _outline(shape, torch.float32 if weights == "float32" else torch.bfloat16, team)
    for layer in network.model.layers:
        _exchange_matrices(layer, weights, team)
    network.to_empty(device=device)
    network.tie_weights()
    _fill(network, torch.device(device), seed, team)
    return LanguageModel(network, SimpleNamespace(eos_token_id=None), shape.name)


def _outline(shape: Architecture, dtype: torch.dtype, team: Team) -> Any:
    """The model without memory, its layers as one process of the team has them."""
    from transformers import AutoModelForCausalLM

    part = shape.shard(team.size)
    # A divided output head is no longer the embedding matrix, which every process needs whole.
    part = part if team.size == 1 else replace(part, tied=False)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(part.config(), dtype=dtype)
        if team.size > 1:
            rows = shape.vocabulary // team.size
            network.lm_head = GatheredHead(shape.hidden, rows, dtype, team)
    return network


def _exchange_matrices(layer: nn.Module, weights: str, team: Team) -> None:
    """Replace a layer's matrices by those in 8 bits, and let the team add up where it has to."""
    for parent in list(layer.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.Linear):
                continue
            made: nn.Module = child
            if weights in ("fp8", "int8"):
                made = (Fp8Linear if weights == "fp8" else Int8Linear)(child)
            if team.size > 1 and name in ROW_PARALLEL:
                made = SummedLinear(made)
            setattr(parent, name, made)


def _fill(network: Any, device: torch.device, seed: int, team: Team) -> None:
    """Random matrices, norms of 1, biases of 0, and the rotary embedding's constants."""
    shared = torch.Generator(device).manual_seed(seed)
    own = torch.Generator(device).manual_seed(seed + 1 + team.rank)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:  # every process looks up the same embeddings
                chosen = shared if "embed" in name else own
                parameter.normal_(0.0, SPREAD, generator=chosen)
            else:
                parameter.fill_(1.0 if "norm" in name else 0.0)
        for module in network.modules():
            if isinstance(module, (Fp8Linear, Int8Linear)):
                module.fill(own)
    rotary = network.model.rotary_emb
    network.model.rotary_emb = type(rotary)(config=network.config).to(device)


class Fp8Linear(nn.Module):
    """A linear layer multiplied in FP8 (e4m3), its inputs scaled to fit in every pass.

    Args:
        like: gives shape, bias and device.
    """

    weight: Tensor  # (outputs, inputs) float8
    scale: Tensor  # () float32

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        empty = torch.empty_like(like.weight, dtype=torch.float8_e4m3fn)
        self.register_buffer("weight", empty)
        self.register_buffer("scale", torch.empty((), dtype=torch.float32, device=empty.device))
        self.bias = like.bias

    def fill(self, generator: torch.Generator) -> None:
        """Random weights of the usual spread."""
        wide = torch.empty_like(self.weight, dtype=torch.bfloat16)
        self.weight.copy_(wide.normal_(generator=generator))
        self.scale.fill_(SPREAD)

    def forward(self, states: Tensor) -> Tensor:
        rows = states.reshape(-1, states.shape[-1])
        scale = (rows.abs().amax().float() / FP8_MAX).clamp(min=1e-12)
        small = (rows / scale).to(torch.float8_e4m3fn)
        made = torch._scaled_mm(
            small, self.weight.t(), scale_a=scale, scale_b=self.scale, out_dtype=states.dtype
        )
        made = made if self.bias is None else made + self.bias
        return made.reshape(*states.shape[:-1], -1)


class Int8Linear(nn.Module):
    """A linear layer whose weights are stored as int8 with one scale an output.

    Args:
        like: gives shape, bias and device.
    """

    weight: Tensor  # (outputs, inputs) int8
    scale: Tensor  # (outputs,)

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        empty = torch.empty_like(like.weight, dtype=torch.int8)
        self.register_buffer("weight", empty)
        self.register_buffer("scale", torch.empty_like(like.weight[:, 0]))
        self.bias = like.bias

    def fill(self, generator: torch.Generator) -> None:
        """Random weights of the usual spread."""
        self.weight.random_(-127, 128, generator=generator)
        self.scale.fill_(SPREAD / 73)  # the standard deviation of -127 to 127

    def forward(self, states: Tensor) -> Tensor:
        rows = states.reshape(-1, states.shape[-1])
        made = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        made = made if self.bias is None else made + self.bias
        return made.reshape(*states.shape[:-1], -1)


class SummedLinear(nn.Module):
    """A linear layer of which every process has some inputs: the outputs are added up."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor) -> Tensor:
        made: Tensor = self.inner(states)
        dist.all_reduce(made)
        return made


class GatheredHead(nn.Module):
    """An output head of which every process has some tokens: all get all logits."""

    def __init__(self, inputs: int, rows: int, dtype: torch.dtype, team: Team) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, inputs, dtype=dtype), requires_grad=False)
        self.size = team.size

    def forward(self, states: Tensor) -> Tensor:
        made = nn.functional.linear(states, self.weight)
        parts = [torch.empty_like(made) for _ in range(self.size)]
        dist.all_gather(parts, made)
        return torch.cat(parts, -1)
