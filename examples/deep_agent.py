"""A deep agent with a subagent that reads long files (deepagents).

    python examples/deep_agent.py

A deep agent keeps files in its state and gives tasks to subagents. Here the
memory agent is one of them: it reads the file that the task names, a message of
President Truman of 1946. A subagent's last message comes back as text and
nothing else, so `sources_in_text=True` writes the sources under the answer. The
deep agent then puts what it got into a file of its own.
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from typing import Any

from _models import ADDRESS_1946, arguments, host, reader
from _printing import heading, paragraph
from deepagents import create_deep_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from qwenlong_graph import create_memory_agent
from qwenlong_graph.agents.messages import create_messages_agent

FILE = f"/{ADDRESS_1946.name}"
BRIEF = "/brief.md"
TASK = f"What are expenditures and net receipts estimated at for the next year? Read {FILE}."
REQUEST = f"{TASK} Leave the answer and its sources in {BRIEF}."
SENTENCES = [
    "Expenditures of all kinds, authorized and recommended, in the next year are estimated at just "
    "above 35.8 billion dollars.",
    "Net receipts are estimated at 31.5 billion dollars.",
]


def host_script(messages: list[BaseMessage]) -> AIMessage:
    """What a deep agent's model would do: give the task, write the file, say that it is there."""
    last = messages[-1]
    if isinstance(last, HumanMessage):
        task = {"description": TASK, "subagent_type": "reader"}
        return AIMessage("", tool_calls=[{"name": "task", "args": task, "id": "call-1"}])
    if last.name == "task":
        file = {"file_path": BRIEF, "content": last.text}
        return AIMessage("", tool_calls=[{"name": "write_file", "args": file, "id": "call-2"}])
    return AIMessage(f"The answer and its sources are in {BRIEF}.")


def show_chunk(event: dict[str, Any]) -> None:
    """A line for each chunk that the subagent reads."""
    if event["type"] == "memory_updated":
        print(
            f"    chunk {event['step'] + 1:2} of about {event['steps']}   "
            f"chars {event['start_char']:7,} to {event['end_char']:7,}   "
            f"memory {event['memory_tokens']:3} tokens"
        )


def show_message(message: BaseMessage) -> None:
    """What the deep agent does next, or says at last."""
    for call in getattr(message, "tool_calls", []):
        given = call["args"]
        paragraph(f"calls {call['name']}: {given.get('subagent_type') or given.get('file_path')}")
    if message.type == "ai" and message.text:
        paragraph(f'says "{message.text}"')


def main() -> None:
    args = arguments(__doc__).parse_args()
    with closing(reader(args.model, SENTENCES)) as model, tempfile.TemporaryDirectory() as folder:
        memory_agent = create_memory_agent(model, document_dir=folder)
        # A CompiledSubAgent: any graph with `messages`.
        subagent: Any = {
            "name": "reader",
            "description": "Answers a question from long files. Name the files in the task.",
            "runnable": create_messages_agent(memory_agent, name="reader", sources_in_text=True),
        }
        agent = create_deep_agent(host(args.model, model, host_script), subagents=[subagent])

        heading("The user asks")
        paragraph(REQUEST)
        heading("What the deep agent does")
        text = ADDRESS_1946.read_text("utf-8")
        given: Any = {
            "messages": [("user", REQUEST)],
            "files": {FILE: {"content": text, "encoding": "utf-8"}},
        }
        state = given
        # The subagent runs within a tool: its progress shows with subgraphs=True.
        events: Any = agent.stream(given, stream_mode=["custom", "values"], subgraphs=True)
        for namespace, mode, event in events:
            if mode == "custom":
                show_chunk(event)
            elif not namespace:
                for message in event["messages"][len(state["messages"]) :]:
                    show_message(message)
                state = event

    for path, file in state["files"].items():
        if path not in given["files"]:
            heading(f"The new file {path}")
            paragraph(file["content"])


if __name__ == "__main__":
    main()
