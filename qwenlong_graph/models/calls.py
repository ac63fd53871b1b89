"""The one place that calls a chat model, and turns its library's errors into ours.

Libraries are told apart by the names of their exception classes, so that none has to be imported
to translate an error of another.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from qwenlong_graph.errors import (
    ContextOverflowError,
    ModelError,
    ModelOverloadedError,
    ModelRefusedError,
    ModelUnavailableError,
)
from qwenlong_graph.models.limiter import (
    Limiter,
    Waiting,
    await_until_healthy,
    limiter_for,
    retry_after_s,
    server_of,
    wait_until_healthy,
)
from qwenlong_graph.models.thoughts import telling_thoughts, thoughts_of
from qwenlong_graph.reading.loop import Reply
from qwenlong_graph.reading.repetition import SPAN, RepetitionDetector
from qwenlong_graph.reading.replies import split_thoughts
from qwenlong_graph.types import Message

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, UsageMetadata
    from langchain_core.runnables import RunnableConfig

    from qwenlong_graph.models.connect import ConnectedModel

__all__ = ["TRANSFORMERS_SERVE", "aask", "ask", "is_retryable", "translate"]

CHECK_AFTER_S = 60
TRANSFORMERS_SERVE = "transformers serve"
"""The engine that knows streams only, tells no usage, and says of every reply that it ended."""


def ask(
    model: ConnectedModel,
    messages: Sequence[Message],
    *,
    max_tokens: int,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    repetition_penalty: float | None = None,
    loop_span: int = SPAN,
    stop: Sequence[str] | None = None,
    response_schema: dict[str, Any] | None = None,
    config: RunnableConfig | None = None,
    patience_s: float = 0,
    on_wait: Callable[[Waiting], object] | None = None,
    check_after_s: float = CHECK_AFTER_S,
) -> Reply:
    """The model's reply to `messages`. None leaves a parameter at the model's own value.

    A long reply is streamed where chat model and server can. The stream is closed as soon as it
    repeats itself without end over `loop_span` words, which frees the server for the next one; the
    reply says so. `repetition_penalty`, `stop` and `response_schema` (a JSON schema) are left out
    where chat model or server do not take them, so the reply still has to be checked.

    Requests to one server share its limiter. Where a server fails, it is waited for up to
    `patience_s` seconds before the error is raised, so that a retry finds it there again;
    `on_wait` is told of it. Whether it still serves the same model is asked when it came back, and
    after a reply where that was last asked more than `check_after_s` seconds ago.

    Raises the `ModelError`s of `translate`, and `RunChangedError` where the server serves another
    model now; any other exception passes untouched.
    """
    chat, keywords = _prepared(
        model,
        max_tokens,
        temperature,
        top_p,
        seed,
        repetition_penalty,
        stop=stop,
        response_schema=response_schema,
    )
    given = [dict(message) for message in messages]
    limiter = _limiter_of(model)
    hearing = _Hearing(model, loop_span, max_tokens)
    try:
        with limiter.slot() if limiter else contextlib.nullcontext():
            if _is_streamed(model, chat, max_tokens):
                chunks = cast("Generator[AIMessage]", chat.stream(given, config, **keywords))
                with _counting_empty_streams(model), contextlib.closing(chunks):
                    for chunk in chunks:
                        if hearing.take(chunk):
                            break
            if not hearing.has_begun:
                hearing.take(chat.invoke(given, config, **keywords))
        reply = hearing.reply()
    except Exception as error:
        failure = _failure(error, model, limiter)
        if failure is None:
            raise
        if _waits_for(model, failure, patience_s):
            with _in_vain():
                wait_until_healthy(_server(model), timeout_s=patience_s, on_wait=on_wait)
            model.check_unchanged()
        if failure is error:
            raise
        raise failure from error
    if limiter:
        limiter.succeeded()
    if _is_to_be_checked(model, check_after_s):
        _check(model)
    return reply


async def aask(
    model: ConnectedModel,
    messages: Sequence[Message],
    *,
    max_tokens: int,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    repetition_penalty: float | None = None,
    loop_span: int = SPAN,
    stop: Sequence[str] | None = None,
    response_schema: dict[str, Any] | None = None,
    config: RunnableConfig | None = None,
    patience_s: float = 0,
    on_wait: Callable[[Waiting], object] | None = None,
    check_after_s: float = CHECK_AFTER_S,
) -> Reply:
    """`ask`, without blocking the event loop."""
    chat, keywords = _prepared(
        model,
        max_tokens,
        temperature,
        top_p,
        seed,
        repetition_penalty,
        stop=stop,
        response_schema=response_schema,
    )
    given = [dict(message) for message in messages]
    limiter = _limiter_of(model)
    hearing = _Hearing(model, loop_span, max_tokens)
    try:
        async with limiter.aslot() if limiter else contextlib.nullcontext():
            if _is_streamed(model, chat, max_tokens):
                chunks = cast("AsyncGenerator[AIMessage]", chat.astream(given, config, **keywords))
                with _counting_empty_streams(model):
                    async with contextlib.aclosing(chunks):
                        async for chunk in chunks:
                            if hearing.take(chunk):
                                break
            if not hearing.has_begun:
                hearing.take(await chat.ainvoke(given, config, **keywords))
        reply = hearing.reply()
    except Exception as error:
        failure = _failure(error, model, limiter)
        if failure is None:
            raise
        if _waits_for(model, failure, patience_s):
            with _in_vain():
                await await_until_healthy(_server(model), timeout_s=patience_s, on_wait=on_wait)
            await asyncio.to_thread(model.check_unchanged)
        if failure is error:
            raise
        raise failure from error
    if limiter:
        limiter.succeeded()
    if _is_to_be_checked(model, check_after_s):
        await asyncio.to_thread(_check, model)
    return reply


def is_retryable(error: BaseException) -> bool:
    """Whether the same call may succeed later: for the `retry_on` of a LangGraph `RetryPolicy`."""
    found = translate(error) or error
    is_passing = isinstance(found, ModelUnavailableError | ModelOverloadedError)
    return is_passing and error not in _final


# --- streams ---

# A reply of fewer ends by itself soon enough; a loop is noticed after 500 to 3,000.
STREAM_FROM_TOKENS = 2_048
# One empty stream may be a server's bad moment; of a gateway that has no streams all are empty.
EMPTY_STREAMS_MAX = 2

_EMPTY_STREAM = "No generation chunks were returned"

_empty_streams: weakref.WeakKeyDictionary[ConnectedModel, int] = weakref.WeakKeyDictionary()


def _is_streamed(model: ConnectedModel, chat: BaseChatModel, max_tokens: int) -> bool:
    """Whether to ask for a stream; a chat model that has none gives its reply whole even so."""
    from langchain_core.globals import get_llm_cache

    # LangChain's cache of replies serves whole ones only.
    is_cached = bool(chat.cache) or (chat.cache is None and get_llm_cache() is not None)
    is_known_empty = _empty_streams.get(model, 0) >= EMPTY_STREAMS_MAX
    return max_tokens > STREAM_FROM_TOKENS and not is_cached and not is_known_empty


@contextlib.contextmanager
def _counting_empty_streams(model: ConnectedModel) -> Iterator[None]:
    """Passes over LangChain's error for a stream without chunks: the caller asks once more."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(_EMPTY_STREAM):
            raise
        _empty_streams[model] = _empty_streams.get(model, 0) + 1
    else:
        _empty_streams.pop(model, None)


