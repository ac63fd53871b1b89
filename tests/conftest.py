from __future__ import annotations

import pytest

from tests.browser import axe_violations, chromium, chromium_page  # noqa: F401 - fixtures


@pytest.fixture(scope="session")
def embedded_model():
    """The embedded model, started once for the whole session."""
    from qwenlong_graph.models.connect import connect

    model = connect("embedded")
    yield model
    model.close()
