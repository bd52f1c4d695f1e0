"""One interpreter that forks for each subset job, restarted after any failure of a process."""

from typing import Any, Self

from judgelib.execution.calls import Reply, run_in_pool
from judgelib.execution.child import Child
from judgelib.execution.records import Job, Limits


class Pool:
    """Runs jobs whose code has passed `check_subset`, and only those; a context manager."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._child: Child | None = None

    def run(self, job: Job, calls: list[list[Any]]) -> list[Reply]:
        """The job's replies; `Stopped` if it ends without, after which a fresh interpreter starts.

        Starting afresh is what kills a job that overran: it shares the interpreter's group.
        """
        self._child = self._child or Child("pool", "subset", self.limits)
        try:
            return run_in_pool(self._child, job, calls)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the interpreter and any job in it."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
