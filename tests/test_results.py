"""Tables on disk: schema, completeness, and what survives a full disk or a crash."""

import errno
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from judgelib import provenance, results

SMALLEST: dict[str, Any] = {"parameters": {"prompts": 2}, "seeds": [0]}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JUDGELIB_ROOT", str(tmp_path))
    return tmp_path


def study(correct: int = 3) -> pd.DataFrame:
    columns = results.SCHEMAS["acceptance_study"]
    return pd.DataFrame([["draft", "math", 4, 80, 60, 9, correct]], columns=list(columns))


def save(frame: pd.DataFrame, name: str = "acceptance_study", profile: str = "sandbox") -> Path:
    return results.save_table(frame, name, profile=profile, started=time.time(), **SMALLEST)


def leftovers(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*.part")]


def test_a_saved_table_comes_back_from_the_documented_place(root: Path) -> None:
    path = save(study())
    assert path == root / "data/results/sandbox/acceptance_study.csv"
    assert results.is_complete("acceptance_study", "sandbox")
    pd.testing.assert_frame_equal(results.load_table("acceptance_study", "sandbox"), study())
    assert leftovers(root) == []


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("family", "model domain prompts correct parameters tokens_trained seconds_trained"),
        ("acceptance_study", "author domain texts drafted accepted cycles correct"),
        (
            "labels_summary",
            "source domain questions tokens acceptable unacceptable ignored mismatches important",
        ),
        (
            "head_training",
            "source feature layer model domain_train domain_eval n_train n_eval auc "
            "recall_unacceptable accept_rate threshold",
        ),
        (
            "quality",
            "rule setting domain prompts correct target_correct draft_correct tokens cycles "
            "drafted accepted mismatches_accepted",
        ),
        (
            "speed",
            "engine rule setting draft_length batch round hardware prompts tokens cycles "
            "seconds bound_seconds",
        ),
        ("ablations", "study variant domain prompts correct tokens cycles accepted auc"),
        ("claims", "id claim source evidence measured ci_low ci_high holds"),
    ],
)
def test_other_tools_find_the_columns_they_were_promised(name: str, columns: str) -> None:
    assert results.SCHEMAS[name] == tuple(columns.split())


def test_columns_are_written_in_the_schema_order(root: Path) -> None:
    path = save(study()[sorted(study().columns)])
    header = path.read_text().splitlines()[0]
    assert header == ",".join(results.SCHEMAS["acceptance_study"])


def test_words_and_floats_survive_the_round_trip(root: Path) -> None:
    rows = [
        ["C1", 'says "no", twice\nand ends', "None", "NA", 0.1 + 0.2, 1e-17, 2 / 3, True],
        ["C2", "ünïcode ✓", "null", "nan", math.nan, 0.0, 1.0, False],
    ]
    frame = pd.DataFrame(rows, columns=list(results.SCHEMAS["claims"]))
    save(frame, "claims")
    pd.testing.assert_frame_equal(results.load_table("claims", "sandbox"), frame, check_exact=True)


def test_the_same_frame_gives_the_same_bytes(root: Path) -> None:
    assert save(study(), profile="one").read_bytes() == save(study(), profile="two").read_bytes()


def test_the_manifest_says_how_the_table_was_made(root: Path) -> None:
    results.save_table(
        study(),
        "acceptance_study",
        profile="sandbox",
        parameters={"prompts_per_domain": 4},
        seeds={"sampling": 7},
        started=time.time() - 5,
    )
    manifest = results.load_manifest("acceptance_study", "sandbox")
    assert manifest["parameters"] == {"prompts_per_domain": 4}
    assert manifest["seeds"] == {"sampling": 7}
    assert 5 <= manifest["wall_seconds"] < 60
    assert manifest["versions"]["torch"].startswith("2.")
    assert manifest["hardware"]["cores"] >= 1
    assert "git_sha" in manifest
    line = results.provenance_line("acceptance_study", "sandbox")
    assert line.startswith("acceptance_study of profile sandbox: 1 rows, 5 s on ")
    assert f"torch {manifest['versions']['torch']}" in line
    assert os.uname().nodename not in json.dumps(manifest["hardware"])


