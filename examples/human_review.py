"""A person looks at the memory while the agent reads, and decides how to go on.

    python examples/human_review.py
    python examples/human_review.py --interactive    (you decide)

With `review="memory"` the reading pauses with LangGraph's `interrupt`: here
after every third chunk and before the answer. The reviewer sees the memory and
the quotes behind it, and accepts, edits the memory, passes over what need not
be read, or asks for the answer at once. By default a scripted reviewer decides,
by rules that stand in this file. No model call is repeated by a pause.
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from typing import Any

from _models import ADDRESS_1946, arguments, reader
from _printing import heading, paragraph, quotes
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from qwenlong_graph import ReadingSettings, create_memory_agent

QUESTION = "To how many cents an hour is the statutory minimum wage to be raised?"
SENTENCES = [
    "I am in full accord with the proposal now pending in the Congress that the statutory minimum "
    "be raised immediately to 65 cents an hour, with further increases to 70 cents after one year "
    "and to 75 cents after two years.",
    # A reader that is easily led astray: this is not what was asked, and the reviewer takes it out.
    "I also recommend increasing veterans' unemployment allowances from 20 dollars to 25 dollars a "
    "week.",
]


def scripted_reviewer(request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(why, the decision) for what it is shown."""
    lines = request["memory"].splitlines()
    relevant = [line for line in lines if "minimum" in line]
    if relevant != lines and "problem" not in request:
        why = "a line is not about the minimum wage"
        return why, {"action": "edit", "memory": "\n".join(relevant)}
    if request["step"] == 3:
        return "demobilization comes next, and wages after it", {"action": "skip", "chunks": 1}
    return "there is nothing to mend", {"action": "accept"}


def asked_reviewer(request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The same, by a person at the terminal; the end of the input asks for the answer."""
    try:
        while True:
            word, _, number = input("accept, edit, skip CHUNKS or answer? ").strip().partition(" ")
            if word in {"accept", "answer"}:
                return "you say so", {"action": word}
            if word == "skip" and number.isdecimal():
                return "you say so", {"action": "skip", "chunks": int(number)}
            if word == "edit":
                print("The new memory, one fact a line; an empty line ends it.")
                return "you say so", {"action": "edit", "memory": "\n".join(iter(input, ""))}
    except EOFError:
        print()
        return "nobody is there", {"action": "answer"}


def show(request: dict[str, Any], memory_before: str) -> None:
    share = request["chars_read"] / request["chars"]
    heading(f"Pause after {request['step']} of about {request['steps']} chunks, {share:.0%} read")
    if request["memory"] == memory_before:
        print(f"The memory {'is as it was' if memory_before else 'is empty'}.")
    else:
        print("The memory, and where it stands in the document:")
        paragraph(request["memory"] or "(empty)")
        for quote in request["evidence"]:
            print(f"  chars {quote['start_char']}-{quote['end_char']} of {quote['title']}")
    if "problem" in request:
        print(f"The last decision was not taken: {request['problem']}")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--interactive", action="store_true", help="you are the reviewer")
    args = parser.parse_args()
    review = asked_reviewer if args.interactive else scripted_reviewer

    with closing(reader(args.model, SENTENCES)) as model, tempfile.TemporaryDirectory() as folder:
        agent = create_memory_agent(
            model,
            document_dir=folder,
            settings=ReadingSettings(strategy="memory"),
            checkpointer=InMemorySaver(),  # a pause is kept there; it may last for days
            review="memory",
            review_every=3,
        )
        thread: RunnableConfig = {"configurable": {"thread_id": "1"}}
        heading("Asked")
        paragraph(QUESTION)
        out = agent.invoke({"question": QUESTION, "documents": [ADDRESS_1946]}, thread)
        memory = ""
        while "__interrupt__" in out:
            request = out["__interrupt__"][0].value
            show(request, memory)
            why, decision = review(request)
            memory = decision.get("memory", request["memory"])
            print(f"The reviewer decides: {decision['action']}, since {why}.")
            out = agent.invoke(Command(resume=decision), thread)

    heading("The answer")
    paragraph(out["answer"])
    quotes(out["citations"])
    print()
    for _, start, end in out["skipped"]:
        print(f"  Passed over by the reviewer: chars {start:,} to {end:,}")
    print(f"  {out['usage']['steps']} chunks read, {out['usage']['calls']} model calls")


if __name__ == "__main__":
    main()
