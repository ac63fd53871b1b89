"""Many questions over some files: several are asked at once, and each result is kept as it comes.

A question is read for as `ask` does it, as a kept run of its own. So what a kill may cost is the
open model call of each question that was being read for.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from qwenlong_graph.cli.ask import Answered, Skipped, schema_in, shelf_in, store_in
from qwenlong_graph.cli.connecting import connected
from qwenlong_graph.cli.failures import error_object
from qwenlong_graph.cli.printing import as_object
from qwenlong_graph.errors import (
    ContextOverflowError,
    MalformedReplyError,
    MissingExtraError,
    ModelError,
    ModelUnavailableError,
    NoDocumentsError,
    QuestionError,
    QwenLongGraphError,
    RunChangedError,
    RunError,
    RunInterruptedError,
    SettingsError,
    SetupError,
    WindowTooSmallError,
)
from qwenlong_graph.runs.batch import (
    BadLine,
    Question,
    ResultsFile,
    fingerprint_of,
    open_results,
    read_questions,
    run_id_of,
)
from qwenlong_graph.runs.reading import read_kept, resumed_event, to_checkpoint

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver
    from langgraph.runtime import RunControl
    from langgraph.types import RetryPolicy

    from qwenlong_graph.cli.batch_progress import BatchProgress
    from qwenlong_graph.documents.store import DocumentStore
    from qwenlong_graph.graph.agent import MemoryAgent
    from qwenlong_graph.graph.state import MemoryInput
    from qwenlong_graph.models.connect import ConnectedModel
    from qwenlong_graph.runs.directory import Run
    from qwenlong_graph.types import DocumentReference

__all__ = ["FAILURES_IN_A_ROW", "Asking", "Batch", "Outcome", "ask_batch"]

FAILURES_IN_A_ROW = 5
"""After so many without an answer between them the next question would most likely fail too."""

_TOLD_LINES = 1_000
_KEPT_SOURCES = 1_000


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What was asked for. `settings` are fields of `ReadingSettings` that were given.

    `documents`, `instructions` and `schema` are for the lines that do not say.
    """

    questions: str
    output: Path | None = None
    documents: Sequence[str] = ()
    model: str = "embedded"
    served_model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    window: int | None = None
    instructions: str = ""
    schema: Path | None = None
    data_dir: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int | None = None


