"""The async forms keep the event loop free, and leave nothing behind when they are stopped."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest
from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document

from qwenlong_graph import ReadingSettings, aread
from qwenlong_graph.testing.oracle import oracle
from qwenlong_graph.testing.scripted import Stall, count_words, scripted
from tests.graph.test_agent import FACT, FILLER, QUESTION, SPLIT, agent_with, reply

PAYMENT_SCHEMA = {"type": "object", "properties": {"payer": {"type": "string"}}}


class Watch:
    """Counts calls, and those of them made on the thread of a running event loop."""

    def __init__(self) -> None:
        self.calls = 0
        self.on_the_loop = 0

    def saw_a_call(self) -> None:
        self.calls += 1
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        self.on_the_loop += 1

    def count_tokens(self, text: str) -> int:
        self.saw_a_call()
        return count_words(text)


class WatchedLoader(BaseLoader):
    """Gives one document, and tells on which thread it was asked for it."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def lazy_load(self) -> Iterator[Document]:
        self.watch.saw_a_call()
        yield Document(FILLER * 30 + FACT, metadata={"title": "annals"})


def watched(strategy: str, protocol: str, counting: Watch):
    settings = ReadingSettings(strategy=strategy, protocol=protocol, chunk_tokens=200)
    if strategy == "full":
        replies = ["not that form", '{"payer": "widow Hale"}']
        return scripted(replies, count_tokens=counting.count_tokens), settings
    return oracle([FACT], count_tokens=counting.count_tokens), settings


@pytest.mark.parametrize("strategy", ["memory", "full"])
@pytest.mark.parametrize("protocol", ["rewrite", "extract"])
def test_counting_and_loading_stay_off_the_event_loop(tmp_path, strategy, protocol):
    counting, loading = Watch(), Watch()
    model, settings = watched(strategy, protocol, counting)
    form = {"response_format": PAYMENT_SCHEMA} if strategy == "full" else {}
    agent = agent_with(model, tmp_path, settings=settings, **form)
    given = {"question": QUESTION, "documents": [WatchedLoader(loading)]}
    assert asyncio.run(agent.ainvoke(given))["found"]
    assert counting.calls > 5
    assert loading.calls == 1
    assert (counting.on_the_loop, loading.on_the_loop) == (0, 0)


def test_every_async_way_to_call_keeps_the_event_loop_free(tmp_path):
    counting, loading = Watch(), Watch()
    model, settings = watched("memory", "rewrite", counting)
    agent = agent_with(model, tmp_path, settings=settings)
    given = {"question": QUESTION, "documents": [WatchedLoader(loading)]}

    async def in_every_way() -> None:
        async for _ in agent.astream(given, stream_mode="custom"):
            pass
        await agent.abatch([given, given])
        options = {"model": model, "settings": settings, "document_dir": tmp_path / "store"}
        await aread(QUESTION, [WatchedLoader(loading)], **options)

    asyncio.run(in_every_way())
    assert loading.calls == 4
    assert (counting.on_the_loop, loading.on_the_loop) == (0, 0)


def stalled(tmp_path):
    """An agent whose model answers once and then falls silent."""
    model = scripted([SPLIT, reply(f"- {FACT}"), Stall(60)])
    given = {"question": QUESTION, "documents": [Document(FACT + " " + FILLER * 25)]}
    return model, agent_with(model, tmp_path), given


async def until_silent(model) -> None:
    while len(model.chat.prompts) < 3:
        await asyncio.sleep(0.01)


def others() -> set[asyncio.Task]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def test_cancelling_leaves_no_task_behind(tmp_path):
    model, agent, given = stalled(tmp_path)
    before = others()
    task = asyncio.create_task(agent.ainvoke(given))
    await until_silent(model)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert others() == before


async def test_leaving_a_stream_early_leaves_no_task_behind(tmp_path):
    _, agent, given = stalled(tmp_path)
    before = others()
    events = agent.astream(given, stream_mode="custom")
    async for event in events:
        if event["type"] == "memory_updated":
            break
    await events.aclose()
    assert others() == before


def test_an_interrupt_from_the_keyboard_ends_the_run_and_its_tasks(tmp_path):
    model, agent, given = stalled(tmp_path)
    left: set[asyncio.Task] = set()

    async def interrupted() -> None:
        before = others()

        async def press() -> None:
            await until_silent(model)
            signal.raise_signal(signal.SIGINT)

        pressing = asyncio.create_task(press())
        try:
            await agent.ainvoke(given)
        finally:
            await pressing
            left.update(others() - before)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(interrupted())
    assert left == set()
    assert len(model.chat.prompts) == 3
