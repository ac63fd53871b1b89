"""What a person sees at a pause of a reading, and what they may answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, cast

from typing_extensions import TypedDict

from qwenlong_graph.errors import SettingsError

__all__ = [
    "ACTIONS",
    "Decision",
    "ReviewEvery",
    "ReviewQuote",
    "ReviewRequest",
    "checked_review",
    "decision_of",
]

ReviewEvery = int | Literal["on-change"]
"""After every so many chunks, or whenever the memory has changed; and before the answer."""

ACTIONS = {
    "accept": "read on with this memory",
    "edit": 'give "memory", "plan" or both; reading goes on with them',
    "skip": 'pass over the next "chunks" (a number), or go to the beginning of "document" '
    "(its number, from 1)",
    "answer": "stop reading and answer from this memory",
}


class ReviewQuote(TypedDict):
    """A quote that bears out the memory; a long one is cut."""

    title: str
    start_char: int
    end_char: int
    text: str


class ReviewRequest(TypedDict):
    """The value of the interrupt: what there is to review, and which answers are taken.

    `step` of about `steps` chunks are read, `chars_read` of `chars` characters. `evidence` holds
    the first quotes only; `evidence_count` counts all. `unverified` are lines of memory that no
    quote bears out. `problem` says why the last answer was not taken.
    """

    type: Literal["review"]
    question: str
    memory: str
    plan: str
    step: int
    steps: int
    chars_read: int
    chars: int
    document: str
    evidence: list[ReviewQuote]
    evidence_count: int
    unverified: list[str]
    actions: dict[str, str]
    problem: NotRequired[str]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A reviewer's answer, its form checked; None leaves memory or plan as it is."""

    action: Literal["accept", "edit", "skip", "answer"]
    memory: str | None = None
    plan: str | None = None
    chunks: int | None = None
    document: int | None = None


def checked_review(review: str | None, every: object) -> ReviewEvery | None:
    """How often there is a review, None for never.

    Raises:
        SettingsError: either value is none that is known.
    """
    if review is None:
        return None
    if review != "memory":
        raise SettingsError(f'There is no review of {review!r}: give review="memory" or None.')
    is_number = isinstance(every, int) and not isinstance(every, bool) and every >= 1
    if not is_number and every != "on-change":
        raise SettingsError(
            f'review_every is {every!r}. Give a number of chunks, 1 or more, or "on-change".'
        )
    return every  # type: ignore[return-value] # checked above


def decision_of(given: object) -> Decision:
    """What a reviewer answered: a word, or a mapping with `action`; True accepts.

    Memory and plan may come with any action.

    Raises:
        ValueError: it is no answer; the text says what is.
    """
    if given is True:
        return Decision(action="accept")
    fields: Mapping[str, Any]
    if isinstance(given, str):
        fields = {"action": given.strip()}
    elif isinstance(given, Mapping):
        fields = given
    else:
        raise ValueError(f"a review is answered by a word or an object, not {given!r:.80}")
    text = {name: fields.get(name) for name in ("memory", "plan")}
    action = fields.get("action") or ("edit" if any(v is not None for v in text.values()) else "")
    if action not in ACTIONS:
        raise ValueError(f'"action" is {action!r:.80}; it is one of {", ".join(ACTIONS)}')
    unknown = set(fields) - {"action", "memory", "plan", "chunks", "document"}
    if unknown:
        raise ValueError(f"unknown fields: {', '.join(sorted(map(repr, unknown)))[:200]}")
    for name, value in text.items():
        if value is not None and not isinstance(value, str):
            raise ValueError(f'"{name}" is not a text')
    if action == "edit" and all(value is None for value in text.values()):
        raise ValueError('"edit" needs "memory", "plan" or both')
    places = {name: fields.get(name) for name in ("chunks", "document")}
    for name, value in places.items():
        is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if value is not None and not is_number:
            raise ValueError(f'"{name}" is {value!r:.80}, and has to be a number from 1')
    if action == "skip" and sum(value is not None for value in places.values()) != 1:
        raise ValueError('"skip" needs either "chunks" or "document"')
    if action != "skip" and any(value is not None for value in places.values()):
        raise ValueError('"chunks" and "document" belong to "skip"')
    return Decision(action=cast("Any", action), **text, **places)
