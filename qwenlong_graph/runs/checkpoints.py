"""LangGraph's SQLite checkpointers with a bounded history and errors that name the run's file.

LangGraph stores the whole state at every step; the newest checkpoint is all that a resume needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiosqlite
from langgraph.checkpoint.serde.types import ERROR
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from qwenlong_graph.errors import RunFormatError, RunLockedError
from qwenlong_graph.runs.writing import cannot_write

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import (
        ChannelVersions,
        Checkpoint,
        CheckpointMetadata,
        CheckpointTuple,
    )

__all__ = [
    "KEPT_CHECKPOINTS",
    "PRUNING_STEPS",
    "BoundedAsyncSqliteSaver",
    "BoundedSqliteSaver",
    "open_checkpoints",
    "open_sync_checkpoints",
    "translated",
    "whole_writes",
]

KEPT_CHECKPOINTS = 20
"""How many checkpoints of a thread are left when its history is pruned."""

PRUNING_STEPS = 50
"""History is pruned once per this many steps, so it holds at most the sum of the two."""

# NORMAL under a write-ahead log: a kill loses nothing, a power cut may lose the last steps, and
# neither damages the file. The log is folded in early, to keep a killed run's files small.
_PRAGMAS = "PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=128;"

# The writes go first: what is old is told by the checkpoints. With fewer than KEPT_CHECKPOINTS
# the inner SELECT is NULL, and nothing is smaller than NULL.
_PRUNING = [
    f"DELETE FROM {table} WHERE thread_id = :thread AND checkpoint_ns = :ns AND checkpoint_id < "
    f"(SELECT checkpoint_id FROM checkpoints WHERE thread_id = :thread AND checkpoint_ns = :ns "
    f"ORDER BY checkpoint_id DESC LIMIT 1 OFFSET {KEPT_CHECKPOINTS - 1})"
    for table in ("writes", "checkpoints")
]

# SQLITE_ERROR: a statement that the tables do not fit, so they are not LangGraph's.
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


class BoundedSqliteSaver(SqliteSaver):
    """For `invoke` and `stream`. Make one with `open_sync_checkpoints`."""

    def __init__(self, conn: sqlite3.Connection, *, path: Path) -> None:
        super().__init__(conn)
        self.path = path

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        with translated(self.path), _decoding(self.path):
            return _whole(super().get_tuple(config))

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        with translated(self.path):
            saved = super().put(config, checkpoint, metadata, new_versions)
            if _is_pruning_due(metadata):
                with self.cursor() as cursor:
                    for statement in _PRUNING:
                        cursor.execute(statement, _thread_of(config))
        return saved

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        with translated(self.path):
            super().put_writes(config, whole_writes(writes), task_id, task_path)


class BoundedAsyncSqliteSaver(AsyncSqliteSaver):
    """For `ainvoke` and `astream`. Make one with `open_checkpoints`."""

    def __init__(self, conn: aiosqlite.Connection, *, path: Path) -> None:
        super().__init__(conn)
        self.path = path

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        with translated(self.path), _decoding(self.path):
            return _whole(await super().aget_tuple(config))

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        with translated(self.path):
            saved = await super().aput(config, checkpoint, metadata, new_versions)
            if _is_pruning_due(metadata):
                async with self.lock:
                    for statement in _PRUNING:
                        await self.conn.execute(statement, _thread_of(config))
                    await self.conn.commit()
        return saved

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        with translated(self.path):
            await super().aput_writes(config, whole_writes(writes), task_id, task_path)


def whole_writes(writes: Sequence[tuple[str, Any]]) -> Sequence[tuple[str, Any]]:
    """What a task wrote if it came to its end, else what tells that it failed.

    Of a task that is cancelled LangGraph keeps also what it had written by then, and takes that
    for all of it when it goes on. Cut off before its edge was written, a node would be the last.
    """
    if not any(channel == ERROR for channel, _ in writes):
        return writes
    return [(channel, value) for channel, value in writes if channel.startswith("__")]


@contextlib.asynccontextmanager
async def open_checkpoints(path: Path) -> AsyncIterator[BoundedAsyncSqliteSaver]:
    """The async checkpointer on the file `path`, which is made if there is none (mode 0600).

    Raises `RunFormatError` if the file is damaged or not a checkpointer's, `RunError` if it
    cannot be written; later calls of the checkpointer do likewise.
    """
    await asyncio.to_thread(_check, path)
    async with aiosqlite.connect(path) as connection:
        with translated(path):
            await connection.executescript(_PRAGMAS)
        saver = BoundedAsyncSqliteSaver(connection, path=path)
        try:
            yield saver
        finally:
            # LangGraph may still be writing when a reading was cancelled. A transaction that is
            # open at the close would keep the file locked for as long as a traceback holds its
            # cursor. Writers hold this lock until they have committed, or were cancelled.
            async with saver.lock:
                with translated(path):
                    await connection.rollback()
                await connection.close()


@contextlib.contextmanager
def open_sync_checkpoints(path: Path) -> Iterator[BoundedSqliteSaver]:
    """`open_checkpoints` for sync calls; from any thread, one at a time."""
    _check(path)
    with contextlib.closing(sqlite3.connect(path, check_same_thread=False)) as connection:
        with translated(path):
            connection.executescript(_PRAGMAS)
        yield BoundedSqliteSaver(connection, path=path)


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors about the file `path` into ours: damaged, busy or not writable."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # the primary code
        if code in _DAMAGED:
            raise _damaged(path, str(error)) from error
        if code in _BUSY:
            raise RunLockedError(
                f"The checkpoints {path} are being written by another process. Wait for it, or "
                f"stop it, and try again."
            ) from error
        if isinstance(error, sqlite3.OperationalError):
            raise cannot_write(path, error) from error
        raise


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turn what a decoder says of a state that is none into our error."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError) as error:
        # The decoder's words may hold what it found.
        raise _damaged(path, f"a state in it cannot be decoded: {type(error).__name__}") from error


def _whole(kept: CheckpointTuple | None) -> CheckpointTuple | None:
    # Few bytes are not something to a decoder: a stray letter is a number.
    if kept is not None and not isinstance(kept.checkpoint["channel_values"], dict):
        raise TypeError("the values are no mapping")
    return kept


def _check(path: Path) -> None:
    try:
        # SQLite gives its log files the mode of the database.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise cannot_write(path, error) from error
    with translated(path), contextlib.closing(sqlite3.connect(path)) as connection:
        (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if finding != "ok":
            raise _damaged(path, finding)
        tables = {
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
    if tables and not {"checkpoints", "writes"} <= tables:
        raise _damaged(path, "a database of something else")


def _damaged(path: Path, finding: str) -> RunFormatError:
    return RunFormatError(
        f"The checkpoints {path} are damaged or not a run's ({finding}). The file was left as it "
        f"is. Put back a copy of it, or start the reading anew as another run."
    )


def _is_pruning_due(metadata: CheckpointMetadata) -> bool:
    return metadata.get("step", 0) % PRUNING_STEPS == 0


def _thread_of(config: RunnableConfig) -> dict[str, str]:
    configurable = config["configurable"]
    return {
        "thread": str(configurable["thread_id"]),
        "ns": configurable.get("checkpoint_ns", ""),
    }
