"""Measures a connected model for a diagnosis: a dozen requests with made-up text, none for long.

Each probe ends within a time limit, whatever the server does. What the measurements mean is told
by `models.diagnosing`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import random
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel

from qwenlong_graph.errors import ConnectionSetupError, QwenLongGraphError
from qwenlong_graph.models.calls import aask, ask
from qwenlong_graph.models.connect import connect
from qwenlong_graph.models.diagnosing import (
    Finding,
    Heard,
    Outlook,
    OutputFound,
    PromptFound,
    ReplyFound,
    ServerFound,
    StepFound,
    TemplateFound,
    TokenizerFound,
    Topic,
    failure_problem,
    noted_problem,
    outlook_of,
    outlook_problems,
    output_of,
    prompt_of,
    prompt_problems,
    reply_problems,
    step_problems,
    template_problems,
    thinking_of,
    thinking_problems,
    tokenizer_problems,
)
from qwenlong_graph.models.server import is_address
from qwenlong_graph.models.thoughts import thoughts_of
from qwenlong_graph.models.tokenizer import PROBE_TEXT
from qwenlong_graph.reading.loop import call_seed, start_state
from qwenlong_graph.reading.prompts import neutralise
from qwenlong_graph.reading.protocols import Chunk, protocol_named
from qwenlong_graph.reading.replies import BadReply

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage
    from langchain_core.outputs import LLMResult

    from qwenlong_graph.models.connect import ConnectedModel
    from qwenlong_graph.reading.budget import ReadingSettings
    from qwenlong_graph.reading.loop import Reply
    from qwenlong_graph.reading.protocols import ReadingTask
    from qwenlong_graph.types import Message

__all__ = ["PROBE_QUESTION", "Begins", "connect_within", "examine", "in_thread", "server_finding"]

Result = TypeVar("Result")
Begins = Callable[[str], None]
"""Told what goes on from now, as a phrase: "reading a long prompt"."""

PROBE_QUESTION = "Who signed the lease of the old mill, and in which year?"
"""The question of the trial step; budgets are made with it."""

_FACT = "The lease of the old mill was signed by Clara Jonsson in 1911."
_FACT_WORDS = ("Jonsson", "1911")
_SUM = "What is 2 + 3? Reply with the number only."
_COUNTING = "Count from 1 to 200, with a space between the numbers. Write nothing else."
_SYSTEM = "You are a calm and friendly clerk of a small harbour who keeps the records in order."
REPLY_TOKENS = 1_024
CUT_TOKENS = 12
OUTPUT_TOKENS = 128
CONTROL_STRINGS = 40
FACT_TOKENS = 24
SHORT_CHARS = 100
SHOWN_CHARS = 200
PILOT_TOKENS = 1_000
# The long prompt and the trial chunk are as long as the server reads in this time.
PROMPT_S = 20.0
TRIAL_CHUNK_TOKENS = 2_000
# Of the time limit of the trial step, the share that its output may take.
OUTPUT_SHARE = 0.6
# Loading a model into this process, or its download, takes as long as it takes; but not forever.
LOADING_S = 3_600.0


async def in_thread(work: Callable[[], Result]) -> Result:
    """What a blocking call gives. Nobody waits for its thread, not even the end of the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def settle(finish: Callable[[], None]) -> None:
        # After a timeout nobody listens any more, and after an interrupt there is no loop.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: None if done.done() else finish())

    def run() -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - raised again where it is awaited
            failure = error
            settle(lambda: done.set_exception(failure))
        else:
            settle(lambda: done.set_result(result))

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name="probe", daemon=True).start()
    return await done


