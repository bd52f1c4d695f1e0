"""A judge for a pair of one's own, from two models and a task to a line for the server.

    from judgelib.recipe import make_judge
    print(make_judge("data/sandbox/target", "data/sandbox/draft", "sandbox-math"))

The protocol is that of notebooks 02 to 04. Training questions give the labels (AutoJudge's search,
arXiv 2504.20039) and choose the head's strength on a part held out of them; validation questions
certify a threshold, and do nothing else (Learn-then-Test, 2110.01052); test questions are answered
once, with what was certified. Whatever takes long is on the disk as soon as it is done, so that the
same call goes on where a killed one was.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from judgelib import features, frontier, mining, pairing, recipe_report, rulebook, training
from judgelib.answer_log import AnswerLog
from judgelib.estimates import Estimate, estimate, quotient
from judgelib.evaluation import DRAFT
from judgelib.head import CONFIG, JudgeHead
from judgelib.head_config import public_name
from judgelib.head_study import CANDIDATES, with_certificate
from judgelib.labels import Labelled, save_labels, summary
from judgelib.models import LanguageModel, load_pair
from judgelib.provenance import provenance
from judgelib.results import sha256, to_csv, to_json, write_files
from judgelib.rulebook import FLOOR, FLOORED, JUDGE, STRICT
from judgelib.steps import code_fingerprint
from judgelib.tasks.base import Question, Task, load_task
from judgelib.thresholds import Certificate, certify, prompts_needed

QUESTIONS = {"train": 150, "validation": 200, "test": 300}
"""How many of each split, unless the user says otherwise."""

HELD_OUT = 0.2
"""Of the training questions: on these the head's strength is chosen."""

NAME = "mined"
RIVAL = "ratio"
"""The rule without training that is certified beside the judge: one should beat it."""

RESAMPLES = 2000
EXIT_REFUSED, EXIT_INTERRUPTED = 2, 130


@dataclass(frozen=True)
class Wishes:
    """What the user asked for; see `make_judge`."""

    target: str
    draft: str
    task: str
    questions: Mapping[str, int]
    alpha: float
    confidence: float
    seed: int
    floor: float | None
    window: int
    max_new_tokens: int
    dtype: str
    device: str
    slots: int

    @property
    def rule(self) -> str:
        """The judge's rule by name."""
        return f"{FLOORED if self.floor else JUDGE}{NAME}"


@dataclass(frozen=True)
class JudgeReport:
    """What came out.

    Attributes:
        folder: holds head/, report.md, labels.parquet, the tables and manifest.json.
        head: at the certified threshold; at threshold 1 (strict) if there is none.
        certificate: of the judge; rival: of the one-line rule.
        labels: the table `labels_summary` of the training questions.
        sweep: strengths C and their AUC.
        points: `frontier.points` of the test questions.
        over_rival: draft tokens that the judge keeps per target call, times the one-line rule's.
        serve: the line that serves target, draft and judge, without a judge if none is certified.
    """

    wishes: Wishes
    folder: Path
    head: JudgeHead
    certificate: Certificate
    rival: Certificate
    labels: pd.DataFrame
    sweep: pd.DataFrame
    points: pd.DataFrame
    over_rival: Estimate
    serve: str

    @property
    def certified(self) -> bool:
        """Whether a threshold was certified, without which the judge is not recommended."""
        return self.certificate.certified

    def __str__(self) -> str:
        return recipe_report.verdict(self) + f"\nReport: {self.folder / 'report.md'}"


class Splits(NamedTuple):
    """Three sets of questions, none of which is in two."""

    train: list[Question]
    validation: list[Question]
    test: list[Question]


def make_judge(
    target: str | Path,
    draft: str | Path,
    task: str | Task,
    *,
    questions: Mapping[str, int] | None = None,
    alpha: float = 0.05,
    confidence: float = 0.95,
    seed: int = 0,
    folder: str | Path | None = None,
    floor: bool = True,
    window: int = 16,
    max_new_tokens: int = 256,
    dtype: str | None = None,
    device: str = "cpu",
    slots: int = 32,
    progress: bool = True,
) -> JudgeReport:
    """Make a judge for a pair of models and say what it is worth.

    Args:
        target, draft: folders or hub ids; one tokenizer, the target with a chat template.
        task: a name of `tasks.load_task`, "module:attribute", a .jsonl file of questions (see
            `tasks.own`), or a task itself.
        questions: split -> how many; what is left out is taken from `QUESTIONS`.
        alpha: the tolerated share of prompts that lose a right answer.
        confidence: with which no more do.
        folder: for everything that is written; None: judges/<target>--<task>.
        floor: the judge may not keep tokens that the target finds all but impossible
            (`rulebook.FLOOR`). The certificate then holds with the floor only.
        window: tokens drafted a cycle, in every measurement and in the line for the server.
        max_new_tokens: the longest answer.
        dtype: None: float32 on a CPU, as stored elsewhere.
        slots: questions decoded side by side.
        progress: say what is being done, and show bars.

    Raises:
        ValueError: before anything is computed: models that do not fit together or into memory, an
            unknown task, too few questions for it or for `alpha`, one question in two splits.
            Later: a target that gets no training question right, or labels of one kind only.
    """
    made = _Making(target, draft, task, questions or {}, folder, progress, alpha=alpha,
                   confidence=confidence, seed=seed, floor=FLOOR if floor else None, window=window,
                   max_new_tokens=max_new_tokens, device=device, slots=slots,
                   dtype=dtype or ("float32" if device == "cpu" else "auto"))  # fmt: skip
    return made.report()


