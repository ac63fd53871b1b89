from __future__ import annotations

import pytest

from qwenlong_graph.reading.evidence import SourceText
from qwenlong_graph.reading.loop import (
    Done,
    Reply,
    advance,
    answer_steps,
    call_loop_span,
    call_penalty,
    call_seed,
    decompose_steps,
    drive,
    full_steps,
    read_through,
    start_state,
    update_steps,
)
from qwenlong_graph.reading.protocols import ExtractProtocol, RewriteProtocol
from qwenlong_graph.reading.replies import BadReply
from tests.reading.test_protocols import TEXT, chunk, reply, task

FACT = "- The bridge at Orrin was paid for by the widow Hale."


def script(*replies):
    """An `ask` that plays replies in order and keeps the requests."""
    left, requests = list(replies), []

    def ask(request):
        requests.append(request)
        answer = left.pop(0)
        return answer if isinstance(answer, Reply) else Reply(answer)

    ask.requests = requests
    return ask


def test_a_bad_reply_is_asked_again_with_the_reason_and_the_same_prompt():
    ask = script("nonsense", reply(FACT))
    update = drive(update_steps(task(), RewriteProtocol(), start_state(), chunk()), ask)
    assert update.state["memory"] == FACT
    assert [(r.attempt, r.reason) for r in ask.requests] == [(0, ""), (1, "no memory element")]
    assert ask.requests[0].messages == ask.requests[1].messages


def test_after_the_last_attempt_the_old_memory_is_kept_and_said():
    state = {**start_state(), "memory": FACT}
    ask = script(*["<think>never ends"] * 3)
    update = drive(update_steps(task(), RewriteProtocol(), state, chunk()), ask)
    assert (update.kind, update.state) == ("kept", state)


def test_the_seed_of_a_call_depends_on_run_step_and_attempt_only():
    seeds = {call_seed(s, step=t, attempt=a) for s in range(3) for t in range(3) for a in range(3)}
    assert len(seeds) == 27
    assert call_seed(1, step=2, attempt=0) == call_seed(1, step=2, attempt=0) < 2**31


def test_a_failed_split_leaves_the_question_whole():
    assert drive(decompose_steps("What is 7?", task=task()), script("no idea")) == (
        "What is 7?",
        "",
    )
    cut = Reply("<core_question>What is 7?</core_question>", is_truncated=True)
    assert drive(decompose_steps("What is 7?", task=task()), script(cut)) == ("What is 7?", "")


def answering(*replies, protocol=None, memory=FACT, validate=None, quotes=(FACT[2:],), **of_task):
    ask = script(*replies)
    state = {**start_state(), "memory": memory}
    steps = answer_steps(
        task(**of_task),
        protocol or RewriteProtocol(),
        state,
        step=9,
        quotes=quotes,
        validate=validate,
    )
    return drive(steps, ask), ask


def test_thoughts_are_split_off_the_answer():
    answer, _ = answering("<think>the widow...</think>The widow Hale.")
    assert answer.text == "The widow Hale."


def test_an_answer_that_never_comes_is_an_error():
    with pytest.raises(BadReply, match="thinking"):
        answering(*["<think>"] * 3)


def test_a_wrong_form_is_repaired_once():
    def validate(text):
        if text != "[1]":
            raise ValueError("not a list")
        return [1]

    answer, ask = answering("one", "[1]", validate=validate)
    assert (answer.text, answer.structured) == ("[1]", [1])
    assert "not a list" in ask.requests[1].messages[-1]["content"]
    with pytest.raises(BadReply, match="not a list"):
        answering("one", "two", "three", validate=validate)


def test_extract_quotes_where_the_model_claims_what_no_quote_holds():
    answer, _ = answering("King Ludo of Quaid paid in 1874.", protocol=ExtractProtocol())
    assert answer.is_quoted
    assert answer.text == FACT[2:]
    true, _ = answering("The widow Hale paid for it.", protocol=ExtractProtocol())
    assert (true.text, true.is_quoted) == ("The widow Hale paid for it.", False)


def test_extract_with_an_empty_memory_asks_nobody():
    answer, ask = answering(protocol=ExtractProtocol(), memory="", quotes=())
    assert (answer.text, ask.requests) == ("", [])


def test_one_pass_holds_document_question_and_form():
    ask = script("<think>hm</think>Hale")
    answer = drive(full_steps(task(), TEXT, question="Who?"), ask)
    assert answer.text == "Hale"
    text = ask.requests[0].messages[0]["content"]
    assert text.index(TEXT) < text.index("Who?") < text.index("IN ONE WORD")


def test_the_whole_recurrence_runs_without_a_graph():
    parts = [chunk("Nothing here. ", start=0, step=0), chunk(TEXT, start=14, step=1)]
    ask = script(reply("none"), reply(FACT), "The widow Hale.")

    def quote(evidence):
        return [
            SourceText(
                document=0,
                start_char=piece["start_char"],
                text=("Nothing here. " + TEXT)[piece["start_char"] : piece["end_char"]],
            )
            for piece in evidence
        ]

    state, answer = drive(read_through(task(), RewriteProtocol(), parts, quote=quote), ask)
    assert answer.text == "The widow Hale."
    assert [source.text for source in quote(state["evidence"])] == [FACT[2:]]
    assert [request.purpose for request in ask.requests] == ["update", "update", "answer"]