async def connect_within(limit_s: float, target: str, **options: Any) -> ConnectedModel:
    """`connect(target, **options)`, given up after `limit_s` where the target is an address.

    Raises the `SetupError`s of `connect`.
    """
    limit_s = limit_s if is_address(target) else LOADING_S
    try:
        async with asyncio.timeout(limit_s):
            return await in_thread(lambda: connect(target, timeout_s=limit_s, **options))
    except TimeoutError as error:
        raise ConnectionSetupError(
            f"Connecting to {target}: what answers there did not say what it is within "
            f"{limit_s:g} s. Check that it is idle and not stuck, or give it more time."
        ) from error


def server_finding(model: ConnectedModel, *, url: str | None) -> Finding:
    """Who answers, with what `connect` noted; `url` is None for a model in this process."""
    version = model.version or None
    if version is None and model.engine == "transformers":
        version = metadata.version("transformers")
    found = ServerFound(
        url=url,
        engine=model.engine,
        version=version,
        model=model.model_name,
        window=model.window,
        concurrency=model.concurrency,
    )
    return Finding("server", found, tuple(map(noted_problem, model.notes)))


async def examine(
    model: ConnectedModel,
    task: ReadingTask,
    reading: ReadingSettings,
    *,
    limit_s: float,
    begins: Begins,
) -> AsyncGenerator[Finding, None]:
    """One finding after the other, from a first reply to the time for a million tokens.

    `limit_s` bounds each probe. Ends where a probe that is needed fails. Only failures of the
    model and its server become findings; other exceptions pass.
    """
    probes = _Probes(model, task, reading, limit_s=limit_s)
    # Topic, what it does, how, and whether there is no going on where it takes too long.
    plan: tuple[tuple[Topic, str, Callable[[], Awaitable[Finding]], bool], ...] = (
        ("reply", "asking for a first reply", probes.reply, True),
        ("tokenizer", "comparing token counts", probes.tokenizer, True),
        ("template", "looking at the chat template", probes.template, True),
        ("thinking", "looking at how it thinks", probes.thinking, True),
        ("prompt", "reading a long prompt twice", probes.prompt, False),
        ("output", "timing its output", probes.output, False),
        ("step", "reading a chunk as a reading would", probes.step, False),
    )
    for topic, doing, probe, is_needed in plan:
        begins(doing)
        try:
            async with asyncio.timeout(limit_s):
                finding = await probe()
        except (QwenLongGraphError, TimeoutError) as error:
            problem = failure_problem(error, doing=doing, limit_s=limit_s, is_needed=is_needed)
            yield Finding(topic, None, (problem,))
            if problem.severity == "stop":
                return
        else:
            yield finding
    outlook = probes.outlook()
    yield Finding("outlook", outlook, outlook_problems(outlook))


