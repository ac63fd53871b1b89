"""Readings in which everything that is read and written bears a word of its own, failures included.

As a program: `python -m tests.private_reading FOLDER sync|async|tracer [LOGGED]`, the last with a
tracer of its own. Logs go to standard error as by default; LOGGED, this package's from INFO on.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import httpx
import openai
from langchain_core.documents import Document
from langchain_core.tracers.langchain import LangChainTracer, wait_for_all_tracers
from langgraph.types import RetryPolicy

from qwenlong_graph import ReadingSettings, create_memory_agent
from qwenlong_graph.errors import ModelRefusedError
from qwenlong_graph.models.calls import is_retryable
from qwenlong_graph.testing.scripted import ScriptedChatModel

DOCUMENT, QUESTION, INSTRUCTIONS = "Orrinsbridge", "Halewidow", "Tersely"
MEMORY, PLAN, ANSWER, FORM = "Tarnledger", "Wexplan", "Velreply", "Gildform"
WORDS = (DOCUMENT, QUESTION, INSTRUCTIONS, MEMORY, PLAN, ANSWER, FORM)
TEXT = f"In {DOCUMENT} the winter was long and the traders stayed away from the coast. " * 30
GIVEN = {
    "question": f"What became of {QUESTION}?",
    "instructions": f"Answer {INSTRUCTIONS}.",
    "documents": [Document(TEXT, metadata={"title": "annals"})],
}
SCHEMA = {
    "type": "object",
    "description": f"The {FORM}.",
    "properties": {"fate": {"type": "string"}},
    "required": ["fate"],
}
UPDATE = f"<memory>\n- {MEMORY} was there.\n</memory>\n<plan>\nLook for {PLAN}.\n</plan>"


def quoting(status, messages):
    """A server's error that quotes the prompt."""
    prompt = str(messages[-1].content)
    response = httpx.Response(status, request=httpx.Request("POST", "http://model/"))
    kind = openai.InternalServerError if status >= 500 else openai.BadRequestError
    return kind(f"the prompt was: {prompt}", response=response, body={"message": prompt})


def agent_in(folder, *, refuses=False):
    """An agent whose server fails once and replies once with nonsense; or refuses the answer."""
    calls = 0

    def reply(messages):
        nonlocal calls
        calls += 1
        if calls == 2:
            return quoting(500, messages)
        if calls == 4:
            return f"<memory>{MEMORY} that never"
        if "<section>" in str(messages[-1].content):
            return UPDATE
        return quoting(400, messages) if refuses else f'{{"fate": "{ANSWER}"}}'

    class Model(ScriptedChatModel):
        """No model of LangChain's own, and so traced by its repr."""

        note: str = ""

    return create_memory_agent(
        Model(reply, note=f"It says {ANSWER}."),
        window=8192,
        count_tokens=lambda text: len(text.split()),
        settings=ReadingSettings(strategy="memory", chunk_tokens=200),
        document_dir=folder / "store",
        response_format=SCHEMA,
        retry_policy=RetryPolicy(max_attempts=2, initial_interval=0.01, retry_on=is_retryable),
    )


def read(folder, config=None):
    outputs = [agent_in(folder).invoke(GIVEN, config)]
    modes = ["messages", "custom", "values"]
    streamed = agent_in(folder).stream(GIVEN, config, stream_mode=modes)
    outputs += [event for mode, event in streamed][-1:]
    try:
        agent_in(folder, refuses=True).invoke(GIVEN, config)
    except ModelRefusedError:
        return outputs
    raise AssertionError("the server did not refuse")


async def aread(folder):
    outputs = [await agent_in(folder).ainvoke(GIVEN)]
    modes = ["messages", "custom", "values"]
    streamed = agent_in(folder).astream(GIVEN, stream_mode=modes)
    outputs += [event async for mode, event in streamed][-1:]
    try:
        await agent_in(folder, refuses=True).ainvoke(GIVEN)
    except ModelRefusedError:
        return outputs
    raise AssertionError("the server did not refuse")


def main(folder, form, *options):
    if options:
        logging.basicConfig()
        logging.getLogger("qwenlong_graph").setLevel(logging.INFO)
    if form == "async":
        outputs = asyncio.run(aread(Path(folder)))
    else:
        outputs = read(
            Path(folder), {"callbacks": [LangChainTracer()]} if form == "tracer" else None
        )
    for output in outputs:
        assert ANSWER in output["answer"], output["answer"]
        assert MEMORY in output["memory"], output["memory"]
        assert PLAN in output["plan"], output["plan"]
        assert output["usage"]["retries"], "no reply was repeated"
    wait_for_all_tracers()


if __name__ == "__main__":
    main(*sys.argv[1:])
