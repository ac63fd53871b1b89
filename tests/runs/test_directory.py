from __future__ import annotations

import json
import re
from datetime import datetime

import pytest

from qwenlong_graph.errors import (
    RunError,
    RunFormatError,
    RunLockedError,
    RunNotFoundError,
    SettingsError,
)
from qwenlong_graph.runs.directory import RECORD_FORMAT, RunShelf


def created(run) -> float:
    return datetime.fromisoformat(run.record["created"]).timestamp()


def rewrite(run, **fields) -> None:
    record = run.path / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **fields}))


def test_a_run_is_found_as_it_was_created_and_is_its_owners_only(shelf, create):
    run = create(titles=[f"title {n}" for n in range(30)], question="Who\udc80?")
    assert re.fullmatch(r"\d{8}-\d{6}-[a-z0-9]{4}", run.run_id)
    assert shelf.find(run.run_id) == run
    assert run.record["titles"][-1] == "title 19"
    assert [shelf.root.stat().st_mode & 0o777, run.path.stat().st_mode & 0o777] == [0o700] * 2
    assert (shelf.root / ".gitignore").read_text() == "*\n"
    assert [file.name for file in run.path.iterdir()] == ["run.json"]
    assert (run.path / "run.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "run_id", ["", ".", "..", "a/b", "../a", ".a", "a b", "ä", "a" * 65, "a\n"]
)
def test_an_id_that_cannot_name_a_folder_is_refused(create, run_id):
    with pytest.raises(SettingsError, match="id of a run"):
        create(run_id=run_id)


def test_an_id_is_given_once(create):
    create(run_id="night")
    with pytest.raises(RunError, match="resume night"):
        create(run_id="night")


def test_a_run_is_found_by_the_beginning_of_its_id_if_that_is_its_alone(shelf, create):
    for run_id in ["night", "night-2", "day-1", "day-2"]:
        create(run_id=run_id)
    assert shelf.find("night").run_id == "night"
    assert shelf.find("night-").run_id == "night-2"
    with pytest.raises(RunNotFoundError, match=r"2 runs begin with 'day': day-1, day-2\."):
        shelf.find("day")
    with pytest.raises(RunNotFoundError, match="Near it: night"):
        shelf.find("nihgt")


@pytest.mark.parametrize("run_id", ["", "..", "../runs/night", "./night", "*"])
def test_what_is_no_beginning_of_an_id_finds_nothing(shelf, create, run_id):
    create(run_id="night")
    with pytest.raises(RunNotFoundError):
        shelf.find(run_id)


def test_an_empty_shelf_finds_nothing(shelf):
    assert shelf.all() == []
    assert shelf.prune(older_than_s=0) == []
    with pytest.raises(RunNotFoundError, match="runs list"):
        shelf.find("night")


def test_a_run_of_a_newer_version_is_named_with_both_formats(shelf, create):
    rewrite(create(run_id="night"), format=RECORD_FORMAT + 1, version="9.9")
    with pytest.raises(RunFormatError, match=rf"9\.9.* {RECORD_FORMAT + 1}.*up to {RECORD_FORMAT}"):
        shelf.find("night")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"format": 1, "run_id": "ni',
        b"\xff\xfe",
        b"[1]",
        b"{}",
        b'{"format": true}',
        b'{"format": 1, "run_id": "night"}',
    ],
)
def test_a_damaged_record_is_named(shelf, create, content):
    (create(run_id="night").path / "run.json").write_bytes(content)
    with pytest.raises(RunFormatError, match=r"run\.json is damaged"):
        shelf.find("night")


@pytest.mark.parametrize("fields", [{"run_id": "day"}, {"created": "soon"}, {"created": 5}])
def test_a_record_that_contradicts_itself_is_named(shelf, create, fields):
    rewrite(create(run_id="night"), **fields)
    with pytest.raises(RunFormatError, match=r"run\.json is damaged"):
        shelf.find("night")


