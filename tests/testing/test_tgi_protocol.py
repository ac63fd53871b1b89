"""The double speaks TGI's protocol; the first eleven tests are what such a double must do."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from importlib.resources import files

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from qwenlong_graph.testing.scripted import ScriptExhaustedError
from qwenlong_graph.testing.tgi import TgiDouble, serve, small_tokenizer
from qwenlong_graph.testing.tgi.contract import ContractError, check
from qwenlong_graph.testing.tgi.tokens import LocalVocabulary
from tests.testing.tgi_client import USER, chat, events, generate, generate_stream, post

pytestmark = pytest.mark.contract

VOCABULARY = LocalVocabulary(small_tokenizer())
TOOL = {
    "type": "function",
    "function": {"name": "add", "arguments": {"type": "object", "properties": {}}},
}


def count(text):
    return VOCABULARY.count(text, add_special_tokens=True)


def test_1_every_body_is_what_the_openapi_document_says():
    called = '{"function": {"_name": "add", "a": 1}}'
    double = TgiDouble(["One.", "Two.", "Three.", "Four.", called, called])
    with serve(double) as url:
        check(httpx.get(f"{url}/info").json(), "Info")
        check(post(url, "/tokenize", {"inputs": "Zwölf."}).json(), "TokenizeResponse")
        check(post(url, "/chat_tokenize", {"messages": USER}).json(), "ChatTokenizeResponse")
        check(generate(url, decoder_input_details=True).json(), "GenerateResponse")
        for event in events(generate_stream(url)):
            check(event, "StreamResponse")
        check(chat(url).json(), "ChatCompletion")
        asked = {"stream": True, "stream_options": {"include_usage": True}}
        for event in events(chat(url, **asked))[:-1]:
            check(event, "ChatCompletionChunk")
        check(chat(url, tools=[TOOL]).json(), "ChatCompletion")
        for event in events(chat(url, tools=[TOOL], stream=True))[:-1]:
            check(event, "ChatCompletionChunk")
        check(generate(url, top_p=2).json(), "ErrorResponse")
    # A body that the document does not allow is not sent, and fails the test it was meant for.
    with (
        pytest.raises(ContractError, match=r"No Info at \$\.max_stop_sequences"),
        serve(TgiDouble([], max_stop_sequences=-1)) as url,
    ):
        assert httpx.get(f"{url}/info").status_code == 500


def test_1_a_body_of_a_known_shape_is_still_checked_where_its_values_count():
    token = {"id": 1, "text": "a", "logprob": -0.5, "special": False}
    event = {"index": 1, "token": token, "generated_text": None, "details": None}
    details = {"finish_reason": "length", "generated_tokens": 1, "input_length": 1}
    for _ in range(2):
        check(event, "StreamResponse")
        check({**event, "details": details}, "StreamResponse")
    for wrong in (
        {**event, "index": -1},
        {**event, "index": 1.0},
        {**event, "token": {**token, "special": None}},
        {**event, "details": {**details, "finish_reason": "stop"}},
    ):
        with pytest.raises(ContractError):
            check(wrong, "StreamResponse")


def test_2_errors_in_a_stream_come_under_status_200():
    with serve(TgiDouble([])) as url:
        generated = generate_stream(url, top_p=2)
        chatted = chat(url, stream=True, top_p=2)
    message = "Input validation error: `top_p` must be > 0.0 and < 1.0"
    assert generated.status_code == 200
    assert events(generated) == [{"error": message, "error_type": "validation"}]
    assert chatted.status_code == 200
    error = {"error": {"message": message, "http_status_code": 422}}
    assert events(chatted) == [error, "[DONE]"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"inputs": 5}),
        ("/generate", {"parameters": {}}),
        ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 2.0}}),
        ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": -1}}),
        ("/generate_stream", {"inputs": "a", "parameters": {"stop": "end"}}),
        ("/v1/chat/completions", {"messages": USER, "stop": "end"}),
        ("/v1/chat/completions", {"messages": USER, "response_format": {"type": "json_object"}}),
        ("/tokenize", ["a"]),
    ],
)
def test_3_wrong_types_are_422_in_plain_text(path, body):
    with serve(TgiDouble([])) as url:
        wrong = post(url, path, body)
        broken = httpx.post(url + path, content=b"{", headers={"content-type": "application/json"})
    assert (wrong.status_code, broken.status_code) == (422, 400)
    for response in (wrong, broken):
        assert response.headers["content-type"].startswith("text/plain")
    assert wrong.text.startswith("Failed to deserialize the JSON body into the target type: ")


def test_4_events_have_the_form_that_clients_rely_on():
    with serve(TgiDouble(["Hi the.", "Hi the."])) as url:
        generated, chatted = generate_stream(url), chat(url, stream=True)
    assert all(block.startswith("data: {") for block in generated.text.split("\n\n")[:-1])
    assert chatted.text.endswith("data: [DONE]\n\n")
    assert "[DONE]" not in generated.text
    *tokens, last = events(generated)
    assert "".join(event["token"]["text"] for event in tokens) == "Hi the."
    assert [event["index"] for event in [*tokens, last]] == [1, 2, 3, 4, 5]
    assert all(event["generated_text"] is None for event in tokens)
    end = VOCABULARY.end
    told = {"id": end.id, "text": "<|im_end|>", "logprob": -0.25, "special": True}
    assert last["token"] == told
    assert last["generated_text"] == "Hi the."


class TestTheRuleOf1024Tokens:
    """Case 5: output is made in slices of 1,024 tokens, each a request of its own."""

    @pytest.mark.parametrize(
        ("asked", "generated"), [(1, 1), (1000, 1000), (1024, 1024), (1025, 2048), (1500, 2048)]
    )
    def test_5_output_overshoots_to_a_multiple(self, asked, generated):
        double = TgiDouble(lambda prompt: " the" * 4000)
        with serve(double) as url:
            body = generate(url, max_new_tokens=asked).json()
        details = body["details"]
        assert (details["generated_tokens"], details["finish_reason"]) == (generated, "length")
        assert body["generated_text"] == " the" * generated

    def test_5_only_the_first_slice_has_to_fit(self):
        prompt = " the" * 500
        with serve(TgiDouble([" the" * 4000], max_total_tokens=3000)) as url:
            body = generate(url, prompt, max_new_tokens=50_000).json()
            refused = generate(url, " the" * 2500, max_new_tokens=50_000)
            small = generate(url, " the" * 2500, max_new_tokens=501)
        # 500 + 2 x 1,024 fit in 3,000, a third slice does not.
        assert body["details"]["generated_tokens"] == 2048
        assert body["details"]["finish_reason"] == "length"
        assert refused.status_code == small.status_code == 422
        assert refused.json() == {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 3000. "
            "Given: 2500 `inputs` tokens and 1024 `max_new_tokens`",
            "error_type": "validation",
        }
        assert "Given: 2500 `inputs` tokens and 501 `max_new_tokens`" in small.text

    def test_5_output_beyond_the_input_limit_ends_early(self):
        double = TgiDouble([" the" * 4000], max_input_tokens=1200, max_total_tokens=8192)
        with serve(double) as url:
            body = generate(url, " the" * 500, max_new_tokens=4000).json()
            refused = generate(url, " the" * 1201, max_new_tokens=10)
        assert body["details"]["generated_tokens"] == 1024
        assert body["details"]["finish_reason"] == "length"
        assert refused.json()["error"] == (
            "Input validation error: `inputs` must have less than 1200 tokens. Given: 1201"
        )

    def test_5_without_a_limit_output_fills_what_is_left(self):
        with serve(TgiDouble([" the" * 4000], max_total_tokens=3000)) as url:
            body = generate(url, " the" * 500).json()
        assert body["details"]["generated_tokens"] == 2500

    def test_5_a_reply_that_ends_by_itself_is_whole_over_slices(self):
        with serve(TgiDouble([" the" * 1500, " the" * 1023])) as url:
            longer, edge = (generate(url, max_new_tokens=4000).json() for _ in range(2))
        assert longer["details"]["finish_reason"] == "eos_token"
        assert longer["details"]["generated_tokens"] == 1501
        assert longer["generated_text"] == " the" * 1500
        # The length is looked at first: here the end stands on the edge, and comes once more.
        assert edge["generated_text"] == " the" * 1023
        assert edge["details"]["generated_tokens"] == 1025


def test_6_tokens_are_counted_by_the_real_tokenizer_and_template():
    prompt = "<|im_start|>user\nSay something.<|im_end|>\n<|im_start|>assistant\n"
    content = "Say something."
    double = TgiDouble(lambda _: "The end. 🙂")
    with serve(double) as url:
        chatted = chat(url).json()
        streamed = events(generate_stream(url, prompt))
        whole = generate(url, prompt)
        tokenized = post(url, "/tokenize", {"inputs": prompt}).json()
        templated = post(url, "/chat_tokenize", {"messages": USER}).json()
    assert double.prompts == [prompt] * 3
    # The frame of one user message has 8 tokens.
    assert count(prompt) == count(content) + 8
    assert chatted["usage"]["prompt_tokens"] == count(prompt)
    assert chatted["usage"]["completion_tokens"] == count("The end. 🙂") + 1
    assert streamed[-1]["details"]["input_length"] == count(prompt)
    assert streamed[-1]["details"]["generated_tokens"] == len(streamed)
    assert whole.headers["x-prompt-tokens"] == str(count(prompt))
    assert "".join(token["text"] for token in tokenized) == prompt
    assert templated == {"tokenize_response": tokenized, "templated_text": prompt}


def test_7_requests_past_the_limit_are_refused_and_leaving_frees_the_slot():
    double = TgiDouble(lambda _: "At last.", max_concurrent_requests=1, first_token_s=3600)
    body = {"inputs": "Wait."}
    with serve(double) as url, httpx.Client(base_url=url, timeout=20) as client:
        with client.stream("POST", "/generate_stream", json=body) as response:
            assert response.status_code == 200
            refused, streamed = generate(url), events(generate_stream(url))
            chatted = events(chat(url, stream=True))
        # Only the one that takes the freed slot is kept waiting.
        double.wait_idle()
        with pytest.raises(httpx.ReadTimeout):
            client.post("/generate", json=body, timeout=0.2)
        double.wait_idle()
    error = {"error": "Model is overloaded", "error_type": "overloaded"}
    assert (refused.status_code, refused.json()) == (429, error)
    assert streamed == [error]
    assert chatted[0]["error"] == {"message": "Model is overloaded", "http_status_code": 422}
    assert (double.refused, double.cancelled, double.answered) == (3, 2, 3)


def test_8_a_reply_says_why_it_ended():
    with serve(TgiDouble(lambda _: "one stop two")) as url:
        for asked, on_generate, on_chat in (
            ({}, "eos_token", "stop"),
            ({"stop": ["op"]}, "stop_sequence", "stop_sequence"),
            ({"max": 2}, "length", "length"),
        ):
            limit = asked.pop("max", None)
            generated = {**asked, "max_new_tokens": limit}
            chatted = {**asked, "max_tokens": limit}
            assert generate(url, **generated).json()["details"]["finish_reason"] == on_generate
            last = events(generate_stream(url, **generated))[-1]
            assert last["details"]["finish_reason"] == on_generate
            assert chat(url, **chatted).json()["choices"][0]["finish_reason"] == on_chat
            last = events(chat(url, stream=True, **chatted))[-2]
            assert last["choices"][0]["finish_reason"] == on_chat


class TestStopsAndRefusals:
    """Case 9."""

    def test_9_stop_text_stays(self):
        with serve(TgiDouble(lambda _: "one, two, three")) as url:
            assert generate(url, stop=[", t"]).json()["generated_text"] == "one, t"
            said = [
                event["choices"][0]["delta"]["content"]
                for event in events(chat(url, stream=True, stop=[", t"]))[:-1]
            ]
        assert "".join(said) == "one, t"

    def test_9_a_stop_inside_a_token_is_passed_over(self):
        with serve(TgiDouble(["the memory"])) as url:
            assert generate(url, stop=["th"]).json()["generated_text"] == "the memory"

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
            ({"temperature": 0.0}, "`temperature` must be strictly positive"),
            ({"temperature": -1}, "`temperature` must be strictly positive"),
            ({"top_p": 0.0}, "`top_p` must be > 0.0 and < 1.0"),
            ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
            ({"typical_p": 1.0}, "`typical_p` must be > 0.0 and < 1.0"),
            ({"top_k": 0}, "`top_k` must be strictly positive"),
            ({"repetition_penalty": 0.0}, "`repetition_penalty` must be strictly positive"),
            ({"frequency_penalty": 2.5}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
            ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
            ({"best_of": 2}, "`best_of` != 1 is not allowed for this endpoint"),
            ({"truncate": 0}, "`truncate` must be strictly positive and less than 7168. Given: 0"),
            ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
            (
                {"grammar": {"type": "json", "value": {"type": "object"}}},
                "grammar is not valid: Grammar must have a 'properties' field",
            ),
        ],
    )
    def test_9_values_out_of_range_are_refused_in_tgis_words(self, parameters, message):
        with serve(TgiDouble([])) as url:
            refused = generate(url, **parameters)
        assert refused.status_code == 422
        error = {"error": f"Input validation error: {message}", "error_type": "validation"}
        assert refused.json() == error

    def test_9_only_a_chat_may_be_greedy_by_temperature(self):
        with serve(TgiDouble(["Fine."])) as url:
            assert chat(url, temperature=0).status_code == 200

    def test_9_empty_input_is_refused(self):
        with serve(TgiDouble([])) as url:
            assert "`inputs` cannot be empty" in generate(url, "").text


@pytest.mark.parametrize(
    ("opens_thinking", "reply"),
    [
        (False, "<think>\nHm.\n</think>\n\nYes."),
        (True, "Hm.\n</think>\n\nYes."),
        (False, "Yes."),
    ],
)
def test_10_thoughts_come_as_the_script_has_them(opens_thinking, reply):
    double = TgiDouble(lambda _: reply, tokenizer=small_tokenizer(opens_thinking=opens_thinking))
    with serve(double) as url:
        assert generate(url).json()["generated_text"] == reply
        assert chat(url).json()["choices"][0]["message"]["content"] == reply
    assert double.prompts[1].endswith("<think>\n") is opens_thinking


WATCHED = """
import sys
reached = []

