"""Break the server in every way it can break, and compare with a reading that nothing disturbed.

Run: python benchmarks/faults.py [--only PART ...] [--restart-s N] [--quick] [--json FILE]

The memory agent reads about 60 chunks with `ChatTGI` and SQLite checkpoints from the TGI double,
whose replies depend on nothing but the prompt. Each fault strikes at three points of a reading of
its own: an early, a middle and a late chunk, each of which holds a fact. Required after faults of
the transport: the same final state, and no request repeated but the open one. After bad replies:
the old memory, and an output that says so. After faults that no patience mends: an error, and the
same final state once the reading is resumed. In every case the reading must have told of it.

Then 64 documents are read at once with a limit of 8 requests. Ends with 1 if anything is wrong.
Columns are explained in `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any, TypeAlias

from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from machine import told_machine

from qwenlong_graph.errors import ModelError
from qwenlong_graph.graph.agent import DEFAULT_RETRY_POLICY, MemoryAgent, create_memory_agent
from qwenlong_graph.models.connect import COMMON_SPECIAL_TOKENS, ConnectedModel
from qwenlong_graph.models.tgi import ChatTGI
from qwenlong_graph.reading.budget import ReadingSettings
from qwenlong_graph.runs.checkpoints import open_checkpoints, open_sync_checkpoints
from qwenlong_graph.testing import tgi
from qwenlong_graph.testing.oracle import OracleChatModel
from qwenlong_graph.testing.tgi import TgiDouble, serve, small_tokenizer

CHUNKS, QUICK_CHUNKS = 60, 9
CLOSINGS, QUICK_CLOSINGS = 20, 2
RESTART_S, QUICK_RESTART_S = 60.0, 1.0
TOKEN_TIMEOUT_S, QUICK_TOKEN_TIMEOUT_S = 2.0, 1.0
# Output of more than 4,096 tokens is read as a stream, as with the sizes of real use.
CHUNK_TOKENS, MEMORY_TOKENS, OUTPUT_TOKENS, WINDOW = 200, 1024, 4200, 7168
# More failures in a row than any policy outlasts.
FOR_GOOD = 60

DOCUMENTS, LIMIT, SERVICE_S = 64, 8, 0.25
LOAD_CHUNKS, QUICK_LOAD_CHUNKS = 8, 2
QUICK_SERVICE_S = 0.05

FILLER = "The winter was long and the traders stayed away from the coast. "
QUESTION = "What was paid for the bridges?"
INSTRUCTIONS = "List every payment."  # given, so that no call is spent on finding them
PACKAGES = ("langgraph", "langgraph-checkpoint-sqlite", "langchain-core", "httpx", "uvicorn")

tokenizer = small_tokenizer()


def count_tokens(text: str) -> int:
    return len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def write_document(chunks: int) -> tuple[str, list[str]]:
    """A text of about so many chunks with a fact in every third, and the facts."""
    sentences = CHUNK_TOKENS // count_tokens(FILLER)
    facts, pieces = [], []
    for number in range(chunks):
        pieces.append(FILLER * sentences)
        if number % 3 == 1:
            facts.append(f"Hale paid {317_000 + 61 * number} crowns for bridge {number}.")
            pieces.append(facts[-1] + " ")
    return "".join(pieces), facts


# --- what goes wrong -----------------------------------------------------------------------------


Strikes: TypeAlias = Callable[[int, int], Mapping[Any, tgi.Fault]]


def nothing(number: int, events: int) -> Mapping[Any, tgi.Fault]:
    return {}


@dataclass(frozen=True)
class Trouble:
    """One fault. `faults` gives it for the double, from the open request's number and the events
    that its reply has; `replies` are what the model says wrongly from that request on.

    `expects`: "same" (transport: it heals by itself), "undisturbed" (nothing is even repeated),
    "stop" (an error, then a resume), "mended" (another reply is asked for), "kept" (none of the
    replies can be used, so the old memory stands).
    """

    name: str
    expects: str
    faults: Strikes = nothing
    replies: Sequence[str] = ()
    shrinks: bool = False
    """The server's limits fall below the open prompt until the reading is resumed."""
    leaves: int = 0
    """Streams that have to be left before their end."""


