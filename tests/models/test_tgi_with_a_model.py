"""LangChain's integration suite on `ChatTGI`, with the embedded model behind the TGI double.

Skipped are the same capabilities as in `test_tgi_standard.py`, and JSON mode, which is the same
request as structured output here. A model of 135M parameters may call a tool with other arguments
than it was told, or not at all where it is free to choose: such tests may fail, and say why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import ChatModelIntegrationTests

from qwenlong_graph.models.tgi import ChatTGI
from qwenlong_graph.testing.tgi import LlamaCpp, TgiDouble, serve, small_tokenizer

may_fail = pytest.mark.xfail(
    strict=False, reason="a model of 135M parameters does not reliably choose tools or arguments"
)

may_ramble = pytest.mark.xfail(
    strict=False, reason="a model of 135M parameters may fill a string until its limit of tokens"
)


@pytest.fixture(scope="module")
def parameters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    from qwenlong_graph.models.embedded import start_server
    from qwenlong_graph.models.fetching import embedded_model_path

    # The small tokenizer writes the model's own ChatML form; the server counts the tokens.
    folder = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer().save_pretrained(folder)
    lease = start_server(embedded_model_path())
    try:
        with serve(TgiDouble(LlamaCpp(lease.url, api_key=lease.api_key))) as url:
            yield {"base_url": url, "tokenizer": str(folder), "max_tokens": 300}
    finally:
        lease.release()


@pytest.mark.alone
@pytest.mark.end_to_end
class TestChatTGIWithAModel(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _served(self, parameters: dict[str, Any]) -> None:
        self.parameters = parameters

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatTGI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return self.parameters

    @may_fail
    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    def test_tool_calling(self, model: BaseChatModel) -> None:
        super().test_tool_calling(model)

    @may_fail
    async def test_tool_calling_async(self, model: BaseChatModel) -> None:
        await super().test_tool_calling_async(model)

    @may_fail
    def test_bind_runnables_as_tools(self, model: BaseChatModel) -> None:
        super().test_bind_runnables_as_tools(model)

    @may_fail
    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @may_ramble
    @pytest.mark.parametrize("schema_type", ["pydantic", "typeddict", "json_schema"])
    def test_structured_output(self, model: BaseChatModel, schema_type: str) -> None:
        super().test_structured_output(model, schema_type)

    @may_ramble
    @pytest.mark.parametrize("schema_type", ["pydantic", "typeddict", "json_schema"])
    async def test_structured_output_async(self, model: BaseChatModel, schema_type: str) -> None:
        await super().test_structured_output_async(model, schema_type)

    @may_ramble
    def test_structured_output_pydantic_2_v1(self, model: BaseChatModel) -> None:
        super().test_structured_output_pydantic_2_v1(model)

    @may_fail
    def test_structured_few_shot_examples(
        self, model: BaseChatModel, my_adder_tool: BaseTool
    ) -> None:
        super().test_structured_few_shot_examples(model, my_adder_tool)

    @may_fail
    def test_unicode_tool_call_integration(  # type: ignore[override] # pytest gives only the model
        self, model: BaseChatModel
    ) -> None:
        super().test_unicode_tool_call_integration(model)
