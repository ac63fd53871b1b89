"""The memory agent for LangGraph Server: what `langgraph.json` names.

The server calls the factories here for each run, and to show schemas and states. Nothing is read
from the environment, and no model is connected to, before a run needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenlong_graph.agents.messages import MessagesAgent, create_messages_agent
from qwenlong_graph.agents.sources import AllowedRoots
from qwenlong_graph.documents.store import DocumentStore
from qwenlong_graph.errors import (
    ContextOverflowError,
    ModelRefusedError,
    ModelUnavailableError,
    QwenLongGraphError,
    RunChangedError,
)
from qwenlong_graph.graph.agent import MemoryAgent, build_memory_graph
from qwenlong_graph.models.connect import COMMON_SPECIAL_TOKENS, ConnectedModel, connect

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langgraph_sdk.runtime import ServerRuntime

__all__ = [
    "MODEL_VARIABLE",
    "ROOTS_VARIABLE",
    "ServedGraphs",
    "document_chat",
    "memory_agent",
    "reviewed_agent",
]

MODEL_VARIABLE = "QWENLONG_GRAPH_MODEL"
ROOTS_VARIABLE = "QWENLONG_GRAPH_ROOTS"

# After these a new connection may find what the old one did not: a restarted or another model.
_STALE = (ModelUnavailableError, ModelRefusedError, ContextOverflowError, RunChangedError)


class ServedGraphs:
    """Graphs for LangGraph Server over one model; its methods are the factories.

    `model` is what `connect` takes; None takes QWENLONG_GRAPH_MODEL, else "embedded". Documents
    come as texts within the input. Files are read by name only below `roots`; None takes the
    directories of QWENLONG_GRAPH_ROOTS, separated as in PATH. `options` are those of
    `build_memory_graph`. The model is connected to by the first run, and anew by the next one
    after it failed; a connection that was dropped is not closed, since other runs may hold it.
    Errors reach clients as `RuntimeError`s that begin with their name.
    """

    def __init__(
        self,
        model: str | BaseChatModel | ConnectedModel | None = None,
        *,
        roots: Iterable[str | Path] | None = None,
        **options: Any,
    ) -> None:
        self._model = model
        self._roots = None if roots is None else list(roots)
        self._connection = {
            name: options.pop(name) for name in ("window", "count_tokens") if name in options
        }
        self._options = options
        self._lock = threading.Lock()
        self._agent: MemoryAgent | None = None

    @contextlib.asynccontextmanager
    async def memory_agent(self, runtime: ServerRuntime[Any]) -> AsyncIterator[MemoryAgent]:
        """The graph that takes a question and documents."""
        async with self._held(runtime) as agent:
            yield agent

    @contextlib.asynccontextmanager
    async def document_chat(self, runtime: ServerRuntime[Any]) -> AsyncIterator[MessagesAgent]:
        """The graph that talks in messages, with documents attached to them."""
        async with self._held(runtime) as agent:
            yield await asyncio.to_thread(create_messages_agent, agent)

    @contextlib.asynccontextmanager
    async def _held(self, runtime: ServerRuntime[Any]) -> AsyncIterator[MemoryAgent]:
        if runtime.execution_runtime is None:
            # To show schemas and states, its nodes and edges are enough.
            yield await asyncio.to_thread(self._built, _UNCONNECTED)
            return
        agent = None
        try:
            agent = await asyncio.to_thread(self._connected)
            yield agent
        except QwenLongGraphError as error:
            if isinstance(error, _STALE):
                self._drop(agent)
            # The server tells clients what Python's own errors say, and of others the name only.
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

    def _connected(self) -> MemoryAgent:
        with self._lock:
            if self._agent is None:
                target = self._model or os.environ.get(MODEL_VARIABLE) or "embedded"
                self._agent = self._built(connect(target, **self._connection))
            return self._agent

    def _drop(self, agent: MemoryAgent | None) -> None:
        with self._lock:
            if self._agent is agent:
                self._agent = None

    def _built(self, model: ConnectedModel) -> MemoryAgent:
        graph = build_memory_graph(model, **self._options)
        roots = self._roots
        if roots is None:
            named = os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep)
            roots = [Path(name) for name in named if name.strip()]
        nodes = graph.nodes_of
        nodes.store = DocumentStore(nodes.store.root, admit=AllowedRoots(roots).resolve)
        return graph.compile(name="memory_agent")


# Never asked: it stands where a model will be.
_UNCONNECTED = ConnectedModel(
    chat=None,  # type: ignore[arg-type]
    window=8_192,
    count_tokens=len,
    special_tokens=COMMON_SPECIAL_TOKENS,
    engine="none",
    concurrency=1,
    model_name="none",
)

_from_environment = ServedGraphs()
memory_agent = _from_environment.memory_agent
document_chat = _from_environment.document_chat
reviewed_agent = ServedGraphs(review="memory", review_every="on-change").memory_agent
