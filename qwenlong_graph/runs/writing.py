"""Files written whole or not at all, lines of JSON, and the error for what cannot be written."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwenlong_graph.errors import RunError

__all__ = ["cannot_write", "json_line", "safe_json", "write_whole"]

# What JSON need not escape, and a terminal, an encoding or a reader of lines does not take.
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def safe_json(text: str) -> str:
    """JSON with those characters escaped that not every reader takes as they are."""
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def json_line(value: Mapping[str, Any]) -> bytes:
    """`value` as JSON that every reader takes for exactly one line."""
    text = json.dumps(dict(value), ensure_ascii=False, separators=(",", ":"))
    return safe_json(text).encode() + b"\n"


def cannot_write(path: Path, error: Exception) -> RunError:
    """The error to raise where `path`, or something in it, could not be opened or written."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return RunError(
        f"Keeping the run: {path} could not be written ({reason}). Free some space, or keep runs "
        f"elsewhere with --data-dir or QWENLONG_GRAPH_DATA, or keep nothing with ask --ephemeral."
    )


def write_whole(path: Path, content: bytes) -> None:
    """Replace `path` by `content` so that a reader, or a crash, sees the old or the new file.

    The file is readable by its owner only. Raises `OSError`; the old file is then untouched.
    """
    # mkstemp gives mode 0600; beside its destination, so that replace stays in one file system.
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    temporary = Path(name)
    try:
        with open(handle, "wb") as file:  # noqa: PTH123 (a descriptor)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
