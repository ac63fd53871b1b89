"""What TGI does between a request and its tokens: limits, refusals, slices, ends.

Written after the router of Text Generation Inference 3.3.7 (`validation.rs`, `infer/mod.rs`) and
its stopping criteria (`tokens.py`), whose words the refusals repeat.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from qwenlong_graph.testing.tgi.tokens import Token

__all__ = [
    "SLICE_TOKENS",
    "End",
    "Limits",
    "Refusal",
    "Speaker",
    "Voice",
    "admit",
    "generated",
    "refuse",
]

SLICE_TOKENS = 1024
"""Longer output is generated in slices of this many tokens, each a request of its own."""

# TGI keeps no more of the output to look for stop strings in.
STOP_CHARS_MAX = 300

Reason = Literal["length", "eos_token", "stop_sequence"]


@dataclass(frozen=True)
class Limits:
    """TGI's flags of the same names."""

    max_input_tokens: int
    max_total_tokens: int
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5


@dataclass(frozen=True)
class End:
    """How a reply ended, and all of its text without special tokens."""

    text: str
    tokens: int
    reason: Reason
    input_tokens: int


class Refusal(Exception):
    """An error of TGI's, as a status or as an event of a stream."""

    def __init__(self, error_type: str, message: str) -> None:
        self.error_type = error_type
        self.status = _STATUS.get(error_type, 500)
        super().__init__(message)


_STATUS = {
    "generation": 424,
    "overloaded": 429,
    "validation": 422,
    "template_error": 422,
    "tool_error": 422,
}


class Voice(Protocol):
    """Who says a reply: a script, or a model behind a server."""

    def tokens(
        self, inputs: str, limit: int, parameters: Mapping[str, Any]
    ) -> AsyncGenerator[Token, None]:
        """The next tokens after `inputs`, at most `limit`; the end-of-text token is one of them."""
        ...


class Speaker(Protocol):
    """Where replies come from."""

    def speak(self, prompt: str) -> Voice:
        """A new reply."""
        ...

    def take_back(self, voice: Voice) -> None:
        """A fault keeps this reply from its client."""
        ...


def refuse(inputs: str, parameters: Mapping[str, Any], limits: Limits) -> None:
    """Raises the `Refusal` that TGI has for values out of range, in the order of its checks."""

    def has(name: str, fits: Callable[[Any], bool]) -> bool:
        value = parameters.get(name)
        return value is not None and not fits(value)

    if has("best_of", lambda value: value == 1):
        raise _invalid("`best_of` != 1 is not allowed for this endpoint")
    for name in ("temperature", "repetition_penalty"):
        if has(name, lambda value: value > 0):
            raise _invalid(f"`{name}` must be strictly positive")
    if has("frequency_penalty", lambda value: -2 <= value <= 2):
        raise _invalid("`frequency_penalty` must be >= -2.0 and <= 2.0")
    for name in ("top_p", "typical_p"):
        if has(name, lambda value: 0 < value < 1):
            raise _invalid(f"`{name}` must be > 0.0 and < 1.0")
    for name in ("top_k", "max_new_tokens"):
        if has(name, lambda value: value > 0):
            raise _invalid(f"`{name}` must be strictly positive")
    stops, stops_max = len(parameters.get("stop") or []), limits.max_stop_sequences
    if stops > stops_max:
        raise _invalid(f"`stop` supports up to {stops_max} stop sequences. Given: {stops}")
    top_max = limits.max_top_n_tokens
    if has("top_n_tokens", lambda value: value <= top_max):
        top = parameters["top_n_tokens"]
        raise _invalid(f"`top_n_tokens` must be >= 0 and <= {top_max}. Given: {top}")
    if not inputs:
        raise _invalid("`inputs` cannot be empty")
    input_max = limits.max_input_tokens
    if has("truncate", lambda value: 0 < value <= input_max):
        size = parameters["truncate"]
        raise _invalid(
            f"`truncate` must be strictly positive and less than {input_max}. Given: {size}"
        )
    if has("grammar", lambda value: value["type"] != "json" or isinstance(value["value"], dict)):
        raise _invalid("grammar is not supported")
    if has("grammar", lambda value: value["type"] != "json" or "properties" in value["value"]):
        raise _invalid("grammar is not valid: Grammar must have a 'properties' field")


def admit(input_tokens: int, max_new_tokens: int | None, limits: Limits) -> int:
    """How many tokens the next slice may have; raises a `Refusal` where even those do not fit."""
    room = max(0, limits.max_total_tokens - input_tokens)
    slice_tokens = min(room if max_new_tokens is None else max_new_tokens, SLICE_TOKENS)
    if input_tokens + slice_tokens > limits.max_total_tokens:
        raise _invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
            f"Given: {input_tokens} `inputs` tokens and {slice_tokens} `max_new_tokens`"
        )
    if input_tokens > limits.max_input_tokens:
        raise _invalid(
            f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {input_tokens}"
        )
    return slice_tokens


async def generated(
    inputs: str,
    parameters: Mapping[str, Any],
    limits: Limits,
    *,
    speak: Callable[[], Voice],
    count: Callable[[str], int],
    end: Token,
) -> AsyncGenerator[tuple[Token, End | None], None]:
    """The tokens of a reply as they come; the last one comes with its `End`.

    A slice that ends for its length is put behind the inputs and sent in again, until the asked
    number is reached or passed, or what there is fits no more: hence output in multiples of 1,024
    tokens, and an early "length". `speak` is asked for a voice once the request is admitted.
    """
    asked = parameters.get("max_new_tokens")
    input_tokens = min(count(inputs), parameters.get("truncate") or limits.max_total_tokens)
    slice_tokens = admit(input_tokens, asked, limits)
    voice = speak()
    wanted = limits.max_total_tokens - input_tokens if asked is None else asked
    stop = _stop_pattern(parameters.get("stop") or [])
    text, tokens = "", 0
    while True:
        said, seen, in_slice = "", "", 0
        reason: Reason | None = None
        async with aclosing(voice.tokens(inputs, slice_tokens, parameters)) as slice_:
            held: Token | None = None
            async for token in slice_:
                if held is not None:
                    yield held, None
                held = token
                in_slice += 1
                said += "" if token.is_special else token.text
                seen = (seen + token.text)[-STOP_CHARS_MAX:]
                # In TGI's order: the length comes first, even where the token is the end.
                if in_slice >= slice_tokens:
                    reason = "length"
                elif token.id == end.id:
                    reason = "eos_token"
                elif stop is not None and stop.search(seen):
                    reason = "stop_sequence"
                if reason is not None:
                    break
        # A model that runs out of its own window before the slice is full ends for the length too.
        tokens += in_slice
        text += said
        inputs += said
        last = held or Token(end.id, "", is_special=True)
        if reason == "length" and tokens < wanted:
            try:
                slice_tokens = admit(count(inputs), asked, limits)
            except Refusal:
                pass
            else:
                yield last, None
                continue
        yield last, End(text, tokens, reason or "length", input_tokens)
        return


def _stop_pattern(stop: list[str]) -> re.Pattern[str] | None:
    """Looks only at the end of what was said so far, as TGI does: a stop string that ends in the
    middle of a token is passed over."""
    return re.compile("|".join(f"(?:{re.escape(text)}$)" for text in stop)) if stop else None


def _invalid(message: str) -> Refusal:
    return Refusal("validation", f"Input validation error: {message}")
