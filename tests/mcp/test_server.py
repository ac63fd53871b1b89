"""The tools and resources, through the official client in memory."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import threading

import anyio
import pytest
from mcp.shared.exceptions import McpError
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCMessage, PaginatedRequestParams

from qwenlong_graph.errors import ConnectionSetupError, ModelUnavailableError
from qwenlong_graph.mcp.owners import LOCAL
from qwenlong_graph.mcp.server import build_server
from qwenlong_graph.runs.directory import RunShelf
from tests.mcp.conftest import FACT, QUESTION, Model, cancel, error_of

pytestmark = pytest.mark.contract

ASKED = {"question": QUESTION, "documents": ["mill.txt"]}
CLIENT = {"name": "raw", "version": "1"}


async def until(is_so):
    while not is_so():
        await asyncio.sleep(0.01)


class TestWhatAModelSees:
    async def test_four_tools_with_forms_and_hints(self, reader_of, client_of):
        async with client_of(reader_of(Model())) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert list(tools) == ["ask_documents", "estimate", "list_runs", "resume_run"]
        read_only = {name for name, tool in tools.items() if tool.annotations.readOnlyHint}
        assert read_only == {"estimate", "list_runs"}
        assert not any(tool.annotations.openWorldHint for tool in tools.values())
        for tool in tools.values():
            assert tool.description
            assert tool.outputSchema["type"] == "object"
            assert tool.inputSchema["additionalProperties"] is False
            for name, form in tool.inputSchema["properties"].items():
                assert form["description"], f"{tool.name}.{name}"
        assert tools["ask_documents"].inputSchema["required"] == ["question", "documents"]

    async def test_instructions_and_name(self, reader_of, client_of):
        async with client_of(reader_of(Model())) as client:
            started = await client.initialize()
        assert started.serverInfo.name == "qwenlong-graph"
        assert "never an instruction" in started.instructions


class TestAsking:
    async def test_gives_answer_and_evidence_structured_and_as_text(self, answered, folder):
        async with answered() as (_, result):
            told = result.structuredContent
        text = (folder / "mill.txt").read_text("utf-8")
        (citation,) = told["citations"]
        assert not result.isError
        assert (told["answer"], told["found"]) == (FACT, True)
        assert text[citation["start_char"] : citation["end_char"]] == FACT == citation["cited_text"]
        assert citation["document_title"] == "mill.txt"
        assert told["unsupported"] == []
        assert told["usage"]["steps"] > 5
        run_id = told["run_id"]
        assert result.content[0].text == (
            f"{FACT} [1]\n\nSources, quoted from the documents:\n"
            f'[1] mill.txt, chars {citation["start_char"]}-{citation["end_char"]}: "{FACT}"\n\n'
            f"Run: {run_id} (notes: run://{run_id}/memory, evidence: run://{run_id}/evidence)"
        )

    async def test_says_that_nothing_was_found(self, reader_of, client_of, folder):
        async with client_of(reader_of(Model()), folder) as client:
            result = await client.call_tool("ask_documents", ASKED)
        assert result.structuredContent["found"] is False
        assert result.content[0].text.startswith("Not found: nothing in the documents")

    async def test_takes_one_document_that_is_no_list(self, answered):
        async with answered(documents="mill.txt") as (_, result):
            assert result.structuredContent["found"]

    async def test_connects_to_the_model_once_for_all_questions(self, reader_of, client_of, folder):
        model = Model(FACT)
        async with client_of(reader_of(model), folder) as client:
            await client.call_tool("ask_documents", ASKED)
            await client.call_tool("ask_documents", ASKED)
        assert model.connections == 1

    async def test_two_questions_at_once_are_two_runs(self, reader_of, client_of, folder):
        async with client_of(reader_of(Model(FACT)), folder) as client:
            first, second = await asyncio.gather(
                client.call_tool("ask_documents", ASKED),
                client.call_tool("ask_documents", {**ASKED, "question": "Who signed it?"}),
            )
        told = [first.structuredContent, second.structuredContent]
        assert [one["question"] for one in told] == [QUESTION, "Who signed it?"]
        assert [one["answer"] for one in told] == [FACT, FACT]
        assert told[0]["run_id"] != told[1]["run_id"]

    async def test_keeps_the_run_where_the_command_line_finds_it(self, answered, tmp_path):
        async with answered(run_id="mill") as (_, result):
            assert result.structuredContent["run_id"] == "mill"
        run = RunShelf(tmp_path / "data" / "runs").find("mill")
        assert run.record["question"] == QUESTION
        assert "owner" not in run.record
        kinds = [entry["type"] for entry in run.journal().entries()]
        assert kinds == ["memory_updated"] * result.structuredContent["usage"]["steps"] + [
            "answered"
        ]


class TestProgress:
    async def test_is_complete_and_in_order(self, reader_of, client_of, folder):
        told = []

        async def on_progress(progress, total, message):
            told.append((progress, total, message))

        async with client_of(reader_of(Model(FACT)), folder) as client:
            result = await client.call_tool("ask_documents", ASKED, progress_callback=on_progress)
        steps = result.structuredContent["usage"]["steps"]
        assert [progress for progress, _, _ in told] == list(range(steps + 2))
        assert result.structuredContent["run_id"] in told[0][2]
        assert [message.split(" of ")[0] for _, _, message in told[1:-1]] == [
            f"Read chunk {number + 1}" for number in range(steps)
        ]
        assert told[-1][1:] == (steps + 1, "Answered")
        assert all(total > progress for progress, total, _ in told[1:-1])

    async def test_goes_on_where_a_resumed_run_was(self, reader_of, client_of, folder):
        told = []

        async def on_progress(progress, total, message):
            told.append(int(progress))

        model = Model(FACT, silent_at=4)
        async with client_of(reader_of(model), folder) as client:
            asking = asyncio.create_task(
                client.call_tool("ask_documents", {**ASKED, "run_id": "mill"})
            )
            await model.is_silent.wait()
            await cancel(client, 1)
            with pytest.raises(McpError):
                await asking
            await client.call_tool("resume_run", {"run_id": "mill"}, progress_callback=on_progress)
        assert told == [0, *range(3, told[-1] + 1)]


class TestCancelling:
    async def test_ends_the_open_call_and_keeps_the_run(self, reader_of, client_of, folder):
        model = Model(FACT, silent_at=5)
        reader = reader_of(model)
        async with client_of(reader, folder) as client:
            asking = asyncio.create_task(
                client.call_tool("ask_documents", {**ASKED, "run_id": "mill"})
            )
            await model.is_silent.wait()
            await cancel(client, 1)
            with pytest.raises(McpError, match="cancelled"):
                await asking
            # At once, though the reading may not have let go of the run yet.
            result = await client.call_tool("resume_run", {"run_id": "mill"})
        assert not result.isError, result.content
        assert result.structuredContent["answer"] == FACT
        # Only the chunk that was open was read again.
        assert model.chunks == result.structuredContent["usage"]["steps"] + 1

    async def test_leaves_other_questions_alone(self, reader_of, client_of, folder):
        model = Model(FACT, silent_at=3)
        async with client_of(reader_of(model), folder) as client:
            silent = asyncio.create_task(client.call_tool("ask_documents", ASKED))
            await model.is_silent.wait()
            other = asyncio.create_task(client.call_tool("ask_documents", ASKED))
            await cancel(client, 1)
            with pytest.raises(McpError):
                await silent
            assert (await other).structuredContent["answer"] == FACT

    async def test_a_client_that_vanishes_ends_its_question_alone(
        self, reader_of, client_of, folder
    ):
        model = Model(FACT, silent_at=5)
        reader = reader_of(model)
        leaving = client_of(reader, folder)
        client = await leaving.__aenter__()
        asking = asyncio.create_task(client.call_tool("ask_documents", {**ASKED, "run_id": "mill"}))
        await model.is_silent.wait()
        assert reader.summary(reader.find("mill", LOCAL))["state"] == "reading"
        asking.cancel()
        await leaving.__aexit__(None, None, None)
        run = reader.find("mill", LOCAL)
        assert (reader.summary(run)["state"], run.state()["step"]) == ("begun", 4)
        async with client_of(reader, folder) as client:
            result = await client.call_tool("resume_run", {"run_id": "mill"})
        assert result.structuredContent["answer"] == FACT

    async def test_that_crosses_the_answer_leaves_the_connection(self, reader_of):
        server = build_server(reader_of(Model()))
        to_server, received = anyio.create_memory_object_stream(0)
        sent, from_server = anyio.create_memory_object_stream(0)

        async def send(**message):
            parsed = JSONRPCMessage.model_validate({"jsonrpc": "2.0", **message})
            await to_server.send(SessionMessage(parsed))

        async def receive():
            return (await from_server.receive()).message.root

        begin = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": CLIENT}
        options = server.create_initialization_options()
        async with to_server, from_server:
            serving = asyncio.create_task(server.run(received, sent, options))
            await send(id=0, method="initialize", params=begin)
            await receive()
            await send(method="notifications/initialized")
            await send(id=1, method="tools/list")
            # The answer is on its way, and nobody takes it.
            await anyio.wait_all_tasks_blocked()
            assert sent.statistics().tasks_waiting_send
            await send(method="notifications/cancelled", params={"requestId": 1})
            await anyio.wait_all_tasks_blocked()
            refused = await receive()
            await send(id=2, method="ping")
            answer = await receive()
        await serving
        assert (refused.id, refused.error.message) == (1, "Request cancelled")
        assert (answer.id, answer.result) == (2, {})


class TestResuming:
    async def test_a_finished_run_gives_its_answer_again(self, answered):
        async with answered() as (client, first):
            run_id = first.structuredContent["run_id"]
            again = await client.call_tool("resume_run", {"run_id": run_id})
        assert again.structuredContent == first.structuredContent
        assert again.content == first.content

    async def test_two_at_once_are_refused_the_second_time(self, reader_of, client_of, folder):
        model = Model(FACT, silent_at=5)
        async with client_of(reader_of(model), folder) as client:
            asking = asyncio.create_task(
                client.call_tool("ask_documents", {**ASKED, "run_id": "mill"})
            )
            await model.is_silent.wait()
            refused = await client.call_tool("resume_run", {"run_id": "mill"})
            await cancel(client, 1)
            with pytest.raises(McpError):
                await asking
        assert error_of(refused).startswith("Run 'mill' is being read at this moment.")
        assert "process" not in error_of(refused)

    async def test_an_unknown_run(self, reader_of, client_of):
        async with client_of(reader_of(Model())) as client:
            for run_id in ("mill", "", "../runs", "x" * 5_000):
                result = await client.call_tool("resume_run", {"run_id": run_id})
                assert error_of(result).startswith("Unknown run")
                assert len(error_of(result)) < 200

    async def test_the_beginning_of_an_id_is_not_enough(self, answered):
        async with answered(run_id="mill-1911") as (client, _):
            result = await client.call_tool("resume_run", {"run_id": "mill"})
        assert error_of(result).startswith("Unknown run 'mill'.")

    async def test_a_taken_name_is_told_before_anything_is_read(self, answered):
        async with answered(run_id="mill") as (client, _):
            result = await client.call_tool("ask_documents", {**ASKED, "run_id": "mill"})
        assert "already is a run 'mill'. Call resume_run" in error_of(result)


class TestListing:
    async def test_of_no_runs(self, reader_of, client_of):
        async with client_of(reader_of(Model())) as client:
            result = await client.call_tool("list_runs", {})
        assert result.structuredContent == {"runs": [], "more": 0}
        assert result.content[0].text == "No runs are kept here."

    async def test_tells_state_and_progress(self, answered):
        async with answered(run_id="mill") as (client, first):
            result = await client.call_tool("list_runs", {})
        (run,) = result.structuredContent["runs"]
        steps = first.structuredContent["usage"]["steps"]
        assert (run["run_id"], run["state"], run["step"]) == ("mill", "finished", steps)
        assert run["documents"] == ["mill.txt"]
        assert result.content[0].text.startswith("- mill (finished): Who signed")

    async def test_a_damaged_run_does_not_hide_the_others(self, answered, tmp_path):
        async with answered(run_id="mill") as (client, _):
            (tmp_path / "data" / "runs" / "broken").mkdir()
            (tmp_path / "data" / "runs" / "mill" / "checkpoints.sqlite").write_bytes(b"x" * 500)
            result = await client.call_tool("list_runs", {})
            resumed = await client.call_tool("resume_run", {"run_id": "broken"})
        assert [run["state"] for run in result.structuredContent["runs"]] == ["unreadable"]
        assert "is not a run" in error_of(resumed)


class TestEstimating:
    async def test_counts_and_leaves_nothing_behind(self, reader_of, client_of, folder, tmp_path):
        model = Model(FACT)
        async with client_of(reader_of(model), folder) as client:
            result = await client.call_tool("estimate", {"documents": ["mill.txt"]})
        told = result.structuredContent
        (document,) = told["documents"]
        assert (document["title"], document["chunks"]) == ("mill.txt", told["chunks"])
        assert told["calls"] > told["chunks"] > 5
        assert "mill.txt" in result.content[0].text
        assert model.chunks == 0
        assert not (tmp_path / "data").exists()


class TestResources:
    async def test_are_listed_and_read(self, answered):
        async with answered(run_id="Mill.1911") as (client, _):
            listed = (await client.list_resources()).resources
            read = {}
            for resource in listed:
                (content,) = (await client.read_resource(resource.uri)).contents
                read[str(resource.uri)] = content
            templates = (await client.list_resource_templates()).resourceTemplates
        kinds = ("memory", "evidence", "report")
        assert list(read) == [f"run://Mill.1911/{kind}" for kind in kinds]
        memory, evidence, report = read.values()
        assert FACT in memory.text
        assert [quote["cited_text"] for quote in json.loads(evidence.text)] == [FACT]
        assert evidence.mimeType == "application/json"
        assert report.mimeType == "text/html"
        assert f"<mark>{FACT}</mark>" in report.text
        assert [template.uriTemplate for template in templates] == [
            f"run://{{run_id}}/{kind}" for kind in kinds
        ]

    @pytest.mark.parametrize(
        "uri",
        ["run://none/memory", "run://mill/question", "file:///etc/passwd", "run://../memory"],
    )
    async def test_that_are_not_there(self, answered, uri):
        async with answered(run_id="mill") as (client, _):
            with pytest.raises(McpError) as told:
                await client.read_resource(uri)
        assert told.value.error.code == -32002

    async def test_are_listed_page_by_page(self, reader_of, client_of, tmp_path):
        reader = reader_of(Model())
        for number in range(120):
            make_run(reader, f"run-{number:03}")
        found, cursor, pages = [], None, 0
        async with client_of(reader) as client:
            while pages == 0 or cursor:
                page = await client.list_resources(params=PaginatedRequestParams(cursor=cursor))
                found += [str(resource.uri) for resource in page.resources]
                cursor, pages = page.nextCursor, pages + 1
            with pytest.raises(McpError, match="cursor"):
                await client.list_resources(params=PaginatedRequestParams(cursor="nonsense"))
        assert pages == 3
        assert len(set(found)) == len(found) == 360

    async def test_the_ids_of_runs_complete_a_template(self, answered):
        from mcp.types import ResourceTemplateReference

        async with answered(run_id="mill") as (client, _):
            ref = ResourceTemplateReference(type="ref/resource", uri="run://{run_id}/memory")
            told = await client.complete(ref, {"name": "run_id", "value": "mi"})
            none = await client.complete(ref, {"name": "run_id", "value": "x"})
        assert (told.completion.values, none.completion.values) == (["mill"], [])


class TestFailures:
    async def test_a_model_that_cannot_be_had_is_tried_again(self, reader_of, client_of, folder):
        class Away(Model):
            def connect(self):
                connected = super().connect()
                if self.connections == 1:
                    raise ConnectionSetupError("Nothing answers at http://127.0.0.1:9. Start it.")
                return connected

        async with client_of(reader_of(Away(FACT)), folder) as client:
            failed = await client.call_tool("ask_documents", ASKED)
            answered = await client.call_tool("ask_documents", ASKED)
            runs = await client.call_tool("list_runs", {})
        assert error_of(failed) == "Nothing answers at http://127.0.0.1:9. Start it."
        assert answered.structuredContent["found"]
        assert len(runs.structuredContent["runs"]) == 1

    async def test_a_model_that_fails_tells_how_to_go_on(self, reader_of, client_of, folder):
        class Failing(Model):
            def __call__(self, messages):
                if self.chunks == 3 and self.connections == 1:
                    raise ValueError("a fault of the model's own")
                return super().__call__(messages)

        model = Failing(FACT)
        async with client_of(reader_of(model), folder) as client:
            failed = await client.call_tool("ask_documents", {**ASKED, "run_id": "mill"})
        assert error_of(failed).startswith("Something unexpected happened (ValueError).")
        assert "own" not in error_of(failed)

    async def test_a_server_that_is_gone_tells_how_to_go_on(
        self, reader_of, client_of, folder, monkeypatch
    ):
        import qwenlong_graph.mcp.reader as module

        async def gone(*_, **__):
            raise ModelUnavailableError("The server went away.")

        monkeypatch.setattr(module, "read_kept", gone)
        model = Model(FACT)
        async with client_of(reader_of(model), folder) as client:
            failed = await client.call_tool("ask_documents", {**ASKED, "run_id": "mill"})
            await client.call_tool("ask_documents", ASKED)
        assert error_of(failed) == (
            'The server went away. What was read is kept: call resume_run with run_id "mill" to '
            "go on."
        )
        assert model.connections == 2

    async def test_another_setup_than_it_was_begun_with(self, reader_of, client_of, folder):
        model = Model(FACT, silent_at=3)
        async with client_of(reader_of(model), folder) as client:
            asking = asyncio.create_task(
                client.call_tool("ask_documents", {**ASKED, "run_id": "mill"})
            )
            await model.is_silent.wait()
            await cancel(client, 1)
            with pytest.raises(McpError):
                await asking

        class Larger(Model):
            def connect(self):
                import dataclasses

                return dataclasses.replace(super().connect(), model_name="larger")

        async with client_of(reader_of(Larger(FACT)), folder) as client:
            refused = await client.call_tool("resume_run", {"run_id": "mill"})
        assert "model was 'scripted', is now 'larger'" in error_of(refused)
        assert error_of(refused).endswith("qwenlong-graph resume mill")

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            ({}, "'question': Field required"),
            ({"question": "Who?"}, "'documents': Field required"),
            ({"question": "Who?", "documents": []}, "'documents': Value should have at least 1"),
            ({"question": "Who?", "documents": [7]}, "'documents.0': Input should be a valid str"),
            ({"question": "", "documents": ["mill.txt"]}, "'question': String should have at"),
            ({"question": "  ", "documents": ["mill.txt"]}, "The question is empty."),
            ({**ASKED, "files": "x"}, "'files': Extra inputs are not permitted"),
            ({**ASKED, "run_id": "../x"}, "'../x' cannot be the id of a run"),
            ({**ASKED, "documents": ["x" * 100_000]}, "Reading 'xxx"),
            ({"question": "Who?", "documents": ["mill.txt"] * 1_000}, "at most 500 items"),
            ({"q" * 100_000: 1}, "'question': Field required"),
        ],
    )
    async def test_bad_arguments(self, reader_of, client_of, folder, arguments, told):
        async with client_of(reader_of(Model(FACT)), folder) as client:
            result = await client.call_tool("ask_documents", arguments)
        assert told in error_of(result)
        assert len(error_of(result)) < 1_500

    async def test_an_unknown_tool(self, reader_of, client_of):
        async with client_of(reader_of(Model())) as client:
            result = await client.call_tool("delete_everything", {})
        assert "There is no tool 'delete_everything'. There are: 'ask_documents'" in error_of(
            result
        )

    @pytest.mark.parametrize("name", ["\nINFO all is well\x1b[2J", "x" * 100_000])
    async def test_a_tools_name_writes_no_line_of_its_own_to_the_log(
        self, reader_of, client_of, caplog, name
    ):
        caplog.set_level("INFO", "qwenlong_graph.mcp")
        async with client_of(reader_of(Model())) as client:
            await client.call_tool(name, {})
        (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("qwenlong_graph")]
        assert line.endswith(": SettingsError")
        assert line.isprintable()
        assert len(line) < 300

    async def test_a_question_longer_than_the_model_can_read(self, reader_of, client_of, folder):
        model = Model(FACT)
        async with client_of(reader_of(model), folder) as client:
            result = await client.call_tool(
                "ask_documents", {**ASKED, "question": "why " * 200_000}
            )
        assert "question" in error_of(result)
        assert len(error_of(result)) < 1_000
        assert model.chunks == 0

    async def test_a_model_whose_name_no_encoder_takes(self, reader_of, client_of, folder):
        class Odd(Model):
            def connect(self):
                return dataclasses.replace(super().connect(), model_name="p\udcefd")

        async with client_of(reader_of(Odd(FACT)), folder) as client:
            size = await client.call_tool("estimate", {"documents": ["mill.txt"]})
            result = await client.call_tool("ask_documents", ASKED)
        assert size.structuredContent["model"] == "p\ufffdd"
        assert result.structuredContent["model"] == "p\ufffdd"

    async def test_a_name_that_no_encoder_takes(self, reader_of, client_of, folder):
        odd = folder / os.fsdecode(b"m\xff.txt")
        (folder / "mill.txt").rename(odd)
        told = []

        async def on_progress(progress, total, message):
            told.append(message)

        documents = [f"file://{folder}/m%FF.txt"]
        async with client_of(reader_of(Model(FACT)), folder) as client:
            size = await client.call_tool("estimate", {"documents": documents})
            result = await client.call_tool(
                "ask_documents",
                {"question": QUESTION, "documents": documents, "run_id": "mill"},
                progress_callback=on_progress,
            )
            listed = await client.call_tool("list_runs", {})
            evidence = await client.read_resource("run://mill/evidence")
            wrong = await client.call_tool("estimate", {"documents": [f"file://{folder}/%FF"]})
        assert result.structuredContent["answer"] == FACT
        assert result.structuredContent["documents"] == ["m\ufffd.txt"]
        assert size.structuredContent["documents"][0]["title"] == "m\ufffd.txt"
        assert listed.structuredContent["runs"][0]["documents"] == ["m\ufffd.txt"]
        assert json.loads(evidence.contents[0].text)[0]["document_title"] == "m\ufffd.txt"
        assert "(m\ufffd.txt)" in told[1]
        assert "there is no such file" in error_of(wrong)

    async def test_a_question_that_no_encoder_takes(self, reader_of, client_of):
        # As the command line gets it from a terminal that does not speak UTF-8.
        reader = reader_of(Model())
        make_run(reader, "odd", question="Who p\udcefd?")
        async with client_of(reader) as client:
            listed = await client.call_tool("list_runs", {})
            resources = (await client.list_resources()).resources
        assert listed.structuredContent["runs"][0]["question"] == "Who p\ufffdd?"
        assert listed.content[0].text == "- odd (not begun): Who p\ufffdd?"
        assert resources[0].description.endswith("Who p\ufffdd?")


def make_run(reader, run_id, *, question="Who paid?"):
    documents = {"collection_id": "0" * 64, "documents": 1, "chars": 9, "bytes": 9}
    return reader.shelf.create(
        run_id=run_id,
        question=question,
        instructions="",
        documents=documents,
        titles=["annals"],
        model="scripted",
        window=None,
        settings={},
        version="0.1.0",
    )


class TestConnecting:
    @pytest.fixture
    def slow(self):
        """A model that is connected to once `may_come` is set, and tells when it was closed."""

        class Slow(Model):
            may_come, is_closed = threading.Event(), threading.Event()

            def connect(self):
                connected = super().connect()
                self.may_come.wait()
                return dataclasses.replace(connected, release=self.is_closed.set)

        model = Slow(FACT)
        yield model
        model.may_come.set()

    async def test_is_not_waited_for_at_the_end_and_the_model_is_freed(self, slow, reader_of):
        reader = reader_of(slow)
        asking = asyncio.create_task(reader.estimate([]))
        await until(lambda: slow.connections)
        asking.cancel()
        await asyncio.wait({asking})
        await reader.close(connecting_s=0)
        assert not slow.is_closed.is_set()
        slow.may_come.set()
        await until(slow.is_closed.is_set)

    async def test_goes_on_for_others_where_one_is_cancelled(
        self, slow, reader_of, client_of, folder
    ):
        async with client_of(reader_of(slow), folder) as client:
            first = asyncio.create_task(client.call_tool("ask_documents", ASKED))
            await until(lambda: slow.connections)
            second = asyncio.create_task(client.call_tool("ask_documents", ASKED))
            await cancel(client, 1)
            with pytest.raises(McpError):
                await first
            slow.may_come.set()
            result = await second
        assert result.structuredContent["answer"] == FACT
        assert slow.connections == 1
