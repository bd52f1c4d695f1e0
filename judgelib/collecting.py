"""Texts by other authors: answers of an OpenAI-compatible endpoint, references by humans.

`collect` asks every question once and appends each answer to a JSONL file the moment it arrives.
The file is the memory: a rerun asks only for what is missing, and needs neither key nor server
when nothing is. `human_references` reads the same kind of record from a dataset column.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import openai
from tqdm import tqdm

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    import datasets

Message = Mapping[str, Any]
Question = tuple[str, Sequence[Message]]
"""A question's id and its chat messages."""

TEMPLATE_TOKENS = 32
"""What a server's chat template may add to a request, beyond the messages' own JSON."""
LONGEST_BACKOFF = 60.0
"""Seconds: a wait of our own choosing never exceeds this."""
LONGEST_RETRY_AFTER = 600.0
"""Seconds: a server that asks for more patience than this is left for a rerun."""
GIVE_UP_AFTER = 8
"""Questions in a row that never got a reply, all their attempts used: the server is gone."""

WORTH_RETRYING = frozenset({408, 409, 425, 429})
"""Statuses below 500 that the same request may outlive; so may every status from 500 on."""
ABOUT_ONE_QUESTION = frozenset(
    {"content_filter", "content_policy_violation", "context_length_exceeded"}
)
"""Codes of a 400 that blame this question's text, not the settings that all questions share."""
WHAT_TO_DO = {
    400: "The server does not accept these settings: read its words, change model, temperature "
    "or max_tokens.",
    401: "Check the key: api_key= or the environment variable OPENAI_API_KEY.",
    403: "This key may not use this model: choose another model or key.",
    404: "Check the model's name and base_url (most servers want it to end in /v1).",
    429: "The account's quota is used up: waiting does not help, check plan and billing.",
}


@dataclass(frozen=True)
class Text:
    """One text by one author, as it is stored: a line of the JSONL.

    `prompt_sha` covers messages, model and sampling settings, so that a changed prompt is asked
    again. `finish_reason` is the server's word: "stop", "length" (cut off at max_tokens),
    "content_filter" (the text may be empty); "reference" for a human's. Token counts are the
    server's, None where it gave none.
    """

    question_id: str
    author: str
    text: str
    prompt_sha: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True)
class Price:
    """Money per million tokens, from the provider's price list of the day; None = unknown."""

    prompt: float | None = None
    completion: float | None = None
    currency: str = "USD"


@dataclass(frozen=True)
class Estimate:
    """The most that the missing questions can use, at one billed answer each."""

    questions: int
    prompt_tokens: int
    completion_tokens: int
    price: Price = Price()

    @property
    def cost(self) -> float | None:
        """Upper bound in `price.currency`; None unless both prices are known."""
        if self.price.prompt is None or self.price.completion is None:
            return None
        prompt = self.prompt_tokens * self.price.prompt
        return (prompt + self.completion_tokens * self.price.completion) / 1e6

    def __str__(self) -> str:
        money = "cost unknown (give price=Price(...) from the provider's price list)"
        if self.cost is not None:
            money = f"at most {self.cost:.2f} {self.price.currency}"
        return (
            f"{self.questions} questions to ask: at most {self.prompt_tokens} prompt tokens "
            f"+ {self.completion_tokens} completion tokens, {money}"
        )


class CollectionError(RuntimeError):
    """Some questions have no answer yet; everything that arrived is in the file.

    Attributes: `saved`, how many answers are in the file; `missing`, question id → reason.
    """

    def __init__(self, saved: int, missing: Mapping[str, str], path: Path) -> None:
        self.saved, self.missing = saved, dict(missing)
        shown = [f"  {name}: {reason}" for name, reason in list(self.missing.items())[:10]]
        more = [f"  ... and {len(missing) - 10} more"] if len(missing) > 10 else []
        head = (
            f"{saved} answers are saved in {path}, {len(missing)} are missing. "
            "Run the same call again: it asks only for the missing ones."
        )
        super().__init__("\n".join([head, *shown, *more]))


