"""The README's tables come from the results and from nothing else."""

from pathlib import Path

import pandas as pd
import pytest

from judgelib import report, results
from judgelib.claims import declarations

TEXT = """before
<!-- report:family -->
stale 12.3%
<!-- /report -->
between
<!-- report:acceptance_study -->
<!-- /report -->
<!-- report:claim_c1 -->
<!-- /report -->
after
"""


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Made-up tables: the draft's runs are five times longer than those of the others."""
    monkeypatch.setenv("JUDGELIB_ROOT", str(tmp_path))
    family = pd.DataFrame(
        [["target", d, 200, 190, 1000, 5, 6] for d in ("math", "code", "facts")],
        columns=list(results.SCHEMAS["family"]),
    )
    rows = [
        [author, "math", f"q{i}", 50, 40, 8 if author == "draft" else 40, int(i % 4 > 0), 10, 9]
        for author in ("target", "draft", "expert", "human")
        for i in range(40)
    ]
    texts = pd.DataFrame(rows, columns=list(results.SCHEMAS["acceptance_texts"]))
    for name, table in {"family": family, "acceptance_texts": texts}.items():
        results.save_table(
            table, name, profile="made-up", parameters={"bootstrap": 50}, seeds=[0], started=0.0
        )
    return "made-up"


def test_every_block_is_computed_and_the_rest_is_kept(profile: str) -> None:
    filled = report.filled(TEXT, profile)
    assert "stale" not in filled
    assert filled.startswith("before\n") and filled.endswith("after\n") and "\nbetween\n" in filled
    assert "| target | 1,000 | 95.0% [91.0%, 97.3%] |" in filled
    assert "| draft | 5.00 [5.00, 5.00] | 75.0%" in filled
    assert "**C1, human: holds.**" in filled and "-4.00 [-4.00, -4.00]" in filled
    assert "90.0% of the rejected tokens were right" in filled
    assert report.filled(filled, profile) == filled


def test_an_unknown_block_is_refused(profile: str) -> None:
    with pytest.raises(ValueError, match="expected a report block of family, .* got 'speed'"):
        report.filled("<!-- report:speed -->\n<!-- /report -->", profile)


def test_a_missing_table_is_refused(profile: str) -> None:
    with pytest.raises(ValueError, match="family"):
        report.filled(TEXT, "another")


def test_the_command_writes_the_file(
    profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "README.md"
    page.write_text(TEXT)
    assert report.main(["--profile", profile, "--file", str(page)]) == 0
    assert page.read_text() == report.filled(TEXT, profile)
    assert "README.md" in capsys.readouterr().out


def test_the_overview_counts_what_holds(profile: str) -> None:
    """Whatever is neither shown nor refuted is undecided."""
    verdicts = {"C1": ["holds", "holds", "fails"], "C4": ["undecided: 9 of 10 prompts", "holds"]}
    columns = list(results.SCHEMAS["claims"])
    rows = [
        {**dict.fromkeys(columns, 0), "id": name, "holds": said}
        for name, all_said in verdicts.items()
        for said in all_said
    ]
    table = pd.DataFrame(rows, columns=columns)
    results.save_table(table, "claims", profile=profile, parameters={}, seeds=[0], started=0.0)
    lines = report.overview(profile).splitlines()
    assert lines[2] == "| C1: Strict verification rejects good text | 2 | 1 | 0 |"
    assert lines[5] == "| C4: Quality holds | 1 | 0 | 1 |"
    assert {entry.id for entry in declarations()} == set(report.ASKED)


def test_without_a_file_every_page_with_blocks_is_filled(profile: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    pages = {tmp_path / "README.md": TEXT, tmp_path / "docs" / "a.md": TEXT}
    for page, text in {**pages, tmp_path / "docs" / "b.md": "stale\n"}.items():
        page.write_text(text)
    assert report.main(["--profile", profile]) == 0
    assert {page.read_text() for page in pages} == {report.filled(TEXT, profile)}
    assert (tmp_path / "docs" / "b.md").read_text() == "stale\n"
