"""What measurements mean: worked out without any model."""

from __future__ import annotations

import socket

import pytest

from qwenlong_graph.errors import (
    ConnectionSetupError,
    ContextOverflowError,
    ModelOverloadedError,
    ModelUnavailableError,
    SettingsError,
)
from qwenlong_graph.models.diagnosing import (
    Finding,
    Heard,
    OutputFound,
    Problem,
    PromptFound,
    ReplyFound,
    StepFound,
    TemplateFound,
    ThinkingFound,
    TokenizerFound,
    connection_problem,
    failure_problem,
    noted_problem,
    outlook_of,
    outlook_problems,
    output_of,
    prompt_of,
    prompt_problems,
    reply_problems,
    step_problems,
    stopping_code,
    template_problems,
    thinking_of,
    thinking_problems,
    tokenizer_problems,
)
from qwenlong_graph.reading.budget import Budget


def heard(text="5", *, seconds=1.0, **more):
    return Heard(text=text, seconds=seconds, **more)


def severities(problems):
    return [problem.severity for problem in problems]


class TestThinking:
    @pytest.mark.parametrize(
        ("reply", "text_tokens", "kind", "tokens"),
        [
            (heard("5", output_tokens=2), 1, "none", 0),
            (heard("5"), 1, "none", 0),
            (heard("5", reasoning="two and three", output_tokens=30), 1, "separated", 29),
            (heard("5", reasoning="a", reasoning_tokens=7, output_tokens=9), 1, "separated", 7),
            (heard("5", output_tokens=200), 1, "hidden", 199),
            (heard("5", reasoning_tokens=64, output_tokens=66), 1, "hidden", 64),
            (heard("<think>\na b c\n</think>5", output_tokens=10), 10, "tagged", 6),
            (heard("two and three are</think>5", output_tokens=10), 10, "unopened", 7),
            (heard("one two", is_truncated=True, output_tokens=2), 2, "unknown", 0),
        ],
    )
    def test_is_told_by_where_the_thoughts_are(self, reply, text_tokens, kind, tokens):
        found = thinking_of(reply, text_tokens=text_tokens)
        assert (found.kind, found.tokens, found.cut) == (kind, tokens, None)

    @pytest.mark.parametrize(
        ("cut", "shown"),
        [
            (heard("Well, two", is_truncated=True), "shown"),
            (heard("<think>Well, two", is_thinking_cut=True), "shown"),
            (heard("Well, two"), "not shown"),
            (heard(""), "not shown"),
            # So short a thought was not cut.
            (heard("Two.</think>5"), None),
        ],
    )
    def test_a_cut_shows_by_its_reason_or_by_open_thoughts(self, cut, shown):
        reply = heard("a b c</think>5", output_tokens=4)
        found = thinking_of(reply, text_tokens=4, cut=cut)
        assert found.cut == shown
        assert severities(thinking_problems(found)) == (["stop"] if shown == "not shown" else [])

    @pytest.mark.parametrize(("text", "shown"), [("5", None), (" ", "not shown")])
    def test_thoughts_apart_are_not_cut_where_the_answer_came(self, text, shown):
        reply = heard("5", reasoning="Two.", output_tokens=4)
        cut = heard(text, reasoning="Two.")
        assert thinking_of(reply, text_tokens=1, cut=cut).cut == shown

    def test_hidden_thoughts_are_noted(self):
        found = ThinkingFound(kind="hidden", tokens=99, cut="shown")
        assert severities(thinking_problems(found)) == ["note"]


def reply_found(text="5", *, is_truncated=False):
    return ReplyFound(text=text, is_truncated=is_truncated, output_tokens=1024, seconds=1.0)


