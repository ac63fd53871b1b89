"""Ties the lines of a memory to the places in the documents that they were taken from.

A line is found exactly (after `normalise`), or nearly: the best one to three neighbouring
sentences that hold its words. A near match must also agree in every figure with its unit, in
every date, code and capitalised name, in negation and in direction ("rose", "fell"); a line that
no place supports gets none. What is not caught: roles given by common nouns ("the dog bit the
man"), a plan told as a deed ("will close", "closed"), "respectively", and synonyms, which only
lower the score.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from qwenlong_graph.reading.facts import (
    BEGINNING_LETTERS,
    OPENING_WORDS,
    Date,
    Facts,
    Figure,
    Name,
    capitalised_words,
    clauses,
    content_word_at,
    content_words,
    direction_conflict,
    facts,
    fold,
    folded_text,
    holds_name,
    is_negated,
    name_token,
    negated_words,
    same_direction,
    same_word,
    spellings,
)
from qwenlong_graph.reading.sentences import sentence_spans
from qwenlong_graph.types import Evidence

__all__ = [
    "Match",
    "Normalised",
    "SourceText",
    "align",
    "align_memory",
    "contradicts",
    "is_spoken_otherwise",
    "line_key",
    "memory_lines",
    "normalise",
    "place_of",
    "unverified_lines",
]

NEAR_SCORE = 0.75
"""Share of a line's content words and figures that a near match must hold. On the pairs of
`tests/reading/test_evidence.py` the agreement checks alone keep every false one out; the score
keeps out lines that say much more than the place does."""

SHARE_OF_SENTENCE = 0.15
SHARE_OF_WINDOW = 0.2
"""Share of the content words of a sentence, or of a window of several, that the line must hold:
in a long enough stretch a short line's words are found by chance."""

LONG_LINE_CHARS = 200
"""A longer memory line is split into sentences, each a claim of its own."""

LONGEST_QUOTE_CHARS = 1_000
"""A fragment is widened to its sentence, unless that "sentence" is longer than this (a log, a
table in one line); near matches are not looked for in longer stretches either."""

FEWEST_NEAR_WORDS = 3
_CANDIDATE_SENTENCES = 8
_MOST_PLACES = 50  # how many occurrences of an exact line are tried


@dataclass(frozen=True)
class SourceText:
    """A stretch of a document: a chunk, or a held piece of evidence."""

    document: int
    start_char: int
    text: str


@dataclass(frozen=True)
class Match:
    """Where a line stands; offsets count into the document's own text.

    `is_exact` says that the line, or a quotation in it, stands there word for word; `score` is
    then 1.0, else the share of the line's words found.
    """

    document: int
    start_char: int
    end_char: int
    is_exact: bool
    score: float


# --- normalising -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Normalised:
    """Comparable text, and the way back to the offsets of the original."""

    text: str
    # One entry for each run: where it begins here, where in the original, where it ends there,
    # and whether its characters stand one to one.
    _starts: list[int] = field(repr=False)
    _runs: list[tuple[int, int, bool]] = field(repr=False)

    def original_span(self, start: int, end: int) -> tuple[int, int]:
        """Offsets in the original of the characters from `start` to `end` (not empty)."""
        return self._original(start)[0], self._original(end - 1)[1]

    def offset_of(self, original: int) -> int:
        """Where the first character at or after an offset of the original stands here."""
        return self.offsets_of([original])[0]

    def offsets_of(self, originals: Sequence[int]) -> list[int]:
        """`offset_of` each of some ascending offsets, in one pass."""
        offsets: list[int] = []
        done = 0
        for start, (begin, end, is_literal) in zip(self._starts, self._runs, strict=True):
            while done < len(originals) and originals[done] < end:
                offsets.append(start + (max(0, originals[done] - begin) if is_literal else 0))
                done += 1
        return offsets + [len(self.text)] * (len(originals) - done)

    def _original(self, index: int) -> tuple[int, int]:
        number = bisect_right(self._starts, index) - 1
        begin, end, is_literal = self._runs[number]
        if not is_literal:
            return begin, end
        at = begin + index - self._starts[number]
        return at, at + 1


_REPLACED = {
    **dict.fromkeys("‘’‚‛′ʼ´", "'"),
    **dict.fromkeys("“”„‟″«»", '"'),
    **dict.fromkeys("‐‑‒–—―−﹘﹣－", "-"),
    "⁄": "/",
}
_FOLDED_DECOMPOSITIONS = frozenset(
    f"<{tag}>"
    for tag in ("compat", "wide", "narrow", "noBreak", "font", "initial", "medial", "final")
)
_SOFT_HYPHENS = "\u00ad\x02"  # the second is what some PDF readers give for it


