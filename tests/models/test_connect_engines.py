"""Discovery of vLLM, SGLang, llama.cpp and Ollama, by what each of them answers."""

from __future__ import annotations

import json
import sys

import pytest
from langchain_core.load import dumpd

from qwenlong_graph import connect
from qwenlong_graph.errors import (
    ConnectionSetupError,
    MissingExtraError,
    ModelUnavailableError,
    RunChangedError,
    SettingsError,
    WindowTooSmallError,
)
from qwenlong_graph.models.calls import ask
from qwenlong_graph.models.tokenizer import PROBE_TEXT
from qwenlong_graph.testing.tgi import small_tokenizer
from tests.models.stub_server import Answer, completion, models, stub_server
from tests.models.test_connect import count_words, llama_cpp, openai_compatible

pytestmark = pytest.mark.contract

HELLO = [{"role": "user", "content": "Hello."}]
NO_TEMPLATE = Answer(
    {"error": {"message": "default chat template is no longer allowed, so you must provide a chat "
               "template if the tokenizer does not define one."}},
    status=400,
)  # fmt: skip


def count(text):
    return len(small_tokenizer().encode(text))


def count_really(body):
    text = body["messages"][0]["content"] if "messages" in body else body["prompt"]
    return Answer({"count": count(text), "tokens": []})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    small_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory):
    """A tokenizer that agrees with the first on plain words, and not on the probe."""
    folder = tmp_path_factory.mktemp("other")
    other = small_tokenizer()
    other.add_tokens(["1,234.50"])
    other.save_pretrained(folder)
    return folder


class TestVllm:
    METRICS = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="1024",sliding="None"} 1.0\n'

    def answers(self, **more):
        return openai_compatible(
            **{
                "entry": {"owned_by": "vllm"},
                "/version": Answer({"version": "0.15.1"}),
                "/metrics": Answer(f"# HELP\n{self.METRICS}", content_type="text/plain"),
                **more,
            }
        )

    def test_it_tells_version_and_how_many_windows_its_memory_holds(self):
        with stub_server(self.answers()) as (url, _):
            model = connect(url)
        assert (model.engine, model.version, model.window) == ("vllm", "0.15.1", 4096)
        assert model.concurrency == 16 * 1024 // 4096

    def test_without_metrics_its_capacity_is_not_guessed_high(self):
        with stub_server(self.answers(**{"/metrics": Answer("", status=404)})) as (url, _):
            assert connect(url).concurrency == 4

    def test_what_only_refines_may_fail(self):
        broken = Answer({"error": "no"}, status=500)

        def tokenize(body):
            return broken if "messages" in body else count_words(body)

        answers = {"/metrics": broken, "/version": broken, "/tokenize": tokenize}
        with stub_server(self.answers(**answers)) as (url, _):
            model = connect(url)
        assert (model.engine, model.version, model.concurrency) == ("vllm", "", 4)
        assert model.template_tokens == 0

    def test_a_local_tokenizer_counts_where_it_agrees(self, folder, other_folder):
        with stub_server(self.answers(**{"/tokenize": count_really})) as (url, requests):
            model = connect(url, tokenizer=folder)
            asked = len(requests)
            assert model.count_tokens("the of") == 2
            assert len(requests) == asked
            with pytest.raises(SettingsError, match="not that of the model served there"):
                connect(url, tokenizer=other_folder)

    def test_a_base_model_is_refused(self):
        def tokenize(body):
            return NO_TEMPLATE if "messages" in body else count_words(body)

        with (
            stub_server(self.answers(**{"/tokenize": tokenize})) as (url, _),
            pytest.raises(SettingsError, match=r"big .*no chat template: a base model"),
        ):
            connect(url)

    def test_a_window_below_the_minimum_is_refused_with_the_flag(self):
        with (
            stub_server(self.answers(entry={"owned_by": "vllm", "max_model_len": 2000})) as (
                url,
                _,
            ),
            pytest.raises(WindowTooSmallError, match=r"2,000 .*--max-model-len"),
        ):
            connect(url)

    def test_other_weights_under_the_same_name_are_noticed(self):
        answers = self.answers()
        with stub_server(answers) as (url, _):
            model = connect(url)
            model.check_unchanged()
            answers["/v1/models"] = models({"id": "big", "root": "org/other", "owned_by": "vllm"})
            with pytest.raises(RunChangedError, match=r"org/big.*org/other"):
                model.check_unchanged()


