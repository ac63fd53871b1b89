"""Runs the notebooks from a fresh kernel and writes their outputs back.

    python -m tests.run_notebooks              all of them (what `make notebooks` does)
    python -m tests.run_notebooks 02 05        those whose names begin so

A notebook is executed in its own folder, as Jupyter does, by the interpreter that runs this module,
whatever kernels the user has installed. Texts and runs go to a folder that is removed afterwards.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets import Instance
from traitlets.config import Config

__all__ = ["NOTEBOOKS", "executed", "read_notebook", "write_notebook"]

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

# Whatever the machine, the checked-in file says the same.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
CELL_TIMEOUT_S = 300


class _ThisInterpreter(KernelSpecManager):
    """Knows one kernel: the interpreter that runs this module."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())


class Kernel(AsyncKernelManager):
    kernel_spec_manager = Instance(_ThisInterpreter, args=())


def read_notebook(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def write_notebook(notebook: NotebookNode, path: Path) -> None:
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def executed(path: Path, *, cwd: Path | None = None) -> NotebookNode:
    """The notebook at `path` with new outputs; the file stays as it is.

    It runs in `cwd`, by default the notebook's own folder, as in Jupyter. Raises nbclient's
    `CellExecutionError` where a cell fails.
    """
    with tempfile.TemporaryDirectory() as work:
        return _executed(path, Path(work), cwd=cwd or path.parent)


def _executed(path: Path, work: Path, *, cwd: Path) -> NotebookNode:
    notebook = read_notebook(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    # Sockets in a folder of its own: no port, and nobody else can listen.
    kernel = {"transport": "ipc", "connection_file": str(work / "kernel.json")}
    client = NotebookClient(
        notebook,
        config=Config({Kernel.__name__: kernel}),
        kernel_manager_class=Kernel,
        timeout=CELL_TIMEOUT_S,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(cwd)}},
    )
    client.execute(env=_environment(work))
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def _environment(work: Path) -> dict[str, str]:
    """The user's, but for what could change an output or be left behind."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LANGSMITH_")}
    return {
        **kept,
        "QWENLONG_GRAPH_DATA": str(work / "data"),
        "IPYTHONDIR": str(work / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else the debugger of ipykernel warns
        "NO_COLOR": "1",
        "COLUMNS": "88",
    }


def main(prefixes: list[str]) -> int:
    chosen = [path for path in NOTEBOOKS if not prefixes or path.name.startswith(tuple(prefixes))]
    if not chosen:
        sys.stderr.write(f"No notebook in {FOLDER} begins with {' or '.join(prefixes)}.\n")
        return 2
    for path in chosen:
        sys.stderr.write(f"{path.name}\n")
        write_notebook(executed(path), path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
