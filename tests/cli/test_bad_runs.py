"""Runs that cannot go on: a named error and its code, nothing damaged, the next step told."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.cli.stub_server import LlamaCpp, llama_cpp
from tests.cli.test_ask import FACT, QUESTION
from tests.cli.test_runs import LONG, annals, interrupted, told_steps

pytestmark = pytest.mark.contract


@dataclass(frozen=True)
class Night:
    """A run of that name that was interrupted, and the server that it can go on with."""

    server: LlamaCpp
    document: Path
    path: Path

    @property
    def checkpoints(self):
        return self.path / "checkpoints.sqlite"

    def rerecord(self, **fields):
        record = self.path / "run.json"
        record.write_text(json.dumps({**json.loads(record.read_text("utf-8")), **fields}))

    def content(self, *, but=()):
        """What stands in its files; the lock is no one's data."""
        files = [path for path in self.path.iterdir() if path.name not in {"lock", *but}]
        return {path.name: path.read_bytes() for path in files}


@pytest.fixture
def night(start, tmp_path):
    with llama_cpp(facts=[FACT]) as server:
        document = annals(tmp_path)
        interrupted(start, server, document, after=3)
        yield Night(server, document, tmp_path / "data" / "runs" / "night")


def assert_goes_on(run, night):
    """To its end, with each chunk told once in the journal."""
    ended = run("resume", "night", "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    told = json.loads(ended.stdout)
    assert [cited["cited_text"] for cited in told["citations"]] == [FACT]
    shown = json.loads(run("runs", "show", "night", "--journal", "--json").stdout)
    assert told_steps(shown["journal"]) == list(range(told["usage"]["steps"]))


def assert_refused(run, night, *found, code=5):
    """A resume says what was found and leaves everything as it is."""
    # Where reading began, LangGraph keeps the error beside the last state.
    but = ["checkpoints.sqlite"] if code == 3 else []
    before, asked = night.content(but=but), len(night.server.prompts)
    ended = run("resume", "night", "--quiet")
    assert (ended.returncode, ended.stdout) == (code, "")
    assert "Traceback" not in ended.stderr
    for words in found:
        assert words in ended.stderr
    assert night.content(but=but) == before
    assert len(night.server.prompts) == asked


def test_two_processes_resuming_one_run(run, start, night):
    night.server.gate.clear()
    asked = len(night.server.prompts)
    first = start("resume", "night", "--json")
    deadline = time.monotonic() + 60
    while len(night.server.prompts) == asked and time.monotonic() < deadline:
        time.sleep(0.02)
    second = run("resume", "night", "--quiet")
    assert second.returncode == 5
    assert f"process {first.pid} on " in second.stderr
    assert "Wait for it" in second.stderr
    night.server.gate.set()
    assert first.wait(timeout=60) == 0


def test_a_lock_that_a_killed_process_left_holds_nobody_up(run, start, night):
    night.server.gate.clear()
    asked = len(night.server.prompts)
    killed = start("resume", "night")
    deadline = time.monotonic() + 60
    while len(night.server.prompts) == asked and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    night.server.gate.set()
    assert str(killed.pid) in (night.path / "lock").read_text("utf-8")
    assert_goes_on(run, night)


@pytest.mark.parametrize("command", [["resume"], ["runs", "show"], ["runs", "rm"]])
def test_an_id_that_is_unknown_or_ambiguous(run, night, command):
    unknown = run(*command, "nigth")
    assert unknown.returncode == 5
    assert "There is no run 'nigth'" in unknown.stderr
    assert "Near it: night" in unknown.stderr
    other = night.path.with_name("nightfall")
    other.mkdir()
    record = json.loads((night.path / "run.json").read_text("utf-8"))
    (other / "run.json").write_text(json.dumps({**record, "run_id": "nightfall"}))
    ambiguous = run(*command, "nig")
    assert ambiguous.returncode == 5
    assert "2 runs begin with 'nig': night, nightfall. Give more of the id." in ambiguous.stderr
    assert night.path.exists()


def test_a_run_made_by_a_newer_version(run, night):
    night.rerecord(format=2, version="7.3")
    assert_refused(run, night, "made by a newer version", "(7.3)", "Upgrade")
    listed = run("runs", "list")
    assert listed.returncode == 0
    assert "night" in listed.stderr
    assert "newer version" in listed.stderr


@pytest.mark.parametrize(
    "content",
    [lambda whole: whole[: len(whole) // 2], lambda whole: b"dear diary\n" * 500],
    ids=["truncated", "not ours"],
)
def test_checkpoints_that_are_damaged(run, night, content):
    night.checkpoints.write_bytes(content(night.checkpoints.read_bytes()))
    assert_refused(run, night, "damaged or not a run's", "Put back a copy", "as another run")
    listed = run("runs", "list", "--json")
    assert listed.returncode == 0
    assert json.loads(listed.stdout)["runs"][0]["state"] == "unreadable"
    assert run("runs", "rm", "night").returncode == 0


def test_a_database_of_something_else(run, night):
    night.checkpoints.unlink()
    with closing(sqlite3.connect(night.checkpoints)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    assert_refused(run, night, "a database of something else", "as another run")


def test_checkpoints_of_no_bytes_count_as_not_begun(run, night):
    night.checkpoints.write_bytes(b"")
    shown = json.loads(run("runs", "show", "night", "--json").stdout)
    assert (shown["state"], shown["memory"]) == ("not begun", "")
    assert_goes_on(run, night)


def test_a_state_that_cannot_be_decoded(run, night):
    with closing(sqlite3.connect(night.checkpoints)) as connection, connection:
        connection.execute("UPDATE checkpoints SET checkpoint = CAST('no state' AS BLOB)")
    assert_refused(run, night, "cannot be decoded", "as another run")


def with_files_up_to(size_bytes):
    """For a new process: no file may grow beyond that size, as on a disk that is full then."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))

    return limit


def test_a_disk_that_fills_up_with_checkpoints(run, start, tmp_path):
    document = annals(tmp_path)
    with llama_cpp(facts=[FACT]) as server:
        arguments = ("ask", QUESTION, document, "--model", server.url, "--quiet", *LONG)
        process = start(*arguments, preexec_fn=with_files_up_to(150_000))
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout) == (5, "")
        assert "checkpoints.sqlite could not be written" in stderr
        assert "Free some space" in stderr
        assert "go on with: qwenlong-graph resume night" in stderr
        assert 1 < len(server.prompts) < 8
        assert_goes_on(run, Night(server, document, tmp_path / "data" / "runs" / "night"))
        # Split, six chunks and answer, and the call whose state was not kept.
        assert len(server.prompts) <= 9


def test_a_disk_that_fills_up_with_the_journal(run, start, night):
    journal = night.path / "journal.jsonl"
    entry = {"type": "server_failed", "message": "x" * 4_000_000}
    with journal.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, separators=(",", ":")) + "\n")
    size = journal.stat().st_size
    process = start("resume", "night", "--quiet", preexec_fn=with_files_up_to(size + 50))
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (5, "")
    assert "journal.jsonl could not be written" in stderr
    assert "go on with: qwenlong-graph resume night" in stderr
    assert journal.stat().st_size == size
    assert_goes_on(run, night)


def test_no_space_for_a_new_run(start, tmp_path):
    document = annals(tmp_path)
    with llama_cpp(facts=[FACT]) as server:
        arguments = ("ask", QUESTION, document, "--model", server.url, "--quiet", *LONG)
        process = start(*arguments, preexec_fn=with_files_up_to(10))
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Free some space" in stderr
    assert not (tmp_path / "data" / "runs").exists()


def as_one_who_may_not_write_everywhere():
    """For a new process: permissions hold even for root."""
    if os.geteuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.fixture
def read_only(tmp_path):
    """Makes a folder read-only with all that is in it, until the test ends."""
    changed = []

    def protect(folder):
        for path in (folder, *folder.rglob("*")):
            changed.append((path, path.stat().st_mode))
            path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o555)
        probe = [sys.executable, "-c", f"open({str(folder / 'probe')!r}, 'w')"]
        done = subprocess.run(
            probe, preexec_fn=as_one_who_may_not_write_everywhere, stderr=subprocess.DEVNULL
        )
        if done.returncode == 0:
            pytest.skip("this user may write everywhere")

    yield protect
    for path, mode in changed:
        path.chmod(mode)


def test_a_read_only_home_before_anything_is_kept(start, tmp_path, read_only):
    document = annals(tmp_path)
    (tmp_path / "data").mkdir()
    read_only(tmp_path / "data")
    process = start(
        "ask", QUESTION, document, "--quiet", preexec_fn=as_one_who_may_not_write_everywhere
    )
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "cannot be written (Permission denied)" in stderr
    assert "QWENLONG_GRAPH_DATA" in stderr


def test_a_read_only_home_with_a_run_in_it(run, start, night, read_only):
    read_only(night.path)
    for command, expected in ((("resume", "night"), 5), (("runs", "rm", "night"), 5)):
        process = start(*command, preexec_fn=as_one_who_may_not_write_everywhere)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == expected
        assert "could not be written (Permission denied)" in stderr
        assert "Traceback" not in stderr
    listing = start("runs", "list", "--json", preexec_fn=as_one_who_may_not_write_everywhere)
    stdout, _ = listing.communicate(timeout=60)
    assert json.loads(stdout)["runs"][0]["run_id"] == "night"


def test_a_clock_that_jumped_back(run, night):
    night.rerecord(created=(datetime.now(UTC) + timedelta(days=400)).isoformat())
    assert "Removed 0 runs." in run("runs", "prune", "--older-than", "0").stdout
    (listed,) = json.loads(run("runs", "list", "--json").stdout)["runs"]
    assert listed["state"] == "begun"
    assert_goes_on(run, night)
    entries = json.loads(run("runs", "show", "night", "--journal", "--json").stdout)["journal"]
    assert all(entry.get("seconds", 0) >= 0 for entry in entries)
    # Once the clock is right again, the run is as old as it is.
    night.rerecord(created=(datetime.now(UTC) - timedelta(days=31)).isoformat())
    assert "Removed 1 run." in run("runs", "prune").stdout


@pytest.mark.parametrize("gone", ["texts", "collections"])
def test_documents_that_were_deleted_from_the_store(run, night, gone):
    (stored,) = (night.path.parents[1] / "documents" / gone).iterdir()
    stored.unlink()
    assert_refused(run, night, "No such file", "estimate --no-calibrate", code=3)
    shown = json.loads(run("runs", "show", "night", "--json").stdout)
    assert (shown["state"], shown["documents"]) == ("begun", ["annals.txt"])
    again = ("estimate", night.document, "--model", night.server.url, "--no-calibrate")
    assert run(*again).returncode == 0
    assert_goes_on(run, night)


def test_a_document_that_changed_in_the_store(run, night):
    (stored,) = (night.path.parents[1] / "documents" / "texts").iterdir()
    stored.write_text("something else", "utf-8")
    assert_refused(run, night, "not what its name says", "needs a new reading", code=3)
    accepting = run("resume", "night", "--quiet", "--accept-changes")
    assert accepting.returncode == 3


def test_quotes_whose_text_is_gone_are_shown_as_places(run, start, tmp_path):
    document = annals(tmp_path)
    with llama_cpp(facts=[FACT]) as server:
        run("ask", QUESTION, document, "--model", server.url, "--quiet", *LONG)
    (stored,) = (tmp_path / "data" / "documents" / "texts").iterdir()
    stored.unlink()
    shown = json.loads(run("runs", "show", "night", "--json").stdout)
    (quote,) = shown["evidence"]
    assert (quote["title"], quote["text"]) == ("annals.txt", None)
    assert "the text is no longer in the store" in run("runs", "show", "night").stdout


def test_an_interrupt_before_the_first_answer_is_no_damage(run, start, tmp_path):
    document = annals(tmp_path)
    with llama_cpp(facts=[FACT]) as server:
        server.gate.clear()
        process = start("ask", QUESTION, document, "--model", server.url, *LONG)
        deadline = time.monotonic() + 60
        while not server.prompts and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        server.gate.set()
        assert_goes_on(run, Night(server, document, tmp_path / "data" / "runs" / "night"))
