"""What the tools give: the forms of their results, and the same as text for a model.

Texts of documents and models are data: what has no place in UTF-8 is replaced before it is sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BaseModel, Field

from qwenlong_graph.mcp.reader import Answered, Estimated, LeftOut
from qwenlong_graph.reading.answers import NOT_FOUND_ANSWER

__all__ = [
    "AnswerResult",
    "EstimateResult",
    "RunsResult",
    "answer_result",
    "answer_text",
    "encodable",
    "estimate_result",
    "estimate_text",
    "evidence_uri",
    "memory_uri",
    "report_uri",
    "runs_text",
]

QUOTE_CHARS_MAX = 600
"""Longer quotes are cut in the text; the structured result has them whole."""

_SURROGATES = re.compile("[\ud800-\udfff]")


class Span(BaseModel):
    """A stretch of the answer's text."""

    start_index: int
    end_index: int


class Citation(BaseModel):
    """A quote that was found in a document at these offsets."""

    cited_text: Annotated[str, Field(description="The quote, letter by letter.")]
    document_title: str
    document_id: Annotated[str, Field(description="SHA-256 of the document's text.")]
    start_char: Annotated[int, Field(description="Offset into the document's text.")]
    end_char: int
    start_page: Annotated[int | None, Field(description="From 1; null without pages.")]
    end_page: int | None
    answer_spans: Annotated[
        list[Span], Field(description="The sentences of the answer that the quote supports.")
    ] = []


class Claim(BaseModel):
    """A figure, date or name of the answer that stands in no quote."""

    text: str
    kind: str
    status: Annotated[
        str,
        Field(
            description='"unsupported", or "computed" where it follows from figures of quotes as '
            "`derivation` says."
        ),
    ]
    derivation: str | None
    start_index: int
    end_index: int


class Unread(BaseModel):
    """A stretch for which the model gave no usable reply."""

    document_title: str
    start_char: int
    end_char: int


class Cost(BaseModel):
    """What the reading has cost."""

    steps: Annotated[int, Field(description="Chunks read.")]
    calls: Annotated[int, Field(description="Calls of the model.")]
    retries: int
    input_tokens: int
    output_tokens: int
    unread: Annotated[int, Field(description="Chunks that got no usable reply.")]
    unread_spans: list[Unread]


class Omitted(BaseModel):
    """A file, or pages of one, that were not read."""

    name: str
    reason: str


class AnswerResult(BaseModel):
    """An answer with its evidence."""

    run_id: Annotated[str, Field(description="Names the kept run; resume_run takes it.")]
    question: str
    answer: str
    found: Annotated[
        bool,
        Field(
            description="False: nothing in the documents bears on the question, or nothing bears "
            "the answer out. Then do not rely on the answer."
        ),
    ]
    is_quoted: Annotated[
        bool, Field(description="The answer is the best quotes, not the model's words.")
    ]
    citations: list[Citation]
    unsupported: Annotated[
        list[Claim], Field(description="What to be careful with: it stands in no quote.")
    ]
    usage: Cost
    documents: list[str]
    left_out: list[Omitted]
    model: str
    memory_uri: Annotated[str, Field(description="Resource: the notes taken while reading.")]
    evidence_uri: Annotated[str, Field(description="Resource: all quotes the notes rest on.")]
    report_uri: Annotated[
        str,
        Field(description="Resource: an HTML page for the user, on how the answer came about."),
    ]


class DocumentSize(BaseModel):
    """One document, as estimated."""

    title: str
    chars: int
    tokens: int
    chunks: int


class EstimateResult(BaseModel):
    """What reading the documents would take."""

    documents: list[DocumentSize]
    tokens: int
    chunks: int
    calls: Annotated[int, Field(description="Calls of the model, repeats not foreseen.")]
    input_tokens: int
    chunk_tokens: int
    memory_tokens: int
    is_one_pass: Annotated[
        bool, Field(description="All of it seems to fit in a single call; then one is made.")
    ]
    disk_bytes: int
    model: str
    left_out: list[Omitted]


class RunEntry(BaseModel):
    """A kept run."""

    run_id: str
    state: Annotated[
        str,
        Field(
            description='"reading" (now, by this server), "not begun" or "begun" (resume_run goes '
            'on), "finished" (resume_run gives its answer again), "unreadable".'
        ),
    ]
    question: str
    step: Annotated[int, Field(description="Chunks read.")]
    steps: Annotated[int, Field(description="Chunks in all, an estimate until the end.")]
    created: str
    documents: list[str]


class RunsResult(BaseModel):
    """The kept runs, the newest first."""

    runs: list[RunEntry]
    more: Annotated[int, Field(description="Older runs that are not listed.")]


def memory_uri(run_id: str) -> str:
    """The address of a run's memory."""
    return f"run://{run_id}/memory"


def evidence_uri(run_id: str) -> str:
    """The address of a run's evidence."""
    return f"run://{run_id}/evidence"


def report_uri(run_id: str) -> str:
    """The address of a run's report."""
    return f"run://{run_id}/report"


def answer_result(answered: Answered) -> AnswerResult:
    """The structured form of an answer."""
    output, titles = encodable(answered.output), list(answered.titles)
    usage = {
        **output["usage"],
        "unread_spans": [
            {**span, "document_title": titles[span["document"]]}
            for span in output["usage"]["unread_spans"]
        ],
    }
    return AnswerResult(
        run_id=answered.run_id,
        question=output["question"],
        answer=output["answer"],
        found=output["found"],
        is_quoted=output["is_quoted"],
        citations=[Citation.model_validate(citation) for citation in output["citations"]],
        unsupported=[Claim.model_validate(claim) for claim in output["unsupported"]],
        usage=Cost.model_validate(usage),
        documents=titles,
        left_out=_omissions(answered.left_out),
        model=answered.model_name,
        memory_uri=memory_uri(answered.run_id),
        evidence_uri=evidence_uri(answered.run_id),
        report_uri=report_uri(answered.run_id),
    )


