"""What a model's reply says: thoughts cut off, elements found, bad replies named.

A reply is never trusted to be well formed. What cannot be used raises `BadReply` with a reason;
the caller asks again and keeps the old memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qwenlong_graph.reading.prompts import EXAMPLE_MEMORY, SPLITTER
from qwenlong_graph.reading.relevance import content_terms, question_terms

__all__ = [
    "BadReply",
    "SplitReply",
    "UpdateReply",
    "parse_decomposition",
    "parse_json",
    "parse_update",
    "split_thoughts",
    "trim_to_tokens",
    "without_thoughts",
]

_THINK_OPEN = re.compile(r"<\s*think\s*>", re.IGNORECASE)
_THINK_CLOSE = re.compile(r"<\s*/\s*think\s*>", re.IGNORECASE)
_FENCE = re.compile(r"^\s*```[\w-]*[ \t]*\n(.*?)\n?\s*```\s*$", re.DOTALL)
_FENCE_LINE = re.compile(r"^\s*```[\w-]*\s*$", re.MULTILINE)
_UNCLOSED_MEMORY = re.compile(
    r"<\s*memory\s*>((?:(?!<\s*/?\s*memory\s*>).)*?)<\s*plan\s*>", re.DOTALL | re.IGNORECASE
)
_PLACEHOLDER = re.compile(
    r"[\s\-*•.(]*(?:none|nothing|empty|n/?a|no (?:memory|information|relevant information))"
    r"(?: yet| so far| found)?[\s.)]*",
    re.IGNORECASE,
)
# A reply begins with a sentence at most before its first element; thoughts are longer.
_LEAD_IN_CHARS = 400


class BadReply(Exception):
    """Says inside the core that a reply must not be used.

    `reason` is a short phrase for events and the journal.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class UpdateReply:
    """A usable update. `kind` is "complete", or "no_plan" where only the memory was given."""

    memory: str
    plan: str
    kind: str


@dataclass(frozen=True)
class SplitReply:
    """A reply in two: its thoughts, without their tags, and what follows them.

    `is_open`: thinking was begun and not ended, so that nothing follows.
    """

    thoughts: str
    answer: str
    is_open: bool = False


def split_thoughts(text: str) -> SplitReply:
    """Parts a reply at the last `</think>`.

    A template may open `<think>` itself, so the opening tag need not be there. Zero-width
    characters that prompts add stay: what a reply copied with them is no tag, here or later.
    """
    thoughts = ""
    closings = list(_THINK_CLOSE.finditer(text))
    if closings:
        thoughts, text = text[: closings[-1].start()], text[closings[-1].end() :]
        thoughts = thoughts.strip()
        if opening := _THINK_OPEN.match(thoughts):
            thoughts = thoughts[opening.end() :].strip()
    text = text.strip()
    if opening := _THINK_OPEN.match(text):
        return SplitReply(f"{thoughts}\n{text[opening.end() :]}".strip(), "", is_open=True)
    return SplitReply(thoughts, text)


def without_thoughts(text: str) -> str:
    """What follows the last `</think>`, without the zero-width characters that prompts add.

    Raises:
        BadReply: thinking was opened and not closed: there is no answer in this reply.
    """
    split = split_thoughts(text)
    if split.is_open:
        raise BadReply("thinking was not finished")
    return _as_shown(split.answer)


def _as_shown(text: str) -> str:
    return text.replace(SPLITTER, "").strip()


def parse_update(text: str, *, had_memory: bool, is_truncated: bool = False) -> UpdateReply:
    """The memory and plan in a reply of the "rewrite" protocol.

    Elements may be in any case, fenced, or repeated (the last complete one with content counts,
    since a model may first repeat the example); a memory that is not closed ends where the plan
    begins.

    Raises:
        BadReply: no memory, an empty one where there was one before, or a reply cut off.
    """
    split = split_thoughts(text)
    if split.is_open:
        raise BadReply("thinking was not finished")
    # A line that quotes one of these elements from the text does not end the memory: such a quote
    # is whole only after the elements were found.
    body = _FENCE_LINE.sub("", split.answer)
    if not _as_shown(body):
        raise BadReply("the reply was empty")
    unclosed = body.lower().rfind("<memory>") > body.lower().rfind("</memory>")
    # A model whose template opens `<think>`, cut while thinking, leaves no tag at all: what looks
    # like its memory is a draft.
    is_draft = body.lower().find("<memory>") > _LEAD_IN_CHARS
    if is_truncated and (unclosed or is_draft):
        raise BadReply("the reply was cut off")
    memory = _element(body, "memory", example=EXAMPLE_MEMORY)
    if memory is None:
        opened = _UNCLOSED_MEMORY.search(body)
        if opened is None:
            raise BadReply("the reply was cut off" if is_truncated else "no memory element")
        memory = opened.group(1).strip()
    memory = _as_shown(memory)
    if is_empty_memory(memory):
        if had_memory:
            raise BadReply("the memory was empty")
        memory = ""
    plan = _element(body, "plan")
    kind = "complete" if plan is not None else "no_plan"
    return UpdateReply(memory, _as_shown(plan or ""), kind)


