from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any

import httpx
import huggingface_hub.errors
import openai
import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langgraph.errors import GraphBubbleUp, GraphRecursionError
from pydantic import Field

from qwenlong_graph.errors import (
    ContextOverflowError,
    MalformedReplyError,
    ModelError,
    ModelOverloadedError,
    ModelRefusedError,
    ModelUnavailableError,
    RunChangedError,
)
from qwenlong_graph.models.calls import STREAM_FROM_TOKENS, aask, ask, is_retryable, translate
from qwenlong_graph.models.connect import COMMON_SPECIAL_TOKENS, ConnectedModel, connect
from qwenlong_graph.models.limiter import limiter_for
from qwenlong_graph.models.tgi import ChatTGI
from qwenlong_graph.testing.scripted import ScriptedChatModel, scripted
from qwenlong_graph.testing.tgi import Fail, Restart, TgiDouble, serve, small_tokenizer
from tests.models.stub_server import Answer, Endless, as_stream, completion, stub_server

HELLO = [{"role": "user", "content": "Hello."}]


def error_answer(status, **body):
    return Answer({"error": body}, status=status)


def connected(url):
    return connect(url, window=4096, count_tokens=len, model="m")


class TestReply:
    def test_text_usage_and_end_are_read(self):
        message = AIMessage(
            [
                {"type": "reasoning", "reasoning": "hidden"},
                {"type": "text", "text": "one "},
                "two",
            ],
            usage_metadata={"input_tokens": 5, "output_tokens": 2, "total_tokens": 7},
            response_metadata={"finish_reason": "length"},
        )
        reply = ask(scripted([message]), HELLO, max_tokens=9)
        assert reply.text == "one two"
        assert (reply.input_tokens, reply.output_tokens) == (5, 2)
        assert reply.is_truncated

    @pytest.mark.parametrize(
        ("metadata", "is_truncated"),
        [
            ({"finish_reason": "stop"}, False),
            ({"stop_reason": "max_tokens"}, True),
            ({"done_reason": "length"}, True),
        ],
    )
    def test_each_providers_way_to_say_truncated(self, metadata, is_truncated):
        chat = Plain(reply=AIMessage("x", response_metadata=metadata))
        model = connect(chat, window=10, count_tokens=len)
        assert ask(model, HELLO, max_tokens=1).is_truncated is is_truncated

    def test_unreported_usage_is_none(self):
        model = connect(FakeListChatModel(responses=["x"]), window=10, count_tokens=len)
        reply = ask(model, HELLO, max_tokens=1)
        assert (reply.input_tokens, reply.output_tokens) == (None, None)


class Plain(BaseChatModel):
    """A chat model of a library we do not know: some settings are fields, none is a keyword."""

    reply: AIMessage = AIMessage("ok")
    temperature: float | None = None
    num_predict: int | None = None
    seen: list[Any] = Field(default_factory=list)

    @property
    def _llm_type(self):
        return "plain"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.seen.append((self.temperature, self.num_predict, kwargs))
        return ChatResult(generations=[ChatGeneration(message=self.reply)])


