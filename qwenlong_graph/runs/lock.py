"""One process at a time per run.

The lock is the kernel's (flock), so it ends with its process however that ends: a file that is
left behind locks nobody out. What stands in the file is for the message of the loser only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from qwenlong_graph.errors import RunLockedError, RunNotFoundError
from qwenlong_graph.runs.writing import cannot_write

__all__ = ["hold"]


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, whose directory must exist, for the length of the block.

    Never waits: raises `RunLockedError` if it is held, also by this process. Raises
    `RunNotFoundError` if the directory is gone, `RunError` if the file cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        raise _removed(path) from None
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLockedError(
                f"Run {path.parent.name!r} is being worked on by {_holder(handle)}. Wait for it, "
                f"or stop it, and try again."
            ) from None
        except OSError as error:  # a file system without locks
            raise cannot_write(path, error) from error
        # The run may have been removed between the two calls: then this file is no one's lock.
        if not _is_same_file(handle, path):
            raise _removed(path)
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        # A full disk costs the loser's message its details, not the lock.
        with contextlib.suppress(OSError):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(holder).encode(), 0)
        yield
    finally:
        os.close(handle)


def _holder(handle: int) -> str:
    try:
        holder = json.loads(os.pread(handle, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, TypeError, KeyError):
        # The winner has not written its name yet.
        return "another process"


def _is_same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _removed(path: Path) -> RunNotFoundError:
    return RunNotFoundError(
        f"Run {path.parent.name!r} is no longer in {path.parent.parent}: it was removed."
    )