# --- servers: how many requests at once, and waiting for one that restarts ---


# Raised by waiting in vain: a retry would wait as long again.
_final: weakref.WeakSet[BaseException] = weakref.WeakSet()

_limiters: weakref.WeakKeyDictionary[ConnectedModel, Limiter] = weakref.WeakKeyDictionary()


def _limiter_of(model: ConnectedModel) -> Limiter | None:
    """The limiter of the server that a model asks, None where there is no known server."""
    if model not in _limiters:
        server = server_of(model.chat)
        if server is None:
            return None
        # What a chat model of the user's can take is not known.
        limit = None if model.engine == "custom" else model.concurrency
        _limiters[model] = limiter_for(server, limit=limit)
    return _limiters[model]


def _server(model: ConnectedModel) -> str:
    return server_of(model.chat) or ""


def _failure(error: Exception, model: ConnectedModel, limiter: Limiter | None) -> ModelError | None:
    """What an error means, None for one that is no failure of a model; the limiter is told."""
    failure = error if isinstance(error, ModelError) else translate(error, model=model.model_name)
    if limiter is not None and failure is not None and _is_overload(error, failure):
        limiter.overloaded(retry_after_s(error))
    return failure


def _is_overload(error: Exception, failure: ModelError) -> bool:
    """Whether a failure tells of too many requests: 429, 503, or no answer in time."""
    if isinstance(failure, ModelOverloadedError):
        return True
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Exception) and _status(cause, _body(cause)) == 503:
            return True
        if isinstance(cause, TimeoutError) or "Timeout" in type(cause).__name__:
            return True
        cause = cause.__cause__
    return False