def test_all_runs_come_newest_first_and_unreadable_ones_are_named(shelf, create):
    for number, run_id in enumerate(["a", "c", "b"]):
        rewrite(create(run_id=run_id), created=f"2026-11-2{number}T00:00:00+00:00")
    (shelf.root / "empty").mkdir()
    (shelf.root / "note.txt").write_text("mine")
    skipped = {}
    runs = shelf.all(on_skip=lambda name, error: skipped.update({name: error}))
    assert [run.run_id for run in runs] == ["b", "c", "a"]
    assert list(skipped) == ["empty"]
    assert isinstance(skipped["empty"], RunFormatError)
    assert len(shelf.all()) == 3


def test_a_removed_run_leaves_nothing(shelf, create):
    run = create()
    run.journal().append({"step": 0})
    with run.lock(), pytest.raises(RunLockedError):
        shelf.remove(run)
    assert run.path.exists()
    shelf.remove(run)
    assert [path.name for path in shelf.root.iterdir()] == [".gitignore"]
    with pytest.raises(RunNotFoundError):
        shelf.remove(run)


def test_pruning_spares_young_locked_and_unreadable_runs_and_sweeps_up(shelf, create):
    old, locked, damaged = (create(run_id=name) for name in ["old", "locked", "damaged"])
    (damaged.path / "run.json").write_text("")
    (shelf.root / ".removed-x").mkdir()
    young = created(old) + 50
    assert shelf.prune(older_than_s=100, now=young) == []
    with locked.lock():
        assert shelf.prune(older_than_s=100, now=young + 100) == ["old"]
    left = sorted(path.name for path in shelf.root.iterdir())
    assert left == [".gitignore", "damaged", "locked"]


def test_a_run_from_the_future_is_kept(shelf, create):
    run = create()
    assert shelf.prune(older_than_s=0, now=created(run) - 1e6) == []
    assert shelf.find(run.run_id) == run


def test_an_age_below_zero_is_refused(shelf):
    with pytest.raises(SettingsError):
        shelf.prune(older_than_s=-1)


def test_a_place_that_cannot_be_written_is_named(tmp_path, create):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(RunError, match=r"--data-dir or QWENLONG_GRAPH_DATA.*--ephemeral"):
        create()
    with pytest.raises(RunError, match="cannot be listed"):
        RunShelf(tmp_path / "runs").all()


@pytest.mark.contract
async def test_both_checkpointers_of_a_run_share_one_file(create):
    run = create()
    async with run.checkpoints() as saver:
        await saver.setup()
    with run.sync_checkpoints() as saver:
        assert list(saver.list({"configurable": {"thread_id": run.run_id}})) == []
    assert (run.path / "checkpoints.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_run_without_checkpoints_has_no_state_and_looking_makes_none(create):
    run = create()
    assert run.state() == {}
    assert [file.name for file in run.path.iterdir()] == ["run.json"]
    (run.path / "checkpoints.sqlite").touch()
    assert run.state() == {}
    assert (run.path / "checkpoints.sqlite").stat().st_size == 0


def test_a_changed_record_is_found_again(shelf, create):
    run = create(run_id="night")
    changed = run.rerecord({**run.record, "model": "http://127.0.0.1:1"})
    assert shelf.find("night") == changed != run


def test_a_killed_creation_leaves_no_run_and_is_swept_up_later(shelf, create):
    run = create(run_id="night")
    leftover = shelf.root / ".unfinished-x"
    leftover.mkdir()
    assert [found.run_id for found in shelf.all()] == ["night"]
    # A minute old, it may be about to become a run.
    assert shelf.prune(older_than_s=0, now=created(run) + 60) == ["night"]
    assert leftover.exists()
    shelf.prune(older_than_s=0, now=created(run) + 7_200)
    assert [path.name for path in shelf.root.iterdir()] == [".gitignore"]


def test_an_empty_folder_of_that_name_is_no_run_and_in_nobodys_way(shelf, create):
    (shelf.root / "night").mkdir(parents=True)
    assert create(run_id="night") == shelf.find("night")
    assert shelf.find("night").path.stat().st_mode & 0o777 == 0o700
