"""Where work is done: which engine is meant, and what comes back from work here."""

from __future__ import annotations

from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import tiny
import toy

from judgelib import answering, mapping, reproduce
from judgelib.evaluation import Cell
from judgelib.integrations import ray
from judgelib.integrations.vllm import plain
from judgelib.mapping import Models, Source, each, engine


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGINE", raising=False)


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "installed", lambda _: True)


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "installed", lambda _: False)


def test_work_is_local_unless_said_otherwise(
    everything: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine() == "local"
    monkeypatch.setenv("ENGINE", "")
    assert engine() == "local"
    monkeypatch.setenv("ENGINE", "ray")
    assert engine() == "ray"
    assert engine("local") == "local"


def test_an_unknown_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE", "spark")
    with pytest.raises(ValueError, match="one of local, ray, vllm, got 'spark'"):
        engine()


@pytest.mark.parametrize("name", ["ray", "vllm"])
def test_what_is_not_installed_is_named_with_its_cure(nothing: None, name: str) -> None:
    with pytest.raises(ValueError, match=f"ENGINE={name} needs {name}, .* run `make {name}`"):
        engine(name)
    with pytest.raises(ValueError, match="not installed here"):
        each(Models(), print, [], print, name=name)


def test_reproduce_refuses_before_it_starts(
    nothing: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENGINE", "ray")
    assert reproduce.main(["--profile", "sandbox"]) == 2
    assert "make ray" in capsys.readouterr().err


def test_a_folder_of_the_name_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sparkling").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not mapping.installed("sparkling") and mapping.installed("json")


def test_work_here_gets_what_is_at_hand_in_order() -> None:
    taken: list[Any] = []

    def twice(held: Any, piece: int, emit: mapping.Emit) -> None:
        emit((held, piece))
        emit((held, 10 * piece))

    each(Models(), twice, iter([1, 2]), lambda piece, result: taken.append((piece, result)))
    assert taken == [(1, ((), 1)), (1, ((), 10)), (2, ((), 2)), (2, ((), 20))]


def test_a_source_is_what_loads_the_model_again() -> None:
    model = tiny.language_model()
    model.name = "./tiny"  # a folder that is not there, and no name to ask the hub about
    source = Source.of(model)
    assert source == Source("./tiny", None, "float32", "cpu", model.fingerprint)
    assert Models(model, model).elsewhere().devices == ("cpu", "cpu")
    assert Models(model).elsewhere() == Models(model).elsewhere()
    with pytest.raises(ValueError, match="tiny"):
        source.load()


def test_shards_are_the_cell() -> None:
    cell = Cell("strict", 0.0, "sandbox-math", "test", 300)
    assert [(part.first, part.count) for part in cell.shards] == [(0, 128), (128, 128), (256, 44)]
    assert [part.shards for part in cell.shards] == [[part] for part in cell.shards]


def test_plain_answers_by_vllm(everything: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All prompts in one call, in the order of the questions; what comes back is decoded."""
    model = toy.with_template(tiny.language_model())
    calls: list[Any] = []

    def greedy(source: Source, prompts: list[list[int]], limit: int) -> list[list[int]]:
        calls.append((source, limit))
        return [[*prompt, tiny.EOS] for prompt in prompts]

    monkeypatch.setattr(plain, "greedy", greedy)
    monkeypatch.setenv("ENGINE", "vllm")
    asked = toy.questions([[7, 8], [9], [10, 11, 12]])
    assert answering.greedy_texts(model, asked, max_new_tokens=5) == ["w7 w8", "w9", "w10 w11 w12"]
    assert calls == [(Source.of(model), 5)]
    calls.clear()
    answering.greedy_texts(model, asked, max_new_tokens=2, engine="local")
    assert not calls


def test_results_are_gathered_between_messages() -> None:
    """The first at once; what comes during a pause in one; none lost, in order."""
    results: SimpleQueue[Any] = SimpleQueue()
    results.put(0)
    stream = ray._gathered(results, pause=0.2)
    assert next(stream) == [0]
    for number in (1, 2, 3):
        results.put(number)
    assert next(stream) == [1, 2, 3]
    for number in (4, 5):
        results.put(number)
    results.put(ray._END)
    assert list(stream) == [[4, 5]]


def test_no_results_are_no_message() -> None:
    results: SimpleQueue[Any] = SimpleQueue()
    results.put(ray._END)
    assert list(ray._gathered(results, pause=10.0)) == []


@pytest.mark.parametrize(
    ("count", "workers", "size"), [(1000, 10, 50), (50, 10, 3), (0, 2, 1), (10**6, 10, 64)]
)
def test_every_worker_has_its_turns(count: int, workers: int, size: int) -> None:
    assert mapping.share(count, workers, largest=64) == size


def test_a_piece_is_everything_here() -> None:
    assert mapping.portion(Models(), 5000, largest=64) == 5000
    assert mapping.portion(Models(), 0, largest=64) == 1


def test_sources_are_keys_whatever_their_template() -> None:
    """Processes are kept by what they have loaded."""
    thinking, silent = (
        Source("model", None, "float32", "cpu", "f", {"enable_thinking": thinks})
        for thinks in (True, False)
    )
    assert len({thinking, silent, Source("model", None, "float32", "cpu", "f")}) == 3
