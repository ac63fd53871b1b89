"""No call of a run is larger than the window, whatever the texts are made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage

from qwenlong_graph import ReadingSettings, create_memory_agent
from qwenlong_graph.errors import (
    DocumentTooLargeError,
    QuestionError,
    SettingsError,
    WindowTooSmallError,
)
from qwenlong_graph.reading.budget import derive_budget
from qwenlong_graph.reading.prompts import neutralise
from qwenlong_graph.testing.scripted import count_words, scripted

CONTROL = "<|im_end|> </section> <memory> [INST] 😀👩‍👩‍👧 "
QUESTION = f"Who paid {CONTROL}for the bridge at Orrin?"
INSTRUCTIONS = f"In one word. {CONTROL}"
LINE = f"The widow Hale paid for the bridge at Orrin. {CONTROL}\n"
TITLE = "😀" * 300
SCHEMA = {
    "type": "object",
    "properties": {"payer": {"enum": ["widow 😀<|im_end|>", "😀</section>"]}},
    "required": ["payer"],
}
GOOD = json.dumps({"payer": "widow 😀<|im_end|>"})
WINDOWS = (2_300, 3_000, 4_096, 9_000, 33_000)


def count_bytes(text: str) -> int:
    return len(text.encode())


COUNTERS: dict[str, Callable[[str], int]] = {"bytes": count_bytes, "words": count_words}


def size_of(text: str, count: Callable[[str], int]) -> int:
    return count(neutralise(text))


def greedy(count: Callable[[str], int], *, window: int, wrong: str):
    """A model that fills whatever it is given room for; its first answer has the wrong form."""
    lines = window // size_of(f"- {LINE}", count) + 1

    def reply(messages: list[BaseMessage]) -> str:
        prompt = str(messages[-1].text)
        if "requested form" in prompt:
            return GOOD
        if "<previous_memory>" in prompt:
            memory = "".join(f"- {LINE}" for _ in range(lines)).replace("<memory>", "")
            plan = "look on 😀\n" * lines
            return f"<memory>\n{memory}</memory>\n<plan>\n{plan}</plan>"
        if "<core_question>" in prompt:
            return (
                f"<core_question>Who paid for the bridge at Orrin?</core_question>"
                f"<instructions>{CONTROL}</instructions>"
            )
        if "Copy the sentence" in prompt:
            return LINE
        return wrong

    model = scripted(reply, window=window, count_tokens=count)
    # In a stream the wrong answers would be taken for loops, and closed.
    model.chat.disable_streaming = True
    return model


def read(model, tmp_path, text: str, *, question: str = QUESTION, **given: Any) -> dict[str, Any]:
    settings = ReadingSettings(reply_attempts=2, **given.pop("settings"))
    agent = create_memory_agent(
        model, document_dir=tmp_path, settings=settings, response_format=SCHEMA
    )
    documents = [Document(text, metadata={"title": TITLE}), Document(LINE)]
    return agent.invoke({"question": question, "documents": documents, **given})


def assert_every_call_fits(model, count: Callable[[str], int]) -> None:
    assert model.chat.prompts
    for prompt, call in zip(model.chat.prompts, model.chat.calls, strict=True):
        size = sum(count(str(message.text)) for message in prompt)
        assert size + call["max_tokens"] <= model.window, str(prompt[-1].text)[:80]


def text_of(window: int, count: Callable[[str], int]) -> str:
    """About three chunks."""
    return LINE * (window // size_of(LINE, count) * 3 // 2)


@pytest.mark.parametrize("split", [True, False], ids=["split", "instructed"])
@pytest.mark.parametrize("protocol", ["rewrite", "extract"])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("counter", COUNTERS)
def test_every_call_of_a_reading_fits_the_window(tmp_path, counter, window, protocol, split):
    count = COUNTERS[counter]
    wrong = json.dumps({"payer": CONTROL * (window // 8)}, ensure_ascii=False)
    model = greedy(count, window=window, wrong=wrong)
    given = {} if split else {"instructions": INSTRUCTIONS}
    settings = {"strategy": "memory", "protocol": protocol}
    try:
        output = read(model, tmp_path, text_of(window, count), settings=settings, **given)
    except (WindowTooSmallError, QuestionError):
        # The fixed prompt alone takes thousands of bytes.
        assert counter == "bytes"
        assert window < 5_000
        assert not model.chat.prompts
        return
    assert output["structured_response"] == json.loads(GOOD)
    assert output["usage"]["steps"] >= 3
    assert len(model.chat.prompts[-1]) == 3, "one repair"
    assert_every_call_fits(model, count)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.4, 1.0, 3.0])
@pytest.mark.parametrize("window", [4_096, 9_000, 33_000])
@pytest.mark.parametrize("counter", COUNTERS)
def test_a_repair_fits_the_window_however_long_the_wrong_answer_was(
    tmp_path, counter, window, share
):
    count = COUNTERS[counter]
    if counter == "bytes" and window < 5_000:
        window = 6_500
    wrong = "no " + CONTROL * int(window * share / size_of(CONTROL, count))
    model = greedy(count, window=window, wrong=wrong)
    settings = {"strategy": "memory", "protocol": "rewrite"}
    read(model, tmp_path, text_of(window, count), settings=settings, instructions=INSTRUCTIONS)
    assert len(model.chat.prompts[-1]) == 3
    assert_every_call_fits(model, count)


@pytest.mark.parametrize("protocol", ["rewrite", "extract"])
@pytest.mark.parametrize("window", [2_300, 9_000])
@pytest.mark.parametrize("counter", COUNTERS)
def test_the_largest_document_that_one_pass_takes_fits_the_window(
    tmp_path, counter, window, protocol
):
    count = COUNTERS[counter]
    settings = {"strategy": "full", "protocol": protocol}
    wrong = "no " + CONTROL * (window // 8)

    def attempt(pieces: int) -> bool:
        """Whether a document of so many pieces is read; every call has to fit if it is."""
        model = greedy(count, window=window, wrong=wrong)
        try:
            read(
                model,
                tmp_path,
                "😀 </section>\n" * pieces,
                settings=settings,
                instructions=INSTRUCTIONS,
            )
        except DocumentTooLargeError:
            return False
        assert_every_call_fits(model, count)
        return True

    try:
        attempt(1)
    except (WindowTooSmallError, QuestionError):
        assert counter == "bytes"
        assert window < 5_000
        return
    low, high = 0, window
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if attempt(middle) else (low, middle)
    assert not attempt(window)


@pytest.mark.parametrize("protocol", ["rewrite", "extract"])
@pytest.mark.parametrize("window", [9_000, 20_000])
@pytest.mark.parametrize("counter", COUNTERS)
def test_the_longest_question_that_is_taken_fits_the_window(tmp_path, counter, window, protocol):
    count = COUNTERS[counter]
    settings = {"strategy": "memory", "protocol": protocol}
    taken = refused = 0
    for share in range(12, 27, 2):
        padding = CONTROL * int(window * share / 100 / size_of(CONTROL, count))
        model = greedy(count, window=window, wrong="no")
        try:
            read(model, tmp_path, LINE * 3, question=QUESTION + padding, settings=settings)
        except (WindowTooSmallError, QuestionError):
            refused += 1
            continue
        taken += 1
        assert_every_call_fits(model, count)
    assert taken
    assert refused


@pytest.mark.parametrize("protocol", ["rewrite", "extract"])
@pytest.mark.parametrize("counter", COUNTERS)
def test_the_largest_answer_that_may_be_set_fits_the_window(tmp_path, counter, protocol):
    count = COUNTERS[counter]
    window = 9_000
    model = greedy(count, window=window, wrong="no " + CONTROL * (window // 8))
    settings = {"strategy": "memory", "protocol": protocol, "answer_tokens": 1_000_000}
    with pytest.raises(SettingsError, match="at most") as refusal:
        read(model, tmp_path, LINE, settings=settings, instructions=INSTRUCTIONS)
    most = int(str(refusal.value).partition("at most ")[2].rstrip(".").replace(",", ""))
    settings["answer_tokens"] = most
    text = text_of(window, count)
    read(model, tmp_path, text, settings=settings, instructions=INSTRUCTIONS)
    assert model.chat.calls[-1]["max_tokens"] == most
    assert_every_call_fits(model, count)


@pytest.mark.parametrize("window", [2_048, 2_300, 4_096, 8_192, 33_000, 131_072, 1_000_000])
@pytest.mark.parametrize("memory_share", [None, 0.05, 0.15, 0.25, 0.3])
def test_a_rewriting_reply_has_room_for_a_whole_memory(window, memory_share):
    sizes = {} if memory_share is None else {"memory_tokens": max(96, int(window * memory_share))}
    try:
        budget = derive_budget(
            ReadingSettings(protocol="rewrite", **sizes),
            window=window,
            frame_tokens=420,
            question_tokens=20,
        )
    except SettingsError:
        assert window < 4_096, "only a small window lacks the room"
        assert memory_share is not None
        assert memory_share > 0.2
        return
    assert budget.output_tokens >= budget.memory_tokens + 64
