"""The graphs of langgraph.json in a real LangGraph Server, asked through its own client.

One server serves all tests. Nothing may reach beyond the loopback address: what its Python code
connects to is written down, and every proxy it could use is a trap.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from langchain_core.documents import Document

from qwenlong_graph.documents.store import DocumentStore
from qwenlong_graph.errors import RunError, RunNotFoundError
from qwenlong_graph.report import reading_of_server, report_page
from tests.cli.stub_server import llama_cpp
from tests.models.stub_server import Endless

if find_spec("langgraph_cli") is None or find_spec("langgraph_api") is None:
    pytest.skip("langgraph-cli[inmem] is not installed", allow_module_level=True)

from langgraph_sdk import get_client
from langgraph_sdk.errors import ConflictError

pytestmark = [pytest.mark.contract, pytest.mark.end_to_end]

ROOT = Path(__file__).parents[2]
FOREIGN = ("QWENLONG_GRAPH_", "LANGSMITH_", "LANGCHAIN_", "LANGGRAPH_", "OTEL_")
FACT = "The widow Hale paid 318,000 crowns for the bridge at Orrin."
FILLER = "The winter was long and the traders stayed away from the coast. "
TEXT = FILLER * 200 + FACT + " " + FILLER * 200
QUESTION = "Who paid for the bridge?"
GIVEN = {
    "question": QUESTION,
    "documents": [{"page_content": TEXT, "metadata": {"title": "annals"}}],
}
SECRET = "The password of the keep is Velreply."

# What a user's own module would be. Nothing listens at the address.
OWN_GRAPHS = """
from qwenlong_graph import ReadingSettings
from qwenlong_graph.agents.serving import ServedGraphs

away = ServedGraphs("http://127.0.0.1:{port}", settings=ReadingSettings()).memory_agent
"""

# Loaded by every Python process of the server: writes down each address that is not this machine.
WATCH = """
import os, sys

