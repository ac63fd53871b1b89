"""From chat messages to the exact prompt text, with the model's own chat template.

TGI's `/generate` takes raw text, so the template is applied here, by transformers. Templates that
know tools are given them; for the others, tools and their results are written out in the same form
(`<tool_call>` elements around JSON) that the former use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from qwenlong_graph.errors import SettingsError

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

__all__ = [
    "CALL_CLOSE",
    "CALL_OPEN",
    "THINK_CLOSE",
    "THINK_OPEN",
    "ChatTemplate",
    "Prompt",
    "load_template",
]

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Prompt:
    """A prompt as it goes to the server.

    `thinking` is "open" where the prompt itself opens `<think>`, "possible" where the model may
    do so, and "none" where its template knows no thoughts or has closed them.
    """

    text: str
    thinking: Literal["none", "possible", "open"]


@lru_cache(maxsize=8)
def load_template(source: str) -> ChatTemplate:
    """The chat template of a model folder or hub id. Raises `SettingsError` where there is none.

    A hub id is taken from the local cache where it is there, else downloaded (the tokenizer's
    files only); `HF_HUB_OFFLINE=1` forbids that. No code of the model's repository is run.
    """
    from transformers import AutoTokenizer

    loader: Any = AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(source)
    except Exception as error:  # tokenizers raises it bare for a broken file
        raise SettingsError(
            f"Loading the tokenizer of {source} failed ({type(error).__name__}). Pass the folder "
            "that holds the model's tokenizer.json and tokenizer_config.json as tokenizer, or "
            "its hub id."
        ) from error
    return ChatTemplate(tokenizer, source=source)


class ChatTemplate:
    """A tokenizer with its chat template; may be used from several threads."""

    def __init__(self, tokenizer: Any, *, source: str) -> None:
        self._tokenizer = tokenizer
        try:
            template = str(tokenizer.get_chat_template())
        except ValueError as error:
            raise SettingsError(
                f"The tokenizer of {source} has no chat template: a base model cannot follow "
                "instructions. Use its chat or instruct version, or put the template into "
                "chat_template.jinja in a local folder and pass that as tokenizer."
            ) from error
        self._source = source
        self._knows_tools = "tools" in template and CALL_OPEN in template
        self._knows_thoughts = THINK_OPEN in template or THINK_CLOSE in template
        # The server puts this token before the text itself, whether the template did or not.
        start = tokenizer.bos_token
        added = tokenizer("")["input_ids"]
        self._start = start if start and added[:1] == [tokenizer.bos_token_id] else ""

    def render(
        self,
        messages: Sequence[BaseMessage],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        answer_schema: Mapping[str, Any] | None = None,
        template_settings: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The prompt for the model's next message.

        `tools` are in OpenAI's form. `answer_schema` is told to the model in the system message.
        Raises `SettingsError` where a message holds anything but text, or the template refuses.
        """
        from jinja2.exceptions import TemplateError

        told = [_plain_message(message, self._knows_tools) for message in messages]
        notes = []
        if tools and not self._knows_tools:
            notes.append(_tool_note(tools))
        if answer_schema is not None:
            notes.append(_schema_note(answer_schema))
        if notes:
            told = _with_system_note(told, "\n\n".join(notes))
        try:
            text = self._tokenizer.apply_chat_template(
                told,
                tools=list(tools) if tools and self._knows_tools else None,
                tokenize=False,
                add_generation_prompt=True,
                **(template_settings or {}),
            )
        except (TemplateError, TypeError) as error:
            raise SettingsError(
                f"The chat template of {self._source} refuses these messages "
                f"({type(error).__name__}): some know no system message, or want user and "
                "assistant to take turns. Arrange the messages accordingly."
            ) from error
        return Prompt(text.removeprefix(self._start), self._thinking(text))

    def count(self, text: str) -> int:
        """The number of tokens of a text by itself."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def count_prompt(self, prompt: Prompt) -> int:
        """The number of tokens that the server makes of a prompt."""
        return len(self._tokenizer.encode(prompt.text))

    def token_ids(self, text: str) -> list[int]:
        """The tokens of a text by itself."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _thinking(self, text: str) -> Literal["none", "possible", "open"]:
        ending = text.rstrip()
        if ending.endswith(THINK_OPEN):
            return "open"
        if ending.endswith(THINK_CLOSE) or not self._knows_thoughts:
            return "none"
        return "possible"


# Chunks have types of their own, and may be given back as messages.
_ROLES = {
    "human": "user",
    "HumanMessageChunk": "user",
    "ai": "assistant",
    "AIMessageChunk": "assistant",
    "system": "system",
    "SystemMessageChunk": "system",
    "tool": "tool",
    "ToolMessageChunk": "tool",
}


def _plain_message(message: BaseMessage, knows_tools: bool) -> dict[str, Any]:
    role = str(getattr(message, "role", "")) or _ROLES.get(message.type, "")
    if not role:
        raise SettingsError(
            f"ChatTGI cannot send a message of type {message.type!r}. "
            "Use system, human, ai or tool messages."
        )
    content = _text_of(message)
    calls = [
        {"name": call["name"], "arguments": call["args"]}
        for call in getattr(message, "tool_calls", None) or []
    ]
    if knows_tools:
        plain: dict[str, Any] = {"role": role, "content": content}
        if calls:
            plain["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        return plain
    for call in calls:
        content += f"\n{CALL_OPEN}\n{json.dumps(call, ensure_ascii=False)}\n{CALL_CLOSE}"
    if role == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    return {"role": role, "content": content.strip() if calls else content}


# Parts of an assistant's message that stand elsewhere in it too, or are its thoughts.
_LEFT_OUT = frozenset({"reasoning", "thinking", "tool_call", "tool_call_chunk", "tool_use"})


def _text_of(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    texts = []
    for block in message.content:
        kind = "text" if isinstance(block, str) else block.get("type")
        if kind == "text":
            texts.append(block if isinstance(block, str) else str(block.get("text", "")))
        elif kind not in _LEFT_OUT or _ROLES.get(message.type) != "assistant":
            raise SettingsError(
                f"ChatTGI sends text, and a message holds a block of type {kind!r}. "
                "Leave it out, or use a model that takes it."
            )
    return "".join(texts)


def _with_system_note(messages: list[dict[str, Any]], note: str) -> list[dict[str, Any]]:
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{note}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": note}, *messages]


def _tool_note(tools: Sequence[Mapping[str, Any]]) -> str:
    listed = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    return (
        f"You can call these functions, given one per line with the JSON schema of their "
        f"parameters:\n{listed}\n\nTo call one, write nothing but its name and arguments as JSON, "
        f'in this form:\n{CALL_OPEN}\n{{"name": NAME, "arguments": OBJECT}}\n{CALL_CLOSE}\n'
        "What it returns is then given to you. Answer in words where no call is needed."
    )


def _schema_note(schema: Mapping[str, Any]) -> str:
    return (
        "Answer with one JSON object, and nothing else, that fits this JSON schema:\n"
        f"{json.dumps(schema, ensure_ascii=False)}"
    )
