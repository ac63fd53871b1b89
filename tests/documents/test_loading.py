from __future__ import annotations

import datetime
import io
import os
import sys
import threading
import zipfile

import openpyxl
import pptx
import pytest
from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document

from qwenlong_graph.documents.loading import ingest, load
from qwenlong_graph.documents.store import DocumentStore
from qwenlong_graph.errors import (
    BinaryDocumentError,
    CorruptDocumentError,
    DocumentNotAllowedError,
    DocumentNotFoundError,
    EmptyDocumentError,
    EncryptedDocumentError,
    NoDocumentsError,
    ScannedDocumentError,
    SettingsError,
    StoredTextChangedError,
)
from tests.documents.files import docx, epub, pdf, zipped


class Skipped(dict):
    """Takes what is left out, as an `on_skip`."""

    def __call__(self, name, reason):
        self[name] = reason


@pytest.fixture
def skipped():
    return Skipped()


@pytest.fixture
def read(store, tmp_path):
    """Loads a file with the given name and content, and gives its stored text."""

    def read(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        [reference] = load(path, store)
        return text_of(store, reference)

    return read


def text_of(store, reference) -> str:
    return store.open(reference).read(0, reference["chars"])


@pytest.mark.parametrize(
    "name", ["a.txt", "a.md", "a.csv", "a.py", "a.json", "README", "a.unknown"]
)
def test_text_files_are_kept_as_they_are(read, name):
    text = "<p>a_b*c</p>,\t1\r\ne\u0301 é 一\r \x0cend\n\n"
    assert read(name, text.encode()) == text


def test_the_title_is_the_name_of_the_file(store, tmp_path):
    (tmp_path / "report.txt").write_text("text")
    assert load(str(tmp_path / "report.txt"), store)[0]["title"] == "report.txt"


def test_a_source_file_that_begins_like_html_is_kept(read):
    page = "<!DOCTYPE html>\n<html><?php echo 1 ?></html>"
    assert read("index.php", page.encode()) == page


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-bom", "utf-32", "utf-32-be-bom"]
)
def test_byte_order_marks_decide_and_are_dropped(read, encoding):
    text = "Größe: 一二三\r\n" * 3
    bom = "\ufeff" if encoding.endswith("-bom") else ""
    assert read("a.txt", (bom + text).encode(encoding.removesuffix("-bom"))) == text


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "café"),
        ("cp1252", "Le café était fermé à Noël, même l’été: 5 €. " * 9),
        ("cp1251", "Привет, мир. Это простой текст на русском языке. "),
        ("koi8_r", "Привет, мир. Это простой текст на русском языке. " * 20),
        ("cp1253", "Καλημέρα κόσμε. Αυτό είναι ένα κείμενο. "),
        ("gb18030", "你好，世界。这是一个简单的中文文本，用来测试编码。"),
        ("big5", "你好，世界。這是一個簡單的中文文本。"),
        ("shift_jis", "こんにちは世界。これは日本語の文章です。"),
        ("cp949", "안녕하세요 세계. 이것은 한국어 문장입니다."),
    ],
)
def test_legacy_encodings_are_detected(read, encoding, text):
    assert read("a.txt", text.encode(encoding)) == text


def test_a_legacy_encoding_is_detected_however_late_it_shows(read):
    text = "plain\n" * 200_000 + "Привет, мир. Это простой текст на русском языке.\n" * 2_000
    assert read("a.txt", text.encode("cp1251")) == text


def test_stretches_that_are_not_utf8_are_read_as_cp1252(read):
    assert read("a.txt", "Größe 一 ".encode() + b"caf\xe9 \x80") == "Größe 一 café €"


def test_bytes_that_no_encoding_explains_become_replacement_characters(read):
    assert read("a.txt", "Größe ".encode() + b"\x81") == "Größe \ufffd"


def test_a_character_cut_by_the_end_of_the_file_is_replaced(read):
    assert read("a.txt", "Größe 一二三".encode()[:-1]).startswith("Größe 一二")


