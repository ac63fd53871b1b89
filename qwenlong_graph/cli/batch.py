"""The command `batch`: its options, and what is said at its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenlong_graph.cli.failures import error_object, exit_code_of
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
from qwenlong_graph.cli.printing import counted, printable, write_json
from qwenlong_graph.cli.process import (
    error_console,
    failures_told,
    prepare_process,
    warn_of_tracing,
)

if TYPE_CHECKING:
    from rich.console import Console

    from qwenlong_graph.cli.batching import Outcome

__all__ = ["ABOUT", "NOT_WHOLE", "batch"]

NOT_WHOLE = 7
"""The exit code of a batch that went to its end, and in which not every line has its answer."""

ABOUT = """Ask many questions, some at once, and keep each result as it comes.

A line of the questions file is an object with "question", "documents", and
if wanted "id", "instructions" and "schema". Paths count from the directory
that the command runs in, as for ask. A line of the results file is what
ask --json writes, after "id", "status", "fingerprint" and "run_id".

The same command again asks what is not answered yet, and what failed, and
goes on with readings that were interrupted. A result counts as long as
question, documents, settings and model are what they were.

\b
[bold]Examples[/bold]
qwenlong-graph batch questions.jsonl
qwenlong-graph batch questions.jsonl --documents lease.pdf --concurrency 4
jq -c '.[]' all.json | qwenlong-graph batch - --output results.jsonl

\b
[bold]Exit codes[/bold]
  0  every question is answered; that nothing was found is an answer too
  2  no question in the file, usage, settings, or a model to set up differently
  4  stopped: the model or its server failed
  5  stopped: the results or a run cannot be kept, or another batch has the file
  7  some questions failed, or some lines were broken
130  interrupted
"""


def batch(
    questions: Annotated[
        str,
        typer.Argument(
            metavar="QUESTIONS",
            help='The questions, a JSON object a line; "-" for standard input.',
            show_default=False,
        ),
    ],
    documents: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="What lines without documents are asked about; may be given several times.",
            rich_help_panel="Reading",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The results, a JSON object a line; by default beside the questions, as "
            "NAME.results.jsonl.",
            rich_help_panel="Output",
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Questions at once; by default as many as the model takes requests.",
            rich_help_panel="Run",
        ),
    ] = None,
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
    data_dir: DataDir = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Write one JSON object at the end, and nothing else. An error is one too.",
            rich_help_panel="Output",
        ),
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """See `ABOUT`."""
    from qwenlong_graph.cli.batch_progress import batch_progress_on
    from qwenlong_graph.cli.batching import Batch, ask_batch

    prepare_process(is_debug=debug, is_silent=quiet or as_json)
    errors = error_console()
    warn_of_tracing(errors)
    asked = Batch(
        questions=questions,
        output=output,
        documents=documents or [],
        model=model,
        served_model=served_model,
        api_key=api_key,
        window=window,
        instructions=instructions,
        schema=schema,
        data_dir=data_dir,
        settings=settings_given(
            strategy=strategy,
            protocol=protocol,
            chunk_tokens=chunk_tokens,
            memory_tokens=memory_tokens,
            seed=seed,
        ),
        concurrency=concurrency,
    )
    with failures_told(errors, as_json=as_json, is_debug=debug):
        with batch_progress_on(
            errors, is_silent=quiet or as_json, hides_warnings=as_json
        ) as progress:
            progress.shows_tracebacks = debug
            outcome = ask_batch(asked, progress)
        if as_json:
            write_json(_as_object(outcome))
        else:
            _tell(outcome, errors, is_quiet=quiet)
    code = _exit_code(outcome)
    if code:
        raise typer.Exit(code)


def _exit_code(outcome: Outcome) -> int:
    if outcome.stopped_by is not None:
        return exit_code_of(outcome.stopped_by)
    return 0 if outcome.is_whole else NOT_WHOLE


def _as_object(outcome: Outcome) -> dict[str, Any]:
    error = outcome.stopped_by
    return {
        "output": str(outcome.output),
        "questions": outcome.questions,
        "answered": outcome.answered,
        "answered_before": outcome.answered_before,
        "failed": outcome.failed,
        "open": outcome.questions - outcome.answered - outcome.failed,
        "bad_lines": [
            {"line": line.line, "reason": line.reason, "is_lost": line.is_lost}
            for line in outcome.bad_lines
        ],
        "lost_lines": outcome.lost_lines,
        "seconds": round(outcome.seconds, 3),
        "exit_code": _exit_code(outcome),
        **({} if error is None else {"error": error_object(error)}),
    }


def _tell(outcome: Outcome, console: Console, *, is_quiet: bool) -> None:
    """What became of the batch; where it is not whole, what to do about it, even when quiet."""
    from rich.text import Text

    def tell(label: str, line: str, style: str = "") -> None:
        shown = Text.assemble((label, style), printable(line))
        console.print(shown, soft_wrap=not console.is_terminal)

    if outcome.stopped_by is not None:
        is_interrupt = exit_code_of(outcome.stopped_by) == 130
        tell("" if is_interrupt else "Error: ", str(outcome.stopped_by), "bold red")
    counts = f"{outcome.answered:,} of {counted(outcome.questions, 'question')} answered"
    if outcome.answered_before:
        counts += f" ({outcome.answered_before:,} of them before)"
    if outcome.failed:
        counts += f", {outcome.failed:,} failed"
    if outcome.lost_lines:
        counts += f", {counted(outcome.lost_lines, 'line')} passed over"
    line = f"{counts}. Results: {outcome.output}"
    if outcome.stopped_by is not None or outcome.failed:
        line += ". What was read is kept: the same command again asks what is not answered yet."
    if not is_quiet or not outcome.is_whole or outcome.stopped_by is not None:
        tell("", line)
