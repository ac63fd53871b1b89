"""How a context window is shared between chunk, memory, thinking and answer.

One dial sets the rest: the window. At 98K tokens and above the sizes are the paper's targets
(chunk 32,000, memory 15,000, output 50,000; QwenLong-L1.5, Fig. 6); below that all three shrink
together. All sizes are tokens of the connected model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qwenlong_graph.errors import QuestionError, SettingsError, WindowTooSmallError

__all__ = [
    "FILLED_SHARE",
    "MINIMUM_CHUNK_TOKENS",
    "MINIMUM_WINDOW",
    "REPAIR_TOKENS",
    "SLACK_SHARE",
    "TEMPLATE_TOKENS_MIN",
    "Budget",
    "ReadingSettings",
    "derive_budget",
    "sliced_window",
]

MINIMUM_WINDOW = 2_048
MINIMUM_CHUNK_TOKENS = 128
MINIMUM_MEMORY_TOKENS = 96
MINIMUM_OUTPUT_TOKENS = 64

# Targets, and shares of a small window, for (chunk, memory, output). For "rewrite" the shares keep
# the proportions of the targets; for "extract" a reply is one sentence.
_TARGETS = {"rewrite": (32_000, 15_000, 50_000), "extract": (32_000, 4_000, 96)}
_SHARES = {"rewrite": (0.33, 0.155, 0.5), "extract": (0.6, 0.2, 0.02)}

_SIZES = {"chunk_tokens", "memory_tokens", "output_tokens"}

FILLED_SHARE = 0.92
"""Borders fall before a chunk is quite full: so much of `chunk_tokens` is read, for estimates."""

# Token counts do not add up over joins, and a chat template adds its own frame.
SLACK_SHARE = 0.01
TEMPLATE_TOKENS_MIN = 48

REPAIR_TOKENS = 192
"""Room that is kept for a request to mend an answer's form."""


