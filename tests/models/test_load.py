"""Many documents at once on one server: the limit holds, nobody starves, nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from statistics import mean

import pytest

from qwenlong_graph.errors import ModelOverloadedError
from qwenlong_graph.models.limiter import Limiter, limiter_for, retry_after_s
from qwenlong_graph.models.tgi import ChatTGI
from qwenlong_graph.testing.tgi import Fail, TgiDouble, serve, small_tokenizer

pytestmark = pytest.mark.contract

DOCUMENTS, TURNS, LIMIT = 64, 4, 8


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def double() -> TgiDouble:
    return TgiDouble(lambda prompt: "Noted.", first_token_s=0.02, batch_size=DOCUMENTS)


async def ask(chat: ChatTGI, limiter: Limiter, document: int) -> None:
    async with limiter.aslot():
        await chat.ainvoke(f"Document {document} ends.")
    limiter.succeeded()


async def read(chat: ChatTGI, limiter: Limiter, document: int, *, turns: int = TURNS) -> None:
    for _ in range(turns):
        await ask(chat, limiter, document)


def turns_of(double: TgiDouble) -> list[list[int]]:
    """At which places in the order of requests each document had its turns."""
    places: list[list[int]] = [[] for _ in range(DOCUMENTS)]
    for place, prompt in enumerate(double.prompts):
        places[int(prompt.split("Document ")[1].split(" ")[0])].append(place)
    return places


def gaps(places: list[list[int]]) -> Iterator[int]:
    for mine in places:
        yield from (after - before for before, after in pairwise(mine))


async def test_no_more_requests_are_in_flight_than_the_limit_and_nobody_starves(
    double: TgiDouble, tokenizer: str
) -> None:
    async with serve(double) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer)
        limiter = limiter_for(url, limit=LIMIT)
        await asyncio.gather(*(read(chat, limiter, document) for document in range(DOCUMENTS)))
        await chat.aclose()
    assert double.in_flight_max == LIMIT
    assert [len(mine) for mine in turns_of(double)] == [TURNS] * DOCUMENTS
    waits = list(gaps(turns_of(double)))
    assert max(waits) <= 2 * mean(waits)


async def test_threads_and_an_event_loop_share_the_limit(double: TgiDouble, tokenizer: str) -> None:
    half = DOCUMENTS // 2

    def in_thread(chat: ChatTGI, limiter: Limiter, document: int) -> None:
        for _ in range(TURNS):
            with limiter.slot():
                chat.invoke(f"Document {document} ends.")
            limiter.succeeded()

    async with serve(double) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer)
        limiter = limiter_for(url, limit=LIMIT)
        with ThreadPoolExecutor(half) as pool:
            loop = asyncio.get_running_loop()
            threads = [
                loop.run_in_executor(pool, in_thread, chat, limiter, document)
                for document in range(half)
            ]
            tasks = [read(chat, limiter, document) for document in range(half, DOCUMENTS)]
            await asyncio.gather(*threads, *tasks)
        chat.close()
        await chat.aclose()
    assert double.in_flight_max == LIMIT
    waits = list(gaps(turns_of(double)))
    assert max(waits) <= 2 * mean(waits)


async def test_memory_stays_flat_and_no_waiter_is_left_behind(
    double: TgiDouble, tokenizer: str
) -> None:
    async with serve(double) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer)
        limiter = limiter_for(url, limit=LIMIT)

        async def held_after(turns: int) -> int:
            await asyncio.gather(
                *(read(chat, limiter, document, turns=turns) for document in range(DOCUMENTS))
            )
            gc.collect()
            # The double itself remembers what it was asked.
            package = tracemalloc.Filter(True, "*/qwenlong_graph/models/*", all_frames=True)
            found = tracemalloc.take_snapshot().filter_traces([package])
            return sum(trace.size for trace in found.traces)

        tracemalloc.start(4)
        try:
            await held_after(2)  # what is made once
            first = await held_after(1)
            then = await held_after(2)
        finally:
            tracemalloc.stop()
        await chat.aclose()
    assert (limiter.in_flight, limiter.waiting) == (0, 0)
    assert then <= first + 15_000


async def test_a_server_that_takes_less_than_was_told_is_asked_for_less(tokenizer: str) -> None:
    double = TgiDouble(
        lambda prompt: "Noted.", first_token_s=0.02, batch_size=64, max_concurrent_requests=2
    )

    async def patiently(chat: ChatTGI, limiter: Limiter, document: int) -> None:
        for _ in range(200):
            try:
                await ask(chat, limiter, document)
            except ModelOverloadedError as error:
                limiter.overloaded(retry_after_s(error))
                await asyncio.sleep(0.05)
            else:
                return
        pytest.fail("never answered")

    async with serve(double) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer)
        limiter = limiter_for(url, limit=LIMIT)
        await asyncio.gather(*(patiently(chat, limiter, document) for document in range(16)))
        await chat.aclose()
    assert double.answered - double.refused == 16
    assert double.refused > 0
    assert limiter.limit < LIMIT


async def test_what_a_server_asks_to_wait_holds_back_every_reading(tokenizer: str) -> None:
    double = TgiDouble(lambda prompt: "Noted.", faults={1: Fail(429, retry_after_s=0.3)})
    asked: list[float] = []
    async with serve(double) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer)
        limiter = limiter_for(url, limit=LIMIT)
        loop = asyncio.get_running_loop()
        with pytest.raises(ModelOverloadedError) as refused:
            await ask(chat, limiter, 0)
        began = loop.time()
        limiter.overloaded(retry_after_s(refused.value))

        async def another(document: int) -> None:
            async with limiter.aslot():
                asked.append(loop.time() - began)
                await chat.ainvoke(f"Document {document} ends.")

        await asyncio.gather(*(another(document) for document in range(1, 5)))
        await chat.aclose()
    assert len(asked) == 4
    assert min(asked) >= 0.29  # clocks of threads and loops may differ by a little
