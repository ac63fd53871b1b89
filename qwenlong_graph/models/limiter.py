"""How many requests a server gets at once, and how long a restarting one is waited for.

All readings of a process share one limiter per server, whether they run in threads or in event
loops. It starts at what the server can take, halves when the server says that it is too much, and
rises by one for about as many successes as it has places (AIMD, as in TCP). Who comes first is
served first.

    limiter = limiter_for("http://127.0.0.1:8080", limit=8)
    with limiter.slot():            # or: async with limiter.aslot():
        reply = chat.invoke(...)
    limiter.succeeded()             # or: limiter.overloaded(retry_after_s(error))

A model without a known address has no limiter: there is nothing to tell that two of them share a
server by. `server_of` finds the address of the chat models that have one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from qwenlong_graph.errors import ModelUnavailableError, SettingsError

__all__ = [
    "DEFAULT_LIMIT",
    "HEALTH_TIMEOUT_S",
    "Admission",
    "Limiter",
    "Waiting",
    "await_until_healthy",
    "limiter_for",
    "retry_after_s",
    "server_of",
    "wait_until_healthy",
]

DEFAULT_LIMIT = 4
"""Requests at once for a server that does not tell how many it can take."""
HEALTH_TIMEOUT_S = 900.0
"""How long a restarting server is waited for: loading 57 GiB of weights takes minutes."""

# Requests that were sent together are refused together, and are one reason to slow down, not many.
BURST_S = 1.0
# A server that asks for more is taken to be wrong about it.
RETRY_AFTER_MAX_S = 900.0
FIRST_POLL_S, POLL_FACTOR, LAST_POLL_S = 0.1, 1.5, 5.0
POLL_TIMEOUT_S = 10.0

Ticket = TypeVar("Ticket")


# --- the arithmetic and the line, without clock, lock or network ---


class Admission(Generic[Ticket]):
    """Who may ask a server now. Times are seconds on a clock of the caller's."""

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.limit = float(ceiling)
        """Requests at once; the fraction is progress towards one more."""
        self.in_flight = 0
        self.paused_until = -math.inf
        self._lowered_at = -math.inf
        self._line: deque[Ticket] = deque()

    @property
    def waiting(self) -> int:
        """How many stand in line."""
        return len(self._line)

    def join(self, ticket: Ticket) -> None:
        """Stands at the end of the line."""
        self._line.append(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Gives up a turn, whether it has come or not."""
        try:
            self._line.remove(ticket)
        except ValueError:
            self.release()

    def admit(self, now: float) -> list[Ticket]:
        """Takes from the head of the line those whose turn has come."""
        admitted: list[Ticket] = []
        while self._line and self.in_flight < int(self.limit) and now >= self.paused_until:
            admitted.append(self._line.popleft())
            self.in_flight += 1
        return admitted

    def release(self) -> None:
        """A request is over, however it ended."""
        self.in_flight -= 1

    def succeeded(self) -> None:
        """The server answered: one more at once, after about as many answers as go at once."""
        self.limit = min(float(self.ceiling), self.limit + 1 / self.limit)

    def overloaded(self, now: float, retry_after_s: float | None = None) -> None:
        """The server said, or showed, that it has too much to do: half as many, at least one.

        Nobody is admitted before `retry_after_s` seconds have passed.
        """
        if now - self._lowered_at >= BURST_S:
            self.limit = max(1.0, self.limit / 2)
            self._lowered_at = now
        if retry_after_s is not None and retry_after_s > 0:
            pause_s = min(retry_after_s, RETRY_AFTER_MAX_S)
            self.paused_until = max(self.paused_until, now + pause_s)

    def set_ceiling(self, ceiling: int) -> None:
        """Another most; a limit that stood at the old one moves with it."""
        if self.limit == self.ceiling:
            self.limit = float(ceiling)
        self.ceiling = ceiling
        self.limit = min(self.limit, float(ceiling))


# --- one server's limiter ---


class Limiter:
    """Keeps the requests of a process to one server within what the server can take.

    Slots are given in the order in which they are asked for. Hold one for the whole of a request,
    reading the reply included, but not while waiting between two requests.
    """

    def __init__(
        self, limit: int = DEFAULT_LIMIT, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._admission: Admission[Callable[[], object]] = Admission(_checked(limit))
        self._clock = clock
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    @property
    def limit(self) -> int:
        """Requests at once as things stand; at most the number it was made with."""
        return int(self._admission.limit)

    @property
    def in_flight(self) -> int:
        """Slots that are held now."""
        return self._admission.in_flight

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot now."""
        return self._admission.waiting

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Waits for a slot and holds it for the block."""
        arrived = threading.Event()
        ticket = arrived.set
        self._join(ticket)
        try:
            arrived.wait()
        except BaseException:
            self._leave(ticket)
            raise
        try:
            yield
        finally:
            self._release()

    @contextlib.asynccontextmanager
    async def aslot(self) -> AsyncIterator[None]:
        """`slot`, without blocking the event loop."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[None] = loop.create_future()

        def ticket() -> object:
            return loop.call_soon_threadsafe(_settle, arrived)

        self._join(ticket)
        try:
            await arrived
        except BaseException:
            self._leave(ticket)
            raise
        try:
            yield
        finally:
            self._release()

    def succeeded(self) -> None:
        """Tells that the server answered."""
        with self._lock:
            self._admission.succeeded()
        self._let_in()

    def overloaded(self, retry_after_s: float | None) -> None:
        """Tells of a 429, a 503 or a timeout; `retry_after_s` is what the server asked to wait."""
        with self._lock:
            self._admission.overloaded(self._clock(), retry_after_s)
        self._let_in()

    def set_limit(self, limit: int) -> None:
        """Sets the most requests at once."""
        with self._lock:
            self._admission.set_ceiling(_checked(limit))
        self._let_in()

    def _join(self, ticket: Callable[[], object]) -> None:
        with self._lock:
            self._admission.join(ticket)
        self._let_in()

    def _leave(self, ticket: Callable[[], object]) -> None:
        with self._lock:
            self._admission.leave(ticket)
        self._let_in()

    def _release(self) -> None:
        with self._lock:
            self._admission.release()
        self._let_in()

    def _let_in(self) -> None:
        with self._lock:
            now = self._clock()
            admitted = self._admission.admit(now)
            pause_s = self._admission.paused_until - now
            if pause_s > 0 and self._admission.waiting and self._timer is None:
                self._timer = threading.Timer(pause_s, self._end_pause)
                self._timer.daemon = True
                self._timer.start()
        for ticket in admitted:
            try:
                ticket()
            except RuntimeError:
                # Its event loop is closed, and nobody is left to take the turn.
                self._release()

    def _end_pause(self) -> None:
        with self._lock:
            self._timer = None
        self._let_in()


def _settle(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)


def _checked(limit: int) -> int:
    if limit < 1:
        raise SettingsError(
            f"A limit of {limit} requests at once was given; it has to be 1 or more."
        )
    return limit


_limiters: dict[str, Limiter] = {}
_limiters_lock = threading.Lock()


def limiter_for(server: str, *, limit: int | None = None) -> Limiter:
    """The limiter that every reading of this process shares for the server at an address.

    `limit` is how many requests at once the server can take; the number given last counts, and
    None leaves it (`DEFAULT_LIMIT` at first). Raises `SettingsError` for one below 1.
    """
    key = _key(server)
    with _limiters_lock:
        limiter = _limiters.get(key)
        if limiter is None:
            limiter = _limiters[key] = Limiter(DEFAULT_LIMIT if limit is None else limit)
    if limit is not None:
        limiter.set_limit(limit)
    return limiter


def _key(server: str) -> str:
    """The address as one spells it only once: no path of an API, no capitals, no default port."""
    try:
        parts = urlsplit(server)
        port = parts.port
    except ValueError:
        return server
    if not parts.scheme or not parts.hostname:
        return server
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = {"http": 80, "https": 443}.get(parts.scheme)
    where = host if port in {None, default} else f"{host}:{port}"
    return f"{parts.scheme}://{where}{_base_path(parts.path)}"


def _base_path(path: str) -> str:
    return path.rstrip("/").removesuffix("/v1").rstrip("/")


def server_of(chat: object) -> str | None:
    """The address of the server that a chat model asks, None where it does not tell.

    Knows ChatTGI, ChatOpenAI and its kin, and ChatHuggingFace on an endpoint.
    """
    inner = getattr(chat, "llm", None)
    for holder, name in (
        (chat, "base_url"),
        (chat, "openai_api_base"),
        (inner, "endpoint_url"),
        (inner, "inference_server_url"),
    ):
        found = getattr(holder, name, None)
        if isinstance(found, str) and found:
            return found
    return None


def retry_after_s(error: BaseException) -> float | None:
    """The seconds that a server asked to wait (header Retry-After), from the error or its causes.

    None where it did not ask. The header holds seconds or a date (RFC 9110, 10.2.3).
    """
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        headers: Any = getattr(getattr(cause, "response", None), "headers", None)
        headers = getattr(cause, "headers", None) if headers is None else headers
        told = headers.get("retry-after") if hasattr(headers, "get") else None
        if isinstance(told, str):
            return _seconds(told)
        cause = cause.__cause__
    return None


def _seconds(told: str) -> float | None:
    try:
        seconds = float(told)
    except ValueError:
        try:
            date = parsedate_to_datetime(told)
        except ValueError:
            return None
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


# --- a server that restarts ---


@dataclass(frozen=True)
class Waiting:
    """How waiting for a server stands; `found` is what it answered last, such as "HTTP 503"."""

    server: str
    waited_s: float
    timeout_s: float
    found: str


def wait_until_healthy(
    url: str,
    *,
    timeout_s: float = HEALTH_TIMEOUT_S,
    on_wait: Callable[[Waiting], object] | None = None,
) -> float:
    """Waits until the server at `url` can take requests; returns the seconds that took.

    Asks `/health` (TGI, vLLM, SGLang, llama.cpp), or `/v1/models` where there is no such thing:
    a server is healthy that answers, and not with 5xx. `on_wait` is called after each look that
    found it otherwise, at first every tenth of a second, later every 5 s. No key is sent.

    Raises:
        ModelUnavailableError: it was not healthy within `timeout_s` seconds.
    """
    import httpx

    watch = _Watch(url, timeout_s, on_wait)
    with httpx.Client(**_client_settings()) as client:
        while True:
            found = _look(client, watch.server)
            if found is None:
                return watch.waited_s
            time.sleep(watch.pause_s(found))


async def await_until_healthy(
    url: str,
    *,
    timeout_s: float = HEALTH_TIMEOUT_S,
    on_wait: Callable[[Waiting], object] | None = None,
) -> float:
    """`wait_until_healthy`, without blocking the event loop."""
    import httpx

    watch = _Watch(url, timeout_s, on_wait)
    async with httpx.AsyncClient(**_client_settings()) as client:
        while True:
            found = await _alook(client, watch.server)
            if found is None:
                return watch.waited_s
            await asyncio.sleep(watch.pause_s(found))


class _Watch:
    """The clock of one wait."""

    def __init__(
        self, url: str, timeout_s: float, on_wait: Callable[[Waiting], object] | None
    ) -> None:
        self.server = _key(url)
        self._timeout_s = timeout_s
        self._on_wait = on_wait
        self._began = time.monotonic()
        self._pause_s = FIRST_POLL_S

    @property
    def waited_s(self) -> float:
        return time.monotonic() - self._began

    def pause_s(self, found: str) -> float:
        """How long until the next look; raises where there is to be none."""
        waited_s = self.waited_s
        left_s = self._timeout_s - waited_s
        if left_s <= 0:
            raise ModelUnavailableError(
                f"Waiting for the server at {self.server} to come back: after {waited_s:.0f} s it "
                f"still does not answer properly ({found}). What was read is kept where the run "
                "has a checkpointer: check the server, then resume."
            )
        if self._on_wait is not None:
            self._on_wait(Waiting(self.server, waited_s, self._timeout_s, found))
        pause_s = min(self._pause_s, left_s)
        self._pause_s = min(self._pause_s * POLL_FACTOR, LAST_POLL_S)
        return pause_s


_PATHS = ("/health", "/v1/models")
_NO_SUCH_PATH = frozenset({404, 405, 501})


def _look(client: Any, server: str) -> str | None:
    """What is wrong with the server, None where nothing is."""
    import httpx

    status = 0
    try:
        for path in _PATHS:
            status = client.get(f"{server}{path}").status_code
            if status not in _NO_SUCH_PATH:
                break
    except httpx.HTTPError as error:
        return type(error).__name__
    return f"HTTP {status}" if status >= 500 else None


async def _alook(client: Any, server: str) -> str | None:
    import httpx

    status = 0
    try:
        for path in _PATHS:
            status = (await client.get(f"{server}{path}")).status_code
            if status not in _NO_SUCH_PATH:
                break
    except httpx.HTTPError as error:
        return type(error).__name__
    return f"HTTP {status}" if status >= 500 else None


def _client_settings() -> dict[str, Any]:
    return {
        "timeout": POLL_TIMEOUT_S,
        # A proxy of the environment cannot reach this machine's own loopback.
        "mounts": {f"all://{host}": None for host in ("localhost", "127.0.0.1", "[::1]")},
        "follow_redirects": False,
    }
