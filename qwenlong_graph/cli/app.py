"""The commands and their options. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qwenlong_graph.cli.batch import ABOUT as ABOUT_BATCH
from qwenlong_graph.cli.batch import batch
from qwenlong_graph.cli.doctor import ABOUT as ABOUT_DOCTOR
from qwenlong_graph.cli.doctor import doctor
from qwenlong_graph.cli.estimate import estimate
from qwenlong_graph.cli.mcp import ABOUT as ABOUT_MCP
from qwenlong_graph.cli.mcp import mcp
from qwenlong_graph.cli.options import (
    ApiKey,
    ChunkTokens,
    DataDir,
    Debug,
    Instructions,
    MemoryTokens,
    Model,
    ProtocolOption,
    Quiet,
    Schema,
    Seed,
    ServedModel,
    StrategyOption,
    Window,
    settings_given,
)
from qwenlong_graph.cli.printing import write_json
from qwenlong_graph.cli.process import (
    error_console,
    failures_told,
    prepare_process,
    warn_of_tracing,
)
from qwenlong_graph.cli.report import ABOUT as ABOUT_REPORT
from qwenlong_graph.cli.report import report
from qwenlong_graph.cli.runs import runs

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwenlong_graph.cli.ask import Answered
    from qwenlong_graph.cli.progress import Progress

__all__ = ["app"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    # Their boxes show local variables, and so the texts of documents.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(runs, name="runs")

# "\b" keeps the lines of the paragraph that it begins.
_EXIT_CODES = """\b
[bold]Exit codes[/bold]
  0  answered; that nothing was found is an answer too
  1  an unexpected error
  2  usage, settings, or a model that must be set up differently
  3  a document cannot be read
  4  the model or its server failed
  5  a kept run cannot go on as asked
  6  paused for a review
  7  a batch that is not wholly answered
130  interrupted"""

_ABOUT = f"""Answers questions over documents far longer than any context window.

A language model that you run reads the documents chunk by chunk and
keeps a memory. The answer comes with quotes, checked against the
documents.

\b
[bold]Start with[/bold]
qwenlong-graph ask "Who signed the lease?" lease.pdf

{_EXIT_CODES}
"""

_ABOUT_ASK = f"""Answer a question from documents, with checked quotes.

\b
[bold]Examples[/bold]
qwenlong-graph ask "Who signed the lease?" lease.pdf
qwenlong-graph ask "What changed in 2024?" notes/ minutes.docx --memory
qwenlong-graph ask "Who won?" cup.pdf --model http://127.0.0.1:8080
pdftotext scan.pdf - | qwenlong-graph ask "What does it cost?" - --json

{_EXIT_CODES}
"""

_ABOUT_RESUME = f"""Go on with a reading that was interrupted, from the chunk that was open.

Model, documents and settings are those it was begun with. Another model,
protocol or size is refused, and the difference shown, unless
--accept-changes is given. Documents cannot be changed.

A run that is finished shows its answer again.

\b
[bold]Examples[/bold]
qwenlong-graph resume 20260412-220301-x7k2
qwenlong-graph resume 2026 --model http://127.0.0.1:8080 --accept-changes

