"""A real model behind the double: a running llama.cpp server, with its tokenizer and template."""

from __future__ import annotations

import json
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import httpx

from qwenlong_graph.testing.tgi.generation import Refusal, Voice
from qwenlong_graph.testing.tgi.tokens import Place, Token, Vocabulary

__all__ = ["LlamaCpp"]

# A server on 2 cores may read a long prompt for minutes before its first token.
TIMEOUT_S = 600


class LlamaCpp:
    """Replies of the model that the llama.cpp server at `url` runs, for a `TgiDouble`.

    The double counts and templates with that server too. Keep `max_total_tokens` within the
    server's window. Asking the server anything raises httpx's errors where it does not answer.
    """

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.vocabulary: Vocabulary = _ServerVocabulary(self._url, self._headers)

    def speak(self, prompt: str) -> Voice:
        """A reply, generated while it is read."""
        return _ServerVoice(self._url, self._headers, self.vocabulary)

    def take_back(self, voice: Voice) -> None:
        """Nothing: the next request is answered anew."""


class _ServerVoice:
    def __init__(self, url: str, headers: Mapping[str, str], vocabulary: Vocabulary) -> None:
        self._url = url
        self._headers = headers
        self._vocabulary = vocabulary

    async def tokens(
        self, inputs: str, limit: int, parameters: Mapping[str, Any]
    ) -> AsyncGenerator[Token, None]:
        body = {
            "prompt": inputs,
            "n_predict": limit,
            "stream": True,
            "cache_prompt": True,
            **_sampling(parameters),
        }
        said = 0
        async with aclosing(self._chunks(body)) as chunks:
            async for chunk in chunks:
                predicted = chunk.get("tokens_predicted", 0)
                ended = chunk.get("stop") is True
                last = None
                if not ended:
                    last = self._token(chunk)
                elif chunk.get("stop_type") == "eos":
                    last = self._vocabulary.end
                # Tokens that made up no whole character yet were not sent: only their number is
                # known.
                for _ in range(said + (last is not None), predicted):
                    said += 1
                    yield Token(self._vocabulary.end.id if last is None else last.id, "")
                if last is not None:
                    said += 1
                    yield last

    def _token(self, chunk: Mapping[str, Any]) -> Token:
        token_id = (chunk.get("tokens") or [0])[-1]
        is_special = token_id in self._vocabulary.special
        return Token(token_id, chunk.get("content", ""), is_special)

    async def _chunks(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        async with (
            httpx.AsyncClient(headers=self._headers, timeout=TIMEOUT_S, trust_env=False) as client,
            client.stream("POST", f"{self._url}/completion", json=dict(body)) as response,
        ):
            if response.is_error:
                found = (await response.aread()).decode(errors="replace")
                raise Refusal("generation", f"Request failed during generation: {found}")
            async for line in response.aiter_lines():
                name, _, data = line.partition(": ")
                if name == "error":
                    raise Refusal("generation", f"Request failed during generation: {data}")
                if name == "data" and data != "[DONE]":
                    chunk: dict[str, Any] = json.loads(data)
                    yield chunk


def _sampling(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """TGI's parameters by llama.cpp's names, with llama.cpp's own defaults switched off."""
    get = parameters.get
    temperature = get("temperature") or 1.0
    warps = temperature != 1.0 or any(get(name) for name in ("top_k", "top_p", "typical_p"))
    sampling: dict[str, Any] = {
        "temperature": temperature if get("do_sample") or warps else 0.0,
        "top_k": get("top_k") or 0,
        "top_p": get("top_p") or 1.0,
        "typical_p": get("typical_p") or 1.0,
        "min_p": 0.0,
        "repeat_penalty": get("repetition_penalty") or 1.0,
        "frequency_penalty": get("frequency_penalty") or 0.0,
    }
    seed: int | None = get("seed")
    if seed is not None:
        # llama.cpp's seeds have 32 bits.
        sampling["seed"] = seed % 2**32
    grammar = get("grammar")
    if grammar is not None:
        if grammar["type"] == "regex":
            raise Refusal("validation", "Input validation error: grammar is not supported")
        value = grammar["value"]
        sampling["json_schema"] = value["schema"] if grammar["type"] == "json_schema" else value
    return sampling


class _ServerVocabulary(Vocabulary):
    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._client = httpx.Client(
            base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False
        )
        weakref.finalize(self, self._client.close)
        text = str(self._ask("GET", "/props")["eos_token"])
        (place,) = self.places(text, add_special_tokens=False)
        self.end = Token(place.id, text, is_special=True)
        self.special = frozenset({place.id})

    def places(self, text: str, *, add_special_tokens: bool) -> list[Place]:
        body = {
            "content": text,
            "add_special": add_special_tokens,
            "parse_special": True,
            "with_pieces": True,
        }
        encoded = text.encode()
        places, at = [], 0
        for token in self._ask("POST", "/tokenize", body)["tokens"]:
            piece = token["piece"]
            content = piece.encode() if isinstance(piece, str) else bytes(piece)
            # A token that the model adds on its own stands nowhere in the text.
            stop = at + len(content) if encoded.startswith(content, at) else at
            places.append(Place(token["id"], _chars(encoded, at), _chars(encoded, stop, up=True)))
            at = stop
        return places

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> str:
        body: dict[str, Any] = {"messages": list(messages)}
        if tools:
            body["tools"] = list(tools)
        try:
            return str(self._ask("POST", "/apply-template", body)["prompt"])
        except httpx.HTTPStatusError as error:
            raise ValueError(error.response.text) from error

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        response = self._client.request(method, path, json=body)
        response.raise_for_status()
        return response.json()


def _chars(encoded: bytes, at: int, *, up: bool = False) -> int:
    """The character that byte `at` belongs to, or with `up` the end of the one it is in."""
    whole = len(encoded[:at].decode(errors="ignore"))
    is_inside = at < len(encoded) and encoded[at] & 0xC0 == 0x80
    return whole + 1 if up and is_inside else whole
