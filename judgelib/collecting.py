"""Answers of an OpenAI-compatible endpoint, for texts by models that do not run here.

`collect` asks every question once and appends each answer to a JSONL file the moment it arrives.
The file is the memory: a rerun asks only for what is missing, and needs neither key nor server
when nothing is.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
from tqdm import tqdm

from judgelib.texts import Journal, Key, Text

Messages = Sequence[Mapping[str, Any]]

TEMPLATE_TOKENS = 32  # what a chat template may add to a request, beyond the messages' own JSON
LONGEST_BACKOFF = 60.0  # seconds that we wait of our own choosing
LONGEST_RETRY_AFTER = 600.0  # seconds; a server that asks for more patience is left for a rerun
GIVE_UP_AFTER = 8  # questions in a row without any reply, all attempts used: the server is gone

WORTH_RETRYING = (408, 409, 425, 429)  # and every status from 500 on
# Codes of a 400 that blame this question's text, not the settings that all questions share.
ABOUT_ONE_QUESTION = ("content_filter", "content_policy_violation", "context_length_exceeded")
WHAT_TO_DO = {
    400: "The server does not accept these settings: change model, temperature or max_tokens.",
    401: "Check the key: api_key= or the environment variable OPENAI_API_KEY.",
    403: "This key may not use this model: choose another model or key.",
    404: "Check the model's name and base_url (most servers want it to end in /v1).",
    429: "The account's quota is used up: waiting does not help, check plan and billing.",
}


class CollectionError(RuntimeError):
    """Some questions have no answer yet; all `saved` answers are in the file.

    `missing`: question id → reason.
    """

    def __init__(self, saved: int, missing: Mapping[str, str], path: Path) -> None:
        self.saved, self.missing = saved, dict(missing)
        lines = [f"  {name}: {reason}" for name, reason in self.missing.items()]
        more = [f"  ... and {len(lines) - 10} more"] if len(lines) > 10 else []
        head = (
            f"{saved} answers are saved in {path}, {len(lines)} are missing. "
            "Run the same call again: it asks only for the missing ones."
        )
        super().__init__("\n".join([head, *lines[:10], *more]))


@dataclass(eq=False)
class _NoAnswer(Exception):
    """An attempt at a question failed."""

    reason: str
    again: bool = True  # the next attempt may bring an answer
    gone: bool = True  # nothing usable came back: the server may be lost for all questions
    retry_after: float = 0.0  # seconds, the server's wish


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens, from the provider's price list of the day."""

    prompt: float
    completion: float


@dataclass(frozen=True)
class Estimate:
    """The most that questions can use; `cost` in US dollars, None without a price."""

    questions: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None

    def __str__(self) -> str:
        known = self.cost is not None
        money = f"at most {self.cost:.2f} USD" if known else "cost unknown (give price=Price(...))"
        return (
            f"{self.questions} questions to ask: at most {self.prompt_tokens} prompt tokens "
            f"+ {self.completion_tokens} completion tokens, {money}"
        )


def estimate_cost(
    questions: Iterable[tuple[object, Messages]],
    *,
    price: Price | None = None,
    max_tokens: int = 512,
) -> Estimate:
    """Upper bound for pairs of id and messages, at one billed answer of `max_tokens` each.

    A token covers at least one byte, so a message costs at most the UTF-8 bytes of its JSON (whose
    punctuation stands for the role markers); English needs about a quarter of that.
    """
    asked = [[dict(message) for message in messages] for _, messages in questions]
    said = [json.dumps(message, ensure_ascii=False) for messages in asked for message in messages]
    prompt = sum(len(message.encode()) for message in said) + TEMPLATE_TOKENS * len(asked)
    completion = max_tokens * len(asked)
    cost = (prompt * price.prompt + completion * price.completion) / 1e6 if price else None
    return Estimate(len(asked), prompt, completion, cost)


