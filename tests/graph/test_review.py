"""A person looks at memory, plan and evidence while a reading pauses, and says how it goes on."""

from __future__ import annotations

import asyncio
import json

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict

from qwenlong_graph import ReadingSettings, create_memory_agent
from qwenlong_graph.agents.messages import create_messages_agent
from qwenlong_graph.agents.tool import create_document_tool
from qwenlong_graph.errors import SettingsError
from qwenlong_graph.graph.review import decision_of
from qwenlong_graph.testing.oracle import oracle
from qwenlong_graph.testing.scripted import ScriptedChatModel

pytestmark = pytest.mark.contract

FACT = "The widow Hale paid 318,000 crowns for the bridge at Orrin."
MILL = "The brothers Adler built the mill at Tarn in 1881."
FILLER = "The winter was long and the traders stayed away from the coast. "
TEXT = f"{FACT} {FILLER * 60}{MILL} {FILLER * 5}"
QUESTION = "What was paid for the bridge, and who built the mill?"
CONFIG = {"configurable": {"thread_id": "t"}}


def given(*texts):
    books = [
        Document(text, metadata={"title": f"book {number}"})
        for number, text in enumerate(texts or (TEXT,), start=1)
    ]
    return {"question": QUESTION, "documents": books}


@pytest.fixture
def reviewing(tmp_path):
    """An agent that pauses; its calls of the model are in `agent.calls`."""

    def make(every=1, saver=None, protocol="rewrite", **options):
        model = oracle([FACT, MILL])
        agent = create_memory_agent(
            model,
            settings=ReadingSettings(strategy="memory", chunk_tokens=200, protocol=protocol),
            document_dir=tmp_path / "store",
            checkpointer=saver if saver is not None else InMemorySaver(),
            review="memory",
            review_every=every,
            **options,
        )
        agent.asked = model.chat.prompts
        return agent

    return make


def call(agent, value, form="invoke", config=CONFIG):
    if form == "invoke":
        return agent.invoke(value, config)
    return asyncio.run(agent.ainvoke(value, config))


def request_of(output):
    (interrupt,) = output["__interrupt__"]
    return interrupt.value


def goes_on(value):
    return Command(resume=value)


forms = pytest.mark.parametrize("form", ["invoke", "ainvoke"])


class TestWhatIsShown:
    @forms
    def test_memory_plan_evidence_and_progress(self, reviewing, form):
        request = request_of(call(reviewing(), given(), form))
        assert request["type"] == "review"
        assert request["memory"] == f"- {FACT}"
        assert request["plan"]
        assert request["evidence"] == [
            {"title": "book 1", "start_char": 0, "end_char": len(FACT), "text": FACT}
        ]
        assert (request["step"], request["document"]) == (1, "book 1")
        assert 0 < request["chars_read"] < request["chars"] == len(TEXT)
        assert request["steps"] > 1
        assert set(request["actions"]) == {"accept", "edit", "skip", "answer"}
        json.dumps(request)

    def test_every_so_many_chunks_and_before_the_answer(self, reviewing):
        agent = reviewing(every=3)
        output, steps = agent.invoke(given(), CONFIG), []
        while "__interrupt__" in output:
            steps.append(request_of(output)["step"])
            output = agent.invoke(goes_on("accept"), CONFIG)
        last = output["usage"]["steps"]
        assert steps == sorted({*range(3, last + 1, 3), last})
        assert FACT in output["answer"]
        assert MILL in output["answer"]

    def test_on_change_only_where_the_memory_is_another(self, reviewing):
        agent = reviewing(every="on-change")
        output, memories = agent.invoke(given(), CONFIG), []
        while "__interrupt__" in output:
            memories.append(request_of(output)["memory"])
            output = agent.invoke(goes_on(True), CONFIG)
        assert memories == [f"- {FACT}", f"- {FACT}\n- {MILL}"]
        assert output["found"]

    def test_strategy_full_has_nothing_to_review(self, tmp_path):
        agent = create_memory_agent(
            oracle([FACT]),
            settings=ReadingSettings(strategy="full"),
            document_dir=tmp_path,
            checkpointer=InMemorySaver(),
            review="memory",
        )
        assert FACT in agent.invoke(given(FACT), CONFIG)["answer"]


