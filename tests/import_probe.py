"""Import the modules named on the command line under an audit hook; print what each did, as JSON.

Run by `test_imports.py` in a process of its own, because imports happen only once.
"""

import contextlib
import importlib
import io
import json
import os
import sys
import warnings
from typing import Any

# Imported first and without the hook: what these read or write at import is their affair.
LIBRARIES = (
    "accelerate", "datasets", "matplotlib.figure", "nbformat", "openai", "pandas", "papermill",
    "safetensors.torch", "scipy.stats", "seaborn", "sklearn.linear_model", "tokenizers", "torch",
    "tqdm.auto", "transformers", "transformers.models.auto.modeling_auto", "yaml",
)  # fmt: skip
EVENTS = ("socket.", "subprocess.Popen", "os.mkdir", "os.remove", "os.rename", "os.system")
CODE = (".py", ".pyc", ".so")

found: list[str] = []
watching = False


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Note files that are not code, connections and processes."""
    if not watching:
        return
    if event == "open" and isinstance(arguments[0], str) and not is_code(arguments):
        found.append(f"opened {arguments[0]}")
    elif event.startswith(EVENTS):
        found.append(f"{event} {arguments}")


def is_code(arguments: tuple[Any, ...]) -> bool:
    """Whether a file is opened as the import system does: reading code or what is installed."""
    path, _, flags = arguments
    writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    # Libraries load parts of themselves, and look up each other's versions, when first used.
    installed = path.startswith((sys.prefix, sys.base_prefix))
    return (path.endswith(CODE) or installed) and not writes


def watch(name: str) -> list[str]:
    """Import one module; what it did."""
    global watching
    found.clear()
    said = io.StringIO()
    threads = sys.modules["torch"].get_num_threads()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        watching = True
        try:
            importlib.import_module(name)
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
        finally:
            watching = False
    return found + judged(said.getvalue(), caught, threads)


def judged(said: str, caught: list[warnings.WarningMessage], threads: int) -> list[str]:
    """What was printed, warned of or changed, in words."""
    printed = [f"printed {said!r}"] if said else []
    warned = [f"warned {warning.message}" for warning in caught]
    changed = sys.modules["torch"].get_num_threads() != threads
    return printed + warned + (["changed torch's number of threads"] if changed else [])


def main() -> None:
    """Libraries, then the modules under the hook, then one JSON object on stdout."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for library in LIBRARIES:
            importlib.import_module(library)
    sys.addaudithook(hook)
    print(json.dumps({name: watch(name) for name in sys.argv[1:]}))


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    main()
