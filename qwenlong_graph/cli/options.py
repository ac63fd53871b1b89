"""Options that several commands share."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "ApiKey",
    "ChunkTokens",
    "DataDir",
    "Debug",
    "Instructions",
    "MemoryTokens",
    "Model",
    "Protocol",
    "ProtocolOption",
    "Quiet",
    "Schema",
    "Seed",
    "ServedModel",
    "Strategy",
    "StrategyOption",
    "Window",
    "settings_given",
]


class Strategy(enum.StrEnum):
    """How documents are read: in chunks with a memory, or whole in one pass."""

    AUTO = "auto"
    MEMORY = "memory"
    FULL = "full"


class Protocol(enum.StrEnum):
    """What a model is asked about a chunk."""

    REWRITE = "rewrite"
    EXTRACT = "extract"


Model = Annotated[
    str,
    typer.Option(
        envvar="QWENLONG_GRAPH_MODEL",
        help='The model: "embedded" (small, runs in this process), "gguf:PATH", '
        '"gguf:ORG/REPO/FILE.gguf", or the address of a server.',
        rich_help_panel="Model",
    ),
]
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
Instructions = Annotated[
    str,
    typer.Option(
        metavar="TEXT",
        help="How the answer should look. Without this the model looks in the question.",
        show_default=False,
        rich_help_panel="Reading",
    ),
]
Schema = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A JSON schema: the answer is given as JSON of that form.",
        rich_help_panel="Reading",
    ),
]
StrategyOption = Annotated[
    Strategy | None,
    typer.Option(
        "--strategy",
        help='"memory" reads chunk by chunk, "full" all at once; "auto", the default, takes '
        '"full" where everything fits and "memory" elsewhere.',
        rich_help_panel="Reading",
    ),
]
ProtocolOption = Annotated[
    Protocol | None,
    typer.Option(
        "--protocol",
        help='"rewrite" has the model write its memory, "extract" has it point to sentences. '
        'By default "extract" for the embedded model and "rewrite" for others.',
        rich_help_panel="Reading",
    ),
]
ChunkTokens = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        help="Longest chunk; by default what suits the window.",
        rich_help_panel="Reading",
    ),
]
MemoryTokens = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        help="Longest memory; by default what suits the window.",
        rich_help_panel="Reading",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Seed of the model's random choices; by default 0.", rich_help_panel="Reading"
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
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show no progress.", rich_help_panel="Output")
]


def settings_given(
    *,
    strategy: Strategy | None,
    protocol: Protocol | None,
    chunk_tokens: int | None,
    memory_tokens: int | None,
    seed: int | None,
) -> dict[str, Any]:
    """Those fields of `ReadingSettings` that were given."""
    given = {
        "strategy": strategy and strategy.value,
        "protocol": protocol and protocol.value,
        "chunk_tokens": chunk_tokens,
        "memory_tokens": memory_tokens,
        "seed": seed,
    }
    return {name: value for name, value in given.items() if value is not None}