def is_empty_memory(memory: str) -> bool:
    """Whether a memory holds nothing, or only says that it holds nothing."""
    return not memory.strip() or _PLACEHOLDER.fullmatch(memory) is not None


def _element(text: str, name: str, *, example: str = "") -> str | None:
    """The content of the last complete element with content, else of the last one, else None.

    A copy of the prompt's `example` is no element.
    """
    found: list[str] = re.findall(
        rf"<\s*{name}\s*>((?:(?!<\s*{name}\s*>).)*?)<\s*/\s*{name}\s*>",
        text,
        re.DOTALL | re.IGNORECASE,
    )
    contents = [content.strip() for content in found if content.strip() != example or not example]
    with_content = [content for content in contents if content]
    if with_content:
        return with_content[-1]
    return contents[-1] if contents else None


_RESOLVED_CHARS = 200
"""What a question may grow by where the things it points to are named."""


def parse_decomposition(text: str, *, question: str, history: str = "") -> tuple[str, str] | None:
    """(core question, instructions), or None where the reply does not split this question.

    Both parts together must keep the question's names, figures and most of its words, and the
    core may add none but words of the `history`, a few of them: a split that loses or invents
    something is worse than none.
    """
    try:
        body = without_thoughts(text)
    except BadReply:
        return None
    core = _element(body, "core_question")
    if not core or len(core) > len(question) * 1.3 + (_RESOLVED_CHARS if history else 40):
        return None
    instructions = _element(body, "instructions") or ""
    if len(instructions) > len(question) * 1.3 + 40:
        return None
    if is_empty_memory(instructions):
        instructions = ""
    terms_of = content_terms if history else question_terms  # "When was it?" may be resolved
    asked, kept = set(terms_of(question)), set(question_terms(f"{core} {instructions}"))
    needed = {term for term in asked if any(sign.isdigit() for sign in term)}
    needed.update(word.casefold() for word in re.findall(r"(?<=[\w,;] )[A-Z]\w+", question))
    if len(asked & kept) < 0.6 * len(asked) or (needed & asked) - kept:
        return None
    known = asked | set(question_terms(history)) | set(question_terms(question))
    if not (asked or history) or set(question_terms(core)) - known:
        return None
    return core, instructions


def parse_json(text: str) -> Any:
    """The JSON value in a reply: whole, fenced, or the longest object or array in prose.

    Raises:
        ValueError: there is none.
    """
    fenced = _FENCE.match(text)
    body = (fenced.group(1) if fenced else text).strip()
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except ValueError:
        pass
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    found: list[tuple[int, Any]] = []
    place = 0
    while (start := _next_bracket(body, place)) >= 0:
        try:
            value, place = decoder.raw_decode(body, start)
            found.append((place - start, value))
        except ValueError:
            place = start + 1
    if not found:
        raise ValueError("the reply holds no JSON value")
    return max(found, key=lambda pair: pair[0])[1]


def _next_bracket(text: str, place: int) -> int:
    starts = [start for sign in "{[" if (start := text.find(sign, place)) >= 0]
    return min(starts, default=-1)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def trim_to_tokens(text: str, *, max_tokens: int, count_tokens: Callable[[str], int]) -> str:
    """The longest run of whole lines from the start of `text` within `max_tokens`."""
    if count_tokens(text) <= max_tokens:
        return text
    lines = text.splitlines()
    low, high = 0, len(lines) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if count_tokens("\n".join(lines[:middle])) <= max_tokens:
            low = middle
        else:
            high = middle - 1
    return "\n".join(lines[:low])
