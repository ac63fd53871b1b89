from __future__ import annotations

import asyncio
import base64
import json

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from typing_extensions import TypedDict

from qwenlong_graph import ReadingSettings, create_memory_agent
from qwenlong_graph.agents.sources import AllowedRoots
from qwenlong_graph.agents.tool import create_document_tool
from qwenlong_graph.errors import SettingsError
from qwenlong_graph.testing.oracle import oracle
from qwenlong_graph.testing.scripted import ScriptedChatModel, scripted

pytestmark = pytest.mark.contract

MILL = "The mill at Orrin was sold for 318 crowns."
BRIDGE = "The bridge at Tarn was built by the widow Hale."
FILLER = "The winter was long and the traders stayed away from the coast. "
ASK_MILL = "For how many crowns was the mill at Orrin sold?"
ASK_BRIDGE = "Who built the bridge at Tarn?"


def text(sentence: str) -> str:
    return f"{FILLER * 20}{sentence} {FILLER * 20}"


def document(sentence: str, title: str) -> Document:
    return Document(text(sentence), metadata={"title": title})


def knowing(messages):
    """Looks in the documents for what it is asked for, and for nothing else."""
    asked = {ASK_MILL: MILL, ASK_BRIDGE: BRIDGE}
    prompt = "".join(message.text for message in messages)
    facts = [fact for question, fact in asked.items() if question in prompt]
    return oracle(facts).chat.replies(messages)


@pytest.fixture
def agent(tmp_path):
    return create_memory_agent(
        scripted(knowing),
        settings=ReadingSettings(strategy="memory", chunk_tokens=200),
        document_dir=tmp_path / "store",
    )


def called(*calls):
    """A host's model that makes these calls of the tool at once, then ends."""

    def reply(messages):
        if isinstance(messages[-1], HumanMessage):
            return AIMessage(
                "",
                tool_calls=[
                    {"name": "ask_documents", "args": arguments, "id": f"call-{number}"}
                    for number, arguments in enumerate(calls, start=1)
                ],
            )
        return AIMessage("Done.")

    return ScriptedChatModel(reply)


def results(tool, *calls, content="Please ask.", form="sync", **state):
    """The tool's messages, in the order of the calls."""
    host = create_agent(called(*calls), tools=[tool])
    given = {"messages": [HumanMessage(content)], **state}
    output = host.invoke(given) if form == "sync" else asyncio.run(host.ainvoke(given))
    told = [message for message in output["messages"] if isinstance(message, ToolMessage)]
    return sorted(told, key=lambda message: message.tool_call_id)


class TestResult:
    @pytest.mark.parametrize("form", ["sync", "async"])
    def test_the_answer_is_text_with_sources_and_the_rest_an_artifact(self, agent, form):
        tool = create_document_tool(agent, documents=[document(MILL, "mills.txt")])
        (told,) = results(tool, {"question": ASK_MILL}, form=form)
        assert told.status == "success"
        assert MILL in told.text
        start = text(MILL).index(MILL)
        assert f'[1] mills.txt, chars {start}-{start + len(MILL)}: "{MILL}"' in told.text
        (cited,) = told.artifact["citations"]
        assert text(MILL)[cited["start_char"] : cited["end_char"]] == MILL
        assert MILL in told.artifact["memory"]
        assert told.artifact["usage"]["calls"] >= 5
        assert told.artifact["found"] is True
        json.dumps(told.artifact)

    def test_nothing_found_is_no_error(self, agent):
        tool = create_document_tool(agent, documents=[document(MILL, "mills.txt")])
        (told,) = results(tool, {"question": "Who sang in the opera at Vienna?"})
        assert (told.status, told.artifact["found"]) == ("success", False)
        assert told.artifact["citations"] == []

    def test_two_questions_at_once_are_each_answered(self, agent):
        documents = [document(MILL, "mills.txt"), document(BRIDGE, "bridges.txt")]
        tool = create_document_tool(agent, documents=documents)
        for form in ("sync", "async"):
            calls = ({"question": ASK_MILL}, {"question": ASK_BRIDGE})
            first, second = results(tool, *calls, form=form)
            assert MILL in first.text
            assert BRIDGE not in first.text
            assert BRIDGE in second.text
            assert MILL not in second.text

    def test_two_calls_in_one_tool_node_are_each_answered_and_kept_apart(self, agent):
        documents = [document(MILL, "mills.txt"), document(BRIDGE, "bridges.txt")]
        node = ToolNode([create_document_tool(agent, documents=documents)])
        graph = StateGraph(MessagesState).add_node("tools", node).add_edge(START, "tools")
        calls = [
            {"name": "ask_documents", "args": {"question": question}, "id": str(number)}
            for number, question in enumerate((ASK_MILL, ASK_BRIDGE))
        ]
        host = graph.compile(checkpointer=InMemorySaver())
        config = {"configurable": {"thread_id": "t"}}
        events = []
        for event in host.stream(
            {"messages": [AIMessage("", tool_calls=calls)]}, config, stream_mode="custom"
        ):
            events.append(event)  # noqa: PERF402 - as they come
        told = host.get_state(config).values["messages"][1:]
        assert MILL in told[0].text
        assert BRIDGE in told[1].text
        for call in ("0", "1"):
            own = [event["type"] for event in events if event["tool_call_id"] == call]
            assert (own[0], own[-1]) == ("started", "answered")

    def test_called_outside_of_a_graph_it_gives_the_text(self, agent):
        tool = create_document_tool(agent, documents=[document(MILL, "mills.txt")])
        assert MILL in tool.invoke({"question": ASK_MILL})
        assert MILL in asyncio.run(tool.ainvoke({"question": ASK_MILL}))
        call = {"type": "tool_call", "name": tool.name, "id": "1", "args": {"question": ASK_MILL}}
        message = tool.invoke(call)
        assert message.artifact["found"] is True

    def test_a_structured_answer_is_in_the_artifact(self, tmp_path):
        schema = {
            "title": "Sale",
            "type": "object",
            "properties": {"crowns": {"type": "integer"}},
            "required": ["crowns"],
        }
        agent = create_memory_agent(
            scripted(['{"crowns": 318}']),
            settings=ReadingSettings(strategy="full", full_tokens_max=10**6),
            document_dir=tmp_path,
            response_format=schema,
        )
        tool = create_document_tool(agent, documents=[document(MILL, "mills.txt")])
        host = create_agent(called({"question": ASK_MILL}), tools=[tool])
        output = host.invoke({"messages": [HumanMessage("Ask.")]})
        assert output["messages"][2].artifact["structured_response"] == {"crowns": 318}


