"""Replies from a script: the next of a list, or what a function makes of the prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from qwenlong_graph.testing.scripted import ScriptExhaustedError
from qwenlong_graph.testing.tgi.generation import Voice
from qwenlong_graph.testing.tgi.tokens import Token, Vocabulary

__all__ = ["Replies", "Script"]

Replies: TypeAlias = Callable[[str], str] | Iterable[str]


class Script:
    """Gives each prompt its reply; what a fault kept from the client is kept for the next one."""

    def __init__(self, replies: Replies, vocabulary: Vocabulary) -> None:
        self._function = replies if callable(replies) else None
        self._left: Iterator[str] = iter(()) if callable(replies) else iter(replies)
        self._vocabulary = vocabulary
        self._undelivered: deque[str] = deque()
        self._given = 0

    def speak(self, prompt: str) -> Voice:
        """The reply to `prompt`; raises `ScriptExhaustedError` where none is left."""
        return _ScriptedVoice(self._next(prompt), self._vocabulary)

    def take_back(self, voice: Voice) -> None:
        """Keeps a reply for the next request; a function is asked again instead."""
        if self._function is None and isinstance(voice, _ScriptedVoice):
            self._undelivered.append(voice.reply)

    def _next(self, prompt: str) -> str:
        if self._function is not None:
            reply = self._function(prompt)
        elif self._undelivered:
            reply = self._undelivered.popleft()
        else:
            try:
                reply = next(self._left)
            except StopIteration:
                raise ScriptExhaustedError(
                    f"The TGI double was asked for one reply more than the {self._given} of its "
                    "script. Add a reply, or find the needless request."
                ) from None
            self._given += 1
        if not isinstance(reply, str):
            raise TypeError(f"The script gave a reply of type {type(reply).__name__}, not a text.")
        return reply


class _ScriptedVoice:
    """Says its reply over as many slices as that takes, then the end, again and again."""

    def __init__(self, reply: str, vocabulary: Vocabulary) -> None:
        self.reply = reply
        self._tokens = iter(vocabulary.tokens(reply))
        self._end = vocabulary.end

    async def tokens(
        self, inputs: str, limit: int, parameters: Mapping[str, Any]
    ) -> AsyncGenerator[Token, None]:
        for _ in range(limit):
            yield next(self._tokens, self._end)
