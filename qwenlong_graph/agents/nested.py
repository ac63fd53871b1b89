"""A memory agent that reads within a host: its progress is the host's, its checkpoints too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from langchain_core.runnables import RunnableConfig

from qwenlong_graph.graph.agent import MemoryAgent

__all__ = ["RESUMING", "NestedAgent"]

RESUMING = "__pregel_resuming"  # LangGraph's key; it does not export the name
_CALL = "nested_call"  # in the metadata of the memory agent's checkpoints

Emit = Callable[[Any], None]


class NestedAgent:
    """A memory agent as part of a host, which gives its config and takes the progress.

    `call` names one call of the memory agent in its host. A host that is resumed repeats the call
    with the same name, and the reading goes on where it was; another call never takes over a
    reading that is not its own.
    """

    def __init__(self, agent: MemoryAgent) -> None:
        self.agent = agent

    def read(
        self, given: Mapping[str, Any], config: RunnableConfig, emit: Emit, *, call: str
    ) -> Mapping[str, Any]:
        """The output of `invoke`. Events of the "custom" stream go to `emit`."""
        own, is_kept = _own(config, call)
        if is_kept and not _is_of(call, self.agent.get_state(config).metadata):
            own, is_kept = _afresh(own), False
        output = self._streamed(given, own, emit)
        if is_kept and output["question"] != given["question"]:
            output = self._streamed(given, _afresh(own), emit)
        return output

    async def aread(
        self, given: Mapping[str, Any], config: RunnableConfig, emit: Emit, *, call: str
    ) -> Mapping[str, Any]:
        """`read` for async callers."""
        own, is_kept = _own(config, call)
        if is_kept and not _is_of(call, (await self.agent.aget_state(config)).metadata):
            own, is_kept = _afresh(own), False
        output = await self._astreamed(given, own, emit)
        if is_kept and output["question"] != given["question"]:
            output = await self._astreamed(given, _afresh(own), emit)
        return output

    def _streamed(
        self, given: Mapping[str, Any], config: RunnableConfig, emit: Emit
    ) -> Mapping[str, Any]:
        output = None
        with contextlib.closing(
            cast("Any", self.agent.stream(dict(given), config, **self._options()))
        ) as events:
            for mode, event in events:
                if mode == "custom":
                    emit(event)
                else:
                    output = event
        return cast("Mapping[str, Any]", output)

    async def _astreamed(
        self, given: Mapping[str, Any], config: RunnableConfig, emit: Emit
    ) -> Mapping[str, Any]:
        output = None
        streamed = self.agent.astream(dict(given), config, **self._options())
        async with contextlib.aclosing(streamed) as events:
            async for mode, event in events:
                if mode == "custom":
                    emit(event)
                else:
                    output = event
        return cast("Mapping[str, Any]", output)

    def _options(self) -> dict[str, Any]:
        return {"stream_mode": ["custom", "values"], "output_keys": self.agent.output_channels}


def _own(config: RunnableConfig, call: str) -> tuple[RunnableConfig, bool]:
    """The config for the memory agent, and whether a checkpoint of this very call may be there."""
    own: RunnableConfig = {**config, "metadata": {**config.get("metadata", {}), _CALL: call}}
    return own, bool(config.get("configurable", {}).get(RESUMING))


def _is_of(call: str, metadata: Mapping[str, Any] | None) -> bool:
    """Whether a checkpoint is of this call: a resumed call must not take an earlier one's for it.

    Calls may share a history, since follow-up questions need it.
    """
    return bool((metadata or {}).get(_CALL) == call)


def _afresh(config: RunnableConfig) -> RunnableConfig:
    return {**config, "configurable": {**config.get("configurable", {}), RESUMING: False}}
