"""Readings of library users over LangGraph's own savers on files: crash, go on, ask again.

As a program: `python -m tests.graph.test_durable FOLDER sync|async HANGING_CALL` reads and hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from qwenlong_graph.errors import ModelUnavailableError, RunError
from tests.runs.reader import CONFIG, FACT, FILLER, calls_of, given, reader

FAILING = 8
pytestmark = pytest.mark.contract


@dataclass
class Reader:
    """Each call is by a new agent over a new connection to the same file, as by a new process."""

    folder: Path
    form: str

    def invoke(self, value, config=CONFIG, **options):
        return self._with_agent(
            lambda agent: agent.invoke(value, config, durability="sync"),
            lambda agent: agent.ainvoke(value, config, durability="sync"),
            **options,
        )

    def state(self):
        return self._with_agent(
            lambda agent: agent.get_state(CONFIG), lambda agent: agent.aget_state(CONFIG)
        ).values

    def fail(self, value=None):
        with contextlib.suppress(ModelUnavailableError):
            self.invoke(value or given(), fail_at=FAILING)
            raise AssertionError("it did not fail")

    @property
    def calls(self):
        return calls_of(self.folder)

    def _with_agent(
        self, sync: Callable[[Any], Any], asynchronous: Callable[[Any], Any], **options
    ):
        self.folder.mkdir(exist_ok=True)
        path = str(self.folder / "run.sqlite")
        if self.form == "sync":
            with SqliteSaver.from_conn_string(path) as saver:
                return sync(reader(self.folder, saver, **options))

        async def run():
            async with AsyncSqliteSaver.from_conn_string(path) as saver:
                return await asynchronous(reader(self.folder, saver, **options))

        return asyncio.run(run())


@pytest.fixture(params=["sync", "async"])
def kept(request, tmp_path):
    return Reader(tmp_path / "kept", request.param)


@pytest.fixture
def whole(request, tmp_path):
    """The same reading without an interruption: its output and its calls."""
    reading = Reader(tmp_path / "whole", "sync")
    output = reading.invoke(given())
    assert FACT in output["memory"]
    return output, reading.calls


def assert_went_on(kept, output, whole, *, repeated):
    expected, calls = whole
    assert output == expected
    assert len(kept.calls) == len(calls) + repeated
    assert set(kept.calls) == set(calls)


def test_none_goes_on_after_a_crash(kept, whole):
    kept.fail()
    assert 0 < kept.state()["step"] < whole[0]["usage"]["steps"]
    assert_went_on(kept, kept.invoke(None), whole, repeated=1)


def test_the_same_input_goes_on_too_instead_of_starting_over(kept, whole):
    kept.fail()
    assert_went_on(kept, kept.invoke(given()), whole, repeated=1)


def test_the_same_input_goes_on_where_the_thread_is_bound_to_the_agent(kept, whole):
    kept.fail()
    output = kept._with_agent(
        lambda agent: agent.with_config(CONFIG).invoke(given()),
        lambda agent: agent.with_config(CONFIG).ainvoke(given()),
    )
    assert_went_on(kept, output, whole, repeated=1)


def test_a_killed_process_costs_the_open_call(kept, whole):
    kept.folder.mkdir()
    command = [sys.executable, "-m", "tests.graph.test_durable", kept.folder, kept.form]
    process = subprocess.Popen([*map(str, command), str(FAILING)])
    try:
        deadline = time.monotonic() + 60
        while not (kept.folder / "calls").exists() or len(kept.calls) < FAILING:
            assert process.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline, "it never came so far"
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert_went_on(kept, kept.invoke(given()), whole, repeated=1)


@pytest.mark.parametrize(
    "changed",
    [
        {"question": "Who else went to sea?"},
        {"documents": [Document(FILLER)]},
        {"instructions": "One word."},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_input_does_not_throw_an_unfinished_reading_away(kept, whole, changed):
    kept.fail()
    before = kept.state()
    with pytest.raises(RunError, match=r"Thread 't' holds an unfinished reading .* \d+ chunks"):
        kept.invoke({**given(), **changed})
    assert kept.state() == before
    assert_went_on(kept, kept.invoke(None), whole, repeated=1)


def test_an_input_that_failed_before_anything_was_read_can_be_corrected(kept):
    with contextlib.suppress(ModelUnavailableError):
        kept.invoke({**given(), "question": "Who payed?"}, fail_at=1)
    assert FACT in kept.invoke(given())["memory"]


def test_a_finished_thread_gives_its_answer_again_and_asks_the_model_nothing(kept):
    output = kept.invoke(given())
    calls = kept.calls
    assert kept.invoke(None) == output
    assert kept.calls == calls


def test_a_finished_thread_takes_a_new_question(kept):
    kept.invoke(given())
    other = {"question": "Who went to sea?", "documents": [Document(FILLER)]}
    output = kept.invoke(other)
    assert (output["memory"], output["found"]) == ("", False)


def test_a_fork_of_the_history_may_take_any_input(kept):
    kept.fail()

    async def newest(agent):
        return (await agent.aget_state(CONFIG)).config

    fork = kept._with_agent(lambda agent: agent.get_state(CONFIG).config, newest)
    other = {"question": "Who went to sea?", "documents": [Document(FILLER)]}
    assert kept.invoke(other, fork)["found"] is False


if __name__ == "__main__":
    Reader(Path(sys.argv[1]), sys.argv[2]).invoke(given(), hang_at=int(sys.argv[3]))