@functools.lru_cache(maxsize=4096)
def _folded(character: str) -> str:
    """Compatibility folding of one character.

    Superscripts, fractions and circled digits stay what they are: "10²" is not "102".
    """
    if character in _REPLACED:
        return _REPLACED[character]
    if unicodedata.category(character) in ("Cf", "Cc"):
        return ""
    decomposition = unicodedata.decomposition(character)
    if not decomposition:
        return character
    if decomposition.startswith("<"):
        if decomposition.split(" ", 1)[0] not in _FOLDED_DECOMPOSITIONS:
            return character
        folded = unicodedata.normalize("NFKC", character)
        return character if folded.startswith(" ") else "".join(map(_refolded, folded))
    return unicodedata.normalize("NFC", character)


def _refolded(character: str) -> str:
    return _REPLACED.get(character, character)


def normalise(text: str) -> Normalised:
    """The text in comparable form; takes time linear in its length.

    Typographic quotes, dashes, ligatures and width forms are folded, invisible characters and
    Markdown's emphasis and code marks dropped, white space runs become one space, and words
    hyphenated at a line's end are joined. Case is kept.
    """
    plain, irregular = _folded_one_to_one(text)
    pieces: list[str] = []
    starts: list[int] = []
    runs: list[tuple[int, int, bool]] = []
    length = last = 0

    def add(piece: str, begin: int, end: int, *, is_literal: bool) -> None:
        nonlocal length
        if piece:
            pieces.append(piece)
            starts.append(length)
            runs.append((begin, end, is_literal))
            length += len(piece)

    # The second of two spaces becomes a tab: no search need stop at the many lone spaces.
    spaced = text.replace("  ", " \t")
    for match in irregular.finditer(spaced):
        begin, end = match.span()
        if match.lastgroup == "gap" and begin > last and spaced[begin - 1] == " ":
            begin -= 1
        add(plain[last:begin], last, begin, is_literal=True)
        piece = _replacement(match, text, text[begin:end])
        if piece == " " and pieces and pieces[-1].endswith(" "):
            piece = ""  # a dropped mark stood between two gaps
        add(piece, begin, end, is_literal=False)
        last = end
    add(plain[last:], last, len(text), is_literal=True)
    return Normalised("".join(pieces), starts, runs)


_ASCII_SPACES = {number: " " for number in range(128) if chr(number).isspace()}
_ASCII_CONTROLS = "\\x00-\\x08\\x0e-\\x1b\\x7f"
_OTHER_SPACES = "\\t-\\r\\x1c-\\x1f\\x85\\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


def _folded_one_to_one(text: str) -> tuple[str, re.Pattern[str]]:
    """The text with every character folded that gives one character (white space a space), by a
    few fast passes; and a pattern for all that takes more."""
    if text.isascii():
        return text.translate(_ASCII_SPACES), _irregular("", "", has_marks=False)
    plain, dropped, changed = text, "", ""
    characters = sorted(set(text))  # ascending: what a character is folded to had its turn before
    for character in characters:
        if " " <= character <= "~":
            continue
        folded = " " if character.isspace() else _folded(character)
        if not folded:
            dropped += re.escape(character)
        elif len(folded) > 1:
            changed += re.escape(character)
        elif folded != character:
            plain = plain.replace(character, folded)
    has_marks = any("\u0300" <= character <= "\u036f" for character in characters)
    return plain, _irregular(dropped, changed, has_marks=has_marks)


@functools.lru_cache(maxsize=256)
def _irregular(dropped: str, changed: str, *, has_marks: bool) -> re.Pattern[str]:
    """Finds what is not folded one to one; a gap is found without the space it may begin with.

    The pattern begins with a class of characters, because `re` runs to the next of a class far
    faster than to the next of some alternatives: those look back at the character instead.
    """
    dropped = _ASCII_CONTROLS + dropped
    gap = rf"[\s{dropped}]"
    alternatives = [
        rf"(?P<broken>(?<=[^\W\d_][-‐‑]){gap}+(?=[^\W\d_]))",
        # White space that stands alone needs nothing done, unless behind a mark that is dropped.
        rf"(?P<gap>(?:(?<=[{dropped}])|(?<=[{_OTHER_SPACES}])(?:(?={gap})|(?<=[ *`].))){gap}*)",
        r"(?P<emphasis>(?<=`)`*"
        r"|(?<=\*)(?:(?<![^\s(\[\"']\*)\**(?=\S)|(?<=\S\*)\**(?!\w)))",
    ]
    if changed:
        alternatives.append(rf"(?<=[{changed}])")
    first = rf"[-‐‑*`{_OTHER_SPACES}{dropped}{changed}]"
    pattern = rf"{first}(?:{'|'.join(alternatives)})"
    if has_marks:
        pattern = rf"(?P<mark>[^\W\d_][\u0300-\u036f]{{1,8}})|{pattern}"
    return re.compile(pattern, re.DOTALL)


