"""A supervisor with a worker that reads long documents (langgraph-supervisor).

    python examples/supervisor.py

The supervisor has no document in its context. It hands the question to its
worker, the memory agent as an agent that talks in messages
(`create_messages_agent`), and gets one message back: the answer, with citations
as annotations of LangChain. Shown are the worker's progress, which the
supervisor's own stream passes on, then who said what, and the checked
citations.
"""

from __future__ import annotations

import tempfile
import warnings
from contextlib import closing
from typing import Any

from _models import ADDRESS_1946, arguments, host, reader
from _printing import heading, paragraph, quotes
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.warnings import LangGraphDeprecatedSinceV10

from qwenlong_graph import create_memory_agent
from qwenlong_graph.agents.messages import create_messages_agent

# langgraph-supervisor 0.0.31 still uses names that LangGraph 1.0 moved; it warns at its import too.
warnings.filterwarnings("ignore", category=LangGraphDeprecatedSinceV10)

from langgraph_supervisor import create_supervisor  # noqa: E402 - after the filter

QUESTION = "How many men were rejected for military service during the war, and why?"
SENTENCES = [
    "During the war, nearly 5 million men were rejected for military service because of physical "
    "or mental defects which in many cases might have been prevented or corrected.",
]
PROMPT = (
    "You supervise the agent document_reader, which has read the President's message of 1946. "
    "Hand it every question about that time, and tell the user what it found."
)


def host_script(messages: list[BaseMessage]) -> AIMessage:
    """What a supervisor's model would do: hand the question on, then report."""
    if isinstance(messages[-1], HumanMessage):
        call = {"name": "transfer_to_document_reader", "args": {}, "id": "call-1"}
        return AIMessage("", tool_calls=[call])
    said = [one.text for one in messages if one.name == "document_reader" and not is_handoff(one)]
    return AIMessage(f"The reader found this: {said[-1]}")


def is_handoff(message: BaseMessage) -> bool:
    """Whether the supervisor's library wrote it, to tell its model who has the turn."""
    return message.type == "tool" or "__is_handoff_back" in message.response_metadata


def show(event: dict[str, Any]) -> None:
    """A line for each chunk of the document."""
    if event["type"] == "memory_updated":
        print(
            f"  chunk {event['step'] + 1:2} of about {event['steps']}   "
            f"chars {event['start_char']:7,} to {event['end_char']:7,}   "
            f"memory {event['memory_tokens']:3} tokens"
        )


def citations(message: BaseMessage) -> list[Any]:
    """Those of a message; the place in the document is in the `extras` of an annotation."""
    blocks: list[Any] = message.content_blocks
    return [
        {"document_title": one["title"], "cited_text": one["cited_text"], **one["extras"]}
        for block in blocks
        for one in block.get("annotations", [])
    ]


def main() -> None:
    args = arguments(__doc__).parse_args()
    with closing(reader(args.model, SENTENCES)) as model, tempfile.TemporaryDirectory() as folder:
        memory_agent = create_memory_agent(model, document_dir=folder)
        worker = create_messages_agent(memory_agent, documents=[ADDRESS_1946])
        boss = host(args.model, model, host_script)
        supervisor = create_supervisor([worker], model=boss, prompt=PROMPT).compile()

        heading("The worker reads, the supervisor's stream shows it")
        asked = {"messages": [("user", QUESTION)]}
        events: Any = supervisor.stream(asked, stream_mode=["custom", "values"])
        for mode, event in events:
            if mode == "custom":
                show(event)
            else:
                messages = event["messages"]

    heading("Who said what")
    for message in messages:
        if is_handoff(message):
            continue
        for call in getattr(message, "tool_calls", []):
            paragraph(f"calls {call['name']}", bullet=f"{message.name}: ")
        if message.text:
            paragraph(message.text, bullet=f"{message.name or 'user'}: ")
    heading("Citations in the worker's message")
    for message in messages:
        quotes(citations(message))


if __name__ == "__main__":
    main()
