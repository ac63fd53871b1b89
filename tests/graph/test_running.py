"""A thread that is being read: no edit is lost in it, and no second call mixes in."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl

from qwenlong_graph.errors import RunLockedError
from tests.runs.reader import CONFIG, FACT, given, reader

pytestmark = pytest.mark.contract

DOCUMENT = given(sentences=40)
OTHER = {"configurable": {"thread_id": "other"}}


def test_an_edit_while_it_is_read_is_refused_and_taken_when_it_has_stopped(tmp_path):
    agent, control = reader(tmp_path, InMemorySaver()), RunControl()
    refused = 0
    with contextlib.suppress(GraphDrained):
        for event in agent.stream(DOCUMENT, CONFIG, stream_mode="custom", control=control):
            if event["type"] == "memory_updated":
                with pytest.raises(RunLockedError, match="request_drain"):
                    agent.update_state(CONFIG, {"memory": "lost"})
                refused += 1
                control.request_drain()
    assert refused == 1
    agent.update_state(CONFIG, {"plan": "look for mills"})
    assert agent.get_state(CONFIG).values["plan"] == "look for mills"
    assert agent.invoke(None, CONFIG)["answer"] == FACT


async def test_so_it_is_for_async_callers(tmp_path):
    agent = reader(tmp_path, InMemorySaver())
    async for event in agent.astream(DOCUMENT, CONFIG, stream_mode="custom"):
        if event["type"] == "chunk_read":
            with pytest.raises(RunLockedError):
                await agent.aupdate_state(CONFIG, {"memory": "lost"})
    await agent.aupdate_state(CONFIG, {"plan": "done"})


async def test_two_calls_at_once_in_one_thread_are_refused_and_in_two_are_not(tmp_path):
    agent = reader(tmp_path, InMemorySaver())
    calls = [agent.ainvoke(DOCUMENT, config) for config in (CONFIG, CONFIG, OTHER)]
    first, second, third = await asyncio.gather(*calls, return_exceptions=True)
    locked = [one for one in (first, second) if isinstance(one, RunLockedError)]
    assert len(locked) == 1
    assert "another thread_id" in str(locked[0])
    (answered,) = (one for one in (first, second) if one is not locked[0])
    assert answered["answer"] == third["answer"] == FACT


def test_a_stream_that_was_left_frees_its_thread(tmp_path):
    agent = reader(tmp_path, InMemorySaver())
    for _ in agent.stream(DOCUMENT, CONFIG, stream_mode="custom"):
        break
    assert agent.invoke(DOCUMENT, CONFIG)["answer"] == FACT