class _Making:
    """One run: what was asked, where it is written, and the steps one by one."""

    STEPS = ("check", "sample", "mine", "train", "certify", "evaluate", "write")

    def __init__(
        self,
        target: str | Path,
        draft: str | Path,
        task: str | Task,
        questions: Mapping[str, int],
        folder: str | Path | None,
        progress: bool,
        **options: Any,
    ) -> None:
        self.started, self.progress, self.seconds = time.time(), progress, dict[str, float]()
        self.task = load_task(task) if isinstance(task, str) else task
        named = task if isinstance(task, str) else self.task.name
        sizes = _sizes(questions)
        self.wishes = Wishes(str(target), str(draft), named, sizes, **options)
        _check_wishes(self.wishes)
        self.splits = drawn(self.task, sizes, self.wishes.seed)
        name = f"{public_name(str(target)).replace('/', '-')}--{self.task.name}"
        self.folder = Path(folder) if folder is not None else Path("judges") / name
        _check_folder(self.folder)

    def report(self) -> JudgeReport:
        """All steps, in order."""
        target, draft = self._step("check", self._check)
        self._step("sample", partial(self._sample, target, draft))
        rows = self._step("mine", partial(self._mine, target, draft))
        fit = self._step("train", partial(self._train, target, draft, rows))
        log = self._log(target, draft, fit.head)
        certificate, rival = self._step("certify", partial(self._certify, log))
        points, over = self._step("evaluate", partial(self._evaluate, log, certificate, rival))
        head = self._finished(fit.head, certificate)
        serve = recipe_report.serve(self.wishes, self.folder / "head", certificate)
        made = JudgeReport(self.wishes, self.folder, head, certificate, rival, summary(rows),
                           fit.sweep, points, over, serve)  # fmt: skip
        self._step("write", partial(self._write, made, rows))
        return made

    def _step(self, name: str, work: Callable[[], Any]) -> Any:
        self._say(f"[{self.STEPS.index(name) + 1}/{len(self.STEPS)}] {_DOING[name]}")
        started = time.time()
        found = work()
        self.seconds[name] = round(time.time() - started, 1)
        return found

    def _say(self, text: str) -> None:
        if self.progress:
            print(text, flush=True)

    def _check(self) -> tuple[LanguageModel, LanguageModel]:
        wishes = self.wishes
        fit = pairing.check(wishes.target, wishes.draft, dtype=wishes.dtype, device=wishes.device)
        for line in (f"target {fit.target}", f"draft {fit.draft}", *fit.notes):
            self._say(f"  {line}")
        pair = load_pair(wishes.target, wishes.draft, dtype=wishes.dtype, device=wishes.device)
        self.work = self.folder / "work" / self._key(*pair)
        return pair

    def _key(self, *pair: LanguageModel) -> str:
        """Changes with whatever decides labels: what is kept under another key is not used."""
        wishes = self.wishes
        parts = [
            *(model.fingerprint for model in pair), wishes.dtype, wishes.max_new_tokens,
            wishes.seed, self.task.name, _source(self.task), code_fingerprint(),
            [(question.id, question.messages) for question in self.splits.train],
        ]  # fmt: skip
        return sha256(repr(parts).encode())[:12]

    def _sample(self, target: LanguageModel, draft: LanguageModel) -> None:
        asked = self.splits.train
        ids = mining.answer(target, draft, self.task, asked, self._journal, **self._how)
        texts = [target.tokenizer.decode(row, skip_special_tokens=True) for row in ids]
        right = sum(self.task.score(asked, texts))
        long = sum(len(row) >= self.wishes.max_new_tokens for row in ids)
        self._say(f"  the target gets {right} of {len(asked)} right; {long} answers were cut off")
        if not right:
            raise ValueError(
                f"the target answers none of the {len(asked)} training questions rightly ({long} "
                f"answers were cut off after {self.wishes.max_new_tokens} tokens), so that there "
                f"is nothing to lose; its first answer ends {texts[0][-80:]!r}: look at the task's "
                "prompt and final answer, or raise max_new_tokens"
            )

    def _mine(self, target: LanguageModel, draft: LanguageModel) -> list[Labelled]:
        asked = self.splits.train
        rows = mining.mine(target, draft, self.task, asked, self._journal, **self._how).rows
        for line in summary(rows).to_dict("records"):
            self._say(f"  {line['mismatches']} differences, {line['important']} of them important")
        return rows

    @property
    def _journal(self) -> Path:
        return self.work / "mining.jsonl"

    @property
    def _how(self) -> dict[str, Any]:
        wishes = self.wishes
        return {"slots": wishes.slots, "max_new_tokens": wishes.max_new_tokens,
                "progress": self.progress}  # fmt: skip

    def _train(
        self, target: LanguageModel, draft: LanguageModel, rows: list[Labelled]
    ) -> training.Fit:
        head, sweep = self.work / "head", self.work / "sweep.csv"
        if not (head / CONFIG).is_file():  # which is written last
            fit = _fitted(target, draft, rows, self.wishes.seed)
            write_files({sweep: to_csv(fit.sweep)})
            fit.head.save_pretrained(head)
        made = training.Fit(JudgeHead.from_pretrained(head), pd.read_csv(sweep))
        best = made.sweep[made.sweep["chosen"]].iloc[0]
        self._say(f"  C = {best['C']:g}, AUC {best['auc_validation']:.3f} on held-out questions")
        return made

    def _log(self, target: LanguageModel, draft: LanguageModel, head: JudgeHead) -> AnswerLog:
        wishes = self.wishes
        name = f"answers_{head.fingerprint[:8]}_{wishes.window}.jsonl"
        return AnswerLog(self.work / name, target, draft, self.task, {NAME: head},
                         window=wishes.window, **self._how)  # fmt: skip

    def _certify(self, log: AnswerLog) -> tuple[Certificate, Certificate]:
        asked, wishes = self.splits.validation, self.wishes
        found = []
        for rule, settings in self._candidates.items():
            losses = partial(_losses, log, rule, asked)
            found.append(
                certify(losses, settings, alpha=wishes.alpha, confidence=wishes.confidence)
            )
            self._say(f"  {recipe_report.outcome(rule, found[-1])}")
        return found[0], found[1]

    @property
    def _candidates(self) -> dict[str, Sequence[float]]:
        return {self.wishes.rule: CANDIDATES, RIVAL: rulebook.settings(RIVAL)}

    def _evaluate(
        self, log: AnswerLog, certificate: Certificate, rival: Certificate
    ) -> tuple[pd.DataFrame, Estimate]:
        """Where nothing was certified the strictest setting that was tried, as a warning."""
        judge = (self.wishes.rule, certificate.decisive.threshold)
        tried = [(STRICT, 0.0), (DRAFT, 0.0), judge, (RIVAL, rival.decisive.threshold)]
        answers = [log.answers(*point, self.splits.test) for point in tried]
        boot = {"resamples": RESAMPLES, "seed": self.wishes.seed}
        points = frontier.points(pd.concat(answers), **boot)
        columns = [answers[n][name].to_numpy(float) for n in (2, 3) for name in _KEPT]
        together = points[points["domain"] == "all"].drop(columns="domain")
        return together.reset_index(drop=True), estimate(quotient, columns, **boot)

    def _finished(self, head: JudgeHead, certificate: Certificate) -> JudgeHead:
        """The head as it is handed out: what it was certified with is a part of it."""
        wishes = self.wishes
        made = with_certificate(head, certificate)
        floor = "without a floor" if wishes.floor is None else f"with floor {wishes.floor:g}"
        words = f"{made.config.threshold_choice}; {floor}, window {wishes.window}"
        facts = {"task": self.task.name, "floor": wishes.floor, "window": wishes.window}
        config = replace(made.config, training={**made.config.training, **facts})
        made.config = replace(config, threshold_choice=words)
        return made

    def _write(self, made: JudgeReport, rows: list[Labelled]) -> None:
        save_labels(rows, self.folder / "labels.parquet")
        made.head.save_pretrained(self.folder / "head")
        tables = {
            "labels.csv": made.labels,
            "sweep.csv": made.sweep,
            "certificate.csv": made.certificate.table(),
            "test.csv": made.points,
        }
        about = {**asdict(self.wishes), "seconds": self.seconds, **provenance(self.started)}
        files = {name: to_csv(frame) for name, frame in tables.items()}
        files["report.md"] = recipe_report.markdown(made, about).encode()
        hashes = {name: sha256(payload) for name, payload in files.items()}
        manifest = {**about, "certified": made.certified, "serve": made.serve, "files": hashes}
        files["manifest.json"] = to_json(manifest)
        write_files({self.folder / name: payload for name, payload in files.items()})


