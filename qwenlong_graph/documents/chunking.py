"""Chunks of a stored text: each within a token budget, together the text exactly.

A chunk is found from its start alone, by reading and counting a small multiple of its own size;
no token list and no border list of the document exists anywhere.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import regex

from qwenlong_graph.errors import SettingsError
from qwenlong_graph.reading.sentences import is_heading, sentence_spans
from qwenlong_graph.types import Span

if TYPE_CHECKING:
    from qwenlong_graph.documents.store import StoredText
    from qwenlong_graph.documents.tokens import CountTokens

__all__ = ["next_span", "spans"]

FULL = 0.95
"""A chunk is full when its size is within this share of the largest that could fit."""
SAFETY = 0.985
"""Aim this share below an extrapolated size, so that most extrapolations fit at once."""
LARGEST_STEP = 4
"""Never count more than this many times what is known to fit: it bounds reading and counting."""
TRIES = 6
LOOKAHEAD_CHARS = 256
"""Seen past a border, to tell whether a sentence, heading or grapheme cluster goes on there."""

_CLUSTER = regex.compile(r"\X")
_BLANK_LINE = re.compile(r"(?:\r\n|[\r\n])[^\S\r\n]*[\r\n]|\u2029")
# Clusters found from such a character on are right whatever stands before it.
_CLUSTER_START = re.compile(r"[ -~\u3040-\u9fff\uac00-\ud7a3]")


def spans(
    text: StoredText,
    *,
    document: int = 0,
    max_tokens: int,
    count_tokens: CountTokens,
    tolerance: float = 0.2,
) -> Iterator[Span]:
    """All chunks of `text` in order; their concatenation is the text. See `next_span`."""
    start_char = start_byte = 0
    while start_char < text.chars:
        span = next_span(
            text,
            document=document,
            start_char=start_char,
            start_byte=start_byte,
            max_tokens=max_tokens,
            count_tokens=count_tokens,
            tolerance=tolerance,
        )
        yield span
        start_char, start_byte = span["end_char"], span["end_byte"]


def next_span(
    text: StoredText,
    *,
    document: int,
    start_char: int,
    start_byte: int,
    max_tokens: int,
    count_tokens: CountTokens,
    tolerance: float = 0.2,
) -> Span:
    """The chunk that begins at the given offsets: never empty, never above `max_tokens`.

    `count_tokens` is asked about exactly the text that becomes the chunk; its other answers only
    guide the search, and need not grow evenly with the text. Within the last `tolerance` share
    of the chunk the border falls, if it can, before a heading or page, else after a paragraph, a
    sentence, a line, a word. It does not split a grapheme cluster, unless that one cluster is
    above the budget (or longer than any in real text): then it falls between code points.

    Raises `SettingsError` if `max_tokens` does not hold even one character, and `ValueError` at
    the end of the text.
    """
    if start_char >= text.chars:
        raise ValueError("there is no chunk at the end of the text")
    remaining = text.chars - start_char
    # A document that fits is one chunk, even if its beginning is denser than the rest.
    reach = 1.25 if start_char else 2.0
    ahead = _Ahead(text, start_byte)
    search = _Search(max_tokens)
    while not search.is_done(remaining):
        limit = search.next_limit()
        if remaining < search.too_long and remaining <= min(reach * limit, search.longest_step):
            end = limit = remaining
        else:
            limit = min(limit, remaining - 1)
            window = ahead.read(min(remaining, limit + LOOKAHEAD_CHARS))
            end = _border(window, limit, int(limit * (1 - tolerance)), search.too_long)
        search.learn(limit, end, count_tokens(ahead.read(end)))
        if search.too_long == 1:
            raise SettingsError(
                f"Cutting {text.reference['title']!r} into chunks: max_tokens={max_tokens} does "
                f"not hold even the one character at offset {start_char}. Allow larger chunks."
            )
    chunk = ahead.read(search.fits)
    return Span(
        document=document,
        start_char=start_char,
        end_char=start_char + search.fits,
        start_byte=start_byte,
        end_byte=start_byte + len(chunk.encode()),
        tokens=search.tokens,
    )


class _Ahead:
    """The text from one offset on, read as far as was asked and no byte twice."""

    def __init__(self, text: StoredText, start_byte: int) -> None:
        self._text = text
        self._next_byte = start_byte
        self._window = ""

    def read(self, chars: int) -> str:
        if chars > len(self._window):
            more = self._text.read_from(self._next_byte, chars - len(self._window))
            self._next_byte += len(more.encode())
            self._window += more
        return self._window[:chars]


class _Search:
    """What the counts so far say about how many characters fill the budget."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._tries = 0
        self._first_limit = max(1, max_tokens * 5 // 4)  # fits in most texts
        self._limit_of_fit = 0
        self._tokens_too_long = 0
        self.fits = 0
        self.tokens = 0
        self.too_long = sys.maxsize

    @property
    def longest_step(self) -> int:
        return LARGEST_STEP * max(self.fits, self._first_limit)

    def learn(self, limit: int, end: int, tokens: int) -> None:
        """`end` characters, the best border up to `limit`, have this many tokens."""
        self._tries += 1
        if tokens > self._max_tokens:
            self.too_long, self._tokens_too_long = end, tokens
        elif end > self.fits:
            self.fits, self.tokens, self._limit_of_fit = end, tokens, limit
        else:
            self._tries = TRIES  # no better border up there

    def is_done(self, remaining: int) -> bool:
        if not self.fits:
            return False
        could_fit = min(
            self.fits * self._max_tokens / max(1, self.tokens), self.too_long - 1, remaining
        )
        return self._limit_of_fit >= FULL * could_fit or self._tries >= TRIES

    def next_limit(self) -> int:
        if not self._tries:
            return self._first_limit
        if self.fits and self._tokens_too_long:
            share = (self._max_tokens - self.tokens) / (self._tokens_too_long - self.tokens)
            limit = self.fits + int((self.too_long - self.fits) * share * SAFETY)
        elif self.fits:
            limit = int(self.fits * self._max_tokens / max(1, self.tokens) * SAFETY)
        else:
            limit = int(self.too_long * self._max_tokens / self._tokens_too_long * SAFETY)
            if self._tries >= TRIES:  # counts that do not shrink with the text
                limit = min(limit, self.too_long // 2)
        return max(1, min(limit, self.too_long - 1, self.longest_step))


def _border(window: str, limit: int, floor: int, too_long: int) -> int:
    """The best place up to `limit` to end a chunk that begins at the start of `window`.

    Above `limit`, but below `too_long`, only if the first grapheme cluster reaches there.
    """
    line_start = window.rfind("\n", max(0, floor - LOOKAHEAD_CHARS), floor) + 1 or floor
    edges = [
        line_start + start
        for start, _ in sentence_spans(window[line_start : limit + LOOKAHEAD_CHARS])
        if floor < line_start + start <= limit
    ]
    for is_preferred in (_opens_section, _opens_paragraph, _is_cluster_border):
        for edge in reversed(edges):
            if is_preferred(window, edge) and _is_cluster_border(window, edge):
                return edge
    line_end = max(window.rfind("\n", floor, limit), window.rfind("\r", floor, limit)) + 1
    if line_end and _is_cluster_border(window, line_end):
        return line_end
    for word_end in range(limit, floor, -1):
        if window[word_end - 1].isspace() and _is_cluster_border(window, word_end):
            return word_end
    return _last_cluster_border(window, limit) or _first_cluster_end(window, too_long) or limit


def _opens_section(window: str, edge: int) -> bool:
    first_line = window[edge : edge + LOOKAHEAD_CHARS].splitlines()[:1]
    return "\f" in _gap_before(window, edge) or any(map(is_heading, first_line))


def _opens_paragraph(window: str, edge: int) -> bool:
    return _BLANK_LINE.search(_gap_before(window, edge)) is not None


def _gap_before(window: str, edge: int) -> str:
    before = window[max(0, edge - LOOKAHEAD_CHARS) : edge]
    return before[len(before.rstrip()) :]


def _is_cluster_border(window: str, position: int) -> bool:
    """Whether a cluster ends at `position`; right only after white space and punctuation."""
    cluster = _CLUSTER.match(window, position - 1)
    return cluster is not None and cluster.end() == position


def _last_cluster_border(window: str, limit: int) -> int:
    start = limit
    while start > 0:
        start -= 1
        while start > 0 and not _CLUSTER_START.match(window, start):
            start -= 1
        border = 0
        for end in _cluster_ends(window, start):
            if end > limit:
                break
            border = end
        if border:
            return border
    return 0


def _cluster_ends(window: str, start: int) -> Iterator[int]:
    # In short pieces: a flag is matched by looking back over all flags before it.
    while start < len(window):
        piece = window[start : start + LOOKAHEAD_CHARS]
        done = 0
        for cluster in _CLUSTER.finditer(piece):
            if cluster.end() == len(piece) and start + len(piece) < len(window):
                break
            done = cluster.end()
            yield start + done
        if not done:  # one cluster longer than the piece: no real text has that
            done = len(piece)
            yield start + done
        start += done


def _first_cluster_end(window: str, too_long: int) -> int:
    """0 where the cluster is above the budget, or seems to have no end."""
    end = next(_cluster_ends(window, 0))
    return end if end < min(too_long, LOOKAHEAD_CHARS) else 0
