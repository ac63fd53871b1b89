"""The double on its port: both kinds of `with`, counters, queue, pace."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading

import httpx
import pytest

from qwenlong_graph.testing.tgi import CutAfter, SlowDrip, TgiDouble, serve
from qwenlong_graph.testing.tgi.connection import Connection
from tests.testing.tgi_client import USER, chat, events, generate, generate_stream, post

pytestmark = pytest.mark.contract


def test_the_address_is_loopback_and_is_gone_with_the_block():
    with serve(TgiDouble([])) as url:
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{url}/health").is_success
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_answers_are_sent_at_once():
    # Otherwise each waits 40 ms on a kept connection; the option is told, not the time.
    with serve(TgiDouble([])) as url, httpx.Client() as client:
        stream = client.get(f"{url}/info").extensions["network_stream"]
        address = stream.get_extra_info("client_addr")
        (served,) = [found for found in gc.get_objects() if _is_connected_to(found, address)]
        assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def _is_connected_to(found, address):
    try:
        return type(found) is socket.socket and found.getpeername() == address
    except OSError:
        return False


async def test_it_serves_the_event_loop_it_is_used_from():
    double = TgiDouble(str.upper)
    async with serve(double) as url, httpx.AsyncClient(base_url=url) as client:
        answers = await asyncio.gather(
            *(client.post("/generate", json={"inputs": f"call {n}"}) for n in range(20))
        )
    said = [answer.json()["generated_text"] for answer in answers]
    assert said == [f"CALL {n}" for n in range(20)]


def test_several_doubles_live_side_by_side_and_one_may_be_served_again():
    first, second = TgiDouble(["One.", "Three."]), TgiDouble(["Two."])
    with serve(first) as one, serve(second) as two:
        assert generate(one).json()["generated_text"] == "One."
        assert generate(two).json()["generated_text"] == "Two."
    with serve(first) as one:
        assert generate(one).json()["generated_text"] == "Three."
    assert [request.number for request in first.requests] == [1, 2]


def test_requests_are_kept_as_they_came():
    double = TgiDouble(lambda _: "Yes.")
    with serve(double) as url:
        generate(url, "First?", seed=7)
        post(url, "/v1/chat/completions", {"messages": USER, "model": "tgi"})
        post(url, "/generate", {"inputs": 5})
        post(url, "/tokenize", {"inputs": "not counted"})
    first, second, third = double.requests
    assert (first.number, first.path, first.prompt) == (1, "/generate", "First?")
    assert first.body["parameters"]["seed"] == 7
    assert second.prompt.startswith("<|im_start|>user\nSay something.")
    assert (third.prompt, third.body) == ("", {})
    assert double.prompts == [first.prompt, second.prompt, ""]
    assert (double.answered, double.in_flight, double.in_flight_max) == (3, 0, 1)


async def test_open_requests_are_counted_and_the_batch_waits_in_line():
    double = TgiDouble(str.upper, batch_size=2, token_s=0.001)
    async with serve(double) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        answers = await asyncio.gather(
            *(client.post("/generate", json={"inputs": f"call {n}"}) for n in range(6))
        )
    assert all(answer.is_success for answer in answers)
    assert double.in_flight_max == 6
    assert (double.in_flight, double.answered, double.refused) == (0, 6, 0)


async def test_a_client_that_waits_for_each_end_is_never_counted_twice():
    double = TgiDouble(lambda _: "A few words.")
    async with serve(double) as url, httpx.AsyncClient(base_url=url) as client:
        for _ in range(40):
            async with client.stream("POST", "/generate_stream", json={"inputs": "a"}) as response:
                async for line in response.aiter_lines():
                    if '"generated_text":"' in line:
                        break
    assert double.in_flight_max == 1
    assert (double.answered, double.cancelled) == (40, 0)


async def test_who_has_read_the_end_may_ask_again_at_once():
    double = TgiDouble(lambda _: "Yes.", max_concurrent_requests=1, token_s=0.05)
    body = {"inputs": "a"}
    async with (
        serve(double) as url,
        httpx.AsyncClient(base_url=url) as client,
        client.stream("POST", "/generate_stream", json=body) as response,
    ):
        async for line in response.aiter_lines():
            if '"generated_text":"' in line:
                break
        assert (await client.post("/generate", json=body)).is_success
    assert (double.answered, double.refused) == (2, 0)


def test_one_that_leaves_early_is_counted_and_its_reply_is_spent():
    double = TgiDouble([" the" * 3000, "Second."], token_s=0.001)
    with serve(double) as url, httpx.Client(base_url=url) as client:
        with client.stream("POST", "/generate_stream", json={"inputs": "a"}) as response:
            lines = response.iter_lines()  # held: a dropped iterator closes the connection
            next(lines)
        double.wait_idle()
        assert generate(url).json()["generated_text"] == "Second."
    assert (double.cancelled, double.answered) == (1, 1)


def test_each_answer_counts_once():
    double = TgiDouble(lambda _: "Yes.", faults={3: SlowDrip(0.0), 4: SlowDrip(0.0)})
    with serve(double) as url:
        for number in range(1, 6):
            usage = {"include_usage": True}
            chat(url, stream=bool(number % 2), stream_options=usage)
            assert double.answered == number
    assert double.in_flight == 0


def test_waiting_for_an_idle_double_has_an_end():
    double = TgiDouble(lambda _: "Late.", first_token_s=3600)
    with serve(double) as url, httpx.Client(base_url=url) as client:
        with (
            client.stream("POST", "/generate_stream", json={"inputs": "a"}),
            pytest.raises(TimeoutError, match="1 requests are still open"),
        ):
            double.wait_idle(timeout_s=0.01)
        double.wait_idle()


def test_an_idle_stream_is_kept_alive_by_comments():
    double = TgiDouble(["Late."], first_token_s=0.2, keep_alive_s=0.02)
    with serve(double) as url:
        response = generate_stream(url)
    assert response.text.startswith(":\n\n:\n\n")
    assert events(response)[-1]["generated_text"] == "Late."


def test_a_fault_below_http_needs_serve():
    connection = Connection({"type": "http"}, _sends_nothing)
    with pytest.raises(RuntimeError, match="run the double by `serve`"):
        connection.abort()


async def _sends_nothing(message):
    raise AssertionError(message)


def test_a_mistake_of_the_double_breaks_the_stream_and_fails_the_block():
    double = TgiDouble([5])
    serving = serve(double)
    url = serving.__enter__()
    with pytest.raises(httpx.RemoteProtocolError):
        generate_stream(url)
    with pytest.raises(TypeError, match="reply of type int"):
        serving.__exit__(None, None, None)


def test_threads_that_ask_at_once_each_get_a_reply():
    double = TgiDouble([str(n) for n in range(16)], faults={3: CutAfter(0)})
    found = []

    def ask():
        while True:
            try:
                found.append(generate(url).json()["generated_text"])
            except httpx.HTTPError:
                continue
            return

    with serve(double) as url:
        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found, key=int) == [str(n) for n in range(16)]
    assert len(double.requests) == 17
