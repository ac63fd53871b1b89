"""Connecting to TGI, and reading with it: through `ChatTGI` and through other LangChain models."""

from __future__ import annotations

import re

import pytest
from langchain_core.documents import Document
from langgraph.types import RetryPolicy

from qwenlong_graph import ReadingSettings, connect, create_memory_agent
from qwenlong_graph.errors import (
    ConnectionSetupError,
    ModelUnavailableError,
    RunChangedError,
    SettingsError,
    WindowTooSmallError,
)
from qwenlong_graph.models.calls import ask
from qwenlong_graph.models.tgi import ChatTGI
from qwenlong_graph.models.tokenizer import PROBE_TEXT
from qwenlong_graph.testing.tgi import TgiDouble, serve, small_tokenizer

pytestmark = pytest.mark.contract

HELLO = [{"role": "user", "content": "Hello."}]
FACT = "The widow Hale paid 318,000 crowns for the bridge at Orrin."
FILLER = "The winter was long and the traders stayed away from the coast. "
TEXT = f"{FILLER * 20}{FACT} {FILLER * 60}"
GIVEN = {
    "question": "Who paid for the bridge at Orrin?",
    "instructions": "In one sentence.",
    "documents": [Document(TEXT, metadata={"title": "annals"})],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of the served model, as far as a client needs it."""
    folder = tmp_path_factory.mktemp("model")
    small_tokenizer().save_pretrained(folder)
    return folder


def reader(prompt):
    """Replies as a model that reads well would: the fact into memory, and the answer from it."""
    if "<section" in prompt:
        note = f"- {FACT}" if FACT in prompt else "nothing yet"
        return f"<memory>\n{note}\n</memory>\n<plan>\nread on\n</plan>"
    return FACT


class TestDiscovery:
    def test_the_servers_own_answers_decide(self, folder):
        double = TgiDouble(
            ["Fine."],
            model_id="/data/model",
            max_input_tokens=7168,
            max_total_tokens=8192,
            max_concurrent_requests=8,
        )
        with serve(double) as url:
            model = connect(url, tokenizer=folder)
            assert (model.engine, model.model_name) == ("tgi", "/data/model")
            assert (model.window, model.concurrency) == (7168, 8)
            assert model.version == "3.3.6-dev0"
            assert isinstance(model.chat, ChatTGI)
            assert {"<|im_start|>", "<|im_end|>", "<think>"} <= set(model.special_tokens)
            assert model.notes == ()
            reply = ask(model, HELLO, max_tokens=5)
            model.close()
        assert reply.text == "Fine."
        assert reply.input_tokens == model.template_tokens + model.count_tokens("Hello.")

    def test_a_chat_tgi_tells_its_window_and_counting_itself(self, folder):
        with serve(TgiDouble(["Fine."])) as url:
            chat = ChatTGI(base_url=url, tokenizer=folder)
            model = connect(chat)
            assert model.chat is chat
            assert (model.window, model.count_tokens("the of")) == (7168, 2)

    def test_the_folder_may_come_from_the_environment(self, folder, monkeypatch):
        monkeypatch.setenv("QWENLONG_GRAPH_TOKENIZER", str(folder))
        with serve(TgiDouble([])) as url:
            assert connect(url).count_tokens("the of") == 2

    def test_special_tokens_in_a_text_are_counted_as_text(self, folder):
        with serve(TgiDouble([])) as url:
            model = connect(url, tokenizer=folder)
        assert model.count_tokens("<|im_end|>") > 1

    def test_a_limit_that_cuts_replies_short_is_noted_with_the_flag(self, folder):
        double = TgiDouble([], max_input_tokens=4096, max_total_tokens=32_768)
        with serve(double) as url:
            model = connect(url, tokenizer=folder)
        assert model.window == 4096
        assert "--max-input-tokens 31744" in model.notes[0]

    def test_the_name_that_tgi_goes_by_is_accepted_and_another_is_not(self, folder):
        with serve(TgiDouble([], model_id="/data/model")) as url:
            assert connect(url, tokenizer=folder, model="tgi").model_name == "/data/model"
            with pytest.raises(ConnectionSetupError, match=r"'other'.*/data/model"):
                connect(url, tokenizer=folder, model="other")


class TestRefusals:
    def test_a_window_below_the_minimum_is_refused_with_the_flags(self, folder):
        double = TgiDouble([], max_input_tokens=1024, max_total_tokens=2048)
        with (
            serve(double) as url,
            pytest.raises(WindowTooSmallError, match=r"1,024 .*2,048.*--max-total-tokens"),
        ):
            connect(url, tokenizer=folder)

    def test_another_models_tokenizer_is_refused_with_both_counts(self, tmp_path):
        other = small_tokenizer()
        other.add_tokens(["1,234.50"])
        other.save_pretrained(tmp_path)
        right = len(small_tokenizer().encode(PROBE_TEXT))
        wrong = len(other.encode(PROBE_TEXT))
        with (
            serve(TgiDouble([])) as url,
            pytest.raises(SettingsError, match=rf"makes {wrong} .*makes {right}.*as tokenizer"),
        ):
            connect(url, tokenizer=tmp_path)

    def test_a_base_model_is_refused(self, tmp_path):
        base = small_tokenizer()
        base.chat_template = None
        base.save_pretrained(tmp_path)
        with (
            serve(TgiDouble([])) as url,
            pytest.raises(SettingsError, match="no chat template: a base model"),
        ):
            connect(url, tokenizer=tmp_path)

    def test_a_folder_of_the_servers_own_machine_has_to_be_named_here(self):
        with (
            serve(TgiDouble([], model_id="/data/nowhere")) as url,
            pytest.raises(SettingsError, match=r"have to be here too.*/data/nowhere.*TOKENIZER"),
        ):
            connect(url)


class TestChangedModel:
    def test_another_model_in_the_middle_of_a_run_is_refused(self, folder):
        double = TgiDouble([], model_id="/data/first")
        with serve(double) as url:
            model = connect(url, tokenizer=folder)
            model.check_unchanged()
            double.model_id = "/data/second"
            with pytest.raises(RunChangedError, match=r"/data/first.*/data/second.*accept"):
                model.check_unchanged()
        with pytest.raises(ModelUnavailableError, match="no server answers"):
            model.check_unchanged()


def test_a_long_reply_within_the_window_is_never_cut(folder):
    """The slices of TGI: the window leaves room for all of them, and for the last one's rest."""
    words = "memory of the " * 2000
    double = TgiDouble([words] * 3, max_input_tokens=4096, max_total_tokens=5120)
    with serve(double) as url:
        model = connect(url, tokenizer=folder)
        for wanted in (1000, 1025, model.window - 14):
            usage = model.chat.invoke("Hello.", max_tokens=wanted).usage_metadata
            assert usage["input_tokens"] == 14
            assert usage["output_tokens"] >= wanted


class TestReading:
    """The whole agent, over the wire."""

    def test_through_chat_tgi(self, folder, tmp_path):
        double = TgiDouble(reader)
        with serve(double) as url:
            model = connect(url, tokenizer=folder)
            self.check(model, tmp_path)
            assert all(len(prompt) < 40_000 for prompt in double.prompts)
        # Exact: the server counted the prompts too, and found that they fit.
        assert double.refused == 0

    def test_through_chat_hugging_face(self, folder, tmp_path):
        from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint

        with serve(TgiDouble(reader)) as url:
            llm = HuggingFaceEndpoint(endpoint_url=url, typical_p=None, timeout=60)
            chat = ChatHuggingFace(llm=llm, model_id="served")
            self.check(connect(chat, window=7168, tokenizer=folder), tmp_path)

    def test_through_chat_openai(self, folder, tmp_path):
        from langchain_openai import ChatOpenAI

        with serve(TgiDouble(reader)) as url:
            chat = ChatOpenAI(model="tgi", base_url=f"{url}/v1", api_key="none", max_retries=0)
            self.check(connect(chat, window=7168, tokenizer=folder), tmp_path)

    def check(self, model, tmp_path):
        agent = create_memory_agent(
            model,
            settings=ReadingSettings(strategy="memory", chunk_tokens=900),
            document_dir=tmp_path,
            retry_policy=RetryPolicy(max_attempts=1),
        )
        output = agent.invoke(GIVEN)
        assert output["usage"]["steps"] > 2
        assert output["usage"]["unread"] == 0
        assert re.search("widow Hale", output["answer"])
        assert [citation["cited_text"] for citation in output["citations"]] == [FACT]
