"""Several annotators' files read together, to compare them and to make labels from them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from judgelib.annotation.decisions import Decision, latest, standing
from judgelib.annotation.log import read


def merge(paths: Iterable[str | os.PathLike[str]]) -> dict[str, dict[str, Decision]]:
    """Annotator → item id → the decision that counts.

    Reads only, also while an annotator is at work; a torn last line is not there yet. One
    annotator may have several files about different items.

    Raises:
        ValueError: a damaged line, two files in which one annotator decides the same item, or
            files about different versions of an item.
    """
    merged: dict[str, dict[str, Decision]] = {}
    shas: dict[str, str] = {}
    for path in paths:
        for decision in _decisions(path):
            if shas.setdefault(decision.item, decision.sha) != decision.sha:
                raise ValueError(
                    f"{path} decides {decision.item!r} on other text than an earlier file: "
                    "compare files that were made with the same items."
                )
            mine = merged.setdefault(decision.annotator, {})
            if mine.setdefault(decision.item, decision) is not decision:
                raise ValueError(
                    f"{decision.annotator!r} decides {decision.item!r} in {path} and in an earlier "
                    "file: give one of the two, or each person a name."
                )
    return merged


def _decisions(path: str | os.PathLike[str]) -> Iterable[Decision]:
    return latest(standing(read(path))).values()
