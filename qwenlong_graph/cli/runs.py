"""Kept runs: what they are, how far they are, and their removal."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenlong_graph.cli.options import DataDir
from qwenlong_graph.cli.printing import answer_console, counted, printable, shortened, write_json
from qwenlong_graph.cli.process import error_console, failures_told

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwenlong_graph.errors import RunError
    from qwenlong_graph.runs.directory import Run, RunShelf

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
        kept = [_summary(run) for run in shelf.all(on_skip=_tell_skipped)]
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
def show_run(run_id: _RunId, data_dir: DataDir = None, as_json: _AsJson = False) -> None:
    """One run: how far it is, its memory, its plan, its evidence, its answer."""

    def work(shelf: RunShelf) -> None:
        run = shelf.find(run_id)
        values = asyncio.run(_state_of(run))
        shown = {
            **_summary(run, values),
            "created": run.record["created"],
            "model": run.record["model"],
            "documents": run.record["titles"],
            "memory": values.get("memory", ""),
            "plan": values.get("plan", ""),
            "evidence": _quotes(run, values, data_dir),
            "answer": values.get("answer", ""),
            "found": values.get("found", False),
        }
        if as_json:
            write_json(shown)
            return
        console = answer_console()
        for name, value in shown.items():
            label = f"{name.replace('_', ' ').capitalize()}:"
            if name == "evidence":
                console.print(f"{label:<10} {counted(len(value), 'quote')}")
                for quote in value:
                    where = f"{quote['title']}, chars {quote['start_char']}-{quote['end_char']}"
                    text = f'  {where}: "{shortened(" ".join(quote["text"].split()), 200)}"'
                    console.print(printable(text), soft_wrap=True)
                continue
            text = ", ".join(value) if isinstance(value, list) else str(value)
            console.print(f"{label:<10} {printable(text) or '-'}", soft_wrap=True)
        if shown["state"] != "finished":
            console.print(f"\nGo on with: qwenlong-graph resume {run.run_id}")

    _on_shelf(data_dir, work, as_json=as_json)


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


def _quotes(run: Run, values: dict[str, Any], data_dir: Path | None) -> list[dict[str, Any]]:
    from qwenlong_graph.cli.ask import store_in
    from qwenlong_graph.graph.state import unpack_evidence

    rows = unpack_evidence(values.get("evidence", []))
    if not rows:
        return []
    store = store_in(data_dir)
    references = store.collection(run.record["documents"])
    return [
        {
            "title": references[row["document"]]["title"],
            "start_char": row["start_char"],
            "end_char": row["end_char"],
            "text": store.open(references[row["document"]]).read(
                row["start_char"], row["end_char"]
            ),
        }
        for row in rows
    ]


async def _state_of(run: Run) -> dict[str, Any]:
    async with run.checkpoints() as saver:
        kept = await saver.aget_tuple({"configurable": {"thread_id": run.run_id}})
    return dict(kept.checkpoint["channel_values"]) if kept else {}


def _summary(run: Run, values: dict[str, Any] | None = None) -> dict[str, Any]:
    if values is None:
        values = asyncio.run(_state_of(run))
    state = "finished" if values.get("answer") else "begun" if values else "not begun"
    return {
        "run_id": run.run_id,
        "state": state,
        "question": run.record["question"],
        "step": values.get("step", 0),
        "steps": values.get("steps", 0),
    }


def _tell_skipped(name: str, error: RunError) -> None:
    typer.echo(f"Left out: {printable(name)} ({printable(str(error))})", err=True)


def _on_shelf(
    data_dir: Path | None, work: Callable[[RunShelf], None], *, as_json: bool = False
) -> None:
    from qwenlong_graph.cli.ask import shelf_in

    with failures_told(error_console(), as_json=as_json):
        work(shelf_in(data_dir))
