"""A response that says that it was decoded lossily.

    vllm serve TARGET ... --middleware judgelib.integrations.vllm.header.JudgeHeader

adds the header `x-judge` to every answer: `off` if it was decoded strictly, otherwise the judge
that was at work, such as `head=annotated; threshold=0.5`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from functools import cache
from typing import Any

from judgelib.head import JudgeHead
from judgelib.head_config import public_name
from judgelib.integrations.vllm.config import KEY, JudgeConfig

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

NAME = b"x-judge"


class JudgeHeader:
    """ASGI middleware; reads a request's body, which it passes on, and adds one header."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        messages = await _all_of(receive)
        body = b"".join(message.get("body", b"") for message in messages)
        value = _said(scope, body)

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), (NAME, value)]}
            await send(message)

        await self.app(scope, replay, send_with_header)


async def _all_of(receive: Receive) -> list[Message]:
    """A request's messages, up to the last."""
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    return messages


def _said(scope: Message, body: bytes) -> bytes:
    """The header's value for a request."""
    state = scope["app"].state
    vllm_config = getattr(state, "vllm_config", None)
    config = JudgeConfig.of(getattr(vllm_config, "additional_config", None))
    return b"off" if config is None else described(config, _wish(body)).encode("ascii", "replace")


def described(config: JudgeConfig, wish: object) -> str:
    """What decodes a request that wishes so.

    >>> described(JudgeConfig(rule="ratio", setting=0.05), None)
    'rule=ratio; setting=0.05'
    """
    try:
        dial = config.dial_of(wish, _own_dial(config))
    except ValueError:
        return "off"  # it will be refused
    if dial is None:
        return "off"
    judge = f"head={public_name(config.head)}" if config.head else f"rule={config.rule}"
    floor = [] if config.floor is None else [f"floor={config.floor:g}"]
    return "; ".join([judge, f"{config.dial_name}={dial:g}", *floor])


@cache
def _own_dial(config: JudgeConfig) -> float:
    """Where the engine's dial stands; a head may have to be asked for its threshold."""
    given = config.setting if config.head is None else config.threshold
    if given is None:
        assert config.head is not None  # a rule without a setting is refused
        given = JudgeHead.from_pretrained(config.head).threshold
    return given


def _wish(body: bytes) -> object:
    """`vllm_xargs["judge"]` of a request's JSON body, with true and false as vLLM reads them."""
    try:
        request = json.loads(body)
    except ValueError:
        return None
    arguments = request.get("vllm_xargs") if isinstance(request, dict) else None
    return arguments.get(KEY) if isinstance(arguments, dict) else None
