"""The report of a kept run as an HTML page in a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwenlong_graph.cli.options import DataDir
from qwenlong_graph.cli.printing import answer_console, write_json
from qwenlong_graph.cli.process import error_console, failures_told

if TYPE_CHECKING:
    from qwenlong_graph.report import Reading

__all__ = ["ABOUT", "report"]

ABOUT = """Write the report of a reading: one HTML page that needs nothing else.

It shows the question, the answer with its sources highlighted in the text
around them, where in the documents they stand, and chunk by chunk what was
noted, dropped and planned, what was asked again and why, tokens and time.
No model is called, so a run that failed has a report too.

The page holds quotes from the documents; the file is readable by you only.

\b
[bold]Examples[/bold]
qwenlong-graph report 20260412-220301-x7k2
qwenlong-graph report --open
qwenlong-graph report 2026 --output night.html
qwenlong-graph report THREAD_ID --server http://127.0.0.1:2024
"""


def report(
    run_id: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN_ID",
            help="The run, or the beginning of its name; by default the newest.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help='Where to write; by default reading-RUN_ID.html here, "-" for standard output.',
            show_default=False,
        ),
    ] = None,
    opens: Annotated[bool, typer.Option("--open", help="Open it in the browser, too.")] = False,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A LangGraph Server: RUN_ID is one of its threads. Its key is taken from "
            "LANGGRAPH_API_KEY.",
        ),
    ] = None,
    data_dir: DataDir = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write the path and size as JSON, and nothing else.")
    ] = False,
) -> None:
    """See `ABOUT`."""
    with failures_told(error_console(), as_json=as_json):
        from qwenlong_graph.errors import SettingsError
        from qwenlong_graph.report import report_page
        from qwenlong_graph.runs.writing import write_whole

        reading = _reading(run_id, server, data_dir)
        page = report_page(reading).encode()
        if output == Path("-"):
            sys.stdout.buffer.write(page)
            sys.stdout.buffer.flush()
            return
        path = (output or Path(f"reading-{reading.name}.html")).expanduser()
        try:
            if path.exists() and not path.is_file():
                # A device or a pipe has to stay what it is.
                with path.open("wb") as file:
                    file.write(page)
            else:
                # What a link leads to is replaced, and not the link.
                write_whole(path.resolve(), page)
        except OSError as error:
            raise SettingsError(
                f"Writing the report: {path} cannot be written ({error.strerror or error}). Name "
                "another file with --output."
            ) from error
        if as_json:
            write_json({"run_id": reading.name, "path": str(path.resolve()), "bytes": len(page)})
        else:
            size = len(page) / 1_000_000
            text = f"Wrote {path} ({size:.1f} MB)" if size >= 1 else f"Wrote {path}"
            answer_console().print(text, soft_wrap=True)
        if opens:
            import webbrowser

            if not webbrowser.open(path.resolve().as_uri()):
                error_console().print("No browser could be started; open the file yourself.")


def _reading(run_id: str | None, server: str | None, data_dir: Path | None) -> Reading:
    from qwenlong_graph.cli.ask import resume_command, shelf_in, store_in
    from qwenlong_graph.errors import RunNotFoundError, SettingsError
    from qwenlong_graph.report import reading_of_run, reading_of_server

    store, shelf = store_in(data_dir), shelf_in(data_dir)
    if server is not None:
        if run_id is None:
            raise SettingsError("With --server, name the thread: report THREAD_ID --server URL")
        return reading_of_server(server, run_id, store)
    run = shelf.find(run_id) if run_id is not None else next(iter(shelf.all()), None)
    if run is None:
        raise RunNotFoundError(
            f"No runs are kept in {shelf.root}. Begin one with qwenlong-graph ask, or name "
            "the directory where there are some with --data-dir."
        )
    return reading_of_run(run, store, next_step=resume_command(run.run_id, data_dir))
