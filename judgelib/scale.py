"""What a run on thousands of GPUs is limited by, on paper: a seeded simulation.

    python -m judgelib.scale          # or: make scale; fills the tables of docs/scale.md

Mining is simulated, the study with the longest tail. What a question takes (target calls, trials,
bytes in the journal) is drawn from the questions that were mined here; how long a call lasts and
how often a GPU fails are assumptions, named in `Plan`. A worker is one GPU with the pair on it, as
in `judgelib.integrations.ray`.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from judgelib.evaluation import COLUMNS
from judgelib.hardware import accelerator
from judgelib.integrations.ray import MESSAGES
from judgelib.labelling import SPLITS, load_split
from judgelib.labels import ACCEPTABLE, IGNORED, Labelled
from judgelib.mapping import share
from judgelib.mining import SHARD
from judgelib.quality import load_answers
from judgelib.report import filled, markdown
from judgelib.results import load_table, project_root, write_files

EVIDENCE = "sandbox-full"
PAGE = Path("docs") / "scale.md"

# --- what a question takes -----------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """N mined questions.

    Attributes:
        passes, records: (N,) target calls, and lines of the journal.
        size: (N,) bytes of these lines.
    """

    passes: np.ndarray
    records: np.ndarray
    size: np.ndarray

    @classmethod
    @cache
    def of(cls, profile: str) -> Costs:
        """Those of a profile's table `mining_costs` and of its mined labels."""
        table = load_table("mining_costs", profile).set_index("question")
        rows = [row for split in SPLITS for row in load_split(profile, "mined", split)]
        lines = [journal_lines(row) for row in rows]
        return cls(
            table["passes"].loc[[row.question_id for row in rows]].to_numpy(),
            np.array([len(found) for found in lines]),
            np.array([sum(len(line) + 1 for line in found) for found in lines]),
        )

    def draw(self, count: int, rng: np.random.Generator) -> Costs:
        """`count` questions, drawn with replacement."""
        chosen = rng.integers(len(self.passes), size=count)
        return Costs(self.passes[chosen], self.records[chosen], self.size[chosen])


def journal_lines(row: Labelled) -> list[str]:
    """The journal's lines of a mined answer.

    A trial that was adopted wrote the rest of the answer: as much as there is of it in the end.
    """
    name, response = row.question_id, row.response_ids
    trials = [
        {
            "question": name, "place": place, "token": row.judged_ids[place],
            "important": label != ACCEPTABLE,
            "continuation": response[place + 1 :] if label == ACCEPTABLE else [], "passes": 1,
        }
        for place, label in enumerate(row.labels)
        if label != IGNORED
    ]  # fmt: skip
    lines = [
        {"question": name, "response": response, "passes": 1},
        *trials,
        {"question": name, "done": True},
    ]
    return [json.dumps(line) for line in lines]


# --- a run ---------------------------------------------------------------------------------------


def pass_seconds(parameters: float = 8.03e9, gpu: str = "H100 SXM", reached: float = 0.5) -> float:
    """A target call that reads bfloat16 weights once, at a share of the GPU's bandwidth."""
    return 2 * parameters / (accelerator(gpu).bandwidth * reached)


@dataclass(frozen=True)
class Plan:
    """A run, and what is assumed about the machines.

    Attributes:
        workers: GPUs, each with a pair of models.
        largest: questions handed to a worker at a time, at most.
        slots: of them side by side; a call reads all, and takes as long as for one.
        failures: of one GPU, per hour. The default is 419 in 54 days on 16,384 GPUs, as reported
            for the training of Llama 3 (arXiv 2407.21783, section 3.3.4).
        restart_seconds: until a worker is replaced and has loaded the models.
        record_seconds: for the driver to write a line (`JsonLines.write`).
        message_seconds: for the driver to take a message of a worker, with some of these lines.
    """

    workers: int
    questions: int
    largest: int = SHARD
    slots: int = 32
    pass_seconds: float = pass_seconds()
    failures: float = 419 / (54 * 24 * 16_384)
    restart_seconds: float = 180.0
    record_seconds: float = 20e-6
    message_seconds: float = 1e-3

    @property
    def shard(self) -> int:
        """Questions handed to a worker at a time."""
        return share(self.questions, self.workers, self.largest)

    @property
    def pause(self) -> float:
        """Seconds between two messages of a worker."""
        return self.workers / MESSAGES


@dataclass(frozen=True)
class Outcome:
    """What became of a plan.

    Attributes:
        seconds: until the last worker has ended and the driver has written everything.
        longest: seconds that the longest question alone takes.
        empty: share of slots without a question while their worker works.
        waiting: share of the workers' time behind their last shard: for stragglers or the driver.
        deaths: workers lost; redone, restarting: shares of the workers' time.
        driver: seconds that the driver takes messages and writes.
        size: bytes of the journal.
    """

    seconds: float
    longest: float
    empty: float
    waiting: float
    deaths: int
    redone: float
    restarting: float
    driver: float
    size: int


