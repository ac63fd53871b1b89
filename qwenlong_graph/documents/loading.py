"""From files, directories, standard input and LangChain documents to references in the store.

A format is decided by content first and suffix second. Text files are kept as they are: no
newline is translated, nothing is normalised, because the stored text is what citations quote.
"""

from __future__ import annotations

import codecs
import contextlib
import datetime
import io
import logging
import mmap
import os
import re
import shutil
import stat
import sys
import tempfile
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

from qwenlong_graph.errors import (
    BinaryDocumentError,
    CorruptDocumentError,
    DocumentError,
    DocumentNotFoundError,
    EmptyDocumentError,
    EncryptedDocumentError,
    NoDocumentsError,
    ScannedDocumentError,
    SettingsError,
)
from qwenlong_graph.types import CollectionReference, DocumentReference

if TYPE_CHECKING:
    import pathspec
    from langchain_core.document_loaders import BaseLoader
    from langchain_core.documents import Document

    from qwenlong_graph.documents.store import DocumentStore

__all__ = ["OnSkip", "Source", "ingest", "load"]

Source: TypeAlias = "str | Path | Document | BaseLoader | DocumentReference | CollectionReference"
"""A path ("-" is standard input), a directory, a LangChain document or loader, or a reference."""

OnSkip = Callable[[str, str], None]
"""Called with (what was left out, why). Without one, each omission is logged as a warning."""

PAGE_BREAK = "\n\f"
"""Ends every page but the last: white space to a reader, and a border the chunker prefers."""

SAMPLE_BYTES = 1 << 16
BLOCK_BYTES = 1 << 20
LARGEST_UNPACKED_BYTES = 1 << 30
LARGEST_RATIO = 200
RATIO_MATTERS_ABOVE_BYTES = 100 << 20
MOST_PAGES = 1_000_000

