from __future__ import annotations

import random

import pytest

from benchmarks import repetition as benchmark
from qwenlong_graph.reading.repetition import THRESHOLD, UNIT


@pytest.mark.parametrize("kind", benchmark.HONEST)
def test_no_honest_text_comes_near_the_threshold(kind):
    text = benchmark.cut(benchmark.HONEST[kind](random.Random(1)), 6_000)
    assert len(UNIT.findall(text)) > 3_000
    assert benchmark.peak_share(text) < THRESHOLD - 0.05


@pytest.mark.parametrize("kind", benchmark.LOOPS)
def test_every_loop_is_seen_but_one_in_which_something_changes(kind):
    rng = random.Random(1)
    seen = benchmark.delay_of(benchmark.prose(rng, 300), benchmark.LOOPS[kind](rng))
    assert (seen is None) is (kind == "sentence with a changing name")