class TestReply:
    @pytest.mark.parametrize(
        ("reply", "kind", "expected"),
        [
            (reply_found("5"), "none", []),
            (reply_found("Five."), "none", []),
            (reply_found("6"), "none", ["note"]),
            (reply_found(""), "none", ["stop"]),
            (reply_found("2 + 3 2 + 3", is_truncated=True), "unknown", ["stop"]),
            (reply_found("", is_truncated=True), "tagged", ["warning"]),
        ],
    )
    def test_has_to_come_and_to_end(self, reply, kind, expected):
        thinking = ThinkingFound(kind=kind, tokens=None, cut=None)
        assert severities(reply_problems(reply, thinking)) == expected

    def test_a_reply_without_end_is_told_to_be_a_base_models(self):
        thinking = ThinkingFound(kind="unknown", tokens=0, cut=None)
        (problem,) = reply_problems(reply_found(is_truncated=True), thinking)
        assert "base model" in problem.found
        assert "instruct" in problem.remedy
        assert problem.exit_code == 2


def tokens(here=200, on_server=200, controls=50, controls_on_server=50):
    return TokenizerFound(
        here=here,
        on_server=on_server,
        controls_here=controls,
        controls_on_server=controls_on_server,
    )


class TestTokenizer:
    @pytest.mark.parametrize(
        ("found", "expected"),
        [
            (tokens(), []),
            (tokens(on_server=202), []),
            (tokens(on_server=203), ["stop"]),
            (tokens(on_server=170), ["stop"]),
            (tokens(on_server=None, controls_on_server=None), ["warning"]),
            (tokens(on_server=0, controls_on_server=0), ["warning"]),
            (tokens(controls_on_server=12), ["warning"]),
        ],
    )
    def test_has_to_count_as_the_server_does(self, found, expected):
        assert severities(tokenizer_problems(found)) == expected

    def test_both_counts_are_told(self):
        (problem,) = tokenizer_problems(tokens(here=1200, on_server=1900))
        assert "1,200 tokens here and 1,900 on the server" in problem.found


class TestTemplate:
    @pytest.mark.parametrize(
        ("count", "system", "foreseen", "expected"),
        [
            (8, "accepted", 0, []),
            (48, "unknown", 0, []),
            (49, "accepted", 0, ["warning"]),
            (49, "accepted", 50, []),
            (0, "accepted", 0, ["stop"]),
            (1, "accepted", 0, ["stop"]),
            (None, "unknown", 0, []),
            (8, "refused", 0, ["note"]),
            (8, "dropped", 0, ["note"]),
        ],
    )
    def test_has_to_be_applied_and_to_have_room(self, count, system, foreseen, expected):
        found = TemplateFound(tokens=count, system=system, special_tokens=3)
        assert severities(template_problems(found, foreseen_tokens=foreseen)) == expected


def prompt(**changes):
    values = {
        "tokens": 10_000,
        "tokens_on_server": 10_008,
        "step_tokens": 12_000,
        "first_s": 5.1,
        "again_s": 5.0,
        "base_s": 0.1,
        "ratio": 0.98,
        "tokens_per_s": 2_000.0,
        "caching": "off",
    }
    return PromptFound(**(values | changes))


