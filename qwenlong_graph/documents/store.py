"""Texts on disk, each in a file named by the SHA-256 of its bytes.

The graph state holds references only; every text is verified when it is opened, so that an
offset in an old checkpoint or citation either means what it meant, or is a named error.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import os
import re
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from qwenlong_graph.errors import SettingsError, StoredTextChangedError
from qwenlong_graph.types import CollectionReference, DocumentReference

__all__ = ["DocumentStore", "PageRange", "StoredText", "default_data_dir", "make_private_directory"]

BLOCK_BYTES = 1 << 20
INDEX_CHARS = 1 << 16
"""The character-to-byte index has one entry per this many characters."""

LONGEST_TITLE_CHARS = 300
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SURROGATE = re.compile("[\ud800-\udfff]")


class PageRange(NamedTuple):
    """Pages count from 1; both are None where the document has none."""

    start_page: int | None
    end_page: int | None


class _FileStamp(NamedTuple):
    bytes: int
    modified_ns: int


def default_data_dir() -> Path:
    """Where texts and runs are kept: `QWENLONG_GRAPH_DATA`, else the user's data directory."""
    configured = os.environ.get("QWENLONG_GRAPH_DATA")
    if configured:
        return Path(configured).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("qwenlong-graph", appauthor=False))


def make_private_directory(path: Path) -> None:
    """Makes `path` unless it is there: readable by its owner only, and ignored by git.

    So a data directory inside a project is neither committed nor read as documents. One that is
    there already is left as it is. Raises `OSError`.
    """
    if path.exists():
        return
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    (path / ".gitignore").write_text("*\n")


class DocumentStore:
    """A directory of texts, page maps and collections, readable by its owner only.

    `admit` says which file a path that a client gives means, or raises a `DocumentError`; `ingest`
    asks it about each. Without it, any path may be read.
    """

    def __init__(self, root: Path | str, *, admit: Callable[[str], Path] | None = None) -> None:
        self.root = Path(root)
        self.admit = admit
        self._opened: dict[tuple[str, str | None], StoredText] = {}

    def put(
        self,
        text: str | Iterable[str],
        *,
        title: str,
        pages: Sequence[int] | None = None,
    ) -> DocumentReference:
        """Store `text` (whole, or in pieces) and return its reference; the same text is kept once.

        `pages` holds the offset of the first character of every page, the first being 0. Lone
        surrogates become U+FFFD; nothing else is changed. Raises `SettingsError` if the
        directory cannot be written.
        """
        if pages is not None and (not pages or pages[0] != 0 or list(pages) != sorted(pages)):
            raise ValueError("pages must be ascending offsets that begin with 0")
        chars = 0

        def encoded() -> Iterator[bytes]:
            nonlocal chars
            for piece in [text] if isinstance(text, str) else text:
                chars += len(piece)
                for start in range(0, len(piece), BLOCK_BYTES):
                    yield _without_surrogates(piece[start : start + BLOCK_BYTES]).encode()

        document_id, size = self._write("texts", encoded())
        pages_id = None
        if pages is not None:
            pages_id, _ = self._write("pages", [_as_json(list(pages))])
        return DocumentReference(
            document_id=document_id,
            title=_one_line(title),
            chars=chars,
            bytes=size,
            pages_id=pages_id,
        )

    def put_collection(self, references: Iterable[DocumentReference]) -> CollectionReference:
        """Store the ordered list of `references` and return the one reference to it."""
        listed = list(references)
        collection_id, _ = self._write("collections", [_as_json(listed)])
        return CollectionReference(
            collection_id=collection_id,
            documents=len(listed),
            chars=sum(reference["chars"] for reference in listed),
            bytes=sum(reference["bytes"] for reference in listed),
        )

    def collection(self, reference: CollectionReference) -> list[DocumentReference]:
        """The references of a collection; raises `StoredTextChangedError` if its file changed."""
        content = self._read_verified("collections", reference["collection_id"], "the collection")
        return cast("list[DocumentReference]", json.loads(content))

    def open(self, reference: DocumentReference) -> StoredText:
        """The text behind `reference`, verified now or, if its file is as it was then, earlier.

        Raises `StoredTextChangedError` if the file is missing or is not what its name says.
        """
        key = (reference["document_id"], reference["pages_id"])
        opened = self._opened.get(key)
        if opened is None:
            pages = array("Q")
            if reference["pages_id"] is not None:
                about = f"the page map of {reference['title']!r}"
                pages.extend(json.loads(self._read_verified("pages", key[1] or "", about)))
            opened = StoredText(self._path("texts", key[0]), reference, pages)
            if len(self._opened) >= 256:
                self._opened.clear()  # verified again when next opened
            self._opened[key] = opened
        else:
            opened.verify_if_changed()
        return opened

    def _path(self, kind: str, sha256: str) -> Path:
        # The name may come from a checkpoint or a caller: it must not lead out of the store.
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise StoredTextChangedError(
                f"Opening a stored text: {str(sha256)[:80]!r} is not the SHA-256 of one. "
                "Load the document again.",
                source=str(sha256)[:80],
            )
        return self.root / kind / sha256

    def _write(self, kind: str, blocks: Iterable[bytes]) -> tuple[str, int]:
        """Write atomically; returns (SHA-256, bytes). An existing file is replaced: it may be bad.

        Errors of the iterable itself pass through; the unfinished file is removed.
        """
        digest = hashlib.sha256()
        size = 0
        with self._translated_errors():
            folder = self._folder(kind)
            descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".unfinished-")
        try:
            # Unbuffered: closing a buffered file writes once more, and would hide the first error.
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                for block in blocks:
                    digest.update(block)
                    size += len(block)
                    unwritten = memoryview(block)
                    with self._translated_errors():
                        while unwritten:
                            unwritten = unwritten[file.write(unwritten) :]
                with self._translated_errors():
                    os.fsync(file.fileno())
            with self._translated_errors():
                os.replace(temporary, folder / digest.hexdigest())  # noqa: PTH105 (a str here)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
        return digest.hexdigest(), size

    def _folder(self, kind: str) -> Path:
        make_private_directory(self.root)
        folder = self.root / kind
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SettingsError(
                f"Storing a document: the store directory {self.root} cannot be written "
                f"({error.strerror or error}). Free some space or allow writing there, or pass "
                "another directory with document_dir= or QWENLONG_GRAPH_DATA."
            ) from error

    def _read_verified(self, kind: str, sha256: str, about: str) -> bytes:
        path = self._path(kind, sha256)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise _changed(path, about, error.strerror or "cannot be read") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise _changed(path, about, "its content is not what its name says")
        return content


