from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults.py"


def run(*arguments: str, saved_at: Path) -> tuple[subprocess.CompletedProcess[str], dict]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", *arguments, "--json", str(saved_at)],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        # Without torch, transformers says that it is missing.
        env={**os.environ, "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"},
    )
    return done, json.loads(saved_at.read_text())


def test_each_fault_once_loses_nothing_in_silence(tmp_path):
    done, saved = run("--only", "faults", saved_at=tmp_path / "faults.json")

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert set(saved) == {"machine", "versions", "chunks", "requests", "seconds", "cases"}
    cases = saved["cases"]
    assert {case["expects"] for case in cases} == {"same", "undisturbed", "stop", "mended", "kept"}
    assert {case["mode"] for case in cases} == {"sync", "async"}
    assert {case["point"] for case in cases} == {"early", "middle", "late"}
    for case in cases:
        assert case["is_right"], case
        if case["expects"] == "same":
            # Repeated because it failed, told because it was repeated, and nothing else repeated.
            assert case["repeated"] == case["told"]["server_failed"] >= 1
            assert case["is_same_state"]
            assert case["is_once_in_order"]
        if case["expects"] == "kept":
            assert not case["is_same_memory"]
            assert case["told"]["unread"] == 1
    assert done.stdout.splitlines()[-1] == f"{len(cases)} of {len(cases)} right"


def test_many_documents_at_once_keep_to_the_limit(tmp_path):
    done, saved = run("--only", "load", saved_at=tmp_path / "load.json")

    assert done.stderr == "", done.stdout
    assert saved["load"]["in_flight_max"] == saved["load"]["limit"] == 8
    assert saved["load"]["requests"] == 64 * 4
    assert saved["load"]["peak_end_mb"] <= 1.1 * saved["load"]["peak_quarter_mb"]