class TestSglang:
    @pytest.mark.parametrize("path", ["/get_server_info", "/server_info"])
    def test_no_request_is_longer_than_its_cache(self, path):
        info = Answer(
            {"version": "0.5.9", "max_total_num_tokens": 9000, "max_running_requests": 48}
        )
        answers = openai_compatible(window=32_768, entry={"owned_by": "sglang"}, **{path: info})
        with stub_server(answers) as (url, _):
            model = connect(url)
        assert (model.engine, model.version) == ("sglang", "0.5.9")
        assert (model.window, model.concurrency) == (9000, 1)

    def test_its_own_limit_of_requests_counts_too(self):
        info = Answer({"max_total_num_tokens": 90_000, "max_running_requests": 3})
        answers = openai_compatible(entry={"owned_by": "sglang"}, **{"/get_server_info": info})
        with stub_server(answers) as (url, _):
            assert connect(url).concurrency == 3


class TestWithoutTokenize:
    """Servers that count only what a chat costs."""

    def answers(self, **more):
        def chat(body):
            text = body["messages"][0]["content"]
            answer = (
                completion()
                .body.decode()
                .replace('"prompt_tokens": 7', f'"prompt_tokens": {count(text) + 6}')
            )
            return Answer(answer)

        return {
            "/v1/models": models({"id": "m", "max_model_len": 4096}),
            "/v1/chat/completions": chat,
            **more,
        }

    def test_a_local_tokenizer_is_compared_with_the_reported_usage(self, folder, other_folder):
        with stub_server(self.answers()) as (url, _):
            assert connect(url, tokenizer=folder).notes == ()
            with pytest.raises(SettingsError, match="not that of the model served there"):
                connect(url, tokenizer=other_folder)

    def test_without_usage_the_doubt_is_noted(self, folder):
        silent = Answer({"choices": [], "usage": None})
        with stub_server(self.answers(**{"/v1/chat/completions": silent})) as (url, _):
            assert "could not be checked" in connect(url, tokenizer=folder).notes[0]

    def test_a_base_model_is_refused(self, folder):
        with (
            stub_server(self.answers(**{"/v1/chat/completions": NO_TEMPLATE})) as (url, _),
            pytest.raises(SettingsError, match="no chat template"),
        ):
            connect(url, tokenizer=folder)


class TestLlamaCpp:
    def test_the_template_is_counted_and_the_model_file_watched(self):
        answers = llama_cpp(**{"/apply-template": Answer({"prompt": "<|im_start|>x<|im_end|>"})})
        properties = {"default_generation_settings": {"n_ctx": 2048}, "build_info": "b9000"}
        answers["/props"] = Answer({**properties, "model_path": "/models/a.gguf"})
        with stub_server(answers) as (url, _):
            model = connect(url)
            assert model.version == "b9000"
            # The stub counts characters; one more is allowed for a token at the beginning.
            assert model.template_tokens == len("<|im_start|>x<|im_end|>") + 1 - 1
            model.check_unchanged()
            answers["/props"] = Answer({**properties, "model_path": "/models/b.gguf"})
            with pytest.raises(RunChangedError, match=r"a\.gguf.*b\.gguf"):
                model.check_unchanged()

    def test_a_window_below_the_minimum_is_refused_with_the_flag(self):
        answers = llama_cpp()
        answers["/props"] = Answer({"default_generation_settings": {"n_ctx": 1024}})
        with (
            stub_server(answers) as (url, _),
            pytest.raises(WindowTooSmallError, match=r"1,024 .*-c \(it is shared"),
        ):
            connect(url)


SHOWN = {
    "template": "{{ .System }}{{ .Prompt }}",
    "modelfile": "FROM x",
    "capabilities": ["completion", "thinking"],
    "model_info": {"qwen3.context_length": 40_960},
    "parameters": "",
}


