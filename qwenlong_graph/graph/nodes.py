"""The nodes. Each body is written once, as steps that yield requests to the model; the sync
and the async form differ only in who drives them.

A node that fails leaves the state as it was: nothing is returned before all of it is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.graph import END
from langgraph.runtime import get_runtime
from langgraph.types import Command, interrupt

from qwenlong_graph.documents.chunking import next_span
from qwenlong_graph.documents.loading import ingest
from qwenlong_graph.documents.store import DocumentStore, StoredText
from qwenlong_graph.documents.tokens import chars_per_token
from qwenlong_graph.errors import (
    DocumentTooLargeError,
    MalformedReplyError,
    ModelError,
    QuestionError,
    RunChangedError,
)
from qwenlong_graph.graph.forms import AnswerForm
from qwenlong_graph.graph.review import (
    ACTIONS,
    Decision,
    ReviewEvery,
    ReviewQuote,
    ReviewRequest,
    decision_of,
)
from qwenlong_graph.graph.state import MemoryState, Turn, pack_evidence, unpack_evidence
from qwenlong_graph.models.calls import aask, ask, is_retryable
from qwenlong_graph.models.connect import ConnectedModel
from qwenlong_graph.models.limiter import HEALTH_TIMEOUT_S, Waiting
from qwenlong_graph.reading.answers import check_answer, find_support
from qwenlong_graph.reading.budget import (
    FILLED_SHARE,
    Budget,
    ReadingSettings,
    derive_budget,
)
from qwenlong_graph.reading.evidence import (
    SourceText,
    align_memory,
    place_of,
    unverified_lines,
)
from qwenlong_graph.reading.loop import (
    Answer,
    Reply,
    Request,
    Steps,
    advance,
    answer_steps,
    call_loop_span,
    call_penalty,
    call_seed,
    decompose_steps,
    drive,
    full_steps,
    recall_steps,
    start_state,
    update_steps,
)
from qwenlong_graph.reading.prompts import (
    full_prompt,
    neutralise,
    rewrite_prompt,
    says_not_found,
)
from qwenlong_graph.reading.protocols import (
    Chunk,
    ReadingState,
    ReadingTask,
    protocol_named,
)
from qwenlong_graph.reading.replies import BadReply
from qwenlong_graph.types import (
    CollectionReference,
    Cursor,
    DocumentReference,
    Evidence,
    Message,
    SourceCitation,
    Span,
    Usage,
)

__all__ = ["ReadingNodes"]

Emit = Callable[[dict[str, Any]], None]
Body = Callable[[MemoryState, Emit], Steps[dict[str, Any]]]

TURNS_KEPT = 4
TURN_CHARS = 400
TURN_PLACES = 40
"""Every checkpoint of a thread holds its last turns again: about 4 KB at most."""

READ, RECALLED = "documents", "earlier evidence"
"""What an answer comes from: the state's `answered_from`."""

REVIEW_QUOTES, REVIEW_QUOTE_CHARS = 20, 300
REVIEW_LOOK_BACK_CHARS = 20_000

_SKIPPED_LISTED = 1_000
_BETWEEN_QUOTES = "\n\n"
_UNREAD_LISTED = 100
_TITLE_TOKENS = 64
_BEFORE_CHARS = 1_000
_WAIT_TOLD_S = 60