class TestSettings:
    def test_settings_reach_a_model_that_names_them(self):
        model = scripted(["a", "b"])
        ask(
            model,
            HELLO,
            max_tokens=9,
            temperature=0.5,
            top_p=0.9,
            seed=3,
            stop=["END"],
            response_schema={"type": "object"},
        )
        asyncio.run(aask(model, HELLO, max_tokens=4))
        first, second = model.chat.calls
        assert first.pop("response_format")["json_schema"]["schema"] == {"type": "object"}
        assert first == {
            "max_tokens": 9,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 3,
            "stop": ["END"],
        }
        assert second == {"max_tokens": 4}

    def test_settings_of_an_unknown_model_are_set_as_its_fields(self):
        chat = Plain(temperature=0.9)
        model = connect(chat, window=10, count_tokens=len)
        ask(model, HELLO, max_tokens=7, temperature=0.0, seed=1, response_schema={})
        assert chat.seen == [(0.0, 7, {})]
        assert (chat.temperature, chat.num_predict) == (0.9, None)

    def test_a_model_without_settings_is_called_without(self):
        model = connect(FakeListChatModel(responses=["x"]), window=10, count_tokens=len)
        assert ask(model, HELLO, max_tokens=7, temperature=0.0, top_p=1.0, seed=1).text == "x"

    @pytest.mark.contract
    def test_settings_reach_an_openai_compatible_server(self):
        with stub_server({"/v1/chat/completions": completion()}) as (url, requests):
            model = connected(url)
            requests.clear()
            schema = {"type": "object"}
            settings = {"max_tokens": 9, "temperature": 0.0, "top_p": 0.9, "seed": 3}
            ask(model, HELLO, **settings, stop=["END"], response_schema=schema)
            (_, _, body) = requests[0]
        assert body["response_format"]["json_schema"]["schema"] == schema
        del body["response_format"]
        assert body == {
            "model": "m",
            "messages": HELLO,
            "stream": False,
            "max_completion_tokens": 9,
            "temperature": 0.0,
            "top_p": 0.9,
            "seed": 3,
            "stop": ["END"],
        }

    @pytest.mark.contract
    def test_a_truncated_reply_under_a_schema_is_no_error(self):
        cut = completion('{"a', finish_reason="length")
        with stub_server({"/v1/chat/completions": cut}) as (url, _):
            reply = ask(connected(url), HELLO, max_tokens=2, response_schema={"type": "object"})
        assert (reply.text, reply.is_truncated) == ('{"a', True)

    @pytest.mark.contract
    def test_settings_reach_a_hugging_face_endpoint(self):
        from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint

        with stub_server({"/v1/chat/completions": completion()}) as (url, requests):
            endpoint = HuggingFaceEndpoint(endpoint_url=url, typical_p=None, timeout=10)
            model = connect(ChatHuggingFace(llm=endpoint), window=10, count_tokens=len)
            reply = ask(model, HELLO, max_tokens=9, temperature=0.0, top_p=0.9, seed=3)
            body = requests[-1][2]
        assert reply.text == "Fine."
        assert (body["max_tokens"], body["temperature"]) == (9, 0.0)
        assert (body["top_p"], body["seed"]) == (0.9, 3)


LONG = STREAM_FROM_TOKENS + 1
SENTENCE = "Wait, the widow Hale paid for the bridge, so let me check it again. "
THOUGHTS = {"additional_kwargs": {"reasoning_content": "hm hm"}}


def both(model, **settings):
    """The reply of the sync call, which has to be that of the async one too."""
    reply = ask(model, HELLO, **settings)
    assert asyncio.run(aask(model, HELLO, **settings)) == reply
    return reply


class TestThoughts:
    @pytest.mark.parametrize("max_tokens", [9, LONG])
    @pytest.mark.parametrize(
        "message",
        [
            AIMessage(
                [{"type": "reasoning", "reasoning": "hm hm"}, {"type": "text", "text": "So."}]
            ),
            AIMessage([{"type": "thinking", "thinking": "hm hm"}, {"type": "text", "text": "So."}]),
            AIMessage("So.", **THOUGHTS),
            AIMessage("So.", additional_kwargs={"reasoning": "hm hm"}),
            AIMessage("<think>hm hm</think>\nSo."),
            AIMessage("hm hm</think>So."),
        ],
        ids=["reasoning", "thinking", "reasoning_content", "field", "tags", "closing"],
    )
    def test_they_are_told_apart_from_the_answer(self, message, max_tokens):
        reply = both(scripted([message] * 2), max_tokens=max_tokens)
        assert (reply.text, reply.thoughts) == ("So.", "hm hm")
        assert reply.reasoning_tokens is None
        assert not reply.is_thinking_cut

    def test_their_tokens_are_read_where_the_server_counts_them(self):
        usage = {"input_tokens": 5, "output_tokens": 9, "total_tokens": 14}
        counted = {**usage, "output_token_details": {"reasoning": 7}}
        # A server that splits thoughts off and counts none has not counted them.
        uncounted = {**usage, "output_token_details": {"reasoning": 0}}
        for told, expected in ((counted, 7), (uncounted, None)):
            message = AIMessage("So.", usage_metadata=told, **THOUGHTS)
            assert ask(scripted([message]), HELLO, max_tokens=9).reasoning_tokens == expected
        assert ask(scripted(["So."]), HELLO, max_tokens=9).reasoning_tokens == 0

    @pytest.mark.parametrize("max_tokens", [9, LONG])
    @pytest.mark.parametrize(
        ("message", "is_truncated"),
        [
            (AIMessage("<think>hm", response_metadata={"finish_reason": "length"}), True),
            (AIMessage("<think>hm"), False),
            (AIMessage("", response_metadata={"finish_reason": "length"}, **THOUGHTS), True),
            (AIMessage("", response_metadata={"is_thinking_cut": True}, **THOUGHTS), False),
        ],
    )
    def test_a_reply_cut_inside_them_says_so(self, message, is_truncated, max_tokens):
        reply = both(scripted([message] * 2), max_tokens=max_tokens)
        assert (reply.text, reply.is_thinking_cut, reply.is_truncated) == ("", True, is_truncated)

    def test_an_empty_reply_is_no_cut_thought(self):
        assert not ask(scripted([""]), HELLO, max_tokens=9).is_thinking_cut

    @pytest.mark.contract
    @pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
    def test_chat_openai_keeps_the_fields_of_other_servers(self, field):
        whole = json.loads(completion("So.").body)
        whole["choices"][0]["message"][field] = "hm hm"
        events = json.loads(as_stream(completion("So.")).body.split(b"\n")[0][6:])
        events["choices"][0]["delta"] = {field: "hm hm"}
        stream = f"data: {json.dumps(events)}\n\n" + as_stream(completion("So.")).body.decode()

        def answer(body):
            if body["stream"]:
                return Answer(stream, content_type="text/event-stream")
            return Answer(whole)

        with stub_server({"/v1/chat/completions": answer}) as (url, _):
            model = connected(url)
            for max_tokens in (9, LONG):
                reply = both(model, max_tokens=max_tokens)
                assert (reply.text, reply.thoughts) == ("So.", "hm hm")
                assert reply.output_tokens == 2


