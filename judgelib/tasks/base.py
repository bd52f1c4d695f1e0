"""What a task is, for everything that decodes, labels or measures."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

Message = dict[str, str]


@dataclass(frozen=True)
class Question:
    """One prompt of a task.

    `messages` go through the model's chat template; `reference` is a right answer written out
    (by a human where there is one); `record` is the task's own, for its scoring.
    """

    id: str
    domain: str
    messages: tuple[Message, ...]
    reference: str
    record: Any = field(repr=False, compare=False)


class Task(Protocol):
    """A benchmark: questions of a split, the final answer of a text, and whether it is right."""

    @property
    def name(self) -> str: ...

    @property
    def domain(self) -> str: ...

    def questions(self, split: str, count: int, *, seed: int = 0) -> list[Question]:
        """`count` different questions; a larger count begins with the same ones."""
        ...

    def answers(self, questions: Sequence[Question], texts: Sequence[str]) -> list[Hashable]:
        """The final answer of each text, comparable by `==`: equal ones are equivalent."""
        ...

    def score(self, questions: Sequence[Question], texts: Sequence[str]) -> list[bool]:
        """Whether each text answers its question rightly."""
        ...


@runtime_checkable
class Annotated(Protocol):
    """A task that also knows where an answer goes wrong (the sandbox's oracle)."""

    def first_error(self, question: Question, ids: Sequence[int], tokenizer: Any) -> int | None:
        """Index of the first wrong token of an answer's ids; None if no token is wrong."""
        ...


@runtime_checkable
class Settling(Protocol):
    """A task that can tell early when nothing that may follow can change a text's final answer."""

    def settled(self, question: Question, text: str) -> bool:
        """Whether the answer of an unfinished text is decided; once True, always True."""
        ...


def prompt_ids(tokenizer: Any, question: Question) -> list[int]:
    """The question in the tokenizer's chat template, ready for the assistant's turn.

    The template gets the options with which the model was loaded (`models.load_model`).
    """
    options: dict[str, Any] = getattr(tokenizer, "template_options", {})
    ids: list[int] = tokenizer.apply_chat_template(
        list(question.messages), add_generation_prompt=True, return_dict=False, **options
    )
    return ids


def load_task(name: str, *, source: str | os.PathLike[str] | None = None, **options: Any) -> Task:
    """The task of that name.

    A benchmark comes from the hub at a pinned revision, or from `source`: a folder or file of the
    dataset as published. Where the environment variable JUDGELIB_DATASETS names a folder,
    `<folder>/<task>` is its source, and nothing is asked of the hub. `options` are the fields of
    its class (`skip_malformed`, `shots`, ...). A task of one's own is named by its place:
    "module:attribute", or a file of questions, "mine.jsonl" (see `tasks.own`).

    Raises:
        ValueError: unknown name or option (the message lists the known ones).
    """
    from judgelib.tasks.benchmarks import BENCHMARKS
    from judgelib.tasks.own import is_own, own_task
    from judgelib.tasks.sandbox import SANDBOX_TASKS

    if name in SANDBOX_TASKS or is_own(name):
        if source is not None or options:
            raise ValueError(f"{name} is made, not loaded: it takes no source and no options")
        return own_task(name) if is_own(name) else SANDBOX_TASKS[name]
    if name not in BENCHMARKS:
        known = sorted([*SANDBOX_TASKS, *BENCHMARKS])
        raise ValueError(
            f"expected a task of {', '.join(known)}, or one of your own (module:attribute, or a "
            f".jsonl file of questions), got {name!r}"
        )
    kind = BENCHMARKS[name]
    source = local_copy(name) if source is None else source
    allowed = sorted(item.name for item in fields(kind) if item.name != "source")
    if unknown := sorted(set(options).difference(allowed)):
        raise ValueError(f"{name} has no option {unknown[0]!r}, only {', '.join(allowed)}")
    return kind(None if source is None else os.fspath(source), **options)


def local_copy(name: str) -> str | None:
    """The folder of a dataset's own files under JUDGELIB_DATASETS; None if that is not set."""
    folder = os.environ.get("JUDGELIB_DATASETS")
    return os.path.join(folder, name) if folder else None


def having(tasks: Sequence[str], split: str) -> list[str]:
    """Those of the tasks that have questions of a split: a benchmark with test questions only can
    report, but neither train nor choose.

    Raises:
        ValueError: none has.
    """
    from judgelib.tasks.benchmarks import BENCHMARKS

    found = [
        name for name in tasks
        if name not in BENCHMARKS or split in dict(BENCHMARKS[name].pinned.splits)
    ]  # fmt: skip
    if not found:
        raise ValueError(
            f"none of {', '.join(tasks)} has {split} questions; add a task that has, such as gsm8k"
        )
    return found
