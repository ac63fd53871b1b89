"""Real hosts of other libraries: what each shows, answers, resumes and stops, sync and async.

`benchmarks/matrix.py` runs this file and prints the matrix of docs/composition.md.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl

from benchmarks.matrix import PAGE, PROPERTIES, ROOT, Cell, cells_on_page, rows_of
from qwenlong_graph.testing.scripted import Stall
from tests.agents.hosts import (
    CONFIG,
    FACT,
    HOSTS,
    QUESTION,
    TEXT,
    TITLE,
    Folder,
    Host,
    document,
    folder_of,
    invoke,
    memory_agent,
    with_host,
)

pytestmark = pytest.mark.contract

FORMS = ["sync", "async"]
CALL = 8
"""The call of the model at which a run is killed, drained or cancelled."""

RAN: dict[Cell, str] = {}
"""What this run found, as docs/composition.md is to show it."""

by_host = pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
by_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture
def found(request, record_property):
    """Takes a cell's text, for the page's test and for `benchmarks/matrix.py`."""

    def found(host: Host, form: str, text: str) -> None:
        cell = (host.name, form, request.function.__name__.removeprefix("test_"))
        RAN[cell] = text
        record_property("cell", [*cell, text])

    return found


@cache
def alone() -> tuple[list[Any], list[str]]:
    """The events of the memory agent without a host, and the calls of its model."""
    import tempfile

    with tempfile.TemporaryDirectory() as path:
        folder = Folder(Path(path))
        given = {"question": QUESTION, "documents": [document()]}
        events = list(memory_agent(folder).stream(given, stream_mode="custom"))
        return timeless(events), folder.lines("calls")


def timeless(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: event[key] for key in event if key != "seconds"} for event in events]


def assert_answered(host: Host, output: Any) -> str:
    """Whether the host was told the fact with where it stands; the cell's text."""
    ((title, start, end, quote),) = set(host.places(output))
    assert (title, quote) == (TITLE, FACT)
    assert TEXT[start:end] == FACT
    said = output["answer"] if "answer" in output else output["messages"][-1].text
    assert FACT in said
    return "1 true citation"


@by_form
@by_host
def test_progress(host, form, tmp_path, found):
    options = {"stream_mode": "custom", "subgraphs": host.is_seen_within}

    async def astream(graph):
        return [event async for event in graph.astream(host.given, CONFIG, **options)]

    streamed = with_host(
        form,
        host,
        Folder(tmp_path),
        lambda graph: list(graph.stream(host.given, CONFIG, **options)),
        astream,
    )
    events = [event for _, event in streamed] if host.is_seen_within else streamed
    expected, _ = alone()
    assert len(expected) > 50
    more = {} if host.tool_call_id is None else {"tool_call_id": host.tool_call_id}
    assert timeless(events) == [{**event, **more} for event in expected]
    within = " (`subgraphs=True`)" if host.is_seen_within else ""
    found(host, form, f"{len(events)} of {len(expected)} events{within}")


@by_form
@by_host
def test_answer(host, form, tmp_path, found):
    folder = Folder(tmp_path)
    output = invoke(form, host, folder, host.given)
    cell = assert_answered(host, output)
    _, calls = alone()
    assert folder.lines("calls") == calls
    assert len(calls) > CONFIG["recursion_limit"]
    found(host, form, cell)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Form -> folder in which a process ran all hosts until it was killed amid a call of each."""
    folders: dict[str, Path] = {}

    def killed(form: str) -> Path:
        if form not in folders:
            folder = folders[form] = tmp_path_factory.mktemp(form)
            command = [sys.executable, "-m", "tests.agents.hosts", str(folder), form, str(CALL)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "all hang\n"
            finally:
                process.kill()
                process.communicate()
        return folders[form]

    return killed


@by_form
@by_host
def test_crash(host, form, killed, found):
    folder = folder_of(host, killed(form))
    assert len(folder.lines("calls")) == CALL
    handed_on = folder.lines("host calls")
    output = invoke(form, host, folder, None)
    assert_answered(host, output)
    _, calls = alone()
    repeated = len(folder.lines("calls")) - len(calls)
    assert set(folder.lines("calls")) == set(calls)
    assert repeated == 1
    # Nor does the host's own model hand the question on again.
    assert folder.lines("host calls")[: len(handed_on)] == handed_on
    assert len(folder.lines("host calls")) == (len(handed_on) and len(handed_on) + 1)
    found(host, form, f"{repeated} of {len(calls)} calls repeated")


@by_form
@by_host
def test_cancellation(host, form, tmp_path, found):
    folder = Folder(tmp_path)
    if form == "sync":
        drained(host, folder)
        found(host, form, "drained after the open call")
    else:
        asyncio.run(cancelled(host, folder))
        found(host, form, "the open call is cancelled")
    calls = folder.lines("calls")
    assert len(calls) == CALL
    assert_answered(host, invoke(form, host, folder, None))
    assert len(folder.lines("calls")) == len(alone()[1]) + (form == "async")


def drained(host: Host, folder: Folder) -> None:
    """A sync call cannot be broken off; no further one begins."""
    control = RunControl()

    def drain(number: int) -> None:
        if number == CALL:
            control.request_drain()

    def run(graph):
        with pytest.raises(GraphDrained):
            graph.invoke(host.given, CONFIG, durability="sync", control=control)

    with_host("sync", host, folder, run, None, on_call=drain)


async def cancelled(host: Host, folder: Folder) -> None:
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    is_open = asyncio.Event()

    def hang(number: int) -> Stall | None:
        if number < CALL:
            return None
        is_open.set()
        return Stall(600)

    async with AsyncSqliteSaver.from_conn_string(folder.database) as saver:
        graph = host.build(memory_agent(folder, on_call=hang), folder, saver)
        running = asyncio.create_task(graph.ainvoke(host.given, CONFIG, durability="sync"))
        waiting = asyncio.create_task(is_open.wait())
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        assert not running.done(), running.exception()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        # What still writes a checkpoint comes to its end; a call of the model would hang on.
        if left := asyncio.all_tasks() - {asyncio.current_task()}:
            _, hanging = await asyncio.wait(left, timeout=60)
            assert not hanging


def test_the_page_shows_what_this_run_found():
    page = cells_on_page()
    assert set(page) == {
        (host.name, form, name) for host in HOSTS for form in FORMS for name in PROPERTIES
    }
    if not RAN:
        pytest.skip("no cell was run before this test")
    assert {cell: page[cell] for cell in RAN} == RAN


def test_the_tests_that_the_page_names_are_there():
    named = re.findall(r"`(tests/[\w/.]+)`", PAGE.read_text("utf-8"))
    assert len(named) >= 3
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_a_page_that_shows_something_else_is_seen(tmp_path):
    ran = dict.fromkeys(cells_on_page(), "0 of 58 events")
    page = tmp_path / "page.md"
    page.write_text("\n".join(rows_of(ran)))
    assert cells_on_page(page) == ran
