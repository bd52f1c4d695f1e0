"""The runner: what it refuses, what it repeats, what it leaves behind; with real kernels."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from judgelib import notebooks, reproduce, steps
from judgelib.profiles import available, load_profile
from judgelib.provenance import checkout

PARAMETERS = 'profile = "tiny"\nseed = 0'
SAVE = """
from pathlib import Path
folder = Path.cwd().parent / "data/results/tiny"
folder.mkdir(parents=True, exist_ok=True)
(folder / "a.json").write_text("0")
"""


def write_notebook(path: Path, *sources: str, parameters: str | None = PARAMETERS) -> None:
    """A notebook with a parameters cell (None: without) and the given code cells."""
    cells = [new_markdown_cell("# A question")]
    if parameters is not None:
        cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells += [new_code_cell(source) for source in sources]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


def write_profile(root: Path, parameters: dict[str, dict[str, Any]]) -> None:
    profile = {
        "name": "tiny",
        "models": {"target": "./target", "draft": "./draft"},
        "dtype": "float32",
        "notebooks": {name: {"parameters": values} for name, values in parameters.items()},
    }
    (root / "profiles").mkdir(exist_ok=True)
    for role in ("target", "draft"):
        if not (root / role).is_dir():
            (root / role).mkdir()
            (root / role / "config.json").write_text("{}")
    (root / "profiles/tiny.yaml").write_text(yaml.safe_dump(profile))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two small notebooks, the second of which reads what the first wrote."""
    monkeypatch.setenv("JUDGELIB_ROOT", str(tmp_path))
    write_notebook(tmp_path / "notebooks/00_first.ipynb", SAVE)
    write_notebook(tmp_path / "notebooks/01_second.ipynb", "print(seed)")
    write_profile(tmp_path, {"00_first": {"seed": 0}, "01_second": {"seed": 0}})
    return tmp_path


