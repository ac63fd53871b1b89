"""Real hosts that ask the memory agent one question over a document of more than 25 chunks.

As a program: `python -m tests.agents.hosts FOLDER sync|async CALL` runs every host, each with a
SQLite file in a folder of its own, until each has made that call of the model, and hangs there.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import RetryPolicy
from typing_extensions import TypedDict

from qwenlong_graph import ReadingSettings, create_memory_agent
from qwenlong_graph.agents.messages import create_messages_agent
from qwenlong_graph.agents.tool import create_document_tool
from qwenlong_graph.graph.agent import MemoryAgent
from qwenlong_graph.testing.oracle import oracle
from qwenlong_graph.testing.scripted import ScriptedChatModel, Stall, scripted

FACT = "The widow Hale paid 318,000 crowns for the bridge at Orrin."
FILLER = "The winter was long and the traders stayed away from the coast. "
TEXT = FILLER * 200 + FACT + " " + FILLER * 200
TITLE = "annals.txt"
CALL_ID = "call-1"
QUESTION = "Who paid for the bridge at Orrin?"
ASKED = {"messages": [{"role": "user", "content": QUESTION}]}
CONFIG: Any = {"configurable": {"thread_id": "t"}, "recursion_limit": 25}

OnCall = Callable[[int], "Stall | None"]
Place = tuple[str, int, int, str]
"""(title, start_char, end_char, cited text) of a citation."""


class Folder:
    """What the models of one host are asked, one line a call, in files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    @property
    def database(self) -> str:
        return str(self.path / "host.sqlite")

    def log(self, kind: str, prompt: Any) -> int:
        """Adds a line; gives how many there are."""
        digest = hashlib.sha256(str(prompt).encode()).hexdigest()
        with (self.path / kind).open("a") as file:
            file.write(digest + "\n")
        return len(self.lines(kind))

    def lines(self, kind: str) -> list[str]:
        path = self.path / kind
        return path.read_text().splitlines() if path.exists() else []


def document() -> Document:
    return Document(TEXT, metadata={"title": TITLE})


def memory_agent(folder: Folder, on_call: OnCall | None = None) -> MemoryAgent:
    """Logs each call of its model before it answers; `on_call` gets the call's number."""
    answer = oracle([FACT]).chat.replies  # type: ignore[attr-defined]

    def reply(messages: list[Any]) -> Any:
        number = folder.log("calls", messages[-1].content)
        return (on_call and on_call(number)) or answer(messages)

    return create_memory_agent(
        scripted(reply),
        settings=ReadingSettings(strategy="memory", chunk_tokens=200),
        document_dir=folder.path / "store",
        retry_policy=RetryPolicy(max_attempts=1),
    )


def boss(folder: Folder, tool: str, arguments: dict[str, Any]) -> ScriptedChatModel:
    """The host's own model: hands the question on, then says what it was told."""

    def reply(messages: list[AnyMessage]) -> AIMessage:
        folder.log("host calls", [message.text for message in messages])
        if isinstance(messages[-1], HumanMessage):
            call = {"name": tool, "args": arguments, "id": CALL_ID}
            return AIMessage("", tool_calls=[call])
        told = next(message.text for message in reversed(messages) if FACT in message.text)
        return AIMessage(f"I was told: {told}")

    return ScriptedChatModel(reply)


# The hosts.


class Books(TypedDict, total=False):
    """A parent's schema that shares some keys with the memory agent."""

    question: str
    documents: list
    shelf: str
    answer: str
    citations: list


class Desk(TypedDict, total=False):
    """A parent's schema that shares only messages."""

    messages: Annotated[list[AnyMessage], add_messages]
    desk: str


def node(agent: MemoryAgent, folder: Folder, saver: Any) -> Any:
    graph = StateGraph(Books).add_node("reader", agent)
    return graph.add_edge(START, "reader").add_edge("reader", END).compile(checkpointer=saver)


def messages_node(agent: MemoryAgent, folder: Folder, saver: Any) -> Any:
    reader = create_messages_agent(agent, documents=[document()])
    graph = StateGraph(Desk).add_node("reader", reader)
    return graph.add_edge(START, "reader").add_edge("reader", END).compile(checkpointer=saver)


def document_tool(agent: MemoryAgent, folder: Folder, saver: Any) -> Any:
    from langchain.agents import create_agent

    tool = create_document_tool(agent, documents=[document()])
    model = boss(folder, "ask_documents", {"question": QUESTION})
    return create_agent(model, tools=[tool], checkpointer=saver)


def document_tool_of_deep_agent(agent: MemoryAgent, folder: Folder, saver: Any) -> Any:
    from deepagents import create_deep_agent

    arguments = {"question": QUESTION, "documents": [TITLE]}
    return create_deep_agent(
        model=boss(folder, "ask_documents", arguments),
        tools=[create_document_tool(agent)],
        checkpointer=saver,
    )


def supervisor(agent: MemoryAgent, folder: Folder, saver: Any) -> Any:
    from langgraph.warnings import LangGraphDeprecatedSinceV10

    reader = create_messages_agent(agent, name="reader", documents=[document()])
    with warnings.catch_warnings():
        # langgraph-supervisor 0.0.31 builds on names that LangGraph 1.0 moved elsewhere.
        warnings.simplefilter("ignore", LangGraphDeprecatedSinceV10)
        from langgraph_supervisor import create_supervisor

        graph = create_supervisor([reader], model=boss(folder, "transfer_to_reader", {}))
    return graph.compile(checkpointer=saver)


