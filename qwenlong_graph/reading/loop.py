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

from qwenlong_graph.reading.answers import repeats_nothing
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
from qwenlong_graph.reading.relevance import asks_for_several, question_terms
from qwenlong_graph.reading.repetition import SPAN
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
    "call_loop_span",
    "call_penalty",
    "call_seed",
    "decompose_steps",
    "drive",
    "full_steps",
    "read_through",
    "recall_steps",
    "start_state",
    "update_steps",
]

Result = TypeVar("Result")
Purpose = Literal["decompose", "update", "answer"]
Validate = Callable[[str], Any]
"""Turns an answer into the requested form, or raises ValueError saying what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call to a model. `reason` says why an earlier attempt was not good enough.

    `loops` is how many earlier attempts repeated themselves without end.
    """

    messages: list[Message]
    max_tokens: int
    purpose: Purpose
    step: int
    attempt: int = 0
    reason: str = ""
    loops: int = 0
    response_schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class Reply:
    """What the model said: `text` is its answer, `thoughts` what it thought before, if told apart.

    `is_truncated`: it stopped at its limit of tokens. `is_thinking_cut`: it ended inside its
    thoughts. `is_loop`: it was stopped, because it repeated itself without end. Token counts are
    the server's, None where it reports none; `reasoning_tokens` are those of `output_tokens` that
    are thoughts.
    """

    text: str
    is_truncated: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None
    thoughts: str = ""
    reasoning_tokens: int | None = None
    is_thinking_cut: bool = False
    is_loop: bool = False


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


def call_loop_span(loops: int) -> int:
    """The words over which a reply must repeat itself to be closed, after `loops` that were.

    Each one makes it less likely that the next is a loop, and more that the text is monotonous.
    """
    return SPAN << 2 * min(loops, 2)


HISTORY_TOKENS = 1_000
RECALL_COVERAGE = 0.8
"""Sentences that answer a question in its own words held 0.87 and more of it (decision 0005)."""

REPETITION_PENALTY = 1.05
"""Enough to leave a loop, and too little to change a memory that copies its names and figures."""


def call_penalty(loops: int, *, is_greedy: bool) -> float | None:
    """The repetition penalty of a call after `loops` attempts that repeated themselves.

    At first another seed is enough; greedy decoding would take no notice of it.
    """
    return REPETITION_PENALTY if loops > (0 if is_greedy else 1) else None


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


def decompose_steps(
    question: str, *, task: ReadingTask, history: Sequence[Message] = ()
) -> Steps[tuple[str, str]]:
    """Splits a query in (core question, instructions); on any doubt the core is the whole query.

    What the query says of earlier turns is resolved by the newest of `history` that have room.
    """
    told = _told(history, task)
    reply = yield Request(
        messages=decompose_prompt(task.clean(question), history=told),
        max_tokens=task.budget.output_tokens,
        purpose="decompose",
        step=-1,
    )
    is_whole = not (reply.is_truncated or reply.is_thinking_cut or reply.is_loop)
    split = parse_decomposition(reply.text, question=question, history=told) if is_whole else None
    return split or (question, "")


