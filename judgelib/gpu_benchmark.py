"""Speed on GPUs without trained weights: ``make bench-gpu PROFILE=llama-8b-70b GPUS=2``.

    python -m judgelib.gpu_benchmark --profile llama-8b-70b --weights fp8
    torchrun --standalone --nproc-per-node 2 -m judgelib.gpu_benchmark --profile llama-8b-70b
    python -m judgelib.gpu_benchmark --profile llama-8b-70b --shapes tiny      # anywhere

The profile's exact shapes are built with random weights on the device, and a recorded pattern says
how many tokens each cycle keeps, so that cycles commit as they would with trained weights. The loop
is the real one; the recorded rule's own work is done too, and its verdict ignored. Beside each
speed stands the ceiling: the same cycles, if every pass ran at the memory's bandwidth.

Several GPUs: one process each, with its part of every layer (tensor parallel, `random_weights`).
Everything but that was run on a CPU with tiny shapes only, two processes included; no GPU was at
hand, so CUDA and NCCL are untested.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

import pandas as pd
import torch
import torch.distributed as dist

from judgelib import timing
from judgelib.architectures import Architecture, architecture, weight_bytes
from judgelib.decoding import Generation, speculate
from judgelib.drafting import Drafter, ModelDrafter
from judgelib.hardware import Accelerator, measured_bandwidth, recognised
from judgelib.models import LanguageModel
from judgelib.profiles import load_profile
from judgelib.random_weights import ALONE, STORED, Team, random_model
from judgelib.replay import Pattern, Replay, load_pattern
from judgelib.results import save_table
from judgelib.rules import Rule
from judgelib.speed_model import Machine, Prediction, Setup, best_ceiling, ceiling


class Loop(Protocol):
    """A decoding loop, called as `speculate` is."""

    def __call__(
        self,
        target: LanguageModel,
        drafter: Drafter,
        rule: Rule,
        prompt_ids: Sequence[int],
        *,
        window: int,
        max_new_tokens: int,
        eos_ids: Sequence[int],
        on_tokens: Callable[[list[int]], None],
    ) -> Generation: ...


def _compiled(model: LanguageModel) -> LanguageModel:
    from judgelib.compiled import CompiledModel

    return CompiledModel(model)


class Engine(NamedTuple):
    """What is measured: a loop, and what it wants done to both models first."""

    prepare: Callable[[LanguageModel], LanguageModel] = lambda model: model
    loop: Loop = speculate


ENGINES: dict[str, Engine] = {"judgelib": Engine(), "judgelib-compiled": Engine(_compiled)}
PLAIN = "transformers-generate"
PATTERNS = ("sandbox-strict", "sandbox-floored_annotated")
SHAPES = ("full", "tiny")


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        profile: whose target and draft, by their hub ids.
        shapes: "full", or "tiny" to try the command anywhere.
        weights, draft_weights: see `random_model`; "auto" is the widest that fits.
        patterns: recorded acceptance, by name or path.
        windows: tokens drafted a cycle; (): each pattern's best by the speed model.
        engines: names in `ENGINES`; `PLAIN` is measured besides.
        context: tokens of each prompt.
        tokens: generated for each prompt.
        prompts: texts, each replaying another part of the pattern.
        repeats: rounds, of which the median counts, after one to warm up.
        seed: of weights and prompts.
    """

    profile: str
    shapes: str = "full"
    weights: str = "auto"
    draft_weights: str = "bfloat16"
    patterns: tuple[str, ...] = PATTERNS
    windows: tuple[int, ...] = ()
    engines: tuple[str, ...] = tuple(ENGINES)
    context: int = 512
    tokens: int = 256
    prompts: int = 4
    repeats: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.engines if name not in ENGINES]
        if unknown:
            raise ValueError(f"expected engines of {', '.join(ENGINES)}, got {', '.join(unknown)}")
        if self.shapes not in SHAPES:
            raise ValueError(f"expected shapes {' or '.join(SHAPES)}, got {self.shapes!r}")
        if self.weights not in (*STORED, "auto") or self.draft_weights not in STORED:
            raise ValueError(
                f"expected weights in {', '.join(STORED)} (the target's: auto), got "
                f"{self.weights!r} and {self.draft_weights!r}"
            )
        counts = (self.context, self.tokens - 2, self.prompts, self.repeats, *self.windows)
        if min(counts) < 1:
            raise ValueError(
                "expected at least 1 token of context, 3 to generate, 1 prompt, 1 repeat and "
                f"windows of 1 or more, got {asdict(self)}"
            )


