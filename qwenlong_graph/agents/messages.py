"""The memory agent as an agent that talks in messages: what supervisors, swarms and the like take.

START -> NAME -> END        its one node reads the question off the messages, and runs the memory
                            agent as its subgraph
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, cast

from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import get_runtime
from langgraph.types import Command
from pydantic import Field, WithJsonSchema

# LangGraph and pydantic need the backport on Python 3.11 to build JSON schemas.
from typing_extensions import TypedDict

from qwenlong_graph.agents.answers import answer_text
from qwenlong_graph.agents.attachments import (
    attached_to,
    collect,
    files_in,
    is_speech,
    named_in,
    text_of,
)
from qwenlong_graph.agents.nested import NestedAgent
from qwenlong_graph.documents.loading import ingest
from qwenlong_graph.errors import (
    DocumentError,
    NoDocumentsError,
    QuestionError,
    QwenLongGraphError,
    SettingsError,
)
from qwenlong_graph.graph.agent import MemoryAgent, MemoryGraph
from qwenlong_graph.graph.messages import answer_message
from qwenlong_graph.graph.state import DOCUMENTS_SCHEMA
from qwenlong_graph.types import CollectionReference, Message

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver

    from qwenlong_graph.documents.store import DocumentStore

__all__ = ["MessagesAgent", "MessagesInput", "MessagesOutput", "create_messages_agent"]

HISTORY_MESSAGES = 12
HISTORY_CHARS = 4_000
"""Earlier turns serve to resolve references in the question; the newest are enough for that."""

TURN_CHARS = 1_000

Emit = Callable[[Any], None]

_HOST_WRITER = "__host_stream_writer"
_NO_DOCUMENTS = (
    "There is no document to read. Attach one to the question as text or as a file in base64 "
    'content, or give it under "documents" (or "files") in the state beside the messages. Files '
    "that are only named, by an address or a path, are not fetched."
)
_NO_QUESTION = (
    "There is no question to answer: no message of the user holds any text. Send the question as "
    "a human message."
)


class MessagesInput(TypedDict):
    """What a host gives.

    `documents`: as in `MemoryInput`. `files`: path -> {"content": ..., "encoding": ...}, as
    deepagents keeps them. Neither is looked at where the agent was made for fixed documents.
    """

    messages: Annotated[
        list[AnyMessage],
        Field(
            title="Messages",
            description="The conversation; the last message of the user is the question. Documents "
            "may be attached to it, as text or as files in base64.",
        ),
        add_messages,
    ]
    documents: NotRequired[Annotated[list[Any], WithJsonSchema(DOCUMENTS_SCHEMA)]]
    files: NotRequired[
        Annotated[
            dict[str, Any],
            Field(
                title="Files",
                description='Path -> {"content": ..., "encoding": "utf-8" or "base64"}; those that '
                "the question names are read, else all.",
            ),
        ]
    ]


class Problem(TypedDict):
    """The name of an error and what it says."""

    error: str
    message: str


class MessagesState(TypedDict, total=False):
    """What is checkpointed; documents by reference, or else why they cannot be read."""

    messages: Annotated[list[AnyMessage], add_messages]
    documents: list[CollectionReference | Problem]
    files: dict[str, Any]
    structured_response: Any


class MessagesOutput(TypedDict):
    """What a host gets: the messages, and the answer in the form of `response_format`, if any."""

    messages: Annotated[list[AnyMessage], add_messages]
    structured_response: NotRequired[Any]


class MessagesGraph(StateGraph[MessagesState, None, MessagesInput, MessagesOutput]):
    """The uncompiled graph. `compile` gives a `MessagesAgent`."""

    sources: _Sources

    def compile(self, *args: Any, **kwargs: Any) -> MessagesAgent:
        """StateGraph.compile."""
        compiled = super().compile(*args, **kwargs)
        # LangGraph names the class it compiles to; its own `copy` keeps the class it finds.
        compiled.__class__ = MessagesAgent
        return cast("MessagesAgent", compiled)


class MessagesAgent(CompiledStateGraph[MessagesState, None, MessagesInput, MessagesOutput]):
    """The compiled graph. Documents become references before LangGraph checkpoints them, and the
    progress of the reading is told to the host that runs this as its node or in its tool.
    """

    def stream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        """Pregel.stream."""
        told = _telling_host(config, kwargs.get("stream_mode"))
        return super().stream(self._sources.by_reference(input), told, **kwargs)

    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        """Pregel.astream."""
        told = _telling_host(config, kwargs.get("stream_mode"))
        given = await asyncio.to_thread(self._sources.by_reference, input)
        streamed = cast("AsyncGenerator[Any, None]", super().astream(given, told, **kwargs))
        async with contextlib.aclosing(streamed) as events:
            async for event in events:
                yield event

    @property
    def _sources(self) -> _Sources:
        return cast("MessagesGraph", self.builder).sources


def create_messages_agent(
    agent: MemoryAgent | MemoryGraph,
    *,
    name: str = "document_reader",
    documents: Sequence[Any] | Any | None = None,
    sources_in_text: bool = False,
    handoff_to: str | None = None,
    checkpointer: BaseCheckpointSaver[Any] | bool | None = None,
) -> MessagesAgent:
    """An agent with a `messages` channel: a worker, a swarm's member, a subagent, or a node.

    The last human message is the question; earlier turns tell what it refers to. The answer is
    appended as an `AIMessage` called `name`, with LangChain's citation annotations and usage; its
    `response_metadata` tells whether anything was `found` and how many claims are `unsupported`.
    What the caller can put right (no question, no document, one that cannot be read) is answered
    too, with the name of the error in `response_metadata["error"]`; other errors are raised.

    Documents are those of `documents`, fixed now; else the newest attachments of the human
    messages, the state's `documents`, or its `files`: those named in the question, else all.

    `sources_in_text` writes the sources under the answer too, for hosts that pass on only text.
    `handoff_to` names the node of the host that goes on after the answer, a swarm's member for
    example. The `checkpointer` of a host serves here too; a default is the agent's own. With one,
    a thread's next question finds what the memory agent kept of the last.

    Raises:
        SettingsError: `agent` is no memory agent, or a name is empty.
        DocumentError: one of the fixed `documents` cannot be read.
    """
    if isinstance(agent, MemoryGraph):
        agent = agent.compile()
    if not isinstance(agent, MemoryAgent):
        raise SettingsError(
            f"create_messages_agent: the agent is a {type(agent).__name__}. Give what "
            "create_memory_agent or build_memory_graph returns."
        )
    for argument, value in (("name", name), ("handoff_to", handoff_to)):
        if value is None and argument == "handoff_to":
            continue
        if not (isinstance(value, str) and value.strip()):
            raise SettingsError(
                f"create_messages_agent: {argument} is {value!r}. Give the name of a node."
            )
    store = cast("MemoryGraph", agent.builder).nodes_of.store
    sources = _Sources(store, None if documents is None else ingest(documents, store))
    worker = _Worker(
        # Its history in a thread is one, whichever turn it was called in.
        agent.copy({"checkpointer": True}),
        name=name,
        sources=sources,
        sources_in_text=sources_in_text,
        handoff_to=handoff_to,
    )
    graph = MessagesGraph(MessagesState, input_schema=MessagesInput, output_schema=MessagesOutput)
    graph.sources = sources
    graph.add_node(name, RunnableLambda(worker.run, worker.arun, name=name))
    graph.add_edge(START, name)
    graph.add_edge(name, END)
    if checkpointer is None:
        checkpointer = agent.checkpointer
    return graph.compile(checkpointer=checkpointer, name=name)


@dataclass(frozen=True)
class _Asked:
    """A turn as the memory agent takes it."""

    question: str
    history: list[Message]
    documents: CollectionReference

    def as_input(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "history": self.history,
            "documents": [self.documents],
        }


class _Sources:
    """Where the documents come from: fixed ones, messages, or the state."""

    def __init__(self, store: DocumentStore, fixed: CollectionReference | None) -> None:
        self.store = store
        self.fixed = fixed

    def by_reference(self, given: Any) -> Any:
        """A graph's input with references in place of documents and files."""
        if isinstance(given, Command):
            return replace(given, update=self.by_reference(given.update))
        if not isinstance(given, Mapping):
            return given
        taken = {name: value for name, value in given.items() if name not in {"documents", "files"}}
        if self.fixed is not None:
            return taken
        try:
            if documents := given.get("documents"):
                taken["documents"] = [ingest(documents, self.store)]
            elif files := given.get("files"):
                chosen = named_in(_question(given.get("messages") or []), files_in(files))
                taken["documents"] = [collect(chosen, self.store)]
        except DocumentError as error:
            taken["documents"] = [_problem(error)]
        return taken

    def of(self, state: MessagesState) -> CollectionReference:
        """The documents of a turn. Raises what `ingest` raises."""
        if self.fixed is not None:
            return self.fixed
        for message in reversed(state["messages"]):
            if isinstance(message, HumanMessage) and (attached := attached_to(message)):
                return collect(attached, self.store)
        for held in state.get("documents") or []:
            if "error" in held:
                raise _as_error(cast("Problem", held))
            return ingest([held], self.store)
        raise NoDocumentsError(_NO_DOCUMENTS)