def answer_text(result: AnswerResult) -> str:
    """The answer for a model that reads: [1] after what a source supports, then the sources."""
    blocks = [_answered(result)]
    if result.citations:
        sources = [_source(number, cited) for number, cited in enumerate(result.citations, 1)]
        blocks.append("\n".join(["Sources, quoted from the documents:", *sources]))
    doubtful = [claim for claim in result.unsupported if claim.status == "unsupported"]
    computed = [claim for claim in result.unsupported if claim.status != "unsupported"]
    if doubtful:
        lines = [f"- {claim.text} ({claim.kind})" for claim in doubtful]
        blocks.append("\n".join(["In none of the sources, so do not rely on it:", *lines]))
    if computed:
        lines = [f"- {claim.text}: {claim.derivation}" for claim in computed]
        blocks.append("\n".join(["Computed from the sources:", *lines]))
    if result.usage.unread_spans:
        lines = [
            f"- {span.document_title}, chars {span.start_char}-{span.end_char}"
            for span in result.usage.unread_spans
        ]
        blocks.append("\n".join(["Not read, for the model gave no usable reply:", *lines]))
    blocks += _omitted(result.left_out)
    blocks.append(
        f"Run: {result.run_id} (notes: {result.memory_uri}, evidence: {result.evidence_uri})"
    )
    return "\n\n".join(blocks)


def estimate_result(estimated: Estimated) -> EstimateResult:
    """The structured form of an estimate."""
    told = asdict(estimated.estimate)
    return EstimateResult.model_validate({**told, "left_out": _omissions(estimated.left_out)})


def estimate_text(result: EstimateResult) -> str:
    """An estimate for a model that reads."""
    documents = [
        f"- {document.title}: {document.chars:,} characters, {document.tokens:,} tokens, "
        f"{document.chunks:,} chunks"
        for document in result.documents
    ]
    lines = [
        f"Reading this takes about {result.calls:,} calls of {result.model} for "
        f"{result.chunks:,} chunks of up to {result.chunk_tokens:,} tokens, with about "
        f"{result.input_tokens:,} tokens of input.",
        *documents,
    ]
    if result.is_one_pass:
        lines.append("All of it seems to fit in one pass: then a single call is made.")
    return "\n\n".join(["\n".join(lines), *_omitted(result.left_out)])


def runs_text(result: RunsResult) -> str:
    """The runs for a model that reads."""
    if not result.runs:
        return "No runs are kept here."
    lines = [f"- {run.run_id} ({_how_far(run)}): {run.question}" for run in result.runs]
    if result.more:
        lines.append(f"{result.more:,} older runs are not listed.")
    return "\n".join(lines)


def encodable(value: Any) -> Any:
    """`value` (of JSON's types) without lone surrogates, which no encoder takes."""
    match value:
        case str():
            return _SURROGATES.sub("\ufffd", value)
        case Mapping():
            return {encodable(key): encodable(held) for key, held in value.items()}
        case list() | tuple():
            return [encodable(held) for held in value]
        case _:
            return value


def _how_far(run: RunEntry) -> str:
    if run.state in {"begun", "reading"}:
        return f"{run.state}, {run.step} of about {run.steps} chunks read"
    return run.state


def _answered(result: AnswerResult) -> str:
    if result.found:
        quoted = "\n\n(Quoted: the model's own answer was not borne out by the text.)"
        return _marked(result.answer, result.citations) + (quoted if result.is_quoted else "")
    if result.answer == NOT_FOUND_ANSWER:
        return "Not found: nothing in the documents bears on this question."
    return (
        "Not found: no passage of the documents bears out what the model answered, so do not "
        f"rely on it: {result.answer}"
    )


def _marked(answer: str, citations: Sequence[Citation]) -> str:
    markers: dict[int, list[int]] = {}
    for number, citation in enumerate(citations, start=1):
        for span in citation.answer_spans:
            markers.setdefault(_end_of(answer, span), []).append(number)
    for place in sorted(markers, reverse=True):
        marks = "".join(f"[{number}]" for number in markers[place])
        answer = f"{answer[:place]} {marks}{answer[place:]}"
    return answer


def _end_of(answer: str, span: Span) -> int:
    return span.start_index + len(answer[span.start_index : span.end_index].rstrip())


def _source(number: int, cited: Citation) -> str:
    first, last = cited.start_page, cited.end_page
    pages = f", page {first}" if first == last else f", pages {first}-{last}"
    pages = "" if first is None else pages
    quote = " ".join(cited.cited_text.split())
    if len(quote) > QUOTE_CHARS_MAX:
        quote = f"{quote[:QUOTE_CHARS_MAX]} [...]"
    where = f"{cited.document_title}{pages}, chars {cited.start_char}-{cited.end_char}"
    return f'[{number}] {where}: "{quote}"'


def _omissions(left_out: Sequence[LeftOut]) -> list[Omitted]:
    return [Omitted.model_validate(encodable(asdict(out))) for out in left_out]


def _omitted(left_out: Sequence[Omitted]) -> Iterator[str]:
    if left_out:
        lines = [f"- {omitted.name}: {omitted.reason}" for omitted in left_out]
        yield "\n".join(["Left out:", *lines])