class Loops(ScriptedChatModel):
    """Streams the same sentence for ever, and counts how often it did."""

    said: list[str] = Field(default_factory=list)
    sentence: str = SENTENCE
    block: str = "text"

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        while True:
            self.said.append(self.sentence)
            content = [{"type": self.block, self.block: self.sentence, "index": 0}]
            yield ChatGenerationChunk(message=AIMessageChunk(content))

    async def _astream(self, messages, stop=None, run_manager=None, **kwargs):
        for chunk in self._stream(messages):
            yield chunk


class TestLoops:
    @pytest.mark.parametrize("block", ["text", "reasoning"])
    def test_a_stream_that_repeats_itself_is_left(self, block):
        chat = Loops([], block=block)
        model = connect(chat, window=10_000, count_tokens=len)
        reply = both(model, max_tokens=LONG)
        assert reply.is_loop
        assert reply.is_thinking_cut is (block == "reasoning")
        assert SENTENCE in (reply.thoughts if block == "reasoning" else reply.text)
        # About 600 words each.
        assert len(chat.said) < 100

    def test_a_longer_span_takes_more_repetition_for_honest(self):
        chat = Loops([])
        model = connect(chat, window=10_000, count_tokens=len)
        ask(model, HELLO, max_tokens=LONG)
        usual = len(chat.said)
        ask(model, HELLO, max_tokens=LONG, loop_span=4 * 512)
        assert len(chat.said) - usual > 3 * usual

    def test_a_whole_reply_is_a_loop_only_where_it_did_not_end_by_itself(self):
        text = SENTENCE * 100
        cut = AIMessage(text, response_metadata={"finish_reason": "length"})
        assert ask(scripted([cut]), HELLO, max_tokens=9).is_loop
        reply = ask(scripted([text]), HELLO, max_tokens=9)
        assert (reply.is_loop, reply.text) == (False, text.strip())

    def test_a_model_that_cannot_stream_gives_its_reply_whole(self):
        chat = Plain(reply=AIMessage(SENTENCE * 100, response_metadata={"finish_reason": "stop"}))
        reply = both(connect(chat, window=10, count_tokens=len), max_tokens=LONG)
        assert (reply.text, reply.is_loop) == (chat.reply.text.strip(), False)

    @pytest.mark.contract
    @pytest.mark.parametrize("is_async", [False, True])
    def test_a_server_that_has_no_streams_is_asked_for_whole_replies(self, is_async):
        whole = Answer({**json.loads(completion().body), "object": "a gateway's own"})
        with stub_server({"/v1/chat/completions": whole}) as (url, requests):
            model = connected(url)
            requests.clear()
            for _ in range(4):
                if is_async:
                    reply = asyncio.run(aask(model, HELLO, max_tokens=LONG))
                else:
                    reply = ask(model, HELLO, max_tokens=LONG)
                assert reply.text == "Fine."
        streams = [body["stream"] for _, _, body in requests]
        assert streams == [True, False, True, False, False, False]

    def test_the_reply_of_a_stream_is_that_of_a_whole_one(self):
        message = AIMessage(
            "one  two\nthree",
            usage_metadata={"input_tokens": 5, "output_tokens": 2, "total_tokens": 7},
            response_metadata={"finish_reason": "length"},
        )
        short, long = (ask(scripted([message]), HELLO, max_tokens=n) for n in (9, LONG))
        assert short == long

    def test_cached_replies_are_used(self):
        from langchain_core.caches import InMemoryCache

        chat = ScriptedChatModel(["once"], cache=InMemoryCache())
        model = connect(chat, window=10, count_tokens=len)
        assert [ask(model, HELLO, max_tokens=LONG).text for _ in range(2)] == ["once", "once"]

    @pytest.mark.contract
    @pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning"])
    @pytest.mark.parametrize("is_async", [False, True])
    def test_an_openai_compatible_server_is_left_at_once(self, field, is_async):
        endless = Endless({field: SENTENCE})
        with stub_server({"/v1/chat/completions": endless}) as (url, _):
            model = connected(url)
            if is_async:
                reply = asyncio.run(aask(model, HELLO, max_tokens=LONG))
            else:
                reply = ask(model, HELLO, max_tokens=LONG)
            assert endless.is_left.wait(10)
        assert reply.is_loop
        assert reply.is_thinking_cut is (field != "content")

    @pytest.mark.contract
    @pytest.mark.parametrize("is_async", [False, True])
    def test_a_tgi_server_gets_its_slot_back(self, tmp_path, is_async):
        double = TgiDouble([f"<think>{SENTENCE * 400}"], token_s=0.0005)
        with serve(double) as url:
            model = tgi_model(url, tmp_path)
            if is_async:

                async def left():
                    reply = await aask(model, HELLO, max_tokens=6_000)
                    await asyncio.to_thread(double.wait_idle)
                    return reply

                reply = asyncio.run(left())
            else:
                reply = ask(model, HELLO, max_tokens=6_000)
                double.wait_idle()
        assert (reply.is_loop, reply.is_thinking_cut, reply.text) == (True, True, "")
        assert (double.cancelled, double.answered) == (1, 0)


