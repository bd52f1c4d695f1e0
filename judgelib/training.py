"""Training heads: a linear layer on hidden states, fitted to token labels.

* `fit_annotated` (Judge Decoding 2501.19309): class-weighted cross-entropy over all labelled
  tokens.
* `fit_mined` (AutoJudge 2504.20039): logistic regression on standardised features over mismatches,
  its strength C chosen by the AUC on held-out questions.

Both give the same `JudgeHead`, whose output is p(acceptable).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from judgelib.features import Examples
from judgelib.head import HeadConfig, JudgeHead, ModelRecord
from judgelib.labels import ACCEPTABLE, UNACCEPTABLE
from judgelib.models import LanguageModel
from judgelib.thresholds import rates

STRENGTHS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""AutoJudge's sweep of C."""
SPLITS_TRIED = 50


def config_for(
    target: LanguageModel, draft: LanguageModel, source: str, **settings: Any
) -> HeadConfig:
    """The config of a head for this pair; settings as in `HeadConfig`."""
    return HeadConfig(
        target=ModelRecord.of(target), draft=ModelRecord.of(draft), source=source, **settings
    )


def split_by_question(examples: Examples, held_out: float, seed: int) -> np.ndarray:
    """(N,) bool, True for the tokens of a `held_out` share of the questions.

    Raises:
        ValueError: a share outside (0, 1).
    """
    if not 0 < held_out < 1:
        raise ValueError(f"expected a share of questions between 0 and 1, got {held_out}")
    questions = np.unique(examples.questions)
    count = max(1, round(held_out * len(questions)))
    chosen = np.random.default_rng(seed).choice(questions, count, replace=False)
    return np.isin(examples.questions, chosen)


def fit_annotated(
    examples: Examples, config: HeadConfig, *, decay: float = 1e-3, steps: int = 60, seed: int = 0
) -> JudgeHead:
    """A head by class-weighted cross-entropy: both labels weigh the same in all.

    Args:
        examples: tokens with their hidden states at `config.feature`.
        config: `training` is filled in here.
        decay: weight of the squared weights in the loss.
        steps: of L-BFGS on all tokens at once (no batches, no order, no learning rate).
        seed: of an MLP's first weights; a linear head needs none.

    Raises:
        ValueError: only one of the two labels occurs.
    """
    _check_both(examples.labels)
    hidden = examples.hidden[config.feature]
    labels = torch.from_numpy(examples.labels).float()
    training = {**_facts(examples), "loss": "class-weighted cross-entropy", "decay": decay,
                "steps": steps, "seed": seed}  # fmt: skip
    mean, scale = _scaler(hidden)
    generator = torch.Generator().manual_seed(seed)
    made = replace(config, training={**config.training, **training})
    head = JudgeHead(made, mean=mean, scale=scale, generator=generator)
    _minimise(head, hidden, labels, decay, steps)
    return head


def _minimise(head: JudgeHead, hidden: Tensor, labels: Tensor, decay: float, steps: int) -> None:
    share = labels.mean()
    weights = torch.where(labels == ACCEPTABLE, 0.5 / share, 0.5 / (1 - share))
    standard = (hidden - head.mean) / head.scale  # once, not at every step
    matrices = [parameter for parameter in head.parameters() if parameter.dim() > 1]
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=steps, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = head.layers(standard).squeeze(-1)
        value = F.binary_cross_entropy_with_logits(logits, labels, weight=weights)
        value = value + decay * sum(matrix.square().sum() for matrix in matrices)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]


class Fit(NamedTuple):
    """A head and the sweep that chose it: columns C, auc_train, auc_validation, chosen."""

    head: JudgeHead
    sweep: pd.DataFrame


def fit_mined(
    examples: Examples,
    config: HeadConfig,
    *,
    strengths: Sequence[float] = STRENGTHS,
    held_out: float = 0.1,
    seed: int = 0,
) -> Fit:
    """A head by logistic regression; of the `strengths` the one with the best held-out AUC.

    Args:
        examples: mismatches with their hidden states at `config.feature`.
        held_out: share of the questions on which the strengths are compared.
        seed: of the split by question.

    Raises:
        ValueError: only one of the two labels occurs, here or in the held-out part.
    """
    apart = _split_with_both(examples, held_out, seed)
    hidden = examples.hidden[config.feature]
    mean, scale = _scaler(hidden[torch.from_numpy(~apart)])
    standard = ((hidden - mean) / scale).numpy()
    fits = [_logistic(standard, examples.labels, apart, strength) for strength in strengths]
    sweep = pd.DataFrame([row for _, row in fits])
    best = int(sweep["auc_validation"].to_numpy().argmax())
    training = {**_facts(examples), "loss": "logistic regression", "C": strengths[best],
                "held_out": held_out, "seed": seed}  # fmt: skip
    made = replace(config, training={**config.training, **training})
    model = fits[best][0]
    head = JudgeHead.from_linear(
        made, weight=torch.from_numpy(model.coef_[0]), bias=float(model.intercept_[0]),
        mean=mean, scale=scale,
    )  # fmt: skip
    return Fit(head, sweep.assign(chosen=sweep.index == best))


