"""That the checks of pages can fail."""

from __future__ import annotations

import http.server
import threading

import pytest

from tests.browser import overflowing

pytestmark = pytest.mark.end_to_end

GOOD = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>T</title><main><h1>Good</h1></main>"""


@pytest.fixture
def serve():
    """Serves one page at every path; gives its origin."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()

        def serving(page, csp="default-src 'self' 'unsafe-inline' data:"):
            Handler.page, Handler.csp = page.encode(), csp
            return f"http://127.0.0.1:{server.server_port}"

        yield serving
        server.shutdown()
        thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
    page, csp = b"", ""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Security-Policy", self.csp)
        self.end_headers()
        self.wfile.write(self.page)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("csp", ["default-src 'none'", "default-src 'self'"])
def test_a_good_page_passes(serve, chromium_page, axe_violations, csp):
    origin = serve(GOOD, csp)
    with chromium_page(origin) as page:
        page.goto(f"{origin}/")
        assert page.get_by_role("heading").inner_text() == "Good"
        assert axe_violations(page) == []
        assert overflowing(page) == []


def test_a_file_is_a_page_too(tmp_path, chromium_page):
    file = tmp_path / "page.html"
    file.write_text(GOOD, "utf-8")
    with chromium_page(file.as_uri(), dark=True) as page:
        page.goto(file.as_uri())
        assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("console.error('something broke')", "something broke"),
        ("console.warn('something is odd')", "something is odd"),
        ("throw new Error('nobody caught this')", "nobody caught this"),
        ("new Image().src = 'http://127.0.0.1:9/pixel'", "asked for http://127.0.0.1:9/pixel"),
        ("new WebSocket('ws://127.0.0.1:9/ws')", "asked for ws://127.0.0.1:9/ws"),
    ],
)
def test_what_is_wrong_in_a_page_fails_the_test(serve, chromium_page, script, told):
    origin = serve(f"{GOOD}<script>{script}</script>", "default-src * 'unsafe-inline'")
    with pytest.raises(AssertionError, match=told), chromium_page(origin) as page:
        page.goto(f"{origin}/", wait_until="networkidle")


def test_what_the_policy_refuses_fails_the_test(serve, chromium_page):
    origin = serve(f"{GOOD}<script>document.title = 'run'</script>", "default-src 'none'")
    refused = pytest.raises(AssertionError, match="Content Security Policy")
    with refused, chromium_page(origin) as page:
        page.goto(f"{origin}/")


def test_illegible_text_and_a_page_too_wide_are_found(
    serve,
    chromium_page,
    axe_violations,
):
    pale = "<p style='color:#aaa'>pale</p><pre style='width:500px'>wide</pre>"
    origin = serve(f"{GOOD}<main>{pale}<input></main>")
    with chromium_page(origin, width=360, height=800) as page:
        page.goto(f"{origin}/")
        rules = {violation.split(" ")[0] for violation in axe_violations(page)}
        assert {"color-contrast", "label"} <= rules
        assert any("wide" in element for element in overflowing(page))
