"""The double on a port of the loopback address, in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qwenlong_graph.errors import MissingExtraError
from qwenlong_graph.testing.tgi.connection import LINE_EXTENSION

if TYPE_CHECKING:
    import uvicorn

    from qwenlong_graph.testing.tgi.connection import Receive, Scope, Send
    from qwenlong_graph.testing.tgi.double import TgiDouble

__all__ = ["Serving", "serve"]

# Bounds how long leaving `serve` takes, should a task of the server not end when its client does.
ENDING_S = 5


def serve(double: TgiDouble) -> Serving:
    """Serves `double` while its block runs: `with serve(double) as url:`, or `async with`.

    The port is a free one of 127.0.0.1. At the end of the block, whatever went wrong on the
    double's side is raised: a script that ran out, a reply function that failed, a body that TGI
    would not send. Raises `MissingExtraError` without uvicorn.
    """
    return Serving(double)


class Serving:
    """What `serve` returns: a context manager, sync and async, that gives the URL."""

    def __init__(self, double: TgiDouble) -> None:
        try:
            import uvicorn  # noqa: F401 - said here, before any thread starts
        except ImportError as error:
            raise MissingExtraError("The TGI double", "testing") from error
        self._double = double
        self._thread = threading.Thread(target=self._run, name="tgi-double", daemon=True)
        self._is_up = threading.Event()
        self._failure: BaseException | None = None

    def __enter__(self) -> str:
        # A socket that is bound but does not listen keeps the port for a restarted server, and
        # has connections refused in between.
        self._placeholder = _bound(0)
        self._port: int = self._placeholder.getsockname()[1]
        self._thread.start()
        self._is_up.wait()
        if self._failure is not None:
            self._thread.join()
            self._placeholder.close()
            raise self._failure
        return f"http://127.0.0.1:{self._port}"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._leaving.set)
        self._thread.join()
        self._placeholder.close()
        if error is None:
            self._double.raise_failures()

    async def __aenter__(self) -> str:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, traceback)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            self._failure = error
        finally:
            self._is_up.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._leaving = asyncio.Event()
        load_s = 0.0
        while not self._leaving.is_set():
            run = _Run(self._double, self._leaving, is_up=self._is_up)
            self._double.comes_up(load_s=load_s)
            await run.serve(self._port)
            if run.restart is None:
                return
            refuse_s, load_s = run.restart
            await _wait(self._leaving, refuse_s)


class _Run:
    """The server from one start to its end, which leaving or a restart brings."""

    def __init__(
        self, double: TgiDouble, leaving: asyncio.Event, *, is_up: threading.Event
    ) -> None:
        self._double = double
        self._leaving = leaving
        self._is_up = is_up
        self._ending = asyncio.Event()
        self.restart: tuple[float, float] | None = None

    async def serve(self, port: int) -> None:
        import uvicorn

        run = self

        class Server(uvicorn.Server):
            # uvicorn's own two look at the clock ten times a second, and wait for clients.
            async def main_loop(self) -> None:
                run._is_up.set()
                await run._wait_for_the_end()

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                await run._end(self)

        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        self._server = Server(config)
        listening = _bound(port)
        await self._server.serve(sockets=[listening])

    async def _wait_for_the_end(self) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (self._leaving, self._ending)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _end(self, server: uvicorn.Server) -> None:
        self._double.goes_down()
        for listener in server.servers:
            listener.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        if server.server_state.tasks:
            _, late = await asyncio.wait(set(server.server_state.tasks), timeout=ENDING_S)
            for task in late:
                task.cancel()

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        line = _Line(self, scope.get("client"))
        scope["extensions"] = {**(scope.get("extensions") or {}), LINE_EXTENSION: line}
        await self._double(scope, receive, send)

    def transport(self, client: object) -> Any:
        for connection in self._server.server_state.connections:
            if getattr(connection, "client", None) == client:
                return connection.transport
        return None

    def bring_down(self, refuse_s: float, load_s: float) -> None:
        self.restart = (refuse_s, load_s)
        self._ending.set()


class _Line:
    def __init__(self, run: _Run, client: object) -> None:
        self._run = run
        self._client = client

    def write(self, data: bytes) -> None:
        transport = self._run.transport(self._client)
        if transport is not None:
            transport.write(data)

    def close(self) -> None:
        transport = self._run.transport(self._client)
        if transport is not None:
            transport.close()

    def abort(self) -> None:
        transport = self._run.transport(self._client)
        if transport is not None:
            transport.abort()

    def restart(self, refuse_s: float, load_s: float) -> None:
        self._run.bring_down(refuse_s, load_s)


def _bound(port: int) -> socket.socket:
    # asyncio sends small writes at once (TCP_NODELAY) only where the protocol is named; otherwise
    # each answer on a kept connection waits 40 ms for the client's receipt.
    bound = socket.socket(proto=socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
