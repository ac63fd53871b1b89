"""Going on with another model, protocol or sizes than a reading was begun with."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import RetryPolicy

from qwenlong_graph import ReadingSettings, create_memory_agent
from qwenlong_graph.errors import ModelUnavailableError, RunChangedError, StoredTextChangedError
from qwenlong_graph.testing.oracle import oracle
from qwenlong_graph.testing.scripted import scripted

pytestmark = pytest.mark.contract

FIRST = "The widow Hale paid 318,000 crowns for the bridge at Orrin."
SECOND = "In 1911 the widow Hale sold the bridge at Orrin to the town."
FILLER = "The winter was long and the traders stayed away from the coast. "
TEXT = f"{FIRST} {FILLER * 60}{SECOND} {FILLER * 60}"
GIVEN = {
    "question": "What became of the bridge at Orrin?",
    "instructions": "Answer briefly.",
    "documents": [Document(TEXT, metadata={"title": "annals"})],
}
CONFIG = {"configurable": {"thread_id": "t"}}
ACCEPTING = {"configurable": {"thread_id": "t", "accept_changes": True}}
MEMORY = f"<memory>\n- {FIRST}\n- The weather was bad.\n</memory>\n<plan>\nread on\n</plan>"


def agent_of(model, saver, folder, **settings):
    return create_memory_agent(
        model,
        settings=ReadingSettings(strategy="memory", **{"chunk_tokens": 400, **settings}),
        document_dir=folder / "store",
        checkpointer=saver,
        retry_policy=RetryPolicy(max_attempts=1),
    )


@pytest.fixture
def saver(tmp_path):
    with SqliteSaver.from_conn_string(str(tmp_path / "reading.sqlite")) as saver:
        yield saver


@pytest.fixture
def begun(saver, tmp_path):
    """A reading whose second chunk is open; the checkpointer it is kept by."""
    failing = scripted([MEMORY, ModelUnavailableError("away")])
    with pytest.raises(ModelUnavailableError):
        agent_of(failing, saver, tmp_path).invoke(GIVEN, CONFIG)
    return saver


def test_another_setup_is_refused_with_the_difference_and_both_ways_on(begun, tmp_path):
    other = agent_of(oracle([FIRST, SECOND]), begun, tmp_path, chunk_tokens=300)
    with pytest.raises(RunChangedError, match="chunk_tokens was 400, is now 300") as refused:
        other.invoke(None, CONFIG)
    assert "--accept-changes" in str(refused.value)
    assert "accept_changes" in str(refused.value)


def test_an_accepted_setup_cuts_what_is_unread_anew_and_needs_no_accepting_again(begun, tmp_path):
    model = oracle([FIRST, SECOND])
    other = agent_of(model, begun, tmp_path, chunk_tokens=150)
    other.invoke(None, ACCEPTING, interrupt_after=["update_memory"])
    after = begun.get_tuple(CONFIG).checkpoint["channel_values"]
    assert after["setup"]["chunk_tokens"] == 150
    # The open chunk, cut for 400 tokens, was cut again; no character was left out or read twice.
    assert model.count_tokens(TEXT[: after["cursor"]["start_char"]]) <= 400 + 150
    output = other.invoke(None, CONFIG)
    sections = [str(prompt[-1].text) for prompt in model.chat.prompts]
    assert sum(SECOND in section for section in sections) >= 1
    assert [citation["cited_text"] for citation in output["citations"]] == [FIRST, SECOND]


async def test_the_async_form_accepts_it_too(tmp_path):
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "reading.sqlite")) as saver:
        failing = scripted([MEMORY, ModelUnavailableError("away")])
        with pytest.raises(ModelUnavailableError):
            await agent_of(failing, saver, tmp_path).ainvoke(GIVEN, CONFIG)
        other = agent_of(oracle([FIRST, SECOND]), saver, tmp_path, chunk_tokens=150)
        with pytest.raises(RunChangedError):
            await other.ainvoke(None, CONFIG)
        output = await other.ainvoke(None, ACCEPTING)
    assert [citation["cited_text"] for citation in output["citations"]] == [FIRST, SECOND]


def test_another_protocol_keeps_what_has_a_source(begun, tmp_path):
    model = oracle([FIRST, SECOND])
    other = agent_of(model, begun, tmp_path, protocol="extract", chunk_tokens=400)
    output = other.invoke(None, ACCEPTING)
    assert output["memory"] == f"- {FIRST}\n- {SECOND}"
    assert output["found"] is True


def test_a_memory_that_does_not_fit_the_other_setup_is_never_cut(saver, tmp_path):
    lines = "\n".join(
        f"- Line {number} of the notes, with many more words." for number in range(20)
    )
    notes = f"<memory>\n- {FIRST}\n{lines}\n</memory>\n<plan>\nread on\n</plan>"
    failing = scripted([notes, ModelUnavailableError("away")])
    with pytest.raises(ModelUnavailableError):
        agent_of(failing, saver, tmp_path).invoke(GIVEN, CONFIG)
    other = agent_of(oracle([FIRST]), saver, tmp_path, memory_tokens=100)
    with pytest.raises(RunChangedError, match=r"has room for 100.*larger window"):
        other.invoke(None, ACCEPTING)
    assert saver.get_tuple(CONFIG).checkpoint["channel_values"]["memory"].endswith(lines)


def test_a_changed_text_is_never_accepted(begun, tmp_path):
    (text,) = (tmp_path / "store" / "texts").iterdir()
    text.write_text(TEXT.replace("winter", "summer"))
    with pytest.raises(StoredTextChangedError):
        agent_of(oracle([FIRST]), begun, tmp_path).invoke(None, ACCEPTING)


def test_a_question_that_begins_anew_needs_no_accepting(saver, tmp_path):
    lines = "\n".join(
        f"- Line {number} of the notes, with many more words." for number in range(20)
    )
    notes = f"<memory>\n- {FIRST}\n{lines}\n</memory>\n<plan>\nread on\n</plan>"
    short = {**GIVEN, "documents": [Document(FIRST)]}
    agent_of(scripted([notes, "The widow Hale paid."]), saver, tmp_path).invoke(short, CONFIG)
    # The finished reading's memory would not fit, and has no part in the new one.
    other = agent_of(oracle([FIRST, SECOND]), saver, tmp_path, memory_tokens=100)
    assert other.invoke(GIVEN, ACCEPTING)["found"] is True


def test_the_event_of_a_chunk_tells_what_it_changed_and_cost(tmp_path):
    other = f"<memory>\n- {FIRST}\n- {SECOND}\n</memory>\n<plan>\nread on\n</plan>"
    model = scripted([MEMORY, "", other, "It was sold."])
    agent = agent_of(model, None, tmp_path, chunk_tokens=1_000)
    text = f"{FIRST} {FILLER * 80}{SECOND}"
    given = {**GIVEN, "documents": [Document(text, metadata={"title": "annals"})]}
    events = list(agent.stream(given, stream_mode="custom"))
    first, second = [event for event in events if event["type"] == "memory_updated"]
    assert first["lines_added"] == [f"- {FIRST}", "- The weather was bad."]
    assert (first["lines_removed"], first["places_added"]) == ([], [[0, 0, len(FIRST)]])
    assert second["lines_added"] == [f"- {SECOND}"]
    assert second["lines_removed"] == ["- The weather was bad."]
    start = text.index(SECOND)
    assert second["places_added"] == [[0, start, start + len(SECOND)]]
    assert [event["calls"] for event in (first, second)] == [1, 2]
    assert [event["retries"] for event in (first, second)] == [0, 1]
    assert min(first["input_tokens"], second["input_tokens"] / 2) > 400
    assert first["output_tokens"] == model.count_tokens(MEMORY)
    assert min(first["seconds"], second["seconds"]) >= 0
    assert second["document_index"] == 0