@pytest.fixture
def fake(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces kernels: notes which notebooks ran; `00_first` writes `a.json` with its seed."""
    ran: list[str] = []

    def execute(step: steps.Step) -> None:
        ran.append(step.name)
        nbformat.write(notebooks.read(step.path), step.running)
        if step.name == "00_first":
            table = root / "data/results/tiny/a.json"
            table.write_text(str(step.parameters["seed"]))

    monkeypatch.setattr(reproduce, "execute", execute)
    return ran


def tiny(*options: str) -> int:
    return reproduce.main(["--profile", "tiny", *options])


def outputs_text(path: Path) -> str:
    return json.dumps([cell.get("outputs", []) for cell in notebooks.read(path).cells])


# --- with real kernels -----------------------------------------------------------------------


def test_a_run_sets_parameters_keeps_notebooks_clean_and_says_where_things_lie(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = root / "notebooks/01_second.ipynb"
    write_notebook(source, "import os\nprint(seed, profile, os.getcwd())")
    write_profile(root, {"00_first": {"seed": 0}, "01_second": {"seed": 7}})
    before = source.read_bytes()
    assert tiny() == 0
    executed = root / "data/results/tiny/notebooks/01_second.ipynb"
    assert "7 tiny notebooks" in outputs_text(executed)
    assert str(root) not in executed.read_text()
    assert "papermill" not in notebooks.read(executed).metadata
    assert all(set(cell.metadata) <= {"tags"} for cell in notebooks.read(executed).cells)
    assert source.read_bytes() == before
    said = capsys.readouterr().out
    assert "[2/2] 01_second: done in" in said
    assert "data/results/tiny/a.json" in said
    assert not list(root.rglob("*.running*"))


def test_a_failing_notebook_is_left_with_its_traceback_and_stops_the_run(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_notebook(root / "notebooks/00_first.ipynb", "whole = 1", "raise KeyError('no head')")
    assert tiny() == 1
    said = capsys.readouterr().out
    failed = root / "data/results/tiny/notebooks/00_first.failed.ipynb"
    assert "FAILED" in said and "KeyError: 'no head'" in said
    assert f"the notebook with its traceback: {failed}" in said
    assert "not run: 01_second" in said
    assert "KeyError" in outputs_text(failed)
    assert not (failed.parent / "01_second.ipynb").exists()
    write_notebook(root / "notebooks/00_first.ipynb", "mended = 1")
    assert tiny() == 0
    assert not failed.exists()


def test_write_back_commits_outputs_without_noise(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = root / "notebooks/01_second.ipynb"
    noisy = "import os, sys\nprint('chatter', file=sys.stderr)\nos.getcwd()"
    write_notebook(source, noisy, "seed + 1")
    assert tiny("--notebook", "01_second", "--write-back") == 0
    written = notebooks.read(source)
    code = [cell for cell in written.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3]
    assert [o.execution_count for cell in code for o in cell.outputs] == [2, 3]
    assert code[2].outputs[0].data["text/plain"] == "1"
    text = source.read_text()
    assert str(root) not in text and "injected" not in text
    assert [o.output_type for o in code[1].outputs] == ["execute_result"]
    assert "left out, cell 2: message on stderr: chatter" in capsys.readouterr().out
    assert steps.changes(*first_arguments("01_second")) == []


def first_arguments(name: str) -> tuple[steps.Step, list[steps.Step], Any]:
    profile = load_profile("tiny")
    plan = reproduce.plan(profile)
    place = [step.name for step in plan].index(name)
    return plan[place], plan[:place], profile


def test_a_killed_run_continues_with_what_is_not_complete(root: Path) -> None:
    """SIGKILL while the second notebook computes: the first is not computed again."""
    begun = root / "begun"
    # Sleeps when run for the first time only.
    slow = f"""
import os, time
with open({str(begun)!r}, "a") as file:
    file.write("x")
time.sleep(60 if os.path.getsize({str(begun)!r}) == 1 else 0)
"""
    write_notebook(root / "notebooks/01_second.ipynb", slow)
    command = [sys.executable, "-m", "judgelib.reproduce", "--profile", "tiny"]
    environment = {**os.environ, "PYTHONPATH": str(checkout())}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: begun.exists() or process.poll() is not None)
        assert process.poll() is None, "the run ended before it could be killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    folder = root / "data/results/tiny/notebooks"
    first = (folder / "00_first.manifest.json").read_bytes()
    assert not (folder / "01_second.manifest.json").exists()
    assert tiny() == 0
    assert (folder / "00_first.manifest.json").read_bytes() == first
    assert (folder / "01_second.manifest.json").exists()


def wait_until(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the notebook did not begin"
        time.sleep(0.05)


# --- what runs again -------------------------------------------------------------------------


def test_what_is_complete_is_not_run_again_and_force_runs_it(root: Path, fake: list[str]) -> None:
    assert tiny() == 0
    assert tiny() == 0
    assert fake == ["00_first", "01_second"]
    assert tiny("--force", "--notebook", "notebooks/01_second.ipynb") == 0
    assert fake == ["00_first", "01_second", "01_second"]


def test_changed_cells_run_again_but_changed_outputs_do_not(root: Path, fake: list[str]) -> None:
    source = root / "notebooks/01_second.ipynb"
    assert tiny() == 0
    notebook = notebooks.read(source)
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text="1\n")]
    notebook.cells[-1].execution_count = 9
    nbformat.write(notebook, source)
    assert tiny() == 0
    assert fake == ["00_first", "01_second"]
    write_notebook(source, "print(seed + 1)")
    assert tiny() == 0
    assert fake == ["00_first", "01_second", "01_second"]


def test_a_changed_parameter_runs_its_notebook_and_those_that_read_its_results(
    root: Path, fake: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny() == 0
    write_profile(root, {"00_first": {"seed": 5}, "01_second": {"seed": 0}})
    assert tiny() == 0
    assert fake == ["00_first", "01_second"] * 2
    said = capsys.readouterr().out
    assert "00_first: running (changed parameters)" in said
    assert "01_second: running (changed inputs)" in said


def test_the_same_results_again_do_not_run_later_notebooks(root: Path, fake: list[str]) -> None:
    assert tiny() == 0
    assert tiny("--force", "--notebook", "00_first") == 0
    assert tiny() == 0
    assert fake == ["00_first", "01_second", "00_first"]


def test_changed_code_runs_everything(
    root: Path, fake: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny() == 0
    monkeypatch.setattr(steps, "code_fingerprint", lambda: "other")
    assert tiny() == 0
    assert fake == ["00_first", "01_second"] * 2


def test_a_lost_result_is_made_again(root: Path, fake: list[str]) -> None:
    assert tiny() == 0
    (root / "data/results/tiny/a.json").unlink()
    assert tiny() == 0
    assert fake == ["00_first", "01_second", "00_first"]


def test_retrained_models_run_everything(root: Path, fake: list[str]) -> None:
    assert tiny() == 0
    (root / "draft/model.safetensors").write_bytes(b"new")
    assert tiny() == 0
    assert fake == ["00_first", "01_second"] * 2


def test_clean_starts_over_and_spares_other_profiles(root: Path, fake: list[str]) -> None:
    other = root / "data/results/sandbox-full/family.csv"
    other.parent.mkdir(parents=True)
    other.touch()
    assert tiny() == 0
    assert tiny("--clean") == 0
    assert not (root / "data/results/tiny").exists()
    assert other.exists()
    assert tiny() == 0
    assert fake == ["00_first", "01_second"] * 2


def test_an_interrupted_notebook_is_said_to_be_unfinished(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(step: steps.Step) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "execute", interrupted)
    assert tiny() == 130
    said = capsys.readouterr().out
    assert "00_first: interrupted after" in said and "not run: 01_second" in said


# --- what is refused, before anything runs ---------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (None, "01_second.ipynb: expected one code cell tagged 'parameters', found 0"),
        ('profile = "tiny"', "01_second.ipynb has no parameter 'seed'"),
        ('profile = "tiny"\nseed = int("3")', "must hold lines like `seed = 0` only"),
        ('profile = "tiny"\nimport os', "not an assignment: import os"),
        ('profile = "tiny"\nseed = (', "must hold lines like"),
    ],
)
def test_notebooks_that_cannot_take_the_parameters_are_refused(
    root: Path,
    fake: list[str],
    capsys: pytest.CaptureFixture[str],
    cell: str | None,
    message: str,
) -> None:
    write_notebook(root / "notebooks/01_second.ipynb", "1", parameters=cell)
    assert tiny() == 2
    assert message in capsys.readouterr().err
    assert fake == []


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"00_first": {}, "01_second": {}, "02_third": {}}, "not there: ['02_third']"),
        ({"00_first": {}}, "not listed: ['01_second']"),
        ({"00_first": {"sede": 1}, "01_second": {}}, "no parameter 'sede'"),
    ],
)
def test_profiles_that_disagree_with_the_notebooks_are_refused(
    root: Path,
    fake: list[str],
    capsys: pytest.CaptureFixture[str],
    listed: dict[str, dict[str, Any]],
    message: str,
) -> None:
    write_profile(root, listed)
    assert tiny() == 2
    assert message in capsys.readouterr().err
    assert fake == []


def test_an_unknown_notebook_and_an_unknown_profile_are_refused(
    root: Path, fake: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny("--notebook", "05_speed") == 2
    assert "no notebook 05_speed; there are 00_first, 01_second" in capsys.readouterr().err
    assert reproduce.main(["--profile", "tyni"]) == 2
    assert "no profile 'tyni'" in capsys.readouterr().err
    assert fake == []


def test_write_back_refuses_parameters_that_are_not_the_committed_defaults(
    root: Path, fake: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_profile(root, {"00_first": {"seed": 0}, "01_second": {"seed": 1}})
    assert tiny("--write-back") == 2
    said = capsys.readouterr().err
    assert "01_second.ipynb has other defaults than this profile's seed=1" in said
    assert fake == []


def test_a_broken_file_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "notebooks/01_second.ipynb").write_text("{")
    assert tiny() == 2
    assert "01_second.ipynb is not a readable notebook" in capsys.readouterr().err


# --- the repository's own notebooks ----------------------------------------------------------


@pytest.mark.parametrize("name", available())
def test_every_profile_fits_the_notebooks(name: str) -> None:
    profile = load_profile(name)
    paths = sorted((checkout() / "notebooks").glob("*.ipynb"))
    assert [path.stem for path in paths] == sorted(profile.notebooks)
    for path in paths:
        assert reproduce.check_parameters(path, profile)["profile"] == name


def test_the_committed_defaults_are_those_of_the_default_profile() -> None:
    profile = load_profile("sandbox")
    for path in sorted((checkout() / "notebooks").glob("*.ipynb")):
        defaults = notebooks.parameters(notebooks.read(path), path.name)
        assert reproduce.check_parameters(path, profile).items() <= defaults.items()
