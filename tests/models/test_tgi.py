"""`ChatTGI` over real connections: against the TGI double, and against servers of no good will."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import json
import logging
import pickle
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.load import dumps
from langchain_core.messages import AIMessageChunk, HumanMessage
from pydantic import BaseModel, SecretStr, ValidationError

from qwenlong_graph.errors import (
    ContextOverflowError,
    ModelError,
    ModelOverloadedError,
    ModelRefusedError,
    ModelUnavailableError,
    SettingsError,
)
from qwenlong_graph.models.calls import aask, ask, is_retryable
from qwenlong_graph.models.connect import ConnectedModel
from qwenlong_graph.models.limiter import limiter_for
from qwenlong_graph.models.tgi import ChatTGI
from qwenlong_graph.testing.tgi import (
    BadGateway,
    CloseAfter,
    CommentsOnly,
    CutAfter,
    ErrorEvent,
    Fail,
    Fault,
    Garbage,
    NoAnswer,
    NoFinalEvent,
    NotHttp,
    Silence,
    SlowDrip,
    TgiDouble,
    TruncatedUtf8,
    WrongTypes,
    serve,
    small_tokenizer,
)
from qwenlong_graph.types import Message

pytestmark = pytest.mark.contract

KEY = "tgi-key-of-the-test"
SECRET = SecretStr(KEY)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def thinking_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("thinking")
    small_tokenizer(opens_thinking=True).save_pretrained(folder)
    return str(folder)


Ask = Callable[[ChatTGI], str]


def invoke(chat: ChatTGI) -> str:
    return str(chat.invoke("Hi").text)


def ainvoke(chat: ChatTGI) -> str:
    async def ask() -> str:
        return str((await chat.ainvoke("Hi")).text)

    return asyncio.run(ask())


def stream(chat: ChatTGI) -> str:
    return str(whole(chat.stream("Hi")).text)


def astream(chat: ChatTGI) -> str:
    async def ask() -> str:
        return str(whole(iter([chunk async for chunk in chat.astream("Hi")])).text)

    return asyncio.run(ask())


def whole(chunks: Iterator[AIMessageChunk]) -> AIMessageChunk:
    total = next(chunks)
    for chunk in chunks:
        total = total + chunk
    return total


ways = pytest.mark.parametrize("ask", [invoke, ainvoke, stream, astream])


def until(holds: Callable[[], bool]) -> None:
    """Waits for what another thread brings about; a test that waits in vain fails."""
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.005)


@ways
def test_a_reply_comes_whole_and_the_connection_is_kept(ask: Ask, tokenizer: str) -> None:
    with serve(TgiDouble(["Grüße, 世界!", "Again."])) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer)
        assert ask(chat) == "Grüße, 世界!"
        assert ask(chat) == "Again."
        chat.close()


def test_all_settings_reach_the_server_in_its_own_words(tokenizer: str) -> None:
    double = TgiDouble(["a", "b", "c", "d"])
    with serve(double) as url:
        chat = ChatTGI(
            base_url=url,
            tokenizer=tokenizer,
            temperature=0.7,
            top_p=0.95,
            top_k=20,
            repetition_penalty=1.05,
            frequency_penalty=0.1,
            seed=11,
            max_tokens=99,
            stop=["END"],
        )
        chat.invoke("Hi")
        chat.invoke("Hi", temperature=0, seed=12, max_tokens=5, stop=[])
        chat.bind(top_p=1, temperature=1.0).invoke("Hi")
        ChatTGI(base_url=url, tokenizer=tokenizer).invoke("Hi")
    sent = [request.body["parameters"] for request in double.requests]
    assert sent[0] == {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.95,
        "top_k": 20,
        "repetition_penalty": 1.05,
        "frequency_penalty": 0.1,
        "seed": 11,
        "max_new_tokens": 99,
        "stop": ["END"],
        "details": True,
    }
    # Greedy: TGI refuses a temperature of 0, and samples where any of the four is given.
    assert sent[1] == {
        "repetition_penalty": 1.05,
        "frequency_penalty": 0.1,
        "seed": 12,
        "max_new_tokens": 5,
        "details": True,
    }
    assert (sent[2]["do_sample"], sent[2]["temperature"]) == (True, 1.0)
    assert "top_p" not in sent[2]
    assert sent[3] == {"details": True}
    tgi_types = pytest.importorskip("text_generation.types")
    for request in double.requests:
        # The vocabulary of the text-generation package.
        parameters = tgi_types.Request(**request.body).parameters
        assert parameters.model_dump(exclude_unset=True) == request.body["parameters"]


@ways
def test_thoughts_are_a_block_of_their_own_and_no_text(ask: Ask, thinking_tokenizer: str) -> None:
    with serve(TgiDouble(["Let me see.</think>\n\nFour."])) as url:
        assert ask(ChatTGI(base_url=url, tokenizer=thinking_tokenizer)) == "Four."


def test_usage_and_metadata_are_the_same_streamed_or_not(thinking_tokenizer: str) -> None:
    reply = "See.</think>\n\nFour."
    with serve(TgiDouble([reply] * 3)) as url:
        chat = ChatTGI(base_url=url, tokenizer=thinking_tokenizer, model_name="qwen")
        message = chat.invoke("Hi")
        streamed = whole(chat.stream("Hi"))
        posted = ChatTGI(
            base_url=url, tokenizer=thinking_tokenizer, model_name="qwen", disable_streaming=True
        ).invoke("Hi")
    assert message.content_blocks == [
        {"type": "reasoning", "reasoning": "See."},
        {"type": "text", "text": "Four."},
    ]
    count = chat.get_num_tokens
    assert message.usage_metadata == {
        "input_tokens": chat.get_num_tokens_from_messages([HumanMessage("Hi")]),
        "output_tokens": count(reply) + 1,
        "total_tokens": chat.get_num_tokens_from_messages([HumanMessage("Hi")]) + count(reply) + 1,
        "output_token_details": {"reasoning": count("See.</think>")},
    }
    assert message.response_metadata == {
        "model_name": "qwen",
        "model_provider": "tgi",
        "finish_reason": "eos_token",
        "is_thinking_cut": False,
    }
    for other in (streamed, posted):
        assert other.usage_metadata == message.usage_metadata
        assert other.response_metadata == message.response_metadata
        assert other.text == message.text
    assert [block["type"] for block in streamed.content_blocks] == ["reasoning", "text"]


def test_a_closing_tag_alone_parts_thoughts_from_the_answer(tokenizer: str) -> None:
    with serve(TgiDouble(["One </think> two </think>\nthree"])) as url:
        message = ChatTGI(base_url=url, tokenizer=tokenizer).invoke("Hi")
    assert message.text == "three"
    assert message.content_blocks[0] == {
        "type": "reasoning",
        "reasoning": "One </think> two",
    }


def test_a_reply_cut_in_its_thoughts_says_so(thinking_tokenizer: str) -> None:
    with serve(TgiDouble(["A very long thought indeed."])) as url:
        message = ChatTGI(base_url=url, tokenizer=thinking_tokenizer, max_tokens=3).invoke("Hi")
    assert message.text == ""
    assert message.response_metadata["finish_reason"] == "length"
    assert message.response_metadata["is_thinking_cut"]


def test_the_chat_template_is_that_of_the_servers_model(thinking_tokenizer: str) -> None:
    double = TgiDouble(["a</think>b", "c</think>d"], model_id=thinking_tokenizer)
    with serve(double) as url:
        message = ChatTGI(base_url=url).invoke("Hi")
        assert astream(ChatTGI(base_url=url)) == "d"
    assert message.response_metadata["model_name"] == thinking_tokenizer
    assert double.prompts[0].endswith("<|im_start|>assistant\n<think>\n")


def test_a_model_that_is_not_on_this_machine_asks_for_the_tokenizer() -> None:
    with (
        serve(TgiDouble([], model_id="/data/Some-Model")) as url,
        pytest.raises(SettingsError, match=r"/data/Some-Model.*as tokenizer"),
    ):
        ChatTGI(base_url=url).invoke("Hi")


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def test_structured_output_comes_after_the_thoughts(thinking_tokenizer: str) -> None:
    double = TgiDouble(["Hm.</think>", '{"name": "Ann", "age": 7}'] * 3)
    with serve(double) as url:
        chat = ChatTGI(base_url=url, tokenizer=thinking_tokenizer)
        structured = chat.with_structured_output(Person)
        assert structured.invoke("Who?") == Person(name="Ann", age=7)
        assert asyncio.run(structured.ainvoke("Who?")) == Person(name="Ann", age=7)
        called = chat.with_structured_output(Person, method="function_calling")
        assert called.invoke("Who?") == Person(name="Ann", age=7)
    thoughts, answer = double.requests[:2]
    assert "grammar" not in thoughts.body["parameters"]
    assert answer.prompt == f"{thoughts.prompt}Hm.</think>\n\n"
    schema = answer.body["parameters"]["grammar"]["value"]
    assert schema["required"] == ["name", "age"]
    assert double.cancelled == 0


def test_structured_output_that_the_limit_cut_is_an_error_of_the_parser(tokenizer: str) -> None:
    with serve(TgiDouble(['{"name": "Ann", "age": 7}'] * 2)) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer, max_tokens=5)
        with pytest.raises(OutputParserException):
            chat.with_structured_output(Person).invoke("Who?")
        both = chat.with_structured_output(Person, include_raw=True).invoke("Who?")
    assert both["parsed"] is None
    assert isinstance(both["parsing_error"], OutputParserException)
    assert both["raw"].response_metadata["finish_reason"] == "length"


def test_a_response_format_is_sent_as_grammar_and_nothing_is_added(tokenizer: str) -> None:
    double = TgiDouble(['{"a": 1}'])
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    with serve(double) as url:
        ChatTGI(base_url=url, tokenizer=tokenizer).invoke(
            "Hi",
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema, "strict": True},
            },
        )
    assert double.prompts == ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"]
    assert double.requests[0].body["parameters"]["grammar"] == {"type": "json", "value": schema}


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def test_arguments_that_the_limit_cut_are_an_invalid_call(tokenizer: str) -> None:
    with serve(TgiDouble(['{"a": 1, "b": 2}'])) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer, max_tokens=4)
        message = chat.bind_tools([add], tool_choice="any").invoke("Add.")
    assert message.tool_calls == []
    (broken,) = message.invalid_tool_calls
    assert broken["name"] == "add"


def test_several_calls_of_one_reply_are_the_same_streamed(tokenizer: str) -> None:
    replies = ["Wait.<tool_call>", '{"a": 1, "b": 2}', "\n<tool_call>", '{"a": 3, "b": 4}', ""]
    with serve(TgiDouble(replies * 2)) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer).bind_tools([add])
        message = chat.invoke("Add.")
        streamed = whole(chat.stream("Add."))  # type: ignore[arg-type]
    for found in (message, streamed):
        assert [call["args"] for call in found.tool_calls] == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
        assert len({call["id"] for call in found.tool_calls}) == 2
        assert found.text == "Wait."


def test_tools_and_a_form_for_the_answer_in_one_call_are_refused(tokenizer: str) -> None:
    chat = ChatTGI(base_url="http://127.0.0.1:9", tokenizer=tokenizer)
    form = {"type": "json", "value": {"type": "object", "properties": {}}}
    with pytest.raises(SettingsError, match="one grammar cannot hold both"):
        chat.bind_tools([add], response_format=form).invoke("Hi")


@pytest.mark.parametrize("form", ["json", {"type": "json_object"}, {"type": "regex", "value": "a"}])
def test_another_form_of_response_format_is_refused(form: object, tokenizer: str) -> None:
    with pytest.raises(SettingsError, match="response_format"):
        ChatTGI(base_url="http://127.0.0.1:9", tokenizer=tokenizer).invoke(
            "Hi", response_format=form
        )


def test_a_tool_choice_that_is_no_tool_is_refused_when_bound(tokenizer: str) -> None:
    chat = ChatTGI(base_url="http://127.0.0.1:9", tokenizer=tokenizer)
    with pytest.raises(SettingsError, match="'subtract'"):
        chat.bind_tools([add], tool_choice="subtract")


@pytest.mark.parametrize("name", ["temprature", "max_new_token", "n"])
def test_an_unknown_setting_is_refused_and_not_ignored(name: str, tokenizer: str) -> None:
    settings: dict[str, Any] = {name: 1}
    with pytest.raises(ValidationError, match=name):
        ChatTGI(base_url="http://127.0.0.1:9", **settings)
    with pytest.raises(SettingsError, match=name):
        ChatTGI(base_url="http://127.0.0.1:9", tokenizer=tokenizer).invoke("Hi", **settings)


def test_another_model_for_one_call_is_refused(tokenizer: str) -> None:
    chat = ChatTGI(base_url="http://127.0.0.1:9", tokenizer=tokenizer, model_name="one")
    with pytest.raises(SettingsError, match="'two'"):
        chat.invoke("Hi", model="two")


# --- failures ---

FAILURES: list[tuple[Fault, type[ModelError]]] = [
    (Fail(500, "incomplete_generation"), ModelUnavailableError),
    (Fail(503), ModelUnavailableError),
    (Fail(424, "generation"), ModelUnavailableError),
    (Fail(429), ModelOverloadedError),
    (Fail(422, "validation"), ModelRefusedError),
    (BadGateway(), ModelUnavailableError),
    (NotHttp(), ModelUnavailableError),
    (NoAnswer(), ModelUnavailableError),
    (Silence(events=2), ModelUnavailableError),
    (CommentsOnly(events=0, every_s=0.05), ModelUnavailableError),
    (CommentsOnly(events=2, every_s=0.05), ModelUnavailableError),
    (CloseAfter(events=0), ModelUnavailableError),
    (CloseAfter(events=3), ModelUnavailableError),
    (CloseAfter(events=999), ModelUnavailableError),
    (CutAfter(events=3), ModelUnavailableError),
    (NoFinalEvent(), ModelUnavailableError),
    (ErrorEvent("generation", events=2), ModelUnavailableError),
    (ErrorEvent("overloaded", events=2), ModelOverloadedError),
    (ErrorEvent("validation", events=2), ModelRefusedError),
    (Garbage(events=2), ModelUnavailableError),
    (WrongTypes(events=2), ModelUnavailableError),
    (TruncatedUtf8(events=2), ModelUnavailableError),
]


@ways
@pytest.mark.parametrize(("fault", "expected"), FAILURES, ids=lambda value: str(value)[:40])
def test_a_failure_is_never_a_reply(
    ask: Ask, fault: Fault, expected: type[ModelError], tokenizer: str
) -> None:
    double = TgiDouble(["A reply of several words."], faults={1: fault})
    with serve(double) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer, token_timeout_s=0.4, api_key=SECRET)
        with pytest.raises(ModelError) as caught:
            ask(chat)
        assert type(caught.value) is expected
        assert url in str(caught.value)
        for hidden in (KEY, "several", "<html"):
            assert hidden not in str(caught.value)
        # The slot is free even while the error is held, and the model is as good as new.
        until(lambda: double.in_flight == 0)
        assert ask(chat) == "A reply of several words."
        chat.close()
    assert not double.unused_faults


@pytest.mark.parametrize("fault", [Fail(500), NoAnswer(), CutAfter(3), BadGateway(), Garbage()])
def test_a_failure_without_a_stream_is_never_a_reply(fault: Fault, tokenizer: str) -> None:
    double = TgiDouble(["A reply of several words."] * 2, faults={1: fault})
    with serve(double) as url:
        chat = ChatTGI(
            base_url=url, tokenizer=tokenizer, token_timeout_s=0.4, disable_streaming=True
        )
        with pytest.raises(ModelUnavailableError):
            chat.invoke("Hi")
        assert chat.invoke("Hi").text == "A reply of several words."
        assert asyncio.run(chat.ainvoke("Hi")).text == "A reply of several words."
    assert {request.path for request in double.requests} == {"/generate"}


@ways
@pytest.mark.parametrize("fault", [CommentsOnly(2), Silence(2)])
def test_silence_is_known_by_its_cause(ask: Ask, fault: Fault, tokenizer: str) -> None:
    with serve(TgiDouble(["A reply of several words."], faults={1: fault})) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer, token_timeout_s=0.2)
        with pytest.raises(ModelUnavailableError) as caught:
            ask(chat)
        assert "Timeout" in type(caught.value.__cause__).__name__
        chat.close()


@ways
def test_a_slow_server_is_no_dead_one(ask: Ask, tokenizer: str) -> None:
    double = TgiDouble(["Slow but sure."], faults={1: SlowDrip(pause_s=0.06)})
    with serve(double) as url:
        # All of it takes longer than the limit, and no token does.
        chat = ChatTGI(base_url=url, tokenizer=tokenizer, token_timeout_s=0.5)
        assert ask(chat) == "Slow but sure."
        chat.close()


@ways
def test_a_prompt_too_long_says_so_with_the_figures(ask: Ask, tokenizer: str) -> None:
    with serve(TgiDouble([], max_input_tokens=5, max_total_tokens=2000)) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer)
        with pytest.raises(ContextOverflowError, match="the server takes 5"):
            ask(chat)
        chat.close()


@ways
def test_no_server_at_all_is_unavailable(ask: Ask, tokenizer: str) -> None:
    with serve(TgiDouble([])) as url:
        pass
    with pytest.raises(ModelUnavailableError, match="no server answers there"):
        ask(ChatTGI(base_url=url, tokenizer=tokenizer))


@contextlib.contextmanager
def answering(
    status: int, headers: Mapping[str, str], body: bytes = b""
) -> Iterator[tuple[str, list[Mapping[str, str]]]]:
    """A server with one answer to everything; yields its address and the headers it was sent."""
    received: list[Mapping[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append(dict(self.headers))
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the library's name

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@ways
def test_a_redirect_is_not_followed(ask: Ask, tokenizer: str) -> None:
    double = TgiDouble([])
    with (
        serve(double) as target,
        answering(307, {"location": f"{target}/generate_stream"}) as (url, _),
    ):
        chat = ChatTGI(base_url=url, tokenizer=tokenizer, api_key=SECRET)
        with pytest.raises(ModelRefusedError, match=f"redirects to {target}, which is not"):
            ask(chat)
        chat.close()
    assert double.requests == []


@ways
def test_a_web_page_is_no_reply(ask: Ask, tokenizer: str) -> None:
    page = b"<html>Welcome, sign in</html>"
    with answering(200, {"content-type": "text/html"}, page) as (url, _):
        chat = ChatTGI(base_url=url, tokenizer=tokenizer)
        with pytest.raises(ModelUnavailableError, match="no token stream") as caught:
            ask(chat)
        assert "Welcome" not in str(caught.value)
        chat.close()


@ways
def test_a_connection_that_breaks_after_the_final_event_costs_nothing(
    ask: Ask, tokenizer: str
) -> None:
    event = {
        "token": {"id": 1, "text": "Whole.", "special": False},
        "generated_text": "Whole.",
        "details": {"finish_reason": "length", "generated_tokens": 1, "input_length": 9},
    }
    body = f"data: {json.dumps(event)}\n\n".encode()
    headers = {"content-type": "text/event-stream", "content-length": "9999"}
    with answering(200, headers, body) as (url, _):
        chat = ChatTGI(base_url=url, tokenizer=tokenizer)
        assert ask(chat) == "Whole."
        chat.close()


def test_retry_after_stays_within_reach(tokenizer: str) -> None:
    with (
        serve(TgiDouble(["a"], faults={1: Fail(429, retry_after_s=7)})) as url,
        pytest.raises(ModelOverloadedError) as caught,
    ):
        ChatTGI(base_url=url, tokenizer=tokenizer).invoke("Hi")
    cause: BaseException | None = caught.value
    while cause is not None and not hasattr(cause, "response"):
        cause = cause.__cause__
    assert cause is not None
    assert float(cause.response.headers["retry-after"]) == 7


@ways
def test_retries_are_none_unless_asked_for(ask: Ask, tokenizer: str) -> None:
    double = TgiDouble(["a"], faults={1: Fail(503), 2: Fail(503)})
    with serve(double) as url:
        with pytest.raises(ModelUnavailableError):
            ask(ChatTGI(base_url=url, tokenizer=tokenizer))
        assert ask(ChatTGI(base_url=url, tokenizer=tokenizer, max_retries=1)) == "a"
    assert len(double.requests) == 3


# --- leaving ---


def test_closing_a_stream_frees_the_slot(tokenizer: str) -> None:
    double = TgiDouble(["word " * 500, "Next."], token_s=0.01, max_concurrent_requests=1)
    with serve(double) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer)
        chunks = chat.stream("Hi")
        next(chunks)
        chunks.close()  # type: ignore[attr-defined]
        until(lambda: double.in_flight == 0)
        assert double.cancelled == 1
        assert chat.invoke("Hi").text == "Next."


def test_breaking_out_of_a_stream_frees_the_slot(tokenizer: str) -> None:
    double = TgiDouble(["word " * 500], token_s=0.01)
    with serve(double) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer)
        for _ in chat.stream("Hi"):
            break
        until(lambda: double.cancelled == 1)


async def test_breaking_out_of_an_async_stream_frees_the_slot(tokenizer: str) -> None:
    double = TgiDouble(["word " * 500], token_s=0.01)
    async with serve(double) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer)
        async for _ in chat.astream("Hi"):
            break
        gc.collect()
        while double.cancelled != 1:
            await asyncio.sleep(0.005)
        await chat.aclose()


@pytest.mark.parametrize("is_started", [True, False])
async def test_cancelling_a_task_frees_the_slot(is_started: bool, tokenizer: str) -> None:
    pause = 0.01 if is_started else 60.0
    double = TgiDouble(["word " * 500], first_token_s=pause, token_s=0.01)
    async with serve(double) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer)
        task = asyncio.ensure_future(chat.ainvoke("Hi"))
        while double.in_flight == 0:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while double.cancelled != 1:
            await asyncio.sleep(0.005)
        await chat.aclose()


# --- many at once, and other loops ---


def test_threads_share_one_model(tokenizer: str) -> None:
    double = TgiDouble(lambda prompt: prompt.split("\n")[1].removesuffix("<|im_end|>"))
    with serve(double) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer)
        questions = [f"question {number}" for number in range(24)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda question: chat.invoke(question).text, questions))
        chat.close()
    assert answers == questions


async def test_tasks_share_one_model(tokenizer: str) -> None:
    double = TgiDouble(lambda prompt: prompt.split("\n")[1].removesuffix("<|im_end|>"))
    async with serve(double) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer)
        questions = [f"question {number}" for number in range(24)]
        found = await asyncio.gather(*(chat.ainvoke(question) for question in questions))
        await chat.aclose()
    assert [message.text for message in found] == questions


def test_the_deadline_of_one_stream_does_not_touch_another(tokenizer: str) -> None:
    double = TgiDouble(["a", "b"], faults={1: Silence()})
    with serve(double) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer, token_timeout_s=0.6)
        errors: list[BaseException] = []

        def stall() -> None:
            try:
                chat.invoke("Hi")
            except ModelUnavailableError as error:
                errors.append(error)

        thread = threading.Thread(target=stall)
        thread.start()
        until(lambda: double.in_flight == 1)
        assert chat.invoke("Hi").text in {"a", "b"}
        thread.join()
        chat.close()
    assert len(errors) == 1


def test_a_used_model_can_be_copied_and_sent_to_another_process(tokenizer: str) -> None:
    with serve(TgiDouble(["a", "b", "c", "d"])) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer)
        chat.invoke("Hi")
        copies = [
            copy.deepcopy(chat),
            pickle.loads(pickle.dumps(chat)),
            chat.model_copy(update={"max_tokens": 9}),
        ]
        assert [other.invoke("Hi").text for other in copies] == ["b", "c", "d"]
        for other in copies:
            other.close()


# --- the key ---


def test_the_key_is_sent_and_shown_nowhere(
    tokenizer: str, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = b'{"error": "no", "error_type": "validation"}'
    with answering(422, {"content-type": "application/json"}, refusal) as (url, received):
        chat = ChatTGI(base_url=url, tokenizer=tokenizer, api_key=SECRET)
        unprepared = ChatTGI(base_url=url, api_key=SECRET)
        with caplog.at_level(logging.DEBUG):
            for model in (chat, unprepared):
                with pytest.raises(ModelRefusedError) as caught:
                    model.invoke("Hi")
                model.close()
    assert [headers["Authorization"] for headers in received] == [f"Bearer {KEY}"] * 2
    shown: list[Any] = [repr(chat), str(chat), dumps(chat), chat.asdict(), chat.model_dump()]
    assert "api_key" not in chat.model_dump()
    shown += [chat._identifying_params, chat._get_ls_params(), chat.model_dump_json()]
    shown += [repr(caught.value), repr(caught.value.__cause__), caplog.text]
    assert KEY not in " ".join(map(str, shown))


@ways
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_certificate_that_nobody_vouches_for_is_refused(
    ask: Ask, tokenizer: str, tmp_path: Path
) -> None:
    file = tmp_path / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    command += " -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout key -out file"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    file.write_text((tmp_path / "key").read_text() + (tmp_path / "file").read_text())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    received: list[bytes] = []

    def accept(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            received.append(context.wrap_socket(connection, server_side=True).recv(1))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener,))
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        chat = ChatTGI(base_url=url, tokenizer=tokenizer, api_key=SECRET)
        with pytest.raises(ModelUnavailableError):
            ask(chat)
        thread.join()
        chat.close()
    assert received == []


# --- from where the package calls it ---


QUESTION: list[Message] = [{"role": "user", "content": "Hi"}]


def connected(chat: ChatTGI) -> ConnectedModel:
    return ConnectedModel(
        chat=chat,
        window=8192,
        count_tokens=chat.get_num_tokens,
        special_tokens=(),
        engine="tgi",
        concurrency=4,
        model_name="double",
    )


@pytest.mark.parametrize("fault", [CommentsOnly(), NoAnswer()])
@pytest.mark.parametrize("is_async", [False, True])
def test_silence_counts_as_overload(fault: Fault, is_async: bool, tokenizer: str) -> None:
    with serve(TgiDouble(["a"], faults={1: fault})) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer, token_timeout_s=0.2)
        model = connected(chat)

        def asked() -> object:
            if is_async:
                return asyncio.run(aask(model, QUESTION, max_tokens=9))
            return ask(model, QUESTION, max_tokens=9)

        with pytest.raises(ModelUnavailableError):
            asked()
        chat.close()
        assert limiter_for(url).limit == 2


def test_the_package_passes_its_settings_and_knows_the_errors(tokenizer: str) -> None:
    double = TgiDouble(['{"a": 1}', "b"], faults={2: Fail(503)})
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    with serve(double) as url:
        chat = ChatTGI(base_url=url, tokenizer=tokenizer)
        model = connected(chat)
        reply = ask(
            model,
            QUESTION,
            max_tokens=20,
            temperature=0.5,
            top_p=0.9,
            seed=3,
            stop=["END"],
            response_schema=schema,
        )
        with pytest.raises(ModelUnavailableError) as caught:
            ask(model, QUESTION, max_tokens=20)
    assert is_retryable(caught.value)
    assert reply.text == '{"a": 1}'
    assert not reply.is_truncated
    assert double.requests[0].body["parameters"] == {
        "do_sample": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "max_new_tokens": 20,
        "grammar": {"type": "json", "value": schema},
        "details": True,
    }
