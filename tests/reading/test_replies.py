from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_graph.reading.prompts import EXAMPLE_MEMORY
from qwenlong_graph.reading.replies import (
    BadReply,
    SplitReply,
    parse_decomposition,
    parse_json,
    parse_update,
    split_thoughts,
    trim_to_tokens,
    without_thoughts,
)

WHOLE = "<memory>\n- a fact\n</memory>\n<plan>\nlook for dates\n</plan>"


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        f"Here is the updated memory:\n{WHOLE}",
        f"<think>memory? <memory>draft</memory></think>{WHOLE}",
        f"thoughts without an opening tag</think>\n{WHOLE}",
        f"<think>one</think> between <think>two</think>{WHOLE}",
        f"```xml\n{WHOLE}\n```",
        WHOLE.upper().replace("A FACT", "a fact").replace("LOOK FOR DATES", "look for dates"),
        WHOLE.replace("<memory>", "< Memory >"),
        f"<memory>\n- one fact\n</memory>\n<plan>\nexample\n</plan>\n{WHOLE}",
        f"{WHOLE}\n<memory></memory>",
        WHOLE.replace("</memory>\n", ""),
        f"<memory>\nbroken start\n{WHOLE}",
    ],
    ids=range(12),
)
def test_memory_and_plan_are_found_in_any_shape(text):
    reply = parse_update(text, had_memory=True)
    assert (reply.memory, reply.plan) == ("- a fact", "look for dates")


def test_a_missing_plan_is_allowed_and_told():
    reply = parse_update("<memory>- a fact</memory>", had_memory=True)
    assert (reply.memory, reply.plan, reply.kind) == ("- a fact", "", "no_plan")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("   \n", "empty"),
        ("<think>all thought", "thinking"),
        ("<think>a</think><think>b", "thinking"),
        ("I cannot help with that.", "no memory element"),
        ("<plan>only a plan</plan>", "no memory element"),
        ("<memory></memory><plan>x</plan>", "was empty"),
        ("<memory>None.</memory>", "was empty"),
        ("<memory>\n- nothing yet\n</memory>", "was empty"),
    ],
)
def test_a_reply_that_would_lose_the_memory_is_refused(text, reason):
    with pytest.raises(BadReply, match=reason):
        parse_update(text, had_memory=True)


def test_a_reply_cut_inside_the_memory_is_refused():
    with pytest.raises(BadReply, match="cut off"):
        parse_update("<memory>\n- a fact\n- half a", had_memory=True, is_truncated=True)


def test_an_empty_memory_is_fine_while_there_is_none():
    assert parse_update("<memory>none</memory>", had_memory=False).memory == ""


@given(st.text(max_size=300), st.booleans(), st.booleans())
def test_any_text_gives_a_memory_with_content_or_is_refused(text, had_memory, is_truncated):
    try:
        reply = parse_update(text, had_memory=had_memory, is_truncated=is_truncated)
    except BadReply:
        return
    assert reply.memory.strip() or not had_memory


@given(st.text(alphabet=st.characters(exclude_characters="<>`"), min_size=1).filter(str.strip))
def test_a_well_formed_reply_gives_back_its_memory(memory):
    text = f"<think>x</think>\n<memory>\n{memory}\n</memory>\n<plan>p</plan>"
    try:
        assert parse_update(text, had_memory=True).memory == memory.strip()
    except BadReply:
        from qwenlong_graph.reading.replies import is_empty_memory

        assert is_empty_memory(memory.strip())


def test_thoughts_end_at_the_last_closing_tag():
    assert without_thoughts("a</think>b</THINK> c ") == "c"


