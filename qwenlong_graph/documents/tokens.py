"""Counting tokens: what a counter is, and how many characters make a token in a given text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwenlong_graph.documents.store import StoredText

__all__ = ["CountTokens", "chars_per_token"]

CountTokens = Callable[[str], int]
"""Tokens of a text by the model's own tokenizer. It may be a request to a server, so code here
calls it a few times a chunk, never once a word."""


def chars_per_token(
    text: StoredText, count_tokens: CountTokens, *, sample_chars: int = 12_000
) -> float:
    """Estimate from start, middle and end of `text`; one call of `count_tokens`, bounded reading.

    Good for "chunk 3 of about 40", not for budgets: chunks are counted exactly.
    """
    third = sample_chars // 3
    middle = max(0, text.chars // 2 - third // 2)
    if text.chars <= sample_chars:
        sample = text.read(0, text.chars)
    else:
        starts = (0, middle, text.chars - third)
        sample = "".join(text.read(start, start + third) for start in starts)
    return max(1, len(sample)) / max(1, count_tokens(sample))
