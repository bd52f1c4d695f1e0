"""The speed model: from recorded acceptance and the cost of a pass to tokens per second.

A cycle is `window` passes of the draft, one pass of the target over window + 1 tokens, and whatever
else the loop does. What it gains is read from a recorded pattern. A pass costs what was measured,
or what the hardware needs at the least: its bytes over the bandwidth, or its operations over the
arithmetic, whichever takes longer. With the latter the result is a ceiling that no loop can pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from judgelib.architectures import (
    Architecture,
    architecture,
    bytes_per_pass,
    flops_per_pass,
    weight_bytes,
)
from judgelib.hardware import Accelerator, accelerator
from judgelib.replay import Pattern

Cost = float | Callable[[int], float]
"""Seconds of a target pass: one number, or a function of the tokens that it reads."""


@dataclass(frozen=True)
class Chance:
    """Acceptance where every draft token stays with the same probability, whatever came before.

    The textbook's assumption (Leviathan et al. 2211.17192, equation 1). Real runs are longer and
    shorter than that, so a recorded pattern is to be preferred where there is one.

    Attributes:
        rate: alpha, in [0, 1].
        window: the longest one that this is asked about.
    """

    rate: float
    window: int

    def tokens_per_cycle(self, window: int) -> float:
        """(1 - alpha^(window + 1)) / (1 - alpha): kept tokens and the target's own."""
        return sum(self.rate**place for place in range(window + 1))


Acceptance = Pattern | Chance


def chance_of(accepted: float, window: int) -> Chance:
    """The chance that gives so many accepted tokens per cycle on average at this window.

    >>> round(chance_of(19.7, 25).rate, 3)
    0.98

    Raises:
        ValueError: a mean that no chance can give.
    """
    if not 0 <= accepted <= window:
        raise ValueError(f"expected 0 to {window} accepted tokens a cycle, got {accepted}")
    low, high = 0.0, 1.0
    for _ in range(60):  # halving: the mean grows with the rate
        middle = (low + high) / 2
        below = Chance(middle, window).tokens_per_cycle(window) - 1 < accepted
        low, high = (middle, high) if below else (low, middle)
    return Chance(high, window)


@dataclass(frozen=True)
class Prediction:
    """One window's speed.

    Attributes:
        window: tokens drafted a cycle; 0 is plain decoding, one target pass a token.
        tokens_per_cycle: gained for each target call.
        cycle_seconds: what a cycle takes.
    """

    window: int
    tokens_per_cycle: float
    cycle_seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_cycle / self.cycle_seconds


def predict(
    acceptance: Acceptance,
    window: int,
    draft_seconds: float,
    target_seconds: Cost,
    overhead: float = 0.0,
) -> Prediction:
    """Speed with this window.

    Args:
        acceptance: recorded (see `Pattern.pieces` for shorter windows than the recorded one), or a
            chance.
        draft_seconds: of a pass over one token.
        target_seconds: of a pass over window + 1 tokens, as a number or a function of them.
        overhead: seconds of a cycle besides its passes: rule, copies, Python.

    Raises:
        ValueError: a window beyond the recorded one, or a cost that is not positive.
    """
    target = target_seconds(window + 1) if callable(target_seconds) else target_seconds
    if draft_seconds <= 0 or target <= 0 or overhead < 0:
        raise ValueError(
            f"expected passes that take time and no negative overhead, got {draft_seconds}, "
            f"{target} and {overhead} seconds"
        )
    gained = acceptance.tokens_per_cycle(window)
    return Prediction(window, gained, window * draft_seconds + target + overhead)


def best_window(
    acceptance: Acceptance,
    draft_seconds: float,
    target_seconds: Cost,
    overhead: float = 0.0,
    windows: Iterable[int] | None = None,
) -> Prediction:
    """The fastest window, of all up to the recorded one or of `windows`; among equals the
    shortest."""
    tried = range(1, acceptance.window + 1) if windows is None else windows
    found = [predict(acceptance, w, draft_seconds, target_seconds, overhead) for w in tried]
    if not found:
        raise ValueError("expected at least one window to try, got none")
    return max(found, key=lambda one: (one.tokens_per_second, -one.window))


