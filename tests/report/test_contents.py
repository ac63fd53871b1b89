from __future__ import annotations

import html
import json
import re
from dataclasses import replace

import pytest
from langchain_core.documents import Document
from langgraph.checkpoint.memory import InMemorySaver

from qwenlong_graph import ReadingSettings
from qwenlong_graph.errors import ModelUnavailableError, RunFormatError
from qwenlong_graph.graph.state import unpack_evidence
from qwenlong_graph.reading.evidence import unverified_lines
from qwenlong_graph.report import reading_of_run, reading_of_thread, report_page
from qwenlong_graph.report.contents import TEXT_BYTES_MAX, contents_of
from qwenlong_graph.testing.scripted import scripted
from tests.report.readings import (
    FACT,
    FILLER,
    OTHER,
    QUESTION,
    TEXT,
    agent_for,
    kept_run,
    oracle_reply,
)

pytestmark = pytest.mark.contract


def rows_of(contents):
    return [row for block in contents.blocks for row in json.loads(block)]


def model_of(run):
    """A "memory_updated" entry as it is written."""
    return next(e for e in run.journal().entries() if e["type"] == "memory_updated")


def rewritten(run, *entries):
    run.journal().path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))


def failing_at(call, error):
    answer, calls = oracle_reply(), 0

    def reply(messages):
        nonlocal calls
        calls += 1
        return error if calls == call else answer(messages)

    return reply


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return kept_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def contents(kept):
    return contents_of(reading_of_run(*kept))


class TestAnAnsweredRun:
    def test_its_pieces_are_the_answer(self, kept, contents):
        values = kept[0].state()
        assert "".join(piece.text for piece in contents.pieces) == values["answer"]
        marks = [number for piece in contents.pieces for number in piece.marks]
        assert marks == list(range(1, len(values["citations"]) + 1))
        assert contents.status == "Answered"

    def test_its_sources_are_shown_in_the_text_around_them(self, contents):
        assert [source.cited for source in contents.sources] == [FACT, OTHER]
        for source in contents.sources:
            shown = f"{source.before}{source.cited}{source.after}"
            assert shown in TEXT
            assert len(source.before) > 100
            assert len(source.after) > 100

    def test_each_chunk_has_a_row_with_what_it_changed(self, kept, contents):
        rows = rows_of(contents)
        assert [row["n"] for row in rows] == list(range(1, kept[0].state()["step"] + 1))
        added = [row for row in rows if "added" in row]
        assert [row["added"] for row in added] == [[f"- {FACT}"], [f"- {OTHER}"]]
        assert [row["quotes"][0][1] for row in added] == [FACT, OTHER]
        assert [source.step for source in contents.sources] == [row["n"] for row in added]
        assert rows[0]["plan"]
        assert all("plan" not in row and row["same_plan"] for row in rows[1:])

    def test_its_memory_leads_to_the_sources(self, contents):
        assert [line.text for line in contents.memory] == [f"- {FACT}", f"- {OTHER}"]
        assert [line.sources for line in contents.memory] == [(1,), (2,)]
        assert not any(line.is_unverified for line in contents.memory)

    def test_the_strip_shows_where_in_the_document(self, contents):
        (strip,) = contents.strips
        assert [round(tick.x) for tick in strip.ticks] == [
            round(1000 * TEXT.index(fact) / len(TEXT)) for fact in (FACT, OTHER)
        ]
        assert strip.read == ((0.0, 1000.0),)
        assert "100 % read" in strip.note

    def test_no_model_is_needed_and_nothing_is_written(self, kept):
        run, store = kept
        before = {path: path.read_bytes() for path in run.path.parent.parent.rglob("*.jsonl")}
        report_page(reading_of_run(run, store))
        assert {path: path.read_bytes() for path in before} == before


