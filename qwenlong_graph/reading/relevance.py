"""How much a sentence bears on a question, by the words they share.

The "extract" protocol serves models too small to judge relevance, so this module judges: the
share of the question's terms that a sentence holds, each term weighted by how rare it was in the
sentences read so far. It works on words as they stand, without a dictionary: two words are the
same term when they share a long enough beginning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from qwenlong_graph.reading.sentences import sentence_spans

__all__ = [
    "asks_for_several",
    "content_terms",
    "coverage",
    "listed_terms",
    "points_to",
    "question_terms",
    "sentences_of",
    "tally_sentences",
    "term_weights",
]

SENTENCES = "*"
"""The key under which a tally counts sentences; no term can be this."""

_WORD = re.compile(r"\d[\d.,:/-]*\d|\d|[^\W\d_]+(?:['’][^\W\d_]+)?")
# Capitalised words that do not open the question, and figures.
_NAME = re.compile(r"(?<=[^\s.?!][ \n(\"'“‘])[^\W\d_a-z][^\W_]+|\d[\d.,:/-]*\d")
_RARE_NAME_SENTENCES = 3
_SEVERAL = re.compile(
    r"""\b(?:(?:each|every)(?!\s+(?:day|night|morning|evening|week|month|year|hour|time))|all|both|respectively|list|two|three|four|five|six|seven|eight|nine|ten
    |what\s+(?:are|were)|(?:which|what)\s+\w+s\s+(?:are|were|did|do|have|had))\b""",
    re.IGNORECASE | re.VERBOSE,
)
# "X and Y", "X Y, Z and W".
_NAME_WORDS = r"[^\W\d_a-z][\w'’-]+(?: [^\W\d_a-z][\w'’-]+)*"
_NAMES_JOINED = re.compile(rf"\b{_NAME_WORDS}(?:, {_NAME_WORDS})*,? (?:and|or) {_NAME_WORDS}")
_NAMES_BORDER = re.compile(r",? (?:and|or) |, ")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0eff]")
_STOP = frozenset(
    """a about after all also am an and any are as at be because been before being between both
    but by can could did do does doing down during each find for from give given had has have
    having he her here hers him his how i if in into is it its just know many may me might more
    most much must my name no nor not of off on once one only or other our out over own please
    said same say says shall she should so some such tell text than that the their them then
    there these they this those through to too under until up upon us very was we were what when
    where whether which while who whom whose why will with would you your document section
    according state""".split()
)


def asks_for_several(question: str) -> bool:
    """Whether the question seems to ask for more than one thing ("each", "which ships were",
    two names joined by "and"). By English words; what is not recognised asks for one."""
    return bool(_SEVERAL.search(question) or _NAMES_JOINED.search(question))


def sentences_of(text: str, *, longest_chars: int = 2_000) -> list[tuple[int, int]]:
    """(start, end) of the sentences of `text` without their outer white space, none longer
    than `longest_chars` (what is longer is cut at white space)."""
    spans: list[tuple[int, int]] = []
    for start, end in sentence_spans(text):
        while start < end:
            stop = end
            if stop - start > longest_chars:
                space = text.rfind(" ", start + longest_chars // 2, start + longest_chars)
                stop = space if space > start else start + longest_chars
            piece = text[start:stop]
            left = start + len(piece) - len(piece.lstrip())
            right = left + len(piece.strip())
            if right > left:
                spans.append((left, right))
            start = stop
    return spans


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    return word.casefold().replace("’", "'").removesuffix("'s")


def _words(text: str) -> list[str]:
    words: list[str] = []
    for found in _WORD.finditer(text.replace("\u200b", "")):
        word = _stem(found.group())
        if _UNSPACED.search(word):
            words.extend(word[i : i + 2] for i in range(max(1, len(word) - 1)))
        else:
            words.append(word)
    return words


def question_terms(question: str) -> list[str]:
    """The words of a question that can tell a sentence, in order, each once."""
    return content_terms(question) or [
        word for word in dict.fromkeys(_words(question)) if len(word) > 1
    ]


def content_terms(question: str) -> list[str]:
    """`question_terms`, none where all of its words are such as "when", "was" and "it"."""
    words = dict.fromkeys(_words(question))
    return [word for word in words if word not in _STOP and (len(word) > 1 or word.isdigit())]


@lru_cache(maxsize=65_536)
def _same_term(one: str, other: str) -> bool:
    if one == other:
        return True
    shorter, longer = sorted((one, other), key=len)
    if len(shorter) < 4 or one[0].isdigit() or other[0].isdigit():
        return shorter + "s" == longer
    shared = 0
    for left, right in zip(shorter, longer, strict=False):
        if left != right:
            break
        shared += 1
    return shared >= 4 and shared >= len(longer) * 0.6 and shared >= len(shorter) - 2


def _held(terms: Iterable[str], sentence: str) -> set[str]:
    words = set(_words(sentence))
    return {
        term
        for term in terms
        if term in words or any(_same_term(term, word) for word in words if word[0] == term[0])
    }


def tally_sentences(
    terms: Sequence[str], sentences: Iterable[str], before: Mapping[str, int]
) -> dict[str, int]:
    """How many sentences were read so far, and how many of them hold each term."""
    tally = {term: before.get(term, 0) for term in terms}
    tally[SENTENCES] = before.get(SENTENCES, 0)
    for sentence in sentences:
        tally[SENTENCES] += 1
        for term in _held(terms, sentence):
            tally[term] += 1
    return tally


def term_weights(question: str, tally: Mapping[str, int]) -> dict[str, float]:
    """The weight of each term of `question`: the logarithm of how rare it was, rare names twice.

    A paraphrase keeps names and changes the rest; a passage on another subject does the reverse.
    Names that run through the whole document tell no more than other words.
    """
    sentences = tally.get(SENTENCES, 0)
    names = {_stem(name) for name in _NAME.findall(question)}
    weights: dict[str, float] = {}
    for term in question_terms(question):
        seen = tally.get(term, 0)
        is_rare_name = term in names and seen <= _RARE_NAME_SENTENCES
        weights[term] = math.log((sentences + 2) / (seen + 1)) * (2.0 if is_rare_name else 1.0)
    return weights


def listed_terms(question: str) -> list[frozenset[str]]:
    """The terms of each name in a list of names ("Anna Lind, Bela and Cora Finch")."""
    return [
        frozenset(question_terms(name))
        for names in _NAMES_JOINED.findall(question)
        for name in _NAMES_BORDER.split(names)
    ]


def coverage(
    sentence: str, weights: Mapping[str, float], *, listed: Iterable[frozenset[str]] = ()
) -> float:
    """The weighted share (0 to 1) of the terms that `sentence` holds.

    Of the `listed` names a sentence need hold only one: each has its own sentence, as a rule.
    """
    held = _held(weights, sentence)
    others: set[str] = set()
    names = list(listed)
    if any(name & held for name in names):
        others = {term for name in names if not name & held for term in name} - held
    total = sum(weight for term, weight in weights.items() if term not in others)
    if total <= 0:
        return 0.0
    return sum(weights[term] for term in held) / total


def points_to(
    statement: str, sentences: Sequence[str], *, weights: Mapping[str, float]
) -> list[tuple[int, float]]:
    """The sentences that a model's statement points to, best first, as (index, score 0 to 1).

    A statement in the model's own words points to the sentence that holds its rarest words.
    Words of the question weigh half: a reply that only repeats the question points nowhere.
    """
    terms = question_terms(statement)
    if not terms:
        return []
    held = [_held(terms, sentence) for sentence in sentences]
    seen = {term: sum(term in words for words in held) for term in terms}
    asked = set(weights)
    weight = {
        term: math.log((len(sentences) + 2) / (seen[term] + 1))
        * (0.5 if any(_same_term(term, word) for word in asked) else 1.0)
        for term in terms
    }
    total = sum(weight.values())
    own = sum(weight[term] for term in terms if not any(_same_term(term, word) for word in asked))
    scores = []
    for index, words in enumerate(held):
        new = sum(
            weight[term] for term in words if not any(_same_term(term, word) for word in asked)
        )
        if total > 0 and own > 0 and new > 0:
            scores.append((index, sum(weight[term] for term in words) / total))
    return sorted(scores, key=lambda score: (-score[1], score[0]))