class TestPrompt:
    @pytest.mark.parametrize(
        ("first_s", "again_s", "cached", "caching"),
        [
            (5.1, 0.3, None, "on"),
            (5.1, 2.6, None, "on"),
            (5.1, 3.5, None, "unclear"),
            (5.1, 4.6, None, "off"),
            (5.1, 0.05, None, "on"),
            (0.12, 0.11, None, "unclear"),
            # A busy machine may take as long again; the server knows better.
            (5.1, 5.1, 900, "on"),
            (0.12, 0.11, 900, "on"),
            (5.1, 5.1, 3, "off"),
        ],
    )
    def test_caching_shows_in_the_second_time(self, first_s, again_s, cached, caching):
        found = prompt_of(
            heard(seconds=first_s),
            heard(seconds=again_s, cached_tokens=cached),
            tokens=1_000,
            step_tokens=1_000,
            base_s=0.1,
        )
        assert found.caching == caching

    def test_speed_leaves_out_what_a_tiny_prompt_takes_too(self):
        first, again = heard(seconds=2.1, input_tokens=1_008), heard(seconds=1.1)
        found = prompt_of(first, again, tokens=1_000, step_tokens=9_000, base_s=0.1)
        assert (found.tokens_per_s, found.ratio) == (500.0, 0.5)
        assert (found.tokens_on_server, found.step_tokens) == (1_008, 9_000)

    def test_what_is_too_fast_to_time_has_no_speed(self):
        found = prompt_of(heard(seconds=0.1), heard(), tokens=9, step_tokens=9, base_s=0.1)
        assert (found.tokens_per_s, found.ratio) == (None, None)

    def test_a_prompt_that_the_server_cuts_stops_a_reading(self):
        (problem,) = prompt_problems(prompt(tokens_on_server=4_096), engine="ollama")
        assert (problem.severity, problem.exit_code) == ("stop", 2)
        assert "10,000 tokens the server read 4,096" in problem.found
        assert "--window 4096" in problem.remedy

    @pytest.mark.parametrize(
        ("changes", "engine", "expected"),
        [
            ({}, "tgi", ["warning"]),
            ({}, "vllm", ["note"]),
            ({"caching": "on"}, "tgi", []),
            ({"caching": "unclear"}, "tgi", []),
            ({"caching": "on", "tokens_on_server": None}, "vllm", []),
            # Constant counts are no counts.
            ({"caching": "on", "tokens_on_server": 7}, "vllm", []),
            ({"caching": "on", "tokens_on_server": 9_850}, "vllm", []),
        ],
    )
    def test_without_caching_slices_are_read_again(self, changes, engine, expected):
        assert severities(prompt_problems(prompt(**changes), engine=engine)) == expected


class TestOutput:
    def test_speed_is_that_after_the_first_token(self):
        found = output_of(heard(seconds=2.1, output_tokens=101), base_s=0.1)
        assert (found.tokens, found.tokens_per_s) == (101, 50.0)

    @pytest.mark.parametrize(
        "reply", [heard(output_tokens=15), heard(), heard(seconds=0.1, output_tokens=99)]
    )
    def test_what_is_too_short_to_time_has_no_speed(self, reply):
        assert output_of(reply, base_s=0.1).tokens_per_s is None


def step(**changes):
    values = {
        "chunk_tokens": 2_000,
        "output_tokens": 300,
        "beside_memory": 100,
        "seconds": 9.0,
        "outcome": "usable",
        "reason": "",
        "is_fact_kept": True,
    }
    return StepFound(**(values | changes))


class TestStep:
    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({}, []),
            ({"is_fact_kept": False}, ["note"]),
            ({"outcome": "unfinished", "is_fact_kept": False}, ["note"]),
            ({"outcome": "unusable", "reason": "no memory element"}, ["warning"]),
        ],
    )
    def test_has_to_give_a_usable_reply(self, changes, expected):
        problems = step_problems(step(**changes))
        assert severities(problems) == expected
        assert all(changes.get("reason", "") in problem.found for problem in problems)


BUDGET = Budget(
    window=20_000,
    chunk_tokens=5_000,
    memory_tokens=2_000,
    plan_tokens=100,
    output_tokens=4_000,
    answer_tokens=4_000,
    full_tokens=9_000,
)
OUTPUT = OutputFound(tokens=128, seconds=1.4, tokens_per_s=100.0)


def outlook(*, protocol="rewrite", **changes):
    given = {"prompt": prompt(base_s=0.0), "output": OUTPUT, "step": step()} | changes
    return outlook_of(BUDGET, protocol=protocol, frame_tokens=1_000, **given)