@dataclass
class Row:
    """One engine on one pattern with one window: counts behind the first cycle, which reads the
    prompt, and the median round's seconds."""

    engine: str
    rule: str
    setting: float
    window: int
    tokens: int
    cycles: int
    seconds: float
    ceiling: Prediction
    passes: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def bound_seconds(self) -> float:
        """What the bare passes alone would have taken."""
        return self.cycles * self.passes["passes_ms"] / 1e3

    @property
    def reached(self) -> float:
        """Share of the ceiling; the ceiling counts the cycles of this very run."""
        return self.tokens_per_second / self.ceiling.tokens_per_second


class Benchmark:
    """Models, machine and the rows measured on them."""

    def __init__(self, options: Options, device: torch.device, team: Team = ALONE) -> None:
        self.options, self.device, self.team = options, device, team
        self.patterns = {name: load_pattern(name) for name in options.patterns}
        shapes = _shapes(options)
        chip = recognised(_device_name(device))
        # What one GPU gives is measured before the models take its memory.
        self.measured = measured_bandwidth(device, _probe_size(shapes[0], device))
        machine = Machine(chip or _unknown_chip(device, self.measured), team.size)
        self.setup = _setup(options, shapes, machine)
        self.on_sheet = chip is not None
        self.target = self._build(shapes[0], self.setup.target_dtype)
        self.draft = self._build(shapes[1], self.setup.draft_dtype)
        self.pairs = {
            name: (ENGINES[name].prepare(self.target), ENGINES[name].prepare(self.draft))
            for name in options.engines
        }
        generator = torch.Generator().manual_seed(options.seed)
        size = (options.prompts, options.context)
        highest = min(shapes[0].vocabulary, shapes[1].vocabulary)
        self.prompts: list[list[int]] = torch.randint(highest, size, generator=generator).tolist()

    def rows(self, progress: Callable[[str], None]) -> Iterator[Row]:
        """Plain decoding, then every pattern, window and engine."""
        yield self._plain()
        for name, pattern in self.patterns.items():
            best = best_ceiling(self.setup, pattern).window
            for window in self.options.windows or (best,):
                progress(f"{name}, window {window}")
                yield from self._speculative(pattern, window)

    def _build(self, shape: Architecture, weights: str) -> LanguageModel:
        return random_model(
            shape, self.device, weights=weights, team=self.team, seed=self.options.seed
        )

    def _plain(self) -> Row:
        def once(number: int) -> Stamps:
            return plain_stamps(self.target, self.prompts[number], self.options.tokens)

        tokens, cycles, seconds = self._median({PLAIN: once})[PLAIN]
        one, _ = timing.one_token_seconds([self.target, self.draft], self._behind, repeats=5)
        top = ceiling(self.setup)
        floor = 1e3 * top.cycle_seconds
        passes = {
            "target_pass_ms": 1e3 * one, "target_floor_ms": floor, "passes_ms": 1e3 * one,
        }  # fmt: skip
        return Row(PLAIN, "plain", 0.0, 0, tokens, cycles, seconds, top, passes)

    def _speculative(self, pattern: Pattern, window: int) -> Iterator[Row]:
        engines = {name: self._engine(name, pattern, window) for name in self.options.engines}
        for name, (tokens, cycles, seconds) in self._median(engines).items():
            passes = self._passes(name, window)
            floor = window * self.setup.draft_floor() + self.setup.target_floor(window + 1)
            rest = 1e3 * seconds / cycles - passes["passes_ms"]
            yield Row(
                name, str(pattern.source.get("rule", "recorded")),
                float(pattern.source.get("setting", 0.0)), window, tokens, cycles, seconds,
                Prediction(window, tokens / cycles, floor), {**passes, "rest_ms": rest},
            )  # fmt: skip

    def _engine(self, name: str, pattern: Pattern, window: int) -> Callable[[int], Stamps]:
        target, draft = self.pairs[name]
        drafter, work = ModelDrafter(draft), recorded_work(pattern, target)
        each = len(pattern.pieces(window)) // self.options.prompts
        rules = [
            Replay(pattern, window, start=number * each, work=work)
            for number in range(self.options.prompts)
        ]

        def once(number: int) -> Stamps:
            stamps = Stamps(self.device)
            ENGINES[name].loop(
                target, drafter, rules[number], self.prompts[number], window=window,
                max_new_tokens=self.options.tokens, eos_ids=(), on_tokens=stamps.add,
            )  # fmt: skip
            return stamps

        return once

    def _median(
        self, engines: Mapping[str, Callable[[int], Stamps]]
    ) -> dict[str, tuple[int, int, float]]:
        """Tokens, cycles and the median round's seconds; the engines take turns on every prompt."""
        rounds: dict[str, list[float]] = {name: [] for name in engines}
        counts = {}
        for _ in range(self.options.repeats + 1):
            done: dict[str, list[Stamps]] = {name: [] for name in engines}
            for number in range(self.options.prompts):
                for name, engine in engines.items():
                    done[name].append(engine(number))
            for name, texts in done.items():
                rounds[name].append(sum(text.seconds for text in texts))
                counts[name] = sum(t.tokens for t in texts), sum(t.cycles for t in texts)
        return {name: (*counts[name], statistics.median(rounds[name][1:])) for name in engines}

    def _passes(self, name: str, window: int) -> dict[str, float]:
        """An engine's bare passes beside what the hardware needs at the least, in milliseconds."""
        draft, target = timing.pass_seconds(*self.pairs[name], window, self._behind, 5)
        return {
            "draft_pass_ms": 1e3 * draft,
            "draft_floor_ms": 1e3 * self.setup.draft_floor(),
            "target_pass_ms": 1e3 * target,
            "target_floor_ms": 1e3 * self.setup.target_floor(window + 1),
            "passes_ms": 1e3 * (window * draft + target),
        }

    @property
    def _behind(self) -> int:
        return self.options.context + self.options.tokens // 2


