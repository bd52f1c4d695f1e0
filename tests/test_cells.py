"""Evaluation in cells: rows by hand; nothing that is on the disk is decoded twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import counters
import pandas as pd
import pytest
import tiny
import toy

from judgelib import evaluation, mapping
from judgelib.decoding import autoregress
from judgelib.evaluation import COLUMNS, DRAFT, Bench, Cell, Pair, evaluate
from judgelib.head import JudgeHead
from judgelib.models import LanguageModel
from judgelib.provenance import checkout
from judgelib.tasks.base import prompt_ids

SANDBOX = checkout() / "data" / "sandbox"
STRICT = Cell("strict", 0.0, "low", "test", 4, window=4)
JUDGE = replace(STRICT, rule="judge_both", setting=0.5)
ALONE = replace(STRICT, rule=DRAFT)
TOP = replace(STRICT, rule="topk", setting=3.0)
CHANCE = replace(STRICT, rule="random", setting=0.3)


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> dict[str, toy.HasNot]:
    return counters.install(monkeypatch.setattr)


@pytest.fixture
def heads(tmp_path: Path) -> dict[str, Path]:
    """A judge that takes both of the draft's slips, 18 and 30."""
    return {"both": counters.head(18, 30).save_pretrained(tmp_path / "both")}


