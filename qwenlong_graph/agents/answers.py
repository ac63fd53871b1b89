"""An answer as plain text, for hosts that pass on nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwenlong_graph.types import AnswerSpan, SourceCitation

__all__ = ["answer_text"]

QUOTE_CHARS_MAX = 600
"""Longer quotes are cut in the text."""


def answer_text(output: Mapping[str, Any]) -> str:
    """The answer of a `MemoryAgent` with [1] after what a source supports, then the sources."""
    citations: Sequence[SourceCitation] = output["citations"]
    blocks = [_marked(output["answer"], citations)]
    if citations:
        sources = [_source(number, cited) for number, cited in enumerate(citations, start=1)]
        blocks.append("\n".join(["Sources, quoted from the documents:", *sources]))
    doubtful = [
        f"- {claim['text']} ({claim['kind']})"
        for claim in output["unsupported"]
        if claim["status"] == "unsupported"
    ]
    if doubtful:
        blocks.append("\n".join(["In none of the sources, so do not rely on it:", *doubtful]))
    if unread := output["usage"]["unread"]:
        blocks.append(f"Chunks not read, for the model gave no usable reply: {unread}.")
    if skipped := output.get("skipped"):
        chars = sum(end - start for _, start, end in skipped)
        blocks.append(f"Passed over at a review, and not read: {chars:,} characters.")
    return "\n\n".join(blocks)


def _marked(answer: str, citations: Sequence[SourceCitation]) -> str:
    markers: dict[int, list[int]] = {}
    for number, citation in enumerate(citations, start=1):
        for span in citation.get("answer_spans", []):
            markers.setdefault(_end_of(answer, span), []).append(number)
    for place in sorted(markers, reverse=True):
        marks = "".join(f"[{number}]" for number in markers[place])
        answer = f"{answer[:place]} {marks}{answer[place:]}"
    return answer


def _end_of(answer: str, span: AnswerSpan) -> int:
    return span["start_index"] + len(answer[span["start_index"] : span["end_index"]].rstrip())


def _source(number: int, cited: SourceCitation) -> str:
    first, last = cited["start_page"], cited["end_page"]
    pages = f", page {first}" if first == last else f", pages {first}-{last}"
    quote = " ".join(cited["cited_text"].split())
    if len(quote) > QUOTE_CHARS_MAX:
        quote = f"{quote[:QUOTE_CHARS_MAX]} [...]"
    where = f"{cited['document_title']}{'' if first is None else pages}"
    return f'[{number}] {where}, chars {cited["start_char"]}-{cited["end_char"]}: "{quote}"'