def tgi_model(url, folder, **changes):
    small_tokenizer().save_pretrained(folder)
    chat = ChatTGI(base_url=url, tokenizer=str(folder), token_timeout_s=5)
    return ConnectedModel(
        chat=chat,
        window=8_000,
        count_tokens=len,
        special_tokens=COMMON_SPECIAL_TOKENS,
        **{"engine": "tgi", "concurrency": 2, "model_name": "double", **changes},
    )


class Penal(Plain):
    """Takes a repetition penalty as Ollama's chat model does."""

    repeat_penalty: float | None = None

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.seen.append(self.repeat_penalty)
        return super()._generate(messages, stop, run_manager, **kwargs)


class TestRepetitionPenalty:
    @pytest.mark.contract
    def test_tgi_takes_it(self, tmp_path):
        double = TgiDouble(["Fine."])
        with serve(double) as url:
            ask(tgi_model(url, tmp_path), HELLO, max_tokens=9, repetition_penalty=1.05)
        assert double.requests[0].body["parameters"]["repetition_penalty"] == 1.05

    @pytest.mark.contract
    @pytest.mark.parametrize(
        ("engine", "sent"),
        [
            ("llama.cpp", {"repeat_penalty": 1.05}),
            ("vllm", {"repetition_penalty": 1.05}),
            ("sglang", {"repetition_penalty": 1.05}),
            ("custom", {}),
        ],
    )
    def test_servers_behind_chat_openai_take_it_by_their_own_name(self, engine, sent):
        from dataclasses import replace

        with stub_server({"/v1/chat/completions": completion()}) as (url, requests):
            model = replace(connected(url), engine=engine)
            model.chat.extra_body = {"top_k": 20}
            ask(model, HELLO, max_tokens=9, repetition_penalty=1.05)
            body = requests[-1][2]
        assert {name: body[name] for name in body if "penalty" in name} == sent
        assert body["top_k"] == 20

    def test_others_take_it_as_a_field_or_not_at_all(self):
        chat = Penal()
        model = connect(chat, window=10, count_tokens=len)
        ask(model, HELLO, max_tokens=7, repetition_penalty=1.05)
        assert chat.seen[0] == 1.05
        assert ask(scripted(["x"]), HELLO, max_tokens=7, repetition_penalty=1.05).text == "x"


