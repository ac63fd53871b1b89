"""The fast search for evidence against the plain one that it stands for.

The reference normalises character by character and takes every sentence of a source apart; what
is shipped folds whole texts at once, and looks only at the sentences where a search finds a word.
"""

from __future__ import annotations

import functools
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenlong_graph.reading.evidence import (
    NEAR_SCORE,
    Normalised,
    SourceText,
    _align,
    _folded,
    _Source,
    memory_lines,
    normalise,
)
from qwenlong_graph.reading.facts import content_words, fold, folded_text, spellings, stem


def plainly_normalised(text: str) -> Normalised:
    """One pattern with every rule in it, every match a run of its own."""
    odd = [
        character
        for character in sorted(set(text))
        if not character.isspace()
        and not "!" <= character <= "~"
        and _folded(character) != character
    ]
    dropped = "".join(re.escape(character) for character in odd if not _folded(character))
    changed = "".join(re.escape(character) for character in odd if _folded(character))
    gap = rf"[\s{dropped}]"
    pattern = (
        r"(?P<mark>[^\W\d_][\u0300-\u036f]{1,8})"
        rf"|(?P<broken>(?<=[^\W\d_])[-‐‑]{gap}+(?=[^\W\d_]))"
        rf"|(?P<gap>(?: (?={gap})|[^\S ]{f'|[{dropped}]' if dropped else ''}){gap}*)"
        r"|(?P<emphasis>(?<![^\s(\[\"'])\*+(?=\S)|(?<=\S)\*+(?!\w)|`+)"
        + (rf"|[{changed}]" if changed else "")
    )
    pieces: list[tuple[str, int, int, bool]] = []
    last = 0
    for match in re.finditer(pattern, text):
        found = match[0]
        piece = "".join(map(_folded, found))
        if match.lastgroup == "gap":
            piece = " " if any(map(str.isspace, found)) else ""
            if found[0] in "\u00ad\x02" and "\n" in found:
                piece = ""
        elif match.lastgroup == "mark":
            piece = unicodedata.normalize("NFC", found)
        elif match.lastgroup == "emphasis":
            piece = ""
        elif match.lastgroup == "broken":
            has_break = "\n" in found or "\r" in found
            around = text[match.start() - 1], text[match.end()]
            piece = "- " if any(map(str.isspace, found)) else "-"
            if has_break and all(map(str.islower, around)):
                piece = ""
        pieces.append((text[last : match.start()], last, match.start(), True))
        before = next((piece for piece, *_ in reversed(pieces) if piece), "")
        is_double = piece == " " and before.endswith(" ")
        pieces.append(("" if is_double else piece, *match.span(), False))
        last = match.end()
    pieces = [piece for piece in (*pieces, (text[last:], last, len(text), True)) if piece[0]]
    starts = [sum(len(piece) for piece, *_ in pieces[:number]) for number in range(len(pieces))]
    return Normalised(
        "".join(piece for piece, *_ in pieces), starts, [(a, b, c) for _, a, b, c in pieces]
    )


class PlainSource(_Source):
    """A source with an index of all words of all sentences."""

    @functools.cached_property
    def normalised(self) -> Normalised:
        return plainly_normalised(self.source.text)

    def sentences_with(self, beginning: str) -> list[int]:
        return [
            number
            for number, (start, end) in enumerate(self.sentences)
            if any(word[:5] == beginning for word in content_words(self.text[start:end]))
        ]


# --- normalise ---------------------------------------------------------------------------------

CHARACTERS = st.one_of(
    st.sampled_from([*" \n\t-*`abA1\"'(._", "  ", " \n", "-\n", "**", "\n\n", "\r\n"]),
    st.sampled_from([*"\u200b\u00ad\x02\x00\x1c\x85\u2028\xa0\u3000", "\u00ad\n"]),
    st.sampled_from([*"ﬁ“’—‐‑－é½²Ａ１…ßİ´\u1ffd\u0301\u0323", "e\u0301", "ﬁ\u0301", "…\u0301"]),
    st.characters(),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(CHARACTERS, max_size=24).map("".join))
def test_folding_in_passes_over_the_text_changes_nothing(text):
    plain, fast = plainly_normalised(text), normalise(text)
    assert fast.text == plain.text
    for index in range(len(plain.text)):
        assert fast.original_span(index, index + 1) == plain.original_span(index, index + 1)
    for original in range(len(text) + 1):
        assert fast.offset_of(original) == plain.offset_of(original)


