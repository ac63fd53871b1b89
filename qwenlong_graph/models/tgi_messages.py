"""The pieces of a TGI reply as LangChain's messages, whole or chunk by chunk."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    InvalidToolCall,
    ToolCall,
    UsageMetadata,
)
from langchain_core.messages.ai import OutputTokenDetails
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk

from qwenlong_graph.models.tgi_prompt import THINK_CLOSE, ChatTemplate
from qwenlong_graph.models.tgi_reply import Piece, Reply

__all__ = ["Chunks", "message_of", "usage_of"]


def message_of(
    pieces: Sequence[Piece], *, usage: UsageMetadata, metadata: dict[str, Any]
) -> AIMessage:
    """A whole reply: thoughts, where there are any, as a block before the text."""
    reasoning = "".join(piece.text for piece in pieces if piece.kind == "reasoning").strip()
    text = "".join(piece.text for piece in pieces if piece.kind == "text")
    if THINK_CLOSE in text:
        # Thoughts that nothing opened: all before their end is thought.
        before, _, text = text.rpartition(THINK_CLOSE)
        reasoning, text = f"{reasoning}{before}".strip(), text.lstrip()
    content: str | list[str | dict[str, Any]] = text
    if reasoning:
        content = [{"type": "reasoning", "reasoning": reasoning}]
        if text:
            content.append({"type": "text", "text": text})
    calls, broken = _calls_of(pieces)
    return AIMessage(
        content=content,
        tool_calls=calls,
        invalid_tool_calls=broken,
        usage_metadata=usage,
        response_metadata=metadata,
    )


def usage_of(reply: Reply, template: ChatTemplate) -> UsageMetadata:
    """What a reply cost; the prompt is counted here where the server does not tell."""
    read = reply.input_tokens
    if read is None:
        read = template.count_prompt(reply.prompt)
    return UsageMetadata(
        input_tokens=read,
        output_tokens=reply.output_tokens,
        total_tokens=read + reply.output_tokens,
        output_token_details=OutputTokenDetails(reasoning=reply.thinking_tokens),
    )


class Chunks:
    """Pieces as message chunks: what arrived together and is of one kind becomes one chunk.

    Plain text is a plain string. With tools or thoughts the content is made of blocks, each with
    an index of its own, by which LangChain puts the chunks of a block together.
    """

    def __init__(self, *, has_blocks: bool) -> None:
        self._has_blocks = has_blocks
        self._index = -1
        self._kind = ""

    def of(self, pieces: Sequence[Piece]) -> Iterator[ChatGenerationChunk]:
        """The chunks of what arrived together."""
        start = 0
        for end in range(1, len(pieces) + 1):
            kind = pieces[start].kind
            if end == len(pieces) or pieces[end].kind != kind or kind == "call":
                text = (
                    pieces[start].text
                    if end == start + 1
                    else "".join(piece.text for piece in pieces[start:end])
                )
                yield ChatGenerationChunk(message=self._message(kind, text))
                start = end

    def last(self, *, usage: UsageMetadata, metadata: dict[str, Any]) -> ChatGenerationChunk:
        """The chunk that ends the stream."""
        message = AIMessageChunk(
            content=[] if self._has_blocks else "",
            usage_metadata=usage,
            response_metadata=metadata,
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message)

    def _message(self, kind: str, text: str) -> AIMessageChunk:
        if kind == "text" and not self._has_blocks:
            return AIMessageChunk(content=text)
        self._has_blocks = True
        # Arguments belong to the call before them.
        if kind == "call" or (kind != self._kind and kind != "arguments"):
            self._index += 1
        self._kind = kind
        if kind == "call":
            begun = tool_call_chunk(name=text, args="", id=_call_id(), index=self._index)
            return AIMessageChunk(content=[], tool_call_chunks=[begun])
        if kind == "arguments":
            more = tool_call_chunk(name=None, args=text, id=None, index=self._index)
            return AIMessageChunk(content=[], tool_call_chunks=[more])
        return AIMessageChunk(content=[{"type": kind, kind: text, "index": self._index}])


def _calls_of(pieces: Sequence[Piece]) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    names: list[str] = []
    arguments: list[list[str]] = []
    for piece in pieces:
        if piece.kind == "call":
            names.append(piece.text)
            arguments.append([])
        elif piece.kind == "arguments":
            arguments[-1].append(piece.text)
    calls: list[ToolCall] = []
    broken: list[InvalidToolCall] = []
    for name, parts in zip(names, arguments, strict=True):
        text = "".join(parts)
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if isinstance(value, dict):
            calls.append(tool_call(name=name, args=value, id=_call_id()))
        else:
            problem = "the arguments are no whole JSON object"
            broken.append(invalid_tool_call(name=name, args=text, id=_call_id(), error=problem))
    return calls, broken


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex}"
