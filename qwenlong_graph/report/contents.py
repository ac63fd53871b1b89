"""What stands on a report's page, as plain values: computed here, laid out by the template."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex

from qwenlong_graph.errors import StoredTextChangedError
from qwenlong_graph.graph.state import unpack_evidence
from qwenlong_graph.reading.answers import NOT_FOUND_ANSWER
from qwenlong_graph.reading.evidence import line_key
from qwenlong_graph.report.sources import Document, Reading

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

STRIPS_MAX = 40
TICKS_MAX = 400
CHART_POINTS = 600
QUOTE_CHARS_MAX = 800

TOLD_MAX = 20
TOLD_CHARS_MAX = 500
_ESCAPED = "<>&\u2028\u2029"
# A line that goes on in the next one: with a small letter, or because it is full.
_WRAPPED = regex.compile(r"(?<=[\p{L},;])\n(?=\p{Ll})|(?<=[^\n]{50}[\p{Ll},;])\n(?=\p{L})")
# What says where a quote stands: title, page, characters.
_PLACE_BYTES = 150

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
    """A document as a bar. `read`, `unread`, `skipped` and the ticks in thousandths."""

    title: str
    note: str
    read: tuple[tuple[float, float], ...]
    unread: tuple[tuple[float, float], ...]
    skipped: tuple[tuple[float, float], ...]
    noted: tuple[tuple[float, float], ...]
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
    found_in = _found_in(rows)
    citations = values.get("citations") or []
    sources = tuple(
        _source(number, citation, texts, found_in)
        for number, citation in enumerate(citations, start=1)
    )
    status, kind, note = _status(reading, rows)
    room, cut_note = _cut(rows)
    is_structured = values.get("structured_response") is not None
    return Contents(
        status=status,
        status_kind=kind,
        status_note=note,
        facts=tuple(_facts(reading, rows)),
        notes=(*reading.notes, *texts.notes),
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
        stretches=tuple(_stretches(reading)),
        sources=sources,
        memory=tuple(_memory(values, citations, texts)),
        plan=str(values.get("plan") or ""),
        strips=(strips := tuple(_strips(reading, rows, citations, texts)))[:STRIPS_MAX],
        strips_left=max(0, len(strips) - STRIPS_MAX),
        chart=_chart(rows),
        steps=len(rows),
        blocks=tuple(_blocks(rows, texts, room)),
        cut_note=cut_note,
    )


class _Texts:
    """Stretches of the documents; None where the store has lost them, which is noted once."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._lost: set[int] = set()
        self.notes: list[str] = []
        self.index = {
            document.reference["document_id"]: number
            for number, document in reversed(list(enumerate(reading.documents)))
            if document.reference
        }

    def document(self, number: int) -> Document:
        documents = self._reading.documents
        if 0 <= number < len(documents):
            return documents[number]
        return Document(f"document {number + 1}", 0, None)

    def read(self, number: int, start: int, end: int) -> str | None:
        reference = self.document(number).reference
        if reference is None or number in self._lost:
            return None
        try:
            return self._reading.store.open(reference).read(max(0, start), end)
        except StoredTextChangedError as error:
            self._lost.add(number)
            self.notes.append(str(error))
            return None

    def where(self, number: int, start: int, end: int) -> str:
        """A place in words: title, pages, characters."""
        pages = self.pages(number, start, end)
        title = self.document(number).title
        return ", ".join(part for part in (title, pages, f"chars {start:,}–{end:,}") if part)

    def pages(self, number: int, start: int, end: int) -> str:
        reference = self.document(number).reference
        if reference is None or number in self._lost or reference["pages_id"] is None:
            return ""
        try:
            first, last = self._reading.store.open(reference).pages_of(start, end)
        except StoredTextChangedError:
            return ""
        return f"page {first}" if first == last else f"pages {first}–{last}"


# The timeline.


