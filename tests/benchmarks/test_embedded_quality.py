"""What is asked, and how it is scored; the model itself is asked by `make bench`."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest

from qwenlong_graph import ReadingSettings, connect, create_memory_agent
from qwenlong_graph.reading.prompts import says_not_found
from qwenlong_graph.testing.scripted import scripted

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "embedded_quality.py"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(SCRIPT.parent))  # as where it is run as a program
    spec = importlib.util.spec_from_file_location("embedded_quality", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def asked(bench):
    return list(bench.items())


def test_the_questions_are_those_that_the_text_speaks_of(asked):
    kinds = [item.kind for item in asked]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "one_fact": 24,
        "absent": 8,
        "four_facts": 8,
    }
    worded = [item.worded for item in asked if item.kind == "one_fact"]
    assert (worded.count("alike"), worded.count("otherwise")) == (12, 12)
    assert len({item.document for item in asked}) == 8


def test_every_planted_sentence_stands_at_its_place_and_states_its_key(bench, asked):
    for item in asked:
        assert len(item.planted) == len(item.keys)
        for (start, end), key in zip(item.planted, item.keys, strict=True):
            sentence = item.text[start:end]
            assert item.text.count(sentence) == 1
            assert bench._holds(sentence, key)
            assert not bench._holds(item.question, key)
            rest = item.text[:start] + item.text[end:]
            assert not bench._is_cited(sentence, key, [rest[:200]])


def test_facts_lie_at_all_depths(asked):
    depths = sorted(item.depth for item in asked if item.kind == "one_fact")
    # Depths are drawn by sentences and told by characters.
    assert all(abs(depth - number / 23) < 0.15 for number, depth in enumerate(depths)), depths
    for item in asked:
        if item.kind == "four_facts":
            places = [start / len(item.text) for start, _ in item.planted]
            assert places == sorted(places)
            assert places[0] < 0.35
            assert places[-1] > 0.65


def test_the_places_do_not_change_from_run_to_run(bench, asked):
    assert list(bench.items()) == asked


def test_nothing_of_the_questions_is_shared_with_those_used_for_tuning(bench, asked):
    tuned = {item.question for item in bench.items(development=True)}
    assert tuned
    assert not tuned & {item.question for item in asked}


def test_bm25_finds_a_sentence_by_its_words_within_the_budget(bench, asked):
    item = next(item for item in asked if item.worded == "alike")
    (start, end) = item.planted[0]

    def count(text):
        return len(text.split())

    found = bench.best_passages(item.text, item.question, max_tokens=300, count_tokens=count)
    assert item.text[start:end] in found
    assert count(found) <= 300


def reader_with(bench, tmp_path, *replies):
    model = connect(scripted(list(replies)))
    reader = bench.Reader.__new__(bench.Reader)
    reader.model = model
    settings = ReadingSettings(strategy="full", full_tokens_max=10**6)
    agent = create_memory_agent(model, settings=settings, document_dir=tmp_path)
    reader.agents = {"one pass": agent}
    return reader


SENTENCE = "The mill at Orrin was sold for 318 crowns."


@pytest.fixture
def item(bench):
    text = f"The winter was long. {SENTENCE} Traders stayed away."
    start = text.index(SENTENCE)
    return bench.Item(
        kind="one_fact",
        number=0,
        worded="alike",
        question="For how many crowns was the mill at Orrin sold?",
        document="d",
        text=text,
        keys=(("318",),),
        planted=((start, start + len(SENTENCE)),),
    )


@pytest.mark.parametrize(
    ("reply", "right", "cited"),
    [
        (SENTENCE, 1, 1),
        ("It was sold for 381 crowns.", 0, 0),
        ("It was sold for 3180 crowns.", 0, 0),
        ("NOT FOUND", 0, 0),
    ],
)
def test_an_answer_is_right_by_its_key_and_cited_by_the_planted_sentence(
    bench, item, tmp_path, reply, right, cited
):
    cell = reader_with(bench, tmp_path, reply).cell("truncation", item)
    assert (cell.right, cell.cited, cell.facts) == (right, cited, 1)
    assert (cell.false_citations, cell.invented_lines) == (0, 0)


@pytest.mark.parametrize(("reply", "right"), [("NOT FOUND", 1), ("It was the king.", 0)])
def test_where_nothing_is_planted_only_not_found_is_right(bench, item, tmp_path, reply, right):
    assert says_not_found("NOT FOUND")
    absent = dataclasses.replace(item, kind="absent", keys=(), planted=(), question="Who sang?")
    cell = reader_with(bench, tmp_path, reply).cell("truncation", absent)
    assert cell.right == right


def test_a_lead_comes_with_the_standard_error_of_paired_differences(bench, item, tmp_path):
    cell = reader_with(bench, tmp_path, SENTENCE).cell("truncation", item)
    cells = [
        dataclasses.replace(cell, method=method, number=number, right=right)
        for method, rights in {"extract": [1, 1, 1, 0], "truncation": [0, 1, 0, 0]}.items()
        for number, right in enumerate(rights)
    ]
    ahead, error = bench.lead(cells, "extract", "truncation")
    assert ahead == pytest.approx(0.5)
    assert error == pytest.approx((1 / 3) ** 0.5 / 2)


def test_kept_cells_are_used_only_for_the_same_inputs(bench, item, tmp_path):
    cell = reader_with(bench, tmp_path, SENTENCE).cell("truncation", item)
    kept_at = tmp_path / "cells.jsonl"
    lines = [
        {"for": signature, **dataclasses.asdict(cell), "number": number}
        for number, signature in enumerate([bench._signature("truncation"), "other", ""])
    ]
    kept_at.write_text("".join(bench.json.dumps(line) + "\n" for line in lines))
    assert bench._kept(kept_at) == {("truncation", "one_fact", 0): cell}
    assert len({bench._signature(method) for method in bench.METHODS}) == len(bench.METHODS)


def test_a_reading_without_a_usable_answer_is_a_wrong_one(bench, item, tmp_path):
    cell = reader_with(bench, tmp_path, "", "", "").cell("truncation", item)
    assert (cell.right, cell.found, cell.calls, cell.retries) == (0, False, 3, 2)
    assert cell.answer.startswith("none: Asked for the answer again and again")


def test_documents_have_the_lengths_that_the_readme_tells(asked):
    # 20,000 to 40,000 tokens, at 4.9 to 5.2 characters a token by the embedded model's tokenizer.
    assert all(20_000 * 5.2 <= len(item.text) <= 40_000 * 4.9 for item in asked)


def test_the_readme_shows_the_measured_cells(bench, capsys, monkeypatch):
    measured = SCRIPT.parent / "measured" / "embedded_quality.jsonl"
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--kept", "--cells", str(measured)])
    bench.main()
    shown = capsys.readouterr().out.splitlines()
    table = "\n".join(shown[1:])  # without the line about this machine
    assert table.startswith("seed 20251215, 40 questions")
    assert table in (SCRIPT.parent / "README.md").read_text("utf-8")
    cells = list(bench._kept(measured).values())
    counts = {
        method: sum(cell.method == method for cell in cells)
        for method in bench.METHODS
        if method != "rewrite"
    }
    assert set(counts.values()) == {40}
    own = [cell for cell in cells if cell.method == "extract"]
    assert sum(cell.false_citations + cell.invented_lines for cell in own) == 0
