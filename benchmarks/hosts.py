"""What it costs to be a tool inside `create_agent`, above the memory agent alone.

Run: python benchmarks/hosts.py [--chunks N] [--repeats N] [--json FILE] [--quick]

Both read the same document with the same scripted model, which answers at once; the host's model
makes one call of the document tool and ends. The two take turns. Each value is the median over the
rounds; the difference is divided by the number of chunks. Columns and results are explained in
`benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from machine import told_machine

from qwenlong_graph import ReadingSettings, create_memory_agent
from qwenlong_graph.agents.tool import create_document_tool
from qwenlong_graph.documents.loading import ingest
from qwenlong_graph.documents.store import DocumentStore
from qwenlong_graph.graph.agent import MemoryAgent
from qwenlong_graph.testing.oracle import oracle
from qwenlong_graph.testing.scripted import ScriptedChatModel

CHUNKS, REPEATS = 200, 7
QUICK = {"chunks": 10, "repeats": 1}
GOAL_MS = 5.0
CHUNK_TOKENS = 200
FACT = "The widow Hale paid 318,000 crowns for the bridge at Orrin."
FILLER = "The winter was long and the traders stayed away from the coast. "
QUESTION = "Who paid for the bridge at Orrin?"
PACKAGES = ("langgraph", "langchain", "langchain-core", "langgraph-checkpoint-sqlite")


@dataclass(frozen=True, kw_only=True)
class Row:
    """`alone_ms` and `host_ms` are milliseconds a chunk; `overhead_ms` their difference."""

    form: str
    checkpointer: str
    chunks: int
    alone_ms: float
    host_ms: float
    overhead_ms: float
    alone_cpu_ms: float
    host_cpu_ms: float
    overhead_cpu_ms: float


class Asked:
    """The memory agent alone, and in a host, over one document."""

    def __init__(self, folder: Path, chunks: int) -> None:
        self.folder = folder
        # About 170 words of each chunk are used before its border.
        text = FACT + " " + FILLER * (chunks * 14)
        self.document = Document(text, metadata={"title": "annals"})

    def memory_agent(self, saver: Any) -> MemoryAgent:
        return create_memory_agent(
            oracle([FACT]),
            settings=ReadingSettings(strategy="memory", chunk_tokens=CHUNK_TOKENS),
            document_dir=self.folder / "store",
            checkpointer=saver,
        )

    def alone(self, saver: Any) -> tuple[Any, dict[str, Any]]:
        # Stored beforehand, as the tool stores what it is made for.
        stored = ingest(self.document, DocumentStore(self.folder / "store"))
        return self.memory_agent(saver), {"question": QUESTION, "documents": [stored]}

    def host(self, saver: Any) -> tuple[Any, dict[str, Any]]:
        tool = create_document_tool(self.memory_agent(None), documents=[self.document])
        call = {"name": tool.name, "args": {"question": QUESTION}, "id": "1"}

        def reply(messages: list[Any]) -> AIMessage:
            is_first = isinstance(messages[-1], HumanMessage)
            return AIMessage("", tool_calls=[call]) if is_first else AIMessage("Done.")

        host = create_agent(ScriptedChatModel(reply), tools=[tool], checkpointer=saver)
        return host, {"messages": [HumanMessage(QUESTION)]}


def steps_of(output: dict[str, Any]) -> int:
    """How many chunks were read, of either kind of output."""
    if "usage" in output:
        return int(output["usage"]["steps"])
    return int(output["messages"][-2].artifact["usage"]["steps"])


def run_sync(
    make: Callable[[Any], tuple[Any, dict[str, Any]]], path: Path | None
) -> tuple[float, float, int]:
    with saver_at(path) as saver:
        graph, given = make(saver)
        return measured(lambda: graph.invoke(given, CONFIG, **durability(path)))


def run_async(
    make: Callable[[Any], tuple[Any, dict[str, Any]]], path: Path | None
) -> tuple[float, float, int]:
    async def run() -> tuple[float, float, int]:
        async with asaver_at(path) as saver:
            graph, given = make(saver)
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            output = await graph.ainvoke(given, CONFIG, **durability(path))
            return time.perf_counter() - wall, time.process_time() - cpu, steps_of(output)

    return asyncio.run(run())


CONFIG: Any = {"configurable": {"thread_id": "t"}, "recursion_limit": 25}


def durability(path: Path | None) -> dict[str, Any]:
    return {} if path is None else {"durability": "sync"}


def measured(call: Callable[[], dict[str, Any]]) -> tuple[float, float, int]:
    """(wall seconds, processor seconds, chunks) of a call."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    output = call()
    return time.perf_counter() - wall, time.process_time() - cpu, steps_of(output)


