"""The vocabulary every room agrees on: plain values, no behaviour, no imports of the package.

Everything here that reaches the graph state is made of str, int, float, bool, None, list and
dict, so that any checkpointer can store it. Character offsets are Python string offsets
(code points) into the stored text of a document; byte offsets are offsets into its UTF-8 file.
"""

from __future__ import annotations

from typing import Literal, NotRequired

# LangGraph and pydantic need the backport on Python 3.11 to build JSON schemas.
from typing_extensions import TypedDict

__all__ = [
    "AnswerSpan",
    "CollectionReference",
    "Cursor",
    "DocumentReference",
    "Evidence",
    "Message",
    "SourceCitation",
    "Span",
    "UnsupportedClaim",
    "Usage",
]


class Message(TypedDict):
    """One chat message as plain data; LangChain, TRL and verl all accept this form."""

    role: Literal["system", "user", "assistant"]
    content: str


class DocumentReference(TypedDict):
    """Names one text in the document store; never holds text.

    `document_id` is the SHA-256 (hex) of the UTF-8 text. `pages_id` is the SHA-256 of its page
    map, None where the source has no pages.
    """

    document_id: str
    title: str
    chars: int
    bytes: int
    pages_id: str | None


class CollectionReference(TypedDict):
    """Names an ordered list of `DocumentReference`s kept in the store under its own SHA-256.

    State holds this one small value whether it stands for one file or for ten thousand.
    """

    collection_id: str
    documents: int
    chars: int
    bytes: int


class Cursor(TypedDict):
    """Where reading goes on: the index of the document in the collection, and the offset in it."""

    document: int
    start_char: int
    start_byte: int


class Span(TypedDict):
    """A chunk by reference: `tokens` is its exact count as it will stand in the prompt."""

    document: int
    start_char: int
    end_char: int
    start_byte: int
    end_byte: int
    tokens: int


class Evidence(TypedDict):
    """A place in a document that supports one line of the present memory.

    `line` is `reading.evidence.line_key` of that memory line. The text itself stays in the
    store: state grows with memory, and must not hold it twice.
    """

    document: int
    start_char: int
    end_char: int
    line: str


class AnswerSpan(TypedDict):
    """A stretch of the answer, as offsets into the answer's text."""

    start_index: int
    end_index: int


class SourceCitation(TypedDict):
    """A quote and where it stands: `cited_text` equals the stored text at the offsets.

    Pages count from 1 and are None where the source has none. `answer_spans` are the sentences
    of the answer that this quote supports.
    """

    cited_text: str
    document_id: str
    document_title: str
    start_char: int
    end_char: int
    start_page: int | None
    end_page: int | None
    answer_spans: NotRequired[list[AnswerSpan]]


class UnsupportedClaim(TypedDict):
    """A figure, date or name of the answer that stands in no evidence.

    `status` is "computed" where a figure follows from figures of the evidence by one sum,
    difference, product, ratio or percentage (`derivation` says how), else "unsupported".
    """

    text: str
    kind: Literal["figure", "date", "name"]
    start_index: int
    end_index: int
    status: Literal["unsupported", "computed"]
    derivation: str | None


class Usage(TypedDict):
    """What a run has cost so far; tokens as the server reports them, else counted here.

    `reasoning_tokens` are those of `output_tokens` that were thoughts.
    `unread` chunks got no usable reply; the first hundred of them are in `unread_spans`.
    """

    steps: int
    calls: int
    retries: int
    input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    unread: int
    unread_spans: list[Span]
