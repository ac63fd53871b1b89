from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage

from qwenlong_graph.errors import ModelUnavailableError
from qwenlong_graph.testing.scripted import (
    ScriptedChatModel,
    ScriptExhaustedError,
    Stall,
    count_words,
    scripted,
)


def joined(chunks):
    total = AIMessageChunk("")
    for chunk in chunks:
        total += chunk
    return total


async def collected(stream):
    return [chunk async for chunk in stream]


class TestReplies:
    def test_come_in_order_by_every_way_of_calling(self):
        model = ScriptedChatModel(["one", "two", "three", "four"])
        assert model.invoke("a").text == "one"
        assert asyncio.run(model.ainvoke("b")).text == "two"
        assert joined(model.stream("c")).text == "three"
        assert joined(asyncio.run(collected(model.astream("d")))).text == "four"
        assert [prompt[0].content for prompt in model.prompts] == ["a", "b", "c", "d"]

    def test_may_come_from_a_generator_or_a_function(self):
        assert ScriptedChatModel(word for word in ["lazy"]).invoke("x").text == "lazy"
        echo = ScriptedChatModel(lambda messages: str(messages[-1].content).upper())
        assert echo.invoke("again").text == "AGAIN"
        assert echo.invoke("and again").text == "AND AGAIN"

    def test_a_script_that_runs_out_fails_the_test_it_serves(self):
        model = ScriptedChatModel(["only"])
        model.invoke("a")
        for call in (
            lambda: model.invoke("b"),
            lambda: asyncio.run(model.ainvoke("b")),
            lambda: list(model.stream("b")),
            lambda: asyncio.run(collected(model.astream("b"))),
        ):
            with pytest.raises(ScriptExhaustedError, match="script holds"):
                call()
        assert issubclass(ScriptExhaustedError, AssertionError)

    def test_errors_are_raised_and_the_script_goes_on(self):
        model = ScriptedChatModel([ModelUnavailableError("down"), "up"])
        with pytest.raises(ModelUnavailableError, match="down"):
            model.invoke("a")
        assert model.invoke("a").text == "up"

    def test_a_stall_comes_before_its_reply_and_can_be_cancelled(self):
        assert ScriptedChatModel([Stall(0.01, "late")]).invoke("a").text == "late"
        assert asyncio.run(ScriptedChatModel([Stall(0.01, "late")]).ainvoke("a")).text == "late"

        async def impatient():
            async with asyncio.timeout(0.01):
                await ScriptedChatModel([Stall(3600)]).ainvoke("a")

        with pytest.raises(TimeoutError):
            asyncio.run(impatient())

    def test_a_message_keeps_its_tool_calls_and_reason(self):
        call = {"name": "read", "args": {"page": 3}, "id": "1", "type": "tool_call"}
        message = AIMessage("", tool_calls=[call], response_metadata={"finish_reason": "length"})
        model = ScriptedChatModel([message, message])
        assert model.bind_tools([]) is model
        for reply in (model.invoke("a"), joined(model.stream("a"))):
            assert reply.tool_calls == [call]
            assert reply.response_metadata["finish_reason"] == "length"

    def test_a_reply_ends_at_the_first_stop_string(self):
        model = ScriptedChatModel(["one two three", "one two three"])
        assert model.invoke("a", stop=["three", "two"]).text == "one "
        assert model.invoke("a", stop=["four"]).text == "one two three"

    def test_parallel_callers_each_get_a_reply_of_their_own(self):
        model = ScriptedChatModel([str(number) for number in range(40)])
        found = []
        threads = [
            threading.Thread(target=lambda: found.append(str(model.invoke("a").text)))
            for _ in range(40)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found, key=int) == [str(number) for number in range(40)]
        assert len(model.prompts) == 40


class TestUsage:
    def test_is_counted_in_words_whole_and_streamed(self):
        model = ScriptedChatModel(["Yes, two.", "Yes, two."])
        expected = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
        assert model.invoke("How many? ").usage_metadata == expected
        assert joined(model.stream("How many?")).usage_metadata == expected

    def test_a_message_that_states_its_usage_keeps_it(self):
        usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
        reply = ScriptedChatModel([AIMessage("x", usage_metadata=usage)]).invoke("a")
        assert reply.usage_metadata == usage

    def test_recorded_prompts_do_not_follow_a_list_changed_later(self):
        model = ScriptedChatModel(["a"])
        messages = [HumanMessage("one")]
        model.invoke(messages)
        messages.append(HumanMessage("two"))
        assert len(model.prompts[0]) == 1


@given(st.text(max_size=80))
@settings(max_examples=60, deadline=None)
def test_streamed_words_are_the_whole_text(text):
    assert joined(ScriptedChatModel([text]).stream("a")).text == text


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), ("one", 1), ("It's 4.2!", 7), ("a\n\n  b", 2)]
)
def test_words_and_marks_are_counted(text, count):
    assert count_words(text) == count


def test_a_scripted_model_is_a_connected_model():
    model = scripted(["a"], window=500, protocol="extract")
    assert model.window == 500
    assert model.count_tokens("two words") == 2
    assert model.defaults == {"protocol": "extract"}
    assert model.chat.invoke("x").text == "a"
    model.close()
