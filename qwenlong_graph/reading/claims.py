"""What an answer claims beyond its evidence, and which sentence each piece of evidence supports.

Claims are the figures, dates, codes and capitalised names of an answer. One is supported if it
stands in the evidence, however it is written there. A figure is exact unless a word such as
"about" or "over" stands before it; then it may be rounded at its last digit. A figure that
follows from figures of the evidence by one operation is "computed".

Not claims: list numbers, citation marks such as "[1]", headings, and small numbers in words
("two reasons") that carry no unit. Words of the question are no evidence.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations
from typing import Literal

from qwenlong_graph.reading.evidence import Normalised, is_spoken_otherwise, normalise
from qwenlong_graph.reading.facts import (
    Code,
    Date,
    Facts,
    Figure,
    Name,
    content_words,
    facts,
    holds_name,
    is_ordinary,
    same_word,
)
from qwenlong_graph.reading.sentences import sentence_spans
from qwenlong_graph.types import AnswerSpan, UnsupportedClaim

__all__ = ["cite_sentences", "count_claims", "unsupported_claims"]

_Claim = Figure | Date | Code | Name

LARGEST_UNCLAIMED_WORD = 10
MOST_FIGURES = 30
"""Computations are tried between at most this many figures of the evidence."""


# --- claims ------------------------------------------------------------------------------------

_NOT_CLAIMS = re.compile(
    r"(?m)^[ \t]*(?:[-*+>][ \t]+)*\(?\d{1,3}[.)](?=[ \t])"  # list numbers
    r"|\[\^?\d{1,3}(?:[ ,;-]+\d{1,3})*\]"  # citation marks
    r"|^[ \t]*#{1,6}[ \t].*$"  # headings
    r"|https?://[^\s)>\]]+"
)
_LABEL = re.compile(r"(?m)^[ \t]*(?:[-*+|>][ \t]*)*\**(?P<label>[A-Z][^\n:.|]{0,60}?)\**:\**(?=\s)")
_TABLE_ROW = re.compile(r"(?m)^[ \t]*\|.*$")


def _claims(raw: str) -> tuple[Normalised, Facts, list[_Claim]]:
    """An answer in normalised form, all its facts, and those of them that are claims."""
    # Marks and labels are told by their lines, which normalising joins.
    titled_at = [match.span("label") for match in _LABEL.finditer(raw)]
    titled_at += [match.span() for match in _TABLE_ROW.finditer(raw)]
    normalised = normalise(_NOT_CLAIMS.sub(lambda match: " " * len(match[0]), raw))
    titled = [tuple(map(normalised.offset_of, span)) for span in titled_at]
    answer = normalised.text
    found = facts(answer)
    ordinals = [figure for figure in found.figures if figure.is_word and figure.is_ordinal]
    claims: list[_Claim] = [
        figure
        for figure in found.figures
        if figure not in ordinals
        and not (figure.is_word and not figure.unit and figure.value <= LARGEST_UNCLAIMED_WORD)
    ]
    claims += found.dates
    claims += found.codes
    lower = {word for word in re.findall(r"\b[^\W\d_]+\b", answer) if word.islower()}
    for name in found.names:
        is_titled = any(start <= name.start < end for start, end in titled)
        if claim := _name_claim(answer, name, lower, is_titled=is_titled):
            claims.append(claim)
    return normalised, found, sorted(claims, key=lambda claim: claim.start)


def _name_claim(answer: str, name: Name, lower: set[str], *, is_titled: bool) -> Name | None:
    """The name without words that are capitalised only for where they stand."""
    if all(len(token) == 1 for token in name.tokens):
        return None
    if is_titled and all(is_ordinary(token) or token in lower for token in name.tokens):
        return None
    if not name.is_opening:
        return name
    first = name.tokens[0]
    if len(name.tokens) == 1:
        is_known = re.search(rf"[\w,] {re.escape(answer[name.start : name.end])}\b", answer)
        return name if is_known or first not in lower else None
    return replace(name, tokens=name.tokens[1:]) if is_ordinary(first) else name


def count_claims(answer: str) -> int:
    """How many claims an answer makes: what `unsupported_claims` looks for in the evidence."""
    return len(_claims(answer)[2])


def unsupported_claims(answer: str, evidence: Sequence[str]) -> list[UnsupportedClaim]:
    """The claims of an answer that stand in no evidence, in reading order.

    Offsets count into `answer`. Figures that follow from the evidence have status "computed".
    """
    return _unsupported(answer, _Held(evidence))


class _Held:
    """The evidence with its facts."""

    def __init__(self, evidence: Sequence[str]) -> None:
        self.texts = [normalise(text).text for text in evidence]
        self.facts = [facts(text) for text in self.texts]
        self.figures = [figure for found in self.facts for figure in found.figures]
        self.dates = [date for found in self.facts for date in found.dates]
        self.folded = "\n".join(self.texts).casefold()
        self.scale_notes = {found.scale_note for found in self.facts} - {1}


def _unsupported(answer: str, held: _Held) -> list[UnsupportedClaim]:
    normalised, found, claims = _claims(answer)
    notes = held.scale_notes | ({found.scale_note} - {1})
    unsupported = []
    for claim in claims:
        derivation = None
        if isinstance(claim, Name):
            kind: Literal["figure", "date", "name"] = "name"
            is_supported = any(holds_name(claim, text) for text in held.texts)
        elif isinstance(claim, Date):
            kind = "date"
            is_supported = _holds_date(claim, held)
        elif isinstance(claim, Code):
            kind = "figure"
            is_supported = _holds_code(claim, held)
        else:
            kind = "figure"
            is_supported = _holds_figure(claim, held, notes)
            if not is_supported:
                derivation = _derivation(claim, found, held)
        if is_supported:
            continue
        start, end = normalised.original_span(claim.start, claim.end)
        unsupported.append(
            UnsupportedClaim(
                text=answer[start:end],
                kind=kind,
                start_index=start,
                end_index=end,
                status="computed" if derivation else "unsupported",
                derivation=derivation,
            )
        )
    return unsupported


# --- dates and codes ---------------------------------------------------------------------------


def _holds_date(claim: Date, held: _Held) -> bool:
    for date in held.dates:
        if claim.is_decade and date.year is not None:
            if claim.year is not None and claim.year // 10 == date.year // 10:
                return True
            continue
        # "March 4" beside "1907" in the same evidence is a date in two parts.
        year_fits = claim.year in (None, date.year) or (
            date.year is None and any(d.year == claim.year for d in held.dates)
        )
        if year_fits and all(
            ours is None or ours == theirs
            for ours, theirs in (
                (claim.month, date.month),
                (claim.day, date.day),
                (claim.weekday, date.weekday),
            )
        ):
            return True
    is_year = claim.month is None and claim.weekday is None
    return is_year and any(figure.value == claim.year for figure in held.figures)


def _holds_code(claim: Code, held: _Held) -> bool:
    # A clock time without seconds stands in one with them.
    return bool(re.search(rf"(?<![^\W_]){re.escape(claim.key)}(?![^\W_])", held.folded)) or any(
        code.key == claim.key or (":" in claim.key and code.key.startswith(claim.key))
        for found in held.facts
        for code in found.codes
    )


# --- figures -----------------------------------------------------------------------------------


def _holds_figure(claim: Figure, held: _Held, scale_notes: set[int]) -> bool:
    for figure in held.figures:
        if _agree(claim, figure) and any(
            _is_value(claim, abs(value)) for value in _readings(claim, figure, scale_notes)
        ):
            return True
    if claim.unit or claim.scale > 1:
        return False
    return any(claim.value in (date.day, date.year) for date in held.dates) or any(
        code.key.rpartition("-")[2] == str(claim.value) for f in held.facts for code in f.codes
    )


def _readings(claim: Figure, figure: Figure, scale_notes: set[int]) -> Iterator[Fraction]:
    """What a figure may stand for: its number as written, or so many thousands by a note."""
    yield figure.value
    if not claim.unit:
        yield figure.value / figure.factor
    elif not figure.unit:
        yield figure.value * claim.factor
    for scale in scale_notes:
        if figure.scale == scale:
            yield figure.value / scale
        elif figure.scale == 1:
            yield figure.value * scale


def _agree(claim: Figure, figure: Figure) -> bool:
    """True if the units agree; one that is not stated agrees with all but those of another kind."""
    if claim.unit == figure.unit:
        return True
    if claim.unit and figure.unit:
        return False
    bare = claim if not claim.unit else figure
    unit = claim.unit or figure.unit
    return not (bare.noun and unit in ("%", "points"))


def _is_value(claim: Figure, value: Fraction) -> bool:
    ours = abs(claim.value)
    if ours == value:
        return True
    difference = value - ours
    if claim.marker == "about":
        return abs(difference) <= min(claim.step / 2, value / 10)
    if claim.marker == "over":
        return 0 <= difference < claim.step
    if claim.marker == "under":
        return 0 <= -difference < claim.step
    return False


# --- computed figures --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Result:
    value: Fraction
    unit: str | None  # None: any
    text: str
    is_rounded: bool = False  # a division: right if equal at the claim's last digit


def _derivation(claim: Figure, answer: Facts, held: _Held) -> str | None:
    """How a claim follows from figures of the evidence by one operation, None if it does not.

    With many figures at hand some operation hits any small number by accident. So either the
    answer states the operands itself, or the claim must have digits enough that an accidental
    hit is unlikely (below one in twenty). Whole numbers below ten are never computed, but for
    spans of years.
    """
    if span := _span_of_dates(claim, held):
        return span
    if claim.is_ordinal or (claim.value < 10 and claim.value.denominator == 1 and not claim.unit):
        return None
    figures = _distinct(held.figures)
    stated = [
        figure
        for figure in figures
        if any(_agree(ours, figure) and ours.value == figure.value for ours in answer.figures)
    ]
    digits = len(str(int(claim.value / claim.step))) if claim.step else 1
    is_telling = 4 * len(figures) * (len(figures) - 1) // 2 <= 10**digits / 20
    operands = figures if is_telling else stated
    for result in (*_totals(stated, held), *_operations(operands)):
        if result.unit is not None and claim.unit and result.unit and result.unit != claim.unit:
            continue
        if result.unit == "%" and not claim.unit:
            continue
        if _fits(claim, result):
            return f"{result.text} = {_shown(claim.value, claim)}"
    return None


def _fits(claim: Figure, result: _Result) -> bool:
    value = abs(result.value)
    if value == abs(claim.value):
        return True
    if result.is_rounded:
        return abs(value - abs(claim.value)) <= claim.step / 2 and claim.step <= abs(value)
    return bool(claim.marker) and _is_value(claim, value)


def _distinct(figures: Sequence[Figure]) -> list[Figure]:
    chosen = {(figure.value, figure.unit): figure for figure in figures if not figure.is_ordinal}
    return list(chosen.values())[:MOST_FIGURES]


def _totals(stated: Sequence[Figure], held: _Held) -> Iterator[_Result]:
    """Sums of three and more: all of one unit in the evidence, in one piece of it, or stated."""
    groups = [held.figures, *(list(found.figures) for found in held.facts), list(stated)]
    for group in groups:
        for unit in {figure.unit for figure in group}:
            terms = [f for f in group if f.unit == unit and not f.is_ordinal]
            if 3 <= len(terms) <= MOST_FIGURES:
                text = " + ".join(_shown(f.value, f) for f in terms)
                yield _Result(sum((f.value for f in terms), Fraction(0)), unit, text)


def _operations(figures: Sequence[Figure]) -> Iterator[_Result]:
    for one, other in combinations(figures, 2):
        small, large = sorted((one, other), key=lambda figure: figure.value)
        low, high = _shown(small.value, small), _shown(large.value, large)
        is_alike = one.unit == other.unit or not (one.unit and other.unit)
        unit = one.unit or other.unit
        if is_alike:
            difference_unit = "points" if unit == "%" else unit
            yield _Result(large.value - small.value, difference_unit, f"{high} - {low}")
            if unit == "%":
                yield _Result(large.value - small.value, "%", f"{high} - {low}")
            yield _Result(
                large.value + small.value,
                unit,
                f"{_shown(one.value, one)} + {_shown(other.value, other)}",
            )
            if small.value > 0:
                share = small.value / large.value * 100
                yield _Result(share, "%", f"{low} / {high} x 100", is_rounded=True)
                fall = (large.value - small.value) / large.value * 100
                yield _Result(fall, "%", f"({high} - {low}) / {high} x 100", is_rounded=True)
                rise = (large.value - small.value) / small.value * 100
                yield _Result(rise, "%", f"({high} - {low}) / {low} x 100", is_rounded=True)
        if small.value > 0 and not (one.unit == other.unit == "%"):
            per = one.unit if not other.unit else "" if is_alike else None
            yield _Result(large.value / small.value, per, f"{high} / {low}", is_rounded=True)
        if not (one.unit and other.unit) or "%" in (one.unit, other.unit):
            product = one.value * other.value
            if "%" in (one.unit, other.unit):
                product, unit = product / 100, other.unit if one.unit == "%" else one.unit
            yield _Result(product, unit, f"{_shown(one.value, one)} x {_shown(other.value, other)}")


def _shown(value: Fraction, figure: Figure) -> str:
    """The number as plain digits, in the unit in which its figure is written."""
    number = value / figure.factor
    text = f"{float(number):,.6f}".rstrip("0").rstrip(".")
    return text + ("%" if figure.unit == "%" else "")


def _span_of_dates(claim: Figure, held: _Held) -> str | None:
    """A span of years between two years, or of days between two full dates, of the evidence."""
    if claim.unit == "months" and claim.value % 12 == 0:
        years = sorted({date.year for date in held.dates if date.year is not None})
        for first, last in combinations(years, 2):
            if (last - first) * 12 == claim.value:
                return f"{last} - {first} = {last - first}"
    if claim.unit == "time" and claim.value % 86_400 == 0:
        days = sorted(set(_days(held.dates)))
        for begin, end in combinations(days, 2):
            if (end - begin).days * 86_400 == claim.value:
                return f"{end} - {begin} = {(end - begin).days}"
    return None


def _days(dates: Sequence[Date]) -> Iterator[datetime.date]:
    years = {date.year for date in dates if date.year is not None}
    for date in dates:
        year = date.year if date.year is not None else min(years) if len(years) == 1 else None
        if year and date.month and date.day:
            try:
                yield datetime.date(year, date.month, date.day)
            except ValueError:
                continue  # 30 February


# --- sentences and their evidence --------------------------------------------------------------

FACT_COVERAGE = 0.3
WORD_COVERAGE = 0.6
"""Shares of a sentence's content words that a piece of evidence must hold to support it: the
lower one beside a fact that both state, the higher one without."""


def cite_sentences(answer: str, evidence: Sequence[str]) -> list[list[AnswerSpan]]:
    """For each piece of evidence the spans of the answer's sentences that it supports.

    A sentence with an unsupported claim is given to none: a citation beside it would vouch for
    the claim. Nor is one that denies what the evidence says, or turns it round. A sentence with
    a computed figure is given to the pieces that its terms come from.
    """
    doubtful = _unsupported(answer, _Held(evidence))
    pieces = [_Piece(text) for text in evidence]
    cited: list[list[AnswerSpan]] = [[] for _ in evidence]
    for start, end in sentence_spans(answer):
        text = answer[start:end].rstrip()
        inside = [claim for claim in doubtful if start <= claim["start_index"] < end]
        if not text or any(claim["status"] == "unsupported" for claim in inside):
            continue
        sentence = _Sentence(text, [claim["derivation"] or "" for claim in inside])
        for number, piece in enumerate(pieces):
            if _supports(piece, sentence):
                cited[number].append(AnswerSpan(start_index=start, end_index=start + len(text)))
    return cited


class _Piece:
    """One piece of evidence with its facts and words."""

    def __init__(self, text: str) -> None:
        self.held = _Held([text])
        self.text = self.held.texts[0]
        self.words = set(content_words(self.text))
        self.facts = self.held.facts[0]


class _Sentence:
    """One sentence of an answer with its claims and words, and the terms of its computations."""

    def __init__(self, text: str, derivations: Sequence[str]) -> None:
        normalised, self.facts, self.claims = _claims(text)
        self.text = normalised.text
        self.words = set(content_words(self.text))
        self.held = _Held([self.text])
        self.terms = {term for shown in derivations for term in re.findall(r"[\d.,]*\d%?", shown)}


def _supports(piece: _Piece, sentence: _Sentence) -> bool:
    words = sentence.words
    shared = sum(
        word in piece.words or any(same_word(word, other) for other in piece.words)
        for word in words
    )
    held = [claim for claim in sentence.claims if _is_held(claim, piece.held)]
    terms = sum(_shown(figure.value, figure) in sentence.terms for figure in piece.facts.figures)
    coverage = shared / len(words) if words else 1.0
    if _is_about_another(piece, sentence, held, terms):
        return False
    if held or terms:
        is_whole = len(held) == len(sentence.claims) and shared > 0
        is_near = coverage >= FACT_COVERAGE or is_whole or bool(terms)
    else:
        is_near = shared >= 2 and coverage >= WORD_COVERAGE and not sentence.claims
    return is_near and not is_spoken_otherwise(sentence.text, piece.text)


def _is_about_another(
    piece: _Piece, sentence: _Sentence, held: Sequence[_Claim], terms: int
) -> bool:
    """True if most figures and dates of the sentence are others than those of the piece."""
    missing = [
        claim
        for claim in sentence.claims
        if claim not in held and not isinstance(claim, Name) and _has_rival(claim, piece, sentence)
    ]
    return len(missing) > terms + sum(not isinstance(claim, Name) for claim in held)


def _has_rival(claim: _Claim, piece: _Piece, sentence: _Sentence) -> bool:
    """True if the piece states a fact of the claim's kind which the sentence does not."""
    if isinstance(claim, Date):
        return any(not _holds_date(date, sentence.held) for date in piece.facts.dates)
    if isinstance(claim, Code):
        return any(not _holds_code(code, sentence.held) for code in piece.facts.codes)
    return any(
        not _holds_figure(figure, sentence.held, set())
        for figure in piece.facts.figures
        if isinstance(claim, Figure) and _agree(claim, figure)
    )


def _is_held(claim: _Claim, held: _Held) -> bool:
    if isinstance(claim, Name):
        return holds_name(claim, held.texts[0])
    if isinstance(claim, Date):
        return _holds_date(claim, held)
    if isinstance(claim, Code):
        return _holds_code(claim, held)
    return _holds_figure(claim, held, held.scale_notes)