@pytest.fixture
def ran(tasks: dict[str, toy.HasNot], monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """The cells that are decoded from here on."""
    seen: list[Cell] = []
    run = Bench.run

    def spied(bench: Bench, cell: Cell) -> Any:
        seen.append(cell)
        return run(bench, cell)

    monkeypatch.setattr(Bench, "run", spied)
    return seen


def at_work(folder: Path, *cells: Cell, heads: Any = None, **options: Any) -> pd.DataFrame:
    options = {"workers": 1, "progress": False, **options}
    return evaluate(counters.PAIR, cells, heads, folder=folder, **options)


def journal(folder: Path) -> Path:
    """The only file of finished cells."""
    (found,) = folder.glob("cells_*.jsonl")
    return found


def counts(frame: pd.DataFrame) -> list[list[int]]:
    return frame[COLUMNS[1:]].to_numpy().tolist()


# --- what a row says -----------------------------------------------------------------------------


def test_strict_rows_by_hand(tasks: dict[str, toy.HasNot], tmp_path: Path) -> None:
    """Windows of 4; the added token behind the slash, what the target rejects in brackets:

    10     11 12 13 14 / 15,  (18) / 16,  17 18 19 20 / 21,  22 23 24 end
    3 13   14 (30) / 15,      (18) / 16,  17 18 19 20 / 21,  22 23 24 end
    20     21 22 23 24 / end
    29     30 31 (end) / 32,  33 (34) / end
    """
    frame = at_work(tmp_path, STRICT)
    assert frame.question.tolist() == [f"low-{number}" for number in range(4)]
    # correct, tokens, cycles, drafted, accepted, mismatches_accepted
    assert counts(frame) == [
        [1, 15, 4, 16, 12, 0],
        [1, 12, 4, 16, 9, 0],
        [1, 5, 1, 4, 4, 0],
        [0, 5, 2, 8, 3, 0],
    ]


def test_judged_rows_by_hand(
    tasks: dict[str, toy.HasNot], heads: dict[str, Path], tmp_path: Path
) -> None:
    """10     11 12 13 14 / 15,  18 19 20 21 / 22,  23 24 end
    3 13   14 30 31 (end) / 32,  33 (34) / end
    """
    frame = at_work(tmp_path, JUDGE, heads=heads)
    assert counts(frame) == [
        [1, 13, 3, 12, 11, 1],
        [0, 6, 2, 8, 4, 1],
        [1, 5, 1, 4, 4, 0],
        [0, 5, 2, 8, 3, 0],
    ]


@pytest.mark.parametrize(
    ("prefix", "second"),
    [
        (1, [0, 6, 2, 8, 4, 1]),  # 30 is the second token: accepted as without a prefix
        (2, [1, 10, 3, 12, 8, 1]),  # 14 (30) / 15,  18 19 20 21 / 22,  23 24 end
        (3, [1, 12, 4, 16, 9, 0]),  # nor 18, the third: as strict
    ],
)
def test_a_strict_prefix_by_hand(
    tasks: dict[str, toy.HasNot],
    heads: dict[str, Path],
    tmp_path: Path,
    prefix: int,
    second: list[int],
) -> None:
    frame = at_work(tmp_path, replace(JUDGE, prefix=prefix), heads=heads)
    assert counts(frame)[1] == second
    assert set(frame.prefix) == {prefix}


def test_the_draft_alone_by_hand(tasks: dict[str, toy.HasNot], tmp_path: Path) -> None:
    """11 12 13 14 30 31; 14 30 31; 21 22 23 24; 30 31. A pass is a cycle; nothing is drafted."""
    assert counts(at_work(tmp_path, ALONE)) == [
        [0, 6, 6, 0, 0, 0],
        [0, 3, 3, 0, 0, 0],
        [1, 4, 4, 0, 0, 0],
        [0, 2, 2, 0, 0, 0],
    ]


def test_strict_answers_are_the_target_s_own(tasks: dict[str, toy.HasNot], tmp_path: Path) -> None:
    tasks["low"].asked = asked = toy.questions([*tiny.prompts(6, seed=4), [26], [28], [24]])
    frame = at_work(tmp_path, replace(STRICT, count=9))
    target = counters.models()[0]
    plain = [autoregress(target, prompt_ids(target.tokenizer, one)).ids for one in asked]
    texts = [target.tokenizer.decode(ids, skip_special_tokens=True) for ids in plain]
    assert frame.tokens.tolist() == [len(ids) for ids in plain]
    assert frame.correct.tolist() == [int(right) for right in tasks["low"].score(asked, texts)]
    assert 0 < frame.correct.sum() < 9


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_counts_account_for_every_token(
    tasks: dict[str, toy.HasNot], heads: dict[str, Path], tmp_path: Path, temperature: float
) -> None:
    """Every cycle but a text's last adds one token of the target's own."""
    rules = [STRICT, JUDGE, TOP, CHANCE, replace(STRICT, rule="ensemble", setting=0.5)]
    cells = [replace(cell, temperature=temperature) for cell in rules]
    frame = at_work(tmp_path, *cells, heads=heads)
    added = frame.tokens - frame.accepted
    assert ((frame.cycles - 1 <= added) & (added <= frame.cycles)).all()
    assert (frame.mismatches_accepted <= frame.accepted).all()
    assert (frame.accepted <= frame.drafted).all()
    assert (frame.drafted <= frame.window * frame.cycles).all()
    lossy = frame[frame.rule != "strict"]
    assert (frame[frame.rule == "strict"].mismatches_accepted == 0).all()
    assert lossy.mismatches_accepted.sum() > 0
    assert set(frame.temperature) == {temperature}


def test_rows_come_in_the_order_of_the_cells(
    tasks: dict[str, toy.HasNot], heads: dict[str, Path], tmp_path: Path
) -> None:
    """However they were decoded; a cell that is asked for twice is there once."""
    few, other = replace(JUDGE, count=1), replace(STRICT, task="high", count=3, window=7)
    frame = at_work(tmp_path, few, STRICT, other, few, heads=heads)
    assert list(frame.columns) == [
        "rule", "setting", "window", "temperature", "prefix", "domain", *COLUMNS
    ]  # fmt: skip
    assert frame.rule.tolist() == ["judge_both"] + ["strict"] * 7
    assert frame.setting.tolist() == [0.5] + [0.0] * 7
    assert frame.window.tolist() == [4] * 5 + [7] * 3
    assert frame.domain.tolist() == ["low"] * 5 + ["high"] * 3
    assert frame.question.tolist()[4:] == ["low-3", "high-0", "high-1", "high-2"]
    assert frame.index.tolist() == list(range(8))


# --- the journal -----------------------------------------------------------------------------


def test_finished_cells_are_not_decoded_again(
    ran: list[Cell], heads: dict[str, Path], tmp_path: Path
) -> None:
    first = at_work(tmp_path, STRICT, JUDGE, heads=heads)
    assert ran == [STRICT, JUDGE]
    again = at_work(tmp_path, JUDGE, STRICT, heads=heads)
    assert len(ran) == 2
    pd.testing.assert_frame_equal(
        pd.concat([again[4:], again[:4]], ignore_index=True), first, check_exact=True
    )


def test_only_new_cells_are_decoded(ran: list[Cell], tmp_path: Path) -> None:
    """Every field of a cell makes it another one."""
    at_work(tmp_path, STRICT)
    others = [
        replace(STRICT, **{name: value})
        for name, value in {
            "rule": DRAFT, "setting": 1.0, "task": "high", "split": "validation", "count": 3,
            "seed": 1, "window": 5, "temperature": 0.5, "prefix": 2,
        }.items()
    ]  # fmt: skip
    at_work(tmp_path, STRICT, *others)
    assert sorted(map(str, ran[1:])) == sorted(map(str, others))


def test_a_torn_last_line_is_decoded_again(ran: list[Cell], tmp_path: Path) -> None:
    first = at_work(tmp_path, STRICT, TOP)
    path = journal(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    pd.testing.assert_frame_equal(at_work(tmp_path, STRICT, TOP), first)
    assert ran == [STRICT, TOP, TOP]
    assert path.with_name(f"{path.name}.torn").read_text().count("topk") == 1
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"window": 4', '"slots": 4'),  # a cell of another make
        ('"cycles"', '"passes"'),  # other columns
        ('"question": ["low-0", ', '"question": ['),  # an answer is missing
        ('"answers"', '"texts"'),
    ],
)
def test_a_foreign_line_is_named(ran: list[Cell], tmp_path: Path, old: str, new: str) -> None:
    at_work(tmp_path, STRICT)
    path = journal(tmp_path)
    line = path.read_text()
    assert old in line
    path.write_text(line.replace(old, new) + line)
    with pytest.raises(ValueError, match=r"cells_.*jsonl, line 1 is not a finished cell"):
        at_work(tmp_path, STRICT)
    assert len(ran) == 1


