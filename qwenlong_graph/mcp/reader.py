"""Questions, runs and estimates for those who own them, apart from any protocol."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenlong_graph.documents.loading import ingest
from qwenlong_graph.documents.store import DocumentStore
from qwenlong_graph.errors import (
    ContextOverflowError,
    ModelError,
    ModelRefusedError,
    ModelUnavailableError,
    QuestionError,
    RunChangedError,
    RunError,
    RunFormatError,
    RunInterruptedError,
    RunLockedError,
    RunNotFoundError,
    StoredTextChangedError,
)
from qwenlong_graph.graph.agent import create_memory_agent
from qwenlong_graph.reading.budget import ReadingSettings
from qwenlong_graph.runs.directory import Run, RunShelf
from qwenlong_graph.runs.estimate import Estimate, estimate_of, task_to_estimate
from qwenlong_graph.runs.reading import OnEvent, read_kept, resumed_event, to_checkpoint
from qwenlong_graph.runs.summary import Quote, RunSummary, quotes_of, summary_of, titles_of

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver

    from qwenlong_graph.graph.agent import MemoryAgent
    from qwenlong_graph.graph.state import MemoryInput
    from qwenlong_graph.mcp.owners import Owner
    from qwenlong_graph.models.connect import ConnectedModel

__all__ = ["Answered", "Estimated", "LeftOut", "ModelSource", "Reader"]

_log = logging.getLogger(__name__)

CONNECTING_S = 5

# After these a new connection may find what the old one did not: a restarted or another model.
_STALE = (ModelUnavailableError, ModelRefusedError, ContextOverflowError, RunChangedError)


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """How the model is had. The names are kept with each run, as the command line keeps them."""

    connect: Callable[[], ConnectedModel]
    model: str
    served_model: str | None = None
    window: int | None = None


@dataclass(frozen=True)
class LeftOut:
    """A file, or pages of one, that were not read."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The agent's output with what it takes to show it. `titles` are those of the documents."""

    run_id: str
    output: Mapping[str, Any]
    titles: Sequence[str]
    model_name: str
    left_out: Sequence[LeftOut] = ()


@dataclass(frozen=True)
class Estimated:
    """What a reading would take, and what it would leave out."""

    estimate: Estimate
    left_out: Sequence[LeftOut]