def simulate(plan: Plan, costs: Costs, *, seed: int = 0) -> Outcome:
    """Hand out shards to whichever worker is free; a dead one's rest goes to the end of the queue.

    Raises:
        ValueError: a plan without workers, questions, or room in a shard.
    """
    if min(plan.workers, plan.questions, plan.largest, plan.slots) < 1:
        raise ValueError(f"expected at least one worker, question, shard and slot, got {plan}")
    rng = np.random.default_rng(seed)
    drawn = costs.draw(plan.questions, rng)
    lengths = shard_passes(drawn.passes, plan.shard, plan.slots) * plan.pass_seconds
    ends, deaths, redone = _hand_out(plan, lengths, rng)
    writing = drawn.records.sum() * plan.record_seconds
    driver = float(writing + _messages(plan, lengths) * plan.message_seconds)
    seconds = max(float(ends.max()), driver)
    whole = plan.workers * seconds
    return Outcome(
        seconds=seconds,
        longest=float(drawn.passes.max() * plan.pass_seconds),
        empty=1 - float(drawn.passes.sum() * plan.pass_seconds / (lengths.sum() * plan.slots)),
        waiting=float((seconds - ends).sum() / whole),
        deaths=deaths,
        redone=redone / whole,
        restarting=deaths * plan.restart_seconds / whole,
        driver=driver,
        size=int(drawn.size.sum()),
    )


