"""Strict decoding on the shipped pair; `make exactness` does the same on 300 prompts."""

import pytest

from judgelib.exactness import DRAFTERS, TASKS, WINDOWS, compare, main
from judgelib.models import LanguageModel, load_pair
from judgelib.provenance import checkout
from judgelib.tasks import load_task

SANDBOX = checkout() / "data" / "sandbox"


@pytest.fixture(scope="module")
def shipped() -> tuple[LanguageModel, LanguageModel]:
    return load_pair(SANDBOX / "target", SANDBOX / "draft", dtype="float32")


def test_strict_decoding_equals_plain_decoding(
    shipped: tuple[LanguageModel, LanguageModel],
) -> None:
    questions = [q for name in TASKS for q in load_task(name).questions("validation", 4)]
    lines = list(compare(*shipped, questions, rows=len(questions)))
    assert len(lines) == len(DRAFTERS) * len(WINDOWS) * 2
    assert all(line.texts == len(questions) for line in lines)
    assert [line for line in lines if line.different] == []


def test_a_difference_is_counted_and_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("judgelib.decoding.longest_prefix", lambda accepted: accepted.sum(-1))
    target, draft = str(SANDBOX / "target"), str(SANDBOX / "draft")
    arguments = ["--target", target, "--draft", draft, "--prompts", "3", "--batched-only"]
    assert main(arguments) == 1
    assert "0 texts differ" not in capsys.readouterr().out