class TestOllama:
    def answers(self, *, loaded=8192, shown=(), **more):
        running = {"models": []}

        def generate(body):
            if "prompt" not in body:
                running["models"] = [{"name": body["model"], "context_length": loaded}]
                return Answer({"done": True, "done_reason": "load"})
            return Answer({"done": True, "prompt_eval_count": count(body["prompt"])})

        def chat(body):
            thoughts = {"thinking": "Hm."} if body.get("think") else {}
            last = {"done": True, "done_reason": "stop", "prompt_eval_count": 14, "eval_count": 5}
            line = {
                "model": body["model"],
                "created_at": "2026-01-01T00:00:00Z",
                "message": {"role": "assistant", "content": "Fine.", **thoughts},
                **last,
            }
            return Answer(line, content_type="application/x-ndjson")

        return {
            "/api/version": Answer({"version": "0.40.1"}),
            "/api/tags": Answer({"models": [{"name": "qwen3:8b", "digest": "abc"}]}),
            "/api/show": Answer({**SHOWN, **dict(shown)}),
            "/api/ps": lambda body: Answer(running),
            "/api/generate": generate,
            "/api/chat": chat,
            **more,
        }

    def test_the_window_in_use_is_found_by_loading_and_sent_with_each_request(self, folder):
        with stub_server(self.answers()) as (url, requests):
            model = connect(url, tokenizer=folder)
            assert (model.engine, model.version) == ("ollama", "0.40.1")
            assert (model.window, model.concurrency) == (8192, 1)
            assert model.model_name == "qwen3:8b"
            reply = ask(model, HELLO, max_tokens=9, temperature=0.7, seed=3)
        assert reply.text == "Fine."
        assert reply.input_tokens == 14
        path, _, body = requests[-1]
        assert path == "/api/chat"
        assert body["options"]["num_ctx"] == 8192
        assert (body["options"]["num_predict"], body["options"]["seed"]) == (9, 3)
        # Else the thoughts of a thinking model would stand in the answer.
        assert body["think"] is True

    def test_a_window_asked_for_is_used_up_to_the_trained_one(self, folder):
        with stub_server(self.answers()) as (url, requests):
            model = connect(url, tokenizer=folder, window=20_000)
            ask(model, HELLO, max_tokens=9)
            assert model.window == 20_000
            assert requests[-1][2]["options"]["num_ctx"] == 20_000
            with pytest.raises(SettingsError, match=r"50,000 .*40,960"):
                connect(url, tokenizer=folder, window=50_000)

    def test_a_modelfiles_window_needs_no_loading(self, folder):
        answers = self.answers(shown={"parameters": "temperature 0.7\nnum_ctx    32768\n"})
        with stub_server(answers) as (url, requests):
            assert connect(url, tokenizer=folder).window == 32_768
        loads = [body for path, _, body in requests if path == "/api/generate"]
        assert all("prompt" in body for body in loads)

    def test_counting_needs_a_tokenizer_that_agrees(self, folder, other_folder):
        with stub_server(self.answers()) as (url, _):
            with pytest.raises(SettingsError, match=r"does not tell tokenizer\. Pass tokenizer"):
                connect(url)
            with pytest.raises(SettingsError, match="not that of the model served there"):
                connect(url, tokenizer=other_folder)

    def test_a_model_without_template_or_without_text_is_refused(self, folder):
        for shown, found in (
            ({"template": "{{ .Prompt }}"}, "no chat template"),
            ({"template_source": "none"}, "no chat template"),
            ({"capabilities": ["embedding"]}, "does not generate text"),
        ):
            with (
                stub_server(self.answers(shown=shown)) as (url, _),
                pytest.raises(SettingsError, match=found),
            ):
                connect(url, tokenizer=folder)

    def test_a_model_that_ollama_renders_itself_needs_no_template(self, folder):
        shown = {"template": "{{ .Prompt }}", "modelfile": "FROM x\nRENDERER qwen3-coder\n"}
        with stub_server(self.answers(shown=shown)) as (url, _):
            assert connect(url, tokenizer=folder).window == 8192

    def test_a_name_without_a_tag_means_latest(self, folder):
        with (
            stub_server(self.answers()) as (url, _),
            pytest.raises(ConnectionSetupError, match=r"'qwen3:latest'.*qwen3:8b"),
        ):
            connect(url, tokenizer=folder, model="qwen3")

    def test_a_small_window_is_refused_with_both_ways_to_a_larger_one(self, folder):
        with (
            stub_server(self.answers(loaded=1024)) as (url, _),
            pytest.raises(WindowTooSmallError, match="num_ctx, or pass window"),
        ):
            connect(url, tokenizer=folder)

    def test_an_updated_model_is_noticed(self, folder):
        answers = self.answers()
        with stub_server(answers) as (url, _):
            model = connect(url, tokenizer=folder)
            model.check_unchanged()
            answers["/api/tags"] = Answer({"models": [{"name": "qwen3:8b", "digest": "def"}]})
            with pytest.raises(RunChangedError, match=r"abc.*def"):
                model.check_unchanged()

    def test_the_key_is_sent_and_shown_nowhere_and_ollamas_own_is_not_sent(
        self, folder, monkeypatch
    ):
        monkeypatch.setenv("OLLAMA_API_KEY", "private")
        for key in ("sesame", None):
            with stub_server(self.answers()) as (url, requests):
                model = connect(url, tokenizer=folder, api_key=key)
                ask(model, HELLO, max_tokens=5)
            expected = f"Bearer {key}" if key else None
            assert {headers.get("authorization") for _, headers, _ in requests} == {expected}
            assert "sesame" not in repr(model) + repr(model.chat) + str(dumpd(model.chat))

    def test_its_extra_is_named(self, folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "langchain_ollama", None)
        with (
            stub_server(self.answers()) as (url, _),
            pytest.raises(MissingExtraError, match=r"qwenlong-graph\[ollama\]"),
        ):
            connect(url, tokenizer=folder)


