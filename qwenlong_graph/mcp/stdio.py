"""The server on standard input and output, which then carry the protocol and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, cast

import anyio
from mcp.server.stdio import stdio_server

if TYPE_CHECKING:
    from mcp.server.lowlevel.server import Server

    from qwenlong_graph.mcp.reader import Reader

__all__ = ["ProtocolPipes", "serve_stdio"]

_READ_BYTES = 1 << 16


class ProtocolPipes:
    """Takes standard input and output away from the rest of the process, for good.

    What anything prints from now on, a C library included, goes to standard error, and nothing else
    can read what the client sends.
    """

    def __init__(self) -> None:
        sys.stdout.flush()
        self.input, self.output = os.dup(0), os.dup(1)
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123 (a descriptor is wanted)
            os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)
        sys.stdout = sys.stderr


async def serve_stdio(server: Server[Any, Any], reader: Reader, pipes: ProtocolPipes) -> None:
    """Serves the one client until it closes its end, or until SIGINT or SIGTERM.

    A question that is being read then ends, and its run is kept.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for kind in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(kind, task.cancel)
    file = io.TextIOWrapper(os.fdopen(pipes.output, "wb"), encoding="utf-8", newline="\n")
    lines = cast("anyio.AsyncFile[str]", _lines(pipes.input))
    try:
        async with stdio_server(lines, anyio.wrap_file(file)) as (read, write):
            await server.run(read, write, server.create_initialization_options())
    except* BrokenPipeError:
        # The client went without closing its output first.
        os.dup2(os.open(os.devnull, os.O_WRONLY), pipes.output)
    finally:
        await reader.close()


async def _lines(descriptor: int) -> AsyncIterator[str]:
    """The lines that come in, read by a thread that an end of the process need not wait for."""
    loop = asyncio.get_running_loop()
    # Bounded, so that a client that writes faster than it is served waits.
    waiting: asyncio.Queue[bytes | None] = asyncio.Queue(64)

    def read() -> None:
        # RuntimeError: the loop has ended.
        with contextlib.suppress(OSError, RuntimeError):
            while received := os.read(descriptor, _READ_BYTES):
                asyncio.run_coroutine_threadsafe(waiting.put(received), loop).result()
        with contextlib.suppress(RuntimeError):
            asyncio.run_coroutine_threadsafe(waiting.put(None), loop)

    threading.Thread(target=read, name="mcp-input", daemon=True).start()
    rest: list[bytes] = []
    while (received := await waiting.get()) is not None:
        *ended, last = received.split(b"\n")
        for line in ended:
            yield b"".join([*rest, line]).decode("utf-8", "replace")
            rest = []
        rest.append(last)