def test_other_models_heads_or_code_have_another_file(
    tasks: dict[str, toy.HasNot], heads: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def digest(pair: Pair = counters.PAIR, **own: JudgeHead) -> str:
        saved = {name: str(head.save_pretrained(tmp_path / name)) for name, head in own.items()}
        return Bench(pair, saved).digest

    plain, head = counters.head(18), counters.head(18, 30)
    other = JudgeHead(replace(plain.config, feature="pre_norm"))
    other.load_state_dict(plain.state_dict())
    digests = [
        digest(),
        digest(replace(counters.PAIR, draft="toy/other")),
        digest(replace(counters.PAIR, target="toy/other")),
        digest(replace(counters.PAIR, dtype="bfloat16")),
        digest(a=plain),
        digest(a=head),
        digest(b=plain),
        digest(a=other),
        digest(a=plain, b=plain),
    ]
    assert digest() == digests[0] and digest(b=plain, a=plain) == digests[-1]
    monkeypatch.setattr(evaluation, "code_fingerprint", lambda: "changed code")
    digests.append(digest())
    assert len(set(digests)) == len(digests)


def test_another_draft_answers_anew(ran: list[Cell], tmp_path: Path) -> None:
    ours = at_work(tmp_path, STRICT)
    pair = replace(counters.PAIR, draft="toy/other")
    theirs = evaluate(pair, [STRICT], folder=tmp_path, workers=1, progress=False)
    assert ran == [STRICT, STRICT] and len(list(tmp_path.glob("*.jsonl"))) == 2
    assert ours.correct.tolist() == theirs.correct.tolist()
    assert ours.cycles.sum() != theirs.cycles.sum()


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
import counters, test_cells
from pathlib import Path
from judgelib.evaluation import Bench
counters.install(setattr)
run = Bench.run
def slow(bench, cell):
    if cell == test_cells.TOP:
        print("at work", flush=True)
        time.sleep(600)
    return run(bench, cell)
Bench.run = slow
cells = test_cells.STRICT, test_cells.ALONE, test_cells.TOP, test_cells.CHANCE
test_cells.at_work(Path(sys.argv[2]), *cells)
"""


def test_a_killed_run_loses_the_cell_it_was_at(ran: list[Cell], tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path)]
    with subprocess.Popen(command, cwd=checkout(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    assert said == "at work\n" and process.returncode == -signal.SIGKILL
    cells = STRICT, ALONE, TOP, CHANCE
    resumed = at_work(tmp_path, *cells)
    assert ran == [TOP, CHANCE]
    pd.testing.assert_frame_equal(resumed, at_work(tmp_path / "anew", *cells))


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (replace(STRICT, rule="lucky"), "expected a rule of strict.*got 'lucky'"),
        (replace(STRICT, rule="judge_mine"), "expected a judge of the heads both, got 'mine'"),
        (replace(TOP, setting=2.5), "topk needs a whole number"),
        (replace(STRICT, prefix=-1), "StrictPrefix needs a length of at least 0"),
        (replace(STRICT, task="sandbox-art"), "expected a task of .*got 'sandbox-art'"),
        (replace(STRICT, task="sandbox-facts", split="dev"), "expected a split of .*got 'dev'"),
        (replace(ALONE, task="sandbox-facts", split="dev"), "expected a split of .*got 'dev'"),
    ],
)
def test_mistakes_are_refused_before_anything_is_decoded(
    ran: list[Cell], heads: dict[str, Path], tmp_path: Path, cell: Cell, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        at_work(tmp_path / "work", STRICT, cell, heads=heads)
    assert not ran and not (tmp_path / "work").exists()


def test_a_head_of_another_target_is_refused(
    ran: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tiny.language_model(hidden=16)
    monkeypatch.setattr(Pair, "load", lambda _: (small, small))
    heads = {"both": counters.head(18).save_pretrained(tmp_path / "head")}
    with pytest.raises(ValueError, match="was made for the target counting"):
        at_work(tmp_path, JUDGE, heads=heads)
    assert not ran


def test_no_cell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one cell"):
        at_work(tmp_path)


# --- seeds -----------------------------------------------------------------------------------


def test_same_seeds_give_the_same_bytes(
    tasks: dict[str, toy.HasNot], heads: dict[str, Path], tmp_path: Path
) -> None:
    warm = [replace(cell, temperature=1.5) for cell in (STRICT, JUDGE, CHANCE)]
    cells = [*warm, CHANCE]
    tables = [
        at_work(tmp_path / name, *asked, heads=heads).to_csv(index=False)
        for name, asked in {"a": cells, "b": cells}.items()
    ]
    assert tables[0] == tables[1]
    others = [replace(cell, seed=1) for cell in cells]
    assert at_work(tmp_path / "c", *others, heads=heads).to_csv(index=False) != tables[0]


# --- several processes -----------------------------------------------------------------------


def test_two_processes_make_the_same_table(tmp_path: Path) -> None:
    """With the shipped models, byte for byte."""
    pair = Pair(str(SANDBOX / "target"), str(SANDBOX / "draft"))
    strict = Cell("strict", 0.0, "sandbox-facts", "validation", 3, window=8)
    cells = [strict, replace(strict, count=2), replace(strict, temperature=0.7)]
    tables = [
        evaluate(pair, cells, folder=tmp_path / str(workers), workers=workers, progress=False)
        for workers in (1, 2)
    ]
    written = [table.to_csv(index=False) for table in tables]
    assert written[0] == written[1] and len(tables[0]) == 8
    lines = [journal(tmp_path / name).read_text().splitlines() for name in "12"]
    assert sorted(lines[0]) == sorted(lines[1])


class Threads(ThreadPoolExecutor):
    """The pool's interface without the seconds that processes take to start."""

    def __init__(self, count: int, _: object, begin: Any, models: Any) -> None:
        super().__init__(count, "worker", begin, models)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "ProcessPoolExecutor", Threads)
    monkeypatch.setattr(mapping, "_held", None)


