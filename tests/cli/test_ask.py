"""The command line as a process, against a stub of llama.cpp that reads perfectly."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import time

import pytest

from tests.cli.stub_server import NAME, llama_cpp
from tests.models.stub_server import Answer

pytestmark = pytest.mark.contract

FACT = "The lease of the old mill was signed by Clara Jonsson on 4 May 1911."
QUESTION = "Who signed the lease of the old mill?"
MEMORY = ("--strategy", "memory")


def filler(count):
    return " ".join(f"On day {number} the weather was calm and dry." for number in range(count))


def is_update(prompt):
    return "<previous_memory>" in prompt


def is_answer(prompt):
    return "Your answer:" in prompt


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "mill.txt"
    path.write_text(f"{filler(150)}\n\n{FACT}\n\n{filler(150)}\n", "utf-8")
    return path


class TestAnAnswer:
    def test_is_printed_with_its_numbered_source(self, run, document):
        with llama_cpp(facts=[FACT]) as server:
            ended = run("ask", QUESTION, document, "--model", server.url, *MEMORY)
        start = document.read_text("utf-8").index(FACT)
        assert ended.returncode == 0
        assert ended.stdout == (
            f"{FACT} [1]\n\nSources\n[1] mill.txt, chars {start}-{start + len(FACT)}\n"
            f'    "{FACT}"\n'
        )

    def test_that_there_is_none_is_said_plainly(self, run, document):
        with llama_cpp() as server:
            ended = run("ask", QUESTION, document, document, "--model", server.url, "--quiet")
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout == ("Not found: nothing in the 2 documents bears on this question.\n")

    def test_that_no_passage_bears_out_is_shown_as_such(self, run, document):
        def reply(prompt):
            if is_answer(prompt):
                return "It was Anna Berg."
            return "<memory>\n- It was Anna Berg.\n</memory>\n<plan>\nread on\n</plan>"

        with llama_cpp(reply=reply) as server:
            ended = run("ask", QUESTION, document, "--model", server.url, "--quiet", *MEMORY)
        assert ended.returncode == 0
        assert ended.stdout.startswith("Not found: no passage of the document bears out")
        assert "It was Anna Berg." in ended.stdout

    def test_has_its_unsupported_claims_listed(self, run, document):
        def reply(prompt):
            return f"{FACT} The rent was 7,215 crowns." if is_answer(prompt) else None

        with llama_cpp(facts=[FACT], reply=reply) as server:
            ended = run("ask", QUESTION, document, "--model", server.url, "--quiet", *MEMORY)
        _, heading, claims = ended.stdout.partition("\nIn none of the sources\n")
        assert heading
        assert "7,215" in claims
        assert "1911" not in claims

    def test_names_what_the_model_gave_no_usable_reply_for(self, run, tmp_path):
        path = tmp_path / "short.txt"
        path.write_text(FACT, "utf-8")

        def reply(prompt):
            return "" if is_update(prompt) else None

        with llama_cpp(reply=reply) as server:
            ended = run("ask", QUESTION, path, "--model", server.url, "--quiet", *MEMORY)
            as_json = run("ask", QUESTION, path, "--model", server.url, "--json", *MEMORY)
        assert f"- short.txt, chars 0-{len(FACT)}" in ended.stdout
        (span,) = json.loads(as_json.stdout)["usage"]["unread_spans"]
        assert span["document_title"] == "short.txt"

    def test_can_be_asked_for_in_a_form(self, run, document, tmp_path):
        schema = tmp_path / "form.json"
        schema.write_text('{"type": "object", "required": ["signer"]}', "utf-8")

        def reply(prompt):
            return '{"signer": "Clara Jonsson"}' if is_answer(prompt) else None

        with llama_cpp(facts=[FACT], reply=reply) as server:
            ended = run(
                "ask", QUESTION, document, "--model", server.url, "-q", "--schema", schema, *MEMORY
            )
        assert ended.stdout.startswith('{\n  "signer": "Clara Jonsson"\n}\n\nSources\n')

    def test_comes_with_the_memory_on_demand(self, run, document):
        with llama_cpp(facts=[FACT]) as server:
            ended = run("ask", QUESTION, document, "--model", server.url, "--memory", *MEMORY)
        assert ended.stdout.endswith(f"\nMemory\n- {FACT}\n")

    def test_of_a_hostile_document_sends_nothing_to_the_terminal(self, run, tmp_path):
        fact = "The \x1b[31mred [bold]mill[/bold] was \x9b2Jsold for 815 crowns."
        (tmp_path / "a.txt").write_text(f"{filler(5)}\n\n{fact}\n\n{filler(5)}", "utf-8")
        with llama_cpp(facts=[fact]) as server:
            ended = run(
                "ask", "For how much was the red mill sold?", "a.txt", "--model", server.url,
                "--memory", *MEMORY, env={"FORCE_COLOR": "1"},
            )  # fmt: skip
            as_json = run(
                "ask", "For how much was the red mill sold?", "a.txt", "--model", server.url,
                "--json", *MEMORY,
            )  # fmt: skip
        assert "\x1b[31m" not in ended.stdout
        assert "\x9b" not in ended.stdout + as_json.stdout
        assert "\ufffd[31mred [bold]mill[/bold] was \ufffd2Jsold" in ended.stdout
        (citation,) = json.loads(as_json.stdout)["citations"]
        assert citation["cited_text"] == fact


class TestJson:
    def test_is_one_object_and_nothing_else(self, run, document, tmp_path):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "empty.txt").touch()
        (tmp_path / "folder" / "mill.txt").write_bytes(document.read_bytes())
        with llama_cpp(facts=[FACT]) as server:
            ended = run("ask", QUESTION, "folder", "--model", server.url, "--json", *MEMORY)
        assert (ended.returncode, ended.stderr) == (0, "")
        told = json.loads(ended.stdout)
        assert list(told) == [
            "question", "core_question", "answer", "answered_from", "found", "is_quoted",
            "citations", "unsupported", "structured_response", "memory", "unverified", "plan",
            "usage", "skipped", "documents", "model", "seconds",
        ]  # fmt: skip
        assert (told["question"], told["found"], told["model"]) == (QUESTION, True, NAME)
        assert [citation["cited_text"] for citation in told["citations"]] == [FACT]
        assert told["documents"]["count"] == 1
        assert told["documents"]["chars"] == len(document.read_text("utf-8"))
        (left_out,) = told["documents"]["left_out"]
        assert left_out["name"].endswith("empty.txt")

    def test_is_what_an_error_is_too(self, run):
        ended = run("ask", QUESTION, "no-such-file.txt", "--json")
        assert (ended.returncode, ended.stderr) == (3, "")
        error = json.loads(ended.stdout)["error"]
        assert (error["type"], error["exit_code"]) == ("DocumentNotFoundError", 3)
        assert "no-such-file.txt" in error["message"]


class TestWhatIsRead:
    def test_standard_input(self, run):
        with llama_cpp(facts=[FACT]) as server:
            ended = run("ask", QUESTION, "-", "--model", server.url, "-q", given=f"{FACT}\n")
        assert f"[1] stdin, chars 0-{len(FACT)}" in ended.stdout

    def test_what_a_directory_leaves_out_is_a_warning_even_when_quiet(self, run, tmp_path):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "a.txt").write_text(FACT, "utf-8")
        (tmp_path / "folder" / "b.txt").touch()
        with llama_cpp(facts=[FACT]) as server:
            ended = run("ask", QUESTION, "folder", "--model", server.url, "--quiet")
        assert ended.returncode == 0
        (warning,) = ended.stderr.splitlines()
        assert warning.startswith("Warning: left out folder/b.txt: ")


class TestSettings:
    def test_reach_the_model(self, run, document):
        with llama_cpp(facts=[FACT]) as server:
            ended = run(
                "ask", QUESTION, document, "--instructions", "Answer in Swedish.",
                "--chunk-tokens", "500", "--window", "3000", "--memory-tokens", "200",
                "--seed", "7", "--protocol", "rewrite", "--quiet", *MEMORY,
                env={"QWENLONG_GRAPH_MODEL": server.url, "QWENLONG_GRAPH_API_KEY": "sesame"},
            )  # fmt: skip
            assert ended.returncode == 0
            assert "Answer in Swedish." in server.prompts[-1]
            # 2,700 words in chunks of 500 at most; split by instructions, no call is needed.
            assert 6 <= sum(map(is_update, server.prompts)) <= 9
            assert server.keys == {"Bearer sesame"}

    def test_texts_are_kept_where_the_option_says(self, run, document, tmp_path):
        with llama_cpp() as server:
            run("ask", QUESTION, document, "--model", server.url, "--data-dir", "kept", "-q")
        assert list((tmp_path / "kept" / "documents" / "texts").iterdir())
        assert not (tmp_path / "data").exists()


class TestFailures:
    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["  ", "mill.txt"], 2, "The question is empty"),
            ([QUESTION, "mill.txt", "--model", "no-model"], 2, "names no model"),
            ([QUESTION, "mill.txt", "--model", "http://127.0.0.1:9"], 2, "no server answers"),
            ([QUESTION, "mill.txt", "--chunk-tokens", "3"], 2, "chunk_tokens"),
            ([QUESTION, "mill.txt", "--schema", "mill.txt"], 2, "not valid JSON"),
            ([QUESTION, "mill.txt", "--schema", "none.json"], 2, "none.json"),
            ([QUESTION, "mill.txt", "--schema", "list.json"], 2, "holds a list"),
            ([QUESTION, "mill.txt", "no-such-file.txt"], 3, "no-such-file.txt"),
        ],
    )
    def test_are_one_message_and_the_documented_code(
        self, run, document, tmp_path, arguments, code, message
    ):
        (tmp_path / "list.json").write_text("[]", "utf-8")
        ended = run("ask", *arguments, "--quiet")
        assert (ended.returncode, ended.stdout) == (code, "")
        assert ended.stderr.startswith("Error: ")
        assert message in ended.stderr
        assert ended.stderr.count("\n") == 1

    def test_of_the_model_exit_with_4(self, run, document):
        refusal = Answer({"error": {"message": "no"}}, status=400)
        with llama_cpp(reply=lambda prompt: refusal) as server:
            ended = run("ask", QUESTION, document, "--model", server.url, "--quiet")
        assert ended.returncode == 4
        assert ended.stderr.startswith(f"Error: Calling {NAME} failed (HTTP 400)")

    def test_that_nobody_foresaw_tell_how_to_see_more(self, run, document, tmp_path):
        (tmp_path / "deep.json").write_text("[" * 100_000, "utf-8")
        arguments = ("ask", QUESTION, document, "--schema", "deep.json")
        ended = run(*arguments)
        assert ended.returncode == 1
        assert "RecursionError" in ended.stderr
        assert "--debug" in ended.stderr
        assert "Traceback" not in ended.stderr
        for debugged in (
            run(*arguments, "--debug"),
            run(*arguments, env={"QWENLONG_GRAPH_DEBUG": "1"}),
        ):
            assert debugged.returncode == 1
            assert "Traceback" in debugged.stderr

    def test_an_interrupt_ends_at_once_though_the_model_is_silent(self, start, document):
        with llama_cpp() as server:
            server.gate.clear()
            process = start(
                "ask", QUESTION, document, "--model", server.url, "--ephemeral", *MEMORY
            )
            deadline = time.monotonic() + 60
            while not server.prompts and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            # The stub holds its reply back until after this.
            stdout, stderr = process.communicate(timeout=60)
            assert not server.gate.is_set()
        assert (process.returncode, stdout) == (130, "")
        assert stderr.splitlines()[-1].startswith("Interrupted.")
        assert "Traceback" not in stderr

    def test_a_reader_that_goes_away_is_no_error(self, start, document):
        with llama_cpp(facts=[FACT]) as server:
            process = start("ask", QUESTION, document, "--model", server.url, "--quiet")
            process.stdout.close()
            assert process.wait(timeout=60) == 141
            assert process.stderr.read() == ""


class TestProgress:
    def test_is_a_few_lines_in_a_log(self, run, document):
        with llama_cpp(facts=[FACT]) as server:
            ended = run(
                "ask", QUESTION, document, "--model", server.url, "--chunk-tokens", "150", *MEMORY
            )
        first, *tenths, last = ended.stderr.splitlines()
        assert first.startswith("Reading 1 document (")
        assert last.startswith("Read ")
        assert "\x1b" not in ended.stderr
        chunks = int(re.search(r"Read (\d+) chunks", last)[1])
        assert chunks > 15
        assert 8 <= len(tenths) <= 10
        assert all("mill.txt" in line and "tokens read" in line for line in tenths)
        assert "1 quote found" in last

    def test_is_live_on_a_terminal_and_leaves_the_answer_to_standard_output(self, start, document):
        terminal, stderr = pty.openpty()
        with llama_cpp(facts=[FACT]) as server:
            process = start(
                "ask", QUESTION, document, "--model", server.url, *MEMORY,
                stderr=stderr, env={"TERM": "xterm"},
            )  # fmt: skip
            os.close(stderr)
            shown = read_to_end(terminal)
            stdout = process.stdout.read()
        assert stdout.startswith(f"{FACT} [1]\n")
        assert "Reading chunk 1 of about " in shown
        assert FACT not in shown

    @pytest.mark.parametrize("name", ["LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"])
    def test_tracing_is_warned_of(self, run, name):
        ended = run("ask", QUESTION, "none.txt", "--quiet", env={name: "true"})
        warning, error = ended.stderr.splitlines()
        assert warning.startswith(f"Warning: {name} is set")
        assert error.startswith("Error: ")


def read_to_end(terminal):
    pieces = []
    while True:
        try:
            piece = os.read(terminal, 65_536)
        except OSError:  # how Linux tells that the other end is closed
            piece = b""
        if not piece:
            os.close(terminal)
            return b"".join(pieces).decode()
        pieces.append(piece)


@pytest.mark.alone
@pytest.mark.end_to_end
class TestTheEmbeddedModel:
    """Slow: each runs a real model. They must not run beside another one on the same cores."""

    PLANTED = "The harbour master of Ostvik is a woman called Ingrid Halvorsen."
    ASKED = "Who is the harbour master of Ostvik?"

    def letter(self, planted):
        before = (
            "The town lies at the end of a narrow fjord. Two ferries a day cross to the islands. "
            "In winter the road over the pass is often closed. The school has forty pupils. "
        )
        after = (
            "The bakery opens at six. A new bridge was built ten years ago. The church is white "
            "and made of timber. Most families keep a boat. Cod is dried on racks in spring. "
        )
        return before * 6 + planted + " " + after * 6

    @pytest.mark.timeout(600)
    def test_finds_and_cites_a_planted_sentence_exactly(self, run, tmp_path):
        text = self.letter(self.PLANTED)
        (tmp_path / "letter.txt").write_text(text, "utf-8")
        ended = run("ask", self.ASKED, "letter.txt", "--json", timeout=500)
        assert (ended.returncode, ended.stderr) == (0, "")
        told = json.loads(ended.stdout)
        assert told["found"] is True
        assert "Ingrid Halvorsen" in told["answer"]
        start = text.index(self.PLANTED)
        assert (start, start + len(self.PLANTED), self.PLANTED) in [
            (cited["start_char"], cited["end_char"], cited["cited_text"])
            for cited in told["citations"]
        ]

    @pytest.mark.timeout(600)
    def test_finds_nothing_where_nothing_is_planted(self, run, tmp_path):
        (tmp_path / "letter.txt").write_text(self.letter(""), "utf-8")
        ended = run("ask", self.ASKED, "letter.txt", "--quiet", timeout=500)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout == "Not found: nothing in the document bears on this question.\n"