def once(fault: tgi.Fault) -> Strikes:
    return lambda number, events: {number: fault}


def midway(fault: Callable[[int], tgi.Fault]) -> Strikes:
    return lambda number, events: {number: fault(events // 2)}


def in_a_row(count: int, fault: tgi.Fault) -> Strikes:
    return lambda number, events: {range(number, number + count): fault}


def closing(place: int, places: int) -> Strikes:
    """The stream ends early, at one of so many places from its beginning to its final event."""
    return lambda number, events: {
        number: tgi.CloseAfter(events=round(place * (events - 1) / (places - 1)))
    }


# Neither ends, and only the first repeats itself.
LOOP = "<think>\n" + "Wait, let me check that again. " * 2_000
RAMBLE = " ".join(random.Random(0).choices(FILLER.replace(".", "").split(), k=4_000))
WITHOUT_END = f"<think>\n{RAMBLE}"
CUT_MEMORY = f"<memory>\n- {RAMBLE}"
NOTHING = "<memory>\n\n</memory>\n<plan>\n\n</plan>"
REFUSAL = "I am sorry, but I cannot help with that."


def troubles(*, restart_s: float, closings: int) -> list[Trouble]:
    def restart(events: int) -> tgi.Fault:
        return tgi.Restart(refuse_s=restart_s * 0.75, load_s=restart_s * 0.25, events=events)

    def overloaded(events: int) -> tgi.Fault:
        return tgi.ErrorEvent("overloaded", events)

    def out_of_memory(events: int) -> tgi.Fault:
        return tgi.ErrorEvent("generation", events)

    drip, pace = tgi.SlowDrip(0.0005, size=31), tgi.SlowDrip(0.001)
    return [
        Trouble("one 500", "same", once(tgi.Fail(500))),
        Trouble("six 503 in a row", "same", in_a_row(6, tgi.Fail(503))),
        Trouble("503, Retry-After 1 s", "same", once(tgi.Fail(503, retry_after_s=1))),
        Trouble("429", "same", once(tgi.Fail(429))),
        Trouble("429, Retry-After 1 s", "same", once(tgi.Fail(429, retry_after_s=1))),
        Trouble("overloaded, told midway", "same", midway(overloaded)),
        Trouble("424, out of memory", "same", once(tgi.Fail(424))),
        Trouble("out of memory, told midway", "same", midway(out_of_memory)),
        Trouble("502, a proxy's HTML", "same", once(tgi.BadGateway())),
        Trouble("no HTTP at all", "same", once(tgi.NotHttp())),
        Trouble("never answers", "same", once(tgi.NoAnswer())),
        Trouble("silent midway", "same", midway(tgi.Silence)),
        Trouble("comments only", "same", once(tgi.CommentsOnly())),
        Trouble("comments only, midway", "same", midway(tgi.CommentsOnly)),
        *(
            Trouble(f"early close, {closings} places", "same", closing(place, closings))
            for place in range(closings)
        ),
        Trouble("all but the final event", "same", once(tgi.NoFinalEvent())),
        Trouble("connection cut midway", "same", midway(tgi.CutAfter)),
        Trouble("garbage bytes", "same", once(tgi.Garbage())),
        Trouble("garbage bytes, midway", "same", midway(tgi.Garbage)),
        Trouble("ends inside a character", "same", midway(tgi.TruncatedUtf8)),
        Trouble("wrong JSON types", "same", once(tgi.WrongTypes())),
        Trouble("wrong JSON types, midway", "same", midway(tgi.WrongTypes)),
        Trouble(f"restart of {restart_s:g} s", "same", midway(restart)),
        Trouble("slow drip, by events", "undisturbed", once(tgi.SlowDrip(0.005))),
        Trouble("slow drip, 31 bytes each", "undisturbed", once(drip)),
        Trouble("422, refused", "stop", once(tgi.Fail(422))),
        Trouble("prompt above the limit", "stop", shrinks=True),
        Trouble("503 for good", "stop", in_a_row(FOR_GOOD, tgi.Fail(503))),
        # At a pace, so that there is something left to leave.
        Trouble("one thinking loop", "mended", once(pace), replies=[LOOP], leaves=1),
        Trouble("one cut while thinking", "mended", replies=[WITHOUT_END]),
        Trouble("one empty reply", "mended", replies=[""]),
        Trouble("one empty memory", "mended", replies=[NOTHING]),
        Trouble("one cut in its memory", "mended", replies=[CUT_MEMORY]),
        Trouble("one refusal", "mended", replies=[REFUSAL]),
        # The third is given more room, and may repeat itself for longer before it is called a loop.
        Trouble("thinking loops only", "kept", in_a_row(2, pace), replies=[LOOP] * 3, leaves=2),
        Trouble("all cut while thinking", "kept", replies=[WITHOUT_END] * 3),
        Trouble("empty replies only", "kept", replies=[""] * 3),
        Trouble("empty memories only", "kept", replies=[NOTHING] * 3),
        Trouble("all cut in their memory", "kept", replies=[CUT_MEMORY] * 3),
        Trouble("refusals only", "kept", replies=[REFUSAL] * 3),
    ]


# --- one reading -------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What a reading came to: its state, what it told, and the error that ended it, if any."""

    state: dict[str, Any] = field(default_factory=dict)
    told: list[dict[str, Any]] = field(default_factory=list)
    error: ModelError | None = None


class Reader:
    """Reads the same text again and again, from whatever server, with a folder for each reading."""

    def __init__(self, root: Path, text: str, *, token_timeout_s: float) -> None:
        self.root = root
        self.given = {
            "question": QUESTION,
            "instructions": INSTRUCTIONS,
            "documents": [Document(text, metadata={"title": "annals"})],
        }
        tokenizer.save_pretrained(root / "tokenizer")
        self._chat = ChatTGI(
            base_url="http://127.0.0.1:1",
            tokenizer=str(root / "tokenizer"),
            token_timeout_s=token_timeout_s,
        )

    def read(self, url: str, name: str, *, is_async: bool, resumes: bool = False) -> Outcome:
        """A reading from its beginning, or from where it stopped, to its end or an error."""
        outcome = Outcome()
        given = None if resumes else self.given
        run = self._aread(url, name, given, outcome) if is_async else None
        try:
            if run is None:
                self._read(url, name, given, outcome)
            else:
                asyncio.run(run)
        except ModelError as error:
            outcome.error = error
        return outcome

    def _read(self, url: str, name: str, given: Any, outcome: Outcome) -> None:
        with open_sync_checkpoints(self.root / f"{name}.sqlite") as saver:
            agent = self.agent(url, saver)
            try:
                for told in agent.stream(given, THREAD, stream_mode="custom", durability="sync"):
                    outcome.told.append(told)
            finally:
                outcome.state = agent.get_state(THREAD).values

    async def _aread(self, url: str, name: str, given: Any, outcome: Outcome) -> None:
        async with open_checkpoints(self.root / f"{name}.sqlite") as saver:
            agent = self.agent(url, saver)
            try:
                async for told in agent.astream(
                    given, THREAD, stream_mode="custom", durability="sync"
                ):
                    outcome.told.append(told)
            finally:
                outcome.state = (await agent.aget_state(THREAD)).values

    def agent(self, url: str, saver: Any) -> MemoryAgent:
        model = ConnectedModel(
            chat=self._chat.model_copy(update={"base_url": url}),
            window=WINDOW,
            count_tokens=count_tokens,
            special_tokens=COMMON_SPECIAL_TOKENS,
            engine="tgi",
            concurrency=LIMIT,
            model_name="double",
        )
        return create_memory_agent(
            model,
            settings=SETTINGS,
            checkpointer=saver,
            document_dir=self.root / "documents",
            retry_policy=RETRIES,
        )


# Patience with a tenth of the waits, so that a campaign ends; what is waited for is the same.
RETRIES = DEFAULT_RETRY_POLICY._replace(initial_interval=0.1, jitter=False)
THREAD: Any = {"configurable": {"thread_id": "1"}}
SETTINGS = ReadingSettings(
    strategy="memory",
    chunk_tokens=CHUNK_TOKENS,
    memory_tokens=MEMORY_TOKENS,
    output_tokens=OUTPUT_TOKENS,
)


# --- the campaign ------------------------------------------------------------------------------

SPEAK = Callable[[str], str]
ORDINARY = {"started", "chunk_read", "memory_updated", "finalizing", "answered"}


@dataclass(frozen=True)
class Point:
    """Where a fault strikes: the request for a chunk that holds a fact."""

    name: str
    step: int
    number: int
    events: int
    line: str
    span: tuple[int, int]


@dataclass
class Measured:
    """One fault at one point."""

    fault: str
    point: str
    mode: str
    expects: str
    told: dict[str, int]
    reasons: list[str]
    """Why replies were asked for again."""
    error: str | None
    repeated: int
    is_once_in_order: bool
    is_same_state: bool
    is_same_memory: bool
    is_kept: bool
    streams_left: int
    """Requests that the client left before their end."""
    seconds: float
    is_right: bool = False


class Campaign:
    """A fault-free reading, and what each fault makes of it."""

    def __init__(self, reader: Reader, speak: SPEAK) -> None:
        self.reader = reader
        self.speak = speak
        # The first warms up; the second takes the time, and shows that replies are deterministic.
        self.expected, _ = self._undisturbed("warm", is_async=False)
        began = time.monotonic()
        again, double = self._undisturbed("whole", is_async=True)
        self.seconds = time.monotonic() - began
        if again.state != self.expected.state:
            raise SystemExit("Two readings without a fault differ, so nothing can be compared.")
        self.requests = [request.body for request in double.requests]
        self.prompts = double.prompts

    def _undisturbed(self, name: str, *, is_async: bool) -> tuple[Outcome, TgiDouble]:
        double = TgiDouble(self.speak, tokenizer=tokenizer)
        with serve(double) as url:
            outcome = self.reader.read(url, name, is_async=is_async)
        if outcome.error is not None:
            raise outcome.error
        return outcome, double

    def points(self) -> list[Point]:
        """An early, a middle and a late chunk; the memory held something before each."""
        read = [told for told in self.expected.told if told["type"] == "chunk_read"]
        updated = [told for told in self.expected.told if told["type"] == "memory_updated"]
        found = [told for told in updated if told["lines_added"]][1:]
        places = {"early": found[0], "middle": found[len(found) // 2], "late": found[-1]}
        return [
            Point(
                name,
                step=told["step"],
                number=told["step"] + 1,
                events=count_tokens(self.speak(self.prompts[told["step"]])) + 1,
                line=told["lines_added"][0],
                span=(read[told["step"]]["start_char"], read[told["step"]]["end_char"]),
            )
            for name, told in places.items()
        ]

    def measure(self, trouble: Trouble, point: Point, name: str, *, is_async: bool) -> Measured:
        """Reads with the fault, resumes where that is expected, and compares."""
        double = self._double(trouble, point)
        began = time.monotonic()
        with serve(double) as url:
            outcome = self.reader.read(url, name, is_async=is_async)
            double.wait_idle()
        seconds = time.monotonic() - began - self.seconds
        requests = [request.body for request in double.requests]
        told = Counter(_kind(event) for event in outcome.told)
        stopped, error = outcome, outcome.error
        if error is not None:
            again = TgiDouble(self.speak, tokenizer=tokenizer)
            with serve(again) as url:
                outcome = self.reader.read(url, name, is_async=is_async, resumes=True)
            requests += [request.body for request in again.requests]
            told.update(_kind(event) for event in outcome.told)
        repeats = [i for i in range(1, len(requests)) if requests[i] == requests[i - 1]]
        once = [body for i, body in enumerate(requests) if i not in repeats]
        open_request = self.requests[point.number - 1]
        measured = Measured(
            fault=trouble.name,
            point=point.name,
            mode="async" if is_async else "sync",
            expects=trouble.expects,
            told={kind: count for kind, count in told.items() if kind not in ORDINARY},
            reasons=[event["reason"] for event in outcome.told if event["type"] == "retry"],
            error=None if error is None else type(error).__name__,
            repeated=len(repeats),
            is_once_in_order=once == self.requests
            and all(requests[i] == open_request for i in repeats),
            is_same_state=outcome.state == self.expected.state,
            is_same_memory=_read(outcome.state) == _read(self.expected.state),
            is_kept=self._is_kept(trouble, point, stopped),
            streams_left=double.cancelled,
            seconds=round(seconds, 2),
        )
        measured.is_right = (
            outcome.error is None
            and is_right(measured)
            and measured.streams_left >= trouble.leaves
            and all(measured.reasons)
        )
        return measured

    def _double(self, trouble: Trouble, point: Point) -> TgiDouble:
        wrong = {point.number + i: text for i, text in enumerate(trouble.replies)}

        def speak(prompt: str) -> str:
            number = len(double.requests)
            if trouble.shrinks and number == point.number - 1:
                # In force from the next request on.
                double.limits = replace(double.limits, max_input_tokens=CHUNK_TOKENS)
            return wrong[number] if number in wrong else self.speak(prompt)

        faults = trouble.faults(point.number, point.events)
        double = TgiDouble(speak, tokenizer=tokenizer, faults=faults)
        return double

    def _is_kept(self, trouble: Trouble, point: Point, outcome: Outcome) -> bool:
        """Whether the old memory stood where no reply could be used, and the output says so."""
        state = outcome.state
        if trouble.expects == "stop":
            held = [told for told in self.expected.told if told["type"] == "memory_updated"]
            lines = [line for told in held[: point.step] for line in told["lines_added"]]
            return bool(state["step"] == point.step and state["memory"].splitlines() == lines)
        if trouble.expects != "kept":
            return True
        lines = [line for line in self.expected.state["memory"].splitlines() if line != point.line]
        unread = [(span["start_char"], span["end_char"]) for span in state["usage"]["unread_spans"]]
        is_told = state["usage"]["unread"] == 1 and unread == [point.span]
        return bool(state["memory"].splitlines() == lines and is_told)


def _kind(told: Mapping[str, Any]) -> str:
    if told["type"] == "memory_updated" and told["reply"] == "kept":
        return "unread"
    return str(told["type"])


def _read(state: Mapping[str, Any]) -> dict[str, Any]:
    """What was read, and what was made of it; what it cost is left out."""
    return {name: value for name, value in state.items() if name not in {"usage", "messages"}}


def is_right(case: Measured) -> bool:
    """Whether a case came to what its fault may come to."""
    told = case.told
    match case.expects:
        case "same":
            return (
                case.is_same_state
                and case.is_once_in_order
                and case.repeated >= 1
                and case.error is None
                and {"server_failed"} <= told.keys() <= {"server_failed", "waiting_for_server"}
            )
        case "undisturbed":
            return case.is_same_state and case.is_once_in_order and not case.repeated and not told
        case "stop":
            return (
                case.error is not None
                and case.is_same_state
                and case.is_once_in_order
                and case.is_kept
            )
        case "mended":
            return case.is_same_memory and told == {"retry": 1} and case.error is None
        case "kept":
            return case.is_kept and told == {"retry": 2, "unread": 1} and case.error is None
    raise ValueError(case.expects)


def campaign(
    *, chunks: int, closings: int, restart_s: float, token_timeout_s: float, is_quick: bool
) -> dict[str, Any]:
    """The measures of every fault at every point; a line each is printed as it comes."""
    text, facts = write_document(chunks)
    answer = OracleChatModel(facts).replies

    def speak(prompt: str) -> str:
        return str(answer([HumanMessage(prompt)]))

    with tempfile.TemporaryDirectory() as directory:
        reader = Reader(Path(directory), text, token_timeout_s=token_timeout_s)
        told = Campaign(reader, speak)
        state = told.expected.state
        print(
            f"without a fault: {state['step']} chunks, {len(told.requests)} requests, "
            f"{len(state['evidence'])} quotes, {told.seconds:.1f} s"
        )
        print(HEADER)
        cases = []
        points = told.points()
        all_troubles = enumerate(troubles(restart_s=restart_s, closings=closings))
        for name, of_name in groupby(all_troubles, key=lambda pair: pair[1].name):
            found = []
            for index, trouble in of_name:
                for place in range(3):
                    if is_quick and place != index % 3:
                        continue
                    folder = f"{index}-{place}"
                    # Each fault meets both forms of every node.
                    is_async = (index + place) % 2 == 0
                    found.append(told.measure(trouble, points[place], folder, is_async=is_async))
            print(row(name, found), flush=True)
            for case in found:
                if not case.is_right:
                    print(f"  {case}", flush=True)
            cases += found
    return {
        "chunks": state["step"],
        "requests": len(told.requests),
        "seconds": round(told.seconds, 2),
        "cases": [asdict(case) for case in cases],
    }


HEADER = (
    "fault                       cases  repeated  "
    "told                                        memory      lost s    right"
)


def row(name: str, cases: Sequence[Measured]) -> str:
    """What the cases of one fault came to: the most of each count, and the longest time."""
    kinds = dict.fromkeys(kind for case in cases for kind in case.told)
    told = [f"{kind} {max(case.told.get(kind, 0) for case in cases)}" for kind in kinds]
    told += sorted({case.error for case in cases if case.error})
    memory = "same" if all(case.is_same_memory for case in cases) else "WRONG"
    if memory == "WRONG" and all(case.is_kept for case in cases):
        memory = "old stood"
    right = f"{sum(case.is_right for case in cases)} of {len(cases)}"
    return (
        f"{name:<28}{len(cases):>5}{max(case.repeated for case in cases):>10}  "
        f"{', '.join(told):<44}{memory:<12}{max(case.seconds for case in cases):>6.1f}{right:>9}"
    )


# --- many documents at once --------------------------------------------------------------------


class Turns(AsyncCallbackHandler):
    """How long one document waited between a reply and the beginning of its next request."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self._ended: float | None = None

    async def on_chat_model_start(self, *_: Any, **__: Any) -> None:
        if self._ended is not None:
            self.waits.append(time.monotonic() - self._ended)

    async def on_llm_end(self, *_: Any, **__: Any) -> None:
        self._ended = time.monotonic()


def serve_load(service_s: float) -> None:
    """Serves until a line comes in, then tells what was seen."""
    _, facts = write_document(QUICK_CHUNKS)
    answer = OracleChatModel(facts).replies
    double = TgiDouble(
        lambda prompt: str(answer([HumanMessage(prompt)])),
        tokenizer=tokenizer,
        first_token_s=service_s,
        batch_size=2 * DOCUMENTS,
    )
    with serve(double) as url:
        print(url, flush=True)
        sys.stdin.readline()
        seen = {"in_flight_max": double.in_flight_max, "requests": len(double.requests)}
        print(json.dumps(seen), flush=True)


@contextlib.contextmanager
def load_server(service_s: float) -> Iterator[tuple[str, Callable[[], dict[str, int]]]]:
    """A double in a process of its own: its address, and what ends it and tells what it saw."""
    with subprocess.Popen(
        [sys.executable, __file__, "--serve-load", str(service_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = process.stdout.readline().strip()

        def seen() -> dict[str, int]:
            told, _ = process.communicate("\n", timeout=60)
            found: dict[str, int] = json.loads(told)
            return found

        try:
            yield url, seen
        finally:
            process.kill()


async def load(*, chunks: int, service_s: float) -> dict[str, Any]:
    """Reads `DOCUMENTS` documents at once; the limit of requests is `LIMIT`."""
    text, _ = write_document(chunks)
    turns = [Turns() for _ in range(DOCUMENTS)]
    peaks: list[float] = []

    async def read(agent: MemoryAgent, number: int) -> None:
        document = Document(f"Book {number}. {text}", metadata={"title": f"book {number}"})
        config: Any = {
            "configurable": {"thread_id": str(number)},
            "callbacks": [turns[number]],
        }
        given = {"question": QUESTION, "instructions": INSTRUCTIONS, "documents": [document]}
        async for told in agent.astream(given, config, stream_mode="custom", durability="sync"):
            if told["type"] == "memory_updated":
                peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)  # noqa: PERF401

    with tempfile.TemporaryDirectory() as directory, load_server(service_s) as (url, seen):
        root = Path(directory)
        reader = Reader(root, text, token_timeout_s=60)
        began = time.monotonic()
        async with open_checkpoints(root / "load.sqlite") as saver:
            agent = reader.agent(url, saver)
            await asyncio.gather(*(read(agent, number) for number in range(DOCUMENTS)))
        seconds = time.monotonic() - began
        found = seen()
    waits = [wait for turn in turns for wait in turn.waits]
    return {
        "documents": DOCUMENTS,
        "limit": LIMIT,
        **found,
        "seconds": round(seconds, 1),
        "wait_mean_s": round(mean(waits), 3),
        "wait_longest_s": round(max(waits), 3),
        "peak_quarter_mb": round(peaks[len(peaks) // 4], 1),
        "peak_end_mb": round(peaks[-1], 1),
    }


def is_load_right(found: Mapping[str, Any]) -> bool:
    """Whether the limit held, nobody starved, and memory stayed flat."""
    return bool(
        found["in_flight_max"] <= LIMIT
        and found["wait_longest_s"] <= 2 * found["wait_mean_s"]
        and found["peak_end_mb"] <= 1.1 * found["peak_quarter_mb"]
    )


def told_of_load(found: Mapping[str, Any]) -> str:
    return (
        f"{found['documents']} documents at once, limit {found['limit']}: {found['requests']} "
        f"requests in {found['seconds']} s, at most {found['in_flight_max']} in flight; waited "
        f"{found['wait_mean_s']} s on average, {found['wait_longest_s']} s at most; peak memory "
        f"{found['peak_quarter_mb']} MB after a quarter, {found['peak_end_mb']} MB at the end: "
        f"{'right' if is_load_right(found) else 'NOT right'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("faults", "load"), help="only this part")
    parser.add_argument("--restart-s", type=float, help=f"how long a restart takes ({RESTART_S:g})")
    parser.add_argument("--quick", action="store_true", help="short readings, each fault once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also save the measures here")
    parser.add_argument("--serve-load", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_load is not None:
        serve_load(arguments.serve_load)
        return
    quick = arguments.quick
    machine, versions = told_machine(PACKAGES)
    saved: dict[str, Any] = {"machine": machine, "versions": versions}
    is_all_right = True
    # The load first: its peak of memory is to be its own.
    if arguments.only != "faults":
        found = asyncio.run(
            load(
                chunks=QUICK_LOAD_CHUNKS if quick else LOAD_CHUNKS,
                service_s=QUICK_SERVICE_S if quick else SERVICE_S,
            )
        )
        print(told_of_load(found))
        saved["load"] = found
        is_all_right = is_load_right(found)
    if arguments.only != "load":
        measures = campaign(
            chunks=QUICK_CHUNKS if quick else CHUNKS,
            closings=QUICK_CLOSINGS if quick else CLOSINGS,
            restart_s=arguments.restart_s or (QUICK_RESTART_S if quick else RESTART_S),
            token_timeout_s=QUICK_TOKEN_TIMEOUT_S if quick else TOKEN_TIMEOUT_S,
            is_quick=quick,
        )
        cases = measures["cases"]
        right = sum(case["is_right"] for case in cases)
        print(f"{right} of {len(cases)} right")
        saved |= measures
        is_all_right = is_all_right and right == len(cases)
    if arguments.json:
        arguments.json.write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
    sys.exit(not is_all_right)


if __name__ == "__main__":
    main()
