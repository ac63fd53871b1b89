"""What stands on a report's page, as plain values: computed here, laid out by the template."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import regex

from qwenlong_graph.errors import StoredTextChangedError
from qwenlong_graph.graph.state import unpack_evidence
from qwenlong_graph.reading.answers import NOT_FOUND_ANSWER
from qwenlong_graph.reading.evidence import line_key, memory_lines
from qwenlong_graph.report.sources import Document, Reading

if TYPE_CHECKING:
    from qwenlong_graph.documents.store import StoredText

__all__ = [
    "BLOCK_STEPS",
    "Contents",
    "MemoryLine",
    "Piece",
    "Source",
    "Strip",
    "Tick",
    "contents_of",
]

CONTEXT_CHARS = 350
"""How much of a document is shown on each side of a cited place."""

BLOCK_STEPS = 100
"""Chunks of one page of the timeline; each block is a piece of JSON of its own."""

TEXT_BYTES_MAX = 12_000_000
"""Texts of the timeline in all: with 4,000 chunks, 3,000 bytes for each. Where there is more, the
chunks with the longest are cut."""

TITLE_CHARS_MAX = 100
"""How much of a title stands beside each of its places; the end is what tells a long path."""

NOTES_MAX = 20

STRIPS_MAX = 40
TICKS_MAX = 400
CHART_POINTS = 600
QUOTE_CHARS_MAX = 800

TOLD_MAX = 20
TOLD_CHARS_MAX = 500
_ESCAPED = "<>&\u2028\u2029"
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
# A line that goes on in the next one: with a small letter, or because it is full.
_WRAPPED = regex.compile(r"(?<=[\p{L},;])\n(?=\p{Ll})|(?<=[^\n]{50}[\p{Ll},;])\n(?=\p{L})")
# What says where a quote stands, beside the title: pages, characters.
_PLACE_BYTES = 100
# Of a journal: more can be no count, and is none that JavaScript has.
_COUNT_MAX = 1 << 53

_Found = TypeVar("_Found")

Entry = Mapping[str, Any]

Place = tuple[int, int, int]
"""(document, start_char, end_char)"""


@dataclass(frozen=True)
class Piece:
    """A stretch of the answer; `claim` says what speaks against it, `marks` what bears out all
    that ends here."""

    text: str
    claim: str = ""
    claim_note: str = ""
    marks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Source:
    """A cited place with what stands around it."""

    number: int
    where: str
    before: str
    cited: str
    after: str
    has_more_before: bool
    has_more_after: bool
    step: int | None
    note: str = ""


@dataclass(frozen=True)
class MemoryLine:
    """A line of the last memory; `sources` are the numbers of citations for it."""

    text: str
    is_unverified: bool
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Tick:
    """A place on a strip; `x` and `width` in thousandths of its length."""

    x: float
    width: float
    kind: str
    label: str
    href: str


@dataclass(frozen=True)
class Strip:
    """A document as a bar. `read`, `unread`, `skipped` and the ticks in thousandths.

    `places` are the noted ones before those that are close were joined.
    """

    title: str
    note: str
    read: tuple[tuple[float, float], ...]
    unread: tuple[tuple[float, float], ...]
    skipped: tuple[tuple[float, float], ...]
    noted: tuple[tuple[float, float], ...]
    places: int
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Contents:
    """Everything that the template shows."""

    status: str
    status_kind: str
    status_note: str
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    pieces: tuple[Piece, ...]
    structured: str
    answer_note: str
    unsupported: tuple[Mapping[str, Any], ...]
    computed: tuple[Mapping[str, Any], ...]
    stretches: tuple[tuple[str, str], ...]
    sources: tuple[Source, ...]
    memory: tuple[MemoryLine, ...]
    plan: str
    strips: tuple[Strip, ...]
    strips_left: int
    chart: Mapping[str, Any] | None
    steps: int
    blocks: tuple[str, ...]
    cut_note: str


def contents_of(reading: Reading) -> Contents:
    """The page's contents; document texts are read from the store, as far as it has them."""
    values = reading.values
    texts = _Texts(reading)
    rows = _rows(reading)
    noted = _Noted(rows)
    citations = values.get("citations") or []
    sources = tuple(
        _source(number, citation, texts, noted)
        for number, citation in enumerate(citations, start=1)
    )
    status, kind, note = _status(reading, rows)
    room, cut_note = _cut(rows, texts)
    blocks = tuple(_blocks(rows, texts, room))
    strips = tuple(_strips(reading, rows, citations, texts))
    stretches = tuple(_stretches(reading, texts))
    is_structured = values.get("structured_response") is not None
    return Contents(
        status=status,
        status_kind=kind,
        status_note=note,
        facts=tuple(_facts(reading, rows)),
        notes=tuple(_notes([*reading.notes, *texts.notes])),
        pieces=() if is_structured else tuple(_pieces(values)),
        structured=json.dumps(values["structured_response"], ensure_ascii=False, indent=2)
        if is_structured
        else "",
        answer_note="The model's own words were not borne out by the text; the best quotes stand "
        "instead."
        if values.get("is_quoted")
        else "",
        unsupported=tuple(_claims(values, "unsupported")),
        computed=tuple(_claims(values, "computed")),
        stretches=stretches,
        sources=sources,
        memory=tuple(_memory(values, citations, texts)),
        plan=str(values.get("plan") or ""),
        strips=strips[:STRIPS_MAX],
        strips_left=max(0, len(strips) - STRIPS_MAX),
        chart=_chart(rows),
        steps=len(rows),
        blocks=blocks,
        cut_note=cut_note,
    )


