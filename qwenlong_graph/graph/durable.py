"""What new input, and an edit, do to a thread whose reading is not finished: nothing is lost."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qwenlong_graph.errors import RunError, RunLockedError

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.types import StateSnapshot

__all__ = ["being_read", "could_restart", "input_to_go_on", "require_not_being_read"]

_lock = threading.Lock()
_being_read: set[tuple[int, str]] = set()


@contextlib.contextmanager
def being_read(saver: object, config: RunnableConfig) -> Iterator[None]:
    """Marks a thread as being read, in this process.

    Raises:
        RunLockedError: it is already. LangGraph would read it twice, and mix the two.
    """
    key = _key(saver, config)
    if key is None:
        yield
        return
    with _lock:
        if key in _being_read:
            raise RunLockedError(
                f"Thread {key[1]!r} is being read by another call. Wait for its answer, close its "
                "stream, or ask under another thread_id."
            )
        _being_read.add(key)
    try:
        yield
    finally:
        with _lock:
            _being_read.discard(key)


def require_not_being_read(saver: object, config: RunnableConfig) -> None:
    """Before an edit of the state: LangGraph would lose it without a word in a running thread.

    Knows of this process alone.

    Raises:
        RunLockedError: the thread is being read.
    """
    key = _key(saver, config)
    with _lock:
        if key in _being_read:
            raise RunLockedError(
                f"Thread {config['configurable']['thread_id']!r} is being read, and its next step "
                "would overwrite an edit. Stop it first (RunControl.request_drain), wait for a "
                'review (review="memory"), or wait for its answer.'
            )


def _key(saver: object, config: RunnableConfig) -> tuple[int, str] | None:
    """None where a parent graph keeps the state, or nothing does."""
    configurable = config.get("configurable", {})
    if saver is None or isinstance(saver, bool) or configurable.get("checkpoint_ns"):
        return None
    thread_id = configurable.get("thread_id")
    return None if thread_id is None else (id(saver), str(thread_id))


def could_restart(given: Any, config: RunnableConfig) -> bool:
    """Whether a call may meet an unfinished reading in its thread.

    Not where it forks a thread's history, nor within a parent graph, which keeps its own state.
    """
    configurable = config.get("configurable", {})
    return (
        isinstance(given, Mapping)
        and "question" in given
        and configurable.get("thread_id") is not None
        and not configurable.get("checkpoint_id")
        and not configurable.get("checkpoint_ns")
    )


def input_to_go_on(given: Mapping[str, Any], snapshot: StateSnapshot) -> Mapping[str, Any] | None:
    """What to call LangGraph with: None where the thread is in the middle of what is asked for.

    Left to itself LangGraph would start over from an empty memory. `given` holds references.

    Raises:
        RunError: the thread is in the middle of another reading.
    """
    held = snapshot.values
    # `next` alone is empty after some kills.
    is_finished = not (snapshot.next or snapshot.tasks)
    if is_finished or not held.get("step"):
        return given
    if _is_asked_for(given, held):
        return None
    thread_id = snapshot.config["configurable"]["thread_id"]
    raise RunError(
        f"Thread {thread_id!r} holds an unfinished reading for another question or other "
        f"documents, {held['step']} chunks of about {held['steps']} in, which new input would "
        f"throw away. Finish it with None as the input, ask this under another thread_id, or drop "
        f"it with the checkpointer's delete_thread."
    )


def _is_asked_for(given: Mapping[str, Any], held: Mapping[str, Any]) -> bool:
    documents = given.get("documents")
    instructions = (given["instructions"] or "").strip()
    return (
        (given["question"] or "").strip() == held["question"]
        and (documents is None or documents == held["documents"])
        # Without any given, those held were split off the question by the model.
        and (not instructions or instructions == held["instructions"])
    )
