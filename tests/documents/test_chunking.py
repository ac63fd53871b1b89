from __future__ import annotations

import re
from itertools import pairwise

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenlong_graph.documents.chunking import next_span, spans
from qwenlong_graph.errors import SettingsError


def characters(text: str) -> int:
    return len(text)


def utf8_bytes(text: str) -> int:
    return len(text.encode())


def quarters(text: str) -> int:
    return -(-len(text) // 4)


def words(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def uneven(text: str) -> int:
    """A longer text may have fewer tokens: a last character that merges with those before it."""
    return max(1, len(text) // 3 + (3 if text and ord(text[-1]) % 2 else 0) + len(text) % 5)


COUNTERS = [characters, utf8_bytes, quarters, words, uneven]

PIECES = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            "\r\n",
            "\n\n",
            "\n",
            "\f",
            "👩‍👩‍👧‍👦",
            "🇩🇪🇫🇷🇯🇵",
            "é",
            "e\u0301\u0323",
            " \u0301",
            "क्षि",
            "각",
        ]
    ),
    st.sampled_from(["# Heading\n", "One sentence. ", "word ", "。", "\x00", "x" * 40, " " * 40]),
)
TEXTS = st.lists(PIECES, min_size=1, max_size=80).map("".join).filter(bool)


class RecordingText:
    """A stored text that adds up what is read from it."""

    def __init__(self, text):
        self._text = text
        self.chars = text.chars
        self.reference = text.reference
        self.chars_read = 0

    def read_from(self, start_byte, max_chars):
        piece = self._text.read_from(start_byte, max_chars)
        self.chars_read += len(piece)
        return piece


class RecordingCounter:
    def __init__(self, count):
        self._count = count
        self.calls = 0
        self.chars = 0

    def __call__(self, text):
        self.calls += 1
        self.chars += len(text)
        return self._count(text)


def stored(store, text):
    return store.open(store.put(text, title="text"))


def cut(store, text, max_tokens, count_tokens=characters, **options):
    found = spans(stored(store, text), max_tokens=max_tokens, count_tokens=count_tokens, **options)
    return [text[span["start_char"] : span["end_char"]] for span in found]


def cluster_borders(text: str) -> set[int]:
    return {match.end() for match in regex.finditer(r"\X", text)} | {0}


@settings(max_examples=100, deadline=None)
@given(text=TEXTS, max_tokens=st.integers(8, 90), count=st.sampled_from(COUNTERS))
def test_chunks_cover_the_text_exactly_within_the_budget(shared_store, text, max_tokens, count):
    opened = stored(shared_store, text)
    text = opened.read(0, opened.chars)  # lone surrogates were replaced
    end_char = end_byte = 0
    for span in spans(opened, document=3, max_tokens=max_tokens, count_tokens=count):
        assert (span["start_char"], span["start_byte"]) == (end_char, end_byte)
        chunk = text[span["start_char"] : span["end_char"]]
        assert chunk
        assert count(chunk) == span["tokens"] <= max_tokens
        assert len(chunk.encode()) == span["end_byte"] - span["start_byte"]
        assert span["document"] == 3
        end_char, end_byte = span["end_char"], span["end_byte"]
    assert (end_char, end_byte) == (opened.chars, opened.bytes)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS, max_tokens=st.integers(4, 60), count=st.sampled_from([characters, utf8_bytes]))
def test_only_a_cluster_above_the_budget_is_split(shared_store, text, max_tokens, count):
    opened = stored(shared_store, text)
    text = opened.read(0, opened.chars)
    borders = sorted(cluster_borders(text))
    too_big = [
        (start, end) for start, end in pairwise(borders) if count(text[start:end]) > max_tokens
    ]
    for span in spans(opened, max_tokens=max_tokens, count_tokens=count):
        end = span["end_char"]
        assert end in borders or any(start < end < stop for start, stop in too_big)


@pytest.mark.parametrize("count", COUNTERS)
def test_a_document_that_fits_is_one_chunk(store, count):
    text = "Short paragraph.\n\n# Heading\n\nAnother one.\f\n"
    assert cut(store, text, count(text), count) == [text]


def test_a_document_that_fits_is_one_chunk_even_if_its_beginning_is_dense(store):
    text = "一" * 790 + "a" * 500

    def count(part: str) -> int:
        return part.count("一") + part.count("a") // 100

    assert cut(store, text, 800, count) == [text]


def test_a_section_border_is_preferred_to_a_later_paragraph(store):
    text = "a" * 90 + ".\n\n## Next\n\nText.\n\n" + "b" * 60
    assert cut(store, text, 105)[0] == "a" * 90 + ".\n\n"


def test_a_numbered_heading_is_a_section_border(store):
    text = "a" * 90 + ".\n4.2 Trade\nText.\n\n" + "b" * 60
    assert cut(store, text, 112)[0] == "a" * 90 + ".\n"


def test_a_page_that_ends_with_a_sentence_is_a_section_border(store):
    text = "a" * 85 + ".\n\fNext page.\n\n" + "b" * 60
    assert cut(store, text, 105)[0] == "a" * 85 + ".\n\f"


def test_a_page_end_within_a_sentence_is_not(store):
    text = "a" * 80 + ". It runs on\n\fto here. " + "b" * 60
    assert cut(store, text, 100)[0] == "a" * 80 + ". "


