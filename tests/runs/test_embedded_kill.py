"""A reading with the real embedded model, killed in the middle and resumed from the command line.

Slow: it must not run beside another embedded model on the same cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwenlong_graph.runs.directory import RunShelf

pytestmark = [pytest.mark.alone, pytest.mark.end_to_end, pytest.mark.timeout(600)]

MESSAGE = Path(__file__).parents[2] / "examples" / "data" / "state-of-the-union-1946.txt"
PLANTED = "Margaret Ellison keeps exactly forty-two beehives behind the old mill of Aldbury."
QUESTION = "How many beehives does Margaret Ellison keep behind the old mill of Aldbury?"
KEPT_BEFORE_KILL = 3


def test_what_was_read_before_a_kill_is_kept_and_the_rest_is_read(tmp_path):
    passage = MESSAGE.read_text(encoding="utf-8")[30_000:42_000]
    border = passage.index(". ", 1_000) + 2
    text = f"{passage[:border]}{PLANTED} {passage[border:]}"
    (tmp_path / "message.txt").write_text(text, encoding="utf-8")
    own = {"QWENLONG_GRAPH_DATA": str(tmp_path / "data"), "PYTHONWARNINGS": ""}
    environment = {**os.environ, **own}
    program = [sys.executable, "-m", "qwenlong_graph.cli"]
    shelf = RunShelf(tmp_path / "data" / "runs")
    folder = shelf.root / "night"

    def entries():
        return shelf.find("night").journal().entries() if (folder / "run.json").exists() else []

    asked = subprocess.Popen(
        [
            *program, "ask", QUESTION, tmp_path / "message.txt", "--model", "embedded",
            "--run-id", "night", "--strategy", "memory", "--chunk-tokens", "300", "--quiet",
        ],
        env=environment,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while len(entries()) < KEPT_BEFORE_KILL:
            assert asked.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        asked.kill()
        asked.wait()
    before = shelf.find("night").state()
    # Killed in the middle, with the planted sentence in memory.
    assert not before["answer"]
    assert KEPT_BEFORE_KILL - 1 <= before["step"] < before["steps"]
    assert PLANTED in before["memory"]

    resumed = subprocess.run(
        [*program, "resume", "night", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert (resumed.returncode, resumed.stderr) == (0, "")
    told = json.loads(resumed.stdout)
    # What stood in memory before the kill was neither asked for again nor lost.
    journal = entries()
    steps = [entry["step"] for entry in journal if entry["type"] == "memory_updated"]
    restored = [entry for entry in journal if entry["type"] == "restored"]
    told_steps = sorted([*steps, *(entry["step"] for entry in restored)])
    assert told_steps == list(range(told["usage"]["steps"]))
    memory: list[str] = []
    for entry in journal:
        if entry.get("step", before["step"]) >= before["step"]:
            break
        if entry["type"] == "restored":
            memory = entry["memory"].splitlines()
            continue
        memory = [line for line in memory if line not in entry.get("lines_removed", [])]
        memory += entry.get("lines_added", [])
    assert sorted(memory) == sorted(before["memory"].splitlines())
    # A valid completion: found, and cited exactly.
    assert told["found"] is True
    for citation in told["citations"]:
        assert text[citation["start_char"] : citation["end_char"]] == citation["cited_text"]
    assert PLANTED in [citation["cited_text"] for citation in told["citations"]]
