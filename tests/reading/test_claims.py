from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenlong_graph.reading.claims import cite_sentences, count_claims, unsupported_claims

EVIDENCE = [
    "Net sales were $4,213 million in 2021, and the firm employed 1,250 people.",
    "Theodore Roosevelt met Franklin Pierce in Albany on 4 March 1907, at 17:00.",
    "The rule applies to 12 of 30 cases, i.e. to 40%.",
    "The United States Court of Appeals affirmed; Norwell Shipping Ltd paid EUR 0.85 a share.",
    "The European Southern Observatory runs version 2.14.1 on node-17 for five minutes.",
]


def unsupported(answer: str, evidence: list[str] | None = None) -> list[str]:
    claims = unsupported_claims(answer, EVIDENCE if evidence is None else evidence)
    for claim in claims:
        assert answer[claim["start_index"] : claim["end_index"]] == claim["text"]
    return [claim["text"] for claim in claims if claim["status"] == "unsupported"]


def derivations(answer: str, evidence: list[str]) -> list[str | None]:
    return [
        claim["derivation"]
        for claim in unsupported_claims(answer, evidence)
        if claim["status"] == "computed"
    ]


@pytest.mark.parametrize(
    "answer",
    [
        "Net sales were $4,213 million.",
        "Net sales came to US$4.213 billion.",
        "Net sales were about $4.2 billion.",
        "Net sales were over $4 billion.",
        "There were 1250 employees, nearly 1,300.",
        "Roosevelt's visit was on 1907-03-04.",
        "On March 4th, 1907 T. Roosevelt came to ALBANY.",
        "In March 1907 they met at 5 p.m.",
        "It was in the 1900s.",
        "Twelve of the 30 cases are covered, that is 40 percent.",
        "The U.S. Court of Appeals agreed.",
        "The court of the US agreed.",
        "Norwell paid €0.85 per share.",
        "The ESO runs v2.14.1 for 300 seconds.",
        "1. There is one rule.\n2. Roosevelt came [3].\n\n## Big Heading Here 77",
        "- **Total Revenue:** $4,213 million",
        "Based on the documents, I found two reasons. However, the third is missing.",
        "See https://example.org/2033/Report for more.",
        "Employment stood at 1,250.",
        "",
    ],
)
def test_what_the_evidence_says_in_other_words_raises_no_alarm(answer):
    assert unsupported(answer) == []


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ("Net sales were $4,312 million.", "$4,312 million"),
        ("Net sales were $4,213 billion.", "$4,213 billion"),
        ("Net sales were €4,213 million.", "€4,213 million"),
        ("Net sales were $4.2 billion.", "$4.2 billion"),
        ("Net sales were about $4.4 billion.", "$4.4 billion"),
        ("Net sales were over $5 billion.", "$5 billion"),
        ("It applies to 40 percentage points.", "40 percentage points"),
        ("It applies in 41% of the cases.", "41%"),
        ("They met on 5 March 1907.", "5 March 1907"),
        ("They met on 4 May 1907.", "4 May 1907"),
        ("They met in 1908.", "1908"),
        ("They met on a Tuesday.", "Tuesday"),
        ("They met at 5:30 p.m.", "5:30 p.m"),
        ("It was in the 1920s.", "1920s"),
        ("Franklin Roosevelt came.", "Franklin Roosevelt"),
        ("Theodore Roosewelt came.", "Theodore Roosewelt"),
        ("They went to Boston.", "Boston"),
        ("Nakano did it.", "Nakano"),
        ("IBM was not involved.", "IBM"),
        ("The code raises a TypeError.", "TypeError"),
        ("It runs version 2.14.2 there.", "2.14.2"),
        ("It runs on node-18.", "node-18"),
        ("It ran for seven minutes.", "seven minutes"),
        ("Fourteen cases are covered.", "Fourteen"),
    ],
)
def test_a_wrong_figure_date_unit_or_name_is_found_at_its_place(answer, wrong):
    assert unsupported(answer) == [wrong]


def test_each_claim_says_of_what_kind_it_is():
    claims = unsupported_claims("In 1999 Nakano paid 77 euros.", EVIDENCE)
    assert [claim["kind"] for claim in claims] == ["date", "name", "figure"]


@pytest.mark.parametrize(
    ("answer", "evidence", "derivation"),
    [
        ("Together: $42.", ["A cost $12.", "B cost $30."], "12 + 30 = 42"),
        ("The gap is $18.", ["A cost $12.", "B cost $30."], "30 - 12 = 18"),
        ("In all 5,400 litres.", ["12 teams.", "Each got 450 litres."], "12 x 450 = 5,400"),
        ("12 is 40% of 30.", ["We saw 12.", "There were 30."], "12 / 30 x 100 = 40%"),
        ("It grew by 25%.", ["It was $80.", "It is $100."], "(100 - 80) / 80 x 100 = 25%"),
        ("In all 1,750 t.", ["500 t, 650 t, 600 t."], "500 + 650 + 600 = 1,750"),
        ("He ruled for eight years.", ["He ruled from 1822 to 1830."], "1830 - 1822 = 8"),
    ],
)
def test_a_figure_that_follows_from_the_evidence_is_computed(answer, evidence, derivation):
    assert derivations(answer, evidence) == [derivation]


