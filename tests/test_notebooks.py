"""The notebooks run from a fresh kernel and show what is checked in.

A cell whose output differs from run to run, or from machine to machine, has the tag "varies"; all
other text is compared. `make notebooks` writes the outputs anew.
"""

from __future__ import annotations

import ast
import base64
import json
import re
import struct
import sys
import zlib
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from tests.run_notebooks import METADATA, NOTEBOOKS, executed, main, read_notebook, write_notebook

ROOT = Path(__file__).parent.parent
LARGEST_BYTES = 400_000
# Of the cells whose words vary: what they show on any machine.
ANYWHERE = {
    ("01_quickstart", "ask"): "21 January 1946",
    ("01_quickstart", "stream"): "460,000",
    ("01_quickstart", "quote"): "only 460,000 now",
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell):
    """The text that a cell shows, without pictures."""
    texts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            texts.append(f"{output.name}: {output.text}")
        else:
            texts.append(output.get("data", {}).get("text/plain", ""))
    return "\n".join(texts)


def pictures(cell):
    return [output for output in cell.outputs if "image/png" in output.get("data", {})]


def grey_values(png: bytes) -> set[int]:
    """Which values the bytes of a picture take; a blank one has one or two."""
    assert png.startswith(b"\x89PNG")
    at, packed = 8, b""
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            packed += png[at + 8 : at + 8 + size]
        at += size + 12
    return set(zlib.decompress(packed))


def only_prepares(source: str) -> bool:
    """Whether a cell imports, defines and assigns, and so need show nothing."""
    kinds = (
        ast.Import,
        ast.ImportFrom,
        ast.Assign,
        ast.AnnAssign,
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.ClassDef,
    )

    def is_filter(statement: ast.stmt) -> bool:
        return ast.unparse(statement).startswith("warnings.filterwarnings(")

    return all(
        isinstance(statement, kinds) or is_filter(statement) for statement in ast.parse(source).body
    )


def test_there_are_notebooks_and_the_readme_lists_each():
    readme = (ROOT / "notebooks" / "README.md").read_text("utf-8")
    assert len(NOTEBOOKS) >= 5
    for path in NOTEBOOKS:
        assert f"]({path.name})" in readme


@each_notebook
def test_it_opens_with_what_the_reader_will_know(path):
    first = read_notebook(path).cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# .+\n\nAt the end you know\n\n- ", first.source)


@each_notebook
def test_a_scripted_model_is_called_scripted_and_the_real_one_named(path):
    notebook = read_notebook(path)
    if 'connect("embedded")' in "".join(cell.source for cell in code_cells(notebook)):
        assert "SmolLM2" in notebook.cells[0].source
    else:
        assert "scripted" in notebook.cells[0].source
    assert 'connect("http://127.0.0.1:8080")' in "".join(cell.source for cell in notebook.cells)


@each_notebook
def test_each_code_cell_has_its_output_and_a_name(path):
    notebook = read_notebook(path)
    nbformat.validate(notebook)
    for number, cell in enumerate(code_cells(notebook), start=1):
        assert cell.execution_count == number, f"{cell.id}: run all cells in order"
        assert cell.outputs or only_prepares(cell.source), f"{cell.id}: shows nothing"
        assert set(cell.metadata) <= {"tags"}
    for cell in notebook.cells:
        assert re.fullmatch(r"[a-z][a-z-]+", cell.id), f"{cell.id}: give the cell a name"


@each_notebook
def test_the_file_is_small_and_free_of_noise(path):
    text = path.read_text("utf-8")
    notebook = json.loads(text)
    assert len(text.encode()) < LARGEST_BYTES
    assert notebook["metadata"] == METADATA
    for cell in code_cells(read_notebook(path)):
        words = shown(cell)
        assert "stderr: " not in words, f"{cell.id}: a warning, or a log"
        assert "\x1b" not in words, f"{cell.id}: colours of a terminal"
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users|usr|var)/", words), cell.id
        assert not re.search(r"127\.0\.0\.1:\d+", words), f"{cell.id}: a port of this machine"


@each_notebook
def test_its_pictures_show_something_and_are_described(path):
    for cell in code_cells(read_notebook(path)):
        plots = "plt.subplots" in cell.source
        assert bool(pictures(cell)) == plots, cell.id
        for picture in pictures(cell):
            png = base64.b64decode(picture.data["image/png"])
            width, height = struct.unpack(">II", png[16:24])
            assert 700 <= width <= 1_000, f"{cell.id}: {width} pixels wide"
            assert 150 <= height <= 800
            assert len(grey_values(png)) > 50, f"{cell.id}: blank"
            alt = picture.metadata["image/png"]["alt"]
            assert len(alt) > 40, f"{cell.id}: describe the picture"


@each_notebook
def test_links_lead_somewhere(path):
    for cell in read_notebook(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", cell.source):
                assert (path.parent / target).exists(), f"{cell.id}: {target}"


@pytest.mark.alone
@pytest.mark.end_to_end
@pytest.mark.timeout(900)
@each_notebook
def test_a_fresh_kernel_shows_what_is_checked_in(path):
    kept, ran = code_cells(read_notebook(path)), code_cells(executed(path))
    for before, after in zip(kept, ran, strict=True):
        if "varies" not in before.metadata.get("tags", []):
            assert shown(after) == shown(before), f"{before.id}: run `make notebooks`"
        assert ANYWHERE.get((path.stem, before.id), "") in shown(after)
        assert "stderr: " not in shown(after), f"{before.id}: a warning, or a log"
        assert len(pictures(after)) == len(pictures(before))


@pytest.mark.end_to_end
def test_it_runs_from_the_root_of_the_repository_too():
    path = next(path for path in NOTEBOOKS if path.name.startswith("03"))
    executed(path, cwd=ROOT)


# The tool itself, on notebooks made up for it.


def made_up(folder: Path, *sources: str) -> Path:
    path = folder / "made-up.ipynb"
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    write_notebook(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.mark.end_to_end
def test_the_kernel_is_this_interpreter_and_leaves_nothing_with_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("QWENLONG_GRAPH_DATA", "/nowhere")
    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    path = made_up(
        tmp_path,
        "import os, sys\nprint(sys.executable)\nprint(os.getcwd())",
        "print(os.environ['QWENLONG_GRAPH_DATA'])\nprint(os.environ.get('LANGSMITH_TRACING'))",
    )

    where, environment = code_cells(executed(path))
    assert where.outputs[0].text == f"{sys.executable}\n{tmp_path}\n"
    data, tracing = environment.outputs[0].text.splitlines()
    assert tracing == "None"
    assert data != "/nowhere"
    assert not Path(data).parent.exists()


@pytest.mark.end_to_end
def test_a_cell_that_fails_is_told_and_the_file_stays(tmp_path):
    path = made_up(tmp_path, "print(1)", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        executed(path)
    assert path.read_bytes() == before


def test_a_name_that_no_notebook_has_is_an_error(capsys):
    assert main(["99"]) == 2
    assert "99" in capsys.readouterr().err


def test_a_blank_picture_and_an_idle_cell_are_noticed():
    white = zlib.compress((b"\x00" + b"\xff" * 30) * 10)
    blank = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(white)) + b"IDAT" + white + b"1234"
    assert grey_values(blank) == {0, 255}
    assert only_prepares("import os\nx = 1\n\ndef f(): ...")
    assert not only_prepares("x = 1\nprint(x)")
