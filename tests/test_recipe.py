"""A judge for a pair of one's own: two models that count, a task about what they say.

The draft says 30 after 14, which changes the answer, and 18 after 15, which does not (`counters`).
So a good judge takes 18 and refuses 30.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import counters
import pytest
import tiny
import toy

from judgelib import Judge, Match, ModelDrafter, load_pair, pairing, recipe, speculate, training
from judgelib.answer_log import AnswerLog
from judgelib.evaluation import DRAFT
from judgelib.head import JudgeHead
from judgelib.integrations.vllm.config import JudgeConfig
from judgelib.labels import load_labels
from judgelib.mining import Journal
from judgelib.recipe import JudgeReport, main, make_judge
from judgelib.results import sha256
from judgelib.rulebook import FLOOR, STRICT
from judgelib.tasks.base import Question

SIZES = {"train": 10, "validation": 10, "test": 12}
ALPHA = 0.3  # takes 9 validation questions
PREFIXES = {"train": 3, "validation": 4, "test": 5}


class Low(toy.HasNot):
    """Without 30 in it an answer is right; every split has questions of its own."""

    name = domain = "low"

    def __init__(self) -> None:
        super().__init__(30)

    def questions(self, split: str, count: int, *, seed: int = 0) -> list[Question]:
        first = PREFIXES[split]
        asked = [[first, 3 + n % 40, 3 + n // 40, 10 + n % 4] for n in range(count)]
        return toy.questions(asked, domain=split)


class Picky(Low):
    """Skipping 16 leaves the final answer alone, which is all that mining sees, yet is wrong."""

    def score(self, questions: Sequence[Question], texts: Sequence[str]) -> list[bool]:
        return [16 in toy.numbers(text) for text in texts]


class Hopeless(Low):
    def score(self, questions: Sequence[Question], texts: Sequence[str]) -> list[bool]:
        return [False for _ in texts]


class Careless(Low):
    """No difference changes the answer."""

    def answer(self, text: str) -> Hashable:
        return "same"


class Leaky(Low):
    def questions(self, split: str, count: int, *, seed: int = 0) -> list[Question]:
        found = super().questions(split, count)
        return [*found[:-1], *super().questions("train", 1)] if split == "test" else found


@pytest.fixture(scope="module", autouse=True)
def quick() -> Any:
    """Few candidates, few resamples, one strength that separates the two tokens clearly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "CANDIDATES", (0.9, 0.5))
        patch.setattr(recipe, "RESAMPLES", 50)
        patch.setattr(training, "STRENGTHS", (100.0,))
        patch.setattr(recipe, "code_fingerprint", lambda: "code")
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of target and draft."""
    folder = tmp_path_factory.mktemp("models")
    return saved("toy/target", folder / "target"), saved("toy/draft", folder / "draft")


def saved(name: str, folder: Path) -> str:
    model = counters.model(name)
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return str(folder)


def made(models: tuple[str, str], folder: Path, task: Any = None, **options: Any) -> JudgeReport:
    """One run on these tiny models, quietly."""
    usual = {"questions": SIZES, "alpha": ALPHA, "floor": False, "window": 4, "progress": False}
    options = {**usual, "max_new_tokens": 40, **options}
    return make_judge(*models, task or Low(), folder=folder, **options)


@pytest.fixture(scope="module")
def whole(models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> JudgeReport:
    """A run that nothing disturbed."""
    return made(models, tmp_path_factory.mktemp("whole") / "out")


# --- what comes out ------------------------------------------------------------------------------


def test_the_judge_is_certified_and_keeps_more_at_no_loss(whole: JudgeReport) -> None:
    assert whole.certified and whole.certificate.threshold == 0.5
    assert [step.losses for step in whole.certificate.steps] == [0, 0]
    points = whole.points.set_index("rule")
    assert points.loc["judge_mined", "gain_low"] > 1
    assert points.loc["judge_mined", ["lost", "won", "prompts"]].tolist() == [0, 0, 12]
    assert points.loc[DRAFT, "right"] < points.loc[STRICT, "right"] == 1
    assert str(whole).startswith("Recommended: at threshold 0.5, at most 30.0% of prompts lose")


def test_the_one_line_rule_is_compared_on_the_same_questions(whole: JudgeReport) -> None:
    """The target finds 18 so unlikely that ratio keeps what strict verification keeps."""
    points = whole.points.set_index("rule")
    assert whole.rival.certified and points.loc["ratio", "gain"] == 1
    assert whole.over_rival.value == pytest.approx(points.loc["judge_mined", "gain"])
    assert "so the head keeps more" in str(whole)
    report = (whole.folder / "report.md").read_text()
    line = next(x for x in report.splitlines() if x.startswith("--additional-config"))
    config = JudgeConfig.of(json.loads(shlex.split(line)[1]))
    assert config == JudgeConfig(rule="ratio", setting=whole.rival.threshold)


def test_test_questions_that_contradict_the_certificate_are_heeded(whole: JudgeReport) -> None:
    points = whole.points.assign(lost=whole.points["prompts"])
    assert str(replace(whole, points=points)).startswith("Not recommended, as the test questions")


def test_the_saved_head_judges_as_it_should(whole: JudgeReport, models: tuple[str, str]) -> None:
    target, draft = load_pair(*models, dtype="float32")
    head = JudgeHead.from_pretrained(whole.folder / "head")
    head.check(target, draft)
    prompt = counters.task("low").asked[0]
    ids = target.tokenizer.apply_chat_template(prompt.messages, return_dict=False)
    answer = speculate(target, ModelDrafter(draft), Match() | Judge(head), ids, window=4)
    # 10: 11 12 13 14 / 15 by the target (the draft's 30 is behind it), 18 kept, 19 ... 24, end
    assert toy.numbers(target.tokenizer.decode(answer.ids, skip_special_tokens=True)) == [
        11, 12, 13, 14, 15, 18, 19, 20, 21, 22, 23, 24,
    ]  # fmt: skip
    assert head.threshold == 0.5 and "window 4" in head.config.threshold_choice
    assert head.config.training["task"] == "low"


def test_the_serve_line_is_what_the_plugin_reads(whole: JudgeReport, models: Any) -> None:
    words = shlex.split(whole.serve)
    assert words[1:4] == ["vllm", "serve", models[0]]
    options = dict(zip(words[4::2], words[5::2], strict=True))
    drafts = json.loads(options["--speculative-config"])
    assert drafts == {"method": "draft_model", "model": models[1], "num_speculative_tokens": 4}
    config = JudgeConfig.of(json.loads(options["--additional-config"]))
    assert config == JudgeConfig(head=str(whole.folder / "head"), threshold=0.5)
    report = (whole.folder / "report.md").read_text()
    assert whole.serve in report
    assert f"-m vllm.entrypoints.openai.api_server --model {models[0]} --dtype" in report


def test_the_manifest_belongs_to_what_lies_beside_it(whole: JudgeReport) -> None:
    manifest = json.loads((whole.folder / "manifest.json").read_bytes())
    for name, digest in manifest["files"].items():
        assert sha256((whole.folder / name).read_bytes()) == digest
    assert set(manifest["files"]) == {
        "labels.csv", "sweep.csv", "certificate.csv", "test.csv", "report.md",
    }  # fmt: skip
    assert manifest["questions"] == SIZES and manifest["certified"] is True
    assert list(manifest["seconds"]) == ["check", "sample", "mine", "train", "certify", "evaluate"]
    labels = load_labels(whole.folder / "labels.parquet")
    judged = {(row.judged_ids[place], row.labels[place]) for row in labels for place in row.places}
    assert judged == {(30, 0), (18, 1)}


def test_a_floor_is_part_of_the_judge_wherever_it_is_used(models: Any, tmp_path: Path) -> None:
    """The target finds 18 all but impossible, so that with a floor nothing is gained."""
    floored = made(models, tmp_path / "out", floor=True)
    assert floored.certified and floored.head.config.training["floor"] == FLOOR
    assert floored.points.set_index("rule").loc["floored_mined", "gain"] == 1
    assert str(floored).startswith("Certified, but of little use")
    assert json.loads(shlex.split(floored.serve)[-1])["judge"]["floor"] == FLOOR
    card = (tmp_path / "out" / "head" / "README.md").read_text()
    assert f"Match() | (Judge(head) & Ratio({FLOOR}))" in card
    assert f"floor={FLOOR}" in (tmp_path / "out" / "report.md").read_text()


def test_without_a_certificate_nothing_is_recommended(models: Any, tmp_path: Path) -> None:
    made_anyway = made(models, tmp_path / "out", Picky())
    assert not made_anyway.certified
    assert made_anyway.certificate.steps[0].losses == SIZES["validation"]
    assert made_anyway.points.set_index("rule").loc["judge_mined", "lost"] == SIZES["test"]
    assert "--additional-config" not in made_anyway.serve
    report = (tmp_path / "out" / "report.md").read_text()
    assert "Not recommended: no threshold could be certified" in report
    head = JudgeHead.from_pretrained(tmp_path / "out" / "head")
    assert head.threshold == 1 and head.config.threshold_choice.startswith("strict")


# --- what each split is for ----------------------------------------------------------------------


def test_no_question_serves_two_purposes(whole: JudgeReport) -> None:
    (mined,) = whole.folder.glob("work/*/mining.jsonl")
    trained = {json.loads(line).get("question", "train") for line in mined.read_text().splitlines()}
    assert {name.split("-")[0] for name in trained} == {"train"}
    (answers,) = whole.folder.glob("work/*/answers_*.jsonl")
    asked: dict[tuple[str, float], set[str]] = {}
    for line in answers.read_text().splitlines():
        row = json.loads(line)
        of = asked.setdefault((row["rule"], row["setting"]), set())
        of.add(row["question"].split("-")[0])
    assert asked.pop((STRICT, 0.0)) == asked.pop(("judge_mined", 0.5)) == {"validation", "test"}
    assert asked.pop((DRAFT, 0.0)) == {"test"}
    assert asked.pop(("judge_mined", 0.9)) == {"validation"}
    assert asked.pop(("ratio", whole.rival.threshold)) == {"validation", "test"}
    assert {rule for rule, _ in asked} == {"ratio"}
    assert set().union(*asked.values()) == {"validation"}


def test_a_question_in_two_splits_is_refused(models: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train-0 of low is in train and in test"):
        made(models, tmp_path, Leaky())


# --- killed and called again ---------------------------------------------------------------------


class Killed(BaseException):
    """As Ctrl-C: nothing in the package catches it."""


def dying(method: Callable[..., Any], after: int) -> Callable[..., Any]:
    """The method, which kills the run when it has been called so often."""
    calls = 0

    def called(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Killed
        return method(*arguments, **options)

    return called


def count(patch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """What a method is called with from here on."""
    seen: list[Any] = []
    method = getattr(owner, name)

    def called(*arguments: Any, **options: Any) -> Any:
        seen.append(arguments)
        return method(*arguments, **options)

    patch.setattr(owner, name, called)
    return seen


@pytest.mark.parametrize(
    ("owner", "name", "after", "trained", "decoded"),
    [
        (Journal, "write", 15, 1, 13),  # in the middle of mining
        (training, "fit_mined", 0, 1, 13),
        (AnswerLog, "losses", 1, 0, 11),  # strict and the first threshold are kept
        (recipe.frontier, "points", 0, 0, 0),  # all is answered
    ],
)
def test_a_killed_run_goes_on_where_it_was(
    whole: JudgeReport, models: Any, tmp_path: Path, owner: Any, name: str, after: int,
    trained: int, decoded: int,
) -> None:  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, dying(getattr(owner, name), after))
        with pytest.raises(Killed):
            made(models, tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    before = len(list(lines(tmp_path, "mining.jsonl")))
    with pytest.MonkeyPatch.context() as patch:
        fits = count(patch, training, "fit_mined")
        sets = count(patch, AnswerLog, "_decoded")
        again = made(models, tmp_path)
    assert (len(fits), len(sets)) == (trained, decoded)
    mined = list(lines(tmp_path, "mining.jsonl"))
    assert sorted(mined) == sorted(lines(whole.folder, "mining.jsonl")) and before <= len(mined)
    answers = list(lines(tmp_path, "answers_*.jsonl"))
    assert sorted(answers) == sorted(lines(whole.folder, "answers_*.jsonl"))
    assert again.head.fingerprint == whole.head.fingerprint
    assert again.points.equals(whole.points)


def lines(folder: Path, pattern: str) -> list[str]:
    return [
        line for path in folder.glob(f"work/*/{pattern}") for line in path.read_text().splitlines()
    ]


def test_a_finished_run_computes_nothing_again(whole: JudgeReport, models: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fits = count(patch, training, "fit_mined")
        decoded = count(patch, AnswerLog, "_decoded")
        trials = count(patch, Journal, "write")
        again = made(models, whole.folder)
    assert not fits and not decoded and not trials
    assert again.points.equals(whole.points)


def test_more_test_questions_ask_the_new_ones_only(models: Any, tmp_path: Path) -> None:
    made(models, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        decoded = count(patch, AnswerLog, "_decoded")
        made(models, tmp_path, questions={**SIZES, "test": 14})
    assert [len(arguments[3]) for arguments in decoded] == [2, 2, 2, 2]


def test_another_seed_begins_anew(models: Any, tmp_path: Path, whole: JudgeReport) -> None:
    made(models, tmp_path)
    made(models, tmp_path, seed=1)
    assert len(list(tmp_path.glob("work/*"))) == 2


# --- refusals ------------------------------------------------------------------------------------


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal must come before the models are loaded."""

    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("the models were loaded")

    monkeypatch.setattr(recipe, "load_pair", load)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"questions": {**SIZES, "validation": 8}}, "takes at least 9 validation questions"),
        ({"questions": {"dev": 3}}, "numbers of 2 or more for train, validation, test"),
        ({"questions": {"test": 1}}, "numbers of 2 or more"),
        ({"alpha": 0.0}, "alpha lies between 0 and 1"),
        ({"confidence": 1.0}, "confidence lies between 0 and 1"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"device": "gramophone"}, "expected a device such as cpu"),
        ({"dtype": "float33"}, "expected a dtype such as float32"),
        ({"task": "gsm9k"}, "expected a task of .*got 'gsm9k'"),
        ({"task": "nowhere:TASK"}, "cannot be imported"),
        ({"task": "nowhere.jsonl"}, "expected a .jsonl file of questions at nowhere.jsonl"),
        ({"models": ("./nowhere", "./nowhere")}, "expected config.json and .* in ./nowhere"),
    ],
)
def test_bad_wishes_are_refused_before_anything_is_loaded(
    models: Any, tmp_path: Path, unloaded: None, options: dict[str, Any], words: str
) -> None:
    own = {"models": models, "folder": tmp_path / "out", **options}
    with pytest.raises(ValueError, match=words):
        made(**own)


