"""What LangSmith is told of a reading. QWENLONG_GRAPH_TRACE_TEXTS=no keeps texts out of it.

LangSmith's own LANGSMITH_HIDE_INPUTS and LANGSMITH_HIDE_OUTPUTS do not suffice: they leave the
messages of errors and of their causes, in which a server may quote the prompt, and how the model
was made and called.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from langchain_core.tracers.langchain import get_client
from langsmith import Client, run_trees
from langsmith.utils import tracing_is_enabled

__all__ = ["SWITCH", "are_texts_traced", "hide_traced_texts", "obey_switch"]

SWITCH = "QWENLONG_GRAPH_TRACE_TEXTS"

_YES = {"", "1", "true", "yes", "on"}
_TEXT_FIELDS = ("inputs", "outputs", "serialized", "attachments")
_KEPT_EXTRA = ("metadata", "runtime")


def are_texts_traced() -> bool:
    """Whether the environment leaves texts in traces; what is no clear yes is taken as a no."""
    return os.environ.get(SWITCH, "").strip().lower() in _YES


def obey_switch() -> None:
    """Silences the client that LangChain shares in this process, where the environment says so.

    That is for the runs of a program around the agent too, which hold its question and answer.
    """
    if are_texts_traced():
        return
    # To make a client is to call LangSmith's server: not where nothing is traced.
    if tracing_is_enabled() or run_trees._CLIENT is not None:
        hide_traced_texts(get_client())


def hide_traced_texts(client: Client) -> None:
    """From now on `client` sends names, times, token counts and metadata of runs, but no text.

    Of an error, its class is sent. Cannot be undone.
    """
    # Tracers hold on to the client they were made with: another one would come too late for them.
    if not isinstance(client, _TextlessClient):
        client.__class__ = _TextlessClient


class _TextlessClient(Client):
    """Every traced run goes through these two."""

    __slots__ = ()

    def create_run(self, name: str, inputs: Any, run_type: Any, **fields: Any) -> None:
        """Client.create_run."""
        super().create_run(name, {}, run_type, **_without_texts(fields))

    def update_run(self, run_id: Any, **fields: Any) -> None:
        """Client.update_run."""
        super().update_run(run_id, **_without_texts(fields))


def _without_texts(fields: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in fields.items() if name not in _TEXT_FIELDS}
    if kept.get("error"):
        # It begins with the repr of the exception.
        kind = re.match(r"\w+(?=\()", str(kept["error"]))
        kept["error"] = f"{kind[0] if kind else 'Error'} (what it says is hidden)"
    if kept.get("extra"):
        # The rest is how the model was called, the form of the answer included.
        kept["extra"] = {
            name: value for name, value in kept["extra"].items() if name in _KEPT_EXTRA
        }
    if kept.get("events"):
        # Events of tokens and retries carry texts.
        kept["events"] = [
            {name: event[name] for name in ("name", "time") if name in event}
            for event in kept["events"]
        ]
    return kept
