"""The memory agent as a web service for several users, its readings kept in PostgreSQL.

    pip install 'qwenlong-graph[postgres]' starlette uvicorn
    export READER_DATABASE=postgresql://reader@localhost/readings READER_TOKENS=tokens.txt
    uvicorn asgi_app:app --app-dir examples --timeout-graceful-shutdown 5

    POST /readings              {"question", "documents", "instructions"}: events of the reading
    GET  /readings/ID           how far it is, and its answer
    POST /readings/ID/resume    goes on; the same events
    POST /readings/ID/cancel    stops it; what was read is kept

READER_TOKENS names a file with lines "USER TOKEN"; a request shows its token as a bearer token, and
finds the readings of its user only. QWENLONG_GRAPH_MODEL names the model.

A reading goes on when the connection that asked for it ends. It ends with this process, and
`resume` goes on with it in the next one, at the chunk that was open. docs/production.md says more.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
from langchain_core.documents import Document
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from qwenlong_graph import connect, create_memory_agent
from qwenlong_graph.errors import ConnectionSetupError, QwenLongGraphError, RunLockedError
from qwenlong_graph.graph.agent import MemoryAgent
from qwenlong_graph.runs.postgres import ReadingPostgresSaver, make_tables, open_thread

BODY_BYTES_MAX = 64 << 20
READINGS_AT_ONCE = 4  # of one user; each holds a connection to the database
PING_S = 15.0
DATABASE_TIMEOUT_S = 5.0

_log = logging.getLogger(__name__)


class Reading:
    """A reading that this process works on, and the events that nobody has seen yet."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()
        self.is_watched = True
        self.task: asyncio.Task[None] | None = None

    def tell(self, name: str, data: Any) -> None:
        if self.is_watched:
            self.events.put_nowait((name, data))

    async def stream(self) -> AsyncIterator[str]:
        """The events as server-sent events, with a sign of life in long silences."""
        try:
            while True:
                try:
                    event = await asyncio.wait_for(self.events.get(), PING_S)
                except TimeoutError:
                    yield ": reading\n\n"
                    continue
                if event is None:
                    return
                yield f"event: {event[0]}\ndata: {json.dumps(event[1])}\n\n"
        finally:
            self.is_watched = False


class Readings:
    """All readings of all users. A thread is named USER/ID."""

    def __init__(self, agent: MemoryAgent, database: str, saver: ReadingPostgresSaver) -> None:
        self.agent = agent
        self.database = database
        self.saver = saver  # to look at states; each reading has a connection of its own
        self.working: dict[str, Reading] = {}

    async def begin(self, thread_id: str, given: Mapping[str, Any] | None) -> Reading:
        """Starts or resumes a reading; returns once it holds its thread."""
        user = thread_id.partition("/")[0]
        if sum(name.startswith(f"{user}/") for name in self.working) >= READINGS_AT_ONCE:
            raise HTTPException(429, f"You have {READINGS_AT_ONCE} readings at work. Wait for one.")
        if thread_id in self.working:
            raise HTTPException(409, "It is being read at this moment.")
        self.working[thread_id] = reading = Reading()
        is_held = asyncio.get_running_loop().create_future()
        reading.task = asyncio.create_task(self._read(thread_id, given, reading, is_held))
        try:
            await asyncio.shield(is_held)
        except RunLockedError as error:
            raise HTTPException(409, str(error)) from error
        return reading

    async def _read(
        self,
        thread_id: str,
        given: Mapping[str, Any] | None,
        reading: Reading,
        is_held: asyncio.Future[None],
    ) -> None:
        config: Any = {"configurable": {"thread_id": thread_id}}
        modes: Any = ["custom", "values"]
        try:
            async with open_thread(self.database, thread_id) as saver:
                is_held.set_result(None)
                reading.tell("reading", {"id": thread_id.partition("/")[2]})
                agent = self.agent.copy({"checkpointer": saver})
                output: Mapping[str, Any] = {}
                async for mode, event in agent.astream(
                    given,
                    config,
                    stream_mode=modes,
                    output_keys=agent.output_channels,
                    durability="sync",
                ):
                    if mode == "custom":
                        reading.tell("progress", event)
                    else:
                        output = event
                reading.tell("answer", shown(output))
        except asyncio.CancelledError:
            if not is_held.done():
                is_held.set_exception(HTTPException(503, "It was cancelled before it began."))
            reading.tell("cancelled", {})
            raise
        except Exception as error:  # noqa: BLE001 - told to the client, and logged
            if not is_held.done():
                is_held.set_exception(error)
                return
            reading.tell("error", told(error, thread_id))
        finally:
            del self.working[thread_id]
            reading.events.put_nowait(None)

    async def state(self, thread_id: str) -> dict[str, Any]:
        """How far a reading is. Raises 404 where there is none of that name."""
        agent = self.agent.copy({"checkpointer": self.saver})
        snapshot = await agent.aget_state({"configurable": {"thread_id": thread_id}})
        if snapshot.created_at is None and thread_id not in self.working:
            raise HTTPException(404, "There is no such reading.")
        values = snapshot.values
        is_reading = thread_id in self.working
        is_answered = bool(snapshot.created_at) and not (snapshot.next or snapshot.tasks)
        state = "reading" if is_reading else "answered" if is_answered else "stopped"
        kept = {name: values.get(name) for name in ("question", "step", "steps", "memory")}
        return {"state": state, **kept, **(shown(values) if state == "answered" else {})}

    async def cancel(self, thread_id: str) -> None:
        """Ends the open model call, and with it the reading."""
        reading = self.working.get(thread_id)
        if reading is None or reading.task is None:
            raise HTTPException(409, "It is not being read by this process.")
        reading.task.cancel()
        await asyncio.wait({reading.task})

    async def close(self) -> None:
        tasks = {reading.task for reading in self.working.values() if reading.task}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def shown(output: Mapping[str, Any]) -> dict[str, Any]:
    names = ("answer", "found", "citations", "unsupported", "usage")
    return {name: output[name] for name in names}


