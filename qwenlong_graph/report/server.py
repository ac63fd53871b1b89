"""Threads of a LangGraph Server, by its own client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qwenlong_graph.errors import RunError, RunNotFoundError
from qwenlong_graph.report.sources import Reading, reading_of_thread

if TYPE_CHECKING:
    from langgraph.types import StateSnapshot

    from qwenlong_graph.documents.store import DocumentStore

__all__ = ["reading_of_server"]


def reading_of_server(
    url: str,
    thread_id: str,
    store: DocumentStore,
    *,
    headers: Mapping[str, str] | None = None,
    states_at_once: int = 100,
) -> Reading:
    """The newest question of a thread of the LangGraph Server at `url`.

    `thread_id` is a thread of `memory_agent` or `reviewed_agent`; one of `document_chat` keeps
    its readings in threads within. A key is taken from LANGGRAPH_API_KEY, as langgraph-sdk does,
    or from `headers`. `store` is where the server keeps its texts, if this machine has it; the
    quotes of the citations are in the thread.

    Raises:
        RunNotFoundError: the server has no such thread.
        RunFormatError: the thread is none of a memory agent.
        RunError: the server cannot be asked.
    """
    import httpx
    from langgraph_sdk import get_sync_client
    from langgraph_sdk.errors import LangGraphError, NotFoundError

    try:
        with get_sync_client(url=url, headers=dict(headers or {})) as client:
            history = _history(client, thread_id, states_at_once)
            return reading_of_thread(history, store, name=thread_id)
    except NotFoundError as error:
        raise RunNotFoundError(
            f"Writing a report: the LangGraph Server at {url} has no thread {thread_id!r}."
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL, LangGraphError, ValueError) as error:
        raise RunError(
            f"Writing a report: the LangGraph Server at {url} cannot be asked for thread "
            f"{thread_id!r} ({type(error).__name__}: {error}). Check the address and the id."
        ) from error


def _history(client: Any, thread_id: str, states_at_once: int) -> Iterator[StateSnapshot]:
    """The checkpoints, newest first, a page at a time."""
    before = None
    while True:
        page = client.threads.get_history(thread_id, limit=states_at_once, before=before)
        yield from map(_snapshot, page)
        if len(page) < states_at_once:
            return
        # Documented as a checkpoint; the server of `langgraph dev` takes it for a config.
        checkpoint = dict(page[-1]["checkpoint"])
        before = {**checkpoint, "configurable": checkpoint}


def _snapshot(state: Mapping[str, Any]) -> StateSnapshot:
    from langgraph.types import StateSnapshot

    values = state["values"] if isinstance(state["values"], dict) else {}
    return StateSnapshot(
        values=values,
        next=tuple(state.get("next") or ()),
        config={"configurable": dict(state.get("checkpoint") or {})},
        metadata=None,
        created_at=state.get("created_at"),
        parent_config=None,
        tasks=(),
        interrupts=tuple(state.get("interrupts") or ())
        or tuple(
            interrupt
            for task in state.get("tasks") or ()
            for interrupt in task.get("interrupts") or ()
        ),
    )
