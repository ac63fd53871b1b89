"""Runs in a directory of the user's: one folder a run, named by its id."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import secrets
import shutil
import string
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from typing_extensions import TypedDict

from qwenlong_graph.documents.store import make_private_directory
from qwenlong_graph.errors import (
    RunError,
    RunFormatError,
    RunLockedError,
    RunNotFoundError,
    SettingsError,
)
from qwenlong_graph.runs.journal import Journal
from qwenlong_graph.runs.lock import hold
from qwenlong_graph.runs.writing import cannot_write, write_whole
from qwenlong_graph.types import CollectionReference

if TYPE_CHECKING:
    from qwenlong_graph.runs.checkpoints import BoundedAsyncSqliteSaver, BoundedSqliteSaver

__all__ = ["RECORD_FORMAT", "Run", "RunRecord", "RunShelf"]

RECORD_FORMAT = 1
"""What this version writes into `RunRecord.format`; a higher number cannot be read."""

KEPT_TITLES = 20
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ID_CHARACTERS = string.ascii_lowercase + string.digits
# Hidden, so that they are no run ids; a process that was killed leaves one behind.
_REMOVED = ".removed-"
_UNFINISHED = ".unfinished-"
# LangGraph's channel of open interrupts; it does not export the name.
_INTERRUPT = "__interrupt__"


class _Required(TypedDict):
    format: int
    run_id: str
    created: str
    version: str
    question: str
    instructions: str
    documents: CollectionReference
    titles: list[str]
    model: str
    served_model: str | None
    window: int | None
    settings: dict[str, Any]
    response_schema: dict[str, Any] | None


class RunRecord(_Required, total=False):
    """How a run was asked for: what a resume needs, and must find unchanged.

    `created` is an ISO time in UTC; `version` this package's; `model` what `connect` takes, never
    with a key; `titles` the first twenty, `documents` counts them all. `owner` is the salted hash
    of a token, where the run was asked for with one. `review` is "on-change" or a number of chunks
    where it pauses for a person.
    """

    owner: str
    review: str | int


@dataclass(frozen=True)
class Kept:
    """The values of a run's newest checkpoint; `is_paused`: it waits for a review."""

    values: dict[str, Any]
    is_paused: bool


@dataclass(frozen=True)
class Run:
    """One run on disk; its id is LangGraph's `thread_id`."""

    path: Path
    record: RunRecord

    @property
    def run_id(self) -> str:
        return self.record["run_id"]

    def lock(self) -> AbstractContextManager[None]:
        """Keeps other processes off the run; raises `RunLockedError` if one is working on it."""
        return hold(self.path / "lock")

    def journal(self) -> Journal:
        return Journal(self.path / "journal.jsonl")

    def state(self) -> dict[str, Any]:
        """The values of the newest checkpoint, none where nothing is kept yet.

        Raises `RunFormatError` if its file is damaged.
        """
        return self.kept().values

    def kept(self) -> Kept:
        """The newest checkpoint; raises `RunFormatError` if its file is damaged."""
        file = self.path / "checkpoints.sqlite"
        if not file.exists() or not file.stat().st_size:
            return Kept({}, is_paused=False)
        with self.sync_checkpoints() as saver:
            kept = saver.get_tuple({"configurable": {"thread_id": self.run_id}})
        if kept is None:
            return Kept({}, is_paused=False)
        is_paused = any(channel == _INTERRUPT for _, channel, _ in kept.pending_writes or ())
        return Kept(dict(kept.checkpoint["channel_values"]), is_paused=is_paused)

    def rerecord(self, record: RunRecord) -> Run:
        """The run with another record, which is written; raises `RunError` if it cannot be."""
        if record != self.record:
            _write_record(self.path, record)
        return replace(self, record=record)

    def checkpoints(self) -> AbstractAsyncContextManager[BoundedAsyncSqliteSaver]:
        """The checkpointer for async calls. Raises `RunFormatError` if its file is damaged."""
        from qwenlong_graph.runs.checkpoints import open_checkpoints

        return open_checkpoints(self.path / "checkpoints.sqlite")

    def sync_checkpoints(self) -> AbstractContextManager[BoundedSqliteSaver]:
        """The checkpointer for sync calls on the same file."""
        from qwenlong_graph.runs.checkpoints import open_sync_checkpoints

        return open_sync_checkpoints(self.path / "checkpoints.sqlite")