def _replacement(match: re.Match[str], text: str, found: str) -> str:
    kind = match.lastgroup
    if kind == "gap":
        if found[0] in _SOFT_HYPHENS and "\n" in found:
            return ""
        return " " if any(map(str.isspace, found)) else ""
    if kind == "mark":
        return unicodedata.normalize("NFC", found)
    if kind == "emphasis":
        return ""
    if kind == "broken":
        has_break = "\n" in found or "\r" in found
        if has_break and text[match.start() - 1].islower() and text[match.end()].islower():
            return ""
        return "- " if any(map(str.isspace, found)) else "-"
    return "".join(_folded(character) for character in found)


# --- memory lines ------------------------------------------------------------------------------

_BULLET = re.compile(r"(?:[-*+•‣◦▪●>|]+(?:\s+|\Z)|\|+|\(?\d{1,3}[.)]\s+|\[[ xX]\]\s+)")


def _plain(line: str) -> str:
    """The line without bullets, numbering and emphasis, normalised."""
    line = line.strip()
    while match := _BULLET.match(line):
        line = line[match.end() :]
    line = normalise(line).text.strip(" |")
    while match := _BULLET.match(line):
        line = line[match.end() :]
    return line.strip()


def line_key(line: str) -> str:
    """Eight hex digits that name a memory line, whatever its bullet, spacing and emphasis."""
    return hashlib.sha256(_plain(line).encode("utf-8", "surrogatepass")).hexdigest()[:8]


def place_of(piece: Evidence) -> tuple[int, int, int]:
    """(document, start_char, end_char): what makes two pieces the same place, in reading order."""
    return piece["document"], piece["start_char"], piece["end_char"]


def memory_lines(memory: str) -> list[str]:
    """The lines of a memory that can be claims, in plain form and without repetition.

    Headings ("## Facts", "Facts:"), rules and fences are left out.
    """
    lines: dict[str, None] = {}
    for raw in memory.splitlines():
        stripped = raw.strip()
        if stripped.startswith(("#", "```", "~~~")):
            continue
        line = _plain(raw)
        if line.endswith(":") or not any(map(str.isalnum, line)):
            continue
        if len(line) <= LONG_LINE_CHARS:
            lines[line] = None
            continue
        for start, end in sentence_spans(line):
            sentence = _plain(line[start:end])
            if any(map(str.isalnum, sentence)):
                lines[sentence] = None
    return list(lines)


# --- a source, indexed as far as it is asked about ---------------------------------------------


