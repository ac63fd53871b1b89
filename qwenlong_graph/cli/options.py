"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["ApiKey", "DataDir", "Debug", "ServedModel", "Window"]

ServedModel = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which of the server's models, where it serves several.",
        rich_help_panel="Model",
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="QWENLONG_GRAPH_API_KEY",
        metavar="KEY",
        help="The server's key. Others on this machine can see options: prefer the variable.",
        rich_help_panel="Model",
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        help="Context window to use, prompt and output together; by default all of it.",
        rich_help_panel="Model",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        envvar="QWENLONG_GRAPH_DATA",
        metavar="DIRECTORY",
        help="Where texts and runs are kept; by default the user's data directory.",
        rich_help_panel="Run",
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        envvar="QWENLONG_GRAPH_DEBUG",
        help="Show where an error happened, and the warnings of libraries.",
        rich_help_panel="Output",
    ),
]
