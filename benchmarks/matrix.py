"""Runs the tests of every host and prints the matrix of docs/composition.md.

    python benchmarks/matrix.py             prints it
    python benchmarks/matrix.py --write     and puts it into the page

Each cell is a test of tests/agents/test_hosts.py and says what that test found.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["PAGE", "PROPERTIES", "ROOT", "Cell", "cells_on_page", "main", "rows_of"]

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "composition.md"
TESTS = ROOT / "tests" / "agents" / "test_hosts.py"

PROPERTIES = {
    "progress": "progress, in order",
    "answer": "answer",
    "crash": "killed and resumed",
    "cancellation": "cancelled",
}
"""Name of a test -> heading of its column."""

Cell = tuple[str, str, str]
"""(host, "sync" or "async", name of a property)."""

_HEADING = ["host", "form", *PROPERTIES.values()]
_TABLE = re.compile(
    rf"^\| {re.escape(' | '.join(_HEADING))} \|\n\|[-|]+\|\n((?:\|.*\|\n?)*)", re.MULTILINE
)


def rows_of(found: Mapping[Cell, str]) -> list[str]:
    """The Markdown table of cells."""
    lines = dict.fromkeys((host, form) for host, form, _ in found)
    return [
        f"| {' | '.join(_HEADING)} |",
        f"|{'---|' * len(_HEADING)}",
        *(
            f"| {' | '.join([host, form, *(found[host, form, name] for name in PROPERTIES)])} |"
            for host, form in lines
        ),
    ]


def cells_on_page(page: Path = PAGE) -> dict[Cell, str]:
    """The cells of the table that stands on the page."""
    table = _TABLE.search(page.read_text("utf-8"))
    if table is None:
        return {}
    cells: dict[Cell, str] = {}
    for line in table[1].splitlines():
        host, form, *texts = [text.strip() for text in line.strip("|").split("|")]
        cells.update(
            {(host, form, name): text for name, text in zip(PROPERTIES, texts, strict=True)}
        )
    return cells


class _Collected:
    """A pytest plugin that keeps what the cells found."""

    def __init__(self) -> None:
        self.found: dict[Cell, str] = {}
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.when == "call":
            for name, value in report.user_properties:
                if name == "cell":
                    *cell, text = value
                    self.found[tuple(cell)] = text  # type: ignore[index]


def main(arguments: list[str] | None = None) -> int:
    """1 where a test failed; then the page is left as it is."""
    import pytest

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    options = parser.parse_args(arguments)
    collected = _Collected()
    names = " or ".join(f"test_{name}" for name in PROPERTIES)
    pytest.main([str(TESTS), "-q", "--no-header", "-k", names], plugins=[collected])
    if collected.failed or not collected.found:
        return 1
    table = "\n".join(rows_of(collected.found)) + "\n"
    print(table)
    if options.write:
        page = PAGE.read_text("utf-8")
        written, count = _TABLE.subn(lambda _: table, page)
        if count != 1:
            print(f"{PAGE} has {count} tables with this heading; one is expected.")
            return 1
        PAGE.write_text(written, "utf-8")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
