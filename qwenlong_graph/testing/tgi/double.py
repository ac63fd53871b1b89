"""A stand-in for Text Generation Inference: its protocol, its limits and its failures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwenlong_graph.testing.tgi import bodies
from qwenlong_graph.testing.tgi.connection import Connection, Receive, Scope, Send
from qwenlong_graph.testing.tgi.contract import check
from qwenlong_graph.testing.tgi.faults import ErrorEvent, Fault, NoFinalEvent, SlowDrip
from qwenlong_graph.testing.tgi.generation import (
    End,
    Limits,
    Refusal,
    Speaker,
    Voice,
    generated,
    refuse,
)
from qwenlong_graph.testing.tgi.llama_cpp import LlamaCpp
from qwenlong_graph.testing.tgi.script import Replies, Script
from qwenlong_graph.testing.tgi.striking import (
    Event,
    named,
    strike_first,
    strike_stream,
    strike_whole,
)
from qwenlong_graph.testing.tgi.tasks import SCHEMAS, Task, Unreadable, read_body, task_of
from qwenlong_graph.testing.tgi.tokens import LocalVocabulary, Token, Vocabulary, small_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["ReceivedRequest", "TgiDouble"]

_JSON = {"content-type": "application/json"}
_TEXT = {"content-type": "text/plain; charset=utf-8"}
_EVENTS = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache",
    "x-compute-type": "gpu+optimized",
    "x-accel-buffering": "no",
}
_GENERATING = frozenset({"/", "/generate", "/generate_stream", "/v1/chat/completions"})
_HEALTH = frozenset({"/", "/health", "/ping"})
_PATHS = frozenset({*_HEALTH, *SCHEMAS, "/info", "/metrics", "/v1/models"})


@dataclass(frozen=True)
class ReceivedRequest:
    """A request for a generation; `number` counts them from 1.

    `prompt` is what the model would read, chat template and all; it and `body`, the request's
    JSON, are empty where the request could not be read.
    """

    number: int
    path: str
    prompt: str
    body: Mapping[str, Any] = field(repr=False)


class TgiDouble:
    """Speaks TGI's protocol; an ASGI application, which `serve` puts on a port.

    `replies` are texts in order, a function from the whole prompt to a text (called for one
    request at a time), or a model: `LlamaCpp`. `faults` says what goes wrong with which request:
    the key is the request's number, counted from 1 over all requests for a generation, or a
    `range` of numbers. A reply in a list that a fault keeps from its client is given to the next
    request.

    The next four are TGI's flags of these names. `batch_size` is how many requests generate at
    once; others wait in line, and beyond `max_concurrent_requests` they are refused. `tokenizer`
    is a fast tokenizer of transformers with a chat template, by default `small_tokenizer()`; a
    `LlamaCpp` brings its own. `first_token_s` and `token_s` are the seconds before the first token
    of a reply and between two tokens; a stream that is idle for `keep_alive_s` gets a comment.

    Every body is checked against TGI's OpenAPI document before it is sent. The counters may be
    read at any time, from any thread. A request counts as over when the event that ends its reply
    is sent, so a client that waits for that event and no longer is never counted twice.
    """

    def __init__(
        self,
        replies: Replies | LlamaCpp,
        *,
        faults: Mapping[int | range, Fault] | None = None,
        model_id: str = "double",
        max_input_tokens: int = 7168,
        max_total_tokens: int = 8192,
        max_concurrent_requests: int = 128,
        max_stop_sequences: int = 4,
        batch_size: int = 32,
        tokenizer: PreTrainedTokenizerFast | None = None,
        first_token_s: float = 0.0,
        token_s: float = 0.0,
        keep_alive_s: float = 15.0,
        payload_limit: int = 2_000_000,
    ) -> None:
        self.model_id = model_id
        self.limits = Limits(
            max_input_tokens, max_total_tokens, max_stop_sequences=max_stop_sequences
        )
        self.vocabulary: Vocabulary
        self._speaker: Speaker
        if isinstance(replies, LlamaCpp):
            self.vocabulary, self._speaker = replies.vocabulary, replies
        else:
            self.vocabulary = LocalVocabulary(tokenizer or small_tokenizer())
            self._speaker = Script(replies, self.vocabulary)
        self._faults = dict(faults or {})
        self._struck: set[int | range] = set()
        self._permits = max_concurrent_requests
        self._batch_size = batch_size
        self._first_token_s = first_token_s
        self._token_s = token_s
        self._keep_alive_s = keep_alive_s
        self._payload_limit = payload_limit
        self._failures: list[Exception] = []
        self.comes_up(load_s=0.0)

        self.requests: list[ReceivedRequest] = []
        """Every request for a generation, in the order of arrival."""
        self.in_flight = 0
        """Requests for a generation that are open now."""
        self.in_flight_max = 0
        """The most that were open at once."""
        self.answered = 0
        """Requests that got their whole reply, or a refusal that no fault made up."""
        self.cancelled = 0
        """Requests whose client left before that."""
        self.refused = 0
        """Requests refused because the server was over its limit."""
        self.turned_away = 0
        """Requests, of any kind, that found the server loading: no other counter knows them."""

    @property
    def prompts(self) -> list[str]:
        """What the model would have read, request by request."""
        return [request.prompt for request in self.requests]

    @property
    def unused_faults(self) -> dict[int | range, Fault]:
        """The faults that no request has met so far."""
        return {key: fault for key, fault in self._faults.items() if key not in self._struck}

    def wait_idle(self, *, timeout_s: float = 10) -> None:
        """Waits until no request is open: a client that leaves is noticed a moment later.

        Raises `TimeoutError`. In async code: `await asyncio.to_thread(double.wait_idle)`.
        """
        ends = time.monotonic() + timeout_s
        while self.in_flight:
            if time.monotonic() > ends:
                raise TimeoutError(f"{self.in_flight} requests are still open.")
            time.sleep(0.002)

    def raise_failures(self) -> None:
        """Raises the first error of the double itself, such as a script that ran out."""
        if self._failures:
            raise self._failures[0]

    def comes_up(self, *, load_s: float) -> None:
        """The server starts, and loads for so many seconds; `serve` calls this."""
        self._is_down = False
        self._loads_until = time.monotonic() + load_s
        self._generating = 0
        self._batch = asyncio.Semaphore(self._batch_size)

    def goes_down(self) -> None:
        """The server is about to break every connection; `serve` calls this."""
        self._is_down = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            raise RuntimeError(f"The TGI double serves HTTP only, not {scope['type']!r}.")
        connection = Connection(scope, send)
        content = await _content(receive)
        if content is None:
            return
        if time.monotonic() < self._loads_until:
            self.turned_away += 1
            await self._error(connection, 503, named("healthcheck"))
        elif scope["method"] == "POST" and scope["path"] in _GENERATING:
            await self._visit(connection, scope, content, receive)
        else:
            await self._kept(connection, self._other(connection, scope, content))

    async def _visit(
        self, connection: Connection, scope: Scope, content: bytes, receive: Receive
    ) -> None:
        """Answers a request for a generation for as long as its client stays."""
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        connection.when_over(self._is_over)
        answer = self._kept(connection, self._generation(connection, scope, content))
        answering, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not connection.is_over and not self._is_down:
                self.cancelled += 1
            connection.over()
            if connection.is_broken:
                # The server's own bookkeeping has to notice before the application may return.
                await leaving
            if answering.done() and not answering.cancelled():
                answering.result()
        finally:
            answering.cancel()
            leaving.cancel()
            await asyncio.wait({answering, leaving})

    def _is_over(self, is_answered: bool) -> None:
        self.in_flight -= 1
        self.answered += is_answered

    async def _kept(self, connection: Connection, work: Coroutine[Any, Any, None]) -> None:
        """Does `work`; an error of the double itself is kept for `raise_failures`."""
        try:
            await work
        except Exception as error:  # noqa: BLE001 - raised again where the test ends
            self._failures.append(error)
            if connection.is_started:
                connection.abort()
            else:
                connection.over()
                await connection.whole(500, _TEXT, f"The double failed: {error}".encode())

    async def _generation(self, connection: Connection, scope: Scope, content: bytes) -> None:
        path = scope["path"]
        body: dict[str, Any] = {}
        task = Task("", {})
        trouble: Unreadable | Refusal | None = None
        try:
            body = read_body(scope, content, limit=self._payload_limit)
            task = task_of(path, body, self.vocabulary, model_id=self.model_id)
        except (Unreadable, Refusal) as error:
            trouble = error
        number = len(self.requests) + 1
        self.requests.append(ReceivedRequest(number, path, task.inputs, body))
        fault = self._fault(number)
        if fault is not None and await strike_first(connection, fault):
            return
        if trouble is not None:
            connection.over(is_answered=True)
            await self._refuse(connection, trouble)
        elif task.is_stream:
            await self._stream(connection, task, fault)
        else:
            await self._whole(connection, task, fault, in_list=path == "/")

    def _fault(self, number: int) -> Fault | None:
        for key, fault in self._faults.items():
            if key == number or (isinstance(key, range) and number in key):
                self._struck.add(key)
                return fault
        return None

    async def _stream(self, connection: Connection, task: Task, fault: Fault | None) -> None:
        await connection.start(200, {**_EVENTS, "x-compute-characters": str(len(task.inputs))})
        comments = asyncio.ensure_future(self._comments(connection))
        try:
            async with aclosing(self._events(task, fault)) as events:
                if fault is not None:
                    await strike_stream(connection, events, fault, comments, is_chat=task.is_chat)
                    return
                async for event in events:
                    if event.is_final:
                        connection.over(is_answered=True)
                    await connection.write(event.data)
            await connection.end()
        finally:
            comments.cancel()

    async def _comments(self, connection: Connection) -> None:
        while True:
            left = connection.written_at + self._keep_alive_s - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)
            else:
                await connection.write(b":\n\n")

    async def _events(self, task: Task, fault: Fault | None) -> AsyncGenerator[Event, None]:
        """The events of a stream, errors of TGI's among them."""
        told = _ChatStream(task) if task.is_chat else _GenerateStream(task)
        try:
            if task.parameters.get("decoder_input_details"):
                words = "`decoder_input_details` == true is not supported when streaming tokens"
                raise Refusal("validation", f"Input validation error: {words}")
            async with aclosing(self._tokens(task, fault)) as tokens:
                async for token, end in tokens:
                    for body in told.bodies(token, end):
                        check(body, told.schema)
                        yield Event(bodies.event(bodies.encoded(body)), end is not None)
        except Refusal as error:
            body = (
                bodies.chat_error(str(error))
                if task.is_chat
                else bodies.error(error.error_type, str(error))
            )
            yield Event(bodies.event(bodies.encoded(body)), is_final=True)
        if task.is_chat:
            yield Event(bodies.event(b"[DONE]"))

    async def _whole(
        self, connection: Connection, task: Task, fault: Fault | None, *, in_list: bool
    ) -> None:
        started = time.monotonic()
        tokens: list[Token] = []
        end = End("", 0, "length", 0)
        try:
            # Without a stream TGI gives these a status of their own.
            if isinstance(fault, ErrorEvent):
                raise named(fault.error_type)
            if isinstance(fault, NoFinalEvent):
                raise named("incomplete_generation")
            async with aclosing(self._tokens(task, fault)) as generation:
                async for token, ending in generation:
                    tokens.append(token)
                    end = ending or end
        except Refusal as error:
            connection.over(is_answered=True)
            await self._refuse(connection, error)
            return
        if task.is_chat:
            body = bodies.chat_completion(_message(task, end.text), end, model=task.model)
            check(body, "ChatCompletion")
        else:
            body = self._generate_body(task, tokens, end)
            check(body, "GenerateResponse")
        spent_ms = str(int((time.monotonic() - started) * 1000))
        headers = {
            **_JSON,
            "x-compute-type": "gpu+optimized",
            "x-compute-characters": str(len(task.inputs)),
            "x-prompt-tokens": str(end.input_tokens),
            "x-generated-tokens": str(end.tokens),
            "x-total-time": spent_ms,
            "x-inference-time": spent_ms,
        }
        content = bodies.encoded([body] if in_list else body)
        if fault is None:
            connection.over(is_answered=True)
            await connection.whole(200, headers, content)
        else:
            await strike_whole(connection, fault, headers, content)

    def _generate_body(self, task: Task, tokens: list[Token], end: End) -> dict[str, Any]:
        get = task.parameters.get
        prefill = None
        if get("decoder_input_details"):
            places = self.vocabulary.places(task.inputs, add_special_tokens=True)
            prefill = bodies.prefill(task.inputs, places)
        return bodies.generation(
            tokens,
            end,
            has_details=bool(get("details")) or prefill is not None,
            seed=get("seed"),
            prefill=prefill or [],
            before=task.inputs if get("return_full_text") else "",
        )

    async def _tokens(
        self, task: Task, fault: Fault | None
    ) -> AsyncGenerator[tuple[Token, End | None], None]:
        """The tokens of a reply at the double's pace; raises TGI's `Refusal`s."""
        if self._generating >= self._permits:
            self.refused += 1
            raise named("overloaded")
        self._generating += 1
        holds_permit = True
        try:
            refuse(task.inputs, task.parameters, self.limits)
            async with self._batch:
                await asyncio.sleep(self._first_token_s)
                tokens = generated(
                    task.inputs,
                    task.parameters,
                    self.limits,
                    speak=lambda: self._speak(task, fault),
                    count=lambda text: self._count(task, text),
                    end=self.vocabulary.end,
                )
                async with aclosing(tokens):
                    async for token, end in tokens:
                        if end is not None:
                            # A client that has read the end may ask again at once.
                            self._generating -= 1
                            holds_permit = False
                        yield token, end
                        # Even a pause of nothing lets other requests in, and leaving clients out.
                        await asyncio.sleep(self._token_s)
        finally:
            if holds_permit:
                self._generating -= 1

    def _speak(self, task: Task, fault: Fault | None) -> Voice:
        voice = self._speaker.speak(task.inputs)
        if fault is not None and not isinstance(fault, SlowDrip):
            self._speaker.take_back(voice)
        return voice

    def _count(self, task: Task, text: str) -> int:
        return self.vocabulary.count(text, add_special_tokens=task.adds_special_tokens)

    async def _other(self, connection: Connection, scope: Scope, content: bytes) -> None:
        """Answers what is no request for a generation."""
        path = scope["path"]
        match scope["method"], path:
            case "GET", _ if path in _HEALTH:
                await connection.whole(200, {}, b"")
            case "GET", "/info":
                body = bodies.info(self.model_id, self.limits, concurrent_requests=self._permits)
                await self._json(connection, body, "Info")
            case "GET", "/v1/models":
                body = bodies.models(self.model_id)
                await connection.whole(200, _JSON, bodies.encoded(body))
            case "GET", "/metrics":
                await connection.whole(200, _TEXT, self._metrics().encode())
            case "POST", "/tokenize" | "/chat_tokenize":
                await self._tokenize(connection, scope, content)
            case _:
                await connection.whole(405 if path in _PATHS else 404, {}, b"")

    async def _tokenize(self, connection: Connection, scope: Scope, content: bytes) -> None:
        path = scope["path"]
        try:
            body = read_body(scope, content, limit=self._payload_limit)
            task = task_of(path, body, self.vocabulary, model_id=self.model_id)
        except (Unreadable, Refusal) as error:
            await self._refuse(connection, error)
            return
        found = self.vocabulary.places(task.inputs, add_special_tokens=task.adds_special_tokens)
        places = bodies.places(task.inputs, found)
        if path == "/tokenize":
            await self._json(connection, places, "TokenizeResponse")
        else:
            told = {"tokenize_response": places, "templated_text": task.inputs}
            await self._json(connection, told, "ChatTokenizeResponse")

    def _metrics(self) -> str:
        lines = {
            "tgi_request_count": len(self.requests),
            "tgi_request_success": self.answered,
            "tgi_batch_current_size": self._generating,
        }
        return "".join(f"{name} {value}\n" for name, value in lines.items())

    async def _json(self, connection: Connection, body: Any, schema: str) -> None:
        check(body, schema)
        await connection.whole(200, _JSON, bodies.encoded(body))

    async def _refuse(self, connection: Connection, error: Unreadable | Refusal) -> None:
        if isinstance(error, Unreadable):
            await connection.whole(error.status, _TEXT, str(error).encode())
        else:
            await self._error(connection, error.status, error)

    async def _error(self, connection: Connection, status: int, error: Refusal) -> None:
        body = bodies.error(error.error_type, str(error))
        check(body, "ErrorResponse")
        await connection.whole(status, _JSON, bodies.encoded(body))


