"""The whole machine on one screen, and the ways to run it.

START -> decompose -> read_chunk -> update_memory -> read_chunk ... -> finalize -> END
         decompose -> finalize                              strategy "full": it fits, one pass
         update_memory -> review -> read_chunk or finalize     where it was asked for
         decompose -> recall -> finalize                    a thread that asks again: first the
                                                            quotes it has, then the documents
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, merge_configs
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, RetryPolicy

from qwenlong_graph.documents.loading import ingest
from qwenlong_graph.documents.store import DocumentStore, default_data_dir
from qwenlong_graph.errors import CheckpointerKindError, SettingsError
from qwenlong_graph.graph.durable import (
    being_read,
    could_restart,
    input_to_go_on,
    require_not_being_read,
)
from qwenlong_graph.graph.forms import answer_form
from qwenlong_graph.graph.messages import plain_history
from qwenlong_graph.graph.nodes import ReadingNodes
from qwenlong_graph.graph.review import ReviewEvery, checked_review
from qwenlong_graph.graph.state import MemoryInput, MemoryOutput, MemoryState
from qwenlong_graph.models.calls import is_retryable
from qwenlong_graph.models.connect import ConnectedModel, connect
from qwenlong_graph.models.tracing import obey_switch
from qwenlong_graph.reading.budget import ReadingSettings

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langgraph.checkpoint.base import BaseCheckpointSaver
    from pydantic import BaseModel

__all__ = [
    "DEFAULT_RETRY_POLICY",
    "MemoryAgent",
    "MemoryGraph",
    "aread",
    "build_memory_graph",
    "create_memory_agent",
    "read",
]

DEFAULT_RETRY_POLICY = RetryPolicy(
    initial_interval=1.0,
    backoff_factor=2.0,
    max_interval=60.0,
    max_attempts=8,
    retry_on=is_retryable,
)
"""A server that is away or overloaded is asked again for about two minutes; nothing else is."""

# The loop ends by itself, since each step moves the cursor forward; a host's limit of 25 counts
# turns of an agent and would cut a document off. langchain-core writes 25 into every config.
_RECURSION_LIMIT = 1_000_000_000

# LangGraph's keys; it does not export the names.
_RESUMING = "__pregel_resuming"
_SAVER = "__pregel_checkpointer"


class MemoryGraph(StateGraph[MemoryState, None, MemoryInput, MemoryOutput]):
    """The uncompiled graph. `compile` gives a `MemoryAgent`, whoever calls it."""

    nodes_of: ReadingNodes

    def compile(self, *args: Any, **kwargs: Any) -> MemoryAgent:
        """StateGraph.compile; the result stores documents before LangGraph checkpoints them."""
        compiled = super().compile(*args, **kwargs)
        # LangGraph names the class it compiles to; its own `copy` keeps the class it finds.
        compiled.__class__ = MemoryAgent
        return cast("MemoryAgent", compiled)


class MemoryAgent(CompiledStateGraph[MemoryState, None, MemoryInput, MemoryOutput]):
    """The compiled graph. All of `invoke`, `ainvoke`, `stream`, `astream`, `batch` come through
    `stream` and `astream`, where documents become references, a reading that is not finished is
    kept from being restarted, and the recursion limit is raised.
    """

    def stream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        """Pregel.stream."""
        obey_switch()
        self._require_checkpointer(config, is_async=False)
        given = self._by_reference(input, config)
        if thread := self._thread_of(given, config):
            given = input_to_go_on(given, self.get_state(thread))
        return self._marked(super().stream(given, _unlimited(config), **kwargs), config)

    def _marked(self, events: Iterator[Any], config: RunnableConfig | None) -> Iterator[Any]:
        with being_read(self.checkpointer, self._whole(config)):
            yield from events

    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        """Pregel.astream."""
        obey_switch()
        self._require_checkpointer(config, is_async=True)
        given = await asyncio.to_thread(self._by_reference, input, config)
        if thread := self._thread_of(given, config):
            given = input_to_go_on(given, await self.aget_state(thread))
        streamed = cast(
            "AsyncGenerator[Any, None]", super().astream(given, _unlimited(config), **kwargs)
        )
        with being_read(self.checkpointer, self._whole(config)):
            async with contextlib.aclosing(streamed) as events:
                async for event in events:
                    yield event

    def bulk_update_state(self, config: RunnableConfig, supersteps: Any) -> RunnableConfig:
        """Pregel.bulk_update_state, and `update_state`. `RunLockedError` in a running thread."""
        require_not_being_read(self.checkpointer, self._whole(config))
        return super().bulk_update_state(config, supersteps)

    async def abulk_update_state(self, config: RunnableConfig, supersteps: Any) -> RunnableConfig:
        """`bulk_update_state` for async callers."""
        require_not_being_read(self.checkpointer, self._whole(config))
        return await super().abulk_update_state(config, supersteps)

    def _whole(self, config: RunnableConfig | None) -> RunnableConfig:
        return merge_configs(self.config, config)

    def _by_reference(self, given: Any, config: RunnableConfig | None) -> Any:
        if isinstance(given, Command):
            return replace(given, update=self._by_reference(given.update, config))
        if not isinstance(given, Mapping):
            return given
        if "question" in given:
            # A thread that asks anew does not inherit the instructions of its last question.
            given = {"instructions": "", **given, "history": plain_history(given.get("history"))}
        if given.get("documents") is None:
            return given
        if (config or {}).get("configurable", {}).get(_RESUMING):
            # A parent graph that resumes gives its input again; the texts are stored already.
            return {name: value for name, value in given.items() if name != "documents"}
        store = cast("MemoryGraph", self.builder).nodes_of.store
        return {**given, "documents": [ingest(given["documents"], store)]}

    def _thread_of(self, given: Any, config: RunnableConfig | None) -> RunnableConfig | None:
        """Where a reading may be kept that `given` could restart."""
        if self.checkpointer is None or isinstance(self.checkpointer, bool):
            return None
        whole = ensure_config(self._whole(config))
        return whole if could_restart(given, whole) else None

    def _require_checkpointer(self, config: RunnableConfig | None, *, is_async: bool) -> None:
        """Says at once what would otherwise fail after the first model call, unnamed."""
        saver = self.checkpointer
        if not saver and cast("MemoryGraph", self.builder).nodes_of.review_every:
            inherited = saver is not False and (config or {}).get("configurable", {}).get(_SAVER)
            if not inherited:
                raise SettingsError(
                    "A review pauses the reading, and nothing keeps it meanwhile. Give "
                    "create_memory_agent a checkpointer, such as InMemorySaver or SqliteSaver."
                )
        if saver is None or isinstance(saver, bool):
            return
        names = [kind.__name__ for kind in type(saver).__mro__]
        if is_async and ({"SqliteSaver", "PostgresSaver", "ShallowPostgresSaver"} & {*names}):
            raise CheckpointerKindError(
                f"{names[0]} serves invoke, stream and batch only. For ainvoke, astream and abatch "
                f"compile with its async form (AsyncSqliteSaver or AsyncPostgresSaver)."
            )
        asynchronous = next((name for name in names if name.startswith("Async")), None)
        if not is_async and asynchronous:
            raise CheckpointerKindError(
                f"{names[0]} serves ainvoke, astream and abatch only. For invoke, stream and batch "
                f"compile with {asynchronous.removeprefix('Async')}."
            )


def build_memory_graph(
    model: str | BaseChatModel | ConnectedModel,
    *,
    settings: ReadingSettings | None = None,
    document_dir: Path | str | None = None,
    response_format: type[BaseModel] | dict[str, Any] | None = None,
    window: int | None = None,
    count_tokens: Callable[[str], int] | None = None,
    retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY,
    review: Literal["memory"] | None = None,
    review_every: ReviewEvery = 1,
) -> MemoryGraph:
    """The memory agent as an uncompiled graph, to compile with a checkpointer of your own.

    `model` is a connected model, what `connect` takes, or a LangChain chat model (with `window`
    in tokens and `count_tokens`). Texts are stored under `document_dir` (default: the user's data
    directory). `response_format` asks for an answer in that form: `structured_response`.

    `review="memory"` pauses the reading with an interrupt for somebody to look at memory, plan and
    evidence: after every `review_every` chunks and before the answer, or whenever the memory has
    changed ("on-change"). Its value is a `ReviewRequest`; `Command(resume=...)` goes on with
    "accept", "answer", {"action": "edit", "memory": ..., "plan": ...} or {"action": "skip",
    "chunks": ...}. It needs a checkpointer.

    Raises:
        SetupError: the model cannot be connected, or a setting cannot be used.
    """
    obey_switch()  # here for programs that are traced around the agent; at each call for the rest
    connected = connect(model, window=window, count_tokens=count_tokens)
    nodes = ReadingNodes(
        connected,
        settings=(settings or ReadingSettings()).over(connected.defaults),
        store=DocumentStore(
            Path(document_dir) if document_dir else default_data_dir() / "documents"
        ),
        form=answer_form(response_format),
        review_every=checked_review(review, review_every),
    )
    graph = MemoryGraph(MemoryState, input_schema=MemoryInput, output_schema=MemoryOutput)
    graph.nodes_of = nodes
    reviewed = ("review",) if nodes.review_every else ()
    for name, node in (
        ("decompose", nodes.decompose_node()),
        ("recall", nodes.recall_node()),
        ("read_chunk", nodes.read_chunk_node()),
        ("update_memory", nodes.update_memory_node()),
        ("finalize", nodes.finalize_node()),
    ):
        graph.add_node(name, node, retry_policy=retry_policy)
    if reviewed:
        # Where it goes is the reviewer's word alone.
        graph.add_node("review", nodes.review_node(), destinations=("read_chunk", "finalize"))
    # Nodes say themselves where to go, together with what they write. The edges say the same once
    # more: a state that was edited by hand (`update_state`) has only them.
    graph.add_edge(START, "decompose")
    graph.add_conditional_edges(
        "decompose", nodes.after_decompose, ["recall", "read_chunk", "finalize"]
    )
    graph.add_conditional_edges("recall", nodes.after_recall, ["read_chunk", "finalize"])
    graph.add_edge("read_chunk", "update_memory")
    graph.add_conditional_edges(
        "update_memory", nodes.after_update, [*reviewed, "read_chunk", "finalize"]
    )
    graph.add_conditional_edges("finalize", nodes.after_finalize, ["read_chunk", END])
    return graph


def create_memory_agent(
    model: str | BaseChatModel | ConnectedModel,
    *,
    settings: ReadingSettings | None = None,
    checkpointer: BaseCheckpointSaver[Any] | bool | None = None,
    document_dir: Path | str | None = None,
    response_format: type[BaseModel] | dict[str, Any] | None = None,
    window: int | None = None,
    count_tokens: Callable[[str], int] | None = None,
    retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY,
    review: Literal["memory"] | None = None,
    review_every: ReviewEvery = 1,
    name: str = "memory_agent",
) -> MemoryAgent:
    """The memory agent, compiled: `invoke({"question": ..., "documents": [...]})`.

    The arguments are those of `build_memory_graph`; `checkpointer` keeps each step, so that a
    reading survives a crash: with `durability="sync"` a kill repeats at most the open model call.
    """
    graph = build_memory_graph(
        model,
        settings=settings,
        document_dir=document_dir,
        response_format=response_format,
        window=window,
        count_tokens=count_tokens,
        retry_policy=retry_policy,
        review=review,
        review_every=review_every,
    )
    return graph.compile(checkpointer=checkpointer, name=name)


def read(
    question: str,
    documents: Sequence[Any] | Any,
    *,
    model: str | BaseChatModel | ConnectedModel = "embedded",
    instructions: str = "",
    **options: Any,
) -> dict[str, Any]:
    """One question over some documents, start to end: the one-shot form of the agent.

    `options` are those of `create_memory_agent`. What `connect` starts for this call is closed.
    """
    connected, agent = _agent_for(model, options)
    try:
        output: dict[str, Any] = agent.invoke(_input(question, documents, instructions))
        return output
    finally:
        if connected is not model:
            connected.close()


async def aread(
    question: str,
    documents: Sequence[Any] | Any,
    *,
    model: str | BaseChatModel | ConnectedModel = "embedded",
    instructions: str = "",
    **options: Any,
) -> dict[str, Any]:
    """`read` for async callers."""
    connected, agent = await asyncio.to_thread(_agent_for, model, options)
    try:
        output: dict[str, Any] = await agent.ainvoke(_input(question, documents, instructions))
        return output
    finally:
        if connected is not model:
            await asyncio.to_thread(connected.close)


def _agent_for(
    model: str | BaseChatModel | ConnectedModel, options: dict[str, Any]
) -> tuple[ConnectedModel, MemoryAgent]:
    connection = {key: options.pop(key) for key in ("window", "count_tokens") if key in options}
    connected = connect(model, **connection)
    try:
        return connected, create_memory_agent(connected, **options)
    except BaseException:
        if connected is not model:
            connected.close()
        raise


def _input(question: str, documents: Any, instructions: str) -> MemoryInput:
    given = MemoryInput(question=question, documents=documents)
    if instructions:
        given["instructions"] = instructions
    return given


def _unlimited(config: RunnableConfig | None) -> RunnableConfig:
    return {**(config or {}), "recursion_limit": _RECURSION_LIMIT}
