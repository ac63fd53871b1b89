"""A model looked over before a reading: what it is, what it does, how fast, and what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from qwenlong_graph.cli.connecting import connection_options, fetch_embedded
from qwenlong_graph.cli.estimate import in_words
from qwenlong_graph.cli.options import ApiKey, Debug, ServedModel, Window
from qwenlong_graph.cli.printing import (
    answer_console,
    counted,
    printable,
    shortened,
    write_json,
)
from qwenlong_graph.cli.process import error_console, failures_told, prepare_process
from qwenlong_graph.errors import QwenLongGraphError, RunInterruptedError
from qwenlong_graph.models.server import is_address

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from rich.console import Console, RenderableType

    from qwenlong_graph.models.connect import ConnectedModel
    from qwenlong_graph.models.diagnosing import Finding, Measured, Problem, Topic
    from qwenlong_graph.reading.budget import ReadingSettings
    from qwenlong_graph.reading.protocols import ReadingTask

__all__ = ["ABOUT", "doctor", "rows_of"]

ABOUT = """Look a model over before a reading.

Asks a server (or the model in this process) what it is, sends it about a
dozen requests with made-up text, and tells what that means for a reading.

\b
[bold]Examples[/bold]
qwenlong-graph doctor http://127.0.0.1:8080
qwenlong-graph doctor embedded --json

\b
[bold]Exit codes[/bold]
  0  a reading would get through
  2  the model must be set up differently
  4  the model or its server failed