def test_a_claim_without_a_quote_is_marked_in_the_answer(tmp_path):
    def reply(messages):
        prompt = str(messages[-1].text)
        if "<previous_memory>" in prompt or "<core_question>" in prompt:
            return oracle_reply()(messages)
        return "The widow Hale paid 318,000 crowns for the bridge at Orrin in 1377."

    contents = contents_of(reading_of_run(*kept_run(tmp_path, reply)))

    assert [claim["text"] for claim in contents.unsupported] == ["1377"]
    (piece,) = [piece for piece in contents.pieces if piece.claim]
    assert (piece.text, piece.claim) == ("1377", "unsupported")


def test_reasons_of_repeated_calls_stand_with_their_chunk(tmp_path):
    answer, calls = oracle_reply(), 0

    def reply(messages):
        nonlocal calls
        calls += 1
        return "<memory>\n- cut" if calls == 4 else answer(messages)

    rows = rows_of(contents_of(reading_of_run(*kept_run(tmp_path, reply))))

    again = [row for row in rows if "again" in row]
    assert [row["n"] for row in again] == [3]
    assert len(again[0]["retried"]) == 1
    assert again[0]["retried"][0]


def test_a_chunk_without_a_usable_reply_is_unread(tmp_path):
    answer, calls = oracle_reply(), 0

    def reply(messages):
        nonlocal calls
        calls += 1
        return (
            "" if "<previous_memory>" in str(messages[-1].text) and calls < 6 else answer(messages)
        )

    contents = contents_of(reading_of_run(*kept_run(tmp_path, reply)))

    unread = [row for row in rows_of(contents) if row["kind"] == "unread"]
    assert unread
    assert len(contents.stretches) == len(unread)
    assert contents.strips[0].unread


class TestARunWithoutAnAnswer:
    def test_one_that_failed_says_why_and_how_far_it_is(self, tmp_path):
        run, store = kept_run(tmp_path, failing_at(5, ModelUnavailableError("The server is gone.")))
        contents = contents_of(reading_of_run(run, store, next_step="qwenlong-graph resume X"))
        assert contents.status == "Not finished"
        assert "The server is gone." in contents.status_note
        assert "3 of about" in contents.status_note
        assert "qwenlong-graph resume X" in contents.status_note
        assert len([row for row in rows_of(contents) if row["kind"] == "chunk"]) == 3
        assert "There is no answer." in report_page(reading_of_run(run, store))

    def test_one_that_never_began(self, tmp_path):
        contents = contents_of(reading_of_run(*kept_run(tmp_path, is_read=False)))
        assert contents.status == "Not begun"
        assert not contents.blocks

    def test_one_that_is_paused_says_so(self, tmp_path):
        run, store = kept_run(tmp_path, review="memory", review_every=2)
        contents = contents_of(reading_of_run(run, store))
        assert contents.status == "Paused for a review"

    def test_one_that_found_nothing(self, tmp_path):
        contents = contents_of(
            reading_of_run(*kept_run(tmp_path, oracle_reply(["nowhere at all"])))
        )
        assert contents.status == "Not found"
        assert contents.status_note == "Nothing in the documents bears on the question."
        assert not contents.sources
        assert not contents.memory

    def test_one_that_found_nothing_in_what_it_read(self, tmp_path):
        run, store = kept_run(tmp_path, oracle_reply(["nowhere at all"]))
        reading = reading_of_run(run, store)
        values = {**reading.values, "skipped": [[0, 0, 900]]}
        contents = contents_of(replace(reading, values=values))
        assert "not all of it" in contents.status_note

    def test_a_failure_that_was_overcome_is_told_where_it_was(self, tmp_path):
        run, store = kept_run(tmp_path, failing_at(5, ModelUnavailableError("gone for a while")))
        values = run.state()
        entries = run.journal().entries()
        assert entries[-1] == {
            "type": "stopped",
            "error": "ModelUnavailableError",
            "message": "gone for a while",
        }
        run.journal().append({**entries[-3], "step": values["step"], "type": "memory_updated"})
        rows = rows_of(contents_of(reading_of_run(run, store)))
        (told,) = [row for row in rows if "told" in row]
        assert "gone for a while" in told["told"][-1]