class TestOutlook:
    def test_a_memory_is_read_and_written_with_each_chunk(self):
        found = outlook()
        assert found is not None
        assert found.chunks == 218  # 1,000,000 over 92 % of 5,000
        # (1,000 + 5,000 + 1,000) / 2,000 and (100 + 1,000 + 100) / 100
        assert found.seconds_per_chunk == 15.5
        assert found.hours == pytest.approx(218 * 15.5 / 3600, abs=0.001)
        assert found.hours_at_most == pytest.approx(218 * (4.0 + 22.0) / 3600, abs=0.001)

    def test_extraction_writes_as_much_each_time(self):
        found = outlook(protocol="extract")
        assert found is not None
        assert found.seconds_per_chunk == 6.0  # 6,000 / 2,000 and 300 / 100
        assert found.hours == found.hours_at_most

    def test_no_reply_is_longer_than_its_limit(self):
        found = outlook(step=step(output_tokens=9_999, beside_memory=9_000))
        assert found is not None
        assert found.seconds_per_chunk == 43.5

    @pytest.mark.parametrize(
        "missing",
        [
            {"prompt": None},
            {"prompt": prompt(tokens_per_s=None)},
            {"output": None},
            {"output": OutputFound(tokens=3, seconds=1.0, tokens_per_s=None)},
            {"step": None},
        ],
    )
    def test_nothing_is_foretold_without_measurements(self, missing):
        assert outlook(**missing) is None
        assert outlook_problems(None) == ()

    def test_days_are_noted(self):
        slow = OutputFound(tokens=128, seconds=64.0, tokens_per_s=2.0)
        assert severities(outlook_problems(outlook(output=slow))) == ["note"]
        assert outlook_problems(outlook()) == ()


class TestFailures:
    def test_what_lies_below_a_failed_connection_gives_the_remedy(self):
        error = ConnectionSetupError("Connecting to h: no server answers there (X). Check it.")
        assert connection_problem(error) == Problem(
            severity="stop",
            found="Connecting to h: no server answers there (X).",
            remedy="Check it.",
            exit_code=2,
        )
        for cause, hint in (
            (ConnectionRefusedError(), "Nothing listens"),
            (socket.gaierror(), "not known"),
        ):
            middle = OSError("middle")
            middle.__cause__ = cause
            error.__cause__ = middle
            assert hint in connection_problem(error).remedy

    def test_arguments_are_named_as_options(self):
        error = SettingsError("The server serves several. Pass one as model: a, b.")
        assert "(--served-model): a, b" in connection_problem(error).remedy

    @pytest.mark.parametrize(
        ("error", "is_needed", "severity", "code"),
        [
            (TimeoutError(), True, "stop", 4),
            (TimeoutError(), False, "warning", 0),
            (ContextOverflowError("Calling m failed: no."), False, "stop", 2),
            (ModelUnavailableError("Calling m failed: gone. Look."), False, "stop", 4),
            (ModelOverloadedError("Calling m failed: busy. Wait."), False, "stop", 4),
            (SettingsError("No template. Take another."), True, "stop", 2),
        ],
    )
    def test_each_has_its_weight_and_says_what_went_on(self, error, is_needed, severity, code):
        problem = failure_problem(error, doing="counting", limit_s=2.5, is_needed=is_needed)
        assert (problem.severity, problem.exit_code) == (severity, code)
        assert "counting" in problem.found
        assert problem.remedy

    def test_a_note_is_told_from_what_to_do(self):
        found = noted_problem("TGI ends early. Start it otherwise.")
        assert (found.found, found.remedy) == ("TGI ends early.", "Start it otherwise.")

    def test_the_first_stop_gives_the_exit_code(self):
        note = Problem(severity="note", found="a", remedy="b")
        first = Problem(severity="stop", found="a", remedy="b", exit_code=4)
        second = Problem(severity="stop", found="a", remedy="b", exit_code=2)
        findings = [
            Finding("reply", None, (note, first)),
            Finding("step", None, (second,)),
        ]
        assert stopping_code(findings) == 4
        assert stopping_code([Finding("reply", None, (note,))]) == 0
