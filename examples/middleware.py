"""LongContentMiddleware: a tool whose result is too long for a conversation.

    python examples/middleware.py
    python examples/middleware.py --megabytes 0.05 --model embedded

The tool `export_tickets` returns one line of JSON of 3 MB. Left alone, it would
fill the window of any model. The middleware stores it whole and puts a short
notice in its place, with an id under which the agent asks the memory agent
about it. Shown are the notice, as the agent's model sees it, the question that
it asks, and the answer found in the middle of the line, with its offsets.

A model of yours reads 3 MB for an hour or more, so give it less, as above.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from _models import arguments, host, reader
from _printing import heading, paragraph, quotes
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.tools import tool

from qwenlong_graph import create_memory_agent
from qwenlong_graph.agents.middleware import LongContentMiddleware

QUESTION = "Look through the tickets of this month: did anything catch fire?"
MEGABYTES_MIN = 0.05  # is above the 8,000 tokens that the middleware lets through
FIRE = "The battery of the scooter S7 caught fire while it was charging in the hall."


def tickets(megabytes: float) -> Iterator[dict[str, Any]]:
    """Tickets of a help desk, each of about 133 characters; one of them tells of the fire."""
    chance = random.Random(1946)
    count = int(megabytes * 1_000_000 / 133)
    for number in range(1, count + 1):
        order, day = chance.randrange(100_000, 1_000_000), (number - 1) * 28 // count + 1
        text = f"The customer asks where order {order} is. It was found and sent on day {day}."
        if number == count * 3 // 5:
            text = f"The customer called. {FIRE} Nobody was hurt."
        yield {"ticket": number, "day": day, "state": "closed", "text": text}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--megabytes", type=float, default=3, help="length of the tool's result")
    args = parser.parse_args()
    if not MEGABYTES_MIN <= args.megabytes <= 100:
        parser.error(f"--megabytes: from {MEGABYTES_MIN} to 100; less would not be too long.")

    @tool
    def export_tickets() -> str:
        """Exports all tickets of this month as JSON."""
        return json.dumps(list(tickets(args.megabytes)))

    def host_script(messages: list[BaseMessage]) -> AIMessage:
        """What a host's model would do: export, ask about the id in the notice, pass on."""
        if not isinstance(messages[-1], ToolMessage):
            return AIMessage("", tool_calls=[{"name": "export_tickets", "args": {}, "id": "1"}])
        if messages[-1].name == "export_tickets":
            (stored,) = re.findall(r'<stored_content id="([^"]+)">', messages[-1].text)
            wanted = {"question": "What caught fire?", "documents": [stored]}
            call = {"name": middleware.tool.name, "args": wanted, "id": "2"}
            return AIMessage("", tool_calls=[call])
        return AIMessage(f"One ticket says: {messages[-1].artifact['answer']}")

    with (
        closing(reader(args.model, [FIRE], window=65_536)) as model,
        tempfile.TemporaryDirectory() as folder,
    ):
        middleware = LongContentMiddleware(create_memory_agent(model, document_dir=folder))
        chat = host(args.model, model, host_script)
        agent = create_agent(chat, tools=[export_tickets], middleware=[middleware])
        messages = agent.invoke({"messages": [("user", QUESTION)]})["messages"]

    for message in messages:
        if isinstance(message, ToolMessage):
            heading(f"The tool {message.name} returns, as the model sees it")
            paragraph(message.text)
            if message.artifact:
                heading("Citations in the artifact")
                quotes(message.artifact["citations"])
        else:
            heading("The user" if message.type == "human" else "The agent")
            paragraph(message.text)
            for call in message.tool_calls if isinstance(message, AIMessage) else ():
                paragraph(f"calls {call['name']} {json.dumps(call['args'])}")


if __name__ == "__main__":
    main()
