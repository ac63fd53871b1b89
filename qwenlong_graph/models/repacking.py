"""A model's weights stored anew in the form that llama.cpp reads fastest (decision 0009)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

__all__ = ["repack_in_q8"]


def repack_in_q8(source: Path, target: Path, *, progress: Callable[[int, int], None]) -> None:
    """Writes the GGUF model in `source` to `target`, its Q4_1 tensors stored as Q8_0.

    All else stays as it is, but for the key that names the kind of file. The same source gives
    the same bytes on every machine: all arithmetic is on single numbers, correctly rounded.
    `progress` is called with (bytes of `source` done, bytes in all). Raises `ImportError` without
    the extra "embedded", `OSError`, and `ValueError` where `source` is no GGUF model.
    """
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, Keys, LlamaFileType
    from gguf.quants import dequantize, quantize

    reader = GGUFReader(source)
    architecture = reader.fields[Keys.General.ARCHITECTURE].contents()
    writer = GGUFWriter(target, architecture)
    writer.data_alignment = int(reader.alignment)
    for name, field in reader.fields.items():
        # The writer makes its own header, and begins with the architecture.
        if name.startswith("GGUF.") or name == Keys.General.ARCHITECTURE:
            continue
        is_kind = name == Keys.General.FILE_TYPE
        value = int(LlamaFileType.MOSTLY_Q8_0) if is_kind else field.contents()
        # Of an array, the last type is that of its members.
        writer.add_key_value(name, value, field.types[0], sub_type=field.types[-1])

    done, total = 0, sum(tensor.n_bytes for tensor in reader.tensors)
    for tensor in reader.tensors:
        kind, data = tensor.tensor_type, tensor.data
        if kind == GGMLQuantizationType.Q4_1:
            values = dequantize(data, kind)
            kind = GGMLQuantizationType.Q8_0
            data = quantize(values, kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
        done += tensor.n_bytes
        progress(done, total)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