def _notes(notes: Sequence[str]) -> Iterator[str]:
    yield from notes[:NOTES_MAX]
    if len(notes) > NOTES_MAX:
        yield f"{len(notes) - NOTES_MAX:,} more notes like these are left out."


class _Texts:
    """Stretches of the documents; None where the store has lost them, which is noted once."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._lost: set[int] = set()
        self._title_weights: dict[int, int] = {}
        self.notes: list[str] = []
        self._index: dict[tuple[str, str], int] = {}
        for number, document in enumerate(reading.documents):
            if document.reference:
                # Several documents may have the same text.
                for title in (document.title, ""):
                    self._index.setdefault((document.reference["document_id"], title), number)

    def number_of(self, citation: Mapping[str, Any]) -> int | None:
        """Which document a citation is from; None where the store has lost the list of them."""
        key = citation["document_id"], citation["document_title"]
        return self._index.get(key, self._index.get((key[0], "")))

    def document(self, number: int) -> Document:
        documents = self._reading.documents
        if 0 <= number < len(documents):
            return documents[number]
        return Document(f"document {number + 1}", 0, None)

    def read(self, number: int, start: int, end: int) -> str | None:
        return self._of(number, lambda text: text.read(max(0, start), end))

    def bytes_per_char(self, number: int) -> float:
        """On the average of the document, in UTF-8."""
        reference = self.document(number).reference
        return reference["bytes"] / max(1, reference["chars"]) if reference else 1.0

    def title(self, number: int) -> str:
        """As it stands beside each place."""
        title = self.document(number).title
        return title if len(title) <= TITLE_CHARS_MAX else f"…{title[1 - TITLE_CHARS_MAX :]}"

    def title_weight(self, number: int) -> int:
        """Its bytes on the page."""
        if number not in self._title_weights:
            self._title_weights[number] = _weight(self.title(number))
        return self._title_weights[number]

    def where(self, number: int, start: int, end: int) -> str:
        """A place in words: title, pages, characters."""
        pages = self.pages(number, start, end)
        return ", ".join(
            part for part in (self.title(number), pages, f"chars {start:,}–{end:,}") if part
        )

    def pages(self, number: int, start: int, end: int) -> str:
        reference = self.document(number).reference
        if reference is None or reference["pages_id"] is None:
            return ""
        pages = self._of(number, lambda text: text.pages_of(start, end))
        if pages is None:
            return ""
        first, last = pages
        return f"page {first}" if first == last else f"pages {first}–{last}"

    def _of(self, number: int, get: Callable[[StoredText], _Found]) -> _Found | None:
        reference = self.document(number).reference
        if reference is None or number in self._lost:
            return None
        try:
            return get(self._reading.store.open(reference))
        except StoredTextChangedError as error:
            # Once: to find a long text damaged takes as long as to read it.
            self._lost.add(number)
            self.notes.append(str(error))
            return None


# The timeline.


def _rows(reading: Reading) -> list[dict[str, Any]]:
    """A row for each step, in order, with what the journal tells around it.

    Stretches of steps of which nothing is known share one row.
    """
    rows: list[dict[str, Any]] = []
    waiting: list[Entry] = []
    retries: dict[int, list[str]] = defaultdict(list)
    expected = 0

    def add(row: dict[str, Any]) -> None:
        nonlocal waiting, expected
        if row["first"] > expected:
            rows.append(_lost_row(expected, row["first"] - 1))
        row["told"] = _told(waiting, goes_on=True)
        waiting = []
        rows.append(row)
        expected = row["last"] + 1

    for entry in map(_whole, reading.entries):
        kind = entry["type"]
        if kind == "memory_updated" and entry["step"] >= expected:
            add({"first": entry["step"], "last": entry["step"], "entry": entry, "retried": []})
        elif kind == "restored" and entry["step"] >= expected:
            first = max(expected, entry["first_step"])
            add({"first": first, "last": entry["step"], "entry": entry, "retried": []})
        elif kind == "retry":
            retries[entry["step"]].append(entry["reason"])
        elif kind not in {"memory_updated", "restored"}:
            waiting.append(entry)
    done = int(reading.values.get("step") or 0)
    if done > expected:
        rows.append(_lost_row(expected, done - 1))
    for row in rows:
        if row["first"] == row["last"]:
            row["retried"] = retries.pop(row["first"], [])
    is_answered = bool(reading.values.get("answer"))
    left = [reason for step in sorted(retries) if step >= 0 for reason in retries[step]]
    told = _told(waiting, goes_on=is_answered)
    if left or told:
        # A journal may be ahead of the state, or all that is left.
        after = max(done, expected)
        where = "After the last chunk" if is_answered else "After the chunks read so far"
        row = {"first": after, "last": after, "entry": None, "retried": left, "told": told}
        rows.append({**row, "where": where})
    return rows


_COUNTS = (
    "memory_tokens",
    "evidence",
    "retries",
    "input_tokens",
    "output_tokens",
    "reasoning_tokens",
)
_LINES = ("lines_added", "lines_removed")
_TOLD = ("reason", "message", "error", "action", "moved_to")


def _whole(entry: Entry) -> Entry:
    """The entry with what the page needs of its kind.

    Older versions left things out (what is None then is not shown), and hands may have changed it.
    """
    count, texts = _count, _texts_in
    step = count(entry.get("step"))
    whole: dict[str, Any] = {"type": entry["type"], "step": -1 if step is None else step}
    match entry["type"]:
        case "memory_updated":
            start = count(entry.get("start_char")) or 0
            whole |= {name: count(entry.get(name)) for name in _COUNTS}
            whole |= {name: texts(entry.get(name)) for name in _LINES}
            whole |= {name: _text(entry.get(name)) for name in ("document", "reply", "plan")}
            whole |= {
                "document_index": count(entry.get("document_index")),
                "start_char": start,
                "end_char": max(start, count(entry.get("end_char")) or 0),
                "places_added": _places(entry.get("places_added")),
                "seconds": _number(entry.get("seconds")),
            }
        case "restored":
            first = count(entry.get("first_step")) or 0
            whole |= {"first_step": min(first, whole["step"]), "memory": _text(entry.get("memory"))}
        case _:
            whole |= {name: _text(entry.get(name)) for name in _TOLD}
            whole |= {
                name: texts(entry.get(name)) or [] for name in ("lines_added", "lines_removed")
            }
    return whole


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < _COUNT_MAX else None


def _number(value: Any) -> float | None:
    return value if type(value) in {int, float} and 0 <= value < _COUNT_MAX else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _texts_in(value: Any) -> list[str] | None:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else None


def _places(value: Any) -> list[Place]:
    places = (
        [place for place in value if isinstance(place, list)] if isinstance(value, list) else []
    )
    return [
        (place[0], place[1], place[2])
        for place in places
        if len(place) == 3 and None not in map(_count, place) and place[1] <= place[2]
    ]


def _lost_row(first: int, last: int) -> dict[str, Any]:
    entry = {"type": "restored", "first_step": first, "step": last, "memory": ""}
    return {"first": first, "last": last, "entry": entry, "retried": [], "told": []}


def _told(entries: Sequence[Entry], *, goes_on: bool) -> list[str]:
    """What happened between two chunks; `goes_on`: the reading did, after all of it."""
    told = (
        _told_of(entry, goes_on=goes_on or number < len(entries))
        for number, entry in enumerate(entries, start=1)
    )
    return [text[:TOLD_CHARS_MAX] for text in told if text][-TOLD_MAX:]


def _told_of(entry: Entry, *, goes_on: bool) -> str:
    kind = entry["type"]
    if kind == "server_failed":
        return f"The server failed: {entry['message']}"
    if kind == "stopped":
        if entry["error"] == "interrupted":
            return f"The reading was interrupted here{', and went on later' if goes_on else ''}."
        return f"The reading stopped here: {entry['message'] or entry['error']}"
    if kind == "reviewed":
        changed = [
            *(f"\n− {line.removeprefix('- ')}" for line in entry["lines_removed"]),
            *(f"\n+ {line.removeprefix('- ')}" for line in entry["lines_added"]),
        ]
        return f"A reviewer looked at the memory, and decided: {entry['action']}.{''.join(changed)}"
    if kind == "damaged":
        return f"The journal was damaged; what was found is in {entry['moved_to']}."
    return ""


class _Noted:
    """In which step places were noted first."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._steps: dict[Place, int] = {}
        for row in rows:
            if _is_chunk(row):
                for place in row["entry"]["places_added"]:
                    self._steps.setdefault(place, row["first"])

    def step_of(self, document: int, start: int, end: int) -> int | None:
        """The step (from 1) that noted the place, or the first that noted a part of it."""
        step = self._steps.get((document, start, end))
        if step is None:
            steps = (
                step
                for (other, first, last), step in self._steps.items()
                if other == document and first < end and last > start
            )
            step = min(steps, default=None)
        return None if step is None else step + 1