class ReadingSettings(BaseModel):
    """How to read. Frozen; what is not given is derived from the model and its window.

    Sizes are tokens; `chunk_tokens` counts the chunk's text. A size that is given and does not
    fit the window is an error, never silently lowered. Strategy "auto" reads in one pass what
    fits and has at most `full_tokens_max` tokens. `temperature` and `top_p` None leave the
    model's own. A call's seed is derived from (`seed`, step, attempt), so that a repeated step
    repeats itself.

    Raises:
        SettingsError: a value is out of range or the name of a setting is unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Literal["auto", "memory", "full"] = "auto"
    protocol: Literal["rewrite", "extract"] = "rewrite"
    chunk_tokens: int | None = Field(default=None, ge=MINIMUM_CHUNK_TOKENS)
    memory_tokens: int | None = Field(default=None, ge=MINIMUM_MEMORY_TOKENS)
    output_tokens: int | None = Field(default=None, ge=MINIMUM_OUTPUT_TOKENS)
    answer_tokens: int | None = Field(default=None, ge=MINIMUM_OUTPUT_TOKENS)
    full_tokens_max: int = Field(default=120_000, ge=0)
    temperature: float | None = Field(default=0.7, ge=0.0, le=2.0)
    top_p: float | None = Field(default=0.95, gt=0.0, le=1.0)
    seed: int = 0
    reply_attempts: int = Field(default=3, ge=1, le=10)
    border_tolerance: float = Field(default=0.2, ge=0.0, le=0.5)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
                for problem in error.errors()
            )
            raise SettingsError(
                f"These reading settings cannot be used: {problems}. "
                f"The settings are: {', '.join(sorted(type(self).model_fields))}."
            ) from error

    def over(self, defaults: Mapping[str, Any]) -> ReadingSettings:
        """These settings on top of a model's own defaults; what was given explicitly wins."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return ReadingSettings(**{**defaults, **given})


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The tokens that each part of a prompt may take, and the replies.

    `output_tokens` bounds one update reply, `answer_tokens` the final one; both include
    thinking. `full_tokens` is the longest document that one pass can hold.
    """

    window: int
    chunk_tokens: int
    memory_tokens: int
    plan_tokens: int
    output_tokens: int
    answer_tokens: int
    full_tokens: int


def sliced_window(*, total_tokens: int, input_tokens: int, slice_tokens: int) -> int:
    """The window (prompt plus output) that holds whatever the two share it, in tokens.

    A server that writes in slices (TGI: 1,024 tokens) queues the text so far as the input of the
    next slice, which then has to fit `input_tokens`, and rounds the output up to whole slices,
    which together with the prompt have to fit `total_tokens`. Within the window given here, no
    reply ends before the number of tokens that was asked for.
    """
    return max(0, min(total_tokens - slice_tokens, input_tokens))


def derive_budget(
    settings: ReadingSettings,
    *,
    window: int,
    frame_tokens: int,
    question_tokens: int,
    template_tokens: int = 0,
) -> Budget:
    """The budget that `settings` and a window of `window` tokens (prompt plus output) give.

    `frame_tokens` is the longest prompt frame without question, memory and chunk;
    `question_tokens` is the question with its instructions. `template_tokens` is what the model's
    chat template adds to one message; what is usual is allowed for anyway.

    Raises:
        WindowTooSmallError: the window is below `MINIMUM_WINDOW`, or too small for the frame.
        QuestionError: the question takes more than a quarter of the window.
        SettingsError: a size that was given does not fit.
    """
    if window < MINIMUM_WINDOW:
        raise WindowTooSmallError(
            f"The model's context window is {window:,} tokens; reading needs at least "
            f"{MINIMUM_WINDOW:,}. Start the server with a larger context, or use another model."
        )
    if question_tokens > window // 4:
        raise QuestionError(
            f"The question (with its instructions) takes {question_tokens:,} tokens, more than a "
            f"quarter of the model's window of {window:,}. Shorten it, or put the long part into a "
            f"document."
        )
    fixed = (
        frame_tokens
        + question_tokens
        + max(TEMPLATE_TOKENS_MIN, template_tokens)
        + REPAIR_TOKENS
        + int(window * SLACK_SHARE)
    )
    usable = window - fixed
    plan_tokens = max(32, min(512, usable // 50))
    chunk, memory, output = _share(settings, usable - plan_tokens)
    total = fixed + plan_tokens + chunk + memory + output
    if total > window and settings.model_fields_set.isdisjoint(_SIZES):
        raise WindowTooSmallError(
            f"The model's context window is {window:,} tokens; the prompt's frame and the question "
            f"take {fixed:,} of them and leave too little to read with. Shorten the question, or "
            f"use a model with a larger window."
        )
    if total > window:
        raise SettingsError(
            f"These sizes do not fit the window of {window:,} tokens: chunk {chunk:,} + memory "
            f"{memory:,} + output {output:,} + prompt frame and question "
            f"{fixed + plan_tokens:,} = {total:,}. Lower chunk_tokens, memory_tokens or "
            f"output_tokens, or leave them out to have them derived."
        )
    room_for_answer = window - fixed - memory
    answer = settings.answer_tokens or min(room_for_answer, max(output, 512))
    if answer > room_for_answer:
        raise SettingsError(
            f"answer_tokens={answer:,} does not fit the window of {window:,} tokens beside a "
            f"memory of {memory:,}: at most {room_for_answer:,}."
        )
    return Budget(
        window=window,
        chunk_tokens=chunk,
        memory_tokens=memory,
        plan_tokens=plan_tokens,
        output_tokens=output,
        answer_tokens=answer,
        full_tokens=max(0, window - fixed - answer),
    )


def _share(settings: ReadingSettings, usable: int) -> tuple[int, int, int]:
    """Chunk, memory and output tokens: what is given stays, the rest shares what is left."""
    given = (settings.chunk_tokens, settings.memory_tokens, settings.output_tokens)
    least = (MINIMUM_CHUNK_TOKENS, MINIMUM_MEMORY_TOKENS, MINIMUM_OUTPUT_TOKENS)
    left = usable - sum(size for size in given if size is not None)
    derived = (
        max(minimum, min(target, int(left * share)))
        for minimum, target, share in zip(
            least, _TARGETS[settings.protocol], _SHARES[settings.protocol], strict=True
        )
    )
    chunk, memory, output = (
        open_size if size is None else size for size, open_size in zip(given, derived, strict=True)
    )
    if settings.protocol == "rewrite" and settings.output_tokens is None:
        # One reply holds a whole memory and a plan.
        output = max(output, memory + 64)
        if settings.chunk_tokens is None:
            # A large memory that is given has a large reply; the chunk makes room for it.
            chunk = max(MINIMUM_CHUNK_TOKENS, min(chunk, usable - memory - output))
    return chunk, memory, output
