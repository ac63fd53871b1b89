"""Runs that are kept: interrupted, resumed, listed, shown, removed."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.cli.stub_server import llama_cpp
from tests.cli.test_ask import FACT, QUESTION

pytestmark = pytest.mark.contract

LONG = ("--strategy", "memory", "--chunk-tokens", "200", "--run-id", "night")


@pytest.fixture
def long_document(tmp_path):
    filler = "The winter was long and the traders stayed away from the coast. "
    path = tmp_path / "annals.txt"
    path.write_text(filler * 40 + FACT + " " + filler * 40, "utf-8")
    return path


def interrupted(start, server, document, after, *, signals=(signal.SIGINT,)):
    """A reading that is told to stop while its `after`th reply is awaited."""
    process = start("ask", QUESTION, document, "--model", server.url, *LONG)
    deadline = time.monotonic() + 60
    while len(server.prompts) < after and time.monotonic() < deadline:
        time.sleep(0.001)
    server.gate.clear()
    for number, kind in enumerate(signals):
        process.send_signal(kind)
        if number == 0:
            line = ""
            while "Stopping once" not in line:
                line = process.stderr.readline()
                assert line, "it ended without saying that it stops"
    if len(signals) == 1:
        server.gate.set()
    stdout, stderr = process.communicate(timeout=60)
    server.gate.set()
    return process.returncode, stdout, stderr


@pytest.mark.parametrize(
    "signals",
    [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT, signal.SIGINT)],
    ids=["interrupted", "terminated", "interrupted twice"],
)
def test_a_reading_that_was_stopped_goes_on_where_it_was(run, start, long_document, signals):
    with llama_cpp(facts=[FACT]) as server:
        code, stdout, stderr = interrupted(start, server, long_document, after=4, signals=signals)
        assert (code, stdout) == (130, "")
        assert stderr.splitlines()[-1].endswith("go on with: qwenlong-graph resume night")
        before = len(server.prompts)
        long_document.unlink()  # the texts are in the store
        ended = run("resume", "nig", "--json")
        assert (ended.returncode, ended.stderr) == (0, "")
        told = json.loads(ended.stdout)
        assert (told["found"], told["citations"][0]["cited_text"]) == (True, FACT)
        # Split, chunks and answer once each, and at most the open call again.
        needed = told["usage"]["steps"] + 2
        assert needed <= len(server.prompts) <= needed + (len(signals) == 2)
        assert len(server.prompts) > before
        asked = len(server.prompts)
        again = json.loads(run("resume", "night", "--json").stdout)
        assert (again["answer"], len(server.prompts)) == (told["answer"], asked)


def test_a_run_is_listed_shown_and_removed(run, start, long_document):
    with llama_cpp(facts=[FACT]) as server:
        interrupted(start, server, long_document, after=5)
        (listed,) = json.loads(run("runs", "list", "--json").stdout)["runs"]
        assert (listed["run_id"], listed["state"], listed["question"]) == (
            "night",
            "begun",
            QUESTION,
        )
        assert 1 <= listed["step"] < listed["steps"]
        assert "qwenlong-graph resume night" in run("runs", "show", "night").stdout
        run("resume", "night", "--quiet")
    shown = json.loads(run("runs", "show", "night", "--json").stdout)
    assert shown["state"] == "finished"
    assert shown["memory"] == f"- {FACT}"
    assert [quote["text"] for quote in shown["evidence"]] == [FACT]
    assert FACT in run("runs", "show", "night").stdout
    assert "night" in run("runs", "list").stdout
    assert run("runs", "rm", "night").returncode == 0
    assert json.loads(run("runs", "list", "--json").stdout) == {"runs": []}
    assert run("runs", "list").stdout == "No runs are kept here.\n"


def test_the_journal_has_one_line_for_each_chunk(run, start, long_document, tmp_path):
    with llama_cpp(facts=[FACT]) as server:
        interrupted(start, server, long_document, after=4)
        told = json.loads(run("resume", "night", "--json").stdout)
    lines = (tmp_path / "data" / "runs" / "night" / "journal.jsonl").read_text("utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    steps = [entry["step"] for entry in entries if entry["type"] == "memory_updated"]
    assert steps == list(range(told["usage"]["steps"]))
    assert not any("winter" in line for line in lines)


def test_a_failing_server_tells_how_to_go_on(run, long_document):
    from tests.models.stub_server import Answer

    def refuse(prompt):
        return Answer({"error": {"message": "no", "code": 400}}, status=400)

    with llama_cpp(reply=refuse) as server:
        ended = run("ask", QUESTION, long_document, "--model", server.url, "--quiet", *LONG)
    assert ended.returncode == 4
    assert "qwenlong-graph resume night" in ended.stderr


def test_an_ephemeral_reading_leaves_no_run(run, long_document, tmp_path):
    with llama_cpp(facts=[FACT]) as server:
        arguments = ("--model", server.url, "--quiet", "--ephemeral", "--strategy", "memory")
        assert run("ask", QUESTION, long_document, *arguments).returncode == 0
    assert not (tmp_path / "data" / "runs").exists()


def test_an_id_is_used_once_and_an_unknown_one_is_named(run, long_document):
    with llama_cpp(facts=[FACT]) as server:
        arguments = ("ask", QUESTION, long_document, "--model", server.url, "--quiet", *LONG)
        assert run(*arguments).returncode == 0
        again = run(*arguments)
    assert again.returncode == 5
    assert "There already is a run 'night'" in again.stderr
    unknown = run("resume", "day")
    assert unknown.returncode == 5
    assert "There is no run 'day'" in unknown.stderr


def test_a_run_that_another_process_works_on_is_left_alone(run, start, long_document):
    with llama_cpp(facts=[FACT]) as server:
        server.gate.clear()
        process = start("ask", QUESTION, long_document, "--model", server.url, *LONG)
        deadline = time.monotonic() + 60
        while not server.prompts and time.monotonic() < deadline:
            time.sleep(0.02)
        for arguments in (("resume", "night"), ("runs", "rm", "night")):
            refused = run(*arguments)
            assert refused.returncode == 5
            assert str(process.pid) in refused.stderr
        server.gate.set()
        assert process.wait(timeout=60) == 0
