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


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal.jsonl")


def test_what_is_appended_is_read_back_in_order(journal):
    assert journal.entries() == []
    written = [{"step": 0, "added": ["zwölf – “quoted”\n"]}, {"step": 1, "added": ["\udc80"]}]
    for entry in written:
        journal.append(entry)
    assert journal.entries() == written
    assert len(journal.path.read_bytes().splitlines()) == 2
    assert journal.path.stat().st_mode & 0o777 == 0o600


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_wherever_a_line_is_torn_the_whole_ones_are_kept(tmp_path_factory, data):
    journal = Journal(tmp_path_factory.mktemp("torn") / "journal.jsonl")
    journal.append({"step": 0})
    whole = journal.path.stat().st_size
    journal.append({"step": 1, "added": ["ä line"]})
    end = journal.path.stat().st_size
    os.truncate(journal.path, data.draw(st.integers(whole, end - 1)))
    assert journal.entries() == [{"step": 0}]
    journal.append({"step": 1})
    assert journal.entries() == [{"step": 0}, {"step": 1}]


def test_a_torn_line_longer_than_a_block_is_dropped(journal):
    journal.append({"step": 0})
    with journal.path.open("ab") as file:
        file.write(b'{"step":1,"added":"' + b"x" * 200_000)
    journal.append({"step": 1})
    assert journal.path.read_bytes() == b'{"step":0}\n{"step":1}\n'


def test_a_last_line_of_zeros_is_dropped_but_damage_before_it_is_named(journal):
    journal.append({"step": 0})
    with journal.path.open("ab") as file:
        file.write(b"\0" * 20 + b"\n")
    assert journal.entries() == [{"step": 0}]
    with journal.path.open("ab") as file:
        file.write(b'{"step":1}\n')
    with pytest.raises(RunFormatError, match="line 2"):
        journal.entries()


def test_cutting_back_keeps_what_the_checkpoint_holds(journal):
    journal.append({"event": "started"})
    for step in range(5):
        journal.append({"step": step})
    with journal.path.open("ab") as file:
        file.write(b'{"step":5')
    journal.cut_back(3)
    kept = [{"event": "started"}, {"step": 0}, {"step": 1}, {"step": 2}]
    assert [json.loads(line) for line in journal.path.read_bytes().splitlines()] == kept
    assert journal.path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in journal.path.parent.iterdir()] == ["journal.jsonl"]


def test_cutting_back_nothing_makes_no_file(journal):
    journal.cut_back(3)
    assert not journal.path.exists()


OVERFULL = """
import resource, sys
from pathlib import Path
from qwenlong_graph.errors import RunError
from qwenlong_graph.runs.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.append({"step": 0})
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
try:
    journal.append({"step": 1, "added": "x" * 1000})
except RunError as error:
    print(error)
"""


def test_a_full_disk_is_named_and_the_journal_stays_as_it_was(journal):
    # A limit on the size of files takes part of a line and refuses the rest, as a full disk does.
    done = subprocess.run(
        [sys.executable, "-c", OVERFULL, journal.path], capture_output=True, text=True, check=True
    )
    assert "--data-dir" in done.stdout
    assert journal.path.read_bytes() == b'{"step":0}\n'


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_no_space_left_is_named():
    with pytest.raises(RunError, match=r"No space left.*--data-dir"):
        Journal(Path("/dev/full")).append({"step": 0})
