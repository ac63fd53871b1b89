from __future__ import annotations

import json
import signal
import time

import pytest

from tests.cli.stub_server import llama_cpp
from tests.cli.test_ask import FACT, QUESTION
from tests.cli.test_runs import LONG, annals, interrupted

pytestmark = pytest.mark.contract


@pytest.fixture
def asked(run, tmp_path):
    with llama_cpp(facts=[FACT]) as server:
        assert run("ask", QUESTION, annals(tmp_path), "--model", server.url, *LONG).returncode == 0
        yield server


def test_the_newest_run_becomes_a_page_that_only_its_owner_reads(run, asked, tmp_path):
    before = len(asked.prompts)
    done = run("report")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Wrote reading-night.html\n"
    path = tmp_path / "reading-night.html"
    assert f"<mark>{FACT}</mark>" in path.read_text("utf-8")
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(asked.prompts) == before


def test_a_name_may_be_cut_and_the_file_chosen(run, asked, tmp_path):
    done = run("report", "nig", "--output", tmp_path / "page.html", "--json")
    told = json.loads(done.stdout)
    path = tmp_path / "page.html"
    assert told == {"run_id": "night", "path": str(path), "bytes": path.stat().st_size}


def test_it_goes_to_standard_output(run, asked, tmp_path):
    done = run("report", "night", "-o", "-")
    assert done.stdout.startswith("<!doctype html>")
    assert done.stdout.rstrip().endswith("</html>")
    assert not list(tmp_path.glob("*.html"))


def test_a_run_that_was_interrupted_says_how_to_go_on(run, start, tmp_path):
    with llama_cpp(facts=[FACT]) as server:
        code, _, _ = interrupted(start, server, annals(tmp_path), after=4)
        assert code == 130
        page = run("report", "night", "-o", "-").stdout
    assert "Not finished" in page
    assert "It was interrupted." in page
    assert "qwenlong-graph resume night" in page


def test_a_run_that_was_killed_has_a_report(run, start, tmp_path):
    with llama_cpp(facts=[FACT]) as server:
        process = start("ask", QUESTION, annals(tmp_path), "--model", server.url, *LONG)
        while len(server.prompts) < 4:
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        done = run("report", "night", "-o", "-")
    assert done.returncode == 0
    assert "Not finished" in done.stdout


def test_an_unknown_run_is_told_with_its_neighbours(run, asked):
    done = run("report", "nigth")
    assert done.returncode == 5
    assert "night" in done.stderr


def test_without_any_run_it_says_how_to_begin_one(run, tmp_path):
    done = run("report")
    assert done.returncode == 5
    assert "qwenlong-graph ask" in done.stderr


def test_a_place_that_cannot_be_written_is_told(run, asked, tmp_path):
    done = run("report", "--output", tmp_path / "missing" / "page.html")
    assert done.returncode == 2
    assert "--output" in done.stderr


def test_a_device_stays_one_and_a_link_leads_on(run, asked, tmp_path):
    (tmp_path / "null.html").symlink_to("/dev/null")
    (tmp_path / "page.html").write_text("old")
    (tmp_path / "link.html").symlink_to("page.html")
    assert run("report", "--output", tmp_path / "null.html").returncode == 0
    assert run("report", "--output", tmp_path / "link.html").returncode == 0
    assert (tmp_path / "null.html").is_char_device()
    assert (tmp_path / "link.html").is_symlink()
    assert FACT in (tmp_path / "page.html").read_text("utf-8")
