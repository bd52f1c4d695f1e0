"""The simulated run: cases worked out by hand, and a page that is what the simulation says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from judgelib import mining, scale
from judgelib.labels import ACCEPTABLE, IGNORED, UNACCEPTABLE, Labelled
from judgelib.provenance import checkout
from judgelib.scale import Costs, Plan, shard_passes, simulate

EQUAL = Costs(np.array([10]), np.array([3]), np.array([100]))
PLAN = Plan(workers=2, questions=8, largest=2, slots=2, pass_seconds=1.0, failures=0.0)


def test_slots_take_the_next_question_when_they_are_free() -> None:
    """Two slots: 3 | 1, then 1 behind the 1, then 5 behind that one: 7. One slot: the sum."""
    passes = np.array([3, 1, 1, 5, 4])
    assert shard_passes(passes, 4, 2).tolist() == [7, 4]
    assert shard_passes(passes, 5, 1).tolist() == [14]
    assert shard_passes(passes, 1, 2).tolist() == [3, 1, 1, 5, 4]


def test_equal_questions_fill_equal_workers() -> None:
    """4 shards of 10 s on 2 workers: 20 s, and nobody waits."""
    found = simulate(PLAN, EQUAL)
    assert (found.seconds, found.longest, found.deaths) == (20.0, 10.0, 0)
    assert found.empty == found.waiting == found.redone == 0.0
    assert found.size == 800
    # 24 lines; a shard sends its first result, its end, and a message every 4 ms between.
    assert PLAN.pause == 0.004
    assert found.driver == pytest.approx(24 * 20e-6 + 4 * (2 + 10 / 0.004) * 1e-3, abs=0.005)


def test_a_run_lasts_as_long_as_its_driver_writes() -> None:
    """24 lines of 5 s; the workers, done after 20 s, wait for the rest of the 120."""
    found = simulate(replace(PLAN, record_seconds=5.0, message_seconds=0.0), EQUAL)
    assert (found.seconds, found.driver) == (120.0, 120.0)
    assert found.waiting == pytest.approx(100 / 120)


def test_an_odd_shard_makes_one_worker_wait() -> None:
    """3 shards: one worker ends at 10 s and waits for 10 of the 2 x 20 s."""
    found = simulate(replace(PLAN, questions=6), EQUAL)
    assert (found.seconds, found.waiting) == (20.0, 0.25)


def test_unequal_questions_leave_slots_empty() -> None:
    """A question of 1 s beside one of 9 s: 10 of 18 slot seconds are used."""
    pair = Costs(np.array([1, 9]), np.array([3, 3]), np.array([1, 1]))
    assert shard_passes(pair.passes, 2, 2).tolist() == [9]
    plan = replace(PLAN, workers=1, questions=2000, largest=1000, slots=1000)
    assert simulate(plan, pair).empty == pytest.approx(1 - 5 / 9, abs=0.02)


def test_deaths_cost_a_restart_and_little_work() -> None:
    calm = replace(PLAN, questions=400, failures=0.0)
    rough = replace(calm, failures=3600 / 200)  # one in 200 s
    found = simulate(rough, EQUAL)
    assert found.deaths > 3
    assert found.seconds > simulate(calm, EQUAL).seconds
    assert 0 < found.redone < found.restarting < 1
    assert simulate(rough, EQUAL) == found != simulate(rough, EQUAL, seed=1)


@pytest.mark.parametrize("lacking", ["workers", "questions", "largest", "slots"])
def test_a_plan_without_something_is_refused(lacking: str) -> None:
    with pytest.raises(ValueError, match="at least one worker, question, shard and slot"):
        simulate(replace(PLAN, **{lacking: 0}), EQUAL)


def test_journal_lines_are_those_of_a_journal(tmp_path: Path) -> None:
    """They can be read as one, and say what was mined."""
    labels = [IGNORED, ACCEPTABLE, UNACCEPTABLE, IGNORED]
    row = Labelled("q", "toy", "mined", "draft", [1], [5, 6, 7, 2], [5, 6, 9, 2], labels)
    lines = scale.journal_lines(row)
    assert json.loads(lines[1])["continuation"] == [7, 2]
    assert json.loads(lines[2]) == {
        "question": "q", "place": 2, "token": 9, "important": True, "continuation": [], "passes": 1,
    }  # fmt: skip
    settings = mining.Settings("big", "small", "toy", 8)
    path = tmp_path / "journal.jsonl"
    with mining.Journal(path, settings) as journal:
        for line in lines:
            journal.keep(json.loads(line))
        assert len(journal.records["q"]) == len(lines) == 4
    assert [len(line) for line in path.read_text().splitlines()[1:]] == list(map(len, lines))


def test_the_page_is_up_to_date() -> None:
    """Where not: `make scale`."""
    page = (checkout() / scale.PAGE).read_text(encoding="utf-8")
    assert scale.filled(page, scale.EVIDENCE, scale.BLOCKS) == page
    assert all(f"<!-- report:{name} -->" in page for name in scale.BLOCKS)
