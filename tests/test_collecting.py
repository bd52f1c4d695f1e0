"""The collector against real HTTP servers on 127.0.0.1: good ones, dying ones, rude ones."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from serving import Reply, Server, asked, completion, error, model_answer

from judgelib import collecting
from judgelib.collecting import (
    CollectionError,
    Estimate,
    Price,
    collect,
    estimate_cost,
)
from judgelib.texts import Journal, Text

ROOT = Path(__file__).resolve().parents[1]
EXPERT = ROOT / "data" / "sandbox" / "expert"


@pytest.fixture(autouse=True)
def no_outside_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own key, endpoint or proxy must not change what is tested."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def questions(*names: str) -> list[tuple[str, list[dict[str, str]]]]:
    return [(name, [{"role": "user", "content": f"ask {name}"}]) for name in names]


def echo(request: dict[str, Any], _: int) -> Reply:
    return completion(f"re: {asked(request)}", prompt_tokens=7, completion_tokens=3)


def scripted(*replies: Reply) -> Callable[[dict[str, Any], int], Reply]:
    """These replies first, in order; echoes from then on."""
    return lambda request, number: (
        replies[number] if number < len(replies) else echo(request, number)
    )


class Naps(list[float]):
    """An instant `sleep` that remembers how long it was asked to take."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def ask(server: Server, path: Path, *names: str, **settings: Any) -> list[Text]:
    settings = {"progress": False, "sleep": Naps(), "concurrency": 1, **settings}
    return collect(questions(*names), path, base_url=server.url, **settings)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers" / "gpt.jsonl"


@pytest.fixture
def good() -> Iterator[Server]:
    with Server(echo) as server:
        yield server


# --- a good server -----------------------------------------------------------------------------


def test_answers_come_back_in_the_order_of_the_questions(good: Server, path: Path) -> None:
    names = [str(number) for number in range(20, 0, -1)]
    texts = ask(good, path, *names, concurrency=4, model="some-model")
    assert [text.question_id for text in texts] == names
    assert [text.text for text in texts] == [f"re: ask {name}" for name in names]
    first = texts[0]
    assert (first.author, first.finish_reason) == ("some-model", "stop")
    assert (first.prompt_tokens, first.completion_tokens) == (7, 3)


def test_request_carries_prompt_and_settings(good: Server, path: Path) -> None:
    ask(good, path, "a", model="m", temperature=0.5, max_tokens=33)
    assert good.requests == [
        {
            "model": "m",
            "temperature": 0.5,
            "max_tokens": 33,
            "messages": [{"role": "user", "content": "ask a"}],
        }
    ]


def test_file_holds_one_json_object_a_line(good: Server, path: Path) -> None:
    texts = ask(good, path, "a", "ü")
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines[-1] == ""
    assert [Text(**json.loads(line)) for line in lines[:-1]] == texts


def test_rerun_asks_nothing_and_needs_neither_server_nor_key(good: Server, path: Path) -> None:
    first = ask(good, path, "a", "b")
    good.die()
    assert collect(questions("b", "a"), path, progress=False) == first[::-1]
    assert len(good.requests) == 2


def test_rerun_asks_only_for_new_questions(good: Server, path: Path) -> None:
    ask(good, path, "a", "b")
    ask(good, path, "c", "a", "d")
    assert good.questions() == ["ask a", "ask b", "ask c", "ask d"]


@pytest.mark.parametrize("change", [{"temperature": 1.0}, {"max_tokens": 9}, {"model": "other"}])
def test_changed_settings_are_asked_again(good: Server, path: Path, change: dict[str, Any]) -> None:
    before = ask(good, path, "a")
    after = ask(good, path, "a", **change)
    assert len(good.requests) == 2
    assert before[0].prompt_sha != after[0].prompt_sha
    assert ask(good, path, "a") == before  # the old answer is still there
    assert len(good.requests) == 2


def test_changed_prompt_is_asked_again(good: Server, path: Path) -> None:
    ask(good, path, "a", "b")
    changed = [("a", [{"role": "user", "content": "anew"}]), *questions("b")]
    texts = collect(changed, path, base_url=good.url, progress=False)
    assert good.questions() == ["ask a", "ask b", "anew"]
    assert [text.text for text in texts] == ["re: anew", "re: ask b"]


