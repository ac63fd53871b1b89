"""Streamable HTTP on loopback: who comes in, whose a run is, and what ends with a connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import McpError
from mcp.types import ListRootsResult, Root

from qwenlong_graph.agents.sources import AllowedRoots
from qwenlong_graph.errors import SettingsError
from qwenlong_graph.mcp import http
from qwenlong_graph.mcp.owners import LOCAL, Owner, identity_of
from qwenlong_graph.mcp.server import build_server
from tests.mcp.conftest import FACT, QUESTION, Model, cancel, error_of

pytestmark = [pytest.mark.contract, pytest.mark.timeout(180)]

PROGRAM = Path(sys.executable).parent / "qwenlong-graph"
MINE, YOURS = "m" * 32, "y" * 32
ASKED = {"question": QUESTION, "documents": ["mill.txt"], "run_id": "mill"}
HELLO = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "raw", "version": "1"},
    },
}
HEADERS = {
    "Authorization": f"Bearer {MINE}",
    "Accept": "application/json, text/event-stream",
    "Content-Type": "application/json",
}


@contextlib.asynccontextmanager
async def served(reader, *roots, asks_client=False, **options):
    """The address of a server in this process, which knows both tokens."""
    server = build_server(reader, roots=AllowedRoots(roots), asks_client=asks_client)
    app = http.build_app(server, reader, tokens=[MINE, YOURS], **options)
    running = http.http_server(app)
    with http.bind("127.0.0.1", 0) as listening:
        serving = asyncio.create_task(running.serve(sockets=[listening]))
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}{http.PATH}"
        finally:
            running.should_exit = True
            await serving


@contextlib.asynccontextmanager
async def connected(url, token=MINE, *, is_polite=True, declared=None):
    async def declare(_):
        return ListRootsResult(roots=[Root(uri=uri) for uri in declared])

    async with (
        httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=60) as sender,
        streamable_http_client(url, http_client=sender, terminate_on_close=is_polite) as streams,
        ClientSession(
            *streams[:2], list_roots_callback=None if declared is None else declare
        ) as client,
    ):
        await client.initialize()
        yield client


async def endless():
    """A body of unknown length, far longer than any that is taken."""
    for _ in range(50):
        yield b" " * 1_000_000


class TestReading:
    async def test_gives_the_answer_with_progress_in_order(self, reader_of, folder):
        told = []

        async def on_progress(progress, total, message):
            told.append(int(progress))

        async with served(reader_of(Model(FACT)), folder) as url, connected(url) as client:
            result = await client.call_tool("ask_documents", ASKED, progress_callback=on_progress)
            memory = await client.read_resource("run://mill/memory")
        assert result.structuredContent["answer"] == FACT
        assert told == list(range(result.structuredContent["usage"]["steps"] + 2))
        assert FACT in memory.contents[0].text

    async def test_directories_that_a_client_declares_do_not_count(self, reader_of, folder):
        async with (
            served(reader_of(Model(FACT))) as url,
            connected(url, declared=[folder.as_uri()]) as client,
        ):
            result = await client.call_tool("ask_documents", ASKED)
        assert error_of(result).startswith("No directory may be read from here.")

    async def test_unless_the_user_lets_them(self, reader_of, folder):
        async with (
            served(reader_of(Model(FACT)), asks_client=True) as url,
            connected(url, declared=[folder.as_uri()]) as client,
        ):
            result = await client.call_tool("ask_documents", ASKED)
        assert result.structuredContent["answer"] == FACT

    async def test_a_cancelled_question_goes_on_later(self, reader_of, folder):
        model = Model(FACT, silent_at=4)
        async with served(reader_of(model), folder) as url, connected(url) as client:
            asking = asyncio.create_task(client.call_tool("ask_documents", ASKED))
            await model.is_silent.wait()
            await cancel(client, 1)
            with pytest.raises(McpError, match="cancelled"):
                await asking
            result = await client.call_tool("resume_run", {"run_id": "mill"})
        assert model.chunks == result.structuredContent["usage"]["steps"] + 1

    @pytest.mark.parametrize("is_polite", [True, False])
    async def test_a_client_that_vanishes_ends_its_question_alone(
        self, reader_of, folder, is_polite
    ):
        model = Model(FACT, silent_at=4)
        reader = reader_of(model)
        async with served(reader, folder) as url, connected(url) as other:
            async with connected(url, is_polite=is_polite) as leaving:
                asking = asyncio.create_task(leaving.call_tool("ask_documents", ASKED))
                await model.is_silent.wait()
                asking.cancel()
            beside = await other.call_tool("ask_documents", {**ASKED, "run_id": "other"})
            run = reader.find("mill", LOCAL)
            while reader.summary(run)["state"] == "reading":
                await asyncio.sleep(0.01)
            assert run.state()["step"] == 3
            result = await other.call_tool("resume_run", {"run_id": "mill"})
        assert beside.structuredContent["answer"] == FACT
        assert result.structuredContent["answer"] == FACT

    async def test_a_server_that_stops_keeps_what_was_read(self, reader_of, folder):
        model = Model(FACT, silent_at=4)
        reader = reader_of(model)
        with contextlib.suppress(BaseExceptionGroup, httpx.HTTPError, McpError):
            async with served(reader, folder) as url:
                leaving = connected(url, is_polite=False)
                client = await leaving.__aenter__()
                asking = asyncio.create_task(client.call_tool("ask_documents", ASKED))
                await model.is_silent.wait()
        asking.cancel()
        with contextlib.suppress(BaseExceptionGroup, httpx.HTTPError, McpError):
            await leaving.__aexit__(None, None, None)
        run = reader.find("mill", LOCAL)
        assert (reader.summary(run)["state"], run.state()["step"]) == ("begun", 3)


class TestWhoComesIn:
    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({}, 200),
            ({"Authorization": None}, 401),
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": f"Bearer {MINE}x"}, 401),
            ({"Authorization": f"Bearer {MINE[:-1]}"}, 401),
            ({"Authorization": "Bearer"}, 401),
            ({"Authorization": f"Basic {MINE}"}, 401),
            ({"Authorization": b"Bearer \xff\xfe"}, 401),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "http://localhost:3000"}, 403),
            ({"Origin": "null"}, 403),
            ({"Host": "evil.example"}, 421),
            ({"Host": "127.0.0.1.evil.example"}, 421),
            ({"Host": "localhost"}, 200),
            ({"Host": "[::1]:80"}, 200),
        ],
    )
    async def test_by_token_origin_and_host(self, reader_of, headers, status):
        given = {**HEADERS, **headers}
        sent = {name: value for name, value in given.items() if value is not None}
        async with served(reader_of(Model())) as url, httpx.AsyncClient() as client:
            answer = await client.post(url, json=HELLO, headers=sent)
        assert answer.status_code == status
        assert MINE not in answer.text

    async def test_a_token_in_the_address_is_none(self, reader_of):
        headers = {name: value for name, value in HEADERS.items() if name != "Authorization"}
        async with served(reader_of(Model())) as url, httpx.AsyncClient() as client:
            answer = await client.post(f"{url}?token={MINE}", json=HELLO, headers=headers)
        assert answer.status_code == 401

    async def test_a_web_page_that_is_allowed(self, reader_of):
        origin = "http://localhost:6274"
        async with (
            served(reader_of(Model()), origins=["http://LOCALHOST:6274/"]) as url,
            httpx.AsyncClient(headers={"Origin": origin}) as client,
        ):
            asked = {
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type,mcp-session-id",
            }
            before = await client.options(url, headers=asked)
            answer = await client.post(url, json=HELLO, headers=HEADERS)
            other = await client.post(url, json=HELLO, headers={**HEADERS, "Origin": "http://x"})
        assert before.status_code == answer.status_code == 200
        assert before.headers["access-control-allow-origin"] == origin
        assert "Mcp-Session-Id" in answer.headers["access-control-expose-headers"]
        assert other.status_code == 403
        assert "access-control-allow-origin" not in other.headers

    async def test_a_further_name_that_is_allowed(self, reader_of):
        async with (
            served(reader_of(Model()), hosts=["reader.lan"]) as url,
            httpx.AsyncClient() as client,
        ):
            for host in ("reader.lan", "reader.lan:8443"):
                answer = await client.post(url, json=HELLO, headers={**HEADERS, "Host": host})
                assert answer.status_code == 200

    async def test_a_session_serves_no_other_token(self, reader_of):
        async with served(reader_of(Model())) as url, httpx.AsyncClient() as client:
            begun = await client.post(url, json=HELLO, headers=HEADERS)
            session = {"Mcp-Session-Id": begun.headers["mcp-session-id"]}
            listing = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
            theirs = {**HEADERS, **session, "Authorization": f"Bearer {YOURS}"}
            refused = await client.post(url, json=listing, headers=theirs)
            taken = await client.post(url, json=listing, headers={**HEADERS, **session})
        assert (refused.status_code, taken.status_code) == (404, 200)

    async def test_bodies_that_are_none(self, reader_of):
        async with served(reader_of(Model())) as url, httpx.AsyncClient(headers=HEADERS) as client:
            garbage = await client.post(url, content=b"{")
            binary = await client.post(url, content=b"\xff{")
            huge = await client.post(url, content=b" " * 5_000_000)
            unsized = await client.post(url, content=endless())
            fine = await client.post(url, json=HELLO)
        assert (garbage.status_code, huge.status_code, fine.status_code) == (400, 413, 200)
        assert binary.is_error
        assert unsized.status_code == 413

    async def test_what_has_no_token_is_refused_before_its_body_is_read(self, reader_of):
        headers = {**HEADERS, "Authorization": "Bearer wrong"}
        async with served(reader_of(Model())) as url, httpx.AsyncClient(headers=headers) as client:
            answer = await client.post(url, content=endless())
        assert answer.status_code == 401

    @pytest.mark.parametrize(
        "origin",
        ["*", "null", "", "localhost", "http://localhost:*", "http://a/b", "http://u@a", "http://"],
    )
    def test_an_origin_that_is_none_cannot_be_allowed(self, reader_of, origin):
        reader = reader_of(Model())
        with pytest.raises(SettingsError, match="Allowing the origin"):
            http.build_app(build_server(reader), reader, tokens=[MINE], origins=[origin])

    @pytest.mark.parametrize("host", ["*", "", "*:*", "http://reader.lan", "a/b", "a b", "a:*"])
    def test_a_host_that_is_none_cannot_be_allowed(self, reader_of, host):
        reader = reader_of(Model())
        with pytest.raises(SettingsError, match="Allowing the host"):
            http.build_app(build_server(reader), reader, tokens=[MINE], hosts=[host])


class TestWhoseARunIs:
    async def test_another_token_is_told_that_there_is_none(self, reader_of, folder, tmp_path):
        async with served(reader_of(Model(FACT)), folder) as url:
            async with connected(url) as client:
                await client.call_tool("ask_documents", ASKED)
                own = await client.call_tool("list_runs", {})
            async with connected(url, YOURS) as client:
                listed = await client.call_tool("list_runs", {})
                resumed = await client.call_tool("resume_run", {"run_id": "mill"})
                missing = await client.call_tool("resume_run", {"run_id": "none"})
                resources = await client.list_resources()
                taken = await client.call_tool("ask_documents", ASKED)
                for kind in ("memory", "evidence"):
                    with pytest.raises(McpError, match="Unknown run 'mill'"):
                        await client.read_resource(f"run://mill/{kind}")
        assert [run["run_id"] for run in own.structuredContent["runs"]] == ["mill"]
        assert listed.structuredContent["runs"] == resources.resources == []
        assert error_of(resumed) == error_of(missing).replace("none", "mill")
        assert error_of(taken).startswith("A run cannot be named 'mill' here.")

    async def test_another_token_cannot_cancel_it(self, reader_of, folder):
        model = Model(FACT, silent_at=4)
        reader = reader_of(model)
        async with (
            served(reader, folder) as url,
            connected(url) as client,
            connected(url, YOURS) as other,
        ):
            asking = asyncio.create_task(client.call_tool("ask_documents", ASKED))
            await model.is_silent.wait()
            # The same number, which both clients count on their own.
            await cancel(other, 1)
            beside = await other.call_tool("ask_documents", {**ASKED, "run_id": "other"})
            state = reader.summary(reader.find("mill", LOCAL))["state"]
            await cancel(client, 1)
            with pytest.raises(McpError, match="cancelled"):
                await asking
        assert beside.structuredContent["answer"] == FACT
        assert state == "reading"

    async def test_two_clients_that_choose_one_name_get_one_run(self, reader_of, folder):
        model = Model(FACT)
        async with (
            served(reader_of(model), folder) as url,
            connected(url) as first,
            connected(url) as second,
            connected(url, YOURS) as third,
        ):
            told = await asyncio.gather(
                *(client.call_tool("ask_documents", ASKED) for client in (first, second, third))
            )
        (answered,) = [result for result in told if not result.isError]
        assert answered.structuredContent["answer"] == FACT
        assert model.chunks == answered.structuredContent["usage"]["steps"]

    async def test_the_local_user_owns_all_and_keeps_theirs(self, reader_of, client_of, folder):
        reader = reader_of(Model(FACT))
        async with client_of(reader, folder) as client:
            await client.call_tool("ask_documents", {**ASKED, "run_id": "local"})
        async with served(reader, folder) as url, connected(url) as client:
            await client.call_tool("ask_documents", ASKED)
            listed = await client.call_tool("list_runs", {})
        assert [run["run_id"] for run in listed.structuredContent["runs"]] == ["mill"]
        again = reader_of(Model(FACT))
        async with client_of(again) as client:
            resumed = await client.call_tool("resume_run", {"run_id": "mill"})
            listed = await client.call_tool("list_runs", {})
        assert resumed.structuredContent["answer"] == FACT
        assert {run["run_id"] for run in listed.structuredContent["runs"]} == {"mill", "local"}

    async def test_it_stays_so_over_a_restart_and_tells_no_token(self, reader_of, folder, tmp_path):
        async with served(reader_of(Model(FACT)), folder) as url, connected(url) as client:
            await client.call_tool("ask_documents", ASKED)
        async with served(reader_of(Model(FACT)), folder) as url, connected(url) as client:
            resumed = await client.call_tool("resume_run", {"run_id": "mill"})
        assert resumed.structuredContent["answer"] == FACT
        record = (tmp_path / "data" / "runs" / "mill" / "run.json").read_text("utf-8")
        assert MINE not in record
        assert identity_of(MINE) not in record

    def test_a_mark_is_salted_and_bound_to_its_token(self):
        mine, yours = Owner(identity_of(MINE)), Owner(identity_of(YOURS))
        first, second = mine.mark(), mine.mark()
        assert first != second
        for mark in (first, second):
            assert mine.owns({"owner": mark})
            assert not yours.owns({"owner": mark})

    @pytest.mark.parametrize(
        "record",
        [{}, {"owner": ""}, {"owner": ":"}, {"owner": None}, {"owner": "ä:ö\ud800"}, {"owner": 7}],
    )
    def test_a_record_without_a_mark_is_the_local_users(self, record):
        assert not Owner(identity_of(MINE)).owns(record)
        assert LOCAL.owns(record)
        assert LOCAL.mark() is None

    def test_an_identity_is_not_shown(self):
        assert identity_of(MINE) not in repr(Owner(identity_of(MINE)))


class TestTokens:
    def test_come_from_a_file_and_the_environment(self, tmp_path):
        (tmp_path / "tokens").write_text(f"\n{MINE}\n  {YOURS}  \n{MINE}\n", "utf-8")
        assert http.tokens_from(tmp_path / "tokens", "e" * 20) == ["e" * 20, MINE, YOURS]
        assert http.tokens_from(None, " ") == http.tokens_from(None, None) == []

    @pytest.mark.parametrize("content", [b"", b"\n \n", b"short", b"\xff" * 40, b"a b" * 20])
    def test_that_cannot_be_any(self, tmp_path, content):
        (tmp_path / "tokens").write_bytes(content)
        with pytest.raises(SettingsError) as told:
            http.tokens_from(tmp_path / "tokens", None)
        assert "short" not in str(told.value)

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(SettingsError, match="No such file"):
            http.tokens_from(tmp_path / "tokens", None)

    @pytest.mark.parametrize(("mode", "is_told"), [(0o644, True), (0o640, True), (0o600, False)])
    def test_a_file_that_others_can_read_is_told(self, tmp_path, caplog, mode, is_told):
        (tmp_path / "tokens").write_text(MINE, "utf-8")
        (tmp_path / "tokens").chmod(mode)
        assert http.tokens_from(tmp_path / "tokens", None) == [MINE]
        assert ("Others on this machine can read" in caplog.text) is is_told
        assert MINE not in caplog.text

    def test_made_ones_differ(self):
        assert http.new_token() != http.new_token()
        assert len(http.new_token()) > http.TOKEN_CHARS_MIN


class TestListening:
    @pytest.mark.parametrize(
        ("host", "is_local"),
        [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False)],
    )
    def test_what_only_this_machine_reaches(self, host, is_local):
        assert http.is_loopback(host) is is_local

    def test_a_port_that_is_taken(self):
        with http.bind("127.0.0.1", 0) as listening:
            port = listening.getsockname()[1]
            with pytest.raises(SettingsError, match=r"Address already in use\. Choose another"):
                http.bind("127.0.0.1", port)

    def test_an_address_that_is_none(self):
        with pytest.raises(SettingsError, match="no such address"):
            http.bind("no host", 0)


def address(process):
    """Where the command says that it serves; fails with all that it said if it does not."""
    told = []
    while line := process.stderr.readline():
        told.append(line)
        if "http://" in line:
            return next(word for word in line.split() if "http://" in word).rstrip(";")
    raise AssertionError("".join(told))


class TestTheCommand:
    @pytest.fixture
    def command(self, tmp_path, folder):
        kept = {k: v for k, v in os.environ.items() if not k.startswith("QWENLONG_GRAPH_")}
        environment = {**kept, "QWENLONG_GRAPH_DATA": str(tmp_path / "data"), "PYTHONWARNINGS": ""}
        processes = []

        def start(*arguments, env=None):
            process = subprocess.Popen(
                [
                    PROGRAM,
                    "mcp",
                    "--transport",
                    "http",
                    "--port",
                    "0",
                    "--root",
                    folder,
                    *arguments,
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**environment, **(env or {})},
            )
            processes.append(process)
            return process

        yield start
        for process in processes:
            process.kill()
            with process:
                pass

    async def test_makes_a_token_and_says_it_once(self, command):
        process = command()
        token = process.stderr.readline().rsplit(" ", 1)[1].strip()
        url = address(process)
        async with connected(url, token) as client:
            tools = await client.list_tools()
        async with httpx.AsyncClient() as client:
            refused = await client.post(url, json=HELLO)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        assert len(tools.tools) == 4
        assert refused.status_code == 401
        assert process.returncode == 130
        assert stdout == ""
        assert token not in stderr
        assert "Traceback" not in stderr

    async def test_takes_a_token_and_says_it_never(self, command):
        process = command("--debug", env={http.TOKEN_VARIABLE: MINE})
        url = address(process)
        async with connected(url) as client:
            result = await client.call_tool("list_runs", {})
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert result.structuredContent["runs"] == []
        assert MINE not in stderr

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["--host", "0.0.0.0"], "other machines could reach it"),
            (["--host", "0.0.0.0", "--expose"], "needs a token of yours"),
            (["--token-file", "/no/such/file"], "No such file or directory"),
            (["--allow-origin", "*"], "there are no patterns"),
        ],
    )
    def test_refuses_what_is_not_safe(self, command, arguments, told):
        process = command(*arguments)
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout) == (2, "")
        assert told in " ".join(stderr.split())
