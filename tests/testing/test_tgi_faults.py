"""Each fault of the double, as a plain HTTP client sees it."""

from __future__ import annotations

import time

import httpx
import pytest

from qwenlong_graph.testing.tgi import (
    BadGateway,
    CloseAfter,
    CommentsOnly,
    CutAfter,
    ErrorEvent,
    Fail,
    Garbage,
    NoAnswer,
    NoFinalEvent,
    NotHttp,
    Restart,
    Silence,
    SlowDrip,
    TgiDouble,
    TruncatedUtf8,
    WrongTypes,
    serve,
)
from tests.testing.tgi_client import USER, chat, events, generate, generate_stream

pytestmark = pytest.mark.contract

REPLY = "One two three four."
WHOLE = {"generate": generate, "stream": generate_stream, "chat": chat}
IMPATIENT_S = 0.2


def faulty(fault, **options):
    """A double with the fault on its first request; the same reply is there for the second."""
    return TgiDouble([REPLY], faults={1: fault}, **options)


def said(found):
    return "".join(event["token"]["text"] for event in found)


def hangs(url, path="/generate_stream"):
    """What comes of an answer within a moment, and that it does not end."""
    body = {"inputs": "a", "messages": USER}
    pieces = []
    with (
        httpx.Client(timeout=IMPATIENT_S) as client,
        pytest.raises(httpx.ReadTimeout),
        client.stream("POST", url + path, json=body) as response,
    ):
        pieces.extend(response.iter_bytes())  # extends piece by piece until the time is up
    return b"".join(pieces)


class TestInPlaceOfAnAnswer:
    @pytest.mark.parametrize("ask", WHOLE.values(), ids=WHOLE)
    @pytest.mark.parametrize(
        ("status", "error_type"),
        [
            (500, "incomplete_generation"),
            (503, "healthcheck"),
            (429, "overloaded"),
            (424, "generation"),
            (422, "validation"),
        ],
    )
    def test_a_status_has_tgis_error_for_it(self, ask, status, error_type):
        double = faulty(Fail(status))
        with serve(double) as url:
            failed = ask(url)
            assert ask(url).is_success
        assert failed.status_code == status
        assert failed.json()["error_type"] == error_type
        assert "retry-after" not in failed.headers
        assert double.unused_faults == {}

    def test_a_range_of_requests_fails_and_then_all_is_well(self):
        double = TgiDouble([REPLY], faults={range(1, 7): Fail(503)})
        with serve(double) as url:
            answers = [generate(url).status_code for _ in range(7)]
        assert answers == [503] * 6 + [200]
        assert [request.number for request in double.requests] == list(range(1, 8))

    def test_an_overloaded_server_may_say_when_to_come_back(self):
        with serve(faulty(Fail(429, retry_after_s=1.5))) as url:
            failed = generate_stream(url)
        assert failed.headers["retry-after"] == "1.5"
        assert failed.json() == {"error": "Model is overloaded", "error_type": "overloaded"}

    def test_a_status_may_carry_another_type(self):
        with serve(faulty(Fail(500, "overloaded"))) as url:
            assert generate(url).json()["error_type"] == "overloaded"

    def test_a_proxy_shows_its_page(self):
        with serve(faulty(BadGateway())) as url:
            failed = chat(url)
        assert failed.status_code == 502
        assert failed.headers["content-type"] == "text/html"
        assert "<html>" in failed.text

    @pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/v1/chat/completions"])
    def test_no_answer_ever_comes(self, path):
        double = faulty(NoAnswer())
        with serve(double) as url:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url + path, json={"inputs": "a", "messages": USER}, timeout=IMPATIENT_S)
            double.wait_idle()
        assert double.cancelled == 1

    def test_what_comes_is_no_http(self):
        double = faulty(NotHttp())
        with serve(double) as url:
            with pytest.raises(httpx.RemoteProtocolError):
                generate(url)
            assert generate(url).is_success
        assert (double.cancelled, double.answered) == (0, 1)


