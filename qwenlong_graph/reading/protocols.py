"""Two ways to ask a model about a chunk and to take its reply into memory.

`rewrite` is the paper's: the model writes a whole new memory and a plan (QwenLong-L1.5, Eq. 5).
`extract` is for small models: the model's reply only points, and what enters memory are sentences
of the chunk. Gated updates (arXiv 2602.10560) would be a third.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from typing_extensions import TypedDict

from qwenlong_graph.errors import SettingsError
from qwenlong_graph.reading.budget import Budget
from qwenlong_graph.reading.evidence import (
    SourceText,
    align_memory,
    line_key,
    memory_lines,
    place_of,
    unverified_lines,
)
from qwenlong_graph.reading.prompts import (
    answer_prompt,
    extract_answer_prompt,
    extract_prompt,
    neutralise,
    rewrite_prompt,
)
from qwenlong_graph.reading.relevance import (
    coverage,
    listed_terms,
    points_to,
    question_terms,
    sentences_of,
    tally_sentences,
    term_weights,
)
from qwenlong_graph.reading.replies import (
    BadReply,
    parse_update,
    trim_to_tokens,
    without_thoughts,
)
from qwenlong_graph.types import Evidence, Message

__all__ = [
    "Chunk",
    "ExtractProtocol",
    "ReadingProtocol",
    "ReadingState",
    "ReadingTask",
    "RewriteProtocol",
    "Update",
    "protocol_named",
]

UpdateKind = Literal["complete", "no_plan", "appended", "trimmed", "kept"]


class ReadingState(TypedDict):
    """What is carried from chunk to chunk, whatever the document's length."""

    memory: str
    plan: str
    evidence: list[Evidence]
    tally: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """One stretch of a document as it is read: its text, and where it stands.

    `before` is the text in front of it in the same document, some hundreds of characters that
    were read with the chunk before: evidence may lie across the border. It enters no prompt.
    """

    text: str
    document: int
    start_char: int
    end_char: int
    title: str
    step: int
    steps: int
    documents: int = 1
    start_page: int | None = None
    end_page: int | None = None
    before: str = ""

    def header(self) -> str:
        """The line that tells the model which stretch of which document this is."""
        where = f"Section {self.step + 1} of about {max(self.steps, self.step + 1)}"
        where += f', from "{self.title}"'
        if self.documents > 1:
            where += f" (document {self.document + 1} of {self.documents})"
        if self.start_page is not None:
            pages = (
                f"page {self.start_page}"
                if self.start_page == self.end_page
                else f"pages {self.start_page} to {self.end_page}"
            )
            where += f", {pages}"
        return f"[{where}]"

    def source(self) -> SourceText:
        """The chunk, and what stands before it, as a source for evidence."""
        return SourceText(
            document=self.document,
            start_char=self.start_char - len(self.before),
            text=self.before + self.text,
        )


@dataclass(frozen=True, kw_only=True)
class ReadingTask:
    """What stays the same during one reading. `count_tokens` counts raw text."""

    core_question: str
    instructions: str
    budget: Budget
    count_tokens: Callable[[str], int]
    special_tokens: Sequence[str] = ()

    def clean(self, text: str) -> str:
        """`text` as it may enter a prompt: no control string of model or prompt survives."""
        return neutralise(text, self.special_tokens)


@dataclass(frozen=True)
class Update:
    """The state after one chunk, what kind of reply led to it, and how much evidence is new.

    `kind`: "complete"; "no_plan" (memory only); "appended" (text without elements, added to the
    old memory); "trimmed" (over-long, cut at a line); "kept" (no usable reply: the old memory).
    """

    state: ReadingState
    kind: UpdateKind
    evidence_added: int = 0


class ReadingProtocol(Protocol):
    """How one chunk is asked about, and how the reply changes the state. Pure."""

    name: str

    def update_messages(
        self, task: ReadingTask, state: ReadingState, chunk: Chunk
    ) -> list[Message]:
        """The prompt for one chunk."""

    def apply_reply(
        self,
        task: ReadingTask,
        state: ReadingState,
        chunk: Chunk,
        text: str,
        *,
        held: Sequence[SourceText] = (),
        is_truncated: bool = False,
        is_last_attempt: bool = False,
    ) -> Update:
        """The state after a reply; `held` are the texts of the evidence held so far.

        Raises:
            BadReply: the reply cannot be used; the state must stay as it is.
        """

    def answer_messages(self, task: ReadingTask, state: ReadingState) -> list[Message]:
        """The prompt for the answer."""


