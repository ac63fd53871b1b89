"""Many questions in one file, their results in another: what is asked, and what is done already.

A questions file has one JSON object a line, a results file likewise. Neither is ever held whole:
what is kept in memory of a question is two short digests.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from qwenlong_graph.errors import RunError, RunLockedError, SettingsError
from qwenlong_graph.runs.writing import json_line

__all__ = [
    "LONGEST_LINE_BYTES",
    "BadLine",
    "Question",
    "ResultsFile",
    "fingerprint_of",
    "open_results",
    "read_questions",
    "run_id_of",
]

LONGEST_LINE_BYTES = 16 << 20
"""A longer line is no question; it is passed over without being held."""

LONGEST_ID_CHARS = 200
STATUSES = ("answered", "failed")

_KEYS = ("id", "question", "documents", "instructions", "schema")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UNFIT_IN_RUN_ID = re.compile(r"[^A-Za-z0-9._-]+")


# --- questions ---


@dataclass(frozen=True, kw_only=True)
class Question:
    """One line of a questions file, completed by what holds for lines that do not say.

    `id` is as the line has it, or made of the line's content where it has none; `unread` are keys
    of the line that mean nothing here.
    """

    line: int
    id: str | int
    question: str
    documents: tuple[str, ...]
    instructions: str
    schema: dict[str, Any] | None
    unread: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The id as a text: 7 and "7" are one question."""
        return str(self.id)


@dataclass(frozen=True)
class BadLine:
    """A line that is not asked, and why. `is_lost`: nothing else stands for it."""

    line: int
    reason: str
    is_lost: bool = True


def read_questions(
    file: BinaryIO,
    *,
    documents: Sequence[str] = (),
    instructions: str = "",
    schema: dict[str, Any] | None = None,
) -> Iterator[Question | BadLine]:
    """The lines of a file in order; empty ones are passed over.

    What a line does not say is taken from the keywords. Of several lines with one id the first is
    asked.
    """
    seen: dict[bytes, tuple[int, bytes]] = {}
    for number, line in _lines_of(file):
        try:
            told = _told(line)
            if told is None:
                continue
            content = _canonical({name: told.get(name) for name in _KEYS[1:]})
            question = Question(
                line=number,
                id=told["id"] if told.get("id") is not None else f"q-{_digest(content).hex()[:12]}",
                question=told["question"],
                documents=tuple(told.get("documents") or documents),
                instructions=_or(told.get("instructions"), instructions),
                schema=_or(told.get("schema"), schema),
                unread=tuple(sorted(told.keys() - {*_KEYS})),
            )
        except ValueError as error:
            yield BadLine(number, str(error))
            continue
        if not question.documents:
            yield BadLine(number, "it names no documents, and none are given for lines like it")
            continue
        first, its_content = seen.setdefault(_digest(question.key), (number, _digest(content)))
        if first != number:
            is_same = its_content == _digest(content)
            yield BadLine(
                number,
                f"its id {question.key!r} stands in line {first} already, "
                f"{'with the same content' if is_same else 'which is the one that counts'}",
                is_lost=not is_same,
            )
        else:
            yield question


