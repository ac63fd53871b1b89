"""A web page that shows the memory agent at work, by server-sent events.

    python examples/streaming_page.py

Serves one page at http://127.0.0.1:8000: ask a question about an example
document or a text that you paste; see the progress, the memory as it grows and
the quotes it rests on; click a citation to see its passage in the document;
cancel. If the connection drops, the reading goes on, and the page takes it up
where it was.

The scripted model keeps the sentences that share the question's words, and
understands nothing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import html
import json
import logging
import re
import socket
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from _models import DATA, arguments, reader
from langchain_core.documents import Document
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from qwenlong_graph import ReadingSettings, create_memory_agent
from qwenlong_graph.errors import QwenLongGraphError
from qwenlong_graph.models.connect import ConnectedModel
from qwenlong_graph.reading.relevance import (
    coverage,
    question_terms,
    sentences_of,
    tally_sentences,
    term_weights,
)
from qwenlong_graph.testing.oracle import OracleChatModel
from qwenlong_graph.testing.scripted import Stall, scripted

PAGE = Path(__file__).with_suffix(".html").read_text("utf-8")
DOCUMENTS = {file.name: file for file in sorted(DATA.iterdir(), reverse=True)}
BODY_BYTES_MAX = 8 << 20
READINGS_KEPT = 20
PING_S = 15.0
PASSAGE_CHARS = 400  # before and after a quote
SCRIPTED = "scripted: it keeps the sentences that share your question's words, nothing more"


class Reading:
    """A question being answered. Its events are kept, for a page that comes back."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.news = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def tell(self, kind: str, **data: Any) -> None:
        self.events.append({"type": kind, **data})
        self.news.set()
        self.news = asyncio.Event()

    async def stream(self, after: int) -> AsyncIterator[str]:
        """The events from number `after`, those of the past at once."""
        while True:
            news = self.news
            for event in self.events[after:]:
                yield f"data: {json.dumps(event)}\n\n"
            after = len(self.events)
            if self.events and self.events[-1]["type"] in {"answer", "cancelled", "error"}:
                return
            try:
                await asyncio.wait_for(news.wait(), PING_S)
            except TimeoutError:
                yield ": a sign of life\n\n"


class Desk:
    """All readings, and the model that reads."""

    def __init__(self, model: ConnectedModel | None, folder: str, pause_s: float) -> None:
        self.model = model  # None: scripted, and made for each question
        self.folder = folder
        self.pause_s = pause_s
        self.readings: dict[str, Reading] = {}

    def begin(self, question: str, title: str, text: str) -> str:
        for old in list(self.readings)[: -READINGS_KEPT + 1]:
            self.cancel(old)
            del self.readings[old]
        reading, name = Reading(), str(uuid.uuid4())
        reading.task = asyncio.create_task(self._read(reading, question, title, text))
        self.readings[name] = reading
        return name

    def cancel(self, name: str) -> None:
        if (reading := self.readings.get(name)) and reading.task:
            reading.task.cancel()

    async def close(self) -> None:
        tasks = [reading.task for reading in self.readings.values() if reading.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, reading: Reading, question: str, title: str, text: str) -> None:
        try:
            model = self.model
            if model is None:
                model = await asyncio.to_thread(by_words, question, text, self.pause_s)
            # "memory" also where the text would fit the window, so that there is something to see.
            settings = ReadingSettings(strategy="memory")
            agent = create_memory_agent(model, settings=settings, document_dir=self.folder)
            given: Any = {
                "question": question,
                "documents": [Document(text, metadata={"title": title})],
            }
            modes: Any = ["custom", "values"]
            async for mode, event in agent.astream(
                given, stream_mode=modes, output_keys=agent.output_channels
            ):
                if mode == "values":
                    output = event
                elif event["type"] == "memory_updated":
                    reading.tell("chunk", **progress(event, text))
                elif event["type"] in {"retry", "waiting_for_server"}:
                    reading.tell("waiting", why=event.get("reason") or event.get("found"))
            reading.tell("answer", **answer(output, text))
        except asyncio.CancelledError:
            reading.tell("cancelled")
            raise
        except QwenLongGraphError as error:
            reading.tell("error", message=str(error))
        except Exception:
            logging.exception("A reading broke.")
            reading.tell("error", message="Something broke; the terminal says what.")


def by_words(question: str, text: str, pause_s: float) -> ConnectedModel:
    """The scripted reader of a text; it takes `pause_s` for each reply, as a model takes time."""
    sentences = [text[start:end] for start, end in sentences_of(text, longest_chars=600)]
    weights = term_weights(question, tally_sentences(question_terms(question), sentences, {}))
    scores = {sentence: coverage(sentence, weights) for sentence in sentences}
    best = sorted(scores, key=lambda sentence: -scores[sentence])[:3]
    least = 0.6 * max([0.8, *(scores[sentence] for sentence in best)])
    oracle = OracleChatModel([sentence for sentence in best if scores[sentence] >= least])
    return scripted(lambda messages: Stall(pause_s, oracle.replies(messages)))


def progress(event: Mapping[str, Any], text: str) -> dict[str, Any]:
    names = ("step", "steps", "memory_tokens", "lines_added", "lines_removed")
    quotes = [passage(start, end, text) for _, start, end in event["places_added"]]
    read = round(100 * event["end_char"] / max(1, len(text)))
    return {**{name: event[name] for name in names}, "read": read, "quotes": quotes}


