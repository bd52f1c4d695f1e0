"""The measurement itself, on tiny models: complete, consistent, and ended by one JSON line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from judgelib import timing
from judgelib.engines import ASSISTED, COMPILED, EAGER, GENERATE, PLAIN, Kit, Loop, Made, Spec
from judgelib.evaluation import Pair
from judgelib.models import LanguageModel, load_model
from judgelib.provenance import checkout

PROMPTS = [[3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5, 4], [5, 6]]
STRICT = Spec(EAGER, draft_length=4)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """A pair on disk, with a context that is soon full."""
    folder = tmp_path_factory.mktemp("timing")
    target = tiny.language_model(context=48)
    for model, name in ((target, "target"), (tiny.disturbed(target), "draft")):
        model.model.save_pretrained(folder / name)
        model.tokenizer.save_pretrained(folder / name)
    return Kit(Pair(f"{folder}/target", f"{folder}/draft"), {}, tokens=20)


@pytest.fixture
def loop(kit: Kit) -> Loop:
    made = kit.build(STRICT)
    assert isinstance(made, Loop)
    return made


# --- rounds --------------------------------------------------------------------------------------


def test_table_of_rounds_is_complete(kit: Kit) -> None:
    specs = [
        Spec(GENERATE, PLAIN),
        Spec(EAGER, PLAIN),
        STRICT,
        Spec(EAGER, draft_length=4, batch=2),
    ]
    lines: list[str] = []
    engines = [kit.build(spec) for spec in specs]
    table = timing.rounds(engines, PROMPTS, repeats=2, progress=lines.append)
    found = ["round", "hardware", "prompts", "tokens", "cycles", "seconds", "bound_seconds"]
    assert set(table.columns) == {*timing.ROUND, *found}
    assert table["round"].tolist() == 4 * [1] + 4 * [2]  # the warm-up is left out
    for number, spec in enumerate(specs):
        rows = table.iloc[[number, number + 4]]
        assert rows[list(timing.ROUND)].to_numpy().tolist() == 2 * [
            [getattr(spec, name) for name in timing.ROUND]
        ]
    assert table["tokens"].nunique() == 1  # the same work
    assert (table["prompts"] == 3).all() and (table["seconds"] > 0).all()
    assert "CPU, 1 threads" in table["hardware"][0]
    bounded = table["bound_seconds"].notna().tolist()
    assert bounded == 2 * [False, False, True, False]
    assert (table["bound_seconds"].dropna() > 0).all()
    assert len(lines) == 3 and "round 0 of 2, warm-up: 4 engines" in lines[0]
    assert "warm-up" not in lines[1]


class Clockwork:
    """An engine whose time is made up."""

    def __init__(self, spec: Spec, tokens: int, cycles: int, seconds: list[float]) -> None:
        self.spec, self._seconds = spec, iter(seconds)
        self._made = Made(tokens, cycles, 0.0)

    def answer(self, prompts: Any) -> Made:
        return self._made._replace(seconds=next(self._seconds))

    def close(self) -> None:
        pass


def test_summary_compares_within_rounds() -> None:
    """The machine halves its speed in the second round; ratios do not notice."""
    plain = Clockwork(Spec(GENERATE, PLAIN), 100, 100, [9.0, 10.0, 20.0, 10.0])
    assisted = Clockwork(Spec(ASSISTED, draft_length=4), 100, 0, [9.0, 5.0, 10.0, 4.0])
    table = timing.rounds([plain, assisted], PROMPTS, repeats=3)
    table.loc[table["engine"] == ASSISTED, "bound_seconds"] = [4.0, 8.0, 4.0]
    found = timing.summary(table)
    assert found["engine"].tolist() == [GENERATE, ASSISTED]
    assert found["tokens_per_second"].tolist() == [10.0, 20.0]
    assert found["times_first"].tolist() == [1.0, 2.0]
    assert found["of_bound"].tolist() == pytest.approx([math.nan, 0.8], nan_ok=True)
    assert found["tokens_per_cycle"].tolist() == pytest.approx([1.0, math.nan], nan_ok=True)


def test_summary_tells_all_engines_apart() -> None:
    """Two that differ in one column only are two rows."""
    specs = [STRICT, Spec(EAGER, draft_length=5), Spec(EAGER, draft_length=5, batch=2)]
    rows = [
        {name: getattr(spec, name) for name in timing.ROUND}
        | {"round": 1, "tokens": 10, "cycles": 5, "seconds": 1.0, "bound_seconds": 0.5}
        for spec in specs
    ]
    found = timing.summary(pd.DataFrame(rows))
    assert len(found) == 3 and (found["tokens_per_cycle"] == 2.0).all()


def test_usual_engines_answer_the_same_window() -> None:
    specs = timing.usual(window=5, batch=3)
    assert len(set(specs)) == len(specs)
    assert {spec.engine for spec in specs} == {GENERATE, ASSISTED, EAGER, COMPILED}
    assert {spec.batch for spec in specs} == {1, 3}
    assert all(spec.draft_length == (0 if spec.rule == PLAIN else 5) for spec in specs)


# --- bound and phases ----------------------------------------------------------------------------


def test_bound_counts_every_pass(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draft passes, target passes, and the first of each text at its own price."""
    monkeypatch.setattr(timing, "passes", lambda *_: timing.Passes(1.0, 10.0, 100.0, 1000.0))
    loop.answer(PROMPTS)
    drafted = sum(text.drafted for text in loop.texts)
    cycles = sum(len(text.cycles) for text in loop.texts)
    expected = 3 * 1100 + (drafted - 3) + 10 * (cycles - 3)
    assert timing.bound_seconds(loop, PROMPTS) == expected


