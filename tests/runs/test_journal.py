from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenlong_graph.errors import RunError, RunFormatError
from qwenlong_graph.runs.journal import Journal


def update(step, **fields):
    return {"type": "memory_updated", "step": step, **fields}


def state(steps, *, answer=""):
    """What a checkpoint after so many steps holds, as far as the journal asks."""
    usage = {"input_tokens": 70 * steps, "output_tokens": 7 * steps, "retries": 0, "calls": steps}
    return {
        "step": steps,
        "memory": "- so far",
        "evidence": [[0, 5, 9, "key"]],
        "usage": usage,
        "answer": answer,
        "found": True,
        "is_quoted": False,
    }


def restored(first, last, *, is_newest=True):
    known = {
        "memory": "- so far",
        "evidence": 1,
        "input_tokens_so_far": 70 * (last + 1),
        "output_tokens_so_far": 7 * (last + 1),
        "retries_so_far": 0,
    }
    entry = {"type": "restored", "first_step": first, "step": last}
    return {**entry, **known} if is_newest else entry


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal.jsonl")


def test_what_is_appended_is_read_back_in_order(journal):
    assert journal.entries() == []
    written = [update(0, lines_added=["zwölf – “quoted”\n"]), update(1, lines_added=["\udc80"])]
    for entry in written:
        journal.append(entry)
    assert journal.entries() == written
    assert len(journal.path.read_bytes().splitlines()) == 2
    assert journal.path.stat().st_mode & 0o777 == 0o600


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_wherever_a_line_is_torn_the_whole_ones_are_kept(tmp_path_factory, data):
    journal = Journal(tmp_path_factory.mktemp("torn") / "journal.jsonl")
    journal.append(update(0))
    whole = journal.path.stat().st_size
    journal.append(update(1, lines_added=["ä line"]))
    end = journal.path.stat().st_size
    os.truncate(journal.path, data.draw(st.integers(whole, end - 1)))
    assert journal.entries() == [update(0)]
    journal.append(update(1))
    assert journal.entries() == [update(0), update(1)]


def test_a_torn_line_longer_than_a_block_is_dropped(journal):
    journal.append({"step": 0})
    with journal.path.open("ab") as file:
        file.write(b'{"step":1,"added":"' + b"x" * 200_000)
    journal.append({"step": 1})
    assert journal.path.read_bytes() == b'{"step":0}\n{"step":1}\n'


ZEROS = b"\0" * 20 + b"\n"


def write(journal, *lines):
    """Entries as they are written, and bytes as they are."""
    for line in lines:
        if isinstance(line, bytes):
            with journal.path.open("ab") as file:
                file.write(line)
        else:
            journal.append(line)


def test_a_last_line_of_zeros_is_dropped_but_damage_before_it_is_named(journal):
    write(journal, update(0), ZEROS)
    assert journal.entries() == [update(0)]
    write(journal, b'{"type":"memory_updated","step":1}\n')
    with pytest.raises(RunFormatError, match=r"line 2.*resume"):
        journal.entries()


def test_a_journal_that_is_ahead_is_cut_back_and_loses_its_torn_line(journal):
    started = {"type": "server_failed", "message": "away"}
    retry = {"type": "retry", "step": 3, "reason": "the reply was empty"}
    answered = {"type": "answered", "found": True, "is_quoted": False}
    write(journal, started, *map(update, range(3)), retry, update(3), answered, b'{"step":5')
    assert journal.follow(state(3)) is None
    kept = [started, update(0), update(1), update(2)]
    assert [json.loads(line) for line in journal.path.read_bytes().splitlines()] == kept
    assert journal.path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in journal.path.parent.iterdir()] == ["journal.jsonl"]


def test_a_run_without_a_checkpoint_has_an_empty_journal(journal):
    journal.follow({})
    assert not journal.path.exists()
    journal.append(update(0))
    journal.follow({})
    assert journal.entries() == []


def test_a_journal_that_agrees_is_left_untouched(journal):
    write(journal, *map(update, range(3)))
    before = journal.path.stat()
    assert journal.follow(state(3)) is None
    after = journal.path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("written", [0, 1, 4])
def test_a_journal_that_is_behind_is_completed_with_what_the_checkpoint_knows(journal, written):
    write(journal, *map(update, range(written)))
    journal.follow(state(5))
    assert journal.entries() == [*map(update, range(written)), restored(written, 4)]
    journal.append(update(5))
    journal.follow(state(6))
    assert journal.entries()[-1] == update(5)


