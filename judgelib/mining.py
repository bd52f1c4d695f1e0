"""Mining: which of the draft's tokens change the target's answer, found by trying them.

AutoJudge's semi-greedy search (arXiv 2504.20039). The target answers greedily. Where the draft
would have written another token, that token is put in place and the target goes on from there. If
the final answer is still the target's *own* (not: the right one), the token is unimportant and the
new text is kept; otherwise it is important and the old text stays. Then the next difference behind
it, to the end of the answer.

Many questions are searched at once. A slot of the batch belongs to one question until its search
has ended, so a trial reads only what is new behind the prefix it shares with the trial before; the
old text is the draft for the new one (strictly verified, so nothing but time depends on it). Every
verdict is on the disk before the next trial begins. With ENGINE=ray (`mapping`) the questions are
searched in shards, and the verdicts go to the same journal.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
from tqdm import tqdm

from judgelib.cache import RowCache, common_prefix
from judgelib.decoding import Generation, Job, speculate_stream
from judgelib.drafting import ModelDrafter, RevisionDrafter
from judgelib.head_config import public_name
from judgelib.journal import JsonLines, Record
from judgelib.labels import ACCEPTABLE, IGNORED, UNACCEPTABLE, Labelled
from judgelib.mapping import Emit, Models, each, portion
from judgelib.models import LanguageModel, check_pair
from judgelib.rules import Match
from judgelib.tasks.base import Question, Settling, Task, prompt_ids

MAX_NEW_TOKENS = 256
SHARD = 1024
"""The most questions that a cluster's worker gets at a time: many for each slot, or most slots wait
for the longest search (docs/scale.md). Every answer comes out as it would alone, so this decides
nothing else."""


@dataclass(frozen=True)
class Settings:
    """What decides the labels; a journal of other settings is refused.

    target, draft: public name and fingerprint of the weights; max_new_tokens: the longest answer.
    """

    target: str
    draft: str
    task: str
    max_new_tokens: int

    @classmethod
    def of(
        cls, target: LanguageModel, draft: LanguageModel, task: Task, max_new_tokens: int
    ) -> Settings:
        big, small = (f"{public_name(m.name)} {m.fingerprint}" for m in (target, draft))
        return cls(big, small, task.name, max_new_tokens)


class Trial(NamedTuple):
    """What one difference turned out to be.

    passes: target calls that it took; continuation: what the target wrote behind the draft's token.
    """

    place: int
    token: int
    important: bool
    continuation: list[int]
    passes: int


@dataclass
class Search:
    """The search on one question: the current answer, and what has been tried so far."""

    question: Question
    prompt: list[int]
    response: list[int]
    passes: int
    trials: list[Trial] = field(default_factory=list)
    done: bool = False

    @property
    def border(self) -> int:
        """Differences are looked for from this place on."""
        return self.trials[-1].place + 1 if self.trials else 0

    def take(self, trial: Trial) -> None:
        """Adopt an unimportant token and what came behind it; keep the answer otherwise."""
        self.trials.append(trial)
        self.passes += trial.passes
        if not trial.important:
            self.response = [*self.response[: trial.place], trial.token, *trial.continuation]

    def labelled(self, author: str) -> Labelled:
        """The mined labels of the finished search."""
        judged, labels = list(self.response), [IGNORED] * len(self.response)
        for trial in self.trials:
            judged[trial.place] = trial.token
            labels[trial.place] = UNACCEPTABLE if trial.important else ACCEPTABLE
        question = self.question
        return Labelled(
            question.id, question.domain, "mined", author,
            self.prompt, self.response, judged, labels,
        )  # fmt: skip


_LINES: tuple[set[str], ...] = (
    {"settings"},
    {"question", "response", "passes"},
    {"question", *Trial._fields},
    {"question", "done"},
)


class Journal(JsonLines):
    """The file that a search can be continued from: settings, answers, trials, one a line."""

    expected = "a line of a mining journal (settings, an answer, a trial or the end of a search)"
    cure = "delete it and all lines behind it; what they held is searched again"
    user = "search"

    def __init__(self, path: str | os.PathLike[str], settings: Settings) -> None:
        self.settings: Record = {}
        self._synced = 0.0
        self.records: dict[str, list[Record]] = {}
        super().__init__(path)
        if not self.settings:
            self.write({"settings": asdict(settings)})
        if self.settings != asdict(settings):
            self.close()
            raise ValueError(
                f"{self.path} was mined with {self.settings}, not with {asdict(settings)}; "
                "choose another path, or delete it to start over"
            )

    def parse(self, record: Record) -> Record:
        if set(record) not in _LINES or not isinstance(record.get("question", ""), str):
            raise TypeError(f"expected {self.expected}")
        return record

    def take(self, entry: Record) -> None:
        if "settings" in entry:
            self.settings = self.settings or entry["settings"]
        else:
            self.records.setdefault(entry["question"], []).append(entry)

    def keep(self, record: Record) -> None:
        """Write a line. That a search has ended survives a power cut within a second: waiting for
        the disk each time would be the limit of a run on many GPUs."""
        late = "done" in record and time.monotonic() - self._synced >= 1.0
        self.write(record, sync=late)
        self._synced = time.monotonic() if late else self._synced

    def search(self, question: Question, prompt: list[int]) -> Search | None:
        """The search on a question as far as it got; None if it has no answer yet."""
        found = self.records.get(question.id)
        if not found:
            return None
        if "response" not in found[0]:
            raise ValueError(
                f"{self.path} holds trials of question {question.id}, but not its answer: lines "
                "are missing; restore them from a copy, or delete the file to start over"
            )
        search = Search(question, prompt, list(found[0]["response"]), found[0]["passes"])
        for record in found[1:]:
            if record.get("done"):
                search.done = True
            else:
                search.take(Trial(*(record[name] for name in Trial._fields)))
        return search


@dataclass(frozen=True)
class Mined:
    """Labels of every question, in the order of the questions, and what they took."""

    rows: list[Labelled]
    searches: list[Search]

    def costs(self) -> pd.DataFrame:
        """A row a question: question, domain, tokens of the answer, trials, target passes."""
        return pd.DataFrame(
            {
                "question": search.question.id,
                "domain": search.question.domain,
                "tokens": len(search.response),
                "trials": len(search.trials),
                "passes": search.passes,
            }
            for search in self.searches
        )


def mine(
    target: LanguageModel,
    draft: LanguageModel,
    task: Task,
    questions: Sequence[Question],
    path: str | os.PathLike[str],
    *,
    slots: int = 32,
    window: int = 12,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: bool = True,
) -> Mined:
    """Search the answers to `questions`.

    Args:
        path: the journal. What it holds already is not searched again; a search that was killed
            goes on behind its last verdict.
        slots: questions searched side by side.
        window: most tokens proposed to the target at once.
        max_new_tokens: the longest answer.
        progress: show a bar with an estimate of the time left.

    Raises:
        ValueError: models that do not fit together, a journal of other settings, a question whose
            prompt leaves no room for an answer, two questions of one id, fewer than one slot.
    """
    check_pair(target, draft)
    if slots < 1:
        raise ValueError(f"slots must be at least 1 question at a time, got {slots}")
    settings = Settings.of(target, draft, task, max_new_tokens)
    pair = Models(target, draft)
    size = portion(pair, len(questions), SHARD)
    prompts = {q.id: prompt_ids(target.tokenizer, q) for q in questions}
    if len(prompts) < len(questions):
        raise ValueError("two questions have the same id; give each its own, or ask it once")
    longest = max(map(len, prompts.values()), default=0) + max_new_tokens
    options = Options(task, slots, window, max_new_tokens, longest)
    with Journal(path, settings) as journal:

        def left(asked: Sequence[Question]) -> Shard | None:
            found = {q.id: s for q in asked if (s := journal.search(q, prompts[q.id]))}
            todo = [q for q in asked if q.id not in found or not found[q.id].done]
            return Shard(options, todo, prompts, found) if todo else None

        def take(_: Shard, record: Record) -> None:
            journal.keep(record)
            bar.update("done" in record)

        parts = [left(questions[start : start + size]) for start in range(0, len(questions), size)]
        shards = [shard for shard in parts if shard]
        done = len(questions) - sum(len(shard.questions) for shard in shards)
        with tqdm(total=len(questions), initial=done, desc=f"mining {task.name}",
                  unit="question", disable=None if progress else True) as bar:  # fmt: skip
            each(pair, search_shard, shards, take, left=lambda shard: left(shard.questions))
        searches = [s for q in questions if (s := journal.search(q, prompts[q.id]))]
    author = public_name(draft.name)
    return Mined([search.labelled(author) for search in searches], searches)


def answer(
    target: LanguageModel,
    draft: LanguageModel,
    task: Task,
    questions: Sequence[Question],
    path: str | os.PathLike[str],
    *,
    slots: int = 32,
    window: int = 12,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: bool = True,
) -> list[list[int]]:
    """The target's own greedy answers, tokens in the order of the questions.

    `mine` begins with the same and finds them in the journal; arguments and errors are its own.
    """
    check_pair(target, draft)
    prompts = {q.id: prompt_ids(target.tokenizer, q) for q in questions}
    longest = max(map(len, prompts.values()), default=0) + max_new_tokens
    with Journal(path, Settings.of(target, draft, task, max_new_tokens)) as journal:
        new = [q for q in questions if q.id not in journal.records]
        answering = _Answering(journal.keep, new, prompts, slots, max_new_tokens)
        bar = tqdm(total=len(questions), initial=len(questions) - len(new), unit="question",
                   desc=f"answering {task.name}", disable=None if progress else True)  # fmt: skip
        with bar:

            def feed(ended: Mapping[int, Generation]) -> dict[int, Job]:
                bar.update(len(ended))
                return answering(ended)

            speculate_stream(
                target, ModelDrafter(draft), Match(), feed, longest=longest, window=window
            )
        return [list(journal.records[q.id][0]["response"]) for q in questions]


class Options(NamedTuple):
    """How questions are searched; the last are numbers of tokens."""

    task: Task
    slots: int
    window: int
    max_new_tokens: int
    longest: int


class Shard:
    """Questions to search: their prompts, and the searches among them that have begun, by id."""

    def __init__(
        self,
        options: Options,
        questions: Sequence[Question],
        prompts: Mapping[str, list[int]],
        begun: Mapping[str, Search],
    ) -> None:
        self.options, self.questions = options, list(questions)
        self.prompts = {q.id: prompts[q.id] for q in questions}
        self.begun = {q.id: begun[q.id] for q in questions if q.id in begun}


def search_shard(models: tuple[LanguageModel, LanguageModel], shard: Shard, emit: Emit) -> None:
    """Search the questions of a shard; emits the lines of the journal as they come to be."""
    (target, draft), (task, slots, window, limit, longest) = models, shard.options
    new = [question for question in shard.questions if question.id not in shard.begun]
    answering = _Answering(emit, new, shard.prompts, slots, limit)
    speculate_stream(
        target, ModelDrafter(draft), Match(), answering, longest=longest, window=window
    )
    searches = {**shard.begun, **answering.searches}
    in_order = [searches[question.id] for question in shard.questions]
    trying = _Trying(emit, in_order, target, draft, task, slots, limit, longest)
    speculate_stream(target, RevisionDrafter(), Match(), trying, longest=longest, window=window)


class _Answering:
    """Feeds the target's own answers: one job a question."""

    def __init__(
        self,
        emit: Emit,
        questions: Sequence[Question],
        prompts: Mapping[str, list[int]],
        slots: int,
        max_new_tokens: int,
    ) -> None:
        self.emit, self.prompts, self.limit = emit, prompts, max_new_tokens
        self.queue = deque(questions)
        self.slots: dict[int, Question | None] = dict.fromkeys(range(slots))
        self.searches: dict[str, Search] = {}

    def __call__(self, ended: Mapping[int, Generation]) -> dict[int, Job]:
        for slot, text in ended.items():
            question = self.slots[slot]
            if question:
                passes = len(text.cycles)
                self.emit({"question": question.id, "response": text.ids, "passes": passes})
                prompt = self.prompts[question.id]
                self.searches[question.id] = Search(question, prompt, text.ids, passes)
        free = list(ended) or list(self.slots)
        return {slot: self._next(slot) for slot in free[: len(self.queue)]}

    def _next(self, slot: int) -> Job:
        question = self.queue.popleft()
        self.slots[slot] = question
        return Job(self.prompts[question.id], self.limit)


