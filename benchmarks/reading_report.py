"""What the report of a long reading costs: its making, its size, and its opening in Chromium.

Run: python benchmarks/reading_report.py [--chunks N] [--json FILE] [--quick]

A scripted model reads a document of that many chunks; it notes a sentence of each, keeps the last
forty lines, and writes a new plan each time. The run is kept as the command line keeps it. Then its
report is written, and opened in headless Chromium with an empty cache. Columns and results are
explained in `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from langchain_core.documents import Document
from machine import told_machine

from qwenlong_graph import ReadingSettings, create_memory_agent
from qwenlong_graph.documents.loading import ingest
from qwenlong_graph.documents.store import DocumentStore
from qwenlong_graph.report import reading_of_run, report_page
from qwenlong_graph.runs.directory import Run, RunShelf
from qwenlong_graph.runs.reading import read_kept
from qwenlong_graph.testing.scripted import scripted

CHUNKS, OPENINGS = 4_000, 5
QUICK = {"chunks": 30}
GOALS = {"write_s": 10.0, "megabytes": 20.0, "first_paint_s": 2.0}
CHUNK_TOKENS = 150
KEPT_LINES = 40
PACKAGES = ("langgraph", "jinja2", "playwright")
_TOWNS = ("Orrin", "Hale", "Marrow", "Sund", "Tarn", "Velm", "Askby", "Dunmere")
# A page can be complete before it is painted: the first paint is waited for.
PAINT_AND_LOAD = """() => new Promise(resolve => new PerformanceObserver(list => {
    for (const entry of list.getEntriesByName("first-contentful-paint"))
        resolve([entry.startTime, performance.getEntriesByType("navigation")[0].loadEventEnd]);
}).observe({type: "paint", buffered: true}))"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Times in seconds; those of Chromium are medians over the openings, None without it."""

    chunks: int
    write_s: float
    megabytes: float
    first_paint_s: float | None
    loaded_s: float | None
    to_last_chunk_s: float | None


def document(chunks: int) -> str:
    """A chronicle of about `chunks` chunks."""
    sentences = []
    for number in range(chunks * 8):
        town = _TOWNS[number % len(_TOWNS)]
        sentences.append(
            f"In the {number}th week {town} sold {number * 37 % 9973} loads of grain and the "
            f"council wrote it down. "
        )
    return "".join(sentences)


def reply(messages: list[Any]) -> str:
    """A memory of the last lines, with one more sentence of the section."""
    prompt = str(messages[-1].text)
    if "<previous_memory>" not in prompt:
        if "<core_question>" in prompt:
            return "<core_question>What was sold?</core_question>\n<instructions></instructions>"
        return "Orrin and the other towns sold grain every week."
    held = re.search(r"<memory>\n(.*?)\n</memory>", prompt, re.DOTALL)
    lines = [line for line in (held[1] if held else "").splitlines() if line.startswith("- ")]
    section = prompt.partition("<section>")[2]
    noted = re.search(r"In the \d+th week \w+ sold \d+ loads of grain", section)
    if noted:
        lines.append(f"- {noted[0]}")
    kept = "\n".join(lines[-KEPT_LINES:])
    plan = (
        f"Compare the next weeks with {len(lines)} noted so far, and look for who bought the "
        f"grain, at what price, and whether a town stopped selling. Last seen: "
        f"{noted[0] if noted else 'nothing new'}. Keep the towns apart, and drop the oldest weeks."
    )
    return f"<memory>\n{kept}\n</memory>\n<plan>\n{plan}\n</plan>"


async def _read(root: Path, chunks: int) -> tuple[Run, DocumentStore]:
    store = DocumentStore(root / "documents")
    text = Document(document(chunks), metadata={"title": "chronicle"})
    collection = ingest([text], store)
    run = RunShelf(root / "runs").create(
        question="What was sold?",
        instructions="",
        documents=collection,
        titles=["chronicle"],
        model="scripted",
        window=None,
        settings={},
        version="benchmark",
        run_id="long",
    )
    settings = ReadingSettings(strategy="memory", chunk_tokens=CHUNK_TOKENS)
    model = scripted(reply)

    async def on_event(event: Mapping[str, Any]) -> None:
        if event["type"] == "memory_updated" and (event["step"] + 1) % 500 == 0:
            print(f"  read {event['step'] + 1:,} of about {event['steps']:,}", flush=True)

    await read_kept(
        run,
        lambda saver: create_memory_agent(
            model, settings=settings, checkpointer=saver, document_dir=store.root
        ),
        {"question": "What was sold?", "documents": [collection]},
        on_event=on_event,
    )
    return run, store


def _opened(path: Path, chunks: int) -> list[tuple[float, float, float]]:
    """(first paint, loaded, going to the last chunk) of each opening, in seconds."""
    from playwright.sync_api import sync_playwright

    times = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for _ in range(OPENINGS):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            page = context.new_page()
            page.goto(path.as_uri())
            page.wait_for_selector("#chunk-1")
            paint, loaded = page.evaluate(PAINT_AND_LOAD)
            began = time.perf_counter()
            page.get_by_label("Go to chunk").fill(str(chunks))
            page.get_by_role("button", name="Go").click()
            page.wait_for_selector(f"#chunk-{chunks}[open]")
            times.append((paint / 1000, loaded / 1000, time.perf_counter() - began))
            context.close()
        browser.close()
    return times


def measure(chunks: int) -> Row:
    """Reads, writes the report, and opens it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run, store = asyncio.run(_read(root, chunks))
        read = run.state()["step"]
        began = time.perf_counter()
        page = report_page(reading_of_run(run, store)).encode()
        path = root / "report.html"
        path.write_bytes(page)
        write_s = time.perf_counter() - began
        times = _opened(path, read) if shutil.which("chromium") else []
    paint, loaded, last = zip(*times, strict=True) if times else ((), (), ())
    return Row(
        chunks=read,
        write_s=round(write_s, 2),
        megabytes=round(len(page) / 1e6, 2),
        first_paint_s=round(median(paint), 3) if paint else None,
        loaded_s=round(median(loaded), 3) if loaded else None,
        to_last_chunk_s=round(median(last), 3) if last else None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=CHUNKS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="a smoke test of the benchmark")
    arguments = parser.parse_args()
    machine, versions = told_machine(PACKAGES)
    row = measure(QUICK["chunks"] if arguments.quick else arguments.chunks)
    print(f"chunks {row.chunks:,}")
    for name, goal in GOALS.items():
        value = getattr(row, name)
        word = "not measured (no Chromium)" if value is None else f"{value} (goal {goal})"
        print(f"{name:<16} {word}")
    print(f"{'loaded_s':<16} {row.loaded_s}")
    print(f"{'to_last_chunk_s':<16} {row.to_last_chunk_s}")
    if arguments.json:
        report = {"machine": machine, "packages": versions, "goals": GOALS, "row": asdict(row)}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
