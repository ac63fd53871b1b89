"""Where sentences end in plain text, Markdown and text taken out of PDFs.

Rules rather than a model: the spans must be the same on every machine and cost one pass. The
rules err towards longer sentences, because half a sentence makes poor evidence.
"""

from __future__ import annotations

import re
from itertools import pairwise

__all__ = ["is_heading", "sentence_spans"]

LONGEST_WRAPPED_SENTENCE_CHARS = 2_000
"""A longer "sentence" over several lines is a log, a CSV file or code: each line stands alone."""

_LINE = re.compile(r"([^\r\n\x85\u2028\u2029]*)(?:\r\n|[\r\n\x85\u2028\u2029]|\Z)")

# Latin-like terminals need white space after them; CJK ones do not. Closing quotes, brackets and
# footnote marks such as [12] belong to the sentence they close. The first terminal comes as one
# class of both kinds: `re` runs to the next of a class fastest.
_SENTENCE_END = re.compile(
    r"""[.!?…؟۔।॥。！？｡](?:
        (?<=[.!?…؟۔।॥]) (?<![.!?…؟۔।॥].) (?P<more>[.!?…؟۔।॥]*+)
            [*_"'”’»)\]]*+ (?:\[\d{1,3}\])*+ \s++ (?![a-z])
      | (?<=[。！？｡]) [。！？｡]*+ [」』”’）)"']*+ \s*+)""",
    re.VERBOSE,
)
_BEFORE_WORD = re.compile(r"(?:.*[\s(\[{\"'“‘«])?", re.DOTALL)
_WORD_AFTER = re.compile(r"[A-Za-z]+")

