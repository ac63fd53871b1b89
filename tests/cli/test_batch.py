"""Batches with a model that reads perfectly: nothing finished is lost or done twice."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from langgraph.types import RetryPolicy
from rich.console import Console

from qwenlong_graph.cli.batch_progress import BatchProgress, LiveBatchProgress, PlainBatchProgress
from qwenlong_graph.cli.batching import FAILURES_IN_A_ROW, Asking, Batch, Outcome, ask_batch
from qwenlong_graph.errors import (
    DocumentNotFoundError,
    ModelError,
    ModelRefusedError,
    ModelUnavailableError,
    QwenLongGraphError,
    RunLockedError,
    SettingsError,
    SetupError,
)
from qwenlong_graph.runs.batch import open_results, read_questions
from qwenlong_graph.runs.directory import RunShelf
from qwenlong_graph.testing.oracle import OracleChatModel, oracle
from qwenlong_graph.testing.scripted import ScriptedChatModel, scripted
from tests.cli.conftest import PROGRAM
from tests.cli.stub_server import llama_cpp
from tests.models.stub_server import Answer

pytestmark = pytest.mark.contract

HARBOURS = ("Ostvik", "Lerum", "Hale", "Orrin", "Skagen", "Tarn")
FILLER = "The winter was long and the traders stayed away from the coast. "
READING = {"strategy": "memory", "chunk_tokens": 200}


def fact(harbour):
    return f"The harbour master of {harbour} is called Clara {harbour}son."


def ask_about(harbour, **changes):
    question = f"Who is the harbour master of {harbour}?"
    return {"id": harbour, "question": question, "documents": [f"{harbour}.txt"], **changes}


FACTS = [fact(harbour) for harbour in HARBOURS]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six documents of about three chunks each, in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QWENLONG_GRAPH_DATA", raising=False)
    for harbour in HARBOURS:
        text = FILLER * 20 + fact(harbour) + " " + FILLER * 20
        (tmp_path / f"{harbour}.txt").write_text(text, "utf-8")
    return tmp_path


def write(folder, *lines, name="questions.jsonl"):
    path = folder / name
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return path


def results_in(folder, name="questions.results.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]


def by_id(folder):
    lines = results_in(folder)
    told = {line["id"]: line for line in lines}
    assert len(told) == len(lines), "an id has two lines"
    return told


@pytest.fixture
def ask(folder):
    """Asks a batch in this process: its outcome."""

    def ask(server, path=None, *, progress=None, **options):
        batch = Batch(
            questions=str(path or folder / "questions.jsonl"),
            model=server.url,
            data_dir=folder / "data",
            settings={**READING, **options.pop("settings", {})},
            **options,
        )
        silent = BatchProgress(Console(quiet=True), hides_warnings=True)
        return ask_batch(batch, progress or silent)

    return ask


class TestResults:
    def test_each_question_has_one_with_its_checked_quotes(self, folder, ask):
        write(folder, *map(ask_about, HARBOURS))
        with llama_cpp(facts=FACTS) as server:
            outcome = ask(server, concurrency=3)
        assert (outcome.answered, outcome.failed, outcome.is_whole) == (6, 0, True)
        told = by_id(folder)
        assert set(told) == set(HARBOURS)
        for harbour in HARBOURS:
            (cited,) = told[harbour]["citations"]
            assert cited["cited_text"] == fact(harbour)
            assert cited["document_title"] == f"{harbour}.txt"

    def test_one_is_the_object_that_ask_writes_after_four_keys(self, folder, run):
        write(folder, ask_about("Hale"))
        options = ("--strategy", "memory", "--chunk-tokens", "200")
        with llama_cpp(facts=FACTS) as server:
            batch = run("batch", "questions.jsonl", "--model", server.url, "--json", *options)
            asked = run(
                "ask", ask_about("Hale")["question"], "Hale.txt", "--model", server.url, "--json",
                *options,
            )  # fmt: skip
        assert (batch.returncode, batch.stderr) == (0, "")
        (line,) = results_in(folder)
        assert list(line)[:4] == ["id", "status", "fingerprint", "run_id"]
        assert list(line)[4:] == list(json.loads(asked.stdout))
        assert line["answer"] == json.loads(asked.stdout)["answer"]
        summary = json.loads(batch.stdout)
        assert summary["seconds"] > 0
        assert {**summary, "seconds": 0} == {
            "output": "questions.results.jsonl", "questions": 1, "answered": 1,
            "answered_before": 0, "failed": 0, "open": 0, "bad_lines": [], "lost_lines": 0,
            "seconds": 0, "exit_code": 0,
        }  # fmt: skip
        shown = json.loads(run("runs", "show", line["run_id"], "--json").stdout)
        assert shown["state"] == "finished"

    def test_what_is_not_found_is_an_answer_too(self, folder, ask):
        write(folder, ask_about("Hale"))
        with llama_cpp() as server:
            assert ask(server).is_whole
        assert by_id(folder)["Hale"]["found"] is False

    def test_a_line_may_ask_for_a_form_and_another_not(self, folder, ask):
        schema = {"type": "object", "required": ["name"]}
        write(folder, ask_about("Hale", schema=schema), ask_about("Lerum"))

        def reply(prompt):
            is_last = "Your answer:" in prompt and "Hale" in prompt
            return '{"name": "Clara Haleson"}' if is_last else None

        with llama_cpp(facts=FACTS, reply=reply) as server:
            assert ask(server).is_whole
        told = by_id(folder)
        assert told["Hale"]["structured_response"] == {"name": "Clara Haleson"}
        assert told["Lerum"]["structured_response"] is None

    def test_lines_that_do_not_say_take_the_documents_and_instructions_of_all(self, folder, ask):
        write(folder, {"question": "Who is the harbour master of Hale?"})
        with llama_cpp(facts=FACTS) as server:
            outcome = ask(server, documents=["Hale.txt"], instructions="Answer in Swedish.")
            assert "Answer in Swedish." in server.prompts[-1]
        assert outcome.is_whole
        (line,) = results_in(folder)
        assert line["citations"][0]["cited_text"] == fact("Hale")

    def test_a_document_of_several_questions_is_loaded_once(self, folder, ask):
        (folder / "both").mkdir()
        (folder / "both" / "empty.txt").touch()
        (folder / "both" / "hale.txt").write_text(fact("Hale"), "utf-8")
        write(folder, *(ask_about(harbour, documents=["both"]) for harbour in HARBOURS))
        left_out = []

        class Listening(BatchProgress):
            def left_out(self, name, reason):
                left_out.append(name)

        with llama_cpp(facts=FACTS) as server:
            ask(server, progress=Listening(Console(quiet=True)), concurrency=6)
        assert left_out == ["both/empty.txt"]
        assert all(line["documents"]["left_out"] for line in results_in(folder))


class TestASecondBatch:
    def test_asks_nothing_that_is_answered(self, folder, ask):
        write(folder, *map(ask_about, HARBOURS))
        with llama_cpp(facts=FACTS) as server:
            ask(server)
            asked, before = len(server.prompts), (folder / "questions.results.jsonl").read_bytes()
            outcome = ask(server)
            assert len(server.prompts) == asked
        assert (outcome.answered, outcome.answered_before, outcome.is_whole) == (6, 6, True)
        assert (folder / "questions.results.jsonl").read_bytes() == before

    def test_is_not_misled_by_its_own_files_among_the_documents(self, folder, ask):
        (folder / "papers").mkdir()
        for harbour in ("Hale", "Tarn"):
            (folder / f"{harbour}.txt").rename(folder / "papers" / f"{harbour}.txt")
        questions = [ask_about(harbour, documents=["papers"]) for harbour in ("Hale", "Tarn")]
        path = write(folder / "papers", *questions)
        left_out = []

        class Listening(BatchProgress):
            def left_out(self, name, reason):
                left_out.append(name)

        with llama_cpp(facts=FACTS) as server:
            assert ask(server, path).is_whole
            asked = len(server.prompts)
            again = ask(server, path, progress=Listening(Console(quiet=True)))
            assert (again.answered_before, len(server.prompts)) == (2, asked)
        assert left_out == ["questions.jsonl", "questions.results.jsonl"]
        (folder / "only").mkdir()
        path = write(folder / "only", ask_about("Hale", documents=["only"]))
        with llama_cpp(facts=FACTS) as server:
            assert ask(server, path).failed == 1
        assert "own files" in (folder / "only" / "questions.results.jsonl").read_text()

    def test_asks_lines_that_were_added_and_those_without_an_id_are_known_again(self, folder, ask):
        lines = [{**ask_about(harbour), "id": None} for harbour in HARBOURS[:3]]
        write(folder, *lines[1:])
        with llama_cpp(facts=FACTS) as server:
            ask(server)
            write(folder, lines[0], *lines[1:])
            outcome = ask(server)
        assert (outcome.answered, outcome.answered_before) == (3, 2)
        assert len(by_id(folder)) == 3

    @pytest.mark.parametrize("change", ["question", "document", "settings", "window", "form"])
    def test_never_takes_the_answer_to_what_was_asked_otherwise(self, folder, ask, change):
        write(folder, ask_about("Hale"), ask_about("Lerum"))
        with llama_cpp(facts=FACTS) as server:
            ask(server)
            old = by_id(folder)
            asked, options = len(server.prompts), {}
            if change == "question":
                write(folder, ask_about("Hale", question="What is she called?"), ask_about("Lerum"))
            elif change == "document":
                (folder / "Hale.txt").write_text(fact("Tarn"), "utf-8")
            elif change == "form":
                write(folder, ask_about("Hale", instructions="Shout."), ask_about("Lerum"))
            else:
                options = {"settings": {"seed": 7}} if change == "settings" else {"window": 4000}
            outcome = ask(server, **options)
            assert len(server.prompts) > asked
        is_for_all = change in {"settings", "window"}
        assert (outcome.answered, outcome.answered_before) == (2, 0 if is_for_all else 1)
        new = by_id(folder)
        assert new["Hale"]["run_id"] != old["Hale"]["run_id"]
        assert (new["Lerum"] == old["Lerum"]) is not is_for_all
        if change == "document":
            assert new["Hale"]["citations"][0]["cited_text"] == fact("Tarn")

    def test_has_a_finished_reading_again_without_a_model_call(self, folder, ask):
        write(folder, *map(ask_about, HARBOURS))
        with llama_cpp(facts=FACTS) as server:
            ask(server)
            before, asked = by_id(folder), len(server.prompts)
            path = folder / "questions.results.jsonl"
            path.write_text("".join(path.read_text("utf-8").splitlines(keepends=True)[:2]))
            outcome = ask(server)
            assert len(server.prompts) == asked
        assert (outcome.answered, outcome.answered_before) == (6, 2)
        for key, line in by_id(folder).items():
            assert {**line, "seconds": 0} == {**before[key], "seconds": 0}

    def test_asks_again_what_failed(self, folder, ask):
        (folder / "Hale.txt").rename(folder / "gone.txt")
        write(folder, *map(ask_about, HARBOURS))
        with llama_cpp(facts=FACTS) as server:
            first = ask(server)
            failed = by_id(folder)["Hale"]
            asked = len(server.prompts)
            (folder / "gone.txt").rename(folder / "Hale.txt")
            second = ask(server)
            assert len(server.prompts) - asked <= asked / 5 + 1
        assert (first.answered, first.failed, first.is_whole) == (5, 1, False)
        assert failed["status"] == "failed"
        assert failed["error"]["type"] == DocumentNotFoundError.__name__
        assert failed["error"]["exit_code"] == 3
        assert "Hale.txt" in failed["error"]["message"]
        assert (second.answered, second.answered_before, second.failed) == (6, 5, 0)
        assert {line["status"] for line in by_id(folder).values()} == {"answered"}

    def test_leaves_what_failed_told_where_there_is_no_model(self, folder, ask):
        write(folder, ask_about("Hale", documents=["no.txt"]), ask_about("Lerum"))
        with llama_cpp(facts=FACTS) as server:
            assert ask(server).failed == 1
        before = results_in(folder)
        with pytest.raises(SetupError, match="no server answers"):
            ask(server)
        assert results_in(folder) == before

    def test_asks_lines_that_came_while_the_former_was_under_way(self, folder, ask):
        path = write(folder, ask_about("Hale"))

        class Adding(BatchProgress):
            def connected(self, model_name, *, questions, at_once):
                with path.open("a") as file:
                    file.write(f"{json.dumps(ask_about('Lerum'))}\n")

        with llama_cpp(facts=FACTS) as server:
            first = ask(server, progress=Adding(Console(quiet=True)))
            assert (first.questions, first.answered, first.is_whole) == (1, 1, True)
            second = ask(server)
        assert (second.questions, second.answered, second.answered_before) == (2, 2, 1)

    def test_that_ends_at_once_leaves_no_id_with_two_lines(self, folder, ask):
        (folder / "Hale.txt").rename(folder / "gone.txt")
        write(folder, ask_about("Hale"), ask_about("Lerum"), ask_about("Tarn"))

        class Pulled(BatchProgress):
            def answered(self, key, *, is_new):
                if is_new:
                    raise KeyboardInterrupt

        with llama_cpp(facts=FACTS) as server:
            assert ask(server).failed == 1
            (folder / "gone.txt").rename(folder / "Hale.txt")
            pulled = ask(server, progress=Pulled(Console(quiet=True)))
            assert pulled.stopped_by.exit_code == 130
            told = by_id(folder)
        assert set(told) == {"Hale", "Lerum", "Tarn"}
        assert {line["status"] for line in told.values()} == {"answered"}

    def test_at_the_same_time_is_refused(self, folder, ask):
        write(folder, ask_about("Hale"))
        with llama_cpp(facts=FACTS) as server:
            with (
                open_results(folder / "questions.results.jsonl"),
                pytest.raises(RunLockedError, match="Another batch"),
            ):
                ask(server)
            assert server.prompts == []
            assert ask(server).is_whole


class TestLinesThatAreNotAsked:
    BAD = (
        ask_about("Hale"),
        "dear diary",
        ask_about("Hale"),
        ask_about("Lerum", id="Hale"),
        {"question": "Who?"},
        ask_about("Lerum", page=4),
    )

    def test_are_reported_by_number_and_the_rest_is_done(self, folder, run):
        write(folder, *self.BAD)
        with llama_cpp(facts=FACTS) as server:
            ended = run("batch", "questions.jsonl", "--model", server.url, "--quiet")
            again = run("batch", "questions.jsonl", "--model", server.url, "--json")
        assert (ended.returncode, ended.stdout) == (7, "")
        told = ended.stderr.splitlines()
        for number in (2, 3, 4, 5):
            assert sum(f"line {number} is passed over: " in line for line in told) == 1
        assert "'page' (first in line 6)" in ended.stderr
        assert told[-1].startswith("2 of 2 questions answered, 3 lines passed over.")
        assert set(by_id(folder)) == {"Hale", "Lerum"}
        summary = json.loads(again.stdout)
        assert (again.returncode, again.stderr, summary["exit_code"]) == (7, "", 7)
        assert [line["line"] for line in summary["bad_lines"]] == [2, 3, 4, 5]
        assert [line["is_lost"] for line in summary["bad_lines"]] == [True, False, True, True]

    def test_are_no_failure_where_another_line_says_the_same(self, folder, ask):
        write(folder, ask_about("Hale"), ask_about("Hale"))
        with llama_cpp(facts=FACTS) as server:
            outcome = ask(server)
        assert (outcome.questions, outcome.is_whole) == (1, True)
        assert [line.line for line in outcome.bad_lines] == [2]

    def test_send_nothing_to_the_terminal(self, folder, run):
        hostile = ask_about("Hale", id="\x1b[31mred\x9b2J")
        write(folder, hostile, hostile, {**ask_about("Hale"), "documents": ["\x1b[2Jno.txt"]})
        with llama_cpp(facts=FACTS) as server:
            ended = run("batch", "questions.jsonl", "--model", server.url)
        assert ended.returncode == 7
        assert "\x1b" not in ended.stderr
        assert "\x9b" not in ended.stderr

    def test_by_the_thousand_are_told_in_few_lines(self, folder, ask):
        write(folder, ask_about("Hale"), *["dear diary"] * 3_000)
        console = Console(record=True, width=100, quiet=False, file=(folder / "log").open("w"))
        with llama_cpp(facts=FACTS) as server, console.file:
            outcome = ask(server, progress=BatchProgress(console))
        assert (outcome.lost_lines, len(outcome.bad_lines)) == (3_000, 1_000)
        assert len((folder / "log").read_text().splitlines()) == 21
        assert "3,000" in (folder / "log").read_text()


class TestWrongUsage:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"questions": "none.jsonl"}, "none.jsonl: No such file"),
            ({"questions": "."}, "Is a directory"),
            ({"questions": "empty.jsonl"}, r"empty.jsonl holds no question \(it is empty\)"),
            ({"questions": "diary.jsonl"}, r"holds no question \(line 1: it is not JSON"),
            ({"output": Path("diary.jsonl")}, "is not written to: its line 1"),
            ({"output": Path("questions.jsonl")}, "is not written to: its line 1"),
            ({"documents": ["Hale.txt", "-"]}, "standard input"),
            ({"schema": Path("diary.jsonl")}, "not valid JSON"),
            ({"settings": {"chunk_tokens": -1}}, "chunk_tokens"),
            ({"model": "no-model"}, "names no model"),
            ({"model": "http://127.0.0.1:9"}, "no server answers"),
        ],
    )
    def test_is_told_before_anything_is_asked(self, folder, options, message):
        questions = write(folder, ask_about("Hale"))
        (folder / "empty.jsonl").touch()
        (folder / "diary.jsonl").write_text("dear diary\n")
        batch = Batch(**{"questions": "questions.jsonl", "data_dir": folder / "data", **options})
        with pytest.raises(SetupError, match=message) as caught:
            ask_batch(batch, BatchProgress(Console(quiet=True)))
        assert caught.value.exit_code == 2
        assert (folder / "diary.jsonl").read_text() == "dear diary\n"
        assert len(questions.read_text().splitlines()) == 1

    def test_is_one_message_and_the_documented_code(self, folder, run):
        ended = run("batch", "-", "--quiet", given="{}")
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.startswith("Error: Standard input has no place beside it")
        assert ended.stderr.count("\n") == 1
        ended = run("batch", "none.jsonl", "--json")
        assert (ended.returncode, ended.stderr) == (2, "")
        assert json.loads(ended.stdout)["error"]["type"] == "SettingsError"

    def test_a_setting_that_does_not_fit_the_model_stops_it_before_the_first_question(
        self, folder, ask
    ):
        write(folder, *map(ask_about, HARBOURS))
        with llama_cpp(facts=FACTS) as server:
            outcome = ask(server, settings={"memory_tokens": 100_000})
            assert server.prompts == []
        assert isinstance(outcome.stopped_by, SettingsError)
        assert (outcome.answered, outcome.failed) == (0, 0)
        assert results_in(folder) == []

    def test_a_schema_that_is_none_is_its_own_lines_failure(self, folder, ask):
        write(folder, ask_about("Hale", schema={"type": "nonsense"}), ask_about("Lerum"))
        with llama_cpp(facts=FACTS) as server:
            outcome = ask(server)
        assert (outcome.answered, outcome.failed) == (1, 1)
        assert "The schema of line 1" in by_id(folder)["Hale"]["error"]["message"]


def test_questions_may_come_through_a_pipe(folder, run):
    lines = "".join(json.dumps(ask_about(harbour)) + "\n" for harbour in HARBOURS)
    with llama_cpp(facts=FACTS) as server:
        arguments = ("batch", "-", "--output", "out.jsonl", "--model", server.url)
        ended = run(*arguments, given=lines)
    assert ended.returncode == 0
    assert len(results_in(folder, "out.jsonl")) == 6
    first, *_, last = ended.stderr.splitlines()
    assert first == "Asking 6 questions of stub-model."
    assert last == "6 of 6 questions answered. Results: out.jsonl"


# --- interrupted, killed, full ---

LONG = ("batch", "questions.jsonl", "--strategy", "memory", "--chunk-tokens", "200", "--quiet")


def wait_until(holds, *, seconds=60):
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert holds()


def assert_each_once(folder):
    """Every question has one right answer; returns how many calls those have cost."""
    told = by_id(folder)
    assert {line["status"] for line in told.values()} == {"answered"}
    assert {key: line["citations"][0]["cited_text"] for key, line in told.items()} == {
        harbour: fact(harbour) for harbour in HARBOURS
    }
    return sum(line["usage"]["calls"] for line in told.values())


@pytest.mark.parametrize("after", [1, 9, 17])
def test_a_killed_batch_goes_on_and_repeats_at_most_the_open_calls(folder, run, start, after):
    write(folder, *map(ask_about, HARBOURS))
    with llama_cpp(facts=FACTS) as server:
        arguments = (*LONG, "--model", server.url, "--concurrency", "2")
        killed = start(*arguments)
        wait_until(lambda: len(server.prompts) >= after)
        killed.kill()
        killed.wait()
        done = results_in(folder) if (folder / "questions.results.jsonl").exists() else []
        asked = len(server.prompts)
        ended = run(*arguments)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert all(line in results_in(folder) for line in done)
        needed = assert_each_once(folder)
        # Two questions were open, and each had one call open at most.
        assert asked < len(server.prompts) <= needed + 2
        finished = len(server.prompts)
        assert run(*arguments).returncode == 0
        assert len(server.prompts) == finished


@pytest.mark.parametrize(
    "signals",
    [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT, signal.SIGINT)],
    ids=["interrupted", "terminated", "interrupted twice"],
)
def test_an_interrupted_batch_keeps_its_open_chunks_and_goes_on(folder, run, start, signals):
    write(folder, *map(ask_about, HARBOURS))
    arguments = [argument for argument in LONG if argument != "--quiet"]
    with llama_cpp(facts=FACTS) as server:
        arguments += ["--model", server.url, "--concurrency", "2"]
        process = start(*arguments)
        wait_until(lambda: len(server.prompts) >= 3)
        server.gate.clear()
        for number, kind in enumerate(signals):
            process.send_signal(kind)
            line = ""
            while number == 0 and "Stopping once the open chunks" not in line:
                line = process.stderr.readline()
                assert line, "it ended without saying that it stops"
        asked = len(server.prompts)
        if len(signals) == 1:
            server.gate.set()
        stdout, stderr = process.communicate(timeout=60)
        server.gate.set()
        # The call that each of two questions was about to make, and none for the next chunk.
        assert len(server.prompts) <= asked + 2
        assert (process.returncode, stdout) == (130, "")
        interrupted, last = stderr.splitlines()[-2:]
        assert interrupted == "Interrupted."
        assert "of 6 questions answered" in last
        assert "the same command again" in last
        assert run(*arguments).returncode == 0
        needed = assert_each_once(folder)
        assert needed <= len(server.prompts) <= needed + (2 if len(signals) == 2 else 0)


def test_a_full_disk_under_the_results_loses_nothing(folder, run, start):
    write(folder, *map(ask_about, HARBOURS))
    path = folder / "questions.results.jsonl"
    other = {"id": "other", "status": "answered", "fingerprint": "f", "answer": "x" * 4_000_000}
    path.write_text(json.dumps(other, separators=(",", ":")) + "\n")
    size = path.stat().st_size + 4_000

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    with llama_cpp(facts=FACTS) as server:
        arguments = (*LONG, "--model", server.url)
        process = start(*arguments, preexec_fn=limit)
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout) == (5, "")
        error, last = stderr.splitlines()
        assert "could not be written" in error
        assert "Free some space" in error
        done = re.match(r"(\d) of 6 questions answered", last)
        assert path.read_bytes().endswith(b"\n")
        assert len(results_in(folder)) - 1 == int(done[1]) in range(1, 5)
        asked = len(server.prompts)
        ended = run(*arguments)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert len(server.prompts) > asked
        lines = {line["id"]: line for line in results_in(folder)}
        assert lines.pop("other") == other
        path.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
        # The reading whose result found no space is finished, and costs no call again.
        assert assert_each_once(folder) == len(server.prompts)


def test_a_full_disk_under_the_runs_loses_nothing(folder, run, start):
    write(folder, *map(ask_about, HARBOURS))

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))

    with llama_cpp(facts=FACTS) as server:
        arguments = (*LONG, "--model", server.url)
        process = start(*arguments, preexec_fn=limit)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 5
        assert "could not be written" in stderr
        assert run(*arguments).returncode == 0
        assert assert_each_once(folder) <= len(server.prompts)


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=800k tmpfs small
$0 batch questions.jsonl --output small/results.jsonl --data-dir small/data "$@"
echo code $?
mount -o remount,size=20m small
$0 batch questions.jsonl --output small/results.jsonl --data-dir small/data "$@"
echo code $?
cat small/results.jsonl
"""