def test_a_draft_of_another_vocabulary_is_refused(
    models: Any, tmp_path: Path, unloaded: None
) -> None:
    other = tmp_path / "other"
    counters.model("toy/draft").model.save_pretrained(other)
    tiny.tokenizer(["a", "b"]).save_pretrained(other)
    with pytest.raises(ValueError, match="must share one vocabulary, but token .* has id"):
        made((models[0], str(other)), tmp_path / "out")


def test_a_target_without_chat_template_is_refused(
    models: Any, tmp_path: Path, unloaded: None
) -> None:
    plain = tmp_path / "plain"
    counters.model("toy/target").model.save_pretrained(plain)
    tiny.tokenizer().save_pretrained(plain)
    with pytest.raises(ValueError, match="has no chat template.*instruction-tuned"):
        made((str(plain), models[1]), tmp_path / "out")


def test_too_little_memory_is_said(
    models: Any, tmp_path: Path, unloaded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairing, "_free_memory", lambda: 1000.0)
    with pytest.raises(ValueError, match="take 0.0 GiB, but cpu has 0.0 GiB free"):
        made(models, tmp_path / "out")


def test_a_file_where_the_folder_should_be_is_refused(
    models: Any, tmp_path: Path, unloaded: None
) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="expected a folder to write to"):
        made(models, tmp_path / "out")