class RewriteProtocol:
    """The paper's protocol: memory and plan are rewritten in one reply."""

    name = "rewrite"

    def update_messages(
        self, task: ReadingTask, state: ReadingState, chunk: Chunk
    ) -> list[Message]:
        """The prompt for one chunk: problem, previous memory and plan, section (Eq. 5)."""
        return rewrite_prompt(
            core_question=task.clean(task.core_question),
            memory=task.clean(state["memory"]),
            plan=task.clean(state["plan"]),
            chunk=task.clean(chunk.text),
            header=task.clean(chunk.header()),
            # Three quarters of a word a token, and some room below the limit.
            memory_words=int(task.budget.memory_tokens * 0.6),
        )

    def apply_reply(
        self,
        task: ReadingTask,
        state: ReadingState,
        chunk: Chunk,
        text: str,
        *,
        held: Sequence[SourceText] = (),
        is_truncated: bool = False,
        is_last_attempt: bool = False,
    ) -> Update:
        """The state after a reply. Only at the last attempt is a lesser reply made use of:
        an over-long memory is cut at a line; lines of a text without elements are added to the
        old memory where the chunk bears them out. A memory that drops every proven line and
        brings none (a refusal, say) is never taken.
        """
        limit = task.budget.memory_tokens
        kind: UpdateKind
        try:
            reply = parse_update(text, had_memory=bool(state["memory"]), is_truncated=is_truncated)
            memory, plan = reply.memory, reply.plan
            kind = "complete" if reply.kind == "complete" else "no_plan"
        except BadReply as bad:
            # A reply that was cut off has another reason.
            if not is_last_attempt or bad.reason != "no memory element":
                raise
            stated = without_thoughts(text)
            known = align_memory(stated, previous=[], chunk=chunk.source(), held=held)
            doubtful = set(unverified_lines(stated, known))
            lines = [line for line in memory_lines(stated) if line not in doubtful]
            memory = "\n".join([state["memory"], *(f"- {line}" for line in lines)]).strip()
            plan, kind = state["plan"], "appended"
            if not lines or task.count_tokens(memory) > limit:
                raise
        size = task.count_tokens(memory)
        if size > limit:
            if not is_last_attempt:
                raise BadReply(f"the memory was too long: {size} tokens, {limit} allowed")
            memory = trim_to_tokens(memory, max_tokens=limit, count_tokens=task.count_tokens)
            kind = "trimmed"
            if not memory.strip():
                raise BadReply("the memory was too long")
        plan = trim_to_tokens(
            plan, max_tokens=task.budget.plan_tokens, count_tokens=task.count_tokens
        )
        evidence = align_memory(memory, previous=state["evidence"], chunk=chunk.source(), held=held)
        if state["evidence"] and not evidence:
            raise BadReply("the memory dropped every proven line and brought none")
        before = {place_of(piece) for piece in state["evidence"]}
        added = sum(place_of(piece) not in before for piece in evidence)
        after = ReadingState(memory=memory, plan=plan, evidence=evidence, tally=state["tally"])
        return Update(after, kind, added)

    def answer_messages(self, task: ReadingTask, state: ReadingState) -> list[Message]:
        """The prompt for the answer: problem, memory, form; the plan is left out (Eq. 6)."""
        return answer_prompt(
            core_question=task.clean(task.core_question),
            instructions=task.clean(task.instructions),
            memory=task.clean(state["memory"]) or "(empty)",
        )


