"""One HTTP answer, sent whole, in pieces, or broken on purpose."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Protocol, TypeAlias

__all__ = ["LINE_EXTENSION", "Connection", "Line", "Receive", "Scope", "Send"]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LINE_EXTENSION = "qwenlong_graph.line"
"""The ASGI extension by which `serve` lends the connection itself, a `Line`, to the double."""


class Line(Protocol):
    """What ASGI does not let an application do."""

    def write(self, data: bytes) -> None:
        """Puts bytes on the wire, past HTTP."""
        ...

    def close(self) -> None:
        """Closes after what was written."""
        ...

    def abort(self) -> None:
        """Breaks the connection at once."""
        ...

    def restart(self, refuse_s: float, load_s: float) -> None:
        """Brings the whole server down."""
        ...


class Connection:
    """An answer on its way to a client."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send = send
        self._line: Line | None = (scope.get("extensions") or {}).get(LINE_EXTENSION)
        self._when_over: Callable[[bool], None] | None = None
        self.is_started = False
        self.is_over = False
        """Nothing more that matters will come."""
        self.is_broken = False
        """The connection was taken from under HTTP."""
        self.written_at = 0.0
        """When the last piece of the answer was sent, on the monotonic clock."""

    def when_over(self, call: Callable[[bool], None]) -> None:
        """Calls `call` at the first `over`, with what it says."""
        self._when_over = call

    def over(self, *, is_answered: bool = False) -> None:
        """Says, before the last bytes of an answer are sent, that nothing else will come.

        It is answered where the client gets what it should.
        """
        if not self.is_over:
            self.is_over = True
            if self._when_over is not None:
                self._when_over(is_answered)

    async def start(
        self, status: int, headers: Mapping[str, str], *, length: int | None = None
    ) -> None:
        """Sends status and headers; without a `length` the body is chunked."""
        self.is_started = True
        self.written_at = time.monotonic()
        if length is not None:
            headers = {**headers, "content-length": str(length)}
        fields = [
            (name.encode("latin-1"), text.encode("latin-1")) for name, text in headers.items()
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": fields})

    async def write(self, data: bytes) -> None:
        """Sends a piece of the body."""
        self.written_at = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Sends the last piece of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Sends a whole answer."""
        await self.start(status, headers, length=len(body))
        await self.end(body)

    async def hang(self) -> None:
        """Sends nothing more, until the client leaves."""
        await asyncio.Event().wait()

    def abort(self) -> None:
        """Breaks the connection off."""
        self._takes_the_line().abort()

    def write_raw(self, data: bytes) -> None:
        """Puts bytes on the wire in place of an answer, and closes."""
        line = self._takes_the_line()
        line.write(data)
        line.close()

    def restart(self, refuse_s: float, load_s: float) -> None:
        """Brings the whole server down."""
        self._takes_the_line().restart(refuse_s, load_s)

    def _takes_the_line(self) -> Line:
        if self._line is None:
            raise RuntimeError("This fault needs the connection itself: run the double by `serve`.")
        self.is_broken = True
        self.over()
        return self._line
