"""From a request's bytes to what is to be generated, as TGI reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qwenlong_graph.testing.tgi.connection import Scope
from qwenlong_graph.testing.tgi.contract import misfit
from qwenlong_graph.testing.tgi.generation import Refusal
from qwenlong_graph.testing.tgi.tokens import Vocabulary

__all__ = ["SCHEMAS", "Task", "Unreadable", "read_body", "task_of"]

SCHEMAS: Mapping[str, str] = {
    "/": "CompatGenerateRequest",
    "/generate": "GenerateRequest",
    "/generate_stream": "GenerateRequest",
    "/tokenize": "GenerateRequest",
    "/v1/chat/completions": "ChatRequest",
    "/chat_tokenize": "ChatRequest",
}
"""The name of the request's body in the OpenAPI document, by path."""


class Unreadable(Exception):
    """A request that does not get as far as TGI's own checks: plain text, not its error body."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True)
class Task:
    """What is to be generated; the parameters are those of `/generate`.

    The rest says how a chat wants it told. `model` is the name to answer under.
    """

    inputs: str
    parameters: Mapping[str, Any]
    is_stream: bool = False
    is_chat: bool = False
    model: str = ""
    has_usage: bool = False
    has_tools: bool = False

    @property
    def adds_special_tokens(self) -> bool:
        """A chat template writes the special tokens itself.

        No request decides it: TGI has a field of this name, and does not read it from the body.
        """
        return not self.is_chat


def read_body(scope: Scope, content: bytes, *, limit: int) -> dict[str, Any]:
    """The request's JSON; raises `Unreadable` where it is none, or of the wrong types."""
    kinds = [text for name, text in scope["headers"] if name.lower() == b"content-type"]
    if not any(kind.split(b";")[0].strip() == b"application/json" for kind in kinds):
        raise Unreadable(415, "Expected request with `Content-Type: application/json`")
    if len(content) > limit:
        raise Unreadable(413, "Failed to buffer the request body: length limit exceeded")
    try:
        body = json.loads(content)
    except ValueError as error:
        raise Unreadable(400, f"Failed to parse the request body as JSON: {error}") from error
    wrong = misfit(body, SCHEMAS[scope["path"]])
    if wrong is not None:
        message = f"Failed to deserialize the JSON body into the target type: {wrong}"
        raise Unreadable(422, message)
    found: dict[str, Any] = body
    return found


def task_of(path: str, body: Mapping[str, Any], vocabulary: Vocabulary, *, model_id: str) -> Task:
    """What a body that could be read asks for; raises TGI's `Refusal` of a chat it cannot take."""
    if SCHEMAS[path] == "ChatRequest":
        task = _chat_task(body, vocabulary)
        model = body.get("model")
        return replace(task, model=model_id if model in {None, "tgi"} else model)
    is_stream = path == "/generate_stream" or bool(body.get("stream"))
    return Task(body["inputs"], body.get("parameters") or {}, is_stream=is_stream)


def _chat_task(body: Mapping[str, Any], vocabulary: Vocabulary) -> Task:
    get = body.get
    if get("response_format") is not None and get("tools") is not None:
        raise Refusal("tool_error", "Tool error: Grammar and tools are mutually exclusive")
    tools = get("tools") if get("tool_choice") != "none" else None
    messages = [{**message, "content": _text(message)} for message in body["messages"]]
    try:
        inputs = vocabulary.prompt(messages, tools)
    except ValueError as error:
        raise Refusal("template_error", f"Template error: {error}") from error
    presence_penalty = get("presence_penalty")
    names = ("max_tokens", "max_completion_tokens")  # the second is an alias
    limits = [body[name] for name in names if get(name) is not None]
    parameters = {
        # Only in a chat does 0 mean greedy.
        "temperature": get("temperature") or None,
        "do_sample": get("temperature") != 0,
        # So TGI has it: a presence penalty of 0 becomes a repetition penalty of 2.
        "repetition_penalty": None if presence_penalty is None else presence_penalty + 2.0,
        "frequency_penalty": get("frequency_penalty"),
        "top_p": get("top_p"),
        "max_new_tokens": limits[0] if limits else None,
        "stop": get("stop"),
        "seed": get("seed"),
        "top_n_tokens": get("top_logprobs"),
        "grammar": get("response_format"),
        "details": True,
    }
    return Task(
        inputs,
        parameters,
        is_stream=bool(get("stream")),
        is_chat=True,
        has_usage=bool((get("stream_options") or {}).get("include_usage")),
        has_tools=bool(tools),
    )


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    if content is None and message.get("tool_calls"):
        return json.dumps(message["tool_calls"])
    return content or ""