class Stamps:
    """When tokens came: decoding without the first cycle, in which the prompt is read."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._counts: list[int] = []
        self._times: list[float] = []

    def add(self, tokens: Sequence[int]) -> None:
        """Note that a cycle has committed these tokens."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._counts.append(len(tokens))
        self._times.append(time.perf_counter())

    # A streamer of transformers' `generate`: it is given the prompt first, then every token.

    def put(self, value: torch.Tensor) -> None:
        self.add([0] * value.numel())

    def end(self) -> None:
        pass

    @property
    def tokens(self) -> int:
        return sum(self._counts[1:])

    @property
    def cycles(self) -> int:
        return len(self._counts) - 1

    @property
    def seconds(self) -> float:
        return self._times[-1] - self._times[0]


def plain_stamps(target: LanguageModel, prompt: Sequence[int], tokens: int) -> Stamps:
    """transformers' own greedy `generate`, timed token by token."""
    stamps = Stamps(target.device)
    ids = torch.tensor([list(prompt)], device=target.device)
    target.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
        pad_token_id=0, streamer=_WithoutPrompt(stamps),
    )  # fmt: skip
    return stamps


class _WithoutPrompt:
    """Leaves out the first value that a streamer gets."""

    def __init__(self, stamps: Stamps) -> None:
        self._stamps, self._begun = stamps, False

    def put(self, value: torch.Tensor) -> None:
        if self._begun:
            self._stamps.put(value)
        self._begun = True

    def end(self) -> None:
        self._stamps.end()


