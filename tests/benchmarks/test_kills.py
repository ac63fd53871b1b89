from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"


def test_a_few_kills_lose_nothing_and_every_measure_is_saved(tmp_path):
    saved_at = tmp_path / "kills.json"

    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--json", str(saved_at)],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    saved = json.loads(saved_at.read_text())
    assert set(saved) == {"machine", "versions", "seed", "chunks", "calls", "seconds", "cases"}
    # Each chunk once, and the answer; the caller's instructions spare the split.
    assert saved["calls"] == saved["chunks"] + 1 > 10
    assert [case["kill"] for case in saved["cases"]] == [1, 2, 3, 4, 5]
    for case in saved["cases"]:
        assert case["is_same_state"]
        assert case["is_same_order_of_calls"]
        assert case["is_journal_whole"]
        assert case["calls_repeated"] <= 1
        # Killed on the way: what is left to do was done by the resume.
        assert 0 <= case["steps_kept"] <= saved["chunks"]
    assert any(case["calls_before"] < saved["calls"] for case in saved["cases"])
    assert done.stdout.splitlines()[-1].startswith("5 of 5 right; ")
