"""What a reading would cost, before it is begun: chunks, calls, tokens, time, disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenlong_graph.cli.connecting import connection_options
from qwenlong_graph.cli.options import ApiKey, DataDir, Debug, ServedModel, Window
from qwenlong_graph.cli.printing import answer_console, counted, printable, write_json
from qwenlong_graph.cli.process import error_console, failures_told, prepare_process

if TYPE_CHECKING:
    from rich.console import Console

    from qwenlong_graph.documents.store import DocumentStore
    from qwenlong_graph.models.connect import ConnectedModel
    from qwenlong_graph.reading.budget import ReadingSettings
    from qwenlong_graph.reading.protocols import Chunk, ReadingTask
    from qwenlong_graph.runs.estimate import Estimate
    from qwenlong_graph.types import DocumentReference, Span

__all__ = ["estimate", "in_words"]


def estimate(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Files or directories, as for ask."),
    ],
    model: Annotated[
        str,
        typer.Option(envvar="QWENLONG_GRAPH_MODEL", help="The model, as for ask."),
    ] = "embedded",
    served_model: ServedModel = None,
    api_key: ApiKey = None,
    window: Window = None,
    chunk_tokens: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="Longest chunk.")
    ] = None,
    memory_tokens: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="Longest memory.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(metavar="[rewrite|extract]", help="As for ask.")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Time the model on up to two chunks; without this, no time and no output.",
        ),
    ] = True,
    data_dir: DataDir = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one JSON object, and nothing else.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Tell beforehand what reading these files takes: chunks, calls, tokens, time, disk."""
    prepare_process(is_debug=debug, is_silent=as_json)
    given = {"chunk_tokens": chunk_tokens, "memory_tokens": memory_tokens, "protocol": protocol}
    errors = error_console(is_quiet=as_json)
    with failures_told(errors, as_json=as_json, is_debug=debug):
        estimated = _estimate(
            files,
            settings={name: value for name, value in given.items() if value is not None},
            connection={
                "target": model,
                **connection_options(
                    model, served_model=served_model, api_key=api_key, window=window
                ),
            },
            data_dir=data_dir,
            is_calibrated=calibrate,
            errors=errors,
        )
        if as_json:
            write_json(asdict(estimated))
        else:
            _print(estimated, answer_console())


def in_words(seconds: float) -> str:
    """A length of time in its two largest units: "2 min 20 s"."""
    if seconds < 1:
        return "less than a second"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _estimate(
    files: Sequence[str],
    *,
    settings: Mapping[str, Any],
    connection: Mapping[str, Any],
    data_dir: Path | None,
    is_calibrated: bool,
    errors: Console,
) -> Estimate:
    from qwenlong_graph.cli.ask import store_in
    from qwenlong_graph.documents.loading import ingest
    from qwenlong_graph.models.connect import connect
    from qwenlong_graph.reading.budget import ReadingSettings
    from qwenlong_graph.runs.estimate import estimate_of, task_to_estimate

    def on_skip(name: str, reason: str) -> None:
        errors.print(f"Warning: left out {printable(name)}: {printable(reason)}", soft_wrap=True)

    asked = ReadingSettings(**settings)
    store = store_in(data_dir)
    references = store.collection(ingest(files, store, on_skip=on_skip))
    with contextlib.closing(connect(**connection)) as model:
        reading = asked.over(model.defaults)
        task = task_to_estimate(model, reading, store)
        estimated = estimate_of(references, store, task, reading, model.model_name)
        if is_calibrated:
            errors.print(f"Timing {printable(model.model_name)} on up to two chunks ...")
            seconds, output_tokens = _calibrate(
                model, reading, task, _typical_chunks(estimated, references, store, task, reading)
            )
            estimated = replace(
                estimated,
                output_tokens=output_tokens * estimated.calls,
                seconds=round(seconds * estimated.calls, 3),
                # Not to the millisecond: a quick server takes two or three for a chunk.
                seconds_per_chunk=round(seconds, 6),
            )
    return estimated


