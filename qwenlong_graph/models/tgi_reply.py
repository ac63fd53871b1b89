"""How one reply comes about, without any I/O: which requests it takes, what their tokens mean.

A grammar binds from the first token it is sent with, and so do stop texts. A model that thinks
first is therefore asked twice where either is wanted: once until `</think>`, and then, with the
thoughts as part of the prompt, for the bound rest. A tool call is asked for in parts: the model is
free until it writes `<tool_call>`, then a JSON grammar holds it to one of the tools and to that
tool's parameters. The server's prefix cache makes the repeated prompt cheap.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from qwenlong_graph.errors import MalformedReplyError
from qwenlong_graph.models.tgi_prompt import (
    CALL_CLOSE,
    CALL_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
    Prompt,
)
from qwenlong_graph.models.tgi_wire import Final, TokenEvent

__all__ = ["Piece", "Reply", "Step", "Wanted"]

# What TGI accepts by default (`--max-stop-sequences`); further stop texts are watched for here.
STOPS_SENT_MAX = 4
CALLS_MAX = 16


class Piece(NamedTuple):
    """A part of the reply: "call" begins a tool call with its name, "arguments" adds to it."""

    kind: Literal["reasoning", "text", "call", "arguments"]
    text: str


@dataclass(frozen=True)
class Wanted:
    """What is asked of a reply. `parameters` are those of TGI's `GenerateParameters`.

    `grammar` is the JSON schema of the whole answer. `tools` maps names to the schemas of their
    parameters; with `must_call` the reply is one call of one of them.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    grammar: Mapping[str, Any] | None = None
    tools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    must_call: bool = False
    one_call: bool = False


class Step:
    """One request of a reply, and the reader of its tokens.

    Feed it the events of the request; `is_settled` says that the rest of them is not needed.
    """

    def __init__(
        self,
        prompt: str,
        reader: _Reader,
        *,
        parameters: Mapping[str, Any],
        max_tokens: int | None,
        stop: Sequence[str] = (),
        grammar: Mapping[str, Any] | None = None,
    ) -> None:
        self._reader = reader
        self._texts: list[str] = []
        self.tokens = 0
        self.final: Final | None = None
        self.body: dict[str, Any] = {
            "inputs": prompt,
            "parameters": {
                **parameters,
                **({} if max_tokens is None else {"max_new_tokens": max_tokens}),
                **({"stop": list(stop[:STOPS_SENT_MAX])} if stop else {}),
                **({"grammar": {"type": "json", "value": grammar}} if grammar else {}),
                "details": True,
            },
        }

    def feed(self, event: TokenEvent) -> list[Piece]:
        """What this token adds to the reply."""
        self.tokens += 1
        text, self.final = event
        pieces = self._reader.read(text, self.tokens) if text else []
        if text:
            self._texts.append(text)
        if self.final is not None:
            if self.final.generated_tokens is not None:
                self.tokens = self.final.generated_tokens
            pieces += self._reader.end()
        return pieces

    def feed_all(self, events: Iterable[TokenEvent]) -> list[Piece]:
        """What these tokens add, up to the one that settles the reply."""
        pieces: list[Piece] = []
        for event in events:
            pieces += self.feed(event)
            if self.is_settled:
                break
        return pieces

    @property
    def text(self) -> str:
        """All that was generated, whatever it means."""
        return "".join(self._texts)

    @property
    def is_settled(self) -> bool:
        """Whether the reader has all it wants."""
        return self._reader.is_settled

    @property
    def thinking_tokens(self) -> int:
        """How many of the tokens are thoughts, with their tags."""
        return self._reader.thinking_tokens

    @property
    def finish_reason(self) -> str | None:
        """Why this request ended, in TGI's words."""
        if self._reader.stopped_at:
            return "stop_sequence"
        return self.final.finish_reason if self.final else None


