from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def embedded_model():
    """The embedded model, started once for the whole session."""
    from qwenlong_graph.models.connect import connect

    model = connect("embedded")
    yield model
    model.close()
