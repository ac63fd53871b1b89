"""The LangChain chat model for each engine, set up for long requests and a secret key."""

from __future__ import annotations

from collections.abc import Generator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import httpx
from pydantic import SecretStr

from qwenlong_graph.errors import MissingExtraError
from qwenlong_graph.models.calls import TRANSFORMERS_SERVE
from qwenlong_graph.models.discovery import ServerFacts
from qwenlong_graph.models.server import CONNECT_TIMEOUT_S, Server, direct_mounts

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

__all__ = ["Bearer", "chat_for", "require", "require_adapter"]


class Bearer(httpx.Auth):
    """Sends a key, or none, and never the one that a library found in the environment.

    As an object it shows the key to nobody; a header among a chat model's settings would be
    printed with them, and sent to LangSmith.
    """

    def __init__(self, api_key: str | None) -> None:
        self._api_key = api_key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """httpx's hook: sets or removes the header of one request."""
        request.headers.pop("Authorization", None)
        if self._api_key:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        yield request


def require(module: str, feature: str, *, extra: str) -> None:
    """Raises `MissingExtraError` unless `module` can be imported."""
    try:
        import_module(module)
    except ImportError as error:
        raise MissingExtraError(feature, extra) from error


def require_adapter(server: Server, facts: ServerFacts) -> None:
    """Raises `MissingExtraError` where the library for this engine is not installed."""
    if facts.engine == "ollama":
        require("langchain_ollama", f"Talking to Ollama at {server.url}", extra="ollama")
    elif facts.engine != "tgi":
        require("langchain_openai", f"Talking to {server.url}", extra="openai")


def chat_for(
    server: Server, facts: ServerFacts, *, window: int, tokenizer: str | None, timeout_s: float
) -> BaseChatModel:
    """The chat model for a server, without retries of its own and with redirects refused.

    `window` is in tokens; `tokenizer` is the folder of the model's tokenizer.
    """
    if facts.engine == "tgi":
        from qwenlong_graph.models.tgi import ChatTGI

        return ChatTGI(
            base_url=server.url,
            api_key=SecretStr(server.api_key) if server.api_key else None,
            tokenizer=tokenizer,
            model_name=facts.model_name,
            token_timeout_s=timeout_s,
        )
    if facts.engine == "ollama":
        return _chat_ollama(server, facts, window=window, timeout_s=timeout_s)
    return _chat_openai(server, facts, timeout_s=timeout_s)


def _chat_openai(server: Server, facts: ServerFacts, *, timeout_s: float) -> BaseChatModel:
    import openai
    from langchain_openai import ChatOpenAI

    # No connection is kept: one opened in an event loop is dead in the next `asyncio.run`, and
    # a model's reply takes far longer than opening another.
    limits = type(openai.DEFAULT_CONNECTION_LIMITS)(max_keepalive_connections=0)
    timeout = openai.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
    shared: dict[str, Any] = {
        "limits": limits,
        "timeout": timeout,
        "mounts": direct_mounts(server.url),
        "follow_redirects": False,
    }
    # Newer releases end an async stream after 120 s without a token, which reading a long prompt
    # takes; older ones do not know the setting.
    is_known = "stream_chunk_timeout" in ChatOpenAI.model_fields
    more: dict[str, Any] = {"stream_chunk_timeout": timeout_s} if is_known else {}
    if facts.engine == TRANSFORMERS_SERVE:
        more["streaming"] = True  # False, where it is given, would forbid streams
    chat = ChatOpenAI(
        model=facts.model_name,
        base_url=f"{server.url}/v1",
        # Without a key of its own the client library would send the one of the environment.
        api_key=SecretStr(server.api_key or "none"),
        openai_proxy=None,
        timeout=timeout,
        max_retries=0,
        stream_usage=True,
        use_responses_api=False,
        http_client=openai.DefaultHttpxClient(**shared),
        http_async_client=openai.DefaultAsyncHttpxClient(**shared),
        **more,
    )
    # The environment's organisation and project are those of another server.
    for client in (chat.root_client, chat.root_async_client):
        client.organization = client.project = None
    return chat


def _chat_ollama(
    server: Server, facts: ServerFacts, *, window: int, timeout_s: float
) -> BaseChatModel:
    """Ollama's own protocol: its OpenAI-compatible one cannot set the window."""
    from langchain_ollama import ChatOllama

    return ChatOllama(
        model=facts.model_name,
        base_url=server.url,
        num_ctx=window,
        # None would leave thoughts in the text, and True is refused by models without them.
        reasoning=True if facts.has_thoughts else None,
        client_kwargs={
            "auth": Bearer(server.api_key),
            "follow_redirects": False,
            "limits": httpx.Limits(max_keepalive_connections=0),
            "mounts": direct_mounts(server.url),
            "timeout": httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
        },
    )