class _Source:
    """A source text with what looking in it needs; parts are made when first asked for.

    A memory gains a line or two with a chunk of thousands of sentences, so sentences are taken
    apart into words only where a search through the text finds a word of the line.
    """

    def __init__(self, source: SourceText) -> None:
        self.source = source
        self._words: dict[int, dict[str, set[str]]] = {}
        self._holders: dict[str, list[int]] = {}

    @functools.cached_property
    def normalised(self) -> Normalised:
        return normalise(self.source.text)

    @functools.cached_property
    def text(self) -> str:
        return self.normalised.text

    @functools.cached_property
    def sentences(self) -> list[tuple[int, int]]:
        """Spans of the sentences in the normalised text, long ones in pieces."""
        spans: list[tuple[int, int]] = []
        edges = self.normalised.offsets_of([start for start, _ in sentence_spans(self.source.text)])
        for start, end in pairwise([*edges, len(self.text)]):
            if 0 < end - start <= LONGEST_QUOTE_CHARS:  # nearly all
                spans.append((start, end))
            else:
                spans.extend(_pieces(self.text, start, end))
        return spans

    @functools.cached_property
    def sentence_starts(self) -> list[int]:
        return [start for start, _ in self.sentences]

    def words(self, number: int) -> dict[str, set[str]]:
        """The content words of a sentence, under their beginnings."""
        if number not in self._words:
            start, end = self.sentences[number]
            self._words[number] = _by_beginning(content_words(self.text[start:end]))
        return self._words[number]

    def sentences_with(self, beginning: str) -> list[int]:
        """Numbers of the sentences that hold a content word with that beginning, ascending."""
        if beginning not in self._holders:
            self._holders[beginning] = sorted(self._find(beginning))
        return self._holders[beginning]

    def _find(self, beginning: str) -> set[int]:
        text, sentences, starts = self.text, self.sentences, self.sentence_starts
        folded, unfolded = self._folded
        found = {number for number in unfolded if beginning in self.words(number)}
        for spelling in spellings(beginning):
            at = folded.find(spelling)
            while at >= 0:
                number = bisect_right(starts, at) - 1
                start, end = sentences[number]
                is_inside_word = at > start and folded[at - 1].isalpha()
                if number not in found and not is_inside_word:
                    word = content_word_at(text[start:end], at - start)
                    if word[:BEGINNING_LETTERS] == beginning:
                        found.add(number)
                at = folded.find(spelling, end if number in found else at + 1)
        return found

    @functools.cached_property
    def _folded(self) -> tuple[str, set[int]]:
        """The text with folded letters, to search through; and numbers of the sentences with
        letters that do not fold one to one: in those every word is looked at."""
        folded, letters = folded_text(self.text)
        places = re.finditer(f"[{re.escape(letters)}]", self.text) if letters else ()
        return folded, {bisect_right(self.sentence_starts, place.start()) - 1 for place in places}

    def sentences_over(self, start: int, end: int) -> tuple[int, int]:
        """Numbers of the first and last sentence that the span touches."""
        first = max(0, bisect_right(self.sentence_starts, start) - 1)
        return first, max(first, bisect_right(self.sentence_starts, end - 1) - 1)

    def match(self, start: int, end: int, *, is_exact: bool, score: float) -> Match:
        while start < end and self.text[start].isspace():
            start += 1
        while end > start and self.text[end - 1].isspace():
            end -= 1
        begin, stop = self.normalised.original_span(start, end)
        offset = self.source.start_char
        return Match(self.source.document, offset + begin, offset + stop, is_exact, score)