@pytest.mark.contract
class TestLoad:
    def test_requests_share_the_limiter_of_their_server(self, tmp_path):
        double = TgiDouble(lambda prompt: "Fine.", first_token_s=0.05, batch_size=8)
        with serve(double) as url:
            model = tgi_model(url, tmp_path, concurrency=2)

            async def many():
                await asyncio.gather(*(aask(model, HELLO, max_tokens=9) for _ in range(8)))

            asyncio.run(many())
            assert double.in_flight_max == 2
            assert limiter_for(url).limit == 2

    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize("is_async", [False, True])
    def test_too_many_requests_lower_it_and_its_wish_is_heeded(self, tmp_path, status, is_async):
        double = TgiDouble(["Fine."], faults={1: Fail(status, retry_after_s=600)})

        async def waits_its_turn():
            task = asyncio.create_task(aask(model, HELLO, max_tokens=9))
            while not limiter.waiting and not task.done():
                await asyncio.sleep(0.01)
            task.cancel()

        with serve(double) as url:
            model, limiter = tgi_model(url, tmp_path, concurrency=4), limiter_for(url, limit=4)
            with pytest.raises((ModelOverloadedError, ModelUnavailableError)):
                _asked(model, is_async=is_async)
            assert limiter.limit == 2
            asyncio.run(waits_its_turn())
            assert len(double.requests) == 1

    def test_a_refusal_does_not_lower_it(self, tmp_path):
        double = TgiDouble([], faults={1: Fail(422)})
        with serve(double) as url:
            model = tgi_model(url, tmp_path, concurrency=4)
            with pytest.raises(ModelRefusedError):
                ask(model, HELLO, max_tokens=9)
            assert (limiter_for(url).limit, limiter_for(url).in_flight) == (4, 0)

    @pytest.mark.parametrize("is_async", [False, True])
    def test_a_restarting_server_is_waited_for_before_the_error_is_raised(self, tmp_path, is_async):
        double = TgiDouble(["Fine."], faults={1: Restart(0.5)})
        told = []
        with serve(double) as url:
            model = tgi_model(url, tmp_path)
            settings = {"patience_s": 20, "on_wait": told.append}
            with pytest.raises(ModelUnavailableError) as caught:
                _asked(model, is_async=is_async, **settings)
            assert is_retryable(caught.value)
            assert told
            assert _asked(model, is_async=is_async, **settings).text == "Fine."

    @pytest.mark.parametrize("is_async", [False, True])
    def test_a_server_that_stays_away_is_given_up_for_good(self, tmp_path, is_async):
        with serve(TgiDouble([])) as url:
            pass
        model = tgi_model(url, tmp_path)
        with pytest.raises(ModelUnavailableError, match="Waiting for the server") as caught:
            _asked(model, is_async=is_async, patience_s=0.2)
        assert not is_retryable(caught.value)

    def test_nobody_waits_unasked_nor_for_a_server_in_this_process(self, tmp_path):
        with serve(TgiDouble([])) as url:
            pass
        own = tgi_model(url, tmp_path, release=lambda: None)
        for model, patience_s in ((tgi_model(url, tmp_path), 0), (own, 60)):
            with pytest.raises(ModelUnavailableError, match="no server answers"):
                ask(model, HELLO, max_tokens=9, patience_s=patience_s)

    def test_a_server_that_comes_back_with_another_model_is_refused(self, tmp_path):
        def verify():
            raise RunChangedError("another model")

        with serve(TgiDouble(["Fine."], faults={range(1, 3): Fail(500)})) as url:
            model = tgi_model(url, tmp_path, verify=verify)
            for is_async in (False, True):
                with pytest.raises(RunChangedError, match="another model"):
                    _asked(model, is_async=is_async, patience_s=5)

    @pytest.mark.parametrize("is_async", [False, True])
    def test_a_model_that_was_swapped_between_two_good_replies_is_noticed(self, tmp_path, is_async):
        served = ["ours"]

        def verify():
            if served[-1] == "busy":
                raise ModelUnavailableError("busy")
            if served[-1] != "ours":
                raise RunChangedError("another model")

        with serve(TgiDouble(lambda _: "Fine.")) as url:
            model = tgi_model(url, tmp_path, verify=verify)
            for now in ("ours", "busy"):
                served.append(now)
                assert _asked(model, is_async=is_async, check_after_s=0).text == "Fine."
            served.append("other")
            assert _asked(model, is_async=is_async).text == "Fine."  # not yet asked again
            with pytest.raises(RunChangedError, match="another model"):
                _asked(model, is_async=is_async, check_after_s=0)


