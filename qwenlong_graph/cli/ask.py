"""One question over some files: from what was typed to the agent's output."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenlong_graph.cli.connecting import connection_options, fetch_embedded
from qwenlong_graph.errors import (
    ModelError,
    QuestionError,
    RunError,
    RunInterruptedError,
    SettingsError,
    StoredTextChangedError,
)
from qwenlong_graph.models.server import is_address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import BaseCheckpointSaver
    from langgraph.runtime import RunControl

    from qwenlong_graph.cli.progress import Progress
    from qwenlong_graph.documents.store import DocumentStore
    from qwenlong_graph.graph.agent import MemoryAgent
    from qwenlong_graph.graph.state import MemoryInput
    from qwenlong_graph.models.connect import ConnectedModel
    from qwenlong_graph.reading.budget import ReadingSettings
    from qwenlong_graph.runs.directory import Run, RunRecord, RunShelf
    from qwenlong_graph.runs.journal import Journal
    from qwenlong_graph.types import DocumentReference

    AgentMaker = Callable[[BaseCheckpointSaver[Any] | None], MemoryAgent]

__all__ = [
    "Answered",
    "Ask",
    "Resume",
    "Skipped",
    "answer_question",
    "resume_command",
    "resume_run",
    "shelf_in",
    "store_in",
    "titles_of",
]

_JOURNALLED = frozenset({"memory_updated", "retry", "server_failed", "answered"})


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What was asked for. `settings` are fields of `ReadingSettings` that were given."""

    question: str
    files: Sequence[str]
    model: str = "embedded"
    served_model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    window: int | None = None
    instructions: str = ""
    schema: Path | None = None
    data_dir: Path | None = None
    run_id: str | None = None
    is_ephemeral: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Which run goes on, and with what; None leaves it as it was begun.

    Another model comes with its own window and served model. `accepts_changes`: it may be another
    model, protocol or size than what was read so far was read with.
    """

    run_id: str
    model: str | None = None
    served_model: str | None = None
    window: int | None = None
    seed: int | None = None
    accepts_changes: bool = False
    api_key: str | None = field(default=None, repr=False)
    data_dir: Path | None = None


@dataclass(frozen=True)
class Skipped:
    """A file, or pages of one, that were left out."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The agent's output with what it takes to show it. `titles` are those of the documents."""

    output: Mapping[str, Any]
    model_name: str
    titles: Sequence[str]
    skipped: Sequence[Skipped]
    seconds: float


def answer_question(ask: Ask, progress: Progress) -> Answered:
    """Reads the files and answers.

    What needs no model is checked first, so that nothing is fetched or started in vain. Raises
    the `QwenLongGraphError`s of documents, models and settings, and KeyboardInterrupt.
    """
    from qwenlong_graph.documents.loading import ingest
    from qwenlong_graph.reading.budget import ReadingSettings

    began = time.monotonic()
    if not ask.question.strip():
        raise QuestionError("The question is empty. Ask what you want to know.")
    response_format = _schema(ask.schema) if ask.schema else None
    settings = ReadingSettings(**ask.settings)
    skipped: list[Skipped] = []

    def on_skip(name: str, reason: str) -> None:
        skipped.append(Skipped(name, reason))
        progress.left_out(name, reason)

    progress.working("Loading the documents")
    store = store_in(ask.data_dir)
    collection = ingest(ask.files, store, on_skip=on_skip)
    titles = [reference["title"] for reference in store.collection(collection)]
    with contextlib.closing(_connected(ask, progress)) as model:
        progress.connected(model.model_name, documents=len(titles))
        given: MemoryInput = {"question": ask.question, "documents": [collection]}
        if ask.instructions.strip():
            given["instructions"] = ask.instructions
        agent_for = _agent_maker(model, settings, store, response_format)
        if ask.is_ephemeral:
            output = asyncio.run(_read(agent_for(None), given, progress))
        else:
            run = shelf_in(ask.data_dir).create(
                run_id=ask.run_id,
                question=ask.question,
                instructions=ask.instructions,
                documents=collection,
                titles=titles[:20],
                model=ask.model,
                served_model=ask.served_model,
                window=ask.window,
                settings=dict(ask.settings),
                version=version("qwenlong-graph"),
                response_schema=response_format,
            )
            with run.lock(), _next_step_told(run, ask.data_dir):
                output = _read_kept(run, agent_for, given, progress)
    return Answered(
        output=output,
        model_name=model.model_name,
        titles=titles,
        skipped=skipped,
        seconds=time.monotonic() - began,
    )