def test_asks_concurrently(path: Path) -> None:
    together = threading.Barrier(4, timeout=20)  # breaks unless four requests are open at once

    def answer(request: dict[str, Any], number: int) -> Reply:
        together.wait()
        return echo(request, number)

    with Server(answer) as server:
        assert len(ask(server, path, *"abcdefgh", concurrency=4, max_attempts=1)) == 8


def test_never_more_than_concurrency_at_once(path: Path) -> None:
    open_now, most, mutex = 0, 0, threading.Lock()

    def answer(request: dict[str, Any], number: int) -> Reply:
        nonlocal open_now, most
        with mutex:
            open_now += 1
            most = max(most, open_now)
        time.sleep(0.02)
        with mutex:
            open_now -= 1
        return echo(request, number)

    with Server(answer) as server:
        ask(server, path, *"abcdefgh", concurrency=2)
    assert most == 2


def test_works_inside_a_running_event_loop(good: Server, path: Path) -> None:
    async def cell() -> list[Text]:
        return ask(good, path, "a", "b", concurrency=2)

    assert [text.text for text in asyncio.run(cell())] == ["re: ask a", "re: ask b"]


@pytest.mark.parametrize(
    ("reply", "text", "reason"),
    [
        (completion("cut off", finish_reason="length"), "cut off", "length"),
        (completion("half", finish_reason="content_filter"), "half", "content_filter"),
        (completion(None, finish_reason="content_filter"), "", "content_filter"),
    ],
)
def test_cut_and_filtered_answers_are_kept_with_their_reason(
    path: Path, reply: Reply, text: str, reason: str
) -> None:
    with Server(scripted(reply)) as server:
        (answer,) = ask(server, path, "a")
    assert (answer.text, answer.finish_reason) == (text, reason)
    assert (answer.prompt_tokens, answer.completion_tokens) == (None, None)


def test_token_counts_that_are_no_numbers_are_left_out(path: Path) -> None:
    usage: dict[str, Any] = {"prompt_tokens": "many", "completion_tokens": None}
    with Server(lambda *_: completion("hello", **usage)) as server:
        (answer,) = ask(server, path, "a")
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("hello", None, None)


# --- keys and arguments ------------------------------------------------------------------------


@pytest.mark.parametrize("base_url", [None, "https://models.example.org/v1"])
def test_missing_key_names_the_variable(path: Path, base_url: str | None) -> None:
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        collect(questions("a"), path, base_url=base_url, progress=False)


