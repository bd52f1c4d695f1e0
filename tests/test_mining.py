"""The semi-greedy search: the naive one's labels, known labels, and journals that were killed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import toy
from naive_mining import Found, NaiveSearch, as_found, counted, naive, same

from judgelib.journal import JsonLines
from judgelib.labels import ACCEPTABLE, IGNORED, UNACCEPTABLE
from judgelib.mining import Mined, mine
from judgelib.models import LanguageModel, load_pair
from judgelib.tasks.base import Question, Task, load_task

HERE = Path(__file__).parent
SANDBOX = HERE.parent / "data" / "sandbox"
NEW = 12
Pair = tuple[LanguageModel, LanguageModel]


def searched(pair: Pair, task: Task, asked: list[Question], path: Path, **options: Any) -> Mined:
    return mine(*pair, task, asked, path, **{"max_new_tokens": NEW, "progress": False, **options})


@pytest.fixture(scope="module")
def pair() -> Pair:
    return toy.pair()


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    return toy.questions(tiny.prompts(20, seed=1))


@pytest.fixture(scope="module")
def truth(pair: Pair, asked: list[Question]) -> list[Found]:
    """What the naive search finds for `toy.Remainder`."""
    return naive(*pair, toy.Remainder(), asked, NEW)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mining" / "toy.jsonl"


# --- the labels --------------------------------------------------------------------------------


@pytest.mark.parametrize(("slots", "window"), [(1, 12), (3, 1), (32, 4)])
def test_labels_are_those_of_the_naive_search(
    pair: Pair, asked: list[Question], truth: list[Found], path: Path, slots: int, window: int
) -> None:
    mined = searched(pair, toy.Remainder(), asked, path, slots=slots, window=window)
    assert same(as_found(mined), truth)


def test_the_naive_search_met_every_case(truth: list[Found]) -> None:
    """Else the comparison would show little."""
    trials = [trial for found in truth for trial in found.trials]
    assert Counter(important for _, _, important in trials).keys() == {True, False}
    for important in (True, False):
        ended = [trial for trial in trials if trial[1] == tiny.EOS and trial[2] is important]
        last = [trial for trial in trials if trial[0] == NEW - 1 and trial[2] is important]
        assert ended and last  # the draft ends the answer; it writes the last token that may come
    assert {len(found.response) == NEW for found in truth} == {True, False}
    assert any(found.response[-1] == tiny.EOS for found in truth)
    assert any(len(found.trials) > 5 for found in truth)


def test_rows_hold_the_labels_in_the_order_of_the_questions(
    pair: Pair, asked: list[Question], truth: list[Found], path: Path
) -> None:
    rows = searched(pair, toy.Remainder(), asked, path).rows
    for row, question, found in zip(rows, asked, truth, strict=True):
        assert (row.question_id, row.domain) == (question.id, "toy")
        assert (row.source, row.author) == ("mined", "tiny-draft")
        assert row.prompt_ids == [int(word[1:]) for word in question.reference.split()]
        assert row.response_ids == found.response
        labels = {p: UNACCEPTABLE if bad else ACCEPTABLE for p, _, bad in found.trials}
        assert row.labels == [labels.get(p, IGNORED) for p in range(len(found.response))]
        judged = {place: token for place, token, _ in found.trials}
        assert row.judged_ids == [judged.get(p, t) for p, t in enumerate(found.response)]


def test_the_important_token_is_the_one_known_to_be(path: Path) -> None:
    """The target counts. The draft says 20 for 15, which is the answer; 30 for 18 and an end after
    31, which matter to nobody. Only the first is important, at its own place."""
    target, draft = toy.counting({}), toy.counting({14: 20, 17: 30, 31: tiny.EOS})
    mined = searched((target, draft), toy.Has(15), toy.questions([[10]]), path, max_new_tokens=12)
    row = mined.rows[0]
    assert row.response_ids == [11, 12, 13, 14, 15, 16, 17, 30, 31, tiny.EOS]
    assert row.judged_ids == [11, 12, 13, 14, 20, 16, 17, 30, 31, tiny.EOS]
    assert row.labels == [-1, -1, -1, -1, 0, -1, -1, 1, -1, 1]


def test_the_answer_compared_with_is_the_target_s_own_and_first(path: Path) -> None:
    """Not the last adopted one, not gold: a task whose every text is wrong makes nothing
    important."""
    target, draft = toy.counting({}), toy.counting({14: 20, 17: 30})
    mined = searched((target, draft), toy.Has(47), toy.questions([[10]]), path, max_new_tokens=10)
    assert [trial.important for trial in mined.searches[0].trials] == [False]
    assert mined.rows[0].response_ids == [11, 12, 13, 14, 20, 21, 22, 23, 24, 25]


def test_the_context_may_end_before_the_limit(path: Path) -> None:
    """Also when the draft would write another last token than the one that just fits."""
    pair = toy.pair(seed=0, spread=0.1, context=24)
    asked = toy.questions(tiny.prompts(6, seed=1))
    truth = naive(*pair, toy.Remainder(), asked, 40)
    lengths = [len(toy.numbers(question.reference)) for question in asked]
    ends = [n + found.trials[-1][0] for n, found in zip(lengths, truth, strict=True)]
    assert max(ends) == 23
    assert same(as_found(searched(pair, toy.Remainder(), asked, path, max_new_tokens=40)), truth)


def test_a_settled_answer_is_not_continued(pair: Pair, asked: list[Question], path: Path) -> None:
    """The same verdict on the first difference, shorter texts, fewer passes; the labels are those
    of the naive search that stops as early."""
    settled = searched(pair, toy.Settled(), asked, path)
    plain = searched(pair, toy.First(), asked, path.with_name("plain.jsonl"))
    assert same(as_found(settled), naive(*pair, toy.Settled(), asked, NEW))
    assert settled.costs()["passes"].sum() < 0.8 * plain.costs()["passes"].sum()
    firsts = [(s.trials[:1], p.trials[:1]) for s, p in zip(settled.searches, plain.searches,
                                                           strict=True)]  # fmt: skip
    pairs = [(s[0][:3], p[0][:3]) for s, p in firsts if s]
    assert len(pairs) > 10 and all(s == p for s, p in pairs)
    adopted = [t for s in settled.searches for t in s.trials if not t.important and t.continuation]
    assert any(len(t.continuation) < NEW - t.place - 1 and tiny.EOS not in t.continuation
               for t in adopted)  # fmt: skip


@pytest.mark.parametrize("domain", ["math", "code", "facts"])
def test_labels_of_the_sandbox_pair_are_those_of_the_naive_search(domain: str, path: Path) -> None:
    pair = load_pair(SANDBOX / "target", SANDBOX / "draft", dtype="float32")
    task = load_task(f"sandbox-{domain}")
    searches = [NaiveSearch(*pair, task, q, 160) for q in task.questions("train", 4)]
    search = min(searches, key=differences)  # the naive search of another may take minutes
    truth = search.run()
    assert truth.trials and truth.response[-1] in pair[0].eos_ids
    mined = searched(pair, task, [search.question], path, max_new_tokens=160)
    assert same(as_found(mined), [truth])
    assert mined.searches[0].passes < 0.5 * truth.passes


def differences(search: NaiveSearch) -> float:
    """Where the draft would differ from the target's own answer; answers without any come last."""
    response = search.continued([])
    search.passes = 0
    choices = search.choices(response)
    return sum(a != b for a, b in zip(response, choices, strict=True)) or float("inf")


