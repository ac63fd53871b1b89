"""What a client of TGI costs: `ChatTGI` beside bare httpx and the other clients, at 0 ms.

Run: python benchmarks/clients.py [--tokens N] [--repeats N] [--json FILE] [--quick]

All ask for the same reply, from two servers in a process of their own. "double" is the TGI double,
which checks each of its bodies and so takes longer than any client. "replay" sends what the double
sent, as fast as the socket takes it: there the client is what is measured. Calls take turns; each
value is the median over the rounds. The processor time of this process stands beside the wall
time, since it hardly moves when other work shares the machine. Columns and results are explained
in `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import httpx

TOKENS, REPEATS = 1_000, 21
QUICK = {"tokens": 50, "repeats": 2}
WARM_UPS = 2
WORD = "the"
PACKAGES = (
    "httpx",
    "langchain-core",
    "langchain-huggingface",
    "langchain-openai",
    "text-generation",
)
GOAL_RATIO = 1.5


def reply_of(tokens: int) -> str:
    """A text of so many tokens: the word is one token of the double's tokenizer."""
    return " ".join([WORD] * tokens)


# --- the servers, in a process of their own ------------------------------------------------------


def serve_both(tokens: int) -> None:
    """Serves until standard input ends; the addresses are the first line of standard output."""
    from qwenlong_graph.testing.tgi import TgiDouble, serve

    reply = reply_of(tokens)
    with serve(TgiDouble(lambda _: reply)) as double, replaying(double) as replay:
        print(json.dumps({"double": double, "replay": replay}), flush=True)
        sys.stdin.read()


@contextlib.contextmanager
def replaying(source: str) -> Iterator[str]:
    """A server that asks `source` once for each kind of request, and repeats the answer."""
    kept: dict[tuple[str, bool], tuple[httpx.Headers, bytes]] = {}
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's receipt

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            key = (self.path, bool(json.loads(body).get("stream")))
            with lock:
                if key not in kept:
                    found = httpx.post(
                        f"{source}{self.path}",
                        content=body,
                        headers={"content-type": "application/json"},
                        timeout=600,
                    )
                    found.raise_for_status()
                    kept[key] = found.headers, packed(found)
            headers, content = kept[key]
            self.send_response(200)
            self.send_header("content-type", headers["content-type"])
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def packed(response: httpx.Response) -> bytes:
    """A body as HTTP chunks, one for each event, as TGI sends them."""
    events = response.content.split(b"\n\n")
    parts = [event + b"\n\n" for event in events if event]
    if "event-stream" not in response.headers["content-type"]:
        parts = [response.content]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@contextlib.contextmanager