class TestAnswers:
    @forms
    def test_accepting_repeats_no_call(self, reviewing, form):
        agent = reviewing(every=2)
        output = call(agent, given(), form)
        while "__interrupt__" in output:
            before = len(agent.asked)
            same = call(agent, None, form)  # asked again, without an answer
            assert request_of(same) == request_of(output)
            assert len(agent.asked) == before
            output = call(agent, goes_on("accept"), form)
        assert len(agent.asked) == output["usage"]["calls"]
        assert output["skipped"] == []

    @forms
    def test_an_edited_memory_is_read_on_with_and_aligned(self, reviewing, form):
        agent = reviewing(every=100)
        output = call(agent, given(), form)
        line = "- Nobody knows who built the ferry."
        edited = {"action": "edit", "memory": f"- {MILL}\n{line}", "plan": "look for ferries"}
        output = call(agent, goes_on(edited), form)
        assert output["memory"] == f"- {MILL}\n{line}"
        assert output["plan"] == "look for ferries"
        assert output["unverified"] == [line.removeprefix("- ")]
        assert [cited["cited_text"] for cited in output["citations"]] == [MILL]

    def test_what_stands_in_the_text_just_read_is_cited_though_the_model_missed_it(self, tmp_path):
        agent = create_memory_agent(
            oracle([FACT]),
            settings=ReadingSettings(strategy="memory", chunk_tokens=200),
            document_dir=tmp_path,
            checkpointer=InMemorySaver(),
            review="memory",
            review_every=100,
        )
        agent.invoke(given(), CONFIG)
        output = agent.invoke(goes_on({"memory": f"- {FACT}\n- {MILL}"}), CONFIG)
        assert output["unverified"] == []

    def test_an_edit_under_extract_takes_sentences_of_the_documents_alone(self, reviewing):
        agent = reviewing(every=100, protocol="extract")
        agent.invoke(given(), CONFIG)
        output = agent.invoke(goes_on({"memory": "- Nobody built a ferry."}), CONFIG)
        assert "stand in no quote: Nobody built a ferry." in request_of(output)["problem"]

    def test_chunks_are_passed_over_and_told(self, reviewing):
        agent = reviewing()
        first = request_of(agent.invoke(given(), CONFIG))
        output = agent.invoke(goes_on({"action": "skip", "chunks": 2}), CONFIG)
        second = request_of(output)
        assert second["step"] == 2
        while "__interrupt__" in output:
            output = agent.invoke(goes_on("accept"), CONFIG)
        ((document, start, end),) = output["skipped"]
        assert (document, start) == (0, first["chars_read"])
        assert first["chars_read"] < end < second["chars_read"]

    def test_to_the_beginning_of_another_document(self, reviewing):
        agent = reviewing()
        request = request_of(agent.invoke(given(TEXT, FILLER * 90, MILL), CONFIG))
        output = agent.invoke(goes_on({"action": "skip", "document": 3}), CONFIG)
        assert request_of(output)["memory"] == f"- {FACT}\n- {MILL}"
        output = agent.invoke(goes_on("accept"), CONFIG)
        assert output["skipped"] == [
            [0, request["chars_read"], len(TEXT)],
            [1, 0, len(FILLER * 90)],
        ]
        assert {cited["document_title"] for cited in output["citations"]} == {"book 1", "book 3"}

    @forms
    def test_answering_now_tells_what_was_not_read(self, reviewing, form):
        agent = reviewing()
        request = request_of(call(agent, given(TEXT, MILL), form))
        output = call(agent, goes_on("answer"), form)
        assert output["answer"] == FACT
        assert output["skipped"] == [[0, request["chars_read"], len(TEXT)], [1, 0, len(MILL)]]
        assert output["usage"]["steps"] == 1
        assert len(agent.asked) == output["usage"]["calls"]

    @pytest.mark.parametrize(
        ("value", "problem"),
        [
            ("yes", "accept, edit, skip, answer"),
            (7, "a word or an object"),
            ({"action": "edit"}, 'needs "memory"'),
            ({"action": "edit", "memory": 3}, '"memory" is not a text'),
            ({"action": "edit", "memory": "word " * 5_000}, "there is room for"),
            ({"action": "edit", "plan": "word " * 5_000}, "there is room for"),
            ({"action": "skip"}, "either"),
            ({"action": "skip", "chunks": 0}, "number from 1"),
            ({"action": "skip", "chunks": True}, "number from 1"),
            ({"action": "skip", "document": 1}, "has begun"),
            ({"action": "skip", "document": 9}, "documents"),
            ({"action": "accept", "chunks": 1}, 'belong to "skip"'),
            ({"action": "accept", "note": "x"}, "unknown fields"),
        ],
    )
    @forms
    def test_what_is_no_answer_is_asked_for_again_with_the_reason(
        self, reviewing, form, value, problem
    ):
        agent = reviewing()
        first = request_of(call(agent, given(), form))
        calls = len(agent.asked)
        again = request_of(call(agent, goes_on(value), form))
        assert problem in again.pop("problem")
        assert again == first
        assert len(agent.asked) == calls
        assert request_of(call(agent, goes_on("accept"), form))["step"] == 2

    def test_decisions_in_short(self):
        assert decision_of(True).action == decision_of(" accept ").action == "accept"
        assert decision_of({"memory": "x"}).action == "edit"
        assert decision_of({"action": "answer", "memory": "x"}).memory == "x"


