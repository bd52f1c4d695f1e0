"""Guarded execution of model-written code: verdicts that the code cannot forge.

    run_tests(source, "double", [((2,), 4), ((0,), 0)])  →  Verdict(passed=True, reason="passed", …)

`run_tests` and `run_many` call a function on arguments and compare the outputs here, outside the
candidate's process; `run_program` gives a script its standard input and returns what it printed;
`run_check` runs a benchmark's `check(candidate)` in a process apart from the candidate's. `probe`
proves that bubblewrap confines. No verdict rests on an exit code or on a printed line.
"""

from judgelib.execution.check import run_check
from judgelib.execution.probe import probe
from judgelib.execution.program import run_program
from judgelib.execution.records import (
    DEFAULT_LIMITS,
    Case,
    GuardChoice,
    GuardError,
    Job,
    Limits,
    Outcome,
    Verdict,
)
from judgelib.execution.runner import run_many, run_tests
from judgelib.execution.subset import OutsideSubset, check_subset

__all__ = [
    "DEFAULT_LIMITS",
    "Case",
    "GuardChoice",
    "GuardError",
    "Job",
    "Limits",
    "OutsideSubset",
    "Outcome",
    "Verdict",
    "check_subset",
    "probe",
    "run_check",
    "run_many",
    "run_program",
    "run_tests",
]