def test_key_comes_from_argument_or_environment(
    good: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    ask(good, path, "a")
    ask(good, path, "b", api_key="from-argument")
    assert good.keys == ["Bearer from-environment", "Bearer from-argument"]
    assert b"from-" not in path.read_bytes()


def test_base_url_comes_from_the_environment(
    good: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", good.url)
    assert collect(questions("a"), path, progress=False)[0].text == "re: ask a"


def test_a_proxy_is_not_used_for_this_machine(
    good: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert ask(good, path, "a", max_attempts=1)[0].text == "re: ask a"


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([("a", [USER]), ("a", [USER])], "'a' occurs twice"),
        ([("", [USER])], "non-empty string"),
        ([(3, [USER])], "non-empty string"),
        ([("a", [])], "non-empty list of messages"),
        ([("a", "hello")], "non-empty list of messages"),
        ([("a", USER)], "non-empty list of messages"),
        ([("a", [{"role": "user"}])], "non-empty list of messages"),
    ],
)
def test_bad_questions(good: Server, path: Path, bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collect(bad, path, base_url=good.url, progress=False)
    assert good.requests == []


@pytest.mark.parametrize(
    "setting",
    [
        {"max_tokens": 0},
        {"concurrency": 0},
        {"max_attempts": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"timeout": 0},
    ],
)
def test_bad_numbers(good: Server, path: Path, setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        ask(good, path, "a", **setting)


def test_bad_base_url(path: Path) -> None:
    with pytest.raises(ValueError, match="base_url must look like"):
        collect(questions("a"), path, base_url="localhost:8000/v1", progress=False)


# --- cost --------------------------------------------------------------------------------------


def test_estimate_by_hand() -> None:
    message = {"role": "user", "content": "né"}  # 33 characters of JSON, 34 bytes
    estimate = estimate_cost(
        [("a", [message]), ("b", [message, message])],
        price=Price(prompt=2.0, completion=10.0),
        max_tokens=100,
    )
    assert len(json.dumps(message, ensure_ascii=False)) == 33
    assert estimate.questions == 2
    assert estimate.prompt_tokens == 3 * 34 + 2 * 32
    assert estimate.completion_tokens == 200
    assert estimate.cost == pytest.approx((166 * 2.0 + 200 * 10.0) / 1e6)


def test_unknown_price_gives_no_cost() -> None:
    estimate = estimate_cost(questions("a"))
    assert estimate.cost is None
    assert "cost unknown" in str(estimate)


def test_cost_is_shown_before_anything_is_asked(
    good: Server, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(good, path, "a")
    seen: list[tuple[Estimate, int, str]] = []

    def confirm(estimate: Estimate) -> bool:
        seen.append((estimate, len(good.requests), capsys.readouterr().out))
        return True

    capsys.readouterr()
    ask(good, path, "a", "b", "c", confirm=confirm, price=Price(prompt=1e6, completion=1e6))
    ((estimate, asked_before, shown),) = seen
    assert (estimate.questions, asked_before) == (2, 1)  # "a" costs nothing any more
    assert f"at most {estimate.cost:.2f} USD" in shown


def test_no_means_nothing_is_asked(good: Server, path: Path) -> None:
    ask(good, path, "a")
    with pytest.raises(CollectionError, match="1 answers are saved") as caught:
        ask(good, path, "a", "b", confirm=lambda _: False)
    assert list(caught.value.missing) == ["b"]
    assert len(good.requests) == 1


# --- patience ----------------------------------------------------------------------------------


def test_rate_limit_waits_as_long_as_the_server_says(path: Path) -> None:
    naps = Naps()
    with Server(scripted(error(429, "slow down", Retry_After="37"))) as server:
        assert ask(server, path, "a", sleep=naps)[0].text == "re: ask a"
    assert naps == [37.0]


def test_retry_after_may_be_a_date(path: Path) -> None:
    naps = Naps()
    date = formatdate(time.time() + 90, usegmt=True)
    with Server(scripted(error(503, Retry_After=date))) as server:
        ask(server, path, "a", sleep=naps)
    assert 80 < naps[0] <= 90


@pytest.mark.parametrize(
    "value", ["soon", "nan", "inf", "-5", "", "Mon, 99 Foo", "1 Jan 2030 00:00:00 +" + "9" * 20]
)
def test_unusable_retry_after_falls_back_to_backoff(path: Path, value: str) -> None:
    naps = Naps()
    with Server(scripted(error(429, Retry_After=value))) as server:
        ask(server, path, "a", sleep=naps)
    assert 0.5 <= naps[0] <= 1.0


def test_an_hour_is_too_long_to_wait(path: Path) -> None:
    naps = Naps()
    with (
        Server(scripted(error(429, Retry_After="3600"))) as server,
        pytest.raises(CollectionError, match="wait 3600 s"),
    ):
        ask(server, path, "a", sleep=naps)
    assert naps == []


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 529])
def test_failures_that_pass_are_asked_again(path: Path, status: int) -> None:
    naps = Naps()
    with Server(scripted(error(status), error(status))) as server:
        assert ask(server, path, "a", sleep=naps)[0].text == "re: ask a"
    assert len(naps) == 2


def test_backoff_doubles_with_seeded_jitter(tmp_path: Path) -> None:
    def naps(file: str, seed: int) -> Naps:
        slept = Naps()
        with Server(scripted(*[error(503)] * 5)) as server:
            ask(server, tmp_path / file, "a", sleep=slept, seed=seed)
        return slept

    first = naps("1", seed=0)
    assert all(2**n / 2 <= nap <= 2**n for n, nap in enumerate(first)) and len(first) == 5
    assert naps("2", seed=0) == first
    assert naps("3", seed=1) != first


def test_backoff_has_a_ceiling(path: Path) -> None:
    naps = Naps()
    with Server(scripted(*[error(500)] * 11)) as server:
        ask(server, path, "a", sleep=naps, max_attempts=12)
    assert max(naps) <= collecting.LONGEST_BACKOFF
    assert naps[-1] >= collecting.LONGEST_BACKOFF / 2


def test_slow_reply_is_given_up_and_asked_again(path: Path) -> None:
    release = threading.Event()

    def answer(request: dict[str, Any], number: int) -> Reply:
        if number == 0:
            release.wait(20)
        return echo(request, number)

    with Server(answer) as server:
        try:
            assert ask(server, path, "a", timeout=0.3)[0].text == "re: ask a"
        finally:
            release.set()
    assert len(server.requests) == 2


# --- rubbish -----------------------------------------------------------------------------------

RUBBISH = {
    "html": Reply(b"<html>Bad gateway</html>", headers={"Content-Type": "text/html"}),
    "html that says json": Reply(b"<html>", headers={"Content-Type": "application/json"}),
    "nothing": Reply(b""),
    "half a json": Reply(completion("hello").body[:-9]),
    "not utf-8": Reply(b'{"choices": "\xff\xfe"}'),
    "a number": Reply(b"42"),
    "null": Reply(b"null"),
    "a list": Reply(b"[]"),
    "no choices": Reply(b'{"id": "x"}'),
    "empty choices": Reply(b'{"choices": []}'),
    "choices of null": Reply(b'{"choices": [null]}'),
    "no message": Reply(b'{"choices": [{"finish_reason": "stop"}]}'),
    "null content": completion(None),
    "content of parts": Reply(b'{"choices": [{"message": {"content": ["a"]}}]}'),
    "an error with status 200": Reply(b'{"error": {"message": "overloaded"}}'),
    "half a character": Reply(rb'{"choices": [{"message": {"content": "\ud83d"}}]}'),
    "too deep": Reply(b"[" * 100_000),
    "a lie about gzip": Reply(b"plain", headers={"Content-Encoding": "gzip"}),
    "a cut connection": Reply(completion("hello there").body, cut=20),
}


@pytest.mark.parametrize("kind", RUBBISH)
def test_rubbish_is_asked_again(path: Path, kind: str) -> None:
    naps = Naps()
    with Server(scripted(RUBBISH[kind], RUBBISH[kind])) as server:
        (text,) = ask(server, path, "a", sleep=naps)
    assert text.text == "re: ask a"
    assert (len(server.requests), len(naps)) == (3, 2)


@pytest.mark.parametrize("kind", RUBBISH)
def test_lasting_rubbish_fails_that_question_only(path: Path, kind: str) -> None:
    def answer(request: dict[str, Any], number: int) -> Reply:
        return RUBBISH[kind] if asked(request) == "ask b" else echo(request, number)

    naps = Naps()
    with Server(answer) as server:
        with pytest.raises(CollectionError, match="2 answers are saved") as caught:
            ask(server, path, "a", "b", "c", max_attempts=3, sleep=naps)
        assert server.questions().count("ask b") == 3
    assert len(naps) == 2  # and none after the last attempt
    assert caught.value.saved == 2
    assert list(caught.value.missing) == ["b"]
    assert "(attempt 3 of 3)" in caught.value.missing["b"]
    assert "asks only for the missing ones" in str(caught.value)
    with Server(echo) as server:
        assert [text.question_id for text in ask(server, path, "a", "b", "c")] == ["a", "b", "c"]
        assert server.questions() == ["ask b"]


def test_questions_with_rubbish_do_not_stop_the_others(path: Path) -> None:
    names = [f"bad{n}" for n in range(2 * collecting.GIVE_UP_AFTER)]

    def answer(request: dict[str, Any], number: int) -> Reply:
        return RUBBISH["html"] if "bad" in asked(request) else echo(request, number)

    with Server(answer) as server, pytest.raises(CollectionError) as caught:
        ask(server, path, *names, "good", max_attempts=1)
    assert (caught.value.saved, set(caught.value.missing)) == (1, set(names))


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "advice"),
    [
        (error(400, "no such parameter"), "no such parameter.*change model, temperature"),
        (error(401, "wrong key"), "Check the key"),
        (error(403), "may not use this model"),
        (error(404, "unknown model"), "unknown model.*model's name and base_url"),
        (error(422, "unprocessable"), "answered 422: .*unprocessable"),
        (error(429, "pay", code="insufficient_quota"), "billing"),
    ],
)
def test_refusal_stops_at_once_with_advice(path: Path, reply: Reply, advice: str) -> None:
    naps = Naps()
    with Server(scripted(echo({"messages": [USER]}, 0), reply, reply, reply)) as server:
        with pytest.raises(ValueError, match=advice) as caught:
            ask(server, path, *"abcdefgh", sleep=naps)
        assert len(server.requests) == 2
    assert naps == []
    assert "1 answers are safe" in str(caught.value)
    assert len(path.read_bytes().splitlines()) == 1


