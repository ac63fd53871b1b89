"""The command line `qwenlong-graph`.

`app` owns the commands and their options, `ask` the way from options to an answer, `progress`
what is shown meanwhile, `printing` what is shown in the end, `failures` what is said when it
does not work out.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Runs the command line on the process's own arguments, and ends the process."""
    from qwenlong_graph.cli.app import app

    app(prog_name="qwenlong-graph")
