"""The requests a reply takes and what its tokens mean, driven without any server."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_graph.errors import MalformedReplyError
from qwenlong_graph.models.tgi_prompt import Prompt
from qwenlong_graph.models.tgi_reply import CALLS_MAX, Piece, Reply, Wanted
from qwenlong_graph.models.tgi_wire import Final, TokenEvent

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS = {"add": SCHEMA, "look": {"type": "object", "properties": {}}}


def drive(
    reply: Reply, outputs: list[str], *, limit: int | None = None, cut: int = 0
) -> tuple[list[Piece], list[dict[str, Any]]]:
    """Runs a reply against a server that says `outputs`; each character or tag is a token.

    `cut` is the size of tokens where it is given. The server stops at stop texts as TGI does: only
    where one ends a token.
    """
    pieces: list[Piece] = []
    bodies: list[dict[str, Any]] = []
    for step in reply.steps():
        bodies.append(step.body)
        parameters = step.body["parameters"]
        output = outputs[len(bodies) - 1]
        tokens = (
            [output[place : place + cut] for place in range(0, len(output), cut)]
            if cut
            else re.findall(r"</?\w+>|[\s\S]", output)
        )
        room = parameters.get("max_new_tokens", 10_000)
        said = ""
        for number, token in enumerate([*tokens, ""], 1):
            said += token
            is_stopped = any(said.endswith(stop) for stop in parameters.get("stop", ()))
            reason = (
                "length"
                if number >= room
                else "stop_sequence"
                if is_stopped
                else "eos_token"
                if not token
                else None
            )
            final = Final(reason, number, len(step.body["inputs"])) if reason else None
            pieces += step.feed(TokenEvent(token, final))
            if final or step.is_settled:
                break
    return pieces, bodies


def joined(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Neighbours of one kind put together."""
    found: list[tuple[str, str]] = []
    for kind, text in pieces:
        if found and found[-1][0] == kind and kind != "call":
            found[-1] = (kind, found[-1][1] + text)
        else:
            found.append((kind, text))
    return found


def make(thinking: Literal["none", "possible", "open"] = "none", **wanted: Any) -> Reply:
    return Reply(Prompt("P>", thinking), Wanted(**wanted))


def test_plain_text_is_one_request_as_it_comes() -> None:
    reply = make(parameters={"seed": 3}, max_tokens=50)
    pieces, bodies = drive(reply, ["Hello."])
    assert joined(pieces) == [("text", "Hello.")]
    assert bodies == [
        {"inputs": "P>", "parameters": {"seed": 3, "max_new_tokens": 50, "details": True}}
    ]
    assert (reply.finish_reason, reply.input_tokens, reply.output_tokens) == ("eos_token", 2, 7)
    assert reply.thinking_tokens == 0


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize(
    ("thinking", "output"),
    [
        ("open", "I wonder < what.</think>\n\nIt is <b>."),
        ("possible", "<think>I wonder < what.</think>\n\nIt is <b>."),
        ("none", "\n<think>\nI wonder < what.</think>It is <b>."),
    ],
)
def test_thoughts_are_told_from_the_answer_however_tokens_fall(
    thinking: Literal["none", "possible", "open"], output: str, cut: int
) -> None:
    reply = make(thinking)
    pieces, _ = drive(reply, [output], cut=cut)
    assert joined(pieces) == [("reasoning", "I wonder < what."), ("text", "It is <b>.")]
    assert not reply.is_thinking_cut


@given(st.text(alphabet="<>/think a\n", max_size=40), st.integers(1, 9))
def test_without_thoughts_no_text_is_lost(output: str, cut: int) -> None:
    pieces, _ = drive(make(), [output], cut=cut)
    shown = "".join(text for _, text in pieces)
    if not output.lstrip().startswith("<think>"):
        assert shown == output


def test_thinking_tokens_count_with_their_tags() -> None:
    reply = make()
    drive(reply, ["<think>abc</think>\nde"])
    assert reply.thinking_tokens == 5
    assert reply.output_tokens == 9


def test_a_closing_tag_that_nothing_opened_ends_counted_thoughts() -> None:
    reply = make()
    pieces, _ = drive(reply, ["abc</think>de"])
    assert joined(pieces) == [("text", "abc</think>de")]
    assert reply.thinking_tokens == 4


@pytest.mark.parametrize("wanted", [{}, {"grammar": SCHEMA}, {"stop": ["x"]}, {"tools": TOOLS}])
def test_thoughts_that_fill_the_limit_are_reported_as_cut(wanted: dict[str, Any]) -> None:
    reply = make("open", max_tokens=4, **wanted)
    pieces, bodies = drive(reply, ["a long thought</think>"])
    assert joined(pieces) == [("reasoning", "a lo")]
    assert reply.is_thinking_cut
    assert reply.finish_reason == "length"
    assert len(bodies) == 1


def test_a_grammar_binds_only_after_the_thoughts() -> None:
    reply = make("open", grammar=SCHEMA, max_tokens=30)
    pieces, (first, second) = drive(reply, ["hm</think>", '{"a":1}'])
    assert first["parameters"]["stop"] == ["</think>"]
    assert "grammar" not in first["parameters"]
    assert second["inputs"] == "P>hm</think>\n\n"
    assert second["parameters"]["grammar"] == {"type": "json", "value": SCHEMA}
    assert second["parameters"]["max_new_tokens"] == 27
    assert joined(pieces) == [("reasoning", "hm"), ("text", '{"a":1}')]
    assert (reply.input_tokens, reply.output_tokens, reply.thinking_tokens) == (2, 11, 3)


