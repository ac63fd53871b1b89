from __future__ import annotations

import pytest

from qwenlong_graph.documents.store import DocumentStore


@pytest.fixture
def store(tmp_path):
    return DocumentStore(tmp_path / "store")


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory):
    """For hypothesis, whose examples share one function-scoped fixture anyway."""
    return DocumentStore(tmp_path_factory.mktemp("shared") / "store")
