from __future__ import annotations

import io

import pytest
from rich.console import Console

from qwenlong_graph.cli.progress import LiveProgress, PlainProgress, Reading, SilentProgress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


STARTED = {"type": "started", "strategy": "memory", "steps": 4, "chars": 400}


def chunk(step, *, document="a.txt", steps=4):
    return {
        "type": "chunk_read",
        "step": step,
        "steps": steps,
        "document": document,
        "start_char": 0,
        "end_char": 100,
        "tokens": 25,
    }


def updated(step, *, evidence=0, reply="complete"):
    return {
        "type": "memory_updated",
        "step": step,
        "start_char": 0,
        "end_char": 100,
        "reply": reply,
        "memory_tokens": 12,
        "evidence": evidence,
    }


RESUMED = {
    "type": "resumed",
    "strategy": "memory",
    "chars": 400,
    "chars_read": 200,
    "step": 2,
    "steps": 4,
    "evidence": 1,
}
MOVED = {"type": "journal_moved", "moved_to": "/runs/night/journal.damaged-1"}
RETRY = {"type": "retry", "step": 0, "attempt": 1, "reason": "the reply was empty"}
WAITING = {
    "type": "waiting_for_server",
    "server": "http://127.0.0.1:8080",
    "found": "connection refused",
    "seconds": 119.0,
    "timeout_s": 900.0,
}
ANSWERED = {"type": "answered", "found": True, "is_quoted": False}


def console(width=80):
    return Console(
        file=io.StringIO(), width=width, highlight=False, markup=False, force_terminal=False
    )


class TestReading:
    def test_adds_up_what_was_read_over_documents(self):
        reading = Reading()
        for event in (STARTED, chunk(0), updated(0), chunk(1, document="b.txt"), updated(1)):
            reading.take(event)
        assert (reading.share, reading.tokens_read, reading.document) == (0.5, 50, "b.txt")

    def test_foresees_the_time_left_and_counts_it_down(self):
        clock = Clock()
        reading = Reading(clock)
        reading.take(STARTED)
        assert reading.left_s is None
        clock.now += 10
        reading.take(chunk(0))
        reading.take(updated(0))
        assert reading.left_s == 30
        clock.now += 4
        assert (reading.left_s, reading.elapsed_s) == (26, 14)

    def test_foresees_the_later_chunks_even_where_the_open_one_overruns(self):
        clock = Clock()
        reading = Reading(clock)
        reading.take(STARTED)
        reading.take(chunk(0))
        clock.now += 10
        reading.take(updated(0))
        reading.take(chunk(1))
        clock.now += 400
        assert reading.left_s == 20

    def test_tells_of_retries_and_unread_chunks_only_if_there_are_any(self):
        reading = Reading()
        reading.take(STARTED)
        assert reading.findings() == ["0 tokens read", "memory 0 tokens", "0 quotes found"]
        for event in (chunk(0), RETRY, RETRY, updated(0, evidence=1, reply="kept")):
            reading.take(event)
        assert reading.findings() == [
            "25 tokens read",
            "memory 12 tokens",
            "1 quote found",
            "2 retries",
            "1 chunk without a usable reply",
        ]

    def test_shows_100_percent_only_when_all_is_read(self):
        reading = Reading()
        reading.take({**STARTED, "chars": 10_001})
        reading.take({**updated(0), "end_char": 10_000})
        assert reading.percent == 99
        reading.take({**updated(1), "end_char": 1})
        assert reading.percent == 100

    def test_goes_on_where_a_resumed_run_was_and_foresees_from_what_is_read_now(self):
        clock = Clock()
        reading = Reading(clock)
        reading.take(RESUMED)
        assert (reading.percent, reading.left_s, reading.chunk()) == (
            50,
            None,
            "chunk 3 of about 4",
        )
        clock.now += 10
        reading.take(chunk(2))
        reading.take(updated(2))
        assert (reading.percent, reading.left_s, reading.chunks_read) == (75, 10, 1)

    def test_passes_over_events_it_does_not_know(self):
        reading = Reading()
        reading.take({"type": "something new"})
        assert reading.share == 0