class _Transient(Exception):
    """This attempt failed; the next one may not. `retry_after`: the server's wish in seconds."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _Rubbish(_Transient):
    """The server is there, but what it sent is no answer."""


class _QuestionFailed(Exception):
    """This question stays without an answer. `server_gone`: the others may well share its fate."""

    def __init__(self, reason: str, *, server_gone: bool = False) -> None:
        super().__init__(reason)
        self.server_gone = server_gone


class _Refused(Exception):
    """No question can succeed with this key, model or these settings."""


# --- what is asked -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """What all questions of one collection share."""

    model: str
    temperature: float
    max_tokens: int

    def sha(self, messages: Sequence[Message]) -> str:
        """SHA-256 (hex) of everything that decides the answer."""
        request = {"messages": [dict(message) for message in messages], **asdict(self)}
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def estimate_cost(
    questions: Iterable[Question], *, price: Price = Price(), max_tokens: int = 512
) -> Estimate:
    """Upper bound on the tokens of `questions`, and on their cost where prices are known.

    Rule: a token of a byte-level vocabulary covers at least one byte, so a message costs at most
    the UTF-8 bytes of its JSON (whose punctuation stands for the role markers), plus
    `TEMPLATE_TOKENS` a request. English text really needs about a quarter of that. Each answer
    is taken to use all of `max_tokens`. A retry whose lost answer was billed is not foreseen.
    """
    asked = [messages for _, messages in questions]
    prompt = sum(TEMPLATE_TOKENS + sum(map(_json_bytes, messages)) for messages in asked)
    return Estimate(len(asked), prompt, len(asked) * max_tokens, price)


def _json_bytes(message: Message) -> int:
    return len(json.dumps(dict(message), ensure_ascii=False).encode())


def _check_questions(questions: Sequence[Question]) -> None:
    seen: set[str] = set()
    for name, messages in questions:
        if not isinstance(name, str) or not name:
            raise ValueError(f"A question's id must be a non-empty string, got {name!r}.")
        if name in seen:
            raise ValueError(f"Question id {name!r} occurs twice: make every id unique.")
        seen.add(name)
        _check_messages(name, messages)


def _check_messages(name: str, messages: Sequence[Message]) -> None:
    good = not isinstance(messages, str | Mapping) and len(messages) > 0
    if not good or not all(_is_message(message) for message in messages):
        raise ValueError(
            f"Question {name!r} needs a non-empty list of messages like "
            f'{{"role": "user", "content": "..."}}, got {messages!r}.'
        )


def _is_message(message: object) -> bool:
    return isinstance(message, Mapping) and {"role", "content"} <= message.keys()


# --- what is kept ------------------------------------------------------------------------------


class Journal:
    """The JSONL of answers: one `Text` a line, appended whole and synced, never rewritten.

    Opening it sets a torn last line (a killed process) aside in `<name>.torn`; any other damage is
    a ValueError that names the line. While open, the file is locked against a second collector.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._mutex = threading.Lock()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _lock(self._file, self.path)
            self._mend_tail()
            self._texts = _read_lines(self.path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, question_id: str, prompt_sha: str) -> Text | None:
        """The stored answer to exactly this question, prompt and settings, if there is one."""
        return self._texts.get((question_id, prompt_sha))

    def append(self, text: Text) -> None:
        """Write one line; on return it is on the disk. Safe to call from several threads.

        Raises OSError when the disk takes no more; the file then ends after the last whole line.
        """
        line = _line(text)
        with self._mutex:
            size = os.fstat(self._file).st_size
            try:
                self._write(line)
            except OSError as error:
                os.ftruncate(self._file, size)
                what = f"{error.strerror} while an answer was saved; earlier ones are safe"
                raise OSError(error.errno, what, str(self.path)) from error
            self._texts[text.question_id, text.prompt_sha] = text

    def close(self) -> None:
        """Release the file and its lock."""
        os.close(self._file)

    def _write(self, line: bytes) -> None:
        while line:  # a nearly full disk takes a part first and raises at the next call
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)

    def _mend_tail(self) -> None:
        body, newline, tail = self.path.read_bytes().rpartition(b"\n")
        if not tail:
            return
        if _is_record(tail):  # only the newline was lost: the answer is whole, and paid for
            self._write(b"\n")
            return
        with open(f"{self.path}.torn", "ab") as torn:
            torn.write(tail + b"\n")
        os.ftruncate(self._file, len(body) + len(newline))