def _waits_for(model: ConnectedModel, failure: ModelError, patience_s: float) -> bool:
    """Whether the server may come back by itself; one in this process does not."""
    return (
        patience_s > 0
        and isinstance(failure, ModelUnavailableError)
        and model.release is None
        and server_of(model.chat) is not None
    )


_checked_at: weakref.WeakKeyDictionary[ConnectedModel, float] = weakref.WeakKeyDictionary()


def _is_to_be_checked(model: ConnectedModel, after_s: float) -> bool:
    now = time.monotonic()
    if now - _checked_at.setdefault(model, now) < after_s:
        return False
    _checked_at[model] = now
    return True


def _check(model: ConnectedModel) -> None:
    # A server too busy to say has just replied; it is asked again another time.
    with contextlib.suppress(ModelUnavailableError):
        model.check_unchanged()


@contextlib.contextmanager
def _in_vain() -> Iterator[None]:
    try:
        yield
    except ModelUnavailableError as error:
        _final.add(error)
        raise


# --- settings, and what each chat model calls them ---


# Chat models that forward keywords of a call to the server. Others may hand them to a client that
# knows no such argument, so theirs are set as fields of a copy instead.
_FORWARDS_KEYWORDS = frozenset({"BaseChatOpenAI", "ChatHuggingFace"})
_LIMIT_FIELDS = ("max_tokens", "max_output_tokens", "max_completion_tokens", "num_predict")
# What servers behind ChatOpenAI call the repetition penalty. Others may refuse an unknown field.
_PENALTY_FIELDS = {
    "llama.cpp": "repeat_penalty",
    "vllm": "repetition_penalty",
    "sglang": "repetition_penalty",
}
_PENALTY_NAMES = ("repetition_penalty", "repeat_penalty")


def _prepared(
    model: ConnectedModel,
    max_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    repetition_penalty: float | None,
    *,
    stop: Sequence[str] | None,
    response_schema: dict[str, Any] | None,
) -> tuple[BaseChatModel, dict[str, Any]]:
    """The chat model to call and the keywords to call it with: only those it takes."""
    chat = telling_thoughts(model.chat)
    wanted: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    wanted = {name: value for name, value in wanted.items() if value is not None}
    lineage = {cls.__name__ for cls in type(chat).__mro__}
    named = _named_parameters(type(chat))
    if "ChatTransformers" in lineage:
        named |= {"repetition_penalty"}
    fields = type(chat).model_fields
    if lineage & _FORWARDS_KEYWORDS:
        keywords = dict(wanted)
    else:
        keywords = {name: value for name, value in wanted.items() if name in named}
    if repetition_penalty is not None:
        known = [name for name in _PENALTY_NAMES if name in named or name in fields]
        wanted.update(dict.fromkeys(known[:1], repetition_penalty))
        keywords.update({name: repetition_penalty for name in known[:1] if name in named})
    extra: dict[str, Any] = {}
    if "BaseChatOpenAI" in lineage:
        if repetition_penalty is not None and model.engine in _PENALTY_FIELDS:
            extra[_PENALTY_FIELDS[model.engine]] = repetition_penalty
        if model.engine == TRANSFORMERS_SERVE:
            # It knows the older name only, and a stop string makes it fall silent.
            extra["max_tokens"] = max_tokens
            stop = None
        if response_schema is not None:
            # As its own argument it would make the client parse the reply, and raise where the
            # reply was cut.
            extra["response_format"] = _response_format(response_schema)
    elif response_schema is not None and "response_format" in named:
        keywords["response_format"] = _response_format(response_schema)
    if extra:
        keywords["extra_body"] = {**(getattr(chat, "extra_body", None) or {}), **extra}
    changed = {
        name: value for name, value in wanted.items() if name not in keywords and name in fields
    }
    if "max_tokens" not in keywords:
        changed.update({name: max_tokens for name in _LIMIT_FIELDS if name in fields})
    keywords["stop"] = list(stop) if stop else None
    return (chat.model_copy(update=changed) if changed else chat), keywords


