"""What new input does to a thread whose reading is not finished: it never throws it away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qwenlong_graph.errors import RunError

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.types import StateSnapshot

__all__ = ["could_restart", "input_to_go_on"]


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