# Never the end of a sentence.
_TITLES = frozenset(
    "mr mrs ms mx dr prof rev hon gen col maj capt lt sgt cmdr adm gov sen rep pres messrs mme mlle"
    " st mt ft vs e.g i.e cf viz approx ca resp incl excl".split()
)
# Not the end before a number: "No. 5", "Fig. 2", "Jan. 3"; "No. I will not" is one.
_BEFORE_NUMBER = frozenset(
    "no nos nr fig figs eq eqs sec sect ch chap art arts vol vols p pp ed eds para paras tab app"
    " ref refs pt cl reg jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
# May end a sentence: they do when a word follows that commonly opens one.
_MAY_END = frozenset(
    "inc ltd corp co llc jr sr bros dept univ assn est ave blvd rd etc al a.m p.m ph.d".split()
)
_OPENER = re.compile(
    "after|all|although|an?|and|another|as|at|because|before|both|but|by|during|each|for|from|he|"
    "her|here|his|how|however|i|if|in|its?|many|most|my|no|not|on|one|or|our|she|since|so|some|"
    "such|that|the|their|then|there|these|they|this|those|though|through|thus|to|under|until|we|"
    "what|when|where|while|who|with|yet|your?",
    re.IGNORECASE,
)
_DOTTED = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")  # U.S, a.m, and the initial of "J. Smith"
_ENUMERATOR = re.compile(r"\s*\(?(?:\d{1,4}|[ivxlcIVXLC]{1,6}|[A-Za-z])(?:\.\d{1,3})*")

_LIST_ITEM = re.compile(
    r"[-*+•‣◦▪●–—][ \t]|\(?\d{1,3}[.)][ \t]|\([A-Za-z]{1,4}\)[ \t]|[a-z]\)[ \t]"
)
_MARKED_HEADING = re.compile(r"#{1,6}(?:[ \t]|\Z)")
_NAMED_HEADING = re.compile(
    r"(?:chapter|part|section|article|book|appendix|annex|schedule|title|volume)[ \t]+"
    r"(?:\d{1,4}|[ivxlc]{1,7}|[a-z])\b[.:]?(?:[ \t][^.!?]{0,80})?\Z",
    re.IGNORECASE,
)
_NUMBERED_HEADING = re.compile(
    r"(?:\d{1,2}(?:\.\d{1,3}){0,4}\.?|[IVXLC]{1,6}\.|[A-Z]\.(?:\d{1,3}\.?)*)[ \t]+"
    r"[^\W\d_a-z][^.!?;:,]{0,80}\Z"
)
_RULE = re.compile(r"(?:={3,}|-{3,}|\*{3,}|_{3,}|~{3,}|`{3,}\w*)\Z")
# Lines that begin with a word and so are nothing of the above, as many as follow one another. Only
# for text whose lines all end with "\n".
_PLAIN_LINES = re.compile(
    r"(?:(?![IVXLC]{2,6}\.|"
    r"(?i:chapter|part|section|article|book|appendix|annex|schedule|title|volume)[ \t])"
    r"[A-Za-z]{2}.*+\n)++"
)


def is_heading(line: str) -> bool:
    """True for a Markdown heading, a numbered one ("4.2 Results") or a named one ("Chapter IV")."""
    line = line[:200].strip()
    return bool(
        _MARKED_HEADING.match(line) or _NUMBERED_HEADING.match(line) or _NAMED_HEADING.match(line)
    )


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """The sentences of `text` as (start, end) offsets that cover it exactly, in order.

    Trailing white space belongs to the sentence before it. Blank lines, headings, list items and
    table rows end a sentence; a single newline within a wrapped paragraph does not.
    """
    if not text:
        return []
    borders = _line_borders(text)
    borders.update(_punctuation_borders(text))
    borders.discard(0)
    edges = [0, *sorted(borders), len(text)]
    spans: list[tuple[int, int]] = []
    for start, end in pairwise(edges):
        if end - start > LONGEST_WRAPPED_SENTENCE_CHARS:
            spans.extend(_split_at_lines(text, start, end))
        elif end > start:
            spans.append((start, end))
    return spans


def _line_borders(text: str) -> set[int]:
    """Offsets of the first visible character of lines that open a block."""
    borders: set[int] = set()
    is_closed = True  # nothing before this line can run on into it
    looks_wrapped = False  # the line before it is full and lacks an ending
    has_other_ends = any(end in text for end in "\r\x85\u2028\u2029")
    at = 0
    while at < len(text):
        plain = None if has_other_ends else _PLAIN_LINES.match(text, at)
        if plain:
            if is_closed:
                borders.add(at)
            last = max(at, text.rfind("\n", at, plain.end() - 1) + 1)
            at, is_closed = plain.end(), False
            looks_wrapped = _looks_wrapped(text[last:at].strip())
            continue
        match = _LINE.match(text, at)
        assert match is not None  # it matches anything
        at = match.end()
        line = match[1].strip()
        if not line:
            is_closed = True
            continue
        # A wrapped line may begin with "12. " or "- " by chance, and is no list item then.
        is_table_row = line.startswith("|")
        is_marked = bool(_MARKED_HEADING.match(line))
        is_other_heading = not is_marked and not looks_wrapped and is_heading(line)
        opens = (
            is_table_row
            or is_marked
            or is_other_heading
            or (not looks_wrapped and bool(_LIST_ITEM.match(line)))
        )
        if is_closed or opens:
            borders.add(match.start() + len(match[1]) - len(match[1].lstrip()))
        is_closed = is_table_row or is_marked or is_other_heading or bool(_RULE.match(line))
        looks_wrapped = not is_closed and _looks_wrapped(line)
    return borders


def _looks_wrapped(line: str) -> bool:
    return len(line) >= 45 and line[-1] not in ".!?:;…。！？"


def _punctuation_borders(text: str) -> list[int]:
    """Offsets of the first visible character after each sentence end."""
    borders: list[int] = []
    last = 0
    for match in _SENTENCE_END.finditer(text):
        border = match.end()
        if border == len(text):
            break
        if match.lastgroup == "more" and not _is_sentence_end(text, last, match):
            continue
        borders.append(border)
        last = border
    return borders


def _is_sentence_end(text: str, sentence_start: int, match: re.Match[str]) -> bool:
    following = text[match.end()]
    if following.islower():
        return False
    stop = match.start()
    if match["more"] or text[stop] != ".":
        return True
    if stop >= 7 and text[stop - 7 : stop].isalpha():
        return True  # a word longer than any below
    before = _BEFORE_WORD.match(text, max(sentence_start, stop - 16), stop)
    word = text[before.end() : stop].lower() if before else ""
    if word in _TITLES:
        return False
    if word in _BEFORE_NUMBER:
        return not following.isdigit()
    line_start = max(sentence_start, text.rfind("\n", max(0, stop - 16), stop) + 1)
    if stop - line_start < 16 and _ENUMERATOR.fullmatch(text, line_start, stop):
        return False
    if word in _MAY_END or _DOTTED.fullmatch(word):
        next_word = _WORD_AFTER.match(text, match.end(), match.end() + 16)
        return next_word is not None and bool(_OPENER.fullmatch(next_word[0]))
    return True


def _split_at_lines(text: str, start: int, end: int) -> list[tuple[int, int]]:
    edges = [start]
    for match in _LINE.finditer(text, start, end):
        indent = len(match[1]) - len(match[1].lstrip())
        if indent < len(match[1]) and match.start() + indent > edges[-1]:
            edges.append(match.start() + indent)
    edges.append(end)
    return list(pairwise(edges))
