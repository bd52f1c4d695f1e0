"""Evaluation: what a rule's answers are worth, on the prompts that the target answers alone.

The unit of work is a `Cell`: one rule at one setting on the questions of one task. Those of many
questions are cut into cells of `SHARD`. Cells are decoded in any order, by several processes where
there are cores or by a cluster (`mapping`), and each is on the disk as soon as it is done; the
result does not depend on any of that.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from judgelib import rulebook
from judgelib.answering import greedy_texts
from judgelib.decoding import Generation, Job, speculate_stream
from judgelib.drafting import Drafter, ModelDrafter
from judgelib.head import JudgeHead
from judgelib.journal import JsonLines, Record
from judgelib.mapping import LOCAL, Emit, each
from judgelib.models import LanguageModel, load_pair
from judgelib.results import sha256
from judgelib.rules import Match, Rule
from judgelib.steps import code_fingerprint
from judgelib.tasks.base import Question, Task, load_task, prompt_ids

MAX_NEW_TOKENS = 256
SHARD = 128
"""Questions that are decoded together, whoever does it: twice as many as there are slots."""
DRAFT = "draft"
"""The "rule" of a cell in which the draft answers alone."""


def decode(
    target: LanguageModel,
    drafter: Drafter,
    rule: Rule,
    questions: Sequence[Question],
    *,
    window: int = 16,
    max_new_tokens: int = MAX_NEW_TOKENS,
    slots: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Generation]:
    """Answers to questions, `slots` of them at once, in the order of the questions.

    Greedy at temperature 0. Whatever is random has a generator for each question, seeded by `seed`
    and the question's id, so an answer does not depend on the others.
    """
    if slots < 1:
        raise ValueError(f"slots must be at least 1 question at a time, got {slots}")
    prompts = [prompt_ids(target.tokenizer, question) for question in questions]
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    queue = deque(order)
    at_work: dict[int, int] = {}
    found: dict[int, Generation] = {}

    def feed(ended: Mapping[int, Generation]) -> dict[int, Job]:
        found.update({at_work[slot]: text for slot, text in ended.items()})
        jobs = {}
        for slot in list(ended) or range(slots):
            if queue:
                number = at_work[slot] = queue.popleft()
                own = _generator(questions[number], seed)
                jobs[slot] = Job(prompts[number], max_new_tokens, own)
        return jobs

    longest = max(map(len, prompts), default=0) + max_new_tokens
    speculate_stream(
        target, drafter, rule, feed, longest=longest, window=window, temperature=temperature
    )
    return [found[number] for number in range(len(prompts))]


def _generator(question: Question, seed: int) -> torch.Generator:
    digest = sha256(f"{seed}|{question.id}".encode())
    return torch.Generator().manual_seed(int(digest[:15], 16))


# --- cells -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Whose answers: hub ids or paths, the precision, and where they run.

    `target_options` and `draft_options` are further arguments of `models.load_model`; `slots`
    questions are answered side by side, on which no answer depends.
    """

    target: str
    draft: str
    dtype: str = "float32"
    device: str = "cpu"
    target_options: Mapping[str, Any] = field(default_factory=dict)
    draft_options: Mapping[str, Any] = field(default_factory=dict)
    slots: int = 64

    def load(self) -> tuple[LanguageModel, LanguageModel]:
        return load_pair(
            self.target, self.draft, dtype=self.dtype, device=self.device,
            target_options=self.target_options, draft_options=self.draft_options,
        )  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One rule at one setting on some questions of a task.

    Attributes:
        rule, setting: as in `rulebook.build`; rule "draft": the draft answers alone, greedily.
        count: questions of the split.
        seed: of the questions and of whatever is random.
        prefix: tokens of every answer that are verified strictly.
        first: questions of the split that come before this cell's.
        max_new_tokens: the longest answer.
    """

    rule: str
    setting: float
    task: str
    split: str
    count: int
    seed: int = 0
    window: int = 16
    temperature: float = 0.0
    prefix: int = 0
    first: int = 0
    max_new_tokens: int = MAX_NEW_TOKENS

    @property
    def shards(self) -> list[Cell]:
        """The cell in parts of up to `SHARD` questions."""
        return [
            replace(self, first=self.first + start, count=min(SHARD, self.count - start))
            for start in range(0, self.count, SHARD)
        ]


COLUMNS = ["question", "correct", "tokens", "cycles", "drafted", "accepted", "mismatches_accepted"]


def evaluate(
    pair: Pair,
    cells: Iterable[Cell],
    heads: Mapping[str, str | Path] | None = None,
    *,
    folder: Path,
    workers: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Decode every cell; cells that `folder` already holds are not decoded again.

    Args:
        heads: the judges' heads by name, saved.
        folder: where finished cells are kept, in a file of their own for these models, heads and
            code. A run that was killed loses the cells it was at.
        workers: processes; None: what the environment variable JUDGELIB_WORKERS says, else one a
            core on a CPU, one in all on a GPU. 1 stays in this process. ENGINE=ray has the
            cluster's instead.

    Returns:
        One row an answer, in the order of the cells: rule, setting, window, temperature, prefix,
        domain, question, correct, tokens, cycles, drafted, accepted, mismatches_accepted. For the
        draft alone a cycle is one of its own passes.

    Raises:
        ValueError: no cell, or an unknown rule, head, task or split, before anything is decoded.
    """
    wanted = list(dict.fromkeys(cells))
    if not wanted:
        raise ValueError("expected at least one cell to decode, got none")
    for task, split, seed in dict.fromkeys((c.task, c.split, c.seed) for c in wanted):
        load_task(task).questions(split, 1, seed=seed)  # refuses a split that it does not have
    bench = Bench(pair, {name: str(path) for name, path in (heads or {}).items()})
    for cell in wanted:
        bench.check(cell)
    shards = [shard for cell in wanted for shard in cell.shards]
    with Answers(folder / f"cells_{bench.digest}.jsonl") as kept:
        missing = [shard for shard in shards if shard not in kept.rows]
        count = min(len(missing), _workers(bench) if workers is None else workers)
        with tqdm(total=len(missing), desc="cells", unit="cell", disable=not progress) as bar:

            def take(cell: Cell, rows: dict[str, list[Any]]) -> None:
                kept.write({"cell": asdict(cell), "answers": rows}, sync=False)
                bar.update()

            each(bench, _run, _longest_first(missing), take, workers=count)
        return pd.concat([_frame(shard, kept.rows[shard]) for shard in shards], ignore_index=True)


