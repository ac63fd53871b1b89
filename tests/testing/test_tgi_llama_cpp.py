"""A llama.cpp server behind TGI's protocol: a stand-in first, then the real embedded model."""

from __future__ import annotations

import json

import httpx
import pytest

from qwenlong_graph.testing.tgi import LlamaCpp, TgiDouble, serve
from qwenlong_graph.testing.tgi.contract import ContractError
from tests.models.stub_server import Answer, stub_server
from tests.testing.tgi_client import USER, chat, events, generate, generate_stream, post

END = 2


def tokenized(body):
    """A token for each byte, its value plus 10; the end-of-text token is whole."""
    text, end = body["content"], "<|im_end|>"
    tokens = [{"id": 1, "piece": "<s>"}] if body["add_special"] else []
    for index, part in enumerate(text.split(end)):
        if index:
            tokens.append({"id": END, "piece": end})
        for byte in part.encode():
            piece = chr(byte) if byte < 128 else [byte]
            tokens.append({"id": byte + 10, "piece": piece})
    return Answer({"tokens": tokens})


def templated(body):
    if any(message["content"] == "refuse me" for message in body["messages"]):
        return Answer({"error": {"message": "no such role"}}, status=400)
    return Answer({"prompt": "".join(f"[{message['content']}]" for message in body["messages"])})


def chunks(*entries):
    text = "".join(f"data: {json.dumps(entry)}\n\n" for entry in entries)
    return Answer(text, content_type="text/event-stream")


HELLO = chunks(
    {"content": "H", "tokens": [82], "stop": False, "tokens_predicted": 1},
    # The first of the two bytes of "é" was a token of its own, and was not sent.
    {"content": "é", "tokens": [179], "stop": False, "tokens_predicted": 3},
    {"content": "", "tokens": [], "stop": True, "stop_type": "eos", "tokens_predicted": 4},
)


def llama_cpp(completion=HELLO):
    return stub_server(
        {
            "/props": Answer({"eos_token": "<|im_end|>"}),
            "/tokenize": tokenized,
            "/apply-template": templated,
            "/completion": completion,
        }
    )


@pytest.mark.contract
class TestAStandIn:
    def test_its_tokens_are_told_as_tgis(self):
        with llama_cpp() as (upstream, _), serve(TgiDouble(LlamaCpp(upstream))) as url:
            streamed = events(generate_stream(url, "ab"))
            whole = generate(url, "ab")
        texts = [(event["token"]["id"], event["token"]["text"]) for event in streamed]
        assert texts == [(82, "H"), (179, ""), (179, "é"), (END, "<|im_end|>")]
        details = streamed[-1]["details"]
        assert (details["finish_reason"], details["generated_tokens"]) == ("eos_token", 4)
        assert streamed[-1]["generated_text"] == whole.json()["generated_text"] == "Hé"
        # With the one that the model puts in front.
        assert whole.headers["x-prompt-tokens"] == "3"

    def test_prompts_are_templated_and_counted_by_it(self):
        with llama_cpp() as (upstream, _), serve(TgiDouble(LlamaCpp(upstream))) as url:
            usage = chat(url).json()["usage"]
            found = post(url, "/chat_tokenize", {"messages": USER}).json()
            tokens = post(url, "/tokenize", {"inputs": "é<|im_end|>"}).json()
            refused = chat(url, messages=[{"role": "user", "content": "refuse me"}])
        assert found["templated_text"] == "[Say something.]"
        assert usage["prompt_tokens"] == len(found["templated_text"])
        assert [(token["id"], token["text"]) for token in tokens] == [
            (1, ""),
            (205, "é"),
            (179, "é"),
            (END, "<|im_end|>"),
        ]
        assert (refused.status_code, refused.json()["error_type"]) == (422, "template_error")

    def test_it_gets_tgis_parameters_by_its_own_names(self):
        with llama_cpp() as (upstream, requests):
            speaker = LlamaCpp(upstream, api_key="secret")
            with serve(TgiDouble(speaker)) as url:
                generate(url, "ab", max_new_tokens=50)
                generate(
                    url,
                    temperature=0.7,
                    top_p=0.9,
                    top_k=20,
                    repetition_penalty=1.05,
                    seed=2**40 + 7,
                    grammar={"type": "json", "value": {"properties": {}}},
                    max_new_tokens=2000,
                )
                refused = generate(url, grammar={"type": "regex", "value": "a"})
            asked = [body for path, _, body in requests if path == "/completion"]
        assert {headers["authorization"] for _, headers, _ in requests} == {"Bearer secret"}
        greedy, sampled = asked
        assert (greedy["prompt"], greedy["n_predict"], greedy["temperature"]) == ("ab", 50, 0.0)
        assert (greedy["top_k"], greedy["top_p"], greedy["min_p"]) == (0, 1.0, 0.0)
        assert "seed" not in greedy
        assert (sampled["temperature"], sampled["top_p"], sampled["top_k"]) == (0.7, 0.9, 20)
        assert (sampled["repeat_penalty"], sampled["seed"]) == (1.05, 7)
        assert sampled["json_schema"] == {"properties": {}}
        assert sampled["n_predict"] == 1024
        assert (refused.status_code, refused.json()["error_type"]) == (422, "validation")

    def test_longer_output_is_asked_for_in_slices(self):
        def completion(body):
            entries = [
                {"content": "x", "tokens": [130], "stop": False, "tokens_predicted": n + 1}
                for n in range(body["n_predict"])
            ]
            last = {"content": "", "stop": True, "stop_type": "limit"}
            return chunks(*entries, {**last, "tokens_predicted": len(entries)})

        with llama_cpp(completion) as (upstream, requests):
            with serve(TgiDouble(LlamaCpp(upstream))) as url:
                body = generate(url, "ab", max_new_tokens=1500).json()
            asked = [body for path, _, body in requests if path == "/completion"]
        assert body["details"]["generated_tokens"] == 2048
        assert [request["prompt"] for request in asked] == ["ab", "ab" + "x" * 1024]

    def test_a_token_that_tgi_could_not_send_is_not_sent(self):
        wrong = chunks({"content": "H", "tokens": [-5], "stop": False, "tokens_predicted": 1})
        with llama_cpp(wrong) as (upstream, _):
            serving = serve(TgiDouble(LlamaCpp(upstream)))
            url = serving.__enter__()
            with pytest.raises(httpx.RemoteProtocolError):
                generate_stream(url)
            with pytest.raises(ContractError, match=r"\$\.token\.id: -5 is less than"):
                serving.__exit__(None, None, None)

    @pytest.mark.parametrize(
        "failure",
        [
            Answer({"error": {"message": "out of memory"}}, status=500),
            Answer('error: {"message": "out of memory"}\n\n', content_type="text/event-stream"),
        ],
    )
    def test_its_failure_is_a_failed_generation(self, failure):
        with llama_cpp(failure) as (upstream, _), serve(TgiDouble(LlamaCpp(upstream))) as url:
            failed = generate(url)
        assert (failed.status_code, failed.json()["error_type"]) == (424, "generation")
        assert "out of memory" in failed.json()["error"]