def _response_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }


@lru_cache(maxsize=64)
def _named_parameters(chat_class: type[BaseChatModel]) -> frozenset[str]:
    return frozenset(inspect.signature(chat_class._generate).parameters)


# --- replies ---

_LIMIT_REASONS = frozenset({"length", "max_tokens", "MAX_TOKENS", "model_length"})
# "done" is Ollama's, True at the end.
_REASON_KEYS = ("finish_reason", "stop_reason", "done_reason", "done")


class _Hearing:
    """Takes a reply, whole or in the chunks of a stream, and listens for repetition."""

    def __init__(self, model: ConnectedModel, loop_span: int, max_tokens: int) -> None:
        self._model = model
        self._max_tokens = max_tokens
        self._detector = RepetitionDetector(span=loop_span)
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._usage: UsageMetadata | None = None
        self._reasons: set[object] = set()
        self._is_thinking_cut = False

    @property
    def has_begun(self) -> bool:
        """Whether anything was taken."""
        return bool(self._texts)

    def take(self, message: AIMessage) -> bool:
        """Whether it is heard enough: what is still to come would repeat what was said."""
        text = message.content if isinstance(message.content, str) else str(message.text)
        thoughts = thoughts_of(message)
        self._texts.append(text)
        self._thoughts.append(thoughts)
        metadata = message.response_metadata
        if metadata:
            told = (metadata.get(key) for key in _REASON_KEYS)
            self._reasons.update(reason for reason in told if reason)
            self._is_thinking_cut |= metadata.get("is_thinking_cut") is True
        if message.usage_metadata:
            self._usage = _sum(self._usage, message.usage_metadata)
        return self._detector.feed(thoughts + text if thoughts else text)

    def reply(self) -> Reply:
        """The reply as far as it was taken.

        Raises `ModelUnavailableError` where it broke off.
        """
        is_truncated = not self._reasons.isdisjoint(_LIMIT_REASONS)
        # What ended by itself was no loop, however monotonous.
        is_loop = self._detector.is_loop and (is_truncated or not self._reasons)
        if not self._reasons and not is_loop and _tells_reason(self._model.chat):
            # A stream that the server closes early looks like a success to the client library.
            raise ModelUnavailableError(
                f"Calling {self._model.model_name}: the reply broke off before its end. "
                "Check that the server is up and not restarting, then try again."
            )
        is_truncated = is_truncated or self._fills_limit()
        split = split_thoughts("".join(self._texts))
        thoughts = "\n".join(part for part in ("".join(self._thoughts), split.thoughts) if part)
        usage = self._usage
        told = usage.get("output_token_details", {}).get("reasoning") if usage else None
        is_silent = not split.answer and (is_truncated or is_loop) and bool(thoughts or told)
        return Reply(
            text=split.answer,
            is_truncated=is_truncated,
            input_tokens=usage["input_tokens"] if usage else None,
            output_tokens=usage["output_tokens"] if usage else None,
            thoughts=thoughts,
            # A server that splits thoughts off need not count them.
            reasoning_tokens=told or (None if thoughts else 0),
            is_thinking_cut=self._is_thinking_cut or split.is_open or is_silent,
            is_loop=is_loop,
        )

    def _fills_limit(self) -> bool:
        """Whether a reply is as long as it may be, of a server that says of each that it ended."""
        if self._model.engine != TRANSFORMERS_SERVE or not self._texts:
            return False
        tokens = self._model.count_tokens("".join([*self._thoughts, *self._texts]))
        # A text need not be cut into the tokens again that it was made of.
        return tokens >= self._max_tokens - self._max_tokens // 50


