"""A notebook as a file: its parameters, its identity, and what of an execution is worth keeping."""

from __future__ import annotations

import ast
import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

WIDGET = "application/vnd.jupyter.widget-view+json"
# What running adds and no reader needs: times, host names, paths, environment variables.
RUN_METADATA = ("papermill", "execution", "widgets")


def read(path: Path) -> NotebookNode:
    """The notebook at `path` in format 4; ValueError if the file is not a notebook."""
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise ValueError(f"{path.name} is not a readable notebook: {error}") from error


def to_bytes(notebook: NotebookNode) -> bytes:
    """The file's content, as Jupyter writes it."""
    return (nbformat.writes(notebook, version=4).rstrip("\n") + "\n").encode("utf-8")


def has_tag(cell: NotebookNode, tag: str) -> bool:
    """Whether a cell carries a tag."""
    return tag in cell.metadata.get("tags", [])


def parameters(notebook: NotebookNode, name: str) -> dict[str, Any]:
    """Names and defaults from the one cell tagged `parameters`, which assigns literals only.

    Read from the syntax tree instead of by papermill's line patterns, which miss an assignment over
    several lines. ValueError, naming the notebook, for no such cell, several, or other code in it.
    """
    cells = [cell for cell in notebook.cells if has_tag(cell, "parameters")]
    if len(cells) != 1 or cells[0].cell_type != "code":
        raise ValueError(
            f"{name}: expected one code cell tagged 'parameters', found {len(cells)}; without it "
            "the values of a profile would be set and then silently overwritten"
        )
    try:
        return dict(assignment(statement) for statement in ast.parse(cells[0].source).body)
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"{name}: the cell tagged 'parameters' must hold lines like `seed = 0` only: {error}"
        ) from error


def assignment(statement: ast.stmt) -> tuple[str, Any]:
    """`seed = 0` or `seed: int = 0` → ("seed", 0); ValueError for any other statement."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target, value = statement.targets[0], statement.value
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        target, value = statement.target, statement.value
    else:
        raise ValueError(f"not an assignment: {ast.unparse(statement)}")
    if not isinstance(target, ast.Name):
        raise ValueError(f"not a plain name: {ast.unparse(target)}")
    return target.id, ast.literal_eval(value)


def fingerprint(notebook: NotebookNode) -> str:
    """SHA-256 of what the notebook says and does: sources and tags, neither outputs nor counts."""
    cells = [[c.cell_type, c.source, c.metadata.get("tags", [])] for c in notebook.cells]
    return hashlib.sha256(json.dumps(cells).encode("utf-8")).hexdigest()


def tidied(executed: NotebookNode, root: Path) -> NotebookNode:
    """A copy of an executed notebook without papermill's metadata and without `root` in outputs."""
    notebook = copy.deepcopy(executed)
    for holder in [notebook, *notebook.cells]:
        for entry in RUN_METADATA:
            holder.metadata.pop(entry, None)
        if not holder.metadata.get("tags", ["some"]):
            holder.metadata.pop("tags")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [relative(output, root) for output in cell.outputs]
    return notebook


def relative(output: NotebookNode, root: Path) -> NotebookNode:
    """An output in which paths below `root` start at `root`."""
    # In JSON, because text hides at several depths: streams, reprs, HTML tables, tracebacks.
    text = json.dumps(output, ensure_ascii=False)
    inside = json.dumps(str(root), ensure_ascii=False)[1:-1]
    return nbformat.from_dict(json.loads(text.replace(f"{inside}/", "").replace(inside, ".")))


def with_outputs(source: NotebookNode, executed: NotebookNode) -> tuple[NotebookNode, list[str]]:
    """The clean source with the outputs of its execution, and notes on what was left out.

    Cells are numbered 1…N as if run from the top in a fresh kernel, which they were: the cell that
    papermill injects is not part of the source. Left out are messages on stderr and live widgets,
    which mean nothing once the kernel is gone. ValueError if the two do not have the same cells.
    """
    cells = [cell for cell in executed.cells if not has_tag(cell, "injected-parameters")]
    if [cell.source for cell in cells] != [cell.source for cell in source.cells]:
        raise ValueError("the executed notebook is not an execution of this source: run it again")
    result, notes, count = copy.deepcopy(source), [], 0
    for cell, run in zip(result.cells, cells, strict=True):
        if cell.cell_type == "code":
            count += 1
            kept = [output for output in run.outputs if noise(output) is None]
            notes += [f"cell {count}: {noise(o)}" for o in run.outputs if noise(o) is not None]
            cell.execution_count, cell.outputs = count, [numbered(o, count) for o in kept]
    return result, notes


def noise(output: NotebookNode) -> str | None:
    """A description of an output that does not belong into a committed notebook, else None."""
    if output.output_type == "stream" and output.name == "stderr":
        return f"message on stderr: {output.text.strip()[:200]}"
    if WIDGET in output.get("data", {}):
        return "live widget"
    return None


def numbered(output: NotebookNode, count: int) -> NotebookNode:
    """A copy of an output that carries its cell's number, where its kind has one."""
    result = copy.deepcopy(output)
    if "execution_count" in result:
        result.execution_count = count
    return result
