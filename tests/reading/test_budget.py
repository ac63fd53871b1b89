from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_graph.errors import QuestionError, SettingsError, WindowTooSmallError
from qwenlong_graph.reading.budget import (
    MINIMUM_WINDOW,
    ReadingSettings,
    derive_budget,
    sliced_window,
)
from qwenlong_graph.testing.tgi.generation import SLICE_TOKENS, Limits, Refusal, admit


def budget(window: int, **settings):
    return derive_budget(
        ReadingSettings(**settings), window=window, frame_tokens=700, question_tokens=50
    )


def test_a_large_window_gives_the_papers_sizes():
    derived = budget(131_072)
    assert (derived.chunk_tokens, derived.memory_tokens, derived.output_tokens) == (
        32_000,
        15_000,
        50_000,
    )


@pytest.mark.parametrize("window", [MINIMUM_WINDOW, 4_096, 8_192, 32_768, 65_536, 106_496, 10**6])
@pytest.mark.parametrize("protocol", ["rewrite", "extract"])
def test_all_parts_fit_every_window(window, protocol):
    derived = budget(window, protocol=protocol)
    prompt = 700 + 50 + derived.plan_tokens + derived.chunk_tokens + derived.memory_tokens
    assert prompt + derived.output_tokens < window
    assert 700 + 50 + derived.memory_tokens + derived.answer_tokens < window


def test_on_a_small_window_all_sizes_shrink_together():
    small, large = budget(32_768), budget(65_536)
    for name in ("chunk_tokens", "memory_tokens", "output_tokens"):
        assert getattr(small, name) < getattr(large, name)


def test_a_window_below_the_minimum_is_refused_with_the_minimum_named():
    with pytest.raises(WindowTooSmallError, match="2,048"):
        budget(MINIMUM_WINDOW - 1)


def test_a_given_size_that_does_not_fit_is_an_error_not_a_cut():
    with pytest.raises(SettingsError, match="chunk 20,000"):
        budget(16_384, chunk_tokens=20_000)
    with pytest.raises(SettingsError, match="answer_tokens"):
        budget(16_384, answer_tokens=16_000)


def test_a_given_size_is_kept_and_the_rest_is_derived():
    derived = budget(32_768, chunk_tokens=3_000)
    assert derived.chunk_tokens == 3_000
    assert derived.memory_tokens > 1_000


def test_beside_a_large_memory_that_is_given_the_chunk_shrinks():
    derived = budget(16_384, memory_tokens=6_000)
    assert derived.memory_tokens == 6_000
    assert derived.output_tokens > 6_000
    assert 2_000 < derived.chunk_tokens < budget(16_384).chunk_tokens
    with pytest.raises(SettingsError, match="memory 9,000"):
        budget(16_384, memory_tokens=9_000)


def test_a_question_of_a_quarter_of_the_window_is_refused():
    with pytest.raises(QuestionError, match="quarter"):
        derive_budget(ReadingSettings(), window=8_192, frame_tokens=700, question_tokens=2_049)


def test_given_settings_win_over_a_models_defaults_even_when_equal_to_ours():
    defaults = {"protocol": "extract", "temperature": 0.0, "chunk_tokens": 700}
    assert ReadingSettings().over(defaults).protocol == "extract"
    merged = ReadingSettings(protocol="rewrite", temperature=None).over(defaults)
    assert (merged.protocol, merged.temperature, merged.chunk_tokens) == ("rewrite", None, 700)


@pytest.mark.parametrize(
    "wrong",
    [{"chunk_tokens": 3}, {"temperature": 9.0}, {"protocol": "guess"}, {"chunk_size": 500}],
)
def test_a_wrong_setting_is_named(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        ReadingSettings(**wrong)


def test_settings_are_frozen():
    with pytest.raises(Exception, match="frozen"):
        ReadingSettings().seed = 3


def test_a_long_chat_template_is_allowed_for():
    def room(template_tokens):
        derived = derive_budget(
            ReadingSettings(),
            window=8_192,
            frame_tokens=700,
            question_tokens=50,
            template_tokens=template_tokens,
        )
        return derived.full_tokens

    assert room(0) == room(10) > room(500)


@given(
    total=st.integers(1_500, 20_000),
    limit=st.integers(500, 20_000),
    prompt=st.integers(1, 20_000),
    wanted=st.integers(1, 20_000),
)
def test_within_the_window_of_a_slicing_server_no_reply_ends_early(total, limit, prompt, wanted):
    window = sliced_window(total_tokens=total, input_tokens=limit, slice_tokens=SLICE_TOKENS)
    prompt = 1 + prompt % max(1, window - 1)
    wanted = 1 + wanted % max(1, window - prompt)
    if prompt + wanted > window:
        return
    assert written(prompt, wanted, Limits(limit, total)) >= wanted


def written(prompt: int, wanted: int, limits: Limits) -> int:
    """How much TGI writes for a prompt before it ends the reply for its length."""
    tokens = 0
    while tokens < wanted:
        try:
            tokens += admit(prompt + tokens, wanted, limits)
        except Refusal:
            break
    return tokens


def test_the_documented_tgi_server_gives_nearly_all_of_its_window():
    window = sliced_window(total_tokens=106_496, input_tokens=105_472, slice_tokens=1_024)
    assert window == 105_472
    derived = budget(window)
    assert (derived.chunk_tokens, derived.output_tokens) == (32_000, 50_000)
