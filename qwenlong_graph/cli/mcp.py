"""The MCP server as a command."""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenlong_graph.cli.connecting import connection_options, fetch_embedded
from qwenlong_graph.cli.options import ApiKey, DataDir, Debug, ServedModel, Window
from qwenlong_graph.cli.process import (
    error_console,
    failures_told,
    prepare_process,
    warn_of_tracing,
)
from qwenlong_graph.errors import MissingExtraError, SettingsError

if TYPE_CHECKING:
    from qwenlong_graph.agents.sources import AllowedRoots
    from qwenlong_graph.mcp.reader import ModelSource, Reader
    from qwenlong_graph.models.connect import ConnectedModel

__all__ = ["ABOUT", "mcp"]

_log = logging.getLogger("qwenlong_graph.mcp")

_LOOPBACK = "127.0.0.1"
_PORT = 8765

ABOUT = """Serve questions about documents to an MCP client.

The model of the client (Model Context Protocol) gets four tools:
ask_documents, estimate, list_runs and resume_run. Documents are read
only from the directories given by --root, or without it, on standard
input and output, from those the client declares; by default from none.

\b
[bold]Examples[/bold]
qwenlong-graph mcp --root ~/papers
qwenlong-graph mcp --root ~/papers --transport http
"""


class Transport(enum.StrEnum):
    """How a client talks to the server."""

    STDIO = "stdio"
    HTTP = "http"


def mcp(
    model: Annotated[
        str,
        typer.Option(
            envvar="QWENLONG_GRAPH_MODEL", help="The model, as for ask.", rich_help_panel="Model"
        ),
    ] = "embedded",
    served_model: ServedModel = None,
    api_key: ApiKey = None,
    window: Window = None,
    root: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIRECTORY",
            help="Documents may be read from here; may be given again. Then those that a client "
            "declares do not count.",
            rich_help_panel="Documents",
        ),
    ] = None,
    client_roots: Annotated[
        bool,
        typer.Option(
            "--client-roots",
            help="Over HTTP too, read from the directories that a client declares: whoever has a "
            "token may then read what you can.",
            rich_help_panel="Documents",
        ),
    ] = False,
    transport: Annotated[
        Transport,
        typer.Option(help="Standard input and output, or HTTP.", rich_help_panel="Connection"),
    ] = Transport.STDIO,
    host: Annotated[
        str, typer.Option(help="Where HTTP listens.", rich_help_panel="Connection")
    ] = _LOOPBACK,
    port: Annotated[
        int,
        typer.Option(min=0, max=65_535, help="0 takes a free one.", rich_help_panel="Connection"),
    ] = _PORT,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The tokens that HTTP clients may show, one a line; also the variable "
            "QWENLONG_GRAPH_MCP_TOKEN. By default one is made and shown at the start.",
            rich_help_panel="Connection",
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="A web page that may connect, such as http://localhost:6274; by default none.",
            rich_help_panel="Connection",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A further name that clients reach this server by, such as reader.lan.",
            rich_help_panel="Connection",
        ),
    ] = None,
    expose: Annotated[
        bool,
        typer.Option(
            "--expose",
            help="Allow a --host that other machines can reach. There is no encryption: put a "
            "proxy that speaks TLS in front.",
            rich_help_panel="Connection",
        ),
    ] = False,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> None:
    """See `ABOUT`."""
    errors = error_console()
    is_http = transport is Transport.HTTP
    with failures_told(errors, as_json=False, is_debug=debug):
        if find_spec("mcp") is None:
            raise MissingExtraError("The MCP server", "mcp")
        for_http = {
            "--host": host != _LOOPBACK,
            "--port": port != _PORT,
            "--token-file": token_file,
            "--allow-origin": allow_origin,
            "--allow-host": allow_host,
            "--client-roots": client_roots,
            "--expose": expose,
        }
        if not is_http and (useless := [name for name, given in for_http.items() if given]):
            raise SettingsError(
                f"{', '.join(useless)}: only for --transport http. Add that, or leave it out."
            )
    pipes = None
    if not is_http:
        from qwenlong_graph.mcp.stdio import ProtocolPipes

        # Before anything else could print.
        pipes = ProtocolPipes()
    prepare_process(is_debug=debug, is_silent=True)
    _log_to_stderr(is_debug=debug)
    with failures_told(errors, as_json=False, is_debug=debug):
        warn_of_tracing(errors)
        from qwenlong_graph.agents.sources import AllowedRoots
        from qwenlong_graph.documents.store import default_data_dir
        from qwenlong_graph.mcp.reader import Reader

        roots = AllowedRoots(root or ())
        source = _source(model, served_model=served_model, api_key=api_key, window=window)
        reader = Reader(source, data_dir=(data_dir or default_data_dir()).expanduser())
        is_stopped = (
            _over_http(
                reader,
                roots,
                asks_client=client_roots,
                host=host,
                port=port,
                token_file=token_file,
                origins=allow_origin or [],
                hosts=allow_host or [],
                may_expose=expose,
            )
            if pipes is None
            else _over_stdio(reader, roots, pipes)
        )
    if is_stopped:
        raise typer.Exit(130)