def test_one_that_was_interrupted_twice_says_so(tmp_path):
    run, store = kept_run(tmp_path, failing_at(5, ModelUnavailableError("gone")))
    stopped = {"type": "stopped", "error": "interrupted", "message": ""}
    first, *others = [e for e in run.journal().entries() if e["type"] == "memory_updated"]
    rewritten(run, first, stopped, *others, stopped)
    contents = contents_of(reading_of_run(run, store))
    assert contents.status_note.startswith("It was interrupted. 3 of about")
    told = [(row["n"], row["told"]) for row in rows_of(contents) if "told" in row]
    assert told == [
        (2, ["The reading was interrupted here, and went on later."]),
        (4, ["The reading was interrupted here."]),
    ]


def test_a_retry_of_the_answer_is_told_after_the_last_chunk(tmp_path):
    answer, is_first = oracle_reply(), True

    def reply(messages):
        nonlocal is_first
        prompt = str(messages[-1].text)
        if "<previous_memory>" in prompt or "<core_question>" in prompt or not is_first:
            return answer(messages)
        is_first = False
        return ""

    run, store = kept_run(tmp_path, reply)
    last = rows_of(contents_of(reading_of_run(run, store)))[-1]
    assert last["n"] == run.state()["step"] + 1
    assert last["where"] == "After the last chunk"
    assert len(last["retried"]) == 1


def test_one_pass_over_all_of_it_is_all_read(tmp_path, monkeypatch):
    settings = ReadingSettings(strategy="full")
    monkeypatch.setattr("tests.report.readings.SETTINGS", settings)
    text = f"{FILLER * 20}{FACT} {FILLER * 20}"
    contents = contents_of(reading_of_run(*kept_run(tmp_path, lambda _: FACT, text=text)))
    assert [source.cited for source in contents.sources] == [FACT]
    (strip,) = contents.strips
    assert "100 % read" in strip.note
    assert strip.read == ((0.0, 1000.0),)


def test_chunks_that_the_journal_lacks_are_read_all_the_same(tmp_path):
    run, store = kept_run(tmp_path)
    run.journal().path.unlink()
    (strip,) = contents_of(reading_of_run(run, store)).strips
    assert "100 % read" in strip.note


def test_a_doubtful_line_casts_no_doubt_on_a_longer_one(kept):
    reading = reading_of_run(*kept)
    memory = f"{reading.values['memory']}\n- Hale"
    unverified = unverified_lines(memory, unpack_evidence(reading.values["evidence"]))
    values = {**reading.values, "memory": memory, "unverified": unverified}
    lines = contents_of(replace(reading, values=values)).memory
    assert [line.is_unverified for line in lines] == [False, False, True]


def test_a_long_line_of_memory_leads_to_its_sources(kept):
    reading = reading_of_run(*kept)
    memory = f"- {FACT} {FILLER * 12}{OTHER}"
    values = {**reading.values, "memory": memory}
    (line,) = contents_of(replace(reading, values=values)).memory
    assert line.sources == (1, 2)