def test_holes_are_named_where_they_are_and_not_restored_twice(journal):
    write(journal, *map(update, [1, 4]))
    expected = [
        restored(0, 0, is_newest=False),
        update(1),
        restored(2, 3, is_newest=False),
        update(4),
        restored(5, 6),
    ]
    for _ in range(2):
        journal.follow(state(7))
        assert journal.entries() == expected
    # A checkpoint put back from an older copy: what reaches beyond it is told anew.
    journal.follow(state(6))
    assert journal.entries() == [*expected[:4], restored(5, 5)]


def test_the_answer_is_told_once_it_is_kept_and_only_then(journal):
    write(journal, update(0))
    journal.follow(state(1, answer="Ludo."))
    answered = {"type": "answered", "found": True, "is_quoted": False}
    journal.follow(state(1, answer="Ludo."))
    assert journal.entries() == [update(0), answered]
    write(journal, b"{}\n", b"{}\n")
    journal.follow(state(2, answer="Ludo."))
    assert journal.entries()[1:] == [update(0), restored(1, 1), answered]


def test_what_came_after_the_last_chunk_is_kept_with_the_answer(journal):
    again = {"type": "retry", "step": 2, "attempt": 1, "reason": "the reply is empty"}
    answered = {"type": "answered", "found": True, "is_quoted": False}
    written = [update(0), update(1), again, answered]
    for entry in written:
        journal.append(entry)
    journal.follow(state(2, answer="Ludo."))
    assert journal.entries() == written
    # The answer is not kept: it is asked for again.
    journal.follow(state(2))
    assert journal.entries() == [update(0), update(1)]


def test_a_review_is_told_once_the_run_waits_for_it_no_more(journal):
    reviewed = {"type": "reviewed", "action": "edit", "step": 1, "skipped": 0}
    for entry in (update(0), reviewed):
        journal.append(entry)
    journal.follow(state(1))
    assert journal.entries() == [update(0), reviewed]
    journal.follow(state(1), is_paused=True)
    assert journal.entries() == [update(0)]


@pytest.mark.parametrize(
    "damage",
    [
        ZEROS,
        b"\xff\xfe\n",
        b"[1]\n",
        b'{"step":1}\n',
        b'{"type":"memory_updated"}\n',
        b'{"type":"memory_updated","step":"1"}\n',
        b'{"type":"restored","step":1}\n',
        b"[" * 100_000 + b"\n",
    ],
    ids=lambda damage: damage[:12].decode("latin-1"),
)
def test_a_damaged_journal_is_moved_aside_and_its_good_lines_are_kept(journal, damage):
    for number in (1, 2):
        write(journal, update(number - 1), damage, update(number + 1))
        content = journal.path.read_bytes()
        moved_to = journal.follow(state(number + 2))
        assert moved_to == journal.path.with_name(f"journal.damaged-{number}")
        assert moved_to.read_bytes() == content
        assert journal.entries()[0] == {"type": "damaged", "moved_to": moved_to.name}
        assert update(number + 1) in journal.entries()
        journal.path.unlink()
        journal.append({"type": "server_failed", "message": "away"})


def test_a_journal_that_cannot_be_read_at_all_is_moved_aside(journal):
    journal.path.mkdir()
    moved_to = journal.follow(state(3))
    assert moved_to.is_dir()
    assert journal.entries()[1:] == [restored(0, 2)]


OVERFULL = """
import resource, sys
from pathlib import Path
from qwenlong_graph.errors import RunError
from qwenlong_graph.runs.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.append({"type": "answered"})
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
try:
    journal.append({"type": "answered", "added": "x" * 1000})
except RunError as error:
    print(error)
"""


def test_a_full_disk_is_named_and_the_journal_stays_as_it_was(journal):
    # A limit on the size of files takes part of a line and refuses the rest, as a full disk does.
    done = subprocess.run(
        [sys.executable, "-c", OVERFULL, journal.path], capture_output=True, text=True, check=True
    )
    assert "--data-dir" in done.stdout
    assert journal.path.read_bytes() == b'{"type":"answered"}\n'


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_no_space_left_is_named():
    with pytest.raises(RunError, match=r"No space left.*--data-dir"):
        Journal(Path("/dev/full")).append({"step": 0})
