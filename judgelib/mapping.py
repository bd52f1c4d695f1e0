"""Mapping: a function over pieces of work, in this process, in several, or on a Ray cluster.

Mining, features, evaluation and plain answers are cut into pieces of questions. `each` has a
function work at every piece and hands whatever it emits to `take`, in this process, which keeps it.
Where the work is done is the environment variable ENGINE's choice and changes no result:

- features, evaluation, answers: a piece is the batch that a local run reads too, so even the last
  bit is the same on like machines;
- mining: every text of a batch comes out as it would alone (`speculate_stream`), and a piece is
  many questions.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch

from judgelib.models import LanguageModel, load_model

LOCAL, RAY, VLLM = ENGINES = ("local", "ray", "vllm")
_INSTALL = {RAY: "make ray", VLLM: "make vllm"}

TURNS = 2
"""Pieces for each worker of a cluster: with one each, all would wait for the slowest."""

Emit = Callable[[Any], object]
Work = Callable[[Any, Any, Emit], object]
"""Works at one piece with what the worker holds: (held, piece, emit)."""
Take = Callable[[Any, Any], object]
"""Keeps one result: (piece, result)."""


class Load(Protocol):
    """Makes what a worker holds; it travels to other machines, and equal ones make the same."""

    @property
    def devices(self) -> Sequence[str]:
        """Of the models: "cpu" or "cuda"."""

    def __call__(self) -> Any: ...


class Holder(Protocol):
    """What work needs: at hand here, and how to have the same elsewhere."""

    def here(self) -> Any: ...

    def elsewhere(self) -> Load: ...


def engine(name: str | None = None) -> str:
    """The engine named, or else the environment's ENGINE; "local" by default.

    "ray" spreads mining, features and evaluation over a cluster; "vllm" has vLLM write plain
    answers (its near-ties may fall otherwise) and leaves the rest local.

    Raises:
        ValueError: an unknown engine, or one that is not installed.
    """
    found = name or os.environ.get("ENGINE") or LOCAL
    if found not in ENGINES:
        raise ValueError(f"expected ENGINE to be one of {', '.join(ENGINES)}, got {found!r}")
    if found in _INSTALL and not installed(found):
        raise ValueError(
            f"ENGINE={found} needs {found}, which is not installed here: run `{_INSTALL[found]}`, "
            "or leave ENGINE away"
        )
    return found


def installed(package: str) -> bool:
    """Whether a package is there; a mere folder of that name is none."""
    found = find_spec(package)
    return found is not None and found.origin is not None


def each(
    holder: Holder,
    work: Work,
    pieces: Iterable[Any],
    take: Take,
    *,
    left: Callable[[Any], Any | None] = lambda piece: piece,
    workers: int = 1,
    name: str | None = None,
) -> None:
    """Work at every piece; `take` gets each result as it comes, in no order of the pieces.

    Args:
        work: a function of a module, so that other processes find it.
        left: what remains of a piece whose worker has died, after the results that were taken;
            None: nothing. (Ray only: here the work dies with the process.)
        workers: local processes of one thread each; 1: this one.
        name: see `engine`.

    Raises:
        ValueError: see `engine`. Whatever `work` or `take` raises ends the work.
    """
    if engine(name) == RAY:
        from judgelib.integrations.ray import cluster

        cluster().each(holder.elsewhere(), work, pieces, take, left)
    elif workers > 1:
        _in_processes(holder.elsewhere(), work, list(pieces), take, workers)
    else:
        _here(holder.here(), work, pieces, take)


def portion(holder: Holder, count: int, largest: int) -> int:
    """How many of `count` questions make a piece, where any number gives the same results: all of
    them here; on a cluster as many as give each worker `TURNS`, up to `largest`."""
    if engine() != RAY:
        return max(1, count)
    from judgelib.integrations.ray import cluster

    return share(count, cluster().room(holder.elsewhere()), largest)


def share(count: int, workers: int, largest: int) -> int:
    """See `portion`.

    >>> share(1000, 10, largest=64), share(50, 10, largest=64)
    (50, 3)
    """
    return max(1, min(largest, -(-count // (TURNS * workers))))


def _here(held: Any, work: Work, pieces: Iterable[Any], take: Take) -> None:
    for piece in pieces:
        work(held, piece, lambda result, piece=piece: take(piece, result))  # type: ignore[misc]


# --- several processes ---------------------------------------------------------------------------


def _in_processes(load: Load, work: Work, pieces: Sequence[Any], take: Take, workers: int) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (load,)) as pool:
        futures = {pool.submit(_emitted, work, piece): piece for piece in pieces}
        try:
            for future in as_completed(futures):
                for result in future.result():
                    take(futures[future], result)
        finally:  # after an error nobody takes what the rest would make
            pool.shutdown(cancel_futures=True)


_held: Any = None  # of a worker process


def _begin(load: Load) -> None:
    global _held
    torch.set_num_threads(1)  # one process a core
    _held = load()


def _emitted(work: Work, piece: Any) -> list[Any]:
    if _held is None:
        raise RuntimeError("a worker was asked for a piece before it had its models")
    results: list[Any] = []
    work(_held, piece, results.append)
    return results


# --- models --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where a model comes from, and how its weights are known (`LanguageModel.fingerprint`)."""

    name: str
    revision: str | None
    dtype: str
    device: str
    fingerprint: str
    template: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, model: LanguageModel) -> Source:
        place = Path(model.name)
        name = str(place.resolve()) if place.is_dir() else model.name
        dtype = str(model.dtype).removeprefix("torch.")
        revision = getattr(model.config, "_commit_hash", None)
        if getattr(model.config, "quantization_config", None) is not None:
            raise ValueError(
                f"a worker loads models as they are stored, but {model.name} was quantized while "
                "loading: run it with ENGINE=local, or store it quantized"
            )
        template = getattr(model.tokenizer, "template_options", {})
        return cls(name, revision, dtype, model.device.type, model.fingerprint, template)

    def load(self) -> LanguageModel:
        """The model; ValueError if other weights lie there."""
        model = load_model(
            self.name, revision=self.revision, dtype=self.dtype, device=self.device,
            template=self.template,
        )  # fmt: skip
        if model.fingerprint != self.fingerprint:
            raise ValueError(
                f"expected the weights {self.fingerprint} at {self.name}, found "
                f"{model.fingerprint}: every machine must see the same models"
            )
        return model


@dataclass(frozen=True)
class Loading:
    """Loads models from their sources."""

    sources: tuple[Source, ...]

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(source.device for source in self.sources)

    def __call__(self) -> tuple[LanguageModel, ...]:
        return tuple(source.load() for source in self.sources)


class Models:
    """Loaded models that workers elsewhere load again."""

    def __init__(self, *models: LanguageModel) -> None:
        self.models = models

    def here(self) -> tuple[LanguageModel, ...]:
        return self.models

    def elsewhere(self) -> Loading:
        return Loading(tuple(Source.of(model) for model in self.models))
