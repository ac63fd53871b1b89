"""The two files of a batch: what is asked, and what is done."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_graph.errors import RunError, RunLockedError, SettingsError
from qwenlong_graph.runs import batch
from qwenlong_graph.runs.batch import (
    BadLine,
    Question,
    fingerprint_of,
    open_results,
    read_questions,
    run_id_of,
)
from qwenlong_graph.runs.directory import RunShelf

LEASE = {"id": "q1", "question": "Who signed?", "documents": ["lease.pdf"]}


def read(*lines, **defaults):
    """What comes of lines, given as values or as they stand in the file."""
    content = b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )
    return list(read_questions(io.BytesIO(content), **defaults))


def one(line, **defaults):
    (question,) = read(line, **defaults)
    assert isinstance(question, Question), question
    return question


class TestQuestions:
    def test_a_line_says_what_is_asked(self):
        schema = {"type": "object"}
        question = one({**LEASE, "instructions": "In one word.", "schema": schema})
        assert question == Question(
            line=1,
            id="q1",
            question="Who signed?",
            documents=("lease.pdf",),
            instructions="In one word.",
            schema=schema,
        )

    def test_what_a_line_does_not_say_holds_for_all_of_them(self):
        defaults = {"documents": ["a.txt"], "instructions": "Short.", "schema": {"type": "object"}}
        plain = one({"question": "Who?"}, **defaults)
        assert (plain.documents, plain.instructions) == (("a.txt",), "Short.")
        assert plain.schema == {"type": "object"}
        said = {"question": "Who?", "documents": "b.txt", "instructions": "", "schema": {}}
        own = one(said, **defaults)
        assert (own.documents, own.instructions, own.schema) == (("b.txt",), "", {})

    def test_an_id_made_of_the_content_is_the_same_wherever_the_line_stands(self):
        line = {"question": "Who?", "documents": ["a.txt"]}
        before = one(line)
        _, after = read(LEASE, dict(reversed(line.items())))
        assert before.id == after.id
        assert re.fullmatch(r"q-[0-9a-f]{12}", before.id)
        for change in ({"question": "Whom?"}, {"documents": ["b.txt"]}, {"instructions": "Short."}):
            assert one({**line, **change}).id != before.id

    def test_an_id_may_be_a_number_and_stays_one(self):
        question = one({**LEASE, "id": 7})
        assert (question.id, question.key) == (7, "7")

    def test_empty_lines_a_byte_order_mark_and_windows_line_ends_are_no_trouble(self):
        content = b"\xef\xbb\xbf" + json.dumps(LEASE).encode() + b"\r\n\r\n  \n"
        (question,) = read_questions(io.BytesIO(content))
        assert question.id == "q1"

    def test_a_last_line_needs_no_end(self):
        (question,) = read_questions(io.BytesIO(json.dumps(LEASE).encode()))
        assert question.id == "q1"

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"dear diary", "it is not JSON"),
            (b'{"question": "Who', "it is not JSON"),
            (b'{"question": "\xff"}', r"it is not UTF-8 \(byte 15\)"),
            (b"[" * 100_000, "cannot be read"),
            (b"9" * 10_000, "cannot be read"),
            (["Who?"], "it is no object"),
            ({"documents": ["a.txt"]}, "it has no question"),
            ({"question": "  ", "documents": ["a.txt"]}, "it has no question"),
            ({"question": 7, "documents": ["a.txt"]}, "it has no question"),
            ({"question": "Who?"}, "it names no documents"),
            ({"question": "Who?", "documents": []}, "it names no documents"),
            ({**LEASE, "documents": [7]}, "no list of paths"),
            ({**LEASE, "documents": {"a": "b"}}, "no list of paths"),
            ({**LEASE, "documents": ["-"]}, "no list of paths"),
            ({**LEASE, "id": ""}, "its id"),
            ({**LEASE, "id": True}, "its id"),
            ({**LEASE, "id": "x" * 201}, "its id"),
            ({**LEASE, "instructions": ["Short."]}, "its instructions"),
            ({**LEASE, "schema": "form.json"}, "its schema"),
        ],
    )
    def test_a_broken_line_is_named_and_the_others_are_asked(self, line, reason):
        good = {**LEASE, "id": "q2"}
        before, broken, after = read(LEASE, line, good)
        assert (before.id, after.id) == ("q1", "q2")
        assert (broken.line, broken.is_lost) == (2, True)
        assert re.search(reason, broken.reason)

    def test_a_line_that_is_far_too_long_is_passed_over_without_being_held(self):
        most = batch.LONGEST_LINE_BYTES
        long = b'{"question": "' + b"x" * most + b'"}'
        broken, good = read(long, LEASE)
        assert broken == BadLine(1, f"it is longer than {most:,} bytes")
        assert (good.id, good.line) == ("q1", 2)
        fitting = json.dumps(LEASE).encode().ljust(most)
        assert isinstance(one(fitting), Question)

    def test_of_one_id_the_first_line_counts(self):
        other = {**LEASE, "question": "When?"}
        first, same, changed = read(LEASE, LEASE, other)
        assert first.question == "Who signed?"
        assert same == BadLine(
            2, "its id 'q1' stands in line 1 already, with the same content", is_lost=False
        )
        assert (changed.line, changed.is_lost) == (3, True)
        assert "stands in line 1 already" in changed.reason

    def test_a_number_and_its_text_are_one_id(self):
        assert isinstance(read({**LEASE, "id": 7}, {**LEASE, "id": "7"})[1], BadLine)

    def test_a_line_without_documents_does_not_take_the_id_from_a_later_one(self):
        _, good = read({"id": "q1", "question": "Who?"}, LEASE)
        assert isinstance(good, Question)

    def test_keys_that_mean_nothing_are_told(self):
        assert one({**LEASE, "document": "a.txt", "expected": 4}).unread == ("document", "expected")

    @given(st.binary(max_size=300))
    def test_whatever_stands_in_the_file_every_line_is_a_question_or_named(self, content):
        lines = list(read_questions(io.BytesIO(content), documents=["a.txt"]))
        assert len(lines) <= content.count(b"\n") + 1


class TestIdentity:
    def fingerprint(self, collection="c1", model="m", window=None, settings=(), **changes):
        question = one({**LEASE, **changes})
        return fingerprint_of(
            question, collection, model=model, window=window, settings=dict(settings)
        )

    def test_everything_that_an_answer_depends_on_changes_the_fingerprint(self):
        prints = {
            self.fingerprint(),
            self.fingerprint(question="When?"),
            self.fingerprint(instructions="Short."),
            self.fingerprint(schema={"type": "object"}),
            self.fingerprint(collection="c2"),
            self.fingerprint(model="n"),
            self.fingerprint(window=4096),
            self.fingerprint(settings={"seed": 7}),
        }
        assert len(prints) == 8

    def test_the_paths_and_the_id_do_not(self):
        moved = self.fingerprint(documents=["elsewhere/lease.pdf"], id="other")
        assert moved == self.fingerprint()

    @pytest.mark.parametrize("key", ["q1", "../../etc", "ä", ".", "x" * 200, "a b\n\0", "\ud800"])
    def test_any_id_makes_the_id_of_a_run(self, tmp_path, key):
        run_id = run_id_of(tmp_path / "r.jsonl", key, "f" * 32, 8192)
        shelf = RunShelf(tmp_path / "runs")
        assert shelf.get(run_id) is None
        documents = {"collection_id": "0" * 64, "documents": 1, "chars": 9, "bytes": 9}
        made = shelf.create(
            run_id=run_id, question="Who?", instructions="", documents=documents, titles=["a"],
            model="m", window=None, settings={}, version="0",
        )  # fmt: skip
        assert shelf.get(run_id) == made
        assert [path.name for path in tmp_path.iterdir()] == ["runs"]

    def test_another_batch_question_content_or_window_is_another_run(self):
        made = {
            run_id_of(Path("/r.jsonl"), "q1", "f", 8192),
            run_id_of(Path("/s.jsonl"), "q1", "f", 8192),
            run_id_of(Path("/r.jsonl"), "q2", "f", 8192),
            run_id_of(Path("/r.jsonl"), "q1", "g", 8192),
            run_id_of(Path("/r.jsonl"), "q1", "f", 4096),
        }
        assert len(made) == 5


def answered(key, fingerprint="f", **told):
    return {"id": key, "status": "answered", "fingerprint": fingerprint, **told}


def failed(key):
    return {"id": key, "status": "failed", "error": {"type": "ModelError"}}


def lines_in(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.jsonl"


def fill(path, *records):
    with open_results(path) as results:
        for record in records:
            results.append(record)


class TestResults:
    def test_what_is_appended_is_found_again(self, path):
        fill(path, answered("q1"), failed("q2"), answered(7, "g", answer="\u2028\x85\ud800é"))
        assert len(path.read_text("utf-8").splitlines()) == 3  # for those who split at more
        with open_results(path) as results:
            assert results.is_answered("q1", "f")
            assert results.is_answered("7", "g")
            assert not results.is_answered("q1", "other")
            assert not results.is_answered("q2", "f")
            assert not results.is_answered("q3", "f")
        assert lines_in(path)[2]["answer"] == "\u2028\x85\ud800é"

    def test_the_later_line_counts_and_in_the_end_there_is_one_for_each(self, path):
        fill(path, answered("q1", "old"), answered("q2"), answered("q1", "new"))
        path.chmod(0o640)
        with open_results(path) as results:
            assert results.is_answered("q1", "new")
            assert not results.is_answered("q1", "old")
            results.settle()
            assert lines_in(path) == [answered("q2"), answered("q1", "new")]
            results.append(answered("q3"))
            assert results.is_answered("q1", "new")
            assert results.is_answered("q3", "f")
        assert [line["id"] for line in lines_in(path)] == ["q2", "q1", "q3"]
        assert path.stat().st_mode & 0o777 == 0o640
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    def test_what_failed_goes_where_it_is_asked_again_and_stays_where_not(self, path):
        fill(path, failed("q1"), answered("q2"), failed("q3"))
        with open_results(path) as results:
            results.settle(asked_again={"q1", "q2"}.__contains__)
        assert [line["id"] for line in lines_in(path)] == ["q2", "q3"]

    def test_a_file_that_is_as_it_should_be_is_not_written_anew(self, path):
        fill(path, answered("q1"), failed("q2"))
        before = path.stat().st_ino
        with open_results(path) as results:
            results.settle()
        assert path.stat().st_ino == before

    @pytest.mark.parametrize(
        "torn", [b"{", b'{"id":"q2","status":"ans', b"\0\0\0\0", b'{"id":"q2"\0\0\0\n', b"\n"]
    )
    def test_a_torn_last_line_is_cut_off(self, path, torn):
        fill(path, answered("q1"))
        whole = path.read_bytes()
        path.write_bytes(whole + torn)
        with open_results(path) as results:
            assert path.read_bytes() == whole
            results.append(answered("q2"))
        assert lines_in(path) == [answered("q1"), answered("q2")]

    def test_a_last_line_that_only_lacks_its_end_is_kept(self, path):
        path.write_bytes(json.dumps(answered("q1")).encode())
        with open_results(path) as results:
            assert results.is_answered("q1", "f")
            results.append(answered("q2"))
        assert lines_in(path) == [answered("q1"), answered("q2")]

    @pytest.mark.parametrize(
        "content",
        [
            b"dear diary\n",
            b"dear diary",
            b'{"id": "q1", "question": "Who?"}\n',
            b'{"id": "q1", "question": "Who?"}',
            b'{"id":"q1","question":"Who?"}',
            b'{"id":"q1","status":"done"}\n',
            b"\n\n",
            b"[" * 100_000,
            b'{"id":"q1","status":"answered"}\n{"id":"q2",\n{"id":"q3","status":"failed"}\n',
        ],
    )
    def test_a_file_of_something_else_is_left_as_it_is(self, path, content):
        path.write_bytes(content)
        with pytest.raises(SettingsError, match=r"is not written to.*--output"), open_results(path):
            pass
        assert path.read_bytes() == content

    def test_one_batch_at_a_time_and_the_next_when_it_is_closed(self, path):
        with open_results(path) as results:
            with pytest.raises(RunLockedError, match="Another batch"), open_results(path):
                pass
            results.append(answered("q1", "old"))
            results.append(answered("q1"))
            results.settle()  # another file now, and locked too
            with pytest.raises(RunLockedError, match="Another batch"), open_results(path):
                pass
        with open_results(path):
            pass

    def test_a_link_to_the_file_stays_one(self, path, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        target = tmp_path / "elsewhere" / "r.jsonl"
        path.symlink_to(target)
        fill(path, failed("q1"), answered("q1"))
        with open_results(path) as results:
            results.settle()
        assert path.is_symlink()
        assert lines_in(target) == [answered("q1")]

    def test_what_is_no_file_is_refused(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        pipe = tmp_path / "pipe"
        with pytest.raises(SettingsError, match="no regular file"), open_results(pipe):
            pass
        with pytest.raises(RunError, match="Is a directory"), open_results(tmp_path):
            pass
        with pytest.raises(RunError, match="--output"), open_results(tmp_path / "no" / "r.jsonl"):
            pass

    def test_a_full_disk_leaves_whole_lines(self, path):
        script = f"""