# What charset detection may answer. Central European code pages are left out: on Western text
# the detector takes them for cp1252, which is far more common.
_LEGACY_ENCODINGS = [
    "cp1252", "cp1251", "koi8_r", "cp1253", "cp1255", "cp1256",
    "gb18030", "big5", "cp932", "euc_jp", "cp949",
]  # fmt: skip
_BOMS = [  # the UTF-32 ones begin with a UTF-16 one
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]
_ZIP_FORMATS = {
    "word/": ".docx",
    "ppt/": ".pptx",
    "xl/": ".xlsx",
    "META-INF/container.xml": ".epub",
}
_UNREADABLE_ZIP_MEMBERS = {"xl/workbook.bin": "an .xlsb workbook", "content.xml": "an OpenDocument"}
_HTML_SUFFIXES = {".html", ".htm", ".xhtml"}
_SNIFFED_AS_HTML = {"", ".txt"}  # elsewhere markup at the start is source code to be kept
_HTML_START = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html)\b", re.I | re.S
)
_CONTROL = re.compile(rb"[\x01-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
_OLE = bytes.fromhex("d0cf11e0a1b11ae1")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_ENCRYPTED_CHAPTER = re.compile(rb'URI="[^"]+\.x?html?"', re.I)

_DECLARED_CHARSET = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?([A-Za-z0-9_.:-]+)""", re.I)

_log = logging.getLogger(__name__)
_pdfium_lock = threading.Lock()  # PDFium must not be entered by two threads


def ingest(
    sources: Iterable[Source] | Source, store: DocumentStore, *, on_skip: OnSkip | None = None
) -> CollectionReference:
    """Load all `sources` in their order and store them as one collection.

    Consecutive LangChain documents that are pages of the same source become one document. Documents
    may also come as JSON: with `page_content` and `metadata`, or as LangChain serialises them. A
    single collection is given back as it is, once it is seen to be in the store.
    Raises `NoDocumentsError` if there is nothing, and what `load` and the store's `admit` raise.
    """
    from langchain_core.documents import Document

    # A document is iterable too: pydantic models give their fields.
    if isinstance(sources, (str, Path, Mapping, Document)) or not isinstance(sources, Iterable):
        sources = [cast("Source", sources)]
    if isinstance(sources, Sequence) and len(sources) == 1:
        only = sources[0]
        if isinstance(only, Mapping) and "collection_id" in only:
            _checked_references(only, store)
            return cast("CollectionReference", dict(only))
    references: list[DocumentReference] = []
    taken = (_admitted(_from_json(source), store) for source in sources)
    for group in _pages_together(taken):
        references.extend(_load_group(group, store, on_skip, len(references) + 1))
    if not references:
        raise NoDocumentsError("Loading documents: none were given. Name a file or a directory.")
    return store.put_collection(references)


def load(
    source: Source, store: DocumentStore, *, on_skip: OnSkip | None = None
) -> list[DocumentReference]:
    """Store what `source` holds: one document, or as many as a directory or loader has.

    A problem with a single source raises the `DocumentError` that names it. Within a directory
    such a file is left out and told to `on_skip`, as are pages of a PDF without text. Hidden
    files and those that .gitignore files exclude are left out silently.
    """
    return _load_group([source], store, on_skip, 1)


def _log_skip(name: str, reason: str) -> None:
    _log.warning("left out of the documents: %s (%s)", name, reason)


def _load_group(
    group: Sequence[Source], store: DocumentStore, on_skip: OnSkip | None, number: int
) -> list[DocumentReference]:
    from langchain_core.document_loaders import BaseLoader
    from langchain_core.documents import Document

    on_skip = _log_skip if on_skip is None else on_skip
    source = group[0]
    if isinstance(source, Document):
        return [_put_pages(cast("Sequence[Document]", group), store, number)]
    if isinstance(source, BaseLoader):
        return _load_loader(source, store, on_skip, number)
    if isinstance(source, Mapping):
        return _checked_references(source, store)
    if isinstance(source, Path) or (isinstance(source, str) and source != "-"):
        return _load_path(source, store, on_skip)
    if source == "-":
        with tempfile.TemporaryFile() as spooled:
            shutil.copyfileobj(sys.stdin.buffer, spooled)
            return [_load_file(spooled, "stdin", "", store, on_skip)]
    raise SettingsError(
        f"Loading documents: cannot load a value of type {type(source).__name__}. Pass a path, a "
        "LangChain Document or loader, or a reference from the document store."
    )


def _from_json(source: Source) -> Source:
    """A LangChain document where `source` is one as JSON; anything else as it is."""
    from langchain_core.documents import Document

    if not isinstance(source, Mapping):
        return source
    fields: Mapping[str, Any] = source
    if fields.get("type") == "constructor" and list(fields.get("id") or ())[-1:] == ["Document"]:
        fields = fields.get("kwargs") or {}
    if "page_content" not in fields:
        return source
    text, metadata = fields["page_content"], fields.get("metadata")
    if not isinstance(text, str) or not isinstance(metadata or {}, Mapping):
        raise SettingsError(
            "Loading documents: a document as JSON takes page_content, a text, and metadata, an "
            "object or nothing. Put these right."
        )
    return Document(text, metadata=dict(metadata or {}))


def _admitted(source: Source, store: DocumentStore) -> Source:
    if store.admit is not None and isinstance(source, (str, Path)):
        return store.admit(str(source))
    return source


def _checked_references(source: Mapping[str, Any], store: DocumentStore) -> list[DocumentReference]:
    for kind in (DocumentReference, CollectionReference):
        wanted = kind.__required_keys__
        if wanted <= source.keys():
            picked = {key: source[key] for key in wanted}
            sizes_are_counts = all(
                isinstance(picked[key], int) and picked[key] >= 0 for key in wanted & _COUNT_KEYS
            )
            if not sizes_are_counts or not isinstance(picked.get("title", ""), str):
                break
            if kind is DocumentReference:
                return [cast("DocumentReference", picked)]
            return store.collection(cast("CollectionReference", picked))
    raise SettingsError(
        f"Loading documents: a mapping with the keys {sorted(map(str, source))[:8]} is no document "
        "or collection reference. To pass text itself, use Document(page_content=...)."
    )


_COUNT_KEYS = {"chars", "bytes", "documents"}


def _page_number(document: Document) -> int | None:
    page = document.metadata.get("page")
    is_page = isinstance(page, int) and not isinstance(page, bool) and 0 <= page < MOST_PAGES
    return page if is_page else None


def _pages_together(sources: Iterable[Source]) -> Iterator[list[Source]]:
    """Groups of one, but for consecutive pages of the same source."""
    from langchain_core.documents import Document

    group: list[Source] = []
    for source in sources:
        last = group[-1] if group else None
        continues = (
            isinstance(source, Document)
            and isinstance(last, Document)
            and source.metadata.get("source") is not None
            and source.metadata["source"] == last.metadata.get("source")
            and (page := _page_number(source)) is not None
            and (last_page := _page_number(last)) is not None
            and last_page <= page
        )
        if group and not continues:
            yield group
            group = []
        group.append(source)
    if group:
        yield group


def _load_loader(
    loader: BaseLoader, store: DocumentStore, on_skip: OnSkip, number: int
) -> list[DocumentReference]:
    references: list[DocumentReference] = []
    for group in _pages_together(loader.lazy_load()):
        pages = cast("Sequence[Document]", group)
        try:
            references.append(_put_pages(pages, store, number + len(references)))
        except EmptyDocumentError as error:
            on_skip(error.source, str(error))
    if not references:
        name = type(loader).__name__
        raise NoDocumentsError(
            f"Loading from {name}: it gave no text. Check its source.", source=name
        )
    return references


def _put_pages(
    documents: Sequence[Document], store: DocumentStore, number: int
) -> DocumentReference:
    metadata = documents[0].metadata
    title = str(metadata.get("title") or metadata.get("source") or f"document {number}")
    if not any(document.page_content.strip() for document in documents):
        raise EmptyDocumentError(
            f"Loading {title!r}: the document holds no text. Leave it out.", source=title
        )
    if _page_number(documents[0]) is None:
        return store.put(documents[0].page_content, title=title)
    pieces: list[str] = []
    starts: list[int] = []
    chars = 0
    for document in documents:
        page = _page_number(document) or 0  # LangChain's loaders count pages from 0
        if pieces:
            separator = PAGE_BREAK if page >= len(starts) else "\n\n"
            pieces.append(separator)
            chars += len(separator)
        # A page that was not given is empty and stands where the next one begins.
        starts.extend([chars] * (page + 1 - len(starts)))
        pieces.append(document.page_content)
        chars += len(document.page_content)
    return store.put(pieces, title=title, pages=starts)


def _load_path(
    source: str | Path, store: DocumentStore, on_skip: OnSkip
) -> list[DocumentReference]:
    name = str(source)
    if _URL.match(name):
        raise DocumentNotFoundError(
            f"Loading {name}: addresses are not fetched. Download it first, or pass a LangChain "
            "loader for it.",
            source=name,
        )
    path = Path(source)
    with contextlib.suppress(RuntimeError):  # "~nobody/x": there is no such user's home
        path = path.expanduser()
    if _is_directory(path):
        return _load_directory(path, store, on_skip)
    with _opened(path) as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return [_load_file(file, path.name, path.suffix, store, on_skip)]
        with tempfile.TemporaryFile() as spooled:  # a pipe, which cannot be read twice
            shutil.copyfileobj(file, spooled)
            return [_load_file(spooled, path.name, path.suffix, store, on_skip)]


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False  # opening it will say what is wrong


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        found = getattr(error, "strerror", None) or str(error)
        shown = str(path) if len(str(path)) <= 200 else str(path)[:200] + "..."
        raise DocumentNotFoundError(
            f"Loading {shown!r}: {found}. Check the path and your right to read it. (In "
            "Python, text itself is passed as Document(page_content=...).)",
            source=shown,
        ) from error


def _load_directory(root: Path, store: DocumentStore, on_skip: OnSkip) -> list[DocumentReference]:
    references: list[DocumentReference] = []
    for path in _files_under(root, (), on_skip):
        title = path.relative_to(root).as_posix()
        try:
            with _opened(path) as file:
                references.append(_load_file(file, title, path.suffix, store, on_skip))
        except DocumentError as error:
            on_skip(str(path), str(error))
    if not references:
        raise NoDocumentsError(
            f"Loading the directory {root}: no file in it holds readable text. Name another "
            "directory, or the files themselves.",
            source=str(root),
        )
    return references


def _files_under(
    folder: Path, ignores: tuple[tuple[Path, pathspec.GitIgnoreSpec], ...], on_skip: OnSkip
) -> Iterator[Path]:
    """Regular files in the order of their relative paths; .gitignore files apply as in git."""
    import pathspec

    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
        ignore_file = folder / ".gitignore"
        if ignore_file.is_file():
            lines = ignore_file.read_text("utf-8", errors="replace").splitlines()
            ignores = (*ignores, (folder, pathspec.GitIgnoreSpec.from_lines(lines)))
    except OSError as error:
        on_skip(str(folder), error.strerror or str(error))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            mode = entry.stat().st_mode
        except OSError as error:  # a link to nothing, or no right to look
            on_skip(str(entry), error.strerror or str(error))
            continue
        is_link = entry.is_symlink()
        is_directory = stat.S_ISDIR(mode)
        if _is_ignored(entry, is_directory and not is_link, ignores):
            continue
        if is_directory and is_link:
            on_skip(str(entry), "links to directories are not followed")
        elif is_directory:
            yield from _files_under(entry, ignores, on_skip)
        elif stat.S_ISREG(mode):
            yield entry
        else:
            on_skip(str(entry), "not a regular file")


def _is_ignored(
    entry: Path,
    is_directory: bool,
    ignores: tuple[tuple[Path, pathspec.GitIgnoreSpec], ...],
) -> bool:
    for folder, spec in reversed(ignores):  # the nearest .gitignore with an opinion decides
        name = entry.relative_to(folder).as_posix() + ("/" if is_directory else "")
        included = spec.check_file(name).include
        if included is not None:
            return included
    return False


def _load_file(
    file: BinaryIO, title: str, suffix: str, store: DocumentStore, on_skip: OnSkip
) -> DocumentReference:
    suffix = suffix.lower()
    head = _read_at(file, 0, SAMPLE_BYTES)
    if not head:
        raise EmptyDocumentError(f"Loading {title!r}: the file is empty.", source=title)
    if head.startswith(_OLE):
        raise _ole_error(file, title)
    if head.lstrip().startswith(b"%PDF-") or suffix == ".pdf":
        return _load_pdf(file, title, store, on_skip)
    if head.startswith(b"PK\x03\x04"):
        text = _office_text(file, title)
    elif suffix in {".docx", ".pptx", ".xlsx", ".epub"}:
        raise _corrupt(title, f"it is named {suffix} but does not begin like such a file")
    elif suffix in _HTML_SUFFIXES or (suffix in _SNIFFED_AS_HTML and _HTML_START.match(head)):
        text = _html_text(file, title)
    else:
        return store.put(_not_blank(_decoded(file, title), title), title=title)
    return store.put(_not_blank([text], title), title=title)


def _read_at(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _not_blank(pieces: Iterable[str], title: str) -> Iterator[str]:
    is_blank = True
    for piece in pieces:
        is_blank = is_blank and not piece.strip()
        yield piece
    if is_blank:
        raise EmptyDocumentError(
            f"Loading {title!r}: it holds nothing but white space.", source=title
        )


def _corrupt(title: str, found: str) -> CorruptDocumentError:
    return CorruptDocumentError(
        f"Loading {title!r}: {found}. Open it in its own program and save it again.", source=title
    )


def _encrypted(title: str) -> EncryptedDocumentError:
    return EncryptedDocumentError(
        f"Loading {title!r}: it is protected by a password. Save a copy without one.", source=title
    )


def _ole_error(file: BinaryIO, title: str) -> DocumentError:
    """Office files before 2007, and newer ones with a password, share one container."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find("EncryptedPackage".encode("utf-16-le")) >= 0:
            return _encrypted(title)
    return BinaryDocumentError(
        f"Loading {title!r}: an Office file of the old binary kind (.doc, .xls, .ppt, .msg). "
        "Convert it to .docx, .xlsx, .pptx or PDF.",
        source=title,
    )


def _load_pdf(
    file: BinaryIO, title: str, store: DocumentStore, on_skip: OnSkip
) -> DocumentReference:
    import pypdfium2
    import pypdfium2.raw

    file.seek(0)
    try:
        with _pdfium_lock, pypdfium2.PdfDocument(file) as document:
            pages = [_pdf_page_text(page) for page in document]
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) == pypdfium2.raw.FPDF_ERR_PASSWORD:
            raise _encrypted(title) from error
        raise _corrupt(title, "PDFium cannot read it") from error
    without_text = [number for number, page in enumerate(pages, 1) if not page.strip()]
    if len(without_text) == len(pages):
        raise ScannedDocumentError(
            f"Loading {title!r}: none of its {len(pages)} pages has a text layer. Run OCR on it "
            "first.",
            source=title,
        )
    if without_text:
        listed = ", ".join(map(str, without_text[:10])) + (", ..." if without_text[10:] else "")
        on_skip(title, f"{len(without_text)} of {len(pages)} pages have no text layer: {listed}")
    starts = [0]
    for page in pages[:-1]:
        starts.append(starts[-1] + len(page) + len(PAGE_BREAK))
    return store.put(PAGE_BREAK.join(pages), title=title, pages=starts)


