"""From the options that name a model to what `connect` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from qwenlong_graph.models.server import is_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwenlong_graph.models.connect import ConnectedModel

__all__ = ["Waiting", "connected", "connection_options", "fetch_embedded"]


class Waiting(Protocol):
    """Told what happens until the model is there."""

    def working(self, what: str) -> None:
        """Something of unknown length begins."""

    def fetching(self, done_bytes: int, total_bytes: int) -> None:
        """The embedded model is being fetched."""


def connected(
    model: str,
    *,
    served_model: str | None,
    api_key: str | None,
    window: int | None,
    progress: Waiting,
) -> ConnectedModel:
    """The model that the options name, fetched and started where that is needed."""
    from qwenlong_graph.models.connect import connect

    if model == "embedded":
        progress.working("Verifying the embedded model")
        fetch_embedded(
            progress=progress.fetching,
            converting=lambda: progress.working("Converting the embedded model, once"),
        )
    name = "the embedded model" if model == "embedded" else model
    progress.working(f"Connecting to {name}" if is_address(model) else f"Starting {name}")
    options = connection_options(model, served_model=served_model, api_key=api_key, window=window)
    return connect(model, **options)


def connection_options(
    model: str, *, served_model: str | None, api_key: str | None, window: int | None
) -> dict[str, Any]:
    """The keywords of `connect(model, ...)`."""
    return {
        "model": served_model,
        "window": window,
        # A key that stands in the environment must not keep a local model from starting.
        "api_key": api_key if is_address(model) else None,
    }


def fetch_embedded(*, progress: Callable[[int, int], None], converting: Callable[[], None]) -> None:
    """Fetches the embedded model here and not in `connect`, so that there is one progress display.

    Without the extra nothing is fetched: `connect` says what to install.
    """
    from importlib.util import find_spec

    if find_spec("xllamacpp") is None or find_spec("langchain_openai") is None:
        return
    from qwenlong_graph.models.fetching import embedded_model_path

    embedded_model_path(progress=progress, converting=lambda *_: converting())
