from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "loop.py"

MEASURES = {
    "agent_seconds",
    "plain_seconds",
    "ratio",
    "ratio_without_alignment",
    "agent_work_ms",
    "alignment_ms",
    "plain_work_ms",
    "storing_seconds",
    "peak_bytes",
    "growth_bytes",
    "plain_growth_bytes",
    "file_bytes",
}


def test_a_quick_run_prints_one_row_and_saves_every_measure(tmp_path):
    saved_at = tmp_path / "loop.json"

    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--json", str(saved_at)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    saved = json.loads(saved_at.read_text())
    assert set(saved) == {"machine", "versions", "seed", "settings", "repeats", "cases"}
    assert set(saved["machine"]) == {"cores", "machine", "system", "python"}
    assert all(saved["versions"].values())
    (case,) = saved["cases"]
    assert set(case) == MEASURES | {"tokens", "delay_ms", "chunks", "evidence"}
    assert (case["tokens"], case["delay_ms"]) == (60_000, 0)
    # The script stops by itself where the agent's chunks, calls or evidence differ from these.
    assert case["chunks"] == 2
    assert case["evidence"] > 0
    assert all(case[name] > 0 for name in MEASURES - {"growth_bytes", "plain_growth_bytes"})
    assert done.stdout.splitlines()[-1].split()[:3] == ["60000", "0", "2"]
