"""Accelerators: what their makers promise, and what the memory at hand really gives.

Decoding one text is bound by memory: every pass reads all weights once. So bandwidth decides, and
arithmetic matters for wide windows only.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GIB = 2**30


@dataclass(frozen=True)
class Accelerator:
    """One accelerator, as its data sheet has it.

    Attributes:
        name: how tables call it.
        bandwidth: of its memory, bytes a second.
        memory: bytes.
        flops: dense operations a second in bfloat16, on the matrix units.
        flops_8bit: dense operations a second in FP8 or int8.
        fp8: whether its matrix units multiply FP8.
    """

    name: str
    bandwidth: float
    memory: float
    flops: float
    flops_8bit: float
    fp8: bool


# Vendors quote flops "with sparsity"; the dense figures here are half of those.
_SHEETS = (
    # NVIDIA H100 Tensor Core GPU data sheet: SXM 3.35 TB/s, 80 GB, BF16 1,979 and FP8 3,958 TFLOPS
    # with sparsity; NVL 3.9 TB/s, 94 GB, 1,671 and 3,341. PCIe (earlier edition): 2 TB/s, 1,513 and
    # 3,026.
    Accelerator("H100 SXM", 3.35e12, 80 * GIB, 989.5e12, 1979e12, fp8=True),
    Accelerator("H100 NVL", 3.9e12, 94 * GIB, 835.5e12, 1670.5e12, fp8=True),
    Accelerator("H100 PCIe", 2.0e12, 80 * GIB, 756.5e12, 1513e12, fp8=True),
    # NVIDIA H200 data sheet (SXM): 4.8 TB/s, 141 GB (decimal), flops as H100 SXM.
    Accelerator("H200 SXM", 4.8e12, 141e9, 989.5e12, 1979e12, fp8=True),
    # NVIDIA A100 data sheet: 80GB SXM 2,039 GB/s, 80GB PCIe 1,935 GB/s, 40GB 1,555 GB/s; BF16 312
    # TFLOPS and INT8 624 TOPS dense.
    Accelerator("A100 80GB SXM", 2.039e12, 80 * GIB, 312e12, 624e12, fp8=False),
    Accelerator("A100 80GB PCIe", 1.935e12, 80 * GIB, 312e12, 624e12, fp8=False),
    Accelerator("A100 40GB", 1.555e12, 40 * GIB, 312e12, 624e12, fp8=False),
    # NVIDIA L40S data sheet: 864 GB/s, 48 GB, BF16 733 and FP8 1,466 TFLOPS with sparsity.
    Accelerator("L40S", 0.864e12, 48e9, 366.5e12, 733e12, fp8=True),
)
ACCELERATORS: dict[str, Accelerator] = {sheet.name: sheet for sheet in _SHEETS}

_SIGNS = (  # parts of the name that CUDA reports, the more special ones first
    (("H100", "NVL"), "H100 NVL"),
    (("H100", "PCIE"), "H100 PCIe"),
    (("H100", "HBM3"), "H100 SXM"),
    (("H200", "NVL"), None),  # less arithmetic than the SXM: no sheet here
    (("H200",), "H200 SXM"),
    (("A100", "SXM", "80GB"), "A100 80GB SXM"),
    (("A100", "PCIE", "80GB"), "A100 80GB PCIe"),
    (("A100", "80GB", "PCIE"), "A100 80GB PCIe"),
    (("A100", "40GB"), "A100 40GB"),
    (("L40S",), "L40S"),
)


def accelerator(name: str) -> Accelerator:
    """The accelerator of that name; ValueError if there is no sheet for it."""
    if name not in ACCELERATORS:
        raise ValueError(f"expected an accelerator of {', '.join(ACCELERATORS)}, got {name!r}")
    return ACCELERATORS[name]


def recognised(reported: str) -> Accelerator | None:
    """The sheet that belongs to a name as `torch.cuda.get_device_name` reports it, or None.

    >>> recognised("NVIDIA H100 80GB HBM3").name
    'H100 SXM'
    """
    words = reported.upper()
    for signs, name in _SIGNS:
        if all(sign in words for sign in signs):
            return ACCELERATORS[name] if name else None
    return None


def measured_bandwidth(
    device: str | torch.device = "cpu", size: int = 256 * 2**20, repeats: int = 5
) -> float:
    """Bytes a second at which this machine reads weights: products of matrices and a vector, as
    decoding does them.

    Args:
        device: of torch.
        size: bytes that are read over and over. What fits into the processor's caches is read
            faster than from memory, so give the size of the models at hand; a GPU's need 1 GiB or
            more.
        repeats: of which the median is taken, after one to warm up.

    Raises:
        ValueError: a size below 64 KiB.
    """
    import torch

    if size < 2**16:
        raise ValueError(f"expected a size of at least {2**16} bytes, got {size}")
    on = torch.device(device)
    dtype = torch.float32 if on.type == "cpu" else torch.bfloat16
    matrices = _matrices(size, dtype, on)
    vector = torch.ones(matrices.shape[2], dtype=dtype, device=on)
    times = [_reading_seconds(matrices, vector) for _ in range(repeats + 1)][1:]
    return matrices.numel() * matrices.element_size() / statistics.median(times)


def _matrices(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(count, side, side) of about `size` bytes in all, each at most 64 MiB."""
    import torch

    item = dtype.itemsize
    side = min(4096, int((size / item) ** 0.5)) // 32 * 32
    count = max(1, size // (side * side * item))
    return torch.ones(count, side, side, dtype=dtype, device=device)


def _reading_seconds(matrices: torch.Tensor, vector: torch.Tensor) -> float:
    import torch

    def wait() -> None:
        if matrices.device.type == "cuda":
            torch.cuda.synchronize(matrices.device)

    wait()
    start = time.perf_counter()
    for matrix in matrices:
        torch.mv(matrix, vector)
    wait()
    return time.perf_counter() - start