def test_a_disk_that_is_full_and_then_is_not_loses_nothing(folder, environment):
    alone = ["unshare", "--mount", "--map-root-user"]
    try:
        probe = subprocess.run([*alone, "mount", "-t", "tmpfs", "t", folder], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if probe.returncode:
        pytest.skip("this user may not mount a small disk, even in a namespace of its own")
    write(folder, *map(ask_about, HARBOURS))
    (folder / "small").mkdir()
    with llama_cpp(facts=FACTS) as server:
        ended = subprocess.run(
            [*alone, "bash", "-c", ON_A_SMALL_DISK, PROGRAM, *LONG[2:], "--model", server.url],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        first, second, *lines = ended.stdout.splitlines()
        assert (first, second) == ("code 5", "code 0"), ended.stderr
        assert "(No space left on device)" in ended.stderr or "is full" in ended.stderr
        done = int(re.search(r"(\d) of 6 questions answered", ended.stderr)[1])
        assert 1 <= done < 6
        (folder / "questions.results.jsonl").write_text("".join(f"{line}\n" for line in lines))
        # The open call of the reading that found no space, and no other, is made again.
        assert 0 <= len(server.prompts) - assert_each_once(folder) <= 1


# --- what becomes of the others when one fails ---


class Away(ScriptedChatModel):
    """Says where its server is, and is answered by nobody there."""

    base_url: str


@pytest.fixture
def ask_model(folder):
    """Asks a batch of a connected model: its outcome, and what was raised."""

    def ask_model(model, *, at_once=1, questions=None, progress=None, settings=READING):
        path = questions or folder / "questions.jsonl"
        batch = Batch(
            questions=str(path), model="scripted", data_dir=folder / "data", settings=settings
        )
        silent = BatchProgress(Console(quiet=True), hides_warnings=True)
        with path.open("rb") as file, open_results(folder / "questions.results.jsonl") as results:
            outcome = Outcome(output=results.path, questions=sum(1 for _ in file))
            file.seek(0)
            asking = Asking(
                batch, model, results, outcome, progress or silent,
                retry_policy=RetryPolicy(max_attempts=1),
            )  # fmt: skip
            asyncio.run(asking.all(read_questions(file), at_once))
        return outcome

    return ask_model


def many(folder, count):
    return write(folder, *(ask_about(HARBOURS[n % 6], id=n) for n in range(count)))


def failing(error, *, at):
    """The perfect reader, but for the prompts that hold one of those words."""
    reader = OracleChatModel(FACTS)

    def reply(messages):
        prompt = str(messages[-1].content)
        if any(f"harbour master of {word}?" in prompt for word in at):
            return error
        return reader.replies(messages)

    return reply


class TestAFailure:
    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (ModelRefusedError("no"), "ModelRefusedError"),
            (ValueError("a fault of ours"), "ValueError"),
        ],
    )
    def test_of_one_question_does_not_hurt_the_others(self, folder, ask_model, error, kind):
        write(folder, *map(ask_about, HARBOURS))
        outcome = ask_model(scripted(failing(error, at=["Hale"])), at_once=3)
        told = by_id(folder)
        assert (outcome.answered, outcome.failed, outcome.stopped_by) == (5, 1, None)
        assert told["Hale"]["error"]["type"] == kind
        assert {line["status"] for key, line in told.items() if key != "Hale"} == {"answered"}

    @pytest.mark.parametrize(
        ("error", "family", "code"),
        [
            (ModelRefusedError("the key is refused"), ModelError, 4),
            (ModelUnavailableError("it broke off"), ModelError, 4),
            (ValueError("a fault of ours"), QwenLongGraphError, 1),
        ],
    )
    def test_that_meets_every_question_stops_the_batch(
        self, folder, ask_model, error, family, code
    ):
        many(folder, 60)
        outcome = ask_model(scripted(failing(error, at=HARBOURS)))
        assert type(outcome.stopped_by) is family
        assert outcome.stopped_by.exit_code == code
        assert str(error) in str(outcome.stopped_by)
        assert (outcome.answered, outcome.failed) == (0, FAILURES_IN_A_ROW)
        assert len(results_in(folder)) == FAILURES_IN_A_ROW

    def test_that_meets_every_new_question_stops_the_batch_among_those_answered_before(
        self, folder, ask_model
    ):
        write(folder, *(ask_about("Hale", id=n) for n in range(0, 40, 2)))
        assert ask_model(oracle(FACTS)).answered == 20
        write(folder, *(ask_about("Tarn" if n % 2 else "Hale", id=n) for n in range(40)))
        outcome = ask_model(scripted(failing(ModelRefusedError("no"), at=["Tarn"])))
        assert isinstance(outcome.stopped_by, ModelError)
        assert (outcome.answered, outcome.answered_before) == (outcome.answered_before, 5)
        assert outcome.failed == FAILURES_IN_A_ROW

    def test_of_a_question_too_long_for_the_settings_is_its_own(self, folder, ask_model):
        long = ask_about("Hale")["question"] + " Tell all you know of it." * 200
        write(folder, ask_about("Hale", question=long), ask_about("Lerum"), ask_about("Tarn"))
        settings = {"strategy": "memory", "chunk_tokens": 6000}
        outcome = ask_model(oracle(FACTS), settings=settings)
        assert (outcome.answered, outcome.failed, outcome.stopped_by) == (2, 1, None)
        assert by_id(folder)["Hale"]["error"]["type"] == SettingsError.__name__

    def test_is_shown_with_its_place_where_that_is_asked_for(self, folder, run):
        write(folder, ask_about("Hale", documents=["no.txt"]))
        with llama_cpp() as server:
            plain = run("batch", "questions.jsonl", "--model", server.url)
            debugged = run("batch", "questions.jsonl", "--model", server.url, "--debug")
        assert plain.returncode == debugged.returncode == 7
        assert "Hale failed: Loading 'no.txt'" in plain.stderr
        assert "Traceback" not in plain.stderr
        assert "Traceback" in debugged.stderr
        assert "DocumentNotFoundError: Loading 'no.txt'" in debugged.stderr

    def test_now_and_then_does_not(self, folder, ask_model):
        many(folder, 60)
        outcome = ask_model(scripted(failing(ModelRefusedError("no"), at=["Hale", "Tarn"])))
        assert (outcome.answered, outcome.failed, outcome.stopped_by) == (40, 20, None)

    def test_of_every_document_does_not(self, folder, ask_model):
        write(folder, *(ask_about("Hale", id=n, documents=["no.txt"]) for n in range(60)))
        outcome = ask_model(oracle(FACTS))
        assert (outcome.failed, outcome.stopped_by) == (60, None)

    def test_of_the_server_stops_the_batch_at_once_and_fails_no_question(self, folder, ask_model):
        many(folder, 60)
        model = oracle(FACTS)
        away = Away(
            failing(ModelUnavailableError("away"), at=["Tarn"]), base_url="http://127.0.0.1:9"
        )
        away_model = replace(model, chat=away, release=lambda: None)
        outcome = ask_model(away_model)
        assert isinstance(outcome.stopped_by, ModelUnavailableError)
        assert (outcome.answered, outcome.failed) == (5, 0)
        assert len(results_in(folder)) == 5
        outcome = ask_model(model)
        assert (outcome.answered, outcome.answered_before) == (60, 5)
        assert len(by_id(folder)) == 60

    def test_of_a_server_that_answers_others_is_the_questions_own(self, folder, ask_model):
        write(folder, *map(ask_about, HARBOURS))
        with llama_cpp() as server:
            model = oracle(FACTS)
            chat = Away(failing(ModelUnavailableError("away"), at=["Hale"]), base_url=server.url)
            here = replace(model, chat=chat, release=lambda: None)
            outcome = ask_model(here)
        assert (outcome.answered, outcome.failed, outcome.stopped_by) == (5, 1, None)

    def test_of_the_server_is_told_on_the_command_line(self, folder, run):
        many(folder, 20)
        refusal = Answer({"error": {"message": "no"}}, status=401)
        with llama_cpp(reply=lambda prompt: refusal) as server:
            ended = run(*LONG, "--model", server.url)
            assert FAILURES_IN_A_ROW <= len(server.prompts) <= FAILURES_IN_A_ROW * 2
        assert (ended.returncode, ended.stdout) == (4, "")
        error, last = ended.stderr.splitlines()
        assert error.startswith(f"Error: {FAILURES_IN_A_ROW} questions in a row failed")
        assert "the server refuses the key" in error
        assert "0 of 20 questions answered, 5 failed" in last
        assert "the same command again" in last


