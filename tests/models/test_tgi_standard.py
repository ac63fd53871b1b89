"""LangChain's own suites for chat models, against `ChatTGI`.

Skipped, and why:
- `test_init_from_env`: the key comes from the caller, nothing is read from the environment.
- `test_serdes`: LangChain loads only classes of its own list, so the class stays unserialisable.
- images, audio, PDF, Anthropic's blocks: TGI's `/generate` takes text; others are refused by name.
- another model for one call: a TGI server has one model; asking for another is refused by name.
- `test_stream_time`: it wants recorded traffic; `benchmarks/clients.py` measures streaming.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from qwenlong_graph.models.tgi import ChatTGI
from qwenlong_graph.testing.tgi import TgiDouble, serve, small_tokenizer

ARGUMENTS = {
    "magic_function": {"input": 3},
    "magic_function_no_args": {},
    "my_adder_tool": {"a": 3, "b": 4},
    "greeting_generator": {"answer_style": "pirate"},
    "get_weather": {"location": "San Francisco, CA"},
}
JOKE = {"setup": "Why do cats purr?", "punchline": "They run on mice."}


def obedient_model(prompt: str) -> str:
    """What a model would write that calls a tool whenever one is there, else makes small talk."""
    turns = prompt.split("<|im_start|>")
    system, question, open_turn = turns[1], turns[-2], turns[-1].removeprefix("assistant\n")
    if open_turn.endswith('"arguments":'):
        name = json.loads(open_turn.rpartition('"name": ')[2].removesuffix(', "arguments":'))
        if name == "Joke":
            return json.dumps(JOKE)
        if name == "unicode_customer":
            customer = "你好啊集团" if "你好" in question else "こんにちは株式会社"
            customer_arguments = {"customer_name": customer, "description": "It makes software."}
            return json.dumps(customer_arguments, ensure_ascii=False)
        return json.dumps(ARGUMENTS[name])
    if open_turn.endswith("<tool_call>\n"):
        return '{"name": "magic_function"}'
    if "fits this JSON schema" in system:
        return json.dumps(JOKE)
    if "You can call these functions" in system and "<tool_response>" not in question:
        return "" if open_turn else "Let me look.\n<tool_call>"
    if "think" in question:
        return "<think>Two and two.</think>\n\nFour."
    return "Hello, and how are you today?"


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer().save_pretrained(folder)
    return str(folder)


class TestChatTGIUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatTGI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": "http://127.0.0.1:9"}


@pytest.mark.contract
class TestChatTGIAgainstTheDouble(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _serve(self, tokenizer_folder: str) -> Iterator[None]:
        double = TgiDouble(obedient_model)
        with serve(double) as url:
            self.parameters = {"base_url": url, "tokenizer": tokenizer_folder}
            yield

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatTGI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return self.parameters

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> dict[str, list[str]]:  # type: ignore[override]
        return {"invoke": ["reasoning_output"], "stream": ["reasoning_output"]}

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        model = ChatTGI(**self.chat_model_params)
        if not stream:
            return model.invoke("What is two and two? Please think.")
        chunks = list(model.stream("What is two and two? Please think."))
        whole: AIMessageChunk = chunks[0]
        for chunk in chunks[1:]:
            whole = whole + chunk
        return whole
