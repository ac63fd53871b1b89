from __future__ import annotations

import asyncio
import itertools
import json
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_graph.errors import (
    ContextOverflowError,
    ModelError,
    ModelOverloadedError,
    ModelRefusedError,
    ModelUnavailableError,
    SettingsError,
)
from qwenlong_graph.models.tgi_wire import (
    Connections,
    TokenReader,
    checked_address,
    events_of_reply,
    redirect_error,
    server_error,
)

ADDRESS = "http://127.0.0.1:8080"


def event(text: str, *, special: bool = False, final: dict[str, Any] | None = None) -> bytes:
    body: dict[str, Any] = {
        "index": 1,
        "token": {"id": 1, "text": text, "logprob": -0.5, "special": special},
        "generated_text": None if final is None else "whole text",
        "details": final,
    }
    return b"data:" + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


ENDING = {"finish_reason": "eos_token", "generated_tokens": 3, "input_length": 9, "seed": 7}
STREAM = (
    event("Grüße") + b":\n\n" + event(" 世界") + event("<|im_end|>", special=True, final=ENDING)
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_a_stream_reads_the_same_however_it_is_cut(places: list[int]) -> None:
    borders = [0, *sorted(places), len(STREAM)]
    reader = TokenReader(ADDRESS)
    events = [
        found
        for start, end in itertools.pairwise(borders)
        for found in reader.feed(STREAM[start:end])
    ]
    reader.close()
    assert [found.text for found in events] == ["Grüße", " 世界", ""]
    assert [found.final for found in events[:2]] == [None, None]
    assert events[2].final == ("eos_token", 3, 9)


def test_lines_may_end_as_on_windows() -> None:
    reader = TokenReader(ADDRESS)
    texts = [found.text for found in reader.feed(STREAM.replace(b"\n", b"\r\n"))]
    assert texts == ["Grüße", " 世界", ""]
    assert reader.is_complete


def test_comments_and_other_fields_are_no_tokens() -> None:
    reader = TokenReader(ADDRESS)
    assert reader.feed(b": keep alive\n\nevent: x\nid: 3\nretry: 5\n\n") == []


def test_a_stream_without_its_final_event_is_refused() -> None:
    reader = TokenReader(ADDRESS)
    reader.feed(event("Half"))
    with pytest.raises(ModelUnavailableError, match="without its final event"):
        reader.close()


@pytest.mark.parametrize(
    "line",
    [
        b"data: {broken",
        b"data: [1]",
        b"data: 7",
        b"data: null",
        b"data: {}",
        b'data: {"token": {"text": 5}}',
        b'data: {"token": "text"}',
        b"data: \xff\xfe",
        b"data: [DONE]",
    ],
)
def test_an_event_that_is_no_token_is_refused(line: bytes) -> None:
    with pytest.raises(ModelUnavailableError, match="an event that is no token"):
        TokenReader(ADDRESS).feed(line + b"\n\n")


@pytest.mark.parametrize(
    ("error_type", "expected", "cause"),
    [
        ("overloaded", ModelOverloadedError, "OverloadedError"),
        ("generation", ModelUnavailableError, "GenerationError"),
        ("incomplete_generation", ModelUnavailableError, "IncompleteGenerationError"),
        ("validation", ModelRefusedError, "ValidationError"),
        ("something new", ModelUnavailableError, "UnknownError"),
    ],
)
def test_an_error_in_the_stream_is_told_by_its_type(
    error_type: str, expected: type[ModelError], cause: str
) -> None:
    tgi_errors = pytest.importorskip("text_generation.errors")
    line = json.dumps({"error": "the secret prompt", "error_type": error_type}).encode()
    with pytest.raises(ModelError) as caught:
        TokenReader(ADDRESS).feed(b"data: " + line + b"\n\n")
    assert type(caught.value) is expected
    assert type(caught.value.__cause__) is getattr(tgi_errors, cause)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "payload", "expected"),
    [
        (429, {"error": "x", "error_type": "overloaded"}, ModelOverloadedError),
        (429, None, ModelOverloadedError),
        (424, {"error": "x", "error_type": "generation"}, ModelUnavailableError),
        (422, {"error": "x", "error_type": "validation"}, ModelRefusedError),
        (422, "plain text", ModelRefusedError),
        (400, None, ModelRefusedError),
        (401, None, ModelRefusedError),
        (404, {"error": "No fast tokenizer available"}, ModelRefusedError),
        (408, None, ModelUnavailableError),
        (500, {"error": "x", "error_type": "incomplete_generation"}, ModelUnavailableError),
        (502, None, ModelUnavailableError),
        (503, {"error": "unhealthy", "error_type": "healthcheck"}, ModelUnavailableError),
    ],
)
def test_a_status_becomes_the_error_that_says_what_to_do(
    status: int, payload: object, expected: type[ModelError]
) -> None:
    error = server_error(ADDRESS, status, payload)
    assert type(error) is expected
    assert f"HTTP {status}" in str(error)