def _typical_chunks(
    estimated: Estimate,
    references: Sequence[DocumentReference],
    store: DocumentStore,
    task: ReadingTask,
    reading: ReadingSettings,
) -> list[Chunk]:
    """One or two chunks; the last is the first of the document whose chunks are most usual."""
    from qwenlong_graph.documents.chunking import next_span
    from qwenlong_graph.reading.protocols import Chunk

    def distance(index: int) -> float:
        document = estimated.documents[index]
        return abs(document.tokens / document.chunks - estimated.tokens / estimated.chunks)

    def chunk_at(index: int, after: Span | None = None) -> tuple[Chunk, Span]:
        text = store.open(references[index])
        span = next_span(
            text,
            document=index,
            start_char=after["end_char"] if after else 0,
            start_byte=after["end_byte"] if after else 0,
            max_tokens=task.budget.chunk_tokens,
            count_tokens=task.count_tokens,
            tolerance=reading.border_tolerance,
        )
        start, end = span["start_char"], span["end_char"]
        chunk = Chunk(
            text=text.read(start, end),
            document=index,
            start_char=start,
            end_char=end,
            title=references[index]["title"][-120:],
            step=0,
            steps=estimated.chunks,
            documents=len(references),
        )
        return chunk, span

    typical, *others = sorted(range(len(references)), key=distance)
    timed, span = chunk_at(typical)
    # Another text first: a server that caches prompts would answer the same one too fast.
    if span["end_char"] < references[typical]["chars"]:
        return [chunk_at(typical, span)[0], timed]
    return [chunk_at(others[0])[0], timed] if others else [timed]


def _calibrate(
    model: ConnectedModel,
    reading: ReadingSettings,
    task: ReadingTask,
    chunks: Sequence[Chunk],
) -> tuple[float, int]:
    """Seconds and tokens of output of the last chunk's call; the one before warms up."""
    from langsmith import tracing_context

    from qwenlong_graph.models.calls import ask
    from qwenlong_graph.reading.loop import call_seed, start_state
    from qwenlong_graph.reading.protocols import protocol_named
    from qwenlong_graph.reading.replies import BadReply

    protocol = protocol_named(reading.protocol)
    state = start_state()
    seconds, output_tokens = 0.0, 0
    for step, chunk in enumerate(chunks):
        messages = protocol.update_messages(task, state, chunk)
        began = time.perf_counter()
        # An estimate is nobody's trace: the text goes to the model alone.
        with tracing_context(enabled=False):
            reply = ask(
                model,
                messages,
                max_tokens=task.budget.output_tokens,
                temperature=reading.temperature,
                top_p=reading.top_p,
                seed=call_seed(reading.seed, step=step, attempt=0),
            )
        seconds = time.perf_counter() - began
        output_tokens = reply.output_tokens or task.count_tokens(reply.text)
        # A reply that a reading would ask for again leaves the memory as it is.
        with contextlib.suppress(BadReply):
            state = protocol.apply_reply(
                task, state, chunk, reply.text, is_truncated=reply.is_truncated
            ).state
    return seconds, output_tokens


def _print(estimated: Estimate, console: Console) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("Document", overflow="fold")
    for heading in ("Characters", "Tokens", "Chunks"):
        table.add_column(heading, justify="right", no_wrap=True)
    for document in estimated.documents:
        table.add_row(
            printable(document.title),
            f"{document.chars:,}",
            f"{document.tokens:,}",
            f"{document.chunks:,}",
        )
    lines = [
        f"Model:  {printable(estimated.model)}, protocol {estimated.protocol}, chunks of up to "
        f"{estimated.chunk_tokens:,} tokens, memory up to {estimated.memory_tokens:,}",
        f"Calls:  about {estimated.calls:,} for {counted(estimated.chunks, 'chunk')}",
        f"Input:  about {estimated.input_tokens:,} tokens, with a full memory",
    ]
    if estimated.seconds is not None:
        lines += [
            f"Output: about {estimated.output_tokens:,} tokens",
            f"Time:   about {in_words(estimated.seconds)}",
        ]
    lines.append(f"Disk:   about {_size(estimated.disk_bytes)}")
    if estimated.is_one_pass:
        lines.append(
            "This is for reading chunk by chunk. All of it seems to fit in one pass, which is what "
            "ask does then, in a single call, unless it is given --strategy memory."
        )
    # In one piece: rich would turn a closed pipe into an exit of its own.
    with console.capture() as capture:
        console.print(table)
        console.print()
        for line in lines:
            console.print(line, soft_wrap=True)
    console.file.write(capture.get())
    console.file.flush()


def _size(count: int) -> str:
    return f"{count / 1_000_000:,.1f} MB" if count >= 1_000_000 else f"{count / 1_000:,.0f} KB"