def shard_passes(passes: np.ndarray, shard: int, slots: int) -> np.ndarray:
    """Target calls of each shard: a slot that is free takes the shard's next question.

    >>> shard_passes(np.array([3, 1, 1, 5]), 4, 2)
    array([7])
    """
    count = -(-len(passes) // shard)
    padded = np.zeros(count * shard, dtype=passes.dtype)
    padded[: len(passes)] = passes
    busy = np.zeros((count, min(slots, shard)), dtype=passes.dtype)
    rows = np.arange(count)
    for question in padded.reshape(count, shard).T:
        busy[rows, busy.argmin(1)] += question
    longest: np.ndarray = busy.max(1)
    return longest


def _messages(plan: Plan, lengths: np.ndarray) -> float:
    """Of all shards: the first result comes at once, the last with the end."""
    return float((2 + lengths // plan.pause).sum())


def _hand_out(
    plan: Plan, lengths: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, int, float]:
    """When each worker has ended, how many died, and the seconds of work that were lost.

    A death costs what the worker had not said: half a pause, and half a call.
    """
    free = [(0.0, worker) for worker in range(plan.workers)]
    ends = np.zeros(plan.workers)
    queue, deaths, again = deque(lengths.tolist()), 0, (plan.pause + plan.pass_seconds) / 2
    while queue:
        length = queue.popleft()
        start, worker = heapq.heappop(free)
        lives = rng.exponential(3600 / plan.failures) if plan.failures else np.inf
        if lives < length:
            deaths += 1
            queue.append(length - lives + min(lives, again))
            ends[worker] = start + lives
            heapq.heappush(free, (start + lives + plan.restart_seconds, worker))
        else:
            ends[worker] = start + length
            heapq.heappush(free, (start + length, worker))
    return ends, deaths, deaths * again


# --- the page's tables ---------------------------------------------------------------------------


FULL = Plan(workers=10_000, questions=1_000_000)
"""10,000 GPUs and 100 questions for each."""


def workers(profile: str) -> str:
    """The same million questions on more and more GPUs."""
    plans = [replace(FULL, workers=count) for count in (10, 100, 1_000, 10_000)]
    return _table("GPUs", [f"{plan.workers:,}" for plan in plans], plans, profile)


def shards(profile: str) -> str:
    """100 GPUs with shards of several sizes."""
    plans = [replace(FULL, workers=100, largest=size) for size in (16, 64, 256, 1024, 4096)]
    return _table("questions a shard", [f"{plan.shard:,}" for plan in plans], plans, profile)


def drivers(profile: str) -> str:
    """10,000 GPUs under several drivers, each with its part of GPUs and questions."""
    counts = (1, 4, 16, 64)
    plans = [replace(FULL, workers=10_000 // n, questions=1_000_000 // n) for n in counts]
    return _table("drivers", list(map(str, counts)), plans, profile, counts)


def failures(profile: str) -> str:
    """100 GPUs that fail as reported, and far more often."""
    costs = Costs.of(profile)
    base = replace(FULL, workers=100)
    rates = {"none": 0.0, "as reported": base.failures, "one an hour and GPU": 1.0}
    rows = []
    for name, rate in rates.items():
        found = simulate(replace(base, failures=rate), costs)
        rows.append(
            {
                "failures": name,
                "minutes": f"{found.seconds / 60:,.1f}",
                "workers lost": f"{found.deaths:,}",
                "work done twice": f"{found.redone:.4%}",
                "restarting": f"{found.restarting:.2%}",
            }
        )
    return markdown(pd.DataFrame(rows))


def _table(
    name: str, labels: list[str], plans: Sequence[Plan], profile: str, times: Sequence[int] = ()
) -> str:
    """A line a plan; `times`: how many runs of that kind there are side by side."""
    rows = []
    for label, plan, runs in zip(labels, plans, times or [1] * len(plans), strict=True):
        found = simulate(plan, Costs.of(profile))
        hours = runs * plan.workers * found.seconds / 3600
        rows.append(
            {
                name: label,
                **({} if "shard" in name else {"questions a shard": f"{plan.shard:,}"}),
                "minutes": f"{found.seconds / 60:,.1f}",
                "GPU-hours": f"{hours:,.0f}",
                "empty slots": f"{found.empty:.0%}",
                "GPUs waiting": f"{found.waiting:.0%}",
                "driver busy": f"{found.driver / found.seconds:.0%}",
            }
        )
    return markdown(pd.DataFrame(rows))


def assumptions(profile: str) -> str:
    """What the numbers rest on."""
    costs = Costs.of(profile)
    low, middle, high = np.percentile(costs.passes, [50, 95, 100])
    return "\n".join(
        [
            f"- {len(costs.passes):,} questions mined under profile `{profile}`: median "
            f"{low:,.0f} target calls, 95% below {middle:,.0f}, the longest {high:,.0f}.",
            f"- {FULL.pass_seconds * 1e3:.1f} ms a target call: the weights of an 8B model in "
            "bfloat16, read at half of an H100's bandwidth; up to "
            f"{FULL.slots} texts read together take no longer.",
            f"- One failure in {1 / FULL.failures:,.0f} GPU-hours (reported for Llama 3, arXiv "
            f"2407.21783), and {FULL.restart_seconds:.0f} s until a worker is replaced.",
            f"- The driver takes a message in {FULL.message_seconds * 1e3:.0f} ms and writes a "
            f"line in {FULL.record_seconds * 1e6:.0f} µs. Workers send it {MESSAGES} messages a "
            "second in all, whatever their number, with the lines made since the last one.",
        ]
    )


def storage(profile: str) -> str:
    """Bytes a question leaves behind, and what comes of a million."""
    costs = Costs.of(profile)
    tokens = _labelled_tokens(profile)
    rows = [
        ("mining: journal", costs.size.mean(), "the driver's disk"),
        ("evaluation: a line a shard, per answer", _answer_size(profile), "the driver's disk"),
        ("features: 4,096 float32 a labelled token", tokens * 4096 * 4, "the driver's memory"),
        ("features: 16,384 float32 (405B)", tokens * 16_384 * 4, "the driver's memory"),
    ]
    return markdown(
        pd.DataFrame(
            {
                "what": what,
                "kB a question": f"{size / 1e3:,.2f}",
                "GB a million": f"{size / 1e3:,.1f}",
                "where": where,
            }
            for what, size, where in rows
        )
    )


def bottleneck(profile: str) -> str:
    """In sentences: which of the limits comes first."""
    costs, plan = Costs.of(profile), replace(FULL, workers=100)
    found = simulate(plan, costs)
    alone = float(costs.passes.mean()) * FULL.pass_seconds / FULL.slots
    writing = float(costs.records.mean()) * FULL.record_seconds
    sending = MESSAGES * FULL.message_seconds
    room = alone / (1 - found.empty) / writing * (1 - sending)
    return "\n".join(
        [
            f"- A question takes a GPU {alone / (1 - found.empty) * 1e3:.0f} ms in shards of "
            f"{plan.shard:,}, of which {found.empty:.0%} is for slots that stand empty: the "
            "longest question of a shard keeps its worker while the other slots have none left. "
            f"With all slots full it would be {alone * 1e3:.0f} ms.",
            f"- The driver writes {costs.records.mean():.1f} lines for it, which takes "
            f"{writing * 1e6:.0f} µs, and takes messages {sending:.0%} of its time: it keeps up "
            f"with about {room:,.0f} GPUs.",
            f"- Nothing ends before the longest question, which takes {found.longest:.0f} s alone.",
        ]
    )


def _labelled_tokens(profile: str) -> float:
    """Labelled tokens of a mined question."""
    table = load_table("labels_summary", profile)
    mined = table[table["source"] == "mined"]
    return float((mined["acceptable"] + mined["unacceptable"]).sum() / mined["questions"].sum())


def _answer_size(profile: str) -> float:
    """Bytes of an answer in the file of finished cells."""
    answers = load_answers(profile, "test")
    columns = {name: answers[name].tolist() for name in ["domain", *COLUMNS]}
    return len(json.dumps(columns)) / len(answers)


BLOCKS: dict[str, Callable[[str], str]] = {
    function.__name__: function
    for function in (assumptions, workers, shards, drivers, failures, storage, bottleneck)
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fill the tables of docs/scale.md.")
    parser.add_argument("--profile", default=EVIDENCE, help="whose mined questions are drawn")
    parser.add_argument("--file", type=Path, default=project_root() / PAGE)
    options = parser.parse_args(arguments)
    text = filled(options.file.read_text(encoding="utf-8"), options.profile, BLOCKS)
    write_files({options.file: text.encode()})
    print(f"{options.file.name}: simulated with the questions of profile {options.profile}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