def _rows(reading: Reading) -> list[dict[str, Any]]:
    """A row for each step, in order, with what the journal tells around it.

    Stretches of steps of which nothing is known share one row.
    """
    rows: list[dict[str, Any]] = []
    waiting: list[str] = []
    retries: dict[int, list[str]] = defaultdict(list)
    expected = 0

    def add(row: dict[str, Any]) -> None:
        nonlocal waiting, expected
        if row["first"] > expected:
            rows.append(_lost_row(expected, row["first"] - 1))
        row["told"] = waiting
        waiting = []
        rows.append(row)
        expected = row["last"] + 1

    for entry in reading.entries:
        kind = entry["type"]
        if kind == "memory_updated" and entry["step"] >= expected:
            add({"first": entry["step"], "last": entry["step"], "entry": entry, "retried": []})
        elif kind == "restored" and entry["step"] >= expected:
            first = max(expected, entry["first_step"])
            add({"first": first, "last": entry["step"], "entry": entry, "retried": []})
        elif kind == "retry":
            retries[entry.get("step", -1)].append(str(entry.get("reason", "")))
        elif told := _told(entry):
            waiting.append(told)
    done = int(reading.values.get("step") or 0)
    if done > expected:
        rows.append(_lost_row(expected, done - 1))
    for row in rows:
        if row["first"] == row["last"]:
            row["retried"] = retries.pop(row["first"], [])
    left = [reason for step in sorted(retries) if step >= 0 for reason in retries[step]]
    if left or waiting:
        rows.append({"first": done, "last": done, "entry": None, "retried": left, "told": waiting})
    return rows


def _lost_row(first: int, last: int) -> dict[str, Any]:
    entry = {"type": "restored", "first_step": first, "step": last}
    return {"first": first, "last": last, "entry": entry, "retried": [], "told": []}


def _told(entry: Mapping[str, Any]) -> str:
    kind = entry["type"]
    if kind == "server_failed":
        return f"The server failed: {entry.get('message', '')}"
    if kind == "stopped":
        if entry.get("error") == "interrupted":
            return "The reading was interrupted here, and went on later."
        return f"The reading stopped here: {entry.get('message') or entry.get('error')}"
    if kind == "reviewed":
        return f"A reviewer looked at the memory, and decided: {entry.get('action')}."
    if kind == "damaged":
        return f"The journal was damaged; what was found is in {entry.get('moved_to')}."
    return ""


def _found_in(rows: Sequence[Mapping[str, Any]]) -> dict[Place, int]:
    """The step in which each place was first noted."""
    found: dict[Place, int] = {}
    for row in rows:
        for document, start, end in (row["entry"] or {}).get("places_added", []):
            found.setdefault((document, start, end), row["first"])
    return found


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
    escaped = sum(text.count(character) for character in _ESCAPED)
    return len(text.encode("utf-8", "replace")) + 5 * escaped


def _weight_of(row: Mapping[str, Any]) -> int:
    """Bytes that a row shows of its own: lines, plan, quotes."""
    entry = row["entry"] or {}
    lines = [*entry.get("lines_added", []), *entry.get("lines_removed", []), entry.get("plan", "")]
    total = sum(map(_weight, lines)) + _weight(entry.get("memory", ""))
    for _, start, end in entry.get("places_added", []):
        total += _PLACE_BYTES + min(end - start, QUOTE_CHARS_MAX)
    return total


def _cut(rows: Sequence[Mapping[str, Any]]) -> tuple[int, str]:
    """The most bytes that a row may show, so that all rows together fit, and a word on it."""
    sizes = sorted(map(_weight_of, rows))
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
    block: list[dict[str, Any]] = []
    for row in rows:
        shown = _shown(row, texts, room, plan)
        plan = (row["entry"] or {}).get("plan", plan)
        block.append({name: value for name, value in shown.items() if value not in ("", [], None)})
        if len(block) == BLOCK_STEPS:
            yield _as_json(block)
            block = []
    if block:
        yield _as_json(block)