130  interrupted
"""

# Connecting imports libraries too, which a short --timeout is not meant for.
_CONNECTING_S = 60.0

_LABELS = {"none": "-", "ok": "ok", "note": "note", "warning": "warn", "stop": "STOP"}
_STYLES = {"none": "dim", "ok": "green", "note": "cyan", "warning": "yellow", "stop": "bold red"}
_TITLES = {
    "server": "Server",
    "budget": "Budget",
    "reply": "Reply",
    "tokenizer": "Tokenizer",
    "template": "Template",
    "thinking": "Thinking",
    "prompt": "Prompt",
    "output": "Output",
    "step": "Step",
    "outlook": "1M tokens",
}


def doctor(
    target: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]",
            envvar="QWENLONG_GRAPH_MODEL",
            help='The address of a server, "embedded", "gguf:PATH" or "transformers:MODEL".',
        ),
    ] = "embedded",
    served_model: ServedModel = None,
    api_key: ApiKey = None,
    window: Window = None,
    protocol: Annotated[
        str | None, typer.Option(metavar="[rewrite|extract]", help="As for ask.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="The most that each probe may take.")
    ] = 120.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one JSON object, and nothing else.")
    ] = False,
    debug: Debug = False,
) -> None:
    """See `ABOUT`."""
    prepare_process(is_debug=debug, is_silent=as_json)
    errors = error_console()
    began = time.monotonic()
    findings: list[Finding] = []
    with failures_told(errors, as_json=as_json, is_debug=debug):
        from qwenlong_graph.models.diagnosing import stopping_code
        from qwenlong_graph.reading.budget import ReadingSettings

        given = {} if protocol is None else {"protocol": protocol}
        examination = _Examination(
            target,
            connection_options(target, served_model=served_model, api_key=api_key, window=window),
            settings=ReadingSettings(**given),
            limit_s=timeout,
        )
        with _screen_on(answer_console(), errors, is_silent=as_json) as screen:
            try:
                findings = asyncio.run(_shown(examination, screen))
            except KeyboardInterrupt:
                raise RunInterruptedError(
                    "Interrupted. A diagnosis changes nothing: start it again at any time."
                ) from None
        code = stopping_code(findings)
        if as_json:
            write_json(_as_object(target, findings, code, seconds=time.monotonic() - began))
        else:
            _write(answer_console(), *_summary(findings, code))
    raise typer.Exit(code)


async def _shown(examination: _Examination, screen: _Screen) -> list[Finding]:
    findings = []
    async with aclosing(examination.findings(screen.begins)) as found:
        async for finding in found:
            findings.append(finding)
            screen.shows(finding)
    return findings


class _Examination:
    """From a target to its findings."""

    def __init__(
        self,
        target: str,
        connection: dict[str, Any],
        *,
        settings: ReadingSettings,
        limit_s: float,
    ) -> None:
        self._target = target
        self._connection = connection
        self._settings = settings
        self._limit_s = limit_s

    async def findings(self, begins: Callable[[str], None]) -> AsyncGenerator[Finding, None]:
        """One after the other; the first that stops a reading for good is the last."""
        from qwenlong_graph.models.diagnosing import Finding, connection_problem, failure_problem
        from qwenlong_graph.models.probing import connect_within, examine, in_thread, server_finding

        try:
            if self._target == "embedded":
                await in_thread(
                    lambda: fetch_embedded(
                        progress=lambda done, of: begins(
                            f"fetching the embedded model, {done * 100 // of}%"
                        ),
                        converting=lambda: begins("converting the embedded model, once"),
                    )
                )
            is_server = is_address(self._target)
            begins(f"{'connecting to' if is_server else 'starting'} {self._target}")
            limit_s = max(self._limit_s, _CONNECTING_S)
            model = await connect_within(limit_s, self._target, **self._connection)
        except QwenLongGraphError as error:
            yield Finding("server", None, (connection_problem(error),))
            return
        with contextlib.closing(model):
            yield server_finding(model, url=self._target if is_server else None)
            reading = self._settings.over(model.defaults)
            doing = "working out the budget"
            begins(doing)
            try:
                async with asyncio.timeout(self._limit_s):
                    # It counts tokens, and so may ask the server.
                    task = await in_thread(lambda: _task(model, reading))
            except (QwenLongGraphError, TimeoutError) as error:
                problem = failure_problem(error, doing=doing, limit_s=self._limit_s, is_needed=True)
                yield Finding("budget", None, (problem,))
                return
            yield Finding("budget", task.budget)
            probes = examine(model, task, reading, limit_s=self._limit_s, begins=begins)
            async with aclosing(probes) as found:
                async for finding in found:
                    yield finding


def _task(model: ConnectedModel, reading: ReadingSettings) -> ReadingTask:
    from qwenlong_graph.cli.ask import store_in
    from qwenlong_graph.graph.nodes import ReadingNodes
    from qwenlong_graph.models.probing import PROBE_QUESTION

    # Nothing is written to the store; the nodes want one.
    nodes = ReadingNodes(model, settings=reading, store=store_in(None))
    return nodes.task(PROBE_QUESTION, "")


# --- what is shown ---


class _Screen(Protocol):
    def begins(self, doing: str) -> None:
        """Something that takes a while begins."""

    def shows(self, finding: Finding) -> None:
        """Something came out."""


@contextlib.contextmanager
def _screen_on(console: Console, errors: Console, *, is_silent: bool) -> Iterator[_Screen]:
    if is_silent:
        yield _SilentScreen()
    # Not `console.is_terminal`: CI systems that force colours still keep a log.
    elif sys.stdout.isatty() and not console.is_dumb_terminal:
        with _LiveScreen(console) as screen:
            yield screen
    else:
        yield _PlainScreen(console, errors)


class _SilentScreen:
    def begins(self, doing: str) -> None:
        """Nothing."""

    def shows(self, finding: Finding) -> None:
        """Nothing."""


class _PlainScreen:
    """Rows on standard output, what goes on meanwhile on standard error."""

    def __init__(self, console: Console, errors: Console) -> None:
        self._console = console
        self._errors = errors
        self._told = ""

    def begins(self, doing: str) -> None:
        """A line; how far it is, after a comma, is not worth another."""
        what = doing.partition(",")[0]
        if what != self._told:
            self._told = what
            self._errors.print(printable(f"{_capital(what)} ..."), soft_wrap=True)

    def shows(self, finding: Finding) -> None:
        """Its rows."""
        _write(self._console, *rows_of(finding))


class _LiveScreen:
    """Rows as they come, and below them what goes on and since when."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live
        from rich.spinner import Spinner

        self._console = console
        self._spinner = Spinner("dots", style="cyan")
        self._doing, self._since = "", time.monotonic()
        self._live = Live(
            console=console,
            get_renderable=self._view,
            transient=True,
            refresh_per_second=8,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> _LiveScreen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def begins(self, doing: str) -> None:
        """Another line below the rows."""
        if doing.partition(",")[0] != self._doing.partition(",")[0]:
            self._since = time.monotonic()
        self._doing = doing
        self._live.refresh()

    def shows(self, finding: Finding) -> None:
        """Its rows, above that line."""
        for row in rows_of(finding):
            self._console.print(row)

    def _view(self) -> RenderableType:
        from rich.text import Text

        passed = time.monotonic() - self._since
        text = f"{_capital(self._doing)} ... {passed:.0f} s" if self._doing else "..."
        self._spinner.update(text=Text(printable(text), no_wrap=True, overflow="ellipsis"))
        return self._spinner


def rows_of(finding: Finding) -> list[RenderableType]:
    """The rows of a finding: how it stands, what it is about, what was found."""
    severities = [problem.severity for problem in finding.problems]
    worst = next((s for s in ("stop", "warning", "note") if s in severities), "ok")
    if finding.measured is None:
        told = [(_TITLES[finding.topic], "not measured")]
        worst = "none" if worst == "ok" else worst
    else:
        told = _words(finding.topic, finding.measured)
    return [_row(worst, title, words) for title, words in told]


def _row(severity: str, title: str, words: str) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 2, 0, 0), expand=True)
    row.add_column(width=4)
    row.add_column(width=9)
    row.add_column(ratio=1, overflow="fold")
    row.add_row(
        Text(_LABELS[severity], _STYLES[severity]), Text(title, "bold"), Text(printable(words))
    )
    return row