def _is_chunk(row: Mapping[str, Any]) -> bool:
    return bool(row["entry"]) and row["entry"]["type"] == "memory_updated"


_REPLIES = {
    "no_plan": "the reply had no plan",
    "appended": "the reply was added to the memory",
    "trimmed": "the reply was too long, and cut at a line",
    "kept": "no usable reply: the old memory stands, this chunk is unread",
}


def _weight(text: str) -> int:
    """Bytes of a text on the page."""
    return len(_as_json(text).encode()) - 2


def _weight_of(row: Mapping[str, Any], texts: _Texts) -> int:
    """About how many bytes a row shows of its own: lines, plan, quotes."""
    entry = row["entry"] or {}
    lines = [*row["told"], *row["retried"][:TOLD_MAX], entry.get("plan", "")]
    lines += [*(entry.get("lines_added") or []), *(entry.get("lines_removed") or [])]
    total = sum(map(_weight, lines)) + _weight(entry.get("memory", ""))
    if _is_chunk(row) and entry["document_index"] is not None:
        total += texts.title_weight(entry["document_index"])
    for document, start, end in entry.get("places_added", []):
        quote = min(end - start, QUOTE_CHARS_MAX) * texts.bytes_per_char(document)
        total += _PLACE_BYTES + texts.title_weight(document) + int(quote)
    return total


