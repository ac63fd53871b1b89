"""TGI's answers as JSON: pure functions, in the order of fields that TGI has."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from qwenlong_graph.testing.tgi.generation import End, Limits
from qwenlong_graph.testing.tgi.tokens import Place, Token

__all__ = [
    "ROUTER_VERSION",
    "chat_chunk",
    "chat_completion",
    "chat_error",
    "encoded",
    "error",
    "event",
    "generation",
    "info",
    "models",
    "places",
    "prefill",
    "stream_event",
    "tool_call",
    "usage_chunk",
]

ROUTER_VERSION = "3.3.6-dev0"
"""What release 3.3.7 says of itself."""

_FINGERPRINT = f"{ROUTER_VERSION}-native"
_LOGPROB = -0.25


def encoded(body: Any) -> bytes:
    """JSON as Rust writes it: no spaces, nothing escaped that need not be."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def event(data: bytes) -> bytes:
    """One event of a stream."""
    return b"data: " + data + b"\n\n"


def error(error_type: str, message: str) -> dict[str, Any]:
    """The body of every error, and the data of one in a stream."""
    return {"error": message, "error_type": error_type}


def chat_error(message: str) -> dict[str, Any]:
    """An error in a chat stream, which has this status whatever its cause."""
    return {"error": {"message": message, "http_status_code": 422}}


def info(model_id: str, limits: Limits, *, concurrent_requests: int) -> dict[str, Any]:
    """`/info`."""
    return {
        "model_id": model_id,
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": concurrent_requests,
        "max_best_of": 1,
        "max_stop_sequences": limits.max_stop_sequences,
        "max_input_tokens": limits.max_input_tokens,
        "max_total_tokens": limits.max_total_tokens,
        "validation_workers": 2,
        "max_client_batch_size": 4,
        "router": "text-generation-router",
        "version": ROUTER_VERSION,
        "sha": None,
        "docker_label": None,
    }


def models(model_id: str) -> dict[str, Any]:
    """`/v1/models`, which the OpenAPI document describes as a single entry."""
    entry = {"id": model_id, "object": "model", "created": 0, "owned_by": model_id}
    return {"object": "list", "data": [entry]}


def places(text: str, found: Sequence[Place]) -> list[dict[str, Any]]:
    """`/tokenize`."""
    return [
        {
            "id": place.id,
            "text": text[place.start : place.stop],
            "start": place.start,
            "stop": place.stop,
        }
        for place in found
    ]


def prefill(text: str, found: Sequence[Place]) -> list[dict[str, Any]]:
    """The tokens of the prompt, in the details of `/generate`; the first has no probability."""
    return [
        {
            "id": place.id,
            "text": text[place.start : place.stop],
            "logprob": _LOGPROB if index else None,
        }
        for index, place in enumerate(found)
    ]


def generation(
    tokens: Sequence[Token],
    end: End,
    *,
    has_details: bool,
    seed: int | None,
    prefill: Sequence[Mapping[str, Any]] = (),
    before: str = "",
) -> dict[str, Any]:
    """`/generate`; `before` is the prompt where the full text was asked for."""
    details = {
        "finish_reason": end.reason,
        "generated_tokens": end.tokens,
        "seed": seed,
        "prefill": list(prefill),
        "tokens": [_token(token) for token in tokens],
    }
    return {"generated_text": before + end.text, "details": details if has_details else None}


def stream_event(
    index: int,
    token: Token,
    end: End | None,
    *,
    has_details: bool,
    seed: int | None,
    before: str = "",
) -> dict[str, Any]:
    """An event of `/generate_stream`; the one with `end` is the last."""
    details = None
    if end is not None and has_details:
        details = {
            "finish_reason": end.reason,
            "generated_tokens": end.tokens,
            "seed": seed,
            "input_length": end.input_tokens,
        }
    return {
        "index": index,
        "token": _token(token),
        "generated_text": None if end is None else before + end.text,
        "details": details,
    }


def chat_completion(message: Mapping[str, Any], end: End, *, model: str) -> dict[str, Any]:
    """`/v1/chat/completions`."""
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": _chat_reason(end),
    }
    return {
        "object": "chat.completion",
        "id": "",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": _FINGERPRINT,
        "choices": [choice],
        "usage": _usage(end),
    }


def chat_chunk(delta: Mapping[str, Any], end: End | None, *, model: str) -> dict[str, Any]:
    """An event of a chat stream."""
    choice = {
        "index": 0,
        "delta": delta,
        "logprobs": None,
        "finish_reason": None if end is None else _chat_reason(end),
    }
    return _chunk([choice], None, model=model)


def usage_chunk(end: End, *, model: str) -> dict[str, Any]:
    """The event after the last one of a chat stream, where usage was asked for."""
    return _chunk([], _usage(end), model=model)


def tool_call(text: str) -> dict[str, Any] | None:
    """The call in a reply that has the form of TGI's tool grammar, None where it has another.

    That form is `{"function": {"_name": ..., and the arguments}}`.
    """
    try:
        read = json.loads(text)
    except ValueError:
        return None
    function = read.get("function") if isinstance(read, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("_name"), str):
        return None
    arguments = {name: value for name, value in function.items() if name != "_name"}
    return {"name": function["_name"], "arguments": arguments}


def _token(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "text": token.text,
        "logprob": _LOGPROB,
        "special": token.is_special,
    }


def _chunk(
    choices: list[dict[str, Any]], usage: Mapping[str, Any] | None, *, model: str
) -> dict[str, Any]:
    return {
        "object": "chat.completion.chunk",
        "id": "",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": _FINGERPRINT,
        "choices": choices,
        "usage": usage,
    }


def _chat_reason(end: End) -> str:
    return "stop" if end.reason == "eos_token" else end.reason


def _usage(end: End) -> dict[str, int]:
    return {
        "prompt_tokens": end.input_tokens,
        "completion_tokens": end.tokens,
        "total_tokens": end.input_tokens + end.tokens,
    }
