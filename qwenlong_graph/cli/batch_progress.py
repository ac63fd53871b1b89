"""What is shown while many questions are asked: a live view on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from qwenlong_graph.cli.printing import WIDTH_MAX, counted, duration, printable, shortened
from qwenlong_graph.cli.progress import Clock, Reading

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from qwenlong_graph.runs.batch import BadLine

__all__ = ["BatchProgress", "LiveBatchProgress", "PlainBatchProgress", "batch_progress_on"]

_MEGABYTE = 1_000_000
_PLAIN_LINES = 10
_TOLD_LINES = 20
_SHOWN_READINGS = 8
_LONGEST_KEY_CHARS = 40

_DRAINING = "Stopping once the open chunks are read and kept. Interrupt again to stop at once."


class BatchProgress:
    """Told what happens in a batch; says nothing itself but for what was left out.

    With `shows_tracebacks`, where each failure happened is told too.
    """

    shows_tracebacks = False

    def __init__(self, console: Console, *, hides_warnings: bool = False) -> None:
        self._console = console
        self._hides_warnings = hides_warnings

    def looked_through(
        self, bad_lines: Sequence[BadLine], lost_lines: int, unread_keys: Mapping[str, int]
    ) -> None:
        """The questions file was read; some of its lines will not be asked."""
        for line in bad_lines[:_TOLD_LINES]:
            self._warn(f"line {line.line} is passed over: {line.reason}.")
        if len(bad_lines) > _TOLD_LINES:
            rest = bad_lines[_TOLD_LINES:]
            last = "" if lost_lines <= len(bad_lines) else f", {lost_lines:,} lost in all"
            self._warn(f"so are {counted(len(rest), 'more line')} or more{last}.")
        if unread_keys:
            keys = ", ".join(f"{key!r}" for key in list(unread_keys)[:8])
            first = min(unread_keys.values())
            self._warn(f"keys that mean nothing here are not read: {keys} (first in line {first}).")

    def left_out(self, name: str, reason: str) -> None:
        """A file, or pages of it, will not be read."""
        self._warn(f"left out {name}: {reason}")

    def working(self, what: str) -> None:
        """Something of unknown length begins, before the first question."""

    def fetching(self, done_bytes: int, total_bytes: int) -> None:
        """The embedded model is being fetched."""

    def connected(self, model_name: str, *, questions: int, at_once: int) -> None:
        """The model is there, and asking begins."""

    def asking(self, key: str) -> None:
        """A question is taken up."""

    def event(self, key: str, event: Mapping[str, Any]) -> None:
        """An event of its reading."""

    def let_go(self, key: str) -> None:
        """Nobody works on the question any more, however it ended."""

    def answered(self, key: str, *, is_new: bool) -> None:
        """The question has its answer, now or from an earlier batch."""

    def failed(self, key: str, message: str, error: Exception | None = None) -> None:
        """The question failed, and others go on."""
        if self.shows_tracebacks and error is not None:
            self._console.file.write("".join(traceback.format_exception(error)))

    def draining(self) -> None:
        """The user asked to stop."""

    def _warn(self, what: str) -> None:
        if not self._hides_warnings:
            self._tell(f"Warning: {printable(what)}", style="yellow")

    def _tell(self, line: str, *, style: str = "") -> None:
        self._console.print(Text(line, style), soft_wrap=True)


class _CountingProgress(BatchProgress):
    """Knows how far the batch is, and tells each trouble once."""

    def __init__(self, console: Console, *, clock: Clock = time.monotonic) -> None:
        super().__init__(console)
        self._clock = clock
        self._began = clock()
        self._model_name = ""
        self._questions = 0
        self._before = 0
        self._answered = 0
        self._failed = 0
        self._last_trouble = ""

    def connected(self, model_name: str, *, questions: int, at_once: int) -> None:
        """A line."""
        self._model_name, self._questions = printable(model_name), questions
        self._began = self._clock()
        several = f", up to {at_once} at once" if at_once > 1 else ""
        self._tell(f"Asking {counted(questions, 'question')} of {self._model_name}{several}.")

    def event(self, key: str, event: Mapping[str, Any]) -> None:
        """A line where the server is in trouble, and not one from each question that notices."""
        kind = event["type"]
        if kind == "server_failed":
            self._tell_trouble(
                f"{printable(event['message'])} Trying again; what was read is kept meanwhile."
            )
        elif kind == "waiting_for_server":
            self._tell_trouble(
                f"Waiting for {printable(event['server'])} ({printable(event['found'])}), minute "
                f"{event['seconds'] // 60 + 1:.0f} of at most {event['timeout_s'] / 60:.0f}."
            )
        elif kind == "journal_moved":
            self._warn(f"the journal of {key}'s run is damaged. It is now {event['moved_to']}.")

    def answered(self, key: str, *, is_new: bool) -> None:
        """Counts."""
        self._answered += 1
        self._before += not is_new

    def failed(self, key: str, message: str, error: Exception | None = None) -> None:
        """A line."""
        super().failed(key, message, error)
        self._failed += 1
        self._tell(f"{_short(key)} failed: {shortened(printable(message), 300)}", style="red")

    def draining(self) -> None:
        """A line."""
        self._tell(_DRAINING, style="yellow")

    def _counts(self) -> str:
        told = f"{self._answered:,} of {self._questions:,} answered"
        if self._before:
            told += f" ({self._before:,} of them before)"
        return f"{told}, {self._failed:,} failed" if self._failed else told

    def _times(self) -> str:
        """The time that passed, and what is left at the pace of the questions asked here."""
        elapsed_s = self._clock() - self._began
        passed = f"{duration(elapsed_s)} elapsed"
        asked = self._answered - self._before + self._failed
        left = self._questions - self._answered - self._failed
        if not asked or not left:
            return passed
        return f"{passed}, ~{duration(elapsed_s / asked * left)} left"

    def _tell_trouble(self, line: str) -> None:
        if line != self._last_trouble:
            self._last_trouble = line
            self._tell(line, style="yellow")


class PlainBatchProgress(_CountingProgress):
    """A line for each failure, and about ten for the rest: what a log can bear."""

    def __init__(self, console: Console, *, clock: Clock = time.monotonic) -> None:
        super().__init__(console, clock=clock)
        self._told_tenth = 0
        self._fetched_tenth = -1

    def fetching(self, done_bytes: int, total_bytes: int) -> None:
        """A line at about each tenth."""
        tenth = done_bytes * _PLAIN_LINES // max(1, total_bytes)
        if tenth > self._fetched_tenth:
            self._fetched_tenth = tenth
            self._tell(_fetching(done_bytes, total_bytes))

    def answered(self, key: str, *, is_new: bool) -> None:
        """A line at about each tenth."""
        super().answered(key, is_new=is_new)
        self._tell_tenth()

    def failed(self, key: str, message: str, error: Exception | None = None) -> None:
        """A line, and one at about each tenth."""
        super().failed(key, message, error)
        self._tell_tenth()

    def _tell_tenth(self) -> None:
        done = self._answered + self._failed
        tenth = done * _PLAIN_LINES // self._questions
        if tenth > self._told_tenth and done < self._questions:
            self._told_tenth = tenth
            self._tell(f"{self._counts()}; {self._times()}.")


class LiveBatchProgress(_CountingProgress):
    """A bar, and a line for each question that is being read for, kept up to date."""

    def __init__(self, console: Console, *, clock: Clock = time.monotonic) -> None:
        super().__init__(console, clock=clock)
        self._spinner = Spinner("dots", style="cyan")
        self._what = "Looking through the questions"
        self._readings: dict[str, Reading] = {}
        self._live = Live(
            console=console,
            get_renderable=self.view,
            transient=True,
            refresh_per_second=8,
            redirect_stdout=False,
        )

    def __enter__(self) -> LiveBatchProgress:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def working(self, what: str) -> None:
        """A spinner."""
        self._what = what

    def fetching(self, done_bytes: int, total_bytes: int) -> None:
        """The spinner, with how much."""
        self._what = _fetching(done_bytes, total_bytes).rstrip(".")

    def asking(self, key: str) -> None:
        """A line of its own."""
        self._readings[key] = Reading(self._clock)

    def event(self, key: str, event: Mapping[str, Any]) -> None:
        """Brings its line up to date."""
        super().event(key, event)
        if reading := self._readings.get(key):
            reading.take(event)

    def let_go(self, key: str) -> None:
        """Its line goes."""
        self._readings.pop(key, None)

    def view(self) -> RenderableType:
        """The lines as they are now."""
        if not self._questions:
            self._spinner.update(text=Text(f"{printable(self._what)} ...", no_wrap=True))
            return self._spinner
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        done = self._answered + self._failed
        bar = ProgressBar(total=self._questions, completed=done)
        line.add_row(Text(self._counts()), bar, Text(self._times()))
        lines: list[RenderableType] = [Constrain(line, WIDTH_MAX)]
        for key, reading in list(self._readings.items())[:_SHOWN_READINGS]:
            told = f"  {_short(key)}: {_standing(reading)}"
            lines.append(Text(told, style="dim", no_wrap=True, overflow="ellipsis"))
        if (more := len(self._readings) - _SHOWN_READINGS) > 0:
            lines.append(Text(f"  and {more:,} more", style="dim"))
        return Group(*lines)


@contextlib.contextmanager
def batch_progress_on(
    console: Console, *, is_silent: bool, hides_warnings: bool
) -> Iterator[BatchProgress]:
    """The kind of progress that suits `console`, for the length of the context."""
    if is_silent:
        yield BatchProgress(console, hides_warnings=hides_warnings)
    elif sys.stderr.isatty() and not console.is_dumb_terminal:
        with LiveBatchProgress(console) as progress:
            yield progress
    else:
        yield PlainBatchProgress(console)


def _standing(reading: Reading) -> str:
    if reading.is_answering:
        return "answering"
    if not reading.tokens:
        return "loading"
    return f"{reading.chunk()} ({printable(reading.document)})"


def _short(key: str) -> str:
    return shortened(printable(key), _LONGEST_KEY_CHARS)


def _fetching(done_bytes: int, total_bytes: int) -> str:
    done, total = done_bytes / _MEGABYTE, total_bytes / _MEGABYTE
    return f"Fetching the embedded model, {done:.0f} of {total:.0f} MB."
