"""A model asked for its measurements: whatever it does, an end comes and it is told."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from contextlib import aclosing

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from qwenlong_graph.errors import (
    ConnectionSetupError,
    ContextOverflowError,
    ModelRefusedError,
    ModelUnavailableError,
)
from qwenlong_graph.models.connect import ConnectedModel, connect
from qwenlong_graph.models.probing import (
    PROBE_QUESTION,
    connect_within,
    examine,
    in_thread,
    server_finding,
)
from qwenlong_graph.reading.budget import ReadingSettings, derive_budget
from qwenlong_graph.reading.protocols import ReadingTask
from qwenlong_graph.testing.scripted import Stall, count_words, scripted
from qwenlong_graph.testing.tgi import (
    CommentsOnly,
    Fail,
    NoAnswer,
    Restart,
    TgiDouble,
    serve,
    small_tokenizer,
)

TOPICS = ["reply", "tokenizer", "template", "thinking", "prompt", "output", "step", "outlook"]
FACT = "The lease of the old mill was signed by Clara Jonsson in 1911."


def replied(prompt):
    """What a good model says to each of the probes."""
    if "2 + 3" in prompt:
        return "5"
    if "Count from 1" in prompt:
        return " ".join(map(str, range(1, 151)))
    if "<section>" in prompt and "<memory>" in prompt:
        return f"<memory>\n- {FACT}\n</memory>\n<plan>\nLook on.\n</plan>"
    return FACT


def engine(reply=replied, *, template_tokens=8, scale=1.0, **options):
    """A model in memory that keeps to its limit of output, and reports its counts.

    `reply` may give a text, an `AIMessage`, or an exception to raise. `scale` is the number of
    tokens that its server makes of one that is counted here.
    """

    def answer(messages):
        limit = model.chat.calls[-1]["max_tokens"]
        given = reply(messages[-1].text)
        if isinstance(given, Exception | Stall):
            return given
        message = AIMessage(given) if isinstance(given, str) else given
        text = message.text
        words = re.findall(r"\s*\S+", text)
        counted = sum(count_words(sent.text) for sent in messages)
        usage = message.usage_metadata or {
            "input_tokens": template_tokens + round(counted * scale),
            "output_tokens": min(count_words(text) + 1, limit),
            "total_tokens": 0,
        }
        is_cut = len(words) > limit
        metadata = {"finish_reason": "length" if is_cut else "stop", **message.response_metadata}
        changed = {"usage_metadata": usage, "response_metadata": metadata}
        return message.model_copy(update={"content": "".join(words[:limit]), **changed})

    model = scripted(answer, **options)
    return model


def task_for(model, reading=None):
    reading = reading or ReadingSettings()
    budget = derive_budget(reading, window=model.window, frame_tokens=400, question_tokens=20)
    return ReadingTask(
        core_question=PROBE_QUESTION,
        instructions="",
        budget=budget,
        count_tokens=model.count_tokens,
        special_tokens=model.special_tokens,
    )


def examined(model, *, limit_s=30.0, begins=lambda doing: None, reading=None):
    """The findings by topic, in their order."""
    reading = reading or ReadingSettings()

    async def ask():
        probes = examine(model, task_for(model, reading), reading, limit_s=limit_s, begins=begins)
        async with aclosing(probes) as found:
            return {finding.topic: finding async for finding in found}

    return asyncio.run(ask())


def problems_of(findings):
    return [
        (topic, problem.severity)
        for topic, finding in findings.items()
        for problem in finding.problems
    ]


class TestOfAModel:
    @pytest.mark.parametrize("protocol", ["rewrite", "extract"])
    def test_a_good_one_has_no_problems(self, protocol):
        begun = []
        model = engine()
        findings = examined(model, begins=begun.append, reading=ReadingSettings(protocol=protocol))
        assert list(findings) == TOPICS
        assert problems_of(findings) == []
        assert len(begun) == len(TOPICS) - 1
        measured = {topic: finding.measured for topic, finding in findings.items()}
        assert measured["reply"].text == "5"
        assert measured["tokenizer"].here == measured["tokenizer"].on_server > 70
        assert (measured["template"].tokens, measured["template"].system) == (8, "accepted")
        assert measured["thinking"].kind == "none"
        assert measured["prompt"].tokens > 1_000
        assert measured["output"].tokens == 128
        assert (measured["step"].outcome, measured["step"].is_fact_kept) == ("usable", True)

    def test_no_prompt_and_output_are_more_than_the_window(self):
        model = engine(window=2_500)
        assert problems_of(examined(model)) == []
        for messages, call in zip(model.chat.prompts, model.chat.calls, strict=True):
            prompt = sum(count_words(message.text) for message in messages)
            assert prompt + call["max_tokens"] + 8 <= 2_500

    def test_the_long_prompt_is_new_each_time_and_sent_twice(self):
        long = []
        for model in (engine(), engine()):
            examined(model)
            sent = [messages[-1].text for messages in model.chat.prompts]
            (twice,) = {text for text in sent if sent.count(text) == 2 and len(text) > 4_000}
            long.append(twice)
        assert long[0][:80] != long[1][:80]

    def test_settings_of_a_reading_are_those_it_is_asked_with(self):
        model = engine()
        examined(model, reading=ReadingSettings(temperature=0.3, top_p=0.5))
        assert {(call["temperature"], call["top_p"]) for call in model.chat.calls} == {(0.3, 0.5)}

    def test_a_tokenizer_that_disagrees_is_found(self):
        findings = examined(engine(scale=1.3))
        assert ("tokenizer", "stop") in problems_of(findings)
        found = findings["tokenizer"].measured
        assert found.on_server > found.here

    def test_one_without_counts_is_warned_of(self):
        def bare(prompt):
            usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
            return AIMessage(replied(prompt), usage_metadata=usage)

        assert problems_of(examined(engine(bare))) == [("tokenizer", "warning")]

    def test_prompts_cut_without_a_word_are_found(self):
        def cutting(prompt):
            usage = {
                "input_tokens": min(8 + count_words(prompt), 700),
                "output_tokens": 1,
                "total_tokens": 0,
            }
            return AIMessage(replied(prompt), usage_metadata=usage)

        findings = examined(engine(cutting))
        assert ("prompt", "stop") in problems_of(findings)
        assert "read 700" in findings["prompt"].problems[0].found

    def test_no_template_is_found(self):
        assert ("template", "stop") in problems_of(examined(engine(template_tokens=0)))

    def test_a_base_model_is_found_by_its_endless_reply(self):
        findings = examined(engine(lambda prompt: "What is 2 + 3? " * 400))
        assert problems_of(findings)[0] == ("reply", "stop")
        assert "base model" in findings["reply"].problems[0].found

    def test_a_reply_that_cannot_be_used_is_warned_of(self):
        def aimless(prompt):
            return "What a long log." if "<section>" in prompt else replied(prompt)

        findings = examined(engine(aimless))
        assert problems_of(findings) == [("step", "warning")]
        assert "no memory element" in findings["step"].problems[0].found

    @pytest.mark.parametrize(
        ("text", "outcome", "reason"),
        [
            ("so it goes on and " * 600, "unusable", "repeated itself"),
            ("<think>\nWhat a long log.", "unusable", "inside its thoughts"),
            (" ".join(f"ship{n}" for n in range(3_000)), "unfinished", ""),
        ],
    )
    def test_a_reply_to_a_chunk_without_end_is_told_by_its_kind(self, text, outcome, reason):
        def endless(prompt):
            # Without a speed of output, a trial waits for about a thousand tokens.
            short = "one" if "Count from" in prompt else replied(prompt)
            return text if "<section>" in prompt else short

        step = examined(engine(endless))["step"]
        assert step.measured.outcome == outcome
        assert len(step.problems) == 1
        assert reason in step.problems[0].found


class TestOfSystemMessages:
    def heard(self, *, told):
        model = None

        def reply(prompt):
            if len(model.chat.prompts[-1]) == 1:
                return replied(prompt)
            return told

        model = engine(reply)
        return examined(model)

    @pytest.mark.parametrize(
        "refusal", [ModelRefusedError("No system role."), ModelUnavailableError("Template failed.")]
    )
    def test_a_refusal_of_any_kind_is_only_noted(self, refusal):
        findings = self.heard(told=refusal)
        assert problems_of(findings) == [("template", "note")]
        assert findings["template"].measured.system == "refused"

    def test_one_that_is_dropped_is_noticed(self):
        usage = {"input_tokens": 9, "output_tokens": 1, "total_tokens": 10}
        findings = self.heard(told=AIMessage("x", usage_metadata=usage))
        assert findings["template"].measured.system == "dropped"

    def test_one_that_replaces_a_default_is_accepted(self):
        # As SmolLM2's template: without a system message, it sends one of its own.
        default = "You are a helpful assistant, made by people who like long introductions."

        def reply(prompt):
            system, *rest = model.chat.prompts[-1]
            sent = [system.text if rest else default, (rest or [system])[0].text]
            tokens = 8 + sum(map(count_words, sent))
            usage = {"input_tokens": tokens, "output_tokens": 1, "total_tokens": tokens + 1}
            said = replied(prompt)
            return AIMessage(said, usage_metadata=usage) if prompt == "x" else said

        model = engine(reply)
        findings = examined(model)
        assert findings["template"].measured.system == "accepted"


THOUGHTS = "Two and three, let me see, that would be one more than four, and so it is five."


class TestOfThoughts:
    def found(self, form, **metadata):
        def reply(prompt):
            if "2 + 3" not in prompt:
                return replied(prompt)
            return AIMessage(form.format(THOUGHTS), response_metadata=metadata)

        return examined(engine(reply))

    @pytest.mark.parametrize(
        ("form", "kind"),
        [("<think>\n{}\n</think>\n\n5", "tagged"), ("{}\n</think>\n\n5", "unopened")],
    )
    def test_in_the_text_are_found_and_their_cut_shows(self, form, kind):
        findings = self.found(form)
        assert problems_of(findings) == []
        thinking = findings["thinking"].measured
        assert (thinking.kind, thinking.cut) == (kind, "shown")
        assert thinking.tokens > 10
        assert findings["reply"].measured.text == "5"

    def test_in_a_field_apart_are_found(self):
        def reply(prompt):
            if "2 + 3" not in prompt:
                return replied(prompt)
            if model.chat.calls[-1]["max_tokens"] < 50:
                cut = {"finish_reason": "length"}
                thoughts = {"reasoning_content": THOUGHTS[:20]}
                return AIMessage("", additional_kwargs=thoughts, response_metadata=cut)
            return AIMessage("5", additional_kwargs={"reasoning_content": THOUGHTS})

        model = engine(reply)
        findings = examined(model)
        assert problems_of(findings) == []
        thinking = findings["thinking"].measured
        assert (thinking.kind, thinking.cut) == ("separated", "shown")

    def test_whose_cut_looks_like_an_answer_stop_a_reading(self):
        findings = self.found("{}\n</think>\n\n5", finish_reason="stop")
        assert problems_of(findings) == [("thinking", "stop")]

    @pytest.mark.parametrize(
        ("reason", "cut", "expected"),
        [("length", "shown", "note"), ("stop", "not shown", "stop")],
    )
    def test_that_the_server_keeps_are_noticed_by_their_cost(self, reason, cut, expected):
        def reply(prompt):
            if "2 + 3" not in prompt:
                return replied(prompt)
            is_cut = model.chat.calls[-1]["max_tokens"] < 150
            usage = {"input_tokens": 17, "output_tokens": 150, "total_tokens": 167}
            metadata = {"finish_reason": reason} if is_cut else {}
            return AIMessage(
                "" if is_cut else "5", usage_metadata=usage, response_metadata=metadata
            )

        model = engine(reply)
        findings = examined(model)
        thinking = findings["thinking"].measured
        assert (thinking.kind, thinking.tokens, thinking.cut) == ("hidden", 149, cut)
        assert problems_of(findings) == [("thinking", expected)]


class TestOfFailures:
    def test_a_failure_ends_it_and_says_what_went_on(self):
        def dying(prompt):
            if "Count from" in prompt:
                return ModelUnavailableError("Calling m failed (HTTP 500): it is gone. Look there.")
            return replied(prompt)

        findings = examined(engine(dying))
        assert list(findings) == TOPICS[: TOPICS.index("output") + 1]
        (problem,) = findings["output"].problems
        assert (problem.severity, problem.exit_code) == ("stop", 4)
        assert problem.found.startswith("While timing its output: ")
        assert findings["prompt"].measured is not None

    def test_a_window_that_is_none_ends_it(self):
        def narrow(prompt):
            if count_words(prompt) > 900:
                return ContextOverflowError("Calling m failed: the prompt is too long.")
            return replied(prompt)

        (problem,) = examined(engine(narrow))["prompt"].problems
        assert (problem.severity, problem.exit_code) == ("stop", 2)
        assert "--window" in problem.remedy

    def test_a_model_that_never_answers_ends_it(self):
        findings = examined(engine(lambda prompt: Stall(60)), limit_s=0.2)
        assert problems_of(findings) == [("reply", "stop")]
        assert findings["reply"].problems[0].exit_code == 4

    def test_one_too_slow_for_long_prompts_is_measured_otherwise(self):
        def slow(prompt):
            return Stall(60) if count_words(prompt) > 600 else replied(prompt)

        findings = examined(engine(slow), limit_s=3.0)
        assert list(findings) == TOPICS
        assert [topic for topic, severity in problems_of(findings) if severity == "warning"] == [
            "prompt",
            "step",
        ]
        assert findings["output"].measured is not None
        assert findings["outlook"].measured is None

    def test_an_error_of_our_own_passes(self):
        with pytest.raises(ZeroDivisionError):
            examined(engine(lambda prompt: ZeroDivisionError()))

    def test_counting_that_hangs_is_given_up(self):
        gate = threading.Event()

        def count(text):
            if text == "5":
                gate.wait(30)
            return count_words(text)

        try:
            findings = examined(engine(count_tokens=count), limit_s=0.3)
        finally:
            gate.set()
        assert problems_of(findings) == [("reply", "stop")]

    def test_a_model_without_async_calls_is_given_up_too(self):
        gate, ended = threading.Event(), []

        class Blocking(BaseChatModel):
            @property
            def _llm_type(self):
                return "blocking"

            def _generate(self, messages, stop=None, run_manager=None, **kwargs):
                gate.wait(60)
                ended.append(messages)
                return ChatResult(generations=[ChatGeneration(message=AIMessage("5"))])

        model = connect(Blocking(), window=4_096, count_tokens=count_words)
        findings = examined(model, limit_s=0.3)
        assert (problems_of(findings), ended) == ([("reply", "stop")], [])
        gate.set()


async def test_a_thread_gives_its_result_or_its_error():
    assert await in_thread(lambda: 3) == 3
    with pytest.raises(KeyError):
        await in_thread(lambda: {}["none"])


async def test_a_server_that_says_nothing_is_given_up():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionSetupError, match=r"within 0\.3 s"):
            await connect_within(0.3, url)


def test_what_a_connected_model_tells_is_passed_on():
    chat = scripted(replied).chat
    model = ConnectedModel(
        chat=chat,
        window=100,
        count_tokens=len,
        special_tokens=(),
        engine="tgi",
        concurrency=3,
        model_name="m",
        version="3.3",
        notes=("It ends early. Start it otherwise.",),
    )
    found = server_finding(model, url="http://h")
    assert found.measured.version == "3.3"
    assert [(p.severity, p.remedy) for p in found.problems] == [("note", "Start it otherwise.")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def thinking_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("thinking")
    small_tokenizer(opens_thinking=True).save_pretrained(path)
    return path


def double(reply=replied, **options):
    return TgiDouble(reply, max_input_tokens=7_168, max_total_tokens=8_192, **options)


@pytest.mark.contract
class TestOfTgi:
    def test_a_good_one_has_no_problems(self, folder):
        with serve(double()) as url:
            model = connect(url, tokenizer=folder)
            findings = examined(model)
            model.close()
        assert list(findings) == TOPICS
        assert problems_of(findings) == []
        found = findings["tokenizer"].measured
        assert found.here == found.on_server
        assert found.controls_here == found.controls_on_server > 50
        assert findings["template"].measured.tokens == model.template_tokens

    def test_thoughts_come_apart_and_a_cut_shows(self, thinking_folder):
        def reply(prompt):
            return f"{THOUGHTS}</think>\n\n{replied(prompt)}"

        thinker = double(reply, tokenizer=small_tokenizer(opens_thinking=True))
        with serve(thinker) as url:
            model = connect(url, tokenizer=thinking_folder)
            findings = examined(model)
            model.close()
        assert problems_of(findings) == []
        thinking = findings["thinking"].measured
        assert (thinking.kind, thinking.cut) == ("separated", "shown")
        assert thinking.tokens > 10
        assert findings["step"].measured.beside_memory > 10

    @pytest.mark.parametrize("number", [1, 4, 9])
    def test_a_server_that_dies_in_the_middle(self, folder, number):
        dying = double(faults={number: Restart(refuse_s=600)})
        with serve(dying) as url:
            model = connect(url, tokenizer=folder)
            findings = examined(model)
            model.close()
        last = list(findings.values())[-1]
        assert last.measured is None
        assert [(p.severity, p.exit_code) for p in last.problems] == [("stop", 4)]
        assert problems_of(findings) == [(last.topic, "stop")]

    @pytest.mark.parametrize("fault", [NoAnswer(), CommentsOnly()])
    def test_one_that_falls_silent_is_left_and_its_slot_freed(self, folder, fault):
        silent = double(faults={2: fault})
        with serve(silent) as url:
            model = connect(url, tokenizer=folder)
            findings = examined(model, limit_s=4.0)
            model.close()
            silent.wait_idle()
        assert problems_of(findings) == [("tokenizer", "stop")]
        assert silent.cancelled == 1

    def test_a_busy_one_is_told_to_be_busy(self, folder):
        with serve(double(faults={range(1, 99): Fail(429)})) as url:
            model = connect(url, tokenizer=folder)
            findings = examined(model, limit_s=5.0)
            model.close()
        assert problems_of(findings) == [("reply", "stop")]
        assert findings["reply"].problems[0].exit_code == 4


@pytest.mark.end_to_end
def test_the_embedded_model_is_ready(embedded_model):
    reading = ReadingSettings().over(embedded_model.defaults)
    findings = examined(embedded_model, limit_s=120.0, reading=reading)
    assert list(findings) == TOPICS
    assert "stop" not in [severity for _, severity in problems_of(findings)]
    measured = {topic: finding.measured for topic, finding in findings.items()}
    assert measured["tokenizer"].here == measured["tokenizer"].on_server
    assert measured["template"].system == "accepted"
    assert measured["thinking"].kind == "none"
    # llama.cpp keeps the last prompt of a slot.
    assert measured["prompt"].caching == "on"
    assert measured["outlook"].hours > 0
