from __future__ import annotations

from qwenlong_graph.graph.messages import answer_message, to_anthropic
from qwenlong_graph.types import SourceCitation

ANSWER = "The widow Hale paid. It was winter."
CITATION = SourceCitation(
    cited_text="The widow Hale paid for the bridge.",
    document_id="ab" * 32,
    document_title="annals.txt",
    start_char=100,
    end_char=135,
    start_page=None,
    end_page=None,
    answer_spans=[{"start_index": 0, "end_index": 20}],
)


def test_annotations_point_into_the_answer_and_extras_into_the_document():
    message = answer_message({"answer": ANSWER, "citations": [CITATION]})
    assert message.text == ANSWER
    (block,) = message.content_blocks
    (annotation,) = block["annotations"]
    assert annotation["type"] == "citation"
    assert ANSWER[annotation["start_index"] : annotation["end_index"]] == "The widow Hale paid."
    assert annotation["cited_text"] == CITATION["cited_text"]
    assert annotation["extras"]["start_char"] == 100
    assert annotation["extras"]["document_id"] == "ab" * 32


def test_a_quote_that_supports_no_single_sentence_has_no_indexes():
    loose = {**CITATION, "answer_spans": []}
    (block,) = answer_message({"answer": ANSWER, "citations": [loose]}).content_blocks
    (annotation,) = block["annotations"]
    assert annotation.get("start_index") is None


def test_offsets_get_the_names_of_anthropics_api():
    assert to_anthropic(CITATION, document_index=2) == {
        "type": "char_location",
        "cited_text": CITATION["cited_text"],
        "document_index": 2,
        "document_title": "annals.txt",
        "start_char_index": 100,
        "end_char_index": 135,
    }


def test_pages_end_exclusively_there():
    paged = to_anthropic({**CITATION, "start_page": 3, "end_page": 4})
    assert (paged["type"], paged["start_page_number"], paged["end_page_number"]) == (
        "page_location",
        3,
        5,
    )
