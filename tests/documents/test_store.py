from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenlong_graph.documents.store import DocumentStore, default_data_dir
from qwenlong_graph.errors import SettingsError, StoredTextChangedError


def file_of(store, reference):
    return store.root / "texts" / reference["document_id"]


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


LONG = ("Größe 一二三 😀 plain ascii text\r\n" * 12_000)[:270_000]


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8")), start=st.integers(0, 40), size=st.integers(0, 40)
)
def test_any_stretch_is_read_back_exactly(shared_store, text, start, size):
    opened = shared_store.open(shared_store.put(text, title="t"))
    assert opened.read(start, start + size) == text[start : start + size]
    start_byte = len(text[:start].encode())
    assert opened.read_from(start_byte, size) == text[start : start + size]


@pytest.mark.parametrize(
    "start", [0, 1, 65_535, 65_536, 65_537, 131_072, 200_001, 269_990, 270_000]
)
def test_stretches_far_into_a_long_text_are_read_back_exactly(store, start):
    opened = store.open(store.put(LONG, title="t"))
    assert opened.chars == 270_000
    assert opened.read(start, start + 70_000) == LONG[start : start + 70_000]
    start_byte = len(LONG[:start].encode())
    assert opened.read_from(start_byte, 70_000) == LONG[start : start + 70_000]


def test_the_index_is_right_where_blocks_cut_characters(store):
    text = "é" + "一" * 1_500_000  # every block of 1 MiB ends within a character
    opened = store.open(store.put(text, title="t"))
    for start in (0, 349_525, 349_526, 1_048_576, 1_499_999):
        assert opened.read(start, start + 3) == text[start : start + 3]


def test_a_byte_within_a_character_is_refused(store):
    opened = store.open(store.put("é", title="t"))
    with pytest.raises(ValueError, match="no character begins at byte 1"):
        opened.read_from(1, 1)


def test_newlines_nul_and_unnormalised_text_are_kept(store):
    text = "a\r\nb\rc\x00 e\u0301 \ufeff\u2028"
    assert store.open(store.put(text, title="t")).read(0, 99) == text


def test_lone_surrogates_become_replacement_characters(store):
    reference = store.put("a\udc80b\ud83d\ude00", title="bad\udcff name")
    assert store.open(reference).read(0, 9) == "a\ufffdb\ufffd\ufffd"
    assert reference["title"] == "bad\ufffd name"


def test_pieces_and_the_whole_give_the_same_reference(store):
    assert store.put(["Grö", "", "ße"], title="t") == store.put("Größe", title="t")


def test_a_text_is_kept_once_and_readable_by_its_owner_only(store):
    first = store.put("same", title="one")
    second = store.put("same", title="two")
    assert first["document_id"] == second["document_id"]
    assert second["title"] == "two"
    assert [path.name for path in (store.root / "texts").iterdir()] == [first["document_id"]]
    assert mode(store.root) == mode(store.root / "texts") == 0o700
    assert mode(file_of(store, first)) == 0o600


def test_a_directory_that_was_there_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o755)
    DocumentStore(tmp_path).put("text", title="t")
    assert mode(tmp_path) == 0o755
    assert mode(tmp_path / "texts") == 0o700


def test_a_reader_of_the_text_that_fails_leaves_no_file(store):
    def pieces():
        yield "begun"
        raise KeyError("reader")

    with pytest.raises(KeyError):
        store.put(pieces(), title="t")
    assert list((store.root / "texts").iterdir()) == []


def test_pages_are_found_by_offset(store):
    opened = store.open(store.put("onetwo", title="t", pages=[0, 3, 3]))
    assert opened.pages_of(0, 3) == (1, 1)
    assert opened.pages_of(2, 4) == (1, 3)  # page 2 is empty
    assert opened.pages_of(3, 3) == (3, 3)
    assert store.open(store.put("onetwo", title="t")).pages_of(0, 3) == (None, None)