def test_the_letters_of_a_text_fold_as_those_of_its_words_and_stay_where_they_are():
    text = "Ἀθῆναι ΟΔΟΣ Österreich İzmir KELVIN caf\u00e9 Straße 한국"
    folded, unfolded = folded_text(text)
    assert len(folded) == len(text)
    assert set(unfolded) == set("ß한국")
    for word, there in zip(text.split(), folded.split(), strict=True):
        if not set(word) & set(unfolded):
            assert there == fold(word)


# --- the search for sentences ------------------------------------------------------------------

WORDS = st.sampled_from(
    """city cities Cities study studied studies fly flies ate eat men man women fell fall found
    planned plan planning company companies Company's increase increased increasing approve
    approval naïve naive NAÏVE Straße strasse STRASSE cafe\u0301 café Österreich İzmir co-operate
    infor-\nmation infor\u00admation of\ufb01ce office **bold** `code` O'Neill don't can't
    ΟΔΟΣ Οδός 서울은 한국의 1,200 1200 twelve hundred 4.2% $5 5½ 10² May 1998 the of no not
    Norwell Pemberton “Norwell” ‘plan’ Holm U.S. Dr. sued by in and""".replace("\n ", " ").split(
        " "
    )
)
SENTENCE = st.builds(
    lambda words, end: " ".join(words) + end,
    st.lists(WORDS, min_size=3, max_size=12),
    st.sampled_from([".", ".", "!", ".”", "。", " -", ":"]),
)
GAP = st.sampled_from([" ", " ", "  ", "\n", "\r\n", "\n\n", "\n- ", "\n# ", "-\n", "\u200b ", ""])


def reworded(sentences: list[str], changes: int) -> str:
    """A memory line from one or two sentences: other order, without articles, another figure."""
    line = " ".join(" ".join(sentences).split())
    if changes & 1:
        line = " ".join(word for word in line.split() if word not in ("the", "of", "in"))
    if changes & 2:
        words = line.split()
        line = " ".join([*words[len(words) // 2 :], *words[: len(words) // 2]])
    if changes & 4:
        line = line.replace("1,200", "1200").replace("ﬁ", "fi").replace("“", '"').replace("”", '"')
    if changes & 8:
        line = f'Norwell said: "{line}"'
    return line


@st.composite
def sources_and_lines(draw):
    sentences = draw(st.lists(SENTENCE, min_size=1, max_size=14))
    text = "".join(sentence + draw(GAP) for sentence in sentences)
    if draw(st.booleans()) and len(sentences) > 4:
        text = text.replace(".", ",")  # sentences long enough to be cut into pieces
        text *= draw(st.integers(1, 8))
    first = draw(st.integers(0, len(sentences) - 1))
    said = sentences[first : first + draw(st.integers(1, 2))]
    return text, reworded(said, draw(st.integers(0, 15)))


@settings(max_examples=150, deadline=None)
@given(sources_and_lines())
def test_the_search_finds_the_sentences_of_every_word_and_no_others(case):
    text, line = case
    source = _Source(SourceText(0, 0, text))
    # A border may cut a word that the line's end had hyphenated: count what each side holds.
    there = [source.text[start:end] for start, end in source.sentences]
    words = [word for part in (*there, line) for word in content_words(part)]
    index = PlainSource(source.source)
    for beginning in {word[:5] for word in words}:
        assert source.sentences_with(beginning) == index.sentences_with(beginning)


@settings(max_examples=250, deadline=None)
@given(sources_and_lines())
def test_a_line_gets_the_evidence_that_a_whole_index_gives_it(case):
    text, memory = case
    source = SourceText(document=2, start_char=70, text=text)
    for line in memory_lines(memory):
        plain = _align(line, [PlainSource(source)], NEAR_SCORE)
        assert _align(line, [_Source(source)], NEAR_SCORE) == plain


def test_the_cases_above_are_not_empty_of_evidence():
    text = "The weather was fine. The cities studied naïve plans.\nStraße 5 of Österreich fell."
    source = SourceText(0, 0, text)
    for line in ("Naïve plans were studied by cities", "Österreich Straße 5 fell"):
        found = _align(line, [_Source(source)], NEAR_SCORE)
        assert found is not None
        assert found == _align(line, [PlainSource(source)], NEAR_SCORE)


@pytest.mark.parametrize(
    "word",
    "cities tried studied companies ate fell found women planned rolling increases approving "
    "boxes horses hoped flies daily o'neill's".split(),
)
def test_a_word_begins_with_a_spelling_of_the_beginning_of_its_stem(word):
    assert fold(word).startswith(spellings(stem(word)[:5]))