def _cut(rows: Sequence[Mapping[str, Any]], texts: _Texts) -> tuple[int, str]:
    """The most bytes that a row may show, so that all rows together fit, and a word on it."""
    sizes = sorted(_weight_of(row, texts) for row in rows)
    room = TEXT_BYTES_MAX
    for number, size in enumerate(sizes):
        share = room // (len(sizes) - number)
        if size > share:
            cut = len(sizes) - number
            chunks = "1 chunk is" if cut == 1 else f"{cut:,} chunks are"
            return share, (
                f"What {chunks} shown to have changed is cut after {share:,} bytes; the journal "
                "has all of it: qwenlong-graph runs show --journal"
            )
        room -= size
    return TEXT_BYTES_MAX, ""


def _blocks(rows: Sequence[Mapping[str, Any]], texts: _Texts, room: int) -> Iterator[str]:
    plan = ""
    block: list[str] = []
    # The rows' sizes are estimates, and escapes make some texts longer.
    left = TEXT_BYTES_MAX * 5 // 4
    for row in rows:
        shown = _shown(row, texts, min(room, left), plan)
        plan = row["entry"]["plan"] if _is_chunk(row) else plan
        known = {name: value for name, value in shown.items() if value not in ("", [], None)}
        block.append(_as_json(known))
        left = max(0, left - len(block[-1].encode()))
        if len(block) == BLOCK_STEPS:
            yield f"[{','.join(block)}]"
            block = []
    if block:
        yield f"[{','.join(block)}]"


