"""Kept runs: what they are, how far they are, and their removal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenlong_graph.cli.options import DataDir
from qwenlong_graph.cli.printing import answer_console, counted, printable, shortened, write_json
from qwenlong_graph.cli.process import error_console, failures_told
from qwenlong_graph.runs.summary import quotes_of, summary_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from qwenlong_graph.errors import RunError
    from qwenlong_graph.runs.directory import Run, RunShelf
    from qwenlong_graph.runs.summary import RunSummary

__all__ = ["runs"]

runs = typer.Typer(no_args_is_help=True, help="Kept runs: list, show, remove.")

_RunId = Annotated[
    str,
    typer.Argument(metavar="RUN_ID", help="The run, or the beginning of its name."),
]
_AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")]


@runs.command("list")
def list_runs(data_dir: DataDir = None, as_json: _AsJson = False) -> None:
    """The kept runs, newest first."""

    def work(shelf: RunShelf) -> None:
        kept = [_summary_of(run) for run in shelf.all(on_skip=_tell_unreadable)]
        if as_json:
            write_json({"runs": kept})
            return
        from rich.table import Table

        console = answer_console()
        if not kept:
            console.print("No runs are kept here.")
            return
        table = Table(box=None, pad_edge=False)
        for heading in ("Run", "State", "Chunks", "Question"):
            table.add_column(heading, overflow="fold" if heading == "Run" else "ellipsis")
        for summary in kept:
            chunks = f"{summary['step']} of about {summary['steps']}" if summary["steps"] else "-"
            table.add_row(
                summary["run_id"], summary["state"], chunks, printable(summary["question"])
            )
        console.print(table)

    _on_shelf(data_dir, work, as_json=as_json)


@runs.command("show")
def show_run(
    run_id: _RunId,
    journal: Annotated[
        bool, typer.Option("--journal", help="Show what each chunk changed, too.")
    ] = False,
    data_dir: DataDir = None,
    as_json: _AsJson = False,
) -> None:
    """One run: how far it is, its memory, its plan, its evidence, its answer."""

    def work(shelf: RunShelf) -> None:
        from qwenlong_graph.cli.ask import store_in

        run = shelf.find(run_id)
        kept = run.kept()
        values = kept.values
        shown = {
            **summary_of(run, values, is_paused=kept.is_paused),
            "created": run.record["created"],
            "model": run.record["model"],
            "documents": run.record["titles"],
            "memory": values.get("memory", ""),
            "plan": values.get("plan", ""),
            "evidence": quotes_of(run, values, store_in(data_dir)),
            "answer": values.get("answer", ""),
            "found": values.get("found", False),
        }
        entries = run.journal().entries() if journal else []
        if as_json:
            write_json({**shown, "journal": entries} if journal else shown)
            return
        console = answer_console()
        for name, value in shown.items():
            label = f"{name.replace('_', ' ').capitalize()}:"
            if name == "evidence":
                console.print(f"{label:<10} {counted(len(value), 'quote')}")
                for quote in value:
                    console.print(printable(f"  {_in_words(quote)}"), soft_wrap=True)
                continue
            text = ", ".join(value) if isinstance(value, list) else str(value)
            console.print(f"{label:<10} {printable(text) or '-'}", soft_wrap=True)
        if journal:
            console.print("Journal:")
            for entry in entries:
                for line in journal_lines(entry):
                    console.print(printable(f"  {line}"), soft_wrap=True)
        if shown["state"] != "finished":
            from qwenlong_graph.cli.ask import resume_command

            console.print(f"\nGo on with: {resume_command(run.run_id, data_dir)}", soft_wrap=True)

    _on_shelf(data_dir, work, as_json=as_json)


def journal_lines(entry: Mapping[str, Any]) -> Iterator[str]:
    """One entry of a journal as a person reads it: a line, and the lines that memory gained (+)
    and lost (-)."""
    kind = entry["type"]
    if kind == "memory_updated":
        about = [
            f"reply {entry['reply']}",
            f"memory {entry['memory_tokens']:,} tokens",
            f"{entry['evidence_added']} new of {counted(entry['evidence'], 'quote')}",
            f"{entry['input_tokens']:,} tokens in, {entry['output_tokens']:,} out",
            f"{entry['seconds']:.1f} s",
        ]
        if entry["retries"]:
            about.append(counted(entry["retries"], "retry", "retries"))
        where = f"{entry['document']}, chars {entry['start_char']}-{entry['end_char']}"
        yield f"{entry['step'] + 1}. {where}: {', '.join(about)}"
        yield from (f"   - {line}" for line in entry["lines_removed"])
        yield from (f"   + {line}" for line in entry["lines_added"])
    elif kind == "restored":
        first, last = entry["first_step"] + 1, entry["step"] + 1
        which = f"{first}." if first == last else f"{first}.-{last}."
        yield f"{which} lost, and restored from the checkpoint as far as it knows"
        if "memory" in entry:
            yield from (f"   = {line}" for line in entry["memory"].splitlines())
    elif kind == "retry":
        yield f"{entry['step'] + 1}. asked again: {entry['reason']}"
    elif kind == "damaged":
        yield f"The journal was damaged; what was found is in {entry['moved_to']}."
    elif kind == "answered":
        yield "Answered." if entry["found"] else "Answered: not found."
    elif kind == "reviewed":
        yield f"{entry['step']}. reviewed: {entry['action']}"
        yield from (f"   - {line}" for line in entry.get("lines_removed", []))
        yield from (f"   + {line}" for line in entry.get("lines_added", []))
    elif kind == "stopped":
        yield f"Stopped: {entry['error']}" + (f": {entry['message']}" if entry["message"] else "")
    elif kind == "server_failed":
        yield f"The server failed: {entry['message']}"


@runs.command("rm")
def remove_runs(
    run_ids: Annotated[list[str], typer.Argument(metavar="RUN_ID", help="The runs to remove.")],
    data_dir: DataDir = None,
) -> None:
    """Remove runs for good. The texts of their documents stay in the store."""

    def work(shelf: RunShelf) -> None:
        for run in [shelf.find(run_id) for run_id in run_ids]:
            shelf.remove(run)
            answer_console().print(f"Removed {run.run_id}.")

    _on_shelf(data_dir, work)


@runs.command("prune")
def prune_runs(
    older_than: Annotated[
        float, typer.Option(metavar="DAYS", min=0, help="Remove runs begun longer ago than this.")
    ] = 30.0,
    data_dir: DataDir = None,
) -> None:
    """Remove old runs; one that is being worked on stays."""

    def work(shelf: RunShelf) -> None:
        removed = shelf.prune(older_than_s=older_than * 86_400)
        answer_console().print(f"Removed {counted(len(removed), 'run')}.")

    _on_shelf(data_dir, work)


def _in_words(quote: Mapping[str, Any]) -> str:
    where = f"{quote['title']}, chars {quote['start_char']}-{quote['end_char']}"
    if quote["text"] is None:
        return f"{where} (the text is no longer in the store)"
    return f'{where}: "{shortened(" ".join(quote["text"].split()), 200)}"'


def _summary_of(run: Run) -> RunSummary:
    """One whose state cannot be read is listed all the same."""
    from qwenlong_graph.errors import RunError

    try:
        kept = run.kept()
    except RunError as error:
        _tell_unreadable(run.run_id, error)
        return summary_of(run, None)
    return summary_of(run, kept.values, is_paused=kept.is_paused)


def _tell_unreadable(name: str, error: RunError) -> None:
    typer.echo(f"Not readable: {printable(name)} ({printable(str(error))})", err=True)


def _on_shelf(
    data_dir: Path | None, work: Callable[[RunShelf], None], *, as_json: bool = False
) -> None:
    from qwenlong_graph.cli.ask import shelf_in

    with failures_told(error_console(), as_json=as_json):
        work(shelf_in(data_dir))
