"""Which guard a piece of code runs under.

"subset" reads the code against an allow-list of syntax and runs it in a limited process, on any
Linux machine; "bubblewrap" runs any code, confined by the kernel; "auto" takes the first that
suffices and raises `GuardError` where neither is to be had; "none" lowers the guard to the limits
alone, for code that its user trusts, and is recorded as such in every verdict.
"""

from typing import get_args

from judgelib.execution.child import Stopped
from judgelib.execution.probe import require_bubblewrap
from judgelib.execution.records import Guard, GuardChoice
from judgelib.execution.subset import OutsideSubset, check_subset


def check_choice(choice: str) -> None:
    """ValueError for a guard that does not exist."""
    if choice not in get_args(GuardChoice):
        raise ValueError(f"guard must be one of {get_args(GuardChoice)}, got {choice!r}")


def choose_guard(source: str, choice: GuardChoice) -> Guard:
    """The guard for `source`; `Stopped` if the code is refused, GuardError if no guard holds."""
    if choice == "none":
        return "none"
    if choice != "bubblewrap" and _in_subset(source, refuse=choice == "subset"):
        return "subset"
    require_bubblewrap()
    return "bubblewrap"


def guard_for_any_code(choice: GuardChoice) -> Guard:
    """The guard for code that is not read first; the subset cannot be that guard."""
    check_choice(choice)
    if choice == "subset":
        raise ValueError('whole programs need guard "auto" or "bubblewrap", got "subset"')
    return choose_guard("", "none" if choice == "none" else "bubblewrap")


def _in_subset(source: str, *, refuse: bool) -> bool:
    try:
        check_subset(source)
    except OutsideSubset as error:
        if refuse:
            raise Stopped("forbidden_syntax", str(error)) from error
        return False
    except SyntaxError as error:
        raise Stopped("syntax_error", str(error)) from error
    return True
