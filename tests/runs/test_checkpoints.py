"""The checkpointers under a real agent, on real files."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import time

import pytest

from qwenlong_graph.errors import ModelUnavailableError, RunError, RunFormatError
from qwenlong_graph.runs.checkpoints import (
    KEPT_CHECKPOINTS,
    PRUNING_STEPS,
    open_checkpoints,
    open_sync_checkpoints,
)
from tests.runs.reader import CONFIG, FACT, calls_of, given, reader

pytestmark = pytest.mark.contract


def rows(path, table: str) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def size_of_all(path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


async def test_the_history_of_a_long_reading_stays_bounded(tmp_path):
    path = tmp_path / "run.sqlite"
    async with open_checkpoints(path) as saver:
        output = await reader(tmp_path, saver).ainvoke(
            given(sentences=3_200), CONFIG, durability="sync"
        )
        assert output["usage"]["steps"] > 200
        assert size_of_all(path) < 3_000_000
    assert KEPT_CHECKPOINTS <= rows(path, "checkpoints") <= KEPT_CHECKPOINTS + PRUNING_STEPS
    # A step of this graph makes no more than a dozen writes.
    assert rows(path, "writes") <= 12 * (KEPT_CHECKPOINTS + PRUNING_STEPS)
    assert path.stat().st_mode & 0o777 == 0o600
    async with open_checkpoints(path) as saver:
        kept = await reader(tmp_path, saver).aget_state(CONFIG)
    assert kept.values["memory"] == f"- {FACT}"


def test_the_sync_form_bounds_its_history_too_and_spares_other_threads(tmp_path):
    path = tmp_path / "run.sqlite"
    other = {"configurable": {"thread_id": "other"}}
    with open_sync_checkpoints(path) as saver:
        reader(tmp_path, saver).invoke(given(sentences=20), other)
        before = rows(path, "checkpoints")
        reader(tmp_path, saver).invoke(given(sentences=1_000), CONFIG)
        kept = len(list(saver.list(CONFIG)))
        assert KEPT_CHECKPOINTS <= kept <= KEPT_CHECKPOINTS + PRUNING_STEPS
        assert len(list(saver.list(other))) == before


async def test_a_reading_goes_on_after_an_error_and_repeats_only_the_failed_call(tmp_path):
    path = tmp_path / "run.sqlite"
    async with open_checkpoints(path) as saver:
        with pytest.raises(ModelUnavailableError):
            await reader(tmp_path, saver, fail_at=20).ainvoke(given(), CONFIG, durability="sync")
    async with open_checkpoints(path) as saver:
        output = await reader(tmp_path, saver).ainvoke(None, CONFIG, durability="sync")
    assert output["citations"][0]["cited_text"] == FACT
    calls = calls_of(tmp_path)
    assert calls[19] == calls[20]
    assert len(calls) - 1 == output["usage"]["calls"]


@pytest.mark.parametrize("hang_at", [2, 9, 17])
async def test_another_process_goes_on_after_a_kill_and_repeats_only_the_open_call(
    tmp_path, hang_at
):
    process = subprocess.Popen([sys.executable, "-m", "tests.runs.reader", tmp_path, str(hang_at)])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "calls").exists() or len(calls_of(tmp_path)) < hang_at:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    async with open_checkpoints(tmp_path / "run.sqlite") as saver:
        resumed = await reader(tmp_path, saver).ainvoke(None, CONFIG, durability="sync")
    calls = calls_of(tmp_path)
    assert calls[hang_at - 1] == calls[hang_at]

    whole = tmp_path / "whole"
    whole.mkdir()
    async with open_checkpoints(whole / "run.sqlite") as saver:
        expected = await reader(whole, saver).ainvoke(given(), CONFIG, durability="sync")
    assert resumed == expected
    del calls[hang_at]
    assert calls == calls_of(whole)


async def written(path):
    async with open_checkpoints(path) as saver:
        await reader(path.parent, saver).ainvoke(given(sentences=100), CONFIG)


async def assert_refused(path) -> None:
    before = path.read_bytes()
    with pytest.raises(RunFormatError, match=path.name):
        async with open_checkpoints(path):
            pass
    with pytest.raises(RunFormatError, match=path.name), open_sync_checkpoints(path):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize("kept", [50, 4_096, 10_000])
async def test_a_truncated_file_is_named_and_left_alone(tmp_path, kept):
    path = tmp_path / "run.sqlite"
    await written(path)
    content = path.read_bytes()
    assert len(content) > kept
    path.write_bytes(content[:kept])
    await assert_refused(path)


async def test_a_file_with_a_lost_page_is_named_and_left_alone(tmp_path):
    path = tmp_path / "run.sqlite"
    await written(path)
    content = bytearray(path.read_bytes())
    content[3 * 4_096 : 4 * 4_096] = bytes(4_096)
    path.write_bytes(content)
    await assert_refused(path)


async def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path):
    path = tmp_path / "run.sqlite"
    path.write_text("dear diary\n" * 100)
    await assert_refused(path)


async def test_a_database_of_something_else_is_named_and_left_alone(tmp_path):
    path = tmp_path / "run.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    await assert_refused(path)


async def test_tables_of_another_form_are_named(tmp_path):
    path = tmp_path / "run.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE checkpoints (a); CREATE TABLE writes (b)")
    async with open_checkpoints(path) as saver:
        with pytest.raises(RunFormatError, match=path.name):
            await saver.aget_tuple(CONFIG)
    with open_sync_checkpoints(path) as saver, pytest.raises(RunFormatError, match=path.name):
        saver.get_tuple(CONFIG)


@pytest.mark.parametrize(
    "change",
    [
        "checkpoint = CAST('no state' AS BLOB)",
        "checkpoint = substr(checkpoint, 1, length(checkpoint) / 2)",
        "type = 'pickle'",
        "metadata = '{'",
    ],
)
async def test_a_state_that_cannot_be_decoded_is_named_and_left_alone(tmp_path, change):
    path = tmp_path / "run.sqlite"
    await written(path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE checkpoints SET {change}")
    async with open_checkpoints(path) as saver:
        with pytest.raises(RunFormatError, match=r"cannot be decoded.*as another run"):
            await reader(tmp_path, saver).ainvoke(None, CONFIG)
    with open_sync_checkpoints(path) as saver, pytest.raises(RunFormatError, match="decoded"):
        saver.get_tuple(CONFIG)
    assert rows(path, "checkpoints") > 0


async def test_a_full_disk_is_named_and_what_was_read_is_kept(tmp_path):
    path = tmp_path / "run.sqlite"
    async with open_checkpoints(path) as saver:
        await saver.setup()
        # SQLite's own limit gives the error of a full disk.
        await saver.conn.execute("PRAGMA max_page_count = 40")
        with pytest.raises(RunError, match="--data-dir") as caught:
            await reader(tmp_path, saver).ainvoke(given(), CONFIG, durability="sync")
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    async with open_checkpoints(path) as saver:
        output = await reader(tmp_path, saver).ainvoke(None, CONFIG, durability="sync")
    assert output["citations"][0]["cited_text"] == FACT


def test_a_full_disk_is_named_in_the_sync_form(tmp_path):
    with open_sync_checkpoints(tmp_path / "run.sqlite") as saver:
        saver.setup()
        saver.conn.execute("PRAGMA max_page_count = 40")
        with pytest.raises(RunError, match="--data-dir"):
            reader(tmp_path, saver).invoke(given(), CONFIG, durability="sync")


async def test_a_file_that_turns_read_only_is_named(tmp_path):
    async with open_checkpoints(tmp_path / "run.sqlite") as saver:
        await saver.setup()
        await saver.conn.execute("PRAGMA query_only = ON")
        with pytest.raises(RunError, match="readonly"):
            await reader(tmp_path, saver).ainvoke(given(), CONFIG, durability="sync")


async def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="--ephemeral"):
        async with open_checkpoints(tmp_path / "file" / "run.sqlite"):
            pass