@pytest.mark.parametrize("code", ["content_filter", "context_length_exceeded"])
def test_a_refused_question_does_not_stop_the_others(path: Path, code: str) -> None:
    with Server(scripted(error(400, "too much", code=code))) as server:
        with pytest.raises(CollectionError, match=f"{code}.*too much") as caught:
            ask(server, path, "a", "b")
        assert len(server.requests) == 2
    assert list(caught.value.missing) == ["a"]


# --- death -------------------------------------------------------------------------------------


def test_server_that_dies_half_way_and_comes_back(path: Path) -> None:
    def mortal(request: dict[str, Any], number: int) -> Reply:
        if number < 3:
            return echo(request, number)
        server.die()
        return Reply(completion("never arrives").body, cut=30)

    with Server(mortal) as server, pytest.raises(CollectionError, match="3 answers are") as caught:
        ask(server, path, *"abcdef", max_attempts=2)
    assert list(caught.value.missing) == ["d", "e", "f"]
    assert "connection failed" in caught.value.missing["e"]
    with Server(echo, port=server.port) as back:
        texts = ask(back, path, *"abcdef")
        assert back.questions() == ["ask d", "ask e", "ask f"]
    assert [text.text for text in texts] == [f"re: ask {name}" for name in "abcdef"]


def test_server_that_comes_back_while_we_wait(path: Path) -> None:
    def mortal(request: dict[str, Any], number: int) -> Reply:
        if number == 1:
            server.die()
        return Reply(echo(request, number).body, cut=10 * (number == 1))

    revived: list[Server] = []

    def sleep(_: float) -> None:
        if not revived:
            revived.append(Server(echo, port=server.port).__enter__())

    with Server(mortal) as server:
        try:
            assert len(ask(server, path, "a", "b", "c", sleep=sleep)) == 3
        finally:
            for again in revived:
                again.__exit__()
    assert revived[0].questions() == ["ask b", "ask c"]


