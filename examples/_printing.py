"""Plain text that fits a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from qwenlong_graph import SourceCitation


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def paragraph(text: str, *, bullet: str = "") -> None:
    """The lines of `text`, each wrapped on its own; `bullet` stands before each of them."""
    first = f"  {bullet}"
    for line in text.splitlines():
        print(textwrap.fill(line, 80, initial_indent=first, subsequent_indent=" " * len(first)))


def quotes(citations: Sequence[SourceCitation]) -> None:
    """Each quote with the place where it stands in the document, counted in characters."""
    for number, cited in enumerate(citations, start=1):
        place = f"chars {cited['start_char']}-{cited['end_char']}"
        print(f"  [{number}] {cited['document_title']}, {place}")
        paragraph(f'"{" ".join(cited["cited_text"].split())}"', bullet="    ")
