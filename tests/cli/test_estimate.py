"""What a reading would take, told beforehand."""

from __future__ import annotations

import json

import pytest

from qwenlong_graph.cli.estimate import in_words
from qwenlong_graph.testing.scripted import count_words
from tests.cli.stub_server import llama_cpp
from tests.cli.test_ask import FACT, QUESTION

FILLER = "The winter was long and the traders stayed away from the coast. "


@pytest.fixture
def documents(tmp_path):
    """A long one and a short one."""
    annals, note = tmp_path / "annals.txt", tmp_path / "note.txt"
    years = "".join(f"In the year {year} all was quiet. {FILLER}" for year in range(1500, 1700))
    annals.write_text(years + FACT + " " + FILLER * 100, "utf-8")
    note.write_text(FACT, "utf-8")
    return annals, note


def estimated(run, server, *arguments):
    ended = run("estimate", *arguments, "--model", server.url, "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    return json.loads(ended.stdout)


@pytest.mark.contract
def test_documents_are_counted_apart_and_together(run, documents):
    with llama_cpp(facts=[FACT]) as server:
        told = estimated(run, server, *documents, "--chunk-tokens", 200)
        asked = len(server.prompts)
    annals, note = told["documents"]
    assert (annals["title"], note["title"]) == ("annals.txt", "note.txt")
    assert annals["chars"] == len(documents[0].read_text("utf-8"))
    assert (note["chunks"], told["chunk_tokens"]) == (1, 200)
    assert told["chunks"] == annals["chunks"] + note["chunks"]
    assert told["tokens"] == annals["tokens"] + note["tokens"]
    assert told["calls"] == told["chunks"] + 2
    assert told["input_tokens"] > told["tokens"] + told["chunks"] * told["memory_tokens"]
    assert asked == 2
    # The stub reports two tokens for each reply.
    assert told["output_tokens"] == 2 * told["calls"]
    assert told["seconds"] == pytest.approx(told["seconds_per_chunk"] * told["calls"], rel=0.1)


@pytest.mark.contract
@pytest.mark.parametrize("protocol", ["rewrite", "extract"])
def test_an_estimate_is_near_what_a_reading_takes(run, documents, tmp_path, protocol):
    options = ("--chunk-tokens", 300, "--protocol", protocol)
    with llama_cpp(facts=[FACT]) as server:
        told = estimated(run, server, *documents, *options, "--no-calibrate")
        ended = run(
            "ask", QUESTION, *documents, *options, "--strategy=memory", "--model", server.url,
            "--json",
        )  # fmt: skip
        sent = sum(map(count_words, server.prompts))
        usage = json.loads(ended.stdout)["usage"]
    assert told["chunks"] == pytest.approx(usage["steps"], rel=0.15)
    assert sent <= told["input_tokens"] <= 3 * sent
    kept = sum(path.stat().st_size for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert kept / 2 <= told["disk_bytes"] <= kept * 2
    assert told["calls"] - told["chunks"] == usage["calls"] - usage["steps"]


@pytest.mark.contract
def test_the_two_prompts_hold_different_text_so_that_no_cache_answers(run, documents):
    with llama_cpp() as server:
        estimated(run, server, documents[0], "--chunk-tokens", 200, "--protocol", "extract")
        first, second = server.prompts
    assert first != second


@pytest.mark.contract
def test_without_calibration_the_model_is_asked_nothing(run, documents):
    with llama_cpp() as server:
        told = estimated(run, server, *documents, "--no-calibrate")
        assert server.prompts == []
    assert (told["seconds"], told["output_tokens"]) == (None, None)
    assert told["chunks"] >= 2


@pytest.mark.contract
def test_a_person_gets_a_table_and_totals_in_words(run, documents):
    with llama_cpp(facts=[FACT]) as server:
        ended = run("estimate", *documents, "--model", server.url)
        plain = run("estimate", *documents, "--model", server.url, "--no-calibrate")
    assert ended.returncode == 0
    assert "\x1b" not in ended.stdout
    heading, annals, note = (line.split() for line in ended.stdout.splitlines()[:3])
    assert heading == ["Document", "Characters", "Tokens", "Chunks"]
    assert (annals[0], note[0], note[-1]) == ("annals.txt", "note.txt", "1")
    assert "\nTime:   about " in ended.stdout
    assert "\nOutput: about " in ended.stdout
    assert "\nDisk:   about " in plain.stdout
    assert "Time:" not in plain.stdout
    assert "Output:" not in plain.stdout


@pytest.mark.contract
def test_what_fits_in_one_pass_is_said_to(run, documents):
    with llama_cpp() as server:
        small = run("estimate", documents[1], "--model", server.url, "--no-calibrate")
        large = run("estimate", *documents, "--model", server.url, "--no-calibrate")
    assert "one pass" in small.stdout
    assert "one pass" not in large.stdout


@pytest.mark.contract
def test_a_missing_file_is_told_before_the_model_is_connected(run):
    ended = run("estimate", "nowhere.txt", "--model", "http://127.0.0.1:9", "--json")
    assert (ended.returncode, ended.stderr) == (3, "")
    assert json.loads(ended.stdout)["error"]["type"] == "DocumentNotFoundError"
    plain = run("estimate", "nowhere.txt", "--model", "http://127.0.0.1:9")
    assert (plain.returncode, plain.stdout) == (3, "")
    assert "nowhere.txt" in plain.stderr


@pytest.mark.contract
def test_settings_that_cannot_be_and_a_silent_server_are_told_apart(run, documents):
    with llama_cpp() as server:
        large = run("estimate", documents[0], "--model", server.url, "--chunk-tokens", 9_000)
        other = run("estimate", documents[0], "--model", server.url, "--protocol", "guess")
    gone = run("estimate", documents[0], "--model", server.url)
    assert [ended.returncode for ended in (large, other, gone)] == [2, 2, 2]
    assert "do not fit the window" in large.stderr
    assert "protocol" in other.stderr


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "less than a second"), (59.2, "59 s"), (140, "2 min 20 s"), (12_000, "3 h 20 min")],
)
def test_time_is_told_in_its_two_largest_units(seconds, words):
    assert in_words(seconds) == words