def recorded_work(pattern: Pattern, target: LanguageModel) -> Rule | None:
    """The rule that the pattern was recorded with, for the time that it takes; a judge gets a
    random head. None for a pattern of unknown origin."""
    from judgelib.head import JudgeHead
    from judgelib.head_config import HeadConfig, ModelRecord
    from judgelib.rulebook import FLOORED, JUDGE, build

    name = pattern.source.get("rule")
    if name is None:
        return None
    generator = torch.Generator().manual_seed(0)
    head = JudgeHead(HeadConfig(ModelRecord.of(target)), generator=generator)
    bare = str(name).removeprefix(FLOORED).removeprefix(JUDGE)
    return build(str(name), float(pattern.source.get("setting", 0.0)), {bare: head})


# --- the machine -------------------------------------------------------------------------------


def _shapes(options: Options) -> tuple[Architecture, Architecture]:
    models = load_profile(options.profile).models
    target, draft = architecture(models["target"]), architecture(models["draft"])
    return (target, draft) if options.shapes == "full" else (target.tiny(), draft.tiny())


def _setup(options: Options, shapes: tuple[Architecture, Architecture], machine: Machine) -> Setup:
    fp8 = machine.accelerator.fp8
    tried = (
        ("bfloat16", "fp8" if fp8 else "int8") if options.weights == "auto" else (options.weights,)
    )
    setups = [
        Setup(*shapes, machine, target_dtype=weights, draft_dtype=options.draft_weights,
              context=options.context + options.tokens // 2)
        for weights in tried
    ]  # fmt: skip
    fitting = next((setup for setup in setups if setup.fits), None)
    if fitting is None:
        need = weight_bytes(shapes[0], tried[-1]) + weight_bytes(shapes[1], options.draft_weights)
        raise ValueError(
            f"{shapes[0].name} in {tried[-1]} and {shapes[1].name} in {options.draft_weights} take "
            f"{need / 1e9:.0f} GB, but {machine.name} has {machine.memory / 1e9:.0f} GB, of which "
            "a tenth must stay free; use more GPUs, 8-bit weights, or another profile"
        )
    return fitting


def _unknown_chip(device: torch.device, bandwidth: float) -> Accelerator:
    """A device without a data sheet: its bandwidth as measured, its arithmetic taken for free."""
    free = float("inf")
    if device.type != "cuda":
        return Accelerator(_device_name(device), bandwidth, free, free, free, fp8=True)
    memory = torch.cuda.get_device_properties(device).total_memory
    fp8 = torch.cuda.get_device_capability(device) >= (8, 9)
    return Accelerator(_device_name(device), bandwidth, float(memory), free, free, fp8=fp8)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _probe_size(shape: Architecture, device: torch.device) -> int:
    """Bytes to measure bandwidth with: on a CPU as many as the target has, for its caches."""
    return 2**31 if device.type == "cuda" else max(2**20, int(weight_bytes(shape, "bfloat16")))


def default_device(shapes: str) -> torch.device:
    """This process's GPU, or the CPU for tiny shapes; ValueError for full shapes without a GPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if shapes == "full":
        raise ValueError(
            "no GPU is visible to torch; full shapes need one. --shapes tiny tries the same "
            "command on this machine's CPU"
        )
    return torch.device("cpu")


@contextmanager
def team_of(device: torch.device) -> Iterator[Team]:
    """The processes that `torchrun` has started; without it this one alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Team(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


# --- the report --------------------------------------------------------------------------------


def report(bench: Benchmark, rows: Sequence[Row]) -> str:
    """The numbers for a reader, each speed beside its ceiling."""
    setup, chip = bench.setup, bench.setup.machine.accelerator
    source = "by its data sheet" if bench.on_sheet else "as measured"
    lines = [
        f"{setup.target.name} ({setup.target_dtype}) and {setup.draft.name} "
        f"({setup.draft_dtype}), random weights, on {setup.machine.name}",
        f"bandwidth of one: {chip.bandwidth / 1e9:,.0f} GB/s {source}, "
        f"{bench.measured / 1e9:,.0f} GB/s measured",
    ]
    for row in rows:
        top = row.ceiling.tokens_per_second
        lines.append(
            f"{row.engine:<22} {row.rule} {row.setting:g}, window {row.window:>2}: "
            f"{row.tokens_per_second:8.1f} tok/s; ceiling {top:8.1f}, reached {row.reached:.1%}; "
            f"{row.tokens / row.cycles:.2f} tokens a cycle"
        )
        spent = ", ".join(f"{name} {value:.3g}" for name, value in row.passes.items())
        lines.append(f"{'':<22} {spent}")
    return "\n".join(lines)


def table(bench: Benchmark, rows: Sequence[Row]) -> pd.DataFrame:
    """The rows as the table `speed`; its one round is the median one."""
    setup = bench.setup
    hardware = f"{setup.machine.name}, {setup.target_dtype}, random weights, replayed acceptance"
    return pd.DataFrame([
        {"engine": row.engine, "rule": row.rule, "setting": row.setting,
         "draft_length": row.window, "batch": 1, "round": 0, "hardware": hardware,
         "prompts": bench.options.prompts, "tokens": row.tokens, "cycles": row.cycles,
         "seconds": row.seconds, "bound_seconds": row.bound_seconds}
        for row in rows
    ])  # fmt: skip


def facts(bench: Benchmark, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything in plain JSON: conditions, and every row with ceiling and passes."""
    setup = bench.setup
    return {
        **asdict(bench.options),
        "target": setup.target.name, "draft": setup.draft.name,
        "target_weights": setup.target_dtype, "draft_weights": setup.draft_dtype,
        "machine": setup.machine.name, "gpus": bench.team.size,
        "bandwidth": setup.machine.accelerator.bandwidth, "bandwidth_on_sheet": bench.on_sheet,
        "bandwidth_measured": bench.measured, "torch": torch.__version__,
        "rows": [
            {"engine": row.engine, "rule": row.rule, "setting": row.setting, "window": row.window,
             "tokens_per_second": round(row.tokens_per_second, 2),
             "ceiling": round(row.ceiling.tokens_per_second, 2), "reached": round(row.reached, 4),
             "tokens_per_cycle": round(row.tokens / row.cycles, 3),
             **{name: round(value, 4) for name, value in row.passes.items()}}
            for row in rows
        ],
    }  # fmt: skip


def folder(options: Options) -> str:
    """The results' folder: apart from what trained weights give, and tiny shapes apart from full
    ones."""
    return f"{options.profile}-random" + ("-tiny" if options.shapes == "tiny" else "")


def _lists(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in _lists(text))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m judgelib.gpu_benchmark",
        description="Measure decoding speed with random weights of exact shapes.",
    )
    usual = Options("llama-8b-70b")
    parser.add_argument("--profile", default=usual.profile, help="whose models' shapes")
    parser.add_argument("--shapes", default=usual.shapes, choices=SHAPES)
    parser.add_argument("--weights", default=usual.weights, help="auto, bfloat16, fp8 or int8")
    parser.add_argument("--draft-weights", default=usual.draft_weights)
    parser.add_argument("--patterns", type=_lists, default=usual.patterns, help="a,b")
    parser.add_argument("--windows", type=_numbers, default=(), help="8,16 (default: the best)")
    parser.add_argument("--engines", type=_lists, default=usual.engines, help=",".join(ENGINES))
    for name in ("context", "tokens", "prompts", "repeats", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(usual, name))
    parser.add_argument("--no-save", action="store_true", help="print only, write no table")
    return parser


def measure(options: Options, *, save: bool = True) -> dict[str, Any]:
    """Build the models, measure, print and save; returns what the last line says.

    Raises:
        ValueError: no GPU for full shapes, too little memory, an unknown profile or pattern.
    """
    started = time.time()
    device = default_device(options.shapes)
    with team_of(device) as team:
        first = team.rank == 0
        say: Callable[[str], None] = print if first else lambda line: None
        bench = Benchmark(options, device, team)
        rows = list(bench.rows(lambda line: say(f"measuring {line}")))
        found = facts(bench, rows)
        say(report(bench, rows))
        if first and save:
            save_table(
                table(bench, rows), "speed", profile=folder(options), parameters=found,
                seeds=[options.seed], started=started,
            )  # fmt: skip
        say(json.dumps(found))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    chosen = vars(parser.parse_args(arguments))
    save = not chosen.pop("no_save")
    try:
        measure(Options(**chosen), save=save)
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
