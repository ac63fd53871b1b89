from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ADDRESS = (EXAMPLES / "data" / "state-of-the-union-1946.txt").read_text("utf-8")
NAMES = ["supervisor", "swarm", "deep_agent", "mcp_client", "streaming_page"]
FOREIGN = ("QWENLONG_GRAPH_", "LANGSMITH_", "LANGCHAIN_", "OPENAI_")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What an example prints, run as a user would; the same call runs once.

    Nothing of it may be left in the user's data directory or among the temporary files.
    """
    folder = tmp_path_factory.mktemp("examples")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    data, scratch = folder / "data", folder / "scratch"
    scratch.mkdir()
    environment = {**kept, "QWENLONG_GRAPH_DATA": str(data), "TMPDIR": str(scratch)}

    @functools.cache
    def run_example(name, *arguments, code=0):
        command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
        # From elsewhere: paths must not depend on the current directory.
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    yield run_example
    assert not data.exists()
    # Importing torch, where it is installed, makes a folder.
    assert [one.name for one in scratch.iterdir() if "torchinductor" not in one.name] == []


def wrapped(text):
    return " ".join(text.split())


def quotes_of(output):
    """The quotes shown, each checked against the document."""
    found = re.findall(r'chars (\d+)-(\d+):?\s+"(.+?)"(?=\s*(?:$|\[|\n))', output, re.DOTALL)
    for start, end, quote in found:
        assert wrapped(ADDRESS[int(start) : int(end)]) == wrapped(quote)
    return [wrapped(quote) for _, _, quote in found]


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_an_example_shows(run, name):
    help_text = run(name, "--help")
    first_line = (EXAMPLES / f"{name}.py").read_text("utf-8").split('"""')[1].splitlines()[0]
    assert first_line in help_text
    assert "--model" in help_text


def test_the_supervisor_gets_the_workers_answer_with_its_citation(run):
    output = run("supervisor")
    assert re.search(r"chunk  1 of about \d+ .*\n(.*\n)*  chunk 15 of about 15 ", output)
    assert "supervisor: calls transfer_to_document_reader" in output
    (quote,) = quotes_of(output)
    assert f"document_reader: {quote}" in wrapped(output)
    assert f"supervisor: The reader found this: {quote}" in wrapped(output)


def test_the_swarm_hands_back_and_reads_once(run):
    first, second = run("swarm").split("\nTurn ")[1:]
    for turn in (first, second):
        assert "alice: calls transfer_to_reader" in turn
        assert "7.6 million were overseas" in wrapped(turn)
        assert "Whose turn it is now: alice" in turn
    assert re.search(r"citations: 1; from documents; chunks read: [1-9]", first)
    assert "citations: 1; from earlier evidence; chunks read: 0" in second


def test_the_deep_agent_writes_the_answer_and_its_sources_into_a_file(run):
    output = run("deep_agent")
    assert output.index("calls task: reader") < output.index("    chunk  1 of")
    assert output.index("    chunk  1 of") < output.index("calls write_file: /brief.md")
    assert len(quotes_of(output)) == 2
    assert "35.8 billion dollars. [1]" in wrapped(output)
    assert "31.5 billion dollars. [2]" in wrapped(output)


def test_the_mcp_client_is_shown_what_the_server_offers(run):
    output = run("mcp_client")
    assert re.search(r"  ask_documents +Ask a question about long documents\n", output)
    assert "refused: Reading" in output
    assert re.search(r"\n   1/\d+ +Read chunk 1 of", output)
    assert re.search(r"\n +(\d+)/\1 +Answered\n", output)
    (quote,) = quotes_of(output)
    assert "only 460,000 now remain." in quote
    resource = output.split("The resource run://")[1]
    assert re.search(r'"start_char": 33007', resource)


def test_a_server_of_the_mcp_client_that_has_no_model_is_told(run):
    output = run("mcp_client", "--model", "http://127.0.0.1:9", code=1)
    assert "no server answers there" in output
    assert "The answer" not in output


@pytest.mark.parametrize("name", ["supervisor", "swarm", "deep_agent", "mcp_client"])
def test_what_is_printed_fits_a_terminal(run, name):
    assert [line for line in run(name).splitlines() if len(line) > 80] == []
