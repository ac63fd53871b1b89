from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "hosts.py"


@pytest.mark.contract
def test_a_quick_run_measures_both_forms_with_and_without_a_checkpointer(tmp_path):
    saved_at = tmp_path / "hosts.json"

    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--json", str(saved_at)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    rows = json.loads(saved_at.read_text())["rows"]
    assert {(row["form"], row["checkpointer"]) for row in rows} == {
        (form, kept) for form in ("sync", "async") for kept in ("nothing", "SQLite")
    }
    assert all(row["chunks"] >= 10 and row["host_ms"] > 0 for row in rows)
    assert "overhead below 5 ms a chunk" in done.stdout