class RunShelf:
    """All runs of one user: the folders of `root`, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(
        self,
        *,
        question: str,
        instructions: str,
        documents: CollectionReference,
        titles: Sequence[str],
        model: str,
        window: int | None,
        settings: dict[str, Any],
        version: str,
        served_model: str | None = None,
        response_schema: dict[str, Any] | None = None,
        run_id: str | None = None,
        owner: str | None = None,
        review: str | int | None = None,
    ) -> Run:
        """A new run, under `run_id` or an id made of the time (UTC) and four random characters.

        Raises `SettingsError` for an id that cannot be one, `RunError` if it is taken or if
        nothing can be written.
        """
        if run_id is not None and not _RUN_ID.fullmatch(run_id):
            raise SettingsError(
                f"{run_id!r} cannot be the id of a run: use up to 64 letters, digits, dots, "
                f"hyphens and underscores, beginning with a letter or digit."
            )
        created = datetime.now(UTC)
        record = RunRecord(
            format=RECORD_FORMAT,
            run_id=run_id or "",
            created=created.isoformat(timespec="milliseconds"),
            version=version,
            question=question,
            instructions=instructions,
            documents=documents,
            titles=list(titles[:KEPT_TITLES]),
            model=model,
            served_model=served_model,
            window=window,
            settings=settings,
            response_schema=response_schema,
        )
        if owner is not None:
            record["owner"] = owner
        if review is not None:
            record["review"] = review
        while not record["run_id"]:
            suffix = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(4))
            name = f"{created:%Y%m%d-%H%M%S}-{suffix}"
            record["run_id"] = "" if (self.root / name).exists() else name
        return Run(self._new_folder(record), record)

    def find(self, run_id: str) -> Run:
        """The run of that id, or the only one whose id begins so.

        Raises `RunNotFoundError`, which lists the candidates or what is near, and
        `RunFormatError` if the run is there but cannot be read.
        """
        names = self._names()
        # Every id begins with nothing: an empty argument must not name the only run there is.
        begun = [name for name in names if run_id and name.startswith(run_id)]
        matches = [run_id] if run_id in names else begun
        if len(matches) == 1:
            return Run(self.root / matches[0], _read_record(self.root / matches[0]))
        if matches:
            raise RunNotFoundError(
                f"{len(matches)} runs begin with {run_id!r}: {_listed(matches)}. Give more of "
                f"the id."
            )
        near = difflib.get_close_matches(run_id, names, cutoff=0.5)
        hint = f"Near it: {_listed(near)}." if near else "See which there are with: runs list"
        raise RunNotFoundError(f"There is no run {run_id!r} in {self.root}. {hint}")

    def get(self, run_id: str) -> Run | None:
        """The run of exactly that id, without a look at the others; None where there is none.

        Raises `RunFormatError` if it is there but cannot be read.
        """
        path = self.root / run_id
        is_there = _RUN_ID.fullmatch(run_id) and path.is_dir()
        return Run(path, _read_record(path)) if is_there else None

    def __contains__(self, run_id: object) -> bool:
        """Whether there is a run of exactly that id, readable or not."""
        return run_id in self._names()

    def all(self, *, on_skip: Callable[[str, RunError], None] | None = None) -> list[Run]:
        """Every run, the newest first; `on_skip` is given the id of each that cannot be read."""
        runs = []
        for name in self._names():
            try:
                runs.append(Run(self.root / name, _read_record(self.root / name)))
            except RunError as error:
                if on_skip:
                    on_skip(name, error)
        return sorted(runs, key=lambda run: (_created(run.record), run.run_id), reverse=True)

    def remove(self, run: Run) -> None:
        """Delete all that is kept of `run`, at once for every other process.

        Raises `RunLockedError` if another process is working on it.
        """
        with run.lock():
            gone = self.root / f"{_REMOVED}{run.run_id}-{secrets.token_hex(4)}"
            try:
                run.path.rename(gone)
                shutil.rmtree(gone)
            except FileNotFoundError:
                pass  # swept up by a `prune` at the same time
            except OSError as error:
                raise cannot_write(run.path, error) from error

    def prune(self, *, older_than_s: float, now: float | None = None) -> list[str]:
        """Remove the runs created more than `older_than_s` seconds before `now` (Unix time).

        Returns their ids. Runs that are locked, that cannot be read, or that seem to come from
        the future, the clock having jumped, stay.
        """
        if older_than_s < 0:
            raise SettingsError(f"The age of runs to prune is below zero: {older_than_s} s.")
        now = time.time() if now is None else now
        for leftover in self.root.glob(f"{_REMOVED}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for leftover in self.root.glob(f"{_UNFINISHED}*"):
            with contextlib.suppress(FileNotFoundError):
                # A younger one may be about to become a run.
                if now - leftover.stat().st_mtime > max(older_than_s, 3_600):
                    shutil.rmtree(leftover, ignore_errors=True)
        removed = []
        for run in self.all():
            if now - _created(run.record) > older_than_s:
                with contextlib.suppress(RunLockedError, RunNotFoundError):
                    self.remove(run)
                    removed.append(run.run_id)
        return removed

    def _names(self) -> list[str]:
        try:
            return sorted(
                folder.name
                for folder in self.root.iterdir()
                if _RUN_ID.fullmatch(folder.name) and folder.is_dir()
            )
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"The runs in {self.root} cannot be listed: {error}.") from error

    def _new_folder(self, record: RunRecord) -> Path:
        """A folder with the record in it, which appears whole or not at all."""
        path = self.root / record["run_id"]
        try:
            make_private_directory(self.root)
            unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.root))
        except OSError as error:
            raise cannot_write(self.root, error) from error
        try:
            _write_record(unfinished, record)
            unfinished.rename(path)
        except OSError as error:
            if not path.exists():
                raise cannot_write(path, error) from error
            raise RunError(
                f"There already is a run {path.name!r} in {self.root}. Give another id, or go on "
                f"with it: resume {path.name}"
            ) from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return path


def _write_record(folder: Path, record: RunRecord) -> None:
    path = folder / "run.json"
    content = json.dumps(record, ensure_ascii=False, indent=1)
    try:
        # A lone surrogate becomes its JSON escape.
        write_whole(path, content.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise cannot_write(path, error) from error


def _read_record(folder: Path) -> RunRecord:
    path = folder / "run.json"
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunFormatError(f"{folder} is not a run: it has no run.json.") from None
    except OSError as error:
        raise RunFormatError(f"The record {path} cannot be read: {error}.") from error
    except ValueError as error:  # JSON's and UTF-8's
        raise _damaged(path, "it is no JSON") from error
    if not isinstance(record, dict) or type(record.get("format")) is not int:
        raise _damaged(path, "it names no format")
    if record["format"] > RECORD_FORMAT:
        raise RunFormatError(
            f"Run {folder.name!r} was made by a newer version of this package "
            f"({record.get('version', 'unknown')}): its format is {record['format']}, this "
            f"version reads up to {RECORD_FORMAT}. Upgrade qwenlong-graph to go on with it."
        )
    missing = sorted(RunRecord.__required_keys__ - record.keys())
    if missing:
        raise _damaged(path, f"it lacks {', '.join(missing)}")
    if record["run_id"] != folder.name:
        raise _damaged(path, f"it belongs to run {record['run_id']!r}")
    try:
        _created(cast("RunRecord", record))
    except (TypeError, ValueError) as error:
        raise _damaged(path, "its time of creation is none") from error
    return cast("RunRecord", record)


def _damaged(path: Path, finding: str) -> RunFormatError:
    return RunFormatError(
        f"The record {path} is damaged: {finding}. Put back a copy of it, or remove the folder."
    )


def _created(record: RunRecord) -> float:
    return datetime.fromisoformat(record["created"]).timestamp()


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
