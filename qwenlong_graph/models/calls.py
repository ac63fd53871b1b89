"""The one place that calls a chat model, and turns its library's errors into ours.

Libraries are told apart by the names of their exception classes, so that none has to be imported
to translate an error of another.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from qwenlong_graph.errors import (
    ContextOverflowError,
    ModelError,
    ModelOverloadedError,
    ModelRefusedError,
    ModelUnavailableError,
)
from qwenlong_graph.reading.loop import Reply
from qwenlong_graph.types import Message

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.runnables import RunnableConfig

    from qwenlong_graph.models.connect import ConnectedModel

__all__ = ["aask", "ask", "is_retryable", "translate"]


def ask(
    model: ConnectedModel,
    messages: Sequence[Message],
    *,
    max_tokens: int,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Sequence[str] | None = None,
    response_schema: dict[str, Any] | None = None,
    config: RunnableConfig | None = None,
) -> Reply:
    """The model's reply to `messages`. None leaves a parameter at the model's own value.

    `response_schema` (a JSON schema) constrains the reply where the chat model can; elsewhere it
    is left out, so the reply still has to be checked. Raises the `ModelError`s of `translate`;
    any other exception passes untouched.
    """
    chat, keywords = _prepared(
        model.chat, max_tokens, temperature, top_p, seed, response_schema=response_schema
    )
    try:
        message = chat.invoke(
            [dict(message) for message in messages],
            config,
            stop=list(stop) if stop else None,
            **keywords,
        )
    except Exception as error:
        translated = translate(error, model=model.model_name)
        if translated is None:
            raise
        raise translated from error
    return _reply(message, model)


async def aask(
    model: ConnectedModel,
    messages: Sequence[Message],
    *,
    max_tokens: int,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Sequence[str] | None = None,
    response_schema: dict[str, Any] | None = None,
    config: RunnableConfig | None = None,
) -> Reply:
    """`ask`, without blocking the event loop."""
    chat, keywords = _prepared(
        model.chat, max_tokens, temperature, top_p, seed, response_schema=response_schema
    )
    try:
        message = await chat.ainvoke(
            [dict(message) for message in messages],
            config,
            stop=list(stop) if stop else None,
            **keywords,
        )
    except Exception as error:
        translated = translate(error, model=model.model_name)
        if translated is None:
            raise
        raise translated from error
    return _reply(message, model)


def is_retryable(error: BaseException) -> bool:
    """Whether the same call may succeed later: for the `retry_on` of a LangGraph `RetryPolicy`."""
    found = translate(error) or error
    return isinstance(found, ModelUnavailableError | ModelOverloadedError)


# Chat models that forward keywords of a call to the server. Others may hand them to a client that
# knows no such argument, so theirs are set as fields of a copy instead.
_FORWARDS_KEYWORDS = frozenset({"BaseChatOpenAI", "ChatHuggingFace"})
_LIMIT_FIELDS = ("max_tokens", "max_output_tokens", "max_completion_tokens", "num_predict")


def _prepared(
    chat: BaseChatModel,
    max_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    *,
    response_schema: dict[str, Any] | None,
) -> tuple[BaseChatModel, dict[str, Any]]:
    """The chat model to call and the keywords to call it with: only those it takes."""
    wanted: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    wanted = {name: value for name, value in wanted.items() if value is not None}
    lineage = {cls.__name__ for cls in type(chat).__mro__}
    named = _named_parameters(type(chat))
    if lineage & _FORWARDS_KEYWORDS:
        keywords = wanted
    else:
        keywords = {name: value for name, value in wanted.items() if name in named}
    if response_schema is not None:
        response_format = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": response_schema, "strict": True},
        }
        if "BaseChatOpenAI" in lineage:
            # As its own argument it would make the client parse the reply, and raise where the
            # reply was cut.
            keywords = {**keywords, "extra_body": {"response_format": response_format}}
        elif "response_format" in named:
            keywords = {**keywords, "response_format": response_format}
    fields = type(chat).model_fields
    changed = {
        name: value for name, value in wanted.items() if name not in keywords and name in fields
    }
    if "max_tokens" not in keywords:
        changed.update({name: max_tokens for name in _LIMIT_FIELDS if name in fields})
    return (chat.model_copy(update=changed) if changed else chat), keywords


@lru_cache(maxsize=64)
def _named_parameters(chat_class: type[BaseChatModel]) -> frozenset[str]:
    return frozenset(inspect.signature(chat_class._generate).parameters)


_LIMIT_REASONS = frozenset({"length", "max_tokens", "MAX_TOKENS", "model_length"})
_REASON_KEYS = ("finish_reason", "stop_reason", "done_reason")


def _reply(message: AIMessage, model: ConnectedModel) -> Reply:
    reasons = [message.response_metadata.get(key) for key in _REASON_KEYS]
    if not any(reasons) and _speaks_openai(model.chat):
        # A stream that the server closes early looks like a success to the client library.
        raise ModelUnavailableError(
            f"Calling {model.model_name}: the reply broke off before its end. "
            "Check that the server is up and not restarting, then try again."
        )
    usage = message.usage_metadata
    return Reply(
        text=str(message.text),
        input_tokens=usage["input_tokens"] if usage else None,
        output_tokens=usage["output_tokens"] if usage else None,
        is_truncated=any(reason in _LIMIT_REASONS for reason in reasons),
    )


def _speaks_openai(chat: BaseChatModel) -> bool:
    return any(cls.__name__ == "BaseChatOpenAI" for cls in type(chat).__mro__)


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


def _is_malformed_answer(error: Exception) -> bool:
    """How langchain-openai reports a body of status 200 that is no chat completion."""
    first = error.args[0] if error.args else None
    if type(error) is ValueError:
        is_error_body = isinstance(first, dict) and "message" in first
        return is_error_body or str(error).startswith("Unexpected response type")
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
        if isinstance(found, int) and 400 <= found <= 599:
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
