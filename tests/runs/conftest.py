from __future__ import annotations

import pytest

from qwenlong_graph.runs.directory import RunShelf


@pytest.fixture
def shelf(tmp_path):
    return RunShelf(tmp_path / "runs")


@pytest.fixture
def create(shelf):
    """Makes a run with everything that does not matter filled in."""

    def create(**fields):
        documents = {"collection_id": "0" * 64, "documents": 1, "chars": 9, "bytes": 9}
        record = {
            "question": "Who paid?",
            "instructions": "",
            "documents": documents,
            "titles": ["annals"],
            "model": "embedded",
            "window": None,
            "settings": {"chunk_tokens": 200},
            "version": "0.1.0",
        }
        return shelf.create(**(record | fields))

    return create