@pytest.mark.parametrize("at_once", [1, 3])
def test_never_more_questions_are_open_than_allowed(folder, ask_model, at_once):
    many(folder, 12)
    now, most = set(), 0

    class Listening(BatchProgress):
        def event(self, key, event):
            nonlocal most
            now.add(key)
            most = max(most, len(now))

        def answered(self, key, *, is_new):
            now.discard(key)

    outcome = ask_model(oracle(FACTS), at_once=at_once, progress=Listening(Console(quiet=True)))
    assert outcome.answered == 12
    assert most == at_once


def test_a_run_that_another_process_works_on_is_that_questions_failure(folder, ask_model):
    write(folder, *map(ask_about, HARBOURS))
    ask_model(oracle(FACTS))
    runs = {line["id"]: line["run_id"] for line in results_in(folder)}
    (folder / "questions.results.jsonl").unlink()
    run = RunShelf(folder / "data" / "runs").get(runs["Hale"])
    with run.lock():
        outcome = ask_model(oracle([]))
    assert (outcome.answered, outcome.failed) == (5, 1)
    assert by_id(folder)["Hale"]["error"]["type"] == RunLockedError.__name__


def test_a_damaged_run_is_that_questions_failure_and_says_what_to_do(folder, ask_model):
    write(folder, *map(ask_about, HARBOURS))
    ask_model(oracle(FACTS))
    runs = {line["id"]: line["run_id"] for line in results_in(folder)}
    (folder / "questions.results.jsonl").unlink()
    (folder / "data" / "runs" / runs["Hale"] / "run.json").write_text("{")
    outcome = ask_model(oracle([]))
    assert (outcome.answered, outcome.failed, outcome.stopped_by) == (5, 1, None)
    assert "damaged" in by_id(folder)["Hale"]["error"]["message"]