def _line(text: Text) -> bytes:
    return json.dumps(asdict(text), ensure_ascii=False).encode() + b"\n"


def _record(line: bytes) -> Text:
    """The Text of one line; ValueError or TypeError if it is none."""
    text = Text(**json.loads(line))
    required = (text.question_id, text.author, text.text, text.prompt_sha, text.finish_reason)
    if not all(isinstance(value, str) for value in required):
        raise TypeError("question_id, author, text, prompt_sha and finish_reason must be strings")
    return text


def _is_record(line: bytes) -> bool:
    try:
        _record(line)
    except (ValueError, TypeError):
        return False
    return True


def _read_lines(path: Path) -> dict[tuple[str, str], Text]:
    texts: dict[tuple[str, str], Text] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            text = _record(line)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is not a stored answer ({error}): mend or delete that "
                "line; a deleted answer is asked again."
            ) from error
        texts.setdefault((text.question_id, text.prompt_sha), text)
    return texts


def _lock(file: int, path: Path) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"{path} is in use by another collector: wait for it, or give this one another path."
        ) from error
    except OSError:  # some network file systems know no locks; one collector a file is then a duty
        return


# --- one question ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asker:
    """Asks one question at a time, with patience; shared by all worker threads."""

    client: openai.OpenAI
    sampling: Sampling
    max_attempts: int
    seed: int
    stop: threading.Event
    sleep: Callable[[float], object]

    def ask(self, question: Question) -> Text:
        name, messages = question
        jitter = random.Random(f"{self.seed}:{name}")
        failure = _QuestionFailed("not asked")
        for attempt in range(1, self.max_attempts + 1):
            if self.stop.is_set():
                break
            try:
                return _parse(self._send(messages), name, self.sampling, messages)
            except _Transient as error:
                reason = f"{error} (attempt {attempt} of {self.max_attempts})"
                failure = _QuestionFailed(reason, server_gone=not isinstance(error, _Rubbish))
                self._wait(attempt, error, jitter)
        raise failure

    def _send(self, messages: Sequence[Message]) -> bytes:
        try:
            reply = self.client.chat.completions.with_raw_response.create(
                messages=[dict(message) for message in messages],  # type: ignore[misc]
                **asdict(self.sampling),
            )
        except openai.APIStatusError as error:
            raise _verdict(error) from error
        except openai.APITimeoutError as error:
            raise _Transient("no answer in time") from error
        except openai.APIConnectionError as error:
            raise _Transient(f"connection failed: {error.__cause__ or error}") from error
        return reply.content

    def _wait(self, attempt: int, error: _Transient, jitter: random.Random) -> None:
        if error.retry_after > LONGEST_RETRY_AFTER:
            patience = f"{error}; the server asks to wait {error.retry_after:.0f} s, rerun then"
            raise _QuestionFailed(patience, server_gone=True)
        if attempt < self.max_attempts:
            self.sleep(max(_backoff(attempt, jitter), error.retry_after))


def _backoff(attempt: int, jitter: random.Random) -> float:
    """Seconds before attempt + 1: doubling from 1, half of it random so that clients spread."""
    return min(2.0 ** (attempt - 1), LONGEST_BACKOFF) * jitter.uniform(0.5, 1.0)


