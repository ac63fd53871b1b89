from __future__ import annotations

import pytest

from qwenlong_graph.documents.tokens import chars_per_token


@pytest.mark.parametrize("text", ["abcd" * 10, "abcd" * 100_000, "一二三四" * 100_000])
def test_the_ratio_is_that_of_the_text_and_takes_one_bounded_count(store, text):
    counted = []

    def quarters(sample: str) -> int:
        counted.append(len(sample))
        return len(sample) // 4

    assert chars_per_token(store.open(store.put(text, title="t")), quarters) == 4
    assert len(counted) == 1
    assert counted[0] <= 12_000


def test_all_parts_of_a_text_weigh_in(store):
    text = "a" * 100_000 + "一" * 100_000
    ratio = chars_per_token(store.open(store.put(text, title="t")), lambda part: len(part.encode()))
    assert 1 / 3 < ratio < 1
