"""A server on the loopback address that gives prepared answers."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answer:
    """`body` as JSON where it is no text; texts are sent as `content_type`."""

    def __init__(self, body, *, status=200, content_type="application/json"):
        self.status = status
        self.content_type = content_type
        self.headers = {}
        self.body = (body if isinstance(body, str) else json.dumps(body)).encode()


class Endless:
    """A stream of chat completion chunks with that delta, until the client leaves (`is_left`)."""

    def __init__(self, delta):
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        self.event = f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n".encode()
        self.is_left = threading.Event()

    def send(self, handler):
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(self.event)
        except OSError:
            self.is_left.set()


def completion(text="Fine.", *, finish_reason="stop"):
    return Answer(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": finish_reason,
                    "message": {"role": "assistant", "content": text},
                }
            ],
            "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
        }
    )


def as_stream(answer):
    """A completion as the events of a stream, word by word."""
    body = json.loads(answer.body)
    (choice,) = body.pop("choices")
    usage = body.pop("usage", None)
    words = re.findall(r"\s*\S+|\s+", choice["message"]["content"])
    deltas = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": word}, None) for word in words]
    deltas.append(({}, choice["finish_reason"]))
    parts = [[{"index": 0, "delta": delta, "finish_reason": end}] for delta, end in deltas]
    events = [{**body, "object": "chat.completion.chunk", "choices": part} for part in parts]
    events.append({**events[-1], "choices": [], "usage": usage})
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return Answer("".join(lines) + "data: [DONE]\n\n", content_type="text/event-stream")


def models(*entries):
    return Answer({"object": "list", "data": list(entries)})


@contextlib.contextmanager
def stub_server(answers):
    """Yields (url, requests): answers by path, an `Answer`, `Endless`, or a function of the body.

    `requests` collects (path, headers, body). Paths without an answer give 404. A completion is
    sent as a stream where that is asked for.
    """
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply()

        do_POST = do_GET  # noqa: N815 - likewise

        def reply(self):
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            body = json.loads(raw) if raw else None
            headers = {name.lower(): value for name, value in self.headers.items()}
            requests.append((self.path, headers, body))
            answer = answers.get(self.path, Answer({"error": "not found"}, status=404))
            if callable(answer):
                answer = answer(body)
            if isinstance(answer, Endless):
                answer.send(self)
                return
            if body and body.get("stream") and b'"chat.completion"' in answer.body:
                answer = as_stream(answer)
            self.send_response(answer.status)
            self.send_header("content-type", answer.content_type)
            self.send_header("content-length", str(len(answer.body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