# --- what it took ------------------------------------------------------------------------------


def test_costs_are_a_row_a_question(pair: Pair, asked: list[Question], path: Path) -> None:
    with counted(pair[0]) as calls:
        mined = searched(pair, toy.Remainder(), asked[:4], path, slots=1)
    costs = mined.costs()
    assert costs.columns.tolist() == ["question", "domain", "tokens", "trials", "passes"]
    assert costs["question"].tolist() == [question.id for question in asked[:4]]
    assert costs["tokens"].tolist() == [len(row.labels) for row in mined.rows]
    assert costs["trials"].tolist() == [len(row.places) for row in mined.rows]
    # Besides its cycles the target only catches up with a new text, at most once a text.
    assert costs["passes"].sum() <= len(calls) <= costs[["passes", "trials"]].sum().sum() + 4


def test_one_pass_reads_many_questions(pair: Pair, asked: list[Question], path: Path) -> None:
    with counted(pair[0]) as calls:
        mined = searched(pair, toy.Remainder(), asked, path, slots=8)
    assert max(calls) == 8
    passes, trials = mined.costs()["passes"].sum(), mined.costs()["trials"].sum()
    assert len(calls) < 0.4 * passes + trials + len(asked)


def test_the_search_is_quiet_when_asked_to_be(
    pair: Pair, asked: list[Question], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    searched(pair, toy.Remainder(), asked[:2], path)
    assert capsys.readouterr() == ("", "")


def test_the_bar_counts_questions_and_those_of_before(
    pair: Pair, asked: list[Question], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    searched(pair, toy.Remainder(), asked[:2], path)
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    searched(pair, toy.Remainder(), asked[:3], path, progress=True)
    last = shown.getvalue().split("\r")[-1]
    assert "mining toy: 100%" in last and "3/3" in last
    assert "2/3" in shown.getvalue() and "1/3" not in shown.getvalue()


# --- the journal -------------------------------------------------------------------------------

KILLED = (1, 3, 6, 9, 20, 40)  # at which of its lines a search is killed
LIMIT, SLOTS, COUNT = 10, 3, 6


def small_search(path: Path) -> Mined:
    """What is killed below: 6 questions in 3 slots."""
    asked = toy.questions(tiny.prompts(COUNT, seed=1))
    return searched(toy.pair(), toy.Remainder(), asked, path, slots=SLOTS, max_new_tokens=LIMIT)


def die_at(number: int, half: bool) -> None:
    """Kill this process when it writes its line of that number: behind it, or in its midst."""
    lines = iter(range(1, sys.maxsize))
    real = JsonLines._write

    def write(self: JsonLines, line: bytes, sync: bool = True) -> None:
        last = next(lines) == number
        real(self, line[: len(line) // 2] if last and half else line, sync)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    JsonLines._write = write  # type: ignore[method-assign]


def killed_runs(folder: Path) -> None:
    """Searches in child processes, each killed at another moment."""
    torch.set_num_threads(1)
    small_search(folder / "whole.jsonl")
    for number in KILLED:
        for half in (False, True):
            path = folder / f"{'in' if half else 'behind'}-{number}.jsonl"
            child = os.fork()
            if not child:
                die_at(number, half)
                small_search(path)
                os._exit(0)  # never comes so far
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    from_outside(folder / "outside.jsonl", (folder / "whole.jsonl").stat().st_size // 2)


def from_outside(path: Path, size: int) -> None:
    """A search killed by another process, wherever it is when its journal has grown that long."""
    child = os.fork()
    if not child:
        small_search(path)
        os._exit(0)
    while not path.exists() or path.stat().st_size < size:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of journals whose searches were killed, and a whole one."""
    folder = tmp_path_factory.mktemp("killed")
    code = "import sys, pathlib, test_mining as t; t.killed_runs(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    subprocess.run(command, cwd=HERE.parent, env=environment, check=True, timeout=300)
    return folder


def entries(lines: list[bytes]) -> Counter[str]:
    """The lines without what depends on a slot's history: how many passes a text took."""
    records = [json.loads(line) for line in lines]
    return Counter(json.dumps({k: v for k, v in r.items() if k != "passes"}) for r in records)


@pytest.mark.parametrize(
    "name", [f"{way}-{number}" for number in KILLED for way in ("behind", "in")] + ["outside"]
)
def test_a_killed_search_goes_on_where_it_was(killed: Path, tmp_path: Path, name: str) -> None:
    path, whole = tmp_path / "journal.jsonl", (killed / "whole.jsonl").read_bytes()
    left = (killed / f"{name}.jsonl").read_bytes()
    path.write_bytes(left)
    mined = small_search(path)
    assert same(as_found(mined), as_found(small_search(killed / "whole.jsonl")))
    kept, lines = left.split(b"\n")[:-1], path.read_bytes().split(b"\n")[:-1]
    assert lines[: len(kept)] == kept  # no verdict lost
    assert entries(lines) == entries(whole.split(b"\n")[:-1])  # none twice, none more
    if name.startswith("in-"):
        assert path.with_name("journal.jsonl.torn").read_bytes() == left.split(b"\n")[-1] + b"\n"


def test_searches_were_killed_in_all_their_stages(killed: Path) -> None:
    """Among the settings, the answers, and the trials of several questions."""
    sizes = {n: (killed / f"behind-{n}.jsonl").read_bytes().count(b"\n") for n in KILLED}
    assert sizes == {number: number for number in KILLED}
    whole = (killed / "whole.jsonl").read_bytes()
    assert 0 < (killed / "outside.jsonl").stat().st_size < len(whole)
    lines = [json.loads(line) for line in whole.splitlines()]
    assert "response" in lines[2] and "token" in lines[8]
    assert any("done" in line for line in lines[:40]) and len(lines) > 41


def test_finished_questions_are_not_searched_again(
    pair: Pair, asked: list[Question], path: Path
) -> None:
    first = searched(pair, toy.Remainder(), asked[:3], path)
    before = path.read_bytes()
    with counted(pair[0]) as target, counted(pair[1]) as draft:
        again = searched(pair, toy.Remainder(), asked[:3], path)
    assert (target, draft) == ([], [])
    assert again == first and path.read_bytes() == before
    more = searched(pair, toy.Remainder(), asked[:4], path)
    assert more.rows[:3] == first.rows
    added = path.read_bytes().removeprefix(before).splitlines()
    assert {json.loads(line)["question"] for line in added} == {asked[3].id}


def test_verdicts_are_on_the_disk_before_the_next_trial(
    pair: Pair, asked: list[Question], path: Path
) -> None:
    """Whatever the task is asked about has all earlier verdicts behind it in the file."""
    seen: list[int] = []

    class Watching(toy.Remainder):
        def answers(self, questions: Any, texts: Any) -> Any:
            seen.append(path.read_bytes().count(b'"token"'))
            return super().answers(questions, texts)

    mined = searched(pair, Watching(), asked[:1], path, slots=1)
    assert seen == [0, *range(len(mined.searches[0].trials))] and len(seen) > 3


def pair_with(change: str) -> Pair:
    """The pair, a model of it under another name, or a target of the same name trained on."""
    target, draft = toy.pair(seed=4 if change == "weights" else 3)
    if change in ("target", "draft"):
        (target if change == "target" else draft).name = "tiny-other"
    return target, draft


@pytest.mark.parametrize("change", ["max_new_tokens", "task", "target", "draft", "weights"])
def test_a_journal_of_other_settings_is_refused(path: Path, change: str) -> None:
    task, asked = toy.Remainder(), toy.questions([[5, 6]])
    first = searched(toy.pair(), task, asked, path)
    before = path.read_bytes()
    task.name = "toy-other" if change == "task" else "toy"
    limit = NEW + (change == "max_new_tokens")
    with pytest.raises(ValueError, match=r"toy.jsonl was mined with .*choose another path"):
        searched(pair_with(change), task, asked, path, max_new_tokens=limit)
    assert path.read_bytes() == before
    assert searched(toy.pair(), toy.Remainder(), asked, path) == first  # it is not left locked


def test_other_slots_and_windows_are_no_other_settings(
    pair: Pair, asked: list[Question], truth: list[Found], path: Path
) -> None:
    searched(pair, toy.Remainder(), asked[:2], path, slots=1, window=3)
    mined = searched(pair, toy.Remainder(), asked[:5], path, slots=4, window=7)
    assert same(as_found(mined), truth[:5])


@pytest.mark.parametrize(
    "damage",
    [
        b"{]",
        b"",
        b"7",
        b'{"question": 3, "done": true}',
        b'{"question": "toy-0", "place": 1, "token": 5}',
        b'{"question": "toy-0"}',
    ],
)
def test_a_damaged_line_is_named(
    pair: Pair, asked: list[Question], truth: list[Found], path: Path, damage: bytes
) -> None:
    """And once it and all behind it are deleted, the search goes on."""
    searched(pair, toy.Remainder(), asked[:3], path)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:6], damage, *lines[7:]]))
    with pytest.raises(ValueError, match=r"toy.jsonl, line 7 is not .*delete it and all lines"):
        searched(pair, toy.Remainder(), asked[:3], path)
    path.write_bytes(b"\n".join([*lines[:6], b""]))
    assert same(as_found(searched(pair, toy.Remainder(), asked[:3], path)), truth[:3])


def test_trials_without_their_answer_are_refused(
    pair: Pair, asked: list[Question], path: Path
) -> None:
    searched(pair, toy.Remainder(), asked[:2], path)
    lines = path.read_bytes().split(b"\n")
    kept = [line for line in lines if not (b'"toy-0"' in line and b"response" in line)]
    path.write_bytes(b"\n".join(kept))
    with pytest.raises(ValueError, match="trials of question toy-0, but not its answer"):
        searched(pair, toy.Remainder(), asked[:2], path)


# --- refusals ----------------------------------------------------------------------------------


def test_no_questions_have_no_labels(pair: Pair, path: Path) -> None:
    mined = searched(pair, toy.Remainder(), [], path)
    assert (mined.rows, mined.searches) == ([], [])


def test_bad_requests_are_named(pair: Pair, asked: list[Question], path: Path) -> None:
    with pytest.raises(ValueError, match="slots must be at least 1"):
        searched(pair, toy.Remainder(), asked, path, slots=0)
    with pytest.raises(ValueError, match="two questions have the same id"):
        searched(pair, toy.Remainder(), [asked[0], asked[0]], path)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        searched(pair, toy.Remainder(), asked, path, max_new_tokens=0)
    long = toy.questions([[5] * 256])
    with pytest.raises(ValueError, match="has 256 tokens, but tiny has a context of 256"):
        searched(pair, toy.Remainder(), long, path.with_name("long.jsonl"))
    other = toy.with_template(tiny.language_model())
    other.tokenizer = tiny.tokenizer([f"v{number}" for number in range(3, 48)])
    with pytest.raises(ValueError, match="must share one vocabulary"):
        searched((pair[0], other), toy.Remainder(), asked, path)
