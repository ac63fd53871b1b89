"""What the memory agent costs beside a plain HTTP loop over the same chunks.

Run: python benchmarks/loop.py [--tokens N ...] [--delays MS ...] [--repeats N] [--quick]

Both talk to one scripted server on the loopback address, in a process of its own, that answers
after a fixed delay with a memory of about 1 KB taken from the section it was shown. The agent
runs as the command line runs it: async, SQLite checkpoints at every step, a journal. The plain
loop reads the same spans from the file, sends the same prompts and keeps the reply, no more.
Each measurement has a fresh process. Columns are explained in `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from machine import told_machine

# The package is imported by the measuring processes only: a process inherits the peak memory of
# the one that starts it.

SOURCE = Path(__file__).parents[1] / "examples" / "data" / "state-of-the-union-1946.txt"
QUESTION = "What does the President say about wages, prices and housing?"
INSTRUCTIONS = "Answer in one sentence."  # given, so that no call is spent on finding them
WINDOW, CHUNK_TOKENS, MEMORY_TOKENS, SEED = 131_072, 32_000, 15_000, 0
CHARS_PER_TOKEN = 4
WARM_UP_TOKENS, QUICK_TOKENS = 2_000, 60_000
REPLY_CHARS = 1_000
NEW_LINES = 2
PACKAGES = ("langgraph", "langgraph-checkpoint-sqlite", "langchain-openai", "httpx")


def count_tokens(text: str) -> int:
    """A count that costs nothing, so that counting is no part of what is measured."""
    return len(text) // CHARS_PER_TOKEN


# --- the scripted server -----------------------------------------------------------------------


def reply_to(prompt: str) -> str:
    """The memory of the prompt with two lines from the section; without one, the answer.

    The oldest lines make room, so every reply has about 1 KB. Every second new line stands in
    the section word for word, the others without their articles, as in notes.
    """
    section = _element(prompt, "section")
    # Beside a section the prompt holds an example of a memory too.
    noted = _element(_element(prompt, "previous_memory") if section else prompt, "memory")
    memory = noted.splitlines()
    if not section:
        return memory[-1].removeprefix("- ") if memory else "NOT FOUND"
    middle = " ".join(section[len(section) // 2 :][: 8 * REPLY_CHARS].split())
    sentences = re.findall(r"(?<=[.;] )[A-Z][^.;\n]{60,160}[.;](?= )", middle)
    added = 0
    for number, sentence in enumerate(sentences):
        if added >= NEW_LINES and sum(map(len, memory)) >= REPLY_CHARS:
            break
        line = "- " + (re.sub(r"\b(?:the|a|an) ", "", sentence) if number % 2 else sentence)
        if line not in memory:
            memory.append(line)
            added += 1
    while sum(map(len, memory[1:])) >= REPLY_CHARS:
        del memory[0]
    lines = "\n".join(memory)
    return f"<memory>\n{lines}\n</memory>\n<plan>\nLook for further figures.\n</plan>"


def _element(text: str, name: str) -> str:
    start = text.find(f"<{name}>\n")
    end = text.find(f"\n</{name}>", start)
    return text[start + len(name) + 3 : end] if 0 <= start < end else ""


class _Handler(BaseHTTPRequestHandler):
    """POST /DELAY_MS/v1/chat/completions answers; GET /spent tells the seconds spent so far."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    lock = threading.Lock()
    spent = 0.0

    def do_GET(self) -> None:  # the base class's name
        self._send({"spent": _Handler.spent})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        start = time.perf_counter()
        text = reply_to(json.loads(body)["messages"][-1]["content"])
        prompt_tokens, reply_tokens = len(body) // CHARS_PER_TOKEN, count_tokens(text)
        reply = {
            "id": "scripted",
            "object": "chat.completion",
            "created": 0,
            "model": "scripted",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": reply_tokens,
                "total_tokens": prompt_tokens + reply_tokens,
            },
        }
        time.sleep(int(self.path.split("/")[1]) / 1000)
        with _Handler.lock:
            _Handler.spent += time.perf_counter() - start
        self._send(reply)

    def _send(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def serve() -> None:
    """Tells its port on standard output, then serves until it is killed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


# --- what each measuring process does ----------------------------------------------------------


def prepare(folder: Path) -> dict[str, Any]:
    """Write the spans of `folder`'s text beside it; time evidence alignment over all of them.

    The memories are those of the real runs: the server's replies, step by step.
    """
    from qwenlong_graph.documents.chunking import spans
    from qwenlong_graph.documents.store import DocumentStore
    from qwenlong_graph.reading.evidence import SourceText, align_memory
    from qwenlong_graph.types import Evidence

    text = (folder / "text.txt").read_text(encoding="ascii")
    store = DocumentStore(folder / "prepared")
    stored = store.open(store.put(text, title="text.txt"))
    found = list(spans(stored, max_tokens=CHUNK_TOKENS, count_tokens=count_tokens))
    (folder / "spans.json").write_text(json.dumps(found))
    memory, seconds = "", 0.0
    evidence: list[Evidence] = []
    for step, span in enumerate(found):
        start, end = span["start_char"], span["end_char"]
        memory = _element(reply_to(_prompt(memory, text[start:end], step)), "memory")
        before = max(0, start - 1_000)  # the agent looks back as far
        chunk = SourceText(document=0, start_char=before, text=text[before:end])
        places = sorted({(piece["start_char"], piece["end_char"]) for piece in evidence})
        held = [SourceText(document=0, start_char=a, text=text[a:b]) for a, b in places]
        begun = time.perf_counter()
        evidence = align_memory(memory, previous=evidence, chunk=chunk, held=held)
        seconds += time.perf_counter() - begun
    return {"chunks": len(found), "seconds": seconds, "evidence": len(evidence)}


def run_agent(folder: Path, url: str) -> dict[str, Any]:
    """The agent over `folder`'s text, once over a short text first for what is imported late."""
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    from qwenlong_graph import ReadingSettings, connect, create_memory_agent
    from qwenlong_graph.runs.checkpoints import open_checkpoints
    from qwenlong_graph.runs.journal import Journal

    model = connect(
        ChatOpenAI(model="scripted", base_url=url, api_key=SecretStr("none"), max_retries=0),
        window=WINDOW,
        count_tokens=count_tokens,
    )
    settings = ReadingSettings(
        strategy="memory", chunk_tokens=CHUNK_TOKENS, memory_tokens=MEMORY_TOKENS, seed=SEED
    )

    async def reading(text: Path, data: Path) -> dict[str, Any]:
        run = data / "run"
        run.mkdir(parents=True)
        journal = Journal(run / "journal.jsonl")
        begun = time.perf_counter()
        stored = output = None
        async with open_checkpoints(run / "checkpoints.sqlite") as saver:
            agent = create_memory_agent(
                model, settings=settings, checkpointer=saver, document_dir=data / "documents"
            )
            given = {"question": QUESTION, "instructions": INSTRUCTIONS, "documents": [str(text)]}
            async for mode, event in agent.astream(
                given,
                {"configurable": {"thread_id": "bench"}},
                stream_mode=["custom", "values"],
                durability="sync",
            ):
                if mode == "values":
                    output = event
                    continue
                stored = stored or time.perf_counter()
                journal.append(event)
            ended = time.perf_counter()
            # While the database is open its log is there too: the most a kill would leave.
            size = sum(file.stat().st_size for file in run.iterdir())
        assert output is not None
        assert stored is not None
        return {
            "seconds": ended - begun,
            "storing_seconds": stored - begun,
            "file_bytes": size,
            "usage": {key: output["usage"][key] for key in ("steps", "calls", "retries", "unread")},
            "evidence": len(output["evidence"]),
        }

    async def both() -> dict[str, Any]:
        await reading(folder / "warm-up.txt", folder / f"warm-up-{os.getpid()}")
        with _measured(url) as measures:
            measures |= await reading(folder / "text.txt", folder / f"agent-{os.getpid()}")
        return measures

    return asyncio.run(both())


def run_plain(folder: Path, url: str) -> dict[str, Any]:
    """A loop as one would write it in an hour; as many calls with prompts of the same sizes."""
    import httpx

    from qwenlong_graph.reading.prompts import answer_prompt

    spans = json.loads((folder / "spans.json").read_text())
    with httpx.Client(timeout=600) as client:

        def ask(content: str) -> str:
            message = {"role": "user", "content": content}
            response = client.post(
                f"{url}/chat/completions", json={"model": "scripted", "messages": [message]}
            )
            return str(response.raise_for_status().json()["choices"][0]["message"]["content"])

        ask(_prompt("", "Warm up. ", 0))
        with _measured(url) as measures:
            begun = time.perf_counter()
            memory = ""
            with (folder / "text.txt").open("rb") as file:
                for step, span in enumerate(spans):
                    file.seek(span["start_byte"])
                    chunk = file.read(span["end_byte"] - span["start_byte"]).decode()
                    memory = _element(ask(_prompt(memory, chunk, step)), "memory")
            (message,) = answer_prompt(
                core_question=QUESTION, instructions=INSTRUCTIONS, memory=memory
            )
            ask(message["content"])
            measures["seconds"] = time.perf_counter() - begun
    return measures


def _prompt(memory: str, chunk: str, step: int) -> str:
    from qwenlong_graph.reading.prompts import rewrite_prompt

    (message,) = rewrite_prompt(
        core_question=QUESTION,
        memory=memory,
        plan="Look for further figures." if memory else "",
        chunk=chunk,
        header=f"[Section {step + 1}]",
        memory_words=int(MEMORY_TOKENS * 0.6),
    )
    return message["content"]


@contextlib.contextmanager
def _measured(url: str) -> Iterator[dict[str, Any]]:
    """Server seconds and memory of what the block does; read outside of what it times."""
    measures: dict[str, Any] = {}
    spent, resident = _spent(url), _resident_bytes()
    yield measures
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    measures["server_seconds"] = _spent(url) - spent
    measures["resident_before_bytes"] = resident
    measures["peak_bytes"] = peak


def _spent(url: str) -> float:
    import httpx

    return float(httpx.get(httpx.URL(url).join("/spent")).json()["spent"])


def _resident_bytes() -> int:
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # elsewhere: the peak so far
    return peak * (1 if sys.platform == "darwin" else 1024)


# --- the table ---------------------------------------------------------------------------------


def measure(token_sizes: list[int], delays: list[int], repeats: int) -> list[dict[str, Any]]:
    """One row a size and delay, each value the median of the repeats; printed as they come."""
    rows = []
    print(HEADER)
    with tempfile.TemporaryDirectory() as directory, _server() as port:
        for tokens in token_sizes:
            folder = Path(directory) / str(tokens)
            folder.mkdir()
            _write_text(folder / "text.txt", tokens)
            _write_text(folder / "warm-up.txt", WARM_UP_TOKENS)
            alignment = _in_process("prepare", folder)
            for delay in delays:
                url = f"http://127.0.0.1:{port}/{delay}/v1"
                runs = [
                    _row(
                        tokens,
                        delay,
                        alignment,
                        agent=_in_process("agent", folder, url),
                        plain=_in_process("plain", folder, url),
                    )
                    for _ in range(repeats)
                ]
                rows.append({key: median(run[key] for run in runs) for key in runs[0]})
                print(_line(rows[-1]), flush=True)
    return rows


def _row(
    tokens: int,
    delay: int,
    alignment: dict[str, Any],
    *,
    agent: dict[str, Any],
    plain: dict[str, Any],
) -> dict[str, Any]:
    chunks = alignment["chunks"]
    expected = {"steps": chunks, "calls": chunks + 1, "retries": 0, "unread": 0}
    done = {**agent["usage"], "evidence": agent["evidence"]}
    if done != {**expected, "evidence": alignment["evidence"]}:
        raise SystemExit(f"The agent did other work than it is compared with: {done}")

    def work_ms(side: dict[str, Any]) -> float:
        return (side["seconds"] - side["server_seconds"]) / chunks * 1000

    return {
        "tokens": tokens,
        "delay_ms": delay,
        "chunks": chunks,
        "agent_seconds": agent["seconds"],
        "plain_seconds": plain["seconds"],
        "ratio": agent["seconds"] / plain["seconds"],
        "ratio_without_alignment": (agent["seconds"] - alignment["seconds"]) / plain["seconds"],
        "agent_work_ms": work_ms(agent),
        "alignment_ms": alignment["seconds"] / chunks * 1000,
        "plain_work_ms": work_ms(plain),
        "storing_seconds": agent["storing_seconds"],
        "peak_bytes": agent["peak_bytes"],
        "growth_bytes": agent["peak_bytes"] - agent["resident_before_bytes"],
        "plain_growth_bytes": plain["peak_bytes"] - plain["resident_before_bytes"],
        "file_bytes": agent["file_bytes"],
        "evidence": agent["evidence"],
    }


HEADER = (
    "  tokens  delay  chunks  agent s  plain s  ratio  (less align)  agent ms  align ms  plain ms"
    "  store s  peak MB  growth MB  files MB"
)


def _line(row: dict[str, Any]) -> str:
    mb = 1_000_000
    return (
        f"{row['tokens']:>8}{row['delay_ms']:>7}{row['chunks']:>8}{row['agent_seconds']:>9.2f}"
        f"{row['plain_seconds']:>9.2f}{row['ratio']:>7.2f}{row['ratio_without_alignment']:>14.2f}{row['agent_work_ms']:>10.1f}"
        f"{row['alignment_ms']:>10.1f}{row['plain_work_ms']:>10.1f}{row['storing_seconds']:>9.2f}"
        f"{row['peak_bytes'] / mb:>9.1f}{row['growth_bytes'] / mb:>11.1f}"
        f"{row['file_bytes'] / mb:>10.2f}"
    )


def _write_text(path: Path, tokens: int) -> None:
    source = SOURCE.read_text(encoding="ascii", errors="ignore")
    left, number = tokens * CHARS_PER_TOKEN, 1
    with path.open("w", encoding="ascii") as file:
        while left > 0:
            left -= file.write(f"\n\n## Part {number}\n\n{source}"[:left])
            number += 1


@contextlib.contextmanager
def _server() -> Iterator[int]:
    command = [sys.executable, __file__, "--role", "server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def _in_process(role: str, folder: Path, url: str = "") -> dict[str, Any]:
    local = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "LANGSMITH_TRACING": "false"}
    done = subprocess.run(
        [sys.executable, __file__, "--role", role, "--folder", str(folder), "--url", url],
        env={**os.environ, **local},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    measures: dict[str, Any] = json.loads(done.stdout)
    return measures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1_000_000, 4_000_000])
    parser.add_argument("--delays", type=int, nargs="+", default=[0, 50], help="milliseconds")
    parser.add_argument("--repeats", type=int, default=3, help="print the median of so many runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also save the measures here")
    parser.add_argument("--quick", action="store_true", help="one short text without delay")
    # How this file starts its own processes.
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role == "server":
        serve()
    elif arguments.role == "prepare":
        print(json.dumps(prepare(arguments.folder)))
    elif arguments.role:
        work = {"agent": run_agent, "plain": run_plain}[arguments.role]
        print(json.dumps(work(arguments.folder, arguments.url)))
    else:
        machine, versions = told_machine(PACKAGES)
        settings = {"window": WINDOW, "chunk": CHUNK_TOKENS, "memory": MEMORY_TOKENS}
        print(f"seed {SEED}; tokens:", ", ".join(f"{k} {v}" for k, v in settings.items()))
        rows = (
            measure([QUICK_TOKENS], [0], 1)
            if arguments.quick
            else measure(arguments.tokens, arguments.delays, arguments.repeats)
        )
        if arguments.json:
            saved = {
                "machine": machine,
                "versions": versions,
                "seed": SEED,
                "settings": settings,
                "repeats": 1 if arguments.quick else arguments.repeats,
                "cases": rows,
            }
            arguments.json.write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