def _over_stdio(reader: Reader, roots: AllowedRoots, pipes: Any) -> bool:
    from qwenlong_graph.mcp.server import build_server
    from qwenlong_graph.mcp.stdio import serve_stdio

    server = build_server(reader, roots=roots, asks_client=True)
    where = roots.told() if roots else "files may be read from the roots that the client declares"
    _log.info("Serving on standard input and output; %s.", where)
    try:
        asyncio.run(serve_stdio(server, reader, pipes))
    except (asyncio.CancelledError, KeyboardInterrupt):
        return True
    return False


def _over_http(
    reader: Reader,
    roots: AllowedRoots,
    *,
    asks_client: bool,
    host: str,
    port: int,
    token_file: Path | None,
    origins: list[str],
    hosts: list[str],
    may_expose: bool,
) -> bool:
    from qwenlong_graph.mcp import http
    from qwenlong_graph.mcp.server import build_server

    tokens = http.tokens_from(token_file, os.environ.get(http.TOKEN_VARIABLE))
    if not http.is_loopback(host):
        if not may_expose:
            raise SettingsError(
                f"Listening at {host}: other machines could reach it. Use {_LOOPBACK}, or add "
                f"--expose if that is wanted."
            )
        if not tokens:
            raise SettingsError(
                f"Listening at {host}, where other machines reach it, needs a token of yours: give "
                f"--token-file or {http.TOKEN_VARIABLE}. Make one with: openssl rand -hex 32"
            )
    server = build_server(reader, roots=roots, asks_client=asks_client)
    with http.bind(host, port) as listening:
        port = listening.getsockname()[1]
        shown = f"[{host.strip('[]')}]" if ":" in host else host
        made = [] if tokens else [http.new_token()]
        app = http.build_app(
            server, reader, tokens=[*tokens, *made], hosts=[shown, *hosts], origins=origins
        )
        for token in made:
            typer.echo(f"Token, made for this start and shown only here: {token}", err=True)
        _log.info("Serving at http://%s:%d%s; %s.", shown, port, http.PATH, roots.told())
        try:
            asyncio.run(http.http_server(app).serve(sockets=[listening]))
        except KeyboardInterrupt:
            return True
    return False


def _source(
    model: str, *, served_model: str | None, api_key: str | None, window: int | None
) -> ModelSource:
    from qwenlong_graph.mcp.reader import ModelSource

    def connected() -> ConnectedModel:
        from qwenlong_graph.models.connect import connect

        if model == "embedded":
            fetch_embedded(
                progress=_Fetching(), converting=lambda: _log.info("Converting the embedded model")
            )
        options: Mapping[str, Any] = connection_options(
            model, served_model=served_model, api_key=api_key, window=window
        )
        ready = connect(model, **options)
        _log.info("Connected to %s (%s).", ready.model_name, ready.engine)
        return ready

    return ModelSource(connect=connected, model=model, served_model=served_model, window=window)


class _Fetching:
    """Tells every tenth of a download."""

    def __init__(self) -> None:
        self._tenths = -1

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        tenths = done_bytes * 10 // total_bytes if total_bytes else 0
        if tenths > self._tenths:
            self._tenths = tenths
            _log.info("Fetching the embedded model: %d %%", tenths * 10)


def _log_to_stderr(*, is_debug: bool) -> None:
    """This package's words, and what goes wrong in the libraries that serve."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _log.setLevel(logging.DEBUG if is_debug else logging.INFO)
    _log.propagate = False
    _log.addHandler(handler)
    # Never at DEBUG, where they log whole messages. What the SDK says at errors may hold a piece of
    # one, or be the traceback of a connection that ended: for --debug, but for who was refused.
    refusals = ("mcp.server.transport_security", "mcp.server.streamable_http_manager")
    for name in (*refusals, "uvicorn.error", *(["mcp"] if is_debug else [])):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        logger.addHandler(handler)