import resource
from pathlib import Path
from qwenlong_graph.errors import RunError
from qwenlong_graph.runs.batch import open_results
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
with open_results(Path({str(path)!r})) as results:
    for number in range(100):
        try:
            results.append({{"id": number, "status": "answered", "fingerprint": "x" * 40}})
        except RunError as error:
            print(number, error)
            break
    try:
        results.append({{"id": number, "status": "failed"}})
        results.settle(asked_again=lambda key: True)
    except RunError:
        print("full")
"""
        ended = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
        )
        first, *others = ended.stdout.splitlines()
        kept = int(first.split()[0])
        assert "could not be written" in first
        assert "Free some space" in first
        assert others in ([], ["full"])
        ids = [line["id"] for line in lines_in(path)]
        assert ids[:kept] == list(range(kept)) != []
        assert path.stat().st_size <= 500

    @given(
        st.lists(
            st.tuples(st.sampled_from("abc"), st.booleans(), st.sampled_from("fg")), max_size=8
        ),
        st.integers(min_value=0, max_value=60),
    )
    def test_a_cut_at_any_byte_costs_at_most_the_last_line(self, written, cut):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "r.jsonl"
            records = [
                answered(key, print_) if is_answered else failed(key)
                for key, is_answered, print_ in written
            ]
            fill(path, *records)
            content = path.read_bytes()
            os.truncate(path, max(0, len(content) - cut))
            whole = path.read_bytes().count(b"\n")
            with open_results(path) as results:
                results.settle()
                last = {record["id"]: record for record in records[:whole]}
                found = {line["id"]: line for line in lines_in(path)}
                # A line that lost nothing but its end is whole all the same.
                assert found in (last, {r["id"]: r for r in records[: whole + 1]})
                assert len(lines_in(path)) == len(found)
