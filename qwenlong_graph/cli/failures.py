"""What is said when a command does not work out, and the code it exits with."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from qwenlong_graph.cli.printing import printable, shortened, write_json
from qwenlong_graph.errors import QwenLongGraphError, RunInterruptedError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["error_object", "exit_code_of", "report_failure"]

_LONGEST_UNEXPECTED_CHARS = 500


def exit_code_of(error: BaseException) -> int:
    """The code that docs/errors.md gives for an error."""
    if isinstance(error, KeyboardInterrupt):
        return RunInterruptedError.exit_code
    return error.exit_code if isinstance(error, QwenLongGraphError) else 1


def error_object(error: BaseException) -> dict[str, Any]:
    """What `--json` writes of an error."""
    name = type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        name = RunInterruptedError.__name__
    return {"type": name, "message": _message(error), "exit_code": exit_code_of(error)}


def report_failure(
    error: BaseException, *, console: Console, as_json: bool, is_debug: bool
) -> None:
    """One message on standard error, or one JSON object on standard output."""
    if is_debug:
        console.file.write("".join(traceback.format_exception(error)))
    message = _message(error)
    if as_json:
        write_json({"error": error_object(error)})
        return
    from rich.text import Text

    label = "" if isinstance(error, KeyboardInterrupt) else "Error: "
    shown = Text.assemble((label, "bold red"), printable(message))
    console.print(shown, soft_wrap=not console.is_terminal)


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted. Nothing of this reading was kept; ask again to start over."
    if isinstance(error, QwenLongGraphError):
        return str(error)
    found = shortened(f"{type(error).__name__}: {error}", _LONGEST_UNEXPECTED_CHARS)
    return (
        f"Something unexpected happened ({found}). This is a fault in qwenlong-graph or in a "
        "library it uses. To see where, run again with --debug or with QWENLONG_GRAPH_DEBUG=1."
    )
