"""Recorded acceptance, and replaying it: how many drafted tokens stayed, cycle by cycle.

    python -m judgelib.replay record --rule floored_annotated --setting 0.3 --window 25 --prompts 60

A pattern is what real decoding of validation prompts accepted. A speed model reads from it what any
shorter window would have kept; a benchmark with random weights, whose own tokens would never match,
accepts by it, so that its cycles commit as they would with trained weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from judgelib.decoding import Generation
from judgelib.provenance import checkout
from judgelib.results import plain_name, project_root, to_json, write_files
from judgelib.rules import Needs, Rule, Window
from judgelib.sampling import Sampling

if TYPE_CHECKING:
    from judgelib.models import LanguageModel

COUNTS = ("drafted", "accepted", "added", "texts")


@dataclass(frozen=True)
class Pattern:
    """Accepted tokens of every cycle of some texts, in order.

    Attributes:
        window: tokens drafted a cycle, W.
        drafted, accepted: of each cycle.
        added: 1 where the target added a token, 0 where the text ended inside the window.
        texts: how many cycles each text took.
        source: what was decoded and how; plain JSON.

    Raises:
        ValueError: lists that do not belong together, or a cycle that kept more than was drafted.
    """

    window: int
    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    added: tuple[int, ...]
    texts: tuple[int, ...]
    source: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        cycles = len(self.accepted)
        if not cycles or not cycles == len(self.drafted) == len(self.added) == sum(self.texts):
            raise ValueError(
                f"expected as many drafted, accepted and added counts as the texts have cycles, "
                f"got {len(self.drafted)}, {cycles}, {len(self.added)} and {sum(self.texts)}"
            )
        for number, (drafted, kept, own) in enumerate(self._cycles()):
            if not 0 <= kept <= drafted <= self.window or own not in (0, 1) or kept + own < 1:
                raise ValueError(
                    f"cycle {number}: expected 0 <= accepted <= drafted <= {self.window} and at "
                    f"least one token, got {kept} of {drafted} accepted, {own} added"
                )

    @property
    def cycles(self) -> int:
        return len(self.accepted)

    @property
    def tokens(self) -> int:
        return sum(self.accepted) + sum(self.added)

    @property
    def accepted_per_cycle(self) -> float:
        """Draft tokens kept for each target call."""
        return sum(self.accepted) / self.cycles

    @property
    def acceptance_rate(self) -> float:
        """Share of the tested draft tokens that stayed, alpha of Leviathan et al. (2211.17192): the
        tokens behind a rejected one were never tested."""
        rejected = sum(own and kept < drafted for drafted, kept, own in self._cycles())
        return sum(self.accepted) / max(1, sum(self.accepted) + rejected)

    def runs(self) -> list[int]:
        """Tokens from one rejection to the next (or to the text's end), the replaced token with
        them.

        A window that was kept whole does not end a run: the token that the target adds behind it
        counts as one that the draft would have proposed, and the next window continues the run.
        """
        return [tokens for text in self._texts() for tokens in _text_runs(text)]

    def pieces(self, window: int) -> list[int]:
        """Tokens that each cycle of a shorter window commits, in order; they add up to `tokens`.

        A cycle commits at most window + 1 tokens, and a rejection ends it: each run is cut into
        full cycles and a rest. At the recorded window this is the record itself. At a shorter one
        it is exact for strict greedy verification but for the tokens added behind windows that were
        kept whole, of which the draft might have proposed another; so record with a window that is
        seldom kept whole. A lossy rule would besides put the target's own token at other places,
        after which the draft may go on differently. (To count min(run, window) of every recorded
        cycle would not do: long runs hold more short cycles than short ones.)

        Raises:
            ValueError: a window longer than the recorded one, of which nothing is known.
        """
        if not 1 <= window <= self.window:
            raise ValueError(
                f"this pattern was recorded with a window of {self.window} and says nothing of "
                f"{window}; choose 1 to {self.window}, or record with a longer window"
            )
        return [piece for run in self.runs() for piece in _cut(run, window + 1)]

    def tokens_per_cycle(self, window: int) -> float:
        """Mean tokens per target call with this window (see `pieces`)."""
        return self.tokens / len(self.pieces(window))

    def _cycles(self) -> Iterator[tuple[int, int, int]]:
        return zip(self.drafted, self.accepted, self.added, strict=True)

    def _texts(self) -> Iterator[list[tuple[int, int, int]]]:
        cycles = self._cycles()
        for count in self.texts:
            yield [next(cycles) for _ in range(count)]


def _text_runs(cycles: Sequence[tuple[int, int, int]]) -> Iterator[int]:
    run = 0
    for drafted, kept, own in cycles:
        run += kept + own
        if kept < drafted:
            yield run
            run = 0
    if run:
        yield run


def _cut(run: int, longest: int) -> list[int]:
    """A run in full cycles and a rest.

    >>> _cut(20, 9)
    [9, 9, 2]
    """
    full, rest = divmod(run, longest)
    return [longest] * full + ([rest] if rest else [])


def pattern_of(texts: Sequence[Generation], window: int, source: dict[str, Any]) -> Pattern:
    """The pattern of texts that were decoded with this window."""
    cycles = [cycle for text in texts for cycle in text.cycles]
    return Pattern(
        window,
        drafted=tuple(cycle.drafted for cycle in cycles),
        accepted=tuple(cycle.accepted for cycle in cycles),
        added=tuple(int(cycle.added is not None) for cycle in cycles),
        texts=tuple(len(text.cycles) for text in texts),
        source=source,
    )


# --- on disk -----------------------------------------------------------------------------------


def patterns_dir(root: str | Path | None = None) -> Path:
    """`data/patterns`, where recorded patterns lie."""
    return project_root(root) / "data" / "patterns"


def save_pattern(pattern: Pattern, name: str, *, root: str | Path | None = None) -> Path:
    """Write `data/patterns/<name>.json`; returns its path."""
    path = patterns_dir(root) / f"{plain_name(name, 'pattern')}.json"
    content: dict[str, Any] = {"window": pattern.window, "source": pattern.source}
    content |= {key: "@" + key for key in COUNTS}
    text = to_json(content).decode()
    for key in COUNTS:  # a list a line, else there would be a line a cycle
        text = text.replace(f'"@{key}"', json.dumps(list(getattr(pattern, key))))
    write_files({path: text.encode()})
    return path


def load_pattern(name: str, *, root: str | Path | None = None) -> Pattern:
    """A recorded pattern by name, or by the path of a file of your own.

    Raises:
        ValueError: there is none, or the file is not one.
    """
    path = _found(name, root)
    if path is None:
        known = sorted({file.stem for place in _places(root) for file in place.glob("*.json")})
        raise ValueError(
            f"no pattern {name!r}; expected one of {', '.join(known) or 'none yet'} or a .json "
            "file; `python -m judgelib.replay record` makes one"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        lists = {key: tuple(map(int, content[key])) for key in COUNTS}
        return Pattern(int(content["window"]), source=dict(content.get("source", {})), **lists)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path.name}: expected window and the lists {', '.join(COUNTS)}: {error}"
        ) from error


def _places(root: str | Path | None) -> list[Path]:
    """Where patterns are looked for: in the project, then among those of this checkout."""
    return [patterns_dir(root), patterns_dir(checkout())]


def _found(name: str, root: str | Path | None) -> Path | None:
    own = name.endswith(".json")
    files = [Path(name)] if own else [place / f"{name}.json" for place in _places(root)]
    return next((file for file in files if file.is_file()), None)


# --- replay ------------------------------------------------------------------------------------


class Replay(Rule):
    """Keeps what a recorded pattern kept, whatever was drafted.

    Which cycle it is follows from how many tokens are committed, so the rule is pure like any
    other, serves rows of different lengths, and can be part of a compiled graph. Behind its last
    cycle the pattern begins again.

    Args:
        pattern: recorded with this window or a longer one.
        window: that the loop drafts; a cycle in which the loop drafts fewer commits fewer.
        start: the cycle to begin with, so that other texts replay other parts.
        work: a rule whose verdict is computed and counts for nothing, so that its cost is paid.
    """

    def __init__(
        self, pattern: Pattern, window: int, *, start: int = 0, work: Rule | None = None
    ) -> None:
        pieces = pattern.pieces(window)
        start %= len(pieces)
        self._kept = _kept_at([*pieces[start:], *pieces[:start]])
        self.work = work
        self.needs_hidden = work.needs_hidden if work else None

    def needs(self, sampling: Sampling) -> Needs:
        own = self.work.needs(sampling) if self.work else super().needs(sampling)
        return own._replace(committed=True)

    def check(self, target: LanguageModel) -> None:
        if self.work:
            self.work.check(target)

    def accept(self, window: Window) -> Tensor:
        if window.committed is None:
            raise ValueError("Replay needs to know how many tokens are committed")
        if self._kept.device != window.draft_ids.device:
            self._kept = self._kept.to(window.draft_ids.device)
        kept = self._kept[window.committed % len(self._kept)]
        places = torch.arange(window.draft_ids.shape[-1], device=kept.device)
        mask = places < kept[..., None]
        # No vote is negative, but a compiler cannot know that and leave the work out.
        return mask | (self.work.votes(window) < 0) if self.work else mask


def _kept_at(pieces: Sequence[int]) -> Tensor:
    """(tokens,) at the place where a cycle begins: how many drafted tokens it keeps; 0 elsewhere.

    >>> _kept_at([3, 1, 2])
    tensor([2, 0, 0, 0, 1, 0])
    """
    kept = torch.zeros(sum(pieces), dtype=torch.long)
    place = 0
    for piece in pieces:
        kept[place] = piece - 1
        place += piece
    return kept


# --- recording ---------------------------------------------------------------------------------

TASKS = ("sandbox-math", "sandbox-code", "sandbox-facts")


def record(
    rule: str, setting: float, *, window: int, prompts: int, profile: str = "sandbox-full"
) -> Pattern:
    """Decode validation questions with a profile's pair and keep what was accepted.

    Args:
        rule, setting: as in `rulebook.build`; a judge's head is the profile's saved one.
        prompts: in all, over the sandbox's domains in turn.

    Raises:
        ValueError: a rule, head or profile that is not there.
    """
    from judgelib.drafting import ModelDrafter
    from judgelib.evaluation import decode
    from judgelib.profiles import load_profile
    from judgelib.quality import pair_of
    from judgelib.tasks import load_task

    known = load_profile(profile)
    target, draft = pair_of(known).load()
    each = -(-prompts // len(TASKS))
    questions = [load_task(task).questions("validation", each) for task in TASKS]
    chosen = [one for turn in zip(*questions, strict=True) for one in turn][:prompts]
    made = _rule(rule, setting, profile)
    texts = decode(target, ModelDrafter(draft), made, chosen, window=window)
    source = {
        "rule": rule, "setting": setting, "target": known.models["target"],
        "draft": known.models["draft"], "heads": profile, "dtype": known.dtype,
        "tasks": list(TASKS), "split": "validation", "prompts": len(chosen),
    }  # fmt: skip
    return pattern_of(texts, window, source)


def _rule(rule: str, setting: float, profile: str) -> Rule:
    from judgelib.head import JudgeHead
    from judgelib.results import results_dir
    from judgelib.rulebook import FLOORED, JUDGE, build

    name = rule.removeprefix(FLOORED).removeprefix(JUDGE)
    folder = results_dir(profile) / "heads" / name
    heads = {name: JudgeHead.from_pretrained(folder)} if name != rule else {}
    return build(rule, setting, heads)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m judgelib.replay", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    own = commands.add_parser("record", help="decode validation prompts, keep what was accepted")
    own.add_argument("--rule", required=True, help="strict, floored_annotated, ratio, ...")
    own.add_argument("--setting", type=float, default=0.0)
    own.add_argument("--window", type=int, default=25)
    own.add_argument("--prompts", type=int, default=60)
    own.add_argument("--profile", default="sandbox-full", help="whose pair and heads")
    own.add_argument("--name", help="of the file (default: sandbox-<rule>)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    pattern = record(
        options.rule, options.setting, window=options.window, prompts=options.prompts,
        profile=options.profile,
    )  # fmt: skip
    name = options.name or f"sandbox-{options.rule}"
    save_pattern(pattern, name)
    print(
        f"data/patterns/{name}.json: {pattern.cycles} cycles, {pattern.accepted_per_cycle:.2f} "
        f"accepted and {pattern.tokens / pattern.cycles:.2f} tokens a cycle"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
