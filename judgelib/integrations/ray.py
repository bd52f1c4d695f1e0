"""Ray: the pieces of `judgelib.mapping` over the workers of a cluster.

    ENGINE=ray make reproduce                              # a cluster on this machine alone
    RAY_ADDRESS=head:6379 ENGINE=ray make reproduce        # one that is running

A worker is an actor with one core and one thread, or with one GPU where the models are on one. It
loads the models once and keeps them. ENGINE_WORKERS limits their number (by default as many as the
cluster has cores or GPUs). Results come to this process as they are made, which alone writes files.
A worker that dies is replaced, and what was left of its piece is done again.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import torch

from judgelib.mapping import Load, Take, Work

DEATHS = 3
"""Workers that one piece may cost without a result; then the fault is taken to be its own."""
MESSAGES = 500
"""What this process is sent a second, at most: a worker of many pauses between its messages, and
what it makes meanwhile comes in one."""
_END = object()


class Worker:
    """What runs on the cluster: holds the models of its last piece."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._load: Load | None = None
        self._held: Any = None

    def run(self, load: Load, work: Work, pause: float, piece: Any) -> Iterator[list[Any]]:
        """Work at a piece; yields its results as they come, after the first one a `pause` apart.

        Work calls back and Ray asks for a generator, hence a thread between them.
        """
        if load != self._load:
            self._load, self._held = None, None  # before there are new ones: both may not fit
            self._held, self._load = load(), load
        results: SimpleQueue[Any] = SimpleQueue()
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as thread:
            future = thread.submit(work, self._held, piece, results.put)
            future.add_done_callback(lambda _: results.put(_END))
            yield from _gathered(results, pause)
            future.result()


def _gathered(results: SimpleQueue[Any], pause: float) -> Iterator[list[Any]]:
    """What comes through the queue up to `_END`, in lists that are `pause` seconds apart."""
    batch: list[Any] = []
    due = time.monotonic()
    while True:
        with suppress(Empty):
            wait = max(0.0, due - time.monotonic()) if batch else None
            batch.append(results.get(timeout=wait))
        ended = batch[-1] is _END
        if ended:
            batch.pop()
        if batch and (ended or time.monotonic() >= due):
            yield batch
            batch, due = [], time.monotonic() + pause
        if ended:
            return


class _Task(NamedTuple):
    """A piece at a worker, and how many workers it has cost since its last result."""

    actor: Any
    piece: Any
    deaths: int


@cache
def cluster() -> Cluster:
    """The cluster of this process, joined or started on first use."""
    return Cluster()


class Cluster:
    """The workers of this process; they and their models stay from one call to the next.

    Raises:
        ValueError: no cluster at RAY_ADDRESS, or ENGINE_WORKERS that is no number from 1 up.
    """

    def __init__(self) -> None:
        _wanted_workers()  # a wrong number is said before there is a cluster
        self._ray = _joined()
        self._limit = 0
        self._idle: list[Any] = []
        self._on_gpu = False

    def each(
        self,
        load: Load,
        work: Work,
        pieces: Iterable[Any],
        take: Take,
        left: Callable[[Any], Any | None],
    ) -> None:
        """See `mapping.each`."""
        self._suit(load)
        fresh, again = iter(pieces), deque[tuple[Any, int]]()
        sent = self._ray.put(load), self._ray.put(work), self._limit / MESSAGES
        busy: dict[Any, _Task] = {}
        try:
            while True:
                while len(busy) < self._limit:
                    piece, deaths = again.popleft() if again else (next(fresh, _END), 0)
                    if piece is _END:
                        break
                    actor = self._idle.pop() if self._idle else self._new_actor()
                    busy[_start(actor, *sent, piece)] = _Task(actor, piece, deaths)
                if not busy:
                    return
                (stream,), _ = self._ray.wait(list(busy), num_returns=1)
                self._receive(stream, busy, again, take, left)
        finally:  # after an error or Ctrl-C nobody takes what the others make
            for task in busy.values():
                self._ray.kill(task.actor)

    def _receive(
        self,
        stream: Any,
        busy: dict[Any, _Task],
        again: deque[tuple[Any, int]],
        take: Take,
        left: Callable[[Any], Any | None],
    ) -> None:
        """Take a worker's next results; or note that it has ended, or died."""
        errors, task = self._ray.exceptions, busy[stream]
        try:
            results = self._ray.get(next(stream))
        except StopIteration:
            self._idle.append(busy.pop(stream).actor)
        except errors.RayTaskError as error:
            self._idle.append(busy.pop(stream).actor)  # the work failed, not the worker
            raise error.cause from error
        except (errors.RayActorError, errors.ObjectLostError) as error:
            del busy[stream]
            self._ray.kill(task.actor)  # where only a result was lost, it still lives
            rest = left(task.piece)
            if rest is not None:
                again.append((rest, _one_more(task.deaths, error)))
        else:
            busy[stream] = task._replace(deaths=0)
            for result in results:
                take(task.piece, result)

    def _suit(self, load: Load) -> None:
        """Workers on GPUs for models on GPUs, and as many as the cluster has room for."""
        on_gpu = _on_gpu(load)
        if on_gpu != self._on_gpu:
            self.release()
        self._on_gpu = on_gpu
        self._limit = self.room(load)

    def room(self, load: Load) -> int:
        """How many workers there may be for such models; ValueError if none."""
        kind = "GPU" if _on_gpu(load) else "CPU"
        room = int(self._ray.cluster_resources().get(kind, 0))
        if not room:
            raise ValueError(f"the models are on a {kind}, but the Ray cluster has none to give")
        return min(room, _wanted_workers() or room)

    def _new_actor(self) -> Any:
        needs = {"num_gpus": 1} if self._on_gpu else {"num_cpus": 1}
        return self._ray.remote(**needs)(Worker).remote()

    def release(self) -> None:
        """End the idle workers, which keep their cores or GPUs until this process ends."""
        while self._idle:
            self._ray.kill(self._idle.pop())

    def close(self) -> None:
        """Leave the cluster, and end it if this process started it."""
        self._ray.shutdown()
        cluster.cache_clear()


def _on_gpu(load: Load) -> bool:
    return any(device.startswith("cuda") for device in load.devices)


def _start(actor: Any, *given: Any) -> Any:
    return actor.run.options(num_returns="streaming").remote(*given)


def _one_more(deaths: int, error: Exception) -> int:
    if deaths + 1 == DEATHS:
        raise RuntimeError(
            f"{DEATHS} workers in a row died at the same piece without a result; what came before "
            f"is kept. Does it fit into a worker's memory? The last one: {error}"
        ) from error
    return deaths + 1


def _wanted_workers() -> int:
    """ENGINE_WORKERS; 0 where it is not set."""
    said = os.environ.get("ENGINE_WORKERS", "")
    if said and not (said.isdecimal() and int(said)):
        raise ValueError(f"expected ENGINE_WORKERS to be a number of workers from 1, got {said!r}")
    return int(said or 0)


def _joined() -> Any:
    """Ray, connected to the cluster at RAY_ADDRESS or to a new one on this machine."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        # Ray's own default, which it would announce in every notebook; and no list of tasks for a
        # dashboard that is not there, on which the end of a notebook would wait.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    import ray

    if ray.is_initialized():  # by the user, who has his reasons
        return ray
    try:
        ray.init(
            address=address,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ConnectionError as error:
        raise ValueError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}): start one with `ray start "
            "--head`, or leave the variable away to use this machine"
        ) from error
    return ray