def test_a_dead_server_is_not_asked_a_thousand_times(path: Path) -> None:
    names = [str(number) for number in range(1000)]
    with Server(lambda *_: error(503)) as server:
        with pytest.raises(CollectionError) as caught:
            ask(server, path, *names, max_attempts=2)
        assert len(server.requests) <= 2 * (collecting.GIVE_UP_AFTER + 1)
    assert len(caught.value.missing) == 1000
    assert "and 990 more" in str(caught.value)


def test_scattered_failures_are_not_a_dead_server(path: Path) -> None:
    names = [f"{kind}{n}" for n in range(collecting.GIVE_UP_AFTER + 1) for kind in ("bad", "good")]

    def answer(request: dict[str, Any], number: int) -> Reply:
        return error(503) if "bad" in asked(request) else echo(request, number)

    with Server(answer) as server, pytest.raises(CollectionError) as caught:
        ask(server, path, *names, max_attempts=1)
    assert list(caught.value.missing) == names[::2]
    assert all("503" in reason for reason in caught.value.missing.values())


def test_answer_on_its_way_at_ctrl_c_is_saved(path: Path) -> None:
    def answer(request: dict[str, Any], number: int) -> Reply:
        if number == 1:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.3)
        return echo(request, number)

    with Server(answer) as server:
        with pytest.raises(KeyboardInterrupt):
            ask(server, path, *"abcdef")
        assert server.questions() == ["ask a", "ask b"]
        assert len(ask(server, path, *"abcdef")) == 6
        assert sorted(server.questions()) == [f"ask {name}" for name in "abcdef"]


KILLED = """
import sys
from judgelib.collecting import collect
asked = [(str(n), [{"role": "user", "content": f"ask {n}"}]) for n in range(12)]
collect(asked, sys.argv[1], base_url=sys.argv[2], concurrency=2, progress=False)
"""