class TestWhichDocuments:
    def test_those_named_are_read_and_no_other(self, agent):
        documents = [document(MILL, "deeds/mills.txt"), document(BRIDGE, "bridges.txt")]
        tool = create_document_tool(agent, documents=documents)
        for name in ("deeds/mills.txt", "MILLS.TXT", ' "mills.txt"', "/other/mills.txt"):
            first, second = results(
                tool,
                {"question": ASK_MILL, "documents": [name]},
                {"question": ASK_BRIDGE, "documents": [name]},
            )
            assert first.artifact["found"]
            assert not second.artifact["found"]

    @pytest.mark.parametrize("nothing", [None, [], "", "null"])
    def test_no_names_are_all(self, agent, nothing):
        tool = create_document_tool(agent, documents=[document(MILL, "mills.txt")])
        (told,) = results(tool, {"question": ASK_MILL, "documents": nothing})
        assert told.artifact["found"]

    def test_a_single_name_may_be_a_text_and_unknown_arguments_are_let_be(self, agent):
        tool = create_document_tool(agent, documents=[document(MILL, "mills.txt")])
        (told,) = results(tool, {"question": ASK_MILL, "documents": "mills.txt", "page": 3})
        assert told.artifact["found"]

    def test_attachments_of_the_conversation(self, agent):
        tool = create_document_tool(agent)
        encoded = base64.b64encode(text(BRIDGE).encode()).decode()
        content = [
            {"type": "text", "text": "Look into these."},
            {"type": "text-plain", "text": text(MILL), "title": "mills.txt"},
            {
                "type": "file",
                "base64": encoded,
                "mime_type": "text/plain",
                "extras": {"filename": "bridges.txt"},
            },
        ]
        first, second, third = results(
            tool,
            {"question": ASK_MILL},
            {"question": ASK_BRIDGE, "documents": ["bridges.txt"]},
            {"question": ASK_MILL, "documents": ["bridges.txt"]},
            content=content,
        )
        assert first.artifact["found"]
        assert second.artifact["found"]
        assert not third.artifact["found"]

    def test_documents_and_files_of_the_state(self, agent):
        class Desk(MessagesState):
            documents: list
            files: dict

        tool = create_document_tool(agent)
        calls = [
            {"question": ASK_MILL},
            {"question": ASK_MILL, "documents": ["mills.txt"]},
            {"question": ASK_BRIDGE, "documents": ["/desk/bridges.txt"]},
        ]
        host = create_agent(called(*calls), tools=[tool], state_schema=Desk)
        output = host.invoke(
            {
                "messages": [HumanMessage("Ask.")],
                "documents": [document(MILL, "mills.txt")],
                "files": {"/desk/bridges.txt": {"content": text(BRIDGE), "encoding": "utf-8"}},
            }
        )
        told = [message for message in output["messages"] if isinstance(message, ToolMessage)]
        assert [message.artifact["found"] for message in told] == [True, True, True]

    def test_a_finder_is_asked_with_the_state(self, agent, tmp_path):
        from qwenlong_graph.documents.store import DocumentStore

        reference = DocumentStore(tmp_path / "store").put(text(MILL), title="kept")
        seen = []

        def finder(name, state):
            seen.append((name, len(state["messages"])))
            return reference if name == "content-1" else None

        tool = create_document_tool(agent, finders=[finder])
        found, missing = results(
            tool,
            {"question": ASK_MILL, "documents": ["content-1"]},
            {"question": ASK_MILL, "documents": ["content-2"]},
        )
        assert found.artifact["found"]
        assert missing.status == "error"
        assert ("content-1", 2) in seen

    def test_files_below_the_roots_by_their_paths(self, agent, tmp_path):
        root = tmp_path / "papers"
        root.mkdir()
        (root / "mills.txt").write_text(text(MILL))
        for roots in (root, [str(root)], AllowedRoots([root])):
            tool = create_document_tool(agent, roots=roots)
            assert str(root) in tool.description
            relative, absolute = results(
                tool,
                {"question": ASK_MILL, "documents": ["mills.txt"]},
                {"question": ASK_MILL, "documents": [str(root / "mills.txt")]},
            )
            assert relative.artifact["found"]
            assert absolute.artifact["found"]

    @pytest.mark.parametrize("name", ["../secret.txt", "/etc/hostname", "link.txt", "~/x", "\0"])
    @pytest.mark.parametrize("has_root", [True, False])
    def test_nothing_else_by_its_path(self, agent, tmp_path, name, has_root):
        root = tmp_path / "papers"
        root.mkdir()
        (tmp_path / "secret.txt").write_text(text(MILL))
        (root / "link.txt").symlink_to(tmp_path / "secret.txt")
        tool = create_document_tool(agent, roots=[root] if has_root else [])
        (told,) = results(tool, {"question": ASK_MILL, "documents": [name]})
        assert told.status == "error"
        assert told.artifact == {"error": "DocumentNotAllowedError", "found": False}
        assert MILL not in told.text

    def test_a_path_in_the_state_is_held_to_the_roots_too(self, agent, tmp_path):
        (tmp_path / "secret.txt").write_text(text(MILL))

        class Desk(MessagesState):
            documents: list

        host = create_agent(
            called({"question": ASK_MILL}),
            tools=[create_document_tool(agent)],
            state_schema=Desk,
        )
        given = {"messages": [HumanMessage("Ask.")], "documents": [str(tmp_path / "secret.txt")]}
        told = host.invoke(given)["messages"][2]
        assert (told.status, told.artifact["error"]) == ("error", "DocumentNotAllowedError")


