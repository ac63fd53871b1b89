from __future__ import annotations

import os
import subprocess
import sys

import pytest

from qwenlong_graph.errors import RunError, RunLockedError, RunNotFoundError
from qwenlong_graph.runs.lock import hold

HOLDER = """
import sys
from pathlib import Path
from qwenlong_graph.runs.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_who_holds_the_lock_and_takes_over_after_a_kill(tmp_path):
    path = tmp_path / "lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        try:
            assert process.stdout.readline() == b"held\n"
            told = rf"process {process.pid} .* since 20\d\d-"
            with pytest.raises(RunLockedError, match=told), hold(path):
                pass
        finally:
            process.kill()
    assert path.exists()
    with hold(path), pytest.raises(RunLockedError), hold(path):
        pass
    with hold(path):
        pass
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_of_a_former_holder_locks_nobody_out(tmp_path):
    path = tmp_path / "lock"
    path.write_text('{"pid": 1, "host": "elsewhere"} of old' + " and older" * 20)
    told = f"process {os.getpid()} on"
    with hold(path), pytest.raises(RunLockedError, match=told), hold(path):
        pass


def test_a_run_that_is_gone_is_not_found(tmp_path):
    with pytest.raises(RunNotFoundError, match="removed"), hold(tmp_path / "gone" / "lock"):
        pass


def test_a_lock_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(RunError, match="--data-dir"), hold(tmp_path / "lock"):
        pass
