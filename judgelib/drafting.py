"""Drafters: whatever proposes the tokens of a window.

A drafter works on the rows of one batch (a single text is a batch of one). The loop calls `start`,
then for every cycle `propose` and `commit`, and `keep` when rows have finished. A drafter belongs
to one decoding at a time; `start` begins anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from judgelib.cache import RowCache, catch_up, common_prefix, rollback
from judgelib.models import LanguageModel, pad_left
from judgelib.sampling import Sampling, draw


class Draft(NamedTuple):
    """Proposed tokens.

    Attributes:
        ids: (B, k) tokens; row b has counts[b] real ones, then padding.
        counts: how many tokens each row proposes, at most what was asked for.
        logits: (B, k, V) what each token was chosen from, or None.
    """

    ids: Tensor
    counts: list[int]
    logits: Tensor | None = None


class Request(NamedTuple):
    """What every cycle of one decoding has in common.

    Attributes:
        window: the most tokens a row may be asked for.
        tokens: the longest text, prompt included.
        width: V, the width of the target's logits: no id at or above it may be proposed.
        device: where the target wants the tokens.
        sampling: how the drafter is to choose.
        wants_logits: whether a rule reads the draft's logits.
    """

    window: int
    tokens: int
    width: int
    device: torch.device
    sampling: Sampling
    wants_logits: bool


class Drafter(Protocol):
    """Proposes tokens for every row."""

    draws: int  # uniform random numbers wanted for each token when sampling

    def start(self, prompts: Sequence[Sequence[int]], request: Request) -> None:
        """Begin one text for each prompt."""

    def propose(self, counts: Sequence[int], uniforms: Tensor | None) -> Draft:
        """Propose up to counts[b] tokens for row b. `uniforms`: (B, window, draws) or None."""

    def commit(self, tokens: Sequence[list[int]], accepted: Sequence[int]) -> None:
        """Row b goes on with tokens[b]; the first accepted[b] of them had been proposed."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with `rows` only, in this order (rows that finished are left out)."""

    def restart(self, row: int, prompt: Sequence[int], hint: Sequence[int]) -> None:
        """Begin another text in the place of a row that has finished. `hint`: see `Job.hint`."""


class ModelDrafter:
    """Drafts with a small language model, one token a pass.

    Greedy decoding drafts the likeliest tokens; sampling draws them from the draft's own
    distribution at the same temperature and top-p. A text that outgrows the draft's context gets no
    more proposals.

    Args:
        model: the draft.
    """

    draws = 1

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.cache = RowCache(0, 0)
        self.unread: list[list[int]] = []  # committed, but not read: after a full window two
        self._drafted = 0

    def start(self, prompts: Sequence[Sequence[int]], request: Request) -> None:
        self._request = request
        self._width = min(request.width, self.model.vocab_size)
        self.cache = self.model.new_cache(len(prompts), request.tokens + request.window)
        self.unread = [list(prompt) for prompt in prompts]
        self._texts = [self._known(list(prompt)) for prompt in prompts]

    def propose(self, counts: Sequence[int], uniforms: Tensor | None) -> Draft:
        counts = [min(count, self._room(row)) for row, count in enumerate(counts)]
        self._drafted = max(counts)
        if not self._drafted:
            return Draft(
                torch.empty(len(counts), 0, dtype=torch.long, device=self._request.device), counts
            )
        return self._draft(counts, uniforms)

    def commit(self, tokens: Sequence[list[int]], accepted: Sequence[int]) -> None:
        """Keep what was both drafted and accepted in the cache. The last drafted token was never
        read."""
        for text, new in zip(self._texts, tokens, strict=True):
            text += self._known(new)
        if not self._drafted:
            self.unread = [old + new for old, new in zip(self.unread, tokens, strict=True)]
            return
        known = [min(count, self._drafted - 1) for count in accepted]
        grown = self._drafted - 1
        rollback(
            self.cache, [n - grown + k for n, k in zip(self.cache.lengths, known, strict=True)]
        )
        self.unread = [new[k:] for new, k in zip(tokens, known, strict=True)]

    def keep(self, rows: Sequence[int]) -> None:
        self.cache.keep(rows)
        self.unread = [self.unread[row] for row in rows]
        self._texts = [self._texts[row] for row in rows]

    def restart(self, row: int, prompt: Sequence[int], hint: Sequence[int]) -> None:
        """What the new prompt shares with the row's last text is not read again."""
        known = self._known(list(prompt))
        shared = common_prefix(self._texts[row][: self.cache.lengths[row]], known)
        self._texts[row] = known
        if self.cache.lengths[row] and len(prompt) < self.model.context:
            catch_up(self.model, self.cache, row, known, shared)
        else:  # nothing was read yet, so nothing is shared; or it is too long for any proposal
            self.cache.lengths[row] = 0
        self.unread[row] = list(prompt[self.cache.lengths[row] :])

    def _known(self, tokens: list[int]) -> list[int]:
        """The tokens, with stand-ins for ids past the draft's vocabulary: it only proposes."""
        return [token if token < self.model.vocab_size else 0 for token in tokens]

    def _room(self, row: int) -> int:
        return max(0, self.model.context - self.cache.lengths[row] - len(self.unread[row]))

    def _draft(self, counts: list[int], uniforms: Tensor | None) -> Draft:
        ids, pads = pad_left([self._known(row) for row in self.unread], self.model.device)
        chosen, logits = [], []
        for step in range(self._drafted):
            row = self._next_logits(ids, pads)
            ids, pads = self._choose(row, uniforms, step)[:, None], None
            chosen.append(ids)
            if self._request.wants_logits:
                logits.append(row)
        return Draft(
            torch.cat(chosen, 1).to(self._request.device),
            counts,
            self._stack(logits) if logits else None,
        )

    def _next_logits(self, ids: Tensor, pads: list[int] | None) -> Tensor:
        """(B, V') logits of the next token, cut to ids that the target knows (some models pad their
        vocabulary)."""
        return self.model.read(ids, self.cache, rows=1, pads=pads).logits[:, -1, : self._width]

    def _choose(self, logits: Tensor, uniforms: Tensor | None, step: int) -> Tensor:
        if uniforms is None:
            return logits.argmax(-1)
        return draw(
            self._request.sampling.distribution(logits), uniforms[:, step, 0].to(logits.device)
        )

    def _stack(self, logits: list[Tensor]) -> Tensor:
        """(B, k, V): ids the draft does not know get no probability."""
        missing = self._request.width - self._width
        stacked = torch.stack(logits, 1).to(self._request.device)
        return (
            torch.nn.functional.pad(stacked, (0, missing), value=float("-inf"))
            if missing
            else stacked
        )