def answer(output: Mapping[str, Any], text: str) -> dict[str, Any]:
    citations = output["citations"]
    return {
        "found": output["found"],
        "pieces": pieces(output["answer"], citations),
        "sources": [passage(one["start_char"], one["end_char"], text) for one in citations],
        "unsupported": [
            one["text"] for one in output["unsupported"] if one["status"] == "unsupported"
        ],
    }


def pieces(text: str, citations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The answer cut after each sentence that citations support, with their numbers.

    Here and not in the page: offsets count characters, and a page's strings are UTF-16.
    """
    marks: dict[int, list[int]] = {}
    for number, citation in enumerate(citations, start=1):
        for span in citation.get("answer_spans", []):
            end = len(text[: span["end_index"]].rstrip())
            marks.setdefault(end, []).append(number)
    ends = sorted({*marks, len(text)})
    return [
        {"text": text[start:end], "marks": marks.get(end, [])}
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def passage(start: int, end: int, text: str) -> dict[str, Any]:
    before = text[max(0, start - PASSAGE_CHARS) : start]
    if start > PASSAGE_CHARS:
        before = "… " + before.partition(" ")[2]  # not in the middle of a word
    after = text[end : end + PASSAGE_CHARS]
    if end + PASSAGE_CHARS < len(text):
        after = after.rpartition(" ")[0] + " …"
    return {
        "before": before,
        "quote": text[start:end],
        "after": after,
        "start": start,
        "end": end,
    }


# The requests.


async def get_page(request: Request) -> Response:
    def hash_of(element: str) -> str:
        (content,) = re.findall(f"<{element}>(.*?)</{element}>", PAGE, re.DOTALL)
        digest = hashlib.sha256(content.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    options = "".join(f"<option>{html.escape(name)}</option>" for name in DOCUMENTS)
    page = PAGE.replace("<!-- documents -->", options)
    page = page.replace("<!-- model -->", html.escape(request.app.state.model))
    # Nothing runs or loads but what stands in the page's own file.
    policy = (
        f"default-src 'none'; script-src {hash_of('script')}; style-src {hash_of('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
    return HTMLResponse(page, headers=headers)


async def post_question(request: Request) -> Response:
    # Another site's page can send a form here, but JSON only if this server allowed it.
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        return refused("Send JSON.", 415)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            return refused(f"The text is too long: {BODY_BYTES_MAX >> 20} MiB at most.", 413)
    try:
        given = json.loads(body)
        question, title, text = (given[name] for name in ("question", "document", "text"))
        if not all(isinstance(one, str) for one in (question, title, text)):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        return refused('Send {"question": "...", "document": "...", "text": "..."}.', 400)
    if not question.strip():
        return refused("Write a question.", 400)
    if title and title not in DOCUMENTS:
        return refused("There is no such document.", 400)
    if title:
        text = DOCUMENTS[title].read_text("utf-8")
    if not text.strip():
        return refused("Paste a text, or choose a document.", 400)
    name = request.app.state.desk.begin(question, title or "Your text", text)
    return JSONResponse({"id": name})


def refused(message: str, status: int) -> Response:
    return JSONResponse({"message": message}, status)


async def get_events(request: Request) -> Response:
    reading = request.app.state.desk.readings.get(str(request.path_params["id"]))
    given = request.query_params.get("after", "")
    after = int(given) if given.isascii() and given.isdecimal() else 0
    if reading is None:
        # Told as an event: a page's EventSource does not show the status of a response.
        reading, after = Reading(), 0
        message = "The server does not know this reading: it was started anew. Ask again."
        reading.tell("error", message=message)
    stream = reading.stream(after)
    headers = {"Cache-Control": "no-store"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


async def post_cancel(request: Request) -> Response:
    request.app.state.desk.cancel(str(request.path_params["id"]))
    return Response(status_code=204)


class Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the readings first: uvicorn waits for their streams, then for the application."""
        await self.config.app.state.desk.close()  # type: ignore[union-attr]  # a Starlette
        await super().shutdown(sockets)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument(
        "--pause", type=float, default=0.2, help="seconds that the scripted model takes to reply"
    )
    args = parser.parse_args()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory() as folder:
            app.state.desk = Desk(model, folder, args.pause)
            app.state.model = args.model if model else SCRIPTED
            print(f"The page is at http://127.0.0.1:{port}/   (Ctrl-C ends it)", flush=True)
            yield

    app = Starlette(
        routes=[
            Route("/", get_page),
            Route("/questions", post_question, methods=["POST"]),
            Route("/questions/{id:uuid}/events", get_events),
            Route("/questions/{id:uuid}/cancel", post_cancel, methods=["POST"]),
        ],
        # Keeps out pages of other sites whose name was made to mean this machine.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
        lifespan=lifespan,
    )
    try:
        listening = socket.create_server(("127.0.0.1", args.port))
    except (OSError, OverflowError) as error:  # taken, not allowed; not a port at all
        raise SystemExit(f"Port {args.port} cannot be used ({error}). Try --port 0.") from error
    port = listening.getsockname()[1]
    # Before the server: a model that is not there is told in a line.
    model = None if args.model == "scripted" else reader(args.model, [])
    with listening, contextlib.closing(model) if model else contextlib.nullcontext():
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        with contextlib.suppress(KeyboardInterrupt):  # that is how it ends
            Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
