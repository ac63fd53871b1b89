"""The messages agent by itself and in small hosts: real LangGraph, real store, scripted models."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
from typing import Annotated, Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import MessagesState, add_messages
from langgraph.types import RetryPolicy, Send
from pydantic import BaseModel
from typing_extensions import TypedDict

from qwenlong_graph import ReadingSettings, build_memory_graph, create_memory_agent
from qwenlong_graph.agents.messages import (
    HISTORY_CHARS,
    HISTORY_MESSAGES,
    TURN_CHARS,
    MessagesAgent,
    create_messages_agent,
)
from qwenlong_graph.errors import DocumentNotFoundError, ModelUnavailableError, SettingsError
from qwenlong_graph.graph.agent import MemoryAgent
from qwenlong_graph.reading.prompts import NOT_FOUND
from qwenlong_graph.testing.oracle import oracle
from qwenlong_graph.testing.scripted import scripted
from tests.documents.files import pdf

pytestmark = pytest.mark.contract

FACT = "The widow Hale paid 318,000 crowns for the bridge at Orrin."
MILL = "The brothers Adler built the mill at Tarn in 1881."
QUESTION = "Who paid for the bridge at Orrin?"
FILLER = "The winter was long and the traders stayed away from the coast. "
TEXT = FILLER * 40 + FACT + " " + FILLER * 40
SETTINGS = ReadingSettings(strategy="memory", chunk_tokens=400)
ONCE = RetryPolicy(max_attempts=1)
CONFIG: Any = {"configurable": {"thread_id": "t"}, "recursion_limit": 25}


def book(text: str = TEXT, title: str = "annals") -> Document:
    return Document(text, metadata={"title": title})


def asked(*turns: Any, **keys: Any) -> dict[str, Any]:
    return {"messages": [HumanMessage(turn) for turn in turns or (QUESTION,)], **keys}


class Recording(MemoryAgent):
    """Keeps what it was given."""

    def stream(self, input, config=None, **kwargs):
        self.builder.given.append(input)
        return super().stream(input, config, **kwargs)


@pytest.fixture
def model():
    return oracle([FACT, MILL])


@pytest.fixture
def memory_agent(model, tmp_path):
    agent = create_memory_agent(
        model, settings=SETTINGS, document_dir=tmp_path / "store", retry_policy=ONCE
    )
    agent.__class__ = Recording
    agent.builder.given = []
    return agent


@pytest.fixture
def reader(memory_agent):
    return create_messages_agent(memory_agent)


@pytest.fixture
def given(memory_agent):
    """What the memory agent was called with, call by call."""
    return memory_agent.builder.given


def last(output: Any) -> AIMessage:
    message = output["messages"][-1]
    assert isinstance(message, AIMessage)
    return message


def citations(message: AIMessage) -> list[Any]:
    return [cited for block in message.content_blocks for cited in block.get("annotations", [])]


def assert_told(message: AIMessage, text: str = TEXT, title: str = "annals") -> None:
    (cited,) = citations(message)
    assert cited["title"] == title
    assert text[cited["extras"]["start_char"] : cited["extras"]["end_char"]] == FACT
    assert message.text[cited["start_index"] : cited["end_index"]] == FACT


def titles(message: AIMessage) -> set[str]:
    return {cited["title"] for cited in citations(message)}


def host_of(reader: MessagesAgent, saver: Any = None, **options: Any) -> Any:
    graph = StateGraph(MessagesState).add_node("reader", reader, **options)
    return graph.add_edge(START, "reader").add_edge("reader", END).compile(checkpointer=saver)


# The answer.


def test_one_message_is_appended_with_citations_usage_and_findings(reader, model):
    output = reader.invoke(asked(documents=[book()]))
    assert [message.type for message in output["messages"]] == ["human", "ai"]
    message = last(output)
    assert_told(message)
    assert (message.name, message.text) == ("document_reader", FACT)
    metadata = message.response_metadata
    assert (metadata["found"], metadata["unsupported"], metadata["unread"]) == (True, 0, 0)
    assert "error" not in metadata
    usage = message.usage_metadata
    assert usage["input_tokens"] > 1000
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_token_details"] == {"reasoning": 0}
    assert set(output) == {"messages"}


def test_the_async_form_gives_the_same(reader):
    output = asyncio.run(reader.ainvoke(asked(documents=[book()])))
    assert_told(last(output))


def test_claims_without_evidence_are_counted(tmp_path):
    memory = f"<memory>\n{FACT}\n</memory>\n<plan>\nread on\n</plan>"
    split = f"<core_question>{QUESTION}</core_question><instructions></instructions>"

    def reply(messages):
        prompt = str(messages[-1].text)
        if "<previous_memory>" in prompt:
            return memory
        if "<section>" in prompt or "<memory>" in prompt:
            return f"{FACT} It took 77 masons."
        return split

    agent = create_memory_agent(scripted(reply), settings=SETTINGS, document_dir=tmp_path / "s")
    message = last(create_messages_agent(agent, documents=book()).invoke(asked()))
    assert message.response_metadata["found"] is True
    assert message.response_metadata["unsupported"] == 1


def test_nothing_found_is_said_and_marked(reader):
    message = last(reader.invoke(asked(documents=[book(FILLER * 60)])))
    assert message.response_metadata["found"] is False
    assert citations(message) == []
    assert message.text


def test_thoughts_are_told_in_the_usage(tmp_path):
    usage = {
        "input_tokens": 10,
        "output_tokens": 9,
        "total_tokens": 19,
        "output_token_details": {"reasoning": 4},
    }
    model = scripted(lambda messages: AIMessage(NOT_FOUND, usage_metadata=usage))
    agent = create_memory_agent(model, document_dir=tmp_path / "s")
    message = last(create_messages_agent(agent, documents=book("A line.")).invoke(asked()))
    assert message.usage_metadata == usage


def test_sources_can_stand_in_the_text_too(memory_agent):
    reader = create_messages_agent(memory_agent, documents=[book()], sources_in_text=True)
    message = last(reader.invoke(asked()))
    assert_told(message)
    start = TEXT.index(FACT)
    assert message.text == (
        f"{FACT} [1]\n\nSources, quoted from the documents:\n"
        f'[1] annals, chars {start}-{start + len(FACT)}: "{FACT}"'
    )


def test_an_answer_in_a_form_is_given_beside_the_messages(tmp_path):
    class Payer(BaseModel):
        payer: str

    agent = create_memory_agent(
        scripted(lambda messages: '{"payer": "the widow Hale"}'),
        document_dir=tmp_path / "s",
        response_format=Payer,
        checkpointer=InMemorySaver(),
    )
    reader = create_messages_agent(agent, documents=[book(FACT)])
    output = reader.invoke(asked(), CONFIG)
    assert output["structured_response"] == {"payer": "the widow Hale"}
    # A turn that fails does not leave the last one's behind.
    refused = reader.invoke({"messages": [HumanMessage(" ")]}, CONFIG)
    assert refused["structured_response"] is None


# The turn.


def test_the_last_human_turn_is_the_question_and_earlier_ones_are_history(reader, given):
    messages = [
        SystemMessage("Be brief."),
        HumanMessage("Who was the widow Hale?"),
        AIMessage("", tool_calls=[{"name": "search", "args": {}, "id": "1"}]),
        ToolMessage("nothing", tool_call_id="1"),
        AIMessage("A merchant of Orrin.", name="clerk"),
        AIMessage("Transferring back", response_metadata={"__is_handoff_back": True}),
        HumanMessage([{"type": "text", "text": "What did"}, {"type": "text", "text": "she pay?"}]),
        AIMessage("", tool_calls=[{"name": "transfer", "args": {}, "id": "2"}]),
        ToolMessage("done", tool_call_id="2"),
    ]
    output = reader.invoke({"messages": messages, "documents": [book()]})
    assert given[0]["question"] == "What did\nshe pay?"
    assert given[0]["history"] == [
        {"role": "user", "content": "Who was the widow Hale?"},
        {"role": "assistant", "content": "A merchant of Orrin."},
    ]
    assert len(output["messages"]) == len(messages) + 1


def test_messages_as_plain_values_will_do(reader):
    messages = [{"role": "user", "content": QUESTION}]
    assert_told(last(reader.invoke({"messages": messages, "documents": [book()]})))


def test_a_huge_history_is_cut_to_its_newest_turns(reader, given):
    turns = [f"{number} {'word ' * 20_000}" for number in range(300)]
    reader.invoke(asked(*turns, "short", QUESTION, documents=[book()]))
    history = given[0]["history"]
    assert history[-1]["content"] == "short"
    assert history[-2]["content"].startswith("299 ")
    assert len(history) <= HISTORY_MESSAGES
    assert all(len(turn["content"]) < TURN_CHARS + 10 for turn in history)
    assert sum(len(turn["content"]) for turn in history) <= HISTORY_CHARS


def test_many_short_turns_are_cut_too(reader, given):
    reader.invoke(asked(*map(str, range(1000)), QUESTION, documents=[book()]))
    assert [turn["content"] for turn in given[0]["history"]] == [
        str(number) for number in range(1000 - HISTORY_MESSAGES, 1000)
    ]


def test_tool_calls_left_open_get_results_so_that_models_take_the_history(reader):
    calls = [{"name": name, "args": {}, "id": name} for name in ("done", "open")]
    messages = [
        HumanMessage(QUESTION),
        AIMessage("", tool_calls=calls),
        ToolMessage("fine", tool_call_id="done"),
    ]
    *_, added, answer = reader.invoke({"messages": messages, "documents": [book()]})["messages"]
    assert (added.type, added.tool_call_id, added.status) == ("tool", "open", "error")
    assert_told(answer)


# The documents.


@pytest.mark.parametrize("kind", ["document", "list", "path"])
def test_documents_of_the_state(reader, tmp_path, kind):
    path = tmp_path / "annals"
    path.write_text(TEXT)
    documents = {"document": book(), "list": [book()], "path": [str(path)]}[kind]
    assert_told(last(reader.invoke(asked(documents=documents))))


def test_fixed_documents_are_the_only_ones(memory_agent):
    reader = create_messages_agent(memory_agent, documents=[book()])
    attached = {"type": "text-plain", "text": f"{MILL} {FACT}", "title": "other"}
    message = HumanMessage([{"type": "text", "text": QUESTION}, attached])
    files = {"/other.txt": {"content": MILL, "encoding": "utf-8"}}
    output = reader.invoke({"messages": [message], "documents": ["/etc/hosts"], "files": files})
    assert_told(last(output))


def test_a_fixed_document_that_cannot_be_read_is_an_error_at_once(memory_agent):
    with pytest.raises(DocumentNotFoundError):
        create_messages_agent(memory_agent, documents=["no such file"])


ENCODED = base64.b64encode(pdf([FACT])).decode()


@pytest.mark.parametrize(
    "block",
    [
        {"type": "text-plain", "text": FACT, "mime_type": "text/plain", "title": "note"},
        {"type": "file", "source_type": "text", "text": FACT, "metadata": {"name": "note"}},
        {"type": "file", "base64": ENCODED, "mime_type": "application/pdf", "filename": "note"},
        {
            "type": "file",
            "file": {"filename": "note", "file_data": f"data:application/pdf;base64,{ENCODED}"},
        },
        {
            "type": "document",
            "title": "note",
            "source": {"type": "base64", "media_type": "application/pdf", "data": ENCODED},
        },
    ],
    ids=["text", "text of LangChain 0", "file", "file of OpenAI", "document of Anthropic"],
)
def test_an_attachment_is_read(reader, block):
    message = HumanMessage([{"type": "text", "text": QUESTION}, block])
    answer = last(reader.invoke({"messages": [message], "documents": [book(MILL)]}))
    assert titles(answer) == {"note"}
    assert FACT in answer.text


def test_the_newest_attachments_count_also_for_later_questions(reader):
    def turn(text: str, title: str) -> HumanMessage:
        attached = {"type": "text-plain", "text": text, "title": title}
        return HumanMessage([{"type": "text", "text": "Read this."}, attached])

    messages = [turn(MILL, "old"), turn(FACT, "new"), HumanMessage(QUESTION)]
    assert titles(last(reader.invoke({"messages": messages}))) == {"new"}


def test_attachments_of_one_title_stay_apart(reader):
    blocks = [{"type": "text-plain", "text": text} for text in (MILL, FACT, " ")]
    message = HumanMessage([{"type": "text", "text": QUESTION}, *blocks])
    answer = last(reader.invoke({"messages": [message]}))
    assert titles(answer) == {"attachment", "attachment (2)"}


FILES = {
    "/in/annals.txt": {"content": FACT, "encoding": "utf-8"},
    "/in/mill.txt": {"content": [FILLER, MILL], "created_at": "x"},
    "/in/scan.pdf": {"content": base64.b64encode(pdf([FACT])).decode(), "encoding": "base64"},
    "/in/plain.txt": MILL,
    "/in/empty.txt": {"content": "", "encoding": "utf-8"},
    "/in/odd": {"content": None},
    "/in/odder": 7,
}


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What does /in/annals.txt say?", {"/in/annals.txt"}),
        ("What does annals.txt say?", {"/in/annals.txt"}),
        ("Compare annals.txt with mill.txt.", {"/in/annals.txt", "/in/mill.txt"}),
        ("What does scan.pdf say?", {"/in/scan.pdf"}),
        (QUESTION, {"/in/annals.txt", "/in/mill.txt", "/in/scan.pdf", "/in/plain.txt"}),
    ],
)
def test_files_named_in_the_question_are_read_else_all(reader, model, question, expected):
    reader.invoke(asked(question, files=FILES))
    read = "\n".join(str(prompt[-1].text) for prompt in model.chat.prompts)
    assert {path for path in FILES if f'"{path}"' in read} == expected


def test_files_are_not_given_back(reader):
    assert set(reader.invoke(asked(files=FILES))) == {"messages"}


def test_checkpoints_hold_no_text_of_the_documents(memory_agent, tmp_path):
    with SqliteSaver.from_conn_string(str(tmp_path / "run.sqlite")) as saver:
        reader = create_messages_agent(memory_agent, checkpointer=saver)
        reader.invoke(asked(documents=[book()]), CONFIG)
        other = {**CONFIG, "configurable": {"thread_id": "other"}}
        reader.invoke(asked(files={"/annals": {"content": TEXT, "encoding": "utf-8"}}), other)
    with sqlite3.connect(tmp_path / "run.sqlite") as database:
        held = b"".join(
            bytes(value)
            for table, column in (("checkpoints", "checkpoint"), ("writes", "value"))
            for (value,) in database.execute(f"SELECT {column} FROM {table}")
        )
    assert FACT.encode() in held
    assert FILLER.strip().encode() not in held


# What is missing, and what fails.

NO_TEXT: Any = [
    {"type": "image", "url": "https://example.org/x.png"},
    {"type": "text", "text": None},
]


@pytest.mark.parametrize(
    ("messages", "error", "words"),
    [
        ([], "QuestionError", "no message of the user"),
        ([AIMessage("Hello")], "QuestionError", "no message of the user"),
        ([HumanMessage("  ")], "QuestionError", "no message of the user"),
        ([HumanMessage(QUESTION), HumanMessage("")], "QuestionError", "no message of the user"),
        ([HumanMessage(NO_TEXT)], "QuestionError", "no message of the user"),
        (
            [HumanMessage([{"type": "text-plain", "text": FACT}])],
            "QuestionError",
            "no message of the user",
        ),
        ([HumanMessage("word " * 20_000)], "QuestionError", "question"),
        (
            [HumanMessage([{"type": "text", "text": QUESTION}, {"type": "file", "base64": "!"}])],
            "CorruptDocumentError",
            "base64",
        ),
    ],
    ids=["none", "no human", "blank", "last blank", "no text", "only a file", "long", "bad file"],
)
@pytest.mark.parametrize("form", ["sync", "async"])
def test_what_the_caller_can_put_right_is_answered(reader, model, form, messages, error, words):
    class Desk(MessagesState):
        documents: list

    value = {"messages": messages, "documents": [book()]}
    graph = StateGraph(Desk).add_node("reader", reader)
    host = graph.add_edge(START, "reader").add_edge("reader", END).compile()
    output = host.invoke(value) if form == "sync" else asyncio.run(host.ainvoke(value))
    message = last(output)
    assert (message.name, message.response_metadata["error"]) == ("document_reader", error)
    assert message.response_metadata["found"] is False
    assert words in message.text
    assert model.chat.prompts == []


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ({}, "NoDocumentsError"),
        ({"documents": []}, "NoDocumentsError"),
        ({"files": {}}, "NoDocumentsError"),
        ({"files": {"/a": {"content": " ", "encoding": "utf-8"}}}, "NoDocumentsError"),
        ({"files": {"/a": {"content": "%", "encoding": "base64"}}}, "CorruptDocumentError"),
        ({"files": "x"}, "NoDocumentsError"),
        ({"documents": ["no such file.txt"]}, "DocumentNotFoundError"),
        ({"documents": [Document(" ")]}, "EmptyDocumentError"),
    ],
)
def test_documents_that_cannot_be_read_are_told(reader, model, keys, error):
    message = last(reader.invoke(asked(**keys)))
    assert message.response_metadata["error"] == error
    assert message.text
    assert model.chat.prompts == []


def test_a_document_that_cannot_be_read_is_told_until_another_is_given(memory_agent):
    reader = create_messages_agent(memory_agent, checkpointer=InMemorySaver())
    reader.invoke(asked(documents=[book(MILL)]), CONFIG)
    for bad in (asked(documents=["no such file.txt"]), asked()):
        message = last(reader.invoke(bad, CONFIG))
        assert message.response_metadata["error"] == "DocumentNotFoundError"
    assert_told(last(reader.invoke(asked(documents=[book()]), CONFIG)))
    assert_told(last(reader.invoke(asked(), CONFIG)))


def failing_once(tmp_path, *, at: int) -> Any:
    """A memory agent whose server is away at one call, and the numbers of its calls."""
    answer = oracle([FACT, MILL]).chat.replies
    calls: list[int] = []

    def reply(messages):
        calls.append(len(calls) + 1)
        return ModelUnavailableError("away") if calls[-1] == at else answer(messages)

    agent = create_memory_agent(
        scripted(reply), settings=SETTINGS, document_dir=tmp_path / "s", retry_policy=ONCE
    )
    return agent, calls


def test_a_server_that_is_away_is_an_error_and_the_thread_goes_on(tmp_path):
    agent, calls = failing_once(tmp_path, at=4)
    reader = create_messages_agent(agent, documents=[book()], checkpointer=InMemorySaver())
    with pytest.raises(ModelUnavailableError):
        reader.invoke(asked(), CONFIG)
    output = reader.invoke(None, CONFIG)
    assert_told(last(output))
    whole, undisturbed = failing_once(tmp_path, at=0)
    create_messages_agent(whole, documents=[book()]).invoke(asked())
    assert len(calls) == len(undisturbed) + 1


@pytest.mark.parametrize("saver", [None, InMemorySaver()], ids=["no saver", "saver"])
def test_a_host_that_retries_gets_its_answer(tmp_path, saver):
    agent, calls = failing_once(tmp_path, at=4)
    reader = create_messages_agent(agent, documents=[book()])
    policy = RetryPolicy(initial_interval=0.001, retry_on=ModelUnavailableError)
    output = host_of(reader, saver, retry_policy=policy).invoke(asked(), CONFIG)
    assert_told(last(output))
    whole, undisturbed = failing_once(tmp_path, at=0)
    create_messages_agent(whole, documents=[book()]).invoke(asked())
    # LangGraph gives a node's second try a namespace of its own, checkpointer or not: the reading
    # begins anew. The memory agent's own `retry_policy` repeats the one call.
    assert len(calls) == len(undisturbed) + 4


# Turns of one thread.


def test_what_the_memory_agent_kept_of_a_thread_is_there_in_the_next_turn(memory_agent):
    reader = create_messages_agent(memory_agent, name="reader", documents=[book()])
    for host, place in (
        (
            create_messages_agent(
                memory_agent, name="reader", documents=[book()], checkpointer=InMemorySaver()
            ),
            "reader",
        ),
        (host_of(reader, InMemorySaver()), "reader|reader"),
    ):
        host.invoke(asked(), CONFIG)
        inner = {"configurable": {"thread_id": "t", "checkpoint_ns": place}}
        kept = host.checkpointer.get_tuple(inner).checkpoint["channel_values"]
        assert FACT in kept["memory"]
        host.invoke(asked("And the mill?"), CONFIG)
        held = [
            saved.checkpoint["channel_values"].get("question")
            for saved in host.checkpointer.list(inner)
        ]
        assert {QUESTION, "And the mill?"} <= set(held)


class FailingSaver(InMemorySaver):
    """Fails to write the first checkpoint of a namespace, once it is told to."""

    failing = ""

    def put(self, config, checkpoint, metadata, new_versions):
        if self.failing and config["configurable"]["checkpoint_ns"] == self.failing:
            self.failing = ""
            raise OSError("disk full")
        return super().put(config, checkpoint, metadata, new_versions)


def test_a_call_that_had_not_begun_is_not_answered_with_the_last_turns_answer(memory_agent, model):
    saver = FailingSaver()
    reader = create_messages_agent(memory_agent, documents=[book(f"{TEXT} {MILL}")])
    host = host_of(reader, saver)
    assert FACT in last(host.invoke(asked(), CONFIG)).text
    saver.failing = "reader|document_reader"
    with pytest.raises(OSError, match="disk full"):
        host.invoke(asked("Who built the mill?"), CONFIG, durability="sync")
    calls = len(model.chat.prompts)
    host.invoke(None, CONFIG)
    assert len(model.chat.prompts) > calls
    kept = {"configurable": {"thread_id": "t", "checkpoint_ns": "reader|document_reader"}}
    state = saver.get_tuple(kept).checkpoint["channel_values"]
    assert state["question"] == "Who built the mill?"


class OvertakenSaver(InMemorySaver):
    """Once armed: a call side by side writes its checkpoint right after the next is looked up."""

    other: Any = None

    def get_tuple(self, config):
        found = super().get_tuple(config)
        place = config["configurable"].get("checkpoint_ns", "")
        if self.other and place == self.other.config["configurable"]["checkpoint_ns"]:
            newer = {**self.other.checkpoint, "id": "f" + found.checkpoint["id"][1:]}
            metadata, self.other = self.other.metadata, None
            super().put(found.config, newer, metadata, newer["channel_versions"])
        return found


def test_a_resumed_call_is_never_answered_with_what_another_call_wrote(tmp_path):
    whole, undisturbed = failing_once(tmp_path, at=0)
    create_messages_agent(whole, documents=[book()]).invoke(asked("Who built the mill?"))
    # The first call of the next turn resolves its question; the second fails.
    agent, calls = failing_once(tmp_path, at=len(undisturbed) + 2)
    saver = OvertakenSaver()
    host = host_of(create_messages_agent(agent, documents=[book()]), saver)
    host.invoke(asked("Who built the mill?"), CONFIG)
    place = "reader|document_reader"
    kept = {"configurable": {"thread_id": "t", "checkpoint_ns": place}}
    finished = saver.get_tuple(kept)
    with pytest.raises(ModelUnavailableError):
        host.invoke(asked(), CONFIG)
    saver.other = finished
    before = len(calls)
    host.invoke(None, CONFIG)
    assert saver.get_tuple(kept).checkpoint["channel_values"]["question"] != QUESTION
    # So it was read anew, beside the history of the thread.
    assert len(calls) > before
    beside = {"configurable": {"thread_id": "t", "checkpoint_ns": f"{place}|1"}}
    assert saver.get_tuple(beside).checkpoint["channel_values"]["question"] == QUESTION


def test_a_new_question_after_a_crash_is_read_for_itself(tmp_path):
    agent, _ = failing_once(tmp_path, at=4)
    host = host_of(create_messages_agent(agent, documents=[book()]), InMemorySaver())
    with pytest.raises(ModelUnavailableError):
        host.invoke(asked("Who went to sea?"), CONFIG)
    output = host.invoke(asked(), CONFIG)
    assert_told(last(output))
    assert output["messages"][-1].response_metadata["found"]


@pytest.mark.parametrize("form", ["sync", "async"])
def test_calls_side_by_side_in_one_thread_do_not_mix(memory_agent, form):
    class Two(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]

    reader = create_messages_agent(memory_agent, name="reader")
    graph = StateGraph(Two).add_node("reader", reader)
    graph.add_conditional_edges(
        START,
        lambda state: [
            Send("reader", asked(f"What about {title}?", documents=[book(text, title)]))
            for title, text in (("bridge", TEXT), ("mill", FILLER * 30 + MILL))
        ],
        ["reader"],
    )
    host = graph.compile(checkpointer=InMemorySaver())
    start: Any = {"messages": []}
    output = (
        host.invoke(start, CONFIG) if form == "sync" else asyncio.run(host.ainvoke(start, CONFIG))
    )
    answers = [message for message in output["messages"] if message.type == "ai"]
    assert [(titles(answer), answer.text) for answer in answers] == [
        ({"bridge"}, FACT),
        ({"mill"}, MILL),
    ]


# Progress, pauses, hand-back.


@pytest.mark.parametrize("form", ["sync", "async"])
def test_each_event_is_told_once_however_it_is_listened_to(memory_agent, form):
    reader = create_messages_agent(memory_agent, documents=[book()])
    host = host_of(reader)

    def streamed(graph: Any, **options: Any) -> list[Any]:
        if form == "sync":
            return list(graph.stream(asked(), stream_mode="custom", **options))

        async def run() -> list[Any]:
            return [
                event async for event in graph.astream(asked(), stream_mode="custom", **options)
            ]

        return asyncio.run(run())

    def kinds(events: list[Any]) -> list[str]:
        return [event["type"] for event in events]

    expected = kinds(streamed(reader))
    assert expected[0] == "started"
    assert expected[-1] == "answered"
    assert kinds(streamed(host)) == expected
    assert kinds([event for _, event in streamed(host, subgraphs=True)]) == expected
    assert kinds([event for _, event in streamed(reader, subgraphs=True)]) == expected


def test_a_host_that_takes_the_events_itself_has_them_for_itself(memory_agent):
    from langgraph.config import get_stream_writer

    reader = create_messages_agent(memory_agent, documents=[book()])

    def call(state: MessagesState) -> Any:
        writer = get_stream_writer()
        for event in reader.stream(state, stream_mode="custom"):
            writer({"forwarded": event["type"]})
        return {}

    graph = StateGraph(MessagesState).add_node("call", call)
    host = graph.add_edge(START, "call").add_edge("call", END).compile()
    events = list(host.stream(asked(), stream_mode="custom"))
    assert all(set(event) == {"forwarded"} for event in events)
    kinds = [event["forwarded"] for event in events]
    assert (kinds[0], kinds[-1], kinds.count("started")) == ("started", "answered", 1)


def test_a_pause_within_the_reading_reaches_the_host_and_goes_on(model, tmp_path):
    graph = build_memory_graph(model, settings=SETTINGS, document_dir=tmp_path / "store")
    agent = graph.compile(interrupt_before=["finalize"])
    host = host_of(create_messages_agent(agent, documents=[book()]), InMemorySaver())
    host.invoke(asked(), CONFIG)
    assert host.get_state(CONFIG).next == ("reader",)
    before = len(model.chat.prompts)
    assert_told(last(host.invoke(None, CONFIG)))
    assert len(model.chat.prompts) == before + 1


def test_without_a_host_there_is_no_one_to_hand_back_to(memory_agent):
    reader = create_messages_agent(memory_agent, documents=[book()], handoff_to="alice")
    assert_told(last(reader.invoke(asked())))


def test_a_refusal_is_handed_back_too(memory_agent):
    from langgraph_swarm import SwarmState

    reader = create_messages_agent(memory_agent, name="reader", handoff_to="alice")
    graph = StateGraph(SwarmState).add_node("reader", reader)
    graph.add_node("alice", lambda state: {"messages": [AIMessage("Which document?")]})
    host = graph.add_edge(START, "reader").add_edge("alice", END).compile()
    output = host.invoke(asked())
    assert output["active_agent"] == "alice"
    assert [message.text[:8] for message in output["messages"][1:]] == ["There is", "Which do"]


# How it is made.


def test_an_uncompiled_graph_and_a_checkpointer_of_the_agent_are_taken(model, tmp_path):
    graph = build_memory_graph(model, settings=SETTINGS, document_dir=tmp_path / "store")
    assert_told(last(create_messages_agent(graph, documents=[book()]).invoke(asked())))
    saver = InMemorySaver()
    reader = create_messages_agent(graph.compile(checkpointer=saver), documents=[book()])
    reader.invoke(asked(), CONFIG)
    assert len(reader.invoke(asked("And?"), CONFIG)["messages"]) == 4


def test_copies_keep_what_it_is(reader):
    copy = reader.with_config(tags=["x"])
    assert isinstance(copy, MessagesAgent)
    assert_told(last(copy.invoke(asked(documents=[book()]))))


@pytest.mark.parametrize(
    ("agent", "options", "words"),
    [
        (object(), {}, "the agent is a object"),
        (None, {"name": " "}, "name is ' '"),
        (None, {"name": None}, "name is None"),
        (None, {"handoff_to": ""}, "handoff_to is ''"),
    ],
)
def test_bad_arguments_are_named(memory_agent, agent, options, words):
    with pytest.raises(SettingsError, match=words):
        create_messages_agent(agent or memory_agent, **options)


def test_the_schemas_can_be_told_as_json(reader):
    assert {"messages", "documents", "files"} <= set(reader.get_input_jsonschema()["properties"])
    assert "messages" in reader.get_output_jsonschema()["properties"]
