"""A perfect reader: it knows the planted facts, and loses none that it is shown.

With it, whatever is missing from an answer was lost by the machinery, not by a model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from langchain_core.messages import BaseMessage

from qwenlong_graph.models.connect import ConnectedModel
from qwenlong_graph.reading.prompts import NOT_FOUND, neutralise
from qwenlong_graph.testing.scripted import ScriptedChatModel, scripted

__all__ = ["OracleChatModel", "oracle"]

# Fewer characters at the end of a chunk are not taken for the beginning of a fact.
OPENING_CHARS_MIN = 8


class OracleChatModel(ScriptedChatModel):
    """Answers every prompt of this package's reading as a reader that misses nothing would.

    `facts` are the planted sentences, in any order. Updating its memory, it keeps the lines it
    has and adds each fact of the section; a fact that a chunk border divides is noted as far as
    it goes, and completed with the next section or dropped. At the end it answers with the facts
    in its memory. White space does not count when facts are looked for.
    """

    def __init__(self, facts: Sequence[str], **fields: Any) -> None:
        super().__init__(partial(_reply, [_plain(fact) for fact in facts]), **fields)


def oracle(facts: Sequence[str], *, window: int = 8192, **options: Any) -> ConnectedModel:
    """An `OracleChatModel` as a `ConnectedModel`; `options` are those of `scripted`."""
    return scripted(partial(_reply, [_plain(fact) for fact in facts]), window=window, **options)


def _reply(facts: Sequence[str], messages: list[BaseMessage]) -> str:
    prompt = str(messages[-1].text)
    section = _element(prompt, "section")
    if "<previous_memory>" in prompt:
        memory = _lines(_element(_element(prompt, "previous_memory"), "memory"))
        # The first line of a section is its header.
        lines = _updated(memory, facts, section.partition("\n")[2])
        content = "\n".join(f"- {neutralise(line)}" for line in lines)
        return f"<memory>\n{content}\n</memory>\n<plan>\nLook for further facts.\n</plan>"
    if section:
        return _told(_held(facts, section))
    if "<core_question>" in prompt:
        question = _element(prompt, "problem")
        return f"<core_question>{question}</core_question>\n<instructions></instructions>"
    notes = prompt.partition("Notes:\n")[2].partition("\n\nQuestion:")[0]
    return _told(_held(facts, _element(prompt, "memory") or notes))


def _told(facts: Sequence[str]) -> str:
    # As a prompt shows them: a fact may hold what would end an element or the thoughts.
    return neutralise("\n".join(facts)) or NOT_FOUND


def _updated(memory: Sequence[str], facts: Sequence[str], section: str) -> list[str]:
    text = _plain(section)
    lines: list[str] = []
    for line in memory:
        divided = [fact for fact in facts if fact.startswith(line) and fact != line]
        kept = [fact for fact in divided if _completes(fact, line, text)] if divided else [line]
        lines += [entry for entry in kept if entry not in lines]
    lines += [fact for fact in _held(facts, text) if fact not in lines]
    for fact in facts:
        opening = _opening(fact, text)
        if opening and fact not in lines:
            lines.append(opening)
    return lines


def _held(facts: Sequence[str], text: str) -> list[str]:
    plain = _plain(text)
    return [fact for fact in facts if fact in plain]


def _completes(fact: str, opening: str, section: str) -> bool:
    return section.startswith(fact.removeprefix(opening).strip())


def _opening(fact: str, section: str) -> str:
    """The longest proper beginning of `fact` that `section` ends with."""
    for length in range(len(fact) - 1, OPENING_CHARS_MIN - 1, -1):
        if section.endswith(fact[:length].rstrip()):
            return fact[:length].rstrip()
    return ""


def _element(text: str, name: str) -> str:
    found = re.search(rf"<{name}>\n(.*?)\n</{name}>", text, re.DOTALL)
    return found[1] if found else ""


def _lines(memory: str) -> list[str]:
    return [_plain(line.removeprefix("- ")) for line in memory.splitlines() if line.strip()]


def _plain(text: str) -> str:
    # Neutralised text holds zero-width spaces.
    return " ".join(text.replace("\u200b", "").split())