class _Worker:
    """The node, in its sync and its async form."""

    def __init__(
        self,
        agent: MemoryAgent,
        *,
        name: str,
        sources: _Sources,
        sources_in_text: bool,
        handoff_to: str | None,
    ) -> None:
        self.nested = NestedAgent(agent)
        self.name = name
        self.sources = sources
        self.sources_in_text = sources_in_text
        self.handoff_to = handoff_to

    def run(self, state: MessagesState, config: RunnableConfig) -> Any:
        try:
            asked = self._asked(state)
            given, call = asked.as_input(), config["configurable"]["checkpoint_ns"]
            output = self.nested.read(given, config, _writer(config), call=call)
        except (DocumentError, QuestionError) as error:
            return self._given(state, config, self._refusal(_problem(error)))
        return self._given(state, config, self._answer(output), output["structured_response"])

    async def arun(self, state: MessagesState, config: RunnableConfig) -> Any:
        try:
            asked = await asyncio.to_thread(self._asked, state)
            given, call = asked.as_input(), config["configurable"]["checkpoint_ns"]
            output = await self.nested.aread(given, config, _writer(config), call=call)
        except (DocumentError, QuestionError) as error:
            return self._given(state, config, self._refusal(_problem(error)))
        return self._given(state, config, self._answer(output), output["structured_response"])

    def _asked(self, state: MessagesState) -> _Asked:
        messages = state.get("messages") or []
        question = _question(messages)
        if not question:
            raise QuestionError(_NO_QUESTION)
        return _Asked(question, _history(messages), self.sources.of(state))

    def _answer(self, output: Mapping[str, Any]) -> AIMessage:
        message = answer_message(output)
        if self.sources_in_text:
            (block,) = message.content_blocks
            block = cast("Any", {**block, "text": answer_text(output)})
            message = AIMessage(content_blocks=[block])
        usage = output["usage"]
        claims = [claim for claim in output["unsupported"] if claim["status"] == "unsupported"]
        told = {
            "found": output["found"],
            "is_quoted": output["is_quoted"],
            "unsupported": len(claims),
            "unread": usage["unread"],
        }
        if "answered_from" in output:
            told["answered_from"] = output["answered_from"]
        message.name = self.name
        message.response_metadata = {**message.response_metadata, **told}
        message.usage_metadata = UsageMetadata(
            input_tokens=usage["input_tokens"],
            output_tokens=usage["output_tokens"],
            total_tokens=usage["input_tokens"] + usage["output_tokens"],
            output_token_details={"reasoning": usage["reasoning_tokens"]},
        )
        return message

    def _refusal(self, problem: Problem) -> AIMessage:
        return AIMessage(
            problem["message"],
            name=self.name,
            response_metadata={"found": False, "error": problem["error"]},
        )

    def _given(
        self,
        state: MessagesState,
        config: RunnableConfig,
        message: AIMessage,
        structured: Any = None,
    ) -> Any:
        update: dict[str, Any] = {"messages": [*_closed(state.get("messages") or []), message]}
        if structured is not None or state.get("structured_response") is not None:
            update["structured_response"] = structured
        has_host = "|" in config["configurable"].get("checkpoint_ns", "")
        if self.handoff_to is None or not has_host:
            return update
        update["active_agent"] = self.handoff_to
        return Command(graph=Command.PARENT, goto=self.handoff_to, update=update)


