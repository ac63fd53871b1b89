"""A pause for a person: what the reading has so far, and how it is to go on."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenlong_graph.cli.printing import counted, printable
from qwenlong_graph.errors import RunPausedError, SettingsError

if TYPE_CHECKING:
    from rich.console import Console

    from qwenlong_graph.graph.review import ReviewEvery, ReviewRequest

__all__ = ["Decide", "decided_by", "decision_given", "parsed_review"]

Decide = Callable[["ReviewRequest"], Mapping[str, Any]]

_QUOTES_SHOWN = 5
_WAYS = "accept, answer, skip:CHUNKS or edit:FILE"
_CHOICES = "[a]ccept  [e]dit the memory  [s]kip chunks  answer [n]ow  [q]uit"


def parsed_review(text: str) -> ReviewEvery:
    """What `--review` means. Raises `SettingsError`."""
    if text == "on-change":
        return "on-change"
    found = re.fullmatch(r"every:([1-9][0-9]{0,8})", text)
    if found is None:
        raise SettingsError(
            f"--review {printable(text)!r} is not known: give every:CHUNKS, such as every:5, or "
            "on-change."
        )
    return int(found[1])


def decision_given(text: str) -> dict[str, Any]:
    """What `--decide` means. Raises `SettingsError`."""
    word, _, rest = text.partition(":")
    if word in {"accept", "answer"} and not rest:
        return {"action": word}
    if word == "skip" and re.fullmatch(r"[1-9][0-9]{0,8}", rest):
        return {"action": "skip", "chunks": int(rest)}
    if word == "edit" and rest:
        try:
            memory = sys.stdin.read() if rest == "-" else Path(rest).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"Reading the memory from {printable(rest)!r}: {error}. Name a text file in UTF-8."
            ) from error
        return {"action": "edit", "memory": memory}
    raise SettingsError(f"--decide {printable(text)!r} is not known: give {_WAYS}.")


def decided_by(console: Console | None, *, how: str) -> Decide:
    """Asks on a terminal; without one (None) the reading stays paused, and `how` goes on with it.

    Raises (from what is returned):
        RunPausedError: nobody decides now.
    """

    def decide(request: ReviewRequest) -> Mapping[str, Any]:
        if console is None:
            look = how.replace("resume", "runs show", 1)
            raise RunPausedError(
                f"Paused for a review after {counted(request['step'], 'chunk')} of about "
                f"{request['steps']:,}. {_problem(request)}Look with: {look}; go on with: {how} "
                f"--decide {_WAYS}"
            )
        _show(request, console)
        while True:
            choice = _asked(console, f"{_CHOICES}: ").strip().lower()
            if choice in {"a", "accept", ""}:
                return {"action": "accept"}
            if choice in {"n", "now", "answer"}:
                return {"action": "answer"}
            if choice in {"q", "quit"}:
                raise RunPausedError(f"Paused for a review; go on with: {how}")
            if choice in {"e", "edit"}:
                edited = _edited(request["memory"], console)
                if edited != request["memory"].strip():
                    return {"action": "edit", "memory": edited}
                console.print("Nothing was changed.")
            elif choice in {"s", "skip"}:
                chunks = _asked(console, "How many chunks? ").strip()
                if re.fullmatch(r"[1-9][0-9]{0,8}", chunks):
                    return {"action": "skip", "chunks": int(chunks)}
                console.print("That is no number from 1.")
            else:
                console.print("Give one of the letters in brackets.")

    return decide


def _edited(memory: str, console: Console) -> str:
    """The memory after the user's editor has had it."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory.md"
        path.write_text(memory + "\n", "utf-8")
        try:
            subprocess.run([*shlex.split(editor), str(path)], check=True)
            return path.read_text("utf-8").strip()
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            console.print(
                f"Editing with {printable(editor)} failed: {printable(str(error))}. Set EDITOR to "
                "an editor, or quit and give --decide edit:FILE.",
                markup=False,
            )
            return memory.strip()


def _asked(console: Console, prompt: str) -> str:
    console.print(prompt, end="", markup=False, highlight=False)
    line = sys.stdin.readline()
    return line if line else "q"


def _problem(request: ReviewRequest) -> str:
    problem = request.get("problem")
    return f"Not taken: {printable(problem)}. " if problem else ""


def _show(request: ReviewRequest, console: Console) -> None:
    from rich.markup import escape

    def line(text: str, style: str = "") -> None:
        for part in text.splitlines() or [""]:
            console.print(escape(printable(part)), style=style or None, highlight=False)

    share = 100 * request["chars_read"] // max(1, request["chars"])
    line("")
    line(
        f"Review after {counted(request['step'], 'chunk')} of about {request['steps']:,} "
        f"({share}% read, now in {request['document']})",
        "bold",
    )
    line("Memory:", "bold")
    line(request["memory"] or "(empty)")
    if request["plan"]:
        line("Plan:", "bold")
        line(request["plan"])
    if request["evidence"]:
        more = request["evidence_count"] - _QUOTES_SHOWN
        line(f"Evidence ({request['evidence_count']:,}):", "bold")
        for quote in request["evidence"][:_QUOTES_SHOWN]:
            where = f"{quote['title']}, chars {quote['start_char']}-{quote['end_char']}"
            text = " ".join(quote["text"].split())
            line(f'- {where}: "{text}"')
        if more > 0:
            line(f"  and {more:,} more: qwenlong-graph runs show", "dim")
    if request["unverified"]:
        line("In no quote:", "bold")
        for doubtful in request["unverified"]:
            line(f"- {doubtful}")
    if problem := _problem(request):
        line(problem, "yellow")