class ExtractProtocol:
    """For small models: the reply points at sentences of the chunk, and only those are kept.

    A sentence enters memory when the reply points to it and it shares enough of the question's
    rare words, or when it shares so many that no pointer is needed. Thresholds were set on
    passages and questions apart from every test and benchmark (docs/decisions).
    """

    name = "extract"

    pointed_score = 0.25
    pointed_coverage = 0.25
    unaided_coverage = 0.4
    sentences_per_reply = 4
    notes_for_answer = 6
    share_of_best = 0.6

    def update_messages(
        self, task: ReadingTask, state: ReadingState, chunk: Chunk
    ) -> list[Message]:
        """The prompt for one chunk; memory stays out, small models would copy from it."""
        return extract_prompt(
            core_question=task.clean(task.core_question), chunk=task.clean(chunk.text)
        )

    def apply_reply(
        self,
        task: ReadingTask,
        state: ReadingState,
        chunk: Chunk,
        text: str,
        *,
        held: Sequence[SourceText] = (),
        is_truncated: bool = False,
        is_last_attempt: bool = False,
    ) -> Update:
        """The state after a reply: the chunk's sentences that it points to join the memory."""
        question = task.core_question
        spans = sentences_of(chunk.text)
        sentences = [_one_line(chunk.text[start:end]) for start, end in spans]
        tally = tally_sentences(question_terms(question), sentences, state["tally"])
        weights = term_weights(question, tally)
        listed = listed_terms(question)
        statement = without_thoughts(text)
        chosen: dict[int, float] = {}
        for start, end in sentences_of(statement)[: self.sentences_per_reply]:
            pointed = points_to(statement[start:end], sentences, weights=weights)
            if pointed and pointed[0][1] >= self.pointed_score:
                index = pointed[0][0]
                share = coverage(sentences[index], weights, listed=listed)
                if share >= self.pointed_coverage:
                    chosen[index] = share
        for index, sentence in enumerate(sentences):
            share = coverage(sentence, weights, listed=listed)
            if share >= self.unaided_coverage:
                chosen[index] = share
        new = [
            (
                sentences[index],
                Evidence(
                    document=chunk.document,
                    start_char=chunk.start_char + spans[index][0],
                    end_char=chunk.start_char + spans[index][1],
                    line=line_key(sentences[index]),
                ),
            )
            for index in chosen
        ]
        lines = {piece["line"]: piece for piece in state["evidence"]}
        kept = [
            (line, lines[line_key(line)])
            for line in _lines(state["memory"])
            if line_key(line) in lines
        ]
        known = {key for _, piece in kept if (key := piece["line"])}
        fresh = [(line, piece) for line, piece in new if piece["line"] not in known]
        memory = self._fit(task, kept + fresh, weights)
        after = ReadingState(
            memory="\n".join(f"- {line}" for line, _ in memory),
            plan="",
            evidence=[piece for _, piece in memory],
            tally=tally,
        )
        added = sum(piece["line"] not in known for _, piece in memory)
        return Update(after, "complete", added)

    def _fit(
        self,
        task: ReadingTask,
        lines: list[tuple[str, Evidence]],
        weights: Mapping[str, float],
    ) -> list[tuple[str, Evidence]]:
        """The lines that fit the memory, most relevant first in the choice, in reading order.

        Weights sharpen as more is read, so lines that once passed are judged again.
        """
        listed = listed_terms(task.core_question)
        shares = {
            index: coverage(line, weights, listed=listed) for index, (line, _) in enumerate(lines)
        }
        best = sorted(shares, key=lambda index: (-shares[index], index))
        chosen: list[int] = []
        left = task.budget.memory_tokens
        for index in best:
            if shares[index] < self.pointed_coverage:
                break
            size = task.count_tokens(f"- {lines[index][0]}\n") + 1
            if size <= left:
                chosen.append(index)
                left -= size
        return sorted(
            (lines[index] for index in chosen),
            key=lambda line: (line[1]["document"], line[1]["start_char"]),
        )

    def answer_messages(self, task: ReadingTask, state: ReadingState) -> list[Message]:
        """The prompt for the answer, with the few most relevant notes."""
        return extract_answer_prompt(
            core_question=task.clean(task.core_question),
            instructions=task.clean(task.instructions),
            memory=task.clean("\n".join(f"- {note}" for note in self.best_notes(task, state))),
        )

    def best_notes(self, task: ReadingTask, state: ReadingState) -> list[str]:
        """The most relevant lines of memory, in reading order.

        What is far less relevant than the best line is left out: it would only lead a small
        model astray.
        """
        weights = term_weights(task.core_question, state["tally"])
        listed = listed_terms(task.core_question)
        lines = _lines(state["memory"])
        shares = [coverage(line, weights, listed=listed) for line in lines]
        best = sorted(range(len(lines)), key=lambda i: (-shares[i], i))[: self.notes_for_answer]
        least = self.share_of_best * max(shares, default=0.0)
        return [lines[i] for i in sorted(best) if shares[i] >= least]


def protocol_named(name: str) -> ReadingProtocol:
    """The protocol of that name.

    Raises:
        SettingsError: there is none.
    """
    if name == "rewrite":
        return RewriteProtocol()
    if name == "extract":
        return ExtractProtocol()
    raise SettingsError(f'There is no reading protocol "{name}": choose "rewrite" or "extract".')


def _lines(memory: str) -> list[str]:
    return [line.removeprefix("- ") for line in memory.splitlines() if line.strip()]


def _one_line(text: str) -> str:
    return " ".join(text.split())