@dataclass(kw_only=True)
class Outcome:
    """How a batch ended.

    `answered` counts those too that were answered before. Of `bad_lines` the first thousand are
    held; `lost_lines` counts those that nothing else stands for. `stopped_by` is why it ended
    before its end.
    """

    output: Path
    questions: int = 0
    bad_lines: list[BadLine] = field(default_factory=list)
    lost_lines: int = 0
    unread_keys: dict[str, int] = field(default_factory=dict)
    answered: int = 0
    answered_before: int = 0
    failed: int = 0
    stopped_by: QwenLongGraphError | None = None
    seconds: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether every line has its answer."""
        return self.answered == self.questions and not self.lost_lines


def ask_batch(batch: Batch, progress: BatchProgress) -> Outcome:
    """Asks what is not answered yet. What ends it once it is under way is told in its outcome.

    Raises the `SetupError`s of questions, settings and models, and `RunError` where the results
    file cannot be had.
    """
    from qwenlong_graph.reading.budget import ReadingSettings

    began = time.monotonic()
    ReadingSettings(**batch.settings)
    if "-" in batch.documents:
        raise SettingsError(
            "A batch cannot have standard input among its documents, since it could not go on "
            "later. Save it to a file, and name that."
        )
    defaults: dict[str, Any] = {
        "documents": batch.documents,
        "instructions": batch.instructions,
        "schema": schema_in(batch.schema) if batch.schema else None,
    }
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_questions_of(batch.questions))
        output = (batch.output or _beside(batch.questions)).expanduser()
        outcome = Outcome(output=output)
        keys, last_line = _looked_through(file, batch.questions, outcome, defaults)
        progress.looked_through(outcome.bad_lines, outcome.lost_lines, outcome.unread_keys)
        results = stack.enter_context(open_results(output))
        try:
            model = connected(
                batch.model,
                served_model=batch.served_model,
                api_key=batch.api_key,
                window=batch.window,
                progress=progress,
            )
            with contextlib.closing(model):
                # Not before: without a model, what failed has to stay told.
                results.settle(asked_again=keys.__contains__)
                del keys
                at_once = batch.concurrency or model.concurrency
                progress.connected(model.model_name, questions=outcome.questions, at_once=at_once)
                asking = Asking(batch, model, results, outcome, progress)
                file.seek(0)
                lines = read_questions(file, **defaults)
                counted = itertools.takewhile(lambda line: line.line <= last_line, lines)
                questions = (line for line in counted if isinstance(line, Question))
                asyncio.run(asking.all(questions, at_once))
            results.settle()
        except KeyboardInterrupt:
            outcome.stopped_by = outcome.stopped_by or RunInterruptedError("Interrupted.")
        except RunError as error:
            outcome.stopped_by = outcome.stopped_by or error
    outcome.seconds = time.monotonic() - began
    return outcome


class Asking:
    """Asks questions, some at once, with one model, and writes down what becomes of each.

    It stops, with what was read kept, where the next question would fail as the last one did: the
    server is away, the disk is full, a setting cannot be used, or `FAILURES_IN_A_ROW`.
    """

    def __init__(
        self,
        batch: Batch,
        model: ConnectedModel,
        results: ResultsFile,
        outcome: Outcome,
        progress: BatchProgress,
        *,
        retry_policy: RetryPolicy | None = None,
    ) -> None:
        self._batch = batch
        self._model = model
        self._results = results
        self._outcome = outcome
        self._progress = progress
        self._retry_policy = retry_policy
        self._store = store_in(batch.data_dir)
        self._shelf = shelf_in(batch.data_dir)
        own = [results.path, *([] if batch.questions == "-" else [Path(batch.questions)])]
        self._sources = _Sources(self._store, progress, own=own)
        self._tasks: list[asyncio.Task[None]] = []
        self._controls: set[RunControl] = set()
        self._is_stopping = False
        self._failures_in_a_row = 0

    async def all(self, questions: Iterator[Question], at_once: int) -> None:
        """Asks `questions`, as many `at_once` as that, until they or it are at an end."""
        async with self._stopped_by_signals():
            self._tasks = [asyncio.create_task(self._work(questions)) for _ in range(at_once)]
            for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
                if ended is not None and not isinstance(ended, asyncio.CancelledError):
                    raise ended

    async def _work(self, questions: Iterator[Question]) -> None:
        for question in questions:
            if self._is_stopping:
                return
            self._progress.asking(question.key)
            try:
                await self._ask(question)
            except Exception:
                self._is_stopping = True
                raise
            finally:
                self._progress.let_go(question.key)

    async def _ask(self, question: Question) -> None:
        about: dict[str, Any] = {"id": question.id, "status": "answered"}
        try:
            answered = await self._answered(question, about)
            if answered is not None:
                self._results.append({**about, **as_object(answered)})
        except _StoppedError:
            return
        # One hostile document must not cost the others their answers: whatever it is, it is told.
        except Exception as error:  # noqa: BLE001
            try:
                await self._not_answered(question, about, error)
            except RunError as unwritten:
                self._stop(unwritten)
            return
        self._outcome.answered += 1
        self._outcome.answered_before += answered is None
        if answered is not None:
            self._failures_in_a_row = 0
        self._progress.answered(question.key, is_new=answered is not None)

    async def _answered(self, question: Question, about: dict[str, Any]) -> Answered | None:
        """None where it was answered before. What is known of it on the way goes into `about`."""
        from langgraph.errors import GraphDrained
        from langgraph.runtime import RunControl

        began = time.monotonic()
        _require_form(question)
        try:
            references, skipped = await self._sources.of(question.documents)
            collection = await asyncio.to_thread(self._store.put_collection, references)
        except SettingsError as error:  # the store's: by now it is a disk that has filled up
            raise RunError(str(error)) from error
        about["fingerprint"] = fingerprint_of(
            question,
            collection["collection_id"],
            model=self._model.model_name,
            window=self._batch.window,
            settings=self._batch.settings,
        )
        if self._results.is_answered(question.key, about["fingerprint"]):
            return None
        about["run_id"] = run_id_of(
            self._results.path, question.key, about["fingerprint"], self._model.window
        )
        if self._is_stopping:
            raise _StoppedError
        titles = [reference["title"] for reference in references]
        run = self._shelf.get(about["run_id"]) or self._shelf.create(
            run_id=about["run_id"],
            question=question.question,
            instructions=question.instructions,
            documents=collection,
            titles=titles,
            model=self._batch.model,
            served_model=self._batch.served_model,
            window=self._batch.window,
            settings=dict(self._batch.settings),
            version=version("qwenlong-graph"),
            response_schema=question.schema,
        )
        control = RunControl()
        self._controls.add(control)
        try:
            with run.lock():
                output = await self._read(run, question, references, control)
        except GraphDrained:
            raise _StoppedError from None
        finally:
            self._controls.discard(control)
        return Answered(
            output=output,
            model_name=self._model.model_name,
            titles=titles,
            skipped=skipped,
            seconds=time.monotonic() - began,
        )

    async def _read(
        self,
        run: Run,
        question: Question,
        references: Sequence[DocumentReference],
        control: RunControl,
    ) -> Mapping[str, Any]:
        """From where the run stands; one that is finished needs no model call."""

        async def on_event(event: dict[str, Any]) -> None:
            self._progress.event(question.key, event)

        values = await asyncio.to_thread(run.state)
        if values.get("answer"):
            for moved in to_checkpoint(run.journal(), values):
                await on_event(moved)
            return values
        if "cursor" in values:
            await on_event(resumed_event(values, references))
        given: MemoryInput = {"question": question.question, "documents": [run.record["documents"]]}
        if question.instructions.strip():
            given["instructions"] = question.instructions

        def agent_for(checkpointer: BaseCheckpointSaver[Any] | None) -> MemoryAgent:
            return self._agent(question.schema, checkpointer)

        return await read_kept(run, agent_for, given, on_event=on_event, control=control)

    def _agent(
        self, schema: dict[str, Any] | None, checkpointer: BaseCheckpointSaver[Any] | None
    ) -> MemoryAgent:
        from qwenlong_graph.graph.agent import DEFAULT_RETRY_POLICY, create_memory_agent
        from qwenlong_graph.reading.budget import ReadingSettings

        return create_memory_agent(
            self._model,
            settings=ReadingSettings(**self._batch.settings),
            checkpointer=checkpointer,
            document_dir=self._store.root,
            response_format=schema,
            retry_policy=self._retry_policy or DEFAULT_RETRY_POLICY,
        )

    async def _not_answered(
        self, question: Question, about: Mapping[str, Any], error: Exception
    ) -> None:
        if isinstance(error, QwenLongGraphError) and (
            self._is_everyones(error) or await self._is_away(error)
        ):
            self._stop(error, cancels=isinstance(error, ModelError))
            return
        told = error_object(error)
        self._results.append({**about, "status": "failed", "error": told})
        self._outcome.failed += 1
        self._progress.failed(question.key, told["message"], error)
        if not _may_be_everyones(error):
            return
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= FAILURES_IN_A_ROW:
            families = (ModelError, RunError, SettingsError)
            family = next(
                (family for family in families if isinstance(error, family)), QwenLongGraphError
            )
            self._stop(
                family(
                    f"{self._failures_in_a_row} questions in a row failed, the last one so: "
                    f"{told['message']}"
                )
            )

    def _is_everyones(self, error: Exception) -> bool:
        """Whether no question can be answered: a full disk, a setting that does not fit the model.

        A question may leave no room for settings that fit beside a shorter one.
        """
        if isinstance(error, (QuestionError, MissingExtraError)):
            return False
        if not isinstance(error, (SettingsError, WindowTooSmallError)):
            return type(error) is RunError or isinstance(error, SetupError)
        from qwenlong_graph.reading.budget import ReadingSettings
        from qwenlong_graph.runs.estimate import task_to_estimate

        settings = ReadingSettings(**self._batch.settings).over(self._model.defaults)
        try:
            task_to_estimate(self._model, settings, self._store)
        except SetupError:
            return True
        return False

    async def _is_away(self, error: Exception) -> bool:
        """Whether the server, which did not answer, answers nobody at this moment."""
        from qwenlong_graph.models.limiter import await_until_healthy, server_of

        server = server_of(self._model.chat)
        if server is None or not isinstance(error, ModelUnavailableError):
            return False
        try:
            await await_until_healthy(server, timeout_s=0)
        except ModelUnavailableError:
            return True
        return False

    def _stop(self, error: QwenLongGraphError, *, cancels: bool = False) -> None:
        """No more questions; the open ones are kept where they are, or once their chunk is read."""
        self._outcome.stopped_by = self._outcome.stopped_by or error
        self._is_stopping = True
        for control in self._controls:
            control.request_drain("stopped")
        if cancels:
            self._cancel()

    def _cancel(self) -> None:
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    @contextlib.asynccontextmanager
    async def _stopped_by_signals(self) -> AsyncIterator[None]:
        """The first SIGINT or SIGTERM lets open chunks be finished and kept; the next cancels."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if self._is_stopping:
                self._cancel()
            else:
                self._stop(RunInterruptedError("Interrupted."))
                self._progress.draining()

        kinds = (signal.SIGINT, signal.SIGTERM)
        for kind in kinds:
            loop.add_signal_handler(kind, stop)
        try:
            yield
        finally:
            for kind in kinds:
                loop.remove_signal_handler(kind)


