from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_graph.agents.shape import (
    LARGEST_PARSED_CHARS,
    NAMES_TOLD,
    SAMPLE_CHARS,
    ends_of,
    shape_of,
)


def details_of(text: str) -> str:
    return "\n".join(shape_of(text).details)


class TestJson:
    def test_an_object_is_told_by_its_keys_and_their_lengths(self):
        value = {"items": [1, 2, 3], "next": None, "page": {"a": 1}, "title": "four", "total": 7}
        shape = shape_of(json.dumps(value))
        assert shape.kind == "JSON"
        assert shape.details == (
            'object with 5 keys: "items" (list of 3), "next" (null), "page" (object with 1 key), '
            '"title" (text of 4 characters), "total" (number)',
        )

    def test_a_list_is_told_by_its_length_and_its_first_record(self):
        records = [{"id": number, "name": "x"} for number in range(20_000)]
        assert details_of(json.dumps(records)) == (
            'list of 20,000; the first is an object with 2 keys: "id", "name"'
        )

    def test_more_keys_than_can_be_named_are_counted(self):
        text = json.dumps({f"key{number}": True for number in range(NAMES_TOLD + 5)})
        assert "17 keys" in details_of(text)
        assert details_of(text).endswith('"key11" (true or false) and 5 more')

    def test_a_record_for_each_line(self):
        shape = shape_of('{"a": 1, "b": []}\n' * 40)
        assert (shape.kind, shape.lines) == ("JSON Lines", 40)
        assert '"a" (number), "b" (list of 0)' in shape.details[0]

    @pytest.mark.parametrize(
        "text",
        [
            "[" * 200_000 + "]" * 200_000,
            "{not json}",
            '{"a": 1',
            '{"a": 1}}',
        ],
        ids=["nested too deep", "not JSON", "cut", "closed twice"],
    )
    def test_what_only_looks_like_it_is_text(self, text):
        assert shape_of(text).kind == "text"

    def test_a_number_of_many_digits_is_a_number(self):
        assert details_of('{"n": ' + "9" * 10_000 + "}") == 'object with 1 key: "n" (number)'

    def test_beyond_a_length_it_is_not_parsed(self):
        text = "[" + " " * LARGEST_PARSED_CHARS + "]"
        assert "too long to be parsed" in details_of(text)


class TestTables:
    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    def test_are_told_by_columns_and_rows(self, delimiter):
        rows = [["id", "name", "when"], *([str(n), "Hale", "2024-01-01"] for n in range(500))]
        shape = shape_of("".join(delimiter.join(row) + "\n" for row in rows))
        assert shape.kind == "table"
        assert shape.details == ('3 columns: "id", "name", "when"', "about 500 rows")

    def test_of_markdown_lose_their_frame(self):
        text = "| year | price |\n|---|---|\n" + "| 1931 | 318 |\n" * 9
        assert details_of(text).startswith('2 columns: "year", "price"')

    def test_a_cell_beyond_the_limit_of_csv_is_no_error(self):
        text = "a,b\n" + "1," + "x" * (csv.field_size_limit() + 1) + "\n1,2\n3,4\n5,6\n"
        assert shape_of(text).kind in {"table", "text"}

    def test_prose_with_commas_is_none(self):
        assert shape_of("Well, he said.\nNow, she did.\nThen, it was.\n" * 20).kind == "text"


class TestLogs:
    @pytest.mark.parametrize(
        ("line", "first", "last"),
        [
            ("2024-01-{:02} 10:00:00,123 INFO [a] b, c", "2024-01-01", "2024-01-20"),
            ("2024-01-{:02}T10:00:00Z started", "2024-01-01T", "2024-01-20T"),
            ("Jan {:2} 10:00:00 host sshd[1]: x", "Jan  1", "Jan 20"),
            ('1.2.3.4 - - [{:02}/Oct/2000:13:55:36 -0700] "GET /"', "01/Oct", "20/Oct"),
        ],
    )
    def test_are_told_by_their_first_and_last_time(self, line, first, last):
        shape = shape_of("\n".join(line.format(day) for day in range(1, 21)))
        assert shape.kind == "log"
        (told,) = shape.details
        begin, end = told.removeprefix("from ").split(" to ")
        assert begin.startswith(first)
        assert end.startswith(last)

    def test_with_traces_between_the_lines(self):
        text = ("2024-01-01 10:00:00 ERROR broken\n  File x, in y\n") * 50
        assert shape_of(text).kind == "log"


class TestOtherKinds:
    @pytest.mark.parametrize("source", [csv.__file__, json.decoder.__file__])
    def test_code_is_told_by_what_it_defines(self, source):
        shape = shape_of(Path(source).read_text("utf-8"))
        assert shape.kind == "code"
        assert shape.details[0].startswith("it defines ")

    def test_code_with_braces(self):
        text = "export class Store {\n  constructor() {\n    this.a = 1;\n  }\n}\n" * 10
        assert shape_of(text).details == ("it defines Store",)

    def test_markup_is_told_by_its_root(self):
        text = '<?xml version="1.0"?>\n<catalogue><book/></catalogue>\n'
        assert shape_of(text).details == ('root element "catalogue"',)

    def test_prose_is_told_by_its_headings(self):
        text = "# The bridge\n\nText, and more.\n\nChapter 2 of it\n\nText.\n" * 2
        assert details_of(text) == (
            '4 headings: "The bridge", "Chapter 2 of it", "The bridge", "Chapter 2 of it"'
        )

    def test_binary_garbage(self):
        assert shape_of(bytes(range(256)).decode("latin-1") * 100).kind == "unprintable"

    def test_nothing_at_all(self):
        shape = shape_of("")
        assert (shape.kind, shape.details, shape.lines) == ("text", (), 0)

    def test_lines_are_counted_whether_or_not_the_last_one_ends(self):
        assert shape_of("a\nb").lines == shape_of("a\nb\n").lines == 2


class TestEnds:
    def test_show_the_first_and_the_last_lines(self):
        text = "\n".join(f"line {number}" for number in range(1000))
        first, last = ends_of(text, lines=2, chars=100)
        assert first == ["line 0", "line 1"]
        assert last == ["line 998", "line 999"]

    def test_of_one_line_are_marked_where_they_are_cut(self):
        first, last = ends_of("a" * 50 + "b" * 50, lines=3, chars=10)
        assert (first, last) == (["a" * 10 + "…"], ["…" + "b" * 10])

    def test_of_a_short_text_show_nothing_twice(self):
        assert ends_of("one\n\ntwo", lines=3, chars=100) == (["one", "two"], [])

    @given(st.text(max_size=400), st.integers(1, 5), st.integers(1, 60))
    def test_are_bounded_and_single_lines_for_any_text(self, text, lines, chars):
        for rows in ends_of(text, lines=lines, chars=chars):
            assert len(rows) <= lines
            assert sum(len(row) for row in rows) <= chars + 1
            assert not any(len(row.splitlines()) > 1 for row in rows)


@given(st.text(max_size=300))
def test_any_text_has_a_shape(text):
    shape = shape_of(text)
    assert shape.kind
    assert shape.lines <= len(text)


@pytest.mark.parametrize(
    "text",
    ["\n", "{", "<", '"', "# ", "[", "2024-01-01 10:00:00 ", "a,b\n", "1", "|", "\ufeff", " "],
)
def test_a_long_repetition_of_anything_has_a_shape(text):
    assert shape_of(text * (4 * SAMPLE_CHARS // len(text))).kind
