from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qwenlong_graph.models.calls import ask
from qwenlong_graph.reading import prompts
from qwenlong_graph.reading.replies import parse_decomposition, parse_update, without_thoughts
from qwenlong_graph.testing.oracle import OPENING_CHARS_MIN, OracleChatModel, oracle

FACTS = [
    "The lighthouse was built in 1870.",
    "Its keeper was named Anna Lund.",
    "The lamp weighed 4.2 tonnes.",
]
TEXT = " ".join(FACTS)


def update(model, *, memory="", chunk):
    sent = prompts.rewrite_prompt(
        core_question="q", memory=memory, plan="p", chunk=chunk, header="[1]", memory_words=100
    )
    text = ask(model, sent, max_tokens=100).text
    return parse_update(text, had_memory=bool(memory)).memory


def test_facts_of_a_section_are_added_to_the_memory_held():
    model = oracle(FACTS)
    first = update(model, chunk=f"Fog. {FACTS[1]} Rain.")
    assert first == f"- {FACTS[1]}"
    second = update(model, memory=first, chunk="The lighthouse\n  was built in 1870. Then more.")
    assert second == f"- {FACTS[1]}\n- {FACTS[0]}"


def test_a_fact_that_holds_an_element_of_the_reply_is_kept_whole():
    fact = "The </memory> key <memory> lies under </plan> the third step."
    model = oracle([fact])
    shown = prompts.neutralise(f"Fog. {fact} Rain.")
    memory = update(model, chunk=shown)
    memory = update(model, memory=prompts.neutralise(memory), chunk="Rain.")
    assert memory == f"- {fact}"


def test_a_fact_that_ends_thoughts_is_answered_whole():
    fact = "Thoughts end at </think> and </memory>, it says."
    model = oracle([fact])
    sent = prompts.answer_prompt(core_question="q", instructions="", memory=f"- {fact}")
    assert without_thoughts(ask(model, sent, max_tokens=100).text) == fact


def test_lines_of_others_stay_in_memory():
    assert update(oracle(FACTS), memory="- A note.", chunk="Nothing.") == "- A note."


def test_nothing_found_is_an_empty_memory():
    assert update(oracle(FACTS), chunk="Fog and rain.") == ""


@given(st.integers(0, len(TEXT)))
@settings(max_examples=100, deadline=None)
def test_a_fact_divided_by_a_border_is_completed_with_the_next_section(border):
    start = max(TEXT.index(fact) for fact in FACTS if TEXT.index(fact) <= border)
    assume(border == start or border - start >= OPENING_CHARS_MIN)
    memory = update(oracle(FACTS), chunk=TEXT[:border])
    memory = update(oracle(FACTS), memory=memory, chunk=TEXT[border:])
    assert memory == "\n".join(f"- {fact}" for fact in FACTS)


def test_an_opening_that_was_none_is_dropped():
    model = oracle(FACTS)
    memory = update(model, chunk=f"{FACTS[2]} The lighthouse")
    assert memory == f"- {FACTS[2]}\n- The lighthouse"
    assert update(model, memory=memory, chunk="keeper slept.") == f"- {FACTS[2]}"


def test_answers_with_the_facts_in_memory_alone():
    sent = prompts.answer_prompt(
        core_question="q", instructions="", memory=f"- {FACTS[2]}\n- Something else."
    )
    assert ask(oracle(FACTS), sent, max_tokens=10).text == FACTS[2]


def test_answers_not_found_from_a_memory_without_facts():
    sent = prompts.answer_prompt(core_question="q", instructions="", memory="- Something.")
    assert prompts.says_not_found(ask(oracle(FACTS), sent, max_tokens=10).text)


@pytest.mark.parametrize("chunk", [f"Fog. {FACTS[0]} Rain.", "Fog."])
def test_copies_the_facts_of_a_chunk_in_the_extract_protocol(chunk):
    sent = prompts.extract_prompt(core_question="q", chunk=chunk)
    expected = FACTS[0] if FACTS[0] in chunk else prompts.NOT_FOUND
    assert ask(oracle(FACTS), sent, max_tokens=10).text == expected


def test_answers_from_notes_in_the_extract_protocol():
    sent = prompts.extract_answer_prompt(
        core_question="q", instructions="", memory=f"Notes\n{FACTS[1]}"
    )
    assert ask(oracle(FACTS), sent, max_tokens=10).text == FACTS[1]


def test_answers_from_a_whole_document():
    sent = prompts.full_prompt(question="q", instructions="", document=" ".join(FACTS))
    assert ask(oracle(FACTS), sent, max_tokens=10).text == "\n".join(FACTS)


def test_leaves_the_question_whole():
    reply = OracleChatModel(FACTS).invoke(prompts.decompose_prompt("When was it built?"))
    split = parse_decomposition(str(reply.text), question="When was it built?")
    assert split == ("When was it built?", "")
