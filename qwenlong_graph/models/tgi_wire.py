"""What goes over the wire to a TGI server: kept connections, the token stream, errors.

Field names and error types are those of TGI's OpenAPI document, which the `text-generation`
package also uses. Where that package is installed (extra `tgi`), its own error class stands as the
`__cause__` of ours, with the server's words; our messages leave those out, because a server may
quote the prompt.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import re
import threading
import weakref
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from qwenlong_graph.errors import (
    ContextOverflowError,
    ModelError,
    ModelOverloadedError,
    ModelRefusedError,
    ModelUnavailableError,
    SettingsError,
)

if TYPE_CHECKING:
    import httpx

__all__ = [
    "Connections",
    "Final",
    "TokenEvent",
    "TokenReader",
    "checked_address",
    "events_of_reply",
    "redirect_error",
    "server_error",
    "timeout_error",
    "transport_error",
    "unusable_reply_error",
]

CONNECT_TIMEOUT_S = 10
# The last event repeats the whole text; 64 MiB is more than any window holds.
LINE_BYTES_MAX = 64 << 20


class Final(NamedTuple):
    """How a generation ended. `finish_reason` is "length", "eos_token" or "stop_sequence"."""

    finish_reason: str | None
    generated_tokens: int | None
    input_tokens: int | None


class TokenEvent(NamedTuple):
    """One generated token; a special one has no text. `final` comes with the last."""

    text: str
    final: Final | None


class TokenReader:
    """Turns the bytes of a `/generate_stream` reply into tokens, as they come.

    Each byte is looked at once, so a stream costs the same however it is cut into packets.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._open_line: list[bytes] = []
        self._open_bytes = 0
        self.is_complete = False

    def feed(self, data: bytes) -> list[TokenEvent]:
        """The tokens whose events end in `data`; none where it holds only keep-alive comments.

        Raises the `ModelError` of an error sent inside the stream, and `ModelUnavailableError`
        where the bytes are no token stream.
        """
        *ended, rest = data.split(b"\n")
        events: list[TokenEvent] = []
        if ended:
            if self._open_line:
                self._open_line.append(ended[0])
                ended[0] = b"".join(self._open_line)
                self._open_line.clear()
                self._open_bytes = 0
            # Comments begin with a colon; TGI sends no other fields that matter.
            events = [self._event(line[5:]) for line in ended if line.startswith(b"data:")]
        if rest:
            self._open_line.append(rest)
            self._open_bytes += len(rest)
            if self._open_bytes > LINE_BYTES_MAX:
                raise unusable_reply_error(self._address, "a line without end")
        return events

    def close(self) -> None:
        """Says that the bytes have ended. Raises where the final event never came."""
        if not self.is_complete:
            raise ModelUnavailableError(
                f"Generating with TGI at {self._address}: the stream ended without its final "
                "event, so the reply is not whole and was not used. Check that the server is up "
                "and not restarting, then try again."
            )

    def _event(self, line: bytes) -> TokenEvent:
        try:
            event = json.loads(line.decode())
            if "error" in event:
                raise server_error(self._address, None, event)
            token = event["token"]
            text = token["text"]
            if not isinstance(text, str):
                raise TypeError
            final = None
            if event.get("generated_text") is not None or event.get("details") is not None:
                final = _final(event.get("details"))
                self.is_complete = True
            return TokenEvent("" if token.get("special") else text, final)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise unusable_reply_error(self._address, "an event that is no token") from error


