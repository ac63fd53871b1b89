"""What happened in each step of a run, one JSON object a line.

The checkpoints say where reading goes on; the journal says how it got there. It is written
apart from them, so after a crash either may be ahead: `follow` brings it to the checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenlong_graph.errors import RunFormatError
from qwenlong_graph.runs.writing import cannot_write, write_whole

if TYPE_CHECKING:
    from qwenlong_graph.graph.state import MemoryState

__all__ = ["Journal"]

Entry = dict[str, Any]

_TAIL_BYTES = 1 << 16
_STEPS_OF = {"memory_updated": ("step",), "restored": ("first_step", "step")}


class Journal:
    """The journal file `path`; it need not exist yet. One process writes at a time.

    A line is an event of the agent's stream: "memory_updated" for each chunk, "retry",
    "server_failed", "reviewed", "answered". A "stopped" one says why a reading ended early.
    `follow` adds "restored" and "damaged".
    """

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

    def entries(self) -> list[Entry]:
        """Every entry in order, without a torn last line; none where there is no file.

        Raises `RunFormatError` if any line before the last is broken.
        """
        entries, broken = self._read()
        if broken:
            raise RunFormatError(
                f"The journal {self.path} is damaged: line {broken[0]} is no entry. The "
                f"checkpoints do not need it: a resume of the run moves it aside and goes on."
            )
        return entries

    def readable(self) -> tuple[list[Entry], list[int]]:
        """The entries that can be read, in order, and the numbers (from 1) of the broken lines."""
        return self._read()

    def follow(
        self, state: Mapping[str, Any] | MemoryState, *, is_paused: bool = False
    ) -> Path | None:
        """Bring the journal to what a checkpoint holds: `state`, empty where there is none.

        Entries of later steps are cut off, and what tells of a review that the run still
        `is_paused` for. Steps without an entry get a "restored" one
        (`first_step` to `step`), the last of them with what the state knows. A damaged file is
        moved aside, and its good lines are kept. Returns where it was moved to, else None.

        Raises `RunError` if something cannot be written.
        """
        steps = state.get("step", 0)
        entries, broken = self._read()
        # What comes after the last chunk has the number of a next one.
        after = {"retry"} if state.get("answer") else set[str]()
        after |= set() if is_paused else {"reviewed"}
        kept = [
            entry for entry in entries if entry.get("step", -1) < steps + (entry["type"] in after)
        ]
        if not state.get("answer"):
            kept = [entry for entry in kept if entry["type"] != "answered"]
        elif not any(entry["type"] == "answered" for entry in kept):
            kept.append(
                {"type": "answered", "found": state["found"], "is_quoted": state["is_quoted"]}
            )
        moved_to = None
        try:
            if broken:
                moved_to = _free_name(self.path)
                self.path.rename(moved_to)
                kept.insert(0, {"type": "damaged", "moved_to": moved_to.name})
            for first, last in _holes(kept, steps):
                restored: Entry = {"type": "restored", "first_step": first, "step": last}
                if last == steps - 1:
                    restored |= _known(state)
                kept.insert(_place_of(last, kept), restored)
            content = b"".join(map(_as_line, kept))
            if content != self._content():
                write_whole(self.path, content)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        return moved_to

    def _read(self) -> tuple[list[Entry], list[int]]:
        """The entries, and the numbers of the broken lines."""
        try:
            lines = self._content().split(b"\n")
        except OSError:
            return [], [1]
        # What follows the last line feed is torn, or nothing.
        lines.pop()
        read = [_entry(line) for line in lines]
        if read and read[-1] is None:  # a power cut can leave a line of zeros
            read.pop()
        broken = [number for number, entry in enumerate(read, start=1) if entry is None]
        return [entry for entry in read if entry is not None], broken

    def _content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""


def _entry(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        return None
    steps = [entry.get(name) for name in _STEPS_OF.get(entry["type"], ())]
    is_whole = all(type(step) is int for step in [*steps, entry.get("step", -1)])
    return entry if is_whole else None


def _holes(entries: Iterable[Entry], steps: int) -> list[tuple[int, int]]:
    """The stretches of steps (first and last) that no entry tells of."""
    told: set[int] = set()
    for entry in entries:
        if entry["type"] == "memory_updated":
            told.add(entry["step"])
        elif entry["type"] == "restored":
            told.update(range(max(0, entry["first_step"]), entry["step"] + 1))
    missing = [step for step in range(steps) if step not in told]
    firsts = [step for step in missing if step == 0 or step - 1 in told]
    lasts = [step for step in missing if step == steps - 1 or step + 1 in told]
    return list(zip(firsts, lasts, strict=True))


def _place_of(step: int, entries: Sequence[Entry]) -> int:
    """Where an entry about `step` belongs: before the first of a later one, and the answer."""
    for index, entry in enumerate(entries):
        if entry.get("step", -1) > step or entry["type"] == "answered":
            return index
    return len(entries)


def _known(state: Mapping[str, Any]) -> Entry:
    usage = state["usage"]
    return {
        "memory": state["memory"],
        "evidence": len(state["evidence"]),
        **{f"{name}_so_far": usage[name] for name in ("input_tokens", "output_tokens", "retries")},
    }


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.stem}.damaged-{number}") for number in count(1))
    return next(name for name in names if not name.exists())


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
