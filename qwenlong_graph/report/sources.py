"""Where a report's facts come from: a kept run, or any thread of a LangGraph checkpointer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from qwenlong_graph.errors import RunError, RunFormatError, StoredTextChangedError
from qwenlong_graph.graph.state import unpack_evidence
from qwenlong_graph.runs.summary import titles_of

if TYPE_CHECKING:
    from langgraph.types import StateSnapshot

    from qwenlong_graph.documents.store import DocumentStore
    from qwenlong_graph.runs.directory import Run
    from qwenlong_graph.types import CollectionReference, DocumentReference

__all__ = ["Document", "Reading", "reading_of_run", "reading_of_thread"]

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Document:
    """A document that was to be read; `reference` is None where the store has lost it."""

    title: str
    chars: int
    reference: DocumentReference | None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """All that a report is made of; no model is asked, and nothing is written.

    `entries` are those of a journal (`runs.journal`), `values` the newest state of the graph,
    empty where there is none. `notes` say what could not be had. `next_step` tells how to go on
    with a reading that is not finished.
    """

    name: str
    question: str
    instructions: str
    created: str
    model: str
    version: str
    documents: Sequence[Document]
    values: Mapping[str, Any]
    entries: Sequence[Entry]
    store: DocumentStore
    is_paused: bool = False
    notes: Sequence[str] = ()
    next_step: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def reading_of_run(run: Run, store: DocumentStore, *, next_step: str = "") -> Reading:
    """What is kept of `run`, however it ended; it may be read at the same time.

    What is damaged or lost is left out, and told in the notes.
    """
    notes: list[str] = []
    values: Mapping[str, Any] = {}
    is_paused = False
    try:
        kept = run.kept()
        values, is_paused = kept.values, kept.is_paused
    except RunError as error:
        notes.append(f"The state of the run could not be read. {error}")
    entries, broken = run.journal().readable()
    if broken:
        lines = "line" if len(broken) == 1 else "lines"
        numbers = ", ".join(map(str, broken[:10])) + (" and more" if len(broken) > 10 else "")
        notes.append(
            f"The journal {run.journal().path} is damaged in {lines} {numbers}; "
            "what stood there is missing below."
        )
    record = run.record
    try:
        documents = [
            Document(reference["title"], reference["chars"], reference)
            for reference in store.collection(record["documents"])
        ]
    except StoredTextChangedError as error:
        notes.append(f"The texts of the documents are not in the store any more. {error}")
        titles = titles_of(run, store)
        # Their sizes are lost too; only the sum is known.
        only = record["documents"]["chars"] if len(titles) == 1 else 0
        documents = [Document(title, only, None) for title in titles]
    return Reading(
        name=run.run_id,
        question=record["question"],
        instructions=record["instructions"],
        created=record["created"],
        model=values.get("setup", {}).get("model") or record["served_model"] or record["model"],
        version=record["version"],
        documents=documents,
        values=values,
        entries=entries,
        store=store,
        is_paused=is_paused,
        notes=notes,
        next_step="" if values.get("answer") else next_step,
        settings=record["settings"],
    )


def reading_of_thread(
    history: Iterable[StateSnapshot], store: DocumentStore, *, name: str = ""
) -> Reading:
    """The same from the checkpoints of a thread, newest first: `agent.get_state_history(config)`.

    Reasons of repeated calls are not among the checkpoints; a checkpointer that keeps only the
    newest ones gives a report of the last chunks. `store` is where the agent keeps its texts: its
    `document_dir`. The newest question of the thread is the one reported.

    Raises:
        RunFormatError: there is no checkpoint of a memory agent.
    """
    newest: StateSnapshot | None = None
    later: StateSnapshot | None = None
    entries: list[Entry] = []
    for snapshot in history:
        if not snapshot.values.get("documents"):
            continue
        newest = newest or snapshot
        step, span = snapshot.values.get("step") or 0, snapshot.values.get("span")
        if later is not None and span and later.values.get("step") == step + 1:
            entries.append(_entry(step, span, snapshot, later))
        later = snapshot
        if "decompose" in snapshot.next:
            break  # what lies before belongs to an earlier question of the thread
    if newest is None or later is None:
        raise RunFormatError(
            "Writing a report: the thread has no checkpoint of a memory agent. Name the thread "
            "that was read in, and its checkpointer."
        )
    values = newest.values
    if "decompose" in newest.next:
        # All but what was given is still that of the question before.
        given = ("question", "instructions", "documents")
        values = {name: values[name] for name in given if name in values}
    collection = values["documents"][0]
    is_stored = isinstance(collection, Mapping) and "collection_id" in collection
    notes: list[str] = []
    try:
        references = store.collection(cast("CollectionReference", collection)) if is_stored else []
        documents = [
            Document(reference["title"], reference["chars"], reference) for reference in references
        ]
    except StoredTextChangedError as error:
        notes = [f"The texts of the documents are not in the store. {error}"]
        count = collection["documents"]
        documents = [Document(f"document {number}", 0, None) for number in range(1, count + 1)]
    configurable = newest.config.get("configurable", {})
    return Reading(
        name=name or str(configurable.get("thread_id", "")),
        question=values.get("question", ""),
        instructions=values.get("instructions", ""),
        created=later.created_at or "",
        model=str(values.get("setup", {}).get("model", "")),
        version="",
        documents=documents,
        values=values,
        entries=entries[::-1],
        store=store,
        is_paused=bool(newest.interrupts),
        notes=notes,
    )


def _entry(
    step: int, span: Mapping[str, Any], before: StateSnapshot, after: StateSnapshot
) -> Entry:
    """What a journal would hold of a step, as far as the states around it tell."""
    then, now = before.values, after.values
    old = Counter(then.get("memory", "").splitlines())
    new = Counter(now.get("memory", "").splitlines())
    held, places = (
        {
            (piece["document"], piece["start_char"], piece["end_char"])
            for piece in unpack_evidence(values.get("evidence", []))
        }
        for values in (then, now)
    )
    spent = {
        name: now["usage"].get(name, 0) - then["usage"].get(name, 0)
        for name in ("calls", "retries", "input_tokens", "output_tokens", "reasoning_tokens")
    }
    is_unread = now["usage"].get("unread", 0) > then["usage"].get("unread", 0)
    return {
        "type": "memory_updated",
        "step": step,
        "document_index": span["document"],
        "start_char": span["start_char"],
        "end_char": span["end_char"],
        "reply": "kept" if is_unread else "",
        "memory_tokens": None,
        "plan": now.get("plan", ""),
        "evidence": len(now.get("evidence", [])),
        "evidence_added": len(places - held),
        "lines_added": list((new - old).elements()),
        "lines_removed": list((old - new).elements()),
        "places_added": [list(place) for place in sorted(places - held)],
        **spent,
        "seconds": _seconds(before.created_at, after.created_at),
    }


def _seconds(before: str | None, after: str | None) -> float | None:
    try:
        passed = datetime.fromisoformat(after or "") - datetime.fromisoformat(before or "")
    except ValueError:
        return None
    return round(passed.total_seconds(), 3)