# The turn within the messages.


def _question(messages: Any) -> str:
    """The text of the last human message, attachments apart."""
    last = _last_human(_converted(messages))
    return "" if last is None else _spoken(last)


def _converted(messages: Any) -> Sequence[BaseMessage]:
    if isinstance(messages, Sequence) and all(isinstance(one, BaseMessage) for one in messages):
        return cast("Sequence[BaseMessage]", messages)
    return convert_to_messages(messages if isinstance(messages, list) else [messages])


def _last_human(messages: Sequence[BaseMessage]) -> HumanMessage | None:
    return next((one for one in reversed(messages) if isinstance(one, HumanMessage)), None)


def _spoken(message: BaseMessage) -> str:
    blocks = [message.content] if isinstance(message.content, str) else message.content
    texts = [text_of(block) or "" for block in blocks if is_speech(block)]
    return "\n".join(text for text in texts if text.strip()).strip()


def _history(messages: Sequence[BaseMessage]) -> list[Message]:
    """The newest turns before the question, oldest first, each cut to a bounded length."""
    turns: list[Message] = []
    chars = 0
    is_before = False
    for message in reversed(messages):
        if not is_before:
            is_before = isinstance(message, HumanMessage)
            continue
        if not isinstance(message, (HumanMessage, AIMessage)):
            continue
        if message.response_metadata.get("__is_handoff_back"):  # langgraph-supervisor's own
            continue
        text = _spoken(message)
        if not text:
            continue
        if len(text) > TURN_CHARS:
            text = f"{text[:TURN_CHARS]} [...]"
        chars += len(text)
        if len(turns) >= HISTORY_MESSAGES or chars > HISTORY_CHARS:
            break
        is_human = isinstance(message, HumanMessage)
        turns.append(Message(role="user" if is_human else "assistant", content=text))
    return turns[::-1]