def _by_beginning(words: Sequence[str]) -> dict[str, set[str]]:
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for word in words:
        groups[word[:BEGINNING_LETTERS]].add(word)
    return groups


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The span, cut at white space into pieces of at most `LONGEST_QUOTE_CHARS`."""
    while end - start > LONGEST_QUOTE_CHARS:
        cut = text.rfind(" ", start + 1, start + LONGEST_QUOTE_CHARS) + 1
        cut = cut or start + LONGEST_QUOTE_CHARS
        yield start, cut
        start = cut
    if end > start:
        yield start, end


# --- exact -------------------------------------------------------------------------------------

_QUOTATION = re.compile(r"\"([^\"]{12,})\"")
_CLOSING_MARKS = " .,;:!?\"'"


def _exact(line: str, source: _Source) -> Match | None:
    """The line itself, or a quotation of four words or more in it, found word for word."""
    target = line.strip(_CLOSING_MARKS)
    if _is_distinct(target):
        variants = [target]
        if target[0].isupper() and target[1:2].islower():
            variants.append(target[0].lower() + target[1:])
        elif target[0].islower():
            variants.append(target[0].upper() + target[1:])
        fragment: Match | None = None
        for variant in variants:
            for start in _places(source.text, variant):
                end = start + len(variant)
                match = _exact_at(line, source, start, end)
                if match and _holds_sentence(source, start, end):
                    return match
                # The beginning of a longer sentence, as long as no sentence is the line itself.
                fragment = fragment or match
        if fragment:
            return fragment
    for quotation in _QUOTATION.finditer(line):
        quoted = quotation[1].strip(_CLOSING_MARKS)
        if len(quoted.split()) < 4 or len(quoted) > len(target) - 2:
            continue
        for start in _places(source.text, quoted):
            # Who said it, and to whom, must stand next to it.
            first, last = source.sentences_over(start, start + len(quoted))
            window = source.text[
                source.sentences[max(0, first - 1)][0] : source.sentences[
                    min(len(source.sentences) - 1, last + 1)
                ][1]
            ]
            if not contradicts(line, window):
                return source.match(start, start + len(quoted), is_exact=True, score=1.0)
    return None


def _is_distinct(target: str) -> bool:
    """False for what is too short to mean one place: a word or two letters."""
    letters = sum(map(str.isalnum, target))
    has_long_script = any("\u3040" <= c <= "\u9fff" or "\uac00" <= c <= "\ud7a3" for c in target)
    return letters >= 4 if has_long_script else letters >= 8 and " " in target


def _places(text: str, target: str) -> Iterator[int]:
    """Where the target stands as whole words and whole figures."""
    start = text.find(target)
    for _ in range(_MOST_PLACES):
        if start < 0:
            return
        if not _cuts(text, start) and not _cuts(text, start + len(target)):
            yield start
        start = text.find(target, start + 1)


def _cuts(text: str, border: int) -> bool:
    """True if a border between two characters cuts a word or a figure."""
    if border in (0, len(text)):
        return False
    before, after = text[border - 1], text[border]
    if before.isalnum() and after.isalnum():
        # CJK text has no word borders to keep to.
        return not (before > "\u2e80" or after > "\u2e80") or (before.isdigit() and after.isdigit())
    around = text[max(0, border - 2) : border + 2]
    return (
        bool(
            re.fullmatch(r"\d[.,:/-]\d.?|.?\d[.,:/-]\d", around)
            and (before.isdigit() or after.isdigit())
        )
        or (before.isdigit() and after in "%°½¼¾²³")
        or (after.isdigit() and before in "$€£¥-")
    )


def _exact_at(line: str, source: _Source, start: int, end: int) -> Match | None:
    first, last = source.sentences_over(start, end)
    begin, stop = source.sentences[first][0], source.sentences[last][1]
    if _holds_sentence(source, start, end):
        # Its quotation and closing marks belong to it.
        while start > begin and source.text[start - 1] in "\"'(":
            start -= 1
        while end < stop and source.text[end] in ".!?\"')":
            end += 1
        return source.match(start, end, is_exact=True, score=1.0)
    if contradicts(line, source.text[begin:stop]):
        return None  # "the plan was approved" stands in "nobody said the plan was approved"
    return source.match(begin, stop, is_exact=True, score=1.0)


def _holds_sentence(source: _Source, start: int, end: int) -> bool:
    """True if the span covers at least one whole sentence."""
    first, last = source.sentences_over(start, end)
    return any(
        _is_reached(source.text, start, end, *source.sentences[number])
        for number in range(first, last + 1)
    )


def _is_reached(text: str, start: int, end: int, sentence_start: int, sentence_end: int) -> bool:
    """True if the span covers the sentence but for its bullet and closing marks."""
    head = text[sentence_start:start] if start > sentence_start else ""
    tail = text[end:sentence_end] if end < sentence_end else ""
    return (
        not any(map(str.isalnum, _BULLET.sub("", head.lstrip(), count=1)))
        and not any(map(str.isalnum, tail))
        and len(head) < 12
        and not re.search(r"[%$€£¥°½¼¾²³]", tail)
    )


# --- near --------------------------------------------------------------------------------------


def _near(line: str, source: _Source, near_score: float) -> Match | None:
    """The smallest run of up to three sentences that holds the line's words and all its facts."""
    if len(line) > LONGEST_QUOTE_CHARS:
        return None
    words = list(dict.fromkeys(content_words(line)))
    line_facts = facts(line)
    figures = len(line_facts.figures) + len(line_facts.dates) + len(line_facts.codes)
    if not words or len(words) + figures < FEWEST_NEAR_WORDS:
        return None
    needed = near_score * (len(words) + figures) - figures
    found = (source.sentences_with(word[:BEGINNING_LETTERS]) for word in words)
    holders = sorted((sentences for sentences in found if sentences), key=len)
    if len(holders) < max(needed, 1):
        return None
    votes: Counter[int] = Counter()
    for number, sentences in enumerate(holders):
        # Words that stand everywhere decide nothing; the rarest ones always vote.
        if number >= 3 and len(sentences) > 400:
            break
        votes.update(sentences)
    if 3 * max(votes.values()) < needed:
        return None
    candidates = sorted(votes, key=lambda n: (-votes[n], n))[:_CANDIDATE_SENTENCES]

    @functools.cache
    def held(number: int) -> _Held:
        there = source.words(number)
        ours = (
            word
            for word in words
            if any(same_word(word, other) for other in there.get(word[:BEGINNING_LETTERS], ()))
        )
        return frozenset(ours), sum(map(len, there.values()))

    windows = {
        (first, last): covered
        for number in candidates
        for first, last, covered in _windows(number, held, len(source.sentences))
    }
    if not windows:
        return None
    # Facts do not vote: of two sentences built alike, the one with the line's words is meant,
    # and if its figures differ the line is wrong, not the other sentence right.
    best = max(windows.values())
    if best < needed or best == 0:
        return None
    order = sorted(
        (span for span, covered in windows.items() if covered == best),
        key=lambda span: (span[1] - span[0], span[0]),
    )
    for first, last in order[:_CANDIDATE_SENTENCES]:
        begin, stop = source.sentences[first][0], source.sentences[last][1]
        window = source.text[begin:stop]
        if not contradicts(line, window) and not _has_another_word(line, window):
            score = (best + figures) / (len(words) + figures)
            return source.match(begin, stop, is_exact=False, score=score)
    return None


