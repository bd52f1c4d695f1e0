"""Importing any module reads and writes nothing, opens no connection, prints nothing, needs no GPU.

One fresh process imports the libraries first, whose habits are theirs, and then every module of
judgelib under an audit hook; the tests below read what the hook saw.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from judgelib.provenance import checkout

PROBE = Path(__file__).with_name("import_probe.py")


def module_names() -> list[str]:
    """Every module of the package, found by its file, without importing anything."""
    root = checkout()
    paths = sorted((root / "judgelib").rglob("*.py"))
    parts = [path.relative_to(root).with_suffix("").parts for path in paths]
    names = [".".join(part[:-1] if part[-1] == "__init__" else part) for part in parts]
    return [name for name in names if not name.endswith("__main__")]


def probe(tmp_path: Path, names: list[str]) -> dict[str, list[str]]:
    """What importing each of the modules did, in a process without GPU, home or network cache."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(checkout()), *sys.path]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(PROBE), *names]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, list[str]] = json.loads(done.stdout)
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return probe(tmp_path_factory.mktemp("imports"), module_names())


@pytest.mark.parametrize("name", module_names())
def test_importing_is_silent(seen: dict[str, list[str]], name: str) -> None:
    assert seen[name] == []


LOUD = {
    "prints": ("print('hello')", "printed 'hello"),
    "complains": ("import sys; sys.stderr.write('careful')", "printed 'careful'"),
    "warns": ("import warnings; warnings.warn('old')", "warned old"),
    "writes": ("open('notes.txt', 'w').close()", "opened notes.txt"),
    "reads": ("open(__file__ + '.json').close()", "reads.py.json"),
    "runs": ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
    "asks": ("import socket; socket.socket().bind(('127.0.0.1', 0))", "socket.bind"),
    "makes": ("import os; os.mkdir('made')", "os.mkdir"),
    "sets": ("import torch; torch.set_num_threads(7)", "changed torch's number of threads"),
    "fails": ("raise RuntimeError('no GPU')", "RuntimeError: no GPU"),
}


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("loud")
    for name, (source, _) in LOUD.items():
        (folder / f"loud_{name}.py").write_text(source)
    (folder / "loud_reads.py.json").write_text("{}")
    return probe(folder, [f"loud_{name}" for name in LOUD])


@pytest.mark.parametrize("name", LOUD)
def test_the_probe_notices_a_module_that(loud: dict[str, list[str]], name: str) -> None:
    what = loud[f"loud_{name}"]
    assert any(LOUD[name][1] in line for line in what), what