@pytest.mark.parametrize(
    ("frame", "named"),
    [
        (study().drop(columns="cycles"), "missing here: \\['cycles'\\]"),
        (study().assign(ratio=0.5), "unknown: \\['ratio'\\]"),
        (pd.concat([study(), study()[["correct"]]], axis=1), "occurs twice"),
        (study().iloc[:0], "at least one row"),
    ],
)
def test_wrong_tables_are_refused_by_name(root: Path, frame: pd.DataFrame, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        save(frame)
    assert not list(root.rglob("*.csv"))


def test_an_unknown_table_is_refused_with_the_known_ones(root: Path) -> None:
    with pytest.raises(ValueError, match="'acceptance'.*acceptance_study"):
        save(study(), "acceptance")


@pytest.mark.parametrize("profile", ["", "..", "../elsewhere", "a/b", ".hidden"])
def test_a_profile_cannot_leave_the_results_folder(root: Path, profile: str) -> None:
    with pytest.raises(ValueError, match="one plain file name"):
        save(study(), profile=profile)


def test_parameters_must_be_plain_values(root: Path) -> None:
    with pytest.raises(ValueError, match="plain JSON"):
        results.save_table(
            study(), "acceptance_study", profile="sandbox", started=0.0,
            parameters={"path": Path("x")}, seeds=[],
        )  # fmt: skip
    assert not results.is_complete("acceptance_study", "sandbox")


@pytest.mark.parametrize("full_at", [1, 2])
def test_a_full_disk_keeps_the_old_table(
    root: Path, monkeypatch: pytest.MonkeyPatch, full_at: int
) -> None:
    """The disk fills while the csv (1) or while the manifest (2) is written."""
    path = save(study(correct=3))
    before = path.read_bytes()
    real, calls = results.write_durably, []

    def full(part: Path, payload: bytes) -> None:
        calls.append(part)
        if len(calls) == full_at:
            part.write_bytes(payload[: len(payload) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(part, payload)

    monkeypatch.setattr(results, "write_durably", full)
    with pytest.raises(OSError, match="disk is full: acceptance_study.csv") as caught:
        save(study(correct=1))
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert results.load_table("acceptance_study", "sandbox")["correct"].item() == 3
    assert leftovers(root) == []


def test_a_crash_between_csv_and_manifest_reads_as_incomplete(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(study(correct=3))
    real = os.replace

    def killed(source: Path, target: Path) -> None:
        if target.name.endswith(".manifest.json"):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(study(correct=1))
    assert not results.is_complete("acceptance_study", "sandbox")
    with pytest.raises(ValueError, match="incomplete or altered.*make reproduce PROFILE=sandbox"):
        results.load_table("acceptance_study", "sandbox")
    assert leftovers(root) == []


def test_a_table_edited_by_hand_is_refused(root: Path) -> None:
    path = save(study())
    path.write_text(path.read_text().replace("60", "61"))
    with pytest.raises(ValueError, match="altered"):
        results.load_table("acceptance_study", "sandbox")


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_rubbish_manifest_is_not_a_complete_table(root: Path, rubbish: bytes) -> None:
    results.manifest_path(save(study())).write_bytes(rubbish)
    assert not results.is_complete("acceptance_study", "sandbox")


def test_an_absent_table_says_how_to_make_it(root: Path) -> None:
    with pytest.raises(ValueError, match="absent: make it with"):
        results.load_table("family", "sandbox")
    with pytest.raises(ValueError, match="there is none"):
        results.load_manifest("family", "sandbox")


def test_the_root_is_the_checkout_from_any_folder_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("JUDGELIB_ROOT", raising=False)
    monkeypatch.chdir(provenance.checkout() / "tests")
    assert results.project_root() == provenance.checkout()
    assert results.project_root(tmp_path) == tmp_path.resolve()


def test_results_are_readable_by_others(root: Path) -> None:
    path, plain = save(study()), root / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_the_commit_is_not_taken_from_somebody_elses_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(provenance, "checkout", lambda: tmp_path)
    assert provenance.git_sha() is None