def _verdict(error: openai.APIStatusError) -> Exception:
    """What a bad status means: try again, give this question up, or stop altogether."""
    status, words = error.status_code, _excerpt(error.message)
    if status == 400 and error.code in ABOUT_ONE_QUESTION:
        return _QuestionFailed(f"refused by the server ({error.code}): {words}")
    patient = status in WORTH_RETRYING or status >= 500
    if patient and error.code != "insufficient_quota":
        return _Transient(f"status {status}: {words}", _retry_after(error.response.headers))
    return _Refused(f"The server answered {status}: {words}. {WHAT_TO_DO.get(status, '')}".strip())


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the header asks for (a number, or an HTTP date); 0 without a usable one."""
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        seconds = float(value)
        return seconds if math.isfinite(seconds) else 0.0
    with suppress(ValueError):
        return parsedate_to_datetime(value).timestamp() - time.time()
    return 0.0


def _parse(body: bytes, name: str, sampling: Sampling, messages: Sequence[Message]) -> Text:
    """The Text in a reply; `_Rubbish` for whatever is not a chat completion with a text."""
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _Rubbish(f"the reply is not JSON: {_excerpt(body)}") from error
    content, finish = _choice(reply, body)
    usage = reply.get("usage")
    return Text(
        question_id=name,
        author=sampling.model,
        text=content,
        prompt_sha=sampling.sha(messages),
        finish_reason=finish,
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
    )


def _choice(reply: object, body: bytes) -> tuple[str, str]:
    match reply:
        case {"choices": [{"message": {"content": str(text)}, **choice}, *_]}:
            if not _is_unicode(text):
                raise _Rubbish(f"the reply's text holds half a character: {_excerpt(body)}")
            return text, str(choice.get("finish_reason") or "unknown")
        case {"choices": [{"finish_reason": "content_filter"}, *_]}:
            return "", "content_filter"
        case {"choices": [_, *_]}:
            raise _Rubbish(f"the reply holds no text: {_excerpt(body)}")
    raise _Rubbish(f"the reply has no choices: {_excerpt(body)}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell a lone surrogate, which no tokenizer takes
        return False
    return True


def _count(usage: object, field: str) -> int | None:
    value = usage.get(field) if isinstance(usage, Mapping) else None
    return value if isinstance(value, int) else None


def _excerpt(words: str | bytes, length: int = 200) -> str:
    text = words.decode(errors="replace") if isinstance(words, bytes) else words
    text = " ".join(text[: 2 * length].split())
    return repr(text) if len(text) <= length else repr(text[:length] + "...")


# --- all questions -----------------------------------------------------------------------------


def collect(
    questions: Iterable[Question],
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
    price: Price = Price(),
    confirm: Callable[[Estimate], bool] | None = None,
    progress: bool = True,
    seed: int = 0,
    sleep: Callable[[float], object] | None = None,
) -> list[Text]:
    """Ask `model` every question that `path` does not answer yet; return all, in order.

    Before the first request the estimate is printed; `confirm(estimate)` may then call it off by
    returning False. Answers are appended to `path` as they arrive and never asked for again
    while messages, model, temperature and max_tokens stay the same.

    `base_url` defaults to OPENAI_BASE_URL, then to the service of the `openai` client; `api_key` to
    OPENAI_API_KEY (a server on this machine needs none). `timeout` is in seconds. Rate limits,
    server errors, lost connections, time-outs and replies that are no answer are tried up to
    `max_attempts` times, with exponential backoff (jitter seeded by `seed`) or after the
    server's Retry-After if that is longer; `sleep(seconds)` replaces the waiting.
    Runs in threads, so it also works inside a notebook's event loop. Ctrl-C keeps what arrived.

    Raises ValueError for bad arguments, a missing key, a damaged file, or a request that the server
    refuses for all questions alike; `CollectionError` when questions remain without an answer.
    """
    asked = list(questions)
    _check_questions(asked)
    _check_numbers(temperature, max_tokens, concurrency, max_attempts, timeout)
    sampling = Sampling(model, float(temperature), max_tokens)
    with Journal(path) as journal:
        missing = _missing(asked, sampling, journal)
        reasons = {}
        if missing:
            client = _client(base_url, api_key, timeout)
            estimate = estimate_cost(missing, price=price, max_tokens=max_tokens)
            stop = threading.Event()
            asker = _Asker(
                client, sampling, max_attempts, seed, stop, stop.wait if sleep is None else sleep
            )
            with client, _explained(journal):
                if _agreed(estimate, confirm):
                    reasons = _ask_all(missing, asker, journal, concurrency, progress)
                else:
                    reasons = {name: "not asked: confirm() said no" for name, _ in missing}
        _check_complete(_missing(asked, sampling, journal), reasons, len(asked), journal)
        found = [journal.get(name, sampling.sha(messages)) for name, messages in asked]
    return [text for text in found if text is not None]


def _missing(questions: Sequence[Question], sampling: Sampling, journal: Journal) -> list[Question]:
    return [(name, said) for name, said in questions if not journal.get(name, sampling.sha(said))]


def _agreed(estimate: Estimate, confirm: Callable[[Estimate], bool] | None) -> bool:
    print(estimate, flush=True)  # the cost is shown before anything is asked
    return confirm is None or confirm(estimate)


def _ask_all(
    missing: Sequence[Question], asker: _Asker, journal: Journal, concurrency: int, progress: bool
) -> dict[str, str]:
    """Ask in `concurrency` threads, each saving its own answers; returns id → why it failed.

    However this is left (an error, Ctrl-C, a dead server), answers on their way are still saved.
    """

    def ask_and_save(question: Question) -> None:
        try:
            journal.append(asker.ask(question))
        except _QuestionFailed:
            raise
        except BaseException:  # no answer can be had, or none be saved: ask for no more of them
            asker.stop.set()
            raise

    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="collect")
    try:
        names = {pool.submit(ask_and_save, question): question[0] for question in missing}
        return _failures(names, progress)
    finally:
        asker.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _failures(names: Mapping[Future[None], str], progress: bool) -> dict[str, str]:
    failed: dict[str, str] = {}
    gone_in_a_row = 0
    done = as_completed(names)
    for future in tqdm(done, total=len(names), unit="question", disable=not progress):
        gone = False
        try:
            future.result()
        except _QuestionFailed as error:
            failed[names[future]] = str(error)
            gone = error.server_gone
        gone_in_a_row = gone_in_a_row + 1 if gone else 0
        if gone_in_a_row == GIVE_UP_AFTER:
            break
    return failed


@contextmanager
def _explained(journal: Journal) -> Iterator[None]:
    """Turn the server's refusal into the user's error, saying what is safe."""
    try:
        yield
    except _Refused as error:
        raise ValueError(
            f"{error} {len(journal)} answers are safe in {journal.path}; "
            "a rerun asks only for the others."
        ) from error


def _check_complete(
    missing: Sequence[Question], reasons: Mapping[str, str], asked: int, journal: Journal
) -> None:
    if missing:
        given_up = f"not asked: {GIVE_UP_AFTER} questions in a row had got no reply"
        why = {name: reasons.get(name, given_up) for name, _ in missing}
        raise CollectionError(asked - len(missing), why, journal.path)


def _check_numbers(
    temperature: float, max_tokens: int, concurrency: int, max_attempts: int, timeout: float
) -> None:
    counts = {
        "max_tokens": max_tokens,
        "concurrency": concurrency,
        "max_attempts": max_attempts,
    }
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be a number from 0 up, got {temperature}.")
    if not timeout > 0:
        raise ValueError(f"timeout must be more than 0 seconds, got {timeout}.")


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
    # A proxy set for the outside world cannot reach this machine's own servers.
    http_client = openai.DefaultHttpxClient(trust_env=False) if local else None
    return openai.OpenAI(
        api_key=key or "none",
        base_url=url,
        timeout=timeout,
        max_retries=0,
        http_client=http_client,
    )


def _is_loopback(base_url: str) -> bool:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url must look like 'http://127.0.0.1:8000/v1', got {base_url!r}.")
    if parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        return False


# --- humans ------------------------------------------------------------------------------------


def human_references(
    dataset: datasets.Dataset | str | os.PathLike[str],
    *,
    question_column: str,
    answer_column: str,
    id_column: str | None = None,
    config: str | None = None,
    split: str = "test",
    revision: str | None = None,
    author: str = "human",
    clean: Callable[[Any], str] = lambda answer: answer,
) -> list[Text]:
    """The human answers of a dataset, one Text a row, in the dataset's order.

    `dataset` is a `datasets.Dataset`, a local .jsonl, .json or .parquet file, or a name on the hub
    (then with `split`, `config` and a pinned `revision`). Ids come from `id_column`, else they are
    the row numbers "0", "1", ...; `prompt_sha` is the SHA-256 of the question's text. `clean` turns
    a cell of `answer_column` into the text (drop annotations, take the first of several answers).

    Raises ValueError for a missing column, an empty or non-string answer (naming the row), ids
    that occur twice, and a dataset that cannot be loaded.
    """
    table = _dataset(dataset, config, split, revision)
    columns = [question_column, answer_column, *([id_column] if id_column else [])]
    _check_columns(table.column_names, columns)
    rows = table.select_columns(list(dict.fromkeys(columns)))
    texts = [
        Text(
            question_id=str(row[id_column]) if id_column else str(number),
            author=author,
            text=_answer(clean(row[answer_column]), number),
            prompt_sha=hashlib.sha256(str(row[question_column]).encode()).hexdigest(),
            finish_reason="reference",
        )
        for number, row in enumerate(rows)
    ]
    _check_unique(texts)
    return texts


def _dataset(
    source: datasets.Dataset | str | os.PathLike[str],
    config: str | None,
    split: str,
    revision: str | None,
) -> datasets.Dataset:
    if isinstance(source, Mapping):
        raise ValueError(f"This is a dict of splits, choose one of {', '.join(map(str, source))}.")
    if not isinstance(source, str | os.PathLike):
        return source
    suffix = Path(source).suffix
    if suffix in (".jsonl", ".json", ".parquet"):
        return _local_file(Path(source), "parquet" if suffix == ".parquet" else "json")
    return _from_hub(str(source), config, split, revision)


def _local_file(path: Path, kind: str) -> datasets.Dataset:
    import datasets  # here and below: importing it takes a second that most callers need not pay

    if not path.is_file():
        raise ValueError(f"There is no file {path}: give a local file or a dataset's hub name.")
    try:
        return datasets.load_dataset(kind, data_files=str(path), split="train")
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"{path} could not be read as {kind}: {error.__cause__}") from error


def _from_hub(name: str, config: str | None, split: str, revision: str | None) -> datasets.Dataset:
    import datasets

    if revision is None:
        raise ValueError(
            f"{name!r} is a name on the hub: pin it with revision= (a commit hash or tag), so that "
            "the references stay the same; or give a local .jsonl, .json or .parquet file."
        )
    try:
        return datasets.load_dataset(name, config, split=split, revision=revision)
    except OSError as error:  # no network, no such dataset or revision, no permission
        raise ValueError(
            f"{name!r} at revision {revision!r} could not be loaded ({error}). Check name, "
            "revision, network and, for a gated dataset, HF_TOKEN; or give a local file."
        ) from error


def _check_columns(present: Sequence[str], needed: Sequence[str]) -> None:
    absent = [name for name in needed if name not in present]
    if absent:
        raise ValueError(f"No column {', '.join(absent)}: the dataset has {', '.join(present)}.")


def _answer(value: object, row: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"Row {row} has no text as its answer, got {value!r}: filter such rows out, or turn "
            "them into text with clean=."
        )
    return value


def _check_unique(texts: Sequence[Text]) -> None:
    rows: dict[str, int] = {}
    for row, text in enumerate(texts):
        first = rows.setdefault(text.question_id, row)
        if first != row:
            raise ValueError(
                f"Id {text.question_id!r} occurs in rows {first} and {row}: choose an id_column "
                "with unique values, or leave it out to number the rows."
            )
