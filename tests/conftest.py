from __future__ import annotations

import pytest

from tests.browser import axe_violations, chromium, chromium_page  # noqa: F401 - fixtures


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "embedded_model" in getattr(item, "fixturenames", ()):
            item.add_marker("alone")


@pytest.fixture(scope="session")
def embedded_model():
    """The embedded model, started once for the whole session."""
    from qwenlong_graph.models.connect import connect

    model = connect("embedded")
    yield model
    model.close()