_Held = tuple[frozenset[str], int]  # a sentence's words that are the line's, and how many it has


def _windows(
    number: int, held: Callable[[int], _Held], sentences: int
) -> Iterator[tuple[int, int, int]]:
    """(first, last, covered words) of windows around a sentence in which each one adds words."""
    for first in range(max(0, number - 2), number + 1):
        for last in range(number, min(first + 3, sentences)):
            words, sizes = zip(*map(held, range(first, last + 1)), strict=True)
            union = frozenset[str]().union(*words)
            share = SHARE_OF_SENTENCE if first == last else SHARE_OF_WINDOW
            if len(union) < sum(sizes) * share:
                continue
            if first == last or (
                words[0].difference(*words[1:]) and words[-1].difference(*words[:-1])
            ):
                yield first, last, len(union)


# --- agreement ---------------------------------------------------------------------------------


def contradicts(line: str, window: str) -> bool:
    """True if a fact of the line is missing in the window, or the two speak opposite ways.

    Both texts are normalised ones.
    """
    ours, theirs = facts(line), facts(window)
    return (
        _lacks_figures(ours, theirs)
        or any(not any(_holds_date(ours_, d) for d in theirs.dates) for ours_ in ours.dates)
        or not {code.key for code in ours.codes} <= {code.key for code in theirs.codes}
        or _lacks_names(line, window)
        or not all(holds_name(name, window) for name in ours.names if len(name.tokens) > 1)
        or is_spoken_otherwise(line, window)
        or _is_crossed(line, window)
        or _is_moved_otherwise(line, window, ours, theirs)
    )


def is_spoken_otherwise(line: str, window: str) -> bool:
    """True if one of two normalised texts denies what the other says, or turns it round: by an
    opposite word, or by who does what to whom."""
    return (
        _is_negated_otherwise(line, window)
        or _is_turned(line, window)
        or _has_swapped_names(line, window, facts(line), facts(window))
    )


def _lacks_figures(ours: Facts, theirs: Facts) -> bool:
    """True if a figure of ours is missing, with its unit, or counts another thing there."""
    rest = list(theirs.figures)
    for figure in ours.figures:
        same = [f for f in rest if f.value == figure.value and _units_agree(figure, f)]
        if not same:
            return True
        counted = [f for f in same if f.noun == figure.noun] or same
        if counted is same and figure.noun:
            elsewhere = any(f.noun == figure.noun for f in theirs.figures)
            if elsewhere and all(f.noun or f.unit for f in same):
                return True  # "5 cats and 7 dogs" does not hold 7 cats
        rest.remove(counted[0])
    return False


def _units_agree(figure: Figure, source: Figure) -> bool:
    """Our unit must be the source's; one that we leave out must not change the meaning."""
    if figure.unit:
        return figure.unit == source.unit
    return source.unit not in ("%", "points", "celsius", "fahrenheit")


def _holds_date(date: Date, source: Date) -> bool:
    return date.is_decade == source.is_decade and all(
        ours is None or ours == theirs
        for ours, theirs in (
            (date.year, source.year),
            (date.month, source.month),
            (date.day, source.day),
            (date.weekday, source.weekday),
        )
    )