_KEPT = ("accepted", "cycles")
_DOING = {
    "check": "check the pair, then load it",
    "sample": "sample the target's own answers to the training questions",
    "mine": "mine: try every difference between draft and target",
    "train": "train the head",
    "certify": "certify a threshold on the validation questions",
    "evaluate": "evaluate on the test questions",
    "write": "write head, card, report and manifest",
}


def drawn(task: Task, sizes: Mapping[str, int], seed: int) -> Splits:
    """The questions of all splits; ValueError if one of them is in two."""
    found = Splits(*(task.questions(split, sizes[split], seed=seed) for split in Splits._fields))
    seen: dict[str, str] = {}
    for split, questions in zip(Splits._fields, found, strict=True):
        for question in questions:
            other = seen.setdefault(json.dumps(question.messages), split)
            if other != split:
                raise ValueError(
                    f"question {question.id} of {task.name} is in {other} and in {split}: what is "
                    "reported must not have been trained on; mend the task's splits"
                )
    return found


def _losses(log: AnswerLog, rule: str, asked: Sequence[Question], setting: float) -> Any:
    return log.losses(rule, setting, asked)


def _fitted(
    target: LanguageModel, draft: LanguageModel, rows: list[Labelled], seed: int
) -> training.Fit:
    config = training.config_for(target, draft, "mined")
    try:
        examples = features.extract(rows, target)
        strengths = training.STRENGTHS
        return training.fit_mined(
            examples, config, strengths=strengths, held_out=HELD_OUT, seed=seed
        )
    except ValueError as error:
        counts = summary(rows)[["acceptable", "unacceptable"]].sum()
        raise ValueError(
            f"no head can be trained: {len(rows)} training questions gave {counts['acceptable']} "
            f"acceptable and {counts['unacceptable']} unacceptable tokens ({error}); ask more "
            "training questions, or take a task at which the draft is worse"
        ) from error


