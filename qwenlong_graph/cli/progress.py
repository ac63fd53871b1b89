"""What is shown while documents are read: a live view on a terminal, plain lines in a log.

All of it goes to standard error, so that standard output holds the answer alone.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Group
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from qwenlong_graph.cli.printing import WIDTH_MAX, counted, duration, printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["LiveProgress", "PlainProgress", "Progress", "Reading", "SilentProgress", "progress_on"]

Clock = Callable[[], float]

_MEGABYTE = 1_000_000
_PLAIN_LINES = 10


_DRAINING = "Stopping once the open chunk is read and kept. Interrupt again to stop at once."


class Progress(Protocol):
    """Told what happens on the way to an answer."""

    def working(self, what: str) -> None:
        """Something of unknown length begins, before reading."""

    def fetching(self, done_bytes: int, total_bytes: int) -> None:
        """The embedded model is being fetched."""

    def left_out(self, name: str, reason: str) -> None:
        """A file, or pages of it, will not be read."""

    def connected(self, model_name: str, *, documents: int) -> None:
        """The model is there, and reading begins."""

    def event(self, event: Mapping[str, Any]) -> None:
        """An event of the agent's "custom" stream."""

    def terminal(self) -> Console | None:
        """Where a person can be asked; None where there is nobody."""

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Nothing is shown meanwhile."""


class Reading:
    """What the events so far amount to."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._stepped = self._began
        self._open_chars = 0
        self._chars_before = 0
        self.strategy = "memory"
        self.chars = 0
        self.chars_read = 0
        self.step = 0
        self.steps = 0
        self.chunks_read = 0
        self.document = ""
        self.tokens = 0
        self.tokens_read = 0
        self.memory_tokens = 0
        self.evidence = 0
        self.retries = 0
        self.unread = 0
        self.is_answering = False

    def take(self, event: Mapping[str, Any]) -> None:
        """Events of unknown types are passed over."""
        kind = event["type"]
        if kind == "started":
            self.strategy = event["strategy"]
            self.chars, self.steps = event["chars"], event["steps"]
            self._began = self._stepped = self._clock()
        elif kind == "resumed":
            self.strategy = event["strategy"]
            self.chars, self.step, self.steps = event["chars"], event["step"], event["steps"]
            self.chars_read = self._chars_before = event["chars_read"]
            self.evidence = event["evidence"]
            self._began = self._stepped = self._clock()
        elif kind == "chunk_read":
            self.step, self.steps = event["step"], event["steps"]
            self.document, self.tokens = event["document"], event["tokens"]
            self._open_chars = event["end_char"] - event["start_char"]
        elif kind == "retry":
            self.retries += 1
        elif kind == "memory_updated":
            self.chunks_read += 1
            self.chars_read += event["end_char"] - event["start_char"]
            self.tokens_read += self.tokens
            self.memory_tokens = event["memory_tokens"]
            self.evidence = event["evidence"]
            self.unread += event["reply"] == "kept"
            self._stepped = self._clock()
        elif kind == "finalizing":
            self.is_answering = True

    @property
    def share(self) -> float:
        """How much of all characters is read, from 0 to 1."""
        return min(1.0, self.chars_read / self.chars) if self.chars else 0.0

    @property
    def percent(self) -> int:
        """The share in whole percent, 100 only when all is read."""
        return int(self.share * 100)

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._began

    @property
    def left_s(self) -> float | None:
        """Seconds until the last chunk is read, None before the first one is, here and now.

        Where the open chunk takes longer than others did, what the later ones will take remains.
        """
        read_here = self.chars_read - self._chars_before
        if not read_here:
            return None
        pace_s = (self._stepped - self._began) / read_here
        unread = max(0, self.chars - self.chars_read)
        counted_down = unread * pace_s - (self._clock() - self._stepped)
        return max(counted_down, (unread - self._open_chars) * pace_s, 0.0)

    def chunk(self) -> str:
        """Which chunk is being read, of how many."""
        return f"chunk {self.step + 1} of about {max(self.steps, self.step + 1)}"

    def times(self) -> str:
        """The time that passed, and what is left."""
        left = self.left_s
        passed = f"{duration(self.elapsed_s)} elapsed"
        return passed if left is None else f"{passed}, ~{duration(left)} left"

    def findings(self) -> list[str]:
        """What has been read, kept and found."""
        found = [
            f"{self.tokens_read:,} tokens read",
            f"memory {self.memory_tokens:,} tokens",
            f"{counted(self.evidence, 'quote')} found",
        ]
        if self.retries:
            found.append(counted(self.retries, "retry", "retries"))
        if self.unread:
            found.append(f"{counted(self.unread, 'chunk')} without a usable reply")
        return found

    def summary(self, model_name: str) -> str:
        """One line for the end."""
        if self.strategy == "full":
            return f"Read everything in one pass in {duration(self.elapsed_s)} with {model_name}."
        return (
            f"Read {counted(self.chunks_read, 'chunk')} in {duration(self.elapsed_s)} with "
            f"{model_name}: {', '.join(self.findings())}."
        )


