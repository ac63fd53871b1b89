"""Streams that break off, through the chat models that take them for whole replies."""

from __future__ import annotations

import asyncio
import gc
import json

import pytest
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint

from qwenlong_graph.errors import ModelOverloadedError, ModelUnavailableError
from qwenlong_graph.models.calls import STREAM_FROM_TOKENS, aask, ask, is_retryable
from qwenlong_graph.models.connect import connect
from qwenlong_graph.testing.tgi import (
    CloseAfter,
    CutAfter,
    ErrorEvent,
    NoFinalEvent,
    TgiDouble,
    serve,
)
from tests.models.stub_server import Answer, stub_server

pytestmark = pytest.mark.contract

HELLO = [{"role": "user", "content": "Hello."}]
REPLY = "the memory of the document"
# A whole reply, or a stream: `ask` decides by its length.
LENGTHS = pytest.mark.parametrize("max_tokens", [64, STREAM_FROM_TOKENS + 1])


def both_raise(expected, model, max_tokens):
    with pytest.raises(expected) as caught:
        ask(model, HELLO, max_tokens=max_tokens)
    assert is_retryable(caught.value)
    with pytest.raises(expected):
        asyncio.run(aask(model, HELLO, max_tokens=max_tokens))


def both_reply(model, max_tokens):
    reply = ask(model, HELLO, max_tokens=max_tokens)
    assert asyncio.run(aask(model, HELLO, max_tokens=max_tokens)) == reply
    return reply


def hugging_face(url, *, streaming):
    endpoint = HuggingFaceEndpoint(endpoint_url=url, typical_p=None, timeout=10)
    chat = ChatHuggingFace(llm=endpoint)
    if streaming:
        # As LangGraph's "messages" stream mode makes it: `invoke` streams inside.
        chat.streaming = True
    return connect(chat, window=8_192, count_tokens=len)


@pytest.fixture
def _clients_collected():
    """Those of the test, at its end: not in another test, which would be told of what they left."""
    yield
    gc.collect()


# huggingface_hub leaves the connection open where a stream was not read to the end, and says so.
@pytest.mark.filterwarnings("ignore:Deleting 'AsyncInferenceClient' client but some sessions")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.usefixtures("_clients_collected")
@LENGTHS
@pytest.mark.parametrize("streaming", [False, True])
class TestChatHuggingFace:
    def test_a_whole_reply_is_one(self, max_tokens, streaming):
        with serve(TgiDouble([REPLY] * 2)) as url:
            reply = both_reply(hugging_face(url, streaming=streaming), max_tokens)
        assert (reply.text, reply.is_truncated) == (REPLY, False)

    @pytest.mark.parametrize(
        ("fault", "expected"),
        [
            (CloseAfter(0), ModelUnavailableError),
            (CloseAfter(2), ModelUnavailableError),
            (NoFinalEvent(), ModelUnavailableError),
            (CutAfter(2), ModelUnavailableError),
            (ErrorEvent("generation", 2), ModelUnavailableError),
            (ErrorEvent("overloaded", 2), ModelOverloadedError),
        ],
    )
    def test_one_that_breaks_off_is_no_success(self, fault, expected, max_tokens, streaming):
        with serve(TgiDouble(lambda _: REPLY, faults={range(1, 9): fault})) as url:
            both_raise(expected, hugging_face(url, streaming=streaming), max_tokens)


PART = {"model": "m", "message": {"role": "assistant", "content": "half a "}, "done": False}
END = {**PART, "message": {"role": "assistant", "content": "reply"}, "done": True}


def ollama(*lines):
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    return stub_server({"/api/chat": Answer(text, content_type="application/x-ndjson")})


def chat_ollama(url):
    chat_class = pytest.importorskip("langchain_ollama").ChatOllama
    return connect(chat_class(model="m", base_url=url), window=8_192, count_tokens=len)


@LENGTHS
class TestChatOllama:
    @pytest.mark.parametrize("end", [END, {**END, "done_reason": "stop"}], ids=["old", "new"])
    def test_a_whole_reply_is_one(self, end, max_tokens):
        with ollama(PART, end) as (url, _):
            reply = both_reply(chat_ollama(url), max_tokens)
        assert (reply.text, reply.is_truncated) == ("half a reply", False)

    @pytest.mark.parametrize(
        ("lines", "expected"),
        [
            ([], ModelUnavailableError),
            ([PART], ModelUnavailableError),
            ([PART, {"error": "an error was encountered: out of memory"}], ModelUnavailableError),
            ([PART, {"error": "server busy: too many requests"}], ModelOverloadedError),
        ],
        ids=["nothing", "part", "error", "overload"],
    )
    def test_one_that_breaks_off_is_no_success(self, lines, expected, max_tokens):
        with ollama(*lines) as (url, _):
            both_raise(expected, chat_ollama(url), max_tokens)
