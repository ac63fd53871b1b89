"""A cancelled reading lets go of its file, whatever LangGraph was writing."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from qwenlong_graph.runs.checkpoints import open_checkpoints

pytestmark = pytest.mark.contract

CONFIG = {"configurable": {"thread_id": "mill", "checkpoint_ns": ""}}


def write(saver, kind):
    if kind == "checkpoint":
        return saver.aput(CONFIG, empty_checkpoint(), {"step": 1}, {})
    config = {"configurable": {**CONFIG["configurable"], "checkpoint_id": "1"}}
    return saver.aput_writes(config, [("memory", "x" * 20_000)], "task")


@pytest.mark.parametrize("turns", range(12))
@pytest.mark.parametrize("is_cancelled", [True, False])
@pytest.mark.parametrize("kind", ["checkpoint", "writes"])
async def test_a_write_left_behind_does_not_lock_the_file(tmp_path, kind, is_cancelled, turns):
    path = tmp_path / "checkpoints.sqlite"
    async with open_checkpoints(path) as saver:
        await saver.setup()
        left = asyncio.create_task(write(saver, kind))
        # Somewhere between its beginning and its commit.
        for _ in range(turns):
            await asyncio.sleep(0.0002)
        if is_cancelled:
            left.cancel()
            await asyncio.wait({left})
    async with open_checkpoints(path) as saver:
        await saver.aput(CONFIG, empty_checkpoint(), {"step": 2}, {})
        assert await saver.aget_tuple(CONFIG) is not None
    with contextlib.suppress(asyncio.CancelledError, ValueError):
        await left
