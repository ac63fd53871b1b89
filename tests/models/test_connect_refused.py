"""Addresses where no usable server is: each gets an error that says what was found."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from ollama import ResponseError

from qwenlong_graph import connect
from qwenlong_graph.errors import ConnectionSetupError, ModelError
from qwenlong_graph.models.calls import aask, ask
from qwenlong_graph.testing.tgi import small_tokenizer
from tests.models.stub_server import Answer, stub_server
from tests.models.test_connect import openai_compatible
from tests.models.test_connect_engines import TestOllama as Ollama

pytestmark = pytest.mark.contract

HELLO = [{"role": "user", "content": "A secret text."}]


def test_nothing_there():
    with stub_server({}) as (url, _):
        pass
    with pytest.raises(ConnectionSetupError, match=rf"{url}.*no server answers"):
        connect(url)


def test_a_web_page_is_no_model_server():
    page = Answer("<html>hello</html>", content_type="text/html; charset=utf-8")
    with (
        stub_server({"/info": page, "/props": page, "/v1/models": page}) as (url, _),
        pytest.raises(ConnectionSetupError, match="a web page answers there, and no model server"),
    ):
        connect(url)


def test_a_server_without_models_is_no_model_server():
    with (
        stub_server({"/health": Answer({})}) as (url, _),
        pytest.raises(ConnectionSetupError, match="lists no models answers there"),
    ):
        connect(url)


@contextlib.contextmanager
def speaking(greeting):
    """A port that greets each client with these bytes, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client, contextlib.suppress(OSError):
                    client.recv(4096)
                    client.sendall(greeting)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.parametrize("greeting", [b"", b"220 mail.example ESMTP\r\n"])
def test_another_kind_of_server_is_told_apart(greeting):
    with (
        speaking(greeting) as url,
        pytest.raises(ConnectionSetupError, match="no HTTP answer"),
    ):
        connect(url)


def test_https_to_a_plain_server_names_the_way_out():
    with (
        stub_server(openai_compatible()) as (url, _),
        pytest.raises(ConnectionSetupError, match=r"\(TLS\) failed.*use http://"),
    ):
        connect(url.replace("http://", "https://"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate that nobody has signed, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command, to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, made = folder / "key.pem", folder / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    command += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {made}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return made, key


@contextlib.contextmanager
def tls_server(certificate, key):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *args):
            pass

    class Server(HTTPServer):
        def handle_error(self, request, client_address):
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_certificate_that_is_not_trusted_is_refused(certificate):
    with (
        tls_server(*certificate) as url,
        pytest.raises(ConnectionSetupError, match=r"not trusted \(self.signed.*SSL_CERT_FILE"),
    ):
        connect(url)


def test_it_is_trusted_where_the_variable_names_it_on_loopback_too(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with (
        tls_server(*certificate) as url,
        pytest.raises(ConnectionSetupError, match="lists no models"),
    ):
        connect(url)


class Redirect(Answer):
    """To another address; the key and the prompt must not arrive there."""

    def __init__(self, target):
        super().__init__("", status=307)
        self.headers = {"location": target}


@contextlib.contextmanager
def redirecting(answers, path):
    """A server with `answers`, but for `path`, which leads elsewhere; and what arrives there."""
    with (
        stub_server({path: Answer({"model_id": "x"})}) as (elsewhere, arrived),
        stub_server({**answers, path: Redirect(f"{elsewhere}{path}")}) as (url, _),
    ):
        yield url, elsewhere, arrived


def test_a_redirect_is_refused_and_its_target_named():
    with redirecting({}, "/info") as (url, elsewhere, arrived):
        with pytest.raises(ConnectionSetupError, match=rf"redirects to {elsewhere}, which is not"):
            connect(url, api_key="key")
        assert arrived == []


async def _ask(model, messages, **settings):
    return ask(model, messages, **settings)


@pytest.mark.parametrize("call", [_ask, aask])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
async def test_no_prompt_follows_a_redirect(path, call, tmp_path):
    small_tokenizer().save_pretrained(tmp_path)
    answers = openai_compatible() if path.startswith("/v1") else Ollama().answers()
    with redirecting(answers, path) as (url, _, arrived):
        model = connect(url, tokenizer=None if path.startswith("/v1") else tmp_path)
        with pytest.raises((ModelError, ResponseError)):
            await call(model, HELLO, max_tokens=5)
        assert arrived == []