@contextlib.contextmanager
def progress_on(console: Console, *, is_silent: bool, hides_warnings: bool) -> Iterator[Progress]:
    """The kind of progress that suits `console`, for the length of the context."""
    if is_silent:
        yield SilentProgress(console, hides_warnings=hides_warnings)
    # Not `console.is_terminal`: CI systems that force colours still keep a log.
    elif sys.stderr.isatty() and not console.is_dumb_terminal:
        with LiveProgress(console) as progress:
            yield progress
    else:
        yield PlainProgress(console)


class SilentProgress:
    """Says nothing, but for what was left out."""

    def __init__(self, console: Console, *, hides_warnings: bool) -> None:
        self._console = console
        self._hides_warnings = hides_warnings

    def working(self, what: str) -> None:
        """Nothing."""

    def fetching(self, done_bytes: int, total_bytes: int) -> None:
        """Nothing."""

    def left_out(self, name: str, reason: str) -> None:
        """A warning, unless they are hidden."""
        if not self._hides_warnings:
            self._console.print(_left_out(name, reason), soft_wrap=True)

    def connected(self, model_name: str, *, documents: int) -> None:
        """Nothing."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Nothing."""

    def terminal(self) -> Console | None:
        """Nobody: what is silent does not ask."""
        return None

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Nothing."""
        return contextlib.nullcontext()


class PlainProgress:
    """A line for each step on the way, and about ten while reading: what a log can bear."""

    def __init__(self, console: Console, *, clock: Clock = time.monotonic) -> None:
        self._console = console
        self._reading = Reading(clock)
        self._model_name = ""
        self._documents = 0
        self._last_tenth = ""
        self._told_share = -1

    def working(self, what: str) -> None:
        """Nothing: what is quick needs no line, and what is slow has one of its own."""

    def fetching(self, done_bytes: int, total_bytes: int) -> None:
        """A line at about each tenth."""
        self._tell_tenth(
            done_bytes / total_bytes,
            f"Fetching the embedded model, {_megabytes(done_bytes, total_bytes)}.",
        )

    def left_out(self, name: str, reason: str) -> None:
        """A warning."""
        self._console.print(_left_out(name, reason), soft_wrap=True)

    def connected(self, model_name: str, *, documents: int) -> None:
        """Nothing yet: the first event tells how long it will be."""
        self._model_name, self._documents = printable(model_name), documents
        self._told_share = 0

    def event(self, event: Mapping[str, Any]) -> None:
        """A line at the start, at about each tenth, and at the end."""
        reading = self._reading
        reading.take(event)
        kind = event["type"]
        if kind == "started":
            length = (
                "in one pass" if reading.strategy == "full" else f"in about {reading.steps} chunks"
            )
            self._tell(
                f"Reading {counted(self._documents, 'document')} ({reading.chars:,} characters) "
                f"with {self._model_name}, {length}."
            )
        elif kind == "resumed" and reading.strategy == "memory":
            self._told_share = int(reading.share * _PLAIN_LINES)
            self._tell(
                f"Going on with {counted(self._documents, 'document')} ({reading.chars:,} "
                f"characters) with {self._model_name}: {reading.percent}% read, {reading.chunk()}."
            )
        elif kind == "memory_updated" and reading.share < 1:
            tokens, *others = reading.findings()
            self._tell_tenth(
                reading.share,
                f"{reading.percent:3}% read, {reading.chunk()} ({printable(reading.document)}): "
                f"{', '.join([tokens, *others])}; {reading.times()}.",
            )
        elif kind == "draining":
            self._tell(_DRAINING)
        elif kind == "server_failed":
            self._tell(_server_failed(event))
        elif kind == "waiting_for_server":
            self._tell(_waiting(event))
        elif kind == "journal_moved":
            self._tell(_journal_moved(event))
        elif kind == "answered":
            self._tell(reading.summary(self._model_name))

    def terminal(self) -> Console | None:
        """A terminal that cannot redraw lines is one all the same; in a log nobody is asked."""
        return _where_to_ask(self._console)

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Nothing."""
        return contextlib.nullcontext()

    def _tell_tenth(self, share: float, line: str) -> None:
        tenth = int(share * _PLAIN_LINES)
        if tenth > self._told_share:
            self._told_share = tenth
            if line != self._last_tenth:  # sizes are rounded: the last two may look alike
                self._tell(line)
            self._last_tenth = line

    def _tell(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)