def test_the_probe_is_told_apart_by_the_tokenizers_used_here(folder):
    """Else none of the tests above would show anything."""
    assert count(PROBE_TEXT) > 100


def serving(*, revision="@main"):
    """As `transformers serve` answers: in streams only, without usage, always with "stop"."""

    def answer(body):
        if body["model"] == "/missing":
            return Answer("Internal Server Error", status=500, content_type="text/plain")
        served = f"{body['model']}{revision}"
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": served}
        words = ["one", " two", " three", " four"][: body.get("max_tokens", 1_024)]
        choices = [{"index": 0, "delta": {"content": word}} for word in words]
        choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
        events = (json.dumps({**chunk, "choices": [choice]}) for choice in choices)
        return Answer(
            "".join(f"data: {event}\n\n" for event in events), content_type="text/event-stream"
        )

    listed = ["Menlo/Jan-nano", "Qwen/Qwen2.5-7B-Instruct"]
    return stub_server(
        {"/v1/models": models(*({"id": name} for name in listed)), "/v1/chat/completions": answer}
    )


class TestTransformersServe:
    def test_it_is_known_by_its_replies_and_needs_a_window(self, folder):
        with serving() as (url, _):
            model = connect(url, model=str(folder), window=4_096)
            model.check_unchanged()
            with pytest.raises(SettingsError, match="does not tell window"):
                connect(url, model=str(folder))
        assert (model.engine, model.window, model.concurrency) == ("transformers serve", 4_096, 1)
        assert model.count_tokens("a b") == count("a b")
        assert "could not be checked" in model.notes[0]
        with pytest.raises(ModelUnavailableError):
            model.check_unchanged()

    def test_a_cut_reply_is_known_though_the_server_says_stop(self, folder):
        with serving() as (url, requests):
            model = connect(url, model=str(folder), window=4_096)
            limit = count("one two")
            replies = [ask(model, HELLO, max_tokens=tokens, stop=["x"]) for tokens in (2, 200)]
            sent = requests[-1][2]
        assert limit >= 2
        assert [reply.is_truncated for reply in replies] == [True, False]
        assert replies[1].text == "one two three four"
        assert sent["max_tokens"] == 200
        assert "stop" not in sent

    @pytest.mark.parametrize("name", ["/missing", "Qwen/Qwen3-4B"])
    def test_a_server_that_gives_another_model_or_none_is_refused(self, name):
        with (
            serving(revision="") as (url, _),
            pytest.raises(ConnectionSetupError, match="not serve"),
        ):
            connect(url, model=name, window=4_096)
