"""What is put before an annotator: a question, a right answer, and an answer to be judged."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Item:
    """One answer under judgement, which may be right or wrong.

    `right` is an answer known to be right, shown beside it. `tokens` are the pieces of the judged
    answer, one for each of `token_ids` and equal to it when joined (see `pieces`). `id`, `author`
    and both rows of ids never reach the annotator, who is to judge blindly.

    Raises:
        ValueError: there are no tokens, or not one for each token id.
    """

    id: str
    question_id: str
    domain: str
    question: str
    right: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    author: str

    def __post_init__(self) -> None:
        if not self.tokens or len(self.tokens) != len(self.token_ids):
            raise ValueError(
                f"item {self.id!r} has {len(self.tokens)} tokens and {len(self.token_ids)} token "
                "ids: give at least one, and as many pieces as ids (`pieces` makes them)."
            )

    @property
    def answer(self) -> str:
        """The answer under judgement."""
        return "".join(self.tokens)

    @property
    def sha(self) -> str:
        """What a decision refers to: question, right answer and tokens (16 hex digits)."""
        judged = [self.question, self.right, self.tokens, self.token_ids]
        return hashlib.sha256(json.dumps(judged).encode()).hexdigest()[:16]


def pieces(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> tuple[str, ...]:
    """The text that each token adds to an answer; joined, exactly the decoded answer.

    A character whose bytes several tokens share belongs to the last of them. The others are
    empty, as special tokens are: an end-of-sequence token is judged too, because an answer may
    stop too early.
    """
    ids = list(token_ids)
    text = _decode(tokenizer, ids)
    ends = [0]
    for length in range(1, len(ids)):
        ends.append(_shared(_decode(tokenizer, ids[:length]), text, ends[-1]))
    ends.append(len(text))
    return tuple(text[start:stop] for start, stop in zip(ends[:-1], ends[1:], strict=True))


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)  # a flat list of ids is one text
    return text


def _shared(begun: str, whole: str, length: int) -> int:
    """How far two texts agree that agree up to `length`: half a character is not yet there."""
    while length < min(len(begun), len(whole)) and begun[length] == whole[length]:
        length += 1
    return length


def save_items(items: Iterable[Item], path: str | os.PathLike[str]) -> Path:
    """Write a JSONL file, one item a line, all or nothing; returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in _unique(items, path)]
    part.write_bytes("".join(lines).encode())
    part.replace(path)
    return path


def load_items(path: str | os.PathLike[str]) -> list[Item]:
    """Read what `save_items` wrote.

    Raises:
        ValueError: a line (which is named) is not an item, or two items have the same id.
    """
    path = Path(path)
    lines = path.read_bytes().split(b"\n")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    return _unique([_parse(line, f"{path}, line {number}") for number, line in numbered], path)


def _unique(items: Iterable[Item], where: object) -> list[Item]:
    found: dict[str, Item] = {}
    for item in items:
        if found.setdefault(item.id, item) is not item:
            raise ValueError(f"{where}: two items have the id {item.id!r}; give each its own.")
    return list(found.values())


def _parse(line: bytes, where: str) -> Item:
    names = [field.name for field in fields(Item)]
    try:
        found = json.loads(line)
        item = Item(**{name: _value(name, found.pop(name)) for name in names})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{where} is not an item (a JSON object with {', '.join(names)}): {error!r}. "
            "Mend that line or make the file again."
        ) from error
    return item


_ROWS = {"tokens": str, "token_ids": int, "prompt_ids": int}


def _value(name: str, value: Any) -> Any:
    """A field as the dataclass holds it; TypeError for another type."""
    kind = _ROWS.get(name)
    if kind is None:
        good = isinstance(value, str)
    else:
        good = isinstance(value, list) and all(type(element) is kind for element in value)
    if not good:
        raise TypeError(f"{name} must be {f'a list of {kind.__name__}' if kind else 'a string'}")
    return tuple(value) if kind else value