class Reply:
    """One reply in the making.

    Take each step of `steps`, send its body, feed it the events, then go on; a generator that is
    advanced reads what the step has got. `finish_reason` is that of the last request, None where
    the last was not ended by the server.
    """

    def __init__(self, prompt: Prompt, wanted: Wanted) -> None:
        self.prompt = prompt
        self._wanted = wanted
        self.input_tokens: int | None = None
        self.output_tokens = 0
        self.thinking_tokens = 0
        self.finish_reason: str | None = None
        self.is_thinking_cut = False

    def steps(self) -> Iterator[Step]:
        """The requests, one after the other."""
        wanted, prompt = self._wanted, self.prompt.text
        is_open = self.prompt.thinking == "open"
        is_bound = bool(wanted.grammar is not None or wanted.tools or wanted.stop)
        if not is_bound:
            thoughts = _Thoughts(is_open=is_open)
            yield from self._taken(prompt, thoughts)
            self.is_thinking_cut = thoughts.is_inside
            return
        has_thought = False
        if self.prompt.thinking != "none":
            thoughts = _Thoughts(is_open=is_open, is_all=True)
            step = self._step(prompt, thoughts, stop=[THINK_CLOSE])
            yield step
            # A model that begins with its answer is asked again, bound from the start.
            if thoughts.is_inside or thoughts.is_closed:
                self._add(step)
                self.is_thinking_cut = thoughts.is_inside
                if thoughts.is_inside or self._is_spent():
                    return
                prompt += step.text.partition(THINK_CLOSE)[0] + THINK_CLOSE
                has_thought = True
        if wanted.grammar is not None:
            gap = "\n\n" if has_thought else ""
            yield from self._taken(prompt + gap, _Raw("text"), grammar=wanted.grammar)
        elif wanted.must_call:
            gap = "\n\n" if has_thought else ""
            yield from self._call(prompt + gap + CALL_OPEN)
        else:
            yield from self._free(prompt, has_thought)

    def _free(self, prompt: str, has_thought: bool) -> Iterator[Step]:
        """Free text up to a stop text, and tool calls where the model opens them."""
        wanted = self._wanted
        stop = [CALL_OPEN, *wanted.stop] if wanted.tools else list(wanted.stop)
        for number in range(CALLS_MAX):
            reader = _Stops(stop, skips_space=has_thought or number > 0)
            step = self._step(prompt, reader, stop=stop)
            yield step
            self._add(step)
            if not wanted.tools or reader.stopped_at != CALL_OPEN or self._is_spent():
                return
            before = step.text.partition(CALL_OPEN)[0]
            continued = yield from self._call(prompt + before + CALL_OPEN)
            if continued is None or wanted.one_call or self._is_spent():
                return
            prompt = continued

    def _call(self, prompt: str) -> Generator[Step, None, str | None]:
        """One tool call; gives the prompt that goes on after it, None where it was cut."""
        tools = self._wanted.tools
        name = next(iter(tools))
        if len(tools) > 1:
            step = self._step(prompt + "\n", _Raw(None), grammar=_choice_of(tools))
            yield step
            self._add(step)
            if self.finish_reason == "length":
                return None
            name = _chosen(step.text, tools)
            if self._is_spent():
                return None
        head = f'\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments":'
        step = self._step(
            prompt + head, _Raw("arguments", first=Piece("call", name)), grammar=tools[name]
        )
        yield step
        self._add(step)
        if self.finish_reason == "length":
            return None
        return f"{prompt}{head} {step.text}}}\n{CALL_CLOSE}"

    def _taken(
        self, prompt: str, reader: _Reader, grammar: Mapping[str, Any] | None = None
    ) -> Iterator[Step]:
        step = self._step(prompt, reader, grammar=grammar)
        yield step
        self._add(step)

    def _step(
        self,
        prompt: str,
        reader: _Reader,
        *,
        stop: Sequence[str] = (),
        grammar: Mapping[str, Any] | None = None,
    ) -> Step:
        left = self._wanted.max_tokens
        return Step(
            prompt,
            reader,
            parameters=self._wanted.parameters,
            max_tokens=None if left is None else left - self.output_tokens,
            stop=stop,
            grammar=grammar,
        )

    def _add(self, step: Step) -> None:
        if self.input_tokens is None and step.final is not None:
            self.input_tokens = step.final.input_tokens
        self.thinking_tokens += step.thinking_tokens
        self.output_tokens += step.tokens
        self.finish_reason = step.finish_reason

    def _is_spent(self) -> bool:
        """Whether no token is left for another request; the reply then ended for its length."""
        limit = self._wanted.max_tokens
        if limit is None or self.output_tokens < limit:
            return False
        self.finish_reason = "length"
        return True


def _choice_of(tools: Mapping[str, object]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"type": "string", "enum": list(tools)}},
        "required": ["name"],
    }


def _chosen(text: str, tools: Mapping[str, object]) -> str:
    try:
        name = json.loads(text)["name"]
    except (ValueError, TypeError, KeyError):
        name = None
    if not isinstance(name, str) or name not in tools:
        raise MalformedReplyError(
            "Asking the model for a tool call: the server did not hold its reply to the grammar "
            "sent with it. Check that TGI was started without --disable-grammar-support."
        )
    return name