def _pdf_page_text(page: Any) -> str:
    try:
        text_page = page.get_textpage()
        try:
            text = str(text_page.get_text_range())
        finally:
            text_page.close()
    finally:
        page.close()
    # PDFium marks a hyphen at a line's end so. Between letters it splits a word in two.
    text = re.sub(r"(?<=[^\W\d_A-Z])\ufffe(?=[^\W\d_A-Z])", "", text).replace("\ufffe", "-")
    return text.replace("\r\n", "\n")


def _office_text(file: BinaryIO, title: str) -> str:
    suffix = _checked_zip_format(file, title)
    file.seek(0)
    if suffix == ".xlsx":
        return _xlsx_text(file, title)
    return _markitdown_text(file, title, suffix)


def _checked_zip_format(file: BinaryIO, title: str) -> str:
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            names = {member.filename for member in members}
            if any(member.flag_bits & 1 for member in members):
                raise _encrypted(title)
            unpacked = sum(member.file_size for member in members)
            packed = max(1, sum(member.compress_size for member in members))
            if unpacked > LARGEST_UNPACKED_BYTES or (
                unpacked > RATIO_MATTERS_ABOVE_BYTES and unpacked / packed > LARGEST_RATIO
            ):
                raise _corrupt(title, f"unpacked it would take {unpacked:,} bytes")
            if "META-INF/encryption.xml" in names and _ENCRYPTED_CHAPTER.search(
                archive.read("META-INF/encryption.xml")
            ):
                raise _encrypted(title)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error) as error:
        raise _corrupt(title, "its zip container is broken") from error
    for member, kind in _UNREADABLE_ZIP_MEMBERS.items():
        if member in names:
            raise BinaryDocumentError(
                f"Loading {title!r}: {kind} file, which is not read here. Convert it to .xlsx, "
                ".docx or PDF.",
                source=title,
            )
    for start, suffix in _ZIP_FORMATS.items():
        if any(name.startswith(start) for name in names):
            return suffix
    raise BinaryDocumentError(
        f"Loading {title!r}: a zip archive. Unpack it and name the directory.", source=title
    )