class TestPlain:
    def test_a_long_reading_has_about_ten_lines(self):
        shown = console()
        progress = PlainProgress(shown)
        progress.connected("m", documents=2)
        progress.event({**STARTED, "chars": 50_000})
        for step in range(500):
            progress.event(chunk(step, steps=500))
            progress.event(updated(step))
        progress.event(ANSWERED)
        lines = shown.file.getvalue().splitlines()
        assert lines[0] == "Reading 2 documents (50,000 characters) with m, in about 4 chunks."
        assert [line[:9] for line in lines[1:-1]] == [f" {n}0% read" for n in range(1, 10)]
        assert lines[-1].startswith("Read 500 chunks in ")

    def test_a_resumed_reading_is_told_with_what_is_read_and_tenths_go_on_from_there(self):
        shown = console()
        progress = PlainProgress(shown)
        progress.connected("m", documents=1)
        for event in (MOVED, RESUMED, chunk(2), updated(2), chunk(3), updated(3), ANSWERED):
            progress.event(event)
        moved, first, tenth, last = shown.file.getvalue().splitlines()
        assert moved.endswith("It is now /runs/night/journal.damaged-1; reading goes on.")
        assert (
            first
            == "Going on with 1 document (400 characters) with m: 50% read, chunk 3 of about 4."
        )
        assert tenth.startswith(" 75% read")
        assert last.startswith("Read 2 chunks in ")

    def test_one_pass_is_told_as_such(self):
        shown = console()
        progress = PlainProgress(shown)
        progress.connected("m", documents=1)
        progress.event({**STARTED, "strategy": "full"})
        progress.event(ANSWERED)
        first, last = shown.file.getvalue().splitlines()
        assert first.endswith("in one pass.")
        assert last.startswith("Read everything in one pass in ")

    def test_fetching_has_about_ten_lines(self):
        shown = console()
        progress = PlainProgress(shown)
        for done in range(0, 93_000_001, 100_000):
            progress.fetching(done, 93_000_000)
        lines = shown.file.getvalue().splitlines()
        assert len(lines) == 11
        assert lines[-1] == "Fetching the embedded model, 93 of 93 MB."

    def test_sizes_that_look_alike_are_told_once(self):
        shown = console()
        progress = PlainProgress(shown)
        for done in (50_000_000, 92_800_000, 93_000_000):
            progress.fetching(done, 93_000_000)
        assert shown.file.getvalue().count("93 of 93 MB") == 1

    def test_names_are_data(self):
        shown = console()
        progress = PlainProgress(shown)
        progress.left_out("\x1b[31m[bold]", "the file is\x07 empty")
        progress.connected("\x1bm", documents=1)
        for event in (STARTED, chunk(0, document="\x1b[2J"), updated(0)):
            progress.event(event)
        assert not {"\x1b", "\x07"} & set(shown.file.getvalue())
        assert "[bold]" in shown.file.getvalue()

    def test_waiting_for_a_server_is_told_with_how_long_it_may_be(self):
        shown = console(200)
        PlainProgress(shown).event(WAITING)
        assert shown.file.getvalue() == (
            "Waiting for http://127.0.0.1:8080 (connection refused), 2 of at most 15 minutes; "
            "what was read is kept.\n"
        )
        LiveProgress(shown).event(WAITING)
        assert shown.file.getvalue().count("2 of at most 15 minutes") == 2


class TestLive:
    def view(self, *events, width=80):
        progress = LiveProgress(console())
        progress.connected("m", documents=1)
        for event in events:
            progress.event(event)
        shown = console(width)
        shown.print(progress.view())
        return shown.file.getvalue()

    def test_shows_what_comes_before_reading(self):
        assert "Reading 1 document with m ..." in self.view()

    def test_shows_chunk_share_times_document_and_findings(self):
        first, second = self.view(
            STARTED, chunk(0), updated(0, evidence=3), chunk(1), RETRY
        ).splitlines()
        assert first.startswith("Reading chunk 2 of about 4 ")
        assert "25%  0:00 elapsed, ~0:00 left" in first
        assert "50%  0:00 elapsed" in self.view(RESUMED, chunk(2))
        assert second.rstrip() == (
            "25 tokens read · memory 12 tokens · 3 quotes found · 1 retry · a.txt"
        )

    @pytest.mark.parametrize("width", [20, 60, 80, 200])
    def test_stays_within_two_lines_whatever_a_document_is_called(self, width):
        events = (STARTED, chunk(0, document="x" * 200), updated(0), chunk(1))
        first, second = self.view(*events, width=width).splitlines()
        assert max(len(first), len(second)) <= width
        assert first.startswith("Reading ")
        assert second.startswith("25 tokens read")

    def test_shows_that_it_answers(self):
        shown = self.view(STARTED, chunk(0), updated(0), {"type": "finalizing"})
        assert "Answering from the memory of 12 tokens" in shown

    def test_shows_fetching_until_the_next_thing_begins(self):
        progress = LiveProgress(console())
        progress.fetching(31_000_000, 93_000_000)
        shown = console()
        shown.print(progress.view())
        progress.working("Starting the embedded model")
        shown.print(progress.view())
        fetching, working = shown.file.getvalue().splitlines()
        assert "31 of 93 MB" in fetching
        assert "Starting the embedded model ..." in working


def test_silence_is_kept_but_for_what_was_left_out():
    for hides, expected in ((True, 0), (False, 1)):
        shown = console()
        progress = SilentProgress(shown, hides_warnings=hides)
        progress.working("Loading")
        progress.fetching(1, 2)
        progress.connected("m", documents=1)
        progress.event(ANSWERED)
        progress.left_out("a.txt", "it is empty")
        assert shown.file.getvalue().count("\n") == expected