def test_advance_gives_a_request_or_the_result():
    steps = decompose_steps("What?", task=task())
    assert advance(steps).purpose == "decompose"
    assert advance(steps, Reply("x")) == Done(("What?", ""))


LOOP = Reply("so so so", is_loop=True, is_truncated=True)
LOOP_OF_THOUGHTS = Reply("", thoughts="so so so", is_thinking_cut=True, is_loop=True)
CUT = Reply("", thoughts="hm", is_thinking_cut=True, is_truncated=True)


def updating(*replies, state=None):
    ask = script(*replies)
    state = state or {**start_state(), "memory": FACT}
    steps = update_steps(task(), RewriteProtocol(), state, chunk(), attempts=len(replies))
    return drive(steps, ask), ask.requests


def test_cut_thoughts_are_asked_again_with_more_room_and_said_to_be_so():
    update, (first, second) = updating(CUT, reply(FACT))
    assert update.state["memory"] == FACT
    assert second.reason == f"thinking was cut off at {first.max_tokens} tokens"
    assert second.messages == first.messages
    assert second.attempt == 1
    window = task().budget.window
    size = sum(task().count_tokens(message["content"]) for message in first.messages)
    assert first.max_tokens < second.max_tokens <= min(2 * first.max_tokens, window - size)


def test_no_more_room_is_asked_for_than_the_window_has():
    _, requests = updating(*[CUT] * 8)
    size = sum(task().count_tokens(message["content"]) for message in requests[0].messages)
    rooms = [request.max_tokens for request in requests]
    assert rooms == sorted(rooms)
    assert rooms[-1] + size < task().budget.window


def test_thoughts_that_ended_by_themselves_get_another_seed_only():
    _, (first, second) = updating(Reply("", is_thinking_cut=True), reply(FACT))
    assert second.reason == "thinking was not finished"
    assert second.max_tokens == first.max_tokens


def test_a_loop_is_asked_again_with_the_same_room_and_counted():
    update, requests = updating(LOOP, LOOP_OF_THOUGHTS, reply(FACT))
    assert update.state["memory"] == FACT
    assert [request.loops for request in requests] == [0, 1, 2]
    assert len({request.max_tokens for request in requests}) == 1
    assert [request.reason for request in requests] == [
        "",
        "the reply repeated itself without end",
        "thinking repeated itself without end",
    ]


def test_loops_only_leave_the_old_memory():
    update, _ = updating(LOOP, LOOP, LOOP)
    assert (update.kind, update.state["memory"]) == ("kept", FACT)


def test_at_last_a_memory_that_was_whole_before_the_loop_is_used():
    looping = Reply(f"<memory>\n{FACT}\n</memory>\n<plan>\nso so so", is_loop=True)
    update, _ = updating(looping, looping, state=start_state())
    assert (update.kind, update.state["memory"]) == ("no_plan", FACT)


def test_a_memory_that_turned_into_a_loop_is_not_used():
    looping = Reply(f"<memory>\n{FACT}\n</memory>\n<memory>\n- so so so", is_loop=True)
    update, _ = updating(looping, state=start_state())
    assert (update.kind, update.state["memory"]) == ("kept", "")


def test_an_answer_never_ends_in_a_loop():
    answer, ask = answering(Reply("Hale Hale Hale", is_loop=True), CUT, "The widow Hale.")
    assert answer.text == "The widow Hale."
    assert [request.reason.split()[0] for request in ask.requests[1:]] == ["the", "thinking"]
    with pytest.raises(BadReply, match="repeated itself"):
        answering(*[Reply("Hale Hale Hale", is_loop=True)] * 3)


def test_a_repair_has_no_more_room_than_an_answer():
    def validate(text):
        if text != "[1]":
            raise ValueError("not a list")
        return [1]

    _, ask = answering(CUT, "one", "[1]", validate=validate)
    first, second, third = [request.max_tokens for request in ask.requests]
    assert second > first == third


@pytest.mark.parametrize("bad", [LOOP, CUT])
def test_a_split_that_was_cut_or_repeats_itself_is_none(bad):
    text = "<core_question>What is 7?</core_question>"
    cut = Reply(text, is_loop=bad.is_loop, is_thinking_cut=bad.is_thinking_cut)
    assert drive(decompose_steps("What is 7?", task=task()), script(cut)) == ("What is 7?", "")


def test_another_seed_comes_first_and_then_a_penalty():
    assert [call_penalty(loops, is_greedy=False) for loops in range(4)] == [None, None, 1.05, 1.05]
    assert [call_penalty(loops, is_greedy=True) for loops in range(3)] == [None, 1.05, 1.05]


def test_each_loop_makes_the_next_less_likely():
    spans = [call_loop_span(loops) for loops in range(4)]
    assert spans[0] < spans[1] < spans[2] == spans[3]
