"""From an answer to its citations: which quotes stand behind it, and what nothing stands behind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qwenlong_graph.reading.claims import cite_sentences, unsupported_claims
from qwenlong_graph.reading.evidence import SourceText, align_memory, line_key, normalise
from qwenlong_graph.reading.prompts import says_not_found
from qwenlong_graph.reading.relevance import (
    coverage,
    listed_terms,
    points_to,
    question_terms,
    sentences_of,
    tally_sentences,
    term_weights,
)
from qwenlong_graph.types import AnswerSpan, Evidence, UnsupportedClaim

__all__ = [
    "NOT_FOUND_ANSWER",
    "CheckedAnswer",
    "check_answer",
    "find_support",
    "repeats_nothing",
]

_LEAD = re.compile(
    r"\s*(?:the\s+)?answer(?:\s+to\s+the\s+question)?\s*(?:is\b|:)[\s:]*", re.IGNORECASE
)

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

    Quotes that support no sentence are left out; those of a JSON answer stay where they alone hold
    one of its values. A short answer ("460,000") makes no sentence
    that could be tied: it is tied to the quotes that hold it word for word, if it adds a word to
    those of the `question`. If nothing can be tied, all quotes are listed, since the answer was
    made from them. Without quotes nothing was found, whatever the answer says.
    """
    if says_not_found(answer) or not answer.strip():
        return CheckedAnswer(NOT_FOUND_ANSWER, False, [], [])
    find_claims = _claims_of_values if is_structured else unsupported_claims
    claims = find_claims(answer, quotes)
    spans = cite_sentences(answer, quotes)
    if is_structured and any(spans):
        _add_values(answer, quotes, spans)
    cited = [(index, spans[index]) for index in range(len(quotes)) if spans[index]]
    cited.sort(key=lambda pair: (pair[1][0]["start_index"], pair[0]))
    if not cited and not any(claim["status"] == "unsupported" for claim in claims):
        whole = AnswerSpan(start_index=0, end_index=len(answer.rstrip()))
        cited = [
            (index, [whole])
            for index, quote in enumerate(quotes)
            if _is_held_verbatim(answer, quote, question=question)
        ]
    if not cited:
        cited = [(index, []) for index in range(len(quotes))]
    return CheckedAnswer(answer, bool(quotes), cited, claims)


def _is_held_verbatim(answer: str, quote: str, *, question: str) -> bool:
    """Whether a short answer, without a lead like "The answer is", stands in the quote."""
    short = normalise(_LEAD.sub("", answer)).text.strip(" .\"'*").casefold()
    if set(question_terms(short)) <= set(question_terms(question)):
        return False
    whole_words = rf"(?<!\w){re.escape(short)}(?!\w)"
    return re.search(whole_words, normalise(quote).text.casefold()) is not None


def _claims_of_values(answer: str, quotes: Sequence[str]) -> list[UnsupportedClaim]:
    """Claims of the values of a JSON answer; its keys are the asker's words, not claims."""
    claims: list[UnsupportedClaim] = []
    for leaf, start, end in _placed_leaves(answer):
        for claim in unsupported_claims(leaf, quotes):
            is_literal = start >= 0 and answer[start:end] == leaf
            claims.append(
                {
                    **claim,
                    # An escaped value has other offsets than its text: it is named as a whole.
                    "start_index": start + claim["start_index"] if is_literal else max(start, 0),
                    "end_index": start + claim["end_index"]
                    if is_literal
                    else (end if start >= 0 else len(answer)),
                }
            )
    return claims


def _add_values(answer: str, quotes: Sequence[str], spans: Sequence[list[AnswerSpan]]) -> None:
    """Adds to `spans` the values of a JSON answer that no quote with spans bears out yet."""
    for leaf, start, end in _placed_leaves(answer):
        holders = [index for index, quote in enumerate(quotes) if _bears_out(quote, leaf)]
        if start >= 0 and not any(spans[index] for index in holders):
            for index in holders:
                spans[index].append(AnswerSpan(start_index=start, end_index=end))


def _bears_out(quote: str, value: str) -> bool:
    if _is_held_verbatim(value, quote, question=""):
        return True
    return bool(unsupported_claims(value, [])) and not unsupported_claims(value, [quote])


def _placed_leaves(answer: str) -> Iterator[tuple[str, int, int]]:
    """The leaves of a JSON answer and where each stands in it; -1 where that is not found."""
    place = 0
    for leaf in _leaves(answer):
        start = end = -1
        for spelt in (leaf, json.dumps(leaf)[1:-1], json.dumps(leaf, ensure_ascii=False)[1:-1]):
            start = answer.find(spelt, place)
            if start >= 0:
                end = place = start + len(spelt)
                break
        yield leaf, start, end


def _leaves(answer: str) -> Iterator[str]:
    """The strings and figures of a JSON answer, as they are spelt and in their order."""
    open_values: list[Any] = [json.loads(answer, parse_int=str, parse_float=str)]
    while open_values:
        value = open_values.pop()
        if isinstance(value, dict | list):
            inner = value.values() if isinstance(value, dict) else value
            open_values.extend(reversed(list(inner)))
        elif isinstance(value, str):
            yield value


def find_support(
    answer: str,
    *,
    question: str,
    sources: Sequence[SourceText],
    is_structured: bool = False,
    most: int = 3,
) -> list[Evidence]:
    """Where whole documents bear an answer out that was not made from evidence (strategy "full").

    First the answer's own sentences (or the values of a JSON answer) are aligned; a short answer
    ("1874") aligns with nothing and is looked for in the sentences that hold it together with the
    question's rare words; for one that stands nowhere ("Yes.") the sentences that hold most of
    the question are what it was made from.
    """
    statements = [answer]
    if is_structured:
        statements = list(_leaves(answer))
    evidence: list[Evidence] = []
    for source in sources:
        for statement in statements:
            known = {piece["line"] for piece in evidence}
            found = align_memory(statement, previous=[], chunk=source, held=[])
            evidence.extend(piece for piece in found if piece["line"] not in known)
    if evidence and not is_structured:
        return evidence
    places = [(source, span) for source in sources for span in sentences_of(source.text)]
    sentences = [source.text[start:end] for source, (start, end) in places]
    tally = tally_sentences(question_terms(question), sentences, {})
    weights = term_weights(question, tally)
    listed = listed_terms(question)
    shares = [coverage(sentence, weights, listed=listed) for sentence in sentences]
    chosen: dict[int, str] = {}
    for statement in statements:
        for index, score in points_to(statement, sentences, weights=weights)[:most]:
            if score >= 0.5 and shares[index] >= 0.25:
                chosen[index] = statement
    if not chosen and not evidence:
        best = sorted(range(len(sentences)), key=lambda index: (-shares[index], index))[:most]
        chosen = {index: answer for index in best if shares[index] >= 0.4}
    for index in sorted(chosen):
        source, (start, end) = places[index]
        evidence.append(
            Evidence(
                document=source.document,
                start_char=source.start_char + start,
                end_char=source.start_char + end,
                line=line_key(chosen[index]),
            )
        )
    return evidence


def repeats_nothing(answer: str, *, question: str, quotes: Sequence[str]) -> bool:
    """Whether an answer holds no word of the quotes beyond those of the question."""
    asked = set(question_terms(question))
    said = set(question_terms(answer)) - asked
    offered = {term for quote in quotes for term in question_terms(quote)} - asked
    return bool(offered) and not said & offered
