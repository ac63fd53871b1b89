"""Kill a reading at random moments, resume it, and compare with one that nobody killed.

Run: python benchmarks/kills.py [--kills N] [--seed N] [--quick] [--json FILE]

The command line reads about 60 chunks with a scripted server on the loopback address that
answers in a few milliseconds and remembers every prompt. Each reading is killed once (SIGKILL):
every second one a random time after a random call reached the server, the others at a random
time between the making of the run's folder and its end. Then `resume` reads to the end. Required
of each: the same final state as without a kill, at most one model call asked twice, and a journal
that tells of each step exactly once. Ends with 1 if one of them fails. Columns are explained in
`benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage
from machine import told_machine

from qwenlong_graph.runs.directory import RunShelf
from qwenlong_graph.testing.oracle import OracleChatModel

KILLS, SEED, CHUNKS = 50, 0, 60
QUICK_KILLS, QUICK_CHUNKS = 5, 12
CHUNK_TOKENS = 200
LATEST_AFTER_CALL_S = 0.1
"""A kill by call comes at most so much later: before the reply, or while its state is kept."""

FILLER = "The winter was long and the traders stayed away from the coast. "
SENTENCES_PER_CHUNK = 15  # of 12 words and a full stop, and a fact now and then
QUESTION = "What was paid for the bridges at Orrin?"
INSTRUCTIONS = "List every payment."
PACKAGES = ("langgraph", "langgraph-checkpoint-sqlite", "langchain-openai")
CLEARED = ("QWENLONG_GRAPH_", "LANGSMITH_", "LANGCHAIN_")


# --- the scripted server -----------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """What looks like llama.cpp's, and answers as a perfect reader; `prompts` holds every call."""

    daemon_threads = True

    def __init__(self, facts: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reader = OracleChatModel(facts)
        self.prompts: list[str] = []
        self.is_asked = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of connections that broke off: their other ends were killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def forget(self) -> None:
        with self.is_asked:
            self.prompts = []

    def wait_for(self, calls: int, process: subprocess.Popen[str]) -> None:
        """Until so many calls came, or the process ends before."""
        with self.is_asked:
            while len(self.prompts) < calls and process.poll() is None:
                self.is_asked.wait(0.05)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:  # the base class's name
        if self.path == "/props":
            self._send({"default_generation_settings": {"n_ctx": 4096}, "total_slots": 1})
        elif self.path == "/v1/models":
            self._send({"object": "list", "data": [{"id": "scripted", "object": "model"}]})
        else:
            self._send({"error": {"message": "no such address"}}, status=404)

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        content = self.rfile.read(length)
        if len(content) < length:  # the other end was killed meanwhile
            return None
        body = json.loads(content)
        if self.path == "/tokenize":
            text = body["content"]
            is_control = re.fullmatch(r"<\|im_\w+\|>", text) and body.get("parse_special")
            count = 1 if is_control else len(re.findall(r"\w+|[^\w\s]", text))
            return self._send({"tokens": list(range(count))})
        if not self.path.endswith("/chat/completions"):
            return self._send({"error": {"message": "no such address"}}, status=404)
        prompt = body["messages"][-1]["content"]
        with self.server.is_asked:
            self.server.prompts.append(prompt)
            self.server.is_asked.notify_all()
        text = self.server.reader.invoke([HumanMessage(prompt)]).text
        message = {"role": "assistant", "content": text}
        return self._send(
            {
                "id": "scripted",
                "object": "chat.completion",
                "created": 0,
                "model": "scripted",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18},
            }
        )

    def _send(self, value: Any, *, status: int = 200) -> None:
        body = json.dumps(value).encode()
        # Whoever was killed does not wait for the reply.
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextlib.contextmanager
def serving(facts: list[str]) -> Iterator[Server]:
    with Server(facts) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


# --- one reading -------------------------------------------------------------------------------


def write_document(path: Path, chunks: int) -> list[str]:
    """A text of about so many chunks, with a fact in every third; gives the facts."""
    facts, pieces = [], []
    for number in range(chunks):
        pieces.append(FILLER * SENTENCES_PER_CHUNK)
        if number % 3 == 1:
            paid = f"The widow Hale paid {317_000 + 61 * number} crowns for bridge {number}. "
            facts.append(paid.strip())
            pieces.append(paid)
    path.write_text("".join(pieces), "utf-8")
    return facts