class _Trying:
    """Feeds the trials: a slot works on one question until its search has ended."""

    def __init__(
        self,
        emit: Emit,
        searches: Sequence[Search],
        target: LanguageModel,
        draft: LanguageModel,
        task: Task,
        slots: int,
        max_new_tokens: int,
        longest: int,
    ) -> None:
        self.emit, self.task, self.draft = emit, task, draft
        self.decode = target.tokenizer.decode
        self.ends, self.context = set(target.eos_ids), target.context
        self.limit, self.longest = max_new_tokens, longest
        self.queue = deque(searches)
        self.slots: dict[int, _Slot | None] = dict.fromkeys(range(slots))

    def __call__(self, ended: Mapping[int, Generation]) -> dict[int, Job]:
        self._decide({slot: (text.ids, len(text.cycles)) for slot, text in ended.items()})
        jobs: dict[int, Job] = {}
        for slot in list(ended) or list(self.slots):
            job = self._next(slot)
            if job:
                jobs[slot] = job
        return jobs

    def _decide(self, ended: Mapping[int, tuple[list[int], int]]) -> None:
        """Compare answers: one call of the task for all trials that have ended."""
        slots = {number: slot for number in ended if (slot := self.slots[number])}
        texts = {number: slot.with_token(ended[number][0]) for number, slot in slots.items()}
        answers = self._answers([(slots[n].search.question, texts[n]) for n in slots])
        for (number, slot), answer in zip(slots.items(), answers, strict=True):
            continuation, passes = ended[number]
            important = answer != slot.answer
            trial = Trial(
                slot.place, slot.token, important, [] if important else continuation, passes
            )
            slot.search.take(trial)
            self.emit({"question": slot.search.question.id, **trial._asdict()})

    def _next(self, number: int) -> Job | None:
        """The slot's next trial, on the next question if its search has ended."""
        while True:
            slot = self.slots[number] or self._open(number)
            if slot is None:
                return None
            if not slot.advance():
                self._close(number, slot)
            elif slot.token in self.ends or slot.place + 1 == self._room(slot.search):
                self._decide({number: ([], 0)})  # the token ends the text: nothing to continue
            else:
                return self._job(slot)

    def _job(self, slot: _Slot) -> Job:
        search, place = slot.search, slot.place
        head = [*search.response[:place], slot.token]
        settled = None
        if isinstance(self.task, Settling):
            settled = partial(self._settled, self.task, search.question, head)
        limit, hint = self._room(search) - len(head), search.response[place + 1 :]
        return Job([*search.prompt, *head], limit, settled=settled, hint=hint)

    def _room(self, search: Search) -> int:
        """The longest answer to a question: the target's context may end before the limit."""
        return min(self.limit, self.context - len(search.prompt))

    def _settled(self, task: Settling, question: Question, head: list[int], ids: list[int]) -> bool:
        return task.settled(question, self._text([*head, *ids]))

    def _open(self, number: int) -> _Slot | None:
        if not self.queue:
            return None
        search = self.queue.popleft()
        answer = self._answers([(search.question, search.response)])[0]
        self.slots[number] = slot = _Slot(search, answer, self.draft, self.longest)
        return slot

    def _close(self, number: int, slot: _Slot) -> None:
        slot.search.done = True
        self.emit({"question": slot.search.question.id, "done": True})
        self.slots[number] = None

    def _answers(self, pairs: Sequence[tuple[Question, list[int]]]) -> list[Hashable]:
        if not pairs:
            return []
        questions, responses = zip(*pairs, strict=True)
        return self.task.answers(questions, [self._text(ids) for ids in responses])

    def _text(self, ids: list[int]) -> str:
        text: str = self.decode(ids, skip_special_tokens=True)
        return text


