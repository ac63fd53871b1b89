"""What the graph takes, keeps and gives: str, int, float, bool, list and dict only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NotRequired

from pydantic import Field, WithJsonSchema
from typing_extensions import TypedDict

from qwenlong_graph.types import (
    CollectionReference,
    Cursor,
    Evidence,
    Message,
    SourceCitation,
    Span,
    UnsupportedClaim,
    Usage,
)

__all__ = [
    "EvidenceRow",
    "MemoryInput",
    "MemoryOutput",
    "MemoryState",
    "pack_evidence",
    "unpack_evidence",
]

EvidenceRow = list[int | str]
"""[document, start_char, end_char, line]: an `Evidence` without its keys, a third of the bytes."""


# What can be sent as JSON; Python programs may give loaders and documents too.
DOCUMENTS_SCHEMA = {
    "title": "Documents",
    "description": "What to read, in this order: texts as they are, or names of files that may be "
    "read where the agent runs.",
    "type": "array",
    "minItems": 1,
    "items": {
        "anyOf": [
            {
                "title": "Text",
                "type": "object",
                "properties": {
                    "page_content": {
                        "title": "Text",
                        "description": "The text of the document, as it is.",
                        "type": "string",
                    },
                    "metadata": {
                        "title": "Metadata",
                        "description": "`title` names the document in citations; `source` and "
                        "`page` (from 0) join the pages of one document.",
                        "type": "object",
                    },
                },
                "required": ["page_content"],
            },
            {"title": "File", "description": "The path of a file.", "type": "string"},
        ]
    },
}


_HISTORY = {
    "title": "History",
    "description": "Earlier turns of a conversation that the question may point back to, oldest "
    "first. A thread that is asked again knows its own.",
    "type": "array",
    "items": {
        "title": "Turn",
        "type": "object",
        "properties": {
            "role": {
                "title": "Role",
                "description": "Who said it.",
                "type": "string",
                "enum": ["user", "assistant"],
            },
            "content": {"title": "Content", "description": "What was said.", "type": "string"},
        },
        "required": ["role", "content"],
    },
}


class Turn(TypedDict):
    """An earlier question of a thread, its answer (cut), and the places that bore it out.

    `places` are [document, start_char, end_char] in the collection named `documents`.
    """

    question: str
    answer: str
    documents: str
    places: list[list[int]]


class MemoryInput(TypedDict):
    """What a caller gives.

    `documents`: paths, "-" for standard input, LangChain `Document`s or loaders. Where
    `instructions` (the form of the answer) are given, the question is taken as it is; else it is
    split by the model. `history`: turns of a conversation that the question may point back to, as
    LangChain takes messages; a thread that is asked again knows its own.
    """

    question: Annotated[
        str, Field(title="Question", description="What you want to know from the documents.")
    ]
    documents: Annotated[list[Any], WithJsonSchema(DOCUMENTS_SCHEMA)]
    instructions: NotRequired[
        Annotated[
            str,
            Field(
                title="Instructions",
                description="The form of the answer, such as its language or length. With these "
                "the question is taken as it is; without, the model splits it.",
            ),
        ]
    ]
    history: NotRequired[Annotated[list[Any], WithJsonSchema(_HISTORY)]]


class MemoryState(TypedDict, total=False):
    """What is checkpointed at each step; documents by reference, never their text.

    `cursor` is where the next chunk starts, `span` the chunk being read. `tally` counts
    sentences for the relevance of the "extract" protocol. `evidence` is packed, since every
    checkpoint holds all of the state again. `setup` names what the reading depends
    on, so that it cannot go on under another model or other sizes unnoticed. `turns` are the
    last few questions of the thread. `memory_is_new`: the last chunk changed the memory. `skipped`
    are [document, start_char, end_char].
    """

    question: str
    instructions: str
    history: list[Message]
    turns: list[Turn]
    answered_from: str
    documents: list[CollectionReference]
    core_question: str
    setup: dict[str, str | int]
    step: int
    steps: int
    cursor: Cursor
    span: Span | None
    memory: str
    plan: str
    evidence: list[EvidenceRow]
    tally: dict[str, int]
    memory_is_new: bool
    skipped: list[list[int]]
    usage: Usage
    answer: str
    found: bool
    is_quoted: bool
    structured_response: Any
    citations: list[SourceCitation]
    unsupported: list[UnsupportedClaim]
    unverified: list[str]


def _shown(title: str, description: str) -> Any:
    return Field(title=title, description=description)


class MemoryOutput(TypedDict):
    """What a caller gets.

    `found` is False when nothing in the documents bears on the question. `is_quoted`: the model's
    own words were not borne out, and the answer is the best quotes instead. `unverified` are the
    lines of memory that no place in the documents was found for. `structured_response`
    is the answer in the form of `response_format` as plain JSON values, else None.
    `answered_from`: "documents" that were read for this question, or "earlier evidence" where the
    quotes that earlier questions of the thread left were enough. `skipped`: stretches that a
    reviewer passed over, as [document, start_char, end_char]; documents count from 0.
    """

    question: Annotated[str, _shown("Question", "The question as it was asked.")]
    core_question: Annotated[
        str,
        _shown(
            "Core question", "What was looked for: the question without the form of its answer."
        ),
    ]
    instructions: Annotated[str, _shown("Instructions", "The form of the answer.")]
    documents: Annotated[
        list[CollectionReference],
        _shown("Documents", "What was read, by reference; the texts are in the store."),
    ]
    answer: Annotated[str, _shown("Answer", "The answer.")]
    answered_from: Annotated[
        str,
        _shown("Answered from", '"documents" that were read, or "earlier evidence" of the thread.'),
    ]
    found: Annotated[
        bool, _shown("Found", "False: nothing in the documents bears on the question.")
    ]
    is_quoted: Annotated[
        bool, _shown("Is quoted", "True: the answer is the best quotes, not the model's words.")
    ]
    citations: Annotated[
        list[SourceCitation],
        _shown("Citations", "Quotes, each found in its document at these offsets."),
    ]
    unsupported: Annotated[
        list[UnsupportedClaim],
        _shown("Unsupported", "Figures, dates and names of the answer that no quote holds."),
    ]
    unverified: Annotated[
        list[str],
        _shown("Unverified", "Lines of the memory that no place in the documents was found for."),
    ]
    structured_response: Annotated[
        Any, _shown("Structured response", "The answer in the form that was asked for, if one was.")
    ]
    memory: Annotated[str, _shown("Memory", "What was noted while reading.")]
    plan: Annotated[str, _shown("Plan", "What was looked for last.")]
    skipped: Annotated[
        list[list[int]],
        _shown("Skipped", "Stretches that a reviewer passed over: [document, start, end]."),
    ]
    usage: Annotated[
        Usage, _shown("Usage", "Chunks, calls and tokens, and the chunks that got no usable reply.")
    ]


def pack_evidence(evidence: Sequence[Evidence]) -> list[EvidenceRow]:
    """Evidence as it is kept in the state."""
    return [
        [piece["document"], piece["start_char"], piece["end_char"], piece["line"]]
        for piece in evidence
    ]


def unpack_evidence(rows: Sequence[EvidenceRow]) -> list[Evidence]:
    """Evidence as the reading core takes it."""
    return [
        Evidence(document=int(document), start_char=int(start), end_char=int(end), line=str(line))
        for document, start, end, line in rows
    ]
