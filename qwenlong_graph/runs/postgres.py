"""LangGraph's PostgreSQL checkpointer for readings: one reader per thread, a bounded history.

Needs the extra `postgres`. The tables are LangGraph's own, so that every other tool for them goes
on working.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from qwenlong_graph.errors import (
    ConnectionSetupError,
    MissingExtraError,
    RunError,
    RunLockedError,
    SettingsError,
)

try:
    import psycopg
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
    from psycopg.errors import DeadlockDetected, SerializationFailure
    from psycopg.rows import dict_row
except ImportError as error:
    raise MissingExtraError("Keeping readings in PostgreSQL", "postgres") from error

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata

__all__ = ["PRUNING_STEPS", "ReadingPostgresSaver", "make_tables", "open_thread"]

PRUNING_STEPS = 50
"""History is pruned once per this many steps, and holds at most so many and a few more."""

_LOCK = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0)) AS is_held"
_LOCK_NAME = "qwenlong-graph reading: {}"
_TABLES_LOCK_NAME = "qwenlong-graph tables"
_POLL_S = 0.1

# PostgreSQL's JSON has no room for these, which documents and replies may hold. One character
# takes the place of one, so that offsets stay as they are.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class ReadingPostgresSaver(AsyncPostgresSaver):
    """`AsyncPostgresSaver` that keeps of a thread's history the newest part only.

    LangGraph stores a state at every step; the newest is all that a resume needs. NUL and lone
    surrogates are kept as U+FFFD.
    """

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        storable = checkpoint.copy()
        storable["channel_values"] = {
            name: _UNSTORABLE.sub("\ufffd", value) if isinstance(value, str) else value
            for name, value in checkpoint["channel_values"].items()
        }
        saved = await super().aput(config, storable, metadata, new_versions)
        if metadata.get("step", 0) % PRUNING_STEPS == 0:
            # Another process prunes this thread: then it need not be done here.
            with contextlib.suppress(SerializationFailure, DeadlockDetected):
                await self.aprune([saved["configurable"]["thread_id"]])
        return saved


async def make_tables(conninfo: str) -> None:
    """Makes LangGraph's tables, or brings those of an older version up to date.

    LangGraph's own `setup` fails where two processes start it at once; here they take turns.

    Raises:
        ConnectionSetupError: the database cannot be reached.
    """
    async with _session(conninfo, "Making the tables for readings") as connection:
        # Waiting within PostgreSQL would hold up the indexes that are made without a lock.
        while not await _is_locked(connection, _TABLES_LOCK_NAME):
            await asyncio.sleep(_POLL_S)
        await AsyncPostgresSaver(connection).setup()


@contextlib.asynccontextmanager
async def open_thread(conninfo: str, thread_id: str) -> AsyncIterator[ReadingPostgresSaver]:
    """A checkpointer for reading in `thread_id`, which is locked for the length of the block.

    The lock belongs to the connection that the checkpointer writes over. So it ends with its
    process, however that ends, and a reader whose connection was lost can write no more. It needs
    a session of its own: no pooler in transaction mode between.

    Raises:
        RunLockedError: another reader, in whatever process, holds the thread.
        ConnectionSetupError: the database cannot be reached.
        RunError: the connection was lost within the block.
    """
    if _UNSTORABLE.search(thread_id):
        raise SettingsError(
            f"Thread {thread_id!r} cannot be kept in PostgreSQL: its name holds NUL or a lone "
            f"surrogate. Name it otherwise."
        )
    async with _session(conninfo, f"Opening thread {thread_id!r}") as connection:
        if not await _is_locked(connection, _LOCK_NAME.format(thread_id)):
            raise RunLockedError(
                f"Thread {thread_id!r} is being read at this moment, here or by another process. "
                f"Wait until it is finished, or cancel it where it runs."
            )
        try:
            yield ReadingPostgresSaver(connection)
        except psycopg.OperationalError as error:
            if not connection.closed:
                raise
            raise RunError(
                f"Thread {thread_id!r}: the connection to the database was lost "
                f"({_one_line(error)}). What was read before is kept. Open the thread again when "
                f"the database is back, and go on with None as the input."
            ) from error


@contextlib.asynccontextmanager
async def _session(
    conninfo: str, doing: str
) -> AsyncIterator[psycopg.AsyncConnection[dict[str, Any]]]:
    """A connection as LangGraph's checkpointers want it."""
    try:
        connection = await psycopg.AsyncConnection.connect(
            conninfo, autocommit=True, prepare_threshold=0, row_factory=dict_row
        )
    except psycopg.OperationalError as error:
        raise ConnectionSetupError(
            f"{doing}: the database cannot be reached ({_one_line(error)}). Start it, or correct "
            f"its address."
        ) from error
    except psycopg.ProgrammingError:
        # Its message repeats the address, which may hold a password.
        raise SettingsError(
            f"{doing}: the database's address cannot be read. Give it as "
            f"postgresql://USER@HOST/DATABASE, with % and two hex digits for special characters."
        ) from None
    async with connection:
        yield connection


async def _is_locked(connection: psycopg.AsyncConnection[dict[str, Any]], name: str) -> bool:
    found = await connection.execute(_LOCK, (name,))
    row = await found.fetchone()
    return row is not None and bool(row["is_held"])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