class _Probes:
    """The probes of one model; later ones use what earlier ones measured."""

    def __init__(
        self, model: ConnectedModel, task: ReadingTask, reading: ReadingSettings, *, limit_s: float
    ) -> None:
        self._model = model
        self._task = task
        self._reading = reading
        self._limit_s = limit_s
        self._protocol = protocol_named(reading.protocol)
        self._filler = _Filler()
        self._first: Heard | None = None
        # The time of a prompt of a few tokens; the first request may load things, so the least.
        self._base_s = math.inf
        self._frame_tokens = 0
        self._prompt: PromptFound | None = None
        self._output: OutputFound | None = None
        self._step: StepFound | None = None

    async def reply(self) -> Finding:
        """Does it answer, and end?"""
        heard = await self._heard(
            _user(_SUM), max_tokens=min(REPLY_TOKENS, self._model.window // 2)
        )
        self._first = heard
        thinking = thinking_of(heard, text_tokens=await self._counted(heard.text))
        found = ReplyFound(
            text=heard.answer[:SHOWN_CHARS],
            is_truncated=heard.is_truncated,
            output_tokens=heard.output_tokens,
            seconds=round(heard.seconds, 3),
        )
        return Finding("reply", found, reply_problems(found, thinking))

    async def tokenizer(self) -> Finding:
        """Are tokens counted here as there?"""
        short = "x"
        controls = neutralise(
            " ".join(self._model.special_tokens[:CONTROL_STRINGS]), self._model.special_tokens
        )
        # A letter at both ends: templates strip white space.
        counts = [
            await self._counted_twice(short, f"{short}\n{text}\nx")
            for text in (PROBE_TEXT, controls)
        ]
        found = TokenizerFound(
            here=counts[0][0],
            on_server=counts[0][1],
            controls_here=counts[1][0],
            controls_on_server=counts[1][1],
        )
        return Finding("tokenizer", found, tokenizer_problems(found))

    async def template(self) -> Finding:
        """What does the template add, and does it know system messages?"""
        messages = _user("x")
        plain = await self._brief(messages)
        tokens = None
        if plain.input_tokens:
            tokens = plain.input_tokens - await self._counted("x")
        system: Literal["accepted", "dropped", "refused", "unknown"]
        try:
            heard = await self._brief([{"role": "system", "content": _SYSTEM}, *messages])
        except QwenLongGraphError:
            # Engines refuse with all kinds of codes; where the plain message still works, it is
            # the system message.
            await self._brief(messages)
            system = "refused"
        else:
            system = "unknown"
            if heard.input_tokens and plain.input_tokens:
                expected = await self._counted(_SYSTEM) // 2
                added = heard.input_tokens - plain.input_tokens
                if added < expected:
                    # It may have taken the place of a system message that the template sends
                    # where there is none.
                    brief = await self._brief([{"role": "system", "content": "x"}, *messages])
                    added = heard.input_tokens - (brief.input_tokens or heard.input_tokens)
                system = "accepted" if added >= expected else "dropped"
        empty = self._chunk("")
        frame = self._protocol.update_messages(self._task, start_state(), empty)[0]["content"]
        self._frame_tokens = await self._counted(frame) + max(0, tokens or 0)
        found = TemplateFound(
            tokens=tokens, system=system, special_tokens=len(self._model.special_tokens)
        )
        foreseen = self._model.template_tokens
        return Finding("template", found, template_problems(found, foreseen_tokens=foreseen))

    async def thinking(self) -> Finding:
        """Does it think, and would a cut inside its thoughts be seen?"""
        first = self._first
        assert first is not None  # the first probe is needed
        text_tokens = await self._counted(first.text)
        found = thinking_of(first, text_tokens=text_tokens)
        if found.kind != "none":
            cut = await self._heard(_user(_SUM), max_tokens=CUT_TOKENS)
            found = thinking_of(first, text_tokens=text_tokens, cut=cut)
        return Finding("thinking", found, thinking_problems(found))

    async def prompt(self) -> Finding:
        """How fast is a prompt read, and is it read again when it comes again?"""
        budget, is_rewriting = self._task.budget, self._reading.protocol == "rewrite"
        memory_tokens = budget.memory_tokens + budget.plan_tokens if is_rewriting else 0
        step_tokens = self._frame_tokens + budget.chunk_tokens + memory_tokens
        pilot_tokens = min(PILOT_TOKENS, step_tokens)
        text, tokens = await self._text_of(pilot_tokens)
        pilot = await self._brief(_user(text))
        per_s = tokens / max(pilot.seconds - self._base_s, 0.001)
        goal_tokens = min(step_tokens, max(pilot_tokens, int(per_s * self._prompt_s)))
        text, tokens = await self._text_of(goal_tokens)
        first = await self._brief(_user(text))
        again = await self._brief(_user(text))
        found = prompt_of(
            first,
            again,
            tokens=tokens,
            step_tokens=step_tokens,
            base_s=min(self._base_s, first.seconds),
        )
        self._prompt = found
        return Finding("prompt", found, prompt_problems(found, engine=self._model.engine))

    async def output(self) -> Finding:
        """How fast is output written?"""
        heard = await self._heard(_user(_COUNTING), max_tokens=OUTPUT_TOKENS)
        self._output = output_of(heard, base_s=min(self._base_s, heard.seconds))
        return Finding("output", self._output)

    async def step(self) -> Finding:
        """Can the reply to a chunk be used?"""
        budget = self._task.budget
        input_per_s = self._prompt.tokens_per_s if self._prompt else None
        readable = int(input_per_s * self._prompt_s) if input_per_s else TRIAL_CHUNK_TOKENS
        half_tokens = min(budget.chunk_tokens, max(readable, 200)) // 2 - FACT_TOKENS
        before, after = [(await self._text_of(half_tokens))[0] for _ in range(2)]
        chunk = self._chunk(f"{before} {_FACT} {after}")
        output_per_s = self._output.tokens_per_s if self._output else None
        writable = (
            int(output_per_s * self._limit_s * OUTPUT_SHARE) if output_per_s else REPLY_TOKENS
        )
        max_tokens = min(budget.output_tokens, max(writable, 256))
        messages = self._protocol.update_messages(self._task, start_state(), chunk)
        heard = await self._heard(messages, max_tokens=max_tokens)
        has_more_room = max_tokens < budget.output_tokens and not heard.is_loop
        is_unfinished = heard.is_truncated and has_more_room
        self._step = await in_thread(lambda: self._taken(chunk, heard, is_unfinished=is_unfinished))
        return Finding("step", self._step, step_problems(self._step))

    def outlook(self) -> Outlook | None:
        """The time for a million tokens, as far as speeds were measured."""
        return outlook_of(
            self._task.budget,
            protocol=self._reading.protocol,
            frame_tokens=self._frame_tokens,
            prompt=self._prompt,
            output=self._output,
            step=self._step,
        )

    @property
    def _prompt_s(self) -> float:
        """The seconds that reading one long prompt may take."""
        return min(PROMPT_S, self._limit_s / 6)

    def _taken(self, chunk: Chunk, heard: Heard, *, is_unfinished: bool) -> StepFound:
        """The reply to the trial chunk, as a reading would take it; counting asks the server."""
        count = self._task.count_tokens
        written = heard.output_tokens or count(heard.text)
        memory, beside = "", 0
        reason = "it repeated itself without end" if heard.is_loop else ""
        if not reason and heard.is_thinking_cut:
            reason = "it ended inside its thoughts"
        try:
            state = self._protocol.apply_reply(
                self._task, start_state(), chunk, heard.answer, is_truncated=heard.is_truncated
            ).state
            memory = state["memory"]
            beside = max(0, written - count(memory) - count(state["plan"]))
        except BadReply as bad:
            reason = reason or bad.reason
        return StepFound(
            chunk_tokens=count(chunk.text),
            output_tokens=written,
            beside_memory=beside,
            seconds=round(heard.seconds, 3),
            outcome="unfinished" if is_unfinished else "unusable" if reason else "usable",
            reason=reason,
            is_fact_kept=all(word in memory for word in _FACT_WORDS),
        )

    def _chunk(self, text: str) -> Chunk:
        return Chunk(
            text=text, document=0, start_char=0, end_char=len(text), title="log", step=0, steps=32
        )

    async def _text_of(self, tokens: int) -> tuple[str, int]:
        """New made-up text of at most so many tokens, and how many it has."""
        sample = self._filler.text(4_000)
        chars = len(sample) * max(tokens, 16) / max(1, await self._counted(sample))
        while True:
            text = self._filler.text(int(chars * 0.97))
            found = await self._counted(text)
            if found <= max(tokens, 16) or len(text) < 200:
                return text, found
            chars *= 0.9

    async def _counted_twice(self, short: str, text: str) -> tuple[int, int | None]:
        """How many tokens `text` has more than `short`: counted here, and by the server."""
        here = await self._counted(text) - await self._counted(short)
        told = [(await self._brief(_user(sent))).input_tokens for sent in (short, text)]
        return here, None if None in told else (told[1] or 0) - (told[0] or 0)

    async def _brief(self, messages: Sequence[Message]) -> Heard:
        """A reply of one token: its time is the time of the prompt."""
        heard = await self._heard(messages, max_tokens=1)
        if len(messages[-1]["content"]) < SHORT_CHARS:
            self._base_s = min(self._base_s, heard.seconds)
        return heard

    async def _counted(self, text: str) -> int:
        return await in_thread(lambda: self._model.count_tokens(text)) if text else 0

    async def _heard(self, messages: Sequence[Message], *, max_tokens: int) -> Heard:
        from langsmith import tracing_context

        listener = _Listener()
        settings: dict[str, Any] = {
            "max_tokens": max_tokens,
            # As a reading sends them: what the server refuses of these shows here.
            "temperature": self._reading.temperature,
            "top_p": self._reading.top_p,
            "seed": call_seed(self._reading.seed, step=0, attempt=0),
            "config": {"callbacks": [listener]},
        }
        began = time.perf_counter()
        with tracing_context(enabled=False):
            if type(self._model.chat)._agenerate is BaseChatModel._agenerate:
                # LangChain would call it in a thread that the end of the process waits for.
                reply = await in_thread(lambda: ask(self._model, messages, **settings))
            else:
                reply = await aask(self._model, messages, **settings)
        return listener.heard(reply, seconds=time.perf_counter() - began)


class _Listener(BaseCallbackHandler):
    """Keeps the whole message of a reply, of which `ask` gives what a reading needs."""

    run_inline = True

    def __init__(self) -> None:
        self._message: AIMessage | None = None

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        """LangChain's."""
        self._message = getattr(response.generations[0][0], "message", None)

    def heard(self, reply: Reply, *, seconds: float) -> Heard:
        """The reply with what its message tells besides; a loop that was broken off has none."""
        message = self._message
        usage = message.usage_metadata if message else None
        return Heard(
            text=str(message.text) if message else reply.text,
            seconds=seconds,
            answer=reply.text,
            reasoning=thoughts_of(message) if message else "",
            is_truncated=reply.is_truncated,
            is_thinking_cut=reply.is_thinking_cut,
            is_loop=reply.is_loop,
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            reasoning_tokens=reply.reasoning_tokens,
            cached_tokens=usage.get("input_token_details", {}).get("cache_read") if usage else None,
        )


class _Filler:
    """Made-up text that no server has seen before, so that no cache knows it."""

    def __init__(self) -> None:
        self._random = random.Random(secrets.token_bytes(8))

    def text(self, chars: int) -> str:
        """Whole sentences, at most `chars` characters but for the first."""
        sentences = [self._sentence()]
        size = len(sentences[0])
        while size < chars:
            sentences.append(self._sentence())
            size += len(sentences[-1]) + 1
        return " ".join(sentences[:-1] or sentences)

    def _sentence(self) -> str:
        one = self._random.choice
        return (
            f"On day {self._random.randint(1, 999)} the {one(_SHIPS)} brought "
            f"{self._random.randint(2, 900)} {one(_CARGOES)} to {one(_HARBOURS)}, and {one(_ENDS)}."
        )


_SHIPS = "Albatross Bonaventure Curlew Dorothea Endeavour Fortuna Gannet Heron Isolde Juno".split()
_CARGOES = (
    "barrels of herring", "sacks of rye", "casks of tar", "bales of wool", "crates of tea",
    "planks of oak", "jars of oil", "rolls of sailcloth",
)  # fmt: skip
_HARBOURS = "Aalborg Bergen Cuxhaven Danzig Elsinore Falmouth Gdynia Hull Inverness".split()
_ENDS = (
    "the crew was paid in silver", "nobody came to the quay", "the pilot asked for more",
    "the ice held her for a week", "two of the hands stayed ashore", "the fog lifted at noon",
)  # fmt: skip


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]