def resume_run(resume: Resume, progress: Progress) -> Answered:
    """Goes on with a kept run; a finished one gives its answer again, and needs no model for it.

    Raises the errors of `answer_question` and the `RunError`s.
    """
    from qwenlong_graph.reading.budget import ReadingSettings

    began = time.monotonic()
    run = shelf_in(resume.data_dir).find(resume.run_id)
    store = store_in(resume.data_dir)
    with run.lock(), _next_step_told(run, resume.data_dir):
        values = run.state()
        if values.get("answer"):
            _follow(run.journal(), values, progress)
            return Answered(
                output=values,
                model_name=values["setup"]["model"],
                titles=titles_of(run, store),
                skipped=[],
                seconds=time.monotonic() - began,
            )
        record = _changed(run.record, resume)
        references = store.collection(record["documents"])
        ask = Ask(
            question=record["question"],
            files=[],
            model=record["model"],
            served_model=record["served_model"],
            api_key=resume.api_key,
            window=record["window"],
        )
        settings = ReadingSettings(**record["settings"])
        given: MemoryInput = {"question": ask.question, "documents": [record["documents"]]}
        if record["instructions"].strip():
            given["instructions"] = record["instructions"]
        with contextlib.closing(_connected(ask, progress)) as model:
            progress.connected(model.model_name, documents=len(references))
            if "cursor" in values:
                progress.event(_resumed(values, references))
            agent_for = _agent_maker(model, settings, store, record["response_schema"])
            output = _read_kept(
                run, agent_for, given, progress, record=record, accepts=resume.accepts_changes
            )
    return Answered(
        output=output,
        model_name=model.model_name,
        titles=[reference["title"] for reference in references],
        skipped=[],
        seconds=time.monotonic() - began,
    )


def resume_command(run_id: str, data_dir: Path | None) -> str:
    """What to type to go on with a run."""
    is_named = data_dir and str(data_dir) != os.environ.get("QWENLONG_GRAPH_DATA")
    where = f" --data-dir {shlex.quote(str(data_dir))}" if is_named else ""
    return f"qwenlong-graph resume {run_id}{where}"


def titles_of(run: Run, store: DocumentStore) -> list[str]:
    """The titles of a run's documents, as far as they are known where the store lost them."""
    record = run.record
    try:
        return [reference["title"] for reference in store.collection(record["documents"])]
    except StoredTextChangedError:
        known = record["titles"]
        others = range(len(known), record["documents"]["documents"])
        return [*known, *(f"document {index + 1}" for index in others)]


def shelf_in(data_dir: Path | None) -> RunShelf:
    """Where the runs of a data directory are kept."""
    from qwenlong_graph.runs.directory import RunShelf

    return RunShelf(_data_dir(data_dir) / "runs")


def store_in(data_dir: Path | None) -> DocumentStore:
    """Where the texts of a data directory are kept."""
    from qwenlong_graph.documents.store import DocumentStore

    return DocumentStore(_data_dir(data_dir) / "documents")


def _data_dir(data_dir: Path | None) -> Path:
    from qwenlong_graph.documents.store import default_data_dir

    return (data_dir or default_data_dir()).expanduser()


def _agent_maker(
    model: ConnectedModel,
    settings: ReadingSettings,
    store: DocumentStore,
    response_format: dict[str, Any] | None,
) -> AgentMaker:
    from qwenlong_graph.graph.agent import create_memory_agent

    def agent_for(checkpointer: BaseCheckpointSaver[Any] | None) -> MemoryAgent:
        return create_memory_agent(
            model,
            settings=settings,
            checkpointer=checkpointer,
            document_dir=store.root,
            response_format=response_format,
        )

    return agent_for


def _changed(record: RunRecord, resume: Resume) -> RunRecord:
    """How the run is to go on."""
    changed = record.copy()
    if resume.model is not None:
        changed.update({"model": resume.model, "served_model": None, "window": None})
    if resume.served_model is not None:
        changed["served_model"] = resume.served_model
    if resume.window is not None:
        changed["window"] = resume.window
    if resume.seed is not None:
        changed["settings"] = {**record["settings"], "seed": resume.seed}
    return changed


def _resumed(values: Mapping[str, Any], references: Sequence[DocumentReference]) -> dict[str, Any]:
    """An event for the progress alone: how far the run was."""
    cursor = values["cursor"]
    done = sum(reference["chars"] for reference in references[: cursor["document"]])
    return {
        "type": "resumed",
        "strategy": values["setup"]["strategy"],
        "chars": sum(reference["chars"] for reference in references),
        "chars_read": done + cursor["start_char"],
        "step": values["step"],
        "steps": values["steps"],
        "evidence": len(values["evidence"]),
    }


def _follow(journal: Journal, values: Mapping[str, Any], progress: Progress) -> None:
    if moved_to := journal.follow(values):
        progress.event({"type": "journal_moved", "moved_to": str(moved_to)})