class TestErrors:
    def test_an_unknown_name_is_answered_with_those_that_there_are(self, agent):
        tool = create_document_tool(agent, documents=[document(MILL, "mills.txt")])
        (told,) = results(tool, {"question": ASK_MILL, "documents": ["nope.txt"]})
        assert told.status == "error"
        assert "'nope.txt'" in told.text
        assert "'mills.txt'" in told.text
        assert told.artifact == {"error": "DocumentNotFoundError", "found": False}

    @pytest.mark.parametrize("form", ["sync", "async"])
    def test_no_document_and_no_question_say_what_to_do(self, agent, form):
        first, second = results(
            create_document_tool(agent), {"question": ASK_MILL}, {"question": "  "}, form=form
        )
        assert (first.status, second.status) == ("error", "error")
        assert "ask the user to attach it" in first.text
        assert "Say what you want to know" in second.text

    def test_arguments_that_do_not_fit_are_told_to_the_model(self, agent):
        tool = create_document_tool(agent, documents=[document(MILL, "mills.txt")])
        missing, odd, many = results(
            tool,
            {"documents": ["mills.txt"]},
            {"question": ASK_MILL, "documents": [{"a": 1}]},
            {"question": ASK_MILL, "documents": [f"{number}.txt" for number in range(101)]},
        )
        assert "question" in missing.text
        assert "documents" in odd.text
        assert "100 at most" in many.text
        assert {missing.status, odd.status, many.status} == {"error"}

    def test_a_document_that_cannot_be_read_is_named(self, agent, tmp_path):
        (tmp_path / "blob.txt").write_bytes(bytes(range(256)) * 9)
        tool = create_document_tool(agent, roots=[tmp_path])
        (told,) = results(tool, {"question": ASK_MILL, "documents": ["blob.txt"]})
        assert told.status == "error"
        assert "blob.txt" in told.text

    @pytest.mark.parametrize("form", ["sync", "async"])
    def test_a_model_that_fails_does_not_end_the_hosts_run(self, tmp_path, form):
        from langgraph.types import RetryPolicy

        from qwenlong_graph.errors import ModelUnavailableError

        agent = create_memory_agent(
            scripted([ModelUnavailableError("the server is away")]),
            settings=ReadingSettings(strategy="memory", chunk_tokens=200),
            document_dir=tmp_path,
            retry_policy=RetryPolicy(max_attempts=1),
        )
        tool = create_document_tool(agent, documents=[document(MILL, "mills.txt")])
        (told,) = results(tool, {"question": ASK_MILL}, form=form)
        assert told.artifact == {"error": "ModelUnavailableError", "found": False}
        assert "tell the user" in told.text

    def test_an_error_of_the_setup_is_raised(self, tmp_path):
        agent = create_memory_agent(
            scripted([SettingsError("set it up differently")]), document_dir=tmp_path
        )
        tool = create_document_tool(agent, documents=[document(MILL, "mills.txt")])
        with pytest.raises(SettingsError, match="set it up differently"):
            results(tool, {"question": ASK_MILL})

    @pytest.mark.parametrize("name", ["", "a b", "x" * 65, None])
    def test_a_name_that_servers_refuse_is_refused_at_once(self, agent, name):
        with pytest.raises(SettingsError, match="no name for a tool"):
            create_document_tool(agent, name=name)

    def test_what_is_no_memory_agent_and_a_root_that_is_not_there_are_refused(self, agent):
        with pytest.raises(SettingsError, match="create_memory_agent"):
            create_document_tool(called())
        with pytest.raises(SettingsError, match="no such directory"):
            create_document_tool(agent, roots=["/nowhere/at/all"])