class Reader:
    """Reads for several who ask at once, with one model, in one data directory.

    The model is connected to when it is first needed. All methods may be cancelled: the open model
    call ends, and the run goes on later with the chunk that was open.
    """

    def __init__(
        self,
        source: ModelSource,
        *,
        data_dir: Path,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.source = source
        self.settings = dict(settings or {})
        self.shelf = RunShelf(data_dir / "runs")
        self.store = DocumentStore(data_dir / "documents")
        self._model = _SharedModel(source.connect)
        self._working: dict[str, asyncio.Task[Any]] = {}

    async def ask(
        self,
        question: str,
        paths: Sequence[Path],
        *,
        owner: Owner,
        on_event: OnEvent,
        instructions: str = "",
        run_id: str | None = None,
    ) -> Answered:
        """Reads the files and answers.

        Raises the `QwenLongGraphError`s of documents, models and settings.
        """
        if not question.strip():
            raise QuestionError("The question is empty. Ask what you want to know.")
        if run_id is not None and run_id in self.shelf:
            raise self._taken(run_id, owner)
        settings = ReadingSettings(**self.settings)
        left_out: list[LeftOut] = []

        def on_skip(name: str, reason: str) -> None:
            left_out.append(LeftOut(name, reason))

        collection = await asyncio.to_thread(
            ingest, [str(path) for path in paths], self.store, on_skip=on_skip
        )
        titles = [reference["title"] for reference in self.store.collection(collection)]
        given: MemoryInput = {"question": question, "documents": [collection]}
        if instructions.strip():
            given["instructions"] = instructions
        async with self._model.held() as model:
            try:
                run = self.shelf.create(
                    run_id=run_id,
                    question=question,
                    instructions=instructions,
                    documents=collection,
                    titles=titles,
                    model=self.source.model,
                    served_model=self.source.served_model,
                    window=self.source.window,
                    settings=self.settings,
                    version=version("qwenlong-graph"),
                    owner=owner.mark(),
                )
            except RunError as error:
                if run_id is not None and run_id in self.shelf:
                    raise self._taken(run_id, owner) from error
                raise
            with self._worked_on(run):
                await on_event({"type": "begun", "run_id": run.run_id, "model": model.model_name})
                output = await read_kept(
                    run, self._agent_maker(model, settings), given, on_event=on_event
                )
        return Answered(
            run_id=run.run_id,
            output=output,
            titles=titles,
            model_name=model.model_name,
            left_out=left_out,
        )

    async def resume(self, run_id: str, *, owner: Owner, on_event: OnEvent) -> Answered:
        """Goes on with a run; a finished one gives its answer again, and needs no model for it.

        Raises the errors of `ask`, and `RunNotFoundError` where there is no such run of theirs.
        """
        run = self.find(run_id, owner)
        ending = self._working.get(run.run_id)
        if ending and ending.cancelling():
            # It was cancelled, and is about to let go of the run.
            await asyncio.wait({ending})
        with self._worked_on(run):
            values = await asyncio.to_thread(run.state)
            if values.get("answer"):
                for _ in to_checkpoint(run.journal(), values):
                    _log.warning("The journal of run %s was damaged and moved aside.", run.run_id)
                return Answered(
                    run_id=run.run_id,
                    output=values,
                    titles=titles_of(run, self.store),
                    model_name=values["setup"]["model"],
                )
            references = self.store.collection(run.record["documents"])
            record = run.record.copy()
            record["model"] = self.source.model
            record["served_model"] = self.source.served_model
            record["window"] = self.source.window
            settings = ReadingSettings(**record["settings"])
            given: MemoryInput = {
                "question": record["question"],
                "documents": [record["documents"]],
            }
            if record["instructions"].strip():
                given["instructions"] = record["instructions"]
            async with self._model.held() as model:
                await on_event({"type": "begun", "run_id": run.run_id, "model": model.model_name})
                if "cursor" in values:
                    await on_event(resumed_event(values, references))
                output = await read_kept(
                    run,
                    self._agent_maker(model, settings, record["response_schema"]),
                    given,
                    on_event=on_event,
                    record=record,
                )
        return Answered(
            run_id=run.run_id,
            output=output,
            titles=[reference["title"] for reference in references],
            model_name=model.model_name,
        )

    async def estimate(self, paths: Sequence[Path]) -> Estimated:
        """What reading the files would take. Asks the model nothing, and leaves no texts behind."""
        async with self._model.held() as model:
            return await asyncio.to_thread(self._estimate, paths, model)

    def runs(self, owner: Owner) -> list[Run]:
        """Their runs, the newest first."""

        def on_skip(name: str, error: RunError) -> None:
            _log.warning("Run %r cannot be read: %s", name, error)

        return [run for run in self.shelf.all(on_skip=on_skip) if owner.owns(run.record)]

    def summary(self, run: Run) -> RunSummary:
        """How far a run is; "reading" where this process works on it now."""
        try:
            summary = summary_of(run, run.state())
        except RunError as error:
            _log.warning("Run %r cannot be read: %s", run.run_id, error)
            summary = summary_of(run, None)
        return {**summary, "state": "reading"} if run.run_id in self._working else summary

    def memory(self, run_id: str, owner: Owner) -> str:
        """The memory of their run as it stands, with the plan where there is one."""
        values = self.find(run_id, owner).state()
        memory: str = values.get("memory", "")
        plan: str = values.get("plan", "")
        return f"{memory}\n\nPlan:\n{plan}" if plan else memory

    def evidence(self, run_id: str, owner: Owner) -> list[Quote]:
        """The quotes that the memory of their run rests on."""
        run = self.find(run_id, owner)
        return quotes_of(run, run.state(), self.store)

    def report(self, run_id: str, owner: Owner) -> str:
        """The report of their run as an HTML page, however far the run is."""
        from qwenlong_graph.report import reading_of_run, report_page

        return report_page(reading_of_run(self.find(run_id, owner), self.store))

    def find(self, run_id: str, owner: Owner) -> Run:
        """Their run of exactly that id. Another's is not told from none."""
        unknown = RunNotFoundError(
            f"Unknown run {run_id[:64]!r}. Call list_runs to see the runs that there are."
        )
        try:
            run = self.shelf.find(run_id)
        except RunNotFoundError:
            raise unknown from None
        except RunFormatError as error:
            # Whose it is cannot be told; the owner of all may know.
            raise (error if owner.identity is None else unknown) from None
        if run.run_id != run_id or not owner.owns(run.record):
            raise unknown
        return run

    async def close(self, *, connecting_s: float = CONNECTING_S) -> None:
        """Ends what is being read, and frees the model.

        One that is being connected to is waited for so long, and freed when it comes.
        """
        for task in list(self._working.values()):
            task.cancel()
        if self._working:
            await asyncio.wait(set(self._working.values()))
        await self._model.close(connecting_s)

    def _estimate(self, paths: Sequence[Path], model: ConnectedModel) -> Estimated:
        left_out: list[LeftOut] = []

        def on_skip(name: str, reason: str) -> None:
            left_out.append(LeftOut(name, reason))

        reading = ReadingSettings(**self.settings).over(model.defaults)
        with tempfile.TemporaryDirectory(prefix="qwenlong-graph-") as folder:
            store = DocumentStore(Path(folder))
            references = store.collection(
                ingest([str(path) for path in paths], store, on_skip=on_skip)
            )
            task = task_to_estimate(model, reading, store)
            estimate = estimate_of(references, store, task, reading, model.model_name)
        return Estimated(estimate, left_out)

    def _agent_maker(
        self,
        model: ConnectedModel,
        settings: ReadingSettings,
        response_format: dict[str, Any] | None = None,
    ) -> Callable[[BaseCheckpointSaver[Any] | None], MemoryAgent]:
        def agent_for(checkpointer: BaseCheckpointSaver[Any] | None) -> MemoryAgent:
            return create_memory_agent(
                model,
                settings=settings,
                checkpointer=checkpointer,
                document_dir=self.store.root,
                response_format=response_format,
            )

        return agent_for

    def _taken(self, run_id: str, owner: Owner) -> RunError:
        try:
            self.find(run_id, owner)
        except RunError:
            return RunError(f"A run cannot be named {run_id!r} here. Leave run_id out, or choose.")
        return RunError(
            f"There already is a run {run_id!r}. Call resume_run to go on with it or to have its "
            f"answer again, or ask with another run_id."
        )

    @contextlib.contextmanager
    def _worked_on(self, run: Run) -> Iterator[None]:
        """Holds the run; where it ends early, the error says how to go on."""
        how = f'What was read is kept: call resume_run with run_id "{run.run_id}" to go on.'
        task = asyncio.current_task()
        try:
            with run.lock():
                if task:
                    self._working[run.run_id] = task
                try:
                    yield
                finally:
                    self._working.pop(run.run_id, None)
        except RunLockedError:
            raise RunLockedError(
                f"Run {run.run_id!r} is being read at this moment. Wait until it is finished: "
                f"resume_run then gives its answer."
            ) from None
        except RunChangedError as error:
            raise RunChangedError(
                f"{error} The user can do that with: qwenlong-graph resume {run.run_id}"
            ) from error
        except ModelError as error:
            raise type(error)(f"{error} {how}") from error
        except StoredTextChangedError as error:
            raise StoredTextChangedError(
                f"{error} Ask the question again with ask_documents, about the same files.",
                source=error.source,
            ) from error
        except RunInterruptedError as error:
            raise RunInterruptedError(f"{error} {how}") from error
        except RunError as error:
            if type(error) is RunError:  # a full disk; the other kinds say what to do
                raise RunError(f"{error} {how}") from error
            raise


class _SharedModel:
    """One connection for all, made when it is first needed, and anew after the model failed."""

    def __init__(self, connect: Callable[[], ConnectedModel]) -> None:
        self._connect = connect
        self._lease: _Lease | None = None

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[ConnectedModel]:
        """The model, which stays connected for the length of the block."""
        if self._lease is None:
            self._lease = _Lease(_in_thread(self._connect))
        lease = self._lease
        lease.holders += 1
        try:
            # One who is cancelled leaves the others their connection.
            yield await asyncio.shield(lease.model)
        except _STALE:
            # Another model may answer at that address by now.
            self._retire(lease)
            raise
        finally:
            lease.holders -= 1
            if lease.model.done() and lease.model.exception():
                self._retire(lease)
            elif lease.is_retired:
                await self._released(lease)

    async def close(self, connecting_s: float) -> None:
        """Frees the model, once it is no longer held."""
        if self._lease:
            lease = self._lease
            self._retire(lease)
            # Better not to end a process that is loading a model; a download may be ended.
            await asyncio.wait({lease.model}, timeout=connecting_s)
            await self._released(lease)

    def _retire(self, lease: _Lease) -> None:
        lease.is_retired = True
        if self._lease is lease:
            self._lease = None

    async def _released(self, lease: _Lease) -> None:
        if lease.holders:
            return
        if not lease.model.done():
            lease.model.add_done_callback(_close_late)
        elif not lease.model.exception():
            closing = asyncio.create_task(asyncio.to_thread(lease.model.result().close))
            with contextlib.suppress(Exception):  # then there is nothing left to free
                await asyncio.shield(closing)


@dataclass(eq=False)
class _Lease:
    model: asyncio.Future[ConnectedModel]
    holders: int = field(default=0)
    is_retired: bool = field(default=False)


def _in_thread(connect: Callable[[], ConnectedModel]) -> asyncio.Future[ConnectedModel]:
    """What `connect` gives, which may take minutes; the end of the process does not wait for it."""
    loop = asyncio.get_running_loop()
    model: asyncio.Future[ConnectedModel] = loop.create_future()
    # A failure that nobody waits for any more is none to complain about.
    model.add_done_callback(lambda done: done.exception())

    def work() -> None:
        try:
            connected = connect()
        except BaseException as error:  # noqa: BLE001 - it is raised where the model is wanted
            told = partial(model.set_exception, error)
        else:
            told = partial(model.set_result, connected)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(told)

    threading.Thread(target=work, name="mcp-connect", daemon=True).start()
    return model


def _close_late(model: asyncio.Future[ConnectedModel]) -> None:
    if not model.exception():
        model.result().close()
