"""Decode one prompt strictly and with a judge, and write the explorer's page.

python -m judgelib.explorer --prompt "..." --output explorer.html     # or: make explore
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from judgelib.explorer.views import asked, compare
from judgelib.head import JudgeHead
from judgelib.models import load_pair
from judgelib.profiles import load_profile
from judgelib.quality import heads
from judgelib.tasks import Question, load_task


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        path = _explore(options)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"written: {path}; open it in a browser")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Show how an answer got there, token by token.")
    add = parser.add_argument
    add("--profile", default="sandbox")
    add("--prompt", help="what the model is asked; without it a question of --task")
    add("--task", default="sandbox-math", help="whose test question is asked")
    add("--number", type=int, default=1, help="which test question, from 1")
    add("--head", default="annotated", help="of those that notebook 03 saved, or a folder")
    add("--threshold", type=float, help="the judge's; without it the head's own")
    add("--window", type=int, default=16, help="drafted tokens a cycle")
    add("--max-new-tokens", type=int, default=256)
    add("--output", type=Path, default=Path("explorer.html"))
    return parser


def _explore(options: argparse.Namespace) -> Path:
    profile = load_profile(options.profile)
    head = JudgeHead.from_pretrained(_head(options.head, options.profile))
    own = options.prompt is not None
    question = asked(options.prompt) if own else _question(options.task, options.number)
    pair = load_pair(profile.model("target"), profile.model("draft"), dtype=profile.dtype)
    page = compare(
        *pair, head, question, threshold=options.threshold, window=options.window,
        max_new_tokens=options.max_new_tokens,
    )  # fmt: skip
    return page.write(options.output)


def _head(name: str, profile: str) -> Path:
    """A folder, or the name of a head of the profile."""
    if (Path(name) / "config.json").is_file():
        return Path(name)
    known = heads(load_profile(profile))
    if name not in known:
        raise ValueError(f"expected a head of {', '.join(known)} or a head's folder, got {name!r}")
    return known[name]


def _question(task: str, number: int) -> Question:
    if number < 1:
        raise ValueError(f"expected a question's number from 1, got {number}")
    return load_task(task).questions("test", number)[-1]


if __name__ == "__main__":
    raise SystemExit(main())
