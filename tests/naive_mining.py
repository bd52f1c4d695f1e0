"""AutoJudge's search as plainly as it can be written: what `judgelib.mining` is tested against.

One question at a time; after every difference the draft reads the whole text anew and the target
writes the whole continuation anew, one token a pass (arXiv 2504.20039, the semi-greedy search).
`python -m tests.naive_mining --questions 3` compares the time of both on the sandbox pair.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from judgelib.decoding import autoregress
from judgelib.mining import Mined, mine
from judgelib.models import LanguageModel, load_pair
from judgelib.tasks.base import Question, Settling, Task, load_task, prompt_ids

ROOT = Path(__file__).resolve().parents[1]
DOMAINS = ("math", "code", "facts")


class Found(NamedTuple):
    """The last answer, every difference as (place, draft's token, important?), target passes."""

    response: list[int]
    trials: list[tuple[int, int, bool]]
    passes: int


class NaiveSearch:
    """The search on one question."""

    def __init__(
        self,
        target: LanguageModel,
        draft: LanguageModel,
        task: Task,
        question: Question,
        max_new_tokens: int,
    ) -> None:
        self.target, self.draft, self.task, self.question = target, draft, task, question
        self.prompt = prompt_ids(target.tokenizer, question)
        self.limit = min(max_new_tokens, target.context - len(self.prompt))
        self.passes = 0

    def run(self) -> Found:
        response = self.continued([])
        own = self.answer(response)
        trials: list[tuple[int, int, bool]] = []
        border = 0
        while (place := self.next_difference(response, border)) is not None:
            token = self.choices(response)[place]
            head = [*response[:place], token]
            revised = self.until_settled(head, self.continued(head))
            important = self.answer(revised) != own
            trials.append((place, token, important))
            response = response if important else revised
            border = place + 1
        return Found(response, trials, self.passes)

    def next_difference(self, response: list[int], border: int) -> int | None:
        """The first place at or behind the border where the draft would write something else."""
        choices = self.choices(response)
        places = range(border, len(response))
        return next((place for place in places if choices[place] != response[place]), None)

    @torch.inference_mode()
    def choices(self, response: list[int]) -> list[int]:
        """What the draft would write at each place: one pass over prompt and answer."""
        logits = self.draft.model(torch.tensor([self.prompt + response])).logits[0]
        return logits[len(self.prompt) - 1 : -1].argmax(-1).tolist()

    def continued(self, head: list[int]) -> list[int]:
        """The answer that begins with `head`, written to its end by the target."""
        left = self.limit - len(head)
        if left == 0 or (head and head[-1] in self.target.eos_ids):
            return head
        text = autoregress(self.target, self.prompt + head, max_new_tokens=left).ids
        self.passes += len(text)
        return head + text

    def until_settled(self, head: list[int], text: list[int]) -> list[int]:
        """The text up to the first token of the target's that settles the answer."""
        if not isinstance(self.task, Settling):
            return text
        for length in range(len(head) + 1, len(text)):
            if self.task.settled(self.question, self.words(text[:length])):
                return text[:length]
        return text

    def answer(self, response: list[int]) -> Any:
        return self.task.answers([self.question], [self.words(response)])[0]

    def words(self, ids: list[int]) -> str:
        return self.target.tokenizer.decode(ids, skip_special_tokens=True)


def naive(
    target: LanguageModel,
    draft: LanguageModel,
    task: Task,
    questions: Sequence[Question],
    max_new_tokens: int,
) -> list[Found]:
    """Search one question after the other."""
    return [NaiveSearch(target, draft, task, q, max_new_tokens).run() for q in questions]


def as_found(mined: Mined) -> list[Found]:
    """What the fast search found, in the same words."""
    return [
        Found(s.response, [(t.place, t.token, t.important) for t in s.trials], s.passes)
        for s in mined.searches
    ]


def same(one: Sequence[Found], other: Sequence[Found]) -> bool:
    """Whether two searches found the same; how many passes they took is their own affair."""
    return [found[:2] for found in one] == [found[:2] for found in other]


# --- measuring ---------------------------------------------------------------------------------


def compare(
    pair: tuple[LanguageModel, LanguageModel],
    domain: str,
    questions: int,
    naive_questions: int,
    limit: int,
) -> dict[str, Any]:
    """Seconds and target passes a question of both; the naive search does fewer of them."""
    task = load_task(f"sandbox-{domain}")
    asked = task.questions("train", questions)
    task.answers(asked[:1], [""])  # whatever a task starts once belongs to neither
    with tempfile.TemporaryDirectory() as folder, counted(pair[0]) as calls:
        start = time.perf_counter()
        fast = as_found(mine(*pair, task, asked, Path(folder) / "journal.jsonl",
                             max_new_tokens=limit, progress=False))  # fmt: skip
        middle = time.perf_counter()
    plain = naive(*pair, task, asked[:naive_questions], limit)
    seconds = time.perf_counter() - middle
    return {
        "domain": domain,
        "naive_questions": len(plain),
        "fast_questions": len(fast),
        "same": same(plain, fast[: len(plain)]),
        "naive_seconds": seconds / len(plain),
        "fast_seconds": (middle - start) / len(fast),
        "naive_passes": sum(found.passes for found in plain) / len(plain),
        "fast_passes": sum(found.passes for found in fast) / len(fast),
        "fast_calls": len(calls) / len(fast),
        "naive_trials": sum(len(found.trials) for found in plain) / len(plain),
        "fast_trials": sum(len(found.trials) for found in fast) / len(fast),
    }


@contextmanager
def counted(model: LanguageModel) -> Iterator[list[int]]:
    """The number of rows of each forward pass of a model. One pass reads many questions."""
    rows: list[int] = []
    real = model.read

    def read(ids: torch.Tensor, *others: Any, **options: Any) -> Any:
        rows.append(len(ids))
        return real(ids, *others, **options)

    model.read = read  # type: ignore[method-assign]
    try:
        yield rows
    finally:
        del model.read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=3, help="a domain, searched naively")
    parser.add_argument("--fast-questions", type=int, default=32, help="a domain, by judgelib")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    options = parser.parse_args()
    family = ROOT / "data" / "sandbox"
    pair = load_pair(family / "target", family / "draft", dtype="float32")
    fast = max(options.fast_questions, options.questions)
    print(f"per question, float32 on {pair[0].device}, {torch.get_num_threads()} threads")
    rows = []
    for domain in DOMAINS:
        row = compare(pair, domain, fast, options.questions, options.max_new_tokens)
        row["ratio"] = row["naive_seconds"] / row["fast_seconds"]
        rows.append(row)
        print(
            f"{domain:6} naive {row['naive_seconds']:.2f} s, {row['naive_passes']:.0f} target "
            f"passes; fast {row['fast_seconds']:.3f} s, {row['fast_passes']:.0f} passes shared in "
            f"{row['fast_calls']:.0f} calls; {row['ratio']:.1f}x; same labels: {row['same']}",
            flush=True,
        )
    print(json.dumps({"bench": "naive_mining", "rows": rows}))


if __name__ == "__main__":
    main()
