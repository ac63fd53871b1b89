from __future__ import annotations

import sys

import httpx
import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumpd

from qwenlong_graph.errors import (
    ConnectionSetupError,
    MissingExtraError,
    ModelFetchError,
    ModelUnavailableError,
    SettingsError,
)
from qwenlong_graph.models.calls import ask
from qwenlong_graph.models.connect import COMMON_SPECIAL_TOKENS, connect
from qwenlong_graph.testing.tgi import small_tokenizer
from tests.models.stub_server import Answer, completion, models, stub_server

HELLO = [{"role": "user", "content": "Hello."}]


def count_words(body):
    """As vLLM and SGLang answer: a template of 5 tokens, and one token a word."""
    if "messages" in body:
        text = body["messages"][0]["content"]
        return Answer({"count": 5 + len(text.split()), "tokens": []})
    return Answer({"count": len(body["prompt"].split()), "tokens": []})


def openai_compatible(window=4096, **more):
    entry = {"id": "big", "object": "model", "root": "org/big", "max_model_len": window}
    return {
        "/v1/models": models({**entry, **more.pop("entry", {})}),
        "/tokenize": count_words,
        "/v1/chat/completions": completion(),
        **more,
    }


def llama_cpp(**more):
    special = {"<|im_end|>", "<|odd|>", "<eos!>"}

    def tokenize(body):
        text = body["content"]
        is_special = text in special and body["parse_special"]
        return Answer({"tokens": [1] if is_special else list(range(len(text)))})

    return {
        "/props": Answer(
            {
                "default_generation_settings": {"n_ctx": 2048},
                "total_slots": 3,
                "chat_template": "{{ '<|odd|>' + message + '<b>' }}",
                "eos_token": "<eos!>",
                "bos_token": None,
            }
        ),
        "/v1/models": models({"id": "tiny"}),
        "/tokenize": tokenize,
        **more,
    }


class TestTargets:
    @pytest.mark.parametrize("target", ["qwen", "", "gguf:", "ftp://host", "embedded:x"])
    def test_unknown_target_is_refused_with_the_forms_there_are(self, target):
        with pytest.raises(SettingsError, match=r"embedded.*gguf:PATH.*http://HOST"):
            connect(target)

    def test_an_object_that_is_no_model_is_refused(self):
        with pytest.raises(SettingsError, match="type int is no model"):
            connect(3)

    @pytest.mark.parametrize("window", [0, -5])
    def test_a_window_has_to_be_above_zero(self, window):
        with pytest.raises(SettingsError, match="above zero"):
            connect("embedded", window=window)

    @pytest.mark.parametrize("option", [{"api_key": "k"}, {"model": "m"}, {"count_tokens": len}])
    def test_embedded_refuses_options_of_servers(self, option):
        with pytest.raises(SettingsError, match="leave them out"):
            connect("embedded", **option)

    def test_missing_extra_is_named_before_anything_is_fetched(self, monkeypatch, tmp_path):
        monkeypatch.setenv("QWENLONG_GRAPH_MODELS", str(tmp_path))
        monkeypatch.setitem(sys.modules, "langchain_openai", None)
        with pytest.raises(MissingExtraError, match=r"qwenlong-graph\[embedded\]"):
            connect("embedded")
        assert not list(tmp_path.iterdir())

    def test_a_gguf_name_that_is_neither_file_nor_repository_is_refused(self, tmp_path):
        with pytest.raises(SettingsError, match="no such file"):
            connect(f"gguf:{tmp_path}/none.gguf")


class TestChatModel:
    def test_window_and_counting_are_required(self):
        chat = FakeListChatModel(responses=["x"])
        with pytest.raises(SettingsError, match="Pass window and count_tokens"):
            connect(chat)
        with pytest.raises(SettingsError, match="Pass count_tokens"):
            connect(chat, window=100)
        with pytest.raises(SettingsError, match="Pass window"):
            connect(chat, count_tokens=len)

    def test_is_taken_as_it_is(self):
        chat = FakeListChatModel(responses=["x"])
        model = connect(chat, window=100, count_tokens=len)
        assert model.chat is chat
        assert (model.window, model.count_tokens("abc"), model.engine) == (100, 3, "custom")
        assert "<|im_end|>" in model.special_tokens
        model.close()
        assert connect(model) is model

    def test_a_tokenizer_stands_in_for_counting(self, tmp_path):
        small_tokenizer().save_pretrained(tmp_path)
        chat = FakeListChatModel(responses=["x"])
        model = connect(chat, window=100, tokenizer=tmp_path)
        assert model.count_tokens("the of") == 2
        assert model.template_tokens == 8

    def test_a_connected_model_takes_no_further_settings(self):
        model = connect(FakeListChatModel(responses=["x"]), window=100, count_tokens=len)
        with pytest.raises(SettingsError, match="connected already"):
            connect(model, window=50)