class _ListDrafter:
    """What the drafters without a model share: each row proposes tokens from a list in memory."""

    draws = 0

    def start(self, prompts: Sequence[Sequence[int]], request: Request) -> None:
        self._request = request

    def restart(self, row: int, prompt: Sequence[int], hint: Sequence[int]) -> None:
        raise ValueError(
            f"{type(self).__name__} works on one batch of texts and cannot go on with others; "
            "use another drafter, or speculate_batch"
        )

    def propose(self, counts: Sequence[int], uniforms: Tensor | None) -> Draft:
        found = [self._next_tokens(row, count) for row, count in enumerate(counts)]
        width = max(map(len, found))
        padded = [tokens + [0] * (width - len(tokens)) for tokens in found]
        ids = torch.tensor(padded, dtype=torch.long, device=self._request.device).view(
            len(found), width
        )
        return Draft(ids, [len(tokens) for tokens in found])

    def _next_tokens(self, row: int, count: int) -> list[int]:
        raise NotImplementedError


class NoDrafter(_ListDrafter):
    """Proposes nothing: every token is the target's own, one a cycle."""

    def commit(self, tokens: Sequence[list[int]], accepted: Sequence[int]) -> None:
        pass

    def keep(self, rows: Sequence[int]) -> None:
        pass

    def restart(self, row: int, prompt: Sequence[int], hint: Sequence[int]) -> None:
        pass

    def _next_tokens(self, row: int, count: int) -> list[int]:
        return []


class PromptLookupDrafter(_ListDrafter):
    """Proposes what followed the last earlier occurrence of the text's latest tokens (prompt lookup
    decoding).

    Args:
        longest: tokens to look up; if they never occurred before, one fewer is tried, and so on.
        shortest: the fewest tokens to look up; nothing is proposed if even they are new.
    """

    def __init__(self, longest: int = 3, shortest: int = 1) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(
                f"prompt lookup needs 1 <= shortest <= longest, got {shortest} and {longest}"
            )
        self.sizes = range(longest, shortest - 1, -1)

    def start(self, prompts: Sequence[Sequence[int]], request: Request) -> None:
        super().start(prompts, request)
        self._texts: list[list[int]] = [[] for _ in prompts]
        self._followers: list[dict[tuple[int, ...], int]] = [
            {} for _ in prompts
        ]  # n-gram -> where it was followed
        self.commit([list(prompt) for prompt in prompts], [0] * len(prompts))

    def commit(self, tokens: Sequence[list[int]], accepted: Sequence[int]) -> None:
        for text, followers, new in zip(self._texts, self._followers, tokens, strict=True):
            for token in new:
                for gram in self._latest(text):
                    followers[gram] = len(text)
                text.append(token)

    def keep(self, rows: Sequence[int]) -> None:
        self._texts = [self._texts[row] for row in rows]
        self._followers = [self._followers[row] for row in rows]

    def restart(self, row: int, prompt: Sequence[int], hint: Sequence[int]) -> None:
        self._texts[row], self._followers[row] = [], {}
        new: list[list[int]] = [[] for _ in self._texts]
        new[row] = [*hint, *prompt]
        self.commit(new, [0] * len(new))

    def _next_tokens(self, row: int, count: int) -> list[int]:
        text, followers = self._texts[row], self._followers[row]
        start = next(
            (followers[gram] for gram in self._latest(text) if gram in followers), len(text)
        )
        return [token for token in text[start : start + count] if token < self._request.width]

    def _latest(self, text: list[int]) -> list[tuple[int, ...]]:
        return [tuple(text[-size:]) for size in self.sizes if size <= len(text)]