class TestEntriesOfOtherHands:
    def test_an_older_version_left_most_of_it_out(self, tmp_path):
        run, store = kept_run(tmp_path)
        names = ("type", "step", "document", "start_char", "end_char", "reply", "memory_tokens")
        rewritten(run, {name: model_of(run)[name] for name in names})
        reading = reading_of_run(run, store)
        row, _ = rows_of(contents_of(reading))
        assert row["where"] == "annals, chars 0–1,920"
        assert "counts" not in row  # what changed is not known
        assert report_page(reading)

    @pytest.mark.parametrize(
        "value",
        [None, 5, -1, 1.5, True, "x", [1], ["x"], {"a": 1}, [[1]], [[0, "a", 2]], [[0, 9, 2]],
         10**400, float("nan"), float("inf")],
        ids=lambda value: repr(value)[:12],
    )  # fmt: skip
    def test_any_value_leaves_a_page(self, kept, value):
        reading = reading_of_run(*kept)
        whole = model_of(kept[0])
        restored = {"type": "restored", "first_step": 0, "step": 1, "memory": "- x"}
        entries = [
            {**entry, key: value}
            for entry in (
                whole,
                restored,
                {"type": "retry", "step": 0, "reason": "r"},
                {"type": "stopped", "error": "e", "message": "m"},
                {"type": "reviewed", "step": 0, "action": "edit", "lines_added": ["a"]},
                {"type": "damaged", "moved_to": "m"},
            )
            for key in entry
            if key not in {"type", "step"}
        ]
        for entry in entries:
            page = contents_of(replace(reading, entries=[entry]))
            rows = [row for block in page.blocks for row in json.loads(block, parse_constant=int)]
            numbers = [row["n"] for row in rows]
            assert numbers == sorted(set(numbers))
            assert report_page(replace(reading, entries=[entry]))

    def test_a_stretch_that_ends_before_it_begins(self, kept):
        reading = reading_of_run(*kept)
        entry = {"type": "restored", "first_step": 9, "step": 3}
        rows = rows_of(contents_of(replace(reading, entries=[entry])))
        assert [(row["n"], row["last"]) for row in rows] == [(1, 3), (4, 4), (5, 11)]


class TestWhatIsDamaged:
    def test_a_torn_last_line_is_no_matter(self, tmp_path):
        run, store = kept_run(tmp_path)
        path = run.journal().path
        whole = rows_of(contents_of(reading_of_run(run, store)))
        path.write_bytes(path.read_bytes() + b'{"type":"memory_upd')
        reading = reading_of_run(run, store)
        assert rows_of(contents_of(reading)) == whole
        assert not reading.notes

    def test_a_broken_line_is_told_and_its_chunk_not_recorded(self, tmp_path):
        run, store = kept_run(tmp_path)
        path = run.journal().path
        lines = path.read_bytes().splitlines(keepends=True)
        lines[2] = b"\x00\xff{broken\n"
        path.write_bytes(b"".join(lines))
        reading = reading_of_run(run, store)
        rows = rows_of(contents_of(reading))
        assert "line 3" in reading.notes[0]
        assert [row["n"] for row in rows if row["kind"] == "lost"] == [3]
        assert [row["n"] for row in rows] == list(range(1, run.state()["step"] + 1))

    def test_without_a_journal_the_answer_is_there_all_the_same(self, tmp_path):
        run, store = kept_run(tmp_path)
        run.journal().path.unlink()
        contents = contents_of(reading_of_run(run, store))
        assert contents.pieces
        (row,) = rows_of(contents)
        assert (row["kind"], row["n"], row["last"]) == ("lost", 1, run.state()["step"])

    def test_damaged_checkpoints_leave_the_journal(self, tmp_path):
        run, store = kept_run(tmp_path)
        for name in ("checkpoints.sqlite-wal", "checkpoints.sqlite-shm"):
            (run.path / name).unlink(missing_ok=True)
        (run.path / "checkpoints.sqlite").write_bytes(b"not a database at all, " * 100)
        reading = reading_of_run(run, store)
        contents = contents_of(reading)
        assert "could not be read" in reading.notes[0]
        assert contents.status == "Answer lost"
        assert len(rows_of(contents)) > 5
        assert not contents.pieces
        stopped = {"type": "stopped", "error": "interrupted", "message": ""}
        rows = rows_of(contents_of(replace(reading, entries=[*reading.entries, stopped])))
        assert [row["n"] for row in rows] == list(range(1, len(rows) + 1))

    def test_texts_that_are_gone_leave_the_quotes_of_the_citations(self, tmp_path):
        run, store = kept_run(tmp_path)
        for path in (store.root / "texts").iterdir():
            path.unlink()
        contents = contents_of(reading_of_run(run, store))
        assert contents.notes
        assert [source.cited for source in contents.sources] == [FACT, OTHER]
        assert all(source.note for source in contents.sources)

    def test_many_texts_that_are_gone_are_looked_for_once_and_told_in_few_lines(self, tmp_path):
        documents = [
            Document(f"{FILLER * 8}{number}", metadata={"title": f"d{number}"})
            for number in range(60)
        ]
        run, store = kept_run(tmp_path, oracle_reply([]), documents=documents)
        for path in (store.root / "texts").iterdir():
            path.write_text("something else")
        entries = [
            {**entry, "places_added": [[entry["document_index"], 0, 9], [0, 9, 20]]}
            for entry in run.journal().entries()
            if entry["type"] == "memory_updated"
        ]
        reading = replace(reading_of_run(run, store), entries=entries)
        opened = []
        true_open = store.open
        store.open = lambda reference: opened.append(reference["title"]) or true_open(reference)
        contents = contents_of(reading)
        assert sorted(opened) == sorted(set(opened))
        assert "d0" in contents.notes[0]
        assert len(contents.notes) < 30
        assert "more" in contents.notes[-1]

    def test_a_collection_that_is_gone_leaves_the_titles(self, tmp_path):
        run, store = kept_run(tmp_path)
        for path in (store.root / "collections").iterdir():
            path.unlink()
        reading = reading_of_run(run, store)
        assert [document.title for document in reading.documents] == ["annals"]
        assert report_page(reading)


