"""From an answer to its citations: which quotes stand behind it, and what nothing stands behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qwenlong_graph.reading.claims import cite_sentences, unsupported_claims
from qwenlong_graph.reading.evidence import SourceText, align_memory, line_key
from qwenlong_graph.reading.prompts import says_not_found
from qwenlong_graph.reading.relevance import (
    coverage,
    points_to,
    question_terms,
    sentences_of,
    tally_sentences,
    term_weights,
)
from qwenlong_graph.reading.replies import parse_json
from qwenlong_graph.types import AnswerSpan, Evidence, UnsupportedClaim

__all__ = [
    "NOT_FOUND_ANSWER",
    "CheckedAnswer",
    "check_answer",
    "find_support",
    "repeats_nothing",
]

NOT_FOUND_ANSWER = "Nothing in the documents bears on this question."


@dataclass(frozen=True)
class CheckedAnswer:
    """An answer held against the quotes. `cited` are (index of the quote, answer spans it
    supports), in the order in which the answer uses them."""

    answer: str
    found: bool
    cited: list[tuple[int, list[AnswerSpan]]]
    unsupported: list[UnsupportedClaim]


def check_answer(
    answer: str, quotes: Sequence[str], *, question: str = "", is_structured: bool = False
) -> CheckedAnswer:
    """Ties the sentences of `answer` to `quotes` and lists the claims that stand in none.

    Quotes that support no sentence are left out. A short answer ("460,000") makes no sentence
    that could be tied: it is tied whole to the quotes that hold it beside the words of the
    `question`. If nothing can be tied, all quotes are listed, since the answer was made from
    them. Without quotes nothing was found, whatever the answer says.
    """
    if says_not_found(answer) or not answer.strip():
        return CheckedAnswer(NOT_FOUND_ANSWER, False, [], [])
    find_claims = _claims_of_values if is_structured else unsupported_claims
    claims = find_claims(answer, quotes)
    spans = cite_sentences(answer, quotes)
    cited = [(index, spans[index]) for index in range(len(quotes)) if spans[index]]
    cited.sort(key=lambda pair: (pair[1][0]["start_index"], pair[0]))
    if not cited and not any(claim["status"] == "unsupported" for claim in claims):
        held = points_to(answer, quotes, weights=term_weights(question, {}))
        whole = AnswerSpan(start_index=0, end_index=len(answer.rstrip()))
        cited = sorted((index, [whole]) for index, score in held if score >= held[0][1])
    if not cited:
        cited = [(index, []) for index in range(len(quotes))]
    return CheckedAnswer(answer, bool(quotes), cited, claims)


def _claims_of_values(answer: str, quotes: Sequence[str]) -> list[UnsupportedClaim]:
    """Claims of the values of a JSON answer; its keys are the asker's words, not claims."""
    claims: list[UnsupportedClaim] = []
    place = 0
    for leaf in _leaves(parse_json(answer)):
        start = max(answer.find(leaf, place), 0)
        place = start
        claims.extend(
            {
                **claim,
                "start_index": claim["start_index"] + start,
                "end_index": claim["end_index"] + start,
            }
            for claim in unsupported_claims(leaf, quotes)
        )
    return claims


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)


def find_support(
    answer: str, *, question: str, sources: Sequence[SourceText], most: int = 3
) -> list[Evidence]:
    """Where whole documents bear an answer out that was not made from evidence (strategy "full").

    First the answer's own sentences are aligned; a short answer ("1874") aligns with nothing and
    is looked for in the sentences that hold it together with the question's rare words.
    """
    evidence: list[Evidence] = []
    for source in sources:
        known = {piece["line"] for piece in evidence}
        found = align_memory(answer, previous=[], chunk=source, held=[])
        evidence.extend(piece for piece in found if piece["line"] not in known)
    if evidence:
        return evidence
    places = [(source, span) for source in sources for span in sentences_of(source.text)]
    sentences = [source.text[start:end] for source, (start, end) in places]
    tally = tally_sentences(question_terms(question), sentences, {})
    weights = term_weights(question, tally)
    for index, score in points_to(answer, sentences, weights=weights)[:most]:
        if score < 0.5 or coverage(sentences[index], weights) < 0.25:
            continue
        source, (start, end) = places[index]
        evidence.append(
            Evidence(
                document=source.document,
                start_char=source.start_char + start,
                end_char=source.start_char + end,
                line=line_key(answer),
            )
        )
    return evidence


def repeats_nothing(answer: str, *, question: str, quotes: Sequence[str]) -> bool:
    """Whether an answer holds no word of the quotes beyond those of the question."""
    asked = set(question_terms(question))
    said = set(question_terms(answer)) - asked
    offered = {term for quote in quotes for term in question_terms(quote)} - asked
    return bool(offered) and not said & offered