def _shown(row: Mapping[str, Any], texts: _Texts, room: int, plan_before: str) -> dict[str, Any]:
    entry = row["entry"]
    first, last = row["first"] + 1, row["last"] + 1
    told, room = _within(row["told"], room)
    reasons = [text[:TOLD_CHARS_MAX] for text in row["retried"][:TOLD_MAX]]
    retried, room = _within(reasons, room)
    shown: dict[str, Any] = {"n": first, "told": told, "retried": retried}
    if entry is None:
        return {**shown, "kind": "after", "where": row["where"]}
    if not _is_chunk(row):
        numbers = f"Chunk {first:,}" if first == last else f"Chunks {first:,} to {last:,}"
        lines, _ = _within(entry["memory"].splitlines(), room)
        where = f"{numbers}: not recorded"
        return {**shown, "kind": "lost", "where": where, "memory": lines, "last": last}
    changes = entry["lines_added"], entry["lines_removed"]
    removed, room = _within(changes[1] or [], room)
    added, room = _within(changes[0] or [], room)
    plan = entry["plan"]
    plan_shown, room = _within([plan] if plan != plan_before else [], room)
    quotes, left = _quotes(entry["places_added"], texts, room)
    return {
        **shown,
        "kind": "unread" if entry["reply"] == "kept" else "chunk",
        "where": _where(entry, texts),
        "reply": _REPLIES.get(entry["reply"], ""),
        "removed": removed,
        "added": added,
        "counts": None
        if None in changes
        else [len(lines) for lines in changes if lines is not None],
        "plan": "".join(plan_shown),
        "same_plan": bool(plan) and plan == plan_before,
        "quotes": quotes,
        "more_quotes": left or None,
        "memory_tokens": entry["memory_tokens"],
        "evidence": entry["evidence"],
        "input": entry["input_tokens"],
        "output": entry["output_tokens"],
        "thoughts": entry["reasoning_tokens"] or None,
        "seconds": entry["seconds"],
        "again": entry["retries"] or None,
    }


def _where(entry: Entry, texts: _Texts) -> str:
    start, end = entry["start_char"], entry["end_char"]
    if entry["document_index"] is not None:
        return texts.where(entry["document_index"], start, end)
    title = entry["document"][-TITLE_CHARS_MAX:]
    return f"{title}, chars {start:,}–{end:,}" if title else f"chars {start:,}–{end:,}"


def _quotes(
    places: Sequence[Sequence[int]], texts: _Texts, room: int
) -> tuple[list[list[str]], int]:
    """As many of the quotes as fit, and how many are left out."""
    shown: list[list[str]] = []
    for document, start, end in places:
        text = texts.read(document, start, min(end, start + QUOTE_CHARS_MAX)) or ""
        where = texts.where(document, start, end)
        room -= _weight(where) + _weight(text)
        if room < 0:
            break
        cut = "…" if text and end - start > len(text) else ""
        shown.append([where, _flowing(text) + cut])
    return shown, len(places) - len(shown)


def _flowing(text: str) -> str:
    """Without the line feeds within sentences; those of lists, tables and logs stay."""
    return _WRAPPED.sub(" ", text)


