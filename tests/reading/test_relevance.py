from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_graph.reading.relevance import (
    asks_for_several,
    coverage,
    listed_terms,
    points_to,
    question_terms,
    sentences_of,
    tally_sentences,
    term_weights,
)

SENTENCES = [
    "The harvest of the year was good and the farmers were content.",
    "A ferry was built for the island in the spring.",
    "Its keeper, Anna Lind, painted the tower of Sandhamn white in 1911.",
    "The council met every year to discuss the roads.",
]
QUESTION = "In which year was the tower of Sandhamn painted?"


def weights(question: str = QUESTION):
    return term_weights(question, tally_sentences(question_terms(question), SENTENCES, {}))


def test_the_sentence_that_answers_covers_the_question_best():
    shares = [coverage(sentence, weights()) for sentence in SENTENCES]
    assert max(shares) == shares[2] > 0.7
    assert sorted(shares)[-2] < 0.3


def test_words_common_in_the_document_weigh_less():
    assert weights()["year"] < weights()["painted"]


def test_names_of_the_question_weigh_double():
    lower = weights(QUESTION.replace("Sandhamn", "sandhamn"))
    assert weights()["sandhamn"] == 2 * lower["sandhamn"]


def test_a_reply_in_other_words_points_by_its_own_rare_words():
    best = points_to("Lind did it in 1911.", SENTENCES, weights=weights())
    assert best[0][0] == 2


def test_a_reply_that_only_repeats_the_question_points_nowhere():
    assert points_to("The tower of Sandhamn was painted.", SENTENCES, weights=weights()) == []


def test_an_invented_year_points_nowhere():
    assert points_to("The tower was painted in 1834.", SENTENCES, weights=weights()) == []


def test_tallies_add_up_over_chunks():
    terms = question_terms(QUESTION)
    whole = tally_sentences(terms, SENTENCES, {})
    parts = tally_sentences(terms, SENTENCES[2:], tally_sentences(terms, SENTENCES[:2], {}))
    assert whole == parts


def test_inflections_are_one_term():
    share = coverage("They were painting towers.", term_weights("who painted the tower", {}))
    assert share == 1.0


def test_text_without_spaces_has_terms():
    assert coverage("灯塔建于一九一一年。", term_weights("灯塔什么时候建成?", {})) > 0.1
    assert coverage("今天天气很好。", term_weights("灯塔什么时候建成?", {})) == 0


@given(st.text(max_size=500))
def test_sentences_are_trimmed_ordered_and_lose_no_word(text):
    spans = sentences_of(text)
    assert all(text[start:end] == text[start:end].strip() != "" for start, end in spans)
    assert "".join("".join(text[start:end].split()) for start, end in spans) == "".join(
        text.split()
    )


@pytest.mark.parametrize(
    ("question", "is_for_several"),
    [
        ("What did each ferryman give?", True),
        ("Which ships were lost?", True),
        ("What are the terms?", True),
        ("What did Anna Lind and Bela Bartos sign?", True),
        ("Which ship was lost?", False),
        ("Who tuned the harp every month?", False),
        ("Who signed the lease and when?", False),
        ("In which year was the tower painted?", False),
    ],
)
def test_a_question_for_several_things_is_told_by_its_words(question, is_for_several):
    assert asks_for_several(question) is is_for_several


LISTING = "What did Ada Kell, Ben Moss, Cora Finch and Dan Pike bring to the picnic at Marlow?"


def test_listed_names_are_told_apart():
    assert listed_terms(LISTING) == [
        {"ada", "kell"},
        {"ben", "moss"},
        {"cora", "finch"},
        {"dan", "pike"},
    ]
    assert listed_terms("Which ship did Ada Kell sell?") == []
    assert listed_terms("Did Kell or Moss pay?") == [{"kell"}, {"moss"}]


def test_a_sentence_needs_only_one_of_the_names_listed():
    sentence = "Ben Moss brought a lantern to the picnic at Marlow."
    alone = coverage(sentence, weights(LISTING))
    listed = coverage(sentence, weights(LISTING), listed=listed_terms(LISTING))
    assert alone < 0.5 < 0.8 < listed
    other = "Somebody else came to the picnic at Marlow."
    assert coverage(other, weights(LISTING), listed=listed_terms(LISTING)) == coverage(
        other, weights(LISTING)
    )