class LiveProgress:
    """Two lines that are kept up to date at the bottom of the terminal."""

    def __init__(self, console: Console, *, clock: Clock = time.monotonic) -> None:
        self._console = console
        self._reading = Reading(clock)
        self._spinner = Spinner("dots", style="cyan")
        self._what = ""
        self._fetched: tuple[int, int] | None = None
        self._model_name = ""
        self._live = Live(
            console=console,
            get_renderable=self.view,
            transient=True,
            refresh_per_second=8,
            redirect_stdout=False,
        )

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def working(self, what: str) -> None:
        """A spinner."""
        self._what, self._fetched = what, None
        self._live.refresh()

    def fetching(self, done_bytes: int, total_bytes: int) -> None:
        """A bar."""
        self._fetched = done_bytes, total_bytes

    def left_out(self, name: str, reason: str) -> None:
        """A warning above the live lines."""
        self._console.print(_left_out(name, reason))

    def connected(self, model_name: str, *, documents: int) -> None:
        """A spinner until the first event."""
        self._model_name = printable(model_name)
        self.working(f"Reading {counted(documents, 'document')} with {model_name}")

    def event(self, event: Mapping[str, Any]) -> None:
        """Brings the lines up to date; a summary stays at the end."""
        reading = self._reading
        reading.take(event)
        if event["type"] == "draining":
            self._console.print(Text(_DRAINING, style="yellow"))
        elif event["type"] == "server_failed":
            self._console.print(Text(_server_failed(event), style="yellow"))
        elif event["type"] == "waiting_for_server":
            self._console.print(Text(_waiting(event), style="yellow"))
        elif event["type"] == "journal_moved":
            self._console.print(Text(_journal_moved(event), style="yellow"))
        elif event["type"] == "answered":
            self._console.print(Text(f"{reading.summary(self._model_name)}\n", style="dim"))
        self._live.refresh()

    def terminal(self) -> Console | None:
        """This terminal, unless something else is standard input."""
        return _where_to_ask(self._console)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The lines are taken away, and come back."""
        self._live.stop()
        try:
            yield
        finally:
            self._live.start()

    def view(self) -> RenderableType:
        """The lines as they are now."""
        reading = self._reading
        if self._fetched is not None:
            done, total = self._fetched
            return _bar_line("Fetching the embedded model", done, total, _megabytes(done, total))
        if reading.is_answering and reading.strategy == "full":
            return self._spin("Reading everything in one pass")
        if reading.is_answering:
            return self._spin(f"Answering from the memory of {reading.memory_tokens:,} tokens")
        if not reading.tokens:
            return self._spin(self._what)
        percent = f"{reading.percent}%  {reading.times()}"
        bar = _bar_line(f"Reading {reading.chunk()}", reading.chars_read, reading.chars, percent)
        findings = " · ".join([*reading.findings(), printable(reading.document)])
        return Group(bar, Text(findings, style="dim", no_wrap=True, overflow="ellipsis"))

    def _spin(self, what: str) -> RenderableType:
        self._spinner.update(text=Text(f"{printable(what)} ...", no_wrap=True, overflow="ellipsis"))
        return self._spinner


def _where_to_ask(console: Console) -> Console | None:
    return console if console.is_terminal and sys.stdin.isatty() else None


def _bar_line(label: str, done: int, total: int, after: str) -> RenderableType:
    """The bar takes the room that the words leave it."""
    line = Table.grid(padding=(0, 1), expand=True)
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True)
    line.add_row(Text(label), ProgressBar(total=total, completed=done), Text(after))
    return Constrain(line, WIDTH_MAX)


def _left_out(name: str, reason: str) -> Text:
    return Text(f"Warning: left out {printable(name)}: {printable(reason)}", style="yellow")


def _megabytes(done_bytes: int, total_bytes: int) -> str:
    return f"{done_bytes / _MEGABYTE:.0f} of {total_bytes / _MEGABYTE:.0f} MB"


def _server_failed(event: Mapping[str, Any]) -> str:
    return f"{printable(event['message'])} Trying again; what was read is kept meanwhile."


def _waiting(event: Mapping[str, Any]) -> str:
    return (
        f"Waiting for {printable(event['server'])} ({printable(event['found'])}), "
        f"{event['seconds'] / 60:.0f} of at most {event['timeout_s'] / 60:.0f} minutes; what was "
        f"read is kept."
    )


def _journal_moved(event: Mapping[str, Any]) -> str:
    moved_to = printable(event["moved_to"])
    return f"Warning: the run's journal is damaged. It is now {moved_to}; reading goes on."
