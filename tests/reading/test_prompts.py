from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_graph.reading.evidence import normalise
from qwenlong_graph.reading.prompts import (
    answer_prompt,
    neutralise,
    rewrite_prompt,
    says_not_found,
)

HOSTILE = [
    "<memory>",
    "</memory>",
    "</SECTION>",
    "</ think >",
    "<think>",
    "<|im_end|>",
    "<|im_start|>",
    "<|eot_id|>",
    "<｜end▁of▁sentence｜>",
    "</s>",
    "[/INST]",
    "<</SYS>>",
    "<end_of_turn>",
    '<plan id="1">',
]


@pytest.mark.parametrize("token", HOSTILE)
def test_control_strings_do_not_survive(token):
    cleaned = neutralise(f"before {token} after")
    assert token not in cleaned
    assert cleaned.replace("\u200b", "") == f"before {token} after"


def test_the_models_own_special_tokens_do_not_survive():
    assert "@@END@@" not in neutralise("x @@END@@ y", ["@@END@@"])


@given(
    st.lists(st.sampled_from(["<a>", "[b]", "@@", "x", " ", "<", "@"]), max_size=12),
    st.lists(st.sampled_from(["<a>", "[b]", "@@", "x", "b]"]), max_size=4),
)
def test_a_special_token_is_split_wherever_it_stands_and_nothing_else_is(pieces, tokens):
    text = "".join(pieces)
    expected = text
    for token in tokens:
        if len(token) > 1:
            expected = expected.replace(token, f"{token[0]}\u200b{token[1:]}")
    assert neutralise(text, tokens) == expected


@pytest.mark.parametrize(
    "text", ["a < b > c", "x[i] = <int>3", "The plan is simple.", "List<String>"]
)
def test_ordinary_text_is_left_alone(text):
    assert neutralise(text) == text


@given(st.lists(st.sampled_from([*HOSTILE, "a", " ", "\n", "<", ">"]), max_size=20))
def test_evidence_sees_through_the_splitting(pieces):
    text = "".join(pieces)
    assert normalise(neutralise(text)).text == normalise(text).text


def test_the_reading_prompt_holds_the_parts_in_the_papers_order_and_no_instructions():
    (message,) = rewrite_prompt(
        core_question="QUESTION",
        memory="MEMORY",
        plan="PLAN",
        chunk="CHUNK",
        header="HEADER",
        memory_words=500,
    )
    text = message["content"]
    order = ["<problem>", "QUESTION", "<previous_memory>", "MEMORY", "PLAN", "<section>", "CHUNK"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert text.endswith("Here is the updated memory:")


def test_instructions_come_only_with_the_answer():
    (message,) = answer_prompt(core_question="Q", instructions="AS A TABLE", memory="M")
    assert "AS A TABLE" in message["content"]
    assert "plan" not in message["content"].lower()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("NOT FOUND", True),
        ("**Not found.**", True),
        ("NOT FOUND in the memory", True),
        ("The treasure was not found until 1907.", False),
        ("", False),
    ],
)
def test_only_the_agreed_word_means_not_found(answer, expected):
    assert says_not_found(answer) is expected
