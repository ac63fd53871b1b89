"""The memory agent as a tool: any agent that calls tools can ask long documents."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from langchain_core.messages import (
    BaseMessage,
    HumanMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.tools import StructuredTool
from langgraph.prebuilt import ToolRuntime
from pydantic import BaseModel, ConfigDict, Field, field_validator

from qwenlong_graph.agents.answers import answer_text
from qwenlong_graph.agents.attachments import attached_to, collect, files_in
from qwenlong_graph.agents.nested import NestedAgent
from qwenlong_graph.agents.sources import AllowedRoots, bounded_list, shown
from qwenlong_graph.documents.loading import ingest
from qwenlong_graph.errors import (
    DocumentError,
    DocumentNotAllowedError,
    DocumentNotFoundError,
    ModelError,
    NoDocumentsError,
    QuestionError,
    QwenLongGraphError,
    SettingsError,
)
from qwenlong_graph.graph.agent import MemoryAgent, MemoryGraph

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from qwenlong_graph.documents.store import DocumentStore
    from qwenlong_graph.types import CollectionReference, DocumentReference

__all__ = ["Finder", "create_document_tool"]

DOCUMENTS_MAX = 100
"""A call that names more has gone wrong."""

Finder = Callable[[str, Any], "DocumentReference | None"]
"""(name, the host's state) -> the stored document that a model calls so, if there is one."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ARTIFACT_KEYS = (
    "question",
    "answer",
    "found",
    "is_quoted",
    "citations",
    "unsupported",
    "memory",
    "usage",
    "structured_response",
    "answered_from",
    "skipped",
)
_DESCRIPTION = (
    "Reads long documents from beginning to end and answers one question about them, with quotes "
    "that are checked against the text. Use it for what a search for key words would miss: what "
    "happened, why, who is involved, what changes over a document, whether something is said at "
    "all. Reading takes minutes for long documents, so put all that you want to know about one "
    "matter into one question. When it says that nothing was found, the documents do not say it."
)


