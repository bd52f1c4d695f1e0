"""Fitting heads: a planted direction is found, with 1 = acceptable, and measured on what was left
out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from judgelib.features import Examples
from judgelib.head import HeadConfig, JudgeHead, ModelRecord
from judgelib.models import LanguageModel
from judgelib.results import SCHEMAS, check_columns
from judgelib.thresholds import rates
from judgelib.training import (
    STRENGTHS,
    auc,
    config_for,
    fit_annotated,
    fit_mined,
    measure,
    probabilities,
    split_by_question,
)

WIDTH = 12
RECORD = ModelRecord("owner/big", "LlamaForCausalLM", WIDTH, 4)
CONFIG = HeadConfig(target=RECORD, source="annotated", feature="pre_norm", training={"run": 3})


def planted(
    count: int = 600, noise: float = 0.3, acceptable: float = 0.9, seed: int = 0
) -> Examples:
    """Tokens of 30 questions: features 2 (up) and 5 (down) say whether a token is acceptable, on a
    scale and an offset of their own; feature 7 never varies."""
    draws = np.random.default_rng(seed)
    labels = (draws.random(count) < acceptable).astype(int)
    hidden = draws.normal(size=(count, WIDTH))
    hidden[:, 2] = 40 * (labels + noise * hidden[:, 2]) + 100
    hidden[:, 5] = -0.02 * (labels + noise * hidden[:, 5])
    hidden[:, 7] = 5.0
    questions = np.array([f"q{number}" for number in draws.integers(0, 30, count)])
    return Examples(
        {"pre_norm": torch.from_numpy(hidden).float(), "post_norm": torch.zeros(count, WIDTH)},
        labels=labels,
        matches=np.zeros(count, dtype=bool),
        questions=questions,
        domains=np.where(questions < "q2", "math", "code"),
        rows=np.arange(count),
        places=np.zeros(count, dtype=int),
    )


def with_labels(examples: Examples, labels: np.ndarray) -> Examples:
    return Examples(**{**vars(examples), "labels": labels})


def of_nine_questions(labels: list[int]) -> Examples:
    """Ten tokens of each question, all of one label."""
    chosen = np.repeat(labels, 10)
    made = planted(len(chosen))
    questions = np.repeat([f"q{number}" for number in range(len(labels))], 10)
    return Examples(**{**vars(made), "labels": chosen, "questions": questions})


def direction(head: JudgeHead) -> Tensor:
    """The weights of a linear head on features as they are (not scaled)."""
    return head.layers[0].weight.detach()[0] / head.scale


# --- annotated -------------------------------------------------------------------------------


def test_annotated_labels_teach_the_planted_direction() -> None:
    head, unseen = fit_annotated(planted(), CONFIG), planted(seed=1)
    scores = probabilities(head, unseen)
    assert auc(unseen.labels, scores) > 0.995
    assert scores[unseen.labels == 1].mean() > 0.9 > 0.1 > scores[unseen.labels == 0].mean()
    weights = head.layers[0].weight.detach()[0]
    assert set(weights.abs().topk(2).indices.tolist()) == {2, 5}
    assert direction(head)[2] > 0 > direction(head)[5] and weights[7] == 0


def test_both_labels_weigh_the_same() -> None:
    """With nothing to tell them apart, a head that has seen 1 wrong token in 10 is undecided."""
    examples = planted()
    head = fit_annotated(examples, HeadConfig(target=RECORD, feature="post_norm"))
    np.testing.assert_allclose(probabilities(head, examples), 0.5, atol=1e-4)
    assert examples.labels.mean() > 0.85


def test_class_weighted_cross_entropy_is_at_its_minimum() -> None:
    """The gradient of the loss, written out once more, vanishes."""
    examples, decay = planted(noise=1.0), 1e-3
    head = fit_annotated(examples, CONFIG, decay=decay, steps=200)
    hidden, labels = examples.hidden["pre_norm"], torch.from_numpy(examples.labels).float()
    losses = -(
        labels * head(hidden).sigmoid().log() + (1 - labels) * (-head(hidden)).sigmoid().log()
    )
    balanced = 0.5 * (losses[labels == 1].mean() + losses[labels == 0].mean())
    (balanced + decay * head.layers[0].weight.square().sum()).backward()
    for parameter in head.parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() < 2e-4


def test_decay_shrinks_the_weights() -> None:
    sizes = [fit_annotated(planted(), CONFIG, decay=decay).layers[0].weight.norm().item()
             for decay in (1e-4, 1e-2, 1.0)]  # fmt: skip
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2] > 0


def test_the_scaler_is_that_of_the_training_tokens() -> None:
    examples = planted()
    head = fit_annotated(examples, CONFIG)
    hidden = examples.hidden["pre_norm"].double()
    scale = hidden.std(0, correction=0)
    scale[7] = 1.0  # never varies
    torch.testing.assert_close(head.mean.double(), hidden.mean(0), atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(head.scale.double(), scale, atol=1e-6, rtol=1e-4)


def test_an_mlp_learns_what_no_line_can() -> None:
    """Acceptable where the signs of two features agree; the same seed makes the same head."""
    examples = planted()
    hidden = examples.hidden["pre_norm"]
    odd = with_labels(examples, ((hidden[:, 0] > 0) == (hidden[:, 1] > 0)).numpy().astype(int))
    deep = HeadConfig(target=RECORD, feature="pre_norm", hidden_widths=(8,))
    heads = [fit_annotated(odd, deep, seed=seed) for seed in (1, 1, 2)]
    scores = [probabilities(head, odd) for head in heads]
    assert auc(odd.labels, scores[0]) > 0.9
    assert auc(odd.labels, probabilities(fit_annotated(odd, CONFIG), odd)) < 0.7
    assert np.array_equal(scores[0], scores[1]) and not np.array_equal(scores[0], scores[2])


def test_annotated_training_is_on_record() -> None:
    examples = planted()
    training = fit_annotated(examples, CONFIG, steps=7, seed=4).config.training
    assert training == {
        "run": 3, "questions": 30, "tokens": 600, "domains": ["code", "math"],
        "unacceptable": int((examples.labels == 0).sum()), "torch": torch.__version__,
        "loss": "class-weighted cross-entropy", "decay": 1e-3, "steps": 7, "seed": 4,
    }  # fmt: skip
    assert CONFIG.training == {"run": 3}  # the config given is as it was


# --- mined -----------------------------------------------------------------------------------


def test_mined_labels_teach_the_planted_direction() -> None:
    fit, unseen = fit_mined(planted(acceptable=0.8), CONFIG, strengths=[0.1, 1.0]), planted(seed=1)
    scores = probabilities(fit.head, unseen)
    assert auc(unseen.labels, scores) > 0.995
    assert scores[unseen.labels == 1].mean() > scores[unseen.labels == 0].mean() + 0.5
    assert direction(fit.head)[2] > 0 > direction(fit.head)[5]


def test_the_sweep_chooses_by_the_held_out_questions() -> None:
    examples = planted(noise=1.0, acceptable=0.7)
    fit = fit_mined(examples, CONFIG, held_out=0.3, seed=2)
    sweep = fit.sweep
    assert list(sweep.columns) == ["C", "auc_train", "auc_validation", "chosen"]
    assert tuple(sweep["C"]) == STRENGTHS and sweep["chosen"].sum() == 1
    best = sweep[sweep["chosen"]].iloc[0]
    assert best["auc_validation"] == sweep["auc_validation"].max()
    assert fit.head.config.training["C"] == best["C"]
    apart = split_by_question(examples, 0.3, seed=2)
    for rows, column in ((~apart, "auc_train"), (apart, "auc_validation")):
        part = examples.where(rows)
        found = auc(part.labels, probabilities(fit.head, part))
        assert found == pytest.approx(best[column], abs=1e-6)


def test_the_held_out_questions_teach_nothing() -> None:
    """Neither weights nor scaler: whatever stands there, the head of one strength is the same."""
    examples = planted(acceptable=0.7)
    apart = split_by_question(examples, 0.3, seed=0)
    hidden = examples.hidden["pre_norm"].clone()
    hidden[torch.from_numpy(apart)] *= -50
    spoilt = Examples(**{**vars(examples), "hidden": {"pre_norm": hidden}})
    heads = [fit_mined(e, CONFIG, strengths=[0.1], held_out=0.3).head for e in (examples, spoilt)]
    for first, second in zip(*(head.state_dict().values() for head in heads), strict=True):
        assert torch.equal(first, second)


def test_head_and_logistic_regression_agree() -> None:
    """The head's probability is scikit-learn's of label 1 on scaled features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    examples = planted(noise=1.0)
    fit = fit_mined(examples, CONFIG, strengths=[0.01])
    kept = examples.where(~split_by_question(examples, 0.1, seed=0))
    scaler = StandardScaler().fit(kept.hidden["pre_norm"].numpy())
    model = LogisticRegression(C=0.01).fit(
        scaler.transform(kept.hidden["pre_norm"].numpy()), kept.labels
    )
    rows = scaler.transform(examples.hidden["pre_norm"].numpy())
    expected = model.predict_proba(rows)[:, list(model.classes_).index(1)]
    np.testing.assert_allclose(probabilities(fit.head, examples), expected, atol=2e-3)