def test_html_loses_scripts_and_styles_and_keeps_headings_and_tables(read):
    page = (
        "<!doctype html><html><head><style>p {color: red}</style></head><body><h1>Größe_a*b</h1>"
        "<script>evil()</script><p>One &lt;two&gt;</p>"
        "<table><tr><th>x</th></tr><tr><td>1</td></tr></table></body></html>"
    )
    text = read("page.html", page.encode())
    assert "# Größe_a*b" in text
    assert "One <two>" in text
    assert "| 1 |" in text
    assert "evil" not in text
    assert "color" not in text
    assert read("saved", page.encode()) == text


def test_html_in_its_declared_encoding(read):
    page = '<html><head><meta charset="iso-8859-2"></head><body>Příliš žluťoučký kůň</body></html>'
    assert read("a.html", page.encode("iso-8859-2")) == "Příliš žluťoučký kůň"


def test_html_nested_beyond_the_recursion_limit_still_gives_its_text(read):
    assert read("a.html", b"<div>" * 3_000 + b"deep" + b"</div>" * 3_000) == "deep"


def test_docx(read):
    assert read("a.docx", docx("First paragraph.", "Second one: 一.")) == (
        "First paragraph.\n\nSecond one: 一."
    )


def test_the_content_decides_before_the_suffix(read):
    assert read("a.txt", docx("Text.")) == "Text."
    assert read("b.docx.pdf.txt", pdf(["Text."])) == "Text."


def test_pptx(read):
    slides = pptx.Presentation()
    slide = slides.slides.add_slide(slides.slide_layouts[1])
    slide.shapes.title.text = "A title"
    slide.placeholders[1].text = "A point"
    buffer = io.BytesIO()
    slides.save(buffer)
    text = read("a.pptx", buffer.getvalue())
    assert "A title" in text
    assert "A point" in text


def test_xlsx_keeps_every_figure_as_stored(read):
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    sheet.title = "Trade"
    sheet.append(["name", "value", "on"])
    sheet.append(["a|b", 1234567.891, datetime.datetime(1946, 1, 21)])
    sheet.append([None, 0.123456789, "two\nlines", None])
    sheet.append([])
    sheet.append(["x" * 300, 123456789012345])
    workbook.create_sheet("Empty")
    buffer = io.BytesIO()
    workbook.save(buffer)
    assert read("a.xlsx", buffer.getvalue()) == (
        "## Trade\n\n| name | value | on |\n| --- | --- | --- |\n"
        "| a\\|b | 1234567.891 | 1946-01-21 |\n|  | 0.123456789 | two lines |\n"
        f"| {'x' * 300} | 123456789012345 |  |\n"
    )


def test_xlsx_with_a_wrong_size_in_its_header_loses_no_row(read):
    workbook = openpyxl.Workbook()
    for row in (["a", "b"], ["c", "d"]):
        workbook.active.append(row)
    buffer = io.BytesIO()
    workbook.save(buffer)
    with zipfile.ZipFile(buffer) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    sheet = members["xl/worksheets/sheet1.xml"]
    assert b'ref="A1:B2"' in sheet
    members["xl/worksheets/sheet1.xml"] = sheet.replace(b'ref="A1:B2"', b'ref="A1:A1"')
    assert "| c | d |" in read("a.xlsx", zipped(members))


def test_epub_chapters_in_order(read):
    text = read("a.epub", epub("The first chapter.", "The second chapter."))
    assert text.index("The first chapter.") < text.index("The second chapter.")


def test_pdf_keeps_its_pages(store, tmp_path, skipped):
    path = tmp_path / "a.pdf"
    path.write_bytes(
        pdf(["One line.", "An exam-", "ple of Anglo-", "Saxon 1945-", "46."], [], ["Third — page."])
    )
    [reference] = load(path, store, on_skip=skipped)
    opened = store.open(reference)
    text = opened.read(0, opened.chars)
    assert text == "One line.\nAn example of Anglo-Saxon 1945-\n46.\n\f\n\fThird — page."
    third = text.index("Third")
    assert opened.pages_of(0, 5) == (1, 1)
    assert opened.pages_of(third, third + 5) == (3, 3)
    assert opened.pages_of(0, opened.chars) == (1, 3)
    assert skipped == {"a.pdf": "1 of 3 pages have no text layer: 2"}