def _summary(findings: Sequence[Finding], code: int) -> list[RenderableType]:
    from rich.text import Text

    problems = [problem for finding in findings for problem in finding.problems]
    blocks: list[RenderableType] = []
    for problem in sorted(problems, key=lambda p: ("stop", "warning", "note").index(p.severity)):
        blocks += [Text(""), *_problem(problem)]
    if code:
        last = Text("A reading would not get through. Mend what is marked STOP.", "bold red")
    else:
        last = Text("Ready to read.", "bold green")
    return [*blocks, Text(""), last]


def _problem(problem: Problem) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    block = Table.grid(padding=(0, 2, 0, 0), expand=True)
    block.add_column(width=4)
    block.add_column(ratio=1, overflow="fold")
    style = _STYLES[problem.severity]
    block.add_row(Text(_LABELS[problem.severity], style), Text(printable(problem.found), "bold"))
    if problem.remedy:
        block.add_row(Text(""), Text(printable(problem.remedy)))
    return [block]


def _words(topic: Topic, measured: Measured) -> list[tuple[str, str]]:
    """What was measured, as titles with a sentence each."""
    told = asdict(measured)
    match topic:
        case "server":
            version = f" {told['version']}" if told["version"] else ""
            where = f" at {told['url']}" if told["url"] else " in this process"
            several = counted(told["concurrency"], "request")
            return [
                ("Server", f"{told['engine']}{version}{where}, takes {several} at once"),
                ("Model", f"{told['model']}, window {told['window']:,} tokens"),
            ]
        case "budget":
            sizes = ("chunk", "memory", "output", "answer")
            words = ", ".join(f"{size} {told[f'{size}_tokens']:,}" for size in sizes)
            return [("Budget", f"{words} tokens; one pass holds {told['full_tokens']:,}")]
        case "reply":
            ending = ", and did not end" if told["is_truncated"] else ""
            text = shortened(told["text"], 40) or "(nothing)"
            return [("Reply", f'2 + 3: "{text}" in {told["seconds"]:.1f} s{ending}')]
        case "tokenizer":
            return [("Tokenizer", _tokenizer_words(told))]
        case "template":
            tokens = told["tokens"]
            adds = "adds an unknown number of" if tokens is None else f"adds {tokens:,}"
            system = "" if told["system"] == "unknown" else f", system messages {told['system']}"
            specials = counted(told["special_tokens"], "control string")
            return [("Template", f"{adds} tokens{system}; {specials} known")]
        case "thinking":
            return [("Thinking", _thinking_words(told))]
        case "prompt":
            return _prompt_words(told)
        case "output":
            speed = told["tokens_per_s"]
            words = f"{speed:,.0f} tokens/s" if speed else "too short to time"
            return [("Output", f"{words} ({counted(told['tokens'] or 0, 'token')})")]
        case "step":
            kept = ", the planted fact kept" if told["is_fact_kept"] else ""
            words = (
                f"a chunk of {told['chunk_tokens']:,} tokens took {told['seconds']:.1f} s and "
                f"{counted(told['output_tokens'], 'token')} of output, {told['outcome']}{kept}"
            )
            return [("Step", words)]
        case "outlook":
            hours, most = told["hours"] * 3600, told["hours_at_most"] * 3600
            at_most = f", {in_words(most)} with a full memory" if most > hours else ""
            words = f"about {in_words(hours)}{at_most} ({counted(told['chunks'], 'chunk')})"
            return [("1M tokens", words)]


