"""The models of the examples: scripted unless `--model` names another.

A scripted reader knows which sentences to look for, and finds them where they stand; a scripted
host knows which tools it calls. Everything else is real: the graph, the chunks, the memory, the
store, the citations. So an example runs in seconds, without a key, and always shows the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage

from qwenlong_graph import QwenLongGraphError, connect
from qwenlong_graph.models.connect import ConnectedModel
from qwenlong_graph.testing.oracle import OracleChatModel, oracle
from qwenlong_graph.testing.scripted import ScriptedChatModel, scripted

DATA = Path(__file__).parent / "data"
ADDRESS_1946 = DATA / "state-of-the-union-1946.txt"
"""36,500 tokens of SmolLM2; ten chunks or so for the scripted reader."""


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--model`; its help shows `description`, the example's first lines."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        default="scripted",
        help='"scripted" (the default), "embedded", or the address of a server of yours',
    )
    sys.excepthook = told
    return parser


def told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C is told in a word, all else with its traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("\nInterrupted.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def reader(
    name: str, sentences: Sequence[str] | Mapping[str, Sequence[str]], **options: Any
) -> ConnectedModel:
    """The model that reads; scripted, it looks for `sentences`, or for those of the question asked.

    `options` are those of `oracle`.
    """
    if name != "scripted":
        try:
            return connect(name)
        except QwenLongGraphError as error:
            sys.exit(f"--model {name}: {error}")
    if not isinstance(sentences, Mapping):
        return oracle(sentences, **options)
    oracles = {question: OracleChatModel(facts) for question, facts in sentences.items()}

    def reply(messages: list[BaseMessage]) -> str:
        prompt = messages[-1].text
        asked = next((one for question, one in oracles.items() if question in prompt), None)
        return str((asked or OracleChatModel([])).replies(messages))

    return scripted(reply, **options)


def host(name: str, reading: ConnectedModel, replies: Iterable[Any] | Callable[..., Any]) -> Any:
    """The model of the agent around the reading: that of a server, else one with that script."""
    if "://" in name:
        chat: BaseChatModel = reading.chat
        return chat
    if name != "scripted":
        print(
            f"(The host is scripted: {name} reads, and is too small to choose tools.)\n",
            file=sys.stderr,
        )
    return ScriptedChatModel(replies)
