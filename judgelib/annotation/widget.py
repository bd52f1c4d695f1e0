"""The widget: what the browser is shown, and what its messages do.

The browser holds no state that matters. It sends a message for each key that decides, undoes or
moves, and shows a decision as saved when the page that answers the message says so; by then it is
on disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from judgelib.annotation.annotator import Annotator
from judgelib.annotation.decisions import Decision
from judgelib.annotation.items import Item

if TYPE_CHECKING:
    from anywidget import AnyWidget

_shown: dict[Path, Annotator] = {}
"""Files open in this process: running a cell again must not find its own file in use."""


def annotate(items: Iterable[Item], path: str | os.PathLike[str], *, annotator: str) -> AnyWidget:
    """Show `items` in JupyterLab; every decision is appended to the file `path` at once.

    Run the cell again, also after the kernel died, to go on where the file ends. The widget's
    `annotator` attribute is the `Annotator`, whose errors this raises too.
    """
    place = Path(path).resolve()
    if place in _shown:
        _shown.pop(place).close()
    at_work = Annotator(items, path, annotator)
    _shown[place] = at_work
    widget = _widget_class()(page=page(at_work))
    widget.annotator = at_work
    widget.on_msg(lambda _, message, __: setattr(widget, "page", answer(at_work, message)))
    return widget


@cache
def _widget_class() -> type[AnyWidget]:
    import anywidget
    import traitlets

    class AnnotationWidget(anywidget.AnyWidget):
        _esm = Path(__file__).with_name("widget.js")
        _css = Path(__file__).with_name("widget.css")
        page = traitlets.Dict().tag(sync=True)

    return AnnotationWidget


def page(
    annotator: Annotator, *, reply: Mapping[str, Any] | None = None, undone: Decision | None = None
) -> dict[str, Any]:
    """All that the browser gets to see: nothing that tells who wrote the answer.

    `reply` names the message that is answered and what went wrong; `undone` is the decision that
    was just taken back, so that the browser can select its tokens again.
    """
    item, decisions = annotator.item, annotator.decisions
    return {
        "turn": annotator.turn,
        "position": annotator.position,
        "total": len(annotator.items),
        "decided": len(decisions),
        "file": annotator.path.name,
        "domain": item.domain,
        "question": item.question,
        "right": item.right,
        "tokens": list(item.tokens),
        "decision": _shown_decision(decisions.get(item.id)),
        "undone": _shown_decision(undone),
        "reply": dict(reply) if reply else None,
    }


def _shown_decision(decision: Decision | None) -> dict[str, Any] | None:
    if decision is None:
        return None
    return {"verdict": decision.verdict, "start": decision.start, "stop": decision.stop}


def answer(annotator: Annotator, message: Mapping[str, Any]) -> dict[str, Any]:
    """Do what the browser asks; the page it gets, with the problem if it could not be done."""
    problem, undone = None, None
    try:
        undone = _obey(annotator, message)
    except ValueError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.strerror} ({annotator.path})."
    reply = {"id": message.get("id"), "kind": message.get("kind"), "problem": problem}
    return page(annotator, reply=reply, undone=undone)


def _obey(annotator: Annotator, message: Mapping[str, Any]) -> Decision | None:
    """Carry a message out; what was undone by it."""
    if message.get("turn") != annotator.turn:
        raise ValueError("this display was out of date and has been refreshed; decide again.")
    match message.get("kind"):
        case "decide":
            annotator.decide(message["verdict"], message.get("start"), message.get("stop"))
        case "undo":
            return annotator.undo()
        case "move":
            annotator.move(message["by"], undecided=message["undecided"])
        case kind:
            raise ValueError(f"the browser asked for {kind!r}, which nobody can do.")
    return None
