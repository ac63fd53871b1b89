from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenlong_graph.reading.sentences import is_heading, sentence_spans


def sentences(text: str) -> list[str]:
    return [text[start:end].strip() for start, end in sentence_spans(text)]


PIECES = st.one_of(
    st.sampled_from(
        ["a", "B", "Mr", "U.S", "4", ".", "?", "。", "|", "1.", '"', ")", "é", "👩‍👩‍👧"]
    ),
    st.sampled_from([" ", "\n", "\r\n", "\r", "\t", "\f", "- ", "# ", "\u2028", "\x85", "x" * 50]),
)
TEXTS = st.one_of(
    st.text(), st.lists(PIECES).map("".join), st.lists(PIECES, min_size=200).map("".join)
)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_spans_cover_the_text_exactly_and_begin_with_a_visible_character(text):
    spans = sentence_spans(text)
    assert "".join(text[start:end] for start, end in spans) == text
    assert all(start < end for start, end in spans)
    assert not any(text[start].isspace() for start, _ in spans[1:])


LINES = st.sampled_from(
    [
        "It rose.\n",
        "and fell\n",
        "Part 4\n",
        "IV. Trade\n",
        "To be\n",
        f"{'word ' * 12}\n",
        "a) b\n",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(LINES, LINES, PIECES), min_size=1).map("".join))
def test_lines_taken_together_and_one_by_one_give_the_same_sentences(text):
    # Lines are taken one by one as soon as one of them has another end than "\n".
    *spans, (start, end) = sentence_spans(text)
    assert sentence_spans(f"{text}\u2028") == [*spans, (start, end + 1)]


def test_sentences_end_at_terminal_punctuation():
    assert sentences("It rained. Did it stop? It did! Good… Yes.") == [
        "It rained.",
        "Did it stop?",
        "It did!",
        "Good…",
        "Yes.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "It grew by 4.2 percent in 1946.",
        "The U.S. Army left.",
        "Mr. Smith met Mrs. Jones and Dr. Brown.",
        "J. R. Smith wrote it.",
        "Use a tool, e.g. this one, i.e. That one.",
        "See Fig. 3 and No. 5 of Vol. 2.",
        "On Jan. 5 it snowed.",
        "Smith et al. (2019) found it.",
        "Acme Inc. Chairman Lee spoke.",
        "It opens at 9 a.m. Monday.",
        "He left... and came back.",
        "“Why?” she asked.",
        "See example.com or v1.2.3 for more.",
        "1. The first of all.",
    ],
)
def test_abbreviations_decimals_and_initials_do_not_split(text):
    assert sentences(text) == [text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("We met in the U.S. The talks failed.", ["We met in the U.S.", "The talks failed."]),
        ("He works at Acme Inc. She does not.", ["He works at Acme Inc.", "She does not."]),
        ("Did he go? No. I did.", ["Did he go?", "No.", "I did."]),
        ("It cost 5. Then it fell.", ["It cost 5.", "Then it fell."]),
        ("“Go.” He went.", ["“Go.”", "He went."]),
        ("(It ended.) Then more.", ["(It ended.)", "Then more."]),
        ("It is known.[12] Others differ.", ["It is known.[12]", "Others differ."]),
        ("他来了。她走了！真的？", ["他来了。", "她走了！", "真的？"]),
        ("「行く。」と言った。", ["「行く。」", "と言った。"]),
    ],
)
def test_sentences_split_where_a_reader_would(text, expected):
    assert sentences(text) == expected


def test_a_wrapped_paragraph_keeps_its_sentences_whole_and_a_blank_line_ends_one():
    text = "The rate rose\nby 4.2 percent\nin May. It then\nfell\n\nA new paragraph\n \t\nAnother"
    assert sentences(text) == [
        "The rate rose\nby 4.2 percent\nin May.",
        "It then\nfell",
        "A new paragraph",
        "Another",
    ]


def test_headings_list_items_and_table_rows_stand_alone():
    text = (
        "# Results\nThe text\ngoes on\n- first item\n  wrapped\n- second item\n(a) third\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\nAfter.\n4.2 Profit and Loss\nMore text"
    )
    assert sentences(text) == [
        "# Results",
        "The text\ngoes on",
        "- first item\n  wrapped",
        "- second item",
        "(a) third",
        "| a | b |",
        "|---|---|",
        "| 1 | 2 |",
        "After.",
        "4.2 Profit and Loss",
        "More text",
    ]


def test_a_wrapped_line_that_begins_with_a_number_is_no_list_item():
    text = "The whole of this long line runs on to the page\n12. It ends there."
    assert "page\n12." in sentences(text)[0]


def test_numbered_items_keep_their_numbers():
    text = "The parts that matter are these:\n1. The first\n2. The second. It has two\n10. The last"
    assert sentences(text) == [
        "The parts that matter are these:",
        "1. The first",
        "2. The second.",
        "It has two",
        "10. The last",
    ]


def test_lines_of_a_long_block_without_sentence_ends_stand_alone():
    rows = [f"{number},name{number},value{number}" for number in range(200)]
    assert sentences("\n".join(rows)) == rows


def test_windows_line_ends_do_not_change_the_sentences():
    text = "First line\ngoes on. Then\n\n- an item\n- another"
    windows = [sentence.replace("\r\n", "\n") for sentence in sentences(text.replace("\n", "\r\n"))]
    assert windows == sentences(text)


@pytest.mark.parametrize(
    "unit", ["word ", "x", ". ", "a. ", "\n", " \n", "?", "。", "J. ", "\t", "'", ".'", "?[1]"]
)
def test_a_million_characters_of_one_kind_are_covered(unit):
    text = unit * (1_000_000 // len(unit))
    spans = sentence_spans(text)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)


@pytest.mark.parametrize(
    "line",
    [
        "# Title",
        "###",
        "4.2 Results",
        "1 Introduction",
        "Chapter IV",
        "Article 5: Duties",
        "A.1 Data",
    ],
)
def test_headings_are_recognised(line):
    assert is_heading(line)


@pytest.mark.parametrize(
    "line", ["", "#hashtag", "1946 was a hard year.", "4.2 percent", "Part of it.", "plain text"]
)
def test_ordinary_lines_are_no_headings(line):
    assert not is_heading(line)
