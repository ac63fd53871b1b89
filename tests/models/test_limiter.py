"""One limiter per server: its arithmetic, its line, and the wait for a server that restarts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from qwenlong_graph.errors import ModelUnavailableError, SettingsError
from qwenlong_graph.models.limiter import (
    BURST_S,
    DEFAULT_LIMIT,
    RETRY_AFTER_MAX_S,
    Admission,
    Limiter,
    Waiting,
    await_until_healthy,
    limiter_for,
    retry_after_s,
    server_of,
    wait_until_healthy,
)
from qwenlong_graph.models.tgi import ChatTGI
from qwenlong_graph.testing.scripted import ScriptedChatModel
from qwenlong_graph.testing.tgi import Restart, TgiDouble, serve
from tests.models.stub_server import Answer, stub_server

# --- the arithmetic and the line ---


def full(ceiling: int, *, waiting: int = 0) -> Admission[int]:
    admission: Admission[int] = Admission(ceiling)
    for number in range(ceiling + waiting):
        admission.join(number)
    assert admission.admit(0.0) == list(range(ceiling))
    return admission


def test_no_more_are_admitted_than_the_limit() -> None:
    admission = full(3, waiting=2)
    assert admission.admit(0.0) == []
    assert (admission.in_flight, admission.waiting) == (3, 2)


def test_who_came_first_is_admitted_first() -> None:
    admission = full(1, waiting=3)
    order = []
    for _ in range(3):
        admission.release()
        order += admission.admit(0.0)
    assert order == [1, 2, 3]


def test_an_overload_halves_the_limit_and_keeps_at_least_one() -> None:
    admission: Admission[int] = Admission(8)
    found = []
    for second in range(5):
        admission.overloaded(second * BURST_S)
        found.append(int(admission.limit))
    assert found == [4, 2, 1, 1, 1]


def test_refusals_that_come_together_lower_the_limit_once() -> None:
    admission: Admission[int] = Admission(8)
    for number in range(8):
        admission.overloaded(100 + number * BURST_S / 10)
    assert admission.limit == 4


def test_the_limit_rises_by_one_for_about_as_many_successes_as_go_at_once() -> None:
    admission: Admission[int] = Admission(8)
    admission.overloaded(0.0)
    needed = 0
    while admission.limit < 5 and needed < 100:
        admission.succeeded()
        needed += 1
    assert needed in {4, 5}


def test_the_limit_never_rises_above_the_ceiling() -> None:
    admission: Admission[int] = Admission(2)
    admission.overloaded(0.0)
    for _ in range(50):
        admission.succeeded()
    assert admission.limit == 2


def test_after_a_lowering_nobody_is_admitted_until_enough_have_left() -> None:
    admission = full(4, waiting=1)
    admission.overloaded(0.0)
    admission.release()
    admission.release()
    assert admission.admit(0.0) == []
    admission.release()
    assert admission.admit(0.0) == [4]


def test_nobody_is_admitted_before_the_time_that_the_server_asked_for() -> None:
    admission: Admission[int] = Admission(2)
    admission.overloaded(10.0, 5.0)
    admission.join(1)
    assert admission.admit(14.9) == []
    assert admission.admit(15.0) == [1]


def test_a_shorter_wait_asked_for_later_does_not_cut_a_longer_one() -> None:
    admission: Admission[int] = Admission(2)
    admission.overloaded(10.0, 60.0)
    admission.overloaded(11.0, 1.0)
    assert admission.paused_until == 70.0


def test_an_absurd_wait_is_bounded() -> None:
    admission: Admission[int] = Admission(2)
    admission.overloaded(0.0, 1e12)
    assert admission.paused_until == RETRY_AFTER_MAX_S


def test_giving_up_in_line_frees_nothing_and_after_admission_one_place() -> None:
    admission = full(1, waiting=2)
    admission.leave(1)
    assert admission.admit(0.0) == []
    admission.leave(0)
    assert admission.admit(0.0) == [2]


def test_another_ceiling_moves_an_undisturbed_limit_and_caps_a_lowered_one() -> None:
    undisturbed: Admission[int] = Admission(4)
    undisturbed.set_ceiling(8)
    assert undisturbed.limit == 8
    lowered: Admission[int] = Admission(16)
    lowered.overloaded(0.0)
    lowered.set_ceiling(32)
    assert lowered.limit == 8
    lowered.set_ceiling(2)
    assert lowered.limit == 2


@given(
    ceiling=st.integers(1, 6),
    acts=st.lists(
        st.sampled_from(["join", "leave first", "over", "good", "bad", "later"]), max_size=120
    ),
)
def test_whatever_happens_the_line_is_first_in_first_out_and_the_limit_holds(
    ceiling: int, acts: list[str]
) -> None:
    admission: Admission[int] = Admission(ceiling)
    line: deque[int] = deque()
    inside: deque[int] = deque()
    now, number = 0.0, 0
    for act in acts:
        if act == "join":
            number += 1
            admission.join(number)
            line.append(number)
        elif act == "leave first" and line:
            admission.leave(line.popleft())
        elif act == "over" and inside:
            inside.popleft()
            admission.release()
        elif act == "good":
            admission.succeeded()
        elif act == "bad":
            admission.overloaded(now, 0.5)
        elif act == "later":
            now += 0.4
        admitted = admission.admit(now)
        assert admitted == [line.popleft() for _ in admitted]
        inside.extend(admitted)
        assert admission.in_flight == len(inside)
        assert 1 <= admission.limit <= ceiling
        if admitted:
            assert len(inside) <= int(admission.limit)
            assert now >= admission.paused_until
        elif line and now >= admission.paused_until:
            assert len(inside) >= int(admission.limit)


# --- one server's limiter ---


def test_readings_of_one_server_share_one_limiter_however_they_spell_it() -> None:
    first = limiter_for("http://Shared.example:8080/v1/", limit=3)
    assert limiter_for("http://shared.example:8080") is first
    assert limiter_for("http://shared.example:8081") is not first
    assert limiter_for("https://shared.example/v1") is limiter_for("https://shared.example:443")
    assert first.limit == 3


def test_a_server_that_tells_nothing_gets_the_stated_default() -> None:
    assert limiter_for("http://silent.example:8080").limit == DEFAULT_LIMIT


def test_the_limit_given_last_counts_and_none_leaves_it() -> None:
    limiter = limiter_for("http://again.example:8080", limit=2)
    limiter_for("http://again.example:8080", limit=6)
    limiter_for("http://again.example:8080")
    assert limiter.limit == 6


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(SettingsError, match="1 or more"):
        limiter_for("http://nought.example:8080", limit=0)


def test_threads_hold_no_more_slots_than_the_limit() -> None:
    limiter = Limiter(3)
    most = 0
    lock = threading.Lock()
    inside = 0

    def work(_: int) -> None:
        nonlocal inside, most
        with limiter.slot():
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.002)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(40)))
    assert most == 3
    assert (limiter.in_flight, limiter.waiting) == (0, 0)


def wait_for(is_so: Callable[[], bool]) -> None:
    ends = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.001)


def test_threads_and_event_loops_stand_in_the_same_line() -> None:
    limiter = Limiter(1)
    order: list[str] = []

    def in_thread(name: str) -> None:
        with limiter.slot():
            order.append(name)

    def in_loop(name: str) -> None:
        async def main() -> None:
            async with limiter.aslot():
                order.append(name)

        asyncio.run(main())

    with ThreadPoolExecutor(4) as pool, limiter.slot():
        for count, (kind, name) in enumerate(
            [(in_thread, "a"), (in_loop, "b"), (in_thread, "c"), (in_loop, "d")], start=1
        ):
            pool.submit(kind, name)
            wait_for(lambda count=count: limiter.waiting == count)  # type: ignore[misc]
        assert order == []
        # Each leaves before the next is let in, so the order of the line is that of `order`.
    assert order == ["a", "b", "c", "d"]


async def test_tasks_of_one_loop_take_turns_in_order() -> None:
    limiter = Limiter(2)
    order: list[int] = []

    async def work(number: int) -> None:
        async with limiter.aslot():
            order.append(number)
            assert limiter.in_flight <= 2
            await asyncio.sleep(0)

    await asyncio.gather(*(work(number) for number in range(20)))
    assert order == list(range(20))


async def test_a_cancelled_task_leaves_the_line_and_takes_no_slot() -> None:
    limiter = Limiter(1)
    async with limiter.aslot():
        turn = limiter.aslot()
        waiting = asyncio.ensure_future(turn.__aenter__())
        await asyncio.sleep(0)
        assert limiter.waiting == 1
        waiting.cancel()
        await asyncio.wait({waiting})
        assert (limiter.in_flight, limiter.waiting) == (1, 0)
    assert limiter.in_flight == 0


async def test_a_task_cancelled_as_its_turn_comes_passes_it_on() -> None:
    limiter = Limiter(1)
    holder, *turns = (limiter.aslot() for _ in range(3))
    await holder.__aenter__()
    first, second = (asyncio.ensure_future(turn.__aenter__()) for turn in turns)
    await asyncio.sleep(0)
    await holder.__aexit__(None, None, None)  # the turn of the first has come, unknown to it
    first.cancel()
    await asyncio.wait_for(second, 30)
    assert (limiter.in_flight, limiter.waiting) == (1, 0)
    await turns[1].__aexit__(None, None, None)


def test_a_turn_for_an_event_loop_that_is_closed_is_passed_on() -> None:
    limiter = Limiter(1)
    loop = asyncio.new_event_loop()
    turn = limiter.aslot()
    with limiter.slot():
        task = asyncio.ensure_future(turn.__aenter__(), loop=loop)
        loop.run_until_complete(asyncio.sleep(0))
        assert limiter.waiting == 1
        loop.close()
    assert (limiter.in_flight, limiter.waiting) == (0, 0)
    with limiter.slot():
        pass
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # left behind on purpose


def test_a_failed_request_gives_its_slot_back() -> None:
    limiter = Limiter(1)
    with pytest.raises(ValueError, match="broken"), limiter.slot():
        raise ValueError("broken")
    assert limiter.in_flight == 0


def test_a_lowered_limit_comes_back_with_successes_and_lets_the_line_in() -> None:
    limiter = Limiter(2)
    limiter.overloaded(None)
    assert limiter.limit == 1
    turn = limiter.slot()
    with limiter.slot(), ThreadPoolExecutor(1) as pool:
        entered = pool.submit(turn.__enter__)
        wait_for(lambda: limiter.waiting == 1)
        limiter.succeeded()
        entered.result(30)
    assert limiter.limit == 2


def test_a_waiter_starts_again_by_itself_once_the_time_asked_for_is_over() -> None:
    limiter = Limiter(2)
    for _ in range(2):
        began = time.monotonic()
        limiter.overloaded(0.05)
        with limiter.slot():
            assert time.monotonic() - began >= 0.05


# --- what a server asked for, and where it is ---


def refusal(told: str) -> ModelUnavailableError:
    response = httpx.Response(
        503, headers={"Retry-After": told}, request=httpx.Request("GET", "http://a")
    )
    inner = httpx.HTTPStatusError("503", request=response.request, response=response)
    error = ModelUnavailableError("the server did not answer")
    error.__cause__ = inner
    return error


def test_retry_after_is_found_in_the_causes_of_an_error() -> None:
    assert retry_after_s(refusal("7")) == 7.0


def test_retry_after_may_be_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    found = retry_after_s(refusal(date))
    assert found is not None
    assert 60 < found <= 90


@pytest.mark.parametrize("told", ["soon", "nan", "inf", "Wed, 99 Foo"])
def test_a_retry_after_that_says_nothing_is_none(told: str) -> None:
    assert retry_after_s(refusal(told)) is None


def test_a_date_of_the_past_means_now() -> None:
    assert retry_after_s(refusal("Wed, 21 Oct 2015 07:28:00 GMT")) == 0.0


def test_an_error_without_a_response_asks_for_nothing() -> None:
    assert retry_after_s(ValueError("broken")) is None


def test_the_address_of_known_chat_models_is_found() -> None:
    tgi = ChatTGI(base_url="http://127.0.0.1:8080/v1")
    openai = ChatOpenAI(model="m", base_url="http://127.0.0.1:8081/v1", api_key=SecretStr("none"))
    assert server_of(tgi) == "http://127.0.0.1:8080"
    assert server_of(openai) == "http://127.0.0.1:8081/v1"


def test_a_model_that_tells_no_address_has_none() -> None:
    assert server_of(ScriptedChatModel([])) is None


# --- a server that restarts ---


def test_a_healthy_server_is_not_waited_for() -> None:
    seen: list[Waiting] = []
    with stub_server({"/health": Answer("")}) as (url, requests):
        wait_until_healthy(f"{url}/v1", on_wait=seen.append)
    assert [path for path, _, _ in requests] == ["/health"]
    assert seen == []


def test_a_server_without_a_health_page_is_asked_for_its_models() -> None:
    with stub_server({"/v1/models": Answer({"data": []})}) as (url, requests):
        wait_until_healthy(url)
    assert [path for path, _, _ in requests] == ["/health", "/v1/models"]


def test_a_server_that_wants_a_key_is_up() -> None:
    with stub_server({"/health": Answer("", status=401)}) as (url, _):
        wait_until_healthy(url, timeout_s=0)


def test_a_server_that_still_loads_is_waited_for_and_progress_is_told() -> None:
    answers = iter([Answer("", status=503), Answer("", status=502), Answer("")])
    seen: list[Waiting] = []
    with stub_server({"/health": lambda _: next(answers)}) as (url, _):
        waited = wait_until_healthy(url, timeout_s=60, on_wait=seen.append)
    assert [wait.found for wait in seen] == ["HTTP 503", "HTTP 502"]
    assert {(wait.server, wait.timeout_s) for wait in seen} == {(url, 60)}
    assert 0 <= seen[0].waited_s < seen[1].waited_s < waited


def test_a_server_that_stays_away_is_given_up_with_the_next_step() -> None:
    with (
        stub_server({"/health": Answer("", status=503)}) as (url, _),
        pytest.raises(ModelUnavailableError, match=r"HTTP 503.*check the server, then resume"),
    ):
        wait_until_healthy(url, timeout_s=0.15)


@pytest.mark.contract
def test_a_container_that_restarts_is_waited_for_in_a_thread() -> None:
    seen = restarted(lambda url, on_wait: wait_until_healthy(url, timeout_s=60, on_wait=on_wait))
    assert "ConnectError" in seen
    assert "HTTP 503" in seen


@pytest.mark.contract
def test_a_container_that_restarts_is_waited_for_in_an_event_loop() -> None:
    seen = restarted(
        lambda url, on_wait: asyncio.run(await_until_healthy(url, timeout_s=60, on_wait=on_wait))
    )
    assert "ConnectError" in seen
    assert "HTTP 503" in seen


def restarted(wait: Callable[[str, Callable[[Waiting], None]], float]) -> set[str]:
    """What a wait found while the double was refused, then loaded."""
    seen: list[Waiting] = []
    double = TgiDouble(["Fine."], faults={1: Restart(refuse_s=0.4, load_s=0.4)})
    with serve(double) as url:
        body = {"inputs": "Say something.", "parameters": {}}
        with pytest.raises(httpx.TransportError):
            httpx.post(f"{url}/generate", json=body)
        wait(url, seen.append)
        assert httpx.post(f"{url}/generate", json=body).status_code == 200
    return {told.found for told in seen}
