"""Kept runs to report on: real readings with a scripted model, on disk."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langgraph.types import RetryPolicy

from qwenlong_graph import ReadingSettings, create_memory_agent
from qwenlong_graph.documents.loading import ingest
from qwenlong_graph.documents.store import DocumentStore
from qwenlong_graph.errors import QwenLongGraphError
from qwenlong_graph.runs.directory import Run, RunShelf
from qwenlong_graph.runs.reading import read_kept
from qwenlong_graph.testing.oracle import oracle
from qwenlong_graph.testing.scripted import scripted

FACT = "The widow Hale paid 318,000 crowns for the bridge at Orrin."
OTHER = "In 1204 the council of Sund sold the mill."
FILLER = "The winter was long and the traders stayed away from the coast. "
TEXT = FILLER * 120 + FACT + " " + FILLER * 120 + OTHER + " " + FILLER * 60
QUESTION = "Who paid for the bridge?"
SETTINGS = ReadingSettings(strategy="memory", chunk_tokens=400)


def oracle_reply(facts: Sequence[str] = (FACT, OTHER)) -> Callable[..., Any]:
    return oracle(facts).chat.replies  # type: ignore[attr-defined]


def agent_for(model: Any, store: DocumentStore, saver: Any, **options: Any) -> Any:
    return create_memory_agent(
        model,
        settings=SETTINGS,
        checkpointer=saver,
        document_dir=store.root,
        retry_policy=RetryPolicy(max_attempts=1),
        **options,
    )


def kept_run(
    root: Path,
    reply: Callable[..., Any] | None = None,
    *,
    text: str = TEXT,
    title: str = "annals",
    question: str = QUESTION,
    is_read: bool = True,
    documents: Sequence[Any] | None = None,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
    **options: Any,
) -> tuple[Run, DocumentStore]:
    """A run below `root`, read as far as `reply` lets it: what it raises is swallowed."""
    store = DocumentStore(root / "documents")
    given = documents or [Document(text, metadata={"title": title})]
    collection = ingest(given, store)
    run = RunShelf(root / "runs").create(
        question=question,
        instructions="",
        documents=collection,
        titles=[reference["title"] for reference in store.collection(collection)],
        model="scripted",
        window=None,
        settings={},
        version="0",
    )
    model = scripted(reply or oracle_reply())

    async def told(event: dict[str, Any]) -> None:
        on_event(event)

    if is_read:

        def read() -> None:
            # What the model raises is left to the report.
            with contextlib.suppress(QwenLongGraphError):
                asyncio.run(
                    read_kept(
                        run,
                        lambda saver: agent_for(model, store, saver, **options),
                        {"question": question, "documents": [collection]},
                        on_event=told,
                    )
                )

        # Playwright's sync API keeps the event loop of this thread.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(read).result()
    return run, store