def test_texts_of_any_size_leave_a_page_below_the_limit(tmp_path):
    run, store = kept_run(tmp_path)
    entries = run.journal().entries()
    model = next(entry for entry in entries if entry["type"] == "memory_updated")
    journal = run.journal().path
    with journal.open("w") as file:
        for step in range(2_000):
            added = [f"line {number} of step {step}: {'é<&' * 60}" for number in range(60)]
            places = [[0, at * 40, at * 40 + 900] for at in range(30)]
            entry = {
                **model,
                "step": step,
                "lines_added": added,
                "lines_removed": added,
                "places_added": places,
            }
            file.write(json.dumps(entry) + "\n")
    reading = reading_of_run(run, store)
    contents = contents_of(reading)

    assert "2,000 chunks" in contents.cut_note
    size = sum(len(block.encode()) for block in contents.blocks)
    assert TEXT_BYTES_MAX * 0.8 < size < TEXT_BYTES_MAX * 1.2
    row = rows_of(contents)[7]
    assert row["counts"] == [60, 60]
    assert "more lines" in row["removed"][-1]


HEAVY = {
    "control characters": {"lines_added": ["\x01" * 3_000] * 3},
    "quotation marks": {"lines_added": ['"\\' * 2_000] * 3},
    "plans": {"plan": "\x02" * 9_000},
    "places": {"places_added": [[0, at, at + 900] for at in range(20)]},
    "what was told": {},
}


@pytest.mark.parametrize("weight", HEAVY)
def test_texts_of_any_kind_leave_a_page_below_the_limit(tmp_path, weight):
    text = "\x03 中文字符测试" * 500
    title = f"{'<' * 290}"
    run, store = kept_run(tmp_path, oracle_reply([]), text=text, title=title)
    entries = []
    for step in range(600):
        if weight == "what was told":
            failed = {"type": "server_failed", "message": "é" * 600}
            again = {"type": "retry", "step": step, "reason": "é" * 600}
            entries += [failed, again] * 20
        entries.append({**model_of(run), "step": step, **HEAVY[weight]})
    reading = replace(reading_of_run(run, store), entries=entries)
    page = report_page(reading)
    assert len(page.encode()) < 17_000_000
    contents = contents_of(reading)
    assert contents.cut_note
    assert len(rows_of(contents)) == 600