class _Reader:
    """Says what tokens mean. `count` is the number of tokens so far, this one included."""

    is_settled = False
    stopped_at = ""
    thinking_tokens = 0

    def read(self, text: str, count: int) -> list[Piece]:
        raise NotImplementedError

    def end(self) -> list[Piece]:
        return []


class _Raw(_Reader):
    """All text is of one kind, or of no interest; `first` comes before it."""

    def __init__(
        self, kind: Literal["text", "arguments"] | None, *, first: Piece | None = None
    ) -> None:
        self._kind = kind
        self._first = first

    def read(self, text: str, count: int) -> list[Piece]:
        if self._kind is None:
            return []
        return [*self.end(), Piece(self._kind, text)]

    def end(self) -> list[Piece]:
        first, self._first = self._first, None
        return [first] if first else []


class _Stops(_Reader):
    """Free text up to the first stop text, which is left out, wherever in a token it stands."""

    def __init__(self, stop: Sequence[str], *, skips_space: bool) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self._skips_space = skips_space

    def read(self, text: str, count: int) -> list[Piece]:
        held = self._held + text
        found = [(place, stop) for stop in self._stop if (place := held.find(stop)) >= 0]
        if found:
            place, self.stopped_at = min(found)
            self.is_settled = True
            self._held = ""
            return self._shown(held[:place])
        keep = max(_open_ending(held, stop) for stop in self._stop)
        self._held = held[len(held) - keep :]
        return self._shown(held[: len(held) - keep])

    def end(self) -> list[Piece]:
        held, self._held = self._held, ""
        return self._shown(held)

    def _shown(self, text: str) -> list[Piece]:
        if self._skips_space:
            text = text.lstrip()
        if not text:
            return []
        self._skips_space = False
        return [Piece("text", text)]


class _Thoughts(_Reader):
    """Tells thoughts from the answer; `is_all` says that thoughts are all that is wanted.

    Thoughts end at the first `</think>`. Where one comes without an opening tag, the text before
    it has been given as text already; its tokens are counted as thoughts all the same.
    """

    def __init__(self, *, is_open: bool, is_all: bool = False) -> None:
        self._is_all = is_all
        self._held = ""
        self._is_undecided = not is_open
        self._skips_space = True
        self.is_inside = is_open
        self.is_closed = False

    def read(self, text: str, count: int) -> list[Piece]:
        if self._is_undecided:
            text = self._held + text
            begun = text.lstrip()
            if THINK_OPEN.startswith(begun):
                if begun != THINK_OPEN:
                    self._held = text
                    return []
            elif not begun.startswith(THINK_OPEN):
                self._is_undecided = False
                self._held, self._skips_space = "", False
                self.is_settled = self._is_all
                return [] if self._is_all else [Piece("text", text)]
            self._is_undecided = False
            self.is_inside = True
            self._held, text = "", begun[len(THINK_OPEN) :]
        if not self.is_inside:
            if THINK_CLOSE in text:
                self.thinking_tokens = count
            if not self._skips_space:  # nearly every token, so the short way
                return [Piece("text", text)]
            return self._shown("text", text)
        self.thinking_tokens = count
        text = self._held + text
        before, close, after = text.partition(THINK_CLOSE)
        if not close:
            keep = _open_ending(text, THINK_CLOSE)
            self._held = text[len(text) - keep :]
            return self._shown("reasoning", text[: len(text) - keep])
        pieces = self._shown("reasoning", before)
        self._held = ""
        self._skips_space = True
        self.is_inside, self.is_closed = False, True
        self.is_settled = self._is_all
        return pieces if self._is_all else pieces + self._shown("text", after)

    def end(self) -> list[Piece]:
        held, self._held = self._held, ""
        if self._is_undecided:
            return [Piece("text", held)] if held and not self._is_all else []
        return self._shown("reasoning" if self.is_inside else "text", held)

    def _shown(self, kind: Literal["reasoning", "text"], text: str) -> list[Piece]:
        if self._skips_space:
            text = text.lstrip()
        if not text:
            return []
        self._skips_space = False
        return [Piece(kind, text)]


def _open_ending(text: str, sought: str) -> int:
    """How many characters at the end of `text` may be the beginning of `sought`."""
    for size in range(min(len(text), len(sought) - 1), 0, -1):
        if text.endswith(sought[:size]):
            return size
    return 0