def test_a_paragraph_border_is_preferred_to_a_later_sentence(store):
    text = "a" * 85 + ".\n\nOne. Two. " + "b" * 60
    assert cut(store, text, 100)[0] == "a" * 85 + ".\n\n"


def test_a_sentence_border_is_preferred_to_a_later_line(store):
    text = "a" * 85 + ". B\nc d" + "e" * 60
    assert cut(store, text, 95)[0] == "a" * 85 + ". "


def test_a_line_border_is_preferred_to_a_later_word(store):
    text = "a" * 85 + "\nb c " + "d" * 60
    assert cut(store, text, 95)[0] == "a" * 85 + "\n"


def test_a_word_border_is_preferred_to_the_middle_of_a_word(store):
    text = "a" * 85 + " " + "b" * 60
    assert cut(store, text, 95)[0] == "a" * 85 + " "


def test_borders_outside_the_tolerance_are_not_taken(store):
    text = "a" * 50 + ".\n\n# Heading\n\n" + "b" * 100
    assert len(cut(store, text, 100)[0]) >= 95
    assert cut(store, text, 100, tolerance=0.6)[0] == "a" * 50 + ".\n\n"


def test_windows_line_ends_are_never_split(store):
    for chunk in cut(store, "\r\n" * 100, 7):
        assert chunk.startswith("\r")
        assert chunk.endswith("\n")


@pytest.mark.parametrize("after", [". ", "\n", " ", "。"])
def test_no_border_falls_before_a_combining_mark(store, after):
    text = "a" * 90 + after + "\u0301B" + "c" * 60
    borders = cluster_borders(text)
    chunk = cut(store, text, 98)[0]
    assert len(chunk) in borders


def test_a_cluster_of_many_code_points_within_the_budget_is_whole(store):
    family = "👩‍👩‍👧‍👦"
    chunks = cut(store, family * 20, 1, lambda text: len(regex.findall(r"\X", text)))
    assert chunks == [family] * 20


def test_a_cluster_above_the_budget_is_split_between_code_points(store):
    chunks = cut(store, "e" + "\u0301" * 25, 10)
    assert "".join(chunks) == "e" + "\u0301" * 25
    assert 9 <= max(map(len, chunks)) <= 10


def test_a_character_above_the_budget_is_an_error(store):
    with pytest.raises(SettingsError, match="max_tokens=3"):
        cut(store, "abc😀", 3, utf8_bytes)


def test_there_is_no_chunk_at_the_end_of_the_text(store):
    with pytest.raises(ValueError, match="end of the text"):
        next_span(
            stored(store, "abc"),
            document=0,
            start_char=3,
            start_byte=3,
            max_tokens=9,
            count_tokens=characters,
        )


PROSE = "The harvest of that year was poor, and prices rose by 4.2 percent before the winter. "
UNITS = {
    "prose": PROSE * 11 + "\n\n",
    "wrapped": "\n".join(PROSE.split()) + "\n",
    "no spaces": "x",
    "emoji": "👩‍👩‍👧‍👦",
    "flags": "🇩🇪",
    "chinese": "这是一个简单的中文文本用来测试编码",
    "marks": "e\u0301\u0302",
    "spaces": " ",
    "newlines": "\r\n",
}


@pytest.mark.parametrize("count", [quarters, utf8_bytes, uneven])
@pytest.mark.parametrize("unit", UNITS)
def test_a_chunk_costs_few_counts_and_little_reading_wherever_it_stands(store, unit, count):
    text = UNITS[unit] * (1_000_000 // len(UNITS[unit]))
    recording = RecordingText(stored(store, text))
    counter = RecordingCounter(count)
    start_char = start_byte = chunks = 0
    while start_char < len(text):
        before = recording.chars_read, counter.calls, counter.chars
        span = next_span(
            recording,
            document=0,
            start_char=start_char,
            start_byte=start_byte,
            max_tokens=8_000,
            count_tokens=counter,
        )
        size = max(span["end_char"] - span["start_char"], 3_000)
        assert recording.chars_read - before[0] <= 5 * size
        assert counter.calls - before[1] <= 6
        assert counter.chars - before[2] <= 8 * size
        if span["end_char"] < len(text):
            assert span["tokens"] > 8_000 * 0.74
        start_char, start_byte = span["end_char"], span["end_byte"]
        chunks += 1
    assert chunks > 30
    assert counter.calls <= 4 * chunks


def test_a_sparse_beginning_does_not_make_the_chunk_read_far_ahead(store):
    text = " " * 20_000 + "x" * 500_000
    recording = RecordingText(stored(store, text))
    span = next_span(
        recording,
        document=0,
        start_char=0,
        start_byte=0,
        max_tokens=8_000,
        count_tokens=lambda part: part.count(" ") // 100 + part.count("x"),
    )
    assert span["tokens"] > 7_000
    assert recording.chars_read <= 5 * span["end_char"]


def test_a_counter_that_says_nothing_of_the_size_still_ends_soon(store):
    counter = RecordingCounter(lambda text: 10 if len(text) <= 10 else 8_001)
    found = next(spans(stored(store, "x" * 100_000), max_tokens=8_000, count_tokens=counter))
    assert found["tokens"] == 10
    assert counter.calls < 30