@pytest.fixture(scope="module")
def upstream(embedded_model):
    """The server that `embedded_model` already runs."""
    from qwenlong_graph.models.embedded import start_server
    from qwenlong_graph.models.fetching import embedded_model_path

    lease = start_server(embedded_model_path())
    yield lease
    lease.release()


@pytest.mark.alone
@pytest.mark.end_to_end
class TestTheEmbeddedModel:
    def double(self, upstream, **options):
        speaker = LlamaCpp(upstream.url, api_key=upstream.api_key)
        return TgiDouble(speaker, batch_size=1, **options)

    def test_it_replies_the_same_whole_and_streamed(self, upstream):
        double = self.double(upstream)
        with serve(double) as url:
            whole = chat(url, temperature=0, max_tokens=12).json()
            streamed = events(chat(url, temperature=0, max_tokens=12, stream=True))
            listed = events(generate_stream(url, double.prompts[0], max_new_tokens=12))
        text = whole["choices"][0]["message"]["content"]
        assert text.strip()
        deltas = [event["choices"][0]["delta"]["content"] for event in streamed[:-1]]
        assert "".join(deltas) == text == listed[-1]["generated_text"]
        assert listed[-1]["details"]["generated_tokens"] == len(listed)
        assert whole["usage"]["completion_tokens"] == len(listed)

    def test_it_counts_as_the_connected_model_does(self, upstream, embedded_model):
        text = "The crème brûlée cost 3,50 €. 🙂 naïve"
        with serve(self.double(upstream)) as url:
            tokens = post(url, "/tokenize", {"inputs": text}).json()
            prompt = post(url, "/chat_tokenize", {"messages": USER}).json()["templated_text"]
        assert len(tokens) == embedded_model.count_tokens(text)
        assert (tokens[0]["start"], tokens[-1]["stop"]) == (0, len(text))
        assert prompt.endswith("<|im_start|>assistant\n")

    def test_a_json_schema_binds_it(self, upstream):
        schema = {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        }
        with serve(self.double(upstream)) as url:
            body = generate(
                url,
                "The capital of France as JSON: ",
                grammar={"type": "json", "value": schema},
                max_new_tokens=60,
            ).json()
        assert list(json.loads(body["generated_text"])) == ["city"]

    def test_leaving_frees_it_for_the_next(self, upstream):
        double = self.double(upstream, max_concurrent_requests=1)
        # What the model may not end before is a long answer.
        story = {"type": "string", "minLength": 2000}
        schema = {"type": "object", "properties": {"story": story}, "required": ["story"]}
        grammar = {"type": "json", "value": schema}
        body = {
            "inputs": "A story as JSON: ",
            "parameters": {"max_new_tokens": 1000, "grammar": grammar},
        }
        with serve(double) as url, httpx.Client(base_url=url, timeout=60) as client:
            with client.stream("POST", "/generate_stream", json=body) as response:
                lines = response.iter_lines()  # held: a dropped iterator closes the connection
                next(lines)
                assert generate(url).status_code == 429
            double.wait_idle()
            assert generate(url, max_new_tokens=3).is_success
        assert double.cancelled == 1