def _tokenizer_words(told: dict[str, Any]) -> str:
    here, on_server = told["here"], told["on_server"]
    if on_server is None:
        return f"{here:,} tokens here, not told by the server"
    if here == on_server:
        return f"odd characters count the same here and on the server ({here:,} tokens)"
    return f"odd characters count {here:,} here and {on_server:,} on the server"


_THOUGHTS = {
    "none": "does not think",
    "separated": "thinks, apart from the text",
    "tagged": "thinks, in the text, split off here",
    "unopened": "thinks, in the text (the template opens <think>), split off here",
    "hidden": "thinks, and the server hides it",
    "unknown": "could not be told",
}


def _thinking_words(told: dict[str, Any]) -> str:
    words = _THOUGHTS[told["kind"]]
    if told["tokens"]:
        words += f" ({counted(told['tokens'], 'token')})"
    return words + (f"; a cut inside is {told['cut']}" if told["cut"] else "")


def _prompt_words(told: dict[str, Any]) -> list[tuple[str, str]]:
    speed = told["tokens_per_s"]
    words = f"{speed:,.0f} tokens/s" if speed else "too fast to time"
    sent = f"{told['tokens']:,} tokens in {told['first_s']:.1f} s"
    if told["tokens"] < told["step_tokens"] * 0.9:
        sent += f"; a step sends up to {told['step_tokens']:,}, which was not tried"
    ratio = told["ratio"]
    share = ", too fast to time" if ratio is None and told["caching"] == "unclear" else ""
    if ratio is not None:
        share = f": the same prompt again took {ratio:.0%} of the time"
    return [("Prompt", f"{words} ({sent})"), ("Caching", f"{told['caching']}{share}")]


def _as_object(
    target: str, findings: Sequence[Finding], code: int, *, seconds: float
) -> dict[str, Any]:
    measured: dict[str, Any] = {f.topic: f.measured and asdict(f.measured) for f in findings}
    problems = [
        {
            "topic": finding.topic,
            "severity": problem.severity,
            "found": problem.found,
            "remedy": problem.remedy,
        }
        for finding in findings
        for problem in finding.problems
    ]
    return {
        "target": target,
        "is_ready": code == 0,
        "exit_code": code,
        **{topic: measured.get(topic) for topic in _TITLES},
        "problems": problems,
        "seconds": round(seconds, 3),
    }


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _write(console: Console, *blocks: RenderableType) -> None:
    # In one piece: rich would turn a closed pipe into an exit of its own.
    with console.capture() as capture:
        for block in blocks:
            console.print(block)
    # Cells are filled up with blanks, which a log has no use for.
    lines = "\n".join(line.rstrip(" ") for line in capture.get().split("\n"))
    console.file.write(lines)
    console.file.flush()
