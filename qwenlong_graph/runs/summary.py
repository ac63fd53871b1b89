"""What a kept run holds, for those who look at it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from qwenlong_graph.errors import StoredTextChangedError

if TYPE_CHECKING:
    from qwenlong_graph.documents.store import DocumentStore
    from qwenlong_graph.runs.directory import Run

__all__ = ["Quote", "RunSummary", "quotes_of", "summary_of", "titles_of"]


class RunSummary(TypedDict):
    """How far a run is: `state` is "not begun", "begun", "paused", "finished" or "unreadable".

    A run is paused where it waits for a person's review.
    """

    run_id: str
    state: str
    question: str
    step: int
    steps: int


class Quote(TypedDict):
    """A place that evidences the memory; `text` is None where the store has lost it."""

    title: str
    start_char: int
    end_char: int
    text: str | None


def summary_of(
    run: Run, values: Mapping[str, Any] | None, *, is_paused: bool = False
) -> RunSummary:
    """`values` are those of `run.kept()`, None where they cannot be read."""
    if values is None:
        state, values = "unreadable", {}
    elif is_paused:
        state = "paused"
    else:
        state = "finished" if values.get("answer") else "begun" if values else "not begun"
    return {
        "run_id": run.run_id,
        "state": state,
        "question": run.record["question"],
        "step": values.get("step", 0),
        "steps": values.get("steps", 0),
    }


def titles_of(run: Run, store: DocumentStore) -> list[str]:
    """The titles of a run's documents, as far as they are known where the store lost them."""
    record = run.record
    try:
        return [reference["title"] for reference in store.collection(record["documents"])]
    except StoredTextChangedError:
        known = record["titles"]
        others = range(len(known), record["documents"]["documents"])
        return [*known, *(f"document {index + 1}" for index in others)]


def quotes_of(run: Run, values: Mapping[str, Any], store: DocumentStore) -> list[Quote]:
    """The places that evidence the memory of `values`, in their order."""
    from qwenlong_graph.graph.state import unpack_evidence

    titles = titles_of(run, store)
    quotes: list[Quote] = []
    for row in unpack_evidence(values.get("evidence", [])):
        start, end = row["start_char"], row["end_char"]
        text: str | None
        try:
            reference = store.collection(run.record["documents"])[row["document"]]
            text = store.open(reference).read(start, end)
        except StoredTextChangedError:
            text = None
        title = titles[row["document"]]
        quotes.append({"title": title, "start_char": start, "end_char": end, "text": text})
    return quotes
