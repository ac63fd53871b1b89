from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "clients.py"
CLIENTS = {
    "bare httpx",
    "ChatTGI",
    "ChatHuggingFace",
    "ChatOpenAI",
    "text-generation's AsyncClient",
}


@pytest.mark.contract
def test_a_quick_run_measures_every_client_against_both_servers(tmp_path):
    saved_at = tmp_path / "clients.json"

    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--json", str(saved_at)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    saved = json.loads(saved_at.read_text())
    assert {(row["server"], row["client"]) for row in saved["rows"]} == {
        (server, client) for server in ("double", "replay") for client in CLIENTS
    }
    assert all(row["invoke_ms"] > 0 and row["stream_us_per_token"] > 0 for row in saved["rows"])
    assert done.stdout.count("ChatTGI.invoke at most 1.5 times bare httpx") == 2
