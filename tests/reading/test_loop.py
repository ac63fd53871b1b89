from __future__ import annotations

import pytest

from qwenlong_graph.reading.evidence import SourceText
from qwenlong_graph.reading.loop import (
    Done,
    Reply,
    advance,
    answer_steps,
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