def _sum(left: UsageMetadata | None, right: UsageMetadata) -> UsageMetadata:
    from langchain_core.messages.ai import add_usage

    return add_usage(left, right)


def _tells_reason(chat: BaseChatModel) -> bool:
    """Whether a chat model tells why a reply ended, always."""
    names = {cls.__name__ for cls in type(chat).__mro__}
    is_endpoint = type(getattr(chat, "llm", None)).__name__ == "HuggingFaceEndpoint"
    return bool(names & {"BaseChatOpenAI", "ChatOllama"}) or is_endpoint


# --- errors ---

_UNAVAILABLE_STATUS = frozenset({408, 424, 425})
_OVERLOADED_STATUS = frozenset({429, 529})

_OVERFLOW = re.compile(
    r"exceed_context_size|context_length_exceeded|maximum (?:context|model) length"
    r"|exceeds? the (?:available |maximum )?context|`inputs` (?:must have less than|tokens \+)"
    r"|(?:prompt|input) is too long",
    re.IGNORECASE,
)
_OVERLOAD = re.compile(r"overloaded|rate.?limit|too many requests", re.IGNORECASE)

# By package and class name; the most derived class that is listed decides.
_BY_NAME: dict[str, type[ModelError]] = {
    "builtins.ConnectionError": ModelUnavailableError,
    "builtins.TimeoutError": ModelUnavailableError,
    "socket.gaierror": ModelUnavailableError,
    "ssl.SSLError": ModelUnavailableError,
    "json.JSONDecodeError": ModelUnavailableError,
    "langgraph.NodeTimeoutError": ModelUnavailableError,
    "openai.OpenAIError": ModelRefusedError,
    "openai.APIError": ModelUnavailableError,
    "openai.WebSocketConnectionClosedError": ModelUnavailableError,
    "openai.WebSocketQueueFullError": ModelOverloadedError,
    "langchain_core.ModelError": ModelRefusedError,
    "langchain_core.ModelAPIError": ModelUnavailableError,
    "langchain_core.ModelConnectionError": ModelUnavailableError,
    "langchain_core.ModelTimeoutError": ModelUnavailableError,
    "langchain_core.ModelRateLimitError": ModelOverloadedError,
    "langchain_core.ContextOverflowError": ContextOverflowError,
    "huggingface_hub.HfHubHTTPError": ModelUnavailableError,
    "huggingface_hub.InferenceTimeoutError": ModelUnavailableError,
    "huggingface_hub.OverloadedError": ModelOverloadedError,
    "huggingface_hub.TextGenerationError": ModelUnavailableError,
    "huggingface_hub.ValidationError": ModelRefusedError,
    # Without a status it is an error inside a stream.
    "ollama.ResponseError": ModelUnavailableError,
    "requests.RequestException": ModelUnavailableError,
    "requests.InvalidURL": ModelRefusedError,
    "requests.InvalidSchema": ModelRefusedError,
    "requests.MissingSchema": ModelRefusedError,
    "aiohttp.ClientError": ModelUnavailableError,
    "aiohttp.InvalidURL": ModelRefusedError,
} | {
    f"{package}.{name}": error
    for package in ("httpx", "httpx2")
    for name, error in {
        "HTTPError": ModelUnavailableError,
        "StreamError": ModelUnavailableError,
        "UnsupportedProtocol": ModelRefusedError,
        "TooManyRedirects": ModelRefusedError,
        "InvalidURL": ModelRefusedError,
        "CookieConflict": ModelRefusedError,
    }.items()
}


def translate(error: BaseException, *, model: str = "the model") -> ModelError | None:
    """The `ModelError` that says what `error` means, or None where it is not a server's failure.

    The server's own words are left out of the message, because a server may quote the prompt;
    raise the result `from error` to keep them within reach.
    """
    if isinstance(error, ModelError) or not isinstance(error, Exception):
        return None
    body = _body(error)
    words = _words(error, body)
    status = _status(error, body)
    kind = _kind(error, status, words)
    if kind is None:
        return None
    found = f"HTTP {status}" if status else type(error).__name__
    label = next((body[key] for key in ("type", "code") if _is_label(body.get(key))), None)
    if label is not None:
        found = f"{found}, {label}"
    return kind(f"Calling {model} failed ({found}): {_advice(kind, status, body)}")