def test_pdfs_are_read_by_several_threads(store, tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf(*[["Some text."]] * 30))
    found = []
    threads = [
        threading.Thread(target=lambda: found.extend(load(tmp_path / "a.pdf", store)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(reference == found[0] for reference in found)


@pytest.mark.parametrize("name", ["a.txt", "a.pdf", "a.docx", "a.html"])
def test_an_empty_file(read, name):
    with pytest.raises(EmptyDocumentError, match="empty"):
        read(name, b"")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b" \n\t\r\n"),
        ("a.html", b"<html><body><script>x</script></body></html>"),
        ("a.docx", docx("")),
    ],
)
def test_a_file_without_visible_text(read, name, content):
    with pytest.raises(EmptyDocumentError, match="white space"):
        read(name, content)


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
        b"\x7fELF\x02\x01\x01\x00",
        b"text\x00text",
        bytes(range(1, 32)) * 40,
    ],
)
def test_a_binary_file(store, tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(BinaryDocumentError, match=r"a\.txt") as caught:
        load(tmp_path / "a.txt", store)
    assert caught.value.source == "a.txt"
    assert list((store.root).glob("texts/*")) == []


def test_a_zip_archive(read):
    with pytest.raises(BinaryDocumentError, match="Unpack it"):
        read("a.zip", zipped({"notes.txt": "text"}))


def test_an_open_document_file(read):
    with pytest.raises(BinaryDocumentError, match="Convert it"):
        read("a.odt", zipped({"content.xml": "<x/>"}))


OLE = bytes.fromhex("d0cf11e0a1b11ae1") + b"\0" * 600


def test_an_old_office_file(read):
    with pytest.raises(BinaryDocumentError, match="Convert it"):
        read("a.doc", OLE + "WordDocument".encode("utf-16-le"))


def test_an_office_file_with_a_password(read):
    with pytest.raises(EncryptedDocumentError, match="password"):
        read("a.docx", OLE + "EncryptedPackage".encode("utf-16-le"))


def test_a_pdf_with_a_password(read):
    with pytest.raises(EncryptedDocumentError, match="password"):
        read("a.pdf", pdf(["Secret."], is_encrypted=True))


def test_a_zip_container_with_a_password(read):
    content = bytearray(docx("Text."))
    at = 0
    while (at := content.find(b"PK\x01\x02", at)) >= 0:
        content[at + 8] |= 1  # the flag in the central directory
        at += 4
    with pytest.raises(EncryptedDocumentError, match="password"):
        read("a.docx", bytes(content))


def test_an_epub_with_locked_chapters(read):
    locked = '<encryption><CipherReference URI="OPS/chapter0.xhtml"/></encryption>'
    with pytest.raises(EncryptedDocumentError):
        read("a.epub", epub("x", extra={"META-INF/encryption.xml": locked}))
    fonts = locked.replace("chapter0.xhtml", "font.otf")
    assert "x" in read("b.epub", epub("x", extra={"META-INF/encryption.xml": fonts}))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pdf", b"%PDF-1.7 and nothing more"),
        ("b.pdf", b"no PDF at all"),
        ("c.pdf", pdf(["Text."])[:200]),
        ("a.docx", b"PK\x03\x04 and nothing more"),
        ("b.docx", b"plain text"),
        ("c.docx", docx("Text.")[:300]),
        ("d.docx", zipped({"word/document.xml": "<broken"})),
        ("a.xlsx", zipped({"xl/workbook.xml": "<broken"})),
        ("a.pptx", zipped({"ppt/presentation.xml": "<broken"})),
        ("a.epub", zipped({"META-INF/container.xml": "<broken"})),
    ],
)
def test_a_broken_file(read, name, content):
    with pytest.raises(CorruptDocumentError, match=name) as caught:
        read(name, content)
    assert caught.value.source == name
    assert caught.value.exit_code == 3


