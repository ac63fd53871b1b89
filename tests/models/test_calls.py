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
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.errors import GraphBubbleUp, GraphRecursionError
from pydantic import Field

from qwenlong_graph.errors import (
    ContextOverflowError,
    MalformedReplyError,
    ModelError,
    ModelOverloadedError,
    ModelRefusedError,
    ModelUnavailableError,
)
from qwenlong_graph.models.calls import aask, ask, is_retryable, translate
from qwenlong_graph.models.connect import connect
from qwenlong_graph.testing.scripted import scripted
from tests.models.stub_server import Answer, completion, stub_server

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
        reply = ask(embedded_model, HELLO, max_tokens=40, temperature=0.0, response_schema=schema)
        assert isinstance(json.loads(reply.text)["ok"], bool)
        assert not reply.is_truncated

    def test_usage_survives_streaming(self, embedded_model):
        stream = embedded_model.chat.stream("Tell a long story.", max_tokens=4, temperature=0)
        total = next(stream)
        for chunk in stream:
            total += chunk
        assert total.usage_metadata["output_tokens"] == 4
        assert total.response_metadata["finish_reason"] == "length"
