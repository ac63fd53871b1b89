"""The server over streamable HTTP: who may come in, and what ends with a connection."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import re
import secrets
import socket
import stat
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from mcp.server.auth.middleware.bearer_auth import (
    AuthenticatedUser,
    BearerAuthBackend,
    RequireAuthMiddleware,
)
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from qwenlong_graph.agents.sources import shown
from qwenlong_graph.errors import SettingsError
from qwenlong_graph.mcp.owners import Owner, identity_of
from qwenlong_graph.mcp.server import CLIENT_GONE, OWNER

if TYPE_CHECKING:
    from mcp.server.lowlevel.server import Server
    from starlette.types import Receive, Scope, Send

    from qwenlong_graph.mcp.reader import Reader

__all__ = [
    "PATH",
    "TOKEN_VARIABLE",
    "bind",
    "build_app",
    "http_server",
    "is_loopback",
    "new_token",
    "tokens_from",
]

PATH = "/mcp"
TOKEN_VARIABLE = "QWENLONG_GRAPH_MCP_TOKEN"
TOKEN_CHARS_MIN = 20
SESSIONS_MAX = 200
SHUTDOWN_S = 5

_log = logging.getLogger(__name__)

# As browsers send it: no path, no user, and never a pattern.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+(%\w+)?\])(:[0-9]{1,5})?")
_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


def new_token() -> str:
    """A token that nobody can guess."""
    return secrets.token_urlsafe(32)


def tokens_from(file: Path | None, given: str | None) -> list[str]:
    """The tokens of a file, one a line, and of the environment.

    Raises `SettingsError` for a file that cannot be read or holds none, and for a bad token.
    """
    tokens = [given.strip()] if given and given.strip() else []
    if file is not None:
        path = file.expanduser()
        try:
            lines = path.read_text("utf-8").splitlines()
            mode = path.stat().st_mode
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
            raise SettingsError(
                f"Reading tokens from {file}: {reason}. Name a text file with one token a line."
            ) from error
        held = [line.strip() for line in lines if line.strip()]
        if not held:
            raise SettingsError(f"Reading tokens from {file}: it holds none. Write one a line.")
        if stat.S_ISREG(mode) and mode & 0o077:
            _log.warning("Others on this machine can read the tokens in %s: chmod 600 it.", file)
        tokens += held
    for number, token in enumerate(tokens, start=1):
        is_visible = token.isascii() and token.isprintable() and " " not in token
        if len(token) < TOKEN_CHARS_MIN or not is_visible:
            raise SettingsError(
                f"Token {number} cannot be one: it takes {TOKEN_CHARS_MIN} or more letters, "
                f"digits and signs, without spaces. Make one with: openssl rand -hex 32"
            )
    return list(dict.fromkeys(tokens))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens at `host`."""
    return all(ipaddress.ip_address(address[4][0]).is_loopback for address in _addresses(host, 0))


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises `SettingsError` if it cannot be had."""
    family, kind, protocol, _, address = _addresses(host, port)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise SettingsError(
            f"Listening at {host} port {port}: {error.strerror}. Choose another with --port."
        ) from error
    return listening


def build_app(
    server: Server[Any, Any],
    reader: Reader,
    *,
    tokens: Sequence[str],
    hosts: Iterable[str] = (),
    origins: Iterable[str] = (),
) -> Starlette:
    """The ASGI application, at `PATH`.

    A request needs one of `tokens`, a Host header of this machine's loopback names or of `hosts`,
    and, if it comes from a web page, an Origin of `origins`.
    Raises `SettingsError` for a host or an origin that cannot be one.
    """
    hosts, origins = _checked_hosts(hosts), _checked_origins(origins)
    names = [*_LOOPBACK_HOSTS, *hosts]
    manager = StreamableHTTPSessionManager(
        server,
        security_settings=TransportSecuritySettings(
            # With a port or without.
            allowed_hosts=[spelled for name in names for spelled in (name, f"{name}:*")],
            allowed_origins=origins,
        ),
        max_sessions=SESSIONS_MAX,
    )
    middleware = [
        Middleware(AuthenticationMiddleware, backend=BearerAuthBackend(_Verifier(tokens)))
    ]
    if origins:
        # Outside of the token's check: a browser asks first, without one.
        allowing = Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["Mcp-Session-Id"],
        )
        middleware.insert(0, allowing)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            async with manager.run():
                yield
        finally:
            await reader.close()

    endpoint = RequireAuthMiddleware(_Watched(manager), required_scopes=[])
    return Starlette(routes=[Route(PATH, endpoint)], middleware=middleware, lifespan=lifespan)


def http_server(app: Starlette) -> uvicorn.Server:
    """What serves `app`: `await server.serve(sockets=[...])`, until SIGINT or SIGTERM.

    Questions that are being read then end, and are kept. Requests are not logged.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    return uvicorn.Server(config)


class _Verifier:
    """Knows the tokens by what stands for them, and compares all of them in constant time."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._identities = [identity_of(token) for token in tokens]

    async def verify_token(self, token: str) -> AccessToken | None:
        given = identity_of(token)
        matches = [hmac.compare_digest(given, identity) for identity in self._identities]
        # Without the token itself: this goes where others may log it.
        return AccessToken(token="", client_id=given, scopes=[]) if any(matches) else None


class _Watched:
    """Tells the questions of a request whose they are, and when its connection has ended.

    MCP lets a client come back for an answer where the server keeps its messages. This one keeps
    runs instead, so nobody would get the answer of a client that has left.
    """

    def __init__(self, manager: StreamableHTTPSessionManager) -> None:
        self._manager = manager

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        user = scope["user"]
        assert isinstance(user, AuthenticatedUser)
        scope[OWNER] = Owner(user.access_token.client_id)
        scope[CLIENT_GONE] = gone = asyncio.Event()
        try:
            await self._manager.handle_request(scope, receive, send)
        finally:
            gone.set()


def _checked_hosts(hosts: Iterable[str]) -> list[str]:
    given = list(hosts)
    for host in given:
        if not _HOST.fullmatch(host):
            raise SettingsError(
                f"Allowing the host {shown(host)}: it is no name that a client could reach this "
                f"server by. Give a name or an address alone, such as reader.lan."
            )
    return given


def _checked_origins(origins: Iterable[str]) -> list[str]:
    given = [origin.lower().removesuffix("/") for origin in origins]
    for origin in given:
        if not _ORIGIN.fullmatch(origin):
            raise SettingsError(
                f"Allowing the origin {shown(origin)}: it is none. Give the scheme, the host and "
                f"the port of one web page, such as http://localhost:6274; there are no patterns."
            )
    return given


def _addresses(host: str, port: int) -> list[Any]:
    try:
        return socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SettingsError(
            f"Listening at {host!r}: there is no such address here. Use 127.0.0.1, or an address "
            f"of this machine."
        ) from error