class TestWithinAStream:
    def test_it_closes_early_at_each_place(self):
        double = TgiDouble(
            lambda _: REPLY, faults={place + 1: CloseAfter(place) for place in range(20)}
        )
        with serve(double) as url:
            found = [events(generate_stream(url)) for _ in range(20)]
            whole = events(generate_stream(url))
        last = len(whole) - 1
        assert [len(each) for each in found] == [min(place, last) for place in range(20)]
        assert all(each == whole[: len(each)] for each in found)
        assert whole[-1]["generated_text"] == REPLY

    def test_it_is_cut(self, caplog):
        double = faulty(CutAfter(2))
        with serve(double) as url, httpx.Client() as client:
            pieces = []
            with (
                pytest.raises(httpx.RemoteProtocolError),
                client.stream("POST", f"{url}/generate_stream", json={"inputs": "a"}) as response,
            ):
                pieces.extend(response.iter_lines())
            assert sum(line.startswith("data: ") for line in pieces) == 2
            # What its client did not get, the next one gets.
            assert events(generate_stream(url))[-1]["generated_text"] == REPLY
        assert double.cancelled == 0
        assert double.in_flight_max == 1
        # The server under the double takes it for a client that left.
        assert [record.message for record in caplog.records if record.name == "uvicorn.error"] == []

    def test_it_lacks_its_final_event(self):
        double = TgiDouble(lambda _: REPLY, faults={range(1, 3): NoFinalEvent()})
        with serve(double) as url:
            generated, chatted = generate_stream(url), chat(url, stream=True)
        assert said(events(generated)) == REPLY
        assert all(event["details"] is None for event in events(generated))
        pieces = [event["choices"][0] for event in events(chatted)]
        assert "".join(piece["delta"]["content"] for piece in pieces) == REPLY
        assert {piece["finish_reason"] for piece in pieces} == {None}

    def test_it_falls_silent(self):
        double = faulty(Silence(2), keep_alive_s=0.01)
        with serve(double) as url:
            assert hangs(url).count(b"data: ") == 2
            double.wait_idle()
        assert double.cancelled == 1

    def test_nothing_but_comments_comes(self):
        with serve(faulty(CommentsOnly(1, every_s=0.02))) as url, httpx.Client() as client:
            body = {"inputs": "a"}
            with client.stream("POST", f"{url}/generate_stream", json=body, timeout=1) as response:
                lines = response.iter_lines()
                first = [next(lines) for _ in range(2)]
                comments = [next(lines) for _ in range(20)]
        assert first[0].startswith("data: ")
        assert set(comments) == {":", ""}

    def test_an_error_comes_inside_it(self):
        double = TgiDouble(
            [REPLY], faults={1: ErrorEvent("overloaded"), 2: ErrorEvent("generation", events=3)}
        )
        with serve(double) as url:
            (overloaded,) = events(generate_stream(url))
            *chunks, error, done = events(chat(url, stream=True))
        assert overloaded == {"error": "Model is overloaded", "error_type": "overloaded"}
        assert len(chunks) == 3
        assert error["error"]["http_status_code"] == 422
        assert error["error"]["message"].startswith("Request failed during generation")
        assert done == "[DONE]"

    def test_garbage_comes(self):
        with serve(faulty(Garbage(1))) as url:
            content = generate_stream(url).content
        assert content.count(b"data: ") == 1
        with pytest.raises(UnicodeDecodeError):
            content.decode()

    def test_the_types_are_wrong(self):
        with serve(faulty(WrongTypes(1))) as url:
            right, wrong = events(generate_stream(url))
        assert right["token"]["text"]
        assert (wrong["index"], wrong["token"]) == ("one", ["id", 5])

    def test_it_ends_within_a_character(self):
        with serve(faulty(TruncatedUtf8(1))) as url:
            content = generate_stream(url).content
        with pytest.raises(UnicodeDecodeError, match="unexpected end of data"):
            content.decode()

    @pytest.mark.parametrize("size", [None, 7])
    def test_it_drips(self, size):
        double = faulty(SlowDrip(0.001, size=size))
        with serve(double) as url:
            assert events(generate_stream(url))[-1]["generated_text"] == REPLY
        # It was delivered, so it is not there for a second request.
        assert double.unused_faults == {}