class _GenerateStream:
    schema = "StreamResponse"

    def __init__(self, task: Task) -> None:
        self._get = task.parameters.get
        self._before = task.inputs if self._get("return_full_text") else ""
        self._index = 0

    def bodies(self, token: Token, end: End | None) -> list[dict[str, Any]]:
        self._index += 1
        body = bodies.stream_event(
            self._index,
            token,
            end,
            has_details=bool(self._get("details")),
            seed=self._get("seed"),
            before=self._before,
        )
        return [body]


class _ChatStream:
    schema = "ChatCompletionChunk"

    def __init__(self, task: Task) -> None:
        self._task = task
        self._held = ""

    def bodies(self, token: Token, end: End | None) -> list[dict[str, Any]]:
        task = self._task
        text = "" if token.is_special else token.text
        if task.has_tools:
            # TGI holds a call back until it knows its name; this double until it knows it all.
            self._held += text
            if end is None:
                return []
            delta = _delta(_message(task, self._held))
        else:
            delta = {"role": "assistant", "content": text}
        found = [bodies.chat_chunk(delta, end, model=task.model)]
        if end is not None and task.has_usage:
            found.append(bodies.usage_chunk(end, model=task.model))
        return found


def _message(task: Task, text: str) -> dict[str, Any]:
    call = bodies.tool_call(text) if task.has_tools else None
    if call is None:
        return {"role": "assistant", "content": text}
    entry = {"id": "0", "type": "function", "function": call}
    return {"role": "assistant", "tool_calls": [entry]}


def _delta(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message as one delta of a stream, where arguments are text."""
    if "tool_calls" not in message:
        return dict(message)
    calls = [
        {
            "index": index,
            **call,
            "function": {
                "name": call["function"]["name"],
                "arguments": bodies.encoded(call["function"]["arguments"]).decode(),
            },
        }
        for index, call in enumerate(message["tool_calls"])
    ]
    return {**message, "tool_calls": calls}


async def _content(receive: Receive) -> bytes | None:
    """The whole body of a request, None where the client left before its end."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
