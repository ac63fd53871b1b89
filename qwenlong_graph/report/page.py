"""The page itself: one HTML file that needs nothing else, and sends nothing anywhere."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenlong_graph.report.contents import BLOCK_STEPS, contents_of

if TYPE_CHECKING:
    import jinja2

    from qwenlong_graph.report.sources import Reading

__all__ = ["report_page"]

_HERE = Path(__file__).parent


def report_page(reading: Reading) -> str:
    """The report of `reading` as HTML.

    Texts of documents and models are escaped, and the page's own policy runs no script but the
    one it comes with. Nothing is fetched; every link leads to a place on the page.
    """
    style, script = _part("page.css"), _part("page.js")
    html: str = _template().render(
        reading=reading,
        contents=contents_of(reading),
        block_steps=BLOCK_STEPS,
        style=style,
        script=script,
        policy="default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src {_digest(style)}; script-src {_digest(script)}",
    )
    # Lone surrogates have no place in UTF-8.
    return html.encode("utf-8", "replace").decode("utf-8")


@cache
def _template() -> jinja2.Template:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def count(number: Any) -> str:
        return f"{number:,}"

    def bare(line: str) -> str:
        return re.sub(r"^\s*[-*•]\s+", "", line)

    environment.filters |= {"count": count, "bare": bare}
    # Ours, not a document's; JSON is escaped where it is made.
    environment.filters["ours"] = Markup
    return environment.get_template("page.html")


@cache
def _part(name: str) -> str:
    return (_HERE / name).read_text("utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