def _markitdown_text(file: BinaryIO, title: str, suffix: str) -> str:
    # Only the one converter: the whole set would try others on a broken file, and some of them
    # fetch from the network.
    import markitdown
    from markitdown import converters

    converter = {
        ".docx": converters.DocxConverter,
        ".pptx": converters.PptxConverter,
        ".epub": converters.EpubConverter,
        ".html": converters.HtmlConverter,
    }[suffix]
    reader = markitdown.MarkItDown(enable_builtins=False, enable_plugins=False)
    reader.register_converter(converter())
    try:
        with _silenced_readers():
            converted = reader.convert_stream(
                file,
                stream_info=markitdown.StreamInfo(extension=suffix, charset="utf-8"),
                # Quotes are to read like the document, not like Markdown source.
                escape_underscores=False,
                escape_asterisks=False,
            )
    except markitdown.MarkItDownException as error:
        raise _corrupt(title, f"it cannot be read as {suffix}") from error
    return str(converted.markdown)


@contextmanager
def _silenced_readers() -> Iterator[None]:
    """What format readers warn of (styles, odd markup) means nothing to who only wants text."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(markitdown|mammoth|bs4|openpyxl|pptx)\b")
        yield


def _html_text(file: BinaryIO, title: str) -> str:
    declared = _DECLARED_CHARSET.search(_read_at(file, 0, 4096))
    charset = declared[1].decode("ascii") if declared else None
    content = "".join(_decoded(file, title, declared=charset))
    return _markitdown_text(io.BytesIO(content.encode()), title, ".html")


def _xlsx_text(file: BinaryIO, title: str) -> str:
    """Every sheet as a Markdown table with values as stored.

    markitdown goes through pandas, which rounds numbers (1234567.891 becomes 1.234568e+06).
    """
    import openpyxl  # type: ignore[import-untyped]  # publishes no types

    lines: list[str] = []
    try:
        with _silenced_readers():
            workbook = openpyxl.load_workbook(file, read_only=True, data_only=True)
            for sheet in workbook.worksheets:
                sheet.reset_dimensions()  # some programs store wrong ones, which would cut rows
                rows = [
                    cells for row in sheet.iter_rows(values_only=True) if any(cells := _cells(row))
                ]
                if not rows:
                    continue
                width = max(map(len, rows))
                table = [
                    "| " + " | ".join(cells + [""] * (width - len(cells))) + " |" for cells in rows
                ]
                lines += [f"## {sheet.title}", "", table[0], "|" + " --- |" * width, *table[1:], ""]
    except Exception as error:  # openpyxl has no root of its own: KeyError, ParseError, ...
        raise _corrupt(title, "it cannot be read as .xlsx") from error
    return "\n".join(lines)


def _cells(row: Sequence[object]) -> list[str]:
    cells = [_cell(value) for value in row]
    while cells and not cells[-1]:
        cells.pop()
    return cells


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    return " ".join(str(value).split()).replace("|", "\\|")


def _decoded(file: BinaryIO, title: str, *, declared: str | None = None) -> Iterator[str]:
    """The text of a file in pieces: by its BOM, as UTF-8, else by its likely legacy encoding.

    In a text that is UTF-8 but for some stretches, their bytes are read as cp1252; what no
    encoding explains becomes U+FFFD. Detection sees a bounded sample, whatever the size.
    """
    head = _read_at(file, 0, SAMPLE_BYTES)
    encoding, errors, start = "utf-8", "replace", 0
    for bom, name in _BOMS:
        if head.startswith(bom):
            encoding, start = name, len(bom)
            break
    else:
        if b"\0" in head or len(_CONTROL.findall(head)) > len(head) / 10:
            raise BinaryDocumentError(
                f"Loading {title!r}: it is neither text nor a format that is read here. Convert "
                "it to text, HTML, PDF or an Office format.",
                source=title,
            )
        invalid_at = _first_invalid_utf8(file)
        if invalid_at is not None:
            encoding, errors = _legacy_encoding(file, invalid_at, declared)
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    file.seek(start)
    while block := file.read(BLOCK_BYTES):
        yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def _first_invalid_utf8(file: BinaryIO) -> int | None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    file.seek(0)
    while True:
        block = file.read(BLOCK_BYTES)
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            return position - pending + error.start
        if not block:
            return None
        position += len(block)


def _legacy_encoding(file: BinaryIO, invalid_at: int, declared: str | None) -> tuple[str, str]:
    """(encoding, error handler) of a file that is not UTF-8, judged around the first fault."""
    if declared is not None:
        try:
            return codecs.lookup(declared).name, "replace"
        except LookupError:
            pass  # a made-up name in an HTML header
    sample = _read_at(file, max(0, invalid_at - SAMPLE_BYTES // 2), SAMPLE_BYTES)
    as_utf8 = sample.decode("utf-8", "replace")
    faults = as_utf8.count("\ufffd")
    if sum(character > "\x7f" for character in as_utf8) - faults >= faults:
        return "utf-8", _CP1252_STRETCHES
    visible = sample.translate(None, b" \t\r\n")
    if sum(byte > 0x7F for byte in visible) < len(visible) / 3:
        return "cp1252", "replace"  # Latin letters with accents here and there
    import charset_normalizer

    # Whole lines, so that no two-byte character is cut.
    whole = sample[sample.find(b"\n") + 1 :] if invalid_at > SAMPLE_BYTES // 2 else sample
    whole = whole[: whole.rfind(b"\n") + 1] or whole
    guess = charset_normalizer.from_bytes(whole, cp_isolation=_LEGACY_ENCODINGS).best()
    return (guess.encoding if guess else "cp1252"), "replace"


_CP1252_STRETCHES = "qwenlong_graph.cp1252"


def _as_cp1252(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


codecs.register_error(_CP1252_STRETCHES, _as_cp1252)
