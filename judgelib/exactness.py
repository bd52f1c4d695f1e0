"""Is strict decoding exact on real prompts? Every loop and drafter against the plain oracle.

    python -m judgelib.exactness --prompts 300        # or: make exactness

Greedy, in float32: the ids of `speculate` and `speculate_batch` under `Match` must equal those of
`autoregress` for every prompt, window and drafter. Prints the number of texts compared and of those
that differ, one line a combination, and fails if any differs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from judgelib.acceptance import text_ids
from judgelib.decoding import autoregress, speculate, speculate_batch
from judgelib.drafting import Drafter, ModelDrafter, PromptLookupDrafter, TextDrafter
from judgelib.models import LanguageModel, load_pair
from judgelib.rules import Match
from judgelib.tasks import Question, load_task
from judgelib.tasks.base import prompt_ids

WINDOWS = (1, 2, 4, 8, 16)
DRAFTERS = ("model", "prompt lookup", "text")
TASKS = ("sandbox-math", "sandbox-code", "sandbox-facts")


@dataclass(frozen=True)
class Comparison:
    """How many texts of one combination were compared, and how many differ from the oracle's."""

    drafter: str
    window: int
    batched: bool
    texts: int
    different: int


def compare(
    target: LanguageModel,
    draft: LanguageModel,
    questions: Sequence[Question],
    *,
    windows: Sequence[int] = WINDOWS,
    max_new_tokens: int = 200,
    rows: int = 50,
    single: bool = True,
) -> Iterator[Comparison]:
    """All combinations of drafter and window, batched and, if asked, one text at a time.

    The fixed texts of the text drafter are the questions' references.
    """
    prompts = [prompt_ids(target.tokenizer, question) for question in questions]
    texts = [text_ids(target, question.reference) for question in questions]
    expected = [autoregress(target, p, max_new_tokens=max_new_tokens).ids for p in prompts]
    for name in DRAFTERS:
        for window in windows:
            for size in (rows, 1) if single else (rows,):
                found: list[list[int]] = []
                for start in range(0, len(prompts), size):
                    chosen = slice(start, start + size)
                    drafter = _drafter(name, draft, texts[chosen])
                    found += _decode(target, drafter, prompts[chosen], window, max_new_tokens, size)
                wrong = sum(a != b for a, b in zip(found, expected, strict=True))
                yield Comparison(name, window, size > 1, len(found), wrong)


def _drafter(name: str, draft: LanguageModel, texts: Sequence[Sequence[int]]) -> Drafter:
    if name == "model":
        return ModelDrafter(draft)
    return PromptLookupDrafter() if name == "prompt lookup" else TextDrafter(texts)


def _decode(
    target: LanguageModel,
    drafter: Drafter,
    prompts: Sequence[list[int]],
    window: int,
    max_new_tokens: int,
    size: int,
) -> list[list[int]]:
    if size == 1:
        one = speculate(
            target, drafter, Match(), prompts[0], window=window, max_new_tokens=max_new_tokens
        )
        return [one.ids]
    many = speculate_batch(
        target, drafter, Match(), prompts, window=window, max_new_tokens=max_new_tokens
    )
    return [generation.ids for generation in many]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare strict decoding with plain decoding.")
    parser.add_argument("--target", default="data/sandbox/target")
    parser.add_argument("--draft", default="data/sandbox/draft")
    parser.add_argument("--prompts", type=int, default=300, help="in all, over three domains")
    parser.add_argument("--batched-only", action="store_true", help="leave out one text at a time")
    options = parser.parse_args(arguments)
    target, draft = load_pair(options.target, options.draft, dtype=torch.float32)
    each = -(-options.prompts // len(TASKS))
    questions = [q for name in TASKS for q in load_task(name).questions("validation", each)]
    different = 0
    for line in compare(target, draft, questions, single=not options.batched_only):
        different += line.different
        print(line, flush=True)
    print(f"{different} texts differ")
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
