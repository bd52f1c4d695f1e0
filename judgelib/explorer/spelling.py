"""How a single token is written out, exactly, also where it is only part of a character."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from judgelib.annotation.items import pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def spelling(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """What a token stands for by itself: its text, its bytes as `⟨E2 82⟩` if they are no whole
    character, or the name of a special token; `[7]` for an id that the tokenizer does not know."""
    raw = token_bytes(tokenizer, token)
    if raw is None:
        # SentencePiece drops the space before a text's first token, so it is asked for the second.
        name = tokenizer.convert_ids_to_tokens(token)
        return _added(tokenizer, token) or (name if isinstance(name, str) else f"[{token}]")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return f"⟨{raw.hex(' ').upper()}⟩"


def token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes | None:
    """The bytes of a token of a byte-level vocabulary; None for special tokens and where the
    vocabulary is made of characters."""
    name = tokenizer.convert_ids_to_tokens(token)
    if not isinstance(name, str) or token in tokenizer.all_special_ids:
        return None
    if fallback := _BYTE.fullmatch(name):
        return bytes.fromhex(fallback[1])
    alphabet = _alphabet()
    if not _byte_level(tokenizer) or not set(name) <= set(alphabet):
        return None
    return bytes(alphabet[letter] for letter in name)


def _added(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    if token in tokenizer.all_special_ids or token >= len(tokenizer):
        return ""
    return pieces(tokenizer, [token, token])[1]


def _byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in str(backend.decoder)


@cache
def _alphabet() -> dict[str, int]:
    """GPT-2's: every byte has a printable letter, its own where there is one."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [byte for byte in range(256) if byte not in own]
    return {chr(b): b for b in own} | {chr(256 + n): b for n, b in enumerate(other)}
