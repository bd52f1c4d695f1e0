"""Real HTTP servers on loopback that speak `/v1/chat/completions`.

`Server(answer)` calls `answer(request, number)` for each request (its JSON body; a count from 0)
and sends the `Reply` it returns. `completion` makes a good reply, `model_answer` the answer
function that runs a transformers model behind its chat template.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What goes over the wire; `cut` > 0 closes the socket that many bytes before the end."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int = 0


def completion(text: str | None, *, finish_reason: str = "stop", **usage: int) -> Reply:
    """A chat completion with one choice, in the schema of the OpenAI API."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    body = {"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}
    return Reply(json.dumps(body).encode(), headers={"Content-Type": "application/json"})


def error(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    """An error in the API's schema; header names are given with underscores."""
    body = json.dumps({"error": {"message": message, "code": code, "type": "test"}}).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(body, status, {"Content-Type": "application/json", **names})


def asked(request: Mapping[str, Any]) -> str:
    """The last message's content: how scripted answers know the question."""
    return str(request["messages"][-1]["content"])


class Server:
    """A context manager that listens from entry to exit; records what it was asked."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Reply], port: int = 0) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self._answer, self._mutex = answer, threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        self._thread.join()

    def die(self) -> None:
        """Refuse every later connection; may be called from inside an answer."""
        self._http.shutdown()
        self._http.server_close()

    def questions(self) -> list[str]:
        """The last message of every request so far, in order of arrival."""
        return [asked(request) for request in self.requests]

    def _reply(self, path: str, key: str | None, body: bytes) -> Reply:
        if path != "/v1/chat/completions":
            return error(404, f"no such path {path}")
        with self._mutex:
            number = len(self.requests)
            self.requests.append(json.loads(body))
            self.keys.append(key)
        return self._answer(self.requests[number], number)

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                reply = server._reply(self.path, self.headers["Authorization"], body)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                with suppress(ConnectionError):  # a client may have lost patience
                    self.wfile.write(reply.body[: len(reply.body) - reply.cut])

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def model_answer(directory: str | Path) -> Callable[[dict[str, Any], int], Reply]:
    """Answers by the causal LM and chat template in `directory`, greedy, one at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    mutex = threading.Lock()

    def answer(request: dict[str, Any], _: int) -> Reply:
        prompt = tokenizer.apply_chat_template(
            request["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with mutex, torch.inference_mode():
            ids = model.generate(**prompt, max_new_tokens=request["max_tokens"], do_sample=False)[0]
        new = ids[prompt["input_ids"].shape[1] :]
        ended = int(new[-1]) == tokenizer.eos_token_id
        return completion(
            tokenizer.decode(new, skip_special_tokens=True),
            finish_reason="stop" if ended else "length",
            prompt_tokens=prompt["input_ids"].shape[1],
            completion_tokens=len(new),
        )

    return answer