def _sizes(questions: Mapping[str, int]) -> dict[str, int]:
    unknown = sorted(set(questions).difference(QUESTIONS))
    sizes = {**QUESTIONS, **questions}
    few = [split for split, count in sizes.items() if not isinstance(count, int) or count < 2]
    if unknown or few:
        raise ValueError(
            f"questions are numbers of 2 or more for {', '.join(QUESTIONS)}, got {dict(questions)}"
        )
    return sizes


def _check_wishes(wishes: Wishes) -> None:
    needed = prompts_needed(wishes.alpha, wishes.confidence)  # refuses what is not between 0 and 1
    if needed is None or wishes.questions["validation"] < needed:
        raise ValueError(
            f"to certify that at most {wishes.alpha:.3g} of prompts lose, with confidence "
            f"{wishes.confidence:.3g}, takes at least {needed} validation questions even if none "
            f"does, got {wishes.questions['validation']}: ask more, or raise alpha"
        )
    for name in ("window", "max_new_tokens", "slots"):
        if getattr(wishes, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(wishes, name)}")


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"expected a folder to write to, got {folder}: {error}") from error


def _source(task: Task) -> str:
    """Fingerprint of a task's own code, as far as it can be read."""
    module = inspect.getmodule(type(task))
    try:
        return sha256(inspect.getsource(module).encode()) if module else ""
    except (OSError, TypeError):
        return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; refusals are one line, without a traceback."""
    parser = argparse.ArgumentParser(
        prog="python -m judgelib.recipe", description="Make a judge for a pair of your own."
    )
    parser.add_argument("--target", required=True, help="folder or hub id")
    parser.add_argument("--draft", required=True, help="a smaller model with the same tokenizer")
    parser.add_argument("--task", required=True,
                        help="a known name, module:attribute, or a .jsonl file")  # fmt: skip
    parser.add_argument("--output", help="folder to write to (judges/<target>--<task>)")
    for split, count in QUESTIONS.items():
        parser.add_argument(f"--{split}", type=int, default=count,
                            help=f"{split} questions ({count})")  # fmt: skip
    parser.add_argument("--alpha", type=float, default=0.05, help="tolerated share of lost answers")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-floor", action="store_true", help="judge without a floor")
    parser.add_argument("--window", type=int, default=16, help="tokens drafted a cycle")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="the longest answer")
    parser.add_argument("--dtype", help="float32 on a CPU, as stored elsewhere")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--slots", type=int, default=32, help="questions decoded side by side")
    options = parser.parse_args(arguments)
    try:
        print(_asked(options))
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return EXIT_REFUSED
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _asked(options: argparse.Namespace) -> JudgeReport:
    return make_judge(
        options.target, options.draft, options.task,
        questions={split: getattr(options, split) for split in QUESTIONS}, alpha=options.alpha,
        confidence=options.confidence, seed=options.seed, folder=options.output,
        floor=not options.no_floor, window=options.window, max_new_tokens=options.max_new_tokens,
        dtype=options.dtype, device=options.device, slots=options.slots,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