def _shown(row: Mapping[str, Any], texts: _Texts, room: int, plan_before: str) -> dict[str, Any]:
    entry = row["entry"]
    first, last = row["first"] + 1, row["last"] + 1
    shown: dict[str, Any] = {
        "n": first,
        "told": [text[:TOLD_CHARS_MAX] for text in row["told"][:TOLD_MAX]],
        "retried": [text[:TOLD_CHARS_MAX] for text in row["retried"][:TOLD_MAX]],
    }
    if entry is None:
        return {**shown, "kind": "after", "where": "After the last chunk"}
    if not _is_chunk(row):
        numbers = f"Chunk {first:,}" if first == last else f"Chunks {first:,} to {last:,}"
        lines, _ = _within(entry.get("memory", "").splitlines(), room)
        where = f"{numbers}: not recorded"
        return {**shown, "kind": "lost", "where": where, "memory": lines, "last": last}
    removed, room = _within(entry["lines_removed"], room)
    added, room = _within(entry["lines_added"], room)
    plan = entry.get("plan", "")
    plan_shown, room = _within([plan] if plan != plan_before else [], room)
    quotes, left = _quotes(entry.get("places_added", []), texts, room)
    place = (entry["document_index"], entry["start_char"], entry["end_char"])
    return {
        **shown,
        "kind": "unread" if entry["reply"] == "kept" else "chunk",
        "where": texts.where(*place),
        "reply": _REPLIES.get(entry["reply"], ""),
        "removed": removed,
        "added": added,
        "counts": [len(entry["lines_added"]), len(entry["lines_removed"])],
        "plan": "".join(plan_shown),
        "same_plan": bool(plan) and plan == plan_before,
        "quotes": quotes,
        "more_quotes": left or None,
        "memory_tokens": entry.get("memory_tokens"),
        "evidence": entry.get("evidence"),
        "input": entry.get("input_tokens"),
        "output": entry.get("output_tokens"),
        "thoughts": entry.get("reasoning_tokens") or None,
        "seconds": entry.get("seconds"),
        "again": entry.get("retries") or None,
    }


