"""A reading whose caller stops listening goes on later, and ends as one that was never stopped."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from langgraph.checkpoint.serde.types import ERROR

from qwenlong_graph.runs.checkpoints import open_checkpoints, open_sync_checkpoints
from tests.runs.reader import CONFIG, FACT, calls_of, given, reader

pytestmark = pytest.mark.contract

# Read in three chunks, of which the first holds nothing.
DOCUMENT, CHUNKS = given(sentences=40), 3
MODES = ["custom", "values"]


@pytest.mark.parametrize("chunk", [1, CHUNKS])
@pytest.mark.parametrize("turns", range(12))
async def test_stopped_while_a_step_is_being_written(tmp_path, chunk, turns):
    path, heard = tmp_path / "run.sqlite", 0
    async with open_checkpoints(path) as saver:
        events = reader(tmp_path, saver).astream(
            DOCUMENT, CONFIG, durability="sync", stream_mode=MODES
        )
        async with contextlib.aclosing(events):
            async for mode, event in events:
                heard += mode == "custom" and event["type"] == "memory_updated"
                if heard == chunk:
                    # The node goes on meanwhile, and is at its writes or its edge.
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    break
    async with open_checkpoints(path) as saver:
        output = await reader(tmp_path, saver).ainvoke(None, CONFIG, durability="sync")
    assert output["answer"] == FACT
    assert output["usage"]["steps"] == CHUNKS
    # The question is split by one call and answered by another; one may have been repeated.
    assert len(calls_of(tmp_path)) <= CHUNKS + 3


def test_of_a_task_that_was_cut_off_only_its_error_is_kept(tmp_path):
    cut_off = [("memory", "half"), (ERROR, asyncio.CancelledError())]
    whole = [("memory", "all"), ("branch:to:finalize", None)]
    with open_sync_checkpoints(tmp_path / "run.sqlite") as saver:
        reader(tmp_path, saver).invoke(DOCUMENT, CONFIG)
        config = saver.get_tuple(CONFIG).config
        for writes, task in ((cut_off, "cut off"), (whole, "whole")):
            saver.put_writes(config, writes, task)
        kept = saver.get_tuple(CONFIG).pending_writes
    assert [(task, channel) for task, channel, _ in kept] == [
        ("cut off", ERROR),
        ("whole", "memory"),
        ("whole", "branch:to:finalize"),
    ]