def test_mined_training_is_on_record() -> None:
    training = fit_mined(
        planted(), CONFIG, strengths=[1.0], held_out=0.2, seed=6
    ).head.config.training
    facts = {"run": 3, "loss": "logistic regression", "C": 1.0, "held_out": 0.2, "seed": 6,
             "questions": 30, "tokens": 600}  # fmt: skip
    assert facts.items() <= training.items()


# --- splitting -------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "count"), [(0.1, 3), (0.5, 15), (0.001, 1), (0.99, 30)])
def test_questions_are_held_out_whole(share: float, count: int) -> None:
    examples = planted()
    apart = split_by_question(examples, share, seed=0)
    assert apart.shape == (600,) and apart.dtype == bool
    held, kept = set(examples.questions[apart]), set(examples.questions[~apart])
    assert held.isdisjoint(kept) and len(held) == count and len(held | kept) == 30


def test_the_seed_decides_the_split_and_the_order_of_tokens_does_not() -> None:
    examples = planted()
    first = split_by_question(examples, 0.3, seed=0)
    assert np.array_equal(first, split_by_question(examples, 0.3, seed=0))
    assert not np.array_equal(first, split_by_question(examples, 0.3, seed=1))
    order = np.random.default_rng(0).permutation(600)
    turned = Examples(**{**vars(examples), "questions": examples.questions[order]})
    assert np.array_equal(split_by_question(turned, 0.3, seed=0), first[order])


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match=f"between 0 and 1, got {share}"):
        split_by_question(planted(), share, seed=0)


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", [fit_annotated, fit_mined])
@pytest.mark.parametrize("label", [0, 1])
def test_one_label_alone_teaches_nothing(fit: Any, label: int) -> None:
    examples = with_labels(planted(), np.full(600, label))
    with pytest.raises(ValueError, match=rf"got only \[{label}\]; label more questions"):
        fit(examples, CONFIG)


