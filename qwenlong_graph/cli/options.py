"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["DataDir", "Debug"]

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