@pytest.mark.parametrize(
    ("answer", "evidence"),
    [
        ("Together: $43.", ["A cost $12.", "B cost $30."]),
        ("Together: €42.", ["A cost $12.", "B cost $30."]),
        ("There are 7 left.", ["A has 3 cows.", "B has 4 cows."]),
        ("It was in 1950.", ["A has 1,000 cows.", "B has 950 cows."]),
        # Among many figures some pair hits every small number.
        ("The share is 37%.", ["Figures: 12, 19, 23, 31, 44, 58, 62, 75, 81, 93, 104, 118."]),
    ],
)
def test_no_figure_is_computed_by_accident(answer, evidence):
    assert derivations(answer, evidence) == []
    assert len(unsupported(answer, evidence)) == 1


def test_a_table_in_thousands_supports_figures_written_out():
    evidence = ["(in thousands) Net sales 4,213"]
    assert unsupported("Net sales were 4,213,000.", evidence) == []
    assert unsupported("Net sales were 4,213,000.", ["Net sales 4,213"]) == ["4,213,000"]


def test_a_bare_number_of_a_table_supports_one_with_its_unit():
    assert unsupported("It made 500 tonnes in 5 minutes.", ["made | 500", "time | 5"]) == []
    assert unsupported("It made 500 tonnes.", ["It made 500 kg."]) == ["500 tonnes"]


def test_claims_are_counted_whether_supported_or_not():
    assert count_claims("In 1907 Roosevelt paid $5 and 12%.") == 4
    assert count_claims("1. Nothing was said [2].") == 0


# --- citing ------------------------------------------------------------------------------------


def cited(answer: str, evidence: list[str]) -> list[list[str]]:
    return [
        [answer[span["start_index"] : span["end_index"]] for span in spans]
        for spans in cite_sentences(answer, evidence)
    ]


def test_each_sentence_goes_to_the_evidence_that_supports_it():
    answer = (
        "Net sales were $4,213 million in 2021. Roosevelt met Pierce in Albany.\n\nThat is all."
    )
    assert cited(answer, [*EVIDENCE[:2], "The weather was fine."]) == [
        ["Net sales were $4,213 million in 2021."],
        ["Roosevelt met Pierce in Albany."],
        [],
    ]


@pytest.mark.parametrize(
    "answer",
    [
        "Net sales were $4.9 billion in 2021.",
        "Roosevelt did not meet Pierce in Albany.",
        "The rule does not apply to 12 of 30 cases.",
        "Pierce paid $4,213 million to Nakano.",
    ],
)
def test_a_sentence_that_is_wrong_or_turned_round_is_cited_by_none(answer):
    assert cited(answer, EVIDENCE) == [[] for _ in EVIDENCE]


def test_a_sentence_from_two_pieces_is_given_to_both():
    answer = "Sales were $12 in May and costs $30 in June."
    evidence = ["Sales in May: $12.", "Costs in June: $30.", "Sales in July: $70."]
    assert cited(answer, evidence) == [[answer], [answer], []]


def test_a_piece_with_other_figures_in_the_same_words_is_not_cited():
    answer = "In 1905 the mill made 190 tonnes, Anders Holm said."
    evidence = [f"In {1900 + n} the mill made {n * 38} tonnes, Anders Holm said." for n in (4, 5)]
    assert cited(answer, evidence) == [[], [answer]]


def test_a_computed_figure_is_given_to_the_pieces_its_terms_come_from():
    answer = "The total is $42."
    assert cited(answer, ["A cost $12.", "B cost $30.", "The roof is red."]) == [
        [answer],
        [answer],
        [],
    ]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=120), st.lists(st.text(max_size=60), max_size=3))
def test_arbitrary_text_never_fails(answer, evidence):
    unsupported(answer, evidence)
    assert len(cite_sentences(answer, evidence)) == len(evidence)


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("0123456789.,:-/% $€kmMay'TZN½²\nA(["), max_size=40))
def test_an_answer_that_repeats_its_evidence_raises_no_alarm(answer):
    assert unsupported(answer, [answer]) == []


# --- the benchmark -----------------------------------------------------------------------------


def test_the_committed_pairs_keep_the_measured_rates(tmp_path):
    root = Path(__file__).parents[2]
    saved = tmp_path / "rates.json"
    subprocess.run(
        [sys.executable, str(root / "benchmarks" / "unsupported.py"), "--json", str(saved)],
        check=True,
        capture_output=True,
    )
    rates = json.loads(saved.read_text(encoding="utf-8"))
    assert rates["all"]["true_answers"] == 60
    assert rates["all"]["answers_with_alarm"] <= 0.07
    assert rates["all"]["claims_with_alarm"] <= 0.03
    assert rates["held_out"]["answers_with_alarm"] <= 0.14
    assert rates["all"]["detected"] >= 0.97