def _told(history: Sequence[Message], task: ReadingTask) -> str:
    """The newest turns, oldest first, that fit an eighth of the window and `HISTORY_TOKENS`."""
    turns: list[str] = []
    left = min(HISTORY_TOKENS, task.budget.window // 8)
    for message in reversed(history):
        content = " ".join(message["content"].split())
        turn = task.clean(f"{message['role'].capitalize()}: {content}")
        left -= task.count_tokens(turn) + 1
        if left < 0:
            break
        turns.append(turn)
    return "\n".join(reversed(turns))


def recall_steps(
    task: ReadingTask, protocol: ReadingProtocol, kept: Chunk, *, attempts: int = 3
) -> Steps[ReadingState | None]:
    """Reads the quotes that earlier questions left, like one chunk.

    None where they hold nothing that bears on the question. Evidence of the state points into
    the text of `kept`.
    """
    if asks_for_several(task.core_question):  # quotes for another question rarely hold all of them
        return None
    update = yield from update_steps(task, protocol, start_state(), kept, attempts=attempts)
    state = update.state
    return state if state["evidence"] and _is_covered(task, protocol, state) else None


def _is_covered(task: ReadingTask, protocol: ReadingProtocol, state: ReadingState) -> bool:
    """Under "extract" nobody says that the notes hold no answer: they must cover the question."""
    if not isinstance(protocol, ExtractProtocol):
        return True
    terms = {*question_terms(task.core_question)}
    known = {*question_terms(state["memory"])}
    return len(terms & known) >= RECALL_COVERAGE * len(terms)


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
    and the update says so ("kept"). Each attempt has another seed, and more room where the one
    before was cut."""
    request = Request(
        messages=protocol.update_messages(task, state, chunk),
        max_tokens=task.budget.output_tokens,
        purpose="update",
        step=chunk.step,
    )
    for attempt in range(attempts):
        reply = yield request
        is_last_attempt = attempt == attempts - 1
        try:
            # The last time, a memory may be used that was whole before the repetition began.
            _check_is_whole(reply, request, allows_loop=is_last_attempt)
            return protocol.apply_reply(
                task,
                state,
                chunk,
                reply.text,
                held=held,
                is_truncated=reply.is_truncated or reply.is_loop,
                is_last_attempt=is_last_attempt,
            )
        except BadReply as bad:
            request = _next_attempt(task, request, reply, bad.reason)
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
    the best quotes: a small model finds better than it tells. Where the question asks for several
    things and several quotes bear on it, it is not asked at all: it would tell one of them, or mix
    them.

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
    if len(notes) > 1 and asks_for_several(task.core_question):
        return Answer("\n".join(notes), is_quoted=True)
    quoted = Answer("\n".join(notes[:3]), is_quoted=True)
    try:
        answer = yield from steps
    except BadReply:
        return quoted
    claims = unsupported_claims(answer.text, quotes)
    if (
        any(claim["status"] == "unsupported" for claim in claims)
        or says_not_found(answer.text)
        or repeats_nothing(answer.text, question=task.core_question, quotes=quotes)
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
    for _ in range(max(attempts, 2 if validate else 1)):
        reply = yield request
        try:
            _check_is_whole(reply, request)
            text = without_thoughts(reply.text)
            if not text:
                raise BadReply("the answer was empty")
            if reply.is_truncated:
                raise BadReply(f"the answer was cut off at {request.max_tokens} tokens")
        except BadReply as bad:
            request = _next_attempt(task, request, reply, bad.reason)
            continue
        if validate is None or says_not_found(text):
            return Answer(text)
        try:
            value = validate(text)
            # Without the fence or prose around it, so that offsets into the answer mean something.
            return Answer(json.dumps(value, ensure_ascii=False), value)
        except ValueError as error:
            reason = f"the answer does not have the requested form: {error}"
            request = _next_attempt(task, request, reply, reason)
            if is_repaired:
                break
            is_repaired = True
            request = replace(request, max_tokens=task.budget.answer_tokens)
            messages = _repair(task, request, reply=text, problem=str(error))
            request = replace(request, messages=messages)
    raise BadReply(request.reason)


def _check_is_whole(reply: Reply, request: Request, *, allows_loop: bool = False) -> None:
    """Raises `BadReply` where a reply ended inside its thoughts, or only because it was stopped."""
    what = "thinking" if reply.is_thinking_cut else "the reply"
    if reply.is_loop and (reply.is_thinking_cut or not allows_loop):
        raise BadReply(f"{what} repeated itself without end")
    if reply.is_thinking_cut and reply.is_truncated:
        raise BadReply(f"thinking was cut off at {request.max_tokens} tokens")
    if reply.is_thinking_cut:
        raise BadReply("thinking was not finished")


def _next_attempt(task: ReadingTask, request: Request, reply: Reply, reason: str) -> Request:
    """The same request once more: another seed, more room where the reply was cut."""
    max_tokens = request.max_tokens
    if reply.is_truncated and not reply.is_loop:
        max_tokens = max(max_tokens, min(2 * max_tokens, _room(task, request)))
    return replace(
        request,
        attempt=request.attempt + 1,
        reason=reason,
        loops=request.loops + reply.is_loop,
        max_tokens=max_tokens,
    )


def _room(task: ReadingTask, request: Request) -> int:
    """The tokens that the window leaves to the reply."""
    # The chat template's frame, and slack, for counts do not add up over joins; generously, since
    # a prompt that overflows would end the reading.
    return task.budget.window - _content_tokens(task, request) - 256 - task.budget.window // 100


def _content_tokens(task: ReadingTask, request: Request) -> int:
    return sum(task.count_tokens(message["content"]) for message in request.messages)


def _repair(task: ReadingTask, request: Request, *, reply: str, problem: str) -> list[Message]:
    """The repair prompt; the reply to mend is left out where the window cannot hold it again."""
    problem = task.clean(problem[:200])
    room = task.budget.window - _content_tokens(task, request) - request.max_tokens - 64
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