def watch(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        reached.append(address[0] if isinstance(address, tuple) else "local")
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        reached.append(arguments[0])

sys.addaudithook(watch)
import httpx
from qwenlong_graph.testing.tgi import TgiDouble, serve
user = {"messages": [{"role": "user", "content": "Hello."}]}
with serve(TgiDouble(["One.", "Two."])) as url:
    for path in ("/info", "/health", "/v1/models", "/metrics"):
        assert httpx.get(url + path).is_success
    for path, body in (
        ("/generate_stream", {"inputs": "a"}),
        ("/v1/chat/completions", user),
        ("/tokenize", {"inputs": "a"}),
        ("/chat_tokenize", user),
    ):
        assert httpx.post(url + path, json=body).is_success
assert reached, "the double itself is reached over loopback"
print(sorted({name for name in reached if name != "127.0.0.1"}))
"""


def test_11_nothing_beyond_loopback_is_reached():
    ended = subprocess.run(
        [sys.executable, "-c", WATCHED], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "[]\n"), ended.stderr


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/v1/chat/completions"])
def test_11_a_script_that_runs_out_fails_the_test_it_serves(path):
    body = {"inputs": "a", "messages": USER}
    serving = serve(TgiDouble(["Only."]))
    url = serving.__enter__()
    assert post(url, path, body).is_success
    # A stream has begun by then, and breaks.
    with contextlib.suppress(httpx.RemoteProtocolError):
        assert post(url, path, body).status_code == 500
    with pytest.raises(ScriptExhaustedError, match="more than the 1 of its script"):
        serving.__exit__(None, None, None)


def test_a_failing_reply_function_fails_the_test_it_serves():
    def fails(prompt):
        raise LookupError("no such reply")

    with pytest.raises(LookupError, match="no such reply"), serve(TgiDouble(fails)) as url:
        assert generate(url).status_code == 500


def test_the_error_of_the_block_itself_comes_first():
    serving = serve(TgiDouble([]))
    generate(serving.__enter__())
    serving.__exit__(ZeroDivisionError, ZeroDivisionError(), None)


class TestOtherAnswers:
    def test_the_server_says_what_it_is(self):
        double = TgiDouble(
            [], model_id="/data/model", max_concurrent_requests=16, max_input_tokens=900
        )
        with serve(double) as url:
            info = httpx.get(f"{url}/info").json()
            models = httpx.get(f"{url}/v1/models").json()
            health = [httpx.get(url + path) for path in ("/", "/health", "/ping")]
            metrics = httpx.get(f"{url}/metrics")
            unknown = httpx.get(f"{url}/props"), httpx.get(f"{url}/generate")
        assert info["model_id"] == "/data/model"
        assert (info["max_concurrent_requests"], info["max_input_tokens"]) == (16, 900)
        assert info["max_total_tokens"] == 8192
        assert info["version"] == "3.3.6-dev0"
        assert [entry["id"] for entry in models["data"]] == ["/data/model"]
        assert [(answer.status_code, answer.content) for answer in health] == [(200, b"")] * 3
        assert "tgi_request_count 0" in metrics.text
        assert [answer.status_code for answer in unknown] == [404, 405]

    def test_the_compatible_address_answers_as_a_list_or_a_stream(self):
        with serve(TgiDouble(["One.", "Two."])) as url:
            (whole,) = post(url, "/", {"inputs": "a"}).json()
            streamed = events(post(url, "/", {"inputs": "a", "stream": True}))
        assert whole == {"generated_text": "One.", "details": None}
        assert streamed[-1]["generated_text"] == "Two."
        assert streamed[-1]["details"] is None

    def test_a_chat_answers_under_the_name_it_was_asked_for(self):
        with serve(TgiDouble(lambda _: "Fine.", model_id="m")) as url:
            names = [chat(url, model=name).json()["model"] for name in ("tgi", "dummy")]
            names.append(chat(url).json()["model"])
        assert names == ["m", "dummy", "m"]

    def test_a_chat_limits_its_reply_by_either_name(self):
        with serve(TgiDouble(lambda _: "the the the")) as url:
            limits: list[dict[str, int | None]] = [
                {"max_tokens": 3},
                {"max_completion_tokens": 3},
                {"max_tokens": None, "max_completion_tokens": 3},
            ]
            spent = [chat(url, **limit).json()["usage"]["completion_tokens"] for limit in limits]
        assert spent == [3, 3, 3]

    def test_a_tool_call_is_told_whole_and_in_a_stream(self):
        called = '{"function": {"_name": "add", "a": 1, "b": "zwei"}}'
        arguments = {"a": 1, "b": "zwei"}
        with serve(TgiDouble([called, called, "Just words."])) as url:
            whole = chat(url, tools=[TOOL]).json()["choices"][0]["message"]
            first, done = events(chat(url, tools=[TOOL], stream=True))
            words = chat(url, tools=[TOOL]).json()["choices"][0]["message"]
        assert whole["tool_calls"][0]["function"] == {"name": "add", "arguments": arguments}
        (streamed,) = first["choices"][0]["delta"]["tool_calls"]
        assert streamed["function"] == {"name": "add", "arguments": '{"a":1,"b":"zwei"}'}
        assert done == "[DONE]"
        assert words["content"] == "Just words."

    def test_a_message_may_have_both_text_and_calls(self):
        call = {"id": "0", "type": "function", "function": {"name": "add", "arguments": "{}"}}
        said = {"role": "assistant", "content": "", "tool_calls": [call]}
        with serve(TgiDouble(["Fine."])) as url:
            assert chat(url, messages=[*USER, said]).is_success

    def test_usage_is_streamed_where_it_is_asked_for(self):
        with serve(TgiDouble(lambda _: "Yes.")) as url:
            without = events(chat(url, stream=True))
            asked = chat(url, stream=True, stream_options={"include_usage": True})
        assert [event["usage"] for event in without[:-1]] == [None] * (len(without) - 1)
        *_, usage, done = events(asked)
        assert (usage["choices"], done) == ([], "[DONE]")
        spent = usage["usage"]
        assert spent["total_tokens"] == spent["prompt_tokens"] + spent["completion_tokens"]

    def test_the_prompt_comes_back_where_the_full_text_is_asked_for(self):
        with serve(TgiDouble(lambda _: " a tale.")) as url:
            whole = generate(url, "Once", return_full_text=True).json()
            streamed = events(generate_stream(url, "Once", return_full_text=True))
        assert whole["generated_text"] == streamed[-1]["generated_text"] == "Once a tale."

    def test_the_seed_is_told_and_details_only_where_asked_for(self):
        with serve(TgiDouble(lambda _: "Yes.")) as url:
            assert generate(url, seed=7).json()["details"]["seed"] == 7
            assert generate(url, details=False).json()["details"] is None
            assert post(url, "/generate", {"inputs": "a"}).json()["details"] is None

    def test_a_tokenizer_without_a_template_refuses_chats_only(self):
        tokenizer = small_tokenizer()
        tokenizer.chat_template = None
        with serve(TgiDouble(["Yes."], tokenizer=tokenizer)) as url:
            refused = chat(url)
            assert generate(url).is_success
        assert (refused.status_code, refused.json()["error_type"]) == (422, "template_error")

    def test_a_body_over_the_limit_and_one_without_a_type_are_refused(self):
        with serve(TgiDouble([], payload_limit=100)) as url:
            assert generate(url, "a" * 200).status_code == 413
            assert httpx.post(f"{url}/generate", content=b"{}").status_code == 415

    def test_the_document_says_whose_it_is(self):
        text = files("qwenlong_graph.testing.tgi").joinpath("openapi.json").read_text("utf-8")
        assert '"title": "Text Generation Inference"' in text
        assert '"name": "Apache 2.0"' in text


class TestRealClients:
    # Its 0.7.0 parses with what pydantic calls old.
    @pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
    def test_text_generation(self):
        text_generation = pytest.importorskip(
            "text_generation", reason="the extra tgi is not installed"
        )
        with serve(TgiDouble(["One the.", "Two the."])) as url:
            client = text_generation.Client(url)
            whole = client.generate("Count.", max_new_tokens=20)
            streamed = list(client.generate_stream("Count.", max_new_tokens=20))
            with pytest.raises(text_generation.errors.ValidationError, match="must have less"):
                client.generate(" the" * 8000, max_new_tokens=20)
        assert whole.generated_text == "One the."
        assert whole.details.finish_reason == "eos_token"
        assert streamed[-1].generated_text == "Two the."

    async def test_chat_openai(self):
        langchain_openai = pytest.importorskip(
            "langchain_openai", reason="the extra openai is not installed"
        )
        double = TgiDouble(lambda _: "One, two.")
        async with serve(double) as url, httpx.AsyncClient() as client:
            model = langchain_openai.ChatOpenAI(
                base_url=f"{url}/v1",
                api_key="none",
                model="tgi",
                stream_usage=True,
                max_retries=0,
                http_async_client=client,
            )
            whole = await model.ainvoke("Count.")
            streamed = [chunk async for chunk in model.astream("Count.")]
        assert whole.text == "".join(chunk.text for chunk in streamed) == "One, two."
        assert whole.usage_metadata["input_tokens"] == count("Count.") + 8
        assert streamed[-1].usage_metadata or streamed[-2].usage_metadata


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_the_tokens_of_a_text_are_the_text(text):
    tokens = VOCABULARY.tokens(text)
    assert "".join(token.text for token in tokens) == text
    places = VOCABULARY.places(text, add_special_tokens=False)
    assert [token.id for token in tokens] == [place.id for place in places]


def test_as_in_tgi_a_request_cannot_leave_out_the_token_at_the_beginning():
    tokenizer = small_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", end)]
    )
    with serve(TgiDouble([], tokenizer=tokenizer)) as url:
        body = {"inputs": "the", "add_special_tokens": False, "parameters": {"truncate": 1}}
        raw = [token["id"] for token in post(url, "/tokenize", body).json()]
        asked = {"messages": USER, "add_special_tokens": True}
        templated = post(url, "/chat_tokenize", asked).json()["tokenize_response"]
    assert raw == [end, tokenizer.convert_tokens_to_ids("the")]
    assert end not in [token["id"] for token in templated]


def test_a_character_of_several_tokens_comes_with_the_last_of_them():
    assert [token.text for token in VOCABULARY.tokens("a🙂b")] == ["a", "", "", "", "🙂", "b"]


def test_the_small_tokenizer_is_as_its_description_says():
    assert [token.text for token in VOCABULARY.tokens("a</think>b")] == ["a", "</think>", "b"]
    thinking = LocalVocabulary(small_tokenizer(opens_thinking=True))
    frame = thinking.prompt([{"role": "user", "content": ""}], None)
    assert thinking.count(frame, add_special_tokens=True) == 10
    # Counts do not add over joins.
    assert count("the") + count("re") > count("there")
    endless = small_tokenizer()
    endless.eos_token = None
    with pytest.raises(ValueError, match="no end-of-text token"):
        LocalVocabulary(endless)
