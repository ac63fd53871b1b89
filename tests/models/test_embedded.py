from __future__ import annotations

import struct
import subprocess
import sys

import pytest

from qwenlong_graph.errors import ModelFetchError
from qwenlong_graph.models.embedded import trained_window


def gguf(*entries):
    """A GGUF header with the given (name, type number, encoded value) entries."""
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries))
    for name, kind, value in entries:
        header += struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value
    return header


def text(value):
    return struct.pack("<Q", len(value)) + value


ENTRIES = [
    (b"general.architecture", 8, text(b"llama")),
    (b"general.tags", 9, struct.pack("<IQ", 8, 2) + text(b"a") + text(b"bc")),
    (b"general.ratio", 6, struct.pack("<f", 0.5)),
    (b"llama.context_length", 4, struct.pack("<I", 4096)),
]


class TestTrainedWindow:
    def test_is_read_past_values_of_other_types(self, tmp_path):
        path = tmp_path / "m.gguf"
        path.write_bytes(gguf(*ENTRIES) + b"rest of the file")
        assert trained_window(path) == 4096

    @pytest.mark.parametrize("length", range(0, len(gguf(*ENTRIES)), 7))
    def test_a_header_cut_anywhere_is_an_error(self, tmp_path, length):
        path = tmp_path / "m.gguf"
        path.write_bytes(gguf(*ENTRIES)[:length])
        with pytest.raises(ModelFetchError, match="damaged, or not a GGUF"):
            trained_window(path)

    @pytest.mark.parametrize(
        "content",
        [
            b"PK\x03\x04 something else entirely",
            gguf(),
            gguf((b"a.b", 99, b"")),
            gguf((b"a.b", 8, struct.pack("<Q", 1 << 60))),
            gguf((b"a.b", 9, struct.pack("<IQ", 4, 1 << 60))),
            gguf((b"a.context_length", 8, text(b"long"))),
        ],
    )
    def test_nonsense_is_an_error(self, tmp_path, content):
        path = tmp_path / "m.gguf"
        path.write_bytes(content)
        with pytest.raises(ModelFetchError):
            trained_window(path)

    def test_a_missing_file_and_a_directory_are_errors(self, tmp_path):
        for path in (tmp_path / "none.gguf", tmp_path):
            with pytest.raises(ModelFetchError, match="Opening the model file"):
                trained_window(path)


PROGRAM = """
from qwenlong_graph.models.connect import connect
from qwenlong_graph.models.calls import ask
model = connect("embedded", window=1024)
reply = ask(model, [{"role": "user", "content": "Hello."}], max_tokens=5)
assert reply.text
"""


@pytest.mark.end_to_end
def test_a_program_that_asks_prints_nothing_and_ends_cleanly(embedded_model):
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


INTERRUPTED = """
import os, sys, signal, threading
from qwenlong_graph.models.connect import connect
from qwenlong_graph.models.calls import ask
model = connect("embedded", window=8192)
try:
    # The prompt alone takes longer to read than this.
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    ask(model, [{"role": "user", "content": "tell me more " * 2000}], max_tokens=2000)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.end_to_end
def test_an_interrupt_ends_a_request_and_its_process(embedded_model):
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")
