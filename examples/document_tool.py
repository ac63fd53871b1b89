"""The memory agent as a tool of a LangChain agent.

    python examples/document_tool.py

`create_agent` gets one tool, `ask_documents`. The document, a message of
President Truman of 1946, is too long to be put into the conversation; the tool
reads it and gives back an answer with its sources. Shown are the tool call, the
progress while it reads (LangGraph's "custom" stream), and then the answer and
the checked citations, which your program finds in the tool message's artifact.

The embedded model needs two minutes; it quotes the right sentence, and beside
it one that matters less.
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from typing import Any

from _models import ADDRESS_1946, arguments, host, reader
from _printing import heading, paragraph, quotes
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from qwenlong_graph import create_memory_agent
from qwenlong_graph.agents.tool import create_document_tool

QUESTION = "What minimum wage does the Fair Labor Standards Act prescribe?"
SENTENCES = [
    "At the present time the Fair Labor Standards Act prescribes a minimum wage of 40 cents an "
    "hour for those workers who are covered by the act.",
]


def host_script(messages: list[BaseMessage]) -> AIMessage:
    """What a host's model would do: call the tool, then pass on what it says."""
    if isinstance(messages[-1], ToolMessage):
        return AIMessage(f"The document says: {messages[-1].artifact['answer']}")
    call = {"name": "ask_documents", "args": {"question": messages[-1].text}, "id": "call-1"}
    return AIMessage("", tool_calls=[call])


def show(event: dict[str, Any]) -> None:
    """A line for each chunk; `event` has more, such as the lines added to the memory."""
    if event["type"] == "memory_updated":
        print(
            f"  chunk {event['step'] + 1:2} of about {event['steps']}   "
            f"chars {event['start_char']:7,} to {event['end_char']:7,}   "
            f"memory {event['memory_tokens']:3} tokens"
        )


def main() -> None:
    args = arguments(__doc__).parse_args()
    with closing(reader(args.model, SENTENCES)) as model, tempfile.TemporaryDirectory() as folder:
        memory_agent = create_memory_agent(model, document_dir=folder)
        tool = create_document_tool(memory_agent, documents=[ADDRESS_1946])
        agent = create_agent(host(args.model, model, host_script), tools=[tool])

        heading("The user asks")
        paragraph(QUESTION)
        heading(f"The tool {tool.name} reads {ADDRESS_1946.name}")
        asked = {"messages": [("user", QUESTION)]}
        for mode, event in agent.stream(asked, stream_mode=["custom", "values"]):
            if mode == "custom":
                show(event)
            else:
                messages = event["messages"]

    heading("The agent answers")
    paragraph(messages[-1].text)
    for message in messages:
        if isinstance(message, ToolMessage):
            artifact = message.artifact
            heading(f"Citations in the artifact (found: {artifact['found']})")
            quotes(artifact["citations"])
            usage = artifact["usage"]
            print(f"\n  {usage['calls']} model calls, {usage['input_tokens']:,} tokens read")


if __name__ == "__main__":
    main()
