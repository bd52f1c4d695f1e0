"""The exact shapes of known models, without their weights and without the hub.

From a shape follow the number of parameters, the bytes that a pass must read, and the operations
that it must do: all that a speed model needs, and enough to build the model with random weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

WEIGHT_BYTES: dict[str, float] = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    # One scale an output channel: below 0.1% of a large model, and left out.
    "fp8": 1,
    "int8": 1,
    # Groups of 128 weights share one scale of 2 bytes.
    "int4": 0.5 + 2 / 128,
}
"""Bytes a weight takes in the layers' matrices."""

QUANTISED = ("fp8", "int8", "int4")
"""In these only the layers' matrices are stored; embeddings, output head, norms and the cache stay
in bfloat16, as served checkpoints have them."""


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer of the Llama, Qwen2 or Qwen3 kind.

    Attributes:
        name: the hub's, without owner and "-Instruct".
        layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary: as in its config.json.
        tied: whether the output head is the embedding matrix.
        qkv_bias: whether queries, keys and values have a bias (Qwen2).
        qk_norm: whether queries and keys are normed head by head (Qwen3).
        context: the longest text in tokens.
        rope: transformers' `rope_parameters`, as pairs.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    context: int
    rope: tuple[tuple[str, Any], ...]
    qkv_bias: bool = False
    qk_norm: bool = False

    @property
    def layer_matrices(self) -> int:
        """Weights in the matrices of all layers."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * wide + 2 * narrow)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def embedding(self) -> int:
        """Weights of the embedding matrix; the output head has as many."""
        return self.vocabulary * self.hidden

    @property
    def vectors(self) -> int:
        """Norms and biases."""
        bias = (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        norms = 2 * self.head_dim if self.qk_norm else 0
        return self.layers * (2 * self.hidden + bias + norms) + self.hidden

    @property
    def parameters(self) -> int:
        """All weights; a tied matrix counts once."""
        return self.layer_matrices + self.vectors + self.embedding * (1 if self.tied else 2)

    def config(self) -> Any:
        """A transformers configuration of this shape."""
        from transformers import LlamaConfig, Qwen2Config, Qwen3Config

        kind: Any = LlamaConfig
        if self.qkv_bias or self.qk_norm:
            kind = Qwen2Config if self.qkv_bias else Qwen3Config
        return kind(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.context,
            rope_parameters=dict(self.rope),
            rms_norm_eps=1e-5 if kind is LlamaConfig else 1e-6,
            tie_word_embeddings=self.tied,
            # Random weights end no text.
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="sdpa",
        )

    def tiny(self) -> Architecture:
        """The same kind of model small enough for any machine; its depth still tells a large model
        from a small one."""
        layers = max(1, self.layers // 16)
        return replace(
            self, name=f"{self.name}-tiny", layers=layers, hidden=64, intermediate=128, heads=4,
            kv_heads=2, head_dim=16, vocabulary=256, context=16384,
        )  # fmt: skip

    def shard(self, parts: int) -> Architecture:
        """What one of `parts` tensor-parallel processes holds of the layers.

        Heads and the inner width are divided; `hidden`, norms and embeddings stay whole, and the
        output head is up to who builds the model.

        Raises:
            ValueError: something cannot be divided evenly.
        """
        whole = {"heads": self.heads, "key-value heads": self.kv_heads,
                 "inner width": self.intermediate, "vocabulary": self.vocabulary}  # fmt: skip
        odd = [f"{name} {number}" for name, number in whole.items() if number % parts]
        if parts < 1 or odd:
            raise ValueError(
                f"{self.name} cannot be divided among {parts} processes: {', '.join(odd)}; use a "
                f"divisor of {self.kv_heads}"
            )
        return replace(
            self, heads=self.heads // parts, kv_heads=self.kv_heads // parts,
            intermediate=self.intermediate // parts,
        )  # fmt: skip


def _llama3_rope(factor: float) -> tuple[tuple[str, Any], ...]:
    return (
        ("rope_type", "llama3"), ("rope_theta", 500000.0), ("factor", factor),
        ("low_freq_factor", 1.0), ("high_freq_factor", 4.0),
        ("original_max_position_embeddings", 8192),
    )  # fmt: skip


_QWEN_ROPE = (("rope_type", "default"), ("rope_theta", 1000000.0))

ARCHITECTURES: dict[str, Architecture] = {
    made.name: made
    for made in (
        Architecture("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128256, True, 131072,
                     _llama3_rope(32.0)),
        Architecture("Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128, 128256, False, 131072,
                     _llama3_rope(8.0)),
        Architecture("Llama-3.1-70B", 80, 8192, 28672, 64, 8, 128, 128256, False, 131072,
                     _llama3_rope(8.0)),
        Architecture("Llama-3.1-405B", 126, 16384, 53248, 128, 8, 128, 128256, False, 131072,
                     _llama3_rope(8.0)),
        Architecture("Qwen2.5-0.5B", 24, 896, 4864, 14, 2, 64, 151936, True, 32768,
                     _QWEN_ROPE, qkv_bias=True),
        Architecture("Qwen2.5-7B", 28, 3584, 18944, 28, 4, 128, 152064, False, 32768,
                     _QWEN_ROPE, qkv_bias=True),
        Architecture("Qwen3-0.6B", 28, 1024, 3072, 16, 8, 128, 151936, True, 40960,
                     _QWEN_ROPE, qk_norm=True),
        Architecture("Qwen3-8B", 36, 4096, 12288, 32, 8, 128, 151936, False, 40960,
                     _QWEN_ROPE, qk_norm=True),
    )
}  # fmt: skip


def architecture(model: str) -> Architecture:
    """The shape of a model by its hub id or bare name; "-Instruct" changes no shape.

    >>> architecture("meta-llama/Llama-3.1-8B-Instruct").layers
    32

    Raises:
        ValueError: a model whose shape is not known here.
    """
    bare = model.rsplit("/", 1)[-1].removesuffix("-Instruct")
    if bare not in ARCHITECTURES:
        raise ValueError(f"expected a model of {', '.join(ARCHITECTURES)}, got {model!r}")
    return ARCHITECTURES[bare]


def weight_bytes(shape: Architecture, dtype: str) -> float:
    """Bytes of all weights in memory."""
    rest = shape.parameters - shape.layer_matrices
    return shape.layer_matrices * _matrix_bytes(dtype) + rest * _other_bytes(dtype)


def cache_bytes(shape: Architecture, dtype: str, tokens: int) -> float:
    """Bytes of the keys and values of so many tokens of one text."""
    return 2.0 * shape.layers * shape.kv_heads * shape.head_dim * tokens * _other_bytes(dtype)


def bytes_per_pass(shape: Architecture, dtype: str, context: int, rows: int = 1) -> float:
    """Bytes that one pass over one text must move.

    Every matrix is read once, the output head among them. Of the embeddings only the rows looked up
    are read (a tied matrix is read as the output head all the same). Keys and values of the context
    and of the new tokens are read, those of the new ones written too. Activations are left out:
    they stay in the processor's caches.

    Args:
        dtype: of the weights; see `WEIGHT_BYTES`.
        context: tokens already in the cache.
        rows: tokens that the pass reads: 1 of a drafting pass, window + 1 of a verifying one.

    Raises:
        ValueError: an unknown dtype, or no row.
    """
    if rows < 1 or context < 0:
        raise ValueError(f"expected at least 1 row and no negative context, got {rows}, {context}")
    matrices = shape.layer_matrices * _matrix_bytes(dtype)
    rest = (shape.embedding + shape.vectors + rows * shape.hidden) * _other_bytes(dtype)
    return matrices + rest + cache_bytes(shape, dtype, context + 2 * rows)


def flops_per_pass(shape: Architecture, context: int, rows: int = 1) -> float:
    """Multiplications and additions of one pass over one text: two a weight and row, and attention
    over context and new tokens."""
    weights = shape.layer_matrices + shape.embedding
    attention = 2 * shape.layers * shape.heads * shape.head_dim * (context + rows)
    return 2.0 * rows * (weights + attention)


def _matrix_bytes(dtype: str) -> float:
    if dtype not in WEIGHT_BYTES:
        raise ValueError(f"expected weights in {', '.join(WEIGHT_BYTES)}, got {dtype!r}")
    return WEIGHT_BYTES[dtype]


def _other_bytes(dtype: str) -> float:
    return WEIGHT_BYTES["bfloat16"] if dtype in QUANTISED else _matrix_bytes(dtype)