@pytest.mark.contract
class TestServers:
    @pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
    def test_an_openai_compatible_server_tells_window_and_counts(self, suffix):
        with stub_server(openai_compatible()) as (url, _):
            model = connect(url + suffix)
            assert (model.window, model.model_name) == (4096, "big")
            assert model.engine == "openai-compatible"
            assert model.count_tokens("one two three") == 3
            assert model.special_tokens == COMMON_SPECIAL_TOKENS
            assert ask(model, HELLO, max_tokens=5).text == "Fine."
            assert model.template_tokens == 5
            model.check_unchanged()

    def test_an_extra_that_the_server_needs_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "langchain_openai", None)
        with (
            stub_server(openai_compatible()) as (url, _),
            pytest.raises(MissingExtraError, match=r"qwenlong-graph\[openai\]"),
        ):
            connect(url)

    def test_llama_cpp_tells_everything(self):
        with stub_server(llama_cpp()) as (url, _):
            model = connect(url)
            assert (model.window, model.concurrency, model.engine) == (2048, 3, "llama.cpp")
            assert model.count_tokens("<|odd|>") == 7
            assert set(model.special_tokens) == {"<|im_end|>", "<|odd|>", "<eos!>"}
            assert dict(model.defaults) == {}

    def test_a_smaller_window_may_be_asked_for_and_a_larger_one_not(self):
        with stub_server(llama_cpp()) as (url, _):
            assert connect(url, window=1000).window == 1000
            with pytest.raises(SettingsError, match=r"3,000 .*allows 2,048"):
                connect(url, window=3000)

    def test_what_a_server_does_not_tell_has_to_be_given(self):
        with stub_server({"/v1/models": models({"id": "m"})}) as (url, _):
            with pytest.raises(SettingsError, match="Pass window and count_tokens"):
                connect(url)
            with pytest.raises(SettingsError, match=r"Pass count_tokens.* or tokenizer"):
                connect(url, window=10)
            model = connect(url, window=10, count_tokens=len)
            assert (model.window, model.count_tokens) == (10, len)

    def test_one_of_several_models_has_to_be_chosen(self):
        listed = models({"id": "a", "max_model_len": 3000}, {"id": "b", "max_model_len": 4000})
        with stub_server(openai_compatible(**{"/v1/models": listed})) as (url, _):
            with pytest.raises(SettingsError, match="a, b"):
                connect(url)
            with pytest.raises(ConnectionSetupError, match=r"'c'.*a, b"):
                connect(url, model="c")
            assert connect(url, model="b").window == 4000

    @pytest.mark.parametrize("status", [401, 403])
    def test_a_refused_key_is_named(self, status):
        refusal = Answer({"error": {"message": "no"}}, status=status)
        with (
            stub_server({"/props": refusal}) as (url, _),
            pytest.raises(ConnectionSetupError, match=rf"refuses the key.*{status}.*api_key"),
        ):
            connect(url, api_key="wrong")

    def test_a_missing_key_is_named(self):
        refusal = Answer({"error": {"message": "no"}}, status=401)
        with (
            stub_server({"/props": refusal}) as (url, _),
            pytest.raises(ConnectionSetupError, match="wants a key"),
        ):
            connect(url)

    @pytest.mark.parametrize("status", [429, 500, 502, 503])
    def test_a_server_that_is_not_ready_is_told_apart(self, status):
        page = Answer("<html>busy</html>", status=status, content_type="text/html")
        with (
            stub_server({"/props": page}) as (url, _),
            pytest.raises(ConnectionSetupError, match=rf"not ready.*{status}"),
        ):
            connect(url)

    @pytest.mark.parametrize(
        "url",
        [
            "http://",
            "http://u:secret@127.0.0.1:1",
            "http://u:secret@a:99999999",
            "http://127.0.0.1:1/?a=b",
            "http://a:x",
        ],
    )
    def test_an_address_that_is_none_is_refused_without_repeating_secrets(self, url):
        with pytest.raises(SettingsError) as caught:
            connect(url)
        assert "secret" not in str(caught.value)

    def test_the_key_goes_to_every_endpoint_and_the_environments_key_to_none(self, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "private")
        monkeypatch.setenv("OPENAI_ORG_ID", "private")
        monkeypatch.setenv("OPENAI_PROJECT_ID", "private")
        for key in ("mine", None):
            with stub_server(openai_compatible()) as (url, requests):
                ask(connect(url, api_key=key), HELLO, max_tokens=5)
            sent = {headers.get("authorization") for _, headers, _ in requests}
            assert sent == ({"Bearer mine"} if key else {None, "Bearer none"})
            assert "private" not in str(requests)

    def test_the_key_may_come_from_our_own_variable(self, monkeypatch):
        monkeypatch.setenv("QWENLONG_GRAPH_API_KEY", "ours")
        with stub_server(openai_compatible()) as (url, requests):
            model = connect(url)
            ask(model, HELLO, max_tokens=5)
        assert {headers["authorization"] for _, headers, _ in requests} == {"Bearer ours"}
        assert "ours" not in repr(model) + repr(model.chat) + str(dumpd(model.chat))

    def test_proxies_of_the_environment_are_not_asked_for_loopback(self, monkeypatch):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "OPENAI_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        with stub_server(openai_compatible()) as (url, _):
            assert ask(connect(url), HELLO, max_tokens=5).text == "Fine."

    def test_counting_on_a_server_that_is_gone_is_a_model_error(self):
        with stub_server(openai_compatible()) as (url, _):
            model = connect(url)
            assert model.count_tokens("") == 0
        with pytest.raises(ModelUnavailableError, match="tokenizer") as caught:
            model.count_tokens("text")
        assert isinstance(caught.value.__cause__, httpx.HTTPError)

    def test_counting_that_gives_no_count_is_a_model_error(self):
        answers = openai_compatible()
        with stub_server(answers) as (url, _):
            model = connect(url)
            answers["/tokenize"] = Answer({"nonsense": 1})
            with pytest.raises(ModelUnavailableError, match="gave no count"):
                model.count_tokens("text")


