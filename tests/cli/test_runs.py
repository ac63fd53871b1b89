"""Runs that are kept: interrupted, resumed, listed, shown, removed."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time

import pytest

from tests.cli.stub_server import llama_cpp
from tests.cli.test_ask import FACT, QUESTION

pytestmark = pytest.mark.contract

LONG = ("--strategy", "memory", "--chunk-tokens", "200", "--run-id", "night")


FILLER = "The winter was long and the traders stayed away from the coast. "


def annals(folder):
    """About six chunks of 200 tokens, with the fact in the middle."""
    path = folder / "annals.txt"
    path.write_text(FILLER * 40 + FACT + " " + FILLER * 40, "utf-8")
    return path


@pytest.fixture
def long_document(tmp_path):
    return annals(tmp_path)


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


def entries_in(journal):
    return [json.loads(line) for line in journal.read_text("utf-8").splitlines()]


def told_steps(entries):
    """The steps that a journal tells of, each as often as it does."""
    steps = []
    for entry in entries:
        if entry["type"] == "memory_updated":
            steps.append(entry["step"])
        elif entry["type"] == "restored":
            steps += range(entry["first_step"], entry["step"] + 1)
    return steps


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "data" / "runs" / "night" / "journal.jsonl"


def test_the_journal_has_one_line_for_each_chunk(run, start, long_document, journal):
    with llama_cpp(facts=[FACT]) as server:
        interrupted(start, server, long_document, after=4)
        told = json.loads(run("resume", "night", "--json").stdout)
    entries = entries_in(journal)
    updates = [entry for entry in entries if entry["type"] == "memory_updated"]
    assert [entry["step"] for entry in updates] == list(range(told["usage"]["steps"]))
    assert entries[-1] == {"type": "answered", "found": True, "is_quoted": False}
    # Only what is in memory: no line holds the text that was read.
    assert "winter" not in journal.read_text("utf-8")
    assert {key for entry in updates for key in entry} == {
        "type", "step", "steps", "document", "document_index", "start_char", "end_char", "reply",
        "memory_tokens", "plan", "evidence_added", "evidence", "lines_added", "lines_removed",
        "places_added", "calls", "retries", "input_tokens", "output_tokens", "reasoning_tokens",
        "seconds",
    }  # fmt: skip
    (found,) = [entry for entry in updates if entry["evidence_added"]]
    (place,) = told["citations"]
    assert found["lines_added"] == [f"- {FACT}"]
    assert found["places_added"] == [[0, place["start_char"], place["end_char"]]]
    # Each of the others changed nothing, and says so in few bytes.
    assert sum(len(entry["lines_added"]) for entry in updates) == 1
    total = [sum(entry[name] for entry in updates) for name in ("input_tokens", "output_tokens")]
    assert 0 < total[0] < told["usage"]["input_tokens"]
    assert 0 < total[1] < told["usage"]["output_tokens"]


def test_the_journal_is_shown_on_demand(run, start, long_document):
    with llama_cpp(facts=[FACT]) as server:
        interrupted(start, server, long_document, after=4)
        run("resume", "night", "--quiet")
    shown = run("runs", "show", "night", "--journal").stdout
    _, _, listed = shown.partition("Journal:\n")
    first, *others = listed.splitlines()
    assert first.startswith("  1. annals.txt, chars 0-")
    assert "tokens in" in first
    assert sum(line.startswith("     + ") for line in others) == 1
    assert f"     + - {FACT}" in others
    assert others[-1] == "  Answered."
    as_json = json.loads(run("runs", "show", "night", "--journal", "--json").stdout)
    assert told_steps(as_json["journal"]) == list(range(as_json["step"]))
    assert "Journal" not in run("runs", "show", "night").stdout


@pytest.mark.parametrize("kept", [None, 0, 1], ids=["gone", "empty", "behind"])
def test_a_journal_that_lost_lines_is_completed_from_the_checkpoint(
    run, start, long_document, journal, kept
):
    with llama_cpp(facts=[FACT]) as server:
        interrupted(start, server, long_document, after=5)
        *lines, last = journal.read_text("utf-8").splitlines(keepends=True)
        assert json.loads(last) == {"type": "stopped", "error": "interrupted", "message": ""}
        assert len(lines) > 2
        shown = json.loads(run("runs", "show", "night", "--json").stdout)
        if kept is None:
            journal.unlink()
        else:
            journal.write_text("".join(lines[:kept]), "utf-8")
        told = json.loads(run("resume", "night", "--json").stdout)
    entries = entries_in(journal)
    assert told_steps(entries) == list(range(told["usage"]["steps"]))
    (restored,) = [entry for entry in entries if entry["type"] == "restored"]
    assert restored["first_step"] == (kept or 0)
    assert restored["step"] == len(lines) - 1
    assert restored["memory"] == shown["memory"]
    assert restored["evidence"] == len(shown["evidence"])
    shown = run("runs", "show", "night", "--journal").stdout
    assert f"{(kept or 0) + 1}.-{len(lines)}. lost, and restored" in shown


def test_a_damaged_journal_is_moved_aside_and_reading_goes_on(run, start, long_document, journal):
    with llama_cpp(facts=[FACT]) as server:
        interrupted(start, server, long_document, after=5)
        damaged = b"dear diary\n" + journal.read_bytes()
        journal.write_bytes(damaged)
        refused = run("runs", "show", "night", "--journal")
        assert refused.returncode == 5
        assert "resume" in refused.stderr
        ended = run("resume", "night")
    assert ended.returncode == 0
    aside = journal.with_name("journal.damaged-1")
    assert aside.read_bytes() == damaged
    assert f"journal is damaged. It is now {aside}" in " ".join(ended.stderr.split())
    entries = entries_in(journal)
    assert entries[0] == {"type": "damaged", "moved_to": "journal.damaged-1"}
    assert told_steps(entries) == list(range(len(told_steps(entries))))


def test_another_setup_is_refused_and_goes_on_once_it_is_accepted(run, start, long_document):
    with llama_cpp(facts=[FACT], window=8192) as other:
        with llama_cpp(facts=[FACT]) as server:
            interrupted(start, server, long_document, after=5)
        before = json.loads(run("runs", "show", "night", "--json").stdout)
        gone = run("resume", "night", "--quiet")
        assert gone.returncode == 2
        assert "no server answers" in gone.stderr
        refused = run("resume", "night", "--quiet", "--model", other.url)
        assert refused.returncode == 5
        assert "memory_tokens was" in refused.stderr
        assert "--accept-changes" in refused.stderr
        assert not other.prompts
        assert json.loads(run("runs", "show", "night", "--json").stdout) == before
        ended = run("resume", "night", "--json", "--model", other.url, "--accept-changes")
        assert ended.returncode == 0
        told = json.loads(ended.stdout)
        assert [cited["cited_text"] for cited in told["citations"]] == [FACT]
        assert len(other.prompts) == told["usage"]["calls"] - before["step"] - 1
        shown = json.loads(run("runs", "show", "night", "--json").stdout)
        assert shown["model"] == other.url


def test_the_same_model_elsewhere_needs_no_accepting_and_is_remembered(run, start, long_document):
    with llama_cpp(facts=[FACT]) as elsewhere:
        with llama_cpp(facts=[FACT]) as server:
            interrupted(start, server, long_document, after=4)
        options = ("--model", elsewhere.url, "--seed", "5", "--quiet")
        process = start("resume", "night", *options)
        deadline = time.monotonic() + 60
        while len(elsewhere.prompts) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        record = json.loads((long_document.parent / "data/runs/night/run.json").read_text("utf-8"))
        assert (record["model"], record["settings"]["seed"]) == (elsewhere.url, 5)
        assert run("resume", "night", "--quiet").returncode == 0


def test_a_finished_run_gives_its_answer_though_server_and_texts_are_gone(
    run, long_document, tmp_path
):
    with llama_cpp(facts=[FACT]) as server:
        arguments = ("--model", server.url, "--json", *LONG)
        told = json.loads(run("ask", QUESTION, long_document, *arguments).stdout)
    shutil.rmtree(tmp_path / "data" / "documents")
    again = json.loads(run("resume", "night", "--json").stdout)
    assert {**again, "seconds": 0} == {**told, "seconds": 0}
    assert run("resume", "night").stdout.startswith(FACT)


def test_where_a_resumed_reading_stands_is_told(run, start, long_document):
    with llama_cpp(facts=[FACT]) as server:
        interrupted(start, server, long_document, after=5)
        ended = run("resume", "night")
    first, *_, last = ended.stderr.splitlines()
    assert re.match(r"Going on with 1 document \(.* characters\) with stub-model: [1-9]\d?%", first)
    assert last.startswith("Read ")


def test_the_way_on_names_the_directory_that_was_given(start, long_document):
    with llama_cpp(facts=[FACT]) as server:
        server.gate.clear()
        arguments = ("--model", server.url, "--data-dir", "my runs", *LONG)
        process = start("ask", QUESTION, long_document, *arguments)
        deadline = time.monotonic() + 60
        while not server.prompts and time.monotonic() < deadline:
            time.sleep(0.02)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        _, stderr = process.communicate(timeout=60)
    assert stderr.splitlines()[-1].endswith("qwenlong-graph resume night --data-dir 'my runs'")


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
