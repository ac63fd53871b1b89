"""What a long text looks like, told without a model: its kind, and what can be counted or named.

Guesses, made from both ends of the text, so that their cost does not grow with its length. Only
JSON up to `LARGEST_PARSED_CHARS` is read whole, and headings are looked for everywhere. Names in
the details (keys, columns, headings) are the text's own: whoever shows them makes them harmless.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

__all__ = ["Shape", "ends_of", "shape_of"]

SAMPLE_CHARS = 1 << 16
LARGEST_PARSED_CHARS = 1 << 24
NAMES_TOLD = 12
NAME_CHARS = 40

_ISO_TIME = r"\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?"
_TIME = re.compile(
    rf"{_ISO_TIME}"
    r"|\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d(?: [+-]\d{4})?"
    r"|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d"
)
_NUMBER = re.compile(r"[-+]?[\d.,]*\d[\d.,]*%?")
_CODE_LINE = re.compile(
    r"\s*(?:(?:async )?def |class |import |from \S+ import |#include|#define|function |fn |func "
    r"|pub |impl |struct |interface |package |public |private |protected |static |const |let |var "
    r"|return\b|raise |if \(|for \(|while \(|using |namespace |template ?<|//|/\*"
    r"|(?:if|elif|else|for|while|try|except|with)\b.*:\s*$|[\w.\[\]]+ [-+*]?= )"
    r"|.*[;{}]\s*$"
)
_DEFINITION = re.compile(
    r"^[ \t]*(?:(?:async|export|public|private|protected|static|abstract|final|pub) ){0,3}"
    r"(?:def|class|fn|func|function|struct|interface|enum|trait)[ \t]+([A-Za-z_]\w{0,60})",
    re.MULTILINE,
)
_HEADING = re.compile(
    r"^(?:#{1,6}[ \t]+\S"
    r"|(?:chapter|section|part|article|appendix)[ \t]+(?:\d|[IVXLC]+\b))[^\n]{0,120}$",
    re.MULTILINE | re.IGNORECASE,
)
_MARKUP = re.compile(
    r"\s*(?:<\?xml[^>]{0,200}>\s*)?<(?:!doctype[ \t]+)?([A-Za-z][\w:.-]{0,60})", re.IGNORECASE
)


@dataclass(frozen=True)
class Shape:
    """`kind` is one of our words, `details` are lines that may quote the text."""

    kind: str
    details: tuple[str, ...]
    lines: int


def shape_of(text: str) -> Shape:
    """The shape of `text`. Any text has one, whatever it holds."""
    guess = (
        _as_unprintable(text)
        or _as_json_lines(text)
        or _as_json(text)
        or _as_markup(text)
        or _as_table(text)
        or _as_log(text)
        or _as_code(text)
        or _as_prose(text)
    )
    kind, details = guess
    lines = text.count("\n") + (not text.endswith("\n")) if text else 0
    return Shape(kind, tuple(details), lines)


def ends_of(text: str, *, lines: int, chars: int) -> tuple[list[str], list[str]]:
    """The first and the last `lines` that are not blank, of `chars` characters at most each side.

    A line that is cut is marked by an ellipsis where it goes on.
    """
    text = text.strip()
    if len(text) <= chars:
        rows = _rows(text)
        return rows[:lines], rows[lines:][-lines:]
    first, last = _rows(text[:chars]), _rows(text[-chars:])
    if len(first) <= lines and not text[chars].isspace():
        first[-1] += "…"
    if len(last) <= lines and not text[-chars - 1].isspace():
        last[0] = "…" + last[0]
    return first[:lines], last[-lines:]


Guess = tuple[str, Sequence[str]]
Named = TypeVar("Named")


def _as_unprintable(text: str) -> Guess | None:
    sample = text[:SAMPLE_CHARS]
    bad = sum(
        1
        for character in sample
        if character == "\ufffd" or not (character.isprintable() or character in "\t\n\r\f\v")
    )
    return ("unprintable", ["perhaps a binary file"]) if bad * 10 > len(sample) else None


def _as_json_lines(text: str) -> Guess | None:
    if text[:SAMPLE_CHARS].lstrip("\ufeff \r\n")[:1] != "{":
        return None
    rows = _whole_rows(text)[:20]
    if len(rows) < 2:
        return None
    records = [_parsed(row) for row in rows]
    if not all(isinstance(record, dict) for record in records):
        return None
    return "JSON Lines", [f"a record for each line; {_described(records[0])}"]


def _as_json(text: str) -> Guess | None:
    first = text[:SAMPLE_CHARS].lstrip("\ufeff \t\r\n")[:1]
    last = text[-SAMPLE_CHARS:].rstrip()[-1:]
    if first + last not in {"{}", "[]"}:
        return None
    if len(text) > LARGEST_PARSED_CHARS:
        return "JSON", ["by its first and last characters; too long to be parsed here"]
    value = _parsed(text.lstrip("\ufeff"))
    return None if value is None else ("JSON", [_described(value)])


def _parsed(text: str) -> object:
    try:
        # float: `int` refuses an integer of thousands of digits.
        return json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        return None


def _described(value: object) -> str:
    if isinstance(value, dict):
        shown = [f"{_name(key)} ({_size(held)})" for key, held in _first(value.items())]
        return f"object with {_counted(len(value), 'key')}: {_listed(shown, len(value))}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        keys = [_name(key) for key in _first(value[0])]
        return (
            f"list of {len(value):,}; the first is an object with "
            f"{_counted(len(value[0]), 'key')}: {_listed(keys, len(value[0]))}"
        )
    return _size(value)


def _size(value: object) -> str:
    match value:
        case dict():
            return f"object with {_counted(len(value), 'key')}"
        case list():
            return f"list of {len(value):,}"
        case str():
            return f"text of {_counted(len(value), 'character')}"
        case bool():
            return "true or false"
        case None:
            return "null"
        case _:
            return "number"


def _as_markup(text: str) -> Guess | None:
    found = _MARKUP.match(text[:SAMPLE_CHARS].lstrip("\ufeff"))
    if not found or not text[-SAMPLE_CHARS:].rstrip().endswith(">"):
        return None
    return "markup", [f"root element {_name(found[1])}"]


def _as_table(text: str) -> Guess | None:
    rows = _whole_rows(text)[:50]
    if len(rows) < 3:
        return None
    for delimiter in ",\t;|":
        try:
            table = list(csv.reader(rows, delimiter=delimiter))
        except csv.Error:  # a cell beyond csv's own limit
            continue
        if delimiter == "|":
            table = [_without_frame(cells) for cells in table]
        width = len(table[0])
        if width < 2 or sum(len(cells) == width for cells in table) < 0.9 * len(table):
            continue
        names = [cell.strip() for cell in table[0]]
        if not _is_header(names):
            continue
        shown = [_name(name) for name in _first(names)]
        return "table", [
            f"{_counted(width, 'column')}: {_listed(shown, width)}",
            f"about {_counted(text.strip().count(chr(10)), 'row')}",
        ]
    return None


def _without_frame(cells: list[str]) -> list[str]:
    """The cells of a Markdown row, whose first and last bars frame it."""
    return cells[1:-1] if len(cells) > 2 and not (cells[0] + cells[-1]).strip() else cells


def _is_header(names: Sequence[str]) -> bool:
    """A log's or a prose's first line is none: it holds times, numbers, or a whole sentence."""
    return (
        names.count("") <= 1
        and len(set(names)) == len(names)
        and all(len(name) <= 2 * NAME_CHARS for name in names)
        and not any(_NUMBER.fullmatch(name) or _TIME.search(name) for name in names)
        and not any(name.endswith((".", "{", "(")) for name in names)
    )


def _as_log(text: str) -> Guess | None:
    rows = _whole_rows(text)[:200]
    timed = sum(_TIME.search(row[:120]) is not None for row in rows)
    if timed < 3 or 2 * timed < len(rows):
        return None
    first = _TIME.search(text[:SAMPLE_CHARS])
    last = list(_TIME.finditer(text[-SAMPLE_CHARS:]))
    if not first or not last:
        return "log", []
    return "log", [f"from {first.group()} to {last[-1].group()}"]


def _as_code(text: str) -> Guess | None:
    rows = _whole_rows(text)[:400]
    if len(rows) < 3 or sum(_CODE_LINE.match(row[:200]) is not None for row in rows) < 0.3 * len(
        rows
    ):
        return None
    names = list(dict.fromkeys(_DEFINITION.findall(text[:SAMPLE_CHARS])))
    return "code", [f"it defines {_listed(_first(names), len(names))}"] if names else []


def _as_prose(text: str) -> Guess:
    headings = [found.group().strip("# \t\r") for found in _HEADING.finditer(text)]
    if not headings:
        return "text", []
    shown = [_name(heading, chars=80) for heading in _first(headings)]
    count = _counted(len(headings), "heading")
    return "text", [f"{count}: {_listed(shown, len(headings))}"]


def _rows(text: str) -> list[str]:
    return [row for line in text.splitlines() if (row := line.strip())]


def _whole_rows(text: str) -> list[str]:
    """The lines of the first sample that are not blank, without one that the sample cuts."""
    sample = text[:SAMPLE_CHARS]
    if len(sample) < len(text):
        sample = sample[: sample.rfind("\n") + 1]
    return [row for row in sample.lstrip("\ufeff").split("\n") if row.strip()]


def _first(names: Iterable[Named]) -> list[Named]:
    return list(islice(names, NAMES_TOLD))


def _name(name: str, *, chars: int = NAME_CHARS) -> str:
    name = " ".join(name.split())
    return f'"{name}"' if len(name) <= chars else f'"{name[:chars]}…"'


def _listed(shown: Sequence[str], count: int) -> str:
    more = f" and {count - len(shown):,} more" if count > len(shown) else ""
    return (", ".join(shown) or "none") + more


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
