"""A reading whose every step is kept: what all who keep runs on disk have in common."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwenlong_graph.errors import DocumentError, RunError, SetupError

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import BaseCheckpointSaver
    from langgraph.runtime import RunControl
    from langgraph.types import Command

    from qwenlong_graph.graph.agent import MemoryAgent
    from qwenlong_graph.graph.state import MemoryInput
    from qwenlong_graph.runs.directory import Run, RunRecord
    from qwenlong_graph.runs.journal import Journal
    from qwenlong_graph.types import DocumentReference

__all__ = ["OnEvent", "read_kept", "resumed_event", "stream_events", "to_checkpoint"]

Event = dict[str, Any]
OnEvent = Callable[[Event], Awaitable[None]]

_JOURNALLED = frozenset({"memory_updated", "retry", "server_failed", "reviewed", "answered"})


async def read_kept(
    run: Run,
    agent_for: Callable[[BaseCheckpointSaver[Any] | None], MemoryAgent],
    given: MemoryInput,
    *,
    on_event: OnEvent,
    record: RunRecord | None = None,
    accepts_changes: bool = False,
    control: RunControl | None = None,
    decision: Mapping[str, Any] | None = None,
) -> Mapping[str, Any]:
    """The agent's output: of `given`, or of what the run holds already, from where it stands.

    The caller holds the run's lock. `record` is how the run goes on, written once the agent takes
    it. Events reach the journal before `on_event`. `decision` answers the review that the run is
    paused for; where it pauses again, the output holds `__interrupt__`.

    Raises:
        RunError: there is a decision, and no review that waits for one.
    """
    is_taken = record is None or record == run.record
    config: RunnableConfig = {"configurable": {"thread_id": run.run_id}}
    if accepts_changes:
        config["configurable"]["accept_changes"] = True
    async with run.checkpoints() as saver:
        agent = agent_for(saver)
        held = await agent.aget_state(config)
        values = held.values
        if decision is not None and not held.interrupts:
            raise RunError(
                f"Run {run.run_id} is not paused for a review, so there is nothing to decide. "
                "Resume it without a decision."
            )
        journal = run.journal()
        for moved in to_checkpoint(journal, values, is_paused=bool(held.interrupts)):
            await on_event(moved)

        async def keep(event: Event) -> None:
            nonlocal is_taken
            if not is_taken and record:
                run.rerecord(record)
                is_taken = True
            if event["type"] in _JOURNALLED:
                journal.append(event)
            await on_event(event)

        with _stop_told(journal):
            output = await stream_events(
                agent,
                _input(given, values, decision),
                config,
                on_event=keep,
                durability="sync",
                control=control,
            )
        # An event is lost where a kill came between a step and its line.
        held = await agent.aget_state(config)
        for moved in to_checkpoint(journal, held.values, is_paused=bool(held.interrupts)):
            await on_event(moved)
    return output


@contextlib.contextmanager
def _stop_told(journal: Journal) -> Iterator[None]:
    """Why a reading ends early goes to the journal, if it can still be written.

    One that cannot go on as asked, a document being gone or a setting another, leaves no trace.
    """
    from langgraph.errors import GraphDrained

    try:
        yield
    except (DocumentError, RunError, SetupError):
        raise
    except BaseException as error:
        is_interrupted = isinstance(error, (GraphDrained, asyncio.CancelledError))
        with contextlib.suppress(RunError):
            journal.append(
                {
                    "type": "stopped",
                    "error": "interrupted" if is_interrupted else type(error).__name__,
                    "message": "" if is_interrupted else str(error),
                }
            )
        raise


def _input(given: MemoryInput, values: Mapping[str, Any], decision: Any) -> Any:
    from langgraph.types import Command

    if decision is not None:
        return Command(resume=dict(decision))
    return None if values else given


async def stream_events(
    agent: MemoryAgent,
    given: MemoryInput | Command[Any] | None,
    config: RunnableConfig | None = None,
    *,
    on_event: OnEvent,
    **options: Any,
) -> Mapping[str, Any]:
    """The agent's output, its events told on the way. `options` are those of `astream`.

    Async, because nothing can stop LangGraph's sync nodes: they would wait for the open model
    call, which takes minutes on a large model.
    """
    output: Mapping[str, Any] = {}
    events = agent.astream(given, config, stream_mode=["custom", "values"], **options)
    async with contextlib.aclosing(events):
        async for mode, event in events:
            if mode == "custom":
                await on_event(event)
            else:
                output = event
    return output


def to_checkpoint(
    journal: Journal, values: Mapping[str, Any], *, is_paused: bool = False
) -> Iterator[Event]:
    """Brings the journal to the checkpoint; an event tells where a damaged one was moved to."""
    if moved_to := journal.follow(values, is_paused=is_paused):
        yield {"type": "journal_moved", "moved_to": str(moved_to)}


def resumed_event(
    values: Mapping[str, Any], references: Sequence[DocumentReference]
) -> dict[str, Any]:
    """An event for whoever shows progress: how far the run was."""
    cursor = values["cursor"]
    done = sum(reference["chars"] for reference in references[: cursor["document"]])
    return {
        "type": "resumed",
        "strategy": values["setup"]["strategy"],
        "chars": sum(reference["chars"] for reference in references),
        "chars_read": done + cursor["start_char"],
        "step": values["step"],
        "steps": values["steps"],
        "evidence": len(values["evidence"]),
    }
