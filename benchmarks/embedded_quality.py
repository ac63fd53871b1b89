"""What the embedded model gets right over long documents, by four ways of reading, side by side.

Run: python benchmarks/embedded_quality.py [--cells FILE] [--json FILE] [--kinds KIND...]

Invented sentences are planted in real addresses of 21,000 to 30,000 tokens, and the same model is
asked about them. A full run takes hours on two cores; with `--cells` each answer is kept as it
comes, and a run that was stopped goes on where it was. Columns, data and results are explained in
`benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import itertools
import json
import random
import re
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from langchain_core.documents import Document
from machine import told_machine

from qwenlong_graph import ReadingSettings, connect, create_memory_agent
from qwenlong_graph.errors import MalformedReplyError
from qwenlong_graph.graph.agent import MemoryAgent
from qwenlong_graph.models.connect import ConnectedModel
from qwenlong_graph.reading.answers import NOT_FOUND_ANSWER
from qwenlong_graph.reading.evidence import memory_lines
from qwenlong_graph.reading.prompts import says_not_found
from qwenlong_graph.reading.relevance import sentences_of

HERE = Path(__file__).parent
DATA = HERE / "data"

# Fixed before anything was tuned. Thresholds of "extract" were set on other sentences, other
# places and another text (docs/decisions/0005); `--development` uses such again.
SEED, DEVELOPMENT_SEED = 20_251_215, 7

METHODS = ("extract", "rewrite", "truncation", "bm25", "bm25 then extract")
KINDS = ("one_fact", "absent", "four_facts")

CHUNK_TOKENS = 700  # the embedded model's own default under "extract"
# Large chunks, since a rewriting model of this size mostly fails at a chunk and is asked thrice.
REWRITE: dict[str, Any] = {
    "protocol": "rewrite",
    "chunk_tokens": 5_500,
    "memory_tokens": 256,
    "output_tokens": 352,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "extract": {"strategy": "memory", "chunk_tokens": CHUNK_TOKENS},
    "rewrite": {"strategy": "memory", **REWRITE},
    "one pass": {"strategy": "full"},
}
SETTINGS_OF = {
    "extract": "extract",
    "rewrite": "rewrite",
    "truncation": "one pass",
    "bm25": "one pass",
    "bm25 then extract": "extract",
}
WINDOW_TOKENS = 6_800  # of text: what the window of 8,192 leaves beside frame and answer
PASSAGES_TOKENS = CHUNK_TOKENS - 20
"""BM25 fills as much of a prompt as one chunk does."""

PASSAGE_WORDS = 80
PACKAGES = ("qwenlong-graph", "langgraph", "xllamacpp", "gguf", "bm25s")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question over one text. `keys` are, for each asked-for fact, what may stand for it;
    `planted` the places (start, end) of the sentences that state them."""

    kind: str
    number: int
    worded: str
    question: str
    document: str
    text: str
    keys: tuple[tuple[str, ...], ...]
    planted: tuple[tuple[int, int], ...]

    @property
    def depth(self) -> float:
        """Where the only planted sentence stands, from 0 to 1; else -1."""
        return self.planted[0][0] / len(self.text) if len(self.planted) == 1 else -1.0


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one method made of one item. `right` and `cited` count asked-for facts. Where nothing
    was planted, an answer is right if it says that nothing was found; what the package calls not
    found is not enough, since a plain model would have shown what it made up."""

    method: str
    kind: str
    number: int
    worded: str
    document: str
    depth: float
    facts: int
    right: int
    cited: int
    in_memory: int
    found: bool
    answer: str
    citations: int
    false_citations: int
    memory_lines: int
    invented_lines: int
    unread: int
    calls: int
    retries: int
    input_tokens: int
    output_tokens: int
    seconds: float


def items(*, development: bool = False) -> Iterator[Item]:
    """Every question with its text, in an order in which the kinds come mixed."""
    name = "planted_development.json" if development else "planted.json"
    entries = json.loads((DATA / name).read_text("utf-8"))
    texts = _development_texts() if development else _addresses()
    source = random.Random(DEVELOPMENT_SEED if development else SEED)
    made = {
        kind: [
            _item(kind, number, entry, texts, source, total=len(entries[kind]))
            for number, entry in enumerate(entries[kind])
        ]
        for kind in KINDS
    }
    share = {kind: len(made[kind]) for kind in KINDS}
    every = [item for kind in KINDS for item in made[kind]]
    yield from sorted(every, key=lambda item: ((item.number + 0.5) / share[item.kind], item.kind))


def _item(
    kind: str,
    number: int,
    entry: dict[str, Any],
    texts: Sequence[tuple[str, str]],
    source: random.Random,
    *,
    total: int,
) -> Item:
    document, text = texts[number % len(texts)]
    sentences = entry.get("sentences") or [entry["sentence"]] if kind != "absent" else []
    keys = entry.get("keys") or [entry["key"]] if kind != "absent" else []
    # One fact lies in a random place of its own stretch of the document, so that all depths
    # occur; four facts lie in the four quarters.
    strata, first = (len(sentences), 0) if kind == "four_facts" else (total, number)
    if kind == "one_fact":
        first = (number * 7) % total  # alike and otherwise, and each text, at all depths
    planted = []
    for offset, sentence in enumerate(sentences):
        depth = (first + offset + source.random()) / strata
        text, place = _plant(text, sentence, depth)
        planted.append(place)
    return Item(
        kind=kind,
        number=number,
        worded=entry.get("worded", ""),
        question=entry["question"],
        document=document,
        text=text,
        keys=tuple(tuple(key) for key in keys),
        planted=tuple(planted),
    )


def _plant(text: str, sentence: str, depth: float) -> tuple[str, tuple[int, int]]:
    """`text` with `sentence` between two of its own; later places are planted after earlier."""
    starts = [start for start, _ in sentences_of(text)]
    start = starts[min(len(starts) - 1, 1 + int(depth * (len(starts) - 1)))]
    return f"{text[:start]}{sentence} {text[start:]}", (start, start + len(sentence))


def _addresses() -> list[tuple[str, str]]:
    files = sorted((DATA / "addresses").glob("*.txt.gz"))
    return [(file.name.removesuffix(".txt.gz"), _gunzipped(file)) for file in files]


def _development_texts() -> list[tuple[str, str]]:
    path = HERE.parent / "examples" / "data" / "state-of-the-union-1946.txt"
    return [("1946-truman", path.read_text("utf-8"))]


def _gunzipped(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode("utf-8").strip()


class Reader:
    """All methods over one connected model."""

    def __init__(self, model: ConnectedModel, store: Path) -> None:
        self.model = model
        self.agents: dict[str, MemoryAgent] = {
            name: create_memory_agent(
                model, settings=ReadingSettings(**settings), document_dir=store
            )
            for name, settings in SETTINGS.items()
        }

    def cell(self, method: str, item: Item) -> Cell:
        """One question asked by one method."""
        agent, text = self._given(method, item)
        begun = time.perf_counter()
        try:
            output = agent.invoke(
                {
                    "question": item.question,
                    "instructions": "Answer in one sentence.",  # given: no call is spent on it
                    "documents": [Document(text, metadata={"title": item.document})],
                }
            )
        except MalformedReplyError as error:
            return _unanswered(method, item, error, time.perf_counter() - begun)
        seconds = time.perf_counter() - begun
        quotes = [citation["cited_text"] for citation in output["citations"]]
        lines = memory_lines(output["memory"])
        source = _spaced(item.text)
        usage = output["usage"]
        says_nothing = says_not_found(output["answer"]) or output["answer"] == NOT_FOUND_ANSWER
        held = [_holds(output["answer"], key) and not says_nothing for key in item.keys]
        return Cell(
            method=method,
            kind=item.kind,
            number=item.number,
            worded=item.worded,
            document=item.document,
            depth=round(item.depth, 3),
            facts=len(item.keys) or 1,
            right=sum(held) if item.keys else int(says_nothing),
            cited=sum(
                is_held and _is_cited(item.text[start:end], key, quotes)
                for is_held, key, (start, end) in zip(held, item.keys, item.planted, strict=True)
            ),
            in_memory=sum(any(_holds(line, key) for line in lines) for key in item.keys),
            found=output["found"],
            answer=output["answer"],
            citations=len(quotes),
            false_citations=sum(_spaced(quote) not in source for quote in quotes),
            memory_lines=len(lines),
            invented_lines=sum(_spaced(line) not in source for line in lines),
            unread=usage["unread"],
            calls=usage["calls"],
            retries=usage["retries"],
            input_tokens=usage["input_tokens"],
            output_tokens=usage["output_tokens"],
            seconds=round(seconds, 2),
        )

    def _given(self, method: str, item: Item) -> tuple[MemoryAgent, str]:
        count = self.model.count_tokens
        agent = self.agents[SETTINGS_OF[method]]
        if method in ("extract", "rewrite"):
            return agent, item.text
        if method == "truncation":
            cut = beginning(item.text, max_tokens=WINDOW_TOKENS, count_tokens=count)
            return agent, cut
        found = best_passages(
            item.text, item.question, max_tokens=PASSAGES_TOKENS, count_tokens=count
        )
        return agent, found


def _unanswered(method: str, item: Item, error: Exception, seconds: float) -> Cell:
    """The model was asked for the answer again and again and ran on each time: nothing is right."""
    attempts = ReadingSettings().reply_attempts
    return Cell(
        method=method,
        kind=item.kind,
        number=item.number,
        worded=item.worded,
        document=item.document,
        depth=round(item.depth, 3),
        facts=len(item.keys) or 1,
        right=0,
        cited=0,
        in_memory=0,
        found=False,
        answer=f"none: {error}",
        citations=0,
        false_citations=0,
        memory_lines=0,
        invented_lines=0,
        unread=0,
        calls=attempts,
        retries=attempts - 1,
        input_tokens=0,
        output_tokens=0,
        seconds=round(seconds, 2),
    )


def beginning(text: str, *, max_tokens: int, count_tokens: Any) -> str:
    """As many whole sentences from the start of `text` as fit."""
    ends = [end for _, end in sentences_of(text)]
    fitting = bisect_right(ends, max_tokens, key=lambda end: count_tokens(text[:end]))
    return text[: ends[fitting - 1]]


def best_passages(text: str, question: str, *, max_tokens: int, count_tokens: Any) -> str:
    """The passages that BM25 ranks highest, as many as fit, in the order of the text."""
    import bm25s

    passages = list(_passages(text))
    ranking = bm25s.BM25()
    ranking.index(
        bm25s.tokenize(passages, stopwords="en", show_progress=False), show_progress=False
    )
    asked = bm25s.tokenize([question], stopwords="en", show_progress=False)
    (order,), _ = ranking.retrieve(asked, k=len(passages), show_progress=False)
    chosen: list[int] = []
    left = max_tokens
    for index in map(int, order):
        size = count_tokens(passages[index]) + 2
        if size > left:
            break
        chosen.append(index)
        left -= size
    return "\n\n".join(passages[index] for index in sorted(chosen))


def _passages(text: str) -> Iterator[str]:
    """Whole sentences, about `PASSAGE_WORDS` words of them together."""
    held: list[str] = []
    words = 0
    for start, end in sentences_of(text):
        sentence = text[start:end]
        size = len(sentence.split())
        if held and words + size > PASSAGE_WORDS:
            yield " ".join(held)
            held, words = [], 0
        held.append(sentence)
        words += size
    if held:
        yield " ".join(held)


def _holds(text: str, key: Iterable[str]) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(form)}(?!\w)", text, re.IGNORECASE) for form in key)


def _is_cited(sentence: str, key: Sequence[str], quotes: Sequence[str]) -> bool:
    """Whether a quote shows the fact: it holds the key, and the planted sentence or part of it."""
    planted = _spaced(sentence)
    return any(
        _holds(quote, key) and (_spaced(quote) in planted or planted in _spaced(quote))
        for quote in quotes
    )


def _spaced(text: str) -> str:
    return " ".join(text.split())


# --- running and showing -----------------------------------------------------------------------


def run(
    asked: Sequence[Item], methods: Sequence[str], *, kept_at: Path | None, store: Path
) -> list[Cell]:
    """Every cell; those kept from an earlier run with the same inputs are not asked again."""
    kept = _kept(kept_at)
    model = connect("embedded")
    try:
        reader = Reader(model, store)
        cells = []
        for number, item in enumerate(asked, start=1):
            for method in methods:
                cell = kept.get((method, item.kind, item.number))
                if cell is None:
                    cell = reader.cell(method, item)
                    if kept_at:
                        with kept_at.open("a", encoding="utf-8") as file:
                            file.write(
                                json.dumps({"for": _signature(method), **asdict(cell)}) + "\n"
                            )
                    told = f"{item.kind} {item.number}, {method}: {cell.right} of {cell.facts}"
                    print(
                        f"{number} of {len(asked)}: {told}, {cell.seconds:.0f} s",
                        file=sys.stderr,
                        flush=True,
                    )
                cells.append(cell)
        return cells
    finally:
        model.close()


def _kept(path: Path | None) -> dict[tuple[str, str, int], Cell]:
    if path is None or not path.exists():
        return {}
    signatures = {method: _signature(method) for method in METHODS}
    cells = {}
    for line in path.read_text("utf-8").splitlines():
        values = json.loads(line)
        if values.pop("for") == signatures[values["method"]]:
            cells[values["method"], values["kind"], values["number"]] = Cell(**values)
    return cells


def _signature(method: str) -> str:
    """What is asked, and how: cells of other questions or settings are not those of this run.

    Cells of other code are not told apart; begin a new file when the package changes.
    """
    asked = (SEED, method, SETTINGS[SETTINGS_OF[method]], WINDOW_TOKENS, PASSAGES_TOKENS)
    digest = hashlib.sha256(repr(asked).encode())
    for file in sorted([*DATA.glob("planted*.json"), *(DATA / "addresses").iterdir()]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def summary(cells: Sequence[Cell], methods: Sequence[str]) -> list[dict[str, Any]]:
    """One row a method: shares of right answers by kind, and what they cost."""
    rows = []
    for method in methods:
        own = [cell for cell in cells if cell.method == method]
        planted = [cell for cell in own if cell.kind == "one_fact"]
        four = [cell for cell in own if cell.kind == "four_facts"]
        row: dict[str, Any] = {"method": method}
        for worded in ("alike", "otherwise"):
            some = [cell for cell in planted if cell.worded == worded]
            row[worded] = [sum(c.right for c in some), sum(c.cited for c in some), len(some)]
        row["absent"] = [
            sum(c.right for c in own if c.kind == "absent"),
            sum(c.kind == "absent" for c in own),
        ]
        row["four_facts"] = [
            sum(c.right for c in four),
            sum(c.cited for c in four),
            sum(c.in_memory for c in four),
            sum(c.facts for c in four),
        ]
        row["false_citations"] = sum(c.false_citations for c in own)
        row["citations"] = sum(c.citations for c in own)
        row["invented_lines"] = sum(c.invented_lines for c in own)
        row["memory_lines"] = sum(c.memory_lines for c in own)
        row["calls"] = sum(c.calls for c in own)
        row["retries"] = sum(c.retries for c in own)
        row["unread"] = sum(c.unread for c in own)
        row["median_seconds"] = sorted(c.seconds for c in own)[len(own) // 2] if own else 0.0
        rows.append(row)
    return rows


def lead(cells: Sequence[Cell], first: str, second: str) -> tuple[float, float]:
    """How far `first` is ahead of `second` on planted sentences, as a share of them, and the
    standard error of that, from the paired differences."""
    right = {(cell.method, cell.number): cell.right for cell in cells if cell.kind == "one_fact"}
    numbers = sorted({number for method, number in right if method == first})
    differences = [right[first, n] - right[second, n] for n in numbers if (second, n) in right]
    if len(differences) < 2:
        return 0.0, 0.0
    return mean(differences), stdev(differences) / sqrt(len(differences))


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Right (and of these cited exactly) of how many."""
    print(
        f"{'method':<14}{'alike':>14}{'otherwise':>14}{'not found':>11}{'four facts':>15}"
        f"{'in memory':>11}{'invented':>10}{'false cit.':>11}{'calls':>7}{'s each':>8}"
    )
    for row in rows:
        alike, other, absent, four = (
            row[k] for k in ("alike", "otherwise", "absent", "four_facts")
        )
        print(
            f"{row['method']:<14}"
            + "".join(f"{f'{r} ({c}) of {n}':>14}" for r, c, n in (alike, other))
            + f"{f'{absent[0]} of {absent[1]}':>11}"
            + f"{f'{four[0]} ({four[1]}) of {four[3]}':>15}{four[2]:>11}"
            + f"{row['invented_lines']:>10}{row['false_citations']:>11}{row['calls']:>7}"
            + f"{row['median_seconds']:>8.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, metavar="FILE", help="keep each answer, and go on")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also save the measures here")
    parser.add_argument(
        "--kept", action="store_true", help="show the cells that there are, and end"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--development", action="store_true", help="other sentences, to tune with")
    parser.add_argument("--quick", action="store_true", help="one item of each kind")
    arguments = parser.parse_args()
    if arguments.development and arguments.cells:
        parser.error("--cells keeps the measured questions only: leave it out with --development")
    asked = [
        item for item in items(development=arguments.development) if item.kind in arguments.kinds
    ]
    if arguments.quick:
        asked = [item for item in asked if item.number == 0]
    seed = DEVELOPMENT_SEED if arguments.development else SEED
    machine, versions = told_machine(PACKAGES)
    print(f"seed {seed}, {len(asked)} questions, model SmolLM2-135M-Instruct (embedded)")
    if arguments.kept:
        held = _kept(arguments.cells)
        wanted = itertools.product(arguments.methods, asked)
        cells = [held[key] for m, item in wanted if (key := (m, item.kind, item.number)) in held]
    else:
        with tempfile.TemporaryDirectory() as store:
            cells = run(asked, arguments.methods, kept_at=arguments.cells, store=Path(store))
    rows = summary(cells, arguments.methods)
    print_table(rows)
    leads = {}
    for other in arguments.methods:
        if other != "extract" and "extract" in arguments.methods:
            ahead, error = lead(cells, "extract", other)
            leads[other] = {"ahead": ahead, "standard_error": error}
            print(f"extract ahead of {other}: {ahead:+.2f}, standard error {error:.2f}")
    if arguments.json:
        saved = {
            "machine": machine,
            "versions": versions,
            "seed": seed,
            "rows": rows,
            "leads": leads,
            "cells": [asdict(cell) for cell in cells],
        }
        arguments.json.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
