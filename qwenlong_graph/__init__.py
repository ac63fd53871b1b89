"""Answer questions over documents far longer than any context window, with checked citations.

The front door: what most users need, imported when first used, so that `import qwenlong_graph`
stays light. Everything else is imported from the module that owns it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenlong_graph.errors import QwenLongGraphError
    from qwenlong_graph.graph.agent import (
        aread,
        build_memory_graph,
        create_memory_agent,
        read,
    )
    from qwenlong_graph.models.connect import ConnectedModel, connect
    from qwenlong_graph.reading.budget import ReadingSettings
    from qwenlong_graph.types import SourceCitation, UnsupportedClaim

    __version__: str

__all__ = [
    "ConnectedModel",
    "QwenLongGraphError",
    "ReadingSettings",
    "SourceCitation",
    "UnsupportedClaim",
    "__version__",
    "aread",
    "build_memory_graph",
    "connect",
    "create_memory_agent",
    "read",
]

_OWNERS = {
    "ConnectedModel": "qwenlong_graph.models.connect",
    "QwenLongGraphError": "qwenlong_graph.errors",
    "ReadingSettings": "qwenlong_graph.reading.budget",
    "SourceCitation": "qwenlong_graph.types",
    "UnsupportedClaim": "qwenlong_graph.types",
    "aread": "qwenlong_graph.graph.agent",
    "build_memory_graph": "qwenlong_graph.graph.agent",
    "connect": "qwenlong_graph.models.connect",
    "create_memory_agent": "qwenlong_graph.graph.agent",
    "read": "qwenlong_graph.graph.agent",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("qwenlong-graph")
    if name in _OWNERS:
        from importlib import import_module

        return getattr(import_module(_OWNERS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
