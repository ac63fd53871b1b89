from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).parent / "qwenlong-graph"
FOREIGN = ("QWENLONG_GRAPH_", "LANGSMITH_", "LANGCHAIN_", "OPENAI_", "FORCE_COLOR", "NO_COLOR")


@pytest.fixture
def environment(tmp_path):
    """Of the user's environment only what does not change behaviour; texts go to a new place."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return {
        **kept,
        "QWENLONG_GRAPH_DATA": str(tmp_path / "data"),
        "COLUMNS": "80",
        # As for a user; the test run itself turns warnings into errors in another way.
        "PYTHONWARNINGS": "",
    }


@pytest.fixture
def start(tmp_path, environment):
    """Starts the command line as a process, in the directory of the test."""
    processes = []

    def start_process(*arguments, env=None, **options):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen(
            [PROGRAM, *map(str, arguments)],
            cwd=tmp_path,
            env={**environment, **(env or {})},
            stdin=options.pop("stdin", subprocess.DEVNULL),
            text=True,
            encoding="utf-8",
            **options,
        )
        processes.append(process)
        return process

    yield start_process
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def run(start):
    """Runs the command line to its end: an object with returncode, stdout and stderr."""

    def run_process(*arguments, given=None, env=None, timeout=120):
        stdin = subprocess.PIPE if given is not None else subprocess.DEVNULL
        process = start(*arguments, env=env, stdin=stdin)
        stdout, stderr = process.communicate(given, timeout=timeout)
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    return run_process