def watch(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
    elif event == "socket.getaddrinfo":
        address = arguments[:2]
    else:
        return
    host = address[0] if isinstance(address, tuple) else "127.0.0.1"
    if host not in ("127.0.0.1", "::1", "localhost", "0.0.0.0", None, ""):
        with open(os.environ["WATCHED"], "a") as log:
            log.write(f"{event} {address}\\n")

sys.addaudithook(watch)
"""


class Trickle(Endless):
    """A reply that goes on and on, in words that differ, until the client leaves."""

    def send(self, handler):
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.end_headers()
        number = 0
        try:
            while True:
                number += 1
                handler.wfile.write(self.event.replace(b"@", str(number).encode()))
                time.sleep(0.01)
        except OSError:
            self.is_left.set()


class Server:
    """A running LangGraph Server, the model behind it, and what left the machine."""

    def __init__(self, url, model, roots, watched):
        self.url = url
        self.model = model
        self.roots = roots
        self.watched = watched
        self.reply = None
        self.assistants = {}
        self.asked_before_any_run = None

    def client(self):
        return get_client(url=self.url, api_key=None)

    @contextlib.contextmanager
    def replying(self, reply):
        self.reply = reply
        try:
            yield
        finally:
            self.reply = None


@contextlib.contextmanager
def proxy_trap():
    """(address, requests) of a proxy that takes down what it is asked, and passes on nothing."""
    requests = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            requests.append(self.request.recv(200))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as trap:
        threading.Thread(target=trap.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{trap.server_address[1]}", requests
        trap.shutdown()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("langgraph")
    (folder / "roots").mkdir()
    (folder / "roots" / "annals.txt").write_text(TEXT)
    (folder / "secret.txt").write_text(SECRET)
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCH)
    (folder / "own_graphs.py").write_text(OWN_GRAPHS.format(port=free_port()))
    config = json.loads((ROOT / "langgraph.json").read_text("utf-8"))
    config["graphs"]["away"] = "./own_graphs.py:away"
    (folder / "langgraph.json").write_text(json.dumps(config))
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(llama_cpp(facts=[FACT], reply=lambda prompt: reply(prompt)))
        trap, trapped = stack.enter_context(proxy_trap())
        port = free_port()
        served = Server(f"http://127.0.0.1:{port}", model, folder / "roots", folder / "watched")
        reply = lambda prompt: served.reply and served.reply(prompt)  # noqa: E731
        served.trapped = trapped
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        environment = {
            **kept,
            "PYTHONPATH": str(folder / "watch"),
            "PYTHONWARNINGS": "",
            "WATCHED": str(served.watched),
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), trap),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "LANGGRAPH_CLI_NO_ANALYTICS": "1",
            "LANGGRAPH_NO_VERSION_CHECK": "true",
            "LANGSMITH_TRACING": "false",
            "QWENLONG_GRAPH_MODEL": model.url,
            "QWENLONG_GRAPH_ROOTS": str(folder / "roots"),
            "QWENLONG_GRAPH_DATA": str(folder / "data"),
        }
        log = stack.enter_context((folder / "log").open("w+"))
        process = subprocess.Popen(
            [
                sys.executable, "-m", "langgraph_cli", "dev", "--no-browser", "--no-reload",
                "--port", str(port), "--n-jobs-per-worker", "2",
            ],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{served.url}/ok", trust_env=False).is_success:
                        break
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
            asyncio.run(look_around(served))
            yield served
        finally:
            process.terminate()
            process.wait()


async def look_around(server):
    """What a client such as Studio asks before any run."""
    async with server.client() as client:
        for assistant in await client.assistants.search():
            schemas = await client.assistants.get_schemas(assistant["assistant_id"])
            graph = await client.assistants.get_graph(assistant["assistant_id"])
            server.assistants[assistant["graph_id"]] = (assistant, schemas, graph)
    server.asked_before_any_run = len(server.model.prompts) + len(server.model.keys)


@pytest.fixture
async def client(server):
    async with server.client() as client:
        yield client


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def run(client, graph="memory_agent", *, thread=None, **options):
    """(thread id, [(event, data)]) of a run to its end; errors are events too."""
    if thread is None:
        thread = (await client.threads.create())["thread_id"]
    streamed = client.runs.stream(thread, graph, **{"stream_mode": ["custom", "values"], **options})
    return thread, [(part.event, part.data) async for part in streamed if part.event != "metadata"]


async def error_of(client, graph="memory_agent", **options):
    """What a client is told of a run that fails."""
    _, events = await run(client, graph, **options)
    event, data = events[-1]
    assert event == "error", events
    return data["message"]


def prompts_with(server, word):
    return [prompt for prompt in server.model.prompts if word in prompt]


def test_the_server_starts_and_shows_its_graphs_without_asking_the_model(server):
    assert {"memory_agent", "document_chat", "away"} <= server.assistants.keys()
    for name in ("memory_agent", "document_chat", "reviewed_agent"):
        assert server.assistants[name][0]["description"]
    assert server.asked_before_any_run == 0
    nodes = [node["id"] for node in server.assistants["memory_agent"][2]["nodes"]]
    assert {"decompose", "read_chunk", "update_memory", "finalize"} <= {*nodes}


def test_the_input_schema_says_what_to_send(server):
    schema = server.assistants["memory_agent"][1]["input_schema"]
    assert schema["properties"]["question"]["type"] == "string"
    assert {"question", "documents"} <= {*schema["required"]}
    text, file = schema["properties"]["documents"]["items"]["anyOf"]
    assert text["required"] == ["page_content"]
    assert file["type"] == "string"
    for field, shown in schema["properties"].items():
        assert shown["title"], field
        assert shown["description"], field
    output = server.assistants["memory_agent"][1]["output_schema"]["properties"]
    assert {"answer", "citations", "unsupported"} <= output.keys()
    assert all(shown["description"] for shown in output.values())
    chat = server.assistants["document_chat"][1]["input_schema"]["properties"]
    assert {"messages", "documents", "files"} <= chat.keys()
    for field, shown in chat.items():
        assert shown["title"], field
        assert shown["description"], field


async def test_progress_and_states_are_streamed_in_order(client):
    thread, events = await run(client, input=GIVEN)
    progress = [data for event, data in events if event == "custom"]
    states = [data for event, data in events if event == "values"]
    assert {event for event, _ in events} == {"custom", "values"}
    steps = states[-1]["usage"]["steps"]
    assert steps > 2
    reading = [kind for _ in range(steps) for kind in ("chunk_read", "memory_updated")]
    assert [one["type"] for one in progress] == ["started", *reading, "finalizing", "answered"]
    assert [one["step"] for one in progress if one["type"] == "chunk_read"] == [*range(steps)]
    updated = [number for number, (_, data) in enumerate(events) if is_update(data)]
    # The state after each update comes before the next chunk.
    assert all(events[number + 1][0] == "values" for number in updated)
    (citation,) = states[-1]["citations"]
    assert TEXT[citation["start_char"] : citation["end_char"]] == citation["cited_text"] == FACT
    assert FACT in states[-1]["answer"]

    kept = await client.threads.get_state(thread)
    assert kept["next"] == []
    assert {name: kept["values"][name] for name in states[-1]} == states[-1]
    history = await client.threads.get_history(thread, limit=100)
    assert FILLER * 2 not in json.dumps([kept, history])


async def test_a_thread_becomes_a_report(client, server, tmp_path):
    thread, events = await run(client, input=GIVEN)
    state = events[-1][1]
    store = DocumentStore(server.roots.parent / "data" / "documents")

    def reported():
        # A page of a few states, so that several are asked for.
        return reading_of_server(server.url, thread, store, states_at_once=3)

    reading = await asyncio.to_thread(reported)
    assert len(reading.entries) == state["usage"]["steps"]
    assert [line for entry in reading.entries for line in entry["lines_added"]] == (
        state["memory"].splitlines()
    )
    assert f"<mark>{FACT}</mark>" in report_page(reading)


async def test_a_report_of_no_thread_is_refused(server, tmp_path):
    store = DocumentStore(tmp_path)
    nobody = "00000000-0000-4000-8000-000000000000"
    with pytest.raises(RunNotFoundError, match=nobody):
        await asyncio.to_thread(reading_of_server, server.url, nobody, store)
    with pytest.raises(RunError, match="cannot be asked"):
        await asyncio.to_thread(reading_of_server, f"http://127.0.0.1:{free_port()}", nobody, store)


def is_update(data):
    return isinstance(data, dict) and data.get("type") == "memory_updated"


async def test_a_serialised_langchain_document_is_read(client):
    document = Document(FACT, metadata={"title": "annals"})
    _, events = await run(client, input={"question": QUESTION, "documents": [document.to_json()]})
    (citation,) = events[-1][1]["citations"]
    assert citation["document_title"] == "annals"


async def test_a_file_below_the_roots_is_read_by_its_name(client):
    _, events = await run(client, input={"question": QUESTION, "documents": ["annals.txt"]})
    assert FACT in events[-1][1]["answer"]


class TestFilesOutsideOfTheRoots:
    async def test_are_refused_as_input(self, client, server):
        secret = str(server.roots.parent / "secret.txt")
        for name in (secret, "../secret.txt"):
            message = await error_of(client, input={"question": QUESTION, "documents": [name]})
            assert message.startswith("DocumentNotAllowedError: ")
            assert str(server.roots) in message

    async def test_are_refused_where_a_client_writes_the_state(self, client, server):
        values = {
            "question": QUESTION,
            "documents": [str(server.roots.parent / "secret.txt")],
        }
        thread = (await client.threads.create(graph_id="memory_agent"))["thread_id"]
        await client.threads.update_state(thread, values, as_node="__start__")
        message = await error_of(client, thread=thread, input=None)
        assert message.startswith("DocumentNotAllowedError: ")

    async def test_are_refused_where_a_client_chooses_the_node(self, client, server):
        values = {
            "question": QUESTION,
            "documents": [str(server.roots.parent / "secret.txt")],
        }
        thread, _ = await run(
            client, input={"question": QUESTION, "documents": [{"page_content": FACT}]}
        )
        command = {"goto": {"node": "decompose", "input": values}}
        message = await error_of(client, thread=thread, command=command)
        assert message.startswith("DocumentNotAllowedError: ")

    async def test_are_not_read_by_the_chat(self, client, server):
        given = {
            "messages": [{"role": "user", "content": QUESTION}],
            "documents": [str(server.roots.parent / "secret.txt")],
        }
        _, events = await run(client, "document_chat", input=given)
        assert SECRET not in json.dumps(events)
        assert not prompts_with(server, "Velreply")


async def test_a_reading_pauses_is_edited_and_goes_on_with_the_edit(client, server):
    before = len(server.model.prompts)
    thread, _ = await run(client, input=GIVEN, interrupt_before=["update_memory"])
    paused = await client.threads.get_state(thread)
    assert paused["values"]["memory"] == ""
    assert paused["next"] == ["update_memory"]
    asked = server.model.prompts[before:]

    edit = "- The bridge lies at Orrin, says the reader."
    await client.threads.update_state(thread, {"memory": edit})
    _, events = await run(client, thread=thread, input=None)
    assert next(data["step"] for _, data in events if data.get("type") == "memory_updated") == 0
    update = server.model.prompts[before + len(asked)]
    assert edit in update
    assert "says the reader" in events[-1][1]["memory"]
    assert FACT in events[-1][1]["answer"]


async def test_a_review_pauses_is_answered_and_goes_on(client, server):
    thread, events = await run(client, "reviewed_agent", input=GIVEN)
    (interrupt,) = events[-1][1]["__interrupt__"]
    request = interrupt["value"]
    assert (request["type"], request["memory"]) == ("review", f"- {FACT}")
    assert request["evidence"][0]["text"] == FACT
    before = len(server.model.prompts)
    _, events = await run(
        client, "reviewed_agent", thread=thread, command={"resume": {"action": "skip"}}
    )
    assert "either" in events[-1][1]["__interrupt__"][0]["value"]["problem"]
    assert len(server.model.prompts) == before
    _, events = await run(
        client, "reviewed_agent", thread=thread, command={"resume": {"action": "answer"}}
    )
    assert FACT in events[-1][1]["answer"]
    assert events[-1][1]["skipped"]
    assert len(server.model.prompts) == before + 1


async def test_cancelling_stops_the_model_call_and_the_reading_goes_on_later(client, server):
    endless = Trickle({"content": "word@ "})
    began = threading.Event()

    def reply(prompt):
        if "Section 3 of" not in prompt:
            return None
        began.set()
        return endless

    thread = (await client.threads.create())["thread_id"]
    before = len(server.model.prompts)
    with server.replying(reply):
        started = await client.runs.create(thread, "memory_agent", input=GIVEN)
        assert await asyncio.to_thread(began.wait, 60)
        await client.runs.cancel(thread, started["run_id"], wait=True)
        assert await asyncio.to_thread(endless.is_left.wait, 60)
    assert (await client.threads.get_state(thread))["next"] == ["update_memory"]

    other = {**GIVEN, "question": "Who burnt it down?"}
    assert (await error_of(client, thread=thread, input=other)).startswith("RunError: ")

    # The same input goes on, as it does with any checkpointer.
    _, events = await run(client, thread=thread, input=GIVEN)
    assert FACT in events[-1][1]["answer"]
    sent = server.model.prompts[before:]
    assert len(sent) == events[-1][1]["usage"]["calls"] + 1
    repeated = [prompt for prompt in {*sent} if sent.count(prompt) > 1]
    assert len(repeated) == 1
    assert "Section 3 of" in repeated[0]


class TestTwoClientsOnOneThread:
    """The first is held within its third section when the second comes."""

    @pytest.fixture
    async def held(self, client, server):
        """(thread, run, release) of a run whose model call does not end before `release`."""
        began, released = threading.Event(), threading.Event()

        def reply(prompt):
            if "Section 3 of" in prompt and not began.is_set():
                began.set()
                released.wait(60)

        thread = (await client.threads.create())["thread_id"]
        with server.replying(reply):
            started = await client.runs.create(thread, "memory_agent", input=GIVEN)
            assert await asyncio.to_thread(began.wait, 60)
            yield thread, started["run_id"], released.set
            released.set()

    async def test_the_second_waits_by_default(self, client, server, held):
        thread, first, release = held
        before = len(server.model.prompts)
        second = await client.runs.create(thread, "memory_agent", input=GIVEN)
        assert (await client.runs.get(thread, second["run_id"]))["status"] == "pending"
        assert len(server.model.prompts) == before
        release()
        await client.runs.join(thread, first)
        answered = await client.runs.join(thread, second["run_id"])
        assert (await client.runs.get(thread, first))["status"] == "success"
        assert FACT in answered["answer"]

    async def test_the_second_can_ask_to_be_refused(self, client, held):
        thread, first, release = held
        with pytest.raises(ConflictError):
            await client.runs.create(
                thread, "memory_agent", input=GIVEN, multitask_strategy="reject"
            )
        release()
        assert FACT in (await client.runs.join(thread, first))["answer"]

    async def test_the_second_can_take_over_and_goes_on(self, client, server, held):
        thread, first, release = held
        before = len(server.model.prompts)
        second = await client.runs.create(
            thread, "memory_agent", input=GIVEN, multitask_strategy="interrupt"
        )
        answered = await client.runs.join(thread, second["run_id"])
        release()
        assert FACT in answered["answer"]
        assert (await client.runs.get(thread, first))["status"] == "interrupted"
        assert "Section 3 of" in server.model.prompts[before]
        assert not any("Section 1 of" in prompt for prompt in server.model.prompts[before:])


async def test_the_chat_reads_what_is_attached_to_a_message(client):
    content = [
        {"type": "text", "text": QUESTION},
        {"type": "text-plain", "text": TEXT, "title": "annals"},
    ]
    _, events = await run(
        client, "document_chat", input={"messages": [{"role": "user", "content": content}]}
    )
    assert "memory_updated" in [data.get("type") for event, data in events if event == "custom"]
    (block,) = events[-1][1]["messages"][-1]["content"]
    assert FACT in block["text"]
    assert block["annotations"][0]["title"] == "annals"


async def test_a_model_that_is_away_is_told_to_the_client(client):
    message = await error_of(client, "away", input=GIVEN)
    assert message.startswith("ConnectionSetupError: ")
    assert "127.0.0.1" in message


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"question": "", "documents": GIVEN["documents"]}, "QuestionError: "),
        ({"question": QUESTION, "documents": []}, "NoDocumentsError: "),
        ({"question": QUESTION, "documents": [{"page_content": 3}]}, "SettingsError: "),
    ],
)
async def test_bad_input_is_told_to_the_client(client, given, error):
    assert (await error_of(client, input=given)).startswith(error)


def test_the_client_of_the_documentation_runs(server, capsys, monkeypatch):
    text = (ROOT / "docs" / "production.md").read_text("utf-8")
    programs = re.findall(r"```python\n(.*?)```", text, re.S)
    (program,) = (block for block in programs if "get_client" in block)
    for shown, here in {
        "http://127.0.0.1:2024": server.url,
        "contract.txt": "annals.txt",
    }.items():
        assert program.count(shown) == 1
        program = program.replace(shown, here)
    monkeypatch.chdir(server.roots)
    exec(program, {})
    assert FACT in capsys.readouterr().out


def test_no_web_page_but_studio_may_ask(server):
    def preflight(origin):
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        response = httpx.options(f"{server.url}/runs/wait", headers=asked, trust_env=False)
        return response.headers.get("access-control-allow-origin")

    assert preflight("https://smith.langchain.com") == "https://smith.langchain.com"
    assert preflight("https://example.com") is None


def test_nothing_left_this_machine(server):
    assert server.watched.exists() is False, server.watched.read_text()
    assert server.trapped == []
