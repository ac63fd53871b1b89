"""The page as a reader has it: in a real Chromium."""

from __future__ import annotations

import re

import pytest
from langchain_core.documents import Document

from qwenlong_graph.report import reading_of_run, report_page
from tests.browser import overflowing
from tests.report.readings import FACT, FILLER, OTHER, TEXT, kept_run, oracle_reply

expect = pytest.importorskip("playwright.sync_api").expect

pytestmark = pytest.mark.end_to_end

STEPS = 430
HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    "<svg onload='window.hacked = 3'></svg></mark></blockquote><h1>Broken out</h1>"
    "javascript:alert(1) &amp;lt; <memory> </memory> <|im_end|>"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page in a file, of a real reading whose journal is made longer."""
    folder = tmp_path_factory.mktemp("report")
    calls = 0
    answer = oracle_reply()

    def reply(messages):
        nonlocal calls
        calls += 1
        return "<memory>\n- cut" if calls == 4 else answer(messages)

    run, store = kept_run(folder, reply)
    values = run.state()
    journal = run.journal()
    entries = journal.entries()
    plain = next(entry for entry in entries if entry["type"] == "memory_updated")
    for step in range(values["step"], STEPS):
        journal.append({**plain, "step": step, "plan": f"Plan number {step}."})
    path = folder / "reading.html"
    path.write_text(report_page(reading_of_run(run, store)), "utf-8")
    return path


@pytest.fixture
def opened(chromium_page, report):
    def open_report(path=report, **options):
        return chromium_page(path.as_uri(), **options)

    return open_report


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_is_legible_at_any_size_and_in_the_dark(opened, report, axe_violations, width, dark):
    with opened(width=width, height=800, dark=dark) as page:
        page.goto(report.as_uri())
        for summary in page.locator("#chunks summary").all()[:9]:
            summary.click()
        expect(page.locator("#chunks .inside")).to_have_count(9)
        assert axe_violations(page) == []
        assert overflowing(page) == []


def test_a_citation_leads_to_its_source_and_on_to_the_chunk(opened, report):
    with opened() as page:
        page.goto(report.as_uri())
        page.get_by_role("link", name="Source 2").first.click()
        source = page.locator("#source-2")
        assert source.locator("mark").inner_text() == OTHER
        source.get_by_role("link", name=re.compile("Noted in chunk")).click()
        chunk = page.locator("#chunks details[open]")
        assert chunk.locator("ins").inner_text() == f"+ {OTHER}"
        assert chunk.locator("blockquote").inner_text() == OTHER
        assert page.evaluate("document.activeElement.parentElement.id") == chunk.get_attribute("id")


def test_all_of_it_works_from_the_keyboard(opened, report):
    with opened() as page:
        page.goto(report.as_uri())
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the answer"
        page.get_by_label("Go to chunk").focus()
        page.keyboard.type("3")
        page.keyboard.press("Enter")
        chunk = page.locator("#chunk-3")
        assert chunk.get_attribute("open") is not None
        expect(chunk).to_contain_text("Asked again")
        page.keyboard.press("Enter")
        assert chunk.get_attribute("open") is None
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert page.locator("#chunk-4").get_attribute("open") is not None


def test_only_a_page_of_chunks_is_laid_out_and_any_is_found(opened, report):
    with opened() as page:
        page.goto(report.as_uri())
        assert page.locator("#chunks > li").count() == 100
        assert "430 entries; 1 to 100" in page.locator(".shown").inner_text()
        page.get_by_role("button", name="Later").click()
        assert page.locator("#chunks summary strong").first.inner_text() == "101"
        page.get_by_label("Go to chunk").fill("430")
        page.get_by_role("button", name="Go").click()
        expect(page.locator("#chunk-430")).to_contain_text("Plan number 429.")
        assert page.get_by_role("button", name="Later").is_disabled()
        page.goto(f"{report.as_uri()}#chunk-250")
        expect(page.locator("#chunk-250[open]")).to_have_count(1)


def test_chunks_are_filtered_by_kind_and_by_text(opened, report):
    with opened() as page:
        page.goto(report.as_uri())
        page.get_by_label("Show").select_option("changed")
        assert page.locator("#chunks .badge.plus").count() == 2
        assert "2 of 430" in page.locator(".shown").inner_text()
        page.get_by_label("Show").select_option("trouble")
        assert page.locator("#chunks summary strong").all_inner_texts() == ["3"]
        page.get_by_label("Show").select_option("all")
        page.get_by_label("containing").fill("plan NUMBER 300.")
        expect(page.locator("#chunks > li")).to_have_count(1)
        page.get_by_label("containing").fill("nowhere at all")
        expect(page.locator("#chunks > li")).to_have_count(0)
        assert "0 of 430" in page.locator(".shown").inner_text()


def test_printed_it_holds_the_answer_and_short_readings_whole(opened, chromium_page, tmp_path):
    run, store = kept_run(tmp_path)
    path = tmp_path / "short.html"
    path.write_text(report_page(reading_of_run(run, store)), "utf-8")
    with opened(path) as page:
        page.goto(path.as_uri())
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print")
        chunks = page.locator("#chunks details")
        assert chunks.count() == run.state()["step"]
        assert page.locator("#chunks details[open]").count() == chunks.count()
        assert page.locator("#chunks ins").count() == 2
        assert not page.locator(".controls").is_visible()
        assert FACT in page.locator("#answer").inner_text()
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert page.locator("#chunks details[open]").count() == 0


def test_scripts_in_a_document_are_shown_as_text(opened, tmp_path):
    fact = f"The widow Hale wrote {HOSTILE} on the bridge at Orrin."
    text = FILLER * 30 + fact + " " + FILLER * 30
    run, store = kept_run(
        tmp_path,
        oracle_reply([fact]),
        question=f"What did she write? {HOSTILE}",
        documents=[Document(text, metadata={"title": HOSTILE})],
    )
    entries = run.journal().entries()
    plain = next(entry for entry in entries if entry["type"] == "memory_updated")
    told = {"step": run.state()["step"], "lines_added": [HOSTILE], "plan": HOSTILE}
    run.journal().append(plain | told)
    run.journal().append({"type": "stopped", "error": "E", "message": HOSTILE})
    path = tmp_path / "hostile.html"
    path.write_text(report_page(reading_of_run(run, store)), "utf-8")

    with opened(path) as page:
        page.on("dialog", lambda dialog: pytest.fail("a script of the document ran"))
        page.goto(path.as_uri())
        for summary in page.locator("#chunks summary").all():
            summary.click()
        expect(page.locator("#chunks ins").last).to_contain_text(HOSTILE)

        assert page.evaluate("window.hacked") is None
        assert page.locator("h1").count() == 1
        assert page.locator("img").count() == 0
        assert HOSTILE in page.locator("h1").inner_text()
        assert "<script>window.hacked = 1</script>" in page.locator("#sources").inner_text()


def test_a_script_that_came_in_all_the_same_is_refused_by_the_page(chromium, report, tmp_path):
    """The second line of defence: the policy, where escaping would have failed."""
    path = tmp_path / "broken.html"
    page_text = report.read_text("utf-8")
    path.write_text(
        page_text.replace(FACT, f"{FACT}<script>window.hacked = 1</script><img src=x>"), "utf-8"
    )
    context = chromium.new_context()
    try:
        page = context.new_page()
        refused = []
        page.on("console", lambda said: refused.append(said.text))
        page.goto(path.as_uri())
        assert page.evaluate("window.hacked") is None
        assert any("Content Security Policy" in text for text in refused)
    finally:
        context.close()


def test_a_run_without_an_answer_opens_too(opened, tmp_path):
    run, store = kept_run(tmp_path, is_read=False, text=TEXT)
    path = tmp_path / "empty.html"
    path.write_text(report_page(reading_of_run(run, store)), "utf-8")
    with opened(path) as page:
        page.goto(path.as_uri())
        assert "There is no answer." in page.locator("#answer").inner_text()
