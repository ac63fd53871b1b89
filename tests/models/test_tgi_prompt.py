from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from qwenlong_graph.errors import SettingsError
from qwenlong_graph.models.tgi_prompt import ChatTemplate, load_template
from qwenlong_graph.testing.tgi import small_tokenizer

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
CALL = {"name": "add", "args": {"a": 1}, "id": "1", "type": "tool_call"}

# In the manner of templates that know tools and thoughts.
KNOWING = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + ' <tool_call><|im_end|>\n' }}"
    "{% endif %}{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{{ message.content }}{% for call in message.tool_calls or [] %}"
    "{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}"
)


def template(**changed: Any) -> ChatTemplate:
    tokenizer = small_tokenizer()
    for name, value in changed.items():
        setattr(tokenizer, name, value)
    return ChatTemplate(tokenizer, source="the test")


def test_messages_become_the_models_own_form() -> None:
    messages: list[BaseMessage] = [
        SystemMessage("Be brief."),
        HumanMessage("Hi", name="Ann"),
        AIMessage([{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": "Hello."}]),
        HumanMessage(["Who ", {"type": "text", "text": "are you?"}]),
        AIMessageChunk(content="I am."),
        ChatMessage(content="Really?", role="user"),
    ]
    prompt = template().render(messages)
    assert prompt.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>\n"
        "<|im_start|>assistant\nI am.<|im_end|>\n<|im_start|>user\nReally?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert prompt.thinking == "none"


def test_whether_the_model_will_think_is_read_from_the_prompt() -> None:
    opening = ChatTemplate(small_tokenizer(opens_thinking=True), source="the test")
    assert opening.render([HumanMessage("Hi")]).thinking == "open"
    knowing = template(chat_template=KNOWING)
    assert knowing.render([HumanMessage("Hi")]).thinking == "possible"
    off = knowing.render([HumanMessage("Hi")], template_settings={"enable_thinking": False})
    assert off.thinking == "none"


def test_a_template_that_knows_tools_is_given_them() -> None:
    conversation = [HumanMessage("1?"), AIMessage("", tool_calls=[CALL]), _result()]
    text = template(chat_template=KNOWING).render(conversation, tools=[TOOL]).text
    assert json.dumps([TOOL]) in text
    assert '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>' in text
    assert "<|im_start|>tool\n2<|im_end|>" in text


def test_other_templates_get_tools_and_results_written_out() -> None:
    conversation = [
        SystemMessage("Be brief."),
        HumanMessage("1?"),
        AIMessage("", tool_calls=[CALL]),
        _result(),
    ]
    text = template().render(conversation, tools=[TOOL]).text
    system, user, assistant, result, _ = text.split("<|im_end|>\n")
    assert system.startswith("<|im_start|>system\nBe brief.\n\n")
    assert json.dumps(TOOL["function"]) in system
    assert user == "<|im_start|>user\n1?"
    assert assistant.endswith('\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>')
    assert result == "<|im_start|>user\n<tool_response>\n2\n</tool_response>"


def test_the_schema_of_the_answer_is_told_in_the_system_message() -> None:
    text = template().render([HumanMessage("Hi")], answer_schema={"type": "object"}).text
    assert text.startswith("<|im_start|>system\nAnswer with one JSON object")
    assert '{"type": "object"}' in text


def test_blocks_that_are_not_text_are_refused_by_kind() -> None:
    image = HumanMessage([{"type": "image_url", "image_url": {"url": "data:secret"}}])
    with pytest.raises(SettingsError, match="'image_url'") as caught:
        template().render([image])
    assert "secret" not in str(caught.value)
    with pytest.raises(SettingsError, match="'function'"):
        template().render([FunctionMessage(content="1", name="f")])


def test_a_template_that_refuses_is_named() -> None:
    strict = template(chat_template="{{ raise_exception('take turns') }}")
    with pytest.raises(SettingsError, match="of the test refuses these messages"):
        strict.render([HumanMessage("Hi")])


def test_a_start_token_that_the_server_adds_is_not_sent_twice() -> None:
    from tokenizers.processors import TemplateProcessing  # type: ignore[import-untyped]

    tokenizer = small_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    plain = ChatTemplate(tokenizer, source="the test")
    assert plain.render([HumanMessage("Hi")]).text == "<|endoftext|>Hi"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    adding = ChatTemplate(tokenizer, source="the test")
    prompt = adding.render([HumanMessage("Hi")])
    assert prompt.text == "Hi"
    assert adding.count_prompt(prompt) == adding.count("Hi") + 1


def test_a_folder_is_loaded_once_and_a_base_model_is_refused(tmp_path: Path) -> None:
    small_tokenizer().save_pretrained(tmp_path / "chat")
    assert load_template(str(tmp_path / "chat")) is load_template(str(tmp_path / "chat"))
    base = small_tokenizer()
    base.chat_template = None
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(SettingsError, match="has no chat template"):
        load_template(str(tmp_path / "base"))


def test_a_folder_without_a_whole_tokenizer_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    small_tokenizer().save_pretrained(broken)
    (broken / "tokenizer.json").write_text("{")
    for place in (tmp_path, tmp_path / "missing", broken):
        with pytest.raises(SettingsError, match="Loading the tokenizer of"):
            load_template(str(place))


def _result() -> ToolMessage:
    return ToolMessage("2", tool_call_id="1", name="add")
