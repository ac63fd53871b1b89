"""The whole recurrence as generators that yield prompts and take replies (sans I/O).

    decompose -> for each chunk: update memory and plan -> answer          (QwenLong-L1.5, Eq. 5-6)

A driver sends each `Request` to a model and sends the `Reply` back; it decides about threads,
retries of the network, and storage. The graph's nodes drive one step each, a trainer's rollout
drives `read_through` from end to end: what is trained is what is run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from qwenlong_graph.reading.answers import leaves_out, repeats_nothing
from qwenlong_graph.reading.budget import REPAIR_TOKENS
from qwenlong_graph.reading.claims import unsupported_claims
from qwenlong_graph.reading.evidence import SourceText
from qwenlong_graph.reading.prompts import (
    decompose_prompt,
    full_prompt,
    repair_prompt,
    says_not_found,
)
from qwenlong_graph.reading.protocols import (
    Chunk,
    ExtractProtocol,
    ReadingProtocol,
    ReadingState,
    ReadingTask,
    Update,
)
from qwenlong_graph.reading.relevance import asks_for_several
from qwenlong_graph.reading.replies import BadReply, parse_decomposition, without_thoughts
from qwenlong_graph.types import Message

__all__ = [
    "Answer",
    "Done",
    "Reply",
    "Request",
    "Steps",
    "Validate",
    "advance",
    "answer_steps",
    "call_seed",
    "decompose_steps",
    "drive",
    "full_steps",
    "read_through",
    "start_state",
    "update_steps",
]

Result = TypeVar("Result")
Purpose = Literal["decompose", "update", "answer"]
Validate = Callable[[str], Any]
"""Turns an answer into the requested form, or raises ValueError saying what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call to a model. `reason` says why an earlier attempt was not good enough."""

    messages: list[Message]
    max_tokens: int
    purpose: Purpose
    step: int
    attempt: int = 0
    reason: str = ""
    response_schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class Reply:
    """What the model said. `is_truncated`: it stopped at its limit of tokens.

    Token counts are the server's, None where it reports none.
    """

    text: str
    is_truncated: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True)
class Answer:
    """The final answer; `structured` where a form was asked for and the answer has it.

    `is_quoted`: the model's own words were not borne out, and the best quotes stand instead.
    """

    text: str
    structured: Any = None
    is_quoted: bool = False


@dataclass(frozen=True)
class Done(Generic[Result]):
    """The end of some steps, with their result."""

    result: Result


Steps = Generator[Request, Reply, Result]
"""Yields requests, takes replies, returns a result."""


def call_seed(seed: int, *, step: int, attempt: int) -> int:
    """The seed of one call (31 bits): the same for the same run seed, step and attempt."""
    digest = hashlib.sha256(f"{seed}/{step}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def start_state() -> ReadingState:
    """The state before the first chunk."""
    return ReadingState(memory="", plan="", evidence=[], tally={})


def advance(steps: Steps[Result], reply: Reply | None = None) -> Request | Done[Result]:
    """Sends a reply (None at the start) and gives the next request, or the result."""
    try:
        return next(steps) if reply is None else steps.send(reply)
    except StopIteration as stop:
        return Done(stop.value)


def drive(steps: Steps[Result], ask: Callable[[Request], Reply]) -> Result:
    """Runs `steps` to their result, asking the model through `ask`."""
    request = advance(steps)
    while isinstance(request, Request):
        request = advance(steps, ask(request))
    return request.result


def decompose_steps(question: str, *, task: ReadingTask) -> Steps[tuple[str, str]]:
    """Splits a query in (core question, instructions); on any doubt the core is the whole query."""
    reply = yield Request(
        messages=decompose_prompt(task.clean(question)),
        max_tokens=task.budget.output_tokens,
        purpose="decompose",
        step=-1,
    )
    split = None if reply.is_truncated else parse_decomposition(reply.text, question=question)
    return split or (question, "")


def update_steps(
    task: ReadingTask,
    protocol: ReadingProtocol,
    state: ReadingState,
    chunk: Chunk,
    *,
    held: Sequence[SourceText] = (),
    attempts: int = 3,
) -> Steps[Update]:
    """Reads one chunk (Eq. 5). After `attempts` unusable replies the old memory is kept as it is
    and the update says so ("kept")."""
    request = Request(
        messages=protocol.update_messages(task, state, chunk),
        max_tokens=task.budget.output_tokens,
        purpose="update",
        step=chunk.step,
    )
    for attempt in range(attempts):
        reply = yield request
        try:
            return protocol.apply_reply(
                task,
                state,
                chunk,
                reply.text,
                held=held,
                is_truncated=reply.is_truncated,
                is_last_attempt=attempt == attempts - 1,
            )
        except BadReply as bad:
            request = replace(request, attempt=attempt + 1, reason=bad.reason)
    return Update(state, "kept")


def answer_steps(
    task: ReadingTask,
    protocol: ReadingProtocol,
    state: ReadingState,
    *,
    step: int,
    quotes: Sequence[str],
    validate: Validate | None = None,
    response_schema: dict[str, Any] | None = None,
    attempts: int = 3,
) -> Steps[Answer]:
    """Answers from memory and instructions (Eq. 6), in the requested form with one repair.

    An empty memory has no answer, and nobody is asked to invent one. Under "extract" an answer
    that never ends, claims what no quote holds, or says nothing of what they hold is replaced by
    the best quotes: a small model finds better than it tells. So is one that takes up only some
    of them where the question asks for several things.

    Raises:
        BadReply: no usable answer after all attempts.
    """
    if not state["memory"]:
        return Answer("")
    messages = protocol.answer_messages(task, state)
    steps = _final_steps(task, messages, step, validate, response_schema, attempts)
    if not isinstance(protocol, ExtractProtocol) or validate is not None:
        return (yield from steps)
    notes = protocol.best_notes(task, state)
    is_for_several = asks_for_several(task.core_question)
    quoted = Answer("\n".join(notes if is_for_several else notes[:3]), is_quoted=True)
    try:
        answer = yield from steps
    except BadReply:
        return quoted
    claims = unsupported_claims(answer.text, quotes)
    if (
        any(claim["status"] == "unsupported" for claim in claims)
        or says_not_found(answer.text)
        or repeats_nothing(answer.text, question=task.core_question, quotes=quotes)
        or (is_for_several and leaves_out(answer.text, question=task.core_question, notes=notes))
    ):
        return quoted
    return answer


def full_steps(
    task: ReadingTask,
    document: str,
    *,
    question: str,
    validate: Validate | None = None,
    response_schema: dict[str, Any] | None = None,
    attempts: int = 3,
) -> Steps[Answer]:
    """Reads a document that fits in one pass and answers.

    Raises:
        BadReply: no usable answer after all attempts.
    """
    messages = full_prompt(
        question=task.clean(question),
        instructions=task.clean(task.instructions),
        document=task.clean(document),
    )
    return (yield from _final_steps(task, messages, 0, validate, response_schema, attempts))


def _final_steps(
    task: ReadingTask,
    messages: list[Message],
    step: int,
    validate: Validate | None,
    response_schema: dict[str, Any] | None,
    attempts: int,
) -> Steps[Answer]:
    request = Request(
        messages=messages,
        max_tokens=task.budget.answer_tokens,
        purpose="answer",
        step=step,
        response_schema=response_schema,
    )
    is_repaired = False
    reason = ""
    for attempt in range(max(attempts, 2 if validate else 1)):
        reply = yield replace(request, attempt=attempt, reason=reason)
        try:
            text = without_thoughts(reply.text)
        except BadReply as bad:
            reason = bad.reason
            continue
        if not text:
            reason = "the answer was empty"
            continue
        if reply.is_truncated:
            reason = f"the answer was cut off at {request.max_tokens} tokens"
            continue
        if validate is None or says_not_found(text):
            return Answer(text)
        try:
            value = validate(text)
            # Without the fence or prose around it, so that offsets into the answer mean something.
            return Answer(json.dumps(value, ensure_ascii=False), value)
        except ValueError as error:
            reason = f"the answer does not have the requested form: {error}"
            if is_repaired:
                break
            is_repaired = True
            request = replace(
                request, messages=_repair(task, request, reply=text, problem=str(error))
            )
    raise BadReply(reason)


def _repair(task: ReadingTask, request: Request, *, reply: str, problem: str) -> list[Message]:
    """The repair prompt; the reply to mend is left out where the window cannot hold it again."""
    problem = task.clean(problem[:200])
    content = sum(task.count_tokens(message["content"]) for message in request.messages)
    room = task.budget.window - content - request.max_tokens - 64
    if task.count_tokens(reply) + task.count_tokens(problem) + REPAIR_TOKENS // 2 > room:
        reply = "(a reply in the wrong form)"
    return repair_prompt(request.messages, reply=task.clean(reply), problem=problem)


def read_through(
    task: ReadingTask,
    protocol: ReadingProtocol,
    chunks: Iterable[Chunk],
    *,
    quote: Callable[[Sequence[Any]], Sequence[SourceText]],
    attempts: int = 3,
) -> Steps[tuple[ReadingState, Answer]]:
    """The recurrence from the first chunk to the answer.

    `chunks` may be lazy. `quote` gives the texts of a list of evidence (from wherever the
    documents are kept).
    """
    state = start_state()
    step = 0
    for chunk in chunks:
        held = quote(state["evidence"])
        update = yield from update_steps(task, protocol, state, chunk, held=held, attempts=attempts)
        state = update.state
        step = chunk.step + 1
    quotes = [source.text for source in quote(state["evidence"])]
    answer = yield from answer_steps(
        task, protocol, state, step=step, quotes=quotes, attempts=attempts
    )
    return state, answer
