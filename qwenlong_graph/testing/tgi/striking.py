"""How each fault is played on a connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from qwenlong_graph.testing.tgi import bodies
from qwenlong_graph.testing.tgi.connection import Connection
from qwenlong_graph.testing.tgi.faults import (
    BadGateway,
    CloseAfter,
    CommentsOnly,
    CutAfter,
    ErrorEvent,
    Fail,
    Fault,
    Garbage,
    NoAnswer,
    NoFinalEvent,
    NotHttp,
    Restart,
    Silence,
    SlowDrip,
    TruncatedUtf8,
    WrongTypes,
)
from qwenlong_graph.testing.tgi.generation import Refusal

__all__ = ["Event", "named", "strike_first", "strike_stream", "strike_whole"]

JSON = {"content-type": "application/json"}

_PAGE = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n"
    b"<body><h1>502 Bad Gateway</h1></body>\r\n</html>\r\n"
)
# Without a stream, where no size is given.
_DRIP_BYTES = 16

_MESSAGES = {
    "generation": "Request failed during generation: Server error: CUDA out of memory",
    "overloaded": "Model is overloaded",
    "validation": "Input validation error: `inputs` cannot be empty",
    "incomplete_generation": "Incomplete generation",
    "healthcheck": "unhealthy",
}
_TYPES = {422: "validation", 424: "generation", 429: "overloaded", 503: "healthcheck"}


@dataclass(frozen=True)
class Event:
    """An event of a stream, ready to send; the final one carries how the reply ended."""

    data: bytes
    is_final: bool = False


def named(error_type: str) -> Refusal:
    """The error of that type in TGI's words."""
    return Refusal(error_type, _MESSAGES.get(error_type, error_type))


async def strike_first(connection: Connection, fault: Fault) -> bool:
    """Plays a fault that takes the place of any answer; False where it is none of those."""
    if isinstance(fault, Fail | BadGateway):
        connection.over()
    match fault:
        case Fail(status, error_type, retry_after_s):
            error_type = error_type or _TYPES.get(status, "incomplete_generation")
            headers = dict(JSON)
            if retry_after_s is not None:
                headers["retry-after"] = f"{retry_after_s:g}"
            body = bodies.error(error_type, str(named(error_type)))
            await connection.whole(status, headers, bodies.encoded(body))
        case BadGateway(status):
            await connection.whole(status, {"content-type": "text/html"}, _PAGE)
        case NoAnswer():
            await connection.hang()
        case NotHttp(content):
            connection.write_raw(content)
        case _:
            return False
    return True


async def strike_stream(
    connection: Connection,
    events: AsyncIterator[Event],
    fault: Fault,
    comments: asyncio.Task[None],
    *,
    is_chat: bool,
) -> None:
    """Sends a stream until its fault strikes, and then what the fault makes of it."""
    if isinstance(fault, SlowDrip):
        async for event in events:
            for piece in _pieces(event.data, fault.size or len(event.data)):
                await asyncio.sleep(fault.pause_s)
                if event.is_final:
                    connection.over(is_answered=True)
                await connection.write(piece)
        await connection.end()
        return
    # NoFinalEvent has no place of its own.
    place = getattr(fault, "events", None)
    number = 0
    async for event in events:
        if event.is_final or number == place:
            break
        await connection.write(event.data)
        number += 1
    if not isinstance(fault, CommentsOnly | Silence):
        connection.over()
    match fault:
        case CloseAfter() | NoFinalEvent():
            await connection.end()
        case Garbage(_, content):
            await connection.end(content)
        case WrongTypes():
            await connection.end(bodies.event(bodies.encoded(_WRONG)))
        case TruncatedUtf8():
            await connection.end(b'data: {"index":1,"token":{"id":9,"text":"\xe2\x82')
        case ErrorEvent(error_type):
            message = str(named(error_type))
            body = bodies.chat_error(message) if is_chat else bodies.error(error_type, message)
            await connection.write(bodies.event(bodies.encoded(body)))
            await connection.end(bodies.event(b"[DONE]") if is_chat else b"")
        case CommentsOnly(_, every_s):
            while True:
                await asyncio.sleep(every_s)
                await connection.write(b":\n\n")
        case _:
            comments.cancel()
            await _break(connection, fault)


async def strike_whole(
    connection: Connection, fault: Fault, headers: Mapping[str, str], content: bytes
) -> None:
    """Sends an answer that is no stream, with its fault."""
    half = content[: len(content) // 2]
    if not isinstance(fault, CommentsOnly | Silence | SlowDrip):
        connection.over()
    match fault:
        case SlowDrip(pause_s, size):
            await connection.start(200, headers, length=len(content))
            *most, last = _pieces(content, size or _DRIP_BYTES)
            for piece in most:
                await asyncio.sleep(pause_s)
                await connection.write(piece)
            await asyncio.sleep(pause_s)
            connection.over(is_answered=True)
            await connection.end(last)
        case CloseAfter():
            await connection.whole(200, headers, half)
        case Garbage(_, garbage):
            await connection.whole(200, headers, garbage)
        case WrongTypes():
            await connection.whole(200, headers, bodies.encoded(_WRONG))
        case TruncatedUtf8():
            await connection.whole(200, headers, b'{"generated_text":"\xe2\x82')
        case _:
            await connection.start(200, headers, length=len(content))
            await connection.write(half)
            await _break(connection, fault)


_WRONG: Mapping[str, Any] = {
    "index": "one",
    "token": ["id", 5],
    "generated_text": 42,
    "details": "none",
    "choices": {"0": None},
    "usage": [],
}


async def _break(connection: Connection, fault: Fault) -> None:
    match fault:
        case CutAfter():
            connection.abort()
        case Restart(refuse_s, load_s):
            connection.restart(refuse_s, load_s)
        case Silence() | CommentsOnly():
            await connection.hang()
        case _:
            raise TypeError(f"{fault!r} is no fault that this double knows.")


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]