def test_a_target_that_knows_nothing_is_refused(models: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="answers none of the 10 training questions rightly"):
        made(models, tmp_path, Hopeless())


def test_labels_of_one_kind_only_are_refused_with_a_remedy(models: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gave \d+ acceptable and 0 unacceptable .* ask more"):
        made(models, tmp_path, Careless())


# --- the check of a pair -------------------------------------------------------------------------


def test_an_outline_says_what_the_loaded_model_has(models: Any) -> None:
    fit = pairing.check(*models, dtype="bfloat16")
    target = counters.model("toy/target")
    weights = sum(weight.numel() for weight in target.model.parameters())
    assert (fit.target.parameters, fit.target.weight_bytes) == (weights, 2 * weights)
    assert pairing.check(*models).target.weight_bytes == 4 * weights  # as stored
    assert (fit.target.layers, fit.target.hidden_size) == (target.layers, target.hidden_size)
    assert fit.notes == (
        "the target is only 1.0 times as large as the draft, so that drafting itself takes a good "
        "share of the time",
    )


# --- the command line ----------------------------------------------------------------------------


def test_the_command_line_reports_and_refuses(
    models: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(recipe, "load_task", lambda name: {"low": Low()}[name])
    command = ["--target", models[0], "--draft", models[1], "--task", "low", "--no-floor"]
    command += ["--output", str(tmp_path / "out"), "--window", "4", "--max-new-tokens", "40"]
    command += ["--train", "10", "--test", "12", "--alpha", str(ALPHA)]
    assert main([*command, "--validation", "5"]) == recipe.EXIT_REFUSED
    captured = capsys.readouterr()
    assert captured.err.startswith("python -m judgelib.recipe: to certify") and not captured.out
    assert main([*command, "--validation", "10"]) == 0
    shown = capsys.readouterr().out
    assert [line[:5] for line in shown.splitlines() if line[:1] == "["] == [
        f"[{n}/7]" for n in range(1, 8)
    ]
    assert "Recommended: at threshold 0.5" in shown and str(tmp_path / "out") in shown


def test_an_interrupted_command_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "make_judge", interrupted)
    code = main(["--target", "a", "--draft", "b", "--task", "c"])
    assert code == recipe.EXIT_INTERRUPTED
    assert "the same command goes on from here" in capsys.readouterr().err
