"""Speed, measured: ``python -m judgelib.timing --target PATH --draft PATH``.

Everything is measured in one process, and in rounds: in each round every engine answers the same
prompts in turn, one batch is decoded, and the bare passes are timed. The first round warms up; of
the others the medians are reported, for ratios the median of the rounds' own ratios. So ratios hold
on a busy machine, where absolute numbers do not.

Beside the loop's speed stands its bound: tokens per cycle / (window x draft pass + target pass),
what it would reach if a cycle cost nothing but its passes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from judgelib.decoding import Generation, speculate, speculate_batch
from judgelib.drafting import ModelDrafter
from judgelib.models import LanguageModel, load_pair
from judgelib.rules import Match

Prompts = Sequence[Sequence[int]]
Engine = Callable[[Sequence[int]], int]  # answers one prompt, returns how many tokens it made
EARLY, LATE = 40, 400  # the tokens between which the cost of a cycle must stay flat


def measure(
    target: LanguageModel,
    draft: LanguageModel,
    prompts: Prompts,
    *,
    window: int = 8,
    tokens: int = 128,
    repeats: int = 5,
    batch: int = 32,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """Speeds in tokens per second, bare passes in milliseconds, and their ratios, all from one
    run."""
    bench = _Bench(target, draft, prompts, window, tokens, batch)
    rounds = []
    for number in range(repeats + 1):
        rounds.append(bench.round())
        kind = "" if number else " (warm-up)"
        progress(f"round {number} of {repeats}{kind}: {_brief(rounds[-1])}")
    return {key: statistics.median(one[key] for one in rounds[1:]) for key in rounds[0]}


class _Bench:
    """The engines, and one round over them."""

    def __init__(
        self,
        target: LanguageModel,
        draft: LanguageModel,
        prompts: Prompts,
        window: int,
        tokens: int,
        batch: int,
    ) -> None:
        self.target, self.draft, self.prompts = target, draft, prompts
        self.window, self.tokens = window, tokens
        self.many = [prompts[number % len(prompts)] for number in range(batch)]
        self.drafter = ModelDrafter(draft)
        self.done: list[Generation] = []
        self.engines: dict[str, Engine] = {
            "transformers-generate": transformers_engine(target, tokens),
            "transformers-assisted": transformers_engine(target, tokens, draft, window),
            "judgelib": self._speculate,
        }

    def round(self) -> dict[str, float]:
        self.done.clear()
        speeds, passes = self._speeds()
        per_cycle = sum(len(g.ids) for g in self.done) / sum(len(g.cycles) for g in self.done)
        cycle_ms = self.window * passes["draft_pass_ms"] + passes["target_pass_ms"]
        bound = 1000 * per_cycle / cycle_ms
        ratios = {
            "over_generate": speeds["judgelib"] / speeds["transformers-generate"],
            "over_assisted": speeds["judgelib"] / speeds["transformers-assisted"],
            "over_bound": speeds["judgelib"] / bound,
            "batch_over_one": speeds["judgelib-batch"] / speeds["judgelib"],
            **self._late_over_early(),
        }
        return {**speeds, **passes, "tokens_per_cycle": per_cycle, "bound": bound, **ratios}

    def _speeds(self) -> tuple[dict[str, float], dict[str, float]]:
        spent = dict.fromkeys(self.engines, 0.0)
        made = dict.fromkeys(self.engines, 0)
        passes = []
        for prompt in self.prompts:
            for name, engine in self.engines.items():
                start = time.perf_counter()
                made[name] += engine(prompt)
                spent[name] += time.perf_counter() - start
            passes.append(self._passes(len(prompt) + len(self.done[-1].ids) // 2))
        speeds = {name: made[name] / spent[name] for name in spent}
        speeds["judgelib-batch"] = self._batch_speed()
        return speeds, {key: statistics.mean(one[key] for one in passes) for key in passes[0]}

    def _speculate(self, prompt: Sequence[int]) -> int:
        self.done.append(
            speculate(
                self.target,
                self.drafter,
                Match(),
                prompt,
                window=self.window,
                max_new_tokens=self.tokens,
            )
        )
        return len(self.done[-1].ids)

    def _batch_speed(self) -> float:
        start = time.perf_counter()
        made = speculate_batch(
            self.target,
            self.drafter,
            Match(),
            self.many,
            window=self.window,
            max_new_tokens=self.tokens,
        )
        return sum(len(generation.ids) for generation in made) / (time.perf_counter() - start)

    def _passes(self, behind: int) -> dict[str, float]:
        draft_pass, target_pass = pass_seconds(self.target, self.draft, self.window, behind)
        return {"draft_pass_ms": 1000 * draft_pass, "target_pass_ms": 1000 * target_pass}

    def _late_over_early(self) -> dict[str, float]:
        """Time of a cycle near the 400th new token over that of one near the 40th.

        The text is never ended; models with a short context are measured as late as it allows.
        """
        prompt, window = min(self.prompts, key=len), self.window
        context = min(self.target.context, self.draft.context)
        late = min(LATE, context - len(prompt) - 3 * window)
        stamps = self._stamps(prompt, late + 2 * window + 2)
        ratio = _cycle_seconds(stamps, late, window) / _cycle_seconds(stamps, EARLY, window)
        return {"late_over_early": ratio, "late_token": float(late)}

    def _stamps(self, prompt: Sequence[int], tokens: int) -> list[tuple[int, float]]:
        """(tokens so far, time) after every cycle."""
        stamps: list[tuple[int, float]] = [(0, time.perf_counter())]
        speculate(
            self.target,
            self.drafter,
            Match(),
            prompt,
            window=self.window,
            max_new_tokens=tokens,
            eos_ids=(),
            on_tokens=lambda new: stamps.append((stamps[-1][0] + len(new), time.perf_counter())),
        )
        return stamps


def _cycle_seconds(stamps: list[tuple[int, float]], token: int, window: int) -> float:
    """Median time of the cycles that ended within two windows of `token`."""
    pairs = zip(stamps, stamps[1:], strict=False)
    return statistics.median(
        end - start for (_, start), (count, end) in pairs if abs(count - token) <= 2 * window
    )


def transformers_engine(
    target: LanguageModel, tokens: int, draft: LanguageModel | None = None, window: int = 8
) -> Engine:
    """transformers' own greedy `generate`; with a draft, its assisted generation over windows of
    fixed length."""
    options: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    if draft is not None:
        options["assistant_model"] = draft.model
        _fix_window(draft.model.generation_config, window)

    def engine(prompt: Sequence[int]) -> int:
        ids = torch.tensor([list(prompt)], device=target.device)
        output = target.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return int(output.shape[1]) - len(prompt)

    return engine


def _fix_window(config: Any, window: int) -> None:
    # By default transformers ends a draft when its confidence falls below 0.4, and adapts its
    # length.
    config.num_assistant_tokens = window
    config.num_assistant_tokens_schedule = "constant"
    config.assistant_confidence_threshold = 0.0


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
    passes = [_bare_pass(model, 1, behind) for model in models]
    rounds = [[once() for once in passes] for _ in range(repeats + 3)][3:]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def _bare_pass(model: LanguageModel, width: int, behind: int) -> Callable[[], float]:
    cache = model.new_cache(1, behind + width)
    model.read(torch.zeros(1, behind, dtype=torch.long, device=model.device), cache, rows=1)
    ids = torch.zeros(1, width, dtype=torch.long, device=model.device)

    def once() -> float:
        cache.lengths = [behind]
        start = time.perf_counter()
        model.read(ids, cache, rows=width)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return once


def sandbox_prompts(model: LanguageModel, count: int) -> list[list[int]]:
    """Validation questions of the sandbox's domains in turn, in the model's chat template."""
    from judgelib.tasks import load_task
    from judgelib.tasks.base import prompt_ids

    tasks = [load_task(f"sandbox-{domain}") for domain in ("math", "code", "facts")]
    each = [task.questions("validation", -(-count // len(tasks))) for task in tasks]
    turns = [question for turn in zip(*each, strict=True) for question in turn]
    return [prompt_ids(model.tokenizer, question) for question in turns[:count]]


def report(result: dict[str, float]) -> str:
    """The numbers for a reader, each ratio beside what it compares."""
    lines = [
        "transformers generate  {transformers-generate:8.1f} tok/s",
        "transformers assisted  {transformers-assisted:8.1f} tok/s",
        "judgelib, one row      {judgelib:8.1f} tok/s  {over_assisted:.2f}x assisted, "
        "{over_generate:.2f}x generate",
        "  bound                {bound:8.1f} tok/s  reached {over_bound:.1%}: "
        "{tokens_per_cycle:.2f} tokens a cycle, "
        "draft pass {draft_pass_ms:.2f} ms, target pass {target_pass_ms:.2f} ms",
        "judgelib, batch        {judgelib-batch:8.1f} tok/s  {batch_over_one:.2f}x one row",
        "cost with length       {late_over_early:8.2f}        "
        "a cycle near token {late_token:.0f} over one near 40",
    ]
    return "\n".join(lines).format_map(result)


def _brief(result: dict[str, float]) -> str:
    line = "{judgelib:.0f} tok/s, {over_assisted:.2f}x assisted, {over_bound:.0%} of the bound"
    return line.format_map(result)


def _conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "target": str(arguments.target),
        "draft": str(arguments.draft),
        "window": arguments.window,
        "tokens": arguments.tokens,
        "batch": arguments.batch,
        "repeats": arguments.repeats,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m judgelib.timing", description="Measure decoding speed."
    )
    parser.add_argument("--target", type=Path, default=Path("data/sandbox/target"))
    parser.add_argument("--draft", type=Path, default=Path("data/sandbox/draft"))
    parser.add_argument(
        "--prompts", type=Path, help="a JSON file: a list of prompts, each a list of token ids"
    )
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens for each prompt")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--count", type=int, default=8, help="how many prompts to use")
    parser.add_argument("--threads", type=int, help="torch's threads (default: torch's own choice)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    return parser


def main(argv: Sequence[str] | None = None, prompts: Iterable[Sequence[int]] | None = None) -> int:
    """Run the measurement; `prompts` (token ids) stand in for `--prompts`."""
    arguments = _parser().parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    target, draft = load_pair(
        arguments.target, arguments.draft, dtype=arguments.dtype, device=arguments.device
    )
    if prompts is None and arguments.prompts:
        prompts = json.loads(arguments.prompts.read_text())
    chosen = list(prompts or sandbox_prompts(target, arguments.count))[: arguments.count]
    result = measure(
        target,
        draft,
        chosen,
        window=arguments.window,
        tokens=arguments.tokens,
        repeats=arguments.repeats,
        batch=arguments.batch,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(report(result))
    print(
        json.dumps(
            {**_conditions(arguments), **{key: round(value, 4) for key, value in result.items()}}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