# --- costs from bytes --------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """Accelerators that read a model's weights side by side (tensor parallel).

    Attributes:
        accelerator: each of them.
        count: how many.
        all_reduce: seconds of one exchange of activations, of which every layer has two; 0 for a
            ceiling. (Tens of microseconds are usual within one server.)
    """

    accelerator: Accelerator
    count: int = 1
    all_reduce: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.count} x {self.accelerator.name}"

    @property
    def memory(self) -> float:
        """Bytes in all."""
        return self.count * self.accelerator.memory

    def alone(self) -> Machine:
        """One of them."""
        return replace(self, count=1)


def pass_floor(
    shape: Architecture, dtype: str, machine: Machine, context: int, rows: int = 1
) -> float:
    """Seconds that a pass over one text takes at the least: the larger of bytes over bandwidth and
    operations over arithmetic, and the exchanges of tensor parallelism.

    The cost is spread evenly over the accelerators. int4 weights are multiplied in bfloat16.
    """
    chip = machine.accelerator
    eight_bits = (dtype == "fp8" and chip.fp8) or dtype == "int8"
    speed = chip.flops_8bit if eight_bits else chip.flops
    moving = bytes_per_pass(shape, dtype, context, rows) / (chip.bandwidth * machine.count)
    counting = flops_per_pass(shape, context, rows) / (speed * machine.count)
    exchanges = 2 * shape.layers * machine.all_reduce if machine.count > 1 else 0.0
    return max(moving, counting) + exchanges


@dataclass(frozen=True)
class Setup:
    """A pair on a machine.

    Attributes:
        target, draft: their shapes.
        machine: that the target is spread over.
        target_dtype, draft_dtype: see `WEIGHT_BYTES`.
        context: tokens in the cache, on average over an answer.
        draft_spread: the draft is spread over all accelerators too; else each pass of it runs at
            one accelerator's bandwidth.
    """

    target: Architecture
    draft: Architecture
    machine: Machine
    target_dtype: str = "bfloat16"
    draft_dtype: str = "bfloat16"
    context: int = 512
    draft_spread: bool = True

    @property
    def fits(self) -> bool:
        """Whether the weights leave at least a tenth of the memory to cache and activations."""
        weights = weight_bytes(self.target, self.target_dtype)
        weights += weight_bytes(self.draft, self.draft_dtype)
        return weights <= 0.9 * self.machine.memory

    def draft_floor(self) -> float:
        """Seconds of a drafting pass at the least."""
        where = self.machine if self.draft_spread else self.machine.alone()
        return pass_floor(self.draft, self.draft_dtype, where, self.context)

    def target_floor(self, rows: int = 1) -> float:
        """Seconds of a target pass over `rows` tokens at the least."""
        return pass_floor(self.target, self.target_dtype, self.machine, self.context, rows)


def ceiling(setup: Setup, acceptance: Acceptance | None = None, window: int = 0) -> Prediction:
    """The speed if every pass ran at the hardware's limit and nothing else took time; without
    acceptance that of plain decoding."""
    if acceptance is None:
        return Prediction(0, 1.0, setup.target_floor())
    return predict(acceptance, window, setup.draft_floor(), setup.target_floor)


def best_ceiling(setup: Setup, acceptance: Acceptance) -> Prediction:
    """The fastest window at the hardware's limit."""
    return best_window(acceptance, setup.draft_floor(), setup.target_floor)


# --- what the papers report --------------------------------------------------------------------


@dataclass(frozen=True)
class Reported:
    """A speed that a paper reports; nothing here was measured by this package.

    Attributes:
        tokens_per_second: as reported, one text at a time.
        pair, accelerators: the models, and how many H100.
        accepted: draft tokens per cycle as reported for the judge, None where unknown.
        window: that it was reported for.
        source: where.
    """

    tokens_per_second: float
    target: str
    draft: str
    accelerators: int
    accepted: float | None
    window: int
    source: str


