"""A client of the MCP server, written with the official SDK.

    python examples/mcp_client.py

It starts `qwenlong-graph mcp` as a process and talks to it over standard input
and output, as Claude Desktop, an IDE or an agent would. The server may read the
examples' data and nothing else. Shown are the tools it offers, the refusal of a
file elsewhere, the progress while it reads a long document, the answer with its
citations, and the run's evidence, read as a resource.

Scripted, the server's model is a double of a TGI server on a loopback port.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _models import ADDRESS_1946, DATA, arguments
from _printing import heading, paragraph, quotes
from langchain_core.messages import HumanMessage
from mcp import ClientSession, McpError, StdioServerParameters
from mcp.client.stdio import stdio_client

from qwenlong_graph.testing.oracle import OracleChatModel
from qwenlong_graph.testing.tgi import TgiDouble, serve, small_tokenizer

QUESTION = "How many displaced persons now remain in the United States zone?"
SENTENCES = [
    "Of the total of 3,500,000 displaced persons found in the United States zone only 460,000 now "
    "remain.",
]


async def ask(server: StdioServerParameters, log: Path) -> bool:
    """Whether the question was answered."""
    with log.open("w") as errors:
        async with (
            stdio_client(server, errlog=errors) as streams,
            ClientSession(*streams) as client,
        ):
            began = await client.initialize()
            heading(f"{began.serverInfo.name} {began.serverInfo.version} offers these tools")
            for tool in (await client.list_tools()).tools:
                paragraph(f"{tool.name:<14} {tool.title}")

            heading("A file outside the allowed folder")
            elsewhere = {"question": QUESTION, "documents": [__file__]}
            refused: Any = await client.call_tool("ask_documents", elsewhere)
            paragraph(refused.content[0].text, bullet="refused: " if refused.isError else "")

            heading(f"It reads {ADDRESS_1946.name}")
            paragraph(QUESTION)
            asked = {"question": QUESTION, "documents": [ADDRESS_1946.name]}
            result: Any = await client.call_tool(
                "ask_documents", asked, progress_callback=show_progress
            )
            if result.isError:
                paragraph(result.content[0].text)
                return False
            answer = result.structuredContent

            heading("The answer")
            paragraph(answer["answer"])
            quotes(answer["citations"])

            uri = f"run://{answer['run_id']}/evidence"
            heading(f"The resource {uri}")
            held: Any = await client.read_resource(uri)  # type: ignore[arg-type]  # an address as text
            paragraph(held.contents[0].text)
    return True


async def show_progress(progress: float, total: float | None, message: str | None) -> None:
    """What a notification holds; its total is an estimate until the last chunk is read."""
    said = (message or "").replace(f" ({ADDRESS_1946.name})", "")  # fits 80 columns without
    print(f"  {progress:2.0f}/{'?' if total is None else f'{total:.0f}':<3}  {said}")


@contextlib.contextmanager
def model_server(name: str, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """What to give as --model, and which variables the server needs for it."""
    if name != "scripted":
        yield name, {}
        return
    reader = OracleChatModel(SENTENCES)
    tokenizer = small_tokenizer()
    double = TgiDouble(
        lambda prompt: reader.invoke([HumanMessage(prompt)]).text,
        max_input_tokens=30_000,
        max_total_tokens=32_768,
        tokenizer=tokenizer,
    )
    tokenizer.save_pretrained(folder / "tokenizer")  # to count as the double does
    with serve(double) as url:
        yield url, {"QWENLONG_GRAPH_TOKENIZER": str(folder / "tokenizer")}


def main() -> None:
    args = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ["--root", str(DATA), "--data-dir", str(folder / "data")]
        with model_server(args.model, folder) as (model, variables):
            server = StdioServerParameters(
                # What the command `qwenlong-graph` runs, wherever it is installed.
                command=sys.executable,
                args=["-m", "qwenlong_graph.cli", "mcp", *options, "--model", model],
                env={**os.environ, **variables},
            )
            log = folder / "server.log"
            try:
                is_answered = asyncio.run(ask(server, log))
            except* McpError:
                sys.exit(f"The server gave no answer. Its log:\n{log.read_text()}")
    sys.exit(0 if is_answered else 1)


if __name__ == "__main__":
    main()