@contextlib.contextmanager
def saver_at(path: Path | None) -> Iterator[SqliteSaver | None]:
    if path is None:
        yield None
        return
    with SqliteSaver.from_conn_string(str(path)) as saver:
        saver.conn.execute("PRAGMA synchronous=NORMAL")
        yield saver


@contextlib.asynccontextmanager
async def asaver_at(path: Path | None) -> AsyncIterator[AsyncSqliteSaver | None]:
    if path is None:
        yield None
        return
    async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
        await saver.conn.execute("PRAGMA synchronous=NORMAL")
        yield saver


def measure(form: str, checkpointer: str, *, chunks: int, repeats: int) -> Row:
    """One row; the first round of each warms up and is left out."""
    run = run_sync if form == "sync" else run_async
    walls: dict[str, list[float]] = {"alone": [], "host": []}
    cpus: dict[str, list[float]] = {"alone": [], "host": []}
    read = 0
    for number in range(repeats + 1):
        for kind in ("alone", "host"):
            with tempfile.TemporaryDirectory() as folder:
                asked = Asked(Path(folder), chunks)
                path = Path(folder) / "run.sqlite" if checkpointer == "SQLite" else None
                wall, cpu, read = run(getattr(asked, kind), path)
            if number:
                walls[kind].append(wall)
                cpus[kind].append(cpu)
    alone, host = (1_000 * median(walls[kind]) / read for kind in ("alone", "host"))
    alone_cpu, host_cpu = (1_000 * median(cpus[kind]) / read for kind in ("alone", "host"))
    return Row(
        form=form,
        checkpointer=checkpointer,
        chunks=read,
        alone_ms=alone,
        host_ms=host,
        overhead_ms=host - alone,
        alone_cpu_ms=alone_cpu,
        host_cpu_ms=host_cpu,
        overhead_cpu_ms=host_cpu - alone_cpu,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chunks", type=int, default=CHUNKS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also save the measures here")
    parser.add_argument("--quick", action="store_true", help="a short run that shows it works")
    given = parser.parse_args()
    sizes = QUICK if given.quick else {"chunks": given.chunks, "repeats": given.repeats}
    machine, versions = told_machine(PACKAGES)
    print(f"milliseconds a chunk, median of {sizes['repeats']} rounds")
    print(
        f"{'form':6} {'kept in':8} {'chunks':>7} {'alone':>7} {'as a tool':>10} {'overhead':>9} "
        f"{'cpu alone':>10} {'cpu tool':>9} {'overhead':>9}"
    )
    rows = []
    for form in ("sync", "async"):
        for checkpointer in ("nothing", "SQLite"):
            row = measure(form, checkpointer, **sizes)
            rows.append(row)
            print(
                f"{row.form:6} {row.checkpointer:8} {row.chunks:7} {row.alone_ms:7.2f} "
                f"{row.host_ms:10.2f} {row.overhead_ms:9.2f} {row.alone_cpu_ms:10.2f} "
                f"{row.host_cpu_ms:9.2f} {row.overhead_cpu_ms:9.2f}",
                flush=True,
            )
    worst = max(row.overhead_ms for row in rows)
    verdict = "reached" if worst < GOAL_MS else "missed"
    print(f"overhead below {GOAL_MS:g} ms a chunk: at most {worst:.2f} ({verdict})")
    if given.json:
        saved = {
            "machine": machine,
            "versions": versions,
            "sizes": sizes,
            "rows": [asdict(row) for row in rows],
        }
        given.json.write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
