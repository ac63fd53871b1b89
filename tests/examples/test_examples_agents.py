"""The examples as a stranger runs them: processes of their own, started somewhere else."""

from __future__ import annotations

import ast
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.end_to_end

EXAMPLES = Path(__file__).parents[2] / "examples"
ADDRESS = (EXAMPLES / "data" / "state-of-the-union-1946.txt").read_text("utf-8")
NAMES = [
    "document_tool",
    "human_review",
    "many_documents",
    "middleware",
    "rag_and_reading",
    "structured_output",
]
# asgi_app is for uvicorn: it takes no options.
ALL = sorted(path.stem for path in EXAMPLES.glob("[!_]*.py") if path.stem != "asgi_app")


class Run:
    """An example in a folder of its own; fails where it fails, warns or leaves something behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, *arguments: str, typed: str = "", code: int = 0) -> str:
        places = {place: self.folder / place for place in ("data", "temporary", "here")}
        for place in places.values():
            place.mkdir(exist_ok=True)
        ended = subprocess.run(
            [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
            cwd=places["here"],
            env={
                **os.environ,
                "QWENLONG_GRAPH_DATA": str(places["data"]),
                "TMPDIR": str(places["temporary"]),
                "PYTHONPATH": str(EXAMPLES.parent),
                "COLUMNS": "80",
            },
            input=typed,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == code, ended.stderr
        if code == 0:
            assert ended.stderr == ""
        for place in places.values():
            assert list(place.iterdir()) == []
        return ended.stdout if code == 0 else ended.stderr


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def plain(text: str) -> str:
    return " ".join(text.split())


def printed_quotes(output: str) -> list[tuple[str, int, int, str]]:
    """(document, start, end, quote) of each citation that was printed."""
    found = re.findall(r'\[\d+\] ([^\n]+), chars (\d+)-(\d+)\n +"(.*?)"\n', output, re.DOTALL)
    return [(title, int(start), int(end), plain(text)) for title, start, end, text in found]


@pytest.fixture
def code_of(monkeypatch):
    """What an example defines, by its name."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return lambda name: runpy.run_path(str(EXAMPLES / f"{name}.py"))


def assert_real(citations: Sequence[tuple[str, int, int, str]]) -> None:
    """Each quote stands in the address of 1946, at the offsets that were printed."""
    assert citations
    for title, start, end, text in citations:
        assert title == "state-of-the-union-1946.txt"
        assert plain(ADDRESS[start:end]) == text


