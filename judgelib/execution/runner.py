"""Model-written functions against test cases, under a guard, with the verdict made outside.

Subset code shares one interpreter that forks for each job; all other code gets one of its own.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from judgelib.execution.calls import compare, encoded_arguments, run_alone
from judgelib.execution.child import Stopped
from judgelib.execution.guards import check_choice, choose_guard
from judgelib.execution.pool import Pool
from judgelib.execution.records import (
    DEFAULT_LIMITS,
    Case,
    Guard,
    GuardChoice,
    Job,
    Limits,
    Verdict,
)


def run_tests(
    source: str,
    function: str,
    cases: Sequence[Case],
    *,
    limits: Limits = DEFAULT_LIMITS,
    guard: GuardChoice = "auto",
) -> Verdict:
    """The verdict on one candidate: `function` from `source` on every `(arguments, expected)`.

    Raises ValueError for cases that are absent or not plain data, GuardError without a guard.
    """
    return run_many([Job(source, function, cases)], limits=limits, guard=guard)[0]


def run_many(
    jobs: Sequence[Job],
    *,
    limits: Limits = DEFAULT_LIMITS,
    guard: GuardChoice = "auto",
    parallel: int = 1,
) -> list[Verdict]:
    """One verdict a job, in the order of the jobs.

    `parallel` threads each drive candidates of their own: pass the number of spare cores.
    Raises as `run_tests`; a job that fails never stops the others.
    """
    _check_request(jobs, guard, parallel)
    shares = [jobs[start::parallel] for start in range(parallel)]
    if parallel == 1:
        return _run_share(jobs, limits, guard)
    with ThreadPoolExecutor(parallel) as threads:
        done = list(threads.map(lambda share: _run_share(share, limits, guard), shares))
    return [done[number % parallel][number // parallel] for number in range(len(jobs))]


def _check_request(jobs: Sequence[Job], guard: GuardChoice, parallel: int) -> None:
    check_choice(guard)
    if parallel < 1:
        raise ValueError(f"parallel must be at least 1, got {parallel}")
    for number, job in enumerate(jobs):
        if not job.cases:
            raise ValueError(f"job {number} has no cases: anything would pass; give at least one")


def _run_share(jobs: Sequence[Job], limits: Limits, guard: GuardChoice) -> list[Verdict]:
    with Pool(limits) as pool:
        return [_run_one(job, pool, limits, guard) for job in jobs]


def _run_one(job: Job, pool: Pool, limits: Limits, choice: GuardChoice) -> Verdict:
    calls = encoded_arguments(job.cases)
    guard: Guard = "subset" if choice == "auto" else choice
    try:
        guard = choose_guard(job.source, choice)
        if guard == "subset":
            replies = pool.run(job, calls)
        else:
            replies = run_alone(job, calls, guard, limits)
    except Stopped as stopped:
        return Verdict(False, stopped.reason, stopped.detail, guard)
    return compare(job.cases, replies, guard)
