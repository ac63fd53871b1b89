"""A server on the loopback address that gives prepared answers."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answer:
    """`body` as JSON where it is no text; texts are sent as `content_type`."""

    def __init__(self, body, *, status=200, content_type="application/json"):
        self.status = status
        self.content_type = content_type
        self.body = (body if isinstance(body, str) else json.dumps(body)).encode()


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


def models(*entries):
    return Answer({"object": "list", "data": list(entries)})


@contextlib.contextmanager
def stub_server(answers):
    """Yields (url, requests): answers by path, an `Answer` or a function of the request's body.

    `requests` collects (path, headers, body). Paths without an answer give 404.
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
            self.send_response(answer.status)
            self.send_header("content-type", answer.content_type)
            self.send_header("content-length", str(len(answer.body)))
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
