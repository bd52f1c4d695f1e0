"""Speed, measured: ``python -m judgelib.timing``.

Everything is measured in rounds: in each round every engine answers the same prompts in turn, and
the bare passes of each loop are timed. The first round warms up (and compiles). What is compared
are ratios within a round; so they hold on a busy machine, where absolute numbers do not.

Beside a loop's speed stands its bound: what it would reach if nothing took time but the passes that
its cycles made, the reading of the prompts among them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from judgelib.engines import (
    ASSISTED,
    COMPILED,
    EAGER,
    GENERATE,
    PLAIN,
    Engine,
    Kit,
    Loop,
    Prompts,
    Spec,
)
from judgelib.evaluation import Pair
from judgelib.models import LanguageModel

ROUND = ("engine", "rule", "setting", "draft_length", "batch")
"""What names an engine in the table `speed`."""


def prompts(model: LanguageModel, tasks: Sequence[str], split: str, count: int) -> list[list[int]]:
    """Questions of several tasks in turn, in the model's chat template."""
    from judgelib.tasks import having, load_task
    from judgelib.tasks.base import prompt_ids

    chosen = having(tasks, split)
    each = -(-count // len(chosen))
    asked = [load_task(name).questions(split, each) for name in chosen]
    turns = [question for turn in zip(*asked, strict=True) for question in turn]
    return [prompt_ids(model.tokenizer, question) for question in turns[:count]]


# --- throughput --------------------------------------------------------------------------------


def rounds(
    engines: Sequence[Engine],
    prompts: Prompts,
    *,
    repeats: int = 5,
    progress: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Let all engines answer the prompts in turn, `repeats` times after a round that warms up.

    Returns:
        One row an engine and round: `ROUND`'s columns, round, hardware, prompts, tokens, cycles,
        seconds, and bound_seconds (of judgelib's loops, see `bound_seconds`).
    """
    rows = []
    for number in range(repeats + 1):
        start = time.perf_counter()
        found = [{"round": number, **_timed(engine, prompts)} for engine in engines]
        rows += found if number else []
        spent = time.perf_counter() - start
        kind = "" if number else ", warm-up"
        progress(f"round {number} of {repeats}{kind}: {len(engines)} engines, {spent:.0f} s")
    return pd.DataFrame(rows).assign(hardware=hardware())


def _timed(engine: Engine, prompts: Prompts) -> dict[str, Any]:
    made = engine.answer(prompts)
    bound = bound_seconds(engine, prompts) if isinstance(engine, Loop) else float("nan")
    names = {name: getattr(engine.spec, name) for name in ROUND}
    return {**names, "prompts": len(prompts), **made._asdict(), "bound_seconds": bound}


def speeds(table: pd.DataFrame) -> pd.DataFrame:
    """One row an engine: medians over the rounds of tokens per second, with the lowest and highest
    round, of tokens per cycle (NaN where unknown), and of the share of the bound (NaN where there
    is none)."""
    each = table.assign(
        tokens_per_second=table["tokens"] / table["seconds"],
        tokens_per_cycle=table["tokens"] / table["cycles"].replace(0, np.nan),
        of_bound=table["bound_seconds"] / table["seconds"],
    )
    grouped = each.groupby(list(ROUND), sort=False)
    rate = grouped["tokens_per_second"]
    found = grouped[["tokens_per_second", "tokens_per_cycle", "of_bound"]].median()
    return found.assign(low=rate.min(), high=rate.max()).reset_index()


def hardware() -> str:
    """What the numbers were measured on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


# --- the bound ---------------------------------------------------------------------------------


class Passes(NamedTuple):
    """Seconds of bare passes: over one token by the draft, over a window by the target, and the
    first of each text, which reads the prompt."""

    draft: float
    target: float
    draft_prompt: float
    target_prompt: float


def bound_seconds(loop: Loop, prompts: Prompts) -> float:
    """What the passes of the loop's last texts take by themselves; NaN for several side by side,
    whose passes are of many shapes, and without a draft."""
    if loop.spec.batch > 1 or loop.spec.rule == PLAIN:
        return float("nan")
    texts = loop.texts
    cycles = sum(len(text.cycles) for text in texts)
    drafted = sum(text.drafted for text in texts)
    prompt = round(statistics.mean(map(len, prompts)))
    behind = prompt + round(statistics.mean(len(text.ids) for text in texts) / 2)
    cost = passes(loop, prompt, behind)
    first = len(texts) * (cost.draft_prompt + cost.target_prompt)
    later = (drafted - len(texts)) * cost.draft + (cycles - len(texts)) * cost.target
    return first + later


def passes(loop: Loop, prompt: int, behind: int, repeats: int = 5) -> Passes:
    """Bare passes of a loop's two models, with `behind` tokens in the cache or a prompt to read."""
    window = loop.spec.draft_length
    draft, target = pass_seconds(loop.target, loop.draft, window, behind, repeats)
    first = [_bare_pass(loop.draft, prompt, 0), _bare_pass(loop.target, prompt + window, 0)]
    for once in first:
        once()
    firsts = [statistics.median(once() for _ in range(3)) for once in first]
    return Passes(draft, target, *firsts)


def pass_seconds(
    target: LanguageModel, draft: LanguageModel, window: int, behind: int, repeats: int = 10
) -> tuple[float, float]:
    """Median seconds of a bare draft pass (1 token) and a bare target pass (window + 1 tokens)
    behind `behind` tokens.

    They are run in a cycle's order, `window` draft passes and one of the target: a pass is slower
    when the other model's weights have just pushed its own out of the processor's caches, and no
    loop can avoid that.
    """
    drafting, verifying = _bare_pass(draft, 1, behind), _bare_pass(target, window + 1, behind)
    times: list[tuple[float, float]] = []
    for _ in range(repeats + 3):
        times.append((statistics.mean(drafting() for _ in range(window)), verifying()))
    draft_times, target_times = zip(*times[3:], strict=True)
    return statistics.median(draft_times), statistics.median(target_times)


def one_token_seconds(
    models: Sequence[LanguageModel], behind: int, repeats: int = 30
) -> list[float]:
    """Median seconds of each model's bare pass over one token behind `behind` others, in turn."""
    bare = [_bare_pass(model, 1, behind) for model in models]
    times = [[once() for once in bare] for _ in range(repeats + 3)][3:]
    return [statistics.median(own) for own in zip(*times, strict=True)]


def _bare_pass(model: LanguageModel, width: int, behind: int) -> Callable[[], float]:
    width = min(width, model.context)
    behind = min(behind, model.context - width)  # some models have no positions beyond
    cache = model.new_cache(1, behind + width)
    ids = torch.zeros(1, behind + width, dtype=torch.long, device=model.device)
    if behind:
        model.read(ids[:, :behind], cache, rows=1)

    def once() -> float:
        cache.lengths = [behind]
        start = time.perf_counter()
        # The draft needs the last row only, and so does whoever reads a prompt for it.
        model.read(ids[:, behind:], cache, rows=width if behind else 1)
        synchronize(model.device)
        return time.perf_counter() - start

    return once


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize()


# --- phases ------------------------------------------------------------------------------------

PHASES = ("draft", "verify", "judge", "rest")


def phases(loop: Loop, prompts: Prompts) -> dict[str, float]:
    """Share of the time that each phase takes, in a run of its own: the draft's passes, the
    target's, the rule's verdict, and the rest (bookkeeping, copies to the host).

    The clock waits for the device at every boundary, so throughput is measured elsewhere.
    """
    spent = dict.fromkeys(PHASES, 0.0)
    start = time.perf_counter()
    with _clocked(loop, spent):
        loop.answer(prompts)
    whole = time.perf_counter() - start
    spent["rest"] = whole - sum(spent.values())
    return {name: seconds / whole for name, seconds in spent.items()}


@contextmanager
def _clocked(loop: Loop, spent: dict[str, float]) -> Iterator[None]:
    """Put a clock around the three phases of a loop."""
    own = loop.drafter, loop.target, loop.rule
    clock: Any = _With

    def timed(phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*args: Any, **kwargs: Any) -> Any:
            synchronize(loop.target.device)
            start = time.perf_counter()
            result = call(*args, **kwargs)
            synchronize(loop.target.device)
            spent[phase] += time.perf_counter() - start
            return result

        return clocked

    loop.drafter = clock(own[0], propose=timed("draft", own[0].propose))
    loop.target = clock(own[1], read=timed("verify", own[1].read))
    loop.rule = clock(own[2], votes=timed("judge", own[2].votes))
    try:
        yield
    finally:
        loop.drafter, loop.target, loop.rule = own


class _With:
    """An object with some of its methods replaced; else it is the object itself."""

    def __init__(self, original: Any, **methods: Callable[..., Any]) -> None:
        self._original = original
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


# --- the command -------------------------------------------------------------------------------


def usual(window: int, batch: int) -> list[Spec]:
    """transformers against the loop, at one window; then several texts side by side."""
    return [
        Spec(GENERATE, PLAIN),
        Spec(ASSISTED, draft_length=window),
        Spec(EAGER, PLAIN),
        Spec(EAGER, draft_length=window),
        Spec(COMPILED, draft_length=window),
        Spec(GENERATE, PLAIN, batch=batch),
        Spec(EAGER, draft_length=window, batch=batch),
        Spec(COMPILED, draft_length=window, batch=batch),
    ]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """`speeds`, with the median over the rounds of how many times as fast as the table's first
    engine each was."""
    rate = table["tokens"] / table["seconds"]
    times = rate / rate.groupby(table["round"]).transform("first")
    by_engine = times.groupby([table[name] for name in ROUND], sort=False)
    return speeds(table).assign(times_first=by_engine.median().to_numpy())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m judgelib.timing", description="Measure decoding speed."
    )
    parser.add_argument("--target", default="data/sandbox/target")
    parser.add_argument("--draft", default="data/sandbox/draft")
    parser.add_argument(
        "--tasks", default="sandbox-math,sandbox-code,sandbox-facts", help="whose prompts"
    )
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens for each prompt")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--count", type=int, default=9, help="how many prompts to use")
    parser.add_argument("--threads", type=int, help="torch's threads (default: torch's own choice)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--eager", action="store_true", help="leave the compiled loop out")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the usual engines; the last line is JSON."""
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    pair = Pair(options.target, options.draft, options.dtype, options.device)
    kit = Kit(pair, {}, tokens=options.tokens)
    chosen = prompts(kit.models[0], options.tasks.split(","), "validation", options.count)
    specs = [
        s for s in usual(options.window, options.batch) if s.engine != COMPILED or not options.eager
    ]
    table = rounds(
        [kit.build(spec) for spec in specs], chosen, repeats=options.repeats,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    found = summary(table)
    print(found.round(3).to_string(index=False))
    about = {"cores": os.cpu_count(), "torch": torch.__version__, "hardware": hardware()}
    print(
        json.dumps(
            {**vars(options), **about, "engines": json.loads(found.to_json(orient="records"))}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
