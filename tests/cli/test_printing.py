from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from qwenlong_graph.cli.ask import Answered
from qwenlong_graph.cli.printing import duration, print_answer, printable, shortened


def citation(quote="A quote.", *, start=0, pages=(None, None), spans=(), title="a.txt"):
    return {
        "cited_text": quote,
        "document_id": "0" * 64,
        "document_title": title,
        "start_char": start,
        "end_char": start + len(quote),
        "start_page": pages[0],
        "end_page": pages[1],
        "answer_spans": [{"start_index": first, "end_index": last} for first, last in spans],
    }


def claim(text, start, *, status="unsupported", derivation=None):
    return {
        "text": text,
        "kind": "figure",
        "start_index": start,
        "end_index": start + len(text),
        "status": status,
        "derivation": derivation,
    }


def printed(answer, *, width=80, colours=False, shows_memory=False, **output):
    """What `print_answer` writes for an agent's output."""
    console = Console(
        file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False,
        force_terminal=colours, color_system="standard" if colours else None,
    )  # fmt: skip
    output = {
        "answer": answer,
        "found": True,
        "is_quoted": False,
        "citations": [],
        "unsupported": [],
        "structured_response": None,
        "memory": "",
        "unverified": [],
        "documents": [{"documents": 1, "chars": 100}],
        "usage": {"unread_spans": []},
        **output,
    }
    answered = Answered(
        output=output, model_name="m", titles=["a.txt", "b.txt"], skipped=[], seconds=1.0
    )
    print_answer(answered, console, shows_memory=shows_memory)
    return console.file.getvalue()


ANSWER = "The mill was sold. It cost 8 crowns. So it goes."
FIRST, SECOND = (0, 19), (19, 36)  # the first with the blank after it


class TestTheAnswer:
    def test_has_markers_after_the_sentences_that_the_sources_support(self):
        shown = printed(
            ANSWER, citations=[citation(spans=[FIRST]), citation(spans=[FIRST, SECOND])]
        )
        assert shown.startswith("The mill was sold. [1][2] It cost 8 crowns. [2] So it goes.\n")

    def test_has_a_marker_at_its_very_end_too(self):
        spans = [(len(ANSWER) - 11, len(ANSWER))]
        assert printed(ANSWER, citations=[citation(spans=spans)]).startswith(f"{ANSWER} [1]\n")

    def test_has_claims_without_a_source_in_yellow(self):
        shown = printed(ANSWER, colours=True, unsupported=[claim("8 crowns", 27)])
        assert "It cost \x1b[33m8 crowns\x1b[0m." in shown

    def test_is_wrapped(self):
        lines = printed("word " * 60, width=40).splitlines()
        assert len(lines) > 5
        assert max(map(len, lines)) <= 40

    def test_keeps_its_markers_right_after_a_control_character(self):
        answer = "\x1b\r\nOne. Two."
        shown = printed(answer, citations=[citation(spans=[(3, 8)])])
        assert shown.startswith("\ufffd\nOne. [1] Two.\n")


class TestASource:
    def test_names_file_pages_and_place(self):
        for pages, expected in (
            ((None, None), "[1] a.txt, chars 7-15\n"),
            ((3, 3), "[1] a.txt, page 3, chars 7-15\n"),
            ((3, 4), "[1] a.txt, pages 3-4, chars 7-15\n"),
        ):
            assert expected in printed("A.", citations=[citation(start=7, pages=pages)])

    def test_has_a_long_quote_shortened_in_its_middle(self):
        quote = f"It begins {'and so on ' * 100}and ends."
        shown = printed("A.", citations=[citation(quote)])
        assert '    "It begins and so on' in shown
        assert " [...] " in shown
        assert 'and ends."\n' in shown
        assert len(shown) < 450

    def test_has_its_quote_on_lines_of_one_indent_and_no_blanks_at_their_ends(self):
        shown = printed("A.", width=30, citations=[citation("one  two\nthree " * 10)])
        lines = shown.partition("chars")[2].splitlines()[1:]
        assert len(lines) > 3
        assert all(line.startswith("    ") and line == line.rstrip() for line in lines)

    def test_cannot_smuggle_markup_or_controls_in_its_name(self):
        shown = printed("A.", colours=True, citations=[citation(title="[red]\x1b[31mx[/red]")])
        assert "[red]\ufffd[31mx[/red], chars" in shown


class TestClaims:
    def test_that_are_computed_are_told_apart_with_how(self):
        shown = printed(
            "7 and 9.",
            unsupported=[
                claim("7", 0, status="computed", derivation="3 + 4 = 7"),
                claim("9", 6),
            ],
        )
        assert "\nIn none of the sources\n- 9 (figure)\n" in shown
        assert "\nComputed from the sources\n- 7: 3 + 4 = 7\n" in shown

    def test_without_any_there_is_no_heading(self):
        assert printed("A.") == "A.\n"


def test_unread_stretches_are_named_by_file():
    unread = {"document": 1, "start_char": 5, "end_char": 9, "start_byte": 5, "end_byte": 9}
    shown = printed("A.", usage={"unread_spans": [unread]})
    assert "Not read" in shown
    assert "- b.txt, chars 5-9" in shown


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_printable_text_holds_nothing_that_a_terminal_obeys(text):
    shown = printable(text)
    controls = {*map(chr, range(32)), *map(chr, range(127, 160))} - {"\t", "\n"}
    assert not controls & set(shown)
    shown.encode()
    assert printable(shown) == shown


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab \n", max_size=200), st.integers(20, 100))
def test_shortened_text_fits_and_keeps_both_ends(text, limit):
    line = " ".join(text.split())
    shown = shortened(text, limit)
    assert len(shown) <= limit
    head, _, tail = shown.partition(" [...] ")
    assert line.startswith(head)
    assert line.endswith(tail)
    assert shown == line or (head and tail)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.2, "0:00"), (59.6, "1:00"), (750, "12:30"), (3723, "1:02:03")]
)
def test_durations_read_like_a_clock(seconds, shown):
    assert duration(seconds) == shown


def test_quotes_in_place_of_an_answer_are_called_so():
    assert "(Quoted:" in printed(ANSWER, is_quoted=True)
    assert "(Quoted:" not in printed(ANSWER)


def test_lines_of_memory_without_a_source_are_marked():
    shown = printed(
        ANSWER,
        shows_memory=True,
        memory="- It cost 8 crowns.\n- Ludo paid.",
        unverified=["Ludo paid."],
    )
    assert "- It cost 8 crowns.\n- Ludo paid. (no source found)" in shown