@pytest.mark.parametrize("name", ALL)
def test_help_shows_the_first_lines(run, name):
    source = (EXAMPLES / f"{name}.py").read_text("utf-8")
    docstring = ast.get_docstring(ast.parse(source), clean=False)
    assert docstring.splitlines()[0]
    told = run(name, "--help")
    assert docstring.strip() in told
    assert "--model" in told
    assert [line for line in told.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("name", NAMES)
def test_lines_fit_a_terminal(run, name):
    assert [line for line in run(name).splitlines() if len(line) > 80] == []


def test_document_tool(run):
    output = run("document_tool")
    assert "The document says: At the present time the Fair Labor Standards Act" in plain(output)
    reports = [plain(line) for line in re.findall(r"^  chunk .*$", output, re.MULTILINE)]
    assert len(reports) > 10
    assert reports[0].endswith("memory 0 tokens")
    assert not reports[-1].endswith("memory 0 tokens")
    assert_real(printed_quotes(output))
    assert "(found: True)" in output


def test_rag_and_reading(run):
    local, whole = run("rag_and_reading").split("List all that the President", 1)
    assert "Taken: retrieval, since no word" in local
    assert "only 460,000 now remain." in plain(local)
    assert 'Taken: reading, since "List" asks' in whole
    taken, other = whole.split("By retrieval instead")
    said, missed = (re.findall(r"^  - ", part, re.MULTILINE) for part in (taken, other))
    assert len(said) == 5
    assert 0 < len(missed) < 5
    assert "citations: 5" in taken
    for statement in re.split(r"\n  - ", taken)[1:]:
        assert plain(statement) in plain(ADDRESS)


def test_middleware(run, code_of):
    output = run("middleware")
    size = re.search(r"about ([\d,]+) tokens, ([\d,]+) characters, 1 line\b", plain(output))
    assert int(size[2].replace(",", "")) > 2_900_000
    assert "list of 22,556" in output
    assert len(output) < 5_000
    example = code_of("middleware")
    result = example["json"].dumps(list(example["tickets"](3)))
    ((title, start, end, quote),) = printed_quotes(output)
    assert title.startswith("export_tickets (content-")
    assert result[start:end] == quote == example["FIRE"]


def test_middleware_takes_shorter_results(run):
    output = run("middleware", "--megabytes", "0.05")
    assert "One ticket says: The battery of the scooter S7 caught fire" in output


def test_structured_output(run):
    output = run("structured_output")
    assert '{"present": 40, "proposed": 65, "after_one_year": 70, "after_two_years": 75}' in output
    assert "raised by 88% within two years" in output
    citations = printed_quotes(output)
    assert_real(citations)
    for cents in ("40 cents", "65 cents", "70 cents", "75 cents"):
        assert any(cents in quote for *_, quote in citations)
    assert output.endswith("none\n")


def test_human_review(run):
    output = run("human_review")
    decided = re.findall(r"^The reviewer decides: (\w+), since", output, re.MULTILINE)
    assert decided == ["skip", "accept", "accept", "edit", "accept"]
    read, answer = output.split("The answer\n")
    assert "veterans' unemployment allowances" in read
    assert "veterans" not in answer
    assert_real(printed_quotes(answer))
    start, end = re.search(
        r"Passed over by the reviewer: chars ([\d,]+) to ([\d,]+)", answer
    ).groups()
    assert int(start.replace(",", "")) < int(end.replace(",", ""))


def test_human_review_by_a_person(run):
    typed = "what?\nskip 2\nedit\n- a line that stands nowhere\n\nanswer\n"
    output = run("human_review", "--interactive", typed=typed)
    assert output.count("accept, edit, skip CHUNKS or answer?") == 4
    assert re.findall(r"decides: (\w+)", output) == ["skip", "edit", "answer"]
    assert output.count("Passed over by the reviewer") == 2


def test_human_review_without_anybody_there(run):
    output = run("human_review", "--interactive")
    assert "decides: answer, since nobody is there" in output
    assert "Nothing in the documents bears on this question." in output


def test_many_documents(run, code_of, tmp_path):
    output = run("many_documents")
    rows = re.findall(r"^ +([\d,]+) +([\d,]+) +(\d+) +(\d+)$", output, re.MULTILINE)
    assert len(rows) == 10
    read = [int(text.replace(",", "")) for _, text, *_ in rows]
    assert read[-1] > 8 * read[0]
    assert int(rows[-1][3]) < 1.5 * int(rows[0][3])
    example = code_of("many_documents")
    logs = tmp_path / "logs"
    logs.mkdir()
    example["write_logs"](logs, 200)
    assert len(list(logs.iterdir())) == 200
    citations = printed_quotes(output)
    assert [quote for *_, quote in citations] == example["VOYAGE"]
    assert len({title for title, *_ in citations}) == 4
    for title, start, end, quote in citations:
        assert (logs / title).read_text("utf-8")[start:end] == quote


def test_many_documents_needs_room_for_the_voyage(run):
    assert "5 or more are needed" in run("many_documents", "--files", "4", code=2)
    assert "Citations: 4, of 5 files" in run("many_documents", "--files", "5")


@pytest.mark.parametrize("name", ["document_tool", "ray_batch", "streaming_page"])
def test_a_model_that_cannot_be_reached_is_told(run, name):
    told = run(name, "--model", "http://127.0.0.1:9", code=1)
    assert told.startswith("--model http://127.0.0.1:9: ")
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("middleware", "--megabytes", "0"),
        ("middleware", "--megabytes", "nan"),
        ("ray_batch", "--workers", "0"),
    ],
)
def test_a_number_that_makes_no_sense_is_told(run, name, option, value):
    told = run(name, option, value, code=2)
    assert f"error: {option}: " in told
    assert "Traceback" not in told


def test_a_row_whose_model_is_gone_fails_alone(code_of, tmp_path):
    reader = code_of("ray_batch")["RowReader"]("http://127.0.0.1:9", str(tmp_path))
    told = reader({"id": "row-0", "question": "Who?", "document": "none"})
    assert told["how"] == "failed"
    assert "http://127.0.0.1:9" in told["error"]
    assert list(tmp_path.iterdir()) == []


def test_a_service_says_how_it_is_started(run):
    assert "uvicorn asgi_app:app" in run("asgi_app", code=1)


def test_an_interrupt_is_told_in_a_word():
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "human_review.py"), "--interactive"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    with process:
        assert any("The memory is empty." in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=60)[1]
    assert told == "\nInterrupted.\n"
    assert process.returncode == -signal.SIGINT


def test_the_table_names_every_example():
    page = (EXAMPLES / "README.md").read_text("utf-8")
    linked = re.findall(r"\]\(([^)]+\.py)\)", page)
    written = sorted(path.name for path in EXAMPLES.glob("[!_]*.py"))
    assert sorted(set(linked)) == written