class _StoppedError(Exception):
    """The question is let go of, and is asked again by the next batch."""


class _Sources:
    """What stands in files, each loaded once for all questions that name it one after another."""

    def __init__(
        self, store: DocumentStore, progress: BatchProgress, *, own: Sequence[Path] = ()
    ) -> None:
        self._store = store
        self._progress = progress
        # Results are no documents: with them, a directory would be another one for each batch.
        self._own = [path.expanduser().resolve() for path in own]
        self._loading: OrderedDict[str, asyncio.Task[_Loaded]] = OrderedDict()

    async def of(self, paths: Sequence[str]) -> tuple[list[DocumentReference], list[Skipped]]:
        """References and what was left out. Raises the `DocumentError`s, and `SettingsError` where
        the store cannot be written."""
        loaded = [await self._loaded(path) for path in paths]
        return (
            [reference for each in loaded for reference in each.references],
            [skipped for each in loaded for skipped in each.skipped],
        )

    async def _loaded(self, path: str) -> _Loaded:
        task = self._loading.get(path)
        if task is None:
            task = self._loading[path] = asyncio.create_task(asyncio.to_thread(self._load, path))
            if len(self._loading) > _KEPT_SOURCES:
                self._loading.popitem(last=False)
        self._loading.move_to_end(path)
        try:
            # Others may wait for it too.
            return await asyncio.shield(task)
        except Exception:
            if self._loading.get(path) is task:
                del self._loading[path]  # it may be there later
            raise

    def _load(self, path: str) -> _Loaded:
        from qwenlong_graph.documents.loading import ingest

        skipped: list[Skipped] = []

        def on_skip(name: str, reason: str) -> None:
            skipped.append(Skipped(name, reason))
            self._progress.left_out(name, reason)

        collection = ingest([path], self._store, on_skip=on_skip)
        references = self._store.collection(collection)
        folder = Path(path).expanduser()
        if folder.is_dir():
            own = {os.path.relpath(file, folder.resolve()) for file in self._own}
            for reference in references:
                if reference["title"] in own:
                    on_skip(reference["title"], "it is this batch's own")
            references = [found for found in references if found["title"] not in own]
            if not references:
                raise NoDocumentsError(
                    f"Loading the directory {path}: it holds nothing but this batch's own files. "
                    "Name another directory, or the files themselves.",
                    source=path,
                )
        return _Loaded(references, skipped)


