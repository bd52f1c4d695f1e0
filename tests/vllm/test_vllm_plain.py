"""Plain answers by the real vLLM, asked for by ENGINE=vllm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import DRAFT

from judgelib.answering import greedy_texts
from judgelib.models import load_model
from judgelib.tasks import load_task


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    from judgelib.integrations.vllm import plain

    yield
    plain.close()


def test_answers_are_those_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, in the order of the questions; some are cut off at the limit."""
    model = load_model(DRAFT, dtype="float32")
    asked = load_task("sandbox-facts").questions("test", 12)
    here = greedy_texts(model, asked, max_new_tokens=40)
    monkeypatch.setenv("ENGINE", "vllm")
    assert greedy_texts(model, asked, max_new_tokens=40) == here
    assert len(set(here)) > 6