def servers(tokens: int) -> Iterator[dict[str, str]]:
    command = [sys.executable, __file__, "--serve", str(tokens)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            addresses: dict[str, str] = json.loads(process.stdout.readline())
            yield addresses
        finally:
            process.stdin.close()


# --- the clients ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Client:
    """`invoke` and `stream` give the whole text; `invoke_reads` is the answer `invoke` asks for."""

    name: str
    invoke: Callable[[], str]
    stream: Callable[[], str]
    invoke_reads: str


def bare_httpx(url: str, tokens: int, tokenizer: str) -> Client:
    client = httpx.Client(timeout=600)
    body = {"inputs": "Hi", "parameters": {"max_new_tokens": tokens + 8, "details": True}}

    def read() -> str:
        parts = []
        with client.stream("POST", f"{url}/generate_stream", json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data:"):
                    token = json.loads(line[5:])["token"]
                    if not token["special"]:
                        parts.append(token["text"])
        return "".join(parts)

    return Client("bare httpx", read, read, "stream")


def chat_tgi(url: str, tokens: int, tokenizer: str) -> Client:
    from qwenlong_graph.models.tgi import ChatTGI

    chat = ChatTGI(base_url=url, tokenizer=tokenizer, max_tokens=tokens + 8)
    return Client("ChatTGI", lambda: invoked(chat), lambda: streamed(chat), "stream")


def chat_hugging_face(url: str, tokens: int, tokenizer: str) -> Client:
    from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint

    endpoint: Any = HuggingFaceEndpoint
    llm = endpoint(endpoint_url=url, max_new_tokens=tokens + 8, typical_p=None, timeout=600)
    chat = ChatHuggingFace(llm=llm)
    return Client("ChatHuggingFace", lambda: invoked(chat), lambda: streamed(chat), "whole")


def chat_openai(url: str, tokens: int, tokenizer: str) -> Client:
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    chat = ChatOpenAI(
        model="tgi",
        base_url=f"{url}/v1",
        api_key=SecretStr("none"),
        max_completion_tokens=tokens + 8,
        max_retries=0,
    )
    return Client("ChatOpenAI", lambda: invoked(chat), lambda: streamed(chat), "whole")


def text_generation(url: str, tokens: int, tokenizer: str) -> Client:
    from text_generation import AsyncClient  # type: ignore[import-untyped] # ships no types

    # Each call warns that it uses pydantic's old names.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="text_generation")
    client = AsyncClient(url, timeout=600)
    loop = asyncio.new_event_loop()

    async def generate() -> str:
        reply = await client.generate("Hi", max_new_tokens=tokens + 8)
        return str(reply.generated_text)

    async def stream() -> str:
        parts = [
            event.token.text
            async for event in client.generate_stream("Hi", max_new_tokens=tokens + 8)
            if not event.token.special
        ]
        return "".join(parts)

    return Client(
        "text-generation's AsyncClient",
        lambda: loop.run_until_complete(generate()),
        lambda: loop.run_until_complete(stream()),
        "whole",
    )


def invoked(chat: Any) -> str:
    return str(chat.invoke("Hi").text)


def streamed(chat: Any) -> str:
    return "".join(str(chunk.text) for chunk in chat.stream("Hi"))


MAKERS: tuple[Callable[[str, int, str], Client], ...] = (
    bare_httpx,
    chat_tgi,
    chat_hugging_face,
    chat_openai,
    text_generation,
)


# --- measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Medians of whole calls; ratios are those of `invoke` to the bare reading.

    `cpu` is the processor time of this process, so the client's alone.
    """

    server: str
    client: str
    invoke_reads: str
    invoke_ms: float
    ratio: float
    invoke_cpu_ms: float
    cpu_ratio: float
    stream_us_per_token: float
    stream_cpu_us_per_token: float


def measure(server: str, url: str, *, tokens: int, repeats: int, tokenizer: str) -> list[Row]:
    clients = []
    for maker in MAKERS:
        try:
            clients.append(maker(url, tokens, tokenizer))
        except ImportError as error:
            print(f"skipped {maker.__name__}: {error.name} is not installed")
    calls = {
        (client.name, kind): call
        for client in clients
        for kind, call in (("invoke", client.invoke), ("stream", client.stream))
    }
    expected = reply_of(tokens)
    for key, call in calls.items():
        for _ in range(WARM_UPS):  # the first answer to be replayed comes from the double itself
            found = call()
            if found.strip() != expected:
                raise SystemExit(f"{' '.join(key)} gave {len(found)} characters of another text")
    walls: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    cpus: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(repeats):
        for key, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            cpus[key].append(time.process_time() - cpu)
            walls[key].append(time.perf_counter() - wall)
    # Both calls of the bare client are the same reading.
    bare_wall, bare_cpu = (
        median(times["bare httpx", "invoke"] + times["bare httpx", "stream"])
        for times in (walls, cpus)
    )
    rows = []
    for client in clients:
        invoke, stream = (client.name, "invoke"), (client.name, "stream")
        row = Row(
            server=server,
            client=client.name,
            invoke_reads=client.invoke_reads,
            invoke_ms=median(walls[invoke]) * 1e3,
            ratio=median(walls[invoke]) / bare_wall,
            invoke_cpu_ms=median(cpus[invoke]) * 1e3,
            cpu_ratio=median(cpus[invoke]) / bare_cpu,
            stream_us_per_token=median(walls[stream]) / tokens * 1e6,
            stream_cpu_us_per_token=median(cpus[stream]) / tokens * 1e6,
        )
        rows.append(row)
    return rows


def verdict(ratio: float) -> str:
    return "(reached)" if ratio <= GOAL_RATIO else "(missed)"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="a short run that shows it works")
    parser.add_argument("--serve", type=int, metavar="TOKENS", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve_both(given.serve)
        return
    # HF_HUB_OFFLINE=1 would keep ChatHuggingFace from the server on this machine too.
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    tokens, repeats = (
        (QUICK["tokens"], QUICK["repeats"]) if given.quick else (given.tokens, given.repeats)
    )
    machine = f"cores {os.cpu_count()}, machine {platform.machine()}, system {platform.system()}"
    print(", ".join([machine, *(f"{name} {number}" for name, number in versions().items())]))
    print(f"{tokens} tokens a reply, median of {repeats} rounds")
    print(
        f"{'server':8} {'client':30} {'reads':>7} {'invoke ms':>10} {'ratio':>6} {'cpu ms':>7} "
        f"{'ratio':>6} {'stream us/token':>16} {'cpu':>6}"
    )
    from qwenlong_graph.testing.tgi import small_tokenizer

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, servers(tokens) as addresses:
        small_tokenizer().save_pretrained(folder)
        for server, url in addresses.items():
            found = measure(server, url, tokens=tokens, repeats=repeats, tokenizer=folder)
            rows += found
            for row in found:
                print(
                    f"{row.server:8} {row.client:30} {row.invoke_reads:>7} {row.invoke_ms:10.2f} "
                    f"{row.ratio:6.2f} {row.invoke_cpu_ms:7.2f} {row.cpu_ratio:6.2f} "
                    f"{row.stream_us_per_token:16.1f} {row.stream_cpu_us_per_token:6.1f}"
                )
    for row in rows:
        if row.client == "ChatTGI":
            print(
                f"ChatTGI.invoke at most {GOAL_RATIO} times bare httpx, {row.server}: "
                f"{row.ratio:.2f} {verdict(row.ratio)}, "
                f"by processor time {row.cpu_ratio:.2f} {verdict(row.cpu_ratio)}"
            )
    if given.json:
        saved = {
            "machine": machine,
            "versions": versions(),
            "tokens": tokens,
            "repeats": repeats,
            "rows": [asdict(row) for row in rows],
        }
        given.json.write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