def _closed(messages: Sequence[BaseMessage]) -> list[ToolMessage]:
    """Results for tool calls that are left open at the end: models refuse an answer after them."""
    answered: set[str] = set()
    for message in reversed(messages):
        if isinstance(message, ToolMessage):
            answered.add(message.tool_call_id)
        elif isinstance(message, AIMessage):
            return [
                ToolMessage(
                    "Not run: the question was handed to another agent, whose answer follows.",
                    tool_call_id=call["id"] or "",
                    name=call["name"],
                    status="error",
                )
                for call in message.tool_calls
                if call["id"] not in answered
            ]
        else:
            break
    return []


# The progress of the memory agent, for the host.


def _telling_host(config: RunnableConfig | None, stream_mode: Any) -> RunnableConfig:
    """`config` with the host's stream writer, if it runs within one.

    LangGraph shows a host the events of what runs within it only with `subgraphs=True`.
    """
    told: RunnableConfig = {**(config or {})}
    modes = {stream_mode} if isinstance(stream_mode, str) else {*(stream_mode or ())}
    if "custom" in modes:  # whoever called takes the events
        return told
    try:
        writer = get_stream_writer()
    except (RuntimeError, KeyError):  # not called within a graph
        return told
    return {**told, "configurable": {**told.get("configurable", {}), _HOST_WRITER: writer}}


def _writer(config: RunnableConfig) -> Emit:
    writer: Emit = config["configurable"].get(_HOST_WRITER) or get_runtime().stream_writer
    return writer


def _problem(error: QwenLongGraphError) -> Problem:
    return Problem(error=type(error).__name__, message=str(error))


def _as_error(problem: Problem) -> DocumentError:
    kinds = {kind.__name__: kind for kind in DocumentError.__subclasses__()}
    return kinds.get(problem["error"], DocumentError)(problem["message"])
