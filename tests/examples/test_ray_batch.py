"""The example over Ray Data: one result a row, also when a worker is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from qwenlong_graph import ReadingSettings, read
from qwenlong_graph.testing.oracle import oracle

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_batch.py"
ROWS = {f"row-{number}" for number in range(6)}

pytestmark = [pytest.mark.alone, pytest.mark.end_to_end, pytest.mark.timeout(280)]
pytest.importorskip("ray", reason="needs the extra ray")


@pytest.fixture
def start(tmp_path):
    """Starts the example with its readings in `tmp_path`/readings; nothing of it is left behind."""
    started = []

    def start():
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        process = subprocess.Popen(
            [sys.executable, EXAMPLE, "--folder", tmp_path / "readings"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # As for a user; the test run itself turns warnings into errors in another way.
            env={**kept, "PYTHONWARNINGS": ""},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        process.communicate(timeout=60)


def children_of(pid):
    """All that a process has started, and what those have."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold anything.
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(status.parent.name))
    found, open_ = [], [pid]
    while open_:
        children = parents.get(open_.pop(), [])
        found += children
        open_ += children
    return found


def row_of(pid, folder):
    """The row that a worker has open, None where it has none."""
    try:
        opened = [str(handle.readlink()) for handle in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return None
    rows = {Path(name).stem for name in opened if name.startswith(str(folder / "row-"))}
    return next((row for row in rows if not (folder / f"{row}.json").exists()), None)


def steps_of(row, folder):
    with closing(sqlite3.connect(folder / f"{row}.sqlite")) as connection:
        try:
            return connection.execute("SELECT count(*) FROM checkpoints").fetchone()[0]
        except sqlite3.OperationalError:  # it is just being made
            return 0


def killed_in_a_row(process, folder):
    """Kills a worker, with its id, in the middle of the row that is returned with it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        for pid in children_of(process.pid):
            if row_of(pid, folder) is None:
                continue
            os.kill(pid, signal.SIGSTOP)
            row = row_of(pid, folder)
            if row and steps_of(row, folder) >= 4:
                os.kill(pid, signal.SIGKILL)
                return pid, row
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.02)
    raise AssertionError("no worker had a row open")


def told_of(stdout):
    """For each row that is told of: how it came about, and the worker; in the order told."""
    lines = [line.split() for line in stdout.splitlines() if line.startswith("row-")]
    return [(words[0].rstrip(":"), words[1], int(words[4])) for words in lines]


def results_in(folder):
    return {path.stem: json.loads(path.read_bytes()) for path in folder.glob("row-*.json")}


def test_a_killed_worker_costs_no_row_and_makes_none_twice(start, tmp_path):
    folder = tmp_path / "readings"
    process = start()
    killed, row = killed_in_a_row(process, folder)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    told = told_of(stdout)
    assert sorted(name for name, _, _ in told) == sorted(ROWS)
    how, worker = next((how, worker) for name, how, worker in told if name == row)
    assert how == "resumed"
    assert worker != killed
    results = results_in(folder)
    assert set(results) == ROWS
    # Going on costs as many calls as reading at one go.
    undisturbed = read(
        results[row]["question"],
        [results[row]["document"]],
        model=oracle([results[row]["citations"][0]["cited_text"]]),
        settings=ReadingSettings(strategy="memory"),
        document_dir=tmp_path / "documents",
    )
    assert results[row]["usage"] == undisturbed["usage"]
    for result in results.values():
        assert result["found"]
        assert len(result["citations"]) == 1
    assert {name.suffix for name in folder.glob("row-*")} == {".json", ".sqlite"}

    again, _ = start().communicate(timeout=120)
    assert [how for _, how, _ in told_of(again)] == ["kept"] * 6
    assert results_in(folder) == results
    assert again.partition("\n\n")[2] == stdout.partition("\n\n")[2]


def test_nothing_listens_beyond_this_machine_and_no_process_is_left(start, tmp_path):
    process = start()
    deadline = time.monotonic() + 120
    seen, addresses = set(), set()
    while process.poll() is None and time.monotonic() < deadline:
        children = children_of(process.pid)
        seen |= set(children)
        if any(row_of(pid, tmp_path / "readings") for pid in children):
            addresses |= listening(children)
        time.sleep(0.05)
    assert process.wait(timeout=60) == 0
    assert addresses
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
    deadline = time.monotonic() + 20
    while (left := [pid for pid in seen if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def listening(pids):
    """The addresses, as the kernel writes them, that any of these processes listens on."""
    sockets = set()
    for pid in pids:
        try:
            handles = [str(handle.readlink()) for handle in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        sockets |= {name[8:-1] for name in handles if name.startswith("socket:[")}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                found.add(fields[1].partition(":")[0])
    return found