def _kind(error: Exception, status: int | None, words: str) -> type[ModelError] | None:
    names = [f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(error).__mro__]
    by_name = next((_BY_NAME[name] for name in names if name in _BY_NAME), None)
    if by_name is ContextOverflowError:
        return by_name
    if by_name is None and _is_malformed_answer(error):
        by_name = ModelUnavailableError
    if status is not None:
        if status in _OVERLOADED_STATUS:
            return ModelOverloadedError
        if _OVERFLOW.search(words) and status not in {401, 403, 404}:
            return ContextOverflowError
        if status >= 500 or status in _UNAVAILABLE_STATUS:
            return ModelUnavailableError
        return ModelRefusedError
    # An error inside a stream that began well carries no status.
    if by_name is ModelUnavailableError and _OVERFLOW.search(words):
        return ContextOverflowError
    if by_name is ModelUnavailableError and _OVERLOAD.search(words):
        return ModelOverloadedError
    return by_name


_NO_ANSWER = (
    "Unexpected response type",  # langchain-openai
    "No generations found in stream",  # langchain-core, where `invoke` streams inside
    "No data received from Ollama stream",  # langchain-ollama
)


def _is_malformed_answer(error: Exception) -> bool:
    """How LangChain's adapters report an answer of status 200 that is none, or is empty."""
    first = error.args[0] if error.args else None
    if type(error) is ValueError:
        is_error_body = isinstance(first, dict) and "message" in first
        return is_error_body or str(error).startswith(_NO_ANSWER)
    return (
        type(error) in {TypeError, KeyError}
        and "esponse" in str(first)
        and "'choices'" in str(first)
    )


def _status(error: Exception, body: dict[str, Any]) -> int | None:
    response = getattr(error, "response", None)
    for found in (
        getattr(error, "status_code", None),
        getattr(response, "status_code", None),
        getattr(error, "status", None),
        body.get("code"),
    ):
        if isinstance(found, int) and 300 <= found <= 599:
            return found
    return None


def _body(error: Exception) -> dict[str, Any]:
    """The error object of the server's answer, where there is one."""
    candidates: list[object] = [getattr(error, "body", None)]
    candidates.append(getattr(error, "response_error_payload", None))
    # An answer of status 200 that holds an error: langchain-openai raises ValueError(that object).
    if type(error) is ValueError and error.args:
        candidates.append(error.args[0])
    response = getattr(error, "response", None)
    if response is not None and hasattr(response, "json"):
        # An unread stream, or no JSON.
        with contextlib.suppress(RuntimeError, ValueError, TypeError):
            candidates.append(response.json())
    for candidate in candidates:
        if isinstance(candidate, dict):
            inner = candidate.get("error", candidate)
            return inner if isinstance(inner, dict) else {**candidate, "message": inner}
    return {}


def _words(error: Exception, body: dict[str, Any]) -> str:
    if body:
        return " ".join(str(body.get(key, "")) for key in ("message", "type", "code", "error_type"))
    return str(error)[:500]


def _is_label(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.-]{1,60}", value) is not None


def _advice(kind: type[ModelError], status: int | None, body: dict[str, Any]) -> str:
    if kind is ContextOverflowError:
        prompt, window = body.get("n_prompt_tokens"), body.get("n_ctx")
        if isinstance(prompt, int) and isinstance(window, int):
            return (
                f"the prompt has {prompt:,} tokens and the window {window:,}. "
                "Use smaller chunks or a larger window."
            )
        return "the prompt does not fit the model's window. Use smaller chunks or a larger window."
    if kind is ModelOverloadedError:
        return "the server is over its limit. Try again later, or with fewer requests at once."
    if kind is ModelUnavailableError:
        return "the server did not answer properly. Check that it is up and not restarting."
    if status in {401, 403}:
        return "the server refuses the key. Pass the right one as api_key."
    if status == 404:
        return "the server knows no such model or address. Check both."
    return "the server refuses this request, and will refuse it again. Check model and settings."
