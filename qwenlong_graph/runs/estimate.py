"""What a reading would cost, told without asking the model anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenlong_graph.documents.tokens import chars_per_token
from qwenlong_graph.graph.nodes import ReadingNodes
from qwenlong_graph.reading.budget import FILLED_SHARE
from qwenlong_graph.reading.loop import start_state
from qwenlong_graph.reading.protocols import Chunk, protocol_named
from qwenlong_graph.runs.checkpoints import KEPT_CHECKPOINTS, PRUNING_STEPS

if TYPE_CHECKING:
    from qwenlong_graph.documents.store import DocumentStore
    from qwenlong_graph.models.connect import ConnectedModel
    from qwenlong_graph.reading.budget import ReadingSettings
    from qwenlong_graph.reading.protocols import ReadingTask
    from qwenlong_graph.types import DocumentReference

__all__ = ["DocumentEstimate", "Estimate", "estimate_of", "task_to_estimate"]

# Stands in for the question, which is not known yet.
_QUESTION = "What do these documents say about the matter, who is named, and when was it?"
# Of a run's files as measured: a checkpoint without its memory, and a line of the journal.
_CHECKPOINT_BYTES = 6_500
_JOURNAL_BYTES = 400
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, kw_only=True)
class DocumentEstimate:
    """One document; `tokens` and `chunks` come from samples of its text."""

    title: str
    chars: int
    tokens: int
    chunks: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """All documents read with a memory. Retries are not foreseen.

    `input_tokens` is counted with a full memory. What only a calibration tells is None without
    one. `is_one_pass` says that strategy "auto" would probably read them in a single call.
    """

    model: str
    protocol: str
    chunk_tokens: int
    memory_tokens: int
    documents: Sequence[DocumentEstimate]
    tokens: int
    chunks: int
    calls: int
    input_tokens: int
    disk_bytes: int
    is_one_pass: bool
    output_tokens: int | None = None
    seconds: float | None = None
    seconds_per_chunk: float | None = None


def task_to_estimate(
    model: ConnectedModel, reading: ReadingSettings, store: DocumentStore
) -> ReadingTask:
    """The task of a question that is not known yet."""
    return ReadingNodes(model, settings=reading, store=store).task(_QUESTION, "")


def estimate_of(
    references: Sequence[DocumentReference],
    store: DocumentStore,
    task: ReadingTask,
    reading: ReadingSettings,
    model_name: str,
) -> Estimate:
    """All that can be told without asking the model anything. `task` is `task_to_estimate`'s."""
    budget = task.budget
    documents = []
    for reference in references:
        ratio = chars_per_token(store.open(reference), task.count_tokens)
        tokens = math.ceil(reference["chars"] / ratio)
        # What fits is one chunk, though a longer text fills its chunks less than wholly.
        fits = tokens <= budget.chunk_tokens
        chunks = 1 if fits else math.ceil(tokens / (budget.chunk_tokens * FILLED_SHARE))
        documents.append(
            DocumentEstimate(
                title=reference["title"], chars=reference["chars"], tokens=tokens, chunks=chunks
            )
        )
    tokens = sum(document.tokens for document in documents)
    chunks = sum(document.chunks for document in documents)
    is_rewriting = reading.protocol == "rewrite"
    empty = Chunk(text="", document=0, start_char=0, end_char=0, title="", step=0, steps=chunks)
    prompt = protocol_named(reading.protocol).update_messages(task, start_state(), empty)
    frame_tokens = task.count_tokens(prompt[0]["content"])
    # The memory stands in every prompt of "rewrite", and in that of the answer.
    memory_tokens = budget.memory_tokens if is_rewriting else 0
    calls = chunks + is_rewriting + 1
    return Estimate(
        model=model_name,
        protocol=reading.protocol,
        chunk_tokens=budget.chunk_tokens,
        memory_tokens=budget.memory_tokens,
        documents=documents,
        tokens=tokens,
        chunks=chunks,
        calls=calls,
        input_tokens=tokens + calls * frame_tokens + chunks * memory_tokens + budget.memory_tokens,
        disk_bytes=sum(reference["bytes"] for reference in references)
        + _run_bytes(chunks, budget.memory_tokens),
        is_one_pass=tokens <= min(budget.full_tokens, reading.full_tokens_max),
    )


def _run_bytes(chunks: int, memory_tokens: int) -> int:
    """The files of a run, with a full memory. A run keeps only its last checkpoints."""
    # Two for each chunk, and some for the start and the answer; memory is written at each, and
    # once more as the result of every second one.
    checkpoints = min(2 * chunks + 4, KEPT_CHECKPOINTS + PRUNING_STEPS)
    each = _CHECKPOINT_BYTES + memory_tokens * _BYTES_PER_TOKEN * 3 // 2
    return checkpoints * each + chunks * _JOURNAL_BYTES
