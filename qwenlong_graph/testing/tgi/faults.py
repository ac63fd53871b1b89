"""What can go wrong with a server, as values to put into a script.

`events` is how many events of a stream still arrive before the fault strikes; a place beyond the
end means: just before the event that ends the reply. An answer that is no stream has no events:
half of its body stands for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = [
    "BadGateway",
    "CloseAfter",
    "CommentsOnly",
    "CutAfter",
    "ErrorEvent",
    "Fail",
    "Fault",
    "Garbage",
    "NoAnswer",
    "NoFinalEvent",
    "NotHttp",
    "Restart",
    "Silence",
    "SlowDrip",
    "TruncatedUtf8",
    "WrongTypes",
]


@dataclass(frozen=True)
class Fail:
    """An HTTP status with TGI's error body, in place of any answer.

    `error_type` is the one TGI has for that status where none is given. `retry_after_s` becomes
    the header of that name; TGI itself sends none, proxies before it do.
    """

    status: int
    error_type: str | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True)
class BadGateway:
    """The page of a proxy that does not reach its server: HTML where JSON was expected."""

    status: int = 502


@dataclass(frozen=True)
class NoAnswer:
    """Takes the request and never says a byte; the connection stays open."""


@dataclass(frozen=True)
class NotHttp:
    """Bytes that are no HTTP, then the connection closes."""

    content: bytes = b"\x15\x03\x01\x00\x02\x02\x46 not what you came for\r\n\r\n"


@dataclass(frozen=True)
class Silence:
    """After `events` events nothing more comes; the connection stays open."""

    events: int = 0


@dataclass(frozen=True)
class CommentsOnly:
    """After `events` events only SSE comments come, one every `every_s` seconds.

    TGI sends them every 15 s; they defeat a timeout that watches for bytes. An answer that is no
    stream falls silent instead.
    """

    events: int = 0
    every_s: float = 0.05


@dataclass(frozen=True)
class CloseAfter:
    """After `events` events the answer ends, in good order for HTTP."""

    events: int


@dataclass(frozen=True)
class CutAfter:
    """After `events` events the connection breaks."""

    events: int


@dataclass(frozen=True)
class NoFinalEvent:
    """All of the text comes, but not the event that ends the reply.

    Without a stream it is TGI's own 500 of the type "incomplete_generation".
    """


@dataclass(frozen=True)
class ErrorEvent:
    """After `events` events comes an error of TGI's, inside the stream of status 200.

    `error_type` is "generation", "overloaded", "validation" or "incomplete_generation". Without a
    stream the error comes with the status TGI gives it.
    """

    error_type: str = "generation"
    events: int = 0


@dataclass(frozen=True)
class Garbage:
    """After `events` events come bytes that are neither UTF-8 nor an event, then the end."""

    events: int = 0
    content: bytes = field(default=b"\x00\xff\xfe\x80garbage\xc3\x28\r\x1b[2J{]\n\n")


@dataclass(frozen=True)
class WrongTypes:
    """After `events` events comes valid JSON whose fields have the wrong types, then the end."""

    events: int = 0


@dataclass(frozen=True)
class TruncatedUtf8:
    """After `events` events the answer ends in the middle of a character."""

    events: int = 0


@dataclass(frozen=True)
class SlowDrip:
    """The whole answer, with a pause of `pause_s` seconds before each piece of it.

    A piece is an event of a stream, or `size` bytes of the answer where that is given; without a
    stream it is 16 bytes.
    """

    pause_s: float
    size: int | None = None


@dataclass(frozen=True)
class Restart:
    """After `events` events the server dies, and every open connection with it.

    For `refuse_s` seconds connections are refused, for `load_s` seconds more everything is
    answered with 503; then all is well again. Needs `serve`.
    """

    refuse_s: float
    load_s: float = 0.0
    events: int = 0


Fault: TypeAlias = (
    Fail
    | BadGateway
    | NoAnswer
    | NotHttp
    | Silence
    | CommentsOnly
    | CloseAfter
    | CutAfter
    | NoFinalEvent
    | ErrorEvent
    | Garbage
    | WrongTypes
    | TruncatedUtf8
    | SlowDrip
    | Restart
)
