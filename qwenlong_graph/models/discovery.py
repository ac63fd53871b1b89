"""Asking a server what it is: which engine, which model, how large a window, how many at once.

Each engine has one function that asks it in its own words, and gives None where the server is
something else. Nothing is guessed: what a server does not tell is None in what is found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from qwenlong_graph.errors import ConnectionSetupError, ModelUnavailableError, SettingsError
from qwenlong_graph.models.calls import TRANSFORMERS_SERVE, translate
from qwenlong_graph.models.server import Server, json_object
from qwenlong_graph.models.tokenizer import (
    COMMON_SPECIAL_TOKENS,
    PROBE_TEXT,
    TWICE_PROBED,
    template_markers,
)
from qwenlong_graph.reading.budget import sliced_window

if TYPE_CHECKING:
    import httpx

__all__ = ["ServerFacts", "discover"]

# Requests at once that a server of unknown capacity is trusted with.
UNKNOWN_CONCURRENCY = 4
TGI_SLICE_TOKENS = 1_024


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """What a server told about itself.

    `window` is what it uses unless told otherwise, `window_max` what can be asked for; both in
    tokens of prompt plus output of one request. `identity` names the model more exactly than
    `model_name` where the server tells more, and `identify` asks for it again. `count` counts raw
    text. `probe_count` gives the server's count of `PROBE_TEXT` for a window, None where it does
    not tell; `probes_twice` says that it is the second of two such texts that was counted.
    `tokenizer_source` is the folder or hub id that the server loaded, where that has to be here.
    """

    engine: str
    model_name: str
    identity: str
    identify: Callable[[], str] = field(repr=False)
    version: str = ""
    window: int | None = None
    window_max: int | None = None
    concurrency: int = UNKNOWN_CONCURRENCY
    count: Callable[[str], int] | None = field(default=None, repr=False)
    probe_count: Callable[[int], int | None] = field(repr=False)
    probes_twice: bool = False
    special_tokens: tuple[str, ...] = COMMON_SPECIAL_TOKENS
    template_tokens: int = 0
    tokenizer_source: str | None = None
    has_thoughts: bool = False
    notes: tuple[str, ...] = ()


def discover(server: Server, *, model: str | None = None, timeout_s: float = 600) -> ServerFacts:
    """What `server` is; `model` chooses among several.

    `timeout_s` is how long a server may take to load its model. Raises `ConnectionSetupError`
    where no usable model server answers, and `SettingsError` where a model has to be chosen or
    cannot follow instructions.
    """
    return (
        _tgi(server, model)
        or _llama_cpp(server, model)
        or _ollama(server, model, timeout_s)
        or _openai_compatible(server, model, timeout_s)
    )


# --- TGI ---


def _tgi(server: Server, model: str | None) -> ServerFacts | None:
    info = server.json("/info") or {}
    name = info.get("model_id")
    total, limit = _positive(info.get("max_total_tokens")), _positive(info.get("max_input_tokens"))
    if not isinstance(name, str) or total is None or limit is None:
        return None
    if model not in {None, name, "tgi"}:
        raise _not_served(server, str(model), [name])
    window = sliced_window(total_tokens=total, input_tokens=limit, slice_tokens=TGI_SLICE_TOKENS)
    notes = []
    if limit < total - TGI_SLICE_TOKENS:
        notes.append(
            f"TGI ends a reply where prompt and output reach {limit:,} tokens, and was started "
            f"for {total:,}. Start it with --max-input-tokens {total - TGI_SLICE_TOKENS}."
        )
    return ServerFacts(
        engine="tgi",
        model_name=name,
        identity=_tgi_identity(info),
        identify=lambda: _tgi_identity(server.json("/info") or {}),
        version=_text(info.get("version")),
        window=window,
        window_max=window,
        concurrency=_positive(info.get("max_concurrent_requests")) or UNKNOWN_CONCURRENCY,
        probe_count=lambda window: _tgi_probe_count(server),
        tokenizer_source=name,
        notes=tuple(notes),
    )


def _tgi_identity(info: Mapping[str, Any]) -> str:
    return "@".join(_text(info[key]) for key in ("model_id", "model_sha") if info.get(key))


def _tgi_probe_count(server: Server) -> int | None:
    response = server.ask("/tokenize", {"inputs": PROBE_TEXT})
    if response.is_error:
        return None
    try:
        found = response.json()
    except ValueError:
        return None
    return len(found) if isinstance(found, list) else None


# --- llama.cpp ---


def _llama_cpp(server: Server, model: str | None) -> ServerFacts | None:
    properties = server.json("/props") or {}
    settings = properties.get("default_generation_settings")
    window = _positive(settings.get("n_ctx")) if isinstance(settings, dict) else None
    if window is None:
        return None
    count = _TokenCounter(server, partial(_llama_cpp_tokens, server))
    return ServerFacts(
        engine="llama.cpp",
        model_name=_chosen(server, model, _names(_models(server))),
        identity=_llama_cpp_identity(properties),
        identify=lambda: _llama_cpp_identity(server.json("/props") or {}),
        version=_text(properties.get("build_info")),
        window=window,
        window_max=window,
        concurrency=_positive(properties.get("total_slots")) or 1,
        count=count,
        probe_count=lambda window: count(PROBE_TEXT),
        special_tokens=_llama_cpp_special_tokens(server, properties),
        template_tokens=_llama_cpp_template_tokens(server),
    )


def _llama_cpp_identity(properties: Mapping[str, Any]) -> str:
    path, alias = properties.get("model_path"), properties.get("model_alias")
    return _text(path) or _text(alias)


def _llama_cpp_tokens(server: Server, text: str, *, parse_special: bool = False) -> int | None:
    response = server.post(
        "/tokenize", {"content": text, "add_special": False, "parse_special": parse_special}
    )
    response.raise_for_status()
    tokens = (json_object(response) or {}).get("tokens")
    return len(tokens) if isinstance(tokens, list) else None


def _llama_cpp_special_tokens(server: Server, properties: Mapping[str, Any]) -> tuple[str, ...]:
    """Strings that are one token where special tokens are parsed, and several where not."""
    told = [properties.get(key) for key in ("bos_token", "eos_token")]
    candidates = (
        *(token for token in told if isinstance(token, str) and token),
        *template_markers(_text(properties.get("chat_template"))),
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


def _llama_cpp_template_tokens(server: Server) -> int:
    body = {"messages": [{"role": "user", "content": "x"}]}
    response = _optional(lambda: server.post("/apply-template", body))
    prompt = (json_object(response) or {}).get("prompt") if response is not None else None
    if not isinstance(prompt, str):
        return 0
    rendered = _llama_cpp_tokens(server, prompt, parse_special=True) or 0
    # One more for the beginning-of-text token, which some models' tokenizers add.
    return max(0, rendered + 1 - (_llama_cpp_tokens(server, "x") or 0))


# --- Ollama ---


def _ollama(server: Server, model: str | None, timeout_s: float) -> ServerFacts | None:
    version = (server.json("/api/version") or {}).get("version")
    listed = (server.json("/api/tags") or {}).get("models") if isinstance(version, str) else None
    if not isinstance(listed, list):
        return None
    digests = {
        entry["name"]: _text(entry.get("digest"))
        for entry in listed
        if isinstance(entry, dict) and isinstance(entry.get("name"), str)
    }
    if model is not None and ":" not in model:
        model = f"{model}:latest"
    name = _chosen(server, model, list(digests))
    shown = json_object(server.ask("/api/show", {"model": name})) or {}
    _check_ollama_model(name, shown)
    trained = next(
        (
            _positive(value)
            for key, value in (shown.get("model_info") or {}).items()
            if key.endswith(".context_length")
        ),
        None,
    )
    stated = re.search(r"^num_ctx\s+(\d+)", _text(shown.get("parameters")), re.MULTILINE)
    window = int(stated[1]) if stated else _ollama_window(server, name, timeout_s)
    return ServerFacts(
        engine="ollama",
        model_name=name,
        identity=f"{name}@{digests[name]}",
        identify=partial(_ollama_identity, server, name),
        version=_text(version),
        window=window,
        window_max=trained,
        concurrency=1,
        probe_count=partial(_ollama_probe_count, server, name, timeout_s),
        has_thoughts="thinking" in (shown.get("capabilities") or ()),
        notes=(
            "Ollama cuts a prompt that is longer than its window without a word. The window is "
            "sent with every request, so that it cannot change unseen.",
        ),
    )


def _check_ollama_model(name: str, shown: Mapping[str, Any]) -> None:
    capabilities = shown.get("capabilities")
    if isinstance(capabilities, list) and "completion" not in capabilities:
        raise SettingsError(
            f"The Ollama model {name} does not generate text (it can: {', '.join(capabilities)}). "
            "Pass another one as model."
        )
    is_bare = _text(shown.get("template")).strip() == "{{ .Prompt }}"
    is_rendered = "RENDERER" in _text(shown.get("modelfile")) or shown.get("renderer")
    if shown.get("template_source") == "none" or (
        is_bare and not is_rendered and "template_source" not in shown
    ):
        raise SettingsError(
            f"The Ollama model {name} has no chat template: a base model cannot follow "
            "instructions. Use its chat or instruct version, or give it a TEMPLATE in a Modelfile."
        )


def _ollama_window(server: Server, name: str, timeout_s: float) -> int | None:
    """The window of the loaded model; it is loaded, as a request would load it, to find out."""
    running = _ollama_running(server, name)
    if running is None:
        server.ask("/api/generate", {"model": name}, timeout_s=timeout_s)
        running = _ollama_running(server, name)
    return running


def _ollama_running(server: Server, name: str) -> int | None:
    for entry in (server.json("/api/ps") or {}).get("models") or ():
        if isinstance(entry, dict) and name in {entry.get("name"), entry.get("model")}:
            return _positive(entry.get("context_length"))
    return None


def _ollama_identity(server: Server, name: str) -> str:
    for entry in (server.json("/api/tags") or {}).get("models") or ():
        if isinstance(entry, dict) and entry.get("name") == name:
            return f"{name}@{_text(entry.get('digest'))}"
    return "no such model"


def _ollama_probe_count(server: Server, name: str, timeout_s: float, window: int) -> int | None:
    """The tokens that Ollama makes of the probe, from a generation of one token."""
    body = {
        "model": name,
        "prompt": PROBE_TEXT,
        "raw": True,
        "stream": False,
        "options": {"num_predict": 1, "num_ctx": window},
    }
    response = server.ask("/api/generate", body, timeout_s=timeout_s)
    return _positive((json_object(response) or {}).get("prompt_eval_count"))


# --- vLLM, SGLang, and whatever else speaks OpenAI's protocol ---


def _openai_compatible(server: Server, model: str | None, timeout_s: float) -> ServerFacts:
    entries = _models(server)
    if model is not None and _names(entries) and model not in _names(entries):
        served = _transformers_serve(server, model, timeout_s)
        if served is None:
            raise _not_served(server, model, _names(entries))
        return served
    name = _chosen(server, model, _names(entries))
    entry = _entry(entries, name)
    told = _positive(entry.get("max_model_len"))
    facts = ServerFacts(
        engine="openai-compatible",
        model_name=name,
        identity=_openai_identity(entry, name),
        identify=lambda: _openai_identity(_entry(_models(server), name), name),
        window=told,
        window_max=told,
        probe_count=lambda window: _usage_probe_count(server, name, timeout_s),
        probes_twice=True,
    )
    more: dict[str, Any] = {}
    if entry.get("owned_by") == "vllm":
        more = {"engine": "vllm", **_vllm(server, told)}
    elif entry.get("owned_by") == "sglang":
        more = {"engine": "sglang", **_sglang(server, told)}
    body = {"model": name, "add_special_tokens": False}
    response = _optional(lambda: server.post("/tokenize", {**body, "prompt": "a b"}))
    if response is not None and _count(response) is not None:
        # It cannot read special tokens as plain text; neutralised text holds none.
        count = _TokenCounter(
            server, lambda text: _count(server.post("/tokenize", {**body, "prompt": text}))
        )
        more["count"] = count
        more["probe_count"], more["probes_twice"] = lambda window: count(PROBE_TEXT), False
        more["template_tokens"] = _template_tokens(server, name, x_tokens=count("x"))
    return replace(facts, **more)


def _transformers_serve(server: Server, name: str, timeout_s: float) -> ServerFacts | None:
    """`transformers serve` lists models that it suggests, and loads whichever it is asked for.

    It tells neither window nor usage, and every reply ends with "stop", cut or not.
    """

    body = {"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    ask = partial(server.ask, "/v1/chat/completions", {**body, "stream": True}, timeout_s=timeout_s)

    def served(response: httpx.Response | None) -> str:
        # Only its replies name the revision; others answer any name with the model they have.
        told = re.search(r'"model":\s*("(?:[^"\\]|\\.)*")', response.text) if response else None
        return str(json.loads(told[1])).rpartition("@")[0] if told else ""

    if served(_optional(ask)) != name:
        return None
    return ServerFacts(
        engine=TRANSFORMERS_SERVE,
        model_name=name,
        identity=name,
        identify=lambda: served(ask()),
        # Its requests share one cache of keys and values.
        concurrency=1,
        probe_count=lambda window: None,
        tokenizer_source=name,
    )


def _vllm(server: Server, window: int | None) -> dict[str, Any]:
    version = _text((_told(server, "/version") or {}).get("version"))
    metrics = _optional(lambda: server.get("/metrics"))
    line = re.search(r"^vllm:cache_config_info\{(.*)\}", metrics.text if metrics else "", re.M)
    labels = dict(re.findall(r'(\w+)="(\d+)"', line[1])) if line else {}
    size = int(labels.get("num_gpu_blocks", 0)) * int(labels.get("block_size", 0))
    return {"version": version, **_sharing(size, window)}


def _sglang(server: Server, window: int | None) -> dict[str, Any]:
    info = _told(server, "/get_server_info") or _told(server, "/server_info") or {}
    size = _positive(info.get("max_total_num_tokens"))
    if size is not None and window is not None:
        # No request can be longer than all of the KV cache.
        window = min(window, size)
    found = {"version": _text(info.get("version")), "window": window, "window_max": window}
    running = _positive(info.get("max_running_requests"))
    shared = _sharing(size or 0, window)
    if running and shared:
        shared["concurrency"] = min(running, shared["concurrency"])
    return {**found, **shared}


def _sharing(kv_tokens: int, window: int | None) -> dict[str, int]:
    """How many requests of a whole window the KV cache holds at once."""
    if not kv_tokens or not window:
        return {}
    return {"concurrency": max(1, kv_tokens // window)}


def _count(response: httpx.Response) -> int | None:
    return _positive((json_object(response) or {}).get("count")) if response.is_success else None


def _template_tokens(server: Server, name: str, *, x_tokens: int) -> int:
    body: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": "x"}]}
    body["add_generation_prompt"] = True
    response = _optional(lambda: server.post("/tokenize", body))
    if response is None:
        return 0
    _check_has_template(server, name, response)
    return max(0, (_count(response) or 0) - x_tokens)


def _check_has_template(server: Server, name: str, response: httpx.Response) -> None:
    """Raises `SettingsError` where a server refuses a chat because it has no chat template."""
    if response.status_code == 400 and "chat template" in response.text.lower():
        raise SettingsError(
            f"The model {name} at {server.url} has no chat template: a base model cannot follow "
            "instructions. Serve its chat or instruct version, or give the server a template "
            "(--chat-template)."
        )


def _usage_probe_count(server: Server, name: str, timeout_s: float) -> int | None:
    """What a second probe adds to a chat, by the usage that two chats of one token report."""
    counts = []
    for text in (PROBE_TEXT, TWICE_PROBED):
        body = {"model": name, "messages": [{"role": "user", "content": text}], "max_tokens": 1}
        response = server.ask("/v1/chat/completions", body, timeout_s=timeout_s)
        _check_has_template(server, name, response)
        usage = (json_object(response) or {}).get("usage")
        counts.append(_positive(usage.get("prompt_tokens")) if isinstance(usage, dict) else None)
    first, second = counts
    return second - first if first and second and second > first else None


def _openai_identity(entry: Mapping[str, Any], name: str) -> str:
    return f"{name}@{entry['root']}" if entry.get("root") else name if entry else "no such model"


# --- what they have in common ---


class _TokenCounter:
    """Counts through a server; may be called from several threads."""

    def __init__(self, server: Server, tokens: Callable[[str], int | None]) -> None:
        self._server = server
        self._tokens = tokens

    def __call__(self, text: str) -> int:
        if not text:
            return 0
        import httpx

        try:
            count = self._tokens(text)
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


Answered = TypeVar("Answered")


def _optional(ask: Callable[[], Answered]) -> Answered | None:
    """The answer to a question that a server may as well not understand."""
    import httpx

    try:
        return ask()
    except (httpx.HTTPError, ConnectionSetupError):
        return None


def _told(server: Server, path: str) -> dict[str, Any] | None:
    return _optional(lambda: server.json(path))


def _models(server: Server) -> list[dict[str, Any]]:
    listed = (server.json("/v1/models") or {}).get("data")
    if not isinstance(listed, list):
        return []
    return [entry for entry in listed if isinstance(entry, dict)]


def _names(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    return [entry["id"] for entry in entries if isinstance(entry.get("id"), str)]


def _entry(entries: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    return next((entry for entry in entries if entry.get("id") == name), {})


def _chosen(server: Server, model: str | None, names: Sequence[str]) -> str:
    if model is not None:
        if names and model not in names:
            raise _not_served(server, model, names)
        return model
    if not names:
        found = "a web page" if server.sent_web_page else "something that lists no models"
        raise ConnectionSetupError(
            f"Connecting to {server.url}: {found} answers there, and no model server. Check "
            "address and port; if it is an OpenAI-compatible server that lists no models, pass "
            "model."
        )
    if len(names) > 1:
        raise SettingsError(
            f"The server at {server.url} serves several models. Pass one as model: "
            f"{', '.join(names)}."
        )
    return names[0]


def _not_served(server: Server, model: str, names: Sequence[str]) -> ConnectionSetupError:
    return ConnectionSetupError(
        f"The server at {server.url} does not serve {model!r}. It serves: {', '.join(names)}."
    )


def _positive(value: object) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if is_count and isinstance(value, int) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