def test_few_long_chunks_are_not_cut(tmp_path):
    run, store = kept_run(tmp_path)
    entries = run.journal().entries()
    model = next(entry for entry in entries if entry["type"] == "memory_updated")
    lines = ["x" * 1000] * 500
    run.journal().path.write_text(json.dumps({**model, "lines_added": lines}) + "\n")
    contents = contents_of(reading_of_run(run, store))
    assert contents.cut_note == ""
    assert rows_of(contents)[0]["added"] == lines


def test_nothing_in_the_data_can_end_its_element(tmp_path):
    hostile = "</script><script>alert(1)</script><!-- \u2028 & 'x'"
    run, store = kept_run(tmp_path, question=hostile, title=hostile)
    entries = run.journal().entries()
    model = next(entry for entry in entries if entry["type"] == "memory_updated")
    entry = {**model, "lines_added": [hostile], "plan": hostile}
    run.journal().path.write_text(json.dumps(entry) + "\n")
    reading = reading_of_run(run, store)

    page = report_page(reading)

    assert "<script>alert" not in page
    assert "<!--" not in page
    # The blocks, and the page's own.
    assert page.count("<script") == len(contents_of(reading).blocks) + 1
    assert rows_of(contents_of(reading))[0]["added"] == [hostile]


def test_lone_surrogates_leave_a_page_that_can_be_written(tmp_path):
    run, store = kept_run(tmp_path, question="What of \ud800?")
    entries = run.journal().entries()
    model = next(entry for entry in entries if entry["type"] == "memory_updated")
    run.journal().path.write_text(json.dumps({**model, "lines_added": ["a \udfff b"]}) + "\n")
    assert report_page(reading_of_run(run, store)).encode()


def test_wrapped_prose_flows_and_lines_of_a_log_stay(tmp_path):
    log = "\n2026-01-01 ERROR first\n2026-01-01 ERROR second\n"
    prose = "the traders\nstayed at home, and so\ndid everyone"
    text = f"{FILLER * 20}{log}{FILLER}{FACT} {FILLER}{prose}. {FILLER * 20}"
    contents = contents_of(reading_of_run(*kept_run(tmp_path, oracle_reply([FACT]), text=text)))
    (source,) = contents.sources
    assert log in source.before
    assert prose.replace("\n", " ") in source.after


def test_places_that_are_drawn_as_one_are_counted_each(kept):
    reading = reading_of_run(*kept)
    entry = {**model_of(kept[0]), "places_added": [[0, at, at + 20] for at in range(100, 200, 10)]}
    values = {**reading.values, "evidence": []}
    (strip,) = contents_of(replace(reading, entries=[entry], values=values)).strips
    assert (len(strip.noted), strip.places) == (1, 10)


def test_many_documents_get_strips_where_something_was_noted(tmp_path):
    documents = [
        Document(FILLER * 8 + (FACT if number == 31 else ""), metadata={"title": f"d{number}"})
        for number in range(60)
    ]
    contents = contents_of(reading_of_run(*kept_run(tmp_path, documents=documents)))
    assert [strip.title for strip in contents.strips] == ["d31"]


