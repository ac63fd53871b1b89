"""Readings kept in a real PostgreSQL, and the example application over it as a process."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from langchain_core.documents import Document

if find_spec("langgraph.checkpoint.postgres") is None or find_spec("psycopg") is None:
    pytest.skip("the extra postgres is not installed", allow_module_level=True)

import psycopg
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from qwenlong_graph import ReadingSettings, create_memory_agent
from qwenlong_graph.errors import (
    CheckpointerKindError,
    ConnectionSetupError,
    MissingExtraError,
    RunError,
    RunLockedError,
    SettingsError,
    StoredTextChangedError,
)
from qwenlong_graph.runs.postgres import PRUNING_STEPS, make_tables, open_thread
from qwenlong_graph.testing.oracle import oracle
from tests.agents.postgres_server import postgres_server
from tests.cli.stub_server import llama_cpp
from tests.runs.reader import FACT, FILLER, calls_of, given, reader

pytestmark = [pytest.mark.contract, pytest.mark.end_to_end]

ROOT = Path(__file__).parents[2]
TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")


@pytest.fixture(scope="module")
def database():
    with postgres_server() as address:
        asyncio.run(make_tables(address))
        yield address


@pytest.fixture
def config():
    """A thread that no other test has."""
    return {"configurable": {"thread_id": str(uuid.uuid4())}}


def thread_of(config):
    return config["configurable"]["thread_id"]


def rows(database, config):
    """How many rows each table holds of a thread."""
    with psycopg.connect(database) as connection:
        return {
            table: connection.execute(
                f"SELECT count(*) FROM {table} WHERE thread_id = %s", (thread_of(config),)
            ).fetchone()[0]
            for table in TABLES
        }


class TestLangGraphsOwnCheckpointer:
    async def test_reads_as_without_one(self, database, config, tmp_path):
        expected = await reader(tmp_path, None).ainvoke(given())
        async with AsyncPostgresSaver.from_conn_string(database) as saver:
            output = await reader(tmp_path, saver).ainvoke(given(), config, durability="sync")
        assert output == expected

    async def test_of_the_wrong_kind_is_named(self, database, config, tmp_path):
        async with AsyncPostgresSaver.from_conn_string(database) as saver:
            with pytest.raises(CheckpointerKindError, match=r"compile with PostgresSaver\."):
                reader(tmp_path, saver).invoke(given(), config)
        async with open_thread(database, thread_of(config)) as saver:
            with pytest.raises(CheckpointerKindError, match=r"compile with PostgresSaver\."):
                reader(tmp_path, saver).invoke(given(), config)
        with PostgresSaver.from_conn_string(database) as saver:
            with pytest.raises(CheckpointerKindError, match="AsyncPostgresSaver"):
                await reader(tmp_path, saver).ainvoke(given(), config)
            output = reader(tmp_path, saver).invoke(given(), config)
        assert FACT in output["answer"]

    async def test_an_unfinished_reading_goes_on_and_is_never_thrown_away(
        self, database, config, tmp_path
    ):
        async with AsyncPostgresSaver.from_conn_string(database) as saver:
            with pytest.raises(Exception, match="away"):
                await reader(tmp_path, saver, fail_at=6).ainvoke(given(), config, durability="sync")
            agent = reader(tmp_path, saver)
            with pytest.raises(RunError, match="another question"):
                await agent.ainvoke({**given(), "question": "Who burnt it?"}, config)
            output = await agent.ainvoke(given(), config, durability="sync")
        calls = calls_of(tmp_path)
        assert calls[5] == calls[6]
        assert len(calls) - 1 == output["usage"]["calls"]

    async def test_the_database_holds_no_text_of_the_document(self, database, config, tmp_path):
        async with AsyncPostgresSaver.from_conn_string(database) as saver:
            await reader(tmp_path, saver).ainvoke(given(), config)
        with psycopg.connect(database) as connection:
            for table in TABLES:
                found = connection.execute(
                    f"SELECT {table}::text FROM {table} WHERE thread_id = %s", (thread_of(config),)
                )
                texts = [bytes_in(row) for (row,) in found]
                assert texts
                assert not any(FILLER.encode() in text for text in texts)
                assert any(b"Orrin" in text for text in texts) or table == "checkpoint_blobs"


class TestTables:
    @pytest.fixture
    def empty_database(self, database):
        name = f"empty_{uuid.uuid4().hex}"
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return database.replace("/postgres?", f"/{name}?")

    async def test_are_made_by_whichever_of_several_workers_comes_first(self, empty_database):
        await asyncio.gather(*(make_tables(empty_database) for _ in range(4)))
        with psycopg.connect(empty_database) as connection:
            done = connection.execute("SELECT v FROM checkpoint_migrations").fetchall()
            spoilt = connection.execute("SELECT 1 FROM pg_index WHERE NOT indisvalid").fetchall()
        assert sorted(done) == [(number,) for number in range(len(AsyncPostgresSaver.MIGRATIONS))]
        assert spoilt == []

    async def test_of_an_older_version_are_brought_up_to_date(
        self, empty_database, config, tmp_path
    ):
        with psycopg.connect(empty_database, autocommit=True) as connection:
            for number, migration in enumerate(AsyncPostgresSaver.MIGRATIONS[:4]):
                connection.execute(migration)
                connection.execute("INSERT INTO checkpoint_migrations VALUES (%s)", (number,))
        await make_tables(empty_database)
        await make_tables(empty_database)
        async with open_thread(empty_database, thread_of(config)) as saver:
            output = await reader(tmp_path, saver).ainvoke(given(), config, durability="sync")
        assert FACT in output["answer"]


class TestADatabaseThatIsAway:
    @pytest.mark.parametrize("use", [make_tables, lambda address: entered(address, "one")])
    async def test_is_told_without_the_password(self, use, tmp_path):
        address = f"postgresql://reader:the-password@/readings?host={tmp_path}"
        with pytest.raises(ConnectionSetupError, match=r"cannot be reached .*Start it") as caught:
            await use(address)
        assert "the-password" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)

    @pytest.mark.parametrize(
        "address", ["reader:the-password@host", "postgresql://a:the-password%zz@h"]
    )
    async def test_an_unreadable_address_is_not_repeated(self, address):
        with pytest.raises((SettingsError, ConnectionSetupError)) as caught:
            await make_tables(address)
        assert "the-password" not in str(caught.value)

    @pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
    async def test_a_thread_that_cannot_be_kept_is_refused(self, database, name):
        with pytest.raises(SettingsError, match="Name it otherwise"):
            await entered(database, name)


async def entered(address, name):
    async with open_thread(address, name):
        pass


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    import qwenlong_graph.runs.postgres as module

    monkeypatch.delitem(sys.modules, module.__name__)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"qwenlong-graph\[postgres\]"):
        importlib.import_module(module.__name__)


def bytes_in(row):
    """A row as PostgreSQL writes it, with its bytes put back."""
    text = row.encode()
    for part in row.split("\\\\x")[1:]:
        digits = part.partition('"')[0]
        with contextlib.suppress(ValueError):
            text += bytes.fromhex(digits)
    return text


def test_the_program_of_the_documentation_runs(database, monkeypatch, tmp_path, capsys):
    program = documented("DATABASE = ")
    for shown, here in {
        '"postgresql://reader@localhost/readings"': repr(database),
        'create_memory_agent("embedded"': "create_memory_agent(model",
    }.items():
        assert program.count(shown) == 1
        program = program.replace(shown, here)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("QWENLONG_GRAPH_DATA", str(tmp_path))
    fact = "The text itself is a work of the United States Government"
    exec(program, {"model": oracle([fact])})
    assert fact in capsys.readouterr().out


def documented(word):
    """The Python program in docs/production.md that holds `word`."""
    text = (ROOT / "docs" / "production.md").read_text("utf-8")
    (found,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.S) if word in block)
    return found


class TestOneReaderPerThread:
    async def test_a_second_one_is_refused_and_other_threads_are_free(self, database):
        async with open_thread(database, "one"), open_thread(database, "two"):
            with pytest.raises(RunLockedError, match="'one'"):
                async with open_thread(database, "one"):
                    pass
        async with open_thread(database, "one"):
            pass

    async def test_a_thread_is_free_after_a_failure(self, database):
        with pytest.raises(ZeroDivisionError):
            async with open_thread(database, "failing"):
                raise ZeroDivisionError
        async with open_thread(database, "failing"):
            pass

    async def test_one_that_lost_its_connection_writes_no_more(self, database, config, tmp_path):
        answer = oracle([FACT]).chat.replies
        calls = 0

        def reply(messages):
            nonlocal calls
            calls += 1
            if calls == 4:
                with psycopg.connect(database, autocommit=True) as other:
                    ended = other.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
                    ).fetchall()
                assert ended == [(True,)]
            return answer(messages)

        settings = ReadingSettings(strategy="memory", chunk_tokens=200)

        def agent(saver):
            model = oracle([FACT])
            model.chat.replies = reply
            return create_memory_agent(
                model, settings=settings, checkpointer=saver, document_dir=tmp_path
            )

        with pytest.raises(RunError, match="connection to the database was lost"):
            async with open_thread(database, thread_of(config)) as saver:
                await agent(saver).ainvoke(given(), config, durability="sync")
        assert calls == 4
        async with open_thread(database, thread_of(config)) as saver:
            output = await agent(saver).ainvoke(None, config, durability="sync")
        assert FACT in output["answer"]
        assert calls == output["usage"]["calls"] + 1

    async def test_an_error_that_is_not_a_lost_connection_stays_what_it_is(self, database):
        async def sleep():
            async with open_thread(database, "slow") as saver:
                await saver.conn.execute("SET statement_timeout = 1")
                await saver.conn.execute("SELECT pg_sleep(10)")

        with pytest.raises(psycopg.errors.QueryCanceled):
            await sleep()


class TestAMachineWithoutTheTexts:
    async def test_says_so_and_goes_on_when_they_are_given_again(self, database, config, tmp_path):
        (tmp_path / "other").mkdir()
        async with open_thread(database, thread_of(config)) as saver:
            with pytest.raises(Exception, match="away"):
                await reader(tmp_path, saver, fail_at=6).ainvoke(given(), config, durability="sync")
        async with open_thread(database, thread_of(config)) as saver:
            there = reader(tmp_path / "other", saver)
            with pytest.raises(StoredTextChangedError, match="Load the document again"):
                await there.ainvoke(None, config, durability="sync")
            output = await there.ainvoke(given(), config, durability="sync")
        assert FACT in output["answer"]
        assert (
            len(calls_of(tmp_path)) + len(calls_of(tmp_path / "other"))
            == output["usage"]["calls"] + 1
        )


class TestHistory:
    async def test_of_a_long_reading_stays_bounded(self, database, config, tmp_path):
        async with open_thread(database, thread_of(config)) as saver:
            output = await reader(tmp_path, saver).ainvoke(
                given(sentences=1_600), config, durability="sync"
            )
        assert output["usage"]["steps"] > 2 * PRUNING_STEPS
        counted = rows(database, config)
        assert 1 <= counted["checkpoints"] <= PRUNING_STEPS + 1
        # A step of this graph makes no more than a dozen writes.
        assert counted["checkpoint_writes"] <= 12 * (PRUNING_STEPS + 1)
        assert counted["checkpoint_blobs"] <= 12 * (PRUNING_STEPS + 1)

    async def test_pruning_leaves_what_a_resume_needs(self, database, config, tmp_path):
        expected = await reader(tmp_path / "whole", None).ainvoke(given())
        async with open_thread(database, thread_of(config)) as saver:
            with pytest.raises(Exception, match="away"):
                await reader(tmp_path, saver, fail_at=20).ainvoke(
                    given(), config, durability="sync"
                )
            await saver.aprune([thread_of(config)])
            assert rows(database, config)["checkpoints"] == 1
            output = await reader(tmp_path, saver).ainvoke(None, config, durability="sync")
        assert output == {**expected, "usage": output["usage"]}

    async def test_what_postgresql_cannot_hold_is_replaced(self, database, config, tmp_path):
        fact = FACT.replace("crowns", "cro\0wns")
        document = Document(f"{FILLER * 60}{fact} {FILLER * 60}")
        async with open_thread(database, thread_of(config)) as saver:
            agent = create_memory_agent(
                oracle([fact]),
                settings=ReadingSettings(strategy="memory", chunk_tokens=200),
                checkpointer=saver,
                document_dir=tmp_path,
            )
            await agent.ainvoke({"question": "Who \ud800 paid\0?", "documents": [document]}, config)
            kept = (await agent.aget_state(config)).values
        assert kept["question"] == "Who \ufffd paid\ufffd?"
        assert kept["answer"] == fact.replace("\0", "\ufffd")
        (citation,) = kept["citations"]
        assert len(kept["answer"]) == citation["answer_spans"][0]["end_index"]


# The example application.

TOKENS = {"hale": "the-token-of-the-widow-hale", "orrin": "the-token-of-the-town-of-orrin"}
TEXT = FILLER * 200 + FACT + " " + FILLER * 200
ASKED = {
    "question": "Who paid for the bridge?",
    "documents": [{"page_content": TEXT, "metadata": {"title": "annals"}}],
}


class App:
    """The example as a process that can be killed and started again on its port."""

    def __init__(self, folder, database, model, hold):
        self.folder = folder
        self.model = model
        self.hold = hold
        (folder / "tokens").write_text("".join(f"{u} {t}\n" for u, t in TOKENS.items()))
        kept = {n: v for n, v in os.environ.items() if not n.startswith("QWENLONG_GRAPH_")}
        self.environment = {
            **kept,
            "PYTHONWARNINGS": "",
            "READER_DATABASE": database,
            "READER_TOKENS": str(folder / "tokens"),
            "QWENLONG_GRAPH_MODEL": model.url,
            "QWENLONG_GRAPH_DATA": str(folder / "data"),
        }
        self.process = None
        self.url = None

    def start(self):
        log = (self.folder / "log").open("a+")
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "uvicorn", "asgi_app:app", "--app-dir", ROOT / "examples",
                "--port", "0", "--timeout-graceful-shutdown", "1",
            ],
            cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=log,
        )  # fmt: skip
        log.close()
        started = len((self.folder / "log").read_text().split("running on ")) - 1
        deadline = time.monotonic() + 60
        while len(said := (self.folder / "log").read_text().split("running on ")) - 1 == started:
            assert self.process.poll() is None, "".join(said)
            assert time.monotonic() < deadline, "".join(said)
            time.sleep(0.05)
        self.url = said[-1].split()[0]

    def end(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        self.process.wait(60)

    def client(self, user="hale"):
        headers = {"Authorization": f"Bearer {TOKENS[user]}"} if user else {}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=60)


@pytest.fixture(scope="module")
def app(database, tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    hold = Hold()
    with llama_cpp(facts=[FACT], reply=hold.reply) as model:
        app = App(folder, database, model, hold)
        app.start()
        try:
            yield app
        finally:
            app.process.kill()
            app.process.wait()


@pytest.fixture
def client(app):
    with app.client() as client:
        yield client


def events_of(response):
    """(name, data) of each server-sent event as it comes."""
    assert response.status_code == 200, response.read()
    name = None
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def ask(client, asked=ASKED):
    with client.stream("POST", "/readings", json=asked) as response:
        return list(events_of(response))


class Hold:
    """Lets a model reply, but for the call whose number counts down to zero."""

    def __init__(self):
        self.left = 0
        self.reached = threading.Event()
        self.released = threading.Event()

    def reply(self, prompt):
        self.left -= 1
        if self.left == 0:
            self.reached.set()
            self.released.wait()


@contextlib.contextmanager
def held_open(app, client, *, at):
    """A reading whose model call number `at` does not end before the block does."""
    app.hold.left = at
    app.hold.reached.clear()
    app.hold.released.clear()
    try:
        with client.stream("POST", "/readings", json=ASKED) as response:
            events = events_of(response)
            name, data = next(events)
            assert name == "reading"
            assert app.hold.reached.wait(60)
            yield data["id"], events
    finally:
        app.hold.released.set()


class TestTheApplication:
    def test_streams_a_reading_and_shows_it_afterwards(self, app, client):
        events = ask(client)
        assert next(name for name, _ in events) == "reading"
        assert {name for name, _ in events[1:-1]} == {"progress"}
        assert [data["type"] for _, data in events[1:4]] == [
            "started",
            "chunk_read",
            "memory_updated",
        ]
        name, answer = events[-1]
        assert name == "answer"
        (citation,) = answer["citations"]
        assert TEXT[citation["start_char"] : citation["end_char"]] == FACT
        shown = client.get(f"/readings/{events[0][1]['id']}").json()
        assert shown["state"] == "answered"
        assert {name: shown[name] for name in answer} == answer

    def test_shows_a_user_the_readings_of_nobody_else(self, app, client):
        number = ask(client)[0][1]["id"]
        with app.client("orrin") as other:
            for response in (
                other.get(f"/readings/{number}"),
                other.post(f"/readings/{number}/resume"),
                other.post(f"/readings/{number}/cancel"),
            ):
                assert response.status_code == 404
        with app.client(None) as nobody:
            assert nobody.get(f"/readings/{number}").status_code == 401
            assert nobody.post("/readings", json=ASKED).status_code == 401
            nobody.headers["Authorization"] = "Bearer guessed"
            assert nobody.get(f"/readings/{number}").status_code == 401

    @pytest.mark.parametrize(
        "asked",
        [
            {},
            [],
            {"question": "Who?"},
            {"question": 3, "documents": []},
            {"question": "Who?", "documents": ["/etc/passwd"]},
            {"question": "Who?", "documents": [{"collection_id": "0" * 64}]},
            {"question": "Who?", "documents": [{"page_content": None}]},
            {"question": "Who?", "documents": [{"page_content": "x", "metadata": "y"}]},
            {"question": "Who?", "documents": 3},
        ],
    )
    def test_refuses_what_is_no_question_about_texts(self, client, asked):
        response = client.post("/readings", json=asked)
        assert response.status_code == 400
        assert "page_content" in response.json()["message"]

    def test_refuses_what_is_no_json_and_what_is_too_large(self, client):
        assert client.post("/readings", content=b"[" * 100_000).status_code == 400
        assert client.post("/readings", content=b"\xff").status_code == 400
        blank = b" " * (1 << 20)
        response = client.post("/readings", content=(blank for _ in range(65)))
        assert response.status_code == 413

    def test_tells_what_is_wrong_with_a_question_or_a_document(self, client):
        for changed, error in (
            ({"question": " "}, "QuestionError"),
            ({"documents": []}, "NoDocumentsError"),
            ({"documents": [{"page_content": ""}]}, "EmptyDocumentError"),
        ):
            name, data = ask(client, {**ASKED, **changed})[-1]
            assert (name, data["error"]) == ("error", error)
            assert data["message"]

    @pytest.mark.parametrize("number", ["1", "x%00", "84eb2a79-8fa0-438f-b71b-38e677895810"])
    def test_knows_no_other_readings(self, client, number):
        assert client.get(f"/readings/{number}").status_code == 404
        assert client.post(f"/readings/{number}/resume").status_code == 404

    def test_cancels_a_reading_and_resumes_it(self, app, client):
        before = len(app.model.prompts)
        with held_open(app, client, at=3) as (number, events):
            assert client.get(f"/readings/{number}").json()["state"] == "reading"
            assert client.post(f"/readings/{number}/resume").status_code == 409
            stopped = client.post(f"/readings/{number}/cancel").json()
            assert stopped["state"] == "stopped"
            assert list(events)[-1][0] == "cancelled"
            assert client.post(f"/readings/{number}/cancel").status_code == 409
        assert_goes_on(app, client, number, before, open_call=3)
        # A finished one gives its answer again, and asks no model for it.
        after = len(app.model.prompts)
        with client.stream("POST", f"/readings/{number}/resume") as response:
            assert list(events_of(response))[-1][0] == "answer"
        assert len(app.model.prompts) == after

    def test_goes_on_when_its_watcher_leaves(self, app, client):
        with app.client() as leaving, held_open(app, leaving, at=3) as (number, _):
            pass
        deadline = time.monotonic() + 60
        while (shown := client.get(f"/readings/{number}").json())["state"] == "reading":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert shown["state"] == "answered"

    async def test_leaves_a_thread_to_the_process_that_reads_it(self, app, client, database):
        with held_open(app, client, at=3) as (number, _):
            with pytest.raises(RunLockedError):
                async with open_thread(database, f"hale/{number}"):
                    pass
            client.post(f"/readings/{number}/cancel")
        async with open_thread(database, f"hale/{number}"):
            response = client.post(f"/readings/{number}/resume")
            assert response.status_code == 409
            assert "by another process" in response.json()["message"]
        with client.stream("POST", f"/readings/{number}/resume") as response:
            assert list(events_of(response))[-1][0] == "answer"

    def test_a_reading_that_lost_the_database_says_so_and_is_resumed(self, app, client, database):
        before = len(app.model.prompts)
        with held_open(app, client, at=3) as (number, events):
            with psycopg.connect(database, autocommit=True) as other:
                other.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
                )
            app.hold.released.set()
            name, data = list(events)[-1]
        assert (name, data["error"]) == ("error", "RunError")
        assert "connection to the database was lost" in data["message"]
        assert client.get(f"/readings/{number}").json()["state"] == "stopped"
        assert_goes_on(app, client, number, before, open_call=3)

    def test_says_that_the_database_is_away_until_it_is_back(self, app, client, database):
        number = ask(client)[0][1]["id"]
        with psycopg.connect(database.replace("/postgres?", "/template1?"), autocommit=True) as all:
            all.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS false")
            try:
                all.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = 'postgres'"
                )
                for response in (
                    client.get(f"/readings/{number}"),
                    client.post("/readings", json=ASKED),
                ):
                    assert response.status_code == 503
                    assert "none is lost" in response.json()["message"]
            finally:
                all.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS true")
        assert client.get(f"/readings/{number}").json()["state"] == "answered"
        assert ask(client)[-1][0] == "answer"

    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
    def test_a_new_process_repeats_at_most_the_open_call(self, app, how):
        before = len(app.model.prompts)
        with (
            app.client() as client,
            contextlib.suppress(httpx.RemoteProtocolError),
            held_open(app, client, at=4) as (number, events),
        ):
            app.end(how)
            list(events)
        app.start()
        with app.client() as client:
            shown = client.get(f"/readings/{number}").json()
            assert shown["state"] == "stopped"
            assert shown["step"] > 0
            assert_goes_on(app, client, number, before, open_call=4)


def assert_goes_on(app, client, number, before, *, open_call):
    with client.stream("POST", f"/readings/{number}/resume") as response:
        events = list(events_of(response))
    name, answer = events[-1]
    assert name == "answer"
    assert FACT in answer["answer"]
    sent = app.model.prompts[before:]
    assert sent[open_call - 1] == sent[open_call]
    assert len({*sent}) == len(sent) - 1 == answer["usage"]["calls"]
