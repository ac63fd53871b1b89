"""A reading whose caller stops listening goes on later, whatever checkpointer keeps it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from tests.runs.reader import CONFIG, FACT, given, reader

pytestmark = pytest.mark.contract

DOCUMENT, CHUNKS = given(sentences=40), 3


@pytest.mark.parametrize("chunk", [1, CHUNKS])
@pytest.mark.parametrize("turns", range(12))
async def test_stopped_while_a_step_is_being_written(tmp_path, chunk, turns):
    saver, heard = InMemorySaver(), 0
    events = reader(tmp_path, saver).astream(
        DOCUMENT, CONFIG, durability="sync", stream_mode="custom"
    )
    async with contextlib.aclosing(events):
        async for event in events:
            heard += event["type"] == "memory_updated"
            if heard == chunk:
                # The node goes on meanwhile, and is at its writes or its edge.
                for _ in range(turns):
                    await asyncio.sleep(0)
                break
    output = await reader(tmp_path, saver).ainvoke(None, CONFIG, durability="sync")
    assert output["answer"] == FACT
    assert output["usage"]["steps"] == CHUNKS