def test_an_overflow_names_the_figures_and_not_the_words() -> None:
    words = (
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8192. "
        "Given: 9000 `inputs` tokens and 100 `max_new_tokens`"
    )
    error = server_error(ADDRESS, 422, {"error": words, "error_type": "validation"})
    assert type(error) is ContextOverflowError
    for figure in ("9,000", "100", "8,192"):
        assert figure in str(error)
    short = "Input validation error: `inputs` must have less than 7168 tokens. Given: 7500"
    error = server_error(ADDRESS, 422, {"error": short, "error_type": "validation"})
    assert type(error) is ContextOverflowError
    assert "has 7,500 tokens, and the server takes 7,168" in str(error)


def test_a_redirect_is_named_without_its_path_or_password() -> None:
    error = redirect_error(ADDRESS, "https://user:word@evil.example/login?next=secret")
    assert "https://evil.example" in str(error)
    for hidden in ("user", "word", "login", "secret"):
        assert hidden not in str(error)
    assert "another address" in str(redirect_error(ADDRESS, None))


@pytest.mark.parametrize(
    ("given_address", "expected"),
    [
        ("http://host:8080", "http://host:8080"),
        ("http://host:8080/", "http://host:8080"),
        ("https://host/v1/", "https://host"),
        ("https://host/models/tgi", "https://host/models/tgi"),
    ],
)
def test_an_address_is_brought_into_one_form(given_address: str, expected: str) -> None:
    assert checked_address(given_address) == expected


@pytest.mark.parametrize(
    "address", ["host:8080", "ftp://host", "http://", "http://host/?a=1", "http://u:p@host", "::"]
)
def test_what_is_no_servers_address_is_refused(address: str) -> None:
    with pytest.raises(SettingsError) as caught:
        checked_address(address)
    assert "u:p" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://user:hunter@host",
        "http://user:hunter@host:port",
        "http://user:hunter@[::1",
        "http://user:hunter/x@host",
        "http://user:hunter#x@host",
        "http://user:hunter@host\x00",
        "http:user:hunter@host",
        "//user:hunter@host",
        "user:hunter@host:8080",
        "ftp://user:hunter@host/?a",
    ],
)
def test_an_error_shows_no_user_name_and_no_password(address: str) -> None:
    with pytest.raises(SettingsError, match="api_key") as caught:
        checked_address(address)
    shown = "".join(traceback.format_exception_only(caught.value))
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    for hidden in ("user:", "hunter"):
        assert hidden not in shown


def test_an_at_sign_in_a_path_is_no_user_name() -> None:
    assert checked_address("http://host/models/@main/") == "http://host/models/@main"


def test_a_whole_reply_gives_the_tokens_of_a_stream() -> None:
    tokens = [{"text": "<think>"}, {"text": "a"}, {"text": "<|im_end|>", "special": True}]
    body = {"generated_text": "<think>a", "details": {**ENDING, "tokens": tokens}}
    events = events_of_reply(ADDRESS, body, "12")
    assert [found.text for found in events] == ["<think>", "a", "", ""]
    assert events[-1].final == ("eos_token", 3, 12)


def test_a_whole_reply_without_tokens_still_gives_its_text() -> None:
    events = events_of_reply(ADDRESS, {"generated_text": "abc", "details": None}, None)
    assert [found.text for found in events] == ["abc"]
    assert events[0].final == (None, None, None)


@pytest.mark.parametrize("body", [None, [], {}, {"generated_text": 5}, {"generated_text": None}])
def test_a_body_that_is_no_reply_is_refused(body: object) -> None:
    with pytest.raises(ModelUnavailableError, match="no generation"):
        events_of_reply(ADDRESS, body, None)


def test_each_event_loop_has_a_client_that_ends_with_it() -> None:
    connections = Connections()
    clients = []

    async def ask() -> None:
        clients.append(await connections.client_of_loop())
        clients.append(await connections.client_of_loop())

    asyncio.run(ask())
    asyncio.run(ask())
    first, again, second, _ = clients
    assert first is again
    assert first is not second
    assert first.is_closed
    assert second.is_closed


def test_threads_share_a_client_until_it_is_closed() -> None:
    connections = Connections()
    client = connections.client()
    assert connections.client() is client
    connections.close()
    assert client.is_closed
    assert connections.client() is not client
    connections.close()
