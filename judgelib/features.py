"""Features: the hidden states at labelled tokens, on which heads are trained.

A label is about one token at one place. Where that token stands in the response its hidden state
comes with the response's own pass; where it does not (a mined token that the target replaced), it
is read as a *branch*: behind the same prefix, in the same pass, seen by nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from judgelib.labels import Labelled
from judgelib.mapping import Emit, Models, each
from judgelib.models import LanguageModel

TOKENS_A_PASS = 4096


@dataclass(frozen=True)
class Examples:
    """N labelled tokens.

    Attributes:
        hidden: feature spot -> (N, D) float32.
        labels: (N,) 1 acceptable, 0 not.
        matches: (N,) bool, whether the judged token is the target's own greedy choice.
        questions, domains: (N,) of the question.
        rows, places: (N,) which answer, and which of its response tokens.
    """

    hidden: dict[str, Tensor]
    labels: np.ndarray
    matches: np.ndarray
    questions: np.ndarray
    domains: np.ndarray
    rows: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, chosen: np.ndarray) -> Examples:
        """The examples at which `chosen` (N,) bool holds."""
        return replace(
            self,
            hidden={spot: states[torch.from_numpy(chosen)] for spot, states in self.hidden.items()},
            **{name: getattr(self, name)[chosen] for name in _COLUMNS},
        )


def joined(*parts: Examples) -> Examples:
    """Several sets of examples as one; answers keep apart."""
    starts = np.cumsum([0, *(int(part.rows.max()) + 1 for part in parts[:-1])])
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in _COLUMNS
        if name != "rows"
    }
    rows = [part.rows + start for part, start in zip(parts, starts, strict=True)]
    hidden = {spot: torch.cat([part.hidden[spot] for part in parts]) for spot in parts[0].hidden}
    return Examples(hidden, rows=np.concatenate(rows), **columns)


_COLUMNS = ("labels", "matches", "questions", "domains", "rows", "places")


@dataclass(frozen=True)
class _Reading:
    """One text to read: its tokens, and branches (place, token) that stand beside it."""

    ids: list[int]
    branches: tuple[tuple[int, int], ...]

    @property
    def width(self) -> int:
        return len(self.ids) + len(self.branches)


def extract(
    rows: Sequence[Labelled],
    target: LanguageModel,
    draft: LanguageModel | None = None,
    *,
    spots: Sequence[str] = ("post_norm",),
    of: str = "target",
    token: str = "draft",
    progress: Callable[[Any], Any] = iter,
) -> Examples:
    """Hidden states of every labelled token.

    Args:
        spots: "post_norm", "pre_norm", "layer_<n>".
        of: whose states: "target", "draft", or "both" (side by side, the target's first).
        token: after which token: the judged one ("draft"), the target's own choice at its place
            ("target"), or "both" (side by side, the judged one's first).
        progress: wraps the iteration over batches (`tqdm.tqdm`).

    A batch is a piece of `mapping.each`.

    Raises:
        ValueError: an unknown `of` or `token`, no draft though its states are wanted, no label.
    """
    models = _models(of, target, draft)
    if token not in ("draft", "target", "both"):
        raise ValueError(f"expected token to be draft, target or both, got {token!r}")
    if not any(row.places for row in rows):
        raise ValueError("expected at least one answer with a label of 0 or 1")
    read = _states(rows, target, [row.judged_ids for row in rows], [*spots, "post_norm"], progress)
    choices = _choices(rows, target, read["before"])
    parts = []
    for wanted in ("draft", "target") if token == "both" else (token,):
        ids = [row.judged_ids for row in rows] if wanted == "draft" else choices
        for model in models:
            same = wanted == "draft" and model is target
            parts.append(read if same else _states(rows, model, ids, spots, progress))
    hidden = {spot: torch.cat([part[spot] for part in parts], -1) for spot in spots}
    return _examples(rows, choices, hidden)


def _models(of: str, target: LanguageModel, draft: LanguageModel | None) -> list[LanguageModel]:
    if of not in ("target", "draft", "both"):
        raise ValueError(f"expected of to be target, draft or both, got {of!r}")
    if of == "target":
        return [target]
    if draft is None:
        raise ValueError(f"of={of!r} reads the draft's hidden states: pass the draft model")
    return [target, draft] if of == "both" else [draft]


def _examples(
    rows: Sequence[Labelled], choices: list[list[int]], hidden: dict[str, Tensor]
) -> Examples:
    found = [(number, place) for number, row in enumerate(rows) for place in row.places]
    pick = [(rows[number], place, choices[number][place]) for number, place in found]
    return Examples(
        hidden,
        labels=np.array([row.labels[place] for row, place, _ in pick]),
        matches=np.array([row.judged_ids[place] == choice for row, place, choice in pick]),
        questions=np.array([row.question_id for row, _, _ in pick]),
        domains=np.array([row.domain for row, _, _ in pick]),
        rows=np.array([number for number, _ in found]),
        places=np.array([place for _, place in found]),
    )


def _choices(rows: Sequence[Labelled], target: LanguageModel, before: Tensor) -> list[list[int]]:
    """The target's greedy choice at every labelled place; the response's token elsewhere."""
    parts = [part.to(target.device) for part in before.split(8192)]
    picks = iter(torch.cat([target.output_logits(part).argmax(-1) for part in parts]).tolist())
    choices = [list(row.response_ids) for row in rows]
    for row, chosen in zip(rows, choices, strict=True):
        for place in row.places:
            chosen[place] = next(picks)
    return choices


def _states(
    rows: Sequence[Labelled],
    model: LanguageModel,
    tokens: Sequence[Sequence[int]],
    spots: Sequence[str],
    progress: Callable[[Any], Any],
) -> dict[str, Tensor]:
    """Spot -> (N, D) after `tokens` at the labelled places; "before": post-norm, one place earlier
    (if "post_norm" is among the spots)."""
    readings = [_reading(row, wanted) for row, wanted in zip(rows, tokens, strict=True)]
    kept: list[dict[str, Tensor]] = [{} for _ in rows]

    def take(batch: _Batch, found: list[dict[str, Tensor]]) -> None:
        for number, states in zip(batch.numbers, found, strict=True):
            kept[number] = states

    batches = [
        _Batch(
            numbers,
            [readings[number] for number in numbers],
            [_where(rows[number], readings[number], tokens[number]) for number in numbers],
            tuple(spots),
        )
        for numbers in _batches(readings)
    ]
    each(Models(model), _read_batch, progress(batches), take)
    names = [*dict.fromkeys(spots), *(["before"] if "post_norm" in spots else [])]
    return {name: torch.cat([row[name] for row in kept]) for name in names}


class _Batch(NamedTuple):
    """Texts of like length: their numbers, where the labelled tokens stand and those before."""

    numbers: list[int]
    readings: list[_Reading]
    wheres: list[tuple[list[int], list[int]]]
    spots: tuple[str, ...]


def _read_batch(models: tuple[LanguageModel], batch: _Batch, emit: Emit) -> None:
    """Emit for each text: spot -> (n, D) at its labelled tokens, and "before"."""
    states = _read(models[0], batch.readings, batch.spots)
    found = []
    for place, (where, before) in enumerate(batch.wheres):
        row = {spot: whole[place, where].float().cpu() for spot, whole in states.items()}
        if "post_norm" in states:
            row["before"] = states["post_norm"][place, before].cpu()
        found.append(row)
    emit(found)


def _reading(row: Labelled, tokens: Sequence[int]) -> _Reading:
    """The response up to its last label, and the tokens beside it."""
    places = row.places
    stop = places[-1] + 1 if places else 0
    other = [place for place in places if tokens[place] != row.response_ids[place]]
    start = len(row.prompt_ids)
    branches = tuple((start + place, tokens[place]) for place in other)
    return _Reading([*row.prompt_ids, *row.response_ids[:stop]], branches)


def _where(row: Labelled, reading: _Reading, tokens: Sequence[int]) -> tuple[list[int], list[int]]:
    """Where in the reading each labelled token stands, and the token before it."""
    start, beside = len(row.prompt_ids), len(reading.ids)
    branch = {place: beside + number for number, (place, _) in enumerate(reading.branches)}
    where = [
        start + place if tokens[place] == row.response_ids[place] else branch[start + place]
        for place in row.places
    ]
    return where, [start + place - 1 for place in row.places]


def _batches(readings: Sequence[_Reading]) -> Iterator[list[int]]:
    """Numbers of readings of like length, as many as make up `TOKENS_A_PASS` with padding."""
    order = sorted(range(len(readings)), key=lambda number: readings[number].width)
    batch: list[int] = []
    for number in order:
        if batch and (len(batch) + 1) * readings[number].width > TOKENS_A_PASS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _read(
    model: LanguageModel, readings: Sequence[_Reading], spots: Sequence[str]
) -> dict[str, Tensor]:
    """Spot -> (B, n, D) of texts with their branches behind them, padded on the right."""
    width = max(reading.width for reading in readings)
    ids = torch.zeros(len(readings), width, dtype=torch.long)
    positions = torch.arange(width).repeat(len(readings), 1)
    for row, reading in enumerate(readings):
        tokens = [*reading.ids, *(token for _, token in reading.branches)]
        ids[row, : len(tokens)] = torch.tensor(tokens)
        beside = torch.tensor([place for place, _ in reading.branches], dtype=torch.long)
        positions[row, len(reading.ids) : len(tokens)] = beside
    sees = _sees(readings, width) if any(reading.branches for reading in readings) else None
    places = {} if sees is None else {"positions": positions.to(model.device)}
    return model.states(
        ids.to(model.device), spots, sees=None if sees is None else sees.to(model.device), **places
    )


def _sees(readings: Sequence[_Reading], width: int) -> Tensor:
    """(B, n, n): a token sees those before it; a branch the prefix of its place, and itself."""
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    sees = causal.repeat(len(readings), 1, 1)
    for row, reading in enumerate(readings):
        for number, (place, _) in enumerate(reading.branches, start=len(reading.ids)):
            sees[row, number, place:number] = False
    return sees
