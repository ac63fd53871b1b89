"""What happened in each step of a run, one JSON object a line.

The checkpoints say where reading goes on; the journal says how it got there. It is written
apart from them, so after a crash it may be ahead: `cut_back` brings it to the checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwenlong_graph.errors import RunFormatError
from qwenlong_graph.runs.writing import cannot_write, write_whole

__all__ = ["Journal"]

_TAIL_BYTES = 1 << 16


class Journal:
    """The journal file `path`; it need not exist yet. One process writes at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add `entry` as one line, or raise `RunError` and leave the file as it was.

        A torn line that a crash left at the end is dropped first. Not synced to the disk: it
        survives a kill of the process, and a power cut may cost the last lines.
        """
        line = _as_line(entry)
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        try:
            end = _end_of_whole_lines(handle)
            if end < os.fstat(handle).st_size:
                os.ftruncate(handle, end)
            try:
                written = 0
                while written < len(line):
                    written += os.pwrite(handle, line[written:], end + written)
            except BaseException:
                # What cannot be undone here is a torn line, which the next reader drops.
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, end)
                raise
        except OSError as error:
            raise cannot_write(self.path, error) from error
        finally:
            os.close(handle)

    def entries(self) -> list[dict[str, Any]]:
        """Every entry in order, without a torn last line; none where there is no file.

        Raises `RunFormatError` if any line before the last is broken.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunFormatError(f"The journal {self.path} cannot be read: {error}.") from error
        # What follows the last line feed is torn, or nothing.
        lines.pop()
        entries = []
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
            except ValueError as error:
                if number == len(lines):  # a power cut can leave a line of zeros
                    break
                raise self._broken(number) from error
            if not isinstance(entry, dict):
                raise self._broken(number)
            entries.append(entry)
        return entries

    def cut_back(self, steps: int) -> None:
        """Keep only the entries whose `step` is below `steps`, and those without a step.

        `steps` is the number of steps that the checkpoint holds; the first step is 0.
        """
        entries = self.entries()
        kept = [entry for entry in entries if entry.get("step", -1) < steps]
        content = b"".join(_as_line(entry) for entry in kept)
        try:
            if entries or self.path.exists():
                write_whole(self.path, content)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _broken(self, number: int) -> RunFormatError:
        return RunFormatError(
            f"The journal {self.path} is damaged: line {number} is no JSON object. Move the file "
            f"away to go on without a history; the checkpoints do not need it."
        )


def _as_line(entry: Mapping[str, Any]) -> bytes:
    # A lone surrogate becomes its JSON escape.
    text = json.dumps(dict(entry), ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _end_of_whole_lines(handle: int) -> int:
    """The offset after the last line feed, looked for from the end."""
    end = os.fstat(handle).st_size
    while end:
        start = max(0, end - _TAIL_BYTES)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