def _read_kept(
    run: Run,
    agent_for: AgentMaker,
    given: MemoryInput,
    progress: Progress,
    *,
    record: RunRecord | None = None,
    accepts: bool = False,
) -> Mapping[str, Any]:
    """Reads with each step kept. `record` is how it goes on, kept once the agent takes it."""
    from langgraph.runtime import RunControl

    is_taken = record is None or record == run.record

    async def read() -> Mapping[str, Any]:
        control = RunControl()
        async with run.checkpoints() as saver, _stopped_by_signals(control, progress):
            agent = agent_for(saver)
            config: RunnableConfig = {"configurable": {"thread_id": run.run_id}}
            if accepts:
                config["configurable"]["accept_changes"] = True
            values = (await agent.aget_state(config)).values
            journal = run.journal()
            _follow(journal, values, progress)

            def keep(event: dict[str, Any]) -> None:
                nonlocal is_taken
                if not is_taken and record:
                    run.rerecord(record)
                    is_taken = True
                if event["type"] in _JOURNALLED:
                    journal.append(event)

            output = await _read(
                agent, None if values else given, progress, config, keep=keep, control=control
            )
            # An event is lost where a kill came between a step and its line.
            _follow(journal, (await agent.aget_state(config)).values, progress)
            return output

    return asyncio.run(read())


@contextlib.contextmanager
def _next_step_told(run: Run, data_dir: Path | None) -> Iterator[None]:
    """Where a kept run ends early, the error says how to go on."""
    from langgraph.errors import GraphDrained

    how = f"What was read is kept; go on with: {resume_command(run.run_id, data_dir)}"
    try:
        yield
    except (KeyboardInterrupt, GraphDrained, asyncio.CancelledError):
        raise RunInterruptedError(f"Interrupted. {how}") from None
    except ModelError as error:
        raise type(error)(f"{error} {how}") from error
    except StoredTextChangedError as error:
        raise StoredTextChangedError(
            f"{error} The run goes on once the same text is there again: to store it, name the "
            f"same files in the same order to qwenlong-graph estimate --no-calibrate. A document "
            f"that has changed needs a new reading, whatever is accepted: what was read refers to "
            f"places in the old one.",
            source=error.source,
        ) from error
    except RunError as error:
        if type(error) is RunError:  # a full disk; the other kinds say what to do
            raise RunError(f"{error} {how}") from error
        raise


@contextlib.asynccontextmanager
async def _stopped_by_signals(control: RunControl, progress: Progress) -> AsyncIterator[None]:
    """The first SIGINT or SIGTERM lets the open chunk be finished and kept; the next cancels."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def stop() -> None:
        if control.drain_requested and task:
            task.cancel()
        else:
            control.request_drain("interrupted")
            progress.event({"type": "draining"})

    kinds = (signal.SIGINT, signal.SIGTERM)
    for kind in kinds:
        loop.add_signal_handler(kind, stop)
    try:
        yield
    finally:
        for kind in kinds:
            loop.remove_signal_handler(kind)


async def _read(
    agent: MemoryAgent,
    given: MemoryInput | None,
    progress: Progress,
    config: RunnableConfig | None = None,
    *,
    keep: Callable[[dict[str, Any]], None] | None = None,
    control: RunControl | None = None,
) -> Mapping[str, Any]:
    """The agent's output. Async, because an interrupt cannot stop LangGraph's sync nodes: it
    would wait for the open model call, which takes minutes on a large model."""
    output: Mapping[str, Any] = {}
    events = agent.astream(
        given,
        config,
        stream_mode=["custom", "values"],
        durability="sync" if keep else None,
        control=control,
    )
    async with contextlib.aclosing(events):
        async for mode, event in events:
            if mode == "custom":
                progress.event(event)
                if keep:
                    keep(event)
            else:
                output = event
    return output


def _connected(ask: Ask, progress: Progress) -> ConnectedModel:
    from qwenlong_graph.models.connect import connect

    if ask.model == "embedded":
        progress.working("Verifying the embedded model")
        fetch_embedded(
            progress=progress.fetching,
            converting=lambda: progress.working("Converting the embedded model, once"),
        )
    name = "the embedded model" if ask.model == "embedded" else ask.model
    progress.working(f"Connecting to {name}" if is_address(ask.model) else f"Starting {name}")
    options = connection_options(
        ask.model, served_model=ask.served_model, api_key=ask.api_key, window=ask.window
    )
    return connect(ask.model, **options)


def _schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(
            f"Reading the schema {path}: {error.strerror or error}. Check the path."
        ) from error
    except ValueError as error:
        raise SettingsError(
            f"Reading the schema {path}: it is not valid JSON ({error}). Correct the file."
        ) from error
    if not isinstance(schema, dict):
        raise SettingsError(
            f"Reading the schema {path}: it holds a {type(schema).__name__}, and a JSON schema is "
            'an object, such as {"type": "object", "properties": {...}}.'
        )
    return schema
