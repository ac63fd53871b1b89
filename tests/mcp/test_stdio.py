"""The command as a process on standard input and output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from mcp import StdioServerParameters
from mcp.client.session import ClientSession
from mcp.client.stdio import stdio_client
from typer.testing import CliRunner

from qwenlong_graph.cli.app import app
from qwenlong_graph.runs.directory import RunShelf
from qwenlong_graph.testing.tgi import TgiDouble, serve, small_tokenizer
from qwenlong_graph.testing.tgi.faults import Silence
from tests.cli.stub_server import llama_cpp
from tests.mcp.conftest import FACT, QUESTION, filler

pytestmark = [pytest.mark.contract, pytest.mark.timeout(180)]

PROGRAM = Path(sys.executable).parent / "qwenlong-graph"
FOREIGN = ("QWENLONG_GRAPH_", "LANGSMITH_", "LANGCHAIN_", "OPENAI_", "FASTMCP_")
REPLY = "<memory>\n- Nothing yet.\n</memory>\n<plan>\nread on\n</plan>"


@pytest.fixture
def environment(tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return {**kept, "QWENLONG_GRAPH_DATA": str(tmp_path / "data"), "PYTHONWARNINGS": ""}


@pytest.fixture
def book(folder):
    """A document of several chunks for the smallest windows that the stubs have."""
    (folder / "book.txt").write_text(f"{filler(500)}\n\n{FACT}\n\n{filler(500)}\n", "utf-8")
    return folder


class Raw:
    """A client that speaks JSON lines by hand, and takes every line of output for a message."""

    def __init__(self, process):
        self.process = process

    def send(self, message):
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self.process.stdin.flush()

    def receive(self):
        return json.loads(self.process.stdout.readline())

    def begin(self):
        client = {"name": "raw", "version": "1"}
        params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}
        self.send({"id": 0, "method": "initialize", "params": params})
        started = self.receive()
        self.send({"method": "notifications/initialized"})
        return started

    def call(self, number, name, arguments):
        params = {"name": name, "arguments": arguments, "_meta": {"progressToken": number}}
        self.send({"id": number, "method": "tools/call", "params": params})


@pytest.fixture
def start(environment, tmp_path):
    processes = []

    def start_process(*command, env=None):
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            cwd=tmp_path,
            env={**environment, **(env or {})},
        )
        processes.append(process)
        return Raw(process)

    yield start_process
    for process in processes:
        process.kill()
        with process:
            pass


async def test_the_official_client_reads_a_document(environment, book):
    told = []

    async def on_progress(progress, total, message):
        told.append(int(progress))

    with llama_cpp(facts=[FACT]) as server, open(os.devnull, "w") as log:  # noqa: PTH123
        parameters = StdioServerParameters(
            command=str(PROGRAM),
            args=["mcp", "--root", str(book), "--model", server.url],
            env=environment,
        )
        async with (
            stdio_client(parameters, errlog=log) as (read, write),
            ClientSession(read, write) as client,
        ):
            await client.initialize()
            result = await client.call_tool(
                "ask_documents",
                {"question": QUESTION, "documents": ["book.txt"]},
                progress_callback=on_progress,
            )
            run_id = result.structuredContent["run_id"]
            memory = await client.read_resource(f"run://{run_id}/memory")
    assert result.structuredContent["answer"] == FACT
    steps = result.structuredContent["usage"]["steps"]
    assert steps > 3
    assert told == list(range(steps + 2))
    assert FACT in memory.contents[0].text


async def test_langchains_client_reads_a_document(environment, book):
    from langchain_mcp_adapters.client import MultiServerMCPClient

    with llama_cpp(facts=[FACT]) as server:
        client = MultiServerMCPClient(
            {
                "documents": {
                    "transport": "stdio",
                    "command": str(PROGRAM),
                    "args": ["mcp", "--root", str(book), "--model", server.url],
                    "env": environment,
                }
            }
        )
        tools = {tool.name: tool for tool in await client.get_tools()}
        message = await tools["ask_documents"].ainvoke(
            {
                "type": "tool_call",
                "id": "1",
                "name": "ask_documents",
                "args": {"question": QUESTION, "documents": ["book.txt"]},
            }
        )
    assert set(tools) == {"ask_documents", "estimate", "list_runs", "resume_run"}
    assert message.text.startswith(f"{FACT} [1]")
    assert message.artifact["structured_content"]["answer"] == FACT


def test_a_client_that_vanishes_stops_the_model_and_the_run_goes_on_later(start, book, tmp_path):
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    # The first request splits the question; chunks follow.
    double = TgiDouble(lambda _: REPLY, faults={4: Silence()})
    with serve(double) as url:
        command = [PROGRAM, "mcp", "--root", book, "--model", url]
        env = {"QWENLONG_GRAPH_TOKENIZER": str(tmp_path / "tokenizer")}
        client = start(*command, env=env)
        client.begin()
        asked = {"question": QUESTION, "documents": ["book.txt"], "run_id": "mill"}
        client.call(1, "ask_documents", asked)
        read = 0
        while read < 2:
            message = client.receive()
            assert message["method"] == "notifications/progress", message
            read = message["params"]["progress"]
        while len(double.requests) < 4:
            pass
        client.process.stdin.close()
        assert client.process.wait(timeout=60) == 0
        double.wait_idle()
        assert double.cancelled == 1
        run = RunShelf(tmp_path / "data" / "runs").find("mill")
        assert run.state()["step"] == 2
        client = start(*command, env=env)
        client.begin()
        client.call(1, "resume_run", {"run_id": "mill"})
        while "result" not in (message := client.receive()):
            pass
    assert not message["result"]["isError"]
    assert message["result"]["structuredContent"]["usage"]["steps"] > 2
    double.raise_failures()


def test_what_is_printed_never_reaches_standard_output(start, book):
    script = f"""
        import asyncio, os, subprocess, sys
        from pathlib import Path
        from qwenlong_graph.agents.sources import AllowedRoots
        from qwenlong_graph.mcp.reader import ModelSource, Reader
        from qwenlong_graph.mcp.server import build_server
        from qwenlong_graph.mcp.stdio import ProtocolPipes, serve_stdio
        from tests.mcp.conftest import FACT, SETTINGS, Model

        pipes = ProtocolPipes()

        class Noisy(Model):
            def __call__(self, messages):
                print("from Python")
                os.write(1, b"from C")
                subprocess.run(["echo", "from a child"], check=True)
                assert subprocess.run(["cat"], capture_output=True).stdout == b""
                return super().__call__(messages)

        async def main():
            source = ModelSource(connect=Noisy(FACT).connect, model="noisy")
            reader = Reader(source, data_dir=Path("data"), settings=SETTINGS)
            server = build_server(reader, roots=AllowedRoots({str(book)!r}))
            await serve_stdio(server, reader, pipes)

        asyncio.run(main())
    """
    root = Path(__file__).parent.parent.parent
    client = start(sys.executable, "-c", textwrap.dedent(script), env={"PYTHONPATH": str(root)})
    client.begin()
    client.call(1, "ask_documents", {"question": QUESTION, "documents": ["mill.txt"]})
    while "result" not in (message := client.receive()):
        assert message["method"] == "notifications/progress"
    assert message["result"]["structuredContent"]["answer"] == FACT
    stdout, stderr = client.process.communicate(timeout=60)
    assert (client.process.returncode, stdout) == (0, "")
    for noise in ("from Python", "from C", "from a child"):
        assert noise in stderr


def test_garbage_is_survived(start, book):
    client = start(PROGRAM, "mcp", "--root", book, "--model", "http://127.0.0.1:9")
    client.begin()
    for line in (
        "",
        "no JSON",
        "[]",
        '{"jsonrpc":"2.0"}',
        "[" * 100_000,
        "\u2028",
        "x" * 1_000_000,
    ):
        client.process.stdin.write(line + "\n")
    client.process.stdin.flush()
    client.send({"id": 1, "method": "tools/call", "params": {"name": "\ud800", "arguments": {}}})
    client.send({"id": 2, "method": "tools/list"})
    while (message := client.receive()).get("id") != 2:
        assert "result" not in message
    assert len(message["result"]["tools"]) == 4
    client.process.stdin.close()
    assert client.process.wait(timeout=60) == 0


def test_a_signal_ends_it(start, book):
    client = start(PROGRAM, "mcp", "--root", book)
    client.begin()
    client.process.send_signal(signal.SIGTERM)
    stdout, stderr = client.process.communicate(timeout=60)
    assert (client.process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr


def test_without_the_protocols_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    ended = CliRunner().invoke(app, ["mcp"])
    assert ended.exit_code == 2
    assert "pip install 'qwenlong-graph[mcp]'" in " ".join(ended.stderr.split())
    assert ended.stdout == ""


def test_a_model_that_is_not_there_is_told_to_the_client(start, book):
    client = start(PROGRAM, "mcp", "--root", book, "--model", "http://127.0.0.1:9")
    client.begin()
    client.call(1, "estimate", {"documents": ["book.txt"]})
    result = client.receive()["result"]
    assert result["isError"]
    assert "http://127.0.0.1:9" in result["content"][0]["text"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "80"], "--port: only for --transport http."),
        (["--root", "/no/such/folder"], "there is no such directory"),
    ],
)
def test_what_cannot_be_served_is_told_before_it_starts(start, arguments, told):
    client = start(PROGRAM, "mcp", *arguments)
    stdout, stderr = client.process.communicate(timeout=60)
    assert (client.process.returncode, stdout) == (2, "")
    assert told in " ".join(stderr.split())
