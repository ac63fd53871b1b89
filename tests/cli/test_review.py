"""`--review` and `--decide`: a person looks in while a reading pauses."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess

import pytest

from qwenlong_graph.cli.review import decision_given, parsed_review
from qwenlong_graph.errors import SettingsError
from tests.cli.conftest import PROGRAM
from tests.cli.stub_server import llama_cpp
from tests.cli.test_ask import FACT, QUESTION
from tests.cli.test_runs import LONG, annals

pytestmark = pytest.mark.contract


@pytest.fixture
def document(tmp_path):
    return annals(tmp_path)


def paused(run, server, document, review="on-change"):
    return run("ask", QUESTION, document, "--model", server.url, *LONG, "--review", review)


class TestWithoutATerminal:
    def test_it_pauses_and_says_how_to_go_on(self, run, document):
        with llama_cpp(facts=[FACT]) as server:
            first = paused(run, server, document)
            assert (first.returncode, first.stdout) == (6, "")
            said = first.stderr.splitlines()[-1]
            assert "Look with: qwenlong-graph runs show night" in said
            assert "qwenlong-graph resume night --decide accept, answer, skip:CHUNKS" in said
            shown = run("runs", "show", "night")
            assert FACT in shown.stdout
            assert re.search(r"State: +paused", shown.stdout)
            (listed,) = json.loads(run("runs", "list", "--json").stdout)["runs"]
            assert listed["state"] == "paused"
            again = run("resume", "night")
            assert again.returncode == 6
            before = len(server.prompts)
            done = run("resume", "night", "--decide", "accept", "--json")
            assert done.returncode == 0
            answered = json.loads(done.stdout)
        assert answered["answer"] == FACT
        assert answered["usage"]["calls"] == len(server.prompts)
        assert len(server.prompts) > before

    def test_answer_now(self, run, document):
        with llama_cpp(facts=[FACT]) as server:
            assert paused(run, server, document).returncode == 6
            before = len(server.prompts)
            done = run("resume", "night", "--decide", "answer")
            assert FACT in done.stdout
            assert len(server.prompts) == before + 1

    def test_another_memory_from_a_file(self, run, document, tmp_path):
        with llama_cpp(facts=[FACT]) as server:
            assert paused(run, server, document, "every:2").returncode == 6
            (tmp_path / "memory.md").write_text("- Nobody paid.\n")
            edited = run("resume", "night", "--decide", "edit:memory.md")
            assert edited.returncode == 6  # the next pause
            shown = run("runs", "show", "night", "--json")
            told = run("runs", "show", "night", "--journal").stdout
        assert "- Nobody paid." in json.loads(shown.stdout)["memory"]
        assert "reviewed: edit" in told
        assert "   + - Nobody paid." in told

    def test_chunks_are_passed_over(self, run, document):
        with llama_cpp(facts=[FACT]) as server:
            assert paused(run, server, document, "every:1").returncode == 6
            assert run("resume", "night", "--decide", "skip:99").returncode == 0
            # Split, one chunk, and nothing to answer from.
            assert len(server.prompts) == 2

    def test_a_finished_run_and_one_that_is_not_paused_have_nothing_to_decide(self, run, document):
        with llama_cpp(facts=[FACT]) as server:
            run("ask", QUESTION, document, "--model", server.url, *LONG)
            ended = run("resume", "night", "--decide", "accept")
        assert ended.returncode == 5
        assert "not paused" in ended.stderr

    def test_nothing_can_be_reviewed_that_is_not_kept(self, run, document):
        with llama_cpp() as server:
            options = ("--review", "every:1", "--ephemeral")
            ended = run("ask", QUESTION, document, "--model", server.url, *options)
        assert ended.returncode == 2
        assert "--ephemeral" in ended.stderr

    @pytest.mark.parametrize("text", ["", "every", "every:0", "every:-1", "every:x", "always"])
    def test_when_is_checked(self, text):
        with pytest.raises(SettingsError, match="every:CHUNKS"):
            parsed_review(text)

    @pytest.mark.parametrize(
        "text", ["", "yes", "skip", "skip:0", "edit", "edit:/no/such", "accept:1"]
    )
    def test_what_is_checked(self, text):
        with pytest.raises(SettingsError):
            decision_given(text)


class Terminal:
    """The program on a terminal of its own, and what it wrote there."""

    def __init__(self, arguments, environment, folder):
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [PROGRAM, *map(str, arguments)],
            cwd=folder,
            env={**environment, "TERM": "dumb", "EDITOR": f"cp {folder}/other.md"},
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)
        self.written = ""

    def wait_for(self, text):
        while text not in self.written:
            try:
                piece = os.read(self.ours, 4096).decode(errors="replace")
            except OSError:
                piece = ""
            assert piece, self.written
            self.written += piece
        self.written = self.written.partition(text)[2]

    def type(self, text):
        os.write(self.ours, f"{text}\n".encode())

    def end(self):
        output = self.process.communicate(timeout=60)[0].decode()
        os.close(self.ours)
        return self.process.returncode, output


@pytest.mark.timeout(120)
def test_on_a_terminal_it_asks(environment, tmp_path, document):
    (tmp_path / "other.md").write_text(f"- {FACT}\n- The bridge was dear.\n")
    with llama_cpp(facts=[FACT]) as server:
        options = ("--model", server.url, *LONG, "--review", "every:3")
        terminal = Terminal(("ask", QUESTION, document, *options), environment, tmp_path)
        terminal.wait_for("Review after 3 chunks")
        terminal.wait_for("[q]uit: ")
        terminal.type("what?")
        terminal.wait_for("one of the letters")
        terminal.type("e")
        terminal.wait_for("Review after 6 chunks")
        terminal.wait_for("In no quote:")
        terminal.wait_for("- The bridge was dear.")
        terminal.type("n")
        code, output = terminal.end()
    assert code == 0
    assert FACT in output


@pytest.mark.timeout(120)
def test_whoever_leaves_finds_it_paused(environment, tmp_path, document, run):
    with llama_cpp(facts=[FACT]) as server:
        options = ("--model", server.url, *LONG, "--review", "every:1")
        terminal = Terminal(("ask", QUESTION, document, *options), environment, tmp_path)
        terminal.wait_for("[q]uit: ")
        terminal.type("q")
        terminal.wait_for("qwenlong-graph resume night")
        assert terminal.end()[0] == 6
        assert run("resume", "night", "--decide", "answer").returncode == 0