def swarm(agent: MemoryAgent, folder: Folder, saver: Any) -> Any:
    from langchain.agents import create_agent
    from langgraph_swarm import create_handoff_tool, create_swarm

    reader = create_messages_agent(agent, name="reader", documents=[document()], handoff_to="alice")
    alice = create_agent(
        boss(folder, "transfer_to_reader", {}),
        tools=[create_handoff_tool(agent_name="reader")],
        name="alice",
    )
    return create_swarm([alice, reader], default_active_agent="alice").compile(checkpointer=saver)


def deep_agent(agent: MemoryAgent, folder: Folder, saver: Any) -> Any:
    from deepagents import create_deep_agent

    reader = create_messages_agent(agent, name="reader", sources_in_text=True)
    task = {"description": QUESTION, "subagent_type": "reader"}
    return create_deep_agent(
        model=boss(folder, "task", task),
        subagents=[{"name": "reader", "description": "Reads long files.", "runnable": reader}],
        checkpointer=saver,
    )


def places_of_node(output: Any) -> list[Place]:
    return [
        (cited["document_title"], cited["start_char"], cited["end_char"], cited["cited_text"])
        for cited in output["citations"]
    ]


def places_of_messages(output: Any) -> list[Place]:
    """The citation annotations of the reader's message."""
    return [
        (
            cited["title"],
            cited["extras"]["start_char"],
            cited["extras"]["end_char"],
            cited["cited_text"],
        )
        for message in output["messages"]
        for block in message.content_blocks
        for cited in block.get("annotations", [])
    ]


def places_of_text(output: Any) -> list[Place]:
    """The sources that stand as text in a tool's result."""
    return [
        (title, int(start), int(end), quote)
        for message in output["messages"]
        if message.type == "tool"
        for title, start, end, quote in re.findall(
            r'^\[\d+\] (.*), chars (\d+)-(\d+): "(.*)"$', message.text, re.MULTILINE
        )
    ]


@dataclass(frozen=True)
class Host:
    """`build(memory agent, folder, saver)` gives a graph that takes `given`.

    `is_seen_within`: its stream shows the progress only with `subgraphs=True`. `tool_call_id`: what
    the document tool adds to each event.
    """

    name: str
    build: Callable[[MemoryAgent, Folder, Any], Any]
    given: Any
    places: Callable[[Any], list[Place]]
    is_seen_within: bool = False
    tool_call_id: str | None = None


HOSTS: Sequence[Host] = [
    Host(
        "node of a graph with another schema",
        node,
        {"question": QUESTION, "documents": [document()], "shelf": "3b"},
        places_of_node,
        is_seen_within=True,
    ),
    Host("messages agent as a node", messages_node, {**ASKED, "desk": "2"}, places_of_messages),
    Host(
        "document tool in create_agent",
        document_tool,
        ASKED,
        places_of_text,
        tool_call_id=CALL_ID,
    ),
    Host("worker of langgraph-supervisor", supervisor, ASKED, places_of_messages),
    Host("member of langgraph-swarm, hands back", swarm, ASKED, places_of_messages),
    Host(
        "subagent of deepagents",
        deep_agent,
        {**ASKED, "files": {TITLE: {"content": TEXT, "encoding": "utf-8"}}},
        places_of_text,
    ),
    Host(
        "document tool in deepagents",
        document_tool_of_deep_agent,
        {**ASKED, "files": {TITLE: {"content": TEXT, "encoding": "utf-8"}}},
        places_of_text,
        tool_call_id=CALL_ID,
    ),
]


def folder_of(host: Host, root: Path) -> Folder:
    return Folder(root / re.sub(r"\W+", "-", host.name))


# Both forms of a call.


def with_host(form: str, host: Host, folder: Folder, sync: Any, asynchronous: Any, **options: Any):
    """What `sync` or `asynchronous` makes of a newly built host over the folder's SQLite file."""
    if form == "sync":
        with SqliteSaver.from_conn_string(folder.database) as saver:
            return sync(host.build(memory_agent(folder, **options), folder, saver))

    async def run() -> Any:
        async with AsyncSqliteSaver.from_conn_string(folder.database) as saver:
            return await asynchronous(host.build(memory_agent(folder, **options), folder, saver))

    return asyncio.run(run())


def invoke(form: str, host: Host, folder: Folder, given: Any, **options: Any) -> Any:
    """The host's output, each step kept before the next begins."""
    return with_host(
        form,
        host,
        folder,
        lambda graph: graph.invoke(given, CONFIG, durability="sync"),
        lambda graph: graph.ainvoke(given, CONFIG, durability="sync"),
        **options,
    )


# The program that is to be killed.


def hang_all(root: Path, form: str, call: int) -> None:
    """Every host, each in a thread that is left hanging."""

    def hang(number: int) -> Stall | None:
        return Stall(600) if number == call else None

    for host in HOSTS:
        arguments = (form, host, folder_of(host, root), host.given)
        thread = threading.Thread(target=invoke, args=arguments, kwargs={"on_call": hang})
        thread.daemon = True
        thread.start()
        while len(folder_of(host, root).lines("calls")) < call:
            if not thread.is_alive():
                sys.exit(f"{host.name} came to an end by itself")
            time.sleep(0.01)
    print("all hang", flush=True)  # noqa: T201 - read by the test
    time.sleep(600)


if __name__ == "__main__":
    hang_all(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
