"""Annotation without a browser: items, the file of decisions, merging, spans, messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from judgelib.agreement import UNSURE, agreement
from judgelib.annotation import (
    Annotator,
    Decision,
    Item,
    Span,
    annotate,
    load_items,
    merge,
    pieces,
    positions,
    save_items,
    spans,
)
from judgelib.annotation.widget import answer, page


def item(name: str, *tokens: str, author: str = "draft-model") -> Item:
    tokens = tokens or ("It", " is", " 5", ".")
    ids = tuple(range(7, 7 + len(tokens)))
    return Item(name, f"question-{name}", "math", "2 + 2?", "4", tokens, ids, (1, 2), author)


ITEMS = [item(f"item-{number}") for number in range(6)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ada.jsonl"


@pytest.fixture
def ada(path: Path) -> Iterator[Annotator]:
    with Annotator(ITEMS, path, "Ada") as annotator:
        yield annotator


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def verdicts(annotator: Annotator) -> dict[str, tuple[str, int | None, int | None]]:
    return {name: (d.verdict, d.start, d.stop) for name, d in annotator.decisions.items()}


# Items


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Each byte is a token: characters of two to four bytes are always split."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(["<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


@pytest.mark.parametrize("text", ["a b", "a€b", "é🙂é", " \n\n\t x ,  y ", "e\u0301\u202e", "�x�"])
def test_pieces_are_one_a_token_and_join_to_the_text(text: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(text)
    found = pieces(tokenizer, [*ids, 0])
    assert len(found) == len(ids) + 1 == len(text.encode()) + 1
    assert "".join(found) == text
    assert found[-1] == ""  # the end-of-sequence token


def test_a_split_character_belongs_to_its_last_token() -> None:
    tokenizer = byte_tokenizer()
    assert pieces(tokenizer, tokenizer.encode("a€b")) == ("a", "", "", "€", "b")


def test_bytes_that_are_no_character_are_shown_as_such() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("a€b")
    assert "".join(pieces(tokenizer, ids[:3])) == tokenizer.decode(ids[:3])
    assert "".join(pieces(tokenizer, [*ids[:2], ids[-1]])) == "a�b"


def test_items_survive_their_file_exactly(tmp_path: Path) -> None:
    strange = item("b", " \u2028", "\r\n", '"<b>', "", "é🙂\x00")
    items = [item("a"), strange]
    assert load_items(save_items(items, tmp_path / "new" / "items.jsonl")) == items
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["items.jsonl"]


def test_a_damaged_item_is_named(tmp_path: Path) -> None:
    path = save_items([item("a"), item("b")], tmp_path / "items.jsonl")
    good, other = path.read_text().splitlines()
    for bad in ("{", "[]", "7", "{}", other.replace('" is"', "3"), other.replace("7, 8", '7, "8"')):
        path.write_text(f"{good}\n{bad}\n")
        with pytest.raises(ValueError, match="line 2 is not an item"):
            load_items(path)


def test_two_items_need_two_ids(tmp_path: Path, path: Path) -> None:
    with pytest.raises(ValueError, match="two items have the id 'a'"):
        save_items([item("a"), item("a")], tmp_path / "items.jsonl")
    with pytest.raises(ValueError, match="2 items with 1 ids"):
        Annotator([item("a"), item("a")], path, "Ada")


def test_an_item_has_a_piece_for_each_id() -> None:
    with pytest.raises(ValueError, match="4 tokens and 3 token ids"):
        replace(item("a"), token_ids=(1, 2, 3))


# An annotator's file


def test_a_decision_is_one_line_on_disk_when_decide_returns(
    ada: Annotator, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(file: int) -> None:
        real(file)
        synced.append(len(lines(path)))

    monkeypatch.setattr(os, "fsync", fsync)
    first, second = ada.items[:2]
    ada.decide("error", 2)
    ada.decide("correct")
    ada.undo()
    assert synced == [1, 2, 3]
    found = [(line["item"], line["verdict"], line["start"], line["stop"]) for line in lines(path)]
    assert found == [
        (first.id, "error", 2, 3),
        (second.id, "correct", None, None),
        (second.id, "undo", None, None),
    ]


def test_reopening_brings_back_decisions_position_and_undo(ada: Annotator, path: Path) -> None:
    for choice in (("error", 1, 3), ("correct",), ("unsure",)):
        ada.decide(*choice)
    before, place = verdicts(ada), ada.item.id
    ada.close()
    with Annotator(ITEMS, path, "Ada") as again:
        assert (verdicts(again), again.item.id) == (before, place)
        assert again.item == again.items[3]
        for left in (2, 1, 0):
            assert again.undo() is not None
            assert (len(again.decisions), again.position) == (left, left)
        assert again.undo() is None
    with Annotator(ITEMS, path, "Ada") as anew:
        assert (anew.decisions, anew.position) == ({}, 0)


def test_an_undone_item_is_shown_again_after_a_restart(ada: Annotator, path: Path) -> None:
    ada.decide("correct")
    ada.decide("correct")
    ada.undo()
    ada.close()
    with Annotator(ITEMS, path, "Ada") as again:
        assert again.position == 1


def test_undo_brings_an_earlier_decision_on_the_same_item_back(ada: Annotator) -> None:
    ada.decide("error", 0)
    ada.move(-1, undecided=False)
    ada.decide("error", 3)
    assert verdicts(ada)[ada.items[0].id] == ("error", 3, 4)
    ada.undo()
    assert verdicts(ada) == {ada.items[0].id: ("error", 0, 1)}
    assert ada.position == 0


def test_moving_skips_decided_items_unless_asked(ada: Annotator) -> None:
    ada.decide("correct")
    ada.decide("correct")
    seen = []
    for by, undecided in ((-1, True), (1, True), (-1, False), (-1, False), (1, True)):
        ada.move(by, undecided=undecided)
        seen.append(ada.position)
    assert seen == [5, 2, 1, 0, 2]


def test_after_the_last_item_the_display_stays(ada: Annotator) -> None:
    for _ in ITEMS:
        ada.decide("correct")
    assert ada.position == 5
    ada.move(1)
    assert (ada.position, len(ada.decisions)) == (5, 6)


def test_the_order_is_each_annotators_own_and_lasts(tmp_path: Path) -> None:
    items = [item(str(number)) for number in range(50)]

    def order(given: list[Item], name: str) -> list[str]:
        with Annotator(given, tmp_path / "order.jsonl", name) as annotator:
            return [entry.id for entry in annotator.items]

    mine = order(items, "Ada")
    assert mine == order(items[::-1], "Ada")
    assert mine != order(items, "Bob") != [entry.id for entry in items] != mine
    assert [name for name in mine if int(name) < 40] == order(items[:40], "Ada")


IMPOSSIBLE = [("error",), ("error", 4), ("error", -1), ("error", 2, 2), ("error", 3, 5)]
IMPOSSIBLE += [
    ("error", True),
    ("error", "1"),
    ("correct", 1),
    ("unsure", 0, 1),
    ("undo",),
    ("ok",),
]


@pytest.mark.parametrize("choice", IMPOSSIBLE, ids=str)
def test_an_impossible_decision_is_refused_and_not_written(
    ada: Annotator, path: Path, choice: tuple[Any, ...]
) -> None:
    with pytest.raises(ValueError):
        ada.decide(*choice)
    assert (path.read_bytes(), ada.position, ada.decisions) == (b"", 0, {})


def test_an_error_without_an_end_is_one_token(ada: Annotator) -> None:
    assert ada.decide("error", 3).stop == 4


def test_a_torn_last_line_is_set_aside(ada: Annotator, path: Path) -> None:
    ada.decide("correct")
    ada.decide("unsure")
    ada.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with Annotator(ITEMS, path, "Ada") as again:
        assert len(again.decisions) == 1
        assert again.position == 1
        again.decide("unsure")
    assert len(lines(path)) == 2
    assert Path(f"{path}.torn").read_bytes() == whole.splitlines()[1][:-19] + b"\n"


def test_a_damaged_line_is_named(ada: Annotator, path: Path) -> None:
    ada.decide("correct")
    ada.decide("error", 1)
    ada.close()
    whole = path.read_text()
    for old, new in (("error", "eror"), ('"start": 1', '"start": null'), ('"item"', '"itm"')):
        good, bad = whole.splitlines()
        path.write_text(f"{good}\n{bad.replace(old, new)}\n")
        with pytest.raises(ValueError, match="line 2 is not a decision"):
            Annotator(ITEMS, path, "Ada")
        with pytest.raises(ValueError, match="line 2 is not a decision"):
            merge([path])


def test_a_missing_line_is_noticed_by_the_undo_that_needs_it(ada: Annotator, path: Path) -> None:
    ada.decide("correct")
    ada.decide("correct")
    ada.undo()
    ada.close()
    first, _, undo = path.read_text().splitlines()
    path.write_text(f"{first}\n{undo}\n")
    with pytest.raises(ValueError, match="not the last one"):
        Annotator(ITEMS, path, "Ada")


def test_a_file_belongs_to_one_person_and_its_items(ada: Annotator, path: Path) -> None:
    with pytest.raises(ValueError, match="in use by another kernel"):
        Annotator(ITEMS, path, "Ada")
    ada.decide("correct")
    judged = ada.items[0]
    ada.close()
    with pytest.raises(ValueError, match="decisions by 'Ada'"):
        Annotator(ITEMS, path, "Bob")
    with pytest.raises(ValueError, match="not among the 5 given"):
        Annotator([entry for entry in ITEMS if entry != judged], path, "Ada")
    other = [replace(entry, right="5") for entry in ITEMS]
    with pytest.raises(ValueError, match="made on other text"):
        Annotator(other, path, "Ada")
    with pytest.raises(ValueError, match="annotator is empty"):
        Annotator(ITEMS, path, " ")
    with Annotator(ITEMS, path, "Ada") as again:  # none of the refusals kept the file
        assert len(again.decisions) == 1


def test_what_could_not_be_saved_does_not_count(
    ada: Annotator, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada.decide("correct")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for act in (lambda: ada.decide("unsure"), ada.undo):
            with pytest.raises(OSError, match="No space left"):
                act()
    assert (path.read_bytes(), len(ada.decisions), ada.position) == (before, 1, 1)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        ada.decide("unsure")
    assert (len(ada.decisions), ada.position) == (1, 1)


KILLED = """
import os, signal, sys
from judgelib.annotation import Annotator, load_items
annotator = Annotator(load_items(sys.argv[1]), sys.argv[2], "Ada")
for start in range(3):
    annotator.decide("error", start)