class TestWhere:
    def test_a_pause_outlives_the_process(self, reviewing, tmp_path):
        path = str(tmp_path / "run.sqlite")
        with SqliteSaver.from_conn_string(path) as saver:
            agent = reviewing(saver=saver)
            agent.invoke(given(), CONFIG)
            calls = len(agent.asked)
        with SqliteSaver.from_conn_string(path) as saver:
            again = reviewing(saver=saver)
            output = again.invoke(goes_on("answer"), CONFIG)
        assert output["answer"] == FACT
        assert calls + len(again.asked) == output["usage"]["calls"]

    def test_in_a_node_of_another_graph(self, reviewing):
        class Books(TypedDict, total=False):
            question: str
            documents: list
            answer: str

        agent = reviewing(saver=False).copy({"checkpointer": None})
        graph = StateGraph(Books).add_node("reader", agent)
        graph.add_edge(START, "reader").add_edge("reader", END)
        host = graph.compile(checkpointer=InMemorySaver())
        assert request_of(host.invoke(given(), CONFIG))["memory"] == f"- {FACT}"
        assert host.invoke(goes_on("answer"), CONFIG)["answer"] == FACT

    @forms
    @pytest.mark.parametrize("is_tool", [True, False])
    def test_in_a_tool_and_in_a_messages_agent(self, reviewing, form, is_tool):
        agent = reviewing(every=2)
        if is_tool:
            tool = create_document_tool(agent, documents=given()["documents"])
            asks = {"name": tool.name, "args": {"question": QUESTION}, "id": "1"}

            def reply(messages):
                if isinstance(messages[-1], HumanMessage):
                    return AIMessage("", tool_calls=[asks])
                return AIMessage("Done.")

            host = create_agent(
                ScriptedChatModel(reply), tools=[tool], checkpointer=InMemorySaver()
            )
        else:
            host = create_messages_agent(agent, documents=given()["documents"])
        output = call(host, {"messages": [HumanMessage(QUESTION)]}, form)
        pauses = 0
        while "__interrupt__" in output:
            pauses += 1
            assert request_of(output)["step"] <= 2 * pauses
            output = call(host, goes_on("accept"), form)
        told = "".join(message.text for message in output["messages"])
        assert FACT in told
        assert MILL in told
        assert pauses > 2
        steps = request_steps(agent)
        assert len(steps) == len(set(steps))

    def test_without_a_checkpointer_it_is_refused_at_once(self, reviewing):
        agent = reviewing(saver=False)
        for form in ("invoke", "ainvoke"):
            with pytest.raises(SettingsError, match="checkpointer"):
                call(agent, given(), form)
        assert agent.asked == []

    @pytest.mark.parametrize("every", [0, -1, True, "often", 1.5, None])
    def test_how_often_is_checked(self, reviewing, every):
        with pytest.raises(SettingsError, match="review_every"):
            reviewing(every=every)

    def test_what_is_reviewed_is_checked(self, tmp_path):
        with pytest.raises(SettingsError, match="review"):
            create_memory_agent(oracle([]), document_dir=tmp_path, review="plan")


def request_steps(agent):
    """The prompts of chunks: one that was asked twice would be here twice."""
    return [prompt[-1].text for prompt in agent.asked if "<previous_memory>" in prompt[-1].text]