{_EXIT_CODES}
"""


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        typer.echo(f"qwenlong-graph {version('qwenlong-graph')}")
        raise typer.Exit


@app.callback(help=_ABOUT)
def _commands(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and end."
        ),
    ] = False,
) -> None:
    """The options that stand before a command."""


@app.command(help=_ABOUT_ASK, no_args_is_help=True)
def ask(
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="What you want to know.", show_default=False)
    ],
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="Files to read, in this order: text, Markdown, HTML, PDF, Word, PowerPoint, "
            "Excel, CSV, EPUB, source code. A directory stands for its files, "
            '"-" for standard input.',
        ),
    ],
    model: Model = "embedded",
    served_model: ServedModel = None,
    api_key: ApiKey = None,
    window: Window = None,
    instructions: Instructions = "",
    schema: Schema = None,
    strategy: StrategyOption = None,
    protocol: ProtocolOption = None,
    chunk_tokens: ChunkTokens = None,
    memory_tokens: MemoryTokens = None,
    seed: Seed = None,
    review: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help='Pause to look at memory, plan and evidence: "every:CHUNKS" or "on-change".',
            rich_help_panel="Reading",
        ),
    ] = None,
    data_dir: DataDir = None,
    run_id: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A name for the run, to resume it by; by default one is made up.",
            rich_help_panel="Run",
        ),
    ] = None,
    ephemeral: Annotated[
        bool,
        typer.Option(
            "--ephemeral",
            help="Keep no run: nothing to resume, nothing left of it but the texts.",
            rich_help_panel="Run",
        ),
    ] = False,
    memory: Annotated[
        bool,
        typer.Option("--memory", help="Show the final memory too.", rich_help_panel="Output"),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Write one JSON object, and nothing else. An error is one too.",
            rich_help_panel="Output",
        ),
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """See `_ABOUT_ASK`."""
    from qwenlong_graph.cli.ask import Ask, answer_question

    asked = Ask(
        question=question,
        files=files,
        model=model,
        served_model=served_model,
        api_key=api_key,
        window=window,
        instructions=instructions,
        schema=schema,
        data_dir=data_dir,
        run_id=run_id,
        is_ephemeral=ephemeral,
        review=review,
        settings=settings_given(
            strategy=strategy,
            protocol=protocol,
            chunk_tokens=chunk_tokens,
            memory_tokens=memory_tokens,
            seed=seed,
        ),
    )
    _answer(
        lambda progress: answer_question(asked, progress),
        as_json=as_json,
        quiet=quiet,
        memory=memory,
        debug=debug,
    )


@app.command(help=_ABOUT_RESUME, no_args_is_help=True)
def resume(
    run_id: Annotated[
        str,
        typer.Argument(
            metavar="RUN_ID",
            help="The run, or the beginning of its name (see: qwenlong-graph runs list).",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="Go on with this model, or the same one elsewhere.", rich_help_panel="Model"
        ),
    ] = None,
    served_model: ServedModel = None,
    api_key: ApiKey = None,
    window: Window = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the model's random choices.", rich_help_panel="Reading"),
    ] = None,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help="Go on even if model, protocol or sizes are not those it was begun with.",
            rich_help_panel="Reading",
        ),
    ] = False,
    decide: Annotated[
        str | None,
        typer.Option(
            metavar="DECISION",
            help="How a reading that is paused for a review goes on: accept, answer (stop and "
            'answer now), skip:CHUNKS, or edit:FILE, a text with the memory ("-" for standard '
            "input). Without this you are asked.",
            rich_help_panel="Reading",
        ),
    ] = None,
    data_dir: DataDir = None,
    memory: Annotated[bool, typer.Option("--memory", help="Show the final memory too.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one JSON object, and nothing else.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    debug: Debug = False,
) -> None:
    """See `_ABOUT_RESUME`."""
    from qwenlong_graph.cli.ask import Resume, resume_run

    asked = Resume(
        run_id=run_id,
        model=model,
        served_model=served_model,
        window=window,
        seed=seed,
        accepts_changes=accept_changes,
        api_key=api_key,
        data_dir=data_dir,
        decide=decide,
    )
    _answer(
        lambda progress: resume_run(asked, progress),
        as_json=as_json,
        quiet=quiet,
        memory=memory,
        debug=debug,
    )


app.command(help=ABOUT_BATCH, no_args_is_help=True)(batch)
app.command(no_args_is_help=True)(estimate)
app.command(help=ABOUT_REPORT)(report)
app.command(help=ABOUT_DOCTOR)(doctor)
app.command(help=ABOUT_MCP)(mcp)


def _answer(
    work: Callable[[Progress], Answered], *, as_json: bool, quiet: bool, memory: bool, debug: bool
) -> None:
    """Does the work with its progress on standard error, and shows the answer or the failure."""
    from qwenlong_graph.cli.printing import answer_console, as_object, print_answer
    from qwenlong_graph.cli.progress import progress_on

    prepare_process(is_debug=debug, is_silent=quiet or as_json)
    errors = error_console()
    warn_of_tracing(errors)
    with failures_told(errors, as_json=as_json, is_debug=debug):
        with progress_on(errors, is_silent=quiet or as_json, hides_warnings=as_json) as progress:
            answered = work(progress)
        if as_json:
            write_json(as_object(answered))
        else:
            print_answer(answered, answer_console(), shows_memory=memory)