def _quotes(
    places: Sequence[Sequence[int]], texts: _Texts, room: int
) -> tuple[list[list[str]], int]:
    """As many of the quotes as fit, and how many are left out."""
    shown: list[list[str]] = []
    for document, start, end in places:
        text = texts.read(document, start, min(end, start + QUOTE_CHARS_MAX)) or ""
        room -= _PLACE_BYTES + _weight(text)
        if room < 0:
            break
        cut = "…" if text and end - start > len(text) else ""
        shown.append([texts.where(document, start, end), _flowing(text) + cut])
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
    text = json.dumps(block, ensure_ascii=False, separators=(",", ":"))
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
        how = "Nothing in the documents bears on the question."
        doubt = "No passage of the documents bears out what the model answered; do not rely on it."
        return "Not found", "doubtful", how if bare else doubt
    go_on = f" Go on with: {reading.next_step}" if reading.next_step else ""
    if reading.is_paused:
        return "Paused for a review", "doubtful", f"It waits for a decision.{go_on}"
    stopped = [entry for entry in reading.entries if entry["type"] == "stopped"]
    why = ""
    if stopped and not any(
        entry["type"] == "memory_updated"
        for entry in reading.entries[list(reading.entries).index(stopped[-1]) :]
    ):
        last = stopped[-1]
        why = (
            "It was interrupted. "
            if last.get("error") == "interrupted"
            else f"It stopped: {last.get('message') or last.get('error')} "
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
    seconds = sum(row["entry"].get("seconds") or 0 for row in rows if _is_chunk(row))
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


def _stretches(reading: Reading) -> Iterator[tuple[str, str]]:
    """What was not read: (place, why)."""
    texts = _Texts(reading)
    usage = reading.values.get("usage") or {}
    for span in usage.get("unread_spans") or []:
        place = (span["document"], span["start_char"], span["end_char"])
        yield texts.where(*place), "the model gave no usable reply"
    unlisted = usage.get("unread", 0) - len(usage.get("unread_spans") or [])
    if unlisted > 0:
        yield f"{unlisted:,} more", "the model gave no usable reply"
    for document, start, end in reading.values.get("skipped") or []:
        yield texts.where(document, start, end), "passed over at a review"


def _source(
    number: int, citation: Mapping[str, Any], texts: _Texts, found_in: Mapping[Place, int]
) -> Source:
    start, end = citation["start_char"], citation["end_char"]
    document = texts.index.get(citation["document_id"])
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
    return Source(
        number=number,
        where=", ".join(where),
        before=_flowing(_from_border(before or "")),
        cited=_flowing(citation["cited_text"]),
        after=_flowing(_to_border(after or "")),
        has_more_before=before is not None and start > CONTEXT_CHARS,
        has_more_after=after is not None and end + CONTEXT_CHARS < chars,
        step=_step_of(document, start, end, found_in),
        note=note,
    )


def _step_of(
    document: int | None, start: int, end: int, found_in: Mapping[Place, int]
) -> int | None:
    """The step (from 1) that noted the place, or the first that noted one within it."""
    steps = [
        step
        for (other, first, last), step in found_in.items()
        if other == document and first < end and last > start
    ]
    return min(steps) + 1 if steps else None


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
    unverified = values.get("unverified") or []
    places: dict[str, list[Place]] = defaultdict(list)
    for piece in unpack_evidence(values.get("evidence") or []):
        place = (piece["document"], piece["start_char"], piece["end_char"])
        places[piece["line"]].append(place)
    for line in str(values.get("memory") or "").splitlines():
        if not line.strip():
            continue
        numbers = [
            number
            for number, citation in enumerate(citations, start=1)
            for document, start, end in places.get(line_key(line), [])
            if texts.index.get(citation["document_id"]) == document
            and start < citation["end_char"]
            and end > citation["start_char"]
        ]
        is_doubtful = any(doubt and doubt in line for doubt in unverified)
        yield MemoryLine(line, is_doubtful, tuple(dict.fromkeys(numbers)))


# The pictures.


def _strips(
    reading: Reading,
    rows: Sequence[Mapping[str, Any]],
    citations: Sequence[Mapping[str, Any]],
    texts: _Texts,
) -> Iterator[Strip]:
    """A bar for each document in which something was noted, and for the first one."""
    read, noted, ticks, unread, skipped = (defaultdict[int, list[Any]](list) for _ in range(5))
    for row in rows:
        entry = row["entry"]
        if not _is_chunk(row):
            continue
        stretch = (entry["start_char"], entry["end_char"])
        (unread if entry["reply"] == "kept" else read)[entry["document_index"]].append(stretch)
        for document, start, end in entry.get("places_added", []):
            noted[document].append((start, end))
    for document, start, end in reading.values.get("skipped") or []:
        skipped[document].append((start, end))
    for number, citation in enumerate(citations, start=1):
        document = texts.index.get(citation["document_id"])
        if document is not None:
            ticks[document].append((citation["start_char"], citation["end_char"], number))
    for piece in unpack_evidence(reading.values.get("evidence") or []):
        noted[piece["document"]].append((piece["start_char"], piece["end_char"]))
    wanted = sorted({*noted, *ticks}) or ([0] if reading.documents else [])
    for document in wanted:
        held = texts.document(document)
        size = held.chars or max(
            [1, *(end for _, end in noted[document]), *(end for _, end in read[document])]
        )
        scale = 1000 / size
        done = sum(end - start for start, end in _joined(read[document]))
        share = min(100, round(100 * done / size))
        yield Strip(
            title=held.title,
            note=f"{held.chars:,} characters, {share} % read" if held.chars else "",
            read=_scaled(read[document], scale),
            unread=_scaled(unread[document], scale),
            skipped=_scaled(skipped[document], scale),
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
        if _is_chunk(row) and row["entry"].get("memory_tokens") is not None
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
    again = [
        round((row["first"] - first) * scale, 1)
        for row in rows
        if _is_chunk(row) and (row["retried"] or row["entry"].get("retries"))
    ]
    return {
        "line": " ".join(f"{x},{y}" for x, y in line),
        "first": first + 1,
        "last": last + 1,
        "highest": highest,
        "end": known[-1][1],
        "again": again[:TICKS_MAX],
    }
