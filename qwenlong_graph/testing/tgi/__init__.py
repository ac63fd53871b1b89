"""A double of Text Generation Inference: its protocol, limits and failures, on a loopback port.

    double = TgiDouble(["First reply.", "Second reply."], faults={1: CloseAfter(events=3)})
    with serve(double) as url:
        ...  # a client that asks url + "/generate_stream"
    assert double.prompts ...

It is for tests of programs that talk to TGI, this package's own among them.
"""

from __future__ import annotations

from qwenlong_graph.testing.tgi.double import ReceivedRequest, TgiDouble
from qwenlong_graph.testing.tgi.faults import (
    BadGateway,
    CloseAfter,
    CommentsOnly,
    CutAfter,
    ErrorEvent,
    Fail,
    Fault,
    Garbage,
    NoAnswer,
    NoFinalEvent,
    NotHttp,
    Restart,
    Silence,
    SlowDrip,
    TruncatedUtf8,
    WrongTypes,
)
from qwenlong_graph.testing.tgi.llama_cpp import LlamaCpp
from qwenlong_graph.testing.tgi.serving import serve
from qwenlong_graph.testing.tgi.tokens import small_tokenizer

__all__ = [
    "BadGateway",
    "CloseAfter",
    "CommentsOnly",
    "CutAfter",
    "ErrorEvent",
    "Fail",
    "Fault",
    "Garbage",
    "LlamaCpp",
    "NoAnswer",
    "NoFinalEvent",
    "NotHttp",
    "ReceivedRequest",
    "Restart",
    "Silence",
    "SlowDrip",
    "TgiDouble",
    "TruncatedUtf8",
    "WrongTypes",
    "serve",
    "small_tokenizer",
]
