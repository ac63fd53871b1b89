"""The factories of langgraph.json, called as LangGraph Server calls them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from qwenlong_graph.agents import serving
from qwenlong_graph.agents.serving import MODEL_VARIABLE, ROOTS_VARIABLE, ServedGraphs
from qwenlong_graph.errors import ModelRefusedError, QwenLongGraphError
from qwenlong_graph.testing.oracle import oracle
from qwenlong_graph.testing.scripted import scripted
from tests.cli.stub_server import llama_cpp

ROOT = Path(__file__).parents[2]
FACT = "The widow Hale paid 318,000 crowns for the bridge at Orrin."
QUESTION = "Who paid for the bridge?"
RUN = SimpleNamespace(execution_runtime=object())
LOOK = SimpleNamespace(execution_runtime=None)

pytestmark = pytest.mark.contract


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch, tmp_path):
    monkeypatch.delenv(MODEL_VARIABLE, raising=False)
    monkeypatch.delenv(ROOTS_VARIABLE, raising=False)
    monkeypatch.setenv("QWENLONG_GRAPH_DATA", str(tmp_path / "data"))


async def read(served, documents):
    async with served.memory_agent(RUN) as agent:
        return await agent.ainvoke({"question": QUESTION, "documents": documents})


def test_langgraph_json_names_what_is_there():
    config = json.loads((ROOT / "langgraph.json").read_text("utf-8"))
    for name, graph in config["graphs"].items():
        module, _, attribute = graph["path"].partition(":")
        assert module == serving.__name__
        assert attribute == name
        assert callable(getattr(serving, attribute))


class TestFilesByDefault:
    @pytest.fixture
    def secret(self, tmp_path):
        path = tmp_path / "secret.txt"
        path.write_text(FACT)
        return path

    @pytest.mark.parametrize("spelled", ["{}", "file://{}", "/proc/self/root{}"])
    async def test_are_never_read_by_their_names(self, secret, spelled):
        served = ServedGraphs(oracle([FACT]))
        with pytest.raises(RuntimeError, match=r"^DocumentNotAllowedError: "):
            await read(served, [spelled.format(secret)])

    @pytest.mark.parametrize("name", ["-", "", "https://example.com/a", "pyproject.toml", "a\0b"])
    async def test_nothing_else_stands_for_one(self, name):
        served = ServedGraphs(oracle([FACT]))
        with pytest.raises(RuntimeError, match=r"^DocumentNotAllowedError: "):
            await read(served, [name])

    @pytest.mark.parametrize("found", ["../../secret.txt", "/etc/passwd", "0" * 64])
    async def test_references_do_not_lead_out_of_the_store(self, found):
        reference = {"collection_id": found, "documents": 1, "chars": 9, "bytes": 9}
        served = ServedGraphs(oracle([FACT]))
        with pytest.raises(RuntimeError, match=r"^StoredTextChangedError: "):
            await read(served, [reference])

    async def test_texts_are_read(self):
        output = await read(ServedGraphs(oracle([FACT])), [{"page_content": FACT}])
        assert output["answer"] == FACT


class TestRoots:
    async def test_come_from_the_variable_as_a_path_does(self, monkeypatch, tmp_path):
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            (tmp_path / name / f"{name}.txt").write_text(FACT)
        monkeypatch.setenv(ROOTS_VARIABLE, f"{tmp_path / 'one'}:{tmp_path / 'two'}:")
        served = ServedGraphs(oracle([FACT]))
        for name in ("one.txt", str(tmp_path / "two" / "two.txt")):
            assert (await read(served, [name]))["answer"] == FACT

    async def test_given_ones_stand_instead_of_the_variable(self, monkeypatch, tmp_path):
        (tmp_path / "annals.txt").write_text(FACT)
        monkeypatch.setenv(ROOTS_VARIABLE, str(tmp_path))
        with pytest.raises(RuntimeError, match=r"^DocumentNotAllowedError: "):
            await read(ServedGraphs(oracle([FACT]), roots=[]), ["annals.txt"])

    async def test_links_do_not_lead_out_of_them(self, tmp_path):
        (tmp_path / "roots").mkdir()
        (tmp_path / "secret.txt").write_text(FACT)
        (tmp_path / "roots" / "link.txt").symlink_to(tmp_path / "secret.txt")
        with pytest.raises(RuntimeError, match=r"^DocumentNotAllowedError: "):
            await read(ServedGraphs(oracle([FACT]), roots=[tmp_path / "roots"]), ["link.txt"])

    async def test_that_are_not_there_are_told(self, tmp_path):
        served = ServedGraphs(oracle([FACT]), roots=[tmp_path / "none"])
        with pytest.raises(RuntimeError, match=r"^SettingsError: .*there is no such directory"):
            await read(served, [{"page_content": FACT}])


class TestTheModel:
    async def test_is_connected_to_once_by_the_first_run(self, monkeypatch):
        with llama_cpp(facts=[FACT]) as model:
            monkeypatch.setenv(MODEL_VARIABLE, model.url)
            served = ServedGraphs()
            for graph in (served.memory_agent, served.document_chat):
                async with graph(LOOK) as shown:
                    assert shown.get_input_jsonschema()
            assert model.keys == set()
            async with served.memory_agent(RUN) as one, served.memory_agent(RUN) as other:
                assert one is other

    async def test_that_was_away_is_asked_again_by_the_next_run(self, monkeypatch):
        monkeypatch.setenv(MODEL_VARIABLE, "http://127.0.0.1:9")
        served = ServedGraphs()
        with pytest.raises(RuntimeError, match=r"^ConnectionSetupError: "):
            await read(served, [{"page_content": FACT}])
        with llama_cpp(facts=[FACT]) as model:
            monkeypatch.setenv(MODEL_VARIABLE, model.url)
            output = await read(served, [{"page_content": FACT}])
        assert output["answer"] == FACT

    async def test_that_refused_is_connected_to_anew(self):
        served = ServedGraphs(scripted(lambda _: ModelRefusedError("another model is there")))
        async with served.memory_agent(RUN) as first:
            pass
        with pytest.raises(RuntimeError, match=r"^ModelRefusedError: another model"):
            await read(served, [{"page_content": FACT}])
        async with served.memory_agent(RUN) as second:
            assert second is not first

    async def test_stays_after_an_error_of_the_input(self):
        served = ServedGraphs(oracle([FACT]))
        async with served.memory_agent(RUN) as first:
            pass
        with pytest.raises(RuntimeError, match=r"^NoDocumentsError: ") as caught:
            await read(served, [])
        assert isinstance(caught.value.__cause__, QwenLongGraphError)
        async with served.memory_agent(RUN) as second:
            assert second is first


async def test_what_is_no_error_of_ours_passes_as_it_is():
    served = ServedGraphs(oracle([FACT]))
    with pytest.raises(ZeroDivisionError):
        async with served.document_chat(RUN):
            raise ZeroDivisionError
