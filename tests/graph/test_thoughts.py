"""A whole agent with a model that thinks, loses itself in thought, or repeats itself."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langgraph.types import RetryPolicy

from qwenlong_graph.graph.agent import create_memory_agent
from qwenlong_graph.models.calls import is_retryable
from qwenlong_graph.models.connect import COMMON_SPECIAL_TOKENS, ConnectedModel, connect
from qwenlong_graph.models.tgi import ChatTGI
from qwenlong_graph.reading.budget import ReadingSettings
from qwenlong_graph.reading.prompts import neutralise
from qwenlong_graph.testing.scripted import ScriptedChatModel, count_words
from qwenlong_graph.testing.tgi import Restart, TgiDouble, serve, small_tokenizer

FACT = "The bridge at Orrin was paid for by the widow Hale."
MEMORY = f"<memory>\n- {FACT}\n</memory>\n<plan>\nLook for dates.\n</plan>"
LOOP = "<think>" + "Wait, let me check the sum of the bridge at Orrin once more. " * 400
CUT = AIMessage("<think>Let me see", response_metadata={"finish_reason": "length"})
GIVEN = {
    "question": "Who paid for the bridge at Orrin?",
    "instructions": "In one word.",
    "documents": [Document(FACT)],
}


class Penalised(ScriptedChatModel):
    """A scripted model that takes a repetition penalty."""

    # What it takes is read off the names of these parameters; it is asked for streams.
    def _generate(
        self,
        messages,
        stop=None,
        run_manager=None,
        *,
        max_tokens=None,
        temperature=None,
        seed=None,
        repetition_penalty=None,
    ):
        raise AssertionError


def reading(tmp_path, *replies, **settings):
    """The output, the events, and the settings of each call."""
    chat = Penalised(replies)
    model = connect(chat, window=20_000, count_tokens=count_words)
    settings = ReadingSettings(strategy="memory", **settings)
    agent = create_memory_agent(model, settings=settings, document_dir=tmp_path)
    told = list(agent.stream(GIVEN, stream_mode=["custom", "values"]))
    events = [event for mode, event in told if mode == "custom"]
    return told[-1][1], events, chat.calls


def of_type(events, kind):
    return [event for event in events if event["type"] == kind]


def test_the_tokens_of_thoughts_are_told_and_added_up(tmp_path):
    counted = {"output_token_details": {"reasoning": 40}}
    usage = {"input_tokens": 9, "output_tokens": 60, "total_tokens": 69, **counted}
    answer = AIMessage("<think>so</think>The widow Hale.", usage_metadata=usage)
    output, events, _ = reading(tmp_path, f"<think>one two three</think>{MEMORY}", answer)
    assert of_type(events, "memory_updated")[0]["reasoning_tokens"] == 3
    assert output["usage"]["reasoning_tokens"] == 43
    assert output["answer"] == "The widow Hale."


@pytest.mark.parametrize(
    ("temperature", "penalties"),
    [(0.7, [None, None, 1.05, None]), (0.0, [None, 1.05, 1.05, None])],
)
def test_a_loop_gets_another_seed_and_then_a_penalty(tmp_path, temperature, penalties):
    replies = [LOOP, LOOP, MEMORY, "The widow Hale."]
    output, events, calls = reading(tmp_path, *replies, temperature=temperature)
    assert [call.get("repetition_penalty") for call in calls] == penalties
    assert len({call["seed"] for call in calls}) == 4
    reasons = [event["reason"] for event in of_type(events, "retry")]
    assert reasons == ["thinking repeated itself without end"] * 2
    assert (output["memory"], output["usage"]["unread"]) == (f"- {FACT}", 0)


def test_what_repeats_itself_for_a_while_gets_through_at_the_next_attempt(tmp_path):
    monotonous = f"{LOOP[: len(LOOP) // 6]}</think>{MEMORY}"
    output, events, _ = reading(tmp_path, monotonous, monotonous, "The widow Hale.")
    assert len(of_type(events, "retry")) == 1
    assert output["memory"] == f"- {FACT}"


def test_tokens_that_no_server_counts_are_counted_with_the_thoughts(tmp_path):
    chat = FakeListChatModel(responses=[f"<think>one two three</think>{MEMORY}", "The widow Hale."])
    model = connect(chat, window=20_000, count_tokens=count_words)
    settings = ReadingSettings(strategy="memory")
    agent = create_memory_agent(model, settings=settings, document_dir=tmp_path)
    usage = agent.invoke(GIVEN)["usage"]
    assert usage["reasoning_tokens"] == 3
    answers = [count_words(neutralise(text)) for text in (MEMORY, "The widow Hale.")]
    assert usage["output_tokens"] == 3 + sum(answers)


def test_a_thought_that_was_cut_gets_another_seed_and_more_room(tmp_path):
    output, events, calls = reading(tmp_path, CUT, MEMORY, "The widow Hale.")
    assert calls[1]["max_tokens"] > calls[0]["max_tokens"]
    assert calls[1]["seed"] != calls[0]["seed"]
    (retry,) = of_type(events, "retry")
    assert retry["reason"] == f"thinking was cut off at {calls[0]['max_tokens']} tokens"
    assert output["memory"] == f"- {FACT}"


def test_where_every_thought_is_cut_the_chunk_is_told_to_be_unread(tmp_path):
    output, events, _ = reading(tmp_path, CUT, CUT, CUT)
    assert of_type(events, "memory_updated")[0]["reply"] == "kept"
    assert output["usage"]["unread"] == 1
    assert output["usage"]["retries"] == 2


@pytest.mark.contract
def test_a_restart_is_waited_for_told_and_costs_the_open_call_only(tmp_path):
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    double = TgiDouble([MEMORY, "The widow Hale."], faults={1: Restart(0.3)})
    with serve(double) as url:
        model = ConnectedModel(
            chat=ChatTGI(base_url=url, tokenizer=str(tmp_path / "tokenizer"), token_timeout_s=5),
            window=7_000,
            count_tokens=count_words,
            special_tokens=COMMON_SPECIAL_TOKENS,
            engine="tgi",
            concurrency=2,
            model_name="double",
        )
        agent = create_memory_agent(
            model,
            settings=ReadingSettings(strategy="memory"),
            document_dir=tmp_path,
            retry_policy=RetryPolicy(max_attempts=2, initial_interval=0.01, retry_on=is_retryable),
        )
        told = list(agent.stream(GIVEN, stream_mode=["custom", "values"]))
    events = [event for mode, event in told if mode == "custom"]
    (waiting,) = of_type(events, "waiting_for_server")
    assert waiting["server"] == url
    assert len(of_type(events, "server_failed")) == 1
    assert told[-1][1]["answer"] == "The widow Hale."
    assert len(double.requests) == 3
