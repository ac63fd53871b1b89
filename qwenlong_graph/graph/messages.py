"""The agent's output in the forms that other programs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qwenlong_graph.errors import QuestionError
from qwenlong_graph.types import Message, SourceCitation

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage
    from langchain_core.messages.content import Annotation

_EXTRAS = ("document_id", "start_char", "end_char", "start_page", "end_page")

__all__ = ["answer_message", "plain_history", "to_anthropic"]

HISTORY_TURNS = 12
HISTORY_TURN_CHARS = 1_000
"""Earlier turns serve to resolve references in the question; the newest are enough for that."""


def plain_history(history: Any) -> list[Message]:
    """Earlier turns as plain messages: the newest of them, each cut, of people and models only.

    Raises:
        QuestionError: they are no messages.
    """
    from langchain_core.messages import AIMessage, HumanMessage, convert_to_messages

    if not history:
        return []
    try:
        messages = convert_to_messages(history)
    except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
        raise QuestionError(
            f"The history is no list of messages ({str(error)[:200]}). Give each turn as "
            '{"role": "user" or "assistant", "content": "its text"}, or leave the history out.'
        ) from error
    turns = [
        Message(
            role="user" if isinstance(message, HumanMessage) else "assistant",
            content=message.text[:HISTORY_TURN_CHARS],
        )
        for message in messages
        if isinstance(message, (HumanMessage, AIMessage)) and message.text.strip()
    ]
    return turns[-HISTORY_TURNS:]


def answer_message(output: Mapping[str, Any]) -> AIMessage:
    """The answer as an `AIMessage` with LangChain's citation annotations.

    An annotation's `start_index` and `end_index` are offsets into the **answer**; where the quote
    stands in its document (id, offsets, pages) is in its `extras`. A quote that supports no
    single sentence is annotated without indexes.
    """
    from langchain_core.messages import AIMessage
    from langchain_core.messages.content import create_citation, create_text_block

    annotations: list[Annotation] = [
        create_citation(
            title=citation["document_title"],
            cited_text=citation["cited_text"],
            start_index=span.get("start_index"),
            end_index=span.get("end_index"),
            **{name: citation[name] for name in _EXTRAS},
        )
        for citation in output["citations"]
        for span in citation.get("answer_spans") or [{}]
    ]
    block = create_text_block(output["answer"], annotations=annotations)
    return AIMessage(content_blocks=[block])


def to_anthropic(citation: SourceCitation, *, document_index: int = 0) -> dict[str, Any]:
    """A citation with the field names of Anthropic's API.

    `char_location`, or `page_location` (its end page is exclusive) where the source has pages.
    `document_index` counts the documents of the request it is used in.
    """
    common = {
        "cited_text": citation["cited_text"],
        "document_index": document_index,
        "document_title": citation["document_title"],
    }
    if citation["start_page"] is not None and citation["end_page"] is not None:
        return {
            "type": "page_location",
            **common,
            "start_page_number": citation["start_page"],
            "end_page_number": citation["end_page"] + 1,
        }
    return {
        "type": "char_location",
        **common,
        "start_char_index": citation["start_char"],
        "end_char_index": citation["end_char"],
    }
