"""A chat model that answers from a script, and remembers everything it was asked."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import PrivateAttr

from qwenlong_graph.models.connect import COMMON_SPECIAL_TOKENS, ConnectedModel

__all__ = ["ScriptExhaustedError", "ScriptedChatModel", "Stall", "count_words", "scripted"]


class ScriptExhaustedError(AssertionError):
    """The model was asked more often than its script foresees."""


@dataclass(frozen=True)
class Stall:
    """Silence for `seconds`, then the reply `then`."""

    seconds: float
    then: str | AIMessage | Exception = ""


ScriptedReply: TypeAlias = str | AIMessage | Exception | Stall
Script: TypeAlias = Iterable[ScriptedReply] | Callable[[list[BaseMessage]], ScriptedReply]


def count_words(text: str) -> int:
    """Words and punctuation marks: a count of tokens that can be checked by hand."""
    return len(re.findall(r"\w+|[^\w\s]", text))


class ScriptedChatModel(BaseChatModel):
    """Answers with the next of `replies`, or with what the function `replies` makes of a prompt.

    A reply is a text, an `AIMessage` (for tool calls, or a `finish_reason` of "length" in its
    `response_metadata`), an exception to raise, or a `Stall`. Texts are cut at a stop string, as
    servers do. `prompts` and `calls` hold the messages and the settings of every call, in order.
    Raises `ScriptExhaustedError` where the script has no reply left. May be called from several
    threads.
    """

    replies: Any
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _prompts: list[list[BaseMessage]] = PrivateAttr(default_factory=list)
    _calls: list[dict[str, Any]] = PrivateAttr(default_factory=list)
    _script: Iterator[ScriptedReply] = PrivateAttr()

    def __init__(self, replies: Script, **fields: Any) -> None:
        super().__init__(replies=replies, **fields)  # type: ignore[call-arg]  # pydantic's own
        self._script = iter(()) if callable(replies) else iter(replies)

    @property
    def prompts(self) -> list[list[BaseMessage]]:
        """The messages of each call so far."""
        return self._prompts

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The settings of each call so far: `max_tokens`, `temperature`, `stop` and the rest."""
        return self._calls

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """The model itself: which tools it calls stands in the script."""
        return self

    # The settings are named, so that `models.calls` passes each of them on.
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        response_format: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        settings = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "response_format": response_format,
            **kwargs,
        }
        reply = self._next(messages, stop, settings)
        if isinstance(reply, Stall):
            time.sleep(reply.seconds)
            reply = reply.then
        return _result(_message(reply, messages, stop))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        reply = self._next(messages, stop, kwargs)
        if isinstance(reply, Stall):
            await asyncio.sleep(reply.seconds)
            reply = reply.then
        return _result(_message(reply, messages, stop))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        reply = self._next(messages, stop, kwargs)
        if isinstance(reply, Stall):
            time.sleep(reply.seconds)
            reply = reply.then
        for chunk in _chunks(_message(reply, messages, stop)):
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        reply = self._next(messages, stop, kwargs)
        if isinstance(reply, Stall):
            await asyncio.sleep(reply.seconds)
            reply = reply.then
        for chunk in _chunks(_message(reply, messages, stop)):
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _next(
        self, messages: list[BaseMessage], stop: list[str] | None, settings: dict[str, Any]
    ) -> ScriptedReply:
        with self._lock:
            self._prompts.append(list(messages))
            given = {name: value for name, value in settings.items() if value is not None}
            self._calls.append({**given, "stop": stop} if stop else given)
            number = len(self._prompts)
            if not callable(self.replies):
                try:
                    return next(self._script)
                except StopIteration:
                    raise ScriptExhaustedError(
                        f"The scripted model was called for the {number}. time, and its script "
                        f"holds {number - 1} replies. Add a reply, or find the needless call."
                    ) from None
        reply: ScriptedReply = self.replies(list(messages))
        return reply


def scripted(
    replies: Script,
    *,
    window: int = 8192,
    count_tokens: Callable[[str], int] = count_words,
    special_tokens: tuple[str, ...] = COMMON_SPECIAL_TOKENS,
    concurrency: int = 1,
    **defaults: Any,
) -> ConnectedModel:
    """A `ScriptedChatModel` as a `ConnectedModel`; its prompts are at `.chat.prompts`.

    Further keywords become the model's `defaults`.
    """
    return ConnectedModel(
        chat=ScriptedChatModel(replies),
        window=window,
        count_tokens=count_tokens,
        special_tokens=special_tokens,
        engine="scripted",
        concurrency=concurrency,
        model_name="scripted",
        defaults=defaults,
    )


def _message(
    reply: str | AIMessage | Exception, messages: Sequence[BaseMessage], stop: list[str] | None
) -> AIMessage:
    """The reply as a server would give it: cut at a stop string, with its usage and its reason."""
    if isinstance(reply, Exception):
        raise reply
    message = AIMessage(content=reply) if isinstance(reply, str) else reply
    if isinstance(message.content, str):
        ends = [message.content.find(text) for text in stop or ()]
        content = message.content[: min((end for end in ends if end >= 0), default=None)]
        message = message.model_copy(update={"content": content})
    prompt_tokens = sum(count_words(str(sent.text)) for sent in messages)
    reply_tokens = count_words(str(message.text))
    usage = message.usage_metadata or {
        "input_tokens": prompt_tokens,
        "output_tokens": reply_tokens,
        "total_tokens": prompt_tokens + reply_tokens,
    }
    metadata = {"finish_reason": "stop", **message.response_metadata}
    return message.model_copy(update={"usage_metadata": usage, "response_metadata": metadata})


def _result(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


def _chunks(message: AIMessage) -> Iterator[ChatGenerationChunk]:
    """The message word by word; what is no text comes with the last chunk, as does the usage."""
    text = message.content if isinstance(message.content, str) else None
    for piece in re.findall(r"\s*\S+|\s+", text or ""):
        yield ChatGenerationChunk(message=AIMessageChunk(content=piece, id=message.id))
    last = AIMessageChunk(
        content=message.content if text is None else "",
        id=message.id,
        additional_kwargs=message.additional_kwargs,
        response_metadata=message.response_metadata,
        usage_metadata=message.usage_metadata,
        tool_calls=message.tool_calls,
        invalid_tool_calls=message.invalid_tool_calls,
        chunk_position="last",
    )
    yield ChatGenerationChunk(message=last)