class RevisionDrafter(_ListDrafter):
    """Proposes the rest of an earlier version of the text, its `hint` (a revision mostly says the
    same again).

    Where the latest tokens stand in the hint, its text is proposed from there on, from the place
    nearest to the one expected if there are several; where they do not, it is taken to go on token
    by token.

    Args:
        longest: tokens to look up; if they are not there, one fewer is tried, and so on.
    """

    def __init__(self, longest: int = 3) -> None:
        if longest < 1:
            raise ValueError(f"looking up needs at least 1 token, got {longest}")
        self.longest = longest

    def start(self, prompts: Sequence[Sequence[int]], request: Request) -> None:
        super().start(prompts, request)
        self._latest = [list(prompt[-self.longest :]) for prompt in prompts]
        self._hints = [list(latest) for latest in self._latest]
        self._reached = [len(latest) for latest in self._latest]  # the hint's next token

    def restart(self, row: int, prompt: Sequence[int], hint: Sequence[int]) -> None:
        latest = list(prompt[-self.longest :])
        # With the prompt's end before it, an equal text stands where it is expected from the start.
        self._hints[row], self._reached[row] = [*latest, *hint], len(latest)
        self._latest[row] = latest

    def commit(self, tokens: Sequence[list[int]], accepted: Sequence[int]) -> None:
        for row, new in enumerate(tokens):
            self._latest[row] = (self._latest[row] + new)[-self.longest :]
            self._reached[row] = self._place(row, self._reached[row] + len(new))

    def keep(self, rows: Sequence[int]) -> None:
        self._hints = [self._hints[row] for row in rows]
        self._reached = [self._reached[row] for row in rows]
        self._latest = [self._latest[row] for row in rows]

    def _place(self, row: int, aligned: int) -> int:
        """Behind the latest tokens in the hint: where they stand nearest to `aligned`."""
        hint, latest = self._hints[row], self._latest[row]
        for size in range(len(latest), 0, -1):
            gram = latest[-size:]
            ends = [e for e in range(size, len(hint) + 1) if hint[e - size : e] == gram]
            if ends:
                return min(ends, key=lambda end: abs(end - aligned))
        return aligned

    def _next_tokens(self, row: int, count: int) -> list[int]:
        start = self._reached[row]
        proposed = self._hints[row][start : start + count]
        return [token for token in proposed if token < self._request.width]


class TextDrafter(_ListDrafter):
    """Replays fixed texts, one a row: an answer by GPT-4o, by a human, from a file.

    Proposals go by *position*: after n new tokens row b proposes texts[b][n:]. Where the committed
    text departs from the fixed one, the replaced token is taken to stand for the original one and
    the replay goes on behind it; where it ends, nothing more is proposed. (So an answer that only
    swaps words is still drafted to its end; one whose wording has shifted by a token mostly gets
    rejected.)
    """

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self.texts = [list(text) for text in texts]

    def start(self, prompts: Sequence[Sequence[int]], request: Request) -> None:
        super().start(prompts, request)
        if len(prompts) != len(self.texts):
            raise ValueError(
                f"TextDrafter needs one text a prompt, got {len(self.texts)} texts for "
                f"{len(prompts)} prompts"
            )
        for row, text in enumerate(self.texts):
            if any(not 0 <= token < request.width for token in text):
                raise ValueError(
                    f"text {row} holds an id outside the target's {request.width} ids; "
                    "tokenize it with the target's tokenizer"
                )
        self._rows = list(range(len(prompts)))
        self._done = [0] * len(prompts)

    def commit(self, tokens: Sequence[list[int]], accepted: Sequence[int]) -> None:
        self._done = [done + len(new) for done, new in zip(self._done, tokens, strict=True)]

    def keep(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[row] for row in rows]
        self._done = [self._done[row] for row in rows]

    def _next_tokens(self, row: int, count: int) -> list[int]:
        return self.texts[self._rows[row]][self._done[row] : self._done[row] + count]