def test_passes_are_measured_on_a_short_context(loop: Loop) -> None:
    """The prompt nearly fills it, so that a window would end beyond it."""
    prompts = [[3 + n % 40 for n in range(46)]]
    loop.answer(prompts)
    assert all(seconds > 0 for seconds in timing.passes(loop, 46, 47, repeats=1))
    assert timing.bound_seconds(loop, prompts) > 0


def test_passes_end_where_learned_positions_do() -> None:
    config = GPT2Config(vocab_size=tiny.VOCABULARY, n_positions=24, n_embd=16, n_layer=1, n_head=2)
    model = LanguageModel(GPT2LMHeadModel(config).float(), tiny.tokenizer(), "gpt2")
    assert all(s > 0 for s in timing.pass_seconds(model, model, window=4, behind=23, repeats=1))
    assert timing.one_token_seconds([model], behind=24, repeats=1)[0] > 0


def test_large_models_take_longer_than_small_ones() -> None:
    small, large = tiny.language_model(), tiny.language_model(hidden=256, layers=4)
    fast, slow = timing.one_token_seconds([small, large], behind=20, repeats=5)
    assert slow > fast > 0
    fast, slow = timing.pass_seconds(large, small, window=2, behind=20, repeats=5)
    assert slow > fast > 0


def test_phases_share_all_the_time_and_leave_no_clock(loop: Loop) -> None:
    parts = loop.drafter, loop.target, loop.rule
    before = loop.answer(PROMPTS)._replace(seconds=0.0)
    texts = loop.texts
    found = timing.phases(loop, PROMPTS)
    assert tuple(found) == timing.PHASES
    assert sum(found.values()) == pytest.approx(1.0)
    assert all(0 < share < 1 for share in found.values())
    assert (loop.drafter, loop.target, loop.rule) == parts
    assert loop.texts == texts  # the clocks change no token
    assert loop.answer(PROMPTS)._replace(seconds=0.0) == before


def test_phases_leave_no_clock_after_an_error(loop: Loop) -> None:
    parts = loop.drafter, loop.target, loop.rule
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        timing.phases(loop, [[]])
    assert (loop.drafter, loop.target, loop.rule) == parts


# --- prompts and the command ---------------------------------------------------------------------


def test_prompts_take_turns_among_the_tasks() -> None:
    target = load_model(checkout() / "data" / "sandbox" / "draft")
    tasks = ("sandbox-math", "sandbox-code", "sandbox-facts")
    found = timing.prompts(target, tasks, "validation", 4)
    texts = [target.tokenizer.decode(prompt) for prompt in found]
    assert len(set(texts)) == 4
    assert "Write solve" in texts[1] and all(text.endswith("<|assistant|>") for text in texts)


def test_command_ends_with_one_json_line(
    kit: Kit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "prompts", lambda model, tasks, split, count: PROMPTS[:count])
    arguments = ["--target", kit.pair.target, "--draft", kit.pair.draft, "--eager"]
    arguments += ["--window", "4", "--tokens", "6", "--repeats", "1", "--batch", "2"]
    assert timing.main([*arguments, "--count", "2"]) == 0
    shown = capsys.readouterr()
    last = json.loads(shown.out.splitlines()[-1])
    assert last["window"] == 4 and last["torch"] == torch.__version__
    engines = [(row["engine"], row["rule"], row["batch"]) for row in last["engines"]]
    assert engines == [
        (spec.engine, spec.rule, spec.batch)
        for spec in timing.usual(4, 2)
        if spec.engine != COMPILED
    ]
    assert all(row["tokens_per_second"] > 0 for row in last["engines"])
    assert last["engines"][0]["times_first"] == 1.0
    assert "round 1 of 1" in shown.err


def test_missing_weights_are_named() -> None:
    with pytest.raises(ValueError, match="run `make sandbox-models`"):
        timing.main(["--target", "data/sandbox/nobody"])


def test_no_path_is_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="run `make sandbox-models`"):
        timing.main(["--eager"])