_PAPER = "Judge Decoding, arXiv 2501.19309"
REPORTED = (
    Reported(141.0, "Llama-3.1-70B", "Llama-3.1-8B", 2, None, 25, _PAPER),
    Reported(129.0, "Llama-3.1-405B", "Llama-3.1-8B", 8, 19.7, 25, _PAPER),
)  # fmt: skip
"""Judge Decoding's own speeds. The window of up to 25 is the judge's there. Precision and placement
of the draft are not known to us; 405B fits into 8 H100 in 8 bits only."""

ACCEPTED = 19.7
"""Accepted tokens per cycle of Llama-3.1 8B/405B with the judge, as reported; nothing comparable is
reported for 70B, for which the same is assumed."""


def reported_setups(entry: Reported, **options: Any) -> list[Setup]:
    """Setups in which a reported speed may have been reached: target weights in bfloat16 where its
    weights alone fit, and in FP8; the draft spread over all accelerators, and on one."""
    shapes = architecture(entry.target), architecture(entry.draft)
    machine = Machine(accelerator("H100 SXM"), entry.accelerators)
    dtypes = [d for d in ("bfloat16", "fp8") if weight_bytes(shapes[0], d) < machine.memory]
    return [
        Setup(*shapes, machine, target_dtype=dtype, draft_spread=spread, **options)
        for dtype in dtypes
        for spread in (True, False)
    ]


def distances(context: int = 512) -> pd.DataFrame:
    """How far the reported speeds are from the bandwidth limit.

    Columns: target, draft, machine, weights, draft_spread, fits, window, accepted, reported and
    ceiling (tokens per second), reached (reported over ceiling), plain (ceiling of plain decoding,
    tokens per second), source. Acceptance is the reported mean, with independent tokens.
    """
    rows = []
    for entry in REPORTED:
        mean = ACCEPTED if entry.accepted is None else entry.accepted
        for setup in reported_setups(entry, context=context):
            top = ceiling(setup, chance_of(mean, entry.window), entry.window).tokens_per_second
            rows.append({
                **_named(setup), "window": entry.window, "accepted": mean,
                "reported": entry.tokens_per_second, "ceiling": top,
                "reached": entry.tokens_per_second / top,
                "plain": ceiling(setup).tokens_per_second, "source": entry.source,
            })  # fmt: skip
    return pd.DataFrame(rows)


def llama_curves(
    acceptances: Mapping[str, Acceptance], *, context: int = 512, weights: str = "fp8"
) -> pd.DataFrame:
    """Ceilings of the reported pairs for every window, a curve for each acceptance.

    Args:
        acceptances: recorded patterns or chances by the name the figure shows.
        weights: of the targets; the drafts are in bfloat16, spread over all accelerators.

    Returns:
        Columns target, draft, machine, weights, draft_spread, fits, acceptance, window (0: plain
        decoding), tokens_per_cycle, tokens_per_second, best (True at each curve's best window).
    """
    frames = []
    for entry in REPORTED:
        machine = Machine(accelerator("H100 SXM"), entry.accelerators)
        shapes = architecture(entry.target), architecture(entry.draft)
        frames.append(curves(Setup(*shapes, machine, weights, context=context), acceptances))
    return pd.concat(frames, ignore_index=True)


def curves(setup: Setup, acceptances: Mapping[str, Acceptance]) -> pd.DataFrame:
    """Ceilings of one setup for every window; columns as `llama_curves`."""
    rows = []
    for name, acceptance in acceptances.items():
        best = best_ceiling(setup, acceptance).window
        windows = range(1, acceptance.window + 1)
        found = [ceiling(setup), *(ceiling(setup, acceptance, window) for window in windows)]
        rows += [
            {**_named(setup), "acceptance": name, **_numbers(one), "best": one.window == best}
            for one in found
        ]
    return pd.DataFrame(rows)


def _named(setup: Setup) -> dict[str, Any]:
    return {
        "target": setup.target.name, "draft": setup.draft.name, "machine": setup.machine.name,
        "weights": setup.target_dtype, "draft_spread": setup.draft_spread, "fits": setup.fits,
    }  # fmt: skip


def _numbers(one: Prediction) -> dict[str, Any]:
    return {
        "window": one.window,
        "tokens_per_cycle": one.tokens_per_cycle,
        "tokens_per_second": one.tokens_per_second,
    }
