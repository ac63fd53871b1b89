"""Texts of documents, questions, memory and answers stay out of traces and logs.

What LangSmith would receive is taken by a stub of its ingest endpoint on the loopback address. The
readings run in processes of their own, as a user's do: LangSmith has one client per process, which
reads its environment once.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import uuid
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import zstandard
from langsmith import Client
from rich.console import Console

from qwenlong_graph.cli.process import warn_of_tracing
from qwenlong_graph.models.tracing import are_texts_traced, hide_traced_texts
from tests.cli.stub_server import llama_cpp
from tests.models.stub_server import Answer
from tests.private_reading import ANSWER, DOCUMENT, WORDS

ROOT = Path(__file__).parent.parent
PROGRAM = Path(sys.executable).parent / "qwenlong-graph"
FOREIGN = ("QWENLONG_GRAPH_", "LANGSMITH_", "LANGCHAIN_", "OTEL_")
OFF = {"QWENLONG_GRAPH_TRACE_TEXTS": "no"}


class Ingest:
    """Every byte that was sent to a running stub, decompressed."""

    def __init__(self, url):
        self.url = url
        self.bodies = []
        self.is_asked = False

    @property
    def received(self):
        return b"\n".join(self.bodies).decode("utf-8", "replace")

    @property
    def environment(self):
        return {
            "LANGSMITH_TRACING": "true",
            "LANGSMITH_ENDPOINT": self.url,
            "LANGSMITH_API_KEY": "none",
        }


@contextlib.contextmanager
def langsmith_stub(*, is_compressing=False):
    info = {
        "instance_flags": {"zstd_compression_enabled": is_compressing},
        "batch_ingest_config": {
            "use_multipart_endpoint": True,
            "size_limit": 100,
            "size_limit_bytes": 20_971_520,
            "scale_up_nthreads_limit": 1,
            "scale_up_qsize_trigger": 1_000,
            "scale_down_nempty_trigger": 4,
        },
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            ingest.is_asked = True
            self.answer(200, json.dumps(info).encode())

        def do_POST(self):
            body = self.body()
            if self.headers.get("content-encoding") == "zstd":
                frames = zstandard.ZstdDecompressor().stream_reader(
                    io.BytesIO(body), read_across_frames=True
                )
                body = frames.read()
            ingest.bodies += [f"{self.path}\n{self.headers}".encode(), body]
            self.answer(202, b"{}")

        do_PATCH = do_PUT = do_POST  # noqa: N815 - the names are http.server's

        def body(self):
            if self.headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length") or 0))
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def answer(self, status, body):
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    ingest = Ingest(f"http://127.0.0.1:{server.server_port}")
    try:
        yield ingest
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def program(*command, cwd=ROOT, env=None):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**kept, "PYTHONWARNINGS": "", **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )


def reading(folder, form, *options, env=None):
    ended = program(sys.executable, "-m", "tests.private_reading", folder, form, *options, env=env)
    assert ended.returncode == 0, ended.stderr
    return ended


def found_in(text, words=WORDS):
    return {word for word in words if word in text}


@pytest.mark.contract
class TestTraces:
    """A reading with a failing server, a malformed reply, a stream of tokens, and a refusal."""

    @pytest.mark.parametrize("is_compressing", [False, True])
    def test_every_text_arrives_without_the_switch(self, tmp_path, is_compressing):
        with langsmith_stub(is_compressing=is_compressing) as ingest:
            reading(tmp_path, "sync", env=ingest.environment)
        assert found_in(ingest.received) == set(WORDS)
        assert "the prompt was" in ingest.received

    @pytest.mark.parametrize("is_compressing", [False, True])
    @pytest.mark.parametrize("form", ["sync", "async"])
    def test_no_text_arrives_with_the_switch_but_runs_and_tokens_do(
        self, tmp_path, form, is_compressing
    ):
        with langsmith_stub(is_compressing=is_compressing) as ingest:
            reading(tmp_path, form, env={**ingest.environment, **OFF})
        received = ingest.received
        assert found_in(received) == set()
        assert "the prompt was" not in received
        for told in ("memory_agent", "update_memory", '"end_time"', '"input_tokens"'):
            assert told in received
        assert "ModelRefusedError (what it says is hidden)" in received

    @pytest.mark.parametrize("switch", [{}, OFF], ids=["traced", "switched off"])
    def test_a_tracer_that_the_caller_passes_obeys_it(self, tmp_path, switch):
        with langsmith_stub() as ingest:
            place = {**ingest.environment, "LANGSMITH_TRACING": "false"}
            reading(tmp_path, "tracer", env={**place, **switch})
        assert "memory_agent" in ingest.received
        assert found_in(ingest.received) == (set() if switch else set(WORDS))

    def test_the_switch_calls_no_server_where_nothing_is_traced(self, tmp_path):
        with langsmith_stub() as ingest:
            reading(tmp_path, "sync", env={**ingest.environment, "LANGSMITH_TRACING": "", **OFF})
        assert not ingest.is_asked
        assert not ingest.bodies

    def test_langsmiths_own_switches_leave_errors_which_is_why_there_is_another(self, tmp_path):
        own = {"LANGSMITH_HIDE_INPUTS": "true", "LANGSMITH_HIDE_OUTPUTS": "true"}
        with langsmith_stub() as ingest:
            reading(tmp_path, "sync", env={**ingest.environment, **own})
        assert DOCUMENT in ingest.received

    @pytest.mark.parametrize("switch", [{}, OFF], ids=["traced", "switched off"])
    def test_the_command_line_obeys_it_too(self, tmp_path, switch):
        (tmp_path / "annals.txt").write_text(f"{DOCUMENT} lies in the north. " * 200)

        def reply(prompt):
            if "<section>" in prompt:
                return None
            return ANSWER

        data = {"QWENLONG_GRAPH_DATA": str(tmp_path / "data")}
        with langsmith_stub() as ingest, llama_cpp(reply=reply) as server:
            ended = program(
                PROGRAM, "ask", "Where is it?", "annals.txt", "--model", server.url,
                "--strategy", "memory", cwd=tmp_path,
                env={**ingest.environment, **data, **switch},
            )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        assert "memory_agent" in ingest.received
        words = {DOCUMENT, ANSWER, "Where is it?"}
        assert found_in(ingest.received, words) == (set() if switch else words)


def traced_by(client):
    """What arrives at the stub of a run that is told to `client` by hand."""
    run_id, now = uuid.uuid4(), datetime.now(UTC)
    place = {"trace_id": run_id, "dotted_order": f"{now:%Y%m%dT%H%M%S%fZ}{run_id}"}
    retry = {"name": "retry", "time": now.isoformat(), "kwargs": {"exception": ANSWER}}
    client.create_run("run", {"in": ANSWER}, "llm", id=run_id, events=[retry], **place)
    client.update_run(run_id, outputs={"out": ANSWER}, error=ANSWER, end_time=now, **place)
    client.flush()


def test_a_client_of_ones_own_can_be_silenced():
    with langsmith_stub() as ingest:
        clients = [Client(ingest.url, api_key="none") for _ in range(2)]
        hide_traced_texts(clients[0])
        hide_traced_texts(clients[0])
        traced_by(clients[0])
        assert '"retry"' in ingest.received
        assert ANSWER not in ingest.received
        traced_by(clients[1])
        assert ANSWER in ingest.received
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    ("value", "are_traced"),
    [("", True), ("yes", True), (" True ", True), ("no", False), ("0", False), ("never", False)],
)
def test_what_is_no_clear_yes_hides(monkeypatch, value, are_traced):
    monkeypatch.setenv("QWENLONG_GRAPH_TRACE_TEXTS", value)
    assert are_texts_traced() is are_traced


class TestTheWarning:
    @pytest.fixture
    def warned(self, monkeypatch):
        for name in list(os.environ):
            if name.startswith(FOREIGN):
                monkeypatch.delenv(name)

        def warned_with(**variables):
            for name, value in variables.items():
                monkeypatch.setenv(name, value)
            console = Console(file=io.StringIO(), width=400)
            warn_of_tracing(console)
            return console.file.getvalue()

        return warned_with

    def test_comes_once_and_names_the_cause_and_the_switch(self, warned):
        (line,) = warned(LANGSMITH_TRACING="true", LANGCHAIN_TRACING_V2="true").splitlines()
        assert line.startswith("Warning: LANGSMITH_TRACING is set")
        assert "QWENLONG_GRAPH_TRACE_TEXTS=no" in line

    def test_does_not_come_where_nothing_is_traced_or_no_text_is(self, warned):
        assert warned() == warned(LANGSMITH_TRACING="false") == ""
        assert warned(LANGSMITH_TRACING="true", QWENLONG_GRAPH_TRACE_TEXTS="no") == ""


@pytest.mark.contract
class TestLogs:
    @pytest.mark.parametrize("form", ["sync", "async"])
    @pytest.mark.parametrize("options", [(), ("LOGGED",)], ids=["by default", "ours from INFO on"])
    def test_no_text_is_logged_or_printed_whatever_fails(self, tmp_path, form, options):
        ended = reading(tmp_path, form, *options)
        assert found_in(ended.stderr + ended.stdout) == set()

    def test_the_command_line_shows_no_text_but_the_answer(self, tmp_path):
        (tmp_path / "annals.txt").write_text(f"{DOCUMENT} lies in the north. " * 300)
        failing = iter([500, 200, 200, 400])

        def reply(prompt):
            status = next(failing)
            if status == 200:
                return "<memory>" + DOCUMENT  # cut off, and so repeated
            return Answer({"error": {"message": f"invalid: {prompt}"}}, status=status)

        with llama_cpp(reply=reply) as server:
            ended = program(
                PROGRAM, "ask", f"Where is {DOCUMENT}?", "annals.txt", "--model", server.url,
                "--strategy", "memory", cwd=tmp_path,
                env={"QWENLONG_GRAPH_DATA": str(tmp_path / "data")},
            )  # fmt: skip
        assert ended.returncode == 4, ended.stderr
        assert "HTTP 500" in ended.stderr
        assert "HTTP 400" in ended.stderr
        assert DOCUMENT not in ended.stderr + ended.stdout