@pytest.mark.parametrize("pages", [[], [1], [0, 4, 2]])
def test_a_page_map_that_is_none_is_refused(store, pages):
    with pytest.raises(ValueError, match="ascending"):
        store.put("text", title="t", pages=pages)


def test_a_collection_gives_its_references_in_order(store):
    references = [store.put(text, title=text, pages=[0]) for text in ("b", "äa", "b")]
    collection = store.put_collection(references)
    assert store.collection(collection) == references
    assert (collection["documents"], collection["chars"], collection["bytes"]) == (3, 4, 5)


def test_a_missing_text_is_refused(store):
    reference = store.put("text", title="report.txt")
    file_of(store, reference).unlink()
    with pytest.raises(StoredTextChangedError, match=r"report\.txt.*Load the document again"):
        store.open(reference)


def test_a_changed_text_is_refused(store):
    reference = store.put("text", title="t")
    file_of(store, reference).write_bytes(b"tixt")
    with pytest.raises(StoredTextChangedError, match="not what its name says"):
        store.open(reference)


def test_a_text_that_is_no_longer_utf8_is_refused(store):
    reference = store.put("text", title="t")
    file_of(store, reference).write_bytes(b"t\xff")
    with pytest.raises(StoredTextChangedError, match="not what its name says"):
        store.open(reference)


def test_a_text_changed_after_it_was_opened_is_refused(store):
    reference = store.put("text", title="t")
    opened = store.open(reference)
    file_of(store, reference).write_bytes(b"tixt")
    os.utime(file_of(store, reference), ns=(1, 1))
    for read in (
        lambda: opened.read(0, 4),
        lambda: opened.read_from(0, 4),
        lambda: store.open(reference),
    ):
        with pytest.raises(StoredTextChangedError):
            read()


def test_putting_the_text_again_repairs_a_changed_file(store):
    reference = store.put("text", title="t")
    opened = store.open(reference)
    file_of(store, reference).write_bytes(b"damaged")
    store.put("text", title="t")
    assert store.open(reference).read(0, 4) == opened.read(0, 4) == "text"


def test_a_reference_of_another_length_is_refused(store):
    reference = store.put("text", title="t")
    with pytest.raises(StoredTextChangedError, match="length"):
        store.open({**reference, "chars": 3})


def test_a_changed_page_map_is_refused(store):
    reference = store.put("text", title="t", pages=[0, 2])
    (store.root / "pages" / reference["pages_id"]).write_text("[0,3]")
    with pytest.raises(StoredTextChangedError, match="page map"):
        store.open(reference)


def test_a_changed_collection_is_refused(store):
    collection = store.put_collection([store.put("text", title="t")])
    (store.root / "collections" / collection["collection_id"]).write_text("[]")
    with pytest.raises(StoredTextChangedError, match="collection"):
        store.collection(collection)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "A" * 64, "", None])
def test_a_reference_cannot_lead_out_of_the_store(store, name):
    with pytest.raises(StoredTextChangedError, match="SHA-256"):
        store.open({**store.put("text", title="t"), "document_id": name})


def test_a_directory_that_cannot_be_made_is_a_settings_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SettingsError, match=r"document_dir=.*QWENLONG_GRAPH_DATA"):
        DocumentStore(tmp_path / "file" / "store").put("text", title="t")


def test_a_full_disk_is_a_settings_error_and_leaves_no_file(store):
    store.put("makes the directories", title="t")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(SettingsError, match="cannot be written"):
            store.put("x" * 3_000_000, title="t")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(list((store.root / "texts").iterdir())) == 1


def test_the_data_directory_can_be_set_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("QWENLONG_GRAPH_DATA", str(tmp_path))
    assert default_data_dir() == tmp_path
    monkeypatch.delenv("QWENLONG_GRAPH_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert default_data_dir().name == "qwenlong-graph"
    assert isinstance(default_data_dir(), Path)
