"""Facts that a chunk border divides, and documents of more steps than a host's limit."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from qwenlong_graph import ReadingSettings
from qwenlong_graph.documents.chunking import spans
from qwenlong_graph.documents.store import DocumentStore
from qwenlong_graph.testing.oracle import OPENING_CHARS_MIN, oracle
from qwenlong_graph.testing.scripted import count_words
from tests.graph.test_agent import FACT, FILLER, QUESTION, agent_with, assert_answered

# One sentence, too long to be moved as a whole.
DIVIDED = (
    "The widow Hale of the upper mill paid 318,000 crowns in silver and in wool to the ferrymen "
    "for the new stone bridge at Orrin."
)
EARLIER = "On 4 March 1874 the ferryman Ludo Brandt sold his last boat."
WORDS = "the winter was long and traders stayed away from our quiet coast that year".split()
CHUNK_TOKENS = 128
UNBENDING = ReadingSettings(
    strategy="memory", chunk_tokens=CHUNK_TOKENS, border_tolerance=0.0, reply_attempts=1
)


def filler(words: int) -> str:
    """Words without an end of a sentence."""
    return " ".join(WORDS[index % len(WORDS)] for index in range(words)).capitalize()


def divided_at(text: str, tmp_path) -> int | None:
    """How many characters of the fact stand before the border that divides it."""
    store = DocumentStore(tmp_path / "borders")
    opened = store.open(store.put(text, title="annals"))
    start = text.index(DIVIDED)
    for span in spans(opened, max_tokens=CHUNK_TOKENS, count_tokens=count_words, tolerance=0.0):
        if start < span["end_char"] < start + len(DIVIDED):
            return span["end_char"] - start
    return None


def read_divided(tmp_path, text: str, facts: list[str]):
    agent = agent_with(oracle(facts), tmp_path, settings=UNBENDING)
    return agent.invoke({"question": QUESTION, "documents": [Document(text)]})


def assert_cited_truly(output, text: str) -> None:
    for citation in output["citations"]:
        assert text[citation["start_char"] : citation["end_char"]] == citation["cited_text"]


@pytest.mark.parametrize("end", [". ", " "], ids=["after a sentence", "inside a sentence"])
@pytest.mark.parametrize("words", [84, 88, 92, 96, 100, 103, 107, 110])
def test_a_divided_fact_is_completed_beside_another(tmp_path, words, end):
    text = f"{EARLIER} {filler(words)}{end}{DIVIDED} {filler(150)}"
    before = divided_at(text, tmp_path)
    assert before is not None, "the border has to fall inside the fact"
    assert OPENING_CHARS_MIN <= before < len(DIVIDED)
    output = read_divided(tmp_path, text, [EARLIER, DIVIDED])
    assert output["usage"]["unread"] == 0
    assert f"- {DIVIDED}" in output["memory"].splitlines()
    assert_cited_truly(output, text)
    cited = {citation["cited_text"] for citation in output["citations"]}
    # No chunk holds the whole of the divided fact; it is cited across the border, with the
    # sentence that it is the end of.
    (quote,) = cited - {EARLIER}
    assert quote == DIVIDED if end == ". " else quote.endswith(f" {DIVIDED}")
    assert output["unverified"] == []


@pytest.mark.parametrize("end", [". ", " "], ids=["after a sentence", "inside a sentence"])
@pytest.mark.parametrize("words", [97, 105, 109, 113, 117, 120])
def test_a_divided_fact_is_completed_when_it_is_all_there_is(tmp_path, words, end):
    text = f"{filler(words)}{end}{DIVIDED} {filler(150)}"
    before = divided_at(text, tmp_path)
    assert before is not None, "the border has to fall inside the fact"
    assert OPENING_CHARS_MIN <= before < len(DIVIDED)
    output = read_divided(tmp_path, text, [DIVIDED])
    assert output["usage"]["unread"] == 0
    assert output["memory"] == f"- {DIVIDED}"
    (citation,) = output["citations"]
    assert citation["cited_text"].endswith(DIVIDED)
    assert_cited_truly(output, text)


@pytest.mark.parametrize("words", [97, 105, 113, 120])
def test_a_tolerance_moves_the_border_in_front_of_the_fact(tmp_path, words):
    text = f"{filler(words)}. {DIVIDED} {filler(150)}."
    assert divided_at(text, tmp_path) is not None
    tolerant = UNBENDING.model_copy(update={"border_tolerance": 0.3})
    agent = agent_with(oracle([DIVIDED]), tmp_path, settings=tolerant)
    output = agent.invoke({"question": QUESTION, "documents": [Document(text)]})
    assert output["memory"] == f"- {DIVIDED}"
    assert [citation["cited_text"] for citation in output["citations"]] == [DIVIDED]
    assert_cited_truly(output, text)


# A host's limit.

LOW: RunnableConfig = {"recursion_limit": 25}
LONG = Document(FILLER * 250 + FACT + " " + FILLER * 250, metadata={"title": "annals"})
SMALL_CHUNKS = ReadingSettings(strategy="memory", chunk_tokens=CHUNK_TOKENS)
GIVEN = {"question": QUESTION, "documents": [LONG]}


class Outer(TypedDict, total=False):
    question: str
    documents: list
    answer: str
    found: bool
    citations: list
    unsupported: list
    usage: dict


def parent_of(node):
    graph = StateGraph(Outer).add_node("reader", node)
    return graph.add_edge(START, "reader").add_edge("reader", END).compile()


def calling(agent):
    def node(state: Outer, config: RunnableConfig):
        output = agent.invoke({key: state[key] for key in ("question", "documents")}, config)
        return {
            key: output[key] for key in ("answer", "found", "citations", "unsupported", "usage")
        }

    return node


WAYS = {
    "invoke": lambda agent: agent.invoke(GIVEN, LOW),
    "invoke without a config": lambda agent: agent.invoke(GIVEN),
    "ainvoke": lambda agent: asyncio.run(agent.ainvoke(GIVEN, LOW)),
    "stream": lambda agent: list(agent.stream(GIVEN, LOW, stream_mode="values"))[-1],
    "batch": lambda agent: agent.batch([GIVEN], LOW)[0],
    "abatch": lambda agent: asyncio.run(agent.abatch([GIVEN], LOW))[0],
    "with_config": lambda agent: agent.with_config(LOW).invoke(GIVEN),
    "a parent's node": lambda agent: parent_of(agent).invoke(GIVEN, LOW),
    "a parent's node, async": lambda agent: asyncio.run(parent_of(agent).ainvoke(GIVEN, LOW)),
    "called in a parent's node": lambda agent: parent_of(calling(agent)).invoke(GIVEN, LOW),
    "called in a lambda": lambda agent: RunnableLambda(lambda given: agent.invoke(given)).invoke(
        GIVEN, LOW
    ),
    "after a lambda": lambda agent: (RunnableLambda(lambda given: given) | agent).invoke(
        GIVEN, LOW
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_document_of_forty_chunks_is_read_under_a_hosts_limit_of_25(tmp_path, way):
    output = WAYS[way](agent_with(oracle([FACT]), tmp_path, settings=SMALL_CHUNKS))
    assert output["usage"]["steps"] > 40
    assert_answered(output, LONG.page_content)
