"""Texts by other authors, kept in a JSONL file: one `Text` a line, appended, never rewritten."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

from judgelib.journal import JsonLines, Record

Key = tuple[str, str]
"""A text's question id and prompt_sha."""


@dataclass(frozen=True)
class Text:
    """One text by one author.

    `prompt_sha` covers all that was asked, so that a changed prompt is asked again.
    `finish_reason` is the server's ("stop"; "length": cut off; "content_filter": may be empty), or
    "reference" for a human's. Token counts are the server's, None where it gave none.
    """

    question_id: str
    author: str
    text: str
    prompt_sha: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Journal(JsonLines):
    """The file of texts; `texts` holds what is in it."""

    expected = (
        "a stored answer (a JSON object whose question_id, author, text, prompt_sha and "
        "finish_reason must be strings)"
    )
    cure = "mend or delete that line; a deleted answer is asked again"
    user = "collector"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.texts: dict[Key, Text] = {}
        super().__init__(path)

    def append(self, text: Text) -> None:
        """Write one line; on return it is on the disk. Errors as in `JsonLines.write`."""
        self.write(asdict(text))

    def parse(self, record: Record) -> Text:
        text = Text(**record)
        required = (text.question_id, text.author, text.text, text.prompt_sha, text.finish_reason)
        if not all(isinstance(value, str) for value in required):
            raise TypeError("expected strings")
        return text

    def take(self, entry: Text) -> None:
        self.texts.setdefault((entry.question_id, entry.prompt_sha), entry)
