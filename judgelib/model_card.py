"""The model card of a head: what it was made for and from, and how to use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from judgelib.head_config import HeadConfig
from judgelib.results import to_json

if TYPE_CHECKING:
    from judgelib.head import JudgeHead


def model_card(head: JudgeHead, name: str) -> str:
    """The README of a head: YAML front matter for the hub, then what a user has to know.

    Args:
        head: the head described.
        name: the hub id or folder that the example loads.
    """
    config = head.config
    return "\n".join(
        [
            _front_matter(config),
            f"# Judge head for {config.target.name}",
            "",
            "A judge for speculative decoding: it reads a hidden state and gives the probability "
            "that a drafted token is acceptable, so that a correct continuation is kept even where "
            "the target would have worded it differently "
            "([Judge Decoding](https://arxiv.org/abs/2501.19309), "
            "[AutoJudge](https://arxiv.org/abs/2504.20039)).",
            "",
            _facts(head),
            "",
            "## Use",
            "",
            _usage(config, name),
            "",
            "## Training",
            "",
            "```json",
            to_json(dict(config.training)).decode("utf-8").strip(),
            "```",
            "",
            "## Limits",
            "",
            "- Decoding with a judge is not lossless: the text is no longer the target's own.",
            "- It works with the models named above only; another target needs a head of its own.",
            "- Outside the domain of its training questions it may accept mistakes: measure there.",
            "- It tells mistakes from other wordings; it is no filter for safety or style.",
            "",
        ]
    )


def _front_matter(config: HeadConfig) -> str:
    import yaml

    entries: dict[str, Any] = {
        "library_name": "judgelib",
        "tags": ["judgelib", "judge-decoding", "speculative-decoding"],
    }
    if "/" in config.target.name:  # a hub id
        entries["base_model"] = config.target.name
    return f"---\n{yaml.safe_dump(entries, sort_keys=False)}---\n"


def _facts(head: JudgeHead) -> str:
    config = head.config
    facts = {
        "Target": config.target,
        "Draft": config.draft or "any",
        "Reads": config.reads,
        "Head": f"{config.kind}, {head.parameter_count:,} parameters, float32",
        "Labels": f"{config.source} (1 = acceptable)",
        "Threshold": f"{config.threshold:g}: {config.threshold_choice}",
    }
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _usage(config: HeadConfig, name: str) -> str:
    if not config.decodes:
        return (
            f"This head reads the {config.reads}, which a decoding loop does not have. It is for "
            f'studies on stored features: `JudgeHead.from_pretrained("{name}").probability(rows)`.'
        )
    target, name = _place(config.target.name), _place(name)
    # A threshold that was certified with a floor promises nothing without it.
    floor = config.training.get("floor")
    extra, judge = (", Ratio", f"(Judge(head) & Ratio({floor}))") if floor else ("", "Judge(head)")
    draft = _place(config.draft.name) if config.draft else "a smaller one with its tokenizer"
    return f"""```python
from judgelib import Judge, JudgeHead, Match, ModelDrafter{extra}, load_pair, speculate

target, draft = load_pair("{target}", "{draft}")
head = JudgeHead.from_pretrained("{name}")
prompt = target.tokenizer("...").input_ids
made = speculate(target, ModelDrafter(draft), Match() | {judge}, prompt, window=16)
print(target.tokenizer.decode(made.ids), made.accepted_per_cycle)
```"""


def _place(name: str) -> str:
    """A hub id, or a path for the reader to fill in: only its last component is recorded."""
    return name if "/" in name else f"path/to/{name}"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
