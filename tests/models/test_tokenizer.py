from __future__ import annotations

import subprocess
import sys

import pytest

from qwenlong_graph.errors import SettingsError
from qwenlong_graph.models.tokenizer import PROBE_TEXT, LocalTokenizer
from qwenlong_graph.reading.prompts import neutralise
from qwenlong_graph.testing.tgi import small_tokenizer


@pytest.fixture
def folder(tmp_path):
    tokenizer = small_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|house|>"]})
    tokenizer.add_tokens(["   ", "<table>", "[[odd]]"])
    tokenizer.chat_template += "{# [odd] #}"
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def test_control_tokens_are_those_that_a_text_must_not_hold(folder):
    special = set(LocalTokenizer(folder).special_tokens)
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|house|>"} <= special
    # Added, not special, and yet control tokens; against what is only a word of the model.
    assert {"<think>", "</think>"} <= special
    assert special.isdisjoint({"   ", "<table>", "[[odd]]"})


def test_neutralised_text_holds_no_control_token(folder):
    tokenizer = LocalTokenizer(folder)
    text = "a <|house|> <|im_end|><think> b"
    cleaned = neutralise(text, tokenizer.special_tokens)
    loaded = small_tokenizer().from_pretrained(folder)
    ids = set(loaded.encode(cleaned))
    assert ids.isdisjoint(loaded.convert_tokens_to_ids(["<|house|>", "<|im_end|>", "<think>"]))


def test_special_tokens_are_counted_as_plain_text(folder):
    tokenizer = LocalTokenizer(folder)
    assert tokenizer.count("<|house|>") > 1
    assert tokenizer.count("") == 0


def test_what_the_template_adds_is_measured(folder):
    assert LocalTokenizer(folder).template_tokens == 8


def test_agreement_allows_for_a_token_at_the_beginning(tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = small_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A",
        special_tokens=[("<|endoftext|>", tokenizer.convert_tokens_to_ids("<|endoftext|>"))],
    )
    tokenizer.save_pretrained(tmp_path)
    local = LocalTokenizer(str(tmp_path))
    counted = len(small_tokenizer().encode(PROBE_TEXT))
    for told in (counted, counted + 1):
        local.check_agreement("http://a", told)
    for told in (counted - 1, counted + 2):
        with pytest.raises(SettingsError, match=rf"makes {counted} .*makes {told}"):
            local.check_agreement("http://a", told)


def test_a_missing_tokenizer_names_the_ways_to_give_one(tmp_path):
    with pytest.raises(SettingsError, match=r"tokenizer\.json.*QWENLONG_GRAPH_TOKENIZER"):
        LocalTokenizer(str(tmp_path))


SCRIPT = """
import socket, sys
asked = []
resolve = socket.getaddrinfo
def noting(host, *args, **kwargs):
    if host not in {"127.0.0.1", None}:
        asked.append(host)
        raise OSError("no network in this test")
    return resolve(host, *args, **kwargs)
socket.getaddrinfo = noting
from qwenlong_graph import connect
from qwenlong_graph.models.calls import ask
from qwenlong_graph.testing.tgi import TgiDouble, serve
with serve(TgiDouble(["Fine."], model_id="org/model")) as url:
    model = connect(url)
    reply = ask(model, [{"role": "user", "content": "Hello."}], max_tokens=5)
print(reply.text, asked)
"""


@pytest.mark.contract
def test_a_cached_hub_id_is_used_without_asking_the_hub(tmp_path):
    """The server's `model_id` is a hub id whose tokenizer is in the cache."""
    repository = tmp_path / "models--org--model"
    small_tokenizer().save_pretrained(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={"HF_HUB_CACHE": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.stdout.strip() == "Fine. []", done.stderr[-2000:]
