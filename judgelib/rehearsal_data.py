"""Benchmarks for rehearsals: a few made-up rows of each in the schema of the original files.

Results are drawn from a short list, so that a tiny model is right now and then by luck, and every
answer is worded in one of two ways, so that two models disagree in words as well.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

PRODUCTS = ((3, 4), (2, 6), (3, 6), (2, 9))  # 12 or 18
THINGS = ("pens", "eggs", "cards", "coins", "books")
FACTS = (
    ("Which of these gives light", "a candle", ("a stone", "a spoon", "a shoe")),
    ("Which of these is an animal", "a hen", ("a rock", "a lamp", "a cup")),
    ("Which of these is hot", "a fire", ("a snowball", "a pond", "a cloud")),
    ("Which of these can fly", "a gull", ("a cow", "a carp", "a mole")),
)


def gsm8k(number: int, draw: random.Random) -> Row:
    """A word problem; the worked answer ends with #### and the result."""
    a, b = draw.choice(PRODUCTS)
    thing = draw.choice(THINGS)
    said = draw.choice(("That makes", "In all there are"))
    return {
        "question": f"Shelf {number} has {a} boxes with {b} {thing} each. How many {thing}?",
        "answer": f"{said} {a}*{b}=<<{a}*{b}={a * b}>>{a * b} {thing}.\n#### {a * b}",
    }


def arc(number: int, draw: random.Random) -> Row:
    """A science question with lettered options."""
    stem, right, wrong = draw.choice(FACTS)
    texts = [right, *wrong[:1]]
    draw.shuffle(texts)
    letters = "AB"
    return {
        "id": f"made_{number}", "question": f"{stem} ({number})?",
        "choices": {"text": texts, "label": list(letters)},
        "answerKey": letters[texts.index(right)],
    }  # fmt: skip


def mmlu(number: int, draw: random.Random) -> Row:
    """A question of an exam with four options, the right one by its place."""
    stem, right, wrong = draw.choice(FACTS)
    texts = [right, *wrong]
    draw.shuffle(texts)
    place = texts.index(right) % 2  # A or B
    texts.remove(right)
    texts.insert(place, right)
    return {"question": f"{stem} ({number})?", "subject": "common_sense", "choices": texts,
            "answer": place}  # fmt: skip


def humaneval(number: int, draw: random.Random) -> Row:
    """A function to be finished, and its tests."""
    sign = draw.choice("+-")
    name = f"joined_{number}"
    result = 8 if sign == "+" else 2
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def {name}(a: int, b: int) -> int:\n    """ a {sign} b """\n',
        "canonical_solution": f"    return a {sign} b\n",
        "test": f"def check(candidate):\n    assert candidate(5, 3) == {result}\n",
        "entry_point": name,
    }


FILES: dict[str, tuple[Callable[[int, random.Random], Row], dict[str, int]]] = {
    "gsm8k": (gsm8k, {"train": 200, "test": 12}),
    "arc-challenge": (arc, {"train": 16, "validation": 12, "test": 12}),
    "mmlu": (mmlu, {"auxiliary_train": 16, "validation": 12, "test": 12}),
    "humaneval": (humaneval, {"test": 6}),
}
"""Task -> how a row is made, and how many rows each of the dataset's own splits has."""


def write(folder: Path) -> None:
    """Write every benchmark's files under `folder/<task>/`, for JUDGELIB_DATASETS."""
    for task, (make, splits) in FILES.items():
        (folder / task).mkdir(parents=True, exist_ok=True)
        first = 0
        for split, count in splits.items():
            draw = random.Random(f"{task} {split}")
            rows = [make(number, draw) for number in range(first, first + count)]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / task / f"{split}.jsonl").write_text(text, encoding="utf-8")
            first += count
