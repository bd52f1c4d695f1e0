"""The token explorer: how each token of an answer got there, as one HTML page.

`record` decodes a prompt and keeps what the rule saw at every place, `compare` does so strictly and
with a judge, `labelled` shows token labels the same way. The result is a `Page`: it displays itself
in JupyterLab, and `write` makes a file that opens from disk and asks no network.
"""

from __future__ import annotations

from judgelib.explorer.page import Page
from judgelib.explorer.recording import record
from judgelib.explorer.tokens import Choice, Record, Rejected, Token
from judgelib.explorer.views import compare, labelled

__all__ = ["Choice", "Page", "Record", "Rejected", "Token", "compare", "labelled", "record"]