class StoredText:
    """Random access to one verified text; holds no text, whatever its length."""

    def __init__(self, path: Path, reference: DocumentReference, pages: array[int]) -> None:
        self.reference = reference
        self.chars = reference["chars"]
        self.bytes = reference["bytes"]
        self._path = path
        self._pages = pages
        # Byte offset of every INDEX_CHARS-th character; not needed where both are equal.
        self._index = array("Q")
        self._stamp = self._verify()

    def read_from(self, start_byte: int, max_chars: int) -> str:
        """`max_chars` characters from a byte offset, fewer only at the end of the text.

        Raises `ValueError` if a character does not begin at `start_byte`.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        pieces: list[str] = []
        missing = max_chars
        with self._open_unchanged() as file:
            file.seek(start_byte)
            while missing > 0:
                # A character has at least one byte, so this never reads past the last one.
                block = file.read(min(missing, BLOCK_BYTES))
                try:
                    piece = decoder.decode(block, final=not block)
                except UnicodeDecodeError:
                    message = f"no character begins at byte {start_byte} of {self._path.name}"
                    raise ValueError(message) from None
                pieces.append(piece)
                missing -= len(piece)
                if not block:
                    break
        return "".join(pieces)

    def read(self, start_char: int, end_char: int) -> str:
        """The characters from `start_char` up to `end_char`, cut at the end of the text."""
        if start_char < 0:
            raise ValueError("start_char must not be negative")
        end_char = min(end_char, self.chars)
        if end_char <= start_char:
            return ""
        if not self._index:
            return self.read_from(start_char, end_char - start_char)
        entry, skipped = divmod(start_char, INDEX_CHARS)
        return self.read_from(self._index[entry], skipped + end_char - start_char)[skipped:]

    def pages_of(self, start_char: int, end_char: int) -> PageRange:
        """The pages on which the stretch begins and ends."""
        if not self._pages:
            return PageRange(None, None)
        last_char = max(start_char, end_char - 1)
        return PageRange(
            bisect_right(self._pages, start_char), bisect_right(self._pages, last_char)
        )

    def verify_if_changed(self) -> None:
        """Verify again if size or modification time differ from when the file was verified."""
        if self._stat() != self._stamp:
            self._stamp = self._verify()

    @contextlib.contextmanager
    def _open_unchanged(self) -> Iterator[Any]:
        self.verify_if_changed()
        with self._path.open("rb") as file:
            yield file

    def _stat(self) -> _FileStamp:
        try:
            status = self._path.stat()
        except OSError as error:
            raise self._changed(error.strerror or "cannot be read") from error
        return _FileStamp(status.st_size, status.st_mtime_ns)

    def _verify(self) -> _FileStamp:
        stamp = self._stat()
        digest = hashlib.sha256()
        decoder = codecs.getincrementaldecoder("utf-8")()
        index = array("Q", [0])
        chars = size = 0
        try:
            with self._path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
                    # The bytes of a character cut by the block's start count with this piece.
                    piece_byte = size - len(decoder.getstate()[0])
                    piece = decoder.decode(block)
                    _extend_index(index, piece, chars, piece_byte)
                    chars += len(piece)
                    size += len(block)
            decoder.decode(b"", final=True)
        except OSError as error:
            raise self._changed(error.strerror or "cannot be read") from error
        except UnicodeDecodeError:
            raise self._changed("its content is not what its name says") from None
        if digest.hexdigest() != self.reference["document_id"]:
            raise self._changed("its content is not what its name says")
        if (chars, size) != (self.chars, self.bytes):
            raise self._changed("its length is not what the reference says")
        self._index = index if chars != size else array("Q")
        return stamp

    def _changed(self, found: str) -> StoredTextChangedError:
        return _changed(self._path, repr(self.reference["title"]), found)


def _extend_index(index: array[int], piece: str, piece_char: int, piece_byte: int) -> None:
    done = 0
    while (wanted := len(index) * INDEX_CHARS - piece_char) < len(piece):
        piece_byte += len(piece[done:wanted].encode())
        done = wanted
        index.append(piece_byte)


def _changed(path: Path, about: str, found: str) -> StoredTextChangedError:
    return StoredTextChangedError(
        f"Opening the stored text of {about} ({path}): {found}. Load the document again.",
        source=about,
    )


def _without_surrogates(text: str) -> str:
    return _SURROGATE.sub("\ufffd", text)


def _one_line(title: str) -> str:
    # The end is what tells a long path.
    return " ".join(_without_surrogates(title).split())[-LONGEST_TITLE_CHARS:] or "untitled"


def _as_json(content: Sequence[int] | Sequence[Mapping[str, object]]) -> bytes:
    return json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
