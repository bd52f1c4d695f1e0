"""Work on a Ray cluster: the local results, whatever dies on the way.

One cluster of two workers for all tests here, with the shipped sandbox models.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_work import Deadly, Nothing, Piece, refuse, squares

from judgelib import answering, evaluation, features, mapping, mining
from judgelib.evaluation import Cell, Pair, evaluate
from judgelib.features import Examples, extract
from judgelib.labels import load_labels
from judgelib.mining import Mined, mine
from judgelib.models import LanguageModel, load_pair
from judgelib.provenance import checkout
from judgelib.tasks.base import load_task

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: make ray"),
    pytest.mark.filterwarnings("ignore"),  # what Ray warns of is its affair
]

SANDBOX = checkout() / "data" / "sandbox"
PAIR = Pair(str(SANDBOX / "target"), str(SANDBOX / "draft"))
LABELS = checkout() / "data" / "results" / "sandbox" / "labels" / "mined_test.parquet"
Models = tuple[LanguageModel, LanguageModel]


CLUSTER = """
import sys, ray
started = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
print(started.address_info["address"], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A running cluster of two workers, of another process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
        # Its workers need what is defined in this file.
        paths = os.pathsep.join([str(Path(__file__).parent), str(checkout())])
        process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None and process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()


@pytest.fixture(scope="module")
def joined(address: str) -> Iterator[None]:
    """This process has joined the cluster by its address."""
    from judgelib.integrations.ray import cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", address)
        found = cluster()
    yield
    found.close()


@pytest.fixture
def on_ray(joined: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Switches to the cluster."""
    return lambda: monkeypatch.setenv("ENGINE", "ray")


@pytest.fixture(scope="module")
def pair() -> Models:
    return load_pair(PAIR.target, PAIR.draft, dtype="float32")


# --- any work ------------------------------------------------------------------------------------


def test_a_killed_worker_costs_what_it_had_not_said(
    on_ray: Callable[[], None], tmp_path: Path
) -> None:
    """The number at which it died comes from another process; no number comes twice."""
    on_ray()
    died = str(tmp_path / "died")
    pieces = [Piece((1, 2)), Piece((3, 4, 5), fatal=4, died=died), Piece((6, 7)), Piece((8,))]
    taken: list[tuple[int, int, int]] = []

    def left(piece: Piece) -> Piece | None:
        known = {number for number, _, _ in taken}
        rest = tuple(number for number in piece.numbers if number not in known)
        return replace(piece, numbers=rest) if rest else None

    mapping.each(Nothing(), squares, pieces, lambda _, result: taken.append(result), left=left)
    assert Path(died).exists()
    assert sorted(result[:2] for result in taken) == [(n, n**2) for n in range(1, 9)]
    workers = {number: worker for number, _, worker in taken}
    assert workers[3] != workers[4] == workers[5]
    assert os.getpid() not in workers.values()


def test_an_error_comes_back_as_itself(on_ray: Callable[[], None]) -> None:
    on_ray()
    with pytest.raises(ValueError, match=r"expected no numbers, got \(1,\)"):
        mapping.each(Nothing(), refuse, [Piece((1,))], lambda *_: None)


def test_workers_stay_and_keep_what_they_hold(on_ray: Callable[[], None]) -> None:
    """Two calls, the same processes: nothing is loaded twice."""
    on_ray()
    seen: list[set[int]] = []
    for _ in range(2):
        taken: list[int] = []
        pieces = [Piece((n,)) for n in range(6)]
        mapping.each(Nothing(1), squares, pieces, lambda _, said, to=taken: to.append(said[2]))
        seen.append(set(taken))
    assert len(seen[0] | seen[1]) <= 2


def test_a_piece_that_kills_every_worker_is_given_up() -> None:
    from judgelib.integrations import ray

    deaths = 0
    for _ in range(ray.DEATHS - 1):
        deaths = ray._one_more(deaths, RuntimeError("killed"))
    with pytest.raises(RuntimeError, match="3 workers in a row died at the same piece"):
        ray._one_more(deaths, RuntimeError("killed"))


@pytest.mark.parametrize("said", ["0", "two", "-1", "1.5"])
def test_a_wrong_number_of_workers_is_refused(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from judgelib.integrations.ray import Cluster

    monkeypatch.setenv("ENGINE_WORKERS", said)
    with pytest.raises(ValueError, match=f"ENGINE_WORKERS .* got '{said}'"):
        Cluster()


def test_other_weights_are_refused(pair: Models) -> None:
    """A machine that sees another model under the same name does not take part."""
    source = replace(mapping.Source.of(pair[0]), fingerprint="0" * 16)
    with pytest.raises(ValueError, match="expected the weights 0000000000000000"):
        source.load()
    with pytest.raises(ValueError, match="other models, heads or code"):
        evaluation.Setup(PAIR, (), "0" * 12)()


# --- the studies ---------------------------------------------------------------------------------


def mined(pair: Models, path: Path, died: str = "", count: int = 6) -> tuple[Mined, list[Any]]:
    """A search with its journal's lines."""
    task = load_task("sandbox-facts")
    asked = task.questions("train", count)
    deadly: Any = Deadly(task, asked[2].id, died)
    found = mine(*pair, deadly, asked, path, progress=False, max_new_tokens=128)
    return found, [json.loads(line) for line in path.read_text().splitlines()]


def as_set(lines: list[Any]) -> Counter[str]:
    return Counter(map(json.dumps, lines))


def test_mining_with_a_worker_killed_is_the_local_search(
    pair: Models, on_ray: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels, searches and what they cost; every line of the journal once."""
    here, lines = mined(pair, tmp_path / "local.jsonl")
    on_ray()
    monkeypatch.setattr(mining, "SHARD", 3)
    monkeypatch.setattr(mapping, "TURNS", 1)
    there, others = mined(pair, tmp_path / "ray.jsonl", died=str(tmp_path / "died"))
    assert (tmp_path / "died").exists()
    assert there.rows == here.rows
    assert there.costs().equals(here.costs()) and here.costs()["trials"].sum() > 10
    assert as_set(others) == as_set(lines)


def test_evaluation_is_the_local_one(
    on_ray: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy, sampled, and the draft alone, in shards of 2 questions; and the lines on the disk."""
    monkeypatch.setattr(evaluation, "SHARD", 2)
    strict = Cell("strict", 0.0, "sandbox-facts", "validation", 5, window=8)
    cells = [strict, replace(strict, temperature=0.7), replace(strict, rule="draft")]
    found, lines = [], []
    for name in ("local", "ray"):
        if name == "ray":
            on_ray()
        frame = evaluate(PAIR, cells, folder=tmp_path / name, workers=1, progress=False)
        (path,) = (tmp_path / name).glob("*.jsonl")
        found.append(frame.to_csv(index=False))
        lines.append(sorted(path.read_text().splitlines()))
    assert found[0] == found[1] and len(lines[0]) == 9
    assert lines[0] == lines[1]


def test_features_are_the_local_ones_to_the_last_bit(
    pair: Models, on_ray: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "TOKENS_A_PASS", 1000)
    rows = load_labels(LABELS)[:20]

    def read() -> Examples:
        return extract(rows, *pair, spots=["post_norm", "layer_2"], of="both")

    here = read()
    on_ray()
    there = read()
    assert all(torch.equal(here.hidden[spot], there.hidden[spot]) for spot in here.hidden)
    assert (here.matches == there.matches).all() and len(here) > 50


def test_plain_answers_are_the_local_ones(pair: Models, on_ray: Callable[[], None]) -> None:
    asked = load_task("sandbox-facts").questions("test", 9)
    here = answering.greedy_texts(pair[1], asked, rows=4)
    on_ray()
    assert answering.greedy_texts(pair[1], asked, rows=4) == here


def test_it_is_the_cluster_of_the_other_process(on_ray: Callable[[], None], address: str) -> None:
    import ray

    assert ray.get_runtime_context().gcs_address == address
    assert ray.cluster_resources()["CPU"] == 2
