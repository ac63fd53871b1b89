"""Pages in a real Chromium: fixtures, known to all tests through `tests/conftest.py`.

def test_the_page_is_legible(chromium_page, axe_violations):
    with chromium_page("http://127.0.0.1:8000", width=360, height=800, dark=True) as page:
        page.goto("http://127.0.0.1:8000/")
        assert axe_violations(page) == []
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Route, WebSocketRoute

AXE = "axe-core@4.14.1"
"""Pinned, so that a new rule of axe does not fail an old page."""

NPM_S = 120.0
WAIT_MS = 20_000.0
"""For a page on a busy machine; what is there is found at once."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium; the test is skipped where it is not installed.

    One for each module: while playwright's sync API is started, it holds the event loop of this
    thread, and no async test could run. For the same reason only sync tests can use it.
    """
    api = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright: pip install -e .[dev]"
    )
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs Debian's Chromium: apt-get install chromium")
    is_root = os.geteuid() == 0
    arguments = ["--no-sandbox"] if is_root else []  # Chromium refuses to sandbox for root
    with (
        api.sync_playwright() as playwright,
        contextlib.closing(
            playwright.chromium.launch(executable_path=program, args=arguments)
        ) as browser,
    ):
        yield browser


OpenPage = Callable[..., AbstractContextManager["Page"]]


@pytest.fixture
def chromium_page(chromium: Browser) -> OpenPage:
    """`chromium_page(origin, width=1280, height=900, dark=False)`: an empty page, in `with`.

    `origin` is all that the page may load from: "http://127.0.0.1:8000", or a "file://" address
    and what lies below it. Leaving the block fails the test where the page logged an error, raised
    one, or asked for anything else; `may_log` is a pattern of what may be logged all the same,
    such as a connection that the test drops. Further keywords are those of `browser.new_context`.
    """

    @contextlib.contextmanager
    def open_page(
        origin: str,
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        may_log: str | None = None,
        **options: Any,
    ) -> Iterator[Page]:
        settings: dict[str, Any] = {
            "viewport": {"width": width, "height": height},
            "color_scheme": "dark" if dark else "light",
            "reduced_motion": "reduce",  # colours are measured, and not amid a transition
            "service_workers": "block",  # they would load past the routes below
            **options,
        }
        with contextlib.closing(chromium.new_context(**settings)) as context:
            problems: list[str] = []
            _only_from(context, origin, problems)
            context.set_default_timeout(WAIT_MS)
            page = context.new_page()
            page.on("console", lambda said: problems.append(said.text) if _is_bad(said) else None)
            page.on("pageerror", lambda error: problems.append(f"Uncaught: {error}"))
            page.on("crash", lambda _: problems.append("The page crashed."))
            yield page
        if may_log is not None:
            problems = [problem for problem in problems if not re.search(may_log, problem)]
        assert not problems, "The page had errors:\n" + "\n".join(problems)

    return open_page


@pytest.fixture(scope="session")
def axe_violations(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Page], list[str]]:
    """`axe_violations(page)`: what axe-core finds serious or critical, one text for each rule.

    The test is skipped where npm cannot fetch axe-core.
    """
    cache = getattr(request.config, "cache", None)  # none under "-p no:cacheprovider"
    source = _axe_source(Path(cache.mkdir("axe")) if cache else tmp_path_factory.mktemp("axe"))

    def violations(page: Page) -> list[str]:
        # Evaluated, not added as an element: a content security policy would refuse that.
        page.evaluate(source)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [
            f"{one['id']} ({one['impact']}): {one['help']}\n"
            + "\n".join(f"  {node['html']}\n  {node['failureSummary']}" for node in one["nodes"])
            for one in found
            if one["impact"] in {"serious", "critical"}
        ]

    return violations


def overflowing(page: Page) -> list[str]:
    """The elements that reach past the window's right edge, so that the page scrolls sideways."""
    found: list[str] = page.evaluate(
        """() => {
            const width = document.documentElement.clientWidth;
            if (document.documentElement.scrollWidth <= width) return [];
            return [...document.querySelectorAll("body *")]
                .filter((one) => one.getBoundingClientRect().right > width + 0.5)
                .map((one) => one.outerHTML.slice(0, 120));
        }"""
    )
    return found


def _is_bad(said: Any) -> bool:
    return said.type in {"error", "warning"}


def _only_from(context: BrowserContext, origin: str, problems: list[str]) -> None:
    root = origin.rstrip("/")

    def is_allowed(url: str) -> bool:
        return url == root or url.startswith((f"{root}/", f"{root}?", f"{root}#"))

    def route(one: Route) -> None:
        if is_allowed(one.request.url):
            one.continue_()
        else:
            problems.append(f"The page asked for {one.request.url}")
            one.abort()

    def route_socket(one: WebSocketRoute) -> None:
        if is_allowed(one.url.replace("ws", "http", 1)):
            one.connect_to_server()
        else:
            problems.append(f"The page asked for {one.url}")
            one.close()

    context.route("**/*", route)
    context.route_web_socket("**/*", route_socket)


def _axe_source(folder: Path) -> str:
    """The text of axe.min.js, fetched once and kept in `folder`."""
    kept = folder / f"{AXE}.min.js"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=folder) as fetching:
            _fetch_axe(Path(fetching)).replace(kept)  # whole or not at all: other runs may look
    return kept.read_text("utf-8")


def _fetch_axe(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm, to fetch axe-core: apt-get install npm")
    command = [npm, "pack", AXE, "--pack-destination", str(folder), "--silent"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NPM_S, cwd=folder)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm pack {AXE} took more than {NPM_S:.0f} s")
    if done.returncode:
        pytest.skip(f"npm pack {AXE} failed: {done.stderr.strip()[-300:]}")
    (package,) = folder.glob("*.tgz")
    with tarfile.open(package) as archive:
        (member,) = [one for one in archive if one.name == "package/axe.min.js"]
        source = archive.extractfile(member)
        assert source is not None
        script = folder / "axe.min.js"
        script.write_bytes(source.read())
    return script