def test_what_comes_in_one_token_after_the_thoughts_is_no_part_of_the_prompt() -> None:
    reply = make("open", grammar=SCHEMA)
    pieces, (_, second) = drive(reply, ["hm</think> Sure:", '{"a":1}'], cut=99)
    assert second["inputs"] == "P>hm</think>\n\n"
    assert joined(pieces) == [("reasoning", "hm"), ("text", '{"a":1}')]


def test_a_model_that_does_not_think_is_asked_again_bound_from_the_start() -> None:
    reply = make("possible", grammar=SCHEMA)
    pieces, (_, second) = drive(reply, ["The answer is long.", '{"a":1}'])
    assert second["inputs"] == "P>"
    assert joined(pieces) == [("text", '{"a":1}')]
    assert reply.output_tokens == 8


def test_no_request_is_made_for_thoughts_where_there_are_none() -> None:
    _, bodies = drive(make("none", grammar=SCHEMA), ['{"a":1}'])
    assert len(bodies) == 1


def test_no_room_after_the_thoughts_ends_the_reply_for_its_length() -> None:
    reply = make("open", grammar=SCHEMA, max_tokens=3)
    _, bodies = drive(reply, ["ab</think>"])
    assert len(bodies) == 1
    assert reply.finish_reason == "length"


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 7, 100])
def test_a_stop_text_ends_the_answer_and_is_left_out(cut: int) -> None:
    reply = make(stop=["END", "\n\n"])
    pieces, _ = drive(reply, ["one EN two END three\n\n"], cut=cut)
    assert joined(pieces) == [("text", "one EN two ")]
    assert reply.finish_reason == "stop_sequence"


def test_what_only_begins_like_a_stop_text_is_shown_at_the_end() -> None:
    pieces, _ = drive(make(stop=["END"]), ["one EN"])
    assert joined(pieces) == [("text", "one EN")]


def test_more_stop_texts_than_the_server_takes_are_watched_for_here() -> None:
    stops = ["1", "2", "3", "4", "5"]
    pieces, (body,) = drive(make(stop=stops), ["ab5cd"])
    assert body["parameters"]["stop"] == ["1", "2", "3", "4"]
    assert joined(pieces) == [("text", "ab")]


def test_stop_texts_do_not_end_thoughts() -> None:
    pieces, (first, second) = drive(make("open", stop=["x"]), ["ax</think>", "\n\nbxc"])
    assert first["parameters"]["stop"] == ["</think>"]
    assert second["parameters"]["stop"] == ["x"]
    assert joined(pieces) == [("reasoning", "ax"), ("text", "b")]


def test_a_free_model_calls_tools_where_it_opens_a_call() -> None:
    outputs = ["Let me. <tool_call>", '{"name": "add"}', '{"a": 1}', "\n<tool_call>"]
    outputs += ['{"name": "look"}', "{}", "\n"]
    reply = make(tools=TOOLS)
    pieces, bodies = drive(reply, outputs)
    assert joined(pieces) == [
        ("text", "Let me. "),
        ("call", "add"),
        ("arguments", '{"a": 1}'),
        ("call", "look"),
        ("arguments", "{}"),
    ]
    choice, arguments = bodies[1], bodies[2]
    names = choice["parameters"]["grammar"]["value"]["properties"]["name"]["enum"]
    assert names == ["add", "look"]
    assert choice["inputs"].endswith("Let me. <tool_call>\n")
    assert arguments["parameters"]["grammar"]["value"] == SCHEMA
    assert arguments["inputs"].endswith('<tool_call>\n{"name": "add", "arguments":')
    written = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert bodies[3]["inputs"] == f"P>Let me. {written}"
    call = written.partition("\n")[2].rpartition("\n")[0]
    assert json.loads(call) == {"name": "add", "arguments": {"a": 1}}


def test_a_free_model_may_answer_without_a_call() -> None:
    pieces, bodies = drive(make(tools=TOOLS), ["No need."])
    assert joined(pieces) == [("text", "No need.")]
    assert len(bodies) == 1


def test_one_call_is_all_where_only_one_is_wanted() -> None:
    outputs = ["<tool_call>", '{"name": "look"}', "{}"]
    pieces, _ = drive(make(tools=TOOLS, one_call=True), outputs)
    assert joined(pieces) == [("call", "look"), ("arguments", "{}")]


def test_a_forced_call_needs_no_choice_among_one() -> None:
    reply = make(tools={"add": SCHEMA}, must_call=True)
    pieces, (body,) = drive(reply, ['{"a": 1}'])
    assert body["inputs"] == 'P><tool_call>\n{"name": "add", "arguments":'
    assert joined(pieces) == [("call", "add"), ("arguments", '{"a": 1}')]


def test_calls_without_end_are_ended() -> None:
    outputs = ["<tool_call>", "{}"] * (CALLS_MAX + 3)
    pieces, _ = drive(make(tools={"look": TOOLS["look"]}), outputs)
    assert sum(piece.kind == "call" for piece in pieces) == CALLS_MAX


def test_arguments_that_the_limit_cuts_end_the_reply() -> None:
    reply = make(tools=TOOLS, max_tokens=25)
    pieces, _ = drive(reply, ["<tool_call>", '{"name": "add"}', '{"a": 123456}'])
    assert joined(pieces)[-1] == ("arguments", '{"a": 12')
    assert reply.finish_reason == "length"


def test_a_server_that_ignores_the_grammar_is_named() -> None:
    with pytest.raises(MalformedReplyError, match="grammar"):
        drive(make(tools=TOOLS, must_call=True), ["I would rather not."])
