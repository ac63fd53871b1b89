"""The answer as a person reads it, and as a program does.

Texts of documents and models are data: their control characters never reach a terminal, and
nothing in them is taken for markup.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwenlong_graph.runs.writing import safe_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from qwenlong_graph.cli.ask import Answered
    from qwenlong_graph.types import AnswerSpan, SourceCitation, UnsupportedClaim

__all__ = [
    "WIDTH_MAX",
    "answer_console",
    "as_object",
    "counted",
    "duration",
    "print_answer",
    "printable",
    "shortened",
    "write_json",
]

WIDTH_MAX = 100
"""Longer lines are hard to read, however wide the terminal."""

QUOTE_CHARS_MAX = 300

_INDENT = " " * 4

# C0 but tab and newline, DEL, C1, and what reorders or hides the text around it on a terminal.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069]")
_LINE_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_SURROGATES = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` without anything that a terminal would obey: U+FFFD stands in its place."""
    text = _LINE_BREAKS.sub("\n", text)
    return _SURROGATES.sub("\ufffd", _CONTROLS.sub("\ufffd", text))


def shortened(text: str, chars_max: int) -> str:
    """`text` on one line, with its middle left out where it is longer than `chars_max`."""
    line = " ".join(text.split())
    if len(line) <= chars_max:
        return line
    kept = chars_max - len(" [...] ")
    head, tail = line[: kept * 2 // 3], line[-(kept // 3) :]
    # At a word's border where there is one nearby.
    head = head[: head.rfind(" ", len(head) - 30)] if " " in head[-30:] else head
    tail = tail[tail.find(" ") + 1 :] if " " in tail[:30] else tail
    return f"{head.rstrip()} [...] {tail.lstrip()}"


def counted(count: int, one: str, many: str | None = None) -> str:
    """A number with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Seconds as a person reads a clock: 0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def answer_console() -> Console:
    """Standard output, not wider than is good to read."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    console.width = min(console.width, WIDTH_MAX)
    return console


def print_answer(answered: Answered, console: Console, *, shows_memory: bool = False) -> None:
    """The answer with its sources and what speaks against it, on `console`."""
    # In one piece: rich would turn a closed pipe into an exit of its own.
    with console.capture() as capture:
        for block in _blocks(answered, console, shows_memory=shows_memory):
            console.print(block)
    console.file.write(capture.get())
    console.file.flush()


def as_object(answered: Answered) -> dict[str, Any]:
    """What `--json` writes: texts whole and as they are in the documents."""
    output = answered.output
    unread = [
        {**span, "document_title": answered.titles[span["document"]]}
        for span in output["usage"]["unread_spans"]
    ]
    return {
        "question": output["question"],
        "core_question": output["core_question"],
        "answer": output["answer"],
        "answered_from": output.get("answered_from") or "documents",
        "found": output["found"],
        "is_quoted": output["is_quoted"],
        "citations": output["citations"],
        "unsupported": output["unsupported"],
        "structured_response": output["structured_response"],
        "memory": output["memory"],
        "unverified": output["unverified"],
        "plan": output["plan"],
        "usage": {**output["usage"], "unread_spans": unread},
        "skipped": [
            {"document_title": answered.titles[document], "start_char": start, "end_char": end}
            for document, start, end in output.get("skipped") or []
        ],
        "documents": {
            "count": output["documents"][0]["documents"],
            "chars": output["documents"][0]["chars"],
            "left_out": [
                {"name": skipped.name, "reason": skipped.reason} for skipped in answered.skipped
            ],
        },
        "model": answered.model_name,
        "seconds": round(answered.seconds, 3),
    }


def write_json(value: Mapping[str, Any]) -> None:
    """One object on standard output: one line, or indented where a person looks at it."""
    text = json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None)
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        text = json.dumps(value)
    sys.stdout.write(f"{safe_json(text)}\n")
    sys.stdout.flush()


def _blocks(answered: Answered, console: Console, *, shows_memory: bool) -> Iterable[Text]:
    from rich.text import Text

    output = answered.output
    yield from _answer_blocks(answered)
    if output["citations"]:
        yield _heading("Sources")
        for number, citation in enumerate(output["citations"], start=1):
            yield from _source(number, citation, console)
    yield from _claims(output["unsupported"])
    if unread := output["usage"]["unread_spans"]:
        yield _heading("Not read", style="bold yellow")
        yield Text("The model gave no usable reply for these stretches:", style="yellow")
        for span in unread:
            title = printable(answered.titles[span["document"]])
            yield Text(f"- {title}, chars {span['start_char']}-{span['end_char']}", style="yellow")
    if skipped := output.get("skipped"):
        yield _heading("Passed over", style="bold yellow")
        yield Text("At a review it was decided not to read these stretches:", style="yellow")
        for document, start, end in skipped:
            title = printable(answered.titles[document])
            yield Text(f"- {title}, chars {start}-{end}", style="yellow")
    if shows_memory:
        yield _heading("Memory")
        yield from _memory(output["memory"], output["unverified"])