def _split_with_both(examples: Examples, held_out: float, seed: int) -> np.ndarray:
    """The first of some splits by question that leaves both labels on both sides: where one label
    is rare, a split may well not."""
    for number in range(SPLITS_TRIED):
        apart = split_by_question(examples, held_out, seed + number)
        if all(_has_both(part) for part in (examples.labels[~apart], examples.labels[apart])):
            return apart
    apart = split_by_question(examples, held_out, seed)
    for part in (examples.labels[~apart], examples.labels[apart]):
        _check_both(part)
    return apart


def trainable(examples: Examples) -> bool:
    """Whether there is enough to train a mined head on: both labels, in two questions or more
    each."""
    labels, questions = examples.labels, examples.questions
    return all(len(set(questions[labels == one])) > 1 for one in (ACCEPTABLE, UNACCEPTABLE))


def _logistic(
    standard: np.ndarray, labels: np.ndarray, apart: np.ndarray, strength: float
) -> tuple[LogisticRegression, dict[str, float]]:
    model = LogisticRegression(C=strength, max_iter=2000).fit(standard[~apart], labels[~apart])
    scores = model.decision_function(standard)
    return model, {
        "C": strength,
        "auc_train": float(roc_auc_score(labels[~apart], scores[~apart])),
        "auc_validation": float(roc_auc_score(labels[apart], scores[apart])),
    }


def probabilities(head: JudgeHead, examples: Examples) -> np.ndarray:
    """(N,) p(acceptable) of every example."""
    with torch.inference_mode():
        found: np.ndarray = head.probability(examples.hidden[head.config.feature]).numpy()
    return found


def measure(
    head: JudgeHead, examples: Examples, *, domain_train: str = "all", n_train: int
) -> pd.DataFrame:
    """Rows of the table `head_training`: the head on held-out tokens, by domain and on all."""
    scores = probabilities(head, examples)
    config = head.config
    rows = []
    for domain in [*sorted(set(examples.domains)), "all"]:
        chosen = (examples.domains == domain) | (domain == "all")
        labels = examples.labels[chosen]
        at = rates(scores[chosen], labels, config.threshold)
        rows.append(
            {
                "source": config.source,
                "feature": config.feature,
                "layer": config.layer or config.target.layers,
                "model": "logistic" if "C" in config.training else config.kind.split()[0].lower(),
                "domain_train": domain_train,
                "domain_eval": domain,
                "n_train": n_train,
                "n_eval": len(labels),
                "auc": auc(labels, scores[chosen]),
                "recall_unacceptable": at.recall_unacceptable,
                "accept_rate": at.accept_rate,
                "threshold": config.threshold,
            }
        )
    return pd.DataFrame(rows)


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve; NaN where only one label occurs."""
    return float(roc_auc_score(labels, scores)) if len(set(labels)) == 2 else float("nan")


def _scaler(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,); 1 where a feature never varies."""
    scale, mean = torch.std_mean(hidden, 0, correction=0)
    return mean, torch.where(scale > 1e-6, scale, torch.ones_like(scale))


def _facts(examples: Examples) -> dict[str, Any]:
    return {
        "questions": len(set(examples.questions)),
        "tokens": len(examples),
        "unacceptable": int((examples.labels == UNACCEPTABLE).sum()),
        "domains": sorted(set(examples.domains.tolist())),
        "torch": torch.__version__,
    }


def _has_both(labels: np.ndarray) -> bool:
    return set(labels.tolist()) == {ACCEPTABLE, UNACCEPTABLE}


def _check_both(labels: np.ndarray) -> None:
    if not _has_both(labels):
        raise ValueError(
            "expected acceptable (1) and unacceptable (0) tokens to learn from, got only "
            f"{sorted(set(labels.tolist()))}; label more questions"
        )
