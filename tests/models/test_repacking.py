from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize

from qwenlong_graph.models.fetching import (
    EMBEDDED_MODEL,
    EMBEDDED_MODEL_Q8,
    embedded_model_path,
)
from qwenlong_graph.models.repacking import repack_in_q8

F32, Q4_0, Q4_1, Q8_0 = (
    GGMLQuantizationType.F32,
    GGMLQuantizationType.Q4_0,
    GGMLQuantizationType.Q4_1,
    GGMLQuantizationType.Q8_0,
)


def unheard(done, total):
    """Progress that nobody follows."""


@pytest.fixture
def source(tmp_path):
    """A model with values and tensors of several kinds."""
    path = tmp_path / "tiny.Q4_1.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_custom_alignment(128)
    writer.add_uint32("llama.context_length", 8192)
    writer.add_float32("llama.rope.freq_base", 0.1)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "\u0120caf\u00e9", "<|im_end|>"])
    writer.add_key_value(
        "tokenizer.ggml.token_type", [1, 1, 3], GGUFValueType.ARRAY, GGUFValueType.INT8
    )
    random = np.random.default_rng(1)
    weights = random.normal(size=(5, 96)).astype(np.float32)
    weights[2, 32:64] = 0
    weights[3, :32] += 100
    writer.add_tensor("token_embd.weight", quantize(weights, Q4_0), raw_dtype=Q4_0)
    writer.add_tensor("blk.0.attn_norm.weight", weights[0, :80])
    writer.add_tensor("blk.0.attn_q.weight", quantize(weights, Q4_1), raw_dtype=Q4_1)
    writer.add_tensor("blk.0.ffn_up.weight", quantize(-weights, Q4_1), raw_dtype=Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def repacked(source, tmp_path):
    path = tmp_path / "tiny.Q8_0.gguf"
    repack_in_q8(source, path, progress=unheard)
    return path


def metadata(path):
    fields = GGUFReader(path).fields.values()
    return [(field.name, field.types, field.contents()) for field in fields]


def test_metadata_stay_in_their_order_but_for_the_kind_of_file(source, repacked):
    kind = "general.file_type"
    assert [entry for entry in metadata(repacked) if entry[0] != kind] == [
        entry for entry in metadata(source) if entry[0] != kind
    ]
    assert (kind, [GGUFValueType.UINT32], 7) in metadata(repacked)


def test_only_tensors_in_q4_1_change_their_kind(source, repacked):
    before, after = GGUFReader(source).tensors, GGUFReader(repacked).tensors
    assert [(tensor.name, tensor.tensor_type, tensor.shape.tolist()) for tensor in after] == [
        ("token_embd.weight", Q4_0, [96, 5]),
        ("blk.0.attn_norm.weight", F32, [80]),
        ("blk.0.attn_q.weight", Q8_0, [96, 5]),
        ("blk.0.ffn_up.weight", Q8_0, [96, 5]),
    ]
    for old, new in zip(before[:2], after[:2], strict=True):
        assert old.data.tobytes() == new.data.tobytes()


def test_weights_stay_within_half_a_step_of_their_block(source, repacked):
    before, after = GGUFReader(source).tensors, GGUFReader(repacked).tensors
    for old, new in zip(before[2:], after[2:], strict=True):
        was = dequantize(old.data, Q4_1).reshape(-1, 32)
        now = dequantize(new.data, Q8_0).reshape(-1, 32)
        # Half of one of 127 steps, and the rounding of the step itself to 11 bits.
        allowed = np.abs(was).max(axis=1, keepdims=True) * (1 / 254 + 2**-11)
        assert (np.abs(now - was) <= allowed).all()


def test_tensors_begin_where_the_alignment_wants_them(repacked):
    reader = GGUFReader(repacked)
    assert reader.alignment == 128
    assert all(tensor.data_offset % 128 == 0 for tensor in reader.tensors)
    assert repacked.stat().st_size % 128 == 0


def test_the_same_source_gives_the_same_bytes(source, repacked, tmp_path):
    repack_in_q8(source, tmp_path / "again.gguf", progress=unheard)
    assert (tmp_path / "again.gguf").read_bytes() == repacked.read_bytes()


def test_progress_ends_at_the_whole(source, tmp_path):
    seen = []
    repack_in_q8(source, tmp_path / "out.gguf", progress=lambda *bytes_: seen.append(bytes_))
    total = sum(tensor.n_bytes for tensor in GGUFReader(source).tensors)
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


@pytest.mark.parametrize("content", [b"", b"GGML" + bytes(60)])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    (tmp_path / "source").write_bytes(content)
    with pytest.raises(ValueError, match=r"empty file|magic"):
        repack_in_q8(tmp_path / "source", tmp_path / "out.gguf", progress=unheard)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full on this system")
def test_a_full_disk_is_an_error_and_leaves_nothing_open(source):
    with pytest.raises(OSError, match="No space left"):
        repack_in_q8(source, Path("/dev/full"), progress=unheard)


@pytest.mark.end_to_end
def test_the_embedded_model_is_made_the_same_with_the_installed_versions(monkeypatch, tmp_path):
    monkeypatch.delenv("QWENLONG_GRAPH_EMBEDDED_MODEL", raising=False)
    path = embedded_model_path()
    assert path.name == EMBEDDED_MODEL_Q8.file_name
    # The kept file may be older than what is installed.
    repack_in_q8(path.with_name(EMBEDDED_MODEL.file_name), tmp_path / "made", progress=unheard)
    with (tmp_path / "made").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == EMBEDDED_MODEL_Q8.sha256