def _asked(model, *, is_async, **settings):
    if is_async:
        return asyncio.run(aask(model, HELLO, max_tokens=9, **settings))
    return ask(model, HELLO, max_tokens=9, **settings)


@pytest.mark.contract
class TestServerFailures:
    @pytest.mark.parametrize(
        ("answer", "expected", "words"),
        [
            (
                error_answer(401, message="no", type="auth_error"),
                ModelRefusedError,
                "key",
            ),
            (error_answer(404, message="no such model"), ModelRefusedError, "no such model"),
            (error_answer(400, message="bad thing"), ModelRefusedError, "HTTP 400"),
            (error_answer(429, message="slow down"), ModelOverloadedError, "HTTP 429"),
            (error_answer(500, message="oops"), ModelUnavailableError, "HTTP 500"),
            (error_answer(424, message="CUDA OOM"), ModelUnavailableError, "HTTP 424"),
            (
                Answer("<html>bad gateway</html>", status=502, content_type="text/html"),
                ModelUnavailableError,
                "HTTP 502",
            ),
            (
                Answer("<html>hello</html>", content_type="text/html"),
                ModelUnavailableError,
                "did not answer properly",
            ),
            (Answer("{broken"), ModelUnavailableError, "did not answer properly"),
            (Answer({"error": {"message": "oops"}}), ModelUnavailableError, "answer properly"),
            (Answer({"choices": None}), ModelUnavailableError, "answer properly"),
            (Answer({}), ModelUnavailableError, "answer properly"),
            (
                error_answer(
                    400,
                    message="request (9 tokens) exceeds the available context size (8 tokens)",
                    type="exceed_context_size_error",
                    n_prompt_tokens=9031,
                    n_ctx=8192,
                ),
                ContextOverflowError,
                "9,031 tokens and the window 8,192",
            ),
            (
                error_answer(400, message="This model's maximum context length is 8 tokens."),
                ContextOverflowError,
                "smaller chunks",
            ),
            (
                Answer(
                    {
                        "error": "Input validation error: `inputs` must have less than 8 tokens.",
                        "error_type": "validation",
                    },
                    status=422,
                ),
                ContextOverflowError,
                "smaller chunks",
            ),
        ],
    )
    def test_each_failure_has_its_error(self, answer, expected, words):
        with stub_server({"/v1/chat/completions": answer}) as (url, requests):
            model = connected(url)
            requests.clear()
            with pytest.raises(expected, match=words) as caught:
                ask(model, HELLO, max_tokens=5)
            with pytest.raises(expected, match=words):
                asyncio.run(aask(model, HELLO, max_tokens=5))
            assert len(requests) == 2, "the client library retried on its own"
        assert type(caught.value) is expected
        assert caught.value.__cause__ is not None

    def test_a_message_never_repeats_what_the_server_quotes(self):
        quoting = error_answer(422, message="invalid input: 'the secret prompt'", type="a b c d")
        with (
            stub_server({"/v1/chat/completions": quoting}) as (url, _),
            pytest.raises(ModelRefusedError) as caught,
        ):
            ask(connected(url), HELLO, max_tokens=5)
        assert "secret" not in str(caught.value)
        assert "a b c" not in str(caught.value)

    def test_silence_is_unavailable(self):
        import threading

        release = threading.Event()

        def stalls(body):
            release.wait(20)
            return completion()

        with stub_server({"/v1/chat/completions": stalls}) as (url, _):
            model = connect(url, window=10, count_tokens=len, model="m", timeout_s=0.2)
            with pytest.raises(ModelUnavailableError, match="Timeout"):
                ask(model, HELLO, max_tokens=5)
            release.set()

    @pytest.mark.parametrize(
        ("ending", "expected"),
        [
            ([], ModelUnavailableError),
            ([{"error": {"message": "CUDA out of memory", "type": "x"}}], ModelUnavailableError),
            ([{"error": {"message": "Model is overloaded"}}], ModelOverloadedError),
            ([{"error": {"message": "`inputs` tokens + `max"}}], ContextOverflowError),
        ],
    )
    def test_a_stream_that_breaks_off_is_no_success(self, ending, expected):
        delta = {"role": "assistant", "content": "half a"}
        chunk = {
            "id": "1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
        }
        events = "".join(f"data: {json.dumps(event)}\n\n" for event in [chunk, *ending])
        answer = Answer(events, content_type="text/event-stream")
        with stub_server({"/v1/chat/completions": answer}) as (url, _):
            model = connected(url)
            # As LangGraph's "messages" stream mode makes it: the call streams inside.
            model.chat.streaming = True
            with pytest.raises(expected):
                ask(model, HELLO, max_tokens=5)
            with pytest.raises(expected):
                asyncio.run(aask(model, HELLO, max_tokens=5))