# --- what is shown ---


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def shown_by(kind, console_width=100):
    console = Console(width=console_width, record=True, force_terminal=False, quiet=False)
    clock = Clock()
    return kind(console, clock=clock), console, clock


def test_a_log_gets_about_ten_lines_and_one_for_each_failure():
    progress, console, clock = shown_by(PlainBatchProgress)
    with console.capture() as capture:
        progress.connected("m", questions=200, at_once=4)
        for number in range(200):
            clock.now += 1
            progress.asking(f"q{number}")
            if number == 120:
                progress.failed("q120", "The \x1b[2Jserver\nrefused.")
            else:
                progress.answered(f"q{number}", is_new=number > 19)
    first, *tenths = capture.get().splitlines()
    assert first == "Asking 200 questions of m, up to 4 at once."
    assert sum("failed: " in line for line in tenths) == 1
    assert "q120 failed: The \ufffd[2Jserver refused." in tenths
    assert 9 <= len(tenths) - 1 <= 10
    assert tenths[4].startswith("100 of 200 answered (20 of them before); 1:40 elapsed, ~2:05 left")


def test_trouble_of_the_server_is_told_once_for_all_questions():
    progress, console, _ = shown_by(PlainBatchProgress)
    event = {
        "type": "waiting_for_server", "server": "http://a", "found": "HTTP 503", "seconds": 3,
        "timeout_s": 900,
    }  # fmt: skip
    with console.capture() as capture:
        for key in ("q1", "q2", "q3"):
            progress.event(key, event)
        progress.event("q1", {**event, "seconds": 65})
    assert capture.get().splitlines() == [
        "Waiting for http://a (HTTP 503), minute 1 of at most 15.",
        "Waiting for http://a (HTTP 503), minute 2 of at most 15.",
    ]


def test_a_terminal_shows_the_readings_that_are_open():
    progress, console, _ = shown_by(LiveBatchProgress)
    chunk = {
        "type": "chunk_read", "step": 1, "steps": 9, "document": "a\x1b.txt", "tokens": 100,
        "start_char": 0, "end_char": 9,
    }  # fmt: skip
    with console.capture() as capture:
        console.print(progress.view())
        progress.connected("m", questions=20, at_once=10)
        for number in range(10):
            progress.asking(f"q{number}")
        progress.event("q0", chunk)
        progress.event("q1", {"type": "finalizing"})
        console.print(progress.view())
        progress.answered("q0", is_new=True)
        progress.let_go("q0")
        console.print(progress.view())
    text = capture.get()
    assert "  q0: chunk 2 of about 9 (a\ufffd.txt)\n  q1: answering\n  q2: loading\n" in text
    assert text.count("  and ") == 2
    assert "and 2 more" in text
    assert "1 of 20 answered" in text