def events_of_reply(address: str, reply: object, prompt_tokens: str | None) -> list[TokenEvent]:
    """The body of a `/generate` reply as the tokens that a stream would have given.

    `prompt_tokens` is the header `x-prompt-tokens`. Raises `ModelUnavailableError` where the body
    is none.
    """
    try:
        if not isinstance(reply, dict):
            raise TypeError
        text, details = reply["generated_text"], reply.get("details") or {}
        if not isinstance(text, str):
            raise TypeError
        input_tokens = int(prompt_tokens) if prompt_tokens and prompt_tokens.isdecimal() else None
        final = _final(details)._replace(input_tokens=input_tokens)
        tokens = [
            TokenEvent("" if token.get("special") else str(token["text"]), None)
            for token in details.get("tokens") or []
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise unusable_reply_error(address, "a body that is no generation") from error
    if "".join(token.text for token in tokens) != text:
        # A server that lists no tokens: the text counts, its thoughts cannot be counted.
        return [TokenEvent(text, final)]
    return [*tokens, TokenEvent("", final)]


def _final(details: Mapping[str, Any] | None) -> Final:
    told = details or {}
    reason = told.get("finish_reason")
    counts = [told.get(key) for key in ("generated_tokens", "input_length")]
    generated, read = [count if isinstance(count, int) else None for count in counts]
    return Final(reason if isinstance(reason, str) else None, generated, read)


_OVERFLOW = re.compile(r"`inputs` (?:must have less than|tokens \+)")
_LABEL = re.compile(r"[\w.-]{1,60}")

_BY_TYPE: dict[str, type[ModelError]] = {
    "overloaded": ModelOverloadedError,
    "generation": ModelUnavailableError,
    "incomplete_generation": ModelUnavailableError,
    "incomplete_generation_stream": ModelUnavailableError,
    "healthcheck": ModelUnavailableError,
    "unhealthy": ModelUnavailableError,
    "validation": ModelRefusedError,
}
_ADVICE: dict[type[ModelError], str] = {
    ModelOverloadedError: (
        "the server is over its limit. Try again later, or with fewer requests at once."
    ),
    ModelUnavailableError: (
        "the server could not generate. Check that it is up, not restarting, and not out of memory."
    ),
    ModelRefusedError: (
        "the server refuses this request, and will refuse it again. Check the settings."
    ),
    ContextOverflowError: (
        "the prompt does not fit the server's limits. Use smaller chunks or a larger window."
    ),
}


def server_error(address: str, status: int | None, payload: object) -> ModelError:
    """What an error told by the server means; `status` is None for one inside a stream.

    `payload` is the decoded JSON body, or anything else where it was none.
    """
    told = payload if isinstance(payload, dict) else {}
    words, label = str(told.get("error", "")), told.get("error_type")
    kind = _BY_TYPE.get(label) if isinstance(label, str) else None
    if kind is None:
        kind = _kind_of_status(status)
    if kind is ModelRefusedError and _OVERFLOW.search(words):
        kind = ContextOverflowError
    found = [f"HTTP {status}"] if status else ["an error in the stream"]
    if isinstance(label, str) and _LABEL.fullmatch(label):
        found.append(label)
    advice = _overflow_advice(words) if kind is ContextOverflowError else _ADVICE[kind]
    if status in {401, 403}:
        advice = "the server refuses the key. Pass the right one as api_key."
    elif status == 404:
        advice = "there is no TGI server at this address. Check base_url."
    error = kind(f"Generating with TGI at {address} failed ({', '.join(found)}): {advice}")
    if words:
        error.__cause__ = _text_generation_error(status, told)
    return error


def _kind_of_status(status: int | None) -> type[ModelError]:
    if status is None or status >= 500 or status in {408, 424, 425}:
        return ModelUnavailableError
    return ModelOverloadedError if status == 429 else ModelRefusedError


def _overflow_advice(words: str) -> str:
    # Figures only: the server's own words stay in the cause.
    figures = [f"{int(figure):,}" for figure in re.findall(r"\d{1,12}", words)]
    if len(figures) == 2:
        return (
            f"the prompt has {figures[1]} tokens, and the server takes {figures[0]}. "
            "Use smaller chunks or a larger window."
        )
    if len(figures) == 3:
        return (
            f"the prompt has {figures[1]} tokens and {figures[2]} were asked for, and the server "
            f"takes {figures[0]} together. Use smaller chunks or a larger window."
        )
    return _ADVICE[ContextOverflowError]


def _text_generation_error(status: int | None, payload: Mapping[str, Any]) -> Exception | None:
    try:
        parse_error = importlib.import_module("text_generation.errors").parse_error
    except ImportError:
        return None
    told = {key: str(value) for key, value in payload.items() if key in {"error", "error_type"}}
    found: Exception = parse_error(status or 0, told)
    return found


def transport_error(address: str, error: httpx.HTTPError) -> ModelUnavailableError:
    """What a failure below HTTP means: nothing answers, silence, or a connection cut."""
    import httpx

    name = type(error).__name__
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        found = "no sign of life within the time limit"
    elif isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        found = "no server answers there"
    else:
        found = "the connection broke off before the end of the reply"
    return ModelUnavailableError(
        f"Generating with TGI at {address}: {found} ({name}). Check that it is up and not "
        "restarting, and that address and port are right."
    )


def timeout_error(address: str, seconds: float) -> ModelUnavailableError:
    """For a stream that is open, and perhaps sends comments, but no tokens."""
    error = ModelUnavailableError(
        f"Generating with TGI at {address}: no token came for {seconds:g} s, so the stream was "
        "given up. The server may be stuck, or its queue longer than that: check it, or raise "
        "token_timeout_s."
    )
    # By its cause it is known as a sign of overload.
    error.__cause__ = TimeoutError(f"no token for {seconds:g} s")
    return error


def redirect_error(address: str, location: str | None) -> ModelRefusedError:
    """For an answer that sends us elsewhere; prompt and key do not follow it."""
    import httpx

    target = "another address"
    with contextlib.suppress(httpx.InvalidURL, TypeError, ValueError):
        told = httpx.URL(location or "")
        if told.host:
            target = f"{told.scheme}://{told.netloc.decode('ascii').rpartition('@')[2]}"
    return ModelRefusedError(
        f"Generating with TGI at {address}: it redirects to {target}, which is not followed, "
        "because prompt and key would go there. Where that is right, pass it as base_url."
    )


def unusable_reply_error(address: str, found: str) -> ModelUnavailableError:
    """For a reply that is no TGI reply at all."""
    return ModelUnavailableError(
        f"Generating with TGI at {address}: the reply holds {found}. Check that a TGI server is "
        "at this address, and that nothing between rewrites its replies."
    )


def checked_address(address: str) -> str:
    """The server's address without a trailing slash or `/v1`. Raises `SettingsError`."""
    import httpx

    has_user = SettingsError(
        "The address of the server holds a user name or password, or an @ that makes it look so. "
        "Leave it out, and pass the server's key as api_key."
    )
    try:
        parsed = httpx.URL(address)
    except httpx.InvalidURL as error:
        if "@" in address:
            # The library's own words may quote a part of the password.
            raise has_user from None
        raise SettingsError(f"{address!r} is no valid address: {error}.") from error
    if parsed.userinfo:
        raise has_user
    if parsed.scheme not in {"http", "https"} or not parsed.host or parsed.query or parsed.fragment:
        if "@" in address:
            raise has_user
        raise SettingsError(
            f"{address!r} is no server's address. It looks like http://HOST:PORT, with no query."
        )
    return str(parsed).rstrip("/").removesuffix("/v1").rstrip("/")


class Connections:
    """Kept connections: one pool for threads, and one for each event loop.

    A connection opened in an event loop is dead in the next, so each loop has a pool of its own,
    closed when the loop ends. Certificates are verified and redirects are not followed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._of_loops: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[httpx.AsyncClient, AsyncGenerator[None, None]]
        ] = weakref.WeakKeyDictionary()

    def client(self) -> httpx.Client:
        """The client for calls from threads."""
        import httpx

        with self._lock:
            if self._client is None:
                self._client = httpx.Client(**_client_settings())
                weakref.finalize(self, self._client.close)
            return self._client

    async def client_of_loop(self) -> httpx.AsyncClient:
        """The client for the running event loop."""
        import httpx

        loop = asyncio.get_running_loop()
        if loop not in self._of_loops:
            client = httpx.AsyncClient(**_client_settings())
            # An event loop closes its open generators before it ends, and this one its client.
            keeper = _kept_open(client)
            await anext(keeper)
            self._of_loops[loop] = client, keeper
        return self._of_loops[loop][0]

    def close(self) -> None:
        """Closes the connections of threads; later calls open new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    async def aclose(self) -> None:
        """Closes the connections of the running event loop; later calls open new ones."""
        held = self._of_loops.pop(asyncio.get_running_loop(), None)
        if held is not None:
            await held[1].aclose()


async def _kept_open(client: httpx.AsyncClient) -> AsyncGenerator[None, None]:
    async with client:
        yield


def _client_settings() -> dict[str, Any]:
    import httpx

    return {
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=20),
        # A proxy of the environment cannot reach this machine's own loopback.
        "mounts": {f"all://{host}": None for host in ("localhost", "127.0.0.1", "[::1]")},
        "follow_redirects": False,
    }
