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

from qwenlong_graph.cli.connecting import connected
from qwenlong_graph.cli.review import Decide, decided_by, decision_given, parsed_review
from qwenlong_graph.errors import (
    ModelError,
    QuestionError,
    RunError,
    RunInterruptedError,
    SettingsError,
    StoredTextChangedError,
)
from qwenlong_graph.runs.reading import read_kept, resumed_event, stream_events, to_checkpoint
from qwenlong_graph.runs.summary import titles_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from langgraph.checkpoint.base import BaseCheckpointSaver
    from langgraph.runtime import RunControl

    from qwenlong_graph.cli.progress import Progress
    from qwenlong_graph.documents.store import DocumentStore
    from qwenlong_graph.graph.agent import MemoryAgent
    from qwenlong_graph.graph.state import MemoryInput
    from qwenlong_graph.models.connect import ConnectedModel
    from qwenlong_graph.reading.budget import ReadingSettings
    from qwenlong_graph.runs.directory import Run, RunRecord, RunShelf
    from qwenlong_graph.runs.reading import OnEvent

    AgentMaker = Callable[[BaseCheckpointSaver[Any] | None], MemoryAgent]

__all__ = [
    "Answered",
    "Ask",
    "Resume",
    "Skipped",
    "answer_question",
    "resume_command",
    "resume_run",
    "schema_in",
    "shelf_in",
    "store_in",
]


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
    review: str | None = None


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
    decide: str | None = None


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
    response_format = schema_in(ask.schema) if ask.schema else None
    settings = ReadingSettings(**ask.settings)
    review = None if ask.review is None else parsed_review(ask.review)
    if review is not None and ask.is_ephemeral:
        raise SettingsError(
            "A review pauses the reading, and --ephemeral keeps nothing to go on with. "
            "Leave out one of the two."
        )
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
        agent_for = _agent_maker(model, settings, store, response_format, review)
        if ask.is_ephemeral:
            output = asyncio.run(stream_events(agent_for(None), given, on_event=_told_to(progress)))
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
                review=review,
            )
            with run.lock(), _next_step_told(run, ask.data_dir):
                decide = _decided(run, ask.data_dir, progress)
                output = _read_kept(run, agent_for, given, progress, decide=decide)
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
    decision = None if resume.decide is None else decision_given(resume.decide)
    with run.lock(), _next_step_told(run, resume.data_dir):
        values = run.state()
        if values.get("answer"):
            if decision is not None:
                raise RunError(
                    f"Run {run.run_id} has its answer and is not paused for a review, so there is "
                    "nothing to decide. Leave --decide out to see the answer."
                )
            for moved in to_checkpoint(run.journal(), values):
                progress.event(moved)
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
                progress.event(resumed_event(values, references))
            agent_for = _agent_maker(
                model, settings, store, record["response_schema"], record.get("review")
            )
            output = _read_kept(
                run,
                agent_for,
                given,
                progress,
                record=record,
                accepts=resume.accepts_changes,
                decision=decision,
                decide=_decided(run, resume.data_dir, progress),
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
    review: Any = None,
) -> AgentMaker:
    from qwenlong_graph.graph.agent import create_memory_agent

    def agent_for(checkpointer: BaseCheckpointSaver[Any] | None) -> MemoryAgent:
        return create_memory_agent(
            model,
            settings=settings,
            checkpointer=checkpointer,
            document_dir=store.root,
            response_format=response_format,
            review=None if review is None else "memory",
            review_every=1 if review is None else review,
        )

    return agent_for


def _decided(run: Run, data_dir: Path | None, progress: Progress) -> Decide:
    return decided_by(progress.terminal(), how=resume_command(run.run_id, data_dir))


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


def _read_kept(
    run: Run,
    agent_for: AgentMaker,
    given: MemoryInput,
    progress: Progress,
    *,
    decide: Decide,
    record: RunRecord | None = None,
    accepts: bool = False,
    decision: Mapping[str, Any] | None = None,
) -> Mapping[str, Any]:
    """Reads with each step kept, from one review to the next. `record` is how it goes on, kept
    once the agent takes it."""
    from langgraph.runtime import RunControl

    async def read(decision: Mapping[str, Any] | None) -> Mapping[str, Any]:
        control = RunControl()
        async with _stopped_by_signals(control, progress):
            return await read_kept(
                run,
                agent_for,
                given,
                on_event=_told_to(progress),
                record=record,
                accepts_changes=accepts,
                control=control,
                decision=decision,
            )

    output = asyncio.run(read(decision))
    while paused := output.get("__interrupt__"):
        with progress.paused():
            decision = decide(paused[0].value)
        output = asyncio.run(read(decision))
    return output


def _told_to(progress: Progress) -> OnEvent:
    async def on_event(event: dict[str, Any]) -> None:
        progress.event(event)

    return on_event


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


def _connected(ask: Ask, progress: Progress) -> ConnectedModel:
    return connected(
        ask.model,
        served_model=ask.served_model,
        api_key=ask.api_key,
        window=ask.window,
        progress=progress,
    )


def schema_in(path: Path) -> dict[str, Any]:
    """The JSON schema of a file. Raises `SettingsError` if there is none."""
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
