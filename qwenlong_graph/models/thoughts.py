"""A model's thoughts, wherever its chat model keeps them, apart from the answer.

LangChain has a block for them (`{"type": "reasoning"}`), and older adapters put them in a field
beside the content, `reasoning_content`, as DeepSeek's API named it. Thoughts that a server left in
the text, between `<think>` and `</think>`, are `reading.replies.split_thoughts`'s to find.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import ChatGenerationChunk, ChatResult

__all__ = ["telling_thoughts", "thoughts_of"]

# llama.cpp, SGLang and older vLLM use the first, newer vLLM and Ollama the second.
_FIELDS = ("reasoning_content", "reasoning")
_BLOCKS = {"reasoning": "reasoning", "thinking": "thinking"}


def thoughts_of(message: BaseMessage) -> str:
    """The thoughts that a message, or a part of one in a stream, holds apart from its text."""
    content = message.content
    if not isinstance(content, str):
        found = [
            part
            for block in content
            if isinstance(block, dict) and (key := _BLOCKS.get(str(block.get("type"))))
            if isinstance(part := block.get(key), str)
        ]
        if found:
            return "".join(found)
    return _field(message.additional_kwargs)


def telling_thoughts(chat: BaseChatModel) -> BaseChatModel:
    """`chat`, or a copy of it that keeps the thoughts which it would drop.

    `ChatOpenAI` knows only what OpenAI's own servers send, and leaves out the fields that others
    have for thoughts. The copy shares its connections; subclasses are left as they are.
    """
    library = sys.modules.get("langchain_openai")
    if library is None or type(chat) is not library.ChatOpenAI:
        return chat
    copy = chat.model_copy()
    copy.__class__ = _chat_openai()
    return copy


@lru_cache(maxsize=1)
def _chat_openai() -> Any:
    import langchain_openai

    # Of the same name, by which traces and callbacks know it.
    class ChatOpenAI(langchain_openai.ChatOpenAI):
        def _convert_chunk_to_generation_chunk(
            self, chunk: dict[str, Any], *args: Any, **kwargs: Any
        ) -> ChatGenerationChunk | None:
            found = super()._convert_chunk_to_generation_chunk(chunk, *args, **kwargs)
            if found is not None:
                _keep(found.message, chunk, "delta")
            return found

        def _create_chat_result(self, response: Any, *args: Any, **kwargs: Any) -> ChatResult:
            result = super()._create_chat_result(response, *args, **kwargs)
            told = response if isinstance(response, dict) else response.model_dump(warnings=False)
            _keep(result.generations[0].message, told, "message")
            return result

    return ChatOpenAI


def _keep(message: BaseMessage, told: Mapping[str, Any], part: str) -> None:
    choices = told.get("choices")
    holder = choices[0].get(part) if choices else None
    if isinstance(holder, dict) and (thoughts := _field(holder)):
        message.additional_kwargs["reasoning_content"] = thoughts


def _field(holder: Mapping[str, Any]) -> str:
    for name in _FIELDS:
        if isinstance(found := holder.get(name), str) and found:
            return found
    return ""
