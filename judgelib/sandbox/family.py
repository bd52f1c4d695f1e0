"""The trained family: where its models lie, how they answer, how often they are right."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from judgelib.sandbox import oracle
from judgelib.sandbox.problem import DOMAINS, Problem
from judgelib.sandbox.world import problems

MEMBERS = ("target", "target_no_corrections", "draft", "expert")
LONGEST_ANSWER = 200
"""In tokens; the longest right answer of the sandbox is about 150."""


@torch.inference_mode()
def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Problem],
    *,
    rows: int = 128,
) -> list[str]:
    """One greedy answer per question, many at once, in the order of the questions."""
    ids = greedy_ids(model, tokenizer, [q.prompt for q in questions], rows=rows)
    return [tokenizer.decode(answer, skip_special_tokens=True) for answer in ids]


def greedy_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    rows: int = 128,
) -> list[list[int]]:
    """Answer tokens of each prompt, end token included. Batches hold prompts of like length."""
    heads = [chat_ids(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(heads)), key=lambda i: len(heads[i]))
    answers: list[list[int]] = [[] for _ in heads]
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        for index, answer in zip(chosen, _generate(model, tokenizer, [heads[i] for i in chosen]), strict=True):
            answers[index] = answer
    return answers


def chat_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt in the chat template, ready for the assistant's turn."""
    messages = [{"role": "user", "content": prompt}]
    ids: list[int] = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    return ids


@torch.inference_mode()
def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, heads: list[list[int]]
) -> Iterable[list[int]]:
    width = max(map(len, heads))
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(head)) + head for head in heads], device=model.device)
    seen = torch.tensor([[0] * (width - len(h)) + [1] * len(h) for h in heads], device=model.device)
    output: Tensor = model.generate(
        ids, attention_mask=seen, do_sample=False, max_new_tokens=LONGEST_ANSWER
    )
    for row in output[:, width:].tolist():
        yield row[: row.index(end) + 1] if end in row else row


def family_table(home: Path, *, prompts: int, seed: int = 0) -> pd.DataFrame:
    """Right answers on test questions by model and domain: the table `family`."""
    from judgelib.models import load_model

    rows: list[dict[str, Any]] = []
    for name in MEMBERS:
        loaded = load_model(str(home / name))
        record = json.loads((home / name / "training.json").read_text())
        for domain in DOMAINS:
            questions = problems(domain, "test", prompts, seed=seed)
            replies = greedy_answers(loaded.model, loaded.tokenizer, questions)
            rows.append(
                {
                    "model": name,
                    "domain": domain,
                    "prompts": prompts,
                    "correct": sum(oracle.score(questions, replies)),
                    **{k: record[k] for k in ("parameters", "tokens_trained", "seconds_trained")},
                }
            )
    return pd.DataFrame(rows)


def model_card(name: str, record: dict[str, Any]) -> str:
    """The README of a model of the family, from its training record."""
    shape, text = record["shape"], record["text"]
    start = f"trained on from `{record['start']}`" if record["start"] else "trained from scratch"
    accuracy = "\n".join(f"| {d} | {a:.1%} |" for d, a in record["validation_accuracy"].items())
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# judgelib sandbox: {name}

A Llama of {shape["layers"]} layers x {shape["width"]} ({record["parameters"]:,} parameters),
{start} on generated problems (arithmetic in words, small Python functions, facts of a made-up
world). It knows nothing else. Made by `python -m judgelib.sandbox.training {name}`.

| what | value |
|---|---|
| voice | {text["voice"]["name"]} |
| share of solution parts with a mistake taken back | {text["corrections"]} |
| share of towns never read about | {text["unread"]} |
| steps (rows of each domain) | {record["steps"]} ({record["rows"]}) |
| tokens read, with those of its base | {record["tokens_trained"]:,} |
| seconds trained, with those of its base | {record["seconds_trained"]:,} |
| device | {record["device"]}, {record["threads"]} thread(s), torch {record["torch"]} |
| seed | {record["seed"]} |

Share of right greedy answers on {record["validation_prompts"]} validation questions a domain,
measured when the training ended (the table `family` measures on test questions):

| domain | right |
|---|---|
{accuracy}

The configuration is in `config.json`, the whole training record in `training.json`.
"""
