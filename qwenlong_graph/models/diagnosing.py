"""What measurements of a model mean for a reading: problems with their remedies, and the time.

Values in, values out; `models.probing` does the measuring. A problem is a "stop" where a reading
would not get through or its answers could not be trusted, a "warning" where it would suffer, and a
"note" where one should only know.
"""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qwenlong_graph.errors import (
    ContextOverflowError,
    ModelUnavailableError,
    QwenLongGraphError,
    SetupError,
)
from qwenlong_graph.reading.budget import (
    FILLED_SHARE,
    SLACK_SHARE,
    TEMPLATE_TOKENS_MIN,
    Budget,
)

__all__ = [
    "MILLION",
    "Finding",
    "Heard",
    "Measured",
    "Outlook",
    "OutputFound",
    "Problem",
    "PromptFound",
    "ReplyFound",
    "ServerFound",
    "StepFound",
    "TemplateFound",
    "ThinkingFound",
    "TokenizerFound",
    "Topic",
    "connection_problem",
    "failure_problem",
    "noted_problem",
    "outlook_of",
    "outlook_problems",
    "output_of",
    "prompt_of",
    "prompt_problems",
    "reply_problems",
    "step_problems",
    "stopping_code",
    "template_problems",
    "thinking_of",
    "thinking_problems",
    "tokenizer_problems",
]

MILLION = 1_000_000
# Nobody's reply to a sum ends so late.
HIDDEN_TOKENS_MIN = 16
CACHED_RATIO, UNCACHED_RATIO = 0.5, 0.8
# Shorter times say more about the network than about the prompt.
MEASURABLE_S = 0.05
OUTPUT_TOKENS_MIN = 16
LONG_HOURS = 24