def _run(bench: Bench, cell: Cell, emit: Emit) -> None:
    emit(bench.run(cell))


class Answers(JsonLines):
    """The finished cells: one line each."""

    expected = "a finished cell"

    def __init__(self, path: Path) -> None:
        self.rows: dict[Cell, dict[str, list[Any]]] = {}
        super().__init__(path)

    def parse(self, record: Record) -> tuple[Cell, dict[str, list[Any]]]:
        cell, rows = Cell(**record["cell"]), record["answers"]
        if sorted(rows) != sorted(["domain", *COLUMNS]) or len(rows["question"]) != cell.count:
            raise ValueError("not the answers of that cell")
        return cell, rows

    def take(self, entry: tuple[Cell, dict[str, list[Any]]]) -> None:
        self.rows[entry[0]] = entry[1]


def _frame(cell: Cell, rows: Mapping[str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame({name: rows[name] for name in COLUMNS})
    names = ("rule", "setting", "window", "temperature", "prefix")
    about = {name: getattr(cell, name) for name in names}
    columns = [*names, "domain", *COLUMNS]
    return frame.assign(**about, domain=rows["domain"])[columns]


def _longest_first(cells: Sequence[Cell]) -> list[Cell]:
    """So that no worker begins a long cell when the others are done."""
    return sorted(cells, key=lambda cell: -cell.count)


class Bench:
    """The models and heads of one process, loaded when first needed."""

    def __init__(self, pair: Pair, heads: Mapping[str, str]) -> None:
        self.pair, self.paths = pair, dict(heads)
        self.heads = {name: JudgeHead.from_pretrained(path) for name, path in heads.items()}
        self._models: tuple[LanguageModel, LanguageModel] | None = None

    @property
    def models(self) -> tuple[LanguageModel, LanguageModel]:
        if self._models is None:
            self._models = self.pair.load()
        return self._models

    @property
    def digest(self) -> str:
        """Changes with the models' weights, their precision, the heads and the code."""
        weights = [self.pair.dtype, *(model.fingerprint for model in self.models)]
        heads = {
            name: (head.fingerprint, head.config.feature)
            for name, head in sorted(self.heads.items())
        }
        return sha256(f"{weights} {heads} {code_fingerprint()}".encode())[:12]

    def here(self) -> Bench:
        return self

    def elsewhere(self) -> Setup:
        return Setup(self.pair, tuple(self.paths.items()), self.digest)

    def check(self, cell: Cell) -> None:
        """ValueError for a cell whose rule cannot be built or does not fit the target."""
        if cell.rule != DRAFT:
            self._rule(cell).check(self.models[0])

    def _rule(self, cell: Cell) -> Rule:
        return rulebook.build(
            cell.rule, cell.setting, self.heads,
            prefix=cell.prefix, sampled=cell.temperature > 0,
        )  # fmt: skip

    def run(self, cell: Cell) -> dict[str, list[Any]]:
        """The answers of one cell, by column."""
        task = load_task(cell.task)
        drawn = task.questions(cell.split, cell.first + cell.count, seed=cell.seed)
        questions = drawn[cell.first :]
        target, draft = self.models
        if cell.rule == DRAFT:
            return _alone(draft, task, questions, cell.max_new_tokens, self.pair.slots)
        texts = decode(
            target, ModelDrafter(draft), self._rule(cell), questions,
            window=cell.window, temperature=cell.temperature, seed=cell.seed,
            max_new_tokens=cell.max_new_tokens, slots=self.pair.slots,
        )  # fmt: skip
        words = [target.tokenizer.decode(text.ids, skip_special_tokens=True) for text in texts]
        return {
            "domain": [question.domain for question in questions],
            "question": [question.id for question in questions],
            "correct": [int(right) for right in task.score(questions, words)],
            "tokens": [len(text.ids) for text in texts],
            "cycles": [len(text.cycles) for text in texts],
            "drafted": [text.drafted for text in texts],
            "accepted": [text.accepted for text in texts],
            "mismatches_accepted": [text.mismatches for text in texts],
        }


def _alone(
    draft: LanguageModel, task: Task, questions: Sequence[Question], longest: int, slots: int
) -> dict[str, list[Any]]:
    """The draft's own answers; it drafts for nobody."""
    texts = greedy_texts(draft, questions, max_new_tokens=longest, rows=2 * slots, engine=LOCAL)
    lengths = [len(draft.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    none = [0] * len(texts)
    return {
        "domain": [question.domain for question in questions],
        "question": [question.id for question in questions],
        "correct": [int(right) for right in task.score(questions, texts)],
        "tokens": lengths, "cycles": lengths,
        "drafted": none, "accepted": none, "mismatches_accepted": none,
    }  # fmt: skip


# --- several processes ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """A bench to be set up elsewhere: the same models, heads and code, or none."""

    pair: Pair
    heads: tuple[tuple[str, str], ...]
    digest: str

    @property
    def devices(self) -> tuple[str, ...]:
        return (self.pair.device,)

    def __call__(self) -> Bench:
        bench = Bench(self.pair, dict(self.heads))
        if bench.digest != self.digest:
            raise ValueError(
                "a worker has other models, heads or code of judgelib than this process: every "
                "machine must see the same files"
            )
        return bench


def _workers(bench: Bench) -> int:
    named = os.environ.get("JUDGELIB_WORKERS", "")
    if named:
        if not named.isdigit() or named == "0":
            raise ValueError(f"JUDGELIB_WORKERS is a number of processes, got {named!r}")
        return int(named)
    on_gpu = bench.models[0].device.type != "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 1 if on_gpu else cores or 1


# --- thresholds ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """Questions of several tasks, and whether the target alone answers each rightly."""

    target: LanguageModel
    drafter: Drafter
    tasks: tuple[tuple[Task, tuple[Question, ...]], ...]
    target_right: np.ndarray
    window: int
    max_new_tokens: int = MAX_NEW_TOKENS
    slots: int = 64

    @classmethod
    def draw(
        cls,
        target: LanguageModel,
        drafter: Drafter,
        tasks: Sequence[str],
        split: str,
        count: int,
        *,
        seed: int = 0,
        window: int = 16,
        max_new_tokens: int = MAX_NEW_TOKENS,
        slots: int = 64,
    ) -> Panel:
        """`count` questions of a split for each task, first answered strictly."""
        loaded = [load_task(name) for name in tasks]
        asked = tuple((task, tuple(task.questions(split, count, seed=seed))) for task in loaded)
        blank = cls(target, drafter, asked, np.array([]), window, max_new_tokens, slots)
        return replace(blank, target_right=blank.right(Match()))

    def generations(self, rule: Rule) -> list[Generation]:
        """Every question decoded with a rule, in order."""
        return [
            text
            for _, questions in self.tasks
            for text in decode(
                self.target,
                self.drafter,
                rule,
                questions,
                window=self.window,
                max_new_tokens=self.max_new_tokens,
                slots=self.slots,
            )
        ]

    def right(self, rule: Rule) -> np.ndarray:
        """(prompts,) bool: which answers a rule gets right."""
        return self.score(self.generations(rule))

    def score(self, texts: Sequence[Generation]) -> np.ndarray:
        """(prompts,) bool: which of these answers are right."""
        words = iter(
            self.target.tokenizer.decode(text.ids, skip_special_tokens=True) for text in texts
        )
        said = [
            task.score(questions, [next(words) for _ in questions])
            for task, questions in self.tasks
        ]
        return np.concatenate([np.array(right, dtype=bool) for right in said])

    def losses(self, rule: Rule) -> np.ndarray:
        """(prompts,) 0/1: the target alone is right and the rule's answer is wrong."""
        return (self.target_right & ~self.right(rule)).astype(int)