def wait_for_a_line(folder: Path) -> None:
    """Until the first cell is on the disk."""
    end = time.monotonic() + 60
    while not journal(folder).stat().st_size:
        assert time.monotonic() < end, "no cell was kept while another one ran"
        time.sleep(0.01)


def test_cells_are_kept_as_they_end(
    threads: None, ran: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest begins first; a quick one is on the disk before it."""
    long, spied = replace(STRICT, task="high"), Bench.run

    def slow(bench: Bench, cell: Cell) -> Any:
        if cell == long:
            wait_for_a_line(tmp_path)
        return spied(bench, cell)

    monkeypatch.setattr(Bench, "run", slow)
    quick = replace(STRICT, count=1)
    frame = at_work(tmp_path, quick, long, workers=2)
    assert [("high" in line) for line in journal(tmp_path).read_text().splitlines()] == [
        False,
        True,
    ]
    assert frame.domain.tolist() == ["low"] + ["high"] * 4


def test_an_error_stops_the_others(
    threads: None, tasks: dict[str, toy.HasNot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells that nobody has begun are not begun; the finished ones are kept."""
    run, begun = Bench.run, []

    def failing(bench: Bench, cell: Cell) -> Any:
        begun.append(cell)
        if cell.seed == 1:
            wait_for_a_line(tmp_path)
            raise RuntimeError("out of memory")
        time.sleep(0.3 * (cell.seed > 1))
        return run(bench, cell)

    monkeypatch.setattr(Bench, "run", failing)
    cells = [replace(STRICT, count=1, seed=seed) for seed in range(40)]
    with pytest.raises(RuntimeError, match="out of memory"):
        at_work(tmp_path, *cells, workers=2)
    assert len(begun) < 20
    assert journal(tmp_path).read_text().count("\n") >= 1


@pytest.mark.parametrize(("device", "expected"), [("cpu", 3), ("cuda", 1)])
def test_one_process_a_core_or_one_a_gpu(
    tasks: dict[str, toy.HasNot], monkeypatch: pytest.MonkeyPatch, device: str, expected: int
) -> None:
    class Somewhere:
        type = device

    class Elsewhere(LanguageModel):
        def __init__(self) -> None:
            self.__dict__ = {**counters.models()[0].__dict__, "device": Somewhere()}

    monkeypatch.setattr(Pair, "load", lambda _: (Elsewhere(), counters.models()[1]))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5}, raising=False)
    assert evaluation._workers(Bench(counters.PAIR, {})) == expected
    monkeypatch.setenv("JUDGELIB_WORKERS", "2")
    assert evaluation._workers(Bench(counters.PAIR, {})) == 2
    monkeypatch.setenv("JUDGELIB_WORKERS", "many")
    with pytest.raises(ValueError, match="a number of processes, got 'many'"):
        evaluation._workers(Bench(counters.PAIR, {}))


def test_progress_is_shown_on_request(
    tasks: dict[str, toy.HasNot], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    at_work(tmp_path / "a", STRICT, TOP)
    assert capfd.readouterr() == ("", "")
    at_work(tmp_path / "b", STRICT, TOP, progress=True)
    assert "2/2" in capfd.readouterr().err
