"""What every command does around its work: a quiet process, and failures told in one way."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from qwenlong_graph.cli.failures import exit_code_of, report_failure

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["error_console", "failures_told", "prepare_process", "warn_of_tracing"]

_TRACING_VARIABLES = (
    "LANGSMITH_TRACING",
    "LANGSMITH_TRACING_V2",
    "LANGCHAIN_TRACING",
    "LANGCHAIN_TRACING_V2",
)


def prepare_process(*, is_debug: bool, is_silent: bool) -> None:
    """Keeps libraries quiet, and output alive on a terminal of few characters."""
    # A character that the terminal's encoding lacks must not cost the answer.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if not is_debug:
        # What libraries log and warn of is for who develops with them.
        logging.getLogger().addHandler(logging.NullHandler())
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
            # What this package itself warns of is for who runs it.
            warnings.filterwarnings("default", category=RuntimeWarning, module=r"qwenlong_graph\.")
            warnings.formatwarning = _one_line
        # transformers tells at its import that torch is missing; tokenizers do not need it.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if is_silent:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _one_line(message: Warning | str, *_: Any, **__: Any) -> str:
    return f"Warning: {message}\n"


def error_console(*, is_quiet: bool = False) -> Console:
    """Standard error, as it is written to: nothing in a text is markup."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False, quiet=is_quiet)


def warn_of_tracing(console: Console) -> None:
    """Says once that texts leave this machine, where the environment has them traced."""
    name = next((name for name in _TRACING_VARIABLES if _is_yes(os.environ.get(name, ""))), None)
    if name is None:
        return
    from qwenlong_graph.models.tracing import SWITCH, are_texts_traced

    if are_texts_traced():
        console.print(
            f"Warning: {name} is set, so questions, prompts and with them the documents' texts "
            f"are sent to the tracing service. Unset it to send nothing, or set {SWITCH}=no to "
            "send only names, times and token counts.",
            style="yellow",
            soft_wrap=True,
        )


def _is_yes(value: str) -> bool:
    return value.strip().lower() in {"1", "true", "yes", "on"}


@contextlib.contextmanager
def failures_told(console: Console, *, as_json: bool, is_debug: bool = False) -> Iterator[None]:
    """Turns whatever goes wrong inside into its message and its exit code."""
    try:
        yield
    except BrokenPipeError:
        # Who read our output has seen enough. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the end of the line: all are told
        report_failure(error, console=console, as_json=as_json, is_debug=is_debug)
        raise typer.Exit(exit_code_of(error)) from None