def test_one_label_alone_in_the_held_out_part_is_refused() -> None:
    """Nine questions, of which one is held out, and no question has both labels."""
    with pytest.raises(ValueError, match="got only .*label more questions"):
        fit_mined(of_nine_questions([0, 1, 0, 1, 0, 1, 0, 1, 1]), CONFIG)


# --- measuring -------------------------------------------------------------------------------


def test_measured_columns_are_those_of_the_table() -> None:
    found = measure(fit_annotated(planted(), CONFIG), planted(seed=1), n_train=600)
    assert tuple(found.columns) == SCHEMAS["head_training"]
    check_columns(found, "head_training")


def test_measured_rows_by_hand() -> None:
    """A head that reads one feature, four tokens, a threshold of 0.6."""
    config = HeadConfig(target=RECORD, feature="layer_3", source="mined", threshold=0.6)
    head = JudgeHead.from_linear(config, weight=torch.eye(WIDTH)[0], bias=0.0)
    hidden = torch.zeros(6, WIDTH)
    hidden[:, 0] = torch.tensor([2.0, 0.0, 1.0, -1.0, 0.2, 3.0])
    domains = np.array(["math", "math", "math", "math", "code", "code"])
    zeros = np.zeros(6, dtype=int)
    examples = Examples(
        {"layer_3": hidden}, np.array([1, 1, 0, 0, 1, 1]), zeros > 0, domains, domains, zeros, zeros
    )
    found = measure(head, examples, domain_train="code", n_train=99)
    shared = ("mined", "layer_3", 3, "linear", "code")
    # p > 0.6 where the feature exceeds 0.405: tokens 0, 2 and 5.
    expected = [
        (*shared, "code", 99, 2, float("nan"), float("nan"), 0.5, 0.6),
        (*shared, "math", 99, 4, 0.75, 0.5, 0.5, 0.6),
        (*shared, "all", 99, 6, 0.75, 0.5, 0.5, 0.6),
    ]
    for row, wanted in zip(found.itertuples(index=False), expected, strict=True):
        assert tuple(row)[:8] == wanted[:8]
        assert tuple(row)[8:] == pytest.approx(wanted[8:], nan_ok=True)


def test_measured_rates_are_those_of_the_threshold() -> None:
    examples = planted(noise=1.0, seed=1)
    head = fit_mined(planted(noise=1.0), CONFIG).head
    found = measure(head, examples, n_train=1).set_index("domain_eval")
    assert set(found["model"]) == {"logistic"} and set(found["layer"]) == {4}
    at = rates(probabilities(head, examples), examples.labels, 0.5)
    assert tuple(found.loc["all", ["recall_unacceptable", "accept_rate"]]) == at
    assert found.loc["all", "n_eval"] == found.loc[["math", "code"], "n_eval"].sum() == 600


def test_an_mlp_is_named_so() -> None:
    deep = HeadConfig(target=RECORD, feature="pre_norm", hidden_widths=(4,))
    head = fit_annotated(planted(), deep, steps=2)
    assert set(measure(head, planted(seed=1), n_train=600)["model"]) == {"mlp"}


def test_a_config_is_made_for_the_pair(pair: tuple[LanguageModel, LanguageModel]) -> None:
    config = config_for(*pair, "mined", feature="layer_2", of="both", threshold=0.7)
    assert (config.target.name, config.draft and config.draft.name) == ("tiny", "tiny-draft")
    assert (config.source, config.layer, config.width, config.threshold) == ("mined", 2, 64, 0.7)
    assert config.target.architecture == type(tiny.language_model().model).__name__