def _within(lines: Sequence[str], room: int) -> tuple[list[str], int]:
    """As many of the lines as fit into `room` bytes, and what is left of it.

    The last may be cut, and a mark stands for what is left out.
    """
    kept: list[str] = []
    for number, line in enumerate(lines):
        weight = _weight(line)
        if weight > room:
            # In proportion: characters differ in bytes.
            start = line[: max(0, room) * len(line) // weight]
            if start:
                kept.append(f"{start}…")
            left = len(lines) - number - bool(start)
            if left:
                kept.append(f"… and {left:,} more line{'s' if left > 1 else ''}")
            return kept, 0
        kept.append(line)
        room -= weight
    return kept, room


def _as_json(block: Any) -> str:
    """JSON that may stand in a <script> element: no "<" can end it, or open a comment."""
    text = _JSON.encode(block)
    text = text.encode("utf-8", "replace").decode("utf-8")
    for character in _ESCAPED:
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


# The head and the answer.


def _status(reading: Reading, rows: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    values = reading.values
    if values.get("answer"):
        if values.get("found"):
            return "Answered", "good", ""
        bare = values["answer"] == NOT_FOUND_ANSWER
        left = (values.get("usage") or {}).get("unread") or values.get("skipped")
        where = "what was read, which is not all of it," if left else "the documents"
        how = f"Nothing in {where} bears on the question."
        doubt = "No passage of the documents bears out what the model answered; do not rely on it."
        return "Not found", "doubtful", how if bare else doubt
    if not values and any(entry["type"] == "answered" for entry in reading.entries):
        return "Answer lost", "bad", "The journal tells of an answer, which cannot be read."
    go_on = f" Go on with: {reading.next_step}" if reading.next_step else ""
    if reading.is_paused:
        return "Paused for a review", "doubtful", f"It waits for a decision.{go_on}"
    # What happened since the last chunk.
    since = itertools.takewhile(
        lambda entry: entry["type"] != "memory_updated", reversed(reading.entries)
    )
    stopped = [entry for entry in since if entry["type"] == "stopped"][:1]
    why = ""
    if stopped:
        last = _whole(stopped[-1])
        why = (
            "It was interrupted. "
            if last["error"] == "interrupted"
            else f"It stopped: {last['message'] or last['error']} "
        )
    done = int(values.get("step") or 0) or sum(map(_is_chunk, rows))
    if not done:
        return "Not begun", "bad", f"{why}No chunk has been read, and there is no answer.{go_on}"
    of = f" of about {values['steps']:,}" if values.get("steps") else ""
    note = f"{why}{done:,}{of} chunks are read; there is no answer yet.{go_on}"
    return "Not finished", "bad", note


def _facts(reading: Reading, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    values = reading.values
    usage = values.get("usage") or {}
    count, chars = len(reading.documents), sum(document.chars for document in reading.documents)
    what = f"{count:,} documents" if count != 1 else reading.documents[0].title
    yield "Read", f"{what}, {chars:,} characters" if chars else what
    yield "Model", reading.model
    if setup := values.get("setup"):
        how = "in one pass" if setup.get("strategy") == "full" else f"by “{setup.get('protocol')}”"
        sizes = f"chunks of {setup.get('chunk_tokens', 0):,} tokens"
        room = f"memory of at most {setup.get('memory_tokens', 0):,}"
        yield "How", how if setup.get("strategy") == "full" else f"{how}, {sizes}, {room}"
    if values.get("answered_from") == "earlier evidence":
        yield "From", "quotes that earlier questions of the thread found; nothing was read again"
    elif done := values.get("step"):
        yield "Chunks", f"{done:,}"
    if usage:
        cost = f"{usage['input_tokens']:,} in, {usage['output_tokens']:,} out"
        if thoughts := usage.get("reasoning_tokens"):
            cost += f" ({thoughts:,} of them thoughts)"
        yield "Tokens", cost
        retries = f", {usage['retries']:,} of them again" if usage.get("retries") else ""
        yield "Calls", f"{usage['calls']:,}{retries}"
    seconds = sum(row["entry"]["seconds"] or 0 for row in rows if _is_chunk(row))
    if seconds:
        yield "Time", f"{_clock(seconds)} for the chunks"
    if reading.created:
        yield "Begun", reading.created[:19].replace("T", " ") + " UTC"
    yield "Run", reading.name
    if reading.version:
        yield "Version", reading.version


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _pieces(values: Mapping[str, Any]) -> Iterator[Piece]:
    """The answer, cut where a citation ends and where a claim begins and ends."""
    answer = str(values.get("answer") or "")
    marks: dict[int, list[int]] = defaultdict(list)
    for number, citation in enumerate(values.get("citations") or [], start=1):
        for span in citation.get("answer_spans", []):
            end = span["start_index"] + len(
                answer[span["start_index"] : span["end_index"]].rstrip()
            )
            marks[end].append(number)
    claims = {
        place: claim
        for claim in values.get("unsupported") or []
        for place in range(claim["start_index"], claim["end_index"])
    }
    borders = {0, len(answer), *marks}
    for claim in values.get("unsupported") or []:
        borders |= {claim["start_index"], claim["end_index"]}
    ordered = sorted(border for border in borders if 0 <= border <= len(answer))
    for start, end in itertools.pairwise(ordered):
        claim = claims.get(start)
        yield Piece(
            answer[start:end],
            claim=claim["status"] if claim else "",
            claim_note=_claim_note(claim) if claim else "",
            marks=tuple(marks.get(end, ())),
        )


def _claim_note(claim: Mapping[str, Any]) -> str:
    if claim["status"] == "computed":
        return f"computed: {claim.get('derivation') or ''}"
    return f"this {claim['kind']} stands in no quote"


def _claims(values: Mapping[str, Any], status: str) -> Iterator[Mapping[str, Any]]:
    yield from (claim for claim in values.get("unsupported") or [] if claim["status"] == status)


def _stretches(reading: Reading, texts: _Texts) -> Iterator[tuple[str, str]]:
    """What was not read: (place, why)."""
    usage = reading.values.get("usage") or {}
    for span in usage.get("unread_spans") or []:
        place = (span["document"], span["start_char"], span["end_char"])
        yield texts.where(*place), "the model gave no usable reply"
    unlisted = usage.get("unread", 0) - len(usage.get("unread_spans") or [])
    if unlisted > 0:
        yield f"{unlisted:,} more", "the model gave no usable reply"
    for document, start, end in reading.values.get("skipped") or []:
        yield texts.where(document, start, end), "passed over at a review"


def _source(number: int, citation: Mapping[str, Any], texts: _Texts, noted: _Noted) -> Source:
    start, end = citation["start_char"], citation["end_char"]
    document = texts.number_of(citation)
    pages = citation.get("start_page"), citation.get("end_page")
    where = [citation["document_title"]]
    if pages[0] is not None:
        where.append(f"page {pages[0]}" if pages[0] == pages[1] else f"pages {pages[0]}–{pages[1]}")
    where.append(f"chars {start:,}–{end:,}")
    before = after = None
    chars = 0
    note = ""
    if document is not None:
        chars = texts.document(document).chars
        before = texts.read(document, start - CONTEXT_CHARS, start)
        after = texts.read(document, end, end + CONTEXT_CHARS)
    if before is None:
        note = "What stands around it is not in the store any more."
    elif document is not None and texts.read(document, start, end) != citation["cited_text"]:
        note = "The stored text at this place is another one."
    cited = citation["cited_text"]
    before_cut, after_cut = _from_border(before or ""), _to_border(after or "")
    # Of the same length: a line feed becomes a space.
    shown = _flowing(f"{before_cut}{cited}{after_cut}")
    first, last = len(before_cut), len(before_cut) + len(cited)
    return Source(
        number=number,
        where=", ".join(where),
        before=shown[:first],
        cited=shown[first:last],
        after=shown[last:],
        has_more_before=before is not None and start > CONTEXT_CHARS,
        has_more_after=after is not None and end + CONTEXT_CHARS < chars,
        step=None if document is None else noted.step_of(document, start, end),
        note=note,
    )


def _from_border(text: str) -> str:
    """Without the beginning of a word that was cut."""
    head, space, tail = text.partition(" ")
    return tail if space and len(text) == CONTEXT_CHARS and len(head) < 60 else text


def _to_border(text: str) -> str:
    head, space, tail = text.rpartition(" ")
    return head if space and len(text) == CONTEXT_CHARS and len(tail) < 60 else text


def _memory(
    values: Mapping[str, Any], citations: Sequence[Mapping[str, Any]], texts: _Texts
) -> Iterator[MemoryLine]:
    """The last memory, each line with the citations that stand for it."""
    unverified = set(values.get("unverified") or [])
    cited = [(texts.number_of(citation), citation) for citation in citations]
    places: dict[str, list[Place]] = defaultdict(list)
    for piece in unpack_evidence(values.get("evidence") or []):
        place = (piece["document"], piece["start_char"], piece["end_char"])
        places[piece["line"]].append(place)
    for line in str(values.get("memory") or "").splitlines():
        if not line.strip():
            continue
        claims = memory_lines(line)
        held = [place for claim in claims for place in places.get(line_key(claim), [])]
        numbers = [
            number
            for number, (cited_document, citation) in enumerate(cited, start=1)
            for document, start, end in held
            if cited_document == document
            and start < citation["end_char"]
            and end > citation["start_char"]
        ]
        is_doubtful = not unverified.isdisjoint(claims)
        yield MemoryLine(line, is_doubtful, tuple(dict.fromkeys(numbers)))


# The pictures.


def _strips(
    reading: Reading,
    rows: Sequence[Mapping[str, Any]],
    citations: Sequence[Mapping[str, Any]],
    texts: _Texts,
) -> Iterator[Strip]:
    """A bar for each document in which something was noted, and for the first one."""
    noted, ticks = (defaultdict[int, list[Any]](list) for _ in range(2))
    for row in rows:
        if _is_chunk(row):
            for document, start, end in row["entry"]["places_added"]:
                noted[document].append((start, end))
    for number, citation in enumerate(citations, start=1):
        document = texts.number_of(citation)
        if document is not None:
            ticks[document].append((citation["start_char"], citation["end_char"], number))
    for piece in unpack_evidence(reading.values.get("evidence") or []):
        noted[piece["document"]].append((piece["start_char"], piece["end_char"]))
    read, unread, skipped = _reached(reading, rows)
    is_recalled = reading.values.get("answered_from") == "earlier evidence"
    wanted = sorted({*noted, *ticks}) or ([0] if reading.documents else [])
    for document in wanted:
        held = texts.document(document)
        size = held.chars or max(
            [1, *(end for _, end in noted[document]), *(end for _, end in read[document])]
        )
        scale = 1000 / size
        passed = _joined([*unread[document], *skipped[document]])
        done = _length(_joined([*read[document], *passed])) - _length(passed)
        share = "" if is_recalled else f", {min(100, round(100 * done / size))} % read"
        yield Strip(
            title=held.title,
            note=f"{held.chars:,} characters{share}" if held.chars else "",
            read=_scaled(read[document], scale),
            unread=_scaled(unread[document], scale),
            skipped=_scaled(skipped[document], scale),
            places=len(set(noted[document])),
            noted=_scaled(_binned(noted[document], size), scale, least=1.5),
            ticks=tuple(
                Tick(
                    x=min(996.0, round(start * scale, 2)),
                    width=max(4.0, round((end - start) * scale, 2)),
                    kind="cited",
                    label=f"Source {number}: {texts.where(document, start, end)}",
                    href=f"#source-{number}",
                )
                for start, end, number in ticks[document][:TICKS_MAX]
            ),
        )


def _reached(
    reading: Reading, rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[int, list[Any]], dict[int, list[Any]], dict[int, list[Any]]]:
    """The stretches of each document that were read, got no usable reply, were passed over."""
    values = reading.values
    read, unread, skipped = (defaultdict[int, list[Any]](list) for _ in range(3))
    for row in rows:
        entry = row["entry"]
        if _is_chunk(row) and entry["document_index"] is not None:
            stretch = (entry["start_char"], entry["end_char"])
            (unread if entry["reply"] == "kept" else read)[entry["document_index"]].append(stretch)
    for span in (values.get("usage") or {}).get("unread_spans") or []:
        unread[span["document"]].append((span["start_char"], span["end_char"]))
    for document, start, end in values.get("skipped") or []:
        skipped[document].append((start, end))
    # The journal may lack chunks, and one pass over all of it has none.
    documents, chars = 0, 0
    if (values.get("setup") or {}).get("strategy") == "full":
        documents = len(reading.documents) if values.get("answer") else 0
    elif cursor := values.get("cursor"):
        documents, chars = cursor["document"], cursor["start_char"]
    for number, document in enumerate(reading.documents[:documents]):
        if document.chars:
            read[number].append((0, document.chars))
    if chars:
        read[documents].append((0, chars))
    return read, unread, skipped


def _length(stretches: Sequence[tuple[int, int]]) -> int:
    return sum(end - start for start, end in stretches)


def _joined(stretches: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(stretches):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _binned(stretches: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """At most `TICKS_MAX` stretches: those that are close are drawn as one."""
    width = max(1, size // TICKS_MAX)
    bins = sorted({(start // width) for start, _ in stretches})
    if len(stretches) <= TICKS_MAX:
        return list(stretches)
    return [(place * width, place * width + width // 2) for place in bins]


def _scaled(
    stretches: Sequence[tuple[int, int]], scale: float, *, least: float = 0.5
) -> tuple[tuple[float, float], ...]:
    """(x, width) of the joined stretches."""
    return tuple(
        (round(start * scale, 2), round(max(least, (end - start) * scale), 2))
        for start, end in _joined(stretches)
    )


def _chart(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Memory tokens over the chunks as the points of a line: x to 1000, y to 100."""
    known = [
        (row["first"], row["entry"]["memory_tokens"])
        for row in rows
        if _is_chunk(row) and row["entry"]["memory_tokens"] is not None
    ]
    if len(known) < 2:
        return None
    highest = max(1, *(tokens for _, tokens in known))
    first, last = known[0][0], known[-1][0]
    every = max(1, len(known) // CHART_POINTS)
    # The highest of each stretch, so that no peak is lost.
    picked = [
        max(known[at : at + every], key=lambda point: point[1])
        for at in range(0, len(known), every)
    ]
    scale = 1000 / max(1, last - first)
    line = [
        (round((step - first) * scale, 1), round(100 - 96 * tokens / highest, 1))
        for step, tokens in picked
    ]
    # As many as can be told apart.
    again = {
        round((row["first"] - first) * TICKS_MAX / max(1, last - first))
        for row in rows
        if _is_chunk(row) and (row["retried"] or row["entry"]["retries"])
    }
    return {
        "line": " ".join(f"{x},{y}" for x, y in line),
        "first": first + 1,
        "last": last + 1,
        "highest": highest,
        "end": known[-1][1],
        "again": [round(place * 1000 / TICKS_MAX, 1) for place in sorted(again)],
    }