class TestWithoutAStream:
    def test_half_of_it_comes_in_good_order(self):
        with serve(faulty(CloseAfter(3))) as url:
            cut, whole = generate(url), generate(url)
        assert cut.is_success
        assert whole.content.startswith(cut.content)
        with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
            cut.json()

    def test_half_of_it_comes_and_the_connection_breaks(self):
        with serve(faulty(CutAfter(3))) as url:
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                generate(url)
            assert generate(url).json()["generated_text"] == REPLY

    @pytest.mark.parametrize("fault", [Silence(3), CommentsOnly(3)])
    def test_half_of_it_comes_and_then_nothing(self, fault):
        with serve(faulty(fault)) as url:
            assert hangs(url, "/generate").startswith(b'{"generated_text"')

    def test_the_final_event_has_its_own_status(self):
        with serve(faulty(NoFinalEvent())) as url:
            failed = chat(url)
        assert failed.status_code == 500
        assert failed.json()["error_type"] == "incomplete_generation"

    @pytest.mark.parametrize(
        ("error_type", "status"), [("generation", 424), ("overloaded", 429), ("validation", 422)]
    )
    def test_an_error_has_its_status(self, error_type, status):
        with serve(faulty(ErrorEvent(error_type))) as url:
            failed = generate(url)
        assert (failed.status_code, failed.json()["error_type"]) == (status, error_type)

    def test_what_comes_is_no_answer(self):
        double = TgiDouble(
            [REPLY], faults={1: Garbage(), 2: TruncatedUtf8(), 3: WrongTypes(), 4: SlowDrip(0.001)}
        )
        with serve(double) as url:
            garbage, cut, wrong, slow = (generate(url) for _ in range(4))
        for broken in (garbage, cut):
            with pytest.raises(UnicodeDecodeError):
                broken.content.decode()
        assert wrong.json()["generated_text"] == 42
        assert slow.json()["generated_text"] == REPLY


class TestARestart:
    def test_refuses_then_loads_then_is_well(self, caplog):
        double = TgiDouble([REPLY], faults={1: Restart(refuse_s=0.3, load_s=0.3, events=1)})
        with serve(double) as url, httpx.Client(base_url=url) as client:
            kept_alive = client.get("/health")
            with pytest.raises(httpx.RemoteProtocolError):
                generate_stream(url)
            with pytest.raises(httpx.ConnectError):
                client.get("/health")
            states = []
            while states[-1:] != ["well"]:
                try:
                    answer = client.get("/health")
                except httpx.ConnectError:
                    state = "refused"
                else:
                    state = "well" if answer.is_success else answer.json()["error_type"]
                if states[-1:] != [state]:
                    states.append(state)
                time.sleep(0.01)
            assert events(generate_stream(url))[-1]["generated_text"] == REPLY
        assert kept_alive.is_success
        assert [record.message for record in caplog.records if record.name == "uvicorn.error"] == []
        assert states == ["refused", "healthcheck", "well"]
        # A request that finds no server is none of the double's.
        assert [request.number for request in double.requests] == [1, 2]
        assert double.turned_away >= 1
        assert (double.answered, double.cancelled, double.in_flight) == (1, 0, 0)

    def test_takes_other_open_requests_with_it(self):
        double = TgiDouble(
            lambda _: REPLY, faults={1: Silence(1), 2: Restart(refuse_s=0.05, events=0)}
        )
        with serve(double) as url, httpx.Client(base_url=url) as client:
            body = {"inputs": "a"}
            with client.stream("POST", "/generate_stream", json=body) as open_one:
                pieces = open_one.iter_bytes()
                next(pieces)
                with pytest.raises(httpx.RemoteProtocolError):
                    generate_stream(url)
                with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                    list(pieces)
            double.wait_idle()
        assert double.cancelled == 0

    def test_does_not_hold_up_the_end_of_the_block(self):
        double = faulty(Restart(refuse_s=3600))
        with serve(double) as url, pytest.raises(httpx.RemoteProtocolError):
            generate_stream(url)
        # Here the block has ended.
        assert double.unused_faults == {}


def test_a_fault_that_no_request_met_is_told():
    double = TgiDouble([REPLY], faults={1: Fail(500), 9: CutAfter(1), range(5, 7): Fail(503)})
    with serve(double) as url:
        generate(url)
    assert double.unused_faults == {9: CutAfter(1), range(5, 7): Fail(503)}