class TestHost:
    def test_unknown_context_and_a_host_without_messages_are_let_be(self, agent):
        class Context(TypedDict):
            user: str

        tool = create_document_tool(agent, documents=[document(MILL, "mills.txt")])
        host = create_agent(called({"question": ASK_MILL}), tools=[tool], context_schema=Context)
        output = host.invoke({"messages": [HumanMessage("Ask.")]}, context={"user": "ada"})
        assert output["messages"][2].artifact["found"]

        class Bare(TypedDict, total=False):
            inbox: list

        graph = StateGraph(Bare).add_node("tools", ToolNode([tool], messages_key="inbox"))
        call = {"name": tool.name, "args": {"question": ASK_MILL}, "id": "1"}
        out = (
            graph.add_edge(START, "tools")
            .compile()
            .invoke({"inbox": [AIMessage("", tool_calls=[call])]})
        )
        assert out["inbox"][-1].artifact["found"]

    def test_a_later_call_in_a_resumed_run_reads_its_own_documents(self, agent):
        """LangGraph tells every call of a resumed run that it resumes."""
        tool = create_document_tool(agent, documents=[document(MILL, "mills.txt")])
        host = create_agent(
            called({"question": ASK_MILL}),
            tools=[tool],
            checkpointer=InMemorySaver(),
            interrupt_before=["tools"],
        )
        config = {"configurable": {"thread_id": "t"}}
        host.invoke({"messages": [HumanMessage("Ask.")]}, config)
        output = host.invoke(None, config)
        assert output["messages"][2].artifact["found"]

    def test_each_turn_of_a_thread_is_a_reading_of_its_own(self, agent):
        documents = [document(MILL, "mills.txt"), document(BRIDGE, "bridges.txt")]
        tool = create_document_tool(agent, documents=documents)
        saver = InMemorySaver()
        config = {"configurable": {"thread_id": "t"}}
        for question, fact in ((ASK_MILL, MILL), (ASK_BRIDGE, BRIDGE), (ASK_MILL, MILL)):
            host = create_agent(called({"question": question}), tools=[tool], checkpointer=saver)
            output = host.invoke({"messages": [HumanMessage("Ask.")]}, config)
            assert fact in output["messages"][-2].text
            assert output["messages"][-2].artifact["usage"]["steps"] > 3

    def test_the_schema_that_a_model_sees_is_short_and_whole(self, agent):
        tool = create_document_tool(agent, documents=[document(MILL, "mills.txt")])
        schema = tool.tool_call_schema.model_json_schema()
        assert set(schema["properties"]) == {"question", "documents"}
        assert schema["required"] == ["question"]
        assert all(field["description"] for field in schema["properties"].values())
        assert "'mills.txt'" in tool.description
        many = [document(MILL, f"{number}.txt") for number in range(300)]
        assert len(create_document_tool(agent, documents=many).description) < 2_000