def _memory(memory: str, unverified: Sequence[str]) -> Iterable[Text]:
    """The memory; lines that no place in the documents was found for in the warning colour."""
    from rich.text import Text

    if not memory:
        yield Text("(empty)")
    for line in memory.splitlines():
        is_doubtful = any(doubt in line for doubt in unverified)
        mark = " (no source found)" if is_doubtful else ""
        yield Text(printable(line) + mark, "yellow" if is_doubtful else "")


def _answer_blocks(answered: Answered) -> Iterable[Text]:
    from rich.text import Text

    from qwenlong_graph.reading.answers import NOT_FOUND_ANSWER

    output = answered.output
    structured = output["structured_response"]
    count = output["documents"][0]["documents"]
    documents = "the document" if count == 1 else f"the {count:,} documents"
    if structured is not None:
        if not output["found"]:
            yield Text(f"Not found: no passage of {documents} bears this answer out.", "bold")
        yield Text(printable(json.dumps(structured, ensure_ascii=False, indent=2)))
    elif output["found"]:
        yield _marked(output["answer"], output["citations"], output["unsupported"])
        if output["is_quoted"]:
            yield Text("(Quoted: the model's own answer was not borne out by the text.)", "dim")
    elif output["answer"] == NOT_FOUND_ANSWER:
        yield Text(f"Not found: nothing in {documents} bears on this question.", "bold")
    else:
        yield Text(
            f"Not found: no passage of {documents} bears out what the model answered:", "bold"
        )
        yield Text(printable(output["answer"]), "yellow")


def _marked(
    answer: str, citations: Sequence[SourceCitation], claims: Sequence[UnsupportedClaim]
) -> Text:
    """The answer with [1] after each sentence that a source supports, claims in colour."""
    from rich.text import Text

    markers: dict[int, list[int]] = {}
    for number, citation in enumerate(citations, start=1):
        for span in citation.get("answer_spans", []):
            markers.setdefault(_sentence_end(answer, span), []).append(number)
    styles = {
        place: _CLAIM_STYLES[claim["status"]]
        for claim in claims
        for place in range(claim["start_index"], claim["end_index"])
    }
    marked = Text()
    borders = sorted({0, len(answer), *markers, *_style_borders(claims)})
    for start, end in zip(borders, [*borders[1:], len(answer)], strict=True):
        if start in markers:
            marked.append(" " + "".join(f"[{number}]" for number in markers[start]), "cyan")
        marked.append(printable(answer[start:end]), styles.get(start))
    return marked


def _sentence_end(answer: str, span: AnswerSpan) -> int:
    return span["start_index"] + len(answer[span["start_index"] : span["end_index"]].rstrip())


def _style_borders(claims: Sequence[UnsupportedClaim]) -> Iterable[int]:
    for claim in claims:
        yield claim["start_index"]
        yield claim["end_index"]


def _source(number: int, citation: SourceCitation, console: Console) -> Iterable[Text]:
    from rich.text import Text

    where = [printable(citation["document_title"])]
    first, last = citation["start_page"], citation["end_page"]
    if first is not None:
        where.append(f"page {first}" if first == last else f"pages {first}-{last}")
    where.append(f"chars {citation['start_char']}-{citation['end_char']}")
    yield Text.assemble((f"[{number}] ", "cyan"), ", ".join(where))
    quote = shortened(printable(citation["cited_text"]), QUOTE_CHARS_MAX)
    yield from _indented(f'"{quote}"', console)


_CLAIM_STYLES = {"unsupported": "yellow", "computed": "blue"}


def _claims(claims: Sequence[UnsupportedClaim]) -> Iterable[Text]:
    from rich.text import Text

    unsupported = [claim for claim in claims if claim["status"] == "unsupported"]
    computed = [claim for claim in claims if claim["status"] == "computed"]
    if unsupported:
        yield _heading("In none of the sources", style="bold yellow")
        for claim in unsupported:
            yield Text(f"- {printable(claim['text'])} ({claim['kind']})", style="yellow")
    if computed:
        yield _heading("Computed from the sources", style="bold blue")
        for claim in computed:
            derivation = printable(claim["derivation"] or "")
            yield Text(f"- {printable(claim['text'])}: {derivation}", style="blue")


def _heading(text: str, *, style: str = "bold") -> Text:
    from rich.text import Text

    return Text(f"\n{text}", style=style)


def _indented(text: str, console: Console) -> Iterable[Text]:
    from rich.text import Text

    for line in Text(text).wrap(console, console.width - len(_INDENT)):
        line.rstrip()
        yield Text(_INDENT).append(line)
