"""What messages and the state of a host carry: texts, files in base64, and their names."""

from __future__ import annotations

import base64
import json
import mimetypes
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qwenlong_graph.documents.loading import ingest, load
from qwenlong_graph.errors import CorruptDocumentError

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from qwenlong_graph.documents.store import DocumentStore
    from qwenlong_graph.types import CollectionReference, DocumentReference

__all__ = [
    "AttachedFile",
    "attached_to",
    "collect",
    "file_of",
    "files_in",
    "is_speech",
    "name_of",
    "named_in",
    "stored_file",
    "text_of",
]

_TEXTLESS_FILES = ("image/", "audio/", "video/")
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w=.+-]+)*;base64,")
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")


class AttachedFile(NamedTuple):
    """A file within a message, in base64."""

    encoded: str
    mime_type: str
    name: str


def text_of(block: object) -> str | None:
    """What a content block says in text; None if it is a picture, a file or the like."""
    if isinstance(block, str):
        return block
    if not isinstance(block, Mapping):
        return None
    source = block.get("source")
    match block.get("type"):
        case "text" | "text-plain":
            text = block.get("text")
        case "file" if block.get("source_type") == "text":
            text = block.get("text")
        case "document" if isinstance(source, Mapping) and source.get("type") == "text":
            text = source.get("data")
        case "json":
            text = json.dumps(block.get("json"), ensure_ascii=False, default=str)
        case "search_result" if isinstance(block.get("content"), list):
            pieces = [text_of(piece) or "" for piece in block["content"]]
            text = "\n".join([str(block.get("title", "")), str(source or ""), *pieces])
        case _:
            text = None
    return text if isinstance(text, str) else None


def file_of(block: object) -> AttachedFile | None:
    """The file in a content block, in any of the forms that LangChain and providers give it."""
    if not isinstance(block, Mapping):
        return None
    source, file = block.get("source"), block.get("file")
    match block.get("type"):
        case "document" if isinstance(source, Mapping) and source.get("type") == "base64":
            encoded, mime_type = source.get("data"), source.get("media_type")
        case "file" if isinstance(file, Mapping):
            encoded, mime_type = file.get("file_data"), None
        case "input_file":
            encoded, mime_type = block.get("file_data"), None
        case "file" | "text-plain" | "media":
            encoded = block.get("base64") or block.get("data")
            mime_type = block.get("mime_type")
        case _:
            return None
    if not isinstance(encoded, str) or not encoded:
        return None
    if url := _DATA_URL.match(encoded):
        encoded, mime_type = encoded[url.end() :], mime_type or url[1]
    mime_type = mime_type if isinstance(mime_type, str) else ""
    if mime_type.startswith(_TEXTLESS_FILES):
        return None
    return AttachedFile(encoded, mime_type, name_of(block))


def name_of(block: object) -> str:
    """The file name or title that a content block carries, "" without one."""
    if not isinstance(block, Mapping):
        return ""
    for place in (block, block.get("file"), block.get("extras"), block.get("metadata")):
        if isinstance(place, Mapping):
            for key in ("filename", "name", "title"):
                if isinstance(place.get(key), str) and place[key].strip():
                    return str(place[key])
    return ""


def stored_file(file: AttachedFile, store: DocumentStore) -> DocumentReference:
    """The text of `file`, in `store`. Raises `DocumentError` if it has none that can be read."""
    name = file.name or "attachment"
    suffix = Path(name).suffix or mimetypes.guess_extension(file.mime_type) or ""
    try:
        content = base64.b64decode("".join(file.encoded.split()), validate=True)
    except ValueError as error:
        raise CorruptDocumentError(
            f"Loading {name[:100]!r}: it is not base64. Encode the file again.", source=name
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("attachment" + (suffix if _SUFFIX.fullmatch(suffix) else ""))
        path.write_bytes(content)
        (reference,) = load(path, store)
    return reference


def is_speech(block: object) -> bool:
    """Whether a content block is what somebody said, not something attached."""
    return isinstance(block, str) or (isinstance(block, Mapping) and block.get("type") == "text")


def attached_to(message: BaseMessage) -> dict[str, str | AttachedFile]:
    """Title -> text or file of each attachment."""
    found: dict[str, str | AttachedFile] = {}
    if isinstance(message.content, str):
        return found
    for block in message.content:
        if is_speech(block):
            continue
        content: str | AttachedFile | None = text_of(block)
        if content is None:
            content = file_of(block)
        if content:
            found[_unused(name_of(block) or "attachment", found)] = content
    return found


def _unused(title: str, taken: Mapping[str, object]) -> str:
    number, unused = 1, title
    while unused in taken:
        number += 1
        unused = f"{title} ({number})"
    return unused


def files_in(files: Any) -> dict[str, str | AttachedFile]:
    """Path -> text or file of what deepagents keep in the state; nothing in any other value."""
    if not isinstance(files, Mapping):
        return {}
    return {
        str(path): content
        for path, entry in files.items()
        if (content := _content_of(str(path), entry))
    }


def _content_of(path: str, entry: Any) -> str | AttachedFile | None:
    """A file of deepagents; older versions hold a list of lines, programs may give plain text."""
    content = entry.get("content") if isinstance(entry, Mapping) else entry
    if isinstance(content, list):
        return "\n".join(str(line) for line in content)
    if not isinstance(content, str):
        return None
    is_base64 = isinstance(entry, Mapping) and entry.get("encoding") == "base64"
    return AttachedFile(content, "", _last_part(path)) if is_base64 else content


def named_in(
    question: str, files: Mapping[str, str | AttachedFile]
) -> dict[str, str | AttachedFile]:
    """Those of `files` whose path or name stands in the question; all where none does."""
    by_path = {path: files[path] for path in files if path in question}
    by_name = {path: files[path] for path in files if _last_part(path) in question}
    return by_path or by_name or dict(files)


def _last_part(path: str) -> str:
    return path.rpartition("/")[2] or path


def collect(files: Mapping[str, str | AttachedFile], store: DocumentStore) -> CollectionReference:
    """The files, in `store` as one collection, blank ones left out. Raises `DocumentError`."""
    references: list[DocumentReference] = [
        {**stored_file(file, store), "title": title}
        if isinstance(file, AttachedFile)
        else store.put(file, title=title)
        for title, file in files.items()
        if isinstance(file, AttachedFile) or file.strip()
    ]
    return ingest(references, store)