class _Question(BaseModel):
    """What a model fills in."""

    model_config = ConfigDict(extra="ignore")

    question: str = Field(
        description="One complete question, understandable without this conversation: full names "
        "in place of pronouns, and the form of the answer if it matters."
    )
    documents: list[str] | None = Field(
        default=None,
        description="Names, ids or paths of the documents to read, as they are called in this "
        "conversation. Leave out to read all documents that were handed over.",
    )

    @field_validator("documents", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        """Models give a single name as a text, and "" or "null" for nothing."""
        if isinstance(value, str):
            return None if value.strip().lower() in {"", "null", "none"} else [value]
        return value or None


def create_document_tool(
    agent: MemoryAgent | MemoryGraph,
    *,
    name: str = "ask_documents",
    description: str | None = None,
    documents: Sequence[Any] | Any | None = None,
    roots: AllowedRoots | Iterable[str | Path] | str | Path = (),
    finders: Sequence[Finder] = (),
) -> StructuredTool:
    """A tool that answers a question over documents, for `create_agent`, `ToolNode` and the like.

    The model gives a `question` and, if it likes, names of `documents`. A name is looked up among
    `documents`, fixed here; then by each of `finders`; then among the attachments of the host's
    messages and the `documents` and `files` of its state; then as a path below `roots` (by default
    there are none). Without names all of the fixed documents are read, else the newest
    attachments, else the state's `documents`, else its `files`. Paths in the state are held to
    `roots` too.

    The result is a `ToolMessage` with the answer and its sources as text, and an `artifact` with
    `citations`, `memory`, `usage` and the rest of `MemoryOutput`. What goes wrong with a question,
    a document or a model's server becomes a message of status "error" that says what to do, and
    its artifact names the error; errors of the setup are raised. Progress goes to the host's
    "custom" stream, each event with the call's `tool_call_id`. The reading keeps its steps in the
    host's checkpointer: a host that is resumed goes on within it. Called outside of a graph, it
    gives the text, and takes names of `documents` and `roots` only.

    Raises:
        SettingsError: `agent` is no memory agent, a name does not fit, or a root is no directory.
        DocumentError: one of the fixed `documents` cannot be read.
    """
    if isinstance(agent, MemoryGraph):
        agent = agent.compile()
    if not isinstance(agent, MemoryAgent):
        raise SettingsError(
            f"create_document_tool: the agent is a {type(agent).__name__}. Give what "
            "create_memory_agent or build_memory_graph returns."
        )
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise SettingsError(
            f"create_document_tool: {name!r} is no name for a tool. Take letters, digits, _ and -, "
            "64 at most."
        )
    store = cast("MemoryGraph", agent.builder).nodes_of.store
    library = _Library(
        store,
        fixed=None if documents is None else ingest(documents, store),
        roots=roots if isinstance(roots, AllowedRoots) else AllowedRoots(roots),
        finders=tuple(finders),
    )
    # The host's checkpointer, and a history of its own for each call.
    tool = _Tool(NestedAgent(agent.copy({"checkpointer": None})), library)
    return StructuredTool.from_function(
        tool.run,
        tool.arun,
        name=name,
        description=description or f"{_DESCRIPTION}{library.told()}",
        args_schema=_Question,
        response_format="content_and_artifact",
    )


class _Tool:
    """The tool's two functions."""

    def __init__(self, nested: NestedAgent, library: _Library) -> None:
        self.nested = nested
        self.library = library

    # ToolNode knows what to inject by the annotation, and nothing is there outside of a graph.
    def run(
        self,
        question: str,
        documents: list[str] | None = None,
        runtime: ToolRuntime[Any, Any] = cast("Any", None),  # noqa: B008
    ) -> tuple[str | ToolMessage, dict[str, Any] | None]:
        call = _Call.of(runtime)
        try:
            given = self._given(question, documents, call)
            output = self.nested.read(given, call.config, call.emit, call=call.name)
        except (DocumentError, QuestionError, ModelError) as error:
            return call.failure(error)
        return answer_text(output), _artifact(output)

    async def arun(
        self,
        question: str,
        documents: list[str] | None = None,
        runtime: ToolRuntime[Any, Any] = cast("Any", None),  # noqa: B008
    ) -> tuple[str | ToolMessage, dict[str, Any] | None]:
        call = _Call.of(runtime)
        try:
            given = await asyncio.to_thread(self._given, question, documents, call)
            output = await self.nested.aread(given, call.config, call.emit, call=call.name)
        except (DocumentError, QuestionError, ModelError) as error:
            return call.failure(error)
        return answer_text(output), _artifact(output)

    def _given(self, question: str, names: list[str] | None, call: _Call) -> dict[str, Any]:
        if not question.strip():
            raise QuestionError("The question is empty. Say what you want to know.")
        reference = self.library.of(names, call.state)
        return {"question": question.strip(), "documents": [reference]}


@dataclass(frozen=True)
class _Call:
    """One call of the tool: what the host gives along."""

    state: Any
    config: RunnableConfig
    emit: Callable[[Any], None]
    tool_call_id: str | None

    @classmethod
    def of(cls, runtime: ToolRuntime[Any, Any] | None) -> _Call:
        if runtime is None:
            return cls({}, {}, lambda event: None, None)
        write, tool_call_id = runtime.stream_writer, runtime.tool_call_id

        def emit(event: Any) -> None:
            write({**event, "tool_call_id": tool_call_id} if isinstance(event, dict) else event)

        return cls(runtime.state, runtime.config, emit, tool_call_id)

    @property
    def name(self) -> str:
        namespace = self.config.get("configurable", {}).get("checkpoint_ns", "")
        return f"{namespace}/{self.tool_call_id}"

    def failure(self, error: QwenLongGraphError) -> tuple[str | ToolMessage, dict[str, Any] | None]:
        text = str(error)
        if isinstance(error, ModelError):
            text += (
                " The documents were not read to their end. Do not answer from memory: tell the "
                "user what happened, or try once more later."
            )
        artifact = {"error": type(error).__name__, "found": False}
        if self.tool_call_id is None:
            return text, artifact
        message = ToolMessage(
            text, tool_call_id=self.tool_call_id, status="error", artifact=artifact
        )
        return message, None


def _artifact(output: Mapping[str, Any]) -> dict[str, Any]:
    return {key: output[key] for key in _ARTIFACT_KEYS if key in output}


@dataclass(frozen=True)
class _Library:
    """Which documents a call may mean."""

    store: DocumentStore
    fixed: CollectionReference | None
    roots: AllowedRoots
    finders: Sequence[Finder]

    def told(self) -> str:
        """What can be named, for the tool's description."""
        told = ""
        if self.fixed is not None:
            titles = [reference["title"] for reference in self.store.collection(self.fixed)]
            told += f" Documents: {bounded_list(titles)}."
        if self.roots:
            told += f" By their paths, {self.roots.told()}."
        return told

    def of(self, names: Sequence[str] | None, state: Any) -> CollectionReference:
        """The documents of a call. Raises `DocumentError`."""
        if not names:
            return self._all(state)
        if len(names) > DOCUMENTS_MAX:
            raise DocumentNotFoundError(
                f"{len(names):,} documents were named; {DOCUMENTS_MAX} at most can be. Leave the "
                "names out to read all that were handed over.",
                source=names[0],
            )
        found = [self._named(name, state) for name in dict.fromkeys(names)]
        return ingest([reference for some in found for reference in some], self.store)

    def _all(self, state: Any) -> CollectionReference:
        if self.fixed is not None:
            return self.fixed
        for message in reversed(_messages(state)):
            if isinstance(message, HumanMessage) and (attached := attached_to(message)):
                return collect(attached, self.store)
        if documents := _held(state, "documents"):
            return self._ingested(documents)
        if files := files_in(_held(state, "files")):
            return collect(files, self.store)
        raise NoDocumentsError(
            "No document was handed over. "
            + (
                f"Name one: {self.roots.told()}."
                if self.roots
                else "Give the name or id of one, or ask the user to attach it."
            )
        )

    def _named(self, name: str, state: Any) -> Sequence[DocumentReference]:
        """Several documents may have one title."""
        if self.fixed is not None:
            fixed = self.store.collection(self.fixed)
            titles = [reference["title"] for reference in fixed]
            if matches := [fixed[place] for place in _matching(name, titles)]:
                return matches
        for finder in self.finders:
            if (reference := finder(name, state)) is not None:
                return [reference]
        handed = {
            title: content
            for message in _messages(state)
            if isinstance(message, HumanMessage)
            for title, content in attached_to(message).items()
        }
        handed |= files_in(_held(state, "files"))
        titles = list(handed)
        if matching := [titles[place] for place in _matching(name, titles)]:
            chosen = collect({title: handed[title] for title in matching}, self.store)
            return self.store.collection(chosen)
        documents = _held(state, "documents")
        stated: Sequence[DocumentReference] = ()
        if documents and self.fixed is None:
            stated = self.store.collection(self._ingested(documents))
            stated_titles = [reference["title"] for reference in stated]
            if matches := [stated[place] for place in _matching(name, stated_titles)]:
                return matches
        try:
            path = self.roots.resolve(name)
        except (DocumentNotAllowedError, DocumentNotFoundError) as error:
            known = [*titles, *(reference["title"] for reference in stated)]
            if self.fixed is not None:
                known += [reference["title"] for reference in self.store.collection(self.fixed)]
            if not known:
                raise
            raise DocumentNotFoundError(
                f"There is no document {shown(name)} among those that were handed over: "
                f"{bounded_list(known)}. Name one of these, or leave the names out to read all."
                + (f" Otherwise: {error}" if self.roots else ""),
                source=error.source,
            ) from error
        return self.store.collection(ingest([path], self.store))

    def _ingested(self, documents: Any) -> CollectionReference:
        sources = documents if isinstance(documents, (list, tuple)) else [documents]
        held = [
            self.roots.resolve(str(source)) if isinstance(source, (str, Path)) else source
            for source in sources
        ]
        return ingest(held, self.store)


def _matching(name: str, titles: Sequence[str]) -> list[int]:
    """The places of the titles that `name` means: the same; else but for case; else at the end."""
    wanted = name.strip().strip("\"'`").strip()
    folded = wanted.casefold()
    ways: list[Callable[[str], bool]] = [
        lambda title: title == wanted,
        lambda title: title.casefold() == folded,
        lambda title: title.casefold().rpartition("/")[2] == folded.rpartition("/")[2] != "",
    ]
    for means in ways:
        if found := [place for place, title in enumerate(titles) if means(title)]:
            return found
    return []


def _held(state: Any, key: str) -> Any:
    """A key of a host's state, whichever kind of state it is."""
    return state.get(key) if isinstance(state, Mapping) else getattr(state, key, None)


def _messages(state: Any) -> Sequence[BaseMessage]:
    held = state if isinstance(state, list) else _held(state, "messages")
    return convert_to_messages(held) if isinstance(held, list) else []