class Reading:
    """One run with a data directory of its own."""

    def __init__(self, folder: Path, server: Server, document: Path) -> None:
        self.folder = folder
        self.server = server
        self.document = document
        kept = {name: text for name, text in os.environ.items() if not name.startswith(CLEARED)}
        self.environment = {**kept, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def ask(self) -> subprocess.Popen[str]:
        return self._start(
            "ask", QUESTION, str(self.document), "--run-id", "run", "--model", self.server.url,
            "--instructions", INSTRUCTIONS, "--strategy", "memory", "--protocol", "rewrite",
            "--chunk-tokens", str(CHUNK_TOKENS), "--window", "4096",
        )  # fmt: skip

    def resume(self) -> subprocess.Popen[str]:
        return self._start("resume", "run")

    def state(self) -> dict[str, Any]:
        return RunShelf(self.folder / "runs").find("run").state()

    def state_left(self) -> dict[str, Any]:
        """What a kill left, read from a copy: looking at it would already mend SQLite's log."""
        copy = self.folder / "copy"
        shutil.copytree(self.folder / "runs", copy)
        return RunShelf(copy).find("run").state()

    def wait_for_folder(self, process: subprocess.Popen[str]) -> None:
        """Until the run's folder is there, or the process ends before."""
        while not (self.folder / "runs" / "run").exists() and process.poll() is None:
            time.sleep(0.001)

    def journal(self) -> list[dict[str, Any]]:
        return RunShelf(self.folder / "runs").find("run").journal().entries()

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "qwenlong_graph.cli", *arguments]
        return subprocess.Popen(
            [*command, "--json", "--data-dir", str(self.folder)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def to_the_end(process: subprocess.Popen[str]) -> None:
    stdout, stderr = process.communicate(timeout=300)
    if process.returncode:
        raise SystemExit(f"A reading ended with {process.returncode}: {stdout}{stderr}")


def told_steps(journal: list[dict[str, Any]]) -> list[int]:
    """The steps that a journal tells of, each as often as it does."""
    steps: list[int] = []
    for entry in journal:
        if entry["type"] == "memory_updated":
            steps.append(entry["step"])
        elif entry["type"] == "restored":
            steps += range(entry["first_step"], entry["step"] + 1)
    return steps


# --- the campaign ------------------------------------------------------------------------------


def campaign(kills: int, chunks: int, seed: int) -> dict[str, Any]:
    """The measures of every kill; a line each is printed as it comes."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        facts = write_document(root / "annals.txt", chunks)
        with serving(facts) as server:
            whole = Reading(root / "whole", server, root / "annals.txt")
            process = whole.ask()
            whole.wait_for_folder(process)
            began = time.monotonic()
            to_the_end(process)
            seconds = time.monotonic() - began
            expected, prompts = whole.state(), list(server.prompts)
            print(f"without a kill: {expected['step']} chunks, {len(prompts)} calls, ", end="")
            print(f"{len(expected['evidence'])} quotes, {seconds:.1f} s")
            print(HEADER)
            cases = []
            for number in range(kills):
                reading = Reading(root / str(number), server, root / "annals.txt")
                moment = kill(reading, draw, calls=len(prompts), seconds=seconds, number=number)
                case = {"kill": number + 1, **moment, **resumed(reading, expected, prompts)}
                cases.append(case)
                print(line(case), flush=True)
    return {
        "chunks": expected["step"],
        "calls": len(prompts),
        "seconds": seconds,
        "cases": cases,
    }


def kill(
    reading: Reading, draw: random.Random, *, calls: int, seconds: float, number: int
) -> dict[str, Any]:
    """Begins a reading and kills it at a random moment; the moment, and what was kept by then."""
    server = reading.server
    while True:
        call = draw.randint(1, calls) if number % 2 else 0
        delay = draw.uniform(0, LATEST_AFTER_CALL_S if call else seconds)
        server.forget()
        process = reading.ask()
        reading.wait_for_folder(process)
        server.wait_for(call, process)
        time.sleep(delay)
        is_alive = process.poll() is None
        process.kill()
        process.communicate()
        if is_alive:
            break
        # It had ended before: another moment, in another place.
        reading.folder = reading.folder.with_name(f"{reading.folder.name}-again")
    return {
        "by": f"call {call}" if call else "time",
        "delay_ms": round(delay * 1000),
        "steps_kept": reading.state_left().get("step", 0),
        "calls_before": len(server.prompts),
    }


def resumed(reading: Reading, expected: dict[str, Any], prompts: list[str]) -> dict[str, Any]:
    """What a resumed run came to."""
    to_the_end(reading.resume())
    journal = reading.journal()
    asked = list(reading.server.prompts)
    repeated = [index for index in range(1, len(asked)) if asked[index] == asked[index - 1]]
    once = [prompt for index, prompt in enumerate(asked) if index not in repeated]
    answers = [index for index, entry in enumerate(journal) if entry["type"] == "answered"]
    return {
        "is_same_state": reading.state() == expected,
        "is_same_order_of_calls": once == prompts,
        "calls_repeated": len(repeated),
        "restored_lines": sum(entry["type"] == "restored" for entry in journal),
        "is_journal_whole": told_steps(journal) == list(range(expected["step"]))
        and answers == [len(journal) - 1],
    }


def is_right(case: dict[str, Any]) -> bool:
    is_as_expected = all(
        case[name] for name in ("is_same_state", "is_same_order_of_calls", "is_journal_whole")
    )
    return is_as_expected and int(case["calls_repeated"]) <= 1


HEADER = "kill  by       delay ms  kept  calls  repeated  restored  same state  journal  right"


def line(case: dict[str, Any]) -> str:
    def said(is_so: bool) -> str:
        return "yes" if is_so else "NO"

    return (
        f"{case['kill']:>4}  {case['by']:<9}{case['delay_ms']:>8}{case['steps_kept']:>6}"
        f"{case['calls_before']:>7}{case['calls_repeated']:>10}"
        f"{case['restored_lines']:>10}{said(case['is_same_state']):>12}"
        f"{said(case['is_journal_whole']):>9}{said(is_right(case)):>7}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--quick", action="store_true", help="a few kills of a short reading")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also save the measures here")
    arguments = parser.parse_args()
    machine, versions = told_machine(PACKAGES)
    kills, chunks = (QUICK_KILLS, QUICK_CHUNKS) if arguments.quick else (arguments.kills, CHUNKS)
    print(f"seed {arguments.seed}")
    measures = campaign(kills, chunks, arguments.seed)
    cases = measures["cases"]
    right = sum(map(is_right, cases))
    print(
        f"{right} of {len(cases)} right; "
        f"{sum(case['calls_repeated'] for case in cases)} calls repeated, at most "
        f"{max(case['calls_repeated'] for case in cases)} in one run; "
        f"{sum(bool(case['restored_lines']) for case in cases)} journals completed"
    )
    if arguments.json:
        saved = {"machine": machine, "versions": versions, "seed": arguments.seed, **measures}
        arguments.json.write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
    sys.exit(right < len(cases))


if __name__ == "__main__":
    main()
