from __future__ import annotations

import pytest

from qwenlong_graph.reading.answers import (
    NOT_FOUND_ANSWER,
    check_answer,
    find_support,
    repeats_nothing,
)
from qwenlong_graph.reading.evidence import SourceText

QUESTION = "How many displaced persons remain in the zone?"
QUOTES = [
    "Refugees and displaced persons from Europe were admitted.",
    "Of 3,500,000 displaced persons found in the zone only 460,000 remain.",
]


def test_a_short_answer_is_tied_to_the_quote_that_holds_it():
    checked = check_answer("460,000", QUOTES, question=QUESTION)
    assert checked.cited == [(1, [{"start_index": 0, "end_index": 7}])]
    assert (checked.found, checked.unsupported) == (True, [])


def test_a_sentence_is_tied_and_quotes_beside_the_point_are_left_out():
    answer = "Only 460,000 displaced persons remain in the zone."
    checked = check_answer(answer, QUOTES, question=QUESTION)
    assert [index for index, _ in checked.cited] == [1]
    (span,) = checked.cited[0][1]
    assert answer[span["start_index"] : span["end_index"]] == answer


def test_a_wrong_figure_is_tied_to_nothing_and_listed():
    checked = check_answer("470,000", QUOTES, question=QUESTION)
    assert [claim["text"] for claim in checked.unsupported] == ["470,000"]
    assert all(spans == [] for _, spans in checked.cited)


def test_without_quotes_nothing_was_found():
    assert check_answer("460,000", [], question=QUESTION).found is False


def test_the_agreed_word_becomes_a_plain_sentence():
    for answer in ("NOT FOUND", "not found.", ""):
        checked = check_answer(answer, QUOTES, question=QUESTION)
        assert (checked.answer, checked.found, checked.cited) == (NOT_FOUND_ANSWER, False, [])


def test_claims_of_a_json_answer_are_those_of_its_values():
    answer = '{"Displaced Persons": 460000, "Source": ["Anna Marshall"], "is_final": true}'
    checked = check_answer(answer, QUOTES, question=QUESTION, is_structured=True)
    assert [claim["text"] for claim in checked.unsupported] == ["Anna Marshall"]
    (claim,) = checked.unsupported
    assert answer[claim["start_index"] : claim["end_index"]] == "Anna Marshall"


def test_each_value_of_a_json_answer_keeps_a_quote_that_holds_it():
    quotes = [
        "The minimum is 40 cents an hour.",
        "It is to be raised to 65 cents, to 70 cents after one year and to 75 cents after two.",
        "The 1,500 traders stayed away.",
        "In 1941 the minimum was 40 cents.",
    ]
    answer = '{"now": 40, "then": 65, "after_one_year": 70, "after_two": 75}'
    checked = check_answer(answer, quotes, question="What is it raised to?", is_structured=True)
    assert sorted(index for index, _ in checked.cited) == [0, 1, 3]
    for index, spans in checked.cited:
        if index != 1:
            assert [answer[span["start_index"] : span["end_index"]] for span in spans] == ["40"]
    unlike = check_answer('{"now": 40}', quotes[1:3], question="What?", is_structured=True)
    assert all(spans == [] for _, spans in unlike.cited)


def test_a_value_is_borne_out_though_it_is_written_otherwise():
    quotes = ["The mill and the bridge were sold by the widow Hale.", "It cost 1,500 crowns."]
    answer = '{"seller": "the widow Hale sold the mill and the bridge", "crowns": 1500}'
    checked = check_answer(answer, quotes, question="Who sold it?", is_structured=True)
    assert [index for index, _ in checked.cited] == [0, 1]


def test_an_answer_that_says_nothing_new_is_noticed():
    assert repeats_nothing("Displaced persons remain.", question=QUESTION, quotes=QUOTES)
    assert not repeats_nothing("460,000 remain.", question=QUESTION, quotes=QUOTES)


def test_support_for_a_short_answer_is_found_in_whole_documents():
    text = " ".join(["The winter was long.", *QUOTES, "It rained."])
    sources = [SourceText(document=4, start_char=0, text=text)]
    (piece,) = find_support("460,000", question=QUESTION, sources=sources)
    assert text[piece["start_char"] : piece["end_char"]] == QUOTES[1]
    assert piece["document"] == 4
    assert find_support("The moon.", question="Who owns it?", sources=sources) == []


def test_a_bare_yes_rests_on_what_holds_most_of_the_question():
    text = " ".join(["The winter was long.", *QUOTES, "It rained."])
    sources = [SourceText(document=0, start_char=0, text=text)]
    pieces = find_support("Yes.", question="Do displaced persons remain?", sources=sources)
    assert QUOTES[1] in [text[piece["start_char"] : piece["end_char"]] for piece in pieces]


def test_values_of_a_json_answer_are_found_in_whole_documents():
    text = " ".join(["The winter was long.", *QUOTES, "It rained."])
    sources = [SourceText(document=0, start_char=0, text=text)]
    answer = '{"n": "460,000"}'
    pieces = find_support(answer, question=QUESTION, sources=sources, is_structured=True)
    assert [text[piece["start_char"] : piece["end_char"]] for piece in pieces] == [QUOTES[1]]


@pytest.mark.parametrize("answer", ["Hale did not pay for the bridge.", "Hale sued Brandt."])
def test_denials_and_reversals_are_tied_to_nothing(answer):
    quotes = ["Brandt sued the widow Hale, who paid for the bridge."]
    checked = check_answer(answer, quotes, question="What did Hale do to Brandt?")
    assert all(spans == [] for _, spans in checked.cited)


def test_offsets_of_escaped_and_repeated_values_are_right():
    answer = r'{"a": "Line \"one\" of Ostvik", "b": "1999", "c": 1999}'
    checked = check_answer(answer, ["Nothing."], question="x", is_structured=True)
    places = [answer[c["start_index"] : c["end_index"]] for c in checked.unsupported]
    assert places[-2:] == ["1999", "1999"]
    assert all("Ostvik" in place for place in places[:-2])
    starts = [c["start_index"] for c in checked.unsupported]
    assert starts == sorted(starts)