class TestAThread:
    def asked(self, tmp_path, *questions, saver=None, reply=None):
        from qwenlong_graph.documents.store import DocumentStore

        store = DocumentStore(tmp_path / "documents")
        agent = agent_for(scripted(reply or oracle_reply()), store, saver or InMemorySaver())
        config = {"configurable": {"thread_id": "t"}}
        given = [Document(TEXT, metadata={"title": "annals"})]
        for question in questions:
            agent.invoke({"question": question, "documents": given}, config)
        return agent, config, store

    def test_its_history_tells_what_a_journal_tells(self, tmp_path):
        agent, config, store = self.asked(tmp_path / "thread", QUESTION)
        of_thread = contents_of(reading_of_thread(agent.get_state_history(config), store))
        of_run = contents_of(reading_of_run(*kept_run(tmp_path / "run")))

        assert of_thread.sources == of_run.sources
        assert of_thread.strips == of_run.strips
        names = ("n", "where", "added", "removed", "plan", "quotes", "input", "output", "evidence")
        for ours, theirs in zip(rows_of(of_thread), rows_of(of_run), strict=True):
            assert {n: ours.get(n) for n in names} == {n: theirs.get(n) for n in names}

    def test_the_newest_question_is_the_one_reported(self, tmp_path):
        agent, config, store = self.asked(tmp_path, QUESTION, "Who sold the mill?")
        reading = reading_of_thread(agent.get_state_history(config), store, name="chat")
        contents = contents_of(reading)
        assert reading.question == "Who sold the mill?"
        assert reading.name == "chat"
        assert (
            "From",
            "quotes that earlier questions of the thread found; nothing was read again",
        ) in (contents.facts)
        assert not contents.blocks

    def test_a_question_that_has_just_begun_has_no_answer_of_the_one_before(self, tmp_path):
        answer, is_away = oracle_reply(), False

        def reply(messages):
            return ModelUnavailableError("gone") if is_away else answer(messages)

        agent, config, store = self.asked(tmp_path, QUESTION, reply=reply)
        is_away = True
        given = {"question": "Who sold it?", "documents": [Document(TEXT)]}
        with pytest.raises(ModelUnavailableError):
            agent.invoke(given, config)
        reading = reading_of_thread(agent.get_state_history(config), store)
        contents = contents_of(reading)
        assert (reading.question, contents.status) == ("Who sold it?", "Not begun")
        assert not contents.pieces
        assert not contents.sources

    def test_documents_that_are_not_stored_yet_leave_a_page(self, tmp_path):
        agent, config, store = self.asked(tmp_path, QUESTION)
        newest = next(iter(agent.get_state_history(config)))
        values = {**newest.values, "documents": [{"page_content": "A text."}]}
        begun = newest._replace(values=values, next=("decompose",))
        assert "Not begun" in report_page(reading_of_thread([begun], store))

    def test_a_thread_without_a_reading_is_refused(self, tmp_path):
        agent, _, store = self.asked(tmp_path)
        nowhere = {"configurable": {"thread_id": "other"}}
        with pytest.raises(RunFormatError, match="no checkpoint of a memory agent"):
            reading_of_thread(agent.get_state_history(nowhere), store)


def test_the_page_is_one_file_that_asks_for_nothing(tmp_path):
    page = report_page(reading_of_run(*kept_run(tmp_path)))
    assert "default-src 'none'" in html.unescape(page)
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    assert "@import" not in page
    assert "url(" not in page


def test_a_line_feed_beside_a_quote_flows_too(tmp_path):
    fact = "the widow Hale paid 318,000 crowns for the bridge at Orrin"
    text = f"{FILLER * 20}In that year\n{fact},\nand nobody thanked her. {FILLER * 20}"
    run, store = kept_run(tmp_path, oracle_reply([fact]), text=text)
    reading = reading_of_run(run, store)
    start = text.index(fact)
    cited = {**reading.values["citations"][0], "cited_text": fact, "start_char": start}
    values = {**reading.values, "citations": [{**cited, "end_char": start + len(fact)}]}
    (source,) = contents_of(replace(reading, values=values)).sources
    assert source.before.endswith("In that year ")
    assert source.after.startswith(", and nobody")


def test_what_a_reviewer_edited_is_told(tmp_path):
    run, store = kept_run(tmp_path)
    edited = {"lines_added": ["- Nobody paid."], "lines_removed": [f"- {FACT}"]}
    run.journal().append({"type": "reviewed", "action": "edit", "step": 99, **edited})
    rows = rows_of(contents_of(reading_of_run(run, store)))
    (told,) = rows[-1]["told"]
    assert told.endswith(f"decided: edit.\n− {FACT}\n+ Nobody paid.")
