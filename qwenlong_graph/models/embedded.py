"""llama.cpp inside this process: its own HTTP server, on the loopback address, with its own key.

Every caller that asks for the same file with the same settings shares one server. It stops when
the last of them lets go, or when the process ends.
"""

from __future__ import annotations

import atexit
import os
import secrets
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from qwenlong_graph.errors import MissingExtraError, ModelFetchError, SettingsError

__all__ = [
    "DEFAULT_WINDOW_MAX",
    "EMBEDDED_SETTINGS",
    "ServerLease",
    "start_server",
    "trained_window",
]

DEFAULT_WINDOW_MAX = 32_768
"""Without a window asked for, a model trained on more gets this many tokens: memory is finite."""

EMBEDDED_SETTINGS: Mapping[str, Any] = {
    "protocol": "extract",
    "temperature": 0.0,
    "chunk_tokens": 700,
    "full_tokens_max": 0,
}
"""Settings that suit a model of 135M parameters."""

# An abandoned request ends between two batches, so this is what stopping waits for. Measured on
# 2 cores: 0.6 s with 256, 6.5 s with llama.cpp's default of 2048, the same reading speed.
BATCH_TOKENS = 256


@dataclass(eq=False)
class _Running:
    server: Any
    url: str
    api_key: str
    users: int = 0
    process: int = field(default_factory=os.getpid)


@dataclass(eq=False)
class ServerLease:
    """One caller's share of a running server; `release` may be called any number of times."""

    url: str
    api_key: str
    key: tuple[object, ...]
    is_released: bool = False

    def release(self) -> None:
        with _lock:
            running = _servers.get(self.key)
            if self.is_released or running is None:
                return
            self.is_released = True
            running.users -= 1
            # A forked child shares its parent's server, and must not tear it down.
            if running.users <= 0 and running.process == os.getpid():
                del _servers[self.key]


_servers: dict[tuple[object, ...], _Running] = {}
_lock = threading.Lock()


def start_server(
    path: Path, *, window: int | None = None, parallel: int = 1, threads: int | None = None
) -> ServerLease:
    """A running llama.cpp server for the GGUF file at `path`.

    `window` is in tokens and holds for each of the `parallel` requests served at once; by default
    it is what the model was trained on, up to `DEFAULT_WINDOW_MAX`. Raises `MissingExtraError`,
    `ModelFetchError` where the file cannot be loaded, and `SettingsError` for a window the model
    does not have.
    """
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingExtraError("Running a model in this process", "embedded") from error
    path = path.expanduser().resolve()
    trained = trained_window(path)
    if window is None:
        window = min(trained, DEFAULT_WINDOW_MAX)
    elif window > trained:
        raise SettingsError(
            f"A window of {window:,} tokens was asked for, and {path.name} was trained on "
            f"{trained:,}. Ask for at most that many."
        )
    threads = threads or _physical_cores()
    key = (path, window, parallel, threads)
    with _lock:
        running = _servers.get(key)
        if running is None:
            running = _load(xllamacpp, path, window=window, parallel=parallel, threads=threads)
            _servers[key] = running
        running.users += 1
        return ServerLease(url=running.url, api_key=running.api_key, key=key)


def trained_window(path: Path) -> int:
    """The context length, in tokens, that a GGUF file says its model was trained on.

    Raises `ModelFetchError` where the file is missing, or no GGUF file.
    """
    try:
        with path.open("rb") as file:
            return _context_length(file)
    except OSError as error:
        raise ModelFetchError(
            f"Opening the model file {path} failed: {error.strerror or error}. Check the path."
        ) from error
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        raise ModelFetchError(
            f"Reading the model file {path}: it is damaged, or not a GGUF model ({error}). "
            "Fetch it again."
        ) from error


def _load(xllamacpp: Any, path: Path, *, window: int, parallel: int, threads: int) -> _Running:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.model_alias = {path.stem}
    parameters.n_ctx = window * parallel  # llama.cpp divides it among the slots
    parameters.n_parallel = parallel
    parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
    parameters.cpuparams.n_threads = threads
    # Thoughts stay in the reply's text, where this package splits them off itself.
    parameters.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    # Kept prompts would cost up to 8 GiB of memory, and a slot holds the last prompt anyway.
    parameters.cache_ram_mib = 0
    parameters.ui = parameters.endpoint_slots = False
    parameters.verbosity = -1
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    api_key = secrets.token_urlsafe(32)
    parameters.api_keys = [api_key]
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError as error:
        raise ModelFetchError(
            f"llama.cpp could not load {path} with a window of {window:,} tokens: the file is "
            "damaged or of a kind this version does not know, or there is too little memory. "
            "Fetch it again, or ask for a smaller window."
        ) from error
    return _Running(server=server, url=server.listening_address, api_key=api_key)


@atexit.register
def _stop_all() -> None:
    with _lock:
        for key, running in list(_servers.items()):
            if running.process == os.getpid():
                del _servers[key]


def _physical_cores() -> int:
    """Cores this process may use; two hardware threads of one core do not compute faster."""
    if not hasattr(os, "sched_getaffinity"):
        return max(1, os.cpu_count() or 1)
    allowed = os.sched_getaffinity(0)
    cores = set()
    for number in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text(encoding="ascii"))
        except OSError:
            return len(allowed)
    return max(1, len(cores))


# GGUF value types with a fixed size, by their number: struct codes, little endian.
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TEXT_BYTES_MAX = 1 << 26


def _context_length(file: BinaryIO) -> int:
    if file.read(4) != b"GGUF":
        raise ValueError("it does not begin with the letters GGUF")
    _, _, entries = struct.unpack("<IQQ", _exactly(file, 20))
    for _ in range(entries):
        name = _text(file)
        (kind,) = struct.unpack("<I", _exactly(file, 4))
        value = _value(file, kind)
        if name.endswith(b".context_length") and isinstance(value, int) and value > 0:
            return value
    raise ValueError("it does not state a context length")


def _value(file: BinaryIO, kind: int) -> object:
    if kind in _SCALARS:
        code = f"<{_SCALARS[kind]}"
        return struct.unpack(code, _exactly(file, struct.calcsize(code)))[0]
    if kind == _STRING:
        return _text(file)
    if kind == _ARRAY:
        inner, count = struct.unpack("<IQ", _exactly(file, 12))
        for _ in range(count):
            _value(file, inner)
        return None
    raise ValueError(f"it holds a value of the unknown type {kind}")


def _text(file: BinaryIO) -> bytes:
    (length,) = struct.unpack("<Q", _exactly(file, 8))
    if length > _TEXT_BYTES_MAX:
        raise ValueError("it holds a text of an absurd length")
    return _exactly(file, length)


def _exactly(file: BinaryIO, count: int) -> bytes:
    found = file.read(count)
    if len(found) != count:
        raise ValueError("it ends too early")
    return found
