"""A perfect reader loses nothing: whatever is lost then is lost by the machine around it."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document

from qwenlong_graph import ReadingSettings, create_memory_agent
from qwenlong_graph.testing.oracle import oracle
from qwenlong_graph.testing.scripted import count_words

FACTS = [
    "The widow Hale paid 318,000 crowns for the bridge at Orrin.",
    "On 4 March 1874 the ferryman Ludo Brandt sold his last boat.",
    "No. 7 Almond Street was let to Dr. Solberg for ninety days.",
]
WORDS = "the winter was long and traders stayed away from our quiet coast that year"


def filler(words: int) -> str:
    """Sentences of varied length, `words` words in all."""
    sentences, left, turn = [], words, 0
    while left > 0:
        size = min(left, 4 + (turn * 7) % 11)
        sentences.append(" ".join(WORDS.split()[:size]).capitalize() + ".")
        left -= size
        turn += 1
    return " ".join(sentences)


@pytest.mark.parametrize("chunk_tokens", range(130, 330, 10))
@pytest.mark.parametrize("position", ["first", "last", "border"])
def test_facts_reach_memory_with_exact_spans_in_every_layout(tmp_path, chunk_tokens, position):
    size = sum(count_words(fact) for fact in FACTS)
    if position == "first":
        text = " ".join([*FACTS, filler(3 * chunk_tokens)])
    elif position == "last":
        text = " ".join([filler(3 * chunk_tokens), *FACTS])
    else:
        # Each fact straddles the place where a full chunk would end.
        parts = []
        for fact in FACTS:
            parts += [filler(chunk_tokens - size // 6), fact]
        text = " ".join([*parts, filler(chunk_tokens)])
    agent = create_memory_agent(
        oracle(FACTS),
        settings=ReadingSettings(strategy="memory", chunk_tokens=chunk_tokens),
        document_dir=tmp_path,
    )
    output = agent.invoke({"question": "What happened at Orrin?", "documents": [Document(text)]})
    assert output["usage"]["steps"] >= 3
    for fact in FACTS:
        assert fact in output["memory"]
    cited = {citation["cited_text"] for citation in output["citations"]}
    assert cited == set(FACTS)
    for citation in output["citations"]:
        assert text[citation["start_char"] : citation["end_char"]] == citation["cited_text"]