def test_a_split_must_keep_the_questions_figures():
    question = "List the 3 largest debts in 1907 as JSON."
    good = "<core_question>the 3 largest debts in 1907</core_question><instructions>JSON"
    assert parse_decomposition(good + "</instructions>", question=question) == (
        "the 3 largest debts in 1907",
        "JSON",
    )
    lost = "<core_question>the largest debts</core_question><instructions>JSON</instructions>"
    assert parse_decomposition(lost, question=question) is None
    assert parse_decomposition("no idea", question=question) is None
    plain = "Which 3 debts were largest in 1907?"
    none = f"<core_question>{plain}</core_question><instructions>None</instructions>"
    assert parse_decomposition(none, question=plain) == (plain, "")


@pytest.mark.parametrize(
    "core", ["what is asked", "Who paid for the ferry?", "Who paid for the bridge?"]
)
def test_a_split_that_changes_or_loses_what_is_asked_is_refused(core):
    reply = f"<core_question>{core}</core_question><instructions></instructions>"
    assert parse_decomposition(reply, question="Who paid for the bridge at Orrin?") is None


def test_a_copy_of_the_example_is_no_memory():
    example = f"<memory>\n{EXAMPLE_MEMORY}\n</memory>\n<plan>x</plan>"
    with pytest.raises(BadReply, match="no memory element"):
        parse_update(example, had_memory=True)
    cut = f"{example}\n<memory>\n- The wid"
    with pytest.raises(BadReply, match="cut off"):
        parse_update(cut, had_memory=True, is_truncated=True)


def test_splitting_characters_of_prompts_do_not_stay_in_replies():
    assert without_thoughts("<\u200b|im_end|>") == "<|im_end|>"


def test_an_element_copied_from_a_text_does_not_end_the_memory():
    lines = "- The tag <\u200b/memory> is quoted.\n- So are <\u200bmemory> and <\u200b/think>."
    reply = f"<memory>\n{lines}\n</memory>\n<plan>\nFind <\u200b/plan>.\n</plan>"
    for text in (reply, f"why</think>{reply}"):
        update = parse_update(split_thoughts(text).answer, had_memory=True)
        assert update.memory == lines.replace("\u200b", "")
        assert update.plan == "Find </plan>."


def test_an_answer_may_speak_of_thinking_tags():
    assert without_thoughts("The tag <think> opens it.") == "The tag <think> opens it."


@pytest.mark.parametrize(
    "text",
    ['{"a": [1]}', '```json\n{"a": [1]}\n```', 'Sure: {"a": [1]} as asked', 'x {bad} {"a": [1]}'],
)
def test_json_is_found_in_prose(text):
    assert parse_json(text) == {"a": [1]}


def test_no_json_is_a_value_error():
    with pytest.raises(ValueError, match="no JSON"):
        parse_json("none here {")


def test_an_over_long_memory_is_cut_at_a_line():
    memory = "\n".join(f"- fact number {n}" for n in range(100))
    cut = trim_to_tokens(memory, max_tokens=41, count_tokens=words)
    assert cut == "\n".join(f"- fact number {n}" for n in range(10))
    assert trim_to_tokens("one line of too many words", max_tokens=3, count_tokens=words) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>why</think> so", SplitReply("why", "so")),
        ("why</think>so", SplitReply("why", "so")),
        ("<THINK>a</think>b</think> c", SplitReply("a</think>b", "c")),
        ("so", SplitReply("", "so")),
        ("<think>why", SplitReply("why", "", is_open=True)),
        ("<think>a</think> <think>b", SplitReply("a\nb", "", is_open=True)),
        ("</think>so", SplitReply("", "so")),
    ],
)
def test_thoughts_and_answer_are_parted(text, expected):
    assert split_thoughts(text) == expected


def test_a_draft_in_thoughts_without_tags_that_were_cut_is_no_memory():
    thoughts = "Let me see what the section says about the bridge. " * 20
    with pytest.raises(BadReply, match="cut off"):
        parse_update(thoughts + WHOLE, had_memory=True, is_truncated=True)
    assert parse_update(thoughts + WHOLE, had_memory=True).memory == "- a fact"
    cut = "Here is the updated memory:\n" + WHOLE[:-12]
    assert parse_update(cut, had_memory=True, is_truncated=True).memory == "- a fact"
