"""One HTML file that shows records: no network, no library, and no text that could become markup.

The data lie in it as JSON; `explorer.js` sets every text as a text node. A content security policy
in the file itself forbids all requests and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from judgelib.explorer.tokens import ORIGINS, Record
from judgelib.results import write_files

PAPERS = {"light": "#FFFFFF", "dark": "#16181C"}
INKS = {"light": "#000000", "dark": "#FFFFFF"}
TINT = 0.26
"""Share of an origin's colour in the ground behind its tokens."""


class Page:
    """Records side by side. As the last value of a notebook's cell it shows itself.

    Args:
        records: what is shown; of none the page says so.
        title: the page's heading.
        height: of the frame in a notebook, in pixels; None: by the length of the texts. The frame
            can be pulled larger.
    """

    def __init__(
        self, records: Sequence[Record], *, title: str = "Tokens", height: int | None = None
    ) -> None:
        self.records, self.title = list(records), title
        self.height = height or _height(self.records)

    @property
    def html(self) -> str:
        """The whole file."""
        script, style = _asset("explorer.js"), _asset("explorer.css") + _palette()
        policy = "; ".join(
            [
                "default-src 'none'",
                f"script-src '{_hash(script)}'",
                f"style-src '{_hash(style)}'",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        )
        return "\n".join(
            [
                "<!doctype html>",
                '<html lang="en">',
                "<head>",
                '<meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{escape(self.title)}</title>",
                f"<style>{style}</style>",
                "</head>",
                "<body>",
                f"<noscript>{self._plain()}</noscript>",
                f'<script type="application/json" id="data">{_json(self._data())}</script>',
                f"<script>{script}</script>",
                "</body>",
                "</html>",
                "",
            ]
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the file, whole or not at all; returns its path."""
        write_files({Path(path): self.html.encode("utf-8", "replace")})
        return Path(path)

    def _data(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "origins": {name: origin._asdict() for name, origin in ORIGINS.items()},
            "records": [
                {**record.to_json(), "parts": _parting(self.records[0], record)}
                for record in self.records
            ],
        }

    def _plain(self) -> str:
        """For readers without scripts: the texts alone."""
        texts = [f"<h2>{escape(r.title)}</h2><pre>{escape(r.text)}</pre>" for r in self.records]
        return "This page needs JavaScript to show how the tokens got there." + "".join(texts)

    def _repr_html_(self) -> str:
        """A frame that holds the whole file, so that it survives in exported notebooks.

        A frame and not bare markup, because notebooks and their exports do not run scripts of an
        output alike, and because styles would leak either way. The sandbox lets the scripts run but
        gives them no access to the notebook around it.
        """
        content = self.html.replace("&", "&amp;").replace("'", "&#39;")
        return (
            f'<iframe sandbox="allow-scripts" title="{escape(self.title)}" width="100%" '
            f'height="{self.height}" style="border: 0; resize: vertical; overflow: auto" '
            f"srcdoc='{content}'></iframe>"
        )

    def __repr__(self) -> str:
        shown = ", ".join(f"{r.title}: {len(r.tokens)} tokens" for r in self.records)
        return f"{self.title} ({shown})"


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


def _hash(source: str) -> str:
    digest = hashlib.sha256(source.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _json(data: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or opens another."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _parting(first: Record, other: Record) -> int | None:
    """Where the text of the second record leaves that of the first, which has the same prompt."""
    if other is first or other.prompt != first.prompt:
        return None
    ours, theirs = ([token.id for token in record.tokens] for record in (first, other))
    same = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    return same if same is not None or len(ours) == len(theirs) else min(len(ours), len(theirs))


def _height(records: Sequence[Record]) -> int:
    lengths = [len(record.text) + 18 * record.text.count("\n") for record in records]
    return min(1000, 640 + max(lengths) // 3) if lengths else 120


# Colours


def _palette() -> str:
    """Two custom properties for each origin and theme: its ground, and a line that shows on it."""
    blocks = {theme: _colours(theme) for theme in PAPERS}
    return (
        f":root {{{blocks['light']}}}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{{blocks['dark']}}} }}\n"
        f":root[data-theme=light] {{{blocks['light']}}}\n"
        f":root[data-theme=dark] {{{blocks['dark']}}}\n"
    )


def _colours(theme: str) -> str:
    return " ".join(
        f"--{name}-ground: {ground(origin.color, theme)}; --{name}-line: "
        f"{line(origin.color, theme)};"
        for name, origin in ORIGINS.items()
    )


def ground(color: str, theme: str) -> str:
    """What stands behind a token: so pale that the theme's ink is easily read on it."""
    return mixed(PAPERS[theme], color, TINT)


def line(color: str, theme: str) -> str:
    """The colour itself, shaded until it stands out from its ground as WCAG asks of marks (3:1)."""
    shades = (mixed(color, INKS[theme], step / 20) for step in range(21))
    return next(shade for shade in shades if contrast(shade, ground(color, theme)) >= 3)


def mixed(a: str, b: str, share: float) -> str:
    """`#rrggbb`, `share` of it b."""
    pairs = zip(_channels(a), _channels(b), strict=True)
    return "#" + "".join(f"{round(255 * (x + share * (y - x))):02X}" for x, y in pairs)


def contrast(a: str, b: str) -> float:
    """WCAG 2.2's contrast ratio of two colours `#rrggbb`, from 1 to 21."""
    low, high = sorted(map(_luminance, (a, b)))
    return (high + 0.05) / (low + 0.05)


def _luminance(color: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _channels(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _channels(color: str) -> list[float]:
    return [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