class ReadingNodes:
    """The nodes of one agent: its model, its settings, its store. Holds no run's state."""

    def __init__(
        self,
        model: ConnectedModel,
        *,
        settings: ReadingSettings,
        store: DocumentStore,
        form: AnswerForm | None = None,
        review_every: ReviewEvery | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.store = store
        self.form = form
        self.review_every = review_every
        self.protocol = protocol_named(settings.protocol)
        self._frame_tokens: int | None = None
        self._collections: dict[str, list[DocumentReference]] = {}
        self._lock = threading.Lock()

    # The nodes, as LangGraph takes them.

    def decompose_node(self) -> RunnableLambda[MemoryState, Any]:
        """START -> core question, instructions, references, the place where reading starts."""
        return self._node(self._decompose, self.after_decompose)

    def recall_node(self) -> RunnableLambda[MemoryState, Any]:
        """turns -> memory made of the quotes that earlier questions left, if these bear on it."""
        return self._node(self._recall, self.after_recall)

    def read_chunk_node(self) -> RunnableLambda[MemoryState, Any]:
        """cursor -> span: which stretch is read next. References only, no text."""
        return self._node(self._read_chunk)

    def update_memory_node(self) -> RunnableLambda[MemoryState, Any]:
        """span -> memory, plan, evidence, and the cursor moved on, in one commit."""
        return self._node(self._update_memory, self.after_update)

    def review_node(self) -> RunnableLambda[MemoryState, Any]:
        """memory -> an interrupt, and what the reviewer made of it. No model is asked."""

        def run(state: MemoryState) -> Any:
            request = self._review_request(state)
            while True:
                decided = self._decided(state, interrupt(request))
                if not isinstance(decided, str):
                    return self._told_decision(state, decided)
                request = {**request, "problem": decided}

        async def arun(state: MemoryState) -> Any:
            request = await asyncio.to_thread(self._review_request, state)
            while True:
                decided = await asyncio.to_thread(self._decided, state, interrupt(request))
                if not isinstance(decided, str):
                    return self._told_decision(state, decided)
                request = {**request, "problem": decided}

        return RunnableLambda(run, arun, name="review")

    def finalize_node(self) -> RunnableLambda[MemoryState, Any]:
        """memory -> answer, citations, unsupported claims."""
        return self._node(self._finalize, self.after_finalize)

    def after_decompose(self, state: MemoryState) -> str:
        """Where to go from `decompose`: strategy "full" skips the reading loop."""
        if state["setup"]["strategy"] == "full":
            return "finalize"
        return "recall" if _places_kept(state) else "read_chunk"

    def after_recall(self, state: MemoryState) -> str:
        """Where to go from `recall`: to the documents, unless something was recalled."""
        return "finalize" if state.get("answered_from") == RECALLED else "read_chunk"

    def after_finalize(self, state: MemoryState) -> str:
        """Where to go from `finalize`: to the documents, where what was recalled is no answer."""
        return END if state.get("answered_from") else "read_chunk"

    def after_update(self, state: MemoryState) -> str:
        """Where to go from `update_memory`: to a review that is due, else on."""
        onward = self.after_review(state)
        if self.review_every is None:
            return onward
        if self.review_every == "on-change":
            return "review" if state.get("memory_is_new") else onward
        is_due = state["step"] % self.review_every == 0 or onward == "finalize"
        return "review" if is_due else onward

    def after_review(self, state: MemoryState) -> str:
        """On reading until every document is read."""
        unread = state["cursor"]["document"] < len(self._references(state))
        return "read_chunk" if unread else "finalize"

    # Their bodies.

    def _decompose(self, state: MemoryState, emit: Emit) -> Steps[dict[str, Any]]:
        question = (state.get("question") or "").strip()
        if not question:
            raise QuestionError("The question is empty. Ask what you want to know.")
        collection = ingest(state.get("documents") or [], self.store)
        instructions = (state.get("instructions") or "").strip()
        task = self.task(question, instructions)
        usage = Usage(
            steps=0,
            calls=0,
            retries=0,
            input_tokens=0,
            output_tokens=0,
            reasoning_tokens=0,
            unread=0,
            unread_spans=[],
        )
        core_question = question
        strategy = self._strategy(collection, task)
        is_split_by_model = (
            not instructions and strategy == "memory" and self.settings.protocol == "rewrite"
        )
        history = _history(state)
        if is_split_by_model or history:
            core_question, form = yield from _counted(
                decompose_steps(question, task=task, history=history),
                usage,
                emit,
                task.count_tokens,
            )
            instructions = "\n".join(part for part in (instructions, form) if part)
            task = self.task(core_question, instructions)
        first = self.store.open(self.store.collection(collection)[0])
        ratio = chars_per_token(first, task.count_tokens)
        steps = max(
            1, math.ceil(collection["chars"] / (ratio * task.budget.chunk_tokens * FILLED_SHARE))
        )
        if history and core_question != question:
            emit({"type": "question_resolved", "question": core_question})
        emit(
            {"type": "started", "strategy": strategy, "steps": steps, "chars": collection["chars"]}
        )
        return {
            "question": question,
            "core_question": core_question,
            "instructions": instructions,
            "documents": [collection],
            "setup": {**self._setup(task.budget), "strategy": strategy},
            "step": 0,
            "steps": steps,
            "cursor": Cursor(document=0, start_char=0, start_byte=0),
            "span": None,
            **start_state(),
            "usage": usage,
            "history": [],
            "memory_is_new": False,
            "skipped": [],
            "answered_from": "",
            "answer": "",
            "found": False,
            "is_quoted": False,
            "structured_response": None,
            "citations": [],
            "unsupported": [],
            "unverified": [],
        }

    def _recall(self, state: MemoryState, emit: Emit) -> Steps[dict[str, Any]]:
        task = self._task_of(state)
        usage = _usage(state)
        kept, sources = self._kept(state, task, self._references(state))
        recalled = None
        if sources:
            recalled = yield from _counted(
                recall_steps(task, self.protocol, kept, attempts=self.settings.reply_attempts),
                usage,
                emit,
                task.count_tokens,
            )
        if recalled is None:
            emit({"type": "recalled", "is_enough": False})
            return {"usage": usage}
        return {
            **recalled,
            "plan": "",
            "evidence": pack_evidence(_at_home(recalled["evidence"], sources)),
            "answered_from": RECALLED,
            "usage": usage,
        }

    def _read_chunk(self, state: MemoryState, emit: Emit) -> Steps[dict[str, Any]]:
        task = self._task_of(state)
        cursor, step = state["cursor"], state["step"]
        references = self._references(state)
        span = self._next_span(task, cursor, references)
        done = sum(reference["chars"] for reference in references[: cursor["document"]])
        done += span["end_char"]
        left = sum(reference["chars"] for reference in references) - done
        steps = step + 1 + math.ceil(left / (done / (step + 1)))
        emit(
            {
                "type": "chunk_read",
                "step": step,
                "steps": steps,
                "document": references[cursor["document"]]["title"],
                "start_char": span["start_char"],
                "end_char": span["end_char"],
                "tokens": span["tokens"],
            }
        )
        yield from ()
        return {"span": span, "steps": steps}

    def _update_memory(self, state: MemoryState, emit: Emit) -> Steps[dict[str, Any]]:
        began = time.monotonic()
        task = self._task_of(state)
        references = self._references(state)
        # Set by read_chunk, unless the reading goes on here with another setup.
        span = state["span"] or self._next_span(task, state["cursor"], references)
        reference = references[span["document"]]
        text = self.store.open(reference)
        chunk = self._chunk(state, span, text, reference, len(references))
        before = _reading_state(state)
        held = self._quotes(references, before["evidence"])
        usage = _usage(state)
        update = yield from _counted(
            update_steps(
                task,
                self.protocol,
                before,
                chunk,
                held=held,
                attempts=self.settings.reply_attempts,
            ),
            usage,
            emit,
            task.count_tokens,
        )
        usage["steps"] += 1
        if update.kind == "kept":
            usage["unread"] += 1
            usage["unread_spans"] = [*usage["unread_spans"], span][:_UNREAD_LISTED]
        emit(
            {
                "type": "memory_updated",
                "step": chunk.step,
                "steps": chunk.steps,
                "document": chunk.title,
                "document_index": chunk.document,
                "start_char": chunk.start_char,
                "end_char": chunk.end_char,
                "reply": update.kind,
                "memory_tokens": task.count_tokens(update.state["memory"]),
                "plan": update.state["plan"],
                "evidence_added": update.evidence_added,
                "evidence": len(update.state["evidence"]),
                **_change(before, update.state),
                **_spent(_usage(state), usage),
                "seconds": round(time.monotonic() - began, 3),
            }
        )
        return {
            **update.state,
            "evidence": pack_evidence(update.state["evidence"]),
            "cursor": _after(span, reference),
            "span": None,
            "memory_is_new": update.state["memory"] != before["memory"],
            "step": chunk.step + 1,
            "usage": usage,
        }

    def _finalize(self, state: MemoryState, emit: Emit) -> Steps[dict[str, Any]]:
        task = self._task_of(state)
        references = self._references(state)
        usage = _usage(state)
        emit({"type": "finalizing", "step": state["step"], "steps": state["step"]})
        validate = self.form.validate if self.form else None
        schema = self.form.schema if self.form else None
        evidence = unpack_evidence(state["evidence"])
        if state["setup"]["strategy"] == "full":
            steps = full_steps(
                task,
                self._whole(references),
                question=state["core_question"],
                validate=validate,
                response_schema=schema,
                attempts=self.settings.reply_attempts,
            )
            quotes: list[SourceText] = []
        else:
            quotes = self._quotes(references, evidence)
            steps = answer_steps(
                task,
                self.protocol,
                _reading_state(state),
                step=state["step"],
                quotes=[quote.text for quote in quotes],
                validate=validate,
                response_schema=schema,
                attempts=self.settings.reply_attempts,
            )
        is_recalled = state.get("answered_from") == RECALLED
        try:
            answer = yield from _counted(steps, usage, emit, task.count_tokens)
        except BadReply as bad:
            if is_recalled:
                emit({"type": "recalled", "is_enough": False})
                return _unrecalled(usage)
            raise MalformedReplyError(
                f"Asked for the answer again and again, but {bad.reason}. What was read is kept "
                f"where the run has a checkpointer: resume with another seed or more "
                f"answer_tokens to ask again."
            ) from bad
        if state["setup"]["strategy"] == "full":
            evidence = self._evidence_for(answer, state["core_question"], references)
            quotes = self._quotes(references, evidence)
        concluded = self._concluded(state, answer, evidence, quotes, usage)
        if is_recalled:
            is_enough = _is_borne_out(concluded)
            emit({"type": "recalled", "is_enough": is_enough})
            if not is_enough:
                return _unrecalled(usage)
        emit({"type": "answered", "found": concluded["found"], "is_quoted": answer.is_quoted})
        return {
            **concluded,
            "unverified": unverified_lines(state["memory"], evidence),
            "answered_from": state.get("answered_from") or READ,
        }

    # The review.

    def _review_request(self, state: MemoryState) -> ReviewRequest:
        references = self._references(state)
        evidence = unpack_evidence(state["evidence"])
        quotes = self._quotes(references, evidence)
        cursor = state["cursor"]
        at = min(cursor["document"], len(references) - 1)
        done = sum(reference["chars"] for reference in references[: cursor["document"]])
        return ReviewRequest(
            type="review",
            question=state["core_question"],
            memory=state["memory"],
            plan=state["plan"],
            step=state["step"],
            steps=state["steps"],
            chars_read=done + cursor["start_char"],
            chars=sum(reference["chars"] for reference in references),
            document=references[at]["title"],
            evidence=[
                ReviewQuote(
                    title=references[quote.document]["title"],
                    start_char=quote.start_char,
                    end_char=quote.start_char + len(quote.text),
                    text=quote.text[:REVIEW_QUOTE_CHARS],
                )
                for quote in quotes[:REVIEW_QUOTES]
            ],
            evidence_count=len(quotes),
            unverified=unverified_lines(state["memory"], evidence),
            actions=dict(ACTIONS),
        )

    def _decided(
        self, state: MemoryState, given: object
    ) -> tuple[Decision, MemoryState, str] | str:
        """The state after a reviewer's answer and where to go, or why it cannot be taken."""
        try:
            decision = decision_of(given)
            changed = self._edited(state, decision)
            if decision.action == "answer":
                passed = self._rest(changed)
                return decision, _with(changed, _passed_over(changed, passed)), "finalize"
            if decision.action == "skip":
                changed = self._skipped(changed, decision)
        except ValueError as error:
            return str(error)
        return decision, changed, self.after_review(changed)

    def _edited(self, state: MemoryState, decision: Decision) -> MemoryState:
        changes: dict[str, Any] = {}
        task = self._task_of(state)
        if decision.plan is not None:
            size, room = task.count_tokens(decision.plan), task.budget.plan_tokens
            if size > room:
                raise ValueError(f"the plan takes {size:,} tokens, and there is room for {room:,}")
            changes["plan"] = decision.plan.strip()
        if decision.memory is not None and decision.memory != state["memory"]:
            memory = decision.memory.strip()
            size, room = task.count_tokens(memory), task.budget.memory_tokens
            if size > room:
                raise ValueError(
                    f"the memory takes {size:,} tokens, and there is room for {room:,}"
                )
            references = self._references(state)
            previous = unpack_evidence(state["evidence"])
            evidence = align_memory(
                memory,
                previous=previous,
                chunk=self._just_read(state, references),
                held=self._quotes(references, previous),
            )
            doubtful = unverified_lines(memory, evidence)
            if doubtful and self.settings.protocol == "extract":
                raise ValueError(
                    'the protocol "extract" keeps sentences of the documents alone, and these '
                    f"lines stand in no quote: {' / '.join(doubtful)[:300]}"
                )
            changes |= {"memory": memory, "evidence": pack_evidence(evidence)}
        return _with(state, changes)

    def _just_read(self, state: MemoryState, references: Sequence[DocumentReference]) -> SourceText:
        """The text before the cursor, where new lines of a memory are looked for."""
        cursor = state["cursor"]
        document, end = cursor["document"], cursor["start_char"]
        if end == 0 and document:
            document -= 1
            end = references[document]["chars"]
        start = max(0, end - REVIEW_LOOK_BACK_CHARS)
        text = self.store.open(references[document]).read(start, end)
        return SourceText(document=document, start_char=start, text=text)

    def _skipped(self, state: MemoryState, decision: Decision) -> MemoryState:
        references = self._references(state)
        cursor, passed = state["cursor"], list[list[int]]()
        if cursor["document"] >= len(references):
            raise ValueError("every document is read: there is nothing to skip")
        if decision.document is not None:
            target = decision.document - 1
            if target <= cursor["document"]:
                raise ValueError(
                    f"document {decision.document} has begun; the next is {cursor['document'] + 2}"
                )
            if target >= len(references):
                raise ValueError(f"there are {len(references):,} documents")
            passed = self._rest(state, until=target)
            cursor = Cursor(document=target, start_char=0, start_byte=0)
        else:
            task = self._task_of(state)
            for _ in range(decision.chunks or 0):
                if cursor["document"] >= len(references):
                    break
                span = self._next_span(task, cursor, references)
                passed.append([span["document"], span["start_char"], span["end_char"]])
                cursor = _after(span, references[span["document"]])
        changes = _passed_over(state, passed)
        return _with(state, {**changes, "cursor": cursor})

    def _rest(self, state: MemoryState, *, until: int | None = None) -> list[list[int]]:
        """What is unread of the documents before `until`."""
        references = self._references(state)
        cursor = state["cursor"]
        last = len(references) if until is None else until
        return [
            [
                document,
                cursor["start_char"] if document == cursor["document"] else 0,
                references[document]["chars"],
            ]
            for document in range(cursor["document"], last)
        ]

    def _told_decision(
        self, before: MemoryState, decided: tuple[Decision, MemoryState, str]
    ) -> Any:
        decision, state, onward = decided
        get_runtime().stream_writer(
            {
                "type": "reviewed",
                "action": decision.action,
                "step": state["step"],
                "skipped": len(state.get("skipped") or []),
                **_lines_changed(before["memory"], state["memory"]),
            }
        )
        keys = ("memory", "plan", "evidence", "cursor", "skipped")
        changes = {key: state.get(key) for key in keys}
        return Command(update={**changes, "memory_is_new": False, "span": None}, goto=onward)

    # What the bodies are made of.

    def _node(
        self, body: Body, onward: Callable[[MemoryState], str] | None = None
    ) -> RunnableLambda[MemoryState, Any]:
        name = body.__name__.removeprefix("_")

        def left(state: MemoryState, result: dict[str, Any]) -> Any:
            # The way on is written with the result: after a cancellation between the two, LangGraph
            # would take the node for done, find no way on, and end without a word.
            return Command(update=result, goto=onward(_with(state, result))) if onward else result

        def accepts(config: RunnableConfig) -> bool:
            # `decompose` begins anew, whatever the state holds.
            is_allowed = config.get("configurable", {}).get("accept_changes")
            return bool(is_allowed) and name != "decompose"

        def run(state: MemoryState, config: RunnableConfig) -> Any:
            emit = get_runtime().stream_writer
            with _told(emit):
                accepted = self._accepted(state) if accepts(config) else {}
                steps = body(_with(state, accepted), emit)
                result = drive(steps, lambda asked: self._ask(asked, config, emit))
                return left(state, {**accepted, **result})

        async def arun(state: MemoryState, config: RunnableConfig) -> Any:
            # Reading files, counting over HTTP and aligning evidence would block the event loop.
            emit = get_runtime().stream_writer
            with _told(emit):
                accepted = {}
                if accepts(config):
                    accepted = await asyncio.to_thread(self._accepted, state)
                steps = body(_with(state, accepted), emit)
                request = await asyncio.to_thread(advance, steps)
                while isinstance(request, Request):
                    reply = await self._aask(request, config, emit)
                    request = await asyncio.to_thread(advance, steps, reply)
                return left(state, {**accepted, **request.result})

        return RunnableLambda(run, arun, name=name)

    def _ask(self, request: Request, config: RunnableConfig, emit: Emit) -> Reply:
        return ask(self.model, request.messages, **self._call(request, emit), config=config)

    async def _aask(self, request: Request, config: RunnableConfig, emit: Emit) -> Reply:
        return await aask(self.model, request.messages, **self._call(request, emit), config=config)

    def _call(self, request: Request, emit: Emit) -> dict[str, Any]:
        return {
            "max_tokens": request.max_tokens,
            "temperature": self.settings.temperature,
            "top_p": self.settings.top_p,
            "seed": call_seed(self.settings.seed, step=request.step, attempt=request.attempt),
            "repetition_penalty": call_penalty(
                request.loops, is_greedy=self.settings.temperature == 0
            ),
            "loop_span": call_loop_span(request.loops),
            "response_schema": request.response_schema,
            "patience_s": HEALTH_TIMEOUT_S,
            "on_wait": _WaitTold(emit),
        }

    def _concluded(
        self,
        state: MemoryState,
        answer: Answer,
        evidence: list[Evidence],
        quotes: Sequence[SourceText],
        usage: Usage,
    ) -> dict[str, Any]:
        """The answer, held against its quotes, and the turn that later questions find."""
        references = self._references(state)
        checked = check_answer(
            answer.text,
            [quote.text for quote in quotes],
            question=state["core_question"],
            is_structured=answer.structured is not None,
        )
        turn = Turn(
            question=state["core_question"][:TURN_CHARS],
            answer=checked.answer[:TURN_CHARS],
            documents=state["documents"][0]["collection_id"],
            places=[list(place) for place in sorted({place_of(piece) for piece in evidence})][
                :TURN_PLACES
            ],
        )
        return {
            "answer": checked.answer,
            "found": checked.found,
            "is_quoted": answer.is_quoted,
            "structured_response": answer.structured,
            "citations": [
                self._citation(references, quotes[index], spans) for index, spans in checked.cited
            ],
            "unsupported": checked.unsupported,
            "evidence": pack_evidence(evidence),
            "usage": usage,
            "turns": [*(state.get("turns") or []), turn][-TURNS_KEPT:],
        }

    def _kept(
        self, state: MemoryState, task: ReadingTask, references: Sequence[DocumentReference]
    ) -> tuple[Chunk, list[tuple[int, SourceText]]]:
        """What earlier questions left, as one chunk, and where in it each quote begins.

        The newest first where not all of it fits.
        """
        room = task.budget.chunk_tokens
        chosen: list[SourceText] = []
        for document, start, end in _places_kept(state):
            text = self.store.open(references[document]).read(start, end)
            room -= task.count_tokens(text) + 2
            if room < 0:
                break
            chosen.append(SourceText(document=document, start_char=start, text=text))
        chosen.sort(key=lambda source: (source.document, source.start_char))
        placed: list[tuple[int, SourceText]] = []
        at = 0
        for source in chosen:
            placed.append((at, source))
            at += len(source.text) + len(_BETWEEN_QUOTES)
        chunk = Chunk(
            text=_BETWEEN_QUOTES.join(source.text for source in chosen),
            document=0,
            start_char=0,
            end_char=max(0, at - len(_BETWEEN_QUOTES)),
            title="quotes for earlier questions",
            step=0,
            steps=1,
        )
        return chunk, placed

    def task(self, core_question: str, instructions: str) -> ReadingTask:
        """What stays the same during a reading of that question: its budget above all."""

        def count_cleaned(text: str) -> int:
            return self.model.count_tokens(task.clean(text))

        form = "\n".join(part for part in (instructions, self.form and self.form.request) if part)
        cleaned = neutralise(f"{core_question}\n{form}", self.model.special_tokens)
        question_tokens = self.model.count_tokens(cleaned)
        task = ReadingTask(
            core_question=core_question,
            instructions=form,
            budget=derive_budget(
                self.settings,
                window=self.model.window,
                frame_tokens=self._frame(),
                question_tokens=question_tokens,
                template_tokens=self.model.template_tokens,
            ),
            count_tokens=count_cleaned,
            special_tokens=self.model.special_tokens,
        )
        return task

    def _task_of(self, state: MemoryState) -> ReadingTask:
        task = self.task(state["core_question"], state["instructions"])
        here = self._setup(task.budget)
        then = {name: value for name, value in state["setup"].items() if name != "strategy"}
        if then != here:
            changed = "; ".join(
                f"{name} was {then.get(name)!r}, is now {here.get(name)!r}"
                for name in sorted({*then, *here})
                if then.get(name) != here.get(name)
            )
            raise RunChangedError(
                f"This reading was begun with another setup and does not go on with this one "
                f"unasked: {changed}. Resume it with the setup it was begun with, or accept the "
                f"change: --accept-changes on the command line, "
                f'{{"configurable": {{"accept_changes": True}}}} in Python.'
            )
        return task

    def _accepted(self, state: MemoryState) -> dict[str, Any]:
        """What changes in a state that goes on with another setup, as the caller allows.

        Raises:
            RunChangedError: the memory does not fit the other setup.
        """
        task = self.task(state["core_question"], state["instructions"])
        setup = {**self._setup(task.budget), "strategy": state["setup"]["strategy"]}
        if setup == state["setup"]:
            return {}
        size, room = task.count_tokens(state["memory"]), task.budget.memory_tokens
        # Under "extract" lines are chosen to fit; a memory to be rewritten stands in the prompt.
        if size > room and self.settings.protocol == "rewrite":
            raise RunChangedError(
                f"Going on with another setup: the memory so far takes {size:,} tokens, and this "
                f"setup has room for {room:,}. Use a model with a larger window."
            )
        # The open chunk was cut for the former setup.
        return {"setup": setup, "span": None}

    def _setup(self, budget: Budget) -> dict[str, str | int]:
        return {
            "model": self.model.model_name,
            "protocol": self.settings.protocol,
            "chunk_tokens": budget.chunk_tokens,
            "memory_tokens": budget.memory_tokens,
        }

    def _frame(self) -> int:
        """Tokens of the longest prompt without question, memory and chunk."""
        if self._frame_tokens is None:
            frame = rewrite_prompt(
                core_question="", memory="", plan="", chunk="", header="", memory_words=99_999
            )
            header = 'Section 9999 of about 9999, from "" (document 99 of 99), pages 999 to 999'
            self._frame_tokens = (
                self.model.count_tokens(frame[0]["content"] + header) + _TITLE_TOKENS
            )
        return self._frame_tokens

    def _references(self, state: MemoryState) -> list[DocumentReference]:
        collection = state["documents"][0]
        key = collection["collection_id"]
        with self._lock:
            if key not in self._collections:
                # One reading needs one collection; keep a few for readings that run side by side.
                if len(self._collections) >= 16:
                    self._collections.clear()
                self._collections[key] = self.store.collection(collection)
            return self._collections[key]

    def _next_span(
        self, task: ReadingTask, cursor: Cursor, references: Sequence[DocumentReference]
    ) -> Span:
        return next_span(
            self.store.open(references[cursor["document"]]),
            document=cursor["document"],
            start_char=cursor["start_char"],
            start_byte=cursor["start_byte"],
            max_tokens=task.budget.chunk_tokens,
            count_tokens=task.count_tokens,
            tolerance=self.settings.border_tolerance,
        )

    def _chunk(
        self,
        state: MemoryState,
        span: Span,
        text: StoredText,
        reference: DocumentReference,
        documents: int,
    ) -> Chunk:
        start_page, end_page = text.pages_of(span["start_char"], span["end_char"])
        return Chunk(
            text=text.read_from(span["start_byte"], span["end_char"] - span["start_char"]),
            document=span["document"],
            start_char=span["start_char"],
            end_char=span["end_char"],
            title=self._short_title(reference["title"]),
            step=state["step"],
            steps=state["steps"],
            documents=documents,
            start_page=start_page,
            end_page=end_page,
            before=text.read(max(0, span["start_char"] - _BEFORE_CHARS), span["start_char"]),
        )

    def _short_title(self, title: str) -> str:
        """The end of a title (a path's is what tells it), within `_TITLE_TOKENS`."""
        title = title[-120:]
        while self.model.count_tokens(neutralise(title, self.model.special_tokens)) > _TITLE_TOKENS:
            title = title[len(title) // 8 + 1 :]
        return title

    def _quotes(
        self, references: Sequence[DocumentReference], evidence: Sequence[Evidence]
    ) -> list[SourceText]:
        """The texts of pieces of evidence, each place once, in reading order."""
        places = sorted({place_of(piece) for piece in evidence})
        return [
            SourceText(
                document=document,
                start_char=start,
                text=self.store.open(references[document]).read(start, end),
            )
            for document, start, end in places
        ]

    def _strategy(self, collection: CollectionReference, task: ReadingTask) -> str:
        wanted = self.settings.strategy
        if wanted == "memory":
            return "memory"
        limit = task.budget.full_tokens
        if wanted == "auto":
            limit = min(limit, self.settings.full_tokens_max)
            if limit <= 0:
                return "memory"
        size = self._full_tokens(collection, task)
        if size is not None and size <= limit:
            return "full"
        if wanted == "auto":
            return "memory"
        found = f"{size:,}" if size is not None else f"far more than {limit:,}"
        raise DocumentTooLargeError(
            f'Strategy "full" reads everything in one pass: the documents take {found} tokens and '
            f"{limit:,} fit (the model's window is {self.model.window:,}, prompt and answer "
            f'included). Use strategy "memory" or "auto".'
        )

    def _full_tokens(self, collection: CollectionReference, task: ReadingTask) -> int | None:
        """Exact tokens of the one-pass prompt's text, None where it cannot possibly fit."""
        if collection["chars"] > task.budget.full_tokens * 16:
            return None
        text = self._whole(self.store.collection(collection))
        messages = full_prompt(question="", instructions="", document=task.clean(text))
        return self.model.count_tokens(messages[0]["content"])

    def _whole(self, references: Sequence[DocumentReference]) -> str:
        texts = []
        for reference in references:
            text = self.store.open(reference).read_from(0, reference["chars"])
            texts.append(text if len(references) == 1 else f"[{reference['title']}]\n{text}")
        return "\n\n".join(texts)

    def _evidence_for(
        self, answer: Answer, question: str, references: Sequence[DocumentReference]
    ) -> list[Evidence]:
        """Where the documents say what an answer says, for strategy "full"."""
        if not answer.text or says_not_found(answer.text):
            return []
        sources = [
            SourceText(
                document=index,
                start_char=0,
                text=self.store.open(reference).read_from(0, reference["chars"]),
            )
            for index, reference in enumerate(references)
        ]
        return find_support(
            answer.text,
            question=question,
            sources=sources,
            is_structured=answer.structured is not None,
        )

    def _citation(
        self, references: Sequence[DocumentReference], quote: SourceText, spans: Any
    ) -> SourceCitation:
        reference = references[quote.document]
        end = quote.start_char + len(quote.text)
        start_page, end_page = self.store.open(reference).pages_of(quote.start_char, end)
        return SourceCitation(
            cited_text=quote.text,
            document_id=reference["document_id"],
            document_title=reference["title"],
            start_char=quote.start_char,
            end_char=end,
            start_page=start_page,
            end_page=end_page,
            answer_spans=spans,
        )


@contextlib.contextmanager
def _told(emit: Emit) -> Iterator[None]:
    """Tells of a server's failure before LangGraph's retry policy waits in silence."""
    try:
        yield
    except ModelError as error:
        if is_retryable(error):
            emit({"type": "server_failed", "error": type(error).__name__, "message": str(error)})
        raise


class _WaitTold:
    """Tells that a server is waited for: at first, and then once a minute."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._next_s = 0.0

    def __call__(self, waiting: Waiting) -> None:
        if waiting.waited_s >= self._next_s:
            self._next_s = waiting.waited_s + _WAIT_TOLD_S
            self._emit(
                {
                    "type": "waiting_for_server",
                    "server": waiting.server,
                    "found": waiting.found,
                    "seconds": round(waiting.waited_s, 1),
                    "timeout_s": waiting.timeout_s,
                }
            )


def _history(state: MemoryState) -> list[Message]:
    """The turns that a question may point back to: those given, else the thread's own."""
    if given := state.get("history"):
        return given
    return [
        message
        for turn in state.get("turns") or []
        for message in (
            Message(role="user", content=turn["question"]),
            Message(role="assistant", content=turn["answer"]),
        )
    ]


def _unrecalled(usage: Usage) -> dict[str, Any]:
    """The state as it was before `recall`, but for what was spent."""
    return {**start_state(), "answered_from": "", "usage": usage}


def _is_borne_out(concluded: Mapping[str, Any]) -> bool:
    """Whether an answer was found, is cited, and claims nothing that stands in no quote."""
    return bool(
        concluded["found"]
        and concluded["citations"]
        and all(claim["status"] != "unsupported" for claim in concluded["unsupported"])
    )


def _places_kept(state: MemoryState) -> list[tuple[int, int, int]]:
    """Places in the same documents that earlier questions found, the newest questions' first."""
    here = state["documents"][0]["collection_id"]
    return list(
        dict.fromkeys(
            cast("tuple[int, int, int]", tuple(place))
            for turn in reversed(state.get("turns") or [])
            if turn["documents"] == here
            for place in turn["places"]
        )
    )


def _at_home(
    evidence: Sequence[Evidence], placed: Sequence[tuple[int, SourceText]]
) -> list[Evidence]:
    """Evidence that points into kept quotes, as places in their documents.

    A piece that runs over several quotes gives one for each.
    """
    return [
        Evidence(
            document=source.document,
            start_char=source.start_char + max(0, piece["start_char"] - at),
            end_char=source.start_char + min(len(source.text), piece["end_char"] - at),
            line=piece["line"],
        )
        for piece in evidence
        for at, source in placed
        if piece["start_char"] < at + len(source.text) and piece["end_char"] > at
    ]


def _passed_over(state: MemoryState, places: Sequence[list[int]]) -> dict[str, Any]:
    """Stretches that nobody read, joined where one begins at another's end."""
    joined = [list(place) for place in state.get("skipped") or []]
    for document, start, end in places:
        if joined and joined[-1][0] == document and joined[-1][2] == start:
            joined[-1][2] = end
        elif end > start:
            joined.append([document, start, end])
    return {"skipped": joined[:_SKIPPED_LISTED]}


def _reading_state(state: MemoryState) -> ReadingState:
    return ReadingState(
        memory=state["memory"],
        plan=state["plan"],
        evidence=unpack_evidence(state["evidence"]),
        tally=state["tally"],
    )


def _with(state: MemoryState, changes: dict[str, Any]) -> MemoryState:
    return cast("MemoryState", {**state, **changes})


def _change(before: ReadingState, after: ReadingState) -> dict[str, Any]:
    """What a step changed: memory lines, and places ([document, start_char, end_char])."""
    held, places = ({place_of(piece) for piece in state["evidence"]} for state in (before, after))
    return {
        **_lines_changed(before["memory"], after["memory"]),
        "places_added": [list(place) for place in sorted(places - held)],
    }


def _lines_changed(before: str, after: str) -> dict[str, list[str]]:
    old, new = Counter(before.splitlines()), Counter(after.splitlines())
    return {
        "lines_added": list((new - old).elements()),
        "lines_removed": list((old - new).elements()),
    }


def _usage(state: MemoryState) -> Usage:
    """A copy of what a run has cost so far; a checkpoint of before may not tell of thoughts."""
    return cast("Usage", {"reasoning_tokens": 0, **state["usage"]})


def _spent(before: Usage, after: Usage) -> dict[str, int]:
    """What a step cost."""
    return {
        "calls": after["calls"] - before["calls"],
        "retries": after["retries"] - before["retries"],
        "input_tokens": after["input_tokens"] - before["input_tokens"],
        "output_tokens": after["output_tokens"] - before["output_tokens"],
        "reasoning_tokens": after["reasoning_tokens"] - before["reasoning_tokens"],
    }


def _after(span: Span, reference: DocumentReference) -> Cursor:
    if span["end_char"] >= reference["chars"]:
        return Cursor(document=span["document"] + 1, start_char=0, start_byte=0)
    return Cursor(
        document=span["document"], start_char=span["end_char"], start_byte=span["end_byte"]
    )


def _counted(
    steps: Steps[Any], usage: Usage, emit: Emit, count_tokens: Callable[[str], int]
) -> Steps[Any]:
    """`steps`, with every call added to `usage` and every repeated one told as an event."""
    request = advance(steps)
    while isinstance(request, Request):
        if request.attempt:
            usage["retries"] += 1
            emit(
                {
                    "type": "retry",
                    "step": request.step,
                    "attempt": request.attempt,
                    "reason": request.reason,
                }
            )
        reply = yield request
        usage["calls"] += 1
        usage["input_tokens"] += (
            count_tokens("\n".join(message["content"] for message in request.messages))
            if reply.input_tokens is None
            else reply.input_tokens
        )
        thoughts = reply.reasoning_tokens
        if thoughts is None:
            thoughts = count_tokens(reply.thoughts)
        usage["reasoning_tokens"] += thoughts
        usage["output_tokens"] += (
            thoughts + count_tokens(reply.text)
            if reply.output_tokens is None
            else reply.output_tokens
        )
        request = advance(steps, reply)
    return request.result
