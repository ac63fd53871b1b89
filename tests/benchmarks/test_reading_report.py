from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reading_report.py"


@pytest.mark.end_to_end
def test_a_quick_run_writes_a_report_and_opens_it(tmp_path):
    saved_at = tmp_path / "report.json"

    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--json", str(saved_at)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    row = json.loads(saved_at.read_text())["row"]
    assert row["chunks"] >= 25
    assert 0 < row["megabytes"] < 1