annotator.undo()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_nothing(path: Path, tmp_path: Path) -> None:
    items = save_items(ITEMS, tmp_path / "items.jsonl")
    done = subprocess.run([sys.executable, "-c", KILLED, str(items), str(path)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    with Annotator(ITEMS, path, "Ada") as again:
        assert [decision.start for decision in again.decisions.values()] == [0, 1]
        assert again.position == 2


# Merging, agreement, spans


def decided(path: Path, name: str, choices: dict[str, tuple[Any, ...]]) -> Path:
    """A file in which `name` decides items by their ids."""
    with Annotator(ITEMS, path, name) as annotator:
        while len(annotator.decisions) < len(choices):
            if annotator.item.id in choices.keys() - annotator.decisions.keys():
                annotator.decide(*choices[annotator.item.id])
            else:
                annotator.move(1, undecided=False)
    return path


ADA = {
    "item-0": ("error", 2),
    "item-1": ("correct",),
    "item-2": ("unsure",),
    "item-3": ("error", 1, 3),
}
BOB = {
    "item-0": ("error", 2),
    "item-1": ("error", 0),
    "item-2": ("correct",),
    "item-3": ("error", 1),
}


def test_two_annotators_are_merged_and_compared(tmp_path: Path) -> None:
    merged = merge([decided(tmp_path / "a", "Ada", ADA), decided(tmp_path / "b", "Bob", BOB)])
    first, second = positions(merged["Ada"]), positions(merged["Bob"])
    assert first == {"item-0": 2, "item-1": None, "item-2": UNSURE, "item-3": 1}
    assert second == {"item-0": 2, "item-1": 0, "item-2": None, "item-3": 1}
    compared = agreement(first, second)
    assert (compared.shared, compared.items, compared.same_position) == (4, 3, 2)


def test_merging_reads_a_file_under_work_and_leaves_it_alone(ada: Annotator, path: Path) -> None:
    ada.decide("correct")
    ada.decide("error", 1)
    ada.undo()
    with open(path, "ab") as file:
        file.write(b'{"annotator": "Ada", "it')
    before = path.read_bytes()
    assert positions(merge([path])["Ada"]) == {ada.items[0].id: None}
    assert path.read_bytes() == before
    assert not Path(f"{path}.torn").exists()


def test_one_annotator_may_use_several_files_for_several_items(tmp_path: Path) -> None:
    parts = [{name: ADA[name]} for name in ("item-0", "item-1")]
    files = [decided(tmp_path / str(n), "Ada", part) for n, part in enumerate(parts)]
    assert positions(merge(files)["Ada"]) == {"item-0": 2, "item-1": None}
    with pytest.raises(ValueError, match="'Ada' decides 'item-0' in .* and in an earlier"):
        merge([files[0], decided(tmp_path / "2", "Ada", parts[0])])


def test_decisions_on_different_texts_are_not_merged(tmp_path: Path) -> None:
    file = decided(tmp_path / "a", "Ada", ADA)
    with Annotator([item("item-0", "other")], tmp_path / "b", "Bob") as bob:
        bob.decide("correct")
    with pytest.raises(ValueError, match="'item-0' on other text"):
        merge([file, tmp_path / "b"])


def test_spans_leave_out_unsure_and_undecided_items(tmp_path: Path) -> None:
    mine = merge([decided(tmp_path / "a", "Ada", ADA)])["Ada"]
    found = spans(ITEMS, mine)
    assert found == [
        Span(ITEMS[0], 2, 3),
        Span(ITEMS[1], None, None),
        Span(ITEMS[3], 1, 3),
    ]
    with pytest.raises(ValueError, match="made on other text"):
        spans([replace(ITEMS[0], tokens=("a", "b", "c", "d"))], mine)
    with pytest.raises(ValueError, match="has them from 0 to 4"):
        spans(ITEMS, {"item-0": Decision("Ada", "item-0", ITEMS[0].sha, "error", 4, 5)})


# Messages of the browser


def message(annotator: Annotator, kind: str, **more: Any) -> dict[str, Any]:
    return {"id": "7", "turn": annotator.turn, "kind": kind, **more}


def test_the_browser_is_told_nothing_of_the_author(ada: Annotator) -> None:
    shown = json.dumps(page(ada))
    secrets = [ada.item.id, ada.item.question_id, ada.item.author, ada.item.sha, "token_ids"]
    assert [secret for secret in secrets if secret in shown] == []
    assert list(ada.item.tokens) == page(ada)["tokens"]


def test_a_message_is_answered_when_its_decision_is_on_disk(ada: Annotator, path: Path) -> None:
    got = answer(ada, message(ada, "decide", verdict="error", start=1, stop=3))
    assert got["reply"] == {"id": "7", "kind": "decide", "problem": None}
    assert (got["position"], got["decided"], len(lines(path))) == (1, 1, 1)
    got = answer(ada, message(ada, "undo"))
    assert got["undone"] == {"verdict": "error", "start": 1, "stop": 3}
    assert (got["position"], got["decided"], len(lines(path))) == (0, 0, 2)
    got = answer(ada, message(ada, "move", by=-1, undecided=True))
    assert (got["position"], got["undone"], len(lines(path))) == (5, None, 2)


LATE: list[Callable[[Annotator], object]] = [
    lambda annotator: annotator.decide("correct"),
    lambda annotator: annotator.move(1),
]


@pytest.mark.parametrize("meanwhile", LATE)
def test_a_message_about_another_display_does_nothing(
    ada: Annotator, path: Path, meanwhile: Callable[[Annotator], object]
) -> None:
    late = message(ada, "decide", verdict="unsure")
    meanwhile(ada)
    before = path.read_bytes()
    got = answer(ada, late)
    assert "out of date" in got["reply"]["problem"]
    assert (path.read_bytes(), got["turn"]) == (before, ada.turn)


def test_a_refused_decision_is_told_with_its_reason(ada: Annotator, path: Path) -> None:
    got = answer(ada, message(ada, "decide", verdict="error", start=9, stop=10))
    assert "has them from 0 to 4" in got["reply"]["problem"]
    path.unlink()
    got = answer(ada, message(ada, "decide", verdict="correct"))
    assert "No such file" in got["reply"]["problem"]
    assert (got["decided"], got["position"]) == (0, 0)


def test_running_the_cell_again_takes_the_file_over(path: Path) -> None:
    first = annotate(ITEMS, path, annotator="Ada")
    first.annotator.decide("correct")
    second = annotate(ITEMS, path, annotator="Ada")
    try:
        assert second.page["decided"] == 1
        assert (
            "closed here"
            in answer(first.annotator, message(first.annotator, "decide", verdict="unsure"))[
                "reply"
            ]["problem"]
        )
        second._handle_custom_msg(message(second.annotator, "decide", verdict="unsure"), [])
        assert (second.page["decided"], len(lines(path))) == (2, 2)
    finally:
        second.annotator.close()
