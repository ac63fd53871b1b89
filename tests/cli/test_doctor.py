"""A model looked over from the command line: rows for a person, an object for a program, a code."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import socket
import ssl
import subprocess
import threading

import pytest

from qwenlong_graph.testing.scripted import count_words
from qwenlong_graph.testing.tgi import Restart, TgiDouble, serve, small_tokenizer
from tests.models.stub_server import Answer, models, stub_server
from tests.models.test_probing import THOUGHTS, replied

pytestmark = pytest.mark.contract

KEY = "key-of-the-test"
TOPICS = [
    "server", "budget", "reply", "tokenizer", "template", "thinking", "prompt", "output", "step",
    "outlook",
]  # fmt: skip


def llama_cpp(*, reply=replied, window=8_192, slots=2):
    """What a llama.cpp server answers, its counts included."""
    specials = ("<|im_start|>", "<|im_end|>")

    def tokenize(body):
        text = body["content"]
        if text in specials and body["parse_special"]:
            return Answer({"tokens": [1]})
        return Answer({"tokens": list(range(count_words(text)))})

    def chat(body):
        limit = body.get("max_completion_tokens") or body["max_tokens"]
        text = reply(body["messages"][-1]["content"])
        if isinstance(text, Answer):
            return text
        words = text.split(" ")
        counted = sum(count_words(message["content"]) for message in body["messages"])
        return Answer(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": "m",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "length" if len(words) > limit else "stop",
                        "message": {"role": "assistant", "content": " ".join(words[:limit])},
                    }
                ],
                "usage": {
                    "prompt_tokens": counted + 8,
                    "completion_tokens": min(limit, count_words(text)),
                    "total_tokens": counted + 8,
                },
            }
        )

    return {
        "/props": Answer(
            {
                "default_generation_settings": {"n_ctx": window},
                "total_slots": slots,
                "build_info": "b4711-cafe",
            }
        ),
        "/v1/models": models({"id": "stub-model", "object": "model"}),
        "/tokenize": tokenize,
        "/v1/chat/completions": chat,
    }


def told(run, target, *options, code=0, env=None):
    ended = run("doctor", target, "--json", *options, env=env)
    assert (ended.returncode, ended.stderr) == (code, "")
    found = json.loads(ended.stdout)
    assert (found["exit_code"], found["is_ready"]) == (code, code == 0)
    return found


def stops(found):
    return [
        (problem["topic"], problem["found"], problem["remedy"])
        for problem in found["problems"]
        if problem["severity"] == "stop"
    ]


class TestWhatIsWritten:
    def test_for_a_program_one_object(self, run):
        with stub_server(llama_cpp()) as (url, requests):
            found = told(run, url, "--api-key", KEY)
            sent = {headers.get("authorization") for _, headers, _ in requests}
        assert list(found) == ["target", "is_ready", "exit_code", *TOPICS, "problems", "seconds"]
        assert found["target"] == url
        assert found["server"] == {
            "url": url,
            "engine": "llama.cpp",
            "version": "b4711-cafe",
            "model": "stub-model",
            "window": 8192,
            "concurrency": 2,
        }
        assert found["budget"]["window"] == 8192
        assert found["tokenizer"]["here"] == found["tokenizer"]["on_server"]
        assert found["template"]["tokens"] == 8
        assert found["step"]["is_fact_kept"] is True
        assert found["problems"] == []
        assert sent == {f"Bearer {KEY}"}

    def test_for_a_person_rows_problems_and_a_last_word(self, run):
        with stub_server(llama_cpp()) as (url, _):
            ended = run("doctor", url, "--protocol", "extract", "--api-key", KEY)
        assert ended.returncode == 0
        assert "\x1b" not in ended.stdout + ended.stderr
        assert KEY not in ended.stdout + ended.stderr
        lines = ended.stdout.splitlines()
        assert lines[0].startswith("ok    Server     llama.cpp b4711-cafe at http://127.0.0.1:")
        assert "ok    Model      stub-model, window 8,192 tokens" in lines
        titles = [line[6:17].strip() for line in lines if line[:2] in {"ok", "- "}]
        assert titles == [
            "Server", "Model", "Budget", "Reply", "Tokenizer", "Template", "Thinking", "Prompt",
            "Caching", "Output", "Step", "1M tokens",
        ]  # fmt: skip
        assert lines[-1] == "Ready to read."
        assert all(line == line.rstrip() and len(line) <= 80 for line in lines)
        assert ended.stderr.startswith("Connecting to http://127.0.0.1:")
        assert "Reading a long prompt twice ..." in ended.stderr

    def test_on_a_terminal_rows_come_above_a_line_that_moves(self, start):
        with stub_server(llama_cpp()) as (url, _):
            leader, follower = pty.openpty()
            process = start("doctor", url, stdout=follower, env={"TERM": "xterm"})
            os.close(follower)
            shown = b""
            # The end of the program closes the terminal: an error on Linux, an end elsewhere.
            while data := _read(leader):
                shown += data
            os.close(leader)
            process.communicate(timeout=60)
        assert process.returncode == 0
        assert b"Asking for a first reply ..." in shown
        assert b"\x1b[32mok" in shown
        assert b"Ready to read." in shown

    def test_thoughts_and_a_good_tgi(self, run, tmp_path):
        small_tokenizer(opens_thinking=True).save_pretrained(tmp_path / "tokenizer")
        double = TgiDouble(
            lambda prompt: f"{THOUGHTS}</think>\n\n{replied(prompt)}",
            tokenizer=small_tokenizer(opens_thinking=True),
        )
        with serve(double) as url:
            env = {"QWENLONG_GRAPH_TOKENIZER": str(tmp_path / "tokenizer")}
            found = told(run, url, env=env)
        assert found["server"]["engine"] == "tgi"
        assert found["thinking"]["kind"] == "separated"
        assert found["thinking"]["cut"] == "shown"
        assert found["problems"] == []


class TestWhatStops:
    def test_nothing_at_the_address(self, run):
        with stub_server({}) as (url, _):
            pass
        found = told(run, url, code=2)
        ((topic, problem, remedy),) = stops(found)
        assert topic == "server"
        assert url in problem
        assert "start the server" in remedy
        assert all(found[topic] is None for topic in TOPICS)

    def test_a_person_sees_problem_and_remedy(self, run):
        with stub_server({}) as (url, _):
            pass
        ended = run("doctor", url)
        assert ended.returncode == 2
        assert ended.stdout.startswith("STOP  Server     not measured\n\nSTOP  Connecting to http")
        assert "\n      Nothing listens on that port: start the server" in ended.stdout
        assert ended.stdout.endswith(
            "\nA reading would not get through. Mend what is marked STOP.\n"
        )

    def test_a_web_page(self, run):
        page = Answer("<html>hello</html>", content_type="text/html")
        pages = dict.fromkeys(("/info", "/props", "/api/version", "/v1/models"), page)
        with stub_server(pages) as (url, _):
            ((topic, _, remedy),) = stops(told(run, url, code=2))
        assert topic == "server"
        assert remedy

    def test_a_wrong_key_which_is_not_repeated(self, run):
        refusal = Answer({"error": {"message": "no"}}, status=401)
        refusals = dict.fromkeys(("/info", "/props", "/v1/models"), refusal)
        with stub_server(refusals) as (url, _):
            found = told(run, url, code=2, env={"QWENLONG_GRAPH_API_KEY": KEY})
        ((_, problem, remedy),) = stops(found)
        assert "401" in problem
        assert "QWENLONG_GRAPH_API_KEY" in remedy
        assert KEY not in json.dumps(found)

    @pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
    def test_a_certificate_that_nobody_vouches_for(self, run, tmp_path):
        with tls_listener(tmp_path) as url:
            ((_, problem, remedy),) = stops(told(run, url, code=2))
        assert "certificate" in problem
        assert "SSL_CERT_FILE" in remedy

    def test_a_window_below_the_least(self, run):
        with stub_server(llama_cpp(window=1_024)) as (url, _):
            ((_, problem, remedy),) = stops(told(run, url, code=2))
            small = stops(told(run, url, "--window", "1000", code=2))
        assert "1,024" in problem
        assert remedy
        assert small[0][0] == "budget"
        assert "2,048" in small[0][1]

    def test_a_base_model(self, run):
        with stub_server(llama_cpp(reply=lambda prompt: "and so on " * 900)) as (url, _):
            found = told(run, url, code=2)
        topics = [topic for topic, _, _ in stops(found)]
        assert topics == ["reply"]
        assert "base model" in stops(found)[0][1]

    def test_a_server_that_dies_in_the_middle(self, run, tmp_path):
        small_tokenizer().save_pretrained(tmp_path / "tokenizer")
        with serve(TgiDouble(replied, faults={7: Restart(refuse_s=600)})) as url:
            env = {"QWENLONG_GRAPH_TOKENIZER": str(tmp_path / "tokenizer")}
            found = told(run, url, code=4, env=env)
        ((topic, problem, _),) = stops(found)
        assert topic == "template"
        assert problem.startswith("While looking at the chat template")
        assert found["tokenizer"] is not None
        assert found["prompt"] is None

    def test_a_server_that_never_replies(self, run):
        gate = threading.Event()

        def silent(prompt):
            gate.wait(60)
            return "5"

        with stub_server(llama_cpp(reply=silent)) as (url, _):
            found = told(run, url, "--timeout", "1", code=4)
            gate.set()
        assert [topic for topic, _, _ in stops(found)] == ["reply"]


class TestUse:
    def test_an_interrupt_ends_it_at_once(self, start):
        gate, asked = threading.Event(), threading.Event()

        def held(prompt):
            asked.set()
            gate.wait(60)
            return "5"

        with stub_server(llama_cpp(reply=held)) as (url, _):
            process = start("doctor", url)
            assert asked.wait(60)
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=60)
            gate.set()
        assert process.returncode == 130
        assert "Server" in stdout
        assert "Interrupted" in stderr
        assert "Traceback" not in stderr

    def test_a_name_that_is_no_model_and_a_wrong_protocol(self, run):
        assert "names no model" in stops(told(run, "qwen", code=2))[0][1]
        ended = run("doctor", "qwen", "--protocol", "guess", "--json")
        assert ended.returncode == 2
        assert json.loads(ended.stdout)["error"]["type"] == "SettingsError"

    def test_help_has_examples_and_exit_codes(self, run):
        shown = run("doctor", "--help").stdout
        assert "qwenlong-graph doctor http://" in shown
        assert "130  interrupted" in shown
        assert "doctor" in run("--help").stdout


@pytest.mark.end_to_end
def test_the_embedded_model(run, embedded_model):
    found = told(run, "embedded")
    assert found["server"]["url"] is None
    assert found["server"]["engine"] == "llama.cpp"
    assert found["outlook"]["hours"] > 0


def _read(descriptor):
    try:
        return os.read(descriptor, 65_536)
    except OSError:
        return b""


class tls_listener:  # noqa: N801 - used as a function
    """A server of TLS whose certificate it signed itself; takes connections until the end."""

    def __init__(self, folder):
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
        command += " -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout key -out cert"
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "cert", folder / "key")

    def __enter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()
        return f"https://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    self._context.wrap_socket(connection, server_side=True).close()
                except OSError:
                    continue
