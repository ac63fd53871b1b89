"""What looks like a llama.cpp server, and answers as a perfect reader of planted facts would."""

from __future__ import annotations

import contextlib
import threading

from langchain_core.messages import AIMessage, HumanMessage

from qwenlong_graph.testing.oracle import OracleChatModel
from qwenlong_graph.testing.scripted import count_words
from tests.models.stub_server import Answer, Endless, completion, models, stub_server

SPECIAL_TOKENS = {"<|im_start|>", "<|im_end|>"}
NAME = "stub-model"
MESSAGES = {"user": HumanMessage, "assistant": AIMessage}


class LlamaCpp:
    """A running stub: its `url`, the prompts it was sent, and a gate to hold replies back."""

    def __init__(self, url, requests, gate):
        self.url = url
        self.gate = gate
        self._requests = requests

    @property
    def prompts(self):
        """The last message of every request for a reply."""
        return [
            body["messages"][-1]["content"]
            for path, _, body in list(self._requests)
            if path == "/v1/chat/completions"
        ]

    @property
    def keys(self):
        return {headers.get("authorization") for _, headers, _ in self._requests}


@contextlib.contextmanager
def llama_cpp(*, facts=(), reply=None, window=4096):
    """A server that replies with `reply(prompt)`: a text, an `Answer`, an `Endless`, or None for
    the oracle's.

    Clearing `gate` holds every further reply back until it is set, or the server ends.
    """
    reader = OracleChatModel(list(facts))
    gate = threading.Event()
    gate.set()

    def tokenize(body):
        text = body["content"]
        if text in SPECIAL_TOKENS:
            return Answer({"tokens": [1] if body["parse_special"] else [1, 2, 3]})
        return Answer({"tokens": list(range(count_words(text)))})

    def chat(body):
        gate.wait()
        messages = body["messages"]
        given = reply(messages[-1]["content"]) if reply else None
        if isinstance(given, (Answer, Endless)):
            return given
        if given is None:
            given = reader.invoke([MESSAGES[m["role"]](m["content"]) for m in messages]).text
        return completion(given)

    answers = {
        "/props": Answer({"default_generation_settings": {"n_ctx": window}, "total_slots": 1}),
        "/v1/models": models({"id": NAME, "object": "model"}),
        "/tokenize": tokenize,
        "/v1/chat/completions": chat,
    }
    with stub_server(answers) as (url, requests):
        try:
            yield LlamaCpp(url, requests, gate)
        finally:
            gate.set()