def request_sha(messages: Messages, settings: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of everything that decides the answer."""
    request = {"messages": [dict(message) for message in messages], **settings}
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Asker:
    """Asks with patience and saves what it hears; shared by all worker threads."""

    client: openai.OpenAI
    settings: Mapping[str, Any]  # model, temperature, max_tokens
    journal: Journal
    max_attempts: int
    seed: int
    sleep: Callable[[float], object] | None
    stop: threading.Event = field(default_factory=threading.Event)

    def ask_and_save(self, key: Key, messages: Messages) -> None:
        try:
            self.journal.append(self._ask(key, messages))
        except _NoAnswer:
            raise
        except BaseException:  # no answer can be had, or none be saved: ask for no more of them
            self.stop.set()
            raise

    def _ask(self, key: Key, messages: Messages) -> Text:
        jitter = random.Random(f"{self.seed}:{key[0]}")
        for attempt in range(1, self.max_attempts + 1):
            if self.stop.is_set():
                break
            try:
                return _parse(self._send(messages), key, self.settings["model"])
            except _NoAnswer as failure:
                self._wait_or_raise(failure, attempt, jitter)
        raise _NoAnswer("not asked")

    def _send(self, messages: Messages) -> bytes:
        try:
            reply = self.client.chat.completions.with_raw_response.create(
                messages=[dict(message) for message in messages],  # type: ignore[misc]
                **self.settings,
            )
        except openai.APIStatusError as error:
            raise self._verdict(error) from error
        except openai.APITimeoutError as error:
            raise _NoAnswer("no answer in time") from error
        except openai.APIConnectionError as error:
            raise _NoAnswer(f"connection failed: {error.__cause__ or error}") from error
        return reply.content

    def _verdict(self, error: openai.APIStatusError) -> Exception:
        """What a bad status means: try again, give this question up, or (ValueError) all."""
        status = error.status_code
        reason = f"the server answered {status}: {_excerpt(error.message)}"
        if status == 400 and error.code in ABOUT_ONE_QUESTION:
            return _NoAnswer(f"{error.code}: {reason}", again=False, gone=False)
        patient = status in WORTH_RETRYING or status >= 500
        if not patient or error.code == "insufficient_quota":
            safe = f"{len(self.journal.texts)} answers are safe in {self.journal.path}"
            advice = WHAT_TO_DO.get(status, "Change what its words blame.")
            return ValueError(f"Nothing can be collected: {reason}. {advice} {safe}.")
        wait = _retry_after(error.response.headers)
        if wait > LONGEST_RETRY_AFTER:
            return _NoAnswer(f"{reason} and asks to wait {wait:.0f} s, rerun then", again=False)
        return _NoAnswer(reason, retry_after=wait)

    def _wait_or_raise(self, failure: _NoAnswer, attempt: int, jitter: random.Random) -> None:
        if not failure.again:
            raise failure
        if attempt == self.max_attempts:
            reason = f"{failure.reason} (attempt {attempt} of {self.max_attempts})"
            raise _NoAnswer(reason, gone=failure.gone)
        # Doubling from 1 s, half of it random so that clients spread.
        backoff = min(2.0 ** (attempt - 1), LONGEST_BACKOFF) * jitter.uniform(0.5, 1.0)
        sleep = self.stop.wait if self.sleep is None else self.sleep
        sleep(max(backoff, failure.retry_after))


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the header asks for (a number, or an HTTP date); 0 without a usable one."""
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        seconds = float(value)
        return seconds if math.isfinite(seconds) else 0.0
    with suppress(ValueError, OverflowError):
        return parsedate_to_datetime(value).timestamp() - time.time()
    return 0.0


def _parse(body: bytes, key: Key, author: str) -> Text:
    """The Text in a chat completion; `_NoAnswer` for whatever else a server may send."""
    try:
        reply = json.loads(body)
        text, finish_reason = _choice(reply)
        text.encode()  # JSON can spell half a character, which no tokenizer takes
    except (ValueError, RecursionError) as error:
        reason = f"the reply is no answer ({error}): {_excerpt(body.decode(errors='replace'))}"
        raise _NoAnswer(reason, gone=False) from error
    return Text(key[0], author, text, key[1], finish_reason, *_usage(reply))


def _choice(reply: object) -> tuple[str, str]:
    """Text and finish reason; a filter may leave no text."""
    match reply:
        case {"choices": [{"message": {"content": str(text)}, **choice}, *_]}:
            return text, str(choice.get("finish_reason") or "unknown")
        case {"choices": [{"finish_reason": "content_filter"}, *_]}:
            return "", "content_filter"
    raise ValueError("it holds no choice with a text")


def _usage(reply: object) -> tuple[int | None, int | None]:
    match reply:
        case {"usage": {"prompt_tokens": int(prompt), "completion_tokens": int(completion)}}:
            return prompt, completion
    return None, None


def _excerpt(words: str) -> str:
    return repr(" ".join(words[:200].split()))


def collect(
    questions: Iterable[tuple[str, Messages]],
    path: str | os.PathLike[str],
    *,
    model: str = "gpt-4o",
    base_url: str | None = None,
    api_key: str | None = None,
    temperature: float = 0.0,
    max_tokens: int = 512,
    concurrency: int = 4,
    max_attempts: int = 6,
    timeout: float = 120.0,
    price: Price | None = None,
    confirm: Callable[[Estimate], bool] = lambda _: True,
    progress: bool = True,
    seed: int = 0,
    sleep: Callable[[float], object] | None = None,
) -> list[Text]:
    """Ask `model` every question (id, chat messages) that `path` lacks; return all, in order.

    Before the first request the estimate is printed, and `confirm(estimate)` may say no. `base_url`
    defaults to OPENAI_BASE_URL, `api_key` to OPENAI_API_KEY (a server on this machine needs none).
    Rate limits, server errors, lost connections, time-outs (`timeout` in seconds) and replies that
    are no answer are tried up to `max_attempts` times, with exponential backoff (jitter by `seed`)
    or after the server's Retry-After; `sleep(seconds)` replaces the waiting. Runs in threads, so it
    works inside a notebook's event loop. Ctrl-C keeps what arrived.

    Raises:
        ValueError: bad arguments, a damaged file, or a server that refuses all questions alike.
        CollectionError: some questions remain without an answer.
    """
    _at_least(1, max_tokens=max_tokens, concurrency=concurrency, max_attempts=max_attempts)
    _at_least(0, temperature=temperature)
    _at_least(1e-3, timeout=timeout)
    settings = {"model": model, "temperature": float(temperature), "max_tokens": max_tokens}
    asked = {
        (name, request_sha(said, settings)): said for name, said in _checked(questions).items()
    }
    with Journal(path) as journal:
        missing = {key: asked[key] for key in asked if key not in journal.texts}
        if missing:
            estimate = estimate_cost(missing.items(), price=price, max_tokens=max_tokens)
            with _client(base_url, api_key, timeout) as client:
                asker = _Asker(client, settings, journal, max_attempts, seed, sleep)
                print(estimate, flush=True)  # the cost is shown before anything is asked
                why = _ask_all(missing, asker, concurrency, progress) if confirm(estimate) else {}
            _check_complete(asked, journal, why)
        return [journal.texts[key] for key in asked]


def _ask_all(
    missing: Mapping[Key, Messages], asker: _Asker, concurrency: int, progress: bool
) -> dict[str, str]:
    """Ask in `concurrency` threads; returns question id → why it failed."""
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="collect")
    try:
        asking = {pool.submit(asker.ask_and_save, key, missing[key]): key[0] for key in missing}
        return _failures(asking, progress)
    finally:  # after an error, Ctrl-C or a dead server too, answers on their way are still saved
        asker.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _failures(asking: Mapping[Future[None], str], progress: bool) -> dict[str, str]:
    failed: dict[str, str] = {}
    gone_in_a_row = 0
    done = as_completed(asking)
    for future in tqdm(done, total=len(asking), unit="question", disable=not progress):
        gone = False
        try:
            future.result()
        except _NoAnswer as failure:
            failed[asking[future]], gone = failure.reason, failure.gone
        gone_in_a_row = gone_in_a_row + 1 if gone else 0
        if gone_in_a_row == GIVE_UP_AFTER:
            break
    return failed