def _lacks_names(line: str, window: str) -> bool:
    there = {fold(word) for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", window)}
    names = {token for name in facts(window).names for token in name.tokens}
    for word in capitalised_words(line):
        if line.startswith(word) and fold(word) in OPENING_WORDS:
            continue
        if word.isupper() and len(word) > 1:
            # "US" is not "us", and "IT" not "it", but a heading may shout what is said quietly.
            if not re.search(rf"\b{re.escape(word)}\b", window) and (
                name_token(word) not in names and (len(word) < 4 or fold(word) not in there)
            ):
                return True
            continue
        token = name_token(word)
        if not token or token in there or token in names:
            continue
        if len(token) == 1 and any(name.startswith(token) for name in names):
            continue
        if token.removesuffix("s") in there or token + "s" in there:
            continue
        return True
    return False


def _has_another_word(line: str, window: str) -> bool:
    """True if a word of the line stands where the window has another: "wheat harvest", "barley
    harvest". A synonym looks the same, and is refused too.
    """
    ours = content_words(line)
    sentences = [content_words(part) for part in re.split(r"[.!?]\s", window)]
    everywhere = [word for words in sentences for word in words]
    is_ours = {word: any(same_word(word, other) for other in ours) for word in everywhere}
    is_found = [any(same_word(word, other) for other in everywhere) for word in ours]
    for number, word in enumerate(ours):
        if is_found[number]:
            continue
        for step in (-1, 1):
            anchor = number + step
            if not (0 <= anchor < len(ours) and is_found[anchor]):
                continue
            for words in sentences:
                for place, other in enumerate(words):
                    beside = place - step
                    if (
                        0 <= beside < len(words)
                        and not is_ours[words[beside]]
                        and same_word(other, ours[anchor])
                        and not same_direction(word, words[beside])
                    ):
                        return True
    return False


def _is_negated_otherwise(line: str, window: str) -> bool:
    """True if a clause of one text and the clause of the other that matches it best differ."""
    ours, theirs = _clause_words(line), _clause_words(window)
    if not any(negated for _, negated in (*ours, *theirs)):
        return False
    for words, negated in ours:
        best = _best_clauses(words, theirs)
        if best and all(their != negated for their in best):
            return True
    for words, negated in theirs:
        best = _best_clauses(words, ours)
        if negated and best and not any(best):
            return True
    if _bears_otherwise(line, window) or _bears_otherwise(window, line):
        return True
    # A bare "no" or "not so" has no words to match by: both texts need one, or none.
    return any(n for _, n in ours) and not any(n for _, n in theirs)


def _bears_otherwise(one: str, other: str) -> bool:
    """True if a word denied in one text stands in the other and is not denied there."""
    denied = negated_words(other)
    said = content_words(other)
    return any(
        any(same_word(word, there) for there in said)
        and not any(same_word(word, there) for there in denied)
        for word in negated_words(one)
    )


def _clause_words(text: str) -> list[tuple[frozenset[str], bool]]:
    return [(frozenset(content_words(part)), is_negated(part)) for part in clauses(text)]


def _best_clauses(
    words: frozenset[str], others: Sequence[tuple[frozenset[str], bool]]
) -> list[bool]:
    """Whether the clauses that share most words with `words` are negated."""
    shared = [
        sum(any(same_word(word, other) for other in there) for word in words) for there, _ in others
    ]
    most = max(shared, default=0)
    return [
        negated
        for count, (_, negated) in zip(shared, others, strict=True)
        if most and count == most
    ]


def _is_turned(line: str, window: str) -> bool:
    """True if the line says "rose" where the window, or the clause in question, says "fell"."""
    if direction_conflict(line, window):
        return True
    parts = [(frozenset(content_words(part)), part) for part in clauses(window)]
    for part in clauses(line):
        words = frozenset(content_words(part))
        shared = [len(words & there) for there, _ in parts]
        most = max(shared, default=0)
        best = [other for count, (_, other) in zip(shared, parts, strict=True) if count == most]
        if most and all(direction_conflict(part, other) for other in best):
            return True
    return False


def _is_crossed(line: str, window: str) -> bool:
    """True if two facts that the line joins stand apart in the window, each with another partner.

    "5 in 1998 and 7 in 1999" does not hold "7 in 1998".
    """
    there = [_fact_keys(part) for part in clauses(window)]
    for part in clauses(line):
        keys = list(_fact_keys(part))
        for number, one in enumerate(keys):
            for other in keys[number + 1 :]:
                if any(one in held and other in held for held in there):
                    continue
                if _has_rival(one, other, there) and _has_rival(other, one, there):
                    return True
    return False


_FactKey = tuple[str, object]


def _fact_keys(text: str) -> set[_FactKey]:
    found = facts(text)
    return {
        *((("figure " + f.unit), f.value) for f in found.figures),
        *(("date", (d.year, d.month, d.day, d.weekday)) for d in found.dates),
        *(("code", code.key) for code in found.codes),
        *(("name", token) for name in found.names for token in name.tokens[-1:]),
    }


def _has_rival(fact: _FactKey, partner: _FactKey, there: Sequence[set[_FactKey]]) -> bool:
    """True if a clause holds the fact beside something of the partner's kind."""
    return any(
        fact in held and any(kind == partner[0] and (kind, value) != fact for kind, value in held)
        for held in there
    )


_ADJUNCT = re.compile(
    r"(?:\b(?:in|at|on|near|of|off|during|for|with|under|to|from|against|into|across|through|around"
    r"|over|behind|outside|inside)|'s)(?: the| an?)?\s*\Z",
    re.IGNORECASE,
)
_BY = re.compile(r"\bby (?:the |an? )?(?:[A-Z]\w*\.? )?\Z")


def _has_swapped_names(line: str, window: str, ours: Facts, theirs: Facts) -> bool:
    """True if two actors of the line stand the other way round: "A sued B", "B sued A"."""
    order, is_passive = _actors(line, ours.names)
    other_order, _ = _actors(window, theirs.names)
    if len(order) < 2 or re.search(r"\b(?:between|each other|both)\b", line + window):
        return False
    shared = [name for name in order if name in other_order]
    return (
        len(shared) >= 2
        and shared != [name for name in other_order if name in order]
        and (is_passive or not _is_list(line, ours.names))
    )


def _actors(text: str, names: Sequence[Name]) -> tuple[list[str], bool]:
    """Last words of the names in the order of who acts; an agent behind "by" goes first."""
    order: list[str] = []
    is_passive = False
    for name in names:
        before = text[max(0, name.start - 24) : name.start]
        actor = name.tokens[-1]
        if actor in order or _ADJUNCT.search(before):
            continue
        if _BY.search(before):
            order.insert(0, actor)
            is_passive = True
        else:
            order.append(actor)
    return order, is_passive


_BEFORE_NAME = re.compile(r"\b(?P<role>[a-z]+) (?:the |a |an |M[rs]s?\.? |Dr\.? )?\Z")
_TOWARDS = frozenset(["to", "from", "against"])


def _is_moved_otherwise(line: str, window: str, ours: Facts, theirs: Facts) -> bool:
    """True if a name stands behind "to" in one text and behind "from", or bare, in the other."""
    roles, others = _roles(line, ours.names), _roles(window, theirs.names)
    for name, role in roles.items():
        other = others.get(name, role)
        if role.isdisjoint(other) and (
            (role <= _TOWARDS and other <= _TOWARDS | {""})
            or (other <= _TOWARDS and role <= _TOWARDS | {""})
        ):
            return True
    return False


def _roles(text: str, names: Sequence[Name]) -> dict[str, set[str]]:
    """For each name the prepositions it stands behind, "" where it is a subject or object."""
    roles: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        before = _BEFORE_NAME.search(text[max(0, name.start - 24) : name.start])
        word = before["role"] if before else ""
        is_preposition = word in _TOWARDS or word in ("in", "at", "on", "near", "of", "by", "for")
        roles[name.tokens[-1]].add(word if is_preposition else "")
    return roles


def _is_list(text: str, names: Sequence[Name]) -> bool:
    """True if nothing but commas and "and" stands between the names."""
    return all(
        re.fullmatch(r"[\s,]*(?:and|or|&)?(?: the)?\s*", text[one.end : other.start])
        for one, other in pairwise(names)
    )


# --- the operations ----------------------------------------------------------------------------


def align(
    line: str, sources: Sequence[SourceText], *, near_score: float = NEAR_SCORE
) -> Match | None:
    """The place that supports a memory line: an exact one in any source, else the first near."""
    return _align(_plain(line), [_Source(source) for source in sources], near_score)


def _align(line: str, sources: Sequence[_Source], near_score: float) -> Match | None:
    if not line:
        return None
    for source in sources:
        if match := _exact(line, source):
            return match
    for source in sources:
        if match := _near(line, source, near_score):
            return match
    return None


def align_memory(
    memory: str,
    *,
    previous: Sequence[Evidence],
    chunk: SourceText,
    held: Sequence[SourceText],
) -> list[Evidence]:
    """The evidence of a memory after a chunk was read, in the order of its lines.

    Lines that had evidence keep it; the others are looked for in the chunk, then in `held`, the
    texts of the evidence held so far.
    """
    kept: defaultdict[str, list[Evidence]] = defaultdict(list)
    for evidence in previous:
        kept[evidence["line"]].append(evidence)
    sources: list[_Source] = []
    aligned: list[Evidence] = []
    for line in memory_lines(memory):
        key = line_key(line)
        if key in kept:
            aligned += kept.pop(key)
            continue
        if not sources:
            sources = [_Source(source) for source in (chunk, *held)]
        if match := _align(line, sources, NEAR_SCORE):
            aligned.append(
                Evidence(
                    document=match.document,
                    start_char=match.start_char,
                    end_char=match.end_char,
                    line=key,
                )
            )
    return aligned


def unverified_lines(memory: str, evidence: Sequence[Evidence]) -> list[str]:
    """The lines of the memory that no evidence supports."""
    verified = {entry["line"] for entry in evidence}
    return [line for line in memory_lines(memory) if line_key(line) not in verified]
