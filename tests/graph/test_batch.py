"""`batch` and `abatch`, LangChain's own, on the memory agent."""

from __future__ import annotations

import asyncio
import threading

import pytest
from langchain_core.documents import Document
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import RetryPolicy

from qwenlong_graph import ReadingSettings, create_memory_agent
from qwenlong_graph.errors import EmptyDocumentError, ModelRefusedError
from qwenlong_graph.testing.oracle import OracleChatModel
from qwenlong_graph.testing.scripted import Stall, scripted

pytestmark = pytest.mark.contract

HARBOURS = ("Ostvik", "Lerum", "Hale", "Orrin", "Skagen", "Tarn")
FILLER = "The winter was long and the traders stayed away from the coast. "


def fact(harbour):
    return f"The harbour master of {harbour} is called Clara {harbour}son."


def about(harbour):
    text = FILLER * 20 + fact(harbour) + " " + FILLER * 20
    return {
        "question": f"Who is the harbour master of {harbour}?",
        "documents": [Document(text, metadata={"title": harbour})],
    }


GIVEN = [about(harbour) for harbour in HARBOURS]


@pytest.fixture
def agent_of(tmp_path):
    def agent_of(replies=None, **options):
        reader = OracleChatModel([fact(harbour) for harbour in HARBOURS])
        return create_memory_agent(
            scripted(replies or reader.replies),
            settings=ReadingSettings(strategy="memory", chunk_tokens=200),
            document_dir=tmp_path / "documents",
            retry_policy=RetryPolicy(max_attempts=1),
            **options,
        )

    return agent_of


def refusing(*harbours):
    """The perfect reader, but for questions about those."""
    reader = OracleChatModel([fact(harbour) for harbour in HARBOURS])

    def reply(messages):
        asked = str(messages[-1].content)
        if any(f"harbour master of {harbour}?" in asked for harbour in harbours):
            return ModelRefusedError("no")
        return reader.replies(messages)

    return reply


async def called(agent, kind, *arguments, **options):
    """What `batch` or `abatch` gives."""
    if kind == "abatch":
        return await agent.abatch(*arguments, **options)
    return await asyncio.to_thread(agent.batch, *arguments, **options)


KINDS = pytest.mark.parametrize("kind", ["batch", "abatch"])


def assert_answers(outputs, harbours=HARBOURS):
    for harbour, out in zip(harbours, outputs, strict=True):
        assert [cited["cited_text"] for cited in out["citations"]] == [fact(harbour)]


@KINDS
async def test_answers_come_in_the_order_of_the_questions(agent_of, kind):
    assert_answers(await called(agent_of(), kind, GIVEN, {"max_concurrency": 3}))


@KINDS
@pytest.mark.parametrize("most", [1, 2])
async def test_never_more_are_read_at_once_than_allowed(agent_of, kind, most):
    open_, seen, lock = set(), [], threading.Lock()
    reader = OracleChatModel([fact(harbour) for harbour in HARBOURS])

    def reply(messages):
        asked = str(messages[-1].content)
        harbour = next(name for name in HARBOURS if f"harbour master of {name}?" in asked)
        with lock:
            open_.add(harbour)
            seen.append(len(open_))
            if "<previous_memory>" not in asked and "<core_question>" not in asked:
                open_.discard(harbour)  # the last call of a reading
        return Stall(0.002, reader.replies(messages))

    assert_answers(await called(agent_of(reply), kind, GIVEN, {"max_concurrency": most}))
    assert max(seen) == most


@KINDS
async def test_one_that_fails_is_given_back_as_its_error_and_the_others_are_answered(
    agent_of, kind
):
    given = [*GIVEN[:2], {**GIVEN[2], "documents": [Document(" ")]}, *GIVEN[3:]]
    outputs = await called(
        agent_of(refusing("Tarn")), kind, given, {"max_concurrency": 3}, return_exceptions=True
    )
    assert isinstance(outputs[2], EmptyDocumentError)
    assert isinstance(outputs[5], ModelRefusedError)
    answered = [0, 1, 3, 4]
    assert_answers([outputs[index] for index in answered], [HARBOURS[index] for index in answered])


@KINDS
async def test_without_return_exceptions_the_first_failure_is_raised(agent_of, kind):
    with pytest.raises(ModelRefusedError):
        await called(agent_of(refusing("Hale")), kind, GIVEN, {"max_concurrency": 2})
    # LangChain leaves the others of `abatch` at work.
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


def configs(most=3):
    return [
        {"configurable": {"thread_id": harbour}, "max_concurrency": most} for harbour in HARBOURS
    ]


def counting(replies, calls):
    def reply(messages):
        calls.append(1)
        return replies(messages)

    return reply


def test_with_a_thread_each_what_failed_goes_on_and_the_rest_costs_no_call(agent_of, tmp_path):
    calls, reader = [], OracleChatModel([fact(harbour) for harbour in HARBOURS])
    with SqliteSaver.from_conn_string(str(tmp_path / "readings.sqlite")) as saver:
        broken = agent_of(refusing_late("Lerum", "Tarn"), checkpointer=saver)
        first = broken.batch(GIVEN, configs(), return_exceptions=True, durability="sync")
        assert [isinstance(out, ModelRefusedError) for out in first] == [
            harbour in {"Lerum", "Tarn"} for harbour in HARBOURS
        ]
        agent = agent_of(counting(reader.replies, calls), checkpointer=saver)
        second = agent.batch([None] * 6, configs(), durability="sync")
        assert_answers(second)
        assert [out for out in second if out in first] == [first[0], *first[2:5]]
        # The two that failed before their answers: one call each.
        assert len(calls) == 2


async def test_with_a_thread_each_for_async_callers_too(agent_of, tmp_path):
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "readings.sqlite")) as saver:
        broken = agent_of(refusing_late("Lerum", "Tarn"), checkpointer=saver)
        first = await broken.abatch(GIVEN, configs(), return_exceptions=True, durability="sync")
        assert sum(isinstance(out, ModelRefusedError) for out in first) == 2
        calls, reader = [], OracleChatModel([fact(harbour) for harbour in HARBOURS])
        agent = agent_of(counting(reader.replies, calls), checkpointer=saver)
        assert_answers(await agent.abatch([None] * 6, configs(), durability="sync"))
        assert len(calls) == 2


def refusing_late(*harbours):
    """Reads everything, and refuses the answers to questions about those."""
    reader = OracleChatModel([fact(harbour) for harbour in HARBOURS])

    def reply(messages):
        asked = str(messages[-1].content)
        is_last = "<previous_memory>" not in asked and "<core_question>" not in asked
        if is_last and any(f"harbour master of {harbour}?" in asked for harbour in harbours):
            return ModelRefusedError("no")
        return reader.replies(messages)

    return reply


def test_as_completed_tells_which_is_done(agent_of):
    done = dict(agent_of().batch_as_completed(GIVEN, {"max_concurrency": 3}))
    assert_answers([done[index] for index in range(6)])