def test_killed_collector_asks_only_for_what_is_missing(path: Path) -> None:
    reached, hold = threading.Event(), threading.Event()

    def answer(request: dict[str, Any], number: int) -> Reply:
        if number >= 6:
            reached.set()
            hold.wait(60)
        return echo(request, number)

    with Server(answer) as server:
        command = [sys.executable, "-c", KILLED, str(path), server.url]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as collector:
            try:
                assert reached.wait(60)
                _wait_until(lambda: len(path.read_bytes().splitlines()) >= 5)
            finally:
                collector.kill()
        hold.set()
        saved = {json.loads(line)["question_id"] for line in path.read_bytes().splitlines()}
        before = len(server.requests)
        texts = ask(server, path, *map(str, range(12)), concurrency=2)
        again = server.questions()[before:]
    assert len(saved) >= 5
    assert sorted(again) == sorted(f"ask {n}" for n in range(12) if str(n) not in saved)
    assert [text.text for text in texts] == [f"re: ask {n}" for n in range(12)]


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the collector never got there")
        time.sleep(0.02)


# --- the file ----------------------------------------------------------------------------------


def test_answers_are_on_the_disk_as_they_arrive(path: Path) -> None:
    lines_at: list[int] = []

    def answer(request: dict[str, Any], number: int) -> Reply:
        lines_at.append(len(path.read_bytes().splitlines()))
        return echo(request, number)

    with Server(answer) as server:
        ask(server, path, "a", "b", "c")
    assert lines_at == [0, 1, 2]


def test_full_disk_keeps_whole_lines_and_a_rerun_completes(good: Server, path: Path) -> None:
    ask(good, path, "a")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = int(2.5 * path.stat().st_size)  # a second line fits, the third only in part
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OSError, match="earlier ones are safe"):
            ask(good, path, "a", "b", "c", "d", "e")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    lines = path.read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["question_id"] for line in lines] == ["a", "b"]
    assert lines[-1].endswith(b"\n")
    assert good.questions() == ["ask a", "ask b", "ask c"]  # and no answer bought in vain
    assert len(ask(good, path, "a", "b", "c", "d", "e")) == 5
    assert good.questions().count("ask b") == 1


def test_torn_answer_is_asked_again(good: Server, path: Path) -> None:
    texts = ask(good, path, "a", "b")
    path.write_bytes(path.read_bytes()[:-20])
    assert ask(good, path, "a", "b") == texts
    assert good.questions() == ["ask a", "ask b", "ask b"]


def test_damaged_file_is_refused_before_anything_is_asked(good: Server, path: Path) -> None:
    ask(good, path, "a")
    path.write_bytes(path.read_bytes() + b"rubbish\n")
    with pytest.raises(ValueError, match=r"gpt\.jsonl, line 2 is not a stored answer"):
        ask(good, path, "a", "b")
    assert len(good.requests) == 1


def test_two_collectors_cannot_share_a_file(good: Server, path: Path) -> None:
    with Journal(path), pytest.raises(ValueError, match="in use by another collector"):
        ask(good, path, "a")
    assert good.requests == []
    assert len(ask(good, path, "a")) == 1


# --- a real model behind the server ------------------------------------------------------------


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sandbox expert where its weights are, else a tiny random Llama with a chat template."""
    if (EXPERT / "model.safetensors").is_file():
        return EXPERT
    return _tiny_model(tmp_path_factory.mktemp("expert"))


def _tiny_model(directory: Path) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<e>", pad_token="<e>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_collects_what_the_model_says(expert: Path, path: Path) -> None:
    """A server with the real model that hangs up half way: every text is the model's own."""
    answer = model_answer(expert)

    def unreliable(request: dict[str, Any], number: int) -> Reply:
        reply = answer(request, number)
        return Reply(reply.body, cut=25) if number == 2 else reply

    names = ["one", "two", "three", "four"]
    with Server(unreliable) as server:
        texts = ask(server, path, *names, model="expert", max_tokens=12, concurrency=2)
    assert len(server.requests) == 5
    for text, (_, messages) in zip(texts, questions(*names), strict=True):
        said = json.loads(answer({"messages": messages, "max_tokens": 12}, 0).body)
        assert text.text == said["choices"][0]["message"]["content"]
        assert text.completion_tokens == said["usage"]["completion_tokens"] <= 12
    assert {text.author for text in texts} == {"expert"}
    assert len({text.prompt_sha for text in texts}) == 4


def test_estimate_bounds_the_real_token_counts(expert: Path, path: Path) -> None:
    with Server(model_answer(expert)) as server:
        (text,) = ask(server, path, "How many apples are left?", max_tokens=8)
    estimate = estimate_cost(questions("How many apples are left?"), max_tokens=8)
    assert 0 < (text.prompt_tokens or 0) <= estimate.prompt_tokens
    assert 0 < (text.completion_tokens or 0) <= estimate.completion_tokens
