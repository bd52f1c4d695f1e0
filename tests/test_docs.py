"""The documentation keeps its word: examples run and print what stands beside them, links, paths,
`make` targets and dotted names exist.

In docs/*.md the ```python blocks of a page run in order, in one namespace; a ```text block right
behind one is what it prints (without one it prints nothing). A block under `<!-- not run: why -->`
needs a server or a GPU: of it, as of those in the other files, only the syntax is checked.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import judgelib
from judgelib.provenance import checkout

ROOT = checkout()
PAGES = sorted((ROOT / "docs").glob("*.md"))
FILES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *PAGES]

BLOCK = re.compile(
    r"^(?P<why><!-- not run: .+ -->\n)?[ ]*```(?P<kind>\w+)\n(?P<body>.*?)^[ ]*```$"
    r"(?:\n\n```text\n(?P<prints>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^()\s]+)\)")
DOTTED = re.compile(r"\bjudgelib(?:\.\w+)+")
FOLDERS = ("judgelib", "tests", "docs", "data", "figures", "notebooks", "custom_generate", ".ci")


class Block(NamedTuple):
    """A fenced block; `prints` is the ```text block behind it, "" if there is none."""

    kind: str
    body: str
    prints: str
    runs: bool
    line: int


def blocks(text: str) -> Iterator[Block]:
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("body"))
        prints = found["prints"] or ""
        yield Block(found["kind"], found["body"], prints, not found["why"], line)


def run(text: str, name: str) -> list[str]:
    """Run a page's examples; returns those that print something else, with what they print."""
    names: dict[str, Any] = {"__name__": "__docs__"}
    wrong = []
    for block in blocks(text):
        if block.kind != "python":
            continue
        code = compile("\n" * block.line + block.body, name, "exec")
        if block.runs:
            with redirect_stdout(io.StringIO()) as out:
                exec(code, names)
            if out.getvalue() != block.prints:
                wrong.append(f"{name}, line {block.line}: it prints\n{out.getvalue()}")
    return wrong


def code_lines(text: str) -> list[str]:
    """Inline code and the lines of shell blocks, without their comments."""
    shell = [block.body for block in blocks(text) if block.kind in ("bash", "sh")]
    lines = [line.partition(" #")[0].strip() for body in shell for line in body.splitlines()]
    return [*INLINE.findall(text), *lines]


def targets(text: str) -> set[str]:
    """What a file asks `make` for."""
    calls = [shlex.split(line)[1:] for line in code_lines(text) if re.match(r"make\s", line)]
    return {word for call in calls for word in call if re.fullmatch(r"[a-z][a-z-]*", word)}


def modules(text: str) -> set[str]:
    """What a file runs with `python -m`."""
    return {name for line in code_lines(text) for name in re.findall(r"-m (judgelib[\w.]*)", line)}


def paths(text: str) -> set[str]:
    """Files and folders of this repository named in inline code, without those that vary."""
    plain = [code for code in INLINE.findall(text) if re.fullmatch(r"[\w./-]+", code)]
    named = {code for code in plain if code.split("/")[0] in FOLDERS and "/" in code}
    return named | {code for code in plain if re.fullmatch(r"requirements[\w-]*\.txt", code)}


def links(text: str) -> set[str]:
    """Where a file links to, without the web."""
    return {link for link in LINK.findall(text) if not re.match(r"[a-z]+:", link)}


def anchors(text: str) -> set[str]:
    """The headings of a file as GitHub writes them in addresses."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in heads}


def broken(link: str, page: Path) -> bool:
    """Whether nothing is at a link of a page."""
    name, _, anchor = link.partition("#")
    goal = (page.parent / name).resolve() if name else page
    if not goal.exists():
        return True
    return bool(anchor) and anchor not in anchors(goal.read_text(encoding="utf-8"))


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one, fields of dataclasses included."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        module = ".".join(parts[:count])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not module.startswith(error.name or "?"):
                raise  # a library that is missing, not the module
            continue
        return all((found := part_of(found, part)) is not None for part in parts[count:])
    return False


def part_of(owner: Any, name: str) -> Any:
    fields = dataclasses.fields(owner) if dataclasses.is_dataclass(owner) else ()
    return next((field for field in fields if field.name == name), getattr(owner, name, None))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_file = pytest.mark.parametrize("path", FILES, ids=relative)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_examples_print_what_stands_there(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert run(page.read_text(encoding="utf-8"), relative(page)) == []


@every_file
def test_python_is_python(path: Path) -> None:
    for block in blocks(path.read_text(encoding="utf-8")):
        if block.kind == "python":
            compile("\n" * block.line + block.body, relative(path), "exec")


@every_file
def test_links_lead_somewhere(path: Path) -> None:
    assert [link for link in links(path.read_text(encoding="utf-8")) if broken(link, path)] == []


@every_file
def test_paths_exist(path: Path) -> None:
    named = paths(path.read_text(encoding="utf-8"))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


@every_file
def test_make_knows_the_targets(path: Path) -> None:
    rules = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert sorted(targets(path.read_text(encoding="utf-8")) - set(rules)) == []


@every_file
def test_names_resolve(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = {name for code in INLINE.findall(text) for name in DOTTED.findall(code)}
    assert sorted(name for name in named | modules(text) if not resolves(name)) == []


def test_citation_has_what_the_format_asks_for() -> None:
    """Citation File Format 1.2.0: its required keys, here and in each reference."""
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert told["cff-version"] == "1.2.0" and told["message"] and told["title"]
    assert str(told["version"]) == judgelib.__version__
    assert told["license"] == "Apache-2.0"
    for entry in (told, *told["references"]):
        assert entry["title"] and entry["type"]
        assert all(who.get("name") or who["family-names"] for who in entry["authors"])
    found = [reference["url"].rsplit("/", 1)[1] for reference in told["references"]]
    assert found == ["2501.19309", "2504.20039"]


PAGE = """# A page

[there](#a-page), [gone](#no-page), [gone too](no.md), [web](https://example.org/x.md).
`make lab`, `make nothing PROFILE=x`, `judgelib.rules.Window.hidden`, `judgelib.rules.Door`,
`tests/test_docs.py`, `tests/test_nothing.py`, `data/results/<profile>/x.csv`.

```python
a = 1
print(a + 1)
```

```text
3
```

<!-- not run: no such thing -->
```python
import no_such_module
```

```bash
make unit -j 2  # make coffee
python -m judgelib.no_module --make tea
```
"""


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert run(PAGE, "page.md") == ["page.md, line 7: it prints\n2\n"]
    assert {link for link in links(PAGE) if broken(link, page)} == {"#no-page", "no.md"}
    assert targets(PAGE) == {"lab", "nothing", "unit"}
    assert paths(PAGE) == {"tests/test_docs.py", "tests/test_nothing.py"}
    assert modules(PAGE) == {"judgelib.no_module"}
    assert resolves("judgelib.rules.Window.hidden") and resolves("judgelib.rules.Match.accept")
    assert not resolves("judgelib.rules.Door") and not resolves("judgelib.no_module")