class _Slot:
    """One question under search: the trial in hand, and what the draft would write everywhere."""

    def __init__(
        self, search: Search, answer: Hashable, draft: LanguageModel, longest: int
    ) -> None:
        self.search, self.answer = search, answer
        self.place, self.token = -1, -1
        self._writer = _Writer(draft, search.prompt, longest)

    def with_token(self, continuation: list[int]) -> list[int]:
        """The answer of the trial in hand."""
        return [*self.search.response[: self.place], self.token, *continuation]

    def advance(self) -> bool:
        """Go to the next difference; False if there is none."""
        response = self.search.response
        choices = self._writer.choices(response)
        places = range(self.search.border, len(response))
        place = next((p for p in places if choices[p] != response[p]), None)
        if place is None:
            return False
        self.place, self.token = place, choices[place]
        return True


class _Writer:
    """What the draft would write at every place of an answer, if the target had written the rest.

    It reads along: only what has changed since the last time is read again.
    """

    def __init__(self, draft: LanguageModel, prompt: list[int], longest: int) -> None:
        self.draft, self.prompt = draft, prompt
        self.cache: RowCache = draft.new_cache(1, longest)
        self.read: list[int] = []
        self.chosen: list[int] = []

    @torch.inference_mode()
    def choices(self, response: list[int]) -> list[int]:
        """(len(response),) the draft's greedy token at each place."""
        text = [*self.prompt, *response[:-1]]
        known = common_prefix(self.read, text)
        new = text[known:]
        if new:
            self.cache.lengths = [known]
            ids = torch.tensor([new], device=self.draft.device)
            rows = min(len(new), len(response))
            fresh = self.draft.read(ids, self.cache, rows=rows).logits[0].argmax(-1).tolist()
            self.chosen = [*self.chosen[: len(response) - rows], *fresh]
        self.read = text
        return self.chosen[: len(response)]