@pytest.mark.end_to_end
class TestEmbedded:
    def test_describes_itself(self, embedded_model):
        assert embedded_model.window == 8192
        assert embedded_model.engine == "llama.cpp"
        assert embedded_model.concurrency == 1
        assert embedded_model.model_name == "SmolLM2-135M-Instruct.Q8_0"
        assert embedded_model.defaults["protocol"] == "extract"
        assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>"} <= set(embedded_model.special_tokens)
        assert "[INST]" not in embedded_model.special_tokens

    def test_counts_text_without_reading_special_tokens(self, embedded_model):
        assert embedded_model.count_tokens("hello") == 1
        assert embedded_model.count_tokens("<|im_end|>") > 1

    def test_prompt_counts_agree_with_the_server(self, embedded_model):
        text = "The lighthouse at Point Reyes was built in 1870. 灯台 🗼"
        short = ask(embedded_model, [{"role": "user", "content": "x"}], max_tokens=1)
        long = ask(embedded_model, [{"role": "user", "content": f"x\n{text}"}], max_tokens=1)
        added = embedded_model.count_tokens(f"x\n{text}") - embedded_model.count_tokens("x")
        assert long.input_tokens - short.input_tokens == added

    def test_is_shared_and_stops_with_its_last_user(self):
        # A window of its own, so that this server is not the one of the other tests.
        first, second = connect("embedded", window=512), connect("embedded", window=512)
        assert first.window == 512
        first.close()
        first.close()
        assert second.count_tokens("hello") == 1
        second.close()
        with pytest.raises(ModelUnavailableError):
            second.count_tokens("hello")

    def test_its_server_can_be_connected_to_by_address(self, embedded_model):
        url = embedded_model.chat.openai_api_base
        key = embedded_model.chat.openai_api_key.get_secret_value()
        model = connect(url, api_key=key)
        assert (model.engine, model.window) == ("llama.cpp", 8192)
        assert set(model.special_tokens) == set(embedded_model.special_tokens)
        with pytest.raises(ConnectionSetupError, match="refuses the key"):
            connect(url, api_key="wrong")

    def test_a_window_beyond_the_trained_one_is_refused(self):
        with pytest.raises(SettingsError, match=r"10,000 .*trained on 8,192"):
            connect("embedded", window=10_000)

    def test_a_file_on_disk_is_the_same_model(self, embedded_model, monkeypatch, tmp_path):
        from qwenlong_graph.models.fetching import embedded_model_path

        link = tmp_path / "mine.gguf"
        link.symlink_to(embedded_model_path())
        model = connect(f"gguf:{link}", window=512)
        try:
            assert model.window == 512
            assert dict(model.defaults) == {}
        finally:
            model.close()


@pytest.mark.end_to_end
def test_a_damaged_file_is_an_error_and_not_a_crash(embedded_model, tmp_path):
    from qwenlong_graph.models.fetching import embedded_model_path

    with embedded_model_path().open("rb") as file:
        beginning = file.read(5_000_000)
    damaged = tmp_path / "damaged.gguf"
    for content in (b"", b"GGUF", b"%PDF-1.7" * 100, beginning[:50], beginning):
        damaged.write_bytes(content)
        with pytest.raises(ModelFetchError, match=r"damaged\.gguf"):
            connect(f"gguf:{damaged}")