Topic = Literal[
    "server", "budget", "reply", "tokenizer", "template", "thinking", "prompt", "output", "step",
    "outlook",
]  # fmt: skip
Severity = Literal["note", "warning", "stop"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong and what to do; a "stop" has the exit code of a reading that meets it."""

    severity: Severity
    found: str
    remedy: str
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class Heard:
    """One reply as it came; counts are the server's own, None where it reports none.

    `text` is all of it that is no field apart, tags included, and `reasoning` what came in such a
    field; `answer` is what a reading makes of both.
    """

    text: str
    seconds: float
    answer: str = ""
    reasoning: str = ""
    is_truncated: bool = False
    is_thinking_cut: bool = False
    is_loop: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class ServerFound:
    """Who answers. `url` is None for a model inside this process without a server."""

    url: str | None
    engine: str
    version: str | None
    model: str
    window: int
    concurrency: int


@dataclass(frozen=True, kw_only=True)
class ReplyFound:
    """The reply to a small sum, its beginning only."""

    text: str
    is_truncated: bool
    output_tokens: int | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TokenizerFound:
    """One text counted here, and in a prompt by the server (None where it reports no counts).

    The first text has odd characters, the second the model's control strings, neutralised.
    """

    here: int
    on_server: int | None
    controls_here: int
    controls_on_server: int | None


@dataclass(frozen=True, kw_only=True)
class TemplateFound:
    """`tokens` is what the template adds to one user message."""

    tokens: int | None
    system: Literal["accepted", "dropped", "refused", "unknown"]
    special_tokens: int


@dataclass(frozen=True, kw_only=True)
class ThinkingFound:
    """Whether the model thinks, where its thoughts are, and how a cut inside them looks.

    `kind`: "none"; "separated" (apart from the text); "tagged" (in the text, both tags);
    "unopened" (in the text, the template holds the opening tag); "hidden" (counted, not shown);
    "unknown" (the reply never ended). `cut` is None where there was nothing to cut.
    """

    kind: Literal["none", "separated", "tagged", "unopened", "hidden", "unknown"]
    tokens: int | None
    cut: Literal["shown", "not shown"] | None


@dataclass(frozen=True, kw_only=True)
class PromptFound:
    """One long prompt sent twice, with one token of output each.

    `base_s` is the time of a prompt of a few tokens. `ratio` is the second time by the first,
    both without it. A step of a reading sends up to `step_tokens`.
    """

    tokens: int
    tokens_on_server: int | None
    step_tokens: int
    first_s: float
    again_s: float
    base_s: float
    ratio: float | None
    tokens_per_s: float | None
    caching: Literal["on", "off", "unclear"]


@dataclass(frozen=True, kw_only=True)
class OutputFound:
    """A reply long enough to time; `tokens_per_s` is None where it was not."""

    tokens: int | None
    seconds: float
    tokens_per_s: float | None


@dataclass(frozen=True, kw_only=True)
class StepFound:
    """One chunk read as a reading does it, with one fact planted in it.

    `beside_memory` are tokens of output that are neither memory nor plan: thoughts, mostly.
    """

    chunk_tokens: int
    output_tokens: int
    beside_memory: int
    seconds: float
    outcome: Literal["usable", "unusable", "unfinished"]
    reason: str
    is_fact_kept: bool


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """A million tokens read chunk by chunk.

    `hours` is with a memory that is half full all the time, `hours_at_most` with a full one;
    under "extract" they are the same.
    """

    chunks: int
    seconds_per_chunk: float
    hours: float
    hours_at_most: float


Measured = (
    ServerFound
    | Budget
    | ReplyFound
    | TokenizerFound
    | TemplateFound
    | ThinkingFound
    | PromptFound
    | OutputFound
    | StepFound
    | Outlook
)


@dataclass(frozen=True)
class Finding:
    """What came out about one topic; nothing was measured where `measured` is None."""

    topic: Topic
    measured: Measured | None
    problems: tuple[Problem, ...] = ()


def stopping_code(findings: list[Finding]) -> int:
    """That of the first problem that stops a reading; 0 where none does."""
    stops = (p.exit_code for f in findings for p in f.problems if p.severity == "stop")
    return next(stops, 0)


# --- failures ---


def connection_problem(error: QwenLongGraphError) -> Problem:
    """Why no model can be had; what lies below the error tells more than its class."""
    found, _, remedy = str(error).partition(". ")
    hint = next(_connection_hints(error), "")
    return Problem(
        severity="stop",
        found=f"{found.removesuffix('.')}.",
        remedy=hint
        or _in_options(remedy)
        or "Start the server first: docs/serving.md has the commands for each engine.",
        exit_code=error.exit_code,
    )


def _connection_hints(error: BaseException) -> Iterator[str]:
    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        yield "The name of the host is not known here: check its spelling."
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        yield (
            "Nothing listens on that port: start the server (docs/serving.md has the commands), "
            "or correct the port."
        )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _in_options(remedy: str) -> str:
    """Names arguments as the command line does."""
    return re.sub(r"\b(as|[Pp]ass) model\b", r"\1 model (--served-model)", remedy)


def noted_problem(note: str) -> Problem:
    """A note of `connect` as a problem: what it found, then what to do."""
    found, _, remedy = note.partition(". ")
    return Problem(severity="note", found=f"{found.removesuffix('.')}.", remedy=remedy)


def failure_problem(
    error: QwenLongGraphError | TimeoutError, *, doing: str, limit_s: float, is_needed: bool
) -> Problem:
    """What a failure of one probe means; `doing` says what was going on.

    Where the probe is not needed, a server that is too slow for it is only warned of.
    """
    if isinstance(error, TimeoutError):
        return Problem(
            severity="stop" if is_needed else "warning",
            found=f"There was no end after {limit_s:g} s of {doing}.",
            remedy="Check that the server is idle and not stuck, and that the model is on the "
            "card; or give it more time with --timeout.",
            exit_code=ModelUnavailableError.exit_code if is_needed else 0,
        )
    if isinstance(error, ContextOverflowError):
        return Problem(
            severity="stop",
            found=f"The server takes less than the window it told, seen while {doing}.",
            remedy="Start it with a larger context, or pass a smaller one with --window.",
            exit_code=SetupError.exit_code,
        )
    found, _, remedy = str(error).partition(". ")
    if isinstance(error, ModelUnavailableError):
        remedy += " The server's log says more; out of memory is the usual cause."
    return Problem(
        severity="stop",
        found=f"While {doing}: {found.removesuffix('.')}.",
        remedy=_in_options(remedy).strip() or "Mend what it says, and try again.",
        exit_code=error.exit_code,
    )


# --- what was measured ---


def thinking_of(heard: Heard, *, text_tokens: int, cut: Heard | None = None) -> ThinkingFound:
    """Where the thoughts of a reply are; `cut` is the same call with room for a few tokens.

    `text_tokens` is the reply's text counted here.
    """
    text, output = heard.text, heard.output_tokens
    surplus = output - text_tokens if output is not None else 0
    tokens = heard.reasoning_tokens
    kind: Literal["none", "separated", "tagged", "unopened", "hidden", "unknown"]
    if heard.reasoning:
        kind, tokens = "separated", tokens or max(0, surplus)
    elif tokens or surplus > HIDDEN_TOKENS_MIN:
        kind, tokens = "hidden", tokens or surplus
    elif _OPEN.match(text):
        kind = "tagged"
    elif _CLOSE.search(text):
        kind = "unopened"
    else:
        kind, tokens = ("unknown" if heard.is_truncated else "none"), 0
    if kind in {"tagged", "unopened"} and output is not None:
        # The text holds both, so its share of characters has to do.
        tokens = round(output * len(text.rpartition("</")[0] or text) / max(1, len(text)))
    return ThinkingFound(kind=kind, tokens=tokens, cut=_cut_of(cut, kind) if cut else None)


_OPEN = re.compile(r"\s*<\s*think\s*>", re.IGNORECASE)
_CLOSE = re.compile(r"<\s*/\s*think\s*>", re.IGNORECASE)


def _cut_of(cut: Heard, kind: str) -> Literal["shown", "not shown"] | None:
    is_closed = _CLOSE.search(cut.text) is not None
    if cut.is_truncated or cut.is_thinking_cut:
        return "shown"
    # Where the answer came too, there was nothing to cut.
    has_answer = is_closed or (kind in {"separated", "hidden"} and cut.text.strip())
    return None if has_answer else "not shown"


def reply_problems(reply: ReplyFound, thinking: ThinkingFound) -> tuple[Problem, ...]:
    """Whether the model answers at all, and ends."""
    if reply.is_truncated and thinking.kind == "unknown":
        return (
            _stop(
                f"The reply to a small sum had no end within {reply.output_tokens or 'all its'} "
                "tokens: this looks like a base model, or like a wrong chat template.",
                "Use the chat or instruct version of the model, with its own template (llama.cpp: "
                "--jinja).",
            ),
        )
    if reply.is_truncated:
        return (
            _warning(
                "The model was still thinking about a small sum when its tokens were used up.",
                "Check the quantisation (4-bit builds are said to loop more often), and that the "
                "temperature is not 0.",
            ),
        )
    if not reply.text.strip():
        return (
            _stop(
                "The model answered a small sum with nothing.",
                "Check that the model has a chat template, and that no reasoning parser of the "
                "server takes the whole reply for thoughts.",
            ),
        )
    if "5" not in reply.text and "five" not in reply.text.lower():
        return (
            Problem(
                severity="note",
                found="The model did not answer 2 + 3 with 5.",
                remedy="If it is no very small model, check its file, its quantisation and its "
                "chat template.",
            ),
        )
    return ()


def tokenizer_problems(found: TokenizerFound) -> tuple[Problem, ...]:
    """Whether the counts that budgets are made of are the server's."""
    if found.on_server is None or (found.on_server == 0 and found.here > 0):
        return (
            _warning(
                "The server reports no token counts to compare with.",
                "Leave room: pass a window some percent below the real one with --window.",
            ),
        )
    if not _agree(found.here, found.on_server):
        return (
            _stop(
                f"The tokenizers disagree: a text of odd characters has {found.here:,} tokens "
                f"here and {found.on_server:,} on the server, so chunks would not fit as counted.",
                "Use the tokenizer of the very model that is served: its folder or hub id, and "
                "the same version of it.",
            ),
        )
    on_server = found.controls_on_server
    if on_server is not None and not _agree(found.controls_here, on_server):
        return (
            _warning(
                f"Control strings count {found.controls_here:,} tokens here and {on_server:,} on "
                "the server after they were made harmless: one of them may still be obeyed.",
                "Report it with the name of the model. Until then do not read documents from "
                "people you do not trust with it.",
            ),
        )
    return ()


def _agree(here: int, on_server: int) -> bool:
    return abs(here - on_server) <= max(1, int(here * SLACK_SHARE))


def template_problems(found: TemplateFound, *, foreseen_tokens: int = 0) -> tuple[Problem, ...]:
    """Whether there is a chat template, and whether the budget has room for it.

    `foreseen_tokens` is what the connected model told about it.
    """
    room = max(TEMPLATE_TOKENS_MIN, foreseen_tokens)
    problems = []
    if found.tokens is not None and found.tokens <= 1:
        problems.append(
            _stop(
                f"The server adds {max(0, found.tokens)} tokens to a message: it applies no chat "
                "template, so the model takes the prompt for a text to go on with.",
                "Use the chat or instruct version of the model, or give the server its template "
                "(vLLM, SGLang: --chat-template; llama.cpp: --jinja --chat-template-file).",
            )
        )
    if found.tokens is not None and found.tokens > room:
        problems.append(
            _warning(
                f"The template adds {found.tokens} tokens to each message, and budgets foresee "
                f"{room}.",
                f"Pass a --window that is smaller by {found.tokens - room}, or take "
                "the default system prompt out of the template.",
            )
        )
    if found.system in {"refused", "dropped"}:
        problems.append(
            Problem(
                severity="note",
                found=f"System messages are {found.system} by the template.",
                remedy="Nothing: a reading sends none. In agents of your own, put instructions "
                "into the user's message.",
            )
        )
    return tuple(problems)


def thinking_problems(found: ThinkingFound) -> tuple[Problem, ...]:
    """Whether thoughts could be taken for an answer."""
    if found.cut == "not shown":
        return (
            _stop(
                "A reply that is cut inside its thoughts does not show it, so that thoughts would "
                "be taken for an answer.",
                "Start the server so that finish_reason says length, and without a reasoning "
                "parser (llama.cpp: --reasoning-format none), so that the tags stay in the text.",
            ),
        )
    if found.kind == "hidden":
        return (
            Problem(
                severity="note",
                found="The server keeps the thoughts to itself; they cost time and tokens all the "
                "same, and loops in them cannot be seen.",
                remedy="Start it without a reasoning parser (vLLM, SGLang: no --reasoning-parser; "
                "llama.cpp: --reasoning-format none).",
            ),
        )
    return ()


def prompt_of(
    first: Heard, again: Heard, *, tokens: int, step_tokens: int, base_s: float
) -> PromptFound:
    """Speed and prefix caching from the same long prompt sent twice."""
    cold, warm = first.seconds - base_s, max(0.0, again.seconds - base_s)
    is_measurable = cold >= MEASURABLE_S
    ratio = warm / cold if is_measurable else None
    told = again.cached_tokens
    caching: Literal["on", "off", "unclear"] = "unclear"
    if (told or 0) >= tokens // 2 or (ratio is not None and ratio <= CACHED_RATIO):
        caching = "on"
    elif ratio is not None and ratio >= UNCACHED_RATIO:
        caching = "off"
    return PromptFound(
        tokens=tokens,
        tokens_on_server=first.input_tokens,
        step_tokens=step_tokens,
        first_s=round(first.seconds, 3),
        again_s=round(again.seconds, 3),
        base_s=round(base_s, 3),
        ratio=None if ratio is None else round(ratio, 3),
        tokens_per_s=round(tokens / cold, 1) if is_measurable else None,
        caching=caching,
    )


def prompt_problems(found: PromptFound, *, engine: str) -> tuple[Problem, ...]:
    """Whether the server read all of the prompt, and keeps prefixes."""
    read = found.tokens_on_server
    # Counts that never grow are the tokenizer's problem, told there.
    if read is not None and found.tokens // 10 < read < found.tokens * (1 - 2 * SLACK_SHARE):
        return (
            _stop(
                f"Of a prompt of {found.tokens:,} tokens the server read {read:,}: it cuts prompts "
                "without a word, and a reading would skip text.",
                f"Give it the whole window (Ollama: PARAMETER num_ctx), or pass --window {read}.",
            ),
        )
    if found.caching != "off":
        return ()
    remedy = (
        "Switch it on (vLLM: --enable-prefix-caching; SGLang: no --disable-radix-cache; "
        "llama.cpp: cache_prompt; TGI: PREFIX_CACHING=1 and a flashinfer attention)."
    )
    if "tgi" in engine.lower():
        return (
            _warning(
                "Prefix caching is off, and TGI writes in slices of 1,024 tokens that each read "
                "the whole prompt again.",
                remedy,
            ),
        )
    return (
        Problem(
            severity="note",
            found="Prefix caching is off: repeated requests and several questions about one "
            "document read the same prompt again.",
            remedy=remedy,
        ),
    )


def output_of(heard: Heard, *, base_s: float) -> OutputFound:
    """The speed of output; a short prompt is read in `base_s`."""
    tokens, seconds = heard.output_tokens, heard.seconds - base_s
    is_measurable = tokens is not None and tokens >= OUTPUT_TOKENS_MIN and seconds > 0
    return OutputFound(
        tokens=tokens,
        seconds=round(heard.seconds, 3),
        tokens_per_s=round(((tokens or 0) - 1) / seconds, 1) if is_measurable else None,
    )


def step_problems(found: StepFound) -> tuple[Problem, ...]:
    """Whether a reply to a chunk can be used."""
    if found.outcome == "unusable":
        return (
            _warning(
                f"The reply to a chunk could not be used: {found.reason}. A reading asks twice "
                "more with other seeds, and then goes on without that chunk.",
                "Run the diagnosis again; if that repeats itself, take --protocol extract, a "
                "larger model, or a better quantisation.",
            ),
        )
    if found.outcome == "unfinished":
        return (
            Problem(
                severity="note",
                found=f"The reply to a chunk was not finished after {found.output_tokens:,} "
                "tokens, which is all that this diagnosis waits for.",
                remedy="Give it more time with --timeout to see the end.",
            ),
        )
    if not found.is_fact_kept:
        return (
            Problem(
                severity="note",
                found="The one fact that was asked for in a chunk did not get into the memory.",
                remedy="One chunk proves little: try a larger model, or shorter chunks "
                "(--chunk-tokens), if answers lack what you know to be there.",
            ),
        )
    return ()


def outlook_of(
    budget: Budget,
    *,
    protocol: str,
    frame_tokens: int,
    prompt: PromptFound | None,
    output: OutputFound | None,
    step: StepFound | None,
) -> Outlook | None:
    """The time for a million tokens, None where a speed is missing.

    `frame_tokens` is a prompt of the protocol without memory and chunk. Retries are not foreseen.
    """
    if step is None or prompt is None or output is None:
        return None
    input_per_s, output_per_s, base_s = prompt.tokens_per_s, output.tokens_per_s, prompt.base_s
    if not input_per_s or not output_per_s:
        return None
    is_rewriting = protocol == "rewrite"
    beside_memory, least = step.beside_memory + budget.plan_tokens, step.output_tokens

    def seconds(memory_share: float) -> float:
        memory = memory_share * budget.memory_tokens if is_rewriting else 0.0
        written = max(least, beside_memory + memory) if is_rewriting else least
        read = frame_tokens + budget.chunk_tokens + memory
        return base_s + read / input_per_s + min(written, budget.output_tokens) / output_per_s

    chunks = math.ceil(MILLION / (budget.chunk_tokens * FILLED_SHARE))
    return Outlook(
        chunks=chunks,
        seconds_per_chunk=round(seconds(0.5), 3),
        hours=round(chunks * seconds(0.5) / 3600, 3),
        hours_at_most=round(chunks * seconds(1.0) / 3600, 3),
    )


def outlook_problems(found: Outlook | None) -> tuple[Problem, ...]:
    """Whether a long reading is worth waiting for."""
    if found is None or found.hours <= LONG_HOURS:
        return ()
    return (
        Problem(
            severity="note",
            found=f"A million tokens would take about {found.hours:,.0f} hours.",
            remedy="docs/serving.md compares engines and cards. Check that the model is on the "
            "card, and that nobody else uses it; or take a smaller model.",
        ),
    )


def _stop(found: str, remedy: str) -> Problem:
    return Problem(severity="stop", found=found, remedy=remedy, exit_code=SetupError.exit_code)


def _warning(found: str, remedy: str) -> Problem:
    return Problem(severity="warning", found=found, remedy=remedy)
