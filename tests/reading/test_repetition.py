from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_graph.reading.repetition import MEMORY, SPAN, TIMES, UNIT, RepetitionDetector

EXAMPLE = Path(__file__).parents[2] / "examples" / "data" / "state-of-the-union-1946.txt"
SENTENCE = "Wait, the widow Hale paid for the bridge, so let me check the sum again. "


def words_until_seen(parts, *, opening="", limit=20_000):
    """How many words of a loop are written when it is seen, None where it is not."""
    detector = RepetitionDetector()
    assert not detector.feed(opening)
    count = 0
    for part in parts:
        count += len(UNIT.findall(part))
        if detector.feed(part):
            return count
        if count > limit:
            return None
    return None


def numbered(entry):
    return (f"{number}. {entry}\n" for number in itertools.count(1))


@pytest.mark.parametrize(
    ("parts", "limit"),
    [
        (itertools.repeat("the "), SPAN),
        (itertools.repeat("!"), SPAN),
        (itertools.repeat("_"), 16 * SPAN),
        (itertools.repeat("让我再检查一下，"), SPAN + 50),
        (itertools.repeat(SENTENCE), SPAN + 100),
        (
            itertools.cycle([SENTENCE, "Alternatively, the mill was sold in 1874 for nothing. "]),
            700,
        ),
        (numbered("the bridge at Orrin"), SPAN),
        ((f'{{"id": {n}, "open": true}},\n' for n in itertools.count()), SPAN + 50),
    ],
    ids=["word", "mark", "blank", "chinese", "sentence", "alternating", "numbered", "records"],
)
def test_a_loop_is_seen_soon_after_it_began(parts, limit):
    opening = EXAMPLE.read_text("utf-8")[:3_000]
    seen = words_until_seen(parts, opening=opening)
    assert seen is not None
    assert seen <= limit


def test_a_long_passage_is_a_loop_when_it_comes_again_and_again():
    passage = EXAMPLE.read_text("utf-8")[20_000:23_000]
    size = len(UNIT.findall(passage))
    seen = words_until_seen(itertools.repeat(passage))
    assert seen is not None
    assert seen > TIMES * size


def test_an_honest_document_is_none():
    assert not RepetitionDetector().feed(EXAMPLE.read_text("utf-8"))


def test_drafts_that_are_copied_out_are_none():
    draft = EXAMPLE.read_text("utf-8")[20_000:40_000]
    detector = RepetitionDetector()
    for _ in range(TIMES):
        assert not detector.feed(draft)


def test_columns_of_figures_and_ruled_tables_are_none():
    rng = random.Random(1)
    rule = "+" + ("-" * 40 + "+") * 3 + "\n"
    rows = [f"| {rng.randint(1, 9_999)} | {rng.randint(1, 999)} | 0 |\n{rule}" for _ in range(900)]
    assert not RepetitionDetector().feed("".join(rows))


def test_what_was_written_long_ago_is_forgotten():
    passage = EXAMPLE.read_text("utf-8")[20_000:24_000]
    fillers = (f"word{number}" for number in itertools.count())
    far, near = RepetitionDetector(), RepetitionDetector(memory=10 * MEMORY)
    for _ in range(TIMES + 2):
        between = " ".join(itertools.islice(fillers, MEMORY))
        far.feed(f"{passage} {between} ")
        near.feed(f"{passage} {between} ")
    assert not far.is_loop
    assert near.is_loop


def test_a_loop_stays_one():
    detector = RepetitionDetector()
    assert detector.feed(SENTENCE * 100)
    assert detector.feed(" And so it ends, with many words that nobody said before.")


pieces = st.lists(
    st.sampled_from(["ab", "a b", " ", "12", "1", "--", "-", "!", "让我", "_x", "é\n"])
)


@given(pieces, st.integers(1, 7))
def test_how_a_text_is_cut_makes_no_difference(parts, size):
    text = "".join(parts) * 3
    whole = RepetitionDetector(gram=2, times=1, span=8)
    cut = RepetitionDetector(gram=2, times=1, span=8)
    whole.feed(text + " ")
    for start in range(0, len(text), size):
        cut.feed(text[start : start + size])
    cut.feed(" ")
    assert (cut.is_loop, cut.share) == (whole.is_loop, whole.share)


@given(st.text())
def test_any_text_can_be_fed(text):
    detector = RepetitionDetector()
    assert detector.feed(text) in {False, True}
    assert 0 <= detector.share <= 1
