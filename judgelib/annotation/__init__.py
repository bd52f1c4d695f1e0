"""TokenCourt for people: an annotator reads an answer and marks the first wrong token.

`annotate` shows the widget in JupyterLab, `Annotator` is what it does without a browser, `merge`
reads the finished files and `spans` turns decisions into what token labels are made from
(Judge Decoding, section 4: before the error positive, the mistaken tokens negative).
"""

from __future__ import annotations

from judgelib.annotation.annotator import Annotator
from judgelib.annotation.decisions import Decision, Span, positions, spans
from judgelib.annotation.items import Item, load_items, pieces, save_items
from judgelib.annotation.merging import merge
from judgelib.annotation.widget import annotate

__all__ = [
    "Annotator",
    "Decision",
    "Item",
    "Span",
    "annotate",
    "load_items",
    "merge",
    "pieces",
    "positions",
    "save_items",
    "spans",
]