def test_an_archive_that_unpacks_to_absurd_size(read):
    bomb = zipped({"word/document.xml": b"\0" * (120 << 20)})
    with pytest.raises(CorruptDocumentError, match="unpacked it would take"):
        read("a.docx", bomb)


def test_a_scanned_pdf(read):
    with pytest.raises(ScannedDocumentError, match="none of its 2 pages"):
        read("a.pdf", pdf([], []))


@pytest.mark.parametrize("name", ["missing.txt", "x" * 5_000, "nul\0.txt", "~nobody-here/x.txt"])
def test_a_path_that_is_none(store, name):
    with pytest.raises(DocumentNotFoundError, match="Check the path") as caught:
        load(name, store)
    assert len(str(caught.value)) < 500


def test_an_address_is_not_fetched(store):
    with pytest.raises(DocumentNotFoundError, match="loader"):
        load("https://example.com/report.pdf", store)


def give_stdin(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize("content", ["Größe\r\n".encode(), pdf(["Größe"])])
def test_standard_input(store, monkeypatch, content):
    give_stdin(monkeypatch, content)
    [reference] = load("-", store)
    assert reference["title"] == "stdin"
    assert text_of(store, reference).strip() == "Größe"


def test_a_named_pipe(store, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(b"text"))
    writer.start()
    [reference] = load(tmp_path / "pipe", store)
    writer.join()
    assert text_of(store, reference) == "text"


def make_files(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def titles(references):
    return [reference["title"] for reference in references]


def test_a_directory_is_read_in_the_order_of_its_paths(store, tmp_path, skipped):
    make_files(tmp_path, {"b.txt": "b", "a/z.md": "z", "a/b/c.py": "c", "a.txt": "a"})
    assert titles(load(tmp_path, store, on_skip=skipped)) == [
        "a/b/c.py",
        "a/z.md",
        "a.txt",
        "b.txt",
    ]
    assert skipped == {}


def test_gitignore_files_are_respected_nested_ones_too(store, tmp_path, skipped):
    make_files(
        tmp_path,
        {
            ".gitignore": "*.log\nbuild/\n/top.txt\n",
            "a.txt": "a",
            "x.log": "x",
            "top.txt": "t",
            "build/out.txt": "o",
            "sub/.gitignore": "!keep.log\nsecret.txt\n",
            "sub/keep.log": "k",
            "sub/other.log": "o",
            "sub/secret.txt": "s",
            "sub/top.txt": "t",
        },
    )
    assert titles(load(tmp_path, store, on_skip=skipped)) == [
        "a.txt",
        "sub/keep.log",
        "sub/top.txt",
    ]
    assert skipped == {}


def test_a_store_inside_the_directory_that_is_read_is_no_document(tmp_path):
    store = DocumentStore(tmp_path / "data" / "documents")
    make_files(tmp_path, {"a.txt": "a", "data/b.txt": "b"})
    for _ in range(2):
        assert titles(load(tmp_path, store)) == ["a.txt", "data/b.txt"]


def test_hidden_files_and_directories_are_left_out(store, tmp_path):
    make_files(tmp_path, {".git/config": "x", ".env": "KEY=1", "a.txt": "a"})
    assert titles(load(tmp_path, store)) == ["a.txt"]


def test_unreadable_files_in_a_directory_are_told_with_the_reason(store, tmp_path, skipped):
    make_files(
        tmp_path,
        {"a.txt": "a", "b.png": b"\x89PNG\0", "c.txt": "", "d.pdf": b"%PDF-", "e.pdf": pdf([])},
    )
    os.mkfifo(tmp_path / "f")
    (tmp_path / "g").symlink_to(tmp_path / "missing")
    assert titles(load(tmp_path, store, on_skip=skipped)) == ["a.txt"]
    assert {name.rsplit("/", 1)[1] for name in skipped} == {
        "b.png",
        "c.txt",
        "d.pdf",
        "e.pdf",
        "f",
        "g",
    }
    assert "empty" in skipped[str(tmp_path / "c.txt")]


def test_omissions_are_logged_where_nobody_asks_for_them(store, tmp_path, caplog):
    make_files(tmp_path, {"a.txt": "a", "b.png": b"\x89PNG\0"})
    load(tmp_path, store)
    assert "b.png" in caplog.text


def test_a_loop_of_links_is_safe_and_told(store, tmp_path, skipped):
    make_files(tmp_path, {"sub/a.txt": "a"})
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "link.txt").symlink_to(tmp_path / "sub" / "a.txt")
    assert titles(load(tmp_path, store, on_skip=skipped)) == ["link.txt", "sub/a.txt"]
    assert list(skipped) == [str(tmp_path / "sub" / "loop")]


@pytest.mark.parametrize("files", [{}, {"a.png": b"\x89PNG\0"}, {".hidden": "x"}])
def test_a_directory_without_text(store, tmp_path, files, skipped):
    (tmp_path / "folder").mkdir()
    make_files(tmp_path / "folder", files)
    with pytest.raises(NoDocumentsError, match="no file in it"):
        load(tmp_path / "folder", store, on_skip=skipped)


class Loader(BaseLoader):
    def __init__(self, *documents):
        self._documents = documents

    def lazy_load(self):
        yield from self._documents


def page(number, text="Page.", source="book.pdf"):
    return Document(text, metadata={"source": source, "page": number, "title": None})


def test_a_document_keeps_its_text_and_takes_its_title_from_metadata(store):
    [titled] = load(Document("text\r\n", metadata={"title": "T", "source": "s"}), store)
    [sourced] = load(Document("text", metadata={"source": "s.txt"}), store)
    [bare] = load(Document("text"), store)
    assert [titled["title"], sourced["title"], bare["title"]] == ["T", "s.txt", "document 1"]
    assert text_of(store, titled) == "text\r\n"


def test_pages_of_one_source_become_one_document_with_pages(store):
    [reference] = load(Loader(page(0, "One."), page(1, "Two."), page(3, "Four.")), store)
    opened = store.open(reference)
    text = opened.read(0, opened.chars)
    assert text == "One.\n\fTwo.\n\fFour."
    for word, number in (("One", 1), ("Two", 2), ("Four", 4)):
        at = text.index(word)
        assert opened.pages_of(at, at + 3) == (number, number)


def test_pieces_of_one_page_stay_on_it(store):
    [reference] = load(Loader(page(0, "One."), page(0, "More."), page(1, "Two.")), store)
    opened = store.open(reference)
    text = opened.read(0, opened.chars)
    assert text == "One.\n\nMore.\n\fTwo."
    assert opened.pages_of(text.index("More"), text.index("More") + 4) == (1, 1)
    assert opened.pages_of(text.index("Two"), text.index("Two") + 3) == (2, 2)


def test_pages_of_other_sources_and_going_back_begin_a_new_document(store):
    pages = [page(0), page(1), page(0), page(0, source="b"), Document("x"), Document("y")]
    references = store.collection(ingest(pages, store))
    assert titles(references) == ["book.pdf", "book.pdf", "b", "document 4", "document 5"]


def test_an_empty_page_among_others_is_kept_and_an_empty_document_is_an_error(store):
    load(Loader(page(0, ""), page(1, "Two.")), store)
    with pytest.raises(EmptyDocumentError, match=r"book\.pdf"):
        load(page(0, " "), store)


def test_empty_documents_of_a_loader_are_told(store, skipped):
    assert len(load(Loader(Document(""), Document("text")), store, on_skip=skipped)) == 1
    assert list(skipped) == ["document 1"]


def test_a_loader_that_gives_nothing(store):
    with pytest.raises(NoDocumentsError, match="Loader"):
        load(Loader(), store)


def test_references_are_passed_on(store):
    [one] = load(Document("one"), store)
    collection = ingest([one, Document("two")], store)
    assert load(one, store) == [one]
    assert load(collection, store) == store.collection(collection)
    assert ingest(collection, store) == collection


@pytest.mark.parametrize(
    "mapping", [{}, {"page_content": "x"}, {"document_id": "x"}, {"chars": "1"}]
)
def test_other_mappings_are_refused(store, mapping):
    with pytest.raises(SettingsError, match="reference"):
        load(mapping, store)


@pytest.mark.parametrize(
    "as_json",
    [
        lambda document: {"page_content": document.page_content, "metadata": document.metadata},
        lambda document: document.model_dump(mode="json"),
        lambda document: document.to_json(),
    ],
    ids=["fields", "model_dump", "to_json"],
)
def test_documents_as_json_are_read_as_documents_are(store, as_json):
    pages = [
        Document(text, metadata={"source": "report.pdf", "page": number})
        for number, text in enumerate(["first", "second"])
    ]
    expected = ingest(pages, store)
    assert ingest([as_json(page) for page in pages], store) == expected
    assert expected["documents"] == 1
    assert ingest(as_json(pages[0]), store) == ingest(pages[0], store)


@pytest.mark.parametrize("metadata", [None, {}])
def test_a_document_as_json_needs_no_metadata(store, metadata):
    expected = ingest(Document("text"), store)
    assert ingest([{"page_content": "text", "metadata": metadata}], store) == expected
    assert ingest([{"page_content": "text"}], store) == expected


@pytest.mark.parametrize(
    "mapping",
    [
        {"page_content": None},
        {"page_content": ["text"]},
        {"page_content": "text", "metadata": "source"},
        {"type": "constructor", "id": ["langchain", "Document"], "kwargs": {"page_content": 3}},
    ],
)
def test_malformed_documents_as_json_are_refused(store, mapping):
    with pytest.raises(SettingsError, match="page_content"):
        ingest([mapping], store)


def test_a_serialised_object_of_another_kind_is_not_made(store):
    mapping = {"lc": 1, "type": "constructor", "id": ["os", "system"], "kwargs": {}}
    with pytest.raises(SettingsError, match="reference"):
        ingest([mapping], store)


def test_a_store_that_admits_is_asked_about_every_path(tmp_path):
    make_files(tmp_path, {"in/a.txt": "open", "b.txt": "secret"})
    asked = []

    def admit(name):
        asked.append(name)
        if name != "a.txt":
            raise DocumentNotAllowedError(f"{name}: not here", source=name)
        return tmp_path / "in" / name

    store = DocumentStore(tmp_path / "store", admit=admit)
    collection = ingest(["a.txt", Document("more")], store)
    assert [text_of(store, one) for one in store.collection(collection)] == ["open", "more"]
    for refused in (str(tmp_path / "b.txt"), tmp_path / "b.txt", "-", "", str(tmp_path)):
        with pytest.raises(DocumentNotAllowedError):
            ingest(["a.txt", refused], store)
    assert asked[-1] == str(tmp_path)
    assert ingest([collection], store) == collection


def test_a_reference_with_a_wrong_count_is_refused(store):
    [reference] = load(Document("text"), store)
    with pytest.raises(SettingsError, match="reference"):
        load({**reference, "chars": "4"}, store)


def test_a_reference_to_a_collection_that_is_not_in_the_store(store):
    collection = ingest(Document("text"), store)
    with pytest.raises(StoredTextChangedError):
        load({**collection, "collection_id": "0" * 64}, store)


@pytest.mark.parametrize("source", [None, 3, b"bytes", ["list"]])
def test_other_values_are_refused(store, source):
    with pytest.raises(SettingsError, match=type(source).__name__):
        load(source, store)


def test_ingest_keeps_the_order_of_its_sources(store, tmp_path):
    make_files(tmp_path, {"d/b.txt": "b", "d/a.txt": "a", "c.txt": "c"})
    collection = ingest([tmp_path / "c.txt", str(tmp_path / "d"), Document("x")], store)
    assert titles(store.collection(collection)) == ["c.txt", "a.txt", "b.txt", "document 4"]
    assert collection["documents"] == 4


@pytest.mark.parametrize("sources", [[], iter(())])
def test_ingesting_nothing(store, sources):
    with pytest.raises(NoDocumentsError, match="none were given"):
        ingest(sources, store)
