"""What the tests of the TGI double ask it with, and how they read its streams."""

from __future__ import annotations

import json
from typing import Any

import httpx

USER = [{"role": "user", "content": "Say something."}]


def post(url: str, path: str, body: Any, *, timeout_s: float = 20) -> httpx.Response:
    # Without certificates to load, a client is there in no time.
    return httpx.post(f"{url}{path}", json=body, timeout=timeout_s, verify=False)


def generate(url: str, inputs: str = "Say something.", **parameters: Any) -> httpx.Response:
    body = {"inputs": inputs, "parameters": {"details": True, **parameters}}
    return post(url, "/generate", body)


def generate_stream(url: str, inputs: str = "Say something.", **parameters: Any) -> httpx.Response:
    body = {"inputs": inputs, "parameters": {"details": True, **parameters}}
    return post(url, "/generate_stream", body)


def chat(url: str, **body: Any) -> httpx.Response:
    return post(url, "/v1/chat/completions", {"messages": USER, **body})


def events(response: httpx.Response) -> list[Any]:
    """The data of a stream's events, as JSON where it is some."""
    found = []
    for block in response.text.split("\n\n"):
        if not block.startswith("data: "):
            assert block in ("", ":"), block
            continue
        data = block.removeprefix("data: ")
        found.append(data if data == "[DONE]" else json.loads(data))
    return found