@dataclass(frozen=True)
class _Loaded:
    references: list[DocumentReference]
    skipped: list[Skipped]


def _may_be_everyones(error: Exception) -> bool:
    """Whether other questions are likely to fail in the same way."""
    if isinstance(error, (ContextOverflowError, MalformedReplyError)):
        return False
    if isinstance(error, (QuestionError, MissingExtraError)):
        return False
    return isinstance(error, (ModelError, RunChangedError, SetupError)) or not isinstance(
        error, QwenLongGraphError
    )


def _require_form(question: Question) -> None:
    from qwenlong_graph.graph.forms import answer_form

    try:
        answer_form(question.schema)
    except SettingsError as error:
        raise QuestionError(f"The schema of line {question.line}: {error}") from error


def _looked_through(
    file: BinaryIO, name: str, outcome: Outcome, defaults: Mapping[str, Any]
) -> tuple[set[str], int]:
    """Counts what there is to ask: the ids, and the number of the last line, since a file may grow
    meanwhile. Raises `SettingsError` where there is nothing."""
    keys = set()
    last_line = 0
    for line in read_questions(file, **defaults):
        last_line = line.line
        if isinstance(line, Question):
            outcome.questions += 1
            keys.add(line.key)
            for unread in line.unread:
                if len(outcome.unread_keys) < _TOLD_LINES:
                    outcome.unread_keys.setdefault(unread, line.line)
            continue
        outcome.lost_lines += line.is_lost
        if len(outcome.bad_lines) < _TOLD_LINES:
            outcome.bad_lines.append(line)
    if not outcome.questions:
        first = outcome.bad_lines[0] if outcome.bad_lines else None
        found = f"line {first.line}: {first.reason}" if first else "it is empty"
        raise SettingsError(
            f"{_named(name)} holds no question ({found}). Each line has to be an object such as "
            '{"id": "q1", "question": "Who signed?", "documents": ["lease.pdf"]}.'
        )
    return keys, last_line


def _questions_of(name: str) -> BinaryIO:
    """The file, or a copy of what can be read only once."""
    try:
        if name == "-":
            return _copied(sys.stdin.buffer)
        file = Path(name).expanduser().open("rb")
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        with file:
            return _copied(file)
    except (OSError, RuntimeError) as error:  # RuntimeError: "~nobody" has no home
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"Reading the questions from {_named(name)}: {reason}. Check the path."
        ) from error


def _copied(file: BinaryIO) -> BinaryIO:
    copy = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115 - the caller closes it
    shutil.copyfileobj(file, copy)
    copy.seek(0)
    return copy


def _beside(name: str) -> Path:
    path = Path(name).expanduser()
    if name == "-" or not path.is_file():
        raise SettingsError(
            f"{_named(name)} has no place beside it for the results. Name a file for them with "
            f"--output."
        )
    return path.with_name(f"{path.stem}.results.jsonl")


def _named(name: str) -> str:
    return "Standard input" if name == "-" else name
