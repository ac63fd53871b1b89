from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

HEAVY = {"langchain_core", "langgraph", "transformers", "openai", "httpx", "markitdown", "mcp"}


def test_the_version_is_that_of_the_package(run):
    ended = run("--version")
    assert (ended.returncode, ended.stdout) == (0, f"qwenlong-graph {version('qwenlong-graph')}\n")


def test_it_runs_as_a_module_too():
    ended = subprocess.run(
        [sys.executable, "-m", "qwenlong_graph.cli", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stdout == f"qwenlong-graph {version('qwenlong-graph')}\n"


def test_help_shows_examples_options_and_exit_codes(run):
    told = run("ask", "--help").stdout
    for expected in ('qwenlong-graph ask "', "--json", "QWENLONG_GRAPH_MODEL", "130  interrupted"):
        assert expected in told


@pytest.mark.parametrize(
    "arguments", [["--help"], ["ask", "--help"], ["mcp", "--help"], ["--version"]]
)
def test_help_and_version_import_nothing_heavy(arguments):
    script = (
        "import sys\n"
        "from qwenlong_graph.cli import main\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "try:\n    main()\n"
        "finally:\n"
        f"    print(*sorted(set(sys.modules) & {HEAVY!r}), file=sys.stderr)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr.split()) == (0, [])


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "Who?"],
        ["ask", "Who?", "a.txt", "--strategy", "guess"],
        ["ask", "Who?", "a.txt", "--chunk-tokens", "many"],
        ["ask", "Who?", "a.txt", "--no-such-option"],
        ["answer"],
    ],
)
def test_wrong_usage_exits_with_2(run, arguments):
    ended = run(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Usage: qwenlong-graph" in ended.stderr