def _lines_of(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Each line with its number from 1; None for one that is too long."""
    number = 0
    while line := file.readline(LONGEST_LINE_BYTES + 1):
        number += 1
        if len(line) > LONGEST_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
            yield number, None
            continue
        yield number, line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line


def _told(line: bytes | None) -> dict[str, Any] | None:
    """What stands in a line, None for an empty one; ValueError says what is wrong with it."""
    if line is None:
        raise ValueError(f"it is longer than {LONGEST_LINE_BYTES:,} bytes")
    if not line.strip():
        return None
    try:
        told = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start + 1})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error.msg}, column {error.colno})") from error
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of endless digits
        raise ValueError("it is JSON that cannot be read") from error
    if not isinstance(told, dict):
        raise ValueError('it is no object: write {"question": "..."}')
    if isinstance(told.get("documents"), str):
        told["documents"] = [told["documents"]]
    _require(told, "question", _is_text, "it has no question")
    id_fault = f"its id is no number, and no text of up to {LONGEST_ID_CHARS} characters"
    _require_if_there(told, "id", _is_id, id_fault)
    _require_if_there(told, "documents", _are_paths, "its documents are no list of paths")
    _require_if_there(told, "instructions", _is_str, "its instructions are no text")
    _require_if_there(told, "schema", _is_object, "its schema is no object")
    return told


def _require(told: Mapping[str, Any], name: str, holds: Callable[[Any], bool], fault: str) -> None:
    if not holds(told.get(name)):
        raise ValueError(fault)


def _require_if_there(
    told: Mapping[str, Any], name: str, holds: Callable[[Any], bool], fault: str
) -> None:
    if told.get(name) is not None:
        _require(told, name, holds, fault)


def _is_str(value: Any) -> bool:
    return isinstance(value, str)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_id(value: Any) -> bool:
    is_number = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    return is_number or (_is_text(value) and len(value) <= LONGEST_ID_CHARS)


def _are_paths(value: Any) -> bool:
    # Standard input can be read once, and a batch has to be able to go on.
    return isinstance(value, list) and all(_is_text(path) and path != "-" for path in value)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


# --- identity ---


def fingerprint_of(
    question: Question,
    collection_id: str,
    *,
    model: str,
    window: int | None,
    settings: Mapping[str, Any],
) -> str:
    """What an answer depends on as far as it was asked for: one of the same fingerprint is done.

    `collection_id` stands for the documents' texts and titles, `window` is what was asked for.
    """
    content = {
        "question": question.question,
        "instructions": question.instructions,
        "schema": question.schema,
        "documents": collection_id,
        "model": model,
        "window": window,
        "settings": dict(settings),
    }
    return _digest(_canonical(content)).hex()


def run_id_of(results: Path, key: str, fingerprint: str, window: int) -> str:
    """The id of the run that reads for a question of a batch; another of anything is another run.

    `window` is the model's: what was begun with another does not go on with this one.
    """
    readable = _UNFIT_IN_RUN_ID.sub("-", key)[:24].strip("-.") or "question"
    whole = _canonical([os.fsdecode(results), key, fingerprint, window])
    return f"batch-{readable}-{_digest(whole).hex()[:16]}"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


# --- results ---


@dataclass(slots=True)
class _Standing:
    """Where the line that counts for an id stands, and what it says."""

    line: int
    status: str
    fingerprint: str | None


@contextlib.contextmanager
def open_results(path: Path) -> Iterator[ResultsFile]:
    """The results file `path` for one batch at a time; it is made where it does not exist.

    Raises `RunLockedError` if another batch has it, `SettingsError` if it holds something else or
    is no file, which leaves it as it is, and `RunError` if it cannot be written.
    """
    path = path.resolve()
    results = ResultsFile(path, _opened(path))
    try:
        results.load()
        yield results
    finally:
        results.close()


class ResultsFile:
    """One line of JSON for each question: `id`, `status`, `fingerprint`, and what is told of it.

    Lines are appended as results come, whole and synced; of two with one id the later counts.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle = handle
        self._end = 0
        self._lines = 0
        self._standing: dict[bytes, _Standing] = {}

    def load(self) -> None:
        """Takes in what stands in the file; a line that a crash left torn is cut off."""
        line = b"\n"
        with os.fdopen(os.dup(self._handle), "rb") as file:
            file.seek(0)
            for line in file:
                record = _record(line)
                if record is None:
                    if file.read(1) or not _is_torn(line):
                        raise SettingsError(
                            f"{self.path} is not written to: its line {self._lines + 1} is no "
                            f"result of a batch. Name another file with --output, or correct it."
                        )
                    break
                self._take(record)
                self._end += len(line)
        if self._end < os.fstat(self._handle).st_size:
            with self._named_failures():
                os.ftruncate(self._handle, self._end)
        elif not line.endswith(b"\n"):  # an editor left it out: the line itself is whole
            self._write(b"\n")

    def is_answered(self, key: str, fingerprint: str) -> bool:
        """Whether the question has its answer, as it is asked now."""
        standing = self._standing.get(_digest(key))
        return bool(
            standing and standing.status == "answered" and standing.fingerprint == fingerprint
        )

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a result and syncs it, or raises `RunError` and leaves the file as it was."""
        self._write(json_line(record))
        self._take(record)

    def settle(self, *, asked_again: Callable[[str], bool] = lambda key: False) -> None:
        """Leaves one line for each id, and none of those that failed and are `asked_again`.

        The file is replaced at once, or `RunError` is raised and it stays as it was.
        """
        failed = any(standing.status == "failed" for standing in self._standing.values())
        if self._lines == len(self._standing) and not failed:
            return
        with self._named_failures():
            handle, name = tempfile.mkstemp(prefix=f".{self.path.name}-", dir=self.path.parent)
            kept = ResultsFile(self.path, handle)
            try:
                os.fchmod(handle, stat.S_IMODE(os.fstat(self._handle).st_mode))
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with (
                    os.fdopen(os.dup(self._handle), "rb") as file,
                    os.fdopen(os.dup(handle), "wb") as copy,
                ):
                    file.seek(0)
                    for number, line in enumerate(file):
                        record = json.loads(line)
                        key, standing = str(record["id"]), self._standing[_key(record)]
                        is_retried = standing.status == "failed" and asked_again(key)
                        if standing.line == number and not is_retried:
                            copy.write(line)
                            kept._take(record)
                            kept._end += len(line)
                    copy.flush()
                    os.fsync(handle)
                if kept._lines == self._lines:
                    Path(name).unlink()
                    os.close(handle)
                    return
                Path(name).replace(self.path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                os.close(handle)
                raise
        os.close(self._handle)
        self._handle, self._end = handle, kept._end
        self._lines, self._standing = kept._lines, kept._standing

    def close(self) -> None:
        """Lets another batch have the file."""
        os.close(self._handle)

    def _take(self, record: Mapping[str, Any]) -> None:
        self._standing[_key(record)] = _Standing(
            self._lines, record["status"], record.get("fingerprint")
        )
        self._lines += 1

    def _write(self, line: bytes) -> None:
        with self._named_failures():
            try:
                written = 0
                while written < len(line):
                    written += os.pwrite(self._handle, line[written:], self._end + written)
                os.fsync(self._handle)
            except BaseException:
                # What cannot be undone here is a torn line, which the next batch cuts off.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._handle, self._end)
                raise
        self._end += len(line)

    @contextlib.contextmanager
    def _named_failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _cannot_write(self.path, error) from error


def _opened(path: Path) -> int:
    """The file, locked. The lock is the kernel's: it ends with its process, however that ends."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise SettingsError(
                f"{path} is no regular file, and results are read again by the next batch. Name "
                f"another file with --output."
            )
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_replaced = not os.path.samestat(os.fstat(handle), path.stat())
        except (BlockingIOError, FileNotFoundError):
            is_replaced = True
        except OSError as error:  # a file system without locks
            raise _cannot_write(path, error) from error
        if is_replaced:
            raise RunLockedError(
                f"Another batch is writing to {path}. Wait for it, or stop it, and try again; or "
                f"name another file with --output."
            )
    except BaseException:
        os.close(handle)
        raise
    return handle


def _cannot_write(path: Path, error: OSError) -> RunError:
    return RunError(
        f"The results could not be written to {path} ({error.strerror or error}). Free some "
        f"space, or name another file with --output, and run the same command again: what is "
        f"finished is kept."
    )


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_result = isinstance(record, dict) and _is_id(record.get("id"))
    return record if is_result and record.get("status") in STATUSES else None


def _is_torn(line: bytes) -> bool:
    """Whether a last line is the beginning of a result, or has the zeros of a power cut."""
    if line.endswith(b"\n") and b"\0" not in line:
        return not line.strip()
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        opening, text = b'{"id":', line.strip(b"\0\n")
        return text.startswith(opening) or opening.startswith(text)
    return False


def _key(record: Mapping[str, Any]) -> bytes:
    return _digest(str(record["id"]))