def _check_complete(asked: Iterable[Key], journal: Journal, why: Mapping[str, str]) -> None:
    keys = list(asked)
    left = [name for name, sha in keys if (name, sha) not in journal.texts]
    if left:
        reasons = {name: why.get(name, "not asked") for name in left}
        raise CollectionError(len(keys) - len(left), reasons, journal.path)


def _checked(questions: Iterable[tuple[str, Messages]]) -> dict[str, Messages]:
    asked: dict[str, Messages] = {}
    for name, messages in questions:
        if not isinstance(name, str) or not name:
            raise ValueError(f"A question's id must be a non-empty string, got {name!r}.")
        if name in asked:
            raise ValueError(f"Question id {name!r} occurs twice: make every id unique.")
        if not _are_messages(messages):
            raise ValueError(
                f"Question {name!r} needs a non-empty list of messages like "
                f'{{"role": "user", "content": "..."}}, got {messages!r}.'
            )
        asked[name] = messages
    return asked


def _are_messages(messages: object) -> bool:
    if not isinstance(messages, Sequence) or not messages:
        return False
    return all(isinstance(m, Mapping) and {"role", "content"} <= m.keys() for m in messages)


def _at_least(least: float, **values: float) -> None:
    for name, value in values.items():
        if not least <= value < math.inf:
            raise ValueError(f"{name} must be a number from {least} up, got {value}.")


def _client(base_url: str | None, api_key: str | None, timeout: float) -> openai.OpenAI:
    """A client with its own retries off: ours know more kinds of failure, and save in between."""
    url = base_url or os.environ.get("OPENAI_BASE_URL")
    key = api_key or os.environ.get("OPENAI_API_KEY")
    local = url is not None and _is_loopback(url)
    if not key and not local:
        raise ValueError(
            "No API key: set the environment variable OPENAI_API_KEY, or give api_key=. "
            "(A server on this machine, e.g. base_url='http://127.0.0.1:8000/v1', needs none.)"
        )
    return openai.OpenAI(
        api_key=key or "none",
        base_url=url,
        timeout=timeout,
        max_retries=0,
        # A proxy set for the outside world cannot reach this machine's own servers.
        http_client=openai.DefaultHttpxClient(trust_env=False) if local else None,
    )


def _is_loopback(base_url: str) -> bool:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url must look like 'http://127.0.0.1:8000/v1', got {base_url!r}.")
    return parts.hostname in ("localhost", "127.0.0.1", "::1")