def told(error: Exception, thread_id: str) -> dict[str, str]:
    """Our errors say what to do and hold no text of documents; others are for the log."""
    _log.error("Reading %s ended early.", thread_id, exc_info=error)
    message = str(error) if isinstance(error, QwenLongGraphError) else "Something broke here."
    return {"error": type(error).__name__, "message": message}


# The requests.


def user_of(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    # Looked up by its hash, so that the time it takes tells nothing about the tokens.
    user = request.app.state.users.get(digest(token)) if scheme.lower() == "bearer" else None
    if user is None:
        raise HTTPException(401, "Show your token.", {"WWW-Authenticate": "Bearer"})
    return str(user)


def thread_of(request: Request) -> str:
    return f"{user_of(request)}/{request.path_params['id']}"


async def given_in(request: Request) -> dict[str, Any]:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            raise HTTPException(413, f"A request may have {BODY_BYTES_MAX:,} bytes.")
    try:
        given = json.loads(body)
        question, instructions = given["question"], given.get("instructions") or ""
        if not (isinstance(question, str) and isinstance(instructions, str)):
            raise TypeError
        documents = [
            # Texts only: a name would be read from this machine's disk.
            Document(text_in(one), metadata=dict(one.get("metadata") or {}))
            for one in given["documents"]
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise HTTPException(
            400,
            'Send {"question": "...", "documents": [{"page_content": "...", "metadata": '
            '{"title": "..."}}]}, and "instructions" if you like.',
        ) from error
    return {"question": question, "instructions": instructions, "documents": documents}


def text_in(document: Mapping[str, Any]) -> str:
    text = document["page_content"]
    if not isinstance(text, str):
        raise TypeError
    return text


async def post_reading(request: Request) -> Response:
    user = user_of(request)  # before the body is read
    given = await given_in(request)
    reading = await request.app.state.readings.begin(f"{user}/{uuid.uuid4()}", given)
    return as_events(reading)


async def resume_reading(request: Request) -> Response:
    thread_id = thread_of(request)
    await request.app.state.readings.state(thread_id)
    return as_events(await request.app.state.readings.begin(thread_id, None))


async def get_reading(request: Request) -> Response:
    return JSONResponse(await request.app.state.readings.state(thread_of(request)))


async def cancel_reading(request: Request) -> Response:
    thread_id = thread_of(request)
    await request.app.state.readings.state(thread_id)
    await request.app.state.readings.cancel(thread_id)
    return JSONResponse(await request.app.state.readings.state(thread_id))


def as_events(reading: Reading) -> Response:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(reading.stream(), media_type="text/event-stream", headers=headers)


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"message": error.detail}, error.status_code, error.headers)


async def without_database(request: Request, error: Exception) -> Response:
    _log.error("The database cannot be reached.", exc_info=error)
    message = "The readings cannot be reached at this moment; none is lost. Try again later."
    return JSONResponse({"message": message}, 503)


# The start.


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def users_in(file: Path) -> dict[bytes, str]:
    """Hash of a token -> its user."""
    users = {}
    for line in file.read_text("utf-8").splitlines():
        if line.strip():
            user, token = line.split()
            if "/" in user or len(token) < 20:
                raise SystemExit(f"{file}: a user has no slash, a token 20 characters or more.")
            users[digest(token)] = user
    return users


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    database = os.environ["READER_DATABASE"]
    app.state.users = users_in(Path(os.environ["READER_TOKENS"]))
    await make_tables(database)
    model = await asyncio.to_thread(connect, os.environ.get("QWENLONG_GRAPH_MODEL", "embedded"))
    options = {"autocommit": True, "prepare_threshold": 0}
    try:
        async with AsyncConnectionPool(
            database,
            min_size=1,
            max_size=4,
            kwargs=options,
            timeout=DATABASE_TIMEOUT_S,
            open=False,
            check=AsyncConnectionPool.check_connection,
        ) as pool:
            saver = ReadingPostgresSaver(pool)  # type: ignore[arg-type]  # it sets the row factory
            app.state.readings = Readings(create_memory_agent(model), database, saver)
            try:
                yield
            finally:
                await app.state.readings.close()
    finally:
        await asyncio.to_thread(model.close)


app = Starlette(
    routes=[
        Route("/readings", post_reading, methods=["POST"]),
        Route("/readings/{id:uuid}", get_reading),
        Route("/readings/{id:uuid}/resume", resume_reading, methods=["POST"]),
        Route("/readings/{id:uuid}/cancel", cancel_reading, methods=["POST"]),
    ],
    exception_handlers={
        HTTPException: refused,
        ConnectionSetupError: without_database,
        psycopg.OperationalError: without_database,
    },
    lifespan=lifespan,
)

if __name__ == "__main__":
    raise SystemExit(f"It is served by uvicorn.\n\n{__doc__}")