def exception_classes(module, root):
    found = {cls for _, cls in inspect.getmembers(module, inspect.isclass) if issubclass(cls, root)}
    assert len(found) > 5
    return sorted(found, key=lambda cls: cls.__name__)


def raw(cls):
    """An instance without its constructor, whose arguments differ from class to class."""
    return cls.__new__(cls)


class TestTranslation:
    @pytest.mark.parametrize("cls", exception_classes(openai, openai.OpenAIError))
    def test_every_error_of_openai_is_translated(self, cls):
        assert isinstance(translate(raw(cls)), ModelError)

    @pytest.mark.parametrize(
        "cls",
        exception_classes(httpx, (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError)),
    )
    def test_every_error_of_httpx_is_translated(self, cls):
        assert isinstance(translate(raw(cls)), ModelError)

    @pytest.mark.parametrize(
        "name", ["HfHubHTTPError", "InferenceTimeoutError", "OverloadedError", "GenerationError"]
    )
    def test_inference_errors_of_hugging_face_are_translated(self, name):
        assert isinstance(translate(raw(getattr(huggingface_hub.errors, name))), ModelError)

    def test_errors_are_known_by_name_without_their_library(self):
        client_error = type("ClientError", (Exception,), {"__module__": "aiohttp.client"})
        response_error = type("ClientResponseError", (client_error,), {"status": 429})
        assert type(translate(client_error())) is ModelUnavailableError
        assert type(translate(response_error())) is ModelOverloadedError

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("x"),
            KeyError("choices"),
            AssertionError("x"),
            OSError("disk"),
            GraphBubbleUp(),
            GraphRecursionError("x"),
            KeyboardInterrupt(),
            asyncio.CancelledError(),
            MalformedReplyError("x"),
        ],
    )
    def test_what_is_no_failure_of_a_server_passes_untouched(self, error):
        assert translate(error) is None
        assert not is_retryable(error)
        if isinstance(error, Exception):
            with pytest.raises(type(error)) as caught:
                ask(scripted([error]), HELLO, max_tokens=1)
            assert caught.value is error

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (ModelUnavailableError("x"), True),
            (ModelOverloadedError("x"), True),
            (ConnectionResetError(), True),
            (TimeoutError(), True),
            (ModelRefusedError("x"), False),
            (ContextOverflowError("x"), False),
        ],
    )
    def test_only_what_may_pass_is_retryable(self, error, expected):
        assert is_retryable(error) is expected


@pytest.mark.end_to_end
class TestEmbedded:
    def test_overflow_is_named_with_both_sizes(self, embedded_model):
        with pytest.raises(ContextOverflowError, match=r"tokens and the window 8,192"):
            ask(embedded_model, [{"role": "user", "content": "hi " * 9000}], max_tokens=5)

    def test_several_event_loops_one_after_another(self, embedded_model):
        for _ in range(2):
            reply = asyncio.run(aask(embedded_model, HELLO, max_tokens=3, temperature=0.0))
            assert reply.output_tokens == 3
            assert reply.is_truncated

    def test_limit_schema_and_usage_are_honoured(self, embedded_model):
        schema = {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}},
            "required": ["ok"],
            "additionalProperties": False,
        }
        # A small model pads its JSON with white space.
        reply = ask(embedded_model, HELLO, max_tokens=200, temperature=0.0, response_schema=schema)
        assert isinstance(json.loads(reply.text)["ok"], bool)
        assert not reply.is_truncated

    def test_usage_survives_streaming(self, embedded_model):
        stream = embedded_model.chat.stream("Tell a long story.", max_tokens=4, temperature=0)
        total = next(stream)
        for chunk in stream:
            total += chunk
        assert total.usage_metadata["output_tokens"] == 4
        assert total.response_metadata["finish_reason"] == "length"
