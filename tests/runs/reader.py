"""A reading over SQLite that can be told to hang, and to fail, at a given call.

As a program: `python -m tests.runs.reader FOLDER HANGING_CALL` reads into FOLDER and hangs.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path

from langchain_core.documents import Document
from langgraph.types import RetryPolicy

from qwenlong_graph import ReadingSettings, create_memory_agent
from qwenlong_graph.errors import ModelUnavailableError
from qwenlong_graph.runs.checkpoints import open_checkpoints
from qwenlong_graph.testing.oracle import oracle
from qwenlong_graph.testing.scripted import Stall, scripted

FACT = "The widow Hale paid 318,000 crowns for the bridge at Orrin."
FILLER = "The winter was long and the traders stayed away from the coast. "
CONFIG = {"configurable": {"thread_id": "t"}}


def given(*, sentences: int = 400):
    half = FILLER * (sentences // 2)
    text = f"{half}{FACT} {half}"
    documents = [Document(text, metadata={"title": "annals"})]
    return {"question": "Who paid for the bridge?", "documents": documents}


def reader(folder: Path, saver, *, hang_at: int = 0, fail_at: int = 0):
    """An agent that logs the digest of each prompt to `calls` in `folder`, before it answers."""
    answer = oracle([FACT]).chat.replies
    calls = 0

    def reply(messages):
        nonlocal calls
        calls += 1
        digest = hashlib.sha256(str(messages[-1].content).encode()).hexdigest()
        with (folder / "calls").open("a") as log:
            log.write(digest + "\n")
        if calls == hang_at:
            return Stall(600)
        if calls == fail_at:
            return ModelUnavailableError("away")
        return answer(messages)

    return create_memory_agent(
        scripted(reply),
        settings=ReadingSettings(strategy="memory", chunk_tokens=200),
        document_dir=folder / "store",
        checkpointer=saver,
        retry_policy=RetryPolicy(max_attempts=1),
    )


def calls_of(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


async def read_and_hang(folder: Path, hang_at: int) -> None:
    async with open_checkpoints(folder / "run.sqlite") as saver:
        agent = reader(folder, saver, hang_at=hang_at)
        await agent.ainvoke(given(), CONFIG, durability="sync")


if __name__ == "__main__":
    asyncio.run(read_and_hang(Path(sys.argv[1]), int(sys.argv[2])))
