"""A swarm with a member that reads, and hands the turn back (langgraph-swarm).

    python examples/swarm.py

Alice talks to the user. What she does not know she hands to `reader`, the
memory agent as an agent that talks in messages. `handoff_to="alice"` gives her
the turn back after the answer; otherwise a swarm stays with whoever spoke last,
and the user's next word would be taken for a question too.

Two turns of one thread are shown. The second question is answered from the
quotes that the first one left: no chunk is read again.
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from typing import Any

from _models import ADDRESS_1946, arguments, host, reader
from _printing import heading, paragraph
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph_swarm import create_handoff_tool, create_swarm

from qwenlong_graph import create_memory_agent
from qwenlong_graph.agents.messages import create_messages_agent

QUESTIONS = [
    "How many men and women were in the armed forces at the time of victory in Europe?",
    "And how many of them were overseas?",
]
SENTENCES = [
    "At the time of victory in Europe, about 12.3 million men and women were in the armed forces; "
    "7.6 million were overseas.",
]
PROMPT = (
    "You are Alice. Hand each question about the United States of 1946 to the reader. When it has "
    "answered, tell the user what it found in a sentence."
)


def alice_script(messages: list[BaseMessage]) -> AIMessage:
    """What Alice's model would do: hand the question on, then tell what came back."""
    if isinstance(messages[-1], HumanMessage):
        call = {"name": "transfer_to_reader", "args": {}, "id": f"call-{len(messages)}"}
        return AIMessage("", tool_calls=[call])
    return AIMessage(f"The message of 1946 says: {messages[-1].text}")


def turn(swarm: Any, question: str) -> dict[str, Any]:
    """The state after a turn of the one thread; prints what happened in it."""
    config = {"configurable": {"thread_id": "1"}}
    asked = {"messages": [("user", question)]}
    chunks = 0
    for mode, event in swarm.stream(asked, config, stream_mode=["custom", "values"]):
        if mode == "custom":
            chunks += event["type"] == "memory_updated"
        else:
            state: dict[str, Any] = event
    said = [one for one in state["messages"] if one.type != "tool"]
    start = max(place for place, one in enumerate(said) if one.type == "human")
    for message in said[start:]:
        for call in getattr(message, "tool_calls", []):
            paragraph(f"calls {call['name']}", bullet=f"{message.name}: ")
        if message.text:
            paragraph(message.text, bullet=f"{message.name or 'user'}: ")
        if message.name == "reader":
            told = message.response_metadata
            cited = sum(len(one.get("annotations", [])) for one in message.content_blocks)
            print(f"    (citations: {cited}; from {told['answered_from']}; chunks read: {chunks})")
    print(f"  Whose turn it is now: {state['active_agent']}")
    return state


def main() -> None:
    args = arguments(__doc__).parse_args()
    with closing(reader(args.model, SENTENCES)) as model, tempfile.TemporaryDirectory() as folder:
        memory_agent = create_memory_agent(model, document_dir=folder)
        member = create_messages_agent(
            memory_agent, name="reader", documents=[ADDRESS_1946], handoff_to="alice"
        )
        alice = create_agent(
            host(args.model, model, alice_script),
            tools=[create_handoff_tool(agent_name="reader")],
            system_prompt=PROMPT,
            name="alice",
        )
        swarm = create_swarm([alice, member], default_active_agent="alice")
        compiled = swarm.compile(checkpointer=InMemorySaver())
        for number, question in enumerate(QUESTIONS, start=1):
            heading(f"Turn {number}")
            turn(compiled, question)


if __name__ == "__main__":
    main()
