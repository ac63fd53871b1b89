from __future__ import annotations

import asyncio
import contextlib

import pytest
from mcp.client.session import ClientSession
from mcp.shared.memory import create_connected_server_and_client_session
from mcp.types import ListRootsResult, Root

from qwenlong_graph.agents.sources import AllowedRoots
from qwenlong_graph.mcp.reader import ModelSource, Reader
from qwenlong_graph.mcp.server import build_server
from qwenlong_graph.testing.oracle import OracleChatModel
from qwenlong_graph.testing.scripted import Stall, scripted

FACT = "The lease of the old mill was signed by Clara Jonsson on 4 May 1911."
QUESTION = "Who signed the lease of the old mill?"
# Small chunks, so that a short text has several.
SETTINGS = {"strategy": "memory", "chunk_tokens": 150}


def filler(count):
    return " ".join(f"On day {number} the weather was calm and dry." for number in range(count))


class Model:
    """Reads perfectly, and falls silent for an hour at the chunk of that number (from 1)."""

    def __init__(self, *facts, silent_at=None):
        self.silent_at = silent_at
        self.is_silent = asyncio.Event()
        self.chunks = 0
        self.connections = 0
        self._reply = OracleChatModel(facts).replies

    def __call__(self, messages):
        if "<previous_memory>" in messages[-1].text:
            self.chunks += 1
            if self.chunks == self.silent_at:
                self.is_silent.set()
                return Stall(3_600)
        return self._reply(messages)

    def connect(self):
        self.connections += 1
        return scripted(self)


@pytest.fixture
def folder(tmp_path):
    """A directory with a document that holds the fact in its middle, about ten chunks long."""
    path = tmp_path / "papers"
    path.mkdir()
    (path / "mill.txt").write_text(f"{filler(60)}\n\n{FACT}\n\n{filler(60)}\n", "utf-8")
    return path


@pytest.fixture
async def reader_of(tmp_path):
    """Makes readers in one data directory, as of one process or of several after each other."""
    readers = []

    def make(model, *, settings=SETTINGS, name="scripted"):
        source = ModelSource(connect=model.connect, model=name)
        readers.append(Reader(source, data_dir=tmp_path / "data", settings=settings))
        return readers[-1]

    yield make
    for reader in readers:
        await reader.close()


@pytest.fixture
def client_of():
    """Connects the official client to a server over that reader, in memory."""

    def connect(reader, *roots, declared=None, **options):
        async def declare(_):
            return ListRootsResult(roots=[Root(uri=uri) for uri in declared])

        server = build_server(reader, roots=AllowedRoots(roots))
        callback = None if declared is None else declare
        return create_connected_server_and_client_session(
            server, list_roots_callback=callback, **options
        )

    return connect


@pytest.fixture
def answered(reader_of, client_of, folder):
    """A client whose server has read the document once, and what it was told."""

    @contextlib.asynccontextmanager
    async def read(**arguments):
        reader = reader_of(Model(FACT))
        async with client_of(reader, folder) as client:
            given = {"question": QUESTION, "documents": ["mill.txt"], **arguments}
            yield client, await client.call_tool("ask_documents", given)

    return read


def error_of(result):
    assert result.isError
    return result.content[0].text


async def cancel(client: ClientSession, request_id):
    from mcp.types import CancelledNotification, CancelledNotificationParams, ClientNotification

    params = CancelledNotificationParams(requestId=request_id)
    await client.send_notification(ClientNotification(CancelledNotification(params=params)))
